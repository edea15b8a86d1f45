"""``bridge_calls``: the calls in flight, and what they wait for."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import doctest
import functools
import io
import logging
import os
import queue
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from asgiref import sync
from asgiref._bridge import builds, register
from asgiref._bridge.workers import WorkerExecutor, WorkerPool
from asgiref._diagnosis import look as look_module
from asgiref._diagnosis import register_look
from asgiref._diagnosis.look import Look
from asgiref._diagnosis.register_look import RegisterLook
from asgiref.sync import (
    AsyncSingleThreadContext,
    BridgeCall,
    ThreadSensitiveContext,
    async_to_sync,
    bridge_calls,
    print_bridge_calls,
    sync_to_async,
)

from ..helpers import LIMIT, ROOT, Thread, let_idle_threads_run, no_garbage, output_of, wait_for

# Frames of other threads are read where that is safe; the register works everywhere in CPython.
KINDS = [False] * (not builds.FREE_THREADED) + [True] * (sys.implementation.name == "cpython")


@pytest.fixture(autouse=True, params=KINDS, ids=lambda kept: "register" if kept else "frames")
def each_kind_of_look(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both kinds of look give the same answer."""
    monkeypatch.setattr(register, "KEPT", request.param)
    if request.param:
        monkeypatch.setattr(register_look, "PATIENCE", LIMIT)
        deadline = time.monotonic() + LIMIT
        while threading.active_count() > 50:  # idle workers of other tests; the stacks of a hundred threads are known
            assert time.monotonic() < deadline
            time.sleep(0.1)


class Hold:
    """A function that runs until the test lets it end."""

    def __init__(self) -> None:
        self.begun, self.go_on = threading.Event(), threading.Event()

    def hold(self) -> None:
        self.begun.set()
        wait_for(self.go_on)

    async def until_begun(self) -> None:
        await until(self.begun.is_set)


@pytest.fixture
def held() -> Iterator[Hold]:
    hold = Hold()
    yield hold
    hold.go_on.set()


def named(name: str) -> BridgeCall:
    """Return the one call in flight of a function with that name."""
    [call] = [call for call in bridge_calls() if call.function.endswith(name)]
    return call


async def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline, bridge_calls()
        await asyncio.sleep(0.001)


def way(call: BridgeCall) -> list[str]:
    """Return the functions in the stack, from those of this module on, and the passages."""
    names = [frame.name.partition(",")[0] if not frame.filename else frame.name for frame in call.stack]
    files = [frame.filename for frame in call.stack]
    return [name for name, file in zip(names, files, strict=True) if file in ("", __file__)]


def nothing() -> None:
    pass


def look() -> list[BridgeCall]:
    return bridge_calls()


def here() -> str:
    return threading.current_thread().name


async def test_no_call_is_in_flight() -> None:
    await sync_to_async(nothing)()
    assert [] == bridge_calls()


async def test_function_on_a_thread() -> None:
    task = asyncio.current_task()
    assert task is not None

    def looks() -> tuple[str, list[BridgeCall]]:
        return here(), bridge_calls()

    before = time.time()
    thread, [call] = await sync_to_async(looks)()
    assert ("sync_to_async", looks.__qualname__, "running") == (call.direction, call.function, call.state)
    assert (task.get_name(), here()) == (call.waiting_task, call.waiting_thread)
    assert (thread, f"thread {thread!r}") == (call.working_thread, call.where)
    assert type(asyncio.get_running_loop()).__qualname__ == call.loop
    assert call.since is not None
    assert call.duration is not None
    assert before - 1 <= call.since <= time.time() + 1
    assert 0 <= call.duration <= LIMIT
    assert (None, None, ()) == (call.parent, call.parent_name, call.circle)
    name = f"sync_to_async({looks.__qualname__})"
    assert ["test_function_on_a_thread", name, "looks"] == way(call)[-3:]


def test_coroutine_on_a_loop() -> None:
    async def looks() -> tuple[str, list[BridgeCall]]:
        return here(), bridge_calls()

    loop_thread, [call] = async_to_sync(looks)()
    assert ("async_to_sync", "running", None) == (call.direction, call.state, call.waiting_task)
    assert (here(), loop_thread) == (call.waiting_thread, call.working_thread)
    assert f"the {call.loop} of thread {loop_thread!r}" == call.where
    assert loop_thread.endswith(": event loop of async_to_sync")
    assert ["test_coroutine_on_a_loop", f"async_to_sync({looks.__qualname__})", "looks"] == way(call)[-3:]


