"""Forks, signals, exits and the end of the interpreter, in separate processes."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from asgiref._bridge.builds import FREE_THREADED
from asgiref.sync import AsyncSingleThreadContext, async_to_sync, sync_to_async

from ..conftest import LOOP_FACTORIES, LoopFactory
from ..helpers import LIMIT, ROOT, Thread, output_of, run_python
from ..servers import HOST, PRELOADING_SERVERS, serving

pytestmark = [
    pytest.mark.slow,
    # Python 3.12 and later warn of any fork beside threads, which is tested here.
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

fork_now = os.fork

def begin_child(work):
    "Run work in a forked child; return its process id."
    pid = fork_now()
    if not pid:
        try:
            # Not dump_traceback_later: it waits for the parent's watchdog thread.
            faulthandler.register(signal.SIGALRM, all_threads=fork_now is os.fork, chain=True)
            signal.alarm(15)
            work()
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return pid

def status_of(pid):
    "Wait for the child to end; return its exit status."
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def in_child(work):
    "Run work in a forked child; return the exit status."
    return status_of(begin_child(work))
"""

# A program in C that forks: Python's hooks do not run. This one keeps the lock of the interpreter, as uWSGI does.
FORK_IN_C = """
import ctypes
fork_now = ctypes.PyDLL(None).fork
"""

each_fork = pytest.mark.parametrize(
    "fork",
    [
        "",
        pytest.param(
            FORK_IN_C,
            marks=pytest.mark.skipif(
                sys.implementation.name != "cpython" or sys.platform == "darwin" or FREE_THREADED,
                reason="only CPython survives that, and a free-threaded build does not",
            ),
        ),
    ],
    ids=["os.fork", "fork in C"],
)

# For the interpreter itself: each kind of loop instead of the usual one.
EACH_LOOP = """
factories = [asyncio.new_event_loop]
def eager_loop(new_event_loop=asyncio.new_event_loop):
    loop = new_event_loop()
    loop.set_task_factory(asyncio.eager_task_factory)
    return loop
if hasattr(asyncio, "eager_task_factory"):
    factories.append(eager_loop)
try:
    import uvloop
except ImportError:
    pass
else:
    factories.append(uvloop.new_event_loop)
def on_each_loop(function):
    for factory in factories:
        asyncio.new_event_loop = asyncio.events.new_event_loop = factory
        function()
"""


@needs_fork
@each_fork
def test_child_bridges_after_a_fork_with_workers_running(fork: str) -> None:
    code = """
both_ways()
def grandchildren():
    assert 0 == in_child(both_ways)
    both_ways()
on_each_loop(lambda: print(in_child(both_ways), in_child(grandchildren), both_ways()))
"""
    assert {"0 0 1"} == {*output_of(BRIDGES + fork + EACH_LOOP + code)}


@needs_fork
def test_child_bridges_after_a_fork_in_the_midst_of_the_bridge() -> None:
    """From bridged code in both directions, inside contexts, and on each kind of thread."""
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
    """On a free-threaded build, they wait there.

    If they run Python code at the fork, the child may hang there without this package too: each object has a lock that
    a thread of the parent may have held.
    """
    run = """
def be_inside():
    while not stop:
        both_ways()
"""
    wait = """
waiting, release = [], threading.Event()
def be_inside():
    def wait():
        waiting.append(threading.get_native_id())
        release.wait(20)
    async_to_sync(sync_to_async(wait))()
"""
    until_they_wait = """
def state(thread):
    with open(f"/proc/self/task/{thread}/stat") as file:
        return file.read().rpartition(")")[2].split()[0]
while len(waiting) < 4 or {*map(state, waiting)} != {"S"}:
    os.sched_yield()
"""
    code = f"""
stop = False
{wait if FREE_THREADED else run}
threads = [threading.Thread(target=be_inside) for _ in range(4)]
for thread in threads: thread.start()
{until_they_wait if FREE_THREADED else ""}
print([in_child(both_ways) for _ in range(25)])
stop = True
{"release.set()" if FREE_THREADED else ""}
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
@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_multiprocessing(method: str) -> None:
    """The process that forks (this one or the server) has made bridged calls by then."""
    code = f"""
