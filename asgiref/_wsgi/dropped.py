"""What the log says of headers that are dropped, so that no client can fill it.

The first header of a name is logged, for a few names. All others are counted, and the log
has their number each time it has grown tenfold.
"""

from __future__ import annotations

import itertools
import logging

__all__ = ["DroppedHeaders"]

logger = logging.getLogger("asgiref.wsgi")

# How many names are logged. A guess: applications and their clients have fewer by mistake.
NAMES = 16

# From how many headers on the log has their number.
FIRST_NUMBER = 1000

# Clients choose the names.
LONGEST_NAME = 100


class DroppedHeaders:
    """One kind of dropped headers, in the whole process; any thread may add to it.

    Args:
        what: The kind, for the log, such as ``"request header"``.
        reason: Why they are dropped.
    """

    def __init__(self, what: str, reason: str) -> None:
        self._what, self._reason = what, reason
        # No lock, which a fork could leave held: two threads that find one place left both take
        # it, but setdefault() and next() are single steps, so each name is logged once.
        self._names: dict[str, object] = {}
        self._numbers = itertools.count(1)

    def add(self, name: str) -> None:
        """Note that a header was dropped."""
        key, this = name[:LONGEST_NAME].lower(), object()
        if key not in self._names and len(self._names) < NAMES and self._names.setdefault(key, this) is this:
            logger.warning("Dropped the %s %r, since %s; it is logged once", self._what, key, self._reason)
            return
        number = next(self._numbers)
        if number >= FIRST_NUMBER and str(number).rstrip("0") == "1":
            logger.warning("Dropped %d more %ss without a line here, since %s", number, self._what, self._reason)
