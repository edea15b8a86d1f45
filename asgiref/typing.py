"""The types of ASGI: scopes, events, and the callables that exchange them.

This module has only types and imports nothing from the package. In scopes and received
events, all keys are required, because servers usually send all of them: ``scope["client"]``
needs no check. The docstrings say which keys a server may omit or set to ``None``. In sent
events, keys that the specification lets an application omit are ``NotRequired``. The
docstrings also mention rules that type checkers cannot check.

The names exist at run time too, and ``typing.get_type_hints`` works on each class. Therefore
this is the only module without ``from __future__ import annotations``: with string
annotations, ``TypedDict`` treats every key as required.

In the docstrings, "default" is the meaning of a missing key. "During 2.3" means added while
that version was current, so the version does not show whether a peer knows the key.
"""

from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Literal, NotRequired, Protocol, TypeAlias, TypedDict

__all__ = [
    "ASGI2Application",
    "ASGI2Protocol",
    "ASGI3Application",
    "ASGIApplication",
    "ASGIHTTPReceiveEvent",
    "ASGIHTTPSendEvent",
    "ASGILifespanReceiveEvent",
    "ASGILifespanSendEvent",
    "ASGIReceiveCallable",
    "ASGIReceiveEvent",
    "ASGISendCallable",
    "ASGISendEvent",
    "ASGIVersions",
    "ASGIWebSocketReceiveEvent",
    "ASGIWebSocketSendEvent",
    "HTTPDisconnectEvent",
    "HTTPRequestEvent",
    "HTTPResponseBodyEvent",
    "HTTPResponseDebugEvent",
    "HTTPResponseEarlyHintEvent",
    "HTTPResponsePathsendEvent",
    "HTTPResponseStartEvent",
    "HTTPResponseTrailersEvent",
    "HTTPResponseZerocopysendEvent",
    "HTTPScope",
    "HTTPServerPushEvent",
    "LifespanScope",
    "LifespanShutdownCompleteEvent",
    "LifespanShutdownEvent",
    "LifespanShutdownFailedEvent",
    "LifespanStartupCompleteEvent",
    "LifespanStartupEvent",
    "LifespanStartupFailedEvent",
    "LifespanState",
    "Scope",
    "TLSExtension",
    "WWWScope",
    "WebSocketAcceptEvent",
    "WebSocketCloseEvent",
    "WebSocketConnectEvent",
    "WebSocketDisconnectEvent",
    "WebSocketReceiveEvent",
    "WebSocketResponseBodyEvent",
    "WebSocketResponseStartEvent",
    "WebSocketScope",
    "WebSocketSendEvent",
]

# ``state`` of a scope: values of startup handlers, for requests.
LifespanState: TypeAlias = dict[str, Any]

# The specification also allows lists of two items. A checker cannot count the items of a list,
# so code that unpacks pairs would no longer be accepted.
_Headers: TypeAlias = Iterable[tuple[bytes, bytes]]

# The value for an extension is a dict. Its type is Any, because with dict checkers would refuse
# TLSExtension: to them, a TypedDict is not a dict.
_Extensions: TypeAlias = dict[str, Any]


class _HasFileno(Protocol):
    def fileno(self) -> int: ...


class ASGIVersions(TypedDict):
    """The versions that the server supports: ``scope["asgi"]``.

    * ``version`` (str, default ``"2.0"``): of ASGI.
    * ``spec_version`` (str, default ``"2.0"`` for HTTP and WebSocket, ``"1.0"`` for lifespan):
      of the protocol's own specification; it shows which keys and events the server knows.

    Source: ASGI 3.0, the connection scope.
    """

    version: Literal["2.0", "3.0"]
    spec_version: str


