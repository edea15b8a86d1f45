"""``asgiref.sync``: parameters and results that the bridge must keep.

``assert_type`` fixes the types. Nothing is run; the directory has no ``__init__.py``, or it could be mistaken for the
standard library's ``typing``.
"""

# pyright: strict, reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

import asyncio
import contextvars
import functools
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Executor
from typing import Any, Generic, TypeVar, assert_type, overload

from asgiref.current_thread_executor import CurrentThreadExecutor
from asgiref.sync import (
    AsyncToSync,
    SyncToAsync,
    ThreadSensitiveContext,
    ThreadSensitiveEventLoop,
    async_to_sync,
    sync_to_async,
    thread_sensitive_loop_factory,
)

T = TypeVar("T")


def plain(one: int, *, two: str = "") -> bytes:
    raise NotImplementedError


async def plain_async(one: int, *, two: str = "") -> bytes:
    raise NotImplementedError


def generic(items: list[T], key: Callable[[T], str]) -> dict[str, T]:
    raise NotImplementedError


async def generic_async(items: list[T], key: Callable[[T], str]) -> dict[str, T]:
    raise NotImplementedError


@overload
def overloaded(one: int) -> str: ...
@overload
def overloaded(one: str) -> int: ...
def overloaded(one: Any) -> Any: ...


@overload
async def overloaded_async(one: int) -> str: ...
@overload
async def overloaded_async(one: str) -> int: ...
async def overloaded_async(one: Any) -> Any: ...


async def calls(executor: Executor, context: contextvars.Context) -> None:
    assert_type(await sync_to_async(plain)(1, two=""), bytes)
    assert_type(await sync_to_async(plain, thread_sensitive=False)(1), bytes)
    assert_type(await sync_to_async(plain, thread_sensitive=False, executor=executor)(1), bytes)
    assert_type(await sync_to_async(plain, context=context)(1), bytes)
    assert_type(await sync_to_async(plain, executor=None, context=None)(1), bytes)
    assert_type(await sync_to_async(func=plain)(1), bytes)
    assert_type(await sync_to_async()(plain)(1), bytes)
    assert_type(await sync_to_async(None, thread_sensitive=True)(plain)(1), bytes)
    assert_type(await sync_to_async(thread_sensitive=False, executor=executor)(plain)(one=1), bytes)

    assert_type(await sync_to_async(generic)([1], str), dict[str, int])
    assert_type(await sync_to_async(thread_sensitive=False)(generic)([1], str), dict[str, int])
    assert_type(await sync_to_async(generic, thread_sensitive=False)([1], str), dict[str, int])

    assert_type(await sync_to_async(overloaded)(1), str)
    assert_type(await sync_to_async(overloaded)(""), int)
    assert_type(await sync_to_async(thread_sensitive=False)(overloaded)(""), int)

    # Callables of other kinds.
    assert_type(await sync_to_async(functools.partial(plain, 1))(), bytes)
    assert_type(await sync_to_async(lambda: 1)(), int)
    assert_type(await sync_to_async(Plain)(1), Plain)
    assert_type(await sync_to_async(Plain(1))(two=""), bytes)
    assert_type(await sync_to_async({"a": 1}.get)("a"), int | None)
    assert_type(await sync_to_async({"a": 1}.get)("a", 2), int)
    assert_type(await sync_to_async(sorted)([2, 1], reverse=True), list[int])

    # The standard library requires a coroutine.
    assert_type(asyncio.create_task(sync_to_async(plain)(1)), asyncio.Task[bytes])
    assert_type(await assert_type(sync_to_async(plain)(1), Coroutine[Any, Any, bytes]), bytes)


class Plain:
    def __init__(self, one: int) -> None: ...

    def __call__(self, *, two: str) -> bytes:
        raise NotImplementedError


def calls_the_other_way() -> None:
    assert_type(async_to_sync(plain_async)(1, two=""), bytes)
    assert_type(async_to_sync(plain_async, force_new_loop=True)(1), bytes)
    assert_type(async_to_sync(awaitable=plain_async)(1), bytes)
    assert_type(async_to_sync()(plain_async)(1), bytes)
    assert_type(async_to_sync(None)(plain_async)(1), bytes)
    assert_type(async_to_sync(force_new_loop=True)(plain_async)(one=1), bytes)

    assert_type(async_to_sync(generic_async)([1], str), dict[str, int])
    assert_type(async_to_sync(force_new_loop=True)(generic_async)([1], str), dict[str, int])

    assert_type(async_to_sync(overloaded_async)(1), str)
    assert_type(async_to_sync(overloaded_async)(""), int)
    assert_type(async_to_sync(force_new_loop=True)(overloaded_async)(""), int)

    async_to_sync(asyncio.sleep)(1)
    assert_type(async_to_sync(asyncio.sleep)(1, "done"), str)

    # Both directions.
    assert_type(async_to_sync(sync_to_async(plain))(1), bytes)
    assert_type(async_to_sync(sync_to_async(generic))([1], str), dict[str, int])

    def gives_awaitable(one: int) -> Awaitable[str]:
        raise NotImplementedError

    assert_type(async_to_sync(gives_awaitable)(1), str)