def test_coroutine_in_its_first_step_on_a_running_loop() -> None:
    async def looks() -> list[BridgeCall]:
        return bridge_calls()

    def there() -> list[BridgeCall]:
        return async_to_sync(looks)()

    one, two = asyncio.run(sync_to_async(there)())
    assert ("async_to_sync", "running", one.ident) == (two.direction, two.state, two.parent)
    assert (here(), one.waiting_thread) == (two.working_thread, two.working_thread)
    assert [f"async_to_sync({looks.__qualname__})", "looks"] == way(two)[-2:]


async def test_call_that_waits_for_a_pool_of_workers(held: Hold) -> None:
    pool = WorkerPool(1)
    tasks = [asyncio.create_task(sync_to_async(held.hold, thread_sensitive=False, executor=pool)())]
    await held.until_begun()
    tasks.append(asyncio.create_task(sync_to_async(nothing, thread_sensitive=False, executor=pool)()))
    await until(lambda: len(bridge_calls()) == 2)
    call = named("nothing")
    assert ("queued", "the queue of a pool of 1 workers") == (call.state, call.where)
    held.go_on.set()
    await asyncio.gather(*tasks)


async def test_task_that_ends_during_a_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """1. A look has the tasks. 2. A task ends. 3. It is left out."""
    tasks, ended = look_module._tasks, asyncio.create_task(asyncio.sleep(0))
    await ended
    with monkeypatch.context() as patch:
        patch.setattr(look_module, "_tasks", lambda loops: tasks(loops) | {ended})
        assert [] == bridge_calls()


async def test_frames_that_are_cleared_during_a_look(held: Hold, monkeypatch: pytest.MonkeyPatch) -> None:
    """1. A look has the frames.

    2. Their call ends, and other code clears them, as unittest does. 3. They are left out.
    """
    kind: Any = RegisterLook if register.KEPT else Look
    stacks, pool = kind._find_stacks, WorkerExecutor()

    def outdated_stacks(look: Any) -> Any:
        found = stacks(look)
        held.go_on.set()
        pool.submit(nothing).result(LIMIT)
        for stack in found.values():
            for frame in stack:
                # It is running, or is only a copy of a frame.
                with contextlib.suppress(RuntimeError, AttributeError):
                    frame.clear()
        return found

    task = asyncio.create_task(sync_to_async(held.hold, thread_sensitive=False, executor=pool)())
    await held.until_begun()
    with monkeypatch.context() as patch:
        patch.setattr(kind, "_find_stacks", outdated_stacks)
        assert ["returning"] == [call.state for call in bridge_calls()]
    await task
    pool.shutdown()


async def test_calls_inside_each_other() -> None:
    """Nested calls in both directions: three stacks become one."""

    async def back() -> list[BridgeCall]:
        return await sync_to_async(look)()

    def there() -> list[BridgeCall]:
        return async_to_sync(back)()

    one, two, three = await sync_to_async(there)()
    assert (None, one.ident, two.ident) == (one.parent, two.parent, three.parent)
    assert (f"sync_to_async({there.__qualname__})", f"async_to_sync({back.__qualname__})") == (
        two.parent_name,
        three.parent_name,
    )
    assert (two.waiting_thread, one.waiting_thread) == (three.working_thread, two.working_thread)
    expected = ["test_calls_inside_each_other", two.parent_name, "there", three.parent_name, "back"]
    expected += ["sync_to_async(look)", "look"]
    for call in one, two, three:
        assert expected == way(call)[-7:]


async def test_queued_in_the_mailbox_of_a_waiting_thread(held: Hold) -> None:
    async def two_calls() -> None:
        await asyncio.gather(sync_to_async(held.hold)(), sync_to_async(nothing)())

    def waits() -> None:
        async_to_sync(two_calls)()

    task = asyncio.create_task(sync_to_async(waits)())
    await held.until_begun()
    call, waiting = named("nothing"), named("two_calls")
    assert ("queued", f"the mailbox of thread {waiting.waiting_thread!r}") == (call.state, call.where)
    assert (waiting.waiting_thread, waiting.ident) == (call.working_thread, call.parent)
    assert way(call)[-2:] == ["two_calls", "sync_to_async(nothing)"]
    assert waiting.ident == named("Hold.hold").parent
    held.go_on.set()
    await task


