"""The connection to the server for one request, used by the application's thread, and the request body.

``receive`` and ``send`` belong to the server's event loop, and only that loop changes the
state of a connection. A thread that needs something from it waits in
``Connection.wait_for``, which is ``async_to_sync``. So the thread runs jobs of its mailbox
meanwhile, wakes up if the loop stops, and receives cancellations.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import io
from typing import TYPE_CHECKING, Any, TypeVar

from .._bridge import cancellation, workers
from .._bridge.internals import running_loop
from .._bridge.patience import Patience
from ..sync import AsyncToSync

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

__all__ = ["BodyTooLarge", "ClientDisconnected", "Connection", "RequestBody"]

R = TypeVar("R")

# Maximum number of consecutive empty messages with ``more_body``. A guess: servers send hardly
# any; a test client without an end sends any number.
EMPTY_MESSAGES = 100

# How many iterations of the loop a message that is there already may take to come. A guess: servers need one.
ITERATIONS = 3

LOOP_STOPPED = "the event loop of the server has stopped; end the request"


class ClientDisconnected(OSError):
    """The client disconnected or its request is over: nothing more can be read or written."""


class BodyTooLarge(OSError):
    """The request body is larger than the adapter accepts."""


class _OnLoop(AsyncToSync[..., R]):
    """``async_to_sync`` onto a given event loop, from any thread."""

    def __init__(self, awaitable: Callable[..., Awaitable[R]], loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(awaitable)
        self._loop = loop

    def _home_loop(self) -> Any:
        loop = self._loop
        return loop if loop.is_running() and not workers.is_suspended_here(loop) else None

    def _circumstances(self) -> tuple[Patience, None]:
        return Patience(0.0, 0.0), None  # no patience: a server whose loop has stopped does not start it again


class Connection:
    """``receive`` and ``send`` of one request, with the event loop and the context to call them in."""

    # Whether reading and writing have become pointless. Any thread may read this.
    gone = False
    # An exception of ``receive`` or ``send`` that is an error of the server.
    error: BaseException | None = None
    # A message that is received ahead of a reader; and whether a reader is waiting for one itself.
    _receiving: asyncio.Task[Any] | None = None
    _is_read = False
    # Whether the application has asked whether the client is there, so that a message is expected from then on.
    _is_watched = False
    _ended = False
    _news: asyncio.Event | None = None

    def __init__(self, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]) -> None:
        self.loop = asyncio.get_running_loop()
        self.send = send
        self._receive = receive
        self._context = contextvars.copy_context()
        # The running ones.
        self.tasks: set[asyncio.Task[Any]] = set()
        # One bridge for each function that a thread has waited for.
        self._bridges: dict[Any, _OnLoop[Any]] = {}

    # On a thread of the application:

    def wait_for(self, function: Callable[..., Coroutine[Any, Any, R]], *args: Any) -> R:
        """Run the coroutine ``function(*args)`` on the server's event loop and return its result."""
        __traceback_hide__ = True
        running = running_loop()
        if running is self.loop:
            raise RuntimeError(
                "wsgi.input and write() cannot wait for the server in code that runs on the server's own event loop: "
                "this would deadlock; read the body in synchronous code, before the call into asynchronous code"
            )
        call: _OnLoop[R] | None = self._bridges.get(function)
        if call is None:
            call = self._bridges[function] = _OnLoop(function, self.loop)
        try:
            # This blocks a loop of the application's own, as any WSGI server would.
            with contextlib.nullcontext() if running is None else workers.loop_suspended():
                return call(*args)
        except RuntimeError as error:
            if self.loop.is_running():
                raise
            raise ClientDisconnected(LOOP_STOPPED) from error

    def client_has_gone(self) -> bool:
        """Tell whether the client has gone. The first call has the loop look, and waits for that."""
        if not self._is_watched and not self.gone and not cancellation.runs_loop():
            try:
                self.wait_for(Connection._watch, self)
            except ClientDisconnected:
                return True
            self._is_watched = True
        return self.gone

    # On the loop:

    async def _watch(self) -> None:
        self.make_sure_it_is_the_loop()
        self.expect_message()
        for _ in range(ITERATIONS):
            await asyncio.sleep(0)

    def make_sure_it_is_the_loop(self) -> None:
        """Raise an error on any other loop: it replaces the server's loop, which has stopped."""
        if asyncio.get_running_loop() is not self.loop:
            raise ClientDisconnected(LOOP_STOPPED)

    def start_task(self, coroutine: Coroutine[Any, Any, R]) -> asyncio.Task[R]:
        """Start a task in the context of the request."""
        # Not create_task(context=...): task factories of older frameworks do not accept it. In a
        # copy, because a context cannot be entered twice, and an eager task may start another one.
        task = self._context.copy().run(self.loop.create_task, coroutine)
        self.tasks.add(task)
        task.add_done_callback(self._forget)
        return task

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self.tasks.discard(task)
        if not task.cancelled():
            task.exception()  # else asyncio logs "exception was never retrieved"

    def expect_message(self) -> None:
        """Receive one message ahead, unless this is happening or one is waiting already.

        So a disconnect is noticed, and a client that sends a lot is slowed down.
        """
        if self._receiving is None and not self._is_read and not self.gone:
            self._receiving = self.start_task(self._receive_one())

    deliver = expect_message

    async def _receive_one(self) -> Any:
        try:
            message = await self._receive()
        except Exception as error:
            self.lose(error)
            raise ClientDisconnected("the server failed to receive the request") from error
        if message["type"] == "http.disconnect":
            self.lose()
        return message

    async def next_message(self) -> Any:
        """Take the next ``http.request`` message."""
        self.make_sure_it_is_the_loop()
        receiving, self._receiving = self._receiving, None
        if self.gone and not (receiving is not None and receiving.done()):
            raise ClientDisconnected(
                "the request body can no longer be read, because the request is over; read it earlier"
            )
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        self._is_read = True
        try:
            message = await (receiving or self._receive_one())
        except asyncio.CancelledError:
            if not self._ended:
                raise
            raise ClientDisconnected("the request ended while its body was being read") from None
        finally:
            self._is_read = False
            self.tasks.discard(task)
        if message["type"] != "http.request":
            raise ClientDisconnected("the client disconnected before its request body was complete")
        return message

    def lose(self, error: BaseException | None = None) -> None:
        """Mark the connection as gone, because of *error* if given.

        Servers raise an ``OSError`` for a disconnected client (ASGI, HTTP 2.4).
        """
        if error is not None and not isinstance(error, OSError) and self.error is None:
            self.error = error
        self.gone = True
        self.tell()

    def raise_error(self) -> None:
        """Raise the server's error; drop the reference, because its traceback refers to this object."""
        __traceback_hide__ = True
        error, self.error = self.error, None
        try:
            raise error  # type: ignore[misc]
        finally:
            del error

    def tell(self) -> None:
        """Wake everything that waits in ``wait_for_news``."""
        if self._news is not None:
            self._news.set()

    async def wait_for_news(self) -> None:
        """Wait for a disconnect or a call of ``tell``."""
        if self._news is None:
            self._news = asyncio.Event()
        self._news.clear()
        if not self.gone:
            await self._news.wait()

    async def end_tasks(self) -> None:
        """Cancel all running tasks once and wait for them, even if the caller is cancelled meanwhile."""
        self._ended = True
        absorbed: tuple[Any, ...] | None = None
        for task in self.tasks:
            task.cancel()
        while self.tasks:
            try:
                await asyncio.wait(self.tasks)
                break
            except asyncio.CancelledError as cancellation:
                absorbed = cancellation.args
        self._receiving = None  # its exception refers to this object
        if absorbed is not None:
            raise asyncio.CancelledError(*absorbed)


