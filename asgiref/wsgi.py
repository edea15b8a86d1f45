"""WSGI applications under ASGI servers: ``WsgiToAsgi``.

What lives here is the way of one request: wait for its first message, run the application
on a thread, send what it made. How an environ is made is in ``_wsgi.environ``, what
comes from the server in ``_wsgi.connection``, what goes there in ``_wsgi.response``.

Everything of one request (the call of the application, the iteration over what it returns,
reads of ``wsgi.input`` and ``close()``) happens on one thread. Many requests run at once.
"""

from __future__ import annotations

import asyncio
import io
import logging
import signal
import threading
import traceback
from typing import TYPE_CHECKING, Any

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

# How many requests of one adapter run at once. A guess: enough for applications that wait
# for a database, and few enough for each of their threads to have a connection to it.
THREADS = 40

# The threads of instances that are made without an adapter, as subclasses of it do.
_shared_pool = WorkerPool(THREADS)

# Bytes to read ahead where an application reads a body of several messages bit by bit.
BUFFER_SIZE = 64 * 1024


class WsgiToAsgi:
    """An ASGI application that has a WSGI application answer its HTTP requests.

    Equivalent to a WSGI server with *threads* threads, behind the sockets of the ASGI server.

    Args:
        wsgi_application: A callable as PEP 3333 describes it.
        duplicate_header_limit: How often a request may have the same header; one that has it
            more often is answered with 400. None: as often as the server lets it.
        threads: How many requests run at once, 40 unless told; more wait for their turn. The
            threads are started when they are needed, and leave after ten idle seconds.
            (Keyword-only; upstream has no such parameter.)
        executor: Where to run requests, in place of threads of the adapter's own. It is not
            shut down. (Keyword-only; upstream has no such parameter.)
        max_body_size: How many bytes a request body may have; a larger one is answered with
            413. None: as many as the client sends, which cost no memory unless the
            application keeps them. (Keyword-only; upstream has no such parameter.)
        spool_body: Which bodies are collected before the application is called. Unless told:
            those without a Content-Length, such as chunked ones, up to 1 GiB. A number of
            bytes: all bodies, up to that size, for applications that seek in them. None: no
            body, so one without a Content-Length has no ``CONTENT_LENGTH``. A larger body
            than the limit is answered with 413. (Keyword-only; upstream has no such
            parameter.)

    Thread and loop:
        The application is called on one of the threads, and the iteration over what it
        returns, reads of ``wsgi.input`` and ``close()`` happen there too. Inside a
        ``ThreadSensitiveContext``, or below ``async_to_sync``, that is the thread which the
        rules of ``sync_to_async`` name. ``async_to_sync`` in the application runs its
        coroutines on the loop of the server. Context variables that the server or a
        middleware has set are visible, and changes to them come back.

        A body that the application returns as a list or tuple makes one hop to the loop. Any
        other iterable streams: what it gives is sent while it makes more, and it is held
        back while 256 KiB wait for the client. With the last byte that its Content-Length
        allows, a response is complete, and the iteration ends.

        A request body with a Content-Length is read from the client as the application reads
        it, one message at a time. One without is collected first: in memory up to 1 MiB, then
        in a temporary file, which is written on threads of its own and removed when the
        request is over. No thread is held while the client is slow. Such a body has a
        ``CONTENT_LENGTH`` and can be sought, as can one that comes in a single message.

    Cancellation:
        A client that goes away ends the iteration early; reads and ``write()`` raise an
        ``OSError``. A cancelled request task does the same, and raises
        ``asyncio.CancelledError`` in an application that waits for the client. ``close()`` is
        called in any case.

    Raises:
        TypeError: for what is not callable, for both *threads* and *executor*, and for a
            *spool_body* of True or False.
        ValueError: for fewer threads than one and for a negative *spool_body*; when called, for a
            scope that is neither ``http`` nor ``websocket`` nor ``lifespan``.
        Exception: when called, what the application raises, unless it does so because its
            client has gone. Before the headers are sent, the server can answer with 500. After
            that, what the application has given is sent first, and the response is left
            incomplete. Errors of ``close()`` are logged to ``asgiref.wsgi`` and change nothing
            about the response.
        RuntimeError: when called, from what an application raises that is no ``Exception``,
            such as ``SystemExit``, which would end the server. On the main thread, which runs
            the application below ``async_to_sync``, ``KeyboardInterrupt`` and what signal
            handlers raise go on as they are.

    The rules are those of PEP 3333 and of the section on WSGI in the ASGI specification.

    >>> import asyncio
    >>> from asgiref.testing import ApplicationCommunicator
    >>> def application(environ, start_response):
    ...     start_response("200 OK", [("Content-Type", "text/plain")])
    ...     return [b"You are at ", environ["PATH_INFO"].encode("latin-1")]
    >>> async def main():
    ...     scope = {"type": "http", "http_version": "1.1", "method": "GET", "path": "/home", "headers": []}
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
    # Any, since subclasses may put a coroutine function in the place of the result.
    return _OnAdapterThreads(func)


class _OnAdapterThreads(SyncToAsync[..., None]):
    """``sync_to_async`` for ``run_wsgi_app``: where nothing encloses the call, the threads are the adapter's."""

    def _executors(self, loop: asyncio.AbstractEventLoop, args: tuple[Any, ...]) -> Iterable[Any]:
        instance: WsgiToAsgiInstance = args[0]
        *enclosing, _ = super()._executors(loop, args)
        return *enclosing, instance.executor


