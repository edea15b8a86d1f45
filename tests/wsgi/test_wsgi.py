"""``WsgiToAsgi``: what a server sees of a WSGI application, and what the application sees of the server."""

from __future__ import annotations

import ast
import asyncio
import contextvars
import functools
import gc
import gzip
import io
import itertools
import logging
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from wsgiref.validate import validator

import pytest

from asgiref import sync
from asgiref._wsgi.connection import EMPTY_MESSAGES, Connection
from asgiref._wsgi.response import QUEUE_LIMIT, FileWrapper, Response
from asgiref.sync import ThreadSensitiveContext, async_to_sync, iscoroutinefunction, sync_to_async
from asgiref.testing import ApplicationCommunicator
from asgiref.wsgi import THREADS, WsgiToAsgi, WsgiToAsgiInstance

from ..helpers import LIMIT, Thread, no_garbage, wait_for

Message = dict[str, Any]
Environ = dict[str, Any]

CHUNK = bytes(64 * 1024)
DISCONNECT = {"type": "http.disconnect"}

color = contextvars.ContextVar("color", default="none")


def http(**changes: Any) -> dict[str, Any]:
    return {"type": "http", "http_version": "1.1", "method": "GET", "path": "/", "headers": [], **changes}


def request(body: bytes = b"", more_body: bool = False) -> Message:
    return {"type": "http.request", "body": body, "more_body": more_body}


def body_in(*parts: bytes) -> list[Message]:
    """Return the messages for a request body that comes in *parts*."""
    return [request(part, number < len(parts)) for number, part in enumerate(parts, 1)]


class Client:
    """A server with one client: gives *messages*, or raises them, then waits for more; keeps what it is sent."""

    def __init__(self, *messages: Any, on_send: Callable[[Message], object] | None = None) -> None:
        self.inputs: asyncio.Queue[Any] = asyncio.Queue()
        for message in messages or [request()]:
            self.inputs.put_nowait(message)
        self.receives = 0
        # Set while receive() has nothing to give.
        self.waiting = asyncio.Event()
        # Set when receive() has given a message.
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
                del message  # whose traceback leads here
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
        """Whether the response came to its end."""
        return bool(self.sent) and self.sent[-1].get("more_body") is False


async def serve(application: Any, client: Client | None = None, scope: Any = None, **options: Any) -> Client:
    """Have *application* answer *client*; nothing may be left over afterwards."""
    client = client or Client()
    await run(WsgiToAsgi(application, **options), client, scope)
    return client


async def run(adapter: Any, client: Client, scope: Any = None) -> None:
    async with asyncio.timeout(LIMIT):
        await adapter(scope or http(), client.receive, client.send)
    assert {asyncio.current_task()} == asyncio.all_tasks()


async def on_loop(event: asyncio.Event) -> None:
    async with asyncio.timeout(LIMIT):
        await event.wait()


async def in_thread(function: Callable[..., Any], *arguments: Any) -> Any:
    """Wait on another thread, so that the loop stays free."""
    return await asyncio.get_running_loop().run_in_executor(None, function, *arguments)


class Chunks:
    """A body that notes how much of it was taken, and its end; raises what it has in place of a chunk."""

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
    """Return an application that gives this response."""

    def application(environ: Environ, start_response: Any) -> Any:
        start_response(status, headers if not isinstance(headers, tuple) else list(headers))
        return body

    return application


def reads(read: Callable[[Any], Any] = lambda body: body.read()) -> Any:
    """Return an application that answers with what it reads."""

    def application(environ: Environ, start_response: Any) -> list[bytes]:
        body = read(environ["wsgi.input"])
        start_response("200 OK", [])
        return [body]

    return application


