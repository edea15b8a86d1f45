"""What gevent's monkey patch replaces, as far as the bridge depends on it.

Where gevent has patched ``threading``, a thread of Python is a greenlet, and all greenlets
of one thread of the system share what asyncio keeps for each: which loop runs. So the loops
of the library run on real threads there. All other threads and locks are what ``threading``
makes them, so that a wait lets other greenlets go on. Without the patch nothing here costs
more than a look at ``sys.modules``.
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

# Seconds. A guess: rare enough for a program that sleeps.
LONGEST_WAIT = 60.0


# Seconds, at the end of the interpreter. A guess: far longer than it takes a thread to let go of its hub.
LONGEST_END = 1.0

# An item for each real thread that has not ended. A forked child has none.
_real_threads: set[object] = set()
after_fork_in_child(_real_threads.clear)


# What to call when threads are greenlets and nobody has noticed; emptied by that.
_renewals: list[Callable[[], None]] = []


def is_patched(module: str) -> bool:
    """Tell whether gevent has replaced parts of *module*."""
    monkey = sys.modules.get("gevent.monkey")
    if monkey is None:
        return False
    if _renewals and monkey.is_module_patched("threading"):
        while _renewals:
            _renewals.pop()()
    return bool(monkey.is_module_patched(module))


def after_patch(renew: Callable[[], None]) -> None:
    """Call *renew* when it is first noticed that threads are greenlets, to make anew what each of them has to have."""
    _renewals.append(renew)


def work_queue() -> WorkQueue:
    """Return a queue on which the threads that ``threading`` starts now can wait.

    ``queue.SimpleQueue`` may be gevent's while the threads are real, and the other way round.
    """
    return _GreenletQueue() if is_patched("threading") else internals.simple_queue()


class _GreenletQueue:
    """A queue whose waits always have a timer: gevent forgets a greenlet that waits without one."""

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
    """Tell whether *loop*, which asyncio takes for the running one here, runs in another greenlet of this thread."""
    return is_patched("threading") and internals.thread_of_loop(loop) not in (0, threading.get_ident())


def run_on_real_thread(job: Any) -> None:
    """Start a thread of the system that runs *job* and reports, whatever ``threading`` starts."""
    # Both threads need a hub; made by both at the same time, each would wait for what the other imports.
    sys.modules["gevent"].get_hub()
    sys.modules["gevent.monkey"].get_original("_thread", "start_new_thread")(_run_with_hub, (job,))


def _run_with_hub(job: Any) -> None:  # pragma: no cover: nothing measures a thread that threading did not start
    this = object()
    _real_threads.add(this)
    hub = sys.modules["gevent"].get_hub()
    try:
        job.run()
        job.report()
        del job
        hub.join()  # with the greenlets that have been started here
    finally:
        hub.destroy(destroy_loop=True)
        _real_threads.discard(this)


def wait_for_real_threads() -> None:
    """Let real threads come to their end before the interpreter does: one that is within gevent then would abort it.

    One that has started a worker stays as long as that does, and is not waited for.
    """
    deadline = time.monotonic() + LONGEST_END
    while _real_threads and time.monotonic() < deadline:
        time.sleep(0.001)