@sync_to_async
def decorated(one: int) -> str:
    raise NotImplementedError


@sync_to_async(thread_sensitive=False)
def decorated_with_options(items: list[T]) -> T:
    raise NotImplementedError


@async_to_sync
async def decorated_async(one: int) -> str:
    raise NotImplementedError


@async_to_sync(force_new_loop=True)
async def decorated_async_with_options(items: list[T]) -> T:
    raise NotImplementedError


async def decorators() -> None:
    assert_type(await decorated(1), str)
    assert_type(await decorated_with_options([1]), int)
    assert_type(decorated_async(1), str)
    assert_type(decorated_async_with_options([1]), int)
    assert_type(decorated.__name__, str)


class Methods(Generic[T]):
    value: T

    @sync_to_async
    def method(self, one: int) -> T:
        return self.value

    @sync_to_async(thread_sensitive=False)
    def method_with_options(self, one: list[T]) -> T:
        return self.value

    @async_to_sync
    async def method_async(self, one: int) -> T:
        return self.value

    @async_to_sync(force_new_loop=True)
    async def method_async_with_options(self, one: int) -> T:
        return self.value

    @classmethod
    @sync_to_async
    def of_class(cls, one: int) -> str:
        raise NotImplementedError

    @classmethod
    @async_to_sync
    async def of_class_async(cls, one: int) -> str:
        raise NotImplementedError

    @staticmethod
    @sync_to_async
    def static(one: int) -> str:
        raise NotImplementedError

    @staticmethod
    @async_to_sync
    async def static_async(one: int) -> str:
        raise NotImplementedError

    def get(self, one: int) -> str:
        raise NotImplementedError

    async_get = sync_to_async(get)

    @overload
    def overloaded(self, one: int) -> str: ...
    @overload
    def overloaded(self, one: str) -> int: ...
    def overloaded(self, one: Any) -> Any: ...

    async_overloaded = sync_to_async(overloaded)

    def __init__(self) -> None:
        self.of_instance = sync_to_async(self.get)


class Child(Methods[bytes]):
    @sync_to_async
    def method(self, one: int) -> bytes:
        return b""

    def put(self, one: int) -> str:
        raise NotImplementedError

    async_put = sync_to_async(put)

    async def calls(self) -> None:
        assert_type(await self.method(1), bytes)
        assert_type(await super().method(1), bytes)


async def methods(instance: Methods[bytes], child: type[Child]) -> None:
    assert_type(await instance.method(1), bytes)
    assert_type(await instance.method_with_options([b""]), bytes)
    assert_type(instance.method_async(1), bytes)
    assert_type(instance.method_async_with_options(1), bytes)
    assert_type(await instance.of_class(1), str)
    assert_type(instance.of_class_async(1), str)
    assert_type(await instance.static(1), str)
    assert_type(instance.static_async(1), str)
    assert_type(await instance.async_get(1), str)
    assert_type(await instance.async_overloaded(1), str)
    assert_type(await instance.async_overloaded(""), int)
    assert_type(await instance.of_instance(1), str)

    # Bound first, then bridged.
    assert_type(await sync_to_async(instance.get)(1), str)
    assert_type(await sync_to_async(instance.overloaded)(""), int)
    assert_type(async_to_sync(instance.method)(1), bytes)

    # Through the class.
    assert_type(await Methods[bytes].method(instance, 1), bytes)
    assert_type(Methods[bytes].method_async(instance, 1), bytes)
    assert_type(await Child.method(Child(), 1), bytes)
    assert_type(await Child.async_put(Child(), 1), str)
    assert_type(await Methods.of_class(1), str)
    assert_type(Methods.of_class_async(1), str)
    assert_type(await Methods.static(1), str)
    assert_type(Methods.static_async(1), str)
    assert_type(await child.method(child(), 1), bytes)


