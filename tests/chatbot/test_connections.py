"""The connection to a server: nicks that are taken, pauses before the next attempt, silence, and floods."""

from __future__ import annotations

from pathlib import Path

import pytest

from examples.chatbot import irc

from .helpers import FakeServer, running


async def test_another_nick_is_taken_if_need_be(server: FakeServer, path: Path) -> None:
    """If the nick is taken, the bot takes another one; it follows a change, and reacts to its current nick."""
    async with running(server.bot(path, channel="#room")):
        peer = await server.accept()
        await peer.until("NICK :notes")
        peer.send("PING :who-are-you", ":irc.example 433 * notes :Nickname is already in use")
        assert "PONG :who-are-you" == await peer.until("PONG")
        assert "NICK :notes2" == await peer.line()
        peer.send(":irc.example 001 notes2 :Welcome")
        peer.say("notes: list", "ada", "#room")
        peer.say("notes2: list", "ada", "#room")
        peer.send(":notes2!bot@host NICK :clerk")
        peer.say("clerk: remember milk", "ada", "#room")
        assert "NOTICE #room :ada: You have no notes." == await peer.until("NOTICE")
        assert "NOTICE #room :ada: Noted. That makes 1." == await peer.until("NOTICE")
        await peer.confirm()


async def test_the_bot_comes_back_in_ever_longer_pauses(server: FakeServer, path: Path) -> None:
    """The pause between attempts doubles up to a minute; a success makes it short again."""
    failures = 8

    async def connect() -> irc.Connection:
        nonlocal failures
        failures -= 1
        if failures >= 0:
            raise ConnectionRefusedError("nobody there")
        return await server.connect()

    bot = server.bot(path)
    bot.connect = connect
    async with running(bot):
        peer = await server.welcome()
        await peer.close()
        peer = await server.welcome()
        peer.send("ERROR :Closing link")
        await server.welcome()
    assert [1, 2, 4, 8, 16, 32, 60, 60, 1, 1] == server.pauses


async def test_a_server_that_refuses_the_bot_is_tried_again(server: FakeServer, path: Path) -> None:
    """A wrong password, or no free nick, is one more failed attempt."""
    async with running(server.bot(path)):
        peer = await server.accept()
        peer.send(":irc.example 464 * :Password incorrect")
        peer = await server.accept()
        for _ in range(irc.NICKS):
            await peer.until("NICK :notes")
            peer.send(":irc.example 433 * notes :In use")
        peer = await server.welcome()
        peer.say("list")
        assert "NOTICE ada :You have no notes." == await peer.line()
        await peer.confirm()
    assert [1, 2] == server.pauses


async def test_a_server_that_falls_silent_is_left(
    server: FakeServer, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bot gives up a connection without any data, not even the answer to a PING."""
    monkeypatch.setattr(irc, "SILENCE", 0.02)
    async with running(server.bot(path)):
        peer = await server.welcome()
        assert "PING :alive" == await peer.line()
        assert "QUIT :good-bye" == await peer.line()
        await server.welcome()


async def test_what_a_server_sends_is_bounded(server: FakeServer, path: Path) -> None:
    """Endless lines, meaningless bytes and meaningless numbers do not disturb the bot."""
    async with running(server.bot(path)):
        peer = await server.welcome()
        peer.writer.write(b"x" * 300_000)
        await peer.writer.drain()
        peer.writer.write(b"\n\0\0\xff\xfe\n:\n@\n: :\n:a!b@c\r\n\r\r\n:irc.example 404 notes #room :\x1b[31mNo\n")
        peer.say("remember \x1b[31m" + "é" * 3000)
        assert "NOTICE ada :Noted. That makes 1." == await peer.until("NOTICE")
        await peer.confirm()
