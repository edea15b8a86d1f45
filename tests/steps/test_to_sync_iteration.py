"""``async_to_sync_iterator``: one task and one loop, contexts, closing, errors, read-ahead."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import inspect
import os
import signal
import sys
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from asgiref import local, sync
from asgiref._bridge import loops, register
from asgiref._bridge.builds import FREE_THREADED
from asgiref._steps import threads as steps_threads
from asgiref._steps import to_sync_iteration
from asgiref.local import Local
from asgiref.sync import (
    AsyncSingleThreadContext,
    AsyncToSync,
    SyncToAsync,
    ThreadSensitiveContext,
    async_to_sync,
    async_to_sync_iterator,
    bridge_calls,
    sync_to_async,
    sync_to_async_iterator,
)

from ..helpers import LIMIT, Thread, collect_until, let_idle_threads_run, no_garbage, output_of, wait_for

me = threading.get_ident


class Lines:
    """An asynchronous generator that records in which tasks it runs; it may wait at an item for an event."""

    def __init__(self, count: int = 3) -> None:
        self.count = count
        self.tasks: list[asyncio.Task[Any] | None] = []
        self.loops: list[asyncio.AbstractEventLoop] = []
        self.closed: list[asyncio.Task[Any] | None] = []
        self.is_closed = threading.Event()
        self.waits_at = -1
        self.waits = threading.Event()
        self.cancelled: list[BaseException] = []

    async def __call__(self) -> AsyncIterator[int]:
        try:
            for i in range(self.count):
                self.tasks.append(asyncio.current_task())
                self.loops.append(asyncio.get_running_loop())
                if i == self.waits_at:
                    self.waits.set()
                    await asyncio.Event().wait()
                await asyncio.sleep(0)
                yield i
        except asyncio.CancelledError as error:
            self.cancelled.append(error)
            raise
        finally:
            self.closed.append(asyncio.current_task())
            self.is_closed.set()


def iteration_of(items: Any) -> Any:
    return items._iteration


# Items and the end


def test_items_come_in_order_and_the_end_is_final() -> None:
    items = async_to_sync_iterator(Lines()())
    assert items is iter(items)
    assert [0, 1, 2] == list(items)
    assert [] == list(items)
    with pytest.raises(StopIteration):
        next(items)
    items.close()
    items.close()


def test_steps_and_closing_are_in_one_task_whose_loop_ends_with_the_iteration() -> None:
    lines = Lines()
    with contextlib.closing(async_to_sync_iterator(lines())) as items:
        assert 0 == next(items)
        assert lines.loops[0].is_running()
        assert 1 == next(items)
    assert lines.loops[0].is_closed()
    assert 1 == len({*lines.tasks, *lines.closed})
    with pytest.raises(StopIteration):
        next(items)


def test_loop_of_its_own_has_ended_before_the_last_step_returns() -> None:
    lines = Lines()
    assert [0, 1, 2] == list(async_to_sync_iterator(lines()))
    assert lines.loops[0].is_closed()


def test_loop_of_its_own_cancels_and_awaits_what_the_generator_has_started() -> None:
    ended: list[int] = []

    async def background() -> None:
        try:
            await asyncio.sleep(LIMIT)
        finally:
            ended.append(await sync_to_async(me)())

    tasks = []

    async def lines() -> AsyncIterator[int]:
        tasks.append(asyncio.create_task(background()))
        await asyncio.sleep(0)
        yield 1

    assert [1] == list(async_to_sync_iterator(lines()))
    assert [me()] == ended


def test_error_of_ending_the_loop_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    new_event_loop = asyncio.new_event_loop

    def failing_loop() -> asyncio.AbstractEventLoop:
        loop = new_event_loop()
        close = loop.close

        def fail() -> None:
            close()
            raise LookupError("of the loop")

        loop.close = fail  # type: ignore[method-assign]
        return loop

    monkeypatch.setattr(asyncio, "new_event_loop", failing_loop)
    items = async_to_sync_iterator(Lines(1)())
    assert 0 == next(items)
    with pytest.raises(LookupError, match="of the loop"):
        next(items)


async def test_home_loop_is_used() -> None:
    lines = Lines()
    assert [0, 1, 2] == await sync_to_async(lambda: list(async_to_sync_iterator(lines())))()
    assert {asyncio.get_running_loop()} == set(lines.loops)


async def test_item_is_taken_while_an_eager_task_is_still_being_made() -> None:
    """The first step ends within ``create_task()``, which returns only after the thread has looked at the task."""
    is_taken = threading.Event()

    async def threads() -> AsyncIterator[int]:
        yield 0
        wait_for(is_taken)
        yield await sync_to_async(me)()

    def consume() -> None:
        with contextlib.closing(async_to_sync_iterator(threads(), read_ahead=1)) as items:
            assert 0 == next(items)
            is_taken.set()
            assert me() == next(items)
            assert [] == list(items)

    await sync_to_async(consume, thread_sensitive=False)()


async def test_debug_mode_of_the_home_loop() -> None:
    loop = asyncio.get_running_loop()
    loop.set_debug(True)
    loop.slow_callback_duration = LIMIT
    assert [0, 1, 2] == await sync_to_async(lambda: list(async_to_sync_iterator(Lines()())))()


def test_loop_of_the_block_is_used() -> None:
    async def loop() -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    lines = Lines()
    with AsyncSingleThreadContext():
        expected = async_to_sync(loop)()
        assert [0, 1, 2] == list(async_to_sync_iterator(lines()))
        assert expected.is_running()
    assert {expected} == set(lines.loops)


def test_calls_between_the_steps_have_loops_of_their_own() -> None:
    async def loop() -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    lines = Lines()
    others = [async_to_sync(loop)() for _ in async_to_sync_iterator(lines())]
    assert not {*others} & {*lines.loops}


def test_break_closes_nothing_while_a_reference_is_kept() -> None:
    lines = Lines()
    items = async_to_sync_iterator(lines())
    for item in items:
        assert 0 == item
        break
    assert [] == lines.closed
    assert [1, 2] == list(items)


def test_dropped_iterator_is_closed_in_its_task_and_nobody_waits() -> None:
    """The cleanup cannot end before this thread has continued."""
    goes_on = threading.Event()
    closed: list[bool] = []
    tasks: list[Any] = []

    async def lines() -> AsyncIterator[int]:
        tasks.append(asyncio.current_task())
        try:
            yield 1
        finally:
            closed.append(await asyncio.to_thread(goes_on.wait, LIMIT) and asyncio.current_task() is tasks[0])

    for item in async_to_sync_iterator(lines()):
        assert 1 == item
        break
    gc.collect()
    assert [] == closed
    goes_on.set()
    collect_until(lambda: closed)
    assert [True] == closed
    collect_until(lambda: tasks[0].get_loop().is_closed())


async def test_dropped_iterator_is_closed_on_the_home_loop() -> None:
    lines = Lines()

    def look() -> None:
        for _ in async_to_sync_iterator(lines()):
            break
        gc.collect()

    await sync_to_async(look)()
    while not lines.closed:
        gc.collect()
        await asyncio.sleep(0.001)
    assert 1 == len({*lines.tasks, *lines.closed})


def test_finalizer_waits_for_no_lock_of_kept_loops() -> None:
    """A thread holds that lock while another one runs the finalizer, and may wait for a lock of the other."""
    lines = Lines()
    items = [async_to_sync_iterator(lines())]
    next(items[0])
    taken, release = threading.Event(), threading.Event()

    def hold() -> None:
        with loops.lock:
            taken.set()
            wait_for(release)

    def drop() -> None:
        items.clear()
        gc.collect()

    holder = Thread(hold)
    wait_for(taken)
    try:
        Thread(drop).get()
    finally:
        release.set()
    holder.get()
    wait_for(lines.is_closed)


def test_iterator_in_a_circle_with_its_generator_is_kept_until_it_is_closed() -> None:
    closed = []

    class Circle:
        items: Any

        async def lines(self) -> AsyncIterator[int]:
            try:
                yield 1
                yield 2
            finally:
                closed.append(self.items is not None)

    circle = Circle()
    circle.items = async_to_sync_iterator(circle.lines())
    assert 1 == next(circle.items)
    reference = weakref.ref(circle)
    del circle
    gc.collect()
    assert [] == closed
    kept = reference()
    assert kept is not None
    kept.items.close()
    assert [True] == closed


def test_iterator_that_was_never_begun_is_closed_if_it_may_have_something_to_close() -> None:
    closed: list[str] = []

    class Stream:
        def __aiter__(self) -> AsyncIterator[int]:
            return self

        async def __anext__(self) -> int:
            raise AssertionError

        async def aclose(self) -> None:
            closed.append(type(asyncio.get_running_loop()).__name__)

    class Streams:
        def __aiter__(self) -> AsyncIterator[int]:
            raise AssertionError

    items = async_to_sync_iterator(Stream())
    items.close()
    items.close()
    assert 1 == len(closed)
    assert [] == list(items)
    never = async_to_sync_iterator(Streams())
    never.close()
    assert [] == list(never)
    made = async_to_sync_iterator(Streams.__aiter__)(Streams())
    made.close()
    assert [] == list(made)


def test_end_of_the_iteration_closes() -> None:
    closed: list[Any] = []

    class Stream:
        def __aiter__(self) -> AsyncIterator[int]:
            return self

        async def __anext__(self) -> int:
            raise StopAsyncIteration

        async def aclose(self) -> None:
            closed.append(asyncio.current_task())

    assert [] == list(async_to_sync_iterator(Stream()))
    assert 1 == len(closed)


# Threads


def test_sync_code_runs_on_the_consumer_thread() -> None:
    @async_to_sync_iterator
    async def lines() -> AsyncIterator[int]:
        yield await sync_to_async(me)()
        yield await sync_to_async(async_to_sync(sync_to_async(me)))()

    assert [me(), me()] == list(lines())


def test_sync_code_that_is_called_between_the_steps_waits_for_the_next() -> None:
    """A task of the generator makes the call after the first step has ended, and before the second has started."""
    called = threading.Event()
    threads: list[int] = []

    async def call() -> None:
        await began.wait()
        asyncio.get_running_loop().call_soon(called.set)
        threads.append(await sync_to_async(me)())
        ran.set()

    began, ran = asyncio.Event(), asyncio.Event()

    async def lines() -> AsyncIterator[int]:
        async with asyncio.TaskGroup() as group:
            group.create_task(call())
            asyncio.get_running_loop().call_soon(began.set)
            yield 1
            await ran.wait()
            yield 2

    items = async_to_sync_iterator(lines())
    assert 1 == next(items)
    wait_for(called)
    assert [] == threads
    assert 2 == next(items)
    assert [me()] == threads
    assert [] == list(items)


def test_sync_code_left_over_by_a_dropped_iterator_runs_elsewhere() -> None:
    called = threading.Event()
    threads: list[int] = []

    async def lines() -> AsyncIterator[int]:
        async def call() -> None:
            asyncio.get_running_loop().call_soon(called.set)
            threads.append(await sync_to_async(me)())

        task = asyncio.create_task(call())
        try:
            yield 1
        finally:
            await task

    items = async_to_sync_iterator(lines())
    assert 1 == next(items)
    wait_for(called)
    assert [] == threads
    del items
    collect_until(lambda: threads)
    assert me() != threads[0]


def test_consumer_may_be_another_thread_each_time() -> None:
    @async_to_sync_iterator
    async def lines() -> AsyncIterator[int]:
        while True:
            yield await sync_to_async(me)()

    with contextlib.closing(lines()) as items:
        assert me() == next(items)
        assert Thread(lambda: next(items) == me()).get()
        assert me() == next(items)


async def test_threads_of_an_executor_lend_themselves_in_a_step() -> None:
    """The one thread of the executor waits for the generator, which waits for that executor."""
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))

    async def lines() -> AsyncIterator[int]:
        for _ in range(2):
            yield await sync_to_async(me, thread_sensitive=False)()

    idents = await sync_to_async(lambda: [me(), *async_to_sync_iterator(lines())], thread_sensitive=False)()
    assert 1 == len({*idents})


def test_thread_sensitive_context_across_a_yield() -> None:
    with ThreadPoolExecutor(1) as pool:
        expected = pool.submit(me).result()

        async def lines() -> AsyncIterator[int]:
            async with ThreadSensitiveContext(executor=pool):
                yield await sync_to_async(me)()
                yield await sync_to_async(me)()
            yield await sync_to_async(me)()

        assert [expected, expected, me()] == list(async_to_sync_iterator(lines()))
    assert async_to_sync(sync_to_async(me))() == me()


def test_both_directions_nested() -> None:
    @sync_to_async_iterator
    def inner() -> Iterator[int]:
        yield me()
        yield me()

    @async_to_sync_iterator
    async def outer() -> AsyncIterator[int]:
        async for ident in inner():
            yield ident

    assert [me(), me()] == list(outer())


# Contexts

number: contextvars.ContextVar[int] = contextvars.ContextVar("number")
other: contextvars.ContextVar[int] = contextvars.ContextVar("other")


@pytest.mark.parametrize("read_ahead", [0, 3])
def test_context_variables_go_along_and_changes_come_back(read_ahead: int) -> None:
    async def lines() -> AsyncIterator[int]:
        assert 1 == number.get()
        token = number.set(2)
        yield 1
        number.reset(token)
        yield number.get()
        other.set(5)
        yield 3

    def look() -> None:
        number.set(1)
        items = async_to_sync_iterator(lines(), read_ahead=read_ahead)
        assert (1, 2) == (next(items), number.get())
        assert (1, 1) == (next(items), number.get())
        assert other.get(None) is None
        assert (3, 5) == (next(items), other.get())
        assert [] == list(items)

    contextvars.Context().run(look)


def test_steps_see_what_the_consumer_has_changed_since() -> None:
    storage = Local()

    async def lines() -> AsyncIterator[tuple[int, Any]]:
        while True:
            yield number.get(0), getattr(storage, "value", None)

    def look() -> None:
        items = async_to_sync_iterator(lines())
        assert (0, None) == next(items)
        token = number.set(7)
        storage.value = "here"
        assert (7, "here") == next(items)
        number.reset(token)
        assert (0, "here") == next(items)
        items.close()

    contextvars.Context().run(look)


def test_a_generator_takes_a_variable_away_that_it_has_set() -> None:
    async def lines() -> AsyncIterator[int]:
        token = number.set(1)
        yield 1
        number.reset(token)
        yield 2

    def look() -> None:
        items = async_to_sync_iterator(lines())
        assert (1, 1) == (next(items), number.get(None))
        assert (2, None) == (next(items), number.get(None))
        items.close()

    contextvars.Context().run(look)


@pytest.mark.parametrize("read_ahead", [0, 3])
async def test_a_variable_comes_back_and_nothing_else(read_ahead: int) -> None:
    async def lines() -> AsyncIterator[int]:
        number.set(2)
        yield 1

    def look() -> None:
        number.set(1)
        before = contextvars.copy_context()
        items = async_to_sync_iterator(lines(), read_ahead=read_ahead)
        assert [1] == list(items)
        assert 2 == number.get()
        number.set(1)
        after = contextvars.copy_context()
        assert {variable.name: id(value) for variable, value in before.items()} == {
            variable.name: id(value) for variable, value in after.items()
        }

    await sync_to_async(look)()


def test_changes_come_back_with_an_error() -> None:
    async def lines() -> AsyncIterator[int]:
        number.set(9)
        raise LookupError
        yield 1

    def look() -> None:
        with pytest.raises(LookupError):
            next(async_to_sync_iterator(lines()))
        assert 9 == number.get()

    contextvars.Context().run(look)


def test_consumer_below_another_call_keeps_its_own_mailbox() -> None:
    """The mailbox of the steps is not passed back as a change of a context variable."""

    async def lines() -> AsyncIterator[int]:
        number.set(number.get(0) + 1)
        yield await sync_to_async(me)()

    def one() -> Any:
        return next(items)

    async def main() -> list[int]:
        return [await sync_to_async(one)(), await sync_to_async(me)()]

    items = async_to_sync_iterator(lines())
    assert [me(), me()] == async_to_sync(main)()
    items.close()


def test_exception_being_handled_is_seen() -> None:
    async def lines() -> AsyncIterator[BaseException | None]:
        while True:
            yield sys.exc_info()[1]

    items = async_to_sync_iterator(lines())
    assert next(items) is None
    try:
        raise LookupError
    except LookupError as error:
        handled = error
        # A generator sees the exception that is being handled where it was resumed.
        assert next(items) is handled
    assert next(items) is None
    items.close()


def test_values_go_along_where_threads_inherit_contexts(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with the option of Python 3.14. The class of a ``Local`` is chosen when the ``Local`` is created."""
    monkeypatch.setattr(local, "THREADS_INHERIT", True)
    storage = Local()

    async def lines() -> AsyncIterator[int]:
        for _ in range(3):
            value = storage.value
            storage.value = value + 1
            assert value + 1 == await sync_to_async(lambda: storage.value)()
            yield value

    def look() -> None:
        storage.value = 1
        items = async_to_sync_iterator(lines())
        assert (1, 2) == (next(items), storage.value)
        storage.value = 7
        assert (7, 8) == (next(items), storage.value)
        assert (8, 9) == (next(items), storage.value)
        assert [] == list(items)

    contextvars.Context().run(look)


