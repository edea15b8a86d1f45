"""Thread-sensitive code of all tasks of such a loop runs on the thread that runs the loop."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import sys
import threading
import traceback
from collections.abc import Iterator
from typing import Any

import pytest

from asgiref.local import Local, peek
from asgiref.sync import (
    AsyncSingleThreadContext,
    AsyncToSync,
    SyncToAsync,
    ThreadSensitiveContext,
    ThreadSensitiveEventLoop,
    async_to_sync,
    sync_to_async,
)
from asgiref.testing import ApplicationCommunicator

from ..conftest import LoopFactory
from ..helpers import LIMIT, Thread
from .loops import every_loop, run

where = sync_to_async(threading.get_ident)
anywhere = sync_to_async(threading.get_ident, thread_sensitive=False)


@pytest.fixture
def one() -> Iterator[concurrent.futures.ThreadPoolExecutor]:
    with concurrent.futures.ThreadPoolExecutor(1, "one") as executor:
        yield executor


def ident_of(executor: concurrent.futures.Executor) -> int:
    return executor.submit(threading.get_ident).result(LIMIT)


@every_loop
def test_calling_thread_runs_thread_sensitive_code_and_a_worker_the_loop(factory: LoopFactory) -> None:
    async def main() -> tuple[int, int, list[int]]:
        together = await asyncio.gather(*[where() for _ in range(10)])
        return threading.get_ident(), await where(), together

    loop_thread, thread, together = run(factory, main)
    assert threading.get_ident() == thread != loop_thread
    assert {thread} == set(together)


@every_loop
def test_in_any_thread(factory: LoopFactory) -> None:
    def call() -> bool:
        return bool(run(factory, where) == threading.get_ident())

    assert Thread(call).get()


@every_loop
def test_tasks_of_any_context(factory: LoopFactory) -> None:
    """For a task with the caller's context, an older one, or an empty one."""
    before = contextvars.copy_context()

    async def main() -> set[int]:
        tasks = [asyncio.create_task(where(), context=context) for context in (None, before, contextvars.Context())]
        return {await task for task in tasks}

    assert {threading.get_ident()} == run(factory, main)


@every_loop
def test_code_below_synchronous_code(factory: LoopFactory) -> None:
    """Through the home loop, a new loop, a kept loop, and asyncio.run; on the thread and on a pool thread."""

    def in_block() -> Any:
        with AsyncSingleThreadContext():
            return async_to_sync(where)(), async_to_sync(where, force_new_loop=True)()

    ways = [
        async_to_sync(where),
        async_to_sync(where, force_new_loop=True),
        lambda: asyncio.run(anywhere_then_where()),
        in_block,
    ]

    async def anywhere_then_where() -> int:
        await anywhere()
        return await where()

    async def main() -> None:
        here = await where()
        # Below a pool thread, that thread is the innermost one that is blocked in async_to_sync.
        assert here == await sync_to_async(lambda: asyncio.run(where()), thread_sensitive=False)()
        for way in ways[:2]:
            assert here == await sync_to_async(way)()
        with pytest.raises(RuntimeError, match="would deadlock"):  # that loop runs on the same thread
            await sync_to_async(ways[2])()
        assert (here, here) == await sync_to_async(in_block)()

    run(factory, main)


@every_loop
def test_task_that_outlives_the_call_that_made_it(factory: LoopFactory) -> None:
    async def main() -> int:
        tasks = []

        async def inner() -> None:
            tasks.append(asyncio.create_task(late()))

        async def late() -> int:
            await over.wait()
            return await where()

        over = asyncio.Event()
        await sync_to_async(async_to_sync(inner), thread_sensitive=False)()
        over.set()
        return await tasks[0]

    assert threading.get_ident() == run(factory, main)


@every_loop
def test_plain_block_inside(factory: LoopFactory) -> None:
    """The waiting thread has precedence over a ThreadSensitiveContext, as below async_to_sync."""

    async def main() -> set[int]:
        async with ThreadSensitiveContext():
            return {await where(), await asyncio.create_task(where(), context=contextvars.copy_context())}

    assert {threading.get_ident()} == run(factory, main)


