"""The chat room, with people and with the bot in it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from examples.chatbot import chatroom, irc
from examples.chatbot.app import notebook
from examples.chatbot.bot import Bot
from examples.chatbot.chatroom import ChatRoom
from examples.chatbot.store import Store

from .helpers import HOST, Peer, running


@contextlib.asynccontextmanager
async def room(bot_path: Path | str | None = None, **options: Any) -> AsyncIterator[int]:
    """Give the port of a room, with the bot in it if there is a path for it."""
    listening = socket.create_server((HOST, 0))
    port = listening.getsockname()[1]
    async with ChatRoom(listening), contextlib.AsyncExitStack() as stack:
        if bot_path is not None:
            store = Store(bot_path)
            connect = functools.partial(irc.connect, HOST, port, "notes")
            bot = Bot(notebook(store), store, connect, channel=chatroom.ROOM, pace=0, **options)
            async with visitor(port, "first") as first:
                await stack.enter_async_context(running(bot))
                await first.until("* notes has come")
        yield port


@contextlib.asynccontextmanager
async def visitor(port: int, name: str = "") -> AsyncIterator[Peer]:
    """Give a connection like that of ``nc``, which has sent its name."""
    peer = Peer(*await asyncio.open_connection(HOST, port))
    try:
        assert "What is your name?" == await peer.line()
        if name:
            peer.send(name)
            await peer.until(f"Welcome, {name}. Here: ")
            await peer.until('"/NAME ..."')
        yield peer
    finally:
        await peer.close()


async def test_people_talk_to_the_bot_and_to_each_other() -> None:
    """Two people who send plain lines: to all, to the bot, and to one person."""
    async with room(":memory:") as port, visitor(port, "ada") as ada, visitor(port, "bob") as bob:
        await ada.until("* bob has come")
        ada.send("hello, bob")
        assert "<ada> hello, bob" == await bob.line()
        ada.send("notes: remember milk")
        assert "<notes> ada: Noted. That makes 1." == await ada.line()
        assert "<ada> notes: remember milk" == await bob.line()
        assert "<notes> ada: Noted. That makes 1." == await bob.line()
        bob.send("/notes list")
        assert "(notes to you) You have no notes." == await bob.line()
        bob.send("/Notes remember beer", "/notes list")
        assert "(notes to you) Noted. That makes 1." == await bob.line()
        assert "(notes to you) 1: beer" == await bob.line()
        bob.send("/ada psst", "/eve psst", "", "/", "bye")
        assert "There is no eve here." == await bob.line()
        assert "There is no  here." == await bob.line()
        assert "(bob to you) psst" == await ada.line()
        assert "<bob> bye" == await ada.line()
        await bob.close()
        assert "* bob has left" == await ada.line()


async def test_a_name_is_asked_for_until_it_can_be_one() -> None:
    """Names have a form and are unique, in any case of letters."""
    async with room() as port, visitor(port, "ada"), visitor(port) as other:
        other.send("ADA")
        assert "That one is here already. What is your name?" == await other.line()
        for name in ["", "two words", "x" * 17, "1st", "n\x1b[31m", "é"]:
            other.send(name)
            assert "" == name or "A name is up to 16 letters and digits. What is yours?" == await other.line()
        other.send("bob")
        assert "Welcome, bob. Here: ada. What you type is said to all;" == await other.line()


async def test_harm_is_kept_from_others() -> None:
    """Bytes that are not text, control characters for a terminal and endless lines reach nobody."""
    async with room() as port, visitor(port, "ada") as ada, visitor(port, "eve") as eve:
        await ada.until("* eve has come")
        eve.writer.write(b"\x1b[31mred\0\x07\r\n\xff\xfe\n" + b"x" * 200_000 + b"\n" + b"y" * 1000 + b"\nover\n")
        assert "<eve> [31mred" == await ada.line()
        assert "<eve> \ufffd\ufffd" == await ada.line()
        for length in [380, 380, 240]:
            assert f"<eve> {'y' * length}" == await ada.line()
        assert "<eve> over" == await ada.line()
        eve.writer.write(b"z" * 200_000)
        await eve.close()
        assert "* eve has left" == await ada.line()


@pytest.mark.parametrize("early", [True, False], ids=["nameless", "in the room"])
async def test_a_client_that_knows_irc_gets_irc(early: bool) -> None:
    """A client that starts with CAP, PASS, NICK or USER is answered as by an IRC server."""
    async with room() as port, visitor(port, "ada") as ada, visitor(port) as peer:
        peer.send("CAP LS 302", "PASS :secret", "PING :one", "NICK :a b", "NICK ADA", "NICK bot", "CAP END")
        for line in ["CAP * LS :", "PONG chatroom :one", "432 * * :Not a name", "433 * ADA :In use"]:
            assert f":chatroom {line}" == await peer.line()
        if early:
            return
        peer.send("USER bot 0 * :a bot", "PRIVMSG #room :too early?")
        assert ":chatroom 001 bot :Welcome, bot" == await peer.line()
        assert ":chatroom 005 bot CASEMAPPING=ascii :are supported by this server" == await peer.line()
        assert "<bot> too early?" == await ada.line()
        peer.send("JOIN #ROOM", "PING :two", "NOTICE ada :psst", "PRIVMSG eve :psst", "MODE #room", "PONG x", "")
        assert "* bot has come" == await ada.line()
        for line in [":bot!bot@localhost JOIN :#room", ":chatroom PONG chatroom :two"]:
            assert line == await peer.line()
        assert "(bot to you) psst" == await ada.line()
        for line in ["401 bot eve :No such nick/channel", "421 bot MODE :Unknown command"]:
            assert f":chatroom {line}" == await peer.line()
        ada.send("hi", "/bot psst")
        for target, text in [("#room", "hi"), ("bot", "psst")]:
            assert f":ada!ada@localhost PRIVMSG {target} :{text}" == await peer.line()
        peer.send("QUIT :bye")
        assert "" == await peer.line()
        assert "* bot has left" == await ada.line()


async def test_a_room_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of visitors is limited; one who leaves makes room; one who sends no name in time is disconnected."""
    monkeypatch.setattr(chatroom, "MOST_PEOPLE", 2)
    async with room() as port, visitor(port, "ada") as ada:
        async with visitor(port, "bob"):
            await ada.until("* bob has come")
            third = Peer(*await asyncio.open_connection(HOST, port))
            assert ["The room is full.", ""] == [await third.line(), await third.line()]
            await third.close()
        await ada.until("* bob has left")
        monkeypatch.setattr(chatroom, "NAME_PATIENCE", 0.01)
        while True:
            third = Peer(*await asyncio.open_connection(HOST, port))
            line = await third.line()
            assert "" == await third.line()
            await third.close()
            if line == "What is your name?":  # not "full": bob's visit has ended completely
                break


