"""A thread that logs slow bridge calls, in asyncio's debug mode.

Calls only read their clock here. The thread starts with the first call, looks for slow calls
at intervals, and ends after some time without any call.
"""

from __future__ import annotations

import contextvars
import logging
import time
from collections.abc import Callable

from .._bridge.forks import after_fork_in_child
from .._bridge.threads import LibraryThread
from .calls import bridge_calls

__all__ = ["Watch"]

logger = logging.getLogger("asgiref.sync")

# Seconds between looks, at least and at most; and seconds without any call until the thread ends.
SHORTEST_PAUSE, LONGEST_PAUSE = 0.02, 1.0
IDLE_TIME = 10.0


class Watch:
    """A watch over all bridge calls of the process.

    Args:
        limit: Called for each look; returns the seconds after which a call is logged.
    """

    def __init__(self, limit: Callable[[], float]) -> None:
        self._limit = limit
        self._start_afresh()
        after_fork_in_child(self._start_afresh)

    def _start_afresh(self) -> None:
        # A list of one item. pop() is atomic: the thread that gets the item starts the watch.
        self._to_be_started = [None]
        self._latest = time.monotonic()
        # The idents of slow calls that have been logged and are still in flight.
        self._logged: set[int] = set()

    def clock(self) -> float:
        """Return ``time.monotonic()`` and start the thread if needed; never raises."""
        self._latest = now = time.monotonic()
        # copy() takes the list's lock, as append() does. So on free-threaded builds, either the item is found here, or
        # the thread that has added it, and is about to end, sees the time written above.
        if self._to_be_started.copy():
            self._start()
        return now

    def _start(self) -> None:
        try:
            self._to_be_started.pop()
        except IndexError:
            return
        try:
            thread = LibraryThread(target=self._watch, name="asgiref watch", daemon=True)
            contextvars.Context().run(thread.start)  # not the context of its first caller, which it would keep
        except Exception:  # no thread can be started
            self._to_be_started.append(None)

    def _watch(self) -> None:
        try:
            self._look_until_idle()
        except Exception:
            # Do not start another thread, which would fail again.
            logger.exception("slow bridge calls are no longer logged")

    def _look_until_idle(self) -> None:
        seen = time.monotonic()
        while True:
            time.sleep(min(max(self._limit() / 4, SHORTEST_PAUSE), LONGEST_PAUSE))
            now = time.monotonic()
            if self._look():
                seen = now
            elif now > max(seen, self._latest) + IDLE_TIME:
                self._to_be_started.append(None)
                # Calls that started before that line rely on this thread.
                if self._latest <= now:
                    return
                try:
                    self._to_be_started.pop()
                except IndexError:  # another thread has been started for them
                    return

    def _look(self) -> bool:
        """Log the calls that have become slow; return whether there are any calls."""
        limit = self._limit()
        calls = bridge_calls()
        slow = [call for call in calls if call.duration is not None and call.duration > limit]
        before, self._logged = self._logged, {call.ident for call in slow}
        for call in slow:
            if call.ident not in before:
                logger.warning("a bridge call takes longer than %s seconds:\n%s", limit, call)
        return bool(calls)
