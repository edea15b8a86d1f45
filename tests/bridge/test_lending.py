"""Executors whose threads are all blocked, while the calls that they wait for are queued in the same executor."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from concurrent.futures.thread import BrokenThreadPool
from typing import Any, TypeVar

import pytest

from asgiref._bridge import lending
from asgiref._bridge.jobs import SubmittedCall
from asgiref._bridge.lending import lending_executor
from asgiref.current_thread_executor import CurrentThreadExecutor
from asgiref.sync import AsyncSingleThreadContext, SyncToAsync, ThreadSensitiveContext, async_to_sync, sync_to_async

from ..helpers import LIMIT, Thread, no_garbage, wait_for

pytestmark = pytest.mark.needs_internals

R = TypeVar("R")


def anywhere(function: Callable[..., R]) -> Callable[..., Coroutine[Any, Any, R]]:
    return sync_to_async(function, thread_sensitive=False)


class Pool(ThreadPoolExecutor):
    """A default executor for the running loop, whose threads have a known name."""

    def __init__(self, size: int) -> None:
        super().__init__(size, thread_name_prefix="pool")
        asyncio.get_running_loop().set_default_executor(self)


def thread_name() -> str:
    return threading.current_thread().name


def all_blocked(size: int) -> Callable[[], object]:
    """Return a function that returns when *size* threads have called it."""
    return functools.partial(threading.Barrier(size).wait, LIMIT)


async def test_all_threads_are_blocked_by_what_waits_for_them() -> None:
    Pool(2)
    blocked = all_blocked(2)

    async def wait() -> str:
        return await anywhere(thread_name)()

    def block() -> tuple[str, str]:
        blocked()
        return thread_name(), async_to_sync(wait)()

    first, second = await asyncio.wait_for(asyncio.gather(anywhere(block)(), anywhere(block)()), LIMIT)
    # The first thread that is free again may run the other one's call.
    assert first[0] == first[1] or second[0] == second[1]
    assert {"pool_0", "pool_1"} >= {first[1], second[1]}


async def test_executor_of_the_library_given_by_hand() -> None:
    """An executor of the library is treated like one of the standard library."""
    here = sync_to_async(threading.get_ident, thread_sensitive=False, executor=SyncToAsync.single_thread_executor)

    async def ask() -> int:
        return await here()

    blocked = await asyncio.wait_for(sync_to_async(async_to_sync(ask))(), LIMIT)
    assert await sync_to_async(threading.get_ident)() == blocked == await here()


async def test_blocked_thread_that_its_executor_has_not_noted_yet() -> None:
    """1. The executor starts its thread.

    2. That thread blocks below a call for the executor. 3. The executor records it.
    """
    asked = threading.Event()

    class Lock:
        """The lock that is held from the first step to the third; shows which thread waits for it."""

        def __init__(self, lock: Any) -> None:
            self._lock = lock
            self._holder: int | None = None

        def __enter__(self) -> None:
            if self._holder not in (None, threading.get_ident()):
                asked.set()
            self._lock.acquire()
            self._holder = threading.get_ident()

        def __exit__(self, *exc_info: object) -> None:
            self._holder = None
            self._lock.release()

    class Threads(set[Any]):
        def add(self, thread: Any) -> None:
            wait_for(asked)
            super().add(thread)

    with ThreadPoolExecutor(1) as pool:
        pool._threads = Threads()
        pool._shutdown_lock = Lock(pool._shutdown_lock)  # type: ignore[assignment]
        in_pool = sync_to_async(thread_name, thread_sensitive=False, executor=pool)

        async def ask() -> bool:
            return await in_pool() == thread_name_of_pool[0]

        def block() -> bool:
            thread_name_of_pool.append(thread_name())
            return async_to_sync(ask)()

        thread_name_of_pool: list[str] = []
        # On another thread, because this one starts the thread of the executor.
        submitted = Thread(pool.submit, block)
        assert await asyncio.wait_for(asyncio.wrap_future(await asyncio.to_thread(submitted.get)), LIMIT)


@pytest.mark.parametrize("depth", [2, 12])
async def test_one_thread_does_all_that_it_waits_for(depth: int) -> None:
    Pool(1)

    def descend(levels: int) -> set[str]:
        return {thread_name()} | (async_to_sync(go_on)(levels - 1) if levels else set())

    async def go_on(levels: int) -> set[str]:
        return await anywhere(descend)(levels)

    # Further down, the loop of the outer call is asked, and it stays the same.
    assert {"pool_0"} == await asyncio.wait_for(anywhere(descend)(depth), LIMIT)


async def test_blocked_thread_lends_itself_across_threads_between() -> None:
    """The thread that waits for the call directly is not one of the executor, but the thread above it is."""
    Pool(1)

    async def ask() -> str:
        return await anywhere(thread_name)()

    async def below() -> list[str]:
        async with ThreadSensitiveContext(executor=own):
            return await sync_to_async(lambda: [thread_name(), async_to_sync(ask)()])()

    with ThreadPoolExecutor(1, thread_name_prefix="own") as own:
        names = await asyncio.wait_for(anywhere(lambda: [thread_name(), *async_to_sync(below)()])(), LIMIT)
    assert ["pool_0", "own_0", "pool_0"] == names


async def test_blocked_thread_lends_itself_at_the_innermost_wait() -> None:
    """The thread runs thread-sensitive code of its own call, which waits, too."""
    Pool(1)

    async def ask() -> str:
        return await anywhere(thread_name)()

    async def below() -> list[str]:
        return await sync_to_async(lambda: [thread_name(), async_to_sync(ask)()])()

    names = await asyncio.wait_for(anywhere(lambda: [thread_name(), *async_to_sync(below)()])(), LIMIT)
    assert ["pool_0", "pool_0", "pool_0"] == names


def test_blocked_thread_that_came_by_other_ways_lends_itself() -> None:
    async def ask() -> str:
        return await anywhere(thread_name)()

    async def main() -> tuple[str, str]:
        Pool(1)
        return await asyncio.to_thread(lambda: (thread_name(), async_to_sync(ask)()))

    with AsyncSingleThreadContext():
        assert ("pool_0", "pool_0") == async_to_sync(main)()


async def test_busy_thread_is_waited_for_while_another_is_blocked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call must not go to the blocked thread if it waits for a job that this thread has yet to run."""
    looks: list[bool] = []
    looked = asyncio.Event()
    is_starved = lending.is_starved

    def look(executor: Any) -> bool:
        looks.append(is_starved(executor))
        if len(looks) == 3:
            looked.set()
        return looks[-1]

    monkeypatch.setattr(lending, "is_starved", look)
    monkeypatch.setattr(lending, "FIRST_LOOK", 0)
    Pool(2)
    busy, release, done = threading.Event(), threading.Event(), threading.Event()

    def occupy() -> None:
        busy.set()
        wait_for(release)

    async def ask() -> None:
        loop = asyncio.get_running_loop()
        occupied = loop.run_in_executor(None, occupy)
        await sync_to_async(wait_for)(busy)
        waiting = asyncio.ensure_future(anywhere(wait_for)(done))
        await looked.wait()
        # It runs on the blocked thread, which must be free for it.
        await sync_to_async(done.set)()
        release.set()
        await waiting
        await occupied

    await asyncio.wait_for(anywhere(async_to_sync(ask))(), LIMIT)
    assert not any(looks[:3])