class HTTPScope(TypedDict):
    """The scope of one HTTP request.

    * ``type``: ``"http"``.
    * ``asgi`` (ASGIVersions): the versions.
    * ``http_version`` (str): ``"1.0"``, ``"1.1"``, ``"2"`` or ``"3"``.
    * ``method`` (str): in upper case.
    * ``scheme`` (str, default ``"http"``): mostly ``"http"`` or ``"https"``, never empty.
    * ``path`` (str): decoded, and without the query.
    * ``raw_path`` (bytes or None, default None, during 2.1): the bytes of the path, not decoded.
    * ``query_string`` (bytes): the part after ``?``, percent-encoded.
    * ``root_path`` (str, default ``""``): where the application is mounted.
    * ``headers`` (iterable of pairs of bytes): pairs of a name, mostly in lower case, and a
      value, in the order of the request; a name may come more than once.
    * ``client`` (tuple or None, default None): host and port of the client.
    * ``server`` (tuple or None, default None): host and port on which the server listens, or
      the path of a Unix socket and None (since 2.2).
    * ``state`` (dict, during 2.3): a copy of the lifespan scope's ``state``; absent if the server
      does not support it.
    * ``extensions`` (dict, default empty): for each extension of the server, its name and a dict
      of details.

    Source: ASGI, HTTP 2.5.
    """

    type: Literal["http"]
    asgi: ASGIVersions
    http_version: str
    method: str
    scheme: str
    path: str
    raw_path: bytes
    query_string: bytes
    root_path: str
    headers: _Headers
    client: tuple[str, int] | None
    server: tuple[str, int | None] | None
    state: NotRequired[LifespanState]
    extensions: _Extensions | None


class WebSocketScope(TypedDict):
    """The scope of one WebSocket connection.

    As ``HTTPScope``, except for these:

    * ``type``: ``"websocket"``.
    * ``http_version`` (str, default ``"1.1"``, during 2.0): ``"1.1"`` or ``"2"``.
    * ``scheme`` (str, default ``"ws"``): mostly ``"ws"`` or ``"wss"``, never empty.
    * ``query_string`` (bytes or None, default empty): None counts as empty.
    * ``subprotocols`` (iterable of str, default empty): those that the client offers.
    * There is no ``method``.

    Source: ASGI, WebSocket 2.5.
    """

    type: Literal["websocket"]
    asgi: ASGIVersions
    http_version: str
    scheme: str
    path: str
    raw_path: bytes
    query_string: bytes
    root_path: str
    headers: _Headers
    client: tuple[str, int] | None
    server: tuple[str, int | None] | None
    subprotocols: Iterable[str]
    state: NotRequired[LifespanState]
    extensions: _Extensions | None


class LifespanScope(TypedDict):
    """The scope of an event loop that serves requests.

    * ``type``: ``"lifespan"``.
    * ``asgi`` (ASGIVersions): the versions.
    * ``state`` (dict, during lifespan 2.0): empty; the application's items are copied into the
      scope of each later connection. Absent if the server does not support it.
    * ``extensions`` (dict, default empty): as in the other scopes.

    Source: ASGI, Lifespan 2.0.
    """

    type: Literal["lifespan"]
    asgi: ASGIVersions
    state: NotRequired[LifespanState]
    extensions: NotRequired[_Extensions]


WWWScope: TypeAlias = HTTPScope | WebSocketScope
Scope: TypeAlias = HTTPScope | WebSocketScope | LifespanScope


class TLSExtension(TypedDict):
    """Details of an encrypted connection: ``scope["extensions"]["tls"]``.

    Present only if the connection uses TLS and the server supports this extension.

    * ``server_cert`` (str or None): the server's certificate in PEM, or None if unknown.
    * ``client_cert_chain`` (iterable of str, default empty): certificates in PEM, the client's
      first, each next one signing the one before.
    * ``client_cert_name`` (str or None, default None): the subject of the client's certificate,
      in the form of RFC 4514. Required if the chain is not empty.
    * ``client_cert_error`` (str or None, default None): the reason if the verification of the
      client's certificate failed; else None.
    * ``tls_version`` (int or None): ``0x0303`` for TLS 1.2, ``0x0304`` for 1.3, or None if unknown.
    * ``cipher_suite`` (int or None): its two bytes as one number, big-endian, or None if unknown.

    Source: ASGI, TLS 0.2.
    """

    server_cert: str | None
    client_cert_chain: NotRequired[Iterable[str]]
    client_cert_name: NotRequired[str | None]
    client_cert_error: NotRequired[str | None]
    tls_version: int | None
    cipher_suite: int | None


