"""Ctrl-C, and handlers of other signals, while the main thread waits for such a loop."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import gc
import signal
import sys
import threading
import weakref
from collections.abc import Iterator
from types import FrameType
from typing import Any

import pytest

from asgiref import event_loop
from asgiref.event_loop import _Mailbox, _MainTask, _Run
from asgiref.sync import AsyncToSync, ThreadSensitiveEventLoop, async_to_sync, sync_to_async

from ..conftest import LoopFactory
from ..helpers import LIMIT, Thread, collect_until, wait_for
from .loops import every_loop, run

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals are others there")

press_ctrl_c = functools.partial(signal.raise_signal, signal.SIGINT)


@pytest.fixture(autouse=True)
def handlers_stay() -> Iterator[None]:
    signals = [signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2]
    before = [signal.getsignal(sig) for sig in signals]
    yield
    assert before == [signal.getsignal(sig) for sig in signals]


def later(function: Any) -> None:
    """Let the main thread find a pending signal in its mailbox."""
    threading.Timer(0.005, function).start()


def ctrl_c_in_main_thread() -> None:
    """Send it from another thread, as the terminal does."""
    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)  # type: ignore[arg-type]


@every_loop
@pytest.mark.parametrize("debug", [False, True])
def test_ctrl_c_under_a_runner(factory: LoopFactory, debug: bool) -> None:
    """The task is cancelled on the loop's thread; its cleanup runs; KeyboardInterrupt is raised."""
    seen: list[Any] = []

    async def main() -> None:
        try:
            later(ctrl_c_in_main_thread)
            await asyncio.sleep(LIMIT)
        except asyncio.CancelledError:
            seen.append(await sync_to_async(threading.get_ident)())
            raise

    with asyncio.Runner(loop_factory=factory, debug=debug) as runner:
        with pytest.raises(KeyboardInterrupt):
            runner.run(main())
        assert [threading.get_ident()] == seen
        assert threading.get_ident() == runner.run(sync_to_async(threading.get_ident)())


@every_loop
def test_ctrl_c_under_a_runner_while_synchronous_code_runs(factory: LoopFactory) -> None:
    """The first Ctrl-C lets synchronous code continue; the second one interrupts it."""
    seen: list[Any] = []

    def work() -> None:
        press_ctrl_c()
        seen.append("continues")
        try:
            press_ctrl_c()
        except KeyboardInterrupt:
            seen.append("interrupted")
            raise

    async def main() -> None:
        try:
            await sync_to_async(work)()
        finally:
            seen.append("cleaned up")

    with pytest.raises(KeyboardInterrupt):
        run(factory, main)
    assert {"continues", "interrupted", "cleaned up"} == set(seen)


@every_loop
def test_ctrl_c_under_a_runner_while_synchronous_code_waits(factory: LoopFactory) -> None:
    """The cancellation goes to the coroutine that the thread waits for, and that the main task awaits."""
    seen: list[Any] = []

    async def inner() -> None:
        try:
            later(ctrl_c_in_main_thread)
            await asyncio.sleep(LIMIT)
        finally:
            seen.append(await sync_to_async(threading.get_ident)())

    async def main() -> None:
        await sync_to_async(async_to_sync(inner))()

    with pytest.raises(KeyboardInterrupt):
        run(factory, main)
    assert [threading.get_ident()] == seen


@every_loop
def test_ctrl_c_without_a_runner(factory: LoopFactory) -> None:
    """run_until_complete raises KeyboardInterrupt, and the loop can be run again."""
    loop = factory()

    async def main() -> str:
        later(ctrl_c_in_main_thread)
        await ended.wait()
        return "continues"

    ended = asyncio.Event()
    task = loop.create_task(main())
    with pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(task)
    assert not task.done()
    ended.set()
    assert "continues" == loop.run_until_complete(task)
    loop.close()


@every_loop
def test_ctrl_c_in_synchronous_code_without_a_runner(factory: LoopFactory) -> None:
    loop = factory()
    with pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(sync_to_async(press_ctrl_c)())
    assert threading.get_ident() == loop.run_until_complete(sync_to_async(threading.get_ident)())
    loop.close()


