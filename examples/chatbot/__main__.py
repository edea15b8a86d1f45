"""Run the bot with a chat room of its own, or on a real IRC server."""

from __future__ import annotations

import argparse
import functools
import logging
import os
import socket
import sqlite3
import ssl
import sys

from . import irc
from .app import notebook
from .bot import Bot
from .chatroom import ROOM, ChatRoom
from .store import Store

__all__ = ["main"]

HOST = "127.0.0.1"
NICK = "notes"

TRY_IT = """\
A chat room is open at {host}, port {port}. The bot in it is called {nick}.
In another terminal:

    nc {host} {port}

Give a name, then say

    {nick}: remember milk
    {nick}: list
    {nick}: forget

Only the bot gets "/{nick} list". The notes are stored in {database}.
Ctrl-C here ends the bot.
"""


class BotWithRoom(Bot):
    """The bot and its chat room, which opens first and closes last."""

    listening: socket.socket

    async def arun(self) -> None:
        async with ChatRoom(self.listening):
            await super().arun()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m examples.chatbot",
        description="A bot that keeps notes. Without --irc it opens a chat room of its own, for nc.",
        epilog="Ctrl-C or SIGTERM: what people have said so far is answered, then it ends, with exit code 0.",
    )
    parser.add_argument("--port", type=int, default=6667, help="of the chat room; 0 for any free one (default: 6667)")
    parser.add_argument("--irc", type=address, metavar="HOST:PORT", help="connect to this IRC server instead")
    parser.add_argument("--tls", action="store_true", help="with --irc: encrypt")
    parser.add_argument("--nick", type=word, default=NICK, help=f"the bot's name (default: {NICK})")
    parser.add_argument("--channel", type=word, help="with --irc: the channel to be in (default: none)")
    parser.add_argument("--pace", type=float, default=2.0, help="with --irc: seconds for each line (default: 2)")
    parser.add_argument("--database", default="chatbot.sqlite3", help='or ":memory:" (default: %(default)s)')
    parser.add_argument("--grace", type=float, default=5.0, help="seconds to wait for answers at the end (default: 5)")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)

    store = Store(options.database)
    bot: Bot
    if options.irc is not None:
        host, port = options.irc
        tls = ssl.create_default_context() if options.tls else None
        # Not an option: all users of this machine can read options.
        password = os.environ.get("IRC_PASSWORD")
        connect = functools.partial(irc.connect, host, port, options.nick, password=password, tls=tls)
        bot = Bot(notebook(store), store, connect, channel=options.channel, grace=options.grace, pace=options.pace)
        print(f"The bot connects to {host}, port {port}. Its notes are in {options.database}. Ctrl-C ends it.")
    else:
        try:
            listening = socket.create_server((HOST, options.port))
        except OSError as error:
            parser.error(f"port {options.port}: {error.strerror}; take another one with --port")
        port = listening.getsockname()[1]
        connect = functools.partial(irc.connect, HOST, port, options.nick)
        bot = BotWithRoom(notebook(store), store, connect, channel=ROOM, grace=options.grace, pace=0)
        bot.listening = listening
        print(TRY_IT.format(host="localhost", port=port, nick=options.nick, database=options.database), flush=True)
    try:
        bot.run()
    except sqlite3.OperationalError as error:
        parser.exit(1, f"{options.database}: {error}\n")
    print("Ended.")


def address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not host or not colon:
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT")
    return host.strip("[]"), int(port)


def word(text: str) -> str:
    """Return *text* if it is valid as a parameter in IRC."""
    irc.encode("NICK", text, "")
    return text


if __name__ == "__main__":
    main()