# Errors


def test_error_of_a_generator_ends_it_and_its_loop() -> None:
    lines_loop: list[asyncio.AbstractEventLoop] = []

    async def lines() -> AsyncIterator[int]:
        lines_loop.append(asyncio.get_running_loop())
        yield 1
        raise LookupError("of the generator")

    items = async_to_sync_iterator(lines())
    assert 1 == next(items)
    with pytest.raises(LookupError, match="of the generator"):
        next(items)
    assert lines_loop[0].is_closed()
    assert [] == list(items)


def test_other_iterators_go_on_after_an_error() -> None:
    class Stream:
        count = 0

        def __aiter__(self) -> AsyncIterator[int]:
            return self

        async def __anext__(self) -> int:
            self.count += 1
            if self.count == 1:
                raise LookupError
            return self.count

    for read_ahead in (0, 2):
        items = async_to_sync_iterator(Stream(), read_ahead=read_ahead)
        with pytest.raises(LookupError):
            next(items)
        assert 2 == next(items)
        items.close()


def test_error_of_closing_comes_out_of_close() -> None:
    async def lines() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            raise LookupError("of the closing")

    items = async_to_sync_iterator(lines())
    next(items)
    with pytest.raises(LookupError, match="of the closing"):
        items.close()
    items.close()
    assert [] == list(items)


