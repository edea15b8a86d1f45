"""The parts of an IRC client that a bot needs: lines, names, and one connection.

Nothing here depends on applications or on a database. Input is bounded: lines beyond the
limit of IRC are dropped while they are read, and bytes that are not UTF-8 are replaced.
Output is always one line, regardless of the parameters.

The rules are from RFC 1459 and RFC 2812. https://modern.ircdocs.horse describes later
conventions.
"""

from __future__ import annotations

import asyncio
import ssl
import string
from dataclasses import dataclass

__all__ = [
    "Connection",
    "Line",
    "Pace",
    "Refused",
    "connect",
    "encode",
    "fold",
    "hang_up",
    "parse",
    "read_line",
    "split",
]

# In bytes, with CR LF: a line, and a line with tags.
LINE_LIMIT = 512
READ_LIMIT = 8191 + LINE_LIMIT

# Bytes that a server adds to a line, except the nick: ":nick!user@host " with a user of at most
# 11 bytes and a host of at most 63.
PREFIX_ALLOWANCE = len(":!@ ") + 11 + 63

# In seconds: the timeout for registering and for sending, and the silence after which we send a
# PING.
PATIENCE = 30.0
SILENCE = 120.0

# Maximum number of nicks to try.
NICKS = 9

# How names are compared, by the server's CASEMAPPING. Our comparison must be the same as the
# server's: else one person could read another's notes.
FOLDS = {
    "ascii": str.maketrans(string.ascii_uppercase, string.ascii_lowercase),
    "rfc1459": str.maketrans(string.ascii_uppercase + "[]\\~", string.ascii_lowercase + "{}|^"),
    "strict-rfc1459": str.maketrans(string.ascii_uppercase + "[]\\", string.ascii_lowercase + "{}|"),
}
LINE_ENDS = str.maketrans("\r\n\0", "   ")


class Refused(ConnectionError):
    """The server has refused the registration."""


@dataclass(frozen=True)
class Line:
    """One line of IRC.

    Attributes:
        source: The sender, as ``nick!user@host`` or the name of a server; ``""`` if missing.
        command: A word in upper case, or three digits.
        params: The parameters, the last one without its colon.
    """

    source: str
    command: str
    params: list[str]

    @property
    def nick(self) -> str:
        """The nick of the sender; ``""`` if it is a server."""
        nick, mark, _ = self.source.partition("!")
        return nick if mark else ""


def parse(data: bytes) -> Line:
    """Parse a line without its end. An invalid line results in an unknown command."""
    text = data.decode("utf-8", "replace").translate(LINE_ENDS).strip(" ")
    if text.startswith("@"):  # tags, which we have not requested
        text = text.partition(" ")[2].lstrip(" ")
    source = ""
    if text.startswith(":"):
        source, _, text = text[1:].partition(" ")
    text, colon, last = text.partition(" :")
    # Not split(): in IRC, only the space character separates words.
    command, *params = [word for word in text.split(" ") if word] or [""]
    return Line(source, command.upper(), [*params, last] if colon else params)


def encode(command: str, *params: str) -> bytes:
    """Return a line, with CR LF. The last parameter may be any text; it cannot start another line.

    Raises:
        ValueError: if another parameter is empty, has a space or a line end, or starts with a colon.
    """
    *words, last = params
    for word in words:
        if not word or " " in word.translate(LINE_ENDS) or word.startswith(":"):
            raise ValueError(f"{word!r} can only be the last parameter of a line of IRC")
    return " ".join([command, *words, ":" + last.translate(LINE_ENDS)]).encode() + b"\r\n"


def split(text: str, limit: int) -> list[str]:
    """Split *text* into pieces of up to *limit* bytes of UTF-8, preferably at spaces."""
    data = text.translate(LINE_ENDS).encode()
    pieces = []
    while len(data) > limit:
        cut = data.rfind(b" ", 1, limit + 1)
        if cut < 0:
            cut = limit
            while data[cut] & 0b1100_0000 == 0b1000_0000:  # not the first byte of a character
                cut -= 1
        pieces.append(data[:cut].decode())
        data = data[cut:].lstrip(b" ")
    return [*pieces, data.decode()]


def fold(name: str, mapping: str = "rfc1459") -> str:
    """Return the normalized form of a nick or channel by *mapping*, for comparisons."""
    return name.translate(FOLDS.get(mapping, FOLDS["ascii"]))


async def read_line(reader: asyncio.StreamReader) -> bytes | None:
    """Return the next line without its end, or None at the end. Lines beyond the reader's limit are dropped."""
    too_long = False
    while True:
        try:
            data = await reader.readuntil(b"\n")
        except asyncio.LimitOverrunError as error:
            await reader.readexactly(error.consumed)
            too_long = True
        except asyncio.IncompleteReadError:  # an incomplete line is dropped
            return None
        else:
            if not too_long:
                return data.rstrip(b"\r\n")
            too_long = False


