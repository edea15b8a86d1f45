"""``ApplicationCommunicator``: the results for a test, and the ways in which an application ends."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import sys
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from asgiref.sync import async_to_sync, sync_to_async
from asgiref.testing import ApplicationCommunicator

from ..helpers import LIMIT, no_garbage

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

color = contextvars.ContextVar("color", default="none")

A, B, C = ({"type": letter} for letter in "abc")
MISSED = 0.001  # seconds: the timeout of a wait that should expire


async def echo(scope: Any, receive: Receive, send: Send) -> None:
    while True:
        await send(await receive())


async def send_a(scope: Any, receive: Receive, send: Send) -> str:
    await send(A)
    return "result"


async def crash(scope: Any, receive: Receive, send: Send) -> None:
    await send(A)
    await send(B)
    raise LookupError("crash")


async def crash_when_told(scope: Any, receive: Receive, send: Send) -> None:
    await receive()
    raise LookupError("crash")


async def crash_when_cancelled(scope: Any, receive: Receive, send: Send) -> None:
    try:
        await receive()
    except asyncio.CancelledError:
        raise LookupError("cleanup") from None


async def return_when_cancelled(scope: Any, receive: Receive, send: Send) -> None:
    try:
        await receive()
    except asyncio.CancelledError:
        await send(C)


async def cancel_itself(scope: Any, receive: Receive, send: Send) -> None:
    raise asyncio.CancelledError("own")


class SlowToEnd:
    """An application that waits forever; when cancelled, it waits for ``go_on``."""

    def __init__(self) -> None:
        self.begun, self.cleaning, self.go_on = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        self.begun.set()
        try:
            await receive()
        finally:
            self.cleaning.set()
            await self.go_on.wait()


async def ended(communicator: ApplicationCommunicator) -> None:
    """Wait for the application's task only."""
    done, _ = await asyncio.wait({communicator.future}, timeout=LIMIT)
    assert done


# Messages, start, context.


async def test_messages_go_in_and_out_in_order() -> None:
    communicator = ApplicationCommunicator(echo, {})
    await communicator.send_input(A)
    await communicator.send_input(B)
    assert A == await communicator.receive_output()
    assert B == await communicator.receive_output()
    communicator.stop()
    await communicator.wait()


async def test_waiting_for_output_ends_with_the_message() -> None:
    communicator = ApplicationCommunicator(echo, {})
    output = asyncio.create_task(communicator.receive_output(LIMIT))
    assert await communicator.receive_nothing(MISSED)
    await communicator.send_input(A)
    assert A is await output
    communicator.stop()


async def test_two_tasks_may_wait_for_output() -> None:
    communicator = ApplicationCommunicator(echo, {})
    outputs = [asyncio.create_task(communicator.receive_output(LIMIT)) for _ in range(2)]
    await communicator.send_input(A)
    await communicator.send_input(B)
    assert [A, B] == await asyncio.gather(*outputs)
    communicator.stop()


async def test_older_form_of_applications() -> None:
    class Double:
        def __init__(self, scope: Any) -> None:
            self.scope = scope

        async def __call__(self, receive: Receive, send: Send) -> None:
            await send(self.scope)

    assert A is await ApplicationCommunicator(Double, A).receive_output()


async def test_application_may_return_any_awaitable() -> None:
    communicator = ApplicationCommunicator(lambda scope, receive, send: asyncio.gather(send(A), send(B)), {})
    assert [A, B] == [await communicator.receive_output() for _ in range(2)]
    await communicator.wait()


async def test_starts_at_the_first_use_and_once() -> None:
    starts = []

    async def application(scope: Any, receive: Receive, send: Send) -> None:
        starts.append(scope)

    communicator = ApplicationCommunicator(application, "early")
    assert communicator.input_queue.empty()
    assert communicator.output_queue.empty()
    communicator.stop()
    await asyncio.sleep(0)
    assert [] == starts
    communicator.scope = "replaced"
    await communicator.wait()
    await communicator.send_input(A)
    await communicator.wait()
    assert ["replaced"] == starts


