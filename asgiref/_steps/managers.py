"""``sync_to_async_context_manager``: ``async with`` for synchronous context managers."""

from __future__ import annotations

import asyncio
import inspect
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, Protocol, TypeVar, overload

from .blocks import OpenBlocks
from .decorating import Decorated, name_of
from .threads import Steps, check_choice_of_thread

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor
    from contextlib import AbstractContextManager
    from types import CoroutineType, TracebackType

__all__ = ["SyncToAsyncContextManager", "sync_to_async_context_manager"]

P = ParamSpec("P")
T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")

_NOTHING: Any = object()


class SyncToAsyncContextManager(Generic[T_co]):
    """An asynchronous context manager; ``sync_to_async_context_manager`` makes it."""

    def __init__(self, make: Callable[[], Any], name: str, thread_sensitive: bool, executor: Any) -> None:
        self._make, self._name, self._thread_sensitive, self._executor = make, name, thread_sensitive, executor
        self._blocks: OpenBlocks[_Block] = OpenBlocks()

    async def __aenter__(self) -> T_co:
        __traceback_hide__ = True
        block = _Block(self._make, self._name, self._thread_sensitive, self._executor)
        try:
            value = await block.step(block.enter)
        except BaseException as error:
            # Usually cancelled: __enter__ may be running, or may have ended meanwhile.
            if not block.is_refused:
                block.leave_unawaited(error)
            raise
        self._blocks.add(asyncio.current_task(), block)
        return value  # type: ignore[no-any-return]

    def __aexit__(
        self, exc: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None
    ) -> CoroutineType[Any, Any, bool]:
        block = self._blocks.take(asyncio.current_task())
        if block is None:
            raise RuntimeError(f"{self._name}: __aexit__() was called, but no block is open; use `async with`")
        block.reason = exc, value, tb
        return block.end(block.exit)  # type: ignore[return-value]  # to mypy, it is any coroutine


class _Block(Steps):
    """One use of a manager."""

    # Set by enter(): whether it has raised; the function that leaves the block, until it is called.
    is_refused = False
    _exit: Any = None
    _manager: Any = None
    # The arguments of __exit__().
    reason: tuple[Any, Any, Any] = None, None, None

    def __init__(self, make: Callable[[], Any], name: str, thread_sensitive: bool, executor: Any) -> None:
        super().__init__(name, thread_sensitive, executor)
        self._make: Any = make

    def leave_unawaited(self, error: BaseException) -> None:
        self.reason = type(error), error, error.__traceback__
        self.end_unawaited(self.exit)

    # On the thread:

    def enter(self) -> Any:
        __traceback_hide__ = True
        try:
            make, self._make = self._make, None
            manager = make()
            kind = type(manager)
            try:
                enter, leave = kind.__enter__, kind.__exit__
            except AttributeError:
                raise _no_manager(manager, f"what {self.__qualname__} returned") from None
            value = enter(manager)
        except BaseException:
            self.is_refused = True
            self.finish()
            raise
        self._manager, self._exit = manager, leave
        return value

    def exit(self) -> bool:
        """Leave the block, unless it was not entered, or has been left; an error goes to ``errors``.

        Returns:
            Whether __exit__() has suppressed the exception.
        """
        leave, self._exit = self._exit, None
        manager, self._manager = self._manager, None
        reason, self.reason = self.reason, (None, None, None)
        try:
            return leave is not None and bool(leave(manager, *reason))
        except BaseException as error:
            self.errors.append(error)
            return False
        finally:
            del leave, manager, reason
            self.finish()


def _no_manager(subject: Any, what: str) -> TypeError:
    if inspect.iscoroutine(subject):
        subject.close()
    if hasattr(type(subject), "__aenter__"):
        return TypeError(
            f"sync_to_async_context_manager needs a synchronous context manager, but {what} is asynchronous: "
            f"{subject!r}; use it with `async with` directly"
        )
    return TypeError(
        f"sync_to_async_context_manager needs a context manager, but {what} is {subject!r}; pass one, or a function "
        "that returns one"
    )


