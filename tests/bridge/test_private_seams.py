"""Private names that released packages use: overridden, wrapped, or set."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import functools
import os
import threading
from typing import Any

import pytest

from asgiref import sync
from asgiref.current_thread_executor import CurrentThreadExecutor
from asgiref.local import Local
from asgiref.sync import AsyncToSync, SyncToAsync, ThreadSensitiveContext, async_to_sync, sync_to_async

from ..helpers import Thread


def thread() -> threading.Thread:
    return threading.current_thread()


async def test_subclass_that_overrides_thread_handler() -> None:
    """Channels closes database connections in this way around each call."""
    order: list[Any] = []

    class Closing(SyncToAsync[..., Any]):
        def thread_handler(self, loop: Any, *args: Any, **kwargs: Any) -> Any:
            order.append(thread())
            try:
                return super().thread_handler(loop, *args, **kwargs)
            finally:
                order.append("closed")

    assert 3 == await Closing(sum)([1, 2])
    assert [await sync_to_async(thread)(), "closed"] == order


async def test_thread_handler_gets_a_partial_whose_keywords_can_be_popped(monkeypatch: pytest.MonkeyPatch) -> None:
    """New Relic does so: a keyword added to ``__call__`` is removed again on the thread."""
    call, handler = SyncToAsync.__call__, SyncToAsync.thread_handler
    seen: list[Any] = []

    async def patched_call(self: Any, *args: Any, **kwargs: Any) -> Any:
        kwargs["_trace"] = "trace"
        return await call(self, *args, **kwargs)

    def patched_handler(self: Any, loop: Any, exc_info: Any, task_context: Any, func: Any, *args: Any) -> Any:
        child = args[0]
        assert isinstance(child, functools.partial)
        assert isinstance(func.__self__, contextvars.Context)
        seen.append(child.keywords.pop("_trace"))
        return handler(self, loop, exc_info, task_context, func, *args)

    class WithMethod:
        @sync_to_async
        def method(self, number: int) -> int:
            return number

    made_before: Any = sync_to_async(sum)
    monkeypatch.setattr(SyncToAsync, "__call__", patched_call)
    monkeypatch.setattr(SyncToAsync, "thread_handler", patched_handler)
    assert 3 == await made_before([1, 2])
    assert 4 == await WithMethod().method(4)
    assert ["trace", "trace"] == seen


def test_main_wrap_is_looked_up_for_each_call_and_its_result_may_be_wrapped(monkeypatch: pytest.MonkeyPatch) -> None:
    main_wrap = AsyncToSync.main_wrap
    seen: list[Any] = []

    def patched(self: Any, *args: Any, **kwargs: Any) -> Any:
        coroutine = main_wrap(self, *args, **kwargs)

        async def wrapped() -> None:
            await coroutine
            seen.append(len(args))

        return wrapped()

    async def nothing() -> str:
        return "result"

    made_before = async_to_sync(nothing)
    monkeypatch.setattr(AsyncToSync, "main_wrap", patched)
    assert "result" == made_before()
    assert [5] == seen


def test_replaced_main_wrap_that_never_settles_the_call_fails_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The call fails once, with an error that names the replacement; the thread does not retry."""
    calls: list[Any] = []

    def patched(self: Any, *args: Any) -> Any:
        args[-1].close()

        async def wrapped() -> None:
            calls.append(asyncio.get_running_loop())

        return wrapped()

    async def nothing() -> None: ...

    monkeypatch.setattr(AsyncToSync, "main_wrap", patched)
    with pytest.raises(RuntimeError, match="main_wrap"):
        async_to_sync(nothing)()
    assert 1 == len(calls)


async def test_executor_is_given_a_partial_of_thread_handler() -> None:
    given: list[Any] = []

    class Executor(concurrent.futures.ThreadPoolExecutor):
        def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Any:
            given.append(function)
            return super().submit(function, *args, **kwargs)

    wrapped = sync_to_async(thread, thread_sensitive=False, executor=Executor(1))
    await wrapped()
    [partial] = given
    assert isinstance(partial, functools.partial)
    assert isinstance(wrapped, SyncToAsync)
    assert wrapped.thread_handler == partial.func
    wrapped._executor.shutdown()  # type: ignore[union-attr]