@pytest.mark.parametrize(
    "use",
    [
        lambda communicator: communicator.send_input(A),
        lambda communicator: communicator.receive_output(),
        lambda communicator: communicator.receive_nothing(0),
        lambda communicator: communicator.wait(),
        lambda communicator: communicator.future,
    ],
    ids=["send_input", "receive_output", "receive_nothing", "wait", "future"],
)
async def test_each_of_these_starts_it(use: Callable[[ApplicationCommunicator], Awaitable[Any]]) -> None:
    starts = []

    async def application(scope: Any, receive: Receive, send: Send) -> None:
        starts.append(scope)
        await send(A)

    await use(communicator := ApplicationCommunicator(application, "scope"))
    await asyncio.sleep(0)
    assert ["scope"] == starts
    communicator.stop()


async def test_subclasses_may_set_the_scope_first() -> None:
    """Subclasses of Channels do."""

    class HttpCommunicator(ApplicationCommunicator):
        def __init__(self, application: Any, path: str) -> None:
            self.scope = {"type": "http", "path": path}
            super().__init__(application, self.scope)

    async def application(scope: Any, receive: Receive, send: Send) -> None:
        await send(scope)

    communicator = HttpCommunicator(application, "/")
    communicator.scope["user"] = "Ada"
    assert {"type": "http", "path": "/", "user": "Ada"} == await communicator.receive_output()


async def test_queues_hold_what_was_not_received() -> None:
    communicator = ApplicationCommunicator(send_a, {})
    communicator.input_queue.put_nowait(B)
    await communicator.wait()
    assert 1 == communicator.input_queue.qsize()
    assert A is communicator.output_queue.get_nowait()


@pytest.mark.parametrize("method", ["receive_output", "receive_nothing"])
async def test_output_that_a_test_puts_there_itself_counts(method: str) -> None:
    """Such output ends the wait, as that of the application does."""
    communicator = ApplicationCommunicator(echo, {})
    call = asyncio.create_task(getattr(communicator, method)(None))
    await asyncio.sleep(0)
    communicator.output_queue.put_nowait(A)
    done, _ = await asyncio.wait({call}, timeout=LIMIT)
    assert done
    assert (A if method == "receive_output" else False) == call.result()
    communicator.stop()


async def test_sending_does_not_run_the_application() -> None:
    """Django's tests send a request and a disconnect without a pause."""
    received = []

    async def application(scope: Any, receive: Receive, send: Send) -> None:
        received.append(await receive())

    communicator = ApplicationCommunicator(application, {})
    await communicator.send_input(A)
    assert [] == received
    await communicator.wait()
    assert [A] == received


async def test_context_is_empty() -> None:
    """It is empty where the application is called and where it runs, and no changes come back."""
    seen = []

    def application(scope: Any, receive: Receive, send: Send) -> Any:
        seen.append(color.get())
        return run()

    async def run() -> None:
        seen.append(color.get())
        color.set("of the application")

    color.set("of the test")
    await ApplicationCommunicator(application, {}).wait()
    assert ["none", "none"] == seen
    assert "of the test" == color.get()


def test_thread_sensitive_code_runs_on_the_thread_of_the_test() -> None:
    """Django's asynchronous tests run below async_to_sync and share a database connection with the application."""

    async def application(scope: Any, receive: Receive, send: Send) -> None:
        await send({"type": "thread", "thread": await sync_to_async(threading.get_ident)()})

    async def test() -> Message:
        return await ApplicationCommunicator(application, {}).receive_output()

    assert threading.get_ident() == async_to_sync(test)()["thread"]


# Crashes.


async def test_output_before_a_crash_can_be_received() -> None:
    communicator = ApplicationCommunicator(crash, {})
    await ended(communicator)
    assert not await communicator.receive_nothing()
    assert [A, B] == [await communicator.receive_output() for _ in range(2)]
    with pytest.raises(LookupError, match="crash"):
        await communicator.receive_output()


@pytest.mark.parametrize("method", ["receive_output", "receive_nothing", "wait"])
async def test_crash_is_raised_at_once(method: str) -> None:
    """It is raised even if the wait has no timeout."""
    communicator = ApplicationCommunicator(crash_when_told, {})
    call = asyncio.create_task(getattr(communicator, method)(None))
    await communicator.send_input(A)
    done, _ = await asyncio.wait({call}, timeout=LIMIT)
    assert done
    with pytest.raises(LookupError, match="crash"):
        await call


