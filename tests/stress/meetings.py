"""Every place where two threads meet, as a round that all CPUs run at once, and that is judged afterwards.

A round ends by itself, and raises ``AssertionError`` for a fault. It finds faults by chance, so a known fault also has
a test elsewhere that forces its schedule.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import gc
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from asgiref import local
from asgiref._bridge import jobs, lending, limit
from asgiref._bridge.jobs import AwaitedOutcome, LoopCall, SubmittedCall
from asgiref._bridge.workers import WorkerExecutor, WorkerPool
from asgiref._wsgi.spool import Spool
from asgiref.current_thread_executor import CurrentThreadExecutor
from asgiref.event_loop import _Mailbox, _Run
from asgiref.local import Local
from asgiref.sync import (
    AsyncSingleThreadContext,
    ThreadSensitiveContext,
    ThreadSensitiveEventLoop,
    ThreadSensitiveMiddleware,
    async_to_sync,
    async_to_sync_context_manager,
    async_to_sync_iterator,
    bridge_calls,
    bridge_statistics,
    check_cancelled,
    release_thread,
    sync_to_async,
    sync_to_async_context_manager,
    sync_to_async_iterator,
)
from asgiref.testing import ApplicationCommunicator
from asgiref.wsgi import WsgiToAsgi

from ..helpers import LIMIT, Thread, thread_call

__all__ = ["MEETINGS"]

# At least two threads meet; twice as many as there are CPUs are switched in the middle of their work.
CPUS = max(2, os.cpu_count() or 1)
THREADS = 2 * CPUS

MEETINGS: list[Callable[[], None]] = []


def meeting(function: Callable[[], None]) -> Callable[[], None]:
    MEETINGS.append(function)
    return function


def at_once(*functions: Callable[[], Any]) -> list[Any]:
    """Call the functions, each on a thread, at the same moment; return their results."""
    barrier = threading.Barrier(len(functions))

    def call(function: Callable[[], Any]) -> Any:
        barrier.wait(LIMIT)
        return function()

    return [thread.get() for thread in [Thread(call, function) for function in functions]]


def races(count: int, make: Callable[[], tuple[Callable[[], Any], ...]], judge: Callable[..., None]) -> None:
    """Let threads race *count* times, and check the results of the functions of each race.

    A thread that is ahead waits for the others in a busy loop: waking it would take longer than the race.
    """
    rounds = [make() for _ in range(count)]
    threads = range(len(rounds[0]))
    at = [-1 for _ in threads]

    def run(own: int) -> list[Any]:
        results = []
        for i, functions in enumerate(rounds):
            at[own] = i
            deadline = time.monotonic() + 0.001  # if there are fewer CPUs than threads
            while min(at) < i and time.monotonic() < deadline:
                pass
            results.append(functions[own]())
        return results

    for results in zip(*at_once(*[functools.partial(run, i) for i in threads]), strict=True):
        judge(*results)


class QuietLoop:
    """A fake loop that never runs."""

    def call_soon_threadsafe(self, callback: Any, *arguments: Any, context: Any = None) -> None: ...

    def get_debug(self) -> bool:
        return False


# Claims:


@meeting
def call_is_run_or_taken_back() -> None:
    runs: list[list[int]] = []

    def make() -> tuple[Callable[[], Any], ...]:
        ran: list[int] = []
        runs.append(ran)
        call = thread_call(QuietLoop(), lambda: ran.append(1))

        def take_back() -> bool:
            try:
                del call._call
            except AttributeError:
                return False
            return True

        return call.run, take_back

    taken: list[bool] = []
    races(500, make, lambda _, back: taken.append(back))
    assert [1 - back for back in taken] == [len(ran) for ran in runs]


@meeting
def coroutine_is_started_or_taken_back() -> None:
    class Task:
        def cancel(self) -> bool:
            return True

    class StartingLoop(QuietLoop):
        def create_task(self, coroutine: Any) -> Any:
            coroutine.close()
            return Task()

    async def nothing() -> None: ...

    made: list[Any] = []

    def make() -> tuple[Callable[[], Any], ...]:
        coroutine = nothing()
        made.append(coroutine)
        outcome: AwaitedOutcome[None] = AwaitedOutcome(lambda: None)
        outcome.call = call = LoopCall(coroutine, contextvars.Context(), outcome)
        loop: Any = StartingLoop()
        return lambda: call.start(loop) is not None, call.take_back, lambda: (outcome.cancel(), outcome.settled)

    def judge(started: bool, back: bool, cancellation: tuple[bool, bool]) -> None:
        cancelled, claimed = cancellation
        assert cancelled
        assert [True] == [won for won in (started, back, claimed) if won]

    races(100, make, judge)
    for coroutine in made:
        coroutine.close()


@meeting
def offered_call_is_run_once() -> None:
    runs: list[list[int]] = []

    def make() -> tuple[Callable[[], Any], ...]:
        ran: list[int] = []
        runs.append(ran)
        offered = lending._OfferedCall(lambda: ran.append(1))
        return offered, offered

    races(100, make, lambda *_: None)
    assert [[1]] * 100 == runs


# Queues:


@meeting
def job_is_accepted_and_run_or_refused() -> None:
    """A lease ends while other threads post."""
    for _ in range(10):
        executor = WorkerExecutor()
        ran: list[int] = []
        calls = [SubmittedCall(ran.append, (i,), {}) for i in range(4 * THREADS)]

        def post(i: int, executor: WorkerExecutor = executor, calls: Any = calls) -> list[Any]:
            return [call.future for call in calls[i::THREADS] if executor.post(call)]

        *accepted, _ = at_once(
            *[functools.partial(post, i) for i in range(THREADS)],
            functools.partial(executor.shutdown, wait=False),
        )
        futures = [future for some in accepted for future in some]
        for future in futures:
            future.result(LIMIT)
        assert len(ran) == len(futures)
        assert executor._worker is None or not executor.shut_down or executor.unfinished


@meeting
def pool_runs_all_jobs_within_its_limit() -> None:
    limit = 3
    pool, free = WorkerPool(limit), threading.Semaphore(limit)

    def job() -> None:
        assert free.acquire(blocking=False), "more workers than the limit"
        free.release()

    def post() -> None:
        for future in [pool.submit(job) for _ in range(50)]:
            future.result(LIMIT)

    at_once(*[post] * THREADS)


@meeting
def mailbox_runs_what_it_accepts() -> None:
    ran: list[int] = []
    made: list[CurrentThreadExecutor] = []
    ready = threading.Event()

    def serve() -> None:
        mailbox = CurrentThreadExecutor(None)
        made.append(mailbox)
        ready.set()
        mailbox.serve()
        mailbox.close()

    server = Thread(serve)
    assert ready.wait(LIMIT)
    [mailbox] = made

    def post() -> int:
        return sum([mailbox.post(SubmittedCall(ran.append, (1,), {})) for _ in range(100)])

    *accepted, _ = at_once(*[post] * CPUS, mailbox.stop)
    server.get()
    assert len(ran) >= sum(accepted)


@meeting
def every_result_reaches_its_loop() -> None:
    missing = [None] * (THREADS * 200)
    arrived = asyncio.Event()

    class Delivery:
        def deliver(self) -> None:
            missing.pop()
            if not missing:
                arrived.set()

    async def main() -> None:
        loop = asyncio.get_running_loop()

        def deliver() -> None:
            for _ in range(200):
                jobs.deliver_on(loop, Delivery())

        threads = [Thread(deliver) for _ in range(THREADS)]
        await asyncio.wait_for(arrived.wait(), LIMIT)
        for thread in threads:
            thread.get()

    asyncio.run(main())


# Calls:


def on_each_thread(main: Callable[[], Coroutine[Any, Any, Any]]) -> None:
    """Run *main* on a new loop in each of many threads."""
    at_once(*[lambda: asyncio.run(main())] * THREADS)


@meeting
def contexts_of_many_loops_share_a_limit() -> None:
    """Calls are cancelled and threads released. The limit is never exceeded, and no thread remains leased."""
    peak: list[int] = []
    busy: list[None] = []
    ran: list[int] = []

    def work(number: int) -> threading.Thread:
        busy.append(None)
        peak.append(len(busy))
        ran.append(number)
        busy.pop()
        return threading.current_thread()

    async def request(number: int) -> int:
        async with ThreadSensitiveContext():
            one, two = await asyncio.gather(*[sync_to_async(work)(number) for _ in range(2)])
            assert one is two
            if number % 3 == 0:
                await release_thread()
                if number % 2:
                    await sync_to_async(work)(number)
            if number % 7 == 0:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(sync_to_async(work)(number), 0.0005)
        return number

    async def main() -> None:
        tasks = [asyncio.create_task(request(number)) for number in range(40)]
        await asyncio.sleep(0)
        for task in tasks[::5]:
            task.cancel()
        done = await asyncio.gather(*tasks, return_exceptions=True)
        others = [result for i, result in enumerate(done) if i % 5]
        assert others == [number for number in range(40) if number % 5]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ThreadSensitiveContext, "max_threads", THREADS - 1)
        at_once(*[lambda: asyncio.run(main())] * THREADS)
        assert max(peak) < THREADS
        deadline = time.monotonic() + LIMIT
        while limit._leases or limit._queue:
            assert time.monotonic() < deadline, (limit.figures().leased_threads, limit.figures().waiting_calls)
            time.sleep(0.001)


@meeting
def limit_changes_while_contexts_wait() -> None:
    """Each call ends, although the limit may change at any moment."""
    done = threading.Event()

    def change() -> None:
        for number in [1, 3, None, 2] * 10_000:
            if done.is_set():
                return
            ThreadSensitiveContext.max_threads = number

    async def request() -> int:
        async with ThreadSensitiveContext():
            await sync_to_async(int)()
            await release_thread()
            return await sync_to_async(int)()

    async def main() -> None:
        assert [0] * 50 == await asyncio.gather(*[request() for _ in range(50)])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ThreadSensitiveContext, "max_threads", 1)
        changing = Thread(change)
        at_once(*[lambda: asyncio.run(main())] * THREADS)
        done.set()
        changing.get()
        ThreadSensitiveContext.max_threads = None
        deadline = time.monotonic() + LIMIT
        while limit._leases or limit._queue:
            assert time.monotonic() < deadline, (limit.figures().leased_threads, limit.figures().waiting_calls)
            time.sleep(0.001)


@meeting
def leases_are_counted_exactly() -> None:
    """Executors start and end at the same moment on all CPUs, and the job of each is run."""
    ran: list[int] = []

    def use(number: int) -> None:
        for _ in range(100):
            executor = limit.ContextExecutor()
            job = executor.submit(ran.append, number)
            executor.shutdown(wait=False)
            job.result(LIMIT)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ThreadSensitiveContext, "max_threads", 1)
        at_once(*[functools.partial(use, number) for number in range(THREADS)])
        assert len(ran) == 100 * THREADS
        deadline = time.monotonic() + LIMIT
        while limit._leases:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        assert not limit._queue


@meeting
def loops_share_the_worker_of_the_process() -> None:
    running = threading.Lock()

    def alone() -> None:
        assert running.acquire(blocking=False), "two at a time"
        running.release()

    async def main() -> None:
        await asyncio.gather(*[sync_to_async(alone)() for _ in range(50)])

    on_each_thread(main)


@meeting
def calls_are_cancelled_at_any_moment() -> None:
    ran: list[int] = []

    async def main() -> None:
        executor = WorkerPool(2)
        for i in range(30):
            calls = [
                asyncio.ensure_future(sync_to_async(ran.append, thread_sensitive=False, executor=executor)(1))
                for _ in range(4)
            ]
            for _ in range(i % 3):
                await asyncio.sleep(0)
            for call in calls[::2]:
                call.cancel()
            for outcome in await asyncio.gather(*calls, return_exceptions=True):
                assert outcome is None or isinstance(outcome, asyncio.CancelledError)

    on_each_thread(main)


@meeting
def inner_calls_are_cancelled_at_any_moment() -> None:
    async def inner() -> int:
        await asyncio.sleep(0)
        return await sync_to_async(lambda: 1)()

    def there() -> int:
        return async_to_sync(inner)()

    async def main() -> None:
        for i in range(20):
            call = asyncio.ensure_future(sync_to_async(there, thread_sensitive=False)())
            for _ in range(i % 6):
                await asyncio.sleep(0)
            call.cancel()
            [outcome] = await asyncio.gather(call, return_exceptions=True)
            assert outcome == 1 or isinstance(outcome, asyncio.CancelledError)

    on_each_thread(main)


@meeting
def functions_ask_while_they_are_cancelled() -> None:
    """The loop records the cancellation while the thread checks; a later call does not see it."""

    def ask_until_told() -> None:
        until = time.monotonic() + LIMIT
        with pytest.raises(asyncio.CancelledError):
            while time.monotonic() < until:
                check_cancelled()
        with pytest.raises(asyncio.CancelledError):
            check_cancelled()

    def ask_late() -> None:
        try:
            check_cancelled()
        except asyncio.CancelledError:
            raise AssertionError("it began after the cancellation") from None

    async def between() -> None:
        try:
            await sync_to_async(ask_until_told, thread_sensitive=False)()
        finally:
            await sync_to_async(ask_late, thread_sensitive=False)()

    async def main() -> None:
        for i in range(10):
            function: Any = ask_until_told if i % 2 else async_to_sync(between)
            call = asyncio.ensure_future(sync_to_async(function, thread_sensitive=False)())
            for _ in range(i % 6):
                await asyncio.sleep(0)
            call.cancel()
            results: Any = await asyncio.gather(call, return_exceptions=True)
            assert isinstance(results[0], asyncio.CancelledError)

    on_each_thread(main)


@meeting
def tokens_are_used_by_later_calls() -> None:
    """On changing threads, in both directions; some calls are cancelled, and may still run when the next one comes."""
    variable = contextvars.ContextVar[int]("variable", default=-1)

    async def begin(value: int) -> contextvars.Token[int]:
        return variable.set(value)

    async def end(token: contextvars.Token[int]) -> None:
        variable.reset(token)

    def both_ways(i: int) -> None:
        token = async_to_sync(begin, force_new_loop=i % 3 == 0)(i)
        assert i == variable.get()
        async_to_sync(end, force_new_loop=i % 2 == 0)(token)
        assert -1 == variable.get()

    async def request(i: int) -> None:
        await sync_to_async(both_ways, thread_sensitive=False)(i)
        token = await sync_to_async(variable.set, thread_sensitive=False)(i)
        look = sync_to_async(variable.get, thread_sensitive=False)
        if i % 4 == 0:
            task = asyncio.current_task()
            assert task is not None
            asyncio.get_running_loop().call_soon(task.cancel)
            with contextlib.suppress(asyncio.CancelledError):
                await look()
                await asyncio.sleep(LIMIT)
            task.uncancel()
        assert i == await look()
        try:
            await sync_to_async(variable.reset, thread_sensitive=False)(token)
        except ValueError:
            assert i % 4 == 0
        else:
            assert -1 == variable.get() == await look()

    async def main() -> None:
        await asyncio.gather(*[request(i) for i in range(12)])

    on_each_thread(main)


@meeting
def values_follow_nested_calls() -> None:
    variable = contextvars.ContextVar[int]("variable")
    storage = Local()

    def change(i: int) -> None:
        assert storage.value == variable.get() == i
        storage.value = i + 1
        variable.set(i + 1)

    async def back(i: int) -> None:
        await sync_to_async(change)(i)
        assert storage.value == variable.get() == i + 1

    async def main() -> None:
        async with ThreadSensitiveContext():
            for i in range(20):
                storage.value = i
                variable.set(i)
                await sync_to_async(async_to_sync(back))(i)
                assert storage.value == variable.get() == i + 1

    on_each_thread(main)


@meeting
def leases_are_counted_while_they_begin_and_end() -> None:
    before = bridge_statistics()
    done: list[None] = []

    async def block() -> None:
        async with ThreadSensitiveContext():
            await sync_to_async(int)()

    async def blocks() -> None:
        for _ in range(5):
            await asyncio.gather(*[block() for _ in range(5)])
        done.append(None)

    def count() -> None:
        end = time.monotonic() + LIMIT
        while len(done) < THREADS and time.monotonic() < end:
            seen = bridge_statistics()
            assert 0 <= seen.running_calls
            assert 0 <= seen.context_threads <= seen.threads_started
            assert 0 == seen.waiting_calls

    at_once(count, *[lambda: asyncio.run(blocks())] * THREADS)
    after = bridge_statistics()
    assert before.context_threads == after.context_threads
    assert before.running_calls == after.running_calls


@meeting
def sockets_release_their_threads_while_they_wait() -> None:
    before = bridge_statistics().context_threads

    async def application(scope: Any, receive: Any, send: Any) -> None:
        running: list[None] = []

        def call() -> None:
            running.append(None)
            assert 1 == len(running)
            running.pop()

        waits = asyncio.create_task(receive())
        for _ in range(5):
            await asyncio.gather(*[sync_to_async(call)() for _ in range(3)])
        await send(None)
        await waits

    async def connect() -> None:
        messages: asyncio.Queue[Any] = asyncio.Queue()
        await ThreadSensitiveMiddleware(application)({"type": "websocket"}, messages.get, messages.put)

    on_each_thread(lambda: asyncio.wait_for(connect(), LIMIT))
    assert before == bridge_statistics().context_threads


@meeting
def top_level_calls_lease_their_loops() -> None:
    async def number(i: int) -> int:
        return await sync_to_async(lambda: i)()

    def calls() -> None:
        assert list(range(20)) == [async_to_sync(number)(i) for i in range(20)]

    at_once(*[calls] * THREADS)


@meeting
def threads_share_a_kept_loop() -> None:
    async def loop() -> Any:
        await sync_to_async(int)()
        return asyncio.get_running_loop()

    with AsyncSingleThreadContext():
        contexts = [contextvars.copy_context() for _ in range(THREADS)]

        def calls(context: contextvars.Context) -> set[Any]:
            return {context.run(async_to_sync(loop)) for _ in range(10)}

        found = at_once(*[functools.partial(calls, context) for context in contexts])
    assert 1 == len(set().union(*found))


@meeting
def blocked_threads_lend_themselves() -> None:
    with ThreadPoolExecutor(2) as executor:

        def there() -> int:
            async def back() -> int:
                return await sync_to_async(lambda: 1, thread_sensitive=False, executor=executor)()

            return async_to_sync(back)()

        async def main() -> None:
            calls = [sync_to_async(there, thread_sensitive=False, executor=executor)() for _ in range(4)]
            assert [1] * 4 == await asyncio.wait_for(asyncio.gather(*calls), LIMIT)

        on_each_thread(main)


@meeting
def loops_share_a_wsgi_adapter() -> None:
    def application(environ: Any, start_response: Any) -> Any:
        assert environ.get("CONTENT_LENGTH") == ("1800000" if environ["PATH_INFO"] == "/collected" else None)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return iter([b"a", b"b"]) if environ["PATH_INFO"] == "/streams" else [b"ab"]

    adapter = WsgiToAsgi(application, threads=3)

    async def request(path: str) -> None:
        scope = {"type": "http", "http_version": "1.1", "method": "GET", "path": path, "headers": []}
        client = ApplicationCommunicator(adapter, scope)
        if path == "/collected":
            for _ in range(3):
                await client.send_input({"type": "http.request", "body": bytes(600_000), "more_body": True})
        await client.send_input({"type": "http.request"})
        assert 200 == (await client.receive_output(LIMIT))["status"]
        body = b""
        while True:
            message = await client.receive_output(LIMIT)
            body += message.get("body", b"")
            if not message.get("more_body", False):
                break
        assert b"ab" == body
        await client.wait(LIMIT)

    async def main() -> None:
        await asyncio.gather(*[request(path) for path in ("/", "/streams", "/collected") * 4])

    on_each_thread(main)


@meeting
def file_of_a_body_is_closed_once() -> None:
    """One thread puts it back while another one ends the request."""
    files: list[list[int]] = []

    def make() -> tuple[Callable[[], Any], ...]:
        closes: list[int] = []
        files.append(closes)
        file: Any = SimpleNamespace(close=lambda: closes.append(1))
        body = Spool(None)
        return functools.partial(body._put_back, file), body.discard

    races(200, make, lambda *_: None)
    deadline = time.monotonic() + LIMIT
    while [] in files:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    assert [[1]] * 200 == files


# Values:


@meeting
def threads_have_values_of_their_own() -> None:
    plain, critical = Local(), Local(thread_critical=True)

    def use(i: int) -> None:
        for storage in plain, critical:
            assert not hasattr(storage, "value")
            for j in range(200):
                storage.value = i, j
                storage.other = j
                assert storage.value == (i, j)
                del storage.other
            del storage.value

    at_once(*[functools.partial(use, i) for i in range(THREADS)])


@meeting
def threads_that_inherit_contexts_have_values_of_their_own() -> None:
    """As with the option of Python 3.14. The class of a ``Local`` is chosen when the ``Local`` is created."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local, "THREADS_INHERIT", True)
        storage = Local()
        storage.value = "of the starter"

        async def back(i: int) -> None:
            assert storage.value == i
            await sync_to_async(setattr)(storage, "value", i + 1)
            assert storage.value == i + 1

        async def main(i: int) -> None:
            async with ThreadSensitiveContext():
                for j in range(i, i + 10):
                    await sync_to_async(async_to_sync(back))(j)
                    assert storage.value == j + 1

        def use(i: int) -> None:
            assert not hasattr(storage, "value")
            storage.value = i
            asyncio.run(main(i))
            assert storage.value == i
            for j in range(200):
                storage.value = j
                assert storage.value == j

        def start(context: contextvars.Context, i: int) -> None:
            context.run(use, 100 * i)

        at_once(*[functools.partial(start, contextvars.copy_context(), i) for i in range(THREADS)])
        assert "of the starter" == storage.value
        del storage.value


