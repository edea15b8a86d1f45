"""The messages that a response becomes: its length, its end, and responses that have no body."""

from __future__ import annotations

import logging
from typing import Any
from wsgiref.validate import validator

import pytest

from .helpers import Chunks, Client, Environ, Log, answers, body_in, http, serve


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
