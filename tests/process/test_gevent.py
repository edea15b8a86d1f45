"""gevent's monkey patch, each case in a separate process."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

import asgiref

from ..helpers import LIMIT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("gevent") is None, reason="gevent is not installed"),
]

PATCHES = {"everything": "", "no threads": "thread=False", "neither threads nor queues": "thread=False, queue=False"}
each_patch = pytest.mark.parametrize("patch", PATCHES.values(), ids=PATCHES)

# The code before the patch, and the code after it.
ORDERS = {
    "before the import": ("", "from asgiref.sync import *"),
    "after the import": ("from asgiref.sync import *", ""),
    "after the first calls": (
        """
from asgiref.sync import *
import asyncio
async_to_sync(sync_to_async(int))()
asyncio.run(sync_to_async(int)())
""",
        "",
    ),
}
each_order = pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)


def output_of(code: str, patch: str = "", order: tuple[str, str] = ORDERS["before the import"]) -> list[str]:
    """Return the lines that *code* prints under the patch; it must succeed and print no error."""
    before, after = order
    process = subprocess.run(
        [
            sys.executable,
            "-c",
            f"""
import faulthandler
faulthandler.dump_traceback_later(20, exit=True)
{before}
import gevent.monkey
gevent.monkey.patch_all({patch})
{after}
import asyncio, atexit, threading, time, gevent
async def double(number):
    await asyncio.sleep(0.01)
    return await sync_to_async(lambda: 2 * number)()
{code}
""",
        ],
        env={**os.environ, "PYTHONPATH": str(Path(asgiref.__file__).parent.parent)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert (process.returncode, process.stderr) == (0, ""), process.stderr + process.stdout
    return process.stdout.splitlines()


@each_patch
@each_order
def test_calls_one_after_the_other(patch: str, order: tuple[str, str]) -> None:
    """On new loops, on a kept one, and on one of the program; also between calls."""
    code = """
print([async_to_sync(double)(number) for number in range(3)])
async def loop():
    return asyncio.get_running_loop()
with AsyncSingleThreadContext():
    print([async_to_sync(double)(number) for number in range(3)], async_to_sync(loop)() is async_to_sync(loop)())
async def in_context(number):
    async with ThreadSensitiveContext():
        return await sync_to_async(async_to_sync(double))(number)
print(asyncio.run(double(3)), asyncio.run(in_context(4)), async_to_sync(in_context)(5))
"""
    assert ["[0, 2, 4]", "[0, 2, 4] True", "6 8 10"] == output_of(code, patch, order)


@each_patch
@each_order
def test_calls_that_overlap(patch: str, order: tuple[str, str]) -> None:
    """No call begins its second half before all have started, on any thread."""
    code = """
begun, all_begun = [], threading.Event()
async def meet(number):
    begun.append(number)
    if len(begun) == 8:
        all_begun.set()
    while not all_begun.is_set():
        await asyncio.sleep(0.01)
    return await sync_to_async(lambda: 2 * number)()
results = []
def call(number):
    results.append(async_to_sync(meet)(number))
threads = [threading.Thread(target=call, args=[number]) for number in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(sorted(results))
"""
    assert ["[0, 2, 4, 6, 8, 10, 12, 14]"] == output_of(code, patch, order)


def test_other_greenlets_go_on_while_one_waits() -> None:
    code = """
ended = []
def tick():
    while not ended:
        ticks.append(None)
        gevent.sleep(0.001)
ticks = []
gevent.spawn(tick)
async_to_sync(asyncio.sleep)(0.2)
ended.append(None)
print(len(ticks) > 10)
"""
    assert ["True"] == output_of(code)


def test_call_beside_a_loop_of_another_greenlet() -> None:
    """On that loop itself, the call is refused as usual."""
    code = """
async def main():
    waiter = gevent.spawn(async_to_sync(double), 2)
    while not waiter.ready():
        await asyncio.sleep(0.01)
    print(waiter.get())
    coroutine = double(3)
    try:
        async_to_sync(lambda: coroutine)()
    except RuntimeError as error:
        print("runs an event loop" in str(error))
    coroutine.close()
import warnings
warnings.simplefilter("ignore")
asyncio.run(main())
"""
    assert ["4", "True"] == output_of(code)


def test_exception_and_cleanup() -> None:
    code = """
async def fail():
    try:
        await asyncio.sleep(0)
        raise LookupError("why")
    finally:
        await sync_to_async(print)("cleaned up")
for block in (AsyncSingleThreadContext(), AsyncSingleThreadContext()):
    with block:
        try:
            async_to_sync(fail)()
        except LookupError as error:
            print(error)
"""
    assert ["cleaned up", "why"] * 2 == output_of(code)


def test_exit_is_prompt_and_waits_for_running_jobs() -> None:
    code = """
begun = threading.Event()
def work():
    begun.set()
    time.sleep(0.2)
    print("done")
async def main():
    asyncio.create_task(sync_to_async(work)())
    while not begun.is_set():
        await asyncio.sleep(0.01)
async_to_sync(double)(1)
asyncio.run(main())
def handle():
    with AsyncSingleThreadContext():
        print("handler", async_to_sync(double)(1) + async_to_sync(double)(1))
atexit.register(handle)
"""
    assert ["handler 4", "done"] == output_of(code) or ["done", "handler 4"] == output_of(code)


def test_thread_sensitive_code_between_the_calls_of_a_block() -> None:
    """Its worker is started on the real thread of the loop, and outlives that loop."""
    code = """
async def start():
    global task
    task = asyncio.create_task(later())
async def later():
    return await sync_to_async(int)(7)
async def end():
    return await task
with AsyncSingleThreadContext():
    async_to_sync(start)()
    gevent.sleep(0.05)
    print(async_to_sync(end)())
print(asyncio.run(sync_to_async(int)(8)))
"""
    assert ["7", "8"] == output_of(code)


@each_order
def test_greenlet_that_calls_while_another_one_runs_synchronous_code_of_a_call(order: tuple[str, str]) -> None:
    """The greenlet is not inside that call, so it does not use the loop of the call, which ends first."""
    code = """
inside, go_on = threading.Event(), threading.Event()
def wait():
    inside.set()
    go_on.wait()
async def first():
    await sync_to_async(wait)()
async def second():
    threading.Timer(0.05, go_on.set).start()
    await asyncio.sleep(0.2)
    return 2
one = gevent.spawn(async_to_sync(first))
inside.wait()
print(async_to_sync(second)(), one.get())
"""
    assert ["2 None"] == output_of(code, order=order)
