"""``sync_to_async_iterator``: threads, contexts, closing, errors."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import inspect
import sys
import threading
import time
import weakref
from collections.abc import AsyncIterator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from asgiref._bridge import workers
from asgiref._steps import threads as steps_threads
from asgiref.current_thread_executor import CurrentThreadExecutor
from asgiref.local import Local
from asgiref.sync import (
    AsyncSingleThreadContext,
    SyncToAsync,
    ThreadSensitiveContext,
    ThreadSensitiveEventLoop,
    async_to_sync,
    bridge_calls,
    sync_to_async,
    sync_to_async_iterator,
)

from ..helpers import LIMIT, Thread, finished, output_of, wait_for

me = threading.get_ident


class Rows:
    """A generator that records on which threads it runs; it may wait in a step."""

    def __init__(self, count: int = 3) -> None:
        self.count = count
        self.began: list[int] = []
        self.closed: list[int] = []
        self.is_closed = threading.Event()
        self.in_step, self.go_on = threading.Event(), threading.Event()
        self.wait_at = -1

    def __call__(self) -> Iterator[int]:
        self.began.append(me())
        try:
            for i in range(self.count):
                if i == self.wait_at:
                    self.in_step.set()
                    wait_for(self.go_on)
                yield i
        finally:
            self.closed.append(me())
            self.is_closed.set()


async def until_set(event: threading.Event) -> None:
    await asyncio.wait_for(asyncio.get_running_loop().run_in_executor(None, event.wait, LIMIT), LIMIT)


# Items and the end


async def test_items_come_in_order_and_the_end_is_final() -> None:
    items = sync_to_async_iterator([1, 2, 3])
    assert items is aiter(items)
    assert [1, 2, 3] == [item async for item in items]
    assert [] == [item async for item in items]
    with pytest.raises(StopAsyncIteration):
        await anext(items)
    await items.aclose()
    await items.aclose()


async def test_steps_and_closing_are_on_one_thread() -> None:
    rows = Rows()
    expected = await sync_to_async(me)()
    async with contextlib.aclosing(sync_to_async_iterator(rows())) as items:
        async for _ in items:
            break
    assert [expected] == rows.began == rows.closed
    with pytest.raises(StopAsyncIteration):
        await anext(items)


async def test_break_closes_nothing_while_a_reference_is_kept() -> None:
    rows = Rows()
    items = sync_to_async_iterator(rows())
    async for item in items:
        assert 0 == item
        break
    assert [] == rows.closed
    assert [1, 2] == [item async for item in items]


async def test_end_of_the_iteration_closes() -> None:
    class Cursor:
        closed: list[int] = []

        def __iter__(self) -> Iterator[int]:
            return self

        def __next__(self) -> int:
            raise StopIteration

        def close(self) -> None:
            self.closed.append(me())

    assert [] == [item async for item in sync_to_async_iterator(Cursor())]
    assert [await sync_to_async(me)()] == Cursor.closed


async def test_iterator_that_was_never_begun_is_closed_on_the_thread() -> None:
    closed: list[int] = []

    class Cursor:
        def __iter__(self) -> Iterator[int]:
            return self

        def __next__(self) -> int:
            raise AssertionError

        def close(self) -> None:
            closed.append(me())

    items = sync_to_async_iterator(Cursor())
    await items.aclose()
    await items.aclose()
    assert [await sync_to_async(me)()] == closed
    nothing: list[int] = []
    await sync_to_async_iterator(nothing).aclose()


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="counts references")
async def test_iterator_without_close_is_let_go_of_on_the_thread() -> None:
    """It is also created there: on free-threaded builds, the thread that created an object frees it."""
    let_go: list[int] = []

    class Items:
        def __next__(self) -> int:
            return 1

        def __iter__(self) -> Iterator[int]:
            return self

        def __del__(self) -> None:
            let_go.append(me())

    class Source:
        def __iter__(self) -> Iterator[int]:
            return Items()

    items = sync_to_async_iterator(Source())
    assert 1 == await anext(items)
    await items.aclose()
    gc.collect()
    assert [await sync_to_async(me)()] == let_go


async def test_error_of_a_step_comes_out_and_ends_a_generator() -> None:
    def rows() -> Iterator[int]:
        yield 1
        raise KeyError("two")

    items = sync_to_async_iterator(rows())
    assert 1 == await anext(items)
    with pytest.raises(KeyError, match="two"):
        await anext(items)
    with pytest.raises(StopAsyncIteration):
        await anext(items)


async def test_legacy_sequence_is_iterable() -> None:
    class Sequence:
        def __getitem__(self, index: int) -> int:
            if index == 2:
                raise IndexError
            return index

    items: Any = sync_to_async_iterator(Sequence())  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    assert [0, 1] == [item async for item in items]


# Threads


async def test_worker_is_leased_for_code_that_is_not_thread_sensitive() -> None:
    of_process = await sync_to_async(me)()  # now: it could get the worker that is released below
    rows = Rows()
    async with contextlib.aclosing(sync_to_async_iterator(rows(), thread_sensitive=False)) as items:
        await anext(items)
        [thread] = [thread for thread in threading.enumerate() if thread.ident == rows.began[0]]
        assert thread.name.endswith("steps of one iteration or block")
        assert await sync_to_async(me, thread_sensitive=False)() != thread.ident
    assert rows.closed == rows.began
    assert rows.closed[0] not in (me(), of_process)
    assert thread in [worker.thread for worker in workers._idle]


@pytest.mark.needs_internals
async def test_executor_of_one_thread() -> None:
    of_process = await sync_to_async(me)()
    with ThreadPoolExecutor(max_workers=1) as executor:
        expected = executor.submit(me).result()
        rows = Rows()
        async with contextlib.aclosing(
            sync_to_async_iterator(rows(), thread_sensitive=False, executor=executor)
        ) as items:
            await anext(items)
        assert [expected] == rows.began == rows.closed
        # Dropped: a worker submits the closing to the executor, because this thread may hold the executor's locks.
        rows = Rows()
        items = sync_to_async_iterator(rows(), thread_sensitive=False, executor=executor)
        await anext(items)
        del items
        gc.collect()
        wait_for(rows.is_closed)
        assert [expected] == rows.closed
        # The executor was shut down: a step is refused, and the closing runs elsewhere.
        rows = Rows()
        items = sync_to_async_iterator(rows(), thread_sensitive=False, executor=executor)
        await anext(items)
    with pytest.raises(RuntimeError, match="the thread of its first step is gone"):
        await anext(items)
    await items.aclose()
    assert rows.closed[0] not in (me(), of_process)
    executor = ThreadPoolExecutor(max_workers=1)
    rows = Rows()
    items = sync_to_async_iterator(rows(), thread_sensitive=False, executor=executor)
    await anext(items)
    executor.shutdown()
    del items
    gc.collect()
    wait_for(rows.is_closed)
    assert me() not in rows.closed


async def test_executors_that_have_not_one_thread_are_refused() -> None:
    with ThreadPoolExecutor(max_workers=2) as executor:
        with pytest.raises(TypeError, match="exactly one thread"):
            sync_to_async_iterator([1], thread_sensitive=False, executor=executor)
        with pytest.raises(TypeError, match="add thread_sensitive=False"):
            sync_to_async_iterator([1], executor=executor)


async def test_threads_of_blocks() -> None:
    rows = Rows()
    async with ThreadSensitiveContext():
        expected = await sync_to_async(me)()
        async with contextlib.aclosing(sync_to_async_iterator(rows())) as items:
            await anext(items)
    assert [expected] == rows.began == rows.closed


def test_thread_that_waits_in_async_to_sync_makes_the_items() -> None:
    rows = Rows()

    async def main() -> None:
        async with contextlib.aclosing(sync_to_async_iterator(rows())) as items:
            await anext(items)

    async_to_sync(main)()
    assert [me()] == rows.began == rows.closed


async def test_thread_has_left() -> None:
    """The block has ended: a further step is refused, and the closing runs where the rules lead then."""
    for awaited in True, False:
        rows = Rows()
        async with ThreadSensitiveContext():
            items = sync_to_async_iterator(rows())
            await anext(items)
        with pytest.raises(RuntimeError, match=r"rows|Rows|generator.* is gone"):
            await anext(items)
        if awaited:
            await items.aclose()
        del items
        gc.collect()
        await until_set(rows.is_closed)
        assert [await sync_to_async(me)()] == rows.closed


@pytest.mark.needs_internals
async def test_block_with_an_executor_is_over() -> None:
    rows = Rows()
    with ThreadPoolExecutor(max_workers=1) as executor:
        async with ThreadSensitiveContext(executor=executor):
            items = sync_to_async_iterator(rows())
            await anext(items)
        with pytest.raises(RuntimeError, match="is gone"):
            await anext(items)
        await items.aclose()
        assert [await sync_to_async(me)()] == rows.closed


async def test_closing_by_a_task_that_outlives_its_block() -> None:
    """All executors that the rules name refuse, so a worker closes it."""
    rows = Rows()
    begun, over = asyncio.Event(), asyncio.Event()

    async def outlive() -> None:
        items = sync_to_async_iterator(rows())
        await anext(items)
        begun.set()
        await over.wait()
        await items.aclose()

    with ThreadPoolExecutor(max_workers=1) as executor:
        async with ThreadSensitiveContext(executor=executor):
            task = asyncio.create_task(outlive())
            await begun.wait()
        over.set()
        await task
    assert me() not in rows.closed
    assert rows.is_closed.is_set()


def test_mailbox_is_over() -> None:
    """If the iterator outlives its async_to_sync call, an outer waiting thread or that of the process closes it."""
    rows, outer_rows = Rows(), Rows()
    kept: list[Any] = []

    async def begin(rows: Rows) -> None:
        items = sync_to_async_iterator(rows())
        await anext(items)
        kept.append(items)

    async_to_sync(begin)(rows)
    kept.clear()
    gc.collect()
    wait_for(rows.is_closed)
    assert me() not in rows.closed

    def inner() -> None:
        async_to_sync(begin)(outer_rows)

    async def outer() -> None:
        await sync_to_async(inner)()
        kept.clear()
        gc.collect()
        await until_set(outer_rows.is_closed)

    async_to_sync(outer)()
    assert [me()] == outer_rows.began == outer_rows.closed


def test_loop_on_the_very_thread_of_the_steps() -> None:
    """The steps would have to run on the thread that awaits them, so they are refused.

    Nothing is closed there meanwhile.
    """
    rows = Rows()
    kept: list[Any] = []

    async def here() -> None:
        [items] = kept
        with pytest.raises(RuntimeError, match="deadlock"):
            await anext(items)
        with pytest.raises(RuntimeError, match="deadlock"):
            await items.aclose()
        assert [] == rows.closed

    async def main() -> None:
        kept.append(sync_to_async_iterator(rows()))
        await anext(kept[0])
        await sync_to_async(lambda: asyncio.run(here()))()
        await until_set(rows.is_closed)

    async_to_sync(main)()
    assert [me()] == rows.closed


def test_closing_passes_over_the_thread_of_the_loop() -> None:
    """The first thread is gone, and the rules name the thread of this loop, so another thread closes it."""
    rows = Rows()
    kept: list[Any] = []

    async def begin() -> None:
        async with ThreadSensitiveContext():
            pass
        kept.append(sync_to_async_iterator(rows()))
        await anext(kept[0])

    async def close() -> None:
        await kept[0].aclose()

    async def main() -> None:
        await sync_to_async(lambda: asyncio.run(close()))()

    Thread(async_to_sync(begin)).get()
    async_to_sync(main)()
    assert rows.is_closed.is_set()
    assert me() not in rows.closed


@pytest.mark.parametrize("submits", [True, False])
async def test_worker_of_the_process_is_replaced(monkeypatch: pytest.MonkeyPatch, submits: bool) -> None:
    rows, after_block = Rows(), Rows()
    with ThreadPoolExecutor(max_workers=1) as executor:
        monkeypatch.setattr(SyncToAsync, "single_thread_executor", executor if submits else _Refusing())
        async with ThreadSensitiveContext():
            items = sync_to_async_iterator(rows())
            await anext(items)
            others = sync_to_async_iterator(after_block())
            await anext(others)
        del items
        gc.collect()
        await until_set(rows.is_closed)
        await others.aclose()
        assert me() not in rows.closed + after_block.closed
        if submits:
            assert [executor.submit(me).result()] == rows.closed == after_block.closed


class _Refusing(workers.WorkerExecutor):
    def post(self, job: Any, waiting_thread: int | None = None) -> bool:
        return False


async def test_given_mailbox(tmp_path: Any) -> None:
    """A CurrentThreadExecutor has one thread."""
    mailbox: list[CurrentThreadExecutor] = []
    ready = threading.Event()
    import concurrent.futures

    done: concurrent.futures.Future[None] = concurrent.futures.Future()

    def serve() -> None:
        mailbox.append(CurrentThreadExecutor(None))
        ready.set()
        mailbox[0].run_until_future(done)

    thread = Thread(serve)
    wait_for(ready)
    rows = Rows()
    items = sync_to_async_iterator(rows(), thread_sensitive=False, executor=mailbox[0])
    assert [0, 1, 2] == [item async for item in items]
    done.set_result(None)
    thread.get()
    assert [thread.ident] == rows.closed


# Contexts

variable: contextvars.ContextVar[Any] = contextvars.ContextVar("variable")
shared = Local()


async def test_steps_see_and_change_the_variables_of_the_consumer() -> None:
    def rows() -> Iterator[Any]:
        while True:
            seen = variable.get(), shared.value
            variable.set(seen[0] + 1)
            shared.value = seen[1] + "!"
            yield seen

    variable.set(1)
    shared.value = "a"
    async with contextlib.aclosing(sync_to_async_iterator(rows())) as items:
        assert (1, "a") == await anext(items)
        assert (2, "a!") == (variable.get(), shared.value)
        assert (2, "a!") == await anext(items)
        variable.set(10)
        shared.value = "b"
        assert (10, "b") == await anext(items)
        assert (11, "b!") == (variable.get(), shared.value)
    del shared.value


async def test_token_of_one_step_is_valid_in_another() -> None:
    def rows() -> Iterator[int]:
        token = variable.set("inside")
        yield 1
        variable.reset(token)
        yield 2
        with pytest.raises(LookupError):
            variable.get()
        yield 3

    async def consume() -> None:
        items = sync_to_async_iterator(rows())
        await anext(items)
        assert "inside" == variable.get()
        await anext(items)
        with pytest.raises(LookupError):
            variable.get()
        assert [3] == [item async for item in items]

    await asyncio.get_running_loop().create_task(consume(), context=contextvars.Context())


async def test_variable_that_the_consumer_takes_away() -> None:
    def rows() -> Iterator[Any]:
        while True:
            yield variable.get(None)

    async def consume() -> None:
        async with contextlib.aclosing(sync_to_async_iterator(rows())) as items:
            assert await anext(items) is None
            token = variable.set("outside")
            assert "outside" == await anext(items)
            variable.reset(token)
            assert await anext(items) is None

    await asyncio.get_running_loop().create_task(consume(), context=contextvars.Context())


async def test_another_task_goes_on() -> None:
    """A variable that a step set is removed. In another task's context, the library has not set it, and it stays."""

    def rows() -> Iterator[int]:
        token = variable.set("inside")
        yield 1
        variable.reset(token)
        yield 2

    async def begin(items: AsyncIterator[int]) -> None:
        await anext(items)

    async def go_on(items: AsyncIterator[int]) -> None:
        variable.set("mine")
        await anext(items)
        await anext(items, None)

    loop = asyncio.get_running_loop()
    items = sync_to_async_iterator(rows())
    await loop.create_task(begin(items), context=contextvars.Context())
    await loop.create_task(go_on(items), context=contextvars.Context())


