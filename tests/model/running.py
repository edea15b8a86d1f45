"""Running programs really, with the package under test, and writing down what happens."""

from __future__ import annotations

import asyncio
import concurrent.futures.thread
import contextvars
import faulthandler
import queue
import sys
import threading
from collections.abc import Awaitable, Callable
from typing import Any

from asgiref import _workers
from asgiref.local import Local
from asgiref.sync import (
    AsyncSingleThreadContext,
    AsyncToSync,
    SyncToAsync,
    ThreadSensitiveContext,
    async_to_sync,
    sync_to_async,
)

from .programs import Block, Call, Collect, Gather, Held, Hold, Piece, Raise, Spawn, Write
from .reference import VARIABLES, Look, Outcome, Trace

__all__ = ["Hung", "MainThread"]

Loops = dict[str, Callable[[], asyncio.AbstractEventLoop]]

PLAIN = {name: contextvars.ContextVar[int | None](name, default=None) for name in ("var.x", "var.y")}


class Oops(Exception):
    """What programs raise. Its text names the function that does."""


class Hung(Exception):
    """A program did not end."""


class MainThread:
    """The thread on which programs start, and what they share: executors, and the limit of their time."""

    def __init__(self, loops: Loops, limit: float) -> None:
        self.loops, self.limit = loops, limit
        self.pool = concurrent.futures.ThreadPoolExecutor(64, "pool")
        self.one = concurrent.futures.ThreadPoolExecutor(1, "one")
        self.hung = False
        self._start_thread()

    def _start_thread(self) -> None:
        self._programs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=_serve, args=[self._programs], name="main of programs", daemon=True)
        self._thread.start()
        # Leased now, the process-wide worker is none of those that a program leases.
        SyncToAsync.single_thread_executor.submit(int).result()

    def run(self, program: Piece) -> Trace:
        """Run *program*; if it does not end in time, print all stacks, raise ``Hung`` and start afresh."""
        run = _Run(self)
        result: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        context = contextvars.Context()

        def run_and_report() -> None:
            try:
                context.run(run.main, program)
            except BaseException as error:
                result.put(error)
            else:
                result.put(None)

        self._programs.put(run_and_report)
        try:
            error = result.get(timeout=self.limit)
        except queue.Empty:
            faulthandler.dump_traceback(file=2, all_threads=True)
            self._abandon(run)
            raise Hung("the program did not end in time; the stacks of all threads are on stderr") from None
        if error is not None:
            raise error
        return run.trace

    def _abandon(self, run: _Run) -> None:
        run.open_gates()
        self.hung = True
        self.limit = min(self.limit, 1.0)  # the same again, most likely, while a smaller program is looked for
        SyncToAsync.single_thread_executor = type(SyncToAsync.single_thread_executor)()
        self.one = concurrent.futures.ThreadPoolExecutor(1, "one")
        self._programs.put(None)
        self._start_thread()

    def close(self) -> None:
        self._programs.put(None)
        self._thread.join()
        self.pool.shutdown(wait=not self.hung)
        self.one.shutdown(wait=not self.hung)
        if self.hung:
            # Threads that wait for ever are not to be waited for when the interpreter ends.
            concurrent.futures.thread._threads_queues.clear()  # type: ignore[attr-defined]
            _workers._workers.clear()


def _serve(programs: queue.SimpleQueue[Callable[[], None] | None]) -> None:
    while (program := programs.get()) is not None:
        program()
        del program


