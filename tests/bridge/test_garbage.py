"""No object of the library outlives a call."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import sys
import threading
import traceback
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from asgiref.sync import (
    AsyncSingleThreadContext,
    SyncToAsync,
    ThreadSensitiveContext,
    async_to_sync,
    sync_to_async,
)

from ..helpers import finished, let_idle_threads_run, no_garbage

pytestmark = pytest.mark.skipif(sys.implementation.name != "cpython", reason="counts references")


def fail() -> None:
    raise LookupError


async def fail_async() -> None:
    raise LookupError


def settle() -> None:
    """Wait until the thread of the process has dropped its last job."""
    finished(SyncToAsync.single_thread_executor)  # type: ignore[arg-type]


@pytest.mark.parametrize("thread_sensitive", [True, False])
def test_failing_sync_to_async_leaves_no_garbage(thread_sensitive: bool) -> None:
    call = sync_to_async(fail, thread_sensitive=thread_sensitive)

    async def main() -> None:
        for _ in range(5):
            try:
                await call()
            except LookupError:
                pass

    async def measured() -> None:
        await main()
        with no_garbage():
            await main()

    asyncio.run(measured())


@pytest.mark.parametrize("cancelled", [False, True])
def test_task_that_ends_with_an_exception_leaves_no_garbage(cancelled: bool) -> None:
    """The traceback of the exception refers to the frames that resumed the task."""

    async def main() -> None:
        for _ in range(5):
            task = asyncio.create_task(sync_to_async(fail)())
            await asyncio.sleep(0)
            if cancelled:
                task.cancel()
            await asyncio.wait([task])
            try:
                await task
            except (LookupError, asyncio.CancelledError):
                pass
            del task

    async def measured() -> None:
        await main()
        with no_garbage():
            await main()

    asyncio.run(measured())


def test_exception_kept_in_the_context_of_its_task_is_no_garbage() -> None:
    """1. A task resumes after a call. 2. It fails. 3. An object in its context, a request, keeps the exception."""
    request: contextvars.ContextVar[list[BaseException]] = contextvars.ContextVar("request")

    async def handle() -> None:
        request.set([])
        try:
            await sync_to_async(int)()
            raise LookupError
        except LookupError as error:
            request.get().append(error)

    async def main() -> None:
        for _ in range(5):
            await asyncio.create_task(handle())

    async def measured() -> None:
        await main()
        with no_garbage():
            await main()

    asyncio.run(measured())


@pytest.mark.parametrize("handling", [False, True])
def test_failing_async_to_sync_leaves_no_garbage(handling: bool) -> None:
    call = async_to_sync(fail_async)

    def main() -> None:
        for _ in range(5):
            try:
                call()
            except LookupError:
                pass

    def below() -> None:
        if handling:
            try:
                raise ValueError
            except ValueError:
                main()
        else:
            main()

    async def measured() -> None:
        await sync_to_async(below)()
        with no_garbage():
            await sync_to_async(below)()

    asyncio.run(measured())


def test_failing_top_level_call_leaves_no_more_garbage_than_a_loop_does() -> None:
    def count(call: Callable[[], Any]) -> int:
        gc.collect()
        gc.disable()
        try:
            for _ in range(5):
                try:
                    call()
                except LookupError:
                    pass
            let_idle_threads_run()
            return gc.collect()
        finally:
            gc.enable()

    assert count(async_to_sync(fail_async)) <= count(lambda: asyncio.run(fail_async()))
    with AsyncSingleThreadContext():
        async_to_sync(asyncio.sleep)(0)
        assert 0 == count(async_to_sync(fail_async))


def test_held_exceptions_hold_no_threads() -> None:
    errors: list[LookupError] = []
    before = threading.active_count()

    async def request() -> None:
        async with ThreadSensitiveContext():
            try:
                await sync_to_async(fail)()
            except LookupError as error:
                errors.append(error)

    async def main() -> None:
        for _ in range(50):
            await request()

    asyncio.run(main())
    for _ in range(50):
        try:
            async_to_sync(fail_async)()
        except LookupError as error:
            errors.append(error)
    assert 100 == len(errors)
    assert threading.active_count() < before + 10


def test_except_block_around_the_bridge_does_not_lengthen_the_traceback() -> None:
    async def inner() -> None: ...

    def depth(error: BaseException) -> int:
        return len(traceback.extract_tb(error.__traceback__))

    async def main() -> None:
        try:
            raise LookupError
        except LookupError as error:
            before = depth(error)
            for _ in range(3):
                await sync_to_async(async_to_sync(inner))()
            assert before == depth(error)

    asyncio.run(main())
    try:
        raise LookupError
    except LookupError as error:
        before = depth(error)
        for _ in range(3):
            async_to_sync(main)()
        assert before == depth(error)


@pytest.mark.parametrize("thread_sensitive", [True, False])
def test_idle_workers_keep_nothing_of_a_user(thread_sensitive: bool) -> None:
    class Argument:
        pass

    def use(argument: Argument) -> None: ...

    async def use_async(argument: Argument) -> None: ...

    variable = contextvars.ContextVar[Argument]("variable")
    references = []

    async def main() -> None:
        argument = Argument()
        references.append(weakref.ref(argument))
        variable.set(argument)
        await sync_to_async(use, thread_sensitive=thread_sensitive)(argument)
        async with ThreadSensitiveContext():
            await sync_to_async(async_to_sync(use_async))(argument)

    asyncio.run(main())
    contextvars.Context().run(async_to_sync(main))
    settle()
    gc.collect()
    assert [None, None] == [reference() for reference in references]


def test_loop_is_kept_by_nobody() -> None:
    references = []

    async def main() -> None:
        references.append(weakref.ref(asyncio.get_running_loop()))
        # Pyright cannot bridge an overloaded function twice.
        await sync_to_async(async_to_sync(asyncio.sleep))(0)  # pyright: ignore[reportCallIssue, reportArgumentType]

    asyncio.run(main())
    async_to_sync(main)()
    settle()
    gc.collect()
    assert [None, None] == [reference() for reference in references]


async def test_call_leaves_nothing_in_its_callers_context() -> None:
    def call() -> int:
        async_to_sync(asyncio.sleep)(0)
        return len(contextvars.copy_context())

    before = len(contextvars.copy_context())
    assert before == await sync_to_async(call)()
    assert before == len(contextvars.copy_context())
