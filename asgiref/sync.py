"""Bridges between synchronous and asynchronous code: ``sync_to_async`` and ``async_to_sync``.

Synchronous code needs one stable thread, asynchronous code one event loop. A bridged call
runs a function on the other side and returns its result, its exception and its changes to
context variables.

This module has the two wrappers, the decorators that make them, and the two context managers
that choose threads. ``_bridge.routing`` chooses a thread, ``_bridge.jobs`` passes calls,
``_bridge.workers`` and ``_bridge.loops`` own threads and loops, ``_bridge.patience`` waits for
loops of users, and ``_bridge.carry`` passes context variables.

The class attributes are read at each call, because other packages replace them.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import importlib
import inspect
import math
import os
import sys
import threading
import warnings
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from concurrent.futures import Executor
from types import MethodType
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, TypeVar, overload

from . import local
from ._bridge import (
    cancellation,
    forks,
    greenlets,
    internals,
    jobs,
    lending,
    limit,
    loops,
    register,
    routing,
    waits,
    workers,
)
from ._bridge.carry import ExceptionMarks, changes_since
from ._bridge.internals import running_loop
from ._bridge.jobs import AwaitedOutcome, InnerCalls, JobExecutor, LoopCall, ThreadCall, WouldDeadlock
from ._bridge.kept import ATTRIBUTE_OF_TASK, KeptContext, keep_for_task, set_all
from ._bridge.patience import LoopWait, Patience, cannot_run_again
from ._bridge.wrapping import Wrapper, take_over
from .current_thread_executor import CurrentThreadExecutor
from .local import Local

if TYPE_CHECKING:
    from types import TracebackType

    from _typeshed import SupportsWrite

    from ._bridge.jobs import Job
    from ._contexts.middleware import ThreadSensitiveMiddleware
    from ._diagnosis.calls import BridgeCall
    from ._diagnosis.statistics import BridgeStatistics
    from ._steps.iteration import sync_to_async_iterator
    from ._steps.managers import sync_to_async_context_manager
    from ._steps.to_sync_iteration import async_to_sync_iterator
    from ._steps.to_sync_managers import async_to_sync_context_manager
    from .event_loop import ThreadSensitiveEventLoop, thread_sensitive_loop_factory

    ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]

__all__ = [
    "AsyncSingleThreadContext",
    "AsyncToSync",
    "BridgeCall",
    "BridgeStatistics",
    "SyncToAsync",
    "ThreadSensitiveContext",
    "ThreadSensitiveEventLoop",
    "ThreadSensitiveMiddleware",
    "async_to_sync",
    "async_to_sync_context_manager",
    "async_to_sync_iterator",
    "bridge_calls",
    "bridge_statistics",
    "check_cancelled",
    "iscoroutinefunction",
    "markcoroutinefunction",
    "print_bridge_calls",
    "release_thread",
    "sync_to_async",
    "sync_to_async_context_manager",
    "sync_to_async_iterator",
    "thread_sensitive_loop_factory",
]

P = ParamSpec("P")
P2 = ParamSpec("P2")
R = TypeVar("R")
T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

# How long, in seconds, a loop of the user may be stopped while a thread waits for a coroutine on it, and before it
# has started the coroutine, which then runs on another loop; read at each wait.
stopped_loop_patience = 300.0
stopped_loop_start_patience = 2.0

# In asyncio's debug mode, a call that takes longer, in seconds, is logged; read each time.
slow_bridge_call_duration = 5.0

# A sync_to_async call that waits longer for a thread, in seconds, is logged, at most once a minute; None: never.
slow_thread_wait: float | None = 5.0

# At the limit of ThreadSensitiveContext.max_threads: how long, in seconds, all leased threads may be idle before the
# first context in the queue gets an additional thread. Both are read each time.
thread_standstill = 5.0

if sys.version_info >= (3, 12):
    iscoroutinefunction = inspect.iscoroutinefunction
    markcoroutinefunction = inspect.markcoroutinefunction
else:
    iscoroutinefunction = asyncio.iscoroutinefunction

    def markcoroutinefunction(func: F) -> F:
        """Mark *func* as a coroutine function for ``iscoroutinefunction``, and return it."""
        return internals.mark_as_coroutine_function(getattr(func, "__func__", func))


# The name and the value of the attribute by which Python marks a coroutine function.
_COROUTINE_MARK: tuple[str, Any] = next(
    iter(vars(markcoroutinefunction(lambda: None)).items()), (internals.COROUTINE_MARKS[0], None)
)


class ThreadSensitiveContext:
    """An asynchronous context manager: thread-sensitive code in the block has its own thread.

    Equivalent to a separate ``SyncToAsync.single_thread_executor`` for the block. All
    ``sync_to_async`` calls in the block, and in tasks that it starts, run on one worker
    thread, leased by the first of them. Django puts one around each request, so that requests
    do not wait for each other.

    Only the outermost block counts; an inner one changes nothing. Below ``async_to_sync``, the
    thread that is blocked there has precedence. At the end of the block, the worker returns to
    the pool of idle workers; the event loop does not wait for its running jobs. Tasks that
    outlive the block are treated as if there had been no block.

    Args:
        executor: The caller's own executor, used instead of a leased worker. It must run one
            call at a time on one thread, and is not shut down. Such a block takes effect
            everywhere, also inside another one and below ``async_to_sync``, and restores the
            previous state afterwards. It can be entered only once. After its end,
            thread-sensitive calls of its tasks raise ``RuntimeError``.

    It also decorates coroutine functions: each call is then a separate block, with the same
    executor, if there is one. The same object can decorate several functions.

    Raises:
        RuntimeError: if a block with an executor is entered a second time.
        TypeError: if it decorates a synchronous function or an asynchronous generator function.

    >>> import asyncio, threading
    >>> async def main():
    ...     async with ThreadSensitiveContext():
    ...         one = await sync_to_async(threading.get_ident)()
    ...         two = await sync_to_async(threading.get_ident)()
    ...     return one == two
    >>> asyncio.run(main())
    True
    >>> @ThreadSensitiveContext()
    ... async def import_orders():
    ...     one = await sync_to_async(threading.get_ident)()
    ...     return one == await sync_to_async(threading.get_ident)()
    >>> asyncio.run(import_orders())
    True
    """

    # Maximum number of leased threads of all contexts in the process, or None; read at each lease. At the limit, calls
    # of contexts without a thread are queued. See docs/guides/threads.rst.
    max_threads: int | None = None

    # For a block with an executor: the mailbox of the innermost blocked call above it, the mailboxes of all threads
    # blocked above it, and the loop on which it was entered.
    _ancestor: Any = None
    hidden_mailboxes: Sequence[CurrentThreadExecutor] = ()
    _entered_on: weakref.ref[asyncio.AbstractEventLoop] | None = None

    def __init__(self, *, executor: Executor | None = None) -> None:
        self.token: contextvars.Token[Any] | None = None
        self._executor = executor
        self._ended = False
        self._ineffective_entries = 0

    async def __aenter__(self) -> ThreadSensitiveContext:
        if self._executor is not None:
            self._enter_with_own_executor(self._executor)
            return self
        enclosing = SyncToAsync.thread_sensitive_context.get(None)
        # With keep-alive, a request may start in the context of the previous request.
        if enclosing is not None and not _has_ended(enclosing):
            self._ineffective_entries += 1
            return self
        self._ended = False
        self.token = SyncToAsync.thread_sensitive_context.set(self)
        return self

    def _enter_with_own_executor(self, executor: Executor) -> None:
        if self.token is not None or self._ended:
            raise RuntimeError(
                "ThreadSensitiveContext(executor=...) cannot be entered twice; create a new one for each block"
            )
        loop = running_loop()
        self.hidden_mailboxes = _blocked_above(loop)
        self._entered_on = None if loop is None else weakref.ref(loop)
        self._ancestor = local.peek(AsyncToSync.executors, "current")
        self.token = SyncToAsync.thread_sensitive_context.set(self)
        SyncToAsync.context_to_thread_executor[self] = executor
        if self._ancestor is not None:
            AsyncToSync.executors.current = None

    async def __aexit__(
        self, exc: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self._ineffective_entries:
            self._ineffective_entries -= 1
            return
        if self.token is None:
            return
        token, self.token = self.token, None
        self._ended = True
        # A generator may be closed in another context than the one in which it entered the block. The ended
        # block then remains in that context, and is ignored.
        try:
            SyncToAsync.thread_sensitive_context.reset(token)
        except ValueError:
            pass
        executor = SyncToAsync.context_to_thread_executor.pop(self, None)
        if self._executor is None:
            if executor is not None:
                executor.shutdown(wait=False)
        elif self._ancestor is not None:
            AsyncToSync.executors.current, self._ancestor = self._ancestor, None

    def __call__(self, function: Callable[P, Awaitable[R]], /) -> Callable[P, Coroutine[Any, Any, R]]:
        """Return the coroutine function *function* with such a block around each call."""
        from ._contexts.decorating import decorated

        return decorated(self, function)


async def release_thread() -> None:
    """Release the thread of the enclosing ``ThreadSensitiveContext`` before the block ends.

    For the thread, this is equivalent to leaving the block and entering it again. Call it in code that does not need
    its thread for a while: in a streaming response or an endless loop of server-sent events, after the last query.
    The thread returns to the pool when earlier calls are done. The next thread-sensitive call leases a thread again,
    usually another one. At the limit of ``max_threads``, it is queued behind other contexts.

    .. warning::

        State of the thread stays with the thread: an open transaction, ``SET ROLE`` and other state of a database
        connection, locks, thread-local values. The next thread does not have it, and the next user of the old thread
        does. End transactions and undo such state first.

    It does nothing outside of a block, in a block with its own executor, and if the block has no thread. If it is
    called by synchronous code on that thread, through ``async_to_sync``, it takes effect when that code ends. An open
    iterator or context manager of ``sync_to_async_iterator`` or ``sync_to_async_context_manager`` needs its thread: the
    release takes effect when the last one is closed.

    Thread and loop:
        It does not wait, and runs nothing on the thread.

    >>> import asyncio
    >>> async def events():
    ...     async with ThreadSensitiveContext():
    ...         rows = await sync_to_async(list)("ab")
    ...         await release_thread()
    ...         for row in rows:
    ...             await asyncio.sleep(0)  # for hours, perhaps
    ...         return await sync_to_async(len)(rows)
    >>> asyncio.run(events())
    2
    """
    context = SyncToAsync.thread_sensitive_context.get(None)
    if context is None or _has_ended(context):
        return
    executor = SyncToAsync.context_to_thread_executor.get(context)
    if isinstance(executor, limit.ContextExecutor):
        executor.release(functools.partial(_install_executor, weakref.ref(context)))


def _install_executor(reference: weakref.ref[Any], executor: limit.ContextExecutor) -> None:
    context = reference()
    if context is not None:
        SyncToAsync.context_to_thread_executor[context] = executor


def _is_below_blocked(call: Any) -> bool:
    """Return whether a thread is blocked in ``async_to_sync`` and waits for a call, as far as this is visible.

    To wait for a task, a callback is added to it, with the context of the waiting code, which has the mailboxes above.

    Args:
        call: A call of the running loop, or None for a call that the running task is about to make.
    """
    loop = asyncio.get_running_loop()
    blocked_on_loop = AsyncToSync.loop_thread_executors.get(loop)
    if blocked_on_loop is not None and blocked_on_loop.serving:
        return True
    futures: list[Any] = [asyncio.current_task() if call is None else getattr(call, "arrival", None)]
    seen: set[Any] = set()
    while futures:
        future = futures.pop()
        if future is None or future in seen or future.get_loop() is not loop:
            continue
        seen.add(future)
        for callback, context in internals.callbacks_of(future) or ():
            if context.copy().run(_blocked_above, None):
                return True
            futures += internals.futures_woken_by(callback)
    return False


def _has_ended(context: Any) -> bool:
    """Return whether *context* has ended. Other packages may have set an object of their own."""
    return isinstance(context, ThreadSensitiveContext) and context._ended


def _mailbox_above(loop: asyncio.AbstractEventLoop | None) -> Any:
    """Return the innermost mailbox above the running task of *loop*, finished or not, or None."""
    ancestor = local.peek(AsyncToSync.executors, "current")
    blocked_on_loop = None if loop is None else AsyncToSync.loop_thread_executors.get(loop)
    if blocked_on_loop is None or blocked_on_loop.surroundings is None:
        return ancestor
    context = SyncToAsync.thread_sensitive_context.get(None)
    entered_on = context._entered_on if isinstance(context, ThreadSensitiveContext) else None
    if entered_on is not None and entered_on() is loop:  # the block hides the thread that waits for the loop
        return ancestor
    return routing.innermost(ancestor, blocked_on_loop)


def _blocked_above(loop: asyncio.AbstractEventLoop | None) -> list[CurrentThreadExecutor]:
    """Return the mailboxes of all threads that are blocked above the running task of *loop*, innermost first."""
    return lending.blocked_above(_mailbox_above(loop), SyncToAsync.thread_sensitive_context.get(None))


class _EndedContext(JobExecutor):
    """Replaces the executor of a block that has ended: refuses calls."""

    def post(self, job: Job, waiting_thread: int | None = None) -> bool:
        raise RuntimeError(
            "sync_to_async was called after the end of the ThreadSensitiveContext(executor=...) block in which its "
            "task was started; await such tasks inside the block, or start them in another context"
        )


_ENDED_CONTEXT = _EndedContext()


class AsyncSingleThreadContext:
    """A context manager: ``async_to_sync`` calls in the block share one thread and one event loop.

    Without it, each top-level call has a new loop, so a client that is bound to a loop (of
    httpx, redis, asyncpg) cannot be used by the next call. In the block, the loop starts with
    the first call and runs until the block ends, also between calls.

    Calls below ``sync_to_async`` still use the loop of that call. Only the outermost block
    counts. At its end, running tasks are cancelled and awaited and the loop is closed, as
    ``asyncio.run`` does. If you leave the block on a thread with a running loop, this happens
    in the background.

    >>> import asyncio
    >>> async def loop():
    ...     return asyncio.get_running_loop()
    >>> with AsyncSingleThreadContext():
    ...     async_to_sync(loop)() is async_to_sync(loop)()
    True
    """

    def __init__(self) -> None:
        self.token: contextvars.Token[Any] | None = None
        self._ineffective_entries = 0
        self._kept_loop: loops.KeptLoop | None = None

    def __enter__(self) -> AsyncSingleThreadContext:
        enclosing = AsyncToSync.async_single_thread_context.get(None)
        if enclosing is not None and enclosing.token is not None:
            self._ineffective_entries += 1
        else:
            self.token = AsyncToSync.async_single_thread_context.set(self)
        return self

    def __exit__(self, exc: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        if self._ineffective_entries:
            self._ineffective_entries -= 1
            return
        if self.token is None:
            return
        token, self.token = self.token, None
        forks.notice()
        try:
            with contextlib.suppress(ValueError):  # left in another context than the one in which it was entered
                AsyncToSync.async_single_thread_context.reset(token)
            with loops.lock:  # a thread that holds it may be starting the loop
                kept = self._kept_loop
            if kept is not None and kept.usable:
                self._close(kept)
        except BaseException:
            # If interrupted before that, end the loop now.
            if self._kept_loop is not None:
                self._kept_loop.close(None)
            raise
        finally:
            self._kept_loop = None

    def _close(self, kept: loops.KeptLoop) -> None:
        if running_loop() is not None:
            kept.close(None)
            return
        mailbox = CurrentThreadExecutor(None)
        try:
            kept.close(mailbox)
            mailbox.serve()
        except BaseException:
            mailbox.close(run_rest=False)
            raise
        mailbox.close()
        kept.raise_if_it_ended_badly()

    def post(self, call: LoopCall, mailbox: CurrentThreadExecutor, unless_on: Any) -> loops.KeptLoop | None:
        """Give *call* to the block's loop and return the loop; None if it has ended or is *unless_on*."""
        with loops.lock:
            if self.token is None:
                return None
            if self._kept_loop is None or not self._kept_loop.usable:
                started = loops.KeptLoop.start(AsyncToSync.loop_thread_executors)
                if self._kept_loop is None or not self._kept_loop.usable:
                    self._kept_loop = started
                elif started is not None:  # a signal handler on this thread was faster
                    started.close(None)
            kept = self._kept_loop
        if kept is None or kept.loop is unless_on or not kept.post(call, mailbox):
            return None
        return kept


