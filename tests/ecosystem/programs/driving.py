"""Starting programs, with ports, directories and timeouts."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

# The timeout of each wait, in seconds.
LIMIT = 60.0

HERE = Path(__file__).parent
HOST = "127.0.0.1"


def free_port() -> int:
    with socket.socket() as free:
        free.bind((HOST, 0))
        port: int = free.getsockname()[1]
        return port


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def accepts(port: int) -> bool:
    try:
        socket.create_connection((HOST, port), timeout=1).close()
    except OSError:
        return False
    return True


class Program:
    """A process with its child processes; its output goes to a file."""

    def __init__(self, command: str, directory: Path, variables: Mapping[str, str]) -> None:
        self.log_file = directory / f"{command.split()[0]}-{time.monotonic_ns()}.log"
        name, *arguments = shlex.split(command)
        program = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
        assert program is not None, f"{name} is not installed"
        environment = {**os.environ, "PYTHONPATH": str(HERE), "PYTHONUNBUFFERED": "1", **variables}
        with self.log_file.open("wb") as log:
            self.process = subprocess.Popen(
                [program, *arguments],
                cwd=directory,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that no process is left behind
            )

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    @property
    def runs(self) -> bool:
        return self.process.poll() is None

    def wait_for_port(self, port: int) -> None:
        def ready() -> bool:
            assert self.runs, self.log
            return accepts(port)

        wait_until(ready, self.log)

    def wait_for_log(self, text: str) -> None:
        def ready() -> bool:
            assert self.runs, self.log
            return text in self.log

        wait_until(ready, f"no {text!r} in {self.log}")

    def stop(self) -> int:
        """Let it end, and return its exit status."""
        self.process.terminate()
        return self.process.wait(LIMIT)


@contextlib.contextmanager
def started(command: str, directory: Path, **variables: str) -> Iterator[Program]:
    """Run *command*, and end all of its processes afterwards."""
    program = Program(command, directory, variables)
    try:
        yield program
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(program.process.pid, signal.SIGKILL)
        program.process.wait()


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Redis server for one module."""
    port = free_port()
    command = f"redis-server --port {port} --bind {HOST} --appendonly no"
    with started(command, tmp_path_factory.mktemp("redis")) as program:
        program.wait_for_port(port)
        yield f"redis://{HOST}:{port}/0"
