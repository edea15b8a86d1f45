"""The decision alone: which executors, in which order."""

from __future__ import annotations

import concurrent.futures
import threading
from typing import Any

import pytest

from asgiref._routing import runs_on_this_thread, thread_sensitive_executors
from asgiref._workers import WorkerExecutor
from asgiref.current_thread_executor import CurrentThreadExecutor

from .helpers import Thread


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
    assert [*expected, PROCESS] == thread_sensitive_executors(*facts, PROCESS)


def test_this_thread_is_the_only_one() -> None:
    """Only where that is certain: a false alarm would break what works."""
    submit_only = object()
    assert runs_on_this_thread(CurrentThreadExecutor(None), None)
    assert not Thread(runs_on_this_thread, CurrentThreadExecutor(None), None).get()
    assert runs_on_this_thread(submit_only, submit_only)
    assert not runs_on_this_thread(submit_only, None)
    for count in (1, 2):
        with concurrent.futures.ThreadPoolExecutor(count) as pool:
            pool.submit(int).result(30)  # a pool may run its first job before it lists the thread
            assert (count == 1) is pool.submit(runs_on_this_thread, pool, None).result(30)
            assert not runs_on_this_thread(pool, None)
    worker = WorkerExecutor()
    assert worker.submit(runs_on_this_thread, worker, None).result(30)
    assert not runs_on_this_thread(worker, None)
    assert not worker.submit(runs_on_this_thread, WorkerExecutor(), None).result(30)
    worker.shutdown()
    assert threading.current_thread().is_alive()