class AsyncToSync(Wrapper[P, R]):
    """Wraps a callable that returns an awaitable; calls wait for the result. Use ``async_to_sync`` to make one."""

    # ``executors.current``: the mailbox of the innermost blocked call in this context, or None.
    executors: Local = local.none_unless_set("current")
    # The mailboxes of threads that wait for a loop of the library.
    loop_thread_executors: dict[asyncio.AbstractEventLoop, CurrentThreadExecutor] = {}
    async_single_thread_context: contextvars.ContextVar[AsyncSingleThreadContext] = contextvars.ContextVar(
        "async_single_thread_context"
    )

    __wrapped__: Callable[P, Awaitable[R]]

    def __init__(self, awaitable: Callable[P, Awaitable[R]], force_new_loop: bool = False) -> None:
        if not callable(awaitable):
            raise TypeError(
                f"async_to_sync needs an async function, not {awaitable!r}; pass the function itself, and the "
                "arguments to the result: async_to_sync(function)(arguments)"
            )
        self.awaitable = self.__wrapped__ = awaitable
        self.force_new_loop = force_new_loop
        is_async = take_over(self, awaitable)
        if not is_async and not _is_marked_async(awaitable):
            warnings.warn(
                f"async_to_sync was given {awaitable!r}, which is not marked as a coroutine function; if calling it "
                "returns an awaitable, mark it with asgiref.sync.markcoroutinefunction",
                stacklevel=3,
            )

    @register.noted
    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        __traceback_hide__ = True
        running = running_loop()
        if running is not None and not greenlets.runs_in_another(running):
            raise RuntimeError(
                f"async_to_sync({_name_of(self.awaitable)}) cannot be called in a thread that runs an event loop, "
                f"which it would block; use `await {_name_of(self.awaitable)}(...)` there"
            )
        end = register.here().ending() if register.KEPT else None
        awaitable = self.awaitable(*args, **kwargs)
        inner_calls = SyncToAsync.threadlocal.__dict__.get("task_context")
        if inner_calls is None:
            forks.notice()
        if local.THREADS_INHERIT:
            local.prepare_hand_over()
        mailbox = CurrentThreadExecutor(local.peek(self.executors, "current"))
        context = contextvars.copy_context()
        context.run(setattr, self.executors, "current", mailbox)
        snapshot = context.copy()
        at_end = [context]
        outcome: AwaitedOutcome[R] = AwaitedOutcome(mailbox.stop)
        kept = None
        if inner_calls is not None:
            lending.note_executor(mailbox, inner_calls)
            if isinstance(inner_calls, InnerCalls) and inner_calls.kept is not None:
                kept, inner_calls.kept = inner_calls.kept, None  # not for a signal handler that bridges meanwhile
        coroutine = self.main_wrap(outcome, sys.exc_info(), inner_calls, at_end, awaitable)
        try:
            if end is not None:
                register.here().enter("asgiref.sync.AsyncToSync.__call__", self=self, outcome=outcome, mailbox=mailbox)
            self._run_to_end(coroutine, context, kept, outcome, mailbox, inner_calls)
        finally:
            if end is not None:
                end()
            mailbox.close(run_rest=False)  # in case of an interrupt in between
            if at_end[0] is context:
                if outcome.settled:
                    _close_if_never_begun(coroutine, awaitable)
            elif kept is not None:
                kept.bring_back(snapshot, at_end[0], _restore_context)
            elif (changes := changes_since(snapshot, at_end[0])) is not None:
                tokens = _restore_context(changes)
                if outcome.context is not None and isinstance(inner_calls, InnerCalls):
                    inner_calls.kept = KeptContext(outcome.context, tokens or {})
            if kept is not None and inner_calls is not None and not (outcome.goes_on and at_end[0] is context):
                inner_calls.kept = kept
            del coroutine, awaitable
        return outcome.take()

    def _run_to_end(
        self,
        coroutine: Coroutine[Any, Any, None],
        context: contextvars.Context,
        kept: KeptContext | None,
        outcome: AwaitedOutcome[R],
        mailbox: CurrentThreadExecutor,
        inner_calls: list[AwaitedOutcome[Any]] | None,
    ) -> None:
        """Run *coroutine* on the chosen loop, and serve *mailbox* meanwhile."""
        __traceback_hide__ = True
        home = None if self.force_new_loop else self._home_loop()
        outcome.call = call = LoopCall(coroutine, context, outcome, kept)
        if inner_calls is not None:
            inner_calls.append(outcome)
        try:
            while True:
                self._hand_over_and_serve(call, home, outcome, mailbox)
                if outcome.settled:
                    return
                # That loop ended before it started the coroutine: use another one.
                home = None
                outcome.call = call = LoopCall(coroutine, context, outcome, kept)
                if outcome.cancelled:
                    outcome.set_exception(asyncio.CancelledError())
                    return
        finally:
            outcome.call = None  # it refers to the outcome
            outcome.goes_on = call.may_go_on
            if inner_calls is not None:
                inner_calls.remove(outcome)

    def _hand_over_and_serve(
        self, call: LoopCall, home: Any, outcome: AwaitedOutcome[R], mailbox: CurrentThreadExecutor
    ) -> None:
        """Give *call* to a loop and serve *mailbox* until the call has ended, or its loop has abandoned it.

        An interrupt of this thread, such as Ctrl-C, cancels the coroutine and is raised after
        its end; a second one is raised at once.
        """
        __traceback_hide__ = True
        interrupt: BaseException | None = None
        kept = check = None
        handed_over = False
        try:
            while True:
                try:
                    if not handed_over:
                        handed_over = True
                        if home is not None and self._give_to(home, call):
                            check = LoopWait(home, call, outcome, self._circumstances).is_lost
                        else:
                            kept = self._give_to_own_loop(call, outcome, mailbox)
                            if kept is not None:
                                # It runs until it is closed, but may not have started yet.
                                check = LoopWait(kept.loop, call, outcome, _endless_patience).is_lost
                    self._serve(mailbox, check, outcome)
                    break
                except BaseException as error:
                    # Not serving: after a fork, or interrupted while running the last jobs.
                    if interrupt is not None or not mailbox.serving or not outcome.cancel():
                        raise
                    interrupt = error
            if interrupt is not None:
                if not outcome.settled:  # the call was taken back, so no loop will start the coroutine
                    outcome.set_exception(asyncio.CancelledError())
                try:
                    outcome.take()
                finally:
                    raise interrupt
        finally:
            if kept is not None:
                kept.leave(mailbox)
            del interrupt

    def _serve(
        self, mailbox: CurrentThreadExecutor, check: Callable[[], bool] | None, outcome: AwaitedOutcome[R]
    ) -> None:
        __traceback_hide__ = True
        mailbox.serve(check)
        if outcome.settled:
            mailbox.close()

    def _home_loop(self) -> Any:
        """Return the loop that made this thread's bridged call, if it can run our coroutine, else None."""
        here = SyncToAsync.threadlocal.__dict__
        home = here.get("main_event_loop")
        if home is None or here.get("main_event_loop_pid") != forks.pid or workers.is_suspended_here(home):
            return None
        if not home.is_running() and (
            stopped_loop_start_patience <= 0 or cannot_run_again(home, self._thread_of_home_loop())
        ):
            return None
        return home

    def _thread_of_home_loop(self) -> threading.Thread | None:
        return getattr(SyncToAsync.threadlocal.__dict__.get("task_context"), "loop_thread", None)

    def _circumstances(self) -> tuple[Patience, threading.Thread | None]:
        return Patience(stopped_loop_patience, stopped_loop_start_patience), self._thread_of_home_loop()

    def _give_to(self, home: Any, call: LoopCall) -> bool:
        call.asked = home
        try:
            home.call_soon_threadsafe(call.start, home, context=contextvars.Context())
        except RuntimeError:  # closed meanwhile
            return False
        return True

    def _give_to_own_loop(
        self, call: LoopCall, outcome: AwaitedOutcome[R], mailbox: CurrentThreadExecutor
    ) -> loops.KeptLoop | None:
        """Give *call* to the loop of the enclosing ``AsyncSingleThreadContext`` and return it, or to a new loop."""
        block = self.async_single_thread_context.get(None)
        if block is not None:
            kept = block.post(call, mailbox, unless_on=self._home_loop() if self.force_new_loop else None)
            if kept is not None:
                return kept
        executor = workers.FreshLoopExecutor()
        executor.post(loops.FreshLoop(call, outcome, mailbox, self.loop_thread_executors))
        executor.shutdown(wait=False)
        return None

    @overload
    def __get__(self, parent: None, objtype: Any = None) -> AsyncToSync[P, R]: ...
    @overload
    def __get__(self: AsyncToSync[Concatenate[T, P2], R], parent: T, objtype: Any = None) -> Callable[P2, R]: ...
    def __get__(self, parent: Any, objtype: Any = None) -> Any:
        """Bind to *parent* as a method; on the class, return the object itself."""
        if parent is None:
            return self
        return MethodType(self, parent)

    async def main_wrap(
        self,
        call_result: Any,
        exc_info: ExcInfo,
        task_context: list[AwaitedOutcome[Any]] | None,
        context: list[contextvars.Context],
        awaitable: Awaitable[R],
    ) -> None:
        """Await *awaitable* in a task of the chosen loop, and put its outcome into *call_result*.

        Args:
            call_result: Has ``set_result`` and ``set_exception``.
            exc_info: The exception that the caller is handling; ``sys.exc_info()`` shows it here, too.
            task_context: The blocked calls of the enclosing bridged call.
            context: A list of one item, which is replaced by the context at the end.
        """
        __traceback_hide__ = True
        handled = exc_info[1]
        try:
            if handled is None:
                result = await awaitable
            else:
                marks = ExceptionMarks(handled)
                try:
                    raise handled
                except BaseException:
                    marks.put_back(handled)
                    result = await awaitable
        except BaseException as error:
            context[0] = contextvars.copy_context()
            call_result.set_exception(error)
        else:
            context[0] = contextvars.copy_context()
            call_result.set_result(result)
        finally:
            del handled, exc_info, call_result


