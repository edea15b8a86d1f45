"""Threads of the library, on which users' code runs.

At its end, Python joins every thread that is not a daemon. A thread of the library usually
waits for work, so it is a daemon: for the interpreter, also in a child that was forked in C
and still has the thread in its list, and for a program that joins all other threads. Threads
that users start on it would inherit this, and must not be daemons for this reason.
"""

from __future__ import annotations

import threading

__all__ = ["LibraryThread"]


class LibraryThread(threading.Thread):
    """A daemon thread that does not look like one to the code that it runs.

    ``Thread.__init__`` uses ``current_thread().daemon`` as the default for a new thread.
    """

    # Up to Python 3.12, the new thread itself checks, before run(), whether it is to be joined at the end.
    _runs = False

    def run(self) -> None:
        self._runs = True
        super().run()

    @property
    def daemon(self) -> bool:
        """Whether the interpreter may end while this thread is running; False on the thread itself."""
        return not (self._runs and self.ident == threading.get_ident())

    @daemon.setter
    def daemon(self, daemonic: bool) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        threading.Thread.daemon.__set__(self, daemonic)  # type: ignore[attr-defined]
