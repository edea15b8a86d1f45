"""Every place where two threads meet, on all CPUs at once; see ``meetings``."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable

import pytest

from .meetings import MEETINGS

# For the deep run: the length of all of them together, in minutes.
MINUTES = float(os.environ.get("ASGIREF_STRESS_MINUTES", 0))
SECONDS = 60 * MINUTES / len(MEETINGS) if MINUTES else 0.2


@pytest.mark.slow
@pytest.mark.parametrize("meeting", MEETINGS, ids=lambda function: function.__name__)
def test_threads_that_meet_do_no_harm(meeting: Callable[[], None]) -> None:
    rounds, end = 0, time.monotonic() + SECONDS
    while not rounds or time.monotonic() < end:
        meeting()
        rounds += 1
    gc.collect()  # dropped objects are freed here and not in another test
    if MINUTES:
        print(f"\n{meeting.__name__}: {rounds} rounds in {SECONDS:.0f} s")
