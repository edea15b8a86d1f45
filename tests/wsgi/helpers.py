"""A fake server with one client, and applications for it."""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from asgiref.wsgi import WsgiToAsgi

from ..helpers import LIMIT, wait_for

Message = dict[str, Any]
Environ = dict[str, Any]

CHUNK = bytes(64 * 1024)
DISCONNECT = {"type": "http.disconnect"}


def http(**changes: Any) -> dict[str, Any]:
    return {"type": "http", "http_version": "1.1", "method": "GET", "path": "/", "headers": [], **changes}


def streamed(**changes: Any) -> dict[str, Any]:
    """Return the scope of a request with a Content-Length."""
    return http(**{"method": "POST", "headers": [(b"content-length", b"4")], **changes})


def request(body: bytes = b"", more_body: bool = False) -> Message:
    return {"type": "http.request", "body": body, "more_body": more_body}


def body_in(*parts: bytes) -> list[Message]:
    """Return the messages of a request body in *parts*."""
    return [request(part, number < len(parts)) for number, part in enumerate(parts, 1)]


class Client:
    """A server with one client. It delivers or raises *messages*, then waits for more; it keeps sent messages."""

    def __init__(self, *messages: Any, on_send: Callable[[Message], object] | None = None) -> None:
        # The scope of its request. A body of several messages has a Content-Length, as with most clients, and so it
        # streams.
        self.scope = (
            streamed() if any([message.get("more_body") for message in messages if type(message) is dict]) else http()
        )
        self.inputs: asyncio.Queue[Any] = asyncio.Queue()
        for message in messages or [request()]:
            self.inputs.put_nowait(message)
        self.receives = 0
        # Set while receive() is waiting for a message.
        self.waiting = asyncio.Event()
        # Set when receive() has returned a message.
        self.received = asyncio.Event()
        self.sent: list[Message] = []
        self.on_send = on_send
        self.may_send = asyncio.Event()
        self.may_send.set()

    async def receive(self) -> Message:
        self.receives += 1
        if self.inputs.empty():
            self.waiting.set()
        message = await self.inputs.get()
        if isinstance(message, BaseException):
            try:
                raise message
            finally:
                del message  # its traceback refers to this frame
        self.received.set()
        return dict(message)

    async def send(self, message: Message) -> None:
        self.sent.append(message)
        if self.on_send is not None:
            self.on_send(message)
        await self.may_send.wait()

    @property
    def status(self) -> Any:
        return self.sent[0]["status"]

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        headers: list[tuple[bytes, bytes]] = self.sent[0]["headers"]
        return headers

    @property
    def body(self) -> bytes:
        return b"".join([message["body"] for message in self.sent if message["type"] == "http.response.body"])

    @property
    def complete(self) -> bool:
        """Whether the response is complete."""
        return bool(self.sent) and self.sent[-1].get("more_body") is False


class Leaving(Client):
    """A client that disconnects after the first part of the body; an event tells when this has been noticed."""

    def __init__(self, error: type[Exception]) -> None:
        super().__init__(on_send=self.leave)
        self.error = error
        # Whether the application has passed the check after a write, and the loop knows the failure.
        self.resumed, self.left = threading.Event(), threading.Event()

    def leave(self, message: Message) -> None:
        if message["type"] == "http.response.body":
            wait_for(self.resumed)
            asyncio.get_running_loop().call_soon(self.left.set)
            raise self.error("stopped")


async def serve(application: Any, client: Client | None = None, scope: Any = None, **options: Any) -> Client:
    """Let *application* answer *client*; no task may be left afterwards."""
    client = client or Client()
    await run(WsgiToAsgi(application, **options), client, scope)
    return client


async def run(adapter: Any, client: Client, scope: Any = None) -> None:
    async with asyncio.timeout(LIMIT):
        await adapter(scope or client.scope, client.receive, client.send)
    assert {asyncio.current_task()} == asyncio.all_tasks()


async def on_loop(event: asyncio.Event) -> None:
    async with asyncio.timeout(LIMIT):
        await event.wait()


async def in_thread(function: Callable[..., Any], *arguments: Any) -> Any:
    """Wait on another thread, so that the loop is not blocked."""
    return await asyncio.get_running_loop().run_in_executor(None, function, *arguments)


class Chunks:
    """A body that counts its consumed chunks and records its end; an exception as a chunk is raised."""

    def __init__(self, chunks: Iterable[Any]) -> None:
        self.chunks = chunks
        self.taken = self.closes = 0
        self.closed = threading.Event()

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self.chunks:
            self.taken += 1
            if isinstance(chunk, BaseException):
                raise chunk
            yield chunk

    def close(self) -> None:
        self.closes += 1
        self.closed.set()


def answers(body: Any = (), status: Any = "200 OK", headers: Any = ()) -> Any:
    """Return an application with this response."""

    def application(environ: Environ, start_response: Any) -> Any:
        start_response(status, headers if not isinstance(headers, tuple) else list(headers))
        return body

    return application


def reads(read: Callable[[Any], Any] = lambda body: body.read()) -> Any:
    """Return an application that responds with the bytes that it reads."""

    def application(environ: Environ, start_response: Any) -> list[bytes]:
        body = read(environ["wsgi.input"])
        start_response("200 OK", [])
        return [body]

    return application


class Log:
    """The log records of ``asgiref.wsgi``."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self._caplog = caplog

    @property
    def records(self) -> list[logging.LogRecord]:
        return [record for record in self._caplog.records if record.name == "asgiref.wsgi"]

    @property
    def only(self) -> logging.LogRecord:
        [record] = self.records
        return record


async def serve_beside(application: Any, client: Client, scope: Any = None, **options: Any) -> None:
    """Serve, while other tasks run."""
    async with asyncio.timeout(LIMIT):
        await WsgiToAsgi(application, **options)(scope or client.scope, client.receive, client.send)


ZEROCOPY = "http.response.zerocopysend"
PATHSEND = "http.response.pathsend"


def scope_with(*extensions: str, **changes: Any) -> dict[str, Any]:
    return http(extensions={extension: {} for extension in extensions}, **changes)


def stop_after(number: int, error: type[Exception]) -> Callable[[Message], None]:
    """Return a function that raises *error* at the message with this number."""
    count = itertools.count(1)

    def stop(message: Message) -> None:
        if next(count) >= number:
            raise error("stopped")

    return stop


async def cancelled(task: asyncio.Task[Any]) -> None:
    """Cancel *task* and check that it ends and leaves nothing."""
    task.cancel()
    done, _ = await asyncio.wait({task}, timeout=LIMIT)
    assert {task} == done
    assert task.cancelled()
    assert {asyncio.current_task()} == asyncio.all_tasks()


def refused(client: Client, status: int) -> None:
    """Check that this is a short response of the adapter itself."""
    assert status == client.status
    assert client.complete
    assert [
        (b"content-type", b"text/plain; charset=us-ascii"),
        (b"content-length", b"%d" % len(client.body)),
    ] == client.headers
    assert b"" != client.body
