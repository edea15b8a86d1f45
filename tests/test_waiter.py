"""What a task of any kind awaits in a bridged call."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from typing import Any

import pytest

from asgiref._waiter import Waiter
from asgiref.sync import sync_to_async

from .conftest import LOOP_FACTORIES

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")


async def make_waiter() -> Waiter:
    waiter = Waiter()
    waiter.waits_in = asyncio.get_running_loop()
    return waiter


async def begun(waiter: Waiter) -> asyncio.Task[None]:
    """Return a task that waits."""

    async def wait() -> None:
        await waiter

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    assert waiter is task._fut_waiter  # type: ignore[attr-defined]
    return task


async def in_a_callback(function: Callable[[], object]) -> None:
    """Call *function* as the loop calls what is no task."""
    context = contextvars.Context()
    asyncio.get_running_loop().call_soon(function, context=context)
    await asyncio.sleep(0)


@pytest.mark.parametrize("debug", [False, True])
async def test_task_goes_on_in_the_turn_in_which_it_arrives(debug: bool) -> None:
    """Not in debug mode, where the loop calls each task by itself, so that asyncio can tell which one is slow."""
    asyncio.get_running_loop().set_debug(debug)
    waiter = await make_waiter()
    task = await begun(waiter)
    done: list[bool] = []

    def arrive() -> None:
        waiter.arrive()
        done.append(task.done())

    await in_a_callback(arrive)
    assert [not debug] == done
    await task


async def test_task_goes_on_in_its_own_context() -> None:
    waiter = await make_waiter()

    async def wait() -> None:
        variable.set("of the task")
        await waiter
        assert "of the task" == variable.get()

    variable.set("of the test")
    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    await in_a_callback(waiter.arrive)
    await task
    assert "of the test" == variable.get()


async def test_done_as_a_future_is() -> None:
    waiter = await make_waiter()
    task = await begun(waiter)
    assert not waiter.done()
    task.cancel()
    assert waiter.done()
    await asyncio.wait([task])
    waiter.arrive()
    assert waiter.done()


async def test_whatever_lets_the_coroutine_go_on_too_early_hears_of_it() -> None:
    call = sync_to_async(int)()
    assert asyncio.isfuture(call.send(None))
    with pytest.raises(RuntimeError, match="before there is an outcome"):
        call.send(None)


async def test_what_has_arrived_is_not_waited_for() -> None:
    waiter = await make_waiter()
    waiter.arrive()
    await waiter
    await waiter


async def test_cancellation_with_a_message() -> None:
    waiter = await make_waiter()
    task = await begun(waiter)
    task.cancel("enough")
    with pytest.raises(asyncio.CancelledError, match=r"^enough$"):
        await task


async def test_cancellation_twice_is_one() -> None:
    waiter = await make_waiter()
    heard: list[str] = []

    async def wait() -> None:
        try:
            await waiter
        except asyncio.CancelledError:
            heard.append("cancelled")
        await asyncio.sleep(0)
        heard.append("went on")

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    task.cancel()
    task.cancel()
    await task
    assert ["cancelled", "went on"] == heard


async def test_cancellation_of_a_task_that_has_gone_on_is_not_for_the_waiter() -> None:
    waiter = await make_waiter()
    task = await begun(waiter)
    cancelled: list[bool] = []

    def arrive() -> None:
        waiter.arrive()
        cancelled.extend([task.cancel(), waiter.cancel()])

    await in_a_callback(arrive)
    assert [False, False] == cancelled


async def test_cancellation_before_the_first_step() -> None:
    waiter = await make_waiter()

    async def wait() -> None:
        await waiter

    task = asyncio.create_task(wait())
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_cancellation_of_itself_just_before_it_waits() -> None:
    waiter = await make_waiter()

    async def wait() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await waiter

    with pytest.raises(asyncio.CancelledError):
        await asyncio.create_task(wait())


@pytest.mark.parametrize("name", LOOP_FACTORIES)
def test_cancellation_while_the_loop_does_not_run(name: str) -> None:
    """As ``asyncio.run`` does it with the tasks that are left."""
    with asyncio.Runner(loop_factory=LOOP_FACTORIES[name]) as runner:
        waiter = runner.run(make_waiter())
        task = runner.run(begun(waiter))
        assert task.cancel()
        with pytest.raises(asyncio.CancelledError):
            runner.get_loop().run_until_complete(task)


async def test_time_out() -> None:
    waiter = await make_waiter()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await waiter


async def test_whatever_runs_a_coroutine_may_ask_to_be_called() -> None:
    """A future has any number of callbacks, each in the context that it was added in or with."""
    waiter = await make_waiter()
    assert asyncio.isfuture(waiter)
    called: list[Any] = []
    variable.set("of the test")
    waiter.add_done_callback(lambda each: called.append((each, variable.get())))
    waiter.add_done_callback(lambda each: called.append((each, variable.get("none"))), context=contextvars.Context())
    variable.set("another")
    waiter.arrive()
    assert [(waiter, "none"), (waiter, "of the test")] == called
