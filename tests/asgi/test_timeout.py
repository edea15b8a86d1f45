"""``timeout``: blocks whose time expires, and cancellations that meet the expiry.

Behaviour that ``asyncio.timeout`` shares is tested on both. A race is forced by callbacks that run in one event loop
iteration, in a known order: ``expire`` and the cancellations that it is given.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import time
import warnings
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from asgiref.timeout import timeout

from ..helpers import LIMIT, Thread, no_garbage

SOON = 0.001  # seconds: should expire
NEVER = 3600.0

Limit = Callable[[float | None], Any]


def quiet(seconds: float | None, loop: asyncio.AbstractEventLoop | None = None) -> timeout:
    """Create a timeout without the warnings, which have separate tests."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return timeout(seconds, loop=loop)


@asynccontextmanager
async def synchronous(seconds: float | None) -> AsyncIterator[timeout]:
    with quiet(seconds) as limit:
        yield limit


LIMITS: dict[str, Limit] = {"async with": quiet, "with": synchronous, "asyncio": asyncio.timeout}
each_limit = pytest.mark.parametrize("limit", LIMITS.values(), ids=LIMITS)
OURS: dict[str, Limit] = {"async with": quiet, "with": synchronous}
each_of_ours = pytest.mark.parametrize("limit", OURS.values(), ids=OURS)
each_inner = pytest.mark.parametrize("inner", OURS.values(), ids=OURS)


def current_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None
    return task


def block_the_loop() -> None:
    """Block the loop until every short timeout has expired."""
    time.sleep(4 * SOON)


async def forever() -> None:
    await asyncio.get_running_loop().create_future()


async def result_of(coroutine: Any) -> tuple[str, int]:
    """Return how a new task that runs *coroutine* ends, and the remaining number of its cancellations."""
    task = asyncio.create_task(coroutine)
    done, _ = await asyncio.wait({task}, timeout=LIMIT)
    assert done
    if task.cancelled():
        return "cancelled", task.cancelling()
    return repr(task.exception() or task.result()), task.cancelling()


# Warnings.


async def test_it_warns_where_it_is_made() -> None:
    with pytest.warns(DeprecationWarning, match=r"^asgiref\.timeout\.timeout is deprecated; use asyncio") as caught:
        limit = timeout(NEVER)
    assert [__file__] == [warning.filename for warning in caught]
    with warnings.catch_warnings(record=True) as later:
        warnings.simplefilter("always")
        async with limit:
            pass
        with limit:
            pass
    assert [] == later


async def test_loop_gets_a_warning_of_its_own() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        timeout(NEVER, loop=asyncio.get_running_loop())
    assert [DeprecationWarning] * 2 == [warning.category for warning in caught]
    assert [__file__] * 2 == [warning.filename for warning in caught]
    assert [False, True] == ["loop argument" in str(warning.message) for warning in caught]


# Without a race.


@each_limit
@pytest.mark.parametrize("seconds", [SOON, 0, 0.0, -1])
async def test_block_that_takes_too_long_raises(limit: Limit, seconds: float) -> None:
    async def work() -> None:
        async with limit(seconds):
            await forever()

    assert ("TimeoutError()", 0) == await result_of(work())


@each_limit
@pytest.mark.parametrize("seconds", [None, NEVER])
async def test_block_that_ends_in_time_does_not(limit: Limit, seconds: float | None) -> None:
    async def work() -> str:
        async with limit(seconds):
            await asyncio.sleep(SOON)
        return "done"

    assert ("'done'", 0) == await result_of(work())


@each_limit
@pytest.mark.parametrize("seconds", [0, -1])
async def test_no_time_is_enough_for_a_block_that_does_not_wait(limit: Limit, seconds: float) -> None:
    async def work() -> str:
        async with limit(seconds):
            pass
        await asyncio.sleep(0)
        return "done"

    assert ("'done'", 0) == await result_of(work())


@each_limit
@pytest.mark.parametrize("seconds", [0, -1])
async def test_no_time_ends_with_the_first_await(limit: Limit, seconds: float) -> None:
    async def work() -> None:
        async with limit(seconds):
            await asyncio.sleep(0)

    assert ("TimeoutError()", 0) == await result_of(work())


@each_limit
async def test_error_tells_what_was_cancelled(limit: Limit) -> None:
    with pytest.raises(TimeoutError) as caught:
        async with limit(0):
            await forever()
    assert type(caught.value) is asyncio.TimeoutError
    assert isinstance(caught.value.__cause__, asyncio.CancelledError)


@each_limit
async def test_errors_of_the_block_come_out(limit: Limit) -> None:
    error = LookupError("own")
    with pytest.raises(LookupError) as caught:
        async with limit(NEVER):
            raise error
    assert caught.value is error


