"""Requests that are answered with 400 or 413 instead of the application's response."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from ..helpers import wait_for
from .helpers import (
    Chunks,
    Client,
    Environ,
    Log,
    Message,
    answers,
    body_in,
    http,
    reads,
    refused,
    request,
    serve,
    stop_after,
)


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
    """The request is answered with 400, and logged; data of the client is only an argument of the message."""
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
    for _ in range(2):
        assert 200 == (await serve(answers([]), scope=http(headers=headers))).status
    assert ["x_client_text", "proxy"] == [record.args[1] for record in log.records if isinstance(record.args, tuple)]
    assert "x_client_text" not in log.records[0].msg


async def test_body_that_announces_to_be_too_large(log: Log) -> None:
    """None of its body is received."""
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
    """Even if the application answers."""

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
    """A response that has started is not replaced."""
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

    client = Client(*body_in(b"a", b"a" * 10), on_send=note)
    with contextlib.nullcontext() if catches else pytest.raises(OSError, match="larger than 10 bytes"):
        await serve(application, client, max_body_size=10)
    assert 200 == client.status
    assert ((b"begun, ended", True) if catches else (b"begun", False)) == (client.body, client.complete)
    assert [] == log.records


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
