"""The private parts of Python are as the library expects, and the bridge works without them.

If a test here fails on a new Python, that part has changed; ``internals`` says what is lost without it.
"""

from __future__ import annotations

import _thread
import asyncio
import concurrent.futures.thread
import contextvars
import gc
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import asgiref
from asgiref._bridge import internals

from ..conftest import LOOP_FACTORIES
from ..helpers import LIMIT, ROOT, Thread, forget, output_of, wait_for

pytestmark = pytest.mark.needs_internals

CPYTHON = sys.implementation.name == "cpython"
OWN_LOOPS = [name for name in LOOP_FACTORIES if name != "uvloop"]


def run(function: Callable[[], Any], name: str = "asyncio") -> Any:
    """Run a coroutine function on a plain asyncio loop."""
    with asyncio.Runner(loop_factory=LOOP_FACTORIES[name]) as runner:
        return runner.run(function())


def test_every_part_has_its_test() -> None:
    names = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert set() == internals.PARTS.keys() - names


@pytest.mark.parametrize("name", internals.PARTS)
def test_every_part_says_where_it_was_seen_and_what_is_lost_without_it(name: str) -> None:
    part = internals.PARTS[name]
    assert part.name
    assert part.seen
    assert part.lost
    assert callable(part.absent)


def test_running_loop() -> None:
    async def both() -> tuple[Any, Any]:
        return internals.running_loop(), internals.PARTS["running_loop"].absent()

    assert internals.running_loop is asyncio._get_running_loop
    assert internals.running_loop() is internals.PARTS["running_loop"].absent() is None
    fast, slow = run(both)
    assert fast is slow is not None


async def test_leave_loop() -> None:
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    internals.leave_loop(loop, task)
    try:
        assert internals.running_loop() is None
        assert None is asyncio.current_task(loop)
    finally:
        internals.enter_loop(loop, task)
    assert asyncio.current_task() is task


test_enter_loop = test_leave_loop


@pytest.mark.parametrize("name", OWN_LOOPS)
def test_has_nothing_left(name: str) -> None:
    loop = LOOP_FACTORIES[name]()
    assert internals.has_nothing_left(loop)
    handle = loop.call_soon(int)
    assert not internals.has_nothing_left(loop)
    handle.cancel()
    loop.run_until_complete(loop.run_in_executor(None, int))
    assert not internals.has_nothing_left(loop)
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()


def test_make_first_step() -> None:
    began: list[int] = []

    async def begin() -> None:
        began.append(1)

    def in_a_callback(done: asyncio.Future[list[int]]) -> None:
        loop = done.get_loop()
        assert isinstance(loop._ready, deque)  # type: ignore[attr-defined]
        internals.make_first_step(loop.create_task(begin()), loop)
        done.set_result(began.copy())

    async def main() -> list[int]:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[list[int]] = loop.create_future()
        loop.call_soon(in_a_callback, done)
        return await asyncio.wait_for(done, LIMIT)

    assert [1] == run(main) == began


def test_thread_of_loop() -> None:
    async def thread() -> int:
        return internals.thread_of_loop(asyncio.get_running_loop())

    assert threading.get_ident() == run(thread)
    assert 0 == internals.thread_of_loop(LOOP_FACTORIES["asyncio-debug"])


@pytest.mark.parametrize("name", OWN_LOOPS)
def test_callbacks_of(name: str) -> None:
    async def main() -> None:
        future = asyncio.get_running_loop().create_future()
        assert not internals.callbacks_of(future)
        future.add_done_callback(print)
        assert [print] == [callback for callback, _ in internals.callbacks_of(future)]
        future.remove_done_callback(print)
        future.set_result(None)

    run(main, name)


def test_waited_for_by() -> None:
    async def main() -> None:
        future = asyncio.get_running_loop().create_future()

        async def wait() -> None:
            await future

        task = asyncio.ensure_future(wait())
        await asyncio.sleep(0)
        assert internals.waited_for_by(task) is future
        future.set_result(None)
        await task
        assert internals.waited_for_by(task) is None

    run(main)


