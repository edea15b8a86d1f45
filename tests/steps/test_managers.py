"""``sync_to_async_context_manager``: threads, contexts, the end of blocks, errors."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import inspect
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from asgiref.sync import (
    ThreadSensitiveContext,
    async_to_sync,
    bridge_calls,
    sync_to_async,
    sync_to_async_context_manager,
    sync_to_async_iterator,
)

from ..helpers import LIMIT, Thread, wait_for

me = threading.get_ident


async def until_set(event: threading.Event) -> None:
    await asyncio.wait_for(asyncio.get_running_loop().run_in_executor(None, event.wait, LIMIT), LIMIT)


class Manager:
    """A manager that records its calls and their threads; entering and leaving may wait."""

    def __init__(self, suppresses: bool = False, fails: BaseException | None = None) -> None:
        self.suppresses, self.fails = suppresses, fails
        self.entered: list[int] = []
        self.left: list[tuple[int, Any]] = []
        self.is_left = threading.Event()
        self.busy, self.go_on = threading.Event(), threading.Event()
        self.waits_in = ""

    def _wait(self, where: str) -> None:
        if self.waits_in == where:
            self.busy.set()
            wait_for(self.go_on)

    def __enter__(self) -> int:
        self._wait("enter")
        self.entered.append(me())
        return len(self.entered)

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> bool:
        self._wait("exit")
        self.left.append((me(), kind))
        self.is_left.set()
        if self.fails is not None:
            raise self.fails
        return self.suppresses


# Blocks


async def test_enter_and_exit_are_on_one_thread() -> None:
    manager = Manager()
    expected = await sync_to_async(me)()
    bridged = sync_to_async_context_manager(manager)
    async with bridged as value:
        assert (1, [expected], []) == (value, manager.entered, manager.left)
    assert [(expected, None)] == manager.left
    async with bridged as value, bridged as inner:  # entered again
        assert (2, 3) == (value, inner)
    assert 3 == len(manager.left)


async def test_exceptions_go_in() -> None:
    manager = Manager()
    with pytest.raises(KeyError, match="it"):
        async with sync_to_async_context_manager(manager):
            raise KeyError("it")
    async with sync_to_async_context_manager(Manager(suppresses=True)):
        raise KeyError("it")
    with pytest.raises(ValueError, match="of exit") as caught:
        async with sync_to_async_context_manager(Manager(fails=ValueError("of exit"))):
            raise KeyError("it")
    assert isinstance(caught.value.__context__, KeyError)
    assert [KeyError] == [kind for _, kind in manager.left]


async def test_enter_that_fails_leaves_nothing() -> None:
    class Failing(Manager):
        def __enter__(self) -> int:
            raise KeyError("no")

    manager = Failing()
    with pytest.raises(KeyError):
        async with sync_to_async_context_manager(manager, thread_sensitive=False):
            pytest.fail("entered")
    assert [] == manager.left


async def test_worker_and_executor() -> None:
    manager = Manager()
    thread_of_process = await sync_to_async(me)()  # chosen first: it could be the worker that the block releases
    async with sync_to_async_context_manager(manager, thread_sensitive=False):
        assert await sync_to_async(me, thread_sensitive=False)() not in manager.entered
    assert manager.entered == [thread for thread, _ in manager.left]
    assert manager.entered[0] not in (me(), thread_of_process)
    with ThreadPoolExecutor(max_workers=2) as executor, pytest.raises(TypeError, match="exactly one thread"):
        sync_to_async_context_manager(manager, thread_sensitive=False, executor=executor)


def test_thread_that_waits_in_async_to_sync() -> None:
    manager = Manager()

    async def main() -> None:
        async with sync_to_async_context_manager(manager):
            assert manager.entered == [await sync_to_async(me)()]

    async_to_sync(main)()
    assert ([me()], [(me(), None)]) == (manager.entered, manager.left)


async def test_thread_has_left() -> None:
    manager = Manager()
    async with contextlib.AsyncExitStack() as stack, ThreadSensitiveContext():
        await stack.enter_async_context(sync_to_async_context_manager(manager))
    assert [(await sync_to_async(me)(), None)] == manager.left


def test_function_that_would_block_its_own_loop_is_refused() -> None:
    async def here() -> None:
        with pytest.raises(RuntimeError, match="deadlock"):
            async with sync_to_async_context_manager(Manager()):
                pytest.fail("entered")

    async def main() -> None:
        await sync_to_async(lambda: asyncio.run(here()))()

    async_to_sync(main)()


# Contexts

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")


async def test_variables_come_back_and_tokens_are_valid() -> None:
    @contextlib.contextmanager
    def language(name: str) -> Iterator[None]:
        token = variable.set(name)
        yield
        assert name == variable.get()
        variable.reset(token)

    async def consume() -> None:
        async with sync_to_async_context_manager(language)("nl"):
            assert "nl" == variable.get()
            async with sync_to_async_context_manager(language("fr")):
                assert "fr" == variable.get()
            assert "nl" == variable.get()
        with pytest.raises(LookupError):
            variable.get()

    await asyncio.get_running_loop().create_task(consume(), context=contextvars.Context())


# Cancellation


async def test_cancelled_while_entering() -> None:
    """1. __enter__ waits. 2. The await is cancelled, and ends. 3. __enter__ ends. 4. __exit__ gets the error."""
    manager = Manager()
    manager.waits_in = "enter"
    task = asyncio.ensure_future(sync_to_async_context_manager(manager).__aenter__())
    await until_set(manager.busy)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ([], []) == (manager.entered, manager.left)
    manager.go_on.set()
    await until_set(manager.is_left)
    assert [(await sync_to_async(me)(), asyncio.CancelledError)] == manager.left


async def test_cancelled_before_it_is_entered() -> None:
    """1. The thread is busy. 2. Entering is cancelled in the queue. 3. Neither __enter__ nor __exit__ is called."""
    other, manager = Manager(), Manager()
    other.waits_in = "enter"
    busy = asyncio.ensure_future(sync_to_async(other.__enter__)())
    await until_set(other.busy)
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(sync_to_async_context_manager(manager).__aenter__(), 0.001)
    other.go_on.set()
    await busy
    assert ([], []) == (manager.entered, manager.left)


async def test_cancelled_in_the_coroutine_for_which_enter_waits() -> None:
    """The coroutine swallows the first cancellation, and a second one comes: the block was entered, so it is left."""
    begun, second = asyncio.Event(), asyncio.Event()

    async def wait() -> None:
        try:
            begun.set()
            await asyncio.sleep(LIMIT)
        except asyncio.CancelledError:
            task.cancel()
            second.set()
            await asyncio.sleep(0)

    class Waiting(Manager):
        def __enter__(self) -> int:
            async_to_sync(wait)()
            return super().__enter__()

    manager = Waiting()
    task = asyncio.ensure_future(sync_to_async_context_manager(manager).__aenter__())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until_set(manager.is_left)
    assert [asyncio.CancelledError] == [kind for _, kind in manager.left]


@pytest.mark.parametrize("fails", [False, True])
async def test_cancelled_while_leaving(fails: bool) -> None:
    """1. The thread is busy. 2. Leaving is cancelled in the queue. 3. __exit__ still runs; its error is reported."""
    told: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.set_result(context["exception"]))
    other, manager = Manager(), Manager(fails=ValueError("late") if fails else None)
    other.waits_in = "enter"
    bridged = sync_to_async_context_manager(manager)
    await bridged.__aenter__()
    busy = asyncio.ensure_future(sync_to_async(other.__enter__)())
    await until_set(other.busy)
    task = asyncio.ensure_future(bridged.__aexit__(None, None, None))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    other.go_on.set()
    await busy
    await until_set(manager.is_left)
    assert [(await sync_to_async(me)(), None)] == manager.left
    if fails:
        assert isinstance(await asyncio.wait_for(told, LIMIT), ValueError)


@pytest.mark.parametrize("kind", ["manager", "iterator"])
async def test_error_of_the_end_stays_when_its_caller_is_cancelled_again(kind: str) -> None:
    """The first cancellation goes to the coroutine for which the end waits. Its error hides the second one."""
    begun, cleaning, go_on = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def wait() -> None:
        try:
            begun.set()
            await asyncio.sleep(LIMIT)
        except asyncio.CancelledError:
            cleaning.set()
            await go_on.wait()
            raise LookupError from None

    class Waiting(Manager):
        def __exit__(self, *args: Any) -> bool:
            return async_to_sync(wait)()  # type: ignore[return-value]

        def __iter__(self) -> Iterator[int]:
            return self

        def __next__(self) -> int:
            return 1

        def close(self) -> None:
            async_to_sync(wait)()

    async def use() -> None:
        if kind == "manager":
            async with sync_to_async_context_manager(Waiting()):
                pass
        else:
            items = sync_to_async_iterator(Waiting())
            await anext(items)
            await items.aclose()

    task = asyncio.create_task(use())
    async with asyncio.timeout(LIMIT):
        await begun.wait()
        task.cancel()
        await cleaning.wait()
        task.cancel()
        await asyncio.sleep(0)
        go_on.set()
        with pytest.raises(LookupError):
            await task


async def test_block_that_is_dropped_half_way_is_left_on_its_thread() -> None:
    """The coroutine of the task and the generator of the manager are in one reference cycle."""
    closed: list[int] = []
    is_closed = threading.Event()

    @sync_to_async_context_manager
    @contextlib.contextmanager
    def session() -> Iterator[None]:
        try:
            yield
        finally:
            closed.append(me())
            is_closed.set()

    async def work() -> AsyncIterator[None]:
        async with session():
            yield

    steps = work()
    await anext(steps)
    del steps
    gc.collect()
    await until_set(is_closed)
    assert [await sync_to_async(me)()] == closed


# Several tasks


async def test_each_task_leaves_its_own_block() -> None:
    """1. Two tasks enter one bridged manager, on two threads. 2. The first one to enter leaves first."""
    manager = Manager()
    bridged = sync_to_async_context_manager(manager, thread_sensitive=False)
    entered, go_on = asyncio.Event(), asyncio.Event()
    threads: list[int] = []

    async def first() -> None:
        async with bridged:
            threads.append(manager.entered[-1])
            entered.set()
            await go_on.wait()

    task = asyncio.create_task(first())
    await entered.wait()
    async with bridged:
        threads.append(manager.entered[-1])
        go_on.set()
        await task
    assert threads == [thread for thread, _ in manager.left]
    assert threads[0] != threads[1]


async def test_another_task_leaves_the_block() -> None:
    manager = Manager()
    bridged = sync_to_async_context_manager(manager)
    await asyncio.create_task(bridged.__aenter__())
    assert not await bridged.__aexit__(None, None, None)
    with pytest.raises(RuntimeError, match="no block is open"):
        await bridged.__aexit__(None, None, None)


@pytest.mark.needs_internals
async def test_deadlock_of_two_tasks_is_named() -> None:
    """1. A task holds a lock.

    2. Another task enters it on the same thread, and blocks that. 3. The exit is in the queue.
    """
    lock = threading.Lock()
    release = threading.Event()
    blocked = threading.Event()

    class Acquire:
        def __enter__(self) -> None:
            if not lock.acquire(False):
                blocked.set()
                wait_for(release)  # instead of acquire(), so that the test ends
                lock.acquire()

        def __exit__(self, *exc_info: object) -> None:
            lock.release()

    first, second = (sync_to_async_context_manager(Acquire()) for _ in range(2))
    await first.__aenter__()
    entering = asyncio.ensure_future(second.__aenter__())
    await until_set(blocked)
    leaving = asyncio.ensure_future(first.__aexit__(None, None, None))
    await asyncio.sleep(0)
    states = sorted((call.state, call.working_thread) for call in bridge_calls() if "Acquire" in call.function)
    assert ["queued", "running"] == [state for state, _ in states]
    assert 1 == len({thread for _, thread in states})
    lock.release()
    release.set()
    await entering
    lock.acquire(False)
    await leaving
    with contextlib.suppress(RuntimeError):
        await second.__aexit__(None, None, None)


# Wrong arguments, decorated functions


async def test_what_is_no_manager_is_refused() -> None:
    @contextlib.asynccontextmanager
    async def manager() -> AsyncIterator[None]:
        yield

    async def coroutine() -> None: ...

    async def generator() -> AsyncIterator[None]:
        yield

    bridge: Any = sync_to_async_context_manager
    with pytest.raises(TypeError, match="needs a context manager, but the argument is 1"):
        bridge(1)
    with pytest.raises(TypeError, match="is asynchronous"):
        bridge(manager())
    for function in coroutine, generator:
        with pytest.raises(TypeError, match="needs a synchronous function"):
            bridge(function)
    with pytest.raises(TypeError, match="needs a context manager"):
        bridge(coroutine())
    with pytest.raises(TypeError, match="what int returned is 0"):
        async with bridge(int)():
            pytest.fail("entered")


async def test_decorated_functions() -> None:
    class Store:
        """A class with a decorated method."""

        @sync_to_async_context_manager(thread_sensitive=False)
        @contextlib.contextmanager
        def session(self, name: str) -> Iterator[tuple[str, int]]:
            """Open it."""
            yield name, me()

    store = Store()
    async with store.session("one") as (name, thread), Store.session(store, "two") as (other, _):
        assert ("one", "two") == (name, other)
        assert thread not in (me(), await sync_to_async(me)())
    assert ("session", "Open it.") == (Store.session.__name__, Store.session.__doc__)
    assert ["name"] == list(inspect.signature(store.session).parameters)
    async with sync_to_async_context_manager(Manager)() as value:
        assert 1 == value


def test_two_loops_share_nothing() -> None:
    manager = Manager()

    async def main() -> None:
        async with sync_to_async_context_manager(manager):
            pass

    Thread(asyncio.run, main()).get()
    asyncio.run(main())
    assert 2 == len(manager.left)
