"""The fixture for the tests of iterators and context managers."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator

import pytest

from asgiref._bridge import workers
from asgiref._steps import threads as steps_threads
from asgiref.sync import SyncToAsync

from ..helpers import LIMIT, finished


@pytest.fixture(autouse=True)
def nothing_stays_open() -> Iterator[None]:
    yield
    deadline = time.monotonic() + LIMIT / 2
    while True:
        gc.collect()
        if isinstance(SyncToAsync.single_thread_executor, workers.ProcessExecutor):
            finished(SyncToAsync.single_thread_executor)
        if not steps_threads._open or time.monotonic() > deadline:  # PyPy may need more than one collection
            break
    left = set(steps_threads._open)
    steps_threads._open.clear()
    assert set() == left
