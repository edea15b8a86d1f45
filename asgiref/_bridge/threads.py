"""Threads of the library's own, on which users' code runs.

Python joins every thread at its end that is no daemon. A thread of the library waits for
work as a rule, perhaps forever, so it is a daemon: for the interpreter, also in a child
that was forked in C and still has the thread on its list, and for a program that joins
all other threads. A thread that users start inherits that from the thread on which they
do it, and must not be a daemon for that reason.
"""

from __future__ import annotations

import threading

__all__ = ["LibraryThread"]


class LibraryThread(threading.Thread):
    """A daemon thread, but what it runs does not see it as one.

    ``Thread.__init__`` asks ``current_thread().daemon`` for the default of a new thread.
    """

    # Up to Python 3.12, the new thread itself asks whether to be joined at the end, before it calls run().
    _runs = False

    def run(self) -> None:
        self._runs = True
        super().run()

    @property
    def daemon(self) -> bool:
        """Whether the interpreter may end while this thread runs; False where it asks for itself."""
        return not (self._runs and self.ident == threading.get_ident())

    @daemon.setter
    def daemon(self, daemonic: bool) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        threading.Thread.daemon.__set__(self, daemonic)  # type: ignore[attr-defined]
