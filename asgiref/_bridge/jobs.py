"""Jobs, which pass calls between threads, and their outcomes.

A *job* runs on the thread that takes it from a queue: first ``run()``, then, when that thread
has finished its own bookkeeping, ``report()``. An accepted job ends in exactly one way: it is
run, its caller takes it back before that, or it is abandoned with an exception for the caller.

An exception is never kept in a future or a frame to which its own traceback refers: each
failing call would leave a reference cycle.
"""

from __future__ import annotations

import asyncio

# asyncio would import this with the first call on a default executor. A fork during that import would leave the
# import lock held forever in the child.
import concurrent.futures.thread  # noqa: F401
import contextlib
import contextvars
import functools
import threading
import time
import weakref
from collections import deque
from concurrent.futures import Executor, Future
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, Protocol, TypeVar

from .. import local
from . import builds, forks, register
from .forks import after_fork_in_child
from .internals import callbacks_of, make_first_step, running_loop

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from .kept import KeptContext

__all__ = [
    "AwaitedOutcome",
    "InnerCalls",
    "JobExecutor",
    "LoopCall",
    "Outcome",
    "SubmittedCall",
    "ThreadCall",
    "WouldDeadlock",
    "deliver_on",
    "is_empty",
    "removed",
    "snapshot",
]

P = ParamSpec("P")
R = TypeVar("R")

# Where ``ThreadCall`` keeps the attribute that two threads claim by deleting it: a slot of that name, or, on
# free-threaded builds, the object's ``__dict__``. There, deleting a slot is not atomic: PyMember_SetOne
# (Python/structmember.c) looks for the value before it takes the object's lock, so two threads can both succeed.
# _PyObject_StoreInstanceAttribute (Objects/dictobject.c) looks for it with the lock held.
CLAIMED_IN = "__dict__" if builds.FREE_THREADED else "_call"

# Returns the start time of a call; in debug mode, replaced by the clock of ``_diagnosis.watch``.
clock = time.monotonic


if TYPE_CHECKING:

    class Job(Protocol):
        def run(self) -> None:
            """Do the work on this thread and keep the outcome; must not raise."""

        def report(self) -> None:
            """Pass the outcome, if there is one, to the caller."""

        def abandon(self, error: BaseException) -> None:
            """Report *error* instead of an outcome, unless there is one already."""

    class Delivery(Protocol):
        def deliver(self) -> None:
            """Do the work on the loop; must not raise, except exceptions that end the loop."""


def removed(queue: deque[Any], item: object) -> bool:
    """Remove *item* from *queue*; return False if another thread has done so. Exactly one thread gets it."""
    while True:
        try:
            queue.remove(item)
            return True
        except ValueError:
            return False
        except IndexError:  # pragma: no cover: the queue has changed meanwhile (PyPy, free-threaded builds)
            continue


def snapshot(queue: deque[R]) -> list[R]:
    """Return the items of *queue*. Not its ``copy``, which is neither atomic nor fast on free-threaded builds."""
    while True:
        try:
            return list(queue)
        except RuntimeError:  # pragma: no cover: as above
            continue


def is_empty(queue: deque[Any]) -> bool:
    """Return whether *queue* is empty. This takes its lock, as adding and removing an item do; ``len`` does not."""
    queue.rotate(0)
    return not queue


class WouldDeadlock(Exception):
    """A thread would wait for a job that only that thread can run."""


class JobExecutor(Executor):
    """An executor that accepts jobs; ``submit`` wraps a plain call in one."""

    def post(self, job: Job, waiting_thread: int | None = None) -> bool:
        """Accept *job*, or return False if no thread serves the queue any more.

        Args:
            job: The job.
            waiting_thread: The ``ident`` of a thread that is blocked until the job has ended.

        Raises:
            WouldDeadlock: if only that thread serves the queue.
        """
        raise NotImplementedError

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        call = SubmittedCall(fn, args, kwargs)
        if not self.post(call):
            raise RuntimeError(
                f"{self!r} accepts no more calls, because no thread serves it any more; use another executor"
            )
        return call.future