async def test_error_of_closing_that_nobody_awaits_goes_to_the_exception_handler() -> None:
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context))

    async def lines() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            raise LookupError("of the closing")

    def look() -> None:
        for _ in async_to_sync_iterator(lines()):
            break
        gc.collect()

    await sync_to_async(look)()
    while not told:
        gc.collect()
        await asyncio.sleep(0.001)
    assert isinstance(told[0]["exception"], LookupError)
    assert "lines" in told[0]["message"]


def test_ends_of_the_wrong_kind_become_runtime_errors() -> None:
    class Stream:
        ends = 0

        def __init__(self, error: BaseException | None, of_closing: BaseException | None = None) -> None:
            self.error, self.of_closing = error, of_closing

        def __aiter__(self) -> AsyncIterator[int]:
            if self.error is not None:
                raise self.error
            return self

        async def __anext__(self) -> int:
            return 1

        async def aclose(self) -> None:
            if self.of_closing is not None:
                raise self.of_closing

    for error in (StopAsyncIteration("one"), StopIteration("one")):
        items = async_to_sync_iterator(Stream(error))
        with pytest.raises(RuntimeError, match="raised"):
            next(items)
        assert [] == list(items)
        items.close()
    items = async_to_sync_iterator(Stream(None, StopAsyncIteration("two")))
    assert 1 == next(items)
    with pytest.raises(RuntimeError, match=r"aclose\(\) of .*Stream raised StopAsyncIteration"):
        items.close()


def test_wrong_kinds_of_objects_are_refused() -> None:
    with pytest.raises(TypeError, match="is synchronous"):
        async_to_sync_iterator([1])  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="needs an asynchronous iterable, but the argument is 1"):
        async_to_sync_iterator(1)  # type: ignore[call-overload]

    def rows() -> Iterator[int]:
        yield 1

    async def coroutine() -> AsyncIterator[int]:
        raise AssertionError

    with pytest.raises(TypeError, match="needs an asynchronous generator function"):
        async_to_sync_iterator(rows)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="is synchronous"):
        async_to_sync_iterator(rows())  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="returns a coroutine; call it with async_to_sync"):
        async_to_sync_iterator(coroutine)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="was given read_ahead=-1"):
        async_to_sync_iterator(Lines()(), read_ahead=-1)
    with pytest.raises(ValueError, match="was given read_ahead=-1"):
        async_to_sync_iterator(read_ahead=-1)
    items: Any = async_to_sync_iterator(lambda: [1])()  # type: ignore[arg-type, return-value]
    with pytest.raises(TypeError, match=r"what .*lambda.* returned is synchronous"):
        next(items)
    assert [] == list(items)
    with pytest.raises(TypeError, match="returned is <coroutine"):
        next(async_to_sync_iterator(lambda: coroutine())())  # type: ignore[arg-type, return-value]


def test_constructor_that_failed_is_finalized_in_silence() -> None:
    kind = type(async_to_sync_iterator(Lines()()))
    kind.__new__(kind).__del__()