class Log:
    """What was logged as ``asgiref.wsgi``."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self._caplog = caplog

    @property
    def records(self) -> list[logging.LogRecord]:
        return [record for record in self._caplog.records if record.name == "asgiref.wsgi"]

    @property
    def only(self) -> logging.LogRecord:
        [record] = self.records
        return record


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Log:
    return Log(caplog)


# Threads and contexts:


async def test_whole_request_is_on_one_thread() -> None:
    """The call, reads, the iteration and close() are on one thread, which is not that of the loop."""
    idents: list[int] = []

    def note() -> None:
        idents.append(threading.get_ident())

    class Body:
        def __init__(self, body: Any) -> None:
            self.lines = iter(body)

        def __iter__(self) -> Body:
            return self

        def __next__(self) -> bytes:
            note()
            line: bytes = next(self.lines)
            return line

        def close(self) -> None:
            note()

    def application(environ: Environ, start_response: Any) -> Body:
        note()
        start_response("200 OK", [])
        return Body(environ["wsgi.input"])

    client = await serve(application, Client(*body_in(b"a\n", b"b\n")))
    assert b"a\nb\n" == client.body
    assert 5 == len(idents)
    assert 1 == len(set(idents))
    assert threading.get_ident() not in idents


async def test_32_requests_at_once() -> None:
    barrier = threading.Barrier(32)

    def application(environ: Environ, start_response: Any) -> list[bytes]:
        barrier.wait(LIMIT)
        start_response("200 OK", [])
        return [b"together"]

    adapter = WsgiToAsgi(application)
    clients = [Client() for _ in range(32)]
    async with asyncio.timeout(LIMIT):
        await asyncio.gather(*[adapter(http(), client.receive, client.send) for client in clients])
    assert [b"together"] * 32 == [client.body for client in clients]


@pytest.mark.parametrize("limit", [1, 3])
async def test_as_many_requests_at_once_as_there_are_threads(limit: int) -> None:
    barrier, lock, running, peak = threading.Barrier(limit), threading.Lock(), 0, 0

    def application(environ: Environ, start_response: Any) -> Iterator[bytes]:
        nonlocal running, peak
        with lock:
            running += 1
            peak = max(peak, running)
        barrier.wait(LIMIT)
        start_response("200 OK", [])
        yield b"together"
        with lock:
            running -= 1

    adapter = WsgiToAsgi(application, threads=limit)
    clients = [Client() for _ in range(4 * limit)]
    async with asyncio.timeout(LIMIT):
        await asyncio.gather(*[adapter(http(), client.receive, client.send) for client in clients])
    assert all([client.complete for client in clients])
    assert limit == peak


async def test_executor_of_the_callers_own() -> None:
    """It runs the requests, and is not shut down."""
    with ThreadPoolExecutor(1) as executor:
        ident = executor.submit(threading.get_ident).result(LIMIT)
        seen: list[int] = []

        def application(environ: Environ, start_response: Any) -> list[bytes]:
            seen.append(threading.get_ident())
            start_response("200 OK", [])
            return [environ["wsgi.input"].read()]

        client = await serve(application, Client(*body_in(b"a", b"b")), executor=executor)
        assert b"ab" == client.body
        assert [ident] == seen
        assert ident == executor.submit(threading.get_ident).result(LIMIT)


async def test_inside_a_thread_sensitive_context() -> None:
    async with ThreadSensitiveContext():
        ident = await sync_to_async(threading.get_ident)()
        client = await serve(
            reads(lambda body: body.read() + b"%d" % threading.get_ident()), Client(*body_in(b"", b""))
        )
    assert b"%d" % ident == client.body


def test_below_async_to_sync() -> None:
    """The thread that waits runs the application, which reads and streams all the same."""

    def application(environ: Environ, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        yield b"%d" % threading.get_ident()
        yield environ["wsgi.input"].read()

    client = async_to_sync(serve)(application, Client(*body_in(b"a", b"b")))
    assert b"%dab" % threading.get_ident() == client.body


async def test_context_variables_come_and_go() -> None:
    """The application sees what the server has set, and what it sets itself comes back; so for receive and send."""
    seen = []

    class Looking(Client):
        async def receive(self) -> Message:
            seen.append(color.get())
            return await super().receive()

        async def send(self, message: Message) -> None:
            seen.append(color.get())
            await super().send(message)

    def application(environ: Environ, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        yield color.get().encode() + environ["wsgi.input"].read()
        color.set("blue")

    token = color.set("red")
    client = await serve(application, Looking(*body_in(b"a", b"b")))
    assert b"redab" == client.body
    assert "blue" == color.get()
    assert {"red", "blue"} >= set(seen)
    assert "red" == seen[0] == seen[1]
    color.reset(token)


async def test_async_to_sync_in_the_application_runs_on_the_loop_of_the_server() -> None:
    loops = []

    async def look() -> None:
        loops.append(asyncio.get_running_loop())

    def application(environ: Environ, start_response: Any) -> Iterator[bytes]:
        async_to_sync(look)()
        start_response("200 OK", [])
        yield b"a"
        async_to_sync(look)()

    await serve(application)
    assert [asyncio.get_running_loop()] * 2 == loops


async def test_application_that_sends_a_request_to_its_own_adapter() -> None:
    """One thread is enough for that."""

    def application(environ: Environ, start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        if environ["PATH_INFO"] == "/inner":
            return [b"inner"]
        inner = Client()
        async_to_sync(adapter)(http(path="/inner"), inner.receive, inner.send)
        return [b"outer, ", inner.body]

    adapter = WsgiToAsgi(application, threads=1)
    client = Client()
    await run(adapter, client)
    assert b"outer, inner" == client.body


@pytest.mark.parametrize(
    ("arguments", "options", "error", "text"),
    [
        ((None,), {}, TypeError, "callable, not None"),
        ((answers(),), {"threads": 1, "executor": object()}, TypeError, "pass one"),
        ((answers(),), {"threads": 0}, ValueError, "at least one thread, not 0"),
    ],
)
def test_arguments_that_make_no_sense(arguments: Any, options: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        WsgiToAsgi(*arguments, **options)


def test_positional_arguments_and_attributes() -> None:
    application = answers()
    adapter, instance = WsgiToAsgi(application, 5), WsgiToAsgiInstance(application, 5)
    assert (application, 5) == (adapter.wsgi_application, adapter.duplicate_header_limit)
    assert (application, 5) == (instance.wsgi_application, instance.duplicate_header_limit)
    assert (100, 100) == (
        WsgiToAsgi(application).duplicate_header_limit,
        WsgiToAsgiInstance(application).duplicate_header_limit,
    )
    assert THREADS >= 32


# The request body:


def by_iteration(body: Any) -> bytes:
    return b"".join(body)


def by_small_lines(body: Any) -> bytes:
    return b"".join(iter(functools.partial(body.readline, 2), b""))


def by_small_pieces(body: Any) -> bytes:
    return b"".join(iter(functools.partial(body.read, 3), b""))


READS: dict[str, Callable[[Any], bytes]] = {
    "read()": lambda body: body.read(),
    "read(-1)": lambda body: body.read(-1),
    "read(None)": lambda body: body.read(None),
    "read(3)": by_small_pieces,
    "read(100)": lambda body: body.read(100),
    "read(2) + read()": lambda body: body.read(2) + body.read(),
    "read(0)": lambda body: body.read(0) + body.read(),
    "readline()": lambda body: b"".join(iter(body.readline, b"")),
    "readline(2)": by_small_lines,
    "readline(None)": lambda body: body.readline(None) + body.read(),
    "readline(-1)": lambda body: body.readline(-1) + body.read(),
    "readlines()": lambda body: b"".join(body.readlines()),
    "readlines(1)": lambda body: b"".join(body.readlines(1)) + body.read(),
    "readlines(None)": lambda body: b"".join(body.readlines(None)),
    "iteration": by_iteration,
}


@pytest.mark.parametrize("read", READS.values(), ids=READS.keys())
@pytest.mark.parametrize(
    "parts",
    [
        (b"",),
        (b"ab\ncd\n",),
        (b"ab\ncd", b"", b"e\n", b"fgh"),
        (b"", b"abc\n"),
        (b"abc\n", b""),
        (b"a" * 200_000, b"\nb"),
    ],
    ids=["empty", "one", "several", "empty first", "empty last", "large"],
)
async def test_body_is_read(parts: tuple[bytes, ...], read: Callable[[Any], bytes]) -> None:
    """In whatever way the application reads, and in however many messages the body comes."""
    body = b"".join(parts)
    client = await serve(reads(read), Client(*body_in(*parts)))
    assert (body[:100] if read is READS["read(100)"] else body) == client.body


async def test_lines_are_as_in_the_body() -> None:
    client = await serve(
        reads(lambda body: repr(body.readlines()).encode()), Client(*body_in(b"a", b"b\nc", b"\n", b"d"))
    )
    assert [b"ab\n", b"c\n", b"d"] == ast.literal_eval(client.body.decode())


async def test_message_without_its_optional_keys() -> None:
    client = await serve(reads(), Client({"type": "http.request"}))
    assert (200, b"") == (client.status, client.body)


async def test_messages_without_their_optional_keys() -> None:
    messages = [{"type": "http.request", "more_body": True}, {"type": "http.request", "body": b"a"}]
    assert b"a" == (await serve(reads(), Client(*messages))).body


async def test_reading_ends_where_the_body_does() -> None:
    """So a body without a Content-Length can be read, which the environ tells."""

    def application(environ: Environ, start_response: Any) -> list[bytes]:
        assert environ["wsgi.input_terminated"] is True
        assert "CONTENT_LENGTH" not in environ
        body = environ["wsgi.input"]
        start_response("200 OK", [])
        return [body.read(), body.read(), body.read(1), body.readline(), *body]

    client = await serve(application, Client(*body_in(b"a", b"b")))
    assert b"ab" == client.body
    assert 2 == client.receives


async def test_body_in_one_message_is_read_without_another() -> None:
    client = await serve(reads(), Client(request(b"whole")))
    assert b"whole" == client.body
    assert 1 == client.receives


async def test_application_starts_with_the_first_message() -> None:
    """What it has not read need not have come."""
    client = await serve(answers([b"early"]), Client(request(b"a", True)))
    assert (b"early", True) == (client.body, client.complete)
    assert 1 == client.receives


async def test_messages_are_received_as_they_are_read() -> None:
    client = Client(*body_in(b"a\nbb", b"c\n", b"d\n", b"e\n"))
    receives = []

    def application(environ: Environ, start_response: Any) -> list[bytes]:
        body = environ["wsgi.input"]
        start_response("200 OK", [])
        lines = []
        for _ in range(3):
            receives.append(client.receives)
            lines.append(body.readline())
        receives.append(client.receives)
        return lines

    await serve(application, client)
    assert b"a\nbbc\nd\n" == client.body
    assert [1, 1, 2, 3] == receives


async def test_one_message_is_received_ahead_while_the_response_streams() -> None:
    """So a client that leaves is noticed, and one that sends a lot is held back."""
    client = Client(*body_in(b"a", b"b", b"c"))
    receives = []

    def application(environ: Environ, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        for _ in range(10):
            yield b"x"
            receives.append(client.receives)
        yield environ["wsgi.input"].read()

    await serve(application, client)
    assert b"x" * 10 + b"abc" == client.body
    assert max(receives) <= 2


async def test_reading_in_a_thread_that_the_application_started() -> None:
    client = await serve(reads(lambda body: Thread(body.read).get()), Client(*body_in(b"a", b"b")))
    assert b"ab" == client.body


async def test_reading_in_a_loop_of_the_applications_own() -> None:
    """That loop is held up by it, as under any WSGI server; it goes on afterwards."""

    def application(environ: Environ, start_response: Any) -> list[bytes]:
        async def read() -> bytes:
            task = asyncio.current_task()
            body: bytes = environ["wsgi.input"].read()
            assert task is asyncio.current_task()
            await asyncio.sleep(0)
            return body

        start_response("200 OK", [])
        return [asyncio.run(read())]

    assert b"ab" == (await serve(application, Client(*body_in(b"a", b"b")))).body


async def test_reading_on_the_loop_of_the_server() -> None:
    """What has come can be read there; for more it would have to wait for itself, which the error tells."""

    def application(environ: Environ, start_response: Any) -> list[bytes]:
        body = environ["wsgi.input"]

        async def read_what_is_there() -> bytes:
            return bytes(body.read1())

        async def read_all() -> bytes:
            return bytes(body.read())

        first = async_to_sync(read_what_is_there)()
        with pytest.raises(RuntimeError, match="read the body in synchronous code"):
            async_to_sync(read_all)()
        start_response("200 OK", [])
        return [first, body.read()]

    assert b"ab" == (await serve(application, Client(*body_in(b"a", b"b")))).body


# Responses:


async def test_list_goes_in_two_messages() -> None:
    client = await serve(
        answers([b"a", b"b"], "201 Created", [("X-One", "1"), ("Set-Cookie", "a"), ("set-cookie", "b")])
    )
    headers = [(b"x-one", b"1"), (b"set-cookie", b"a"), (b"set-cookie", b"b"), (b"content-length", b"2")]
    assert [
        {"type": "http.response.start", "status": 201, "headers": headers},
        {"type": "http.response.body", "body": b"ab", "more_body": False},
    ] == client.sent
    assert 1 == client.receives


@pytest.mark.parametrize(
    ("body", "length"),
    [([], b"0"), ([b""], b"0"), ([b"a"], b"1"), ((b"a", b"bc"), b"3"), ([b"", b"a", b""], b"1")],
)
async def test_length_of_a_whole_body_is_told(body: Any, length: bytes) -> None:
    client = await serve(answers(body))
    assert [(b"content-length", length)] == client.headers
    assert b"".join(body) == client.body


async def test_length_that_the_application_tells_stays() -> None:
    client = await serve(answers([b"abc"], headers=[("Content-Length", "3")]))
    assert [(b"content-length", b"3")] == client.headers
    assert (b"abc", True) == (client.body, client.complete)


@pytest.mark.parametrize("chunks", [(), (b"",), (b"a", b"", b"b"), (b"", b"a"), (CHUNK,) * 50])
async def test_other_iterables_stream(chunks: tuple[bytes, ...]) -> None:
    """Their length is not known ahead."""
    body = Chunks(chunks)
    client = await serve(answers(body))
    assert [] == client.headers
    assert b"".join(chunks) == client.body
    assert (True, 1, len(chunks)) == (client.complete, body.closes, body.taken)
    assert 1 == [message["type"] for message in client.sent].count("http.response.start")


async def test_chunk_is_sent_while_the_application_works_on_the_next() -> None:
    sent = threading.Event()

    def note(message: Message) -> None:
        if message.get("body") == b"first":
            sent.set()

    def application(environ: Environ, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        yield b"first"
        wait_for(sent)
        yield b", second"

    assert b"first, second" == (await serve(application, Client(on_send=note))).body


async def test_written_data_is_sent_while_the_application_works_on() -> None:
    sent = threading.Event()

    def note(message: Message) -> None:
        if message.get("body") == b"written":
            sent.set()

    def application(environ: Environ, start_response: Any) -> list[bytes]:
        write = start_response("200 OK", [])
        write(b"")
        write(b"written")
        wait_for(sent)
        return [b", returned"]

    client = await serve(application, Client(on_send=note))
    assert ([], b"written, returned", True) == (client.headers, client.body, client.complete)


async def test_headers_wait_for_the_first_chunk_that_is_not_empty() -> None:
    """Until then an error handler may replace them."""

    def application(environ: Environ, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [("X-Old", "1")])
        yield b""
        try:
            raise LookupError
        except LookupError:
            start_response("500 Internal Server Error", [("X-New", "2")], sys.exc_info())
        yield b"sorry"

    client = await serve(application)
    assert (500, [(b"x-new", b"2")], b"sorry") == (client.status, client.headers, client.body)


async def test_exc_info_with_the_first_call() -> None:
    def application(environ: Environ, start_response: Any) -> list[bytes]:
        try:
            raise LookupError
        except LookupError:
            start_response("500 Internal Server Error", [], sys.exc_info())
        return [b"sorry"]

    client = await serve(application)
    assert (500, b"sorry") == (client.status, client.body)


async def test_exc_info_after_the_headers_raises_the_exception_again(log: Log) -> None:
    raised = []

    def application(environ: Environ, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        yield b"a"
        try:
            raise LookupError("midway")
        except LookupError as error:
            try:
                start_response("500 Internal Server Error", [], sys.exc_info())
            except LookupError as again:
                raised.append(again is error)
                raise
        yield b"b"

    client = await serve(application)
    assert [True] == raised
    assert (200, b"a", False) == (client.status, client.body, client.complete)
    assert "midway" in str(log.only.exc_info)


async def test_start_response_may_be_called_with_the_first_chunk() -> None:
    """And with keywords of their names."""

    def application(environ: Environ, start_response: Any) -> Iterator[bytes]:
        start_response(status="200 OK", response_headers=[("X-One", "1")])
        yield b"a"

    client = await serve(application)
    assert ([(b"x-one", b"1")], b"a") == (client.headers, client.body)


@pytest.mark.parametrize(("status", "code"), [("200 OK", 200), ("299", 299), ("404 ", 404), ("999 \xe4 \t", 999)])
async def test_status(status: str, code: int) -> None:
    """The reason may be missing."""
    assert code == (await serve(answers([], status))).status


async def test_header_values_are_latin_1() -> None:
    value = "".join(map(chr, range(1, 256))).replace("\r", "").replace("\n", "")
    client = await serve(answers([], headers=[("X-Value", value)]))
    assert (b"x-value", value.encode("latin-1")) == client.headers[0]


@pytest.mark.parametrize("iterable", [list, Chunks])
@pytest.mark.parametrize(
    ("method", "status"),
    [("HEAD", "200 OK"), ("HEAD", "404 Not Found"), ("GET", "204 No Content"), ("GET", "304 Not Modified")],
)
async def test_response_that_has_no_body(method: str, status: str, iterable: Any) -> None:
    body = iterable([b"a", b"b", b"c"])
    client = await serve(answers(body, status), scope=http(method=method))
    assert (b"", True, 2) == (client.body, client.complete, len(client.sent))
    assert ([(b"content-length", b"3")] if body == [b"a", b"b", b"c"] and method == "HEAD" else []) == client.headers
    if isinstance(body, Chunks):
        assert (1, 1) == (body.taken, body.closes)


async def test_written_data_of_a_response_that_has_no_body() -> None:
    def application(environ: Environ, start_response: Any) -> list[bytes]:
        start_response("200 OK", [("Content-Length", "4")])(b"a" * 4)
        return []

    client = await serve(application, scope=http(method="HEAD"))
    assert ([(b"content-length", b"4")], b"", True) == (client.headers, client.body, client.complete)


@pytest.mark.parametrize(
    ("method", "status", "told"),
    [("HEAD", "200", True), ("GET", "304", True), ("GET", "204", False), ("HEAD", "204", False)],
)
async def test_length_told_without_a_body(method: str, status: str, told: bool, log: Log) -> None:
    """It is that of the body which is not sent; only 204 must not have it."""
    client = await serve(answers([], status, [("Content-Length", "7")]), scope=http(method=method))
    assert ([(b"content-length", b"7")] if told else []) == client.headers
    assert client.complete
    assert [] == log.records


async def test_empty_list_for_head_does_not_tell_a_length() -> None:
    """The body for GET need not be empty."""
    assert [] == (await serve(answers([]), scope=http(method="HEAD"))).headers


@pytest.mark.parametrize("iterable", [list, Chunks])
async def test_body_longer_than_its_length_is_cut(iterable: Any, log: Log) -> None:
    body = iterable([b"abc", b"def", b"ghi", b"jkl"])
    client = await serve(answers(body, headers=[("Content-Length", "5")]))
    assert (b"abcde", True) == (client.body, client.complete)
    assert logging.ERROR == log.only.levelno
    assert "longer than its Content-Length" in log.only.getMessage()
    if isinstance(body, Chunks):
        assert (2, 1) == (body.taken, body.closes)


async def test_writes_beyond_the_length_are_cut_and_logged_once(log: Log) -> None:
    def application(environ: Environ, start_response: Any) -> list[bytes]:
        write = start_response("200 OK", [("Content-Length", "3")])
        for _ in range(3):
            write(b"ab")
        return [b"c"]

    client = await serve(application)
    assert (b"aba", True) == (client.body, client.complete)
    assert "longer" in log.only.getMessage()


@pytest.mark.parametrize("iterable", [list, Chunks])
@pytest.mark.parametrize("chunks", [(b"abc", b"d"), (b"",), ()])
async def test_body_shorter_than_its_length_is_not_passed_off_as_complete(
    chunks: tuple[bytes, ...], iterable: Any, log: Log
) -> None:
    body = iterable(chunks)
    client = await serve(answers(body, headers=[("Content-Length", "6")]))
    assert (b"".join(chunks), False) == (client.body, client.complete)
    assert logging.ERROR == log.only.levelno
    assert f"{6 - len(client.body)} byte(s) before its Content-Length" in log.only.getMessage()


async def test_exact_length_in_chunks(log: Log) -> None:
    client = await serve(answers(Chunks([b"abc", b"def"]), headers=[("Content-Length", "6")]))
    assert (b"abcdef", True) == (client.body, client.complete)
    assert [] == log.records


async def test_hop_by_hop_headers_are_dropped(log: Log) -> None:
    """They are the server's to set."""
    names = ["Connection", "keep-alive", "TE", "Trailer", "Transfer-Encoding", "Upgrade", "Proxy-Authenticate"]
    headers = [("X-One", "1"), *[(name, "dropped") for name in names], ("X-Two", "2")]
    client = await serve(answers(Chunks([b"a"]), headers=headers))
    assert [(b"x-one", b"1"), (b"x-two", b"2")] == client.headers
    assert logging.WARNING == log.only.levelno
    assert all([name in log.only.getMessage() and name not in log.only.msg for name in names])


