"""What the log says of calls that wait long for a thread.

Nothing here is called with a lock held, or in the midst of passing threads on: a handler of the log may wait for
locks. The callers are callbacks of event loops, and workers between two jobs.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["PAUSE", "log_wait", "logger", "slow_thread_wait"]

logger = logging.getLogger("asgiref.sync")

# Seconds between two such warnings.
PAUSE = 60.0

# How long, in seconds, a call may wait unnoticed, or None; ``asgiref.sync`` puts its own function here.
slow_thread_wait: Callable[[], float | None] = lambda: None  # noqa: E731

# A list of one: when a warning was last given. To take it out is one step, so one thread at a time decides.
_last = [float("-inf")]


def log_wait(waited: float, tell: Callable[[], tuple[object, ...]]) -> None:
    """Warn of a call that has *waited* for so many seconds, if that is long and no warning was given just before.

    Args:
        tell: Returns what to log, a text and its arguments.
    """
    longest = slow_thread_wait()
    if longest is None or waited <= longest:
        return
    try:
        last = _last.pop()
    except IndexError:  # another thread is about to warn
        return
    now = time.monotonic()
    is_due = now >= last + PAUSE
    try:
        if is_due:
            last = now
    finally:
        _last.append(last)
    if is_due:
        logger.warning(*tell())
