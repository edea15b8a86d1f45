"""``ThreadSensitiveContext.max_threads``: the number of threads for contexts, and which calls are queued."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import gc
import logging
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from asgiref import sync
from asgiref._bridge import limit, waits, workers
from asgiref._bridge.limit import figures
from asgiref._bridge.workers import ProcessExecutor
from asgiref.sync import (
    SyncToAsync,
    ThreadSensitiveContext,
    async_to_sync,
    bridge_calls,
    release_thread,
    sync_to_async,
    sync_to_async_context_manager,
    sync_to_async_iterator,
)

from ..helpers import LIMIT, idle_workers, no_garbage, wait_for, wait_until


def thread() -> threading.Thread:
    return threading.current_thread()


look = sync_to_async(thread)


@pytest.fixture(autouse=True)
def limit_of_one(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test starts with a limit of one, and leaves neither a lease nor a queued place."""
    monkeypatch.setattr(ThreadSensitiveContext, "max_threads", 1)
    monkeypatch.setattr(sync, "thread_standstill", 10 * LIMIT)
    yield
    wait_until(lambda: not limit._leases)  # a worker is idle before its lease ends
    assert (0, 0) == told()


def told() -> tuple[int, int]:
    now = figures()
    return now.leased_threads, now.waiting_calls


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop run until *condition* is true."""
    async with asyncio.timeout(LIMIT):
        while not condition():  # noqa: ASYNC110 - nobody sets an event
            await asyncio.sleep(0.001)


def waiting(calls: int) -> Callable[[], bool]:
    return lambda: figures().waiting_calls == calls


class Gate:
    """A context whose thread is blocked until ``open``."""

    def __init__(self) -> None:
        self._go_on, self.begun = threading.Event(), threading.Event()
        self.task = asyncio.create_task(self._run(), context=contextvars.Context())

    def _hold(self) -> threading.Thread:
        self.begun.set()
        wait_for(self._go_on)
        return thread()

    async def _run(self) -> threading.Thread:
        async with ThreadSensitiveContext():
            return await sync_to_async(self._hold)()

    async def holds(self) -> None:
        await until(self.begun.is_set)

    def open(self) -> None:
        self._go_on.set()


@contextlib.asynccontextmanager
async def gate() -> AsyncIterator[Gate]:
    """A block that holds the only thread; at its end at the latest, the thread is released."""
    held = Gate()
    await held.holds()
    try:
        yield held
    finally:
        held.open()
        await held.task


async def block(*functions: Callable[[], Any]) -> list[Any]:
    async with ThreadSensitiveContext():
        return [await sync_to_async(function)() for function in functions]


# The limit:


async def test_no_more_threads_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ThreadSensitiveContext, "max_threads", 3)
    peak: list[int] = []
    threads = await asyncio.gather(
        *[block(thread, lambda: peak.append(figures().leased_threads), thread) for _ in range(50)]
    )
    assert 3 >= len({one for one, _, _ in threads})
    assert all(one is two for one, _, two in threads)
    assert 3 >= max(peak)


async def test_calls_wait_in_the_order_of_the_first_call_of_their_contexts() -> None:
    order: list[int] = []
    async with gate() as held:
        tasks = []
        for i in range(5):
            append = functools.partial(order.append, i)
            tasks.append(asyncio.create_task(block(append, append)))
            await until(waiting(i + 1))
        held.open()
        await asyncio.gather(*tasks)
    assert [0, 0, 1, 1, 2, 2, 3, 3, 4, 4] == order


async def test_calls_of_one_context_stay_together() -> None:
    """Also calls that come when others are queued, and while the thread is being passed on."""
    order: list[str] = []

    async def two(name: str, more: asyncio.Event) -> None:
        async with ThreadSensitiveContext():
            first = asyncio.create_task(sync_to_async(order.append)(name))
            await more.wait()
            await asyncio.gather(first, *[sync_to_async(order.append)(f"{name}{i}") for i in range(3)])

    more = asyncio.Event()
    async with gate() as held:
        one = asyncio.create_task(two("a", more))
        await until(waiting(1))
        other = asyncio.create_task(two("b", more))
        await until(waiting(2))
        more.set()
        await until(waiting(8))
        held.open()
        await asyncio.gather(one, other)
    assert ["a", "a0", "a1", "a2", "b", "b0", "b1", "b2"] == order


async def test_thread_that_is_given_back_goes_to_the_first_in_the_queue() -> None:
    async with gate() as held:
        task = asyncio.create_task(block(thread))
        await until(waiting(1))
        assert 1 == figures().leased_threads
        held.open()
        assert [await held.task] == await task


async def test_loop_goes_on_while_calls_wait() -> None:
    async with gate():
        task = asyncio.create_task(block(thread))
        await until(waiting(1))
        for _ in range(100):
            await asyncio.sleep(0)
        assert not task.done()
    await task


async def test_cancelled_call_leaves_the_queue_and_takes_no_thread() -> None:
    ran: list[str] = []
    async with gate() as held:
        one = asyncio.create_task(block(lambda: ran.append("one")))
        await until(waiting(1))
        two = asyncio.create_task(block(lambda: ran.append("two")))
        await until(waiting(2))
        one.cancel()
        with pytest.raises(asyncio.CancelledError):
            await one
        assert 1 == figures().waiting_calls
        assert 1 == len(limit._queue)
        held.open()
        await two
    assert ["two"] == ran


async def test_context_whose_only_call_was_given_up_can_wait_again() -> None:
    """Its place in the queue is that of its new first call."""
    order: list[str] = []

    async def again(go_on: asyncio.Event) -> None:
        async with ThreadSensitiveContext():
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(sync_to_async(order.append)("given up"), 0.01)
            gave_up.set()
            await go_on.wait()
            await sync_to_async(order.append)("again")

    async with gate() as held:
        go_on, gave_up = asyncio.Event(), asyncio.Event()
        one = asyncio.create_task(again(go_on))
        await gave_up.wait()
        assert 0 == len(limit._queue)
        two = asyncio.create_task(block(lambda: order.append("other")))
        await until(waiting(1))
        go_on.set()
        await until(waiting(2))
        held.open()
        await asyncio.gather(one, two)
    assert ["other", "again"] == order


async def test_call_that_outlives_its_block_still_runs() -> None:
    ran: list[threading.Thread] = []
    async with gate() as held:
        async with ThreadSensitiveContext():
            task = asyncio.create_task(sync_to_async(lambda: ran.append(thread()))())
            await until(waiting(1))
        held.open()
        await task
    assert ran[0] in idle_workers()


def test_closed_loop_keeps_no_place() -> None:
    go_on, begun = threading.Event(), threading.Event()

    def hold() -> None:
        begun.set()
        wait_for(go_on)

    async def other(ran: list[str], name: str) -> None:
        await block(lambda: ran.append(name))

    ran: list[str] = []

    async def whole() -> None:
        held = asyncio.create_task(block(hold))
        await until(begun.is_set)
        loops: list[asyncio.AbstractEventLoop] = []

        def run() -> None:
            loop = asyncio.new_event_loop()
            loops.append(loop)
            task = loop.create_task(other(ran, "closed"))
            loop.run_until_complete(asyncio.sleep(0.02))
            loop.close()
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            kept.append(task)

        kept: list[Any] = []
        await asyncio.to_thread(run)
        assert 0 == figures().waiting_calls
        task = asyncio.create_task(other(ran, "open"))
        await until(waiting(1))
        go_on.set()
        await asyncio.gather(task, held)
        kept[0].get_coro().close()

    asyncio.run(whole())
    assert ["open"] == ran


@pytest.mark.parametrize("value", [0, -1])
async def test_limit_below_one_is_refused_where_it_is_read(value: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ThreadSensitiveContext, "max_threads", value)
    with pytest.raises(ValueError, match=f"max_threads is {value}, .* set it to 1 or more"):
        await block(thread)


async def test_calls_that_wait_while_the_limit_becomes_wrong_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    async with gate() as held:
        tasks = [asyncio.create_task(block(thread)) for _ in range(2)]
        await until(waiting(2))
        monkeypatch.setattr(ThreadSensitiveContext, "max_threads", 0)
        held.open()
        for task in tasks:
            with pytest.raises(ValueError, match="max_threads is 0"):
                await task
    monkeypatch.setattr(ThreadSensitiveContext, "max_threads", 1)
    await block(thread)


@pytest.mark.parametrize("value", [2, None])
async def test_raised_limit_takes_effect(value: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within a second, even if no lease is taken or ends."""
    async with gate():
        task = asyncio.create_task(block(thread))
        await until(waiting(1))
        monkeypatch.setattr(ThreadSensitiveContext, "max_threads", value)
        await task


