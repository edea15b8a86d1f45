"""Read-ahead: a thread makes items before they are requested.

A *fill* is one job on the thread of the iteration. It puts items into a queue and ends when enough items are queued, so
it never waits for a slow consumer. The next fill starts when half of them are taken. If the queue is empty, the
consumer waits for the fill, and resumes with the next item.

A waiting consumer and a thread with a new item must not miss each other. Each side writes first and then reads the
other value: the consumer records that it waits, and then checks the queue. The thread appends the item, and then checks
whether the consumer waits. On free-threaded builds, both take the lock of the queue in between. The same applies to the
end of a fill.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
from collections import deque
from typing import TYPE_CHECKING, Any

from .._bridge import forks
from .._bridge.jobs import InnerCalls, ThreadCall, deliver_on
from .threads import _is_same

if TYPE_CHECKING:
    from collections.abc import Callable

    from .._bridge.jobs import AwaitedOutcome
    from .threads import Steps

__all__ = ["END", "Entry", "ReadAhead"]

END: Any = object()


class ReadAhead:
    """The queued items, and the fill that makes more of them.

    Args:
        steps: The steps of the iteration.
        limit: Maximum number of queued items.

    *next_item* returns an item, or END, on the thread. It is not stored, because it refers to this object.
    """

    def __init__(self, steps: Steps, limit: int) -> None:
        self._steps, self._limit = steps, limit
        # An item with changes of the context is in an Entry.
        self.ready: deque[Any] = deque()
        self._fill: Fill | None = None
        # Whether no more items are made: set by the thread at the end, and after an error, which the consumer must
        # receive first; set by a consumer that gives up.
        self.stopped = self.given_up = False
        # Whether a task still waits for an item after giving up.
        self._is_awaited = False

    # On the loop:

    @property
    def may_go_on(self) -> bool:
        """Whether the next fill may start."""
        fill = self._fill
        return fill is not None and fill.settled and fill._error is None and not self.stopped

    def fill_on(self, next_item: Callable[[], Any]) -> None:
        """Start a fill that nothing waits for yet."""
        # If it cannot start, the consumer gets the error after the queued items.
        with contextlib.suppress(RuntimeError):
            self._begin(next_item)

    async def wait(self, next_item: Callable[[], Any]) -> Any:
        """Wait for the next item or entry and return it.

        A cancellation has the same effect as for a call whose function returns the item.
        """
        __traceback_hide__ = True
        ready = self.ready
        fill = None
        while not ready:
            fill = self._fill
            if fill is None:
                fill = self._begin(next_item)
            elif fill.settled and not ready:  # checked again: the fill may have ended meanwhile
                self._fill = None
                if (absorbed := fill.inner_calls.take_absorbed()) is not None:
                    fill.cancel_result(*absorbed)
                fill.take()
                continue
            elif fill.is_parents:
                self._fill = None
                continue
            await self._steps.wait(fill)
        entry = ready.popleft()
        absorbed = None if fill is None else fill.inner_calls.take_absorbed()
        if absorbed is not None and not (type(entry) is Entry and entry.error is not None):
            raise asyncio.CancelledError(*absorbed)
        return entry

    def give_up(self, is_awaited: bool) -> None:
        """End the running fill after its current step. On any thread.

        Args:
            is_awaited: Whether a task waits for that step. If not, the step is cancelled if it waits in
                ``async_to_sync``, which could last forever.
        """
        self._is_awaited = is_awaited
        self.given_up = True
        if self._fill is not None and not is_awaited:
            self._fill.inner_calls.give_up()

    def _begin(self, next_item: Callable[[], Any]) -> Fill:
        make_items = functools.partial(self._make_items, next_item)
        try:
            fill: Fill = self._steps.begin(make_items, asyncio.get_running_loop(), CallsOfFill(), self._new_fill)
        except BaseException:
            self._fill = None
            raise
        return fill

    def _new_fill(self, *args: Any) -> Fill:
        self._fill = Fill(self.ready, *args)  # set before the thread gets it
        return self._fill

    # On the thread:

    def _make_items(self, next_item: Callable[[], Any]) -> None:
        __traceback_hide__ = True
        fill: Any = self._fill
        if self.given_up and not fill.is_awaited:
            return
        calls, ready, limit = fill.inner_calls, self.ready, self._limit
        loop: Any = fill._loop
        is_closed = loop.is_closed
        before = contextvars.copy_context()
        while True:
            error = None
            try:
                item = next_item()
            except BaseException as caught:
                item, error = None, caught
            is_last = item is END or error is not None
            after = contextvars.copy_context()
            if is_last or ((before or after) and not _is_same(before, after)):
                if is_last:
                    self.stopped = True
                item = Entry(item, error, before, after)
                before = after
            ready.append(item)
            error = item = None  # the traceback of the error refers to this frame
            if calls.cancelled is not None and not calls.given_up:
                calls.cancelled = None  # it was for the step that has ended
            if fill.tells:
                fill.tell(loop)
            # If the loop is closed, no more items will be requested.
            if is_last or self.given_up or len(ready) >= limit or is_closed():
                return

    def clear(self) -> list[BaseException]:
        """Drop the queued items; return the errors that must not be lost."""
        errors: list[BaseException] = []
        while self.ready and not self._is_awaited:
            entry = self.ready.popleft()
            error = entry.error if type(entry) is Entry else None
            if error is not None and not isinstance(error, (Exception, asyncio.CancelledError)):
                errors.append(error)
        return errors


class Entry:
    """An item with changes of the context, or the end of the iteration, or the error of a step.

    Args:
        before: The context of the steps before this step.
        after: The same after this step.
    """

    __slots__ = ("after", "before", "error", "item")

    def __init__(
        self, item: Any, error: BaseException | None, before: contextvars.Context, after: contextvars.Context
    ) -> None:
        self.item, self.error, self.before, self.after = item, error, before, after


class CallsOfFill(InnerCalls):
    """The ``async_to_sync`` calls that a fill waits for. After giving up, new ones are cancelled at once.

    For ``cancelled``, each step is a separate call: the thread resets it at the end of the step.
    """

    given_up = False

    def append(self, outcome: AwaitedOutcome[Any]) -> None:
        # Write first, then read, as in give_up(); both take the lock of the list in between.
        super().append(outcome)
        if self.given_up:
            outcome.cancel()

    def give_up(self) -> None:
        self.given_up = True
        self.cancelled = ()
        self.may_be_cancelled = True
        for outcome in self.copy():
            outcome.cancel()

    def take_absorbed(self) -> tuple[Any, ...] | None:
        """Return the arguments of a repeated cancellation, and reset it for the next item."""
        absorbed, self.absorbed = self.absorbed, None
        return absorbed


class Fill(ThreadCall[None]):
    """The job of a fill; its consumer may wait for it several times, or never."""

    __slots__ = ("inner_calls", "ready", "tells")

    def __init__(
        self,
        ready: deque[Any],
        loop: asyncio.AbstractEventLoop,
        wrapper: Any,
        exc_info: Any,
        inner_calls: CallsOfFill,
        context: contextvars.Context,
        child: Callable[[], None],
    ) -> None:
        super().__init__(loop, wrapper, exc_info, inner_calls, context, child)
        self.ready, self.inner_calls = ready, inner_calls
        del self.arrival  # nothing waits yet
        # Whether the thread must wake the consumer for the next item.
        self.tells = False

    @property
    def is_parents(self) -> bool:
        """Whether the parent process made this call, before a fork."""
        return self._generation is not forks.generation

    @property
    def is_awaited(self) -> bool:
        return hasattr(self, "arrival")

    # On the loop:

    def await_item(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Complete ``arrival`` with the next item or the end of the fill; return False if either is there already."""
        self._arrived = False
        self.arrival = asyncio.Future(loop=loop)
        self.tells = True
        self.ready.rotate(0)  # takes its lock
        return not self.ready and not self.settled

    def survives_cancellation(self, inner_calls: InnerCalls, cancellation: asyncio.CancelledError) -> bool:
        if self.ready:  # the thread is making another item already
            return False
        return super().survives_cancellation(inner_calls, cancellation)

    def deliver(self) -> None:
        # The consumer may be gone, or wait for a later item and check again.
        if self.is_awaited:
            super().deliver()

    # On the thread:

    def tell(self, loop: asyncio.AbstractEventLoop) -> None:
        """Wake the consumer, which waits for the item that has been queued."""
        self.tells = False
        deliver_on(loop, self)

    def report(self, after_interrupt: bool = False) -> None:
        self.ready.rotate(0)  # takes its lock
        # An error of the fill itself may be an interrupt that came while the consumer was being woken.
        after_interrupt = after_interrupt or self._error is not None
        if self.is_awaited and (self.tells or after_interrupt):
            super().report(after_interrupt)
        self._loop = None
