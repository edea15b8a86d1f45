"""Threads that users' code starts on threads of the library, in separate processes."""

from __future__ import annotations

import os
import sys

import pytest

from ..helpers import output_of

pytestmark = pytest.mark.slow

# Prints when the program has otherwise ended.
VIEW = """
from concurrent.futures import ThreadPoolExecutor
from asgiref.testing import ApplicationCommunicator
from asgiref.wsgi import WsgiToAsgi

def send():
    threading.main_thread().join()
    time.sleep(0.05)
    print("sent", flush=True)

def view(*arguments):
    threading.Thread(target=send).start()
    timer = threading.Timer(0.05, send)
    timer.start()
    assert not timer.daemon and not threading.current_thread().daemon

async def async_view():
    view()

async def request(function, *arguments):
    async with ThreadSensitiveContext():
        await sync_to_async(function)(*arguments)

def application(environ, start_response):
    view()
    start_response("200 OK", [])
    return []

async def wsgi_request():
    scope = {"type": "http", "http_version": "1.1", "method": "GET", "path": "/", "headers": []}
    client = ApplicationCommunicator(WsgiToAsgi(application), scope)
    await client.send_input({"type": "http.request"})
    await client.wait(20)

async def in_pool():
    await sync_to_async(view, thread_sensitive=False)()

def own_pool():
    with ThreadPoolExecutor() as pool:
        pool.submit(view).result()

def in_block(function, *arguments):
    with AsyncSingleThreadContext():
        return async_to_sync(function)(*arguments)
"""

PLACES = {
    "process worker": "asyncio.run(sync_to_async(view)())",
    "context": "asyncio.run(request(view))",
    "WSGI pool": "asyncio.run(wsgi_request())",
    "fresh loop": "async_to_sync(async_view)()",
    "kept loop": "in_block(async_view)",
    "fresh loop below a worker": "asyncio.run(sync_to_async(AsyncToSync(async_view, force_new_loop=True))())",
    "pool of a fresh loop": "async_to_sync(in_pool)()",
    "pool of a kept loop": "in_block(in_pool)",
    "asyncio.to_thread on a fresh loop": "async_to_sync(asyncio.to_thread)(view)",
    "pool that a job makes": "asyncio.run(request(own_pool))",
    "submitted by hand": "SyncToAsync.single_thread_executor.submit(view).result()",
}


@pytest.mark.parametrize("options", [[], ["-X", "dev"]], ids=" ".join)
@pytest.mark.parametrize("call", PLACES.values(), ids=PLACES)
def test_program_waits_for_threads_that_users_start(call: str, options: list[str]) -> None:
    """A view starts a thread to send a letter. It is not a daemon, so the letter is sent before the program ends."""
    assert ["sent"] * 2 == output_of(VIEW + call, *options)


@pytest.mark.skipif(
    sys.version_info[:3] in ((3, 12, 0), (3, 12, 1)), reason="this Python starts no thread once the program has ended"
)
def test_program_waits_for_threads_that_a_job_starts_after_its_end() -> None:
    """Also for threads that those start, which make bridged calls."""
    code = """
begun = threading.Event()
def view():
    begun.set()
    threading.main_thread().join()
    time.sleep(0.05)
    threading.Thread(target=send, args=("first",)).start()
def send(text):
    time.sleep(0.05)
    print(text, async_to_sync(sync_to_async(int))(1), flush=True)
    if text == "first":
        threading.Thread(target=send, args=("second",)).start()
async def main():
    asyncio.create_task(sync_to_async(view)())
    await asyncio.to_thread(begun.wait)
asyncio.run(main())
"""
    assert ["first 1", "second 1"] == output_of(code)


def test_exit_handlers_that_are_called_before_the_end_wait_for_no_thread() -> None:
    code = """
go_on = threading.Event()
asyncio.run(sync_to_async(threading.Thread(target=go_on.wait).start)())
atexit._run_exitfuncs()
print("continued")
go_on.set()
"""
    assert ["continued"] == output_of(code)


def test_program_that_joins_all_but_daemon_threads_does_not_wait_for_workers() -> None:
    """Neither for an idle worker, nor for a busy one; a job can do the same."""
    code = """
def join_all():
    for thread in threading.enumerate():
        if not thread.daemon and thread not in (threading.main_thread(), threading.current_thread()):
            thread.join()
begun, go_on = threading.Event(), threading.Event()
def busy():
    begun.set()
    go_on.wait()
async def request():
    async with ThreadSensitiveContext():
        await sync_to_async(busy)()
async def main():
    task = asyncio.create_task(request())
    while not begun.is_set():
        await asyncio.sleep(0.001)
    await sync_to_async(join_all)()
    join_all()
    go_on.set()
    await task
asyncio.run(main())
async_to_sync(asyncio.sleep)(0)
join_all()
asyncio.run(sync_to_async(join_all)())
print("joined")
"""
    assert ["joined"] == output_of(code)


def test_exit_in_a_thread_while_workers_are_idle() -> None:
    code = """
def leave():
    async_to_sync(sync_to_async(int))()
    with AsyncSingleThreadContext():
        async_to_sync(asyncio.sleep)(0)
    sys.exit(3)
asyncio.run(sync_to_async(int)())
threading.Thread(target=leave).start()
threading.Thread(target=lambda: asyncio.run(sync_to_async(int)())).start()
begin = time.monotonic()
atexit.register(lambda: print(time.monotonic() - begin < 5))
"""
    assert ["True"] == output_of(code, "-X", "dev")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_forked_child_waits_for_threads_that_users_start() -> None:
    code = """
async_to_sync(sync_to_async(int))()
asyncio.run(sync_to_async(int)())
faulthandler.cancel_dump_traceback_later()  # the end of an interpreter waits for it, even if it stayed in the parent
pid = os.fork()
if not pid:
    signal.alarm(15)
    asyncio.run(sync_to_async(view)())
    sys.exit(5)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    assert ["sent", "sent", "5"] == output_of(VIEW + code, "-W", "ignore::DeprecationWarning")