async def test_pool_that_may_start_another_thread_is_not_starved() -> None:
    pool = Pool(2)
    starved: list[bool] = []

    async def ask() -> None:
        starved.append(lending.is_starved(pool))

    await anywhere(async_to_sync(ask))()
    assert [False] == starved


@pytest.mark.parametrize("threads", [4, None, {"name": "thread"}, [object()]])
async def test_executor_with_other_things_for_threads(threads: object) -> None:
    class Odd(Executor):
        _threads = threads

        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            return pool.submit(fn, *args, **kwargs)

    pool, odd = ThreadPoolExecutor(1), Odd()

    async def ask() -> str:
        return await sync_to_async(str, thread_sensitive=False, executor=odd)("result")

    assert "result" == await asyncio.wait_for(anywhere(async_to_sync(ask))(), LIMIT)
    pool.shutdown()


async def test_executor_that_breaks_is_heard() -> None:
    """The executor fails calls that it has accepted, without running them."""
    started: list[int] = []

    def start() -> None:
        started.append(1)
        if len(started) > 1:
            raise LookupError("no second thread")

    pool = ThreadPoolExecutor(2, initializer=start)

    async def ask() -> None:
        await sync_to_async(thread_name, thread_sensitive=False, executor=pool)()

    with pytest.raises(BrokenThreadPool):
        await asyncio.wait_for(sync_to_async(async_to_sync(ask), thread_sensitive=False, executor=pool)(), LIMIT)
    pool.shutdown()


