"""WSGI applications behind ``WsgiToAsgi`` under real ASGI servers, and the same ones under WSGI servers."""

from __future__ import annotations

import functools
import hashlib
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from ..helpers import LIMIT, ROOT, Thread
from ..servers import ASGI_SERVERS, HOST, ROOT_PATH, UNIX_SERVERS, WSGI_SERVERS, Server, serving, serving_on_unix_socket

pytestmark = pytest.mark.slow

SERVERS = [*ASGI_SERVERS, *WSGI_SERVERS]

# How long nothing must happen, in seconds, until the test is sure that nothing will.
A_WHILE = 0.3

CHUNK = bytes(64 * 1024)
MANY = 512  # this many chunks do not fit into the buffers between client and server
BODY = bytes(range(256)) * 4096
LARGE_BODY = BODY * 3 + b"12345"  # collected in a file if it has no length
FILE = b"0123456789\n" * 300_000

# The headers that servers set, or may set.
SERVERS_OWN = {"connection", "content-length", "date", "server", "transfer-encoding"}
PLAIN = ("content-type", "text/plain")

TAKES_ALL = "it takes the whole body before it calls the application"


def skip(**reasons: str) -> pytest.MarkDecorator:
    """Skip those servers; ``native`` means each WSGI server."""
    params = []
    for name in SERVERS:
        native = reasons.get("native") if name in WSGI_SERVERS else None
        reason = reasons.get(name.replace("-", "_"), native)
        params.append(pytest.param(name, marks=[pytest.mark.skip(reason)] if reason else []))
    return pytest.mark.parametrize("server", params, indirect=True)


@pytest.fixture(scope="module", params=SERVERS)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(request.param, tmp_path_factory.mktemp("server")) as server:
        yield server
    assert [] == re.findall(".*(?:never retrieved|was destroyed|never awaited).*", server.log)
    # Hypercorn logs a KeyError if an HTTP/2 request is answered before its end has arrived.
    if server.name in ASGI_SERVERS and server.name != "hypercorn-h2":
        tracebacks = server.log.count("Traceback") - server.log.count("was the direct cause of the following exception")
        assert server.log.count("RuntimeError: ") == tracebacks, server.log


def connect(server: Server) -> httpx.Client:
    http2 = server.name.endswith("h2")
    path = server.address if isinstance(server.address, str) else None
    return httpx.Client(
        base_url="http://example.com" if path else f"http://{HOST}:{server.address[1]}",
        timeout=LIMIT,
        transport=httpx.HTTPTransport(http1=not http2, http2=http2, uds=path, verify=False),
    )


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    with connect(server) as client:
        yield client


def head(method: str, target: str, *headers: str) -> bytes:
    """Return a request without its body."""
    return "\r\n".join([f"{method} {target} HTTP/1.1", "Host: example.com", *headers, "", ""]).encode("latin-1")


def exchange(server: Server, data: bytes) -> bytes:
    """Send *data*, and return all data until the server closes the connection."""
    with server.connect() as connection:
        connection.sendall(data)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def status_of(server: Server, data: bytes) -> int:
    """Send *data*, and return the status of the response, without reading the rest."""
    with server.connect() as connection, connection.makefile("rb") as file:
        connection.sendall(data)
        return int(file.readline().split()[1])


def seen(response: httpx.Response) -> tuple[int, list[tuple[str, str]], str]:
    """Return the application's part of a response."""
    headers = sorted(item for item in response.headers.multi_items() if item[0] not in SERVERS_OWN)
    return response.status_code, headers, response.text


def eventually(fact: Callable[[], bool]) -> None:
    """Wait until *fact* is true."""
    deadline = time.monotonic() + LIMIT
    while not fact():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def settled(count: Callable[[], int]) -> int:
    """Return the result of *count* when it is not 0 and has not changed for a while."""
    deadline = time.monotonic() + LIMIT
    before, now = 0, count()
    while now == 0 or before != now:
        assert time.monotonic() < deadline
        time.sleep(A_WHILE)
        before, now = now, count()
    return now


def wait_for_record(client: httpx.Client, name: str, expected: list[Any]) -> None:
    eventually(lambda: expected == client.get(f"/record/{name}").json())


def digest(body: bytes) -> dict[str, Any]:
    return {"size": len(body), "sha256": hashlib.sha256(body).hexdigest()}


def chunks_of(body: bytes) -> Iterator[bytes]:
    return (body[start : start + len(CHUNK)] for start in range(0, len(body), len(CHUNK)))