def test_future_of_task_group() -> None:
    async def main() -> None:
        seen: list[Any] = []
        tasks: list[Any] = []

        async def look() -> None:
            seen.append(internals.future_of_task_group(group))

        async def member() -> None:
            await asyncio.sleep(0)  # by now, the group waits
            await look()

        async with asyncio.TaskGroup() as group:
            tasks.append(group.create_task(member()))
        assert [True] == [isinstance(each, asyncio.Future) for each in seen]

    run(main)


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="the registries are in C code")
def test_all_task_registries() -> None:
    async def main() -> None:
        tasks = [task for registry in internals.all_task_registries() for task in list(registry)]
        assert asyncio.current_task() in tasks

    run(main)


def test_is_finished() -> None:
    future: Future[None] = Future()
    assert not internals.is_finished(future)
    future.set_result(None)
    assert internals.is_finished(future)


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="inspect has a public way")
def test_mark_as_coroutine_function() -> None:
    def function() -> None: ...

    assert internals.mark_as_coroutine_function(function) is function
    assert asyncio.iscoroutinefunction(function)


def test_default_executor_of() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert internals.default_executor_of(loop) is None
        await asyncio.to_thread(int)
        assert isinstance(internals.default_executor_of(loop), ThreadPoolExecutor)

    run(main)


def test_threads_of() -> None:
    with ThreadPoolExecutor(1) as executor:
        thread = executor.submit(threading.current_thread).result(LIMIT)
        assert {thread} == set(internals.threads_of(executor))
    assert internals.threads_of(object()) is None


def test_thread_limit_of() -> None:
    with ThreadPoolExecutor(3) as executor:
        assert 3 == internals.thread_limit_of(executor)
    assert internals.thread_limit_of(object()) is None


def test_starting_lock_of() -> None:
    """The lock is held while an executor starts a thread."""
    held: list[bool] = []

    class Threads(set[Any]):
        def add(self, thread: Any) -> None:
            held.append(executor._shutdown_lock.locked())
            super().add(thread)

    with ThreadPoolExecutor(1) as executor:
        executor._threads = Threads()
        assert internals.starting_lock_of(executor) is executor._shutdown_lock
        executor.submit(int).result(LIMIT)
    assert [True] == held
    with internals.starting_lock_of(object()):
        pass


@pytest.mark.parametrize("name", OWN_LOOPS)
def test_needs_no_run(name: str) -> None:
    loop = LOOP_FACTORIES[name]()
    for shut_down in (loop.shutdown_asyncgens(), loop.shutdown_default_executor()):
        assert internals.needs_no_run(shut_down, loop)
        handle = loop.call_soon(int)
        assert not internals.needs_no_run(shut_down, loop)
        handle.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        with pytest.raises(StopIteration):  # it awaits nothing
            shut_down.send(None)
    assert not internals.needs_no_run(None, loop)
    loop.close()


def test_main_task_of() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        handler = signal.getsignal(signal.SIGINT)
        assert internals.main_task_of(handler, loop) is asyncio.current_task()
        other = LOOP_FACTORIES["asyncio"]()
        assert internals.main_task_of(handler, other) is None
        other.close()

    run(main)
    for handler in (signal.SIG_DFL, signal.default_int_handler, None):
        assert internals.main_task_of(handler, LOOP_FACTORIES["asyncio"]) is None  # type: ignore[arg-type]


def test_be_quiet_if_destroyed() -> None:
    loop = LOOP_FACTORIES["asyncio"]()
    complaints: list[Any] = []
    loop.set_exception_handler(lambda loop, complaint: complaints.append(complaint))
    for quiet in (True, False):
        task = loop.create_task(asyncio.sleep(LIMIT))
        loop.run_until_complete(asyncio.sleep(0))
        if quiet:
            internals.be_quiet_if_destroyed(task)
        loop._scheduled.pop().cancel()  # type: ignore[attr-defined]
        del task
        gc.collect()
        assert bool(complaints) is not quiet or not CPYTHON
    internals.be_quiet_if_destroyed(object())
    loop.close()


