"""Races at the limit for threads of contexts: each test forces one exact order."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from asgiref import sync
from asgiref._bridge import limit, workers
from asgiref._bridge.jobs import removed as remove
from asgiref._bridge.limit import ContextExecutor, Lease, Place, figures
from asgiref.sync import SyncToAsync, ThreadSensitiveContext, release_thread, sync_to_async

from ..helpers import LIMIT, Thread, collect_until, finished, idle_workers, no_garbage, output_of, wait_for, wait_until

forks = pytest.mark.skipif(sys.platform == "win32", reason="forks")


@pytest.fixture(autouse=True)
def limit_of_one(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(ThreadSensitiveContext, "max_threads", 1)
    monkeypatch.setattr(sync, "thread_standstill", 10 * LIMIT)
    yield
    wait_until(lambda: not limit._leases)  # a worker is idle before its lease ends
    now = figures()
    assert (0, 0) == (now.leased_threads, now.waiting_calls)
    assert not limit._queue
    assert len(set(workers._idle)) == len(workers._idle)


class Job:
    """A job that records its thread and its end."""

    given_up = False

    def __init__(self) -> None:
        self.ran_on: list[threading.Thread] = []
        self.errors: list[BaseException] = []
        self.done = threading.Event()

    def run(self) -> None:
        self.ran_on.append(threading.current_thread())

    def report(self) -> None:
        self.done.set()

    def abandon(self, error: BaseException) -> None:
        self.errors.append(error)
        self.done.set()

    def thread(self) -> threading.Thread:
        wait_for(self.done)
        [thread] = self.ran_on
        return thread


class Held:
    """An executor that holds the only thread, which is idle."""

    def __init__(self) -> None:
        self.executor = ContextExecutor()
        finished(self.executor)
        assert 1 == figures().leased_threads

    def end(self) -> None:
        self.executor.shutdown(wait=False)


def post(executor: ContextExecutor | None = None) -> tuple[ContextExecutor, Job]:
    executor, job = executor or ContextExecutor(), Job()
    assert executor.post(job)
    return executor, job


def ends(*executors: ContextExecutor) -> None:
    for executor in executors:
        executor.shutdown()


class Doing:
    """Calls a function once, on the first call."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._functions = [function]

    def __call__(self) -> None:
        if self._functions:
            self._functions.pop()()


# Leases:


def test_two_leases_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """1. A lease is added. 2. A second one is added, looks first, and is not valid. 3. The first one is valid."""

    class Leases(dict[Any, None]):
        def __setitem__(self, lease: Any, value: None) -> None:
            super().__setitem__(lease, value)
            again()

    results: list[Any] = []
    again = Doing(lambda: results.append(limit._try_lease(1)))
    leases = Leases()
    monkeypatch.setattr(limit, "_leases", leases)
    first = limit._try_lease(1)
    assert [None] == results
    assert first is not None
    assert [first] == list(leases)
    first.end()


def test_lease_that_ends_before_the_place_is_in_the_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    """1. A context finds no lease. 2. The thread is released, with an empty queue. 3. The context enters the queue."""
    held = Held()
    stand = ContextExecutor._stand_in_queue

    def stand_late(self: ContextExecutor) -> Any:
        held.end()
        return stand(self)

    monkeypatch.setattr(ContextExecutor, "_stand_in_queue", stand_late)
    executor, job = post()
    job.thread()
    ends(executor)


@pytest.mark.parametrize("before", [True, False])
def test_lease_that_ends_as_the_place_comes(monkeypatch: pytest.MonkeyPatch, before: bool) -> None:
    """1. A context is about to enter the queue, or has just done so.

    2. The thread is released. 3. The context gets it.
    """
    held = Held()

    class Queue(deque[Any]):
        def append(self, place: Any) -> None:
            if before:
                held.end()
            super().append(place)
            if not before:
                held.end()

    monkeypatch.setattr(limit, "_queue", Queue())
    executor, job = post()
    thread = job.thread()
    ends(executor)
    assert thread in idle_workers()


