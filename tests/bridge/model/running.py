"""Running programs with the package under test, and recording what happens."""

from __future__ import annotations

import asyncio
import concurrent.futures.thread
import contextlib
import contextvars
import faulthandler
import functools
import queue
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

from asgiref import current_thread_executor, sync
from asgiref._bridge import limit, waits, workers
from asgiref.local import Local
from asgiref.sync import (
    AsyncSingleThreadContext,
    AsyncToSync,
    SyncToAsync,
    ThreadSensitiveContext,
    async_to_sync,
    async_to_sync_context_manager,
    async_to_sync_iterator,
    check_cancelled,
    release_thread,
    sync_to_async,
    sync_to_async_context_manager,
    sync_to_async_iterator,
)

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
from .reference import VARIABLES, Look, Outcome, Trace

__all__ = ["Hung", "MainThread"]

Loops = dict[str, Callable[[], asyncio.AbstractEventLoop]]

PLAIN = {name: contextvars.ContextVar[int | None](name, default=None) for name in ("var.x", "var.y")}


class Oops(Exception):
    """The exception that programs raise. Its text names the raising function."""


class Hung(Exception):
    """A program did not end; the text shows where its threads are."""


class MainThread:
    """The thread on which programs start, and shared objects: executors, and the time limit."""

    # Often, so that every wait has some checks.
    FIRST_CHECK, LAST_CHECK = 0.001, 0.004
    STANDSTILL = 0.02

    def __init__(self, loops: Loops, limit: float) -> None:
        self._before = _waits()
        # A standstill is resolved soon, and not logged.
        self._standstill, sync.thread_standstill = sync.thread_standstill, self.STANDSTILL
        waits.logger.disabled = True
        # Threads of a program that hangs remain there.
        self.blocked = set(AsyncToSync.loop_thread_executors)
        _set_waits(self.FIRST_CHECK, self.LAST_CHECK, 0, 0)
        self.loops, self.limit = loops, limit
        self.pool = concurrent.futures.ThreadPoolExecutor(64, "pool")
        self.one = concurrent.futures.ThreadPoolExecutor(1, "one")
        self.one.submit(int).result()  # now, because a later thread may get the number of one that has ended
        self.hung = False
        self._start_thread()

    def _start_thread(self) -> None:
        self._programs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=_serve, args=[self._programs], name="main of programs", daemon=True)
        self._thread.start()
        # Leased now, so that no program leases the worker that becomes the thread of the process.
        SyncToAsync.single_thread_executor.submit(int).result()

    def run(self, program: Piece) -> Trace:
        """Run *program*; if it does not end in time, raise ``Hung`` and start afresh."""
        patience = 2 * self.limit if program.patient else 0
        _set_waits(self.FIRST_CHECK, self.LAST_CHECK, patience, patience)
        ThreadSensitiveContext.max_threads = program.max_threads
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
            stacks = _stacks()
            self._abandon(run)
            raise Hung(f"the program did not end in {self.limit:.0f} s; all threads:\n{stacks}") from None
        if error is not None:
            raise error
        self._wait_for_threads()
        return run.trace

    def _wait_for_threads(self) -> None:
        """Raise ``AssertionError`` if a context keeps its thread, or its place in the queue, after its end."""
        deadline = time.monotonic() + self.limit
        while limit._leases or limit._queue:
            assert time.monotonic() < deadline, f"left behind: {limit._leases}, {limit._queue}"
            time.sleep(0.0001)

    def _abandon(self, run: _Run) -> None:
        run.open_gates()
        self.hung = True
        self.limit = min(self.limit, 1.0)  # the same again, probably, while a smaller program is searched for
        workers._idle.clear()  # a waiting one may be among them, after a fault
        limit._leases.clear()
        limit._queue.clear()
        SyncToAsync.single_thread_executor = type(SyncToAsync.single_thread_executor)()
        self.one = concurrent.futures.ThreadPoolExecutor(1, "one")
        self._programs.put(None)
        self._start_thread()

    def close(self) -> None:
        _set_waits(*self._before)
        sync.thread_standstill, waits.logger.disabled = self._standstill, False
        ThreadSensitiveContext.max_threads = None
        self._programs.put(None)
        self._thread.join()
        self.pool.shutdown(wait=not self.hung)
        self.one.shutdown(wait=not self.hung)
        if self.hung:
            # The interpreter must not wait for threads that wait forever.
            concurrent.futures.thread._threads_queues.clear()  # type: ignore[attr-defined]
            workers._workers.clear()


