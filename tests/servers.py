"""Real servers, each in a separate process, which serve ``wsgi_apps`` on a loopback address or a Unix socket."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import asgiref

from .helpers import LIMIT, ROOT

HOST = "127.0.0.1"
ROOT_PATH = "/site"

_UVICORN = "uvicorn --host {host} --port {port} --lifespan on --timeout-keep-alive 60 tests.wsgi.applications:asgi"
_HYPERCORN = "hypercorn --workers 0 --keep-alive 60 --bind {host}:{port} tests.wsgi.applications:asgi"
_UWSGI = "uwsgi --http-socket {host}:{port} --master --processes 2 --need-app --die-on-term"
_GUNICORN = "gunicorn --preload --workers 2 --no-control-socket --bind {host}:{port}"

# The modules that each server needs, and its arguments after ``python -m``.
ASGI_SERVERS = {
    "uvicorn": (("uvicorn", "httptools", "uvloop", "websockets"), _UVICORN + " --http httptools --loop uvloop"),
    "uvicorn-h11": (("uvicorn", "h11", "wsproto"), _UVICORN + " --http h11 --loop asyncio --ws wsproto"),
    "hypercorn": (("hypercorn",), _HYPERCORN),
    "hypercorn-h2": (("hypercorn", "h2"), _HYPERCORN),
    "daphne": (("daphne",), "daphne --bind {host} --port {port} tests.wsgi.applications:asgi"),
    "granian": (("granian",), "granian --interface asgi --host {host} --port {port} tests.wsgi.applications:asgi"),
}
WSGI_SERVERS = {
    "wsgiref": ((), "tests.wsgi.applications {host} {port}"),
    "waitress": (("waitress",), "waitress --listen {host}:{port} --threads 16 tests.wsgi.applications:wsgi"),
}
# These load the application, which makes bridged calls, before they fork the processes that serve it.
PRELOADING_SERVERS = {
    "gunicorn": (("gunicorn",), _GUNICORN + " --worker-class gthread --threads 4 tests.process.preloaded:wsgi"),
    "gunicorn-asgi": (("gunicorn",), _GUNICORN + " --worker-class asgi tests.process.preloaded:asgi"),
    # This one also replaces threads, after the fork. Its workers lose a signal that comes as soon as they have started.
    "gunicorn-gevent": (
        ("gunicorn", "gevent"),
        _GUNICORN + " --worker-class gevent --graceful-timeout 5 tests.process.preloaded:wsgi",
    ),
    # It forks in C, where Python's hooks do not run.
    "uwsgi": ((), _UWSGI + " --module tests.process.preloaded:wsgi_on_worker"),
    "uwsgi-threads": ((), _UWSGI + " --enable-threads --threads 4 --module tests.process.preloaded:wsgi_on_worker"),
}
UNIX_SERVERS = {
    "uvicorn": (("uvicorn",), "uvicorn --uds {path} --root-path {root_path} tests.wsgi.applications:asgi"),
    "hypercorn": (
        ("hypercorn",),
        "hypercorn --workers 0 --bind unix:{path} --root-path {root_path} tests.wsgi.applications:asgi",
    ),
    "daphne": (("daphne",), "daphne --unix-socket {path} --root-path {root_path} tests.wsgi.applications:asgi"),
}


@dataclass
class Server:
    """A running server, which accepts connections at *address*."""

    name: str
    address: tuple[str, int] | str
    log_file: Path

    @property
    def log(self) -> str:
        """What the process has written so far."""
        return self.log_file.read_text(errors="replace")

    def connect(self) -> socket.socket:
        """Return a connected socket, whose operations have a timeout."""
        connection = socket.socket(socket.AF_UNIX if isinstance(self.address, str) else socket.AF_INET)
        try:
            connection.settimeout(LIMIT)
            connection.connect(self.address)
        except BaseException:
            connection.close()
            raise
        return connection


@contextlib.contextmanager
def serving(name: str, directory: Path) -> Iterator[Server]:
    """Run the server *name*, which must end by itself after a signal; skip the test if it is not installed."""
    modules, command = (ASGI_SERVERS | WSGI_SERVERS | PRELOADING_SERVERS)[name]
    port = free_port()
    yield from _serve(Server(name, (HOST, port), directory / "log"), modules, command.format(host=HOST, port=port))


def free_port() -> int:
    with socket.socket() as free:
        free.bind((HOST, 0))
        return int(free.getsockname()[1])


@contextlib.contextmanager
def serving_on_unix_socket(name: str, directory: Path) -> Iterator[Server]:
    """Run the server *name* on a Unix socket, and below ``ROOT_PATH``."""
    modules, command = UNIX_SERVERS[name]
    path = str(directory / "socket")
    yield from _serve(Server(name, path, directory / "log"), modules, command.format(path=path, root_path=ROOT_PATH))


def _serve(server: Server, modules: tuple[str, ...], command: str) -> Iterator[Server]:
    for module in modules:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
    program = [sys.executable, "-m"]
    if command.startswith("uwsgi "):
        uwsgi = shutil.which("uwsgi", path=str(Path(sys.executable).parent))
        if uwsgi is None:
            pytest.skip("uWSGI is not installed; `python -m pip install uWSGI` builds it, with a C compiler")
        program, command = [uwsgi], command.removeprefix("uwsgi ")
    paths = str(Path(asgiref.__file__).parent.parent), str(ROOT)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
    with run_server(server, [*program, *command.split()], environment):
        yield server


@contextlib.contextmanager
def run_server(server: Server, command: list[str], environment: dict[str, str]) -> Iterator[None]:
    """Run *command*, which accepts connections at the address of *server* and must end by itself after a signal."""
    with server.log_file.open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=server.log_file.parent,
            env=environment,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # so that no worker process is left behind
            stdout=log,
        )
    try:
        _wait_until_it_accepts(server, process)
        yield
        process.terminate()
        if server.name.startswith("uwsgi"):  # which loses a signal that comes while a worker starts
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
            process.terminate()
        process.wait(LIMIT)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait_until_it_accepts(server: Server, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + LIMIT
    while True:
        assert process.poll() is None, server.log
        try:
            server.connect().close()
        except OSError:
            assert time.monotonic() < deadline, server.log
            time.sleep(0.01)
        else:
            return


@contextlib.contextmanager
def postgresql(**settings: int) -> Iterator[str]:
    """Yield the directory of the socket of a database server that runs meanwhile, with these settings."""
    # The driver, which is written in Python, needs libpq from PostgreSQL's package.
    psycopg = pytest.importorskip("psycopg", reason="the driver of PostgreSQL cannot be imported", exc_type=ImportError)
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not programs:
        pytest.skip("PostgreSQL is not installed where Debian's package puts it")
    user = "postgres" if os.geteuid() == 0 else None  # root must not run it
    # Not a directory of pytest, which belongs to root only.
    with tempfile.TemporaryDirectory() as directory:
        if user is not None:
            shutil.chown(directory, user)
        data = f"{directory}/data"
        initdb = ["initdb", "-D", data, "-U", "postgres", "-A", "trust", "--no-sync", "--no-locale"]
        subprocess.run(initdb, executable=programs[-1] / "initdb", user=user, check=True, stdout=subprocess.DEVNULL)
        options = ["-D", data, "-k", directory, "-h", "", "-F"]
        options += [f"--{name}={value}" for name, value in settings.items()]
        with Path(directory, "log").open("w") as log:
            server = subprocess.Popen(
                ["postgres", *options], executable=programs[-1] / "postgres", user=user, stderr=log, cwd=directory
            )
            try:
                deadline = time.monotonic() + LIMIT
                while True:
                    assert server.poll() is None, Path(directory, "log").read_text()
                    try:
                        psycopg.connect(host=directory, user="postgres", dbname="postgres").close()
                        break
                    except psycopg.OperationalError:  # it is starting
                        assert time.monotonic() < deadline
                        time.sleep(0.01)
                yield directory
            finally:
                server.terminate()
                server.wait(LIMIT)
