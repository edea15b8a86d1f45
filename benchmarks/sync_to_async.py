"""Calls from an event loop to a thread."""

from __future__ import annotations

import asyncio
import contextvars
import itertools
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

from asgiref.sync import async_to_sync, sync_to_async

from .cases import HERE, case
from .limits import hop

ONE = "sync_to_async, one after the other"
MANY = "sync_to_async, 100 at once"
INSENSITIVE_ONE = "thread_sensitive=False, one after the other"
INSENSITIVE_MANY = "thread_sensitive=False, 100 at once"
OWN_EXECUTOR = "thread_sensitive=False, executor given"
FAILING = "sync_to_async, failing"
CANCELLED = "sync_to_async, cancelled"
VARIABLES = "sync_to_async, 30 context variables"
CHANGING = "sync_to_async, a context variable changed"
ASK = "check_cancelled"
MAIN_THREAD = "sync_to_async, back onto the main thread"
DEEP = "ten bridges deep"
WRAP = "sync_to_async, wrapping a function"
WRAP_METHOD = "sync_to_async, wrapping a bound method"

TO_THREAD = "asyncio.to_thread"
IN_EXECUTOR = "loop.run_in_executor"
ANYIO = "anyio.to_thread.run_sync"
HOP = "a bare hop"
ALONE = "the tasks alone"
NONE = "here, no variables"

variables = [contextvars.ContextVar[int](f"variable {number}") for number in range(30)]


def nothing() -> None:
    pass


class Middleware:
    def process(self) -> None:
        pass

    async def process_async(self) -> None:
        pass


middleware = Middleware()


def fail() -> None:
    raise LookupError


sensitive = sync_to_async(nothing)
insensitive = sync_to_async(nothing, thread_sensitive=False)
failing = sync_to_async(fail)


async def one_after_the_other(call: Callable[[], Awaitable[object]], n: int) -> None:
    for _ in range(n):
        await call()


async def all_at_once(call: Callable[[], Awaitable[object]], size: int, n: int) -> None:
    for _ in range(n):
        await asyncio.gather(*[call() for _ in range(size)])


def to_thread() -> Awaitable[None]:
    return asyncio.to_thread(nothing)


def in_executor() -> Awaitable[None]:
    return asyncio.get_running_loop().run_in_executor(None, nothing)


def by_anyio() -> Awaitable[None]:
    import anyio.to_thread

    return anyio.to_thread.run_sync(nothing)


@case(ONE)
async def one(n: int) -> None:
    await one_after_the_other(sensitive, n)


@case(MANY, batch=100)
async def many(n: int) -> None:
    await all_at_once(sensitive, 100, n)


@case(INSENSITIVE_ONE)
async def insensitive_one(n: int) -> None:
    await one_after_the_other(insensitive, n)


@case(INSENSITIVE_MANY, batch=100)
async def insensitive_many(n: int) -> None:
    await all_at_once(insensitive, 100, n)


@case(ONE, TO_THREAD)
@case(INSENSITIVE_ONE, TO_THREAD)
async def to_thread_one(n: int) -> None:
    await one_after_the_other(to_thread, n)


@case(MANY, TO_THREAD, batch=100)
@case(INSENSITIVE_MANY, TO_THREAD, batch=100)
async def to_thread_many(n: int) -> None:
    await all_at_once(to_thread, 100, n)


@case(INSENSITIVE_ONE, IN_EXECUTOR)
async def in_executor_one(n: int) -> None:
    await one_after_the_other(in_executor, n)


@case(INSENSITIVE_MANY, IN_EXECUTOR, batch=100)
async def in_executor_many(n: int) -> None:
    await all_at_once(in_executor, 100, n)


@case(INSENSITIVE_ONE, ANYIO, needing="anyio")
async def anyio_one(n: int) -> None:
    await one_after_the_other(by_anyio, n)


@case(INSENSITIVE_MANY, ANYIO, batch=100, needing="anyio")
async def anyio_many(n: int) -> None:
    await all_at_once(by_anyio, 100, n)


@case(ONE, HOP)
@case(ASK, HOP)
async def hop_one(n: int) -> None:
    with hop() as thread:
        await one_after_the_other(thread.there_and_back, n)


@case(MANY, HOP, batch=100)
async def hop_many(n: int) -> None:
    with hop() as thread:
        await all_at_once(thread.there_and_back, 100, n)


async def return_at_once() -> None:
    pass


@case(MANY, ALONE, batch=100)
async def tasks_alone(n: int) -> None:
    """The cost of ``gather`` and its tasks alone."""
    await all_at_once(return_at_once, 100, n)


@case(OWN_EXECUTOR)
async def own_executor(n: int) -> None:
    with ThreadPoolExecutor(1) as executor:
        await one_after_the_other(sync_to_async(nothing, thread_sensitive=False, executor=executor), n)


@case(OWN_EXECUTOR, IN_EXECUTOR)
async def in_own_executor(n: int) -> None:
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(1) as executor:
        for _ in range(n):
            await loop.run_in_executor(executor, nothing)


async def until_they_fail(call: Callable[[], Awaitable[object]], n: int) -> None:
    for _ in range(n):
        try:
            await call()
        except LookupError:
            pass


@case(FAILING)
async def fails(n: int) -> None:
    await until_they_fail(failing, n)


@case(FAILING, TO_THREAD)
async def fails_in_to_thread(n: int) -> None:
    await until_they_fail(lambda: asyncio.to_thread(fail), n)


async def cancel(call: Callable[[], Awaitable[object]], n: int) -> None:
    """Cancel each call as soon as it waits for its thread."""

    async def wait() -> None:
        await call()

    for _ in range(n):
        task = asyncio.create_task(wait())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])


@case(CANCELLED)
async def cancelled(n: int) -> None:
    await cancel(sensitive, n)


@case(CANCELLED, TO_THREAD)
async def to_thread_cancelled(n: int) -> None:
    await cancel(to_thread, n)


@case(VARIABLES)
async def with_variables(n: int) -> None:
    for variable in variables:
        variable.set(1)
    await one(n)


case(VARIABLES, NONE)(one)


@case(CHANGING)
async def changing(n: int) -> None:
    numbers = itertools.count()
    await one_after_the_other(sync_to_async(lambda: variables[0].set(next(numbers))), n)


@case(ASK, HERE)
async def ask(n: int) -> None:
    from asgiref.sync import check_cancelled  # upstream has none

    def ask_often() -> None:
        for _ in range(n):
            check_cancelled()

    await sync_to_async(ask_often)()


@case(MAIN_THREAD)
def back_to_main_thread(n: int) -> None:
    async_to_sync(one)(n)


def bridges(depth: int) -> None:
    if depth:
        async_to_sync(sync_to_async(bridges))(depth - 1)


@case(DEEP)
def deep(n: int) -> None:
    for _ in range(n):
        bridges(10)


@case(WRAP)
def wrap(n: int) -> None:
    for _ in range(n):
        sync_to_async(nothing)


@case(WRAP_METHOD)
def wrap_method(n: int) -> None:
    for _ in range(n):
        sync_to_async(middleware.process, thread_sensitive=True)
