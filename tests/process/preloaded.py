"""A program that a server loads before it forks: it has made bridged calls by then, and makes more in each request."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable
from typing import Any

from asgiref.local import Local
from asgiref.sync import ThreadSensitiveContext, async_to_sync, sync_to_async
from asgiref.wsgi import WsgiToAsgi

local = Local()


def both_ways(text: str) -> str:
    """Pass *text* through both directions of the bridge and through a ``Local``, and return it."""

    async def inner() -> str:
        local.text = text
        async with ThreadSensitiveContext():
            return await sync_to_async(lambda: str(local.text))()

    async def main() -> str:
        return await sync_to_async(async_to_sync(inner), thread_sensitive=False)()

    assert text == async_to_sync(main)()
    return str(local.text)


def work() -> None:
    """Work for a process that is forked from this one."""
    assert "child" == both_ways("child") == asyncio.run(sync_to_async(both_ways)("child"))


def wsgi(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    yield f"{both_ways(environ['QUERY_STRING'])} {parent} {os.getpid()}".encode()


def wsgi_on_worker(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Use the worker of the process, too."""
    # Not asyncio.run(): on the main thread, it replaces the signal handler of uWSGI.
    loop = asyncio.new_event_loop()
    loop.run_until_complete(sync_to_async(both_ways)("on the worker"))
    loop.close()
    return wsgi(environ, start_response)


asgi = WsgiToAsgi(wsgi)
parent = os.getpid()
assert "parent" == both_ways("parent") == asyncio.run(sync_to_async(both_ways)("parent"))