@meeting
def calls_are_looked_at_meanwhile() -> None:
    stop = threading.Event()

    async def back() -> None:
        await asyncio.gather(*[sync_to_async(int, thread_sensitive=i % 2 == 0)() for i in range(5)])

    def bridge() -> None:
        while not stop.is_set():
            async_to_sync(back)()

    def look() -> None:
        try:
            for _ in range(5):
                for call in bridge_calls():
                    assert str(call)
        finally:
            stop.set()

    at_once(*[bridge] * CPUS, look)


# Loops that leave the calling thread free:


@meeting
def run_of_a_loop_begins_or_is_taken_back() -> None:
    began: list[list[int]] = []

    def make() -> tuple[Callable[[], Any], ...]:
        runs: list[int] = []
        began.append(runs)
        loop: Any = QuietLoop()
        run = _Run(loop, lambda: runs.append(1), _Mailbox())
        return run.run, run.stop

    stopped: list[bool] = []
    races(500, make, lambda _, stop: stopped.append(stop))
    assert stopped == [bool(runs) for runs in began]


@meeting
def threads_run_loops_of_their_own() -> None:
    where = sync_to_async(threading.get_ident)

    async def main() -> set[int]:
        nested = sync_to_async(async_to_sync(where))
        anywhere = sync_to_async(async_to_sync(where), thread_sensitive=False)
        *here, elsewhere = await asyncio.gather(*[where() for _ in range(10)], nested(), nested(), anywhere())
        assert elsewhere not in here
        return set(here)

    def run() -> bool:
        with asyncio.Runner(loop_factory=ThreadSensitiveEventLoop) as runner:
            return runner.run(main()) == {threading.get_ident()}

    assert all(at_once(*[run] * THREADS))


