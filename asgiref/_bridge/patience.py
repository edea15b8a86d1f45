"""A loop that others own: does it still run, and is a call that it was given lost?

Programs stop their loops for a while: a GUI runs one in ticks, a prompt runs one for each line
that is typed. So a loop that does not run at this moment is no reason to give up. Whether it runs
is found out by what it does: a callback, the probe, is called when it runs again. A call is lost
when its loop cannot run again, or has not run for longer than the patience of its caller.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from .internals import pools_refuse_work, says_always_that_it_lives

if TYPE_CHECKING:
    from collections.abc import Callable

    from .jobs import AwaitedOutcome, LoopCall

__all__ = ["LoopWait", "Patience", "cannot_run_again"]

logger = logging.getLogger("asgiref.sync")

# Seconds after which a wait is logged. A guess: longer than any tick, soon enough for a person who wonders.
LOGGED_AFTER = 2.0


def cannot_run_again(loop: asyncio.AbstractEventLoop, thread: threading.Thread | None) -> bool:
    """Tell whether *loop*, which does not run now, never will.

    Args:
        thread: The thread that ran the loop last, or None where that is not known.
    """
    if loop.is_closed():
        return True
    if thread is None:
        return _interpreter_ends()
    # A worker runs a loop again only if the thread does that had it run there.
    caller: threading.Thread | None = getattr(thread, "runs_for", None)
    thread = thread if caller is None else caller
    if thread is threading.current_thread() or _has_ended(thread):
        return True
    # The interpreter waits for its other threads before it ends.
    return (thread.daemon or thread is threading.main_thread()) and _interpreter_ends()


def _has_ended(thread: threading.Thread) -> bool:
    if says_always_that_it_lives(thread):
        return thread.ident not in sys._current_frames()
    return not thread.is_alive()


def _interpreter_ends() -> bool:
    # Pools refuse work from then on, and their threads are waited for before the main thread counts as ended.
    return pools_refuse_work() or not threading.main_thread().is_alive()


class _Probe:
    """A callback that tells that its loop has run, and in which thread."""

    def __init__(self) -> None:
        self.thread: threading.Thread | None = None

    def __call__(self) -> None:
        self.thread = threading.current_thread()


class Patience:  # no NamedTuple, which takes a fifth of a millisecond of the package's import
    """For how many seconds may a loop not run that has a call?"""

    __slots__ = ("begun", "not_begun")

    def __init__(self, begun: float, not_begun: float) -> None:
        self.begun = begun
        # Another loop can have the call then.
        self.not_begun = not_begun


class LoopWait:
    """The wait of one thread for *call*, which it gave to *loop*.

    Args:
        outcome: What the call settles.
        circumstances: Returns the ``Patience`` with *loop*, and the thread that ran it when this
            thread was given its work, if that is known. Asked with the first look, not with each call.
    """

    # Since when the loop has not been seen to run, and for how long that is borne.
    _stopped_at: float | None = None
    _patience: Patience
    # A probe that the loop has not come to. There is one at a time, and none is sent to a loop that runs.
    _probe: _Probe | None = None
    # The thread that ran the loop last, as far as is known, and whether it was then seen to have begun the call.
    _thread: threading.Thread | None = None
    _begun = False
    _logged = False

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        call: LoopCall,
        outcome: AwaitedOutcome[Any],
        circumstances: Callable[[], tuple[Patience, threading.Thread | None]],
    ) -> None:
        self._loop, self._call, self._outcome = loop, call, outcome
        self._circumstances: Callable[[], tuple[Patience, threading.Thread | None]] | None = circumstances

    def is_lost(self) -> bool:
        """Tell whether to wait no longer: the outcome is there, the call was taken back for another loop, or it failed.

        The waiting thread asks now and then.
        """
        call, loop, outcome = self._call, self._loop, self._outcome
        if self._circumstances is not None:
            self._patience, self._thread = self._circumstances()
            self._circumstances = None
        if call.ended_unheard:
            outcome.set_exception(asyncio.CancelledError())
            return True
        begun = call.thread is not None
        if begun and not self._begun:
            self._begun, self._thread = True, call.thread
        if loop.is_running():
            self._stopped_at = None
            if self._thread is not None and _has_ended(self._thread):  # so another one runs it now
                self._thread = None
            return False
        if outcome.settled:
            return True
        probe = self._probe
        if probe is not None and probe.thread is not None:
            self._thread, self._probe, self._stopped_at = probe.thread, None, None
        now = time.monotonic()
        if self._stopped_at is None:
            self._stopped_at = now
        patience = self._patience.begun if begun else self._patience.not_begun
        if not cannot_run_again(loop, self._thread):
            if now >= self._stopped_at + LOGGED_AFTER and not self._logged:
                self._log(begun, now - self._stopped_at)
            if now < self._stopped_at + patience and self._send_probe():
                return False
        # The second, where an earlier look took it back and was interrupted then: a loop that has it, has noted that.
        if call.take_back() or call.thread is None:
            return True
        if not begun:  # the loop has begun the coroutine meanwhile
            return False
        call.cancel()  # in case somebody runs the loop again after all
        outcome.set_exception(
            RuntimeError(
                f"the event loop {loop!r} was stopped or closed while it ran a coroutine for async_to_sync; "
                "let what the loop runs wait for its threads before it ends, or, if the loop is to run again later, "
                "raise asgiref.sync.stopped_loop_patience"
            )
        )
        return True

    def _send_probe(self) -> bool:
        """Have the loop tell when it runs again; return False where it is closed."""
        if self._probe is None:
            probe = _Probe()
            try:
                self._loop.call_soon_threadsafe(probe, context=contextvars.Context())
            except RuntimeError:
                return False
            self._probe = probe  # after an interrupt before this, another one is sent
        return True

    def _log(self, begun: bool, seconds: float) -> None:
        self._logged = True
        logger.warning(
            "async_to_sync has waited for %.0f seconds for the event loop %r, which does not run; %s",
            seconds,
            self._loop,
            f"the call fails after {self._patience.begun} seconds (asgiref.sync.stopped_loop_patience)"
            if begun
            else f"the coroutine has not started, and gets another loop after {self._patience.not_begun} seconds "
            "(asgiref.sync.stopped_loop_start_patience)",
        )
