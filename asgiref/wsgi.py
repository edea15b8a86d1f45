"""WSGI applications under ASGI servers: ``WsgiToAsgi``.

This module handles one request: it waits for the first message, runs the application on a
thread and sends the response. ``_wsgi.environ`` makes the environ, ``_wsgi.connection``
receives from the server, and ``_wsgi.response`` sends to it.

One request stays on one thread: the call of the application, the iteration over its result,
reads of ``wsgi.input`` and ``close()``. Many requests run concurrently.
"""

from __future__ import annotations

import asyncio
import io
import logging
import signal
import threading
import traceback
from typing import TYPE_CHECKING, Any

from ._bridge import cancellation
from ._bridge.workers import WorkerPool
from ._wsgi.connection import ClientDisconnected, Connection, RequestBody
from ._wsgi.environ import BadRequest, content_length_of, environ_for, states_length
from ._wsgi.response import FileWrapper, Response
from ._wsgi.spool import SPOOL_LIMIT, Spool
from .sync import SyncToAsync

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable
    from concurrent.futures import Executor
    from types import EllipsisType
    from wsgiref.types import WSGIApplication

    Receive = Callable[[], Awaitable[Any]]
    Send = Callable[[Any], Awaitable[None]]

__all__ = ["WsgiToAsgi", "WsgiToAsgiInstance"]

logger = logging.getLogger(__name__)

# Concurrent requests of one adapter. A guess: enough for applications that wait for a
# database, and few enough for each thread to have its own connection to it.
THREADS = 40

# For instances without an executor: subclasses of the adapter make such ones.
_shared_pool = WorkerPool(THREADS)

# Bytes to read ahead from a streamed body, for applications that read it in small pieces.
BUFFER_SIZE = 64 * 1024


