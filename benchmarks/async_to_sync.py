"""Calls from a thread to an event loop."""

from __future__ import annotations

import asyncio
import queue
import threading

from asgiref.sync import AsyncSingleThreadContext, async_to_sync, sync_to_async

from .cases import case
from .limits import ping_pong
from .sync_to_async import middleware, variables

TOP = "async_to_sync, top level"
BLOCK = "async_to_sync in AsyncSingleThreadContext"
NESTED = "async_to_sync below sync_to_async"
NESTED_FAILING = "async_to_sync below sync_to_async, failing"
NESTED_VARIABLES = "async_to_sync below sync_to_async, 30 context variables"
NEW_LOOP = "async_to_sync below sync_to_async, force_new_loop"
WRAP = "async_to_sync, wrapping a function"
WRAP_METHOD = "async_to_sync, wrapping a bound method"

RUN = "asyncio.run"
RUNNER = "asyncio.Runner, kept"
PORTAL = "anyio's blocking portal"
FROM_THREAD = "anyio.from_thread.run"
THREADSAFE = "run_coroutine_threadsafe"
PING_PONG = "a bare ping-pong"
NONE = "here, no variables"


async def nothing() -> None:
    pass


async def fail() -> None:
    raise LookupError


blocking = async_to_sync(nothing)
failing = async_to_sync(fail)
on_new_loop = async_to_sync(nothing, force_new_loop=True)


@case(TOP)
def top(n: int) -> None:
    for _ in range(n):
        blocking()


@case(TOP, RUN)
def run(n: int) -> None:
    for _ in range(n):
        asyncio.run(nothing())


@case(BLOCK)
def block(n: int) -> None:
    with AsyncSingleThreadContext():
        top(n)


@case(BLOCK, RUNNER)
def runner(n: int) -> None:
    with asyncio.Runner() as kept:
        for _ in range(n):
            kept.run(nothing())


@case(BLOCK, PORTAL, needing="anyio")
def portal(n: int) -> None:
    from anyio.from_thread import start_blocking_portal

    with start_blocking_portal() as started:
        for _ in range(n):
            started.call(nothing)


@case(NESTED)
async def nested(n: int) -> None:
    await sync_to_async(top)(n)


@case(NESTED, FROM_THREAD, needing="anyio")
async def from_thread(n: int) -> None:
    import anyio.from_thread
    import anyio.to_thread

    def call() -> None:
        for _ in range(n):
            anyio.from_thread.run(nothing)

    await anyio.to_thread.run_sync(call)


@case(NESTED, THREADSAFE)
async def threadsafe(n: int) -> None:
    loop = asyncio.get_running_loop()

    def call() -> None:
        for _ in range(n):
            asyncio.run_coroutine_threadsafe(nothing(), loop).result()

    await asyncio.to_thread(call)


@case(NESTED, "a bare hop")
async def hop(n: int) -> None:
    loop = asyncio.get_running_loop()
    answers: queue.SimpleQueue[None] = queue.SimpleQueue()
    done = asyncio.Event()

    def work() -> None:
        for _ in range(n):
            loop.call_soon_threadsafe(answers.put, None)
            answers.get()
        loop.call_soon_threadsafe(done.set)

    thread = threading.Thread(target=work)
    thread.start()
    await done.wait()
    thread.join()


case(BLOCK, PING_PONG)(ping_pong)
case(NESTED, PING_PONG)(ping_pong)


@case(NESTED_FAILING)
async def nested_failing(n: int) -> None:
    def call() -> None:
        for _ in range(n):
            try:
                failing()
            except LookupError:
                pass

    await sync_to_async(call)()


@case(NESTED_VARIABLES)
async def with_variables(n: int) -> None:
    for variable in variables:
        variable.set(1)
    await nested(n)


case(NESTED_VARIABLES, NONE)(nested)


@case(NEW_LOOP)
async def new_loop(n: int) -> None:
    def call() -> None:
        for _ in range(n):
            on_new_loop()

    await sync_to_async(call)()


@case(WRAP)
def wrap(n: int) -> None:
    for _ in range(n):
        async_to_sync(nothing)


@case(WRAP_METHOD)
def wrap_method(n: int) -> None:
    for _ in range(n):
        async_to_sync(middleware.process_async)
