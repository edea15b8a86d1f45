"""Worker threads of the library.

A worker runs one job at a time. Idle workers wait in a pool, last in, first out, and end
after some seconds. A ``WorkerExecutor`` leases one with its first job, and releases it when
it has been shut down and its last job is done. A ``WorkerPool`` leases several, as long as
its queue has jobs. A worker is released *before* the outcome of its last job is reported, so
that the caller's next lease finds it in the pool.

There is no lock here. A signal handler, or a finalizer that the garbage collector calls, may
bridge at any moment, and would deadlock on a thread that holds the lock. Atomic steps are
single operations of a list, a dict or a queue.

Workers are daemon threads, so an idle one does not delay the exit. At the end of the
interpreter, running jobs are waited for, after the ``atexit`` handlers of users, which may
still bridge.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import contextvars
import itertools
import math
import queue
import sys
import threading
import time
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any, ClassVar

from . import forks, greenlets, internals, waits
from .forks import after_fork_in_child
from .internals import running_loop
from .jobs import JobExecutor, WouldDeadlock, snapshot
from .threads import LibraryThread

if TYPE_CHECKING:
    from collections.abc import Callable

    from .jobs import Job
    from .limit import Lease

__all__ = [
    "FreshLoopExecutor",
    "KeptLoopExecutor",
    "LoopExecutor",
    "ProcessExecutor",
    "WorkerExecutor",
    "WorkerPool",
    "is_suspended_here",
    "kinds_of_executors",
    "loop_suspended",
    "run_in_place",
]

# Seconds after which an idle worker ends. A guess: longer than the pauses of a site with little traffic.
IDLE_TIME = 10.0

# All workers, and the idle ones. A forked child starts with none.
_workers: set[_Worker] = set()
_idle: list[_Worker] = []

_numbers = itertools.count(1)

# How many workers have been started: the highest of these numbers, of which each worker adds the next one. It then
# takes away those below its own, so the highest stays, whatever the order of several threads that do this at once.
_starts = itertools.count(1)
_started: set[int] = set()

# For a thread that runs a job in place, at the end of the interpreter: the loops that this blocks.
_here = threading.local()


@after_fork_in_child
def _start_afresh() -> None:
    global _idle, _started, _starts, _workers
    _workers = set()
    _idle = []
    _starts = itertools.count(1)
    _started = set()
    for kind in kinds_of_executors():
        kind.leases = {}


def kinds_of_executors() -> list[type[WorkerExecutor]]:
    return [WorkerExecutor, *(kind for kind in WorkerExecutor.__subclasses__() if "leases" in vars(kind))]


def _note_start() -> None:
    started, number = _started, next(_starts)
    started.add(number)
    for other in started.copy():
        if other < number:
            started.discard(other)


class _WorkerThread(LibraryThread):
    """A thread whose name shows its current use, unless other code has set a name.

    A name that was set lasts until the lease ends, or until a name that was read before is set again.
    """

    def __init__(self, work: Callable[[], None]) -> None:
        self._number = next(_numbers)
        # The class of the executor that leases it.
        self.serves: type[WorkerExecutor] | None = None
        # The thread for which a loop is run here, from its last run until the loop is closed.
        self.runs_for: threading.Thread | None = None
        # Whether other code has set a name.
        self._named = False
        # The system keeps only 15 bytes of a name.
        self._short_name = f"asgiref {self._number}"
        super().__init__(target=work, name=self._short_name, daemon=True)

    @property
    def name(self) -> str:
        return super().name if self._named else self._name_while_serving(self.serves)

    @name.setter
    def name(self, name: str) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        # It may be a name that was read during another use, or the one that the system shows.
        kinds = None, *kinds_of_executors()
        own = name == self._short_name or any(name == self._name_while_serving(kind) for kind in kinds)
        self._set_name(self._short_name if own else name)

    def _set_name(self, name: str) -> None:
        threading.Thread.name.__set__(self, name)  # type: ignore[attr-defined]
        self._named = name != self._short_name

    def _name_while_serving(self, kind: type[WorkerExecutor] | None) -> str:
        return f"asgiref worker {self._number}: {'idle' if kind is None else kind.purpose}"

    def end_lease(self) -> None:
        """Forget what the lease has set besides ``serves``."""
        self.runs_for = None
        self._set_name(self._short_name)

    def __repr__(self) -> str:
        return super().__repr__().replace(super().name, self.name, 1)


class _Worker:
    """A thread and the queue of its jobs, each with the executor that leases the worker.

    In the queue, None ends the lease, and an event is set when it is reached.
    """

    # Ends with the lease of the worker, if the number of such leases is limited.
    lease: Lease | None = None

    def __init__(self) -> None:
        # Pairs of an executor and a job, events, and None.
        self.jobs = greenlets.work_queue()
        self.jobs_done = 0
        self.idle_since = time.monotonic()
        self.thread = _WorkerThread(self._work)
        # If threads inherit contexts, this one must not keep the context of its first caller.
        contextvars.Context().run(self.thread.start)
        self.ident = self.thread.ident
        _workers.add(self)
        _note_start()

    def _work(self) -> None:
        generation = forks.generation
        jobs, lasting = self.jobs, False
        # A job that forks returns here in the child, which coverage cannot measure: the frame is older than the fork.
        while generation is forks.generation:  # pragma: no branch
            try:
                # A timeout costs a twentieth of a bridged call.
                item = jobs.get() if lasting else jobs.get(timeout=IDLE_TIME)
            except queue.Empty:
                if self._leaves():
                    return
                continue
            if item is None:
                lasting = False
                self.go_idle()
                continue
            if isinstance(item, threading.Event):
                item.set()
                continue
            executor, job = item
            lasting = executor.lasting
            try:
                job.run()
            except BaseException:
                _complain()
            self.jobs_done += 1
            if generation is not forks.generation:  # pragma: no cover: as above
                return  # nothing here waits for the outcome: the caller is in the parent
            # Before the outcome is reported.
            executor.unfinished.popleft()
            if executor.shut_down:
                executor.give_back_if_done()
            try:
                job.report()
            except BaseException:
                _complain()
            del executor, item, job  # a waiting worker must keep no objects of users alive

    def wait_until_reached(self) -> None:
        """Wait until all jobs that are in the queue now are done."""
        reached = threading.Event()
        self.jobs.put(reached)
        while not reached.wait(1) and self.thread.is_alive():
            pass

    def go_idle(self) -> None:
        kind = self.thread.serves
        if kind is not None:  # pragma: no branch: told twice, after an interrupt
            kind.leases.pop(self, None)
        thread = self.thread
        thread.serves = None
        if thread.runs_for is not None or thread._named:
            thread.end_lease()
        self.idle_since = time.monotonic()
        lease, self.lease = self.lease, None
        _idle.append(self)
        # Last, so that a context that waits for this finds the worker in the pool.
        if kind is not None and (after_lease := kind.after_lease) is not None:
            after_lease(lease)

    def let_go(self) -> None:
        """Go idle when all jobs in the queue are done."""
        self.jobs.put(None)

    def _leaves(self) -> bool:
        """Leave the pool, unless this worker has been leased since the timeout; return whether it left."""
        if time.monotonic() < self.idle_since + IDLE_TIME:
            return False
        try:
            _idle.remove(self)
        except ValueError:
            return False
        _workers.discard(self)
        return True


class WorkerExecutor(JobExecutor):
    """An executor of one thread, leased from the pool with the first job until ``shutdown``."""

    # In slots, because the use of ``__dict__`` for ``_worker`` would make reading them slow.
    __slots__ = ("_generation", "predecessor", "shut_down", "successor", "unfinished")

    # Part of the thread's name.
    purpose = "one call"

    # The field of ``BridgeStatistics`` in which its worker is counted.
    counted_in = "other_threads"

    # The workers that are leased for this class, each with the list of its unfinished jobs. A forked child starts with
    # none. Each class has its own, so that counting them takes no time.
    leases: ClassVar[dict[_Worker, deque[Any]]] = {}

    # For a lease that rarely ends: the worker must then be woken to go idle.
    lasting = False

    # For long-running jobs: the interpreter does not wait for them at its end.
    background = False

    # Whether jobs are run in place, instead of refused, when Python no longer starts threads.
    runs_in_place = True

    # For jobs that run a loop: asyncio allows one in each system thread.
    runs_loop = False

    # Until when queued jobs are watched, by the clock of their start time.
    watched_until = math.inf

    # A function that is called, with the ``Lease``, when a worker that was leased for this class is idle again. Always
    # read from the class: so it is a plain function, which Python finds faster than a static method.
    after_lease: ClassVar[Any] = None

    # As in a ThreadPoolExecutor; see also _threads.
    _max_workers = 1

    # Set, on the instance, while a worker is leased. Removing the attribute is atomic, so exactly one thread
    # releases the worker.
    _worker: _Worker | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "purpose" in vars(cls):  # else it is of the same kind as the class that it extends
            cls.leases = {}

    def __init__(self) -> None:
        # The accepted jobs that are not done. Their number is exact. Their order is that of the queue, unless two
        # threads post at the same moment.
        self.unfinished: deque[Any] = deque()
        self.shut_down = False
        self._generation = forks.generation
        # The executor that takes further jobs once this one is shut down, if there is one.
        self.successor: Any = None
        # The executor whose successor this is, as long as it may have running calls: calls of the two do not overlap.
        # A weak reference, because it refers to this one; its jobs keep it alive until they are done.
        self.predecessor: weakref.ref[Any] | None = None

    @property
    def _threads(self) -> set[threading.Thread]:
        """The threads of this executor now; other packages read this attribute of a ``ThreadPoolExecutor``."""
        worker = self._worker
        return set() if worker is None or self._generation is not forks.generation else {worker.thread}

    @property
    def belongs_to_this_thread(self) -> bool:
        """Whether this thread serves the queue."""
        worker = self._worker
        return worker is not None and worker.ident == threading.get_ident() and self._generation is forks.generation

    def post(self, job: Job, waiting_thread: int | None = None) -> bool:
        forks.notice()
        if self._generation is not forks.generation:
            self._forget_parents_worker()
        if self.shut_down:
            return False
        worker = self._worker or self._lease()
        if worker is None:
            return self._do_without_worker(job)
        if worker.ident == waiting_thread:
            raise WouldDeadlock
        self.unfinished.append(job)
        # Check again, now that the worker cannot be released: shutdown() sets this first.
        if self.shut_down:
            self.unfinished.pop()
            self.give_back_if_done()
            return False
        worker.jobs.put((self, job))
        if len(self.unfinished) > 1 and self.lasting and getattr(job, "began", 0.0) > self.watched_until:
            self.watch_queue()
        return True

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Accept no more jobs, and release the worker when the accepted ones are done.

        Args:
            wait: Wait for this, except on the worker itself.
            cancel_futures: Has no effect: accepted jobs are run.
        """
        if wait:
            forks.notice()
        if self._generation is not forks.generation:
            self._forget_parents_worker()
        worker = self._worker if wait and self.unfinished and not self.belongs_to_this_thread else None
        self.shut_down = True
        self.give_back_if_done()
        if worker is not None:
            worker.wait_until_reached()

    def watch_queue(self) -> None:  # pragma: no cover: only for executors that last
        """Start logging jobs that are queued for long."""

    def _do_without_worker(self, job: Job) -> bool:
        if self.runs_loop and greenlets.is_patched("threading"):
            try:
                greenlets.run_on_real_thread(job)
            except RuntimeError as error:
                if not internals.interpreter_ends(error):
                    raise
            else:
                return True
        if not self.runs_in_place:
            return False
        run_in_place(job)
        return True

    def _lease(self) -> _Worker | None:
        if self.runs_loop and greenlets.is_patched("threading"):
            return None
        return self._take_worker(None)

    def _take_worker(self, lease: Lease | None) -> _Worker | None:
        worker = _lease(self, lease)
        if worker is None:
            return None
        leased: _Worker = self.__dict__.setdefault("_worker", worker)
        if leased is not worker:  # another thread was faster
            worker.go_idle()
        return leased

    def give_back_if_done(self) -> None:
        # rotate() takes the lock of the deque, as adding and removing an item do. So on free-threaded builds, either
        # shutdown() finds the item of an accepted job here, or the thread that adds or removes it sees ``shut_down``.
        unfinished = self.unfinished
        unfinished.rotate(0)
        if not unfinished:
            worker = self.__dict__.pop("_worker", None)
            if worker is None:
                return
            if self.lasting:
                worker.let_go()
            else:
                worker.go_idle()
        if self.successor is not None:
            self.let_successor_begin()

    def let_successor_begin(self) -> None:  # pragma: no cover: only for executors that can have one
        """Let the executor that takes further jobs begin, if the worker has been given back."""

    def _forget_parents_worker(self) -> None:
        self.__dict__.pop("_worker", None)
        self.unfinished = deque()
        self._generation = forks.generation

    def __del__(self) -> None:
        # No reference to this executor is left, not even by a job, so its worker is free.
        if self._worker is not None:
            self._worker.let_go()


