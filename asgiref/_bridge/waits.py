"""Log messages for calls that wait long for a thread.

A logging handler may wait for locks, so nothing here is called with a lock held, or while a thread is being passed on.
The callers are callbacks of event loops, and workers between two jobs.
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

# How long, in seconds, a call may wait without a message, or None; ``asgiref.sync`` replaces this function.
slow_thread_wait: Callable[[], float | None] = lambda: None  # noqa: E731

# A list of one item: the time of the last warning. pop() is atomic, so one thread at a time decides.
_last = [float("-inf")]


def log_wait(waited: float, tell: Callable[[], tuple[object, ...]]) -> None:
    """Warn of a call that has *waited* for so many seconds, if this is long and there was no recent warning.

    Args:
        tell: Returns the message and its arguments.
    """
    longest = slow_thread_wait()
    if longest is None or waited <= longest:
        return
    try:
        last = _last.pop()
    except IndexError:  # another thread is warning now
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
