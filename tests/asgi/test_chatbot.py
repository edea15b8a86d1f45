"""The chat bot among the examples: its pieces, and forced schedules against a server that does what the test says.

Its promise is that no message is lost, so most tests cut something off at the worst moment and
look at what comes afterwards. Nothing is waited for but lines and events.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import asgiref
from asgiref.sync import sync_to_async
from asgiref.testing import ApplicationCommunicator

from ..helpers import LIMIT, ROOT

sys.path.append(str(ROOT))  # where the suite runs against the installed package, the tree is not on the path

from examples.chatbot import bot as bot_module
from examples.chatbot import chatroom, irc
from examples.chatbot.app import HELP, LONGEST_NOTE, MOST_NOTES, answer, notebook
from examples.chatbot.bot import APOLOGY, Bot
from examples.chatbot.chatroom import ChatRoom
from examples.chatbot.irc import Line
from examples.chatbot.store import Message, Store

HOST = "127.0.0.1"

Event = dict[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]


# Lines.


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"PING :a b", Line("", "PING", ["a b"])),
        (b":irc.example 001 notes :Welcome, notes", Line("irc.example", "001", ["notes", "Welcome, notes"])),
        (b":a!b@c PRIVMSG #x :", Line("a!b@c", "PRIVMSG", ["#x", ""])),
        (b":a!b@c privmsg  #x  word ", Line("a!b@c", "PRIVMSG", ["#x", "word"])),
        (b":a!b@c PRIVMSG #x ::) :D", Line("a!b@c", "PRIVMSG", ["#x", ":) :D"])),
        (b"@time=12:00 :a!b@c TOPIC #x", Line("a!b@c", "TOPIC", ["#x"])),
        (b":a!b@c PRIVMSG x :\xff\xc3\xa4", Line("a!b@c", "PRIVMSG", ["x", "\ufffdä"])),
        (b":a!b@c PRIVMSG x :one\0two\rthree", Line("a!b@c", "PRIVMSG", ["x", "one two three"])),
        (b"", Line("", "", [])),
        (b":", Line("", "", [])),
        (b"@", Line("", "", [])),
        (b" :", Line("", "", [])),
    ],
)
def test_any_bytes_can_be_read_as_a_line(data: bytes, expected: Line) -> None:
    """A line of IRC is read as the RFC has it; what is none gives something harmless."""
    assert expected == irc.parse(data)


def test_a_person_is_told_from_a_server() -> None:
    """A person has nick, user and host; a server has only a name."""
    assert ["ada", ""] == [Line("ada!a@host", "X", []).nick, Line("irc.example", "X", []).nick]


def test_one_line_is_sent_whatever_it_contains() -> None:
    """A text cannot begin another line; a parameter that would become two is refused."""
    assert b"NOTICE ada :a  QUIT b\r\n" == irc.encode("NOTICE", "ada", "a\r\nQUIT\0b")
    assert b"QUIT :\r\n" == irc.encode("QUIT", "")
    for word in ["", "a b", ":a", "a\nb", "a\0b"]:
        with pytest.raises(ValueError, match="can only be the last parameter"):
            irc.encode("NOTICE", word, "text")


@pytest.mark.parametrize(
    ("text", "limit", "expected"),
    [
        ("", 8, [""]),
        ("short", 8, ["short"]),
        ("12345678", 8, ["12345678"]),
        ("123456789", 8, ["12345678", "9"]),
        ("one two three", 8, ["one two", "three"]),
        ("one two  three", 7, ["one two", "three"]),
        ("äöüäö", 5, ["äö", "üä", "ö"]),
        ("\U0001f600" * 3, 4, ["\U0001f600"] * 3),
        ("\U0001f600" * 3, 7, ["\U0001f600"] * 3),
        ("a\r\nb", 8, ["a  b"]),
    ],
)
def test_a_text_is_cut_to_the_bytes_that_fit(text: str, limit: int, expected: list[str]) -> None:
    """Pieces are cut at spaces if possible, and never within a character."""
    assert expected == irc.split(text, limit)


@pytest.mark.parametrize(
    ("mapping", "expected"),
    [("ascii", "ada[]\\~Ä"), ("rfc1459", "ada{}|^Ä"), ("strict-rfc1459", "ada{}|~Ä"), ("unheard-of", "ada[]\\~Ä")],
)
def test_names_are_compared_as_the_server_does(mapping: str, expected: str) -> None:
    """How upper and lower case belong together is the server's to tell."""
    assert expected == irc.fold("AdA[]\\~Ä", mapping)


