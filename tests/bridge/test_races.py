"""Races between two threads: each test forces one exact order of events, by fake parts."""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import contextlib
import contextvars
import errno
import functools
import gc
import queue
import sys
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from asgiref import sync
from asgiref._bridge import jobs, loops, workers
from asgiref._bridge.jobs import AwaitedOutcome, InnerCalls, LoopCall, ThreadCall, deliver_on
from asgiref._bridge.loops import FreshLoop, KeptLoop
from asgiref._bridge.workers import ProcessExecutor, WorkerExecutor
from asgiref.current_thread_executor import CurrentThreadExecutor
from asgiref.sync import (
    AsyncSingleThreadContext,
    AsyncToSync,
    SyncToAsync,
    ThreadSensitiveContext,
    async_to_sync,
    sync_to_async,
)

from ..helpers import LIMIT, Thread, finished, idle_workers, let_idle_threads_run, thread_call, wait_for


class Loop:
    """A fake loop; callbacks run when the test says so."""

    def __init__(self) -> None:
        self.callbacks: queue.SimpleQueue[Callable[[], Any]] = queue.SimpleQueue()
        self.closed = False

    def call_soon_threadsafe(self, callback: Callable[..., Any], *arguments: Any, context: Any = None) -> None:
        if self.closed:
            raise RuntimeError("Event loop is closed")
        self.callbacks.put(lambda: callback(*arguments))

    call_soon = call_soon_threadsafe

    def get_debug(self) -> bool:
        return False

    def is_closed(self) -> bool:
        return self.closed

    def run_next(self) -> None:
        self.callbacks.get(timeout=LIMIT)()


class Delivered:
    """A delivery that records that it was delivered."""

    deliveries = 0

    def deliver(self) -> None:
        self.deliveries += 1


# A result that is being delivered to a loop:


def test_result_that_comes_while_the_loop_is_already_woken() -> None:
    """1. A result wakes the loop. 2. Another one comes: no second wake-up. 3. The loop delivers both."""
    loop: Any = Loop()
    one, two = Delivered(), Delivered()
    deliver_on(loop, one)
    deliver_on(loop, two)
    loop.run_next()
    assert (1, 1) == (one.deliveries, two.deliveries)
    loop.run_next()  # it would have continued, if the first had ended the loop
    assert loop.callbacks.empty()


def test_result_that_comes_just_before_the_queue_is_emptied() -> None:
    """1. The loop is woken.

    2. It allows a new wake-up. 3. A result comes and wakes it. 4. The loop empties the queue.
    """
    loop: Any = Loop()
    results = jobs._deliveries_to(loop)
    one, two = Delivered(), Delivered()
    deliver_on(loop, one)
    release = results.waking.release

    class Waking:
        def release(self) -> None:
            release()
            results.waking = waking
            deliver_on(loop, two)

    waking, results.waking = results.waking, Waking()  # type: ignore[assignment]
    loop.run_next()
    assert (1, 1) == (one.deliveries, two.deliveries)
    loop.run_next()  # the superfluous wake-up
    assert (1, 1) == (one.deliveries, two.deliveries)


def test_queue_that_is_emptied_just_after_a_result_relied_on_the_wake_up() -> None:
    """1. The loop is woken. 2. Another result finds it woken. 3. The loop empties the queue, with that result."""
    loop: Any = Loop()
    results = jobs._deliveries_to(loop)
    one, two = Delivered(), Delivered()
    deliver_on(loop, one)

    class Waking:
        def acquire(self, blocking: bool) -> bool:
            acquired = waking.acquire(blocking=blocking)
            results.waking = waking
            loop.run_next()
            return acquired

        def release(self) -> None:
            waking.release()

    waking, results.waking = results.waking, Waking()  # type: ignore[assignment]
    deliver_on(loop, two)
    assert (1, 1) == (one.deliveries, two.deliveries)


def test_result_that_comes_while_the_queue_is_being_emptied() -> None:
    """1. The loop delivers a result. 2. Another one comes meanwhile. 3. It is delivered, now or by its own wake-up."""
    loop: Any = Loop()
    two = Delivered()

    class Interleaved(Delivered):
        def deliver(self) -> None:
            super().deliver()
            deliver_on(loop, two)

    one = Interleaved()
    deliver_on(loop, one)
    loop.run_next()
    while not loop.callbacks.empty():
        loop.run_next()
    assert (1, 1) == (one.deliveries, two.deliveries)


def test_result_for_a_closed_loop_leaves_the_queue_usable() -> None:
    loop: Any = Loop()
    loop.closed = True
    deliver_on(loop, Delivered())
    loop.closed = False
    call = Delivered()
    deliver_on(loop, call)
    loop.run_next()
    assert 1 == call.deliveries


