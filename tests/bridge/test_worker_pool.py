"""The bounded pool of workers: every accepted job is run, by as few threads as are enough."""

from __future__ import annotations

import asyncio
import queue
import sys
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest

from asgiref._bridge import workers
from asgiref._bridge.workers import WorkerExecutor, WorkerPool

from ..helpers import LIMIT, Thread, output_of, wait_for

forks = pytest.mark.skipif(sys.platform == "win32", reason="forks")


def results(futures: list[Future[Any]]) -> list[Any]:
    return [future.result(LIMIT) for future in futures]


def all_free(pool: WorkerPool) -> None:
    """Wait until no worker is leased."""
    done = threading.Event()
    while len(pool._free) < pool._limit:
        done.wait(0.001)


class Slots(list[None]):
    """The free slots of a pool; a function is called just before a slot is taken or released."""

    before_pop: Callable[[], None] | None = None
    before_append: Callable[[], None] | None = None

    def pop(self, index: Any = -1) -> None:
        happening, self.before_pop = self.before_pop, None
        if happening is not None:
            happening()
        return super().pop(index)

    def append(self, item: None) -> None:
        happening, self.before_append = self.before_append, None
        if happening is not None:
            happening()
        super().append(item)


def test_as_many_jobs_at_once_as_the_limit() -> None:
    pool, together = WorkerPool(3), threading.Barrier(3)
    running, peak, lock = 0, 0, threading.Lock()

    def job() -> None:
        nonlocal running, peak
        with lock:
            running += 1
            peak = max(peak, running)
        together.wait(LIMIT)
        with lock:
            running -= 1

    results([pool.submit(job) for _ in range(9)])
    assert 3 == peak


def test_jobs_in_one_go_need_few_threads() -> None:
    """The thread at the queue does all jobs, until the thread that it calls gets there, too."""
    pool, inside, go_on = WorkerPool(40), threading.Event(), threading.Event()

    def hold() -> int:
        inside.set()
        wait_for(go_on)
        return threading.get_ident()

    first = pool.submit(hold)
    wait_for(inside)
    assert pool._coming.acquire(blocking=False)  # as if another worker were coming, slowly
    rest = [pool.submit(threading.get_ident) for _ in range(100)]
    go_on.set()
    assert 1 == len({*results([first]), *results(rest)})
    pool.arrived()


def test_a_job_that_waits_holds_up_nobody() -> None:
    """1. Two jobs come at once. 2. The first waits for the second. 3. Another worker takes the second."""
    pool, second_ran = WorkerPool(2), threading.Event()
    assert pool._coming.acquire(blocking=False)  # both are in the queue before a worker looks
    first, second = pool.submit(wait_for, second_ran), pool.submit(second_ran.set)
    pool.arrived()
    pool._call_worker()
    results([first, second])


def test_job_that_comes_while_a_worker_leaves() -> None:
    """1. The only worker finds the queue empty.

    2. A job comes and finds no free worker. 3. The worker checks once more.
    """
    pool = WorkerPool(1)
    pool._free = slots = Slots(pool._free)
    second: list[Future[int]] = []
    slots.before_append = lambda: second.append(pool.submit(int, 2))
    assert 1 == pool.submit(int, 1).result(LIMIT)
    all_free(pool)
    assert [2] == results(second)


def test_worker_that_leaves_while_another_comes_in_its_place() -> None:
    """1. A worker releases its slot.

    2. A job comes, and with it a new worker. 3. The first one has no slot, and leaves.
    """
    pool = WorkerPool(1)
    pool._free = slots = Slots(pool._free)
    inside, go_on = threading.Event(), threading.Event()
    second: list[Future[None]] = []

    def hold() -> None:
        inside.set()
        wait_for(go_on)

    leaving = False

    class Jobs(deque[Any]):
        def __bool__(self) -> bool:
            nonlocal leaving
            if leaving:  # the worker has released its slot, and checks once more
                leaving = False
                second.append(pool.submit(hold))
                wait_for(inside)
                return True  # the state just before the new worker took the job
            return len(self) > 0

    def leave() -> None:
        nonlocal leaving
        leaving = True

    pool._jobs = Jobs()
    slots.before_append = leave
    first = pool.submit(int, 1)
    assert [1] == results([first])
    wait_for(inside)
    go_on.set()
    results(second)
    all_free(pool)