@every_loop
def test_exception_of_a_signal_handler(factory: LoopFactory) -> None:
    """Timeouts by signals raise so: the exception stops the loop, and is raised when the loop has stopped."""
    loop = factory()

    def handle(sig: int, frame: FrameType | None) -> None:
        raise TimeoutError("of a handler")

    before = signal.signal(signal.SIGUSR1, handle)
    try:
        loop.call_soon(later, functools.partial(signal.pthread_kill, threading.get_ident(), signal.SIGUSR1))
        with pytest.raises(TimeoutError, match="of a handler"):
            loop.run_forever()
        assert not loop.is_running()
    finally:
        signal.signal(signal.SIGUSR1, before)
    loop.close()


def test_second_interrupt_gives_up_waiting() -> None:
    """The loop does not stop, because a coroutine blocks its thread. Until it has, it cannot be run again."""
    loop = ThreadSensitiveEventLoop()
    blocked, unblock = threading.Event(), threading.Event()
    outcome: list[bool] = []

    async def main() -> None:
        blocked.set()
        outcome.append(unblock.wait(LIMIT))

    def interrupt_twice() -> None:
        wait_for(blocked)
        mailbox = AsyncToSync.loop_thread_executors[loop]
        ctrl_c_in_main_thread()
        stop = threading.Event()
        while not stop_requested() and not stop.wait(0.001):  # the first one was received
            assert mailbox.serving
        ctrl_c_in_main_thread()

    def stop_requested() -> bool:
        return any("_Run.end" in repr(handle) for handle in loop._ready)  # type: ignore[attr-defined]

    interrupter = Thread(interrupt_twice)
    task = loop.create_task(main())
    with pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(task)
    interrupter.get()
    with pytest.raises(RuntimeError, match="already running"):
        loop.run_forever()
    unblock.set()
    while loop.is_running():
        pass
    loop.run_until_complete(task)
    assert [True] == outcome
    loop.close()


def test_interrupt_before_the_worker_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    """1. The run is posted. 2. The interrupt comes, and takes it back. 3. The worker gets it, too late."""
    loop = ThreadSensitiveEventLoop()
    began: list[str] = []
    taken_back = threading.Event()

    class LateRun(_Run):
        def run(self) -> None:
            wait_for(taken_back)
            super().run()
            began.append("run" if self._ended else "not run")

        def stop(self) -> bool:
            stops = super().stop()
            taken_back.set()
            return stops

    def serve(self: _Mailbox, check: Any = None) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(event_loop, "_Run", LateRun)
    monkeypatch.setattr(_Mailbox, "serve", serve)
    with pytest.raises(KeyboardInterrupt):
        loop.run_forever()
    assert threading.get_ident() == loop.run_until_complete(sync_to_async(threading.get_ident)())
    assert ["not run"] == began
    loop.close()


def test_interrupt_as_the_loop_stops_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """1. The loop stops. 2. The interrupt comes, and asks the loop to stop. 3. The next run must not stop for that."""
    loop = ThreadSensitiveEventLoop()
    serve = _Mailbox.serve

    def serve_and_raise(self: _Mailbox, check: Any = None) -> None:
        serve(self, check)
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(_Mailbox, "serve", serve_and_raise)
    with pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(asyncio.sleep(0))
    assert "whole" == loop.run_until_complete(asyncio.sleep(0.01, "whole"))
    loop.close()


