"""Which process is this?

Threads, and locks that another thread held, do not survive a fork. Whatever
depends on one remembers the ``generation`` it was made in and compares by
identity; a process id would not do, because ids are used again. What has to be
made anew in the child registers itself with ``after_fork_in_child``.
"""

from __future__ import annotations

import os
from collections.abc import Callable

__all__ = ["after_fork_in_child", "generation", "pid"]

# A token that is the same object for as long as the process is the same. It is replaced in
# every forked child, before any other code of ours runs there.
generation = object()

# For others, who compare it with os.getpid().
pid = os.getpid()


def _begin_generation() -> None:
    global generation, pid
    generation = object()
    pid = os.getpid()


def after_fork_in_child(renew: Callable[[], None]) -> None:
    """Call *renew* in each forked child, on its only thread, before the fork returns."""
    if hasattr(os, "register_at_fork"):  # pragma: no branch: not on Windows, which cannot fork either
        os.register_at_fork(after_in_child=renew)


after_fork_in_child(_begin_generation)
