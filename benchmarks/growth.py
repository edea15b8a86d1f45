"""The cost of a call among many concurrent calls."""

from __future__ import annotations

from . import contexts, limits
from .cases import HERE, UPSTREAM, Function, case
from .sync_to_async import HOP, TO_THREAD, all_at_once, sensitive, to_thread

CALLS = (1, 10, 100, 1_000, 10_000)
CONTEXTS = (1, 10, 100, 1_000)


def calls_name(size: int) -> str:
    return f"{size} calls at once"


def contexts_name(size: int) -> str:
    return f"{size} ThreadSensitiveContexts at once"


def here(size: int) -> Function:
    async def run(n: int) -> None:
        await all_at_once(sensitive, size, n)

    return run


def in_threads(size: int) -> Function:
    async def run(n: int) -> None:
        await all_at_once(to_thread, size, n)

    return run


def hops(size: int) -> Function:
    async def run(n: int) -> None:
        with limits.hop() as thread:
            await all_at_once(thread.there_and_back, size, n)

    return run


def in_contexts(size: int) -> Function:
    async def run(n: int) -> None:
        await all_at_once(contexts.block_with_a_call, size, n)

    return run


for size in CALLS:
    case(calls_name(size), HERE, UPSTREAM, batch=size)(here(size))
    case(calls_name(size), TO_THREAD, batch=size)(in_threads(size))
    case(calls_name(size), HOP, batch=size)(hops(size))
for size in CONTEXTS:
    case(contexts_name(size), HERE, UPSTREAM, batch=size)(in_contexts(size))
