"""The messages of a response: its length, its end, and responses without a body."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import Any
from wsgiref.validate import validator

import pytest

from asgiref._wsgi.connection import Connection
from asgiref._wsgi.response import Response

from ..helpers import LIMIT, wait_for
from .helpers import DISCONNECT, Chunks, Client, Environ, Log, Message, answers, body_in, http, on_loop, serve


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
    """It is the length of the body that is not sent. Only a 204 response must not have one."""
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


async def test_response_is_complete_with_the_last_byte_of_its_length(log: Log) -> None:
    """The last byte is sent while close() is still running, and no further item is requested."""
    complete = threading.Event()

    def note(message: Message) -> None:
        if message.get("more_body") is False:
            complete.set()

    class Body(Chunks):
        def close(self) -> None:
            wait_for(complete)
            super().close()

    body = Body([b"01", b"23", AssertionError("asked for more")])
    client = await serve(answers(body, headers=[("Content-Length", "4")]), Client(on_send=note))
    assert (b"0123", True) == (client.body, client.complete)
    assert (2, 1) == (body.taken, body.closes)
    assert 1 == [message.get("more_body") for message in client.sent].count(False)
    assert [] == log.records


async def test_last_byte_is_put_while_the_rest_is_being_sent() -> None:
    """1. The loop takes a chunk. 2. The thread appends the last one. 3. The loop has not taken the end."""
    client = Client()
    connection = Connection(client.receive, client.send)
    response = Response(connection, client.scope)
    take_queue = response._take_queue

    def take_queue_and_be_overtaken() -> bytes:
        body = take_queue()
        if body == b"01":
            response.write(b"23")
        return body

    response._take_queue = take_queue_and_be_overtaken  # type: ignore[method-assign]
    response.start("200 OK", [("Content-Length", "4")])
    response.write(b"01")
    client.inputs.get_nowait()
    await on_loop(client.waiting)
    await asyncio.wait_for(response.finish(), LIMIT)
    assert [(b"01", True), (b"23", False)] == [(message["body"], message["more_body"]) for message in client.sent[1:]]
    connection.lose()
    await connection.end_tasks()


@pytest.mark.parametrize("chunks", [(b"",), (b"a",)])
async def test_response_of_length_zero_is_complete_with_the_first_chunk(chunks: tuple[bytes, ...]) -> None:
    """One chunk is requested, because start_response may be called with it."""
    body = Chunks([*chunks, AssertionError("asked for more")])
    client = await serve(answers(body, headers=[("Content-Length", "0")]))
    assert ([(b"content-length", b"0")], b"", True) == (client.headers, client.body, client.complete)
    assert (1, 1) == (body.taken, body.closes)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_written_data_makes_the_response_complete(method: str) -> None:
    """The iterable is closed, and no item is requested."""
    body = Chunks([AssertionError("asked for more")])

    def application(environ: Environ, start_response: Any) -> Chunks:
        start_response("200 OK", [("Content-Length", "4")])(b"0123")
        return body

    client = await serve(application, scope=http(method=method))
    assert (b"0123" if method == "GET" else b"", True) == (client.body, client.complete)
    assert (0, 1) == (body.taken, body.closes)


async def test_data_beyond_the_length_after_the_server_has_said_that_the_client_is_gone(log: Log) -> None:
    """Servers report a disconnect after a complete response. An application that writes without end gets the error."""
    client = Client()

    def leave(message: Message) -> None:
        if message.get("more_body") is False:
            client.inputs.put_nowait(DISCONNECT)

    def application(environ: Environ, start_response: Any) -> list[bytes]:
        write = start_response("200 OK", [("Content-Length", "4")])
        while True:
            write(b"0123")

    client.on_send = leave
    await serve(application, client)
    assert (b"0123", True) == (client.body, client.complete)
    assert "longer" in log.only.getMessage()


async def test_exact_length_in_chunks(log: Log) -> None:
    client = await serve(answers(Chunks([b"abc", b"def"]), headers=[("Content-Length", "6")]))
    assert (b"abcdef", True) == (client.body, client.complete)
    assert [] == log.records


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
