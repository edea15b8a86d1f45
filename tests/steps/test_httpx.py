"""``httpx`` in synchronous code: a Django command that reads a streamed response, and a client for a block."""

from __future__ import annotations

import pytest

from ..helpers import output_of

pytest.importorskip("django")
pytest.importorskip("httpx")
pytest.importorskip("uvicorn")

# A server in a thread of this process, which streams lines until the client disconnects.
SITE = """
import contextlib, itertools
import django, httpx, uvicorn
from django.conf import settings
from django.core.management import BaseCommand, call_command
settings.configure(LOGGING_CONFIG=None, SECRET_KEY="x")
django.setup()

left = threading.Event()
async def application(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    leaving = asyncio.ensure_future(receive_end(receive))
    for i in itertools.count() if scope["path"] == "/endless" else range(int(scope["path"][1:])):
        await send({"type": "http.response.body", "body": b"line %d\\n" % i, "more_body": True})
        await asyncio.sleep(0)
        if leaving.done():
            left.set()
            return
    await send({"type": "http.response.body", "body": b""})
    leaving.cancel()
async def receive_end(receive):
    while (await receive())["type"] != "http.disconnect":
        pass

server = uvicorn.Server(uvicorn.Config(application, port=0, lifespan="off", log_level="error", ws="none"))
thread = threading.Thread(target=server.run)
thread.start()
while not server.started:
    time.sleep(0.01)
url = "http://127.0.0.1:%d" % server.servers[0].sockets[0].getsockname()[1]

closed = []
@async_to_sync_iterator(read_ahead=64)
async def lines(url):
    try:
        async with asyncio.timeout(20), httpx.AsyncClient() as client, client.stream("GET", url) as response:
            async for line in response.aiter_lines():
                yield line
    finally:
        closed.append(url)

class Command(BaseCommand):
    def add_arguments(self, parser):
        parser.add_argument("url")
        parser.add_argument("--last")
    def handle(self, *args, url, last, **options):
        count = 0
        with contextlib.closing(lines(url)) as each:
            for line in each:
                count += 1
                if line == last:
                    self.stdout.write(f"found {line}")
                    break
        self.stdout.write(f"{count} lines, {len(closed)} closed")
"""

END = """
server.should_exit = True
thread.join()
"""


def test_management_command_reads_a_streamed_response() -> None:
    code = """
call_command(Command(), url + "/1000")
"""
    assert ["1000 lines, 1 closed"] == output_of(SITE + code + END)


def test_management_command_that_stops_half_way_closes_the_connection() -> None:
    code = """
call_command(Command(), url + "/endless", last="line 100")
print(left.wait(20))
"""
    assert ["found line 100", "101 lines, 1 closed", "True"] == output_of(SITE + code + END)


def test_client_for_a_block() -> None:
    code = """
with async_to_sync_context_manager(httpx.AsyncClient(base_url=url)) as client:
    for count in 3, 2:
        print(len(async_to_sync(client.get)(f"/{count}").text.splitlines()), client.is_closed)
print(client.is_closed)
"""
    assert ["3 False", "2 False", "True"] == output_of(SITE + code + END)