def test_loops_in_two_threads_do_not_share_a_context() -> None:
    """1. A loop is inside a callback of the library. 2. Another loop runs one, too. 3. Both end."""
    inside, go_on = threading.Event(), threading.Event()

    def factory(loop: Any, coroutine: Any, **options: Any) -> Any:
        if "main_wrap" in coroutine.__qualname__:
            inside.set()
            wait_for(go_on)
        return asyncio.Task(coroutine, loop=loop, **options)

    async def number() -> int:
        return 1

    async def held_up() -> int:
        asyncio.get_running_loop().set_task_factory(factory)
        return await sync_to_async(async_to_sync(number), thread_sensitive=False)()

    first = Thread(asyncio.run, held_up())
    wait_for(inside)
    assert 1 == asyncio.run(sync_to_async(async_to_sync(number), thread_sensitive=False)())
    go_on.set()
    assert 1 == first.get()


def test_result_that_comes_while_another_finds_the_loop_closed() -> None:
    """1. A result is about to wake the loop.

    2. Another one relies on that. 3. The loop is closed. 4. Neither is kept.
    """

    class ClosingLoop(Loop):
        def call_soon_threadsafe(self, callback: Callable[..., Any], *arguments: Any, context: Any = None) -> None:
            if not self.closed:
                self.closed = True
                deliver_on(loop, Delivered())
            super().call_soon_threadsafe(callback, *arguments)

    loop: Any = ClosingLoop()
    results = jobs._deliveries_to(loop)
    deliver_on(loop, Delivered())
    assert not results.queue
    assert not results.waking.locked()


# A call that is taken back or started:


def make_loop_call() -> tuple[ContestedLoopCall, AwaitedOutcome[None], Any]:
    async def coroutine() -> None: ...

    outcome: AwaitedOutcome[None] = AwaitedOutcome(lambda: None)
    made = coroutine()
    outcome.call = call = ContestedLoopCall(made, contextvars.Context(), outcome)
    return call, outcome, made


class Contested:
    """The claim of two threads, made by deleting an attribute; calls functions just before or after a deletion."""

    before: Callable[[], object] | None = None
    after: Callable[[], object] | None = None

    def __delattr__(self, name: str) -> None:
        before, self.before = self.before, None
        if before is not None:
            before()
        super().__delattr__(name)
        if self.after is not None:
            self.after()


class ContestedLoopCall(Contested, LoopCall):
    pass


class ContestedThreadCall(Contested, ThreadCall[Any]):
    pass


@pytest.mark.parametrize("run_first", [True, False])
def test_thread_call_is_run_or_taken_back_never_both(run_first: bool) -> None:
    """1. One side (the thread or the caller) is about to claim the call.

    2. The other side claims it. 3. The first is late.
    """
    ran: list[int] = []
    call = thread_call(Loop(), lambda: ran.append(1), ContestedThreadCall)
    call.before, second = (call.run, call._take_back) if run_first else (call._take_back, call.run)
    second()
    assert [1] * run_first == ran
    assert run_first is call.settled


def test_loop_call_taken_back_just_before_it_starts() -> None:
    """1. The loop is about to start the coroutine. 2. The caller takes it back. 3. The loop finds nothing to start."""
    call, _, coroutine = make_loop_call()
    taken_back: list[bool] = []
    call.before = lambda: taken_back.append(call.take_back())
    assert call.start(Loop()) is None  # type: ignore[arg-type]
    assert [True] == taken_back
    coroutine.close()


def test_loop_call_started_just_before_it_is_taken_back() -> None:
    """1. The caller is about to take the coroutine back.

    2. The loop starts it. 3. The caller learns that it is late.
    """
    call, _, _ = make_loop_call()
    late: list[bool] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        started: list[Any] = []
        call.before = lambda: started.append(call.start(loop))
        loop.call_soon(lambda: late.append(not call.take_back()))
        await asyncio.sleep(0)
        await started[0]

    asyncio.run(main())
    assert [True] == late


def test_loop_call_started_just_before_it_is_cancelled() -> None:
    """1. The coroutine is about to be cancelled. 2. The loop starts it. 3. The loop cancels the task, once."""

    class Task:
        cancellations = 0

        def cancel(self) -> bool:
            self.cancellations += 1
            return True

    class StartingLoop(Loop):
        def create_task(self, coroutine: Any) -> Any:
            return task

    task, loop = Task(), StartingLoop()
    call, outcome, coroutine = make_loop_call()
    call.before = lambda: call.start(loop)  # type: ignore[arg-type]
    assert call.cancel()
    assert 0 == task.cancellations
    loop.run_next()
    assert (1, False) == (task.cancellations, outcome.settled)
    coroutine.close()