async def test_single_thread_executor_needs_no_more_than_submit(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="theirs")

    class Submitter:
        def submit(self, function: Any, *args: Any) -> concurrent.futures.Future[Any]:
            return pool.submit(function, *args)

    monkeypatch.setattr(SyncToAsync, "single_thread_executor", Submitter())
    assert (await sync_to_async(thread)()).name.startswith("theirs")
    pool.shutdown()


async def test_threads_of_the_single_thread_executor_can_be_read() -> None:
    ran_on = await sync_to_async(thread)()
    assert {ran_on} == SyncToAsync.single_thread_executor._threads  # type: ignore[attr-defined]


async def test_thread_local_tells_the_home_loop() -> None:
    def look() -> dict[str, Any]:
        return vars(SyncToAsync.threadlocal).copy()

    values = await sync_to_async(look)()
    assert asyncio.get_running_loop() is values["main_event_loop"]
    assert os.getpid() == values["main_event_loop_pid"]
    assert [] == values["task_context"]


async def test_home_loop_can_be_cut_off_for_the_rest_of_a_call() -> None:
    async def loop() -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    def cut_off() -> Any:
        SyncToAsync.threadlocal.main_event_loop = None
        return async_to_sync(loop)()

    def clear_and_restore() -> Any:
        saved = SyncToAsync.threadlocal.__dict__.copy()
        SyncToAsync.threadlocal.__dict__.clear()
        fresh = async_to_sync(loop)()
        SyncToAsync.threadlocal.__dict__.update(saved)
        return fresh, async_to_sync(loop)()

    here = asyncio.get_running_loop()
    assert here is not await sync_to_async(cut_off)()
    assert here is await sync_to_async(async_to_sync(loop))()
    fresh, home = await sync_to_async(clear_and_restore)()
    assert fresh is not here is home


def test_current_executor_can_be_read_and_set() -> None:
    async def look() -> tuple[Any, Any]:
        return AsyncToSync.executors.current, AsyncToSync.loop_thread_executors[asyncio.get_running_loop()]

    assert AsyncToSync.executors.current is None
    one, two = async_to_sync(look)()
    assert one is two
    assert isinstance(one, CurrentThreadExecutor)
    assert {} == AsyncToSync.loop_thread_executors
    assert isinstance(AsyncToSync.executors, Local)
    assert AsyncToSync.executors.current is None
    with pytest.raises(AttributeError):
        AsyncToSync.executors.other

    def elsewhere() -> bool:
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            AsyncToSync.executors.current = pool
            ran_on = asyncio.run(sync_to_async(thread)())
            return ran_on in pool._threads

    assert Thread(elsewhere).get()


async def test_current_executor_is_none_below_sync_to_async_alone() -> None:
    def look() -> Any:
        return AsyncToSync.executors.current

    assert await sync_to_async(look)() is None
    assert AsyncToSync.executors.current is None


async def test_attributes_of_the_wrappers() -> None:
    context = contextvars.copy_context()
    one = SyncToAsync(thread, False, None, context)
    assert (thread, thread, False, None, context) == (
        one.func,
        one.__wrapped__,
        one._thread_sensitive,
        one._executor,
        one.context,
    )

    async def nothing() -> None: ...

    two = AsyncToSync(nothing, True)
    assert (nothing, True) == (two.awaitable, two.force_new_loop)


async def test_restoring_of_contexts_can_be_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    variable = contextvars.ContextVar("variable", default="before")
    restored: list[dict[Any, Any]] = []
    monkeypatch.setattr(sync, "_restore_context", lambda context: restored.append(dict(context)))
    await sync_to_async(variable.set)("after")
    assert [{variable: "after"}] == restored
    assert "before" == variable.get()


async def test_contexts_can_be_subclassed_and_entered_by_hand() -> None:
    class Mine(ThreadSensitiveContext):
        pass

    context = Mine()
    outside = await sync_to_async(thread)()
    SyncToAsync.thread_sensitive_context.set(context)
    assert outside is not await sync_to_async(thread)()
    executor = SyncToAsync.context_to_thread_executor.pop(context)
    executor.shutdown()
    assert context.token is None


async def test_deadlock_context_is_there_to_be_set() -> None:
    token = SyncToAsync.deadlock_context.set(True)
    assert await sync_to_async(thread)() is not thread()
    SyncToAsync.deadlock_context.reset(token)
