"""``async_to_sync``: the choice of the loop, what is passed back, refused calls, interrupts."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
import functools
import gc
import inspect
import queue
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from asgiref import sync
from asgiref.sync import AsyncSingleThreadContext, AsyncToSync, SyncToAsync, async_to_sync, sync_to_async

from ..helpers import LIMIT, Thread, wait_for

color = contextvars.ContextVar("color", default="none")


async def running_loop() -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()


def thread() -> threading.Thread:
    return threading.current_thread()


async def add(one: int, *, two: int = 0) -> int:
    """Add up."""
    await asyncio.sleep(0)
    return one + two


def test_returns_what_the_coroutine_returns() -> None:
    assert 3 == async_to_sync(add)(1, two=2)


def test_decorator_with_and_without_arguments() -> None:
    @async_to_sync
    async def plain() -> str:
        return "plain"

    @async_to_sync(force_new_loop=True)
    async def configured() -> str:
        return "configured"

    assert "plain" == plain()
    assert "configured" == configured()
    assert isinstance(plain, AsyncToSync)
    assert isinstance(configured, AsyncToSync)
    assert configured.force_new_loop


def test_result_looks_like_the_function() -> None:
    wrapped = async_to_sync(add)
    assert isinstance(wrapped, AsyncToSync)
    assert ("add", "Add up.", add, add) == (wrapped.__name__, wrapped.__doc__, wrapped.__wrapped__, wrapped.awaitable)
    assert inspect.signature(add) == inspect.signature(wrapped)
    assert not sync.iscoroutinefunction(wrapped)
    assert not sync.iscoroutinefunction(async_to_sync(sync.markcoroutinefunction(lambda: add(1))))


def test_methods_callables_and_partials() -> None:
    class Counter:
        count = 1

        @async_to_sync
        async def add(self, number: int) -> int:
            """Add one."""
            return self.count + number

        async def plain(self) -> int:
            return self.count

        async def __call__(self) -> int:
            return self.count

    counter = Counter()
    assert 3 == counter.add(2)
    assert 3 == Counter.add(counter, 2)
    assert "Add one." == counter.add.__doc__
    assert 1 == async_to_sync(counter)()
    assert 1 == async_to_sync(functools.partial(Counter.plain, counter))()
    bound = async_to_sync(counter.plain)
    assert isinstance(bound, AsyncToSync)
    assert counter is bound.__self__
    assert 1 == bound()


def test_unmarked_callable_works_with_a_warning_for_each_wrapping() -> None:
    with pytest.warns(UserWarning, match="markcoroutinefunction") as caught:
        wrapped = async_to_sync(lambda: add(1))
    assert __file__ == caught[0].filename
    assert 1 == wrapped() == wrapped()


def test_refuses_what_is_not_callable() -> None:
    coroutine: Any = add(1)
    with pytest.raises(TypeError, match="pass the function itself"):
        async_to_sync(coroutine)
    coroutine.close()


async def test_refuses_to_block_a_running_loop() -> None:
    with pytest.raises(RuntimeError, match=r"async_to_sync\(add\) .*use `await add\(\.\.\.\)`"):
        async_to_sync(add)(1)


def test_error_of_the_call_itself_is_raised() -> None:
    with pytest.raises(TypeError, match="argument"):
        async_to_sync(add)()  # type: ignore[call-arg]


def test_each_top_level_call_has_a_fresh_loop_on_another_thread() -> None:
    async def look() -> tuple[asyncio.AbstractEventLoop, threading.Thread]:
        return asyncio.get_running_loop(), thread()

    (one, ran_on), (two, _) = async_to_sync(look)(), async_to_sync(look)()
    assert one is not two
    assert one.is_closed()
    assert ran_on is not thread()


async def generate(ended: list[Any]) -> AsyncIterator[int]:
    try:
        yield 1
    finally:
        ended.append("generator")


def test_fresh_loop_ends_as_with_asyncio_run() -> None:
    """Before the call returns, remaining tasks are cancelled and awaited, and asynchronous generators closed."""
    ended: list[Any] = []
    kept: list[Any] = []

    async def background() -> None:
        try:
            await asyncio.sleep(LIMIT)
        finally:
            await sync_to_async(lambda: ended.append(thread()))()

    async def main() -> None:
        kept.append(asyncio.create_task(background()))
        kept.append(generate(ended))
        await anext(kept[1])
        await asyncio.sleep(0)

    async_to_sync(main)()
    # The calling thread still runs jobs while its loop ends.
    assert [thread(), "generator"] == ended


@pytest.mark.parametrize("left", ["transport", "callback", "generator", "executor"])
def test_what_is_left_to_a_fresh_loop_without_tasks_is_ended_too(left: str) -> None:
    ended: list[str] = []
    kept: list[Any] = []

    class Protocol(asyncio.Protocol):
        def connection_lost(self, exc: Exception | None) -> None:
            ended.append("transport")

    async def main() -> None:
        if left == "transport":
            one, other = socket.socketpair()
            kept.append(other)
            transport, _ = await asyncio.get_running_loop().create_connection(Protocol, sock=one)
            transport.close()
        elif left == "callback":
            loop = asyncio.get_running_loop()
            loop.call_soon(loop.call_soon, ended.append, "callback")
        elif left == "generator":
            kept.append(generate(ended))
            await anext(kept[0])
        else:
            running: Any = asyncio.get_running_loop()

            async def end_executor() -> None:
                go_on.set()
                await shut_down()

            shut_down = running.shutdown_default_executor
            running.shutdown_default_executor = end_executor
            running.run_in_executor(None, hold)

    def hold() -> None:
        wait_for(go_on)
        ended.append("executor")

    go_on = threading.Event()
    async_to_sync(main)()
    go_on.set()
    assert [left] == ended
    for each in kept:
        if isinstance(each, socket.socket):
            each.close()


@pytest.mark.parametrize("block", [contextlib.nullcontext, AsyncSingleThreadContext], ids=["fresh", "kept"])
def test_coroutine_that_begins_while_its_loop_ends_is_cancelled_and_awaited(block: Any) -> None:
    """1. A function is left alone. 2. Its loop closes asynchronous generators. 3. The function makes a call on it."""
    begun, ends, started, function_is_over = (threading.Event() for _ in range(4))
    ended: list[str] = []
    kept: list[Any] = []
    executor = concurrent.futures.ThreadPoolExecutor(1)

    async def late() -> None:
        started.set()
        try:
            await asyncio.sleep(LIMIT)
        finally:
            await sync_to_async(ended.append)("late")

    async def items() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            ends.set()
            await asyncio.to_thread(wait_for, started)
            ended.append("generator")

    def function() -> None:
        begun.set()
        wait_for(ends)
        try:
            async_to_sync(late)()
        except asyncio.CancelledError:
            ended.append("cancelled")
        function_is_over.set()

    async def main() -> None:
        kept.append(items())
        await anext(kept[0])
        call = asyncio.create_task(sync_to_async(function, thread_sensitive=False, executor=executor)())
        await asyncio.to_thread(wait_for, begun)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

    with block():
        async_to_sync(main)()
    wait_for(function_is_over)
    assert ["generator", "late", "cancelled"] == ended
    executor.shutdown()


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")  # the last one
def test_task_that_starts_another_one_at_each_cancellation_does_not_keep_its_loop() -> None:
    started: list[Any] = []

    async def again() -> None:
        started.append(asyncio.current_task())
        try:
            await asyncio.sleep(LIMIT)
        except asyncio.CancelledError:
            started.append(asyncio.create_task(again()))
            await asyncio.sleep(0)

    async def main() -> None:
        started.append(asyncio.create_task(again()))
        await asyncio.sleep(0)

    async_to_sync(main)()
    assert started[-1].get_loop().is_closed()
    started.clear()
    gc.collect()


async def test_coroutine_below_sync_to_async_runs_on_the_home_loop() -> None:
    assert asyncio.get_running_loop() is await sync_to_async(async_to_sync(running_loop))()
    assert asyncio.get_running_loop() is await sync_to_async(async_to_sync(running_loop), thread_sensitive=False)()


async def test_force_new_loop_never_uses_the_home_loop() -> None:
    assert asyncio.get_running_loop() is not await sync_to_async(async_to_sync(running_loop, force_new_loop=True))()


def test_sensitive_code_comes_back_to_the_blocked_thread() -> None:
    """The same is true for tasks in a separate context, and through nested calls."""

    async def look() -> list[threading.Thread]:
        there = sync_to_async(thread)
        deeper = sync_to_async(async_to_sync(there))
        lonely = asyncio.create_task(there(), context=contextvars.Context())
        return [await there(), await deeper(), await lonely]

    assert [thread()] * 3 == async_to_sync(look)()


async def test_innermost_blocked_thread_goes_first() -> None:
    def outer() -> tuple[threading.Thread, threading.Thread]:
        return thread(), async_to_sync(sync_to_async(thread))()

    one, two = await sync_to_async(outer, thread_sensitive=False)()
    assert one is two


async def test_task_that_outlives_the_call_can_still_use_sync_to_async() -> None:
    """The function runs on the next thread by the rules: an outer waiting thread, or the thread of the process."""
    tasks = []
    go_on = asyncio.Event()

    async def later() -> threading.Thread:
        await go_on.wait()
        return await sync_to_async(thread)()

    async def start() -> None:
        tasks.append(asyncio.create_task(later()))

    def call() -> threading.Thread:
        async_to_sync(start)()
        return thread()

    await sync_to_async(call, thread_sensitive=False)()
    go_on.set()
    assert await sync_to_async(thread)() is await tasks[0]


def test_task_that_outlives_an_inner_call_finds_the_outer_thread() -> None:
    async def main() -> threading.Thread:
        tasks = []
        go_on = asyncio.Event()

        async def later() -> threading.Thread:
            await go_on.wait()
            return await sync_to_async(thread)()

        async def start() -> None:
            tasks.append(asyncio.create_task(later()))

        await sync_to_async(async_to_sync(start))()
        go_on.set()
        return await tasks[0]

    assert thread() is async_to_sync(main)()


def test_context_variables_go_along_and_changes_come_back() -> None:
    async def paint() -> str:
        before = color.get()
        color.set("blue")
        return before

    def main() -> tuple[str, str]:
        color.set("red")
        return async_to_sync(paint)(), color.get()

    assert ("red", "blue") == contextvars.Context().run(main)


def test_changes_come_back_from_a_failing_call_too() -> None:
    async def paint() -> None:
        color.set("blue")
        raise LookupError

    def main() -> str:
        with pytest.raises(LookupError):
            async_to_sync(paint)()
        return color.get()

    assert "blue" == contextvars.Context().run(main)


async def test_strangers_changes_in_a_shared_context_stay() -> None:
    """During the call, another task sets a variable in the same context; both changes are there at the end."""
    shape = contextvars.ContextVar("shape", default="none")
    shared = contextvars.copy_context()
    away, go_on = asyncio.Event(), asyncio.Event()

    async def inner() -> None:
        away.set()
        await go_on.wait()
        color.set("blue")

    async def stranger() -> None:
        await away.wait()
        shape.set("round")
        go_on.set()

    one = asyncio.create_task(sync_to_async(async_to_sync(inner))(), context=shared)
    await asyncio.gather(one, asyncio.create_task(stranger(), context=shared))
    assert ("blue", "round") == (shared[color], shared[shape])


def test_exception_being_handled_is_seen_on_the_other_side() -> None:
    async def look() -> BaseException | None:
        await asyncio.sleep(0)
        return sys.exc_info()[1]

    try:
        raise LookupError
    except LookupError as error:
        traceback, context = error.__traceback__, error.__context__
        assert error is async_to_sync(look)()
        assert (traceback, context) == (error.__traceback__, error.__context__)
    assert async_to_sync(look)() is None


@pytest.mark.parametrize("error", [StopAsyncIteration, GeneratorExit, SystemExit, KeyboardInterrupt, LookupError])
@pytest.mark.parametrize("nested", [False, True])
def test_exceptions_come_back_as_they_are(error: type[BaseException], nested: bool) -> None:
    async def fail() -> None:
        raise error("why")

    def call() -> None:
        with pytest.raises(error, match="why"):
            async_to_sync(fail)()

    if nested:
        asyncio.run(sync_to_async(call)())
    else:
        call()


def test_stop_iteration_becomes_a_runtime_error_that_names_it() -> None:
    async def fail() -> None:
        raise StopIteration

    with pytest.raises(RuntimeError, match="StopIteration"):
        async_to_sync(fail)()


def test_exit_raised_by_a_task_next_to_the_coroutine_ends_the_call() -> None:
    """asyncio lets the exit pass out of the loop; the caller gets it and does not hang."""

    async def leave() -> None:
        sys.exit(3)

    async def main() -> None:
        await asyncio.gather(leave(), asyncio.sleep(LIMIT))

    with pytest.raises(SystemExit) as caught:
        async_to_sync(main)()
    assert 3 == caught.value.code


def test_cancelled_coroutine_raises_cancelled_error() -> None:
    async def give_up() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(LIMIT)

    with pytest.raises(asyncio.CancelledError):
        async_to_sync(give_up)()


async def test_task_cancelled_by_others_before_its_first_step_ends_the_call() -> None:
    async def inner() -> None:
        raise AssertionError("the coroutine ran")

    known = asyncio.all_tasks()
    task = asyncio.create_task(sync_to_async(async_to_sync(inner))())
    await asyncio.sleep(0)
    loop = asyncio.get_running_loop()
    factory = loop.get_task_factory()
    if factory is not None:  # an eager task starts at once
        loop.set_task_factory(None)

    def cancel_new_tasks() -> None:
        for other in asyncio.all_tasks() - known - {task}:
            other.cancel()
        if not task.done():
            loop.call_soon(cancel_new_tasks)

    cancel_new_tasks()
    with pytest.raises((asyncio.CancelledError, AssertionError)):
        await task


def run_in_stopped_loop(then: Callable[[asyncio.AbstractEventLoop], None]) -> tuple[Thread, threading.Event]:
    """Start a thread below sync_to_async on a loop that then stops; return its task and an event to continue."""
    loop = asyncio.new_event_loop()
    go_on, begun = threading.Event(), threading.Event()
    results: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def call() -> None:
        begun.set()
        wait_for(go_on)
        try:
            results.put(async_to_sync(running_loop)())
        except BaseException as error:
            results.put(error)

    async def main() -> None:
        loop.call_soon(functools.partial(keep_task, loop.create_task(sync_to_async(call, thread_sensitive=False)())))
        await asyncio.to_thread(wait_for, begun)

    loop.run_until_complete(main())
    then(loop)
    return Thread(results.get), go_on


kept_tasks: list[asyncio.Task[Any]] = []


def keep_task(task: asyncio.Task[Any]) -> None:
    kept_tasks.append(task)


@pytest.mark.parametrize("closed", [False, True])
def test_home_loop_that_has_stopped_is_not_used(closed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stopped loop is not used unless it runs again soon; a closed loop is never used."""
    monkeypatch.setattr(sync, "stopped_loop_start_patience", 0.1)
    loops = []

    def end(loop: asyncio.AbstractEventLoop) -> None:
        loops.append(loop)
        if closed:
            loop.close()

    waiting, go_on = run_in_stopped_loop(end)
    go_on.set()
    used = waiting.get()
    assert isinstance(used, asyncio.AbstractEventLoop)
    assert used is not loops[0]
    if not closed:
        loops[0].run_until_complete(kept_tasks.pop())
        loops[0].close()
    kept_tasks.clear()


