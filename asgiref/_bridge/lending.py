"""A blocked thread lends itself to work that its own call waits for.

The threads of an executor may all be blocked in ``async_to_sync`` while what they wait for
has yet to run in that same executor. So a call with ``thread_sensitive=False`` is offered to
the blocked threads that it comes from, those among them that belong to its executor: it
runs where it was meant to run, and never on the main thread. That happens only when all
threads of the executor have been seen blocked so. A thread that lends itself no longer runs
what its call sends to it, so as long as another can come to the work, that one is waited for.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import sys
import threading
import weakref
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar

from .. import current_thread_executor
from ..current_thread_executor import CurrentThreadExecutor
from .internals import reference_to_executor_above, starting_lock_of, thread_limit_of, threads_of
from .jobs import SubmittedCall

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

__all__ = ["LendingExecutor", "blocked_above", "lending_executor", "note_executor"]

R = TypeVar("R")

# ``pool``: what ``pool_here`` has found.
_of_thread = threading.local()

# Seconds between two looks at whether a call is left waiting, at first and at most. Guesses:
# longer than a free thread takes to come to a call, short beside what a program takes that blocks so.
FIRST_LOOK, LAST_LOOK = 0.005, 0.1


def note_executor(mailbox: CurrentThreadExecutor, inner_calls: Any) -> None:
    """Note which executor this thread belongs to, that of *mailbox*, where only the call that it runs tells."""
    mailbox.lends_to = getattr(inner_calls, "default_executor_of", None)
    if mailbox.lends_to is not None:
        mailbox.pool = pool_here()


def blocked_above(ancestor: Any, context: Any) -> list[CurrentThreadExecutor]:
    """Return the mailboxes of all threads that are blocked above a call, innermost first.

    Args:
        ancestor: The mailbox of the innermost ``async_to_sync`` call above, finished or not, or None.
        context: The enclosing ``ThreadSensitiveContext``, or None. One with an executor hides
            from thread-sensitive code what is above it.
    """
    blocked = []
    while isinstance(ancestor, CurrentThreadExecutor):
        if ancestor.serving:
            blocked.append(ancestor)
        ancestor = ancestor.outer
    blocked += [mailbox for mailbox in getattr(context, "hidden_mailboxes", ()) if mailbox.serving]
    return blocked


def lending_executor(
    executor: Any, loop: asyncio.AbstractEventLoop, blocked: list[CurrentThreadExecutor], *, default: bool
) -> LendingExecutor | None:
    """Return what stands for *executor* in a call from below its own threads; None where no such thread is blocked.

    Args:
        executor: May be None for the default one, where the loop does not show it (uvloop's do not).
        loop: The running loop.
        blocked: What ``blocked_above`` returns.
        default: Whether it is the loop's default executor. Where that does not show its threads,
            one is known to belong to it by the bridged call that it runs.
    """
    if not blocked:
        return None
    owners: set[int | None] = set()
    if (threads := threads_of(executor)) is not None:
        with contextlib.suppress(TypeError), starting_lock_of(executor):  # of an executor that calls something else so
            owners = {getattr(thread, "ident", None) for thread in list(threads)}
    elif default:
        owners = {mailbox.owner for mailbox in blocked if mailbox.lends_to is not None and mailbox.lends_to() is loop}
    lenders = [mailbox for mailbox in blocked if mailbox.owner in owners]
    if not lenders:
        return None
    return LendingExecutor(executor, loop, lenders)


class LendingExecutor:
    """Stands for an executor in one call of a coroutine of *loop* for which threads of that executor wait.

    Args:
        executor: The executor, or None for the loop's default one.
        mailboxes: Of the threads that may lend themselves.
    """

    def __init__(self, executor: Any, loop: asyncio.AbstractEventLoop, mailboxes: list[CurrentThreadExecutor]) -> None:
        self._executor, self._loop, self._mailboxes = executor, loop, mailboxes

    def submit(self, call: Callable[[], R]) -> Future[R]:
        offered = _OfferedCall(call)
        future: Future[R] = offered.untaken[0].future
        accepted: Future[Any] | asyncio.Future[Any]
        if self._executor is None:
            accepted = self._loop.run_in_executor(None, offered)
        else:
            accepted = self._executor.submit(offered)
        accepted.add_done_callback(offered.turned_down)
        # By reference: the timer keeps nothing of a call that is long done.
        self._look_later(weakref.ref(offered), FIRST_LOOK, False)
        return future

    def _look_later(self, reference: weakref.ref[_OfferedCall], pause: float, starved: bool) -> None:
        self._loop.call_later(pause, self._look, reference, pause, starved, context=contextvars.Context())

    def _look(self, reference: weakref.ref[_OfferedCall], pause: float, starved_before: bool) -> None:
        offered = reference()
        if offered is None or not offered.untaken:
            return
        starved = is_starved(self._mailboxes[-1].pool() if self._executor is None else self._executor)
        # Twice, since between two jobs each thread looks blocked for a moment.
        if not (starved and starved_before):
            self._look_later(reference, FIRST_LOOK if starved else min(2 * pause, LAST_LOOK), starved)
            return
        # To all of them, since any may be held up by another job that it runs.
        for mailbox in self._mailboxes:
            mailbox.post(_LentTime(reference, mailbox))


def is_starved(executor: Any) -> bool:
    """Tell whether no thread of *executor* can come to its queue, because each of them serves a mailbox and waits.

    Where the executor does not show its threads as a ``ThreadPoolExecutor`` does, the answer is no.
    """
    threads, limit = threads_of(executor), thread_limit_of(executor)
    if not threads or limit is None or len(threads) < limit:
        return False
    return all([thread.ident in current_thread_executor.waiting for thread in list(threads)])


def pool_here() -> Callable[[], Any]:
    """Return a function that gives the executor for which this thread works, as its outermost frames know it, or None.

    Asked on the thread itself, since frames of other threads cannot be read without the interpreter's lock; and once
    for each thread, which belongs to one executor all its life.
    """
    try:
        return _of_thread.pool  # type: ignore[no-any-return]
    except AttributeError:
        pool: Callable[[], Any]
        pool = _of_thread.pool = reference_to_executor_above(sys._getframe()) or _no_pool
        return pool


def _no_pool() -> None: ...


class _OfferedCall(functools.partial[Any]):
    """A call that an executor and some mailboxes have; the first thread that comes to it runs it.

    A ``partial``, because instruments look for the wrapped function in what an executor is given.
    """

    def __init__(self, call: Callable[[], Any]) -> None:
        # A list of one, since pop() is atomic: one thread gets the call. Nothing else here keeps
        # it, or an exception's traceback would lead back to itself by way of the executor's frames.
        self.untaken = [SubmittedCall(call, (), {})]

    def __call__(self) -> None:
        __traceback_hide__ = True
        try:
            taken = self.untaken.pop()
        except IndexError:
            return
        taken.run()
        del taken

    def turned_down(self, accepted: Future[Any] | asyncio.Future[Any]) -> None:
        """Note that the executor is done with the call, which it may have been without running it."""
        with contextlib.suppress(IndexError):
            untaken = self.untaken.pop()
            if accepted.cancelled() or (error := accepted.exception()) is None:
                untaken.future.cancel()
            else:
                untaken.abandon(error)


class _LentTime:
    """A job: run an offered call, if nobody has, while the thread would only wait."""

    def __init__(self, reference: weakref.ref[_OfferedCall], mailbox: CurrentThreadExecutor) -> None:
        self._reference, self._mailbox = reference, mailbox

    def run(self) -> None:
        offered = self._reference()
        # A thread that no longer waits leaves the call to its executor, which has a free thread with that.
        if offered is not None and self._mailbox.serving:
            offered()

    def report(self) -> None:
        pass

    def abandon(self, error: BaseException) -> None:
        pass
