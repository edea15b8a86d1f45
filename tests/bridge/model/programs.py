"""Programs, their text form, and the strategy that draws one.

Nothing here knows what a program must do. Programs whose outcome would depend on chance are never drawn: concurrent
functions share only threads, unless a gate puts them into one order.
"""

from __future__ import annotations

import copy
import dataclasses
import textwrap
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from hypothesis import strategies as st

__all__ = [
    "Ask",
    "Block",
    "Call",
    "Collect",
    "Gather",
    "Held",
    "Hold",
    "Iterate",
    "Leave",
    "Piece",
    "Raise",
    "Release",
    "Reset",
    "Spawn",
    "With",
    "Write",
    "programs",
    "smaller",
    "write_program",
]

T = TypeVar("T")

MAX_DEPTH = 12
# The maximum number of functions in a program, and of those that use the default executor of a loop. That has at least
# five threads, and functions there that wait for one another must all find one.
MAX_PIECES, MAX_DEFAULT_EXECUTOR = 24, 4


@dataclasses.dataclass
class Piece:
    """A function."""

    name: str
    is_async: bool
    steps: list[Any] = dataclasses.field(default_factory=list)
    # For a whole program: the number of functions, whether threads wait for stopped loops, and the limit for the
    # threads of contexts.
    size: int = 0
    patient: bool = False
    max_threads: int | None = None

    def lines(self) -> Iterator[str]:
        if self.max_threads is not None:
            yield f"ThreadSensitiveContext.max_threads = {self.max_threads}"
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
    """Set a variable; None deletes it. The token of a context variable may be kept."""

    variable: str
    value: int | None
    keeps_token: bool = False

    def lines(self) -> Iterator[str]:
        if self.keeps_token:
            yield f"tokens.append({self.variable}.set({self.value}))"
        else:
            yield f"del {self.variable}" if self.value is None else f"{self.variable} = {self.value}"


@dataclasses.dataclass
class Reset:
    """Reset by the latest token that was kept in this strand, whether it is valid here or not."""

    def lines(self) -> Iterator[str]:
        yield "RESET BY THE LATEST TOKEN"


@dataclasses.dataclass
class Ask:
    """Check whether the task that awaits this was cancelled."""

    def lines(self) -> Iterator[str]:
        yield "check_cancelled()"


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
    # For sync_to_async: "" for thread-sensitive, "default", "pool" (of many threads), "one" (of one).
    executor: str = ""
    # For sync_to_async and create_task: "", "copy" or "empty"; for sync_to_async also "kept", one for the program.
    context: str = ""
    # For run: the kind of event loop.
    loop: str = ""
    # What happens to that loop at the ``Leave`` below, if there is one: it is "closed" with all its tasks; "stopped",
    # until all threads are done with its calls; "paused", which no call may notice; or "cancelled": the function is
    # cancelled, and the loop is closed as soon as the function ends.
    leaves: str = ""
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
        context = {
            "": "",
            "copy": ", context=copy_context()",
            "empty": ", context=Context()",
            "kept": ", context=kept",
        }[self.context]
        executor = {"": "", "default": ", thread_sensitive=False"}.get(
            self.executor, f", thread_sensitive=False, executor={self.executor}"
        )
        return {
            "call": f"{name}()",
            "async_to_sync": f"async_to_sync({name})()",
            "force_new_loop": f"async_to_sync({name}, force_new_loop=True)()",
            "run": f"run({name}(), {self.loop!r})" + f"  # {self.leaves} at LEAVE" * bool(self.leaves),
            "sync_to_async": f"await sync_to_async({name}{executor}{context})()",
            "await": f"await {name}()",
            "create_task": f"await create_task({name}(){context})",
        }[self.by]


