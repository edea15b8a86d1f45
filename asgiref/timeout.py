"""``timeout``: a limit to the time that a block takes, from before the standard library had one.

Kept for code that imports it; new code uses ``asyncio.timeout``, which does all of the work
here too. What this module adds is the older interface: a synchronous form, attributes in
place of methods, and an object that can be used again.

A cancellation that comes from outside is never taken for that of the expiry.
"""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Coroutine
from types import TracebackType
from typing import Any

__all__ = ["timeout"]


class timeout:
    """A context manager that cancels its block after a while, and raises ``TimeoutError`` from it.

    Equivalent to ``asyncio.timeout(timeout)``, called where the block begins. It is
    deprecated in favour of that, and a ``DeprecationWarning`` says so where it is made.

    It may be used as ``async with`` and as ``with``, in a task in both cases. One object can
    serve any number of blocks, one after the other.

    Args:
        timeout: How long the block may take, in seconds; None is without end. At 0 and below,
            the first ``await`` in the block that gives way to the event loop is the last.
        loop: Has no use any more, and a second ``DeprecationWarning`` says so. It must be the
            event loop in which the blocks run. With it, the object can be made where no
            loop runs.

    Thread and loop:
        Belongs to the event loop in which it is made, or to that of *loop*.

    Cancellation:
        Only what the expiry cancels becomes a ``TimeoutError``. If the task is cancelled from
        outside as well, be it before or after the expiry or in the same iteration of the
        loop, the block ends with ``CancelledError``. So does the inner one of two blocks
        that expire together, and the outer one raises ``TimeoutError``.

        A cancellation that was requested, but not delivered, before an ``async with`` block
        is raised where that begins. A ``with`` block cannot wait for it; if the expiry is
        as soon, it becomes a ``TimeoutError`` there, as it does with ``asyncio.timeout``.

        A block that is left in another way in spite of the expiry, normally or with an
        exception of its own, is left in that way.

    Raises:
        RuntimeError: on making it without *loop* where no event loop runs; on entering it
            in another event loop, outside of a task, or in a block of its own.
        TimeoutError: from the block; it is the same as ``asyncio.TimeoutError``.

    >>> import asyncio, warnings
    >>> async def main():
    ...     with warnings.catch_warnings():
    ...         warnings.simplefilter("ignore", DeprecationWarning)
    ...         limit = timeout(0.01)
    ...     try:
    ...         async with limit:
    ...             await asyncio.sleep(3600)
    ...     except TimeoutError:
    ...         print(limit.expired, limit.remaining)
    >>> asyncio.run(main())
    True 0.0
    """

    def __init__(self, timeout: float | None, *, loop: asyncio.AbstractEventLoop | None = None) -> None:
        warnings.warn(
            "asgiref.timeout.timeout is deprecated; use asyncio.timeout instead", DeprecationWarning, stacklevel=2
        )
        if loop is None:
            loop = asyncio.get_running_loop()
        else:
            warnings.warn("the loop argument of timeout has no use any more", DeprecationWarning, stacklevel=2)
        self._timeout = timeout
        self._loop = loop
        self._block: asyncio.Timeout | None = None  # the one that goes on
        # Of the latest block.
        self._when: float | None = None
        self._expired = False

    @property
    def expired(self) -> bool:
        """Whether the latest block was cancelled because its time was over."""
        return self._expired if self._block is None else self._block.expired()

    @property
    def remaining(self) -> float | None:
        """How long, in seconds, until the time of the latest block is over; 0.0 from then on.

        The clock runs on after the block. None where there is no limit, or was no block.
        """
        if self.expired:
            return 0.0  # also where the loop's timers are a little early
        return None if self._when is None else max(0.0, self._when - self._loop.time())

    def __enter__(self) -> timeout:
        if asyncio.get_running_loop() is not self._loop:
            raise RuntimeError("this timeout was made for another event loop; make it in the task that uses it")
        if self._block is not None:
            raise RuntimeError("this timeout is in use; make one for each of several blocks at a time")
        block = asyncio.timeout(self._timeout)
        _complete(block.__aenter__())
        self._block, self._when = block, block.when()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        __traceback_hide__ = True
        # Not kept: it would keep the task.
        block, self._block = self._block, None
        if block is None:
            raise RuntimeError("this timeout was not entered")
        self._expired = block.expired()
        _complete(block.__aexit__(exc_type, exc_val, exc_tb))

    async def __aenter__(self) -> timeout:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            # In the block, that cancellation could not be told from the one of the expiry.
            await asyncio.sleep(0)
        return self.__enter__()

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        __traceback_hide__ = True
        self.__exit__(exc_type, exc_val, exc_tb)


def _complete(coroutine: Coroutine[Any, Any, object]) -> None:
    """Run *coroutine*, which never waits: those of ``asyncio.Timeout`` are so for the syntax alone."""
    __traceback_hide__ = True
    try:
        coroutine.send(None)
    except StopIteration:
        return
    raise RuntimeError(f"{coroutine} waits")  # pragma: no cover: a change in asyncio would do it
