"""``asgiref.typing``: mistakes in applications and servers that must be refused.

Each line that must be refused has a ``# type: ignore[code]`` for both checkers, and both report superfluous markers:
mypy because it is strict, pyright because of the setting below, although it does not compare codes. Mistakes that mypy
does not see have a marker for pyright only. Nothing is run.
"""

# pyright: strict, reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

from typing import Any

from asgiref.typing import (
    ASGI2Application,
    ASGI3Application,
    ASGIApplication,
    ASGIHTTPReceiveEvent,
    ASGIHTTPSendEvent,
    ASGIReceiveCallable,
    ASGIReceiveEvent,
    ASGISendCallable,
    ASGISendEvent,
    ASGIVersions,
    HTTPScope,
    LifespanScope,
    Scope,
    TLSExtension,
    WebSocketScope,
)


async def events(send: ASGISendCallable) -> None:
    await send({"type": "http.response.start"})  # type: ignore[misc, arg-type]
    await send({"type": "http.response.start", "status": "200"})  # type: ignore[misc, arg-type]
    await send({"type": "http.response.start", "status": 200, "header": []})  # type: ignore[arg-type]
    await send({"type": "http.response.start", "status": 200, "headers": [("a", "b")]})  # type: ignore[misc, arg-type]
    await send({"type": "http.response.start", "status": 200, "headers": {b"a": b"b"}})  # type: ignore[misc, arg-type]
    await send({"type": "http.response.start", "status": 200, "headers": None})  # type: ignore[misc, arg-type]
    await send({"type": "http.response.body", "body": "text"})  # type: ignore[misc, arg-type]
    await send({"type": "http.response.body", "body": None})  # type: ignore[misc, arg-type]
    await send({"type": "http.response.zerocopysend", "file": "/srv/film"})  # type: ignore[typeddict-item]
    await send({"type": "http.response.early_hint", "links": ["</style.css>"]})  # type: ignore[list-item]
    await send({"type": "http.response.trailers"})  # type: ignore[misc, arg-type]
    await send({"type": "websocket.send", "text": b""})  # type: ignore[typeddict-item]
    await send({"type": "websocket.close", "code": None})  # type: ignore[typeddict-item]
    await send({"type": "websocket.http.response.start", "status": 401, "trailers": True})  # type: ignore[typeddict-item]
    await send({"type": "lifespan.startup.failed", "message": None})  # type: ignore[misc, arg-type]
    await send({"type": "http.response.strat", "status": 200})  # type: ignore[misc, arg-type]
    await send({"status": 200})  # type: ignore[arg-type]
    await send("http.response.start")  # type: ignore[arg-type]
    # Received messages cannot be sent.
    await send({"type": "http.request", "body": b""})  # type: ignore[misc, arg-type]
    await send({"type": "websocket.receive", "text": ""})  # type: ignore[typeddict-item]
    await send({"type": "lifespan.startup"})  # type: ignore[misc, arg-type]
    # One event at a time.
    await send()  # type: ignore[call-arg]
    await send({"type": "websocket.close"}, {"type": "websocket.close"})  # type: ignore[call-arg]


async def reading(scope: Scope, receive: ASGIReceiveCallable) -> None:
    print(scope["path"])  # type: ignore[typeddict-item]
    event = await receive()
    print(event["body"])  # type: ignore[typeddict-item]
    if scope["type"] == "http":
        print(scope["subprotocols"])  # type: ignore[typeddict-item]
        print(scope["paht"])  # type: ignore[typeddict-item]
        print(scope["state"])  # pyright: ignore[reportTypedDictNotRequiredAccess]
        scope["path"] = b"/"  # type: ignore[typeddict-item]
        print(scope["client"][0])  # type: ignore[index]
        print("tls" in scope["extensions"])  # type: ignore[operator]
    elif scope["type"] == "websocket":
        print(scope["method"])  # type: ignore[typeddict-item]
    if event["type"] == "websocket.receive":
        print(event["text"].upper())  # type: ignore[union-attr]
    await receive({"type": "http.request"})  # type: ignore[call-arg]


