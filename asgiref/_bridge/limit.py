"""The limit for threads of ``ThreadSensitiveContext`` blocks, and the queue of contexts that wait for a thread.

A context that needs a thread takes a *lease*. Leases are in a dict, which keeps their order: with a limit, the first
ones are valid, and one further back is removed again. A context without a valid lease gets a *place* in the queue. The
place replaces the worker until there is one, and collects the calls of the context. A thread that removes a lease
serves the queue afterwards. Workers that were leased without a limit have no lease, but count.

There is no lock here, for the same reason as in ``workers``. Atomic steps are single operations of a dict, a deque or
a list. Two things are claimed in this way: a place, by removing it from the queue, and the right to put a place there,
by the ``pop`` of a list of one item.

Threads are given out when a lease is taken or ends. In addition, each place has a timer on the event loop of each of
its calls, for events without a notification: the limit was raised, a call was cancelled, a blocked thread waits for the
call, or all leased threads stand still.
"""

from __future__ import annotations

import contextvars
import threading
import time
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any

from .. import current_thread_executor
from . import forks, waits, workers
from .forks import after_fork_in_child
from .internals import running_loop
from .jobs import is_empty, removed, snapshot
from .workers import WorkerExecutor, run_in_place

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Collection

    from .workers import _Worker

__all__ = ["ContextExecutor", "Figures", "Lease", "figures"]

# ``asgiref.sync`` replaces these three functions: the maximum number of threads, or None; the seconds without any work
# after which the leased threads stand still; and whether a blocked thread waits for a call (None: for the running
# task).
max_threads: Callable[[], Any] = lambda: None  # noqa: E731
thread_standstill: Callable[[], float] = lambda: 5.0  # noqa: E731
is_below_blocked: Callable[[Any], bool] = lambda call: False  # noqa: E731

# Seconds between two checks of a place: the first and the longest interval. Guesses: soon enough for a call that a
# blocked thread waits for, rare enough for thousands of places.
FIRST_LOOK, LAST_LOOK = 0.005, 1.0

# The leases, in their order, and the queued places. A forked child starts with none.
_leases: dict[Lease, None] = {}
_queue: deque[Place] = deque()
# The result of the latest check of the leased threads.
_rest: Rest | None = None


@after_fork_in_child
def _start_afresh() -> None:
    global _leases, _queue, _rest
    _leases, _queue, _rest = {}, deque(), None


def current_limit() -> int | None:
    """Return the current limit.

    Raises:
        ValueError: if it is below 1.
    """
    limit: int | None = max_threads()
    if limit is not None and limit < 1:
        raise ValueError(
            f"ThreadSensitiveContext.max_threads is {limit!r}, so that no call could ever run; set it to 1 or more, or "
            "to None for no limit"
        )
    return limit


class Lease:
    """One counted thread, from before the choice of its worker until that is idle again."""

    __slots__ = ("worker",)

    def __init__(self) -> None:
        self.worker: _Worker | None = None

    def holds(self, limit: int) -> bool:
        """Return whether this is one of the first *limit* leases. New ones are always behind it."""
        # A copy takes the lock of the dict, also on free-threaded builds.
        leases = list(_leases.copy())
        return self in leases[: max(0, limit - _unnoted())]

    def end(self) -> None:
        """Give the thread to the next place; its worker is idle."""
        _end_lease(self)


def _leased() -> list[tuple[_Worker, deque[Any]]]:
    """Return the leased workers, each with the unfinished jobs of its executor."""
    return list(ContextExecutor.leases.copy().items())


def _unnoted() -> int:
    """Return the number of workers that were leased while there was no limit, and so without a ``Lease``."""
    return sum(worker.lease is None for worker, _ in _leased())


def _end_lease(lease: Lease | None) -> None:
    if lease is not None:
        _leases.pop(lease, None)
    # A context that came too late for this lease has put its place into the queue before it saw the lease in the
    # dict, and so before the lease was removed from it.
    if _queue:
        _serve_queue(own=True)


