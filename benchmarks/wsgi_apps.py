"""The applications for ``benchmarks.wsgi``: a WSGI application, plain or adapted, or its ASGI counterpart.

The environment variable ``BENCHMARK_APPLICATION`` has an adapter (or ``WSGI``, or ``ASGI`` for
the counterpart) and the name of the application. So a server imports only what it needs.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

    Receive = Callable[[], Awaitable[Any]]
    Send = Callable[[Any], Awaitable[None]]
    ASGIApplication = Callable[[Any, Receive, Send], Awaitable[None]]

HELLO = b"Hello, world!\n"
PAUSE = 0.02  # seconds
PIECE = 64 * 1024


def hello(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(HELLO)))])
    return [HELLO]


def blocking(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    time.sleep(PAUSE)
    return hello(environ, start_response)


def chunks(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    chunk = b"x" * 4096
    for _ in range(256):
        yield chunk


def upload(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    size = 0
    while piece := environ["wsgi.input"].read(PIECE):
        size += len(piece)
    body = b"%d\n" % size
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


def download(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Stream as many bytes as the query string says."""
    start_response("200 OK", [("Content-Type", "application/octet-stream")])
    for _ in range(int(environ["QUERY_STRING"]) // PIECE):
        yield bytes(PIECE)


def flask() -> WSGIApplication:
    from flask import Flask

    application = Flask("hello")
    application.add_url_rule("/", view_func=HELLO.decode)
    return application


async def hello_async(receive: Receive, send: Send) -> None:
    await answer(send, HELLO)


async def blocking_async(receive: Receive, send: Send) -> None:
    await asyncio.sleep(PAUSE)
    await answer(send, HELLO)


async def chunks_async(receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    chunk = b"x" * 4096
    for _ in range(256):
        await send({"type": "http.response.body", "body": chunk, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def upload_async(receive: Receive, send: Send) -> None:
    size, more = 0, True
    while more:
        message = await receive()
        size += len(message.get("body", b""))
        more = message.get("more_body", False)
    await answer(send, b"%d\n" % size)


async def answer(send: Send, body: bytes) -> None:
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def asgi(handle: Callable[[Receive, Send], Awaitable[None]]) -> ASGIApplication:
    async def application(scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            for step in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{step}.complete"})
        else:
            await handle(receive, send)

    return application


WSGI: dict[str, WSGIApplication] = {
    "hello": hello,
    "blocking": blocking,
    "chunks": chunks,
    "upload": upload,
    "download": download,
}
ASGI = {
    "hello": hello_async,
    "flask": hello_async,
    "blocking": blocking_async,
    "chunks": chunks_async,
    "upload": upload_async,
}


def adapted(adapter: str, name: str) -> Any:
    if adapter == "ASGI":
        return asgi(ASGI[name])
    application = flask() if name == "flask" else WSGI[name]
    if adapter == "WsgiToAsgi":
        from asgiref.wsgi import WsgiToAsgi

        return WsgiToAsgi(application)
    if adapter == "a2wsgi":
        return importlib.import_module("a2wsgi").WSGIMiddleware(application)
    return application


application = adapted(*os.environ["BENCHMARK_APPLICATION"].split())
