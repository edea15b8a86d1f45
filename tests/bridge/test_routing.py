"""The choice of executors, and their order, without any thread."""

from __future__ import annotations

import concurrent.futures
from typing import Any

import pytest

from asgiref._bridge.routing import has_no_other_thread, thread_sensitive_executors
from asgiref._bridge.workers import WorkerExecutor
from asgiref.current_thread_executor import CurrentThreadExecutor

from ..helpers import LIMIT, Thread


def finished_mailbox(outer: CurrentThreadExecutor | None = None) -> CurrentThreadExecutor:
    mailbox = CurrentThreadExecutor(outer)
    mailbox.close()
    return mailbox


OUTER = CurrentThreadExecutor(None)
INNER = CurrentThreadExecutor(OUTER)
GONE = CurrentThreadExecutor(OUTER)
GONE.close()
LOOP = CurrentThreadExecutor(None)
CONTEXT, PROCESS, FOREIGN = object(), object(), object()


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ((None, None, None), []),
        ((INNER, None, None), [INNER, OUTER]),
        ((INNER, CONTEXT, LOOP), [INNER, OUTER, CONTEXT, LOOP]),
        ((GONE, CONTEXT, None), [OUTER, CONTEXT]),
        ((finished_mailbox(), CONTEXT, LOOP), [CONTEXT, LOOP]),
        ((finished_mailbox(), None, finished_mailbox()), []),
        ((FOREIGN, None, None), [FOREIGN]),
    ],
)
def test_order_of_executors(facts: tuple[Any, Any, Any], expected: list[Any]) -> None:
    assert [*expected, PROCESS] == list(thread_sensitive_executors(*facts, PROCESS))


@pytest.mark.needs_internals
def test_this_thread_is_the_only_one() -> None:
    """Only if this is certain: a false alarm would break working programs."""
    assert not has_no_other_thread(object())
    for count in (1, 2):
        with concurrent.futures.ThreadPoolExecutor(count) as pool:
            pool.submit(int).result(LIMIT)  # a pool may run its first job before it lists the thread
            assert (count == 1) is pool.submit(has_no_other_thread, pool).result(LIMIT)
            assert not has_no_other_thread(pool)


def test_executors_of_the_package_know_their_thread() -> None:
    def mine(executor: CurrentThreadExecutor | WorkerExecutor) -> bool:
        return executor.belongs_to_this_thread

    mailbox, worker = CurrentThreadExecutor(None), WorkerExecutor()
    assert mine(mailbox)
    assert not Thread(mine, mailbox).get()
    assert worker.submit(mine, worker).result(LIMIT)
    assert not worker.submit(mine, WorkerExecutor()).result(LIMIT)
    assert not mine(worker)
    worker.shutdown()
