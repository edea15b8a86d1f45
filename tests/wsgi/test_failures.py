"""Applications that raise an exception, or break the rules of PEP 3333."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from .helpers import CHUNK, Chunks, Client, Environ, Log, answers, http, serve


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
