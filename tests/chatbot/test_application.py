"""The application of the bot, without the bot."""

from __future__ import annotations

from pathlib import Path

import pytest

from asgiref.sync import sync_to_async
from asgiref.testing import ApplicationCommunicator
from examples.chatbot.app import HELP, LONGEST_NOTE, MOST_NOTES, answer, notebook
from examples.chatbot.store import Store

from ..helpers import LIMIT
from .helpers import open_store


def test_what_the_bot_understands(store: Store) -> None:
    """Notes are stored, listed and deleted, for each person separately."""

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
    """A long note is cut, and the number of notes is limited."""
    for _ in range(MOST_NOTES):
        answer(store, "ada", "remember", "x" * 9999)
    assert f"I keep {MOST_NOTES} notes for you already. Forget one first." == answer(store, "ada", "remember", "x")
    assert ["x" * LONGEST_NOTE] * MOST_NOTES == store.notes("ada")


async def test_an_instance_remembers_its_question(tmp_path: Path) -> None:
    """After "Which one?", and only then, a number is an answer."""
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
    """A scope of another type is refused, as ASGI requires."""
    communicator = ApplicationCommunicator(notebook(Store(":memory:")), {"type": "lifespan"})
    with pytest.raises(NotImplementedError, match="not for lifespan"):
        await communicator.receive_output(LIMIT)
