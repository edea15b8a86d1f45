"""Stands in for asgiref.testing in Django's ASGI tests, as long as the package has no such module."""

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import Context
from typing import Any

Message = dict[str, Any]
Application = Callable[
    [dict[str, Any], Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]
]


class ApplicationCommunicator:
    """Runs an ASGI application in a task, and talks to it from a test as a server does."""

    def __init__(self, application: Application, scope: dict[str, Any]) -> None:
        self._application = application
        self._scope = scope
        self._inputs: asyncio.Queue[Message] = asyncio.Queue()
        self._outputs: asyncio.Queue[Message | None] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None

    async def _run(self) -> None:
        try:
            await self._application(self._scope, self._inputs.get, self._outputs.put)
        finally:
            self._outputs.put_nowait(None)

    def _started(self) -> asyncio.Task[None]:
        if self._task is None:
            # The application of a server has no part in the context of a test, nor in its async_to_sync call.
            self._task = asyncio.create_task(self._run(), context=Context())
        return self._task

    async def _stop(self) -> None:
        task = self._started()
        task.cancel()
        await asyncio.wait({task})

    async def send_input(self, message: Message) -> None:
        self._started()
        await self._inputs.put(message)

    async def receive_output(self, timeout: float = 1) -> Message:
        """Return the next message; raise what the application raised, or TimeoutError if nothing more comes."""
        task = self._started()
        try:
            async with asyncio.timeout(timeout):
                message = await self._outputs.get()
        except TimeoutError:
            await self._stop()
            raise
        if message is not None:
            return message
        # The mark of the end stays for the next call.
        self._outputs.put_nowait(None)
        await task
        raise TimeoutError("the application ended without a further message")

    async def wait(self, timeout: float = 1) -> None:
        """Wait for the application's end, and raise what it raised."""
        task = self._started()
        await asyncio.wait({task}, timeout=timeout)
        if not task.done():
            await self._stop()
        if not task.cancelled():
            task.result()
