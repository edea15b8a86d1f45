"""The WSGI applications that real servers serve in the tests, in one: the first part of the path selects each.

Records of an application are returned by ``/record/NAME``. An application that waits continues after a request for
``/release/NAME``.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
import socketserver
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIServer, make_server
from wsgiref.validate import validator

import flask
from django import conf, http, urls  # type: ignore[import-untyped]
from django.core.wsgi import get_wsgi_application  # type: ignore[import-untyped]

from asgiref.wsgi import WsgiToAsgi

Environ = dict[str, Any]
Application = Callable[[Environ, Any], Iterable[bytes]]

CHUNK = bytes(64 * 1024)
LIMIT = 30.0
PACE = threading.Event()  # never set
TEXT = ("Content-Type", "text/plain")

APPLICATIONS: dict[str, Any] = {}
VALIDATED: dict[str, Application] = {}
records: defaultdict[str, list[Any]] = defaultdict(list)
gates: defaultdict[str, threading.Event] = defaultdict(threading.Event)
barriers: dict[str, threading.Barrier] = {}


def dispatch(applications: dict[str, Application], environ: Environ, start_response: Any) -> Iterable[bytes]:
    """Call the application that the first part of the path names, mounted there."""
    _, name, *rest = environ["PATH_INFO"].split("/", 2)
    environ["SCRIPT_NAME"] += "/" + name
    environ["PATH_INFO"] = "".join("/" + part for part in rest)
    return applications[name](environ, start_response)


wsgi = functools.partial(dispatch, APPLICATIONS)
asgi = WsgiToAsgi(wsgi, duplicate_header_limit=10)


def served(function: Application) -> Application:
    APPLICATIONS[function.__name__] = function
    return function


def validated(function: Application) -> Application:
    VALIDATED[function.__name__] = validator(function)
    return function


@served
def validate(environ: Environ, start_response: Any) -> Iterable[bytes]:
    return dispatch(VALIDATED, environ, start_response)


def as_json(start_response: Any, value: Any) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(value).encode()]


def digest(pieces: Iterable[bytes]) -> dict[str, Any]:
    body = b"".join(pieces)
    return {"size": len(body), "sha256": hashlib.sha256(body).hexdigest()}


@served
def record(environ: Environ, start_response: Any) -> Iterable[bytes]:
    return as_json(start_response, records[environ["PATH_INFO"]])


@served
def release(environ: Environ, start_response: Any) -> Iterable[bytes]:
    gates[environ["PATH_INFO"]].set()
    return as_json(start_response, None)


@served
def echo(environ: Environ, start_response: Any) -> Iterable[bytes]:
    scope = environ.get("asgi.scope", {})
    told: Environ = {key: value for key, value in environ.items() if type(value) is str and key not in os.environ}
    return as_json(start_response, told | {"extensions": sorted(scope.get("extensions") or {})})


@served
def parallel(environ: Environ, start_response: Any) -> Iterable[bytes]:
    """Answer when as many requests are running as the query says."""
    count = environ["QUERY_STRING"]
    return as_json(start_response, barriers.setdefault(count, threading.Barrier(int(count))).wait(LIMIT))


# Requests.


@served
def read(environ: Environ, start_response: Any) -> Iterable[bytes]:
    return as_json(start_response, digest([environ["wsgi.input"].read()]))


@validated
def read_all(environ: Environ, start_response: Any) -> Iterable[bytes]:
    return as_json(start_response, digest([environ["wsgi.input"].read(-1)]))


@validated
def read_n(environ: Environ, start_response: Any) -> Iterable[bytes]:
    size = int(environ["QUERY_STRING"])
    read = environ["wsgi.input"].read
    return as_json(start_response, digest(read(min(10_000, size - start)) for start in range(0, size, 10_000)))


@validated
def readline(environ: Environ, start_response: Any) -> Iterable[bytes]:
    return as_json(start_response, digest(iter(environ["wsgi.input"].readline, b"")))


@validated
def readlines(environ: Environ, start_response: Any) -> Iterable[bytes]:
    return as_json(start_response, digest(environ["wsgi.input"].readlines()))


@validated
def iteration(environ: Environ, start_response: Any) -> Iterable[bytes]:
    return as_json(start_response, digest(environ["wsgi.input"]))


@served
def read_length(environ: Environ, start_response: Any) -> Iterable[bytes]:
    """Read as many bytes as ``CONTENT_LENGTH`` says, as CGI programs do."""
    assert "HTTP_TRANSFER_ENCODING" not in environ
    return as_json(start_response, digest([environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))]))


@served
def seek(environ: Environ, start_response: Any) -> Iterable[bytes]:
    """Seek in the body, and return the type of its file object."""
    body = environ["wsgi.input"]
    size = body.seek(0, os.SEEK_END)
    body.seek(0)
    kind = "memory" if isinstance(body, io.BytesIO) else "file"
    return as_json(start_response, {"kind": kind, "seen": size} | digest([body.read()]))


@served
def read_late(environ: Environ, start_response: Any) -> Iterable[bytes]:
    """Read the body when the gate is open."""
    assert gates[environ["PATH_INFO"]].wait(LIMIT)
    return read(environ, start_response)


class Recorded:
    """A response that records its close()."""

    def __init__(self, chunks: Iterator[bytes], record: list[Any]) -> None:
        self._chunks, self._record = chunks, record

    def __iter__(self) -> Iterator[bytes]:
        return self._chunks

    def close(self) -> None:
        self._record.append("closed")


@served
def read_from_vanishing(environ: Environ, start_response: Any) -> Iterable[bytes]:
    """Read the body, and record the result or the exception."""
    record = records[environ["PATH_INFO"]]

    def chunks() -> Iterator[bytes]:
        record.append("called")
        try:
            environ["wsgi.input"].read()
        except OSError:
            record.append("OSError")
            raise
        start_response("200 OK", [TEXT])
        yield b"read"

    return Recorded(chunks(), record)


# Responses.


@served
def whole(environ: Environ, start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", [TEXT, ("X-Twice", "1"), ("X-Twice", "2"), ("X-Latin", "\xe9")])
    return [b"a whole body: " + environ["QUERY_STRING"].encode("latin-1")]


@served
def listed(environ: Environ, start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", [TEXT])
    return [b"01234", b"", b"56789"]


@validated
def of_list(environ: Environ, start_response: Any) -> Iterable[bytes]:
    start_response("201 Created", [TEXT])
    return [b"li", b"st"]


@validated
def of_generator(environ: Environ, start_response: Any) -> Iterator[bytes]:
    start_response("200 OK", [TEXT])
    yield b""
    yield b"gene"
    yield b"rator"


@validated
def of_write(environ: Environ, start_response: Any) -> Iterable[bytes]:
    write = start_response("200 OK", [TEXT])
    write(b"writ")
    write(b"ten, ")
    return [b"and returned"]


@validated
def of_error_handler(environ: Environ, start_response: Any) -> Iterable[bytes]:
    try:
        start_response("200 OK", [TEXT, ("X-First", "1")])
        raise ValueError("handled by the application")
    except ValueError:
        start_response("503 Service Unavailable", [TEXT], sys.exc_info())
        return [b"sorry"]


@validated
def empty(environ: Environ, start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", [TEXT])
    return []


@validated
def no_content(environ: Environ, start_response: Any) -> Iterable[bytes]:
    start_response("204 No Content", [])
    return []


@validated
def not_modified(environ: Environ, start_response: Any) -> Iterable[bytes]:
    start_response("304 Not Modified", [("ETag", '"1"')])
    return []


@served
def with_length(environ: Environ, start_response: Any) -> Iterable[bytes]:
    """Send ten bytes, with the length that the query says."""
    start_response("200 OK", [TEXT, ("Content-Length", environ["QUERY_STRING"])])
    yield b"01234"
    yield b"56789"


@served
def whole_by_its_length(environ: Environ, start_response: Any) -> Iterable[bytes]:
    """Send as many bytes as announced, and continue only when the gate is open."""
    name = environ["PATH_INFO"]

    def chunks() -> Iterator[bytes]:
        yield b"01234"
        records[name].append("asked for more")
        assert gates[name].wait(LIMIT)

    start_response("200 OK", [TEXT, ("Content-Length", "5")])
    return Recorded(chunks(), records[name])


@served
def failing(environ: Environ, start_response: Any) -> Iterable[bytes]:
    raise RuntimeError(environ["QUERY_STRING"])


@served
def failing_late(environ: Environ, start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", [TEXT])
    yield b"begun"
    raise RuntimeError(environ["QUERY_STRING"])


@served
def starting_again(environ: Environ, start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", [TEXT])
    yield b"begun"
    start_response("500 Internal Server Error", [TEXT])
    yield b"sorry"


@served
def exiting(environ: Environ, start_response: Any) -> Iterable[bytes]:
    exceptions: dict[str, type[BaseException]] = {
        "SystemExit": SystemExit,
        "GeneratorExit": GeneratorExit,
        "KeyboardInterrupt": KeyboardInterrupt,
    }
    raise exceptions[environ["QUERY_STRING"]]


@served
def exiting_late(environ: Environ, start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", [TEXT])
    yield b"begun"
    yield from exiting(environ, start_response)


@served
def large(environ: Environ, start_response: Any) -> Iterable[bytes]:
    """Send as many chunks as the query says, and record each request for one."""
    record = records[environ["PATH_INFO"]]
    start_response("200 OK", [TEXT])
    for number in range(int(environ["QUERY_STRING"])):
        record.append(number)
        yield CHUNK


@served
def endless(environ: Environ, start_response: Any) -> Iterable[bytes]:
    """Yield chunks, at an even pace, until the server stops the iteration."""
    start_response("200 OK", [TEXT])
    chunks = (b"more\n" for _ in iter(lambda: PACE.wait(0.01), True))
    return Recorded(chunks, records[environ["PATH_INFO"]])


@served
def endless_write(environ: Environ, start_response: Any) -> Iterable[bytes]:
    """Write chunks, at an even pace, until ``write`` raises."""
    write = start_response("200 OK", [TEXT])
    try:
        while not PACE.wait(0.01):
            write(b"more\n")
    finally:
        records[environ["PATH_INFO"]].append("closed")
    return []


@served
def file(environ: Environ, start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", [TEXT])
    wrapper: Callable[..., Iterable[bytes]] = environ["wsgi.file_wrapper"]
    return wrapper(Path(__file__).open("rb"))


# Frameworks.

flask_application = APPLICATIONS["flask"] = flask.Flask(__name__)


@flask_application.get("/hello")
def hello() -> str:
    return f"Hello {flask.request.args['name']}!"


@flask_application.post("/form")
def form() -> flask.Response:
    return flask.jsonify(flask.request.form.to_dict(flat=False))


@flask_application.post("/upload")
def upload() -> flask.Response:
    file = flask.request.files["file"]
    return flask.jsonify(name=file.filename, **digest(file.stream))


@flask_application.get("/stream")
def stream() -> flask.Response:
    parts = (f"{number} of {flask.request.path}\n" for number in range(3))
    return flask.Response(flask.stream_with_context(parts), mimetype="text/plain")


def django_upload(request: Any) -> http.JsonResponse:
    file = request.FILES["file"]
    return http.JsonResponse({"name": file.name, "note": request.POST["note"], **digest(file.chunks())})


urlpatterns = [urls.path("upload", django_upload)]
conf.settings.configure(ALLOWED_HOSTS=["*"], ROOT_URLCONF=__name__)
APPLICATIONS["django"] = get_wsgi_application()


class ThreadingWSGIServer(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True


if __name__ == "__main__":
    make_server(sys.argv[1], int(sys.argv[2]), wsgi, ThreadingWSGIServer).serve_forever()
