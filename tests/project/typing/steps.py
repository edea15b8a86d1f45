"""``asgiref.sync``: types of iterators and context managers across the bridge; see ``bridge``."""

# pyright: strict, reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator
from concurrent.futures import Executor
from typing import TypeVar, assert_type

from asgiref.sync import (
    async_to_sync_context_manager,
    async_to_sync_iterator,
    sync_to_async_context_manager,
    sync_to_async_iterator,
)

T = TypeVar("T")


def rows(count: int, *, name: str = "") -> Iterator[bytes]:
    raise NotImplementedError


def generic(items: list[T]) -> list[T]:
    raise NotImplementedError


@contextlib.contextmanager
def session(name: str) -> Generator[int]:
    raise NotImplementedError


class Store:
    @sync_to_async_iterator
    def rows(self, count: int) -> Iterator[str]:
        raise NotImplementedError

    @sync_to_async_context_manager(thread_sensitive=False)
    @contextlib.contextmanager
    def session(self, name: str) -> Generator[bytes]:
        raise NotImplementedError


async def iterators(executor: Executor) -> None:
    async for number in sync_to_async_iterator([1, 2]):
        assert_type(number, int)
    async for row in sync_to_async_iterator(rows(1), thread_sensitive=False, executor=executor):
        assert_type(row, bytes)
    async with contextlib.aclosing(sync_to_async_iterator(rows)(1, name="one")) as each:
        assert_type(await anext(each), bytes)
    decorated = sync_to_async_iterator(thread_sensitive=False)(rows)
    assert_type(await anext(sync_to_async_iterator([1], read_ahead=5)), int)
    assert_type(await anext(sync_to_async_iterator(rows, read_ahead=5)(1)), bytes)
    assert_type(await anext(sync_to_async_iterator(read_ahead=5)(rows)(1)), bytes)
    assert_type(await anext(decorated(1)), bytes)
    assert_type(await anext(sync_to_async_iterator(rows, thread_sensitive=False)(1)), bytes)
    assert_type(await anext(sync_to_async_iterator(generic)(["a"])), str)
    assert_type([item async for item in sync_to_async_iterator(range)(3)], list[int])
    items: AsyncIterator[int] = sync_to_async_iterator({1: ""})
    await anext(items)
    sync_to_async_iterator(rows)("1")  # type: ignore[arg-type]
    sync_to_async_iterator(rows)(1, other=1)  # type: ignore[call-arg]
    sync_to_async_iterator(1)  # type: ignore[call-overload]


async def methods(store: Store) -> None:
    async for row in store.rows(1):
        assert_type(row, str)
    async with store.session("one") as value:
        assert_type(value, bytes)


async def managers(executor: Executor) -> None:
    async with sync_to_async_context_manager(threading.Lock()) as locked:
        assert_type(locked, bool)
    async with sync_to_async_context_manager(session("one"), thread_sensitive=False, executor=executor) as value:
        assert_type(value, int)
    async with sync_to_async_context_manager(session)("one") as value:
        assert_type(value, int)
    async with sync_to_async_context_manager(session, thread_sensitive=False)("one") as value:
        assert_type(value, int)
    sync_to_async_context_manager(session)(1)  # type: ignore[arg-type]
    sync_to_async_context_manager(1)  # type: ignore[call-overload]


async def lines(count: int, *, name: str = "") -> AsyncIterator[bytes]:
    raise NotImplementedError
    yield


async def mapped(items: list[T]) -> AsyncIterator[T]:
    raise NotImplementedError
    yield


@contextlib.asynccontextmanager
async def client(name: str) -> AsyncGenerator[int]:
    raise NotImplementedError
    yield


class AsyncStore:
    @async_to_sync_iterator
    async def rows(self, count: int) -> AsyncIterator[str]:
        raise NotImplementedError
        yield

    @async_to_sync_iterator(read_ahead=5)
    async def numbers(self) -> AsyncIterator[int]:
        raise NotImplementedError
        yield

    @async_to_sync_context_manager
    @contextlib.asynccontextmanager
    async def client(self, name: str) -> AsyncGenerator[bytes]:
        raise NotImplementedError
        yield


def to_sync_iterators() -> None:
    for line in async_to_sync_iterator(lines(1), read_ahead=5):
        assert_type(line, bytes)
    with contextlib.closing(async_to_sync_iterator(lines)(1, name="one")) as each:
        assert_type(next(each), bytes)
    decorated = async_to_sync_iterator(read_ahead=5)(lines)
    assert_type(next(decorated(1)), bytes)
    assert_type(next(async_to_sync_iterator(lines, read_ahead=5)(1)), bytes)
    assert_type(next(async_to_sync_iterator(mapped)(["a"])), str)
    items: Iterator[bytes] = async_to_sync_iterator(lines(2))
    next(items)
    async_to_sync_iterator(lines)("1")  # type: ignore[arg-type]
    async_to_sync_iterator(lines)(1, other=1)  # type: ignore[call-arg]
    async_to_sync_iterator(1)  # type: ignore[call-overload]


def to_sync_managers(store: AsyncStore) -> None:
    for row in store.rows(1):
        assert_type(row, str)
    for number in store.numbers():
        assert_type(number, int)
    with store.client("one") as value:
        assert_type(value, bytes)
    with async_to_sync_context_manager(asyncio.Lock()) as locked:
        assert_type(locked, None)
    with async_to_sync_context_manager(client("one")) as number:
        assert_type(number, int)
    with async_to_sync_context_manager(client)("one") as number:
        assert_type(number, int)
    with async_to_sync_context_manager()(client)("one") as number:
        assert_type(number, int)
    async_to_sync_context_manager(client)(1)  # type: ignore[arg-type]
    async_to_sync_context_manager(1)  # type: ignore[call-overload]
