"""``sync_to_async_iterator(..., read_ahead=n)``: items that the thread makes before they are requested."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import os
import queue
import signal
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from asgiref._steps.ahead import CallsOfFill, Fill
from asgiref.current_thread_executor import CurrentThreadExecutor
from asgiref.local import Local
from asgiref.sync import (
    SyncToAsync,
    ThreadSensitiveContext,
    async_to_sync,
    bridge_calls,
    check_cancelled,
    sync_to_async,
    sync_to_async_iterator,
)

from ..helpers import LIMIT, Thread, finished, no_garbage, output_of, wait_for

me = threading.get_ident


class Source:
    """An iterator whose steps can be made to wait, one by one."""

    def __init__(self, free: int = 0, count: int = 1000) -> None:
        self.count = count
        self.made = 0
        self.closed: list[int] = []
        self.is_closed = threading.Event()
        self.asked: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._allowed = threading.Semaphore(free)

    def allow(self, number: int = 1) -> None:
        self._allowed.release(number)

    async def is_asked(self) -> int:
        """Wait until the next step has started; return its number."""
        return await asyncio.wait_for(asyncio.to_thread(self.asked.get, timeout=LIMIT), LIMIT)

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        self.asked.put(self.made)
        assert self._allowed.acquire(timeout=LIMIT)
        if self.made == self.count:
            raise StopIteration
        self.made += 1
        return self.made - 1

    def close(self) -> None:
        self.closed.append(me())
        self.is_closed.set()


async def thread_is_idle() -> None:
    """Wait until the thread of thread-sensitive code is idle."""
    executor: Any = SyncToAsync.single_thread_executor
    await asyncio.wait_for(asyncio.to_thread(finished, executor), LIMIT)


async def until_set(event: threading.Event) -> None:
    await asyncio.wait_for(asyncio.to_thread(wait_for, event), LIMIT)


# Items


@pytest.mark.parametrize("read_ahead", [1, 2, 3, 64, 1000])
async def test_items_come_in_order_and_the_end_is_final(read_ahead: int) -> None:
    for count in 0, 1, 5, 200:
        items = sync_to_async_iterator(range(count), read_ahead=read_ahead)
        assert list(range(count)) == [item async for item in items]
        assert [] == [item async for item in items]
        with pytest.raises(StopAsyncIteration):
            await anext(items)
        await items.aclose()


async def test_thread_stops_when_enough_items_wait_and_is_free_then() -> None:
    source = Source(free=1)
    async with contextlib.aclosing(sync_to_async_iterator(source, read_ahead=3)) as items:
        assert 0 == await anext(items)
        assert (0, 1) == (await source.is_asked(), await source.is_asked())
        source.allow(100)
        await thread_is_idle()
        assert 4 == source.made
        # One item is taken, and more than half are left.
        assert 1 == await anext(items)
        await thread_is_idle()
        assert 4 == source.made
        # Half are left: the thread continues.
        assert 2 == await anext(items)
        await thread_is_idle()
        assert 6 == source.made
        assert 3 == await anext(items)


async def test_item_is_handed_over_while_the_thread_makes_the_next_one() -> None:
    source = Source(free=2)
    items = sync_to_async_iterator(source, read_ahead=5)
    assert [0, 1] == [await anext(items), await anext(items)]
    assert [0, 1, 2] == [await source.is_asked() for _ in range(3)]
    # 1. The thread is in the third step. 2. The consumer waits for it. 3. It ends, and the fourth one starts.
    task = asyncio.ensure_future(anext(items))
    await asyncio.sleep(0)
    source.allow()
    assert 2 == await asyncio.wait_for(task, LIMIT)
    assert 3 == await source.is_asked()
    source.allow(10)
    await items.aclose()
    assert source.closed == [await sync_to_async(me)()]


async def test_other_tasks_get_their_turn_while_items_wait() -> None:
    """All items are queued, so the consumer never waits for one; other tasks run nevertheless."""
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    items = sync_to_async_iterator(range(1000), read_ahead=1000)
    await anext(items)
    await thread_is_idle()
    counting = asyncio.ensure_future(count_turns())
    assert 999 == len([item async for item in items])
    counting.cancel()
    assert 15 <= turns


async def test_one_task_at_a_time() -> None:
    source = Source()
    items = sync_to_async_iterator(source, read_ahead=2)
    task = asyncio.ensure_future(anext(items))
    await source.is_asked()
    with pytest.raises(RuntimeError, match="while another task is waiting"):
        await anext(items)
    source.allow(10)
    assert 0 == await task
    await items.aclose()


def test_options() -> None:
    with pytest.raises(ValueError, match="read_ahead=-1"):
        sync_to_async_iterator([1], read_ahead=-1)

    @sync_to_async_iterator(read_ahead=5)
    def rows() -> Iterator[int]:
        yield 1

    async def main() -> None:
        assert [1] == [row async for row in rows()]
        assert [0, 1] == [item async for item in sync_to_async_iterator(range, read_ahead=1)(2)]
        assert [0, 1] == [item async for item in sync_to_async_iterator(range(2), thread_sensitive=False, read_ahead=1)]

    async_to_sync(main)()


# Races


async def test_consumer_looks_once_more_after_it_has_noted_that_it_waits() -> None:
    """1. The consumer finds no item.

    2. The thread makes all, and sees no consumer. 3. The consumer records that it waits.
    """

    class Ready(deque[int]):
        def __len__(self) -> int:
            length = super().__len__()
            if me() == here and not source.made:
                source.allow(3)
                finished(SyncToAsync.single_thread_executor)  # type: ignore[arg-type]
            return length

    here = me()
    source = Source(count=2)
    items: Any = sync_to_async_iterator(source, read_ahead=5)
    items._ahead.ready = items._ready = Ready()
    items._ahead._begin(items._iteration.next)
    await source.is_asked()
    assert [0, 1] == [item async for item in items]


async def test_thread_looks_whether_the_consumer_waits_after_it_has_put_the_item_into_the_queue() -> None:
    """1. The thread has made an item. 2. The consumer finds none, and waits. 3. The item is in the queue."""

    class Ready(deque[int]):
        def append(self, item: int, /) -> None:
            made.set()
            wait_for(waits)
            super().append(item)

    made, waits = threading.Event(), threading.Event()
    items: Any = sync_to_async_iterator(range(1), read_ahead=5)
    items._ahead.ready = items._ready = Ready()
    items._ahead._begin(items._iteration.next)
    await until_set(made)
    task = asyncio.ensure_future(anext(items))
    await asyncio.sleep(0)
    waits.set()
    assert 0 == await asyncio.wait_for(task, LIMIT)
    await items.aclose()


async def test_fill_ends_while_the_consumer_begins_to_wait() -> None:
    """1. The consumer finds a running fill. 2. The fill ends without an item. 3. The consumer records that it waits."""
    items: Any = sync_to_async_iterator(range(2), read_ahead=2)
    ahead = items._ahead
    fill = ahead._begin(items._iteration.next)
    await thread_is_idle()
    assert not fill.await_item(asyncio.get_running_loop())
    del fill.arrival
    ahead.ready.clear()
    assert not fill.await_item(asyncio.get_running_loop())
    del fill.arrival
    assert [item async for item in items] == []


async def test_delivery_that_comes_late_lets_the_consumer_look_again() -> None:
    source = Source(free=1)
    items: Any = sync_to_async_iterator(source, read_ahead=5)
    assert 0 == await anext(items)
    task = asyncio.ensure_future(anext(items))
    await asyncio.sleep(0)
    loop = asyncio.get_running_loop()
    loop.call_soon(items._ahead._fill.deliver)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not task.done()
    source.allow(10)
    assert 1 == await task
    loop.call_soon(items._ahead._fill.deliver)  # nothing waits
    await asyncio.sleep(0)
    await items.aclose()


def test_calls_of_a_step_that_was_given_up_are_cancelled_whenever_they_begin() -> None:
    class Outcome:
        cancelled = 0

        def cancel(self) -> None:
            self.cancelled += 1

    calls, early, late = CallsOfFill(), Outcome(), Outcome()
    calls.append(early)  # type: ignore[arg-type]
    calls.give_up()
    calls.append(late)  # type: ignore[arg-type]
    assert (1, 1) == (early.cancelled, late.cancelled)


# Contexts

variable: contextvars.ContextVar[Any] = contextvars.ContextVar("variable")
shared = Local()


async def in_empty_context(function: Callable[[], Any]) -> None:
    await asyncio.get_running_loop().create_task(function(), context=contextvars.Context())


@pytest.mark.parametrize("others", [0, 3])
async def test_changes_come_with_their_item(others: int) -> None:
    def rows() -> Iterator[int]:
        for i in range(5):
            variable.set(i)
            shared.value = -i
            yield i
            yield i  # changes nothing

    async def consume() -> None:
        for i in range(others):
            contextvars.ContextVar[int](f"other {i}").set(i)
        async with contextlib.aclosing(sync_to_async_iterator(rows(), read_ahead=20)) as items:
            async for item in items:
                await thread_is_idle()
                assert (item, -item) == (variable.get(), shared.value)

    await in_empty_context(consume)


async def test_tokens_and_variables_that_are_taken_away() -> None:
    def rows() -> Iterator[int]:
        token = variable.set("inside")
        yield 1
        variable.reset(token)
        yield 2
        assert variable.get(None) is None
        token = variable.set("again")
        yield 3
        variable.reset(token)

    async def consume() -> None:
        items = sync_to_async_iterator(rows(), read_ahead=10)
        for expected in "inside", None, "again":
            await anext(items)
            await thread_is_idle()
            assert variable.get(None) == expected
        with pytest.raises(StopAsyncIteration):
            await anext(items)
        assert variable.get(None) is None

    await in_empty_context(consume)


async def test_step_sees_what_the_consumer_had_when_the_thread_began_to_read() -> None:
    def rows() -> Iterator[Any]:
        while True:
            yield variable.get(None)

    async def consume() -> None:
        variable.set(0)
        async with contextlib.aclosing(sync_to_async_iterator(rows(), read_ahead=2)) as items:
            assert 0 == await anext(items)
            await thread_is_idle()
            token = variable.set(1)
            assert 0 == await anext(items)
            variable.reset(token)
            variable.set(2)
            while (item := await anext(items)) == 0:
                await thread_is_idle()
            assert item in (1, 2)
            assert 2 == variable.get()

    await in_empty_context(consume)


@pytest.mark.parametrize("is_making", [False, True])
async def test_closing_sees_and_changes_the_variables_of_the_consumer(is_making: bool) -> None:
    """1. The consumer sets a variable, perhaps while an item is being made. 2. It closes. 3. The item is made."""
    of_consumer = contextvars.ContextVar("of_consumer", default="")
    of_end = contextvars.ContextVar("of_end", default="")
    of_item = contextvars.ContextVar("of_item", default="")
    making, go_on, seen = threading.Event(), threading.Event(), []

    def generator() -> Iterator[int]:
        try:
            yield 0
            of_item.set("1")
            if is_making:
                making.set()
                wait_for(go_on)
            yield 1
            yield 2
            yield 3
        finally:
            seen.append(of_consumer.get())
            of_end.set("closed")

    items = sync_to_async_iterator(generator, read_ahead=2)()
    assert 0 == await anext(items)
    await (until_set(making) if is_making else thread_is_idle())
    of_consumer.set("set")
    closing = asyncio.ensure_future(closed(items, of_end))
    await asyncio.sleep(0)
    go_on.set()
    assert "closed" == await asyncio.wait_for(closing, LIMIT)
    assert ["set"] == seen
    assert "" == of_item.get()


async def closed(items: Any, variable: contextvars.ContextVar[str]) -> str:
    await items.aclose()
    return variable.get()


async def test_what_a_step_set_is_not_brought_in_again() -> None:
    """1. Two steps count up. 2. The consumer takes the first item, with the first count. 3. The thread continues."""

    def rows() -> Iterator[int]:
        while True:
            variable.set(variable.get(0) + 1)
            yield variable.get()

    async def consume() -> None:
        async with contextlib.aclosing(sync_to_async_iterator(rows(), read_ahead=4)) as items:
            for expected in range(1, 20):
                assert expected == await anext(items) == variable.get()
                await thread_is_idle()

    await in_empty_context(consume)


async def test_variable_that_a_step_took_away_can_be_set_by_the_consumer() -> None:
    """Setting it to the same value as before is also a change."""

    def rows() -> Iterator[Any]:
        token = variable.set("value")
        yield 1
        variable.reset(token)
        yield 2
        while True:
            yield variable.get(None)

    async def consume() -> None:
        async with contextlib.aclosing(sync_to_async_iterator(rows(), read_ahead=2)) as items:
            assert (1, 2) == (await anext(items), await anext(items))
            await thread_is_idle()
            variable.set("value")
            seen = [await anext(items) for _ in range(8)]
            assert "value" == seen[-1]

    await in_empty_context(consume)


# Errors


async def test_error_comes_after_the_items_before_it() -> None:
    def rows() -> Iterator[int]:
        yield 1
        yield 2
        variable.set("changed")
        raise KeyError("three")

    items = sync_to_async_iterator(rows(), read_ahead=10)
    assert 1 == await anext(items)
    await thread_is_idle()
    assert 2 == await anext(items)
    with pytest.raises(KeyError, match="three"):
        await anext(items)
    assert "changed" == variable.get()
    with pytest.raises(StopAsyncIteration):
        await anext(items)


async def test_iterator_that_goes_on_after_an_error() -> None:
    class Source:
        number = 0

        def __iter__(self) -> Iterator[int]:
            return self

        def __next__(self) -> int:
            self.number += 1
            if self.number % 3 == 0:
                raise KeyError(self.number)
            return self.number

    source = Source()
    items = sync_to_async_iterator(source, read_ahead=10)
    seen: list[Any] = []
    for _ in range(8):
        try:
            seen.append(await anext(items))
        except KeyError as error:
            # The consumer must receive an error before the thread continues.
            assert source.number == error.args[0]
            seen.append(error.args)
    assert [1, 2, (3,), 4, 5, (6,), 7, 8] == seen
    await items.aclose()


async def test_error_that_nobody_asked_for_is_dropped_but_no_interrupt() -> None:
    for error in KeyError("ahead"), KeyboardInterrupt(), SystemExit(3):

        def rows(error: BaseException = error) -> Iterator[int]:
            yield 1
            raise error

        items = sync_to_async_iterator(rows(), read_ahead=10)
        await anext(items)
        await thread_is_idle()
        with contextlib.nullcontext() if isinstance(error, Exception) else pytest.raises(type(error)):
            await items.aclose()
        await items.aclose()


async def test_cancelled_error_of_a_step_ends_the_iteration() -> None:
    def rows() -> Iterator[int]:
        yield 1
        raise asyncio.CancelledError

    items = sync_to_async_iterator(rows(), read_ahead=10)
    await anext(items)
    await thread_is_idle()
    with pytest.raises(asyncio.CancelledError):
        await anext(items)
    with pytest.raises(StopAsyncIteration):
        await anext(items)


async def test_error_of_the_job_itself_comes_after_the_items(monkeypatch: pytest.MonkeyPatch) -> None:
    """Instrumentation that wraps ``thread_handler`` fails after the steps."""
    from asgiref._steps.threads import Steps

    def thread_handler(self: Any, *args: Any) -> None:
        SyncToAsync.thread_handler(self, *args)
        raise KeyError("instrument")

    monkeypatch.setattr(Steps, "thread_handler", thread_handler)
    items = sync_to_async_iterator(iter(range(1000)), read_ahead=2)
    seen = [await anext(items)]
    await thread_is_idle()
    with pytest.raises(KeyError, match="instrument"):
        while True:
            seen.append(await anext(items))
    assert seen in ([0, 1], [0, 1, 2])
    monkeypatch.undo()
    assert seen[-1] + 1 == await anext(items)
    await items.aclose()


def test_interrupted_mailbox_tells_the_consumer() -> None:
    """1. A fill is in a mailbox.

    2. The thread is interrupted before it runs the fill. 3. The consumer gets the error.
    """
    mailbox = CurrentThreadExecutor(None)
    posted = threading.Event()

    async def consume() -> None:
        items = sync_to_async_iterator(range(3), thread_sensitive=False, executor=mailbox, read_ahead=2)
        task = asyncio.ensure_future(anext(items))
        await asyncio.sleep(0)
        posted.set()
        with pytest.raises(RuntimeError, match="interrupted"):
            await task
        with pytest.raises(RuntimeError, match="is gone"):
            await anext(items)
        await items.aclose()

    thread = Thread(asyncio.run, consume())
    wait_for(posted)
    mailbox.close(run_rest=False)
    thread.get()


async def test_interrupt_while_the_consumer_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """1. The consumer waits. 2. An interrupt comes when an item is there, and before the loop is woken."""
    source = Source()
    items: Any = sync_to_async_iterator(source, read_ahead=5)
    task = asyncio.ensure_future(anext(items))
    await source.is_asked()

    def tell(self: Fill, loop: asyncio.AbstractEventLoop) -> None:
        self.tells = False
        raise KeyboardInterrupt

    monkeypatch.setattr(Fill, "tell", tell)
    source.allow(10)
    assert 0 == await asyncio.wait_for(task, LIMIT)
    with pytest.raises(KeyboardInterrupt):
        await anext(items)
    await items.aclose()


def test_error_leaves_no_garbage() -> None:
    def rows() -> Iterator[int]:
        yield 1
        raise KeyError

    async def consume() -> None:
        items = sync_to_async_iterator(rows(), read_ahead=5)
        await anext(items)
        with contextlib.suppress(KeyError):
            await anext(items)
        items = sync_to_async_iterator(rows(), read_ahead=5)
        await anext(items)
        await items.aclose()

    with contextlib.closing(asyncio.new_event_loop()) as loop:
        loop.run_until_complete(consume())
        with no_garbage():
            loop.run_until_complete(consume())
            finished(SyncToAsync.single_thread_executor)  # type: ignore[arg-type]


# Cancellation and closing


async def test_cancelled_wait_ends_the_iteration_and_closing_follows_the_step() -> None:
    source = Source(free=1)
    items = sync_to_async_iterator(source, read_ahead=5)
    await anext(items)
    task = asyncio.ensure_future(anext(items))
    assert (0, 1) == (await source.is_asked(), await source.is_asked())
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [] == source.closed
    with pytest.raises(StopAsyncIteration):
        await anext(items)
    source.allow(10)
    await items.aclose()
    # The fill ended with the step.
    assert (2, [await sync_to_async(me)()]) == (source.made, source.closed)


async def test_cancelled_before_the_fill_began() -> None:
    source, busy, go_on = Source(free=10), threading.Event(), threading.Event()

    def block() -> None:
        busy.set()
        wait_for(go_on)

    blocked = asyncio.ensure_future(sync_to_async(block)())
    await until_set(busy)
    items = sync_to_async_iterator(source, read_ahead=5)
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(anext(items), 0.001)
    go_on.set()
    await blocked
    await items.aclose()
    assert 0 == source.made
    assert source.is_closed.is_set()


async def test_cancelled_while_it_lets_others_run() -> None:
    items = sync_to_async_iterator(range(10), read_ahead=1)
    await anext(items)
    await thread_is_idle()
    await anext(items)
    await thread_is_idle()
    task = asyncio.ensure_future(anext(items))
    loop = asyncio.get_running_loop()
    if loop.get_task_factory() is None:
        loop.call_soon(task.cancel)
    else:  # eager
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(StopAsyncIteration):
        await anext(items)


async def test_closed_while_it_lets_others_run() -> None:
    """1. An item waits.

    2. The consumer lets other tasks run. 3. One of them closes the iterator. 4. The consumer ends.
    """
    items = sync_to_async_iterator(range(10), read_ahead=1)
    await anext(items)
    await thread_is_idle()
    await anext(items)
    await thread_is_idle()
    task = asyncio.ensure_future(anext(items, "end"))
    closing: list[Any] = []
    asyncio.get_running_loop().call_soon(lambda: closing.append(asyncio.ensure_future(items.aclose())))
    assert await asyncio.wait_for(task, LIMIT) in (2, "end")
    await closing[0]


class Message:
    """A coroutine that a step waits for; it may be cancelled."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.cancelled = 0
        self.goes_on = asyncio.Event()
        self.raises = False

    async def __call__(self) -> str:
        self.begun.set()
        try:
            await asyncio.wait_for(asyncio.Event().wait(), LIMIT)
        except asyncio.CancelledError:
            self.cancelled += 1
            await self.goes_on.wait()
            if self.raises:
                raise KeyError("message") from None
            return "cancelled"
        raise AssertionError

    def rows(self) -> Iterator[str]:
        yield "first"
        yield async_to_sync(self.__call__)()
        yield "last"


