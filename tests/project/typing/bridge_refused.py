"""``asgiref.sync``: mistakes around the bridge that must be refused.

Each line that must be refused has a ``# type: ignore[code]`` for both checkers, and both report superfluous markers:
mypy because it is strict, pyright because of the setting below, although it does not compare codes. Nothing is run.
"""

# pyright: strict, reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from concurrent.futures import Executor
from typing import Any, TypeVar, overload

from asgiref.current_thread_executor import CurrentThreadExecutor
from asgiref.local import Local
from asgiref.sync import AsyncToSync, SyncToAsync, ThreadSensitiveContext, async_to_sync, sync_to_async

T = TypeVar("T")


def plain(one: int, *, two: str = "") -> bytes:
    raise NotImplementedError


async def plain_async(one: int, *, two: str = "") -> bytes:
    raise NotImplementedError


def generic(items: list[T]) -> T:
    raise NotImplementedError


@overload
def overloaded(one: int) -> str: ...
@overload
def overloaded(one: str) -> int: ...
def overloaded(one: Any) -> Any: ...


async def arguments() -> None:
    await sync_to_async(plain)("1")  # type: ignore[arg-type]
    await sync_to_async(plain)()  # type: ignore[call-arg]
    await sync_to_async(plain)(1, "")  # type: ignore[call-arg]
    await sync_to_async(plain)(1, three="")  # type: ignore[call-arg]
    await sync_to_async(thread_sensitive=False)(plain)("1")  # type: ignore[arg-type]
    await sync_to_async(generic)(1)  # type: ignore[arg-type]
    await sync_to_async(overloaded)(b"")  # type: ignore[call-overload]
    async_to_sync(plain_async)("1")  # type: ignore[arg-type]
    async_to_sync(plain_async, force_new_loop=True)()  # type: ignore[call-arg]
    await SyncToAsync(plain)("1")  # type: ignore[arg-type]
    AsyncToSync(plain_async)("1")  # type: ignore[arg-type]


async def results() -> None:
    a: str = await sync_to_async(plain)(1)  # type: ignore[assignment]
    b: bytes = sync_to_async(plain)(1)  # type: ignore[assignment]
    c: str = async_to_sync(plain_async)(1)  # type: ignore[assignment]
    d: str = await sync_to_async(generic)([1])  # type: ignore[list-item]
    e: str = await sync_to_async(overloaded)("")  # type: ignore[assignment]
    await async_to_sync(plain_async)(1)  # type: ignore[misc]
    asyncio.run(async_to_sync(plain_async)(1))  # type: ignore[arg-type]
    sync_to_async(plain)(1)  # type: ignore[unused-coroutine]
    f: SyncToAsync[[str], bytes] = SyncToAsync(plain)  # type: ignore[arg-type]
    g: Coroutine[Any, Any, str] = SyncToAsync(plain)(1)  # type: ignore[assignment]
    h: bytes = await sync_to_async(plain_async)(1)  # type: ignore[assignment]
    print(a, b, c, d, e, f, g, h)


def options(executor: Executor) -> None:
    sync_to_async(plain, False)  # type: ignore[call-overload]
    sync_to_async(plain, False, executor)  # type: ignore[call-overload]
    sync_to_async(plain, thread_sensitve=False)  # type: ignore[call-overload]
    sync_to_async(plain, thread_sensitive=False, executor=4)  # type: ignore[call-overload]
    sync_to_async(plain, context={})  # type: ignore[call-overload]
    # Thread-sensitive code does not use an executor.
    sync_to_async(plain, executor=executor)  # type: ignore[call-overload]
    sync_to_async(plain, executor=executor, context=None)  # type: ignore[call-overload]
    sync_to_async(executor=executor)  # type: ignore[call-overload]
    async_to_sync(plain_async, True)  # type: ignore[call-overload]
    async_to_sync(plain_async, force_new_loop="no")  # type: ignore[call-overload]
    async_to_sync(loop=None)  # type: ignore[call-overload]


def not_functions() -> None:
    sync_to_async(plain(1))  # type: ignore[call-overload]
    sync_to_async("plain")  # type: ignore[call-overload]
    async_to_sync(plain_async(1))  # type: ignore[call-overload]
    async_to_sync(plain)  # type: ignore[arg-type]
    async_to_sync(force_new_loop=True)(plain)  # type: ignore[arg-type]
    AsyncToSync(plain)  # type: ignore[arg-type]


class Storage(Local):  # type: ignore[misc]
    ...


def submit(executor: CurrentThreadExecutor) -> str:
    executor.submit(plain, "1")  # type: ignore[arg-type]
    executor.submit(plain)  # type: ignore[call-arg]
    return executor.submit(plain, 1).result()  # type: ignore[return-value]


@async_to_sync  # type: ignore[arg-type]
def not_async(one: int) -> str:
    raise NotImplementedError


class Methods:
    @sync_to_async
    def method(self, one: int) -> str:
        raise NotImplementedError

    @async_to_sync(force_new_loop=True)
    async def method_async(self, one: int) -> str:
        raise NotImplementedError

    @classmethod
    @sync_to_async
    def of_class(cls, one: int) -> str:
        raise NotImplementedError

    @staticmethod
    @sync_to_async
    def static(one: int) -> str:
        raise NotImplementedError


async def methods(instance: Methods) -> None:
    await instance.method("1")  # type: ignore[arg-type]
    await instance.method(instance, 1)  # type: ignore[call-arg, arg-type]
    await Methods.method(1)  # type: ignore[call-arg, arg-type]
    instance.method_async("1")  # type: ignore[arg-type]
    await instance.method_async(1)  # type: ignore[misc]
    await Methods.of_class("1")  # type: ignore[arg-type]
    await instance.static("1")  # type: ignore[arg-type]
    await Methods.static()  # type: ignore[call-arg]


@ThreadSensitiveContext()  # type: ignore[arg-type]
def plain_in_block(one: int) -> str:
    raise NotImplementedError


@ThreadSensitiveContext()  # type: ignore[arg-type]
async def steps_in_block(one: int) -> AsyncIterator[str]:
    yield ""


@ThreadSensitiveContext  # type: ignore[arg-type, call-arg]
async def without_parentheses(one: int) -> str:
    raise NotImplementedError


@ThreadSensitiveContext()
async def in_block(one: int) -> str:
    raise NotImplementedError


async def contexts_as_decorators() -> None:
    await in_block("1")  # type: ignore[arg-type]
    await in_block()  # type: ignore[call-arg]
    (await in_block(1)).append("")  # type: ignore[attr-defined]
