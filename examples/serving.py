"""A real server for the examples: uvicorn, on a thread of its own."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any, Literal

import httpx
import uvicorn

__all__ = ["client_of"]


@contextlib.contextmanager
def client_of(app: Any, *, lifespan: Literal["on", "off"]) -> Iterator[httpx.Client]:
    """Serve *app* for the block, and give a client of it."""
    with socket.create_server(("127.0.0.1", 0)) as listening:  # port 0: any free one
        config = uvicorn.Config(app, lifespan=lifespan, log_level="warning", timeout_graceful_shutdown=5)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listening],), name="uvicorn")
        thread.start()
        try:
            base_url = f"http://127.0.0.1:{listening.getsockname()[1]}"
            # The environment's proxies, if any, have no business here.
            with httpx.Client(base_url=base_url, timeout=20, trust_env=False) as client:
                yield client
        finally:
            server.should_exit = True
            thread.join()