class HTTPRequestEvent(TypedDict):
    """Received: a part of the request body.

    * ``type``: ``"http.request"``.
    * ``body`` (bytes, default ``b""``): the part; the body is all of them joined.
    * ``more_body`` (bool, default False): whether more parts follow.

    Source: ASGI, HTTP 2.0.
    """

    type: Literal["http.request"]
    body: bytes
    more_body: bool


class HTTPDisconnectEvent(TypedDict):
    """Received: the response has been sent, or the client has disconnected.

    * ``type``: ``"http.disconnect"``.

    Source: ASGI, HTTP 2.0.
    """

    type: Literal["http.disconnect"]


class HTTPResponseStartEvent(TypedDict):
    """Sent: status and headers of the response.

    * ``type``: ``"http.response.start"``.
    * ``status`` (int): the HTTP status code.
    * ``headers`` (iterable of pairs of bytes, default empty): pairs of a name, in lower case,
      and a value; the order is kept.
    * ``trailers`` (bool, default False, during 2.3): whether ``HTTPResponseTrailersEvent`` will
      follow the body; only with the extension ``http.response.trailers``.

    Source: ASGI, HTTP 2.0.
    """

    type: Literal["http.response.start"]
    status: int
    headers: NotRequired[_Headers]
    trailers: NotRequired[bool]


class HTTPResponseBodyEvent(TypedDict):
    """Sent: a part of the response body.

    * ``type``: ``"http.response.body"``.
    * ``body`` (bytes, default ``b""``): the part; the body is all of them joined.
    * ``more_body`` (bool, default False): whether more parts follow.

    Source: ASGI, HTTP 2.0.
    """

    type: Literal["http.response.body"]
    body: NotRequired[bytes]
    more_body: NotRequired[bool]


class HTTPResponseTrailersEvent(TypedDict):
    """Sent, with the extension of that name: headers that follow the body.

    * ``type``: ``"http.response.trailers"``.
    * ``headers`` (iterable of pairs of bytes): pairs of a name, in lower case, and a value.
    * ``more_trailers`` (bool, default False): whether more such events follow.

    Source: ASGI, extensions.
    """

    type: Literal["http.response.trailers"]
    headers: _Headers
    more_trailers: NotRequired[bool]


class HTTPResponsePathsendEvent(TypedDict):
    """Sent, with the extension of that name: the response body is a file.

    * ``type``: ``"http.response.pathsend"``.
    * ``path`` (str): an absolute path in the form of the platform.

    Source: ASGI, extensions.
    """

    type: Literal["http.response.pathsend"]
    path: str


class HTTPResponseZerocopysendEvent(TypedDict):
    """Sent, with the extension of that name: a part of the response body comes from a file.

    * ``type``: ``"http.response.zerocopysend"``.
    * ``file`` (with ``fileno()``): an open file with a descriptor that the operating system
      knows. The application closes it.
    * ``offset`` (int, default: the position of the file): the first byte to send.
    * ``count`` (int, default: to the end): how many bytes to send.
    * ``more_body`` (bool, default False): whether more parts of the body follow.

    Source: ASGI, extensions.
    """

    type: Literal["http.response.zerocopysend"]
    file: _HasFileno
    offset: NotRequired[int]
    count: NotRequired[int]
    more_body: NotRequired[bool]


class HTTPResponseEarlyHintEvent(TypedDict):
    """Sent, with the extension of that name: resources that the client will need soon.

    * ``type``: ``"http.response.early_hint"``.
    * ``links`` (iterable of bytes): values of ``Link`` headers, in the form of RFC 8288.

    Source: ASGI, extensions.
    """

    type: Literal["http.response.early_hint"]
    links: Iterable[bytes]


class HTTPServerPushEvent(TypedDict):
    """Sent, with the extension ``http.response.push``: a request that the client does not have to make itself.

    * ``type``: ``"http.response.push"``.
    * ``path`` (str): decoded.
    * ``headers`` (iterable of pairs of bytes): pairs of a name, in lower case, and a value, as
      in a request.

    Source: ASGI, extensions.
    """

    type: Literal["http.response.push"]
    path: str
    headers: _Headers