def test_cancellation_whose_news_is_late() -> None:
    """1. A call is taken back to be cancelled. 2. The worker finds nothing to start. 3. The thread waits no longer."""
    reported, cancelling = threading.Event(), threading.Event()
    report, set_exception = FreshLoop.report, AwaitedOutcome.set_exception

    def reporting(self: FreshLoop) -> None:
        report(self)
        reported.set()

    def late(self: AwaitedOutcome[Any], error: BaseException) -> None:
        if threading.current_thread() is threading.main_thread():
            cancelling.set()
            wait_for(reported)
        set_exception(self, error)

    def run(self: FreshLoop) -> None:
        wait_for(cancelling)
        real_run(self)

    real_run = FreshLoop.run
    calls: list[Any] = []

    async def inner() -> None:
        raise AssertionError("the coroutine ran")

    async def main() -> None:
        task = asyncio.create_task(sync_to_async(async_to_sync(inner, force_new_loop=True))())
        await asyncio.to_thread(wait_for, posted)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    posted = threading.Event()
    post = WorkerExecutor.post

    def posting(self: WorkerExecutor, job: Any, waiting_thread: int | None = None) -> bool:
        accepted = post(self, job, waiting_thread)
        if isinstance(job, FreshLoop):
            calls.append(job)
            posted.set()
        return accepted

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FreshLoop, "report", reporting)
        patch.setattr(FreshLoop, "run", run)
        patch.setattr(AwaitedOutcome, "set_exception", late)
        patch.setattr(WorkerExecutor, "post", posting)
        asyncio.run(main())
    assert 1 == len(calls)


def test_cancellation_from_another_thread_between_start_and_task() -> None:
    """1. The loop claims the coroutine.

    2. The coroutine is cancelled. 3. The loop makes the task, and it is cancelled once.
    """
    call, outcome, coroutine = make_loop_call()

    class Task:
        cancellations = 0

        def cancel(self) -> bool:
            self.cancellations += 1
            return True

        def done(self) -> bool:
            return False

    task = Task()

    class StartingLoop(Loop):
        def create_task(self, coroutine: Any) -> Any:
            return task

    cancelled: list[bool] = []
    call.after = lambda: cancelled.append(call.cancel())
    loop = StartingLoop()
    call.start(loop)  # type: ignore[arg-type]
    assert 0 == task.cancellations
    loop.run_next()
    assert 1 == task.cancellations
    assert not outcome.settled
    coroutine.close()


def test_cancellation_while_the_call_is_between_two_loops() -> None:
    """1. The thread takes the call back from one loop.

    2. The call is cancelled. 3. The thread finds the record of that.
    """
    call, outcome, coroutine = make_loop_call()
    assert call.take_back()
    assert outcome.cancel()
    assert (True, False) == (outcome.cancelled, outcome.settled)
    coroutine.close()


def test_cancellation_of_what_is_done_is_none() -> None:
    _, outcome, coroutine = make_loop_call()
    outcome.set_result(None)
    assert not outcome.cancel()
    coroutine.close()


def test_cancellation_on_a_closed_loop_is_none() -> None:
    class ClosingLoop(Loop):
        def create_task(self, coroutine: Any) -> None:
            coroutine.close()

    loop = ClosingLoop()
    call, _, _ = make_loop_call()
    call.start(loop)  # type: ignore[arg-type]
    loop.closed = True
    assert not call.cancel()


def test_cancellation_that_finds_no_loop_keeps_the_next_one_from_being_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """1. The thread takes the call back from a loop that stopped.

    2. The call is cancelled. 3. No other loop gets it.
    """

    def leave_and_cancel(self: Any, call: LoopCall, home: Any, outcome: AwaitedOutcome[Any], mailbox: Any) -> None:
        assert call.take_back()
        assert outcome.cancel()

    monkeypatch.setattr(AsyncToSync, "_hand_over_and_serve", leave_and_cancel)
    with pytest.raises(asyncio.CancelledError):
        async_to_sync(asyncio.sleep)(0)


async def test_result_that_meets_the_cancellation_comes_too_late() -> None:
    """1. The caller is cancelled.

    2. The result is delivered before the caller resumes. The call is cancelled, as in asyncio.
    """
    go_on = threading.Event()
    task = asyncio.create_task(sync_to_async(wait_for)(go_on))
    deliver = ThreadCall.deliver

    def cancel_and_deliver(self: ThreadCall[Any]) -> None:
        task.cancel()
        deliver(self)

    await asyncio.sleep(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ThreadCall, "deliver", cancel_and_deliver)
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_result_that_comes_between_the_cancellation_and_its_handling() -> None:
    """1. A wait is cancelled. 2. The result comes, and further ones. 3. The caller waits again: the result is there."""

    class Cancelling(AwaitedOutcome[None]):
        def cancel(self, *message: Any) -> bool:
            return True

    fake: Any = Loop()
    other = Delivered()
    call = thread_call(asyncio.get_running_loop())

    async def wait() -> None:
        with pytest.raises(asyncio.CancelledError):
            await call.arrival
        inner_calls = InnerCalls([Cancelling(lambda: None)])
        assert call.survives_cancellation(inner_calls, asyncio.CancelledError())
        await call.arrival

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    task.cancel()
    deliver_on(fake, call)
    deliver_on(fake, other)
    fake.run_next()
    assert 1 == other.deliveries
    await asyncio.sleep(0)
    assert task.done()
    await task


