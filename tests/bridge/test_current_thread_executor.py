"""``CurrentThreadExecutor``: the mailbox that a waiting thread serves."""

from __future__ import annotations

import concurrent.futures
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest

from asgiref import current_thread_executor
from asgiref.current_thread_executor import CurrentThreadExecutor
from asgiref.sync import sync_to_async

from ..helpers import LIMIT, Thread, wait_for


class Job:
    """A fake job, which records what happens to it."""

    def __init__(self, work: Callable[[], None] = lambda: None) -> None:
        self.work = work
        self.ran = self.reported = False
        self.error: BaseException | None = None

    def run(self) -> None:
        self.work()
        self.ran = True

    def report(self) -> None:
        self.reported = True

    def abandon(self, error: BaseException) -> None:
        self.error = error


def serving() -> tuple[CurrentThreadExecutor, concurrent.futures.Future[None], Thread]:
    """Return an executor, the future that ends its service, and the thread that serves it."""
    executors: list[CurrentThreadExecutor] = []
    done: concurrent.futures.Future[None] = concurrent.futures.Future()
    made = threading.Event()

    def serve() -> None:
        executors.append(CurrentThreadExecutor(None))
        made.set()
        executors[0].run_until_future(done)

    thread = Thread(serve)
    wait_for(made)
    return executors[0], done, thread


def test_runs_calls_on_the_serving_thread_in_order() -> None:
    executor, done, thread = serving()
    order: list[int] = []
    for number in range(10):
        executor.submit(order.append, number)
    assert executor.submit(threading.current_thread).result(LIMIT) is thread
    assert list(range(10)) == order
    done.set_result(None)
    thread.get()


def test_exceptions_go_into_the_future() -> None:
    executor, done, thread = serving()
    for error in (LookupError, SystemExit, KeyboardInterrupt):

        def fail(error: type[BaseException] = error) -> None:
            raise error

        with pytest.raises(error):
            executor.submit(fail).result(LIMIT)
    done.set_result(None)
    thread.get()


def test_cancelled_call_is_not_run() -> None:
    executor, done, thread = serving()
    hold = threading.Event()
    first = executor.submit(wait_for, hold)
    second = executor.submit(pytest.fail)
    assert second.cancel()
    hold.set()
    first.result(LIMIT)
    done.set_result(None)
    thread.get()


async def test_call_for_a_thread_that_serves_no_more_is_refused() -> None:
    executor, future, thread = serving()
    future.set_result(None)
    thread.get()
    with pytest.raises(RuntimeError, match="has been shut down"):
        await sync_to_async(int, thread_sensitive=False, executor=executor)()


def test_own_thread_cannot_submit() -> None:
    executor = CurrentThreadExecutor(None)
    with pytest.raises(RuntimeError, match="wait for itself"):
        executor.submit(print)


def test_future_that_is_done_already_ends_the_service() -> None:
    done: concurrent.futures.Future[None] = concurrent.futures.Future()
    done.set_result(None)
    executor = CurrentThreadExecutor(None)
    executor.run_until_future(done)
    with pytest.raises(RuntimeError, match="accepts no more calls"):
        Thread(executor.submit, print).get()


def test_only_the_thread_that_built_it_can_serve() -> None:
    """Another thread is refused at once; afterwards the right thread can still serve."""
    executor = CurrentThreadExecutor(None)
    done: concurrent.futures.Future[None] = concurrent.futures.Future()
    with pytest.raises(RuntimeError, match="can only be called on the thread that built"):
        Thread(executor.run_until_future, done).get()
    call = Thread(executor.submit, threading.get_ident).get()
    done.set_result(None)
    executor.run_until_future(done)
    assert threading.get_ident() == call.result(0)


def test_what_was_accepted_is_run_though_the_service_ends_first() -> None:
    """1. A call is accepted. 2. The service is told to end. 3. The call runs. 4. The next call is refused."""
    executor = CurrentThreadExecutor(None)
    future = Thread(executor.submit, threading.current_thread).get()
    executor.stop()
    executor.serve()
    assert not future.done()
    executor.close()
    assert threading.current_thread() is future.result(0)
    assert not executor.post(Job())


class Jobs(deque[Any]):
    """A queue of jobs that lets another thread act, once, at each of the named places."""

    def __init__(self, **others: Callable[[], Any]) -> None:
        super().__init__()
        self.others = others

    def _let_others(self, place: str) -> None:
        if other := self.others.pop(place, None):
            other()

    def append(self, job: Any) -> None:
        self._let_others("before_append")
        super().append(job)
        self._let_others("after_append")

    def rotate(self, n: int = 1) -> None:
        self._let_others("rotate")
        super().rotate(n)

    def remove(self, job: Any) -> None:
        self._let_others("remove")
        super().remove(job)

    def __getitem__(self, index: Any) -> Any:
        item = super().__getitem__(index)
        self._let_others("got")
        return item


