"""An IRC bot that talks with each person separately: ``python ircbot.py HOST PORT NICK CHANNEL``."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from asgiref.server import StatelessServer


async def counter(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """The application: a conversation with one person."""
    count = 0
    while True:
        text = (await receive())["text"]
        count += 1
        await send({"type": "irc.answer", "text": f"{scope['user']}: message {count} from you is {text!r}"})


class Bot(StatelessServer):
    def __init__(self, host: str, port: int, nick: str, channel: str) -> None:
        super().__init__(counter, max_applications=100)
        self.host, self.port, self.nick, self.channel = host, port, nick, channel

    async def handle(self) -> None:
        reader, self.writer = await asyncio.open_connection(self.host, self.port)
        self.say(f"NICK {self.nick}\r\nUSER {self.nick} 0 * :{self.nick}")
        while line := await reader.readline():
            prefix, command, *rest = [*line.decode(errors="replace").strip().split(" ", 3), "", ""]
            if prefix == "PING":
                self.say(f"PONG {command}")
            elif command == "001":  # the server has accepted the name
                self.say(f"JOIN {self.channel}")
            elif command == "PRIVMSG" and rest[1].startswith(f":{self.nick}: "):
                user, text = prefix[1:].partition("!")[0], rest[1].removeprefix(f":{self.nick}: ")
                queue = self.get_or_create_application_instance(user, {"type": "irc", "user": user})
                queue.put_nowait({"type": "irc.message", "text": text})

    def say(self, line: str) -> None:
        self.writer.write(f"{line}\r\n".encode())

    async def application_send(self, scope: Any, message: Any) -> None:
        self.say(f"PRIVMSG {self.channel} :{message['text']}")
        await self.writer.drain()


if __name__ == "__main__":
    host, port, nick, channel = sys.argv[1:]
    Bot(host, int(port), nick, channel).run()