async def test_time_starts_with_the_block() -> None:
    limit = quiet(0.02)
    await asyncio.sleep(0.03)
    async with limit:
        await asyncio.sleep(SOON)
    assert not limit.expired


# Attributes.


@pytest.mark.parametrize("seconds", [None, 0, NEVER])
async def test_before_the_first_block(seconds: float | None) -> None:
    limit = quiet(seconds)
    assert (False, None) == (limit.expired, limit.remaining)


@each_of_ours
async def test_remaining_time_runs_down(limit: Limit) -> None:
    """As fast as the loop's clock, and after the block, too."""
    time = asyncio.get_running_loop().time
    tick = 2 * SOON  # some loops count milliseconds

    def check() -> None:
        before, remaining, after = time(), entered.remaining, time()
        assert begin + NEVER - after - tick <= remaining <= begun + NEVER - before + tick

    begin = time()
    async with limit(NEVER) as entered:
        begun = time()
        check()
        await asyncio.sleep(10 * SOON)
        check()
    await asyncio.sleep(10 * SOON)
    check()
    assert not entered.expired


@each_of_ours
async def test_nothing_remains_of_no_time(limit: Limit) -> None:
    async with limit(-1) as entered:
        assert (False, 0.0) == (entered.expired, entered.remaining)
    assert (False, 0.0) == (entered.expired, entered.remaining)


@each_of_ours
async def test_without_a_limit_nothing_is_known_to_remain(limit: Limit) -> None:
    async with limit(None) as entered:
        assert (False, None) == (entered.expired, entered.remaining)
    assert (False, None) == (entered.expired, entered.remaining)


@each_of_ours
async def test_expired_is_true_as_soon_as_the_block_is_cancelled(limit: Limit) -> None:
    seen = []
    entered = None
    with pytest.raises(TimeoutError):
        async with limit(SOON) as entered:
            try:
                await forever()
            finally:
                seen.append((entered.expired, entered.remaining))
    assert entered is not None
    seen.append((entered.expired, entered.remaining))
    assert [(True, 0.0)] * 2 == seen


async def test_attributes_are_read_only() -> None:
    limit = quiet(NEVER)
    for name in ("expired", "remaining"):
        with pytest.raises(AttributeError):
            setattr(limit, name, True)


# Entering, and entering again.


async def test_entering_gives_the_object_itself() -> None:
    limit = quiet(NEVER)
    async with limit as entered:
        assert entered is limit
    with limit as entered:
        assert entered is limit


async def test_one_object_serves_one_block_after_the_other() -> None:
    limit = quiet(SOON)
    for _ in range(2):
        with pytest.raises(TimeoutError):
            async with limit:
                await forever()
        assert limit.expired
        async with limit:
            assert not limit.expired
        assert not limit.expired


async def test_block_of_its_own_is_refused() -> None:
    """The outer block continues and keeps its limit."""
    limit = quiet(SOON)
    with pytest.raises(TimeoutError):
        async with limit:
            with pytest.raises(RuntimeError, match="in use"):
                async with limit:
                    pass
            with pytest.raises(RuntimeError, match="in use"), limit:
                pass
            await forever()


async def test_leaving_without_having_entered_is_refused() -> None:
    limit = quiet(NEVER)
    with pytest.raises(RuntimeError, match="without having been entered"):
        limit.__exit__(None, None, None)
    async with limit:
        pass
    with pytest.raises(RuntimeError, match="without having been entered"):
        await limit.__aexit__(None, None, None)


def test_made_where_no_loop_runs() -> None:
    with pytest.raises(RuntimeError, match="no running event loop"):
        quiet(NEVER)


async def test_made_elsewhere_for_a_loop() -> None:
    limit = Thread(quiet, SOON, asyncio.get_running_loop()).get()
    with pytest.raises(TimeoutError):
        async with limit:
            await forever()


async def test_loop_of_its_own_changes_nothing() -> None:
    with pytest.raises(TimeoutError):
        async with quiet(SOON, asyncio.get_running_loop()):
            await forever()


async def test_another_loop_is_refused() -> None:
    other = asyncio.new_event_loop()
    limit = quiet(SOON, other)
    try:
        with pytest.raises(RuntimeError, match="another event loop"):
            async with limit:
                pass
        with pytest.raises(RuntimeError, match="another event loop"), limit:
            pass
    finally:
        other.close()
    assert (False, None) == (limit.expired, limit.remaining)


async def test_callbacks_have_nothing_to_cancel() -> None:
    loop = asyncio.get_running_loop()
    refused: asyncio.Future[str] = loop.create_future()

    def callback() -> None:
        limit = quiet(NEVER)
        try:
            with limit:
                pass
        except RuntimeError as error:
            assert (False, None) == (limit.expired, limit.remaining)
            refused.set_result(str(error))

    loop.call_soon(callback)
    assert "inside a task" in await asyncio.wait_for(refused, LIMIT)