async def test_steps_in_the_thread_of_a_loop_are_refused() -> None:
    items = async_to_sync_iterator(Lines()())
    with pytest.raises(RuntimeError, match=r"Lines.* in a thread that runs an event loop"):
        next(items)
    with pytest.raises(RuntimeError, match="in a thread that runs an event loop"):
        items.close()


def test_generator_that_asks_for_its_own_next_item_gets_an_error() -> None:
    errors: list[BaseException] = []

    async def lines() -> AsyncIterator[int]:
        for ask in (sync_to_async(lambda: next(items)), sync_to_async(lambda: items.close())):
            try:
                await ask()
            except RuntimeError as error:
                errors.append(error)
        try:
            next(items)
        except RuntimeError as error:
            errors.append(error)
        yield 1

    items = async_to_sync_iterator(lines())
    assert [1] == list(items)
    assert ["is being made" in str(error) for error in errors] == [True, True, False]


def test_two_threads_that_ask_at_once() -> None:
    lines = Lines()
    lines.waits_at = 0
    items = async_to_sync_iterator(lines())

    def ask() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            next(items)

    thread = Thread(ask)
    wait_for(lines.waits)
    with pytest.raises(RuntimeError, match="by another thread"):
        next(items)
    loop = lines.loops[0]
    loop.call_soon_threadsafe(lines.tasks[0].cancel)  # type: ignore[union-attr]
    thread.get()


def test_task_factory_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    new_event_loop = asyncio.new_event_loop

    def failing_loop() -> asyncio.AbstractEventLoop:
        loop = new_event_loop()

        def fail(*_: Any, **options: Any) -> Any:
            loop.set_task_factory(None)
            raise LookupError("of the factory")

        loop.set_task_factory(fail)
        return loop

    items = async_to_sync_iterator(Lines()())
    with monkeypatch.context() as patch:
        patch.setattr(asyncio, "new_event_loop", failing_loop)
        with pytest.raises(LookupError, match="of the factory"):
            next(items)
    assert [0, 1, 2] == list(items)


def test_replaced_main_wrap_that_does_nothing_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing(self: Any, call_result: Any, exc_info: Any, calls: Any, context: Any, awaitable: Any) -> None:
        awaitable.close()

    items = async_to_sync_iterator(Lines()())
    next(items)
    with monkeypatch.context() as patch:
        patch.setattr(AsyncToSync, "main_wrap", nothing)
        with pytest.raises(RuntimeError, match="main_wrap"):
            next(items)
    items.close()


# Cancellation


async def test_cancellation_of_the_enclosing_call_goes_to_the_generator() -> None:
    lines = Lines()
    lines.waits_at = 1
    left: list[Any] = []

    def consume() -> None:
        items = async_to_sync_iterator(lines())
        next(items)
        try:
            next(items)
        finally:
            left.append(list(items))

    task = asyncio.create_task(sync_to_async(consume)())
    await asyncio.to_thread(wait_for, lines.waits)
    task.cancel("enough")
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ("enough",) == lines.cancelled[0].args
    assert [[]] == left


async def test_generator_that_absorbs_a_cancellation_goes_on() -> None:
    waits = asyncio.Event()

    async def lines() -> AsyncIterator[int]:
        try:
            waits.set()
            await asyncio.sleep(LIMIT)
        except asyncio.CancelledError:
            yield 1
        yield 2

    task = asyncio.create_task(sync_to_async(lambda: list(async_to_sync_iterator(lines())))())
    await waits.wait()
    task.cancel()
    assert [1, 2] == await task


async def test_cancellation_that_comes_when_the_step_has_ended_does_not_reach_the_task() -> None:
    """The step ends, and the call above cancels its outcome before the thread has seen the end."""
    lines = Lines()
    taken: list[Any] = []

    def consume() -> None:
        with contextlib.closing(async_to_sync_iterator(lines())) as items:
            next(items)
            iteration = iteration_of(items)
            accept = iteration.accept

            def note_and_accept(step: Any, loop: asyncio.AbstractEventLoop) -> Any:
                taken.append(step)
                return accept(step, loop)

            iteration.accept = note_and_accept
            next(items)
            step = taken[0]
            # ``LoopCall.cancel`` does this on another thread that saw the outcome before it was settled.
            done = threading.Event()

            def cancel() -> None:
                taken.append(step._cancel_task())
                done.set()

            step._loop.call_soon_threadsafe(cancel)
            wait_for(done)
            assert 2 == next(items)

    await sync_to_async(consume)()
    assert False is taken[1]
    assert [] == lines.cancelled


def test_timeout_across_a_yield_takes_effect_between_the_steps() -> None:
    ended = threading.Event()

    async def lines() -> AsyncIterator[int]:
        try:
            async with asyncio.timeout(0.01):
                yield 1
                yield 2
        finally:
            ended.set()

    items = async_to_sync_iterator(lines())
    assert 1 == next(items)
    wait_for(ended)
    with pytest.raises(TimeoutError):
        next(items)
    assert [] == list(items)
    ended.clear()
    items = async_to_sync_iterator(lines())
    assert 1 == next(items)
    wait_for(ended)
    with pytest.raises(TimeoutError):
        items.close()
    items.close()


def test_failing_task_group_across_a_yield_takes_effect_between_the_steps() -> None:
    ended = threading.Event()

    async def fail() -> None:
        raise LookupError

    async def lines() -> AsyncIterator[int]:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(fail())
                yield 1
        finally:
            ended.set()

    items = async_to_sync_iterator(lines())
    assert 1 == next(items)
    wait_for(ended)
    with pytest.raises(ExceptionGroup):
        next(items)
    with pytest.raises(StopIteration):
        next(items)


@pytest.mark.parametrize("read_ahead", [0, 2])
def test_end_of_the_block_closes_a_generator_that_is_half_way(read_ahead: int) -> None:
    lines = Lines(100)
    with AsyncSingleThreadContext():
        items = async_to_sync_iterator(lines(), read_ahead=read_ahead)
        assert 0 == next(items)
    assert 1 == len({*lines.tasks, *lines.closed})
    taken: list[int] = []
    with pytest.raises(asyncio.CancelledError):
        taken += items  # items that were read ahead come first
        taken.extend(items)
    assert [] == list(items)


async def test_end_of_the_home_loop_ends_an_iteration_that_a_thread_still_has() -> None:
    """The loop ends between two steps. Its end does not wait for the thread, and the thread does not hang."""
    lines = Lines()
    half_way, goes_on = threading.Event(), threading.Event()
    raised: list[BaseException] = []

    def consume() -> None:
        items = async_to_sync_iterator(lines())
        next(items)
        half_way.set()
        wait_for(goes_on)
        try:
            next(items)
        except asyncio.CancelledError as error:
            raised.append(error)
        raised.extend(items)  # type: ignore[arg-type]

    async def main() -> None:
        task = asyncio.create_task(sync_to_async(consume, thread_sensitive=False, executor=pool)())
        await asyncio.to_thread(wait_for, half_way)
        task.cancel()

    with ThreadPoolExecutor(1) as pool:
        await asyncio.to_thread(asyncio.run, main())
        assert lines.closed
        goes_on.set()
    assert 1 == len(raised)


