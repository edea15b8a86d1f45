"""What must survive a crash: the messages that the bot owes an answer, the answers on their way, and the notes.

A message is accepted by a row in ``inbox``. ``settle`` swaps that row, in one transaction with
what the message changes, for an answer in ``outbox``; settling again changes nothing. The
answer stays until ``confirm``. Whenever the process dies, each message is in one of the two
tables, or has been answered.

All of it is synchronous, and belongs to the thread that opened it: SQLite's connection insists
on that. ``sync_to_async`` gives it that thread, since each thread-sensitive call runs on the same
one. So there is no lock here, no pool of connections and no ``check_same_thread=False``.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Answer", "Message", "Store"]

# One bot for one file: two would both send each answer. With a write-ahead log, a commit waits
# for the disk once, and is then safe from a power cut.
SETTINGS = """
PRAGMA locking_mode = EXCLUSIVE;
PRAGMA journal_mode = WAL;
PRAGMA synchronous = FULL;
"""

# AUTOINCREMENT: the id of a message that is done is never given to another one.
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
    """What a person has said to the bot.

    Attributes:
        id: Its number in the inbox.
        person: Who said it; the scope id.
        text: What was said.
    """

    id: int
    person: str
    text: str


@dataclass(frozen=True)
class Answer:
    """What the bot has to say.

    Attributes:
        id: Its number in the outbox.
        message: The id of the message that it answers.
        target: Where to say it: a nick or a channel.
        text: What to say.
    """

    id: int
    message: int
    target: str
    text: str


class Store:
    """The database. Every method is to be called on one and the same thread.

    Args:
        path: The file; ``":memory:"`` for none.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = path

    def open(self) -> None:
        """Connect; the calling thread is the one from now on.

        Raises:
            sqlite3.Error: if the file cannot be used, or another process does.
        """
        # isolation_level=None: this module says itself where a transaction begins.
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
        """Record what *person* has said: from now on it will be answered.

        Args:
            person: The scope id.
            target: Where the answer has to be said.
            address: What to put before the answer, such as ``"ada: "`` in a channel.
            text: What was said.
        """
        number = self._connection.execute(
            "INSERT INTO inbox (person, target, address, text) VALUES (?, ?, ?, ?)", (person, target, address, text)
        ).lastrowid
        assert number is not None
        return Message(number, person, text)

    def settle(self, message: int, react: Callable[[], str]) -> None:
        """Answer a message, once: call *react*, and swap the message for the answer that it returns.

        All that *react* changes in this store is one transaction with that. If it raises,
        nothing has changed. If the message is settled already, it is not called.
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
        """Return the messages that nobody has settled, the oldest first."""
        return [Message(*row) for row in self._connection.execute("SELECT id, person, text FROM inbox ORDER BY id")]

    def answers(self, after: int, limit: int) -> list[Answer]:
        """Return up to *limit* answers whose ids are above *after*, in the order in which they came to be."""
        query = "SELECT id, message, target, text FROM outbox WHERE id > ? ORDER BY id LIMIT ?"
        return [Answer(*row) for row in self._connection.execute(query, (after, limit))]

    def confirm(self, up_to: int) -> None:
        """Forget the answers with ids up to *up_to*: the chat server has them."""
        self._connection.execute("DELETE FROM outbox WHERE id <= ?", (up_to,))

    # The notes, to be changed by a ``react``.

    def notes(self, person: str) -> list[str]:
        """Return the notes of *person*, the oldest first."""
        query = "SELECT text FROM notes WHERE person = ? ORDER BY id"
        return [text for (text,) in self._connection.execute(query, (person,))]

    def add_note(self, person: str, text: str) -> None:
        self._connection.execute("INSERT INTO notes (person, text) VALUES (?, ?)", (person, text))

    def remove_note(self, person: str, number: int) -> None:
        """Remove the note at place *number* of ``notes(person)``, counted from 1."""
        place = "SELECT id FROM notes WHERE person = ? ORDER BY id LIMIT 1 OFFSET ?"
        self._connection.execute(f"DELETE FROM notes WHERE id = ({place})", (person, number - 1))