async def test_queued_behind_a_call_on_a_leased_worker(held: Hold) -> None:
    async with ThreadSensitiveContext():
        tasks = [asyncio.create_task(sync_to_async(function)()) for function in (held.hold, nothing)]
        await held.until_begun()
        await until(lambda: named("nothing"))
        call, running = named("nothing"), named("Hold.hold")
        assert ("queued", f"the queue of thread {running.working_thread!r}") == (call.state, call.where)
        assert running.working_thread == call.working_thread
        assert str(call.working_thread).endswith(": ThreadSensitiveContext")
        held.go_on.set()
        await asyncio.gather(*tasks)


@pytest.mark.parametrize("default", [True, False])
async def test_queued_in_a_full_executor(held: Hold, default: bool) -> None:
    loop = asyncio.get_running_loop()
    executor = ThreadPoolExecutor(1)
    if default:
        loop.set_default_executor(executor)
    own = None if default else executor
    tasks = [
        asyncio.create_task(sync_to_async(function, thread_sensitive=False, executor=own)())
        for function in (held.hold, nothing)
    ]
    await held.until_begun()
    call = named("nothing")
    assert ("queued", None) == (call.state, call.working_thread)
    assert call.where.startswith("the queue of ")  # uvloop does not show its default executor
    assert default or call.where.endswith("ThreadPoolExecutor with 1 threads")
    assert "running" == named("Hold.hold").state
    assert named("Hold.hold").duration is not None
    held.go_on.set()
    await asyncio.gather(*tasks)
    executor.shutdown()


async def gathers(call: Awaitable[Any]) -> Any:
    return (await asyncio.gather(call))[0]


async def shields(call: Awaitable[Any]) -> Any:
    return await asyncio.shield(call)


async def has_a_limit(call: Awaitable[Any]) -> Any:
    return await asyncio.wait_for(call, LIMIT)


async def waits(call: Awaitable[Any]) -> Any:
    [task], _ = await asyncio.wait([asyncio.ensure_future(call)])
    return task.result()


async def groups(call: Any) -> Any:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(call)
    return task.result()


async def generates(call: Awaitable[Any]) -> Any:
    async def generator() -> AsyncIterator[Any]:
        yield await call

    [item] = [item async for item in generator()]
    return item


async def asks_for_the_next(call: Awaitable[Any]) -> Any:
    async def generator() -> AsyncIterator[Any]:
        yield await call

    items = generator()
    return await anext(items, None)


class Wrapped:
    def __init__(self, call: Awaitable[Any]) -> None:
        self._call = call

    def __await__(self) -> Any:
        return (yield from self._call.__await__())


async def awaits_an_object(call: Awaitable[Any]) -> Any:
    return await Wrapped(call)


WAYS = [gathers, shields, has_a_limit, waits, groups, generates, asks_for_the_next, awaits_an_object]


@pytest.mark.parametrize("waiting", WAYS, ids=lambda function: function.__name__)
def test_way_of_waiting_is_followed(waiting: Callable[[Awaitable[Any]], Awaitable[Any]]) -> None:
    """The call belongs to the task that waits for it, by any means of asyncio."""

    async def main() -> Any:
        return await waiting(sync_to_async(look)())

    outer, inner = async_to_sync(main)()
    assert outer.ident == inner.parent
    for call in outer, inner:
        stack = way(call)
        assert ["main", waiting.__name__] == stack[stack.index("main") :][:2]
        assert ["sync_to_async(look)", "look"] == stack[-2:]


def test_two_ways_that_lead_on_end_the_stack_of_the_outer_call() -> None:
    hold = Hold()

    async def two() -> list[BridgeCall]:
        other = asyncio.create_task(sync_to_async(hold.hold, thread_sensitive=False)())
        await hold.until_begun()
        looking = asyncio.create_task(sync_to_async(look, thread_sensitive=False)())
        looking.add_done_callback(lambda task: hold.go_on.set())
        calls, _ = await asyncio.gather(looking, other)
        return calls

    outer, *inner = async_to_sync(two)()
    assert 2 == len(inner)
    assert "two" == way(outer)[-1]
    assert {outer.ident} == {call.parent for call in inner}


