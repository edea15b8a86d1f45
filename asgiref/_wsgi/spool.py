"""A request body that is collected before the application is called, so that its length is known and it can be sought.

The task of the request collects it. A small body stays in memory. A larger one goes into a
temporary file, which threads of a pool of this module's own write, one piece at a time:
between two pieces, while the client makes the next one, the body holds no thread.

The file is one thread's at a time, and whoever works on it has taken it out of a list of
one. ``pop`` is a single step, so the file is closed exactly once: by ``discard``, or, where
somebody works on it at that moment, when it is put back.
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

# Bytes that a body may have by default: more than a form has, and less than fills most disks. A guess.
SPOOL_LIMIT = 1024**3

# Bytes of a body that stay in memory, and that are written to the file at once.
MEMORY_LIMIT = 1024**2

# One disk does not get faster with more threads. A guess.
_pool = WorkerPool(4)


class _OffLoop(SyncToAsync[P, R]):
    """``sync_to_async`` onto the pool of this module, whatever encloses the call."""

    def _executors(self, loop: asyncio.AbstractEventLoop, args: tuple[Any, ...]) -> Iterable[Any]:
        return (_pool,)


class Spool:
    """One request body, on its way from the client to ``wsgi.input``.

    Args:
        limit: How many bytes there may be, or None.
    """

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self.too_large = False
        # How many bytes have come.
        self.size = 0
        # The temporary file, if there is one and nobody works on it.
        self._free: list[IO[bytes]] = []
        # The same, while the application has it.
        self._held: IO[bytes] | None = None
        # Whether the request is over. ``discard`` sets it and then takes the file out of the list;
        # others put the file into the list and then look here. Both go through the lock that
        # the list has in free-threaded builds, so at least one of the two closes the file.
        self._discarded = False

    # On the loop:

    async def collect(self, message: Any, receive: Callable[[], Awaitable[Any]]) -> IO[bytes]:
        """Return the body, to be read from its start; *message* is the first part of it.

        Raises:
            BodyTooLarge: when more comes than the limit.
            ClientDisconnected: when the client leaves before its end.
            BadRequest: when it does not get any longer.
        """
        body: IO[bytes]
        body = memory = io.BytesIO()
        empty = 0
        while True:
            data = message.get("body", b"")
            self.size += len(data)
            if self.limit is not None and self.size > self.limit:
                self.too_large = True
                raise BodyTooLarge(f"the request body is larger than {self.limit} bytes")
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
            # A receive() that need not wait must not keep the loop from everybody else.
            await asyncio.sleep(0)
            message = await receive()
            if message["type"] != "http.request":
                raise ClientDisconnected("the client disconnected before its request body was complete")

    def discard(self) -> None:
        """Have the file closed, and so removed, when nobody works on it any more."""
        self._discarded = True
        try:
            file = self._free.pop()
        except IndexError:
            return
        # Not here, since the system may take its time to remove a large file.
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
        """Keep the file open until ``let_go``, though the request may be over before that."""
        with contextlib.suppress(IndexError):  # in memory, or over already
            self._held = self._free.pop()

    def let_go(self) -> None:
        file, self._held = self._held, None
        if file is not None:
            self._put_back(file)

    # On any thread:

    def _put_back(self, file: IO[bytes]) -> None:
        self._free.append(file)
        if self._discarded:
            with contextlib.suppress(IndexError):  # the other side has it
                _close(self._free.pop())


def _close(file: IO[bytes]) -> None:
    with contextlib.suppress(OSError):  # of a full disk, which the request has met before
        file.close()