import multiprocessing
sys.path.insert(0, {str(ROOT)!r})
from tests.process import preloaded
context = multiprocessing.get_context({method!r})
context.set_forkserver_preload(["tests.process.preloaded"])
processes = [context.Process(target=preloaded.work) for _ in range(3)]
for process in processes: process.start()
for process in processes: process.join(20)
print([process.exitcode for process in processes])
"""
    assert ["[0, 0, 0]"] == output_of(code, "-W", "ignore::DeprecationWarning")


@needs_fork
@pytest.mark.parametrize("name", PRELOADING_SERVERS)
def test_server_that_forks_after_it_has_bridged(name: str, tmp_path: Path) -> None:
    with serving(name, tmp_path) as server:

        def ask(number: int) -> list[str]:
            return httpx.get(f"http://{HOST}:{server.address[1]}/?{number}", timeout=LIMIT).text.split()

        answers = [thread.get() for thread in [Thread(ask, number) for number in range(8)]]
    assert [str(number) for number in range(8)] == [answer[0] for answer in answers]
    assert all(parent != process for _, parent, process in answers)


@needs_fork
@pytest.mark.skipif(importlib.util.find_spec("django") is None, reason="Django is not installed")
def test_parallel_test_runner_of_django() -> None:
    code = """
import django, multiprocessing
from django import conf, http, test, urls
multiprocessing.set_start_method("fork")
conf.settings.configure(
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    INSTALLED_APPS=["django.contrib.contenttypes"],
    ROOT_URLCONF=__name__,
)
django.setup()
from django.contrib.contenttypes.models import ContentType
from django.test.runner import DiscoverRunner
parent = os.getpid()
async def view(request):
    return http.HttpResponse(str(await ContentType.objects.acount()))
urlpatterns = [urls.path("", view)]
class Tests(test.TestCase):
    def setUp(self):
        assert os.getpid() != parent
    async def test_database(self):
        assert 1 == await ContentType.objects.acount() == await sync_to_async(ContentType.objects.count)()
    async def test_asgi(self):
        assert b"1" == (await self.async_client.get("/")).content
    def test_wsgi(self):
        assert b"1" == self.client.get("/").content
class SameTests(Tests):
    pass
both_ways()
sys.exit(DiscoverRunner(parallel=2, verbosity=0, interactive=False).run_tests(["__main__"]))
"""
    process = run_python(BRIDGES + code, "-W", "ignore::DeprecationWarning")
    assert 0 == process.returncode, process.stderr
    assert "Ran 6 tests" in process.stderr


# The modules whose objects several threads use, and the minimum number of their lines that are reached.
STOPS = [("_bridge/jobs", 70), ("_bridge/loops", 70), ("_bridge/workers", 60), ("current_thread_executor", 40)]


@needs_fork
@pytest.mark.parametrize(("module", "least"), STOPS)
def test_child_bridges_wherever_in_the_library_other_threads_were(module: str, least: int) -> None:
    """The other threads, and the workers, are stopped at each line that they reach, and the main thread forks there.

    They continue while the children run, some at a time.
    """
    code = """
import asgiref, collections, queue
from pathlib import Path
stopped, go_on, places = queue.SimpleQueue(), queue.SimpleQueue(), set()
file = str(Path(asgiref.__file__).parent / (module + ".py"))
def trace(frame, event, argument):
    place = frame.f_code.co_filename, frame.f_lineno
    if place[0] != file:
        return None
    if place not in places:
        places.add(place)
        stopped.put(place)
        go_on.get(timeout=20)
    return trace
async def inner():
    local.value = 1
    async with ThreadSensitiveContext():
        await sync_to_async(int)()
async def main():
    await sync_to_async(async_to_sync(inner))()
def child():
    threading.settrace(None)
    with AsyncSingleThreadContext():
        async_to_sync(main)()
    async_to_sync(main)()
def other():
    both_ways()
    stopped.put(None)
children = collections.deque()
def end_first_child():
    place, pid = children.popleft()
    if status := status_of(pid):
        print(*place, status, flush=True)
threading.settrace(trace)
threading.Thread(target=other).start()
while (place := stopped.get(timeout=20)) is not None:
    children.append((place, begin_child(child)))
    go_on.put(None)
    if len(children) == 8:
        end_first_child()
while children:
    end_first_child()
assert len(places) > least, len(places)
os._exit(0)  # a worker may have come to another place
"""
    # Without the programs that site-packages starts in each interpreter: measuring the coverage of a child takes far
    # longer than the child itself.
    assert [] == output_of(f"{BRIDGES}\nmodule, least = {module!r}, {least}\n{code}", "-S")


@needs_fork
@each_fork
def test_child_bridges_though_another_thread_was_starting_the_loop_of_its_block(fork: str) -> None:
    """1. A thread is about to start the loop of the block.

    2. The main thread forks. 3. The child makes a bridged call.
    """
    code = """
