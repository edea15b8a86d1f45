"""Helpers for several test modules."""

from __future__ import annotations

import contextlib
import contextvars
import gc
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import asgiref
from asgiref._bridge import workers
from asgiref._bridge.jobs import JobExecutor, ThreadCall
from asgiref.sync import SyncToAsync

from .soak.run import let_idle_threads_run as let_idle_threads_run

# The timeout of each wait, in seconds: far more than needed, and less than that of faulthandler.
LIMIT = 30.0

ROOT = Path(__file__).parent.parent


class Thread(threading.Thread):
    """A thread; ``get`` returns its result or raises its exception."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        super().__init__(daemon=True)
        self._function, self._arguments = function, arguments
        self._error: BaseException | None = None
        self._result: Any = None
        self.start()

    def run(self) -> None:
        try:
            self._result = self._function(*self._arguments)
        except BaseException as error:
            self._error = error

    def get(self) -> Any:
        self.join(LIMIT)
        assert not self.is_alive(), f"{self._function} still runs"
        if self._error is not None:
            try:
                raise self._error
            finally:
                self._error = None
        return self._result


def thread_call(loop: Any, function: Callable[[], Any] = int, kind: Any = ThreadCall) -> Any:
    """Return a call of *function* made on *loop*, not yet given to a thread."""
    wrapper = SimpleNamespace(thread_handler=lambda loop, exc_info, inner_calls, run, child: run(child))
    return kind(loop, wrapper, (None, None, None), [], contextvars.Context(), function)


def wait_for(event: threading.Event) -> None:
    assert event.wait(LIMIT), "nobody set the event"


def wait_until(condition: Callable[[], Any]) -> None:
    """Wait for a step of another thread that signals nothing."""
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0)


def forget(thread: threading.Thread) -> None:
    """Remove a thread that ``threading`` has not started from its list, where it may stay forever."""
    threading._active.pop(thread.ident, None)  # type: ignore[attr-defined]


def idle_workers() -> set[threading.Thread]:
    """Return the idle threads of the pool, the thread of the whole process, and the thread of debug mode."""
    threads: set[threading.Thread] = {worker.thread for worker in workers._idle}
    threads |= {thread for thread in threading.enumerate() if thread.name == "asgiref watch"}
    executor = SyncToAsync.single_thread_executor
    return threads | getattr(executor, "_threads", set())


def finished(executor: JobExecutor) -> None:
    """Wait until all accepted jobs of *executor* are done."""
    done = threading.Event()
    executor.submit(done.set)
    wait_for(done)
    wait_until(lambda: not getattr(executor, "unfinished", False))  # its thread removes the job later


def collect_all() -> None:
    """Collect what the finalizers of garbage leave behind, too."""
    for _ in range(10):
        if not gc.collect():
            return


def collect_until(condition: Callable[[], Any]) -> None:
    """Collect garbage until *condition* is true; another thread may still have to let go of it."""
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline, "it is not collected"
        gc.collect()
        time.sleep(0.001)


@contextlib.contextmanager
def no_garbage() -> Iterator[None]:
    """Fail if the block leaves objects that only the cycle collector can free."""
    if sys.implementation.name != "cpython":
        pytest.skip("counts references")
    let_idle_threads_run()  # they may still have to free objects of earlier tests
    collect_all()
    gc.disable()
    flags = gc.get_debug()
    try:
        yield
        let_idle_threads_run()
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        garbage = gc.garbage.copy()
    finally:
        gc.set_debug(flags)
        gc.garbage.clear()
        gc.enable()
    shown = [(type(each).__name__, repr(each)[:200]) for each in garbage]
    assert not garbage, f"only the cycle collector could free {shown}"


def run_python(code: str, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run *code* in a new interpreter; it must end by itself."""
    process = subprocess.Popen(
        [sys.executable, "-X", "faulthandler", *options, "-c", PRELUDE + code],
        env={**os.environ, "PYTHONPATH": str(Path(asgiref.__file__).parent.parent), **environment},
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,  # so that a hanging grandchild can be found
        text=True,
    )
    try:
        stdout, stderr = process.communicate(timeout=LIMIT)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def output_of(code: str, *options: str, **environment: str) -> list[str]:
    """Return the lines that *code* prints; it must exit with status 0 and print no error."""
    process = run_python(code, *options, **environment)
    assert (process.returncode, process.stderr) == (0, ""), process.stderr + process.stdout
    return process.stdout.splitlines()


# A hang prints all stacks, well before the limit.
PRELUDE = f"""
import asyncio, atexit, faulthandler, logging, os, signal, sys, threading, time
# In debug mode, asyncio warns of slow callbacks, which are no fault on a busy machine. Not a filter, which would keep
# the variables of the program alive to its end.
logging.getLogger("asyncio").setLevel(logging.ERROR)
sys.path.insert(0, {str(Path(asgiref.__file__).parent.parent)!r})  # -I ignores the environment
from asgiref.local import Local
from asgiref.sync import *
from asgiref.sync import AsyncToSync, SyncToAsync
faulthandler.dump_traceback_later(20, exit=True)
"""


def code_of_guide(page: str, start: str) -> str:
    """Return the code of docs/guides that begins with *start*."""
    guide = (ROOT / "docs" / "guides" / f"{page}.rst").read_text()
    blocks = re.findall(r"\.\. code-block:: python\n(?: +:.*\n)*\n((?: +.*\n|\n)+)", guide)
    [found] = [block for block in map(textwrap.dedent, blocks) if block.startswith(start)]
    return found
