"""``sync_to_async``: the choice of the thread, what is passed back, refused calls."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
import functools
import inspect
import sys
import threading
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from asgiref.current_thread_executor import CurrentThreadExecutor
from asgiref.sync import (
    SyncToAsync,
    ThreadSensitiveContext,
    async_to_sync,
    iscoroutinefunction,
    markcoroutinefunction,
    sync_to_async,
)

from ..helpers import LIMIT, Thread, finished, wait_for

color = contextvars.ContextVar("color", default="none")


def thread() -> threading.Thread:
    return threading.current_thread()


async def test_returns_what_the_function_returns() -> None:
    """Arguments are passed in, and the result is passed out."""

    def add(one: int, *, two: int) -> int:
        return one + two

    assert 3 == await sync_to_async(add)(1, two=2)


async def test_decorator_with_and_without_arguments() -> None:
    @sync_to_async
    def plain() -> str:
        "Docstring."
        return "plain"

    @sync_to_async(thread_sensitive=False)
    def configured() -> str:
        return "configured"

    assert "plain" == await plain()
    assert "configured" == await configured()
    assert ("plain", "Docstring.") == (plain.__name__, plain.__doc__)
    assert isinstance(plain, SyncToAsync)


async def test_methods_callables_and_partials() -> None:
    class Counter:
        def __init__(self) -> None:
            self.count = 0

        @sync_to_async
        def add(self, number: int = 1) -> int:
            """Add up."""
            self.count += number
            return self.count

        def __call__(self) -> int:
            return self.count

        def plain(self) -> int:
            return self.count

    counter = Counter()
    assert 1 == await counter.add()
    assert 3 == await Counter.add(counter, 2)
    assert "Add up." == counter.add.__doc__
    assert inspect.iscoroutinefunction(counter.add)
    assert 3 == await sync_to_async(counter)()
    assert 3 == await sync_to_async(functools.partial(Counter.plain, counter))()
    bound = sync_to_async(counter.plain)
    assert isinstance(bound, SyncToAsync)
    assert counter is bound.__self__
    assert 3 == await bound()


def test_is_a_coroutine_function_for_the_standard_library() -> None:
    wrapped = sync_to_async(thread)
    assert iscoroutinefunction(wrapped)
    if sys.version_info >= (3, 12):
        assert inspect.iscoroutinefunction(wrapped)
    else:
        assert asyncio.iscoroutinefunction(wrapped)


def test_marked_functions_count_as_coroutine_functions() -> None:
    @markcoroutinefunction
    def mark_me() -> Any: ...

    assert iscoroutinefunction(mark_me)
    assert not iscoroutinefunction(thread)


@pytest.mark.parametrize("wrong", [1, "text"])
def test_refuses_what_is_not_callable(wrong: Any) -> None:
    with pytest.raises(TypeError, match="pass the function itself"):
        sync_to_async(wrong)


def test_refuses_async_functions() -> None:
    async def function() -> None: ...

    class Callable:
        async def __call__(self) -> None: ...

    for wrong in (function, functools.partial(function), Callable(), sync_to_async(thread)):
        with pytest.raises(TypeError, match="await an async function directly"):
            sync_to_async(wrong)


def test_refuses_an_executor_with_thread_sensitive_code() -> None:
    with concurrent.futures.ThreadPoolExecutor() as executor, pytest.raises(TypeError, match="thread_sensitive=False"):
        sync_to_async(thread, executor=executor)  # type: ignore[call-overload]


async def test_own_attributes_win_over_those_of_the_function() -> None:
    """A function's attributes are copied, but do not replace those that the wrapper needs."""

    def function() -> str:
        return "called"

    function.__dict__.update(context="theirs", func="theirs", extra="kept")
    wrapped = sync_to_async(function)
    assert "called" == await wrapped()
    assert "kept" == wrapped.extra  # type: ignore[attr-defined]


def test_subscripts_name_a_type() -> None:
    assert SyncToAsync[[int], str].__origin__ is SyncToAsync  # type: ignore[attr-defined]


async def test_thread_sensitive_code_shares_one_thread() -> None:
    """Outside of any context, it runs on the one thread of the process."""
    one, two = await asyncio.gather(sync_to_async(thread)(), sync_to_async(thread)())
    assert one is two is not thread()
    assert {one} == SyncToAsync.single_thread_executor._threads  # type: ignore[attr-defined]