@dataclasses.dataclass
class Gather:
    """Run functions concurrently, wait for all, and raise the first exception if *raises* says so."""

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
class Release:
    """Release the thread of the enclosing context."""

    def lines(self) -> Iterator[str]:
        yield "await release_thread()"


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
class With:
    """Steps inside a bridged context manager of the other kind: asynchronous steps in a synchronous function.

    In asynchronous functions, the steps are synchronous.
    """

    # The steps of entering and leaving, and whether leaving suppresses an Exception.
    enter: Piece
    exit: Piece
    suppresses: bool
    steps: list[Any]
    # "" for thread-sensitive, "leased", "one".
    executor: str = ""

    def lines(self) -> Iterator[str]:
        yield from self.enter.lines()
        yield from self.exit.lines()
        options = {"": "", "leased": ", thread_sensitive=False"}.get(
            self.executor, f", thread_sensitive=False, executor={self.executor}"
        )
        suppresses = "  # suppresses Exception" * self.suppresses
        bridge = "with async_to_sync" if self.enter.is_async else "async with sync_to_async"
        yield f"{bridge}_context_manager(<{self.enter.name}, {self.exit.name}>{options}):{suppresses}"
        yield from _indented(self.steps)


@dataclasses.dataclass
class Item:
    """The steps of a generator to make an item, and the steps of the consumer with it."""

    piece: Piece
    steps: list[Any]


@dataclasses.dataclass
class Iterate:
    """Take items of a bridged generator of the other kind, and close it."""

    items: list[Item]
    # The steps of the generator at its end, after the last item or when it is closed.
    end: Piece
    # How often the consumer requests an item: with one more than there are items, it finds the end.
    takes: int
    executor: str = ""
    # With read-ahead, the consumer makes no steps with the items; items that it does not take have no steps.
    read_ahead: int = 0

    def lines(self) -> Iterator[str]:
        for item in self.items:
            yield from item.piece.lines()
        yield from self.end.lines()
        options = {"": "", "leased": ", thread_sensitive=False"}.get(
            self.executor, f", thread_sensitive=False, executor={self.executor}"
        ) + f", read_ahead={self.read_ahead}" * bool(self.read_ahead)
        names = ", ".join(item.piece.name for item in self.items)
        to_sync = self.end.is_async
        bridge = "async_to_sync" if to_sync else "sync_to_async"
        yield f"items = {bridge}_iterator(<{names}; finally {self.end.name}>{options})"
        for item in [*self.items, Item(self.end, [])][: self.takes]:
            yield "next(items)" if to_sync else "await anext(items)"
            for step in item.steps:
                yield from step.lines()
        yield "items.close()" if to_sync else "await items.aclose()"


@dataclasses.dataclass
class Hold:
    """Wait here until the caller has done what ``Held`` says; there is one below each ``Held``."""

    def lines(self) -> Iterator[str]:
        yield "HOLD"


@dataclasses.dataclass
class Leave:
    """Let the loop of the ``run`` above stop or close, as that says; there is one below each.

    In a bridged function, the loop may also do so "looked at" or "handed over": with its next coroutine, when the
    thread has seen that the loop runs, or has given it the coroutine.
    """

    late: str

    def lines(self) -> Iterator[str]:
        yield "LEAVE" + f"  # late, {self.late}" * bool(self.late)


@dataclasses.dataclass
class Held:
    """Make a call in a task, and do something else when the call has reached its ``Hold``."""

    call: Call
    # Run meanwhile in another task, which shares the context of the first or has a copy.
    meanwhile: Piece | None
    shared: bool
    # Thread-sensitive code for the held thread; "cancelled" never runs.
    queued: Piece | None
    queued_is_cancelled: bool
    # Whether to cancel the task, and how often again while the held coroutine cleans up.
    cancels: bool
    cancels_again: int = 0

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
        again = f"  # and {self.cancels_again} more while it cleans up" * bool(self.cancels_again)
        yield "task.cancel()" + again if self.cancels else "let it continue"


Goal = Hold | Leave


