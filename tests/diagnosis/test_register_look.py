"""Facts that a look cannot find without frames of other threads; the look says so."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import gc
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from asgiref._bridge import register
from asgiref._bridge.register import Awaited
from asgiref._diagnosis import register_look
from asgiref._diagnosis.register_look import RegisterLook
from asgiref.sync import BridgeCall, SyncToAsync, async_to_sync, bridge_calls, sync_to_async

from ..helpers import LIMIT, Thread, finished, wait_for

pytestmark = pytest.mark.skipif(sys.implementation.name != "cpython", reason="the stacks are written another way")


@pytest.fixture(autouse=True)
def by_the_register(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(register, "KEPT", True)
    monkeypatch.setattr(register_look, "PATIENCE", 0.05)
    deadline = time.monotonic() + LIMIT
    while threading.active_count() > 50:  # idle workers of other tests; the stacks of a hundred threads are known
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.fixture
def held_up() -> Any:
    begun, go_on = threading.Event(), threading.Event()

    def hold_up() -> None:
        begun.set()
        wait_for(go_on)

    yield hold_up, begun, go_on
    go_on.set()


def by_function() -> dict[str, BridgeCall]:
    return {call.function.rpartition(".")[2]: call for call in bridge_calls()}


def names(call: BridgeCall) -> list[str]:
    return [frame.name for frame in call.stack]


def test_loop_that_does_not_answer(held_up: Any) -> None:
    """Its calls are shown, but not its tasks."""
    hold_up, begun, go_on = held_up
    one_at_a_time = concurrent.futures.ThreadPoolExecutor(1)
    run = functools.partial(sync_to_async, thread_sensitive=False, executor=one_at_a_time)
    asked = threading.Event()

    def runs() -> None:
        asked.set()
        wait_for(go_on)

    def queued() -> None: ...
    def returning() -> None: ...

    async def main() -> None:
        tasks = [asyncio.ensure_future(sync_to_async(returning)())]
        await asyncio.sleep(0)
        finished(SyncToAsync.single_thread_executor)  # type: ignore[arg-type]
        tasks += [asyncio.ensure_future(run(runs)()), asyncio.ensure_future(run(queued)())]
        await asyncio.sleep(0)
        wait_for(asked)
        hold_up()
        await asyncio.gather(*tasks)

    thread = Thread(asyncio.run, main())
    wait_for(begun)
    calls = by_function()
    assert {"runs": "running", "queued": "queued"} == {
        name: call.state for name, call in calls.items() if name != "returning"
    }
    for call in calls.values():
        assert (None, thread.name) == (call.waiting_task, call.waiting_thread)
        assert f"  a task of the {call.loop} of thread {thread.name!r} waits, which does not answer\n" in str(call)
        assert f"a task, not known: the loop of thread {thread.name!r} does not answer" in names(call)
    assert "the queue of ThreadPoolExecutor with 1 threads" == calls["queued"].where
    go_on.set()
    thread.get()
    one_at_a_time.shutdown()


def test_coroutine_on_a_loop_that_does_not_answer(held_up: Any) -> None:
    """The work of the loop's thread is shown, and nothing else."""
    hold_up, begun, go_on = held_up

    async def main() -> None:
        hold_up()

    thread = Thread(async_to_sync(main))
    wait_for(begun)
    call = by_function()["main"]
    assert "running" == call.state
    assert f"thread {call.working_thread!r} meanwhile" in names(call)
    assert "hold_up" in names(call)
    go_on.set()
    thread.get()


def test_stack_that_is_too_long(held_up: Any) -> None:
    """The innermost hundred frames are shown, and all calls."""
    hold_up, begun, go_on = held_up

    def deep(function: Callable[[], Any], depth: int) -> Any:
        return deep(function, depth - 1) if depth else function()

    async def inner() -> None:
        await sync_to_async(deep)(hold_up, 120)

    thread = Thread(async_to_sync(inner))
    wait_for(begun)
    outer, call = bridge_calls()
    assert outer.ident == call.parent
    assert "hold_up" in names(call)
    assert 90 < len([name for name in names(call) if name == "deep"]) <= 100
    assert "outer frames, not known: the stack is too long" in names(call)
    go_on.set()
    thread.get()