async def test_cancellation_goes_into_the_coroutine_for_which_the_step_waits() -> None:
    message = Message()
    message.goes_on.set()
    items = sync_to_async_iterator(message.rows(), read_ahead=5)
    assert "first" == await anext(items)
    task = asyncio.ensure_future(anext(items))
    await message.begun.wait()
    task.cancel()
    assert "cancelled" == await task
    assert ["last"] == [item async for item in items]


@pytest.mark.parametrize("raises", [False, True])
async def test_second_cancellation_waits_for_the_step(raises: bool) -> None:
    message = Message()
    message.raises = raises
    items = sync_to_async_iterator(message.rows(), read_ahead=5)
    await anext(items)
    task = asyncio.ensure_future(anext(items))
    await message.begun.wait()
    for _ in range(2):
        task.cancel()
        for _ in range(5):
            await asyncio.sleep(0)
    assert not task.done()
    message.goes_on.set()
    with pytest.raises(KeyError if raises else asyncio.CancelledError):
        await task
    assert 1 == message.cancelled
    with pytest.raises(StopAsyncIteration):
        await anext(items)
    await items.aclose()


async def test_second_cancellation_and_a_fill_that_ends_without_an_item(monkeypatch: pytest.MonkeyPatch) -> None:
    """Instrumentation that wraps ``thread_handler`` waits for a coroutine, and calls no step."""
    from asgiref._steps.threads import Steps

    message = Message()

    def thread_handler(self: Any, loop: Any, exc_info: Any, inner_calls: Any, *rest: Any) -> None:
        SyncToAsync.thread_handler(self, loop, exc_info, inner_calls, contextvars.Context().run, async_to_sync(message))

    items: Any = sync_to_async_iterator(range(3), read_ahead=5)
    with monkeypatch.context() as patch:
        patch.setattr(Steps, "thread_handler", thread_handler)
        task = asyncio.ensure_future(anext(items))
        await message.begun.wait()
    for _ in range(2):
        task.cancel()
        for _ in range(5):
            await asyncio.sleep(0)
    message.goes_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    await items.aclose()