async def test_lines_that_are_too_long_are_dropped() -> None:
    """Of a line beyond the limit nothing is kept, however it comes; the next one is whole. Half a line is none."""
    reader = asyncio.StreamReader(limit=16)
    reader.feed_data(b"one\r\n" + b"x" * 17 + b"\n" + b"two\n" + b"y" * 100)
    assert [b"one", b"two"] == [await irc.read_line(reader), await irc.read_line(reader)]
    rest = asyncio.ensure_future(irc.read_line(reader))
    for _ in range(3):
        await asyncio.sleep(0)
        reader.feed_data(b"y" * 100)
    reader.feed_data(b"y\nthree\nhal")
    reader.feed_eof()
    assert [b"three", None] == [await rest, await irc.read_line(reader)]


async def test_a_server_is_not_sent_more_than_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five lines go at once, and then one each two seconds."""
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    pace = irc.Pace(2.0)
    for _ in range(7):
        await pace.wait()
    assert [-8, -6, -4, -2, 0, 2, 4] == [round(seconds) for seconds in waits]


# The store.


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """Return a store that belongs to the thread of the test."""
    store = Store(tmp_path / "chatbot.sqlite3")
    store.open()
    yield store
    store.close()


def test_a_message_is_settled_once(store: Store) -> None:
    """Settling changes the state and gives the answer; settling again does neither."""
    message = store.accept("ada", "#x", "Ada: ", "remember milk")
    assert [message] == store.unanswered()
    for _ in range(2):
        store.settle(message.id, functools.partial(answer, store, "ada", "remember", "milk"))
    assert [] == store.unanswered()
    assert ["milk"] == store.notes("ada")
    assert [(message.id, "#x", "Ada: Noted. That makes 1.")] == [
        (given.message, given.target, given.text) for given in store.answers(0, 9)
    ]


def test_a_message_that_fails_has_changed_nothing(store: Store) -> None:
    """When the reaction raises, the message is still to be answered, and what it had changed is undone."""
    message = store.accept("ada", "ada", "", "remember milk")

    def react() -> str:
        store.add_note("ada", "milk")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        store.settle(message.id, react)
    assert ([message], [], []) == (store.unanswered(), store.answers(0, 9), store.notes("ada"))


def test_answers_stay_until_they_are_confirmed(store: Store) -> None:
    """They come in order, from any point on; a confirmation covers all before it."""
    for text in "abc":
        store.settle(store.accept("ada", "ada", "", text).id, functools.partial(str, text))
    assert ["a", "b"] == [given.text for given in store.answers(0, 2)]
    first, second, third = store.answers(0, 9)
    assert [third] == store.answers(second.id, 9)
    store.confirm(second.id)
    assert [third] == store.answers(0, 9)
    assert first.id < second.id < third.id


def test_ids_are_not_used_again(tmp_path: Path) -> None:
    """A message's id never becomes that of another one, though all are gone and the process is another one."""
    ids = []
    for _ in range(3):
        store = Store(tmp_path / "chatbot.sqlite3")
        store.open()
        message = store.accept("ada", "ada", "", "x")
        store.settle(message.id, lambda: "y")
        given = store.answers(0, 9)[0]
        store.confirm(given.id)
        ids.append((message.id, given.id))
        store.close()
    assert [(1, 1), (2, 2), (3, 3)] == ids


@pytest.mark.slow
def test_a_file_has_one_bot(store: Store) -> None:
    """A second bot with the same file, which would say everything twice, does not start."""
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        Store(store.path).open()