def test_generator_that_absorbs_a_cancellation_between_the_steps_goes_on() -> None:
    absorbed = threading.Event()

    async def lines() -> AsyncIterator[Any]:
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().call_soon(task.cancel)
        try:
            yield 1
        except asyncio.CancelledError:
            thread = await sync_to_async(me)()
            absorbed.set()
            yield thread != consumer
        yield await sync_to_async(me)() == consumer

    consumer = me()
    items = async_to_sync_iterator(lines())
    assert 1 == next(items)
    wait_for(absorbed)
    assert [True, True] == list(items)


def test_generator_that_returns_at_a_cancellation_between_the_steps_is_at_its_end() -> None:
    absorbed = threading.Event()

    async def lines() -> AsyncIterator[int]:
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().call_soon(task.cancel)
        try:
            yield 1
        except asyncio.CancelledError:
            absorbed.set()

    items = async_to_sync_iterator(lines())
    assert 1 == next(items)
    wait_for(absorbed)
    assert [] == list(items)


def test_other_iterators_are_closed_by_a_cancellation_between_the_steps() -> None:
    closed = threading.Event()

    class Stream:
        fails = False

        def __aiter__(self) -> AsyncIterator[int]:
            return self

        async def __anext__(self) -> int:
            task = asyncio.current_task()
            assert task is not None
            asyncio.get_running_loop().call_soon(task.cancel)
            return 1

        async def aclose(self) -> None:
            closed.set()
            if self.fails:
                raise LookupError

    items = async_to_sync_iterator(Stream())
    assert 1 == next(items)
    wait_for(closed)
    with pytest.raises(asyncio.CancelledError):
        next(items)
    stream = Stream()
    stream.fails = True
    closed.clear()
    items = async_to_sync_iterator(stream)
    assert 1 == next(items)
    wait_for(closed)
    with pytest.raises(LookupError):
        items.close()


def test_step_that_comes_while_the_generator_still_cleans_up_waits_for_what_comes_of_it() -> None:
    """1. The task is cancelled between two steps. 2. A thread requests an item. 3. The cleanup ends."""
    cleans_up, go_on = threading.Event(), asyncio.Event()
    running: list[Any] = []

    async def lines() -> AsyncIterator[int]:
        running.append(asyncio.current_task())
        try:
            yield 1
        finally:
            cleans_up.set()
            await go_on.wait()

    items = async_to_sync_iterator(lines())
    assert 1 == next(items)
    loop = running[0].get_loop()
    loop.call_soon_threadsafe(running[0].cancel)
    wait_for(cleans_up)
    thread = Thread(next, items)
    collect_until(lambda: not thread.is_alive() or bridge_calls())
    loop.call_soon_threadsafe(go_on.set)
    with pytest.raises(asyncio.CancelledError):
        thread.get()
    assert [] == list(items)


def test_step_that_comes_when_the_task_has_just_ended_looks_again() -> None:
    """The thread requests an item; then a cancellation ends the task, before the loop runs the step."""
    lines = Lines()
    with AsyncSingleThreadContext():
        items = async_to_sync_iterator(lines())
        next(items)
        iteration = iteration_of(items)
        accept = iteration.accept

        def accept_late(step: Any, loop: asyncio.AbstractEventLoop) -> Any:
            del iteration.accept
            iteration.task.cancel()
            iteration.task.add_done_callback(lambda task: accept(step, loop))
            return None

        iteration.accept = accept_late
        with pytest.raises(asyncio.CancelledError):
            next(items)
        assert [] == list(items)
        items = async_to_sync_iterator(Lines()())
        next(items)
        iteration = iteration_of(items)
        accept = iteration.accept
        iteration.accept = accept_late
        items.close()


def test_step_and_cancellation_in_the_same_turn_of_the_loop() -> None:
    """The task is cancelled, and its cancellation is scheduled; before that, the loop runs the step."""
    lines = Lines()
    items = async_to_sync_iterator(lines())
    next(items)
    iteration = iteration_of(items)
    accept = iteration.accept

    def cancel_and_accept(step: Any, loop: asyncio.AbstractEventLoop) -> Any:
        iteration.task.cancel()
        return accept(step, loop)

    iteration.accept = cancel_and_accept
    with pytest.raises(asyncio.CancelledError):
        next(items)
    assert [] == list(items)


def test_task_that_was_ended_by_an_interrupt_of_its_own() -> None:
    """A signal may raise KeyboardInterrupt in the thread of the loop while the loop runs the task."""
    with AsyncSingleThreadContext():
        items = async_to_sync_iterator(Lines()())
        next(items)
        iteration = iteration_of(items)
        done = threading.Event()

        def end() -> None:
            coroutine = iteration.task.get_coro()
            coroutine.close()
            iteration.task.cancel()
            iteration.task.add_done_callback(lambda task: done.set())

        iteration.loop.call_soon_threadsafe(end)
        wait_for(done)
        for _ in range(2):
            with pytest.raises(RuntimeError, match=r"cannot continue: its task, .*, has ended between two steps"):
                next(items)
        items.close()


async def test_call_that_is_cancelled_while_the_home_loop_does_not_begin_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """1. The home loop does not start the step in time, so the step is taken back. 2. The call above is cancelled."""
    lines = Lines()
    iterations: list[Any] = []

    def consume() -> None:
        items = async_to_sync_iterator(lines())
        iteration = iteration_of(items)

        def take_back_and_cancel(step: Any, home: Any, outcome: Any, mailbox: Any) -> None:
            assert step.take_back()
            outcome.call = step
            outcome.cancelled = True

        iteration._hand_over_and_serve = take_back_and_cancel
        iterations.append(iteration)
        next(items)

    with pytest.raises(asyncio.CancelledError):
        await sync_to_async(consume)()
    assert [] == lines.tasks
    assert iterations[0].task is None


def test_end_that_comes_while_the_thread_asks_for_an_item(monkeypatch: pytest.MonkeyPatch) -> None:
    """1. A cancellation ends the task.

    2. The thread takes its error, and requests an item. 3. The task records its end.
    """
    note = to_sync_iteration._Iteration._note
    noted, asked = threading.Event(), threading.Event()
    tasks: list[Any] = []

    async def lines() -> AsyncIterator[int]:
        tasks.append(asyncio.current_task())
        yield 1
        yield 2

    def note_and_wait(self: Any, *arguments: Any) -> None:
        note(self, *arguments)
        noted.set()
        wait_for(asked)

    def ask(*arguments: Any, **options: Any) -> Any:
        asked.set()
        return step(*arguments, **options)

    items = async_to_sync_iterator(lines())
    assert 1 == next(items)
    monkeypatch.setattr(to_sync_iteration._Iteration, "_note", note_and_wait)
    step = iteration_of(items).step
    monkeypatch.setattr(iteration_of(items), "step", ask)
    tasks[0].get_loop().call_soon_threadsafe(tasks[0].cancel)
    wait_for(noted)
    with pytest.raises(asyncio.CancelledError):
        next(items)
    assert [] == list(items)
    assert asked.is_set()


def test_mailbox_that_is_stopped_for_an_earlier_step_is_served_again() -> None:
    """A cancellation of a step settles its outcome, and stops the mailbox when the next step may have started."""
    items: Any

    async def lines() -> AsyncIterator[int]:
        yield 1
        iteration_of(items)._mailbox.stop()
        yield await sync_to_async(me)()

    items = async_to_sync_iterator(lines())
    assert [1, me()] == list(items)


