"""Event loops that run on a worker thread: ``ThreadSensitiveEventLoop``.

``run_forever`` of such a loop, and everything that uses it, runs the loop on a worker and
serves a mailbox until the end of the run. So thread-sensitive code below runs on the calling
thread, as below ``async_to_sync``.

``asgiref.sync`` exports both names, too, and imports this module on their first use.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import inspect
import signal
import sys
import threading
import weakref
from typing import TYPE_CHECKING, Any, TypeVar, TypeVarTuple

from . import local
from ._bridge import greenlets, lending, workers
from ._bridge.carry import ExceptionMarks
from ._bridge.internals import be_quiet_if_destroyed, main_task_of, needs_no_run, running_loop
from ._bridge.jobs import removed
from .current_thread_executor import CurrentThreadExecutor
from .sync import AsyncToSync, SyncToAsync

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Generator
    from types import FrameType

    Loop = TypeVar("Loop", bound=asyncio.AbstractEventLoop)
    LoopOnWorker = asyncio.BaseEventLoop
else:
    LoopOnWorker = object

__all__ = ["ThreadSensitiveEventLoop", "thread_sensitive_loop_factory"]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class _Mailbox(CurrentThreadExecutor):
    """The mailbox of the thread that waits for one run of a loop. It also takes errands, which run before jobs."""

    def __init__(self) -> None:
        outer = local.peek(AsyncToSync.executors, "current")
        super().__init__(outer)
        self.surroundings = lending.blocked_above(outer, SyncToAsync.thread_sensitive_context.get(None))
        while isinstance(outer, CurrentThreadExecutor):
            outer = outer.outer
        if outer is not None:  # set by hand to an executor of another kind
            self.surroundings.append(outer)
        lending.note_executor(self, SyncToAsync.threadlocal.__dict__.get("task_context"))
        self._errands: list[_Errand] = []
        self._busy = False

    def run_errand(self, function: Callable[[], None]) -> None:
        """Run *function* on the thread: before this returns if the thread is idle, else after its current job.

        This does not wait for a running job, which may need the calling thread. This side adds
        the errand and then checks for a job. The thread marks the job and then checks for
        errands. So at least one of the two notices the other. *function* may be called twice.
        """
        errand = _Errand(function)
        # Between the two steps, both sides take the list's own lock. A lock of ours could deadlock: a signal handler
        # may run while the thread holds it, and wait for the calling thread.
        self._errands.append(errand)
        busy = self._busy
        if self.post(errand) and not busy:
            errand.let_go.wait()

    def _run_next(self) -> None:
        # Removed only when it is done, because an interrupt may come at any moment.
        while self._errands:
            self._errands[0].run()
            del self._errands[0]
        try:
            job = self._jobs[0]
        except IndexError:  # the poster took it back, because the mailbox is closed
            return
        if isinstance(job, _Errand):  # it stays among the errands until it is done
            removed(self._jobs, job)
            return
        try:
            self._busy = True
            for errand in self._errands.copy():
                errand.let_go.set()
            super()._run_next()
        finally:
            self._busy = False


class _Errand:
    """A job that the thread of a mailbox runs before all others."""

    def __init__(self, function: Callable[[], None]) -> None:
        self._function = function
        # Set when the errand is done, or when the thread is busy with a job.
        self.let_go = threading.Event()

    def run(self) -> None:
        self._function()
        self.let_go.set()

    def report(self) -> None:  # pragma: no cover: the mailbox removes errands itself
        pass

    def abandon(self, error: BaseException) -> None:
        self.let_go.set()


class _Run:
    """A job: one run of *loop* on its worker. Either the worker starts it, or the waiting thread takes it back."""

    def __init__(self, loop: asyncio.AbstractEventLoop, run_forever: Callable[[], None], mailbox: _Mailbox) -> None:
        self._loop, self._mailbox = loop, mailbox
        # Deletion is atomic and fails the second time, so exactly one side wins.
        self._run_forever = run_forever
        self._handled = sys.exc_info()[1]
        self._mark = local.mark_of_thread()
        self._ended = False
        self._error: BaseException | None = None

    # On the worker:

    def run(self) -> None:
        __traceback_hide__ = True
        try:
            run_forever = self._run_forever
            del self._run_forever
        except AttributeError:
            return
        loop = self._loop  # read from this frame by bridge_calls
        if self._mailbox.belongs_to_this_thread:
            self._mailbox.run_in_place = workers.run_in_place
        handled, mark = self._handled, local.replace_mark(self._mark)
        try:
            if handled is None:
                run_forever()
            else:  # tasks see it in sys.exc_info(), as on the waiting thread
                marks = ExceptionMarks(handled)
                try:
                    raise handled
                except BaseException:
                    marks.put_back(handled)
                    run_forever()
        except BaseException as error:
            # Without this frame, because the waiting thread adds two.
            self._error = error.with_traceback(error.__traceback__ and error.__traceback__.tb_next)
        finally:
            self._ended = True
            local.replace_mark(mark)
            del self._handled, handled, loop, run_forever

    def end(self, future: asyncio.Future[Any] | None = None) -> None:
        """Stop the loop, unless this run has ended or *future* ends it with KeyboardInterrupt or SystemExit."""
        exception = None if future is None or future.cancelled() else future.exception()
        if not self._ended and not isinstance(exception, (KeyboardInterrupt, SystemExit)):
            self._loop.stop()

    def report(self) -> None:
        self._mailbox.stop()

    def abandon(self, error: BaseException) -> None:  # pragma: no cover: no worker abandons a job
        self.report()

    # On the waiting thread:

    def stop(self) -> bool:
        """Stop the run soon; return False if it had not started, in which case it never will."""
        try:
            del self._run_forever
        except AttributeError:
            self._loop.call_soon_threadsafe(self.end, context=contextvars.Context())
            return True
        return False

    def take_error(self) -> BaseException | None:
        error, self._error = self._error, None
        return error


class _MainTask:
    """Replaces the main task in the Ctrl-C handler of an ``asyncio.Runner``; cancels it on the loop's thread.

    The handler runs on the main thread while the loop runs on another one, and only the loop's
    own thread may cancel a task.
    """

    def __init__(self, task: asyncio.Task[Any], loop: asyncio.AbstractEventLoop) -> None:
        self._task, self._loop = task, loop
        self._requested = self._delivered = False

    def done(self) -> bool:
        return self._task.done()

    def cancel(self) -> None:
        self._requested = True
        self._loop.call_soon_threadsafe(self._cancel, context=contextvars.Context())

    def _cancel(self) -> None:
        if self._requested:
            self._delivered = self._task.cancel()

    def missed_cancellation(self) -> bool:
        """After the run, return whether the task ended before the cancellation was delivered."""
        missed = self._requested and not self._delivered
        self._requested = False
        # A task that stop() has left unfinished is cancelled in the next run.
        return missed and not self._task.cancel()


class _CtrlC:
    """For one run, lets the Ctrl-C handler of an ``asyncio.Runner`` cancel its task on the loop's thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._theirs: Any = None
        self._ours: Any = None
        self._task: _MainTask | None = None

    def enter(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        handler = signal.getsignal(signal.SIGINT)
        task = main_task_of(handler, self._loop)
        if task is not None:
            self._theirs, self._task = handler, _MainTask(task, self._loop)
            self._ours = functools.partial(self._theirs.func, main_task=self._task)
            signal.signal(signal.SIGINT, self._ours)

    def leave(self) -> None:
        # The Runner checks whether its own handler is set.
        if self._ours is not None and signal.getsignal(signal.SIGINT) is self._ours:
            signal.signal(signal.SIGINT, self._theirs)

    def came_too_late(self) -> bool:
        return self._task is not None and self._task.missed_cancellation()


class _Signals:
    """The signal handlers of one loop, called by Python's signal handlers, which run on the main thread."""

    UNCATCHABLE = frozenset(getattr(signal, name) for name in ("SIGKILL", "SIGSTOP") if hasattr(signal, name))

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = weakref.ref(loop)
        self.handlers: dict[int, tuple[Callable[..., object], tuple[Any, ...], contextvars.Context]] = {}

    def apply(self, sig: int) -> None:
        """Set Python's handler according to the current table. On the main thread."""
        if sig in self.handlers:
            signal.signal(sig, self._pass_on)
            signal.siginterrupt(sig, False)
        else:
            signal.signal(sig, signal.default_int_handler if sig == signal.SIGINT else signal.SIG_DFL)

    def _pass_on(self, sig: int, frame: FrameType | None) -> None:
        loop, handler = self._loop(), self.handlers.get(sig)
        if loop is not None and handler is not None:
            callback, arguments, context = handler
            with contextlib.suppress(RuntimeError):  # closed
                loop.call_soon_threadsafe(callback, *arguments, context=context)
                return
        # The loop is gone or closed: restore the default and raise the signal again.
        self.handlers.pop(sig, None)
        self.apply(sig)
        signal.raise_signal(sig)


class _ThreadSensitive(LoopOnWorker):
    """A mixin that runs an event loop on a worker thread; the first base class, before the class of the loop."""

    # Set on first use, because a loop may get this class after its creation.
    __lease: workers.LoopExecutor | None = None
    __signals: _Signals | None = None

    def run_until_complete(self, future: Generator[Any, None, T] | Awaitable[T]) -> T:
        """Run the loop until *future* is done, and return its result; see ``run_forever``."""
        __traceback_hide__ = True
        self.__check_that_it_may_run()
        if needs_no_run(future, self):
            # The run would have no effect, and cost a fifth of starting and ending a loop.
            with contextlib.suppress(StopIteration):
                future.send(None)  # type: ignore[union-attr]
            return None  # type: ignore[return-value]
        is_new = not asyncio.isfuture(future)
        until: asyncio.Future[T] = asyncio.ensure_future(future, loop=self)  # type: ignore[arg-type]
        if is_new:
            be_quiet_if_destroyed(until)  # the error below reports it
        try:
            self.__run(until)
        except BaseException:
            if is_new and until.done() and not until.cancelled():
                until.exception()  # mark it as retrieved: the caller has no access to the task
            raise
        if not until.done():
            raise RuntimeError("Event loop stopped before Future completed.")
        return until.result()

    def run_forever(self) -> None:
        """Run the loop on its worker until ``stop`` is called; run thread-sensitive code on this thread meanwhile.

        An exception of a signal handler on this thread, such as ``KeyboardInterrupt``, stops
        the loop and is raised after that. A second one is raised at once.
        """
        __traceback_hide__ = True
        self.__check_that_it_may_run()
        self.__run()

    def __check_that_it_may_run(self) -> None:
        __traceback_hide__ = True
        if self.is_closed():
            raise RuntimeError("Event loop is closed")
        if self.is_running():
            raise RuntimeError("This event loop is already running")
        if running_loop() is not None:
            raise RuntimeError("Cannot run the event loop while another loop is running")
        if greenlets.is_patched("threading"):
            raise RuntimeError(
                f"{type(self).__name__} cannot be run under gevent's monkey patch, where an event loop works only on "
                "the thread that made it, and this one runs on a worker thread; use async_to_sync instead"
            )

    def __run(self, until: asyncio.Future[Any] | None = None) -> None:
        __traceback_hide__ = True
        mailbox = _Mailbox()
        run = _Run(self, super().run_forever, mailbox)
        ctrl_c = _CtrlC(self)
        interrupt = error = None
        mailboxes = AsyncToSync.loop_thread_executors
        try:
            other = mailboxes.setdefault(self, mailbox)
            if other is not mailbox and other.serving:
                raise RuntimeError("This event loop is already running")
            mailboxes[self] = mailbox  # replaces one that an interrupt has left there
            if until is not None:
                until.add_done_callback(run.end)
            ctrl_c.enter()
            interrupt = self.__hand_over_and_serve(run, mailbox)
        finally:
            try:
                mailbox.close(run_rest=False)  # in case of an interrupt in between
            finally:
                if mailboxes.get(self) is mailbox:
                    del mailboxes[self]
                ctrl_c.leave()
                if until is not None:
                    until.remove_done_callback(run.end)
        try:
            error = run.take_error()
            if interrupt is not None:
                raise interrupt
            if error is not None:
                raise error
            if ctrl_c.came_too_late():
                raise KeyboardInterrupt
        finally:
            del interrupt, error

    def __hand_over_and_serve(self, run: _Run, mailbox: _Mailbox) -> BaseException | None:
        """Start *run* on the worker and serve *mailbox* until it has ended; return an interrupt or None."""
        __traceback_hide__ = True
        lease = self.__leased()
        interrupt: BaseException | None = None
        handed_over = False
        try:
            while True:
                try:
                    if not handed_over:
                        handed_over = True
                        if lease.belongs_to_this_thread:  # a finalizer, between two runs
                            workers.run_in_place(run)
                        elif not lease.post(run):
                            raise RuntimeError("Event loop is closed")  # meanwhile, by another thread
                        lease.note_caller(threading.current_thread())
                    mailbox.serve()
                    mailbox.close()
                    return interrupt
                except BaseException as error:
                    # Not serving: after a fork, or interrupted while running the last jobs.
                    if interrupt is not None or not mailbox.serving or not run.stop():
                        raise
                    interrupt = error
        finally:
            del interrupt

    def __leased(self) -> workers.LoopExecutor:
        if self.__lease is None:
            self.__lease = workers.LoopExecutor()
        return self.__lease

    if sys.version_info >= (3, 14):

        def create_task(self, coro: Coroutine[Any, Any, T], **options: Any) -> asyncio.Task[T]:
            """Create the task on the worker: asyncio registers tasks for the thread that creates them."""
            make_task = super().create_task
            if self.is_running() or self.is_closed() or self.__leased().belongs_to_this_thread:
                return make_task(coro, **options)
            return self.__leased().submit(contextvars.copy_context().run, make_task, coro, **options).result()

    def close(self) -> None:
        """Close the loop and release its worker."""
        super().close()
        lease, self.__lease = self.__lease, None
        if lease is not None:
            lease.shutdown(wait=False)
        if self.__signals is not None and threading.current_thread() is threading.main_thread():
            for sig in list(self.__signals.handlers):
                self.remove_signal_handler(sig)

    if sys.platform != "win32":  # pragma: no branch: Windows has no such signals

        def add_signal_handler(self, sig: int, callback: Callable[[*Ts], object], *args: *Ts) -> None:
            """Call *callback* on the loop when the signal arrives. The main thread must be running the loop.

            In a coroutine, this takes effect at once if the main thread is idle in its mailbox, else
            after its current job.
            """
            if asyncio.iscoroutine(callback) or inspect.iscoroutinefunction(callback):
                raise TypeError("coroutines cannot be used with add_signal_handler()")
            signals = self.__signals_for(sig)
            if self.is_closed():
                raise RuntimeError("Event loop is closed")
            if sig in signals.UNCATCHABLE:
                raise RuntimeError(f"sig {sig} cannot be caught")
            on_main_thread = self.__way_to_main_thread("add_signal_handler")
            signals.handlers[sig] = callback, args, contextvars.copy_context()
            on_main_thread(functools.partial(signals.apply, sig))

        def remove_signal_handler(self, sig: int) -> bool:
            """Undo ``add_signal_handler``, with the same timing; return whether there was a handler."""
            signals = self.__signals_for(sig)
            if sig not in signals.handlers:
                return False
            on_main_thread = self.__way_to_main_thread("remove_signal_handler")
            del signals.handlers[sig]
            on_main_thread(functools.partial(signals.apply, sig))
            return True

        def __signals_for(self, sig: int) -> _Signals:
            if not isinstance(sig, int):
                raise TypeError(f"sig must be an int, not {sig!r}")
            if sig not in signal.valid_signals():
                raise ValueError(f"invalid signal number {sig}")
            if self.__signals is None:
                self.__signals = _Signals(self)
            return self.__signals

        def __way_to_main_thread(self, called: str) -> Callable[[Callable[[], None]], None]:
            if threading.current_thread() is threading.main_thread():
                return lambda function: function()
            mailbox = AsyncToSync.loop_thread_executors.get(self)
            if (
                running_loop() is self
                and isinstance(mailbox, _Mailbox)
                and mailbox.owner == threading.main_thread().ident
            ):
                return mailbox.run_errand
            raise RuntimeError(
                f"{called}() cannot be called for {self!r} on thread {threading.current_thread().name!r}, because "
                "Python sets signal handlers on the main thread only; run the loop from the main thread"
            )


# The default event loop of asyncio on this platform.
if sys.version_info >= (3, 13):
    _AsyncioLoop = asyncio.EventLoop
elif sys.platform == "win32":  # pragma: no cover: the tests run on others
    _AsyncioLoop = asyncio.ProactorEventLoop
else:
    _AsyncioLoop = asyncio.SelectorEventLoop


class ThreadSensitiveEventLoop(_ThreadSensitive, _AsyncioLoop):
    """An event loop on a worker thread; the calling thread runs thread-sensitive code meanwhile.

    The loop is equivalent to asyncio's own. The thread that calls ``run_forever`` or
    ``run_until_complete`` behaves as in ``async_to_sync``: it waits, and runs thread-sensitive
    code meanwhile. Pass the class wherever a loop factory is accepted:
    ``asyncio.run(main(), loop_factory=ThreadSensitiveEventLoop)``.

    Thread and loop:
        All runs of a loop happen on one worker thread, which is leased by the first run and
        released by ``close``. Each run serves the thread that calls it. Thread-sensitive code
        of all tasks of the loop runs there, in any context, also inside a
        ``ThreadSensitiveContext``, unless that has an executor and was entered on this loop.

    Cancellation:
        Under ``asyncio.Runner`` and ``asyncio.run``, Ctrl-C cancels the main task, on the
        loop's thread. Otherwise, an exception of a signal handler on the calling thread stops
        the loop and is raised after that; the loop can run again. A second one is raised at
        once.

    Raises:
        RuntimeError: by methods that run the loop, if this loop or another one on this thread
            is running, or if the loop is closed.

    >>> import asyncio, threading
    >>> from asgiref.sync import sync_to_async
    >>> async def main():
    ...     return await sync_to_async(threading.current_thread)()
    >>> with asyncio.Runner(loop_factory=ThreadSensitiveEventLoop) as runner:
    ...     runner.run(main()) is threading.current_thread()
    True
    """


def thread_sensitive_loop_factory(factory: Callable[[], Loop]) -> Callable[[], Loop]:
    """Return a factory whose loops run on a worker thread, as ``ThreadSensitiveEventLoop`` does.

    Args:
        factory: Makes a loop: ``uvloop.new_event_loop``, a class of event loops, or a function
            that sets one up. The class of the loop must be written in Python; uvloop's
            outermost class is.

    Returns:
        A loop factory. The class of its loops is a subclass of their original class.

    Raises:
        TypeError: by the returned factory, if such a subclass cannot be made.

    >>> import asyncio
    >>> loop = thread_sensitive_loop_factory(asyncio.SelectorEventLoop)()
    >>> isinstance(loop, asyncio.SelectorEventLoop)
    True
    >>> loop.close()
    """

    def new_event_loop() -> Loop:
        loop = factory()
        if not isinstance(loop, _ThreadSensitive):
            # Not a wrapper: tasks, transports and callbacks of the loop refer to the loop itself.
            loop.__class__ = _thread_sensitive_class(type(loop))  # type: ignore[arg-type]
        return loop

    return new_event_loop


@functools.cache
def _thread_sensitive_class(of_loop: type[Any]) -> type[Any]:
    return type(f"ThreadSensitive{of_loop.__name__}", (_ThreadSensitive, of_loop), {"__module__": of_loop.__module__})
