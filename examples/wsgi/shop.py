"""The app, for any ASGI server: ``uvicorn examples.wsgi.shop:app``."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator

from flask import Flask, request

from asgiref.wsgi import WsgiToAsgi

__all__ = ["app"]

flask_app = Flask(__name__)
# Views run on worker threads, so they may block.
app = WsgiToAsgi(flask_app, max_body_size=1 << 30)


@flask_app.get("/")
def hello() -> str:
    return f"Hello from {request.environ['SERVER_PROTOCOL']}!\n"


@flask_app.post("/digest")
def digest() -> str:
    """Read an upload in pieces; the client cannot send faster."""
    found = hashlib.sha256()
    while piece := request.stream.read(64 * 1024):
        found.update(piece)
    return found.hexdigest() + "\n"


@flask_app.get("/ticks")
def ticks() -> Iterator[str]:
    """Stream lines, ten per second, until the client disconnects."""
    for number in range(5):
        yield f"tick {number}\n"
        time.sleep(0.1)