def test_closing_that_nobody_awaits_may_be_cancelled() -> None:
    cancelled = threading.Event()

    async def lines() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            task = asyncio.current_task()
            assert task is not None
            asyncio.get_running_loop().call_soon(task.cancel)
            try:
                await asyncio.sleep(LIMIT)
            finally:
                cancelled.set()

    items = async_to_sync_iterator(lines())
    next(items)
    del items
    gc.collect()
    wait_for(cancelled)


async def test_error_of_what_was_made_ahead_for_a_dropped_iterator_goes_to_the_exception_handler() -> None:
    told: list[dict[str, Any]] = []
    waits = threading.Event()
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context))

    async def lines() -> AsyncIterator[int]:
        yield 1
        try:
            waits.set()
            await asyncio.sleep(LIMIT)
        finally:
            raise LookupError
        yield 2

    def look() -> None:
        for _ in async_to_sync_iterator(lines(), read_ahead=2):
            wait_for(waits)
            break
        gc.collect()

    await sync_to_async(look)()
    while not told:
        gc.collect()
        await asyncio.sleep(0.001)
    assert isinstance(told[0]["exception"], LookupError)


# Interrupts


@contextlib.contextmanager
def interrupts(count: int) -> Iterator[list[Callable[[], None]]]:
    """Let SIGINT raise KeyboardInterrupt here; ``send[0]`` sends it from any thread."""
    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield [lambda: signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)]
    finally:
        signal.signal(signal.SIGINT, old)


def test_interrupt_goes_to_the_generator() -> None:
    with interrupts(1) as [send]:

        async def lines() -> AsyncIterator[int]:
            try:
                asyncio.get_running_loop().call_soon(send)
                await asyncio.sleep(LIMIT)
                yield 1
            finally:
                cleaned_up.append(await sync_to_async(me)())

        cleaned_up: list[int] = []
        items = async_to_sync_iterator(lines())
        with pytest.raises(KeyboardInterrupt):
            next(items)
        assert [me()] == cleaned_up
        assert [] == list(items)


def test_second_interrupt_gives_up_waiting_and_the_iterator_is_closed_later() -> None:
    goes_on = threading.Event()
    closed = threading.Event()
    with interrupts(2) as [send]:

        async def lines() -> AsyncIterator[int]:
            try:
                asyncio.get_running_loop().call_soon(send)
                await asyncio.sleep(LIMIT)
                yield 1
            finally:
                send()
                while not goes_on.is_set():
                    with contextlib.suppress(asyncio.CancelledError):
                        await asyncio.sleep(0.001)
                closed.set()

        items = async_to_sync_iterator(lines())
        with pytest.raises(KeyboardInterrupt):
            next(items)
        assert [] == list(items)
        items.close()
        goes_on.set()
        wait_for(closed)


# Stopped and closed loops, forks, the end of the interpreter


def test_home_loop_that_was_closed_in_between() -> None:
    """The loop is closed without cleanup of its tasks."""
    loop = asyncio.new_event_loop()
    lines = Lines()

    def begin() -> Any:
        items = async_to_sync_iterator(lines())
        next(items)
        return items

    items = loop.run_until_complete(sync_to_async(begin)())
    loop.close()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="cannot continue"):
            next(items)
    iteration_of(items).task._log_destroy_pending = False
    items.close = None
    del items
    gc.collect()


def test_home_loop_that_is_stopped_in_between(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sync, "stopped_loop_patience", 0.2)
    loop = asyncio.new_event_loop()

    def begin() -> Any:
        items = async_to_sync_iterator(Lines()())
        next(items)
        return items

    try:
        items = loop.run_until_complete(sync_to_async(begin)())
        with pytest.raises(RuntimeError, match="stopped or closed"):
            Thread(next, items).get()
        # The loop runs again, so the iteration can continue.
        assert [1, 2] == loop.run_until_complete(sync_to_async(list)(items))
    finally:
        loop.close()


def test_first_step_goes_to_another_loop_where_the_home_loop_does_not_begin_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sync, "stopped_loop_start_patience", 0.1)
    lines = Lines()
    goes_on = threading.Event()
    taken: list[Any] = []

    def consume() -> None:
        wait_for(goes_on)
        taken.extend(async_to_sync_iterator(lines()))

    async def main() -> None:
        tasks.append(asyncio.create_task(sync_to_async(consume, thread_sensitive=False, executor=pool)()))
        await asyncio.sleep(0)

    tasks: list[Any] = []
    loop = asyncio.new_event_loop()
    with ThreadPoolExecutor(1) as pool:
        loop.run_until_complete(main())
        goes_on.set()
        collect_until(lambda: taken[2:])
        assert loop not in lines.loops
        loop.run_until_complete(tasks[0])
    loop.close()


@pytest.mark.parametrize("read_ahead", [0, 2])
def test_task_that_is_destroyed_with_its_loop_does_not_resist(read_ahead: int) -> None:
    """The loop is closed while an item is being made; then the garbage collector closes the coroutine of the task."""
    loop = asyncio.new_event_loop()
    ended = threading.Event()
    taken: list[Any] = []

    async def lines() -> AsyncIterator[int]:
        yield 1
        loop.stop()
        await asyncio.Event().wait()

    def iterate() -> None:
        items = async_to_sync_iterator(lines(), read_ahead=read_ahead)
        taken.append(iteration_of(items))
        assert 1 == next(items)
        with pytest.raises(RuntimeError, match="stopped or closed"):
            next(items)
        ended.set()

    async def main() -> None:
        tasks.append(asyncio.create_task(sync_to_async(iterate, thread_sensitive=False, executor=pool)()))
        await asyncio.Event().wait()

    tasks: list[Any] = []
    with ThreadPoolExecutor(1) as pool:
        tasks.append(loop.create_task(main()))
        with pytest.raises(RuntimeError):  # stopped before it was done
            loop.run_until_complete(tasks[0])
        [iteration] = taken
        for task in (iteration.task, *tasks):
            task._log_destroy_pending = False
        loop.close()
        wait_for(ended)
        iteration.task.get_coro().close()
    assert iteration.over
    steps_threads._open.discard(iteration)


def test_iterator_that_is_dropped_in_a_forked_child_is_left_alone() -> None:
    lines = Lines()
    items = async_to_sync_iterator(lines())
    next(items)
    iteration = iteration_of(items)
    generation, iteration._generation = iteration._generation, object()
    del items
    gc.collect()
    assert iteration.task is not None
    assert not iteration.task.done()
    iteration._generation = generation
    iteration.end_unawaited()
    wait_for(lines.is_closed)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_fork() -> None:
    assert ["child: RuntimeError", "child: RuntimeError", "0", "[1, 2]"] == output_of(
        """
async def lines():
    for i in range(3):
        yield i
items = async_to_sync_iterator(lines())
next(items)
pid = os.fork()
if not pid:
    for step in (lambda: next(items), items.close):
        try:
            step()
        except RuntimeError as error:
            assert "before this process was forked" in str(error), error
            print("child:", type(error).__name__, flush=True)
    del items
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
print(list(items))
""",
        "-W",
        "ignore::DeprecationWarning",  # this test is about forks beside threads
    )


