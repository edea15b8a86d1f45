"""A *look*: finds the bridge calls in flight and what they wait for. ``calls`` describes them.

Running calls record nothing but their start time. A look reads the frames of all threads,
and the awaited objects of all tasks of all loops. Other threads keep running meanwhile, so
the result may be out of date.

A look may run in a signal handler, so it calls no code of users: no ``repr``, no ``==``,
and no ``isinstance``, which asks an object for its class.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

from .._bridge import forks, internals, limit, workers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import FrameType

    Task = asyncio.Task[Any]

__all__ = ["Call", "Look"]

# Functions that run a loop, and the variable (or its attribute) that holds it. uvloop has no frame of its own.
LOOP_RUNNERS = {
    "asyncio.base_events.BaseEventLoop.run_forever": ("self", ""),
    "asyncio.runners.Runner.run": ("self", "_loop"),
    "asgiref._bridge.loops.FreshLoop.run": ("loop", ""),
    "asgiref._bridge.loops.KeptLoop.run": ("loop", ""),
    "asgiref.event_loop._Run.run": ("loop", ""),
}
# The coroutines that await a call on a thread. All have variables ``self``, ``loop``, ``inner_calls`` and ``call``.
AWAITING = {
    "asgiref.sync.SyncToAsync.__call__",
    "asgiref._steps.threads.Steps.step",
    "asgiref._steps.threads.Steps.wait",
}
LOOKS = [f"asgiref._diagnosis.{name}" for name in ("look", "calls", "register_look")]
# The method of a loop that runs the loop on another thread.
RUNS_ELSEWHERE = "asgiref.event_loop._ThreadSensitive.__run"
# What waits for a loop: a call, and a step of an iteration or a block.
WAITS_FOR_LOOP = ("asgiref.sync.AsyncToSync.__call__", "asgiref._steps.tasks.OneTask.step")
MAILBOX = "asgiref.current_thread_executor.CurrentThreadExecutor."
# For coroutines and generators: the prefix of their attributes, and the attribute with the awaited object.
AWAITED = {"cr": "cr_await", "gi": "gi_yieldfrom", "ag": "ag_await"}


class Call:
    """A call in flight. Each of its two sides is known once its thread or task has been read."""

    # The waiting side: a thread or a task, and its frames outside of the bridge, without those of the parent.
    thread: int | None = None
    task: Task | None = None
    waits_in: list[FrameType] = []
    parent: Call | None = None
    # The working side: the task of async_to_sync; or a thread, with a position in its stack; or a queue.
    main: Task | None = None
    works_on: int | None = None
    place: int | None = None
    works_in: list[FrameType] = []
    queue = ""
    # If that thread waits itself: the async_to_sync call,
    inner: Call | None = None
    # or the task in run_coroutine_threadsafe(...).result().
    joined: Task | None = None

    def __init__(self, direction: str, ident: int, variables: Any) -> None:
        self.direction, self.ident = direction, ident
        self.wrapper, self.loop = variables.get("self"), variables.get("loop")
        self.job: Any = None  # holds the outcome
        # Whether the executor's future is done, but the loop does not know yet.
        self.has_run = False
        # The calls that must end before this one can: all of them, or any one.
        self.blockers: list[Call] = []
        self.any_will_do = False

    @property
    def state(self) -> str:
        if self.has_run or getattr(self.job, "settled", False):
            return "returning"
        return "queued" if self.place is None and self.main is None else "running"

    @property
    def function(self) -> str:
        attributes = getattr(self.wrapper, "__dict__", {})
        # Copied by the wrapper's constructor.
        name: Any = attributes.get("__qualname__")
        function: Any = attributes.get("__wrapped__")
        while name is None and type(function) is partial:
            function = function.func
            name = getattr(function, "__qualname__", None)
        return str(name or type(function).__qualname__)

    @property
    def name(self) -> str:
        return f"{self.direction}({self.function})"


class Look:
    """One look at all threads and tasks. Use it in a ``with`` block, whose end drops all references."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.running: dict[int, Call] = {}  # sync_to_async, by the id of the list of its inner calls
        self.by_task: dict[Any, Call] = {}  # sync_to_async
        self.by_main: dict[Any, Call] = {}  # async_to_sync
        self.threads_of_loops: dict[Any, int] = {}
        # Loops whose tasks are not known.
        self.untold_loops: set[Any] = set()
        # The served mailboxes, each with its thread and the position in the stack.
        self.mailboxes: list[tuple[Any, int, int]] = []

    def __enter__(self) -> Look:
        return self

    def __exit__(self, *exc_info: object) -> None:
        # Break the reference cycles: calls refer to frames and to each other.
        for each in (*self.calls, self):
            each.__dict__.clear()

    def read(self) -> None:
        forks.notice()
        self.stacks = self._find_stacks()
        self.names = {thread.ident: thread.name for thread in threading.enumerate()}
        self.places = {frame: (ident, i) for ident, stack in self.stacks.items() for i, frame in enumerate(stack)}
        for ident, stack in self.stacks.items():
            self._read_thread(ident, stack)
        self.tasks = self._find_tasks()
        self.chains, self.woken_by = self.tasks.chains, self.tasks.woken_by
        for task, chain in self.chains.items():
            self._read_task(task, chain)
        self._find_rest()
        self.awaited_by = {awaited: task for task in self.chains for awaited in self.awaited(task)}
        for call in self.calls:
            self._find_parent(call)
            self._find_blockers(call)
        self.hopeless = self._hopeless()
        self.now = time.monotonic()

    def _find_stacks(self) -> dict[int, list[FrameType]]:
        """Return the frames of each thread, the outermost first."""
        return {ident: stack_of(frame) for ident, frame in sys._current_frames().items()}

    def _find_tasks(self) -> Tasks:
        tasks = Tasks()
        tasks.read(_tasks(self.threads_of_loops), self.stacks, self.places)
        return tasks

    def _find_rest(self) -> None:
        """Find calls that are not visible in any stack or task."""

    def _read_thread(self, ident: int, stack: list[FrameType]) -> None:
        begin, job, outer = 0, None, None
        for i, frame in enumerate(stack):
            role = _role(frame)
            if role == "asgiref._bridge.jobs.ThreadCall.run":
                job = frame.f_locals.get("self")
            elif role == "asgiref.sync.SyncToAsync.thread_handler":
                if job is not None and job._generation is not forks.generation:
                    continue
                inner_calls = (variables := frame.f_locals).get("task_context")
                if inner_calls is None:
                    continue
                outer = self.running[id(inner_calls)] = Call("sync_to_async", id(inner_calls), variables)
                outer.job, outer.works_on, outer.place, outer.works_in = job, ident, i, stack[i + 1 :]
                self.calls.append(outer)
                begin, job = i + 1, None
            elif role in WAITS_FOR_LOOP:
                outcome = (variables := frame.f_locals).get("outcome")
                if outcome is None or variables["mailbox"]._generation is not forks.generation:
                    continue
                call = Call("async_to_sync", id(outcome), variables)
                call.job, call.thread, call.waits_in, call.parent = outcome, ident, stack[begin:i], outer
                call.main = getattr(call.job.call, "_task", None)
                call.loop = getattr(call.job.call, "_loop", None) or getattr(call.job.call, "asked", None)
                self.calls.append(call)
                if call.main is not None:
                    self.by_main[call.main] = call
                if outer is not None:
                    outer.inner, outer.works_in = call, call.waits_in
                begin, outer = i + 1, None
            elif role in (f"{MAILBOX}serve", f"{MAILBOX}close"):
                self.mailboxes.append((frame.f_locals.get("self"), ident, i))
            elif role in LOOP_RUNNERS:
                variable, attribute = LOOP_RUNNERS[role]
                loop = frame.f_locals.get(variable)
                if attribute:
                    loop = getattr(loop, attribute, None)
                if loop is not None and not any(
                    _role(inner) == RUNS_ELSEWHERE and inner.f_locals.get("self") is loop for inner in stack[i + 1 :]
                ):
                    self.threads_of_loops[loop] = ident

    def _read_task(self, task: Task, chain: list[FrameType]) -> None:
        for i, frame in enumerate(chain):
            if _role(frame) in AWAITING:
                inner_calls, job = (variables := frame.f_locals).get("inner_calls"), variables.get("call")
                if job is None or inner_calls is None or job._generation is not forks.generation:
                    return
                del chain[i:]
                call = self.running.get(id(inner_calls))
                if call is None:
                    call = Call("sync_to_async", id(inner_calls), variables)
                    self.calls.append(call)
                call.job, call.task, call.waits_in = job, task, chain
                call.has_run = job in self.tasks.have_run
                self.by_task[task] = call
                if call.state == "queued":
                    self._find_queue(call, inner_calls.promised_executor)
                return

    def _find_queue(self, call: Call, executor: Any) -> None:
        for mailbox, ident, place in self.mailboxes:
            if call.job in _again(list, mailbox._jobs):
                call.queue, call.works_on = f"the mailbox of thread {self.name_of(ident)!r}", ident
                call.blockers = self._running_on(ident, above=place)
                return
        for worker in _again(list, workers._workers):
            if self._is_queued_on(worker, call):
                call.queue, call.works_on = f"the queue of thread {self.name_of(worker.ident)!r}", worker.ident
                call.blockers = self._running_on(worker.ident)
                return
        for waiting in _again(list, limit._queue):
            if any(item[1] is call.job for item in _again(list, waiting.items) if type(item) is tuple):
                call.queue = f"the queue for a thread: ThreadSensitiveContext.max_threads is {limit.max_threads()}"
                return
        for pool in _again(list, workers._pools):
            if call.job in _again(list, pool._jobs):
                call.queue = f"the queue of a pool of {pool._limit} workers"
                return
        for each in (
            call.wrapper._executor,
            call.wrapper.single_thread_executor if call.wrapper._thread_sensitive else None,
            internals.default_executor_of(call.loop),
        ):
            executor = each if executor is None else executor
        call.queue = f"the queue of {'an executor' if executor is None else type(executor).__qualname__}"
        if executor is not None and issubclass(type(executor), ThreadPoolExecutor):
            number, threads = internals.thread_limit_of(executor), internals.threads_of(executor) or ()
            call.queue += f" with {number} threads"
            running = [each for thread in _again(list, threads) for each in self._running_on(thread.ident)]
            if len(running) == number:
                call.blockers, call.any_will_do = running, True

    def _is_queued_on(self, worker: Any, call: Call) -> bool:
        return call.job in _jobs_in(worker.jobs)

    def _running_on(self, ident: int | None, above: int = -1) -> list[Call]:
        """Return the outermost call that the thread runs above that position in its stack, if any."""
        places = [(call.place, call) for call in self.running.values() if call.works_on == ident]
        return [call for place, call in places if place is not None and place > above][:1]  # ordered as in the stack

    def awaited(self, task: Task) -> list[Task]:
        """Return the tasks that *task* waits for."""
        waiter = self.tasks.waiters.get(task)
        if waiter is None or task in self.by_task:
            return []
        return [waiter] if waiter in self.chains else self.woken_by.get(waiter, [])

    def _find_parent(self, call: Call) -> None:
        task: Any = call.task
        seen = [task]
        while task is not None and task not in self.by_main:
            task = self.awaited_by.get(task)
            if task is None or task in seen:
                return
            seen.append(task)
            call.waits_in = self.chains[task] + call.waits_in
        parent = above = self.by_main.get(task)
        while above is not None and above is not call:
            above = above.parent
        if parent is not None and above is None:  # false in a circle of running calls
            call.parent = parent

    def _find_blockers(self, call: Call) -> None:
        if call.inner is not None:
            call.blockers = [call.inner]
        elif call.place is not None:
            call.joined = self._task_joined_in(call.works_in)
        task = call.main or call.joined
        tasks = [] if task is None else [task]
        for task in tasks:
            tasks += [awaited for awaited in self.awaited(task) if awaited not in tasks]
            call.blockers += [self.by_task[task]] if task in self.by_task else []

    def _task_joined_in(self, frames: list[FrameType]) -> Task | None:
        """Return the task that a thread with these *frames* waits for in ``Future.result()``, or None."""
        for frame in reversed(frames):
            if frame.f_code in (Future.result.__code__, Future.exception.__code__):
                future = frame.f_locals.get("self")
                return next(iter(self.woken_by.get(future, ())), None) if type(future) is Future else None
        return None

    def _hopeless(self) -> set[Call]:
        """Return the calls in a deadlock: they wait for each other, directly or not, so none can end."""
        hopeless: set[Call] = set()
        rest = {call for call in self.calls if call.blockers}
        while rest != hopeless:
            hopeless = rest
            rest = {
                call
                for call in hopeless
                if (all if call.any_will_do else any)([blocker in hopeless for blocker in call.blockers])
            }
        return hopeless

    def circle_of(self, call: Call) -> list[Call]:
        """Return the shortest circle of deadlocked calls through *call*, or an empty list."""
        paths = [[call]]
        seen = set()
        for path in paths:
            for blocker in path[-1].blockers:
                if blocker is call:
                    return path
                if blocker in self.hopeless and blocker not in seen:
                    seen.add(blocker)
                    paths.append([*path, blocker])
        return []

    def thread_of(self, loop: Any) -> int:
        return self.threads_of_loops.get(loop) or internals.thread_of_loop(loop)

    def name_of(self, ident: int | None) -> str | None:
        return self.names.get(ident, str(ident)) if ident else None