def test_worker_that_leaves_between_a_failing_look_and_its_end() -> None:
    """1. A post finds no free worker.

    2. The worker leaves. 3. Another post relies on the first one, which checks again.
    """
    pool = WorkerPool(1)
    pool._free = slots = Slots(pool._free)
    holding, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        holding.set()
        wait_for(go_on)

    first = pool.submit(hold)
    wait_for(holding)
    late: list[Future[int]] = []

    class NoneFree(Slots):
        def pop(self, index: Any = -1) -> None:
            pool._free = slots
            go_on.set()
            results([first, second])  # the worker takes the job of this post, too
            all_free(pool)
            late.append(pool.submit(int, 3))
            raise IndexError

    second: Future[int] = Future()

    class Submitted:
        def run(self) -> None:
            second.set_result(2)

        def report(self) -> None: ...
        def abandon(self, error: BaseException) -> None: ...

    pool._free = NoneFree()
    # The worker would append its slot to the list that it sees when it leaves.
    assert pool.post(Submitted())
    assert [3] == results(late)


def test_job_that_comes_just_after_a_worker_arrived() -> None:
    """1. A worker arrives.

    2. Before it looks into the queue, a job comes and calls another worker. 3. Both jobs are run.
    """
    pool = WorkerPool(2)
    second: list[Future[int]] = []
    arrived = pool.arrived

    def arrive() -> None:
        arrived()
        if not second:
            second.append(pool.submit(int, 2))

    pool.arrived = arrive  # type: ignore[method-assign]
    assert [1] == results([pool.submit(int, 1)])
    assert [2] == results(second)


def test_job_for_which_no_thread_can_be_started() -> None:
    pool = WorkerPool(2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers, "_lease", no_thread)
        with pytest.raises(RuntimeError, match="can't start"):
            pool.submit(int, 1)
    assert not pool._jobs
    assert [2, 2] == results([pool.submit(int, 2), pool.submit(int, 2)])


def test_job_for_which_no_second_thread_can_be_started() -> None:
    """The job waits for the existing threads."""
    pool, inside, go_on = WorkerPool(2), threading.Event(), threading.Event()

    def hold() -> None:
        inside.set()
        wait_for(go_on)

    first = pool.submit(hold)
    wait_for(inside)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers, "_lease", no_thread)
        rest = [pool.submit(int, 2), pool.submit(int, 3)]
        go_on.set()
        results([first])
        assert [2, 3] == results(rest)


def no_thread(*args: object) -> None:
    raise RuntimeError("can't start new thread")


def test_job_that_relies_on_a_post_that_fails() -> None:
    """1. A post calls a worker. 2. Another job comes, whose post relies on that. 3. No thread can be started."""
    pool = WorkerPool(2)
    second: list[Future[int]] = []

    def fail(*args: object) -> None:
        second.append(pool.submit(int, 2))
        no_thread()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers, "_lease", fail)
        with pytest.raises(RuntimeError, match="can't start"):
            pool.submit(int, 1)
    with pytest.raises(RuntimeError, match="can't start"):
        results(second)
    assert [3] == results([pool.submit(int, 3)])


def test_job_that_another_takes_from_a_post_that_fails() -> None:
    """1. A post fails. 2. Before it notices, another post fails and abandons both jobs. 3. Only one error is raised."""
    pool = WorkerPool(1)
    abandoned: list[BaseException] = []

    class Abandoned:
        def run(self) -> None: ...
        def report(self) -> None: ...
        def abandon(self, error: BaseException) -> None:
            abandoned.append(error)

    class Abandoning(Slots):
        def append(self, item: None) -> None:
            super().append(item)
            if not abandoned:
                pool._abandon_jobs(RuntimeError("of the other post"), but_for=Abandoned())

    pool._free = Abandoning(pool._free)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers, "_lease", no_thread)
        assert pool.post(Abandoned())
    assert ["of the other post"] == [str(error) for error in abandoned]


@pytest.mark.parametrize("place", ["_lease", "WorkerExecutor.shutdown"])
def test_interrupt_while_a_worker_is_called(place: str) -> None:
    """The interrupt is raised, before or after a worker got the queue.

    No lock stays held, and the number of slots is right.
    """
    pool = WorkerPool(1)

    def interrupt(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"asgiref._bridge.workers.{place}", interrupt)
        with pytest.raises(KeyboardInterrupt):
            pool.submit(int, 1)
    assert [2] == results([pool.submit(int, 2)])
    all_free(pool)
    assert 1 == len(pool._free)