async def test_lifted_limit_takes_effect_with_the_next_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limit.Place, "_look_later", lambda self, loop, pause: None)
    async with gate():
        task = asyncio.create_task(block(thread))
        await until(waiting(1))
        monkeypatch.setattr(ThreadSensitiveContext, "max_threads", None)
        assert (await block(thread)) != (await task)


async def test_threads_that_were_leased_without_a_limit_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """When they are released, queued contexts get them."""
    monkeypatch.setattr(limit.Place, "_look_later", lambda self, loop, pause: None)
    monkeypatch.setattr(ThreadSensitiveContext, "max_threads", None)
    async with gate() as one, gate() as two:
        monkeypatch.setattr(ThreadSensitiveContext, "max_threads", 2)
        assert not limit._leases
        task = asyncio.create_task(block(thread))
        await until(waiting(1))
        one.open()
        assert [await one.task] == await task
        monkeypatch.setattr(ThreadSensitiveContext, "max_threads", 1)
        task = asyncio.create_task(block(thread))
        await until(waiting(1))
        two.open()
        assert [await two.task] == await task


async def test_lowered_limit_takes_nobodys_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ThreadSensitiveContext, "max_threads", 2)
    async with gate() as one, gate() as two:
        monkeypatch.setattr(ThreadSensitiveContext, "max_threads", 1)
        assert 2 == figures().leased_threads
        task = asyncio.create_task(block(thread))
        await until(waiting(1))
        one.open()
        await one.task
        await asyncio.sleep(0.02)
        assert (1, 1) == told()
        two.open()
        await task


