"""The bot on a real IRC server."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from examples.chatbot import irc
from examples.chatbot.app import notebook
from examples.chatbot.bot import Bot
from examples.chatbot.store import Store

from ..helpers import LIMIT
from .helpers import HOST, Event, Peer, Receive, Send, eventually, kept

NGIRCD = shutil.which("ngircd", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"]))


NGIRCD_CONFIGURATION = """\
[Global]
Name = irc.example.net
Listen = {host}
Ports = {port}
MotdPhrase = hello
[Limits]
MaxConnectionsIP = 0
MaxPenaltyTime = 0
[Options]
DNS = no
Ident = no
PAM = no
"""


@contextlib.contextmanager
def ngircd(directory: Path, port: int) -> Iterator[None]:
    """Run ngIRCd on *port* for the block."""
    configuration = directory / "ngircd.conf"
    configuration.write_text(NGIRCD_CONFIGURATION.format(host=HOST, port=port))
    directory.chmod(0o755)  # started by root, it becomes another user
    assert NGIRCD is not None
    with (directory / "ngircd.log").open("ab") as log:
        process = subprocess.Popen([NGIRCD, "-n", "-f", configuration], stdout=log, stderr=log)
        try:
            yield
        finally:
            process.kill()
            process.wait(LIMIT)


async def irc_client(port: int, nick: str) -> Peer:
    """Return a client of a real server, in the channel."""
    async with asyncio.timeout(LIMIT):
        while True:
            try:
                peer = Peer(*await asyncio.open_connection(HOST, port))
            except ConnectionRefusedError:
                await asyncio.sleep(0.01)  # it is starting
            else:
                break
    peer.send(f"NICK {nick}", f"USER {nick} 0 * :{nick}")
    await peer.until(" 001 ")
    peer.send("JOIN #notes")
    await peer.until(" 366 ")
    return peer


@pytest.mark.slow
@pytest.mark.skipif(NGIRCD is None, reason="ngircd is not installed")
async def test_on_a_real_server(path: Path) -> None:
    """Two people talk in private and in a channel; the server ends with an answer pending, and is started again."""
    with socket.create_server((HOST, 0)) as listening:
        port = listening.getsockname()[1]
    store = Store(path)
    app = notebook(store)
    lost, back, begun, go = (asyncio.Event() for _ in range(4))

    async def application(scope: Event, receive: Receive, send: Send) -> None:
        async def receive_slowly() -> Event:
            message = await receive()
            if message["text"] == "remember the end":
                begun.set()
                await go.wait()
            return message

        await app(scope, receive_slowly, send)

    async def pause(seconds: float) -> None:
        lost.set()
        await back.wait()

    connect = functools.partial(irc.connect, HOST, port, "notes")
    bot = Bot(application, store, connect, channel="#notes", pace=0, pause=pause)
    with ngircd(path.parent, port):
        ada, bob = await irc_client(port, "ada"), await irc_client(port, "bob")
        bot_task = asyncio.create_task(bot.arun())
        await ada.until("notes!", "JOIN", "#notes")
        await bob.until("notes!", "JOIN", "#notes")
        ada.send("PRIVMSG notes :remember milk")
        assert (await ada.until("NOTICE ada")).endswith(":Noted. That makes 1.")
        bob.send("PRIVMSG #notes :notes: remember " + "ü" * 150, "PRIVMSG #notes :Notes, list")
        for peer in [ada, bob]:
            assert (await peer.until("NOTICE #notes")).endswith(":bob: Noted. That makes 1.")
            assert (await peer.until("NOTICE #notes")).endswith(f":bob: 1: {'ü' * 150}")
        ada.send("PRIVMSG NOTES :list")
        assert (await ada.until("NOTICE ada")).endswith(":1: milk")
        await eventually(lambda: not bot.in_work and not bot.unconfirmed)
        ada.send("PRIVMSG notes :remember the end")
        async with asyncio.timeout(LIMIT):
            await begun.wait()
    await ada.close()
    await bob.close()
    async with asyncio.timeout(LIMIT):
        await lost.wait()
    go.set()
    with ngircd(path.parent, port):
        ada = await irc_client(port, "ada")
        back.set()
        assert (await ada.until("NOTICE ada")).endswith(":Noted. That makes 2.")
        bot_task.cancel()
        async with asyncio.timeout(LIMIT):
            await asyncio.wait({bot_task})
        assert "notes!" in await ada.until("QUIT")
        await ada.close()
    assert bot_task.cancelled()
    assert ([], []) == await kept(path)
