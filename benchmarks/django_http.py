"""Django under an ASGI server and a WSGI server."""

from __future__ import annotations

from .cases import HERE, UPSTREAM
from .servers import ServedRow, ServerWay
from .wsgi import GUNICORN, HELLO, UVICORN

FAMILY = "Django"
GTHREAD = "gunicorn gthread"
MIDDLEWARE = " ".join(
    f"django.middleware.{name}"
    for name in ("security.SecurityMiddleware", "common.CommonMiddleware", "csrf.CsrfViewMiddleware",
                 "clickjacking.XFrameOptionsMiddleware")
)  # fmt: skip
ENVIRONMENT = {"BENCHMARK_MIDDLEWARE": ""}

ASGI = ServerWay(
    ("-m", "uvicorn", "benchmarks.django_site:asgi", *UVICORN),
    ENVIRONMENT,
    ("django", "uvicorn", "uvloop", "httptools"),
)
WSGI = ServerWay((*GUNICORN, "benchmarks.django_site:wsgi"), ENVIRONMENT, ("django", "gunicorn"))


def with_middleware(way: ServerWay) -> ServerWay:
    return ServerWay(way.command, {"BENCHMARK_MIDDLEWARE": MIDDLEWARE}, way.needs)


def asgi_name(view: str) -> str:
    return f"Django, uvicorn, {view} view"


def wsgi_name(view: str) -> str:
    return f"Django, {GTHREAD}, {view} view"


ROWS = [
    ServedRow(asgi_name("async"), FAMILY, {HERE: ASGI, UPSTREAM: ASGI}, HELLO, "/async"),
    ServedRow(asgi_name("sync"), FAMILY, {HERE: ASGI, UPSTREAM: ASGI, GTHREAD: WSGI}, HELLO, "/sync"),
    ServedRow(asgi_name("SQLite"), FAMILY, {HERE: ASGI, UPSTREAM: ASGI, GTHREAD: WSGI}, HELLO, "/sqlite"),
    ServedRow(
        f"{asgi_name('sync')} with four middlewares",
        FAMILY,
        {HERE: with_middleware(ASGI), UPSTREAM: with_middleware(ASGI), GTHREAD: with_middleware(WSGI)},
        HELLO,
        "/sync",
    ),
    ServedRow(wsgi_name("sync"), FAMILY, {HERE: WSGI, UPSTREAM: WSGI}, HELLO, "/sync"),
    ServedRow(wsgi_name("async"), FAMILY, {HERE: WSGI, UPSTREAM: WSGI}, HELLO, "/async"),
]
