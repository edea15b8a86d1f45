"""An IRC bot: ``python ircbot.py HOST PORT NICK CHANNEL``."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from asgiref.server import StatelessServer


async def counter(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """The application: a conversation with one person."""
    count = 0
    while True:
        message = await receive()
        count += 1
        text = f"{scope['user']}: message {count} is {message['text']!r}"
        await send({"type": "irc.answer", "text": text})


class Bot(StatelessServer):
    def __init__(self, host: str, port: str, nick: str, channel: str) -> None:
        super().__init__(counter, max_applications=100)
        self.address = host, int(port)
        self.nick, self.channel = nick, channel

    async def handle(self) -> None:
        reader, self.writer = await asyncio.open_connection(*self.address)
        self.say(f"NICK {self.nick}\r\nUSER {self.nick} 0 * :{self.nick}")
        while line := await reader.readline():
            words = line.decode(errors="replace").strip().split(" ", 4)
            match words:
                case ["PING", token, *_]:
                    self.say(f"PONG {token}")
                case [_, "001", *_]:  # the server has accepted the name
                    self.say(f"JOIN {self.channel}")
                case [prefix, "PRIVMSG", _, called, text]:
                    if called == f":{self.nick}:":
                        self.heard(prefix[1:].partition("!")[0], text)

    def heard(self, user: str, text: str) -> None:
        scope = {"type": "irc", "user": user}
        queue = self.get_or_create_application_instance(user, scope)
        queue.put_nowait({"type": "irc.message", "text": text})

    def say(self, line: str) -> None:
        self.writer.write(f"{line}\r\n".encode())

    async def application_send(self, scope: Any, message: Any) -> None:
        self.say(f"PRIVMSG {self.channel} :{message['text']}")
        await self.writer.drain()


if __name__ == "__main__":
    Bot(*sys.argv[1:]).run()