@pytest.fixture
def held_back(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Return an event that is set when the application waits for room in the queue."""
    event = asyncio.Event()
    wait_for_news = Connection.wait_for_news

    async def note_and_wait_for_news(connection: Connection) -> None:
        event.set()
        await wait_for_news(connection)

    monkeypatch.setattr(Connection, "wait_for_news", note_and_wait_for_news)
    return event


async def test_slow_client_holds_the_application_back(held_back: asyncio.Event) -> None:
    """As much may wait as the limit says, beside what is being sent."""
    client, body = Client(), Chunks([CHUNK] * 50)
    client.may_send.clear()
    task = asyncio.create_task(serve_beside(answers(body), client))
    await on_loop(held_back)
    assert body.taken <= 2 * (QUEUE_LIMIT // len(CHUNK) + 1)
    client.may_send.set()
    await task
    assert (50 * len(CHUNK), 50, True) == (len(client.body), body.taken, client.complete)


async def test_news_come_again_and_again() -> None:
    """And are not waited for when there will be none."""
    client = Client()
    connection = Connection(client.receive, client.send)
    for _ in range(2):
        waiting = asyncio.create_task(connection.wait_for_news())
        await asyncio.sleep(0)
        assert not waiting.done()
        connection.tell()
        await asyncio.wait_for(waiting, LIMIT)
    connection.lose()
    await asyncio.wait_for(connection.wait_for_news(), LIMIT)


async def serve_beside(application: Any, client: Client, scope: Any = None, **options: Any) -> None:
    """Serve, while other tasks run."""
    async with asyncio.timeout(LIMIT):
        await WsgiToAsgi(application, **options)(scope or http(), client.receive, client.send)


@pytest.mark.parametrize("iterable", [list, Chunks])
async def test_valid_by_the_rules_of_pep_3333(iterable: Any) -> None:
    @validator
    def application(environ: Environ, start_response: Any) -> Any:
        body = environ["wsgi.input"]
        parts = [body.read(1), body.readline(), *body, body.read(5)]
        start_response("200 OK", [("Content-Type", "text/plain")])
        return iterable(parts)

    scope = http(method="POST", scheme="https", query_string=b"a=b", headers=[(b"content-length", b"4")])
    client = await serve(application, Client(*body_in(b"a\n", b"b\n")), scope)
    assert (200, b"a\nb\n", True) == (client.status, client.body, client.complete)


async def test_under_the_communicator() -> None:
    """A response that streams while the test sends the request."""

    def application(environ: Environ, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        yield from environ["wsgi.input"]

    communicator = ApplicationCommunicator(WsgiToAsgi(application), http())
    await communicator.send_input(request(b"a\n", True))
    assert 200 == (await communicator.receive_output(LIMIT))["status"]
    assert b"a\n" == (await communicator.receive_output(LIMIT))["body"]
    await communicator.send_input(request(b"b\n"))
    rest = b""
    while (message := await communicator.receive_output(LIMIT))["more_body"]:
        rest += message["body"]
    assert b"b\n" == rest + message["body"]
    await communicator.wait(LIMIT)


# close():


class Failing(Chunks):
    def close(self) -> None:
        super().close()
        raise LookupError("close")


@pytest.mark.parametrize("chunks", [(b"a", b"b"), ()])
async def test_close_that_raises_is_logged_and_the_response_delivered(chunks: tuple[bytes, ...], log: Log) -> None:
    client = await serve(answers(Failing(chunks)))
    assert (b"".join(chunks), True) == (client.body, client.complete)
    assert "close" in str(log.only.exc_info)


async def test_close_when_the_iteration_fails_early() -> None:
    body = Chunks([LookupError("early")])
    client = Client()
    with pytest.raises(LookupError, match="early"):
        await serve(answers(body), client)
    assert (1, []) == (body.closes, client.sent)


async def test_error_of_close_does_not_hide_that_of_the_application(log: Log) -> None:
    with pytest.raises(KeyError, match="early"):
        await serve(answers(Failing([KeyError("early")])))
    assert "LookupError('close')" in str(log.only.exc_info)


async def test_close_of_a_body_that_cannot_be_iterated() -> None:
    class Body:
        closes = 0

        def close(self) -> None:
            self.closes += 1

    body = Body()
    with pytest.raises(TypeError, match="not an iterable of bytes"):
        await serve(answers(body))
    assert 1 == body.closes


async def test_close_of_a_generator() -> None:
    """Where the client wants no more of it, its finally block runs."""
    ended = threading.Event()

    def application(environ: Environ, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        try:
            while True:
                yield b"a"
        finally:
            ended.set()

    await serve(application, Client(request(), DISCONNECT))
    wait_for(ended)


# Files:

ZEROCOPY = "http.response.zerocopysend"
PATHSEND = "http.response.pathsend"


class FileClient(Client):
    """A server that sends files by itself, and notes whether they were open then."""

    def __init__(self, *messages: Any) -> None:
        super().__init__(*messages, on_send=self.note)
        self.file_body = b""
        self.files: list[Any] = []

    def note(self, message: Message) -> None:
        if message["type"] == ZEROCOPY:
            self.files.append(message["file"])
            self.file_body += os.pread(message["file"].fileno(), message["count"], message["offset"])
        elif message["type"] == PATHSEND:
            self.file_body += Path(message["path"]).read_bytes()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    return path


class SendsFile:
    """An application that gives a file to the wrapper of the server, and keeps it to look at."""

    file: Any

    def __init__(self, open_file: Callable[[], Any], *headers: tuple[str, str], size: int | None = None) -> None:
        self.open_file, self.headers, self.size = open_file, list(headers), size

    def __call__(self, environ: Environ, start_response: Any) -> Any:
        self.file = self.open_file()
        start_response("200 OK", self.headers)
        wrapper = environ["wsgi.file_wrapper"]
        return wrapper(self.file) if self.size is None else wrapper(self.file, self.size)


def scope_with(*extensions: str, **changes: Any) -> dict[str, Any]:
    return http(extensions={extension: {} for extension in extensions}, **changes)


def at(file: Any, offset: int) -> Any:
    file.seek(offset)
    return file


@pytest.mark.parametrize("extensions", [None, {}, {"http.response.push": {}}])
@pytest.mark.parametrize("size", [None, 3])
async def test_file_without_an_extension_is_read(path: Path, extensions: Any, size: int | None) -> None:
    application = SendsFile(lambda: path.open("rb"), size=size)
    client = await serve(application, scope=http(extensions=extensions))
    assert (b"0123456789", True) == (client.body, client.complete)
    assert application.file.closed


async def test_file_like_object_without_close() -> None:
    class Readable:
        def __init__(self) -> None:
            self.read = io.BytesIO(b"abc").read

    assert b"abc" == (await serve(SendsFile(Readable, size=2))).body


@pytest.mark.parametrize("buffering", [0, -1])
@pytest.mark.parametrize("offset", [0, 4])
async def test_file_by_its_descriptor(path: Path, buffering: int, offset: int) -> None:
    """From where it stands. It is open when the server gets it, and closed afterwards."""
    application = SendsFile(lambda: at(path.open("rb", buffering=buffering), offset))
    client = await serve(application, FileClient(), scope_with(ZEROCOPY, PATHSEND))
    length = b"%d" % (10 - offset)
    start, message = client.sent
    assert (200, [(b"content-length", length)]) == (start["status"], start["headers"])
    assert {"type": ZEROCOPY, "file": application.file, "offset": offset, "count": 10 - offset} == message
    assert isinstance(client, FileClient)
    assert b"0123456789"[offset:] == client.file_body
    assert application.file.closed


async def test_file_by_its_descriptor_as_far_as_the_length_says(path: Path) -> None:
    application = SendsFile(lambda: path.open("rb"), ("Content-Length", "3"))
    client = await serve(application, FileClient(), scope_with(ZEROCOPY))
    assert [(b"content-length", b"3")] == client.headers
    assert (0, 3) == (client.sent[1]["offset"], client.sent[1]["count"])
    assert 2 == len(client.sent)


@pytest.mark.parametrize("extension", [ZEROCOPY, PATHSEND])
async def test_no_file_for_a_length_of_zero(path: Path, extension: str, log: Log) -> None:
    """A server may take a count of zero for all there is."""
    application = SendsFile(lambda: path.open("rb"), ("Content-Length", "0"))
    client = await serve(application, FileClient(), scope_with(extension))
    assert (b"", True, 2) == (client.body, client.complete, len(client.sent))
    assert "longer than its Content-Length" in log.only.getMessage()


@pytest.mark.parametrize("extension", [ZEROCOPY, PATHSEND])
async def test_wrapper_that_a_subclass_changes_is_iterated(path: Path, extension: str) -> None:
    class Numbered(FileWrapper):
        def __iter__(self) -> Iterator[bytes]:
            return (b"%d, " % number for number, _ in enumerate(super().__iter__()))

    client = await serve(answers(Numbered(path.open("rb"), 5)), FileClient(), scope_with(extension))
    assert (b"0, 1, ", True) == (client.body, client.complete)


@pytest.mark.parametrize("extension", [ZEROCOPY, PATHSEND])
async def test_file_that_is_shorter_than_the_length_says(path: Path, extension: str, log: Log) -> None:
    application = SendsFile(lambda: path.open("rb"), ("Content-Length", "11"))
    client = await serve(application, FileClient(), scope_with(extension))
    assert client.sent[-1]["more_body"]
    assert "1 byte(s) before its Content-Length" in log.only.getMessage()


@pytest.mark.parametrize("headers", [(), (("Content-Length", "10"),)])
async def test_whole_file_by_its_path(
    path: Path, headers: tuple[tuple[str, str], ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The path is made absolute, which the extension asks for."""
    monkeypatch.chdir(path.parent)
    application = SendsFile(lambda: opened(Path("file")), *headers)
    client = await serve(application, FileClient(), scope_with(PATHSEND))
    assert [(b"content-length", b"10")] == client.headers
    assert [{"type": PATHSEND, "path": str(path)}] == client.sent[1:]
    assert application.file.closed


def opened(path: Path) -> Any:
    return path.open("rb")


def replaced(path: Path) -> Any:
    file = path.open("rb")
    path.rename(path.with_name("other"))
    path.write_bytes(b"others")
    return file


def removed(path: Path) -> Any:
    file = path.open("rb")
    path.unlink()
    return file


def without_name(path: Path) -> Any:
    return os.fdopen(os.open(path, os.O_RDONLY), "rb")


def from_pipe(path: Path) -> Any:
    reader, writer = os.pipe()
    os.write(writer, b"0123456789")
    os.close(writer)
    return os.fdopen(reader, "rb", buffering=0)


def compressed(path: Path) -> Any:
    with gzip.open(path.with_name("compressed"), "wb") as file:
        file.write(b"0123456789")
    return gzip.open(path.with_name("compressed"))


class Lower(io.FileIO):
    """Gives other bytes than the file has."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(-1 if size is None else size).lower()


OTHER_FILES: dict[str, Callable[[Path], Any]] = {
    "in memory": lambda path: io.BytesIO(b"0123456789"),
    "compressed": compressed,
    "buffered, in memory": lambda path: io.BufferedReader(io.BytesIO(b"0123456789")),  # type: ignore[arg-type, unused-ignore]
    "buffered, compressed": lambda path: io.BufferedReader(compressed(path)),
    "subclass": lambda path: Lower(path),
    "open for writing too": lambda path: path.open("r+b"),
}


@pytest.mark.parametrize("make_file", OTHER_FILES.values(), ids=OTHER_FILES.keys())
@pytest.mark.parametrize("extension", [ZEROCOPY, PATHSEND])
async def test_what_is_not_a_real_file_is_read(path: Path, make_file: Callable[[Path], Any], extension: str) -> None:
    """Only a real file is known to give the very bytes that its descriptor would."""
    application = SendsFile(lambda: make_file(path))
    client = await serve(application, FileClient(), scope_with(extension))
    assert (b"0123456789", True) == (client.body, client.complete)
    assert application.file.closed


@pytest.mark.parametrize("extension", [ZEROCOPY, PATHSEND])
async def test_request_body_as_the_file(extension: str) -> None:
    def application(environ: Environ, start_response: Any) -> Any:
        start_response("200 OK", [])
        return environ["wsgi.file_wrapper"](environ["wsgi.input"])

    client = await serve(application, Client(*body_in(b"a", b"b")), scope_with(extension))
    assert (b"ab", True) == (client.body, client.complete)


@pytest.mark.parametrize("extension", [ZEROCOPY, PATHSEND])
async def test_pipe_is_read(path: Path, extension: str) -> None:
    client = await serve(SendsFile(lambda: from_pipe(path)), FileClient(), scope_with(extension))
    assert (b"0123456789", True) == (client.body, client.complete)


@pytest.mark.parametrize("extension", [ZEROCOPY, PATHSEND])
async def test_nothing_left_of_a_file(path: Path, extension: str) -> None:
    client = await serve(SendsFile(lambda: at(path.open("rb"), 10)), FileClient(), scope_with(extension))
    assert (b"", True, 2) == (client.body, client.complete, len(client.sent))


@pytest.mark.parametrize("open_file", [replaced, removed, without_name])
async def test_file_that_has_no_path_any_more_is_read(path: Path, open_file: Callable[[Path], Any]) -> None:
    """The path leads to another file, or to none."""
    client = await serve(SendsFile(lambda: open_file(path)), FileClient(), scope_with(PATHSEND))
    assert (b"0123456789", True) == (client.body, client.complete)


async def test_part_of_a_file_is_not_sent_by_path(path: Path) -> None:
    client = await serve(SendsFile(lambda: at(path.open("rb"), 4)), FileClient(), scope_with(PATHSEND))
    assert (b"456789", True) == (client.body, client.complete)


@pytest.mark.parametrize("extension", [ZEROCOPY, PATHSEND])
async def test_file_after_written_data_is_read(path: Path, extension: str) -> None:
    def application(environ: Environ, start_response: Any) -> Any:
        start_response("200 OK", [])(b"written, ")
        return environ["wsgi.file_wrapper"](path.open("rb"))

    client = await serve(application, FileClient(), scope_with(extension))
    assert (b"written, 0123456789", True) == (client.body, client.complete)


@pytest.mark.parametrize("extension", [ZEROCOPY, PATHSEND])
async def test_file_for_head_is_not_sent(path: Path, extension: str) -> None:
    application = SendsFile(lambda: path.open("rb"))
    client = await serve(application, FileClient(), scope_with(extension, method="HEAD"))
    assert ([(b"content-length", b"10")], b"", True) == (client.headers, client.body, client.complete)
    assert application.file.closed


@pytest.mark.parametrize("extension", [ZEROCOPY, PATHSEND])
async def test_file_without_start_response(path: Path, extension: str) -> None:
    with pytest.raises(RuntimeError, match="did not call start_response"):
        await serve(
            lambda environ, start_response: environ["wsgi.file_wrapper"](path.open("rb")), None, scope_with(extension)
        )


@pytest.mark.parametrize("extension", [ZEROCOPY, PATHSEND])
async def test_file_for_a_client_that_has_gone(path: Path, extension: str, log: Log) -> None:
    def leave(message: Message) -> None:
        raise OSError("gone")

    application = SendsFile(lambda: path.open("rb"))
    client = await serve(application, Client(on_send=leave), scope_with(extension))
    assert 1 == len(client.sent)
    assert application.file.closed
    assert [] == log.records


@pytest.mark.parametrize("extension", [ZEROCOPY, PATHSEND])
async def test_send_that_fails_with_a_file(path: Path, extension: str) -> None:
    """It is not the application that has failed."""

    def fail(message: Message) -> None:
        raise LookupError("send")

    application = SendsFile(lambda: path.open("rb"))
    with pytest.raises(LookupError, match="send"):
        await serve(application, Client(on_send=fail), scope_with(extension))
    assert application.file.closed


async def test_relative_path_in_another_directory(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    file = opened(Path("file"))
    monkeypatch.chdir("/")
    client = await serve(SendsFile(lambda: file), FileClient(), scope_with(PATHSEND))
    assert (b"0123456789", True) == (client.body, client.complete)


# Clients that leave, and servers that fail:


async def test_disconnect_as_the_first_message() -> None:
    """The application is not called."""
    client = await serve(answers(Chunks([AssertionError()])), Client(DISCONNECT))
    assert [] == client.sent


def stop_after(number: int, error: type[Exception]) -> Callable[[Message], None]:
    """Return a function that raises *error* with the message of that number."""
    count = itertools.count(1)

    def stop(message: Message) -> None:
        if next(count) >= number:
            raise error("stopped")

    return stop


async def test_disconnect_stops_the_iteration(log: Log) -> None:
    """And close() is called; none of that is an error."""
    client = Client()

    def leave(message: Message) -> None:
        if len(client.sent) == 4:
            client.inputs.put_nowait(DISCONNECT)

    client.on_send = leave
    body = Chunks(itertools.repeat(b"a"))
    await serve(answers(body), client)
    assert (1, False) == (body.closes, client.complete)
    assert [] == log.records


async def test_disconnect_stops_an_iteration_that_gives_nothing(log: Log) -> None:
    """Chunks that are empty are not sent, and so no send can tell that the client has gone."""
    body = Chunks(itertools.repeat(b""))
    client = await serve(answers(body), Client(request(), DISCONNECT))
    assert ([], 1) == (client.sent, body.closes)
    assert [] == log.records


async def test_write_that_is_overtaken_by_the_end_of_the_request() -> None:
    """1. A thread puts a chunk. 2. The request ends. 3. The loop hears of the chunk, and sends nothing."""
    client = Client()
    connection = Connection(client.receive, client.send)
    response = Response(connection, scope_with())
    response.start("200 OK", [])
    response.write(b"a")
    connection.lose()
    response.deliver()
    await asyncio.sleep(0)
    assert ([], set()) == (client.sent, connection.tasks)


@pytest.mark.parametrize("number", [1, 2, 4])
@pytest.mark.parametrize("chunk", [b"a", CHUNK])
async def test_send_that_raises_oserror_stops_the_iteration(number: int, chunk: bytes, log: Log) -> None:
    body = Chunks(itertools.repeat(chunk))
    client = await serve(answers(body), Client(on_send=stop_after(number, OSError)))
    assert (number, 1) == (len(client.sent), body.closes)
    assert [] == log.records


@pytest.mark.parametrize("number", [1, 2])
async def test_send_that_raises_oserror_with_a_whole_body(number: int, log: Log) -> None:
    client = await serve(answers([b"a"]), Client(on_send=stop_after(number, OSError)))
    assert number == len(client.sent)
    assert [] == log.records


class Leaving(Client):
    """A client that leaves with the first part of the body; the application is told when that has been noticed."""

    def __init__(self, error: type[Exception]) -> None:
        super().__init__(on_send=self.leave)
        self.error = error
        # Whether the application is past the check that follows a write, and the failure known on the loop.
        self.resumed, self.left = threading.Event(), threading.Event()

    def leave(self, message: Message) -> None:
        if message["type"] == "http.response.body":
            wait_for(self.resumed)
            asyncio.get_running_loop().call_soon(self.left.set)
            raise self.error("stopped")


async def test_write_to_a_client_that_has_left_raises_oserror(log: Log) -> None:
    client = Leaving(ConnectionResetError)
    errors = []

    def application(environ: Environ, start_response: Any) -> list[bytes]:
        write = start_response("200 OK", [])
        write(b"a")
        client.resumed.set()
        wait_for(client.left)
        try:
            write(b"b")
        except OSError as error:
            errors.append(str(error))
            raise
        return []

    await serve(application, client)
    assert ["the client disconnected before it had the whole response"] == errors
    assert [] == log.records


async def test_chunk_for_a_client_that_has_left(log: Log) -> None:
    """The application has made it already; it is not asked for more."""
    client = Leaving(OSError)

    def chunks() -> Iterator[bytes]:
        yield b"a"
        client.resumed.set()
        wait_for(client.left)
        yield b"b"
        raise AssertionError("asked for more")

    body = Chunks(chunks())
    await serve(answers(body), client)
    assert 1 == body.closes
    assert [] == log.records


async def test_reading_from_a_client_that_has_left_raises_oserror() -> None:
    errors = []

    def application(environ: Environ, start_response: Any) -> list[bytes]:
        for _ in range(2):
            with pytest.raises(OSError) as caught:
                environ["wsgi.input"].read()
            errors.append(str(caught.value))
        start_response("200 OK", [])
        return [b"nobody gets this"]

    client = await serve(application, Client(request(b"a", True), DISCONNECT))
    assert [] == client.sent
    assert [
        "the client disconnected before its request body was complete",
        "the request is over, and so its body can no longer be read",
    ] == errors


@pytest.mark.parametrize("with_cause", [True, False])
async def test_errors_because_of_a_disconnect_do_not_come_out(with_cause: bool, log: Log) -> None:
    def application(environ: Environ, start_response: Any) -> list[bytes]:
        try:
            environ["wsgi.input"].read()
        except OSError as error:
            if with_cause:
                raise ValueError("unreadable") from error
            raise ValueError("unreadable") from None
        return []

    client = await serve(application, Client(request(b"a", True), DISCONNECT))
    assert [] == client.sent
    assert [] == log.records


async def test_other_errors_after_a_disconnect_come_out() -> None:
    def application(environ: Environ, start_response: Any) -> list[bytes]:
        try:
            environ["wsgi.input"].read()
        except OSError:
            pass
        raise LookupError("own")

    with pytest.raises(LookupError, match="own"):
        await serve(application, Client(request(b"a", True), DISCONNECT))


async def test_error_that_is_its_own_cause() -> None:
    """An error handler can make such a circle; it is not gone round for ever."""

    class Circle(Exception):
        looks = 0

        @property
        def __cause__(self) -> BaseException | None:  # type: ignore[override]
            self.looks += 1
            return self if self.looks < 1000 else None

    circle = Circle()

    def application(environ: Environ, start_response: Any) -> list[bytes]:
        raise circle

    with pytest.raises(Circle):
        await serve(application)
    assert circle.looks < 100


@pytest.mark.parametrize("message", [request(), request(b"", True), request(b"a", True), DISCONNECT])
@pytest.mark.parametrize("kind", ["read", "stream", "whole"])
async def test_receive_that_always_answers_at_once(message: Message, kind: str) -> None:
    """Nothing spins or hangs; a body is read only as far as the application asks for it."""

    class Eager(Client):
        async def receive(self) -> Message:
            self.receives += 1
            return message

    body = Chunks([b"a", b"b"])
    application = (
        reads(lambda body: body.read(10)) if kind == "read" else answers(body if kind == "stream" else [b"ab"])
    )
    client = await serve(application, Eager())
    assert client.receives <= {"read": EMPTY_MESSAGES + 2, "stream": 2, "whole": 1}[kind]
    if message is not DISCONNECT and not (kind == "read" and message == request(b"", True)):
        assert client.complete


async def test_endless_empty_messages_end_the_read() -> None:
    errors = []

    def application(environ: Environ, start_response: Any) -> list[bytes]:
        with pytest.raises(OSError) as caught:
            environ["wsgi.input"].read()
        errors.append(str(caught.value))
        start_response("400 Bad Request", [])
        return []

    client = await serve(application, Client(*[request(b"", True)] * 200))
    assert [f"{EMPTY_MESSAGES} messages in a row were empty and announced more of the request body"] == errors
    assert 400 == client.status


async def test_some_empty_messages_do_no_harm() -> None:
    messages = [request(b"a", True), *[request(b"", True)] * (EMPTY_MESSAGES - 1), request(b"b")]
    assert b"ab" == (await serve(reads(), Client(*messages))).body


async def test_error_of_the_bridge_while_the_loop_runs() -> None:
    """It is not taken for the end of the loop."""
    client = Client()
    connection = Connection(client.receive, client.send)

    async def fail() -> None:
        raise RuntimeError("own")

    with pytest.raises(RuntimeError, match="own"):
        await in_thread(connection.wait_for, fail)


async def test_first_receive_that_raises() -> None:
    with pytest.raises(LookupError, match="receive"):
        await serve(answers(), Client(LookupError("receive")))


async def test_receive_that_raises_while_the_application_reads() -> None:
    client = Client(request(b"a", True), LookupError("receive"))
    with pytest.raises(LookupError, match="receive"):
        await serve(reads(), client)
    assert [] == client.sent


async def test_receive_that_raises_while_the_response_streams() -> None:
    """It comes out of the adapter, and the application is stopped."""
    failed = threading.Event()

    class Broken(Client):
        async def receive(self) -> Message:
            if self.receives == 1:
                asyncio.get_running_loop().call_soon(failed.set)
                raise LookupError("receive")
            return await super().receive()

    def chunks() -> Iterator[bytes]:
        yield b"a"
        wait_for(failed)
        yield b"b"
        raise AssertionError("asked for more")

    body = Chunks(chunks())
    with pytest.raises(LookupError, match="receive"):
        await serve(answers(body), Broken())
    assert 1 == body.closes


@pytest.mark.parametrize("number", [1, 2, 4])
@pytest.mark.parametrize("chunk", [b"a", CHUNK])
async def test_send_that_raises_while_the_response_streams(number: int, chunk: bytes, log: Log) -> None:
    body = Chunks(itertools.repeat(chunk))
    with pytest.raises(LookupError, match="stopped"):
        await serve(answers(body), Client(on_send=stop_after(number, LookupError)))
    assert 1 == body.closes
    assert [] == log.records


async def test_send_that_raises_while_the_application_makes_another_chunk() -> None:
    """The error that this chunk meets is not the one that matters."""
    client = Leaving(LookupError)

    def chunks() -> Iterator[bytes]:
        yield b"a"
        client.resumed.set()
        wait_for(client.left)
        yield b"b"
        raise AssertionError("asked for more")

    body = Chunks(chunks())
    with pytest.raises(LookupError, match="stopped"):
        await serve(answers(body), client)
    assert 1 == body.closes


@pytest.mark.parametrize("number", [1, 2])
async def test_send_that_raises_with_a_whole_body(number: int) -> None:
    with pytest.raises(LookupError, match="stopped"):
        await serve(answers([b"a"]), Client(on_send=stop_after(number, LookupError)))


# Applications that fail:


async def test_exception_before_the_headers() -> None:
    client = Client()

    def application(environ: Environ, start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        raise LookupError("early")

    with pytest.raises(LookupError, match="early"):
        await serve(application, client)
    assert [] == client.sent


@pytest.mark.parametrize("chunk", [b"a", CHUNK * 20])
async def test_exception_after_the_headers(chunk: bytes, log: Log) -> None:
    """It is logged once. What came before is sent, and does not look complete."""
    body = Chunks([chunk, LookupError("late")])
    client = await serve(answers(body), Client())
    assert (chunk, False) == (client.body, client.complete)
    assert 1 == body.closes
    assert logging.ERROR == log.only.levelno
    assert "LookupError('late')" in str(log.only.exc_info)


async def test_exception_after_the_headers_of_a_response_without_a_body(log: Log) -> None:
    def application(environ: Environ, start_response: Any) -> list[bytes]:
        start_response("200 OK", [])(b"a")
        raise LookupError("late")

    client = await serve(application, scope=http(method="HEAD"))
    assert not client.complete
    assert "LookupError('late')" in str(log.only.exc_info)


def never_starts(body: Any) -> Any:
    return lambda environ, start_response: body


def starts_twice(environ: Environ, start_response: Any) -> list[bytes]:
    start_response("200 OK", [])
    start_response("200 OK", [])
    return []


@pytest.mark.parametrize(
    ("application", "error", "text"),
    [
        (never_starts([]), RuntimeError, "did not call start_response"),
        (never_starts([b"a"]), RuntimeError, "did not call start_response"),
        (never_starts(Chunks([])), RuntimeError, "did not call start_response"),
        (never_starts(Chunks([b"a"])), RuntimeError, "did not call start_response"),
        (starts_twice, RuntimeError, "a second time"),
        (answers("text"), TypeError, "returned str"),
        (answers(b"bytes"), TypeError, "returned bytes"),
        (answers(None), TypeError, "returned None"),
        (answers(5), TypeError, "returned 5"),
        (answers(["text"]), TypeError, "gave str as a part"),
        (answers([b"a", None]), TypeError, "gave NoneType as a part"),
        (answers([bytearray(b"a")]), TypeError, "gave bytearray as a part"),
        (answers(Chunks(["text"])), TypeError, "gave str as a part"),
    ],
)
async def test_application_that_breaks_the_rules(application: Any, error: type[Exception], text: str) -> None:
    """The error names the rule, and the server answers."""
    client = Client()
    with pytest.raises(error, match=text) as caught:
        await serve(application, client)
    assert "PEP 3333" in str(caught.value)
    assert [] == client.sent


@pytest.mark.parametrize("status", [200, None, b"200 OK", ["200 OK"]])
async def test_status_of_another_type(status: Any) -> None:
    with pytest.raises(TypeError, match=r"status.*PEP 3333"):
        await serve(answers([], status))


@pytest.mark.parametrize(
    "status", ["", "OK", "20", "2000", "099 No", "2OO OK", "200OK", "200 O\rK", "200 \n", "200\n", "200 \0"]
)
async def test_bad_status(status: str) -> None:
    with pytest.raises(ValueError, match=r"status.*PEP 3333"):
        await serve(answers([], status))


@pytest.mark.parametrize(
    "headers",
    [None, 5, "ab", {"ab": "1"}, iter([("a", "b")]), [("X-One",)], [("X-One", "1", "2")], [5], ["ab"], [{"a", "b"}]],
)
async def test_headers_that_are_no_pairs(headers: Any) -> None:
    with pytest.raises(TypeError, match=r"header.*PEP 3333"):
        await serve(answers([], headers=headers))


@pytest.mark.parametrize("name", [b"X-One", None, 5, ["X-One"]])
async def test_header_name_of_another_type(name: Any) -> None:
    with pytest.raises(TypeError, match=r"name of a response header.*PEP 3333"):
        await serve(answers([], headers=[(name, "1")]))


@pytest.mark.parametrize("name", ["", "X One", "X-One:", "X\nOne", "X-\xe4", "X\0"])
async def test_bad_header_name(name: str) -> None:
    with pytest.raises(ValueError, match="no name for a response header"):
        await serve(answers([], headers=[(name, "1")]))


@pytest.mark.parametrize("value", [b"1", None, 5, ["1"]])
async def test_header_value_of_another_type(value: Any) -> None:
    with pytest.raises(TypeError, match=r"'X-One' must be of .*PEP 3333"):
        await serve(answers([], headers=[("X-One", value)]))


@pytest.mark.parametrize("value", ["a\rb", "a\nb", "a\r\nSet-Cookie: b", "a\0b", "\u20ac", "\n"])
async def test_bad_header_value(value: str) -> None:
    with pytest.raises(ValueError, match=r"'X-One' must be of .*PEP 3333"):
        await serve(answers([], headers=[("X-One", value)]))


@pytest.mark.parametrize("length", ["", "a", "-1", "1.0", "\xb2", " 1"])
async def test_bad_content_length(length: str) -> None:
    with pytest.raises(ValueError, match="Content-Length of the response must be one number"):
        await serve(answers([], headers=[("Content-Length", length)]))


async def test_content_lengths_that_contradict_each_other() -> None:
    with pytest.raises(ValueError, match="Content-Length of the response must be one number, and not '2' too"):
        await serve(answers([b"a"], headers=[("Content-Length", "1"), ("content-length", "2")]))


async def test_content_length_that_is_repeated_is_sent_once() -> None:
    client = await serve(answers([b"a"], headers=[("Content-Length", "1"), ("content-length", "1")]))
    assert ([(b"content-length", b"1")], b"a", True) == (client.headers, client.body, client.complete)


# Requests that are refused:


def refused(client: Client, status: int) -> None:
    """Check that the response is a short one of the adapter's own."""
    assert status == client.status
    assert client.complete
    assert [
        (b"content-type", b"text/plain; charset=us-ascii"),
        (b"content-length", b"%d" % len(client.body)),
    ] == client.headers
    assert b"" != client.body


@pytest.mark.parametrize(
    "headers",
    [
        [(b"x-client-text", b"1")] * 4,
        [(b"cookie", b"a=1")] * 4,
        [(b"content-length", b"1"), (b"content-length", b"2")],
        [(b"content-length", b"x-client-text")],
        [(b"content-length", b"")],
    ],
)
@pytest.mark.parametrize("parts", [(b"a",), (b"a", b"b")])
async def test_bad_request(headers: Any, parts: tuple[bytes, ...], log: Log) -> None:
    """It is answered with 400, and logged; what the client sent is only an argument there."""
    body = Chunks([AssertionError("called")])
    client = await serve(answers(body), Client(*body_in(*parts)), http(headers=headers), duplicate_header_limit=3)
    refused(client, 400)
    assert 0 == body.taken
    assert logging.WARNING == log.only.levelno
    assert "x-client-text" not in log.only.msg


async def test_bad_request_of_a_client_that_leaves(log: Log) -> None:
    client = await serve(answers(), Client(on_send=stop_after(1, OSError)), http(headers=[(b"content-length", b"")]))
    assert 1 == len(client.sent)
    assert 1 == len(log.records)


async def test_refusal_of_head_has_no_body() -> None:
    client = await serve(answers(), scope=http(method="HEAD", headers=[(b"content-length", b"")]))
    assert (400, b"", True) == (client.status, client.body, client.complete)


@pytest.mark.parametrize(("limit", "number"), [(3, 3), (None, 1000), (100, 100)])
async def test_header_as_often_as_is_allowed(limit: int | None, number: int) -> None:
    client = await serve(answers([]), scope=http(headers=[(b"a", b"1")] * number), duplicate_header_limit=limit)
    assert 200 == client.status


async def test_limit_by_default() -> None:
    assert 400 == (await serve(answers([]), scope=http(headers=[(b"a", b"1")] * 101))).status


async def test_dropped_names_are_logged_once(log: Log) -> None:
    headers = [(b"x_client_text", b"1"), (b"proxy", b"2")]
    assert 200 == (await serve(answers([]), scope=http(headers=headers))).status
    assert "x_client_text" in log.only.getMessage()
    assert "x_client_text" not in log.only.msg


async def test_body_that_announces_to_be_too_large(log: Log) -> None:
    """Nothing is received for it."""
    scope = http(headers=[(b"content-length", b"11")])
    client = await serve(answers(Chunks([AssertionError()])), Client(*body_in(b"a" * 11)), scope, max_body_size=10)
    refused(client, 413)
    assert 0 == client.receives
    assert (10,) == log.only.args


async def test_body_that_announces_to_be_small_enough() -> None:
    scope = http(headers=[(b"content-length", b"10")])
    client = await serve(reads(), Client(*body_in(b"a" * 10)), scope, max_body_size=10)
    assert (200, b"a" * 10) == (client.status, client.body)


@pytest.mark.parametrize("parts", [(b"a" * 11,), (b"a" * 11, b"a"), (b"a" * 5, b"a" * 6), (b"a", b"a" * 9, b"a", b"a")])
@pytest.mark.parametrize("catches", [True, False])
async def test_body_that_turns_out_to_be_too_large(parts: tuple[bytes, ...], catches: bool, log: Log) -> None:
    """Even where the application answers."""

    def application(environ: Environ, start_response: Any) -> list[bytes]:
        try:
            environ["wsgi.input"].read()
        except OSError as error:
            assert "larger than 10 bytes" in str(error)
            if not catches:
                raise
        start_response("200 OK", [])
        return [b"answer"]

    client = await serve(application, Client(*body_in(*parts)), max_body_size=10)
    refused(client, 413)
    assert 1 == len(log.records)


@pytest.mark.parametrize("more_body", [True, False])
async def test_first_message_that_is_too_large(more_body: bool, log: Log) -> None:
    """The application is not called."""
    body = Chunks([AssertionError("called")])
    client = await serve(answers(body), Client(request(b"a" * 11, more_body)), max_body_size=10)
    refused(client, 413)
    assert 1 == client.receives
    assert (10,) == log.only.args


async def test_body_as_large_as_is_allowed() -> None:
    client = await serve(reads(), Client(*body_in(b"a" * 4, b"b" * 6)), max_body_size=10)
    assert (200, b"a" * 4 + b"b" * 6) == (client.status, client.body)


async def test_body_that_is_not_read_is_not_too_large() -> None:
    client = await serve(answers([b"a"]), Client(*body_in(b"a", b"a" * 100)), max_body_size=10)
    assert 200 == client.status


@pytest.mark.parametrize("catches", [True, False])
async def test_body_that_is_too_large_when_the_response_has_begun(catches: bool, log: Log) -> None:
    """What was begun is not replaced."""
    sent = threading.Event()

    def note(message: Message) -> None:
        if message["type"] == "http.response.body":
            sent.set()

    def application(environ: Environ, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        yield b"begun"
        wait_for(sent)
        try:
            environ["wsgi.input"].read()
        except OSError:
            if not catches:
                raise
        yield b", ended"

    client = await serve(application, Client(*body_in(b"a", b"a" * 10), on_send=note), max_body_size=10)
    assert 200 == client.status
    assert ((b"begun, ended", True) if catches else (b"begun", False)) == (client.body, client.complete)
    assert (0 if catches else 1) == len(log.records)


async def test_error_of_the_application_after_a_body_that_is_too_large() -> None:
    def application(environ: Environ, start_response: Any) -> list[bytes]:
        try:
            environ["wsgi.input"].read()
        except OSError:
            raise LookupError("unreadable") from None
        return []

    refused(await serve(application, Client(*body_in(b"a", b"a" * 10)), max_body_size=10), 413)


async def test_error_while_a_body_within_the_limit_is_read() -> None:
    with pytest.raises(LookupError, match="receive"):
        await serve(reads(), Client(request(b"a", True), LookupError("receive")), max_body_size=10)


# Other kinds of connections:


async def test_lifespan_completes() -> None:
    communicator = ApplicationCommunicator(WsgiToAsgi(answers()), {"type": "lifespan"})
    for step in ("startup", "shutdown"):
        assert await communicator.receive_nothing(0.001)
        await communicator.send_input({"type": f"lifespan.{step}"})
        assert {"type": f"lifespan.{step}.complete"} == await communicator.receive_output(LIMIT)
    await communicator.wait(LIMIT)


async def test_websocket_is_refused() -> None:
    communicator = ApplicationCommunicator(WsgiToAsgi(answers()), {"type": "websocket"})
    await communicator.send_input({"type": "websocket.connect"})
    assert {"type": "websocket.close"} == await communicator.receive_output(LIMIT)
    await communicator.wait(LIMIT)


async def test_unknown_kind_of_connection() -> None:
    with pytest.raises(ValueError, match="'carrier-pigeon'"):
        await serve(answers(), scope={"type": "carrier-pigeon"})


# What subclasses and wrappers rely on:


async def test_subclass_with_methods_of_its_own() -> None:
    """The adapter is a subclass too, which makes instances with positional arguments."""
    called = []

    class Instance(WsgiToAsgiInstance):
        def build_environ(self, scope: Any, body: Any) -> Environ:
            return {**super().build_environ(scope, body), "added": b"environ, "}

        def start_response(self, status: str, response_headers: Any, exc_info: Any = None) -> Any:
            return super().start_response(status, [*response_headers, ("X-Added", "1")], exc_info)

        async def run_wsgi_app(self, body: Any) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
            called.append(body)
            await super().run_wsgi_app(body)

    class Adapter(WsgiToAsgi):
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            await Instance(self.wsgi_application, self.duplicate_header_limit)(scope, receive, send)

    def application(environ: Environ, start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [environ["added"], environ["wsgi.input"].read()]

    client = Client(request(b"body"))
    await run(Adapter(application), client)
    assert b"environ, body" == client.body
    assert (b"x-added", b"1") in client.headers
    assert 1 == len(called)


@pytest.mark.parametrize(
    "function",
    [WsgiToAsgiInstance.__dict__["run_wsgi_app"].func, WsgiToAsgiInstance.__dict__["run_wsgi_app"].__wrapped__],
    ids=["func", "wrapped"],
)
async def test_run_wsgi_app_wrapped_anew(function: Any) -> None:
    """For the default executor of the loop, say."""
    names = []

    class Instance(WsgiToAsgiInstance):
        run_wsgi_app = sync_to_async(function, thread_sensitive=False)

    def application(environ: Environ, start_response: Any) -> Iterator[bytes]:
        names.append(threading.current_thread().name)
        start_response("200 OK", [])
        yield environ["wsgi.input"].read()

    with ThreadPoolExecutor(1, "default") as executor:
        asyncio.get_running_loop().set_default_executor(executor)
        client = Client(*body_in(b"a", b"b"))
        await run(Instance(application), client)
    assert b"ab" == client.body
    assert ["default_0"] == names


def test_run_wsgi_app_is_a_coroutine_function() -> None:
    instance = WsgiToAsgiInstance(answers())
    assert iscoroutinefunction(instance.run_wsgi_app)
    assert iscoroutinefunction(WsgiToAsgiInstance.run_wsgi_app)
    assert not iscoroutinefunction(WsgiToAsgiInstance.run_wsgi_app.func)
    assert instance.run_wsgi_app.__name__ == "run_wsgi_app"


async def test_instances_share_threads() -> None:
    """Those that are made without an adapter do not wait for one another."""
    barrier = threading.Barrier(2)

    def application(environ: Environ, start_response: Any) -> list[bytes]:
        barrier.wait(LIMIT)
        start_response("200 OK", [])
        return []

    clients = [Client(), Client()]
    async with asyncio.timeout(LIMIT):
        await asyncio.gather(
            *[WsgiToAsgiInstance(application)(http(), client.receive, client.send) for client in clients]
        )
    assert [200, 200] == [client.status for client in clients]


# Cancellation, and threads that go on alone:


async def cancelled(task: asyncio.Task[Any]) -> None:
    """Cancel *task*, see it end, and nothing left over."""
    task.cancel()
    done, _ = await asyncio.wait({task}, timeout=LIMIT)
    assert {task} == done
    assert task.cancelled()
    assert {asyncio.current_task()} == asyncio.all_tasks()


async def test_cancelled_while_the_application_reads() -> None:
    """The application sees it."""
    client, errors = Client(request(b"a", True)), []

    def chunks(body: Any) -> Iterator[bytes]:
        try:
            yield body.read()
        except BaseException as error:
            errors.append(type(error))
            raise

    bodies = []

    def application(environ: Environ, start_response: Any) -> Chunks:
        start_response("200 OK", [])
        bodies.append(Chunks(chunks(environ["wsgi.input"])))
        return bodies[0]

    task = asyncio.create_task(serve_beside(application, client))
    await on_loop(client.waiting)
    await cancelled(task)
    assert [asyncio.CancelledError] == errors
    assert 1 == bodies[0].closes
    assert [] == client.sent


@pytest.mark.parametrize("chunk", [b"a", CHUNK])
async def test_cancelled_while_the_response_streams(chunk: bytes) -> None:
    body, client = Chunks(itertools.repeat(chunk)), Client()
    streams = asyncio.Event()

    def note(message: Message) -> None:
        if len(client.sent) == 5:
            streams.set()

    client.on_send = note
    task = asyncio.create_task(serve_beside(answers(body), client))
    await on_loop(streams)
    await cancelled(task)
    assert not client.complete
    await in_thread(wait_for, body.closed)
    assert 1 == body.closes


async def test_cancelled_while_the_application_is_held_back(held_back: asyncio.Event) -> None:
    client, body = Client(), Chunks(itertools.repeat(CHUNK))
    client.may_send.clear()
    task = asyncio.create_task(serve_beside(answers(body), client))
    await on_loop(held_back)
    await cancelled(task)
    assert 1 == body.closes


async def test_cancelled_while_the_application_computes() -> None:
    """It goes on alone. When it comes back, what it made is of no use to anybody, but is closed."""
    computing, go_on = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()
    bodies = []

    def application(environ: Environ, start_response: Any) -> Chunks:
        bodies.append(Chunks(itertools.repeat(b"a")))
        start_response("200 OK", [])
        loop.call_soon_threadsafe(computing.set)
        wait_for(go_on)
        return bodies[0]

    client = Client()
    task = asyncio.create_task(serve_beside(application, client))
    await on_loop(computing)
    await cancelled(task)
    go_on.set()
    await in_thread(wait_for, bodies[0].closed)
    assert (1, []) == (bodies[0].closes, client.sent)
    assert bodies[0].taken <= 1


async def test_cancelled_before_the_application_has_a_thread() -> None:
    """It is not called."""
    adapter_holds, go_on = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()
    calls = []

    def application(environ: Environ, start_response: Any) -> list[bytes]:
        calls.append(environ["PATH_INFO"])
        loop.call_soon_threadsafe(adapter_holds.set)
        wait_for(go_on)
        start_response("200 OK", [])
        return []

    adapter = WsgiToAsgi(application, threads=1)
    one, two = Client(), Client()
    first = asyncio.ensure_future(adapter(http(path="/one"), one.receive, one.send))
    await on_loop(adapter_holds)
    second = asyncio.ensure_future(adapter(http(path="/two"), two.receive, two.send))
    await on_loop(two.received)
    second.cancel()
    await asyncio.wait({second}, timeout=LIMIT)
    assert second.cancelled()
    go_on.set()
    await asyncio.wait_for(first, LIMIT)
    assert ["/one"] == calls


async def test_cancelled_before_the_first_message() -> None:
    client = Client()
    client.inputs.get_nowait()
    task = asyncio.create_task(serve_beside(answers(), client))
    await on_loop(client.waiting)
    await cancelled(task)


async def test_thread_of_the_application_that_outlives_the_request() -> None:
    """Nobody is there any more to read from or write to."""
    go_on = threading.Event()
    threads = []

    def work(body: Any, write: Any) -> list[str]:
        wait_for(go_on)
        errors = []
        for function, arguments in ((body.read, ()), (body.readline, ()), (write, (b"a",)), (write, (CHUNK * 10,))):
            with pytest.raises(OSError) as caught:
                function(*arguments)
            errors.append(str(caught.value))
        return errors

    def application(environ: Environ, start_response: Any) -> list[bytes]:
        write = start_response("200 OK", [])
        threads.append(Thread(work, environ["wsgi.input"], write))
        return [b"a"]

    client = await serve(application, Client(request(b"", True)))
    assert client.complete
    go_on.set()
    errors = await in_thread(threads[0].get)
    assert 2 == "".join(errors).count("can no longer be read")
    assert 2 == "".join(errors).count("disconnected before it had the whole response")


async def test_thread_that_reads_when_the_request_ends() -> None:
    """It gets an OSError, like one that comes later."""
    client = Client(request(b"", True))
    threads = []
    loop = asyncio.get_running_loop()

    def application(environ: Environ, start_response: Any) -> list[bytes]:
        threads.append(Thread(environ["wsgi.input"].read))
        asyncio.run_coroutine_threadsafe(on_loop(client.waiting), loop).result(LIMIT)
        start_response("200 OK", [])
        return [b"a"]

    await serve(application, client)
    assert client.complete
    with pytest.raises(OSError):
        await in_thread(threads[0].get)


async def end_of(task: asyncio.Future[None]) -> None:
    await asyncio.wait_for(task, LIMIT)


def test_loop_that_stops_while_the_application_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sync, "STOPPED_LOOP_PATIENCE", 0)
    client, ended, errors = Client(request(b"a", True)), threading.Event(), []

    def application(environ: Environ, start_response: Any) -> list[bytes]:
        try:
            environ["wsgi.input"].read()
        except BaseException as error:
            errors.append(error)
        ended.set()
        start_response("200 OK", [])
        return []

    loop = asyncio.new_event_loop()

    async def start() -> asyncio.Future[None]:
        task = asyncio.ensure_future(serve_beside(application, client))
        await on_loop(client.waiting)
        return task

    try:
        task = loop.run_until_complete(start())
        wait_for(ended)
        loop.run_until_complete(end_of(task))
    finally:
        loop.close()
    assert [True] == [isinstance(error, OSError) for error in errors], errors


def read(environ: Environ, start_response: Any) -> Any:
    return [environ["wsgi.input"].read()]


def write_much(environ: Environ, start_response: Any) -> Any:
    start_response("200 OK", [])(CHUNK * 10)
    return []


def send_file(environ: Environ, start_response: Any) -> Any:
    start_response("200 OK", [])
    return environ["wsgi.file_wrapper"](Path(__file__).open("rb"))


@pytest.mark.parametrize("work", [read, write_much, send_file])
def test_loop_that_stopped_before_the_application_needs_it(work: Any) -> None:
    """The application is let go; when the loop runs again, the request has ended."""
    client, begun = Client(request(b"a", True)), asyncio.Event()
    go_on, ended, errors = threading.Event(), threading.Event(), []

    def application(environ: Environ, start_response: Any) -> Any:
        loop.call_soon_threadsafe(begun.set)
        wait_for(go_on)
        return work(environ, start_response)

    def run_wsgi_app(instance: WsgiToAsgiInstance, body: Any) -> None:
        try:
            WsgiToAsgiInstance.run_wsgi_app.func(instance, body)
        except OSError as error:
            errors.append(str(error))
            raise
        finally:
            ended.set()

    class Instance(WsgiToAsgiInstance):
        pass

    Instance.run_wsgi_app = sync_to_async(run_wsgi_app)  # type: ignore[method-assign]
    loop = asyncio.new_event_loop()

    async def start() -> asyncio.Future[None]:
        task = asyncio.ensure_future(Instance(application)(scope_with(ZEROCOPY), client.receive, client.send))
        await on_loop(begun)
        return task

    try:
        task = loop.run_until_complete(start())
        go_on.set()
        wait_for(ended)
        loop.run_until_complete(end_of(task))
    finally:
        loop.close()
    assert ["the event loop of the server has stopped"] == errors


# Garbage:


def streams_and_waits(client: Client) -> Any:
    """Stream a chunk, and another when that was sent, so that a message is being received meanwhile."""
    sent = threading.Event()
    client.on_send = lambda message: sent.set() if message["type"] == "http.response.body" else None

    def application(environ: Environ, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        yield b"a"
        wait_for(sent)
        yield b"b"

    return application


def fails(environ: Environ, start_response: Any) -> list[bytes]:
    raise LookupError


def fails_late(environ: Environ, start_response: Any) -> Iterator[bytes]:
    start_response("200 OK", [])
    yield b"a"
    raise LookupError


def replaces(environ: Environ, start_response: Any) -> list[bytes]:
    start_response("200 OK", [])
    try:
        raise LookupError
    except LookupError:
        start_response("500 Internal Server Error", [], sys.exc_info())
    return [b"a"]


def replaces_late(environ: Environ, start_response: Any) -> list[bytes]:
    start_response("200 OK", [])(b"a")
    try:
        raise LookupError
    except LookupError:
        start_response("500 Internal Server Error", [], sys.exc_info())
    return []


GARBAGE: dict[str, Callable[[], tuple[Any, Client]]] = {
    "whole": lambda: (answers([b"a"]), Client()),
    "reads": lambda: (reads(), Client(*body_in(b"a", b"b"))),
    "does not read": lambda: (answers([b"a"]), Client(*body_in(b"a", b"b"))),
    "too large": lambda: (reads(), Client(*body_in(b"a", b"b" * 100))),
    "leaves": lambda: (reads(), Client(request(b"a", True), DISCONNECT)),
    "fails": lambda: (fails, Client()),
    "fails late": lambda: (fails_late, Client()),
    "replaces": lambda: (replaces, Client()),
    "replaces late": lambda: (replaces_late, Client()),
    "no list": lambda: (answers(None), Client()),
    "bad header": lambda: (answers([], headers=[("X-One", "\n")]), Client()),
    "streams": lambda: (answers(iter([b"a", b"b"])), Client()),
    "streams to nobody": lambda: (answers(itertools.repeat(b"a")), Client(on_send=stop_after(2, OSError))),
    "send fails": lambda: (answers(itertools.repeat(b"a")), Client(on_send=stop_after(2, LookupError))),
    "receive fails": lambda: (reads(), Client(request(b"a", True), LookupError())),
}


async def serve_in_vain(application: Any, client: Client, **options: Any) -> None:
    try:
        await serve(application, client, **options)
    except (LookupError, TypeError, ValueError):
        pass


@pytest.mark.parametrize("make", GARBAGE.values(), ids=GARBAGE.keys())
def test_request_leaves_no_garbage(make: Callable[[], tuple[Any, Client]], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "asgiref.wsgi")  # records would keep what was raised

    async def measured() -> None:
        await serve_in_vain(*make(), max_body_size=50)
        with no_garbage():
            for _ in range(3):
                await serve_in_vain(*make(), max_body_size=50)

    asyncio.run(measured())


def test_request_that_streams_slowly_leaves_no_garbage() -> None:
    async def once() -> None:
        client = Client()
        await serve(streams_and_waits(client), client)
        client.on_send = None

    async def measured() -> None:
        await once()
        with no_garbage():
            for _ in range(3):
                await once()

    asyncio.run(measured())


def test_bad_request_leaves_no_garbage(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "asgiref.wsgi")

    async def measured() -> None:
        scope = http(headers=[(b"content-length", b"")])
        await serve(answers(), scope=scope)
        with no_garbage():
            await serve(answers(), scope=scope)

    asyncio.run(measured())


def test_server_keeps_nothing_of_a_request() -> None:
    """Idle threads neither."""

    class Body(list[bytes]):
        pass

    bodies: list[weakref.ref[Any]] = []

    def application(environ: Environ, start_response: Any) -> Body:
        body = Body([b"a"])
        bodies.append(weakref.ref(body))
        start_response("200 OK", [])
        return body

    async def main() -> None:
        await serve(application)

    asyncio.run(main())
    gc.collect()
    assert [None] == [body() for body in bodies]
