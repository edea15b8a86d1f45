"""Waiting for a call on an event loop of the user, which may be stopped.

Programs stop their loops temporarily: a GUI runs one in short intervals, a prompt runs one for
each line of input. So a stopped loop is no reason to give up. A callback, the probe, detects
when the loop runs again. A call is lost when its loop cannot run again, or has not run for
longer than the patience of the caller.
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

# Seconds after which a wait is logged. A guess: longer than pauses of a GUI, soon enough for a person.
LOGGED_AFTER = 2.0


def cannot_run_again(loop: asyncio.AbstractEventLoop, thread: threading.Thread | None) -> bool:
    """Return whether *loop*, which is not running, can never run again.

    Args:
        thread: The thread that ran the loop last, or None if not known.
    """
    if loop.is_closed():
        return True
    if thread is None:
        return _interpreter_ends()
    # A worker runs the loop again only on behalf of the thread that uses it.
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
    # Thread pools refuse work before their threads are joined, and the main thread counts as ended only after that.
    return pools_refuse_work() or not threading.main_thread().is_alive()


class _Probe:
    """A callback that records that its loop has run, and on which thread."""

    def __init__(self) -> None:
        self.thread: threading.Thread | None = None

    def __call__(self) -> None:
        self.thread = threading.current_thread()


class Patience:  # not a NamedTuple, which adds a fifth of a millisecond to the import of the package
    """How many seconds the loop of a call may be stopped: with the call *begun*, and with the call *not_begun*."""

    __slots__ = ("begun", "not_begun")

    def __init__(self, begun: float, not_begun: float) -> None:
        self.begun = begun
        # Another loop can run the call afterwards.
        self.not_begun = not_begun


class LoopWait:
    """The wait of one thread for *call*, which it gave to *loop*.

    Args:
        outcome: The outcome of the call.
        circumstances: Returns the ``Patience`` for *loop*, and the thread that ran it when this
            thread was given its work, if known. Called at the first check, not for each call.
    """

    # Since when the loop has not been seen running, and how long that is tolerated.
    _stopped_at: float | None = None
    _patience: Patience
    # The pending probe: at most one, and none for a running loop.
    _probe: _Probe | None = None
    # The thread that ran the loop last, if known, and whether the call was seen to have started there.
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
        """Return whether to stop waiting: the outcome is known, the call was taken back for another loop, or it failed.

        The waiting thread calls this at intervals.
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
            if self._thread is not None and _has_ended(self._thread):  # another thread runs the loop now
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
        # The second condition: an earlier check took it back and was interrupted. A loop that has it sets call.thread.
        if call.take_back() or call.thread is None:
            return True
        if not begun:  # the loop has started the coroutine meanwhile
            return False
        call.cancel()  # in case the loop is run again after all
        outcome.set_exception(
            RuntimeError(
                f"async_to_sync lost its coroutine: the event loop {loop!r} was stopped or closed while it ran it; let "
                "the main coroutine wait for its threads before it ends, or, if the loop will run again later, "
                "increase asgiref.sync.stopped_loop_patience"
            )
        )
        return True

    def _send_probe(self) -> bool:
        """Send a probe to the loop, unless one is pending; return False if the loop is closed."""
        if self._probe is None:
            probe = _Probe()
            try:
                self._loop.call_soon_threadsafe(probe, context=contextvars.Context())
            except RuntimeError:
                return False
            self._probe = probe  # if interrupted before this, another one will be sent
        return True

    def _log(self, begun: bool, seconds: float) -> None:
        self._logged = True
        logger.warning(
            "async_to_sync has waited for %.0f seconds for the event loop %r, which is not running; %s",
            seconds,
            self._loop,
            f"the call fails after {self._patience.begun} seconds (asgiref.sync.stopped_loop_patience)"
            if begun
            else f"the coroutine has not started, and runs on another loop after {self._patience.not_begun} seconds "
            "(asgiref.sync.stopped_loop_start_patience)",
        )