class SubmittedCall:
    """A call whose outcome goes into a ``concurrent.futures.Future``."""

    __slots__ = ("_args", "_fn", "_kwargs", "future")

    def __init__(self, fn: Callable[..., Any], args: Any, kwargs: Any) -> None:
        self.future: Future[Any] = Future()
        self._fn, self._args, self._kwargs = fn, args, kwargs

    def run(self) -> None:
        if not self.future.set_running_or_notify_cancel():
            return
        fn, args, kwargs = self._fn, self._args, self._kwargs
        del self._fn, self._args, self._kwargs  # an idle worker may keep this object alive for a moment
        try:
            result = fn(*args, **kwargs)
        except BaseException as error:
            self.future.set_exception(error)
            del self  # else the exception's traceback refers to the future that holds it
        else:
            self.future.set_result(result)

    def report(self) -> None:
        pass

    @property
    def given_up(self) -> bool:
        """Whether the call has not started and its outcome is no longer wanted."""
        return self.future.cancelled()

    def abandon(self, error: BaseException) -> None:
        if not self.future.done() and (self.future.running() or self.future.set_running_or_notify_cancel()):
            self.future.set_exception(error)


if TYPE_CHECKING:

    class OfResult(Generic[R]):
        __slots__ = ()

else:

    class OfResult:
        """A replacement for ``Generic`` at run time, which costs a tenth of this module's import."""

        __slots__ = ()

        def __class_getitem__(cls, result: Any) -> Any:
            return cls


class Outcome(OfResult[R]):
    """The outcome of a bridged call: a result or an exception, taken out once."""

    __slots__ = ("_error", "_result", "settled")

    def __init__(self) -> None:
        self.settled = False
        self._error: BaseException | None = None
        self._result: R

    def set_result(self, result: R) -> None:
        self._result = result
        self.settled = True

    def set_exception(self, error: BaseException) -> None:
        """Set *error*, which replaces a result; the first exception stays."""
        if self._error is None:
            self._error = error
        self.settled = True

    def take(self) -> R:
        """Return the result or raise the exception, and drop the reference to it."""
        __traceback_hide__ = True
        if self._error is not None:
            error, self._error = self._error, None
            try:
                raise error
            finally:
                del error
        result = self._result
        del self._result
        return result


class AwaitedOutcome(Outcome[R]):
    """The outcome of a coroutine that a thread waits for; wakes the thread when it is settled.

    It also represents the call for other code: ``cancel`` finds its current ``LoopCall``.
    """

    __slots__ = ("began", "call", "cancelled", "context", "goes_on", "thread_goes_on")

    def __init__(self, thread_goes_on: Callable[[], None]) -> None:
        super().__init__()
        # None if the thread waits for the end of a new loop instead.
        self.thread_goes_on: Callable[[], None] | None = thread_goes_on
        # The thread writes ``call`` and then reads ``cancelled``; a cancelling thread does the reverse, so at
        # least one of them notices. On free-threaded builds, each write takes the lock of this object, so the
        # second thread sees the write of the first.
        self.call: LoopCall | None = None
        self.cancelled = False
        # The context of the coroutine's task, if known; whether the coroutine may keep running in it although nothing
        # waits for it any more.
        self.context: contextvars.Context | None = None
        self.goes_on = False
        self.began = clock()

    def set_result(self, result: R) -> None:
        super().set_result(result)
        self._let_thread_go_on()

    def set_exception(self, error: BaseException) -> None:
        super().set_exception(error)
        self._let_thread_go_on()

    def cancel(self, *message: Any) -> bool:
        """Cancel the coroutine, started or not; return False if nothing is left to cancel. On any thread.

        Args:
            message: The arguments of the ``CancelledError`` that the coroutine gets.
        """
        if self.settled:
            return False
        self.cancelled = True
        call = self.call
        return call is not None and call.cancel(*message)

    def _let_thread_go_on(self) -> None:
        thread_goes_on = self.thread_goes_on  # read once: another thread may set it to None
        if thread_goes_on is not None:
            thread_goes_on()


