"""Helpers for tests of the chat bot: a server that the test controls, and one end of a connection."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from asgiref.sync import sync_to_async
from examples.chatbot import irc
from examples.chatbot.app import notebook
from examples.chatbot.bot import Bot
from examples.chatbot.store import Message, Store

from ..helpers import LIMIT

HOST = "127.0.0.1"


Event = dict[str, Any]


Receive = Callable[[], Awaitable[Event]]


Send = Callable[[Event], Awaitable[None]]


@contextlib.asynccontextmanager
async def open_store(path: Path) -> AsyncIterator[Store]:
    """Yield a store on the thread of ``sync_to_async``, as in the bot."""
    store = Store(path)
    await sync_to_async(store.open)()
    try:
        yield store
    finally:
        await sync_to_async(store.close)()


class Peer:
    """One end of a connection; reads and writes lines."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def send(self, *lines: str) -> None:
        self.writer.write("".join(line + "\r\n" for line in lines).encode())

    async def line(self) -> str:
        """Return the next line, ``""`` at the end."""
        async with asyncio.timeout(LIMIT):
            return (await self.reader.readline()).decode().rstrip("\r\n")

    async def until(self, *parts: str) -> str:
        """Return the first line with all *parts*; drop earlier lines."""
        seen = []
        while line := await self.line():
            if all(part in line for part in parts):
                return line
            seen.append(line)
        raise AssertionError(f"{parts} did not come, but {seen[-20:]}")

    def say(self, text: str, nick: str = "ada", target: str = "notes") -> None:
        self.send(f":{nick}!{nick}@host PRIVMSG {target} :{text}")

    async def confirm(self) -> None:
        """Answer the next PING that follows answers."""
        token = (await self.until("PING :said-")).partition(":")[2]
        self.send(f":irc.example PONG irc.example :{token}")

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()


class FakeServer:
    """An asynchronous context manager: the test is the IRC server."""

    async def __aenter__(self) -> FakeServer:
        self._connections: asyncio.Queue[Peer] = asyncio.Queue()
        self._peers: list[Peer] = []
        self.pauses: list[float] = []
        self._server = await asyncio.start_server(self._accept, HOST, 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._peers.append(Peer(reader, writer))
        self._connections.put_nowait(self._peers[-1])

    async def __aexit__(self, *args: object) -> None:
        self._server.close()
        for peer in self._peers:
            peer.writer.transport.abort()
            await peer.close()

    async def accept(self) -> Peer:
        """Return the next connection."""
        async with asyncio.timeout(LIMIT):
            return await self._connections.get()

    async def welcome(self, mapping: str = "ascii") -> Peer:
        """Accept the bot: return the next connection, registered."""
        peer = await self.accept()
        nick = (await peer.until("NICK :")).partition(":")[2]
        await peer.until("USER ")
        peer.send(
            f":irc.example 001 {nick} :Welcome", f":irc.example 005 {nick} X CASEMAPPING={mapping} :are supported"
        )
        return peer

    async def connect(self) -> irc.Connection:
        return await irc.connect(HOST, self.port, "notes")

    async def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        await asyncio.sleep(0)

    def bot(self, path: Path | str, application: Any = None, **options: Any) -> Bot:
        store = Store(path)
        options = {"pace": 0, "pause": self.pause, **options}
        return CountingBot(application(store) if application else notebook(store), store, self.connect, **options)


class CountingBot(Bot):
    """Counts the peak of a number."""

    most_in_work = 0
    most_applications = 0

    def hand_over(self, message: Message) -> None:
        super().hand_over(message)
        self.most_in_work = max(self.most_in_work, len(self.in_work))
        self.most_applications = max(self.most_applications, len(self.application_instances))


@contextlib.asynccontextmanager
async def running(bot: Bot) -> AsyncIterator[asyncio.Task[None]]:
    """Run *bot* during the block, then stop it as Ctrl-C does."""
    task = asyncio.create_task(bot.arun())
    try:
        yield task
    finally:
        task.cancel()
        async with asyncio.timeout(LIMIT):
            await asyncio.wait({task})
    with contextlib.suppress(asyncio.CancelledError):
        task.result()


async def eventually(fact: Callable[[], bool]) -> None:
    """Run the event loop until *fact* is true."""
    async with asyncio.timeout(LIMIT):
        while not fact():  # noqa: ASYNC110 - there is no event for this
            await asyncio.sleep(0)


async def kept(path: Path) -> tuple[list[str], list[str]]:
    """Return the texts of the unsettled messages and of the unconfirmed answers."""
    async with open_store(path) as store:
        messages, answers = await sync_to_async(store.unanswered)(), await sync_to_async(store.answers)(0, 999)
        return [message.text for message in messages], [given.text for given in answers]