class ProcessExecutor(WorkerExecutor):
    purpose = "thread-sensitive code of the process"
    counted_in = "process_threads"
    lasting = True
    watched_until = -math.inf

    def watch_queue(self) -> None:
        """Let this loop log when the first queued job has waited for long.

        One timer is enough, because no job waits longer than the first. If its loop no longer runs, a later job notices
        that the timer is overdue.
        """
        loop = running_loop()
        if loop is None or self._generation is not forks.generation:
            return
        now = time.monotonic()
        self.watched_until = -math.inf
        # Read last: a thread that posts a job afterwards sees that no timer is set.
        first = self._first_waiting()
        if first is None:
            return
        waited, longest = now - first.began, waits.slow_thread_wait()
        waits.log_wait(waited, lambda: self._told_of(waited))
        if longest is None:
            longest = 5.0
        pause = longest - waited if waited < longest else max(longest, 1.0)
        # One second more for a slow loop. After that, a later job assumes that the loop is not running.
        self.watched_until = now + pause + 1
        watch = weakref.WeakMethod(self.watch_queue)
        loop.call_later(pause + 0.001, _call_if_alive, watch, context=contextvars.Context())

    def _first_waiting(self) -> Any:
        """Return the first call that is queued behind the running one, or None."""
        for job in snapshot(self.unfinished)[1:]:
            if hasattr(job, "began") and not job.given_up:
                return job
        return None

    def _told_of(self, waited: float) -> tuple[object, ...]:
        text = (
            "a sync_to_async call has waited %.1f seconds for the one thread that serves the whole process, and %d "
            "calls are queued for it; use a ThreadSensitiveContext around independent code, or find the code that "
            "blocks the thread (asgiref.sync.print_bridge_calls() shows it) and make it shorter"
        )
        return text, waited, len(self.unfinished) - 1


