"""Waiting in a task for what another thread brings, and going on in the very turn of the loop that it comes in.

A future has the loop call the task in its next turn, which is a look at the selector more
for each call, a tenth of what a bridged call costs. asyncio's tasks await anything that
has the few methods of a future that are here.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Generator
from typing import Any

__all__ = ["Waiter"]


class Waiter:
    """An object to be awaited; all methods are for the thread of the loop."""

    # By having this, an object tells a task that it is like a future.
    _asyncio_future_blocking = False

    # The loop of the task that waits, or will; None when nobody will any more.
    waits_in: asyncio.AbstractEventLoop | None
    _arrived = False
    # What is called when it arrives, as a rule what makes the one task that waits go on; its
    # context; and the same of whoever asked before.
    _callback: tuple[Callable[[Any], object], contextvars.Context, Any] | None = None
    _cancellation: asyncio.CancelledError | None = None

    def __await__(self) -> Generator[Any, None, None]:
        if not self._arrived:
            self._asyncio_future_blocking = True
            yield self
            if not self._arrived:
                raise RuntimeError("what runs this coroutine has let it go on before there is an outcome to go on with")

    def arrive(self) -> None:
        """Let the task go on, in this call; not in another task, since a loop runs one at a time."""
        self._arrived = True
        callback, self._callback = self._callback, None
        loop = self.waits_in
        while callback is not None:
            function, context, callback = callback
            if loop is not None and loop.get_debug():
                loop.call_soon(function, self, context=context)  # for asyncio to tell which task is slow
            else:
                context.run(function, self)
        # The traceback of an exception of the task leads here, and the task and its context may lead to that.
        function = context = None  # type: ignore[assignment]

    def done(self) -> bool:
        """Tell whether the task goes on; anyio asks for that."""
        return self._arrived or self._cancellation is not None

    # For the task:

    # It asks in its own loop, where nothing can be awaited that belongs to another.
    get_loop = staticmethod(asyncio.get_running_loop)

    def add_done_callback(
        self, function: Callable[[Any], object], *, context: contextvars.Context | None = None
    ) -> None:
        self._callback = function, contextvars.copy_context() if context is None else context, self._callback

    def cancel(self, msg: Any = None) -> bool:
        """Have the task go on with a ``CancelledError``, soon; return False where it goes on already."""
        loop, callback = self.waits_in, self._callback
        if loop is None or callback is None:
            return False
        self._callback = None
        self._cancellation = asyncio.CancelledError() if msg is None else asyncio.CancelledError(msg)
        while callback is not None:
            function, context, callback = callback
            loop.call_soon(function, self, context=context)
        return True

    def result(self) -> None:
        if self._cancellation is not None:
            cancellation, self._cancellation = self._cancellation, None
            try:
                raise cancellation
            finally:
                del cancellation  # else its traceback leads back to it
