"""Event loops of the library: a new one for each call, or one that is kept for a block."""

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

__all__ = ["BAD_MAIN_WRAP", "FreshLoop", "KeptLoop", "Mailboxes", "end"]

# For each loop: the mailbox of the thread that is blocked on it.
Mailboxes = dict[asyncio.AbstractEventLoop, "CurrentThreadExecutor"]

BAD_MAIN_WRAP = (
    "a replacement of AsyncToSync.main_wrap() did not call the original, so the coroutine never ran; call it with the "
    "same arguments"
)


class FreshLoop:
    """A job: run one call on a new loop, as ``asyncio.run`` does, and close the loop before the call ends."""

    def __init__(
        self, call: LoopCall, outcome: AwaitedOutcome[Any], mailbox: CurrentThreadExecutor, mailboxes: Mailboxes
    ) -> None:
        self._call, self._outcome, self._mailbox, self._mailboxes = call, outcome, mailbox, mailboxes

    def run(self) -> None:
        if self._mailbox.belongs_to_this_thread:
            self._mailbox.run_in_place = workers.run_in_place
        self._outcome.thread_goes_on = None  # only after the end of the loop, in report()
        loop = None
        try:
            loop = asyncio.new_event_loop()
            self._mailboxes[loop] = self._mailbox
            try:
                task = self._call.start(loop)
                if task is not None:
                    loop.run_until_complete(task)
                    if not self._outcome.settled:
                        raise RuntimeError(BAD_MAIN_WRAP)
            except BaseException as error:
                # Cancelled before its first step, or interrupted by a SystemExit of another task.
                self._outcome.set_exception(error)
            end(loop)
        except BaseException as error:  # from closing the loop; asyncio.run would raise it
            self._outcome.set_exception(error)
        finally:
            if loop is not None:
                self._mailboxes.pop(loop, None)
            # Finalizers of the user must run before the worker is idle.
            del self._call, self._outcome

    def report(self) -> None:
        self._mailbox.stop()

    def abandon(self, error: BaseException) -> None:  # pragma: no cover: no worker abandons a job
        self.report()


# How often a loop that ends looks for new tasks. A guess: a task that starts another one whenever it is cancelled must
# not keep the loop forever.
MOST_LOOKS = 10


def end(loop: asyncio.AbstractEventLoop) -> None:
    """End *loop* as ``asyncio.run`` does; then cancel what other threads have started on it meanwhile, and await that.

    A function whose caller was cancelled may make a call on the loop until the loop is closed.
    """
    try:
        is_over = has_nothing_left(loop) and not asyncio.all_tasks(loop)
        for _ in range(MOST_LOOKS):
            if is_over:
                break
            loop.run_until_complete(_shut_down(loop))
            is_over = not asyncio.all_tasks(loop)
    finally:
        loop.close()


async def _shut_down(loop: asyncio.AbstractEventLoop) -> None:
    for _ in range(MOST_LOOKS):
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for task in tasks:
            if not task.cancelled() and (error := task.exception()) is not None:
                message = "unhandled exception in a task that was cancelled because its event loop ended"
                loop.call_exception_handler({"message": message, "exception": error, "task": task})
        await loop.shutdown_asyncgens()
        if len(asyncio.all_tasks()) == 1:
            break
    await loop.shutdown_default_executor()


# Guards kept loops: starting one, giving it work, closing it. Reentrant, because a signal handler
# may bridge on a thread that holds it. A forked child gets a new one.
lock = threading.RLock()


@after_fork_in_child
def _renew_lock() -> None:
    global lock
    lock = threading.RLock()


