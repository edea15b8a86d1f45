"""Whether this interpreter has a global lock (GIL), with which one thread at a time runs Python code."""

from __future__ import annotations

import sys

__all__ = ["FREE_THREADED", "runs_in_parallel"]

# Whether this is a free-threaded build. Its lock may be on all the same, and an extension module can enable it at any
# time, so correctness in parallel depends on the build. Documented in Python's "How-To" on free threading; not
# ``sysconfig``, which takes longer to import than this package.
FREE_THREADED = "free-threading build" in sys.version


def runs_in_parallel() -> bool:
    """Return whether threads run Python code in parallel now; only for decisions about speed."""
    return FREE_THREADED and not sys._is_gil_enabled()  # type: ignore[attr-defined, unused-ignore]
