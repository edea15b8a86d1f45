"""Synchronous and asynchronous views. Each calls the other side, and returns what it saw."""

from __future__ import annotations

import asyncio
import hashlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextvars import ContextVar

from django.conf import settings
from django.db import connection
from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.utils.decorators import sync_and_async_middleware

from asgiref.local import Local
from asgiref.sync import async_to_sync, sync_to_async

# The name in the request's query.
variable: ContextVar[str] = ContextVar("variable")
local = Local()


def _enter(request: HttpRequest) -> None:
    name = request.GET.get("name", "nobody")
    variable.set(name)
    local.name = name


@sync_and_async_middleware
def remember_name(get_response: Callable) -> Callable:
    if asyncio.iscoroutinefunction(get_response):

        async def middleware(request: HttpRequest) -> HttpResponse:
            _enter(request)
            return await get_response(request)
    else:

        def middleware(request: HttpRequest) -> HttpResponse:
            _enter(request)
            return get_response(request)

    return middleware


def _query() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 6 * 7")
        return cursor.fetchone()[0]


def _seen() -> dict[str, object]:
    return {"variable": variable.get("unset"), "local": getattr(local, "name", "unset"), "answer": _query()}


async def _ask() -> list[object]:
    """Make two calls of synchronous code, with a pause that lets other requests run."""
    first = threading.get_ident, _seen
    thread, seen = await sync_to_async(lambda: [function() for function in first])()
    await asyncio.sleep(0.01)
    other_thread = await sync_to_async(threading.get_ident)()
    return [seen, thread == other_thread]


def plain(request: HttpRequest) -> HttpResponse:
    seen, same_thread = async_to_sync(_ask)()
    return JsonResponse({"here": _seen(), "below": seen, "same thread": same_thread})


async def coroutine(request: HttpRequest) -> HttpResponse:
    seen, same_thread = await _ask()
    below = await sync_to_async(async_to_sync(_ask))()
    return JsonResponse({"here": seen, "below": below[0], "same thread": same_thread and below[1]})


def parts(request: HttpRequest) -> HttpResponse:
    def made() -> Iterator[bytes]:
        for number in range(100):
            yield b"%d of %s\n" % (number, variable.get().encode())

    return StreamingHttpResponse(made())


async def parts_of_coroutine(request: HttpRequest) -> HttpResponse:
    async def made() -> AsyncIterator[bytes]:
        for number in range(100):
            await asyncio.sleep(0)
            name = await sync_to_async(variable.get)() if number % 10 == 0 else variable.get()
            yield b"%d of %s\n" % (number, name.encode())

    return StreamingHttpResponse(made())


def _digest(request: HttpRequest) -> HttpResponse:
    file = request.FILES["file"]
    digest = hashlib.sha256()
    for chunk in file.chunks():
        digest.update(chunk)
    return JsonResponse({"length": file.size, "digest": digest.hexdigest(), "text": request.POST["text"]})


def upload(request: HttpRequest) -> HttpResponse:
    return _digest(request)


async def upload_to_coroutine(request: HttpRequest) -> HttpResponse:
    return await sync_to_async(_digest)(request)


def _mark(request: HttpRequest) -> None:
    (settings.DIRECTORY / f"arrived-{request.GET['name']}").touch()


def _released() -> bool:
    return (settings.DIRECTORY / "released").exists()


def held(request: HttpRequest) -> HttpResponse:
    """Answer when the test says so, by a file: the server has been told to stop, and accepts no request."""
    _mark(request)
    while not _released():
        time.sleep(0.02)
    return JsonResponse(_seen())


async def held_coroutine(request: HttpRequest) -> HttpResponse:
    await sync_to_async(_mark)(request)
    while not _released():  # noqa: ASYNC110  # another process releases it
        await asyncio.sleep(0.02)
    return JsonResponse(await sync_to_async(_seen)())
