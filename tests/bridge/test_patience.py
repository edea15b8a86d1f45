"""Stopped loops: how long threads wait for them, and how threads notice that a loop has stopped."""

from __future__ import annotations

import _thread
import asyncio
import concurrent.futures
import contextvars
import logging
import os
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from asgiref import sync
from asgiref._bridge import patience
from asgiref._bridge.jobs import AwaitedOutcome, LoopCall
from asgiref._bridge.patience import LoopWait, Patience, cannot_run_again
from asgiref.sync import SyncToAsync, async_to_sync, sync_to_async

from ..conftest import LOOP_FACTORIES
from ..helpers import LIMIT, Thread, forget, output_of, wait_for

each_loop = pytest.mark.parametrize("new_loop", LOOP_FACTORIES.values(), ids=list(LOOP_FACTORIES))


class Loop:
    """A fake loop that runs when the test says so, and records which thread woke it."""

    def __init__(self) -> None:
        self.running = self.closed = False
        self.callbacks: list[Callable[[], Any]] = []
        self.woken = 0
        self.before_look: Callable[[], object] | None = None

    def is_running(self) -> bool:
        before, self.before_look = self.before_look, None
        if before is not None:
            before()
        return self.running

    def is_closed(self) -> bool:
        return self.closed

    def call_soon_threadsafe(self, callback: Callable[..., Any], *arguments: Any, context: Any = None) -> None:
        if self.closed:
            raise RuntimeError("Event loop is closed")
        self.woken += 1
        self.callbacks.append(lambda: callback(*arguments))

    def create_task(self, coroutine: Any) -> Any:
        return SimpleNamespace(done=lambda: False, cancel=lambda: True)

    def tick(self) -> None:
        callbacks, self.callbacks = self.callbacks, []
        for callback in callbacks:
            callback()


class Waiting:
    """A thread that waits for a call on a loop; the test, instead of time, triggers its checks."""

    def __init__(self, patience: float = 300, start_patience: float = 2) -> None:
        self.loop = Loop()
        self.outcome: AwaitedOutcome[None] = AwaitedOutcome(lambda: None)
        self.coroutine = self._coroutine()
        self.outcome.call = self.call = LoopCall(self.coroutine, contextvars.Context(), self.outcome)
        # The thread that ran the loop before, and the current one.
        self.thread: Any = None
        self.runner = concurrent.futures.ThreadPoolExecutor(1)
        loop: Any = self.loop
        self.wait = LoopWait(loop, self.call, self.outcome, lambda: (Patience(patience, start_patience), self.thread))

    async def _coroutine(self) -> None: ...

    def begin(self) -> Waiting:
        """Let the loop start the call."""
        self.runner.submit(self.call.start, self.loop).result(LIMIT)  # type: ignore[arg-type]
        return self

    def tick(self) -> None:
        self.runner.submit(self.loop.tick).result(LIMIT)

    def fails(self) -> bool:
        """Return whether the call was given up and failed."""
        if not self.wait.is_lost():
            return False
        with pytest.raises(RuntimeError, match="stopped or closed"):
            self.outcome.take()
        return True

    def __enter__(self) -> Waiting:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.coroutine.close()
        self.runner.shutdown()


ended: Any = SimpleNamespace(is_alive=lambda: False, daemon=False, ident=0)


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(patience, "time", clock)
    return clock


# A running loop is recognized by its actions:


def test_running_loop_is_never_woken() -> None:
    """For any number of waiting threads, and any time."""
    with Waiting().begin() as waiting:
        loop: Any = waiting.loop
        loop.running = True
        waits = [LoopWait(loop, waiting.call, waiting.outcome, lambda: (Patience(300, 2), None)) for _ in range(1000)]
        for _ in range(3):
            assert not any([wait.is_lost() for wait in waits])
        assert 0 == loop.woken


def test_stopped_loop_gets_one_probe_at_a_time(clock: Clock) -> None:
    with Waiting().begin() as waiting:
        for _ in range(3):
            assert not waiting.wait.is_lost()
        assert 1 == waiting.loop.woken
        waiting.tick()
        for _ in range(3):
            assert not waiting.wait.is_lost()
        assert 2 == waiting.loop.woken


def test_patience_begins_anew_whenever_the_loop_has_run(clock: Clock) -> None:
    """No check ever sees the loop running, because it runs between two checks."""
    with Waiting(patience=300).begin() as waiting:
        for _ in range(10):
            assert not waiting.wait.is_lost()
            clock.now += 299
            assert not waiting.wait.is_lost()
            waiting.tick()
        assert not waiting.wait.is_lost()
        clock.now += 300
        assert waiting.fails()