async def test_cancelled_when_the_item_is_there_and_the_thread_waits_in_the_next_step() -> None:
    """1. The consumer waits. 2. Its item is made. 3. The next step waits for a coroutine. 4. The wait is cancelled."""
    message = Message()
    message.goes_on.set()
    items: Any = sync_to_async_iterator(message.rows(), read_ahead=5)
    assert "first" == await anext(items)
    await message.begun.wait()
    fill = items._ahead._fill
    items._ready.append("ready")
    fill.await_item(asyncio.get_running_loop())
    assert not fill.survives_cancellation(fill.inner_calls, asyncio.CancelledError())
    del fill.arrival
    assert 0 == message.cancelled
    assert ["ready", "cancelled"] == [await anext(items), await _cancelled(anext(items))]
    await items.aclose()


async def _cancelled(step: Any) -> Any:
    task = asyncio.ensure_future(step)
    await asyncio.sleep(0)
    task.cancel()
    return await task


@pytest.mark.parametrize("dropped", [False, True])
async def test_step_that_nobody_waits_for_is_cancelled_by_closing(dropped: bool) -> None:
    """The step could wait forever."""
    message = Message()
    message.goes_on.set()
    closed = threading.Event()

    def rows() -> Iterator[str]:
        try:
            yield from message.rows()
        finally:
            closed.set()

    items = sync_to_async_iterator(rows(), read_ahead=5)
    assert "first" == await anext(items)
    await message.begun.wait()
    if dropped:
        del items
        gc.collect()
        await until_set(closed)
    else:
        await items.aclose()
    assert 1 == message.cancelled