@pytest.mark.parametrize("end", ["", "sys.exit()", "items2 = items; del items"])
def test_exit_of_the_process_with_one_half_way(end: str) -> None:
    assert ["0"] == output_of(
        f"""
async def lines():
    try:
        for i in range(3):
            yield i
            await asyncio.sleep(0)
    finally:
        await asyncio.sleep(20)
items = async_to_sync_iterator(lines(), read_ahead=1)
print(next(items))
{end}
"""
    )


def test_atexit_handlers_iterate() -> None:
    assert ["0 True", "1 True", "0 True", "closed"] == output_of(
        """
async def lines():
    try:
        for i in range(2):
            await asyncio.sleep(0.001)
            yield i, await sync_to_async(threading.current_thread)() is threading.main_thread()
    finally:
        await asyncio.sleep(0.001)
def late():
    for i, is_same in async_to_sync_iterator(lines()):
        print(i, is_same)
    items = async_to_sync_iterator(lines(), read_ahead=2)
    print(*next(items))
    items.close()
    print("closed")
atexit.register(late)
"""
    )


def test_loop_on_the_thread_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """As at the end of the interpreter, when Python no longer starts threads."""
    monkeypatch.setattr(loops.KeptLoop, "start", classmethod(lambda cls, mailboxes: None))
    lines = Lines()
    assert [0, 1, 2] == list(async_to_sync_iterator(lines()))
    assert lines.loops[0].is_closed()

    async def sync_code(exits: Callable[[], Any]) -> AsyncIterator[int]:
        yield await sync_to_async(me)()
        await exits()
        yield 2

    def leave() -> None:
        raise SystemExit

    async def at_once() -> None:
        leave()

    async def before_the_next_step() -> None:
        asyncio.get_running_loop().call_soon(leave)

    async def while_it_waits() -> None:
        await before_the_next_step()
        await asyncio.sleep(LIMIT)

    async def as_the_step_ends() -> None:
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        loop.call_soon(future.set_result, None)
        loop.call_soon(loop.call_soon, leave)
        await future

    for exits in (at_once, before_the_next_step, while_it_waits, as_the_step_ends):
        items = async_to_sync_iterator(sync_code(exits))
        assert me() == next(items)
        with pytest.raises(SystemExit):
            while True:
                next(items)
        items.close()
    assert {} == AsyncToSync.loop_thread_executors


# Calls in flight


