"""The database, which survives a crash: unanswered messages, unconfirmed answers, and notes.

An accepted message is a row in ``inbox``. ``settle`` replaces that row by an answer in
``outbox``, in one transaction with the changes that the message causes; settling again
changes nothing. The answer stays until ``confirm``. If the process dies at any moment, each
message is in one of the two tables, or has been answered.

The code is synchronous, and SQLite allows a connection only on the thread that opened it.
``sync_to_async`` is thread-sensitive, so all calls run on the same thread. No lock, no
connection pool and no ``check_same_thread=False`` is needed.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Answer", "Message", "Store"]

# One bot for each file, because two would both send each answer. With a write-ahead log, a commit
# waits for the disk once and then survives a power failure.
SETTINGS = """
PRAGMA locking_mode = EXCLUSIVE;
PRAGMA journal_mode = WAL;
PRAGMA synchronous = FULL;
"""

# AUTOINCREMENT: ids are never reused.
SCHEMA = """
CREATE TABLE IF NOT EXISTS inbox (
    id INTEGER PRIMARY KEY AUTOINCREMENT, person TEXT NOT NULL, target TEXT NOT NULL, address TEXT NOT NULL,
    text TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS outbox (
    id INTEGER PRIMARY KEY AUTOINCREMENT, message INTEGER NOT NULL, target TEXT NOT NULL, text TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS notes (id INTEGER PRIMARY KEY, person TEXT NOT NULL, text TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS notes_of_person ON notes (person, id);
"""


@dataclass(frozen=True)
class Message:
    """A message of a person to the bot.

    Attributes:
        id: Its number in the inbox.
        person: The author; the scope id.
        text: The text.
    """

    id: int
    person: str
    text: str


@dataclass(frozen=True)
class Answer:
    """An answer of the bot.

    Attributes:
        id: Its number in the outbox.
        message: The id of the message that it answers.
        target: The receiver: a nick or a channel.
        text: The text.
    """

    id: int
    message: int
    target: str
    text: str


class Store:
    """The database. Call all methods on the same thread.

    Args:
        path: The file; ``":memory:"`` for none.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = path

    def open(self) -> None:
        """Connect. All other methods must be called on this thread.

        Raises:
            sqlite3.Error: if the file cannot be used, or another process uses it.
        """
        # isolation_level=None: this module begins transactions explicitly.
        self._connection = sqlite3.connect(self.path, timeout=1, isolation_level=None)
        try:
            self._connection.executescript(f"{SETTINGS} BEGIN IMMEDIATE; {SCHEMA} COMMIT")
        except BaseException:
            self._connection.close()
            raise

    def close(self) -> None:
        self._connection.close()

    # The inbox and the outbox.

    def accept(self, person: str, target: str, address: str, text: str) -> Message:
        """Record a message of *person*. From now on, it is certain to be answered.

        Args:
            person: The scope id.
            target: The receiver of the answer.
            address: A prefix for the answer, such as ``"ada: "`` in a channel.
            text: The text.
        """
        number = self._connection.execute(
            "INSERT INTO inbox (person, target, address, text) VALUES (?, ?, ?, ?)", (person, target, address, text)
        ).lastrowid
        assert number is not None
        return Message(number, person, text)

    def settle(self, message: int, react: Callable[[], str]) -> None:
        """Answer a message once: call *react*, and replace the message by the answer that it returns.

        Changes that *react* makes in this store are part of the same transaction. If it raises
        an exception, nothing changes. If the message is settled already, it is not called.
        """
        with self._connection:  # commits, or rolls back
            self._connection.execute("BEGIN IMMEDIATE")
            query = "SELECT target, address FROM inbox WHERE id = ?"
            for target, address in self._connection.execute(query, (message,)).fetchall():
                self._connection.execute(
                    "INSERT INTO outbox (message, target, text) VALUES (?, ?, ?)", (message, target, address + react())
                )
                self._connection.execute("DELETE FROM inbox WHERE id = ?", (message,))

    def unanswered(self) -> list[Message]:
        """Return the messages that are not settled, the oldest first."""
        return [Message(*row) for row in self._connection.execute("SELECT id, person, text FROM inbox ORDER BY id")]

    def answers(self, after: int, limit: int) -> list[Answer]:
        """Return up to *limit* answers whose ids are above *after*, the oldest first."""
        query = "SELECT id, message, target, text FROM outbox WHERE id > ? ORDER BY id LIMIT ?"
        return [Answer(*row) for row in self._connection.execute(query, (after, limit))]

    def confirm(self, up_to: int) -> None:
        """Delete the answers with ids up to *up_to*: the chat server has received them."""
        self._connection.execute("DELETE FROM outbox WHERE id <= ?", (up_to,))

    # The notes; a ``react`` changes them.

    def notes(self, person: str) -> list[str]:
        """Return the notes of *person*, the oldest first."""
        query = "SELECT text FROM notes WHERE person = ? ORDER BY id"
        return [text for (text,) in self._connection.execute(query, (person,))]

    def add_note(self, person: str, text: str) -> None:
        self._connection.execute("INSERT INTO notes (person, text) VALUES (?, ?)", (person, text))

    def remove_note(self, person: str, number: int) -> None:
        """Remove the note at position *number* of ``notes(person)``, counted from 1."""
        place = "SELECT id FROM notes WHERE person = ? ORDER BY id LIMIT 1 OFFSET ?"
        self._connection.execute(f"DELETE FROM notes WHERE id = ({place})", (person, number - 1))
