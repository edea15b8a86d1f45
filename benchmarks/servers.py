"""Real servers under load: the servers of a row run concurrently and take turns to serve 32 connections.

The servers share one CPU. ``wrk``, or a Python client if it is not installed, runs on another.
The cost of a request is the average time between answers. Its CPU time is that of the server's
processes, from ``/proc``.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .cases import HERE, UPSTREAM
from .turns import ROOT, Cost, Failed, costs, environment_for, python_for

CONNECTIONS = 32
START_TIMEOUT = 60  # seconds
STOP_TIMEOUT = 3  # seconds
SETTLE_TIMEOUT = 5  # seconds
TURN = 1  # seconds; wrk has none that is shorter


@dataclass(frozen=True)
class ServerWay:
    """How to start a server: arguments, environment, and the modules that it needs."""

    command: tuple[str, ...]
    environment: dict[str, str]
    needs: tuple[str, ...]


@dataclass
class ServedRow:
    """A request, and the expected answer."""

    name: str
    family: str
    ways: Mapping[str, ServerWay]
    answer: bytes
    path: str = "/"
    body: int = 0
    unit: str = "requests/s"


@dataclass
class Plan:
    """How to measure."""

    rounds: int
    upstream: str | None
    directory: Path
    large: int  # bytes
    server_cpu: int | None = field(default=None, init=False)
    client_cpu: int | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        # There, the benchmarks can be imported, but not the package of this checkout.
        (self.directory / "benchmarks").symlink_to(ROOT / "benchmarks", target_is_directory=True)
        if hasattr(os, "sched_getaffinity") and len(cpus := sorted(os.sched_getaffinity(0))) > 1:
            self.server_cpu, self.client_cpu = cpus[:2]


class ServerFailed(Failed):
    """A server did not start or gave a wrong answer."""


# Makes wrk print its results as JSON on the last line.
LUA = """
done = function(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format('\\n{"requests": %d, "seconds": %f, "errors": %d}\\n', summary.requests,
    summary.duration / 1e6, errors.status + errors.connect + errors.read + errors.write + errors.timeout))
end
"""


class Server:
    """A server in its own process group."""

    def __init__(self, name: str, server: ServerWay, port: int, plan: Plan) -> None:
        self.name = name
        self.port = port
        self._log = plan.directory / f"{port}.log"
        with self._log.open("wb") as output, pinned(plan.server_cpu):
            self.process = subprocess.Popen(
                [python_for(name, plan.upstream), *(part.format(port=port) for part in server.command)],
                cwd=plan.directory,
                env=environment_for(name) | server.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait_until_up(self) -> None:
        end = time.monotonic() + START_TIMEOUT
        while self.process.poll() is None and time.monotonic() < end:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            time.sleep(0.05)
        raise ServerFailed(f"did not start: {self._last_words()}")

    def check(self, row: ServedRow) -> None:
        """Send one request and check the answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("POST" if row.body else "GET", row.path, b"x" * row.body or None)
            response = connection.getresponse()
            body = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise ServerFailed(f"did not answer: {error!r}; {self._last_words()}") from error
        finally:
            connection.close()
        if response.status != 200 or body != row.answer:
            raise ServerFailed(f"answered {response.status} with {len(body)} bytes, not as expected")

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")

    def cpu_time(self) -> float:
        """Return the CPU time of the processes of the group, in seconds."""
        ticks = 0
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[2]) == self.process.pid:
                ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def settle(self) -> None:
        """Wait until the server is idle, so that it takes no CPU time from the next one."""
        end = time.monotonic() + SETTLE_TIMEOUT
        before, now = -1.0, self.cpu_time()
        while now - before > 0.01 and time.monotonic() < end:
            time.sleep(0.1)
            before, now = now, self.cpu_time()

    def memory(self, field: str) -> float:
        """Return ``VmRSS``, or ``VmHWM``, its peak, in MiB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return next(int(line.split()[1]) / 1024 for line in status.split("\n") if line.startswith(f"{field}:"))

    def forget_peak(self) -> None:
        with contextlib.suppress(OSError):
            Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    def ended(self) -> bool:
        """Return whether the process has ended, without reaping it: its id remains that of the group."""
        return os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def send_signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)


@contextlib.contextmanager
def running() -> Iterator[list[Server]]:
    """Yield a list; at the end, end all servers in it."""
    servers: list[Server] = []
    try:
        yield servers
    finally:
        with uninterrupted():
            alive = [server for server in servers if server.process.returncode is None]
            for server in alive:
                server.send_signal(signal.SIGTERM)
            end = time.monotonic() + STOP_TIMEOUT
            while not all(server.ended() for server in alive) and time.monotonic() < end:
                time.sleep(0.02)
            for server in servers:
                server.send_signal(signal.SIGKILL)
                server.process.wait()


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Delay Ctrl-C and SIGTERM until the end, so that every started server is recorded."""
    held: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    handlers = [signal.signal(number, lambda number, _: held.append(number)) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, handlers, strict=True):
            signal.signal(number, handler)
        for late in held[:1]:
            signal.raise_signal(late)