class WsgiToAsgi:
    """An ASGI application whose HTTP requests a WSGI application answers.

    Equivalent to a WSGI server with *threads* threads behind the ASGI server's sockets.

    Args:
        wsgi_application: A callable as described in PEP 3333.
        duplicate_header_limit: How often a request may repeat a header. A request beyond it
            is answered with 400. None: no limit.
        threads: Maximum number of concurrent requests, by default 40; further ones are
            queued. Threads start on demand and end after ten idle seconds. (Keyword-only;
            upstream has no such parameter.)
        executor: Runs the requests instead of the adapter's own threads. The adapter does
            not shut it down. (Keyword-only; upstream has no such parameter.)
        max_body_size: Maximum size of a request body, in bytes. A larger one is answered with
            413. None: no limit; a large body costs memory only if the application keeps it.
            (Keyword-only; upstream has no such parameter.)
        spool_body: Which bodies are collected before the application is called. By default:
            bodies without a Content-Length, such as chunked ones, up to 1 GiB. A number of
            bytes: all bodies, up to that size, for applications that seek. None: no body; one
            without a Content-Length then has no ``CONTENT_LENGTH``. A body beyond the limit
            is answered with 413. (Keyword-only; upstream has no such parameter.)

    Thread and loop:
        One worker thread calls the application, iterates over the result, reads
        ``wsgi.input`` and calls ``close()``. Inside a ``ThreadSensitiveContext`` or below
        ``async_to_sync``, the thread is chosen as for ``sync_to_async``. ``async_to_sync`` in
        the application runs its coroutine on the server's event loop. The application sees
        the context variables of the server and of middleware, and its changes come back.

        A body returned as a list or tuple is handed to the event loop at once. Any other
        iterable streams: chunks are sent while it makes further ones, and it blocks while
        256 KiB are unsent. The response is complete with the last byte that its
        Content-Length allows, and the iteration ends.

        A request body with a Content-Length is received while the application reads it, one
        message at a time. A body without one is collected first: in memory up to 1 MiB, then
        in a temporary file, written on separate threads and removed when the request ends.
        No thread waits while the client is slow. A collected body has a ``CONTENT_LENGTH``
        and can seek, and so can a body of one message.

    Cancellation:
        If the client disconnects, the iteration ends early, and reads and ``write()`` raise
        an ``OSError``. A cancelled request task has the same effect, and raises
        ``asyncio.CancelledError`` in an application that waits for the client. ``close()`` is
        always called. An application that works without reading or writing can call
        ``asgiref.sync.check_cancelled``; when it lets that ``CancelledError`` out, the adapter
        ends without an error.

    Raises:
        TypeError: if the application is not callable, if both *threads* and *executor* are
            given, or if *spool_body* is True or False.
        ValueError: if *threads* is less than 1 or *spool_body* is negative; when called, if
            the scope is not ``http``, ``websocket`` or ``lifespan``.
        Exception: when called, what the application raises, unless the cause is a
            disconnected client. Before the headers are sent, the server can answer with 500.
            Later, the data so far is sent first, and the response stays incomplete. Errors of
            ``close()`` are logged to ``asgiref.wsgi`` and do not change the response.
        RuntimeError: when called, if the application raises something that is not an
            ``Exception``, such as ``SystemExit``, which would end the server. On the main
            thread, which runs the application only below ``async_to_sync``,
            ``KeyboardInterrupt`` and exceptions of signal handlers are raised unchanged.

    The rules are from PEP 3333 and the section on WSGI in the ASGI specification.

    >>> import asyncio
    >>> from asgiref.testing import ApplicationCommunicator
    >>> def application(environ, start_response):
    ...     start_response("200 OK", [("Content-Type", "text/plain")])
    ...     return [b"You are at ", environ["PATH_INFO"].encode("latin-1")]
    >>> async def main():
    ...     scope = {"type": "http", "method": "GET", "path": "/home"}
    ...     scope |= {"http_version": "1.1", "headers": []}
    ...     client = ApplicationCommunicator(WsgiToAsgi(application), scope)
    ...     await client.send_input({"type": "http.request"})
    ...     print((await client.receive_output())["headers"])
    ...     print((await client.receive_output())["body"])
    >>> asyncio.run(main())
    [(b'content-type', b'text/plain'), (b'content-length', b'16')]
    b'You are at /home'
    """

    def __init__(
        self,
        wsgi_application: WSGIApplication,
        duplicate_header_limit: int | None = 100,
        *,
        threads: int | None = None,
        executor: Executor | None = None,
        max_body_size: int | None = None,
        spool_body: int | EllipsisType | None = ...,
    ) -> None:
        if not callable(wsgi_application):
            raise TypeError(f"WsgiToAsgi needs a WSGI application, which is callable, not {wsgi_application!r}")
        if threads is not None and executor is not None:
            raise TypeError("WsgiToAsgi was given both threads and an executor, which has threads of its own; pass one")
        if threads is not None and threads < 1:
            raise ValueError(f"WsgiToAsgi needs at least one thread, not {threads}")
        if isinstance(spool_body, bool):
            raise TypeError(f"WsgiToAsgi needs a number of bytes for spool_body, or None to stream, not {spool_body}")
        if isinstance(spool_body, int) and spool_body < 0:
            raise ValueError(f"WsgiToAsgi needs a number of bytes for spool_body, not {spool_body}; None streams them")
        self.wsgi_application = wsgi_application
        self.duplicate_header_limit = duplicate_header_limit
        self.executor = WorkerPool(threads or THREADS) if executor is None else executor
        self.max_body_size = max_body_size
        self.spool_body = spool_body

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        __traceback_hide__ = True
        await WsgiToAsgiInstance(
            self.wsgi_application,
            self.duplicate_header_limit,
            executor=self.executor,
            max_body_size=self.max_body_size,
            spool_body=self.spool_body,
        )(scope, receive, send)


def _on_adapter_threads(func: Callable[..., None]) -> Any:
    # Any, because subclasses may replace the result by a coroutine function.
    return _OnAdapterThreads(func)


class _OnAdapterThreads(SyncToAsync[..., None]):
    """``sync_to_async`` for ``run_wsgi_app``: without an enclosing context, it uses the adapter's threads."""

    def _executors(self, loop: asyncio.AbstractEventLoop, args: tuple[Any, ...]) -> Iterable[Any]:
        instance: WsgiToAsgiInstance = args[0]
        *enclosing, _ = super()._executors(loop, args)
        return *enclosing, instance.executor