class Tasks:
    """Facts about tasks, read on a thread where they cannot change meanwhile."""

    def __init__(self) -> None:
        self.chains: dict[Task, list[FrameType]] = {}
        self.names: dict[Task, str] = {}
        self.loops: dict[Task, Any] = {}
        # The futures that tasks await; and futures of asyncio or concurrent.futures that a task completes.
        self.waiters: dict[Task, Any] = {}
        self.woken_by: dict[Any, list[Task]] = {}
        # Jobs that an executor has run, but the loop does not know yet.
        self.have_run: set[Any] = set()

    def read(
        self, tasks: Iterable[Task], stacks: dict[int, list[FrameType]], places: dict[FrameType, tuple[int, int]]
    ) -> None:
        """Add the facts about *tasks*. Running ones are on one of the *stacks*, at a position in *places*."""
        for task in tasks:
            chain = self.chains[task] = _chain(task, stacks, places)
            self.names[task], self.loops[task] = task.get_name(), task.get_loop()
            self.waiters[task] = internals.waited_for_by(task)
            for future in _futures_that_end_with(task):
                self.woken_by.setdefault(future, []).append(task)
            for frame in chain:
                if _role(frame) in AWAITING:
                    job = frame.f_locals.get("call")
                    if _has_run(getattr(job, "_submitted", None)):
                        self.have_run.add(job)

    def add(self, others: Tasks) -> None:
        for name, mine in self.__dict__.items():
            if name != "woken_by":
                mine.update(getattr(others, name))
        for future, tasks in others.woken_by.items():
            self.woken_by.setdefault(future, []).extend(tasks)


