"""``asgiref.typing``: everyday code of sites that used upstream's package, which must be accepted unchanged.

With upstream 3.13.0, both checkers accept this file, too. It reads each key of a scope and of a received event without
checking that it exists. Nothing is run.
"""

# pyright: strict, reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

import ipaddress
import json
import threading
from collections.abc import Iterable
from typing import Any
from urllib.parse import parse_qs

from asgiref.current_thread_executor import CurrentThreadExecutor
from asgiref.local import Local
from asgiref.typing import (
    ASGI3Application,
    ASGIReceiveCallable,
    ASGIReceiveEvent,
    ASGISendCallable,
    ASGISendEvent,
    HTTPDisconnectEvent,
    HTTPRequestEvent,
    HTTPResponseBodyEvent,
    HTTPResponseStartEvent,
    HTTPResponseTrailersEvent,
    HTTPScope,
    LifespanScope,
    LifespanShutdownCompleteEvent,
    LifespanShutdownEvent,
    LifespanStartupCompleteEvent,
    LifespanStartupEvent,
    LifespanStartupFailedEvent,
    Scope,
    WebSocketAcceptEvent,
    WebSocketCloseEvent,
    WebSocketConnectEvent,
    WebSocketDisconnectEvent,
    WebSocketReceiveEvent,
    WebSocketScope,
    WebSocketSendEvent,
    WWWScope,
)

# Applications


def address(scope: WWWScope) -> str:
    client = scope["client"]
    if client is None:
        return "unknown"
    host, port = client
    return f"{host.lower()}:{port + 0}"


def is_local(scope: HTTPScope) -> bool:
    return scope["client"] is not None and ipaddress.ip_address(scope["client"][0]).is_loopback


def url(scope: WWWScope) -> str:
    server = scope["server"]
    host = "localhost" if server is None else server[0]
    port = None if server is None else server[1]
    query = scope["query_string"].decode("ascii")
    netloc = host if port is None else f"{host}:{port}"
    return scope["scheme"] + "://" + netloc + scope["root_path"] + scope["path"] + ("?" + query if query else "")


def raw_url(scope: HTTPScope) -> bytes:
    return scope["raw_path"] + b"?" + scope["query_string"]


def header(headers: Iterable[tuple[bytes, bytes]], wanted: bytes) -> bytes | None:
    for name, value in headers:
        if name.lower() == wanted:
            return value
    return None


async def read_body(receive: ASGIReceiveCallable) -> bytes:
    body = b""
    more_body = True
    while more_body:
        message = await receive()
        assert message["type"] == "http.request"
        body += message["body"]
        more_body = message["more_body"]
    return body