async def test_crash_is_raised_from_each_later_call() -> None:
    """The traceback does not grow meanwhile."""
    communicator = ApplicationCommunicator(crash_when_told, {})
    await communicator.send_input(A)
    lengths = set()
    for _ in range(3):
        calls: list[Callable[[], Awaitable[Any]]] = [
            communicator.wait,
            communicator.receive_output,
            communicator.receive_nothing,
        ]
        for call in calls:
            with pytest.raises(LookupError, match="crash"):
                await call()
        with pytest.raises(LookupError, match="crash"):
            await communicator.send_input(B)
        with pytest.raises(LookupError, match="crash") as caught:
            communicator.stop()
        lengths.add(len(caught.traceback))
    assert 1 == len(lengths)


async def test_crash_of_the_call_itself() -> None:
    def application(scope: Any, receive: Receive, send: Send) -> Any:
        raise LookupError("no coroutine yet")

    with pytest.raises(LookupError, match="no coroutine yet"):
        await ApplicationCommunicator(application, {}).wait()


# Timeouts.


async def test_missed_output_cancels_the_application_and_says_so() -> None:
    communicator = ApplicationCommunicator(echo, {})
    with pytest.raises(TimeoutError, match=r"sent nothing within 0\.001 s and was cancelled"):
        await communicator.receive_output(MISSED)
    assert communicator.future.cancelled()


@pytest.mark.parametrize("guilty", ["receive_output", "wait"])
async def test_later_calls_tell_which_timeout_cancelled_the_application(guilty: str) -> None:
    communicator = ApplicationCommunicator(echo, {})
    with pytest.raises(TimeoutError):
        await getattr(communicator, guilty)(MISSED)
    text = rf"{guilty}\(\) found .* 0.001 s"
    for _ in range(2):
        calls: list[Callable[[], Awaitable[Any]]] = [communicator.receive_output, communicator.receive_nothing]
        for call in calls:
            with pytest.raises(asyncio.CancelledError, match=text):
                await call()
        with pytest.raises(asyncio.CancelledError, match=text):
            await communicator.send_input(B)
        with pytest.raises(asyncio.CancelledError, match=text):
            communicator.stop()
        communicator.stop(exceptions=False)


@pytest.mark.parametrize("guilty", ["receive_output", "wait"])
async def test_wait_is_quiet_after_a_timeout(guilty: str) -> None:
    """The timeout was reported, and existing suites wait after missing output."""
    communicator = ApplicationCommunicator(echo, {})
    with pytest.raises(TimeoutError):
        await getattr(communicator, guilty)(MISSED)
    await communicator.wait()


@pytest.mark.parametrize("method", ["receive_output", "wait"])
async def test_application_is_told_why_it_is_cancelled(method: str) -> None:
    reasons: list[str] = []

    async def application(scope: Any, receive: Receive, send: Send) -> None:
        try:
            await receive()
        except asyncio.CancelledError as error:
            reasons.extend(error.args)
            raise

    with pytest.raises(TimeoutError):
        await getattr(ApplicationCommunicator(application, {}), method)(MISSED)
    assert [True] == [reason.startswith(method) for reason in reasons]


@pytest.mark.parametrize("method", ["receive_output", "wait"])
async def test_cleanup_at_a_timeout_is_awaited(method: str) -> None:
    application = SlowToEnd()
    communicator = ApplicationCommunicator(application, {})
    call = asyncio.create_task(getattr(communicator, method)(MISSED))
    await application.cleaning.wait()
    assert not call.done()
    application.go_on.set()
    with pytest.raises(TimeoutError):
        await call
    assert communicator.future.cancelled()


@pytest.mark.parametrize("method", ["receive_output", "wait"])
async def test_crash_of_the_cleanup_goes_before_the_timeout(method: str) -> None:
    communicator = ApplicationCommunicator(crash_when_cancelled, {})
    for _ in range(2):
        with pytest.raises(LookupError, match="cleanup"):
            await getattr(communicator, method)(MISSED)


@pytest.mark.parametrize("method", ["receive_output", "wait"])
async def test_cancelled_application_that_returns_is_late_all_the_same(method: str) -> None:
    communicator = ApplicationCommunicator(return_when_cancelled, {})
    with pytest.raises(TimeoutError, match="was cancelled"):
        await getattr(communicator, method)(MISSED)
    assert C == await communicator.receive_output()
    with pytest.raises(TimeoutError, match=rf"it has returned, having been cancelled because {method}\(\)"):
        await communicator.receive_output(MISSED)
    await communicator.wait()


