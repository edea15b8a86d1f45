"""``check_cancelled``: which code learns of a cancellation."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from asgiref._bridge import cancellation
from asgiref._bridge.jobs import LoopCall
from asgiref.sync import (
    SyncToAsync,
    ThreadSensitiveContext,
    async_to_sync,
    check_cancelled,
    sync_to_async,
    sync_to_async_context_manager,
    sync_to_async_iterator,
)

from ..helpers import LIMIT, Thread, no_garbage, wait_for


def is_cancelled() -> bool:
    """Return what ``check_cancelled`` reports."""
    try:
        check_cancelled()
    except asyncio.CancelledError:
        return True
    return False


class Work:
    """A function that checks at its start, waits until the test lets it continue, and checks again."""

    def __init__(self) -> None:
        self.begun, self.go_on, self.done = threading.Event(), threading.Event(), threading.Event()
        self.answers: list[bool] = []

    def __call__(self) -> str:
        try:
            self.answers.append(is_cancelled())
            self.begun.set()
            wait_for(self.go_on)
            self.answers += [is_cancelled(), is_cancelled()]
            return "done"
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


async def ended_by_cancellation(task: asyncio.Future[Any], *message: str) -> None:
    task.cancel(*message)
    await asyncio.wait({task}, timeout=LIMIT)
    assert task.cancelled()


# Calls


@pytest.mark.parametrize("kind", ["thread-sensitive", "any thread", "executor", "context"])
async def test_function_whose_caller_was_cancelled_hears_of_it_each_time(kind: str) -> None:
    work = Work()
    with ThreadPoolExecutor(1) as executor:
        options: dict[str, Any] = {} if kind in ("thread-sensitive", "context") else {"thread_sensitive": False}
        if kind == "executor":
            options["executor"] = executor
        async with ThreadSensitiveContext() if kind == "context" else contextlib.AsyncExitStack():
            task = asyncio.create_task(sync_to_async(work, **options)())
            await until(work.begun)
            await ended_by_cancellation(task)
            work.go_on.set()
            await until(work.done)
    assert [False, True, True] == work.answers


async def test_function_whose_caller_was_not_cancelled_hears_nothing() -> None:
    work = Work()
    work.go_on.set()
    assert "done" == await sync_to_async(work)()
    assert [False, False, False] == work.answers


async def test_message_of_the_cancellation_is_that_of_the_error() -> None:
    begun, go_on, errors = threading.Event(), threading.Event(), []
    done = threading.Event()

    def work() -> None:
        begun.set()
        wait_for(go_on)
        try:
            check_cancelled()
        except asyncio.CancelledError as error:
            errors.append(error.args)
        done.set()

    task = asyncio.create_task(sync_to_async(work)())
    await until(begun)
    await ended_by_cancellation(task, "closing time")
    go_on.set()
    await until(done)
    assert [("closing time",)] == errors


def test_anywhere_else_it_does_nothing() -> None:
    async def coroutine() -> bool:
        return is_cancelled()

    assert (False, False) == (is_cancelled(), Thread(is_cancelled).get())
    assert (False, False) == (async_to_sync(coroutine)(), asyncio.run(coroutine()))


async def test_what_runs_beside_the_call_hears_nothing() -> None:
    """Threads and loops that the function starts do not learn of the cancellation."""
    work, answers = Work(), []

    async def coroutine() -> bool:
        return is_cancelled()

    def function() -> None:
        work()
        answers.extend([Thread(is_cancelled).get(), asyncio.run(coroutine()), is_cancelled()])
        asked.set()

    asked = threading.Event()
    task = asyncio.create_task(sync_to_async(function)())
    await until(work.begun)
    await ended_by_cancellation(task)
    work.go_on.set()
    await until(asked)
    assert [False, False, True] == answers


async def test_plain_list_in_place_of_the_inner_calls_tells_of_no_cancellation() -> None:
    """Other packages call ``thread_handler`` with a plain list, which records no cancellation."""
    wrapper = sync_to_async(is_cancelled)
    loop = asyncio.get_running_loop()
    assert isinstance(wrapper, SyncToAsync)
    run = contextvars.Context().run
    assert not await sync_to_async(wrapper.thread_handler)(loop, (None, None, None), [], run, is_cancelled)


def test_rest_of_what_is_no_call_of_the_library() -> None:
    """WSGI applications and steps on such a thread work as before."""
    cancellation.learn_from([], lambda: True)
    cancellation.expect_only_cleanup(None)
    assert not cancellation.is_cancelled([])


@pytest.mark.parametrize("catches", [False, True])
async def test_nested_call_hears_of_it_and_so_does_the_outer_function(catches: bool) -> None:
    """The outer function was cancelled, whether or not the coroutine in between catches the cancellation."""
    work, answers = Work(), []

    async def between() -> None:
        try:
            await sync_to_async(work, thread_sensitive=False)()
        except asyncio.CancelledError:
            if not catches:
                raise

    def outer() -> str:
        with contextlib.suppress(asyncio.CancelledError):
            async_to_sync(between)()
        answers.extend([is_cancelled(), is_cancelled()])
        return "continued"

    task = asyncio.create_task(sync_to_async(outer)())
    await until(work.begun)
    task.cancel()
    assert "continued" == await task
    work.go_on.set()
    await until(work.done)
    assert ([False, True, True], [True, True]) == (work.answers, answers)


async def test_coroutine_on_another_loop_that_is_quick_to_catch_the_cancellation() -> None:
    """The function checks at once, perhaps before the loop has finished cancelling.

    1. The loop of the caller cancels the coroutine, which is on another loop. 2. The coroutine catches the cancellation
    and ends. 3. The function continues and checks, while the loop of the caller is still inside ``cancel``.
    """
    waits, asked = threading.Event(), threading.Event()
    answers: list[bool] = []

    async def elsewhere() -> None:
        waits.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(LIMIT)

    def function() -> None:
        async_to_sync(elsewhere, force_new_loop=True)()
        answers.append(is_cancelled())
        asked.set()

    cancel = LoopCall.cancel

    def cancel_and_wait(call: LoopCall, *message: Any) -> bool:
        done = cancel(call, *message)
        wait_for(asked)
        return done

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LoopCall, "cancel", cancel_and_wait)
        task = asyncio.create_task(sync_to_async(function)())
        await until(waits)
        task.cancel()
        await task
    assert [True] == answers


async def test_call_that_begins_after_the_cancellation_hears_nothing() -> None:
    """Such a call is cleanup of the coroutine, and so are the calls below it."""
    begun, answers = threading.Event(), []

    async def cleanup() -> None:
        answers.append(await sync_to_async(is_cancelled)())

    def clean_up() -> None:
        answers.append(is_cancelled())
        async_to_sync(cleanup)()

    async def between() -> None:
        begun.set()
        try:
            await asyncio.sleep(LIMIT)
        finally:
            await sync_to_async(clean_up)()

    async def main() -> None:
        try:
            await sync_to_async(async_to_sync(between))()
        finally:
            answers.append(await sync_to_async(is_cancelled)())

    task = asyncio.create_task(main())
    await until(begun)
    await ended_by_cancellation(task)
    assert [False, False, False] == answers


async def test_shielded_call_hears_nothing() -> None:
    work = Work()
    inner = asyncio.ensure_future(sync_to_async(work)())

    async def main() -> None:
        await asyncio.shield(inner)

    task = asyncio.create_task(main())
    await until(work.begun)
    await ended_by_cancellation(task)
    work.go_on.set()
    assert "done" == await inner
    assert [False, False, False] == work.answers


async def test_function_on_the_thread_of_a_function_that_was_cancelled_hears_nothing() -> None:
    """Thread-sensitive code that runs during the wait of another function, on its thread, has a record of its own."""
    shielded, answers, begun = Work(), [], threading.Event()

    async def between() -> None:
        inner = asyncio.ensure_future(sync_to_async(shielded)())
        await until(shielded.begun)
        begun.set()
        try:
            await asyncio.shield(inner)
        except asyncio.CancelledError:
            shielded.go_on.set()
            await inner

    def outer() -> None:
        async_to_sync(between)()
        answers.append(is_cancelled())

    task = asyncio.create_task(sync_to_async(outer)())
    await until(begun)
    task.cancel()
    await task
    assert ([False, False, False], [True]) == (shielded.answers, answers)


async def test_error_that_the_function_lets_out_goes_nowhere() -> None:
    """Nothing awaits the error any more, and it does not go to the exception handler of the loop."""
    complaints: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))
    begun, go_on = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        wait_for(go_on)
        check_cancelled()

    task = asyncio.create_task(sync_to_async(work)())
    await until(begun)
    await ended_by_cancellation(task)
    go_on.set()
    await sync_to_async(int)()  # on the same thread, so after it
    assert [] == complaints


def test_nothing_is_left_of_it() -> None:
    async def main() -> None:
        begun, go_on = threading.Event(), threading.Event()

        def work() -> None:
            begun.set()
            wait_for(go_on)
            check_cancelled()

        task = asyncio.create_task(sync_to_async(work)())
        await until(begun)
        task.cancel()
        await asyncio.wait({task})
        go_on.set()
        await sync_to_async(int)()

    asyncio.run(main())
    with no_garbage():
        asyncio.run(main())


# Steps


@contextlib.contextmanager
def manager_of(enter: Callable[[], Any], leave: Callable[[], Any]) -> Iterator[None]:
    enter()
    try:
        yield
    finally:
        leave()


async def test_step_of_an_iterator_hears_of_it_and_its_close_does_not() -> None:
    work, answers, closed = Work(), [], threading.Event()

    def items() -> Iterator[int]:
        try:
            work()
            yield 1
        finally:
            answers.append(is_cancelled())
            closed.set()

    async def main() -> None:
        async with contextlib.aclosing(sync_to_async_iterator(items)()) as each:
            async for _ in each:
                pass

    task = asyncio.create_task(main())
    await until(work.begun)
    task.cancel()
    await asyncio.sleep(0)
    work.go_on.set()
    await asyncio.wait({task}, timeout=LIMIT)
    await until(closed)
    assert [False, True, True] == work.answers
    # The generator is at its yield, and a job closes it there.
    assert [False] == answers


async def test_enter_of_a_manager_hears_of_it_and_its_exit_does_not() -> None:
    work, answers, left = Work(), [], threading.Event()

    def leave() -> None:
        answers.append(is_cancelled())
        left.set()

    async def main() -> None:
        async with sync_to_async_context_manager(manager_of)(work, leave):
            pass

    task = asyncio.create_task(main())
    await until(work.begun)
    await ended_by_cancellation(task)
    work.go_on.set()
    await until(left)
    assert ([False, True, True], [False]) == (work.answers, answers)


@pytest.mark.parametrize("caused", [False, True])
async def test_exit_that_a_cancellation_caused_hears_of_no_further_one(caused: bool) -> None:
    """Cancel scopes of anyio cancel a task repeatedly until it ends.

    An exit with another cause is a step like any other.
    """
    work, inside = Work(), asyncio.Event()

    async def main() -> None:
        async with sync_to_async_context_manager(manager_of)(int, work):
            inside.set()
            if caused:
                await asyncio.sleep(LIMIT)

    task = asyncio.create_task(main())
    await asyncio.wait_for(inside.wait(), LIMIT)
    if caused:
        task.cancel()
    await until(work.begun)
    await ended_by_cancellation(task)
    work.go_on.set()
    await until(work.done)
    assert [False, not caused, not caused] == work.answers
