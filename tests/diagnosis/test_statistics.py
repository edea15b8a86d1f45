"""``bridge_statistics``: the numbers of threads by use, and of running and queued calls."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import inspect
import re
import statistics
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from asgiref._bridge import workers
from asgiref.sync import (
    AsyncSingleThreadContext,
    BridgeStatistics,
    ThreadSensitiveContext,
    ThreadSensitiveEventLoop,
    async_to_sync,
    bridge_statistics,
    sync_to_async,
    sync_to_async_iterator,
)
from asgiref.wsgi import WsgiToAsgi

from ..helpers import LIMIT, Thread, output_of, wait_for
from ..wsgi.helpers import Client

LEASED = [
    *("context_threads", "process_threads", "fresh_loop_threads", "kept_loop_threads", "wsgi_threads"),
    *("iteration_threads", "loop_threads", "other_threads"),
]


def total(seen: BridgeStatistics) -> int:
    return sum(getattr(seen, name) for name in [*LEASED, "idle_threads"])


def more(before: BridgeStatistics, after: BridgeStatistics) -> dict[str, int]:
    """Return the changes of the numbers of leased threads and of calls, without those that are 0."""
    names = [*LEASED, "running_calls", "queued_process_calls"]
    changes = {name: getattr(after, name) - getattr(before, name) for name in names}
    return {name: change for name, change in changes.items() if change}


def once(condition: Callable[[], bool]) -> None:
    """Wait until another thread has made *condition* true."""
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.fixture
async def before() -> BridgeStatistics:
    """The numbers when the thread of the process has been started and is idle."""
    await sync_to_async(int)()
    once(lambda: bridge_statistics().running_calls == 0)
    return bridge_statistics()


@contextlib.asynccontextmanager
async def held(*functions: Callable[[Callable[[], None]], Any]) -> AsyncIterator[None]:
    """Let each function call its argument in a separate task: a function that waits until the block ends."""
    begun, go_on = threading.Semaphore(0), threading.Event()

    def hold() -> None:
        begun.release()
        wait_for(go_on)

    tasks = [asyncio.create_task(function(hold)) for function in functions]
    try:
        for _ in tasks:
            assert await asyncio.to_thread(begun.acquire, timeout=LIMIT)
        yield
    finally:
        go_on.set()
        await asyncio.gather(*tasks)


async def call_in_context(hold: Callable[[], object]) -> None:
    async with ThreadSensitiveContext():
        await sync_to_async(hold)()


async def call_on_process_thread(hold: Callable[[], None]) -> None:
    await sync_to_async(hold)()


async def iterate(hold: Callable[[], None]) -> None:
    async for call in sync_to_async_iterator(iter([hold]), thread_sensitive=False):
        await sync_to_async(call)()


async def fresh_loop(hold: Callable[[], None]) -> None:
    async def main() -> None:
        hold()

    await asyncio.to_thread(async_to_sync(main))


async def kept_loop(hold: Callable[[], None]) -> None:
    async def main() -> None:
        hold()

    def block() -> None:
        with AsyncSingleThreadContext():
            async_to_sync(main)()

    await asyncio.to_thread(block)


async def thread_sensitive_loop(hold: Callable[[], None]) -> None:
    async def main() -> None:
        hold()

    await asyncio.to_thread(run_on_thread_sensitive_loop, main)


def run_on_thread_sensitive_loop(main: Callable[[], Any]) -> None:
    loop = ThreadSensitiveEventLoop()
    try:
        loop.run_until_complete(main())
    finally:
        loop.close()


async def wsgi_request(hold: Callable[[], None]) -> None:
    def application(environ: Any, start_response: Any) -> list[bytes]:
        hold()
        start_response("200 OK", [])
        return []

    client = Client()
    await WsgiToAsgi(application)(client.scope, client.receive, client.send)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (call_in_context, {"context_threads": 1, "running_calls": 1}),
        (call_on_process_thread, {"running_calls": 1}),
        (iterate, {"iteration_threads": 1, "running_calls": 1}),
        (fresh_loop, {"fresh_loop_threads": 1}),
        (kept_loop, {"kept_loop_threads": 1}),
        (thread_sensitive_loop, {"loop_threads": 1}),
        (wsgi_request, {"wsgi_threads": 1, "running_calls": 1}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
async def test_threads_are_counted_by_what_they_serve(
    before: BridgeStatistics, function: Any, expected: dict[str, int]
) -> None:
    async with held(function):
        during = bridge_statistics()
        assert expected == more(before, during)
        assert during.threads_started >= total(during)
        # Idle workers may end between the two.
        once(lambda: total(bridge_statistics()) == len(workers._workers))
    once(lambda: {} == more(before, bridge_statistics()))


async def test_everything_at_once(before: BridgeStatistics) -> None:
    functions = [fresh_loop, kept_loop, wsgi_request, *[call_in_context] * 10, call_on_process_thread]
    async with held(*functions):
        during = bridge_statistics()
    assert {
        "context_threads": 10,
        "fresh_loop_threads": 1,
        "kept_loop_threads": 1,
        "running_calls": 12,
        "wsgi_threads": 1,
    } == more(before, during)
    assert 1 == during.process_threads


async def test_context_keeps_its_thread_between_two_calls(before: BridgeStatistics) -> None:
    async with ThreadSensitiveContext():
        assert {} == more(before, bridge_statistics())
        await sync_to_async(int)()
        assert {"context_threads": 1} == more(before, bridge_statistics())
    assert {} == more(before, bridge_statistics())


async def test_calls_below_a_call_on_the_same_thread_count_once(before: BridgeStatistics) -> None:
    async def inner(hold: Callable[[], None]) -> None:
        await sync_to_async(hold)()

    async with held(lambda hold: call_in_context(functools.partial(async_to_sync(inner), hold))):
        assert {"context_threads": 1, "running_calls": 1} == more(before, bridge_statistics())


async def test_calls_behind_the_one_on_the_thread_of_the_process(before: BridgeStatistics) -> None:
    async with held(call_on_process_thread):
        queued = [asyncio.create_task(sync_to_async(int)()) for _ in range(3)]
        await asyncio.sleep(0)
        assert {"running_calls": 1, "queued_process_calls": 3} == more(before, bridge_statistics())
        async with held(call_in_context):
            assert 3 == bridge_statistics().queued_process_calls
    await asyncio.gather(*queued)
    once(lambda: {} == more(before, bridge_statistics()))


@pytest.mark.parametrize("extended", [False, True])
async def test_executor_that_belongs_to_no_kind_is_counted_as_other(before: BridgeStatistics, extended: bool) -> None:
    class Extended(workers.WorkerExecutor): ...

    executor = Extended() if extended else workers.WorkerExecutor()
    go_on = threading.Event()
    executor.submit(wait_for, go_on)
    try:
        assert {"other_threads": 1, "running_calls": 1} == more(before, bridge_statistics())
    finally:
        go_on.set()
        executor.shutdown()


async def test_calls_that_wait_at_the_limit(before: BridgeStatistics, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (None, 0, 0.0) == (before.max_threads, before.waiting_calls, before.longest_wait)
    monkeypatch.setattr(ThreadSensitiveContext, "max_threads", 2)
    async with held(call_in_context, call_in_context):
        began = time.monotonic()
        waiting = [asyncio.create_task(call_in_context(int)) for _ in range(3)]
        cancelled = asyncio.create_task(call_in_context(int))
        await asyncio.sleep(0)
        during = bridge_statistics()
        assert {"context_threads": 2, "running_calls": 2} == more(before, during)
        assert (2, 4) == (during.max_threads, during.waiting_calls)
        assert 0 <= during.longest_wait <= time.monotonic() - began
        cancelled.cancel()
        await asyncio.wait([cancelled])
        after = bridge_statistics()
        assert 3 == after.waiting_calls
        assert during.longest_wait < after.longest_wait <= time.monotonic() - began
    await asyncio.gather(*waiting)
    assert (0, 0.0) == (bridge_statistics().waiting_calls, bridge_statistics().longest_wait)


async def test_idle_and_started_threads(before: BridgeStatistics) -> None:
    count = before.idle_threads + 5
    async with held(*[call_in_context] * count):
        during = bridge_statistics()
    after = bridge_statistics()
    assert 0 == during.idle_threads
    assert count == after.idle_threads
    assert before.threads_started + 5 == during.threads_started == after.threads_started


async def test_number_of_started_threads_stays_when_threads_have_left(
    before: BridgeStatistics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "IDLE_TIME", 0.001)
    async with held(*[call_in_context] * (before.idle_threads + 2)):
        during = bridge_statistics()
    once(lambda: bridge_statistics().idle_threads < during.context_threads - before.context_threads)
    assert during.threads_started == bridge_statistics().threads_started


def test_threads_that_start_at_once_are_all_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that has its number and then stands still does not hide the number of a later thread."""
    numbers = iter([1, 2])
    first_has_number, second_is_done = threading.Event(), threading.Event()

    class Starts:
        def __next__(self) -> int:
            number = next(numbers)
            if number == 1:  # 1. the first thread gets its number, and adds it after the second thread
                first_has_number.set()
                wait_for(second_is_done)
            return number

    started: set[int] = set()
    monkeypatch.setattr(workers, "_starts", Starts())
    monkeypatch.setattr(workers, "_started", started)
    first = Thread(workers._note_start)
    wait_for(first_has_number)
    workers._note_start()  # 2. the second thread gets a higher number and adds it
    second_is_done.set()
    first.get()
    assert 2 == bridge_statistics().threads_started


