"""The response of a WSGI application, on its way to the server.

The thread of the application makes it: the status and the headers, which are held until
there is something to send, and the chunks of the body. The loop of the server sends it. A
body that is whole when the application is done makes one hop, with its headers. Otherwise
chunks go through a queue: the thread puts them there and tells the loop once, the loop
takes all that there are, and the thread waits when there is more than it may hold.

PEP 3333 is where the rules come from.
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

# How many bytes may wait in the queue while the loop sends as many. Measured: more does not
# make a large response faster, less makes it slower.
QUEUE_LIMIT = 256 * 1024

# What concerns one connection, and not what is sent over it, is the server's to say (PEP 3333,
# "Other HTTP Features"). HTTP/2 and later know none of these.
_HOP_BY_HOP = {
    b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"te", b"trailer",
    b"transfer-encoding", b"upgrade",
}  # fmt: skip

_dropped = DroppedHeaders("response header", "it is the server's to set (PEP 3333)")

_UNSAFE = re.compile("[\r\n\0]").search
_is_token = re.compile("[!#$%&'*+.^_`|~0-9A-Za-z-]+").fullmatch
_is_status = re.compile("[1-9][0-9][0-9](?: .*)?").fullmatch


class FileWrapper:
    """``wsgi.file_wrapper``: an iterable over *filelike*, which the server may also send by itself.

    Args:
        filelike: Has ``read(size)``; its ``close``, if it has one, is this object's too.
        blksize: How many bytes to read at a time.
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
    """Return a header as ASGI wants it, or None where it is not the application's to set."""
    if not _is_token(name):
        raise ValueError(f"{name!r} is no name for a response header (RFC 9110, 5.1)")
    if not isinstance(value, str):
        raise TypeError(f"the value of the response header {name!r} must be of type str, not {value!r} (PEP 3333)")
    try:
        encoded = value.encode("latin-1")
    except UnicodeEncodeError:
        encoded = None
    if encoded is None or _UNSAFE(value):
        raise ValueError(
            f"the value of the response header {name!r} must be of latin-1 characters without CR, LF and NUL, "
            f"not {value!r} (PEP 3333)"
        )
    key = name.lower().encode("ascii")
    if key == b"content-length" and not encoded.isdigit():
        raise ValueError(f"the Content-Length of the response must be one number, not {value!r}")
    return None if key in _HOP_BY_HOP else (key, encoded)


# Most responses have some of these, with one of few values, none of which is anybody's secret.
_OFTEN_THE_SAME = frozenset({
    "Cache-Control", "Content-Encoding", "Content-Language", "Content-Length", "Content-Type",
    "Cross-Origin-Opener-Policy", "Referrer-Policy", "Server", "Vary", "X-Content-Type-Options", "X-Frame-Options",
})  # fmt: skip

_remembered_header = functools.lru_cache(1024)(_encoded_header)


