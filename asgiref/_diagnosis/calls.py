"""``bridge_calls``: describes the bridge calls in flight, in strings and numbers only."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from traceback import FrameSummary
from typing import TYPE_CHECKING, Any

from .._bridge import register
from .look import Look

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import FrameType

    from .look import Call

__all__ = ["BridgeCall", "bridge_calls", "report"]


@dataclass(frozen=True)
class BridgeCall:
    """A ``sync_to_async`` or ``async_to_sync`` call in flight; ``str()`` describes it in several lines.

    Attributes:
        ident: A number that is unique among the calls in flight; later calls may reuse it.
        direction: ``"sync_to_async"`` or ``"async_to_sync"``.
        function: The qualified name of the function.
        state: ``"queued"``, ``"running"``, or ``"returning"``: the function has ended, but its caller is still waiting.
        where: The thread or loop that runs the function, or the queue that holds it, in words.
        since: The start of the call, in seconds as in ``time.time()``, or None if not known.
        duration: Seconds since the start, or None.
        waiting_task: The name of the waiting task. None if a thread waits, if nothing waits because the task was
            cancelled, or, on a free-threaded build, if the loop is too busy to answer.
        waiting_thread: The name of the waiting thread, or of the thread of the waiting task's loop; None if not known.
        working_thread: The name of the thread that runs the function or serves the queue; None if not known, or if
            several threads serve it.
        loop: The class name of the event loop of this call, or None if it has none yet.
        parent: The ``ident`` of the enclosing call, or None.
        parent_name: The enclosing call, as in ``"async_to_sync(main)"``, or None.
        circle: If this call is in a deadlock: the calls that wait for each other in a circle, this one first. None of
            them can end without help from outside, such as a timeout. Else empty.
        stack: ``traceback.FrameSummary`` objects from the outermost caller to the innermost running frame, without
            frames of asgiref, asyncio and concurrent. An item without a ``filename`` marks the switch to another
            thread or to a loop; its ``name`` describes it.
    """

    ident: int
    direction: str
    function: str
    state: str
    where: str
    since: float | None
    duration: float | None
    waiting_task: str | None
    waiting_thread: str | None
    working_thread: str | None
    loop: str | None
    parent: int | None
    parent_name: str | None
    circle: tuple[str, ...]
    stack: tuple[FrameSummary, ...] = field(repr=False)

    def __str__(self) -> str:
        return "\n".join([*self._facts(), *self._stack(), ""])

    def _facts(self) -> Iterator[str]:
        since = ""
        if self.since is not None:
            since = f" for {self.duration:.3f} s, since {time.strftime('%H:%M:%S', time.localtime(self.since))}"
        yield f"{self.direction}({self.function}), {self.state}{since}"
        if self.waiting_task is None and self.waiting_thread is not None and self.direction == "sync_to_async":
            yield f"  a task of {_loop_on(self.loop, self.waiting_thread)} waits, which does not answer"
        elif self.waiting_task is not None:
            yield f"  task {self.waiting_task!r} of {_loop_on(self.loop, self.waiting_thread)} waits"
        else:
            yield "  nothing waits for it" if self.waiting_thread is None else f"  thread {self.waiting_thread!r} waits"
        yield f"  {self.state} {'in' if self.state == 'queued' else 'on'} {self.where}"
        if self.parent_name is not None:
            yield f"  inside {self.parent_name}"
        if self.circle:
            yield f"  in a circle: {', which waits for '.join([*self.circle, self.circle[0]])}"

    def _stack(self) -> Iterator[str]:
        return _lines(self.stack)


def _lines(stack: Iterable[FrameSummary]) -> Iterator[str]:
    for frame in stack:
        if not frame.filename:
            yield f"  ---- {frame.name}"
            continue
        yield f'  File "{frame.filename}", line {frame.lineno}, in {frame.name}'
        if frame.line:
            yield f"    {frame.line}"


def bridge_calls() -> list[BridgeCall]:
    """Return the bridge calls in flight, the oldest first."""
    with _look() as look:
        look.read()
        return _calls(look)


def _look() -> Look:
    if not register.KEPT:
        return Look()
    from .register_look import RegisterLook

    return RegisterLook()


def report() -> str:
    """Return the text for all bridge calls in flight; without any, for the pending tasks of all loops."""
    with _look() as look:
        look.read()
        texts = [(f"{call.direction}({call.function})", [*call._facts()], [*call._stack()]) for call in _calls(look)]
        if texts:
            return "\n".join(_each_stack_once(texts))
        tasks = sorted(look.chains, key=lambda task: (look.thread_of(look.tasks.loops[task]), look.tasks.names[task]))
        texts = [
            (f"task {look.tasks.names[task]!r}", [_task(look, task)], [*_lines(_summaries(look.chains[task]))])
            for task in tasks
        ]
        first = "no bridge call is in flight" + ("; the pending tasks of all loops:\n" if tasks else "")
        return "\n".join([first, *_each_stack_once(texts), *[""] * (not tasks)])


def _each_stack_once(texts: list[tuple[str, list[str], list[str]]]) -> Iterator[str]:
    """Yield the lines of *texts*, each a name, facts and a stack; equal stacks are printed once."""
    shown: dict[tuple[str, ...], str] = {}
    for name, facts, stack in texts:
        yield from facts
        before = shown.setdefault(tuple(stack), name)
        yield from [f"  its stack is that of {before}"] if stack and before is not name else stack
        yield ""


def _task(look: Look, task: Any) -> str:
    loop, name = look.tasks.loops[task], look.tasks.names[task]
    awaited = ", ".join(sorted([repr(look.tasks.names.get(other)) for other in look.awaited(task)]))
    waits = f" waits for {awaited}" if awaited else ""
    return f"task {name!r} of {_loop_on(type(loop).__qualname__, look.name_of(look.thread_of(loop)))}{waits}"


def _calls(look: Look) -> list[BridgeCall]:
    return sorted([_described(look, call) for call in look.calls], key=lambda call: -(call.duration or 0))


def _described(look: Look, call: Call) -> BridgeCall:
    began = getattr(call.job, "began", None)
    duration = None if began is None else look.now - began
    of_loop = look.name_of(look.thread_of(call.loop))
    to_thread = call.direction == "sync_to_async"
    return BridgeCall(
        ident=call.ident,
        direction=call.direction,
        function=call.function,
        state=call.state,
        where=_where(look, call),
        since=None if duration is None else time.time() - duration,
        duration=duration,
        waiting_task=None if call.task is None else look.tasks.names[call.task],
        waiting_thread=look.name_of(call.thread) if call.task is None else of_loop,
        working_thread=look.name_of(call.works_on) if to_thread else of_loop,
        loop=None if call.loop is None else type(call.loop).__qualname__,
        parent=None if call.parent is None else call.parent.ident,
        parent_name=None if call.parent is None else call.parent.name,
        circle=tuple([each.name for each in look.circle_of(call)] if call in look.hopeless else ()),
        stack=(*_waiting_side(look, call), *_working_side(look, call)),
    )


def _where(look: Look, call: Call) -> str:
    loop = _loop_on(
        None if call.loop is None else type(call.loop).__qualname__, look.name_of(look.thread_of(call.loop))
    )
    if call.direction == "async_to_sync":
        return f"its way to thread {look.name_of(call.thread)!r}" if call.state == "returning" else loop
    if call.state == "returning":
        return f"its way to {loop}"
    return call.queue if call.place is None else f"thread {look.name_of(call.works_on)!r}"


def _passage(look: Look, call: Call) -> FrameSummary:
    preposition = "in" if call.state == "queued" else "on"
    return FrameSummary("", 0, f"{call.name}, {call.state} {preposition} {_where(look, call)}", lookup_line=False)


def _waiting_side(look: Look, call: Call) -> Iterator[FrameSummary]:
    if call.parent is not None:
        yield from _waiting_side(look, call.parent)
    yield from _summaries(call.waits_in)
    yield _passage(look, call)


def _working_side(look: Look, call: Call) -> Iterator[FrameSummary]:
    seen: set[Any] = set()
    latest = call
    below: Call | None = call
    while below is not None and below not in seen:
        seen.add(below)
        if below is not call:
            yield _passage(look, below)
        latest, task = below, below.main or below.joined
        below = latest.inner
        yield from _summaries(latest.works_in)
        while task is not None and task not in seen:
            seen.add(task)
            yield from _summaries(look.chains.get(task, []))
            below = look.by_task.get(task)
            awaited = look.awaited(task)
            task = awaited[0] if len(awaited) == 1 else None
    busy = look.thread_of(latest.loop)
    idle_state = "queued" if latest.direction == "async_to_sync" else "returning"
    is_busy = latest.state == idle_state or (latest.direction == "async_to_sync" and latest.loop in look.untold_loops)
    if busy in look.stacks and is_busy:
        yield FrameSummary("", 0, f"thread {look.name_of(busy)!r} meanwhile", lookup_line=False)
        yield from _summaries(look.stacks[busy])


def _loop_on(loop: str | None, thread: str | None) -> str:
    if loop is None:
        return "a loop that is to be started"
    return f"a {loop}" if thread is None else f"the {loop} of thread {thread!r}"


def _summaries(frames: list[FrameType]) -> Iterator[FrameSummary]:
    for frame in frames:
        code, module = frame.f_code, str(frame.f_globals.get("__name__"))
        if module.partition(".")[0] in ("asgiref", "asyncio", "concurrent"):
            continue
        if module != "threading" or code.co_name not in ("_bootstrap", "_bootstrap_inner", "run"):
            yield FrameSummary(code.co_filename, frame.f_lineno or 0, code.co_name, lookup_line=False)