def test_result_cannot_be_changed_and_names_all_its_numbers() -> None:
    seen = bridge_statistics()
    with pytest.raises(dataclasses.FrozenInstanceError):
        seen.idle_threads = 0  # type: ignore[misc]
    documented = re.findall(r"^    (\w+): ", inspect.cleandoc(BridgeStatistics.__doc__ or ""), re.MULTILINE)
    assert documented == [field.name for field in dataclasses.fields(seen)]


def test_numbers_are_known_while_other_threads_lease_and_give_back() -> None:
    """Each worker is counted once, whatever happens to it meanwhile."""
    stop = threading.Event()

    def make_blocks() -> None:
        async def block() -> None:
            async with ThreadSensitiveContext():
                await sync_to_async(int)()

        async def main() -> None:
            while not stop.is_set():
                await asyncio.gather(*[block() for _ in range(5)])

        asyncio.run(main())

    threads = [Thread(make_blocks) for _ in range(2)]
    try:
        for _ in range(300):
            seen = bridge_statistics()
            assert 0 <= seen.running_calls <= total(seen) <= seen.threads_started
            assert 0 <= min(value for value in dataclasses.astuple(seen) if value is not None)
    finally:
        stop.set()
        for thread in threads:
            thread.get()


@pytest.mark.skipif(sys.platform == "win32", reason="has no such signals")
def test_signal_handler_can_ask_at_any_moment() -> None:
    code = """
seen = []
signal.signal(signal.SIGALRM, lambda *_: seen.append(bridge_statistics()))
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
async def block():
    async with ThreadSensitiveContext():
        await sync_to_async(int)()
async def main():
    while len(seen) < 100:
        await asyncio.gather(*[block() for _ in range(5)])
asyncio.run(main())
signal.setitimer(signal.ITIMER_REAL, 0)
print(any(each.context_threads for each in seen), max(each.threads_started for each in seen) <= 6)
"""
    assert ["True True"] == output_of(code)


