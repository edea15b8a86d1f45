"""Threads that the library owns.

A worker runs one job at a time. Idle workers wait in a pool, last in, first out, and
leave after some seconds; a ``WorkerExecutor`` leases one with its first job and gives it
back when it has been shut down and its last job is done. A ``WorkerPool`` leases several,
for as long as its one queue has jobs. A worker goes back *before* the outcome of its last
job is reported, so that the caller's next lease finds it there.

There is no lock here. A signal handler, or a finalizer that the garbage collector calls,
may bridge at any moment, and would wait forever on a thread that held one. What must be
one step is one operation of a list, a dict or a queue.

Workers are daemon threads: an idle one holds up nobody's exit. Jobs that run are waited
for when the interpreter ends, after the ``atexit`` handlers of users, who may still
bridge in these.
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
from .jobs import JobExecutor, WouldDeadlock, is_empty, snapshot
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

# Seconds for which an idle worker stays. A guess: longer than the pauses of a site with little traffic.
IDLE_TIME = 10.0

# Every worker that lives, and the idle ones among them. A forked child starts with none.
_workers: set[_Worker] = set()
_idle: list[_Worker] = []

_numbers = itertools.count(1)

# How many workers have been started: the highest of these numbers, of which each worker adds the next one. It then
# takes away those below its own, so the highest stays, whatever the order of several threads that do this at once.
_starts = itertools.count(1)
_started: set[int] = set()

# Of a thread that runs a job in place, at the interpreter's end: the loops that are held up by it.
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
    """A thread whose name says what it works for, unless somebody else has named it.

    Such a name lasts until the lease ends, or until a name that was read before is set again.
    """

    # What kind of executor leases it.
    serves: type[WorkerExecutor] | None = None
    # The thread that has the runs of a loop done here, since the last one and until the loop is closed.
    runs_for: threading.Thread | None = None

    # Whether somebody has named it.
    _named = False

    def __init__(self, work: Callable[[], None]) -> None:
        self._number = next(_numbers)
        # What the system shows has to be short, since it keeps 15 bytes.
        self._short_name = f"asgiref {self._number}"
        super().__init__(target=work, name=self._short_name, daemon=True)

    @property
    def name(self) -> str:
        return super().name if self._named else self._name_while_serving(self.serves)

    @name.setter
    def name(self, name: str) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        # It may have been read while the worker served something else, or as the system shows it.
        kinds = None, *kinds_of_executors()
        own = name == self._short_name or any(name == self._name_while_serving(kind) for kind in kinds)
        self._set_name(self._short_name if own else name)

    def _set_name(self, name: str) -> None:
        threading.Thread.name.__set__(self, name)  # type: ignore[attr-defined]
        self._named = name != self._short_name

    def _name_while_serving(self, kind: type[WorkerExecutor] | None) -> str:
        return f"asgiref worker {self._number}: {'idle' if kind is None else kind.purpose}"

    def end_lease(self) -> None:
        self.serves = self.runs_for = None
        if self._named:
            self._set_name(self._short_name)

    def __repr__(self) -> str:
        return super().__repr__().replace(super().name, self.name, 1)


class _Worker:
    """A thread and the queue of its jobs, each with the executor that leases the worker.

    In that queue, None ends the lease, and an event is set when its turn comes.
    """

    # Ends with the lease, where the number of such leases is limited.
    lease: Lease | None = None

    def __init__(self) -> None:
        # Of pairs of an executor and a job, of events, and of None.
        self.jobs = greenlets.work_queue()
        self.jobs_done = 0
        self.idle_since = time.monotonic()
        self.thread = _WorkerThread(self._work)
        # Where threads inherit contexts, this one must not keep its first caller's.
        contextvars.Context().run(self.thread.start)
        self.ident = self.thread.ident
        _workers.add(self)
        _note_start()

    def _work(self) -> None:
        generation = forks.generation
        jobs, lasting = self.jobs, False
        # A job that forks returns here in the child, which nothing can measure: the frame is from before the fork.
        while generation is forks.generation:  # pragma: no branch
            try:
                # A time-out costs a twentieth of a bridged call.
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
                return  # whoever waits for the outcome is the parent's
            # Before the outcome is reported.
            executor.unfinished.popleft()
            if executor.shut_down:
                executor.give_back_if_done()
            try:
                job.report()
            except BaseException:
                _complain()
            del executor, item, job  # a waiting thread keeps nothing of a user's alive

    def wait_until_reached(self) -> None:
        """Wait until all that is in the queue now is done."""
        reached = threading.Event()
        self.jobs.put(reached)
        while not reached.wait(1) and self.thread.is_alive():
            pass

    def begin_lease(self, executor: WorkerExecutor) -> None:
        kind = self.thread.serves = type(executor)
        kind.leases[self] = executor.unfinished

    def go_idle(self) -> None:
        kind = self.thread.serves
        if kind is not None:  # pragma: no branch: told twice, after an interrupt
            kind.leases.pop(self, None)
        self.thread.end_lease()
        self.idle_since = time.monotonic()
        lease, self.lease = self.lease, None
        _idle.append(self)
        if lease is not None:  # afterwards, so that whoever has waited for this finds the worker in the pool
            lease.end()

    def let_go(self) -> None:
        """Go idle when all that is in the queue is done."""
        self.jobs.put(None)

    def _leaves(self) -> bool:
        """Leave the pool, unless somebody has leased this worker between the time-out and now."""
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

    # Part of the thread's name.
    purpose = "one call"

    # The field of ``BridgeStatistics`` in which its worker is counted.
    counted_in = "other_threads"

    # The workers that are leased for this class, each with the list of what it has not done. A forked child starts with
    # none. One for each class, so that counting them takes no time.
    leases: ClassVar[dict[_Worker, deque[Any]]] = {}

    # For a lease that ends seldom, if at all: the worker then has to be woken to go idle.
    lasting = False

    # For jobs that last: the interpreter does not wait for them when it ends.
    background = False

    # Whether jobs are run in place once Python starts no threads, rather than refused.
    runs_in_place = True

    # For jobs that run a loop: asyncio allows one in each thread of the system.
    runs_loop = False

    # Until when the jobs that wait behind another are watched, by the clock that tells when they began.
    watched_until = math.inf

    # As a ThreadPoolExecutor has it; see also _threads.
    _max_workers = 1

    # Set, on the object, for as long as a worker is leased. To give it back is to take the
    # attribute away, which only one thread can do.
    _worker: _Worker | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "purpose" in vars(cls):  # else it is of the same kind as the class that it extends
            cls.leases = {}

    def __init__(self) -> None:
        # The jobs that were accepted and are not done. Their number is exact; their order is that of the queue, unless
        # two threads post at the same moment.
        self.unfinished: deque[Any] = deque()
        self.shut_down = False
        self._generation = forks.generation

    @property
    def _threads(self) -> set[threading.Thread]:
        """The threads that serve this executor now: others read it from any executor that stands in its place."""
        worker = self._worker
        return set() if worker is None or self._generation is not forks.generation else {worker.thread}

    @property
    def belongs_to_this_thread(self) -> bool:
        """Whether this thread is the one that serves the queue."""
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
        # Looked at again, now that the worker cannot be given back: shutdown() sets it first.
        if self.shut_down:
            self.unfinished.pop()
            self.give_back_if_done()
            return False
        worker.jobs.put((self, job))
        if self.lasting and len(self.unfinished) > 1 and getattr(job, "began", 0.0) > self.watched_until:
            self.watch_queue()
        return True

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more jobs, and give the worker back when the accepted ones are done.

        Args:
            wait: Wait for that, except on the worker itself.
            cancel_futures: Has no effect: accepted jobs are done.
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

    def watch_queue(self) -> None:
        """See to it that jobs which wait for long are told to the log."""

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

    def _lease(self, lease: Lease | None = None) -> _Worker | None:
        if self.runs_loop and greenlets.is_patched("threading"):
            return None
        worker = _lease()
        if worker is None:
            return None
        worker.begin_lease(self)
        if lease is not None:
            worker.lease, lease.worker = lease, worker
        leased: _Worker = self.__dict__.setdefault("_worker", worker)
        if leased is not worker:  # another thread was faster
            worker.go_idle()
        return leased

    def give_back_if_done(self) -> None:
        # This takes the lock of the deque, as adding and removing an item do: either shutdown() finds here the
        # item of a job that was accepted, or who added or removed that item reads ``shut_down`` after it was set.
        # That holds without the interpreter's lock too, where merely asking for the length takes no lock.
        if is_empty(self.unfinished):
            worker = self.__dict__.pop("_worker", None)
            if worker is None:
                return
            if self.lasting:
                worker.let_go()
            else:
                worker.go_idle()

    def _forget_parents_worker(self) -> None:
        self.__dict__.pop("_worker", None)
        self.unfinished = deque()
        self._generation = forks.generation

    def __del__(self) -> None:
        # Nobody kept this executor, jobs included, so its worker is free.
        if self._worker is not None:
            self._worker.let_go()


class ProcessExecutor(WorkerExecutor):
    purpose = "thread-sensitive code of the process"
    counted_in = "process_threads"
    lasting = True
    watched_until = -math.inf

    def watch_queue(self) -> None:
        """Have this loop tell the log when the first of the jobs that wait has waited for long.

        One timer does for all jobs, since none can wait longer than the first. Where its loop does not run any more,
        a later job finds that it is overdue.
        """
        loop = running_loop()
        if loop is None or self._generation is not forks.generation:
            return
        now = time.monotonic()
        self.watched_until = -math.inf
        # Looked at afterwards: who posts a job after this look finds that nobody watches.
        first = self._first_waiting()
        if first is None:
            return
        waited, longest = now - first.began, waits.slow_thread_wait()
        waits.log_wait(waited, lambda: self._told_of(waited))
        if longest is None:
            longest = 5.0
        pause = longest - waited if waited < longest else max(longest, 1.0)
        # With some time for a loop that is late. After that, a later job takes the loop for one that does not run.
        self.watched_until = now + pause + 1
        watch = weakref.WeakMethod(self.watch_queue)
        loop.call_later(pause + 0.001, _call_if_alive, watch, context=contextvars.Context())

    def _first_waiting(self) -> Any:
        """Return the first call that waits behind the one that runs, or None."""
        for job in snapshot(self.unfinished)[1:]:
            if hasattr(job, "began") and not job.given_up:
                return job
        return None

    def _told_of(self, waited: float) -> tuple[object, ...]:
        text = (
            "a sync_to_async call has waited %.1f seconds for the one thread that serves the whole process, and %d "
            "calls wait for it; put a ThreadSensitiveContext around what is independent of the rest, or find the code "
            "that holds the thread (asgiref.sync.print_bridge_calls() shows it) and make it shorter"
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
    """For the runs of a loop, for which the thread waits that started them: it ends with them, or gave up waiting."""

    purpose = "ThreadSensitiveEventLoop"
    counted_in = "loop_threads"
    runs_loop = True
    background = True

    def note_caller(self, caller: threading.Thread) -> None:
        """Have the worker know the thread for which it runs the loop."""
        worker = self._worker
        if worker is not None:
            worker.thread.runs_for = caller


class _PoolExecutor(WorkerExecutor):
    purpose = "WSGI pool"
    counted_in = "wsgi_threads"


def _complain() -> None:
    """Show what a job let out after all, of a future's callback, say: the thread serves others too."""
    threading.excepthook(threading.ExceptHookArgs([*sys.exc_info(), threading.current_thread()]))


