"""Which thread? The decision alone, over given facts: it starts, locks and changes nothing."""

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
    """Yield the executors for thread-sensitive code, best first.

    The first will do as a rule, but a mailbox can close between the look and the post.

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
        # Its thread may have been released since.
        of_context = getattr(of_context, "successor", None)
    if blocked_on_loop is not None and blocked_on_loop.serving:
        yield blocked_on_loop
    yield process_wide


def innermost(ancestor: Any, blocked_on_loop: CurrentThreadExecutor) -> Any:
    """Return the mailbox that is the nearest to a task, of a loop whose tasks all count to the thread blocked on it.

    Args:
        ancestor: What the context of the task says, which may be from before the thread ran the loop.
        blocked_on_loop: The mailbox of that thread.
    """
    while isinstance(ancestor, CurrentThreadExecutor) and not ancestor.serving:
        ancestor = ancestor.outer
    further_out = ancestor is None or any(ancestor is other for other in blocked_on_loop.surroundings or ())
    return blocked_on_loop if further_out and blocked_on_loop.serving else ancestor


def has_no_other_thread(executor: Any) -> bool:
    """Tell whether this thread is the only one of *executor*, so that waiting for it here would never end.

    Where an executor does not show its threads as a ``ThreadPoolExecutor`` does, the answer is no.
    """
    return thread_limit_of(executor) == 1 and threading.current_thread() in (threads_of(executor) or ())
