"""All uses of undocumented parts of Python and asyncio.

Each function here uses something that is not documented API. Nothing else in the package
does, except that a thread-critical ``Local`` calls ``asyncio._get_running_loop`` itself. The
decorator says which Pythons have the part, and what the library loses without it: speed,
or one ability. If the part is absent, for example on event loops of other packages, the
function returns the result of its ``absent`` function, and the bridge works without it.

One of them, ``running_loop``, is asyncio's own function if it exists.

This module imports no other of the package.
"""

from __future__ import annotations

import asyncio
import concurrent.futures.thread
import contextlib
import gc
import queue
import threading
from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import contextvars
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future
    from contextlib import AbstractContextManager
    from types import FrameType
    from typing import TypeVar

    F = TypeVar("F", bound=Callable[..., Any])

__all__ = [
    "COROUTINE_MARKS",
    "PARTS",
    "Part",
    "all_task_registries",
    "be_quiet_if_destroyed",
    "callbacks_of",
    "default_executor_of",
    "enter_loop",
    "future_of_task_group",
    "futures_woken_by",
    "has_nothing_left",
    "interpreter_ends",
    "is_finished",
    "is_waited_for",
    "leave_loop",
    "main_task_of",
    "make_first_step",
    "mark_as_coroutine_function",
    "needs_no_run",
    "pools_refuse_work",
    "reference_to_executor_above",
    "running_loop",
    "says_always_that_it_lives",
    "share_variables",
    "simple_queue",
    "starting_lock_of",
    "thread_limit_of",
    "thread_of_loop",
    "threads_of",
    "waited_for_by",
]

try:
    from _queue import SimpleQueue as _SimpleQueue
except ImportError:  # pragma: no cover: not CPython
    from queue import SimpleQueue as _SimpleQueue

CPYTHON = "CPython 3.11 to 3.15"
EVERYWHERE = f"{CPYTHON}, PyPy 3.11"

# A guess: searching a longer queue takes longer than an event loop iteration.
LONGEST_QUEUE = 100


class Part:  # not a NamedTuple, whose creation takes longer than all other imports here
    """One undocumented part: where it was seen, what is lost without it, and the fallback for its function."""

    __slots__ = ("absent", "lost", "name", "seen")

    def __init__(self, name: str, seen: str, lost: str, absent: Callable[..., Any]) -> None:
        self.name, self.seen, self.lost, self.absent = name, seen, lost, absent


# By the name of the function; for tests and readers.
PARTS: dict[str, Part] = {}


def _part(name: str, *, seen: str, lost: str, absent: Callable[..., Any] = lambda *_: None) -> Callable[[F], F]:
    def register(function: F) -> F:
        PARTS[function.__name__] = Part(name, seen, lost, absent)
        return function

    return register


# Event loops:


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


# Returns the running loop of this thread, or None. The documented function raises an exception for None, which is slow.
running_loop: Callable[[], asyncio.AbstractEventLoop | None] = getattr(asyncio, "_get_running_loop", _running_loop)
PARTS["running_loop"] = Part(
    "asyncio._get_running_loop",
    EVERYWHERE,
    "speed: synchronous code reads a thread-critical Local at a fraction of the speed",
    _running_loop,
)


@_part(
    "asyncio._leave_task, asyncio._set_running_loop",
    seen=EVERYWHERE,
    lost="async_to_sync below sync_to_async in an atexit handler where Python starts no threads any more",
)
def leave_loop(loop: asyncio.AbstractEventLoop, task: asyncio.Task[Any] | None) -> None:
    """Make asyncio believe that *loop*, which is running *task* on this thread, is not running."""
    if task is not None:
        asyncio._leave_task(loop, task)
    asyncio._set_running_loop(None)


@_part("asyncio._enter_task, asyncio._set_running_loop", seen=EVERYWHERE, lost="see leave_loop")
def enter_loop(loop: asyncio.AbstractEventLoop, task: asyncio.Task[Any] | None) -> None:
    """Undo ``leave_loop``."""
    asyncio._set_running_loop(loop)
    if task is not None:
        asyncio._enter_task(loop, task)


@_part(
    "_ready, _asyncgens and _default_executor of a loop",
    seen=f"{EVERYWHERE}; asyncio's own loops",
    lost="speed: closing a fresh loop takes one more run of it, a tenth of a short call",
    absent=lambda loop: False,
)
def has_nothing_left(loop: asyncio.AbstractEventLoop) -> bool:
    """Return whether a loop without tasks can be closed without another run.

    A transport that has just been closed still has a callback.
    """
    return not any(getattr(loop, name, True) for name in ("_ready", "_asyncgens", "_default_executor"))


