"""The store: a message is settled once, and answers stay until they are confirmed."""

from __future__ import annotations

import functools
import sqlite3
from pathlib import Path

import pytest

from examples.chatbot.app import answer
from examples.chatbot.store import Store


def test_a_message_is_settled_once(store: Store) -> None:
    """Settling changes the state and returns the answer; settling again does neither."""
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
    """If the reaction raises, the message is still unanswered, and its changes are undone."""
    message = store.accept("ada", "ada", "", "remember milk")

    def react() -> str:
        store.add_note("ada", "milk")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        store.settle(message.id, react)
    assert ([message], [], []) == (store.unanswered(), store.answers(0, 9), store.notes("ada"))


def test_answers_stay_until_they_are_confirmed(store: Store) -> None:
    """Answers come in order, from any point on; a confirmation covers all before it."""
    for text in "abc":
        store.settle(store.accept("ada", "ada", "", text).id, functools.partial(str, text))
    assert ["a", "b"] == [given.text for given in store.answers(0, 2)]
    first, second, third = store.answers(0, 9)
    assert [third] == store.answers(second.id, 9)
    store.confirm(second.id)
    assert [third] == store.answers(0, 9)
    assert first.id < second.id < third.id


def test_ids_are_not_used_again(tmp_path: Path) -> None:
    """The id of a message is never used for another one, even if all are deleted and the process is another one."""
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
    """A second bot with the same file, which would send everything twice, does not start."""
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        Store(store.path).open()
