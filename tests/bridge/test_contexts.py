"""``ThreadSensitiveContext`` and ``AsyncSingleThreadContext``."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest

from asgiref._bridge import workers
from asgiref._bridge.loops import KeptLoop
from asgiref.local import Local
from asgiref.sync import (
    AsyncSingleThreadContext,
    AsyncToSync,
    SyncToAsync,
    ThreadSensitiveContext,
    async_to_sync,
    sync_to_async,
)

from ..helpers import LIMIT, Thread, finished, idle_workers, wait_for


def thread() -> threading.Thread:
    return threading.current_thread()


look = sync_to_async(thread)


async def running_loop() -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()


async def test_block_has_a_thread_of_its_own() -> None:
    outside = await look()
    async with ThreadSensitiveContext() as context:
        one, two = await asyncio.gather(look(), look())
        assert context.token is not None
    assert one is two
    assert outside is not one
    assert outside is await look()


async def test_blocks_at_the_same_time_have_different_threads() -> None:
    """200 blocks use 200 threads at their peak, and release them."""
    barrier = threading.Barrier(200)

    async def request() -> threading.Thread:
        async with ThreadSensitiveContext():
            await sync_to_async(barrier.wait)(LIMIT)
            return await look()

    threads = set(await asyncio.gather(*[request() for _ in range(200)]))
    assert 200 == len(threads)
    assert threads <= idle_workers()


@pytest.mark.slow
def test_blocks_one_after_the_other_use_a_handful_of_threads() -> None:
    async def main() -> set[int | None]:
        idents = set()
        for _ in range(10_000):
            async with ThreadSensitiveContext():
                idents.add((await look()).ident)
        return idents

    assert len(asyncio.run(main())) <= 5


async def test_block_without_a_call_costs_no_thread() -> None:
    before = threading.active_count()
    async with ThreadSensitiveContext():
        pass
    assert before == threading.active_count()


async def test_inner_block_changes_nothing() -> None:
    async with ThreadSensitiveContext() as outer:
        one = await look()
        async with outer, ThreadSensitiveContext():
            assert one is await look()
        assert one is await look()


async def test_block_can_be_entered_again() -> None:
    context = ThreadSensitiveContext()
    outside = await look()
    for _ in range(2):
        async with context:
            assert outside is not await look()
        assert outside is await look()


async def test_block_that_has_ended_is_no_enclosing_one() -> None:
    """A request that starts in the context of the previous request gets a separate block."""
    outside = await look()
    requests = []

    async def second() -> threading.Thread:
        async with ThreadSensitiveContext():
            one = await look()
            assert one is await look()
            return one

    async with ThreadSensitiveContext():
        first = await look()
        inherited = contextvars.copy_context()
    requests.append(asyncio.create_task(second(), context=inherited))
    assert outside is not await requests[0]
    assert first in idle_workers()


async def test_call_that_still_carries_an_ended_block_goes_to_the_next_in_line() -> None:
    outside = await look()
    go_on = asyncio.Event()

    async def later() -> threading.Thread:
        await go_on.wait()
        return await look()

    async with ThreadSensitiveContext():
        assert outside is not await look()
        task = asyncio.create_task(later())
    go_on.set()
    assert outside is await task


async def test_leaving_does_not_wait_for_what_still_runs() -> None:
    """Leaving does not wait, even if the thread waits for the loop that leaves the block."""
    go_on = asyncio.Event()
    async with ThreadSensitiveContext():
        task = asyncio.create_task(sync_to_async(async_to_sync(go_on.wait))())
        await asyncio.sleep(0)
        ran_on = {task}
    assert not task.done()
    go_on.set()
    await task
    ran_on.clear()


async def test_block_left_in_another_context_than_it_was_entered_in() -> None:
    """An asynchronous generator does this if a test framework drives it from several tasks."""

    @contextlib.asynccontextmanager
    async def fixture() -> AsyncIterator[None]:
        async with ThreadSensitiveContext():
            yield

    manager = fixture()
    await asyncio.create_task(manager.__aenter__())
    await asyncio.create_task(manager.__aexit__(None, None, None))


async def test_failing_block_gives_its_thread_back() -> None:
    ran_on = []
    with pytest.raises(LookupError):
        async with ThreadSensitiveContext():
            ran_on.append(await look())
            raise LookupError
    assert ran_on[0] in idle_workers()
    assert SyncToAsync.thread_sensitive_context.get(None) is None


async def test_blocked_thread_goes_before_a_block() -> None:
    def below() -> threading.Thread:
        return thread()

    async def main() -> list[threading.Thread]:
        async with ThreadSensitiveContext():
            return [await look(), await sync_to_async(below)()]

    ran_on = await asyncio.to_thread(lambda: (thread(), *async_to_sync(main)()))
    assert 1 == len(set(ran_on))


async def test_block_is_below_async_to_sync_for_lonely_tasks_too() -> None:
    """A task with an empty context also finds the thread that is blocked on its loop."""

    def call() -> tuple[threading.Thread, threading.Thread]:
        async def main() -> threading.Thread:
            return await asyncio.create_task(look(), context=contextvars.Context())

        return thread(), async_to_sync(main)()

    one, two = await asyncio.to_thread(call)
    assert one is two


# With an executor of the user:


@pytest.fixture
def own() -> Any:
    with concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="own") as executor:
        yield executor


async def test_own_executor_runs_the_block(own: concurrent.futures.Executor) -> None:
    async with ThreadSensitiveContext(executor=own):
        one = await look()
        assert one is not await sync_to_async(thread, thread_sensitive=False)()
    assert one.name.startswith("own")
    assert not (await look()).name.startswith("own")
    assert one is await sync_to_async(thread, thread_sensitive=False, executor=own)()


async def test_own_executor_takes_effect_in_another_block(own: concurrent.futures.Executor) -> None:
    async with ThreadSensitiveContext():
        outer = await look()
        async with ThreadSensitiveContext(executor=own), ThreadSensitiveContext():
            assert (await look()).name.startswith("own")
        assert outer is await look()


def test_own_executor_takes_effect_below_async_to_sync(own: concurrent.futures.Executor) -> None:
    async def main() -> list[threading.Thread]:
        threads = []
        with pytest.raises(LookupError):
            async with ThreadSensitiveContext(executor=own):
                threads.append(await look())
                threads.extend(await sync_to_async(lambda: (thread(), async_to_sync(look)()))())
                raise LookupError
        return [*threads, await look()]

    inside, outer, inner, after = async_to_sync(main)()
    assert inside.name.startswith("own")
    assert inside is outer is inner
    assert after is thread()
    assert getattr(AsyncToSync.executors, "current", None) is None


async def test_own_executor_block_is_entered_once(own: concurrent.futures.Executor) -> None:
    context = ThreadSensitiveContext(executor=own)
    async with context:
        with pytest.raises(RuntimeError, match="cannot be entered twice"):
            await context.__aenter__()
    with pytest.raises(RuntimeError, match="cannot be entered twice"):
        await context.__aenter__()


async def test_own_executor_can_be_waited_for_on_another_thread_of_the_block(own: concurrent.futures.Executor) -> None:
    """A waiting thread may run a call of the block instead of the executor; the executor is not affected."""

    async def ask() -> str:
        return await sync_to_async(lambda: "fine", thread_sensitive=False, executor=own)()

    async def below() -> str:
        return await sync_to_async(lambda: asyncio.run(ask()))()

    async with ThreadSensitiveContext(executor=own):
        assert "fine" == await sync_to_async(async_to_sync(below), thread_sensitive=False)()


async def test_late_call_from_a_block_with_an_own_executor_is_refused(own: concurrent.futures.Executor) -> None:
    go_on = asyncio.Event()

    async def later() -> None:
        await go_on.wait()
        await look()

    async with ThreadSensitiveContext(executor=own):
        task = asyncio.create_task(later())
    go_on.set()
    with pytest.raises(RuntimeError, match="after the end of the ThreadSensitiveContext"):
        await task


async def test_own_executor_keeps_thread_critical_values() -> None:
    critical, plain = Local(thread_critical=True), Local()
    with concurrent.futures.ThreadPoolExecutor(1) as own:

        def write() -> None:
            critical.value = plain.value = "written"

        async with ThreadSensitiveContext(executor=own):
            await sync_to_async(write)()
        assert "written" == plain.value
        assert not hasattr(critical, "value")
        assert "written" == own.submit(lambda: critical.value).result(LIMIT)


async def test_cancelled_block_does_not_wait_for_its_worker(own: concurrent.futures.Executor) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        wait_for(go_on)

    async def request() -> None:
        async with ThreadSensitiveContext(executor=own):
            await sync_to_async(work)()

    task = asyncio.create_task(request())
    await asyncio.to_thread(wait_for, begun)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    go_on.set()


# AsyncSingleThreadContext:


def test_calls_share_one_thread_and_one_loop() -> None:
    async def where() -> tuple[asyncio.AbstractEventLoop, threading.Thread]:
        return asyncio.get_running_loop(), thread()

    with AsyncSingleThreadContext():
        places = {async_to_sync(where)() for _ in range(10)}
        assert 1 == len(places)
        [(loop, ran_on)] = places
    assert loop.is_closed()
    assert ran_on in idle_workers()
    assert async_to_sync(where)()[0] is not loop


def test_outermost_single_thread_block_counts() -> None:
    outer = AsyncSingleThreadContext()
    with outer:
        loop = async_to_sync(running_loop)()
        with outer, AsyncSingleThreadContext():
            assert loop is async_to_sync(running_loop)()
        assert loop is async_to_sync(running_loop)()
    with outer:
        assert loop is not async_to_sync(running_loop)()


def test_block_without_a_call_starts_nothing() -> None:
    before = threading.active_count()
    with AsyncSingleThreadContext():
        assert before == threading.active_count()


def test_tasks_run_on_between_calls_and_still_reach_a_thread() -> None:
    done = threading.Event()

    async def background() -> None:
        await asyncio.sleep(0)
        await sync_to_async(done.set)()

    tasks = []

    async def start() -> None:
        tasks.append(asyncio.create_task(background()))

    with AsyncSingleThreadContext():
        async_to_sync(start)()
        wait_for(done)


def test_end_cancels_and_awaits_what_still_runs() -> None:
    """The thread that leaves runs jobs meanwhile."""
    ended: list[Any] = []

    async def background() -> None:
        try:
            await asyncio.sleep(LIMIT)
        finally:
            await asyncio.create_task(sync_to_async(lambda: ended.append(thread()))(), context=contextvars.Context())

    async def start() -> None:
        ended.append(asyncio.create_task(background()))
        await asyncio.sleep(0)

    with AsyncSingleThreadContext():
        async_to_sync(start)()
    assert [thread()] == ended[1:]


def test_sensitive_code_comes_back_to_each_blocked_thread() -> None:
    barrier = threading.Barrier(4)

    async def back() -> threading.Thread:
        await sync_to_async(barrier.wait)(LIMIT)
        return await look()

    with AsyncSingleThreadContext():

        def call() -> bool:
            return async_to_sync(back)() is thread()

        context = contextvars.copy_context()
        assert [True] * 4 == [one.get() for one in [Thread(context.copy().run, call) for _ in range(4)]]


def test_nested_calls_in_a_single_thread_block() -> None:
    async def outer() -> tuple[asyncio.AbstractEventLoop, ...]:
        here = asyncio.get_running_loop()
        home = await sync_to_async(async_to_sync(running_loop))()
        fresh = await sync_to_async(async_to_sync(running_loop, force_new_loop=True))()
        return here, home, fresh

    with AsyncSingleThreadContext():
        here, home, fresh = async_to_sync(outer)()
    assert here is home is not fresh


async def test_single_thread_block_serves_an_asynchronous_callers_threads() -> None:
    with AsyncSingleThreadContext():
        loops = {await asyncio.to_thread(async_to_sync(running_loop)) for _ in range(3)}
        home = await sync_to_async(async_to_sync(running_loop))()
    assert 1 == len(loops)
    assert asyncio.get_running_loop() is home
    [loop] = loops
    deadline = asyncio.get_running_loop().time() + LIMIT
    while not loop.is_closed():  # on its own thread, because this one must not be blocked
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.001)


def test_ended_single_thread_block_counts_no_more() -> None:
    with AsyncSingleThreadContext():
        context = contextvars.copy_context()
        loop = async_to_sync(running_loop)()
    assert loop is not context.run(async_to_sync(running_loop))


def test_neither_an_exit_nor_a_stop_ends_the_loop_of_others() -> None:
    async def leave() -> None:
        raise SystemExit

    async def main() -> None:
        await asyncio.gather(leave())

    async def stop() -> None:
        asyncio.get_running_loop().stop()
        await asyncio.sleep(0)

    with AsyncSingleThreadContext():
        loop = async_to_sync(running_loop)()
        with pytest.raises(SystemExit):
            async_to_sync(main)()
        async_to_sync(stop)()
        assert loop is async_to_sync(running_loop)()


def test_exit_in_the_cleanup_of_a_background_task_comes_out_of_the_block() -> None:
    """The exit is raised at the end of the block, as ``asyncio.run`` would raise it."""
    begun = threading.Event()

    async def work() -> None:
        try:
            begun.set()
            await asyncio.sleep(LIMIT)
        finally:
            raise SystemExit(3)

    async def main() -> None:
        tasks.append(asyncio.create_task(work()))

    tasks: list[asyncio.Task[None]] = []
    with pytest.raises(SystemExit, match="3"), AsyncSingleThreadContext():
        async_to_sync(main)()
        wait_for(begun)
    assert isinstance(tasks[0].exception(), SystemExit)


def test_loop_that_ends_by_an_error_as_its_block_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """1. The block finds its loop in use. 2. The loop ends with an error. 3. The block tells the loop to end."""

    class Loop(asyncio.SelectorEventLoop):
        def run_forever(self) -> None:
            super().run_forever()
            if errors:
                raise errors.pop()

    def report(kept: KeptLoop) -> None:
        report_it(kept)
        reported.set()

    def close(kept: KeptLoop, mailbox: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the block calls again if this fails
            kept.loop.call_soon_threadsafe(kept.loop.stop)
        wait_for(reported)
        close_it(kept, mailbox)

    errors = [OSError("of the selector")]
    reported = threading.Event()
    report_it, close_it = KeptLoop.report, KeptLoop.close
    monkeypatch.setattr(KeptLoop, "report", report)
    monkeypatch.setattr(KeptLoop, "close", close)
    monkeypatch.setattr(asyncio, "new_event_loop", Loop)

    def block() -> None:
        with AsyncSingleThreadContext():
            loops.append(async_to_sync(running_loop)())

    loops: list[Any] = []
    with pytest.raises(OSError, match=r"^of the selector$"):
        Thread(block).get()
    assert loops[0] not in AsyncToSync.loop_thread_executors


async def test_block_that_is_left_twice() -> None:
    """The second exit does nothing."""
    block = ThreadSensitiveContext()
    async with block:
        await block.__aexit__(None, None, None)
        assert SyncToAsync.thread_sensitive_context.get(None) is None


def test_single_thread_block_that_is_left_twice() -> None:
    """The second exit does nothing."""
    block = AsyncSingleThreadContext()
    with block:
        loop = async_to_sync(running_loop)()
        block.__exit__(None, None, None)
        assert loop.is_closed()


# Class attributes that other packages set:


async def test_foreign_context_objects_have_a_thread_each() -> None:
    """Recipes set and reset the variable themselves; the worker is released when the object is freed."""

    class Foreign:
        pass

    outside = await look()
    foreign = Foreign()
    token = SyncToAsync.thread_sensitive_context.set(foreign)
    one = await look()
    assert one is await look() is not outside
    SyncToAsync.thread_sensitive_context.reset(token)
    assert outside is await look()
    executor = SyncToAsync.context_to_thread_executor.pop(foreign)
    executor.shutdown()
    assert one in idle_workers()


async def test_worker_of_a_forgotten_foreign_context_comes_back() -> None:
    class Foreign:
        pass

    def call() -> contextvars.Context:
        context = contextvars.copy_context()
        context.run(SyncToAsync.thread_sensitive_context.set, Foreign())
        return context

    ran_on = await asyncio.create_task(look(), context=call())
    for _ in range(1000):
        import gc

        gc.collect()
        if ran_on in idle_workers():
            break
        await asyncio.sleep(0.01)
    assert ran_on in idle_workers()


async def test_foreign_executor_for_a_foreign_context(own: concurrent.futures.Executor) -> None:
    class Foreign:
        pass

    foreign = Foreign()
    SyncToAsync.context_to_thread_executor[foreign] = own
    context = contextvars.copy_context()
    context.run(SyncToAsync.thread_sensitive_context.set, foreign)
    assert (await asyncio.create_task(look(), context=context)).name.startswith("own")


def test_process_wide_executor_can_be_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    barrier = threading.Barrier(2)

    async def main() -> None:
        await asyncio.gather(sync_to_async(barrier.wait)(LIMIT), sync_to_async(barrier.wait)(LIMIT))

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        monkeypatch.setattr(SyncToAsync, "single_thread_executor", pool)
        asyncio.run(main())


def test_worker_executor_is_an_executor() -> None:
    executor = workers.WorkerExecutor()
    assert 3 == executor.submit(sum, [1, 2]).result(LIMIT)
    with pytest.raises(ZeroDivisionError):
        executor.submit(lambda: 1 / 0).result(LIMIT)
    [ran_on] = executor._threads
    finished(executor)
    executor.shutdown()
    assert ran_on in idle_workers()
    with pytest.raises(RuntimeError, match="accepts no more calls"):
        executor.submit(thread)