async def json_application(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
    assert scope["type"] == "http"
    versions = scope["asgi"]
    answer: dict[str, Any] = {
        "asgi": versions["version"],
        "spec": versions["spec_version"].split("."),
        "http": scope["http_version"],
        "method": scope["method"],
        "url": url(scope),
        "client": address(scope),
        "host": (header(scope["headers"], b"host") or b"").decode("latin-1"),
        "query": parse_qs(scope["query_string"]),
        "body": len(await read_body(receive)),
    }
    await send(
        HTTPResponseStartEvent(
            type="http.response.start", status=200, headers=[(b"content-type", b"application/json")], trailers=False
        )
    )
    await send(HTTPResponseBodyEvent(type="http.response.body", body=json.dumps(answer).encode(), more_body=False))


async def trailers(scope: HTTPScope, send: ASGISendCallable) -> None:
    extensions = scope["extensions"]
    if extensions and "http.response.trailers" in extensions:
        details = extensions["http.response.trailers"]
        print(details.get("limit"))
        await send(HTTPResponseTrailersEvent(type="http.response.trailers", headers=[], more_trailers=False))


async def push(scope: HTTPScope, send: ASGISendCallable) -> None:
    if scope["extensions"] is not None and "http.response.push" in scope["extensions"]:
        await send({"type": "http.response.push", "path": "/style.css", "headers": []})


async def echo(scope: WebSocketScope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
    message = await receive()
    assert message["type"] == "websocket.connect"
    subprotocol = next(iter(scope["subprotocols"]), None)
    await send(WebSocketAcceptEvent(type="websocket.accept", subprotocol=subprotocol, headers=[]))
    while True:
        message = await receive()
        if message["type"] == "websocket.receive":
            if message["text"] is not None:
                await send(WebSocketSendEvent(type="websocket.send", text=message["text"].upper(), bytes=None))
            else:
                data: bytes | None = message["bytes"]
                await send(WebSocketSendEvent(type="websocket.send", text=None, bytes=data))
        elif message["type"] == "websocket.disconnect":
            print(message["code"] + 0, (message["reason"] or "").strip())
            break
        else:
            await send(WebSocketCloseEvent(type="websocket.close", code=1002, reason=None))


async def lifespan(scope: LifespanScope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
    while True:
        message = await receive()
        if message["type"] == "lifespan.startup":
            try:
                if "state" in scope:
                    scope["state"]["started"] = True
            except OSError as error:
                await send(LifespanStartupFailedEvent(type="lifespan.startup.failed", message=str(error)))
            else:
                await send(LifespanStartupCompleteEvent(type="lifespan.startup.complete"))
        elif message["type"] == "lifespan.shutdown":
            await send(LifespanShutdownCompleteEvent(type="lifespan.shutdown.complete"))
            return


# Middleware


class ProxyHeaders:
    def __init__(self, app: ASGI3Application, trusted: str) -> None:
        self.app = app
        self.trusted = trusted

    async def __call__(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        if scope["type"] == "http" or scope["type"] == "websocket":
            client = scope["client"]
            if client is not None and client[0] == self.trusted:
                forwarded = header(scope["headers"], b"x-forwarded-for")
                if forwarded is not None:
                    scope["client"] = (forwarded.decode("latin-1"), 0)
                scope["scheme"] = "https"
        await self.app(scope, receive, send)


class Mount:
    def __init__(self, app: ASGI3Application, prefix: str) -> None:
        self.app = app
        self.prefix = prefix

    async def __call__(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        if scope["type"] == "http" and scope["path"].startswith(self.prefix):
            inner = scope.copy()
            inner["root_path"] = scope["root_path"] + self.prefix
            inner["raw_path"] = scope["raw_path"][len(self.prefix) :]
            await self.app(inner, receive, send)


class Limit:
    def __init__(self, app: ASGI3Application, limit: int) -> None:
        self.app = app
        self.limit = limit

    async def __call__(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        received = 0

        async def limited_receive() -> ASGIReceiveEvent:
            nonlocal received
            message = await receive()
            if message["type"] == "http.request":
                received += len(message["body"])
                if received > self.limit:
                    return HTTPDisconnectEvent(type="http.disconnect")
            return message

        async def logging_send(message: ASGISendEvent) -> None:
            if message["type"] == "http.response.start":
                print(message["status"])
            await send(message)

        await self.app(scope, limited_receive, logging_send)


# Servers and their tests


async def disconnect(send: ASGISendCallable) -> None:
    message: ASGISendEvent = HTTPDisconnectEvent(type="http.disconnect")
    await send(message)
    await send({"type": "http.disconnect"})


def http_scope(path: str, client: tuple[str, int] | None) -> HTTPScope:
    extensions: dict[str, dict[object, object]] = {"http.response.trailers": {}}
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.5"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"example.com")],
        "client": client,
        "server": ("127.0.0.1", 80),
        "extensions": extensions,
    }


def websocket_scope(path: str) -> WebSocketScope:
    return WebSocketScope(
        type="websocket",
        asgi={"version": "3.0", "spec_version": "2.3"},
        http_version="1.1",
        scheme="ws",
        path=path,
        raw_path=path.encode(),
        query_string=b"",
        root_path="",
        headers=[],
        client=None,
        server=None,
        subprotocols=["chat"],
        state={},
        extensions=None,
    )


def lifespan_scope() -> LifespanScope:
    return {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": {}}


messages: list[ASGIReceiveEvent] = [
    HTTPRequestEvent(type="http.request", body=b"", more_body=False),
    HTTPDisconnectEvent(type="http.disconnect"),
    WebSocketConnectEvent(type="websocket.connect"),
    WebSocketReceiveEvent(type="websocket.receive", bytes=None, text="hello"),
    WebSocketDisconnectEvent(type="websocket.disconnect", code=1005, reason=None),
    LifespanStartupEvent(type="lifespan.startup"),
    LifespanShutdownEvent(type="lifespan.shutdown"),
]
applications: list[ASGI3Application] = [
    json_application,
    ProxyHeaders(json_application, "127.0.0.1"),
    Mount(Limit(json_application, 1024), "/shop"),
]


# The bridge


def on_that_thread(executor: CurrentThreadExecutor) -> str:
    number: int = executor.submit(threading.get_ident).result()
    text: str = executor.submit(format, number, "x").result()
    return text


current = Local(thread_critical=True)
current.user = None