def test_post_that_meets_the_closing_is_run_or_refused() -> None:
    """In either order, no job is lost, and none is both run and refused."""
    # 1. A post sees an open mailbox. 2. The mailbox closes. 3. The post continues, and is refused.
    executor, job = CurrentThreadExecutor(None), Job()
    executor._jobs = Jobs(before_append=executor.close)
    assert not executor.post(job)
    assert not job.ran

    # 1. A job is in the queue. 2. The mailbox closes, and runs the job. 3. The post continues, and was accepted.
    executor, job = CurrentThreadExecutor(None), Job()
    executor._jobs = Jobs(after_append=executor.close)
    assert executor.post(job)
    assert job.ran

    # 1. The mailbox is marked as closed. 2. A post is refused. 3. The closing continues, with nothing to run.
    executor, job, late = CurrentThreadExecutor(None), Job(), Job()
    accepted: list[bool] = []
    executor._jobs = Jobs(rotate=lambda: accepted.append(executor.post(late)))
    executor.close()
    assert [False] == accepted
    assert not late.ran


def test_closing_that_meets_a_post_which_takes_its_job_back() -> None:
    """1. A job is in the queue of a closed mailbox. 2. The closing looks at the job. 3. The post takes the job back."""
    executor, first, second = CurrentThreadExecutor(None), Job(), Job()
    executor.post(first)
    executor.post(second)
    jobs = Jobs(remove=lambda: executor._jobs.remove(first))
    jobs.extend(executor._jobs)
    executor._jobs = jobs
    executor.close()
    assert not first.ran
    assert second.ran

    # The same just before the closing looks at the job.
    class Emptied(Jobs):
        def __getitem__(self, index: Any) -> Any:
            self.clear()
            return super().__getitem__(index)

    executor = CurrentThreadExecutor(None)
    executor._jobs = Emptied()
    executor._jobs.append(first)
    executor.close()
    assert not first.ran


def test_finalizer_posts_on_a_thread_that_is_posting() -> None:
    """1. A thread posts. 2. During that, it runs a finalizer that posts to the same mailbox."""
    executor, job, of_finalizer = CurrentThreadExecutor(None), Job(), Job()
    accepted: list[bool] = []
    executor._jobs = Jobs(after_append=lambda: accepted.append(executor.post(of_finalizer)))
    assert Thread(executor.post, job).get()
    assert [True] == accepted
    executor.close()
    assert job.ran
    assert of_finalizer.ran


def test_interrupted_service_can_be_taken_up_again() -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    executor = CurrentThreadExecutor(None)
    first, second = Job(interrupt), Job()
    executor.post(first)
    executor.post(second)
    with pytest.raises(KeyboardInterrupt):
        executor.serve()
    assert isinstance(first.error, KeyboardInterrupt)
    executor.stop()
    executor.close()
    assert second.ran


def test_interrupt_tells_the_callers_of_what_was_not_run() -> None:
    done: concurrent.futures.Future[None] = concurrent.futures.Future()

    def interrupt() -> None:
        raise KeyboardInterrupt

    executor = CurrentThreadExecutor(None)
    jobs = [Job(interrupt), Job()]
    for job in jobs:
        executor.post(job)
    future = Thread(executor.submit, print).get()
    with pytest.raises(KeyboardInterrupt):
        executor.run_until_future(done)
    assert isinstance(jobs[1].error, RuntimeError)
    with pytest.raises(RuntimeError, match="interrupted"):
        future.result(0)


def test_stop_that_was_noticed_by_an_interrupted_service_still_counts() -> None:
    """1. The service is told to end. 2. It is interrupted. 3. When it is resumed, it ends."""

    def interrupt() -> None:
        executor.stop()
        raise KeyboardInterrupt

    executor = CurrentThreadExecutor(None)
    executor.post(Job(interrupt))
    with pytest.raises(KeyboardInterrupt):
        executor.serve()
    executor.serve()


def test_check_is_asked_while_nothing_comes() -> None:
    answers = [False, False, True]
    executor = CurrentThreadExecutor(None)
    executor.serve(lambda: answers.pop(0))
    assert [] == answers


def test_check_is_asked_however_late_the_thread_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """1. A job comes, which the thread finds without waiting.

    2. The next wait is over before it starts. The check is called.
    """
    monkeypatch.setattr(current_thread_executor, "FIRST_CHECK", 1e-6)
    monkeypatch.setattr(current_thread_executor, "LAST_CHECK", 1e-6)
    executor = CurrentThreadExecutor(None)
    times = iter(range(20_000))

    def check() -> bool:
        executor.post(Job())
        return next(times, None) is None

    Thread(executor.serve, check).get()


def test_finished_executors_are_left_out_of_the_line() -> None:
    outermost = CurrentThreadExecutor(None)
    middle = CurrentThreadExecutor(outermost)
    middle.close()
    assert outermost is CurrentThreadExecutor(middle).outer
    outermost.close()
    assert CurrentThreadExecutor(middle).outer is None