class HTTPResponseDebugEvent(TypedDict):
    """Sent, with the extension of that name: information for a test that acts as the server.

    * ``type``: ``"http.response.debug"``.
    * ``info`` (dict): any content.

    Source: ASGI, extensions.
    """

    type: Literal["http.response.debug"]
    info: dict[str, Any]


class WebSocketConnectEvent(TypedDict):
    """Received first: the client waits in the handshake.

    * ``type``: ``"websocket.connect"``.

    Source: ASGI, WebSocket 2.0.
    """

    type: Literal["websocket.connect"]


class WebSocketAcceptEvent(TypedDict):
    """Sent: completes the handshake.

    * ``type``: ``"websocket.accept"``.
    * ``subprotocol`` (str or None, default None): the chosen subprotocol.
    * ``headers`` (iterable of pairs of bytes, default empty, since 2.1): pairs of a name, in
      lower case, and a value; without ``sec-websocket-protocol``.

    Source: ASGI, WebSocket 2.0.
    """

    type: Literal["websocket.accept"]
    subprotocol: NotRequired[str | None]
    headers: NotRequired[_Headers]


class WebSocketReceiveEvent(TypedDict):
    """Received: a message of the client.

    * ``type``: ``"websocket.receive"``.
    * ``bytes`` (bytes or None, default None): a binary message.
    * ``text`` (str or None, default None): a text message.

    Exactly one of the two is not None, which the type does not say; the other may be absent.

    Source: ASGI, WebSocket 2.0.
    """

    type: Literal["websocket.receive"]
    bytes: bytes | None
    text: str | None


class WebSocketSendEvent(TypedDict):
    """Sent: a message for the client.

    * ``type``: ``"websocket.send"``.
    * ``bytes`` (bytes or None, default None): a binary message.
    * ``text`` (str or None, default None): a text message.

    Exactly one of the two is not None, which the type does not say; the other may be absent.

    Source: ASGI, WebSocket 2.0.
    """

    type: Literal["websocket.send"]
    bytes: NotRequired[bytes | None]
    text: NotRequired[str | None]


class WebSocketDisconnectEvent(TypedDict):
    """Received last: the client or the application has closed the connection, or it was lost.

    * ``type``: ``"websocket.disconnect"``.
    * ``code`` (int): the close code; ``1005`` if the client sent none.
    * ``reason`` (str or None, default ``""``, since 2.5): None counts as ``""``.

    Source: ASGI, WebSocket 2.0.
    """

    type: Literal["websocket.disconnect"]
    code: int
    reason: str | None


class WebSocketCloseEvent(TypedDict):
    """Sent: closes the connection, or, instead of accepting it, refuses it with 403.

    * ``type``: ``"websocket.close"``.
    * ``code`` (int, default 1000): the close code.
    * ``reason`` (str or None, default ``""``, since 2.3): None counts as ``""``.

    Source: ASGI, WebSocket 2.0.
    """

    type: Literal["websocket.close"]
    code: NotRequired[int]
    reason: NotRequired[str | None]


class WebSocketResponseStartEvent(TypedDict):
    """Sent instead of accepting, with the extension ``websocket.http.response``: status and headers of a refusal.

    * ``type``: ``"websocket.http.response.start"``.
    * ``status`` (int): the HTTP status code.
    * ``headers`` (iterable of pairs of bytes, default empty): pairs of a name, in lower case,
      and a value.

    Source: ASGI, extensions.
    """

    type: Literal["websocket.http.response.start"]
    status: int
    headers: NotRequired[_Headers]


class WebSocketResponseBodyEvent(TypedDict):
    """Sent after ``WebSocketResponseStartEvent``: a part of the body.

    * ``type``: ``"websocket.http.response.body"``.
    * ``body`` (bytes, default ``b""``): the part; the body is all of them joined.
    * ``more_body`` (bool, default False): whether more parts follow.

    Source: ASGI, extensions.
    """

    type: Literal["websocket.http.response.body"]
    body: NotRequired[bytes]
    more_body: NotRequired[bool]


