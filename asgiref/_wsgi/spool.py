"""A request body that is collected before the application is called: it has a length and can seek.

The task of the request collects it. A small body stays in memory. A larger one goes into a
temporary file, which a thread pool of this module writes piece by piece. Between two
pieces, while the client sends the next one, the body occupies no thread.

One thread at a time uses the file. It takes the file out of a list of one item and puts it
back afterwards. ``pop`` is atomic, so the file is closed exactly once: by ``discard``, or,
if a thread is using the file then, by that thread when it puts the file back.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import tempfile
from typing import IO, TYPE_CHECKING, Any, ParamSpec, TypeVar

from .._bridge.workers import WorkerPool
from ..sync import SyncToAsync
from .connection import EMPTY_MESSAGES, BodyTooLarge, ClientDisconnected
from .environ import BadRequest

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

__all__ = ["SPOOL_LIMIT", "Spool"]

P = ParamSpec("P")
R = TypeVar("R")

# Maximum size in bytes by default. A guess: more than a form has, less than most disks have free.
SPOOL_LIMIT = 1024**3

# Bytes of a body that stay in memory, and bytes that are written to the file at a time.
MEMORY_LIMIT = 1024**2

# A guess: one disk does not get faster with more threads.
_pool = WorkerPool(4)


class _OffLoop(SyncToAsync[P, R]):
    """``sync_to_async`` onto this module's thread pool, in any context."""

    def _executors(self, loop: asyncio.AbstractEventLoop, args: tuple[Any, ...]) -> Iterable[Any]:
        return (_pool,)


class Spool:
    """One collected request body, which becomes ``wsgi.input``.

    Args:
        limit: Maximum size in bytes, or None.
    """

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self.too_large = False
        # Bytes received so far.
        self.size = 0
        # The temporary file, if it exists and no thread is using it.
        self._free: list[IO[bytes]] = []
        # The temporary file while the application uses it.
        self._held: IO[bytes] | None = None
        # Whether the request is over. ``discard`` sets this and then takes the file out of the list;
        # other threads put the file into the list and then read this. On free-threaded builds the
        # list has a lock, which orders the two: at least one of them closes the file.
        self._discarded = False

    # On the loop:

    async def collect(self, message: Any, receive: Callable[[], Awaitable[Any]]) -> IO[bytes]:
        """Receive the whole body and return it, at position 0; *message* is the first part.

        Raises:
            BodyTooLarge: if it is larger than the limit.
            ClientDisconnected: if the client disconnects before the end.
            BadRequest: after too many empty messages.
        """
        body: IO[bytes]
        body = memory = io.BytesIO()
        empty = 0
        while True:
            data = message.get("body", b"")
            self.size += len(data)
            if self.limit is not None and self.size > self.limit:
                self.too_large = True
                raise BodyTooLarge(
                    f"the request body is larger than {self.limit} bytes; increase the limit of WsgiToAsgi to accept it"
                )
            memory.write(data)
            is_last = not message.get("more_body", False)
            if memory.tell() > MEMORY_LIMIT or (is_last and self.size > MEMORY_LIMIT):
                body = await _OffLoop(self._write)(memory, is_last)
                memory = io.BytesIO()
            if is_last:
                if body is memory:
                    memory.seek(0)
                return body
            empty = 0 if data else empty + 1
            if empty > EMPTY_MESSAGES:
                raise BadRequest(f"{EMPTY_MESSAGES} messages in a row were empty and announced more of its body")
            # A receive() that never waits must not block the event loop.
            await asyncio.sleep(0)
            message = await receive()
            if message["type"] != "http.request":
                raise ClientDisconnected("the client disconnected before its request body was complete")

    def discard(self) -> None:
        """Close and thereby remove the file as soon as no thread is using it."""
        self._discarded = True
        try:
            file = self._free.pop()
        except IndexError:
            return
        # Not on the event loop: removing a large file can be slow.
        try:
            _pool.submit(_close, file)
        except RuntimeError:  # no thread can be started
            _close(file)

    # On a thread of the pool:

    def _write(self, memory: io.BytesIO, is_last: bool) -> IO[bytes]:
        file = self._free.pop() if self._free else tempfile.TemporaryFile()  # noqa: SIM115
        try:
            with memory.getbuffer() as data:
                file.write(data)
            if is_last:
                file.seek(0)
        finally:
            self._put_back(file)
        return file

    # On the thread of the application:

    def hold(self) -> None:
        """Keep the file open until ``let_go``, even if the request ends earlier."""
        with contextlib.suppress(IndexError):  # the body is in memory, or the request is over
            self._held = self._free.pop()

    def let_go(self) -> None:
        file, self._held = self._held, None
        if file is not None:
            self._put_back(file)

    # On any thread:

    def _put_back(self, file: IO[bytes]) -> None:
        self._free.append(file)
        if self._discarded:
            with contextlib.suppress(IndexError):  # discard() has taken it
                _close(self._free.pop())


def _close(file: IO[bytes]) -> None:
    with contextlib.suppress(OSError):  # the disk is full, which the request has reported already
        file.close()