class ThreadCall(Outcome[R]):
    """One ``sync_to_async`` call, passed from a loop to a thread and back.

    Args:
        loop: The loop on which the caller awaits ``arrival``.
        wrapper: The ``SyncToAsync`` object, whose ``thread_handler`` the thread calls with the following arguments.
        exc_info: The exception that the caller is handling.
        inner_calls: Collects the ``async_to_sync`` calls that the thread waits for.
        context: The context to run in.
        child: The wrapped function with its arguments.
    """

    __slots__ = ("_arrived", "_generation", "_loop", "_submitted", "arrival", "began", "__weakref__", CLAIMED_IN)

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        wrapper: Any,
        exc_info: Any,
        inner_calls: InnerCalls,
        context: contextvars.Context,
        child: Callable[[], R],
    ) -> None:
        # Instead of super().__init__(), which costs a hundredth of a bridged call.
        self.settled, self._error = False, None
        # Dropped when the result is being delivered: a queued delivery must not keep its loop alive.
        self._loop: asyncio.AbstractEventLoop | None = loop
        # Done, with None, when there is an outcome; deleted when the outcome is no longer wanted.
        self.arrival: asyncio.Future[None] = asyncio.Future(loop=loop)
        self._arrived = False
        # Deletion is atomic and fails the second time: either the thread gets the call to run it, or the caller
        # takes it back. See CLAIMED_IN.
        self._call = wrapper, loop, exc_info, inner_calls, context, child
        self._submitted: Future[R] | asyncio.Future[R] | None = None
        # For bridge_calls, which may find calls of the parent process.
        self._generation = forks.generation
        self.began = clock()

    # On the thread:

    @register.noted
    def run(self) -> None:
        __traceback_hide__ = True
        try:
            wrapper, loop, exc_info, inner_calls, context, child = self._call
            del self._call
        except AttributeError:
            return
        end = register.here().ending() if register.KEPT else None
        try:
            if end is not None:
                register.here().enter("asgiref._bridge.jobs.ThreadCall.run", self=self)
            self._result = wrapper.thread_handler(loop, exc_info, inner_calls, context.run, child)
        except BaseException as error:
            self._error = error
        finally:
            if end is not None:
                end()
        self.settled = True

    def report(self, after_interrupt: bool = False) -> None:
        loop = self._loop
        if loop is not None and self.settled:
            deliver_on(loop, self, after_interrupt)
            self._loop = None

    def abandon(self, error: BaseException) -> None:
        if not self.settled:
            self.set_exception(error)
        self.report(True)

    def submit_to(self, executor: Any) -> None:
        """Let an *executor* of another package run the call; it only needs ``submit(fn)``.

        If it refuses, the call can be given to another executor.
        """
        call = self._call
        try:
            submitted = self._submitted = executor.submit(self._as_function())
        except BaseException:
            self._call = call
            raise
        submitted.add_done_callback(self._take_over)

    def submit_to_default_executor(self, loop: asyncio.AbstractEventLoop) -> None:
        """Let the default executor of the loop run the call."""
        # Not awaited directly: a cancellation would lose the outcome of the thread.
        submitted = self._submitted = loop.run_in_executor(None, self._as_function())
        submitted.add_done_callback(self._take_over)

    def _as_function(self) -> functools.partial[R]:
        """Return the call as a ``partial``, in which instrumentation looks for ``thread_handler``."""
        wrapper, loop, exc_info, inner_calls, context, child = self._call
        del self._call
        return functools.partial(wrapper.thread_handler, loop, exc_info, inner_calls, context.run, child)

    def _take_over(self, submitted: Future[R] | asyncio.Future[R]) -> None:
        self._submitted = None
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
        """Resume the task that awaits ``arrival``, directly.

        The future would resume it in the next event loop iteration, with one more call of the
        selector, which is a tenth of the cost of a bridged call.
        """
        try:
            arrival = self.arrival
        except AttributeError:
            self._forget()
            return
        self._arrived = True
        if arrival.done():  # cancelled, and the task will be resumed; or delivered twice, after an interrupt
            pass
        elif not (callbacks := callbacks_of(arrival)) or arrival.get_loop().get_debug():
            arrival.set_result(None)  # in debug mode, the loop must resume it, to log slow tasks
        else:
            callback, context = callbacks[0]  # any others can wait
            arrival.remove_done_callback(callback)
            arrival.set_result(None)
            context.run(callback, arrival)
            # The traceback of an exception of the task refers to this frame, and these may refer to the exception.
            del callbacks, callback, context

    @property
    def given_up(self) -> bool:
        """Whether the call has not started and its outcome is no longer wanted. On any thread."""
        loop, arrival = self._loop, getattr(self, "arrival", None)
        if arrival is None or arrival.cancelled() or not hasattr(self, "_call"):
            return True
        return loop is not None and loop.is_closed()

    def _forget(self) -> None:
        """Drop an unwanted outcome: the traceback of an exception refers to this object."""
        self._error = None
        self._result = None  # type: ignore[assignment]

    def _take_back(self) -> bool:
        """Keep the call from running, if it has not started; return whether it is certain that it never runs."""
        with contextlib.suppress(AttributeError):
            del self._call
            return True
        submitted = self._submitted  # read once: the thread that ends the call sets it to None
        if isinstance(submitted, asyncio.Future):
            # After this cancellation, the future is done although the function may still run; nothing tells its end.
            submitted.remove_done_callback(self._take_over)
            submitted.cancel()
            return False
        return submitted is not None and submitted.cancel()

    def survives_cancellation(self, inner_calls: InnerCalls, cancellation: asyncio.CancelledError) -> bool:
        """After a cancellation of the caller, return whether to keep waiting.

        The first *cancellation* goes to the *inner_calls* that the synchronous code waits for, and
        their outcome is used. Without any, it ends the wait: a call that has started keeps running
        in the background, one that has not started never runs. Further cancellations, which may
        come until the task has ended, must not interrupt the cleanup.
        """
        if inner_calls.cancelled is not None:
            inner_calls.absorbed = cancellation.args
        else:
            # Before anything is cancelled: the function may continue at once, on its thread, and check.
            inner_calls.cancelled = cancellation.args
            inner_calls.may_be_cancelled = True
            if not any([call.cancel(*cancellation.args) for call in inner_calls.copy()]):
                inner_calls.never_began = self._take_back()
                self._forget()
                return False
        if self.arrival.cancelled():
            self.arrival = asyncio.Future(loop=self.arrival.get_loop())
            if self._arrived:
                self.arrival.set_result(None)
        return True

    def cancel_result(self, *message: Any) -> None:
        """Replace a result by ``CancelledError``; an exception stays."""
        if self._error is None:
            self._error = asyncio.CancelledError(*message)
            self._result = None  # type: ignore[assignment]