async def test_context_with_an_executor_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    from concurrent.futures import ThreadPoolExecutor

    async with gate():
        with ThreadPoolExecutor(1) as own:
            async with ThreadSensitiveContext(executor=own):
                await look()
            assert 1 == figures().leased_threads


async def test_queue_spans_loops() -> None:
    async with gate() as held:
        other = asyncio.create_task(asyncio.to_thread(asyncio.run, block(thread)))
        await until(waiting(1))
        task = asyncio.create_task(block(thread))
        await until(waiting(2))
        held.open()
        assert [await held.task] == await other == await task


async def test_call_that_waits_for_a_thread_is_told_by_bridge_calls() -> None:
    async with gate():
        task = asyncio.create_task(block(thread))
        await until(waiting(1))
        [call] = [call for call in bridge_calls() if call.state == "queued"]
        assert call.where == "the queue for a thread: ThreadSensitiveContext.max_threads is 1"
    await task


# Calls that are never queued:


async def awaited_task() -> list[Any]:
    return await asyncio.create_task(block(thread), context=contextvars.Context())


async def gathered_task() -> list[Any]:
    [result] = await asyncio.gather(asyncio.create_task(block(thread), context=contextvars.Context()))
    return result


async def shielded_task() -> list[Any]:
    return await asyncio.shield(asyncio.create_task(block(thread), context=contextvars.Context()))


async def task_in_a_group() -> list[Any]:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(block(thread), context=contextvars.Context())
    return task.result()


async def task_of_a_lonely_task() -> list[Any]:
    return await asyncio.create_task(gathered_task(), context=contextvars.Context())


async def task_that_is_awaited_late() -> list[Any]:
    task = asyncio.create_task(block(thread), context=contextvars.Context())
    await until(waiting(1))
    return await task


CALLS_BELOW = [
    awaited_task,
    gathered_task,
    shielded_task,
    task_in_a_group,
    task_of_a_lonely_task,
    task_that_is_awaited_late,
]


@pytest.mark.parametrize("below", CALLS_BELOW)
async def test_call_from_below_a_blocked_thread_does_not_wait(below: Any) -> None:
    """The thread of the view is the only one, and waits for a task without its context."""
    [(view, [inner])] = await block(lambda: (thread(), async_to_sync(below)()))
    assert view is not inner


