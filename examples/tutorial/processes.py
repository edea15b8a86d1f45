"""Heavy computing in other processes, which can use the bridge too."""

from __future__ import annotations

import asyncio
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

from asgiref.sync import async_to_sync, sync_to_async


def primes(limit: int) -> int:
    return sum(
        all(number % divisor for divisor in range(2, number))
        for number in range(2, limit)
    )


async def ask(limit: int) -> int:
    await asyncio.sleep(0.01)  # instead of a request to another site
    return await sync_to_async(primes)(limit)


def work(limit: int) -> int:
    """Runs in a child process, which may use the bridge in both directions."""
    return async_to_sync(ask)(limit)


async def main() -> None:
    loop = asyncio.get_running_loop()
    with ProcessPoolExecutor(
        2, mp_context=multiprocessing.get_context("spawn")
    ) as pool:
        counts = await asyncio.gather(
            *(loop.run_in_executor(pool, work, limit) for limit in (100, 1000))
        )
    print(f"{counts[0]} primes below 100, {counts[1]} below 1000")


if __name__ == "__main__":
    asyncio.run(main())
