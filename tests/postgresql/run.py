"""Put load on a Django site with PostgreSQL, and see how many connections it takes and how long its answers.

    python -m tests.postgresql.run [--upstream PYTHON] [--plot FILE]

The database lets the site have 20 connections: its role has that limit, so one too many is an error of the site, which
no sample can miss. The site waits for the end of each connection that it closes, because it counts until then. With
``ThreadSensitiveContext.max_threads = 20``, 2,000 requests, 100 at once, must all be answered with 200, with
``CONN_MAX_AGE`` 0 and 600, from synchronous and asynchronous views. So must 200 streams that are open at the same time
and have given their threads back. Afterwards, all connections are closed within a time that is printed.

``--upstream`` is an interpreter with upstream's asgiref, Django, uvicorn and psycopg, on which the same is run for
comparison. ``--plot`` draws connections and latency over the number of requests at once, with and without the limit.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import importlib
import itertools
import math
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from ..helpers import ROOT
from ..servers import HOST, Server, free_port, postgresql, run_server

psycopg: Any = importlib.import_module("psycopg")  # not installed everywhere where types are checked

KINDS = "sync", "async", "stream"
# Each part of a streamed response.
NO_GROUPS = b"0\n"
ALLOWED = 20  # connections, and so threads
# An idle worker ends after ten to twenty seconds, and then the site closes its connection.
ALL_CLOSED_WITHIN = 25.0


@dataclasses.dataclass
class Outcome:
    """The results of some requests."""

    statuses: Counter[int] = dataclasses.field(default_factory=Counter)
    latencies: list[float] = dataclasses.field(default_factory=list)
    # The highest sample of the number of connections; there may have been more.
    connections: int = 0
    seconds: float = 0.0

    def percentile(self, share: float) -> float:
        """Return the latency, in seconds, that this share of the requests did not exceed."""
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)]

    def __str__(self) -> str:
        statuses = ", ".join(f"{count} times {status}" for status, count in sorted(self.statuses.items()))
        return (
            f"{statuses}; {self.connections} connections; median {1000 * statistics.median(self.latencies):.0f} ms, "
            f"95 % {1000 * self.percentile(0.95):.0f} ms, {sum(self.statuses.values()) / self.seconds:.0f} requests/s"
        )


class Database:
    """The server, and the limits for the site."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self._superuser = psycopg.connect(host=directory, user="postgres", dbname="postgres", autocommit=True)

    def prepare(self) -> None:
        """Create the role of the site and its tables."""
        self._superuser.execute("CREATE ROLE site LOGIN")
        self._superuser.execute("CREATE TABLE auth_group (id int PRIMARY KEY, name text)")
        self._superuser.execute("GRANT ALL ON auth_group TO site")

    def allow(self, connections: int) -> None:
        """Set the limit for concurrent connections of the site; -1: no limit."""
        self._superuser.execute(f"ALTER ROLE site CONNECTION LIMIT {connections}")

    def connections(self) -> int:
        """Return the current number of connections of the site."""
        [(count,)] = self._superuser.execute("SELECT count(*) FROM pg_stat_activity WHERE usename = 'site'")
        return int(count)

    def close(self) -> None:
        self._superuser.close()


@contextlib.contextmanager
def database(**settings: int) -> Iterator[Database]:
    with postgresql(**settings) as directory:
        opened = Database(directory)
        try:
            opened.prepare()
            yield opened
        finally:
            opened.close()


@contextlib.contextmanager
def site(
    used: Database, max_threads: int | None, max_age: int, python: str = sys.executable, root: str = str(ROOT)
) -> Iterator[Server]:
    """Serve the site with uvicorn, with *python*."""
    environment = {
        **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        "PYTHONPATH": root,
        "SITE_MAX_AGE": str(max_age),
        "SITE_MAX_THREADS": "" if max_threads is None else str(max_threads),
        "SITE_SOCKET": used.directory,
    }
    with tempfile.TemporaryDirectory() as directory:
        server = Server("uvicorn", (HOST, free_port()), Path(directory, "log"))
        options = ["--app-dir", str(Path(__file__).parent), "--lifespan", "off", "--log-level", "warning"]
        address = ["--host", HOST, "--port", str(server.address[1])]
        with run_server(server, [python, "-m", "uvicorn", *options, *address, "django_site:application"], environment):
            yield server


