"""``StatelessServer``: a message to an application and back."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterable
from typing import Any

from asgiref.server import StatelessServer

from .cases import case


class EchoServer(StatelessServer):
    """Sends messages to applications, which send them back."""

    def __init__(self) -> None:
        super().__init__(echo)
        self.checker: asyncio.Task[Any] | None = None
        self.scopes = itertools.count()
        self.left = 0

    async def pass_on(self, scope_ids: Iterable[int]) -> None:
        """Send a message to each of *scope_ids*, a hundred at a time, and wait for the answers."""
        if self.checker is None:  # as arun does, so that the next turn starts without instances
            self.checker = asyncio.create_task(self.application_checker())
        self.all_came = asyncio.Event()
        for scope_id in scope_ids:
            self.get_or_create_application_instance(scope_id, {"type": "echo"}).put_nowait("message")
            self.left += 1
            if self.left == 100:
                await self.all_came.wait()
                self.all_came.clear()

    async def application_send(self, scope: Any, message: Any) -> None:
        self.left -= 1
        if not self.left:
            self.all_came.set()


async def echo(scope: Any, receive: Any, send: Any) -> None:
    while True:
        await send(await receive())


talk, crowd = EchoServer(), EchoServer()


@case("StatelessServer, a message to one of 100 scopes and back")
async def messages(n: int) -> None:
    await talk.pass_on(number % 100 for number in range(n))


@case("StatelessServer, a message to a new scope and back")
async def new_scopes(n: int) -> None:
    await crowd.pass_on(itertools.islice(crowd.scopes, n))
