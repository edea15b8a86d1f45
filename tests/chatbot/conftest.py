"""The fixtures for the tests of the chat bot."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from examples.chatbot.store import Store

from .helpers import FakeServer


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """Return a store that belongs to the thread of the test."""
    store = Store(tmp_path / "chatbot.sqlite3")
    store.open()
    yield store
    store.close()


@pytest.fixture
async def server() -> AsyncIterator[FakeServer]:
    async with FakeServer() as server:
        yield server


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "chatbot.sqlite3"