def _waits() -> tuple[float, ...]:
    mailbox = current_thread_executor
    return mailbox.FIRST_CHECK, mailbox.LAST_CHECK, sync.stopped_loop_patience, sync.stopped_loop_start_patience


def _set_waits(first_check: float, last_check: float, patience: float, start_patience: float) -> None:
    current_thread_executor.FIRST_CHECK, current_thread_executor.LAST_CHECK = first_check, last_check
    sync.stopped_loop_patience, sync.stopped_loop_start_patience = patience, start_patience


def _stacks() -> str:
    with tempfile.TemporaryFile("w+") as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read()


def _serve(programs: queue.SimpleQueue[Callable[[], None] | None]) -> None:
    while (program := programs.get()) is not None:
        program()
        del program


class _Signal:
    """An event that a task of one loop waits for, and that any thread may set."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[None] = self.loop.create_future()

    def tell(self) -> None:
        self.loop.call_soon_threadsafe(self._set)

    def _set(self) -> None:
        if not self.future.done():
            self.future.set_result(None)


class _Gate:
    """The wait of a ``Hold``, and the notification of its caller."""

    def __init__(self) -> None:
        self.reached = _Signal()
        # The sync_to_async call of the held function has ended for the caller, and on the thread.
        self.left, self.done = _Signal(), _Signal()
        self.opened = threading.Event()
        self.in_coroutine = False
        # Whether the call is cancelled while it is held.
        self.cancels = False
        # The innermost sync_to_async call around the held coroutine.
        self.bridged: _Bridged | None = None
        self._awaiting: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None
        # Whether the cancelled coroutine reports that, and cleans up until it is released.
        self.cleans_up = False
        self.cleaning = _Signal()

    def hold_thread(self) -> None:
        self.reached.tell()
        self.opened.wait()

    async def hold_task(self) -> None:
        self.in_coroutine = True
        event = asyncio.Event()
        self._awaiting = asyncio.get_running_loop(), event
        self.reached.tell()
        try:
            await event.wait()
        except asyncio.CancelledError:
            if self.cleans_up:
                self.cleaning.tell()
                await event.wait()  # a second cancellation would interrupt it, and so be noticed in time
                self.cleans_up = False
            raise

    def open(self) -> None:
        self.opened.set()
        if self._awaiting is not None:
            loop, event = self._awaiting
            loop.call_soon_threadsafe(event.set)


class _Leaving:
    """A loop that stops or closes when the ``Leave`` below is reached."""

    def __init__(self, loop: asyncio.AbstractEventLoop, how: str) -> None:
        self.loop, self.how = loop, how
        self.task: asyncio.Task[Any] | None = None
        self.reached = False
        # The bridged functions that run.
        self._functions: list[None] = []
        self._functions_ended = threading.Event()
        self.left = threading.Event()
        self._left: _Signal | None = None
        # The thread with whose next coroutine the loop stops or closes.
        self._thread: int | None = None
        self._held, self._handed_over = threading.Event(), threading.Event()

    def reach_in_thread(self, late: str) -> None:
        self.reached = True
        if late == "" or self.how not in ("closed", "stopped"):
            self._begin_to_leave()
            self.left.wait()
        elif late == "looked at":
            self._thread = threading.get_ident()
            self.loop.is_running = functools.partial(self._is_running, self.loop.is_running)  # type: ignore[method-assign]
        else:
            self.loop.call_soon_threadsafe(self._hold_and_stop)
            self._held.wait()
            self._thread = threading.get_ident()
            self.loop.call_soon_threadsafe = functools.partial(  # type: ignore[method-assign, assignment]
                self._call_soon_threadsafe, self.loop.call_soon_threadsafe
            )

    async def reach_in_coroutine(self) -> None:
        self.reached = True
        self._left = _Signal()
        self._begin_to_leave()
        await self._left.future

    def _begin_to_leave(self) -> None:
        assert self.task is not None
        self.loop.call_soon_threadsafe(self.task.cancel if self.how == "cancelled" else self.loop.stop)

    def _is_running(self, is_running: Callable[[], bool]) -> bool:
        if self._thread != threading.get_ident():
            return is_running()
        self._leave_late()
        return True

    def _leave_late(self) -> None:
        self._thread = None
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.left.wait()

    def _hold_and_stop(self) -> None:
        self._held.set()
        self._handed_over.wait()
        self.loop.stop()  # after this iteration, which does not run posted callbacks

    def _call_soon_threadsafe(self, call_soon_threadsafe: Any, *arguments: Any, **options: Any) -> Any:
        handle = call_soon_threadsafe(*arguments, **options)
        if self._thread == threading.get_ident():
            self._thread = None
            self._handed_over.set()
        return handle

    def function_begins(self) -> None:
        self._functions.append(None)

    def function_ended(self) -> None:
        if self._thread == threading.get_ident():  # without another coroutine
            self._leave_late() if not self._held.is_set() else self._handed_over.set()
        self._functions.pop()
        if not self._functions:
            self._functions_ended.set()

    def give_up(self) -> None:
        self.left.set()
        self._handed_over.set()
        self._functions.clear()
        self._functions_ended.set()

    # On the thread of the loop:

    def tell(self) -> None:
        """Let the code continue that has reached the ``Leave``."""
        self.left.set()
        if self._left is not None and not self._left.loop.is_closed():
            self._left.tell()

    def wait_for_functions(self) -> None:
        while self._functions:
            self._functions_ended.clear()
            if self._functions:
                self._functions_ended.wait()


def _run_until_stopped(loop: asyncio.AbstractEventLoop, task: asyncio.Task[Any]) -> None:
    with contextlib.suppress(BaseException):  # the task has it
        loop.run_until_complete(task)


def _run_leaving(leaving: _Leaving, task: asyncio.Task[Any], strand: _Strand) -> None:
    """Run *task* on a loop that stops or closes; see ``programs.Call.leaves``."""
    loop, leaving.task = leaving.loop, task
    _run_until_stopped(loop, task)
    tasks = asyncio.all_tasks(loop)
    if not task.done() and leaving.how in ("paused", "stopped"):
        if leaving.how == "paused":
            leaving.tell()  # code that continues meanwhile may call a stopped loop
            time.sleep(2 * MainThread.LAST_CHECK)  # so that all threads see it
        else:
            leaving.tell()
            leaving.wait_for_functions()
        _run_until_stopped(loop, task)
        # Code that nothing waits for ends by itself, before spawned tasks are cancelled.
        left_behind = tasks - {spawned for _, _, spawned in strand.spawned}
        if left_behind:
            loop.run_until_complete(asyncio.wait(left_behind))
    elif not task.done() or (leaving.how == "cancelled" and leaving.reached):
        loop.close()
        leaving.tell()
        leaving.wait_for_functions()
        for unfinished in tasks:
            unfinished._log_destroy_pending = False  # type: ignore[attr-defined]
            coroutine: Any = unfinished.get_coro()
            contextvars.Context().run(coroutine.close)
        return
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.get_loop()


class _Bridged:
    """One sync_to_async call."""

    gate: _Gate | None = None

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()


class _Strand:
    """Spawned tasks that were not collected, in a sequence of events."""

    def __init__(self) -> None:
        self.spawned: list[tuple[asyncio.AbstractEventLoop, asyncio.Event, asyncio.Task[None]]] = []
        self.tokens: list[contextvars.Token[int | None]] = []


class _Flow:
    """The arguments of every function."""

    def __init__(
        self,
        name: str,
        strand: _Strand,
        gate: _Gate | None = None,
        bridged: _Bridged | None = None,
        leaving: _Leaving | None = None,
    ) -> None:
        self.name, self.strand, self.gate, self.bridged, self.leaving = name, strand, gate, bridged, leaving

    def into(self, piece: Piece, bridged: _Bridged | None = None, leaving: _Leaving | None = None) -> _Flow:
        return _Flow(piece.name, self.strand, self.gate, bridged or self.bridged, leaving or self.leaving)


class _Run:
    def __init__(self, main: MainThread) -> None:
        self.main_thread = main
        self.trace: Trace = {}
        self.local, self.critical = Local(), Local(thread_critical=True)
        self.kept_context = contextvars.Context()
        self.gates: list[_Gate] = []
        self.leaving: list[_Leaving] = []
        # The log messages of the stopped or closed loops.
        self.complaints: list[dict[str, Any]] = []

    def main(self, program: Piece) -> None:
        flow = _Flow(program.name, _Strand())
        try:
            outcome = "returned", self.sync_piece(program, flow)
        except BaseException as error:
            outcome = _outcome(error)
        self.note(program.name, outcome)
        assert self.main_thread.hung or self.main_thread.blocked == AsyncToSync.loop_thread_executors.keys()
        assert [] == self.complaints, self.complaints

    def open_gates(self) -> None:
        for gate in self.gates:
            gate.opened.set()
        for leaving in self.leaving:
            leaving.give_up()

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

    def simple_step(self, step: Any, flow: _Flow) -> None:
        if isinstance(step, Raise):
            raise _exception(step, flow)
        if isinstance(step, Write) and step.keeps_token:
            flow.strand.tokens.append(PLAIN[step.variable].set(step.value))
        elif isinstance(step, Write):
            self.write(step.variable, step.value)
        elif isinstance(step, Reset) and flow.strand.tokens:
            token = flow.strand.tokens.pop()
            try:
                token.var.reset(token)
            except ValueError:
                self.note(flow.name, ("reset", "not valid here"))
            else:
                self.note(flow.name, ("reset", "done"))
        elif isinstance(step, Ask):
            try:
                check_cancelled()
            except asyncio.CancelledError:
                self.note(flow.name, ("asked", "cancelled"))
            else:
                self.note(flow.name, ("asked", "not cancelled"))

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
            if isinstance(step, Raise | Write | Reset | Ask):
                self.simple_step(step, flow)
            elif isinstance(step, Call):
                self.note(flow.name, self.sync_caught(step, flow))
            elif isinstance(step, Block):
                error = None
                with AsyncSingleThreadContext():
                    self.look(flow.name)
                    try:
                        self.sync_steps(step.steps, flow)
                    except BaseException as caught:
                        error = caught  # so that no exception is being handled at the end of the block
                if error is not None:
                    raise error
            elif isinstance(step, With):
                with async_to_sync_context_manager(_AsyncManager(self, step, flow)):
                    self.look(flow.name)
                    self.sync_steps(step.steps, flow)
            elif isinstance(step, Iterate):
                self.iterate_in_thread(step, flow)
            elif isinstance(step, Hold):
                assert flow.gate is not None
                assert flow.bridged is not None
                flow.bridged.gate = flow.gate
                flow.gate.hold_thread()
            elif isinstance(step, Leave):
                assert flow.leaving is not None
                assert flow.bridged is not None
                flow.leaving.reach_in_thread(step.late if flow.bridged.loop is flow.leaving.loop else "")
            self.look(flow.name)

    def iterate_in_thread(self, step: Iterate, flow: _Flow) -> None:
        async def generator() -> AsyncIterator[str]:
            try:
                for item in step.items:
                    yield await self.async_piece(item.piece, flow.into(item.piece))
            finally:
                await self.async_piece(step.end, flow.into(step.end))

        items = async_to_sync_iterator(generator, read_ahead=step.read_ahead)()
        error, ended = None, False
        for number in range(step.takes):
            outcome, error = _attempt_here(functools.partial(next, items))
            if isinstance(error, StopIteration):  # the end: that of the generator itself would be a RuntimeError
                outcome, error = ("StopAsyncIteration", ""), None
                ended = True
            self.note(flow.name, outcome)
            if ended or error is not None:
                break
            self.look(flow.name)
            _, error = _attempt_here(functools.partial(self.sync_steps, step.items[number].steps, flow))
            if error is not None:
                break
        items.close()
        if error is not None:
            raise error

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
        if call.by == "run" and call.leaves:
            leaving = _Leaving(self.main_thread.loops[call.loop](), call.leaves)
            leaving.loop.set_exception_handler(lambda _, complaint: self.complaints.append(complaint))
            self.leaving.append(leaving)
            inner = flow.into(call.piece, leaving=leaving)
            task = leaving.loop.create_task(self.async_piece(call.piece, inner), context=contextvars.copy_context())
            _run_leaving(leaving, task, flow.strand)
            if not task.done():
                raise RuntimeError("never ended")
            return task.result()
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
            if isinstance(step, Raise | Write | Reset | Ask):
                self.simple_step(step, flow)
            elif isinstance(step, Call):
                self.note(flow.name, await self.async_caught(step, flow))
            elif isinstance(step, Block):
                await self.block(step, flow)
            elif isinstance(step, With):
                await self.with_(step, flow)
            elif isinstance(step, Iterate):
                await self.iterate(step, flow)
            elif isinstance(step, Gather):
                await self.gather(step, flow)
            elif isinstance(step, Spawn):
                await self.spawn(step, flow)
            elif isinstance(step, Release):
                await release_thread()
            elif isinstance(step, Collect):
                await self.collect(flow)
            elif isinstance(step, Held):
                await self.held(step, flow)
            elif isinstance(step, Hold):
                assert flow.gate is not None
                flow.gate.bridged = flow.bridged
                await flow.gate.hold_task()
            elif isinstance(step, Leave):
                assert flow.leaving is not None
                await flow.leaving.reach_in_coroutine()
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
        context = {
            "": None,
            "copy": contextvars.copy_context(),
            "empty": contextvars.Context(),
            "kept": self.kept_context,
        }[call.context]
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
            if inner.leaving is not None:
                inner.leaving.function_begins()
            try:
                return self.sync_piece(piece, inner)
            finally:
                if inner.leaving is not None:
                    inner.leaving.function_ended()
                if bridged.gate is not None:
                    bridged.gate.done.tell()

        try:
            return await sync_to_async(
                function, thread_sensitive=thread_sensitive, executor=executor, context=context
            )()
        finally:
            if bridged.gate is not None:
                bridged.gate.left.tell()

    async def with_(self, step: With, flow: _Flow) -> None:
        manager = _Manager(self, step, flow)
        bridged = sync_to_async_context_manager(manager, **self.options(step.executor))
        async with _Told(bridged, manager.bridged):
            self.look(flow.name)
            await self.async_steps(step.steps, flow)

    async def iterate(self, step: Iterate, flow: _Flow) -> None:
        bridged = _Bridged()

        def generator() -> Iterator[str]:
            try:
                for item in step.items:
                    yield self.sync_piece(item.piece, flow.into(item.piece, bridged))
                    if bridged.gate is not None and not bridged.gate.cancels:
                        bridged.gate.done.tell()
            finally:
                try:
                    self.sync_piece(step.end, flow.into(step.end, bridged))
                finally:
                    if bridged.gate is not None:
                        bridged.gate.done.tell()

        options = self.options(step.executor)
        items = sync_to_async_iterator(generator, **options, read_ahead=step.read_ahead)()
        error = None
        for number in range(step.takes):
            outcome, error = await _attempt(anext(items))
            if bridged.gate is not None:
                bridged.gate.left.tell()
            self.note(flow.name, outcome)
            if error is not None:
                break
            self.look(flow.name)
            _, error = await _attempt(self.async_steps(step.items[number].steps, flow))
            if error is not None:
                break
        try:
            await items.aclose()
        finally:
            if bridged.gate is not None:
                bridged.gate.left.tell()
        if error is not None and not isinstance(error, StopAsyncIteration):
            raise error

    def options(self, executor: str) -> Any:
        if not executor:
            return {}
        return {"thread_sensitive": False, "executor": self.main_thread.one if executor == "one" else None}

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
                self.async_piece(piece, _Flow(piece.name, strand))
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
            outcome, _ = await _attempt(self.async_piece(spawn.piece, _Flow(name, _Strand())))
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
        apart = _Flow(flow.name, flow.strand, gate, flow.bridged, flow.leaving)

        async def main() -> Outcome:
            try:
                outcome = await self.async_caught(held.call, apart)
            except GeneratorExit:
                raise
            except BaseException as error:
                outcome = _outcome(error)
            self.look(f"{held.call.piece.name}'s task")
            return outcome

        task = asyncio.create_task(main(), context=context)
        either: list[asyncio.Future[Any]] = [task, gate.reached.future]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        queued = None
        own = _Strand()  # for queued code: it may run concurrently with the rest of a cancelled task
        if gate.reached.future.done():
            if held.queued is not None:
                queued = asyncio.create_task(
                    _attempt(self.bridge(held.queued, _Flow(flow.name, own, leaving=flow.leaving)))
                )
                await asyncio.sleep(0)
                if held.queued_is_cancelled:
                    queued.cancel()
                    await asyncio.wait([queued])
            if held.meanwhile is not None:
                other = self.async_piece(held.meanwhile, _Flow(held.meanwhile.name, flow.strand))
                attempt = asyncio.create_task(_attempt(other), context=context if held.shared else None)
                self.note(flow.name, (await attempt)[0])
            if held.cancels:
                gate.cancels = True
                # Without a bridged call in between, the other cancellations would go to the coroutine, too.
                again = held.cancels_again if gate.in_coroutine and gate.bridged is not flow.bridged else 0
                gate.cleans_up = bool(again)
                task.cancel()
                if again:
                    await gate.cleaning.future
                    for _ in range(again):
                        task.cancel()
                        await asyncio.sleep(0)
                        await asyncio.sleep(0)
                    gate.open()
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
            flow.strand.spawned += own.spawned


class _Manager:
    """The context manager of a ``With``."""

    def __init__(self, run: _Run, step: With, flow: _Flow) -> None:
        self._run, self._step, self._flow, self.bridged = run, step, flow, _Bridged()

    def __enter__(self) -> None:
        entered = False
        try:
            self._run.sync_piece(self._step.enter, self._flow.into(self._step.enter, self.bridged))
            entered = True
        finally:
            # If it was cancelled, __exit__ follows.
            if self.bridged.gate is not None and not (entered and self.bridged.gate.cancels):
                self.bridged.gate.done.tell()

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> bool:
        try:
            self._run.sync_piece(self._step.exit, self._flow.into(self._step.exit, self.bridged))
        finally:
            if self.bridged.gate is not None:
                self.bridged.gate.done.tell()
        return self._step.suppresses and isinstance(error, Exception)


class _Told:
    """A bridged manager that notifies the code that holds one of its steps when nothing waits for that any more."""

    def __init__(self, manager: Any, bridged: _Bridged) -> None:
        self._manager, self._bridged = manager, bridged

    async def __aenter__(self) -> None:
        try:
            await self._manager.__aenter__()
        finally:
            if self._bridged.gate is not None:
                self._bridged.gate.left.tell()

    async def __aexit__(self, *reason: Any) -> Any:
        try:
            return await self._manager.__aexit__(*reason)
        finally:
            if self._bridged.gate is not None:
                self._bridged.gate.left.tell()


class _AsyncManager:
    """The same for synchronous steps."""

    def __init__(self, run: _Run, step: With, flow: _Flow) -> None:
        self._run, self._step, self._flow = run, step, flow

    async def __aenter__(self) -> None:
        await self._run.async_piece(self._step.enter, self._flow.into(self._step.enter))

    async def __aexit__(self, kind: Any, error: BaseException | None, traceback: Any) -> bool:
        await self._run.async_piece(self._step.exit, self._flow.into(self._step.exit))
        return self._step.suppresses and isinstance(error, Exception)


def _attempt_here(function: Callable[[], Any]) -> tuple[Outcome, BaseException | None]:
    try:
        return ("returned", function()), None
    except BaseException as error:
        return _outcome(error), error


async def _attempt(awaitable: Awaitable[Any]) -> tuple[Outcome, BaseException | None]:
    try:
        return ("returned", await awaitable), None
    except GeneratorExit:  # its loop is closed, and no trace must remain
        raise
    except BaseException as error:
        return _outcome(error), error


def _exception(step: Raise, flow: _Flow) -> BaseException:
    if step.kind == "Oops":
        return Oops(flow.name)
    kinds: dict[str, type[BaseException]] = {
        "CancelledError": asyncio.CancelledError,
        "StopIteration": StopIteration,
        "SystemExit": SystemExit,
        "KeyboardInterrupt": KeyboardInterrupt,
    }
    return kinds[step.kind]()


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


# The parts that distinguish one RuntimeError from another.
DETAILS = {
    "StopIteration": "StopIteration",
    "await": "in a thread that runs an event loop",
    "deadlock": "would deadlock",
    "ended": "after the end of the ThreadSensitiveContext",
    "left": "was stopped or closed while it ran it",
    "never ended": "never ended",
    "entered": "is already entered",
}
