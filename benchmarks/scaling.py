"""How much faster two threads are than one, on free-threaded builds.

    python -m benchmarks.scaling [--upstream FOLDER] [--repeat N]

FOLDER has upstream's package; ``pip install --no-deps --target FOLDER asgiref`` installs it there. Each figure is the
best of N. The packages and the control (plain threads that compute) take turns. The output gives the rate per second
for one and two threads, and their ratio.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

__all__ = ["main", "measure"]


def compute(rounds: int) -> None:
    number = 0
    for each in range(rounds):
        number += each


def rounds_in(seconds: float) -> int:
    rounds = 1000
    while True:
        begin = time.perf_counter()
        compute(rounds)
        took = time.perf_counter() - begin
        if took >= seconds:
            return int(rounds * seconds / took)
        rounds *= 2


def rate(threads: int, count: int, work: Callable[[int], object]) -> float:
    """Return the total rate per second of *threads* threads that each call ``work(count)``."""
    ready = threading.Barrier(threads + 1)

    def run() -> None:
        ready.wait()
        work(count)

    running = [threading.Thread(target=run) for _ in range(threads)]
    for thread in running:
        thread.start()
    ready.wait()
    begin = time.perf_counter()
    for thread in running:
        thread.join()
    return threads * count / (time.perf_counter() - begin)


def on_a_loop(main: Callable[[int], Coroutine[Any, Any, None]]) -> Callable[[int], None]:
    return lambda count: asyncio.run(main(count))


def cases(short: int, long: int) -> dict[str, Callable[[int], float]]:
    """Return, for each case, a function from the number of threads to the rate."""
    from asgiref.local import Local
    from asgiref.sync import ThreadSensitiveContext, async_to_sync, sync_to_async
    from asgiref.wsgi import WsgiToAsgi

    async def nothing() -> None: ...

    async def nested(count: int) -> None:
        call = sync_to_async(async_to_sync(nothing))
        async with ThreadSensitiveContext():
            for _ in range(count):
                await call()

    async def calls(count: int) -> None:
        with ThreadPoolExecutor(1) as executor:
            call = sync_to_async(compute, thread_sensitive=False, executor=executor)
            for _ in range(count):
                await call(short)

    async def to_thread(count: int) -> None:
        for _ in range(count):
            await asyncio.to_thread(compute, short)

    def read(count: int) -> None:
        storage = Local()
        storage.value = 1
        for _ in range(count):
            storage.value

    def application(environ: Any, start_response: Any) -> list[bytes]:
        compute(long)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"hello"]

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None: ...

    scope = {"type": "http", "http_version": "1.1", "method": "GET", "path": "/", "query_string": b"", "headers": []}

    def wsgi(threads: int) -> float:
        options: Any = {"threads": threads} if "threads" in WsgiToAsgi.__init__.__annotations__ else {}
        adapter: Any = WsgiToAsgi(application, **options)

        async def client(count: int) -> None:
            for _ in range(count):
                await adapter(scope, receive, send)

        async def clients() -> float:
            begin = time.perf_counter()
            await asyncio.gather(*[client(10) for _ in range(8)])
            return 80 / (time.perf_counter() - begin)

        return asyncio.run(clients())

    return {
        "plain threads that compute for 200 us": lambda threads: rate(
            threads, 500, lambda count: compute(count * short)
        ),
        "nested calls, a loop in each thread": lambda threads: rate(threads, 500, on_a_loop(nested)),
        "calls of 200 us, a loop in each thread": lambda threads: rate(threads, 300, on_a_loop(calls)),
        "asyncio.to_thread of 200 us, the same": lambda threads: rate(threads, 300, on_a_loop(to_thread)),
        "reads of a Local of one's own": lambda threads: rate(threads, 100_000, read),
        "requests of 2 ms through WsgiToAsgi": wsgi,
    }


def measure() -> dict[str, list[float]]:
    """Return the rates with one and with two threads, measured in this process."""
    short = rounds_in(200e-6)
    return {name: [rate_of(1), rate_of(2)] for name, rate_of in cases(short, 10 * short).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--upstream")
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args()
    folders = {"asgiref": str(Path(__file__).parent.parent)}
    if options.upstream:
        folders["upstream"] = options.upstream
    best: dict[tuple[str, str], list[float]] = {}
    code = f"import sys; sys.path.insert(1, {str(Path(__file__).parent)!r}); import json, scaling; "
    code += "print(json.dumps(scaling.measure()))"
    for _ in range(options.repeat):
        for package, folder in folders.items():
            environment = {**os.environ, "PYTHONPATH": folder, "PYTHONSAFEPATH": "1"}
            output = subprocess.check_output([sys.executable, "-W", "ignore", "-c", code], env=environment, text=True)
            for name, rates in json.loads(output).items():
                before = best.get((name, package), [0.0, 0.0])
                best[name, package] = [max(pair) for pair in zip(before, rates, strict=True)]
    for (name, package), (one, two) in sorted(best.items()):
        print(f"{name:40} {package:10} {one:12,.0f} {two:12,.0f}   x{two / one:.2f}")


if __name__ == "__main__":
    main()
