"""The mailbox that a blocked thread serves.

A thread that waits in ``async_to_sync`` runs the jobs that the coroutine, or code below it,
sends to this thread. Jobs run one at a time, in the order of submission, only on that
thread. An accepted job is run even if the wait ends first. Later jobs are refused, and the
caller chooses another thread.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from ._bridge import forks
from ._bridge.jobs import JobExecutor, WouldDeadlock, removed

if TYPE_CHECKING:
    import asyncio
    import weakref
    from collections.abc import Callable
    from concurrent.futures import Future

    from ._bridge.jobs import Job

__all__ = ["CurrentThreadExecutor"]

P = ParamSpec("P")
R = TypeVar("R")

# Seconds that a thread waits for a job before it checks whether the event loop that it waits
# for is still running, and whether the process is the same (a signal handler may have
# forked): the first and the longest interval. A guess: soon enough for a person who stopped
# the loop, and rare enough for a thousand threads that wait for minutes.
FIRST_CHECK, LAST_CHECK = 0.05, 1.0


# The mailboxes of the threads that serve one and are idle, by the ident of the thread. Each thread adds and removes its
# own.
waiting: dict[int, CurrentThreadExecutor] = {}


@forks.after_fork_in_child
def _forget_waiting() -> None:
    global waiting
    waiting = {}


class CurrentThreadExecutor(JobExecutor):
    """An executor that runs jobs on the thread that built it, while that thread serves it.

    ``async_to_sync`` makes one for each call. To use it directly, build it on the thread that
    should do the work, pass it to other threads, and call ``run_until_future`` with a future
    that ends the service.

    Args:
        old_executor: The executor of the enclosing blocked call, or None. It runs
            thread-sensitive code when this one no longer serves.

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
        # Skip finished ones: else a chain of tasks that outlive their calls would keep all of them alive.
        while isinstance(old_executor, CurrentThreadExecutor) and not old_executor.serving:
            old_executor = old_executor.outer
        self.outer: CurrentThreadExecutor | None = old_executor
        self.owner = threading.get_ident()
        self._generation = forks.generation
        # The loop to whose default executor this thread belongs, if the executor does not show that,
        self.lends_to: weakref.ref[asyncio.AbstractEventLoop] | None = None
        # and a function that returns that executor or None.
        self.pool: Callable[[], Any]
        self._jobs: deque[Job] = deque()
        # Released to wake the thread. Not a queue: up to Python 3.12, if an item is put into a SimpleQueue
        # before a thread waits for it, the next wait may last forever, in spite of its timeout.
        self._no_news = threading.Lock()
        self._no_news.acquire()
        self._stopped = self._closed = False
        # The number of jobs that the thread has begun here.
        self.jobs_begun = 0
        # For a thread that serves all tasks of a loop, in any context: the enclosing mailboxes that wait, too. None if
        # the thread serves only the tasks whose context refers to it.
        self.surroundings: list[Any] | None = None
        # Called with each job instead of queueing it, if no second thread is available.
        self.run_in_place: Callable[[Job], None] | None = None

    @property
    def serving(self) -> bool:
        """Whether a job would be accepted now; in a forked child, it would not."""
        return not self._closed and self._generation is forks.generation

    @property
    def belongs_to_this_thread(self) -> bool:
        """Whether this thread is the serving one, which cannot wait for itself."""
        return self.owner == threading.get_ident() and self.run_in_place is None

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Run ``fn(*args, **kwargs)`` on the serving thread.

        Returns:
            A ``concurrent.futures.Future``. It can be cancelled until the function starts.

        Raises:
            RuntimeError: if it is called on the serving thread itself, where waiting for the
                future would deadlock, or after the end of the service.
        """
        if self.belongs_to_this_thread:
            raise RuntimeError(
                "CurrentThreadExecutor.submit() cannot be called on the thread that serves the executor, which would "
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
        # Check again: the thread may have closed the mailbox and looked at its queue for the last time in between.
        # The side that removes the job from the queue handles it. No lock is possible here: a finalizer may post on a
        # thread that holds it. On free-threaded builds, append() and rotate() take the deque's own lock, so either
        # close() finds the job, or this finds the mailbox closed.
        if self._closed and removed(self._jobs, job):
            return False
        self._wake()
        return True

    def _wake(self) -> None:
        try:
            self._no_news.release()
        except RuntimeError:  # released already, and the thread will check
            pass

    def run_until_future(self, future: Future[Any]) -> None:
        """Run submitted jobs on this thread until *future* is done; refuse later ones.

        Raises:
            RuntimeError: on any thread other than the one that built the executor.
            BaseException: an exception that interrupts the wait, such as
                ``KeyboardInterrupt``. Jobs that have not started get a ``RuntimeError``.
        """
        if self.owner != threading.get_ident():
            raise RuntimeError(
                "CurrentThreadExecutor.run_until_future() can only be called on the thread that built the executor, "
                "because its jobs are meant for that thread; build the executor on the thread that serves it"
            )
        future.add_done_callback(lambda future: self.stop())
        try:
            self.serve()
        except BaseException:
            self.close(run_rest=False)
            raise
        self.close()

    # For the bridge: an interrupted service can be resumed.

    def stop(self) -> None:
        """Let ``serve`` return. Any thread may call this."""
        # ``serve`` sees this: it reads it after acquiring the lock that ``_wake`` releases.
        self._stopped = True
        self._wake()

    def serve(self, check: Callable[[], bool] | None = None) -> None:
        """Run jobs until ``stop`` is called, or until *check*, called now and then, returns True: it never will be."""
        __traceback_hide__ = True
        pause = FIRST_CHECK
        while not self._stopped:
            # After a fork in here, coverage cannot measure the child: the frame is older.
            if self._generation is not forks.generation:  # pragma: no cover
                raise RuntimeError(
                    "async_to_sync cannot continue in this forked process, because the event loop that it waits for "
                    "stayed in the parent; end the child with os._exit() before the call returns"
                )
            if self._jobs:
                self._run_next()
                continue
            waiting[self.owner] = self
            try:
                is_news = self._no_news.acquire(True, pause)
            finally:
                # A signal handler that bridges meanwhile removes it too; the next pause adds it again.
                waiting.pop(self.owner, None)
            if not is_news:
                forks.notice()
                if check is not None and check():
                    return
                pause = min(2 * pause, LAST_CHECK)

    def _run_next(self) -> None:
        # Not popleft(): a signal handler may raise as soon as a call returns, and the job would be
        # lost before it is assigned. Subscripts are safe.
        try:
            job = self._jobs[0]
        except IndexError:  # the poster took it back, because the mailbox is closed
            return
        closed = self._closed
        if not closed:
            del self._jobs[0]
        try:
            self.jobs_begun += 1
            if closed and not removed(self._jobs, job):
                return
            job.run()
            # In a forked child, nothing waits for the outcome: the caller is in the parent.
            if self._generation is forks.generation:  # pragma: no branch: nothing can measure that, as above
                job.report()
        except BaseException as interrupt:  # raised by a signal handler: a job itself raises nothing
            job.abandon(interrupt)
            raise

    def close(self, *, run_rest: bool = True) -> None:
        """Accept no more jobs; run the accepted ones, or give their callers an exception."""
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
                        RuntimeError(
                            "the call was not run, because its thread was interrupted in async_to_sync; call it again "
                            "if needed"
                        )
                    )