class _Signal:
    """Something that a task of one loop waits for, and any thread may tell."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.future: asyncio.Future[None] = self._loop.create_future()

    def tell(self) -> None:
        self._loop.call_soon_threadsafe(self._set)

    def _set(self) -> None:
        if not self.future.done():
            self.future.set_result(None)


class _Gate:
    """Where a ``Hold`` waits, and how the one who made the call knows of it."""

    def __init__(self) -> None:
        self.reached = _Signal()
        # The sync_to_async call whose function is held has ended for the caller, and on the thread.
        self.left, self.done = _Signal(), _Signal()
        self.opened = threading.Event()
        self.in_coroutine = False
        self._awaiting: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None

    def hold_thread(self) -> None:
        self.reached.tell()
        self.opened.wait()

    async def hold_task(self) -> None:
        self.in_coroutine = True
        event = asyncio.Event()
        self._awaiting = asyncio.get_running_loop(), event
        self.reached.tell()
        await event.wait()

    def open(self) -> None:
        self.opened.set()
        if self._awaiting is not None:
            loop, event = self._awaiting
            loop.call_soon_threadsafe(event.set)


class _Bridged:
    """One sync_to_async call."""

    gate: _Gate | None = None


class _Strand:
    """Tasks that were spawned and not collected, in a line of things that happen one after the other."""

    def __init__(self) -> None:
        self.spawned: list[tuple[asyncio.AbstractEventLoop, asyncio.Event, asyncio.Task[None]]] = []


class _Flow:
    """What a function is run with."""

    def __init__(self, name: str, strand: _Strand, gate: _Gate | None, bridged: _Bridged | None) -> None:
        self.name, self.strand, self.gate, self.bridged = name, strand, gate, bridged

    def into(self, piece: Piece, bridged: _Bridged | None = None) -> _Flow:
        return _Flow(piece.name, self.strand, self.gate, bridged or self.bridged)


class _Run:
    def __init__(self, main: MainThread) -> None:
        self.main_thread = main
        self.trace: Trace = {}
        self.local, self.critical = Local(), Local(thread_critical=True)
        self.gates: list[_Gate] = []

    def main(self, program: Piece) -> None:
        flow = _Flow(program.name, _Strand(), None, None)
        try:
            outcome = "returned", self.sync_piece(program, flow)
        except BaseException as error:
            outcome = _outcome(error)
        self.note(program.name, outcome)
        assert {} == AsyncToSync.loop_thread_executors

    def open_gates(self) -> None:
        for gate in self.gates:
            gate.opened.set()

    def note(self, name: str, what: Any) -> None:
        self.trace.setdefault(name, []).append(what)

    def look(self, name: str) -> None:
        handled = sys.exc_info()[1]
        self.note(
            name,
            Look(
                threading.get_ident(),
                asyncio._get_running_loop(),
                None if handled is None else _outcome(handled),
                {name: self.read(name) for name in VARIABLES},
            ),
        )

    def read(self, variable: str) -> Any:
        kind, name = variable.split(".")
        if kind == "var":
            return PLAIN[variable].get()
        return getattr(self.local if kind == "local" else self.critical, name, None)

    def write(self, variable: str, value: int | None) -> None:
        kind, name = variable.split(".")
        storage = self.local if kind == "local" else self.critical
        if kind == "var":
            PLAIN[variable].set(value)
        elif value is not None:
            setattr(storage, name, value)
        elif hasattr(storage, name):
            delattr(storage, name)

    # Synchronous functions

    def sync_piece(self, piece: Piece, flow: _Flow) -> str:
        self.look(piece.name)
        self.sync_steps(piece.steps, flow)
        return piece.name

    def sync_steps(self, steps: list[Any], flow: _Flow) -> None:
        for step in steps:
            if isinstance(step, Raise):
                raise _exception(step, flow)
            if isinstance(step, Write):
                self.write(step.variable, step.value)
            elif isinstance(step, Call):
                self.note(flow.name, self.sync_caught(step, flow))
            elif isinstance(step, Block):
                error = None
                with AsyncSingleThreadContext():
                    self.look(flow.name)
                    try:
                        self.sync_steps(step.steps, flow)
                    except BaseException as caught:
                        error = caught  # so that the block ends with nothing being handled
                if error is not None:
                    raise error
            elif isinstance(step, Hold):
                assert flow.gate is not None
                assert flow.bridged is not None
                flow.bridged.gate = flow.gate
                flow.gate.hold_thread()
            self.look(flow.name)

    def sync_caught(self, call: Call, flow: _Flow) -> Outcome:
        if call.handling:
            try:
                raise Oops(f"handled by {flow.name}")
            except Oops:
                outcome, error = self.sync_attempt(call, flow)
        else:
            outcome, error = self.sync_attempt(call, flow)
        if error is not None and not _catches(call, error):
            raise error
        return outcome

    def sync_attempt(self, call: Call, flow: _Flow) -> tuple[Outcome, BaseException | None]:
        try:
            return ("returned", self.sync_call(call, flow)), None
        except BaseException as error:
            return _outcome(error), error

    def sync_call(self, call: Call, flow: _Flow) -> str:
        inner = flow.into(call.piece)
        if call.by == "call":
            return self.sync_piece(call.piece, inner)
        if call.by == "run":
            result = error = None
            with asyncio.Runner(loop_factory=self.main_thread.loops[call.loop]) as runner:
                try:
                    result = runner.run(self.async_piece(call.piece, inner))
                except BaseException as caught:
                    error = caught
            if error is not None:
                raise error
            assert result is not None
            return result
        return async_to_sync(self.async_piece, force_new_loop=call.by == "force_new_loop")(call.piece, inner)

    # Asynchronous functions

    async def async_piece(self, piece: Piece, flow: _Flow) -> str:
        self.look(piece.name)
        await self.async_steps(piece.steps, flow)
        return piece.name

    async def async_steps(self, steps: list[Any], flow: _Flow) -> None:
        for step in steps:
            if isinstance(step, Raise):
                raise _exception(step, flow)
            if isinstance(step, Write):
                self.write(step.variable, step.value)
            elif isinstance(step, Call):
                self.note(flow.name, await self.async_caught(step, flow))
            elif isinstance(step, Block):
                await self.block(step, flow)
            elif isinstance(step, Gather):
                await self.gather(step, flow)
            elif isinstance(step, Spawn):
                await self.spawn(step, flow)
            elif isinstance(step, Collect):
                await self.collect(flow)
            elif isinstance(step, Held):
                await self.held(step, flow)
            elif isinstance(step, Hold):
                assert flow.gate is not None
                await flow.gate.hold_task()
            self.look(flow.name)

    async def async_caught(self, call: Call, flow: _Flow) -> Outcome:
        if call.handling:
            try:
                raise Oops(f"handled by {flow.name}")
            except Oops:
                outcome, error = await _attempt(self.async_call(call, flow))
        else:
            outcome, error = await _attempt(self.async_call(call, flow))
        if error is not None and not _catches(call, error):
            raise error
        return outcome

    async def async_call(self, call: Call, flow: _Flow) -> str:
        inner = flow.into(call.piece)
        if call.by == "call":
            return self.sync_piece(call.piece, inner)
        if call.by == "await":
            return await self.async_piece(call.piece, inner)
        context = {"": None, "copy": contextvars.copy_context(), "empty": contextvars.Context()}[call.context]
        if call.by == "create_task":
            return await asyncio.create_task(self.async_piece(call.piece, inner), context=context)
        executor = {"": None, "default": None, "pool": self.main_thread.pool, "one": self.main_thread.one}[
            call.executor
        ]
        return await self.bridge(call.piece, flow, not call.executor, executor, context)

    async def bridge(
        self, piece: Piece, flow: _Flow, thread_sensitive: bool = True, executor: Any = None, context: Any = None
    ) -> str:
        bridged = _Bridged()
        inner = flow.into(piece, bridged)

        def function() -> str:
            try:
                return self.sync_piece(piece, inner)
            finally:
                if bridged.gate is not None:
                    bridged.gate.done.tell()

        try:
            return await sync_to_async(
                function, thread_sensitive=thread_sensitive, executor=executor, context=context
            )()
        finally:
            if bridged.gate is not None:
                bridged.gate.left.tell()

    async def block(self, block: Block, flow: _Flow) -> None:
        if block.manager.startswith("Async"):
            error = None
            with AsyncSingleThreadContext():
                self.look(flow.name)
                _, error = await _attempt(self.async_steps(block.steps, flow))
            if error is not None:
                raise error
            return
        async with ThreadSensitiveContext(executor=self.main_thread.one if "executor" in block.manager else None):
            self.look(flow.name)
            await self.async_steps(block.steps, flow)

    async def gather(self, gather: Gather, flow: _Flow) -> None:
        strands = [_Strand() for _ in gather.pieces]
        results = await asyncio.gather(
            *[
                self.async_piece(piece, _Flow(piece.name, strand, None, None))
                for piece, strand in zip(gather.pieces, strands, strict=True)
            ],
            return_exceptions=True,
        )
        for strand in strands:
            flow.strand.spawned += strand.spawned
        errors = [result for result in results if isinstance(result, BaseException)]
        self.note(
            flow.name,
            [_outcome(result) if isinstance(result, BaseException) else ("returned", result) for result in results],
        )
        if errors and gather.raises:
            raise errors[0]

    async def spawn(self, spawn: Spawn, flow: _Flow) -> None:
        gate = asyncio.Event()
        name = spawn.piece.name

        async def outliving() -> None:
            _, cancelled = await _attempt(gate.wait())
            self.note(name, "released" if cancelled is None else "cancelled")
            outcome, _ = await _attempt(self.async_piece(spawn.piece, _Flow(name, _Strand(), None, None)))
            self.note(name, outcome)
            if cancelled is not None:
                raise cancelled

        task = asyncio.create_task(outliving(), context=contextvars.Context() if spawn.context else None)
        flow.strand.spawned.append((asyncio.get_running_loop(), gate, task))
        await asyncio.sleep(0)  # a task that is cancelled before its first step never runs

    async def collect(self, flow: _Flow) -> None:
        here = asyncio.get_running_loop()
        mine = [(gate, task) for loop, gate, task in flow.strand.spawned if loop is here]
        flow.strand.spawned = [entry for entry in flow.strand.spawned if entry[0] is not here]
        for gate, _ in mine:
            gate.set()
        if mine:
            await asyncio.wait([task for _, task in mine])

    async def held(self, held: Held, flow: _Flow) -> None:
        gate = _Gate()
        self.gates.append(gate)
        context = contextvars.copy_context()
        apart = _Flow(flow.name, flow.strand, gate, None)

        async def main() -> Outcome:
            try:
                outcome = await self.async_caught(held.call, apart)
            except BaseException as error:
                outcome = _outcome(error)
            self.look(f"{held.call.piece.name}'s task")
            return outcome

        task = asyncio.create_task(main(), context=context)
        either: list[asyncio.Future[Any]] = [task, gate.reached.future]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        queued = None
        if gate.reached.future.done():
            if held.queued is not None:
                queued = asyncio.create_task(_attempt(self.bridge(held.queued, flow)))
                await asyncio.sleep(0)
                if held.queued_is_cancelled:
                    queued.cancel()
                    await asyncio.wait([queued])
            if held.meanwhile is not None:
                other = self.async_piece(held.meanwhile, _Flow(held.meanwhile.name, flow.strand, None, None))
                attempt = asyncio.create_task(_attempt(other), context=context if held.shared else None)
                self.note(flow.name, (await attempt)[0])
            if held.cancels:
                task.cancel()
            if not gate.in_coroutine:
                if held.cancels:
                    await gate.left.future
                gate.open()
                await gate.done.future
            elif not held.cancels:
                gate.open()
        self.note(flow.name, await task)
        if queued is not None:
            self.note(flow.name, (await queued)[0])


async def _attempt(awaitable: Awaitable[Any]) -> tuple[Outcome, BaseException | None]:
    try:
        return ("returned", await awaitable), None
    except BaseException as error:
        return _outcome(error), error


def _exception(step: Raise, flow: _Flow) -> BaseException:
    if step.kind == "Oops":
        return Oops(flow.name)
    return asyncio.CancelledError() if step.kind == "CancelledError" else StopIteration()


def _catches(call: Call, error: BaseException) -> bool:
    return call.catch == "BaseException" or (call.catch == "Oops" and isinstance(error, Oops))


def _outcome(error: BaseException) -> Outcome:
    if isinstance(error, Oops):
        return "Oops", str(error)
    if isinstance(error, RuntimeError):
        for detail, words in DETAILS.items():
            if words in str(error):
                return "RuntimeError", detail
    return type(error).__name__, "" if isinstance(error, (asyncio.CancelledError, StopIteration)) else str(error)


# What tells one RuntimeError from another.
DETAILS = {
    "StopIteration": "StopIteration",
    "await": "await the function itself there",
    "deadlock": "would deadlock",
    "ended": "after the end of the ThreadSensitiveContext",
}
