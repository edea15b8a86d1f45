"""``ThreadSensitiveContext`` as a decorator of coroutine functions."""

from __future__ import annotations

import asyncio
import functools
import inspect
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

import pytest

from asgiref.sync import (
    SyncToAsync,
    ThreadSensitiveContext,
    async_to_sync,
    iscoroutinefunction,
    markcoroutinefunction,
    sync_to_async,
)

from ..helpers import LIMIT, idle_workers, no_garbage

look = sync_to_async(threading.current_thread)


def enclosing() -> Any:
    return SyncToAsync.thread_sensitive_context.get(None)


@ThreadSensitiveContext()
async def two_threads() -> set[threading.Thread]:
    """Return the threads of two calls."""
    return {await look(), await look()}


async def test_each_call_is_a_block() -> None:
    outside = await look()
    [inside] = await two_threads()
    assert outside is not inside
    assert inside in idle_workers()
    assert enclosing() is None


async def test_calls_at_the_same_time_have_different_threads() -> None:
    both = threading.Barrier(2)

    @ThreadSensitiveContext()
    async def meet() -> threading.Thread:
        await sync_to_async(both.wait)(LIMIT)
        return await look()

    one, two = await asyncio.gather(meet(), meet())
    assert one is not two


async def test_call_inside_another_is_in_the_block_of_that() -> None:
    @ThreadSensitiveContext()
    async def count_down(number: int) -> set[tuple[threading.Thread, Any]]:
        here = {(await look(), enclosing())}
        return here if number == 0 else here | await count_down(number - 1)

    assert 1 == len(await count_down(3))


async def test_one_object_decorates_several_functions_and_is_a_block_as_before() -> None:
    context = ThreadSensitiveContext()

    @context
    async def one() -> tuple[threading.Thread, Any]:
        return await look(), enclosing()

    @context
    async def two() -> tuple[threading.Thread, Any]:
        return await look(), enclosing()

    outside = await look()
    blocks = [await one(), await two(), await one()]
    assert all(thread is not outside for thread, _ in blocks)
    assert 3 == len({block for _, block in blocks})
    async with context:
        assert enclosing() is context
        assert (await look(), context) == await one()


async def test_each_call_is_a_block_on_the_executor() -> None:
    with ThreadPoolExecutor(1) as executor:
        own = executor.submit(threading.current_thread).result()

        @ThreadSensitiveContext(executor=executor)
        async def call(depth: int) -> list[threading.Thread]:
            threads = [await look()]
            return threads + (await call(depth - 1) if depth else [])

        outside = await look()
        assert [own] * 3 == await call(2)
        assert [[own], [own]] == list(await asyncio.gather(call(0), call(0)))
        async with ThreadSensitiveContext():
            assert [own] == await call(0)
        assert outside is await look()


def test_block_on_the_executor_takes_effect_below_async_to_sync() -> None:
    with ThreadPoolExecutor(1) as executor:

        @ThreadSensitiveContext(executor=executor)
        async def call() -> threading.Thread:
            return await look()

        async def both() -> tuple[threading.Thread, threading.Thread]:
            return await call(), await look()

        inside, afterwards = async_to_sync(both)()
        assert {inside} == executor._threads
        assert threading.current_thread() is afterwards


async def test_arguments_result_and_exception_are_those_of_the_function() -> None:
    @ThreadSensitiveContext()
    async def divide(one: int, /, *, self: int, function: int = 1) -> float:
        return one / self / function

    assert 2 == await divide(6, self=3)
    assert 1 == await divide(6, self=3, function=2)
    with pytest.raises(ZeroDivisionError) as caught:
        await divide(1, self=0)
    assert caught.value.__context__ is None
    with pytest.raises(TypeError, match="missing 1 required"):
        await divide(self=1)  # type: ignore[call-arg]
    assert enclosing() is None


async def test_cancelled_call_gives_its_thread_back() -> None:
    inside: list[threading.Thread] = []
    looked = asyncio.Event()

    @ThreadSensitiveContext()
    async def wait() -> None:
        inside.append(await look())
        looked.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(wait())
    await asyncio.wait_for(looked.wait(), LIMIT)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert inside[0] in idle_workers()


def test_description_and_marks_are_kept() -> None:
    assert "two_threads" == two_threads.__name__ == two_threads.__qualname__
    assert "Return the threads of two calls." == two_threads.__doc__
    assert __name__ == two_threads.__module__
    assert iscoroutinefunction(two_threads)
    assert inspect.iscoroutinefunction(two_threads)

    async def view(request: int, *, name: str = "") -> bytes:
        return b""

    view.csrf_exempt = True  # type: ignore[attr-defined]
    decorated: Any = ThreadSensitiveContext()(view)
    assert decorated.csrf_exempt
    assert view is decorated.__wrapped__
    assert inspect.signature(view) == inspect.signature(decorated)
    assert view.__annotations__ == decorated.__annotations__