def _chain(task: Task, stacks: dict[int, list[FrameType]], places: dict[FrameType, tuple[int, int]]) -> list[FrameType]:
    """Return the frames of *task*, from its coroutine to the innermost awaited one."""
    frames: list[FrameType] = []
    inner: Any = task.get_coro()
    while inner is not None:
        kind = _kind(inner)
        if kind is None:
            inner = _hidden_in(inner)
            continue
        frame = getattr(inner, f"{kind}_frame")
        if frame in places:  # it is running
            ident, i = places[frame]
            return frames + stacks[ident][i:]
        if frame is not None:
            frames.append(frame)
        inner = getattr(inner, AWAITED[kind])
    return frames


def stack_of(frame: FrameType | None) -> list[FrameType]:
    """Return *frame* and its callers, the outermost first, without frames of looks, which would refer to the result."""
    stack = []
    while frame is not None:
        if frame.f_globals.get("__name__") not in LOOKS:
            stack.append(frame)
        frame = frame.f_back
    return stack[::-1]


def _tasks(known_loops: Iterable[Any]) -> set[Any]:
    """Return the tasks of all loops."""
    if sys.version_info < (3, 14):
        return {
            task for registry in internals.all_task_registries() for task in _again(list, registry) if not task.done()
        }
    return {task for loop in all_loops().union(known_loops) for task in _again(asyncio.all_tasks, loop)}