# The block ends in another way in spite of the expiry.


@each_limit
async def test_block_that_swallows_the_cancellation_has_ended_well(limit: Limit) -> None:
    async def work() -> str:
        async with limit(SOON):
            try:
                await forever()
            except asyncio.CancelledError:
                pass
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        return "done"

    assert ("'done'", 0) == await result_of(work())


@each_limit
async def test_own_error_at_the_expiry_comes_out(limit: Limit) -> None:
    async def work() -> None:
        async with limit(SOON):
            try:
                await forever()
            finally:
                raise LookupError("own")

    assert ("LookupError('own')", 0) == await result_of(work())


@each_limit
async def test_time_that_is_over_does_not_count_for_a_block_that_does_not_wait_any_more(limit: Limit) -> None:
    """Nothing was cancelled: the expiry is a callback of the loop, which does not run meanwhile."""

    async def work() -> str:
        async with limit(SOON):
            block_the_loop()
        await asyncio.sleep(2 * SOON)
        return "done"

    assert ("'done'", 0) == await result_of(work())


# Races: all in one event loop iteration.


def in_one_iteration(*callbacks: Callable[[], object]) -> None:
    for callback in callbacks:
        asyncio.get_running_loop().call_soon(callback)


@each_limit
async def test_result_before_the_expiry_comes_too_late(limit: Limit) -> None:
    """The task was about to resume; the cancellation comes first, as in asyncio."""

    async def work() -> None:
        result = asyncio.get_running_loop().create_future()
        in_one_iteration(lambda: result.set_result(None))  # 1
        async with limit(0):  # 2: expires
            await result

    assert ("TimeoutError()", 0) == await result_of(work())


@each_limit
async def test_result_after_the_expiry_comes_too_late(limit: Limit) -> None:
    async def work() -> None:
        result = asyncio.get_running_loop().create_future()
        async with limit(0):  # 1: expires
            in_one_iteration(lambda: result.done() or result.cancel())  # 2
            await result

    assert ("TimeoutError()", 0) == await result_of(work())


@each_limit
async def test_cancelled_just_before_the_expiry(limit: Limit) -> None:
    async def work() -> None:
        in_one_iteration(current_task().cancel)  # 1
        async with limit(0):  # 2: expires
            await forever()

    assert ("cancelled", 1) == await result_of(work())


@each_limit
async def test_cancelled_just_after_the_expiry(limit: Limit) -> None:
    async def work() -> None:
        async with limit(0):  # 1: expires
            in_one_iteration(current_task().cancel)  # 2
            await forever()

    assert ("cancelled", 1) == await result_of(work())


@each_limit
async def test_cancelled_before_and_after_the_expiry(limit: Limit) -> None:
    async def work() -> None:
        in_one_iteration(current_task().cancel)  # 1
        async with limit(0):  # 2: expires
            in_one_iteration(current_task().cancel)  # 3
            await forever()

    assert ("cancelled", 2) == await result_of(work())


@each_limit
async def test_cancelled_long_before_the_expiry(limit: Limit) -> None:
    async def work() -> None:
        async with limit(NEVER):
            in_one_iteration(current_task().cancel)
            await forever()

    assert ("cancelled", 1) == await result_of(work())


@each_limit
async def test_expiry_during_the_cleanup_of_a_cancellation(limit: Limit) -> None:
    async def work() -> None:
        async with limit(SOON):
            in_one_iteration(current_task().cancel)
            try:
                await forever()
            finally:
                await asyncio.sleep(4 * SOON)  # until the expiry

    assert ("cancelled", 1) == await result_of(work())


@each_limit
async def test_cancelled_during_the_cleanup_of_the_expiry(limit: Limit) -> None:
    async def work() -> None:
        async with limit(0):
            try:
                await forever()
            finally:
                in_one_iteration(current_task().cancel)
                await forever()

    assert ("cancelled", 1) == await result_of(work())


@each_limit
async def test_cleanup_of_a_cancelled_task_may_have_a_limit(limit: Limit) -> None:
    """The older cancellation is not that of the block, whose time expires nevertheless."""
    seen = []

    async def work() -> None:
        in_one_iteration(current_task().cancel)
        try:
            await forever()
        finally:
            try:
                async with limit(SOON):
                    await forever()
            except TimeoutError:
                seen.append("too long")

    assert ("cancelled", 1) == await result_of(work())
    assert ["too long"] == seen


@pytest.mark.parametrize("seconds", [0, SOON, NEVER, None])
async def test_undelivered_cancellation_is_raised_where_the_block_begins(seconds: float | None) -> None:
    entered = []

    async def work() -> None:
        current_task().cancel()
        async with quiet(seconds):
            entered.append(True)
            await forever()

    assert ("cancelled", 1) == await result_of(work())
    assert [] == entered