async def test_application_that_has_returned_gives_no_output() -> None:
    communicator = ApplicationCommunicator(send_a, {})
    assert A == await communicator.receive_output()
    for _ in range(2):
        with pytest.raises(TimeoutError, match=r"it has returned; if"):
            await communicator.receive_output(MISSED)
    await communicator.send_input(B)
    await communicator.wait()
    assert "result" == communicator.future.result()


async def test_task_left_behind_may_still_send() -> None:
    go_on = asyncio.Event()
    tasks = []

    async def later(send: Send) -> None:
        await go_on.wait()
        await send(A)

    async def application(scope: Any, receive: Receive, send: Send) -> None:
        tasks.append(asyncio.create_task(later(send)))

    communicator = ApplicationCommunicator(application, {})
    output = asyncio.create_task(communicator.receive_output(LIMIT))
    await communicator.wait()
    go_on.set()
    assert A == await output
    await asyncio.gather(*tasks)


async def test_no_time_at_all_is_enough_for_what_is_there() -> None:
    communicator = ApplicationCommunicator(send_a, {})
    await communicator.wait()
    assert A == await communicator.receive_output(0)


async def test_output_at_the_very_end_of_the_timeout_is_given() -> None:
    async def application(scope: Any, receive: Receive, send: Send) -> None:
        await receive()
        await send(A)  # 1, and 2: the timeout expires, in the same iteration; 3: the test continues
        await receive()

    communicator = ApplicationCommunicator(application, {})
    assert await communicator.receive_nothing(0)
    await communicator.send_input(B)
    assert A == await communicator.receive_output(0)
    assert not communicator.future.done()
    communicator.stop()


async def test_crash_at_the_very_end_of_the_timeout_is_raised() -> None:
    communicator = ApplicationCommunicator(crash_when_told, {})
    assert await communicator.receive_nothing(0)
    await communicator.send_input(B)
    with pytest.raises(LookupError, match="crash"):
        await communicator.receive_output(0)


# receive_nothing().


async def test_nothing_is_sent_and_nothing_is_harmed() -> None:
    communicator = ApplicationCommunicator(echo, {})
    assert await communicator.receive_nothing(MISSED, 1)
    await communicator.send_input(A)
    for _ in range(2):
        assert not await communicator.receive_nothing(LIMIT, LIMIT)
    assert A == await communicator.receive_output()
    assert await communicator.receive_nothing(0)
    communicator.stop()


async def test_nothing_comes_from_an_application_that_has_returned() -> None:
    communicator = ApplicationCommunicator(send_a, {})
    await communicator.wait()
    assert not await communicator.receive_nothing(MISSED)
    await communicator.receive_output()
    assert await communicator.receive_nothing(MISSED)


# Cancellation of the test and of the application.


@pytest.mark.parametrize("method", ["receive_output", "receive_nothing", "wait"])
async def test_cancelled_test_leaves_the_application_alone(method: str) -> None:
    application = SlowToEnd()
    communicator = ApplicationCommunicator(application, {})
    call = asyncio.create_task(getattr(communicator, method)(LIMIT))
    await application.begun.wait()
    call.cancel("of the test")
    with pytest.raises(asyncio.CancelledError, match=r"^of the test$"):
        await call
    assert call.cancelled()
    assert not communicator.future.done()
    assert not application.cleaning.is_set()
    application.go_on.set()
    communicator.stop()
    await communicator.wait()


@pytest.mark.parametrize("method", ["receive_output", "wait"])
async def test_cancelled_test_does_not_wait_for_the_cleanup(method: str) -> None:
    application = SlowToEnd()
    communicator = ApplicationCommunicator(application, {})
    call = asyncio.create_task(getattr(communicator, method)(MISSED))
    await application.cleaning.wait()
    call.cancel("of the test")
    with pytest.raises(asyncio.CancelledError, match=r"^of the test$"):
        await call
    assert not communicator.future.done()
    application.go_on.set()
    await communicator.wait()


@pytest.mark.parametrize("method", ["receive_output", "receive_nothing", "wait"])
@pytest.mark.parametrize("timeout", [0, MISSED])
async def test_undelivered_cancellation_of_the_test_is_raised(method: str, timeout: float) -> None:
    """The timeout does not mistake it for its own cancellation, even if it expires at once."""
    communicator = ApplicationCommunicator(echo, {})
    assert await communicator.receive_nothing(0)

    async def test() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel("of the test")
        await getattr(communicator, method)(timeout)

    call = asyncio.create_task(test())
    await asyncio.wait({call}, timeout=LIMIT)
    assert call.cancelled()
    assert not communicator.future.done()
    communicator.stop()