def test_result_for_a_cancelled_task_does_not_keep_the_loop_busy() -> None:
    """1. The task is cancelled. 2. The result comes, while other code handles the cancellation for a while."""
    loop: Any = Loop()
    call = thread_call(loop)
    call.arrival.cancel()
    call.deliver()
    assert loop.callbacks.empty()


class Bringing(Delivered):
    """A delivery that resumes a task, and calls *what*."""

    def __init__(self, what: Callable[[], object]) -> None:
        self.what = what

    def deliver(self) -> None:
        super().deliver()
        self.what()


def test_exit_of_a_task_that_goes_on_lets_the_next_result_come() -> None:
    """1. Two results come.

    2. The first task ends the loop. 3. When the loop runs again, the second result is delivered.
    """
    loop: Any = Loop()
    second = Delivered()
    deliver_on(loop, Bringing(sys.exit))
    deliver_on(loop, second)
    with pytest.raises(SystemExit):
        loop.run_next()
    assert 0 == second.deliveries
    loop.run_next()
    assert 1 == second.deliveries


def test_task_that_goes_on_and_runs_the_loop_until_the_next_result() -> None:
    """1. Two results come.

    2. The first task runs the loop for the second one, as in Jupyter. 3. The second is delivered.
    """
    loop: Any = Loop()
    second, third = Delivered(), Delivered()
    deliver_on(loop, Bringing(loop.run_next))
    deliver_on(loop, second)
    loop.run_next()
    assert 1 == second.deliveries
    deliver_on(loop, third)
    loop.run_next()
    assert (1, 1) == (second.deliveries, third.deliveries)


def test_tasks_that_ask_for_more_as_they_go_on_do_not_hold_up_the_loop() -> None:
    """1. Two results come. 2. Both tasks call again, and have results at once. 3. The next iteration delivers these."""
    loop: Any = Loop()
    answers = [Delivered(), Delivered()]
    for answer in answers:
        deliver_on(loop, Bringing(functools.partial(deliver_on, loop, answer)))
    loop.run_next()
    assert [0, 0] == [answer.deliveries for answer in answers]
    loop.run_next()
    assert [1, 1] == [answer.deliveries for answer in answers]


# Workers and their pool:


def busy_worker() -> tuple[WorkerExecutor, workers._Worker]:
    executor = WorkerExecutor()
    finished(executor)
    assert executor._worker is not None
    return executor, executor._worker


def test_worker_of_an_executor_that_lasts_leaves_after_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """1. A worker waits for the next job, without a timeout.

    2. The executor is shut down. The worker is idle, and ends.
    """
    executor = ProcessExecutor()
    finished(executor)
    worker = executor._worker
    assert worker is not None
    monkeypatch.setattr(workers, "IDLE_TIME", 0.01)
    executor.shutdown(wait=False)
    worker.thread.join(LIMIT)
    assert not worker.thread.is_alive()
    assert worker not in workers._idle


def test_worker_that_times_out_while_it_is_being_leased_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """1. An idle worker's time is up. 2. It is leased. 3. It checks once more, and stays."""
    executor, worker = busy_worker()
    executor.shutdown()
    worker.idle_since = time.monotonic() - 2 * workers.IDLE_TIME
    leasing = WorkerExecutor()

    class Idle(list[Any]):
        def remove(self, item: Any) -> None:
            finished(leasing)
            super().remove(item)

    monkeypatch.setattr(workers, "_idle", Idle(workers._idle))
    assert not worker._leaves()
    assert worker is leasing._worker
    monkeypatch.undo()
    workers._idle.remove(worker)
    leasing.shutdown()


def test_worker_that_was_idle_too_long_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "IDLE_TIME", 0.01)
    executor = WorkerExecutor()
    [thread] = executor.submit(lambda: {threading.current_thread()}).result(LIMIT)
    executor.shutdown()
    thread.join(LIMIT)
    assert not thread.is_alive()
    assert thread not in idle_workers()


def test_worker_just_given_back_does_not_leave_by_an_older_time_out() -> None:
    """1. A leased worker waits for a job.

    2. It is released. 3. That wait times out, but its idle time has only begun.
    """
    executor, worker = busy_worker()
    executor.shutdown()
    assert worker.thread in idle_workers()
    assert not worker._leaves()


def test_worker_is_given_back_before_its_last_outcome_is_reported() -> None:
    """So a caller that continues at once finds the worker in the pool."""
    idle: list[bool] = []

    class Job:
        def run(self) -> None:
            self.thread = threading.current_thread()

        def report(self) -> None:
            idle.append(self.thread in idle_workers())
            done.set()

        def abandon(self, error: BaseException) -> None: ...

    done = threading.Event()
    executor = WorkerExecutor()
    executor.post(Job())
    executor.shutdown(wait=False)
    wait_for(done)
    assert [True] == idle