def _call_if_alive(method: weakref.WeakMethod[Callable[[], None]]) -> None:
    function = method()
    if function is not None:
        function()


class FreshLoopExecutor(WorkerExecutor):
    purpose = "event loop of async_to_sync"
    counted_in = "fresh_loop_threads"
    runs_loop = True


class KeptLoopExecutor(WorkerExecutor):
    purpose = "event loop of AsyncSingleThreadContext"
    counted_in = "kept_loop_threads"
    runs_loop = True
    background = True
    runs_in_place = False


class LoopExecutor(WorkerExecutor):
    """For runs of a ``ThreadSensitiveEventLoop``; the thread that started a run waits for it."""

    purpose = "ThreadSensitiveEventLoop"
    counted_in = "loop_threads"
    runs_loop = True
    background = True

    def note_caller(self, caller: threading.Thread) -> None:
        """Record the thread for which the worker runs the loop."""
        worker = self._worker
        if worker is not None:
            worker.thread.runs_for = caller


class _PoolExecutor(WorkerExecutor):
    purpose = "WSGI pool"
    counted_in = "wsgi_threads"


def _complain() -> None:
    """Print an exception of a job, for example from a future's callback; the worker must survive it."""
    threading.excepthook(threading.ExceptHookArgs([*sys.exc_info(), threading.current_thread()]))


