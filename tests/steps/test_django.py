"""Iterators and context managers with Django: a transaction around awaited ORM calls, a streamed query."""

from __future__ import annotations

from pathlib import Path

import pytest

from ..helpers import output_of

pytest.importorskip("django")

SITE = """
import contextlib
import django
from django.conf import settings
from asgiref.sync import sync_to_async_context_manager, sync_to_async_iterator
settings.configure(
    ALLOWED_HOSTS=["*"],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": os.environ["DATABASE"]}},
    INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.auth"],
    LOGGING_CONFIG=None,
    ROOT_URLCONF=__name__,
    SECRET_KEY="x",
)
django.setup()
from django.contrib.auth.models import Group
from django.core.asgi import get_asgi_application
from django.core.management import call_command
from django.db import connection, transaction
from django.http import HttpResponse, StreamingHttpResponse
from django.urls import path
call_command("migrate", verbosity=0)
connection.close()
closed, is_closed = [], threading.Event()
async def pay(request):
    with contextlib.suppress(ValueError):
        async with sync_to_async_context_manager(transaction.atomic()):
            await Group.objects.acreate(name=request.GET["name"])
            if "fail" in request.GET:
                raise ValueError
    return HttpResponse(str(await Group.objects.acount()))
@sync_to_async_iterator
def names():
    try:
        for group in Group.objects.order_by("name").iterator(chunk_size=1):
            if used and hold:
                hold[0].wait(20)
            used.append(threading.get_ident())
            yield f"{group.name} "
    finally:
        closed.append(threading.get_ident())
        is_closed.set()
used, hold, streamed = [], [], []
async def stream(request):
    used.clear()
    streamed[:] = [sync_to_async_iterator(read_ahead=int(request.GET.get("ahead", 0)))(names.__wrapped__)()]
    return StreamingHttpResponse(streamed[0])
urlpatterns = [path("pay", pay), path("stream", stream)]
application = get_asgi_application()
async def get(path, query="", leave=False):
    scope = {"type": "http", "http_version": "1.1", "method": "GET", "path": path, "raw_path": path.encode(),
             "query_string": query.encode(), "headers": [], "scheme": "http"}
    sent, left = [], asyncio.Event()
    messages = [{"type": "http.request", "body": b""}]
    async def receive():
        if messages:
            return messages.pop()
        await left.wait()
        return {"type": "http.disconnect"}
    async def send(message):
        sent.append(message)
        if leave and message.get("body"):
            left.set()
    await application(scope, receive, send)
    return b"".join(message.get("body", b"") for message in sent).decode()
"""


def test_atomic_commits_and_rolls_back_around_awaited_queries(tmp_path: Path) -> None:
    code = """
async def main():
    print(await get("/pay", "name=one"), await get("/pay", "name=two&fail=1"), await get("/pay", "name=three"))
asyncio.run(main())
"""
    assert ["1 1 2"] == output_of(SITE + code, DATABASE=str(tmp_path / "database"))


def test_client_that_leaves_half_way_closes_the_query_on_its_thread(tmp_path: Path) -> None:
    """1. A step waits.

    2. The client disconnects, and the step is cancelled. 3. The step ends, and the query is closed.
    """
    code = """
async def main():
    for name in "abc":
        await get("/pay", f"name={name}")
    print(await get("/stream"))
    is_closed.clear()
    streamed.clear()
    hold.append(threading.Event())
    leaving = asyncio.create_task(get("/stream", leave=True))
    while not (streamed and streamed[0]._iteration.over):
        await asyncio.sleep(0)
    hold[0].set()
    print(await leaving)
    await asyncio.to_thread(is_closed.wait, 20)
    print(closed[-1] == used[-1] != threading.get_ident(), await get("/pay", "name=d"))
asyncio.run(main())
"""
    assert ["a b c ", "a ", "True 4"] == output_of(SITE + code, DATABASE=str(tmp_path / "database"))


@pytest.mark.slow
@pytest.mark.parametrize("ahead", [0, 5])
def test_client_of_uvicorn_that_leaves_half_way(tmp_path: Path, ahead: int) -> None:
    """1. A step waits.

    2. The client disconnects. 3. The step ends, the query is closed, and its connection is usable.
    """
    pytest.importorskip("uvicorn", reason="uvicorn is not installed")
    code = """
import socket, urllib.request, uvicorn
listener = socket.create_server(("127.0.0.1", 0))
server = uvicorn.Server(uvicorn.Config(application, lifespan="off", log_level="critical", loop="asyncio"))
serving = threading.Thread(target=server.run, args=([listener],))
serving.start()
host, port = listener.getsockname()
def read(path):
    with urllib.request.urlopen(f"http://{host}:{port}{path}", timeout=20) as response:
        return response.read().decode()
for name in "abc":
    read(f"/pay?name={name}")
print(read(f"/stream?ahead={ahead}"))
is_closed.clear()
streamed.clear()
hold.append(threading.Event())
with socket.create_connection((host, port), timeout=20) as client:
    client.sendall(f"GET /stream?ahead={ahead} HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n".encode())
    received = b""
    while b"a " not in received.partition(b"\\r\\n\\r\\n")[2]:
        received += client.recv(1000)
while not (streamed and streamed[0]._iteration.over):
    time.sleep(0.001)
hold[0].set()
print(is_closed.wait(20), closed[-1] == used[-1] != serving.ident, read("/pay?name=d"))
server.should_exit = True
serving.join(20)
""".replace("{ahead}", str(ahead))
    assert ["a b c ", "True True 4"] == output_of(SITE + code, DATABASE=str(tmp_path / "database"))
