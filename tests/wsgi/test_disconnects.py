"""Clients that disconnect, and servers whose ``receive`` or ``send`` fails."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from asgiref._wsgi.connection import EMPTY_MESSAGES, Connection

from ..helpers import wait_for
from .helpers import (
    CHUNK,
    DISCONNECT,
    Chunks,
    Client,
    Environ,
    Leaving,
    Log,
    Message,
    answers,
    in_thread,
    reads,
    request,
    serve,
    stop_after,
    streamed,
)


async def test_disconnect_as_the_first_message() -> None:
    """The application is not called."""
    client = await serve(answers(Chunks([AssertionError()])), Client(DISCONNECT))
    assert [] == client.sent


async def test_disconnect_stops_the_iteration(log: Log) -> None:
    """close() is called, too; none of that is an error."""
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
    """Empty chunks are not sent, so no send can show that the client has disconnected."""
    body = Chunks(itertools.repeat(b""))
    client = await serve(answers(body), Client(request(), DISCONNECT))
    assert ([], 1) == (client.sent, body.closes)
    assert [] == log.records


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
    """The application has made this chunk already; no further one is requested."""
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
        "the request body can no longer be read, because the request is over; read it earlier",
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
    """An error handler can make such a cycle; the check of the causes ends nevertheless."""

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
    """Nothing spins or hangs; a body is read only as far as the application requests it."""

    class Eager(Client):
        async def receive(self) -> Message:
            self.receives += 1
            return message

    body = Chunks([b"a", b"b"])
    application = (
        reads(lambda body: body.read(10)) if kind == "read" else answers(body if kind == "stream" else [b"ab"])
    )
    client = await serve(application, Eager(), streamed())
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
    """The error is not mistaken for the end of the loop."""
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
    """The error is raised by the adapter, and the application is stopped."""
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
    """The error of the next chunk is not the one that is raised."""
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
