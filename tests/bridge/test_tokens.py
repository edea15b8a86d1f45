"""Tokens of context variables: which later call can reset a variable with the token of an earlier one."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from asgiref._bridge import internals, kept
from asgiref._bridge.jobs import AwaitedOutcome, LoopCall
from asgiref._bridge.kept import ATTRIBUTE_OF_TASK
from asgiref.current_thread_executor import CurrentThreadExecutor
from asgiref.local import Local
from asgiref.sync import (
    AsyncSingleThreadContext,
    ThreadSensitiveContext,
    ThreadSensitiveEventLoop,
    async_to_sync,
    sync_to_async,
)

from ..helpers import LIMIT, Thread, let_idle_threads_run, no_garbage, wait_for

UNSET = "unset"

variable = contextvars.ContextVar[Any]("variable")
other = contextvars.ContextVar[Any]("other", default=0)


def value_of(variable: contextvars.ContextVar[Any] = variable) -> Any:
    return variable.get(UNSET)


class Middleware:
    """Sets the variable in one call and resets it in another, as sync middleware of Django does under ASGI."""

    def __init__(self, variable: contextvars.ContextVar[Any], value: Any) -> None:
        self.variable, self.value = variable, value

    def begin(self) -> None:
        self.token = self.variable.set(self.value)

    def end(self) -> None:
        self.variable.reset(self.token)


class Held:
    """A function that waits until the test lets it continue, and then calls another one."""

    def __init__(self, function: Callable[[], Any] = int) -> None:
        self._function = function
        self.begun, self.go_on, self.done = threading.Event(), threading.Event(), threading.Event()

    def __call__(self) -> None:
        self.begun.set()
        try:
            wait_for(self.go_on)
            self._function()
        finally:
            self.done.set()


async def until(event: threading.Event) -> None:
    """Wait for *event* without a thread that any loop knows."""
    loop = asyncio.get_running_loop()
    woken = asyncio.Event()

    def wait() -> None:
        wait_for(event)
        loop.call_soon_threadsafe(woken.set)

    thread = Thread(wait)
    await asyncio.wait_for(woken.wait(), LIMIT)
    thread.get()


class Abandoned:
    """A call that this task has started and abandoned; its function is still running or waiting."""

    def __init__(self, function: Callable[[], Any] = int, **options: Any) -> None:
        self.held = Held(function)
        self._options = options

    async def __aenter__(self) -> Held:
        # In this task, which the timeout cancels: a call of another task would belong to another caller.
        task = asyncio.current_task()
        assert task is not None
        loop = asyncio.get_running_loop()

        def cancel_when_begun() -> None:
            wait_for(self.held.begun)
            loop.call_soon_threadsafe(task.cancel)

        thread = Thread(cancel_when_begun)
        with pytest.raises(asyncio.CancelledError):
            await sync_to_async(self.held, **self._options)()
        task.uncancel()
        thread.get()
        return self.held

    async def __aexit__(self, *exc_info: Any) -> None:
        self.held.go_on.set()
        await until(self.held.done)


# Calls of one task


@pytest.mark.parametrize("options", [{}, {"thread_sensitive": False}], ids=["thread-sensitive", "any thread"])
async def test_token_of_one_call_is_valid_in_a_later_one(options: Any) -> None:
    """The calls are nested, as those of middleware, with an unrelated call in between."""
    outer, inner = Middleware(other, 1), Middleware(other, 2)
    await sync_to_async(outer.begin, **options)()
    await sync_to_async(inner.begin, **options)()
    assert (2, 2) == (await sync_to_async(other.get, **options)(), other.get())
    await sync_to_async(inner.end, **options)()
    assert (1, 1) == (await sync_to_async(other.get, **options)(), other.get())
    await sync_to_async(outer.end, **options)()
    assert (0, 0) == (await sync_to_async(other.get, **options)(), other.get())


async def test_reset_to_unset_reaches_the_caller() -> None:
    middleware = Middleware(variable, 1)
    for _ in range(2):  # the second time, in the kept context
        await sync_to_async(middleware.begin)()
        assert 1 == value_of()
        await sync_to_async(middleware.end)()
        assert (UNSET, UNSET) == (value_of(), await sync_to_async(value_of)())
        assert variable not in contextvars.copy_context()


async def test_only_variable_of_all_is_unset() -> None:
    """An empty context is a change, too."""
    lonely = contextvars.Context()

    async def main() -> None:
        middleware = Middleware(variable, 1)
        await sync_to_async(middleware.begin)()
        await sync_to_async(middleware.end)()
        assert UNSET == value_of()

    await asyncio.create_task(main(), context=lonely)


async def test_context_manager_that_is_entered_and_left_by_two_calls() -> None:
    @contextlib.contextmanager
    def override(value: Any) -> Iterator[None]:
        token = variable.set(value)
        yield
        variable.reset(token)

    manager = override("nl")
    await sync_to_async(manager.__enter__)()
    assert "nl" == value_of()
    await sync_to_async(manager.__exit__)(None, None, None)
    assert UNSET == value_of()


async def test_what_the_caller_sets_between_the_calls_is_carried_in() -> None:
    middleware = Middleware(other, 1)
    await sync_to_async(middleware.begin)()
    other.set(5)
    variable.set("new")
    assert (5, "new") == await sync_to_async(lambda: (other.get(), value_of()))()
    await sync_to_async(middleware.end)()
    assert (0, "new") == (other.get(), value_of())


async def test_what_the_caller_unsets_between_the_calls_is_carried_in() -> None:
    middleware = Middleware(other, 1)
    await sync_to_async(middleware.begin)()
    token = variable.set("for a moment")
    assert "for a moment" == await sync_to_async(value_of)()
    variable.reset(token)
    assert UNSET == await sync_to_async(value_of)()
    await sync_to_async(middleware.end)()
    assert (0, UNSET) == (other.get(), value_of())


async def test_caller_unsets_what_it_had_when_the_first_call_began() -> None:
    """Python cannot remove the variable from the kept context, so the values are right and the tokens are lost."""
    token = variable.set("from before")
    middleware = Middleware(other, 1)
    await sync_to_async(middleware.begin)()
    variable.reset(token)
    assert UNSET == await sync_to_async(value_of)()
    with pytest.raises(ValueError, match="different Context"):
        await sync_to_async(middleware.end)()
    await sync_to_async(middleware.begin)()
    await sync_to_async(middleware.end)()  # of the new one
    assert 1 == other.get()


async def test_values_of_a_local_go_along() -> None:
    storage, middleware = Local(), Middleware(other, 1)
    await sync_to_async(middleware.begin)()
    storage.one = 1

    def change() -> None:
        assert 1 == storage.one
        del storage.one
        storage.two = 2

    await sync_to_async(change)()
    assert (False, 2) == (hasattr(storage, "one"), storage.two)
    storage.two = 3
    assert 3 == await sync_to_async(lambda: storage.two)()
    await sync_to_async(middleware.end)()


async def test_what_another_task_sets_in_a_shared_context_is_not_reverted() -> None:
    middleware = Middleware(other, 1)

    async def main() -> None:
        await sync_to_async(middleware.begin)()
        asyncio.get_running_loop().call_soon(variable.set, "theirs", context=context)
        await asyncio.sleep(0)
        assert "theirs" == value_of()
        await sync_to_async(middleware.end)()
        assert (0, "theirs") == (other.get(), value_of())

    context = contextvars.copy_context()
    await asyncio.create_task(main(), context=context)


async def test_tasks_have_contexts_of_their_own() -> None:
    """A child task starts without a kept context, and its changes stay there."""
    middleware = Middleware(other, 1)
    await sync_to_async(middleware.begin)()

    async def child() -> None:
        with pytest.raises(ValueError, match="different Context"):
            await sync_to_async(middleware.end)()
        await sync_to_async(other.set)(9)
        assert 9 == other.get()

    await asyncio.create_task(child())
    assert 1 == await sync_to_async(other.get)()
    await sync_to_async(middleware.end)()


async def test_context_of_the_callers_choice_is_not_mixed_up_with_it() -> None:
    middleware = Middleware(other, 1)
    await sync_to_async(middleware.begin)()
    context = contextvars.Context()
    await sync_to_async(other.set, context=context)(7)
    assert (1, 7) == (other.get(), context[other])
    await sync_to_async(middleware.end)()
    assert 0 == other.get()


async def test_exception_of_a_call_changes_nothing_about_it() -> None:
    middleware = Middleware(variable, 1)

    def fail() -> None:
        middleware.begin()
        raise ValueError("of the function")

    with pytest.raises(ValueError, match="of the function"):
        await sync_to_async(fail)()
    await sync_to_async(middleware.end)()
    assert UNSET == value_of()


async def test_thread_sensitive_context_around_a_part_of_the_calls() -> None:
    """Django enters such a context for each request; the calls run on different threads."""
    outer, inner = Middleware(other, 1), Middleware(variable, 2)
    await sync_to_async(outer.begin)()
    async with ThreadSensitiveContext():
        await sync_to_async(inner.begin)()
    await sync_to_async(inner.end)()
    await sync_to_async(outer.end)()
    assert (0, UNSET) == (other.get(), value_of())


def test_token_on_a_thread_sensitive_loop() -> None:
    """On such a loop, the bridge puts a mailbox into the context of each call."""

    async def main() -> None:
        middleware = Middleware(variable, 1)
        for _ in range(2):
            await sync_to_async(middleware.begin)()
            await sync_to_async(middleware.end)()
            assert UNSET == value_of()

    with asyncio.Runner(loop_factory=ThreadSensitiveEventLoop) as runner:
        runner.run(main())


async def test_token_does_not_cross_to_the_other_direction() -> None:
    token = variable.set(1)

    def reset() -> None:
        with pytest.raises(ValueError, match="different Context"):
            variable.reset(token)

    await sync_to_async(reset)()
    middleware = Middleware(other, 1)
    await sync_to_async(middleware.begin)()
    with pytest.raises(ValueError, match="different Context"):
        middleware.end()


async def test_call_outside_of_any_task_keeps_nothing() -> None:
    """Such a coroutine is driven by hand, from a callback of the loop."""
    done = asyncio.get_running_loop().create_future()

    def drive() -> None:
        coroutine = sync_to_async(other.set)(1)
        waited = coroutine.send(None)

        def go_on(_: Any) -> None:
            with pytest.raises(StopIteration):
                coroutine.send(None)
            done.set_result(other.get())

        waited.add_done_callback(go_on)

    contextvars.copy_context().run(asyncio.get_running_loop().call_soon, drive)
    assert 1 == await asyncio.wait_for(done, LIMIT)


async def test_task_that_takes_no_attributes_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed:
        __slots__ = ()

    monkeypatch.setattr(asyncio, "current_task", lambda loop=None: Closed())
    middleware = Middleware(other, 1)
    await sync_to_async(middleware.begin)()
    with pytest.raises(ValueError, match="different Context"):
        await sync_to_async(middleware.end)()
    monkeypatch.undo()


async def test_two_calls_of_one_task_at_once() -> None:
    """One of the calls is driven by hand. The other one gets a copy, and the changes of both come back."""
    middleware = Middleware(other, 1)
    await sync_to_async(middleware.begin)()
    held = Held(lambda: variable.set("late"))
    first = sync_to_async(held, thread_sensitive=False)()
    waited = first.send(None)
    waited._asyncio_future_blocking = False
    assert 1 == await sync_to_async(other.get, thread_sensitive=False)()
    held.go_on.set()
    while not waited.done():  # noqa: ASYNC110  # awaiting it would let the coroutine continue
        await asyncio.sleep(0)
    with pytest.raises(StopIteration):
        first.send(None)
    assert (1, "late") == (other.get(), value_of())


# Calls whose caller was cancelled


async def test_call_after_one_that_still_runs_gets_a_copy_which_is_kept() -> None:
    first, second = Middleware(other, 1), Middleware(variable, 2)
    options: Any = {"thread_sensitive": False}
    await sync_to_async(first.begin, **options)()
    async with Abandoned(**options):
        with pytest.raises(ValueError, match="different Context"):
            await sync_to_async(first.end, **options)()
        assert 1 == await sync_to_async(other.get, **options)()
        await sync_to_async(second.begin, **options)()
    # It is kept, even when the other one is free again.
    await sync_to_async(second.end, **options)()
    assert (1, UNSET) == (other.get(), value_of())
    with pytest.raises(ValueError, match="different Context"):
        await sync_to_async(first.end, **options)()


async def test_call_after_one_that_has_ended_meanwhile() -> None:
    """The context is free again. Variables that the function has set after the cancellation are not seen."""
    middleware = Middleware(other, 1)
    await sync_to_async(middleware.begin)()
    async with Abandoned(lambda: other.set(7)):
        pass
    await sync_to_async(int)()  # after the end of the other one, on the thread
    assert (1, 1) == (other.get(), await sync_to_async(other.get)())
    await sync_to_async(middleware.end)()
    assert 0 == other.get()


async def test_call_after_one_that_has_set_a_new_variable_when_nobody_waited() -> None:
    """The new variable cannot be removed, so the next call gets a copy of the caller's values."""
    middleware = Middleware(other, 1)
    await sync_to_async(middleware.begin)()
    async with Abandoned(lambda: variable.set("unseen")):
        pass
    assert (UNSET, UNSET) == (value_of(), await sync_to_async(value_of)())