class Orders:
    @ThreadSensitiveContext()
    async def method(self, one: int) -> tuple[Orders, int, int]:
        return self, one, len({await look(), await look()})

    @classmethod
    @ThreadSensitiveContext()
    async def of_class(cls, one: int) -> tuple[type[Orders], int, int]:
        return cls, one, len({await look(), await look()})

    @staticmethod
    @ThreadSensitiveContext()
    async def static(one: int) -> tuple[int, int]:
        return one, len({await look(), await look()})


async def test_methods() -> None:
    orders = Orders()
    assert (orders, 1, 1) == await orders.method(1)
    assert (orders, 1, 1) == await Orders.method(orders, 1)
    assert (Orders, 1, 1) == await orders.of_class(1)
    assert (1, 1) == await Orders.static(1)
    assert orders.method == orders.method
    assert ["one"] == list(inspect.signature(orders.method).parameters)
    bound = ThreadSensitiveContext()(orders.method)
    assert (orders, 2, 1) == await bound(2)
    assert "method" == bound.__name__


async def number_in_block(one: int, two: int = 0) -> tuple[int, bool]:
    return one + two, enclosing() is not None


class AsyncCallable:
    def __init__(self) -> None:
        self.context = self.block = "an attribute of the callable"

    async def __call__(self, one: int, two: int = 0) -> tuple[int, bool]:
        return await number_in_block(one, two)


class Marked:
    def __call__(self, one: int, two: int = 0) -> Coroutine[Any, Any, tuple[int, bool]]:
        return number_in_block(one, two)


def returns_awaitable(one: int, two: int = 0) -> Coroutine[Any, Any, tuple[int, bool]]:
    return number_in_block(one, two)


@pytest.mark.parametrize(
    "function",
    [
        number_in_block,
        functools.partial(number_in_block, two=0),
        functools.partial(functools.partial(number_in_block), two=0),
        AsyncCallable(),
        functools.partial(AsyncCallable(), two=0),
        markcoroutinefunction(Marked()),
        markcoroutinefunction(returns_awaitable),
        ThreadSensitiveContext()(number_in_block),
    ],
    ids=lambda function: type(function).__name__,
)
async def test_kinds_of_coroutine_functions(function: Callable[..., Coroutine[Any, Any, Any]]) -> None:
    decorated = ThreadSensitiveContext()(function)
    assert iscoroutinefunction(decorated)
    assert inspect.signature(function) == inspect.signature(decorated)
    assert (3, True) == await decorated(1, two=2)


async def test_result_of_sync_to_async_is_a_coroutine_function_too() -> None:
    assert await look() is not await ThreadSensitiveContext()(look)()


def plain(one: int = 1) -> int:
    return one


def generator() -> Iterator[int]:
    yield 1


async def asynchronous_generator(one: int = 1) -> AsyncIterator[int]:
    yield one


class AsynchronousGeneratorCallable:
    async def __call__(self) -> AsyncIterator[int]:
        yield 1


@pytest.mark.parametrize("function", [plain, generator, print, len, int, functools.partial(plain, 1), "plain", None])
def test_what_is_no_coroutine_function_is_refused_with_what_to_do(function: Any) -> None:
    with pytest.raises(TypeError, match=r"is not one; decorate the `async def` function that awaits sync_to_async"):
        ThreadSensitiveContext()(function)


@pytest.mark.parametrize(
    "function",
    [
        asynchronous_generator,
        functools.partial(asynchronous_generator, 1),
        AsynchronousGeneratorCallable(),
    ],
)
def test_asynchronous_generator_function_is_refused_with_what_to_do(function: Any) -> None:
    with pytest.raises(TypeError, match=r"write `async with ThreadSensitiveContext\(\):` around the `async for`"):
        ThreadSensitiveContext()(function)


@pytest.mark.parametrize("kind", [staticmethod, classmethod])
def test_static_and_class_methods_are_refused_in_the_wrong_order(kind: Any) -> None:
    with pytest.raises(TypeError, match=rf"write @ThreadSensitiveContext\(\) below @{kind.__name__}"):
        ThreadSensitiveContext()(kind(number_in_block))


async def test_attributes_of_a_subclass_are_those_of_each_block() -> None:
    entered: list[Tagged] = []

    class Tagged(ThreadSensitiveContext):
        def __init__(self, tag: str, executor: Executor | None = None) -> None:
            super().__init__(executor=executor)
            self.tag = tag

        async def __aenter__(self) -> Tagged:
            entered.append(self)
            await super().__aenter__()
            return self

    with ThreadPoolExecutor(1) as executor:
        context = Tagged("report", executor)
        function = context(number_in_block)
        assert (1, True) == await function(1)
        async with context:
            assert (2, True) == await function(2)
        assert (3, True) == await function(3)
    assert ["report"] * 4 == [each.tag for each in entered]
    assert 4 == len(set(entered))


async def test_call_leaves_no_garbage() -> None:
    @ThreadSensitiveContext()
    async def fail() -> None:
        await look()
        raise KeyError

    async def both() -> None:
        await two_threads()
        with pytest.raises(KeyError):
            await fail()

    await both()
    with no_garbage():
        await both()
