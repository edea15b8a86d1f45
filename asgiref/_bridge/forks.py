"""Detection of forks.

Threads, and locks that another thread held, do not survive a fork. Objects that depend on
one keep the ``generation`` of their creation and compare it by identity. A process id is
not enough, because ids are reused. Objects that must be replaced in the child use
``after_fork_in_child``.

A C program that forks, such as uWSGI, does not run Python's hooks in the child. There,
``notice`` compares the process id, in places where this costs little.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from os import getpid

__all__ = ["after_fork_in_child", "generation", "notice", "pid"]

# A token for this process. In a forked child, it is replaced before any other code of ours
# runs, or when ``notice`` is called.
generation = object()

# Whether this process is a forked child.
forked = False

# For other modules, which compare it with os.getpid().
pid = getpid()

# Functions to call in a forked child.
_renewals: list[Callable[[], None]] = []


# By process id: held while a thread begins the generation, in a process whose fork ``notice`` has detected.
_beginning: dict[int, threading.RLock] = {}


def _begin_generation() -> None:
    global forked, generation, pid
    forked = True
    generation = object()
    for renew in _renewals:
        renew()
    pid = getpid()  # last, because it tells other threads that the renewal is complete


def notice() -> None:
    """Begin a new generation if this process was forked without the hooks of Python.

    Call this before using or making anything that a new generation replaces.
    """
    here = getpid()
    if here != pid:
        # For this process only, so no thread can have held it at the fork. Reentrant, for signal handlers.
        with _beginning.setdefault(here, threading.RLock()):
            if here != pid:
                _begin_generation()


def after_fork_in_child(renew: Callable[[], None]) -> None:
    """Call *renew* in each forked child, on its only thread, before the fork returns or when ``notice`` detects it."""
    _renewals.append(renew)


if hasattr(os, "register_at_fork"):  # pragma: no branch: not on Windows, which cannot fork either
    os.register_at_fork(after_in_child=_begin_generation)
