"""``ThreadSensitiveContext`` as a decorator: each call of the coroutine function is a separate block."""

from __future__ import annotations

import copy
import functools
import inspect
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from ..sync import ThreadSensitiveContext, iscoroutinefunction

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

__all__ = ["decorated"]

P = ParamSpec("P")
R = TypeVar("R")


def decorated(
    block: ThreadSensitiveContext, function: Callable[P, Awaitable[R]]
) -> Callable[P, Coroutine[Any, Any, R]]:
    """Return *function* with a block like *block* around each call."""
    _check(function)

    # A plain function: Python binds it as a method and recognizes it as a coroutine function.
    @functools.wraps(function)
    async def call_in_thread_sensitive_context(*args: P.args, **kwargs: P.kwargs) -> R:
        __traceback_hide__ = True
        async with _another(block):
            return await function(*args, **kwargs)

    return call_in_thread_sensitive_context


def _another(block: ThreadSensitiveContext) -> ThreadSensitiveContext:
    """Return a block of the same class, and with the same attributes of a subclass, that has not been entered."""
    another = copy.copy(block)
    ThreadSensitiveContext.__init__(another, executor=block._executor)
    return another


def _check(function: Any) -> None:
    if isinstance(function, staticmethod | classmethod):
        kind = type(function).__name__
        raise TypeError(
            f"ThreadSensitiveContext() was given the {kind} {_name_of(function)}, but it decorates coroutine "
            f"functions; write @ThreadSensitiveContext() below @{kind}"
        )
    called = function
    while isinstance(called, functools.partial):
        called = called.func
    # Looked up on the type, because Python ignores a ``__call__`` in the object's ``__dict__``.
    if not inspect.isroutine(called) and not isinstance(called, type):
        called = getattr(type(called), "__call__", called)  # noqa: B004
    if iscoroutinefunction(function) or iscoroutinefunction(called):
        return
    if inspect.isasyncgenfunction(called):
        raise TypeError(
            f"ThreadSensitiveContext() cannot decorate {_name_of(function)}, an asynchronous generator function: its "
            "code runs in the context of its consumer; write `async with ThreadSensitiveContext():` around "
            "the `async for`"
        )
    raise TypeError(
        f"ThreadSensitiveContext() decorates coroutine functions, and {_name_of(function)} is not one; decorate the "
        "`async def` function that awaits sync_to_async(...), or, if this one returns an awaitable, mark it with "
        "asgiref.sync.markcoroutinefunction"
    )


def _name_of(function: Any) -> str:
    return getattr(function, "__qualname__", None) or repr(function)