@pytest.mark.parametrize("below", CALLS_BELOW)
async def test_call_from_below_a_blocked_thread_overtakes_the_queue(below: Any) -> None:
    go_on = threading.Event()

    def view() -> Any:
        wait_for(go_on)
        return async_to_sync(awaited_task)()

    task = asyncio.create_task(block(view))
    await until(lambda: figures().leased_threads == 1)
    other = asyncio.create_task(block(thread))
    await until(waiting(1))
    go_on.set()
    await task
    await other


async def test_call_on_a_loop_for_which_a_thread_is_blocked_does_not_wait() -> None:
    [(view, [inner])] = await block(lambda: (thread(), async_to_sync(awaited_task, force_new_loop=True)()))
    assert view is not inner


async def test_call_on_a_loop_that_a_leased_thread_runs_does_not_wait() -> None:
    [(view, [inner])] = await block(lambda: (thread(), contextvars.Context().run(asyncio.run, block(thread))))
    assert view is not inner


async def test_call_from_below_joins_the_calls_of_its_context() -> None:
    """The context is queued with another call already; both get the thread."""
    ran: list[str] = []

    async def shared() -> None:
        async with ThreadSensitiveContext():
            first = asyncio.create_task(sync_to_async(ran.append)("first"))
            await until(waiting(1))
            ready.set()
            await go_on.wait()
            inside.append(contextvars.copy_context())
            await first

    ready, go_on = asyncio.Event(), asyncio.Event()
    inside: list[contextvars.Context] = []

    async def below() -> None:
        task = asyncio.create_task(shared(), context=contextvars.Context())
        await ready.wait()
        go_on.set()
        await task

    await block(lambda: async_to_sync(below)())
    assert ["first"] == ran


# Standstill:


async def test_standstill_gives_the_first_a_thread_over_the_limit(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An asynchronous view, whose thread is idle, awaits a task without its context."""
    monkeypatch.setattr(sync, "thread_standstill", 0.05)
    with caplog.at_level(logging.WARNING, "asgiref.sync"):
        async with ThreadSensitiveContext():
            one = await look()
            [other] = await awaited_task()
    assert one is not other
    [record] = caplog.records
    assert logging.ERROR == record.levelno
    assert "1 leased threads have run nothing for 0.1 seconds" in record.getMessage()
    assert "release_thread()" in record.getMessage()


async def test_standstill_is_found_after_an_earlier_call_was_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The timer of a place ends when no call is wanted; the next call sets another one."""

    async def call_again() -> threading.Thread:
        async with ThreadSensitiveContext() as context:
            task = asyncio.create_task(look())
            await until(waiting(1))
            task.cancel()
            await asyncio.wait([task])
            executor: Any = SyncToAsync.context_to_thread_executor[context]
            await until(lambda: not executor._worker._timed_on)
            monkeypatch.setattr(sync, "thread_standstill", 0.05)
            return await look()

    async with asyncio.timeout(LIMIT), ThreadSensitiveContext():
        held = await look()
        assert held is not await asyncio.create_task(call_again(), context=contextvars.Context())


async def test_standstill_is_found_when_the_loop_of_the_first_call_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """1. A loop makes the first call of a context. 2. Another loop makes the second one. 3. The first loop ends."""
    here = asyncio.get_running_loop()
    has_called, may_end = asyncio.Event(), threading.Event()

    async def first_call() -> None:
        task = asyncio.create_task(look())
        await asyncio.sleep(0)
        here.call_soon_threadsafe(has_called.set)
        await asyncio.to_thread(wait_for, may_end)
        task.cancel()

    async def two_loops() -> threading.Thread:
        async with ThreadSensitiveContext():
            other = asyncio.create_task(asyncio.to_thread(asyncio.run, first_call()))
            await has_called.wait()
            call = asyncio.create_task(look())
            await asyncio.sleep(0)
            may_end.set()
            await other
            monkeypatch.setattr(sync, "thread_standstill", 0.05)
            return await call

    async with asyncio.timeout(LIMIT), ThreadSensitiveContext():
        held = await look()
        assert held is not await asyncio.create_task(two_loops(), context=contextvars.Context())


async def test_slow_thread_is_no_standstill(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sync, "thread_standstill", 0.01)
    async with gate():
        task = asyncio.create_task(block(thread))
        await until(waiting(1))
        await asyncio.sleep(0.1)
        assert (1, 1) == told()
    await task


async def test_job_of_a_blocked_thread_shows_in_a_look() -> None:
    """A thread that is blocked at each check does not stand still if it runs a job in between."""

    async def at_rest() -> Any:
        while (found := limit._threads_at_rest()) is None:  # noqa: ASYNC110 - nobody sets an event
            await asyncio.sleep(0.001)
        return found

    async def below() -> None:
        before = await at_rest()
        assert before == await at_rest()
        await sync_to_async(int)()
        assert before != await at_rest()

    await block(async_to_sync(below))


# The release:


async def test_released_thread_goes_to_others_and_the_next_call_takes_another() -> None:
    async with ThreadSensitiveContext():
        one = await look()
        await release_thread()
        assert 0 == figures().leased_threads
        assert one in idle_workers()
        async with gate() as held:
            task = asyncio.create_task(look())
            await until(waiting(1))
            held.open()
            assert await task is await look()
        assert 1 == figures().leased_threads


async def test_released_context_stands_behind_those_in_the_queue() -> None:
    order: list[str] = []
    async with ThreadSensitiveContext():
        await look()
        context = contextvars.Context()
        task = asyncio.create_task(block(lambda: order.append("other")), context=context)
        await until(waiting(1))
        await release_thread()
        await sync_to_async(order.append)("own")
    await task
    assert ["other", "own"] == order


async def test_release_takes_effect_when_the_queued_calls_are_done() -> None:
    """Later calls wait for the queued ones, and run on a new thread."""
    go_on, order = threading.Event(), list[Any]()

    def slow() -> None:
        wait_for(go_on)
        order.append("slow")

    async with ThreadSensitiveContext():
        tasks: list[Any] = [asyncio.create_task(sync_to_async(slow)())]
        tasks.append(asyncio.create_task(sync_to_async(order.append)("queued")))
        await asyncio.sleep(0)
        await release_thread()
        tasks.append(asyncio.create_task(sync_to_async(order.append)("later")))
        await asyncio.sleep(0)
        assert 1 == figures().leased_threads
        other = asyncio.create_task(block(lambda: order.append("other")), context=contextvars.Context())
        await until(waiting(1))
        go_on.set()
        await asyncio.gather(*tasks, other)
    assert ["slow", "queued", "other", "later"] == order


async def test_release_by_the_code_on_the_thread_takes_effect_at_its_end() -> None:
    def view() -> tuple[threading.Thread, int]:
        async_to_sync(release_thread)()
        return thread(), figures().leased_threads

    async with ThreadSensitiveContext():
        assert (1, 0) == ((await sync_to_async(view)())[1], figures().leased_threads)
        await look()


async def test_release_where_there_is_nothing_to_release() -> None:
    await release_thread()
    async with ThreadSensitiveContext():
        await release_thread()
        await look()
        await release_thread()
        await release_thread()
        assert 0 == figures().leased_threads
        late = contextvars.copy_context()
    await asyncio.create_task(release_thread(), context=late)


async def test_release_with_an_executor_does_nothing() -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as own:
        async with ThreadSensitiveContext(executor=own):
            one = await look()
            await release_thread()
            assert one is await look()


async def test_many_releases_leave_nothing_behind() -> None:
    async with ThreadSensitiveContext() as context:
        for _ in range(100):
            await look()
            await release_thread()
        await look()
        executor: Any = SyncToAsync.context_to_thread_executor[context]
        assert executor.predecessor is None


async def test_open_iterator_pins_the_thread() -> None:
    async with ThreadSensitiveContext():
        iterator = sync_to_async_iterator(thread() for _ in range(3))
        one = await anext(iterator)
        await release_thread()
        assert one is await look() is await anext(iterator)
        assert 1 == figures().leased_threads
        await iterator.aclose()
        assert 0 == figures().leased_threads
        await look()


async def test_release_takes_effect_with_the_last_that_is_closed() -> None:
    async with ThreadSensitiveContext():
        iterator = sync_to_async_iterator(thread() for _ in range(3))
        one = await anext(iterator)

        @contextlib.contextmanager
        def manager() -> Iterator[threading.Thread]:
            yield thread()

        async with sync_to_async_context_manager(manager()) as two:
            assert one is two
            await release_thread()
            await iterator.aclose()
            assert one is await look()
        assert 0 == figures().leased_threads


# The log:


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    monkeypatch.setattr(sync, "slow_thread_wait", 0.02)
    monkeypatch.setattr(waits, "_last", [float("-inf")])
    # The loop of another test may have checked it.
    monkeypatch.setattr(SyncToAsync.single_thread_executor, "watched_until", float("-inf"))
    with caplog.at_level(logging.WARNING, "asgiref.sync"):
        yield caplog


async def test_call_that_waits_long_is_logged_once_a_minute(
    log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with gate():
        tasks = [asyncio.create_task(block(thread)) for _ in range(3)]
        await until(lambda: bool(log.records))
        await asyncio.sleep(0.05)
    await asyncio.gather(*tasks)
    [record] = log.records
    assert logging.WARNING == record.levelno
    assert "max_threads is 1, 1 threads are leased, and 3 calls still wait; raise max_threads" in record.getMessage()
    monkeypatch.setattr(waits, "PAUSE", 0)
    async with gate():
        tasks = [asyncio.create_task(block(thread))]
        await until(lambda: len(log.records) > 1)
    await asyncio.gather(*tasks)


async def test_log_of_waits_can_be_switched_off(log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sync, "slow_thread_wait", None)
    async with gate():
        task = asyncio.create_task(block(thread))
        await asyncio.sleep(0.1)
    await task
    assert [] == log.records


async def test_call_that_waits_long_for_the_process_worker_is_logged(log: pytest.LogCaptureFixture) -> None:
    go_on = threading.Event()
    held = asyncio.create_task(sync_to_async(wait_for)(go_on))
    tasks = [asyncio.create_task(look()) for _ in range(3)]
    await until(lambda: bool(log.records))
    go_on.set()
    await asyncio.gather(held, *tasks)
    [record] = log.records
    assert "for the one thread that serves the whole process, and 3 calls are queued for it" in record.getMessage()


async def test_released_context_leaves_no_garbage() -> None:
    """With and without another call."""

    async def release(calls: int) -> None:
        async with ThreadSensitiveContext():
            await sync_to_async(int)()
            await release_thread()
            for _ in range(calls):
                await sync_to_async(int)()

    await release(1)
    with no_garbage():
        await release(0)
        await release(1)


async def test_watch_of_the_process_worker_while_the_log_is_switched_off(
    log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wait is checked at intervals, because the log may be switched on again."""
    monkeypatch.setattr(sync, "slow_thread_wait", None)
    executor, go_on = ProcessExecutor(), threading.Event()
    executor.watch_queue()
    assert float("-inf") == executor.watched_until
    monkeypatch.setattr(SyncToAsync, "single_thread_executor", executor)
    calls: list[Any] = [executor.submit(wait_for, go_on), executor.submit(int)]
    task = asyncio.create_task(look())
    await until(lambda: executor.watched_until > 0)
    go_on.set()
    await task
    assert [None, 0] == [call.result(LIMIT) for call in calls]
    executor.shutdown()
    assert [] == log.records


def test_calls_from_a_thread_without_a_loop_are_not_watched() -> None:
    executor, go_on = ProcessExecutor(), threading.Event()
    calls: list[Any] = [executor.submit(wait_for, go_on), executor.submit(int), executor.submit(int)]
    assert float("-inf") == executor.watched_until
    go_on.set()
    assert [None, 0, 0] == [call.result(LIMIT) for call in calls]
    executor.shutdown()


def test_watch_of_an_executor_that_is_gone() -> None:
    watch = weakref.WeakMethod(ProcessExecutor().watch_queue)
    gc.collect()
    workers._call_if_alive(watch)


def test_two_warnings_at_once_are_one(log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """1. A thread decides whether to warn. 2. Another thread sees that, and does not warn."""
    monkeypatch.setattr(waits, "_last", [])
    waits.log_wait(LIMIT, lambda: ("never",))
    assert [] == log.records