def test_shutdown_that_waits_after_one_that_did_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """1. A job runs.

    2. The executor is shut down, without waiting. 3. It is shut down again, and this waits for the job.
    """
    go_on = threading.Event()
    executor = WorkerExecutor()
    job = executor.submit(wait_for, go_on)
    executor.shutdown(wait=False)
    wait_until_reached = workers._Worker.wait_until_reached

    def let_it_go_on(self: workers._Worker) -> None:
        go_on.set()
        wait_until_reached(self)

    monkeypatch.setattr(workers._Worker, "wait_until_reached", let_it_go_on)
    executor.shutdown()
    assert job.done()


def test_post_that_meets_the_shutdown_is_refused() -> None:
    """1. A post sees an open executor.

    2. The executor is shut down. 3. The post is refused, and the worker released.
    """
    executor, worker = busy_worker()

    class Unfinished(collections.deque[Any]):
        def append(self, item: Any) -> None:
            super().append(item)
            executor.shutdown(wait=False)

    executor.unfinished = Unfinished()
    with pytest.raises(RuntimeError, match="accepts no more calls"):
        executor.submit(print)
    assert executor._worker is None
    assert worker.thread in idle_workers()


def test_two_first_posts_at_once_lease_one_worker() -> None:
    """1. A post finds no worker and leases one. 2. Another post is faster. 3. The first one releases its worker."""
    executor = WorkerExecutor()
    lease = workers._lease

    def slow_lease(*args: Any) -> Any:
        worker = lease(*args)
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(workers, "_lease", lease)
            finished(executor)
        return worker

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers, "_lease", slow_lease)
        one = executor.submit(threading.current_thread).result(LIMIT)
    assert one is executor.submit(threading.current_thread).result(LIMIT)
    executor.shutdown()
    assert len(set(workers._idle)) == len(workers._idle)


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="counts references")
def test_finalizer_that_bridges_on_a_worker_in_the_pool_leases_another() -> None:
    """1. A worker is back in the pool.

    2. It drops its last job. 3. A finalizer of the user makes a bridged call there.
    """
    used: list[threading.Thread] = []

    async def close() -> None:
        used.append(threading.current_thread())

    class Job:
        def run(self) -> None: ...

        def report(self) -> None: ...

        def abandon(self, error: BaseException) -> None: ...

        def __del__(self) -> None:
            if threading.current_thread() is not threading.main_thread():
                async_to_sync(close)()
                used.append(threading.current_thread())
                done.set()

    done, hold, posted = threading.Event(), threading.Event(), threading.Event()
    executor = WorkerExecutor()

    def post() -> None:
        executor.post(Job())  # made on the worker, which frees it on free-threaded builds, too
        posted.set()
        wait_for(hold)

    executor.submit(post)
    wait_for(posted)
    executor.shutdown(wait=False)
    hold.set()
    wait_for(done)
    assert used[0] is not used[1]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_callback_of_a_future_that_exits_does_not_end_the_worker() -> None:
    executor = WorkerExecutor()
    hold = threading.Event()
    future = executor.submit(wait_for, hold)
    future.add_done_callback(lambda future: sys.exit())
    hold.set()
    assert 1 == executor.submit(int, 1).result(LIMIT)
    executor.shutdown()


def test_shutdown_waits_for_what_was_accepted() -> None:
    executor = WorkerExecutor()
    hold = threading.Event()
    futures: list[Any] = [executor.submit(wait_for, hold), executor.submit(int)]
    waiting = Thread(executor.shutdown)
    hold.set()
    waiting.get()
    assert [True, True] == [future.done() for future in futures]


def test_shutdown_on_the_worker_itself_does_not_wait() -> None:
    executor = WorkerExecutor()
    assert executor.submit(executor.shutdown).result(LIMIT) is None


def test_system_without_files_to_spare_fails_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop needs files; the error of its creation is raised, and the next call works."""

    def refuse() -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    async def number() -> int:
        return 1

    with monkeypatch.context() as patch:
        patch.setattr(asyncio, "new_event_loop", refuse)
        with pytest.raises(OSError, match="Too many"):
            async_to_sync(number)()
    assert 1 == async_to_sync(number)()


@pytest.mark.parametrize("kept", [False, True])
def test_system_without_threads_to_spare_fails_the_call(kept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error of starting a thread is raised; nothing hangs, and the next call works."""

    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def number() -> int:
        return 1

    async def main() -> int:
        async with ThreadSensitiveContext():
            return await sync_to_async(int)(1)

    with monkeypatch.context() as patch:
        patch.setattr(workers, "_idle", [])
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            asyncio.run(main())
        refused = pytest.raises(RuntimeError, match="can't start new thread")
        with AsyncSingleThreadContext() if kept else contextlib.nullcontext(), refused:
            async_to_sync(number)()
    assert 1 == async_to_sync(main)() == async_to_sync(number)() == asyncio.run(main())


# The loop of a block:


def in_block(function: Callable[..., Any], *arguments: Any) -> Thread:
    """Run *function* in a thread that is below the enclosing block."""
    return Thread(contextvars.copy_context().run, function, *arguments)


