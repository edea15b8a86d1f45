"""Forks, signals and the end of the interpreter: each in a process of its own."""

from __future__ import annotations

import os
import sys

import pytest

from .helpers import output_of, run_python

pytestmark = [
    pytest.mark.slow,
    # Python 3.12 and later warn of any fork beside threads; that is what is tested here.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")

BRIDGES = """
import contextlib, warnings
warnings.simplefilter("ignore", DeprecationWarning)
local = Local()
critical = Local(thread_critical=True)

def both_ways():
    "Bridge in both directions, and use Local on the way."
    async def inner():
        local.value = critical.value = 1
        async with ThreadSensitiveContext():
            return await sync_to_async(lambda: local.value)()
    async def main():
        assert await sync_to_async(async_to_sync(inner))() == 1
        return await sync_to_async(async_to_sync(inner), thread_sensitive=False)()
    assert async_to_sync(main)() == local.value == 1
    with AsyncSingleThreadContext():
        async_to_sync(main)()
    return asyncio.run(main())

def in_child(work):
    "Run work in a forked child; return the exit status."
    pid = os.fork()
    if not pid:
        try:
            # Not dump_traceback_later: it waits for the parent's watchdog thread.
            faulthandler.register(signal.SIGALRM, chain=True)
            signal.alarm(15)
            work()
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
"""


@needs_fork
def test_child_bridges_after_a_fork_with_workers_running() -> None:
    code = """
both_ways()
print(in_child(both_ways), in_child(lambda: sys.exit(in_child(both_ways)) if in_child(both_ways) else None))
both_ways()
"""
    assert ["0 0"] == output_of(BRIDGES + code)


@needs_fork
def test_child_bridges_after_a_fork_in_the_midst_of_the_bridge() -> None:
    """From bridged code of either kind, inside contexts, and on each kind of thread."""
    code = """
def fork():
    print(in_child(both_ways))
async def fork_on_loop():
    pid = os.fork()
    if not pid:
        thread = threading.Thread(target=lambda: os._exit(0 if both_ways() == 1 else 1))
        thread.start()
        thread.join()
        os._exit(2)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
async def main():
    await sync_to_async(fork)()
    await sync_to_async(fork, thread_sensitive=False)()
    async with ThreadSensitiveContext():
        await sync_to_async(int)()
        await sync_to_async(fork)()
        await fork_on_loop()
asyncio.run(main())
async_to_sync(main)()
with AsyncSingleThreadContext():
    async_to_sync(main)()
    fork()
"""
    assert ["0"] * 13 == output_of(BRIDGES + code)


@needs_fork
def test_child_bridges_though_other_threads_were_inside_the_bridge() -> None:
    code = """
stop = False
def hammer():
    while not stop:
        both_ways()
threads = [threading.Thread(target=hammer) for _ in range(4)]
for thread in threads: thread.start()
print([in_child(both_ways) for _ in range(25)])
stop = True
for thread in threads: thread.join()
"""
    assert [str([0] * 25)] == output_of(BRIDGES + code)


@needs_fork
def test_child_that_returns_into_a_blocked_call_gets_an_error() -> None:
    """The loop that the call waits for stayed in the parent."""
    code = """
pids = []
def fork():
    pids.append(os.fork())
async def main():
    await sync_to_async(fork)()
try:
    async_to_sync(main)()
except RuntimeError as error:
    assert pids == [0] and "forked" in str(error), error
    both_ways()
    os._exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(pids[0], 0)[1]))
"""
    assert ["7"] == output_of(BRIDGES + code)


@needs_fork
def test_child_that_returns_into_a_worker_ends() -> None:
    code = """
def fork():
    return os.fork()
pid = asyncio.run(sync_to_async(fork)())
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    assert ["0"] == output_of(BRIDGES + code)


@needs_fork
def test_multiprocessing_by_fork() -> None:
    code = """
import multiprocessing
def main():
    both_ways()
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=both_ways) for _ in range(3)]
    for process in processes: process.start()
    for process in processes: process.join(20)
    print([process.exitcode for process in processes])
main()
"""
    assert ["[0, 0, 0]"] == output_of(BRIDGES + code)


@needs_fork
def test_child_bridges_though_another_thread_was_starting_the_loop_of_its_block() -> None:
    """1. A thread is about to start the loop that the block keeps. 2. The main thread forks. 3. The child bridges."""
    code = """