def test_lease_that_ends_when_another_has_been_seen_not_to_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """1. A place is served with a lease that is not valid. 2. The thread is released. 3. The place is served."""
    held = Held()
    holds = Lease.holds
    end = Doing(held.end)

    def holds_not(self: Lease, number: int) -> bool:
        result = holds(self, number)
        if limit._queue:
            end()
        return result

    monkeypatch.setattr(Lease, "holds", holds_not)
    executor, job = post()
    job.thread()
    ends(executor)


def test_place_that_meets_the_lease_of_one_who_serves_an_empty_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lease of a thread that serves an empty queue delays another context for a moment only.

    1. Thread A serves the queue, with a lease. 2. The only place leaves. 3. Another place enters, and its lease is not
    valid. 4. Thread A finds the queue empty, removes its lease, and looks again.
    """
    held = Held()
    gone, given_up = post()
    posted: list[Any] = []

    def meanwhile() -> None:
        given_up.given_up = True
        gone.call_given_up()
        assert not limit._queue
        posted.append(post())
        assert 1 == len(limit._queue)

    class Leases(dict[Any, None]):
        def __setitem__(self, lease: Any, value: None) -> None:
            super().__setitem__(lease, value)
            act()

    act = Doing(meanwhile)
    leases = Leases(limit._leases)
    limit._leases.clear()
    monkeypatch.setattr(limit, "_leases", leases)
    held.end()
    [(executor, job)] = posted
    job.thread()
    ends(executor, gone)


def test_lease_that_a_refused_call_takes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The call delays the queue, and serves it although its own place never enters.

    1. A call adds a lease, because it has not seen the queue. 2. The thread is released, and its queue is not served,
    because that lease is the first one. 3. The block of the call ends. 4. The call removes its lease, and is refused.
    """
    held = Held()
    executor, job = post()
    ended = ContextExecutor()

    class Leases(dict[Any, None]):
        def __setitem__(self, lease: Any, value: None) -> None:
            super().__setitem__(lease, value)
            act()

    def meanwhile() -> None:
        held.end()
        ended.shutdown(wait=False)

    act = Doing(meanwhile)
    leases = Leases(limit._leases)
    limit._leases.clear()
    monkeypatch.setattr(limit, "_leases", leases)
    assert not ended.post(Job())
    job.thread()
    ends(executor)


def test_two_serve_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """1. Thread A sees the first place.

    2. Thread B gives the place a worker. 3. Thread A does not, and ends its lease.
    """
    monkeypatch.setattr(ThreadSensitiveContext, "max_threads", 2)
    one, two = ContextExecutor(), ContextExecutor()
    finished(one)
    finished(two)
    executor, job = post()
    is_wanted = Place.is_wanted
    end = Doing(lambda: one.shutdown(wait=False))

    def wanted(self: Place) -> bool:
        result = is_wanted(self)
        end()
        return result

    monkeypatch.setattr(Place, "is_wanted", wanted)
    two.shutdown(wait=False)
    job.thread()
    assert 1 == figures().leased_threads
    ends(executor)


def test_call_from_below_meets_the_worker_that_its_place_gets(monkeypatch: pytest.MonkeyPatch) -> None:
    """1. A place is to get a thread over the limit. 2. It gets the released one. 3. It gets no second one."""
    held = Held()
    executor, job = post()
    place: Any = executor._worker

    def removed(queue: Any, item: Any) -> bool:
        monkeypatch.setattr(limit, "removed", remove)
        held.end()
        return remove(queue, item)

    monkeypatch.setattr(limit, "removed", removed)
    assert not place.give_over_limit()
    job.thread()
    ends(executor)


def test_thread_over_the_limit_counts() -> None:
    """When the other thread is released, no context in the queue gets it."""
    held = Held()
    executor, job = post()
    place: Any = executor._worker
    assert place.give_over_limit()
    job.thread()
    later, later_job = post()
    held.end()
    assert [later] == [place.executor for place in limit._queue]
    ends(executor)
    later_job.thread()
    ends(later)


def test_worker_that_ends_its_own_lease_serves_the_next_context_itself() -> None:
    """Another thread would be one more than the limit, perhaps with a connection of its own."""
    may_end = threading.Event()
    ending = ContextExecutor()
    worker = ending.submit(threading.current_thread).result(LIMIT)
    ending.submit(wait_for, may_end)
    ending.shutdown(wait=False)
    executor, job = post()
    may_end.set()
    assert worker is job.thread()
    ends(executor)


