"""After a request, nothing remains: no garbage, and no reference in a thread or the server."""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ..helpers import no_garbage, wait_for
from .helpers import CHUNK, DISCONNECT, Client, Environ, answers, body_in, http, reads, request, serve, stop_after


def streams_and_waits(client: Client) -> Any:
    """Stream a chunk, and another one after it was sent, so that a message is being received meanwhile."""
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


def exits(environ: Environ, start_response: Any) -> list[bytes]:
    start_response("200 OK", [])(b"a")
    raise SystemExit


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


def collected(client: Client) -> Client:
    """Let the body of *client* be collected before the application is called."""
    client.scope = http()
    return client


GARBAGE: dict[str, Callable[[], tuple[Any, Client]]] = {
    "whole": lambda: (answers([b"a"]), Client()),
    "reads": lambda: (reads(), Client(*body_in(b"a", b"b"))),
    "does not read": lambda: (answers([b"a"]), Client(*body_in(b"a", b"b"))),
    "too large": lambda: (reads(), Client(*body_in(b"a", CHUNK * 30))),
    "leaves": lambda: (reads(), Client(request(b"a", True), DISCONNECT)),
    "collected in memory": lambda: (reads(), collected(Client(*body_in(b"a", b"b")))),
    "collected in a file": lambda: (reads(), collected(Client(*body_in(*[CHUNK] * 20)))),
    "collected, too large": lambda: (reads(), collected(Client(*[request(CHUNK, True)] * 40))),
    "collected, leaves": lambda: (reads(), collected(Client(*[request(CHUNK, True)] * 20, DISCONNECT))),
    "exits": lambda: (exits, Client()),
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
    except (LookupError, RuntimeError, TypeError, ValueError):
        pass


@pytest.mark.parametrize("make", GARBAGE.values(), ids=GARBAGE.keys())
def test_request_leaves_no_garbage(make: Callable[[], tuple[Any, Client]], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "asgiref.wsgi")  # records would keep the exceptions

    async def measured() -> None:
        await serve_in_vain(*make(), max_body_size=30 * len(CHUNK))
        with no_garbage():
            for _ in range(3):
                await serve_in_vain(*make(), max_body_size=30 * len(CHUNK))

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
    """Nor do idle threads."""

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
