"""From an ASGI scope to a WSGI environ: pure functions, and the requests that they refuse.

PEP 3333 ("environ Variables") and RFC 3875 (CGI) define the environ. The ASGI specification
("WSGI Compatibility") says where each value comes from. Nothing here waits or sends, or
depends on a thread.
"""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

from .dropped import DroppedHeaders

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["BadRequest", "content_length_of", "environ_for", "states_length"]

_dropped = DroppedHeaders("request header", "its name could pass for another one in a WSGI environ")


def _general_key(name: bytes) -> str:
    # On bytes, because str.upper() can return letters outside of latin-1.
    return "HTTP_" + name.upper().replace(b"-", b"_").decode("latin-1")


_UNPREFIXED = {b"content-type": "CONTENT_TYPE", b"content-length": "CONTENT_LENGTH"}

# Precomputed for the names that most requests have. Not a cache, which clients could fill.
_KEYS = {
    name: _UNPREFIXED.get(name) or _general_key(name)
    for name in (
        b"accept accept-encoding accept-language authorization cache-control connection content-length content-type "
        b"cookie dnt forwarded host if-match if-modified-since if-none-match if-range origin pragma priority range "
        b"referer sec-ch-ua sec-ch-ua-mobile sec-ch-ua-platform sec-fetch-dest sec-fetch-mode sec-fetch-site "
        b"sec-fetch-user te traceparent tracestate upgrade-insecure-requests user-agent via "
        b"x-csrf-token x-forwarded-for x-forwarded-host x-forwarded-port x-forwarded-proto x-real-ip x-request-id "
        b"x-requested-with"
    ).split()
}


class BadRequest(Exception):
    """The request cannot be expressed as a WSGI environ. The text is for the log, not for the client."""


def environ_for(
    scope: Any, body: Any, duplicate_header_limit: int | None, file_wrapper: Any, body_size: int = 0
) -> dict[str, Any]:
    """Return the environ for the HTTP *scope*, with *body* as its ``wsgi.input``.

    Args:
        scope: The ASGI scope, of type ``http``.
        body: The request body, a binary file.
        duplicate_header_limit: How often a request may repeat a header.
        file_wrapper: The value for ``wsgi.file_wrapper``.
        body_size: The size of the body in bytes, or 0 if unknown. It becomes the
            ``CONTENT_LENGTH`` of a request without that header, because many applications
            read as many bytes as that says.

    Raises:
        BadRequest: if a header is repeated beyond the limit, or if Content-Length is not one
            number.
    """
    path: str = scope["path"]
    query: str = scope.get("query_string", b"").decode("latin-1")
    scheme: str = scope.get("scheme", "http")
    root_path: str | None = scope.get("root_path")
    raw_path: bytes | None = scope.get("raw_path")
    script_name = root_path.rstrip("/") if root_path else ""
    if not (path.isascii() and script_name.isascii()):
        script_name, path = _native(script_name), _native_path(path, raw_path)
    # Servers differ in whether the path includes the root path.
    if script_name and (path == script_name or path.startswith(script_name + "/")):
        path = path[len(script_name) :]
    host, port = scope.get("server") or (None, None)
    environ = _what_requests_share(scheme, scope["http_version"], script_name, host, port).copy()
    environ["REQUEST_METHOD"] = scope["method"]
    environ["PATH_INFO"] = path
    environ["QUERY_STRING"] = query
    environ["wsgi.input"] = body
    environ["wsgi.errors"] = sys.stderr
    environ["wsgi.file_wrapper"] = file_wrapper
    environ["asgi.scope"] = scope
    client = scope.get("client")
    if client and client[0]:
        # The host name is not looked up; RFC 3875 (4.1.9) allows the address instead.
        environ["REMOTE_ADDR"] = environ["REMOTE_HOST"] = client[0]
        environ["REMOTE_PORT"] = str(client[1])
    if raw_path is not None:
        uri = raw_path.decode("latin-1")
        environ["RAW_URI"] = environ["REQUEST_URI"] = uri + "?" + query if query else uri
    _add_headers(environ, scope["headers"], duplicate_header_limit)
    if body_size and "CONTENT_LENGTH" not in environ:
        environ["CONTENT_LENGTH"] = str(body_size)
    return environ