def all_loops() -> set[Any]:
    """Return all event loops in the process.

    Python has no list of them. Not ``gc.get_objects()``: some objects could lose their last reference here, and their
    finalizers would run.
    """
    types: list[type] = [asyncio.AbstractEventLoop]
    for each in types:
        types += each.__subclasses__()
    found = {each for each in gc.get_referrers(*types) if issubclass(type(each), asyncio.AbstractEventLoop)}
    return {loop for loop in found if _is_made(loop)}


def _is_made(loop: Any) -> bool:
    try:
        loop.is_running()
    except (AttributeError, NotImplementedError):  # its __init__ still runs, or it does not tell
        return False
    return True


def _again(function: Callable[[Any], Iterable[Any]], items: Any) -> Iterable[Any]:
    """Return ``function(items)``; retry while other threads change *items*, and give up with an empty list."""
    for _ in range(1000):
        try:
            return function(items)
        except RuntimeError:
            pass
    return []


def _role(frame: FrameType) -> str:
    """Return the full name of the function if it belongs to this package or asyncio, else an empty string."""
    module = str(frame.f_globals.get("__name__"))
    return f"{module}.{frame.f_code.co_qualname}" if module.startswith(("asgiref.", "asyncio.")) else ""


def _kind(awaitable: Any) -> str | None:
    """Return the prefix of the attributes of a coroutine or generator, or None for other objects."""
    return next((kind for kind in AWAITED if hasattr(type(awaitable), f"{kind}_frame")), None)


