"""``sync_to_async_iterator``: ``async for`` over synchronous iterables."""

from __future__ import annotations

import asyncio
import inspect
import sys
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, Protocol, TypeVar, overload

from .ahead import END, Entry, ReadAhead
from .decorating import Decorated, name_of
from .threads import Steps, check_choice_of_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from concurrent.futures import Executor

__all__ = ["SyncToAsyncIterator", "sync_to_async_iterator"]

P = ParamSpec("P")
T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")

# After this many items without waiting, a consumer lets other tasks run. A guess: they take about as long as one
# bridged call.
MOST_IN_A_ROW = 64

_NOTHING: Any = object()


class SyncToAsyncIterator(Generic[T_co]):
    """An asynchronous iterator whose steps run on one thread; ``sync_to_async_iterator`` makes it.

    It can be iterated once, like a generator. Close it with ``aclose()``, preferably with ``contextlib.aclosing``.
    """

    def __init__(self, iteration: _Iteration) -> None:
        self._iteration = iteration
        self._is_asked = False

    def __aiter__(self) -> SyncToAsyncIterator[T_co]:
        return self

    async def __anext__(self) -> T_co:
        """Return the next item, made on the thread; see ``sync_to_async_iterator`` for cancellation.

        Raises:
            RuntimeError: if another task is waiting for an item, or if the thread of the first step is gone.
        """
        __traceback_hide__ = True
        iteration = self._iteration
        if self._is_asked or iteration.over:
            self._refuse()
        self._is_asked = True
        try:
            item = await iteration.steps.step(iteration.next)
        except (asyncio.CancelledError, GeneratorExit):
            iteration.abandon()
            raise
        finally:
            self._is_asked = False
        if item is END:
            iteration.over = True
            raise StopAsyncIteration
        return item  # type: ignore[no-any-return]

    def _refuse(self) -> None:
        __traceback_hide__ = True
        if not self._is_asked:
            raise StopAsyncIteration
        raise RuntimeError(
            f"{self._iteration.name}: an item was requested while another task is waiting for one; iterate in one task "
            "only, or guard the iterator with an asyncio.Lock"
        )

    async def aclose(self) -> None:
        """Close the iterator on its thread, after a running step; do nothing the second time.

        Raises:
            BaseException: whatever its ``close()`` raises.
        """
        __traceback_hide__ = True
        iteration = self._iteration
        iteration.over = True
        if iteration.ahead is not None:
            iteration.ahead.give_up(self._is_asked)
        if iteration.needs_closing:
            await iteration.steps.end(iteration.close)

    # During the teardown of the interpreter, no thread would run the job, and the globals of modules are None.
    def __del__(self, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        if is_finalizing():  # pragma: no cover: coverage has ended by then
            return
        iteration = getattr(self, "_iteration", None)  # missing if the constructor failed
        if iteration is not None and iteration.begun and not iteration.closed:
            iteration.abandon()


class ReadAheadIterator(SyncToAsyncIterator[T_co]):
    """A ``SyncToAsyncIterator`` whose thread makes items before they are requested."""

    def __init__(self, iteration: _Iteration, limit: int) -> None:
        super().__init__(iteration)
        self._ahead = iteration.read_ahead(limit)
        self._ready = self._ahead.ready
        self._low = limit // 2
        self._in_a_row, self._most_in_a_row = 0, min(limit, MOST_IN_A_ROW)

    async def __anext__(self) -> T_co:
        __traceback_hide__ = True
        iteration, ahead, ready = self._iteration, self._ahead, self._ready
        if self._is_asked or iteration.over:
            self._refuse()
        if ready and self._in_a_row < self._most_in_a_row:
            self._in_a_row += 1
            item = ready.popleft()
        else:
            self._is_asked = True
            try:
                if ready:
                    await asyncio.sleep(0)
                item = await ahead.wait(iteration.next)
            except (asyncio.CancelledError, GeneratorExit):
                iteration.abandon()
                raise
            finally:
                self._is_asked = False
            self._in_a_row = 0
        if len(ready) <= self._low and ahead.may_go_on:
            ahead.fill_on(iteration.next)
        return self._taken_out(item) if type(item) is Entry else item  # type: ignore[no-any-return]

    def _taken_out(self, entry: Entry) -> Any:
        """Return the item of *entry*, or raise its exception."""
        __traceback_hide__ = True
        iteration = self._iteration
        iteration.steps.bring_back(entry.before, entry.after)
        if entry.item is END:
            iteration.over = True
            raise StopAsyncIteration
        error = entry.error
        if error is None:
            return entry.item
        self._ahead.stopped = False
        if isinstance(error, (asyncio.CancelledError, GeneratorExit)):
            iteration.abandon()
        entry.error = None
        try:
            raise error
        finally:
            del error


class _Iteration:
    """The thread's part of an iteration. It does not refer to the ``SyncToAsyncIterator``, which may be dropped."""

    def __init__(
        self, iterable: Any, make: Callable[[], Any] | None, name: str, thread_sensitive: bool, executor: Any
    ) -> None:
        self.name = name
        self.steps = Steps(name, thread_sensitive, executor)
        # One of the two is set until the first step takes it.
        self._iterable, self._make = iterable, make
        self._iterator: Any = None
        # Whether the consumer has reached the end; whether close() has started, and has ended, on the thread.
        self.over = self._closes = self.closed = False
        self.ahead: ReadAhead | None = None

    def read_ahead(self, limit: int) -> ReadAhead:
        self.ahead = ReadAhead(self.steps, limit)
        return self.ahead

    # On the loop:

    @property
    def begun(self) -> bool:
        return self.steps.kept is not None

    @property
    def needs_closing(self) -> bool:
        """Whether ``aclose`` has work to do: even an iterator that was not started may have resources."""
        if self.begun:
            return not self.closed or bool(self.steps.errors)
        return hasattr(type(self._iterable), "__next__") and hasattr(self._iterable, "close")

    def abandon(self) -> None:
        self.over = True
        if self.ahead is not None:
            self.ahead.give_up(is_awaited=False)
        self.steps.end_unawaited(self.close)

    # On the thread:

    def next(self) -> Any:
        __traceback_hide__ = True
        if self._closes:
            return END
        if self._iterator is None:
            self._iterator = self._begin()
        try:
            return next(self._iterator)
        except StopIteration:
            self._close()
            return END
        except StopAsyncIteration as error:
            # StopAsyncIteration would look like the end of the iteration.
            raise RuntimeError(
                f"{self.name} raised {error!r}, which would end the `async for`; catch it in the iterated code"
            ) from error

    def _begin(self) -> Any:
        iterable: Any = self._iterable
        make = self._make
        self._iterable = self._make = None
        if make is not None:
            iterable = make()
            if not _is_iterable(iterable):
                raise _not_iterable(iterable, f"what {self.name} returned")
        return iter(iterable)

    def close(self) -> None:
        """Close the iterator, if it is not closed yet; an exception goes to ``steps.errors``."""
        if self.ahead is not None:
            self.steps.errors += self.ahead.clear()
        try:
            self._close()
        except StopIteration as error:
            wrapped = RuntimeError(
                f"close() of {self.name} raised {error!r}, which a coroutine cannot raise; catch it in close()"
            )
            wrapped.__cause__ = error
            self.steps.errors.append(wrapped)
        except BaseException as error:
            self.steps.errors.append(error)

    def _close(self) -> None:
        if self._closes:
            return
        self._closes = True
        iterator = self._iterator
        if iterator is None and hasattr(type(self._iterable), "__next__"):
            iterator = self._iterable
        try:
            close = getattr(iterator, "close", None)
            if close is not None:
                close()
        finally:
            # Also drop it on this thread: an object without close() may have a finalizer.
            self._iterator = self._iterable = self._make = iterator = close = None
            self.closed = True
            self.steps.finish()


def _is_iterable(subject: Any) -> bool:
    return hasattr(type(subject), "__iter__") or hasattr(type(subject), "__getitem__")


def _not_iterable(subject: Any, what: str) -> TypeError:
    if inspect.iscoroutine(subject):
        subject.close()
    if hasattr(type(subject), "__aiter__"):
        return TypeError(
            f"sync_to_async_iterator needs a synchronous iterable, but {what} is asynchronous: {subject!r}; iterate it "
            "with `async for` directly"
        )
    return TypeError(
        f"sync_to_async_iterator needs an iterable, but {what} is {subject!r}; pass an iterable, or a function that "
        "returns one"
    )


# As for ``sync_to_async``, the form without options is separate.


@overload
def sync_to_async_iterator(
    iterable: Iterable[T], *, thread_sensitive: bool = True, executor: Executor | None = None, read_ahead: int = 0
) -> SyncToAsyncIterator[T]: ...
@overload
def sync_to_async_iterator(iterable: Callable[P, Iterable[T]]) -> Callable[P, SyncToAsyncIterator[T]]: ...
@overload
def sync_to_async_iterator(
    iterable: Callable[P, Iterable[T]],
    *,
    thread_sensitive: bool,
    executor: Executor | None = None,
    read_ahead: int = 0,
) -> Callable[P, SyncToAsyncIterator[T]]: ...
@overload
def sync_to_async_iterator(
    iterable: Callable[P, Iterable[T]], *, read_ahead: int
) -> Callable[P, SyncToAsyncIterator[T]]: ...
@overload
def sync_to_async_iterator(
    *, thread_sensitive: bool = True, executor: Executor | None = None, read_ahead: int = 0
) -> _IteratorDecorator: ...
def sync_to_async_iterator(
    iterable: Any = _NOTHING, *, thread_sensitive: bool = True, executor: Executor | None = None, read_ahead: int = 0
) -> Any:
    """Return an asynchronous iterator over a synchronous iterable, or decorate a function that returns an iterable.

    Equivalent to ``await sync_to_async(next)(iterator)`` for each item, and ``close()`` at the end, all on one thread
    and in one context.

    Args:
        iterable: The iterable. A callable that is not iterable itself (a generator function, a class) is decorated:
            each call returns such an iterator, and its body runs on the thread of the steps. Without this argument, a
            decorator is returned.
        thread_sensitive: As for ``sync_to_async``. False: a worker is leased for the whole iteration.
        executor: Use this instead of the leased worker; requires ``thread_sensitive=False``, and must have exactly one
            thread.
        read_ahead: How many items the thread makes in advance. 0: it makes each item on request, which costs about as
            much as a call. Otherwise, an item that is ready costs a fraction of that. The thread stops when
            *read_ahead* items are queued, and is free for other work until half of them are taken.

    Thread and loop:
        ``iter()``, each ``next()`` and ``close()`` run on the thread that ``sync_to_async`` would choose for the first
        step. Between two steps, that thread is free for other work. All steps run in one ``contextvars.Context``. It
        gets the consumer's changes since the last step, and the consumer gets the changes of the step. Use the
        iterator in one event loop.

        A step that reads ahead sees the variables that the consumer had when the thread started to read. Its changes,
        and its exception, come with its item. Other tasks run after at most 64 items.

    Closing:
        ``aclose()`` calls the iterator's ``close()``, if it has one, on the thread, after a running step. The garbage
        collector does the same, and so does the end of the iteration. ``break`` alone does not close the iterator: use
        ``contextlib.aclosing``.

        With read-ahead, queued items are dropped, and so are exceptions of their steps, except ``KeyboardInterrupt``
        and the like. A running step that nothing waits for is cancelled if it waits in ``async_to_sync``; otherwise,
        ``check_cancelled`` raises in it.

    Cancellation:
        A cancelled step ends the iteration: ``close()`` follows the step on the thread. If the step waits in
        ``async_to_sync``, that coroutine is cancelled first, and the outcome of the step is used.

    Returns:
        An asynchronous iterator with ``aclose()``; for a function, a function with its name, docstring and signature
        that returns one, and works as a method.

    Raises:
        TypeError: if the argument is not iterable, or if the executor does not have exactly one thread.
        ValueError: if *read_ahead* is negative.
        RuntimeError: by a step, if two tasks request an item concurrently, if the step would run on the thread of the
            loop that awaits it, if the thread of the first step is gone, or instead of a ``StopAsyncIteration`` of
            ``next()``.

    >>> import asyncio, contextlib
    >>> @sync_to_async_iterator
    ... def lines():
    ...     yield "one"
    ...     yield "two"
    >>> async def main():
    ...     async with contextlib.aclosing(lines()) as each:
    ...         return [line async for line in each]
    >>> asyncio.run(main())
    ['one', 'two']
    """
    check_choice_of_thread("sync_to_async_iterator", thread_sensitive, executor)
    if read_ahead < 0:
        raise ValueError(
            f"sync_to_async_iterator was given read_ahead={read_ahead!r}; pass the maximum number of queued items, or 0"
        )

    def of_call(make: Callable[[], Any], name: str) -> SyncToAsyncIterator[Any]:
        return iterator_of(_Iteration(None, make, name, thread_sensitive, executor))

    def iterator_of(iteration: _Iteration) -> SyncToAsyncIterator[Any]:
        return ReadAheadIterator(iteration, read_ahead) if read_ahead else SyncToAsyncIterator(iteration)

    def bridged(iterable: Any) -> Any:
        if callable(iterable) and not hasattr(type(iterable), "__iter__"):
            if hasattr(type(iterable), "__aiter__"):
                raise _not_iterable(iterable, "the argument")
            if inspect.isasyncgenfunction(iterable) or inspect.iscoroutinefunction(iterable):
                raise TypeError(
                    f"sync_to_async_iterator needs a synchronous function, not {iterable!r}; call an asynchronous "
                    "one directly"
                )
            return Decorated(iterable, of_call)
        if not _is_iterable(iterable):
            raise _not_iterable(iterable, "the argument")
        return iterator_of(_Iteration(iterable, None, name_of(iterable), thread_sensitive, executor))

    return bridged if iterable is _NOTHING else bridged(iterable)


if TYPE_CHECKING:

    class _IteratorDecorator(Protocol):
        def __call__(self, iterable: Callable[P, Iterable[T]], /) -> Callable[P, SyncToAsyncIterator[T]]: ...