def test_queue_that_is_emptied_as_it_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    """1. A thread serves the queue, with a lease. 2. The only place leaves. 3. The thread removes its lease again."""
    held = Held()
    gone, given_up = post()

    class Leases(dict[Any, None]):
        def __setitem__(self, lease: Any, value: None) -> None:
            super().__setitem__(lease, value)
            given_up.given_up = True
            gone.call_given_up()

    leases = Leases(limit._leases)
    limit._leases.clear()
    monkeypatch.setattr(limit, "_leases", leases)
    held.end()
    assert not leases
    ends(gone)


# The limit:


def test_thread_of_a_raised_limit_goes_to_the_first_in_the_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing serves the queue when the limit is raised; the next call that needs a thread does, and waits itself."""
    held = Held()
    executor, job = post()
    monkeypatch.setattr(ThreadSensitiveContext, "max_threads", 2)
    later, later_job = post()
    job.thread()
    assert [later] == [place.executor for place in limit._queue]
    held.end()
    later_job.thread()
    ends(executor, later)


@pytest.mark.parametrize("now", [1, 3, None])
def test_limit_that_changes_while_the_queue_is_served(now: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """1. The thread is released, and the limit is read. 2. The limit is another one for the second place."""
    held = Held()
    posted = [post() for _ in range(3)]
    numbers = iter([1, now])
    monkeypatch.setattr(limit, "max_threads", lambda: next(numbers, now))
    held.end()
    count = 1 if now == 1 else 3
    assert count == figures().leased_threads
    for executor, job in posted:
        job.thread()
        executor.shutdown(wait=False)


# Calls and places:


def test_call_that_comes_as_its_place_leaves_the_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    """1. All calls are cancelled, and the place leaves.

    2. A call comes before the place is outside. 3. It is queued.
    """
    held = Held()
    executor, first = post()
    forget = Place._forget_calls
    later: list[Job] = []

    def forget_calls(self: Place, error: Exception | None) -> None:
        forget(self, error)
        if not later:
            later.append(post(executor)[1])

    monkeypatch.setattr(Place, "_forget_calls", forget_calls)
    first.given_up = True
    executor.call_given_up()
    assert 1 == len(limit._queue)
    held.end()
    later[0].thread()
    assert [] == first.ran_on
    ends(executor)


@pytest.mark.parametrize("moved", [False, True])
def test_call_that_comes_as_the_worker_moves_the_calls(moved: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """1. The worker finds no more calls.

    2. A call comes, before or after the worker has recorded that. 3. It runs, in order.
    """
    held = Held()
    executor, first = post()
    place: Any = executor._worker
    order: list[Job] = []
    later: list[Job] = []

    class Noting(Job):
        def run(self) -> None:
            super().run()
            order.append(self)

    class Items(deque[Any]):
        def popleft(self) -> Any:
            try:
                return super().popleft()
            except IndexError:
                if place._moved is moved and not later:
                    for _ in range(2):
                        later.append(Noting())
                        Thread(executor.post, later[-1]).get()
                raise

    place.items = Items(place.items)
    held.end()
    first.thread()
    assert later[1].thread() is later[0].thread() is first.thread()
    assert later == order
    ends(executor)


def test_call_that_has_seen_the_place_when_the_calls_have_been_moved() -> None:
    """1. A post finds the place. 2. The worker moves the calls. 3. The post passes its call to the worker's queue."""
    held = Held()
    executor, first = post()
    place: Any = executor._worker
    held.end()
    first.thread()
    assert executor._worker is place.worker
    job = Job()
    executor.unfinished.append(job)
    place.put((executor, job))
    assert first.thread() is job.thread()
    ends(executor)


def test_call_that_the_worker_has_moved_as_the_thread_looks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """1. A post puts its call into the place. 2. The worker moves the call. 3. The post leaves it to the worker."""
    held = Held()
    executor, first = post()
    place: Any = executor._worker
    held.end()
    first.thread()
    job = Job()
    executor.unfinished.append(job)

    class Items(deque[Any]):
        def append(self, item: Any) -> None:
            place.worker.jobs.put(item)

    place.items = Items()
    place.put((executor, job))
    assert first.thread() is job.thread()
    ends(executor)