class KeptLoop:
    """A loop that runs on a leased worker, also between calls, until it is closed."""

    loop: asyncio.AbstractEventLoop

    def __init__(self, mailboxes: Mailboxes) -> None:
        # A gevent selector belongs to the thread that creates it.
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
        """Return a running loop, or None if Python no longer starts threads."""
        kept = cls(mailboxes)
        executor = workers.KeptLoopExecutor()
        try:
            accepted = executor.post(kept)
            executor.shutdown(wait=False)
        except RuntimeError:
            kept._close_unused_loop()
            raise
        except BaseException:
            # After an interrupt, a worker may or may not have the loop; if it has, the loop ends at once.
            kept.close(None)
            raise
        if not accepted:
            kept._close_unused_loop()
            return None
        if kept._loop_made is not None:
            while not kept._loop_made.wait(1):  # without a limit, gevent would say that it blocks forever
                pass  # pragma: no cover: it takes less than a second
        return kept

    def _close_unused_loop(self) -> None:
        if self._loop_made is None:
            self.loop.close()

    @property
    def usable(self) -> bool:
        return not self._closing and self._generation is forks.generation

    def post(self, call: LoopCall, mailbox: CurrentThreadExecutor) -> bool:
        """Start *call* on the loop; its thread serves *mailbox*. Return False if the loop is closing."""
        with lock:
            if not self.usable:
                return False
            try:
                self._enter(mailbox)
                call.asked = self.loop
                # Before the callback that ends the loop, so every accepted call is started.
                self.loop.call_soon_threadsafe(call.start, self.loop, context=contextvars.Context())
            except BaseException:  # an interrupt: the caller does not learn which loop to leave
                self.leave(mailbox)
                raise
        return True

    def _enter(self, mailbox: CurrentThreadExecutor) -> None:
        self._blocked.append(mailbox)
        self._mailboxes[self.loop] = mailbox

    def leave(self, mailbox: CurrentThreadExecutor) -> None:
        """Record that the thread of *mailbox* is no longer blocked."""
        with lock:
            # Also remove mailboxes whose threads were interrupted before they called this.
            self._blocked = [each for each in self._blocked if each is not mailbox and each.serving]
            if self._blocked and not self._end.settled:
                self._mailboxes[self.loop] = self._blocked[-1]
            else:
                self._mailboxes.pop(self.loop, None)

    def close(self, mailbox: CurrentThreadExecutor | None) -> None:
        """Cancel running tasks and end the loop; stop *mailbox* afterwards.

        After an interrupt, this can be called again.
        """
        if self._generation is not forks.generation:
            return
        with lock:
            self._closing = True
            self._waits_for_end = mailbox
            if mailbox is not None:
                self._enter(mailbox)
        with contextlib.suppress(RuntimeError, AttributeError):  # closed already, or not created
            self.loop.call_soon_threadsafe(self._end_loop, context=contextvars.Context())
        # An error may have ended the loop. Its worker settles the end, takes the lock, and then looks for a mailbox, so
        # at least one of the two sees what the other has done.
        if mailbox is not None and self._end.settled:
            self.leave(mailbox)
            mailbox.stop()

    def _end_loop(self) -> None:
        if not self._ended:  # a second stop, after an interrupt, would cut the tasks' cleanup short
            self._ended = True
            self.loop.stop()

    # As a job, on the worker:

    def run(self) -> None:
        if self._loop_made is not None:
            self.loop = asyncio.new_event_loop()
            self._loop_made.set()
        try:
            try:
                while not self._ended:
                    # The loop is shared: neither an exit of one task nor a stray stop() ends it.
                    try:
                        self.loop.run_forever()
                    except (KeyboardInterrupt, SystemExit) as error:
                        self._pass_on(error)
            finally:
                end(self.loop)
        except BaseException as error:  # from closing the loop; asyncio.run would raise it
            self._closing = True
            self._end.set_exception(error)
        else:
            self._end.set_result(None)
        with lock:
            self._mailboxes.pop(self.loop, None)

    def _pass_on(self, error: BaseException) -> None:
        """Raise *error*, from a task, in a blocked thread; preferably the main thread, because it may be Ctrl-C."""
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
    """A job that interrupts its thread with an exception."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.set_exception(error)

    def run(self) -> None:
        self.take()

    def report(self) -> None:  # pragma: no cover: run() interrupts the thread first
        pass

    def abandon(self, error: BaseException) -> None:
        pass
