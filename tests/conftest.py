"""Every asynchronous test runs on each available kind of event loop."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping

import pytest

from . import WITHOUT_INTERNALS
from .helpers import LIMIT, idle_workers

# A shell that runs the suite in the background ignores SIGINT; programs that tests start would inherit this.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

LoopFactory = Callable[[], asyncio.AbstractEventLoop]

# The original: tests replace it.
_new_event_loop = asyncio.new_event_loop


def _debugging_loop() -> asyncio.AbstractEventLoop:
    loop = _new_event_loop()
    loop.set_debug(True)
    loop.slow_callback_duration = 60  # seconds; a shared machine may be slow
    return loop


LOOP_FACTORIES: dict[str, LoopFactory] = {"asyncio": _new_event_loop, "asyncio-debug": _debugging_loop}

if sys.version_info >= (3, 12):

    def _eager_loop() -> asyncio.AbstractEventLoop:
        loop = _new_event_loop()
        loop.set_task_factory(asyncio.eager_task_factory)
        return loop

    LOOP_FACTORIES["asyncio-eager"] = _eager_loop

try:
    import uvloop
except ImportError:  # not available for this interpreter
    pass
else:
    LOOP_FACTORIES["uvloop"] = uvloop.new_event_loop


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> Mapping[str, LoopFactory]:
    return LOOP_FACTORIES


def pytest_runtest_setup(item: pytest.Item) -> None:
    if WITHOUT_INTERNALS and item.get_closest_marker("needs_internals"):
        pytest.skip("private parts of Python are switched off")


@pytest.fixture(autouse=True)
def no_thread_left_behind() -> Iterator[None]:
    """No thread outlives a test, except idle workers."""
    before = set(threading.enumerate())
    yield
    deadline = time.monotonic() + LIMIT
    while left := set(threading.enumerate()) - before - idle_workers():
        assert time.monotonic() < deadline, f"{left} still run"
        time.sleep(0.001)  # not join(), which a thread that is just starting refuses
