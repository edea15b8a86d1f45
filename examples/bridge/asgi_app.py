"""The asynchronous half: an ASGI app that answers ``/async`` itself and calls Flask for other paths.

``environ_for`` and ``call_wsgi`` are a small WSGI adapter, enough for GET requests.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from asgiref.sync import ThreadSensitiveContext, sync_to_async

from . import flask_app
from .steps import note, request

if TYPE_CHECKING:
    from wsgiref.types import WSGIApplication

__all__ = ["app"]

Message = dict[str, Any]


@dataclass
class Response:
    status: int
    headers: list[tuple[str, str]]
    body: bytes


async def app(
    scope: dict[str, Any], receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
) -> None:
    request.steps = []
    # The synchronous code of each request runs on its own thread.
    async with ThreadSensitiveContext():
        if scope["path"] == "/async":
            response = await view(scope)
        else:
            response = await sync_to_async(call_wsgi)(flask_app.app, environ_for(scope, scope["path"]))
    headers = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in response.headers]
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    await send({"type": "http.response.body", "body": response.body})


async def view(scope: dict[str, Any]) -> Response:
    note("async view")
    inner = await sync_to_async(call_wsgi)(flask_app.app, environ_for(scope, "/flask"))
    note("async view, continues")
    body = json.dumps(request.steps).encode()
    return Response(inner.status, [("content-type", "application/json"), ("content-length", str(len(body)))], body)


def environ_for(scope: dict[str, Any], path: str) -> dict[str, Any]:
    """Return a WSGI environ for a GET request of *path*, with the other values of *scope*."""
    host, port = scope["server"]
    environ: dict[str, Any] = {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": scope.get("root_path", ""),
        "PATH_INFO": path.encode().decode("latin-1"),
        "QUERY_STRING": scope["query_string"].decode("latin-1"),
        "SERVER_NAME": host,
        "SERVER_PORT": str(port),
        "SERVER_PROTOCOL": f"HTTP/{scope['http_version']}",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": scope["scheme"],
        "wsgi.input": io.BytesIO(),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }
    for name, value in scope["headers"]:
        environ["HTTP_" + name.decode("latin-1").upper().replace("-", "_")] = value.decode("latin-1")
    return environ


def call_wsgi(application: WSGIApplication, environ: dict[str, Any]) -> Response:
    """Call a WSGI application on this thread and collect its response."""
    response = Response(0, [], b"")
    written = io.BytesIO()

    def start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[[bytes], object]:
        response.status, response.headers = int(status.split()[0]), headers
        return written.write

    chunks = application(environ, start_response)
    try:
        for chunk in chunks:
            written.write(chunk)
    finally:
        close = getattr(chunks, "close", None)
        if close is not None:
            close()
    response.body = written.getvalue()
    return response