from asgiref import _loops
inside, go_on = threading.Event(), threading.Event()
start = _loops.KeptLoop.start
def slow_start(mailboxes):
    if threading.current_thread() is not threading.main_thread():
        inside.set()
        go_on.wait()
    return start(mailboxes)
_loops.KeptLoop.start = slow_start
import contextvars
with AsyncSingleThreadContext():
    thread = threading.Thread(target=contextvars.copy_context().run, args=(async_to_sync(asyncio.sleep), 0))
    thread.start()
    inside.wait()
    print(in_child(both_ways))
    go_on.set()
    thread.join()
"""
    assert ["0"] == output_of(BRIDGES + code)


@needs_fork
def test_child_that_returns_from_a_signal_handler_into_a_blocked_call_gets_an_error() -> None:
    code = """
pids = []
signal.signal(signal.SIGUSR1, lambda *arguments: pids.append(os.fork()))
async def main():
    os.kill(os.getpid(), signal.SIGUSR1)
    while not pids:
        await asyncio.sleep(0.01)
    await asyncio.to_thread(os.waitpid, pids[0], 0) if pids[0] else None
try:
    async_to_sync(main)()
except RuntimeError as error:
    assert pids == [0] and "forked" in str(error), error
    print("child raised", flush=True)
    os._exit(0)
print("parent went on")
"""
    assert ["child raised", "parent went on"] == output_of(BRIDGES + code)


CTRL_C = """
def interrupt():
    os.kill(os.getpid(), signal.SIGINT)

async def wait():
    "Wait to be cancelled; clean up on the calling thread."
    try:
        threading.Timer(0.05, interrupt).start()
        await asyncio.sleep(20)
    finally:
        await asyncio.sleep(0.01)
        await sync_to_async(lambda: print("cleaned up on", threading.current_thread().name, flush=True))()

"""


@pytest.mark.parametrize(
    "call",
    [
        "async_to_sync(wait)()",
        "with AsyncSingleThreadContext(): async_to_sync(wait)()",
    ],
)
def test_interrupt_cancels_the_coroutine_and_lets_it_clean_up(call: str) -> None:
    process = run_python(CTRL_C + call)
    assert "cleaned up on MainThread\n" == process.stdout
    assert process.stderr.rstrip().endswith("KeyboardInterrupt"), process.stderr
    assert process.returncode in (-2, 130, 1)


def test_interrupt_is_raised_once_the_coroutine_has_ended() -> None:
    code = """
begin = time.monotonic()
try:
    async_to_sync(wait)()
except KeyboardInterrupt:
    print("interrupted", time.monotonic() - begin < 10)
print(async_to_sync(sync_to_async(int))())
"""
    assert ["cleaned up on MainThread", "interrupted True", "0"] == output_of(CTRL_C + code)


def test_interrupt_while_synchronous_code_runs_below_the_call() -> None:
    """It is raised there, goes up through the coroutine, and out."""
    code = """
def work():
    interrupt()
    time.sleep(20)
async def main():
    try:
        await sync_to_async(work)()
    finally:
        print("cleaned up")
try:
    async_to_sync(main)()
except KeyboardInterrupt:
    print("interrupted")
"""
    assert ["cleaned up", "interrupted"] == output_of(CTRL_C + code)


def test_second_interrupt_gives_up_waiting() -> None:
    code = """
async def stubborn():
    threading.Timer(0.05, interrupt).start()
    try:
        await asyncio.sleep(20)
    finally:
        threading.Timer(0.05, interrupt).start()
        await asyncio.sleep(20)
begin = time.monotonic()
try:
    async_to_sync(stubborn)()
except KeyboardInterrupt:
    print("interrupted", time.monotonic() - begin < 10, flush=True)
    os._exit(0)
"""
    assert ["interrupted True"] == output_of(CTRL_C + code)


def test_exception_of_a_signal_handler_interrupts_too() -> None:
    code = """
class TimeLimit(Exception): pass
def handle(number, frame): raise TimeLimit
signal.signal(signal.SIGINT, handle)
try:
    async_to_sync(wait)()
except TimeLimit:
    print("limited")