async def test_what_another_task_changes_in_the_same_context_during_a_step_is_seen_by_the_next_one() -> None:
    """1. A step has started.

    2. Another task, in the same context, sets a variable. 3. The step sets another variable.
    """
    other = contextvars.ContextVar[int]("other", default=0)
    begun, go_on = threading.Event(), threading.Event()

    def rows() -> Iterator[int]:
        begun.set()
        wait_for(go_on)
        variable.set("step")
        yield other.get()
        yield other.get()

    async def consume() -> list[int]:
        return [item async for item in sync_to_async_iterator(rows())]

    async def change() -> None:
        other.set(1)

    context = contextvars.Context()
    loop = asyncio.get_running_loop()
    consuming = loop.create_task(consume(), context=context)
    await until_set(begun)
    await loop.create_task(change(), context=context)
    go_on.set()
    assert [0, 1] == await consuming
    assert ("step", 1) == (context[variable], context[other])


# Cancellation


async def test_cancelled_step_ends_the_iteration_and_closing_follows_the_step() -> None:
    """1. A step waits on the thread. 2. The await is cancelled, and ends. 3. The step ends. 4. Then close() runs."""
    rows = Rows()
    rows.wait_at = 1
    items = sync_to_async_iterator(rows())
    await anext(items)
    task = asyncio.ensure_future(anext(items))
    await until_set(rows.in_step)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [] == rows.closed
    with pytest.raises(StopAsyncIteration):
        await anext(items)
    closing = asyncio.ensure_future(items.aclose())
    await asyncio.sleep(0)
    rows.go_on.set()
    await closing
    assert rows.closed == rows.began