@every_loop
def test_block_with_an_executor_inside(factory: LoopFactory, one: concurrent.futures.ThreadPoolExecutor) -> None:
    """The block takes effect where it was entered, not for a loop that runs inside it, and then again until its end."""
    here = threading.get_ident()

    async def main() -> None:
        async with ThreadSensitiveContext(executor=one):
            assert ident_of(one) == await where()
            assert ident_of(one) == await sync_to_async(async_to_sync(where))()
            async with ThreadSensitiveContext():
                assert ident_of(one) == await where()
            assert ident_of(one) == await sync_to_async(lambda: run(factory, where))()
            late = asyncio.create_task(after_the_end())
        assert here == await where()
        over.set()
        with pytest.raises(RuntimeError, match="after the end of"):
            await late
        assert peek(AsyncToSync.executors, "current") is None

    async def after_the_end() -> None:
        await over.wait()
        await where()

    over = asyncio.Event()
    run(factory, main)


@every_loop
def test_block_with_an_executor_that_spans_runs(
    factory: LoopFactory, one: concurrent.futures.ThreadPoolExecutor
) -> None:
    """A fixture of pytest-asyncio enters the block in one run, and the test is another run in the same context."""
    block = ThreadSensitiveContext(executor=one)
    context = contextvars.copy_context()
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(block.__aenter__(), context=context)
        assert ident_of(one) == runner.run(where(), context=context)
        runner.run(block.__aexit__(None, None, None), context=context)
        assert threading.get_ident() == runner.run(where(), context=context)


@every_loop
def test_blocks_around(factory: LoopFactory, one: concurrent.futures.ThreadPoolExecutor) -> None:
    """The thread that runs the loop has precedence over an outer block."""

    async def main(own: bool) -> None:
        async with ThreadSensitiveContext(executor=one) if own else ThreadSensitiveContext():
            with concurrent.futures.ThreadPoolExecutor(1) as other:
                loop = asyncio.get_running_loop()
                context = contextvars.copy_context()
                thread = await loop.run_in_executor(other, lambda: context.run(run, factory, where))
                assert ident_of(other) == thread
            assert ident_of(one) == await where() or not own

    for own in (False, True):
        asyncio.run(main(own))


@every_loop
def test_below_async_to_sync(factory: LoopFactory, one: concurrent.futures.ThreadPoolExecutor) -> None:
    """The thread that runs the loop comes first; when it no longer waits, the thread of the outer call does."""
    here, other = threading.get_ident(), ident_of(one)
    outer_context = contextvars.Context()

    async def inner() -> None:
        assert other == await where()
        assert other == await asyncio.create_task(where(), context=outer_context)

    async def main() -> None:
        nonlocal outer_context
        outer_context = contextvars.copy_context()
        await asyncio.get_running_loop().run_in_executor(one, lambda: outer_context.copy().run(run, factory, inner))
        assert here == await where()
        # The same from a block that hides the waiting thread.
        async with ThreadSensitiveContext(executor=one):
            await sync_to_async(run)(factory, inner)
        # On the outer waiting thread itself.
        await sync_to_async(run)(factory, nested)

    async def nested() -> None:
        assert here == await where() == await asyncio.create_task(where(), context=outer_context)

    async_to_sync(main)()


@every_loop
def test_loop_inside_a_loop(factory: LoopFactory) -> None:
    """Synchronous code below one loop may run another one; both leave the thread free."""

    async def inner() -> tuple[int, int]:
        return await where(), await sync_to_async(run)(factory, where)

    async def main() -> Any:
        return await where(), *await sync_to_async(run)(factory, inner), *await anywhere_run()

    async def anywhere_run() -> tuple[bool, bool]:
        def call() -> bool:
            return bool(threading.get_ident() == run(factory, where))

        return await sync_to_async(call, thread_sensitive=False)(), await sync_to_async(call)()

    here = threading.get_ident()
    assert (here, here, here, True, True) == run(factory, main)


def test_executor_set_by_hand_further_out(one: concurrent.futures.ThreadPoolExecutor) -> None:
    """Other packages set executors.current to their own executor; the thread that runs the loop has precedence."""

    def call() -> None:
        setattr(AsyncToSync.executors, "current", one)  # noqa: B010
        assert threading.get_ident() == run(ThreadSensitiveEventLoop, where)

    contextvars.copy_context().run(call)


