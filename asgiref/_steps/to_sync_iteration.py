"""``async_to_sync_iterator``: ``for`` over asynchronous iterables."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import sys
from collections import deque
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, Protocol, TypeVar, overload

from .._bridge.jobs import is_empty
from .decorating import Decorated, name_of
from .tasks import OneTask, TaskEnded, refuse_on_loop
from .threads import _is_same

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Callable

__all__ = ["AsyncToSyncIterator", "async_to_sync_iterator"]

P = ParamSpec("P")
T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")

_END: Any = object()
_LOOK_AGAIN: Any = object()
_NOTHING: Any = object()


class AsyncToSyncIterator(Generic[T_co]):
    """An iterator whose steps run in one task of an event loop; ``async_to_sync_iterator`` makes it.

    It can be iterated once, like a generator. Close it with ``close()``, preferably with ``contextlib.closing``.
    """

    def __init__(self, iteration: _Iteration) -> None:
        self._iteration = iteration
        # Deletion is atomic and fails the second time, so one thread at a time takes a step.
        self._is_free = True

    def __iter__(self) -> AsyncToSyncIterator[T_co]:
        return self

    def __next__(self) -> T_co:
        """Return the next item, made in the task; meanwhile, this thread serves its mailbox.

        Raises:
            RuntimeError: while another caller (or the generator itself) takes a step; in a thread that runs an event
                loop; if the loop of the first step was stopped or closed; and in a forked child.
            CancelledError: if the task was cancelled since the last step, and the generator did not catch that.
        """
        __traceback_hide__ = True
        iteration = self._iteration
        refuse_on_loop(iteration.name)
        try:
            del self._is_free
        except AttributeError:
            raise self._is_in_use() from None
        try:
            while True:
                # Read first: items that the task has added before it was over are then seen.
                over = iteration.over or iteration.given_up
                if iteration.items or (over and not is_empty(iteration.items)):
                    item = iteration.take()
                elif over:
                    item = _END
                    iteration.finish()
                else:
                    item = iteration.step(iteration.next)
                if item is _END:
                    raise StopIteration
                if item is not _LOOK_AGAIN:
                    return item  # type: ignore[no-any-return]
        finally:
            self._is_free = True

    def close(self) -> None:
        """Close the iterator in its task, and wait for that; do nothing the second time.

        Raises:
            RuntimeError: as for a step.
            BaseException: whatever its ``aclose()`` raises.
        """
        __traceback_hide__ = True
        iteration = self._iteration
        refuse_on_loop(iteration.name)
        try:
            del self._is_free
        except AttributeError:
            raise self._is_in_use() from None
        try:
            iteration.close_from_here()
        finally:
            self._is_free = True

    def _is_in_use(self) -> RuntimeError:
        return RuntimeError(
            f"{self._iteration.name}: an item was requested, or close() was called, while an item is being made, by "
            "another thread or by the iterated code itself; let one thread iterate, or guard the iterator with a lock"
        )

    # During the teardown of the interpreter, no loop could close anything, and the globals of modules are None.
    def __del__(self, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        if is_finalizing():  # pragma: no cover: coverage has ended by then
            return
        iteration = getattr(self, "_iteration", None)  # missing if the constructor failed
        if iteration is not None and iteration.task is not None and not iteration.given_up:
            iteration.end_unawaited()


class _Iteration(OneTask):
    """The loop's part of an iteration. It does not refer to the ``AsyncToSyncIterator``, which may be dropped."""

    def __init__(self, iterable: Any, make: Callable[[], Any] | None, name: str, read_ahead: int) -> None:
        super().__init__(name)
        self.name = name
        self._read_ahead = read_ahead
        # One of the two is set until the first step takes it.
        self._iterable, self._make_iterable = iterable, make
        self._iterator: Any = None
        # Items made in advance: an item or an error, and the context of the task before and after, if they differ.
        self.items: deque[tuple[Any, BaseException | None, Any, Any]] = deque()
        # Whether the closing has started. The task is ``over`` when all its results have been recorded.
        self._closes = False
        # Whether read-ahead pauses: before the first step, and after an error.
        self._pauses = True
        # Whether the task has read ahead enough, and waits.
        self._sleeps = False
        # The exception that results from a cancellation between steps, or for the sake of the closing.
        self._error: BaseException | None = None

    # On the thread of the consumer:

    def take(self) -> Any:
        """Return an item that was made in advance, or raise its exception."""
        __traceback_hide__ = True
        item, error, before, after = self.items.popleft()
        if before is not None:
            self.bring_back(before, after)
        if item is _END or (error is not None and self.over):
            self.finish()
        if error is not None:
            self._error = None
            try:
                raise error
            finally:
                del error
        # Not for each item, which would cost as much as a step. If the task is about to sleep, and this comes too early
        # to see that, the next item that is taken or requested wakes it.
        if self._sleeps and len(self.items) <= self._read_ahead // 2:
            self._sleeps = False
            self.wake()
        return item

    def close_from_here(self) -> None:
        __traceback_hide__ = True
        if self.task is None and not (hasattr(type(self._iterable), "__anext__") and hasattr(self._iterable, "aclose")):
            self.over = True
        elif not self.over and not self.given_up:
            try:
                self.step(self.close, hurries=True)
            except TaskEnded:
                pass
        self.items.clear()
        self.finish()
        error, self._error = self._error, None
        if error is not None:
            try:
                raise error
            finally:
                del error

    # On the loop:

    def accept(self, step: Any, loop: asyncio.AbstractEventLoop) -> asyncio.Task[None] | None:
        # Items that were made while the step was being passed must not be delayed by the item that the task makes now.
        # And a consumer that took the last item while the task was about to end finds the end here.
        if (self.items or self.over) and not step.hurries:
            step.outcome.set_result(_LOOK_AGAIN)
            return self.task
        return super().accept(step, loop)

    # In the task:

    async def next(self) -> Any:
        """Return the next item, ``_END``, or ``_LOOK_AGAIN`` if there is an item or the end to take."""
        __traceback_hide__ = True
        if self.items:
            return _LOOK_AGAIN
        self._pauses = False
        try:
            return await self._advance()
        finally:
            self.over = self._closes

    async def _advance(self) -> Any:
        __traceback_hide__ = True
        iterator = self._iterator
        if iterator is None:
            iterator = self._iterator = await self._begin_iteration()
        try:
            return await anext(iterator)
        except StopAsyncIteration:
            await self._close()
            return _END
        except BaseException as error:
            await self._note_error(error)
            raise

    async def _begin_iteration(self) -> Any:
        try:
            iterable: Any = self._iterable
            make = self._make_iterable
            self._iterable = self._make_iterable = None
            if make is not None:
                iterable = make()
                if not hasattr(type(iterable), "__aiter__"):
                    raise _not_iterable(iterable, f"what {self.name} returned")
            return aiter(iterable)
        except BaseException as error:
            self._closes = True
            if isinstance(error, StopAsyncIteration):  # it would look like the end of the iteration
                raise RuntimeError(
                    f"{self.name} raised {error!r}, which would end the `for`; catch it in the iterated code"
                ) from error
            raise

    async def _note_error(self, error: BaseException) -> None:
        self._pauses = True
        if isinstance(error, GeneratorExit):  # the loop is gone, and nothing can wait for the closing
            self._closes = True
        # After an exception, a generator has ended. Other iterators may continue, but not after a cancellation.
        elif isinstance(error, asyncio.CancelledError) or getattr(self._iterator, "ag_frame", self) is None:
            await self._close()

    def wants_to_work(self) -> bool:
        if self._pauses or len(self.items) >= self._read_ahead:
            self._sleeps = not self._pauses
            return False
        return True

    async def work(self) -> None:
        """Make an item in advance."""
        before = contextvars.copy_context()
        try:
            self._note(await self._advance(), None, before)
        except BaseException as error:
            self._note(_NOTHING, error, before)
        self.over = self._closes

    def _note(self, item: Any, error: BaseException | None, before: contextvars.Context) -> None:
        """Keep a result that was not requested yet."""
        if item is _END:
            self._pauses = True
        after = contextvars.copy_context()
        if self.is_hurried:
            if error is not None and not isinstance(error, asyncio.CancelledError):
                self._error = error
        elif _is_same(before, after):
            self.items.append((item, error, None, None))
        else:
            self.items.append((item, error, before, after))

    async def interrupted(self, error: asyncio.CancelledError) -> None:
        """Raise the cancellation in the generator, at its ``yield``."""
        self._pauses = True
        before = contextvars.copy_context()
        athrow = getattr(self._iterator, "athrow", None)
        try:
            if athrow is None:
                raise error
            self._note(await athrow(error), None, before)
        except StopAsyncIteration:
            await self._close_after(None, before)
        except BaseException as raised:
            await self._close_after(raised, before)
        self.over = self._closes

    async def _close_after(self, error: BaseException | None, before: contextvars.Context) -> None:
        try:
            await self._close()
        except BaseException as raised:
            error = raised
        if error is not None and not isinstance(error, asyncio.CancelledError):
            self._error = error
        self._note(_END if error is None else _NOTHING, error, before)

    async def close(self) -> None:
        __traceback_hide__ = True
        try:
            await self._close()
        finally:
            self.over = True

    async def end(self) -> None:
        await self._close()
        error, self._error = self._error, None
        self.items.clear()
        if error is not None:
            raise error

    async def _close(self) -> None:
        """Close the iterator, if it is not closed yet."""
        __traceback_hide__ = True
        if self._closes:
            return
        self._closes = True
        iterator = self._iterator
        if iterator is None and hasattr(type(self._iterable), "__anext__"):
            iterator = self._iterable
        try:
            aclose = getattr(iterator, "aclose", None)
            if aclose is not None:
                await aclose()
        except StopAsyncIteration as error:
            raise RuntimeError(
                f"aclose() of {self.name} raised {error!r}, which would end the `for`; catch it in aclose()"
            ) from error
        finally:
            # Also drop it here: an object without aclose() may have a finalizer.
            self._iterator = self._iterable = self._make_iterable = iterator = aclose = None


