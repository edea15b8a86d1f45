"""A Django site with PostgreSQL keeps to its connections under any load; ``run.py`` does the same at length."""

from __future__ import annotations

import asyncio
import sys
from types import SimpleNamespace

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="paths are others there")]

LOAD = SimpleNamespace(requests=60, at_once=40, streams=40)


def test_no_request_fails_and_no_connection_is_one_too_many() -> None:
    """40 requests at once, and 40 open streams that have released their threads, on 20 threads."""
    for package in ("django", "uvicorn"):
        pytest.importorskip(package)
    pytest.importorskip("psycopg", reason="the driver of PostgreSQL cannot be imported", exc_type=ImportError)
    from . import run

    with run.database(max_connections=30) as used:
        for max_age in 0, 600:
            with run.site(used, run.ALLOWED, max_age) as server:
                assert [] == asyncio.run(run.judge(used, server, LOAD))
