"""How a task goes on with the outcome of a bridged call, and begins: in the very turn of its loop that brings it."""

from __future__ import annotations

import asyncio
import contextvars
import sys
from collections.abc import Callable
from typing import Any

import pytest

from asgiref._jobs import AwaitedOutcome, LoopCall
from asgiref.sync import sync_to_async

from .conftest import LOOP_FACTORIES
from .helpers import thread_call

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")


async def in_a_callback(function: Callable[[], object]) -> None:
    """Call *function* as the loop calls what is no task."""
    asyncio.get_running_loop().call_soon(function, context=contextvars.Context())
    await asyncio.sleep(0)


async def begun(call: Any) -> asyncio.Task[None]:
    """Return a task that waits for *call*, in a context of its own."""

    async def wait() -> None:
        variable.set("of the task")
        await call.arrival
        assert "of the task" == variable.get()

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    return task


@pytest.mark.parametrize("debug", [False, True])
async def test_task_goes_on_in_the_turn_in_which_it_arrives(debug: bool) -> None:
    """Not in debug mode, where the loop calls each task by itself, so that asyncio can tell which one is slow."""
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


async def test_others_may_ask_to_be_called_too() -> None:
    """By looking at what the task awaits. They are called in the next turn, as a future does it."""
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
    call.awaited = False
    call.deliver()
    assert (None, False) == (call._result, call.arrival.done())


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
    """1. The result has arrived. 2. The task is cancelled. 3. Where it waits on, the result is there."""
    asyncio.get_running_loop().set_debug(True)
    call = thread_call(asyncio.get_running_loop())
    task = await begun(call)
    arrival = call.arrival
    call.deliver()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    class Inner:
        def cancel(self) -> bool:
            return True

    assert call.survives_cancellation([Inner()])
    assert arrival is call.arrival
    await asyncio.wait_for(call.arrival, 0)


async def test_whatever_lets_the_coroutine_go_on_too_early_hears_of_it() -> None:
    coroutine = sync_to_async(int)()
    assert asyncio.isfuture(coroutine.send(None))
    with pytest.raises(RuntimeError, match="future"):
        coroutine.send(None)


class Loop(asyncio.SelectorEventLoop):
    """A loop that has its own way of making tasks."""

    def create_task(self, coroutine: Any, **options: Any) -> Any:  # type: ignore[override]
        return super().create_task(coroutine, **options)


def with_factory() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    loop.set_task_factory(lambda loop, coroutine, **options: asyncio.Task(coroutine, loop=loop, **options))
    return loop


@pytest.mark.parametrize(
    ("loop_factory", "at_once"),
    [
        *[(make, sys.version_info >= (3, 12) and name != "asyncio-debug") for name, make in LOOP_FACTORIES.items()],
        (Loop, False),
        (with_factory, False),
    ],
)
def test_coroutine_begins_in_the_turn_in_which_the_loop_takes_it(loop_factory: Any, at_once: bool) -> None:
    """Unless somebody has a say in how tasks are made, or asyncio is to tell which task is slow."""
    begun: list[Any] = []

    async def begin() -> None:
        variable.set("of the coroutine")
        begun.append(asyncio.current_task())
        await asyncio.sleep(0)
        begun.append(variable.get())

    async def main() -> None:
        outcome: AwaitedOutcome[None] = AwaitedOutcome(lambda: None)
        call = LoopCall(begin(), contextvars.copy_context(), outcome)
        tasks: list[Any] = []
        await in_a_callback(lambda: tasks.append((call.start(asyncio.get_running_loop()), len(begun))))
        [(task, count)] = tasks
        await task
        assert (at_once, [task, "of the coroutine"]) == (count > 0, begun)
        assert "none" == variable.get("none")

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main(), context=contextvars.Context())


async def test_coroutine_that_is_cancelled_in_its_first_step() -> None:
    """By what runs the loop inside it, as Jupyter does."""
    outcome: AwaitedOutcome[None] = AwaitedOutcome(lambda: None)
    went_on: list[str] = []

    async def cancel_itself() -> None:
        went_on.append("first step")
        assert outcome.cancel()
        went_on.append("rest of it")
        await asyncio.sleep(0)
        went_on.append("second step")

    call = outcome.call = LoopCall(cancel_itself(), contextvars.copy_context(), outcome)
    tasks: list[Any] = []
    await in_a_callback(lambda: tasks.append(call.start(asyncio.get_running_loop())))
    [task] = tasks
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (["first step", "rest of it"], 1) == (went_on, task.cancelling())