def test_loop_seen_running_begins_the_patience_anew(clock: Clock) -> None:
    with Waiting(patience=300).begin() as waiting:
        assert not waiting.wait.is_lost()
        clock.now += 299
        waiting.loop.running = True
        assert not waiting.wait.is_lost()
        waiting.loop.running = False
        clock.now += 299
        assert not waiting.wait.is_lost()


def test_call_that_has_not_begun_is_taken_back_earlier(clock: Clock) -> None:
    with Waiting(patience=300, start_patience=2) as waiting:
        assert not waiting.wait.is_lost()
        clock.now += 1.9
        assert not waiting.wait.is_lost()
        clock.now += 0.2
        assert waiting.wait.is_lost()
        assert not waiting.outcome.settled
        assert waiting.call.start(waiting.loop) is None  # type: ignore[arg-type]


def test_call_that_begins_while_it_is_taken_back_is_waited_for(clock: Clock) -> None:
    """1. The patience is over before the start.

    2. The loop starts the call. 3. It cannot be taken back; the wait continues.
    """
    with Waiting() as waiting:
        assert not waiting.wait.is_lost()
        clock.now += 3
        take_back = waiting.call.take_back

        def late() -> bool:
            waiting.tick()
            waiting.begin()
            return take_back()

        waiting.call.take_back = late  # type: ignore[method-assign]
        assert not waiting.wait.is_lost()
        assert not waiting.outcome.settled
        assert not waiting.wait.is_lost()


def test_look_that_is_interrupted_when_it_has_taken_the_call_back(clock: Clock) -> None:
    """1. The call is taken back. 2. Ctrl-C comes. 3. The thread waits for the end of the call, which never starts."""
    with Waiting() as waiting:
        assert not waiting.wait.is_lost()
        clock.now += 3
        take_back = waiting.call.take_back

        def interrupted() -> bool:
            take_back()
            waiting.call.take_back = take_back  # type: ignore[method-assign]
            raise KeyboardInterrupt

        waiting.call.take_back = interrupted  # type: ignore[method-assign]
        with pytest.raises(KeyboardInterrupt):
            waiting.wait.is_lost()
        assert waiting.outcome.cancel()
        assert waiting.wait.is_lost()


def test_look_that_is_interrupted_before_its_probe_is_sent(clock: Clock) -> None:
    """1. A probe is about to be sent. 2. Ctrl-C comes. 3. The next check sends one."""
    with Waiting().begin() as waiting:
        loop: Any = waiting.loop
        send = loop.call_soon_threadsafe

        def interrupted(*arguments: Any, context: Any = None) -> None:
            loop.call_soon_threadsafe = send
            raise KeyboardInterrupt

        loop.call_soon_threadsafe = interrupted
        with pytest.raises(KeyboardInterrupt):
            waiting.wait.is_lost()
        assert not waiting.wait.is_lost()
        assert 1 == waiting.loop.woken


def test_outcome_that_comes_with_the_last_turn_of_the_loop(clock: Clock) -> None:
    """1. The thread is about to check. 2. The loop settles the outcome and stops. 3. Nothing is given up."""
    with Waiting(patience=0).begin() as waiting:
        waiting.loop.before_look = lambda: waiting.outcome.set_result(None)
        assert waiting.wait.is_lost()
        waiting.outcome.take()


def test_loop_that_closes_just_before_it_gets_a_probe(clock: Clock) -> None:
    """1. The loop is stopped and open. 2. It closes. 3. It accepts no probe, and the call fails."""
    with Waiting().begin() as waiting:
        is_closed = waiting.loop.is_closed

        def close() -> bool:
            try:
                return is_closed()
            finally:
                waiting.loop.closed = True

        waiting.loop.is_closed = close  # type: ignore[method-assign]
        assert waiting.fails()


# No thread waits for a loop that cannot run again:


@pytest.mark.parametrize("begun", [True, False])
@pytest.mark.parametrize("why", ["closed", "its thread has ended", "the interpreter ends"])
def test_loop_that_cannot_run_again(begun: bool, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Waiting() as waiting:
        waiting.thread = ended if "thread" in why else threading.main_thread()
        if begun:
            waiting.begin()
            waiting.call.thread = waiting.thread
        if "interpreter" in why:
            monkeypatch.setattr(patience, "_interpreter_ends", lambda: True)
        waiting.loop.closed = why == "closed"
        # On another thread, because this one is the main thread.
        assert Thread(waiting.fails if begun else waiting.wait.is_lost).get()
        assert begun or not waiting.outcome.settled


def open_loop() -> Any:
    return Loop()


def test_thread_that_waits_runs_no_loop() -> None:
    assert cannot_run_again(open_loop(), threading.current_thread())


@pytest.mark.parametrize(("daemon", "hopeless"), [(True, True), (False, False)])
def test_threads_that_the_interpreter_waits_for_may_run_a_loop_at_its_end(
    daemon: bool, hopeless: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    thread: Any = SimpleNamespace(is_alive=lambda: True, daemon=daemon, ident=0)
    assert not cannot_run_again(open_loop(), thread)
    assert not cannot_run_again(open_loop(), None)
    monkeypatch.setattr(patience, "_interpreter_ends", lambda: True)
    assert hopeless is cannot_run_again(open_loop(), thread)
    assert cannot_run_again(open_loop(), None)


@pytest.mark.needs_internals
def test_thread_that_was_not_started_in_python() -> None:
    """The thread object that threading makes for it may say forever that the thread is alive."""
    threads: list[threading.Thread] = []
    known, go_on = threading.Event(), threading.Event()

    def run() -> None:
        threads.append(threading.current_thread())
        known.set()
        wait_for(go_on)

    _thread.start_new_thread(run, ())
    wait_for(known)
    assert not cannot_run_again(open_loop(), threads[0])
    go_on.set()
    deadline = time.monotonic() + LIMIT
    while not cannot_run_again(open_loop(), threads[0]):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    forget(threads[0])


@pytest.mark.parametrize("begun", [True, False])
def test_loop_that_goes_on_in_another_thread(begun: bool, clock: Clock) -> None:
    """1. The thread that ran the loop ends. 2. The loop is seen running. 3. It stops: it may run again or not."""
    with Waiting() as waiting:
        waiting.thread = ended
        if begun:
            waiting.begin()
            waiting.call.thread = ended
        waiting.loop.running = True
        assert not waiting.wait.is_lost()
        waiting.loop.running = False
        assert not waiting.wait.is_lost()
        # 4. The loop runs once more, and shows its thread. 5. That thread ends.
        Thread(waiting.loop.tick).get()
        assert waiting.wait.is_lost()
        assert begun is waiting.outcome.settled


# With real loops:


@each_loop
@pytest.mark.parametrize("gap", [0, pytest.param(0.02, marks=pytest.mark.slow)])
def test_loop_that_runs_in_ticks_is_home_for_all_calls(new_loop: Callable[[], Any], gap: float) -> None:
    """A GUI runs a loop in this way, from a timer."""
    loop = new_loop()
    used: list[bool] = []

    async def is_home(lock: asyncio.Lock) -> None:
        async with lock:
            await asyncio.sleep(0)
            used.append(asyncio.get_running_loop() is loop)

    def calls(lock: asyncio.Lock) -> None:
        for _ in range(20):
            async_to_sync(is_home)(lock)

    async def main() -> None:
        lock = asyncio.Lock()
        async with lock:  # bound to this loop
            task = asyncio.create_task(sync_to_async(calls)(lock))
            await asyncio.sleep(0)
        await task

    task = loop.create_task(main())
    deadline = time.monotonic() + LIMIT
    while not task.done():
        assert time.monotonic() < deadline, used
        loop.call_soon(loop.stop)
        loop.run_forever()
        time.sleep(gap)
    task.result()
    loop.close()
    assert [True] * 20 == used


@each_loop
def test_coroutine_that_has_begun_waits_through_a_long_pause(
    new_loop: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a prompt, the loop runs for each line: a longer patience outlasts a pause of minutes."""
    clock = Clock()
    monkeypatch.setattr(patience, "time", clock)
    monkeypatch.setattr("asgiref.current_thread_executor.FIRST_CHECK", 0.001)
    monkeypatch.setattr("asgiref.current_thread_executor.LAST_CHECK", 0.001)
    looked = threading.Semaphore(0)
    is_lost = LoopWait.is_lost

    def looking(self: LoopWait) -> bool:
        try:
            return is_lost(self)
        finally:
            looked.release()

    monkeypatch.setattr(LoopWait, "is_lost", looking)
    loop = new_loop()
    begun, go_on = asyncio.Event(), asyncio.Event()
    tasks: list[asyncio.Task[str]] = []

    async def inner() -> str:
        begun.set()
        await go_on.wait()
        return "continued"

    async def line_one() -> None:
        tasks.append(asyncio.create_task(sync_to_async(async_to_sync(inner))()))
        await begun.wait()

    async def line_two() -> str:
        go_on.set()
        return await tasks.pop()

    loop.run_until_complete(line_one())
    for _ in range(4):
        for _ in range(3):
            assert looked.acquire(timeout=LIMIT)
        clock.now += 70
    assert "continued" == loop.run_until_complete(line_two())
    loop.close()


@each_loop
def test_loop_whose_thread_has_ended_is_not_waited_for(new_loop: Callable[[], Any]) -> None:
    """A started call on the loop fails; a later call gets another loop."""
    loop = new_loop()
    begun, stopped, done = asyncio.Event(), threading.Event(), threading.Event()
    outcomes: list[Any] = []

    async def inner() -> None:
        begun.set()
        await asyncio.sleep(LIMIT)

    async def which_loop() -> Any:
        return asyncio.get_running_loop()

    def calls() -> None:
        try:
            async_to_sync(inner)()
        except RuntimeError as error:
            outcomes.append(error)
        wait_for(stopped)
        outcomes.append(async_to_sync(which_loop)())
        done.set()

    tasks: list[asyncio.Task[None]] = []

    async def main() -> None:
        tasks.append(asyncio.create_task(sync_to_async(calls)()))
        await begun.wait()

    thread = Thread(loop.run_until_complete, main())
    thread.get()
    stopped.set()
    wait_for(done)
    loop.run_until_complete(tasks.pop())  # the result waits until the loop runs again
    error, other = outcomes
    assert "stopped or closed while it ran" in str(error)
    assert other is not loop
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()


def call_below(loop: Any, function: Callable[..., Any]) -> Any:
    """Call *function* through async_to_sync, as code below sync_to_async on *loop* does."""
    SyncToAsync.threadlocal.__dict__.update(main_event_loop=loop, main_event_loop_pid=os.getpid(), task_context=[])
    return async_to_sync(function)()


async def running_loop() -> Any:
    return asyncio.get_running_loop()


def test_stopped_loop_that_does_not_run_again_is_left_after_a_short_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sync, "stopped_loop_start_patience", 0.1)
    home = Loop()
    assert isinstance(Thread(call_below, home, running_loop).get(), asyncio.AbstractEventLoop)
    assert 2 == home.woken  # by the call and by a probe
    home.tick()


def test_stopped_loop_is_not_asked_without_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sync, "stopped_loop_start_patience", 0)
    home = Loop()
    assert isinstance(Thread(call_below, home, running_loop).get(), asyncio.AbstractEventLoop)
    assert 0 == home.woken


def test_long_wait_is_logged_once(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "asgiref.sync"), Waiting(patience=100).begin() as waiting:
        assert not waiting.wait.is_lost()
        clock.now += 1.9
        assert not waiting.wait.is_lost()
        assert [] == caplog.messages
        for _ in range(3):
            clock.now += 1
            assert not waiting.wait.is_lost()
        [message] = caplog.messages
        assert repr(waiting.loop) in message
        assert "waited for 3 seconds" in message
        assert "stopped_loop_patience" in message


def test_wait_of_a_call_that_has_not_begun_is_logged(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "asgiref.sync"), Waiting() as waiting:
        assert not waiting.wait.is_lost()
        clock.now += 2
        assert waiting.wait.is_lost()
        [message] = caplog.messages
        assert "stopped_loop_start_patience" in message


def test_interpreter_does_not_wait_for_its_own_stopped_loop() -> None:
    """One function waits for a started coroutine; another one calls a coroutine at the end of the interpreter."""
    code = """
import asgiref.sync
asgiref.sync.stopped_loop_start_patience = 300.0
begun, late = asyncio.Event(), threading.Event()

async def inner():
    begun.set()
    await asyncio.sleep(3600)

async def other():
    print("another loop:", asyncio.get_running_loop() is not loop)

def waits():
    try:
        async_to_sync(inner)()
    except RuntimeError as error:
        print("failed:", "stopped_loop_patience" in str(error), flush=True)

def calls():
    late.wait()
    async_to_sync(other)()

async def main():
    tasks.append(asyncio.create_task(sync_to_async(waits, thread_sensitive=False)()))
    tasks.append(asyncio.create_task(sync_to_async(calls)()))
    await begun.wait()

tasks = []
loop = asyncio.new_event_loop()
loop.run_until_complete(main())
for task in tasks:
    task._log_destroy_pending = False
atexit.register(late.set)
"""
    assert ["failed: True", "another loop: True"] == output_of(code)