# Connections.


def test_requests_run_in_parallel(server: Server) -> None:
    def ask() -> Any:
        # Each thread has a client: threads that share an HTTP/2 connection can send streams out of order.
        with connect(server) as client:
            return client.get("/parallel?8").json()

    assert list(range(8)) == sorted(thread.get() for thread in [Thread(ask) for _ in range(8)])


@skip(wsgiref="it closes each connection")
def test_connection_is_kept(client: httpx.Client) -> None:
    responses = [client.get("/echo/") for _ in range(20)]
    assert [200] * 20 == [response.status_code for response in responses]
    assert 1 == len({response.json()["REMOTE_PORT"] for response in responses})


@skip(wsgiref="it closes each connection", hypercorn_h2="HTTP/2 has streams")
def test_pipelined_requests_are_answered_in_order(server: Server) -> None:
    requests = [head("GET", f"/whole?{number}") for number in range(4)]
    data = exchange(server, b"".join([*requests, head("GET", "/whole?4", "Connection: close")]))
    assert [b"%d" % number for number in range(5)] == re.findall(rb"\r\n\r\na whole body: (\d)", data)


def test_server_that_insists_on_lifespan_starts(server: Server) -> None:
    if not server.name.startswith("uvicorn"):
        pytest.skip("it does not insist, or does not tell")
    assert "Application startup complete." in server.log


@skip(native="WSGI has no WebSockets", hypercorn_h2="the handshake is that of HTTP/1.1")
def test_websocket_is_refused(server: Server) -> None:
    handshake = head(
        "GET",
        "/whole",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version: 13",
    )
    assert 403 == status_of(server, handshake)


# The environ.


def test_environ_common_to_all_servers(server: Server, client: httpx.Client) -> None:
    response = client.post("/echo/a%2Fb/caf%C3%A9/?x=%C3%A9&y", content=b"12", headers={"Content-Type": "text/x-own"})
    told = response.json()
    port = str(server.address[1])
    expected = {
        "CONTENT_LENGTH": "2",
        "CONTENT_TYPE": "text/x-own",
        "HTTP_HOST": f"127.0.0.1:{port}",
        "PATH_INFO": "/a/b/caf\xc3\xa9/",
        "QUERY_STRING": "x=%C3%A9&y",
        "REMOTE_ADDR": "127.0.0.1",
        "REQUEST_METHOD": "POST",
        "SCRIPT_NAME": "/echo",
        "SERVER_PORT": port,
        "SERVER_PROTOCOL": "HTTP/2" if response.http_version == "HTTP/2" else "HTTP/1.1",
        "wsgi.url_scheme": "http",
    }
    assert expected == {key: told[key] for key in expected}


@skip(native="each has its own")
def test_environ_of_the_adapter(client: httpx.Client) -> None:
    told = client.get("/echo/a%2Fb?c").json()
    assert told["REMOTE_PORT"].isdigit()
    expected = {
        "RAW_URI": "/echo/a%2Fb?c",
        "REMOTE_HOST": "127.0.0.1",
        "REQUEST_URI": "/echo/a%2Fb?c",
        "SERVER_NAME": "127.0.0.1",
    }
    assert expected == {key: told[key] for key in expected}
    assert not {"CONTENT_TYPE", "CONTENT_LENGTH"} & told.keys()


@skip(native="each has its own way with them")
def test_repeated_headers_are_joined(client: httpx.Client) -> None:
    headers = [(b"Cookie", b"a=1"), (b"X-Own", b"1"), (b"Cookie", b"b=2,3"), (b"X-Own", b"\xe9"), (b"X-Own", b"")]
    told = client.get("/echo/", headers=headers).json()
    assert ("a=1; b=2,3", "1,\xe9,") == (told["HTTP_COOKIE"], told["HTTP_X_OWN"])


@skip(native="each has its own way with them")
def test_headers_that_could_pass_for_another_are_dropped(client: httpx.Client) -> None:
    told = client.get("/echo/", headers={"X_Forwarded_For": "evil", "Proxy": "evil", "X-Good": "1"}).json()
    assert "1" == told["HTTP_X_GOOD"]
    assert "evil" not in told.values()


@skip(native="WSGI servers have no such limit")
def test_header_repeated_more_than_the_limit_is_refused(client: httpx.Client) -> None:
    assert 200 == client.get("/echo/", headers=[("X-Own", "1")] * 10).status_code
    assert 400 == client.get("/echo/", headers=[("X-Own", "1")] * 11).status_code