class WorkerPool(JobExecutor):
    """An executor of at most *limit* leased workers that take their jobs from one queue.

    One worker at a time is on its way to the queue. It takes a job, and calls the next
    worker if there are more, before it runs its own. So while the jobs are short, one or
    two threads do them all, in one go, and are not woken for each; as soon as a job waits
    for something, another thread goes on with the queue.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._start_afresh()
        _pools.add(self)

    def _start_afresh(self) -> None:
        self._jobs: deque[Job] = deque()
        # An item for each worker that may still be leased.
        self._free: list[None] = [None] * self._limit
        # Held while a worker is on its way to the queue. Nobody waits for it.
        self._coming = threading.Lock()

    def post(self, job: Job, waiting_thread: int | None = None) -> bool:
        forks.notice()
        self._jobs.append(job)
        try:
            self._call_worker()
        except Exception as error:
            # No thread could be started. Whoever has a slot now comes to the queue, or gets here too.
            if len(self._free) == self._limit and self._abandon_jobs(error, but_for=job):
                raise
        except BaseException:
            with contextlib.suppress(ValueError):  # taken by a worker
                self._jobs.remove(job)
            raise
        return True

    def _abandon_jobs(self, error: Exception, but_for: Job) -> bool:
        """Abandon all jobs, since nobody will come to them; return whether *but_for* was among them."""
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
        """See to it that a worker comes to the queue, if there is something in it and one is free.

        Who finds another on its way has put a job there before that one looks: by the locks of the deque
        and the list, this holds without the interpreter's lock too.
        """
        try:
            while self._jobs and self._coming.acquire(blocking=False):
                try:
                    self._free.pop()
                except IndexError:
                    self.arrived()
                    # One may have become free meanwhile, found the queue empty and gone; and then
                    # somebody may have added a job and relied on this call.
                    if not self._free:
                        return
                else:
                    self._lease_worker()
                    return
        except BaseException:
            # An interrupt comes at any point. To say so too often is harmless: a second worker is called.
            self.arrived()
            raise

    def _lease_worker(self) -> None:
        service = _QueueService(self)
        try:
            executor = _PoolExecutor()
            executor.post(service)
            executor.shutdown(wait=False)
        except BaseException:
            # Whether a worker has got it is not known after an interrupt.
            if service.take_slot():
                self._free.append(None)
            raise

    def arrived(self) -> None:
        """Note that no worker is on its way any more."""
        try:
            self._coming.release()
        except RuntimeError:  # not held, after an interrupt
            pass


# Every pool, to be made anew in a forked child.
_pools: weakref.WeakSet[WorkerPool] = weakref.WeakSet()


@after_fork_in_child
def _renew_pools() -> None:
    for pool in _pools:
        pool._start_afresh()


class _QueueService:
    """A job: do the jobs of a pool for as long as there are any."""

    def __init__(self, pool: WorkerPool) -> None:
        self._pool = pool
        self._last: Job | None = None
        # A list of one, since pop() is atomic: either the worker has the slot, or who called it gives it back.
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
                # Jobs that came since the look above, and found no worker free, have only this one.
                if not jobs:
                    return
                try:
                    free.pop()
                except IndexError:  # others have been leased since, and will come to the queue
                    return
                continue
            if self._last is not None:
                self.report()
            if jobs:
                try:
                    pool._call_worker()
                except Exception:  # no more threads can be had, so this one goes on alone
                    pass
            try:
                job.run()
            except BaseException:
                _complain()
            self._last = job
            # A job that forked returns here in the child, in a frame from before the fork.
            if generation is not forks.generation:  # pragma: no cover
                return

    def report(self) -> None:
        """Report the job that was done last: when the next one has begun, or the worker is back among the idle."""
        job, self._last = self._last, None
        if job is not None:
            try:
                job.report()
            except BaseException:
                _complain()

    def abandon(self, error: BaseException) -> None:  # pragma: no cover: no worker abandons a job
        self.report()


def _lease(own: bool = False) -> _Worker | None:
    """Return an idle worker or a new one, or None where Python starts no thread any more.

    Args:
        own: Whether the worker may be the one whose thread this is: nobody here waits for what it gets.
    """
    try:
        worker = _idle.pop()
    except IndexError:
        try:
            return _Worker()
        except RuntimeError as error:
            if internals.interpreter_ends(error):
                return None
            raise
    if not own and worker.ident == threading.get_ident():
        # A finalizer bridges on a worker that is back in the pool and drops its last job.
        try:
            return _lease()
        finally:
            _idle.append(worker)
    return worker


@atexit.register
def _wait_for_running_jobs() -> None:
    """Let jobs that run, or wait behind one, come to their end before the interpreter does."""
    forks.notice()
    while True:
        done = _count_jobs_done()
        for worker in _workers.copy() - set(_idle):
            if not (worker.thread.serves or WorkerExecutor).background:
                worker.wait_until_reached()
        late = _threads_started_late()
        for thread in late:
            thread.join()
        if not late and done == _count_jobs_done():  # else they may have led to others
            break
    greenlets.wait_for_real_threads()


def _count_jobs_done() -> int:
    return sum(worker.jobs_done for worker in _workers.copy())


def _threads_started_late() -> list[threading.Thread]:
    """Return the threads to be waited for that users, in a job as a rule, started when Python had waited for all."""
    if threading.main_thread().is_alive():  # somebody calls the handlers in the midst of the program
        return []
    finishing = threading.main_thread(), threading.current_thread()
    return [thread for thread in threading.enumerate() if not thread.daemon and thread not in finishing]


def run_in_place(job: Job) -> None:
    """Run *job* on this very thread, because Python starts none any more; its loop, if one runs here, is held up."""
    with loop_suspended():
        job.run()
    job.report()


class loop_suspended:
    """In the block, no loop runs on this thread as far as anybody can tell, just as on a thread without one.

    Not made of a generator: contextlib assigns to each exception that leaves the block, and
    an exception may refuse that.
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
    """Tell whether *loop* is held up by a job that this thread runs in place, and so can do nothing for that job."""
    return loop in getattr(_here, "suspended_loops", ())