async def test_calls_for_one_thread_run_one_at_a_time_and_in_order() -> None:
    order: list[int] = []
    inside = threading.Semaphore(1)

    def step(number: int) -> None:
        assert inside.acquire(blocking=False)
        order.append(number)
        inside.release()

    await asyncio.gather(*[sync_to_async(step)(number) for number in range(100)])
    assert list(range(100)) == order


async def test_insensitive_code_runs_at_the_same_time() -> None:
    barrier = threading.Barrier(2)
    wait = sync_to_async(barrier.wait, thread_sensitive=False)
    await asyncio.gather(wait(LIMIT), wait(LIMIT))


async def test_insensitive_code_runs_on_the_given_executor() -> None:
    with concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="mine") as executor:
        ran_on = await sync_to_async(thread, thread_sensitive=False, executor=executor)()
    assert ran_on.name.startswith("mine")


async def test_changes_to_context_variables_come_back() -> None:
    color.set("red")

    def paint() -> str:
        before = color.get()
        color.set("blue")
        return before

    assert "red" == await sync_to_async(paint)()
    assert "blue" == color.get()


async def test_changes_come_back_from_a_failing_call_too() -> None:
    def paint() -> None:
        color.set("blue")
        raise LookupError

    with pytest.raises(LookupError):
        await sync_to_async(paint)()
    assert "blue" == color.get()


async def test_given_context_is_used_itself_and_keeps_the_changes() -> None:
    context = contextvars.Context()
    context.run(color.set, "red")

    def paint() -> str:
        before = color.get()
        color.set("blue")
        return before

    assert "red" == await sync_to_async(paint, context=context)()
    assert "none" == color.get()
    assert "blue" == context[color]


async def test_exception_being_handled_is_seen_on_the_other_side() -> None:
    """``sys.exc_info()`` shows the exception there, and it returns unchanged."""

    def look() -> BaseException | None:
        return sys.exc_info()[1]

    try:
        raise LookupError
    except LookupError as error:
        traceback, context = error.__traceback__, error.__context__
        assert error is await sync_to_async(look)()
        assert (traceback, context) == (error.__traceback__, error.__context__)
    assert await sync_to_async(look)() is None


async def test_exception_in_an_except_block_names_its_context() -> None:
    def fail() -> None:
        raise ValueError

    try:
        raise LookupError
    except LookupError as handled:
        with pytest.raises(ValueError) as caught:
            await sync_to_async(fail)()
        assert handled is caught.value.__context__


async def test_at_most_five_frames_between_the_caller_and_the_function() -> None:
    def fail() -> None:
        raise LookupError

    with pytest.raises(LookupError) as caught:
        await sync_to_async(fail)()
    frames = caught.traceback
    assert len(frames) - 2 <= 5
    for frame in frames[1:-1]:
        if "asgiref" in str(frame.path):
            assert frame.locals.get("__traceback_hide__"), frame


@pytest.mark.parametrize("error", [StopAsyncIteration, GeneratorExit, LookupError])
@pytest.mark.parametrize("thread_sensitive", [True, False])
async def test_exceptions_come_back_as_they_are(error: type[BaseException], thread_sensitive: bool) -> None:
    def fail() -> None:
        raise error("why")

    with pytest.raises(error, match="why"):
        await sync_to_async(fail, thread_sensitive=thread_sensitive)()


@pytest.mark.parametrize("thread_sensitive", [True, False])
async def test_stop_iteration_becomes_a_runtime_error_that_names_it(thread_sensitive: bool) -> None:
    def fail() -> None:
        raise StopIteration(7)

    with pytest.raises(RuntimeError, match=r"StopIteration\(7\)"):
        await sync_to_async(fail, thread_sensitive=thread_sensitive)()


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_exits_reach_the_awaiting_task_and_end_its_loop(error: type[BaseException]) -> None:
    def fail() -> None:
        raise error

    async def main() -> None:
        await sync_to_async(fail)()

    with pytest.raises(error):
        asyncio.run(main())


