"""Event loops that the library owns: a fresh one for each call, or one that is kept for a block."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from typing import TYPE_CHECKING, Any

from . import forks, greenlets, workers
from .forks import after_fork_in_child
from .internals import has_nothing_left
from .jobs import AwaitedOutcome, LoopCall, Outcome

if TYPE_CHECKING:
    from ..current_thread_executor import CurrentThreadExecutor

__all__ = ["FreshLoop", "KeptLoop", "Mailboxes"]

# Which mailbox does the thread serve that is blocked on this loop?
Mailboxes = dict[asyncio.AbstractEventLoop, "CurrentThreadExecutor"]


class FreshLoop:
    """A job: run one call on a loop of its own, as ``asyncio.run`` does, and end the loop before the call."""

    def __init__(
        self, call: LoopCall, outcome: AwaitedOutcome[Any], mailbox: CurrentThreadExecutor, mailboxes: Mailboxes
    ) -> None:
        self._call, self._outcome, self._mailbox, self._mailboxes = call, outcome, mailbox, mailboxes

    def run(self) -> None:
        if self._mailbox.belongs_to_this_thread:
            self._mailbox.run_in_place = workers.run_in_place
        self._outcome.thread_goes_on = None  # not before the loop has ended, in report()
        loop = None
        try:
            loop = asyncio.new_event_loop()
            self._mailboxes[loop] = self._mailbox
            try:
                task = self._call.start(loop)
                if task is not None:
                    loop.run_until_complete(task)
                    if not self._outcome.settled:
                        raise RuntimeError("what replaces AsyncToSync.main_wrap() ended without calling it")
            except BaseException as error:
                # Cancelled before its first step, or broken off by a SystemExit of another task.
                self._outcome.set_exception(error)
            _end(loop)
        except BaseException as error:  # of ending the loop: what asyncio.run would raise
            self._outcome.set_exception(error)
        finally:
            if loop is not None:
                self._mailboxes.pop(loop, None)
            # What a finalizer of the user's does has to happen before the worker is idle.
            del self._call, self._outcome

    def report(self) -> None:
        self._mailbox.stop()

    def abandon(self, error: BaseException) -> None:  # pragma: no cover: no worker abandons a job
        self.report()


def _end(loop: asyncio.AbstractEventLoop) -> None:
    """End *loop* as ``asyncio.run`` does."""
    if asyncio.all_tasks(loop):
        # Closing the runner cancels and awaits them.
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.get_loop()
        return
    try:
        if not has_nothing_left(loop):
            # In one run of the loop where a runner makes two.
            loop.run_until_complete(_shut_down(loop))
    finally:
        loop.close()


async def _shut_down(loop: asyncio.AbstractEventLoop) -> None:
    await loop.shutdown_asyncgens()
    await loop.shutdown_default_executor()


# Guards what concerns kept loops: starting one, giving it work, closing it. Reentrant, because
# a signal handler may bridge on a thread that holds it; a forked child gets a new one.
lock = threading.RLock()


@after_fork_in_child
def _renew_lock() -> None:
    global lock
    lock = threading.RLock()


class KeptLoop:
    """A loop that runs on a leased worker, also between calls, until it is closed."""

    loop: asyncio.AbstractEventLoop

    def __init__(self, mailboxes: Mailboxes) -> None:
        # A selector of gevent's belongs to the thread that makes it.
        self._loop_made = threading.Event() if greenlets.is_patched("select") else None
        if self._loop_made is None:
            self.loop = asyncio.new_event_loop()
        self._mailboxes = mailboxes
        self._blocked: list[CurrentThreadExecutor] = []
        self._closing = self._ended = False
        self._generation = forks.generation
        self._end: Outcome[None] = Outcome()
        self._waits_for_end: CurrentThreadExecutor | None = None

    @classmethod
    def start(cls, mailboxes: Mailboxes) -> KeptLoop | None:
        """Return a loop that runs, or None where Python starts no thread any more."""
        kept = cls(mailboxes)
        executor = workers.KeptLoopExecutor()
        try:
            accepted = executor.post(kept)
            executor.shutdown(wait=False)
        except RuntimeError:
            kept._close_unused_loop()
            raise
        except BaseException:
            # Whether a worker has got it is not known after an interrupt; if so, it ends at once.
            kept.close(None)
            raise
        if not accepted:
            kept._close_unused_loop()
            return None
        if kept._loop_made is not None:
            while not kept._loop_made.wait(1):  # without a limit, gevent would say that it blocks for ever
                pass  # pragma: no cover: it takes no second
        return kept

    def _close_unused_loop(self) -> None:
        if self._loop_made is None:
            self.loop.close()

    @property
    def usable(self) -> bool:
        return not self._closing and self._generation is forks.generation

    def post(self, call: LoopCall, mailbox: CurrentThreadExecutor) -> bool:
        """Have the loop start *call*, whose thread serves *mailbox*; return False where the loop is closing."""
        with lock:
            if not self.usable:
                return False
            try:
                self._enter(mailbox)
                call.asked = self.loop
                # Ahead of the callback that ends the loop, so whatever was accepted is started.
                self.loop.call_soon_threadsafe(call.start, self.loop, context=contextvars.Context())
            except BaseException:  # an interrupt: the caller will not know which loop to leave
                self.leave(mailbox)
                raise
        return True

    def _enter(self, mailbox: CurrentThreadExecutor) -> None:
        self._blocked.append(mailbox)
        self._mailboxes[self.loop] = mailbox

    def leave(self, mailbox: CurrentThreadExecutor) -> None:
        """Note that the thread of *mailbox* is no longer blocked."""
        with lock:
            # Along with those whose threads were interrupted on the way here.
            self._blocked = [each for each in self._blocked if each is not mailbox and each.serving]
            if self._blocked and not self._end.settled:
                self._mailboxes[self.loop] = self._blocked[-1]
            else:
                self._mailboxes.pop(self.loop, None)

    def close(self, mailbox: CurrentThreadExecutor | None) -> None:
        """Cancel what still runs and end the loop; stop *mailbox* when that is done.

        After an interrupt this can be done again.
        """
        if self._generation is not forks.generation:
            return
        with lock:
            self._closing = True
            self._waits_for_end = mailbox
            if mailbox is not None:
                self._enter(mailbox)
        with contextlib.suppress(RuntimeError, AttributeError):  # it is closed already, or not made
            self.loop.call_soon_threadsafe(self._end_loop, context=contextvars.Context())
        # It may have ended by an error of its own. Its worker settles the end, takes the lock, and looks for a mailbox
        # then, so that one of the two sees what the other did.
        if mailbox is not None and self._end.settled:
            self.leave(mailbox)
            mailbox.stop()

    def _end_loop(self) -> None:
        if not self._ended:  # told twice, after an interrupt: the second would break off the tasks' cleanup
            self._ended = True
            self.loop.stop()

    # As a job, on the worker:

    def run(self) -> None:
        if self._loop_made is not None:
            self.loop = asyncio.new_event_loop()
            self._loop_made.set()
        try:
            with asyncio.Runner(loop_factory=lambda: self.loop) as runner:
                loop = runner.get_loop()
                while not self._ended:
                    # Neither an exit of one task nor a stray stop() ends the others' loop.
                    try:
                        loop.run_forever()
                    except (KeyboardInterrupt, SystemExit) as error:
                        self._pass_on(error)
        except BaseException as error:  # of ending the loop: what asyncio.run would raise
            self._closing = True
            self._end.set_exception(error)
        else:
            self._end.set_result(None)
        with lock:
            self._mailboxes.pop(self.loop, None)

    def _pass_on(self, error: BaseException) -> None:
        """Raise *error*, which a task let out, in a blocked thread: best in the main thread, whose Ctrl-C it may be."""
        main = threading.main_thread().ident
        with lock:
            of_main = [mailbox for mailbox in self._blocked if mailbox.owner == main]
            for mailbox in reversed(of_main or self._blocked):
                if mailbox.post(_Interruption(error)):
                    return

    def report(self) -> None:
        if self._waits_for_end is not None:
            self._waits_for_end.stop()

    def abandon(self, error: BaseException) -> None:  # pragma: no cover: no worker abandons a job
        self.report()

    def raise_if_it_ended_badly(self) -> None:
        self._end.take()


class _Interruption(Outcome[None]):
    """A job that interrupts the thread which runs it."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.set_exception(error)

    def run(self) -> None:
        self.take()

    def report(self) -> None:  # pragma: no cover: run() interrupts the thread first
        pass

    def abandon(self, error: BaseException) -> None:
        pass
