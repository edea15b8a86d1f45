"""Which process is this?

Threads, and locks that another thread held, do not survive a fork. Whatever
depends on one remembers the ``generation`` it was made in and compares by
identity; a process id alone would not do, because ids are used again. What has to be
made anew in the child registers itself with ``after_fork_in_child``.

A program in C that forks (uWSGI does) runs no hooks of Python in the child. There, the
process id tells: ``notice`` looks at it, where that costs little beside what follows.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from os import getpid

__all__ = ["after_fork_in_child", "generation", "notice", "pid"]

# A token that is the same object for as long as the process is the same. It is replaced in
# every forked child, before any other code of ours runs there, or when ``notice`` is called.
generation = object()

# Whether this process is a forked child.
forked = False

# For others, who compare it with os.getpid().
pid = getpid()

# What to call in a forked child.
_renewals: list[Callable[[], None]] = []


# Of each process that noticed its fork by itself: held while one of its threads begins the generation.
_beginning: dict[int, threading.RLock] = {}


def _begin_generation() -> None:
    global forked, generation, pid
    forked = True
    generation = object()
    for renew in _renewals:
        renew()
    pid = getpid()  # last, since it tells other threads that all is renewed


def notice() -> None:
    """Begin a new generation if this process was forked without the hooks of Python.

    Call this before anything that a new generation replaces is used or made.
    """
    here = getpid()
    if here != pid:
        # Of this process alone, so no thread can have held it at the fork. Reentrant, for signal handlers.
        with _beginning.setdefault(here, threading.RLock()):
            if here != pid:
                _begin_generation()


def after_fork_in_child(renew: Callable[[], None]) -> None:
    """Call *renew* in each forked child, on its only thread, before the fork returns or when it is noticed."""
    _renewals.append(renew)


if hasattr(os, "register_at_fork"):  # pragma: no branch: not on Windows, which cannot fork either
    os.register_at_fork(after_in_child=_begin_generation)
