"""Many persons at once: the memory of the bot is limited."""

from __future__ import annotations

import asyncio
import functools
from pathlib import Path
from typing import Any

import pytest

from asgiref.sync import sync_to_async
from examples.chatbot.store import Store

from ..helpers import LIMIT
from .helpers import CountingBot, Event, FakeServer, Receive, Send, running


@pytest.mark.parametrize("most", [1, 2, 5])
async def test_many_persons_share_a_few_instances(server: FakeServer, most: int) -> None:
    """Instances are deleted to make room, but no message is lost; the number of messages in progress is limited."""
    bot = server.bot(":memory:", max_applications=most)
    async with running(bot):
        peer = await server.welcome()
        for number in range(40):
            peer.say(f"remember {number}", f"p{number % 10}")
        counts = {}
        for _ in range(40):
            line = await peer.until("NOTICE")
            counts[line.split()[1]] = line.rpartition(" ")[2]
        assert {f"p{number}": "4." for number in range(10)} == counts
        peer.say("list", "p3")
        assert "NOTICE p3 :1: 3, 2: 13, 3: 23, 4: 33" == await peer.until("NOTICE")
        await peer.until("PING :said-")
        bot.grace = 0
    assert isinstance(bot, CountingBot)
    assert bot.most_in_work <= most
    assert bot.most_applications <= most


async def test_who_is_at_work_is_not_evicted(server: FakeServer, path: Path) -> None:
    """The least recently used instance stays while it is working; the oldest idle one is deleted."""
    go = asyncio.Event()
    ended: list[str] = []

    def application(store: Store) -> Any:
        async def app(scope: Event, receive: Receive, send: Send) -> None:
            try:
                while True:
                    message = await receive()
                    if message["text"] == "slowly":
                        await go.wait()
                    await sync_to_async(store.settle)(message["id"], functools.partial(str, "done"))
                    await send({"type": "chat.answered", "id": message["id"]})
            finally:
                ended.append(scope["person"])

        return app

    async with running(server.bot(path, application, max_applications=2)):
        peer = await server.welcome()
        peer.say("slowly", "ada")
        for person in ["bob", "cyd", "dan"]:
            peer.say("at once", person)
            assert f"NOTICE {person} :done" == await peer.until("NOTICE")
        assert ["bob", "cyd"] == ended
        go.set()
        assert "NOTICE ada :done" == await peer.until("NOTICE")
        await peer.confirm()


async def test_no_more_is_read_than_can_be_worked_on(server: FakeServer, path: Path) -> None:
    """While the maximum number of messages waits for the applications, further ones are not read."""
    go = asyncio.Event()
    in_work = asyncio.Semaphore(0)

    def application(store: Store) -> Any:
        async def app(scope: Event, receive: Receive, send: Send) -> None:
            while True:
                message = await receive()
                in_work.release()
                await go.wait()
                await sync_to_async(store.settle)(message["id"], functools.partial(str, "done"))
                await send({"type": "chat.answered", "id": message["id"]})

        return app

    bot = server.bot(path, application, max_applications=3)
    async with running(bot):
        peer = await server.welcome()
        for number in range(10):
            peer.say("do", f"p{number}")
        async with asyncio.timeout(LIMIT):
            for _ in range(3):
                await in_work.acquire()
        assert 3 == len(await sync_to_async(bot.store.unanswered)())
        go.set()
        for _ in range(10):
            await peer.until("NOTICE")
        await peer.confirm()
        bot.grace = 0
    assert isinstance(bot, CountingBot)
    assert 3 == bot.most_in_work