# The app.


def test_what_the_bot_understands(store: Store) -> None:
    """Notes are remembered, listed and forgotten, each person's own."""

    def say(text: str, person: str = "ada") -> str:
        command, _, rest = text.partition(" ")
        return answer(store, person, command, rest)

    assert "You have no notes." == say("list")
    assert "You have no notes." == say("forget 1")
    assert "Noted. That makes 1." == say("remember milk")
    assert "Noted. That makes 2." == say("remember two eggs")
    assert "Noted. That makes 1." == say("remember beer", "bob")
    assert "1: milk, 2: two eggs" == say("list")
    assert "Which one? 1: milk, 2: two eggs" == say("forget")
    for number in ["0", "3", "-1", "²", "milk", "9" * 20]:
        assert f"You have no note {number}." == say(f"forget {number}")
    assert "Forgotten: milk" == say("forget 0001")
    assert "1: two eggs" == say("list")
    assert "1: beer" == say("list", "bob")
    assert "Remember what?" == say("remember")
    assert HELP == say("help")
    assert f"I don't understand. {HELP}" == say("dance")


def test_what_a_person_may_keep_is_bounded(store: Store) -> None:
    """A note is cut, and after so many there is no more room."""
    for _ in range(MOST_NOTES):
        answer(store, "ada", "remember", "x" * 9999)
    assert f"I keep {MOST_NOTES} notes for you already. Forget one first." == answer(store, "ada", "remember", "x")
    assert ["x" * LONGEST_NOTE] * MOST_NOTES == store.notes("ada")


@contextlib.asynccontextmanager
async def open_store(path: Path) -> AsyncIterator[Store]:
    """Give a store that belongs to the thread of ``sync_to_async``, as it does in the bot."""
    store = Store(path)
    await sync_to_async(store.open)()
    try:
        yield store
    finally:
        await sync_to_async(store.close)()


async def test_an_instance_remembers_its_question(tmp_path: Path) -> None:
    """After "Which one?" a number is an answer to that, and only then."""
    async with open_store(tmp_path / "chatbot.sqlite3") as store:
        communicator = ApplicationCommunicator(notebook(store), {"type": "chat", "person": "ada"})

        async def say(text: str) -> str:
            message = await sync_to_async(store.accept)("ada", "ada", "", text)
            await communicator.send_input({"type": "chat.message", "id": message.id, "text": text})
            assert {"type": "chat.answered", "id": message.id} == await communicator.receive_output(LIMIT)
            answers = await sync_to_async(store.answers)(0, 99)
            return answers[-1].text

        assert "Noted. That makes 1." == await say("remember milk")
        assert "Noted. That makes 2." == await say("  Remember   eggs ")
        assert "Which one? 1: milk, 2: eggs" == await say("FORGET")
        assert "Forgotten: milk" == await say("1")
        assert f"I don't understand. {HELP}" == await say("1")
        assert "Which one? 1: eggs" == await say("forget")
        assert "1: eggs" == await say("list")
        assert f"I don't understand. {HELP}" == await say("1")
        communicator.stop()


async def test_the_app_is_for_chat_only() -> None:
    """A scope of another type is refused, as ASGI has it."""
    communicator = ApplicationCommunicator(notebook(Store(":memory:")), {"type": "lifespan"})
    with pytest.raises(NotImplementedError, match="not for lifespan"):
        await communicator.receive_output(LIMIT)


# The bot, against a server that does what the test says.


