"""A task starts, and resumes with the outcome of a call, in the same event loop iteration that delivers it."""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

import pytest

from asgiref._bridge.jobs import AwaitedOutcome, InnerCalls, LoopCall
from asgiref.sync import sync_to_async

from ..conftest import LOOP_FACTORIES
from ..helpers import thread_call

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")


async def in_a_callback(function: Callable[[], object]) -> None:
    """Call *function* from a callback of the loop, outside of any task."""
    asyncio.get_running_loop().call_soon(function, context=contextvars.Context())
    await asyncio.sleep(0)


async def begun(call: Any) -> asyncio.Task[None]:
    """Return a task that waits for *call*, in a separate context."""

    async def wait() -> None:
        variable.set("of the task")
        await call.arrival
        assert "of the task" == variable.get()

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    return task


@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.needs_internals
async def test_task_goes_on_in_the_turn_in_which_it_arrives(debug: bool) -> None:
    """Not in debug mode: there, the loop itself resumes each task, so that asyncio can name slow ones."""
    loop = asyncio.get_running_loop()
    loop.set_debug(debug)
    call = thread_call(loop)
    task = await begun(call)
    done: list[bool] = []

    def deliver() -> None:
        call.deliver()
        done.append(task.done())

    await in_a_callback(deliver)
    assert [not debug] == done
    await task


async def test_what_has_arrived_is_not_waited_for() -> None:
    call = thread_call(asyncio.get_running_loop())
    call.deliver()
    task = await begun(call)
    assert task.done()
    await task


@pytest.mark.needs_internals
async def test_others_may_ask_to_be_called_too() -> None:
    """Other callbacks of the awaited future are called in the next iteration, as for any future."""
    call = thread_call(asyncio.get_running_loop())
    task = await begun(call)
    called: list[bool] = []
    call.arrival.add_done_callback(lambda future: called.append(task.done()))
    await in_a_callback(call.deliver)
    await task
    assert [] == called
    await asyncio.sleep(0)
    assert [True] == called


async def test_outcome_for_a_caller_that_has_gone_is_dropped() -> None:
    call = thread_call(asyncio.get_running_loop(), object)
    call.run()
    del call.arrival
    call.deliver()
    assert call._result is None


@pytest.mark.needs_internals
async def test_cancellation_of_a_task_that_has_gone_on_is_not_for_the_call() -> None:
    call = thread_call(asyncio.get_running_loop())
    task = await begun(call)
    cancelled: list[bool] = []

    def deliver() -> None:
        call.deliver()
        cancelled.extend([task.cancel(), call.arrival.cancel()])

    await in_a_callback(deliver)
    assert [False, False] == cancelled


async def test_cancellation_in_debug_mode_between_the_arrival_and_the_task() -> None:
    """1. The result has arrived. 2. The task is cancelled. 3. If the task waits again, the result is there."""
    asyncio.get_running_loop().set_debug(True)
    call = thread_call(asyncio.get_running_loop())
    task = await begun(call)
    arrival = call.arrival
    call.deliver()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    class Inner(AwaitedOutcome[None]):
        def cancel(self, *message: Any) -> bool:
            return True

    assert call.survives_cancellation(InnerCalls([Inner(lambda: None)]), asyncio.CancelledError())
    assert arrival is call.arrival
    await asyncio.wait_for(call.arrival, 0)


async def test_whatever_lets_the_coroutine_go_on_too_early_hears_of_it() -> None:
    coroutine = sync_to_async(int)()
    assert asyncio.isfuture(coroutine.send(None))
    with pytest.raises(RuntimeError, match="future"):
        coroutine.send(None)


async def test_second_delivery_is_none() -> None:
    """After an interrupt, a result is delivered a second time, to be sure."""
    asyncio.get_running_loop().set_debug(True)
    call = thread_call(asyncio.get_running_loop())
    task = await begun(call)
    call.deliver()
    call.deliver()
    await task


def handed_over(coroutine: Coroutine[Any, Any, None]) -> LoopCall:
    outcome: AwaitedOutcome[None] = AwaitedOutcome(lambda: None)
    outcome.call = LoopCall(coroutine, contextvars.copy_context(), outcome)
    return outcome.call


