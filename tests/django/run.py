"""Run parts of Django's own test suite on this package and on upstream's asgiref, and compare the outcomes.

Django is the largest user of asgiref, and its tests lean on what no signature tells: which thread a database
connection is used in, what a context variable holds after a request, how a cancelled ASGI request ends. The run
shows that Django can't tell the two packages apart: as many tests run and are skipped, and the same ones fail.
Both environments hold the same wheels, Django's among them, and differ in asgiref alone.

    python tests/django/run.py [--keep DIR] [--only-ours] [--limit SECONDS] [--parallel N] [LABEL...]

The interpreter that runs this script is the one under test. Packages come through pip as it is configured;
DJANGO_SDIST_CACHE names a directory to keep Django's source distribution in. POSIX only.
"""

import argparse
import contextlib
import filecmp
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
UPSTREAM = "3.13.0"
SERIES = "6.1" if sys.version_info >= (3, 12) else "5.2"
LABELS = ["asgi", "async", "handlers", "signals", "middleware", "middleware_exceptions", "test_client", "test_utils"]
LABELS += ["servers", "cache", "i18n", "urlpatterns_reverse", "backends", "auth_tests", "sessions_tests", "view_tests"]
LABELS += ["decorators", "staticfiles_tests"]
# tblib carries tracebacks out of the parallel workers; without the others some of these labels' tests are skipped.
NEEDS = ["tblib", "jinja2", "docutils", "tzdata", "argon2-cffi", "bcrypt"]
# Root writes to a file whatever its mode.
FAILS_AS_ROOT = {"test_no_write_access (i18n.test_compilation.PoFileTests.test_no_write_access)"}
PROBE = "import asgiref, django, json; print(json.dumps([asgiref.__version__, asgiref.__file__, django.__version__]))"


@dataclass(frozen=True)
class Outcome:
    closing: str
    seconds: float
    ran: int
    skipped: int
    skips: Counter[str]
    failures: dict[str, str]

    def describe(self) -> str:
        counts = f"{self.ran} tests, {len(self.failures)} failed, {self.skipped} skipped"
        return f"{counts}, {self.seconds:.0f} s: {self.closing}"


def call(*command: str | Path, cwd: Path | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} exited {done.returncode}:\n{done.stdout}")
    return done.stdout


def source_distribution(cache: Path) -> Path:
    pattern = f"[Dd]jango-{SERIES}*.tar.gz"
    if not any(cache.glob(pattern)):
        pip = (sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:")
        call(*pip, "--dest", cache, f"Django~={SERIES}.0")
    return max(cache.glob(pattern), key=lambda path: path.stat().st_mtime)


def environment(name: str, work: Path, sdist: Path) -> Path:
    """Make a virtual environment with upstream's asgiref, unless one of the same making is there; return its python."""
    home, wheels = work / name, work / "wheels"
    python, made = home / "bin" / "python", home / "made.json"
    recipe = json.dumps([sdist.name, f"asgiref=={UPSTREAM}", *NEEDS])
    if made.exists() and made.read_text() == recipe:
        return python
    if not (wheels / "made.json").exists() or (wheels / "made.json").read_text() != recipe:
        shutil.rmtree(wheels, ignore_errors=True)
        call(sys.executable, "-m", "pip", "wheel", "-w", wheels, sdist, f"asgiref=={UPSTREAM}", *NEEDS)
        (wheels / "made.json").write_text(recipe)
    call(sys.executable, "-m", "venv", "--clear", home)
    call(python, "-m", "pip", "install", "--no-index", "--find-links", wheels, *wheels.glob("*.whl"))
    made.write_text(recipe)
    return python


def install_ours(python: Path, scratch: Path) -> None:
    # A copy is built, for setuptools leaves files in the tree it builds.
    copy = scratch / "checkout"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__"))
    call(python, "-m", "pip", "install", "--no-deps", "--force-reinstall", copy)
    version, file, _ = json.loads(call(python, "-c", PROBE, cwd=scratch))
    installed, package = Path(file).parent, copy / "asgiref"
    names = sorted(str(path.relative_to(package)) for path in package.rglob("*.py"))
    found = sorted(str(path.relative_to(installed)) for path in installed.rglob("*.py"))
    if version == UPSTREAM or names != found or filecmp.cmpfiles(package, installed, names, shallow=False)[0] != names:
        sys.exit(f"{installed} (version {version}) is not the package of {ROOT}")


def probe(name: str, python: Path, tests: Path) -> None:
    version, file, django = json.loads(call(python, "-c", PROBE, cwd=tests))
    if not Path(file).is_relative_to(python.parents[1]) or (version == UPSTREAM) != (name == "upstream"):
        sys.exit(f"{name}: imports asgiref {version} from {file}")
    print(f"{name}: asgiref {version} from {file}, Django {django}", flush=True)


def print_stacks(group: int) -> None:
    """Have faulthandler print the stacks of a process group's threads, process by process and the leader's first."""
    listing = [line.split() for line in call("ps", "-A", "-o", "pid=,pgid=").splitlines()]
    for pid in sorted(int(pid) for pid, pgid in listing if int(pgid) == group):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGABRT)
        time.sleep(1)


