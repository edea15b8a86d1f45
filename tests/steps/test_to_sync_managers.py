"""``async_to_sync_context_manager``: one task and one loop, calls in the block, exceptions, cancellation."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import inspect
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from types import TracebackType
from typing import Any

import pytest

from asgiref._steps import threads as steps_threads
from asgiref.sync import (
    AsyncSingleThreadContext,
    async_to_sync,
    async_to_sync_context_manager,
    bridge_calls,
    sync_to_async,
)

from ..helpers import LIMIT, Thread, collect_until, no_garbage, output_of, wait_for

me = threading.get_ident


class Manager:
    """A manager that records what happens to it."""

    suppresses: Any = False

    def __init__(self) -> None:
        self.tasks: list[Any] = []
        self.loops: list[asyncio.AbstractEventLoop] = []
        self.reasons: list[Any] = []
        self.is_left = threading.Event()

    async def __aenter__(self) -> Manager:
        await self.note()
        return self

    async def note(self) -> None:
        await asyncio.sleep(0)
        self.tasks.append(asyncio.current_task())
        self.loops.append(asyncio.get_running_loop())

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> Any:
        await self.note()
        self.reasons.append(error)
        self.is_left.set()
        return self.suppresses


async def running_loop() -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()


def block_of(manager: Any) -> Any:
    [block] = manager._blocks
    return block


# One task, one loop


def test_enter_and_exit_are_in_one_task_of_a_loop_that_lives_for_the_block() -> None:
    manager = Manager()
    with async_to_sync_context_manager(manager) as value:
        assert manager is value
        assert manager.loops[0].is_running()
    assert 1 == len({*manager.tasks})
    assert [None] == manager.reasons
    assert manager.loops[0].is_closed()


def test_calls_in_the_block_run_on_its_loop() -> None:
    manager = Manager()
    with async_to_sync_context_manager(manager):
        assert async_to_sync(running_loop)() is manager.loops[0]
        with async_to_sync_context_manager(Manager()) as other:
            assert async_to_sync(running_loop)() is manager.loops[0] is other.loops[0]
        assert async_to_sync(running_loop)() is manager.loops[0]
    assert async_to_sync(running_loop)() is not manager.loops[0]
    assert 2 == len({*manager.tasks, *other.tasks})


async def test_home_loop_is_used() -> None:
    def use() -> Any:
        with async_to_sync_context_manager(Manager()) as manager:
            return *manager.loops, async_to_sync(running_loop)()

    assert {asyncio.get_running_loop()} == {*await sync_to_async(use)()}


def test_loop_of_the_enclosing_block_is_used() -> None:
    with AsyncSingleThreadContext():
        expected = async_to_sync(running_loop)()
        with async_to_sync_context_manager(Manager()) as manager:
            assert async_to_sync(running_loop)() is expected
        assert expected.is_running()
    assert [expected, expected] == manager.loops


def test_task_group_across_the_block() -> None:
    """Tasks of the group run during the block; one that calls sync code waits for the end of the block."""
    ran = threading.Event()
    threads: list[int] = []

    async def work() -> None:
        ran.set()
        threads.append(await sync_to_async(me)())

    @async_to_sync_context_manager
    @contextlib.asynccontextmanager
    async def session() -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group:
            group.create_task(work())
            yield

    with session():
        wait_for(ran)
        assert [] == threads
    assert [me()] == threads


def test_manager_may_be_entered_again_if_it_may() -> None:
    manager = Manager()
    bridged = async_to_sync_context_manager(manager)
    with bridged, bridged:
        assert 2 == len({*manager.tasks})
    with bridged:
        pass
    assert 3 == len({*manager.tasks})
    lock = asyncio.Lock()
    bridged_lock = async_to_sync_context_manager(lock)
    with AsyncSingleThreadContext():
        for _ in range(2):
            with bridged_lock:
                assert lock.locked()
        assert not lock.locked()


def test_two_threads_that_enter_the_same_manager_leave_their_own_blocks() -> None:
    manager = Manager()
    bridged = async_to_sync_context_manager(manager)
    entered, go_on = threading.Event(), threading.Event()

    def other() -> None:
        with bridged:
            entered.set()
            wait_for(go_on)

    thread = Thread(other)
    wait_for(entered)
    with bridged:
        mine = manager.tasks[-1]
        go_on.set()
        thread.get()
        assert mine.get_loop().is_running()
    assert manager.tasks == [manager.tasks[0], mine, manager.tasks[0], mine]


def test_exit_on_another_thread_leaves_the_last_block() -> None:
    manager = Manager()
    bridged = async_to_sync_context_manager(manager)
    context = contextvars.copy_context()
    context.run(bridged.__enter__)
    assert False is Thread(context.run, bridged.__exit__, None, None, None).get()
    assert [None] == manager.reasons
    with pytest.raises(RuntimeError, match="no block is open"):
        bridged.__exit__(None, None, None)


def test_sync_code_of_a_manager_runs_on_this_thread() -> None:
    threads: list[int] = []

    @async_to_sync_context_manager
    @contextlib.asynccontextmanager
    async def session() -> AsyncIterator[int]:
        threads.append(await sync_to_async(me)())
        yield 1
        threads.append(await sync_to_async(me)())

    with session() as value:
        assert 1 == value
    assert [me(), me()] == threads


# Contexts

number: contextvars.ContextVar[int] = contextvars.ContextVar("number")


def test_context_variables_go_along_and_changes_come_back() -> None:
    @async_to_sync_context_manager
    @contextlib.asynccontextmanager
    async def session() -> AsyncIterator[int]:
        token = number.set(number.get() + 1)
        yield number.get()
        assert 2 == number.get()
        number.reset(token)

    def use() -> None:
        number.set(1)
        with session() as value:
            assert (2, 2) == (value, number.get())
        assert 1 == number.get()

    contextvars.Context().run(use)


# Exceptions


def test_exception_goes_in_and_comes_out() -> None:
    manager = Manager()
    error = LookupError()
    with pytest.raises(LookupError) as raised, async_to_sync_context_manager(manager):
        raise error
    assert raised.value is error
    assert [error] == manager.reasons


def test_exception_may_be_suppressed() -> None:
    manager = Manager()
    manager.suppresses = "yes"
    with async_to_sync_context_manager(manager):
        raise LookupError
    assert 1 == len(manager.reasons)


def test_exception_may_be_replaced() -> None:
    @async_to_sync_context_manager
    @contextlib.asynccontextmanager
    async def session() -> AsyncIterator[None]:
        try:
            yield
        except LookupError as error:
            raise ValueError from error

    with pytest.raises(ValueError), session():
        raise LookupError


def test_enter_that_fails_leaves_nothing_open() -> None:
    left: list[asyncio.AbstractEventLoop] = []

    @async_to_sync_context_manager
    @contextlib.asynccontextmanager
    async def session() -> AsyncIterator[None]:
        left.append(asyncio.get_running_loop())
        raise LookupError
        yield

    with pytest.raises(LookupError), session():
        raise AssertionError
    assert left[0].is_closed()
    assert async_to_sync(running_loop)() is not async_to_sync(running_loop)()
    assert set() == steps_threads._open


def test_wrong_kinds_of_objects_are_refused() -> None:
    with pytest.raises(TypeError, match="is synchronous"):
        async_to_sync_context_manager(threading.Lock())  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="but the argument is 1"):
        async_to_sync_context_manager(1)  # type: ignore[call-overload]

    async def generator() -> AsyncIterator[int]:
        yield 1

    def sync_generator() -> Iterator[int]:
        yield 1

    async def coroutine() -> Any:
        raise AssertionError

    for function in (generator, sync_generator):
        with pytest.raises(TypeError, match=r"decorate .* with contextlib.asynccontextmanager first"):
            async_to_sync_context_manager(function)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="returns a coroutine"):
        async_to_sync_context_manager(coroutine)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"what .*lambda.* returned is synchronous"):
        async_to_sync_context_manager(lambda: threading.Lock())().__enter__()  # type: ignore[arg-type, return-value]
    with pytest.raises(TypeError, match=r"what .*lambda.* returned is <coroutine"):
        async_to_sync_context_manager(lambda: coroutine())().__enter__()  # type: ignore[arg-type, return-value]


async def test_entering_in_the_thread_of_a_loop_is_refused() -> None:
    with pytest.raises(RuntimeError, match="in a thread that runs an event loop"):
        async_to_sync_context_manager(Manager()).__enter__()


def test_decorated_functions() -> None:
    @async_to_sync_context_manager()
    @contextlib.asynccontextmanager
    async def session(name: str, *, times: int = 1) -> AsyncIterator[str]:
        """A session."""
        yield name * times

    with session("a", times=2) as value:
        assert "aa" == value
    assert ("session", "A session.") == (session.__name__, session.__doc__)
    assert str(inspect.signature(session)).startswith("(name: 'str', *, times: 'int' = 1)")

    class Store:
        @async_to_sync_context_manager
        @contextlib.asynccontextmanager
        async def session(self) -> AsyncIterator[Any]:
            yield self

    store = Store()
    with store.session() as value:
        assert store is value
    with async_to_sync_context_manager(Manager)() as manager:
        assert isinstance(manager, Manager)


# Cancellation


async def test_cancellation_of_the_enclosing_call_goes_to_enter() -> None:
    waits = asyncio.Event()
    left: list[BaseException | None] = []

    @async_to_sync_context_manager
    @contextlib.asynccontextmanager
    async def session() -> AsyncIterator[None]:
        try:
            waits.set()
            await asyncio.sleep(LIMIT)
            yield
        except BaseException as error:
            left.append(error)
            raise

    def use() -> None:
        with session():
            raise AssertionError

    task = asyncio.create_task(sync_to_async(use)())
    await waits.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert isinstance(left[0], asyncio.CancelledError)


def test_timeout_takes_effect_at_the_end_of_the_block() -> None:
    with pytest.raises(TimeoutError), async_to_sync_context_manager(asyncio.timeout)(0.01) as timeout:
        while not timeout.expired():
            async_to_sync(asyncio.sleep)(0.001)
    with pytest.raises(TimeoutError):  # instead of the error in the block, because the timeout came first
        bridged = async_to_sync_context_manager(asyncio.timeout)(0)
        with bridged:
            while not block_of(bridged).over:
                async_to_sync(asyncio.sleep)(0.001)
            raise LookupError


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("suppresses", [False, True])
def test_cancellation_while_the_block_is_open_leads_to_exit_at_once(fails: bool, suppresses: bool) -> None:
    manager = Manager()
    manager.suppresses = suppresses
    expected: Any = contextlib.nullcontext()
    if fails:
        expected = pytest.raises(LookupError)
    elif not suppresses:
        expected = pytest.raises(asyncio.CancelledError)
    with expected, async_to_sync_context_manager(manager):
        manager.loops[0].call_soon_threadsafe(manager.tasks[0].cancel)
        wait_for(manager.is_left)
        if fails:
            raise LookupError
    assert isinstance(manager.reasons[0], asyncio.CancelledError)
    assert 1 == len(manager.reasons)


def test_exit_that_comes_while_a_cancellation_leaves_the_block_waits_for_what_comes_of_it() -> None:
    """1. The task is cancelled while the block is open. 2. A thread leaves the block. 3. __aexit__() ends."""
    leaving, go_on = threading.Event(), asyncio.Event()

    class Slow(Manager):
        async def __aexit__(self, *reason: Any) -> Any:
            leaving.set()
            await go_on.wait()
            return await super().__aexit__(*reason)

    manager = Slow()
    bridged = async_to_sync_context_manager(manager)
    context = contextvars.copy_context()
    context.run(bridged.__enter__)
    loop = manager.loops[0]
    loop.call_soon_threadsafe(manager.tasks[0].cancel)
    wait_for(leaving)
    thread = Thread(context.run, bridged.__exit__, None, None, None)
    collect_until(lambda: not thread.is_alive() or bridge_calls())
    loop.call_soon_threadsafe(go_on.set)
    with pytest.raises(asyncio.CancelledError):
        thread.get()
    assert 1 == len(manager.reasons)


def test_exit_that_comes_when_the_task_has_just_ended() -> None:
    """The thread leaves the block; then a cancellation ends the task, before the loop runs the exit."""
    manager = Manager()
    with pytest.raises(asyncio.CancelledError):
        bridged = async_to_sync_context_manager(manager)
        with bridged:
            block = block_of(bridged)
            accept = block.accept

            def accept_late(step: Any, loop: asyncio.AbstractEventLoop) -> Any:
                block.task.cancel()
                block.task.add_done_callback(lambda task: accept(step, loop))
                return None

            block.accept = accept_late
    assert 1 == len(manager.reasons)


def test_exit_and_cancellation_in_the_same_turn_of_the_loop() -> None:
    manager = Manager()
    with pytest.raises(asyncio.CancelledError):
        bridged = async_to_sync_context_manager(manager)
        with bridged:
            block = block_of(bridged)
            accept = block.accept

            def cancel_and_accept(step: Any, loop: asyncio.AbstractEventLoop) -> Any:
                block.task.cancel()
                return accept(step, loop)

            block.accept = cancel_and_accept
    assert 1 == len(manager.reasons)


def test_end_of_the_loop_leaves_the_block() -> None:
    manager = Manager()
    bridged = async_to_sync_context_manager(manager)
    with AsyncSingleThreadContext():
        bridged.__enter__()
    assert 1 == len(manager.reasons)
    with pytest.raises(asyncio.CancelledError):
        bridged.__exit__(None, None, None)


# Interrupts


@contextlib.contextmanager
def keyboard_interrupts() -> Iterator[Any]:
    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield lambda: signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, old)


def test_interrupt_of_an_enter_that_comes_to_its_end_all_the_same_leaves_what_was_entered() -> None:
    manager = Manager()
    with keyboard_interrupts() as send:

        class Absorbing(Manager):
            async def __aenter__(self) -> Manager:
                asyncio.get_running_loop().call_soon(send)
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(LIMIT)
                return await super().__aenter__()

        manager = Absorbing()
        with pytest.raises(KeyboardInterrupt), async_to_sync_context_manager(manager):
            raise AssertionError
    assert [KeyboardInterrupt] == [type(error) for error in manager.reasons]


def test_second_interrupt_gives_up_waiting_and_the_block_is_left_later() -> None:
    """Each interrupt cancels __aenter__(), which nevertheless runs to its end."""

    class Slow(Manager):
        async def __aenter__(self) -> Manager:
            asyncio.get_running_loop().call_soon(send)
            for absorbed in range(2):
                try:
                    await asyncio.sleep(LIMIT)
                except asyncio.CancelledError:
                    if not absorbed:
                        send()
            return await super().__aenter__()

    manager = Slow()
    # On a loop that continues: the end of a new loop would be awaited.
    with keyboard_interrupts() as send, AsyncSingleThreadContext():
        with pytest.raises(KeyboardInterrupt):
            async_to_sync_context_manager(manager).__enter__()
        wait_for(manager.is_left)
    assert [asyncio.CancelledError] == [type(error) for error in manager.reasons]


def test_second_interrupt_of_an_enter_that_fails_leaves_nothing() -> None:
    go_on = threading.Event()
    failed = threading.Event()

    class Slow(Manager):
        async def __aenter__(self) -> Manager:
            asyncio.get_running_loop().call_soon(send)
            try:
                await asyncio.sleep(LIMIT)
            finally:
                send()
                while not go_on.is_set():
                    with contextlib.suppress(asyncio.CancelledError):
                        await asyncio.sleep(0.001)
                failed.set()
            return self

    manager = Slow()
    with keyboard_interrupts() as send, AsyncSingleThreadContext():
        try:
            with pytest.raises(KeyboardInterrupt):
                async_to_sync_context_manager(manager).__enter__()
        finally:
            go_on.set()
        wait_for(failed)
    assert [] == manager.reasons


def test_manager_that_is_dropped_in_a_block_leaves_it() -> None:
    """An interrupt may come between __enter__() and the block."""
    manager = Manager()
    contextvars.Context().run(async_to_sync_context_manager(manager).__enter__)
    gc.collect()
    wait_for(manager.is_left)
    collect_until(manager.loops[0].is_closed)


# Calls in flight, garbage, the end of the process


def test_bridge_calls_shows_enter_and_exit_and_no_open_block() -> None:
    looks: list[Any] = []

    @async_to_sync_context_manager
    @contextlib.asynccontextmanager
    async def session() -> AsyncIterator[None]:
        await sync_to_async(lambda: looks.append(bridge_calls()))()
        yield
        await sync_to_async(lambda: looks.append(bridge_calls()))()

    with session():
        assert [] == bridge_calls()
    for step, _ in looks:
        assert step.function.endswith("session")
        names = [frame.name for frame in step.stack]
        assert "session" in names
        assert "test_bridge_calls_shows_enter_and_exit_and_no_open_block" in names


def test_nothing_stays() -> None:
    @async_to_sync_context_manager
    @contextlib.asynccontextmanager
    async def session() -> AsyncIterator[None]:
        await sync_to_async(int)()
        yield

    def use() -> None:
        with session():
            pass
        with contextlib.suppress(LookupError), session():
            raise LookupError

    with AsyncSingleThreadContext():
        use()
        with no_garbage():
            use()
    assert set() == steps_threads._open


def test_exit_of_the_process_in_a_block() -> None:
    assert ["entered", "left"] == output_of(
        """
import contextlib
@async_to_sync_context_manager
@contextlib.asynccontextmanager
async def session():
    print("entered")
    try:
        yield
    finally:
        print("left")
with session():
    sys.exit()
"""
    )
