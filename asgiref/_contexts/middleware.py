"""``ThreadSensitiveMiddleware``: a block around each connection, which releases its thread on idle WebSockets.

An application that waits for the next message needs no thread, but would keep one, often for hours. So the thread is
released when ``receive`` is called. Meanwhile, other tasks of the connection may make calls; consumers of Channels do,
for the messages of a group. After each of these calls, the thread is released, too.
"""

from __future__ import annotations

import functools
import weakref
from typing import TYPE_CHECKING, Any

from .._bridge.internals import running_loop
from .._bridge.limit import ContextExecutor
from ..sync import SyncToAsync, ThreadSensitiveContext, _install_executor, release_thread

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from .._bridge.jobs import Job

__all__ = ["ThreadSensitiveMiddleware"]


class ThreadSensitiveMiddleware:
    """ASGI middleware that enters a ``ThreadSensitiveContext`` for each connection.

    Equivalent to ``async with ThreadSensitiveContext():`` around the call of the application. Without a context, all
    thread-sensitive calls share one thread of the process. Django enters a context for each HTTP request. This
    middleware is for applications that do not: consumers of Channels, or Starlette with a synchronous ORM.

    A WebSocket has no thread while the application waits in ``receive``, so idle sockets need no threads. If another
    task of the connection makes a call meanwhile, it gets a thread for this call only. The next call may run on another
    thread, so end transactions before waiting for the next message, as for ``release_thread``. Iterators and context
    managers of ``sync_to_async_iterator`` and ``sync_to_async_context_manager`` keep their thread until they are
    closed.

    ``lifespan`` is passed on without a context.

    Args:
        app: An ASGI 3 application.

    >>> import asyncio, threading
    >>> from asgiref.sync import sync_to_async
    >>> async def app(scope, receive, send):
    ...     one = await sync_to_async(threading.get_ident)()
    ...     print(one == await sync_to_async(threading.get_ident)())
    >>> asyncio.run(ThreadSensitiveMiddleware(app)({"type": "http"}, None, None))
    True
    """

    def __init__(self, app: Callable[[Any, Any, Any], Awaitable[Any]]) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        __traceback_hide__ = True
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        block = ThreadSensitiveContext()
        async with block:
            if scope["type"] == "websocket":
                receive = _Receive(receive)
                SyncToAsync.context_to_thread_executor[block] = _SocketExecutor(weakref.ref(block), receive)
            await self.app(scope, receive, send)


class _Receive:
    """The ``receive`` of a WebSocket, which releases the thread."""

    def __init__(self, receive: Callable[[], Awaitable[Any]]) -> None:
        self._receive = receive
        # The number of calls of ``receive`` that are waiting.
        self.waiting = 0

    async def __call__(self) -> Any:
        __traceback_hide__ = True
        self.waiting += 1
        try:
            await release_thread()
            return await self._receive()
        finally:
            self.waiting -= 1


class _SocketExecutor(ContextExecutor):
    """The executor of a WebSocket's block: while the application waits in ``receive``, it serves one call at a time."""

    def __init__(self, block: weakref.ref[ThreadSensitiveContext], receive: _Receive) -> None:
        super().__init__()
        self._block, self._receive = block, receive

    def post(self, job: Job, waiting_thread: int | None = None) -> bool:
        accepted = super().post(job, waiting_thread)
        if accepted and self._receive.waiting and (loop := running_loop()) is not None:
            # Not at once: the first step of an iterator pins the thread after this has returned.
            loop.call_soon(self._release_while_waiting)
        return accepted

    def _release_while_waiting(self) -> None:
        if self._receive.waiting:
            self.release(functools.partial(_install_executor, self._block))

    def _make_successor(self) -> ContextExecutor:
        return _SocketExecutor(self._block, self._receive)