def deadlock(ended: list[Any]) -> tuple[Thread, Callable[[], None]]:
    """Start a thread whose calls wait for each other; return it, and a function that ends that."""
    begun = threading.Event()
    state: dict[str, Any] = {}

    async def late() -> None:
        await state["later"].wait()
        await sync_to_async(nothing)()  # for the mailbox of main()

    async def joins() -> None:
        begun.set()
        try:
            await state["task"]
        except asyncio.CancelledError:
            ended.append("cancelled")

    def serves() -> None:
        async_to_sync(joins)()

    async def main() -> None:
        state["loop"], state["later"] = asyncio.get_running_loop(), asyncio.Event()
        state["task"] = asyncio.create_task(late())
        await sync_to_async(serves)()

    thread = Thread(async_to_sync(main))
    wait_for(begun)

    def go_on(function: Callable[[], Any]) -> None:
        state["loop"].call_soon_threadsafe(function)

    assert not any(call.circle for call in bridge_calls())
    go_on(lambda: state["later"].set())
    return thread, lambda: go_on(lambda: state["task"].cancel())


async def test_circle() -> None:
    """A thread serves an inner call, whose task waits for work in the mailbox of the outer call."""
    ended: list[Any] = []
    thread, end = await asyncio.to_thread(deadlock, ended)
    await until(lambda: [call for call in bridge_calls() if call.function == "nothing"])
    calls = {call.function.rpartition(".")[2]: call for call in bridge_calls()}
    names = {name: f"{call.direction}({call.function})" for name, call in calls.items()}
    assert {"main", "serves", "joins", "nothing"} == set(calls)
    assert () == calls["main"].circle
    assert (names["serves"], names["joins"], names["nothing"]) == calls["serves"].circle
    assert (names["joins"], names["nothing"], names["serves"]) == calls["joins"].circle
    assert (names["nothing"], names["serves"], names["joins"]) == calls["nothing"].circle
    assert f"the mailbox of thread {thread.name!r}" == calls["nothing"].where
    assert "  in a circle: sync_to_async(nothing), which waits for sync_to_async(" in str(calls["nothing"])
    end()
    await asyncio.to_thread(thread.get)
    assert ["cancelled"] == ended


@pytest.mark.parametrize("threads", [1, 2])
async def test_circle_through_an_executor_only_where_each_thread_is_part_of_it(held: Hold, threads: int) -> None:
    executor = ThreadPoolExecutor(threads)
    run = functools.partial(sync_to_async, thread_sensitive=False, executor=executor)
    tasks = [asyncio.create_task(run(held.hold)()) for _ in range(threads - 1)]
    inner: list[asyncio.Task[Any]] = []

    async def back() -> None:
        inner.append(asyncio.create_task(run(nothing)()))
        await inner[0]

    def there() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            async_to_sync(back)()

    if tasks:
        await held.until_begun()
    tasks.append(asyncio.create_task(run(there)()))
    await until(lambda: [call for call in bridge_calls() if call.function == "nothing"])
    assert [3 if threads == 1 else 0] * 3 == [
        len(call.circle) for call in bridge_calls() if not call.function.endswith("hold")
    ]
    if threads == 1:
        inner[0].cancel()
    held.go_on.set()
    await asyncio.gather(*tasks)
    executor.shutdown()


async def test_circle_of_running_calls() -> None:
    """A function waits for a coroutine that waits for the task that awaits the function."""
    tasks: list[asyncio.Task[Any]] = []
    begun = asyncio.Event()

    async def joins() -> None:
        begun.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.shield(tasks[0])

    def serves() -> None:
        async_to_sync(joins)()

    tasks.append(asyncio.create_task(sync_to_async(serves)()))
    await begun.wait()
    await until(lambda: all(call.circle for call in bridge_calls()))
    one, two = bridge_calls()
    assert 2 == len(one.circle) == len(two.circle)
    assert one.ident == two.parent
    assert one.parent is None
    assert str(one)
    tasks[0].cancel()
    await tasks[0]