@skip(wsgiref="it takes the first", hypercorn_h2="httpx cannot send them in HTTP/2")
def test_conflicting_lengths_are_refused(server: Server) -> None:
    request = head("POST", "/read", "Connection: close", "Content-Length: 2", "Content-Length: 3")
    assert 400 == status_of(server, request + b"123")


def test_any_escaped_byte_in_path_and_query(client: httpx.Client) -> None:
    everything = "".join(f"%{byte:02X}" for byte in range(256))
    told = client.get(f"/echo/{everything}?{everything}").json()
    assert "/" + bytes(range(256)).decode("latin-1") == told["PATH_INFO"]
    assert everything == told["QUERY_STRING"]


@skip(**dict.fromkeys(("uvicorn", "uvicorn_h11", "hypercorn", "hypercorn_h2", "daphne", "waitress"), "it refuses them"))
def test_bytes_beyond_ascii_in_path_and_query(server: Server) -> None:
    data = exchange(server, head("GET", "/echo/\xc3\xa9?\xc3\xb6", "Connection: close"))
    told = json.loads(data.partition(b"\r\n\r\n")[2])
    assert ("/\xc3\xa9", "\xc3\xb6") == (told["PATH_INFO"], told["QUERY_STRING"])


@pytest.mark.parametrize("name", UNIX_SERVERS)
def test_unix_socket_and_root_path(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    with serving_on_unix_socket(name, tmp_path_factory.mktemp("unix")) as server, connect(server) as client:
        told = client.get("/echo/a").json()
    expected = {"PATH_INFO": "/a", "SCRIPT_NAME": f"{ROOT_PATH}/echo", "SERVER_NAME": "localhost", "SERVER_PORT": "80"}
    assert expected == {key: told[key] for key in expected}
    assert not told.keys() & {"REMOTE_ADDR", "REMOTE_HOST", "REMOTE_PORT"}


# Request bodies.


@pytest.mark.parametrize("form", ["empty", "with a length", "chunked"])
@pytest.mark.parametrize(
    "way", ["read", *(f"validate/{way}" for way in ("read_all", "read_n", "readline", "readlines", "iteration"))]
)
def test_body_is_read(server: Server, client: httpx.Client, way: str, form: str) -> None:
    if server.name == "wsgiref" and (form == "chunked" or way != "validate/read_n"):
        pytest.skip("its wsgi.input does not end where the body does")
    body = b"" if form == "empty" else BODY
    headers = {} if form == "chunked" else {"Content-Length": str(len(body))}
    response = client.post(f"/{way}?{len(body)}", content=chunks_of(body), headers=headers)
    assert (200, digest(body)) == (response.status_code, response.json())


@skip(hypercorn_h2="frames come whole")
def test_request_that_comes_byte_by_byte(server: Server) -> None:
    request = head("POST", "/validate/read_n?3", "Connection: close", "Content-Length: 3") + b"abc"
    with server.connect() as connection, connection.makefile("rb") as file:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in request:
            connection.sendall(bytes([byte]))
        assert digest(b"abc")["sha256"].encode() in file.read()


@skip(native="they leave it to the application, or take the whole body")
@pytest.mark.parametrize("size", [0, 1, 5, len(BODY), len(LARGE_BODY)])
def test_chunked_body_is_read_by_its_length(client: httpx.Client, size: int) -> None:
    """Applications that know neither chunks nor HTTP/2 requests without a length read in this way."""
    body = LARGE_BODY[:size]
    assert digest(body) == client.post("/read_length", content=chunks_of(body)).json()


@skip(native="they leave it to the application, or take the whole body")
def test_chunked_body_can_be_sought(client: httpx.Client) -> None:
    for kind, body in (("memory", BODY), ("file", LARGE_BODY)):
        told = client.post("/seek", content=chunks_of(body)).json()
        assert {"kind": kind, "seen": len(body)} | digest(body) == told


@skip(native="they have threads to spare, or none")
def test_slow_chunked_upload_holds_no_thread(server: Server, client: httpx.Client) -> None:
    """There are more uploads than threads of the adapter, and other requests are answered meanwhile."""
    count, go_on = 45, threading.Event()

    def body() -> Iterator[bytes]:
        yield CHUNK
        assert go_on.wait(LIMIT)
        yield CHUNK

    def upload() -> Any:
        with connect(server) as other:
            return other.post("/read_length", content=body()).json()

    uploads = [Thread(upload) for _ in range(count)]
    try:
        for number in range(5):
            assert f"a whole body: {number}" == client.get(f"/whole?{number}").text
    finally:
        go_on.set()
    assert [digest(CHUNK * 2)] * count == [thread.get() for thread in uploads]


@skip(native="the application has to hear of it there")
def test_client_that_vanishes_during_its_chunked_upload(server: Server, client: httpx.Client) -> None:
    """The application is not called, and nothing is logged."""

    def body() -> Iterator[bytes]:
        yield LARGE_BODY
        raise Vanished

    before = server.log.count("Traceback")
    with pytest.raises(Vanished), connect(server) as other:
        other.post("/read_from_vanishing/chunked", content=body())
    assert "a whole body: next" == client.get("/whole?next").text
    assert [] == client.get("/record/chunked").json()
    assert before == server.log.count("Traceback")


@skip(daphne=TAKES_ALL, native=TAKES_ALL)
def test_client_is_held_back_while_nobody_reads(server: Server, client: httpx.Client) -> None:
    sent: list[int] = []

    def body() -> Iterator[bytes]:
        for number in range(MANY):
            sent.append(number)
            yield CHUNK

    with connect(server) as other:
        # It has a length, so it is not collected before the application reads it.
        headers = {"Content-Length": str(MANY * len(CHUNK))}
        upload = Thread(functools.partial(other.post, content=body(), headers=headers), "/read_late/gate")
        sent_before = settled(lambda: len(sent))
        client.get("/release/gate")
        assert digest(CHUNK * MANY) == upload.get().json()
    assert sent_before < MANY


class Vanished(Exception):
    """The client has disconnected."""


@skip(daphne=TAKES_ALL, waitress=TAKES_ALL, wsgiref="its wsgi.input merely ends")
def test_application_hears_of_a_client_that_vanishes_during_its_upload(server: Server, client: httpx.Client) -> None:
    def body() -> Iterator[bytes]:
        yield CHUNK
        wait_for_record(client, "upload", ["called"])
        raise Vanished

    with pytest.raises(Vanished), connect(server) as other:
        other.post("/read_from_vanishing/upload", content=body(), headers={"Content-Length": str(2 * len(CHUNK))})
    wait_for_record(client, "upload", ["called", "OSError", "closed"])


# Responses.


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    ("path", "status", "headers", "body"),
    [
        ("/whole?1", 200, [PLAIN, ("x-latin", "\xe9"), ("x-twice", "1"), ("x-twice", "2")], "a whole body: 1"),
        ("/validate/of_list", 201, [PLAIN], "list"),
        ("/validate/of_generator", 200, [PLAIN], "generator"),
        ("/validate/of_write", 200, [PLAIN], "written, and returned"),
        ("/validate/of_error_handler", 503, [PLAIN], "sorry"),
        ("/validate/empty", 200, [PLAIN], ""),
        ("/validate/no_content", 204, [], ""),
        ("/validate/not_modified", 304, [("etag", '"1"')], ""),
    ],
)
def test_response(
    client: httpx.Client, method: str, path: str, status: int, headers: list[tuple[str, str]], body: str
) -> None:
    assert (status, headers, body if method == "GET" else "") == seen(client.request(method, path))


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_whole_body_has_its_length(client: httpx.Client, method: str) -> None:
    assert "15" == client.request(method, "/whole?1").headers["content-length"]


