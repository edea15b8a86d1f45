"""One run of a project's tests in one environment: a process, its timeout, its report."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .environments import Workshop, call
from .outcomes import Run, read
from .projects import Project

HARNESS = Path(__file__).parent / "harness"
HOST = "127.0.0.1"


class Missing(Exception):
    """A requirement of a project is missing on this machine; the text says which."""


def check(project: Project) -> None:
    """Raise Missing if *project* cannot be run here."""
    if project.refusal:
        raise Missing(project.refusal)
    for program in project.programs:
        if shutil.which(program) is None:
            raise Missing(f"{program} is not installed")
    if "redis" in project.services and shutil.which("redis-server") is None:
        raise Missing("redis-server is not installed")
    if "postgresql" in project.services and _of_postgresql("initdb") is None:
        raise Missing("PostgreSQL is not installed")


def run(project: Project, workshop: Workshop, package: str, log: Path, tests: Sequence[str] = ()) -> Run:
    """Run all tests of *project* with *package*, or *tests* only; the output goes to *log*."""
    python = workshop.python(project, package)
    with tempfile.TemporaryDirectory(prefix="ecosystem-") as directory, contextlib.ExitStack() as stack:
        scratch = Path(directory)
        tree = workshop.unpack(project, scratch)
        report = scratch / "report"
        for service in project.services:
            stack.enter_context(_SERVICES[service](scratch))
        clean = ("PYTHON", "DJANGO_", "RUNTESTS_", "PYTEST_", "TOX_", "COVERAGE_")
        variables = {key: value for key, value in os.environ.items() if not key.startswith(clean)}
        variables |= {
            "PATH": os.pathsep.join([str(python.parent), os.environ["PATH"]]),
            "PYTHONFAULTHANDLER": "1",
            "PYTHONUNBUFFERED": "1",
            "PYTHONPATH": str(HARNESS),
            "TMPDIR": directory,
            "ECOSYSTEM_REPORT": str(report),
            **project.environment,
        }
        seconds = _run(_command(project, python, report, tests), tree, variables, log, project.limit)
        return read(report, seconds)


def _command(project: Project, python: Path, report: Path, tests: Sequence[str]) -> list[str | Path]:
    options = [argument for argument in project.arguments if argument.startswith("-")]
    arguments = [*options, *tests] if tests else [*project.arguments, *([project.program] if project.program else [])]
    if project.runner != "pytest":
        flags = [f"--parallel={min(2, os.cpu_count() or 1)}", "--noinput", "-v2"]
        if project.runner == "django":
            return [python, "runtests.py", "--settings=django_settings", *flags, *arguments]
        return [python, "-m", "django", "test", "--testrunner=django_report.ReportingRunner", *flags, *arguments]
    flags = ["-p", "no:cacheprovider", f"--report-log={report}"]
    if project.program:
        # The tree's own configuration must not be used.
        flags += ["-c", "pytest.ini"]
    return [python, "-m", "pytest", *flags, *arguments]


def _run(command: Sequence[str | Path], tree: Path, variables: dict[str, str], log: Path, limit: float) -> float:
    start = time.monotonic()
    with log.open("a") as output:
        process = subprocess.Popen(
            command,
            cwd=tree,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        family: set[int] = set()
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            family = _descendants(process.pid)
            _print_stacks([process.pid, *sorted(family)])
        finally:
            # Servers that a test has started have separate sessions.
            family |= _descendants(process.pid)
            _end(process)
            for pid in family:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
    return time.monotonic() - start


def _end(process: subprocess.Popen[bytes] | subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _descendants(ancestor: int) -> set[int]:
    pairs = [
        (int(pid), int(parent)) for pid, parent in map(str.split, call("ps", "-A", "-o", "pid=,ppid=").splitlines())
    ]
    found: set[int] = set()
    generation = {ancestor}
    while generation := {pid for pid, parent in pairs if parent in generation}:
        found |= generation
    return found


def _print_stacks(pids: Sequence[int]) -> None:
    """Let faulthandler print the stacks of all threads of *pids*, one process after the other, and end them."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGABRT)
        time.sleep(1)


@contextlib.contextmanager
def _listening(port: int, command: Sequence[str], **options: Any) -> Iterator[None]:
    """Run a server on the port that tests have written into them."""
    # The tests empty the databases, which had better not be somebody's.
    with contextlib.suppress(OSError), socket.create_connection((HOST, port)):
        raise Missing(f"port {port} is in use")
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True, **options
    )
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                socket.create_connection((HOST, port)).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise Missing(f"{command[0]} does not start") from None
                time.sleep(0.05)
        yield
    finally:
        _end(process)


@contextlib.contextmanager
def _redis(scratch: Path) -> Iterator[None]:
    """Run a Redis server and a sentinel that watches it."""
    sentinel = scratch / "sentinel.conf"
    sentinel.write_text(f"sentinel monitor sentinel {HOST} 6379 1\n")
    server = ["redis-server", "--port", "6379", "--bind", HOST, "--save", ""]
    watcher = ["redis-server", str(sentinel), "--sentinel", "--port", "26379", "--bind", HOST]
    with _listening(6379, server, cwd=scratch), _listening(26379, watcher, cwd=scratch):
        yield


@contextlib.contextmanager
def _postgresql(_: Path) -> Iterator[None]:
    """Run a PostgreSQL server, whose superuser ``postgres`` needs no password."""
    # It refuses to be run by root, whose directories nobody else can read.
    user = "postgres" if os.geteuid() == 0 else None
    with tempfile.TemporaryDirectory(prefix="ecosystem-") as directory:
        if user is not None:
            shutil.chown(directory, user)
        initialise = ["initdb", "-D", f"{directory}/data", "-U", "postgres", "-A", "trust", "--no-sync"]
        subprocess.run(
            initialise, executable=_of_postgresql("initdb"), user=user, check=True, stdout=subprocess.DEVNULL
        )
        server = ["postgres", "-D", f"{directory}/data", "-k", directory, "-h", HOST, "-p", "5432", "-F"]
        with _listening(5432, server, executable=_of_postgresql("postgres"), user=user, cwd=directory):
            yield


def _of_postgresql(program: str) -> str | None:
    """Return the path of *program*, which Debian keeps out of the PATH."""
    installed = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{program}"))
    return str(installed[-1]) if installed else shutil.which(program)


_SERVICES = {"redis": _redis, "postgresql": _postgresql}
