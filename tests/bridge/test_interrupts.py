"""An interrupt at every point of the library where the main thread can get one: no hang, no lasting damage."""

from __future__ import annotations

import sys

import pytest

from ..helpers import output_of

# In a separate process, because an interrupt may change the number of idle threads.
SWEEP = """
import asgiref.local, collections, contextvars, functools, logging, warnings

warnings.simplefilter("ignore", RuntimeWarning)  # "was never awaited"
logging.disable()  # "was never retrieved"

running = collections.Counter()  # coroutines that have begun and not ended
interruptible = ""  # the directory of the files that are interrupted
where = []  # the point at which the interrupt came
elsewhere = []  # what was interrupted that can raise nothing in the call: a finalizer, a task that outlives the call

def note_or_print(unraisable):
    if unraisable.exc_type is Interrupt:
        elsewhere.append(unraisable)
        return
    # "Was never awaited" once more: no warning comes of it where the garbage collector runs inside a function that
    # namedtuple() made, which has no __import__.
    if unraisable.exc_type is KeyError and asyncio.iscoroutine(unraisable.object):
        return
    # A loop that was interrupted as it was made has nothing yet that could be closed.
    traceback = unraisable.exc_traceback
    if traceback is None or traceback.tb_frame.f_code is not asyncio.BaseEventLoop.__del__.__code__:
        sys.__unraisablehook__(unraisable)

sys.unraisablehook = note_or_print

def counted(function):
    @functools.wraps(function)
    async def counting():
        running[function] += 1
        try:
            return await function()
        finally:
            running[function] -= 1
    return counting

def interrupter(number):
    "Return a profile function that interrupts the program at the point of that number."
    # Python looks for signals as a function begins, and when a built-in one has returned; and they
    # break off its waiting.
    def profile(frame, event, argument):
        nonlocal number
        if not frame.f_code.co_filename.startswith(interruptible):
            return
        # What takes and gives back a lock for a with statement is the language's to protect.
        if event == "call" or event in ("c_call", "c_return") and argument.__name__ not in (
            "__enter__", "__exit__", "setprofile"
        ):
            number -= 1
            if not number:
                sys.setprofile(None)
                where.append(f"{frame.f_code.co_filename}:{frame.f_lineno} {event} {argument}")
                raise Interrupt
    return profile

def check(scenario, number):
    "Interrupt *scenario* at the point of that number; return whether there are so many, and what is wrong then."
    where.clear()
    outcome, interrupted = None, False
    # In a context of its own: an interrupt between __enter__ and the block it is for leaves any block entered.
    context = contextvars.copy_context()
    # Kept here, because Python 3.11 crashes if it goes while Python is about to call it: on the way there may be
    # a finalizer, which is interrupted first.
    profile = interrupter(number)
    sys.setprofile(profile)
    try:
        outcome = context.run(scenario)
    except Interrupt:
        interrupted = True
    finally:
        sys.setprofile(None)
    problems = []
    if +running:
        problems.append(f"did not wait for {+running}")
    if context.run(asgiref.local.peek, AsyncToSync.executors, "current") is not None:
        problems.append("a mailbox is left in the context")
    if (again := scenario()) != "result":
        problems.append(f"gives {again!r} afterwards")
    if not interrupted and outcome != "result":
        problems.append(f"gave {outcome!r}")
    if where and not interrupted and not elsewhere:
        problems.append("was not interrupted")
    elsewhere.clear()
    if SyncToAsync.threadlocal.__dict__.get("main_event_loop") is not None:
        problems.append(f"{SyncToAsync.threadlocal.__dict__} is left")
    while AsyncToSync.loop_thread_executors:  # until the loop has ended that the main thread did not wait for
        time.sleep(0.001)
    return bool(where), problems

def sweep(scenario, least):
    "Interrupt *scenario* at each of its points in turn, which are more than *least*."
    number, reached = 0, True
    while reached:
        faulthandler.dump_traceback_later(10, exit=True)
        number += 1
        reached, problems = check(scenario, number)
        if problems:
            print(number, *where, *problems, sep="; ")
    print(number > least)

def in_block(function):
    def scenario():
        with AsyncSingleThreadContext():
            return function()
    return scenario

def on_loop(function):
    # asyncio's run_until_complete() leaves its callback behind if it is interrupted as it adds that.
    global interruptible
    interruptible = os.path.dirname(asgiref.local.__file__)
    loop = ThreadSensitiveEventLoop()
    def scenario():
        try:
            return loop.run_until_complete(function())
        except Interrupt:  # which leaves the loop fit for another run
            tasks = asyncio.all_tasks(loop)
            for task in tasks:
                task.cancel()
            if tasks:
                loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
            raise
    return scenario

@counted
async def nothing():
    return "result"
@counted
async def thread_sensitive():
    return await sync_to_async(str)("result")
@counted
async def nested():
    return await sync_to_async(async_to_sync(thread_sensitive))()
@counted
async def background():
    task = asyncio.ensure_future(thread_sensitive())
    return await sync_to_async(async_to_sync(nothing))() and await task
@counted
async def cleaning():
    try:
        return await sync_to_async(str)("result")
    finally:
        try:
            await sync_to_async(int)()
        finally:
            await sync_to_async(int)()
@counted
async def nested_cleaning():
    return await sync_to_async(async_to_sync(cleaning))()
tasks, next_call = [], asyncio.Event()
async def late(next_call):
    await next_call.wait()
    await sync_to_async(int)()
async def outlived():
    global next_call
    next_call.set()
    next_call = asyncio.Event()
    tasks.append(asyncio.create_task(sync_to_async(int)()))
    await asyncio.wait(tasks)  # also for those of calls that were interrupted, and the late one of the call before
    elsewhere.extend(task for task in tasks if isinstance(task.exception(), Interrupt))
    tasks.clear()
    tasks.append(asyncio.create_task(late(next_call)))
    return "result"
"""

