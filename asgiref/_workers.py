"""Threads that the library owns.

A worker runs one job at a time. Idle workers wait in a pool, last in, first out, and
leave after some seconds; a ``WorkerExecutor`` leases one with its first job and gives it
back when it has been shut down and its last job is done. A worker goes back *before* the
outcome of that job is reported, so that the caller's next lease finds it there.

Workers are daemon threads: an idle one holds up nobody's exit. Jobs that run are waited
for when the interpreter ends, after the ``atexit`` handlers of users, who may still
bridge in these.
"""

from __future__ import annotations

import asyncio
import atexit
import contextvars
import queue
import threading
import time
from typing import TYPE_CHECKING, Any

from ._forks import after_fork_in_child, current_generation
from ._jobs import JobExecutor

if TYPE_CHECKING:
    from ._jobs import Job

__all__ = ["WorkerExecutor", "is_suspended_here", "run_in_place"]

# Seconds for which an idle worker stays. A guess: longer than the pauses of a site with little traffic.
IDLE_TIME = 10.0

# Guards the pool and every executor's lease. Reentrant, because a signal handler, or a
# finalizer that the garbage collector calls, may bridge on a thread that holds it. A
# forked child gets a new one, an empty pool and no jobs.
_lock = threading.RLock()
_idle: list[_Worker] = []
_running_jobs = 0
_somebody_waits = 0
_job_done = threading.Condition(_lock)

# Of a thread that runs a job in place, at the interpreter's end: the loops that are held up by it.
_here = threading.local()


@after_fork_in_child
def _start_afresh() -> None:
    global _idle, _job_done, _lock, _running_jobs, _somebody_waits
    _lock = threading.RLock()
    _job_done = threading.Condition(_lock)
    _idle = []
    _running_jobs = _somebody_waits = 0


class _Worker:
    """A thread and the queue of its jobs, each with the executor that leases the worker; None ends the lease."""

    __slots__ = ("ident", "idle_since", "jobs", "leased", "thread")

    def __init__(self) -> None:
        self.jobs: queue.SimpleQueue[tuple[WorkerExecutor, Job] | None] = queue.SimpleQueue()
        self.leased = False
        self.idle_since = time.monotonic()
        self.thread = threading.Thread(target=self._work, name="asgiref worker", daemon=True)
        # Where threads inherit contexts, this one must not keep its first caller's.
        contextvars.Context().run(self.thread.start)
        self.ident = self.thread.ident

    def _work(self) -> None:
        generation = current_generation()
        while generation is current_generation():  # a job that forks returns here in the child
            try:
                item = self.jobs.get(timeout=IDLE_TIME)
            except queue.Empty:
                if self._leaves():
                    return
                continue
            if item is None:
                with _lock:
                    self.go_idle()
                continue
            executor, job = item
            job.run()
            if generation is current_generation():
                executor.job_done()
            job.report()
            del executor, item, job  # a waiting thread keeps nothing of a user's alive

    def go_idle(self) -> None:
        """Enter the pool; the lock is held."""
        self.leased = False
        self.idle_since = time.monotonic()
        _idle.append(self)

    def _leaves(self) -> bool:
        """Leave the pool, unless somebody has leased this worker between the time-out and now."""
        with _lock:
            if self.leased or time.monotonic() < self.idle_since + IDLE_TIME:
                return False
            if self in _idle:  # not if a signal's exception came between its start and its lease
                _idle.remove(self)
            return True