class Peer:
    """One end of a connection, which reads and writes lines."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def send(self, *lines: str) -> None:
        self.writer.write("".join(line + "\r\n" for line in lines).encode())

    async def line(self) -> str:
        """Return the next line, ``""`` at the end."""
        async with asyncio.timeout(LIMIT):
            return (await self.reader.readline()).decode().rstrip("\r\n")

    async def until(self, *parts: str) -> str:
        """Return the first line that has all *parts*; those before it are dropped."""
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
    """An asynchronous context manager that lets the test be an IRC server."""

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
        """Let the bot in: return the next connection, registered."""
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
    """Counts how much there is at once, at its peak."""

    most_in_work = 0
    most_applications = 0

    def hand_over(self, message: Message) -> None:
        super().hand_over(message)
        self.most_in_work = max(self.most_in_work, len(self.in_work))
        self.most_applications = max(self.most_applications, len(self.application_instances))


@contextlib.asynccontextmanager
async def running(bot: Bot) -> AsyncIterator[asyncio.Task[None]]:
    """Run *bot* for the block, and then stop it as Ctrl-C would."""
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
    """Let the loop run until *fact* is true."""
    async with asyncio.timeout(LIMIT):
        while not fact():  # noqa: ASYNC110 - nobody sets an event for this
            await asyncio.sleep(0)


@pytest.fixture
async def server() -> AsyncIterator[FakeServer]:
    async with FakeServer() as server:
        yield server


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "chatbot.sqlite3"


async def kept(path: Path) -> tuple[list[str], list[str]]:
    """Return the texts of the messages and of the answers that a bot has left."""
    async with open_store(path) as store:
        messages, answers = await sync_to_async(store.unanswered)(), await sync_to_async(store.answers)(0, 999)
        return [message.text for message in messages], [given.text for given in answers]


async def test_everybody_has_a_list_of_their_own(server: FakeServer, path: Path) -> None:
    """The bot answers where it was spoken to: in private, or by name in its channel."""
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


async def test_another_nick_is_taken_if_need_be(server: FakeServer, path: Path) -> None:
    """Where the nick is taken, the bot has another one; it follows a change, and listens to the name it has."""
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


async def test_a_long_answer_is_several_lines(server: FakeServer, path: Path) -> None:
    """Each line of an answer is short enough to reach others whole, with the longest prefix."""
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
    """1. The answer comes. 2. The connection dies before the PONG. 3. It comes again, and was done once."""
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
    """The PONG that is missing leaves only what came after the one that arrived."""
    async with running(server.bot(path, grace=0)):
        peer = await server.welcome()
        peer.say("remember milk")
        await peer.confirm()
        peer.say("remember eggs")
        await peer.until("PING :said-")
        peer.send(":irc.example PONG irc.example :said-99", "PING :have-you-read-it")  # which was never asked
        await peer.until("PONG :have-you-read-it")
    assert ([], ["Noted. That makes 2."]) == await kept(path)


async def test_the_end_waits_for_the_last_confirmation(server: FakeServer, path: Path) -> None:
    """1. Two answers are sent. 2. The first is confirmed. 3. The bot is asked to stop, and waits for the second."""
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
    """A message that is with its application when the connection dies is not handed over again, but answered."""
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
    """1. Two messages are accepted, and the application hangs. 2. The bot is stopped. 3. A new one answers both."""
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
    """1. A message is accepted. 2. The bot is asked to stop. 3. It answers that one and no other, and then goes."""
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
    """A server that does not confirm cannot hold up the end; the answer is kept, and said at the next start."""
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


@pytest.mark.parametrize("most", [1, 2, 5])
async def test_many_persons_share_a_few_instances(server: FakeServer, most: int) -> None:
    """Instances go to make room, but no message with them; and no more messages are in work than there may be."""
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
    """The instance that has been quiet the longest stays while it works; the oldest idle one goes."""
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
    """While as many messages as there may be wait for their applications, others stay where they are."""
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


async def test_a_message_on_which_the_application_fails_is_settled(
    server: FakeServer, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The person gets an apology, once; what else was waiting for that application is answered by its successor."""
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
    """What is settled stays settled, and is said, though the application dies before it can tell."""

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
    """A wrong password, or no nick that is free, is one more failed attempt."""
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
    """A connection on which nothing comes, not even the answer to a PING, is given up."""
    monkeypatch.setattr(irc, "SILENCE", 0.02)
    async with running(server.bot(path)):
        peer = await server.welcome()
        assert "PING :alive" == await peer.line()
        assert "QUIT :good-bye" == await peer.line()
        await server.welcome()


