"""The site: synchronous, asynchronous and streaming views that query PostgreSQL, on this package or on upstream's.

Environment variables configure it: ``SITE_SOCKET``, the directory of the server's socket, ``SITE_MAX_AGE``, Django's
``CONN_MAX_AGE``, and ``SITE_MAX_THREADS``, empty for no limit.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import textwrap
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import django  # type: ignore[import-untyped]
from django.conf import settings  # type: ignore[import-untyped]

from asgiref import sync

settings.configure(
    ALLOWED_HOSTS=["*"],
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": "postgres",
            "USER": "site",
            "HOST": os.environ["SITE_SOCKET"],
            "CONN_MAX_AGE": int(os.environ["SITE_MAX_AGE"]),
        }
    },
    INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.auth"],
    LOGGING_CONFIG=None,
    ROOT_URLCONF=__name__,
    SECRET_KEY="x",
)
django.setup()

from django.contrib.auth.models import Group  # type: ignore[import-untyped]  # noqa: E402
from django.core.asgi import get_asgi_application  # type: ignore[import-untyped]  # noqa: E402
from django.db import connection  # type: ignore[import-untyped]  # noqa: E402
from django.db.backends.postgresql import base  # type: ignore[import-untyped]  # noqa: E402
from django.db.backends.postgresql.base import DatabaseWrapper  # type: ignore[import-untyped]  # noqa: E402
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse  # type: ignore[import-untyped]  # noqa: E402
from django.urls import path  # type: ignore[import-untyped]  # noqa: E402

# The current and the highest number of connections, counted here: a look from outside can miss the peak.
counting = threading.Lock()
open_connections = most_connections = 0


class Counted(DatabaseWrapper):  # type: ignore[misc]
    def get_new_connection(self, conn_params: Any) -> Any:
        count(1)
        try:
            return super().get_new_connection(conn_params)
        except BaseException:
            count(-1)
            raise

    def _close(self) -> None:
        if self.connection is None:
            super()._close()
            return
        with until_ended(self.connection):
            super()._close()
        count(-1)


@contextlib.contextmanager
def until_ended(opened: Any) -> Iterator[None]:
    """The connection *opened* is closed in the block, which ends when PostgreSQL no longer counts it.

    ``close`` only sends a message. Until the process of the connection has read it and has ended, the connection counts
    for ``CONNECTION LIMIT``. So without this, no client can use a limit up to its last connection: one thread that
    opens and closes connections, with a limit of 1, is refused 74 times out of 500, and 20 threads with a limit of 20
    are refused now and then; with this, never. A process closes its end of the socket after it has stopped counting.
    """
    if opened.closed:  # by the server
        yield
        return
    with socket.socket(fileno=os.dup(opened.pgconn.socket)) as stream:
        stream.settimeout(10)
        yield
        while stream.recv(65536):
            pass


def count(change: int) -> None:
    global open_connections, most_connections
    with counting:
        open_connections += change
        most_connections = max(most_connections, open_connections)


base.DatabaseWrapper = Counted  # as Django looks for backends


# The recipe of the guide, which closes connections with their threads, taken from there.
guide = Path(__file__).parents[2].joinpath("docs", "guides", "django.rst").read_text()
[recipe] = re.findall(r"   :caption: asgi.py\n\n(   import threading\n(?:   .*\n|\n)+)", guide)
exec(textwrap.dedent(recipe))

if os.environ["SITE_MAX_THREADS"]:
    sync.ThreadSensitiveContext.max_threads = int(os.environ["SITE_MAX_THREADS"])

# The streams that have sent their first part, and the event that they wait for before the last one.
waiting: set[object] = set()
go_on = asyncio.Event()


def slow_query() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_sleep(0.005)")
    return int(Group.objects.count())


def synchronous(request: HttpRequest) -> HttpResponse:
    return HttpResponse(b"%d" % slow_query())


async def asynchronous(request: HttpRequest) -> HttpResponse:
    await Group.objects.acount()
    await asyncio.sleep(0.005)
    return HttpResponse(b"%d" % await Group.objects.acount())


async def stream(request: HttpRequest) -> StreamingHttpResponse:
    async def parts() -> AsyncIterator[bytes]:
        yield b"%d\n" % await Group.objects.acount()
        if hasattr(sync, "release_thread"):  # upstream's package has none
            await sync.release_thread()
        waiting.add(request)
        await go_on.wait()
        waiting.discard(request)
        yield b"%d\n" % await Group.objects.acount()

    return StreamingHttpResponse(parts())


async def end_streams(request: HttpRequest) -> HttpResponse:
    """Return the number of open streams, and let all continue."""
    count = len(waiting)
    go_on.set()
    go_on.clear()
    return HttpResponse(b"%d" % count)


async def connections(request: HttpRequest) -> HttpResponse:
    """Return the highest number of connections so far."""
    return HttpResponse(b"%d" % most_connections)


urlpatterns = [
    path("connections", connections),
    path("sync", synchronous),
    path("async", asynchronous),
    path("stream", stream),
    path("end", end_streams),
]
application = get_asgi_application()
