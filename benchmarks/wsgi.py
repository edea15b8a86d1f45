"""WSGI applications under real servers: ``WsgiToAsgi`` compared with other ways to serve them.

Also the memory growth of the server, at its peak, for a large upload and for a large response
to a client that pauses first.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from .cases import HERE, UPSTREAM
from .servers import Plan, ServedRow, Server, ServerFailed, ServerWay, choose, free_ports, running, uninterrupted
from .turns import Cost, costs

FAMILY = "WSGI"
MIB = 1024 * 1024
PIECE = bytes(64 * 1024)
HELLO = b"Hello, world!\n"
APPLICATION = "benchmarks.wsgi_apps:application"

UVICORN = (
    "--port", "{port}", "--workers", "1", "--loop", "uvloop", "--http", "httptools",
    "--no-access-log", "--log-level", "warning",
)  # fmt: skip
GRANIAN = ("-m", "granian", "--port", "{port}", "--workers", "1", "--log-level", "warning")
HYPERCORN = ("-m", "hypercorn", "-b", "127.0.0.1:{port}", "-w", "1", "--log-level", "warning")
GUNICORN = (
    "-m", "gunicorn", "-b", "127.0.0.1:{port}", "-w", "1", "-k", "gthread", "--threads", "8", "--keep-alive", "60",
    "--no-control-socket", "--log-level", "warning",
)  # fmt: skip

# If a2wsgi is installed, uvicorn uses it for --interface wsgi instead of its own adapter.
UVICORN_ALONE = "import sys; sys.modules['a2wsgi'] = None; from uvicorn.main import main; main()"


def ways(application: str) -> dict[str, ServerWay]:
    """Return the ways to serve *application*: combinations of an adapter and a server."""
    uvicorn = ("-m", "uvicorn", APPLICATION, *UVICORN), ("uvicorn", "uvloop", "httptools")
    asgi: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
        "uvicorn": uvicorn,
        "hypercorn": ((*HYPERCORN, f"asgi:{APPLICATION}"), ("hypercorn",)),
        "daphne": (("-m", "daphne", "-b", "127.0.0.1", "-p", "{port}", "-v", "0", APPLICATION), ("daphne",)),
        "granian": ((*GRANIAN, "--interface", "asgi", APPLICATION), ("granian",)),
    }
    waitress = ("-m", "waitress", "--listen=127.0.0.1:{port}", "--threads=8", APPLICATION)
    flask = ("flask",) if application == "flask" else ()

    def way(adapter: str, command: tuple[str, ...], needs: tuple[str, ...]) -> ServerWay:
        return ServerWay(command, {"BENCHMARK_APPLICATION": f"{adapter} {application}"}, (*needs, *flask))

    found = {HERE: way("WsgiToAsgi", *uvicorn), UPSTREAM: way("WsgiToAsgi", *uvicorn)}
    found |= {f"here, {server}": way("WsgiToAsgi", *asgi[server]) for server in asgi if server != "uvicorn"}
    found["a2wsgi"] = way("a2wsgi", uvicorn[0], ("a2wsgi", *uvicorn[1]))
    found["uvicorn --interface wsgi"] = way(
        "WSGI", ("-c", UVICORN_ALONE, APPLICATION, "--interface", "wsgi", *UVICORN), uvicorn[1]
    )
    found["granian --interface wsgi"] = way("WSGI", (*GRANIAN, "--interface", "wsgi", APPLICATION), ("granian",))
    found["waitress, 8 threads"] = way("WSGI", waitress, ("waitress",))
    found["gunicorn, 8 threads"] = way("WSGI", (*GUNICORN, APPLICATION), ("gunicorn",))
    return found | {f"pure ASGI, {server}": way("ASGI", *asgi[server]) for server in asgi}


def row(name: str, application: str, answer: bytes, *, body: int = 0) -> ServedRow:
    return ServedRow(f"WSGI, {name}", FAMILY, ways(application), answer, body=body)


ROWS = [
    row("hello", "hello", HELLO),
    row("Flask hello", "flask", HELLO),
    row("blocking 20 ms", "blocking", HELLO),
    row("1 MiB in 256 chunks", "chunks", b"x" * MIB),
    row("1 MiB POST", "upload", b"%d\n" % MIB, body=MIB),
]


@dataclass
class TransferRow:
    """One large transfer; its cost is the peak memory growth of the server."""

    name: str
    transfer: Callable[[int, int], None]
    ways: Mapping[str, ServerWay]
    family: str = FAMILY
    unit: str = "MiB"


def send_large(port: int, size: int) -> None:
    send_upload(port, size, f"Content-Length: {size}", PIECE, b"")


def send_large_in_chunks(port: int, size: int) -> None:
    send_upload(port, size, "Transfer-Encoding: chunked", b"%x\r\n%b\r\n" % (len(PIECE), PIECE), b"0\r\n\r\n")


def send_upload(port: int, size: int, header: str, piece: bytes, end: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port), 60) as connection:
        connection.sendall(f"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\n{header}\r\nConnection: close\r\n\r\n".encode())
        for _ in range(size // len(PIECE)):
            connection.sendall(piece)
        connection.sendall(end)
        answer = b""
        while received := connection.recv(len(PIECE)):
            answer += received
    if not answer.startswith(b"HTTP/1.1 200 ") or not answer.endswith(b"\r\n\r\n%d\n" % size):
        raise ServerFailed(f"answered {answer[:100]!r} to the upload")


def receive_large(port: int, size: int) -> None:
    with socket.create_connection(("127.0.0.1", port), 60) as connection:
        connection.sendall(f"GET /?{size} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
        time.sleep(1)
        total, first, last = 0, b"", b""
        while received := connection.recv(64 * 1024):
            total += len(received)
            first = first or received
            last = (last + received)[-5:]
    if not first.startswith(b"HTTP/1.1 200 ") or total < size or last != b"0\r\n\r\n":
        raise ServerFailed(f"sent {total} bytes that begin with {first[:20]!r}")


TRANSFERS = [
    TransferRow("WSGI, memory for a large upload", send_large, {HERE: ways("upload")[HERE]}),
    TransferRow("WSGI, memory for a large chunked upload", send_large_in_chunks, {HERE: ways("upload")[HERE]}),
    TransferRow("WSGI, memory for a large response", receive_large, {HERE: ways("download")[HERE]}),
]


def measure_transfer(row: TransferRow, plan: Plan) -> tuple[dict[str, Cost], dict[str, str]]:
    names, failed = choose(row.ways, plan)
    grown: dict[str, list[tuple[float, float]]] = {}
    for name in names:
        with running() as servers:
            with uninterrupted():
                server = Server(name, row.ways[name], free_ports(1)[0], plan)
                servers.append(server)
            try:
                server.wait_until_up()
                row.transfer(server.port, MIB)
                server.forget_peak()
                before = server.memory("VmRSS")
                row.transfer(server.port, plan.large)
                grown[name] = [(server.memory("VmHWM") - before, 0)]
            except (ServerFailed, OSError) as reason:
                failed[name] = str(reason)
    return (costs(grown) if HERE in grown else {}), failed