async def receive_sent() -> ASGIReceiveEvent:
    return {"type": "http.response.body"}  # type: ignore[misc, return-value]


async def receive_without_code() -> ASGIReceiveEvent:
    return {"type": "websocket.disconnect", "reason": None}  # type: ignore[return-value]


async def receive_without_body() -> ASGIReceiveEvent:
    return {"type": "http.request", "more_body": False}  # type: ignore[return-value]


def not_of_a_websocket(scope: WebSocketScope) -> None:
    scope["type"] = "http"  # type: ignore[typeddict-item]
    scope["method"] = "GET"  # type: ignore[typeddict-unknown-key]
    scope["raw_path"] = None  # type: ignore[typeddict-item]
    scope["query_string"] = None  # type: ignore[typeddict-item]


def of_another_protocol(event: ASGIReceiveEvent, send_event: ASGISendEvent) -> None:
    request: ASGIHTTPReceiveEvent = event  # type: ignore[assignment]
    response: ASGIHTTPSendEvent = send_event  # type: ignore[assignment]
    print(request, response)


asgi: ASGIVersions = {"version": "3.0", "spec_version": "2.0"}
http: HTTPScope = {  # type: ignore[typeddict-item]  # no query_string
    "type": "http",
    "asgi": asgi,
    "http_version": "1.1",
    "method": "GET",
    "scheme": "http",
    "path": "/",
    "raw_path": b"/",
    "root_path": "",
    "headers": [],
    "client": None,
    "server": None,
    "extensions": None,
}
with_method: LifespanScope = {"type": "lifespan", "asgi": asgi, "method": "GET"}  # type: ignore[typeddict-unknown-key]
versions: LifespanScope = {"type": "lifespan", "asgi": {"version": "3", "spec_version": "2.0"}}  # type: ignore[typeddict-item]
extensions: LifespanScope = {"type": "lifespan", "asgi": asgi, "extensions": None}  # type: ignore[typeddict-item]
state: LifespanScope = {"type": "lifespan", "asgi": asgi, "state": None}  # type: ignore[typeddict-item]
tls: TLSExtension = {"server_cert": None, "tls_version": "1.3", "cipher_suite": None}  # type: ignore[typeddict-item]
no_version: TLSExtension = {"server_cert": None, "cipher_suite": None}  # type: ignore[typeddict-item]


def synchronous(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None: ...
async def two_arguments(scope: Scope, receive: ASGIReceiveCallable) -> None: ...
async def http_only(scope: HTTPScope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None: ...
async def swapped(scope: Scope, send: ASGISendCallable, receive: ASGIReceiveCallable) -> None: ...
async def good(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None: ...


class Old:
    def __init__(self, scope: Scope) -> None: ...

    async def __call__(self, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None: ...


class OldSynchronous:
    def __init__(self, scope: Scope) -> None: ...

    def __call__(self, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None: ...


a: ASGI3Application = synchronous  # type: ignore[assignment]
b: ASGI3Application = two_arguments  # type: ignore[assignment]
c: ASGI3Application = http_only  # type: ignore[assignment]
d: ASGI3Application = swapped  # type: ignore[assignment]
e: ASGI3Application = Old  # type: ignore[assignment]
f: ASGI2Application = OldSynchronous  # type: ignore[assignment]
g: ASGI2Application = good  # type: ignore[assignment]
h: ASGIApplication = synchronous  # type: ignore[assignment]
i: ASGIApplication = "module:application"  # type: ignore[assignment]


async def calls(untyped: dict[str, Any], receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
    application: ASGI3Application = good
    await application({"type": "http"}, receive, send)  # type: ignore[arg-type]
    await application(untyped, receive, send)  # type: ignore[arg-type]
    await application(http, send, receive)  # type: ignore[arg-type]
    await application(http, receive)  # type: ignore[call-arg]