def test_block_that_ends_before_its_loop_has_begun() -> None:
    """1. A call is given to the loop. 2. The block ends. 3. The loop begins: the call is started, and cancelled."""
    posted, closed = threading.Event(), threading.Event()
    post, close, run = KeptLoop.post, KeptLoop.close, KeptLoop.run

    def posting(self: KeptLoop, *arguments: Any) -> bool:
        accepted = post(self, *arguments)
        posted.set()
        return accepted

    def closing(self: KeptLoop, mailbox: Any) -> None:
        close(self, mailbox)
        closed.set()

    def late_run(self: KeptLoop) -> None:
        wait_for(closed)
        run(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KeptLoop, "post", posting)
        patch.setattr(KeptLoop, "close", closing)
        patch.setattr(KeptLoop, "run", late_run)
        with AsyncSingleThreadContext():
            caller = in_block(async_to_sync(asyncio.sleep), LIMIT)
            wait_for(posted)
    with pytest.raises(asyncio.CancelledError):
        caller.get()


def test_block_that_ends_just_before_its_loop_is_given_a_call() -> None:
    """1. A call has found the loop of its block.

    2. The block ends. 3. The loop refuses the call, which gets a new loop.
    """
    found, ended = threading.Event(), threading.Event()
    post = KeptLoop.post

    def late_post(self: KeptLoop, *arguments: Any) -> bool:
        if threading.current_thread() is not threading.main_thread():
            found.set()
            wait_for(ended)
        return post(self, *arguments)

    async def loop() -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KeptLoop, "post", late_post)
        with AsyncSingleThreadContext():
            kept = async_to_sync(loop)()
            caller = in_block(async_to_sync(loop))
            wait_for(found)
        ended.set()
        assert kept is not caller.get()


def test_interrupt_while_the_loop_of_a_block_is_given_a_call() -> None:
    """1. The loop is given a call. 2. The thread is interrupted before it knows. 3. Its mailbox is no longer used."""

    async def mailbox() -> Any:
        return AsyncToSync.loop_thread_executors[asyncio.get_running_loop()]

    async def look_when_the_other_has_left(left: threading.Event) -> Any:
        waiting.set()
        await asyncio.to_thread(wait_for, left)
        return AsyncToSync.executors.current, await mailbox()

    def interrupted_post(self: KeptLoop, *arguments: Any) -> None:
        post(self, *arguments)
        raise KeyboardInterrupt

    post = KeptLoop.post
    left, waiting = threading.Event(), threading.Event()
    with AsyncSingleThreadContext():
        other = in_block(async_to_sync(look_when_the_other_has_left), left)
        wait_for(waiting)
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(KeptLoop, "post", interrupted_post)
            async_to_sync(mailbox)()
        async_to_sync(mailbox)()
        left.set()
        own, of_loop = other.get()
        assert own is of_loop


def test_exit_in_the_loop_of_a_block_while_only_an_interrupted_thread_was_blocked() -> None:
    """1. A thread is interrupted while it leaves the loop.

    2. A callback raises SystemExit. 3. No thread waits for the loop.
    """

    async def loop() -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    def interrupt(self: KeptLoop, mailbox: Any) -> None:
        raise KeyboardInterrupt

    went_on = threading.Event()
    with AsyncSingleThreadContext():
        kept = async_to_sync(loop)()
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(KeptLoop, "leave", interrupt)
            async_to_sync(loop)()
        kept.call_soon_threadsafe(sys.exit)
        kept.call_soon_threadsafe(went_on.set)
        wait_for(went_on)
        assert kept is async_to_sync(loop)()


@pytest.mark.parametrize("used", [False, True])
def test_interrupt_while_a_block_is_left(used: bool) -> None:
    """The interrupt is raised, and the loop of the block, if it has one, still ends."""

    class Lock:
        def __enter__(self) -> None:
            raise KeyboardInterrupt

        def __exit__(self, *arguments: object) -> None: ...

    async def loop() -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    block = AsyncSingleThreadContext()
    block.__enter__()
    used_loops = [async_to_sync(loop)()] if used else []
    close, lock = KeptLoop.close, loops.lock

    def close_with_the_lock(self: KeptLoop, mailbox: Any) -> None:
        patch.setattr(loops, "lock", lock)
        close(self, mailbox)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loops, "lock", Lock())
        patch.setattr(KeptLoop, "close", close_with_the_lock)
        with pytest.raises(KeyboardInterrupt):
            block.__exit__(None, None, None)
    deadline = time.monotonic() + LIMIT
    while not all(each.is_closed() for each in used_loops):
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_thread_that_is_let_go_by_the_end_of_a_block_leaves_no_trace() -> None:
    """1. A thread waits for the loop. 2. The end of the block ends the loop. 3. The thread continues."""
    waiting = threading.Event()

    async def wait() -> None:
        waiting.set()
        await asyncio.sleep(LIMIT)

    with AsyncSingleThreadContext():
        caller = in_block(async_to_sync(wait))
        wait_for(waiting)
    with pytest.raises(asyncio.CancelledError):
        caller.get()
    assert {} == AsyncToSync.loop_thread_executors


