"""``ThreadSensitiveContext``: blocks with their own thread."""

from __future__ import annotations

import asyncio

from asgiref.sync import ThreadSensitiveContext, sync_to_async

from .cases import case
from .sync_to_async import middleware, sensitive

ONE = "ThreadSensitiveContext with one call"
MANY = "ThreadSensitiveContext with one call, 50 at once"
EMPTY = "ThreadSensitiveContext with no call"
METHODS = "ThreadSensitiveContext with 16 methods, wrapped and called"
METHODS_MANY = "ThreadSensitiveContext with 16 methods, wrapped and called, 16 at once"

NO_BLOCK = "the call alone"


async def block_with_a_call() -> None:
    async with ThreadSensitiveContext():
        await sensitive()


@case(ONE)
async def one(n: int) -> None:
    for _ in range(n):
        await block_with_a_call()


@case(ONE, NO_BLOCK)
async def no_block(n: int) -> None:
    """The same call without a block, and so without a lease."""
    for _ in range(n):
        await sensitive()


@case(MANY, batch=50)
async def many(n: int) -> None:
    for _ in range(n):
        await asyncio.gather(*[block_with_a_call() for _ in range(50)])


@case(EMPTY)
async def empty(n: int) -> None:
    for _ in range(n):
        async with ThreadSensitiveContext():
            pass


async def request() -> None:
    """The bridged calls of a request to Django with its default middleware."""
    async with ThreadSensitiveContext():
        for _ in range(16):
            await sync_to_async(middleware.process, thread_sensitive=True)()


@case(METHODS)
async def methods(n: int) -> None:
    for _ in range(n):
        await request()


@case(METHODS_MANY, batch=16)
async def methods_many(n: int) -> None:
    for _ in range(n):
        await asyncio.gather(*[request() for _ in range(16)])