@pytest.mark.parametrize("read_ahead", [0, 1])
async def test_closed_by_the_job_after_a_cancelled_step_just_before_aclose(
    monkeypatch: pytest.MonkeyPatch, read_ahead: int
) -> None:
    """1. A step is cancelled; a job closes. 2. aclose() finds it open. 3. The job has ended. 4. aclose() goes there.

    The thread has been released by then, and a thread for thread-sensitive code may be blocked until aclose() returns.
    """
    closing, closed, busy, go_on = (threading.Event() for _ in range(4))
    accepts = steps_threads.Steps._accepts

    class Cancelled(Iterator[int]):
        def __next__(self) -> int:
            raise asyncio.CancelledError

        def close(self) -> None:
            wait_for(closing)
            assert not closed.is_set()
            closed.set()

    def accepts_when_the_thread_is_released(steps: steps_threads.Steps, *args: Any) -> bool:
        closing.set()
        wait_for(closed)
        steps.kept.shutdown()  # again: this waits for the job
        return accepts(steps, *args)

    def block() -> None:
        busy.set()
        wait_for(go_on)

    blocked = asyncio.ensure_future(sync_to_async(block)())
    await until_set(busy)
    items = sync_to_async_iterator(Cancelled(), thread_sensitive=False, read_ahead=read_ahead)
    with pytest.raises(asyncio.CancelledError):
        await anext(items)
    monkeypatch.setattr(steps_threads.Steps, "_accepts", accepts_when_the_thread_is_released)
    try:
        await asyncio.wait_for(items.aclose(), LIMIT)
        assert closed.is_set()
        # A cancellation would have it closed once more, which nothing awaits.
        items._iteration.abandon()
    finally:
        go_on.set()
        await blocked