@meeting
def threads_compete_for_a_loop() -> None:
    """One thread at a time runs it; the others get an error."""
    loop = ThreadSensitiveEventLoop()
    running = threading.Lock()

    def stop_often() -> None:
        assert running.acquire(blocking=False), "two at a time"
        running.release()
        loop.stop()
        loop.call_later(0.0001, stop_often)

    def run() -> int:
        runs = 0
        for _ in range(20):
            try:
                loop.run_forever()
                runs += 1
            except RuntimeError as error:
                assert str(error) == "This event loop is already running"
        return runs

    stop_often()
    assert sum(at_once(*[run] * THREADS)) >= 1
    loop.close()


@meeting
def errands_go_between_jobs() -> None:
    """Each caller of an errand continues, although some jobs wait for that caller."""
    mailbox = _Mailbox()
    done: list[int] = []

    def serve() -> None:
        mailbox.owner = threading.get_ident()
        mailbox.serve()
        mailbox.close()

    def call(number: int) -> None:
        for _ in range(50):
            over = threading.Event()
            job = mailbox.submit(over.wait, LIMIT)
            mailbox.run_errand(functools.partial(done.append, number))
            over.set()
            assert job.result(LIMIT)

    server = Thread(serve)
    at_once(*[functools.partial(call, number) for number in range(THREADS)])
    mailbox.stop()
    server.get()
    assert all(done.count(number) >= 50 for number in range(THREADS))


