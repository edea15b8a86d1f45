"""Running such a loop is like running any other: errors, the end, tracebacks, and code that builds on it."""

from __future__ import annotations

import asyncio
import gc
import io
import os
import sys
import threading
import traceback
import unittest
import weakref
from collections.abc import AsyncIterator
from typing import Any

import pytest

from asgiref._bridge import greenlets, workers
from asgiref.sync import (
    AsyncToSync,
    ThreadSensitiveEventLoop,
    async_to_sync,
    bridge_calls,
    print_bridge_calls,
    sync_to_async,
    thread_sensitive_loop_factory,
)

from ..conftest import LOOP_FACTORIES, LoopFactory
from ..helpers import LIMIT, Thread, collect_until, no_garbage, output_of, wait_for
from .loops import UsersLoop, every_loop, run

where = sync_to_async(threading.get_ident)


class Oops(Exception):
    pass


@every_loop
def test_results_and_exceptions(factory: LoopFactory) -> None:
    async def main() -> None:
        task = asyncio.current_task()
        assert task is not None
        assert task in asyncio.all_tasks()
        assert asyncio.get_running_loop().is_running()
        await sync_to_async(int)()
        assert task is asyncio.current_task()
        raise Oops

    loop = factory()
    with pytest.raises(Oops):
        loop.run_until_complete(main())
    assert not loop.is_running()
    assert 3 == loop.run_until_complete(asyncio.sleep(0, 3))
    loop.close()
    loop.close()
    assert loop.is_closed()


@every_loop
def test_loop_that_runs_cannot_be_run(factory: LoopFactory) -> None:
    """Neither from its own thread, nor from the thread that waits for it, nor from another one."""

    def run_again() -> str:
        with pytest.raises(RuntimeError) as caught:
            loop.run_forever()
        return str(caught.value)

    async def main() -> list[str]:
        in_pool = sync_to_async(run_again, thread_sensitive=False)
        return [run_again(), await sync_to_async(run_again)(), await in_pool()]

    with asyncio.Runner(loop_factory=factory) as runner:
        loop = runner.get_loop()
        errors = runner.run(main())
    assert ["This event loop is already running"] * 3 == errors
    with pytest.raises(RuntimeError, match="closed"):
        loop.run_forever()


@every_loop
def test_thread_on_which_a_loop_runs_cannot_run_it(factory: LoopFactory) -> None:
    async def main() -> None:
        loop = factory()
        with pytest.raises(RuntimeError, match="while another loop is running"):
            loop.run_forever()
        loop.close()

    asyncio.run(main())