def test_call_that_comes_as_others_are_forgotten() -> None:
    """The call is kept, and waits for a thread."""
    held = Held()
    executor, first = post()
    _, second = post(executor)
    first.given_up = True
    place: Any = executor._worker
    assert executor._threads == set()
    place._forget_calls(None)
    assert 1 == len(place.items) == len(executor.unfinished)
    held.end()
    second.thread()
    ends(executor)


def test_call_that_is_cancelled_as_its_place_gets_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """1. The place is removed from the queue. 2. The call is cancelled. 3. The thread is released in the end."""
    held = Held()
    lease = workers._lease

    async def main() -> None:
        async def block() -> None:
            async with ThreadSensitiveContext():
                await sync_to_async(int)()

        def cancelling(*args: Any) -> Any:
            worker = lease(*args)
            task.cancel()
            return worker

        task = asyncio.create_task(block())
        while not figures().waiting_calls:  # noqa: ASYNC110 - nobody sets an event
            await asyncio.sleep(0)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(workers, "_lease", cancelling)
            held.end()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    while figures().leased_threads:
        pass


def test_shutdown_waits_for_calls_in_the_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held()
    executor, job = post()
    waits = [0.0]
    wait = threading.Event.wait
    with pytest.MonkeyPatch.context() as patch:

        def short_at_first(self: threading.Event, timeout: float | None = None) -> bool:
            return wait(self, waits.pop() if waits and timeout == 1 else timeout)

        patch.setattr(threading.Event, "wait", short_at_first)
        waiting = Thread(executor.shutdown)
        while waits:
            pass
    while len(limit._queue[0].items) < 2:  # the call, and an event after it
        pass
    assert waiting.is_alive()
    held.end()
    waiting.get()
    assert job.ran_on


def test_shutdown_that_waits_when_all_calls_are_given_up() -> None:
    held = Held()
    executor, job = post()
    waiting = Thread(executor.shutdown)
    while len(limit._queue[0].items) < 2:
        pass
    job.given_up = True
    executor.call_given_up()
    waiting.get()
    assert executor._worker is None
    held.end()


def test_two_first_posts_at_the_limit_share_one_place() -> None:
    """1. A post finds no worker and makes a place. 2. Another post is faster. 3. Both are in the same place."""
    held = Held()
    executor = ContextExecutor()
    stand = ContextExecutor._stand_in_queue
    jobs: list[Job] = []

    def stand_late(self: ContextExecutor) -> Any:
        if not jobs:
            jobs.append(Job())
            executor.post(jobs[0])
        return stand(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ContextExecutor, "_stand_in_queue", stand_late)
        jobs.append(post(executor)[1])
    assert 1 == len(limit._queue)
    held.end()
    assert jobs[0].thread() is jobs[1].thread()
    ends(executor)


# Threads that cannot be started:


def test_thread_that_cannot_be_started_for_a_place() -> None:
    """The calls get the error, and the next ones are queued again."""
    held = Held()
    executor, job = post()

    def fail(*args: Any) -> Any:
        raise RuntimeError("can't start new thread")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers, "_lease", fail)
        held.end()
    [error] = job.errors
    assert "can't start new thread" == str(error)
    assert not limit._leases
    _, job = post(executor)
    job.thread()
    ends(executor)


def test_thread_that_cannot_be_started_at_once() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers, "_lease", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            post()
    assert not limit._leases


@pytest.mark.parametrize("ended", [False, True])
@pytest.mark.parametrize("waits", [False, True])
def test_calls_after_threads_can_no_longer_be_started_run_in_place(waits: bool, ended: bool) -> None:
    """As at the end of the interpreter."""
    held = Held()
    if not waits:
        held.end()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers, "_lease", lambda *args: None)
        executor, job = post()
        if waits:
            limit._queue[0].items.append(threading.Event())
            if ended:
                executor.shutdown(wait=False)
            held.end()
        assert threading.current_thread() is job.thread()
    ends(executor)
    assert executor._worker is None


class Interrupt(BaseException): ...


