"""The ASGI app: one instance for each person; it keeps that person's notes.

The protocol ``chat`` is defined by this example:

- The scope is ``{"type": "chat", "person": str}``.
- ``chat.message``, to the app: a message of the person, with its ``id`` (int) and ``text`` (str).
- ``chat.answered``, from the app: the message ``id`` (int) is settled; its answer is in the store.

The event has no text, because the answer is stored together with the change, in one
transaction. Neither can be lost without the other. If a server does not know whether a
message was settled, it may send it again; that changes nothing.

The server may end an instance at any time. Variables hold short-lived state, here the
question "Which one?"; everything else is in the store.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import Any

from asgiref.sync import sync_to_async

from .store import Store

__all__ = ["Application", "notebook"]

Event = dict[str, Any]
Application = Callable[[dict[str, Any], Callable[[], Awaitable[Event]], Callable[[Event], Awaitable[None]]], Any]

HELP = 'Say "remember ...", "list" to see your notes, or "forget".'

# Limits for one person.
MOST_NOTES = 20
LONGEST_NOTE = 200  # characters


def notebook(store: Store) -> Application:
    """Return the app that keeps its notes in *store*."""

    async def application(
        scope: dict[str, Any], receive: Callable[[], Awaitable[Event]], send: Callable[[Event], Awaitable[None]]
    ) -> None:
        if scope["type"] != "chat":
            raise NotImplementedError(f"this app is for chat, not for {scope['type']}")
        which_one = False  # whether this was the previous answer
        while True:
            message = await receive()
            command, _, rest = message["text"].strip().partition(" ")
            command, rest = command.lower(), rest.strip()
            if which_one and command.isdecimal():
                command, rest = "forget", command
            which_one = (command, rest) == ("forget", "")
            react = functools.partial(answer, store, scope["person"], command, rest)
            # On the thread of the store; the event loop serves other people meanwhile.
            await sync_to_async(store.settle)(message["id"], react)
            await send({"type": "chat.answered", "id": message["id"]})

    return application


def answer(store: Store, person: str, command: str, rest: str) -> str:
    """Execute the command of *person* and return the answer; called in the transaction of ``store.settle``."""
    notes = store.notes(person)
    number = int(rest) if rest.isdecimal() and len(rest) < 9 else 0
    match command:
        case "remember" if not rest:
            return "Remember what?"
        case "remember" if len(notes) >= MOST_NOTES:
            return f"I keep {MOST_NOTES} notes for you already. Forget one first."
        case "remember":
            store.add_note(person, rest[:LONGEST_NOTE])
            return f"Noted. That makes {len(notes) + 1}."
        case "list" | "forget" if not notes:
            return "You have no notes."
        case "list":
            return listed(notes)
        case "forget" if not rest:
            return f"Which one? {listed(notes)}"
        case "forget" if 1 <= number <= len(notes):
            store.remove_note(person, number)
            return f"Forgotten: {notes[number - 1]}"
        case "forget":
            return f"You have no note {rest[:20]}."
        case "help":
            return HELP
    return f"I don't understand. {HELP}"


def listed(notes: list[str]) -> str:
    return ", ".join(f"{number}: {text}" for number, text in enumerate(notes, 1))