async def test_closing_what_is_not_thread_sensitive_waits_for_no_thread_of_such_code() -> None:
    """1. The executor is shut down. 2. The thread of the process is blocked. 3. The iterator is closed meanwhile."""
    rows, busy, go_on = Rows(), threading.Event(), threading.Event()

    def block() -> int:
        busy.set()
        wait_for(go_on)
        return me()

    executor = ThreadPoolExecutor(max_workers=1)
    items = sync_to_async_iterator(rows(), thread_sensitive=False, executor=executor)
    await anext(items)
    executor.shutdown()
    blocked = asyncio.ensure_future(sync_to_async(block)())
    await until_set(busy)
    try:
        await asyncio.wait_for(items.aclose(), LIMIT)
    finally:
        go_on.set()
        of_process = await blocked
    [closed_on] = rows.closed
    assert closed_on not in (me(), of_process)


async def test_cancelled_before_the_step_began() -> None:
    """1. The thread is busy. 2. The first step is cancelled in the queue. 3. Nothing was started, nothing remains."""
    rows, busy, go_on = Rows(), threading.Event(), threading.Event()

    def block() -> None:
        busy.set()
        wait_for(go_on)

    blocked = asyncio.ensure_future(sync_to_async(block)())
    await until_set(busy)
    items = sync_to_async_iterator(rows)()
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(anext(items), 0.001)
    go_on.set()
    await blocked
    await items.aclose()
    assert [] == rows.began