# Several calls:


async def _numbers(count: int, ends: list[int]) -> AsyncIterator[int]:
    try:
        for i in range(count):
            if i % 3 == 0:
                await asyncio.sleep(0)
            yield i
    finally:
        ends.append(1)


@meeting
def iterations_share_a_kept_loop() -> None:
    """Threads take items, with read-ahead or without, and close and drop iterators, all on one loop."""
    ends: list[int] = []
    with AsyncSingleThreadContext():
        contexts = [contextvars.copy_context() for _ in range(THREADS)]

        def iterate(own: int) -> None:
            for i in range(10):
                items = async_to_sync_iterator(_numbers(20, ends), read_ahead=(own + i) % 4)
                if i % 3 == 0:
                    assert [*range(20)] == [*items]
                else:
                    assert [*range(i)] == [next(items) for _ in range(i)]
                if i % 3 == 1:
                    items.close()

        at_once(
            *[functools.partial(context.run, functools.partial(iterate, own)) for own, context in enumerate(contexts)]
        )
        _until(lambda: len(ends) == 10 * THREADS)


@meeting
def iterators_are_dropped_and_cancelled_at_any_moment() -> None:
    """A thread drops an iterator whose task reads ahead; another thread cancels that task at the same time."""
    ends: list[int] = []
    tasks: list[Any] = []

    async def numbers() -> AsyncIterator[int]:
        tasks.append(asyncio.current_task())
        async for i in _numbers(50, ends):
            yield i

    def make() -> tuple[Callable[[], Any], ...]:
        items = [async_to_sync_iterator(numbers(), read_ahead=8)]
        next(items[0])
        task = tasks.pop()
        loop = task.get_loop()

        def cancel() -> None:
            try:
                loop.call_soon_threadsafe(task.cancel)
            except RuntimeError:  # the loop has ended
                pass

        return items.clear, cancel

    races(20, make, lambda *_: None)
    _until(lambda: len(ends) == 20)