@pytest.mark.skipif(not hasattr(sys.modules["os"], "fork"), reason="needs a fork")
def test_forked_child_begins_with_zeros() -> None:
    code = """
import dataclasses, warnings
warnings.simplefilter("ignore")
async def main():
    async with ThreadSensitiveContext():
        await sync_to_async(int)()
        child = os.fork()
        if child == 0:
            print(set(dataclasses.astuple(bridge_statistics())) <= {0, 0.0, None}, flush=True)
            os._exit(0)
        os.waitpid(child, 0)
asyncio.run(main())
child = os.fork()
if child == 0:
    asyncio.run(main())
    print(bridge_statistics().threads_started)
    sys.stdout.flush()
    os._exit(0)
os.waitpid(child, 0)
print(bridge_statistics().threads_started)
"""
    assert ["True", "True", "1", "1"] == output_of(code)


@pytest.mark.slow
@pytest.mark.skipif("coverage" in sys.modules, reason="coverage takes longer than what it watches")
@pytest.mark.parametrize("limit", [None, 20])
async def test_costs_no_more_than_five_calls_with_a_thousand_in_flight(
    limit: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call is measured by wall time, the look by CPU time."""
    call = sync_to_async(int)
    hops = []
    for _ in range(200):
        began = time.perf_counter()
        await call()
        hops.append(time.perf_counter() - began)
    monkeypatch.setattr(ThreadSensitiveContext, "max_threads", limit)
    async with held(*[call_in_context] * (limit or 1000)):
        waiting = [asyncio.create_task(call_in_context(int)) for _ in range(1000 - (limit or 1000))]
        await asyncio.sleep(0)
        looks = []
        seen = bridge_statistics()
        for _ in range(100):
            began = time.thread_time()
            bridge_statistics()
            looks.append(time.thread_time() - began)
    await asyncio.gather(*waiting)
    assert (1000, limit) == (seen.running_calls + seen.waiting_calls, seen.max_threads)
    assert min(looks) < 5 * statistics.median(hops)