@overload
def sync_to_async_context_manager(
    manager: AbstractContextManager[T, Any], *, thread_sensitive: bool = True, executor: Executor | None = None
) -> SyncToAsyncContextManager[T]: ...
@overload
def sync_to_async_context_manager(
    manager: Callable[P, AbstractContextManager[T, Any]],
) -> Callable[P, SyncToAsyncContextManager[T]]: ...
@overload
def sync_to_async_context_manager(
    manager: Callable[P, AbstractContextManager[T, Any]], *, thread_sensitive: bool, executor: Executor | None = None
) -> Callable[P, SyncToAsyncContextManager[T]]: ...
@overload
def sync_to_async_context_manager(
    *, thread_sensitive: bool = True, executor: Executor | None = None
) -> _ManagerDecorator: ...
def sync_to_async_context_manager(
    manager: Any = _NOTHING, *, thread_sensitive: bool = True, executor: Executor | None = None
) -> Any:
    """Return an asynchronous context manager for a synchronous one, or decorate a function that returns one.

    Equivalent to ``await sync_to_async(manager.__enter__)()`` and ``await sync_to_async(manager.__exit__)(...)``, on
    one thread and in one context. An entered block is always left.

    Args:
        manager: The context manager. A callable that is not a context manager itself (a function decorated with
            ``contextlib.contextmanager``, a class) is decorated: each call returns such a manager, and its body runs
            on the thread of the block. Without this argument, a decorator is returned.
        thread_sensitive: As for ``sync_to_async``. False: a worker is leased for the block.
        executor: Use this instead of the leased worker; requires ``thread_sensitive=False``, and must have exactly one
            thread.

    Thread and loop:
        ``__enter__`` and ``__exit__`` run on the thread that ``sync_to_async`` would choose for the first of them. In
        between, that thread is free for other work, also of other tasks. Both run in one ``contextvars.Context``.
        Changes to context variables come back, so the block sees variables that ``__enter__`` sets. If the thread is
        gone at the end of the block, ``__exit__`` runs on another thread, never on the loop's.

    Cancellation:
        A cancellation during ``__enter__`` ends the ``await``; ``__exit__`` follows on the thread and gets that
        ``CancelledError``. A cancellation during ``__exit__``, or before it starts, ends the ``await``, too, and
        ``__exit__`` runs in any case. If they wait in ``async_to_sync``, that coroutine is cancelled first, as for a
        call. Exceptions that nothing awaits go to the loop's exception handler.

    Returns:
        An asynchronous context manager, which may be entered again if *manager* may; for a function, a function with
        its name, docstring and signature that returns one, and works as a method.

    Raises:
        TypeError: if the argument is not a context manager, or if the executor does not have exactly one thread.
        RuntimeError: as for ``sync_to_async``.

    >>> import asyncio, contextlib
    >>> @sync_to_async_context_manager
    ... @contextlib.contextmanager
    ... def session():
    ...     print("begin")
    ...     yield "session"
    ...     print("commit")
    >>> async def main():
    ...     async with session() as name:
    ...         print(name)
    >>> asyncio.run(main())
    begin
    session
    commit
    """
    check_choice_of_thread("sync_to_async_context_manager", thread_sensitive, executor)

    def of_call(make: Callable[[], Any], name: str) -> SyncToAsyncContextManager[Any]:
        return SyncToAsyncContextManager(make, name, thread_sensitive, executor)

    def bridged(manager: Any) -> Any:
        if hasattr(type(manager), "__enter__"):
            return of_call(lambda: manager, name_of(manager))
        if not callable(manager) or hasattr(type(manager), "__aenter__"):
            raise _no_manager(manager, "the argument")
        if inspect.isasyncgenfunction(manager) or inspect.iscoroutinefunction(manager):
            raise TypeError(
                f"sync_to_async_context_manager needs a synchronous function, not {manager!r}; call an asynchronous "
                "one directly"
            )
        return Decorated(manager, of_call)

    return bridged if manager is _NOTHING else bridged(manager)


if TYPE_CHECKING:

    class _ManagerDecorator(Protocol):
        def __call__(
            self, manager: Callable[P, AbstractContextManager[T, Any]], /
        ) -> Callable[P, SyncToAsyncContextManager[T]]: ...