def run_tests(command: list[str], tests: Path, scratch: Path, log: Path, limit: float) -> float:
    clean = ("PYTHON", "DJANGO_", "RUNTESTS_")
    variables = {key: value for key, value in os.environ.items() if not key.startswith(clean)}
    variables |= {"PYTHONFAULTHANDLER": "1", "PYTHONUNBUFFERED": "1", "TMPDIR": str(scratch)}
    start = time.monotonic()
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            cwd=tests,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            print_stacks(process.pid)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return time.monotonic() - start


def parse(text: str, seconds: float) -> Outcome:
    failures: dict[str, str] = {}
    for block in re.split(r"^={70}\n", text, flags=re.MULTILINE)[1:]:
        if heading := re.match(r"(?:ERROR|FAIL): (\S+(?: \(\S+\))?)", block):
            failures[heading[1]] = (
                failures.get(heading[1], "") + re.split(r"^-{70}\nRan ", block, flags=re.MULTILINE)[0]
            )
    for name in re.findall(r"^UNEXPECTED SUCCESS: (\S+ \(\S+\))", text, re.MULTILINE):
        failures[name] = "unexpected success\n"
    skips = Counter(re.findall(r"^(\S+ \(\S+\))(?:\n.*)? \.\.\. skipped ", text, re.MULTILINE))
    closing = re.search(r"^Ran (\d+) tests? in .*\n\n((?:OK|FAILED|NO TESTS RAN).*)", text, re.MULTILINE)
    if not closing:
        return Outcome("did not finish", seconds, 0, 0, skips, failures)
    skipped = re.search(r"\bskipped=(\d+)", closing[2])
    return Outcome(closing[2], seconds, int(closing[1]), int(skipped[1]) if skipped else 0, skips, failures)


def outcome(name: str, work: Path, sdist: Path, options: argparse.Namespace) -> Outcome:
    python = environment(name, work, sdist)
    log = work / f"{name}.log"
    with tempfile.TemporaryDirectory(dir=work) as directory:
        scratch = Path(directory)
        if name == "ours":
            install_ours(python, scratch)
        # Unpacked anew for each run: the tests write into their tree.
        with tarfile.open(sdist) as archive:
            archive.extractall(scratch, filter="data")
        (tests,) = scratch.glob("[Dd]jango-*/tests")
        probe(name, python, tests)
        flags = ["--settings=test_sqlite", f"--parallel={options.parallel}", "-v2", "--noinput"]
        command = [str(python), "runtests.py", *flags, *options.labels]
        seconds = run_tests(command, tests, scratch, log, options.limit)
    text = log.read_text(errors="replace")
    result = parse(text, seconds)
    print(f"{name}: {result.describe()}", flush=True)
    if not result.ran:
        print(f"end of {name}'s output:", *text.splitlines()[-300:], sep="\n")
    return result


def differences(ours: Outcome, upstream: Outcome) -> list[str]:
    found = [
        f"{what}: {mine} with ours, {theirs} with upstream's"
        for what, mine, theirs in [
            ("tests run", ours.ran, upstream.ran),
            ("skipped", ours.skipped, upstream.skipped),
        ]
        if mine != theirs
    ]
    if ours.skipped != upstream.skipped:
        found += [f"skipped more often with ours: {name}" for name in sorted(ours.skips - upstream.skips)]
        found += [f"skipped more often with upstream's: {name}" for name in sorted(upstream.skips - ours.skips)]
    for one, other, whose in [(ours, upstream, "ours"), (upstream, ours, "upstream's")]:
        failed = sorted(one.failures.keys() - other.failures.keys())
        found += [f"fails with {whose} only: {name}\n{one.failures[name]}" for name in failed]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("labels", nargs="*", metavar="LABEL", help="Django test labels (default: those near asgiref)")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the environments and logs here, and reuse them")
    parser.add_argument("--only-ours", action="store_true", help="skip upstream's run, and expect no failure")
    parser.add_argument("--limit", type=float, default=1800, metavar="SECONDS", help="for each run (default: 1800)")
    parser.add_argument("--parallel", type=int, default=min(2, os.cpu_count() or 1), metavar="N", help="test processes")
    options = parser.parse_args()
    options.labels = options.labels or LABELS
    # A terminated run must still end the test processes, which are in a session of their own.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    with contextlib.ExitStack() as stack:
        keep = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="django-tests-")))
        work = keep.resolve() / str(sys.implementation.cache_tag)
        work.mkdir(parents=True, exist_ok=True)
        cache = Path(os.environ.get("DJANGO_SDIST_CACHE") or keep / "download").resolve()
        cache.mkdir(parents=True, exist_ok=True)
        sdist = source_distribution(cache)
        ours = outcome("ours", work, sdist, options)
        if options.only_ours:
            expected = FAILS_AS_ROOT if os.geteuid() == 0 else set()
            failed = sorted(ours.failures.keys() - expected)
            found = [f"fails: {name}\n{ours.failures[name]}" for name in failed]
            finished = ours.ran > 0
        else:
            upstream = outcome("upstream", work, sdist, options)
            found = differences(ours, upstream)
            finished = ours.ran > 0 and upstream.ran > 0
            shared = sorted(ours.failures.keys() & upstream.failures.keys())
            for name in shared:
                print(f"fails with both: {name}")
    for difference in found:
        print(difference)
    print("no difference" if finished and not found else f"{len(found)} differences, or a run that did not finish")
    return 0 if finished and not found else 1


if __name__ == "__main__":
    sys.exit(main())