@meeting
def steps_and_cancellations_meet() -> None:
    """A thread requests items, or closes, while another thread cancels the task: no hang, and nothing is lost."""
    ends: list[int] = []
    tasks: list[Any] = []

    async def numbers() -> AsyncIterator[int]:
        tasks.append(asyncio.current_task())
        async for i in _numbers(1000, ends):
            yield i

    def make() -> tuple[Callable[[], Any], ...]:
        items = async_to_sync_iterator(numbers(), read_ahead=len(ends) % 3)
        next(items)
        task = tasks.pop()
        loop = task.get_loop()

        def take() -> list[int]:
            taken = []
            try:
                for _ in range(20):
                    taken.append(next(items))
            except (asyncio.CancelledError, StopIteration):
                assert [] == [*items]
            items.close()
            return taken

        def cancel() -> None:
            try:
                loop.call_soon_threadsafe(task.cancel)
            except RuntimeError:  # the loop has ended
                pass

        return take, cancel

    def judge(taken: list[int], _: None) -> None:
        assert [*range(1, len(taken) + 1)] == taken

    races(20, make, judge)
    assert 20 == len(ends)


@meeting
def iterations_in_tasks_share_the_worker_of_the_process() -> None:
    """The other direction: items, closed and dropped iterators, and cancelled steps, on loops in many threads."""
    ends: list[int] = []

    def numbers() -> Iterator[int]:
        try:
            yield from range(10)
        finally:
            ends.append(1)

    async def iterate(kind: int) -> None:
        items = sync_to_async_iterator(numbers(), thread_sensitive=kind % 2 == 0)
        assert 0 == await anext(items)
        if kind % 4 == 0:
            assert [*range(1, 10)] == [item async for item in items]
        elif kind % 4 == 1:
            await items.aclose()
        elif kind % 4 == 2:
            task = asyncio.ensure_future(anext(items))
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])

    async def main() -> None:
        await asyncio.gather(*[iterate(kind) for kind in range(20)])

    on_each_thread(main)
    _until(lambda: len(ends) == 20 * THREADS)


