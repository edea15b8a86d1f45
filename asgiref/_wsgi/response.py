"""The response of a WSGI application.

The application's thread makes the status, the headers (kept until there is a body to send)
and the chunks of the body. The server's event loop sends them. A body that is complete when
the application returns goes to the loop at once, with its headers. Otherwise chunks go
through a queue: the thread appends them and wakes the loop once, the loop takes all of
them, and the thread waits while the queue is full.

The rules are from PEP 3333.
"""

from __future__ import annotations

import asyncio
import functools
import io
import logging
import os
import re
import stat
from collections import deque
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from .._bridge.jobs import deliver_on
from .connection import ClientDisconnected
from .dropped import DroppedHeaders

if TYPE_CHECKING:
    from .connection import Connection

__all__ = ["FileWrapper", "Response"]

logger = logging.getLogger("asgiref.wsgi")

# Bytes that may be queued while the loop sends as many. Measured: a larger queue does not make
# large responses faster, a smaller one makes them slower.
QUEUE_LIMIT = 256 * 1024

# Headers of the connection, which only the server sets (PEP 3333, "Other HTTP Features"). HTTP/2
# and later have none of them.
_HOP_BY_HOP = {
    b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"te", b"trailer",
    b"transfer-encoding", b"upgrade",
}  # fmt: skip

_dropped = DroppedHeaders("response header", "it is the server's to set (PEP 3333)")

_UNSAFE = re.compile("[\r\n\0]").search
_is_token = re.compile("[!#$%&'*+.^_`|~0-9A-Za-z-]+").fullmatch
_is_status = re.compile("[1-9][0-9][0-9](?: .*)?").fullmatch


class FileWrapper:
    """``wsgi.file_wrapper``: an iterable over *filelike*, a file that the server may also send itself.

    Args:
        filelike: Has ``read(size)``. If it has a ``close``, this object has the same.
        blksize: Bytes to read at a time.
    """

    def __init__(self, filelike: Any, blksize: int = 8192) -> None:
        self.filelike = filelike
        self.blksize = blksize
        if hasattr(filelike, "close"):
            self.close = filelike.close

    def __iter__(self) -> Iterator[bytes]:
        return iter(functools.partial(self.filelike.read, self.blksize), b"")


@functools.lru_cache(128)
def _status_code(status: str) -> int:
    if not _is_status(status) or _UNSAFE(status):
        raise ValueError(f"start_response needs a status such as '200 OK', not {status!r} (PEP 3333)")
    return int(status[:3])


def _encoded_header(name: str, value: str) -> tuple[bytes, bytes] | None:
    """Return a header in the form of ASGI, or None if only the server sets it."""
    if not _is_token(name):
        raise ValueError(
            f"start_response was given {name!r}, which is not a valid name of a response header (RFC 9110, 5.1); use "
            "letters, digits and hyphens"
        )
    if not isinstance(value, str):
        raise TypeError(f"start_response needs a value of type str for the header {name!r}, not {value!r} (PEP 3333)")
    try:
        encoded = value.encode("latin-1")
    except UnicodeEncodeError:
        encoded = None
    if encoded is None or _UNSAFE(value):
        raise ValueError(
            f"start_response needs latin-1 characters without CR, LF and NUL as the value of the header {name!r}, "
            f"not {value!r} (PEP 3333)"
        )
    key = name.lower().encode("ascii")
    if key == b"content-length" and not encoded.isdigit():
        raise ValueError(f"start_response needs one number as Content-Length, not {value!r}")
    return None if key in _HOP_BY_HOP else (key, encoded)


# Headers of most responses that have few different values, none of them secret.
_OFTEN_THE_SAME = frozenset({
    "Cache-Control", "Content-Encoding", "Content-Language", "Content-Length", "Content-Type",
    "Cross-Origin-Opener-Policy", "Referrer-Policy", "Server", "Vary", "X-Content-Type-Options", "X-Frame-Options",
})  # fmt: skip

_remembered_header = functools.lru_cache(1024)(_encoded_header)


