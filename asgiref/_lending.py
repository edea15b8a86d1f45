"""A blocked thread lends itself to work that its own call waits for.

The threads of an executor may all be blocked in ``async_to_sync`` while what they wait for
has yet to run in that same executor. So a call with ``thread_sensitive=False`` is offered to
the blocked threads that it comes from, those among them that belong to its executor: it
runs where it was meant to run, and never on the main thread. That happens only when it has
been left waiting for a while, so that calls keep to free threads where there are any.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import weakref
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar

from ._jobs import SubmittedCall
from .current_thread_executor import CurrentThreadExecutor

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

__all__ = ["LendingExecutor", "blocked_above", "lending_executor"]

R = TypeVar("R")

# Seconds after which a call counts as left waiting. A guess: longer than a free thread takes to
# come to it. A thread that lends itself too early does no harm, since it is one of the executor's.
LEFT_WAITING = 0.01


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
    if (threads := getattr(executor, "_threads", None)) is not None:
        with contextlib.suppress(TypeError):  # of an executor that calls something else so
            owners = {getattr(thread, "ident", None) for thread in list(threads)}
    elif default:
        owners = {mailbox.owner for mailbox in blocked if mailbox.lends_to is not None and mailbox.lends_to() is loop}
    lenders = [mailbox for mailbox in blocked if mailbox.owner in owners]
    if not lenders:
        return None
    submit = functools.partial(loop.run_in_executor, None) if executor is None else executor.submit
    return LendingExecutor(submit, loop, lenders)


class LendingExecutor:
    """Stands for an executor in one call of a coroutine of *loop* for which threads of that executor wait.

    Args:
        submit: The executor's ``submit``, or what does the same and returns a future of either kind.
        mailboxes: Of the threads that may lend themselves.
    """

    def __init__(
        self,
        submit: Callable[[Callable[[], object]], Future[Any] | asyncio.Future[Any]],
        loop: asyncio.AbstractEventLoop,
        mailboxes: list[CurrentThreadExecutor],
    ) -> None:
        self._submit, self._loop, self._mailboxes = submit, loop, mailboxes

    def submit(self, call: Callable[[], R]) -> Future[R]:
        offered = _OfferedCall(call)
        future: Future[R] = offered.untaken[0].future
        self._submit(offered).add_done_callback(offered.turned_down)
        # By reference: the timer keeps nothing of a call that is long done.
        self._loop.call_later(
            LEFT_WAITING, _offer, weakref.ref(offered), self._mailboxes, context=contextvars.Context()
        )
        return future


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


def _offer(reference: weakref.ref[_OfferedCall], mailboxes: list[CurrentThreadExecutor]) -> None:
    offered = reference()
    if offered is None or not offered.untaken:
        return
    # To all of them, since any may be held up by another job that it runs.
    for mailbox in mailboxes:
        mailbox.post(_LentTime(offered, mailbox))


class _LentTime:
    """A job: run an offered call, if nobody has, while the thread would only wait."""

    def __init__(self, offered: _OfferedCall, mailbox: CurrentThreadExecutor) -> None:
        self._offered, self._mailbox = offered, mailbox

    def run(self) -> None:
        # A thread that no longer waits leaves the call to its executor, which has a free thread with that.
        if self._mailbox.serving:
            self._offered()

    def report(self) -> None:
        pass

    def abandon(self, error: BaseException) -> None:
        pass