class WsgiToAsgiInstance:
    """Handles one connection; ``WsgiToAsgi`` makes one for each. Subclasses change how requests are handled.

    To use a subclass, override ``WsgiToAsgi.__call__`` and await an instance of it there. It
    takes the parameters of ``WsgiToAsgi`` except *threads*. Instances without an executor
    share 40 threads.

    >>> class Instance(WsgiToAsgiInstance):
    ...     def build_environ(self, scope, body):
    ...         return {**super().build_environ(scope, body), "app.tenant": "acme"}
    >>> class Adapter(WsgiToAsgi):
    ...     async def __call__(self, scope, receive, send):
    ...         instance = Instance(self.wsgi_application, executor=self.executor)
    ...         await instance(scope, receive, send)
    """

    scope: Any
    # In bytes; 0 if it is not known before the application is called.
    _body_size = 0
    _spool: Spool | None = None

    def __init__(
        self,
        wsgi_application: WSGIApplication,
        duplicate_header_limit: int | None = 100,
        *,
        executor: Any = None,
        max_body_size: int | None = None,
        spool_body: int | EllipsisType | None = ...,
    ) -> None:
        self.wsgi_application = wsgi_application
        self.duplicate_header_limit = duplicate_header_limit
        self.executor = _shared_pool if executor is None else executor
        self.max_body_size = max_body_size
        self.spool_body = spool_body

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        __traceback_hide__ = True
        if scope["type"] != "http":
            await _answer_without_application(scope["type"], receive, send)
            return
        self.scope = scope
        connection = self._connection = Connection(receive, send)
        response = self._response = Response(connection, scope)
        limit = self.max_body_size
        if isinstance(self.spool_body, int):
            limit = _smaller(limit, self.spool_body)
        try:
            if limit is not None and (content_length_of(scope) or 0) > limit:
                await self._refuse_body(limit)
                return
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            first = message.get("body", b"")
            if limit is not None and len(first) > limit:
                await self._refuse_body(limit)
                return
            source: RequestBody | Spool | None = None
            try:
                body: Any
                if not message.get("more_body", False):
                    body, self._body_size = io.BytesIO(first), len(first)
                elif self._is_to_be_collected():
                    source = self._spool = Spool(_smaller(limit, SPOOL_LIMIT) if self.spool_body is ... else limit)
                    body = await source.collect(message, receive)
                    self._body_size = source.size
                else:
                    source = RequestBody(connection, message, limit)
                    body = io.BufferedReader(source, BUFFER_SIZE)
                await self.run_wsgi_app(body)
            except asyncio.CancelledError as error:
                if _is_being_cancelled():
                    raise
                if not connection.gone:  # else check_cancelled() has raised it
                    if response.failed:
                        await response.finish()
                    raise RuntimeError(
                        f"the application raised {error!r}, but its request was not cancelled; catch it in the "
                        "application"
                    ) from error
            except Exception:
                if source is None or not source.too_large or response.started:
                    if response.failed:
                        await response.finish()
                    raise
            if source is not None and source.too_large and not response.started:
                await self._refuse_body(source.limit)
                return
            await response.finish()
        except BadRequest as reason:
            logger.warning("Answered a request with 400, since %s", reason)
            await response.refuse(400, b"Bad Request")
        except Exception as error:
            if not _tells_of_disconnect(error):
                if connection.error is not None:
                    connection.raise_error()  # inside this handler, so that the other becomes its context
                raise
        finally:
            connection.lose()
            if self._spool is not None:
                self._spool.discard()
            if connection.tasks:
                await connection.end_tasks()
        if connection.error is not None:
            connection.raise_error()

    def _is_to_be_collected(self) -> bool:
        """Return whether a body of several messages is collected before the application is called."""
        if self.spool_body is None:
            return False
        if not states_length(self.scope):
            return True
        # Raises for a length that is not a number, without waiting for the body.
        return self.spool_body is not ... and content_length_of(self.scope) is not None

    async def _refuse_body(self, limit: int | None) -> None:
        logger.warning("Answered a request with 413, since its body is larger than %d bytes", limit)
        await self._response.refuse(413, b"Content Too Large")

    def build_environ(self, scope: Any, body: Any) -> dict[str, Any]:
        """Return the WSGI environ for *scope*. Subclasses may extend it.

        Args:
            scope: The ASGI scope, of type ``http``.
            body: The request body, a binary file. It becomes ``wsgi.input``.
        """
        return environ_for(scope, body, self.duplicate_header_limit, FileWrapper, self._body_size)

    def start_response(
        self, status: str, response_headers: list[tuple[str, str]], exc_info: Any = None
    ) -> Callable[[bytes], object]:
        """Start the response, as described in PEP 3333. Subclasses may change the arguments.

        Args:
            status: Such as ``"200 OK"``. The reason is optional and is not sent.
            response_headers: Pairs of a name and a value; values have latin-1 characters.
            exc_info: The result of ``sys.exc_info()``, if an error handler replaces a
                response. If part of it was sent already, the exception is raised again.

        Returns:
            ``write``, which takes bytes of the body.
        """
        __traceback_hide__ = True
        try:
            self._response.start(status, response_headers, exc_info)
        finally:
            del exc_info  # if raised again, its traceback refers to this frame
        return self._response.write

    @_on_adapter_threads
    def run_wsgi_app(self, body: Any) -> None:
        """Run the application on this thread and send its response.

        Args:
            body: The request body, a binary file.
        """
        __traceback_hide__ = True
        response, spool, connection = self._response, self._spool, self._connection
        inner_calls = SyncToAsync.threadlocal.__dict__.get("task_context")
        cancellation.learn_from(inner_calls, connection.client_has_gone)
        iterable: Iterable[bytes] | None = None
        if spool is not None:
            spool.hold()
        try:
            environ = self.build_environ(self.scope, body)
            iterable = self.wsgi_application(environ, self.start_response)
            response.send_all(iterable)
        except BaseException as error:
            if response.committed:
                response.break_off()
            if isinstance(error, Exception) or _is_interrupt(error):
                raise
            raise RuntimeError(
                f"the application raised {error!r}, which could end the server; raise an Exception instead"
            ) from error
        finally:
            try:
                close = getattr(iterable, "close", None)
                if close is not None:
                    if connection.gone or cancellation.is_cancelled(inner_calls):
                        cancellation.expect_only_cleanup(inner_calls)
                    _call_close(close)
            finally:
                if spool is not None:
                    spool.let_go()
        response.end()


