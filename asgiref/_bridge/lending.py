"""A blocked thread of a thread pool runs a call that it waits for.

All threads of an executor may be blocked in ``async_to_sync`` while the calls that they wait
for are queued in the same executor: a deadlock. So a call with ``thread_sensitive=False`` is
offered to the blocked threads above it that belong to its executor. It runs in the right
pool, and never on the main thread. This happens only if all threads of the executor are
blocked in this way. A thread that runs such a call does not serve its mailbox meanwhile, so
as long as another thread can take the call, the bridge waits for that thread.
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

# ``pool``: the result of ``pool_here``.
_of_thread = threading.local()

# Seconds between checks whether a call is still queued: the first and the longest interval. Guesses:
# longer than a free thread needs to take a call, and short for a program that blocks like this.
FIRST_LOOK, LAST_LOOK = 0.005, 0.1


def note_executor(mailbox: CurrentThreadExecutor, inner_calls: Any) -> None:
    """Record the executor of this thread in its *mailbox*, if only the running call shows it."""
    mailbox.lends_to = getattr(inner_calls, "default_executor_of", None)
    if mailbox.lends_to is not None:
        mailbox.pool = pool_here()


def blocked_above(ancestor: Any, context: Any) -> list[CurrentThreadExecutor]:
    """Return the mailboxes of all threads that are blocked above a call, innermost first.

    Args:
        ancestor: The mailbox of the innermost ``async_to_sync`` call above, finished or not, or None.
        context: The enclosing ``ThreadSensitiveContext``, or None. One with an executor hides
            the mailboxes above it from thread-sensitive code.
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
    """Return a replacement for *executor* in a call from below its own threads; None if none of them is blocked.

    Args:
        executor: None for the default executor of a loop that does not show it, such as uvloop's.
        loop: The running event loop.
        blocked: The result of ``blocked_above``.
        default: Whether it is the loop's default executor. If that does not show its threads,
            a thread belongs to it if the bridged call that it runs says so.
    """
    if not blocked:
        return None
    owners: set[int | None] = set()
    if (threads := threads_of(executor)) is not None:
        with contextlib.suppress(TypeError), starting_lock_of(executor):  # if these attributes have another meaning
            owners = {getattr(thread, "ident", None) for thread in list(threads)}
    elif default:
        owners = {mailbox.owner for mailbox in blocked if mailbox.lends_to is not None and mailbox.lends_to() is loop}
    lenders = [mailbox for mailbox in blocked if mailbox.owner in owners]
    if not lenders:
        return None
    return LendingExecutor(executor, loop, lenders)


class LendingExecutor:
    """Replaces an executor in one call, made by a coroutine of *loop* that threads of the executor wait for.

    Args:
        executor: The executor, or None for the loop's default one.
        mailboxes: The mailboxes of the threads that may run the call.
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
        # A weak reference, so that the timer does not keep a finished call alive.
        self._look_later(weakref.ref(offered), FIRST_LOOK, False)
        return future

    def _look_later(self, reference: weakref.ref[_OfferedCall], pause: float, starved: bool) -> None:
        self._loop.call_later(pause, self._look, reference, pause, starved, context=contextvars.Context())

    def _look(self, reference: weakref.ref[_OfferedCall], pause: float, starved_before: bool) -> None:
        offered = reference()
        if offered is None or not offered.untaken:
            return
        starved = is_starved(self._mailboxes[-1].pool() if self._executor is None else self._executor)
        # Two checks in a row, because each thread looks blocked for a moment between two jobs.
        if not (starved and starved_before):
            self._look_later(reference, FIRST_LOOK if starved else min(2 * pause, LAST_LOOK), starved)
            return
        # Post to all of them, because any of them may be busy with another job.
        for mailbox in self._mailboxes:
            mailbox.post(_LentTime(reference, mailbox))


def is_starved(executor: Any) -> bool:
    """Return whether all threads of *executor* are waiting in mailboxes, so that none can take a job of its queue.

    False if the executor does not show its threads as a ``ThreadPoolExecutor`` does.
    """
    threads, limit = threads_of(executor), thread_limit_of(executor)
    if not threads or limit is None or len(threads) < limit:
        return False
    return all([thread.ident in current_thread_executor.waiting for thread in list(threads)])


def pool_here() -> Callable[[], Any]:
    """Return a function that returns the executor of this thread, found by its outermost frames, or None.

    Called on the thread itself, because free-threaded builds cannot read frames of other threads. Called once for each
    thread, because its executor never changes.
    """
    try:
        return _of_thread.pool  # type: ignore[no-any-return]
    except AttributeError:
        pool: Callable[[], Any]
        pool = _of_thread.pool = reference_to_executor_above(sys._getframe()) or _no_pool
        return pool


def _no_pool() -> None: ...


class _OfferedCall(functools.partial[Any]):
    """A call in the queues of an executor and of some mailboxes; the first thread that takes it runs it.

    A ``partial``, because instrumentation looks for the wrapped function in the executor's argument.
    """

    def __init__(self, call: Callable[[], Any]) -> None:
        # A list of one item. pop() is atomic: exactly one thread gets the call. No other reference to it here:
        # else a traceback, which refers to the executor's frames, would be in a reference cycle.
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
        """Settle the call if the executor has cancelled or refused it instead of running it."""
        with contextlib.suppress(IndexError):
            untaken = self.untaken.pop()
            if accepted.cancelled() or (error := accepted.exception()) is None:
                untaken.future.cancel()
            else:
                untaken.abandon(error)


class _LentTime:
    """A job: run an offered call that no thread has taken yet, on a thread that is waiting anyway."""

    def __init__(self, reference: weakref.ref[_OfferedCall], mailbox: CurrentThreadExecutor) -> None:
        self._reference, self._mailbox = reference, mailbox

    def run(self) -> None:
        offered = self._reference()
        # If this thread no longer waits, its executor has a free thread for the call.
        if offered is not None and self._mailbox.serving:
            offered()

    def report(self) -> None:
        pass

    def abandon(self, error: BaseException) -> None:
        pass
