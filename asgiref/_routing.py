"""Which thread? The decision alone, over given facts: it starts, locks and changes nothing."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from .current_thread_executor import CurrentThreadExecutor

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["runs_on_this_thread", "thread_sensitive_executors"]


def thread_sensitive_executors(
    ancestor: Any, of_context: Any, blocked_on_loop: CurrentThreadExecutor | None, process_wide: Any
) -> Iterator[Any]:
    """Yield the executors for thread-sensitive code, best first.

    There may be more than one, since a mailbox can close between the look and the post.

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
    if of_context is not None:
        yield of_context
    if blocked_on_loop is not None and blocked_on_loop.serving:
        yield blocked_on_loop
    yield process_wide


def runs_on_this_thread(executor: Any, of_running_job: Any) -> bool:
    """Tell whether *executor* has no thread but this one, so that waiting for it here would never end.

    Args:
        of_running_job: The executor of a ``ThreadSensitiveContext`` that gave this thread
            the job it is running, or None. Such an executor is known to have one thread,
            but need not show it.
    """
    if isinstance(executor, CurrentThreadExecutor):
        return executor.belongs_to_this_thread and executor.run_in_place is None
    if executor is of_running_job:
        return True
    return getattr(executor, "_max_workers", None) == 1 and threading.current_thread() in getattr(executor, "_threads", ())