async def test_what_a_server_sends_is_bounded(server: FakeServer, path: Path) -> None:
    """Lines without end, bytes without sense and numbers without meaning do not disturb the bot."""
    async with running(server.bot(path)):
        peer = await server.welcome()
        peer.writer.write(b"x" * 300_000)
        await peer.writer.drain()
        peer.writer.write(b"\n\0\0\xff\xfe\n:\n@\n: :\n:a!b@c\r\n\r\r\n:irc.example 404 notes #room :\x1b[31mNo\n")
        peer.say("remember \x1b[31m" + "é" * 3000)
        assert "NOTICE ada :Noted. That makes 1." == await peer.until("NOTICE")
        await peer.confirm()


async def test_a_broken_store_ends_the_bot(server: FakeServer, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bot does not go on where it cannot record what it is told."""
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


# The chat room.


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
    """Give a connection like that of ``nc``, which has given its name."""
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
    """Two people with nothing but lines: what they say to all, to the bot, and to one."""
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
    """Names have a form and are there once, however they are written."""
    async with room() as port, visitor(port, "ada"), visitor(port) as other:
        other.send("ADA")
        assert "That one is here already. What is your name?" == await other.line()
        for name in ["", "two words", "x" * 17, "1st", "n\x1b[31m", "é"]:
            other.send(name)
            assert "" == name or "A name is up to 16 letters and digits. What is yours?" == await other.line()
        other.send("bob")
        assert "Welcome, bob. Here: ada. What you type is said to all;" == await other.line()


async def test_harm_is_kept_from_others() -> None:
    """Bytes that are no text, controls for a terminal and lines without end do not reach anybody."""
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
    """Who begins with CAP, PASS, NICK or USER is answered as an IRC server does."""
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
    """So many and no more come in; who leaves makes room; who does not give a name in time leaves."""
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
            if line == "What is your name?":  # not "full": bob's visit has ended to the last
                break


@pytest.mark.slow
def test_who_does_not_read_is_shown_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others go on after a while, and no more is kept for the one than fits into a buffer."""
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
    """Each of them is answered, in order, however fast they come."""
    people, lines = ["ada", "bob", "cyd", "dan"], 500

    async def talk(peer: Peer) -> list[str]:
        peer.send(*[f"/notes forget {number + 100}" for number in range(lines)])
        return [f"{await peer.line()}\n" for _ in range(lines)]

    async def main() -> None:
        async with room(":memory:") as port, contextlib.AsyncExitStack() as stack:
            peers = [await stack.enter_async_context(visitor(port, name)) for name in people]
            for peer in peers:
                peer.send("/notes remember milk")
                await peer.until("That makes 1.")  # and with it, all that was said of who has come
            expected = [f"(notes to you) You have no note {number + 100}.\n" for number in range(lines)]
            assert [expected] * len(people) == await asyncio.gather(*[talk(peer) for peer in peers])

    asyncio.run(main())


# The program.


@contextlib.contextmanager
def program(path: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """Run ``python -m examples.chatbot``; it has to end in the block, and is ended after twice the limit of a wait."""
    paths = [str(Path(asgiref.__file__).parent.parent), str(ROOT)]
    with subprocess.Popen(
        [sys.executable, "-u", "-m", "examples.chatbot", "--database", str(path), *options],
        cwd=path.parent,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        stderr=subprocess.STDOUT,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        # Reading its output has no limit of its own.
        timer = threading.Timer(2 * LIMIT, process.kill)
        timer.start()
        try:
            yield process
        finally:
            timer.cancel()
            timer.join()
            process.kill()


def output_until(process: subprocess.Popen[str], part: str) -> str:
    """Return the next line of the output that has *part*; the end of the program ends the wait."""
    assert process.stdout is not None
    return next(line for line in process.stdout if part in line)


class Caller:
    """Somebody with a socket, who is in no hurry but has a limit."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        connection.settimeout(LIMIT)
        self._file = connection.makefile("r", encoding="utf-8", newline="\n")

    def send(self, *lines: str) -> None:
        self._connection.sendall("".join(line + "\r\n" for line in lines).encode())

    def until(self, part: str) -> str:
        return next(line.rstrip("\r\n") for line in self._file if part in line)

    def rest(self) -> str:
        return self._file.read()

    def close(self) -> None:
        self._file.close()
        self._connection.close()


@contextlib.contextmanager
def caller(process: subprocess.Popen[str], name: str) -> Iterator[Caller]:
    """Give somebody in the chat room of *process*, with the bot there."""
    port = int(output_until(process, "nc localhost").split()[-1])
    output_until(process, "Connected as notes.")
    caller = Caller(socket.create_connection((HOST, port)))
    try:
        caller.send(name)
        caller.until("Here: notes.")
        yield caller
    finally:
        caller.close()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="sends signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_program_ends_in_order(path: Path, number: signal.Signals) -> None:
    """Ctrl-C or SIGTERM ends it without a traceback and with 0, and the notes are there the next time."""
    for expected in ["You have no notes.", "1: milk"]:
        with program(path, "--port", "0") as process, caller(process, "ada") as ada:
            ada.send("/notes list")
            assert f"(notes to you) {expected}" == ada.until("to you")
            ada.send("/notes remember milk")
            ada.until("to you")
            process.send_signal(number)
            assert "* notes has left\n" in ada.rest()
            output, _ = process.communicate(timeout=LIMIT)
            assert (0, "Stopping; what is in work has 5 s.\nEnded.\n") == (process.returncode, output)
    assert [path.name] == [file.name for file in path.parent.iterdir()]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="sends signals")
def test_a_second_interrupt_ends_the_program_at_once(path: Path) -> None:
    """1. An answer is not confirmed. 2. Ctrl-C waits. 3. Ctrl-C does not. 4. The answer comes at the next start."""
    with socket.create_server((HOST, 0)) as listening:
        listening.settimeout(LIMIT)
        port = listening.getsockname()[1]
        for patience in ["1000", "0"]:
            with program(path, "--irc", f"{HOST}:{port}", "--grace", patience) as process:
                server = Caller(listening.accept()[0])
                try:
                    server.until("USER")
                    server.send(":irc.example 001 notes :Welcome")
                    if patience == "1000":
                        server.send(":ada!a@host PRIVMSG notes :remember milk")
                    assert "NOTICE ada :Noted. That makes 1." == server.until("NOTICE")
                    server.until("PING :said-")
                    process.send_signal(signal.SIGINT)
                    output_until(process, "Stopping")
                    if patience == "1000":
                        process.send_signal(signal.SIGINT)
                    output, _ = process.communicate(timeout=LIMIT)
                    # The second one may hit any code, so asyncio may have more to say.
                    assert (0, "Ended.\n") == (process.returncode, output[:7])
                finally:
                    server.close()


@pytest.mark.slow
def test_the_program_says_what_is_wrong(path: Path) -> None:
    """A port that is taken, a file that cannot be opened and options without sense are explained in a line."""
    with socket.create_server((HOST, 0)) as listening:
        port = str(listening.getsockname()[1])
        for expected, status, options in [
            ("take another one with --port", 2, ["--port", port]),
            ("unable to open database file", 1, ["--port", "0", "--database", str(path / "missing" / "x")]),
            ("'irc.example' is not HOST:PORT", 2, ["--irc", "irc.example"]),
            ("invalid word value: 'a b'", 2, ["--nick", "a b"]),
        ]:
            with program(path, *options) as process:
                output, _ = process.communicate(timeout=LIMIT)
                assert status == process.returncode, output
                assert expected in output
                assert "Traceback" not in output


# A real server.

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
    """Return somebody on a real server, in the channel."""
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
    """Two people, in private and in a channel; then the server dies with an answer pending, and comes back."""
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