@skip(native="it would have to join them")
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_list_has_its_length(client: httpx.Client, method: str) -> None:
    assert "10" == client.request(method, "/listed").headers["content-length"]


def test_body_longer_than_its_length_is_cut(client: httpx.Client) -> None:
    assert (200, [PLAIN], "01234") == seen(client.get("/with_length?5"))
    assert "a whole body: next" == client.get("/whole?next").text


def assert_cut_short(server: Server, path: str, expected: bytes) -> None:
    """Assert that at most *expected* of a response arrives, and that it does not look complete."""
    stays_open = server.name in ("daphne", "hypercorn-h2")
    body = b""
    with connect(server) as client:
        with client.stream("GET", path) as response:
            assert 200 == response.status_code
            if stays_open:
                response.request.extensions["timeout"]["read"] = A_WHILE
            with pytest.raises(httpx.ReadTimeout if stays_open else httpx.RemoteProtocolError):
                for piece in response.iter_raw():
                    body += piece
        assert expected == body
        assert "a whole body: next" == client.get("/whole?next").text


def assert_logged_once(server: Server, error: str) -> None:
    eventually(lambda: error in server.log)
    assert 1 == server.log.count(error)


def test_body_shorter_than_its_length_does_not_look_complete(server: Server) -> None:
    assert_cut_short(server, "/with_length?20", b"0123456789")


