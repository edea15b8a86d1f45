"""The reference: a sequential interpreter of programs that knows the rules and not their implementation.

Threads and loops are names here. Concurrent functions are run one after the other, because they share nothing. A
program that would wait for itself forever, or whose outcome depends on chance, is ``Unfit``.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from .programs import (
    Ask,
    Block,
    Call,
    Collect,
    Gather,
    Held,
    Hold,
    Iterate,
    Leave,
    Piece,
    Raise,
    Release,
    Reset,
    Spawn,
    With,
    Write,
)

__all__ = ["ANY", "VARIABLES", "Look", "Outcome", "Trace", "Unfit", "expected_of"]

T = TypeVar("T")

VARIABLES = ["var.x", "var.y", "local.x", "local.y", "critical.x"]

# The outcome of a function: "returned" with its name, or the name of an exception with a detail.
Outcome = tuple[str, str]

# The threads that live as long as the program. "main" is the one that runs it.
LASTING = frozenset({"main", "the process-wide worker", "one"})


class Unfit(Exception):
    """This program cannot be judged."""


class _Any:
    def __repr__(self) -> str:
        return "ANY"


# Replaces a value that depends on earlier work of the thread.
ANY: Any = _Any()


@dataclasses.dataclass
class Look:
    """The values that a function sees at one point."""

    thread: Any
    loop: Any
    # The exception in sys.exc_info().
    handled: Any
    values: dict[str, Any]
    # Threads from which this one must differ.
    others: frozenset[str] = frozenset()
    # Whether it is chance that the function runs.
    may_be_missing: bool = False


# By the name of the function: looks and outcomes of calls, in their order.
Trace = dict[str, list[Any]]


class Failure(Exception):
    def __init__(self, kind: str, detail: str = "") -> None:
        self.outcome: Outcome = kind, detail


class Frozen(Exception):
    """The coroutine never continues, because its loop was closed."""


# They end the run of a loop when a task of it raises them.
END_THE_LOOP = frozenset({"SystemExit", "KeyboardInterrupt"})

NO_EXCEPTIONS = END_THE_LOOP | {"CancelledError"}


class Mailbox:
    def __init__(self, flow: Flow, outer: Mailbox | None) -> None:
        self.thread, self.outer, self.serving = flow.thread, outer, True
        # The exception that is handled further down the stack of that thread.
        self.handled = flow.handled
        # Whether the loop that the thread waits for has stopped or closed.
        self.lost = False


class Loop:
    def __init__(self, name: str, thread: str, handled: Any = None, leaves: str = "") -> None:
        self.name, self.thread, self.running = name, thread, True
        # The exception that is handled further down the stack of its thread.
        self.handled = handled
        # For loops of that kind: the mailbox of the thread that waits for all tasks of the loop, and the mailboxes that
        # were waiting when the run began.
        self.mailbox: Mailbox | None = None
        self.further_out: list[Mailbox] = []
        # The mailboxes of the threads that are blocked on it, and whether there may be others.
        self.blocked: list[Mailbox] = []
        self.shared = False
        # Whether a task that runs when others do has looked for the last of those threads.
        self.is_asked = False
        # Whether a generator runs on it while its consumer does not wait.
        self.reads_ahead = False
        # What happens to it at the Leave below, and what has happened; how late it does so, with its next coroutine, if
        # the Leave was reached.
        self.leaves, self.left, self.leaves_soon = leaves, "", ""
        # On the way to the Leave: the mailboxes of the threads that wait for one of its coroutines, and the blocks.
        self.awaited: list[Mailbox] = []
        self.blocks: list[Manager] = []
        # The thread that continues in the background when the loop is closed.
        self.left_alone = ""
        # Whether a function whose caller was cancelled reports to it, at some time after its end.
        self.is_reported_to = False
        # Whether the resumed coroutine is about to be cancelled, because its thread no longer waits.
        self.cancels = False

    @property
    def kind(self) -> str:
        return self.name.split()[0]


class Manager:
    """A block of one of the two context managers."""

    def __init__(self, name: str, executor: str, bridged: BridgedCall | None) -> None:
        self.name, self.executor, self.ended = name, executor, False
        self.loop: Loop | None = None
        # The strand of the block, and how often it has released its thread.
        self.strand: Strand | None = None
        self.releases = 0
        # The call that the block is in.
        self.bridged = bridged
        # For a block with an executor: the loop on which it was entered, and the threads above it that wait.
        self.entered_on: Loop | None = None
        self.hidden: list[Mailbox] = []


class Steps:
    """One iteration or block of a synchronous object: the facts that its first step has fixed for the others."""

    def __init__(self, name: str, executor: str) -> None:
        self.name, self.executor = name, executor
        self.thread = ""
        self.mailbox: Mailbox | None = None
        # The context of all steps, and that of the consumer after the last exchange of changes.
        self.context: dict[Any, Any] = {}
        self.seen: dict[Any, Any] = {}
        # The variables that can be unset in the consumer's context, and in that of the steps.
        self.here: set[Any] = set()
        self.there: set[Any] = set()
        self.reads_ahead = False


class Kept:
    """A context that is kept from one call to the next, so that tokens stay valid."""

    def __init__(self, context: dict[Any, Any], of_caller: set[Any]) -> None:
        self.context, self.of_caller = context, of_caller
        # The variables that the bridge has a token to unset: in the caller's context, and in this one.
        self.own: set[Any] = set()
        # Whether a function whose caller was cancelled may still run in it.
        self.is_taken = False

    def follow(self, here: dict[Any, Any]) -> dict[Any, Any]:
        """Copy the values of *here*; if that is not possible, *here* is kept from then on."""
        if self.is_taken:
            raise Unfit("whether that function has ended is chance")
        superfluous = _variables(self.context) - _variables(here)
        if superfluous <= self.own:
            self.own -= superfluous
            self.own |= _variables(here) - _variables(self.context)
            self.context.clear()
            self.context.update(here)
        else:
            self.context = here
            self.own.clear()
            self.of_caller.clear()
        return self.context

    def bring_back(self, snapshot: dict[Any, Any], caller: dict[Any, Any]) -> None:
        self.of_caller |= _carry(snapshot, self.context, caller, self.of_caller)


class Caller:
    """The owner of calls that share a context: a task, or a function below ``sync_to_async``."""

    kept: Kept | None = None


@dataclasses.dataclass
class Token:
    context: dict[Any, Any]
    variable: str
    before: Any


class TaskSteps:
    """One iteration or block of an asynchronous object, for a thread."""

    def __init__(self, name: str, reads_ahead: bool) -> None:
        self.name, self.reads_ahead = name, reads_ahead
        self.loop: Loop | None = None
        self.kind = ""
        self.task = Caller()
        # The variables that can be unset in the consumer's context, and in that of the steps.
        self.here: set[Any] = set()
        self.there: set[Any] = set()
        # One mailbox for all steps. The exception being handled where the thread serves it differs.
        self.mailbox: Mailbox | None = None
        self.context: dict[Any, Any] = {}
        self.seen: dict[Any, Any] = {}


class Strand:
    """A sequence of events, one after the other."""

    def __init__(self) -> None:
        self.tokens: list[Token] = []
        self.spawned: list[tuple[Loop, Callable[[str, Flow], None]]] = []


@dataclasses.dataclass
class BridgedCall(Caller):
    """One call of ``sync_to_async``."""

    # The enclosing call.
    outer: BridgedCall | None = None
    # Whether the awaiting task was cancelled, and whether it has stopped waiting.
    told: bool = False
    # Whether it makes several items of an iteration, as many as there is time for.
    is_ahead: bool = False
    cancelled: bool = False
    # The loop that runs until the function has ended, because the cancelling code waits for that.
    cancelled_on: Loop | None = None
    # Whether it was cancelled again, after the first cancellation was passed on.
    absorbs: bool = False


@dataclasses.dataclass(frozen=True)
class Flow:
    """The current position of the execution."""

    thread: str
    # The values of the variables; besides those of the program, "ancestor", "sensitive" and "single".
    context: dict[Any, Any]
    strand: Strand
    # The loop that runs in this thread.
    loop: Loop | None = None
    # The loop that made the bridged call that this thread runs.
    home: Loop | None = None
    # The current task; None in synchronous code.
    task: Caller = dataclasses.field(default_factory=Caller)
    handled: Any = None
    is_async: bool = False
    # The threads that take part in this, each of them another one.
    chain: frozenset[str] = LASTING
    alone: bool = True
    bridged: BridgedCall | None = None
    on_hold: Callable[[Flow], None] | None = None
    # The loop that stops or closes at the next Leave.
    leaving: Loop | None = None

    def but(self, **changes: Any) -> Flow:
        return dataclasses.replace(self, **changes)

    def apart(self, context: dict[Any, Any], strand: Strand, handled: Any) -> Flow:
        """Return the flow of a new task that runs concurrently with others."""
        return self.but(context=context, strand=strand, handled=handled, alone=False, task=Caller())


def expected_of(
    program: Piece,
    eager_loops: frozenset[str] = frozenset(),
    debug_loops: frozenset[str] = frozenset(),
    thread_sensitive_loops: frozenset[str] = frozenset(),
) -> Trace:
    """Return what *program* must do; raise ``Unfit`` if that is uncertain."""
    reference = _Reference(eager_loops, debug_loops, thread_sensitive_loops)
    reference.max_threads = program.max_threads
    return reference.run(program)


class _Reference:
    def __init__(
        self, eager_loops: frozenset[str], debug_loops: frozenset[str], thread_sensitive_loops: frozenset[str]
    ) -> None:
        self.eager_loops, self.debug_loops = eager_loops, debug_loops
        self.thread_sensitive_loops = thread_sensitive_loops
        self.trace: Trace = {}
        self.managers = 0
        # For each thread, what it does: it runs something (None) or serves a mailbox, the innermost last.
        self.busy: dict[str, list[Mailbox | None]] = {"main": [None]}
        # The waits: a thread, the length of its stack, and the thread that it waited for.
        self.waits: set[tuple[str, int, str]] = set()
        # The limit for the threads of contexts, and the leased threads.
        self.max_threads: int | None = None
        self.leased: set[str] = set()
        # Leased threads of iterators and blocks, which may be open.
        self.pinned: set[str] = set()
        # Values of the thread-critical Local on each thread.
        self.critical: dict[str, dict[str, Any]] = {}
        # Threads that may have left a chain, and so may be used again in it.
        self.parted: frozenset[str] = frozenset()
        # The context that is called "kept", and whether a function runs in it.
        self.kept: dict[Any, Any] = {}
        self.kept_is_entered = False

    def run(self, program: Piece) -> Trace:
        flow = Flow("main", {}, Strand())
        self.note(program.name, self.outcome_of(lambda: self.piece(program, flow)))
        return self.trace

    def note(self, name: str, what: Any) -> None:
        self.trace.setdefault(name, []).append(what)

    def outcome_of(self, function: Callable[[], str]) -> Outcome:
        try:
            return "returned", function()
        except Failure as failure:
            return failure.outcome

    # Functions and steps

    def piece(self, piece: Piece, flow: Flow) -> str:
        flow = flow.but(is_async=piece.is_async)
        self.look(piece.name, flow)
        if piece.is_async and flow.handled is not None:
            # Python forgets it in coroutines that wait inside the except block, after one of them has been resumed with
            # an exception.
            flow = flow.but(handled=ANY)
        for step in piece.steps:
            self.step(step, flow, piece.name)
        return piece.name

    def look(self, name: str, flow: Flow, may_be_missing: bool = False) -> None:
        values = {variable: self.read(variable, flow) for variable in VARIABLES}
        loop = flow.loop.name if flow.loop is not None else None
        others = flow.chain - {flow.thread} - self.parted
        self.note(name, Look(flow.thread, loop, flow.handled, values, others, may_be_missing))

    def read(self, variable: str, flow: Flow) -> Any:
        if variable != "critical.x":
            return flow.context.get(variable)
        if flow.loop is not None:
            return flow.context.get((flow.loop, variable))
        if not flow.alone:
            return ANY
        # A worker may have been leased before.
        return self.critical.get(flow.thread, {}).get(variable, None if flow.thread in LASTING else ANY)

    def step(self, step: Any, flow: Flow, name: str) -> None:
        if isinstance(step, Raise):
            raise Failure(step.kind, name if step.kind == "Oops" else "")
        if isinstance(step, Write):
            if step.keeps_token:
                if flow.leaving is not None and flow.leaving.left_alone:
                    raise Unfit("whether others reset it, or have looked for tokens before, is chance")
                flow.strand.tokens.append(Token(flow.context, step.variable, flow.context.get(step.variable)))
            self.write(step.variable, step.value, flow)
        elif isinstance(step, Reset) and flow.strand.tokens:
            token = flow.strand.tokens.pop()
            is_valid = token.context is flow.context
            if not is_valid and _is_ahead(flow.bridged):
                raise Unfit("whether both items were made in one call is chance")
            if is_valid:
                _write(flow.context, token.variable, token.before)
            self.note(name, ("reset", "done" if is_valid else "not valid here"))
        elif isinstance(step, Ask):
            told = flow.loop is None and flow.bridged is not None and flow.bridged.told
            self.note(name, ("asked", "cancelled" if told else "not cancelled"))
        elif isinstance(step, Call):
            self.note(name, self.caught(step, flow, name))
        elif isinstance(step, Block):
            self.block(step, flow, name)
        elif isinstance(step, With):
            self.with_(step, flow, name)
        elif isinstance(step, Iterate):
            self.iterate(step, flow, name)
        elif isinstance(step, Gather):
            self.gather(step, flow, name)
        elif isinstance(step, Spawn):
            self.spawn(step, flow)
        elif isinstance(step, Release):
            self.release(flow)
        elif isinstance(step, Collect):
            self.end_spawned(flow.loop, flow, "released")
        elif isinstance(step, Held):
            self.held(step, flow, name)
        elif isinstance(step, Hold):
            assert flow.on_hold is not None
            flow.on_hold(flow)
        elif isinstance(step, Leave):
            self.leave(step, flow)
        self.look(name, flow)

    def write(self, variable: str, value: int | None, flow: Flow) -> None:
        key: Any = variable if variable != "critical.x" else (flow.loop, variable)
        if flow.loop is not None or variable != "critical.x":
            if variable.startswith("var") or value is not None or key in flow.context:
                _note_change(flow.context, variable)
            _write(flow.context, key, value)
        else:
            self.critical.setdefault(flow.thread, {})[variable] = value

    def caught(self, call: Call, flow: Flow, name: str) -> Outcome:
        if call.handling:
            flow = flow.but(handled=("Oops", f"handled by {name}"))
        try:
            return "returned", self.call(call, flow, name)
        except Failure as failure:
            if call.catch not in (failure.outcome[0], "BaseException"):
                raise
            return failure.outcome

    def call(self, call: Call, flow: Flow, name: str) -> str:
        if call.by in ("call", "await"):
            try:
                return self.piece(call.piece, flow)
            except Failure as failure:
                if flow.is_async and failure.outcome[0] == "StopIteration":
                    raise Failure("RuntimeError", "StopIteration") from None
                raise
        if call.by == "create_task":
            assert flow.loop is not None
            context = {} if call.context else flow.context.copy()
            task = flow.but(context=context, handled=self.handled_in_task(flow), task=Caller())
            outcome = self.outcome_of(functools.partial(self.task, call.piece, task))
            if flow.loop.cancels:
                flow.loop.cancels = False
                raise Failure("CancelledError")
            return _result(outcome)
        if call.by == "sync_to_async":
            return self.sync_to_async(call.piece, call.executor, call.context, flow)
        if flow.loop is not None:
            raise Failure("RuntimeError", "await")
        if call.by == "run":
            return self.run_loop(call, flow)
        return self.async_to_sync(call, flow)

    def task(self, piece: Piece, flow: Flow) -> str:
        try:
            return self.piece(piece, flow)
        except Failure as failure:
            if failure.outcome[0] in END_THE_LOOP:
                raise Unfit("it ends the loop at any point of what else that runs") from None
            raise

    def handled_in_task(self, flow: Flow) -> Any:
        """Return the exception that a new task sees being handled; an eager one starts on the stack of its creator."""
        assert flow.loop is not None
        eager = flow.loop.kind in self.eager_loops
        return ANY if eager and flow.handled is not None else flow.loop.handled

    # From asynchronous to synchronous code

    def sync_to_async(self, piece: Piece, executor: str, context: str, flow: Flow) -> str:
        assert flow.loop is not None
        mailbox = kept = None
        inner = {} if context == "empty" else flow.context.copy()
        if context == "":
            if flow.loop.mailbox is not None:
                _note_change(inner, "ancestor")
                _write(inner, "ancestor", self.mailbox_above(flow))
            kept = flow.task.kept
            if kept is not None:
                inner = kept.follow(inner)
        if executor == "":
            thread, mailbox = self.route(flow)
        elif executor == "one":
            thread = "one"
        else:
            thread = f"the {executor} thread of {piece.name}"
        if thread == flow.loop.thread:
            raise Failure("RuntimeError", "deadlock")
        if thread.startswith("the worker of") and thread not in self.leased:
            self.lease(thread, flow)
        doing = self.busy.setdefault(thread, [])
        if doing and (mailbox is None or doing[-1] is not mailbox):
            raise Unfit("it waits for a thread that waits for it")
        self.wait(thread)
        if context == "kept":
            if self.kept_is_entered:
                raise Failure("RuntimeError", "entered")
            inner = self.kept
        snapshot = inner.copy()
        bridged = BridgedCall(flow.bridged)
        inner_flow = flow.but(
            thread=thread,
            loop=None,
            home=flow.loop,
            context=inner,
            handled=flow.handled if flow.handled is not None or mailbox is None else mailbox.handled,
            chain=flow.chain | {thread},
            bridged=bridged,
        )
        doing.append(None)
        self.kept_is_entered |= context == "kept"
        outcome = self.outcome_of(functools.partial(self.piece, piece, inner_flow))
        self.kept_is_entered &= context != "kept"
        if flow.loop.left_alone == "":
            doing.pop()
        if bridged.cancelled:
            if kept is not None:
                kept.is_taken = True
            if flow.loop.left_alone:
                self.call_off(flow.loop)
            raise Failure("CancelledError")
        if flow.loop.leaves_soon:
            self.lose(flow.loop)
        if flow.loop.left == "closed":
            raise Frozen
        if kept is not None:
            kept.bring_back(snapshot, flow.context)
        elif context == "":
            flow.task.kept = _keep(snapshot, inner, flow.context)
        if flow.loop.left == "stopped" and flow.loop.awaited:
            # A waiting thread that runs the function reports first, and gives up waiting then.
            if flow.loop.awaited[-1].thread != thread:
                raise Unfit("whether it is cancelled before it has the result is chance")
            if flow.loop.kind in self.debug_loops:  # it continues one iteration after its result, and so too late
                raise Failure("CancelledError")
            flow.loop.cancels = True
        elif flow.loop.left == "stopped":
            flow.loop.running, flow.loop.left = True, ""
        if outcome[0] == "StopIteration":
            raise Failure("RuntimeError", "StopIteration")
        if bridged.absorbs and outcome[0] == "returned":
            raise Failure("CancelledError")
        return _result(outcome)

    def wait(self, thread: str) -> None:
        """Record what a wait for *thread* blocks; for other code, the limit may be part of it."""
        self.waits |= {(other, len(does), thread) for other, does in self.busy.items() if does and other != thread}
        if self.max_threads is not None and self.running_leases():
            self.waits.add(("the limit", 1, thread))

    def running_leases(self) -> list[str]:
        return [thread for thread in self.leased if self.busy.get(thread, [])[-1:] == [None]]

    def lease(self, thread: str, flow: Flow) -> None:
        """Record that *thread* is leased; also at the limit, if other threads are released or stand still."""
        running = self.running_leases()
        assert flow.loop is not None
        below = flow.loop.thread in self.leased or flow.loop.blocked
        at_limit = self.max_threads is not None and (not flow.alone or len(self.leased) >= self.max_threads)
        if at_limit and running and not below:
            raise Unfit("it may wait for a thread that waits for it, and seems to work")
        if self.max_threads is not None:
            self.wait("the limit")
        self.leased.add(thread)

    def worker_of(self, manager: Manager) -> str:
        return f"the worker of {manager.name}" + f" after {manager.releases} releases" * bool(manager.releases)

    def release(self, flow: Flow) -> None:
        manager = flow.context.get("sensitive")
        if manager is None or manager.executor or manager.ended:
            return
        thread = self.worker_of(manager)
        if thread not in self.leased:
            return
        if self.busy.get(thread) or thread in self.pinned or manager.strand is not flow.strand:
            raise Unfit("which calls are made on which thread is chance, or the release takes effect later")
        self.leased.discard(thread)
        manager.releases += 1

    def route(self, flow: Flow) -> tuple[str, Mailbox | None]:
        """Return the thread for thread-sensitive code, and the mailbox by which it gets the code."""
        ancestor = self.mailbox_above(flow)
        while ancestor is not None:
            if ancestor.lost:
                raise Unfit("whether that thread still waits is chance")
            if ancestor.serving:
                return ancestor.thread, ancestor
            ancestor = ancestor.outer
        manager = flow.context.get("sensitive")
        if manager is not None and manager.executor:
            if manager.ended:
                raise Failure("RuntimeError", "ended")
            return manager.executor, None
        if manager is not None and not manager.ended:
            return self.worker_of(manager), None
        assert flow.loop is not None
        if flow.loop.reads_ahead:
            raise Unfit("whether a thread is blocked on the loop at that time is chance")
        if flow.loop.blocked:
            flow.loop.is_asked |= not flow.alone
            if flow.loop.shared and not flow.alone:
                raise Unfit("which thread blocked on the loop last is chance")
            return flow.loop.blocked[-1].thread, flow.loop.blocked[-1]
        return "the process-wide worker", None

    def mailbox_above(self, flow: Flow) -> Mailbox | None:
        """Return the mailbox of the innermost waiting thread above, or a mailbox whose thread no longer waits."""
        ancestor: Mailbox | None = flow.context.get("ancestor")
        if flow.loop is None or flow.loop.mailbox is None:
            return ancestor
        manager = flow.context.get("sensitive")
        if manager is not None and manager.entered_on is flow.loop:
            return ancestor
        while ancestor is not None and not ancestor.serving:
            ancestor = ancestor.outer
        return flow.loop.mailbox if ancestor is None or ancestor in flow.loop.further_out else ancestor

    def blocked_above(self, flow: Flow) -> list[Mailbox]:
        mailboxes = []
        ancestor = self.mailbox_above(flow)
        while ancestor is not None:
            mailboxes.append(ancestor)
            ancestor = ancestor.outer
        manager = flow.context.get("sensitive")
        return mailboxes if manager is None else mailboxes + manager.hidden

    # Several calls on one thread and in one context

    def step_of(
        self,
        steps: Steps,
        function: Callable[[Flow], str],
        flow: Flow,
        end: Callable[[Flow], object] | None = None,
    ) -> str:
        """Run *function* as a step; if that is cancelled, *end* follows, and nothing waits for it."""
        loop = flow.loop
        assert loop is not None
        if loop.leaves:
            raise Unfit("whether a step is still in time is chance")
        if not steps.thread:
            mailbox = None
            if steps.executor == "":
                thread, mailbox = self.route(flow)
            else:
                thread = "one" if steps.executor == "one" else f"the thread of {steps.name}"
            if thread == loop.thread:
                raise Failure("RuntimeError", "deadlock")
            if thread.startswith("the worker of"):
                self.pinned.add(thread)
                if thread not in self.leased:
                    self.lease(thread, flow)
            steps.thread, steps.mailbox = thread, mailbox
        thread, mailbox = steps.thread, steps.mailbox
        doing = self.busy.setdefault(thread, [])
        if doing and (mailbox is None or doing[-1] is not mailbox):
            raise Unfit("it waits for a thread that waits for it")
        self.wait(thread)
        steps.there |= _carry(steps.seen, flow.context, steps.context, steps.there)
        steps.seen = flow.context.copy()
        if loop.mailbox is not None:
            _note_change(steps.context, "ancestor")
            _write(steps.context, "ancestor", self.mailbox_above(flow))
        before = steps.context.copy()
        bridged = BridgedCall(flow.bridged, is_ahead=steps.reads_ahead)
        inner = flow.but(
            thread=thread,
            loop=None,
            home=loop,
            context=steps.context,
            handled=flow.handled if flow.handled is not None or mailbox is None else mailbox.handled,
            chain=flow.chain | {thread},
            bridged=bridged,
            is_async=False,
        )
        doing.append(None)
        outcome = self.outcome_of(functools.partial(function, inner))
        after = inner.but(handled=None if mailbox is None else mailbox.handled, bridged=BridgedCall())
        if bridged.cancelled:
            if end is not None and outcome[0] == "returned":
                if bridged.cancelled_on is not loop:
                    raise Unfit("whether the loop still runs is chance")
                if mailbox is not None and flow.bridged is not None and flow.bridged.told:
                    raise Unfit("whether the thread still waits in its mailbox is chance, since that was cancelled too")
                single = steps.context.get("single")
                if single is not None and not single.ended:
                    raise Unfit("whether the block around it has ended by then is chance")
                end(after)
            doing.pop()
            raise Failure("CancelledError")
        doing.pop()
        steps.here |= _carry(before, steps.context, flow.context, steps.here)
        for key in before.keys() | steps.context.keys():
            if before.get(key) is not steps.context.get(key):
                if key in steps.context:
                    steps.seen[key] = steps.context[key]
                else:
                    steps.seen.pop(key, None)
        if bridged.absorbs and outcome[0] == "returned":
            if end is not None:
                raise Unfit("nobody waits for what follows")
            raise Failure("CancelledError")
        if outcome[0] == "StopIteration":
            raise Failure("RuntimeError", "StopIteration")
        return _result(outcome)

    def with_(self, step: With, flow: Flow, name: str) -> None:
        if step.enter.is_async:
            self.with_in_thread(step, flow, name)
            return
        steps = Steps(step.enter.name, step.executor)

        def leave(inner: Flow) -> object:
            return self.outcome_of(functools.partial(self.piece, step.exit, inner.but(handled=ANY)))

        self.step_of(steps, functools.partial(self.piece, step.enter), flow, leave)
        failure = None
        try:
            self.look(name, flow)
            for inner in step.steps:
                self.step(inner, flow, name)
        except Failure as caught:
            failure = caught
        self.step_of(
            steps, functools.partial(self.piece, step.exit), flow if failure is None else flow.but(handled=ANY)
        )
        if failure is not None and not (step.suppresses and failure.outcome[0] not in NO_EXCEPTIONS):
            raise failure

    def iterate(self, step: Iterate, flow: Flow, name: str) -> None:
        name_of_steps = step.items[0].piece.name
        steps = Steps(name_of_steps, step.executor)
        steps.reads_ahead = bool(step.read_ahead)
        task_steps = TaskSteps(name_of_steps, bool(step.read_ahead))

        def step_of(function: Callable[[Flow], str], flow: Flow) -> str:
            if step.end.is_async:
                return self.task_step_of(task_steps, function, flow)
            return self.step_of(steps, function, flow, end_late if function is make else None)

        pieces = [item.piece for item in step.items]
        begun = finished = False
        late: Failure | None = None

        def end_late(inner: Flow) -> None:
            nonlocal late
            try:
                close(inner)
            except Failure as failure:
                late = failure

        def end(inner: Flow) -> None:
            nonlocal finished
            finished = True
            try:
                self.piece(step.end, inner)
            except Failure as failure:
                raise _out_of_generator(failure) from None

        def make(inner: Flow) -> str:
            nonlocal begun
            begun = True
            if finished or not pieces:
                if not finished:
                    end(inner)
                raise Failure("StopAsyncIteration")
            try:
                name = self.piece(pieces.pop(0), inner)
            except Failure as failure:
                end(inner.but(handled=failure.outcome))
                raise _out_of_generator(failure) from None
            if step.read_ahead and len(step.items) - len(pieces) == step.takes:
                for piece in pieces[: step.read_ahead]:
                    self.look(piece.name, inner.but(handled=ANY), may_be_missing=True)
            return name

        def close(inner: Flow) -> str:
            if not finished:
                end(inner.but(handled=("GeneratorExit", "")))
            return "closed"

        failure = None
        for item in [*step.items, None][: step.takes]:
            try:
                self.note(name, ("returned", step_of(make, flow)))
                # A coroutine that makes a later item may have run a function on this thread meanwhile.
                self.look(name, flow.but(alone=not step.read_ahead))
            except Failure as caught:
                failure = caught
                self.note(name, failure.outcome)
                break
            assert item is not None
            try:
                for inner in item.steps:
                    self.step(inner, flow, name)
            except Failure as caught:
                failure = caught
                break
        if begun and not (failure is not None and failure.outcome[0] == "StopAsyncIteration"):
            try:
                step_of(close, flow)
                if late is not None:
                    raise late
            except Failure as caught:
                failure = caught
        if task_steps.loop is not None:
            self.end_task_steps(task_steps, flow)
        if failure is not None and failure.outcome[0] != "StopAsyncIteration":
            raise failure

    # Several calls in one task

    def task_step_of(self, steps: TaskSteps, function: Callable[[Flow], str], flow: Flow) -> str:
        if flow.leaving is not None:
            raise Unfit("whether a step is still in time is chance")
        if flow.bridged is not None and flow.bridged.cancelled and flow.bridged.cancelled_on is not flow.home:
            raise Unfit("whether the loop still runs is chance")
        is_first = steps.loop is None
        if is_first:
            self.begin_task_steps(steps, flow)
        loop, mailbox = steps.loop, steps.mailbox
        assert loop is not None
        assert mailbox is not None
        new = _carry(steps.seen, flow.context, steps.context, steps.there)
        if not is_first:  # the first one copies the context of the consumer, without any token
            steps.there |= new
        _note_change(steps.context, "ancestor")
        steps.context["ancestor"] = mailbox
        before = steps.context.copy()
        inner = flow.but(
            thread=loop.thread,
            loop=loop,
            home=None,
            task=steps.task,
            context=steps.context,
            handled=ANY,
            chain=flow.chain | {flow.thread, loop.thread},
            is_async=True,
        )
        self.busy[flow.thread].append(mailbox)
        if steps.kind != "home":
            loop.blocked.append(mailbox)
        loop.awaited.append(mailbox)
        outcome = self.outcome_of(functools.partial(function, inner))
        loop.awaited.pop()
        if steps.kind != "home":
            loop.blocked.remove(mailbox)
        self.busy[flow.thread].pop()
        steps.here |= _carry(before, steps.context, flow.context, steps.here)
        steps.seen = flow.context.copy()
        return _result(outcome)

    def share(self, loop: Loop, flow: Flow) -> None:
        loop.shared |= not flow.alone
        if loop.shared and loop.is_asked:  # perhaps at the same time
            raise Unfit("which thread blocked on the loop last is chance")

    def begin_task_steps(self, steps: TaskSteps, flow: Flow) -> None:
        steps.mailbox = Mailbox(flow, flow.context.get("ancestor"))
        steps.mailbox.handled = ANY
        home = flow.home if flow.home is not None and flow.home.running else None
        manager = flow.context.get("single")
        if home is not None:
            steps.loop, steps.kind = home, "home"
        elif manager is not None and not manager.ended:
            if manager.loop is None:
                manager.loop = Loop(f"loop of {manager.name}", f"the loop thread of {manager.name}")
                self.busy[manager.loop.thread] = [None]
            self.share(manager.loop, flow)
            steps.loop, steps.kind = manager.loop, "kept"
        else:
            steps.loop, steps.kind = Loop(f"loop of {steps.name}", f"the loop thread of {steps.name}"), "own"
            self.busy[steps.loop.thread] = [None]
        assert steps.loop is not None
        if steps.loop.leaves:
            raise Unfit("whether a step is still in time is chance")
        steps.loop.reads_ahead |= steps.reads_ahead

    def end_task_steps(self, steps: TaskSteps, flow: Flow) -> None:
        assert steps.loop is not None
        assert steps.mailbox is not None
        if steps.kind == "own":
            self.end_kept_loop(steps.loop, flow.but(handled=ANY))
        steps.mailbox.serving = False

    def with_in_thread(self, step: With, flow: Flow, name: str) -> None:
        """The same as in an ``AsyncSingleThreadContext``, on any loop."""
        before, manager = flow.context.get("single"), None
        if before is None or before.ended:
            self.managers += 1
            flow.context["single"] = manager = Manager(f"block number {self.managers}", "", flow.bridged)
        try:
            self.steps_of_with_in_thread(step, flow, name)
        finally:
            if manager is not None:
                manager.ended = True
                _write(flow.context, "single", before)
                if manager.loop is not None:  # perhaps while an exception is being raised
                    self.end_kept_loop(manager.loop, flow.but(handled=ANY))

    def steps_of_with_in_thread(self, step: With, flow: Flow, name: str) -> None:
        steps = TaskSteps(step.enter.name, reads_ahead=False)
        failure = None
        try:
            self.task_step_of(steps, functools.partial(self.piece, step.enter), flow)
            try:
                self.look(name, flow)
                for inner in step.steps:
                    self.step(inner, flow, name)
            except Failure as caught:
                failure = caught
            self.task_step_of(steps, functools.partial(self.piece, step.exit), flow)
        finally:
            if steps.loop is not None:
                self.end_task_steps(steps, flow)
        if failure is not None and not (step.suppresses and failure.outcome[0] not in NO_EXCEPTIONS):
            raise failure

    # From synchronous to asynchronous code

    def async_to_sync(self, call: Call, flow: Flow) -> str:
        context = flow.context.copy()
        outer = context.get("ancestor")
        context["ancestor"] = mailbox = Mailbox(flow, outer)
        _note_change(context, "ancestor")
        kept = None if flow.bridged is None else flow.bridged.kept
        if kept is not None:
            context = kept.follow(context)
        snapshot = context.copy()
        loop, kind = self.loop_for(call, flow)
        inner = flow.but(
            thread=loop.thread,
            loop=loop,
            home=None,
            task=Caller(),
            context=context,
            handled=loop.handled if flow.handled is None else flow.handled,
            chain=flow.chain | {flow.thread, loop.thread},
        )
        self.busy[flow.thread].append(mailbox)
        if kind != "home":
            loop.blocked.append(mailbox)
        loop.awaited.append(mailbox)
        try:
            outcome = self.outcome_of(functools.partial(self.piece, call.piece, inner))
        except Frozen:
            outcome = "RuntimeError", "left"
        loop.awaited.pop()
        loop.cancels = False
        if kind == "fresh":
            self.end_loop(loop, flow)
        if kind != "home":
            loop.blocked.remove(mailbox)
        self.busy[flow.thread].pop()
        mailbox.serving = False
        if mailbox.lost:  # whatever the coroutine still does
            if flow.bridged is not None:
                flow.bridged.kept = None
            raise Failure("RuntimeError", "left")
        if kept is not None:
            kept.bring_back(snapshot, flow.context)
        elif (new := _keep(snapshot, context, flow.context)) is not None and flow.bridged is not None:
            flow.bridged.kept = new
        return _result(outcome)

    def loop_for(self, call: Call, flow: Flow) -> tuple[Loop, str]:
        home = flow.home if flow.home is not None and flow.home.running else None
        manager = flow.context.get("single")
        # In a block, a new loop must not be the home loop.
        looks = call.by != "force_new_loop"
        if manager is not None and home is not None:
            looks |= home.leaves_soon == "looked at"
        if home is not None and looks:
            if not home.leaves_soon:
                return home, "home"
            self.lose(home)
            home = None
        if manager is not None and not manager.ended:
            if manager.loop is None:
                manager.loop = Loop(f"loop of {manager.name}", f"the loop thread of {manager.name}")
                self.busy[manager.loop.thread] = [None]
            self.share(manager.loop, flow)
            if manager.loop is not home:
                return manager.loop, "kept"
        fresh = Loop(f"loop of {call.piece.name}", f"the loop thread of {call.piece.name}")
        self.busy[fresh.thread] = [None]
        return fresh, "fresh"

    def run_loop(self, call: Call, flow: Flow) -> str:
        if call.loop in self.thread_sensitive_loops:
            return self.run_thread_sensitive_loop(call, flow)
        loop = Loop(f"{call.loop} of {call.piece.name}", flow.thread, flow.handled, call.leaves)
        self.busy[flow.thread].append(None)
        inner = flow.but(loop=loop, context=flow.context.copy(), leaving=loop, task=Caller())
        try:
            outcome = self.outcome_of(functools.partial(self.piece, call.piece, inner))
        except Frozen:
            outcome = "RuntimeError", "never ended"
            # The coroutine is closed in the end, and so are its open blocks.
            for manager in loop.blocks:
                manager.ended = True
        if loop.left not in ("closed", "cancelled"):
            self.end_spawned(loop, flow, "cancelled")
        loop.running = False
        if loop.left_alone:
            self.busy[loop.left_alone].pop()
        self.busy[flow.thread].pop()
        return _result(outcome)

    def run_thread_sensitive_loop(self, call: Call, flow: Flow) -> str:
        if call.leaves:
            raise Unfit("the thread that runs the loop may be held by what waits for the loop to leave")
        thread = f"the loop thread of {call.piece.name}"
        loop = Loop(f"{call.loop} of {call.piece.name}", thread, flow.handled)
        loop.mailbox = mailbox = Mailbox(flow, flow.context.get("ancestor"))
        loop.further_out = self.blocked_above(flow)
        self.busy[thread] = [None]
        self.busy[flow.thread].append(mailbox)
        chain = flow.chain | {flow.thread, thread}
        context = flow.context.copy()
        inner = flow.but(thread=thread, loop=loop, home=None, context=context, chain=chain, task=Caller())
        outcome = self.outcome_of(functools.partial(self.piece, call.piece, inner))
        # The tasks that are left end in another run of the loop, for which the thread waits in another mailbox.
        mailbox.serving = False
        loop.mailbox = mailbox = Mailbox(flow, flow.context.get("ancestor"))
        self.busy[flow.thread][-1] = mailbox
        self.end_spawned(loop, flow, "cancelled")
        loop.running = mailbox.serving = False
        self.busy[flow.thread].pop()
        return _result(outcome)

    def leave(self, leave: Leave, flow: Flow) -> None:
        loop = flow.leaving
        assert loop is not None
        if loop.leaves == "paused":
            return
        if loop.leaves == "cancelled":
            loop.left = "cancelled"
            if flow.loop is not None:
                raise Failure("CancelledError")
            self.leave_alone(flow, loop)
            return
        if len(loop.awaited) + (flow.loop is not loop) > 1:  # each of them continues, concurrently
            self.judge_blocks(flow, loop)
        if leave.late and flow.home is loop:
            if leave.late == "handed over" and loop.is_reported_to:
                raise Unfit("whether another result comes in the same turn, and this one with it, is chance")
            loop.leaves_soon = leave.late
            return
        self.lose(loop)
        if flow.loop is not loop:
            return
        if loop.left == "closed":
            raise Frozen
        if loop.awaited:
            raise Failure("CancelledError")
        loop.running, loop.left = True, ""

    def leave_alone(self, flow: Flow, loop: Loop) -> None:
        """Record that the function continues when all waiting tasks were cancelled, and the loop was closed."""
        assert flow.bridged is not None
        if flow.home is not loop:
            raise Unfit("when its loop ends is chance")
        if any(mailbox.thread == flow.thread for mailbox in loop.awaited):
            raise Unfit("the loop waits for its thread")
        self.judge_blocks(flow, loop)
        flow.bridged.cancelled = True
        self.lose(loop)
        loop.left_alone = flow.thread

    def call_off(self, loop: Loop) -> None:
        """Return to where the waiting tasks are cancelled, which happens before the function continues."""
        loop.running = True
        for mailbox in loop.awaited:
            mailbox.lost = False

    def judge_blocks(self, flow: Flow, loop: Loop) -> None:
        if any(manager.bridged is not flow.bridged for manager in loop.blocks):
            raise Unfit("a block around it may have ended by then")

    def lose(self, loop: Loop) -> None:
        """Stop or close *loop* while code waits for it."""
        loop.running, loop.leaves_soon, loop.left = False, "", loop.leaves
        for mailbox in loop.awaited:
            mailbox.lost = True
            self.parted |= {mailbox.thread} - LASTING

    def end_loop(self, loop: Loop, flow: Flow) -> None:
        self.end_spawned(loop, flow, "cancelled")
        loop.running = False

    # Blocks

    def block(self, block: Block, flow: Flow, name: str) -> None:
        key = "single" if block.manager.startswith("Async") else "sensitive"
        executor = "one" if "executor" in block.manager else ""
        before = flow.context.get(key)
        hidden = self.blocked_above(flow)
        ancestor = flow.context.get("ancestor")
        manager = None
        if executor or before is None or before.ended:
            self.managers += 1
            manager = Manager(f"{block.manager} number {self.managers}", executor, flow.bridged)
            manager.strand = flow.strand
            flow.context[key] = manager
            if flow.leaving is not None:
                flow.leaving.blocks.append(manager)
            if executor:
                manager.entered_on, manager.hidden = flow.loop, hidden
                if ancestor is not None:
                    _note_change(flow.context, "ancestor")
                _write(flow.context, "ancestor", None)
        failure = None
        try:
            self.look(name, flow)
            for step in block.steps:
                self.step(step, flow, name)
        except Failure as caught:
            failure = caught
        except Frozen:
            if manager is not None and manager.loop is not None:
                self.forsake(manager.loop, flow)
            raise
        if manager is not None:
            manager.ended = True
            if not self.busy.get(self.worker_of(manager)):
                self.leased.discard(self.worker_of(manager))
            if flow.leaving is not None:
                flow.leaving.blocks.remove(manager)
            _write(flow.context, key, before)
            if executor:
                if ancestor is not None:
                    _note_change(flow.context, "ancestor")
                _write(flow.context, "ancestor", ancestor)
            if manager.loop is not None:
                self.end_kept_loop(manager.loop, flow)
        if failure is not None:
            raise failure

    def end_kept_loop(self, loop: Loop, flow: Flow) -> None:
        if flow.loop is not None:
            self.forsake(loop, flow)
            return
        mailbox = Mailbox(flow, None)
        loop.blocked.append(mailbox)
        self.busy[flow.thread].append(mailbox)
        self.end_loop(loop, flow)
        self.busy[flow.thread].pop()
        mailbox.serving = False
        loop.blocked.remove(mailbox)

    def forsake(self, loop: Loop, flow: Flow) -> None:
        if any(of is loop for of, _ in flow.strand.spawned):
            raise Unfit("nobody waits for the tasks that end with that loop")
        loop.running = False

    # Tasks

    def gather(self, gather: Gather, flow: Flow, name: str) -> None:
        strands = [Strand() for _ in gather.pieces]
        tasks = []
        for piece, strand in zip(gather.pieces, strands, strict=True):
            task = flow.apart(flow.context.copy(), strand, self.handled_in_task(flow))
            tasks.append(functools.partial(self.outcome_of, functools.partial(self.task, piece, task)))
        outcomes = self.at_the_same_time(tasks)
        for strand in strands:
            flow.strand.spawned += strand.spawned
        self.note(name, outcomes)
        failures = [outcome for outcome in outcomes if outcome[0] != "returned"]
        if failures and gather.raises:
            raise Failure(*failures[0])

    def spawn(self, spawn: Spawn, flow: Flow) -> None:
        assert flow.loop is not None
        context = {} if spawn.context else flow.context.copy()
        piece, task = spawn.piece, flow.apart(context, Strand(), flow.loop.handled)

        def end(how: str, end_of: Flow) -> None:
            self.note(piece.name, how)
            late = task.but(chain=end_of.chain | {end_of.thread})
            self.note(piece.name, self.outcome_of(functools.partial(self.task, piece, late)))

        flow.strand.spawned.append((flow.loop, end))

    def end_spawned(self, loop: Loop | None, flow: Flow, how: str) -> None:
        mine = [end for of, end in flow.strand.spawned if of is loop]
        flow.strand.spawned = [entry for entry in flow.strand.spawned if entry[0] is not loop]
        self.at_the_same_time([functools.partial(end, how, flow) for end in mine])

    def at_the_same_time(self, tasks: Sequence[Callable[[], T]]) -> list[T]:
        """Run *tasks*; none may wait for a thread of another one that waits for a thread of the former."""
        busy = {thread: len(does) for thread, does in self.busy.items()}
        results = []
        seen: set[tuple[str, str]] = set()
        for task in tasks:
            waits, self.waits = self.waits, set()
            results.append(task())
            kept = {(thread, other) for thread, does, other in self.waits if does > busy.get(thread, 0)}
            if any((other, thread) in seen for thread, other in kept):
                raise Unfit("two of them may wait for each other's thread")
            seen |= kept
            self.waits |= waits
        return results

    # Gates

    def held(self, held: Held, flow: Flow, name: str) -> None:
        context, handled = flow.context.copy(), self.handled_in_task(flow)
        reached = []

        def on_hold(where: Flow) -> None:
            reached.append(where)
            if held.queued is not None:
                try:
                    thread, _ = self.route(flow)
                except Failure as failure:
                    raise Unfit("that thread is not held") from failure
                if thread != where.thread or where.loop is not None:
                    raise Unfit("that thread is not held")
            if held.meanwhile is not None:
                own = context if held.shared else flow.context.copy()
                other = flow.apart(own, flow.strand, handled)
                self.note(name, self.outcome_of(functools.partial(self.piece, held.meanwhile, other)))
            if held.cancels:
                told = where.bridged
                while told is not None and told is not flow.bridged:
                    told.told, told = True, told.outer
                if where.loop is not None:
                    outermost = where.bridged
                    while outermost is not None and outermost.outer is not flow.bridged:
                        outermost = outermost.outer
                    if where.bridged is not flow.bridged and outermost is not None and held.cancels_again:
                        outermost.absorbs = True
                    raise Failure("CancelledError")
                assert where.bridged is not None
                where.bridged.cancelled, where.bridged.cancelled_on = True, flow.loop
                assert flow.loop is not None
                flow.loop.is_reported_to = True

        task = flow.apart(context, flow.strand, handled).but(on_hold=on_hold)
        try:
            outcome = self.caught(held.call, task, name)
        except Failure as failure:
            outcome = failure.outcome
        self.note(name, outcome)
        self.look(f"{held.call.piece.name}'s task", task)
        if held.queued is not None:
            if not reached:
                raise Unfit("nothing is held")
            if held.queued_is_cancelled:
                self.note(name, ("CancelledError", ""))
            else:
                queued = flow.apart(flow.context.copy(), Strand(), handled)
                self.note(name, self.outcome_of(functools.partial(self.sync_to_async, held.queued, "", "", queued)))
                flow.strand.spawned += queued.strand.spawned


def _out_of_generator(failure: Failure) -> Failure:
    return Failure("RuntimeError", "StopIteration") if failure.outcome[0] == "StopIteration" else failure


def _result(outcome: Outcome) -> str:
    if outcome[0] != "returned":
        raise Failure(*outcome)
    return outcome[1]


def _write(context: dict[Any, Any], key: Any, value: Any) -> None:
    if value is None:
        context.pop(key, None)
    else:
        context[key] = value


def _is_ahead(bridged: BridgedCall | None) -> bool:
    return bridged is not None and (bridged.is_ahead or _is_ahead(bridged.outer))


def _note_change(context: dict[Any, Any], variable: str) -> None:
    """Record that the Python variable that holds all attributes of a ``Local`` changes, to a new object."""
    holder = {"local": "the local", "critical": "the critical local", "ancestor": "the mailbox"}.get(
        variable.split(".")[0]
    )
    if holder is not None:
        context[holder] = object()


def _variables(context: dict[Any, Any]) -> set[Any]:
    """Return the context variables of Python, without the attributes of a ``Local``."""
    return {key for key in context if type(key) is str and not key.startswith("local.") and key != "ancestor"}


def _carry(snapshot: dict[Any, Any], callee: dict[Any, Any], caller: dict[Any, Any], of_caller: set[Any]) -> set[Any]:
    """Apply the changes of the callee, and only those, to the caller; return the variables that are new there."""
    before = _variables(caller)
    for key in snapshot.keys() | callee.keys():
        if snapshot.get(key) is not callee.get(key):
            if key in callee:
                caller[key] = callee[key]
            elif key not in _variables(snapshot):
                caller.pop(key, None)
            elif key in of_caller:
                of_caller.discard(key)
                caller.pop(key, None)
    return _variables(caller) - before


def _keep(snapshot: dict[Any, Any], callee: dict[Any, Any], caller: dict[Any, Any]) -> Kept | None:
    """Bring back the changes of a call in a new copy; return the kept context, if the call has changed something."""
    if snapshot.keys() == callee.keys() and all(snapshot[key] is callee[key] for key in snapshot):
        return None
    return Kept(callee, _carry(snapshot, callee, caller, set()))