@_part(
    "shutdown_asyncgens and shutdown_default_executor; _ready, _scheduled, _asyncgens, _default_executor and _selector",
    seen=f"{EVERYWHERE}; asyncio's own loops on selectors",
    lost="speed: two more runs of a ThreadSensitiveEventLoop that ends, as much as starting and ending it costs else",
    absent=lambda future, loop: False,
)
def needs_no_run(future: Any, loop: Any) -> bool:
    """Return whether *future* shuts down something that *loop* does not have, and the loop has nothing else to do.

    Such a coroutine awaits nothing.
    """
    names = ("_ready", "_scheduled", "_asyncgens", "_default_executor")
    if getattr(future, "cr_code", None) not in _SHUTS_DOWN or any(getattr(loop, name, True) for name in names):
        return False
    selector = getattr(loop, "_selector", None)
    return selector is not None and len(selector.get_map()) == 1  # the socket by which other threads wake the loop


_SHUTS_DOWN = [
    getattr(getattr(asyncio.BaseEventLoop, name, None), "__code__", object())
    for name in ("shutdown_asyncgens", "shutdown_default_executor")
]


@_part(
    "the handler that asyncio.Runner sets for SIGINT: a partial of one of its methods, with main_task",
    seen=EVERYWHERE,
    lost="Ctrl-C cancels the main task of a ThreadSensitiveEventLoop on a thread that is not the loop's, which "
    "asyncio refuses in debug mode",
)
def main_task_of(handler: Any, loop: asyncio.AbstractEventLoop) -> Any:
    """Return the task that *handler* cancels, if an ``asyncio.Runner`` of *loop* has set it, else None."""
    runner = getattr(getattr(handler, "func", None), "__self__", None)
    if isinstance(runner, asyncio.Runner) and runner.get_loop() is loop:
        return getattr(handler, "keywords", {}).get("main_task")
    return None


@_part(
    "_ready of a loop; _callback and _run of a handle",
    seen=f"{EVERYWHERE}; asyncio's own loops",
    lost="speed: async_to_sync below sync_to_async takes one more iteration of the loop, a tenth of a call",
)
def make_first_step(task: asyncio.Task[Any], loop: asyncio.AbstractEventLoop) -> None:
    """Start *task*, just created, in this event loop iteration instead of the next.

    Only if the queue of the loop is accessible and short. Not with a task factory, whose
    tasks may have started already, and not in debug mode, in which asyncio logs slow tasks.
    Not by an eager task: that starts during its creation, so its exit would look like an
    error of the loop, and asking an ended one for its coroutine crashes Python 3.12.1.
    """
    queue: Any = getattr(loop, "_ready", None)
    if (
        isinstance(queue, deque)
        and 0 < len(queue) <= LONGEST_QUEUE
        and loop.get_task_factory() is None
        and not loop.get_debug()
    ):
        handle = queue[-1]
        if getattr(getattr(handle, "_callback", None), "__self__", None) is task:  # else another thread was faster
            try:
                queue.remove(handle)
            except (ValueError, IndexError):  # other threads have changed the queue meanwhile
                return
            handle._run()


@_part(
    "_thread_id of a loop",
    seen=f"{EVERYWHERE}; asyncio's own loops",
    lost="bridge_calls() does not name the thread of a loop whose class has a run_forever() of its own",
    absent=lambda loop: 0,
)
def thread_of_loop(loop: Any) -> int:
    """Return the ident of the thread that runs *loop*, or 0."""
    return getattr(loop, "_thread_id", None) or 0


# Tasks and futures:


@_part(
    "_callbacks of a future",
    seen=f"{EVERYWHERE}; asyncio's own futures",
    lost="speed: a bridged call takes one more iteration of the loop, a tenth of a call; "
    "bridge_calls() does not see through gather, wait, shield and TaskGroup",
)
def callbacks_of(future: Any) -> Any:
    """Return the callbacks of an asyncio future, each with its context, or None."""
    return getattr(future, "_callbacks", None)