def test_interrupt_while_what_was_left_over_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop has stopped; the thread runs the last accepted call, and is interrupted there."""
    loop = ThreadSensitiveEventLoop()

    class Interrupting:
        def run(self) -> None:
            raise KeyboardInterrupt

        def report(self) -> None: ...

        def abandon(self, error: BaseException) -> None: ...

    def close(self: _Mailbox, *, run_rest: bool = True) -> None:
        monkeypatch.undo()
        self.post(Interrupting())
        self.close(run_rest=run_rest)

    loop.call_soon(loop.stop)
    monkeypatch.setattr(_Mailbox, "close", close)
    with pytest.raises(KeyboardInterrupt):
        loop.run_forever()
    loop.close()


def test_ctrl_c_as_the_task_ends() -> None:
    """1. Ctrl-C asks the loop to cancel the task. 2. The task ends by itself. 3. The interrupt is not lost."""

    async def main() -> None:
        asked = threading.Event()
        mailbox = AsyncToSync.loop_thread_executors[asyncio.get_running_loop()]

        def ask() -> None:
            press_ctrl_c()
            asked.set()

        mailbox.submit(ask)
        wait_for(asked)  # during the last step

    with pytest.raises(KeyboardInterrupt):
        run(ThreadSensitiveEventLoop, main)


def test_ctrl_c_as_the_loop_is_stopped() -> None:
    """A task that remains after stop() gets its cancellation in the next run."""

    async def main() -> None:
        def ask() -> None:
            press_ctrl_c()
            asked.set()

        asked = threading.Event()
        mailbox = AsyncToSync.loop_thread_executors[asyncio.get_running_loop()]
        mailbox.submit(ask)
        wait_for(asked)
        asyncio.get_running_loop().stop()
        await asyncio.sleep(LIMIT)

    with asyncio.Runner(loop_factory=ThreadSensitiveEventLoop) as runner:
        with pytest.raises(RuntimeError, match="stopped before"):
            runner.run(main())
        tasks = asyncio.all_tasks(runner.get_loop())
        runner.get_loop().run_until_complete(asyncio.wait(tasks))
        assert [True] == [task.cancelled() for task in tasks]


def test_main_task_that_heard_of_the_cancellation_is_not_cancelled_again() -> None:
    class Task:
        cancelled = 0

        def cancel(self) -> bool:
            self.cancelled += 1
            return True

    class Loop:
        def call_soon_threadsafe(self, callback: Any, *arguments: Any, context: Any) -> None:
            callbacks.append(callback)

    task: Any = Task()
    loop: Any = Loop()
    callbacks: list[Any] = []
    main_task = _MainTask(task, loop)
    assert not main_task.missed_cancellation()
    main_task.cancel()
    callbacks[0]()
    assert not main_task.missed_cancellation()
    assert 1 == task.cancelled
    main_task.cancel()
    assert not main_task.missed_cancellation()
    callbacks[1]()  # in the next run of the loop
    assert 1 == task.cancelled


def test_handler_of_a_runner_further_out_is_left_alone() -> None:
    """Another Runner runs below the loop of a Runner; Ctrl-C still cancels the task of the outer one."""
    seen: list[str] = []

    async def inner() -> None:
        try:
            later(ctrl_c_in_main_thread)
            await asyncio.sleep(0.1)
        except asyncio.CancelledError:
            seen.append("inner cancelled")

    async def main() -> None:
        try:
            await sync_to_async(run)(ThreadSensitiveEventLoop, inner)
        except asyncio.CancelledError:
            seen.append("outer cancelled")
            raise

    with pytest.raises(KeyboardInterrupt):
        run(ThreadSensitiveEventLoop, main)
    assert ["outer cancelled"] == seen


def test_handler_that_is_set_meanwhile_stays() -> None:
    """The Runner then leaves the handler in place, as with any other loop."""

    def handle(sig: int, frame: FrameType | None) -> None: ...

    async def main() -> None:
        await sync_to_async(signal.signal)(signal.SIGINT, handle)

    before = signal.getsignal(signal.SIGINT)
    try:
        run(ThreadSensitiveEventLoop, main)
        assert handle is signal.getsignal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


# Handlers of signals


@every_loop
def test_signal_handler(factory: LoopFactory) -> None:
    """It runs on the loop's thread, in the context in which it was added, for each signal."""
    variable = contextvars.ContextVar[str]("variable")

    async def main() -> None:
        loop = asyncio.get_running_loop()
        variable.set("added")
        loop.add_signal_handler(signal.SIGUSR1, lambda *arguments: seen.put_nowait((*arguments, where())), 1, 2)
        variable.set("later")
        for _ in range(2):
            signal.raise_signal(signal.SIGUSR1)  # on a thread other than the main thread
            assert (1, 2, threading.get_ident(), "added") == await asyncio.wait_for(seen.get(), LIMIT)
        assert loop.remove_signal_handler(signal.SIGUSR1)
        assert not loop.remove_signal_handler(signal.SIGUSR1)

    def where() -> tuple[int, str]:
        return threading.get_ident(), variable.get()

    class Queue(asyncio.Queue[Any]):
        def put_nowait(self, item: Any) -> None:
            super().put_nowait((*item[:2], *item[2]))

    seen = Queue()
    run(factory, main)