def test_thread_of_a_full_executor_lends_itself() -> None:
    """The only thread of a pool runs such a loop, which needs that pool."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:

        async def inner() -> bool:
            in_pool = sync_to_async(threading.get_ident, thread_sensitive=False, executor=pool)
            return await in_pool() == await where()

        async def main() -> bool:
            call = sync_to_async(run, thread_sensitive=False, executor=pool)
            return await asyncio.wait_for(call(ThreadSensitiveEventLoop, inner), LIMIT)

        assert asyncio.run(main())


@every_loop
def test_values_go_in_and_do_not_come_out(factory: LoopFactory) -> None:
    """Context variables and Local values are those of the calling thread in the first task, as with asyncio.run."""
    variable = contextvars.ContextVar[str]("variable")
    local, critical = Local(), Local(thread_critical=True)
    variable.set("outer")
    local.value = critical.value = "outer"

    def set_sync() -> tuple[str, str, str]:
        seen = variable.get(), local.value, critical.value
        variable.set("sync")
        local.value = critical.value = "sync"
        return seen

    async def main() -> None:
        assert ("outer", "outer", False) == (variable.get(), local.value, hasattr(critical, "value"))
        variable.set("task")
        local.value = critical.value = "task"
        assert ("task", "task", "outer") == await sync_to_async(set_sync)()
        assert ("sync", "sync", "task") == (variable.get(), local.value, critical.value)

    run(factory, main)
    assert ("outer", "outer", "sync") == (variable.get(), local.value, critical.value)


@every_loop
def test_exception_being_handled_is_seen_by_tasks(factory: LoopFactory) -> None:

    async def main() -> tuple[Any, Any]:
        return sys.exc_info()[1], await sync_to_async(lambda: sys.exc_info()[1])()

    error = KeyError("handled")
    try:
        raise error
    except KeyError:
        frames = len(list(traceback.walk_tb(error.__traceback__)))
        seen = run(factory, main)
        # On PyPy, reading sys.exc_info() lengthens the traceback.
        assert frames == len(list(traceback.walk_tb(error.__traceback__))) or sys.implementation.name == "pypy"
    if sys.implementation.name == "cpython":
        assert seen[0] is error
    assert seen[1] is error


@every_loop
def test_channels_application_in_an_empty_context(factory: LoopFactory) -> None:
    """A communicator starts its application in an empty context, and in a block of its own."""

    async def application(scope: Any, receive: Any, send: Any) -> None:
        async with ThreadSensitiveContext():
            await send({"type": "http.response.start", "status": 200, "thread": await where()})

    async def main() -> Any:
        communicator = ApplicationCommunicator(application, {"type": "http"})
        message = await communicator.receive_output()
        await communicator.wait()
        return message["thread"]

    assert threading.get_ident() == run(factory, main)


@every_loop
def test_each_run_serves_the_thread_that_calls_it(factory: LoopFactory) -> None:
    """All runs of the loop happen on one worker, which close() releases."""
    loop = factory()

    async def main() -> tuple[int, int]:
        return await where(), threading.get_ident()

    def call() -> tuple[bool, int]:
        thread, worker = loop.run_until_complete(main())
        return thread == threading.get_ident(), worker

    calls = [call(), Thread(call).get(), Thread(call).get(), call()]
    loop.close()
    assert {(True, calls[0][1])} == set(calls)


@every_loop
def test_task_that_spans_runs_for_two_threads(factory: LoopFactory) -> None:
    loop = factory()
    seen = []

    async def spanning() -> None:
        for _ in range(2):
            seen.append(await where())
            began.set()
            await between.wait()

    async def first() -> asyncio.Task[None]:
        task = asyncio.create_task(spanning())
        await asyncio.wait_for(began.wait(), LIMIT)
        return task

    async def second(task: asyncio.Task[None]) -> int:
        between.set()
        await task
        return threading.get_ident()

    began, between = asyncio.Event(), asyncio.Event()
    task = loop.run_until_complete(first())
    other = Thread(lambda: (loop.run_until_complete(second(task)), threading.get_ident())).get()
    loop.close()
    assert [threading.get_ident(), other[1]] == seen


@every_loop
def test_nothing_is_left_in_the_registry(factory: LoopFactory) -> None:
    run(factory, where)
    assert {} == AsyncToSync.loop_thread_executors
    assert None is SyncToAsync.threadlocal.__dict__.get("main_event_loop")
