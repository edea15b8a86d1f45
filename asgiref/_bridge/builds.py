"""Does this interpreter have a lock, so that one thread at a time runs Python code?"""

from __future__ import annotations

import sys

__all__ = ["FREE_THREADED", "runs_in_parallel"]

# Whether the interpreter is of a free-threaded build. Its lock may be on all the same, and an extension module may
# switch it on at any time, so whatever has to be right in parallel goes by the build. Documented in Python's "How-To"
# on free threading; ``sysconfig``, the other way, takes longer to import than this package does.
FREE_THREADED = "free-threading build" in sys.version


def runs_in_parallel() -> bool:
    """Tell whether threads run Python code at the same time; a choice that only costs or saves time may go by it."""
    return FREE_THREADED and not sys._is_gil_enabled()  # type: ignore[attr-defined, unused-ignore]