@contextlib.contextmanager
def pinned(cpu: int | None) -> Iterator[None]:
    """Let processes that start in the block run on *cpu* only."""
    before = os.sched_getaffinity(0)
    try:
        if cpu is not None:
            os.sched_setaffinity(0, {cpu})
        yield
    finally:
        os.sched_setaffinity(0, before)


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def missing(needs: Sequence[str], python: str) -> list[str]:
    """Return the modules that *python* does not have."""
    code = "import importlib.util, sys; print(*[name for name in sys.argv[1:] if not importlib.util.find_spec(name)])"
    output = subprocess.run([python, "-P", "-c", code, *needs], check=True, stdout=subprocess.PIPE, text=True).stdout
    return output.split()


def load_with_wrk(url: str, row: ServedRow, plan: Plan) -> list[str]:
    script = plan.directory / "wrk.lua"
    script.write_text((f'wrk.method = "POST"\nwrk.body = string.rep("x", {row.body})\n' if row.body else "") + LUA)
    return ["wrk", "-t", "1", "-c", str(CONNECTIONS), "-d", f"{TURN}s", "--timeout", "10s", "-s", str(script), url]


def load_with_python(url: str, row: ServedRow, plan: Plan) -> list[str]:
    client = Path(__file__).with_name("client.py")
    return [sys.executable, str(client), url, str(CONNECTIONS), str(TURN), str(row.body)]


def load(server: Server, row: ServedRow, plan: Plan) -> tuple[float, float]:
    """Return the time and the CPU time of a request to *server*, in microseconds."""
    command = (load_with_wrk if shutil.which("wrk") else load_with_python)(
        f"http://127.0.0.1:{server.port}{row.path}", row, plan
    )
    before = server.cpu_time()
    with pinned(plan.client_cpu):
        output = subprocess.run(
            command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ).stdout
    used = server.cpu_time() - before
    server.settle()
    last = output.rstrip().rpartition("\n")[2]
    if not last.startswith("{"):
        raise ServerFailed(f"could not be measured: {last}")
    found: dict[str, float] = json.loads(last)
    if found["errors"] or not found["requests"]:
        raise ServerFailed(f"{found['errors']:.0f} errors, {found['requests']:.0f} answers in {TURN} s")
    return found["seconds"] / found["requests"] * 1e6, used / found["requests"] * 1e6


def choose(possible: Mapping[str, ServerWay], plan: Plan) -> tuple[list[str], dict[str, str]]:
    """Return the ways that can be measured, and reasons for the others."""
    ways, failed = [], {}
    for name, way in possible.items():
        if name == UPSTREAM and plan.upstream is None:
            continue
        python = python_for(name, plan.upstream)
        if gone := missing(way.needs, python):
            failed[name] = f"{', '.join(gone)} not installed for {python}"
        else:
            ways.append(name)
    return ways, failed


def measure(row: ServedRow, plan: Plan) -> tuple[dict[str, Cost], dict[str, str]]:
    """Let the servers take turns; return the cost of a request for each, and reasons for those not measured."""
    ways, failed = choose(row.ways, plan)
    rounds: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    with running() as servers:
        with uninterrupted():
            for way, port in zip(ways, free_ports(len(ways)), strict=True):
                servers.append(Server(way, row.ways[way], port, plan))

        def each(act: Callable[[Server], None]) -> None:
            for server in servers:
                if server.name in rounds:
                    try:
                        act(server)
                    except ServerFailed as reason:
                        failed[server.name] = str(reason)
                        del rounds[server.name]

        each(Server.wait_until_up)
        each(lambda server: server.check(row))
        for _ in range(plan.rounds):
            each(lambda server: rounds[server.name].append(load(server, row, plan)))
    return (costs(rounds) if HERE in rounds else {}), failed