async def test_step_that_nobody_waits_for_learns_that_it_was_given_up() -> None:
    ended, begun = threading.Event(), threading.Event()

    def rows() -> Iterator[int]:
        yield 1
        begun.set()
        try:
            while not ended.wait(0.001):
                check_cancelled()
        finally:
            ended.set()

    items = sync_to_async_iterator(rows(), read_ahead=5)
    assert 1 == await anext(items)
    await until_set(begun)
    check_cancelled()
    await items.aclose()
    assert ended.is_set()


async def test_step_after_one_that_was_cancelled_is_not_cancelled() -> None:
    message = Message()
    message.goes_on.set()

    def rows() -> Iterator[str]:
        yield async_to_sync(message)()
        check_cancelled()
        yield "next"

    items = sync_to_async_iterator(rows(), read_ahead=5)
    task = asyncio.ensure_future(anext(items))
    await message.begun.wait()
    task.cancel()
    assert "cancelled" == await task
    assert ["next"] == [item async for item in items]


async def test_closing_while_another_task_waits_for_an_item() -> None:
    source = Source()
    items = sync_to_async_iterator(source, read_ahead=5)
    task = asyncio.ensure_future(anext(items))
    await source.is_asked()
    closing = asyncio.ensure_future(items.aclose())
    await asyncio.sleep(0)
    source.allow(10)
    assert 0 == await task
    await closing
    assert (1, [await sync_to_async(me)()]) == (source.made, source.closed)