class WsgiToAsgiInstance:
    """One connection to a ``WsgiToAsgi``, which makes one for each; subclasses change how a request is handled.

    To use a subclass, override ``WsgiToAsgi.__call__`` and await an object of it there. The
    parameters are those of ``WsgiToAsgi``, but for the threads: without an executor, such
    objects share 40.

    >>> class Instance(WsgiToAsgiInstance):
    ...     def build_environ(self, scope, body):
    ...         return {**super().build_environ(scope, body), "app.tenant": "acme"}
    >>> class Adapter(WsgiToAsgi):
    ...     async def __call__(self, scope, receive, send):
    ...         instance = Instance(self.wsgi_application, self.duplicate_header_limit, executor=self.executor)
    ...         await instance(scope, receive, send)
    """

    scope: Any
    # The size of the request body in bytes, where that is known before the application is called.
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
        connection = Connection(receive, send)
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
                if response.failed:
                    await response.finish()
                raise RuntimeError(f"the application raised {error!r}, but nobody has cancelled its request") from error
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
                    connection.raise_error()  # while the other is being handled, which so becomes its context
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
        """Tell whether a body that comes in several messages is collected before the application is called."""
        if self.spool_body is None:
            return False
        if not states_length(self.scope):
            return True
        # A length that is no number is refused without waiting for the body.
        return self.spool_body is not ... and content_length_of(self.scope) is not None

    async def _refuse_body(self, limit: int | None) -> None:
        logger.warning("Answered a request with 413, since its body is larger than %d bytes", limit)
        await self._response.refuse(413, b"Content Too Large")

    def build_environ(self, scope: Any, body: Any) -> dict[str, Any]:
        """Return the WSGI environ for *scope*. Subclasses may add to it.

        Args:
            scope: The ASGI scope, of type ``http``.
            body: The request body, a binary file, which becomes ``wsgi.input``.
        """
        return environ_for(scope, body, self.duplicate_header_limit, FileWrapper, self._body_size)

    def start_response(
        self, status: str, response_headers: list[tuple[str, str]], exc_info: Any = None
    ) -> Callable[[bytes], object]:
        """Do what PEP 3333 says of ``start_response``. Subclasses may change what is passed on.

        Args:
            status: Such as ``"200 OK"``; the reason may be missing, and is not sent.
            response_headers: Pairs of a name and a value; the value is of latin-1 characters.
            exc_info: What ``sys.exc_info()`` gives, where an error handler replaces a
                response that it began. If part of that is sent, the exception is raised again.

        Returns:
            ``write``, which takes bytes for the body.
        """
        __traceback_hide__ = True
        try:
            self._response.start(status, response_headers, exc_info)
        finally:
            del exc_info  # raised again, its traceback leads back here
        return self._response.write

    @_on_adapter_threads
    def run_wsgi_app(self, body: Any) -> None:
        """Run the application on this thread, and have its response sent.

        Args:
            body: The request body, a binary file.
        """
        __traceback_hide__ = True
        response, spool = self._response, self._spool
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
    """Tell whether *error* ends what this thread does, and is not of the application that it has just called.

    It is a cancellation, or comes from a signal handler, such as that for Ctrl-C. Those run
    on the main thread, where the application is below ``async_to_sync``.
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
    """Tell whether somebody has cancelled this task."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _smaller(limit: int | None, other: int) -> int:
    return other if limit is None else min(limit, other)


def _tells_of_disconnect(error: BaseException) -> bool:
    """Tell whether *error* is, or was raised because of, an end of the connection."""
    cause: BaseException | None = error
    seen = set()  # an error handler can make it go round in a circle
    while cause is not None and id(cause) not in seen:
        if isinstance(cause, ClientDisconnected):
            return True
        seen.add(id(cause))
        cause = cause.__cause__ or cause.__context__
    return False


async def _answer_without_application(kind: str, receive: Receive, send: Send) -> None:
    """Answer what WSGI knows nothing of: servers may start, WebSockets are refused."""
    if kind == "lifespan":
        for step in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{step}.complete"})
    elif kind == "websocket":
        await receive()
        await send({"type": "websocket.close"})
    else:
        raise ValueError(f"WsgiToAsgi can answer HTTP requests, not connections of type {kind!r}")
