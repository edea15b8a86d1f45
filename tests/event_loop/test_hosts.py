"""Tests under programs that start loops, each in a separate process: pytest-asyncio, pytest-django, anyio, Channels."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import asgiref

from ..helpers import LIMIT, ROOT
from ..servers import postgresql

NOTES = ROOT / "examples" / "notes"

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="paths are others there")]


def outcome_of_pytest(directory: Path, *options: str, **environment: str) -> str:
    """Run pytest on *directory*; return the last line of its output."""
    path = str(Path(asgiref.__file__).parent.parent)
    process = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "faulthandler_timeout=20", *options],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", **environment},
        stderr=subprocess.STDOUT,
        stdout=subprocess.PIPE,
        timeout=4 * LIMIT,
        text=True,
    )
    outcome = process.stdout.rstrip().splitlines()[-1]
    assert process.returncode in (0, 1), process.stdout
    return outcome if process.returncode else outcome.partition(" in ")[0].partition(",")[0]


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    for package in ("django", "pytest_django", "pytest_asyncio"):
        pytest.importorskip(package)
    return Path(shutil.copytree(NOTES, tmp_path / "notes", ignore=shutil.ignore_patterns("__pycache__")))


@pytest.mark.parametrize("scope", ["function", "module", "session"])
def test_django_site_with_the_database_in_memory(notes: Path, scope: str) -> None:
    """With a loop for each test, for a module, or for all."""
    options = [f"asyncio_default_{what}_loop_scope={scope}" for what in ("test", "fixture")]
    assert "14 passed" == outcome_of_pytest(notes, "-o", options[0], "-o", options[1], NOTES_DATABASE="memory")


def test_django_site_with_the_database_in_a_file(notes: Path, tmp_path: Path) -> None:
    assert "14 passed" == outcome_of_pytest(notes, NOTES_DATABASE=str(tmp_path / "notes.sqlite3"))


def test_django_site_with_postgresql(notes: Path) -> None:
    with postgresql() as directory:
        assert "14 passed" == outcome_of_pytest(notes, NOTES_DATABASE=directory)


def test_django_site_without_the_two_lines(notes: Path) -> None:
    (notes / "conftest.py").unlink()
    assert " failed" in outcome_of_pytest(notes, NOTES_DATABASE="memory")


def test_two_lines_of_the_guide() -> None:
    lines = [line for line in (NOTES / "conftest.py").read_text().splitlines() if line]
    guide = (ROOT / "docs" / "guides" / "testing.rst").read_text()
    assert 2 == len(lines)
    assert all(line.partition("  #")[0] in guide for line in lines)


WHERE = """
import asyncio, threading
import pytest
from asgiref.sync import ThreadSensitiveEventLoop, sync_to_async
where = sync_to_async(threading.get_ident)
here = threading.get_ident()
"""

OLDER_PYTEST_ASYNCIO = """
import pytest_asyncio
class Policy(asyncio.DefaultEventLoopPolicy):
    def new_event_loop(self):
        return ThreadSensitiveEventLoop()
@pytest.fixture(scope="session")
def event_loop_policy():
    return Policy()
@pytest_asyncio.fixture
async def fixture():
    yield await where()
@pytest.mark.asyncio
async def test(fixture):
    assert fixture == await where() == here
def test_sync(fixture):
    assert fixture == here
"""

ANYIO = """
@pytest.fixture
def anyio_backend():
    return "asyncio", {"loop_factory": ThreadSensitiveEventLoop}
@pytest.fixture
async def fixture():
    yield await where()
    assert here == await where()
@pytest.mark.anyio
async def test(fixture):
    import anyio
    assert fixture == await where() == here
    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            group.start_soon(where)
        assert here != await anyio.to_thread.run_sync(threading.get_ident)
        assert here == await anyio.to_thread.run_sync(anyio.from_thread.run, where)
"""

CHANNELS = """
pytest_asyncio_loop_factories = lambda config, item: {"django": ThreadSensitiveEventLoop}
from django.conf import settings
settings.configure(INSTALLED_APPS=[], DATABASES={
    "default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:", "TEST": {"NAME": ":memory:"}},
})
import django
django.setup()
from channels.consumer import AsyncConsumer, SyncConsumer
from channels.db import database_sync_to_async
from channels.generic.http import AsyncHttpConsumer
from channels.generic.websocket import AsyncWebsocketConsumer, WebsocketConsumer
from channels.testing import HttpCommunicator, WebsocketCommunicator
class Http(AsyncHttpConsumer):
    async def handle(self, body):
        await self.send_response(200, str(await database_sync_to_async(threading.get_ident)()).encode())
class Websocket(WebsocketConsumer):
    def receive(self, text_data=None, bytes_data=None):
        self.send(text_data=str(threading.get_ident()))
@pytest.mark.asyncio
async def test_http():
    response = await HttpCommunicator(Http.as_asgi(), "GET", "/").get_response()
    assert str(here).encode() == response["body"]
@pytest.mark.asyncio
async def test_websocket():
    communicator = WebsocketCommunicator(Websocket.as_asgi(), "/")
    assert (await communicator.connect())[0]
    await communicator.send_to(text_data="where?")
    assert str(here) == await communicator.receive_from()
    await communicator.disconnect()
"""


@pytest.mark.parametrize(
    ("needs", "tests", "passed"),
    [("pytest_asyncio", OLDER_PYTEST_ASYNCIO, 2), ("anyio", ANYIO, 1), ("channels daphne", CHANNELS, 2)],
    ids=["older ways of pytest-asyncio", "anyio", "channels"],
)
def test_plugins(needs: str, tests: str, passed: int, tmp_path: Path) -> None:
    for package in ("pytest_asyncio", *needs.split()):
        pytest.importorskip(package)
    if "Policy" in tests and sys.version_info >= (3, 14):
        pytest.skip("event loop policies are deprecated")
    (tmp_path / "pytest.ini").write_text("[pytest]\nasyncio_default_fixture_loop_scope = function\n")
    if "factories" in tests:
        (tmp_path / "conftest.py").write_text(
            "from asgiref.sync import ThreadSensitiveEventLoop\n" + tests.splitlines()[1]
        )
    (tmp_path / "test_them.py").write_text(WHERE + tests)
    assert f"{passed} passed" == outcome_of_pytest(tmp_path, "-p", "no:django")