@pytest.mark.parametrize("wait", [concurrent.futures.Future.result, concurrent.futures.Future.exception])
def test_circle_through_a_coroutine_that_was_given_to_the_loop(wait: Callable[..., Any]) -> None:
    """The thread-sensitive thread waits for the result of a coroutine that needs this thread."""
    loops: queue.SimpleQueue[asyncio.AbstractEventLoop] = queue.SimpleQueue()
    state: dict[str, Any] = {}

    async def fetch() -> None:
        state["task"] = asyncio.current_task()
        await asyncio.create_task(sync_to_async(nothing)())

    def view() -> None:
        future = asyncio.run_coroutine_threadsafe(fetch(), state["loop"])
        with contextlib.suppress(concurrent.futures.CancelledError):
            wait(future)

    async def main() -> None:
        state["loop"] = asyncio.get_running_loop()
        loops.put(state["loop"])
        await sync_to_async(view)()

    thread = Thread(asyncio.run, main())
    loop = loops.get(timeout=LIMIT)
    deadline = time.monotonic() + LIMIT
    while not [call for call in bridge_calls() if call.circle]:
        assert time.monotonic() < deadline, bridge_calls()
        time.sleep(0.001)
    calls = {call.function.rpartition(".")[2]: call for call in bridge_calls()}
    assert {"view", "nothing"} == set(calls)
    names = [f"sync_to_async({calls[name].function})" for name in ("view", "nothing")]
    assert tuple(names) == calls["view"].circle
    assert tuple(names[::-1]) == calls["nothing"].circle
    assert "fetch" in way(calls["view"])
    loop.call_soon_threadsafe(state["task"].cancel)
    thread.get()


def test_thread_that_waits_for_the_future_of_somebody_else(held: Hold) -> None:
    """The future may be completed at any time, so nothing is followed."""
    future: concurrent.futures.Future[None] = concurrent.futures.Future()

    def view() -> None:
        held.begun.set()
        future.result(LIMIT)

    async def main() -> None:
        await asyncio.gather(sync_to_async(view)(), sync_to_async(nothing)())

    thread = Thread(asyncio.run, main())
    wait_for(held.begun)
    assert [()] == list({call.circle for call in bridge_calls()})
    future.set_result(None)
    thread.get()


async def test_function_whose_task_was_cancelled(held: Hold) -> None:
    """The function is still running, but nothing waits for it."""
    task = asyncio.create_task(sync_to_async(held.hold)())
    await held.until_begun()
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    call = named("Hold.hold")
    assert ("running", None, None) == (call.state, call.waiting_task, call.waiting_thread)
    assert call.duration is not None
    assert "  nothing waits for it\n" in str(call)
    held.go_on.set()
    await until(lambda: not bridge_calls())


async def test_cancelled_function_on_an_executor_of_others_began_nobody_knows_when(held: Hold) -> None:
    with ThreadPoolExecutor(1) as executor:
        task = asyncio.create_task(sync_to_async(held.hold, thread_sensitive=False, executor=executor)())
        await held.until_begun()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        call = named("Hold.hold")
        assert (None, None) == (call.since, call.duration)
        assert str(call).startswith("sync_to_async(Hold.hold), running\n")
        held.go_on.set()


async def test_loop_that_does_not_come_to_what_is_queued_and_to_what_returns() -> None:
    """The stack continues with the current work of the loop's thread."""
    held_up, done, asked = threading.Event(), threading.Event(), threading.Event()

    async def never_begun() -> None: ...

    def ends() -> None:
        wait_for(held_up)
        done.set()

    def asks() -> None:
        wait_for(held_up)
        asked.set()
        async_to_sync(never_begun)()

    run = functools.partial(sync_to_async, thread_sensitive=False)
    tasks = [asyncio.create_task(run(function)()) for function in (ends, asks)]
    await asyncio.sleep(0)  # both are posted
    held_up.set()  # from here on, by this task
    wait_for(done)
    wait_for(asked)
    deadline = time.monotonic() + LIMIT
    while [] == [call for call in bridge_calls() if call.state == "queued"] or "returning" != named("ends").state:
        assert time.monotonic() < deadline, bridge_calls()
    returning, queued = named("ends"), named("never_begun")
    assert f"its way to the {returning.loop} of thread {here()!r}" == returning.where
    assert (f"the {queued.loop} of thread {here()!r}", here()) == (queued.where, queued.working_thread)
    for call in returning, queued:
        assert f"thread {here()!r} meanwhile" in way(call)
        assert [sys._getframe().f_code.co_name, "named"] == way(call)[-2:]
    await asyncio.gather(*tasks)


def test_block_with_one_loop() -> None:
    async def looks() -> list[BridgeCall]:
        return bridge_calls()

    with AsyncSingleThreadContext():
        [call] = async_to_sync(looks)()
    assert str(call.working_thread).endswith(": event loop of AsyncSingleThreadContext")


