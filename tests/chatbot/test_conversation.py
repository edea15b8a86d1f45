"""The answers of the bot, to a server that the test controls.

The bot promises that no message is lost. So most tests interrupt something at the worst moment, and check the next
start or connection. They wait only for lines and events.
"""

from __future__ import annotations

import asyncio
import functools
from pathlib import Path
from typing import Any

import pytest

from asgiref.sync import sync_to_async
from examples.chatbot.app import MOST_NOTES
from examples.chatbot.bot import APOLOGY
from examples.chatbot.store import Store

from .helpers import Event, FakeServer, Receive, Send, eventually, kept, open_store, running


async def test_everybody_has_a_list_of_their_own(server: FakeServer, path: Path) -> None:
    """The bot answers where it was addressed: in private, or by name in its channel."""
    async with running(server.bot(path, channel="#Room")):
        peer = await server.welcome()
        assert "JOIN :#Room" == await peer.line()
        peer.say("remember milk")
        assert "NOTICE ada :Noted. That makes 1." == await peer.line()
        await peer.confirm()
        peer.say("Notes, remember eggs", "ADA", "#room")
        assert "NOTICE #room :ADA: Noted. That makes 2." == await peer.line()
        await peer.confirm()
        peer.say("NOTES:list", "bob", "#room")
        assert "NOTICE #room :bob: You have no notes." == await peer.line()
        await peer.confirm()
    assert ([], []) == await kept(path)


async def test_what_is_not_for_the_bot_is_left_alone(server: FakeServer, path: Path) -> None:
    """No answer to other talk, bots, servers, its own echo, client requests, other channels and odd names."""
    async with running(server.bot(path, channel="#room")):
        peer = await server.welcome()
        peer.send(
            ":ada!a@host NOTICE notes :list",
            ":irc.example PRIVMSG notes :list",
            ":notes!bot@host PRIVMSG notes :list",
            ":ada!a@host PRIVMSG notes :\1VERSION\1",
            ":ada!a@host PRIVMSG #room :list",
            ":ada!a@host PRIVMSG #room :notes list",
            ":ada!a@host PRIVMSG #room :notesy: list",
            ":ada!a@host PRIVMSG #other :notes: list",
            ":ada!a@host PRIVMSG @#room :notes: list",
            ":ada,bob!a@host PRIVMSG notes :list",
            "::ada!a@host PRIVMSG notes :list",
            ":ada!a@host PRIVMSG notes",
            ":ada!a@host PRIVMSG",
            ":irc.example PONG",
            ":irc.example PONG irc.example :said-x",
            ":irc.example PONG irc.example :said-99",
            ":irc.example PONG irc.example :said-" + "0" * 5000,
            ":irc.example PONG irc.example :1",
            "NICK",
            "",
        )
        peer.say("list", "eve")
        assert "NOTICE eve :You have no notes." == await peer.until("NOTICE")
        await peer.confirm()
    async with open_store(path) as store:
        assert 2 == (await sync_to_async(store.accept)("eve", "eve", "", "the second one ever")).id


async def test_names_that_are_one_to_the_server_are_one_person(server: FakeServer, path: Path) -> None:
    """Whether ``[`` is the upper case of ``{`` depends on the server."""
    async with running(server.bot(path)):
        peer = await server.welcome("rfc1459")
        peer.say("remember milk", "Ada[1]")
        await peer.confirm()
        peer.say("list", "ada{1}")
        assert "NOTICE ada{1} :1: milk" == await peer.line()
        await peer.confirm()
        await peer.close()
        peer = await server.welcome("ascii")
        peer.say("list", "Ada[1]")
        assert "NOTICE Ada[1] :You have no notes." == await peer.until("NOTICE")
        await peer.confirm()


