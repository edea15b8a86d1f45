"""A soak run: very many calls of each kind, while memory, threads and descriptors are watched.

``python -m tests.soak.run`` runs each family of calls in a separate process, prints a curve for it, and fails if a
curve rises. This file needs only the standard library and ``asgiref``, and uses only public parts of ``asgiref``.

A family makes its calls in steps of equal size, without leaving its loop, its block or its server in between, so that
growth inside of these is seen, too. After each step, with all garbage collected, these are recorded:

- memory: resident, in MiB; the peak if the system does not tell the current value; nothing on Windows.
- threads, and open file descriptors.
- objects: those that the cycle collector knows, without those from before the run.
- blocks: those of Python's allocator. They include strings and numbers, which the
  collector does not know; allocations above half a KiB come from the system, and are
  seen in the memory only.
- garbage: objects that only the collector could free, per call, for some calls at the
  beginning of the step, made while the collector was switched off. They are no leak, but
  cost every user a pause.

During the first half of the calls, caches fill and idle threads appear. Over the second half, the growth is the slope
of Theil and Sen (the median of the slopes between any two points, which one wrong point in four does not affect) times
the length. It fails above these bounds:

- 2 MiB of memory. The allocator takes arenas of 1 MiB from the system, and returns one only
  when it is empty, so one or two more mean nothing. Over half a million calls, the bound
  is 4 bytes per call: the smallest object takes 16.
- 2 threads, or the limit of a pool, which may use as many as it needs;
  2 descriptors. Nothing else starts or opens any.
- 100 objects and 300 blocks. A thread that has just made a call may still refer to its
  objects. The interpreter keeps blocks in lists to use them again, asyncio 255 for its
  futures, and plain asyncio fills that list over a hundred thousand calls, too. Samples
  take none. In a short run of a thousand calls, these bounds decide: a leak in each call is more.
- garbage of 0.1 objects per call, in the median of the second half; for calls that make
  new event loops, the garbage of these is added, as measured with ``asyncio.run``.

A run can prove a leak, but not that there is none: growth below the bounds passes.

Interpreters other than CPython count no blocks, and free objects and memory at unknown times. There, threads and
descriptors are judged, and the rest is printed if it is known.
"""

from __future__ import annotations

import argparse
import asyncio
import concurrent.futures.thread
import contextlib
import contextvars
import dataclasses
import faulthandler
import gc
import itertools
import logging
import math
import os
import platform
import signal
import statistics
import subprocess
import sys
import threading
import time
import warnings
from array import array
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asgiref
from asgiref._bridge import builds, workers
from asgiref._diagnosis.look import all_loops
from asgiref.local import Local
from asgiref.server import StatelessServer
from asgiref.sync import (
    AsyncSingleThreadContext,
    ThreadSensitiveContext,
    async_to_sync,
    async_to_sync_context_manager,
    async_to_sync_iterator,
    sync_to_async,
    sync_to_async_context_manager,
    sync_to_async_iterator,
)
from asgiref.wsgi import WsgiToAsgi

__all__ = ["BOUNDS", "FAMILIES", "Family", "Sample", "Steps", "growth", "main", "observe", "verdict"]

CPYTHON = sys.implementation.name == "cpython"

# Seconds after which a step counts as hanging: all stacks are printed, and the process ends.
STEP_LIMIT = 600

# The number of concurrent calls, in families with concurrent calls.
WIDTH = 100

# The number of threads for calls that are not thread-sensitive, and for WSGI.
THREADS = 4

# The number of calls during which the collector is switched off, in each step.
PROBE = 100

# The maximum growth over the second half; for garbage, the maximum per call.
BOUNDS = {"memory": 2.0, "threads": 2.0, "descriptors": 2.0, "objects": 100.0, "blocks": 300.0, "garbage": 0.1}
JUDGED = tuple(BOUNDS) if CPYTHON else ("threads", "descriptors")


