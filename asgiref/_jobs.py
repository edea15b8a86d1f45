"""Work on its way between threads, and its outcome on the way back.

A *job* runs on the thread that takes it from a queue: first ``run()``, then, when that
thread has put its own house in order, ``report()``. A job that was accepted comes to an
end in exactly one way: it is run, its caller takes it back before that, or it is
abandoned with an exception that the caller gets.

No exception is kept in a future or in a frame that the exception's own traceback
leads to: that would be a reference cycle for each failing call.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
import weakref
from concurrent.futures import Executor, Future
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, Protocol, TypeVar

from . import local
from ._forks import after_fork_in_child, current_generation

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

__all__ = ["Job", "JobExecutor", "LoopCall", "Outcome", "ThreadCall"]

P = ParamSpec("P")
R = TypeVar("R")

# For callbacks of our own on a user's loop: what they run in must keep nobody's context alive.
EMPTY_CONTEXT = contextvars.Context()


class Job(Protocol):
    def run(self) -> None:
        """Do the work on this thread; keep the outcome, let no exception out."""

    def report(self) -> None:
        """Hand the outcome, if there is one, to whoever waits for it."""

    def abandon(self, error: BaseException) -> None:
        """Report *error* in place of an outcome, unless there is one already."""


class JobExecutor(Executor):
    """An executor that takes jobs; ``submit`` wraps a plain call in one."""

    def post(self, job: Job) -> bool:
        """Accept *job*, or return False where nobody serves the queue any more."""
        raise NotImplementedError

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        call = _SubmittedCall(fn, args, kwargs)
        if not self.post(call):
            raise RuntimeError(f"{self!r} serves no thread any more and takes no new calls")
        return call.future


class _SubmittedCall:
    """A call whose outcome goes into a ``concurrent.futures.Future``."""

    __slots__ = ("_args", "_fn", "_kwargs", "future")

    def __init__(self, fn: Callable[..., Any], args: Any, kwargs: Any) -> None:
        self.future: Future[Any] = Future()
        self._fn, self._args, self._kwargs = fn, args, kwargs

    def run(self) -> None:
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            result = self._fn(*self._args, **self._kwargs)
        except BaseException as error:
            self.future.set_exception(error)
            del self  # else the exception's traceback leads back to the future that holds it
        else:
            self.future.set_result(result)

    def report(self) -> None:
        pass

    def abandon(self, error: BaseException) -> None:
        if not self.future.done() and (self.future.running() or self.future.set_running_or_notify_cancel()):
            self.future.set_exception(error)


class Outcome(Generic[R]):
    """What a bridged call came to: a result or an exception, taken out once."""

    __slots__ = ("_error", "_result", "settled")

    def __init__(self) -> None:
        self.settled = False
        self._error: BaseException | None = None

    def set_result(self, result: R) -> None:
        self._result = result
        self.settled = True

    def set_exception(self, error: BaseException) -> None:
        """Fail with *error*, whatever the result was; the first exception stays."""
        if self._error is None:
            self._error = error
        self.settled = True

    def take(self) -> R:
        """Return the result or raise the exception; either is let go of."""
        if self._error is not None:
            error, self._error = self._error, None
            try:
                raise error
            finally:
                del error
        result = self._result
        del self._result
        return result


class ThreadCall(Outcome[R]):
    """One ``sync_to_async`` call, on its way from a loop to a thread and back."""

    __slots__ = ("_call", "_claim", "_delivered", "_generation", "_loop", "_reported", "_submitted", "_waiter")

    def __init__(self, loop: asyncio.AbstractEventLoop, call: Callable[[], R]) -> None:
        super().__init__()
        self._loop = loop
        self._call: Callable[[], R] | None = call
        # Held by whoever gets it first: the thread that runs the call, or the caller that takes it back.
        self._claim = threading.Lock()
        self._generation = current_generation()
        self._reported = self._delivered = False
        self._submitted: Future[R] | asyncio.Future[R] | None = None
        self._waiter: asyncio.Future[None] | None = None

    # On the thread:

    def run(self) -> None:
        if not self._claim.acquire(blocking=False):
            return
        call = self._call
        assert call is not None
        try:
            self.set_result(call())
        except BaseException as error:
            self.set_exception(error)
        self._call = None

    def report(self) -> None:
        if self.settled and not self._reported:
            self._reported = True
            # After a fork, the loop and whoever waits in it are the parent's.
            if self._generation is current_generation():
                _results_for(self._loop).put(self._loop, self)

    def abandon(self, error: BaseException) -> None:
        if not self.settled:
            self.set_exception(error)
        self._call = None
        self.report()

    def submit_to(self, executor: Any) -> None:
        """Have a foreign *executor* run the call; it needs no more than ``submit(fn)``."""
        self._submitted = executor.submit(self._call)
        self._submitted.add_done_callback(self._take_over)

    def submit_to_default_executor(self) -> None:
        """Have the default executor of the loop run the call."""
        assert self._call is not None
        # Not awaited itself: a cancellation would cut the link to the thread's outcome.
        self._submitted = self._loop.run_in_executor(None, self._call)
        self._submitted.add_done_callback(self._take_over)

    def _take_over(self, submitted: Future[R] | asyncio.Future[R]) -> None:
        self._submitted = self._call = None
        if submitted.cancelled():
            self.set_exception(asyncio.CancelledError())
        elif (error := submitted.exception()) is not None:
            self.set_exception(error)
        else:
            self.set_result(submitted.result())
        if isinstance(submitted, asyncio.Future):
            self.deliver()
        else:
            self.report()

    # On the loop:

    def deliver(self) -> None:
        self._delivered = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _take_back(self) -> None:
        """Keep the call from running, if it has not begun."""
        if self._submitted is not None:
            self._submitted.cancel()
        else:
            self._claim.acquire(blocking=False)

    async def wait(self, inner_calls: list[Any]) -> None:
        """Wait for the outcome.

        A cancellation goes to the *inner_calls* for which the synchronous code waits, and
        their outcome decides. Where there are none, it ends the wait: a call that has
        begun goes on alone, one that has not is never run.
        """
        while not self._delivered:
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            except asyncio.CancelledError:
                if not any([call.cancel() for call in inner_calls.copy()]):
                    self._take_back()
                    raise


class LoopCall:
    """One hand-over of an ``async_to_sync`` call: a coroutine on its way to a loop.

    The calling thread serves its mailbox until ``finished`` is called. Whether the loop
    ever gets to the coroutine is not in the caller's power, so ``start`` and ``take_back``
    exclude each other, and only one of them wins.
    """

    __slots__ = ("_context", "_coroutine", "_finished", "_lock", "_loop", "_outcome", "_task", "_taken_back")

    def __init__(
        self,
        coroutine: Coroutine[Any, Any, None],
        context: contextvars.Context,
        outcome: Outcome[Any],
        finished: Callable[[], None],
    ) -> None:
        self._coroutine: Coroutine[Any, Any, None] | None = coroutine
        self._context = context
        self._outcome = outcome
        self._finished = finished
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._taken_back = False

    # On the loop's thread:

    def start(self, loop: asyncio.AbstractEventLoop) -> asyncio.Task[None] | None:
        """Make the coroutine a task of *loop*, unless the caller took it back."""
        with self._lock:
            if self._taken_back:
                return None
            self._loop = loop
        assert self._coroutine is not None
        coroutine, self._coroutine = self._coroutine, None
        if local.THREADS_INHERIT:
            local.arrive(self._context)
        # Not create_task(context=...): task factories of older frameworks do not take it.
        self._task = self._context.run(loop.create_task, coroutine)
        return self._task

    def start_and_report(self, loop: asyncio.AbstractEventLoop) -> None:
        """``start``, as a callback of a loop that runs on: the task's end ends the call."""
        try:
            task = self.start(loop)
        except BaseException as error:  # of a task factory
            self._fail(error)
            self._finished()
        else:
            if task is not None:
                task.add_done_callback(self._report)

    def _report(self, task: asyncio.Task[None]) -> None:
        self.settle(task)
        self._finished()

    def settle(self, task: asyncio.Task[None]) -> None:
        """Give the call an outcome also where the coroutine had no chance to: cancelled before its first step."""
        if task.cancelled():
            self._fail(asyncio.CancelledError())
        elif (error := task.exception()) is not None:
            self._fail(error)
        else:
            self._fail(RuntimeError("AsyncToSync.main_wrap() ended without setting a result"))

    def _fail(self, error: BaseException) -> None:
        if not self._outcome.settled:
            self._outcome.set_exception(error)

    # On any thread:

    def take_back(self) -> bool:
        """Keep the coroutine from being started; return False where it has been."""
        with self._lock:
            if self._loop is not None:
                return False
            self._taken_back = True
            return True

    @property
    def taken_back(self) -> bool:
        return self._taken_back

    def cancel(self) -> bool:
        """Cancel the coroutine, begun or not; return False where there is nothing left to cancel."""
        if self._outcome.settled or self._taken_back:
            return False
        if self.take_back():
            self._outcome.set_exception(asyncio.CancelledError())
            self._finished()
            return True
        assert self._loop is not None
        if asyncio._get_running_loop() is self._loop:
            return self._cancel_task()
        try:
            # Behind the callback that starts the task, so never ahead of the task's existence.
            self._loop.call_soon_threadsafe(self._cancel_task, context=EMPTY_CONTEXT)
        except RuntimeError:  # the loop is closed
            return False
        return True

    def _cancel_task(self) -> bool:
        return self._task is not None and self._task.cancel()


class _Results:
    """The finished calls of one loop; one wake-up brings many.

    The lock makes "append, and see whether somebody has woken the loop" one step: else
    the loop could empty the list in between, and the last result would wait for the next.
    """

    __slots__ = ("_calls", "_lock")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls: list[ThreadCall[Any]] = []

    def put(self, loop: asyncio.AbstractEventLoop, call: ThreadCall[Any]) -> None:
        with self._lock:
            self._calls.append(call)
            first = len(self._calls) == 1
        if first:
            try:
                loop.call_soon_threadsafe(self._deliver, context=EMPTY_CONTEXT)
            except RuntimeError:  # the loop is closed, and whoever waited in it is gone
                with self._lock:
                    self._calls.clear()

    def _deliver(self) -> None:
        with self._lock:
            calls, self._calls = self._calls, []
        for call in calls:
            call.deliver()


# The results under way to each loop. Entries end with their loop, and all of them at a fork.
_results: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Results] = weakref.WeakKeyDictionary()


def _results_for(loop: asyncio.AbstractEventLoop) -> _Results:
    return _results.get(loop) or _results.setdefault(loop, _Results())


@after_fork_in_child
def _forget_results() -> None:
    global _results
    _results = weakref.WeakKeyDictionary()