@dataclasses.dataclass(frozen=True)
class Place:
    """The position of a step, which decides what may be there."""

    is_async: bool
    depth: int = 0
    # Whether nothing else runs concurrently.
    alone: bool = True
    # Whether a loop runs in the thread.
    in_loop: bool = False
    spawns: bool = True
    holds: bool = True
    # On the way to a Leave: whether the loop of the Leave is this one, or the home loop, and whether this is a
    # coroutine on it that a thread waits for.
    at_leaving: bool = False
    called_back: bool = False
    # Whether it is certain which call is cancelled; this is not so if a loop stops.
    asks: bool = True

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
        self.patient = self.choose(False, True)
        self.max_threads = self.choose(None, None, 1, 2)
        self.pieces = 0
        self._default_executor = 0

    def choose(self, *options: T) -> T:
        """Draw one of *options*; the first is the simplest."""
        chosen: T = options[self._below(len(options))]
        return chosen

    def piece(self, place: Place, goal: Goal | None = None) -> Piece:
        piece = Piece(f"f{self.pieces}", place.is_async)
        self.pieces += 1
        piece.steps = self.steps(place) if goal is None else self.steps_to(goal, place)[0]
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
        has_room = place.depth < MAX_DEPTH - 2 and self.pieces < MAX_PIECES - 2
        if has_room and (place.is_async or not place.in_loop) and self.choose(*[False] * 5, True):
            return self.tokens_over_calls(place)
        kinds = [self.simple_step, self.call, self.call, self.call, self.block, self.token_step]
        if place.is_async or not place.in_loop:
            kinds += [self.with_, self.iterate]
        if place.is_async:
            kinds += [self.gather, self.collect]
            kinds += [self.spawn] * (2 * place.spawns) + [self.held] * (2 * place.holds)
            kinds += [self.inner_request] * (2 * (self.max_threads is not None and place.depth < MAX_DEPTH - 2))
        return [self.choose(*kinds)(place)]

    def outlived_call(self, place: Place) -> list[Any]:
        """Return steps in which a call leaves a task behind, which runs when the call is over."""
        spawning = Piece(f"f{self.pieces}", True)
        calling = Piece(f"f{self.pieces + 1}", False, [Call(spawning, "async_to_sync")])
        self.pieces += 2
        spawning.steps = [self.spawn(place.inside(False).inside(True))]
        call = Call(calling, "sync_to_async", self.executor())
        return [call, Collect()]

    def tokens_over_calls(self, place: Place) -> list[Any]:
        """Return calls: the first keeps a token and the last resets by it, as middleware does."""
        by = "sync_to_async" if place.is_async else self.choose("async_to_sync", "async_to_sync", "force_new_loop")
        inside = place.inside(not place.is_async)
        calls = []
        for step in (Write(self.choose("var.x", "var.y"), self._below(100), keeps_token=True), Reset()):
            piece = self.piece(inside)
            piece.steps.insert(self._below(len(piece.steps) + 1) if isinstance(step, Write) else 0, step)
            executor = self.executor() if place.is_async else ""
            calls.append(Call(piece, by, executor, catch=self.choose("", "BaseException")))
        between = [self.token_step(place)] if self.choose(False, False, True) else self.steps(place)
        return [calls[0], *between, calls[1]]

    def executor(self) -> str:
        default = ["default"] * (self._default_executor < MAX_DEFAULT_EXECUTOR)
        executor = self.choose("", "", "", "pool", "one", *default)
        self._default_executor += executor == "default"
        return executor

    def active_piece(self, place: Place) -> Piece:
        """Return a coroutine function that probably writes a variable and calls synchronous code."""
        piece = self.piece(place)
        first: list[Any] = []
        if self.choose(False, True):
            first.append(self.write(place))
        if self.choose(False, True) and self.pieces < MAX_PIECES:
            call = Call(self.piece(place.inside(False)), "sync_to_async")
            first.append(Block(self.manager(place), [call]) if self.choose(False, False, True) else call)
        piece.steps = first + piece.steps
        return piece

    def token_step(self, place: Place) -> Any:
        if self.choose(True, True, False):
            return Write(self.choose("var.x", "var.y"), self._below(100), keeps_token=True)
        return Reset()

    def simple_step(self, place: Place) -> Any:
        kind = self.choose("write", "write", "write", "delete", "raise", *["ask"] * place.asks)
        if kind == "ask":
            return Ask()
        if kind == "raise":
            other = "CancelledError" if place.is_async else "StopIteration"
            return Raise(self.choose(*["Oops"] * 3, *[other] * 3, "SystemExit", "KeyboardInterrupt"))
        return self.write(place, kind)

    def write(self, place: Place, kind: str = "write") -> Write:
        variables = ["var.x", "var.y"] * (kind == "write") + ["local.x", "local.y"]
        if place.alone or place.in_loop:
            variables.append("critical.x")
        return Write(self.choose(*variables), None if kind == "delete" else self._below(100))

    def call(self, place: Place, goal: Goal | None = None, by: str = "") -> Call:
        executor = context = loop = leaves = ""
        changes = 4 if isinstance(goal, Leave) else 1  # of side, because only those are affected by a stopped loop
        if by:
            pass
        elif place.is_async:
            others = ["await", "create_task", *["call"] * (goal is None)]
            by = self.choose(*["sync_to_async"] * 2 * changes, *others)
        elif place.in_loop:
            by = self.choose("call", "async_to_sync")
        else:
            others = ["force_new_loop", "call", *["run"] * (goal is None)]
            by = self.choose(*["async_to_sync"] * changes, *others)
        if by == "sync_to_async":
            executor = self.executor()
            context = self.choose("", "", "", "copy", "empty", *["kept", "kept"] * place.alone)
        elif by == "create_task":
            context = self.choose("", "", "empty")
        is_async = by in ("async_to_sync", "force_new_loop", "run", "await", "create_task")
        inside = place.inside(is_async, in_loop=place.in_loop if by == "call" else is_async)
        if by == "async_to_sync":
            inside = dataclasses.replace(inside, called_back=place.at_leaving)
        elif by == "force_new_loop":
            inside = dataclasses.replace(inside, at_leaving=False, called_back=False)
        elif by == "sync_to_async":
            inside = dataclasses.replace(inside, called_back=False)
        elif by == "run":
            loop = self.choose(*self._loops)
            leaves = self.choose("", "closed", "paused" if self.patient else "stopped", "cancelled")
            if leaves:
                inside = place.apart(at_leaving=True, called_back=False, asks=False)
                # uvloop starts a posted callback, however late, before it stops.
                goal = Leave(self.choose("", "", "looked at", "looked at" if loop == "uvloop" else "handed over"))
        catch = self.choose("", "Oops", "BaseException")
        handling = self.choose(False, False, False, True) and (goal is None or bool(leaves))
        return Call(self.piece(inside, goal), by, executor, context, loop, leaves, catch, handling)

    def block(self, place: Place) -> Block:
        return Block(self.manager(place), self.steps(place))

    def with_(
        self, place: Place, steps: list[Any] | None = None, entering: Goal | None = None, leaving: Goal | None = None
    ) -> With:
        executor, inside = self.other_side(place)
        enter, leave = self.piece(inside, entering), self.piece(inside, leaving)
        return With(enter, leave, self.choose(False, True), self.steps(place) if steps is None else steps, executor)

    def other_side(self, place: Place) -> tuple[str, Place]:
        """Return the kind of function for steps of a bridged object, and their position."""
        if place.is_async:
            return self.choose("", "", "", "leased", "one"), place.inside(False, called_back=False)
        return "", place.inside(True, called_back=place.at_leaving)

    def iterate(self, place: Place) -> Iterate:
        executor, inside = self.other_side(place)
        read_ahead = self.choose(0, 0, 0, 1, 2, 5)
        items = []
        for _ in range(self.choose(1, 2, 3)):
            body = [] if read_ahead else self.steps(dataclasses.replace(place, depth=place.depth + 1))
            items.append(Item(self.piece(inside), body))
        if read_ahead and self.choose(False, True):
            return self.abandoned(items, executor, read_ahead, inside)
        takes = len(items) + 1 if read_ahead else self.choose(*range(len(items) + 2))
        return Iterate(items, self.piece(inside), takes, executor, read_ahead)

    def abandoned(self, items: list[Item], executor: str, read_ahead: int, inside: Place) -> Iterate:
        """Return an iteration that is closed after *items*, when others may have been made, but not the last one."""
        takes = len(items)
        for _ in range(read_ahead + 1):
            items.append(Item(Piece(f"f{self.pieces}", inside.is_async), []))
            self.pieces += 1
        return Iterate(items, self.piece(inside), takes, executor, read_ahead)

    def iterate_to(self, goal: Goal, place: Place) -> tuple[Iterate, bool]:
        """Return an iteration that leads to *goal*, and whether no change of side lies between here and there."""
        executor, inside = self.other_side(place)
        around = dataclasses.replace(place, depth=place.depth + 1)
        where, number = self.choose("item", "item", "end", "body"), self.choose(0, 0, 1)
        on_its_own = False
        items = []
        for index in range(number + self.choose(1, 2)):
            is_there = index == number
            piece = self.piece(inside, goal if is_there and where == "item" else None)
            if is_there and where == "body":
                body, on_its_own = self.steps_to(goal, around)
            else:
                body = self.steps(around)
            items.append(Item(piece, body))
        end = self.piece(inside, goal if where == "end" else None)
        return Iterate(items, end, self.choose(*range(number + 1, len(items) + 2)), executor), on_its_own

    def site(self) -> Piece:
        """Return a program that runs a loop, on which several tasks have a ``ThreadSensitiveContext`` each."""
        place = Place(is_async=False)
        program, serving = Piece("f0", False), Piece("f1", True)
        self.pieces = 2
        inside = place.inside(True)
        requests = [self.request(inside.apart()) for _ in range(self.choose(2, 3, 4))]
        serving.steps = [*self.steps(inside), Gather(requests, self.choose(False, True)), *self.steps(inside)]
        program.steps = [Call(serving, "run", loop=self.choose(*self._loops), catch=self.choose("", "BaseException"))]
        return program

    def request(self, place: Place) -> Piece:
        request = Piece(f"f{self.pieces}", True)
        self.pieces += 1
        views = [Call(self.piece(place.inside(False)), "sync_to_async") for _ in range(self.choose(1, 2))]
        releases = [Release()] * self.choose(0, 1)
        steps = [*self.steps(place), views[0], *releases, *self.steps(place), *views[1:], *self.steps(place)]
        request.steps = [Block("ThreadSensitiveContext()", steps)]
        return request

    def inner_request(self, place: Place) -> Call:
        """Return a call of a task without the context of its caller, which also has a ``ThreadSensitiveContext``."""
        return Call(self.request(place.inside(True)), "create_task", context="empty")

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
        call = self.call(apart, Hold())
        queued = self.piece(apart.inside(False)) if self.choose(False, False, True) else None
        queued_is_cancelled = queued is not None and self.choose(True, False)
        meanwhile = self.active_piece(apart) if self.choose(False, True) else None
        shared = meanwhile is not None and self.choose(True, False)
        cancels = self.choose(False, True)
        return Held(
            call, meanwhile, shared, queued, queued_is_cancelled, cancels, self.choose(0, 1, 3) if cancels else 0
        )

    def steps_to(self, goal: Goal, place: Place) -> tuple[list[Any], bool]:
        """Return steps that lead to *goal*, and whether no change of side lies in between.

        Synchronous code whose caller was cancelled continues with simple steps only: its loop may end at any time. So
        does a coroutine whose thread has given up waiting.
        """
        leaves = isinstance(goal, Leave)
        before = [self.write(place)] if self.choose(False, True, leaves) else self.steps(place)
        on_its_own = not place.is_async
        step: Any
        kinds = ["goal", "call", "call", "block"]
        if (place.is_async or not place.in_loop) and not leaves:
            kinds += ["with", "enter", "exit", "iterate"]
        if leaves and place.is_async and not place.called_back:
            kinds += ["call"] * 3  # because nothing waits yet that could be left behind
        kind = self.choose(*kinds)
        if kind == "goal" or place.depth >= MAX_DEPTH or self.pieces >= MAX_PIECES + 3 * leaves:
            step = goal
        elif kind == "enter":
            step, on_its_own = self.with_(place, entering=goal), False
        elif kind == "exit":
            step, on_its_own = self.with_(place, leaving=goal), False
        elif kind == "iterate":
            step, on_its_own = self.iterate_to(goal, place)
        elif kind == "with":
            inner, on_its_own = self.steps_to(goal, dataclasses.replace(place, depth=place.depth + 1))
            step = self.with_(place, inner)
        elif kind == "block":
            inner, on_its_own = self.steps_to(goal, dataclasses.replace(place, depth=place.depth + 1))
            step = Block(self.manager(place), inner)
        else:
            step = self.call(place, goal)
            on_its_own = not place.is_async and step.by == "call" and not _changes_side(step.piece.steps)
        if leaves:
            after = self.steps_after_leave(place, at_once=step is goal)
        else:
            after = [self.simple_step(place)] * self.choose(0, 1) if on_its_own else self.steps(place)
            if not place.is_async and place.asks and self.choose(True, False):
                after.insert(0, Ask())
        return [*before, step, *after], on_its_own

    def steps_after_leave(self, place: Place, at_once: bool) -> list[Any]:
        if place.called_back:
            return [self.simple_step(place)] * self.choose(0, 1)
        place = dataclasses.replace(place, spawns=False)
        if not at_once or self.pieces >= MAX_PIECES or (place.in_loop and not place.is_async):
            return self.steps(place)
        by = "sync_to_async" if place.is_async else self.choose("async_to_sync", "async_to_sync", "force_new_loop")
        return [self.call(place, by=by)] * self.choose(1, 1, 0) + self.steps(place)