# Outcomes that nothing awaits:


async def test_cancellation_while_a_foreign_executor_ends_the_call() -> None:
    """1. The cancelled caller looks at the future. 2. The executor completes the future. 3. The caller continues."""
    hold, begun, ended = threading.Event(), threading.Event(), threading.Event()

    class Call(ThreadCall[Any]):
        def __getattribute__(self, name: str) -> Any:
            value = super().__getattribute__(name)
            if name == "_submitted" and value is not None and hold.is_set() is False:
                hold.set()
                wait_for(ended)  # not the result, which is there before the callbacks run
                assert super().__getattribute__("_submitted") is None
            return value

        def _take_over(self, submitted: Any) -> None:
            super()._take_over(submitted)
            ended.set()

    def work() -> None:
        begun.set()
        wait_for(hold)

    with pytest.MonkeyPatch.context() as patch, concurrent.futures.ThreadPoolExecutor(1) as pool:
        patch.setattr(sync, "ThreadCall", Call)
        task = asyncio.create_task(sync_to_async(work, thread_sensitive=False, executor=pool)())
        await asyncio.to_thread(wait_for, begun)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="counts references")
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("closed", [True, False])
def test_result_for_a_loop_that_has_no_further_turn_keeps_nobody(closed: bool) -> None:
    """1. A result wakes the loop. 2. The loop is closed or dropped first. 3. Loop, call and result are freed."""

    class Result:
        pass

    begun, go_on = threading.Event(), threading.Event()
    references: list[weakref.ref[Any]] = []

    def work() -> Result:
        begun.set()
        wait_for(go_on)
        result = Result()
        references.append(weakref.ref(result))
        return result

    async def begin_and_give_up() -> None:
        task = asyncio.create_task(sync_to_async(work)())
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            await asyncio.get_running_loop().run_in_executor(pool, wait_for, begun)
        task.cancel()
        await asyncio.wait([task])

    loop = asyncio.new_event_loop()
    loop.run_until_complete(begin_and_give_up())
    go_on.set()
    finished(SyncToAsync.single_thread_executor)  # type: ignore[arg-type]
    if closed:
        loop.close()
    references.append(weakref.ref(loop))
    del loop
    gc.collect()
    let_idle_threads_run()
    assert [None, None] == [reference() for reference in references]


def test_task_that_only_its_result_keeps_goes_on() -> None:
    """1. A task waits for a thread; nothing else refers to it.

    2. The result is on its way. 3. The garbage is collected.
    """
    begun, go_on = threading.Event(), threading.Event()
    went_on: list[str] = []

    def work() -> str:
        begun.set()
        wait_for(go_on)
        return "result"

    async def forgotten() -> None:
        went_on.append(await sync_to_async(work)())

    async def main() -> None:
        asyncio.create_task(forgotten())  # noqa: RUF006
        await asyncio.to_thread(wait_for, begun)
        go_on.set()
        finished(SyncToAsync.single_thread_executor)  # type: ignore[arg-type]
        gc.collect()
        await asyncio.sleep(0.01)

    asyncio.run(main())
    assert ["result"] == went_on


# Interrupts of the main thread:


@pytest.mark.parametrize("moment", ["before the queue", "after the decision to wake", "before the wake-up"])
def test_interrupt_while_a_result_is_handed_over(moment: str) -> None:
    """The result arrives nevertheless, even for a task that outlives the interrupted call; so do later results."""
    armed = False

    def interrupt() -> None:
        nonlocal armed
        if armed and threading.current_thread() is threading.main_thread():
            armed = False
            raise KeyboardInterrupt

    class Waking:
        def __init__(self) -> None:
            self.lock = threading.Lock()

        def acquire(self, blocking: bool) -> bool:
            acquired = self.lock.acquire(blocking=blocking)
            if moment == "after the decision to wake":
                interrupt()
            return acquired

        def release(self) -> None:
            self.lock.release()

    class Deliveries(jobs._Deliveries):
        def __init__(self) -> None:
            super().__init__()
            self.waking = Waking()  # type: ignore[assignment]

        def wake(self, loop: Any) -> None:
            if moment == "before the wake-up":
                loop = Interrupting(loop)
            super().wake(loop)

    def deliver(loop: Any, delivery: Any, surely: bool = False) -> None:
        if moment == "before the queue":
            interrupt()
        deliver_on(loop, delivery, surely)

    class Interrupting:
        def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
            self.loop = loop

        def call_soon_threadsafe(self, *arguments: Any, **options: Any) -> None:
            interrupt()
            self.loop.call_soon_threadsafe(*arguments, **options)

        def call_soon(self, *arguments: Any, **options: Any) -> None:
            self.loop.call_soon(*arguments, **options)

    tasks: list[asyncio.Task[int]] = []

    async def outlive() -> int:
        nonlocal armed
        armed = True
        return await sync_to_async(int)(1)

    async def first() -> None:
        tasks.append(asyncio.create_task(outlive()))
        await asyncio.sleep(LIMIT)

    async def second() -> tuple[int, int]:
        return await tasks[0], await sync_to_async(int)(2)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs, "_Deliveries", Deliveries)
        patch.setattr(jobs, "deliver_on", deliver)
        with AsyncSingleThreadContext():
            with pytest.raises(KeyboardInterrupt):
                async_to_sync(first)()
            assert (1, 2) == async_to_sync(second)()


