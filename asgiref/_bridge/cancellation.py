"""What synchronous code learns of a cancellation of the task that awaits it.

The loop notes the first cancellation in the ``InnerCalls`` of the call, and the thread that runs the function reads it
there. Each call has a note of its own, so a call that begins later knows nothing of it, and neither does one that
``asyncio.shield`` keeps from being cancelled.
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

# ``inner_calls`` is what ``SyncToAsync.threadlocal`` has as ``task_context``: None outside of a call, and others may
# put a plain list there.


def raise_if_cancelled(inner_calls: InnerCalls) -> None:
    """Raise ``CancelledError`` where the task that awaits the call was cancelled, or its caller has gone."""
    cancelled = inner_calls.cancelled
    if cancelled is None and (inner_calls.caller_has_gone is None or not inner_calls.caller_has_gone()):
        return
    if inner_calls.only_cleans_up or runs_loop():
        return
    raise asyncio.CancelledError(*(("the client has disconnected",) if cancelled is None else cancelled))


def runs_loop() -> bool:
    """Tell whether a loop runs in this thread: its tasks are cancelled by whoever has to do with them."""
    running = running_loop()
    return running is not None and not greenlets.runs_in_another(running)


def is_cancelled(inner_calls: Any) -> bool:
    return getattr(inner_calls, "cancelled", None) is not None


def learn_from(inner_calls: Any, caller_has_gone: Callable[[], bool]) -> None:
    """Have *caller_has_gone* asked too, on the thread of the call, by ``raise_if_cancelled``."""
    if isinstance(inner_calls, InnerCalls):
        inner_calls.caller_has_gone = caller_has_gone
        inner_calls.may_be_cancelled = True


def expect_only_cleanup(inner_calls: Any) -> None:
    """Keep ``raise_if_cancelled`` from raising in the rest of the call, which must not be broken off."""
    if isinstance(inner_calls, InnerCalls):
        inner_calls.only_cleans_up = True