def _endless_patience() -> tuple[Patience, None]:
    return Patience(math.inf, math.inf), None


def _close_if_never_begun(*awaitables: Any) -> None:
    """Avoid the warning "was never awaited" for a coroutine that was cancelled before its first step."""
    for awaitable in awaitables:
        if inspect.iscoroutine(awaitable) and inspect.getcoroutinestate(awaitable) == inspect.CORO_CREATED:
            awaitable.close()


class SyncToAsync(Wrapper[P, R]):
    """Wraps a synchronous callable; awaiting a call runs it on a thread. Use ``sync_to_async`` to make one."""

    # Values of the bridged call that this thread is running: ``main_event_loop``, ``main_event_loop_pid`` and
    # ``task_context``.
    threadlocal = threading.local()
    # Runs thread-sensitive code without an enclosing context.
    single_thread_executor: Executor = workers.ProcessExecutor()
    # The enclosing ThreadSensitiveContext, or an object of another package.
    thread_sensitive_context: contextvars.ContextVar[Any] = contextvars.ContextVar("thread_sensitive_context")
    # Its executor, from the first call on.
    context_to_thread_executor: weakref.WeakKeyDictionary[Any, Executor] = weakref.WeakKeyDictionary()
    # Unused: other packages set it to silence a false alarm, which does not exist here.
    deadlock_context: contextvars.ContextVar[bool] = contextvars.ContextVar("deadlock_context")

    __wrapped__: Callable[P, R]

    def __init__(
        self,
        func: Callable[P, R],
        thread_sensitive: bool = True,
        executor: Executor | None = None,
        context: contextvars.Context | None = None,
    ) -> None:
        if thread_sensitive and executor is not None:
            raise TypeError(
                "sync_to_async was given an executor, but thread-sensitive code does not use it; "
                "add thread_sensitive=False, or use ThreadSensitiveContext(executor=...)"
            )
        self.func = self.__wrapped__ = func
        self.context = context
        self._thread_sensitive = thread_sensitive
        self._executor = executor
        setattr(self, *_COROUTINE_MARK)
        is_async = take_over(self, func)
        if is_async is None:
            if not callable(func):
                raise TypeError(f"sync_to_async needs a synchronous function, not {func!r}; pass the function itself")
            is_async = _is_marked_async(func)
        if is_async:
            raise TypeError(
                f"sync_to_async needs a synchronous function, not {func!r}; await an async function directly"
            )

    async def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        __traceback_hide__ = True
        loop = asyncio.get_running_loop()
        if local.THREADS_INHERIT:
            local.prepare_hand_over()
        context = self.context
        snapshot = kept = None
        if context is None:
            context = contextvars.copy_context()
            blocked_on_loop = AsyncToSync.loop_thread_executors.get(loop)
            if blocked_on_loop is not None and blocked_on_loop.surroundings is not None:
                context.run(setattr, AsyncToSync.executors, "current", _mailbox_above(loop))
            kept = getattr(asyncio.current_task(loop), ATTRIBUTE_OF_TASK, None)
            if kept is not None:
                context = kept.follow(context)
            snapshot = context.copy()
        inner_calls = InnerCalls()
        inner_calls.loop_thread = threading.current_thread()
        child: Callable[[], R] = functools.partial(self.func, *args, **kwargs)
        call: ThreadCall[R] = ThreadCall(loop, self, sys.exc_info(), inner_calls, context, child)
        awaited = register.here().note_awaited(call, self, inner_calls) if register.KEPT else None
        try:
            self._give_to_thread(call, loop, inner_calls, args)
            if kept is not None:
                kept.user = call
            while True:
                try:
                    await call.arrival
                    break
                except asyncio.CancelledError as cancellation:
                    if not call.survives_cancellation(inner_calls, cancellation):
                        self._leave_queue()
                        raise
        finally:
            del call.arrival
            if awaited is not None:
                awaited.pop(id(call), None)
            if call.settled:  # pragma: no branch: else an exception is being raised, and no line follows
                if local.THREADS_INHERIT:
                    local.arrive(context)
                # Variables are never removed from a copy, so an empty one has not changed.
                if kept is not None:
                    kept.bring_back(snapshot, context, _restore_context)
                elif snapshot is not None and context and (changes := changes_since(snapshot, context)) is not None:
                    keep_for_task(loop, context, _restore_context(changes) or {})
            if kept is not None and (call.settled or inner_calls.never_began):
                kept.user = None
        if inner_calls.absorbed is not None:
            call.cancel_result(*inner_calls.absorbed)
        return call.take()

    def _give_to_thread(
        self, call: ThreadCall[R], loop: asyncio.AbstractEventLoop, inner_calls: InnerCalls, args: tuple[Any, ...]
    ) -> Any:
        """Return the executor that accepted *call*; None for the default one of the loop."""
        executors: Iterable[Any]
        executor: Any = self._executor
        if self._thread_sensitive:
            executors = self._executors(loop, args)
        elif executor is not None:
            executors = (executor,)
        else:
            self._give_to_default_executor(call, loop, inner_calls)
            return None
        here = threading.get_ident()
        for executor in executors:
            if not isinstance(executor, JobExecutor):
                self._submit(call, executor, loop, inner_calls)
                return executor
            if not self._thread_sensitive:  # executor=SyncToAsync.single_thread_executor, for example
                lender = lending.lending_executor(executor, loop, _blocked_above(loop), default=False)
                if lender is not None:
                    call.submit_to(lender)
                    return executor
            try:
                if executor.post(call, here):
                    return executor
            except WouldDeadlock:
                raise self._deadlock(loop) from None
        raise RuntimeError(
            f"sync_to_async({_name_of(self.func)}) cannot run, because {executor!r} has been shut down; use an "
            "executor that accepts calls"
        )

    def _submit(
        self, call: ThreadCall[R], executor: Any, loop: asyncio.AbstractEventLoop, inner_calls: InnerCalls
    ) -> None:
        """Give *call* to an *executor* of another package."""
        if executor is self._executor_that_runs_this() or routing.has_no_other_thread(executor):
            raise self._deadlock(loop)
        context = self.thread_sensitive_context.get(None) if self._thread_sensitive else None
        if isinstance(context, ThreadSensitiveContext) and executor is context._executor:
            inner_calls.promised_executor = executor
        if not self._thread_sensitive:
            executor = lending.lending_executor(executor, loop, _blocked_above(loop), default=False) or executor
        call.submit_to(executor)

    def _executors(self, loop: asyncio.AbstractEventLoop, args: tuple[Any, ...]) -> Iterable[Any]:
        """Return the executors that may run thread-sensitive code, called with *args*, in order of preference."""
        ancestor = local.peek(AsyncToSync.executors, "current")
        context = self.thread_sensitive_context.get(None)
        blocked_on_loop = AsyncToSync.loop_thread_executors.get(loop)
        if ancestor is None and context is None and blocked_on_loop is None:  # as for most calls
            return (self.single_thread_executor,)
        of_context = None if context is None else self._executor_of(context)
        if blocked_on_loop is not None and blocked_on_loop.surroundings is not None:
            ancestor = _mailbox_above(loop)
        return routing.thread_sensitive_executors(ancestor, of_context, blocked_on_loop, self.single_thread_executor)

    def _executor_of(self, context: Any) -> Executor | None:
        if isinstance(context, ThreadSensitiveContext) and context._ended:
            return None if context._executor is None else _ENDED_CONTEXT
        executor = self.context_to_thread_executor.get(context)
        if executor is None:
            executor = self.context_to_thread_executor.setdefault(context, limit.ContextExecutor())
        return executor

    def _leave_queue(self) -> None:
        """Leave the queue for threads, if the enclosing context is queued and none of its calls is awaited any more."""
        context = self.thread_sensitive_context.get(None)
        executor = None if context is None else self.context_to_thread_executor.get(context)
        if isinstance(executor, limit.ContextExecutor):
            executor.call_given_up()

    def _executor_that_runs_this(self) -> Executor | None:
        """Return the executor of a ``ThreadSensitiveContext`` whose job this thread is running, or None."""
        return getattr(self.threadlocal.__dict__.get("task_context"), "promised_executor", None)

    def _deadlock(self, loop: asyncio.AbstractEventLoop) -> RuntimeError:
        return RuntimeError(
            f"sync_to_async({_name_of(self.func)}) would deadlock: the function must run on thread "
            f"{threading.current_thread().name!r}, which runs the event loop that awaits it, {loop!r}; start that "
            "loop through async_to_sync, or call the function directly"
        )

    def _give_to_default_executor(
        self, call: ThreadCall[R], loop: asyncio.AbstractEventLoop, inner_calls: InnerCalls
    ) -> None:
        if internals.pools_refuse_work():
            worker = workers.WorkerExecutor()
            worker.post(call)
            worker.shutdown(wait=False)
            return
        # asyncio's own loops show it. Without the future that the loop would wrap around the executor's, the
        # result comes one event loop iteration earlier.
        executor = internals.default_executor_of(loop)
        if internals.threads_of(executor) is None:
            inner_calls.default_executor_of = weakref.ref(loop)
        lender = lending.lending_executor(executor, loop, _blocked_above(loop), default=True)
        if lender is not None:
            call.submit_to(lender)
        elif isinstance(executor, Executor):
            call.submit_to(executor)
        else:
            call.submit_to_default_executor(loop)

    if sys.version_info < (3, 12):
        # There, inspect.iscoroutinefunction does not know the mark, but accepts objects that look like functions.
        __code__ = __call__.__code__
        __defaults__ = __kwdefaults__ = None

    @overload
    def __get__(self, parent: None, objtype: Any = None) -> SyncToAsync[P, R]: ...
    @overload
    def __get__(
        self: SyncToAsync[Concatenate[T, P2], R], parent: T, objtype: Any = None
    ) -> Callable[P2, Coroutine[Any, Any, R]]: ...
    def __get__(self, parent: Any, objtype: Any = None) -> Any:
        """Bind to *parent* as a method; on the class, return the object itself."""
        if parent is None:
            return self
        return MethodType(self, parent)

    @register.noted
    def thread_handler(
        self,
        loop: asyncio.AbstractEventLoop,
        exc_info: ExcInfo,
        task_context: list[AwaitedOutcome[Any]],
        func: Callable[..., Any],
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Run ``func(*args, **kwargs)`` on the chosen thread; subclasses may extend this.

        Args:
            loop: The loop that made the call, for ``async_to_sync`` calls inside.
            exc_info: The exception that the caller is handling; ``sys.exc_info()`` shows it here, too.
            task_context: Collects the ``async_to_sync`` calls that *func* waits for.
            func: ``run`` of the context to run in.
            args: First, a ``functools.partial`` of the wrapped function with its arguments.
        """
        __traceback_hide__ = True
        end = register.here().ending() if register.KEPT else None
        here = self.threadlocal.__dict__
        outer = here.get("main_event_loop"), here.get("main_event_loop_pid"), here.get("task_context")
        here["main_event_loop"], here["main_event_loop_pid"], here["task_context"] = loop, forks.pid, task_context
        if local.THREADS_INHERIT and isinstance(func.__self__, contextvars.Context):  # type: ignore[attr-defined]
            local.arrive(func.__self__)  # type: ignore[attr-defined]
        handled = exc_info[1]
        try:
            if end is not None:
                register.here().enter(
                    "asgiref.sync.SyncToAsync.thread_handler", self=self, loop=loop, task_context=task_context
                )
            if handled is None:
                return func(*args, **kwargs)
            marks = ExceptionMarks(handled)
            try:
                raise handled
            except BaseException:
                marks.put_back(handled)
                return func(*args, **kwargs)
        except StopIteration as error:
            # Neither a coroutine nor a future can raise StopIteration: it would look like their end.
            raise RuntimeError(
                f"{_name_of(self.func)} raised {error!r}, which a coroutine cannot raise; catch it in the function"
            ) from error
        finally:
            here["main_event_loop"], here["main_event_loop_pid"], here["task_context"] = outer
            if end is not None:
                end()
            del handled, exc_info


@greenlets.after_patch
def _renew_threadlocal() -> None:
    # An object from before the patch belongs to the system thread, and all its greenlets would share it.
    SyncToAsync.threadlocal = threading.local()


def _is_marked_async(func: Any) -> bool:
    # Looked up on the type, because Python ignores a ``__call__`` in the object's ``__dict__``.
    return iscoroutinefunction(func) or iscoroutinefunction(getattr(type(func), "__call__", None))  # noqa: B004


def _name_of(func: Any) -> str:
    return getattr(func, "__qualname__", None) or repr(func)


def _restore_context(context: contextvars.Context) -> Any:
    """Set each variable of *context* in the current one; see ``_bridge.kept.set_all``."""
    return set_all(context)


# For type checkers, the results of both decorators are Callables, not instances of the classes: mypy
# keeps the overloads of a function only in a Callable. isinstance() narrows to the class. The forms
# without options are separate, because mypy keeps overloads only if the function is the only
# possible argument. The forms with options require one, because mypy falls back to Any if two forms
# match.


@overload
def async_to_sync(awaitable: Callable[P, Awaitable[R]]) -> Callable[P, R]: ...
@overload
def async_to_sync(awaitable: Callable[P, Awaitable[R]], *, force_new_loop: bool) -> Callable[P, R]: ...
@overload
def async_to_sync(awaitable: None = None, *, force_new_loop: bool = False) -> _AsyncToSyncDecorator: ...
def async_to_sync(awaitable: Any = None, *, force_new_loop: bool = False) -> Any:
    """Return a synchronous function that calls an asynchronous function and waits for its result.

    Equivalent to ``asyncio.run(awaitable(...))`` without an enclosing call. Below
    ``sync_to_async``, the coroutine runs on the event loop of that call.

    Args:
        awaitable: The coroutine function, or another callable that returns an awaitable.
            Without it, a decorator is returned. For asynchronous generator functions, see
            ``async_to_sync_iterator``.
        force_new_loop: Do not use the loop of an enclosing bridged call.

    Thread and loop:
        The function is called on the calling thread. Its coroutine is awaited in a task on
        another thread: on the loop of the enclosing ``sync_to_async`` call if that is running
        or will be soon, else on the loop of an ``AsyncSingleThreadContext``, else on a new
        one. The calling thread waits, and runs thread-sensitive code of the coroutine
        meanwhile. Context variables are passed on, and changes come back.

    Cancellation:
        If the coroutine is cancelled, this raises ``asyncio.CancelledError``. An exception of
        a signal handler in the waiting thread, such as ``KeyboardInterrupt``, cancels the
        coroutine and is raised after its end; a second one is raised at once.

    Returns:
        An ``AsyncToSync``; calling it returns the result of the coroutine. It has the name,
        docstring and signature of the function, and works as a method.

    Raises:
        TypeError: if *awaitable* is not callable.
        RuntimeError: when called, if this thread runs an event loop, which would be blocked;
            or if the loop of the coroutine is closed meanwhile, or is stopped for longer than
            ``stopped_loop_patience``.

    Warns:
        UserWarning: once, if the callable is not marked as a coroutine function.

    >>> import asyncio
    >>> @async_to_sync
    ... async def add(one, two):
    ...     await asyncio.sleep(0)
    ...     return one + two
    >>> add(1, 2)
    3
    """
    if awaitable is None:
        return lambda awaitable: AsyncToSync(awaitable, force_new_loop=force_new_loop)
    return AsyncToSync(awaitable, force_new_loop)


@overload
def sync_to_async(func: Callable[P, R]) -> Callable[P, Coroutine[Any, Any, R]]: ...
@overload
def sync_to_async(
    func: Callable[P, R],
    *,
    thread_sensitive: bool,
    executor: Executor | None = None,
    context: contextvars.Context | None = None,
) -> Callable[P, Coroutine[Any, Any, R]]: ...
@overload
def sync_to_async(
    func: Callable[P, R], *, executor: None = None, context: contextvars.Context | None
) -> Callable[P, Coroutine[Any, Any, R]]: ...
@overload
def sync_to_async(
    func: None = None,
    *,
    thread_sensitive: bool = True,
    executor: None = None,
    context: contextvars.Context | None = None,
) -> _SyncToAsyncDecorator: ...
@overload
def sync_to_async(
    func: None = None,
    *,
    thread_sensitive: bool,
    executor: Executor | None,
    context: contextvars.Context | None = None,
) -> _SyncToAsyncDecorator: ...
def sync_to_async(
    func: Any = None,
    *,
    thread_sensitive: bool = True,
    executor: Executor | None = None,
    context: contextvars.Context | None = None,
) -> Any:
    """Return an asynchronous function that runs a synchronous function on a thread.

    Equivalent to ``asyncio.to_thread(func, ...)``, except for the choice of the thread, and for
    changes to context variables, which come back to the caller.

    Args:
        func: The function. Without it, a decorator is returned. For generator functions, see
            ``sync_to_async_iterator``: their body would not run on the thread.
        thread_sensitive: Run all calls of this flow of calls on the same thread, for code
            that depends on its thread (database connections, locks). False: run on any
            thread, concurrently with other calls.
        executor: Use this instead of the loop's default executor; requires
            ``thread_sensitive=False``.
        context: Run in this ``contextvars.Context`` instead of a copy of the caller's;
            changes stay in it. No other code may be using it meanwhile.

    Thread and loop:
        Thread-sensitive code runs on the thread that is blocked in the innermost enclosing
        ``async_to_sync`` call, else on the thread of the enclosing
        ``ThreadSensitiveContext``, else on the thread that is blocked on the running loop,
        else on a single thread of the process, ``SyncToAsync.single_thread_executor``. Calls
        for one thread run one at a time, in the order of the calls.

    Cancellation:
        If the function waits in ``async_to_sync``, that coroutine is cancelled, and the
        ``await`` has the outcome of the function. Further cancellations are delayed until the
        function has ended; then ``CancelledError`` replaces its result. Otherwise, the
        ``await`` ends at once. A function that has started keeps running in the background;
        one that has not started never runs.

    Returns:
        A ``SyncToAsync``; awaiting a call returns the result of the function. It has the
        name, docstring and signature of the function, and works as a method.

    Raises:
        TypeError: if *func* is not callable or is async, or if an executor is given for
            thread-sensitive code.
        RuntimeError: when awaited, if the function must run on the thread that awaits it,
            which would deadlock; or instead of a ``StopIteration`` of the function.

    >>> import asyncio
    >>> @sync_to_async
    ... def add(one, two):
    ...     return one + two
    >>> async def main():
    ...     return await add(1, 2)
    >>> asyncio.run(main())
    3
    """
    if func is None:
        return lambda func: SyncToAsync(func, thread_sensitive=thread_sensitive, executor=executor, context=context)
    return SyncToAsync(func, thread_sensitive, executor, context)


def check_cancelled() -> None:
    """Raise ``CancelledError`` if the task that awaits this synchronous code was cancelled.

    Equivalent to an ``await`` in a coroutine, which would raise the cancellation. A thread cannot be stopped from
    outside, so call this at intervals in long-running code.

    Thread and loop:
        It has an effect in a function that ``sync_to_async`` has called, on the thread of that call. This includes
        nested calls, the steps of ``sync_to_async_iterator`` and ``sync_to_async_context_manager``, and WSGI
        applications. Elsewhere it does nothing: in a coroutine, in a thread that the function has started, outside of
        any call.

    Cancellation:
        After the task was cancelled, this raises at each call, even if a coroutine that the function waited for has
        caught the cancellation. Calls that start later, and calls under ``asyncio.shield``, are not affected. It never
        raises in the ``close()`` or ``__exit__()`` that ends an iteration or a block, or in ``close()`` of a WSGI
        response.

        In a WSGI application under ``WsgiToAsgi``, a disconnected client counts as a cancellation. There, the first
        call asks the server on its event loop, and waits for the answer. If the application does not catch the
        ``CancelledError``, the adapter ends without an error.

    Raises:
        asyncio.CancelledError: with the message of the cancellation, if it has one.

    >>> import asyncio, threading
    >>> stopped = threading.Event()
    >>> def work():
    ...     try:
    ...         while True:
    ...             check_cancelled()  # then do a part of the work
    ...     finally:
    ...         stopped.set()
    >>> async def main():
    ...     try:
    ...         async with asyncio.timeout(0.05):
    ...             await sync_to_async(work)()
    ...     except TimeoutError:
    ...         print("too long")
    >>> asyncio.run(main())
    too long
    >>> stopped.wait(20)
    True
    """
    inner_calls: Any = SyncToAsync.threadlocal.__dict__.get("task_context")
    if getattr(inner_calls, "may_be_cancelled", False):  # not for a plain list, which other packages may set
        cancellation.raise_if_cancelled(inner_calls)


def bridge_calls() -> list[BridgeCall]:
    """Return all ``sync_to_async`` and ``async_to_sync`` calls that are in flight in this process.

    They are found by reading all threads and tasks, so calls do not pay for it. Other threads
    keep running meanwhile, so a call may have ended when you see it.

    Any thread may call this, also one that runs an event loop, and a signal handler. It does
    not wait, calls no code of yours, and keeps no reference to what it has read. On a
    free-threaded build, other loops are asked for their tasks; if a loop does not answer
    within a quarter of a second, its tasks are missing.

    Returns:
        A list of ``BridgeCall``, the oldest first.

    >>> @sync_to_async
    ... def look():
    ...     calls = bridge_calls()
    ...     return [(call.direction, call.function, call.state) for call in calls]
    >>> for call in async_to_sync(look)():
    ...     print(*call)
    async_to_sync look running
    sync_to_async look running
    """
    from ._diagnosis import calls

    return calls.bridge_calls()


def print_bridge_calls(file: SupportsWrite[str] | None = None) -> None:
    """Print the result of ``bridge_calls``, with the stacks of both sides of each call.

    If no call is in flight, print that, and the pending tasks of all event loops.

    Args:
        file: Print to this instead of ``sys.stderr``.

    >>> import sys
    >>> print_bridge_calls(sys.stdout)
    no bridge call is in flight
    """
    from ._diagnosis import calls

    print(calls.report(), end="", file=sys.stderr if file is None else file)


def bridge_statistics() -> BridgeStatistics:
    """Return the numbers of threads of the library by use, and of running and queued calls.

    Calls do not pay for it: the numbers are counted on request. This takes no longer than a few bridged calls, even
    with a thousand calls in flight, so a metrics endpoint can use it every second. ``bridge_calls`` returns the single
    calls, each with its stack.

    Any thread may call this, also one that runs an event loop, and a signal handler. It does not wait. Other threads
    keep running meanwhile, so the numbers may be of slightly different moments. The numbers of worker threads, from
    ``context_threads`` to ``idle_threads``, always add up to all workers. A forked child starts with zeros.

    Returns:
        A ``BridgeStatistics``, a frozen dataclass of numbers.

    >>> import asyncio
    >>> async def main():
    ...     async with ThreadSensitiveContext():
    ...         before = await sync_to_async(bridge_statistics)()
    ...         between = bridge_statistics()
    ...     return before.running_calls, between.running_calls, between.context_threads
    >>> asyncio.run(main())
    (1, 0, 1)
    """
    from ._diagnosis import statistics

    return statistics.bridge_statistics()


# Imported on first access, to keep the import of this module fast.
_ELSEWHERE = {
    "BridgeCall": "_diagnosis.calls",
    "BridgeStatistics": "_diagnosis.statistics",
    "ThreadSensitiveEventLoop": "event_loop",
    "ThreadSensitiveMiddleware": "_contexts.middleware",
    "async_to_sync_context_manager": "_steps.to_sync_managers",
    "async_to_sync_iterator": "_steps.to_sync_iteration",
    "sync_to_async_context_manager": "_steps.managers",
    "sync_to_async_iterator": "_steps.iteration",
    "thread_sensitive_loop_factory": "event_loop",
}


def __getattr__(name: str) -> Any:
    if name not in _ELSEWHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f".{_ELSEWHERE[name]}", __package__), name)
    return value


limit.max_threads = lambda: ThreadSensitiveContext.max_threads
limit.thread_standstill = lambda: thread_standstill
limit.is_below_blocked = _is_below_blocked
waits.slow_thread_wait = lambda: slow_thread_wait

# The same condition as for asyncio's debug mode.
if sys.flags.dev_mode or (not sys.flags.ignore_environment and os.environ.get("PYTHONASYNCIODEBUG")):
    from ._diagnosis.watch import Watch

    jobs.clock = Watch(lambda: slow_bridge_call_duration).clock

if TYPE_CHECKING:

    class _AsyncToSyncDecorator(Protocol):
        def __call__(self, awaitable: Callable[P, Awaitable[R]], /) -> Callable[P, R]: ...

    class _SyncToAsyncDecorator(Protocol):
        def __call__(self, func: Callable[P, R], /) -> Callable[P, Coroutine[Any, Any, R]]: ...