class RequestBody(io.RawIOBase):
    """A streamed request body; it holds one message at a time.

    Args:
        connection: The source of the messages.
        message: The first message, received already.
        limit: Maximum size in bytes, or None.
    """

    def __init__(self, connection: Connection, message: Any, limit: int | None) -> None:
        self.too_large = False
        self.limit = limit
        self._connection = connection
        self._size = 0
        self._take(message)

    def _take(self, message: Any) -> None:
        body = message.get("body", b"")
        self._more = message.get("more_body", False)
        self._size += len(body)
        if self.limit is not None and self._size > self.limit:
            self.too_large = True
            body = b""
        self._rest = memoryview(body)

    def _fetch(self) -> None:
        """Wait for the next message that is not empty, or for the end."""
        for _ in range(EMPTY_MESSAGES + 1):
            if self.too_large:
                raise BodyTooLarge(
                    f"the request body is larger than {self.limit} bytes; increase the limit of WsgiToAsgi to accept it"
                )
            if self._rest or not self._more:
                return
            self._take(self._connection.wait_for(Connection.next_message, self._connection))
        raise ClientDisconnected(
            f"{EMPTY_MESSAGES} messages in a row were empty and announced more of the request body"
        )

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        __traceback_hide__ = True
        self._fetch()
        rest = self._rest
        count = min(len(buffer), len(rest))
        buffer[:count] = rest[:count]
        self._rest = rest[count:]
        return count

    def readall(self) -> bytes:
        # The method of the base class reads small pieces.
        __traceback_hide__ = True
        pieces = io.BytesIO()  # not a list: many small pieces would need several times the memory
        while True:
            self._fetch()
            if not self._rest:
                return pieces.getvalue()
            pieces.write(self._rest)
            self._rest = memoryview(b"")
