"""Run projects' own tests, and programs that use them, on this package and on upstream's; compare test by test.

    python -m tests.ecosystem [--keep DIR] [--record] [PROJECT...]

The interpreter that runs this is the one under test. A test that ended differently is run three times more with each
package; if it does not always end the same way, it is listed as unstable. The exit status is 1 if a difference is left
that ``projects/`` does not explain, or a run did not finish. POSIX only.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import tempfile
from pathlib import Path

from . import projects, results
from .environments import PACKAGES, Workshop
from .outcomes import compare, differing
from .projects import Project
from .running import Missing, check, run

AGAIN = 3
# More names than this do not fit into a command line: all tests are run again.
MANY = 200


def measure(project: Project, workshop: Workshop, logs: Path) -> results.Result:
    """Run the tests of *project* with both packages, and tests that differ several times more."""
    runs, texts = {}, {}
    files = {package: logs / f"{project.key}-{package}.log" for package in PACKAGES}
    for package, log in files.items():
        log.unlink(missing_ok=True)
        first = run(project, workshop, package, log)
        print(f"{project.key}, {package}: {first.describe()}, {first.seconds:.0f} s", flush=True)
        if not first.finished:
            print(f"end of the output with {package}:", *log.read_text(errors="replace").splitlines()[-80:], sep="\n")
        runs[package] = [first]
        texts[package] = first.texts
    if different := differing(runs["ours"][0].outcomes, runs["upstream"][0].outcomes):
        print(f"{project.key}: {len(different)} tests ended differently; {AGAIN} more runs with each", flush=True)
        for _ in range(AGAIN):
            for package, log in files.items():
                runs[package].append(run(project, workshop, package, log, different if len(different) < MANY else ()))
    comparison = compare(*([run.outcomes for run in runs[package]] for package in ("ours", "upstream")))
    versions = workshop.versions(workshop.python(project, "ours"), project)
    result = results.Result.of(project, versions, {name: of[0] for name, of in runs.items()}, comparison)
    known = {**project.fails, **project.differs, **project.varies}
    for name in [*comparison.failing, *comparison.differing, *comparison.unstable]:
        for package in PACKAGES:
            if name not in known and (text := texts[package].get(name)):
                print(f"-- {name}, with {package}:\n{text[-3000:]}")
    return result


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.ecosystem", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("projects", nargs="*", metavar="PROJECT", help="default: all")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep environments and logs here, and use them again")
    parser.add_argument("--record", action="store_true", help="write the results into docs/ecosystem/")
    options = parser.parse_args()
    if unknown := set(options.projects) - set(projects.keys()):
        parser.error(f"no project {', '.join(sorted(unknown))}; there are {', '.join(projects.keys())}")
    chosen = [projects.load(key) for key in options.projects or projects.keys()]
    # A terminated run must still end the test processes, which have a separate session.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    measured: list[results.Result] = []
    left_out: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        keep = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ecosystem-")))
        workshop = Workshop(keep.resolve())
        for project in chosen:
            if project.on_demand and project.key not in options.projects:
                left_out[project.key] = "runs only when it is named"
                continue
            try:
                check(project)
                measured.append(measure(project, workshop, keep))
            except Missing as reason:
                left_out[project.key] = str(reason)
    if options.record:
        for result in measured:
            result.record()
        results.write_table()
    results.show(measured, left_out)
    return 0 if measured and all(result.alike for result in measured) else 1


if __name__ == "__main__":
    sys.exit(main())