async def test_call_keeps_to_a_free_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lending, "FIRST_LOOK", 10 * LIMIT)
    Pool(2)

    async def ask() -> str:
        return await anywhere(thread_name)()

    own, other = await asyncio.wait_for(anywhere(lambda: (thread_name(), async_to_sync(ask)()))(), LIMIT)
    assert {"pool_0", "pool_1"} == {own, other}


def test_thread_outside_the_executor_does_not_lend_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the executor is busy, the waiting main thread runs no calls that were not meant for it."""
    monkeypatch.setattr(lending, "FIRST_LOOK", 0)
    release, busy = threading.Event(), threading.Event()

    def occupy() -> None:
        busy.set()
        wait_for(release)

    async def main() -> str:
        Pool(1)
        loop = asyncio.get_running_loop()
        occupied = loop.run_in_executor(None, occupy)
        asked = asyncio.ensure_future(anywhere(thread_name)())
        # Thread-sensitive code runs on the waiting thread, twice: a lent call would have run by then.
        for _ in range(2):
            await sync_to_async(wait_for)(busy)
        assert not asked.done()
        release.set()
        await occupied
        return await asked

    assert "pool_0" == async_to_sync(main)()


@pytest.mark.parametrize("size", [1, 2])
async def test_executor_of_the_callers_own(size: int) -> None:
    """With one thread or several: its blocked threads run the calls that they wait for."""

    async def ask(levels: int) -> set[str]:
        return await sync_to_async(descend, thread_sensitive=False, executor=own)(levels - 1)

    def descend(levels: int) -> set[str]:
        return {thread_name()} | (async_to_sync(ask)(levels) if levels else set())

    with ThreadPoolExecutor(size, thread_name_prefix="own") as own:
        names = await asyncio.wait_for(ask(5), LIMIT)
    assert {f"own_{number}" for number in range(size)} == names


async def test_executor_that_shows_no_threads_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lending, "FIRST_LOOK", 0)

    class Opaque(Executor):
        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            return opaque.submit(fn, *args, **kwargs)

    async def ask() -> str:
        return await sync_to_async(thread_name, thread_sensitive=False, executor=Opaque())()

    with ThreadPoolExecutor(1, thread_name_prefix="opaque") as opaque:
        assert "opaque_0" == await asyncio.wait_for(anywhere(async_to_sync(ask))(), LIMIT)


async def test_outcomes_are_those_of_any_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lending, "FIRST_LOOK", 0)
    Pool(1)
    variable = contextvars.ContextVar("variable", default="unset")

    def change() -> str:
        variable.set("set below")
        return "result"

    def fail() -> None:
        raise LookupError("below")

    async def ask() -> tuple[str, str]:
        with pytest.raises(LookupError, match="below"):
            await anywhere(fail)()
        return await anywhere(change)(), variable.get()

    assert ("result", "set below") == await asyncio.wait_for(anywhere(async_to_sync(ask))(), LIMIT)


class HeldExecutor(Executor):
    """An executor that runs nothing by itself."""

    def __init__(self, thread: int) -> None:
        self.calls: list[Callable[[], Any]] = []
        self.future: Future[Any] = Future()
        self._threads = {type("Thread", (), {"ident": thread})}

    def submit(self, fn: Callable[[], Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.calls.append(fn)
        return self.future


class Lent:
    """One call that an executor holds, and that is offered at once to the mailbox of this thread."""

    def __init__(self, function: Callable[[], Any], loop: asyncio.AbstractEventLoop) -> None:
        self.mailbox = CurrentThreadExecutor(None)
        self.executor = HeldExecutor(threading.get_ident())
        lender = lending_executor(self.executor, loop, [self.mailbox], default=False)
        assert lender is not None
        self.future = lender.submit(function)

    def this_thread_waits(self) -> None:
        """Serve the mailbox until all its current jobs are done."""
        self.mailbox.post(SubmittedCall(self.mailbox.stop, (), {}))
        self.mailbox.serve()

    def executor_runs_it(self) -> None:
        self.executor.calls[0]()
        self.executor.future.set_result(None)


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(lending, "FIRST_LOOK", 0)
    monkeypatch.setattr(lending, "is_starved", lambda executor: True)
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


def turn(loop: asyncio.AbstractEventLoop) -> None:
    """Let *loop* check twice."""

    async def two_looks() -> None:
        for _ in range(4):
            await asyncio.sleep(0)

    loop.run_until_complete(two_looks())


def test_executor_comes_first(loop: asyncio.AbstractEventLoop) -> None:
    ran: list[int] = []
    lent = Lent(functools.partial(ran.append, 1), loop)
    turn(loop)
    lent.executor_runs_it()
    lent.this_thread_waits()
    lent.mailbox.close()
    assert [1] == ran
    assert lent.future.done()


def test_executor_comes_before_the_offer(loop: asyncio.AbstractEventLoop) -> None:
    ran: list[int] = []
    lent = Lent(functools.partial(ran.append, 1), loop)
    lent.executor_runs_it()
    turn(loop)
    assert not lent.mailbox._jobs
    assert [1] == ran


def test_blocked_thread_comes_first(loop: asyncio.AbstractEventLoop) -> None:
    ran: list[int] = []
    lent = Lent(functools.partial(ran.append, 1), loop)
    turn(loop)
    lent.this_thread_waits()
    assert [1] == ran
    lent.executor_runs_it()
    lent.mailbox.close()
    assert [1] == ran
    assert lent.future.done()


def test_executor_comes_while_the_blocked_thread_runs_the_call(loop: asyncio.AbstractEventLoop) -> None:
    ran: list[int] = []

    def run() -> None:
        ran.append(1)
        Thread(lent.executor_runs_it).get()
        assert not lent.future.done()

    lent = Lent(run, loop)
    turn(loop)
    lent.this_thread_waits()
    assert [1] == ran
    assert lent.future.result(0) is None


@pytest.mark.parametrize("run_rest", [True, False])
def test_thread_that_no_longer_waits_leaves_the_call_to_its_executor(
    loop: asyncio.AbstractEventLoop, run_rest: bool
) -> None:
    lent = Lent(thread_name, loop)
    turn(loop)
    lent.mailbox.close(run_rest=run_rest)
    assert not lent.future.done()
    Thread(lent.executor_runs_it).get()
    assert threading.current_thread().name != lent.future.result(0)


def test_call_that_its_caller_takes_back_is_not_run(loop: asyncio.AbstractEventLoop) -> None:
    ran: list[int] = []
    lent = Lent(functools.partial(ran.append, 1), loop)
    assert lent.future.cancel()
    turn(loop)
    lent.this_thread_waits()
    lent.executor_runs_it()
    assert [] == ran


def test_executor_that_drops_its_calls(loop: asyncio.AbstractEventLoop) -> None:
    lent = Lent(thread_name, loop)
    assert lent.executor.future.cancel()
    assert lent.future.cancelled()
    turn(loop)
    lent.this_thread_waits()


def test_executor_that_drops_a_call_which_runs_elsewhere(loop: asyncio.AbstractEventLoop) -> None:
    lent = Lent(lambda: lent.executor.future.cancel() and "result", loop)
    turn(loop)
    lent.this_thread_waits()
    assert "result" == lent.future.result(0)


async def test_cancelled_call_never_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lending, "FIRST_LOOK", 10 * LIMIT)
    Pool(1)
    ran: list[int] = []

    async def ask() -> str:
        asked = asyncio.ensure_future(anywhere(ran.append)(1))
        await asyncio.sleep(0)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        return "continued"

    assert "continued" == await asyncio.wait_for(anywhere(async_to_sync(ask))(), LIMIT)
    await anywhere(thread_name)()
    assert [] == ran


def test_nothing_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lending, "FIRST_LOOK", 0)

    def fail() -> None:
        raise LookupError

    async def ask() -> None:
        with pytest.raises(LookupError):
            await anywhere(fail)()
        await anywhere(thread_name)()

    async def main() -> None:
        Pool(1)
        await anywhere(async_to_sync(ask))()

    asyncio.run(main())
    with no_garbage():
        asyncio.run(main())