@every_loop
def test_refused_under_gevent(factory: LoopFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = factory()
    monkeypatch.setattr(greenlets, "is_patched", lambda module: module == "threading")
    with pytest.raises(RuntimeError, match="under gevent's monkey patch"):
        loop.run_forever()
    monkeypatch.undo()
    loop.close()


def test_two_threads_that_run_a_loop_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """1. Both threads see that the loop is not running. 2. Thread A runs it. 3. Thread B gets an error."""
    loop = ThreadSensitiveEventLoop()
    both = threading.Barrier(2, timeout=LIMIT)

    class Mailboxes(dict[Any, Any]):
        def setdefault(self, key: Any, value: Any = None) -> Any:
            both.wait()
            return super().setdefault(key, value)

    monkeypatch.setattr(AsyncToSync, "loop_thread_executors", Mailboxes())

    def call() -> str:
        try:
            loop.run_forever()
        except RuntimeError as error:
            loop.call_soon_threadsafe(loop.stop)
            return str(error)
        return "ran"

    threads = [Thread(call), Thread(call)]
    assert {"ran", "This event loop is already running"} == {thread.get() for thread in threads}
    assert {} == AsyncToSync.loop_thread_executors
    loop.close()


@every_loop
def test_stop(factory: LoopFactory) -> None:
    """``stop`` ends the run wherever it is called: before, in a callback, in a task, from another thread."""
    loop = factory()
    loop.call_soon(loop.stop)
    loop.run_forever()
    loop.stop()
    loop.run_forever()
    threading.Timer(0.001, loop.call_soon_threadsafe, [loop.stop]).start()
    loop.run_forever()

    async def main() -> str:
        asyncio.get_running_loop().stop()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return "continues"

    task = loop.create_task(main())
    with pytest.raises(RuntimeError, match="stopped before Future completed"):
        loop.run_until_complete(task)
    assert "continues" == loop.run_until_complete(task)
    loop.close()


@every_loop
def test_job_accepted_before_the_stop_is_run(factory: LoopFactory) -> None:
    """A call blocks the thread, another call is queued, and the loop stops meanwhile."""
    loop = factory()
    stopped = threading.Event()
    ran: list[str] = []

    def stop() -> None:
        loop.stop()
        stopped.set()

    def hold() -> None:
        loop.call_soon_threadsafe(stop)
        wait_for(stopped)
        ran.append("first")

    async def main() -> None:
        await asyncio.gather(sync_to_async(hold)(), sync_to_async(ran.append)("second"))

    task = loop.create_task(main())
    with pytest.raises(RuntimeError, match="stopped before"):
        loop.run_until_complete(task)
    assert ["first", "second"] == ran
    loop.run_until_complete(task)
    loop.close()


@every_loop
def test_thread_that_waits_for_the_loop_that_it_stopped_to_run(factory: LoopFactory) -> None:
    """No other code can run the loop again, so its coroutine fails at once, and is cancelled when the loop ends."""
    seen: list[str] = []

    async def forever() -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            seen.append("cancelled")

    def wait() -> None:
        with pytest.raises(RuntimeError, match="was stopped or closed"):
            async_to_sync(forever)()
        seen.append("failed")
        assert "result" == async_to_sync(asyncio.sleep)(0, "result")  # on another loop

    async def main() -> asyncio.Task[None]:
        task = asyncio.create_task(sync_to_async(wait)())
        await asyncio.wait_for(began.wait(), LIMIT)
        return task

    began = asyncio.Event()
    with asyncio.Runner(loop_factory=factory) as runner:
        task = runner.run(main())
        assert ["failed"] == seen
    assert ["failed", "cancelled"] == seen
    assert task.done()


@every_loop
def test_exits_go_through(factory: LoopFactory) -> None:
    """SystemExit and KeyboardInterrupt of a task, or of synchronous code below it; the loop can be run again."""
    loop = factory()

    def leave(error: BaseException) -> None:
        raise error

    async def main(error: BaseException, in_sync_code: bool) -> None:
        if in_sync_code:
            await sync_to_async(leave)(error)
        leave(error)

    for kind in (SystemExit, KeyboardInterrupt):
        for in_sync_code in (False, True):
            error = kind("why")
            with pytest.raises(kind) as caught:
                loop.run_until_complete(main(error, in_sync_code))
            assert error is caught.value
            assert threading.get_ident() == loop.run_until_complete(where())
    loop.close()


@every_loop
def test_asynchronous_generators_end_with_the_loop(factory: LoopFactory) -> None:
    ended = []
    kept = []

    async def generator() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            ended.append(await where())
            one_ended.set()

    one_ended = asyncio.Event()

    async def main() -> None:
        kept.append(generator())
        await anext(kept[0])
        async for _ in generator():
            break
        gc.collect()
        await asyncio.wait_for(one_ended.wait(), LIMIT)

    run(factory, main)
    assert [threading.get_ident()] * 2 == ended


@every_loop
def test_default_executor_and_callbacks_end_with_the_loop(factory: LoopFactory) -> None:
    """Work that remains when the main task ends is done, as with the loop's own class."""
    seen: list[Any] = []

    async def main() -> None:
        loop: Any = asyncio.get_running_loop()
        await asyncio.to_thread(int)
        loop.call_later(0, seen.append, "later")
        task = asyncio.create_task(cleaning_up())
        await asyncio.sleep(0)
        loop.call_soon(loop.call_soon, loop.call_soon, loop.call_soon, seen.append, "soon")
        tasks.add(task)

    async def cleaning_up() -> None:
        try:
            await asyncio.sleep(LIMIT)
        finally:
            seen.append(await where())

    tasks: set[asyncio.Task[None]] = set()
    run(factory, main)
    assert {threading.get_ident(), "later", "soon"} == set(seen)


@pytest.mark.parametrize("what", ["timer", "callback", "socket", "closed", "elsewhere"])
def test_shutting_down_runs_a_loop_that_has_something_to_do(what: str) -> None:
    import socket

    loop = ThreadSensitiveEventLoop()
    left, right = socket.socketpair()
    with left, right:
        for end in (left, right):
            end.setblocking(False)
        seen: list[str] = []
        if what == "timer":
            loop.call_later(0, seen.append, what)
        elif what == "callback":
            loop.call_soon(seen.append, what)
        elif what == "socket":
            right.send(b"x")
            loop.add_reader(left, lambda: seen.append(str(left.recv(1) and "socket")))
        elif what == "closed":
            loop.close()
            shut_down = loop.shutdown_asyncgens()
            with pytest.raises(RuntimeError, match="closed"):
                loop.run_until_complete(shut_down)
            shut_down.close()
            return
        else:

            async def main() -> None:
                shut_down = loop.shutdown_asyncgens()
                with pytest.raises(RuntimeError):
                    loop.run_until_complete(shut_down)
                shut_down.close()
                seen.append(what)

            asyncio.run(main())
        if what != "elsewhere":
            loop.run_until_complete(loop.shutdown_asyncgens())
        assert [what] == seen
        loop.run_until_complete(loop.shutdown_default_executor())
        if what == "socket":
            loop.remove_reader(left)
        loop.close()


@every_loop
def test_child_processes(factory: LoopFactory) -> None:
    async def main() -> Any:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", "print(input())", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        output, _ = await asyncio.wait_for(process.communicate(b"hello\n"), LIMIT)
        return output.split(), process.returncode

    assert ([b"hello"], 0) == run(factory, main)


def test_eager_and_users_tasks() -> None:
    """Task factories stay, and so do methods of a user's class."""
    loop = thread_sensitive_loop_factory(UsersLoop)()
    assert isinstance(loop, UsersLoop)
    assert "_UsersTask" == type(loop.create_task(asyncio.sleep(0))).__name__
    loop.run_until_complete(where())
    assert 1 == loop.runs
    loop.close()


def test_factory_leaves_a_thread_sensitive_loop_as_it_is() -> None:
    loop = thread_sensitive_loop_factory(ThreadSensitiveEventLoop)()
    assert type(loop) is ThreadSensitiveEventLoop
    loop.close()


def test_factory_makes_one_class_of_each() -> None:
    loops = [thread_sensitive_loop_factory(UsersLoop)() for _ in range(2)]
    assert type(loops[0]) is type(loops[1])
    assert ("ThreadSensitiveUsersLoop", UsersLoop.__module__) == (type(loops[0]).__name__, type(loops[0]).__module__)
    for loop in loops:
        loop.close()


def test_factory_refuses_what_it_cannot_change() -> None:
    class Fixed:
        __slots__ = ()

    with pytest.raises(TypeError):
        thread_sensitive_loop_factory(Fixed)()  # type: ignore[type-var]


def frames_of(factory: LoopFactory, error: BaseException) -> list[tuple[str, Any]]:
    async def main() -> None:
        raise error

    try:
        run(factory, main)
    except BaseException as caught:
        return [
            (frame.f_code.co_qualname, frame.f_locals.get("__traceback_hide__"))
            for frame, _ in traceback.walk_tb(caught.__traceback__)
        ]
    raise AssertionError


@pytest.mark.parametrize("kind", [Oops, KeyboardInterrupt])
@pytest.mark.parametrize("name", LOOP_FACTORIES)
def test_tracebacks_have_two_more_frames_at_most(name: str, kind: type[BaseException]) -> None:
    factory = LOOP_FACTORIES[name]
    plain = frames_of(factory, kind())
    ours = frames_of(thread_sensitive_loop_factory(factory), kind())
    own = [frame for frame in ours if frame[0].startswith("_ThreadSensitive.")]
    assert {True} == {hidden for _, hidden in own}
    # Instead of the method of the loop, if the loop is not written in C.
    assert [frame for frame in ours if frame not in own] == [
        frame for frame in plain if "run_until_complete" not in frame[0]
    ]
    assert len(ours) <= len(plain) + 2


def test_nothing_outlives_the_loop() -> None:
    """If the run succeeds: an exception that a run raises refers to itself with any loop."""

    async def main() -> None:
        await sync_to_async(async_to_sync(where))()

    run(ThreadSensitiveEventLoop, main)
    with no_garbage():
        run(ThreadSensitiveEventLoop, main)


def test_loop_that_nobody_closed_gives_its_worker_back() -> None:
    def call() -> weakref.ref[Any]:
        loop: Any = ThreadSensitiveEventLoop()
        loop.itself = loop  # so that only the collector frees it
        loop.run_until_complete(where())
        workers_before.update(workers._idle)
        return weakref.ref(loop)

    workers_before: set[Any] = set()
    reference = call()
    with pytest.warns(ResourceWarning) as warnings:
        collect_until(lambda: len(warnings))
    warnings.clear()  # the warning referred to the loop
    collect_until(lambda: reference() is None)
    assert set(workers._idle) - workers_before


def test_worker_is_named_for_the_loop_and_goes_back() -> None:
    async def name() -> str:
        return threading.current_thread().name

    loop = ThreadSensitiveEventLoop()
    assert "ThreadSensitiveEventLoop" in loop.run_until_complete(name())
    busy = {worker.thread.name for worker in workers._workers - set(workers._idle)}
    assert any("ThreadSensitiveEventLoop" in name for name in busy)
    loop.close()
    busy = {worker.thread.name for worker in workers._workers - set(workers._idle)}
    assert not any("ThreadSensitiveEventLoop" in name for name in busy)


def test_loop_is_closed_by_another_thread_as_its_run_begins() -> None:
    """1. The run finds the loop open, and has its worker.

    2. Another thread closes the loop. 3. The run starts there.
    """

    def post(job: Any) -> bool:
        Thread(loop.close).get()
        return post_it(job)  # type: ignore[no-any-return]

    loop: Any = ThreadSensitiveEventLoop()
    lease = loop._ThreadSensitive__leased()
    post_it, lease.post = lease.post, post
    with pytest.raises(RuntimeError, match=r"^Event loop is closed$"):
        Thread(loop.run_forever).get()
    assert loop not in AsyncToSync.loop_thread_executors


def test_finalizer_on_the_worker_between_two_runs() -> None:
    """It may create a task and run the loop: the worker does not wait for itself."""

    async def main() -> int:
        return await sync_to_async(threading.get_ident)()

    loop: Any = ThreadSensitiveEventLoop()
    loop.run_until_complete(main())
    on_worker = loop._ThreadSensitive__leased().submit
    worker = on_worker(threading.get_ident).result(LIMIT)
    assert worker == on_worker(lambda: loop.run_until_complete(main())).result(LIMIT)
    task = on_worker(lambda: loop.create_task(main())).result(LIMIT)
    assert threading.get_ident() == loop.run_until_complete(task) != worker
    loop.close()


@every_loop
def test_bridge_calls_show_it(factory: LoopFactory) -> None:
    def look() -> Any:
        file = io.StringIO()
        print_bridge_calls(file)
        return bridge_calls(), file.getvalue()

    async def inner() -> Any:
        return await sync_to_async(look)()

    async def main() -> Any:
        return (*await sync_to_async(async_to_sync(inner))(), threading.current_thread().name, loop_name)

    loop_name = ""
    with asyncio.Runner(loop_factory=factory) as runner:
        loop_name = type(runner.get_loop()).__qualname__
        calls, text, loop_thread, loop_name = runner.run(main())
    here = threading.current_thread().name
    assert ["sync_to_async", "async_to_sync", "sync_to_async"] == [call.direction for call in calls]
    assert [here, loop_thread, here] == [call.working_thread for call in calls]
    assert [loop_thread, here, loop_thread] == [call.waiting_thread for call in calls]
    assert f"of the {loop_name} of thread {loop_thread!r} waits" in text


@every_loop
def test_reports_below_a_runner_of_another_loop(factory: LoopFactory) -> None:
    """A plain loop on a thread that waits for such a loop is reported separately."""

    async def inner() -> Any:
        return await sync_to_async(bridge_calls, thread_sensitive=False)()

    async def main() -> Any:
        return await sync_to_async(asyncio.run)(inner()), threading.current_thread().name

    calls, loop_thread = run(factory, main)
    here = threading.current_thread().name
    assert [loop_thread, here] == [call.waiting_thread for call in calls]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@every_loop
def test_forked_child_runs_a_loop_of_its_own(factory: LoopFactory) -> None:
    """With the fork in synchronous code, which is on the waiting thread, or in a coroutine."""

    def in_child() -> bool:
        return bool(run(factory, where) == threading.get_ident())

    def fork() -> int:
        pid = os.fork()
        if not pid:
            status = 1
            try:
                status = 0 if in_child() else 2
            finally:
                os._exit(status)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    async def main() -> tuple[int, int]:
        in_sync_code = await sync_to_async(fork)()
        return in_sync_code, fork() if asyncio.get_running_loop().__module__ == "asgiref.event_loop" else 0

    assert (0, 0) == run(factory, main)


AT_EXIT = """
def where():
    return threading.current_thread() is threading.main_thread()
async def inner():
    return await sync_to_async(where)()
async def main():
    return await sync_to_async(where)(), await sync_to_async(async_to_sync(inner))()
def late():
    loop = ThreadSensitiveEventLoop()
    print(*loop.run_until_complete(main()))
    loop.add_signal_handler(signal.SIGTERM, loop.stop)
    loop.call_soon(signal.raise_signal, signal.SIGTERM)
    loop.run_forever()
    loop.close()
    try:
        loop.run_forever()
    except RuntimeError as error:
        print(error)
atexit.register(late)
"""


@pytest.mark.slow
@pytest.mark.parametrize("used_before", [False, True])
def test_in_an_atexit_handler(used_before: bool) -> None:
    """When Python no longer starts threads, and none is idle, the thread runs the loop itself."""
    before = "loop = ThreadSensitiveEventLoop()\nloop.run_until_complete(main())\nloop.close()"
    assert ["True True", "Event loop is closed"] == output_of(AT_EXIT + before * used_before)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="asyncio.run takes no loop factory")