def test_reference_to_executor_above() -> None:
    def look() -> Any:
        reference = internals.reference_to_executor_above(sys._getframe())
        return reference and reference()

    with ThreadPoolExecutor(1) as executor:
        assert executor.submit(look).result(LIMIT) is executor
    assert look() is None


def test_says_always_that_it_lives() -> None:
    threads: list[threading.Thread] = []
    known = threading.Event()

    def run() -> None:
        threads.append(threading.current_thread())
        known.set()

    _thread.start_new_thread(run, ())
    wait_for(known)
    assert internals.says_always_that_it_lives(threads[0])
    assert not internals.says_always_that_it_lives(threading.current_thread())
    forget(threads[0])


def test_is_waited_for() -> None:
    future: concurrent.futures.Future[None] = concurrent.futures.Future()
    assert not internals.is_waited_for(future)
    thread = Thread(future.result, LIMIT)
    deadline = time.monotonic() + LIMIT
    while not internals.is_waited_for(future):
        assert time.monotonic() < deadline
    future.set_result(None)
    thread.get()


@pytest.mark.skipif(not CPYTHON, reason="has only the queue in Python")
def test_simple_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    """The queue is that of the standard library, even if another package has replaced it."""
    own = queue.SimpleQueue
    monkeypatch.setattr(queue, "SimpleQueue", None)
    assert isinstance(internals.simple_queue(), own)


def test_pools_refuse_work() -> None:
    assert not internals.pools_refuse_work()
    assert hasattr(concurrent.futures.thread, "_shutdown")
    code = """
from concurrent.futures import ThreadPoolExecutor
from asgiref._bridge import internals
pool = ThreadPoolExecutor(1)
def look():
    try: pool.submit(int)
    except RuntimeError: print(internals.pools_refuse_work())
atexit.register(look)
"""
    assert ["True"] == output_of(code)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="starts threads to the end")
@pytest.mark.skipif(not CPYTHON, reason="has a text of its own")
def test_interpreter_ends() -> None:
    code = """
from asgiref._bridge import internals
class Last:
    def __del__(self, threading=threading, internals=internals):
        try: threading.Thread(target=int).start()
        except RuntimeError as error: print(internals.interpreter_ends(error))
last = Last()
"""
    assert ["True"] == output_of(code)
    assert not internals.interpreter_ends(RuntimeError("can't start new thread"))


@pytest.mark.skipif(not CPYTHON, reason="only CPython's contexts show what they share")
def test_share_variables() -> None:
    def contexts() -> None:
        variable = contextvars.ContextVar[int]("variable")
        variable.set(1)
        one, other = contextvars.copy_context(), contextvars.copy_context()
        assert internals.share_variables(one, other)
        assert internals.share_variables(one, other.copy())
        other.run(variable.set, 2)
        assert not internals.share_variables(one, other)
        other.run(variable.set, 1)
        assert not internals.share_variables(one, other)
        assert not internals.share_variables(contextvars.Context(), contextvars.copy_context())

    contextvars.Context().run(contexts)


@pytest.mark.slow
def test_main_tests_pass_with_all_parts_switched_off() -> None:
    """They pass as on a Python, and on loops, without any of the private parts."""
    modules = ("sync_to_async", "async_to_sync", "contexts", "local", "current_thread_executor", "arrival", "routing")
    files = [str(Path(__file__).with_name(f"test_{name}.py")) for name in modules]
    paths = os.pathsep.join([str(Path(asgiref.__file__).parent.parent), str(ROOT)])
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-m",
        "not slow",
        "-c",
        str(ROOT / "setup.cfg"),
        "--rootdir",
        str(ROOT),
    ]
    process = subprocess.run(
        [*command, "--import-mode", "importlib", "-p", "no:cacheprovider", "-p", "no:hypothesispytest", *files],
        env={**os.environ, "ASGIREF_WITHOUT_INTERNALS": "1", "PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        text=True,
        timeout=4 * LIMIT,
        check=False,
    )
    assert 0 == process.returncode, process.stdout[-5000:]
    assert " passed" in process.stdout
