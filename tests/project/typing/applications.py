"""``asgiref.typing``: applications, middleware and servers that must be accepted.

``assert_type`` fixes the types. Nothing is run; the directory has no ``__init__.py``, or it could be mistaken for the
standard library's ``typing``.
"""

# pyright: strict, reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import IO, Any, assert_never, assert_type, cast

from asgiref.compatibility import double_to_single_callable, guarantee_single_callable
from asgiref.testing import ApplicationCommunicator
from asgiref.typing import (
    ASGI2Application,
    ASGI2Protocol,
    ASGI3Application,
    ASGIApplication,
    ASGIHTTPReceiveEvent,
    ASGIHTTPSendEvent,
    ASGILifespanReceiveEvent,
    ASGILifespanSendEvent,
    ASGIReceiveCallable,
    ASGIReceiveEvent,
    ASGISendCallable,
    ASGISendEvent,
    ASGIVersions,
    ASGIWebSocketReceiveEvent,
    ASGIWebSocketSendEvent,
    HTTPDisconnectEvent,
    HTTPRequestEvent,
    HTTPResponseBodyEvent,
    HTTPResponseStartEvent,
    HTTPScope,
    LifespanScope,
    LifespanStartupFailedEvent,
    LifespanState,
    Scope,
    TLSExtension,
    WebSocketCloseEvent,
    WebSocketReceiveEvent,
    WebSocketScope,
    WebSocketSendEvent,
    WWWScope,
)


