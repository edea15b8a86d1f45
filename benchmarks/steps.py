"""Iterators and context managers across the bridge: the cost of an item, and of a block."""

from __future__ import annotations

from asgiref.sync import sync_to_async

from .cases import HERE, case
from .limits import hop
from .sync_to_async import HOP

# ``asgiref.sync`` of upstream has none of these functions, so they are imported where they are used.

ITEM = "an item, sync_to_async_iterator"
AHEAD = "an item, sync_to_async_iterator, read_ahead=64"
BLOCK = "sync_to_async_context_manager"

STARLETTE = "Starlette's iterate_in_threadpool"
NEXT = "await sync_to_async(next)(iterator)"
TWO_CALLS = "two sync_to_async calls"


@case(ITEM, HERE)
async def items(n: int) -> None:
    from asgiref.sync import sync_to_async_iterator

    async for _ in sync_to_async_iterator(range(n)):
        pass


@case(AHEAD, HERE, batch=1000)
async def items_ahead(n: int) -> None:
    from asgiref.sync import sync_to_async_iterator

    async for _ in sync_to_async_iterator(range(1000 * n), read_ahead=64):
        pass


@case(ITEM, NEXT)
async def items_by_calls(n: int) -> None:
    iterator = iter(range(n))
    call = sync_to_async(next)
    for _ in range(n):
        await call(iterator)


@case(ITEM, STARLETTE, needing="starlette")
async def items_by_starlette(n: int) -> None:
    from starlette.concurrency import iterate_in_threadpool

    async for _ in iterate_in_threadpool(range(n)):
        pass


@case(AHEAD, STARLETTE, batch=1000, needing="starlette")
async def many_items_by_starlette(n: int) -> None:
    await items_by_starlette(1000 * n)


@case(AHEAD, HOP, batch=1000)
async def hops(n: int) -> None:
    with hop() as thread:
        for _ in range(1000 * n):
            await thread.there_and_back()


class Manager:
    def __enter__(self) -> None:
        pass

    def __exit__(self, *exception: object) -> None:
        pass


@case(BLOCK, HERE)
async def block(n: int) -> None:
    from asgiref.sync import sync_to_async_context_manager

    bridged = sync_to_async_context_manager(Manager())
    for _ in range(n):
        async with bridged:
            pass


@case(BLOCK, TWO_CALLS)
async def two_calls(n: int) -> None:
    manager = Manager()
    enter, leave = sync_to_async(manager.__enter__), sync_to_async(manager.__exit__)
    for _ in range(n):
        await enter()
        await leave(None, None, None)
