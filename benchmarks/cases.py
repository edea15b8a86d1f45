"""What is measured, and the processes in which it is.

Each case does its operation *n* times: an asynchronous one on a loop that the process
keeps, a synchronous one on its main thread. Run as a script, so that ``asgiref`` is the
one installed for its interpreter, this file does what its standard input says and prints
how long it took.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import json
import os
import queue
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from asgiref.local import Local
from asgiref.server import StatelessServer
from asgiref.sync import AsyncSingleThreadContext, ThreadSensitiveContext, async_to_sync, sync_to_async

CASES: dict[str, Callable[[int], Any]] = {}


def case(name: str) -> Callable[[Callable[[int], Any]], Callable[[int], Any]]:
    def register(function: Callable[[int], Any]) -> Callable[[int], Any]:
        CASES[name] = function
        return function

    return register


def nothing() -> None:
    pass


async def nothing_async() -> None:
    pass


def fail() -> None:
    raise LookupError


sensitive = sync_to_async(nothing)
insensitive = sync_to_async(nothing, thread_sensitive=False)
failing = sync_to_async(fail)
blocking = async_to_sync(nothing_async)


@case("sync_to_async, one after the other")
async def sequential(n: int) -> None:
    for _ in range(n):
        await sensitive()


@case("sync_to_async, 100 at once")
async def concurrent(n: int) -> None:
    for _ in range(0, n, 100):
        await asyncio.gather(*[sensitive() for _ in range(min(n, 100))])


@case("sync_to_async, not thread-sensitive")
async def sequential_insensitive(n: int) -> None:
    for _ in range(n):
        await insensitive()


@case("sync_to_async, not thread-sensitive, 100 at once")
async def concurrent_insensitive(n: int) -> None:
    for _ in range(0, n, 100):
        await asyncio.gather(*[insensitive() for _ in range(min(n, 100))])


@case("sync_to_async, failing")
async def sequential_failing(n: int) -> None:
    for _ in range(n):
        try:
            await failing()
        except LookupError:
            pass


@case("ThreadSensitiveContext with one call")
async def contexts(n: int) -> None:
    for _ in range(n):
        async with ThreadSensitiveContext():
            await sensitive()


@case("async_to_sync, top level")
def top_level(n: int) -> None:
    for _ in range(n):
        blocking()


@case("async_to_sync in AsyncSingleThreadContext")
def kept_loop(n: int) -> None:
    with AsyncSingleThreadContext():
        for _ in range(n):
            blocking()


@case("async_to_sync below sync_to_async")
async def nested(n: int) -> None:
    await sync_to_async(top_level)(n)


@case("sync_to_async back onto the main thread")
def back_to_main_thread(n: int) -> None:
    async_to_sync(sequential)(n)


def ten_deep(depth: int = 10) -> None:
    if depth:
        async_to_sync(sync_to_async(ten_deep))(depth - 1)


@case("ten bridges deep")
def nested_deeply(n: int) -> None:
    for _ in range(n):
        ten_deep()


class EchoServer(StatelessServer):
    """Gives messages to applications that send each back."""

    def __init__(self) -> None:
        super().__init__(echo)
        self.checker: asyncio.Task[Any] | None = None
        self.scopes = itertools.count()
        self.left = 0

    async def pass_on(self, scope_ids: Iterable[int]) -> None:
        """Give a message to each of *scope_ids*, a hundred at a time, and wait until these have come back."""
        if self.checker is None:  # as arun does, which leaves no instance for the next turn
            self.checker = asyncio.create_task(self.application_checker())
        self.all_came = asyncio.Event()
        for scope_id in scope_ids:
            self.get_or_create_application_instance(scope_id, {"type": "echo"}).put_nowait("message")
            self.left += 1
            if self.left == 100:
                await self.all_came.wait()
                self.all_came.clear()

    async def application_send(self, scope: Any, message: Any) -> None:
        self.left -= 1
        if not self.left:
            self.all_came.set()


async def echo(scope: Any, receive: Any, send: Any) -> None:
    while True:
        await send(await receive())


talk, crowd = EchoServer(), EchoServer()


@case("StatelessServer, a message to one of 100 scopes and back")
async def messages(n: int) -> None:
    await talk.pass_on(number % 100 for number in range(n))


@case("StatelessServer, a message to a new scope and back")
async def new_scopes(n: int) -> None:
    await crowd.pass_on(itertools.islice(crowd.scopes, n))


local, critical = Local(), Local(thread_critical=True)


@case("Local get")
def local_get(n: int) -> None:
    local.value = 1
    for _ in range(n):
        local.value


@case("Local set")
def local_set(n: int) -> None:
    for _ in range(n):
        local.value = 1


@case("Local missing")
def local_missing(n: int) -> None:
    for _ in range(n):
        try:
            local.missing
        except AttributeError:
            pass


@case("Local(thread_critical=True) get")
def critical_get(n: int) -> None:
    critical.value = 1
    for _ in range(n):
        critical.value


@case("Local(thread_critical=True) set")
def critical_set(n: int) -> None:
    for _ in range(n):
        critical.value = 1


@case("Local(thread_critical=True) missing")
def critical_missing(n: int) -> None:
    for _ in range(n):
        try:
            critical.missing
        except AttributeError:
            pass


@case("import asgiref.sync")
def import_time(n: int) -> None:
    for _ in range(n):
        subprocess.run([sys.executable, "-P", "-c", "import asgiref.sync"], check=True)


@case("limit: bare hop from a loop to a thread and back")
async def bare_hop(n: int) -> None:
    jobs: queue.SimpleQueue[asyncio.Future[None] | None] = queue.SimpleQueue()
    loop = asyncio.get_running_loop()

    def work() -> None:
        while (future := jobs.get()) is not None:
            loop.call_soon_threadsafe(future.set_result, None)

    thread = threading.Thread(target=work)
    thread.start()
    for _ in range(n):
        future: asyncio.Future[None] = loop.create_future()
        jobs.put(future)
        await future
    jobs.put(None)
    thread.join()


def cpu_time() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def main() -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with asyncio.Runner() as runner:
        for line in sys.stdin:
            name, count = json.loads(line)
            case = CASES[name]
            wall, cpu = time.perf_counter(), cpu_time()
            if inspect.iscoroutinefunction(case):
                runner.run(case(count))
            else:
                case(count)
            print(json.dumps([time.perf_counter() - wall, cpu_time() - cpu]), flush=True)


if __name__ == "__main__":
    main()