def _hidden_in(awaitable: Any) -> Any:
    """Return the coroutine or generator inside a wrapper, such as ``asend()`` of an asynchronous generator."""
    inner = gc.get_referents(awaitable)
    for each in inner.copy():
        if type(each).__name__.startswith("async_generator_a"):  # in anext(iterator, default)
            inner += gc.get_referents(each)
    return next((each for each in inner if _kind(each) is not None), None)


def _futures_that_end_with(task: Any) -> Iterator[Any]:
    """Yield the futures that callbacks of *task* may complete.

    They belong to ``gather``, ``wait``, ``shield``, ``TaskGroup`` or ``run_coroutine_threadsafe``.
    """
    for part in _parts_of_callbacks(task):
        if issubclass(type(part), asyncio.Future) or type(part) is Future:
            yield part


def _has_run(submitted: Any) -> bool:
    """Return whether the executor's future that *submitted*, an asyncio future, wraps is done."""
    parts = _parts_of_callbacks(submitted) if issubclass(type(submitted), asyncio.Future) else []
    return any([internals.is_finished(part) for part in parts if issubclass(type(part), Future)])


def _parts_of_callbacks(future: Any) -> Iterator[Any]:
    """Yield objects in the callbacks of an asyncio future that may be other futures."""
    for callback, _ in internals.callbacks_of(future) or ():
        owner = getattr(callback, "__self__", None)
        if type(owner) is asyncio.TaskGroup:
            yield internals.future_of_task_group(owner)
        yield from gc.get_referents(*(getattr(callback, "__closure__", None) or ()))
        yield from callback.args if type(callback) is partial else ()


def _jobs_in(jobs: Any) -> list[Any]:
    """Return the jobs in the queue of a worker without removing them."""
    # A SimpleQueue refers to its items, or to a list or deque of them.
    items = gc.get_referents(jobs)
    items += [item for each in items if type(each) in (list, deque) for item in _again(list, each)]
    return [item[1] for item in items if type(item) is tuple]