async def started(call: LoopCall, also: Callable[[], object] = int) -> asyncio.Task[Any]:
    """Return a task that a callback of the loop creates; afterwards, the callback calls *also*."""
    tasks: list[Any] = []

    def start() -> None:
        tasks.append(call.start(asyncio.get_running_loop()))
        also()

    await in_a_callback(start)
    return tasks[0]  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", LOOP_FACTORIES)
@pytest.mark.needs_internals
def test_coroutine_begins_in_the_turn_in_which_the_loop_takes_it(name: str) -> None:
    """Not in debug mode, and not on loops that hide their queue. An eager task starts by itself."""
    begun: list[Any] = []

    async def begin() -> None:
        variable.set("of the coroutine")
        begun.append(asyncio.current_task())
        await asyncio.sleep(0)
        begun.append(variable.get())

    async def main() -> None:
        counts: list[int] = []
        task = await started(handed_over(begin()), lambda: counts.append(len(begun)))
        await task
        at_once = name not in ("asyncio-debug", "uvloop")
        assert ([at_once], [task, "of the coroutine"]) == (counts, begun)
        assert "none" == variable.get("none")

    with asyncio.Runner(loop_factory=LOOP_FACTORIES[name]) as runner:
        runner.run(main(), context=contextvars.Context())


def test_coroutine_that_is_cancelled_in_its_first_step() -> None:
    """Such a cancellation is possible if the first step runs the loop, as in Jupyter."""
    went_on: list[str] = []
    call: LoopCall

    async def cancel_itself() -> None:
        went_on.append("first step")
        assert call.cancel()
        went_on.append("rest of it")
        await asyncio.sleep(0)
        went_on.append("second step")

    async def main() -> None:
        nonlocal call
        call = handed_over(cancel_itself())
        task = await started(call)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert 1 == task.cancelling()

    asyncio.run(main())
    assert ["first step", "rest of it"] == went_on


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_exit_in_the_first_step_ends_the_loop(error: type[BaseException]) -> None:
    async def end() -> None:
        raise error

    async def main() -> None:
        await started(handed_over(end()))

    with asyncio.Runner() as runner:
        task = runner.get_loop().create_task(main())
        with pytest.raises(error):
            runner.get_loop().run_until_complete(task)
        task.cancel()


class Queue(deque[asyncio.Handle]):
    """The queue of a loop; another thread adds an item just before each look or change."""

    def __init__(self, items: Iterable[asyncio.Handle], item: asyncio.Handle, moment: str) -> None:
        super().__init__(items)
        self.item, self.moment = item, moment

    def add(self, moment: str) -> None:
        if self.moment == moment:
            self.append(self.item)

    def __getitem__(self, index: Any) -> Any:
        self.add("looked at")
        return super().__getitem__(index)

    def remove(self, item: Any) -> None:
        self.add("changed")
        if self.moment == "changed":
            raise IndexError("deque mutated during remove()")
        super().remove(item)


@pytest.mark.parametrize("moment", ["looked at", "changed", "long"])
@pytest.mark.needs_internals
def test_queue_that_another_thread_changes_meanwhile_keeps_its_order(moment: str) -> None:
    """1. A task is created. 2. Another thread adds to the loop's queue. 3. Both run, in that order."""
    order: list[str] = []

    async def begin() -> None:
        order.append("task")

    async def main() -> None:
        loop: Any = asyncio.get_running_loop()
        other = asyncio.Handle(order.append, ["other"], loop)
        call = handed_over(begin())

        def start() -> None:
            if moment == "long":
                loop._ready.extend([asyncio.Handle(int, [], loop)] * 100)
            loop._ready = Queue(loop._ready, other, moment)
            tasks.append(call.start(loop))
            order.append("rest of the turn")
            if moment == "long":
                loop._ready.append(other)

        tasks: list[Any] = []
        await in_a_callback(start)
        await tasks[0]
        await asyncio.sleep(0)

    with asyncio.Runner(loop_factory=LOOP_FACTORIES["asyncio"]) as runner:
        runner.run(main())
    assert ["rest of the turn", "task", "other"] == order
