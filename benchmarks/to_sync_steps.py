"""Iterations and blocks of asynchronous code in a thread: more than one call."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from asgiref.sync import AsyncSingleThreadContext, async_to_sync

from .cases import HERE, case

ONE = "async_to_sync_iterator in AsyncSingleThreadContext"
AHEAD = "async_to_sync_iterator in AsyncSingleThreadContext, read_ahead=64"
MANAGER = "async_to_sync_context_manager in AsyncSingleThreadContext"

ANEXT = "async_to_sync(anext)"
NOT_AHEAD = "here, read_ahead=0"
TWO_CALLS = "two async_to_sync calls"


async def numbers(n: int) -> AsyncIterator[int]:
    for number in range(n):
        yield number


class Manager:
    async def __aenter__(self) -> None:
        pass

    async def __aexit__(self, *reason: object) -> None:
        pass


def iterate(n: int, read_ahead: int) -> None:
    from asgiref.sync import async_to_sync_iterator  # which upstream does not have

    with (
        AsyncSingleThreadContext(),
        contextlib.closing(async_to_sync_iterator(numbers(n), read_ahead=read_ahead)) as each,
    ):
        for _ in each:
            pass


@case(ONE, HERE)
@case(AHEAD, NOT_AHEAD)
def one_by_one(n: int) -> None:
    iterate(n, 0)


@case(AHEAD, HERE)
def ahead(n: int) -> None:
    iterate(n, 64)


@case(ONE, ANEXT)
def calls(n: int) -> None:
    async def step() -> Any:  # anext() itself would be warned of
        return await anext(iterator)

    iterator = numbers(n)
    call = async_to_sync(step)
    with AsyncSingleThreadContext():
        for _ in range(n):
            call()


@case(MANAGER, HERE)
def manager(n: int) -> None:
    from asgiref.sync import async_to_sync_context_manager

    bridged = async_to_sync_context_manager(Manager())
    with AsyncSingleThreadContext():
        for _ in range(n):
            with bridged:
                pass


@case(MANAGER, TWO_CALLS)
def two_calls(n: int) -> None:
    entered = Manager()
    enter, leave = async_to_sync(entered.__aenter__), async_to_sync(entered.__aexit__)
    with AsyncSingleThreadContext():
        for _ in range(n):
            enter()
            leave(None, None, None)