async def test_closing_while_another_task_waits_for_a_fill_that_has_not_begun() -> None:
    """The step comes first, as without read-ahead."""
    busy, go_on = threading.Event(), threading.Event()

    def block() -> None:
        busy.set()
        wait_for(go_on)

    blocked = asyncio.ensure_future(sync_to_async(block)())
    await until_set(busy)
    source = Source(free=10)
    items = sync_to_async_iterator(source, read_ahead=5)
    task = asyncio.ensure_future(anext(items))
    await asyncio.sleep(0)
    closing = asyncio.ensure_future(items.aclose())
    await asyncio.sleep(0)
    go_on.set()
    assert 0 == await task
    await closing
    assert 1 == source.made
    await blocked


async def test_fill_that_was_given_up_before_it_began_makes_nothing() -> None:
    source = Source(free=1)
    items: Any = sync_to_async_iterator(source, read_ahead=1)
    busy, go_on = threading.Event(), threading.Event()

    def block() -> None:
        busy.set()
        wait_for(go_on)

    ahead = items._ahead
    blocked = asyncio.ensure_future(sync_to_async(block)())
    await until_set(busy)
    ahead._begin(items._iteration.next)
    closing = asyncio.ensure_future(items.aclose())
    await asyncio.sleep(0)
    go_on.set()
    await closing
    assert (0, True) == (source.made, source.is_closed.is_set())
    await blocked