from asgiref._bridge import loops
inside, go_on = threading.Event(), threading.Event()
start = loops.KeptLoop.start
def slow_start(mailboxes):
    if threading.current_thread() is not threading.main_thread():
        inside.set()
        go_on.wait()
    return start(mailboxes)
loops.KeptLoop.start = slow_start
import contextvars
with AsyncSingleThreadContext():
    thread = threading.Thread(target=contextvars.copy_context().run, args=(async_to_sync(asyncio.sleep), 0))
    thread.start()
    inside.wait()
    print(in_child(both_ways))
    go_on.set()
    thread.join()
"""
    assert ["0"] == output_of(BRIDGES + fork + code)


@needs_fork
@each_fork
def test_child_bridges_though_locks_of_the_library_were_held(fork: str) -> None:
    """A thread of the parent holds each lock that is waited for, or that is needed to get a worker."""
    code = """
from asgiref._bridge import jobs, loops
from asgiref.testing import ApplicationCommunicator
from asgiref.wsgi import WsgiToAsgi
def application(environ, start_response):
    start_response("200 OK", [])
    return [b"%d" % async_to_sync(sync_to_async(int))(1)]
adapter = WsgiToAsgi(application)
async def request():
    scope = {"type": "http", "http_version": "1.1", "method": "GET", "path": "/", "headers": []}
    client = ApplicationCommunicator(adapter, scope)
    await client.send_input({"type": "http.request"})
    await client.receive_output(20)
    return (await client.receive_output())["body"]
loop = asyncio.new_event_loop()
def work():
    assert b"1" == async_to_sync(request)() == loop.run_until_complete(request())
    both_ways()
work()
held, go_on = threading.Event(), threading.Event()
def hold():
    with loops.lock, adapter.executor._coming, jobs._deliveries[loop].waking:
        held.set()
        go_on.wait(20)
thread = threading.Thread(target=hold)
thread.start()
held.wait(20)
adapter.executor._jobs.append(None)  # of the parent's
print(in_child(work))
go_on.set()
thread.join()
"""
    assert ["0"] == output_of(BRIDGES + fork + code)


@needs_fork
@each_fork
def test_child_with_hooks_or_without_begins_with_any_kind_of_call(fork: str) -> None:
    """Objects that the call has created before it needs the worker belong to the child, too."""
    code = """
both_ways()
def one(): asyncio.run(sync_to_async(int)())
def several():
    async def main():
        await asyncio.gather(
            sync_to_async(int, thread_sensitive=False)(),
            sync_to_async(int)(),
            sync_to_async(both_ways, thread_sensitive=False)(),
        )
    asyncio.run(main())
def in_context():
    async def main():
        async with ThreadSensitiveContext():
            await sync_to_async(async_to_sync(asyncio.sleep))(0)
    asyncio.run(main())