class WorkerPool(JobExecutor):
    """An executor of at most *limit* leased workers that take their jobs from one queue.

    One worker at a time goes to the queue. It takes a job and, if there are more, wakes the
    next worker before it runs its own. So one or two threads run all short jobs, without a
    wake-up for each. As soon as a job blocks, another thread takes the next ones.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._start_afresh()
        _pools.add(self)

    def _start_afresh(self) -> None:
        self._jobs: deque[Job] = deque()
        # One item for each worker that may still be leased.
        self._free: list[None] = [None] * self._limit
        # Held while a worker is going to the queue. No thread waits for this lock.
        self._coming = threading.Lock()

    def post(self, job: Job, waiting_thread: int | None = None) -> bool:
        forks.notice()
        self._jobs.append(job)
        try:
            self._call_worker()
        except Exception as error:
            # No thread could be started. A thread that has a slot comes to the queue, or gets here, too.
            if len(self._free) == self._limit and self._abandon_jobs(error, but_for=job):
                raise
        except BaseException:
            with contextlib.suppress(ValueError):  # taken by a worker
                self._jobs.remove(job)
            raise
        return True

    def _abandon_jobs(self, error: Exception, but_for: Job) -> bool:
        """Abandon all jobs, because no worker will take them; return whether *but_for* was among them."""
        found = False
        while True:
            try:
                job = self._jobs.popleft()
            except IndexError:
                return found
            if job is but_for:
                found = True
            else:
                job.abandon(error)

    def _call_worker(self) -> None:
        """Lease a worker for the queue, if it has jobs and a worker is free, and none is coming already.

        If a worker is already coming, it will see our job, which was appended before this check. On free-threaded
        builds, the locks of the deque and the list ensure this.
        """
        try:
            while self._jobs and self._coming.acquire(blocking=False):
                try:
                    self._free.pop()
                except IndexError:
                    self.arrived()
                    # Meanwhile, a worker may have become free, found the queue empty and left; then a thread may
                    # have added a job and relied on this call.
                    if not self._free:
                        return
                else:
                    self._lease_worker()
                    return
        except BaseException:
            # An interrupt may come at any point. Releasing too often is harmless: a second worker is leased.
            self.arrived()
            raise

    def _lease_worker(self) -> None:
        service = _QueueService(self)
        try:
            executor = _PoolExecutor()
            executor.post(service)
            executor.shutdown(wait=False)
        except BaseException:
            # After an interrupt, a worker may or may not have it.
            if service.take_slot():
                self._free.append(None)
            raise

    def arrived(self) -> None:
        """Record that no worker is going to the queue any more."""
        try:
            self._coming.release()
        except RuntimeError:  # not held, after an interrupt
            pass


# All pools, which are reset in a forked child.
_pools: weakref.WeakSet[WorkerPool] = weakref.WeakSet()


@after_fork_in_child
def _renew_pools() -> None:
    for pool in _pools:
        pool._start_afresh()


class _QueueService:
    """A job: run the jobs of a pool until there are none."""

    def __init__(self, pool: WorkerPool) -> None:
        self._pool = pool
        self._last: Job | None = None
        # A list of one item. pop() is atomic: either the worker gets the slot, or its caller gives it back.
        self._slot = [None]

    def take_slot(self) -> bool:
        try:
            self._slot.pop()
        except IndexError:
            return False
        return True

    def run(self) -> None:
        pool = self._pool
        if not self.take_slot():
            return
        pool.arrived()
        jobs, free, generation = pool._jobs, pool._free, forks.generation
        while True:
            try:
                job = jobs.popleft()
            except IndexError:
                free.append(None)
                # Jobs that were added since the check above, and found no free worker, rely on this one.
                if not jobs:
                    return
                try:
                    free.pop()
                except IndexError:  # other workers have been leased meanwhile, and will come to the queue
                    return
                continue
            if self._last is not None:
                self.report()
            if jobs:
                try:
                    pool._call_worker()
                except Exception:  # no more threads can be started: this one runs the other jobs, too
                    pass
            try:
                job.run()
            except BaseException:
                _complain()
            self._last = job
            # A job that forked returns here in the child, in a frame that is older than the fork.
            if generation is not forks.generation:  # pragma: no cover
                return

    def report(self) -> None:
        """Report the last job: after the next one was taken, or after the worker was released."""
        job, self._last = self._last, None
        if job is not None:
            try:
                job.report()
            except BaseException:
                _complain()

    def abandon(self, error: BaseException) -> None:  # pragma: no cover: no worker abandons a job
        self.report()


def _lease(executor: WorkerExecutor, lease: Lease | None, own: bool = False) -> _Worker | None:
    """Return an idle worker or a new one, or None if Python no longer starts threads.

    Args:
        executor: The executor that leases it.
        lease: Ends with the lease of the worker, if the number of such leases is limited.
        own: Whether it may be the worker of this thread, because this thread does not wait for the job.
    """
    try:
        worker = _idle.pop()
    except IndexError:
        try:
            worker = _Worker()
        except RuntimeError as error:
            if internals.interpreter_ends(error):
                return None
            raise
    if not own and worker.ident == threading.get_ident():
        # A finalizer bridges on a worker that is in the pool again and is dropping its last job.
        try:
            return _lease(executor, lease)
        finally:
            _idle.append(worker)
    if lease is not None:  # first, so that the worker is never counted twice
        worker.lease, lease.worker = lease, worker
    kind = worker.thread.serves = type(executor)
    kind.leases[worker] = executor.unfinished
    return worker


@atexit.register
def _wait_for_running_jobs() -> None:
    """Wait for running and queued jobs at the end of the interpreter."""
    forks.notice()
    while True:
        done = _count_jobs_done()
        for worker in _workers.copy() - set(_idle):
            if not (worker.thread.serves or WorkerExecutor).background:
                worker.wait_until_reached()
        late = _threads_started_late()
        for thread in late:
            thread.join()
        if not late and done == _count_jobs_done():  # else they may have started others
            break
    greenlets.wait_for_real_threads()


def _count_jobs_done() -> int:
    return sum(worker.jobs_done for worker in _workers.copy())


def _threads_started_late() -> list[threading.Thread]:
    """Return the threads of users, usually started in a job, that were started after Python had joined all threads."""
    if threading.main_thread().is_alive():  # atexit handlers were called before the end
        return []
    finishing = threading.main_thread(), threading.current_thread()
    return [thread for thread in threading.enumerate() if not thread.daemon and thread not in finishing]


def run_in_place(job: Job) -> None:
    """Run *job* on this thread, because Python no longer starts threads; this blocks a loop that runs here."""
    with loop_suspended():
        job.run()
    job.report()


class loop_suspended:
    """In the block, asyncio believes that no loop is running on this thread.

    Not a generator: contextlib assigns to attributes of exceptions, which an exception may refuse.
    """

    def __enter__(self) -> None:
        self._loop = running_loop()
        if self._loop is None:
            return
        self._task = asyncio.current_task(self._loop)
        self._outer: tuple[asyncio.AbstractEventLoop, ...] = getattr(_here, "suspended_loops", ())
        _here.suspended_loops = (*self._outer, self._loop)
        internals.leave_loop(self._loop, self._task)

    def __exit__(self, *exc_info: object) -> None:
        if self._loop is not None:
            internals.enter_loop(self._loop, self._task)
            _here.suspended_loops = self._outer


def is_suspended_here(loop: Any) -> bool:
    """Return whether *loop* is blocked by a job that this thread runs in place, and so cannot work for that job."""
    return loop in getattr(_here, "suspended_loops", ())
