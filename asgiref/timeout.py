"""``timeout``: the deprecated predecessor of ``asyncio.timeout``.

Kept for code that imports it; new code uses ``asyncio.timeout``. This module only adds the
older interface to it: a synchronous form, attributes instead of methods, and objects that
can be used again.

A cancellation from outside is never mistaken for the expiry.
"""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Coroutine
from types import TracebackType
from typing import Any

__all__ = ["timeout"]


class timeout:
    """A context manager that cancels its block after a time and then raises ``TimeoutError``.

    Equivalent to ``asyncio.timeout(timeout)``, called at the start of the block. It is
    deprecated in favour of that; creating it emits a ``DeprecationWarning``.

    Use it in a task, with ``async with`` or ``with``. One object can serve any number of
    blocks, one at a time.

    Args:
        timeout: How long the block may take, in seconds; None means without a limit. At 0 or
            below, the first ``await`` that suspends the task is cancelled.
        loop: Deprecated; it emits a second ``DeprecationWarning``. It must be the event loop
            that runs the blocks. With it, the object can be created without a running loop.

    Thread and loop:
        Belongs to the running event loop at its creation, or to *loop*.

    Cancellation:
        Only the expiry becomes a ``TimeoutError``. If the task is also cancelled from outside,
        before or after the expiry or in the same event loop iteration, the block raises
        ``CancelledError``. If two nested blocks expire together, the inner one raises
        ``CancelledError`` and the outer one ``TimeoutError``.

        A cancellation that was requested before an ``async with`` block, but not delivered,
        is raised at its start. A ``with`` block cannot wait for it. If the block expires at
        the same time, it raises ``TimeoutError``, as ``asyncio.timeout`` does.

        If the block ends normally or with another exception in spite of the expiry, nothing
        is changed.

    Raises:
        RuntimeError: if it is created without *loop* and no event loop is running; if it is
            entered in another event loop, outside of a task, or inside its own block.
        TimeoutError: from the block; the same as ``asyncio.TimeoutError``.

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
            warnings.warn("the loop argument of timeout has no effect; remove it", DeprecationWarning, stacklevel=2)
        self._timeout = timeout
        self._loop = loop
        self._block: asyncio.Timeout | None = None  # the running one
        # Of the latest block:
        self._when: float | None = None
        self._expired = False

    @property
    def expired(self) -> bool:
        """Whether the latest block was cancelled by its timeout."""
        return self._expired if self._block is None else self._block.expired()

    @property
    def remaining(self) -> float | None:
        """Seconds until the latest block expires; 0.0 afterwards.

        The time keeps running after the block. None without a limit or before the first block.
        """
        if self.expired:
            return 0.0  # timers of the event loop may fire slightly early
        return None if self._when is None else max(0.0, self._when - self._loop.time())

    def __enter__(self) -> timeout:
        if asyncio.get_running_loop() is not self._loop:
            raise RuntimeError("this timeout belongs to another event loop; create it in the task that uses it")
        if self._block is not None:
            raise RuntimeError("this timeout is in use; create one for each of several concurrent blocks")
        block = asyncio.timeout(self._timeout)
        _complete(block.__aenter__())
        self._block, self._when = block, block.when()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        __traceback_hide__ = True
        # Drop the reference, which keeps the task alive.
        block, self._block = self._block, None
        if block is None:
            raise RuntimeError("this timeout was left without having been entered; use `async with`")
        self._expired = block.expired()
        _complete(block.__aexit__(exc_type, exc_val, exc_tb))

    async def __aenter__(self) -> timeout:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            # Let it be raised here: inside the block, it would look like the expiry.
            await asyncio.sleep(0)
        return self.__enter__()

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        __traceback_hide__ = True
        self.__exit__(exc_type, exc_val, exc_tb)


def _complete(coroutine: Coroutine[Any, Any, object]) -> None:
    """Run *coroutine*, which never waits: methods of ``asyncio.Timeout`` are coroutines only for ``async with``."""
    __traceback_hide__ = True
    try:
        coroutine.send(None)
    except StopIteration:
        return
    raise RuntimeError(f"{coroutine} waits")  # pragma: no cover: only after a change in asyncio