def _changes_side(steps: list[Any]) -> bool:
    """Return whether the ``Hold`` below is reached through ``async_to_sync``."""
    for step in steps:
        if isinstance(step, Hold | Leave):
            return False
        if _leads_to_hold(step):
            for inner in _on_this_side(step):
                if any(map(_leads_to_hold, inner)):
                    return _changes_side(inner)
            return True
    raise AssertionError("no Hold below")


def _on_this_side(step: Any) -> list[list[Any]]:
    if isinstance(step, Block | With):
        return [step.steps]
    if isinstance(step, Iterate):
        return [item.steps for item in step.items]
    return [step.piece.steps] if isinstance(step, Call) and step.by == "call" else []


def _on_other_side(step: Any) -> list[list[Any]]:
    if isinstance(step, With):
        return [step.enter.steps, step.exit.steps]
    if isinstance(step, Iterate):
        return [piece.steps for piece in [*(item.piece for item in step.items), step.end]]
    return [step.piece.steps] if isinstance(step, Call) and step.by != "call" and not step.leaves else []


def _leads_to_hold(step: Any) -> bool:
    if isinstance(step, Hold | Leave):
        return True
    return any(any(map(_leads_to_hold, inner)) for inner in _on_this_side(step) + _on_other_side(step))


# Made once, because that takes as long as drawing from them.
_BELOW = {n: st.integers(0, n - 1) for n in [*range(1, 20), 100]}


