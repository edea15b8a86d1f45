"""What a program is, how it reads as text, and the strategy that draws one.

Nothing here knows what a program ought to do. What would make the outcome depend on
chance is never drawn: functions that run at the same time share nothing but threads,
unless a gate puts them into one order.
"""

from __future__ import annotations

import copy
import dataclasses
import textwrap
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from hypothesis import strategies as st

__all__ = [
    "Block",
    "Call",
    "Collect",
    "Gather",
    "Held",
    "Hold",
    "Piece",
    "Raise",
    "Spawn",
    "Write",
    "programs",
    "smaller",
    "write_program",
]

T = TypeVar("T")

MAX_DEPTH = 12
# Functions in one program, and how many of them may use the default executor of a loop. That has
# five threads at least, and functions that wait for one another there must all find one.
MAX_PIECES, MAX_DEFAULT_EXECUTOR = 24, 4


@dataclasses.dataclass
class Piece:
    """A function."""

    name: str
    is_async: bool
    steps: list[Any] = dataclasses.field(default_factory=list)
    # The number of functions, where this is a program.
    size: int = 0

    def lines(self) -> Iterator[str]:
        yield f"{'async ' * self.is_async}def {self.name}():"
        yield from _indented(self.steps)

    def __repr__(self) -> str:
        return "\n" + "\n".join(self.lines()) + "\n"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """Print this as text, not as a dataclass."""
        printer.text(repr(self))


def _indented(steps: list[Any]) -> Iterator[str]:
    for step in steps:
        yield from (textwrap.indent(line, "    ") for line in step.lines())
    if not steps:
        yield "    pass"


@dataclasses.dataclass
class Write:
    """Give a variable a value; None deletes it."""

    variable: str
    value: int | None

    def lines(self) -> Iterator[str]:
        yield f"del {self.variable}" if self.value is None else f"{self.variable} = {self.value}"


@dataclasses.dataclass
class Raise:
    kind: str

    def lines(self) -> Iterator[str]:
        yield f"raise {self.kind}"


@dataclasses.dataclass
class Call:
    """Call a function and wait for it."""

    piece: Piece
    # "call", "async_to_sync", "force_new_loop", "run"; "sync_to_async", "await", "create_task"
    by: str
    # Of sync_to_async: "" where thread-sensitive, "default", "pool" (of many threads), "one" (of one).
    executor: str = ""
    # Of sync_to_async and create_task: "", "copy" or "empty".
    context: str = ""
    # Of run: the kind of event loop.
    loop: str = ""
    # The exceptions to catch: "", "Oops" or "BaseException".
    catch: str = ""
    # Whether the call is made inside an except block.
    handling: bool = False

    def lines(self) -> Iterator[str]:
        yield from self.piece.lines()
        notes = ["in an except block"] * self.handling + [f"{self.catch} is caught"] * bool(self.catch)
        yield self.expression() + "  # " * bool(notes) + ", ".join(notes)

    def expression(self) -> str:
        name = self.piece.name
        context = {"": "", "copy": ", context=copy_context()", "empty": ", context=Context()"}[self.context]
        executor = {"": "", "default": ", thread_sensitive=False"}.get(
            self.executor, f", thread_sensitive=False, executor={self.executor}"
        )
        return {
            "call": f"{name}()",
            "async_to_sync": f"async_to_sync({name})()",
            "force_new_loop": f"async_to_sync({name}, force_new_loop=True)()",
            "run": f"run({name}(), {self.loop!r})",
            "sync_to_async": f"await sync_to_async({name}{executor}{context})()",
            "await": f"await {name}()",
            "create_task": f"await create_task({name}(){context})",
        }[self.by]


@dataclasses.dataclass
class Gather:
    """Run functions at the same time, wait for all, and raise the first exception if there is to be one."""

    pieces: list[Piece]
    raises: bool

    def lines(self) -> Iterator[str]:
        for piece in self.pieces:
            yield from piece.lines()
        calls = ", ".join(f"{piece.name}()" for piece in self.pieces)
        yield f"await gather({calls}, return_exceptions=True)" + "  # the first is raised" * self.raises