async def test_cancellation_goes_into_the_coroutine_for_which_a_step_waits() -> None:
    begun = asyncio.Event()

    async def wait() -> str:
        begun.set()
        try:
            await asyncio.sleep(LIMIT)
        except asyncio.CancelledError:
            return "cancelled"
        return "not"

    def rows() -> Iterator[str]:
        yield async_to_sync(wait)()
        yield "next"

    items = sync_to_async_iterator(rows())
    task = asyncio.ensure_future(anext(items))
    await begun.wait()
    task.cancel()
    assert "cancelled" == await task
    assert ["next"] == [item async for item in items]


async def test_cancelled_aclose_closes_all_the_same_and_its_error_is_told() -> None:
    """1. close() runs.

    2. aclose() is cancelled, and ends. 3. close() fails: the loop's exception handler gets the error.
    """
    told: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.set_result(context))
    closing, go_on = threading.Event(), threading.Event()

    def rows() -> Iterator[int]:
        try:
            yield 1
        finally:
            closing.set()
            wait_for(go_on)
            raise KeyError("late")

    items = sync_to_async_iterator(rows())
    await anext(items)
    task = asyncio.ensure_future(items.aclose())
    await until_set(closing)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    go_on.set()
    context = await asyncio.wait_for(told, LIMIT)
    assert isinstance(context["exception"], KeyError)
    assert "no call was waiting" in context["message"]


async def test_error_of_closing_comes_out_of_the_aclose_that_waits() -> None:
    """1. A step is cancelled. 2. aclose() waits. 3. The close() after the step fails: aclose() raises its error."""

    in_step, go_on = threading.Event(), threading.Event()

    def rows() -> Iterator[int]:
        try:
            yield 1
            in_step.set()
            wait_for(go_on)
            yield 2
        finally:
            raise KeyError("at the end")

    items = sync_to_async_iterator(rows())
    await anext(items)
    task = asyncio.ensure_future(anext(items))
    await until_set(in_step)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    closing = asyncio.ensure_future(items.aclose())
    await asyncio.sleep(0)
    go_on.set()
    with pytest.raises(KeyError):
        await closing
    await items.aclose()


