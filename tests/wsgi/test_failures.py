"""Applications that raise an exception, or violate PEP 3333."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from asgiref.sync import async_to_sync
from asgiref.wsgi import WsgiToAsgi

from ..helpers import wait_for
from .helpers import (
    CHUNK,
    Chunks,
    Client,
    Environ,
    Leaving,
    Log,
    answers,
    http,
    on_loop,
    run,
    serve,
    serve_beside,
    stop_after,
)


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
    """The adapter raises it and does not log it. Earlier chunks are sent, and the response does not look complete."""
    body, client = Chunks([chunk, LookupError("late")]), Client()
    with pytest.raises(LookupError, match="late"):
        await serve(answers(body), client)
    assert (chunk, False) == (client.body, client.complete)
    assert 1 == body.closes
    assert [] == log.records


async def test_exception_after_the_headers_of_a_response_without_a_body(log: Log) -> None:
    """Nothing of that response has been sent, so the server can answer."""

    def application(environ: Environ, start_response: Any) -> list[bytes]:
        start_response("200 OK", [])(b"a")
        raise LookupError("late")

    client = Client()
    with pytest.raises(LookupError, match="late"):
        await serve(application, client, http(method="HEAD"))
    assert [] == client.sent
    assert [] == log.records


async def test_exception_after_a_slow_client_was_given_everything(held_back: asyncio.Event) -> None:
    """The exception is raised after the queued chunks have been sent."""
    client, body = Client(), Chunks([CHUNK] * 10 + [LookupError("late")])
    client.may_send.clear()
    task = asyncio.create_task(serve_beside(answers(body), client))
    await on_loop(held_back)
    client.may_send.set()
    with pytest.raises(LookupError, match="late"):
        await task
    assert (CHUNK * 10, False) == (client.body, client.complete)


async def test_exception_after_the_whole_body(log: Log) -> None:
    """By its length, the response is complete, and stays so; the server gets the exception nevertheless."""

    def application(environ: Environ, start_response: Any) -> list[bytes]:
        start_response("200 OK", [("Content-Length", "2")])(b"ab")
        raise LookupError("late")

    client = Client()
    with pytest.raises(LookupError, match="late"):
        await serve(application, client)
    assert (b"ab", True) == (client.body, client.complete)
    assert [] == log.records


def starts_again(environ: Environ, start_response: Any) -> Iterator[bytes]:
    start_response("200 OK", [])
    yield b"a"
    start_response("500 Internal Server Error", [])
    yield b"b"


def writes_text(environ: Environ, start_response: Any) -> list[bytes]:
    write = start_response("200 OK", [])
    write(b"a")
    write("text")
    return []


@pytest.mark.parametrize(
    ("application", "error", "text"),
    [
        (starts_again, RuntimeError, "a second time"),
        (writes_text, TypeError, "produced str as part"),
        (answers(Chunks([b"a", None])), TypeError, "produced NoneType as part"),
    ],
)
async def test_rule_that_is_broken_after_the_headers(
    application: Any, error: type[Exception], text: str, log: Log
) -> None:
    client = Client()
    with pytest.raises(error, match=text) as caught:
        await serve(application, client)
    assert "PEP 3333" in str(caught.value)
    assert (b"a", False) == (client.body, client.complete)
    assert [] == log.records


async def test_exception_of_the_application_while_send_fails() -> None:
    """The error of the server is raised, with that of the application as its context: neither is lost."""
    client = Leaving(ValueError)

    def application(environ: Environ, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        yield b"a"
        client.resumed.set()
        wait_for(client.left)
        raise LookupError("late")

    with pytest.raises(ValueError, match="stopped") as caught:
        await serve(application, client)
    assert "LookupError('late')" == repr(caught.value.__context__)


async def test_exception_of_the_application_before_the_rest_fails_to_be_sent() -> None:
    """As above, but the end of the queue cannot be sent."""

    def application(environ: Environ, start_response: Any) -> list[bytes]:
        start_response("200 OK", [])(b"a")
        raise LookupError("late")

    with pytest.raises(ValueError, match="stopped") as caught:
        await serve(application, Client(on_send=stop_after(1, ValueError)))
    assert "LookupError('late')" == repr(caught.value.__context__)


# Exceptions that would end more than the request:


class PanicException(BaseException):
    """A class like that of exceptions from Rust code."""


def raises(error: BaseException, *chunks: bytes) -> Any:
    """Return an application that raises *error* after these *chunks*."""

    def application(environ: Environ, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        yield from chunks
        raise error

    return application


@pytest.mark.parametrize("chunks", [(), (b"a",)])
@pytest.mark.parametrize(
    "error",
    [SystemExit(1), GeneratorExit(), KeyboardInterrupt(), asyncio.CancelledError(), PanicException()],
    ids=lambda error: type(error).__name__,
)
async def test_exception_that_could_end_the_server(error: BaseException, chunks: tuple[bytes, ...]) -> None:
    """The exception becomes the cause of a RuntimeError, which the server handles like any other."""
    client = Client()
    with pytest.raises(RuntimeError, match=type(error).__name__) as caught:
        await serve(raises(error, *chunks), client)
    assert caught.value.__cause__ is error
    assert ([] if chunks == () else [200]) == [message["status"] for message in client.sent[:1]]
    assert (b"".join(chunks), False) == (client.body, client.complete)


@pytest.mark.parametrize("error", [SystemExit(1), GeneratorExit(), KeyboardInterrupt()], ids=repr)
async def test_exception_of_close_that_could_end_the_server(error: BaseException, log: Log) -> None:
    """Like other exceptions of close(), it is logged."""

    class Body(Chunks):
        def close(self) -> None:
            raise error

    client = await serve(answers(Body([b"a"])))
    assert (b"a", True) == (client.body, client.complete)
    assert log.only.exc_info is not None
    assert log.only.exc_info[1] is error


async def test_executor_that_gives_a_request_up() -> None:
    """The request fails; it does not look cancelled, because servers do not log cancelled requests."""
    executor = ThreadPoolExecutor(1)
    go_on, client = threading.Event(), Client()
    executor.submit(wait_for, go_on)
    task = asyncio.create_task(serve_beside(answers([b"a"]), client, executor=executor))
    await on_loop(client.received)
    executor.shutdown(wait=False, cancel_futures=True)
    go_on.set()
    with pytest.raises(RuntimeError, match="its request was not cancelled"):
        await task


def below_the_main_thread(application: Any) -> Client:
    """Serve below ``async_to_sync``, so that the application runs on this thread."""
    assert threading.current_thread() is threading.main_thread()
    client = Client()
    async_to_sync(run)(WsgiToAsgi(application), client)
    return client


@pytest.mark.parametrize("error", [SystemExit(1), GeneratorExit()], ids=repr)
def test_exit_of_an_application_on_the_main_thread(error: BaseException) -> None:
    with pytest.raises(RuntimeError, match="could end the server") as caught:
        below_the_main_thread(raises(error))
    assert caught.value.__cause__ is error


def test_interrupt_on_the_main_thread() -> None:
    """KeyboardInterrupt is a Ctrl-C, and is raised unchanged."""
    with pytest.raises(KeyboardInterrupt):
        below_the_main_thread(raises(KeyboardInterrupt()))


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="has no signals of one's own")
@pytest.mark.parametrize("where", ["application", "close"])
def test_exit_of_a_signal_handler_on_the_main_thread(where: str) -> None:
    """The exit ends the program, as a handler for SIGTERM intends; the application did not raise it."""

    def leave(number: int, frame: Any) -> None:
        sys.exit(3)

    class Body(Chunks):
        def close(self) -> None:
            super().close()
            if where == "close":
                signal.raise_signal(signal.SIGUSR1)

    def application(environ: Environ, start_response: Any) -> Any:
        start_response("200 OK", [])
        if where == "application":
            signal.raise_signal(signal.SIGUSR1)
        return Body([b"a"])

    before = signal.signal(signal.SIGUSR1, leave)
    try:
        with pytest.raises(SystemExit) as caught:
            below_the_main_thread(application)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert 3 == caught.value.code


# Rules:


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
        (answers(["text"]), TypeError, "produced str as part"),
        (answers([b"a", None]), TypeError, "produced NoneType as part"),
        (answers([bytearray(b"a")]), TypeError, "produced bytearray as part"),
        (answers(Chunks(["text"])), TypeError, "produced str as part"),
    ],
)
async def test_application_that_breaks_the_rules(application: Any, error: type[Exception], text: str) -> None:
    """The error names the rule, and the server answers."""
    client = Client()
    with pytest.raises(error, match=text) as caught:
        await serve(application, client)
    assert "PEP 3333" in str(caught.value)
    assert [] == client.sent
