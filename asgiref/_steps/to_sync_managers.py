"""``async_to_sync_context_manager``: ``with`` for asynchronous context managers."""

from __future__ import annotations

import asyncio
import functools
import inspect
import sys
import threading
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, Protocol, TypeVar, overload

from ..sync import AsyncSingleThreadContext
from .blocks import OpenBlocks
from .decorating import Decorated, name_of
from .tasks import OneTask, TaskEnded, refuse_on_loop

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager
    from types import TracebackType

__all__ = ["AsyncToSyncContextManager", "async_to_sync_context_manager"]

P = ParamSpec("P")
T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")

_NOTHING: Any = object()


class AsyncToSyncContextManager(Generic[T_co]):
    """A context manager; ``async_to_sync_context_manager`` makes it."""

    def __init__(self, make: Callable[[], Any], name: str) -> None:
        self._make, self._name = make, name
        self._blocks: OpenBlocks[_Block] = OpenBlocks()

    def __enter__(self) -> T_co:
        __traceback_hide__ = True
        refuse_on_loop(self._name)
        here = threading.get_ident()
        block = _Block(self._make, self._name)
        try:
            # Calls in the block must run on the loop of the block.
            block.calls.__enter__()
            value = block.step(block.enter)
            self._blocks.add(here, block)
        except BaseException as error:
            try:
                if block.entered and not block.given_up:  # interrupted in between
                    block.leave(type(error), error, error.__traceback__)
            finally:
                block.calls.__exit__(None, None, None)
            raise
        return value  # type: ignore[no-any-return]

    def __exit__(
        self, exc: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None
    ) -> bool | None:
        __traceback_hide__ = True
        refuse_on_loop(self._name)
        block = self._blocks.take(threading.get_ident())
        if block is None:
            raise RuntimeError(f"{self._name}: __exit__() was called, but no block is open; use `with`")
        try:
            return block.leave(exc, value, tb)
        finally:
            block.calls.__exit__(None, None, None)

    # An interrupt may come between __enter__ and the block, or before the first line of __exit__.
    def __del__(self, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        if is_finalizing():  # pragma: no cover: coverage has ended by then
            return
        for block in getattr(self, "_blocks", ()):
            block.end_unawaited()


class _Block(OneTask):
    """One use of a manager."""

    def __init__(self, make: Callable[[], Any], name: str) -> None:
        super().__init__(name)
        self.calls = AsyncSingleThreadContext()
        self._make_manager: Any = make
        self._name = name
        self._manager: Any = None
        # Set by enter(), until it is called.
        self._exit: Any = None
        self.entered = False
        # The outcome of a cancellation between enter and exit; the task is ``over`` when it is known.
        self._error: BaseException | None = None

    def end_unawaited(self) -> None:
        # Its loop, if it has one, then ends with the task.
        self._block = self.calls
        super().end_unawaited()

    # On the thread:

    def leave(self, exc: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> bool:
        """Leave the block; return whether the exception is suppressed."""
        __traceback_hide__ = True
        try:
            if not self.over:
                return bool(self.step(functools.partial(self.exit, exc, value, tb)))
        except TaskEnded:
            pass
        self.finish()
        return self._left_before(value)

    def _left_before(self, value: BaseException | None) -> bool:
        """Return or raise what __aexit__() did after a cancellation, if any; an error in the block comes first."""
        __traceback_hide__ = True
        error, self._error = self._error, None
        if error is not None and not (value is not None and isinstance(error, asyncio.CancelledError)):
            try:
                raise error
            finally:
                del error
        return False

    # In the task:

    async def enter(self) -> Any:
        __traceback_hide__ = True
        try:
            make, self._make_manager = self._make_manager, None
            manager = make()
            kind = type(manager)
            if not hasattr(kind, "__aenter__") or not hasattr(kind, "__aexit__"):
                raise _no_manager(manager, f"what {self._name} returned")
            leave = kind.__aexit__
            value = await kind.__aenter__(manager)
        except BaseException:
            self.over = True
            raise
        self._manager, self._exit = manager, leave
        self.entered = True
        return value

    async def exit(
        self, exc: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None
    ) -> bool:
        __traceback_hide__ = True
        try:
            if self._exit is None:
                return self._left_before(value)
            return await self._leave_manager(exc, value, tb)
        finally:
            self.over = True

    async def _leave_manager(self, *reason: Any) -> bool:
        __traceback_hide__ = True
        leave, self._exit = self._exit, None
        manager, self._manager = self._manager, None
        try:
            return bool(await leave(manager, *reason))
        finally:
            del leave, manager, reason

    async def interrupted(self, error: asyncio.CancelledError) -> None:
        """Leave the block with the cancellation: how long the thread will stay in the block is unknown."""
        try:
            if not await self._leave_manager(type(error), error, error.__traceback__):
                self._error = error
        except BaseException as raised:
            self._error = raised
        self.over = True

    async def end(self) -> None:
        """Leave a block that was entered after the thread had given up waiting."""
        if self._exit is not None:
            error = asyncio.CancelledError()
            await self._leave_manager(type(error), error, None)


def _no_manager(subject: Any, what: str) -> TypeError:
    if inspect.iscoroutine(subject):
        subject.close()
    if hasattr(type(subject), "__enter__"):
        return TypeError(
            f"async_to_sync_context_manager needs an asynchronous context manager, but {what} is synchronous: "
            f"{subject!r}; use it with `with` directly"
        )
    return TypeError(
        f"async_to_sync_context_manager needs an asynchronous context manager, but {what} is {subject!r}; pass one, or "
        "a function that returns one"
    )


@overload
def async_to_sync_context_manager(
    manager: AbstractAsyncContextManager[T, Any],
) -> AsyncToSyncContextManager[T]: ...
@overload
def async_to_sync_context_manager(
    manager: Callable[P, AbstractAsyncContextManager[T, Any]],
) -> Callable[P, AsyncToSyncContextManager[T]]: ...
@overload
def async_to_sync_context_manager() -> _ManagerDecorator: ...
def async_to_sync_context_manager(manager: Any = _NOTHING) -> Any:
    """Return a synchronous context manager for an asynchronous one, or decorate a function that returns one.

    Equivalent to ``async_to_sync(manager.__aenter__)()`` and ``async_to_sync(manager.__aexit__)(...)``, in one task of
    one event loop.

    Args:
        manager: The context manager. A callable that is not a context manager itself (a function decorated with
            ``contextlib.asynccontextmanager``, a class) is decorated: each call returns such a manager, and its body
            runs in the task of the block. Without this argument, a decorator is returned.

    Thread and loop:
        ``__aenter__`` and ``__aexit__`` run in one task: on the loop of the enclosing ``sync_to_async`` call, else on
        that of an ``AsyncSingleThreadContext``, else on a new loop that ends with the block. ``async_to_sync`` calls in
        the block run on the same loop, so they can use an entered client. While this thread waits, it runs
        thread-sensitive code of the task. Context variables are passed on, and changes come back.

    Cancellation:
        As for ``async_to_sync``: an interrupt of the waiting thread, and a cancellation of the enclosing
        ``sync_to_async`` call, are passed to ``__aenter__`` or ``__aexit__``. If the task is cancelled while the block
        is open (by an entered timeout, or at the end of the loop), ``__aexit__`` is called with that
        ``CancelledError`` at once, and the block continues. Its outcome is raised at the end of the block; a plain
        cancellation only if the block itself has not raised.

    Returns:
        A context manager, which may be entered again if *manager* may; for a function, a function with its name,
        docstring and signature that returns one, and works as a method.

    Raises:
        TypeError: if the argument is not an asynchronous context manager.
        RuntimeError: as for ``async_to_sync``.

    >>> import contextlib
    >>> @async_to_sync_context_manager
    ... @contextlib.asynccontextmanager
    ... async def session():
    ...     print("open")
    ...     yield "session"
    ...     print("close")
    >>> with session() as name:
    ...     print(name)
    open
    session
    close
    """

    def bridged(manager: Any) -> Any:
        if hasattr(type(manager), "__aenter__"):
            return AsyncToSyncContextManager(lambda: manager, name_of(manager))
        if not callable(manager) or hasattr(type(manager), "__enter__"):
            raise _no_manager(manager, "the argument")
        if inspect.isgeneratorfunction(manager) or inspect.isasyncgenfunction(manager):
            raise TypeError(
                f"async_to_sync_context_manager needs a function that returns an asynchronous context manager, not "
                f"{manager!r}; decorate an asynchronous generator function with contextlib.asynccontextmanager first"
            )
        if inspect.iscoroutinefunction(manager):
            raise TypeError(
                f"async_to_sync_context_manager needs a function that returns an asynchronous context manager, but "
                f"{manager!r} returns a coroutine; call it with async_to_sync, and pass its result"
            )
        return Decorated(manager, AsyncToSyncContextManager)

    return bridged if manager is _NOTHING else bridged(manager)


if TYPE_CHECKING:

    class _ManagerDecorator(Protocol):
        def __call__(
            self, manager: Callable[P, AbstractAsyncContextManager[T, Any]], /
        ) -> Callable[P, AsyncToSyncContextManager[T]]: ...
