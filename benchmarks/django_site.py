"""A Django site with the measured views, set up by the project template but without applications.

``BENCHMARK_MIDDLEWARE`` is a list, separated by spaces.
"""

from __future__ import annotations

import os
from typing import Any

from django import conf, http, urls  # type: ignore[import-untyped]
from django.core.asgi import get_asgi_application  # type: ignore[import-untyped]
from django.core.wsgi import get_wsgi_application  # type: ignore[import-untyped]
from django.db import connection  # type: ignore[import-untyped]

conf.settings.configure(
    ALLOWED_HOSTS=["*"],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "site.sqlite3", "CONN_MAX_AGE": None}},
    MIDDLEWARE=os.environ.get("BENCHMARK_MIDDLEWARE", "").split(),
    ROOT_URLCONF=__name__,
    SECRET_KEY="benchmarks",
)


async def async_view(request: Any) -> Any:
    return http.HttpResponse(b"Hello, world!\n")


def sync_view(request: Any) -> Any:
    return http.HttpResponse(b"Hello, world!\n")


def sqlite_view(request: Any) -> Any:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 'Hello, world!'")
        (hello,) = cursor.fetchone()
    return http.HttpResponse(f"{hello}\n".encode())


urlpatterns = [urls.path("async", async_view), urls.path("sync", sync_view), urls.path("sqlite", sqlite_view)]
asgi = get_asgi_application()
wsgi = get_wsgi_application()
