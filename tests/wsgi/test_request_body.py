"""``wsgi.input``: reading the request body, and when messages are received."""

from __future__ import annotations

import ast
import asyncio
import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from asgiref.sync import async_to_sync

from ..helpers import Thread
from .helpers import Client, Environ, answers, body_in, http, reads, request, serve


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
    """In every way of reading, and for any number of messages."""
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
    """So a body without a Content-Length can be read while it arrives, as the environ says."""

    def application(environ: Environ, start_response: Any) -> list[bytes]:
        assert environ["wsgi.input_terminated"] is True
        assert "CONTENT_LENGTH" not in environ
        body = environ["wsgi.input"]
        start_response("200 OK", [])
        return [body.read(), body.read(), body.read(1), body.readline(), *body]

    client = await serve(application, Client(*body_in(b"a", b"b")), http(), spool_body=None)
    assert b"ab" == client.body
    assert 2 == client.receives


async def test_body_in_one_message_is_read_without_another() -> None:
    client = await serve(reads(), Client(request(b"whole")))
    assert b"whole" == client.body
    assert 1 == client.receives


async def test_application_starts_with_the_first_message() -> None:
    """The rest of the body may arrive later."""
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
    """So a disconnect is noticed, and a client that sends a lot is slowed down."""
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
    """Reading blocks that loop, as under any WSGI server; the loop continues afterwards."""

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
    """Data that has arrived can be read there.

    For more, the loop would have to wait for itself, so the error says that.
    """

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