class WorkerExecutor(JobExecutor):
    """An executor of one thread, leased from the pool with the first job until ``shutdown``.

    Args:
        background: For jobs that last: the interpreter does not wait for them when it
            ends, and they are refused, rather than run in place, once it starts no threads.
    """

    # As a ThreadPoolExecutor has it; see also _threads.
    _max_workers = 1

    def __init__(self, *, background: bool = False) -> None:
        self._background = background
        self._worker: _Worker | None = None
        self._unfinished = 0
        self._shut_down = False
        self._generation = current_generation()

    @property
    def _threads(self) -> set[threading.Thread]:
        """The threads that serve this executor now: others read it from any executor that stands in its place."""
        worker = self._worker
        return set() if worker is None or self._generation is not current_generation() else {worker.thread}

    @property
    def belongs_to_this_thread(self) -> bool:  # type: ignore[override]
        worker = self._worker
        return worker is not None and worker.ident == threading.get_ident() and self._generation is current_generation()

    def post(self, job: Job) -> bool:
        global _running_jobs
        with _lock:
            if self._shut_down:
                return False
            if self._generation is not current_generation():
                self._forget_parents_worker()
            worker = self._worker
            if worker is None:
                worker = _find_worker()
                if worker is not None:
                    worker.leased = True
                    self._worker = worker
            if worker is not None:
                self._unfinished += 1
                if not self._background:
                    _running_jobs += 1
                worker.jobs.put((self, job))
        if worker is None:
            if self._background:
                return False
            run_in_place(job)
        return True

    def job_done(self) -> None:
        """Note, on the worker's own thread, that it has done a job."""
        global _running_jobs
        with _lock:
            self._unfinished -= 1
            if not self._background:
                _running_jobs -= 1
            if self._shut_down:
                self._give_back_if_done()
            if _somebody_waits:
                _job_done.notify_all()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more jobs, and give the worker back when the accepted ones are done.

        Args:
            wait: Wait for that, except on the worker itself.
            cancel_futures: Has no effect: accepted jobs are done.
        """
        global _somebody_waits
        with _lock:
            if self._generation is not current_generation():
                self._forget_parents_worker()
            self._shut_down = True
            self._give_back_if_done()
            if not wait or threading.current_thread() in self._threads:
                return
            _somebody_waits += 1
            try:
                while self._unfinished:
                    _job_done.wait()
            finally:
                _somebody_waits -= 1

    # The lock is held in these two:

    def _give_back_if_done(self) -> None:
        if self._worker is not None and not self._unfinished:
            self._worker.go_idle()
            self._worker = None

    def _forget_parents_worker(self) -> None:
        self._generation = current_generation()
        self._worker = None
        self._unfinished = 0

    def __del__(self) -> None:
        # Nobody kept this executor, jobs included, so its worker is free. The garbage
        # collector may call on a thread that holds the lock: leave it to the worker.
        if self._worker is not None:
            self._worker.jobs.put(None)


def _find_worker() -> _Worker | None:
    """Return an idle worker or a new one, or None where Python starts no thread any more; the lock is held."""
    for index in reversed(range(len(_idle))):
        # A finalizer may bridge on a worker that is back in the pool and drops its last job.
        if _idle[index].ident != threading.get_ident():
            return _idle.pop(index)
    try:
        return _Worker()
    except RuntimeError as error:
        if str(error).endswith("at interpreter shutdown"):
            return None
        raise


@atexit.register
def _wait_for_running_jobs() -> None:
    """Let jobs that run, or wait behind one, come to their end before the interpreter does."""
    global _somebody_waits
    with _lock:
        _somebody_waits += 1
        while _running_jobs:
            _job_done.wait()


def run_in_place(job: Job) -> None:
    """Run *job* on this very thread, because Python starts none any more; its loop, if one runs here, is held up."""
    loop = asyncio._get_running_loop()
    if loop is None:
        job.run()
    else:
        # As far as the job can tell, no loop runs here, just as on a thread of its own.
        task = asyncio.current_task(loop)
        outer: tuple[asyncio.AbstractEventLoop, ...] = getattr(_here, "suspended_loops", ())
        _here.suspended_loops = (*outer, loop)
        if task is not None:
            asyncio._leave_task(loop, task)
        asyncio._set_running_loop(None)
        try:
            job.run()
        finally:
            asyncio._set_running_loop(loop)
            if task is not None:
                asyncio._enter_task(loop, task)
            _here.suspended_loops = outer
    job.report()


def is_suspended_here(loop: Any) -> bool:
    """Tell whether *loop* is held up by a job that this thread runs in place, and so can do nothing for that job."""
    return loop in getattr(_here, "suspended_loops", ())
