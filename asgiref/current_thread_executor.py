"""The mailbox that a blocked thread serves.

A thread that waits in ``async_to_sync`` does not sleep: it runs what the coroutine, or
anything below it, sends back to this thread. Jobs run one at a time, in the order in
which they came, on that thread and on no other. A job that was accepted is run even if
the wait ends first; one that comes later is refused, and goes elsewhere.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from ._bridge import forks
from ._bridge.jobs import JobExecutor, WouldDeadlock

if TYPE_CHECKING:
    import asyncio
    import weakref
    from collections.abc import Callable
    from concurrent.futures import Future

    from ._bridge.jobs import Job

__all__ = ["CurrentThreadExecutor"]

P = ParamSpec("P")
R = TypeVar("R")

# How long, in seconds, a thread waits for a job before it looks whether the loop that it
# depends on still runs, and the process is still the same (a signal handler may have
# forked): at first, and at most. A guess: soon enough for a person who stopped the loop,
# rare enough for a thousand threads that wait for minutes.
FIRST_CHECK, LAST_CHECK = 0.05, 1.0


# The idents of the threads that serve a mailbox and have nothing to do. Each adds and removes its own.
waiting: set[int] = set()


@forks.after_fork_in_child
def _forget_waiting() -> None:
    global waiting
    waiting = set()


class CurrentThreadExecutor(JobExecutor):
    """An executor that runs what is submitted on the thread that built it, while that thread serves it.

    ``async_to_sync`` makes one for each call. By hand: build it on the thread that is to do
    the work, give it to other threads, and call ``run_until_future`` with a future that
    ends the service.

    Args:
        old_executor: The executor of the enclosing blocked call, or None. Thread-sensitive
            code turns to it when this one no longer serves.

    >>> import concurrent.futures, threading
    >>> executor = CurrentThreadExecutor(None)
    >>> done = concurrent.futures.Future()
    >>> def ask():
    ...     ident = executor.submit(threading.get_ident).result()
    ...     done.set_result(ident)
    >>> threading.Thread(target=ask).start()
    >>> executor.run_until_future(done)
    >>> done.result() == threading.get_ident()
    True
    """

    def __init__(self, old_executor: CurrentThreadExecutor | None) -> None:
        # Finished ones are left out, or a long line of tasks that outlive the calls that
        # made them would keep them all.
        while isinstance(old_executor, CurrentThreadExecutor) and not old_executor.serving:
            old_executor = old_executor.outer
        self.outer: CurrentThreadExecutor | None = old_executor
        self.owner = threading.get_ident()
        self._generation = forks.generation
        # The loop whose default executor this thread belongs to, where the executor does not show that.
        self.lends_to: weakref.ref[asyncio.AbstractEventLoop] | None = None
        # And then, what gives that executor, or None.
        self.pool: Callable[[], Any]
        self._jobs: deque[Job] = deque()
        # Released when there is news for the thread. Not a queue: up to Python 3.12, a SimpleQueue that
        # has an item put before anybody waits for it may let the next wait last for ever, with any timeout.
        self._no_news = threading.Lock()
        self._no_news.acquire()
        self._stopped = self._closed = False
        # Of a thread that waits for all that a loop runs, whatever the contexts of the tasks: what further out waits
        # too. None where a task counts to the thread only if its context says so.
        self.surroundings: list[Any] | None = None
        # Called with each job in place of queueing it, where no second thread can be had.
        self.run_in_place: Callable[[Job], None] | None = None

    @property
    def serving(self) -> bool:
        """Whether a job posted now would be accepted; a thread does not survive a fork."""
        return not self._closed and self._generation is forks.generation

    @property
    def belongs_to_this_thread(self) -> bool:
        """Whether this thread is the one that serves, so that it would wait for itself."""
        return self.owner == threading.get_ident() and self.run_in_place is None

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Run ``fn(*args, **kwargs)`` on the thread that serves.

        Returns:
            A ``concurrent.futures.Future``; cancelling it works until the thread begins.

        Raises:
            RuntimeError: from the serving thread itself, where waiting for the future
                would never end, and when the service is over.
        """
        if self.belongs_to_this_thread:
            raise RuntimeError(
                "CurrentThreadExecutor.submit() was called on the very thread that serves it, which would then "
                "wait for itself; call the function directly instead"
            )
        return super().submit(fn, *args, **kwargs)

    def post(self, job: Job, waiting_thread: int | None = None) -> bool:
        if self._generation is not forks.generation:  # the thread did not survive the fork
            return False
        if self.run_in_place is not None:
            self.run_in_place(job)
            return True
        if self.owner == waiting_thread:
            raise WouldDeadlock
        if self._closed:
            return False
        self._jobs.append(job)
        # Looked at again: the thread may have closed the mailbox, and have looked at its queue for the last time, in
        # between. Whoever removes the job from the queue has it. No lock would do here, since a finalizer may post,
        # on a thread that holds it. Without the interpreter's lock, appending and rotating take that of the deque:
        # either close() finds the job, or this finds the mailbox closed.
        if self._closed and self._removed(job):
            return False
        self._wake()
        return True

    def _removed(self, job: Job) -> bool:
        """Remove *job* from the queue; return False where another thread has done so."""
        while True:
            try:
                self._jobs.remove(job)
                return True
            except ValueError:
                return False
            except IndexError:  # pragma: no cover: PyPy, and a build without the GIL, notice that the queue changed
                continue

    def _wake(self) -> None:
        try:
            self._no_news.release()
        except RuntimeError:  # there is news already, at which the thread will look
            pass

    def run_until_future(self, future: Future[Any]) -> None:
        """Run what is submitted, on this thread, until *future* is done; then refuse what comes later.

        Raises:
            RuntimeError: on another thread than the one that built the executor.
            BaseException: whatever interrupts the wait, such as ``KeyboardInterrupt``; calls
                that have not begun then get a ``RuntimeError``.
        """
        if self.owner != threading.get_ident():
            raise RuntimeError(
                "CurrentThreadExecutor.run_until_future() was called on another thread than the one that built the "
                "executor, for which all that is submitted is meant; build the executor on the thread that serves it"
            )
        future.add_done_callback(lambda future: self.stop())
        try:
            self.serve()
        except BaseException:
            self.close(run_rest=False)
            raise
        self.close()

    # What follows is for the bridge: an interrupted service can be taken up again.

    def stop(self) -> None:
        """Let ``serve`` return. Any thread may call this."""
        # Seen by ``serve``: it reads this after it has taken the lock, which ``_wake`` releases, or finds released.
        self._stopped = True
        self._wake()

    def serve(self, check: Callable[[], bool] | None = None) -> None:
        """Run jobs until ``stop`` is called, or until *check*, asked now and then, says that it never will be."""
        __traceback_hide__ = True
        pause = FIRST_CHECK
        while not self._stopped:
            # Where the fork was in here, nothing can measure what the child does: the frame is from before.
            if self._generation is not forks.generation:  # pragma: no cover
                raise RuntimeError(
                    "this process was forked inside a blocked async_to_sync call, and the event loop that the call "
                    "waits for stayed in the parent; end the child with os._exit() before that call returns"
                )
            if self._jobs:
                self._run_next()
                continue
            waiting.add(self.owner)
            try:
                is_news = self._no_news.acquire(True, pause)
            finally:
                # A signal handler that bridges meanwhile removes it too, for one pause at most.
                waiting.discard(self.owner)
            if not is_news:
                forks.notice()
                if check is not None and check():
                    return
                pause = min(2 * pause, LAST_CHECK)

    def _run_next(self) -> None:
        # Not popleft(): a signal's exception may be raised as soon as a call returns, and
        # the job would be lost on the way into its variable. Subscripts are safe from that.
        try:
            job = self._jobs[0]
        except IndexError:  # whoever posted it took it back, since the mailbox is closed
            return
        closed = self._closed
        if not closed:
            del self._jobs[0]
        try:
            if closed and not self._removed(job):
                return
            job.run()
            # In a forked child, whoever waits for the outcome is the parent's.
            if self._generation is forks.generation:  # pragma: no branch: nothing can measure that, as above
                job.report()
        except BaseException as interrupt:  # of this thread, by a signal: a job lets nothing out by itself
            job.abandon(interrupt)
            raise

    def close(self, *, run_rest: bool = True) -> None:
        """Accept nothing more; run what was accepted, or tell its callers that it will not be."""
        if self._closed or self._generation is not forks.generation:
            return
        self._closed = True
        try:
            self._jobs.rotate(0)  # see post()
            while self._jobs and run_rest:
                self._run_next()
        finally:
            while self._jobs:
                with contextlib.suppress(IndexError):  # taken back meanwhile
                    self._jobs.popleft().abandon(
                        RuntimeError("the thread was interrupted in async_to_sync before it came to this call")
                    )
