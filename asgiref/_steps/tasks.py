"""One task of one loop for several calls of a thread, and work there that no thread waits for.

An iteration or a block is *open* from its first step until its task has ended. The task waits between the steps. A step
is a callback on the loop, which tells the task what to await. So a step, the end that a finalizer requests, and a
cancellation of the task never run concurrently: all of them run on the thread of the loop.

A finalizer runs at any moment, on any thread, which may hold any lock. So it only leaves the mailbox and calls
``call_soon_threadsafe``: neither takes a lock that other code waits for.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import sys
import threading
from typing import TYPE_CHECKING, Any

from .. import local
from .._bridge import forks, greenlets, lending, loops, register, workers
from .._bridge.internals import callbacks_of, make_first_step, running_loop
from .._bridge.jobs import AwaitedOutcome, LoopCall
from .._bridge.patience import Patience
from ..current_thread_executor import CurrentThreadExecutor
from ..sync import AsyncSingleThreadContext, AsyncToSync, SyncToAsync
from .threads import _apply, _is_same, _open, post_elsewhere

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from .. import sync

__all__ = ["OneTask", "TaskEnded", "refuse_on_loop"]


# How many pieces of work a task does in a row between two steps, before other tasks of the loop run. A guess: an
# iteration of the loop costs as much as a few items.
MOST_WORKS_IN_A_ROW = 64


class TaskEnded(RuntimeError):
    """A step came too late: the task has ended meanwhile."""


def refuse_on_loop(name: str) -> None:
    """Raise ``RuntimeError`` in a thread that runs an event loop."""
    running = running_loop()
    if running is not None and not greenlets.runs_in_another(running):
        raise RuntimeError(
            f"{name} cannot be used through async_to_sync in a thread that runs an event loop, which it would block; "
            "use it with `async for` or `async with` there"
        )


class OneTask(AsyncToSync[Any, Any]):
    """An ``async_to_sync`` whose calls are all awaited in one task.

    Subclasses define the work between the steps, and the end.

    Args:
        name: For errors and ``bridge_calls``.
    """

    def __init__(self, name: str) -> None:
        # Not super().__init__(), which needs a function for the metadata.
        self.awaitable = self.__wrapped__ = None  # type: ignore[assignment]
        self.__qualname__ = name
        self.force_new_loop = False
        self._generation = forks.generation
        # Set by the loop with the first step.
        self.loop: asyncio.AbstractEventLoop | None = None
        self.task: asyncio.Task[None] | None = None
        # The loop of a block, if it is one; and the block, unless it is one of the user.
        self._kept: Any = None
        self._block: AsyncSingleThreadContext | None = None
        # It is open from the first step to the last: jobs between two steps wait for the second one.
        self._mailbox: Any = None
        # Whether the task does not have it in its context yet.
        self._mailbox_is_new = True
        # The context of the task, and that of the consumer at the end of the last step.
        self._context: contextvars.Context
        self._seen: contextvars.Context
        # Tokens of variables that were not set before: removing such a variable needs its token.
        self._tokens_here: dict[Any, contextvars.Token[Any]] = {}
        self._tokens_there: dict[Any, contextvars.Token[Any]] = {}
        # On the loop: the step that the task must make, and the future that it waits for if there is none.
        self._current: _Step | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._works = False
        # Whether the task makes no more steps; whether no further one will be requested; whether everything has ended.
        self.over = self.given_up = self.finished = False

    # For subclasses, all of it on the loop:

    def wants_to_work(self) -> bool:
        """Whether ``work()`` has something to do while no step is requested."""
        return False

    async def work(self) -> None:
        """Do a piece of it; raise nothing. It is cancelled if a step hurries."""

    async def interrupted(self, error: asyncio.CancelledError) -> None:
        """Handle a cancellation between two steps; raise nothing."""
        raise NotImplementedError

    async def end(self) -> None:
        """End the iteration or block when nothing waits for it any more."""
        raise NotImplementedError

    @property
    def is_hurried(self) -> bool:
        """Whether ``work()`` was cancelled for the next step or the end."""
        return self.given_up or (self._current is not None and self._current.hurries)

    # On the thread of the consumer:

    @register.noted
    def step(self, function: Callable[[], Awaitable[Any]], hurries: bool = False) -> Any:
        """Let the task await ``function()``, with the current context variables; changes come back.

        Raises:
            TaskEnded: if the task has ended meanwhile.
            RuntimeError: if the loop was stopped or closed, and in a forked child.
            BaseException: what *function* raises.
        """
        __traceback_hide__ = True
        end = register.here().ending() if register.KEPT else None
        inner_calls = SyncToAsync.threadlocal.__dict__.get("task_context")
        if inner_calls is None:
            forks.notice()
        if self.task is None:
            self._generation, self.finished = forks.generation, False
        elif self._generation is not forks.generation:
            raise RuntimeError(
                f"{self.__qualname__} was begun before this process was forked, and its event loop stayed in the "
                "parent; begin and end it in the same process"
            )
        if local.THREADS_INHERIT:
            local.prepare_hand_over()
        here = contextvars.copy_context()
        mailbox = self._take_mailbox(inner_calls)
        outcome: AwaitedOutcome[Any] = AwaitedOutcome(mailbox.stop)
        step = _Step(self, function, outcome, hurries, sys.exc_info(), inner_calls)
        contexts = step.contexts
        if self.task is None:
            self._context = here.copy()
            _open.add(self)
        elif not _is_same(self._seen, here):
            step.changes = self._seen.copy(), here.copy()
        try:
            if end is not None:
                register.here().enter("asgiref._steps.tasks.OneTask.step", self=self, outcome=outcome, mailbox=mailbox)
            self._run_step(step, outcome, mailbox, inner_calls)
        finally:
            del step
            if end is not None:
                end()
            if contexts[0] is not None:
                self._seen = here
                if not _is_same(contexts[1], contexts[0]):
                    self.bring_back(contexts[1], contexts[0])
            if self.task is not None and not outcome.settled:  # a second interrupt, which waits for nothing
                self.end_unawaited()
            elif self.task is None or self.over or self.task.done():
                try:
                    self.finish()
                except Exception as error:  # from ending the loop; asyncio.run would raise it
                    outcome.set_exception(error)
        return outcome.take()

    def _take_mailbox(self, inner_calls: Any) -> _Mailbox:
        """Return the mailbox, which this thread serves from now on."""
        if self.task is None or not self._mailbox.serving:
            self._mailbox = _Mailbox(local.peek(self.executors, "current"))
            self._mailbox_is_new = True
        mailbox: _Mailbox = self._mailbox
        mailbox.owner = threading.get_ident()
        mailbox.resume()
        if inner_calls is not None:
            lending.note_executor(mailbox, inner_calls)
        return mailbox

    def _run_step(
        self, step: _Step, outcome: AwaitedOutcome[Any], mailbox: CurrentThreadExecutor, inner_calls: Any
    ) -> None:
        __traceback_hide__ = True
        home: Any = self._home_loop() if self.task is None else self.loop if self._kept is None else None
        outcome.call = step
        if inner_calls is not None:
            inner_calls.append(outcome)
        try:
            while True:
                self._hand_over_and_serve(step, home, outcome, mailbox)
                if outcome.settled:
                    return
                if self.task is not None:
                    outcome.set_exception(self._has_left())
                    return
                # That loop stopped before it started the task, so another one is used.
                home = None
                outcome.call = step = step.again()
                if outcome.cancelled:
                    outcome.set_exception(asyncio.CancelledError())
                    return
        finally:
            outcome.call = None
            if inner_calls is not None:
                inner_calls.remove(outcome)

    def _serve(
        self, mailbox: CurrentThreadExecutor, check: Callable[[], bool] | None, outcome: AwaitedOutcome[Any]
    ) -> None:
        __traceback_hide__ = True
        while not outcome.settled:
            mailbox.serve(check)
            # It may have been stopped for an earlier step, by a cancellation after whose outcome this thread continued.
            if outcome.settled or check is None or check():
                return
            mailbox.resume()  # type: ignore[attr-defined]

    def _circumstances(self) -> tuple[Patience, threading.Thread | None]:
        patience, thread = super()._circumstances()
        # Later steps cannot run on another loop.
        return (Patience(patience.begun, patience.begun) if self.task is not None else patience), thread

    def _give_to_own_loop(
        self, call: LoopCall, outcome: AwaitedOutcome[Any], mailbox: CurrentThreadExecutor
    ) -> loops.KeptLoop | None:
        if self.task is not None:
            if self._kept is None or not self._kept.post(call, mailbox):
                outcome.set_exception(self._has_left())
                return None
        else:
            self._kept = self._begin_on_own_loop(call, mailbox)
        if isinstance(self._kept, loops.KeptLoop):
            return self._kept
        return None

    def _begin_on_own_loop(self, call: LoopCall, mailbox: CurrentThreadExecutor) -> Any:
        block = self.async_single_thread_context.get(None)
        kept: Any = None if block is None else block.post(call, mailbox, unless_on=None)
        if kept is None:
            # Entered in a separate context, because other calls here must not run on its loop.
            block = AsyncSingleThreadContext()
            contextvars.Context().run(block.__enter__)
            self._block = block
            kept = block.post(call, mailbox, unless_on=None)
        if kept is None:
            kept = _LoopHere()
            kept.post(call, mailbox)
        return kept

    def _has_left(self) -> RuntimeError:
        return RuntimeError(
            f"{self.__qualname__} cannot continue: the event loop of its first step, {self.loop!r}, was stopped or "
            "closed; use and close it while that loop runs"
        )

    def bring_back(self, before: contextvars.Context, after: contextvars.Context) -> None:
        """Apply the changes from *before* to *after*, two different contexts of the task, to the current context."""
        _put_mailbox_into(local.peek(self.executors, "current"), before, after)
        _apply(before, after, self._tokens_here)
        self._seen = contextvars.copy_context()

    def finish(self) -> None:
        """End everything that exists only for the steps; wait for the end of the loop, if it is one of these."""
        if self.finished or self.given_up:
            return
        self.finished = True
        _open.discard(self)
        if self._mailbox is not None:
            self._mailbox.close()
        kept, block = self._kept, self._block
        self._block = None
        if isinstance(kept, _LoopHere):
            kept.end()
        if block is not None:
            block.__exit__(None, None, None)

    def end_unawaited(self) -> None:
        """Let the task end the iteration or block, without waiting. Errors go to the loop's exception handler.

        On any thread, also in a finalizer.
        """
        if self.finished:
            return
        loop = self.loop
        if loop is None or self._generation is not forks.generation:
            # Nothing was started, or the parent process has started it.
            return
        self.given_up = True
        self._mailbox.leave()
        try:
            loop.call_soon_threadsafe(self._give_up, context=contextvars.Context())
        except RuntimeError:  # it is closed
            _open.discard(self)

    def wake(self) -> None:
        """Let the task check again what to do. On any thread."""
        loop: Any = self.loop
        with contextlib.suppress(RuntimeError):  # it is closed
            loop.call_soon_threadsafe(self._wake, context=contextvars.Context())

    # On the loop:

    def accept(self, step: _Step, loop: asyncio.AbstractEventLoop) -> asyncio.Task[None] | None:
        """Let the task make *step*; start the task with the first one."""
        task = self.task
        if task is None:
            self._begin(step, loop)
        elif self.over or task.done():
            step.outcome.set_exception(
                TaskEnded(f"{self.__qualname__} cannot continue: its task, {task!r}, has ended between two steps")
            )
        else:
            self._current = step
            if step.hurries and self._works:
                task.cancel()
            else:
                self._wake()
        return self.task

    def _begin(self, step: _Step, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._current = step
        context = self._context
        if local.THREADS_INHERIT:
            local.arrive(context)
        coroutine = self._make_steps()
        try:
            # Not create_task(context=...): task factories of older frameworks do not accept it.
            self.task = context.run(loop.create_task, coroutine)
        except BaseException as error:  # from a task factory
            coroutine.close()
            self.loop = self.task = self._current = None
            step.outcome.set_exception(error)
        else:
            make_first_step(self.task, loop)

    def is_making(self, step: _Step) -> bool:
        return self._current is step

    def _wake(self) -> None:
        """Resume the task directly; the future would resume it in the next event loop iteration."""
        waiter = self._waiter
        if waiter is None or waiter.done():
            return
        callbacks = callbacks_of(waiter)
        if not callbacks or waiter.get_loop().get_debug():
            waiter.set_result(None)  # in debug mode, the loop must resume it, to log slow tasks
            return
        callback, context = callbacks[0]
        waiter.remove_done_callback(callback)
        waiter.set_result(None)
        context.run(callback, waiter)

    def _give_up(self) -> None:
        task: Any = self.task
        if not task.done():
            # Even during a step, which an interrupt of the thread has cancelled before.
            if self._works or self._current is not None:
                task.cancel()
            else:
                self._wake()
        task.add_done_callback(self._leave, context=contextvars.Context())

    def _leave(self, task: asyncio.Task[None]) -> None:
        _open.discard(self)
        block, self._block = self._block, None
        if block is not None:
            block.__exit__(None, None, None)

    # In the task:

    async def _make_steps(self) -> None:
        # An eager task may end the first step, and continue, while create_task() has not returned. The thread looks at
        # the task then, and treats an iteration without a task as ended.
        self.task = asyncio.current_task()
        works_in_a_row = 0
        while True:
            if self._current is not None:
                await self._make(self._current)
            elif self.given_up:
                await self._end_unheard()
                return
            elif self.over:
                return
            elif works_in_a_row < MOST_WORKS_IN_A_ROW and self.wants_to_work():
                works_in_a_row += 1
                self._works = True
                await self.work()
                self._works = False
            else:
                if works_in_a_row == MOST_WORKS_IN_A_ROW:
                    # The work may never wait for anything, and the loop has other tasks.
                    asyncio.get_running_loop().call_soon(self._wake, context=contextvars.Context())
                works_in_a_row = 0
                await self._wait()

    async def _make(self, step: _Step) -> None:
        if step.changes is not None:
            before, after = step.changes
            _put_mailbox_into(None, before, after)
            _apply(before, after, self._tokens_there)
        if self._mailbox_is_new:
            self._mailbox_is_new = False
            self.executors.current = self._mailbox
        outcome, contexts = step.outcome, step.contexts
        contexts[0] = contexts[1] = contextvars.copy_context()
        await self.main_wrap(outcome, step.exc_info, step.inner_calls, contexts, step.function())
        self._current = None
        if not outcome.settled:
            outcome.set_exception(RuntimeError(loops.BAD_MAIN_WRAP))

    async def _wait(self) -> None:
        loop: Any = self.loop
        waiter = self._waiter = loop.create_future()
        try:
            await waiter
        except asyncio.CancelledError as error:
            self._waiter = None
            if self._current is None:
                # It is unknown whether any thread will serve the mailbox again.
                self._mailbox.leave()
            await self.interrupted(error)
        finally:
            self._waiter = None

    async def _end_unheard(self) -> None:
        self.over = True
        try:
            await self.end()
        except asyncio.CancelledError:
            pass
        except BaseException as error:
            loop: Any = self.loop
            message = f"{self.__qualname__} raised an error when it was closed, and no call was waiting for its end"
            loop.call_exception_handler({"message": message, "exception": error})


class _Step(LoopCall):
    """One step that is passed to the loop; its function replaces the coroutine of a call."""

    # The consumer's context at the end of the last step, and now, if they differ.
    changes: tuple[contextvars.Context, contextvars.Context] | None = None

    asked = _loop = _task = None

    def __init__(
        self,
        of: OneTask,
        function: Callable[[], Awaitable[Any]],
        outcome: AwaitedOutcome[Any],
        hurries: bool,
        exc_info: sync.ExcInfo,
        inner_calls: Any,
    ) -> None:
        # Not super().__init__(): a step must not cost more than a call.
        self._coroutine = self.function = function  # type: ignore[assignment]
        self._outcome = self.outcome = outcome
        self._of = of
        # Whether work between the steps is cancelled for this one.
        self.hurries = hurries
        self.exc_info, self.inner_calls = exc_info, inner_calls
        # The context of the task after the step, and before it: set when the task starts the step.
        self.contexts: list[Any] = [None, None]

    def again(self) -> _Step:
        """Return the same step, for another loop."""
        other = _Step(self._of, self.function, self.outcome, self.hurries, self.exc_info, self.inner_calls)
        other.contexts = self.contexts
        return other

    def start(self, loop: asyncio.AbstractEventLoop) -> asyncio.Task[None] | None:
        self.thread = threading.current_thread()
        self._loop = loop
        try:
            del self._coroutine
        except AttributeError:  # taken back
            return None
        self._task = self._of.accept(self, loop)
        return self._task

    def _cancel_task(self, *message: Any) -> bool:
        # The step may have ended meanwhile; then the task must not be cancelled.
        return self._of.is_making(self) and super()._cancel_task(*message)


class _Mailbox(CurrentThreadExecutor):
    """A mailbox whose thread serves it in each step of the same iteration or block."""

    def resume(self) -> None:
        """Let ``serve`` wait again. Code that stops it settles the outcome first, so check the outcome afterwards."""
        # On free-threaded builds, the lock of this object, which writing an attribute takes, ensures this.
        self._stopped = False

    def leave(self) -> None:
        """Accept nothing more; let other threads run the accepted jobs. On any thread, also in a finalizer."""
        self._closed = True
        self._jobs.rotate(0)  # see post()
        while self._jobs:
            with contextlib.suppress(IndexError):  # taken back meanwhile
                post_elsewhere(self._jobs.popleft(), self)


class _LoopHere:
    """A loop on the thread of the steps, for the end of the interpreter, when Python no longer starts threads."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()

    def post(self, step: LoopCall, mailbox: CurrentThreadExecutor) -> bool:
        """Run *step*, and return when it is done."""
        outcome = step._outcome
        mailbox.run_in_place = workers.run_in_place
        outcome.thread_goes_on = self._stop
        mailboxes = AsyncToSync.loop_thread_executors
        with workers.loop_suspended():
            mailboxes[self.loop] = mailbox
            try:
                self.loop.call_soon(step.start, self.loop, context=contextvars.Context())
                self.loop.run_forever()
            except BaseException:
                # A SystemExit of another task, or Ctrl-C. Like an interrupt of a waiting thread, it first cancels the
                # step.
                if outcome.cancel() and not outcome.settled:
                    self.loop.run_forever()
                raise
            finally:
                del mailboxes[self.loop]
        mailbox.stop()
        return True

    def _stop(self) -> None:
        if self.loop.is_running():
            self.loop.stop()

    def end(self) -> None:
        with workers.loop_suspended():
            loops.end(self.loop)


def _put_mailbox_into(mailbox: Any, before: contextvars.Context, after: contextvars.Context) -> None:
    """Put *mailbox* into these contexts, so that it is not a change between them; use them on this thread only."""
    if local.THREADS_INHERIT:
        local.arrive(before)
        local.arrive(after)
    local.set_in_both(AsyncToSync.executors, "current", mailbox, before, after)