@every_loop
def test_signal_handler_is_in_force_at_once(factory: LoopFactory) -> None:
    """When add_signal_handler returns, if the main thread is waiting in its mailbox. close() removes it."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        for sig in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT) * 20:
            before = signal.getsignal(sig)
            loop.add_signal_handler(sig, int)
            assert before != signal.getsignal(sig)
            loop.add_signal_handler(sig, str)
            assert loop.remove_signal_handler(sig)
            assert signal.getsignal(sig) in (signal.SIG_DFL, signal.default_int_handler)
        loop.add_signal_handler(signal.SIGUSR1, int)

    loop = factory()
    loop.run_until_complete(main())
    assert signal.SIG_DFL is not signal.getsignal(signal.SIGUSR1)
    loop.close()
    assert signal.SIG_DFL is signal.getsignal(signal.SIGUSR1)


@every_loop
def test_signal_handler_while_the_main_thread_is_busy(factory: LoopFactory) -> None:
    """It takes effect as soon as that thread is back in its mailbox, before other calls."""
    seen: list[Any] = []

    def hold(busy: threading.Event, added: threading.Event) -> None:
        busy.set()
        wait_for(added)
        seen.append(signal.getsignal(signal.SIGUSR1))

    async def main() -> None:
        loop = asyncio.get_running_loop()
        busy, added = threading.Event(), threading.Event()
        held = asyncio.create_task(sync_to_async(hold)(busy, added))
        await asyncio.sleep(0)
        wait_for(busy)
        queued = asyncio.create_task(sync_to_async(signal.getsignal)(signal.SIGUSR1))
        await asyncio.sleep(0)
        loop.add_signal_handler(signal.SIGUSR1, int)
        added.set()
        await held
        seen.append(await queued)
        assert loop.remove_signal_handler(signal.SIGUSR1)

    run(factory, main)
    assert signal.SIG_DFL is seen[0]
    assert signal.SIG_DFL is not seen[1]


def test_main_thread_becomes_busy_as_a_handler_is_added() -> None:
    """The errand comes after the main thread has looked for errands, and before it records that it has a job.

    1. The loop's thread sees the main thread waiting, and waits for the errand. 2. The main thread takes a call, which
    waits for the loop.
    """

    async def nothing() -> None: ...

    async def main() -> None:
        loop = asyncio.get_running_loop()
        mailbox: Any = AsyncToSync.loop_thread_executors[loop]

        class Errands(list[Any]):
            """Adds the errand when the main thread has found none, and is about to record its job."""

            def __bool__(self) -> bool:
                there_are = len(self) > 0
                if threading.current_thread() is threading.main_thread() and mailbox._jobs and not adding.is_set():
                    adding.set()
                    wait_for(added)
                return there_are

        def post(errand: Any) -> bool:
            added.set()
            return post_it(errand)  # type: ignore[no-any-return]

        call = asyncio.create_task(sync_to_async(async_to_sync(nothing))())
        mailbox._errands = Errands()
        await asyncio.sleep(0)
        wait_for(adding)
        post_it, mailbox.post = mailbox.post, post
        loop.add_signal_handler(signal.SIGUSR1, int)
        await asyncio.wait_for(call, LIMIT)
        assert loop.remove_signal_handler(signal.SIGUSR1)

    adding, added = threading.Event(), threading.Event()
    run(ThreadSensitiveEventLoop, main)
    assert added.is_set()


def test_signal_handler_waits_for_the_loop_as_the_main_thread_takes_a_call() -> None:
    """1. The main thread is about to record its job.

    2. A signal handler waits for a task. 3. That task makes a call.
    """

    async def call() -> asyncio.Task[int]:
        task = asyncio.create_task(sync_to_async(int)())
        await asyncio.sleep(0)
        return task

    async def main() -> None:
        loop = asyncio.get_running_loop()
        mailbox: Any = AsyncToSync.loop_thread_executors[loop]

        class Errands(list[Any]):
            def copy(self) -> list[Any]:
                if not calls:
                    calls.append(None)
                    calls.append(asyncio.run_coroutine_threadsafe(call(), loop).result(LIMIT))
                return super().copy()

        mailbox._errands = Errands()
        await sync_to_async(int)()
        assert 0 == await calls[1]

    calls: list[Any] = []
    run(ThreadSensitiveEventLoop, main)


def test_handler_is_added_while_the_main_thread_gives_up_waiting() -> None:
    """The mailbox is closed with the errand in it: the loop's thread continues."""
    mailbox = _Mailbox()
    waiting = Thread(mailbox.run_errand, gc.collect)
    while not mailbox._jobs:
        pass
    mailbox.close(run_rest=False)
    waiting.get()
    mailbox.run_errand(lambda: None)  # nor does it wait for a closed mailbox


def test_interrupt_in_an_errand() -> None:
    """It is run again when the thread serves its mailbox again: neither the errand nor its caller is lost."""
    mailbox = _Mailbox()
    done: list[str] = []

    def errand() -> None:
        done.append("begun")
        if len(done) == 1:
            raise KeyboardInterrupt
        mailbox.stop()

    waiting = Thread(mailbox.run_errand, errand)
    with pytest.raises(KeyboardInterrupt):
        mailbox.serve()
    mailbox.serve()
    waiting.get()
    mailbox.close()
    assert ["begun", "begun"] == done[:2]