def test_asyncio_run() -> None:
    options: Any = {"loop_factory": ThreadSensitiveEventLoop}
    assert threading.get_ident() == asyncio.run(where(), **options)
    assert threading.get_ident() == asyncio.run(where(), debug=True, **options)


def test_isolated_asyncio_test_case() -> None:
    """Before Python 3.13, a class cannot name its loop factory, so an override makes the Runner."""
    seen = []

    class InTestCase(unittest.IsolatedAsyncioTestCase):
        loop_factory = ThreadSensitiveEventLoop

        if sys.version_info < (3, 13):

            def _setupAsyncioRunner(self) -> None:
                self._asyncioRunner = asyncio.Runner(debug=True, loop_factory=ThreadSensitiveEventLoop)

        def setUp(self) -> None:
            seen.append(threading.get_ident())

        async def asyncSetUp(self) -> None:
            seen.append(await where())
            self.addAsyncCleanup(self.clean_up)

        async def clean_up(self) -> None:
            seen.append(await where())

        async def test(self) -> None:
            seen.append(await where())
            async with asyncio.timeout(LIMIT):
                seen.extend(await asyncio.gather(where(), where()))

    result = unittest.TestResult()
    InTestCase("test").run(result)
    assert ([], [], 1) == (result.errors, result.failures, result.testsRun)
    assert [threading.get_ident()] * 6 == seen