def test_thread_that_goes_on_during_each_attempt(held_up: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its calls are shown, but not its stack."""
    hold_up, begun, go_on = held_up
    thread = Thread(async_to_sync(sync_to_async(hold_up)))
    wait_for(begun)
    dump = register_look._dump
    expected = len(bridge_calls())

    def dump_of_the_past() -> Any:
        return {ident: stack[:-8] for ident, stack in dump().items()}

    monkeypatch.setattr(register_look, "_dump", dump_of_the_past)
    calls = bridge_calls()
    assert expected == len(calls)
    assert "the stack is not known: the thread keeps running" in names(calls[0])
    go_on.set()
    thread.get()


def test_thread_that_is_not_among_those_that_are_written(held_up: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """There may be more threads than ``faulthandler`` writes."""
    hold_up, begun, go_on = held_up
    thread = Thread(async_to_sync(sync_to_async(hold_up)))
    wait_for(begun)
    monkeypatch.setattr(register_look, "_dump", dict)
    assert "the stack is not known: there are too many threads" in names(bridge_calls()[0])
    go_on.set()
    thread.get()


def test_threads_that_wait_for_futures_are_not_told_apart() -> None:
    """It is unknown which thread waits for the task; no answer is better than a wrong one."""
    loops: list[asyncio.AbstractEventLoop] = []
    futures: list[Any] = [concurrent.futures.Future()]
    tasks: list[Any] = []

    async def fetch() -> None:
        tasks.append(asyncio.current_task())
        await asyncio.sleep(LIMIT)

    def view() -> None:
        futures.append(asyncio.run_coroutine_threadsafe(fetch(), loops[0]))
        with pytest.raises(concurrent.futures.CancelledError):
            futures[1].result()

    async def main() -> None:
        loops.append(asyncio.get_running_loop())
        await sync_to_async(view)()

    other, thread = Thread(futures[0].result, LIMIT), Thread(asyncio.run, main())
    deadline = time.monotonic() + LIMIT
    while not tasks or not all([future._condition._waiters for future in futures]):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    assert "fetch" not in names(by_function()["view"])
    futures[0].set_result(None)
    other.get()
    assert "fetch" in names(by_function()["view"])
    loops[0].call_soon_threadsafe(tasks[0].cancel)
    thread.get()


def test_what_is_noted_of_a_call_that_is_gone() -> None:
    """1. A coroutine is being closed on another thread. 2. A look finds only its entry in the register."""

    def gone() -> Any:
        return None

    noted = register.here().awaited
    noted[0] = Awaited(gone, gone, gone)
    try:
        assert [] == bridge_calls()
    finally:
        del noted[0]


def test_loop_that_is_closed_as_it_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.new_event_loop()
    loop.close()
    monkeypatch.setattr(RegisterLook, "_loops", lambda look: {loop})
    monkeypatch.setattr(RegisterLook, "_may_be_asked", lambda look, loop, thread: True)
    assert [] == bridge_calls()


def test_names_are_those_of_the_program(tmp_path: Path) -> None:
    """The stacks come in ASCII."""
    path = tmp_path / "größe 😀.py"
    code = compile("def naïve(look):\n    return look()\n", str(path), "exec")
    namespace: dict[str, Any] = {}
    exec(code, namespace)
    found: list[list[BridgeCall]] = []

    def looks() -> None:
        found.append(Thread(bridge_calls).get())

    async_to_sync(sync_to_async(namespace["naïve"]))(looks)
    frames = {(frame.filename, frame.name) for call in found[0] for frame in call.stack}
    assert (str(path), "naïve") in frames


def test_interrupt_leaves_no_note_behind() -> None:
    """1. A call is about to register. 2. A signal's exception comes just afterwards. 3. The entry is removed."""
    noted = register.here()
    end = noted.ending()
    noted.enter("asgiref._bridge.jobs.ThreadCall.run", self=None)
    end()
    assert [] == noted.places


def test_notes_keep_nothing() -> None:
    calls: list[Any] = []

    async def main() -> None:
        calls.append(asyncio.ensure_future(sync_to_async(int)()))
        await calls[0]

    asyncio.run(main())
    gc.collect()
    assert {} == register.here().awaited
