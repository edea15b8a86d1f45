"""The fixtures for the tests of ``WsgiToAsgi``."""

from __future__ import annotations

import asyncio

import pytest

from asgiref._wsgi import environ, response
from asgiref._wsgi.connection import Connection
from asgiref._wsgi.dropped import DroppedHeaders

from .helpers import Log


@pytest.fixture(autouse=True)
def nothing_dropped_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each name of a dropped header be logged again."""
    for module in (environ, response):
        before = module._dropped
        monkeypatch.setattr(module, "_dropped", DroppedHeaders(before._what, before._reason))


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Log:
    return Log(caplog)


@pytest.fixture
def held_back(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Return an event that is set when the application waits for room in the queue."""
    event = asyncio.Event()
    wait_for_news = Connection.wait_for_news

    async def note_and_wait_for_news(connection: Connection) -> None:
        event.set()
        await wait_for_news(connection)

    monkeypatch.setattr(Connection, "wait_for_news", note_and_wait_for_news)
    return event