def futures_woken_by(callback: Any) -> Iterator[Any]:
    """Yield the asyncio futures that *callback* of another future affects, such as a task that it resumes.

    What ``gather``, ``wait``, ``shield`` and ``TaskGroup`` add to a future is seen through.
    """
    owner = getattr(callback, "__self__", None)
    parts = [owner, future_of_task_group(owner) if type(owner) is asyncio.TaskGroup else None]
    for cell in getattr(callback, "__closure__", None) or ():
        with contextlib.suppress(ValueError):  # it is empty
            parts.append(cell.cell_contents)
    parts += getattr(callback, "args", None) or ()
    for part in parts:
        if isinstance(part, asyncio.Future):
            yield part


@_part(
    "_fut_waiter of a task",
    seen=EVERYWHERE,
    lost="bridge_calls() does not see which task waits for which",
)
def waited_for_by(task: Any) -> Any:
    """Return the future that *task* waits for, or None."""
    return getattr(task, "_fut_waiter", None)


@_part(
    "_log_destroy_pending of a task",
    seen=EVERYWHERE,
    lost="a message in the log more, of a task that was pending when its ThreadSensitiveEventLoop was stopped",
)
def be_quiet_if_destroyed(task: Any) -> None:
    """Prevent asyncio's log message "Task was destroyed but it is pending" for *task*."""
    if hasattr(task, "_log_destroy_pending"):
        task._log_destroy_pending = False


@_part(
    "_on_completed_fut of a TaskGroup",
    seen=EVERYWHERE,
    lost="bridge_calls() does not see that a task waits for those of its TaskGroup",
)
def future_of_task_group(group: asyncio.TaskGroup) -> Any:
    """Return the future that is done when the last task of *group* has ended, or None."""
    return getattr(group, "_on_completed_fut", None)


@_part(
    "_all_tasks, _scheduled_tasks and _eager_tasks of asyncio.tasks",
    seen="CPython 3.11 to 3.13, PyPy 3.11",
    lost="bridge_calls() finds only calls that a thread shows, up to Python 3.13",
    absent=list,
)
def all_task_registries() -> list[Any]:
    """Return the sets in which asyncio, up to Python 3.13, keeps the tasks of all loops."""
    return [getattr(asyncio.tasks, name, ()) for name in ("_all_tasks", "_scheduled_tasks", "_eager_tasks")]


@_part(
    "_state of a concurrent.futures.Future",
    seen=EVERYWHERE,
    lost="bridge_calls() calls one 'running' while its result is on the way from the default executor of uvloop",
    absent=lambda future: False,
)
def is_finished(future: Future[Any]) -> bool:
    """Return whether *future* is done, without waiting for its lock as ``done()`` does."""
    return getattr(future, "_state", None) == "FINISHED"


@_part(
    "_condition of a concurrent.futures.Future, and its _waiters",
    seen=EVERYWHERE,
    lost="on a free-threaded build, bridge_calls() does not see through run_coroutine_threadsafe(...).result()",
    absent=lambda future: False,
)
def is_waited_for(future: Future[Any]) -> bool:
    """Return whether a thread is waiting in ``result()`` or ``exception()`` of *future*."""
    return bool(getattr(getattr(future, "_condition", None), "_waiters", None))


# Attributes that mark a function as one that returns an awaitable.
COROUTINE_MARKS = ("_is_coroutine_marker", "_is_coroutine")


# asyncio asked for this up to Python 3.11; inspect.markcoroutinefunction() is documented.
@_part(
    "asyncio.coroutines._is_coroutine",
    seen="CPython 3.11 to 3.13, PyPy 3.11; used on 3.11 only",
    lost="markcoroutinefunction(), and that asyncio.iscoroutinefunction() takes a SyncToAsync for one, on Python 3.11",
    absent=lambda function: function,
)
def mark_as_coroutine_function(function: F) -> F:
    """Mark *function* for ``asyncio.iscoroutinefunction`` as a coroutine function; return it."""
    function._is_coroutine = getattr(asyncio.coroutines, "_is_coroutine", None)  # type: ignore[attr-defined]
    return function


# Executors:


@_part(
    "_default_executor of a loop",
    seen=f"{EVERYWHERE}; asyncio's own loops",
    lost="speed: a call with thread_sensitive=False takes one more iteration of the loop; "
    "the threads of the default executor are known only by the bridged calls that they run",
)
def default_executor_of(loop: asyncio.AbstractEventLoop) -> Any:
    """Return the default executor of *loop*, or None if the loop has none yet or does not show it."""
    return getattr(loop, "_default_executor", None)