@st.composite
def programs(draw: Any, loops: list[str]) -> Piece:
    """Draw a program, a synchronous function; the event loops that it starts are of the kinds *loops*."""
    return write_program(lambda n: draw(_BELOW[n]), loops)


def write_program(below: Callable[[int], int], loops: list[str]) -> Piece:
    """Return a program of the choices that *below* makes."""
    writer = _Writer(below, loops)
    if writer.max_threads is not None and writer.choose(True, True, False):
        program = writer.site()
    else:
        program = writer.piece(Place(is_async=False))
    program.size, program.patient, program.max_threads = writer.pieces, writer.patient, writer.max_threads
    return program


def smaller(program: Piece) -> Iterator[Piece]:
    """Yield copies of *program* without one of its steps, the largest steps first."""
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
    elif isinstance(part, With):
        yield part.steps
        parts = [part.enter, part.exit, *part.steps]
    elif isinstance(part, Iterate):
        parts = [item.piece for item in part.items] + [part.end]
        for item in part.items:
            yield item.steps
            parts += item.steps
    elif isinstance(part, Gather):
        parts = part.pieces
    else:
        parts = [getattr(part, name) for name in ("piece", "call", "meanwhile", "queued") if hasattr(part, name)]
    for inner in parts:
        if inner is not None:
            yield from _step_lists(inner)