def _not_iterable(subject: Any, what: str) -> TypeError:
    if inspect.iscoroutine(subject):
        subject.close()
    if hasattr(type(subject), "__iter__"):
        return TypeError(
            f"async_to_sync_iterator needs an asynchronous iterable, but {what} is synchronous: {subject!r}; iterate "
            "it with `for` directly"
        )
    return TypeError(
        f"async_to_sync_iterator needs an asynchronous iterable, but {what} is {subject!r}; pass one, or a function "
        "that returns one"
    )


# As for ``sync_to_async``, the form without options is separate.


@overload
def async_to_sync_iterator(iterable: AsyncIterable[T], *, read_ahead: int = 0) -> AsyncToSyncIterator[T]: ...
@overload
def async_to_sync_iterator(iterable: Callable[P, AsyncIterable[T]]) -> Callable[P, AsyncToSyncIterator[T]]: ...
@overload
def async_to_sync_iterator(
    iterable: Callable[P, AsyncIterable[T]], *, read_ahead: int
) -> Callable[P, AsyncToSyncIterator[T]]: ...
@overload
def async_to_sync_iterator(*, read_ahead: int = 0) -> _IteratorDecorator: ...
def async_to_sync_iterator(iterable: Any = _NOTHING, *, read_ahead: int = 0) -> Any:
    """Return an iterator over an asynchronous iterable, or decorate a function that returns an asynchronous iterable.

    Equivalent to ``async_to_sync(anext)(iterator)`` for each item, and ``aclose()`` at the end, all in one task of one
    event loop.

    Args:
        iterable: The iterable. A callable that is not iterable itself (an asynchronous generator function, a class) is
            decorated: each call returns such an iterator, and its body runs in the task of the steps. Without this
            argument, a decorator is returned.
        read_ahead: How many items are made in advance; 0: each item is made on request.

    Thread and loop:
        ``aiter()``, each ``anext()`` and ``aclose()`` run in one task, so that a task group, a timeout or a cancel
        scope may be open across a ``yield``. The loop is that of the enclosing ``sync_to_async`` call, else that of an
        ``AsyncSingleThreadContext``, else a new one that ends with the iteration. While this thread waits for an item,
        it runs thread-sensitive code of the task. Thread-sensitive calls at other times, by a task of the generator or
        by read-ahead, run during the next wait. The task gets the consumer's changes to context variables since the
        last wait, and the consumer gets the changes of each item with the item.

    Closing:
        ``close()`` calls ``aclose()`` of the iterator, if it has one, and waits for it; read-ahead is cancelled first.
        The garbage collector does the same without waiting. The end of the iteration closes it, too. ``break`` alone
        does not close it: use ``contextlib.closing``.

    Cancellation:
        As for ``async_to_sync``: an interrupt of the waiting thread, and a cancellation of the enclosing
        ``sync_to_async`` call, are raised in the generator. A cancellation of the task between two steps (by a timeout
        in the generator, or at the end of the loop) is raised at its ``yield``.

    Returns:
        An iterator with ``close()``; for a function, a function with its name, docstring and signature that returns
        one, and works as a method.

    Raises:
        TypeError: if the argument is not iterable.
        ValueError: if *read_ahead* is negative.

    >>> import asyncio, contextlib
    >>> @async_to_sync_iterator
    ... async def lines():
    ...     yield "one"
    ...     await asyncio.sleep(0)
    ...     yield "two"
    >>> with contextlib.closing(lines()) as each:
    ...     for line in each:
    ...         print(line)
    one
    two
    """
    if read_ahead < 0:
        raise ValueError(
            f"async_to_sync_iterator was given read_ahead={read_ahead!r}; pass the maximum number of queued items, or 0"
        )

    def of_call(make: Callable[[], Any], name: str) -> AsyncToSyncIterator[Any]:
        return AsyncToSyncIterator(_Iteration(None, make, name, read_ahead))

    def bridged(iterable: Any) -> Any:
        if hasattr(type(iterable), "__aiter__"):
            return AsyncToSyncIterator(_Iteration(iterable, None, name_of(iterable), read_ahead))
        if not callable(iterable) or hasattr(type(iterable), "__iter__"):
            raise _not_iterable(iterable, "the argument")
        if inspect.isgeneratorfunction(iterable):
            raise TypeError(
                f"async_to_sync_iterator needs an asynchronous generator function, not {iterable!r}; call a "
                "synchronous one directly"
            )
        if inspect.iscoroutinefunction(iterable):
            raise TypeError(
                f"async_to_sync_iterator needs a function that returns an asynchronous iterable, but {iterable!r} "
                "returns a coroutine; call it with async_to_sync, and pass its result"
            )
        return Decorated(iterable, of_call)

    return bridged if iterable is _NOTHING else bridged(iterable)


if TYPE_CHECKING:

    class _IteratorDecorator(Protocol):
        def __call__(self, iterable: Callable[P, AsyncIterable[T]], /) -> Callable[P, AsyncToSyncIterator[T]]: ...