async def classes() -> None:
    bridged = SyncToAsync(plain, False)
    assert_type(await bridged(1, two=""), bytes)
    assert_type(bridged.func(1), bytes)
    assert_type(bridged.context, contextvars.Context | None)
    declared: SyncToAsync[[int], bytes] = SyncToAsync(plain)
    assert_type(await declared(1), bytes)
    assert_type(await SyncToAsync(generic)([1], str), dict[str, int])

    bridged_async = AsyncToSync(plain_async, force_new_loop=True)
    assert_type(bridged_async(1, two=""), bytes)
    assert_type(await bridged_async.awaitable(1), bytes)
    assert_type(bridged_async.force_new_loop, bool)
    declared_async: AsyncToSync[[int], bytes] = AsyncToSync(plain_async)
    assert_type(declared_async(1), bytes)


class MethodsOfClasses:
    method = SyncToAsync(plain)

    def get(self, one: int) -> str:
        raise NotImplementedError

    async def get_async(self, one: int) -> str:
        raise NotImplementedError

    bridged = SyncToAsync(get)
    bridged_async = AsyncToSync(get_async)


async def bound_objects(instance: MethodsOfClasses) -> None:
    assert_type(await instance.bridged(1), str)
    assert_type(instance.bridged_async(1), str)
    assert_type(await MethodsOfClasses.bridged(instance, 1), str)
    assert_type(MethodsOfClasses.bridged_async(instance, 1), str)
    assert_type(MethodsOfClasses.bridged.thread_sensitive_context, contextvars.ContextVar[Any])


def attributes(callable_: Callable[[int], object]) -> None:
    """Attributes for code that inspects the object."""
    if isinstance(callable_, SyncToAsync):
        callable_.func(1)
    elif isinstance(callable_, AsyncToSync):
        callable_.awaitable(1)


def submit(executor: CurrentThreadExecutor) -> None:
    assert_type(executor.submit(plain, 1, two="").result(), bytes)
    assert_type(executor.submit(generic, [1], str).result(), dict[str, int])


class UsersLoop(asyncio.SelectorEventLoop):
    pass


def loops() -> None:
    """The class, and the result of the function, are loop factories; the loops keep their type."""
    asyncio.Runner(loop_factory=ThreadSensitiveEventLoop)
    asyncio.Runner(loop_factory=thread_sensitive_loop_factory(UsersLoop))
    assert_type(thread_sensitive_loop_factory(UsersLoop)(), UsersLoop)
    assert_type(ThreadSensitiveEventLoop().run_until_complete(plain_async(1)), bytes)
    ThreadSensitiveEventLoop().add_signal_handler(1, plain, 1)


def wrapper(func: Callable[..., T], executor: Executor | None, thread_sensitive: bool) -> Callable[..., Awaitable[T]]:
    """Code that passes options on is accepted."""
    return sync_to_async(func, thread_sensitive=thread_sensitive, executor=executor)


as_decorator: Callable[[Callable[[int], str]], Callable[[int], Coroutine[Any, Any, str]]] = sync_to_async()
as_decorator_async: Callable[[Callable[[int], Awaitable[str]]], Callable[[int], str]] = async_to_sync()


@ThreadSensitiveContext()
async def in_block(one: int, *, two: str = "") -> bytes:
    raise NotImplementedError


class Blocks:
    @ThreadSensitiveContext()
    async def method(self, one: int) -> str:
        raise NotImplementedError

    @classmethod
    @ThreadSensitiveContext()
    async def of_class(cls, one: int) -> str:
        raise NotImplementedError

    @staticmethod
    @ThreadSensitiveContext()
    async def static(one: int) -> str:
        raise NotImplementedError


class AsyncCallable:
    async def __call__(self, *, two: str) -> bytes:
        raise NotImplementedError


async def contexts_as_decorators(executor: Executor) -> None:
    assert_type(await in_block(1, two=""), bytes)
    assert_type(asyncio.create_task(in_block(1)), asyncio.Task[bytes])
    assert_type(await ThreadSensitiveContext(executor=executor)(generic_async)([1], str), dict[str, int])
    assert_type(await ThreadSensitiveContext()(overloaded_async)(1), str)
    assert_type(await ThreadSensitiveContext()(overloaded_async)(""), int)
    assert_type(await ThreadSensitiveContext()(functools.partial(plain_async, 1))(), bytes)
    assert_type(await ThreadSensitiveContext()(AsyncCallable())(two=""), bytes)
    assert_type(await ThreadSensitiveContext()(sync_to_async(plain))(1), bytes)
    assert_type(async_to_sync(in_block)(1), bytes)
    assert_type(await Blocks().method(1), str)
    assert_type(await Blocks.method(Blocks(), 1), str)
    assert_type(await ThreadSensitiveContext()(Blocks().method)(1), str)
    assert_type(await Blocks.of_class(1), str)
    assert_type(await Blocks().static(1), str)
