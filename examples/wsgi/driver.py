"""Serve the app with uvicorn, send requests, and check the responses."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from examples.serving import client_of

from . import shop

if TYPE_CHECKING:
    import httpx

__all__ = ["main"]

PIECE = bytes(range(256)) * 1024


def main() -> None:
    with client_of(shop.app, lifespan="on") as client:
        ask(client)
    print("All checks passed.")


def ask(client: httpx.Client) -> None:
    hello = client.get("/")
    assert (200, "Hello from HTTP/1.1!\n") == (hello.status_code, hello.text)
    print("Flask behind WsgiToAsgi and uvicorn")
    print(f"  GET /         {hello.text.strip()}")

    digest = client.post("/digest", content=upload())
    expected = hashlib.sha256(b"".join(upload())).hexdigest()
    assert (200, expected + "\n") == (digest.status_code, digest.text)
    print(f"  POST /digest  {len(PIECE) * 64 // 1024} KiB, hashed while they arrived: {expected[:16]}...")

    begin = time.monotonic()
    with client.stream("GET", "/ticks") as response:
        lines = [(line, time.monotonic() - begin) for line in response.iter_lines()]
    assert [f"tick {number}" for number in range(5)] == [line for line, _ in lines]
    print("  GET /ticks    " + ", ".join(f"{line} at {at:.1f} s" for line, at in lines))
    print()


def upload() -> Iterator[bytes]:
    for _ in range(64):
        yield PIECE