# A client that needs little CPU time, because the site shares the machine.


async def get(server: Server, kind: str) -> tuple[int, bytes]:
    """Return the status and the body of one request."""
    async with begun(server, kind) as (status, reader):
        # In chunks, which contain no such end of a line.
        return status, b"".join((await reader.read()).split(b"\r\n")[1::2])


@contextlib.asynccontextmanager
async def begun(server: Server, kind: str) -> AsyncIterator[tuple[int, asyncio.StreamReader]]:
    """Yield the status of a request, and the reader for the rest of its response."""
    assert isinstance(server.address, tuple)
    host, port = server.address
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(f"GET /{kind} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        yield int(head.split()[1]), reader
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def load(used: Database, server: Server, kind: str, requests: int, at_once: int) -> Outcome:
    """Make that many requests, *at_once* concurrently, each as soon as another one has been answered."""
    outcome = Outcome()
    numbers = itertools.count()

    async def make_requests() -> None:
        while next(numbers) < requests:
            began = time.perf_counter()
            status, _ = await get(server, kind)
            outcome.latencies.append(time.perf_counter() - began)
            outcome.statuses[status] += 1

    async with watched(used, outcome):
        await asyncio.gather(*[make_requests() for _ in range(at_once)])
    return outcome


async def streams(used: Database, server: Server, count: int) -> Outcome:
    """Open that many streams at the same time; each queries before and after."""
    outcome = Outcome()
    all_have_begun = asyncio.Barrier(count + 1)

    async def read() -> None:
        began = time.perf_counter()
        async with begun(server, "stream") as (status, reader):
            with contextlib.suppress(asyncio.IncompleteReadError):  # interrupted
                await reader.readuntil(NO_GROUPS)
            outcome.latencies.append(time.perf_counter() - began)
            await all_have_begun.wait()
            is_whole = NO_GROUPS in await reader.read()
        outcome.statuses[status if is_whole else 500] += 1

    async with watched(used, outcome), asyncio.TaskGroup() as group:
        for _ in range(count):
            group.create_task(read())
        await all_have_begun.wait()
        while sum(outcome.statuses.values()) < count:
            await get(server, "end")
            await asyncio.sleep(0.05)
    return outcome


@contextlib.asynccontextmanager
async def watched(used: Database, outcome: Outcome) -> AsyncIterator[None]:
    async def watch() -> None:
        while True:
            outcome.connections = max(outcome.connections, await asyncio.to_thread(used.connections))
            await asyncio.sleep(0.02)

    began = time.perf_counter()
    watching = asyncio.create_task(watch())
    try:
        yield
    finally:
        watching.cancel()
        await asyncio.wait([watching])
    outcome.seconds = time.perf_counter() - began


async def seconds_until_all_closed(used: Database, server: Server) -> float:
    """Return the time until the site has only the connection of one request per second, as a monitor makes it."""
    began = time.perf_counter()
    while await asyncio.to_thread(used.connections) > 1:
        assert time.perf_counter() < began + 6 * ALL_CLOSED_WITHIN, f"{used.connections()} connections are open"
        await get(server, "async")
        await asyncio.sleep(1)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--at-once", type=int, default=100)
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--upstream", metavar="PYTHON", help="run the same on the asgiref that this interpreter has")
    parser.add_argument("--plot", metavar="FILE", type=Path, help="draw connections and latency over the load instead")
    arguments = parser.parse_args()
    if arguments.plot:
        draw(asyncio.run(measure()), arguments.plot)
        return
    faults = []
    with database(max_connections=30) as used:
        for max_age in 0, 600:
            print(f"max_threads = {ALLOWED}, CONN_MAX_AGE = {max_age}", flush=True)
            with site(used, ALLOWED, max_age) as server:
                faults += asyncio.run(judge(used, server, arguments))
                faults += asyncio.run(judge_end(used, server))
            if arguments.upstream:
                print(f"upstream, CONN_MAX_AGE = {max_age}", flush=True)
                with site(used, None, max_age, arguments.upstream, root="") as server:
                    asyncio.run(judge(used, server, arguments))
    sys.exit("; ".join(faults))


async def judge(used: Database, server: Server, arguments: Any) -> list[str]:
    """Print the results of the load; return its faults."""
    used.allow(ALLOWED)
    faults = []
    for kind in KINDS:
        if kind == "stream":
            outcome = await streams(used, server, arguments.streams)
        else:
            outcome = await load(used, server, kind, arguments.requests, arguments.at_once)
        print(f"  {kind}: {outcome}", flush=True)
        if set(outcome.statuses) != {200}:
            errors = Counter(line for line in server.log.splitlines() if "Error" in line)
            faults.append(f"{kind}: {dict(outcome.statuses)}: {errors.most_common(1)}")
    try:
        most = int((await get(server, "connections"))[1])
    except ValueError:  # it cannot even answer this request
        most = -1
    print(f"  {most} connections at most", flush=True)
    if most > ALLOWED:
        faults.append(f"{most} connections")
    return faults


async def judge_end(used: Database, server: Server) -> list[str]:
    """Print the time until all connections are closed; return the faults."""
    closed = await seconds_until_all_closed(used, server)
    print(f"  all connections closed after {closed:.0f} s", flush=True)
    return [] if closed < ALL_CLOSED_WITHIN else [f"connections closed after {closed:.0f} s"]


# The plot:

LOADS = 1, 5, 10, 20, 40, 70, 100, 150
WAYS = {"no limit": None, f"max_threads = {ALLOWED}": ALLOWED}


async def measure() -> dict[str, dict[int, tuple[int, Outcome]]]:
    """Return, for each way and each number of concurrent requests, the most connections and the load's results."""
    found: dict[str, dict[int, tuple[int, Outcome]]] = {way: {} for way in WAYS}
    with database(max_connections=max(LOADS) + 50) as used:
        for at_once, (way, max_threads) in itertools.product(LOADS, WAYS.items()):
            with site(used, max_threads, 600) as server:
                await load(used, server, "sync", at_once, at_once)
                outcome = await load(used, server, "sync", 200 + 5 * at_once, at_once)
                found[way][at_once] = int((await get(server, "connections"))[1]), outcome
            print(f"{at_once} at once, {way}: {found[way][at_once][0]} connections; {outcome}", flush=True)
    return found


def draw(found: dict[str, dict[int, tuple[int, Outcome]]], file: Path) -> None:
    from benchmarks.plots import COLOURS, MARKERS, figure

    with figure(
        file, "Connections and latency over the number of concurrent requests, with and without max_threads"
    ) as drawn:
        drawn.set_size_inches(8, 3.4)
        connections, latency = drawn.subplots(1, 2)
        for (way, points), colour, marker in zip(found.items(), COLOURS, MARKERS, strict=False):
            loads = list(points)
            connections.plot(loads, [count for count, _ in points.values()], color=colour, marker=marker, label=way)
            for share, style in (0.5, "-"), (0.95, ":"):
                times = [1000 * outcome.percentile(share) for _, outcome in points.values()]
                latency.plot(loads, times, style, color=colour, marker=marker, markersize=4)
        connections.set_ylabel("database connections, at most")
        latency.set_ylabel("latency in ms; median, dotted: 95 %")
        for axes in connections, latency:
            axes.set_xlabel("concurrent requests")
            axes.set_xlim(left=0)
            axes.set_ylim(bottom=0)
        drawn.legend(loc="outside upper center", ncols=2)


if __name__ == "__main__":
    main()
