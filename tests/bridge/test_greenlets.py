"""Replacements for threads and queues under gevent's monkey patch; ``process.test_gevent`` uses the patch itself."""

from __future__ import annotations

import asyncio
import queue
import time
from typing import Any

import pytest

from asgiref._bridge import greenlets
from asgiref.sync import AsyncSingleThreadContext, async_to_sync

from ..helpers import LIMIT, Thread


def test_queue_gives_what_was_put_there_in_order() -> None:
    jobs = greenlets._GreenletQueue()
    jobs.put(1)
    jobs.put(2)
    assert (1, 2) == (jobs.get(), jobs.get(timeout=0))
    with pytest.raises(queue.Empty):
        jobs.get(timeout=0)


def test_wait_on_queue_without_a_limit_lasts_longer_than_each_of_its_timers(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = greenlets._GreenletQueue()
    waits: list[float] = []
    acquire = jobs._count.acquire

    def note(timeout: float) -> bool:
        """1. The first timer ends. 2. An item is put into the queue. 3. The second wait gets it."""
        waits.append(timeout)
        if len(waits) == 1:
            return False
        jobs.put("job")
        return acquire(timeout=LIMIT)

    monkeypatch.setattr(jobs._count, "acquire", note)
    assert "job" == Thread(jobs.get).get()
    assert [greenlets.LONGEST_WAIT] * 2 == waits


def test_end_waits_for_real_threads_for_a_while_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(greenlets, "LONGEST_END", 0.01)
    monkeypatch.setattr(greenlets, "_real_threads", {object()})
    begin = time.monotonic()
    greenlets.wait_for_real_threads()
    assert 0.01 <= time.monotonic() - begin < LIMIT


@pytest.mark.parametrize("kept", [False, True])
def test_real_thread_cannot_be_started(kept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The call fails with the reason, and so does the next one."""

    def fail(job: Any) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(greenlets, "is_patched", lambda module: True)
    monkeypatch.setattr(greenlets, "run_on_real_thread", fail)
    for _ in range(2):
        coroutine = asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            if kept:
                with AsyncSingleThreadContext():
                    async_to_sync(return_it)(coroutine)
            else:
                async_to_sync(return_it)(coroutine)
        coroutine.close()


async def return_it(coroutine: Any) -> Any:
    return coroutine
