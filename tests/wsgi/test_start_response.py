"""``start_response``: the status and the headers, refused values, and replacement by an error handler."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from .helpers import Chunks, Client, Environ, Log, answers, serve


async def test_headers_wait_for_the_first_chunk_that_is_not_empty() -> None:
    """Until then, an error handler may replace them."""

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

    client = Client()
    with pytest.raises(LookupError, match="midway"):
        await serve(application, client)
    assert [True] == raised
    assert (200, b"a", False) == (client.status, client.body, client.complete)
    assert [] == log.records


async def test_start_response_may_be_called_with_the_first_chunk() -> None:
    """Also with keyword arguments."""

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


async def test_hop_by_hop_headers_are_dropped(log: Log) -> None:
    """Only the server sets them. Each name is logged once, for any number of responses."""
    names = ["Connection", "keep-alive", "TE", "Trailer", "Transfer-Encoding", "Upgrade", "Proxy-Authenticate"]
    headers = [("X-One", "1"), *[(name, "dropped") for name in names], ("X-Two", "2")]
    for _ in range(2):
        client = await serve(answers(Chunks([b"a"]), headers=headers))
        assert [(b"x-one", b"1"), (b"x-two", b"2")] == client.headers
    assert [logging.WARNING] * len(names) == [record.levelno for record in log.records]
    assert [name.lower() for name in names] == [
        record.args[1] for record in log.records if isinstance(record.args, tuple)
    ]


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
    with pytest.raises(TypeError, match=r"needs header names of type str.*PEP 3333"):
        await serve(answers([], headers=[(name, "1")]))


@pytest.mark.parametrize("name", ["", "X One", "X-One:", "X\nOne", "X-\xe4", "X\0"])
async def test_bad_header_name(name: str) -> None:
    with pytest.raises(ValueError, match="not a valid name of a response header"):
        await serve(answers([], headers=[(name, "1")]))


@pytest.mark.parametrize("value", [b"1", None, 5, ["1"]])
async def test_header_value_of_another_type(value: Any) -> None:
    with pytest.raises(TypeError, match=r"start_response needs .* header 'X-One', not .*PEP 3333"):
        await serve(answers([], headers=[("X-One", value)]))


@pytest.mark.parametrize("value", ["a\rb", "a\nb", "a\r\nSet-Cookie: b", "a\0b", "\u20ac", "\n"])
async def test_bad_header_value(value: str) -> None:
    with pytest.raises(ValueError, match=r"start_response needs .* header 'X-One', not .*PEP 3333"):
        await serve(answers([], headers=[("X-One", value)]))


@pytest.mark.parametrize("length", ["", "a", "-1", "1.0", "\xb2", " 1"])
async def test_bad_content_length(length: str) -> None:
    with pytest.raises(ValueError, match="needs one number as Content-Length"):
        await serve(answers([], headers=[("Content-Length", length)]))


async def test_content_lengths_that_contradict_each_other() -> None:
    with pytest.raises(ValueError, match="needs one number as Content-Length, not 1 and 2"):
        await serve(answers([b"a"], headers=[("Content-Length", "1"), ("content-length", "2")]))


async def test_content_length_that_is_repeated_is_sent_once() -> None:
    client = await serve(answers([b"a"], headers=[("Content-Length", "1"), ("content-length", "1")]))
    assert ([(b"content-length", b"1")], b"a", True) == (client.headers, client.body, client.complete)