def _try_lease(limit: int) -> Lease | None:
    """Return a lease; None if the executor must be queued."""
    lease = Lease()
    try:
        _leases[lease] = None
        if not _queue and lease.holds(limit):
            return lease
    except BaseException:
        _leases.pop(lease, None)
        raise
    # This may have delayed the queue for a moment; it is served when the place of the executor is in it, or ends.
    _leases.pop(lease, None)
    return None


def _serve_queue(own: bool = False) -> None:
    """Give threads to the places at the front of the queue while the limit allows it.

    Args:
        own: Whether the worker on whose thread this is may be one of these threads.
    """
    while _queue:
        try:
            limit = current_limit()
        except Exception as error:  # else the queued calls would wait forever
            _abandon_queue(error)
            return
        lease = Lease()
        place = None
        try:
            _leases[lease] = None
            if limit is not None and not lease.holds(limit):
                _leases.pop(lease, None)
                # Each of the other leases serves the queue when it is removed, and this place is in the queue before.
                if len(list(_leases.copy())) + _unnoted() >= limit:
                    return
                continue
            try:
                # Not popleft(): a signal handler may raise as soon as a call returns, and the place would be lost
                # before it is assigned.
                place = _queue[0]
            except IndexError:
                pass
            if place is None or not place.is_wanted():
                _leases.pop(lease, None)
                if place is not None:
                    place.leave()
            elif removed(_queue, place):
                place.give(lease, own)
            else:  # another thread was faster
                _leases.pop(lease, None)
        except BaseException:
            _undo(lease, place)
            raise


def _undo(lease: Lease, place: Place | None) -> None:
    """After an interrupt, end *lease*, unless a worker has it, and put *place*, which was in the queue, back there."""
    if lease.worker is None:
        _leases.pop(lease, None)
        if place is not None and place.worker is None and place not in snapshot(_queue):
            _queue.appendleft(place)


def _abandon_queue(error: Exception) -> None:
    while True:
        try:
            place = _queue[0]
        except IndexError:
            return
        place.leave(error)


