"""Responses that are sent while the application makes more, slow clients, and ``close()``."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from asgiref._wsgi.connection import Connection
from asgiref._wsgi.response import QUEUE_LIMIT, Response
from asgiref.testing import ApplicationCommunicator
from asgiref.wsgi import WsgiToAsgi

from ..helpers import LIMIT, wait_for
from .helpers import (
    CHUNK,
    DISCONNECT,
    Chunks,
    Client,
    Environ,
    Log,
    Message,
    answers,
    on_loop,
    request,
    scope_with,
    serve,
    serve_beside,
    streamed,
)


@pytest.mark.parametrize("chunks", [(), (b"",), (b"a", b"", b"b"), (b"", b"a"), (CHUNK,) * 50])
async def test_other_iterables_stream(chunks: tuple[bytes, ...]) -> None:
    """Their length is not known in advance."""
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


async def test_slow_client_holds_the_application_back(held_back: asyncio.Event) -> None:
    """Besides the chunk that is being sent, as much may be queued as the limit says."""
    client, body = Client(), Chunks([CHUNK] * 50)
    client.may_send.clear()
    task = asyncio.create_task(serve_beside(answers(body), client))
    await on_loop(held_back)
    assert body.taken <= 2 * (QUEUE_LIMIT // len(CHUNK) + 1)
    client.may_send.set()
    await task
    assert (50 * len(CHUNK), 50, True) == (len(client.body), body.taken, client.complete)


async def test_news_come_again_and_again() -> None:
    """Nothing waits for the event if it will not come."""
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


async def test_under_the_communicator() -> None:
    """A response that streams while the test sends the request."""

    def application(environ: Environ, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        yield from environ["wsgi.input"]

    communicator = ApplicationCommunicator(WsgiToAsgi(application), streamed())
    await communicator.send_input(request(b"a\n", True))
    assert 200 == (await communicator.receive_output(LIMIT))["status"]
    assert b"a\n" == (await communicator.receive_output(LIMIT))["body"]
    await communicator.send_input(request(b"b\n"))
    rest = b""
    while (message := await communicator.receive_output(LIMIT))["more_body"]:
        rest += message["body"]
    assert b"b\n" == rest + message["body"]
    await communicator.wait(LIMIT)


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
    """If the client wants no more of it, its finally block runs."""
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


async def test_write_that_is_overtaken_by_the_end_of_the_request() -> None:
    """1. A thread appends a chunk. 2. The request ends. 3. The loop is woken for the chunk, and sends nothing."""
    client = Client()
    connection = Connection(client.receive, client.send)
    response = Response(connection, scope_with())
    response.start("200 OK", [])
    response.write(b"a")
    connection.lose()
    response.deliver()
    await asyncio.sleep(0)
    assert ([], set()) == (client.sent, connection.tasks)
