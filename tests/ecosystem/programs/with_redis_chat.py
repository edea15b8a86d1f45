"""The chat room in two server processes, which are connected only by Redis."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from driving import HOST, LIMIT, free_port, started
from driving import redis_url as redis_url  # a fixture
from websockets.asyncio.client import ClientConnection, connect

APPLICATION = "chatroom.asgi:application"
SERVERS = {
    "daphne": f"daphne --bind {HOST} --port {{port}} {APPLICATION}",
    "uvicorn": f"uvicorn --host {HOST} --port {{port}} {APPLICATION}",
}
MESSAGES = 50


@contextlib.contextmanager
def serve(server: str, redis_url: str, directory: Path) -> Iterator[str]:
    """Run the chat room under *server*; yield host and port."""
    port = free_port()
    command = SERVERS[server].format(port=port)
    with started(command, directory, SITE_DIRECTORY=str(directory), REDIS_URL=redis_url) as program:
        program.wait_for_port(port)
        yield f"{HOST}:{port}"
        assert program.runs, program.log
        assert "Traceback" not in program.log, program.log
        program.stop()


@pytest.fixture(
    scope="module", params=[("daphne", "daphne"), ("uvicorn", "uvicorn"), ("daphne", "uvicorn")], ids="-".join
)
def addresses(
    request: pytest.FixtureRequest, redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[str]]:
    directory = tmp_path_factory.mktemp("site")
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(serve(server, redis_url, directory)) for server in request.param]


async def hear(connection: ClientConnection, count: int) -> list[str]:
    return [str(await connection.recv()) for _ in range(count)]


@pytest.mark.parametrize("kinds", [("async", "async"), ("sync", "sync"), ("async", "sync")], ids="-".join)
async def test_everybody_hears_everything_in_order(addresses: list[str], kinds: tuple[str, str]) -> None:
    async with (
        asyncio.timeout(LIMIT),
        connect(f"ws://{addresses[0]}/chat/{kinds[0]}/") as first,
        connect(f"ws://{addresses[1]}/chat/{kinds[1]}/") as second,
        httpx.AsyncClient(timeout=LIMIT) as client,
    ):
        assert ["welcome"] == await hear(first, 1) == await hear(second, 1)

        async def speak(name: str, connection: ClientConnection) -> None:
            for number in range(MESSAGES):
                await connection.send(f"{name} {number}")

        count = 2 * MESSAGES
        *_, of_first, of_second = await asyncio.gather(
            speak("first", first), speak("second", second), hear(first, count), hear(second, count)
        )
        for heard in (of_first, of_second):
            for name in ("first", "second"):
                expected = [f"{name} {number}" for number in range(MESSAGES)]
                assert expected == [text for text in heard if text.startswith(name)]
        for address in addresses:
            for view in ("announce", "announce-from-coroutine"):
                response = await client.post(f"http://{address}/{view}/", json=f"{view} from {address}")
                assert response.text == "said"
                assert [f"{view} from {address}"] == await hear(first, 1) == await hear(second, 1)


async def test_who_leaves_hears_nothing_more(addresses: list[str]) -> None:
    async with asyncio.timeout(LIMIT), connect(f"ws://{addresses[0]}/chat/async/") as stays:
        for kind in ("async", "sync"):
            async with connect(f"ws://{addresses[1]}/chat/{kind}/") as leaves:
                assert ["welcome"] == await hear(leaves, 1)
        assert ["welcome"] == await hear(stays, 1)
        for number in range(10):
            await stays.send(str(number))
        assert [str(number) for number in range(10)] == await hear(stays, 10)