class Pace:
    """Limits the rate of lines as servers require.

    Servers charge a client two seconds for each line and allow a debt of ten seconds (RFC
    1459, section 8.10). Beyond it, some of them, such as ngIRCd, read more slowly; others
    disconnect the client.

    Args:
        seconds: The charge for each line; 0 for a server without this rule.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._paid_until = 0.0

    async def wait(self) -> None:
        """Wait until another line may be sent."""
        if self.seconds:
            now = asyncio.get_running_loop().time()
            self._paid_until = max(self._paid_until, now) + self.seconds
            await asyncio.sleep(self._paid_until - now - 5 * self.seconds)  # a negative delay means none


class Connection:
    """A connection to a server, made by ``connect``. At its end, methods raise an ``OSError``.

    Attributes:
        nick: The bot's nick, as the server knows it.
        mapping: How the server compares names.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.nick = ""
        self.mapping = "rfc1459"  # the default of IRC

    def fold(self, name: str) -> str:
        return fold(name, self.mapping)

    def room(self, command: str, target: str) -> int:
        """Return the maximum size of text in a line, in bytes, that the server does not cut."""
        own = len(f"{command} {target} :\r\n".encode()) + len(self.nick.encode())
        return max(LINE_LIMIT - PREFIX_ALLOWANCE - own, 64)  # also for very long names

    async def register(self, nick: str, password: str | None) -> None:
        if password is not None:
            await self.send("PASS", password)
        await self.send("NICK", nick)
        await self.send("USER", "bot", "0", "*", "a bot")
        attempts = 1
        while True:
            line = await self.receive()
            match line:
                case Line(command="001", params=[nick, *_]):
                    self.nick = nick  # the server may have shortened it
                    return
                case Line(command="433" | "436" | "437") if attempts < NICKS:  # in use, or not free yet
                    attempts += 1
                    # Old servers accept nine characters.
                    await self.send("NICK", f"{nick[:8]}{attempts}")
                case Line(command="431" | "432" | "433" | "436" | "437" | "463" | "464" | "465"):
                    raise Refused(f"the server says {' '.join(line.params[1:])!r}")

    async def receive(self) -> Line:
        """Return the next line. Answers each PING on the way."""
        asked = False
        while True:
            try:
                async with asyncio.timeout(SILENCE):
                    data = await read_line(self._reader)
            except TimeoutError:
                if asked:
                    raise ConnectionResetError("the server is silent") from None
                asked = True
                await self.send("PING", "alive")
                continue
            if data is None:
                raise ConnectionResetError("the server has closed the connection")
            line = parse(data)
            match line:
                case Line(command="PING", params=[*_, token]):
                    await self.send("PONG", token)
                case Line(command="ERROR"):
                    raise ConnectionResetError(f"the server says {' '.join(line.params)!r}")
                case Line(command="005"):
                    for word in line.params:
                        if word.startswith("CASEMAPPING="):
                            self.mapping = word.partition("=")[2]
                case Line(command="NICK", params=[nick]) if self.fold(line.nick) == self.fold(self.nick):
                    self.nick = nick  # a server may rename its clients
            return line

    async def send(self, command: str, *params: str) -> None:
        if self._writer.is_closing():  # some event loops do not raise an error themselves
            raise ConnectionResetError("the connection is lost")
        self._writer.write(encode(command, *params))
        async with asyncio.timeout(PATIENCE):
            await self._writer.drain()

    async def close(self) -> None:
        """Send QUIT, if the connection is still open, and close."""
        if not self._writer.is_closing():
            self._writer.write(encode("QUIT", "good-bye"))
        await hang_up(self._writer)


async def hang_up(writer: asyncio.StreamWriter) -> None:
    """Close a connection; wait up to a second for pending output."""
    writer.close()
    try:
        async with asyncio.timeout(1):
            await writer.wait_closed()
    except OSError:
        pass  # it has ended, too
    finally:
        writer.transport.abort()


async def connect(
    host: str, port: int, nick: str, *, password: str | None = None, tls: ssl.SSLContext | None = None
) -> Connection:
    """Connect and register. If *nick* is in use, try similar ones.

    Raises:
        OSError: if this fails or takes too long; ``Refused`` if the server refuses the registration.
    """
    async with asyncio.timeout(PATIENCE):
        reader, writer = await asyncio.open_connection(host, port, ssl=tls, limit=READ_LIMIT)
        connection = Connection(reader, writer)
        try:
            await connection.register(nick, password)
        except BaseException:
            writer.transport.abort()
            raise
    return connection