@dataclasses.dataclass
class Spawn:
    """Start a task that does nothing until it is collected or cancelled, and then runs the function."""

    piece: Piece
    context: str

    def lines(self) -> Iterator[str]:
        yield from self.piece.lines()
        yield f"spawn({self.piece.name}()" + ", context=Context()" * bool(self.context) + ")"


@dataclasses.dataclass
class Collect:
    """Let the spawned tasks of the running loop run, and wait for them."""

    def lines(self) -> Iterator[str]:
        yield "await collect()"


@dataclasses.dataclass
class Block:
    """Steps inside a context manager."""

    manager: str
    steps: list[Any]

    def lines(self) -> Iterator[str]:
        yield f"{'async ' * self.manager.startswith('Thread')}with {self.manager}:"
        yield from _indented(self.steps)


@dataclasses.dataclass
class Hold:
    """Wait here for whoever made the call to do what ``Held`` tells; there is one below each."""

    def lines(self) -> Iterator[str]:
        yield "HOLD"


@dataclasses.dataclass
class Held:
    """Make a call in a task, and do something else when it has come to its ``Hold``."""

    call: Call
    # Run meanwhile in another task, which shares the context of the first or has a copy.
    meanwhile: Piece | None
    shared: bool
    # Thread-sensitive code for the thread that is held; "cancelled" never runs.
    queued: Piece | None
    queued_is_cancelled: bool
    # Whether to cancel the task.
    cancels: bool

    def lines(self) -> Iterator[str]:
        yield from self.call.piece.lines()
        yield f"create_task({self.call.expression().removeprefix('await ')})" + (
            f"  # {self.call.catch} is caught" * bool(self.call.catch)
        )
        yield "# when it is held:"
        if self.queued is not None:
            yield from self.queued.lines()
            yield f"queued = create_task(sync_to_async({self.queued.name})())"
            if self.queued_is_cancelled:
                yield "queued.cancel()"
        if self.meanwhile is not None:
            yield from self.meanwhile.lines()
            yield f"await create_task({self.meanwhile.name}())" + "  # in the same context" * self.shared
        yield "task.cancel()" if self.cancels else "let it go on"


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a step stands, which decides what may stand there."""

    is_async: bool
    depth: int = 0
    # Whether nothing else runs at the same time.
    alone: bool = True
    # Whether a loop runs in the thread.
    in_loop: bool = False
    spawns: bool = True
    holds: bool = True

    def inside(self, is_async: bool, in_loop: bool | None = None, **changes: Any) -> Place:
        in_loop = is_async if in_loop is None else in_loop
        return dataclasses.replace(self, is_async=is_async, in_loop=in_loop, depth=self.depth + 1, **changes)

    def apart(self, is_async: bool = True, **changes: Any) -> Place:
        return self.inside(is_async, alone=False, **changes)


class _Writer:
    """Writes one program; ``below(n)`` chooses a number below n."""

    def __init__(self, below: Callable[[int], int], loops: list[str]) -> None:
        self._below = below
        self._loops = loops
        self.pieces = 0
        self._default_executor = 0

    def choose(self, *options: T) -> T:
        """Draw one of *options*; the first is the simplest."""
        chosen: T = options[self._below(len(options))]
        return chosen

    def piece(self, place: Place, hold: bool = False) -> Piece:
        piece = Piece(f"f{self.pieces}", place.is_async)
        self.pieces += 1
        piece.steps = self.steps(place) if not hold else self.steps_to_hold(place)[0]
        return piece

    def steps(self, place: Place) -> list[Any]:
        steps: list[Any] = []
        for _ in range(self.choose(0, 1, 2, 3)):
            steps += self.step(place)
        return steps + [Collect()] * (place.is_async and self.choose(0, 0, 0, 1))

    def step(self, place: Place) -> list[Any]:
        """Return one step, or a few that belong together."""
        if place.depth >= MAX_DEPTH or self.pieces >= MAX_PIECES:
            return [self.simple_step(place)]
        if place.is_async and place.spawns and place.depth < MAX_DEPTH - 3 and self.choose(*[False] * 7, True):
            return self.outlived_call(place)
        kinds = [self.simple_step, self.call, self.call, self.call, self.block]
        if place.is_async:
            kinds += [self.gather, self.collect]
            kinds += [self.spawn] * (2 * place.spawns) + [self.held] * (2 * place.holds)
        return [self.choose(*kinds)(place)]

    def outlived_call(self, place: Place) -> list[Any]:
        """Return steps by which a call leaves a task behind, which runs when the call is over."""
        spawning = Piece(f"f{self.pieces}", True)
        calling = Piece(f"f{self.pieces + 1}", False, [Call(spawning, "async_to_sync")])
        self.pieces += 2
        spawning.steps = [self.spawn(place.inside(False).inside(True))]
        call = Call(calling, "sync_to_async", self.executor())
        return [call, Collect()]

    def executor(self) -> str:
        default = ["default"] * (self._default_executor < MAX_DEFAULT_EXECUTOR)
        executor = self.choose("", "", "", "pool", "one", *default)
        self._default_executor += executor == "default"
        return executor

    def active_piece(self, place: Place) -> Piece:
        """Return a coroutine function that, most likely, writes something and calls synchronous code."""
        piece = self.piece(place)
        first: list[Any] = []
        if self.choose(False, True):
            first.append(self.write(place))
        if self.choose(False, True) and self.pieces < MAX_PIECES:
            call = Call(self.piece(place.inside(False)), "sync_to_async")
            first.append(Block(self.manager(place), [call]) if self.choose(False, False, True) else call)
        piece.steps = first + piece.steps
        return piece

    def simple_step(self, place: Place) -> Any:
        kind = self.choose("write", "write", "write", "delete", "raise")
        if kind == "raise":
            return Raise(self.choose("Oops", *(["CancelledError"] if place.is_async else ["StopIteration"])))
        return self.write(place, kind)

    def write(self, place: Place, kind: str = "write") -> Write:
        variables = ["var.x", "var.y"] * (kind == "write") + ["local.x", "local.y"]
        if place.alone or place.in_loop:
            variables.append("critical.x")
        return Write(self.choose(*variables), None if kind == "delete" else self._below(100))

    def call(self, place: Place, hold: bool = False) -> Call:
        by = executor = context = loop = ""
        if place.is_async:
            by = self.choose("sync_to_async", "sync_to_async", "await", "create_task", *(["call"] * (not hold)))
        elif place.in_loop:
            by = self.choose("call", "async_to_sync")
        else:
            by = self.choose("async_to_sync", "force_new_loop", "call", *(["run"] * (not hold)))
        if by == "sync_to_async":
            executor = self.executor()
            context = self.choose("", "", "", "copy", "empty")
        elif by == "create_task":
            context = self.choose("", "", "empty")
        elif by == "run":
            loop = self.choose(*self._loops)
        is_async = by in ("async_to_sync", "force_new_loop", "run", "await", "create_task")
        inside = place.inside(is_async, in_loop=place.in_loop if by == "call" else is_async)
        catch = self.choose("", "Oops", "BaseException")
        handling = self.choose(False, False, False, True)
        return Call(self.piece(inside, hold), by, executor, context, loop, catch, handling and not hold)

    def block(self, place: Place) -> Block:
        return Block(self.manager(place), self.steps(place))

    def manager(self, place: Place) -> str:
        if not place.is_async:
            return "AsyncSingleThreadContext()"
        return self.choose(
            "ThreadSensitiveContext()", "ThreadSensitiveContext(executor=one)", "AsyncSingleThreadContext()"
        )

    def gather(self, place: Place) -> Gather:
        count = self.choose(2, 3)
        return Gather([self.piece(place.apart()) for _ in range(count)], self.choose(False, True))

    def spawn(self, place: Place) -> Spawn:
        return Spawn(self.active_piece(place.apart(spawns=False)), self.choose("", "", "empty"))

    def collect(self, place: Place) -> Collect:
        return Collect()

    def held(self, place: Place) -> Held:
        apart = place.apart(holds=False)
        call = self.call(apart, hold=True)
        queued = self.piece(apart.inside(False)) if self.choose(False, False, True) else None
        queued_is_cancelled = queued is not None and self.choose(True, False)
        meanwhile = self.active_piece(apart) if self.choose(False, True) else None
        shared = meanwhile is not None and self.choose(True, False)
        return Held(call, meanwhile, shared, queued, queued_is_cancelled, self.choose(False, True))

    def steps_to_hold(self, place: Place) -> tuple[list[Any], bool]:
        """Return steps that lead to a ``Hold``, and whether no change of side lies between here and there.

        Synchronous code that was left alone when its caller was cancelled goes on with
        simple steps only: its loop may end at any time.
        """
        before = [self.write(place)] if self.choose(False, True) else self.steps(place)
        on_its_own = not place.is_async
        step: Any
        kind = self.choose("hold", "call", "call", "block")
        if kind == "hold" or place.depth >= MAX_DEPTH or self.pieces >= MAX_PIECES:
            step = Hold()
        elif kind == "block":
            inner, on_its_own = self.steps_to_hold(dataclasses.replace(place, depth=place.depth + 1))
            step = Block(self.manager(place), inner)
        else:
            step = self.call(place, hold=True)
            on_its_own = not place.is_async and step.by == "call" and not _changes_side(step.piece.steps)
        after = [self.simple_step(place)] * self.choose(0, 1) if on_its_own else self.steps(place)
        return [*before, step, *after], on_its_own


def _changes_side(steps: list[Any]) -> bool:
    """Tell whether the ``Hold`` below is reached through ``async_to_sync``."""
    for step in steps:
        if isinstance(step, Hold):
            return False
        if isinstance(step, Block) and _leads_to_hold(step):
            return _changes_side(step.steps)
        if isinstance(step, Call) and _leads_to_hold(step):
            return step.by != "call" or _changes_side(step.piece.steps)
    raise AssertionError("no Hold below")


def _leads_to_hold(step: Any) -> bool:
    if isinstance(step, Call):
        return any(map(_leads_to_hold, step.piece.steps))
    return isinstance(step, Hold) or (isinstance(step, Block) and any(map(_leads_to_hold, step.steps)))


# Made once, since that takes as long as drawing from them.
_BELOW = {n: st.integers(0, n - 1) for n in [*range(1, 20), 100]}


@st.composite
def programs(draw: Any, loops: list[str]) -> Piece:
    """Draw a program, a synchronous function; the event loops that it starts itself are of the kinds *loops*."""
    return write_program(lambda n: draw(_BELOW[n]), loops)


def write_program(below: Callable[[int], int], loops: list[str]) -> Piece:
    """Return a program made of the choices that *below* makes."""
    writer = _Writer(below, loops)
    program = writer.piece(Place(is_async=False))
    program.size = writer.pieces
    return program


def smaller(program: Piece) -> Iterator[Piece]:
    """Yield copies of *program* that lack one step each, the largest steps first."""
    count = len(list(_step_lists(program)))
    for number in range(count):
        for index in range(len(list(_step_lists(program))[number])):
            without = copy.deepcopy(program)
            del list(_step_lists(without))[number][index]
            yield without


def _step_lists(part: Any) -> Iterator[list[Any]]:
    parts: list[Any]
    if isinstance(part, Piece | Block):
        yield part.steps
        parts = part.steps
    elif isinstance(part, Gather):
        parts = part.pieces
    else:
        parts = [getattr(part, name) for name in ("piece", "call", "meanwhile", "queued") if hasattr(part, name)]
    for inner in parts:
        if inner is not None:
            yield from _step_lists(inner)
