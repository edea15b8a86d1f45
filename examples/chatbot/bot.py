"""The server: one IRC connection, and an application instance for each person.

A message is *in progress* from reading its line until its answer is written to the connection.
The rules:

- *At least once.* A message is recorded before it is in progress, and settled in one transaction
  with its answer (see ``store``). IRC has no acknowledgements, so the bot sends a PING after the
  answers, and the PONG confirms them: a server handles the lines of a client in order. After a
  lost connection or a crash, unconfirmed answers are sent again, and unsettled messages are
  given to the application again. So an answer can be sent twice, if the connection is lost
  between the answer and its PONG. The server drops answers to people who have left.
- *Bounded.* At most ``max_applications`` messages are in progress. Then the bot stops reading, and
  eventually the chat server stops reading or disconnects the bot, which reconnects.
- *No interruption.* To make room for another instance, an instance without a message in progress
  is cancelled. There always is one: the next message is not in progress yet, so fewer than
  ``max_applications`` people have one.
- *No endless retries.* A message on which the application fails is settled with an apology.

The scope id is the person's nick, normalized as the server does. This is enough for notes, but not
for secrets: anybody who takes over a nick gets its scope. If the server has accounts, use the
``account`` tag of IRCv3.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from asgiref.server import ApplicationInstance, StatelessServer
from asgiref.sync import sync_to_async

from .app import Application
from .irc import Connection, Line, Pace, split
from .store import Message, Store

__all__ = ["Bot"]

logger = logging.getLogger(__name__)

APOLOGY = "Sorry, something went wrong with that. It is noted, and you need not repeat it."

# The pause before connecting again, in seconds: the first, and the longest.
FIRST_PAUSE = 1.0
LONGEST_PAUSE = 60.0

# Number of answers that are read from the store and confirmed with one PING.
BATCH = 20


# A nick to which an answer can be sent; servers allow less.
NICK = re.compile(r"[^\s:,!@#&+*?$]{1,64}")

# The token of a PING after answers: the id of the last one.
SAID = re.compile(r"said-([0-9]{1,18})")


@dataclass
class Work:
    """A message in progress: the person, and whether only the answer has to be sent."""

    person: str
    settled: bool = False


class Bot(StatelessServer):
    """Answers everybody who writes to it, in private or in a channel (``name: ...``).

    Args:
        application: The app (see ``app`` for its protocol).
        store: The database; ``arun`` opens and closes it.
        connect: Returns a new, registered connection.
        channel: The channel to join, or None.
        max_applications: Maximum number of instances and of messages in progress.
        grace: Seconds to wait for messages in progress at the end.
        pace: The seconds that the server charges for a line; see ``Pace``.
        pause: Waits for a number of seconds before the next attempt to connect.
    """

    def __init__(
        self,
        application: Application,
        store: Store,
        connect: Callable[[], Awaitable[Connection]],
        *,
        channel: str | None = None,
        max_applications: int = 100,
        grace: float = 5.0,
        pace: float = 2.0,
        pause: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        super().__init__(application, max_applications)
        self.store, self.connect, self.channel = store, connect, channel
        self.grace, self.pace, self.pause = grace, pace, pause
        # By message id. Only listen() adds to it.
        self.in_work: dict[int, Work] = {}
        # The highest id of the answers written to this connection, and whether a PONG is expected.
        self.sent = 0
        self.unconfirmed = False
        self.stopping = False
        # Set when there may be an answer to send; set when less is in progress or unconfirmed.
        self.settled = asyncio.Event()
        self.progress = asyncio.Event()

    # Running.

    async def arun(self) -> None:
        self.stopping = False
        await sync_to_async(self.store.open)()
        try:
            await super().arun()
        finally:
            # Not at the end of handle(): the applications end later.
            await sync_to_async(self.store.close)()

    async def handle(self) -> None:
        presence = asyncio.create_task(self.stay_connected())
        try:
            await asyncio.wait({presence})
        except asyncio.CancelledError:  # Ctrl-C, SIGTERM: finish messages in progress, which needs the connection
            self.stopping = True
            logger.info("Stopping; messages in progress have %g s.", self.grace)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.grace):
                    await self.all_is_said()
            raise
        finally:
            presence.cancel()
            await asyncio.wait({presence})
            self.in_work.clear()  # the rest is in the store
        presence.result()

    async def stay_connected(self) -> None:
        pause = FIRST_PAUSE
        while True:
            try:
                connection = await self.connect()
                pause = FIRST_PAUSE
                await self.attend(connection)
            except* OSError as errors:
                error = innermost(errors)
                logger.warning("Not connected: %s. Next attempt in %g s.", str(error) or type(error).__name__, pause)
            await self.pause(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    async def attend(self, connection: Connection) -> None:
        """Receive and send on *connection* until it ends with an ``OSError`` in an exception group."""
        try:
            if self.channel is not None:
                await connection.send("JOIN", self.channel)
            logger.info("Connected as %s.", connection.nick)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self.speak(connection))
                tasks.create_task(self.listen(connection))
        finally:
            await connection.close()

    async def all_is_said(self) -> None:
        while self.in_work or self.unconfirmed:
            self.progress.clear()
            await self.progress.wait()

    # From people to applications.

    async def listen(self, connection: Connection) -> None:
        # Messages of an earlier connection or process.
        for message in await sync_to_async(self.store.unanswered)():
            if message.id not in self.in_work:
                await self.room_for_work()
                self.hand_over(message)
        while True:
            line = await connection.receive()
            if line.command == "PONG":
                await self.confirm(line)
            elif line.command[:1] in {"4", "5"}:  # an error, such as a channel that we may not enter
                logger.warning("The server says %r.", " ".join(line.params))
            elif (said := self.said_to_me(connection, line)) is not None and not self.stopping:
                await self.room_for_work()
                # Once recorded, it cannot be lost.
                self.hand_over(await sync_to_async(self.store.accept)(*said))

    def said_to_me(self, connection: Connection, line: Line) -> tuple[str, str, str, str] | None:
        """Return person, target, address and text if *line* is a message of a person to the bot."""
        # Ignore NOTICE, which other bots and servers send: two bots would answer each other forever.
        if line.command != "PRIVMSG" or len(line.params) != 2 or not NICK.fullmatch(line.nick):
            return None
        me, person = connection.fold(connection.nick), connection.fold(line.nick)
        target, text = line.params
        if person == me or text.startswith("\1"):  # its own message; CTCP, a protocol between clients
            return None
        if connection.fold(target) == me:
            return person, line.nick, "", text
        name, mark, text = text[: len(me)], text[len(me) : len(me) + 1], text[len(me) + 1 :]
        if self.channel is None or connection.fold(target) != connection.fold(self.channel):
            return None
        if connection.fold(name) != me or mark not in {":", ","}:
            return None
        return person, target, f"{line.nick}: ", text.strip()

    async def room_for_work(self) -> None:
        while len(self.in_work) >= self.max_applications:
            self.progress.clear()
            await self.progress.wait()

    def hand_over(self, message: Message) -> None:
        queue = self.get_or_create_application_instance(message.person, {"type": "chat", "person": message.person})
        queue.put_nowait({"type": "chat.message", "id": message.id, "text": message.text})
        self.in_work[message.id] = Work(message.person)

    def delete_oldest_application_instance(self) -> None:
        busy = {work.person for work in self.in_work.values()}
        self.delete_application_instance(next(person for person in self.application_instances if person not in busy))

    # From applications to people.

    async def application_send(self, scope: Any, message: Any) -> None:
        if message["type"] != "chat.answered":
            raise ValueError(f"the protocol chat has no event {message['type']!r}")
        # None if the answer has already been sent, or if handle() has ended.
        if (work := self.in_work.get(message["id"])) is not None:
            work.settled = True
            self.settled.set()

    async def application_exception(self, exception: BaseException, application_details: ApplicationInstance) -> None:
        await super().application_exception(exception, application_details)  # logs the exception
        scope, queue = application_details["scope"], application_details["input_queue"]
        # The application handles messages in order, so it has failed on the first unsettled one.
        mine = (number for number, work in self.in_work.items() if work.person == scope["person"] and not work.settled)
        if (failed := next(mine, None)) is None:
            return
        while not queue.empty():
            self.get_or_create_application_instance(scope["person"], scope).put_nowait(queue.get_nowait())
        await sync_to_async(self.store.settle)(failed, lambda: APOLOGY)
        await self.application_send(scope, {"type": "chat.answered", "id": failed})

    async def speak(self, connection: Connection) -> None:
        # Start at 0: answers that were not confirmed on an earlier connection are sent again.
        self.sent = 0
        pace = Pace(self.pace)
        while True:
            self.settled.clear()
            answers = await sync_to_async(self.store.answers)(self.sent, BATCH)
            if not answers:
                await self.settled.wait()
                continue
            self.unconfirmed = True
            for answer in answers:
                for text in split(answer.text, connection.room("NOTICE", answer.target)):
                    await pace.wait()
                    # Bots answer with a NOTICE, which other bots ignore (RFC 2812, section 3.3.2).
                    await connection.send("NOTICE", answer.target, text)
                self.sent = answer.id
                self.in_work.pop(answer.message, None)
                self.progress.set()
            await pace.wait()
            await connection.send("PING", f"said-{self.sent}")

    async def confirm(self, pong: Line) -> None:
        match = SAID.fullmatch(pong.params[-1]) if pong.params else None
        if match is not None and (number := int(match[1])) <= self.sent:
            await sync_to_async(self.store.confirm)(number)
            self.unconfirmed = number < self.sent
            self.progress.set()


def innermost(error: BaseException) -> BaseException:
    return innermost(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error