class InnerCalls(list[AwaitedOutcome[Any]]):
    """The ``async_to_sync`` calls that one bridged call waits for: they are cancelled when its caller is cancelled."""

    __slots__ = ("__dict__", "__weakref__", "loop_thread")

    # The executor that runs the call, if a ThreadSensitiveContext was given it: it promises one thread.
    promised_executor: Any = None
    # The loop in whose default executor the call runs, if that executor does not show its threads.
    default_executor_of: weakref.ref[asyncio.AbstractEventLoop] | None = None
    # The arguments of the first cancellation of the caller, and of the latest one after it.
    cancelled: tuple[Any, ...] | None = None
    absorbed: tuple[Any, ...] | None = None
    # Whether it is certain that the function never runs, because the caller was cancelled before.
    never_began = False
    # The context for the coroutines that the function waits for, one after the other.
    kept: KeptContext | None = None
    # For ``cancellation``: whether there is anything to check; whether the rest of the call is cleanup; and a function
    # that tells whether the result is no longer wanted.
    may_be_cancelled = False
    only_cleans_up = False
    caller_has_gone: Callable[[], bool] | None = None
    # The thread on which the caller's loop ran. It is set for each call, so it is in a slot.
    loop_thread: threading.Thread


class LoopCall:
    """An attempt to run the coroutine of an ``async_to_sync`` call on a loop.

    The loop may never start it. Exactly one of ``start`` and ``take_back`` succeeds. A
    coroutine that was started settles the outcome itself.
    """

    # The thread on which the loop has started this call.
    thread: threading.Thread | None = None

    def __init__(
        self,
        coroutine: Coroutine[Any, Any, None],
        context: contextvars.Context,
        outcome: AwaitedOutcome[Any],
        kept: KeptContext | None = None,
    ) -> None:
        # Deletion is atomic and fails the second time: either the loop gets the coroutine, or the caller takes it back.
        # No slots here, see CLAIMED_IN.
        self._coroutine = coroutine
        self._context = context
        self._outcome = outcome
        self._kept = kept
        # The loop that was asked to start the coroutine, unless it is a new one; and the loop that got to it.
        self.asked: asyncio.AbstractEventLoop | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None

    # On the loop's thread:

    def start(self, loop: asyncio.AbstractEventLoop) -> asyncio.Task[None] | None:
        """Make the coroutine a task of *loop*, unless the caller took it back."""
        self.thread = threading.current_thread()
        self._loop = loop  # Before the next step: code that comes too late to take the coroutine back needs both.
        try:
            coroutine = self._coroutine
            del self._coroutine
        except AttributeError:
            return None
        # Only now, on this thread: it may have been inside this context with the previous coroutine until now.
        context = self._context if self._kept is None else self._kept.follow(self._context)
        if local.THREADS_INHERIT:
            local.arrive(context)
        try:
            try:
                # Before the task is created: an eager one may end there and wake our caller.
                self._outcome.context = context
                # In a copy, because an eager task enters its context when it is created.
                self._task = context.copy().run(loop.create_task, coroutine, context=context)
            except TypeError:  # task factories of older frameworks do not accept a context
                self._outcome.context = None
                self._task = context.run(loop.create_task, coroutine)
        except BaseException as error:  # from a task factory
            self._outcome.set_exception(error)
        else:
            if running_loop() is loop:
                make_first_step(self._task, loop)
        return self._task

    # On any thread:

    @property
    def may_go_on(self) -> bool:
        return self._task is not None and not self._task.done()

    @property
    def ended_unheard(self) -> bool:
        """Whether the task is done without an outcome: it was cancelled before its first step."""
        return self._task is not None and self._task.done() and not self._outcome.settled

    def take_back(self) -> bool:
        """Prevent the start of the coroutine; return False if it was started or taken back before."""
        try:
            del self._coroutine
        except AttributeError:
            return False
        return True

    def cancel(self, *message: Any) -> bool:
        """Cancel the coroutine, started or not; see ``AwaitedOutcome.cancel``."""
        if self.take_back():
            self._outcome.set_exception(asyncio.CancelledError(*message))
            return True
        loop = self._loop
        if loop is None:  # the thread has taken it back for another loop, and will see the cancellation
            return True
        if running_loop() is loop:
            return self._cancel_task(*message)
        try:
            # Queued after the callback that creates the task.
            loop.call_soon_threadsafe(self._cancel_task, *message, context=contextvars.Context())
        except RuntimeError:  # the loop is closed
            return False
        return True

    def _cancel_task(self, *message: Any) -> bool:
        return self._task is not None and self._task.cancel(*message)


