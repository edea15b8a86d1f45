"""The choice of a thread: a decision from given facts. It starts, locks and changes nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

from ..current_thread_executor import CurrentThreadExecutor
from .internals import thread_limit_of, threads_of

__all__ = ["has_no_other_thread", "innermost", "thread_sensitive_executors"]


def thread_sensitive_executors(
    ancestor: Any, of_context: Any, blocked_on_loop: CurrentThreadExecutor | None, process_wide: Any
) -> Iterator[Any]:
    """Yield the executors for thread-sensitive code, in order of preference.

    Usually the first one accepts the call, but a mailbox can close before the post.

    Args:
        ancestor: The mailbox of the innermost ``async_to_sync`` call above, finished or not, or None.
        of_context: The executor of the enclosing ``ThreadSensitiveContext``, or None.
        blocked_on_loop: The mailbox of the thread that is blocked on the running loop, or None.
        process_wide: ``SyncToAsync.single_thread_executor``.
    """
    while isinstance(ancestor, CurrentThreadExecutor):
        if ancestor.serving:
            yield ancestor
        ancestor = ancestor.outer
    if ancestor is not None:  # set by hand to an executor of another kind
        yield ancestor
    while of_context is not None:
        yield of_context
        # Its thread may have been released meanwhile.
        of_context = getattr(of_context, "successor", None)
    if blocked_on_loop is not None and blocked_on_loop.serving:
        yield blocked_on_loop
    yield process_wide


def innermost(ancestor: Any, blocked_on_loop: CurrentThreadExecutor) -> Any:
    """Return the innermost mailbox for a task of a loop whose tasks all belong to the thread blocked on it.

    Args:
        ancestor: The mailbox in the context of the task, which may be older than the run of the loop.
        blocked_on_loop: The mailbox of that thread.
    """
    while isinstance(ancestor, CurrentThreadExecutor) and not ancestor.serving:
        ancestor = ancestor.outer
    further_out = ancestor is None or any(ancestor is other for other in blocked_on_loop.surroundings or ())
    return blocked_on_loop if further_out and blocked_on_loop.serving else ancestor


def has_no_other_thread(executor: Any) -> bool:
    """Return whether this thread is the only one of *executor*, so that waiting for it here would deadlock.

    False if the executor does not show its threads as a ``ThreadPoolExecutor`` does.
    """
    return thread_limit_of(executor) == 1 and threading.current_thread() in (threads_of(executor) or ())