@every_loop
def test_signal_handler_on_the_main_thread_itself(factory: LoopFactory) -> None:
    """Before the loop runs, and in synchronous code below it."""
    loop = factory()
    loop.add_signal_handler(signal.SIGUSR1, loop.stop)
    signal.raise_signal(signal.SIGUSR1)
    loop.run_forever()

    def add() -> None:
        loop.add_signal_handler(signal.SIGUSR1, ended.set)
        signal.raise_signal(signal.SIGUSR1)

    async def main() -> None:
        await sync_to_async(add)()
        await asyncio.wait_for(ended.wait(), LIMIT)
        await sync_to_async(loop.remove_signal_handler)(signal.SIGUSR1)

    ended = asyncio.Event()
    loop.run_until_complete(main())
    loop.close()


@every_loop
def test_arguments_that_cannot_be(factory: LoopFactory) -> None:
    """They raise at once, as in asyncio."""

    async def coroutine_function() -> None: ...

    async def main() -> None:
        loop: Any = asyncio.get_running_loop()
        with pytest.raises(TypeError, match="coroutines"):
            loop.add_signal_handler(signal.SIGUSR1, coroutine_function)
        coroutine = coroutine_function()
        with pytest.raises(TypeError, match="coroutines"):
            loop.add_signal_handler(signal.SIGUSR1, coroutine)
        coroutine.close()
        with pytest.raises(TypeError, match="must be an int"):
            loop.add_signal_handler("SIGUSR1", int)
        with pytest.raises(ValueError, match="invalid signal"):
            loop.remove_signal_handler(10000)
        for sig in (signal.SIGKILL, signal.SIGSTOP):
            with pytest.raises(RuntimeError, match="cannot be caught"):
                loop.add_signal_handler(sig, int)

    run(factory, main)
    loop = factory()
    loop.close()
    with pytest.raises(RuntimeError, match="closed"):
        loop.add_signal_handler(signal.SIGUSR1, int)


@every_loop
def test_signal_handler_where_the_main_thread_does_not_run_the_loop(factory: LoopFactory) -> None:
    async def main() -> None:
        with pytest.raises(RuntimeError, match="on the main thread only"):
            asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, int)

    Thread(run, factory, main).get()

    async def in_pool() -> None:
        add: Any = asyncio.get_running_loop().add_signal_handler
        with pytest.raises(RuntimeError, match="on the main thread only"):
            await asyncio.to_thread(add, signal.SIGUSR1, int)

    run(factory, in_pool)


def test_signal_for_a_loop_that_is_gone() -> None:
    """The signal has its effect without a handler, and the entry for the handler is removed."""
    loop = ThreadSensitiveEventLoop()
    loop.add_signal_handler(signal.SIGINT, int)
    Thread(loop.close).get()  # a thread that cannot remove the handler
    reference = weakref.ref(loop)
    del loop
    collect_until(lambda: reference() is None)
    with pytest.raises(KeyboardInterrupt):
        press_ctrl_c()
    assert signal.default_int_handler is signal.getsignal(signal.SIGINT)


def test_signal_for_a_loop_that_is_closed() -> None:
    loop = ThreadSensitiveEventLoop()
    loop.add_signal_handler(signal.SIGINT, int)
    Thread(loop.close).get()
    with pytest.raises(KeyboardInterrupt):
        press_ctrl_c()
    del loop


def test_signal_between_the_removal_of_its_handler_and_the_main_thread() -> None:
    """The main thread is busy when the handler is removed, and then gets the signal: the default action applies."""
    seen: list[str] = []

    def hold(busy: threading.Event, removed: threading.Event) -> None:
        busy.set()
        wait_for(removed)
        with contextlib.suppress(KeyboardInterrupt):
            press_ctrl_c()
            seen.append("not raised")

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, seen.append, "handled")
        busy, removed = threading.Event(), threading.Event()
        held = asyncio.create_task(sync_to_async(hold)(busy, removed))
        await asyncio.sleep(0)
        wait_for(busy)
        assert loop.remove_signal_handler(signal.SIGINT)
        removed.set()
        await held

    loop = ThreadSensitiveEventLoop()
    loop.run_until_complete(main())
    loop.close()
    assert [] == seen