async def test_aclose_while_another_task_waits_for_an_item() -> None:
    rows = Rows()
    rows.wait_at = 0
    items = sync_to_async_iterator(rows())
    task = asyncio.ensure_future(anext(items))
    await until_set(rows.in_step)
    with pytest.raises(RuntimeError, match="while another task is waiting"):
        await anext(items)
    closing = asyncio.ensure_future(items.aclose())
    await asyncio.sleep(0)
    rows.go_on.set()
    assert 0 == await task
    await closing
    assert rows.closed == rows.began


async def test_step_that_comes_behind_the_closing_is_at_the_end() -> None:
    """1. close() runs. 2. A step of an earlier anext() comes to the thread, and finds the end."""
    items = sync_to_async_iterator(Rows()())
    await anext(items)
    await sync_to_async(items._iteration.close)()
    with pytest.raises(StopAsyncIteration):
        await anext(items)


# The garbage collector


async def test_dropped_iterator_is_closed_on_its_thread() -> None:
    rows = Rows()
    items = sync_to_async_iterator(rows())
    await anext(items)
    del items
    gc.collect()
    await until_set(rows.is_closed)
    assert rows.closed == rows.began


async def test_circle_is_closed_on_its_thread() -> None:
    """Iterator and generator are in one reference cycle; the collector does not finalize the generator itself."""
    rows = Rows()

    class Consumer:
        items: Any

    consumer = Consumer()
    consumer.items = sync_to_async_iterator(rows())
    consumer.items.consumer = consumer
    await anext(consumer.items)
    del consumer
    gc.collect()
    await until_set(rows.is_closed)
    assert rows.closed == rows.began


async def test_error_of_closing_a_dropped_one_is_told() -> None:
    told: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.set_result(context["exception"]))

    class Cursor:
        def __iter__(self) -> Iterator[int]:
            return iter([1, 2])

    def rows() -> Iterator[int]:
        try:
            yield 1
        finally:
            raise KeyError("dropped")

    items = sync_to_async_iterator(rows())
    await anext(items)
    del items
    gc.collect()
    assert isinstance(await asyncio.wait_for(told, LIMIT), KeyError)


def test_error_of_closing_after_the_end_of_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    complaints: list[Any] = []
    complained = threading.Event()

    def complain(arguments: Any) -> None:
        complaints.append(arguments.exc_type)
        complained.set()

    monkeypatch.setattr(threading, "excepthook", complain)

    def rows() -> Iterator[int]:
        try:
            yield 1
        finally:
            raise KeyError("dropped")

    async def main(kept: list[Any], keep_loop: bool) -> None:
        if keep_loop:
            kept.append(asyncio.get_running_loop())
        kept.append(sync_to_async_iterator(rows(), thread_sensitive=False))
        await anext(kept[-1])

    for keep_loop in True, False:
        kept: list[Any] = []
        asyncio.run(main(kept, keep_loop))
        gc.collect()
        kept.pop()
        gc.collect()
        wait_for(complained)
        complained.clear()
    assert [KeyError, KeyError] == complaints


def test_finalizer_on_the_thread_that_is_posting_to_its_mailbox() -> None:
    """1. A thread posts to a mailbox. 2. During that, it finalizes an iterator of the same mailbox."""
    from collections import deque

    rows = Rows()
    kept: list[Any] = []

    class Jobs(deque[Any]):
        def append(self, job: Any) -> None:
            super().append(job)
            kept.clear()
            gc.collect()

    async def main() -> None:
        kept.append(sync_to_async_iterator(rows()))
        await anext(kept[0])
        kept[0]._iteration.steps.kept._jobs = Jobs()
        await sync_to_async(int)()
        await until_set(rows.is_closed)

    Thread(async_to_sync(main)).get()
    assert rows.closed == rows.began


def test_interrupted_mailbox_leaves_the_closing_to_others() -> None:
    """1. A closing is in a mailbox.

    2. The thread is interrupted before it runs the closing. 3. Another thread runs it.
    """
    rows = Rows()
    kept: list[Any] = []

    mailbox = CurrentThreadExecutor(None)

    async def step() -> Any:
        items = sync_to_async_iterator(rows(), thread_sensitive=False, executor=mailbox)
        task = asyncio.ensure_future(anext(items))
        await asyncio.sleep(0)  # the step is in the mailbox
        stepped.set()
        await task
        return items

    stepped = threading.Event()
    loop_thread = Thread(asyncio.run, step())
    wait_for(stepped)
    while loop_thread.is_alive():
        while mailbox._jobs:
            mailbox._run_next()
    kept.append(loop_thread.get())
    loop_thread._result = None
    kept.clear()
    deadline = time.monotonic() + LIMIT
    while not mailbox._jobs and time.monotonic() < deadline:
        gc.collect()
    assert 1 == len(mailbox._jobs)
    mailbox.close(run_rest=False)
    wait_for(rows.is_closed)
    assert me() not in rows.closed