def test_interrupt_while_a_place_gets_its_worker() -> None:
    """1. The place is removed from the queue. 2. A signal handler raises. 3. The place is the first one again."""
    held = Held()
    posted = [post() for _ in range(2)]

    def interrupt(*args: Any) -> Any:
        raise Interrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers, "_lease", interrupt)
        with pytest.raises(Interrupt):
            held.end()
    assert [executor for executor, _ in posted] == [place.executor for place in limit._queue]
    assert not limit._leases
    limit._serve_queue()
    for executor, job in posted:
        job.thread()
        executor.shutdown()


def test_interrupt_just_after_a_place_was_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held()
    executor, job = post()

    def removed(queue: Any, item: Any) -> bool:
        remove(queue, item)
        raise Interrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limit, "removed", removed)
        with pytest.raises(Interrupt):
            held.end()
    limit._serve_queue()
    job.thread()
    ends(executor)


@pytest.mark.parametrize("moment", ["removed", "Lease", "Place.give"])
def test_interrupt_while_a_place_gets_a_thread_over_the_limit(moment: str) -> None:
    """Before or after the place is removed from the queue: it is there afterwards, and no lease is left."""
    held = Held()
    executor, job = post()
    place: Any = executor._worker

    def interrupt(*args: Any) -> Any:
        if moment == "removed":
            remove(*args)
        raise Interrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"asgiref._bridge.limit.{moment}", interrupt)
        with pytest.raises(Interrupt):
            place.give_over_limit()
    assert [place] == list(limit._queue)
    held.end()
    job.thread()
    ends(executor)


def test_interrupt_just_after_a_place_got_its_worker() -> None:
    """The worker keeps its lease."""
    held = Held()
    executor, job = post()
    give = Place.give

    def give_and_raise(self: Place, lease: Lease, own: bool = False) -> None:
        give(self, lease, own)
        raise Interrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Place, "give", give_and_raise)
        with pytest.raises(Interrupt):
            held.end()
    assert 1 == len(limit._leases)
    job.thread()
    ends(executor)


