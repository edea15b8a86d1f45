"""The environ of a request, made from its scope."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable
from typing import Any
from wsgiref import validate

import pytest

from asgiref._wsgi.dropped import NAMES, DroppedHeaders
from asgiref._wsgi.environ import BadRequest, content_length_of, environ_for
from asgiref._wsgi.response import FileWrapper
from asgiref.wsgi import WsgiToAsgiInstance

check_environ = vars(validate)["check_environ"]  # which is missing in the types

Headers = list[tuple[bytes, bytes]]


def never_called(environ: Any, start_response: Any) -> Iterable[bytes]:
    raise AssertionError("an environ is made without the application")


def scope_with(**changes: Any) -> dict[str, Any]:
    """Return a scope with the required keys and *changes*."""
    return {"type": "http", "http_version": "1.1", "method": "GET", "path": "/", "headers": [], **changes}


def environ_of(limit: int | None = 100, **changes: Any) -> dict[str, Any]:
    return WsgiToAsgiInstance(never_called, limit).build_environ(scope_with(**changes), io.BytesIO())


def http_keys(environ: dict[str, Any]) -> dict[str, str]:
    return {key: value for key, value in environ.items() if key.startswith("HTTP_")}


def test_environ_of_a_full_scope() -> None:
    """The environ has all keys of PEP 3333 and CGI, and those that other servers usually add."""
    body = io.BytesIO(b"body")
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.5"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "https",
        "path": "/shop/a b",
        "raw_path": b"/shop/a%20b",
        "query_string": b"c=d&e=%20",
        "root_path": "/shop",
        "headers": [
            (b"host", b"example.org:8443"),
            (b"content-type", b"text/plain"),
            (b"content-length", b"4"),
            (b"x-request-id", b"7"),
        ],
        "client": ["192.0.2.1", 50000],
        "server": ["192.0.2.2", 8443],
    }
    environ = WsgiToAsgiInstance(never_called).build_environ(scope, body)
    assert {
        "REQUEST_METHOD": "POST",
        "SCRIPT_NAME": "/shop",
        "PATH_INFO": "/a b",
        "QUERY_STRING": "c=d&e=%20",
        "CONTENT_TYPE": "text/plain",
        "CONTENT_LENGTH": "4",
        "SERVER_NAME": "192.0.2.2",
        "SERVER_PORT": "8443",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "GATEWAY_INTERFACE": "CGI/1.1",
        "REMOTE_ADDR": "192.0.2.1",
        "REMOTE_HOST": "192.0.2.1",
        "REMOTE_PORT": "50000",
        "HTTPS": "on",
        "RAW_URI": "/shop/a%20b?c=d&e=%20",
        "REQUEST_URI": "/shop/a%20b?c=d&e=%20",
        "HTTP_HOST": "example.org:8443",
        "HTTP_X_REQUEST_ID": "7",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "https",
        "wsgi.input": body,
        "wsgi.input_terminated": True,
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
        "wsgi.file_wrapper": FileWrapper,
        "asgi.scope": scope,
    } == environ
    assert environ["wsgi.input"] is body
    assert environ["asgi.scope"] is scope
    check_environ(environ)


def test_environ_of_the_least_scope() -> None:
    """Keys whose value the server did not give are missing, unless WSGI requires them."""
    environ = environ_of()
    check_environ(environ)
    assert ("", "/", "") == (environ["SCRIPT_NAME"], environ["PATH_INFO"], environ["QUERY_STRING"])
    assert ("localhost", "80") == (environ["SERVER_NAME"], environ["SERVER_PORT"])
    assert "http" == environ["wsgi.url_scheme"]
    for key in (
        "CONTENT_TYPE", "CONTENT_LENGTH", "REMOTE_ADDR", "REMOTE_HOST", "REMOTE_PORT", "HTTPS", "RAW_URI",
        "REQUEST_URI",
    ):  # fmt: skip
        assert key not in environ


def test_environ_of_a_scope_of_none() -> None:
    """None means that a value is missing."""
    environ = environ_of(root_path=None, raw_path=None, client=None, server=None, extensions=None)
    del environ["asgi.scope"], environ["wsgi.input"]
    plain = environ_of()
    del plain["asgi.scope"], plain["wsgi.input"]
    assert plain == environ


def test_environs_are_independent() -> None:
    """Changes of an application to one environ are not in the next one."""
    environ_of()["wsgi.version"] = environ_of()["added"] = "changed"
    environ = environ_of()
    assert (1, 0) == environ["wsgi.version"]
    assert "added" not in environ


def test_errors_go_where_standard_error_goes_now(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = io.StringIO()
    monkeypatch.setattr(sys, "stderr", errors)
    assert environ_of()["wsgi.errors"] is errors


# Paths and query strings:


@pytest.mark.parametrize(
    ("root_path", "path", "script_name", "path_info"),
    [
        ("", "/", "", "/"),
        ("", "/a/b", "", "/a/b"),
        ("", "", "", ""),
        ("/", "/a", "", "/a"),
        ("/app", "/app", "/app", ""),
        ("/app", "/app/", "/app", "/"),
        ("/app", "/app/a", "/app", "/a"),
        ("/app/", "/app/a", "/app", "/a"),
        ("/app", "/apple", "/app", "/apple"),
        ("/app", "/a", "/app", "/a"),
        ("/app", "/other/app/a", "/app", "/other/app/a"),
        ("/one/two", "/one/two/three", "/one/two", "/three"),
        ("/app", "/app/app/a", "/app", "/app/a"),
        ("", "//a", "", "//a"),
        ("/app", "/app//a", "/app", "//a"),
        ("", "/a?b#c", "", "/a?b#c"),
    ],
)
def test_path_is_split_by_whole_segments(root_path: str, path: str, script_name: str, path_info: str) -> None:
    """The path may or may not begin with the root path: servers differ."""
    environ = environ_of(root_path=root_path, path=path)
    assert (script_name, path_info) == (environ["SCRIPT_NAME"], environ["PATH_INFO"])


@pytest.mark.parametrize(
    ("root_path", "path"),
    [("", "/ä€😀"), ("/ö", "/ö/ä"), ("/ö", "/ä"), ("/ö", "/a"), ("/o", "/o/ä"), ("/ö", "/öä"), ("/ö/", "/ö")],
)
def test_path_is_of_latin_1_characters_that_stand_for_its_bytes(root_path: str, path: str) -> None:
    environ = environ_of(root_path=root_path, path=path)
    native_root, native_path = (environ[key].encode("latin-1").decode() for key in ("SCRIPT_NAME", "PATH_INFO"))
    root = root_path.rstrip("/")
    assert root == native_root
    assert (path[len(root) :] if (path + "/").startswith(root + "/") else path) == native_path


def test_bytes_of_the_path_that_are_no_utf_8_come_from_the_raw_path() -> None:
    path = b"/app/\xff%/\xc3\xa4".decode(errors="replace")
    environ = environ_of(root_path="/app", path=path, raw_path=b"/app/%FF%25/%C3%A4")
    assert "/\xff%/\xc3\xa4" == environ["PATH_INFO"]


@pytest.mark.parametrize("raw_path", [None, b"/other/%FF", b"/%EF%BF%BD"])
def test_raw_path_that_says_something_else_is_not_the_path(raw_path: bytes | None) -> None:
    """A replacement character may be what the client sent, and the path may have been rewritten."""
    environ = environ_of(path="/\ufffd", raw_path=raw_path)
    assert "/\ufffd" == environ["PATH_INFO"].encode("latin-1").decode()


def test_path_with_surrogates_for_bytes() -> None:
    """Servers may decode with surrogateescape."""
    assert "/\xff" == environ_of(path=b"/\xff".decode(errors="surrogateescape"))["PATH_INFO"]


def test_query_string_of_any_bytes() -> None:
    every_byte = bytes(range(256))
    assert every_byte == environ_of(query_string=every_byte)["QUERY_STRING"].encode("latin-1")


@pytest.mark.parametrize(
    ("raw_path", "query", "uri"),
    [(b"/a%20b", b"", "/a%20b"), (b"/a", b"b=c", "/a?b=c"), (b"/\xff", b"\xfe", "/\xff?\xfe")],
)
def test_uri_as_the_client_sent_it(raw_path: bytes, query: bytes, uri: str) -> None:
    environ = environ_of(path="/a b", raw_path=raw_path, query_string=query)
    assert (uri, uri) == (environ["RAW_URI"], environ["REQUEST_URI"])


# Client and server:


@pytest.mark.parametrize("client", [("192.0.2.1", 5), ["192.0.2.1", 5]])
def test_address_of_the_client(client: Any) -> None:
    environ = environ_of(client=client)
    assert ("192.0.2.1", "192.0.2.1", "5") == tuple(environ[f"REMOTE_{key}"] for key in ("ADDR", "HOST", "PORT"))


@pytest.mark.parametrize("client", [None, (), ("", 0), [None, None]])
def test_unknown_address_of_the_client(client: Any) -> None:
    """Behind a Unix socket, for example; servers report it in different ways."""
    environ = environ_of(client=client)
    assert [] == [key for key in environ if key.startswith("REMOTE_")]


@pytest.mark.parametrize(
    ("scheme", "server", "name", "port"),
    [
        ("http", ("example.org", 8000), "example.org", "8000"),
        ("https", ["::1", 8443], "::1", "8443"),
        ("http", None, "localhost", "80"),
        ("https", None, "localhost", "443"),
        ("http", ("/run/server.sock", None), "localhost", "80"),
        ("https", ["/run/server.sock", None], "localhost", "443"),
        ("http", ("/run/server.sock", 0), "localhost", "80"),
        ("http", (), "localhost", "80"),
    ],
)
def test_address_of_the_server(scheme: str, server: Any, name: str, port: str) -> None:
    """The two keys must not be empty, so a Unix socket and an unknown address have replacement values."""
    environ = environ_of(scheme=scheme, server=server)
    assert (name, port) == (environ["SERVER_NAME"], environ["SERVER_PORT"])


@pytest.mark.parametrize(("scheme", "https"), [("http", None), ("https", "on")])
def test_https_is_told_as_other_servers_do(scheme: str, https: str | None) -> None:
    environ = environ_of(scheme=scheme)
    assert (scheme, https) == (environ["wsgi.url_scheme"], environ.get("HTTPS"))


@pytest.mark.parametrize("version", ["1.0", "1.1", "2", "3"])
def test_protocol_of_the_server(version: str) -> None:
    assert "HTTP/" + version == environ_of(http_version=version)["SERVER_PROTOCOL"]


# Headers:


@pytest.mark.parametrize(
    ("name", "key"),
    [
        (b"accept", "HTTP_ACCEPT"),
        (b"Accept", "HTTP_ACCEPT"),
        (b"ACCEPT-ENCODING", "HTTP_ACCEPT_ENCODING"),
        (b"x-uncommon", "HTTP_X_UNCOMMON"),
        (b"X-Uncommon", "HTTP_X_UNCOMMON"),
        (b"content-type", "CONTENT_TYPE"),
        (b"Content-Type", "CONTENT_TYPE"),
        (b"Content-Length", "CONTENT_LENGTH"),
        (b"Content-Encoding", "HTTP_CONTENT_ENCODING"),
        (b"x-\xe4\xb5\xff\xdf", "HTTP_X_\xe4\xb5\xff\xdf"),
    ],
)
def test_header_names_in_any_case(name: bytes, key: str) -> None:
    """Only the case of ASCII letters changes."""
    assert "1" == environ_of(headers=[(name, b"1")])[key]


def test_header_value_of_any_bytes() -> None:
    every_byte = bytes(range(256))
    assert every_byte == environ_of(headers=[[b"x-bytes", every_byte]])["HTTP_X_BYTES"].encode("latin-1")


def test_headers_from_an_iterator() -> None:
    assert "1" == environ_of(headers=iter([(b"x-one", b"1")]))["HTTP_X_ONE"]


def test_repeated_headers_are_joined() -> None:
    """Cookies, which may contain commas, are joined with semicolons; the case of a name does not matter."""
    headers = [
        (b"accept", b"a"),
        (b"cookie", b"a=1, 2"),
        (b"x-uncommon", b"1"),
        (b"Accept", b"b;q=0.5"),
        (b"Cookie", b"b=3"),
        (b"X-UNCOMMON", b"2"),
        (b"cookie", b"c=4"),
    ]
    environ = environ_of(headers=headers)
    expected = {"HTTP_ACCEPT": "a,b;q=0.5", "HTTP_COOKIE": "a=1, 2; b=3; c=4", "HTTP_X_UNCOMMON": "1,2"}
    assert expected == http_keys(environ)


@pytest.mark.parametrize("limit", [1, 2, 100])
def test_header_as_often_as_the_limit_allows(limit: int) -> None:
    environ = environ_of(limit, headers=[(b"a", b"1")] * limit + [(b"b", b"2")] * limit)
    assert {"HTTP_A": ",".join("1" * limit), "HTTP_B": ",".join("2" * limit)} == http_keys(environ)


@pytest.mark.parametrize("limit", [1, 2, 100])
@pytest.mark.parametrize("name", [b"accept", b"cookie", b"content-length", b"x-uncommon"])
def test_header_more_often_than_the_limit_is_refused(limit: int, name: bytes) -> None:
    headers = [(name if number else name.upper(), b"1") for number in range(limit + 1)]
    with pytest.raises(BadRequest, match=f"sent {limit + 1} times, more often than the limit of {limit}"):
        environ_of(limit, headers=headers)


def test_limit_of_none_allows_any_number() -> None:
    assert 1999 == len(environ_of(None, headers=[(b"a", b"")] * 2000)["HTTP_A"])


@pytest.mark.parametrize("value", [b"", b"a", b"-1", b"+1", b"1 ", b"1,1", b"1.5", b"0x1", b"\xb2", b"1" * 19])
def test_content_length_that_is_no_number_is_refused(value: bytes) -> None:
    with pytest.raises(BadRequest, match="Content-Length"):
        environ_of(headers=[(b"content-length", value)])


@pytest.mark.parametrize("limit", [100, None])
def test_content_lengths_that_contradict_each_other_are_refused(limit: int | None) -> None:
    with pytest.raises(BadRequest, match="Content-Length is '4,5'"):
        environ_of(limit, headers=[(b"content-length", b"5"), (b"Content-Length", b"4")])


def test_content_length_that_is_repeated_unchanged() -> None:
    assert "5" == environ_of(headers=[(b"content-length", b"5")] * 3)["CONTENT_LENGTH"]


def test_names_that_would_pass_for_others_are_dropped(caplog: pytest.LogCaptureFixture) -> None:
    """Underscores look like hyphens in an environ. Each name is logged once, as an argument of the message."""
    headers = [
        (b"x_forwarded_for", b"1"),
        (b"x-forwarded-for", b"2"),
        (b"X_FORWARDED-FOR", b"3"),
        (b"content_length", b"none"),
    ]
    for _ in range(2):
        environ = environ_of(headers=headers)
        assert {"HTTP_X_FORWARDED_FOR": "2"} == http_keys(environ)
        assert "CONTENT_LENGTH" not in environ
    messages = [record.getMessage() for record in caplog.records]
    names = ["'x_forwarded_for'", "'x_forwarded-for'", "'content_length'"]
    assert [True] * 3 == [name in message for name, message in zip(names, messages, strict=True)]
    assert "forwarded" not in caplog.records[0].msg


@pytest.mark.parametrize("name", [b"proxy", b"Proxy", b"PROXY"])
def test_a_client_does_not_set_http_proxy(name: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """Programs that an application starts would take this header for a setting."""
    environ = environ_of(headers=[(name, b"evil.example.org"), (b"proxy-authorization", b"1")])
    assert {"HTTP_PROXY_AUTHORIZATION": "1"} == http_keys(environ)
    assert 1 == len(caplog.records)


def test_a_long_name_does_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    environ_of(headers=[(b"_" * 100_000, b"")])
    assert len(caplog.records[0].getMessage()) < 400


@pytest.mark.parametrize("headers", [[(b"a" * 100_000, b"")] * 2, [(b"content-length", b"a" * 100_000)]])
def test_a_long_header_does_not_fill_the_reason(headers: Headers) -> None:
    with pytest.raises(BadRequest) as caught:
        environ_of(1, headers=headers)
    assert len(str(caught.value)) < 400


def test_clients_cannot_fill_the_log_with_names_of_headers(caplog: pytest.LogCaptureFixture) -> None:
    """A few names are logged; afterwards their number, each time it has grown tenfold."""
    for number in range(10_000 + NAMES):
        environ_of(headers=[(b"name_%d" % number, b"")])
    messages = [record.getMessage() for record in caplog.records]
    assert NAMES + 2 == len(messages)
    assert ["Dropped 1000 more", "Dropped 10000 more"] == [
        message.partition(" request")[0] for message in messages[NAMES:]
    ]


def test_name_of_a_header_is_logged_by_one_of_two_threads(caplog: pytest.LogCaptureFixture) -> None:
    """1. Thread A finds that the name was not logged. 2. Thread B finds the same. 3. One of them adds it, and logs."""

    dropped = DroppedHeaders("header", "this is a test")

    class Names(dict[str, object]):
        raced = False

        def setdefault(self, key: str, default: object = None) -> object:
            if not self.raced:
                self.raced = True
                dropped.add(key)
            return super().setdefault(key, default)

    dropped._names = Names()
    dropped.add("a_b")
    assert ["Dropped the header 'a_b', since this is a test; it is logged once"] == [
        record.getMessage() for record in caplog.records
    ]


@pytest.mark.parametrize("name", [b"transfer-encoding", b"Transfer-Encoding"])
def test_transfer_encoding_does_not_reach_the_application(name: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """The server has decoded the body, and an application would decode it again."""
    assert {} == http_keys(environ_of(headers=[(name, b"chunked")]))
    assert [] == caplog.records


@pytest.mark.parametrize(
    ("headers", "size", "length"),
    [([], 0, None), ([], 5, "5"), ([(b"content-length", b"0")], 0, "0"), ([(b"content-length", b"7")], 5, "7")],
)
def test_known_size_of_the_body_is_its_length(headers: Headers, size: int, length: str | None) -> None:
    """If the client does not send a length."""
    environ = environ_for(scope_with(headers=headers), io.BytesIO(), None, None, size)
    assert length == environ.get("CONTENT_LENGTH")


def test_the_file_wrapper_is_given() -> None:
    wrapper = object()
    assert environ_for(scope_with(), io.BytesIO(), None, wrapper)["wsgi.file_wrapper"] is wrapper


@pytest.mark.parametrize(
    ("headers", "length"),
    [
        ([], None),
        ([(b"content-length", b"0")], 0),
        ([(b"Content-Length", b"12"), (b"accept", b"1")], 12),
        ([(b"content-length", b"12"), (b"Content-Length", b"12")], 12),
        ([(b"content-length", b"12"), (b"content-length", b"13")], None),
        ([(b"content-length", b"-1")], None),
        ([(b"content-length", b"many")], None),
        ([(b"content-length", b"9" * 18)], 10**18 - 1),
        ([(b"content-length", b"9" * 19)], None),
    ],
)
def test_length_of_the_body_by_the_headers(headers: Headers, length: int | None) -> None:
    assert length == content_length_of(scope_with(headers=headers))