async def test_call_that_was_cancelled_before_it_began_counts_as_none() -> None:
    middleware, held = Middleware(other, 1), Held()
    await sync_to_async(middleware.begin)()
    busy = asyncio.create_task(sync_to_async(held)())
    await until(held.begun)
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().call_soon(task.cancel)
    with pytest.raises(asyncio.CancelledError):
        await sync_to_async(other.set)(5)
    task.uncancel()
    held.go_on.set()
    await busy
    await sync_to_async(middleware.end)()
    assert 0 == other.get()


async def test_call_to_an_executor_that_was_cancelled_before_it_began_counts_as_none() -> None:
    middleware, held = Middleware(other, 1), Held()
    with ThreadPoolExecutor(1) as executor:
        options: Any = {"thread_sensitive": False, "executor": executor}
        await sync_to_async(middleware.begin, **options)()
        busy = asyncio.create_task(sync_to_async(held, **options)())
        await until(held.begun)
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().call_soon(task.cancel)
        with pytest.raises(asyncio.CancelledError):
            await sync_to_async(other.set, **options)(5)
        task.uncancel()
        held.go_on.set()
        await busy
        await sync_to_async(middleware.end, **options)()
    assert 0 == other.get()


async def test_call_to_a_default_executor_that_does_not_tell_whether_the_function_runs() -> None:
    """After a cancellation, the context counts as used forever, even when the function has ended."""
    middleware = Middleware(other, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(internals, "default_executor_of", lambda loop: None)
        options: Any = {"thread_sensitive": False}
        await sync_to_async(middleware.begin, **options)()
        async with Abandoned(lambda: other.set(7), **options):
            pass
        assert 1 == await sync_to_async(other.get, **options)()
        with pytest.raises(ValueError, match="different Context"):
            await sync_to_async(middleware.end, **options)()


async def test_call_that_could_not_be_made_counts_as_none() -> None:
    middleware = Middleware(other, 1)
    executor = ThreadPoolExecutor(1)
    executor.shutdown()
    await sync_to_async(middleware.begin)()
    with pytest.raises(RuntimeError):
        await sync_to_async(int, thread_sensitive=False, executor=executor)()
    await sync_to_async(middleware.end)()
    assert 0 == other.get()


# Coroutines of one call


class AsyncMiddleware(Middleware):
    async def abegin(self) -> None:
        self.begin()

    async def aend(self) -> None:
        self.end()


async def look() -> tuple[Any, Any]:
    return other.get(), value_of()


@pytest.mark.parametrize("new_loops", [False, True], ids=["home loop", "new loops"])
async def test_token_of_one_coroutine_is_valid_in_a_later_one(new_loops: bool) -> None:
    options: Any = {"force_new_loop": new_loops}
    outer, inner = AsyncMiddleware(other, 1), AsyncMiddleware(variable, 2)

    def function() -> None:
        for _ in range(2):
            async_to_sync(outer.abegin, **options)()
            async_to_sync(inner.abegin, **options)()
            assert (1, 2) == async_to_sync(look, **options)() == (other.get(), value_of())
            async_to_sync(inner.aend, **options)()
            assert (1, UNSET) == async_to_sync(look, **options)() == (other.get(), value_of())
            async_to_sync(outer.aend, **options)()
            assert (0, UNSET) == async_to_sync(look, **options)() == (other.get(), value_of())

    await sync_to_async(function)()
    assert (0, UNSET) == (other.get(), value_of())


async def test_token_is_valid_on_another_loop() -> None:
    middleware = AsyncMiddleware(variable, 1)

    def function() -> None:
        for begin, end in ((False, True), (True, False)):
            async_to_sync(middleware.abegin, force_new_loop=begin)()
            async_to_sync(middleware.aend, force_new_loop=end)()
            assert UNSET == value_of()
        with AsyncSingleThreadContext():
            async_to_sync(middleware.abegin)()
            async_to_sync(middleware.aend, force_new_loop=True)()
        assert UNSET == value_of()

    await sync_to_async(function)()


async def test_what_the_function_sets_and_unsets_between_the_coroutines_is_carried_in() -> None:
    middleware = AsyncMiddleware(other, 1)

    def function() -> None:
        async_to_sync(middleware.abegin)()
        token = variable.set("for a moment")
        assert (1, "for a moment") == async_to_sync(look)()
        variable.reset(token)
        assert (1, UNSET) == async_to_sync(look)()
        async_to_sync(middleware.aend)()
        assert (0, UNSET) == (other.get(), value_of())

    await sync_to_async(function)()


def test_top_level_calls_keep_nothing() -> None:
    """Two requests on one thread would share a context."""
    middleware = AsyncMiddleware(other, 1)

    def main() -> None:
        async_to_sync(middleware.abegin)()
        with pytest.raises(ValueError, match="different Context"):
            async_to_sync(middleware.aend)()

    contextvars.copy_context().run(main)


async def test_next_call_has_nothing_to_do_with_the_coroutines_of_this_one() -> None:
    middleware = AsyncMiddleware(other, 1)
    await sync_to_async(async_to_sync(middleware.abegin))()
    with pytest.raises(ValueError, match="different Context"):
        await sync_to_async(async_to_sync(middleware.aend))()


async def test_both_directions_at_once() -> None:
    """Each side keeps its own context, over several calls and several nested changes of side."""
    inner, outer = Middleware(variable, 1), Middleware(other, 1)

    async def below() -> None:
        await sync_to_async(inner.begin)()
        await sync_to_async(inner.end)()

    def function() -> None:
        async_to_sync(below)()
        async_to_sync(below)()

    await sync_to_async(outer.begin)()
    await sync_to_async(function)()
    await sync_to_async(outer.end)()
    assert (0, UNSET) == (other.get(), value_of())


async def test_coroutine_that_was_cancelled_before_it_began_counts_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    middleware = AsyncMiddleware(other, 1)
    start = LoopCall.start

    def start_cancelled(call: LoopCall, loop: Any) -> Any:
        assert call.cancel()
        return start(call, loop)

    def function() -> None:
        async_to_sync(middleware.abegin)()
        with monkeypatch.context() as patch:
            patch.setattr(LoopCall, "start", start_cancelled)
            with pytest.raises(asyncio.CancelledError):
                async_to_sync(look)()
        async_to_sync(middleware.aend)()

    await sync_to_async(function)()
    assert 0 == other.get()


async def test_coroutine_that_is_left_to_a_loop_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing waits for the coroutine any more, and it may continue in its context, so the next one gets a copy."""
    middleware = AsyncMiddleware(other, 1)
    go_on = asyncio.Event()
    ended = asyncio.Event()

    class Interrupt(BaseException):
        pass

    async def waits() -> None:
        try:
            interrupt.set()
            await go_on.wait()
        finally:
            await go_on.wait()
            other.set(9)
            ended.set()

    serve = CurrentThreadExecutor.serve

    def interrupted(mailbox: CurrentThreadExecutor, check: Any = None) -> None:
        if armed:
            wait_for(interrupt)
            raise Interrupt
        serve(mailbox, check)

    def function() -> None:
        async_to_sync(middleware.abegin)()
        armed.append(True)
        with pytest.raises(Interrupt):
            async_to_sync(waits)()
        armed.clear()
        with pytest.raises(ValueError, match="different Context"):
            async_to_sync(middleware.aend)()
        middleware.value = 2
        async_to_sync(middleware.abegin)()
        async_to_sync(middleware.aend)()
        assert 1 == other.get()

    interrupt, armed = threading.Event(), list[bool]()
    monkeypatch.setattr(CurrentThreadExecutor, "serve", interrupted)
    await sync_to_async(function)()
    go_on.set()
    await asyncio.wait_for(ended.wait(), LIMIT)


async def test_task_factory_that_takes_no_context() -> None:
    """The tokens are valid only in this coroutine; the values are passed on."""
    loop = asyncio.get_running_loop()
    if not isinstance(loop, asyncio.BaseEventLoop):
        pytest.skip("uvloop always passes a context to its task factory")
    middleware = AsyncMiddleware(other, 1)

    def factory(loop: Any, coroutine: Any) -> Any:
        return asyncio.Task(coroutine, loop=loop)

    def function() -> None:
        async_to_sync(middleware.abegin)()
        assert 1 == other.get()
        with pytest.raises(ValueError, match="different Context"):
            async_to_sync(middleware.aend)()
        assert (1, UNSET) == async_to_sync(look)()

    before = loop.get_task_factory()
    call = asyncio.ensure_future(sync_to_async(function)())
    loop.set_task_factory(factory)
    try:
        await call
    finally:
        loop.set_task_factory(before)


# Two threads and one context


async def test_loop_that_is_still_inside_when_another_one_takes_over() -> None:
    """The thread of the other loop waits until the context is free.

    1. A coroutine ends on the home loop, and its thread continues. 2. The thread passes the next one to a new loop,
    which needs the context. 3. Only now does the home loop leave the context of the first one.
    """
    middleware = AsyncMiddleware(variable, 1)
    refused = threading.Event()
    refusals: list[None] = []
    sleep = time.sleep

    def note(seconds: float) -> None:
        refusals.append(None)
        if len(refusals) == 2:
            refused.set()
        sleep(seconds)

    def function() -> None:
        let_go_on = AwaitedOutcome._let_thread_go_on

        def stay_inside(outcome: Any) -> None:
            let_go_on(outcome)
            if threading.get_ident() == home and not refused.is_set():
                wait_for(refused)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(time, "sleep", note)
            patch.setattr(AwaitedOutcome, "_let_thread_go_on", stay_inside)
            async_to_sync(middleware.abegin)()
            async_to_sync(middleware.aend, force_new_loop=True)()

    home = threading.get_ident()
    await sync_to_async(function)()
    assert UNSET == value_of()
    assert refused.is_set()


async def test_loop_that_does_not_leave_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The coroutine gets a copy and does not wait forever."""
    monkeypatch.setattr(kept, "LEAVING", 0.0)
    middleware = Middleware(other, 1)
    await sync_to_async(middleware.begin)()
    context = getattr(asyncio.current_task(), ATTRIBUTE_OF_TASK).context
    held = Held()
    thread = Thread(context.run, held)
    wait_for(held.begun)
    other.set(2)
    assert 2 == await sync_to_async(other.get)()
    held.go_on.set()
    thread.get()


async def test_values_that_cannot_be_compared() -> None:
    """Values are compared only if variables changed places with equal ones; then, an error does no harm."""

    class Value:
        def __eq__(self, other: object) -> bool:
            raise ValueError("of the user")

        __hash__ = None  # type: ignore[assignment]

    one, two, value = contextvars.ContextVar[Any]("one"), contextvars.ContextVar[Any]("two"), Value()
    first, second = contextvars.Context(), contextvars.Context()
    first.run(one.set, value)
    second.run(two.set, value)
    assert not kept._is_same([value], first, second)
    third = contextvars.Context()
    third.run(one.set, Value())
    assert not kept._is_same(list(first.values()), third, first)
    assert kept._is_same([value], first, first.copy())


# What remains


def test_nothing_is_kept_when_the_task_has_ended() -> None:
    """Not even if the task is kept for its result, and not in its child tasks."""

    class Value:
        pass

    async def request() -> weakref.ref[Value]:
        value = Value()
        middleware = Middleware(variable, value)
        await sync_to_async(middleware.begin)()
        assert value is value_of()
        await sync_to_async(middleware.end)()
        return weakref.ref(value)

    async def main() -> None:
        task = asyncio.create_task(request())
        value = await task
        await asyncio.sleep(0)
        assert not hasattr(task, ATTRIBUTE_OF_TASK)
        await sync_to_async(let_idle_threads_run)()
        gc.collect()
        assert value() is None

    asyncio.run(main())


def test_no_garbage() -> None:
    async def request() -> None:
        middleware, amiddleware = Middleware(variable, 1), AsyncMiddleware(other, 1)

        def function() -> None:
            async_to_sync(amiddleware.abegin)()
            async_to_sync(amiddleware.aend)()

        await sync_to_async(middleware.begin)()
        await sync_to_async(function)()
        await sync_to_async(other.set)(5)

    asyncio.run(request())
    with no_garbage():
        asyncio.run(request())


def test_task_of_a_loop_that_was_closed_is_freed_with_what_it_keeps() -> None:
    """Also if a variable refers to the task."""

    async def request() -> None:
        await sync_to_async(variable.set)(asyncio.current_task())
        waits.set()
        await asyncio.get_running_loop().create_future()

    waits = threading.Event()
    loop = asyncio.new_event_loop()
    task = loop.create_task(request())
    loop.run_until_complete(asyncio.wait({task}, timeout=0.05))
    wait_for(waits)
    assert hasattr(task, ATTRIBUTE_OF_TASK)
    loop.close()
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    left = weakref.ref(task)
    coroutine: Any = task.get_coro()
    coroutine.close()
    del task, coroutine
    let_idle_threads_run()
    for _ in range(5):  # PyPy needs more than one collection
        gc.collect()
    assert left() is None


async def test_call_that_changes_nothing_leaves_nothing() -> None:
    """Setting a variable to the object that it has already is no visible change."""
    task = asyncio.current_task()
    variable.set(UNSET)
    await sync_to_async(variable.set)(UNSET)
    await sync_to_async(value_of)()
    assert not hasattr(task, ATTRIBUTE_OF_TASK)
    await sync_to_async(variable.set)(1)
    assert hasattr(task, ATTRIBUTE_OF_TASK)
