"""``check_cancelled``: synchronous code learns that the task that awaits it was cancelled.

The loop records the first cancellation in the ``InnerCalls`` of the call, and the thread of the function reads it
there. Each call has its own record, so calls that start later, and calls under ``asyncio.shield``, are not affected.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from . import greenlets
from .internals import running_loop
from .jobs import InnerCalls

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["expect_only_cleanup", "is_cancelled", "learn_from", "raise_if_cancelled", "runs_loop"]

# ``inner_calls`` is ``SyncToAsync.threadlocal.task_context``: None outside of a call; other packages may set a plain
# list.


def raise_if_cancelled(inner_calls: InnerCalls) -> None:
    """Raise ``CancelledError`` if the task that awaits the call was cancelled, or its client has disconnected."""
    cancelled = inner_calls.cancelled
    if cancelled is None and (inner_calls.caller_has_gone is None or not inner_calls.caller_has_gone()):
        return
    if inner_calls.only_cleans_up or runs_loop():
        return
    raise asyncio.CancelledError(*(("the client has disconnected",) if cancelled is None else cancelled))


def runs_loop() -> bool:
    """Return whether a loop is running in this thread: its tasks are cancelled in the usual way."""
    running = running_loop()
    return running is not None and not greenlets.runs_in_another(running)


def is_cancelled(inner_calls: Any) -> bool:
    return getattr(inner_calls, "cancelled", None) is not None


def learn_from(inner_calls: Any, caller_has_gone: Callable[[], bool]) -> None:
    """Let ``raise_if_cancelled`` also call *caller_has_gone*, on the thread of the call."""
    if isinstance(inner_calls, InnerCalls):
        inner_calls.caller_has_gone = caller_has_gone
        inner_calls.may_be_cancelled = True


def expect_only_cleanup(inner_calls: Any) -> None:
    """Prevent ``raise_if_cancelled`` from raising in the rest of the call, which is cleanup."""
    if isinstance(inner_calls, InnerCalls):
        inner_calls.only_cleans_up = True
