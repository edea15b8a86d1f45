"""The memory of Python's allocators for a call that waits for a thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable

from asgiref.sync import sync_to_async

from .cases import HERE, UPSTREAM, case
from .sync_to_async import TO_THREAD, insensitive, sensitive, to_thread

WAITING = 10_000
SENSITIVE = "10,000 waiting calls"
INSENSITIVE = "10,000 waiting calls, thread_sensitive=False"
THREADS = 64  # more than a default executor has on a machine of some CPUs; all of them must be busy


async def bytes_of_each(call: Callable[[], Awaitable[object]], block: Callable[[], Awaitable[object]]) -> float:
    """Return the memory of a *call* that is queued behind others, which *block* until told."""
    import tracemalloc  # not on PyPy, where the other families run

    busy = [asyncio.ensure_future(block()) for _ in range(THREADS)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    tracemalloc.start()
    tasks = [asyncio.ensure_future(call()) for _ in range(WAITING)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    released.set()
    await asyncio.gather(*busy, *tasks)
    released.clear()
    return used / WAITING


released = threading.Event()
wait = sync_to_async(released.wait)
wait_insensitive = sync_to_async(released.wait, thread_sensitive=False)


@case(SENSITIVE, HERE, UPSTREAM, unit="bytes")
async def waiting(n: int) -> float:
    return await bytes_of_each(sensitive, wait)


@case(INSENSITIVE, HERE, UPSTREAM, unit="bytes")
async def waiting_insensitive(n: int) -> float:
    return await bytes_of_each(insensitive, wait_insensitive)


@case(SENSITIVE, TO_THREAD, unit="bytes")
@case(INSENSITIVE, TO_THREAD, unit="bytes")
async def waiting_in_to_thread(n: int) -> float:
    return await bytes_of_each(to_thread, lambda: asyncio.to_thread(released.wait))