async def test_dropped_iterator_is_closed_on_its_thread() -> None:
    source = Source(free=2)
    items = sync_to_async_iterator(source, read_ahead=5)
    await anext(items)
    assert [0, 1, 2] == [await source.is_asked() for _ in range(3)]
    del items
    gc.collect()
    source.allow(10)
    await until_set(source.is_closed)
    assert (3, [await sync_to_async(me)()]) == (source.made, source.closed)


async def test_step_that_waits_behind_the_closing_is_at_the_end() -> None:
    """1. The fill has ended without an item.

    2. close() has run. 3. The consumer requests an item, and finds the end.
    """
    items: Any = sync_to_async_iterator(range(10), read_ahead=5)
    await anext(items)
    await sync_to_async(items._iteration.close)()
    assert [] == [item async for item in items]


# Threads, loops, processes


async def test_items_that_wait_come_before_the_error_that_the_thread_has_left() -> None:
    source = Source(free=100)
    async with ThreadSensitiveContext():
        items = sync_to_async_iterator(source, read_ahead=4)
        assert 0 == await anext(items)
        await sync_to_async(int)()
    seen = []
    with pytest.raises(RuntimeError, match="is gone"):
        while True:
            seen.append(await anext(items))
    assert seen in ([1, 2, 3], [1, 2, 3, 4])
    await items.aclose()
    assert source.is_closed.is_set()


