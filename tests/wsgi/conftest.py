"""The fixtures of the tests of ``WsgiToAsgi``."""

from __future__ import annotations

import asyncio

import pytest

from asgiref._wsgi.connection import Connection

from .helpers import Log


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