@pytest.mark.parametrize("is_noted", [False, True])
def test_bridge_calls_shows_a_step_and_no_iteration_between_its_steps(
    is_noted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(register, "KEPT", is_noted or FREE_THREADED)
    looks: list[Any] = []

    @async_to_sync_iterator
    async def lines() -> AsyncIterator[int]:
        yield 1
        await sync_to_async(lambda: looks.append(bridge_calls()))()
        yield 2

    items = lines()
    assert 1 == next(items)
    assert [] == bridge_calls()
    assert 2 == next(items)
    items.close()
    step, inner = looks[0]
    assert ("async_to_sync", "running") == (step.direction, step.state)
    assert step.function.endswith("lines")
    assert step.ident == inner.parent
    names = [frame.name for frame in step.stack]
    assert "test_bridge_calls_shows_a_step_and_no_iteration_between_its_steps" in names
    assert "lines" in names


# Garbage


def test_nothing_stays() -> None:
    async def lines(fails: bool = False) -> AsyncIterator[int]:
        yield await sync_to_async(int)()
        if fails:
            raise LookupError
        yield 2

    def use(read_ahead: int) -> None:
        list(async_to_sync_iterator(lines(), read_ahead=read_ahead))
        with contextlib.suppress(LookupError):
            list(async_to_sync_iterator(lines(True), read_ahead=read_ahead))
        with contextlib.closing(async_to_sync_iterator(lines(), read_ahead=read_ahead)) as items:
            next(items)

    with AsyncSingleThreadContext():
        for read_ahead in (0, 5):
            use(read_ahead)
            with no_garbage():
                use(read_ahead)
    assert set() == steps_threads._open


def test_what_the_iteration_held_is_let_go_of() -> None:
    class Payload:
        pass

    async def lines(payload: Payload) -> AsyncIterator[Payload]:
        yield payload
        yield payload

    payload = Payload()
    reference = weakref.ref(payload)
    with AsyncSingleThreadContext():
        items = async_to_sync_iterator(lines(payload))
        next(items)
        items.close()
        del payload
        let_idle_threads_run()
        collect_until(lambda: reference() is None)


# Decorated functions


def test_decorated_functions() -> None:
    @async_to_sync_iterator
    async def lines(count: int, *, start: int = 0) -> AsyncIterator[int]:
        """Some lines."""
        for i in range(start, count):
            yield i

    assert [1, 2] == list(lines(3, start=1))
    assert ("lines", "Some lines.") == (lines.__name__, lines.__doc__)
    assert "(count: 'int', *, start: 'int' = 0) -> 'AsyncIterator[int]'" == str(inspect.signature(lines))

    class Store:
        @async_to_sync_iterator(read_ahead=2)
        async def rows(self, count: int) -> AsyncIterator[tuple[Any, int]]:
            for i in range(count):
                yield self, i

    store = Store()
    assert [(store, 0), (store, 1)] == list(store.rows(2))

    class Stream:
        def __init__(self, count: int) -> None:
            self.loop = asyncio.get_running_loop()
            self.count = count

        def __aiter__(self) -> AsyncIterator[int]:
            return Lines(self.count)()

    a_class: Any = Stream
    assert [0, 1] == list(async_to_sync_iterator(a_class)(2))


# Read-ahead


@pytest.mark.parametrize("read_ahead", [1, 2, 3, 64])
def test_items_are_read_ahead_in_order(read_ahead: int) -> None:
    assert list(range(500)) == list(async_to_sync_iterator(Lines(500)(), read_ahead=read_ahead))


def test_no_more_than_so_many_items_are_read_ahead_and_more_when_half_are_taken() -> None:
    made: list[int] = []

    async def lines() -> AsyncIterator[int]:
        for i in range(100):
            made.append(i)
            yield i

    def settled() -> int:
        collect_until(lambda: iteration_of(items)._sleeps)
        return len(made)

    with contextlib.closing(async_to_sync_iterator(lines(), read_ahead=4)) as items:
        assert 0 == next(items)
        assert 5 == settled()
        assert [1] == [next(items)]
        assert 5 == settled()
        assert [2] == [next(items)]
        assert 7 == settled()


def test_item_that_is_ready_is_not_held_back() -> None:
    """During read-ahead, the generator waits for an event that is set only when the consumer has the item before."""
    has_it = threading.Event()

    async def lines() -> AsyncIterator[int]:
        yield 1
        yield 2
        assert await asyncio.to_thread(has_it.wait, LIMIT)
        yield 3

    items = async_to_sync_iterator(lines(), read_ahead=10)
    assert [1, 2] == [next(items), next(items)]
    has_it.set()
    assert [3] == list(items)


async def test_generator_that_never_waits_does_not_hold_up_the_loop() -> None:
    turns = 0

    def take_turn() -> None:
        nonlocal turns
        turns += 1
        loop.call_soon(take_turn)

    loop = asyncio.get_running_loop()
    of_items: list[int] = []

    async def lines() -> AsyncIterator[int]:
        loop.call_soon(take_turn)
        for i in range(1000):
            of_items.append(turns)
            yield i

    def look() -> None:
        with contextlib.closing(async_to_sync_iterator(lines(), read_ahead=1000)) as items:
            assert 0 == next(items)
            collect_until(lambda: iteration_of(items).over)

    await sync_to_async(look)()
    assert 10 <= len({*of_items}) <= 30


def test_item_that_is_made_while_a_step_is_on_its_way_is_not_held_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """1. The thread finds no item and requests one.

    2. The task makes an item ahead. 3. The task waits in the next item, until the thread has requested that.
    """
    asks, asks_again = threading.Event(), threading.Event()
    post = loops.KeptLoop.post
    context_of_step: list[int] = []

    async def lines() -> AsyncIterator[int]:
        yield 1
        wait_for(asks)
        yield 2
        assert await asyncio.to_thread(asks_again.wait, LIMIT)
        yield 3
        context_of_step.append(number.get(0))

    def post_and_tell(self: Any, call: Any, mailbox: Any) -> bool:
        accepted = post(self, call, mailbox)
        if asks.is_set():
            asks_again.set()
        elif steps:
            asks.set()
        return accepted

    def look() -> None:
        items = async_to_sync_iterator(lines(), read_ahead=2)
        steps.append(next(items))
        number.set(7)
        assert 2 == next(items)
        assert [3] == list(items)

    steps: list[int] = []
    monkeypatch.setattr(loops.KeptLoop, "post", post_and_tell)
    contextvars.Context().run(look)
    assert [7] == context_of_step


def test_sync_code_of_a_generator_that_reads_ahead_waits_for_the_consumer() -> None:
    called = threading.Event()

    async def lines() -> AsyncIterator[int]:
        yield 0
        asyncio.get_running_loop().call_soon(called.set)
        yield await sync_to_async(me)()

    items = async_to_sync_iterator(lines(), read_ahead=5)
    assert 0 == next(items)
    wait_for(called)
    assert [me()] == list(items)


def test_items_come_before_the_error_that_ended_reading_ahead() -> None:
    async def lines() -> AsyncIterator[int]:
        yield 1
        yield 2
        raise LookupError

    items = async_to_sync_iterator(lines(), read_ahead=10)
    assert 1 == next(items)
    collect_until(lambda: iteration_of(items).over)
    assert 2 == next(items)
    with pytest.raises(LookupError):
        next(items)
    assert [] == list(items)


def test_step_that_finds_what_was_made_meanwhile_takes_it_with_its_context() -> None:
    """1. The consumer finds no item and requests one.

    2. Before the loop runs the step, the task makes two items ahead.
    """

    async def lines() -> AsyncIterator[int]:
        for i in range(5):
            number.set(i)
            yield i

    def look() -> None:
        items = async_to_sync_iterator(lines(), read_ahead=2)
        assert 0 == next(items)
        iteration = iteration_of(items)
        collect_until(lambda: len(iteration.items) == 2)
        held = [iteration.items.popleft(), iteration.items.popleft()]
        accept = iteration.accept

        def put_back_and_accept(step: Any, loop: Any) -> Any:
            iteration.items.extend(held)
            return accept(step, loop)

        iteration.accept = put_back_and_accept
        assert (1, 1) == (next(items), number.get())
        del iteration.accept
        assert (2, 2) == (next(items), number.get())
        items.close()

    contextvars.Context().run(look)


def test_closing_cancels_what_is_being_made_ahead() -> None:
    lines = Lines()
    lines.waits_at = 1
    items = async_to_sync_iterator(lines(), read_ahead=5)
    assert 0 == next(items)
    wait_for(lines.waits)
    items.close()
    assert [None] != lines.closed
    assert 1 == len(lines.cancelled)
    assert [] == list(items)


def test_error_of_what_is_cancelled_by_closing_comes_out_of_close() -> None:
    waits = threading.Event()

    async def lines() -> AsyncIterator[int]:
        yield 0
        try:
            waits.set()
            await asyncio.sleep(LIMIT)
        finally:
            raise LookupError
        yield 1

    items = async_to_sync_iterator(lines(), read_ahead=5)
    assert 0 == next(items)
    wait_for(waits)
    with pytest.raises(LookupError):
        items.close()
    items.close()


def test_generator_that_absorbs_the_cancellation_is_closed_all_the_same() -> None:
    lines = threading.Event()
    closed: list[bool] = []

    async def absorbing() -> AsyncIterator[int]:
        yield 0
        try:
            with contextlib.suppress(asyncio.CancelledError):
                lines.set()
                await asyncio.sleep(LIMIT)
            yield 1
            yield 2
        finally:
            closed.append(True)

    items = async_to_sync_iterator(absorbing(), read_ahead=5)
    assert 0 == next(items)
    wait_for(lines)
    items.close()
    assert [True] == closed


def test_iterator_that_is_dropped_while_it_reads_ahead() -> None:
    lines = Lines()
    lines.waits_at = 1
    items = async_to_sync_iterator(lines(), read_ahead=5)
    assert 0 == next(items)
    wait_for(lines.waits)
    del items
    collect_until(lambda: lines.closed)
    collect_until(lambda: lines.loops[0].is_closed())


def test_iterator_that_is_dropped_with_its_end_read_ahead() -> None:
    go_on = asyncio.Event()
    loops_of_lines: list[asyncio.AbstractEventLoop] = []

    async def lines() -> AsyncIterator[int]:
        loops_of_lines.append(asyncio.get_running_loop())
        yield 0
        await go_on.wait()
        yield 1

    items = async_to_sync_iterator(lines(), read_ahead=5)
    assert 0 == next(items)
    loops_of_lines[0].call_soon_threadsafe(go_on.set)
    iteration = iteration_of(items)
    collect_until(lambda: iteration.over)
    assert loops_of_lines[0].is_running()
    del items
    collect_until(lambda: loops_of_lines[0].is_closed())


def test_cancelled_step_ends_reading_ahead() -> None:
    """The step waits for the item that is being made ahead when the call above is cancelled."""
    lines = Lines()
    lines.waits_at = 1

    async def main() -> None:
        def consume() -> None:
            items = async_to_sync_iterator(lines(), read_ahead=5)
            next(items)
            wait_for(lines.waits)
            asks.set()
            try:
                next(items)
            finally:
                assert [] == list(items)

        asks = threading.Event()
        task = asyncio.create_task(sync_to_async(consume)())
        await asyncio.to_thread(wait_for, asks)
        await asyncio.to_thread(
            collect_until, lambda: [call for call in bridge_calls() if call.direction == "async_to_sync"]
        )
        task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(main())


def test_process_wide_executor_may_be_foreign() -> None:
    """The jobs of a dropped iterator go to it."""
    called = threading.Event()
    threads: list[int] = []

    async def lines() -> AsyncIterator[int]:
        async def call() -> None:
            asyncio.get_running_loop().call_soon(called.set)
            threads.append(await sync_to_async(me)())

        task = asyncio.create_task(call())
        try:
            yield 1
        finally:
            await task

    items = async_to_sync_iterator(lines())
    next(items)
    wait_for(called)
    executor = SyncToAsync.single_thread_executor
    with ThreadPoolExecutor(1) as pool:
        SyncToAsync.single_thread_executor = pool
        try:
            expected = pool.submit(me).result()
            del items
            collect_until(lambda: threads)
        finally:
            SyncToAsync.single_thread_executor = executor
    assert [expected] == threads
