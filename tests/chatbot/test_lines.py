"""The lines of IRC: reading, writing, cutting, and names."""

from __future__ import annotations

import asyncio

import pytest

from examples.chatbot import irc
from examples.chatbot.irc import Line


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
    """Any bytes can be parsed; anything but a line of the RFC gives a harmless result."""
    assert expected == irc.parse(data)


def test_a_person_is_told_from_a_server() -> None:
    """A person has nick, user and host; a server has only a name."""
    assert ["ada", ""] == [Line("ada!a@host", "X", []).nick, Line("irc.example", "X", []).nick]


def test_one_line_is_sent_whatever_it_contains() -> None:
    """A text cannot start another line; a parameter that would become two is refused."""
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
    """Texts are cut at spaces if possible, and never within a character."""
    assert expected == irc.split(text, limit)


@pytest.mark.parametrize(
    ("mapping", "expected"),
    [("ascii", "ada[]\\~Ä"), ("rfc1459", "ada{}|^Ä"), ("strict-rfc1459", "ada{}|~Ä"), ("unheard-of", "ada[]\\~Ä")],
)
def test_names_are_compared_as_the_server_does(mapping: str, expected: str) -> None:
    """The server says which upper-case and lower-case characters are equal."""
    assert expected == irc.fold("AdA[]\\~Ä", mapping)


async def test_lines_that_are_too_long_are_dropped() -> None:
    """Nothing is kept of a line beyond the limit, in any number of pieces; the next line is whole.

    Half a line is no line.
    """
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
    """Five lines are sent at once, and then one every two seconds."""
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    pace = irc.Pace(2.0)
    for _ in range(7):
        await pace.wait()
    assert [-8, -6, -4, -2, 0, 2, 4] == [round(seconds) for seconds in waits]