def test_interrupt_just_after_a_worker_was_called_that_has_come() -> None:
    """1. A worker is called. 2. It has come, and has the slot. 3. The caller is interrupted: one slot remains."""
    pool, come = WorkerPool(1), threading.Event()
    run = workers._QueueService.run

    def running(self: Any) -> None:
        run(self)
        come.set()

    def interrupt(*arguments: Any, **options: Any) -> None:
        wait_for(come)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers._QueueService, "run", running)
        patch.setattr(WorkerExecutor, "shutdown", interrupt)
        with pytest.raises(KeyboardInterrupt):
            pool.submit(int, 1)
    all_free(pool)
    assert 1 == len(pool._free)
    assert [2] == results([pool.submit(int, 2)])


def test_interrupt_in_the_midst_of_a_post() -> None:
    """1. A post records that a worker is coming.

    2. It is interrupted before it calls one. 3. The next post calls one.
    """
    pool = WorkerPool(1)
    pool._free = slots = Slots(pool._free)

    def interrupt() -> None:
        raise KeyboardInterrupt

    slots.before_pop = interrupt
    with pytest.raises(KeyboardInterrupt):
        pool.submit(int, 1)
    assert not pool._jobs
    assert [2] == results([pool.submit(int, 2)])


def test_job_that_lets_an_exception_out_stops_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    complaints: queue.SimpleQueue[str] = queue.SimpleQueue()
    monkeypatch.setattr(threading, "excepthook", lambda args: complaints.put(str(args.exc_value)))

    class Bad:
        def run(self) -> None:
            raise LookupError("of run")

        def report(self) -> None:
            raise LookupError("of report")

        def abandon(self, error: BaseException) -> None: ...

    pool, executor = WorkerPool(1), WorkerExecutor()
    for each in (pool, executor):
        assert each.post(Bad())
        assert 1 == each.submit(int, 1).result(LIMIT)
        assert ["of run", "of report"] == [complaints.get(timeout=LIMIT) for _ in range(2)]
    all_free(pool)
    executor.shutdown()


def test_all_jobs_are_run_under_pressure() -> None:
    """Threads that are switched often post jobs; each job is run, and every worker is free in the end."""
    interval = sys.getswitchinterval()
    pool, together = WorkerPool(3), threading.Barrier(4)
    ran: queue.SimpleQueue[int] = queue.SimpleQueue()

    def post() -> None:
        for number in range(300):
            if number % 10 == 0:
                together.wait(LIMIT)
            pool.submit(ran.put, number)

    sys.setswitchinterval(1e-6)
    try:
        threads = [Thread(post) for _ in range(4)]
        for thread in threads:
            thread.get()
        assert sorted([*range(300)] * 4) == sorted(ran.get(timeout=LIMIT) for _ in range(1200))
    finally:
        sys.setswitchinterval(interval)
    all_free(pool)


@forks
def test_forked_child_has_workers_of_its_own() -> None:
    code = """
from asgiref._bridge.workers import WorkerPool
pool, inside, go_on = WorkerPool(1), threading.Event(), threading.Event()
def hold():
    inside.set()
    go_on.wait()
held = pool.submit(hold)
inside.wait()
waiting = pool.submit(print, "the parent's", flush=True)
if os.fork() == 0:
    pool.submit(print, "the child's", flush=True).result(10)
    os._exit(0)
os.wait()
go_on.set()
waiting.result(10)
"""
    assert ["the child's", "the parent's"] == output_of(code, "-W", "ignore::DeprecationWarning")


@pytest.mark.needs_internals
def test_job_after_threads_can_no_longer_be_started_runs_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """As at the end of the interpreter."""
    pool = WorkerPool(1)
    monkeypatch.setattr(workers, "_lease", lambda *args: None)
    assert [threading.get_ident()] * 2 == results([pool.submit(threading.get_ident) for _ in range(2)])

    async def main() -> list[Any]:
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        loop.call_soon(lambda: done.set_result(pool.submit(asyncio._get_running_loop)))  # outside of any task
        return results([await done])

    assert [None] == asyncio.run(main())
    assert 1 == len(pool._free)