async def test_cancelled_wait_ends_at_once_and_the_thread_goes_on_alone() -> None:
    begun, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        wait_for(go_on)
        ended.set()

    task = asyncio.create_task(sync_to_async(work)())
    await asyncio.to_thread(wait_for, begun)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not ended.is_set()
    go_on.set()
    await asyncio.to_thread(wait_for, ended)


@pytest.mark.parametrize("thread_sensitive", [True, False])
async def test_cancelled_before_it_began_the_function_never_runs(thread_sensitive: bool) -> None:
    hold, ran = threading.Event(), threading.Event()
    options: dict[str, Any] = {}
    executor = concurrent.futures.ThreadPoolExecutor(1)
    if not thread_sensitive:
        options = {"thread_sensitive": False, "executor": executor}
    first = asyncio.create_task(sync_to_async(wait_for, **options)(hold))
    second = asyncio.create_task(sync_to_async(ran.set, **options)())
    await asyncio.sleep(0)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    hold.set()
    await first
    await sync_to_async(thread, **options)()
    assert not ran.is_set()
    executor.shutdown()


async def test_cancellation_goes_to_the_coroutine_for_which_the_function_waits() -> None:
    """The coroutine is cancelled exactly once, and its outcome is used; the loop's exception handler is not called."""
    complaints: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))
    waiting = asyncio.Event()
    cancelled = 0

    async def inner() -> str:
        nonlocal cancelled
        waiting.set()
        try:
            await asyncio.sleep(LIMIT)
        except asyncio.CancelledError:
            cancelled += 1
            raise
        return "slept"

    task = asyncio.create_task(sync_to_async(async_to_sync(inner))())
    await waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()
    await asyncio.sleep(0)
    assert 1 == cancelled
    assert [] == complaints


async def test_function_may_turn_the_cancellation_into_a_result() -> None:
    waiting = asyncio.Event()

    async def inner() -> None:
        waiting.set()
        await asyncio.sleep(LIMIT)

    def outer() -> str:
        try:
            async_to_sync(inner)()
        except asyncio.CancelledError:
            return "saved"
        return "slept"

    task = asyncio.create_task(sync_to_async(outer)())
    await waiting.wait()
    task.cancel()
    assert "saved" == await task


class Cleanup:
    """A coroutine that waits until it is cancelled, and then cleans up until the test lets it continue."""

    # Called at the start of the wait.
    when_waiting: Callable[[], object] = int

    def __init__(self, shield: bool = False) -> None:
        self.waiting, self.cleaning, self.cleaned = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.go_on = asyncio.Event()
        self._shield = shield

    async def wait(self) -> None:
        self.waiting.set()
        asyncio.get_running_loop().call_soon(self.when_waiting)
        try:
            await asyncio.sleep(LIMIT)
        finally:
            with anyio.CancelScope(shield=self._shield):
                self.cleaning.set()
                await self.go_on.wait()  # a second cancellation would interrupt it
                self.cleaned.set()

    async def cancel_repeatedly(self, task: asyncio.Task[Any]) -> int:
        """Cancel *task* before, during and after the cleanup, until it ends; return the number of cancellations."""
        await self.waiting.wait()
        cancellations = 0
        while not task.done():
            task.cancel(f"number {cancellations}")
            cancellations += 1
            await asyncio.sleep(0)
            if self.cleaning.is_set() and cancellations > 5:
                self.go_on.set()
        assert self.cleaned.is_set()
        return cancellations


def as_it_is(wait: Callable[[], None]) -> str:
    wait()
    return "waited"


def caught(wait: Callable[[], None]) -> str:
    with contextlib.suppress(asyncio.CancelledError):
        wait()
    return "saved"


def failing(wait: Callable[[], None]) -> str:
    try:
        wait()
    except asyncio.CancelledError:
        raise LookupError("failed") from None
    return "waited"