class HomeLoop:
    """A fake home loop that stops or closes at the worst moment."""

    def __init__(self) -> None:
        self.running, self.closed, self.callbacks = True, False, queue.SimpleQueue[Any]()

    def is_running(self) -> bool:
        return self.running

    def is_closed(self) -> bool:
        return self.closed

    def call_soon_threadsafe(self, callback: Any, *arguments: Any, context: Any = None) -> None:
        if self.closed:
            raise RuntimeError("Event loop is closed")
        self.callbacks.put((callback, arguments))

    def create_task(self, coroutine: Any) -> Any:
        return Task(coroutine)


class Task:
    """A fake task that never ends."""

    def __init__(self, coroutine: Any) -> None:
        self.coroutine = coroutine
        self.cancelled = False

    def done(self) -> bool:
        return False

    def cancel(self) -> bool:
        self.cancelled = True
        self.coroutine.close()
        return True


def call_on(home: HomeLoop) -> Any:
    """Call async_to_sync as code below sync_to_async on *home* does."""
    import os

    here = SyncToAsync.threadlocal.__dict__
    here.update(main_event_loop=home, main_event_loop_pid=os.getpid(), task_context=[])
    return async_to_sync(running_loop)()


def test_home_loop_that_closes_just_before_the_hand_over() -> None:
    """1. The thread sees a running loop. 2. The loop closes. 3. The thread posts the call. Another loop is used."""
    home = HomeLoop()
    home.closed = True
    assert Thread(call_on, home).get() is not home