def test_second_interrupt_in_the_handling_of_the_first() -> None:
    """1. The wait is interrupted. 2. The cancellation is, too. 3. The mailbox is closed: later jobs go elsewhere."""
    begun, go_on = threading.Event(), threading.Event()
    results: queue.SimpleQueue[threading.Thread] = queue.SimpleQueue()

    def interrupt(*arguments: Any) -> Any:
        wait_for(begun)
        raise KeyboardInterrupt

    async def main() -> None:
        begun.set()
        await asyncio.to_thread(wait_for, go_on)
        results.put(await sync_to_async(threading.current_thread)())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CurrentThreadExecutor, "serve", interrupt)
        patch.setattr(LoopCall, "cancel", interrupt)
        with pytest.raises(KeyboardInterrupt):
            async_to_sync(main)()
    go_on.set()
    assert threading.current_thread() is not results.get(timeout=LIMIT)


def test_interrupt_in_a_callback_of_a_submitted_call_comes_out() -> None:
    """1. The waiting thread has run a call. 2. A callback of its future is interrupted. 3. The interrupt is raised."""

    def interrupt(future: Any) -> None:
        raise KeyboardInterrupt

    async def main() -> None:
        executor = AsyncToSync.executors.current
        await asyncio.wrap_future(submit(executor))

    def submit(executor: Any) -> concurrent.futures.Future[int]:
        hold = threading.Event()
        first = executor.submit(wait_for, hold)
        future: concurrent.futures.Future[int] = executor.submit(int)
        future.add_done_callback(interrupt)
        hold.set()
        assert first is not future
        return future

    with pytest.raises(KeyboardInterrupt):
        async_to_sync(main)()


@pytest.mark.parametrize("threads_left", [True, False])
def test_signal_handler_that_bridges_while_the_loop_of_its_block_is_started(threads_left: bool) -> None:
    """1. A call is about to start the loop of its block.

    2. A signal handler makes a call, and starts it. 3. One loop remains.
    """

    async def loop() -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    start = KeptLoop.start
    started: list[KeptLoop | None] = []
    handled: list[asyncio.AbstractEventLoop] = []
    first: list[bool] = []

    def interrupted_start(mailboxes: Any) -> KeptLoop | None:
        if not first:
            first.append(True)
            handled.append(async_to_sync(loop)())
        if len(handled) == 1 and not threads_left:  # the interpreter has begun to end
            return None
        started.append(start(mailboxes))
        return started[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KeptLoop, "start", interrupted_start)
        with AsyncSingleThreadContext():
            handled.append(async_to_sync(loop)())
    assert handled[0] is handled[1]
    assert 1 + threads_left == len(started)
    for kept in started:
        assert kept is not None
        assert kept._end.settled or not kept.usable


def test_signal_handler_that_bridges_while_a_worker_is_leased() -> None:
    """1. A call is about to lease a worker. 2. A signal handler makes a bridged call there. 3. Both calls end."""

    async def number() -> int:
        return 1

    lease = workers._lease
    handled: list[int] = []

    def interrupted_lease(*args: Any) -> Any:
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(workers, "_lease", lease)
            handled.append(async_to_sync(number)())
        return lease(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers, "_lease", interrupted_lease)
        assert 1 == async_to_sync(number)()
    assert [1] == handled


# Stress:


@pytest.mark.slow
def test_everything_at_once_with_the_shortest_switch_interval() -> None:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    barrier = threading.Barrier(6)

    async def leaf(number: int) -> int:
        return await sync_to_async(int)(number)

    async def request(number: int) -> int:
        async with ThreadSensitiveContext():
            one = asyncio.create_task(sync_to_async(async_to_sync(leaf))(number))
            two = asyncio.create_task(sync_to_async(time.sleep)(0.001))
            await asyncio.sleep(0)
            two.cancel()
            await asyncio.gather(two, return_exceptions=True)
            return await one

    async def main() -> list[int]:
        return await asyncio.gather(*[request(number) for number in range(50)])

    def run(number: int) -> list[int]:
        barrier.wait(LIMIT)
        return asyncio.run(main()) if number % 2 else async_to_sync(main)()

    try:
        assert [list(range(50))] * 6 == [thread.get() for thread in [Thread(run, number) for number in range(6)]]
    finally:
        sys.setswitchinterval(interval)