# A small cache: one entry for each address that the server listens on and each mount point.
@functools.lru_cache(16)
def _what_requests_share(
    scheme: str, http_version: str, script_name: str, host: str | None, port: int | None
) -> dict[str, Any]:
    """Return an environ to copy; the values that differ between requests are None."""
    environ: dict[str, Any] = {
        "GATEWAY_INTERFACE": "CGI/1.1",
        "REQUEST_METHOD": None,
        "SCRIPT_NAME": script_name,
        "PATH_INFO": None,
        "QUERY_STRING": None,
        "SERVER_NAME": host,
        "SERVER_PORT": str(port),
        "SERVER_PROTOCOL": "HTTP/" + http_version,
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": scheme,
        "wsgi.input": None,
        # Reading stops at the end of the body, also without a Content-Length.
        "wsgi.input_terminated": True,
        "wsgi.errors": None,
        "wsgi.file_wrapper": None,
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
        "asgi.scope": None,
    }
    if not port:
        # Unknown, or a Unix socket (some servers say port 0). PEP 3333: both must be there and not be empty.
        environ["SERVER_NAME"], environ["SERVER_PORT"] = "localhost", "443" if scheme == "https" else "80"
    if scheme == "https":
        environ["HTTPS"] = "on"
    return environ


def _native(text: str) -> str:
    """Return *text* as a "native string" of PEP 3333: one character for each byte of its UTF-8 form."""
    return text.encode("utf-8", "surrogateescape").decode("latin-1")


def _native_path(path: str, raw_path: bytes | None) -> str:
    if "\ufffd" in path and raw_path is not None:
        # path has lost bytes that are not UTF-8; raw_path still has them.
        exact = unquote_to_bytes(raw_path)
        if exact.decode(errors="replace") == path:  # False if middleware has rewritten only the path
            return exact.decode("latin-1")
    return _native(path)


def _add_headers(environ: dict[str, Any], headers: Iterable[Any], limit: int | None) -> None:
    repeated: dict[str, list[str]] | None = None
    for name, value in headers:
        key = _KEYS.get(name)
        if key is None:
            key = _uncommon_key(name)
            if key is None:
                continue
        if key not in environ:
            environ[key] = value.decode("latin-1")
        else:
            repeated = repeated or {}
            repeated.setdefault(key, [environ[key]]).append(value.decode("latin-1"))
    if repeated is not None:
        _join(environ, repeated, limit)
    if "CONTENT_LENGTH" in environ and not _is_number(environ["CONTENT_LENGTH"]):
        raise BadRequest(f"its Content-Length is {environ['CONTENT_LENGTH'][:100]!r}, which is not one number")


def _join(environ: dict[str, Any], repeated: dict[str, list[str]], limit: int | None) -> None:
    """Put the headers that were sent several times into *environ*."""
    for key, values in repeated.items():
        if limit is not None and len(values) > limit:
            raise BadRequest(f"{key[:100]!r} was sent {len(values)} times, more often than the limit of {limit}")
        if key == "CONTENT_LENGTH":
            values = sorted(set(values))  # one value, if all are equal
        # HTTP/2 allows several Cookie headers, and a cookie may contain a comma.
        environ[key] = ("; " if key == "HTTP_COOKIE" else ",").join(values)


def _uncommon_key(name: bytes) -> str | None:
    """Return the environ key for an uncommon header, or None if it is dropped."""
    lowered = name.lower()
    key = _KEYS.get(lowered)
    if key is not None:
        return key
    # The server has decoded the body; an application that sees this would decode it again.
    if lowered == b"transfer-encoding":
        return None
    # X_Forwarded_For would become the same key as X-Forwarded-For, which only the proxy may set.
    # Programs that applications start read HTTP_PROXY as a setting.
    if b"_" in name or lowered == b"proxy":
        _dropped.add(name.decode("latin-1"))
        return None
    return _general_key(name)


def _is_number(text: str | bytes) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 19


def states_length(scope: Any) -> bool:
    """Return whether the headers of *scope* have a Content-Length, valid or not."""
    return any([name.lower() == b"content-length" for name, _ in scope["headers"]])


def content_length_of(scope: Any) -> int | None:
    """Return the Content-Length of *scope* in bytes, or None if it is missing or not one number."""
    lengths = {value for name, value in scope["headers"] if name.lower() == b"content-length"}
    return int(length) if len(lengths) == 1 and _is_number(length := lengths.pop()) else None