@pytest.mark.parametrize(
    ("function", "error"),
    [(as_it_is, asyncio.CancelledError), (caught, asyncio.CancelledError), (failing, LookupError)],
)
async def test_task_that_is_cancelled_until_it_ends(function: Callable[..., str], error: type[BaseException]) -> None:
    """The first cancellation goes to the coroutine.

    The others wait for the function, and its result must not hide them.
    """
    cleanup = Cleanup()
    ended: list[str] = []

    def view() -> str:
        try:
            return function(async_to_sync(cleanup.wait))
        finally:
            ended.append("the function")

    async def outer() -> None:
        try:
            await sync_to_async(view)()
        finally:
            ended.append("the await")

    task = asyncio.create_task(outer())
    cancellations = await cleanup.cancel_repeatedly(task)
    with pytest.raises(error):
        await task
    assert ["the function", "the await"] == ended
    assert cancellations == task.cancelling()


async def test_absorbed_cancellation_is_raised_with_its_message() -> None:
    cleanup = Cleanup()
    task = asyncio.create_task(sync_to_async(caught)(async_to_sync(cleanup.wait)))
    await cleanup.waiting.wait()
    for message in "first", "second", "third":
        task.cancel(message)
        await asyncio.sleep(0)
        await cleanup.cleaning.wait()
    cleanup.go_on.set()
    with pytest.raises(asyncio.CancelledError, match="third"):
        await task


@pytest.mark.parametrize("same_loop", [True, False])
async def test_message_of_a_cancellation_goes_along(same_loop: bool) -> None:
    """asyncio passes it from a task to the awaited one; anyio recognizes its own cancellations by the message."""
    waiting = threading.Event()

    async def inner() -> None:
        waiting.set()
        await asyncio.sleep(LIMIT)

    task = asyncio.create_task(sync_to_async(async_to_sync(inner, force_new_loop=not same_loop))())
    await asyncio.to_thread(wait_for, waiting)
    task.cancel("so it is")
    with pytest.raises(asyncio.CancelledError, match="so it is"):
        await task


@pytest.mark.parametrize("shield", [True, False])
@pytest.mark.parametrize("function", [as_it_is, caught])
async def test_anyio_scope_that_cancels_on_each_turn_of_the_loop(function: Callable[..., str], shield: bool) -> None:
    cleanup = Cleanup(shield)

    async def end() -> None:
        await cleanup.cleaning.wait()
        for _ in range(5):
            await asyncio.sleep(0)
        cleanup.go_on.set()

    ending = asyncio.create_task(end())
    with anyio.move_on_after(LIMIT) as scope:
        cleanup.when_waiting = scope.cancel
        await sync_to_async(function)(async_to_sync(cleanup.wait))
    await ending
    assert cleanup.cleaned.is_set()
    assert (True, 0) == (scope.cancelled_caught, current_task().cancelling())


def current_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None
    return task


async def test_time_limit_and_task_group_that_both_cancel() -> None:
    """The timeout cancels the coroutine, the end of the group is absorbed, and nothing is left over."""
    cleanup = Cleanup()
    outcomes: list[str] = []

    async def limited() -> None:
        try:
            async with asyncio.timeout(LIMIT) as limit:
                cleanup.when_waiting = functools.partial(limit.reschedule, 0)
                await sync_to_async(caught)(async_to_sync(cleanup.wait))
        except asyncio.CancelledError:
            outcomes.append(f"cancelled, {current_task().cancelling()} left")
            raise

    async def fail() -> None:
        await cleanup.cleaning.wait()
        outcomes.append("failed")
        asyncio.get_running_loop().call_later(0.01, cleanup.go_on.set)  # some iterations after the group has cancelled
        raise LookupError

    with pytest.raises(ExceptionGroup):
        async with asyncio.TaskGroup() as group:
            group.create_task(limited())
            group.create_task(fail())
    assert cleanup.cleaned.is_set()
    assert ["failed", "cancelled, 1 left"] == outcomes


async def test_time_limit_whose_cancellation_becomes_a_result() -> None:
    cleanup = Cleanup()
    cleanup.go_on.set()
    async with asyncio.timeout(LIMIT) as limit:
        cleanup.when_waiting = functools.partial(limit.reschedule, 0)
        assert "saved" == await sync_to_async(caught)(async_to_sync(cleanup.wait))
    assert 0 == current_task().cancelling()