async def http(scope: HTTPScope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
    body = b""
    while True:
        event = await receive()
        if event["type"] == "http.disconnect":
            return
        assert event["type"] == "http.request"
        assert_type(event, HTTPRequestEvent)
        body += event.get("body", b"")
        if not event.get("more_body", False):
            break
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": body, "more_body": True})
    await send({"type": "http.response.body"})


async def websocket(scope: WebSocketScope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
    assert (await receive())["type"] == "websocket.connect"
    subprotocols = list(scope.get("subprotocols", []))
    assert_type(subprotocols, list[str])
    await send({"type": "websocket.accept", "subprotocol": subprotocols[0] if subprotocols else None})
    while True:
        event = await receive()
        if event["type"] == "websocket.receive":
            text = event.get("text")
            assert_type(text, str | None)
            if text is not None:
                await send({"type": "websocket.send", "text": text})
            else:
                await send({"type": "websocket.send", "bytes": event.get("bytes"), "text": None})
        elif event["type"] == "websocket.disconnect":
            assert_type(event["code"], int)
            assert_type(event.get("reason"), str | None)
            return
        else:
            await send({"type": "websocket.close", "code": 1002, "reason": None})


async def lifespan(scope: LifespanScope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
    while True:
        event = await receive()
        if event["type"] == "lifespan.startup":
            if "state" in scope:
                scope["state"]["users"] = ["Ada"]
                await send({"type": "lifespan.startup.complete"})
            else:
                await send({"type": "lifespan.startup.failed", "message": "no state"})
        elif event["type"] == "lifespan.shutdown":
            await send({"type": "lifespan.shutdown.complete"})
            return


async def application(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
    if scope["type"] == "http":
        await http(scope, receive, send)
    elif scope["type"] == "websocket":
        await websocket(scope, receive, send)
    elif scope["type"] == "lifespan":
        await lifespan(scope, receive, send)
    else:
        assert_never(scope)


async def extensions(scope: Scope, send: ASGISendCallable, file: IO[bytes]) -> None:
    assert scope["type"] == "http"
    offered = scope["extensions"] or {}
    if "http.response.debug" in offered:
        await send({"type": "http.response.debug", "info": {"template": "index.html"}})
    await send({"type": "http.response.start", "status": 200, "trailers": "http.response.trailers" in offered})
    if "http.response.early_hint" in offered:
        await send({"type": "http.response.early_hint", "links": [b"</style.css>; rel=preload"]})
    if "http.response.push" in offered:
        await send({"type": "http.response.push", "path": "/style.css", "headers": []})
    if "http.response.pathsend" in offered:
        await send({"type": "http.response.pathsend", "path": "/srv/film"})
    elif "http.response.zerocopysend" in offered:
        await send({"type": "http.response.zerocopysend", "file": file, "offset": 0, "more_body": True})
        await send({"type": "http.response.zerocopysend", "file": file, "count": 10})
    if "http.response.trailers" in offered:
        await send({"type": "http.response.trailers", "headers": [(b"digest", b"0")], "more_trailers": False})
    if "tls" in offered:
        tls: TLSExtension = offered["tls"]
        assert_type(tls["tls_version"], int | None)
        assert_type(list(tls.get("client_cert_chain", ())), list[str])


async def denial(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
    if "websocket.http.response" in (scope.get("extensions") or {}):
        await send({"type": "websocket.http.response.start", "status": 401})
        await send({"type": "websocket.http.response.body", "body": b"who are you?"})


def reading(scope: WWWScope, plain: HTTPScope) -> None:
    assert_type(scope["path"], str)
    assert_type(scope["asgi"], ASGIVersions)
    assert_type(scope["asgi"]["spec_version"], str)
    assert_type(plain["query_string"], bytes)
    assert_type(scope["query_string"], bytes)
    assert_type(scope["raw_path"], bytes)
    assert_type(scope["root_path"], str)
    assert_type(scope["client"], tuple[str, int] | None)
    assert_type(scope["server"], tuple[str, int | None] | None)
    assert_type(scope.get("state"), LifespanState | None)
    # For servers that may not send all keys.
    assert_type(scope.get("root_path", ""), str)
    assert_type(scope.get("client"), tuple[str, int] | None)
    assert_type(dict(scope["headers"]), dict[bytes, bytes])
    for name, value in scope["headers"]:
        assert_type(name + value, bytes)


class Middleware:
    """Changes a copy of the scope, and the sent messages."""

    def __init__(self, inner: ASGI3Application) -> None:
        self.inner = inner

    async def __call__(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        if scope["type"] != "http":
            return await self.inner(scope, receive, send)
        scope = scope.copy()
        scope["root_path"] = "/shop"

        async def send_with_header(event: ASGISendEvent) -> None:
            if event["type"] == "http.response.start":
                event = event.copy()
                event["headers"] = [*event.get("headers", []), (b"x-served-by", b"shop")]
            await send(event)

        async def logged_receive() -> ASGIReceiveEvent:
            return await receive()

        return await self.inner(scope, logged_receive, send_with_header)


def middleware(inner: ASGI3Application) -> ASGI3Application:
    async def wrapped(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        await inner(scope, receive, send)

    return wrapped


class Old:
    """An application of ASGI 2."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope

    async def __call__(self, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        await send({"type": "http.response.start", "status": 204})


def plain_function(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> Awaitable[None]:
    return application(scope, receive, send)


single: list[ASGI3Application] = [application, middleware(application), Middleware(application), plain_function]
double: list[ASGI2Application] = [Old]
either: list[ASGIApplication] = [application, Middleware(application), Old]
instance: Callable[[Scope], ASGI2Protocol] = Old
guaranteed: list[ASGI3Application] = [guarantee_single_callable(any_) for any_ in either]
converted: ASGI3Application = double_to_single_callable(Old)


async def serve(application: ASGI3Application) -> None:
    """A server may leave out the state, and send unknown values as None or empty."""
    least: HTTPScope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": "/",
        "raw_path": b"/",
        "query_string": b"",
        "root_path": "",
        "headers": [],
        "client": None,
        "server": None,
        "extensions": None,
    }
    most: HTTPScope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.5"},
        "http_version": "2",
        "method": "GET",
        "scheme": "https",
        "path": "/café",
        "raw_path": b"/caf%C3%A9",
        "query_string": b"",
        "root_path": "",
        "headers": ((b"host", b"example.com"),),
        "client": None,
        "server": ("/run/socket", None),
        "state": {"users": []},
        "extensions": {"http.response.trailers": {}, "tls": encrypted},
    }
    socket: WebSocketScope = {
        "type": "websocket",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "scheme": "ws",
        "path": "/",
        "raw_path": b"/",
        "query_string": b"",
        "root_path": "",
        "headers": [],
        "client": None,
        "server": None,
        "subprotocols": [],
        "extensions": {},
    }
    event_loop: LifespanScope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": {}}

    async def receive() -> ASGIReceiveEvent:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(event: ASGISendEvent) -> None:
        match event["type"]:
            case "http.response.start":
                assert_type(event["status"], int)
                assert_type(event.get("trailers", False), bool)
            case "http.response.zerocopysend":
                assert_type(event["file"].fileno(), int)
            case _:
                pass

    scopes: list[Scope] = [least, most, socket, event_loop]
    for scope in scopes:
        await application(scope, receive, send)
    asyncio.create_task(Old(least)(receive, send)).cancel()
    # Functions that take any application take these.
    await ApplicationCommunicator(application, least).send_input(HTTPDisconnectEvent(type="http.disconnect"))
    assert_type(ApplicationCommunicator(application, {"type": "chat"}).scope, Any)


encrypted: TLSExtension = {"server_cert": None, "tls_version": 0x0304, "cipher_suite": None}

# The classes can be called.
received: list[ASGIReceiveEvent] = [
    HTTPRequestEvent(type="http.request", body=b"", more_body=False),
    HTTPDisconnectEvent(type="http.disconnect"),
    WebSocketReceiveEvent(type="websocket.receive", bytes=b"", text=None),
]
sent: list[ASGISendEvent] = [
    HTTPResponseStartEvent(type="http.response.start", status=200, headers=[], trailers=False),
    HTTPResponseBodyEvent(type="http.response.body", body=b"", more_body=False),
    WebSocketSendEvent(type="websocket.send", text=""),
    WebSocketCloseEvent(type="websocket.close"),
    LifespanStartupFailedEvent(type="lifespan.startup.failed"),
]


def by_protocol(
    received: ASGIHTTPReceiveEvent | ASGIWebSocketReceiveEvent | ASGILifespanReceiveEvent,
    sent: ASGIHTTPSendEvent | ASGIWebSocketSendEvent | ASGILifespanSendEvent,
) -> tuple[ASGIReceiveEvent, ASGISendEvent]:
    return received, sent


def other_way_round(
    received: ASGIReceiveEvent, sent: ASGISendEvent
) -> tuple[
    ASGIHTTPReceiveEvent | ASGIWebSocketReceiveEvent | ASGILifespanReceiveEvent,
    ASGIHTTPSendEvent | ASGIWebSocketSendEvent | ASGILifespanSendEvent,
]:
    return received, sent


# An event that is not part of ASGI, or comes from untyped code, needs a cast.
async def own_event(send: ASGISendCallable) -> None:
    await send(cast(ASGISendEvent, {"type": "mychat.message"}))