class LifespanStartupEvent(TypedDict):
    """Received: the server is about to accept connections.

    * ``type``: ``"lifespan.startup"``.

    Source: ASGI, Lifespan 1.0.
    """

    type: Literal["lifespan.startup"]


class LifespanStartupCompleteEvent(TypedDict):
    """Sent: the application is ready for connections.

    * ``type``: ``"lifespan.startup.complete"``.

    Source: ASGI, Lifespan 1.0.
    """

    type: Literal["lifespan.startup.complete"]


class LifespanStartupFailedEvent(TypedDict):
    """Sent: the server must print the message and exit.

    * ``type``: ``"lifespan.startup.failed"``.
    * ``message`` (str, default ``""``): what to print.

    Source: ASGI, Lifespan 2.0.
    """

    type: Literal["lifespan.startup.failed"]
    message: NotRequired[str]


class LifespanShutdownEvent(TypedDict):
    """Received: all connections are closed, and no more are accepted.

    * ``type``: ``"lifespan.shutdown"``.

    Source: ASGI, Lifespan 1.0.
    """

    type: Literal["lifespan.shutdown"]


class LifespanShutdownCompleteEvent(TypedDict):
    """Sent: the application has shut down.

    * ``type``: ``"lifespan.shutdown.complete"``.

    Source: ASGI, Lifespan 1.0.
    """

    type: Literal["lifespan.shutdown.complete"]


class LifespanShutdownFailedEvent(TypedDict):
    """Sent: the server must print the message and exit.

    * ``type``: ``"lifespan.shutdown.failed"``.
    * ``message`` (str, default ``""``): what to print.

    Source: ASGI, Lifespan 2.0.
    """

    type: Literal["lifespan.shutdown.failed"]
    message: NotRequired[str]


ASGIHTTPReceiveEvent: TypeAlias = HTTPRequestEvent | HTTPDisconnectEvent
ASGIHTTPSendEvent: TypeAlias = (
    HTTPResponseStartEvent
    | HTTPResponseBodyEvent
    | HTTPResponseTrailersEvent
    | HTTPResponsePathsendEvent
    | HTTPResponseZerocopysendEvent
    | HTTPResponseEarlyHintEvent
    | HTTPServerPushEvent
    | HTTPResponseDebugEvent
    | HTTPDisconnectEvent  # sent by servers only, but through a callable of this type, too
)
# Not "WebSocketReceiveEvent": that is the name of one event.
ASGIWebSocketReceiveEvent: TypeAlias = WebSocketConnectEvent | WebSocketReceiveEvent | WebSocketDisconnectEvent
ASGIWebSocketSendEvent: TypeAlias = (
    WebSocketAcceptEvent
    | WebSocketSendEvent
    | WebSocketCloseEvent
    | WebSocketResponseStartEvent
    | WebSocketResponseBodyEvent
)
ASGILifespanReceiveEvent: TypeAlias = LifespanStartupEvent | LifespanShutdownEvent
ASGILifespanSendEvent: TypeAlias = (
    LifespanStartupCompleteEvent
    | LifespanStartupFailedEvent
    | LifespanShutdownCompleteEvent
    | LifespanShutdownFailedEvent
)

ASGIReceiveEvent: TypeAlias = ASGIHTTPReceiveEvent | ASGIWebSocketReceiveEvent | ASGILifespanReceiveEvent
ASGISendEvent: TypeAlias = ASGIHTTPSendEvent | ASGIWebSocketSendEvent | ASGILifespanSendEvent

ASGIReceiveCallable: TypeAlias = Callable[[], Awaitable[ASGIReceiveEvent]]
ASGISendCallable: TypeAlias = Callable[[ASGISendEvent], Awaitable[None]]


class ASGI2Protocol(Protocol):
    """A class that is an ASGI 2 application: ``await application(scope)(receive, send)``."""

    def __init__(self, scope: Scope) -> None: ...

    async def __call__(self, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None: ...


ASGI2Application: TypeAlias = type[ASGI2Protocol]
ASGI3Application: TypeAlias = Callable[[Scope, ASGIReceiveCallable, ASGISendCallable], Awaitable[None]]
ASGIApplication: TypeAlias = ASGI2Application | ASGI3Application