@pytest.mark.parametrize("method", ["receive_output", "wait"])
async def test_timeout_of_the_test_is_its_own(method: str) -> None:
    """``asyncio.timeout`` turns the cancellation into its own TimeoutError."""
    communicator = ApplicationCommunicator(echo, {})
    with pytest.raises(TimeoutError, match=r"^$"):
        async with asyncio.timeout(MISSED):
            await getattr(communicator, method)(None)
    assert not communicator.future.done()
    communicator.stop()


@pytest.mark.parametrize("method", ["receive_output", "receive_nothing"])
async def test_application_that_cancels_itself(method: str) -> None:
    """The error differs from a cancellation of the test."""
    communicator = ApplicationCommunicator(cancel_itself, {})
    with pytest.raises(asyncio.CancelledError, match="the application was cancelled: it cancelled itself") as caught:
        await getattr(communicator, method)(LIMIT)
    assert isinstance(caught.value.__cause__, asyncio.CancelledError)
    task = asyncio.current_task()
    assert task is not None
    assert 0 == task.cancelling()
    await communicator.wait()


async def test_crash_that_is_a_wrapped_cancellation() -> None:
    """Only the kind of the end matters, not the cause of an exception."""

    async def application(scope: Any, receive: Receive, send: Send) -> None:
        try:
            raise asyncio.CancelledError
        except asyncio.CancelledError as error:
            raise LookupError("wrapped") from error

    with pytest.raises(LookupError, match="wrapped"):
        await ApplicationCommunicator(application, {}).receive_output()


# Stopping.


async def test_stop_cancels_and_does_not_wait() -> None:
    application = SlowToEnd()
    communicator = ApplicationCommunicator(application, {})
    assert await communicator.receive_nothing(0)
    communicator.stop()
    await application.cleaning.wait()
    assert not communicator.future.done()
    application.go_on.set()
    await communicator.wait()
    assert communicator.future.cancelled()
    communicator.stop()
    with pytest.raises(asyncio.CancelledError, match=r"stop\(\) was called"):
        await communicator.receive_output()


async def test_stop_without_exceptions_looks_at_the_crash() -> None:
    """Otherwise asyncio would log that nothing has retrieved the exception."""
    complaints = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))
    communicator = ApplicationCommunicator(crash, {})
    await ended(communicator)
    communicator.stop(exceptions=False)
    del communicator
    gc.collect()
    assert [] == complaints


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="counts references")
async def test_crash_that_nobody_looked_at_is_logged() -> None:
    complaints = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context["message"]))
    communicator = ApplicationCommunicator(crash, {})
    await ended(communicator)
    assert A == await communicator.receive_output()
    del communicator
    gc.collect()
    assert ["Task exception was never retrieved"] == complaints


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="counts references")
async def test_deleting_the_communicator_cancels_the_application() -> None:
    application = SlowToEnd()
    application.go_on.set()
    communicator = ApplicationCommunicator(application, {})
    await communicator.receive_nothing(0)
    del communicator
    gc.collect()
    async with asyncio.timeout(LIMIT):
        await application.cleaning.wait()


def test_deleting_the_communicator_of_a_closed_loop() -> None:
    """Nothing is left to cancel, and nothing is logged."""

    async def hang(scope: Any, receive: Receive, send: Send) -> None:
        await loop.create_future()

    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda loop, context: None)  # a pending task is destroyed
    communicator = ApplicationCommunicator(hang, {})
    assert loop.run_until_complete(communicator.receive_nothing(0))
    loop.close()
    communicator.__del__()
    del communicator
    gc.collect()


def test_deleting_what_was_never_made() -> None:
    class Careless(ApplicationCommunicator):
        def __init__(self) -> None:
            raise LookupError

    with pytest.raises(LookupError):
        Careless()
    Careless.__new__(Careless).__del__()


async def test_leaves_no_garbage() -> None:
    async def conversation() -> None:
        communicator = ApplicationCommunicator(echo, {})
        await communicator.send_input(A)
        await communicator.receive_output()
        await communicator.receive_nothing(0)
        communicator.stop()
        await communicator.wait()

    await conversation()
    with no_garbage():
        await conversation()
