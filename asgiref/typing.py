"""The types of ASGI: scopes, events, and the callables that exchange them.

Only types live here, and nothing of the package is imported. What an application reads,
scopes and received events, has its keys required, so that ``scope["client"]`` needs no look
whether it is there: servers send all of them, as a rule. The docstrings tell which ones the
specification lets a server leave out, or set to ``None``. What an application sends has
``NotRequired`` keys where the specification lets it leave them out. Where it asks for
something that type checkers cannot see, the docstring tells.

The names exist at run time too, and ``typing.get_type_hints`` works on each class. So this
is the one module without ``from __future__ import annotations``: with annotations that are
strings, ``TypedDict`` takes every key for a required one.

In the docstrings, "default" is what a missing key means, and "during 2.3" means added while
that version was current, so that no version tells whether a peer knows it.
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

# What startup handlers leave for requests: ``state`` of each scope.
LifespanState: TypeAlias = dict[str, Any]

# The specification also allows lists of two in place of these tuples. A checker cannot count
# the items of a list, and those who read pairs could not rely on two any more.
_Headers: TypeAlias = Iterable[tuple[bytes, bytes]]

# The details of an extension are a dict. Any other type than Any would shut out TLSExtension:
# to checkers, a TypedDict is not a dict.
_Extensions: TypeAlias = dict[str, Any]


class _HasFileno(Protocol):
    def fileno(self) -> int: ...


class ASGIVersions(TypedDict):
    """The versions that the server speaks: ``scope["asgi"]``.

    * ``version`` (str, default ``"2.0"``): of ASGI.
    * ``spec_version`` (str, default ``"2.0"`` for HTTP and WebSocket, ``"1.0"`` for lifespan):
      of the protocol's own specification, which tells which keys and events the server knows.

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
    * ``raw_path`` (bytes or None, default None, during 2.1): the bytes of the path as they came
      in.
    * ``query_string`` (bytes): what follows ``?``, still percent-encoded.
    * ``root_path`` (str, default ``""``): where the application is mounted.
    * ``headers`` (iterable of pairs of bytes): pairs of a name, mostly in lower case, and a
      value, in the order of the request; a name may come more than once.
    * ``client`` (tuple or None, default None): host and port of the other end.
    * ``server`` (tuple or None, default None): host and port where the server listens, or the
      path of a Unix socket and None (since 2.2).
    * ``state`` (dict, during 2.3): a copy of what the lifespan handler put there; absent where
      the server has no such thing.
    * ``extensions`` (dict, default empty): the details of each extension that the server has, a
      dict, by its name.

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
    * ``state`` (dict, during lifespan 2.0): empty; what the application puts there is copied
      into the scope of each later connection. Absent where the server has no such thing.
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
    """What is known of an encrypted connection: ``scope["extensions"]["tls"]``.

    It is there only where the connection uses TLS and the server tells of it.

    * ``server_cert`` (str or None): the server's certificate in PEM, or None where the server
      cannot tell.
    * ``client_cert_chain`` (iterable of str, default empty): certificates in PEM, the client's
      first, each next one signing the one before.
    * ``client_cert_name`` (str or None, default None): the subject of the client's certificate,
      in the form of RFC 4514. Required where the chain is not empty.
    * ``client_cert_error`` (str or None, default None): why verifying the client's certificate
      failed; None where it did not, or none was sent.
    * ``tls_version`` (int or None): ``0x0303`` for TLS 1.2, ``0x0304`` for 1.3, or None where
      it is unknown.
    * ``cipher_suite`` (int or None): its two bytes as one number, big-endian, or None where it
      is unknown.

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
    """Received: the response was sent, or the client has left.

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
    """Sent, with the extension of that name: the response body is that file.

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
    * ``offset`` (int, default: where the file stands): the first byte to send.
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
    """Sent, with the extension of that name: what the client will need soon.

    * ``type``: ``"http.response.early_hint"``.
    * ``links`` (iterable of bytes): values of ``Link`` headers, in the form of RFC 8288.

    Source: ASGI, extensions.
    """

    type: Literal["http.response.early_hint"]
    links: Iterable[bytes]


class HTTPServerPushEvent(TypedDict):
    """Sent, with the extension ``http.response.push``: a request that the client need not make itself.

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
    """Sent, with the extension of that name: something for the test that plays the server.

    * ``type``: ``"http.response.debug"``.
    * ``info`` (dict): free.

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
    """Sent: the handshake is completed.

    * ``type``: ``"websocket.accept"``.
    * ``subprotocol`` (str or None, default None): the one chosen.
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
    """Received last: the connection has ended, whoever ended it.

    * ``type``: ``"websocket.disconnect"``.
    * ``code`` (int): the close code; ``1005`` where the client gave none.
    * ``reason`` (str or None, default ``""``, since 2.5): None counts as ``""``.

    Source: ASGI, WebSocket 2.0.
    """

    type: Literal["websocket.disconnect"]
    code: int
    reason: str | None


class WebSocketCloseEvent(TypedDict):
    """Sent: the connection is closed, or, in place of accepting it, refused with 403.

    * ``type``: ``"websocket.close"``.
    * ``code`` (int, default 1000): the close code.
    * ``reason`` (str or None, default ``""``, since 2.3): None counts as ``""``.

    Source: ASGI, WebSocket 2.0.
    """

    type: Literal["websocket.close"]
    code: NotRequired[int]
    reason: NotRequired[str | None]


class WebSocketResponseStartEvent(TypedDict):
    """Sent in place of accepting, with the extension ``websocket.http.response``: status and headers of a denial.

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
    """Received: the server is about to take connections.

    * ``type``: ``"lifespan.startup"``.

    Source: ASGI, Lifespan 1.0.
    """

    type: Literal["lifespan.startup"]


class LifespanStartupCompleteEvent(TypedDict):
    """Sent: connections may come.

    * ``type``: ``"lifespan.startup.complete"``.

    Source: ASGI, Lifespan 1.0.
    """

    type: Literal["lifespan.startup.complete"]


class LifespanStartupFailedEvent(TypedDict):
    """Sent: the server is to print the message and exit.

    * ``type``: ``"lifespan.startup.failed"``.
    * ``message`` (str, default ``""``): what to print.

    Source: ASGI, Lifespan 2.0.
    """

    type: Literal["lifespan.startup.failed"]
    message: NotRequired[str]


class LifespanShutdownEvent(TypedDict):
    """Received: all connections are closed, and no more will come.

    * ``type``: ``"lifespan.shutdown"``.

    Source: ASGI, Lifespan 1.0.
    """

    type: Literal["lifespan.shutdown"]


class LifespanShutdownCompleteEvent(TypedDict):
    """Sent: the process may end.

    * ``type``: ``"lifespan.shutdown.complete"``.

    Source: ASGI, Lifespan 1.0.
    """

    type: Literal["lifespan.shutdown.complete"]


class LifespanShutdownFailedEvent(TypedDict):
    """Sent: the server is to print the message and end.

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
    | HTTPDisconnectEvent  # which only servers send, to the application, through a callable of this type too
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
    """The classes that are applications of ASGI 2: ``await application(scope)(receive, send)``."""

    def __init__(self, scope: Scope) -> None: ...

    async def __call__(self, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None: ...


ASGI2Application: TypeAlias = type[ASGI2Protocol]
ASGI3Application: TypeAlias = Callable[[Scope, ASGIReceiveCallable, ASGISendCallable], Awaitable[None]]
ASGIApplication: TypeAlias = ASGI2Application | ASGI3Application