@pytest.mark.parametrize("limit", [synchronous, asyncio.timeout], ids=["with", "asyncio"])
async def test_undelivered_cancellation_that_meets_the_expiry_cannot_be_told_from_it(limit: Limit) -> None:
    """The other forms cannot wait for the cancellation; that it was requested stays known."""

    async def work() -> None:
        current_task().cancel()
        async with limit(0):
            await forever()

    assert ("TimeoutError()", 1) == await result_of(work())


# Nested blocks.


@each_limit
@each_inner
@pytest.mark.parametrize(("outside", "inside"), [(0, 0), (2 * SOON, SOON), (SOON, 2 * SOON)])
async def test_outer_block_raises_where_two_expire_together(
    limit: Limit, inner: Limit, outside: float, inside: float
) -> None:
    """In one event loop iteration, in either order."""
    ended: list[type[BaseException]] = []

    async def work() -> None:
        async with limit(outside):
            try:
                async with inner(inside):
                    block_the_loop()
                    await forever()
            except BaseException as error:
                ended.append(type(error))
                raise

    assert ("TimeoutError()", 0) == await result_of(work())
    assert [asyncio.CancelledError] == ended


@each_limit
@each_inner
async def test_inner_block_raises_where_it_alone_expires(limit: Limit, inner: Limit) -> None:
    async def work() -> str:
        async with limit(NEVER):
            try:
                async with inner(0):
                    await forever()
            except TimeoutError:
                await asyncio.sleep(0)
        return "continues"

    assert ("'continues'", 0) == await result_of(work())


@each_limit
@each_inner
async def test_outer_block_raises_where_it_alone_expires(limit: Limit, inner: Limit) -> None:
    async def work() -> None:
        async with limit(0), inner(NEVER):
            await forever()

    assert ("TimeoutError()", 0) == await result_of(work())


@each_of_ours
async def test_asyncio_timeouts_within_it_and_after_it_work(limit: Limit) -> None:
    async def work() -> None:
        try:
            async with limit(NEVER), asyncio.timeout(0):
                await forever()
        except TimeoutError:
            pass
        try:
            async with limit(0):
                await forever()
        except TimeoutError:
            pass
        async with asyncio.timeout(0):
            await forever()

    assert ("TimeoutError()", 0) == await result_of(work())


@each_of_ours
async def test_task_group_around_it_gets_the_timeout(limit: Limit) -> None:
    """The other tasks of the group are cancelled, as for any error."""
    siblings = []

    async def work() -> None:
        async with asyncio.TaskGroup() as group:
            siblings.append(group.create_task(forever()))
            async with limit(0):
                await forever()

    ended, cancellations = await result_of(work())
    assert ("ExceptionGroup('unhandled errors in a TaskGroup', [TimeoutError()])", 0) == (ended, cancellations)
    assert siblings[0].cancelled()


@each_of_ours
async def test_task_group_around_it_may_cancel_it_after_the_expiry(limit: Limit) -> None:
    """The cancellation comes from outside, so the error of the other task is raised."""

    async def fail(cleaning: asyncio.Event) -> None:
        await cleaning.wait()
        raise LookupError("sibling")

    async def work() -> None:
        cleaning = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            group.create_task(fail(cleaning))
            async with limit(0):
                try:
                    await forever()
                finally:
                    cleaning.set()
                    await forever()  # until the group cancels it

    assert ("ExceptionGroup('unhandled errors in a TaskGroup', [LookupError('sibling')])", 0) == await result_of(work())


@each_of_ours
async def test_task_group_within_it_is_cancelled(limit: Limit) -> None:
    children = []

    async def work() -> None:
        async with limit(0), asyncio.TaskGroup() as group:
            children.append(group.create_task(forever()))

    assert ("TimeoutError()", 0) == await result_of(work())
    assert children[0].cancelled()


# What remains.


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="counts references")
async def test_object_does_not_keep_the_task_of_its_block() -> None:
    limit = quiet(0)

    async def work() -> None:
        async with limit:
            await forever()

    async def run() -> weakref.ref[asyncio.Task[None]]:
        task = asyncio.create_task(work())
        await asyncio.wait({task})
        assert isinstance(task.exception(), TimeoutError)
        return weakref.ref(task)

    task = await run()
    await asyncio.sleep(0)
    gc.collect()  # asyncio's own traceback is a cycle
    assert task() is None
    assert limit.expired


async def test_leaves_no_garbage() -> None:
    async def blocks() -> None:
        limit = quiet(NEVER)
        async with limit:
            await asyncio.sleep(0)
        with limit:
            await asyncio.sleep(0)
        limit = quiet(0)
        try:
            async with limit:
                await forever()
        except TimeoutError:
            pass
        try:
            with limit:
                await forever()
        except TimeoutError:
            pass

    await blocks()
    with no_garbage():
        await blocks()