async def test_a_long_answer_is_several_lines(server: FakeServer, path: Path) -> None:
    """Each line of an answer is short enough to reach others whole, even with the longest prefix."""
    async with running(server.bot(path)):
        peer = await server.welcome()
        for number in range(MOST_NOTES):
            peer.say(f"remember {number:02} " + "ä" * 100)
            await peer.confirm()
        peer.say("list")
        text = ""
        while "PING" not in (line := await peer.line()):
            assert len(f":notes!{'u' * 11}@{'h' * 63} {line}\r\n".encode()) <= 512
            text += line.removeprefix("NOTICE ada :") + " "
        token = line.partition(":")[2]
        peer.send(f":irc.example PONG irc.example :{token}")
    assert [f"{number:02} " + "ä" * 100 for number in range(MOST_NOTES)] == [
        note.partition(": ")[2] for note in text.strip().split(", ")
    ]


async def test_an_answer_without_confirmation_is_said_again(server: FakeServer, path: Path) -> None:
    """1. The answer arrives.

    2. The connection ends before the PONG. 3. The answer comes again, and the note was stored once.
    """
    async with running(server.bot(path)):
        peer = await server.welcome()
        peer.say("remember milk")
        assert "NOTICE ada :Noted. That makes 1." == await peer.line()
        await peer.until("PING :said-")
        await peer.close()
        peer = await server.welcome()
        assert "NOTICE ada :Noted. That makes 1." == await peer.line()
        await peer.confirm()
        peer.say("list")
        assert "NOTICE ada :1: milk" == await peer.line()
        await peer.confirm()
    assert [1] == server.pauses
    assert ([], []) == await kept(path)


async def test_a_confirmation_covers_what_was_said_before_it(server: FakeServer, path: Path) -> None:
    """A missing PONG concerns only lines after the last confirmed one."""
    async with running(server.bot(path, grace=0)):
        peer = await server.welcome()
        peer.say("remember milk")
        await peer.confirm()
        peer.say("remember eggs")
        await peer.until("PING :said-")
        peer.send(":irc.example PONG irc.example :said-99", "PING :have-you-read-it")  # an answer to no question
        await peer.until("PONG :have-you-read-it")
    assert ([], ["Noted. That makes 2."]) == await kept(path)


async def test_a_message_on_which_the_application_fails_is_settled(
    server: FakeServer, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The person gets one apology; other messages for that application are answered by the next instance."""
    go = asyncio.Event()

    def application(store: Store) -> Any:
        async def app(scope: Event, receive: Receive, send: Send) -> None:
            while True:
                message = await receive()
                await go.wait()

                def react(text: str) -> str:
                    store.add_note("ada", text)
                    return str(1 // (text != "poison")) + text

                await sync_to_async(store.settle)(message["id"], functools.partial(react, message["text"]))
                await send({"type": "chat.answered", "id": message["id"]})

        return app

    bot = server.bot(path, application, max_applications=4)
    async with running(bot):
        peer = await server.welcome()
        for text in ["poison", "a", "poison", "b"]:
            peer.say(text)
        await eventually(lambda: len(bot.in_work) == 4)
        go.set()
        for text in [APOLOGY, "1a", APOLOGY, "1b"]:
            assert f"NOTICE ada :{text}" == await peer.until("NOTICE")
        await peer.confirm()
        bot.grace = 0
    async with open_store(path) as store:
        assert ["a", "b"] == await sync_to_async(store.notes)("ada")
    assert 2 == len([record for record in caplog.records if record.exc_info])
    caplog.clear()


async def test_an_application_that_fails_after_its_answer_does_no_harm(server: FakeServer, path: Path) -> None:
    """An answer that was settled stays so, and is sent, even if the application fails before it can report that."""

    def application(store: Store) -> Any:
        async def app(scope: Event, receive: Receive, send: Send) -> None:
            message = await receive()
            await sync_to_async(store.settle)(message["id"], functools.partial(str, "done"))
            await send({"type": "chat.nonsense"})

        return app

    async with running(server.bot(path, application)):
        peer = await server.welcome()
        for _ in range(2):
            peer.say("do")
            assert "NOTICE ada :done" == await peer.line()
            await peer.confirm()
