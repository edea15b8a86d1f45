"""``asgiref.typing`` at run time: the names, and the keys of each type compared with the specification.

The directory ``typing`` has the files for type checkers.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Literal, TypedDict, cast

import pytest

from asgiref import typing as types

Headers = Iterable[tuple[bytes, bytes]]
Address = tuple[str, int] | None
ServerAddress = tuple[str, int | None] | None

# A question mark means: may be missing. For received messages as in upstream 3.13.0, by ``__required_keys__`` and
# ``get_type_hints``; for sent ones as in the specification.
SCOPES: dict[str, dict[str, Any]] = {
    "HTTPScope": {
        "type": Literal["http"],
        "asgi": types.ASGIVersions,
        "http_version": str,
        "method": str,
        "scheme": str,
        "path": str,
        "raw_path": bytes,
        "query_string": bytes,
        "root_path": str,
        "headers": Headers,
        "client": Address,
        "server": ServerAddress,
        "state?": dict[str, Any],
        "extensions": dict[str, Any] | None,
    },
    "WebSocketScope": {
        "type": Literal["websocket"],
        "asgi": types.ASGIVersions,
        "http_version": str,
        "scheme": str,
        "path": str,
        "raw_path": bytes,
        "query_string": bytes,
        "root_path": str,
        "headers": Headers,
        "client": Address,
        "server": ServerAddress,
        "subprotocols": Iterable[str],
        "state?": dict[str, Any],
        "extensions": dict[str, Any] | None,
    },
    "LifespanScope": {
        "type": Literal["lifespan"],
        "asgi": types.ASGIVersions,
        "state?": dict[str, Any],
        "extensions?": dict[str, Any],
    },
}
RECEIVED: dict[str, dict[str, Any]] = {
    "HTTPRequestEvent": {"type": Literal["http.request"], "body": bytes, "more_body": bool},
    "HTTPDisconnectEvent": {"type": Literal["http.disconnect"]},
    "WebSocketConnectEvent": {"type": Literal["websocket.connect"]},
    "WebSocketReceiveEvent": {"type": Literal["websocket.receive"], "bytes": bytes | None, "text": str | None},
    "WebSocketDisconnectEvent": {"type": Literal["websocket.disconnect"], "code": int, "reason": str | None},
    "LifespanStartupEvent": {"type": Literal["lifespan.startup"]},
    "LifespanShutdownEvent": {"type": Literal["lifespan.shutdown"]},
}
SENT: dict[str, dict[str, Any]] = {
    "HTTPResponseStartEvent": {
        "type": Literal["http.response.start"],
        "status": int,
        "headers?": Headers,
        "trailers?": bool,
    },
    "HTTPResponseBodyEvent": {"type": Literal["http.response.body"], "body?": bytes, "more_body?": bool},
    "HTTPResponseTrailersEvent": {
        "type": Literal["http.response.trailers"],
        "headers": Headers,
        "more_trailers?": bool,
    },
    "HTTPResponsePathsendEvent": {"type": Literal["http.response.pathsend"], "path": str},
    "HTTPResponseZerocopysendEvent": {
        "type": Literal["http.response.zerocopysend"],
        "file": types._HasFileno,
        "offset?": int,
        "count?": int,
        "more_body?": bool,
    },
    "HTTPResponseEarlyHintEvent": {"type": Literal["http.response.early_hint"], "links": Iterable[bytes]},
    "HTTPServerPushEvent": {"type": Literal["http.response.push"], "path": str, "headers": Headers},
    "HTTPResponseDebugEvent": {"type": Literal["http.response.debug"], "info": dict[str, Any]},
    "WebSocketAcceptEvent": {"type": Literal["websocket.accept"], "subprotocol?": str | None, "headers?": Headers},
    "WebSocketSendEvent": {"type": Literal["websocket.send"], "bytes?": bytes | None, "text?": str | None},
    "WebSocketCloseEvent": {"type": Literal["websocket.close"], "code?": int, "reason?": str | None},
    "WebSocketResponseStartEvent": {
        "type": Literal["websocket.http.response.start"],
        "status": int,
        "headers?": Headers,
    },
    "WebSocketResponseBodyEvent": {"type": Literal["websocket.http.response.body"], "body?": bytes, "more_body?": bool},
    "LifespanStartupCompleteEvent": {"type": Literal["lifespan.startup.complete"]},
    "LifespanStartupFailedEvent": {"type": Literal["lifespan.startup.failed"], "message?": str},
    "LifespanShutdownCompleteEvent": {"type": Literal["lifespan.shutdown.complete"]},
    "LifespanShutdownFailedEvent": {"type": Literal["lifespan.shutdown.failed"], "message?": str},
}
OTHERS: dict[str, dict[str, Any]] = {
    "ASGIVersions": {"version": Literal["2.0", "3.0"], "spec_version": str},
    "TLSExtension": {
        "server_cert": str | None,
        "client_cert_chain?": Iterable[str],
        "client_cert_name?": str | None,
        "client_cert_error?": str | None,
        "tls_version": int | None,
        "cipher_suite": int | None,
    },
}
KEYS = SCOPES | RECEIVED | SENT | OTHERS

# The exports of upstream 3.13.0, and HTTPResponseDebugEvent, which it has without exporting it.
UPSTREAM = """
ASGI2Application ASGI2Protocol ASGI3Application ASGIApplication ASGIReceiveCallable ASGIReceiveEvent ASGISendCallable
ASGISendEvent ASGIVersions HTTPDisconnectEvent HTTPRequestEvent HTTPResponseBodyEvent HTTPResponseDebugEvent
HTTPResponsePathsendEvent HTTPResponseStartEvent HTTPResponseTrailersEvent HTTPScope HTTPServerPushEvent LifespanScope
LifespanShutdownCompleteEvent LifespanShutdownEvent LifespanShutdownFailedEvent LifespanStartupCompleteEvent
LifespanStartupEvent LifespanStartupFailedEvent Scope WWWScope WebSocketAcceptEvent WebSocketCloseEvent
WebSocketConnectEvent WebSocketDisconnectEvent WebSocketReceiveEvent WebSocketResponseBodyEvent
WebSocketResponseStartEvent WebSocketScope WebSocketSendEvent
"""


def members(union: Any) -> set[str]:
    """Return the names of the members of *union*."""
    return {member.__name__ for member in typing.get_args(union)}


def event_type(name: str) -> str:
    return str(typing.get_args(KEYS[name]["type"])[0])


def test_names_of_upstream_are_exported() -> None:
    names = UPSTREAM.split()
    assert 36 == len(names)
    assert [] == [name for name in names if name not in types.__all__]


def test_each_class_is_in_the_table() -> None:
    assert set(KEYS) == {name for name, value in vars(types).items() if typing.is_typeddict(value)}
    assert set(KEYS) <= set(types.__all__)


@pytest.mark.parametrize("name", KEYS)
def test_keys_are_those_of_the_specification(name: str) -> None:
    class_ = getattr(types, name)
    assert {key.removesuffix("?"): value for key, value in KEYS[name].items()} == typing.get_type_hints(class_)
    assert {key for key in KEYS[name] if not key.endswith("?")} == class_.__required_keys__
    assert {key[:-1] for key in KEYS[name] if key.endswith("?")} == class_.__optional_keys__


@pytest.mark.parametrize("name", KEYS)
def test_hints_with_extras_tell_what_may_be_left_out(name: str) -> None:
    hints = typing.get_type_hints(getattr(types, name), include_extras=True)
    optional = {key for key, hint in hints.items() if typing.get_origin(hint) is typing.NotRequired}
    assert {key[:-1] for key in KEYS[name] if key.endswith("?")} == optional


@pytest.mark.parametrize("name", KEYS)
def test_docstring_tells_of_each_key_and_names_its_source(name: str) -> None:
    documentation = getattr(types, name).__doc__
    elsewhere = SCOPES["HTTPScope"] if name == "WebSocketScope" else {}
    keys = [key.removesuffix("?") for key, value in KEYS[name].items() if elsewhere.get(key) != value]
    assert [] == [key for key in keys if f"* ``{key}``" not in documentation]
    assert re.search(r"^ *Source: ASGI", documentation, re.MULTILINE)


def test_unions_of_scopes() -> None:
    assert {"HTTPScope", "WebSocketScope"} == members(types.WWWScope)
    assert set(SCOPES) == members(types.Scope)


def test_unions_of_events_tell_what_is_received_from_what_is_sent() -> None:
    assert set(RECEIVED) == members(types.ASGIReceiveEvent)
    assert {*SENT, "HTTPDisconnectEvent"} == members(types.ASGISendEvent)


@pytest.mark.parametrize(
    ("protocol", "prefix"), [("HTTP", "http."), ("WebSocket", "websocket."), ("Lifespan", "lifespan.")]
)
def test_unions_of_one_protocol(protocol: str, prefix: str) -> None:
    received = {name for name in RECEIVED if event_type(name).startswith(prefix)}
    sent = {name for name in SENT if event_type(name).startswith(prefix)}
    assert received == members(getattr(types, f"ASGI{protocol}ReceiveEvent"))
    if protocol == "HTTP":  # servers send it
        sent.add("HTTPDisconnectEvent")
    assert sent == members(getattr(types, f"ASGI{protocol}SendEvent"))


def test_each_type_of_event_has_one_class() -> None:
    names = [event_type(name) for name in (*RECEIVED, *SENT)]
    assert sorted(set(names)) == sorted(names)


def test_callables() -> None:
    receive, send = types.ASGIReceiveCallable, types.ASGISendCallable
    assert Callable[[], Awaitable[types.ASGIReceiveEvent]] == receive
    assert Callable[[types.ASGISendEvent], Awaitable[None]] == send
    assert Callable[[types.Scope, receive, send], Awaitable[None]] == types.ASGI3Application
    assert type[types.ASGI2Protocol] == types.ASGI2Application
    assert {types.ASGI2Application, types.ASGI3Application} == set(typing.get_args(types.ASGIApplication))
    assert {"scope": types.Scope, "return": type(None)} == typing.get_type_hints(types.ASGI2Protocol.__init__)
    assert {"receive": receive, "send": send, "return": type(None)} == typing.get_type_hints(
        types.ASGI2Protocol.__call__
    )


def test_classes_make_plain_dicts() -> None:
    event = types.WebSocketSendEvent(type="websocket.send", text="hello")
    assert {"type": "websocket.send", "text": "hello"} == cast(dict[str, Any], event)
    assert dict is type(event)


def test_types_can_be_extended_and_evaluated() -> None:
    """Servers add their own keys, and frameworks look up the hints of a function."""

    class Traced(types.HTTPScope):
        trace: str

    async def application(
        scope: types.Scope, receive: types.ASGIReceiveCallable, send: types.ASGISendCallable
    ) -> None: ...

    assert types.HTTPScope.__required_keys__ | {"trace"} == Traced.__required_keys__
    assert types.HTTPScope.__optional_keys__ == Traced.__optional_keys__
    assert types.Scope == typing.get_type_hints(application)["scope"]
    assert typing.is_typeddict(Traced)
    assert not typing.is_typeddict(TypedDict)