class Response:
    """One response, of which the application makes what ``scope`` asks for."""

    # The http.response.start message, and whether it is past changing.
    _start: dict[str, Any] | None = None
    committed = False
    # How many bytes the application may still send by its Content-Length, or None.
    _left: int | None = None
    # Whether there was more body than the Content-Length allows.
    _overflowed = False
    # Whether the response broke off, and must not look complete.
    _broken = False
    # Whether the application has failed after it had begun its response.
    failed = False
    # The last part of the body, where that needs no wake-up of its own.
    _rest = b""
    # The sizes, in bytes, of what the thread has put into the queue and of what the loop has
    # taken from it. Each is one side's to change.
    _put_size = _taken_size = 0
    # The size of the whole body, once its last byte is about to be put into the queue. The
    # thread sets it before it puts that, so the loop has taken the end if both sizes agree.
    _whole_size = -1
    # Whether the loop has been told of what is in the queue. The thread looks after it has
    # put something, the loop takes it back before it takes everything.
    _told = False
    # Whether the thread has put all there is, so that finish() sends it.
    _ended = False
    # The loop's own: who empties the queue, and how far the server has been told.
    _sender: asyncio.Task[None] | None = None
    started = _complete = False

    def __init__(self, connection: Connection, scope: Any) -> None:
        self._connection = connection
        self._scope = scope
        self._is_head: bool = scope["method"] == "HEAD"
        # Whether no body is sent, whatever the application makes.
        self._bodiless = self._is_head
        self._queue: deque[bytes] = deque()

    # On the thread of the application:

    def start(self, status: str, headers: Iterable[tuple[str, str]], exc_info: Any = None) -> None:
        """Do what ``start_response`` does."""
        __traceback_hide__ = True
        if exc_info is not None:
            try:
                if self.committed:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None  # which would be a reference cycle
        elif self._start is not None:
            raise RuntimeError(
                "start_response was called a second time; only an error handler may do that, which passes exc_info "
                "(PEP 3333)"
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
                raise TypeError(f"a response header must be a tuple of a name and a value, not {header!r} (PEP 3333)")
            name, value = header
            if not isinstance(name, str):
                raise TypeError(f"the name of a response header must be of type str, not {name!r} (PEP 3333)")
            may_remember = name in _OFTEN_THE_SAME and type(value) is str
            pair = _remembered_header(name, value) if may_remember else _encoded_header(name, value)
            if pair is None:
                _dropped.add(name)
                continue
            if pair[0] == b"content-length":
                before, left = left, int(pair[1])
                if before not in (None, left):
                    raise ValueError(f"the Content-Length of the response must be one number, and not {value!r} too")
                if code == 204 or before is not None:  # which must not have one (RFC 9110, 8.6), or has it
                    continue
            encoded.append(pair)
        self._left = left
        self._bodiless = self._is_head or code in (204, 304) or code < 200
        self._start = {"type": "http.response.start", "status": code, "headers": encoded}

    def write(self, data: bytes) -> None:
        """Do what ``write`` does, which ``start_response`` returns: have *data* sent, and wait while too much waits.

        Raises:
            ClientDisconnected: when nobody is there to send it to.
        """
        __traceback_hide__ = True
        if not isinstance(data, bytes):
            raise _not_bytes(data)
        if not data:
            return
        self._commit()
        connection = self._connection
        data = b"" if self._bodiless else self._within_length(data)
        # After the look at the length, since a server also says that of a client which has all it was to get.
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
        """Have everything sent that *iterable* gives; stop where the response is whole, or nobody wants the rest."""
        __traceback_hide__ = True
        if isinstance(iterable, (list, tuple)):
            self._put_whole(iterable)
            return
        if isinstance(iterable, (bytes, str)):
            raise TypeError(f"the application returned {type(iterable).__name__}, not an iterable of bytes (PEP 3333)")
        if type(iterable) is FileWrapper and self._send_file(iterable.filelike):
            return
        try:
            chunks = iter(iterable)
        except TypeError as error:
            raise TypeError(f"the application returned {iterable!r}, not an iterable of bytes (PEP 3333)") from error
        is_watched = False
        if self.committed and (self._left == 0 or self._bodiless):  # write() has made it whole
            return
        # Something is asked for even where the length is 0, since start_response may come with it.
        for chunk in chunks:
            self.write(chunk)
            if not chunk and not is_watched:  # nothing that is sent would show that the client has gone
                is_watched = True
                deliver_on(self._connection.loop, self._connection)
            if self._left == 0 or (self.committed and self._bodiless) or self._connection.gone:
                break
        if not self._connection.gone:
            self._commit()

    def end(self) -> None:
        """Note that the application is done."""
        if self._left and not self._bodiless and not self._connection.gone:
            self._broken = True
            logger.error(
                "The response ended %d byte(s) before its Content-Length; it is not passed off as complete", self._left
            )
        self._ended = True

    def break_off(self) -> None:
        """Note that the application has failed in the midst of its response."""
        # A response that is whole stays so.
        self._broken = self._left != 0
        self.failed = self._ended = True

    def _commit(self) -> None:
        if self._start is None:
            raise RuntimeError(
                "the application did not call start_response before the first part of its body (PEP 3333)"
            )
        self.committed = True

    def _within_length(self, data: bytes) -> bytes:
        """Return as much of *data* as the Content-Length still allows."""
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
        """Put a body that is all there, and needs no wake-up of its own."""
        for chunk in chunks:
            if not isinstance(chunk, bytes):
                raise _not_bytes(chunk)
        body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        has_no_length = self._left is None and not self.committed
        self._commit()
        # An empty body to HEAD does not tell how long the one to GET would be.
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
        """Have the server send *file* by itself, if it can; return whether that was done."""
        extensions = self._scope.get("extensions") or {}
        if self.committed or not ("http.response.zerocopysend" in extensions or "http.response.pathsend" in extensions):
            return False
        # Others, compressed ones for example, may give other bytes than their descriptor does.
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
        if count <= 0:  # which a server may take for "all there is"
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
            # The file is the application's to close, when this returns.
            self._connection.wait_for(Response._send_file_message, self, message)
        return True

    # On the loop:

    def deliver(self) -> None:
        """See to it that the queue is being emptied."""
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
                # The end goes with the last byte: the application may take its time until close() returns.
                self._complete = self._taken_size == self._whole_size
                await connection.send({"type": "http.response.body", "body": body, "more_body": not self._complete})
                # A send that need not wait must not keep the loop from everybody else.
                await asyncio.sleep(0)
        except Exception as error:
            connection.lose(error)
        finally:
            self._sender = None  # whose exception would lead back to this object

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
        """Send what there is left, and the end, unless the response broke off."""
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
        """Send a short response of the adapter's own in place of the application's, of which nothing has been sent."""
        headers = [(b"content-type", b"text/plain; charset=us-ascii"), (b"content-length", b"%d" % len(text))]
        self._start = {"type": "http.response.start", "status": status, "headers": headers}
        self._queue.clear()
        self._rest = b"" if self._is_head else text
        self._broken = False
        await self.finish()


def _not_bytes(data: Any) -> TypeError:
    return TypeError(
        f"the application gave {type(data).__name__} as a part of its response body, where only bytes may be (PEP 3333)"
    )


def _is_file_at(path: str, status: os.stat_result) -> bool:
    """Tell whether *path* leads to the file that has *status*."""
    try:
        return os.path.samestat(os.stat(path), status)  # noqa: PTH116
    except (OSError, ValueError):
        return False
