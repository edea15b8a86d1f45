"""Support for gevent's monkey patch.

If gevent has patched ``threading``, Python's threads are greenlets. asyncio keeps the
running loop for each system thread, so all greenlets of one share it. Therefore the loops
of the library run on system threads there. All other threads and locks are made by
``threading``, so that other greenlets run while one waits. Without the patch, everything
here costs no more than a look-up in ``sys.modules``.
"""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from . import internals
from .forks import after_fork_in_child

if TYPE_CHECKING:
    import asyncio

__all__ = [
    "WorkQueue",
    "after_patch",
    "is_patched",
    "run_on_real_thread",
    "runs_in_another",
    "wait_for_real_threads",
    "work_queue",
]

# The longest wait, in seconds. A guess: rare enough for an idle program.
LONGEST_WAIT = 60.0


# Seconds to wait for real threads at the end of the interpreter. A guess: far longer than destroying a hub takes.
LONGEST_END = 1.0

# One item for each running real thread. A forked child has none.
_real_threads: set[object] = set()
after_fork_in_child(_real_threads.clear)


# Functions to call when the patch of ``threading`` is first detected; then emptied.
_renewals: list[Callable[[], None]] = []


def is_patched(module: str) -> bool:
    """Return whether gevent has replaced parts of *module*."""
    monkey = sys.modules.get("gevent.monkey")
    if monkey is None:
        return False
    if _renewals and monkey.is_module_patched("threading"):
        while _renewals:
            _renewals.pop()()
    return bool(monkey.is_module_patched(module))


def after_patch(renew: Callable[[], None]) -> None:
    """Call *renew* when the patch of ``threading`` is first detected, to replace objects that depend on threads."""
    _renewals.append(renew)


def work_queue() -> WorkQueue:
    """Return a queue for the kind of threads that ``threading`` starts now.

    ``queue.SimpleQueue`` may be gevent's while threads are real, and vice versa.
    """
    return _GreenletQueue() if is_patched("threading") else internals.simple_queue()


class _GreenletQueue:
    """A queue that always waits with a timeout: gevent forgets a greenlet that waits without one."""

    def __init__(self) -> None:
        self._items: deque[Any] = deque()
        self._count = threading.Semaphore(0)

    def put(self, item: Any) -> None:
        self._items.append(item)
        self._count.release()

    def get(self, *, timeout: float | None = None) -> Any:
        while not self._count.acquire(timeout=LONGEST_WAIT if timeout is None else timeout):
            if timeout is not None:
                raise queue.Empty
        return self._items.popleft()


WorkQueue: TypeAlias = "queue.SimpleQueue[Any] | _GreenletQueue"


def runs_in_another(loop: asyncio.AbstractEventLoop) -> bool:
    """Return whether *loop*, the running one for asyncio, runs in another greenlet of this thread."""
    return is_patched("threading") and internals.thread_of_loop(loop) not in (0, threading.get_ident())


def run_on_real_thread(job: Any) -> None:
    """Start a system thread, also under the patch, that runs *job* and reports."""
    # Both threads need a hub. If both made one concurrently, each would wait for an import of the other.
    sys.modules["gevent"].get_hub()
    sys.modules["gevent.monkey"].get_original("_thread", "start_new_thread")(_run_with_hub, (job,))


def _run_with_hub(job: Any) -> None:  # pragma: no cover: coverage measures only threads of threading
    this = object()
    _real_threads.add(this)
    hub = sys.modules["gevent"].get_hub()
    try:
        job.run()
        job.report()
        del job
        hub.join()  # waits for the greenlets that were started here
    finally:
        hub.destroy(destroy_loop=True)
        _real_threads.discard(this)


def wait_for_real_threads() -> None:
    """Wait for real threads at the end of the interpreter, which a thread inside gevent would abort.

    A thread that has started a worker lives as long as the worker, and is not waited for.
    """
    deadline = time.monotonic() + LONGEST_END
    while _real_threads and time.monotonic() < deadline:
        time.sleep(0.001)
