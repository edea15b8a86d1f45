"""A chat server with one room, for trying the bot without any setup.

People join with ``nc``. They are asked for a name; then each line goes to the room or, as
``/NAME ...``, to one person. A client that starts with IRC commands is treated as an IRC
client, with the commands that a bot needs. So the bot uses IRC here as on a real server.

The server is for one machine, but it has limits: for names, lines, the number of people, and
unread output. Control characters are dropped, because they could disturb a terminal. A person
who reads slowly slows down those who write, for at most ``PATIENCE`` seconds, and is then
disconnected.
"""

from __future__ import annotations

import asyncio
import re
import socket
from types import TracebackType

from .irc import Line, encode, fold, hang_up, parse, read_line, split

__all__ = ["ROOM", "ChatRoom"]

ROOM = "#room"
SERVER = "chatroom"

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,15}")
MOST_PEOPLE = 100
LONGEST_LINE = 2048  # bytes
PIECE = 380  # bytes of text in a line of IRC, which has 512 with its prefix

# Timeouts in seconds: for entering a name, and for reading.
NAME_PATIENCE = 60.0
PATIENCE = 5.0


class Member:
    """A connected person or IRC client."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self.writer = writer
        self.name = ""
        self.speaks_irc = False
        self.in_room = False

    def tell(self, text: str, *irc: str, source: str = SERVER) -> None:
        """Send *text*, or to an IRC client the line *irc* from *source*. Either may be missing."""
        if self.writer.is_closing():
            return
        if text and not self.speaks_irc:
            self.writer.write(text.encode() + b"\n")
        if irc and self.speaks_irc:
            self.writer.write(f":{source} ".encode() + encode(*irc))

    async def wait_for_reading(self) -> None:
        """Wait until the member has read most of the output; disconnect after a timeout."""
        try:
            async with asyncio.timeout(PATIENCE):
                await self.writer.drain()
        except OSError:
            self.writer.transport.abort()


class ChatRoom:
    """An asynchronous context manager: the room is open in the block.

    Args:
        listening: The listening socket. It is closed at the end.
    """

    def __init__(self, listening: socket.socket) -> None:
        # Send short lines without delay; connections inherit this option.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._listening = listening
        self._visits: set[asyncio.Task[None]] = set()
        # Members with a name, by its normalized form.
        self._members: dict[str, Member] = {}

    async def __aenter__(self) -> ChatRoom:
        self._server = await asyncio.start_server(self._begin_visit, sock=self._listening, limit=LONGEST_LINE)
        return self

    async def __aexit__(
        self, exc: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._server.close()
        for visit in self._visits:
            visit.cancel()
        if self._visits:
            await asyncio.wait(self._visits)  # each has a timeout

    # One visit.

    def _begin_visit(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        is_full = len(self._visits) >= MOST_PEOPLE
        visit = asyncio.get_running_loop().create_task(self._visit(reader, Member(writer), is_full))
        self._visits.add(visit)
        visit.add_done_callback(self._visits.discard)

    async def _visit(self, reader: asyncio.StreamReader, member: Member, is_full: bool) -> None:
        try:
            if is_full:
                member.tell("The room is full.")
                return
            async with asyncio.timeout(NAME_PATIENCE):
                entered = await self._enter(reader, member)
            while entered and (data := await read_line(reader)) is not None:
                if member.speaks_irc:
                    if not self._take_irc(member, parse(data)):
                        break
                else:
                    self._take_plain(member, printable(data.decode("utf-8", "replace")))
                # The writer waits for the readers.
                for listener in [*self._members.values()]:
                    await listener.wait_for_reading()
        except OSError:
            pass  # disconnected, or did not enter a name
        finally:
            self._leave(member)
            await hang_up(member.writer)

    async def _enter(self, reader: asyncio.StreamReader, member: Member) -> bool:
        """Ask for a name until there is one; return whether there is."""
        member.tell("What is your name?")  # IRC clients ignore unknown lines
        nick, user = "", False
        while (data := await read_line(reader)) is not None:
            member.speaks_irc |= data.startswith((b"CAP ", b"NICK ", b"PASS ", b"USER "))
            if not member.speaks_irc:
                nick, user = data.decode("utf-8", "replace").strip(), True
            match parse(data):
                case Line(command="NICK", params=[nick, *_]):
                    pass
                case Line(command="USER"):
                    user = True
                case Line(command="CAP", params=["LS", *_]):
                    member.tell("", "CAP", "*", "LS", "")
                case Line(command="PING", params=[token, *_]):
                    member.tell("", "PONG", SERVER, token)
            if nick and not NAME.fullmatch(nick):
                member.tell("A name is up to 16 letters and digits. What is yours?", "432", "*", "*", "Not a name")
                nick = ""
            elif nick and fold(nick, "ascii") in self._members:
                member.tell("That one is here already. What is your name?", "433", "*", nick, "In use")
                nick = ""
            elif nick and user:
                self._welcome(member, nick)
                return True
            await member.wait_for_reading()
        return False

    def _welcome(self, member: Member, name: str) -> None:
        member.name = name
        self._members[fold(name, "ascii")] = member
        member.tell("", "001", name, f"Welcome, {name}")
        member.tell("", "005", name, "CASEMAPPING=ascii", "are supported by this server")
        if not member.speaks_irc:
            others = ", ".join(other.name for other in self._members.values() if other.in_room) or "nobody else"
            member.tell(f"Welcome, {name}. Here: {others}. What you type is said to all;")
            member.tell('"NAME: ..." is meant for one of them, and only that one gets "/NAME ...".')
            self._join(member)

    def _join(self, member: Member) -> None:
        member.in_room = True
        self._announce(member, f"* {member.name} has come", "JOIN", ROOM)
        member.tell("", "JOIN", ROOM, source=f"{member.name}!{member.name}@localhost")

    def _leave(self, member: Member) -> None:
        if member.name:
            del self._members[fold(member.name, "ascii")]
            self._announce(member, f"* {member.name} has left", "QUIT", "has left")

    # Messages of members.

    def _take_plain(self, member: Member, text: str) -> None:
        if not text.strip():
            return
        name, _, rest = text[1:].partition(" ")
        if not text.startswith("/"):
            self._pass_on(member, "PRIVMSG", ROOM, text)
        elif not self._pass_on(member, "PRIVMSG", name, rest):
            member.tell(f"There is no {name} here.")

    def _take_irc(self, member: Member, line: Line) -> bool:
        """Execute a command of an IRC client; return whether it stays connected."""
        match line:
            case Line(command="PRIVMSG" | "NOTICE", params=[target, text]):
                if not self._pass_on(member, line.command, target, printable(text)):
                    member.tell("", "401", member.name, target, "No such nick/channel")
            case Line(command="PING", params=[token, *_]):
                member.tell("", "PONG", SERVER, token)
            case Line(command="JOIN", params=[channel, *_]) if fold(channel, "ascii") == ROOM:
                self._join(member)
            case Line(command="QUIT"):
                return False
            case Line(command="PONG" | "CAP" | ""):
                pass
            case _:
                member.tell("", "421", member.name, printable(line.command).lstrip(":") or "*", "Unknown command")
        return True

    def _pass_on(self, member: Member, command: str, target: str, text: str) -> bool:
        """Send *text* to the room or to one member; return whether the target exists."""
        if fold(target, "ascii") == ROOM:
            listeners = [other for other in self._members.values() if other.in_room and other is not member]
            form, to = "<{}> {}", ROOM
        elif (listener := self._members.get(fold(target, "ascii"))) is not None:
            listeners = [listener]
            form, to = "({} to you) {}", listener.name
        else:
            return False
        for piece in split(text, PIECE):
            for listener in listeners:
                source = f"{member.name}!{member.name}@localhost"
                listener.tell(form.format(member.name, piece), command, to, piece, source=source)
        return True

    def _announce(self, member: Member, text: str, *irc: str) -> None:
        for other in self._members.values():
            if other.in_room and other is not member:
                other.tell(text, *irc, source=f"{member.name}!{member.name}@localhost")


def printable(text: str) -> str:
    return "".join(character for character in text if character.isprintable())