class Place:
    """Replaces the worker of an executor that waits for one.

    It is held back, or in the queue, or outside because all its calls were cancelled, or it has a worker. The worker
    moves the calls into its own queue, and replaces this object in the executor.
    """

    # Like attributes of a worker: no thread has this ident.
    ident: int | None = 0
    # Set when there is one.
    worker: _Worker | None = None
    # Whether the worker has moved the calls; later ones must go to its own queue.
    _moved = False

    def __init__(self, executor: ContextExecutor) -> None:
        self.executor = executor
        # As in the queue of a worker: pairs of an executor and a job, and events.
        self.items: deque[Any] = deque()
        self.since = time.monotonic()
        # One item while the place is outside: the thread that takes it must put the place into the queue.
        self._outside: list[None] = []
        # The thread that takes this must give the place its worker.
        self._ungiven = [None]
        # The loops on which a timer is set, as weak references; each loop adds and removes only its own.
        self._timed_on: list[weakref.ref[asyncio.AbstractEventLoop]] = []

    @property
    def jobs(self) -> Place:
        return self

    def put(self, item: Any) -> None:
        """Keep *item* for the worker, and put this place into the queue if needed."""
        self.items.append(item)
        # The worker sets ``_moved`` before its last look; this thread reads it after appending. So the worker finds the
        # item, or this thread sees the flag; the side that removes the item handles it. On free-threaded builds, the
        # lock of the deque orders this.
        if self._moved:
            assert self.worker is not None
            if removed(self.items, item):
                self.worker.jobs.put(item)
            return
        self._enter()
        if self.worker is None:
            self._wait()

    def hold(self) -> None:
        """Start waiting; the place is in the queue from the first call on."""
        self._outside.append(None)
        # An earlier call found nothing to take, and relies on this check.
        if not is_empty(self.items):
            self._enter()

    def _enter(self) -> None:
        try:
            self._outside.pop()
        except IndexError:  # held back, in the queue, or with a worker
            return
        _queue.append(self)
        _serve_queue()

    def is_wanted(self) -> bool:
        """Return whether any of the calls is still wanted."""
        return self.worker is None and not all(_is_given_up(item) for item in snapshot(self.items))

    def leave(self, error: Exception | None = None) -> None:
        """Leave the queue, because no call is wanted any more; or let all calls fail with *error*."""
        if not removed(_queue, self) or self.worker is not None:
            return
        self._forget_calls(error)
        self.hold()

    def _forget_calls(self, error: Exception | None) -> None:
        executor = self.executor
        for item in snapshot(self.items):
            if (error is None and not _is_given_up(item)) or not removed(self.items, item):
                continue
            if type(item) is tuple:
                executor.unfinished.popleft()
                if error is not None:
                    item[1].abandon(error)
            else:
                item.set()
        if executor.shut_down:
            executor.give_back_if_done()

    def give(self, lease: Lease, own: bool = False) -> None:
        """Give the calls to a worker; only the thread that has removed this place from the queue calls this."""
        try:
            self._ungiven.pop()
        except IndexError:  # it was in the queue twice, after an interrupt
            lease.end()
            return
        executor = self.executor
        try:
            worker = workers._lease(executor, lease, own)
        except BaseException as error:
            self._ungiven.append(None)
            _leases.pop(lease, None)
            if not isinstance(error, Exception):
                _queue.appendleft(self)
                raise
            self._forget_calls(error)
            self.hold()
            return
        if worker is None:
            self._run_in_place(lease)
            return
        self.worker, self.ident = worker, worker.ident
        # The worker is not released before it has moved the calls.
        executor.unfinished.append(self)
        worker.jobs.put((executor, self))

    def give_over_limit(self) -> bool:
        """Give the calls to a worker in spite of the limit; return False if this place is not in the queue."""
        if self not in snapshot(_queue):
            return False
        lease = Lease()
        try:
            if not removed(_queue, self):
                return False
            _leases[lease] = None
            self.give(lease)
        except BaseException:
            _undo(lease, self)
            raise
        return True

    def _run_in_place(self, lease: Lease) -> None:
        """Run the calls here, because Python no longer starts threads."""
        self._ungiven.append(None)
        executor = self.executor
        try:
            while self.items:
                item = self.items.popleft()
                if type(item) is tuple:
                    executor.unfinished.popleft()
                    run_in_place(item[1])
                else:
                    item.set()
        finally:
            lease.end()
            self.hold()
        if executor.shut_down:
            executor.give_back_if_done()

    # On the worker, as a job:

    def run(self) -> None:
        """Move the calls into the worker's own queue, in order; no other thread adds to it before."""
        worker, executor = self.worker, self.executor
        assert worker is not None
        waited = time.monotonic() - self.waiting_since()
        self._move(worker)
        self._moved = True
        self.items.rotate(0)  # see put()
        self._move(worker)
        executor._worker = worker
        _log_wait(waited)

    def _move(self, worker: _Worker) -> None:
        while True:
            try:
                item = self.items.popleft()
            except IndexError:
                return
            worker.jobs.put(item)

    def report(self) -> None:
        pass

    def abandon(self, error: BaseException) -> None:  # pragma: no cover: no worker abandons a job
        pass

    # As a worker:

    def go_idle(self) -> None:
        removed(_queue, self)
        # The lease that its executor tried to take may have delayed the places in the queue; see _try_lease().
        if _queue:
            _serve_queue()

    let_go = go_idle

    def wait_until_reached(self) -> None:
        """Wait until all calls of the executor are done."""
        reached = threading.Event()
        self.put(reached)
        while not reached.wait(1) and self.executor.unfinished:
            pass

    # On the loop of a call:

    def _wait(self) -> None:
        loop = running_loop()
        if loop is None:
            return
        if (is_below_blocked(None) or _is_leased_thread()) and self.give_over_limit():
            return
        # One on each loop: the loop of the first call may end while calls of other loops wait.
        if (reference := weakref.ref(loop)) not in self._timed_on:
            self._timed_on.append(reference)
            self._look_later(loop, 0)

    def _look_later(self, loop: asyncio.AbstractEventLoop, pause: float) -> None:
        # Several checks within the time after which threads count as standing still.
        pause = min(max(2 * pause, FIRST_LOOK), LAST_LOOK, max(FIRST_LOOK, thread_standstill() / 4))
        # A weak reference, so that the timer does not keep a finished call alive.
        loop.call_later(pause, _look, weakref.ref(self), loop, pause, context=contextvars.Context())

    def look(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Check the calls; return whether to check again on *loop*, which runs here."""
        if self.worker is not None or self.executor._generation is not forks.generation:
            return False
        if not self.is_wanted():
            self._timed_on.remove(weakref.ref(loop))
            self.leave()
            return False
        if (_is_leased_thread() or any(map(is_below_blocked, self._calls()))) and self.give_over_limit():
            return False
        _serve_queue()
        _resolve_standstill()
        if self.worker is not None:
            return False
        _log_wait(time.monotonic() - self.waiting_since())
        return True

    def _calls(self) -> list[Any]:
        return [item[1] for item in snapshot(self.items) if type(item) is tuple and not _is_given_up(item)]

    def waiting_since(self) -> float:
        """Return the start time of the first call that is still wanted."""
        return min([getattr(job, "began", self.since) for job in self._calls()], default=self.since)


def _look(reference: weakref.ref[Any], loop: asyncio.AbstractEventLoop, pause: float) -> None:
    place: Place | None = reference()
    if place is not None and place.look(loop):
        place._look_later(loop, pause)


def _is_given_up(item: Any) -> bool:
    # An event waits for the calls before it.
    return type(item) is not tuple or getattr(item[1], "given_up", False)


def _is_leased_thread() -> bool:
    """Return whether this thread, which runs a loop, is itself a leased one, whose job waits for the loop."""
    here = threading.get_ident()
    return any(worker.ident == here for worker, _ in _leased())


# Standstill:


class Rest:
    """The state of the leased threads: if it is the same again, none of them has run anything meanwhile."""

    def __init__(self, threads: list[Any] | None) -> None:
        # None if one of them is running something.
        self.threads = threads
        self.since = self.seen = time.monotonic()
        # The thread that takes this resolves the standstill.
        self.unresolved = [None]


def _threads_at_rest() -> list[Any] | None:
    """Return the progress of each leased thread; None if one of them is running something."""
    threads: list[Any] = []
    for worker, unfinished in _leased():
        # The mailbox of a blocked thread counts the jobs that it runs.
        mailbox = current_thread_executor.waiting.get(worker.ident or 0)
        if unfinished and mailbox is None:
            return None
        jobs_begun = None if mailbox is None else mailbox.jobs_begun
        threads.append((id(worker), worker.jobs_done, id(mailbox), jobs_begun))
    return threads


def _resolve_standstill() -> None:
    """Give the first place in the queue an additional thread, if no leased thread has run anything for long."""
    global _rest
    now, longest, rest = time.monotonic(), thread_standstill(), _rest
    if rest is not None and rest.seen <= now < rest.seen + longest / 20:  # one check is enough for all places
        return
    threads = _threads_at_rest()
    if rest is None or threads is None or threads != rest.threads:
        _rest = Rest(threads)
        return
    rest.seen = now
    if now < rest.since + longest:
        return
    try:
        rest.unresolved.pop()
    except IndexError:  # another thread does it
        return
    _rest = None
    places = snapshot(_queue)
    for place in places:
        if place.is_wanted() and place.give_over_limit():
            waits.logger.error(
                "%d leased threads have run nothing for %.1f seconds, while calls of %d ThreadSensitiveContext blocks "
                "waited for a thread, since ThreadSensitiveContext.max_threads is %s. The first of them got a thread "
                "over this limit. Call `await asgiref.sync.release_thread()` where a request that has used a thread "
                "waits for something else, or raise max_threads",
                len(threads),
                longest,
                len(places),
                max_threads(),
            )
            return


# Figures:


class Figures:
    """The number of leased threads, and the number of queued calls that are still wanted."""

    __slots__ = ("leased_threads", "waiting_calls")

    def __init__(self, leased_threads: int, waiting_calls: int) -> None:
        self.leased_threads, self.waiting_calls = leased_threads, waiting_calls


def figures() -> Figures:
    """Return the current figures. On any thread, also in a signal handler."""
    waiting = [place for place in snapshot(_queue) if place.is_wanted()]
    return Figures(len(_leased()), sum(len(place._calls()) for place in waiting))


def _log_wait(waited: float) -> None:
    waits.log_wait(waited, lambda: _told_of(waited, figures()))


def _told_of(waited: float, now: Figures) -> tuple[object, ...]:
    text = (
        "a sync_to_async call has waited %.1f seconds for a thread: ThreadSensitiveContext.max_threads is %s, "
        "%d threads are leased, and %d calls still wait; raise max_threads, or find the code that holds the threads "
        "(asgiref.sync.print_bridge_calls() shows it) and have it call `await asgiref.sync.release_thread()`"
    )
    return text, waited, max_threads(), now.leased_threads, now.waiting_calls


class ContextExecutor(WorkerExecutor):
    """The executor of a ``ThreadSensitiveContext``, until its thread is released."""

    purpose = "ThreadSensitiveContext"
    counted_in = "context_threads"
    after_lease = _end_lease

    # One item for each iterator or block whose next steps must run on this thread; created with the first one.
    pins: Collection[None] = ()

    def _lease(self) -> Any:
        if self.predecessor is not None:
            return self._stand_in_queue()
        if max_threads() is None and not _queue:  # as for most sites
            return self._take_worker(None)
        limit = current_limit()
        lease = None if limit is None else _try_lease(limit)
        if lease is None:
            return self._stand_in_queue()
        try:
            worker = self._take_worker(lease)
        except BaseException:
            lease.end()
            raise
        if worker is None:
            lease.end()
        return worker

    def _stand_in_queue(self) -> Any:
        place = Place(self)
        standing = self.__dict__.setdefault("_worker", place)
        if standing is place:
            after, self.predecessor = self.predecessor, None
            former = None if after is None else after()
            if former is None or not former._let_follow(place):
                place.hold()
        return standing

    def _let_follow(self, place: Place) -> bool:
        """Let *place* start waiting when this executor's worker is released; return False if it has been."""
        if self._generation is not forks.generation:
            return False
        # Atomic steps of one dict, as in give_back_if_done(): either this finds that the worker is gone, or the other
        # thread finds the place.
        self.__dict__["_then"] = place
        return "_worker" in self.__dict__.copy() or self.__dict__.pop("_then", None) is None

    def let_successor_begin(self) -> None:
        if "_worker" not in self.__dict__:
            self.successor.predecessor = None
            place = self.__dict__.pop("_then", None)
            if place is not None:
                place.hold()

    def release(self, install: Callable[[ContextExecutor], None]) -> None:
        """Release the worker when the accepted jobs are done and nothing is pinned to it.

        Args:
            install: Called with the executor for later calls.
        """
        self.__dict__["_release"] = install
        self._release_if_unpinned()

    def _release_if_unpinned(self) -> None:
        # Checked after setting ``_release``; unpin() removes its pin and then checks ``_release``.
        if list(self.pins):
            return
        install = self.__dict__.pop("_release", None)
        if install is None or self.shut_down or self._worker is None:
            return
        successor = self._make_successor()
        successor.predecessor = weakref.ref(self)
        self.successor = successor
        install(successor)
        self.shutdown(wait=False)

    def _make_successor(self) -> ContextExecutor:
        return ContextExecutor()

    def pin(self) -> None:
        """Record that further jobs of an iterator or block must run on this thread."""
        self.__dict__.setdefault("pins", []).append(None)

    def unpin(self) -> None:
        """Record that an iterator or block that was pinned to this thread has ended."""
        self.__dict__["pins"].pop()
        if "_release" in self.__dict__:
            self._release_if_unpinned()

    def call_given_up(self) -> None:
        """Leave the queue, if this executor is in it and none of its calls is wanted any more. On a loop."""
        place: Any = self._worker
        if isinstance(place, Place) and not place.is_wanted():
            place.leave()

    def _forget_parents_worker(self) -> None:
        super()._forget_parents_worker()
        self.__dict__.pop("_then", None)
        self.__dict__.pop("_release", None)
        self.predecessor = None
        self.__dict__.pop("pins", None)

    @property
    def _threads(self) -> set[threading.Thread]:
        return set() if isinstance(self._worker, Place) else super()._threads
