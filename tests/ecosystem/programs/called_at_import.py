"""A WSGI application whose import ends with a call of asynchronous code."""

from __future__ import annotations

from collections.abc import Callable

from asgiref.sync import async_to_sync


def application(environ: dict, start_response: Callable) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"answered"]


async def _prepare() -> None:
    """Read the settings, say, from somewhere."""


async_to_sync(_prepare)()