@pytest.mark.slow
def test_who_does_not_read_is_shown_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A visitor who does not read is disconnected after a while.

    Others continue, and no more than one buffer is kept.
    """
    monkeypatch.setattr(chatroom, "PATIENCE", 0.1)

    async def talk(peer: Peer, gone: asyncio.Event) -> None:
        while not gone.is_set():
            peer.send("x" * 1500)
            await peer.writer.drain()
            await asyncio.sleep(0)
        peer.send("done")

    async def main() -> None:
        async with room() as port, visitor(port, "ada") as ada, visitor(port, "bob") as bob, visitor(port) as deaf:
            deaf.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.send("deaf")
            await ada.until("* deaf has come")
            deaf.writer.transport.pause_reading()  # type: ignore[attr-defined]
            gone = asyncio.Event()
            talking = asyncio.create_task(talk(ada, gone))
            await bob.until("* deaf has left")
            gone.set()
            await bob.until("<ada> done")
            await talking

    asyncio.run(main())


@pytest.mark.slow
def test_thousands_of_lines() -> None:
    """Each line is answered, in order, at any speed."""
    people, lines = ["ada", "bob", "cyd", "dan"], 500

    async def talk(peer: Peer) -> list[str]:
        peer.send(*[f"/notes forget {number + 100}" for number in range(lines)])
        return [f"{await peer.line()}\n" for _ in range(lines)]

    async def main() -> None:
        async with room(":memory:") as port, contextlib.AsyncExitStack() as stack:
            peers = [await stack.enter_async_context(visitor(port, name)) for name in people]
            for peer in peers:
                peer.send("/notes remember milk")
                await peer.until("That makes 1.")  # and, before it, all messages about new visitors
            expected = [f"(notes to you) You have no note {number + 100}.\n" for number in range(lines)]
            assert [expected] * len(people) == await asyncio.gather(*[talk(peer) for peer in peers])

    asyncio.run(main())