@dataclass(frozen=True)
class Sample:
    """The values after some calls; None if this system does not tell them.

    Attributes:
        calls: The number of calls so far.
        rate: Calls per second in the last step.
        garbage: Objects per call that only the collector could free.
    """

    calls: float
    rate: float
    memory: float | None
    threads: float | None
    descriptors: float | None
    objects: float | None
    blocks: float | None
    garbage: float | None


FIELDS = tuple(each.name for each in dataclasses.fields(Sample))


@dataclass(frozen=True)
class Family:
    """Calls of one kind: *run* makes as many as each of its steps says.

    Attributes:
        unit: The option with the number of calls.
        bounds: Bounds that differ from ``BOUNDS``.
        loops: The number of new event loops per call, whose garbage is asyncio's.
    """

    name: str
    unit: str
    run: Callable[[Steps], None]
    bounds: dict[str, float] = field(default_factory=dict)
    loops: float = 0


# Measuring.


def _resident() -> float | None:
    try:
        pages = int(Path("/proc/self/statm").read_bytes().split()[1])
    except OSError:
        pass
    else:
        return float(pages * os.sysconf("SC_PAGE_SIZE") / 2**20)
    try:
        import resource
    except ImportError:  # Windows
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (2**20 if sys.platform == "darwin" else 2**10)


def _descriptors() -> int | None:
    for directory in ("/proc/self/fd", "/dev/fd"):
        with contextlib.suppress(OSError):
            return len(os.listdir(directory))  # noqa: PTH208 - fewer objects of its own
    return None