class _Deliveries:
    """The queue of finished calls, and other deliveries of threads, for one loop; one wake-up delivers many.

    The lock is held from the decision to wake the loop until the loop reads the queue. A thread
    that finds it held has appended its delivery before, so the loop sees it. On free-threaded
    builds, the lock of the deque orders this: ``append`` and ``rotate`` take it (``len`` does not).
    If the thread takes it first, the loop sees the delivery. If the loop does, it has released
    ``waking`` before, so the thread finds it free.

    The queue may have the only strong reference to a task: asyncio refers to tasks weakly.
    """

    def __init__(self) -> None:
        self.queue: deque[Delivery] = deque()
        self.waking = threading.Lock()

    def wake(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            # An empty context, which keeps no objects of users alive. Not a shared one, which two loops would
            # enter concurrently.
            loop.call_soon_threadsafe(self._deliver, loop, context=contextvars.Context())
        except RuntimeError:  # the loop is closed, and nothing waits on it any more
            self.queue.clear()
            self._release()

    def _release(self) -> None:
        try:
            self.waking.release()
        except RuntimeError:  # not held, after an interrupt
            pass

    def _deliver(self, loop: asyncio.AbstractEventLoop) -> None:
        self._release()
        queue = self.queue
        queue.rotate(0)
        # Results that resumed tasks ask for wait for the next iteration, so that other callbacks are not starved.
        count = len(queue)
        # A resumed task may also end the loop, or run it until another one of these has been resumed.
        if count > 1 and self.waking.acquire(False):
            loop.call_soon(self._deliver, loop, context=contextvars.Context())
        for _ in range(count):
            if not queue:
                return
            queue.popleft().deliver()


# The deliveries to each loop. Entries end with their loop; a fork removes all of them.
_deliveries: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Deliveries] = weakref.WeakKeyDictionary()

# The entry that was used last, which saves most look-ups in the dictionary; at first, dead references.
_NOTHING: weakref.ref[Any] = weakref.ref(_Deliveries())
_latest = _NOTHING, _NOTHING


def deliver_on(loop: asyncio.AbstractEventLoop, delivery: Delivery, surely: bool = False) -> None:
    """Call ``delivery.deliver()`` on *loop* soon; never, if the loop is closed. On any thread.

    Args:
        surely: Wake the loop in any case: an exception of a signal handler may have prevented
            an earlier wake-up.
    """
    latest_loop, latest_deliveries = _latest
    deliveries = latest_deliveries() if latest_loop() is loop else None
    if deliveries is None:
        deliveries = _deliveries_to(loop)
    deliveries.queue.append(delivery)
    if deliveries.waking.acquire(False) or surely:
        deliveries.wake(loop)


def _deliveries_to(loop: asyncio.AbstractEventLoop) -> _Deliveries:
    global _latest
    deliveries = _deliveries.get(loop)
    if deliveries is None:
        # Items in the queue of a closed loop may keep that loop alive.
        for other in [reference() for reference in _deliveries.keyrefs()]:
            if other is not None and other.is_closed():
                _deliveries.pop(other, None)
        deliveries = _deliveries.setdefault(loop, _Deliveries())
    _latest = weakref.ref(loop), weakref.ref(deliveries)
    return deliveries


@after_fork_in_child
def _forget_deliveries() -> None:
    global _deliveries, _latest
    _deliveries = weakref.WeakKeyDictionary()
    _latest = _NOTHING, _NOTHING
