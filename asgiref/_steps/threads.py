"""One thread and one context for several bridged calls, and jobs there that nothing awaits.

An iteration or a block is *open* from its first step until its end has run on its thread. If it is abandoned in between
(by a cancelled task or the garbage collector), a job that ends it is posted, behind a running step. All queues are
ordered, so the end never runs concurrently with a step.

A finalizer runs at any moment, on any thread, which may hold any lock. So a finalizer reaches a thread without waiting
for a lock. The executors of the library have none. For other executors, whose ``submit`` takes locks, a worker calls
``submit``.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import operator
import sys
import threading
import weakref
from typing import TYPE_CHECKING, Any

from .. import local
from .._bridge import builds, cancellation, forks, internals, register, routing
from .._bridge.carry import changes_between
from .._bridge.jobs import InnerCalls, JobExecutor, ThreadCall, WouldDeadlock
from .._bridge.limit import ContextExecutor
from .._bridge.workers import WorkerExecutor
from ..current_thread_executor import CurrentThreadExecutor
from ..sync import AsyncToSync, SyncToAsync, ThreadSensitiveContext, _mailbox_above

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Executor

    from .._bridge.jobs import Job

__all__ = ["Steps", "StepsExecutor", "check_choice_of_thread", "post_elsewhere"]

# Whether comparing contexts that share their variables is fast.
LOOKS_AT_MAPS = sys.implementation.name == "cpython" and not builds.FREE_THREADED

# The open iterations and blocks. The garbage collector finalizes the objects of a cycle in any order, on any thread.
# Without this set, it could close a generator on the wrong thread.
_open: set[Any] = set()


NO_VARIABLES = contextvars.Context()


def _no_loop() -> None: ...


class StepsExecutor(WorkerExecutor):
    purpose = "steps of one iteration or block"
    counted_in = "iteration_threads"


def check_choice_of_thread(name: str, thread_sensitive: bool, executor: Executor | None) -> None:
    """Raise ``TypeError`` if these arguments of the function *name* do not select one thread."""
    if executor is None:
        return
    if thread_sensitive:
        raise TypeError(
            f"{name} was given an executor, but thread-sensitive code does not use it; "
            "add thread_sensitive=False, or use ThreadSensitiveContext(executor=...)"
        )
    if not isinstance(executor, CurrentThreadExecutor) and internals.thread_limit_of(executor) != 1:
        raise TypeError(
            f"{name} was given {executor!r}, but needs an executor with exactly one thread, because all steps must run "
            "on the same thread; pass a ThreadPoolExecutor(max_workers=1), or no executor"
        )


class Steps(SyncToAsync[Any, Any]):
    """A ``sync_to_async`` whose calls all run on the thread and in the context of the first one.

    Args:
        name: For errors and ``bridge_calls``.
        thread_sensitive: As for ``sync_to_async``.
        executor: With one thread. Without it, code that is not thread-sensitive runs on a leased worker.
    """

    # Most attributes are set only when they differ from this: a block is made for each use of a manager.

    # Chosen by the first call: the executor that accepted it, and its ThreadSensitiveContext, if that was given the
    # executor.
    kept: Any = None
    _block: Any = None
    # The same executor, if it must not release its thread meanwhile.
    _pinned: ContextExecutor | None = None
    # The function of the first call, from then on until ``finish``: it refers to the open iteration or block.
    _first: Any = None
    _loop: Callable[[], asyncio.AbstractEventLoop | None] = staticmethod(_no_loop)
    # The context of the consumer at the end of the last step, and that of the steps before the running step.
    _seen = _before = NO_VARIABLES
    # Tokens of variables that were not set before: removing such a variable needs its token.
    _tokens_here: dict[Any, contextvars.Token[Any]] | None = None
    _tokens_there: dict[Any, contextvars.Token[Any]] | None = None
    # The last call that was given the context. Until it is settled, a thread may be using the context.
    latest: ThreadCall[Any] | None = None
    # Whether the steps are ending: then they run on another thread if necessary.
    ending = _given_up = False
    # How many tasks await an ending, and so receive its errors.
    waiting = 0

    def __init__(self, name: str, thread_sensitive: bool, executor: Executor | None) -> None:
        # Not super().__init__(), which needs a function for the metadata.
        self.__qualname__ = name
        self._thread_sensitive = thread_sensitive
        if executor is None and not thread_sensitive:
            executor = StepsExecutor()
        self._executor = executor
        self._generation = forks.generation
        # The context of all steps.
        self.context: contextvars.Context = contextvars.Context()
        # Exceptions of the end: kept here, because nothing may be waiting for it.
        self.errors: list[BaseException] = []

    @property
    def func(self) -> Any:  # type: ignore[override]
        """The object that errors name: each call has a function of its own."""
        return self

    async def step(self, function: Callable[[], Any], keeps_error: bool = False) -> Any:
        """Run *function* on the thread with the current context variables; changes come back.

        Args:
            keeps_error: Whether *function* keeps its exception in ``errors``.
        """
        __traceback_hide__ = True
        loop = asyncio.get_running_loop()
        inner_calls = InnerCalls()
        call = self.begin(function, loop, inner_calls)
        awaited = register.here().note_awaited(call, self, inner_calls) if register.KEPT else None
        try:
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
            if call.settled and call is self.latest:
                self.bring_back(self._before, self.context)
        if inner_calls.absorbed is not None and not (keeps_error and self.errors):
            call.cancel_result(*inner_calls.absorbed)
        return call.take()

    def begin(
        self,
        function: Callable[[], Any],
        loop: asyncio.AbstractEventLoop,
        inner_calls: InnerCalls,
        kind: Callable[..., ThreadCall[Any]] = ThreadCall,
    ) -> Any:
        """Give the thread a call of *function* with the current context variables; return the call."""
        inner_calls.loop_thread = threading.current_thread()
        if self.kept is None:
            self._first = function
        latest = self.latest
        gets_context = False
        child = functools.partial(function)
        if not self._given_up:
            if latest is None or latest.settled:
                self._bring_in(loop, self.context.run)
                self._before = self.context.copy()
                gets_context = True
            elif type(latest) is not ThreadCall:
                # A fill, which may be using the context; its changes come with its items.
                child = functools.partial(self._bring_in_and_call, self._news(loop), function)
                gets_context = True
        call = kind(loop, self, sys.exc_info(), inner_calls, self.context, child)
        if gets_context:
            self.latest = call
        try:
            self._give_to_thread(call, loop, inner_calls, ())
        except BaseException:
            if call is self.latest:
                self.latest = latest
            raise
        return call

    async def wait(self, call: Any) -> None:
        """Wait until *call*, a fill of ``ahead``, has another item or has ended; it is cancelled like a step."""
        __traceback_hide__ = True
        loop = asyncio.get_running_loop()
        inner_calls = call.inner_calls
        awaited = register.here().note_awaited(call, self, inner_calls) if register.KEPT else None
        try:
            while call.await_item(loop):
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

    async def end(self, function: Callable[[], Any]) -> Any:
        """Run *function*, which keeps its exception in ``errors`` and does nothing the second time; raise it.

        If this is cancelled, a job still runs *function*.
        """
        __traceback_hide__ = True
        self.ending = True
        self.waiting += 1
        task = asyncio.current_task()
        # Other libraries may cancel the task repeatedly until it ends.
        caused_by_cancellation = task is not None and task.cancelling() > 0
        step = functools.partial(_only_clean_up, function) if caused_by_cancellation else function
        try:
            result = await self.step(step, keeps_error=True)
        except _NothingIsOpen:
            result = None
        except BaseException:
            self.waiting -= 1
            self.end_unawaited(function)
            raise
        self.waiting -= 1
        if self.errors:
            error = self.errors.pop()
            try:
                raise error
            finally:
                del error
        return result

    def end_unawaited(self, function: Callable[[], Any]) -> None:
        """Run *function* on the thread when it is free, without waiting. Errors go to the loop's exception handler.

        On any thread, also in a finalizer.
        """
        self.ending = self._given_up = True
        if self.kept is None or self._generation is not forks.generation:
            # Nothing was started, or the parent process has started it.
            return
        job = _Unawaited(self, function)
        kept = self.kept
        if not isinstance(kept, JobExecutor):
            _give_to_worker(_Submission(kept, job))
        elif not kept.post(job) and self._first is not None:
            post_elsewhere(job, self.kept)

    def finish(self) -> None:
        """On the thread: record that nothing is open any more."""
        _open.discard(self)
        self._first = None
        pinned, self._pinned = self._pinned, None
        if pinned is not None:
            pinned.unpin()
        if isinstance(self._executor, StepsExecutor):
            self._executor.shutdown(wait=False)

    # Choosing the thread:

    def _give_to_thread(
        self, call: ThreadCall[Any], loop: asyncio.AbstractEventLoop, inner_calls: InnerCalls, args: tuple[Any, ...]
    ) -> Any:
        if self._loop() is not loop:
            self._loop = weakref.ref(loop)
        if self.kept is None:
            self._generation = forks.generation
            _open.add(self)  # first, because the thread may remove it soon
            try:
                kept = super()._give_to_thread(call, loop, inner_calls, args)
            except BaseException:
                _open.discard(self)
                self._first = None
                raise
            block = self.thread_sensitive_context.get(None) if self._thread_sensitive else None
            if isinstance(block, ThreadSensitiveContext) and block._executor is kept:
                self._block = block
            self.kept = kept
            if isinstance(kept, ContextExecutor):
                # A release that another thread has just requested is not delayed, and ends the steps.
                kept.pin()
                self._pinned = kept
            return kept
        if self._accepts(call, loop, inner_calls):
            return self.kept
        if not self.ending:
            raise RuntimeError(
                f"{self.__qualname__} cannot continue: the thread of its first step is gone, because its async_to_sync "
                "call or ThreadSensitiveContext block has ended, or this process was forked; use and close it inside "
                "that call or block"
            )
        if self._first is None:
            # A job that nothing awaits has ended all, and released the thread. It may still be using the context.
            raise _NothingIsOpen
        if not self._thread_sensitive:  # the other threads may be blocked until this has ended
            return _give_to_worker(call)
        for executor in self._executors(loop, args):
            # If the rules choose the thread of this loop, do not wait for it: that would deadlock.
            if getattr(executor, "belongs_to_this_thread", False):
                continue
            with contextlib.suppress(RuntimeError):  # the block has ended
                if not isinstance(executor, JobExecutor):
                    self._submit(call, executor, loop, inner_calls)
                    return executor
                if executor.post(call):
                    return executor
        return _give_to_worker(call)

    def _accepts(self, call: ThreadCall[Any], loop: asyncio.AbstractEventLoop, inner_calls: InnerCalls) -> bool:
        """Give *call* to the thread of the first step; return whether that thread still exists."""
        kept = self.kept
        if self._generation is not forks.generation or (self._block is not None and self._block._ended):
            return False
        if isinstance(kept, JobExecutor):
            try:
                return kept.post(call, threading.get_ident())
            except WouldDeadlock:
                raise self._deadlock(loop) from None
        try:
            self._submit(call, kept, loop, inner_calls)
        except RuntimeError:
            if routing.has_no_other_thread(kept):
                raise
            return False
        return True

    # The context:

    def _bring_in(self, loop: asyncio.AbstractEventLoop, run: Callable[..., Any]) -> None:
        """Apply the changes of the consumer to the context of the steps, in which *run* calls."""
        if local.THREADS_INHERIT:
            local.prepare_hand_over()
        here = contextvars.copy_context()
        if (here or self._seen) and not _is_same(self._seen, here):
            if self._tokens_there is None:
                self._tokens_there = {}
            run(_apply, self._seen, here, self._tokens_there)
            self._seen = here
        blocked_on_loop = AsyncToSync.loop_thread_executors.get(loop)
        if blocked_on_loop is not None and blocked_on_loop.surroundings is not None:
            # As for a call: all tasks of such a loop belong to the thread that is blocked on it.
            run(setattr, AsyncToSync.executors, "current", _mailbox_above(loop))

    def _news(self, loop: asyncio.AbstractEventLoop) -> list[Callable[[], Any]]:
        """Return what ``_bring_in`` would do, for the thread to do it later."""
        news: list[Callable[[], Any]] = []

        def note(function: Callable[..., Any], *args: Any) -> None:
            news.append(functools.partial(function, *args))

        self._bring_in(loop, note)
        return news

    def _bring_in_and_call(self, news: list[Callable[[], Any]], function: Callable[[], Any]) -> Any:
        __traceback_hide__ = True
        for bring_in in news:
            bring_in()
        self._before = contextvars.copy_context()
        return function()

    def bring_back(self, before: contextvars.Context, after: contextvars.Context) -> None:
        """Apply the changes from *before* to *after*, two contexts of the steps, to the current context.

        Changes of the consumer since the start of the latest step still have to be passed to the steps.
        """
        if local.THREADS_INHERIT:
            local.arrive(after)
        if not (before or after) or _is_same(before, after):
            return
        if self._tokens_here is None:
            self._tokens_here = {}
        _apply(before, after, self._tokens_here)
        seen = contextvars.Context()
        for variable, value in self._seen.items():
            if variable in after or variable not in before:
                seen.run(variable.set, value)
        seen.run(_apply, before, after, {})
        self._seen = seen

    # Errors that nothing awaits:

    def tell_errors(self) -> None:
        """Pass ``errors`` to the exception handler of the loop of the latest step."""
        if not self.errors:
            return
        loop = self._loop()
        try:
            if loop is None:
                raise RuntimeError
            loop.call_soon_threadsafe(self._tell_errors_to, loop, context=contextvars.Context())
        except RuntimeError:  # it is closed
            for error in _taken(self.errors):
                threading.excepthook(
                    threading.ExceptHookArgs((type(error), error, error.__traceback__, threading.current_thread()))
                )

    def _tell_errors_to(self, loop: asyncio.AbstractEventLoop) -> None:
        if self.waiting:
            return
        for error in _taken(self.errors):
            message = f"{self.__qualname__} raised an error when it was closed, and no call was waiting for its end"
            loop.call_exception_handler({"message": message, "exception": error})

    def loop(self) -> asyncio.AbstractEventLoop | None:
        """Return the loop of the latest step, if it still exists."""
        return self._loop()


def _only_clean_up(function: Callable[[], Any]) -> Any:
    cancellation.expect_only_cleanup(SyncToAsync.threadlocal.__dict__.get("task_context"))
    return function()


class _NothingIsOpen(Exception):
    """The iteration or block has been ended meanwhile, by a job that nothing awaits."""


class _Unawaited:
    """A job: run a function whose outcome nothing awaits."""

    def __init__(self, steps: Steps, function: Callable[[], Any]) -> None:
        self._steps, self._function = steps, function

    def run(self) -> None:
        steps = self._steps
        child = functools.partial(self._function)
        steps.thread_handler(steps.loop(), sys.exc_info(), InnerCalls(), steps.context.run, child)  # type: ignore[arg-type]

    def report(self) -> None:
        self._steps.tell_errors()

    def abandon(self, error: BaseException) -> None:
        # The thread was interrupted and runs no further jobs.
        post_elsewhere(self, self._steps.kept)


class _Submission:
    """A job for a worker: give another job to an executor whose ``submit`` may wait for a lock."""

    def __init__(self, executor: Any, job: Job) -> None:
        self._executor, self._job = executor, job

    def run(self) -> None:
        job = self._job
        try:
            self._executor.submit(_run, job)
        except RuntimeError:  # it was shut down
            _run(job)

    def report(self) -> None:
        pass

    def abandon(self, error: BaseException) -> None:  # pragma: no cover: no worker abandons a job
        pass


def _run(job: Job) -> None:
    job.run()
    job.report()


def _give_to_worker(job: Job) -> WorkerExecutor:
    executor = StepsExecutor()
    executor.post(job)
    executor.shutdown(wait=False)
    return executor


def post_elsewhere(job: Job, executor: Any) -> None:
    """Give *job*, which *executor* no longer accepts, to another thread without a running loop."""
    for mailbox in _outer(executor):
        if mailbox.post(job):
            return
    process_wide = SyncToAsync.single_thread_executor
    if not isinstance(process_wide, JobExecutor):
        _give_to_worker(_Submission(process_wide, job))
    elif not process_wide.post(job):
        _give_to_worker(job)


def _outer(executor: Any) -> Iterator[CurrentThreadExecutor]:
    while isinstance(executor, CurrentThreadExecutor) and (executor := executor.outer) is not None:
        yield executor


def _taken(errors: list[BaseException]) -> Iterator[BaseException]:
    """Remove the items of *errors* one by one: two threads may do this concurrently."""
    while errors:
        with contextlib.suppress(IndexError):
            yield errors.pop(0)


def _is_same(one: contextvars.Context, other: contextvars.Context) -> bool:
    """Return whether both have the same variables with identical values."""
    if len(one) != len(other):
        return False
    return (
        not one
        or (LOOKS_AT_MAPS and internals.share_variables(one, other))
        or (all(map(operator.is_, one.values(), other.values())) and all(map(operator.is_, one, other)))
    )


def _apply(before: contextvars.Context, after: contextvars.Context, tokens: dict[Any, contextvars.Token[Any]]) -> None:
    """Apply the changes from *before* to *after* to the current context.

    Args:
        tokens: The tokens of variables that were set here by this function and were not set before.
    """
    for variable, value in changes_between(before, after).items():
        token = variable.set(value)
        if token.old_value is contextvars.Token.MISSING:
            tokens[variable] = token
    if local.THREADS_INHERIT and (entry := after.get(local.LINEAGE)) is not None:
        local.LINEAGE.set(entry)
    for variable in before:
        if variable not in after and variable in tokens:
            with contextlib.suppress(ValueError, LookupError):  # set in another task's context, or removed
                variable.reset(tokens.pop(variable))
