"""Serve the app with uvicorn, be its client, and check what comes back."""

from __future__ import annotations

import hashlib
import socket
import threading
import time
from collections.abc import Iterator

import httpx
import uvicorn

from . import shop

__all__ = ["main"]

PIECE = bytes(range(256)) * 1024


def main() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:  # port 0: any free one
        config = uvicorn.Config(shop.app, lifespan="on", log_level="warning", timeout_graceful_shutdown=5)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listening],), name="uvicorn")
        thread.start()
        try:
            # The environment's proxies, if any, have no business here.
            port = listening.getsockname()[1]
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20, trust_env=False) as client:
                ask(client)
        finally:
            server.should_exit = True
            thread.join()
    print("All checks passed.")


def ask(client: httpx.Client) -> None:
    hello = client.get("/")
    assert (200, "Hello from HTTP/1.1!\n") == (hello.status_code, hello.text)
    print("Flask behind WsgiToAsgi and uvicorn")
    print(f"  GET /         {hello.text.strip()}")

    digest = client.post("/digest", content=upload())
    expected = hashlib.sha256(b"".join(upload())).hexdigest()
    assert (200, expected + "\n") == (digest.status_code, digest.text)
    print(f"  POST /digest  {len(PIECE) * 64 // 1024} KiB, hashed as they came: {expected[:16]}...")

    begin = time.monotonic()
    with client.stream("GET", "/ticks") as response:
        lines = [(line, time.monotonic() - begin) for line in response.iter_lines()]
    assert [f"tick {number}" for number in range(5)] == [line for line, _ in lines]
    print("  GET /ticks    " + ", ".join(f"{line} at {at:.1f} s" for line, at in lines))
    print()


def upload() -> Iterator[bytes]:
    for _ in range(64):
        yield PIECE