def test_thread_that_waits_in_async_to_sync_makes_the_items() -> None:
    source = Source(free=10, count=5)
    threads: list[int] = []

    async def main() -> None:
        items = sync_to_async_iterator(source, read_ahead=2)
        threads.append(await sync_to_async(me)())
        assert list(range(5)) == [item async for item in items]

    async_to_sync(main)()
    assert [me()] == threads == source.closed


def test_fill_ends_with_the_loop() -> None:
    source = Source(free=1)

    async def main() -> Any:
        items = sync_to_async_iterator(source, read_ahead=100)
        await anext(items)
        return items

    items: Any = asyncio.run(main())
    source.allow(1000)
    finished(SyncToAsync.single_thread_executor)  # type: ignore[arg-type]
    made = source.made
    assert 3 > made
    # Another loop may continue the iteration.
    assert list(range(1, 100)) == asyncio.run(take(items, 99))
    asyncio.run(items.aclose())


async def take(items: AsyncIterator[int], number: int) -> list[int]:
    return [await anext(items) for _ in range(number)]


async def test_bridge_calls_shows_the_consumer_that_waits() -> None:
    source = Source(free=1)
    items = sync_to_async_iterator(source, read_ahead=5)
    await anext(items)
    task = asyncio.create_task(anext(items), name="consumer")
    assert (0, 1) == (await source.is_asked(), await source.is_asked())
    [call] = bridge_calls()
    assert ("sync_to_async", "running") == (call.direction, call.state)
    assert "__next__" in [frame.name for frame in call.stack]
    assert "consumer" in str(call)
    source.allow(10)
    await task
    await items.aclose()