def test_place_that_is_in_the_queue_twice_gets_one_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupt may put a place back into the queue while another thread removes it.

    1. Thread A removes the place. 2. Thread B finds it again, and gives it a worker. 3. Thread A does not.
    """
    held = Held()
    executor, job = post()
    limit._queue.append(limit._queue[0])
    monkeypatch.setattr(ThreadSensitiveContext, "max_threads", 2)
    give, thread_b = Place.give, Doing(limit._serve_queue)

    def give_late(self: Place, lease: Lease, own: bool = False) -> None:
        thread_b()
        give(self, lease, own)

    monkeypatch.setattr(Place, "give", give_late)
    held.end()
    assert 1 == figures().leased_threads == len(limit._leases)
    job.thread()
    ends(executor)


def test_interrupt_of_a_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    class Leases(dict[Any, None]):
        def __setitem__(self, lease: Any, value: None) -> None:
            super().__setitem__(lease, value)
            raise Interrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limit, "_leases", Leases())
        with pytest.raises(Interrupt):
            post()
        assert not limit._leases


# Standstill:


def test_two_looks_resolve_one_standstill_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """1. Two loops see one standstill at once. 2. Loop A gives the first place a thread. 3. Loop B does not."""
    monkeypatch.setattr(sync, "thread_standstill", 0.0)
    held = Held()
    posted = [post() for _ in range(2)]
    threads_at_rest = limit._threads_at_rest
    other = Doing(limit._resolve_standstill)

    def at_rest() -> Any:
        threads = threads_at_rest()
        other()
        return threads

    monkeypatch.setattr(limit, "_rest", limit.Rest(threads_at_rest()))
    monkeypatch.setattr(limit, "_threads_at_rest", at_rest)
    limit._resolve_standstill()
    posted[0][1].thread()
    assert 1 == len(limit._queue)
    held.end()
    for executor, job in posted:
        executor.shutdown(wait=False)
        job.thread()


def test_standstill_of_calls_that_nobody_waits_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """1. A check finds the standstill. 2. The only queued call is cancelled. 3. It gets no thread."""
    monkeypatch.setattr(sync, "thread_standstill", 0.0)
    held = Held()
    executor, job = post()
    job.given_up = True
    monkeypatch.setattr(limit, "_rest", limit.Rest(limit._threads_at_rest()))
    limit._resolve_standstill()
    assert 1 == len(limit._leases)
    executor.call_given_up()
    ends(executor)
    held.end()


# The release:


def test_post_that_meets_the_release_goes_to_the_successor() -> None:
    """1. A call has looked up the executor. 2. Another thread releases it. 3. The call goes to the next executor."""

    async def main() -> threading.Thread:
        async with ThreadSensitiveContext():
            await sync_to_async(int)()
            with pytest.MonkeyPatch.context() as patch:
                executors = SyncToAsync._executors

                def releasing(self: Any, loop: Any, args: Any) -> Any:
                    result = iter(executors(self, loop, args))
                    first = next(result)
                    patch.undo()
                    context = contextvars.copy_context()
                    Thread(context.run, lambda: asyncio.run(release_thread())).get()
                    return [first, *result]

                patch.setattr(SyncToAsync, "_executors", releasing)
                return await sync_to_async(threading.current_thread)()

    assert "ThreadSensitiveContext" in asyncio.run(main()).name or True


def released(executor: ContextExecutor) -> ContextExecutor:
    successors: list[ContextExecutor] = []
    executor.release(successors.append)
    [successor] = successors
    return successor


@pytest.mark.parametrize("moment", ["before", "between", "after"])
def test_successor_that_meets_the_end_of_the_executor_before_it(moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker is released before the successor is told to follow, between its two steps, or afterwards."""
    go_on = threading.Event()
    executor = ContextExecutor()
    executor.submit(wait_for, go_on)
    worker: Any = executor._worker
    successor = released(executor)

    def end() -> None:
        go_on.set()
        worker.wait_until_reached()
        assert "_worker" not in executor.__dict__

    if moment == "before":
        end()
    if moment == "between":
        let_follow = ContextExecutor._let_follow

        class Attributes(dict[str, Any]):
            def copy(self) -> Any:
                end()
                return super().copy()

        def follow(self: ContextExecutor, place: Place) -> bool:
            self.__dict__ = Attributes(self.__dict__)
            return let_follow(self, place)

        monkeypatch.setattr(ContextExecutor, "_let_follow", follow)
    _, job = post(successor)
    if moment == "after":
        assert not job.done.is_set()
        assert not limit._queue
        end()
    job.thread()
    ends(successor)


def test_successor_of_an_executor_of_the_parent_process() -> None:
    """The successor does not wait for the executor of the parent process, which has no thread here."""
    executor = ContextExecutor()
    executor._generation = object()
    assert not executor._let_follow(Place(ContextExecutor()))


def test_two_releases_at_once_make_one_successor() -> None:
    """1. A release waits for a pin. 2. Another release is requested. 3. The pin ends, and one release takes effect."""
    executor = ContextExecutor()
    finished(executor)
    executor.pin()
    installed: list[ContextExecutor] = []
    executor.release(installed.append)
    executor.release(installed.append)
    executor.unpin()
    assert 1 == len(installed)
    executor.release(installed.append)
    assert 1 == len(installed)


def test_release_that_meets_the_end_of_the_last_pin() -> None:
    """1. A release sees a pin.

    2. The pin ends, and takes the release with it. 3. The release has nothing left to do.
    """
    executor = ContextExecutor()
    finished(executor)

    class Pins(list[None]):
        def __iter__(self) -> Iterator[None]:
            result = [None] * len(self)
            if self:
                executor.unpin()
            return iter(result)

    executor.pins = Pins([None])
    installed: list[ContextExecutor] = []
    executor.release(installed.append)
    assert 1 == len(installed)
    assert executor._worker is None


def test_release_of_a_context_that_is_gone() -> None:
    executor = ContextExecutor()
    finished(executor)
    context = ThreadSensitiveContext()
    reference = weakref.ref(context)
    del context
    gc.collect()
    executor.release(lambda successor: sync._install_executor(reference, successor))
    assert executor._worker is None


# Garbage, forks and the end:


def test_lease_of_a_block_that_nobody_ends_is_given_back() -> None:
    async def main() -> None:
        await ThreadSensitiveContext().__aenter__()
        await sync_to_async(int)()

    asyncio.run(main())
    collect_until(lambda: not figures().leased_threads)


