"""Measure ``WsgiToAsgi`` against other ways to serve the same WSGI applications, with ``wrk`` over loopback.

All servers of a family live at once, with one worker process each, and have 32 connections
of ``wrk`` one after the other, for some rounds. Requests per second, their ratios to this
package under uvicorn and to an ASGI application on the same server, the latency that 99 %
stay below and the CPU time of the server are medians of the rounds. The servers share one
CPU, and ``wrk`` has another. The family "memory" measures by how much a large upload, and a
large response to a client that pauses first, make the server grow at their peak.

Servers that are not installed are left out. The exit status is 1 if an answer was an error,
a connection failed, a server did not start or nothing was measured. Needs Linux, for what
``/proc`` tells.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asgiref

CONNECTIONS = 32
START_TIMEOUT = 60  # seconds
STOP_TIMEOUT = 3  # seconds
SETTLE_TIMEOUT = 5  # seconds
MIB = 1024 * 1024
APPLICATION = "benchmarks.wsgi_apps:application"
DISTRIBUTIONS = (
    "uvicorn", "uvloop", "httptools", "hypercorn", "daphne", "granian", "a2wsgi", "waitress", "gunicorn", "flask",
)  # fmt: skip

UVICORN = (
    "--port", "{port}", "--workers", "1", "--loop", "uvloop", "--http", "httptools",
    "--no-access-log", "--log-level", "warning",
)  # fmt: skip
GRANIAN = ("-m", "granian", "--port", "{port}", "--workers", "1", "--log-level", "warning")
HYPERCORN = ("-m", "hypercorn", "-b", "127.0.0.1:{port}", "-w", "1", "--log-level", "warning")
GUNICORN = (
    "-m", "gunicorn", "-b", "127.0.0.1:{port}", "-w", "1", "-k", "gthread", "--threads", "8", "--keep-alive", "60",
    "--no-control-socket", "--log-level", "warning",
)  # fmt: skip

# Where a2wsgi is installed, uvicorn uses that for --interface wsgi, in place of what it has itself.
UVICORN_ALONE = "import sys; sys.modules['a2wsgi'] = None; from uvicorn.main import main; main()"


@dataclass(frozen=True)
class Way:
    """A way to serve an application: an adapter for it, and a server."""

    name: str
    adapter: str
    server: str
    needs: tuple[str, ...]
    command: tuple[str, ...]


def asgi_ways() -> Iterator[Way]:
    uvicorn = ("uvicorn", "uvloop", "httptools"), ("-m", "uvicorn", APPLICATION, *UVICORN)
    servers: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
        "uvicorn": uvicorn,
        "hypercorn": (("hypercorn",), (*HYPERCORN, f"asgi:{APPLICATION}")),
        "daphne": (("daphne",), ("-m", "daphne", "-b", "127.0.0.1", "-p", "{port}", "-v", "0", APPLICATION)),
        "granian": (("granian",), (*GRANIAN, "--interface", "asgi", APPLICATION)),
    }
    for server, (needs, command) in servers.items():
        yield Way(f"WsgiToAsgi, {server}", "WsgiToAsgi", server, needs, command)
    yield Way("a2wsgi, uvicorn", "a2wsgi", "uvicorn", ("a2wsgi", *uvicorn[0]), uvicorn[1])
    for server, (needs, command) in servers.items():
        yield Way(f"pure ASGI, {server}", "ASGI", server, needs, command)


WAYS = (
    *asgi_ways(),
    Way("uvicorn --interface wsgi", "WSGI", "uvicorn", ("uvicorn", "uvloop", "httptools"),
        ("-c", UVICORN_ALONE, APPLICATION, "--interface", "wsgi", *UVICORN)),
    Way("granian --interface wsgi", "WSGI", "granian", ("granian",), (*GRANIAN, "--interface", "wsgi", APPLICATION)),
    Way("waitress, 8 threads", "WSGI", "waitress", ("waitress",),
        ("-m", "waitress", "--listen=127.0.0.1:{port}", "--threads=8", APPLICATION)),
    Way("gunicorn, 8 threads", "WSGI", "gunicorn", ("gunicorn",), (*GUNICORN, APPLICATION)),
)  # fmt: skip
OURS = WAYS[0]


@dataclass(frozen=True)
class Family:
    """An application, and what is asked of it."""

    name: str
    application: str
    answer: bytes
    body: int = 0
    needs: tuple[str, ...] = ()


HELLO = b"Hello, world!\n"
FAMILIES = (
    Family("hello", "hello", HELLO),
    Family("flask hello", "flask", HELLO, needs=("flask",)),
    Family("blocking 20 ms", "blocking", HELLO),
    Family("1 MiB in 256 chunks", "chunks", b"x" * MIB),
    Family("1 MiB POST", "upload", b"%d\n" % MIB, body=MIB),
)
MEMORY = "memory"

# What wrk found, as JSON on its last line of output.
LUA = """
done = function(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format('\\n{"requests": %d, "seconds": %f, "p99": %f, "refused": %d, "errors": %d}\\n',
    summary.requests, summary.duration / 1e6, latency:percentile(99) / 1e3, errors.status,
    errors.connect + errors.read + errors.write + errors.timeout))