class Steps:
    """Yields the numbers of calls to make next, *count* in total; takes a sample whenever it is asked for the next."""

    # The timeout of a step, in seconds. Only in a separate process, which has one such alarm.
    limit: float | None = None

    def __init__(self, count: int, points: int) -> None:
        self._points = points
        self._size = max(1, count // points)
        self.count = self._size * points
        # The samples, one after the other, in memory that is allocated at the beginning.
        self._numbers = array("d", [math.nan]) * (len(FIELDS) * points)
        self._taken = 0

    @property
    def samples(self) -> list[Sample]:
        numbers = [None if math.isnan(number) else number for number in self._numbers[: self._taken * len(FIELDS)]]
        return [Sample(*values) for values in zip(*[iter(numbers)] * len(FIELDS), strict=True)]

    def __iter__(self) -> Iterator[int]:
        for number in range(1, self._points + 1):
            if self.limit is not None:
                faulthandler.dump_traceback_later(self.limit, exit=True)
            begin = time.perf_counter()
            probe, garbage = 0, None
            if CPYTHON:
                probe = min(PROBE, self._size)
                gc.collect()
                gc.disable()
                yield probe
                let_idle_threads_run()
                garbage = gc.collect() / probe
                gc.enable()
            if self._size > probe:
                yield self._size - probe
            rate = self._size / (time.perf_counter() - begin)
            gc.collect()
            self._note(
                number * self._size,
                rate,
                _resident(),
                threading.active_count(),
                _descriptors(),
                len(gc.get_objects()) if CPYTHON else None,
                sys.getallocatedblocks() if CPYTHON else None,
                garbage,
            )

    def _note(self, *values: float | None) -> None:
        begin = self._taken * len(FIELDS)
        for index, value in enumerate(values, begin):
            if value is not None:
                self._numbers[index] = value
        self._taken += 1


def observe(family: Family, count: int, points: int = 20) -> list[Sample]:
    """Make *count* calls of *family*; return *points* samples, taken at equal distances."""
    steps = Steps(count, points)
    gc.collect()
    if CPYTHON:
        gc.freeze()  # so that each collection looks only at newer objects
    try:
        family.run(steps)
    finally:
        if steps.limit is not None:
            faulthandler.cancel_dump_traceback_later()
        if CPYTHON:
            gc.enable()
            gc.unfreeze()
    return steps.samples


def let_idle_threads_run() -> None:
    """Let each idle thread run, and so free objects that it created and other threads have dropped.

    On a free-threaded build, an object is freed by the thread that created it, as soon as this runs any Python code. On
    other builds, nothing is done. Such an object may be the last that refers to an object of another thread.
    """
    if not builds.FREE_THREADED:
        return
    for _ in range(5):
        reached: list[threading.Event] = []

        def set_soon(reached: list[threading.Event] = reached) -> Callable[[], None]:
            reached.append(threading.Event())
            return reached[-1].set

        for worker in workers._workers.copy():
            if worker.thread.is_alive() and not getattr(worker.thread.serves, "runs_loop", False):
                worker.jobs.put(_Reached(set_soon()))
        for thread, jobs in list(concurrent.futures.thread._threads_queues.items()):
            if thread.is_alive() and thread is not threading.current_thread():
                jobs.put(_Reached(set_soon()))
        here = asyncio._get_running_loop()
        # None of them is kept here meanwhile, or it would be freed too late.
        asks = [loop.call_soon_threadsafe for loop in all_loops() if loop.is_running() and loop is not here]
        while asks:
            asks.pop()(set_soon())
        for each in reached:
            each.wait(2)  # the thread may be busy, or gone


class _Reached(threading.Event):
    """The job of an idle thread in its queue: a worker sets it, a pool thread runs it."""

    def __init__(self, reached: Callable[[], None]) -> None:
        super().__init__()
        self._reached = reached

    def set(self) -> None:
        self._reached()

    def run(self, *_: object) -> None:
        self._reached()


# Judging.


def growth(values: list[float]) -> float:
    """Return the growth of *values* from the first to the last, by the slope of Theil and Sen."""
    slopes = [(values[j] - values[i]) / (j - i) for i, j in itertools.combinations(range(len(values)), 2)]
    return statistics.median(slopes) * (len(values) - 1)


def verdict(samples: list[Sample], bounds: dict[str, float] = BOUNDS) -> dict[str, tuple[float, float]]:
    """Return the growth over the second half and its bound, for all values that can be judged."""
    second_half = samples[(len(samples) - 1) // 2 :]
    judged = {}
    for name in JUDGED:
        values = [value for sample in second_half if (value := getattr(sample, name)) is not None]
        if len(values) == len(second_half):
            judged[name] = statistics.median(values) if name == "garbage" else growth(values), bounds[name]
    return judged


def _bounds_of(family: Family) -> dict[str, float]:
    bounds = BOUNDS | family.bounds
    if CPYTHON and family.loops:
        bounds["garbage"] += family.loops * _garbage_of_a_loop()
    return bounds


def _garbage_of_a_loop() -> float:
    garbage = 0.0
    for _ in range(2):  # the first time, modules are imported
        gc.collect()
        gc.disable()
        for _ in range(10):
            asyncio.run(one_async())
        let_idle_threads_run()
        garbage = gc.collect() / 10
        gc.enable()
    return garbage


# The calls.


class Expected(Exception):
    """The exception of failing calls."""


def one() -> int:
    return 1


async def one_async() -> int:
    return 1


def fail() -> int:
    raise Expected


async def fail_async() -> int:
    raise Expected


sensitive = sync_to_async(one)
insensitive = sync_to_async(one, thread_sensitive=False)
blocking = async_to_sync(one_async)
nested = sync_to_async(blocking)
# Below async_to_sync, back to its thread, and from there to the loop again.
nested_twice = sync_to_async(async_to_sync(nested))


def check(number: int, expected: int) -> None:
    if number != expected:
        raise AssertionError(f"{number} calls did what {expected} should have done")


FAMILIES: list[Family] = []


def family(name: str, unit: str, loops: float = 0, **bounds: float) -> Callable[[Callable[[Steps], Any]], Any]:
    """Register a function, or a coroutine function, which then runs on one loop."""

    def register(function: Callable[[Steps], Coroutine[Any, Any, None] | None]) -> Any:
        def run(steps: Steps) -> None:
            coroutine = function(steps)
            if coroutine is not None:
                asyncio.run(coroutine)

        FAMILIES.append(Family(name, unit, run, bounds, loops))
        return function

    return register


async def _start_threads() -> None:
    """Give the loop an executor whose THREADS threads have all started; by default, they start at unknown times."""
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(THREADS))
    barrier = threading.Barrier(THREADS)
    await asyncio.gather(*[asyncio.to_thread(barrier.wait, STEP_LIMIT) for _ in range(THREADS)])


async def _in_groups(call: Callable[[], Coroutine[Any, Any, int]], n: int) -> int:
    """Make *n* calls, WIDTH at a time."""
    return sum([sum(await asyncio.gather(*[call() for _ in range(min(WIDTH, n - i))])) for i in range(0, n, WIDTH)])


@family("sync_to_async", "calls")
async def _(steps: Steps) -> None:
    for n in steps:
        total = 0
        for _ in range(n // 2):
            total += await sensitive()
        check(total + await _in_groups(sensitive, n - n // 2), n)


@family("sync_to_async, not thread-sensitive", "calls")
async def _(steps: Steps) -> None:
    await _start_threads()
    for n in steps:
        total = 0
        for _ in range(n // 2):
            total += await insensitive()
        check(total + await _in_groups(insensitive, n - n // 2), n)


@family("async_to_sync", "calls", loops=1)
def _(steps: Steps) -> None:
    for n in steps:
        check(sum(blocking() for _ in range(n)), n)


# A new block, and so a new loop, for each hundred calls.
@family("async_to_sync in AsyncSingleThreadContext", "calls", loops=0.01)
def _(steps: Steps) -> None:
    for n in steps:
        total = 0
        for i in range(0, n, 100):
            with AsyncSingleThreadContext():
                total += sum(blocking() for _ in range(min(100, n - i)))
        check(total, n)


@family("async_to_sync in one AsyncSingleThreadContext", "calls")
def _(steps: Steps) -> None:
    with AsyncSingleThreadContext():
        for n in steps:
            check(sum(blocking() for _ in range(n)), n)


@family("async_to_sync below sync_to_async", "calls")
async def _(steps: Steps) -> None:
    for n in steps:
        total = 0
        for i in range(n):
            total += await (nested_twice() if i % 4 == 3 else nested())
        check(total, n)


@family("ThreadSensitiveContext", "contexts")
async def _(steps: Steps) -> None:
    for n in steps:
        total = 0
        for _ in range(n):
            async with ThreadSensitiveContext():
                total += await sensitive()
        check(total, n)


async def _in_context() -> int:
    async with ThreadSensitiveContext():
        return await sensitive()


@family("ThreadSensitiveContext, many at once", "contexts")
async def _(steps: Steps) -> None:
    for n in steps:
        check(await _in_groups(_in_context, n), n)


@family("threads that come and go", "threads", loops=1)
def _(steps: Steps) -> None:
    storage = Local()
    answers = []

    def call() -> None:
        storage.answer = blocking()
        answers.append(storage.answer)

    for n in steps:
        for _ in range(n):
            thread = threading.Thread(target=call)
            thread.start()
            thread.join()
        check(len(answers), n)
        answers.clear()


async def _failing(call: Coroutine[Any, Any, Any]) -> int:
    try:
        await call
    except Expected:
        return 1
    return 0


def _failing_sync(call: Callable[[], Any]) -> int:
    try:
        call()
    except Expected:
        return 1
    return 0


@family("failing calls of sync_to_async", "failures")
async def _(steps: Steps) -> None:
    await _start_threads()
    calls = [
        sync_to_async(fail),
        sync_to_async(fail, thread_sensitive=False),
        sync_to_async(async_to_sync(fail_async)),
        sync_to_async(async_to_sync(sync_to_async(fail))),
    ]
    for n in steps:
        total = 0
        for i in range(n):
            total += await _failing(calls[i % 4]())
        await sensitive()  # whose thread then has dropped the last exception
        check(total, n)


@family("failing calls of async_to_sync", "failures", loops=1)
def _(steps: Steps) -> None:
    call = async_to_sync(fail_async)
    for n in steps:
        total = sum(_failing_sync(call) for _ in range(n // 2))
        with AsyncSingleThreadContext():
            total += sum(_failing_sync(call) for _ in range(n - n // 2))
        check(total, n)


async def _cancelled(*calls: Coroutine[Any, Any, Any], begun: asyncio.Event | None = None) -> int:
    """Start *calls*, cancel them all; return 1 if all of them ended so."""
    tasks = [asyncio.create_task(call) for call in calls]
    await (begun.wait() if begun else asyncio.sleep(0))
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    return int(all([task.cancelled() for task in tasks]))


async def _wait_for_ever(begun: asyncio.Event) -> None:
    begun.set()
    await asyncio.Event().wait()


@family("cancelled calls", "cancellations")
async def _(steps: Steps) -> None:
    await _start_threads()
    wait = async_to_sync(_wait_for_ever)
    for n in steps:
        total = 0
        for i in range(n):
            gate = threading.Event()
            if i % 3 == 0:  # one call that runs, and queued ones; the thread continues in the background
                total += await _cancelled(sync_to_async(gate.wait)(STEP_LIMIT), sensitive(), sensitive())
            elif i % 3 == 1:  # on a new thread
                total += await _cancelled(sync_to_async(gate.wait, thread_sensitive=False)(STEP_LIMIT))
            else:  # a call whose thread waits for the loop
                begun = asyncio.Event()
                total += await _cancelled(sync_to_async(wait)(begun), begun=begun)
            gate.set()
        await sensitive()
        check(total, n)


@family("values of Local in many contexts", "locals")
async def _(steps: Steps) -> None:
    storage, critical = Local(), Local(thread_critical=True)
    increase = sync_to_async(lambda: setattr(storage, "number", storage.number + 1))

    async def use(number: int) -> int:
        passing = Local()
        passing.payload = critical.payload = storage.payload = bytearray(100)
        storage.number = number
        await increase()
        return int(storage.number) - number

    def use_in_context(number: int) -> int:
        storage.number = critical.number = number
        setattr(storage, f"name{number % 50}", [number])
        return 1 if storage.number == critical.number else 0

    for n in steps:
        total = 0
        for number in range(n):
            if number % 2:
                total += await asyncio.create_task(use(number))
            else:
                total += contextvars.Context().run(use_in_context, number)
        check(total, n)


class Ends:
    """Counts ends; the thread or task that ends something is not the one that waits for the count."""

    def __init__(self) -> None:
        self.count = 0
        # Managers that were entered on the thread; some were cancelled before.
        self.begun = 0
        self._changed = threading.Condition()

    def add(self) -> None:
        with self._changed:
            self.count += 1
            self._changed.notify_all()

    def wait_for(self, count: int) -> None:
        gc.collect()
        with self._changed:
            if not self._changed.wait_for(lambda: self.count == count, STEP_LIMIT):
                check(self.count, count)

    def generator(self) -> Iterator[int]:
        try:
            yield from range(3)
        finally:
            self.add()

    async def async_generator(self) -> AsyncIterator[int]:
        try:
            for i in range(3):
                yield i
        finally:
            self.add()

    @contextlib.contextmanager
    def manager(self, fails: bool = False) -> Iterator[int]:
        self.begun += 1
        try:
            if fails:
                raise Expected
            yield 1
        finally:
            self.add()

    @contextlib.asynccontextmanager
    async def async_manager(self, fails: bool = False) -> AsyncIterator[int]:
        try:
            if fails:
                raise Expected
            yield 1
        finally:
            self.add()


# Every third is closed, every third is dropped, every third has a cancelled step; half have their own thread.
@family("iterations in async code, abandoned half-way", "iterations")
async def _(steps: Steps) -> None:
    ends, total = Ends(), 0

    async def abandon(kind: int) -> None:
        items = sync_to_async_iterator(ends.generator(), thread_sensitive=kind % 2 == 0)
        if kind % 3 == 0:
            async with contextlib.aclosing(items):
                await anext(items)
        else:
            await anext(items)
        if kind % 3 == 1:
            task = asyncio.ensure_future(anext(items))
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])

    for n in steps:
        for kind in range(n):
            await abandon(kind)
        total += n
        await asyncio.to_thread(ends.wait_for, total)
        await sensitive()


# Every third is closed, the others are dropped; half of them read ahead; one in twenty has its own loop.
@family("iterations in sync code, abandoned half-way", "iterations", loops=0.06)
def _(steps: Steps) -> None:
    ends, total = Ends(), 0

    def abandon(kind: int) -> None:
        items = async_to_sync_iterator(ends.async_generator(), read_ahead=kind % 2)
        if kind % 3 == 0:
            with contextlib.closing(items):
                next(items)
        else:
            next(items)

    for n in steps:
        for i in range(0, n, 20):
            abandon(i)
            with AsyncSingleThreadContext():
                for kind in range(i + 1, min(i + 20, n)):
                    abandon(kind)
        total += n
        ends.wait_for(total)


@family("context managers in async code", "managers")
async def _(steps: Steps) -> None:
    ends = Ends()

    async def use(kind: int) -> None:
        with contextlib.suppress(Expected):
            async with sync_to_async_context_manager(ends.manager)(kind % 4 == 0):
                if kind % 4 == 1:
                    raise Expected

    for n in steps:
        for kind in range(n - n // 4):
            await use(kind)
        for _ in range(n // 4):  # cancelled while it is entered, or before
            await _cancelled(sync_to_async_context_manager(ends.manager)().__aenter__())
        await sensitive()
        ends.wait_for(ends.begun)


@family("context managers in sync code", "managers", loops=0.06)
def _(steps: Steps) -> None:
    ends, total = Ends(), 0

    def use(kind: int) -> None:
        with contextlib.suppress(Expected), async_to_sync_context_manager(ends.async_manager)(kind % 3 == 0):
            if kind % 3 == 1:
                raise Expected

    for n in steps:
        for i in range(0, n, 20):
            use(i)
            with AsyncSingleThreadContext():
                for kind in range(i + 1, min(i + 20, n)):
                    use(kind)
        total += n
        ends.wait_for(total)


if hasattr(os, "fork"):

    @family("forks", "forks")
    def _(steps: Steps) -> None:
        def child() -> int:
            signal.alarm(60)  # ends a child that hangs
            return blocking() + asyncio.run(nested())

        blocking()
        asyncio.run(nested())
        for n in steps:
            for _ in range(n):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", DeprecationWarning)  # this family is about forks beside threads
                    pid = os.fork()
                if not pid:
                    status = 1
                    try:
                        status = child() - 2
                    finally:
                        os._exit(status)
                check(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), 0)


class Client:
    """A fake ASGI server for one client: it delivers *messages*; then the client waits, or has disconnected."""

    def __init__(self, *messages: dict[str, Any], leaves: bool = False, leaves_after: int = 0) -> None:
        self.messages = list(messages)
        self.gone = asyncio.Event()
        self.sent: list[dict[str, Any]] = []
        self._leaves_after = leaves_after
        # Set when all messages have been delivered.
        self.taken = asyncio.Event()
        if leaves:
            self.gone.set()

    async def receive(self) -> dict[str, Any]:
        if self.messages:
            return self.messages.pop(0)
        self.taken.set()
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        if self.gone.is_set():
            raise OSError("the client has left")
        self.sent.append(message)
        if len(self.sent) == self._leaves_after:
            self.gone.set()

    @property
    def complete(self) -> bool:
        return bool(self.sent) and not self.sent[-1].get("more_body", True)


def _wsgi_application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    body = environ["wsgi.input"].read()
    start_response("200 OK", [("Content-Type", "text/plain")])
    if environ["PATH_INFO"] == "/stream":
        return (bytes(1000) for _ in range(20))
    return [b"%d" % len(body)]


HALF = {"type": "http.request", "body": bytes(1000), "more_body": True}
WHOLE = {"type": "http.request", "body": bytes(1000), "more_body": False}


async def _request(adapter: Any, kind: int) -> int:
    """Make a request of one of six kinds; return 1 if it ended as it should."""
    path = "/stream" if kind in (2, 3) else "/"
    scope = {"type": "http", "http_version": "1.1", "method": "POST", "path": path, "headers": []}
    if kind in (0, 2):  # a normal request
        client = Client(HALF, WHOLE)
        await adapter(scope, client.receive, client.send)
        return int(client.complete)
    if kind == 5:  # the request is cancelled while the application reads
        client = Client(HALF)
        return await _cancelled(adapter(scope, client.receive, client.send), begun=client.taken)
    if kind == 1:  # the client disconnected before the whole request had arrived
        client = Client(HALF, leaves=True)
    elif kind == 3:  # the client disconnects while it receives
        client = Client(WHOLE, leaves_after=1)
    else:  # the client was never there
        client = Client({"type": "http.disconnect"}, leaves=True)
    with contextlib.suppress(OSError):
        await adapter(scope, client.receive, client.send)
    return int(not client.complete)


# The number of threads that the adapter uses depends on the random lengths of its calls.
@family("requests through WsgiToAsgi", "requests", threads=THREADS)
async def _(steps: Steps) -> None:
    # The adapter logs some disconnects, once each.
    logging.getLogger("asgiref.wsgi").setLevel(logging.CRITICAL)
    adapter = WsgiToAsgi(_wsgi_application, threads=THREADS)
    kinds = itertools.cycle(range(6))
    for n in steps:
        total = 0
        for i in range(0, n, 25):
            # One request runs alone; each kind in turn.
            total += await _request(adapter, next(kinds))
            requests = [_request(adapter, next(kinds)) for _ in range(min(25, n - i) - 1)]
            total += sum(await asyncio.gather(*requests))
        check(total, n)


class Server(StatelessServer):
    """A server that has a new scope for each message."""

    def __init__(self, steps: Steps, slots: int) -> None:
        super().__init__(self._answer, max_applications=slots)
        self._steps = steps
        self.answered = self.failed = 0
        self._answer_came = asyncio.Event()

    @staticmethod
    async def _answer(scope: Any, receive: Any, send: Any) -> None:
        await send(await receive())
        if scope["id"] % 11 == 0:
            return
        if scope["id"] % 13 == 0:
            raise Expected
        await receive()  # cancelled here, when others need the slot

    async def handle(self) -> None:
        scope_id = 0
        for n in self._steps:
            self.answered = 0
            for scope_id in range(scope_id + 1, scope_id + n + 1):  # noqa: B020 - continues where the last step ended
                self.get_or_create_application_instance(scope_id, {"type": "soak", "id": scope_id}).put_nowait({})
                await self._answer_came.wait()
                self._answer_came.clear()
            check(self.answered, n)

    async def application_send(self, scope: Any, message: Any) -> None:
        self.answered += 1
        self._answer_came.set()

    async def application_exception(self, exception: BaseException, application_details: Any) -> None:
        self.failed += 1


@family("scopes of StatelessServer", "scopes")
async def _(steps: Steps) -> None:
    # No more slots than the first half fills.
    await Server(steps, min(1000, steps.count // 8)).arun()


# The command.

COUNTS = {
    "calls": 1_000_000,
    "contexts": 100_000,
    "threads": 100_000,
    "failures": 10_000,
    "cancellations": 100_000,
    "locals": 100_000,
    "iterations": 100_000,
    "managers": 100_000,
    "forks": 100,
    "requests": 100_000,
    "scopes": 100_000,
}

# A run is no shorter at any scale: a leak of one object per call must exceed the noise.
LEAST = 1000
LEAST_FORKS = 10


def _run(chosen: Family, count: int, points: int, traced: bool) -> bool:
    """Run a family, print its curve; return whether all values were steady."""
    bounds = _bounds_of(chosen)
    if traced:
        observe(chosen, max(1, count // 10), points)  # objects that the first calls keep for good are not shown
    with _traced() if traced else contextlib.nullcontext():
        samples = observe(chosen, count, points)
    print(f"\n{chosen.name}: {samples[-1].calls:.0f} {chosen.unit}")
    print(f"{chosen.unit:>15} {'per second':>12}", *[f"{name:>12}" for name in BOUNDS])
    for sample in samples:
        print(f"{sample.calls:15.0f} {sample.rate:12.0f}", *[_shown(getattr(sample, name), name) for name in BOUNDS])
    judged = verdict(samples, bounds)
    if traced:  # the notes of tracemalloc are memory, too
        judged.pop("memory", None)
        judged.pop("blocks", None)
    grown = [name for name, (value, bound) in judged.items() if value > bound]
    for label, number in (("grows by", 0), ("may grow by", 1)):
        print(f"{label:>28}", *[_shown(judged[name][number] if name in judged else None) for name in BOUNDS])
    print(f"GROWS: {', '.join(grown)}" if grown else "steady", flush=True)
    return not grown


@contextlib.contextmanager
def _traced() -> Iterator[None]:
    """Show what the block leaves, and where it was made."""
    import tracemalloc  # which PyPy does not have

    tracemalloc.start(12)
    before = tracemalloc.take_snapshot()
    yield
    gc.collect()
    for difference in tracemalloc.take_snapshot().compare_to(before, "traceback")[:10]:
        print(
            f"\n{difference.size_diff:+} bytes in {difference.count_diff:+} blocks",
            *difference.traceback.format(),
            sep="\n",
        )
    tracemalloc.stop()


def _shown(value: float | None, name: str = "") -> str:
    if value is None:
        return f"{'-':>12}"
    return f"{value:12.2f}" if name in ("", "memory", "garbage") else f"{value:12.0f}"


def main(argv: list[str] | None = None) -> int:
    """Run *argv*; return the exit status, 1 if anything grows."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak.run",
        description="Make very many calls of each kind, and fail if memory, threads or descriptors grow.",
    )
    for unit, count in COUNTS.items():
        parser.add_argument(f"--{unit}", type=int, default=count, metavar="N", help=f"how many (default: {count})")
    parser.add_argument("--scale", type=float, default=1, help="multiply all counts by this; 0.002 is a short form")
    parser.add_argument("--points", type=int, default=20, help="how many samples of each family (default: 20)")
    parser.add_argument("--only", action="append", metavar="TEXT", help="run families whose name contains this")
    parser.add_argument("--exactly", help=argparse.SUPPRESS)
    parser.add_argument("--together", action="store_true", help="run all in one process, for a short run")
    parser.add_argument("--trace", action="store_true", help="show where what is left was made; slow")
    arguments = parser.parse_args(argv)
    if arguments.points < 4:
        parser.error("less than 4 points are no curve")
    chosen = [
        one_family
        for one_family in FAMILIES
        if (arguments.exactly in (None, one_family.name))
        and any([text in one_family.name for text in arguments.only or [""]])
    ]
    if not chosen:
        parser.error(f"no family is called so; there are: {'; '.join(each.name for each in FAMILIES)}")
    if arguments.exactly is None:
        print(
            f"asgiref {asgiref.__version__}, {platform.python_implementation()} {platform.python_version()}", flush=True
        )
    steady = True
    for one_family in chosen:
        if arguments.together or arguments.exactly is not None:
            least = LEAST_FORKS if one_family.unit == "forks" else LEAST
            count = max(int(getattr(arguments, one_family.unit) * arguments.scale), least, arguments.points)
            steady &= _run(one_family, count, arguments.points, arguments.trace)
        else:
            # In a separate process, because ending threads and freed memory would hide growth in the next family.
            command = [sys.executable, "-P", __file__, *(sys.argv[1:] if argv is None else argv)]
            environment = {**os.environ, "PYTHONPATH": str(Path(asgiref.__file__).parent.parent)}
            steady &= not subprocess.run([*command, "--exactly", one_family.name], env=environment).returncode
    if arguments.exactly is None:
        print("\nall steady" if steady else "\nsomething grows, or has failed")
    return 0 if steady else 1


if __name__ == "__main__":
    Steps.limit = STEP_LIMIT
    sys.exit(main())