@skip(wsgiref="it asks for more", waitress="it asks for more")
def test_response_ends_with_the_last_byte_of_its_length(client: httpx.Client) -> None:
    assert "01234" == client.get("/whole_by_its_length/tail").text
    wait_for_record(client, "tail", ["closed"])


def test_failure_before_the_response(server: Server, client: httpx.Client) -> None:
    assert 500 == client.get("/failing?early").status_code
    assert "a whole body: next" == client.get("/whole?next").text
    assert_logged_once(server, "RuntimeError: early")


@skip(native="each has its own way with them")
@pytest.mark.parametrize("error", ["SystemExit", "GeneratorExit", "KeyboardInterrupt"])
def test_exception_that_could_end_the_server(server: Server, client: httpx.Client, error: str) -> None:
    """It is an error of the request, like any other."""
    assert 500 == client.get(f"/exiting?{error}").status_code
    assert "a whole body: next" == client.get("/whole?next").text
    assert_logged_once(server, f"RuntimeError: the application raised {error}")


@skip(daphne="it takes everything into its memory")
def test_generator_is_held_back_by_a_slow_client(server: Server, client: httpx.Client) -> None:
    with connect(server) as slow, slow.stream("GET", f"/large/slow?{MANY}") as response:
        assert settled(lambda: len(client.get("/record/slow").json())) < MANY
        assert MANY * len(CHUNK) == sum(map(len, response.iter_raw()))
    assert list(range(MANY)) == client.get("/record/slow").json()


@pytest.mark.parametrize("way", ["endless", "endless_write"])
def test_response_ends_when_its_client_vanishes(server: Server, client: httpx.Client, way: str) -> None:
    with connect(server) as other, other.stream("GET", f"/{way}/left_{way}") as response:
        assert next(response.iter_raw()).startswith(b"more\n")
    wait_for_record(client, f"left_{way}", ["closed"])


def test_file(server: Server, client: httpx.Client) -> None:
    response = client.get("/file")
    content = (ROOT / "tests" / "wsgi" / "applications.py").read_bytes()
    assert (200, content) == (response.status_code, response.content)
    offers = client.get("/echo/").json()["extensions"]
    assert ("granian" == server.name) == ("http.response.pathsend" in offers)


# Frameworks.


def test_flask(client: httpx.Client) -> None:
    html, plain = ("content-type", "text/html; charset=utf-8"), ("content-type", "text/plain; charset=utf-8")
    assert (200, [html], "Hello Zo\xeb!") == seen(client.get("/flask/hello", params={"name": "Zo\xeb"}))
    assert (200, [plain], "0 of /stream\n1 of /stream\n2 of /stream\n") == seen(client.get("/flask/stream"))
    assert {"a": ["1", "2"], "b": ["\xe9"]} == client.post("/flask/form", data={"a": ["1", "2"], "b": "\xe9"}).json()


def test_upload_to_flask(client: httpx.Client) -> None:
    response = client.post("/flask/upload", files={"file": ("name.txt", FILE)})
    assert {"name": "name.txt"} | digest(FILE) == response.json()


def test_upload_to_django(client: httpx.Client) -> None:
    response = client.post("/django/upload", files={"file": ("name.txt", FILE)}, data={"note": "\xe9"})
    assert {"name": "name.txt", "note": "\xe9"} | digest(FILE) == response.json()


# Failures in the middle of a response. Daphne notices no exceptions after such a failure, so these tests are last.


@skip(wsgiref="HTTP/1.0 has no way to tell")
def test_failure_in_the_midst_of_the_response(server: Server) -> None:
    assert_cut_short(server, "/failing_late?late", b"begun")
    assert_logged_once(server, "RuntimeError: late")


@skip(native="each has its own way with them")
@pytest.mark.parametrize("path", ["/starting_again", "/exiting_late?SystemExit"])
def test_misuse_in_the_midst_of_the_response(server: Server, path: str) -> None:
    before = server.log.count("RuntimeError: ")
    assert_cut_short(server, path, b"begun")
    if server.name != "daphne":
        eventually(lambda: before + 1 == server.log.count("RuntimeError: "))