def test_signal_handler() -> None:
    """On a waiting thread, during any of its operations."""
    found: list[list[BridgeCall]] = []
    before = signal.signal(signal.SIGUSR1, lambda *_: found.append(bridge_calls()))
    main = threading.get_ident()

    async def interrupts() -> None:
        signal.pthread_kill(main, signal.SIGUSR1)
        await until(lambda: found)

    try:
        async_to_sync(interrupts)()
    finally:
        signal.signal(signal.SIGUSR1, before)
    [[call]] = found
    assert call.function == interrupts.__qualname__


async def test_signal_handler_on_the_thread_of_a_loop() -> None:
    found: list[list[BridgeCall]] = []
    before = signal.signal(signal.SIGUSR1, lambda *_: found.append(bridge_calls()))
    try:
        await sync_to_async(signal.raise_signal)(signal.SIGUSR1)
        await until(lambda: found)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert len(found[0]) <= 1


def test_other_threads_go_on_meanwhile() -> None:
    """A look raises nothing, whatever the other threads are doing."""
    stop = threading.Event()

    async def back() -> None:
        await asyncio.gather(*[sync_to_async(nothing, thread_sensitive=i % 2 == 0)() for i in range(5)])

    def bridge() -> None:
        while not stop.is_set():
            async_to_sync(back)()

    threads = [Thread(bridge) for _ in range(3)]
    try:
        texts = [str(call) for _ in range(50) for call in bridge_calls()]
    finally:
        stop.set()
        for thread in threads:
            thread.get()
    assert texts


def test_loop_that_is_being_made_is_passed_by() -> None:
    """Another thread is at the first line of the loop's ``__init__``."""
    found: list[list[BridgeCall]] = []

    class Loop(asyncio.SelectorEventLoop):
        def __init__(self) -> None:
            Thread(lambda: found.append(bridge_calls())).get()
            super().__init__()

    Loop().close()
    assert [[]] == found


def test_set_that_changes_meanwhile_is_read_again() -> None:
    attempts: list[Any] = []

    def items(reason: str) -> list[str]:
        attempts.append(reason)
        if len(attempts) < 3:
            raise RuntimeError(reason)
        return ["item"]

    assert ["item"] == look_module._again(items, "Set changed size during iteration")
    attempts.clear()
    assert [] == look_module._again(lambda _: items(attempts.clear() or ""), "always")  # type: ignore[func-returns-value]


class Precious:
    pass


async def test_nothing_of_what_was_seen_is_kept() -> None:
    def looks(precious: Precious) -> Any:
        bridge_calls()
        return weakref.ref(precious)

    with no_garbage():
        for _ in range(2):
            reference = await sync_to_async(looks)(Precious())
            let_idle_threads_run()
            assert reference() is None


async def test_failing_call_that_was_looked_at_leaves_no_cycle() -> None:
    async def back() -> None:
        bridge_calls()
        raise LookupError

    def fails() -> None:
        try:
            raise KeyError
        except KeyError:
            async_to_sync(back)()

    with no_garbage(), contextlib.suppress(LookupError):
        await sync_to_async(fails)()


class Touchy:
    """An object that allows nothing but calling it."""

    def __call__(self) -> list[BridgeCall]:
        return bridge_calls()

    def refuse(self, *args: Any) -> Any:
        raise AssertionError("a look called it")

    __repr__ = __eq__ = __bool__ = __str__ = refuse
    __hash__ = None  # type: ignore[assignment]


async def test_no_code_of_users_is_called() -> None:
    touchy = Touchy()
    [call] = await sync_to_async(touchy)()
    assert "Touchy" == call.function
    [call] = await sync_to_async(functools.partial(functools.partial(touchy)))()
    assert "Touchy" == call.function
    [call] = await sync_to_async(functools.partial(look))()
    assert "look" == call.function


def test_call_is_frozen_and_says_what_it_is() -> None:
    [call] = async_to_sync(sync_to_async(look))()[:1]
    with pytest.raises(dataclasses.FrozenInstanceError):
        call.state = "x"  # type: ignore[misc]
    assert "stack=" not in repr(call)
    assert sync.BridgeCall is BridgeCall
    with pytest.raises(AttributeError, match="has no attribute 'no_such_name'"):
        sync.no_such_name