class Response:
    """The response to one request, as the WSGI application produces it."""

    # The http.response.start message, and whether it can no longer be replaced.
    _start: dict[str, Any] | None = None
    committed = False
    # Bytes left of the Content-Length, or None.
    _left: int | None = None
    # Whether the body was longer than the Content-Length.
    _overflowed = False
    # Whether the response is incomplete and must not look complete.
    _broken = False
    # Whether the application has failed after its response had started.
    failed = False
    # The last part of the body, which finish() sends.
    _rest = b""
    # Bytes that the thread has appended to the queue, and bytes that the loop has taken. Only that
    # side changes each.
    _put_size = _taken_size = 0
    # The size of the whole body. The thread sets it before it appends the last byte, so the loop
    # has taken the end if this is equal to _taken_size.
    _whole_size = -1
    # Whether the loop has been woken for the queue. The thread reads it after appending; the loop
    # resets it before it takes everything. So no chunk is left without a wake-up.
    _told = False
    # Whether the thread appends nothing more; finish() sends the rest.
    _ended = False
    # Used by the loop only: the task that empties the queue, and the state of the response.
    _sender: asyncio.Task[None] | None = None
    started = _complete = False

    def __init__(self, connection: Connection, scope: Any) -> None:
        self._connection = connection
        self._scope = scope
        self._is_head: bool = scope["method"] == "HEAD"
        # Whether no body is sent, even if the application makes one.
        self._bodiless = self._is_head
        self._queue: deque[bytes] = deque()

    # On the thread of the application:

    def start(self, status: str, headers: Iterable[tuple[str, str]], exc_info: Any = None) -> None:
        """Implement ``start_response``."""
        __traceback_hide__ = True
        if exc_info is not None:
            try:
                if self.committed:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None  # else a reference cycle
        elif self._start is not None:
            raise RuntimeError(
                "start_response was called a second time without exc_info; only an error handler may do that, "
                "and it must pass exc_info (PEP 3333)"
            )
        if not isinstance(status, str):
            raise TypeError(f"start_response needs a status of type str, such as '200 OK', not {status!r} (PEP 3333)")
        code = _status_code(status)
        left: int | None = None
        encoded: list[tuple[bytes, bytes]] = []
        if type(headers) is not list and not isinstance(headers, (list, tuple)):
            raise TypeError(f"start_response needs its response headers in a list, not {headers!r} (PEP 3333)")
        for header in headers:
            if (type(header) is not tuple and not isinstance(header, (tuple, list))) or len(header) != 2:
                raise TypeError(
                    f"start_response needs each header as a tuple of name and value, not {header!r} (PEP 3333)"
                )
            name, value = header
            if not isinstance(name, str):
                raise TypeError(f"start_response needs header names of type str, not {name!r} (PEP 3333)")
            may_remember = name in _OFTEN_THE_SAME and type(value) is str
            pair = _remembered_header(name, value) if may_remember else _encoded_header(name, value)
            if pair is None:
                _dropped.add(name)
                continue
            if pair[0] == b"content-length":
                before, left = left, int(pair[1])
                if before not in (None, left):
                    raise ValueError(f"start_response needs one number as Content-Length, not {before} and {left}")
                if code == 204 or before is not None:  # must not have one (RFC 9110, 8.6), or has it already
                    continue
            encoded.append(pair)
        self._left = left
        self._bodiless = self._is_head or code in (204, 304) or code < 200
        self._start = {"type": "http.response.start", "status": code, "headers": encoded}

    def write(self, data: bytes) -> None:
        """Implement ``write``, the result of ``start_response``: queue *data*, and wait while the queue is full.

        Raises:
            ClientDisconnected: if the client has disconnected.
        """
        __traceback_hide__ = True
        if not isinstance(data, bytes):
            raise _not_bytes(data)
        if not data:
            return
        self._commit()
        connection = self._connection
        data = b"" if self._bodiless else self._within_length(data)
        # After the check of the length: servers also report a disconnect after a complete response.
        if connection.gone:
            raise ClientDisconnected("the client disconnected before it had the whole response")
        if not data:
            return
        if self._left == 0:
            self._whole_size = self._put_size + len(data)
        self._queue.append(data)
        self._put_size += len(data)
        if not self._told:
            self._told = True
            deliver_on(connection.loop, self)
        if self._put_size - self._taken_size > QUEUE_LIMIT:
            connection.wait_for(Response._wait_for_room, self)

    def send_all(self, iterable: Iterable[bytes]) -> None:
        """Send all items of *iterable*; stop early if the response is complete or the client disconnects."""
        __traceback_hide__ = True
        if isinstance(iterable, (list, tuple)):
            self._put_whole(iterable)
            return
        if isinstance(iterable, (bytes, str)):
            raise TypeError(
                f"the application returned {type(iterable).__name__}, not an iterable of bytes (PEP 3333); return a "
                "list of bytes objects"
            )
        if type(iterable) is FileWrapper and self._send_file(iterable.filelike):
            return
        try:
            chunks = iter(iterable)
        except TypeError as error:
            raise TypeError(
                f"the application returned {iterable!r}, not an iterable of bytes (PEP 3333); return a list of bytes "
                "objects"
            ) from error
        is_watched = False
        if self.committed and (self._left == 0 or self._bodiless):  # complete, by write()
            return
        # Iterate even if the length is 0: the application may call start_response on the way.
        for chunk in chunks:
            self.write(chunk)
            if not chunk and not is_watched:  # no send would show a disconnect
                is_watched = True
                deliver_on(self._connection.loop, self._connection)
            if self._left == 0 or (self.committed and self._bodiless) or self._connection.gone:
                break
        if not self._connection.gone:
            self._commit()

    def end(self) -> None:
        """Mark the response as ended by the application."""
        if self._left and not self._bodiless and not self._connection.gone:
            self._broken = True
            logger.error("The response ended %d byte(s) before its Content-Length; it is left incomplete", self._left)
        self._ended = True

    def break_off(self) -> None:
        """Mark the response as ended by a failure of the application."""
        # A complete response stays complete.
        self._broken = self._left != 0
        self.failed = self._ended = True

    def _commit(self) -> None:
        if self._start is None:
            raise RuntimeError(
                "the application did not call start_response before the first part of its body (PEP 3333); call it "
                "first"
            )
        self.committed = True

    def _within_length(self, data: bytes) -> bytes:
        """Return *data*, cut to the rest of the Content-Length."""
        left = self._left
        if left is not None:
            if len(data) > left:
                if not self._overflowed:
                    self._overflowed = True
                    logger.error("The response is longer than its Content-Length; the rest is cut off")
                data = data[:left]
            self._left = left - len(data)
        return data

    def _put_whole(self, chunks: list[Any] | tuple[Any, ...]) -> None:
        """Keep a complete body for finish(); it needs no wake-up of the loop."""
        for chunk in chunks:
            if not isinstance(chunk, bytes):
                raise _not_bytes(chunk)
        body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        has_no_length = self._left is None and not self.committed
        self._commit()
        # For HEAD, an empty body does not show the length of the body for GET.
        if has_no_length and (body or not self._is_head):
            self._add_length(len(body))
        if not self._bodiless:
            self._rest = self._within_length(body)

    def _add_length(self, length: int) -> None:
        assert self._start is not None
        status = self._start["status"]
        if status >= 200 and status not in (204, 304):
            self._start["headers"].append((b"content-length", b"%d" % length))

    def _send_file(self, file: Any) -> bool:
        """Let the server send *file* itself, if it can; return whether it did."""
        extensions = self._scope.get("extensions") or {}
        if self.committed or not ("http.response.zerocopysend" in extensions or "http.response.pathsend" in extensions):
            return False
        # Other file objects, such as compressed ones, may return other bytes than their descriptor.
        raw = file.raw if type(file) is io.BufferedReader else file
        if type(raw) is not io.FileIO:
            return False
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            return False
        offset = file.tell()
        count = status.st_size - offset
        left = count if self._left is None else self._left
        whole = offset == 0 and count == left
        count = min(count, left)
        if count <= 0:  # servers may read 0 as "everything"
            return False
        message: dict[str, Any]
        if "http.response.zerocopysend" in extensions:
            message = {"type": "http.response.zerocopysend", "file": file, "offset": offset, "count": count}
        elif whole and isinstance(file.name, str) and _is_file_at(path := os.path.abspath(file.name), status):  # noqa: PTH100
            message = {"type": "http.response.pathsend", "path": path}
        else:
            return False
        self._commit()
        if self._left is None:
            self._add_length(count)
        else:
            self._left -= count
            if count < left:
                message["more_body"] = True
        if not self._bodiless:
            # Wait: the application closes the file when this returns.
            self._connection.wait_for(Response._send_file_message, self, message)
        return True

    # On the loop:

    def deliver(self) -> None:
        """Start emptying the queue, unless this is happening already."""
        self._told = False
        if self._ended or self._connection.gone:
            return
        if self._sender is None or self._sender.done():
            self._sender = self._connection.start_task(self._send_queue())

    async def _send_queue(self) -> None:
        connection = self._connection
        try:
            if not self.started:
                self.started = True
                await connection.send(self._start)
            while self._queue and not connection.gone:
                connection.expect_message()
                body = self._take_queue()
                # Send the end with the last byte: close() of the application may be slow.
                self._complete = self._taken_size == self._whole_size
                await connection.send({"type": "http.response.body", "body": body, "more_body": not self._complete})
                # A send that never waits must not block the event loop.
                await asyncio.sleep(0)
        except Exception as error:
            connection.lose(error)
        finally:
            self._sender = None  # its exception would refer to this object

    def _take_queue(self) -> bytes:
        self._told = False
        queue = self._queue
        count = len(queue)
        data = queue.popleft() if count == 1 else b"".join([queue.popleft() for _ in range(count)])
        self._taken_size += len(data)
        self._connection.tell()
        return data

    async def _send_file_message(self, message: Any) -> None:
        self._connection.make_sure_it_is_the_loop()
        try:
            self.started = True
            await self._connection.send(self._start)
            await self._connection.send(message)
        except Exception as error:
            self._connection.lose(error)
        self._complete = not message.get("more_body", False)

    async def _wait_for_room(self) -> None:
        self._connection.make_sure_it_is_the_loop()
        while self._put_size - self._taken_size > QUEUE_LIMIT and not self._connection.gone:
            await self._connection.wait_for_news()

    async def finish(self) -> None:
        """Send the rest and, unless the response is incomplete, its end."""
        if self._sender is not None:
            await self._sender
        if self._complete or self._connection.gone:
            return
        body = self._take_queue() + self._rest if self._queue else self._rest
        if self._broken and not body:
            return
        send = self._connection.send
        try:
            if not self.started:
                self.started = True
                await send(self._start)
            await send({"type": "http.response.body", "body": body, "more_body": self._broken})
        except OSError:  # the client has gone
            pass

    async def refuse(self, status: int, text: bytes) -> None:
        """Send a short response instead of the application's; nothing of that has been sent."""
        headers = [(b"content-type", b"text/plain; charset=us-ascii"), (b"content-length", b"%d" % len(text))]
        self._start = {"type": "http.response.start", "status": status, "headers": headers}
        self._queue.clear()
        self._rest = b"" if self._is_head else text
        self._broken = False
        await self.finish()


def _not_bytes(data: Any) -> TypeError:
    return TypeError(
        f"the application produced {type(data).__name__} as part of its response body, which must be bytes (PEP 3333)"
    )


def _is_file_at(path: str, status: os.stat_result) -> bool:
    """Return whether *path* is the file with *status*."""
    try:
        return os.path.samestat(os.stat(path), status)  # noqa: PTH116
    except (OSError, ValueError):
        return False
