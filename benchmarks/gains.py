"""The rows that the page on performance shows first: work that users notice, compared with upstream's package."""

from __future__ import annotations

from collections.abc import Iterator

from . import async_to_sync, contexts, django_http, local, memory, sync_to_async
from .cases import UPSTREAM
from .run import Result, Run

ROWS = (
    *[django_http.asgi_name(view) for view in ("async", "sync", "SQLite")],
    "WSGI, 1 MiB in 256 chunks",
    sync_to_async.ONE,
    sync_to_async.MANY,
    contexts.ONE,
    contexts.MANY,
    async_to_sync.TOP,
    async_to_sync.BLOCK,
    local.name(local.PLAIN, "get", local.PLACES[0]),
    memory.SENSITIVE,
)


def gains(run: Run) -> Iterator[tuple[str, Result]]:
    """Yield the names and results of those of ``ROWS`` that *run* compares with upstream."""
    results = {name: result for rows in run.families.values() for name, result in rows.items()}
    for name in ROWS:
        if name in results and UPSTREAM in results[name].costs:
            yield name, results[name]
