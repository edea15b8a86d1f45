"""``bridge_statistics``: numbers of threads and calls, counted on request, so that calls do not pay for it.

Each lease of a worker is in a dict for its kind, with the list of unfinished jobs. Reading the length of a dict is
atomic, and so is copying it, so no lock is needed, and a signal handler may call this.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, fields

from .._bridge import forks, limit, workers
from .._bridge.jobs import snapshot

__all__ = ["BridgeStatistics", "bridge_statistics"]


@dataclass(frozen=True)
class BridgeStatistics:
    """The numbers of threads of the library by use, and of running and queued calls.

    Attributes:
        context_threads: Worker threads of ``ThreadSensitiveContext`` blocks, also between two calls of a block.
        process_threads: The thread of ``SyncToAsync.single_thread_executor``: 0 before its first call, then 1.
        fresh_loop_threads: Worker threads that run the event loop of one ``async_to_sync`` call.
        kept_loop_threads: Worker threads that run the event loop of an ``AsyncSingleThreadContext`` block.
        wsgi_threads: Worker threads of the pools of ``WsgiToAsgi``, which also write request bodies to the disk.
        iteration_threads: Worker threads of iterators and context managers that were bridged with
            ``thread_sensitive=False``.
        loop_threads: Worker threads that run a ``ThreadSensitiveEventLoop``.
        other_threads: Worker threads of other work, such as a single call while the interpreter ends.
        idle_threads: Idle worker threads, which end after ten seconds.
        running_calls: Worker threads that are running a ``sync_to_async`` call. Nested calls on the same thread do not
            count again.
        queued_process_calls: Calls that are queued for the thread of the process.
        max_threads: ``ThreadSensitiveContext.max_threads``; None without a limit.
        waiting_calls: Calls that are queued because of that limit. A cancelled call counts as long as another call of
            its context is queued.
        longest_wait: Seconds since the first of these was queued; 0.0 without any.
        threads_started: Worker threads started in this process so far.
    """

    context_threads: int
    process_threads: int
    fresh_loop_threads: int
    kept_loop_threads: int
    wsgi_threads: int
    iteration_threads: int
    loop_threads: int
    other_threads: int
    idle_threads: int
    running_calls: int
    queued_process_calls: int
    max_threads: int | None
    waiting_calls: int
    longest_wait: float
    threads_started: int


# The fields for workers, by the kind of their lease.
_LEASED = {each.name for each in fields(BridgeStatistics) if each.name.endswith("_threads")}
_LEASED -= {"idle_threads", "max_threads"}


def bridge_statistics() -> BridgeStatistics:
    """See ``asgiref.sync.bridge_statistics``."""
    forks.notice()
    kinds = workers.kinds_of_executors()
    # Atomic with the interpreter's lock: a worker that changes its kind is counted once.
    all_workers, *counts = map(len, [workers._workers, *[kind.leases for kind in kinds]])
    numbers = dict.fromkeys(_LEASED, 0)
    for kind, count in zip(kinds, counts, strict=True):
        numbers[kind.counted_in] += count
    unfinished = [jobs for kind in kinds if not kind.runs_loop for jobs in kind.leases.copy().values()]
    # A thousand contexts may be queued. Leaving out cancelled calls would take ten times as long.
    places = snapshot(limit._queue)
    first = next((place for place in places if place.is_wanted()), None)
    of_process = workers.ProcessExecutor.leases.copy().values()
    return BridgeStatistics(
        **numbers,
        idle_threads=max(0, all_workers - sum(counts)),
        running_calls=len(list(filter(None, unfinished))),
        queued_process_calls=sum(max(0, len(jobs) - 1) for jobs in of_process),
        max_threads=limit.max_threads(),
        # The map, because free-threaded builds of 3.13 run bytecode more slowly.
        waiting_calls=sum(map(len, [place.items for place in places])),
        longest_wait=0.0 if first is None else max(0.0, time.monotonic() - first.waiting_since()),
        threads_started=max(workers._started.copy(), default=0),
    )