def _call_close(close: Callable[[], object]) -> None:
    try:
        close()
    except BaseException as error:
        if _is_interrupt(error):
            raise
        logger.exception("close() of the application's response failed")


def _is_interrupt(error: BaseException) -> bool:
    """Return whether *error* interrupts this thread, instead of being raised by the application itself.

    It is a cancellation, or a signal handler raised it, for example for Ctrl-C. Signal
    handlers run on the main thread, which runs the application below ``async_to_sync``.
    """
    if isinstance(error, Exception):
        return False
    if isinstance(error, asyncio.CancelledError):
        return True
    if threading.current_thread() is not threading.main_thread():
        return False
    if isinstance(error, KeyboardInterrupt):
        return True
    handlers = {getattr(signal.getsignal(number), "__code__", None) for number in signal.valid_signals()}
    return any([frame.f_code in handlers for frame, _ in traceback.walk_tb(error.__traceback__)])


def _is_being_cancelled() -> bool:
    """Return whether ``cancel()`` was called on this task."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _smaller(limit: int | None, other: int) -> int:
    return other if limit is None else min(limit, other)


def _tells_of_disconnect(error: BaseException) -> bool:
    """Return whether *error* is a disconnect, or was caused by one."""
    cause: BaseException | None = error
    seen = set()  # error handlers can make a cycle of causes
    while cause is not None and id(cause) not in seen:
        if isinstance(cause, ClientDisconnected):
            return True
        seen.add(id(cause))
        cause = cause.__cause__ or cause.__context__
    return False


async def _answer_without_application(kind: str, receive: Receive, send: Send) -> None:
    """Answer what WSGI does not have: lifespan messages are confirmed, WebSockets are refused."""
    if kind == "lifespan":
        for step in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{step}.complete"})
    elif kind == "websocket":
        await receive()
        await send({"type": "websocket.close"})
    else:
        raise ValueError(f"WsgiToAsgi cannot answer connections of type {kind!r}; give them to another application")