def test_printed(capsys: pytest.CaptureFixture[str]) -> None:
    print_bridge_calls()
    assert ("", "no bridge call is in flight\n") == capsys.readouterr()
    text = io.StringIO()

    def prints() -> None:
        print_bridge_calls(text)

    async_to_sync(sync_to_async(prints))()
    one, two = text.getvalue().split("\n\n")
    name = prints.__qualname__
    assert re.match(rf"async_to_sync\({re.escape(name)}\), running for \d\.\d\d\d s, since \d\d:\d\d:\d\d\n", one)
    assert f'  File "{__file__}", line ' in one
    assert "in prints\n    print_bridge_calls(text)\n" not in two
    assert two.endswith(f"  inside async_to_sync({name})\n  its stack is that of async_to_sync({name})\n")
    assert one.endswith("in prints\n    print_bridge_calls(text)")


async def test_printed_where_only_tasks_wait() -> None:
    """Without a call in flight, the awaited objects of all tasks are the next question."""
    queues = [asyncio.Queue[None]() for _ in range(2)]
    text = io.StringIO()

    async def worker(number: int) -> None:
        await queues[number].get()

    async def waits() -> None:
        await asyncio.gather(*workers)

    workers = [asyncio.create_task(worker(number), name=f"worker {number}") for number in range(2)]
    other = asyncio.create_task(waits(), name="zoo")
    await asyncio.sleep(0)
    await asyncio.to_thread(print_bridge_calls, text)
    first, *rest = text.getvalue().split("\n\n")
    assert "no bridge call is in flight; the pending tasks of all loops:" == first
    tasks = {part.split("'")[1]: part for part in rest if part}
    loop = f"the {type(asyncio.get_running_loop()).__qualname__} of thread 'MainThread'"
    one, two, zoo = (tasks[name] for name in ("worker 0", "worker 1", "zoo"))
    assert one.startswith(f"task 'worker 0' of {loop}\n  File ")
    assert one.endswith(", in worker\n    await queues[number].get()")
    assert f"task 'worker 1' of {loop}\n  its stack is that of task 'worker 0'" == two
    assert zoo.startswith(f"task 'zoo' of {loop} waits for 'worker 0', 'worker 1'\n")
    for queue_ in queues:
        queue_.put_nowait(None)
    await other


@pytest.mark.skipif(sys.platform != "linux", reason="loops have other names")
def test_output_in_the_documentation(tmp_path: Path) -> None:
    """The program there prints it, except for numbers and for names that "..." replaces."""
    section = (ROOT / "docs" / "sync.rst").read_text().partition("\nFinding stuck calls\n")[2]
    program, expected = [
        textwrap.dedent(block) for block in re.findall(r"code-block:: \w+\n\n((?:    .*\n|\n)+)", section)[:2]
    ]
    (tmp_path / "shop.py").write_text(program)
    path = str(Path(sync.__file__).parent.parent)
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONASYNCIODEBUG": ""}
    shown = subprocess.check_output(
        [sys.executable, "shop.py"], cwd=tmp_path, env=environment, text=True, timeout=LIMIT, stderr=subprocess.STDOUT
    )
    expected, shown = [re.sub(r"\d+\.\d\d\d s|\d\d:\d\d:\d\d|(?<=worker )\d+", "N", text) for text in (expected, shown)]
    shown = shown.replace(f"{tmp_path}{os.sep}", "")
    assert doctest.OutputChecker().check_output(expected.rstrip() + "\n", shown, doctest.ELLIPSIS), shown


def test_look_is_imported_with_the_first_look() -> None:
    code = (
        "import sys, asgiref.sync; print({'asgiref._diagnosis.calls', 'asgiref._diagnosis.watch'} & set(sys.modules))"
    )
    path = str(Path(sync.__file__).parent.parent)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONASYNCIODEBUG"}
    environment["PYTHONPATH"] = path
    assert b"set()\n" == subprocess.check_output([sys.executable, "-c", code], env=environment)


def test_after_a_fork_the_calls_of_the_parent_are_not_there() -> None:
    code = """
begun, go_on = threading.Event(), threading.Event()
def hold():
    begun.set()
    go_on.wait(20)
async def main():
    await asyncio.gather(sync_to_async(hold)(), sync_to_async(len)(""))
thread = threading.Thread(target=asyncio.run, args=[main()])
thread.start()
begun.wait(20)
while len(bridge_calls()) < 2:
    pass
import warnings
warnings.simplefilter("ignore")
sys.stdout.flush()
child = os.fork()
if not child:
    print(bridge_calls(), async_to_sync(sync_to_async(lambda: len(bridge_calls())))(), flush=True)
    os._exit(0)
os.waitpid(child, 0)
print([call.function for call in bridge_calls()])
go_on.set()
thread.join()
"""
    assert ["[] 2", "['hold', 'len']"] == output_of(code)


