"""The end of a bot, or of its connection, during its work: no message is lost."""

from __future__ import annotations

import asyncio
import functools
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from asgiref.sync import sync_to_async
from examples.chatbot import bot as bot_module
from examples.chatbot.store import Message, Store

from ..helpers import LIMIT
from .helpers import Event, FakeServer, Receive, Send, eventually, kept, running


async def test_the_end_waits_for_the_last_confirmation(server: FakeServer, path: Path) -> None:
    """1. Two answers are sent. 2. The first one is confirmed. 3. The bot is asked to stop, and waits for the second."""
    bot = server.bot(path, grace=LIMIT)
    async with running(bot) as task:
        peer = await server.welcome()
        for _ in range(2):
            peer.say("list")
            await peer.until("PING :said-")
        peer.send(":irc.example PONG irc.example :said-1", "PING :have-you-read-it")
        await peer.until("PONG :have-you-read-it")
        task.cancel()
        await eventually(lambda: bot.stopping)
        peer.send("PING :are-you-there")
        assert "PONG :are-you-there" == await peer.line()
        peer.send(":irc.example PONG irc.example :said-2")
        assert "QUIT :good-bye" == await peer.line()
    assert ([], []) == await kept(path)


async def test_a_message_in_work_outlives_the_connection(server: FakeServer, path: Path) -> None:
    """A message that its application is processing when the connection ends is answered, and not passed on again."""
    begun, go = asyncio.Event(), asyncio.Event()
    received: list[str] = []

    def application(store: Store) -> Any:
        async def app(scope: Event, receive: Receive, send: Send) -> None:
            while True:
                message = await receive()
                received.append(message["text"])
                begun.set()
                await go.wait()
                await sync_to_async(store.settle)(message["id"], functools.partial(str, f"did {message['text']}"))
                await send({"type": "chat.answered", "id": message["id"]})

        return app

    async with running(server.bot(path, application)):
        peer = await server.welcome()
        peer.say("something")
        async with asyncio.timeout(LIMIT):
            await begun.wait()
        await peer.close()
        peer = await server.welcome()
        peer.send("PING :do-you-listen")
        await peer.until("PONG :do-you-listen")
        go.set()
        assert "NOTICE ada :did something" == await peer.line()
        await peer.confirm()
        peer.say("more")
        assert "NOTICE ada :did more" == await peer.line()
        await peer.confirm()
    assert ["something", "more"] == received


async def test_what_a_stopped_bot_owes_is_said_by_the_next_one(server: FakeServer, path: Path) -> None:
    """1. Two messages are accepted, and the application hangs. 2. The bot is stopped. 3. A new bot answers both."""
    accepted = asyncio.Semaphore(0)

    def hanging(store: Store) -> Any:
        async def app(scope: Event, receive: Receive, send: Send) -> None:
            accepted.release()
            await asyncio.Event().wait()

        return app

    bot = server.bot(path, hanging, grace=0)
    async with running(bot):
        peer = await server.welcome()
        peer.say("remember milk")
        peer.say("remember beer", "bob")
        async with asyncio.timeout(LIMIT):
            await accepted.acquire()
            await accepted.acquire()
    assert "QUIT :good-bye" == await peer.line()
    assert {} == bot.in_work
    assert (["remember milk", "remember beer"], []) == await kept(path)
    async with running(server.bot(path)):
        peer = await server.welcome()
        assert "NOTICE ada :Noted. That makes 1." == await peer.until("NOTICE")
        assert "NOTICE bob :Noted. That makes 1." == await peer.until("NOTICE")
        await peer.confirm()
    assert ([], []) == await kept(path)


async def test_the_end_waits_for_the_last_answer(server: FakeServer, path: Path) -> None:
    """1. A message is accepted. 2. The bot is asked to stop. 3. It answers this message and no other one, and ends."""
    begun, go = asyncio.Event(), asyncio.Event()

    def application(store: Store) -> Any:
        async def app(scope: Event, receive: Receive, send: Send) -> None:
            message = await receive()
            begun.set()
            await go.wait()
            await sync_to_async(store.settle)(message["id"], functools.partial(str, "done"))
            await send({"type": "chat.answered", "id": message["id"]})
            await asyncio.Event().wait()

        return app

    bot = server.bot(path, application, grace=LIMIT)
    async with running(bot) as task:
        peer = await server.welcome()
        peer.say("first")
        async with asyncio.timeout(LIMIT):
            await begun.wait()
        task.cancel()
        await eventually(lambda: bot.stopping)
        peer.say("too late")
        peer.send("PING :have-you-read-it")
        await peer.until("PONG :have-you-read-it")
        go.set()
        assert "NOTICE ada :done" == await peer.line()
        await peer.confirm()
        assert "QUIT :good-bye" == await peer.line()
        assert "" == await peer.line()
    assert ([], []) == await kept(path)


async def test_the_end_waits_no_longer_than_it_may(server: FakeServer, path: Path) -> None:
    """A server that does not confirm cannot delay the end; the answer is kept, and sent at the next start."""
    async with running(server.bot(path, grace=0.01)):
        peer = await server.welcome()
        peer.say("remember milk")
        await peer.until("PING :said-")
    assert "QUIT :good-bye" == await peer.line()
    assert ([], ["Noted. That makes 1."]) == await kept(path)
    async with running(server.bot(path)):
        peer = await server.welcome()
        assert "NOTICE ada :Noted. That makes 1." == await peer.line()
        await peer.confirm()


async def test_a_broken_store_ends_the_bot(server: FakeServer, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bot ends if it cannot record its messages."""
    bot = server.bot(path)

    def accept(*arguments: str) -> Message:
        raise sqlite3.OperationalError("disk full")

    monkeypatch.setattr(bot.store, "accept", accept)
    task = asyncio.create_task(bot.arun())
    peer = await server.welcome()
    peer.say("list")
    with pytest.raises(ExceptionGroup) as caught:
        async with asyncio.timeout(LIMIT):
            await task
    assert "disk full" == str(bot_module.innermost(caught.value))


async def test_a_bot_can_run_again(server: FakeServer, path: Path) -> None:
    """Nothing of one run is left for the next one of the same object."""
    bot = server.bot(path, grace=0)
    for number in [1, 2]:
        async with running(bot):
            peer = await server.welcome()
            peer.say("remember milk")
            assert f"NOTICE ada :Noted. That makes {number}." == await peer.until(f"That makes {number}")
            await peer.until("PING :said-")
            assert 0 == len(bot.in_work)