def test_all_waiting_threads_have_left() -> None:
    """The mailbox of the steps and the outer one are closed, so the thread of the process does the rest."""
    outer = CurrentThreadExecutor(None)
    inner = CurrentThreadExecutor(outer)
    steps = steps_threads.Steps("steps", True, None)
    steps.kept, steps._first = inner, int  # as after a first step
    inner.close()
    outer.close()
    done: list[int] = []
    steps.end_unawaited(lambda: done.append(me()))
    finished(SyncToAsync.single_thread_executor)  # type: ignore[arg-type]
    assert 1 == len(done)
    assert me() not in done


async def test_error_is_left_to_the_aclose_that_waits() -> None:
    """1. close() fails, and nothing waits.

    2. aclose() starts to wait. 3. The loop, about to report it, leaves the error.
    """
    steps = steps_threads.Steps("steps", True, None)
    steps.errors.append(KeyError())
    steps.waiting = 1
    steps._tell_errors_to(asyncio.get_running_loop())
    assert steps.errors


@pytest.mark.needs_internals
async def test_loop_on_the_one_thread_of_the_executor() -> None:
    """Neither a step nor the closing can run there, and nothing is closed anywhere else."""
    rows = Rows()
    with ThreadPoolExecutor(max_workers=1) as executor:
        items = sync_to_async_iterator(rows(), thread_sensitive=False, executor=executor)
        await anext(items)

        async def here() -> None:
            with pytest.raises(RuntimeError, match="deadlock"):
                await anext(items)
            with pytest.raises(RuntimeError, match="deadlock"):
                await items.aclose()

        await asyncio.get_running_loop().run_in_executor(executor, asyncio.run, here())
        await until_set(rows.is_closed)
    assert rows.closed == rows.began


def test_nothing_is_left_of_an_iteration() -> None:
    references: list[Any] = []

    async def main() -> None:
        rows = Rows()
        items = sync_to_async_iterator(rows())
        references.extend([weakref.ref(items), weakref.ref(items._iteration), weakref.ref(rows)])
        await anext(items)
        await items.aclose()

    asyncio.run(main())
    finished(SyncToAsync.single_thread_executor)  # type: ignore[arg-type]
    gc.collect()
    assert [None] * 3 == [reference() for reference in references]


# Wrong arguments


async def test_what_is_not_iterable_is_refused() -> None:
    async def numbers() -> AsyncIterator[int]:
        yield 1

    async def coroutine() -> list[int]:
        return []

    bridge: Any = sync_to_async_iterator
    with pytest.raises(TypeError, match="needs an iterable, but the argument is 1"):
        bridge(1)
    with pytest.raises(TypeError, match="is asynchronous"):
        bridge(numbers())
    with pytest.raises(TypeError, match="needs a synchronous function"):
        bridge(numbers)
    with pytest.raises(TypeError, match="needs a synchronous function"):
        bridge(coroutine)
    with pytest.raises(TypeError, match="needs an iterable"):
        bridge(coroutine())

    class Callable_:
        def __call__(self) -> None: ...

        def __aiter__(self) -> None: ...

    with pytest.raises(TypeError, match="is asynchronous"):
        bridge(Callable_())
    with pytest.raises(TypeError, match=r"what int returned is 0"):
        await anext(bridge(int)())


async def test_stop_async_iteration_of_a_step_is_no_end() -> None:
    class Bad:
        def __iter__(self) -> Iterator[int]:
            return self

        def __next__(self) -> int:
            raise StopAsyncIteration("wrong")

    with pytest.raises(RuntimeError, match=r"Bad raised StopAsyncIteration\('wrong'\)"):
        await anext(sync_to_async_iterator(Bad()))


async def test_stop_iteration_of_iter_and_close_is_no_end() -> None:
    class BadIter:
        def __iter__(self) -> Iterator[int]:
            raise StopIteration

    class BadClose:
        def __iter__(self) -> Iterator[int]:
            return self

        def __next__(self) -> int:
            return 1

        def close(self) -> None:
            raise StopIteration("close")

    with pytest.raises(RuntimeError, match=r"BadIter raised StopIteration"):
        await anext(sync_to_async_iterator(BadIter()))
    items = sync_to_async_iterator(BadClose())
    await anext(items)
    with pytest.raises(RuntimeError, match=r"close\(\) of .*BadClose raised StopIteration\('close'\)"):
        await items.aclose()