def test_calls_at_the_limit_leave_no_garbage() -> None:
    async def block(*cancels: bool) -> None:
        async with ThreadSensitiveContext():
            if cancels:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(sync_to_async(int)(), 0.001)
            else:
                await sync_to_async(int)()

    async def release() -> None:
        async with ThreadSensitiveContext():
            for _ in range(2):
                await sync_to_async(int)()
                await release_thread()

    async def main() -> None:
        await asyncio.gather(*[block() for _ in range(3)], *[block(True) for _ in range(3)], release())

    asyncio.run(main())
    with no_garbage():
        asyncio.run(main())


@forks
def test_forked_child_begins_without_leases_and_without_a_queue() -> None:
    code = """
from asgiref._bridge.limit import figures
ThreadSensitiveContext.max_threads = 1
go_on, begun = threading.Event(), threading.Event()
def hold():
    begun.set()
    go_on.wait(20)
async def block(function, *arguments):
    async with ThreadSensitiveContext():
        await sync_to_async(function)(*arguments)
def run(*arguments):
    asyncio.run(block(*arguments))
threads = [threading.Thread(target=run, args=(hold,))]
threads[0].start()
begun.wait(20)
threads.append(threading.Thread(target=run, args=(print, "the parent's call")))
threads[1].start()
while not figures().waiting_calls:
    time.sleep(0.001)
if os.fork() == 0:
    print(figures().leased_threads, figures().waiting_calls, flush=True)
    run(print, "the child's call")
    sys.stdout.flush()
    os._exit(0)
os.wait()
go_on.set()
for thread in threads:
    thread.join()
"""
    assert ["0 0", "the child's call", "the parent's call"] == output_of(code, "-W", "ignore::DeprecationWarning")


@forks
def test_executors_that_hold_wait_or_follow_begin_anew_in_a_forked_child() -> None:
    code = """
from asgiref._bridge.limit import ContextExecutor, figures
ThreadSensitiveContext.max_threads = 1
go_on, begun, successors = threading.Event(), threading.Event(), []
def hold():
    begun.set()
    go_on.wait(20)
holding, waiting = ContextExecutor(), ContextExecutor()
calls = [holding.submit(hold), waiting.submit(print, "the waiting one", flush=True)]
begun.wait(20)
holding.release(successors.append)
calls.append(successors[0].submit(print, "the successor", flush=True))
waiting.release(successors.append)
if os.fork() == 0:
    for executor in successors:
        executor.submit(print, "the child", flush=True).result(10)
        executor.shutdown()
    ContextExecutor().submit(print, "a new one", figures().leased_threads, flush=True).result(10)
    os._exit(0)
os.wait()
go_on.set()
for call in calls:
    call.result(10)
"""
    assert ["the child", "the child", "a new one 0", "the waiting one", "the successor"] == output_of(
        code, "-W", "ignore::DeprecationWarning"
    )


def test_exit_waits_for_calls_in_the_queue() -> None:
    code = """
ThreadSensitiveContext.max_threads = 1
async def block(function, *arguments):
    async with ThreadSensitiveContext():
        await sync_to_async(function)(*arguments)
begun = threading.Event()
def hold():
    begun.set()
    time.sleep(0.2)
async def main():
    tasks = [asyncio.ensure_future(block(hold))]
    tasks += [asyncio.ensure_future(block(print, number)) for number in range(3)]
    await asyncio.gather(*tasks)
threading.Thread(target=asyncio.run, args=(main(),), daemon=True).start()
begun.wait()
atexit.register(lambda: time.sleep(0.5))
"""
    assert ["0", "1", "2"] == output_of(code)


def test_calls_in_atexit_handlers_at_the_limit() -> None:
    code = """
ThreadSensitiveContext.max_threads = 1
async def block(function, *arguments):
    async with ThreadSensitiveContext():
        await sync_to_async(function)(*arguments)
async def main():
    await asyncio.gather(*[block(print, number) for number in range(3)])
atexit.register(lambda: asyncio.run(main()))
"""
    assert ["0", "1", "2"] == output_of(code)
