"""An interrupt wherever the main thread may get one in the library: nothing hangs, nothing stays broken."""

from __future__ import annotations

import sys

import pytest

from .helpers import output_of

# In a process of its own, because an interrupt may leave an idle thread more or less.
SWEEP = """
import asgiref, contextvars, logging, warnings

warnings.simplefilter("ignore", RuntimeWarning)  # "was never awaited"
logging.disable()  # "was never retrieved"
PACKAGE = os.path.dirname(asgiref.__file__)

class Interrupt(KeyboardInterrupt):
    "What Ctrl-C would raise."

where = []

def interrupted_at(count, scenario):
    "Run *scenario* with an interrupt at the point of that number; return whether there are so many, and the outcome."
    left = count
    where.clear()
    def profile(frame, event, argument):
        nonlocal left
        # Python looks for signals as a function begins, and when a built-in one has returned.
        # What takes and gives back a lock for a with statement is the language's to protect.
        if event == "c_return" and argument.__name__ in ("__enter__", "__exit__"):
            return
        if event in ("call", "c_return") and frame.f_code.co_filename.startswith(PACKAGE):
            left -= 1
            if not left:
                sys.setprofile(None)
                where.append(f"{frame.f_code.co_filename}:{frame.f_lineno} {event} {argument}")
                raise Interrupt
    sys.setprofile(profile)
    try:
        # In a context of its own: an interrupt between __enter__ and the block it is for leaves any block entered.
        outcome = contextvars.copy_context().run(scenario)
    except Interrupt:
        outcome = None
    finally:
        sys.setprofile(None)
    return left <= 0, outcome

def sweep(scenario, expected):
    "Interrupt *scenario* at each of its points in turn; afterwards, the bridge works as before."
    count, reached = 0, True
    while reached:
        faulthandler.dump_traceback_later(20, exit=True)
        count += 1
        reached, outcome = interrupted_at(count, scenario)
        at = f"{count}: {where}"
        assert outcome in (None, expected), (at, outcome)
        assert getattr(AsyncToSync.executors, "current", None) is None, at
        while AsyncToSync.loop_thread_executors:  # until the loop has ended that the main thread did not wait for
            time.sleep(0.001)
        assert scenario() == expected, at
    print(count > 50)

async def nothing():
    return "result"
async def thread_sensitive():
    return await sync_to_async(str)("result")
async def nested():
    return await sync_to_async(async_to_sync(thread_sensitive))()
async def background():
    task = asyncio.ensure_future(thread_sensitive())
    return await sync_to_async(async_to_sync(nothing))() and await task
def in_block(function):
    def scenario():
        with AsyncSingleThreadContext():
            return async_to_sync(function)()
    return scenario
"""

SCENARIOS = {
    "call": "async_to_sync(nothing)",
    "mailbox": "async_to_sync(thread_sensitive)",
    "nested": "async_to_sync(nested)",
    "background": "async_to_sync(background)",
    "block": "in_block(thread_sensitive)",
    "nested-block": "in_block(nested)",
    "background-block": "in_block(background)",
}


@pytest.mark.slow
@pytest.mark.skipif(sys.implementation.name == "pypy", reason="its own locks and queues cannot be interrupted safely")
@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS)
def test_interrupt_at_each_point(scenario: str) -> None:
    assert ["True"] == output_of(SWEEP + f"sweep({scenario}, 'result')")


IN_BLOCK = """
def interrupt():
    signal.raise_signal(signal.SIGINT)
    time.sleep(20)
async def leave():
    sys.exit("left")
async def main(function):
    task = asyncio.ensure_future(function())
    try:
        await asyncio.sleep(20)
    finally:
        await asyncio.sleep(0)
        print("cleaned up on", await sync_to_async(threading.current_thread)() is threading.main_thread())
        if not task.done() or task.exception() is None:
            print("task runs on")
async def nothing():
    return "goes on"
with AsyncSingleThreadContext():
    for error in KeyboardInterrupt, SystemExit:
        try:
            async_to_sync(main)(sync_to_async(interrupt) if error is KeyboardInterrupt else leave)
        except error as raised:
            print(type(raised).__name__, raised)
        print(async_to_sync(nothing)())
"""


def test_exits_of_background_tasks_reach_the_thread_that_waits_for_their_loop() -> None:
    """Ctrl-C may come while the main thread runs code for a task that nobody awaits, on a loop that goes on."""
    assert [
        "cleaned up on True",
        "KeyboardInterrupt ",
        "goes on",
        "cleaned up on True",
        "SystemExit left",
        "goes on",
    ] == output_of(IN_BLOCK)


ENDING_BLOCK = """
interrupted, cleaned_up = threading.Event(), threading.Event()
async def work():
    try:
        await asyncio.sleep(20)
    finally:
        os.kill(os.getpid(), signal.SIGINT)
        while not interrupted.is_set():
            await asyncio.sleep(0.001)
        await asyncio.sleep(0)
        cleaned_up.set()
async def main():
    global task
    task = asyncio.ensure_future(work())
    await asyncio.sleep(0)
try:
    with AsyncSingleThreadContext():
        async_to_sync(main)()
except KeyboardInterrupt:
    interrupted.set()
print(cleaned_up.wait(20))
"""


def test_interrupt_while_a_block_ends_lets_its_tasks_clean_up() -> None:
    assert ["True"] == output_of(ENDING_BLOCK)