def test_broken_construction_is_finalized_quietly() -> None:
    from asgiref._steps.iteration import SyncToAsyncIterator

    SyncToAsyncIterator.__new__(SyncToAsyncIterator).__del__()


# Decorated functions


async def test_decorated_function() -> None:
    @sync_to_async_iterator
    def count(to: int, *, step: int = 1) -> Iterator[tuple[int, int]]:
        """Count."""
        for i in range(0, to, step):
            yield i, me()

    expected = await sync_to_async(me)()
    assert [(0, expected), (2, expected)] == [item async for item in count(3, step=2)]
    assert ("count", "Count.") == (count.__name__, count.__doc__)
    assert ["to", "step"] == list(inspect.signature(count).parameters)
    assert [0, 1] == [i async for i in sync_to_async_iterator(range)(2)]


async def test_decorator_with_options_and_methods() -> None:
    class Table:
        rows = [1, 2]

        @sync_to_async_iterator(thread_sensitive=False)
        def read(self) -> Iterable[int]:
            self.thread = me()
            return self.rows

    table = Table()
    assert [1, 2] == [row async for row in table.read()]
    assert [1, 2] == [row async for row in Table.read(table)]
    assert table.thread not in (me(), await sync_to_async(me)())


# Diagnosis, forks, the end of the process


async def test_bridge_calls_shows_a_step_in_flight() -> None:
    rows = Rows()
    rows.wait_at = 1
    items = sync_to_async_iterator(rows())
    await anext(items)
    assert [] == bridge_calls()
    task = asyncio.ensure_future(anext(items))
    await until_set(rows.in_step)
    [call] = bridge_calls()
    assert ("sync_to_async", "running") == (call.direction, call.state)
    assert call.function.endswith("Rows.__call__") or "generator" in call.function or "__call__" in call.function
    assert "wait_for" in [frame.name for frame in call.stack]
    rows.go_on.set()
    await task
    await items.aclose()


def test_process_ends_with_one_half_way() -> None:
    code = """
from asgiref.sync import sync_to_async_iterator
kept = []
def rows():
    try:
        yield 1
        yield 2
    finally:
        pass
async def main(**options):
    items = sync_to_async_iterator(rows(), **options)
    await anext(items)
    kept.append(items)
asyncio.run(main())
asyncio.run(main(thread_sensitive=False))
async_to_sync(main)()
print("done")
"""
    assert ["done"] == output_of(code)


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="forks")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_forked_child_leaves_the_parents_iteration_alone() -> None:
    code = """
import gc, warnings
warnings.simplefilter("ignore")
closed = []
def rows():
    try:
        yield 1
        yield 2
    finally:
        closed.append(os.getpid())
async def begin():
    items = sync_to_async_iterator(rows())
    await anext(items)
    return items
async def go_on(items):
    try:
        await anext(items)
    except RuntimeError as error:
        print("is gone" in str(error), flush=True)
    await items.aclose()
    print(closed == [os.getpid()], flush=True)
one, two = asyncio.run(begin()), asyncio.run(begin())
pid = os.fork()
if not pid:
    del two
    gc.collect()
    print(closed, flush=True)
    asyncio.run(go_on(one))
    os._exit(0)
print(os.waitpid(pid, 0)[1])
"""
    assert ["[]", "True", "True", "0"] == output_of(code)


def test_steps_below_a_loop_that_leaves_its_thread_free() -> None:
    """The thread that runs a ThreadSensitiveEventLoop makes the items, and counts as waiting in each step."""
    rows = Rows()
    threads: list[Any] = []

    async def inner() -> None:
        threads.append(await sync_to_async(me)())

    def items() -> Iterator[int]:
        async_to_sync(inner)()
        yield from rows()

    async def main() -> list[int]:
        return [item async for item in sync_to_async_iterator(items())]

    loop = ThreadSensitiveEventLoop()
    try:
        assert [0, 1, 2] == loop.run_until_complete(main())
    finally:
        loop.close()
    assert [me()] == rows.began == rows.closed == threads


def test_single_thread_context_and_steps() -> None:
    rows = Rows()

    async def main() -> list[int]:
        return [item async for item in sync_to_async_iterator(rows())]

    with AsyncSingleThreadContext():
        assert [0, 1, 2] == async_to_sync(main)()
    assert [me()] == rows.closed