@_part(
    "_threads of an executor",
    seen=f"{EVERYWHERE}; ThreadPoolExecutor",
    lost="a blocked thread of an executor does not run what it waits for; a deadlock on an executor of one thread, "
    "given by hand, is not refused",
)
def threads_of(executor: Any) -> Any:
    """Return the threads of *executor*, in a set that other threads may change meanwhile, or None."""
    return getattr(executor, "_threads", None)


@_part(
    "_shutdown_lock of an executor",
    seen=f"{EVERYWHERE}; ThreadPoolExecutor",
    lost="see threads_of, for a thread that is just being started",
    absent=lambda executor: contextlib.nullcontext(),
)
def starting_lock_of(executor: Any) -> AbstractContextManager[Any]:
    """Return the lock that *executor* holds while it starts a thread and adds it to ``threads_of``."""
    return getattr(executor, "_shutdown_lock", None) or contextlib.nullcontext()


@_part(
    "_max_workers of an executor",
    seen=f"{EVERYWHERE}; ThreadPoolExecutor",
    lost="see threads_of",
)
def thread_limit_of(executor: Any) -> int | None:
    """Return the maximum number of threads of *executor*, or None."""
    limit = getattr(executor, "_max_workers", None)
    return limit if isinstance(limit, int) else None


@_part(
    "concurrent.futures.thread._worker, and its variable executor_reference",
    seen="CPython 3.11 to 3.13, PyPy 3.11",
    lost="a blocked thread of the default executor of uvloop does not run what it waits for",
)
def reference_to_executor_above(frame: FrameType | None) -> Callable[[], Any] | None:
    """Return a weak reference to the executor of the thread of *frame*, found in its outermost frames, or None."""
    worker = getattr(getattr(concurrent.futures.thread, "_worker", None), "__code__", None)
    while frame is not None and frame.f_code is not worker:
        frame = frame.f_back
    return None if frame is None else frame.f_locals.get("executor_reference")


# Threads:


@_part(
    "threading._DummyThread",
    seen=EVERYWHERE,
    lost="that a loop is given up at once whose thread was not started by threading, and has ended",
    absent=lambda thread: False,
)
def says_always_that_it_lives(thread: threading.Thread) -> bool:
    """Return whether ``threading`` has not started *thread*; then the object does not show the end of the thread."""
    return isinstance(thread, getattr(threading, "_DummyThread", ()))


# Queues:


@_part(
    "_queue.SimpleQueue",
    seen="CPython 3.11 to 3.15",
    lost="bridging where gevent has replaced queue.SimpleQueue, but not threads",
    absent=queue.SimpleQueue,
)
def simple_queue() -> queue.SimpleQueue[Any]:
    """Return a queue of the standard library, even if ``queue.SimpleQueue`` is replaced."""
    return _SimpleQueue()


# Contexts:


@_part(
    "the map to which a contextvars.Context refers, and which it shares with its copies",
    seen=CPYTHON,
    lost="speed: where context variables are set, contexts are compared variable by variable",
    absent=lambda one, other: False,
)
def share_variables(one: contextvars.Context, other: contextvars.Context) -> bool:
    """Tell whether one of the two is a copy of the other, or both are of a third, and nothing was set since.

    Only for CPython; on a free-threaded build, this may wait for all threads.
    """
    referents = gc.get_referents(one, other)
    return len(referents) == 2 and referents[0] is referents[1]


# The end of the interpreter:


@_part(
    "concurrent.futures.thread._shutdown",
    seen=EVERYWHERE,
    lost="calls with thread_sensitive=False at the end of the interpreter",
    absent=lambda: False,
)
def pools_refuse_work() -> bool:
    """Return whether every ``ThreadPoolExecutor`` refuses work, because the interpreter is ending.

    They refuse work before their threads are joined, and so well before the main thread ends.
    """
    return bool(getattr(concurrent.futures.thread, "_shutdown", False))


@_part(
    "the text 'at interpreter shutdown' of a RuntimeError",
    seen="CPython 3.12 to 3.15; Python 3.11 starts threads to the end",
    lost="bridged calls in atexit handlers, where Python starts no threads any more",
    absent=lambda error: False,
)
def interpreter_ends(error: RuntimeError) -> bool:
    """Return whether *error*, raised on starting a thread, says that Python no longer starts threads."""
    return str(error).endswith("at interpreter shutdown")