@pytest.mark.parametrize("closed", [False, True])
def test_home_loop_that_ends_between_hand_over_and_start(closed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """1. The thread posts the call. 2. The loop ends. 3. The thread takes the call back. A late start finds nothing."""
    monkeypatch.setattr(sync, "stopped_loop_start_patience", 0.1)
    home = HomeLoop()
    caller = Thread(call_on, home)
    start, arguments = home.callbacks.get(timeout=LIMIT)
    home.running, home.closed = False, closed
    assert isinstance(caller.get(), asyncio.AbstractEventLoop)
    assert start(*arguments) is None


@pytest.mark.slow
@pytest.mark.parametrize("closed", [False, True])
def test_home_loop_that_ends_while_it_runs_the_coroutine(closed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """1. The loop starts the coroutine. 2. The loop ends. 3. The caller gets an error that says so."""
    monkeypatch.setattr(sync, "stopped_loop_patience", 0.1)
    home = HomeLoop()
    caller = Thread(call_on, home)
    start, arguments = home.callbacks.get(timeout=LIMIT)
    task = start(*arguments)
    home.running, home.closed = False, closed
    with pytest.raises(RuntimeError, match="stopped or closed while it ran"):
        caller.get()
    if not closed:  # if the loop runs again, the task is cancelled
        while not task.cancelled:
            callback, arguments = home.callbacks.get(timeout=LIMIT)
            callback(*arguments)
    task.coroutine.close()


def test_loop_that_only_pauses_is_waited_for() -> None:
    """A loop that runs again within the patience for stopped loops delivers the result."""
    loop = asyncio.new_event_loop()
    started, finish = asyncio.Event(), asyncio.Event()

    async def inner() -> str:
        started.set()
        await finish.wait()
        return "finished"

    async def begin() -> None:
        task = loop.create_task(sync_to_async(async_to_sync(inner), thread_sensitive=False)())
        keep_task(task)
        await started.wait()

    async def end() -> str:
        finish.set()
        return str(await kept_tasks.pop())

    loop.run_until_complete(begin())
    assert "finished" == loop.run_until_complete(end())
    loop.close()


def test_task_factory_that_fails_fails_the_call() -> None:
    def factory(loop: Any, coroutine: Any, **options: Any) -> Any:
        if "main_wrap" in coroutine.__qualname__:
            coroutine.close()
            raise LookupError("no tasks today")
        return asyncio.Task(coroutine, loop=loop, **options)

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(factory)
        with pytest.raises(LookupError, match="no tasks today"):
            await sync_to_async(async_to_sync(add))(1)

    asyncio.run(main())


def test_task_factory_of_an_older_framework_needs_to_take_no_context() -> None:
    async def main() -> int:
        asyncio.get_running_loop().set_task_factory(lambda loop, coroutine: asyncio.Task(coroutine, loop=loop))
        return await sync_to_async(async_to_sync(add))(1)

    assert 1 == asyncio.run(main())


def test_many_threads_at_once() -> None:
    def call(number: int) -> int:
        return async_to_sync(add)(number)

    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        assert list(range(200)) == list(pool.map(call, range(200)))


def test_waiting_costs_no_processor_time() -> None:
    before = time.thread_time()
    async_to_sync(asyncio.sleep)(0.2)
    assert time.thread_time() - before < 0.1
