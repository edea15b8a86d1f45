"""In debug mode, slow bridge calls are logged."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Iterator

import pytest

from asgiref._diagnosis import watch as watch_module
from asgiref._diagnosis.watch import Watch
from asgiref.sync import async_to_sync, sync_to_async

from ..helpers import LIMIT, Thread, output_of, wait_for

DEBUG = [((), {"PYTHONASYNCIODEBUG": "1"}), (("-X", "dev"), {"PYTHONASYNCIODEBUG": ""})]


class Slow:
    """Threads, each in a call that lasts until ``end``."""

    def __init__(self) -> None:
        self._go_on = threading.Event()
        self._threads: list[Thread] = []

    def begin(self, name: str) -> None:
        begun = threading.Event()

        async def hold() -> None:
            begun.set()
            await sync_to_async(wait_for)(self._go_on)

        hold.__qualname__ = name
        self._threads.append(Thread(async_to_sync(hold)))
        wait_for(begun)

    def end(self) -> None:
        self._go_on.set()
        for thread in self._threads:
            thread.get()
        self.__init__()  # type: ignore[misc]


@pytest.fixture
def slow() -> Iterator[Slow]:
    calls = Slow()
    yield calls
    calls.end()


def logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the coroutines in the messages since the last time."""
    texts = [record.getMessage().split("\n")[1] for record in caplog.records]
    caplog.clear()
    return [text.partition(",")[0] for text in texts if text.startswith("async_to_sync")]


def test_slow_call_is_logged_once(slow: Slow, caplog: pytest.LogCaptureFixture) -> None:
    limit = LIMIT
    watch = Watch(lambda: limit)
    slow.begin("one")
    assert watch._look()
    assert [] == logged(caplog)
    limit = 0  # read with each look
    assert watch._look()
    assert {"asgiref.sync"} == {record.name for record in caplog.records}
    assert {logging.WARNING} == {record.levelno for record in caplog.records}
    assert ["async_to_sync(one)"] == logged(caplog)
    slow.begin("two")
    watch._look()
    assert ["async_to_sync(two)"] == logged(caplog)
    slow.end()
    assert not watch._look()
    assert set() == watch._logged
    slow.begin("three")
    watch._look()
    assert ["async_to_sync(three)"] == logged(caplog)


def watchers() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "asgiref watch"}


def started(watch: Watch) -> threading.Thread:
    """Let the clock be read, and return the thread that this started; it may have ended already."""
    threads: queue.SimpleQueue[threading.Thread] = queue.SimpleQueue()
    run = Watch._watch

    def noted() -> None:
        threads.put(threading.current_thread())
        run(watch)

    watch._watch = noted  # type: ignore[method-assign]
    assert abs(watch.clock() - time.monotonic()) < LIMIT
    return threads.get(timeout=LIMIT)


def test_thread_ends_where_there_is_nothing_to_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next call starts another thread."""
    monkeypatch.setattr(watch_module, "IDLE_TIME", 0)
    watch = Watch(lambda: 0)
    for _ in range(2):
        thread = started(watch)
        assert thread.daemon
        thread.join(LIMIT)
        assert not thread.is_alive()


@pytest.mark.parametrize("another_starts", [False, True])
def test_call_that_begins_while_the_thread_ends_is_watched(
    monkeypatch: pytest.MonkeyPatch, another_starts: bool
) -> None:
    """By that thread, or by the thread that the call starts."""
    monkeypatch.setattr(watch_module, "IDLE_TIME", 0)
    watch = Watch(lambda: 0)
    ends: list[None] = []

    class Ending(list[None]):
        def append(self, item: None) -> None:
            ends.append(item)
            if len(ends) == 1:  # 1. the thread is about to record its end
                watch._latest = time.monotonic()  # 2. a call starts, and takes the thread for running
                if another_starts:
                    return  # 3. another call sees the end, and starts a new thread
            super().append(item)

    watch._to_be_started = Ending([None])
    thread = started(watch)
    thread.join(LIMIT)
    assert (1 if another_starts else 2) == len(ends)


def test_call_does_not_care_whether_a_thread_can_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(watch_module, "IDLE_TIME", 0)
    watch = Watch(lambda: 0)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        assert watch.clock()
    started(watch).join(LIMIT)
    watch._to_be_started.clear()
    watch._start()  # another thread was faster
    assert set() == watchers()


def test_failing_watch_ends_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    watch = Watch(lambda: None)  # type: ignore[arg-type, return-value]
    started(watch).join(LIMIT)
    assert ["slow bridge calls are no longer logged"] == [record.getMessage() for record in caplog.records]
    watch.clock()
    assert set() == watchers()


LOGS = """
import logging, warnings
import asgiref.sync
warnings.simplefilter("ignore")  # of forking with threads
logging.getLogger("asyncio").disabled = True
logged = threading.Event()
class Handler(logging.Handler):
    def emit(self, record):
        print(record.getMessage().split("\\n")[1].partition(",")[0], flush=True)
        logged.set()
logging.getLogger("asgiref.sync").addHandler(Handler())
logging.getLogger("asgiref.sync").propagate = False
asgiref.sync.slow_bridge_call_duration = 0.01
async def slow():
    while not logged.is_set():
        await asyncio.sleep(0.01)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("options", "environment"), DEBUG)
def test_debug_mode(options: tuple[str, ...], environment: dict[str, str]) -> None:
    """Either switch of asyncio turns it on, and the thread delays no exit."""
    code = "async_to_sync(slow)()\nprint([thread.name for thread in threading.enumerate() if 'watch' in thread.name])"
    assert ["async_to_sync(slow)", "['asgiref watch']"] == output_of(LOGS + code, *options, **environment)


def test_other_modes() -> None:
    """Nothing is imported, and no call pays for it."""
    code = """
import asgiref._bridge.jobs
print("asgiref._diagnosis.watch" in sys.modules, asgiref._bridge.jobs.clock is time.monotonic)
"""
    assert ["False True"] == output_of(code, PYTHONASYNCIODEBUG="")


@pytest.mark.slow
def test_child_has_a_watch_of_its_own() -> None:
    code = """
async_to_sync(slow)()
sys.stdout.flush()
child = os.fork()
if not child:
    logged.clear()
    assert not [thread for thread in threading.enumerate() if "watch" in thread.name]
    async_to_sync(slow)()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
"""
    assert ["async_to_sync(slow)"] * 2 == output_of(LOGS + code, PYTHONASYNCIODEBUG="1")
