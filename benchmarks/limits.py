"""The minimum for a call to another thread: a queue in each direction, and one wake-up of the event loop."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Hop:
    """A thread that answers an event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._jobs: queue.SimpleQueue[asyncio.Future[None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work)
        self._thread.start()

    def _work(self) -> None:
        while (future := self._jobs.get()) is not None:
            self._loop.call_soon_threadsafe(future.set_result, None)

    async def there_and_back(self) -> None:
        future = self._loop.create_future()
        self._jobs.put(future)
        await future

    def close(self) -> None:
        self._jobs.put(None)
        self._thread.join()


@contextmanager
def hop() -> Iterator[Hop]:
    thread = Hop()
    try:
        yield thread
    finally:
        thread.close()


def ping_pong(n: int) -> None:
    """Pass an object to another thread and back, *n* times."""
    there: queue.SimpleQueue[bool] = queue.SimpleQueue()
    back: queue.SimpleQueue[bool] = queue.SimpleQueue()

    def work() -> None:
        while there.get():
            back.put(True)

    thread = threading.Thread(target=work)
    thread.start()
    for _ in range(n):
        there.put(True)
        back.get()
    there.put(False)
    thread.join()