# The function; its surroundings (none, a block around the call, a block around all calls, or a thread-sensitive loop
# instead of async_to_sync); and the exception. asyncio lets a KeyboardInterrupt pass out of a task through its loop,
# and keeps other exceptions in the task, which matters if tasks run beside the awaited one.
SCENARIOS = [
    ("nothing", None, KeyboardInterrupt),
    ("thread_sensitive", None, KeyboardInterrupt),
    ("thread_sensitive", "its own", KeyboardInterrupt),
    ("nested", None, KeyboardInterrupt),
    ("nested", "its own", KeyboardInterrupt),
    ("background", None, KeyboardInterrupt),
    ("background", None, BaseException),
    ("background", "its own", KeyboardInterrupt),
    ("background", "its own", BaseException),
    ("cleaning", "its own", BaseException),
    ("cleaning", "around", BaseException),
    ("nested_cleaning", None, BaseException),
    ("outlived", "around", KeyboardInterrupt),
    ("outlived", "around", BaseException),
    ("nothing", "loop", KeyboardInterrupt),
    ("thread_sensitive", "loop", KeyboardInterrupt),
    ("nested", "loop", KeyboardInterrupt),
    ("nested", "loop", BaseException),
    ("cleaning", "loop", BaseException),
]


@pytest.mark.slow
@pytest.mark.skipif(sys.implementation.name == "pypy", reason="its own locks and queues cannot be interrupted safely")
@pytest.mark.parametrize(("function", "block", "base"), SCENARIOS)
def test_interrupt_at_each_point(function: str, block: str | None, base: type[BaseException]) -> None:
    """The interrupt is raised when a started coroutine has ended; nothing hangs or is broken, then or later."""
    code = f"class Interrupt({base.__name__}): pass\n"
    scenario = f"async_to_sync({function})"
    if block == "its own":
        scenario = f"in_block({scenario})"
    if block == "loop":
        scenario = f"on_loop({function})"
    if block == "around":
        code += "with AsyncSingleThreadContext(): "
    code += f"sweep({scenario}, {50 if function == 'nothing' or block == 'loop' else 100})"
    assert ["True"] == output_of(SWEEP + code)


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
    return "continues"
with AsyncSingleThreadContext():
    for error in KeyboardInterrupt, SystemExit:
        try:
            async_to_sync(main)(sync_to_async(interrupt) if error is KeyboardInterrupt else leave)
        except error as raised:
            print(type(raised).__name__, raised)
        print(async_to_sync(nothing)())
"""


def test_exits_of_background_tasks_reach_the_thread_that_waits_for_their_loop() -> None:
    """Ctrl-C may come while the main thread runs code for a task that nothing awaits, on a loop that continues."""
    assert [
        "cleaned up on True",
        "KeyboardInterrupt ",
        "continues",
        "cleaned up on True",
        "SystemExit left",
        "continues",
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