"""
    assert ["cleaned up on MainThread", "limited"] == output_of(CTRL_C + code)


@pytest.mark.parametrize("used_before", [False, True])
def test_bridging_in_atexit_handlers(used_before: bool) -> None:
    """Where Python starts no thread any more, the work is done in place."""
    code = f"""
@atexit.register
def at_exit():
    async def nest(depth):
        if depth:
            return await sync_to_async(async_to_sync(nest))(depth - 1)
        return await asyncio.gather(sync_to_async(int)(1), sync_to_async(int, thread_sensitive=False)(2))
    print(both_ways(), async_to_sync(nest)(5), asyncio.run(nest(5)), flush=True)
if {used_before}:
    both_ways()
"""
    assert ["1 [1, 2] [1, 2]"] == output_of(BRIDGES + code)


@pytest.mark.parametrize("used_before", [False, True])
def test_bridging_in_threads_that_outlive_the_main_thread(used_before: bool) -> None:
    code = f"""
def late():
    threading.main_thread().join()
    time.sleep(0.05)
    print(both_ways(), flush=True)
if {used_before}:
    both_ways()
threading.Thread(target=late).start()
"""
    assert ["1"] == output_of(BRIDGES + code)


def test_loop_that_outlives_the_main_thread() -> None:
    code = """
def late():
    async def main():
        threading.main_thread().join()
        await asyncio.sleep(0.05)
        print(await asyncio.gather(*[sync_to_async(async_to_sync(inner))(n) for n in range(3)]), flush=True)
    async def inner(number):
        await asyncio.sleep(0)
        return await sync_to_async(int)(number)
    asyncio.run(main())
threading.Thread(target=late).start()
"""
    assert ["[0, 1, 2]"] == output_of(BRIDGES + code)


def test_running_jobs_are_waited_for_and_idle_workers_are_not() -> None:
    """The handler of the user's comes first, and here it is what lets the job go on."""
    code = """
begun, go_on = threading.Event(), threading.Event()
def work():
    begun.set()
    go_on.wait()
    time.sleep(0.1)
    print("done", flush=True)
async def main():
    asyncio.create_task(sync_to_async(work)())
    await asyncio.to_thread(begun.wait)
both_ways()
asyncio.run(main())
@atexit.register
def at_exit():
    print("at exit", flush=True)
    go_on.set()
"""
    assert ["at exit", "done"] == output_of(BRIDGES + code)


def test_exit_with_everything_idle_is_prompt() -> None:
    code = """
async def main():
    await asyncio.gather(*[request() for _ in range(50)])
async def request():
    async with ThreadSensitiveContext():
        await sync_to_async(time.sleep)(0.01)
asyncio.run(main())
block = AsyncSingleThreadContext()
block.__enter__()
async_to_sync(main)()
begin = time.monotonic()
atexit.register(lambda: print(time.monotonic() - begin < 2, flush=True))
"""
    assert ["True"] == output_of(BRIDGES + code)


def test_exit_while_a_thread_waits_for_a_loop_that_never_runs_again() -> None:
    code = """
loop = asyncio.new_event_loop()
begun = threading.Event()
async def inner():
    begun.set()
    await asyncio.sleep(20)
def work():
    try:
        async_to_sync(inner)()
    except RuntimeError as error:
        print("stopped or closed" in str(error), flush=True)
async def main():
    global task
    task = loop.create_task(sync_to_async(work)())
    await asyncio.sleep(0)
    while not begun.is_set():
        await asyncio.sleep(0.001)
loop.run_until_complete(main())
"""
    process = run_python(BRIDGES + code)
    assert "True\n" == process.stdout, process.stderr
    assert 0 == process.returncode


@pytest.mark.parametrize("options", [["-X", "dev", "-W", "error"], ["-O"], []])
def test_interpreter_options(options: list[str]) -> None:
    environment = {} if options else {"PYTHONASYNCIODEBUG": "1"}
    assert ["1"] == output_of(
        BRIDGES.replace('simplefilter("ignore"', 'simplefilter("error"') + "print(both_ways())", *options, **environment
    )


@pytest.mark.skipif(sys.version_info < (3, 14), reason="the option is new in Python 3.14")
def test_threads_that_inherit_contexts() -> None:
    assert ["1"] == output_of(BRIDGES + "print(both_ways())", "-X", "thread_inherit_context=1")