def test_process_ends_with_one_half_way() -> None:
    code = """
from asgiref.sync import sync_to_async_iterator
kept = []
def rows():
    for i in range(1000):
        if i:
            time.sleep(0.05)
        yield i
async def main(**options):
    items = sync_to_async_iterator(rows(), read_ahead=1000, **options)
    await anext(items)
    kept.append(items)
asyncio.run(main())
asyncio.run(main(thread_sensitive=False))
print("done")
"""
    assert ["done"] == output_of(code)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_forked_child_does_not_wait_for_the_parents_fill() -> None:
    code = """
import warnings
warnings.simplefilter("ignore")
go_on = threading.Event()
def rows():
    yield 1
    go_on.wait(10)
    yield 2
async def begin():
    items = sync_to_async_iterator(rows(), thread_sensitive=False, read_ahead=5)
    await anext(items)
    return items
async def go_on_in_child(items):
    try:
        await anext(items)
    except RuntimeError as error:
        print("is gone" in str(error), flush=True)
items = asyncio.run(begin())
pid = os.fork()
if not pid:
    asyncio.run(go_on_in_child(items))
    os._exit(0)
print(os.waitpid(pid, 0)[1])
go_on.set()
asyncio.run(items.aclose())
"""
    assert ["True", "0"] == output_of(code)


def test_interrupt_of_the_thread_that_reads_ahead() -> None:
    """Ctrl-C while the main thread makes an item that nothing waits for is raised, and the main thread ends."""
    code = """
from asgiref.sync import sync_to_async_iterator
import contextlib
def rows():
    yield 1
    begun.set()
    time.sleep(20)
async def main():
    async with contextlib.aclosing(sync_to_async_iterator(rows(), read_ahead=5)) as items:
        await anext(items)
        await asyncio.to_thread(begun.wait, 20)
        os.kill(os.getpid(), signal.SIGINT)
begun = threading.Event()
try:
    async_to_sync(main)()
except KeyboardInterrupt:
    print("interrupted")
"""
    assert ["interrupted"] == output_of(code)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
