"""Logging of dropped headers, limited so that no client can fill the log.

The first header of each name is logged, for a few names. All others are counted, and the
count is logged each time it has grown tenfold.
"""

from __future__ import annotations

import itertools
import logging

__all__ = ["DroppedHeaders"]

logger = logging.getLogger("asgiref.wsgi")

# Maximum number of logged names. A guess: mistakes of applications and clients involve fewer.
NAMES = 16

# The first count that is logged.
FIRST_NUMBER = 1000

# Clients choose the names.
LONGEST_NAME = 100


class DroppedHeaders:
    """Dropped headers of one kind, for the whole process. Any thread may add one.

    Args:
        what: The kind, for the log, such as ``"request header"``.
        reason: Why they are dropped.
    """

    def __init__(self, what: str, reason: str) -> None:
        self._what, self._reason = what, reason
        # No lock, which a fork could leave held. Two threads may both fill the last free place, but
        # setdefault() and next() are atomic, so each name is logged once.
        self._names: dict[str, object] = {}
        self._numbers = itertools.count(1)

    def add(self, name: str) -> None:
        """Count and log one dropped header."""
        key, this = name[:LONGEST_NAME].lower(), object()
        if key not in self._names and len(self._names) < NAMES and self._names.setdefault(key, this) is this:
            logger.warning("Dropped the %s %r, since %s; it is logged once", self._what, key, self._reason)
            return
        number = next(self._numbers)
        if number >= FIRST_NUMBER and str(number).rstrip("0") == "1":
            logger.warning("Dropped %d more %ss without a line here, since %s", number, self._what, self._reason)