end
"""


@dataclass
class Plan:
    """How to measure."""

    seconds: int
    rounds: int
    server_cpu: int | None
    wrk_cpu: int | None
    directory: Path
    large: int


class ServerFailed(Exception):
    """A server did not start, or did not answer as it should."""


class Server:
    """A server in a process group of its own."""

    def __init__(self, way: Way, application: str, port: int, plan: Plan) -> None:
        self.way = way
        self.port = port
        self._log = plan.directory / f"{port}.log"
        command = [sys.executable, *(part.format(port=port) for part in way.command)]
        with self._log.open("wb") as output, pinned(plan.server_cpu):
            self.process = subprocess.Popen(
                command,
                cwd=Path(__file__).parent.parent,
                env={**os.environ, "BENCHMARK_APPLICATION": f"{way.adapter} {application}"},
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

    def check(self, family: Family) -> None:
        """Ask once, and see that the answer is the right one."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("POST" if family.body else "GET", "/", b"x" * family.body or None)
            response = connection.getresponse()
            body = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise ServerFailed(f"did not answer: {error!r}; {self._last_words()}") from error
        finally:
            connection.close()
        if response.status != 200 or body != family.answer:
            raise ServerFailed(f"answered {response.status} with {len(body)} bytes, not as expected")

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")

    def cpu_time(self) -> float:
        """Return the seconds of CPU time that the processes of the group have used."""
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
        """Wait until what was asked last no longer keeps the server busy, and so takes nothing from the next one."""
        end = time.monotonic() + SETTLE_TIMEOUT
        before, now = -1.0, self.cpu_time()
        while now - before > 0.01 and time.monotonic() < end:
            time.sleep(0.1)
            before, now = now, self.cpu_time()

    def memory(self, field: str) -> float:
        """Return ``VmRSS`` or ``VmHWM``, its highest value so far, in MiB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return next(int(line.split()[1]) / 1024 for line in status.split("\n") if line.startswith(f"{field}:"))

    def forget_peak(self) -> None:
        with contextlib.suppress(OSError):
            Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    def ended(self) -> bool:
        """Tell whether the process has ended; its id is not given up, and so stays that of the group."""
        return os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def send_signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)


@contextlib.contextmanager
def running() -> Iterator[list[Server]]:
    """Give a list; whichever servers are put into it are ended at the end."""
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
    """Hold back Ctrl-C and SIGTERM until the end, so that no server is forgotten between its start and its record."""
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
    """Have processes that start meanwhile run on *cpu* only."""
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


def run_wrk(server: Server, script: Path, seconds: int, cpu: int | None) -> dict[str, float]:
    before = server.cpu_time()
    with pinned(cpu):
        output = subprocess.run(
            ["wrk", "-t", "1", "-c", str(CONNECTIONS), "-d", f"{seconds}s", "--timeout", "10s", "-s", script,
             f"http://127.0.0.1:{server.port}/"],
            check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        ).stdout  # fmt: skip
    used = server.cpu_time() - before
    server.settle()
    last = output.rstrip().rpartition("\n")[2]
    if not last.startswith("{"):
        raise ServerFailed(f"wrk could not measure it: {last}")
    found: dict[str, float] = json.loads(last)
    if not found["requests"]:
        raise ServerFailed(f"answered no request in {seconds} s")
    return {
        "rate": found["requests"] / found["seconds"],
        "p99": found["p99"],
        "cpu": used / found["requests"] * 1e6,
        "refused": found["refused"],
        "errors": found["errors"],
    }


def missing(needs: Sequence[str]) -> list[str]:
    return [name for name in needs if importlib.util.find_spec(name) is None]


def measure(family: Family, plan: Plan) -> list[dict[str, Any]]:
    """Let the servers take turns at *family*; return a row for each, with ``failed`` where one fell out."""
    ways = [way for way in WAYS if not missing(way.needs)]
    script = plan.directory / "wrk.lua"
    post = f'wrk.method = "POST"\nwrk.body = string.rep("x", {family.body})\n' if family.body else ""
    script.write_text(post + LUA)
    rounds: dict[Way, list[dict[str, float]]] = {way: [] for way in ways}
    failed: dict[Way, str] = {}
    with running() as servers:
        with uninterrupted():
            for way, port in zip(ways, free_ports(len(ways)), strict=True):
                servers.append(Server(way, family.application, port, plan))
        for server in servers:
            try:
                server.wait_until_up()
                server.check(family)
            except ServerFailed as reason:
                failed[server.way] = str(reason)
        for number in range(plan.rounds):
            for server in servers:
                if server.way in failed:
                    continue
                progress(f"{family.name}: {server.way.name}, round {number + 1}")
                try:
                    rounds[server.way].append(run_wrk(server, script, plan.seconds, plan.wrk_cpu))
                except ServerFailed as reason:
                    failed[server.way] = str(reason)
    return [row(way, rounds, failed.get(way)) for way in ways]


def row(way: Way, rounds: dict[Way, list[dict[str, float]]], failed: str | None) -> dict[str, Any]:
    own = rounds[way]

    def median(field: str) -> float | None:
        return statistics.median(result[field] for result in own) if own else None

    def ratio(other: Way | None) -> float | None:
        pairs = zip(own, rounds.get(other, []) if other else [], strict=False)
        ratios = [mine["rate"] / theirs["rate"] for mine, theirs in pairs]
        return statistics.median(ratios) if ratios else None

    return {
        "name": way.name,
        "rate": median("rate"),
        "to_ours": ratio(OURS),
        "to_pure": ratio(next((each for each in rounds if (each.adapter, each.server) == ("ASGI", way.server)), None)),
        "p99": median("p99"),
        "cpu": median("cpu"),
        "refused": round(sum(result["refused"] for result in own)),
        "errors": round(sum(result["errors"] for result in own)),
        "failed": failed,
    }


def measure_memory(plan: Plan) -> list[dict[str, Any]]:
    results = []
    for application, name, transfer in (("upload", "upload", send_large), ("download", "response", receive_large)):
        progress(f"{MEMORY}: {name}")
        with running() as servers:
            with uninterrupted():
                server = Server(OURS, application, free_ports(1)[0], plan)
                servers.append(server)
            result: dict[str, Any] = {"name": f"{plan.large // MIB} MiB {name}", "failed": None}
            try:
                server.wait_until_up()
                transfer(server.port, MIB)
                server.forget_peak()
                result["before"] = server.memory("VmRSS")
                start = time.monotonic()
                transfer(server.port, plan.large)
                result["seconds"] = time.monotonic() - start
                result["after"] = server.memory("VmRSS")
                result["growth"] = server.memory("VmHWM") - result["before"]
            except (ServerFailed, OSError) as reason:
                result["failed"] = str(reason)
            results.append(result)
    return results


def send_large(port: int, size: int) -> None:
    piece = bytes(64 * 1024)
    with socket.create_connection(("127.0.0.1", port), 60) as connection:
        head = f"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {size}\r\nConnection: close\r\n\r\n"
        connection.sendall(head.encode())
        for _ in range(size // len(piece)):
            connection.sendall(piece)
        answer = b""
        while received := connection.recv(len(piece)):
            answer += received
    if not answer.startswith(b"HTTP/1.1 200 ") or not answer.endswith(b"\r\n\r\n%d\n" % size):
        raise ServerFailed(f"answered {answer[:100]!r} to the upload")


def receive_large(port: int, size: int) -> None:
    with socket.create_connection(("127.0.0.1", port), 60) as connection:
        connection.sendall(f"GET /?{size} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
        time.sleep(1)
        total, first, last = 0, b"", b""
        while received := connection.recv(64 * 1024):
            total += len(received)
            first = first or received
            last = (last + received)[-5:]
    if not first.startswith(b"HTTP/1.1 200 ") or total < size or last != b"0\r\n\r\n":
        raise ServerFailed(f"sent {total} bytes that begin with {first[:20]!r}")


def progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\x1b[K{text} ...", end="\r", file=sys.stderr, flush=True)


def environment(plan: Plan) -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().split("\n")
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "CPU")
    versions = {"asgiref": asgiref.__version__}
    for name in DISTRIBUTIONS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    wrk = subprocess.run(["wrk", "-v"], check=False, capture_output=True, text=True).stdout
    return {
        "cpu": model,
        "cpus": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "wrk": wrk.partition("[")[0].removeprefix("wrk").strip(),
        "versions": versions,
        "server_cpu": plan.server_cpu,
        "wrk_cpu": plan.wrk_cpu,
        "seconds": plan.seconds,
        "rounds": plan.rounds,
    }


def print_environment(facts: dict[str, Any]) -> None:
    print(f"{facts['cpu']}, {facts['cpus']} CPUs, {facts['system']}, {facts['python']}, wrk {facts['wrk']}")
    print(", ".join(f"{name} {version}" for name, version in facts["versions"].items()))
    placed = "not pinned" if facts["server_cpu"] is None else "servers on one CPU, wrk on another"
    print(f"{facts['rounds']} rounds of {facts['seconds']} s with {CONNECTIONS} connections, {placed}")


def print_rows(name: str, rows: list[dict[str, Any]]) -> None:
    progress("\x1b[K")
    print(f"\n{name:26} {'req/s':>8} {'/ours':>6} {'/pure':>6} {'p99 ms':>8} {'CPU us':>8}  non-2xx  errors")
    for each in rows:
        if each["rate"] is not None:
            pure = "" if each["to_pure"] is None else f"{each['to_pure']:.2f}"
            ours = "" if each["to_ours"] is None else f"{each['to_ours']:.2f}"
            print(
                f"{each['name']:26} {each['rate']:8.0f} {ours:>6} {pure:>6} {each['p99']:8.1f} {each['cpu']:8.1f} "
                f"{each['refused']:8} {each['errors']:7}"
            )
        if each["failed"]:
            print(f"{each['name']:26} failed: {each['failed']}")


def print_memory(rows: list[dict[str, Any]]) -> None:
    progress("\x1b[K")
    print(f"\n{MEMORY + ', ' + OURS.name:32} {'before':>8} {'after':>8} {'peak growth, MiB':>17} {'seconds':>8}")
    for each in rows:
        if each["failed"]:
            print(f"{each['name']:32} failed: {each['failed']}")
        else:
            print(
                f"{each['name']:32} {each['before']:8.1f} {each['after']:8.1f} {each['growth']:17.1f} "
                f"{each['seconds']:8.1f}"
            )


def run(arguments: argparse.Namespace, plan: Plan) -> bool:
    """Measure and print; return whether all went well."""
    facts = environment(plan)
    facts["skipped"] = {way.name: gone for way in WAYS if (gone := missing(way.needs))}
    families: dict[str, list[dict[str, Any]]] = {}
    if not arguments.json:
        print_environment(facts)
        for name, gone in facts["skipped"].items():
            print(f"skipped {name}: {', '.join(gone)} not installed")
    if len(facts["skipped"]) == len(WAYS):
        print("no server is installed, so nothing can be measured", file=sys.stderr)
        return False
    for family in FAMILIES:
        if arguments.only and arguments.only not in family.name:
            continue
        if gone := missing(family.needs):
            facts["skipped"][family.name] = gone
            if not arguments.json:
                print(f"skipped {family.name}: {', '.join(gone)} not installed")
            continue
        families[family.name] = measure(family, plan)
        if not arguments.json:
            print_rows(family.name, families[family.name])
    if (not arguments.only or arguments.only in MEMORY) and OURS.name not in facts["skipped"]:
        families[MEMORY] = measure_memory(plan)
        if not arguments.json:
            print_memory(families[MEMORY])
    if arguments.json:
        print(json.dumps({"environment": facts, "families": families}, indent=1))
    rows = [each for family_rows in families.values() for each in family_rows]
    return bool(rows) and not any(each["failed"] or each.get("refused") or each.get("errors") for each in rows)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.wsgi", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", metavar="TEXT", help="run only families whose name contains this")
    parser.add_argument("--seconds", type=int, default=2, metavar="N", help="seconds of wrk in a round (default: 2)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="rounds (default: 5)")
    parser.add_argument("--quick", action="store_true", help="one round of one second, and 64 MiB in place of 1 GiB")
    parser.add_argument("--json", action="store_true", help="print JSON in place of tables")
    parser.add_argument(
        "--pin", action=argparse.BooleanOptionalAction, default=True, help="give servers a CPU, and wrk another"
    )
    arguments = parser.parse_args()
    if arguments.seconds < 1 or arguments.rounds < 1:
        parser.error("--seconds and --rounds must be at least 1")
    if shutil.which("wrk") is None:
        parser.error("wrk, the HTTP benchmarking tool, is not on PATH; install it first")
    if not Path("/proc/self/stat").exists():
        parser.error("there is no /proc, from which CPU time and memory are read; this needs Linux")
    cpus = sorted(os.sched_getaffinity(0))
    pin = arguments.pin and len(cpus) > 1
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with tempfile.TemporaryDirectory() as directory:
        plan = Plan(
            seconds=1 if arguments.quick else arguments.seconds,
            rounds=1 if arguments.quick else arguments.rounds,
            server_cpu=cpus[0] if pin else None,
            wrk_cpu=cpus[1] if pin else None,
            directory=Path(directory),
            large=(64 if arguments.quick else 1024) * MIB,
        )
        try:
            return 0 if run(arguments, plan) else 1
        except KeyboardInterrupt:
            return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main())