@meeting
def managers_are_entered_at_once() -> None:
    """Both directions, one manager for all threads, half of the blocks with an exception."""
    left: list[BaseException | None] = []

    class Both:
        def __enter__(self) -> None: ...

        def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> bool:
            left.append(error)
            return True

        async def __aenter__(self) -> None:
            await asyncio.sleep(0)

        async def __aexit__(self, kind: Any, error: BaseException | None, traceback: Any) -> bool:
            await asyncio.sleep(0)
            return self.__exit__(kind, error, traceback)

    to_sync, to_async = async_to_sync_context_manager(Both()), sync_to_async_context_manager(Both())

    async def enter_in_task(fails: int) -> None:
        async with to_async:
            if fails:
                raise LookupError

    async def main() -> None:
        await asyncio.gather(*[enter_in_task(i % 2) for i in range(10)])

    def enter() -> None:
        for i in range(5):
            with to_sync:
                async_to_sync(asyncio.sleep)(0)
                if i % 2:
                    raise LookupError
        asyncio.run(main())

    at_once(*[enter] * THREADS)
    assert 15 * THREADS == len(left)
    assert 7 * THREADS == len([error for error in left if isinstance(error, LookupError)])


@meeting
def managers_are_cancelled_as_they_are_left() -> None:
    """A thread leaves the block while another one cancels the task: the manager is left once."""
    left: list[int] = []

    class Manager:
        task: Any

        async def __aenter__(self) -> Manager:
            self.task = asyncio.current_task()
            return self

        async def __aexit__(self, *reason: Any) -> None:
            left.append(1)  # the cancellation may come at the next line
            await asyncio.sleep(0)

    def make() -> tuple[Callable[[], Any], ...]:
        context = contextvars.Context()
        bridged = async_to_sync_context_manager(Manager())
        task = context.run(bridged.__enter__).task
        loop = task.get_loop()

        def leave() -> None:
            try:
                context.run(bridged.__exit__, None, None, None)
            except asyncio.CancelledError:
                pass

        def cancel() -> None:
            try:
                loop.call_soon_threadsafe(task.cancel)
            except RuntimeError:  # the loop has ended
                pass

        return leave, cancel

    races(20, make, lambda *_: None)
    assert 20 == len(left)


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline
        gc.collect()
        time.sleep(0.001)