async def test_cancellation_crosses_to_a_loop_in_another_thread() -> None:
    waiting = threading.Event()

    async def inner() -> None:
        waiting.set()
        await asyncio.sleep(LIMIT)

    task = asyncio.create_task(sync_to_async(async_to_sync(inner, force_new_loop=True))())
    await asyncio.to_thread(wait_for, waiting)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_cancellation_before_the_inner_coroutine_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread continues, and the coroutine never runs."""
    posted = threading.Event()
    serve = CurrentThreadExecutor.serve

    def report_and_serve(*arguments: Any) -> None:
        posted.set()
        serve(*arguments)

    async def inner() -> None:
        raise AssertionError("the coroutine ran")

    # 1. The thread gives the coroutine to this loop, which is blocked and does not start it.
    monkeypatch.setattr(CurrentThreadExecutor, "serve", report_and_serve)
    task = asyncio.create_task(sync_to_async(async_to_sync(inner))())
    await asyncio.sleep(0)
    wait_for(posted)
    # 2. The caller is cancelled.
    task.cancel()
    # 3. The loop continues.
    with pytest.raises(asyncio.CancelledError):
        await task


def test_loop_on_the_sensitive_thread_itself_is_refused_at_once() -> None:
    """A loop cannot wait for the thread that it runs on; the error names the loop and the thread."""

    async def hopeless() -> None:
        await sync_to_async(thread)()

    def run_loop_here() -> None:
        asyncio.run(hopeless())

    async def main() -> None:
        await sync_to_async(run_loop_here)()

    for start in (asyncio.run, lambda coroutine: coroutine.close() or async_to_sync(main)()):
        with pytest.raises(RuntimeError, match=r"would deadlock.*thread .*event loop"):
            start(main())


async def test_loop_on_the_thread_of_a_context_is_refused() -> None:
    async def hopeless() -> None:
        await sync_to_async(thread)()

    coroutines = []

    def run() -> None:
        coroutines.append(hopeless())
        asyncio.run(coroutines[-1])

    async with ThreadSensitiveContext():
        with pytest.raises(RuntimeError, match="would deadlock"):
            await sync_to_async(run)()
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        async with ThreadSensitiveContext(executor=executor):
            with pytest.raises(RuntimeError, match="would deadlock"):
                await sync_to_async(run)()


async def test_tasks_that_share_a_context_raise_no_false_alarm() -> None:
    """Nor do the tasks revert each other's context variables."""
    shared = contextvars.copy_context()
    names = [contextvars.ContextVar[int](f"variable {number}") for number in range(20)]

    def write(number: int) -> None:
        names[number].set(number)

    def nested(number: int) -> None:
        async_to_sync(sync_to_async(write))(number)

    async def work(number: int) -> None:
        await sync_to_async(nested if number % 2 else write)(number)

    await asyncio.gather(*[asyncio.create_task(work(number), context=shared) for number in range(20)])
    assert list(range(20)) == [shared[name] for name in names]


async def test_failing_submit_of_an_executor_poisons_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def submit(self, *args: Any) -> Any:
            raise LookupError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(SyncToAsync, "single_thread_executor", Broken())
        for _ in range(2):
            with pytest.raises(LookupError, match="no room"):
                await sync_to_async(thread)()
    assert thread() is not await sync_to_async(thread)()


async def test_executor_that_cancels_its_futures_cancels_the_wait() -> None:
    executor = concurrent.futures.ThreadPoolExecutor(1)
    hold = threading.Event()
    first = executor.submit(wait_for, hold)
    task = asyncio.create_task(sync_to_async(thread, thread_sensitive=False, executor=executor)())
    await asyncio.sleep(0)
    executor.shutdown(wait=False, cancel_futures=True)
    with pytest.raises(asyncio.CancelledError):
        await task
    hold.set()
    first.result(LIMIT)


def test_result_for_a_loop_that_is_gone_is_dropped() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        wait_for(go_on)

    async def main() -> None:
        task = asyncio.create_task(sync_to_async(work)())
        await asyncio.to_thread(wait_for, begun)
        task.cancel()

    asyncio.run(main())
    go_on.set()
    finished(SyncToAsync.single_thread_executor)  # type: ignore[arg-type]


def test_many_loops_at_once() -> None:
    async def main() -> set[int]:
        return set(await asyncio.gather(*[sync_to_async(int)(number) for number in range(100)]))

    threads = [Thread(asyncio.run, main()) for _ in range(8)]
    assert [set(range(100))] * 8 == [one.get() for one in threads]