def two_threads():
    threads = [threading.Thread(target=both_ways) for _ in range(8)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
def by_hand(): SyncToAsync.single_thread_executor.submit(int).result(10)
def look(): assert [] == bridge_calls()
block = AsyncSingleThreadContext()
block.__enter__()
async_to_sync(asyncio.sleep)(0)
def in_block(): async_to_sync(asyncio.sleep)(0)
def leave_block(): block.__exit__(None, None, None)
print([in_child(work) for work in (one, several, in_context, two_threads, by_hand, look, in_block, leave_block)])
"""
    assert [str([0] * 8)] == output_of(BRIDGES + fork + code)


def test_two_threads_notice_at_once_that_the_process_was_forked() -> None:
    """1. Thread A starts the generation. 2. Thread B waits until all is renewed, and starts no further one."""
    code = """
from asgiref._bridge import forks
begun, go_on, renewed = threading.Event(), threading.Event(), []
def renew():
    begun.set()
    assert go_on.wait(20)
    renewed.append(forks.generation)
forks.after_fork_in_child(renew)
forks.pid = -1  # as in a child of a program in C
threads = [threading.Thread(target=forks.notice) for _ in range(2)]
threads[0].start()
assert begun.wait(20)
threads[1].start()
threads[1].join(0.1)
print(threads[1].is_alive())
go_on.set()
for thread in threads: thread.join()
print(renewed == [forks.generation], forks.pid == os.getpid(), both_ways())
"""
    assert ["True", "True True 1"] == output_of(BRIDGES + code)


@needs_fork
@each_fork
@pytest.mark.parametrize("options", [[], ["-X", "dev"]], ids=" ".join)
def test_child_ends_at_once_by_itself(fork: str, options: list[str]) -> None:
    """Also if it has only been forked, or ended in a thread; the workers stayed in the parent."""
    code = """
import warnings
async def main():
    await asyncio.gather(*[sync_to_async(time.sleep, thread_sensitive=False)(0.01) for _ in range(5)])
def exit_in_thread():
    both_ways()
    thread = threading.Thread(target=lambda: (both_ways(), sys.exit(3)))
    thread.start()
    thread.join()
both_ways()
begun, go_on = threading.Event(), threading.Event()
def busy():
    begun.set()
    go_on.wait()
busy = SyncToAsync.single_thread_executor.submit(busy)
begun.wait()
faulthandler.cancel_dump_traceback_later()  # the end of an interpreter waits for it, even if it stayed in the parent
for work in (int, both_ways, exit_in_thread):
    pid = fork_now()
    if not pid:
        signal.alarm(10)
        work()
        sys.exit(7)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
go_on.set()
"""
    assert ["7"] * 3 == output_of(BRIDGES + fork + code, *options)


@needs_fork
@each_fork
def test_child_shuts_down_an_executor_whose_job_its_parent_runs(fork: str) -> None:
    """It waits for nothing: only the parent has the thread that runs the job."""
    code = """
from asgiref._bridge.workers import WorkerExecutor
executor = WorkerExecutor()
begun, go_on = threading.Event(), threading.Event()
def work():
    begun.set()
    assert go_on.wait(20)
job = executor.submit(work)
assert begun.wait(20)
print(in_child(executor.shutdown))
go_on.set()
executor.shutdown()
print(job.done())
"""
    assert ["0", "True"] == output_of(BRIDGES + fork + code)


@needs_fork
def test_child_that_is_interrupted_while_it_leaves_its_parents_block_lets_the_loop_be() -> None:
    code = """
from asgiref._bridge import loops
async def running_loop():
    return asyncio.get_running_loop()
class Lock:
    def __enter__(self): raise KeyboardInterrupt
    def __exit__(self, *arguments): pass
def leave():
    loops.lock = Lock()
    loop.call_soon_threadsafe = lambda *arguments, **options: os._exit(2)  # would write to the parent's socket
    try:
        block.__exit__(None, None, None)
    except KeyboardInterrupt:
        os._exit(7)
with AsyncSingleThreadContext() as block:
    loop = async_to_sync(running_loop)()
    print(in_child(leave), loop is async_to_sync(running_loop)())
"""
    assert ["7 True"] == output_of(BRIDGES + code)


@needs_fork
def test_child_leaves_a_mailbox_alone_to_which_another_thread_was_posting() -> None:
    """1. A thread is posting to the mailbox. 2. The program forks below it. 3. The child makes a bridged call."""
    code = """
import collections
class Jobs(collections.deque):
    def append(self, job):
        super().append(job)
        if threading.current_thread().name == "poster":
            inside.set()
            go_on.wait()
inside, go_on = threading.Event(), threading.Event()
def fork(mailbox):
    def child():
        both_ways()
        assert not mailbox.post(None)
    print(in_child(child))
    go_on.set()
async def main():
    mailbox = AsyncToSync.executors.current
    mailbox._jobs = Jobs()
    thread = threading.Thread(target=mailbox.submit, args=(int,), name="poster")
    thread.start()
    inside.wait()
    await sync_to_async(fork, thread_sensitive=False)(mailbox)
    thread.join()
async_to_sync(main)()
"""
    assert ["0"] == output_of(BRIDGES + code)


@needs_fork
def test_child_uses_a_loop_that_another_thread_was_about_to_wake() -> None:
    """1. A result is about to wake a loop, which has stopped. 2. The program forks. 3. The child runs that loop."""
    code = """
loop = asyncio.new_event_loop()
begun, waking, go_on = threading.Event(), threading.Event(), threading.Event()
def work():
    begun.set()
    go_on.wait()
async def main():
    global task
    task = asyncio.create_task(sync_to_async(work)())
    await asyncio.to_thread(begun.wait)
loop.run_until_complete(main())
wake = loop.call_soon_threadsafe
def slow_wake(*arguments, **options):
    waking.set()
    go_on_waking.wait()
    wake(*arguments, **options)
go_on_waking = threading.Event()
loop.call_soon_threadsafe = slow_wake
go_on.set()
waking.wait()
loop.call_soon_threadsafe = wake
print(in_child(lambda: loop.run_until_complete(sync_to_async(int)())))
go_on_waking.set()
loop.run_until_complete(task)
loop.run_until_complete(loop.shutdown_default_executor())
loop.close()
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
print("parent continued")
"""
    assert ["child raised", "parent continued"] == output_of(BRIDGES + code)


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
    """It is raised there, passes through the coroutine, and is raised by the call."""
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


def test_interrupt_while_the_loop_ends() -> None:
    """The coroutine has ended, so the interrupt is raised at once."""
    code = """
async def linger():
    try:
        await asyncio.sleep(20)
    finally:
        threading.Timer(0.05, interrupt).start()
        await asyncio.sleep(20)
async def main():
    asyncio.get_running_loop().linger = asyncio.create_task(linger())
    await asyncio.sleep(0)
begin = time.monotonic()
try:
    async_to_sync(main)()
except KeyboardInterrupt:
    print(async_to_sync(sync_to_async(int))(), time.monotonic() - begin < 10, flush=True)
    os._exit(0)
"""
    assert ["0 True"] == output_of(CTRL_C + code)


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


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit])
@pytest.mark.parametrize("entrance", ["fresh loop", "kept loop", "running loop"])
@pytest.mark.parametrize("factory", LOOP_FACTORIES.values(), ids=LOOP_FACTORIES)
def test_exit_goes_up_through_three_bridges(
    factory: LoopFactory, entrance: str, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each bridge raises the same object, wherever it came from; no loop and no worker is damaged."""
    monkeypatch.setattr(asyncio, "new_event_loop", factory)
    monkeypatch.setattr(asyncio.events, "new_event_loop", factory)
    raised = error("why")
    came_out: list[BaseException] = []

    def fail() -> None:
        raise raised

    async def fail_on_loop() -> None:
        raise raised

    async def call(function: Any, sensitive: bool) -> None:
        """Let the exception pass, except in the task that was entered from outside."""
        loop, neighbour = asyncio.get_running_loop(), asyncio.create_task(asyncio.sleep(0, "continued"))
        try:
            await sync_to_async(function, thread_sensitive=sensitive)()
        except error as caught:
            came_out.append(caught)
            raise
        finally:
            assert "continued" == await neighbour
            assert loop is await sync_to_async(async_to_sync(running_loop))()

    async def enter(function: Any, sensitive: bool) -> None:
        try:
            await call(function, sensitive)
        except error:
            pass

    for bottom in (fail, async_to_sync(fail_on_loop)):
        for sensitive in (True, False):
            function: Any = bottom
            for _ in range(2):
                function = functools.partial(async_to_sync(call), function, sensitive)
            with AsyncSingleThreadContext() if entrance == "kept loop" else contextlib.nullcontext():
                if entrance == "running loop":
                    asyncio.run(enter(function, sensitive))
                else:
                    with pytest.raises(error) as caught:
                        async_to_sync(call)(function, sensitive)
                    assert raised is caught.value
    assert [raised] * 12 == came_out


async def running_loop() -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()


@needs_fork
def test_exit_in_bridged_code_ends_the_program_with_its_status() -> None:
    """Each in a forked child, which ends as an interpreter does."""
    code = """
async def leave():
    sys.exit(3)
async def from_thread():
    await sync_to_async(sys.exit, thread_sensitive=False)(3)
async def deeply():
    await sync_to_async(async_to_sync(leave))()
def in_block():
    with AsyncSingleThreadContext():
        async_to_sync(deeply)()
both_ways()
faulthandler.cancel_dump_traceback_later()  # the end of an interpreter waits for it, even if it stayed in the parent
ways = [async_to_sync(leave), async_to_sync(from_thread), async_to_sync(deeply), in_block]
ways += [lambda function=function: asyncio.run(function()) for function in (leave, from_thread, deeply)]
for way in ways:
    pid = os.fork()
    if not pid:
        signal.alarm(15)
        way()
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""
    assert ["3"] * 7 == output_of(BRIDGES + code)


def test_exit_with_work_that_runs_waits_and_was_cancelled() -> None:
    """Running and queued calls are waited for; cancelled calls never start."""
    code = """
begun, go_on = threading.Event(), threading.Event()
def work():
    begun.set()
    go_on.wait()
    print("done", flush=True)
async def main():
    tasks = [asyncio.create_task(sync_to_async(function)()) for function in (
        work, lambda: print("waited", flush=True), lambda: print("cancelled", flush=True)
    )]
    await asyncio.to_thread(begun.wait)
    tasks[2].cancel()
    await asyncio.wait(tasks[2:])
    loop.stop()
loop = asyncio.new_event_loop()
loop.create_task(main())
loop.run_forever()
atexit.register(go_on.set)
"""
    assert ["done", "waited"] == output_of(code, "-W", "ignore")


def test_exit_while_daemon_threads_bridge() -> None:
    """The process ends, and no thread fails before that."""
    code = """
async def inner():
    async with ThreadSensitiveContext():
        return await sync_to_async(int)()
async def main():
    await sync_to_async(async_to_sync(inner))()
bridged = threading.Semaphore(0)
def bridge():
    while True:
        async_to_sync(main)()
        with AsyncSingleThreadContext():
            async_to_sync(main)()
        asyncio.run(main())
        bridged.release()
for _ in range(4): threading.Thread(target=bridge, daemon=True).start()
for _ in range(20): bridged.acquire()
"""
    assert [] == output_of(code, "-X", "dev")


@pytest.mark.parametrize("used_before", [False, True])
def test_bridging_in_calls_of_a_pool_that_outlive_the_program(used_before: bool) -> None:
    """Pools refuse calls then, although the main thread, which waits for their running calls, has not ended yet."""
    code = f"""
from concurrent.futures import ThreadPoolExecutor
pool = ThreadPoolExecutor()
def late():
    try:
        while True:
            pool.submit(int)
            time.sleep(0.01)
    except RuntimeError:
        print(both_ways(), flush=True)
if {used_before}:
    both_ways()
pool.submit(late)
"""
    assert ["1"] == output_of(BRIDGES + code)


@pytest.mark.parametrize("used_before", [False, True])
def test_bridging_in_atexit_handlers(used_before: bool) -> None:
    """When Python no longer starts threads, the calling thread does the work."""
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


@pytest.mark.parametrize("start", ["atexit.register(upload)", "threading.Thread(target=upload).start()"])
def test_upload_that_is_collected_in_a_file_when_no_thread_can_be_started(start: str) -> None:
    code = f"""
from asgiref.wsgi import WsgiToAsgi
parts = iter([(bytes(2**20), True), (bytes(2**20), True), (b"end", False)])
async def receive():
    body, more_body = next(parts)
    return {{"type": "http.request", "body": body, "more_body": more_body}}
async def send(message):
    print(message.get("body", b"").decode(), flush=True)
def application(environ, start_response):
    body = environ["wsgi.input"]
    start_response("200 OK", [])
    return [(environ["CONTENT_LENGTH"] + type(body).__name__ + str(len(body.read()))).encode()]
def upload():
    if threading.current_thread() is not threading.main_thread():
        threading.main_thread().join()
        time.sleep(0.05)
    scope = {{"type": "http", "http_version": "1.1", "method": "POST", "path": "/", "headers": []}}
    asyncio.run(WsgiToAsgi(application)(scope, receive, send))
{start}
"""
    assert ["", "2097155BufferedRandom2097155"] == output_of(BRIDGES + code)


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
    """The handler of the user comes first; here it lets the job continue."""
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


@pytest.mark.parametrize("options", [["-X", "dev", "-W", "error"], ["-O"], ["-OO"], ["-I"], []], ids=" ".join)
def test_interpreter_options(options: list[str]) -> None:
    environment = {} if options else {"PYTHONASYNCIODEBUG": "1"}
    code = BRIDGES.replace('simplefilter("ignore"', 'simplefilter("error"') + EACH_LOOP
    lines = output_of(code + "on_each_loop(lambda: print(both_ways()))", *options, **environment)
    assert {"1"} == {*lines}


@pytest.mark.skipif(sys.version_info < (3, 14), reason="the option is new in Python 3.14")
def test_threads_that_inherit_contexts() -> None:
    lines = output_of(
        BRIDGES + EACH_LOOP + "on_each_loop(lambda: print(both_ways()))", "-X", "thread_inherit_context=1"
    )
    assert {"1"} == {*lines}
