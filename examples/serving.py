"""A real server for the examples: uvicorn, on a separate thread."""

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
    """Serve *app* during the block; yield an HTTP client for it."""
    with socket.create_server(("127.0.0.1", 0)) as listening:  # port 0: any free one
        config = uvicorn.Config(app, lifespan=lifespan, log_level="warning", timeout_graceful_shutdown=5)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listening],), name="uvicorn")
        thread.start()
        try:
            base_url = f"http://127.0.0.1:{listening.getsockname()[1]}"
            # Ignore proxies of the environment.
            with httpx.Client(base_url=base_url, timeout=20, trust_env=False) as client:
                yield client
        finally:
            server.should_exit = True
            thread.join()