def test_fork_inside_calls() -> None:
    """Calls that wait for the parent's loop are not in flight in the child."""
    code = """
import warnings
warnings.simplefilter("ignore")
def fork():
    child = os.fork()
    if not child:
        print(bridge_calls(), flush=True)
        os._exit(0)
    os.waitpid(child, 0)
    print(len(bridge_calls()))
async_to_sync(sync_to_async(fork))()
"""
    assert ["[]", "2"] == output_of(code)


async def test_workers_are_named_after_what_they_serve() -> None:
    thread = await sync_to_async(threading.current_thread)()
    assert re.fullmatch(r"asgiref worker \d+: thread-sensitive code of the process", thread.name)
    async with ThreadSensitiveContext():
        thread = await sync_to_async(threading.current_thread)()
        assert re.fullmatch(r"asgiref worker \d+: ThreadSensitiveContext", thread.name)
        assert thread in threading.enumerate()
        assert thread.daemon
        with pytest.raises(RuntimeError):
            thread.daemon = False
        assert f"({thread.name}, started daemon {thread.ident})>" in repr(thread)
    assert re.fullmatch(r"asgiref worker \d+: idle", thread.name)


async def test_log_records_have_the_name(caplog: pytest.LogCaptureFixture) -> None:
    def log() -> str:
        logging.getLogger("test").warning("here")
        return here()

    assert await sync_to_async(log)() == caplog.records[0].threadName


async def test_worker_has_the_name_that_somebody_gives_it() -> None:
    """The worker has exactly that name; an earlier name can be set again, any number of times."""

    def rename() -> list[str]:
        thread, names = threading.current_thread(), []
        for name in ("request 1", "request 2", ""):
            before = thread.name
            thread.name = name
            names += [before, thread.name]
            assert f"({thread.name}, started daemon {thread.ident})>" in repr(thread)
            outer, thread.name = thread.name, "inner"
            thread.name = outer
            names.append(thread.name)
            thread.name = before
        return [*names, thread.name]

    async with ThreadSensitiveContext():
        own = await sync_to_async(here)()
        for _ in range(2):
            names = [own, "request 1", "request 1", own, "request 2", "request 2", own, "", "", own]
            assert names == await sync_to_async(rename)()
        thread = await sync_to_async(threading.current_thread)()
    assert own.replace("ThreadSensitiveContext", "idle") == thread.name


async def test_name_that_is_left_behind_ends_with_the_lease() -> None:
    async with ThreadSensitiveContext():
        thread = await sync_to_async(threading.current_thread)()
        thread.name = "left behind"
        assert "left behind" == await sync_to_async(here)()
    assert re.fullmatch(r"asgiref worker \d+: idle", thread.name)
    async with ThreadSensitiveContext():
        assert thread is await sync_to_async(threading.current_thread)()
        assert re.fullmatch(r"asgiref worker \d+: ThreadSensitiveContext", thread.name)


@pytest.mark.parametrize("short", [False, True], ids=["what was read", "as the system shows it"])
async def test_worker_is_named_by_itself_again_when_a_name_that_it_had_is_set(short: bool) -> None:
    """Also a name that it had while it served something else."""
    async with ThreadSensitiveContext():
        thread = await sync_to_async(threading.current_thread)()
    read = threading.Thread.name.__get__(thread) if short else thread.name  # type: ignore[attr-defined]
    async with ThreadSensitiveContext():
        assert thread is await sync_to_async(threading.current_thread)()
        thread.name = "mine"
        thread.name = read
        assert re.fullmatch(r"asgiref worker \d+: ThreadSensitiveContext", thread.name)


def test_worker_on_a_name_like_its_own_that_it_never_had() -> None:
    def rename() -> None:
        thread = threading.current_thread()
        before = thread.name
        thread.name = f"{before}, request 1"
        assert f"{before}, request 1" == thread.name
        thread.name = before
        assert before == thread.name

    asyncio.run(sync_to_async(rename)())


@pytest.mark.skipif(sys.platform != "linux" or sys.version_info < (3, 14), reason="the system is not told the name")
def test_system_knows_a_short_name() -> None:
    def look() -> str:
        return Path(f"/proc/self/task/{threading.get_native_id()}/comm").read_text()

    assert re.fullmatch(r"asgiref \d+\n", asyncio.run(sync_to_async(look)()))
