"""A look for free-threaded builds, where reading frames of other threads may crash.

It reads this instead:

* The calls in flight, from ``_bridge.register``.
* The stacks of threads, from the output of ``faulthandler``, which stops all threads meanwhile. It has names and lines,
  at most the innermost hundred frames of a thread, and at most a hundred threads.
* The awaited objects of tasks, on the thread of their loop, which is asked for them. A busy loop does not answer in
  time.

The result says what is missing.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import faulthandler
import functools
import operator
import os
import queue
import re
import sys
import tempfile
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from .._bridge import forks, internals, jobs, register, workers
from .look import AWAITING, LOOKS, WAITS_FOR_LOOP, Call, Look, Tasks, _again, _role, all_loops, stack_of

if TYPE_CHECKING:
    from .look import Task

__all__ = ["RegisterLook"]

# Seconds to wait for the answers of loops. A guess: a loop that is not blocked answers within a millisecond, and the
# look may itself block a loop.
PATIENCE = 0.25

# How often the stacks are read, because threads keep running meanwhile.
ATTEMPTS = 5

# faulthandler writes at least this many frames of a thread.
DEPTH = 100

# The folders of the packages that a look recognizes, and their names.
PACKAGES = {
    str(Path(jobs.__file__).parent.parent): "asgiref",
    str(Path(asyncio.__file__).parent): "asyncio",
    str(Path(concurrent.futures.__file__).parent): "concurrent.futures",
}


class StillFrame:
    """A snapshot of a frame, with the attributes that a look uses."""

    def __init__(self, file: str, line: int, name: str, module: str, role: str = "", variables: Any = None) -> None:
        self.f_lineno, self.role = line, role
        # The qualified name, without the module.
        self.f_code = SimpleNamespace(co_filename=file, co_name=name, co_qualname=role.removeprefix(f"{module}."))
        self.f_globals = {"__name__": module}
        self.f_locals: dict[str, Any] = variables or {}


class RegisterLook(Look):
    """One look that uses the register."""

    def __init__(self) -> None:
        super().__init__()
        self.register: dict[int, Any] = {}

    # Threads:

    def _find_stacks(self) -> dict[int, list[Any]]:
        here = threading.get_ident()
        self.register = dict(_again(_items, register.threads))
        stacks: dict[int, list[Any]] = {}
        noted: dict[int, list[register.Place]] = {}
        dumped: dict[int, list[StillFrame]] = {}
        for _ in range(ATTEMPTS):
            before = self._places()
            dumped = _dump()
            noted = self._places()
            for ident, stack in dumped.items():
                places = noted.get(ident, [])
                if ident != here and ident not in stacks and _is_same(before.get(ident, []), places):
                    matched = _matched(stack, places)
                    if matched is not None:
                        stacks[ident] = matched
            if all([ident in stacks for ident in noted if ident != here]):
                break
        for ident, places in noted.items():
            if ident not in stacks and places:
                reason = "the thread keeps running" if ident in dumped else "there are too many threads"
                stacks[ident] = [
                    *[_bare(place) for place in places],
                    *_gap(f"the stack is not known: {reason}"),
                ]
        stacks[here] = stack_of(sys._getframe())
        return stacks

    def _places(self) -> dict[int, list[register.Place]]:
        return {ident: thread.places.copy() for ident, thread in self.register.items()}

    def _read_thread(self, ident: int, stack: list[Any]) -> None:
        super()._read_thread(ident, stack)
        # The register has no entry for serving a mailbox, but one for the call that serves it.
        for i, frame in enumerate(stack):
            if getattr(frame, "role", "") in WAITS_FOR_LOOP:
                self.mailboxes.append((frame.f_locals["mailbox"], ident, i))

    # Tasks:

    def _find_tasks(self) -> Tasks:
        here, found = threading.get_ident(), Tasks()
        answers: queue.SimpleQueue[tuple[Any, int, Tasks]] = queue.SimpleQueue()
        asked = self.untold_loops
        for loop in self._loops():
            thread = self.thread_of(loop)
            if loop is internals.running_loop() or thread == here:
                self.threads_of_loops[loop] = here
                found.read(asyncio.all_tasks(loop), self.stacks, self.places)
            elif self._may_be_asked(loop, thread):
                try:
                    loop.call_soon_threadsafe(_answer, loop, answers, context=contextvars.Context())
                except RuntimeError:  # closed since
                    continue
                asked.add(loop)
        deadline = time.monotonic() + PATIENCE
        while asked:
            try:
                loop, thread, tasks = answers.get(timeout=0.01)
            except queue.Empty:
                # A loop that has ended meanwhile has no tasks.
                asked.difference_update([loop for loop in asked if not loop.is_running()])
                if time.monotonic() > deadline:
                    break
                continue
            asked.discard(loop)
            self.threads_of_loops[loop] = thread
            found.add(tasks)
        return found

    def _loops(self) -> set[Any]:
        """Return all event loops, including those that only a call refers to."""
        loops = all_loops()
        for ident, thread in self.register.items():
            for awaited in thread.awaited.copy().values():
                if (call := awaited.call()) is not None and (loop := _loop_of(call)) is not None:
                    loops.add(loop)
                    self.threads_of_loops.setdefault(loop, ident)
        return loops.union([call.loop for call in self.calls if call.loop is not None])

    def _may_be_asked(self, loop: Any, thread: int) -> bool:
        # In a forked child, loops of the parent look as if they were running.
        return bool(loop.is_running() and (thread in self.names or (not thread and not forks.forked)))

    def _find_rest(self) -> None:
        """Find the calls of tasks on loops that have not answered."""
        for ident, thread in self.register.items():
            for awaited in thread.awaited.copy().values():
                job, wrapper, inner_calls = awaited.call(), awaited.wrapper(), awaited.inner_calls()
                if job is None or wrapper is None or inner_calls is None:
                    continue
                loop = _loop_of(job)
                if loop not in self.untold_loops or job._generation is not forks.generation:
                    continue
                call = self.running.get(id(inner_calls))
                if call is None:
                    call = Call("sync_to_async", id(inner_calls), {"self": wrapper, "loop": loop})
                    self.calls.append(call)
                call.job, call.thread = job, ident
                call.waits_in = _gap(f"a task, not known: the loop of thread {self.name_of(ident)!r} does not answer")
                if call.state == "queued":
                    self._find_queue(call, inner_calls.promised_executor)

    # Queues and futures:

    def _is_queued_on(self, worker: Any, call: Call) -> bool:
        # The queue cannot be read while other threads change it, but the executor that leases the worker is known.
        wrapper = call.wrapper
        executors = [wrapper.single_thread_executor if wrapper._thread_sensitive else wrapper._executor]
        arguments = getattr(call.job, "_call", None)
        if wrapper._thread_sensitive and arguments is not None:
            context = arguments[4].get(wrapper.thread_sensitive_context)
            items = _again(_items, wrapper.context_to_thread_executor)
            executors = [executor for key, executor in items if key is context] or executors
        executor = executors[0]
        return issubclass(type(executor), workers.WorkerExecutor) and executor._worker is worker

    def _task_joined_in(self, frames: list[Any]) -> Task | None:
        """Return the task that the thread with these *frames* waits for in ``Future.result()``, if this is certain.

        The future of a given thread is not visible, but the futures that any thread waits for are. If only one thread
        waits for a future, and only one future is waited for, they belong together.
        """
        waiting = [stack for stack in self.stacks.values() if any([_awaits_future(frame) for frame in stack])]
        if len(waiting) != 1 or not any([_awaits_future(frame) for frame in frames]):
            return None
        awaited = [future for future in self.woken_by if type(future) is Future and internals.is_waited_for(future)]
        return self.woken_by[awaited[0]][0] if len(awaited) == 1 else None


def _items(mapping: Any) -> list[tuple[Any, Any]]:
    return list(mapping.items())


def _loop_of(call: jobs.ThreadCall[Any]) -> Any:
    arrival = getattr(call, "arrival", None)
    return None if arrival is None else arrival.get_loop()


def _answer(loop: Any, answers: queue.SimpleQueue[tuple[Any, int, Tasks]]) -> None:
    """On the thread of *loop*: send the facts about its tasks, none of which is running now."""
    tasks = Tasks()
    tasks.read(asyncio.all_tasks(loop), {}, {})
    tasks.chains = {task: [_still(frame) for frame in chain] for task, chain in tasks.chains.items()}
    answers.put((loop, threading.get_ident(), tasks))


def _still(frame: Any) -> Any:
    role = _role(frame)
    variables = dict(frame.f_locals) if role in AWAITING else None
    code, module = frame.f_code, str(frame.f_globals.get("__name__"))
    return StillFrame(code.co_filename, frame.f_lineno or 0, code.co_name, module, role, variables)


def _is_same(one: list[register.Place], other: list[register.Place]) -> bool:
    return len(one) == len(other) and all(map(operator.is_, one, other))


def _gap(text: str) -> list[Any]:
    """Return a placeholder for unknown frames."""
    return [StillFrame("", 0, text, "")]


def _bare(place: register.Place) -> StillFrame:
    code, module = register.NOTED[place.role].__code__, register.NOTED[place.role].__module__
    return StillFrame(code.co_filename, 0, code.co_name, module, place.role, place.variables)


def _matched(stack: list[StillFrame], places: list[register.Place]) -> list[StillFrame] | None:
    """Return *stack* with the variables of its *places*, as far as it reaches; None if they do not match."""
    noted = [frame for frame in stack if frame.role in register.NOTED]
    if [frame.role for frame in noted] != [place.role for place in places[len(places) - len(noted) :]]:
        return None
    if len(noted) < len(places) and len(stack) < DEPTH:
        return None
    for frame, place in zip(reversed(noted), reversed(places), strict=False):
        frame.f_locals = place.variables
    outer = [_bare(place) for place in places[: len(places) - len(noted)]]
    if len(stack) >= DEPTH:
        outer += _gap("outer frames, not known: the stack is too long")
    return outer + [frame for frame in stack if frame.f_globals["__name__"] not in LOOKS]


def _awaits_future(frame: Any) -> bool:
    code = frame.f_code
    return code.co_filename == Future.result.__code__.co_filename and code.co_name in ("result", "exception")


def _dump() -> dict[int, list[StillFrame]]:
    """Return the stacks of all threads at one moment, the outermost frame first."""
    with tempfile.TemporaryFile() as file:
        faulthandler.dump_traceback(file)
        file.seek(0)
        text = file.read().decode("ascii", "replace")
    stacks: dict[int, list[StillFrame]] = {}
    stack: list[StillFrame] = []
    for line in text.splitlines():
        if found := re.match(r"(?:Current t|T)hread 0x([0-9a-f]+) ", line):
            stack = stacks[int(found[1], 16)] = []
        elif found := re.match(r'  File "(.*)", line (\d+|\?\?\?) in (.*)', line):
            stack.insert(0, _frame(*[re.sub(ESCAPED, _unescaped, part) for part in found.groups()]))
    return stacks


ESCAPED = r"\\(?:x([0-9a-f]{2})|u([0-9a-f]{4})|U([0-9a-f]{8}))"


def _unescaped(found: re.Match[str]) -> str:
    return chr(int(found[1] or found[2] or found[3], 16))


def _frame(file: str, line: str, name: str) -> StillFrame:
    number = int(line) if line.isdecimal() else 0
    return StillFrame(file, number, name, _module_of(file), _role_of(file, number, name))


@functools.cache
def _module_of(file: str) -> str:
    """Return the name of the module in *file*, if it belongs to a package that a look recognizes."""
    if file == threading.__file__:
        return "threading"
    for folder, package in PACKAGES.items():
        if file.startswith(folder + os.sep):
            return ".".join([package, *Path(file).relative_to(folder).with_suffix("").parts])
    return ""


def _role_of(file: str, line: int, name: str) -> str:
    for role, function in register.NOTED.items():
        code = function.__code__
        if code.co_filename == file and code.co_name == name and line in _lines_of(code):
            return role
    return ""


@functools.cache
def _lines_of(code: Any) -> range:
    lines = [line for _, _, line in code.co_lines() if line is not None]
    return range(min(lines), max(lines) + 1)
