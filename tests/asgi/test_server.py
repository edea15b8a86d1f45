"""StatelessServer: its instances, the end of applications, and the end of the server."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import dataclasses
import gc
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest

from asgiref import server as server_module
from asgiref.server import StatelessServer

from ..helpers import LIMIT, no_garbage, output_of, run_python

# Other interpreters free unreferenced objects at an unknown time.
CPYTHON = sys.implementation.name == "cpython"

Handle = Callable[["Server"], Awaitable[Any]]


async def within(awaitable: Awaitable[Any]) -> Any:
    return await asyncio.wait_for(awaitable, LIMIT)


class Server(StatelessServer):
    """A server whose handle is the given function; it records sent messages and failures."""

    def __init__(self, application: Any, handle: Handle | None = None, **options: Any) -> None:
        super().__init__(application, **options)
        self._handle = handle
        self.sent: asyncio.Queue[tuple[Any, Any]] = asyncio.Queue()
        self.failures: asyncio.Queue[tuple[BaseException, Any]] = asyncio.Queue()

    async def handle(self) -> None:
        assert self._handle
        await self._handle(self)

    async def application_send(self, scope: Any, message: Any) -> Any:
        self.sent.put_nowait((scope, message))
        return "sent"

    async def application_exception(self, exception: BaseException, application_details: Any) -> None:
        self.failures.put_nowait((exception, application_details))

    def give(self, scope_id: Any, message: Any = "message") -> None:
        self.get_or_create_application_instance(scope_id, {"id": scope_id}).put_nowait(message)

    def clear(self) -> None:
        for scope_id in list(self.application_instances):
            self.delete_application_instance(scope_id)

    async def ended(self, scope_id: Any) -> asyncio.Task[Any]:
        """Wait until the application of *scope_id* has ended; return its task."""
        task = self.application_instances[scope_id]["future"]
        await within(asyncio.wait({task}))
        return task


async def echo(scope: Any, receive: Any, send: Any) -> None:
    while True:
        await send(await receive())


async def obey(scope: Any, receive: Any, send: Any) -> Any:
    """Follow the instructions in the messages."""
    while True:
        match await receive():
            case "return":
                return "returned"
            case "cancel":
                raise asyncio.CancelledError
            case "fail":
                raise ValueError
            case BaseException() as error:
                raise error
            case message:
                await send(message)


async def never(server: Any) -> None:
    await asyncio.Event().wait()


@contextlib.asynccontextmanager
async def running(server: Server) -> AsyncIterator[None]:
    """Run *server* during the block; its handle has started."""
    task = asyncio.create_task(server.arun())
    await asyncio.sleep(0)
    try:
        yield
    finally:
        task.cancel()
        await within(asyncio.wait({task}))


# Instances.


async def test_each_scope_has_an_application_of_its_own_that_gets_its_messages() -> None:
    """Messages for one scope go to one application, in order; those for another scope go to another application."""
    calls = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        calls.append(scope)
        await echo(scope, receive, send)

    async def handle(server: Server) -> None:
        for scope_id, message in [("a", 1), ("b", 2), ("a", 3)]:
            server.give(scope_id, message)
        for _ in range(3):
            got.append(await server.sent.get())

    got: list[Any] = []
    await within(Server(application, handle).arun())
    assert [({"id": "a"}, 1), ({"id": "a"}, 3), ({"id": "b"}, 2)] == sorted(got, key=lambda item: item[0]["id"])
    assert [{"id": "a"}, {"id": "b"}] == calls


async def test_an_application_of_the_older_form_is_called_twice() -> None:
    class Old:
        def __init__(self, scope: Any) -> None:
            self.scope = scope

        async def __call__(self, receive: Any, send: Any) -> None:
            await echo(self.scope, receive, send)

    async def handle(server: Server) -> None:
        server.give("a", 1)
        got.append(await server.sent.get())

    got: list[Any] = []
    await within(Server(Old, handle).arun())
    assert [({"id": "a"}, 1)] == got


async def test_send_gives_what_application_send_returns_and_raises() -> None:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        results.append(await send("fine"))
        with pytest.raises(LookupError):
            await send("bad")

    class Refusing(Server):
        async def application_send(self, scope: Any, message: Any) -> Any:
            if message == "bad":
                raise LookupError
            return await super().application_send(scope, message)

    async def handle(server: Server) -> None:
        server.give("a")
        await server.ended("a")

    results: list[Any] = []
    server = Refusing(application, handle)
    await within(server.arun())
    assert ["sent"] == results
    assert server.failures.empty()


async def test_an_instance_can_be_read_by_its_keys() -> None:
    scope = {"type": "chat"}
    server = Server(echo)
    async with running(Server(echo, never)):
        before = time.monotonic()
        queue = server.get_or_create_application_instance("a", scope)
        instance = server.application_instances["a"]
        assert {"input_queue", "future", "scope", "last_used"} == set(instance)
        assert instance["input_queue"] is queue
        assert instance["scope"] is scope
        assert isinstance(instance["future"], asyncio.Task)
        assert before <= instance["last_used"] <= time.monotonic()
        server.delete_application_instance("a")


async def test_the_scope_of_a_running_instance_stays() -> None:
    server = Server(echo)
    first = server.get_or_create_application_instance("a", {"number": 1})
    assert first is server.get_or_create_application_instance("a", {"number": 2})
    assert {"number": 1} == server.application_instances["a"]["scope"]
    server.delete_application_instance("a")


async def test_there_are_never_more_instances_than_allowed_and_the_least_recently_used_goes() -> None:
    async def handle(server: Server) -> None:
        for scope_id in "abcabad":
            server.give(scope_id)
            peak.append(len(server.application_instances))
        left.extend(server.application_instances)

    peak: list[int] = []
    left: list[Any] = []
    await within(Server(echo, handle, max_applications=3).arun())
    assert 3 == max(peak)
    assert ["b", "a", "d"] == left


async def test_a_clock_that_is_set_back_does_not_change_who_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The instance to delete is found by the order of use, not by a clock."""
    server = Server(echo, max_applications=2)
    wall = iter(range(1000, 0, -1))
    monkeypatch.setattr(server_module, "time", SimpleNamespace(monotonic=time.monotonic, time=lambda: next(wall)))
    for scope_id in "abac":
        server.give(scope_id)
    assert ["a", "c"] == list(server.application_instances)
    server.clear()


async def test_max_applications_may_be_lowered_while_it_runs() -> None:
    server = Server(echo, max_applications=5)
    for scope_id in "abcde":
        server.give(scope_id)
    server.max_applications = 2
    server.give("f")
    assert ["e", "f"] == list(server.application_instances)
    server.clear()


@pytest.mark.parametrize("number", [0, -1])
def test_a_server_needs_room_for_one_application(number: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        StatelessServer(echo, number)


async def test_an_unknown_scope_id_is_a_clear_error() -> None:
    server = Server(echo)
    server.give("a")
    with pytest.raises(KeyError, match="no application instance has the scope id 'x'"):
        server.delete_application_instance("x")
    assert ["a"] == list(server.application_instances)
    server.delete_application_instance("a")
    with pytest.raises(KeyError, match="no application instance has the scope id 'a'"):
        server.delete_application_instance("a")
    with pytest.raises(KeyError, match="there is no application instance to delete"):
        server.delete_oldest_application_instance()


async def test_a_subclass_chooses_who_goes() -> None:
    class Newest(Server):
        def delete_oldest_application_instance(self) -> None:
            self.delete_application_instance(next(reversed(self.application_instances)))

    server = Newest(echo, max_applications=2)
    for scope_id in "abcd":
        server.give(scope_id)
    assert ["a", "d"] == list(server.application_instances)
    server.clear()


async def test_a_subclass_that_makes_no_room_is_told_so() -> None:
    class Keeping(Server):
        def delete_oldest_application_instance(self) -> None:
            pass

    server = Keeping(echo, max_applications=1)
    server.give("a")
    with pytest.raises(RuntimeError, match="has deleted no instance"):
        server.give("b")
    server.delete_application_instance("a")


@pytest.mark.parametrize("application", [None, 42])
def test_what_cannot_be_called_is_refused_at_once(application: Any) -> None:
    with pytest.raises(TypeError, match="needs an ASGI application"):
        StatelessServer(application)


def test_outside_a_loop_no_application_is_started() -> None:
    server = Server(echo)
    with pytest.raises(RuntimeError, match="no running event loop"):
        server.give("a")
    assert not server.application_instances


async def test_a_message_right_after_the_end_goes_to_a_new_application() -> None:
    """At no moment has an application ended and still receives messages.

    1. The application lets the loop call for the next message, and returns.
    2. Its task is done, and lets the loop call its callbacks, which comes after that.
    3. The next message arrives between the end and the callbacks. It must start another application.
    """

    async def application(scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        if message == 1:
            asyncio.get_running_loop().call_soon(server.give, "a", 2)
        await send(message)

    server = Server(application, never)
    async with running(server):
        server.give("a", 1)
        assert [1, 2] == [(await within(server.sent.get()))[1] for _ in range(2)]


async def test_an_ended_application_does_not_take_its_successor_along() -> None:
    """1. Instance 1 is deleted. 2. Instance 2 is created with its id. 3. Instance 1 ends."""
    gate = asyncio.Event()

    async def application(scope: Any, receive: Any, send: Any) -> None:
        try:
            await echo(scope, receive, send)
        finally:
            if scope["id"] == "slow":
                await gate.wait()

    server = Server(application, never)
    async with running(server):
        server.give("slow", 1)
        await within(server.sent.get())
        first = server.application_instances["slow"]["future"]
        server.delete_application_instance("slow")
        server.get_or_create_application_instance("slow", {"id": "quick"}).put_nowait(2)
        assert ({"id": "quick"}, 2) == await within(server.sent.get())
        gate.set()
        await within(asyncio.wait({first}))
        await asyncio.sleep(0)
        assert {"id": "quick"} == server.application_instances["slow"]["scope"]


@pytest.mark.slow
def test_a_hundred_thousand_scopes_go_through_a_thousand_slots() -> None:
    """All are started, and there are never more objects than a thousand instances need."""

    async def application(scope: Any, receive: Any, send: Any) -> None:
        started.append(None)
        await echo(scope, receive, send)

    async def handle(server: Server) -> None:
        for number in range(100_000):
            server.give(number)
            if number % 10 == 9:
                await asyncio.sleep(0)
                while not server.sent.empty():
                    server.sent.get_nowait()
            if number in (10_000, 99_999):
                assert 1000 == len(server.application_instances)
                tasks.append(len(asyncio.all_tasks()))
                objects.append(len(gc.get_objects()) if CPYTHON else 0)

    started: list[None] = []
    tasks: list[int] = []
    objects: list[int] = []
    asyncio.run(Server(application, handle).arun())
    assert 100_000 == len(started)
    assert max(tasks) < 1050
    assert objects[1] <= objects[0] * 1.2


# The end of applications.


async def test_a_failing_application_is_reported_once_and_at_once() -> None:
    """It takes some event loop iterations, and no time: nothing is polled."""
    error = ValueError("boom")
    server = Server(obey, never)
    async with running(server):
        server.give("a", error)
        server.give("a", "unread")
        instance = server.application_instances["a"]
        for _ in range(5):
            await asyncio.sleep(0)
        reported, details = server.failures.get_nowait()
        assert reported is error
        assert details is instance
        assert "unread" == details["input_queue"].get_nowait()
        assert "a" not in server.application_instances
        server.give("b", "more")
        await within(server.sent.get())
        assert server.failures.empty()


async def test_failures_are_logged_with_their_traceback(caplog: pytest.LogCaptureFixture) -> None:
    class Plain(StatelessServer):
        async def handle(self) -> None:
            self.get_or_create_application_instance("a", {}).put_nowait(ValueError("boom"))
            await asyncio.wait({self.application_instances["a"]["future"]})

    with caplog.at_level(logging.ERROR):
        await within(Plain(obey).arun())
    (record,) = caplog.records
    assert ("asgiref.server", "ERROR") == (record.name, record.levelname)
    assert "Exception inside application: boom" in caplog.text
    assert "in obey" in caplog.text


async def test_a_call_that_fails_is_reported_like_a_task_that_does() -> None:
    """An application that is not a coroutine function may raise before there is anything to await."""

    def application(scope: Any, receive: Any, send: Any) -> Any:
        raise LookupError("at once")

    async def handle(server: Server) -> None:
        server.give("a")
        error, _ = await server.failures.get()
        assert isinstance(error, LookupError)

    await within(Server(application, handle).arun())


@pytest.mark.parametrize("message", ["return", "cancel"])
async def test_an_application_that_ends_otherwise_is_no_failure(message: str) -> None:
    server = Server(obey, never)
    async with running(server):
        server.give("a", message)
        await server.ended("a")
        assert "a" not in server.application_instances
        server.give("a", "again")
        assert ({"id": "a"}, "again") == await within(server.sent.get())
        assert server.failures.empty()


async def test_an_application_cancelled_before_it_began_is_forgotten() -> None:
    server = Server(obey, never)
    async with running(server):
        server.give("a")
        server.application_instances["a"]["future"].cancel()
        await server.ended("a")
        await asyncio.sleep(0)
        assert not server.application_instances
        assert not server._tasks


async def test_an_evicted_application_that_fails_in_its_cleanup_is_reported() -> None:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        try:
            await echo(scope, receive, send)
        finally:
            raise LookupError(scope["id"])

    server = Server(application, never, max_applications=1)
    async with running(server):
        server.give("a")
        await within(server.sent.get())
        server.give("b")
        error, _ = await within(server.failures.get())
        assert "a" == error.args[0]
        assert ["b"] == list(server.application_instances)


async def test_failures_are_reported_one_after_the_other() -> None:
    gate = asyncio.Event()
    reports: list[str] = []

    class Slow(Server):
        async def application_exception(self, exception: BaseException, application_details: Any) -> None:
            reports.append(f"begin {exception}")
            await gate.wait()
            reports.append(f"end {exception}")
            await super().application_exception(exception, application_details)

    server = Slow(obey, never)
    async with running(server):
        for scope_id in "ab":
            server.give(scope_id, ValueError(scope_id))
        await within(asyncio.wait({instance["future"] for instance in server.application_instances.values()}))
        gate.set()
        await within(server.failures.get())
        await within(server.failures.get())
    assert ["begin a", "end a", "begin b", "end b"] == reports


async def test_applications_see_the_context_of_the_message_that_started_them() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await send(variable.get())

    async def handle(server: Server) -> None:
        variable.set("of handle")
        server.give("a")
        got.append((await server.sent.get())[1])

    got: list[Any] = []
    await within(Server(application, handle).arun())
    assert ["of handle"] == got


# The end of the server.


def cleaning(events: list[str], gate: Any = None) -> Any:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        try:
            await echo(scope, receive, send)
        finally:
            if gate is not None:
                await gate()
            events.append(f"cleaned {scope['id']}")

    return application


async def begin(server: Server, *scope_ids: str) -> None:
    """Start applications, and wait until each has started."""
    for scope_id in scope_ids:
        server.give(scope_id)
        await within(server.sent.get())


async def test_when_handle_returns_all_applications_have_cleaned_up() -> None:
    events: list[str] = []

    async def handle(server: Server) -> None:
        await begin(server, "a", "b")
        events.append("handle")

    before = asyncio.all_tasks()
    server = Server(cleaning(events), handle)
    await within(server.arun())
    assert ["cleaned a", "cleaned b", "handle"] == sorted(events)
    assert "handle" == events[0]
    assert before == asyncio.all_tasks()
    assert not server.application_instances


async def test_when_handle_fails_its_failure_is_raised_after_the_cleanup() -> None:
    events: list[str] = []
    error = LookupError("handle")

    async def handle(server: Server) -> None:
        await begin(server, "a")
        raise error

    before = asyncio.all_tasks()
    with pytest.raises(LookupError) as caught:
        await within(Server(cleaning(events), handle).arun())
    assert caught.value is error
    assert ["cleaned a"] == events
    assert before == asyncio.all_tasks()


async def test_when_the_server_is_cancelled_handle_ends_first_and_then_the_applications() -> None:
    """The cleanup of handle can still use the applications, whose own cleanup is not interrupted."""
    events: list[str] = []
    begun, cleaning_up, gate = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def handle(server: Server) -> None:
        await begin(server, "a")
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            server.give("a", "last")
            events.append((await server.sent.get())[1])

    async def application_cleanup() -> None:
        events.append("cleaning")
        cleaning_up.set()
        await gate.wait()

    before = asyncio.all_tasks()
    task = asyncio.create_task(Server(cleaning(events, application_cleanup), handle).arun())
    await within(begun.wait())
    task.cancel()
    await within(cleaning_up.wait())
    assert not task.done()
    gate.set()
    await within(asyncio.wait({task}))
    assert task.cancelled()
    assert ["last", "cleaning", "cleaned a"] == events
    assert before == asyncio.all_tasks()


@pytest.mark.parametrize("who", ["handle", "application", "report"])
async def test_a_second_cancellation_of_the_server_cuts_short_what_still_runs(who: str) -> None:
    """The first cancellation waits for the cleanup, which never ends by itself."""
    stuck = asyncio.Event()

    async def forever(here: str) -> None:
        if who == here:
            stuck.set()
            await asyncio.Event().wait()

    class Stuck(Server):
        async def application_exception(self, exception: BaseException, application_details: Any) -> None:
            await forever("report")

    async def handle(server: Server) -> None:
        await begin(server, "a")
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            await forever("handle")

    async def application(scope: Any, receive: Any, send: Any) -> None:
        try:
            await echo(scope, receive, send)
        finally:
            await forever("application")
            raise LookupError

    begun = asyncio.Event()
    before = asyncio.all_tasks()
    task = asyncio.create_task(Stuck(application, handle).arun())
    await within(begun.wait())
    task.cancel()
    await within(stuck.wait())
    assert not task.done()
    task.cancel()
    await within(asyncio.wait({task}))
    assert task.cancelled()
    assert before == asyncio.all_tasks()


async def test_a_cleanup_under_way_is_not_cancelled_by_the_end_of_the_server() -> None:
    """1. An application is evicted, and cleans up. 2. handle returns. 3. The cleanup runs to its end."""
    events: list[str] = []
    cleaning_up, gate = asyncio.Event(), asyncio.Event()

    async def cleanup() -> None:
        cleaning_up.set()
        await gate.wait()

    async def handle(server: Server) -> None:
        await begin(server, "a", "b")
        await cleaning_up.wait()
        asyncio.get_running_loop().call_later(0, gate.set)

    await within(Server(cleaning(events, cleanup), handle, max_applications=1).arun())
    assert ["cleaned a", "cleaned b"] == sorted(events)


async def test_a_server_cancelled_while_it_ends_is_cancelled() -> None:
    """handle has returned, and an application still cleans up: the cancellation waits, and is not lost."""
    gate, cleaning_up = asyncio.Event(), asyncio.Event()

    async def cleanup() -> None:
        cleaning_up.set()
        await gate.wait()

    task = asyncio.create_task(Server(cleaning([], cleanup), lambda server: begin(server, "a")).arun())
    await within(cleaning_up.wait())
    task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    gate.set()
    await within(asyncio.wait({task}))
    assert task.cancelled()


async def test_what_handle_raises_in_its_cleanup_comes_out_of_a_cancelled_server() -> None:
    begun = asyncio.Event()

    async def handle(server: Server) -> None:
        try:
            begun.set()
            await asyncio.Event().wait()
        finally:
            raise LookupError("in cleanup")

    task = asyncio.create_task(Server(echo, handle).arun())
    await within(begun.wait())
    task.cancel()
    with pytest.raises(LookupError, match="in cleanup"):
        await within(task)


async def test_a_handle_that_swallows_its_cancellation_does_not_swallow_that_of_the_server() -> None:
    begun = asyncio.Event()

    async def handle(server: Server) -> None:
        begun.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()

    task = asyncio.create_task(Server(echo, handle).arun())
    await within(begun.wait())
    task.cancel()
    await within(asyncio.wait({task}))
    assert task.cancelled()


async def test_a_handle_that_is_cancelled_from_inside_ends_the_server_as_cancelled() -> None:
    async def handle(server: Server) -> None:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await within(Server(echo, handle).arun())


async def test_a_timeout_around_the_server_is_a_timeout() -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await Server(echo, never).arun()


async def test_what_applications_raise_while_the_server_ends_is_reported() -> None:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        try:
            await echo(scope, receive, send)
        finally:
            raise ValueError(scope["id"])

    server = Server(application, lambda server: begin(server, "a", "b"))
    await within(server.arun())
    assert {"a", "b"} == {server.failures.get_nowait()[0].args[0] for _ in range(2)}


async def test_a_failure_at_the_very_end_is_reported() -> None:
    """1. The application fails. 2. handle returns in the same event loop iteration. 3. The server ends."""
    released = asyncio.Event()

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await released.wait()
        raise ValueError("last")

    async def handle(server: Server) -> None:
        server.give("a")
        await asyncio.sleep(0)
        released.set()
        await asyncio.sleep(0)

    server = Server(application, handle)
    await within(server.arun())
    assert "last" == server.failures.get_nowait()[0].args[0]


async def test_an_exception_of_application_exception_ends_the_server() -> None:
    events: list[str] = []
    error = LookupError("no report")

    class Strict(Server):
        async def application_exception(self, exception: BaseException, application_details: Any) -> None:
            raise error

    async def handle(server: Server) -> None:
        await begin(server, "a")
        server.give("b", ValueError())
        try:
            await asyncio.Event().wait()
        finally:
            events.append("handle ended")

    async def application(scope: Any, receive: Any, send: Any) -> None:
        if scope["id"] == "b":
            raise ValueError
        await cleaning(events)(scope, receive, send)

    before = asyncio.all_tasks()
    with pytest.raises(LookupError) as caught:
        await within(Strict(application, handle).arun())
    assert caught.value is error
    assert ["handle ended", "cleaned a"] == events
    assert before == asyncio.all_tasks()


async def test_failures_behind_a_report_that_fails_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    """1. Two applications fail. 2. The report of the first starts, and fails. 3. The second failure is logged."""
    gate = asyncio.Event()

    class Strict(Server):
        async def application_exception(self, exception: BaseException, application_details: Any) -> None:
            await gate.wait()
            raise LookupError("no report")

    async def handle(server: Server) -> None:
        for scope_id in "ab":
            server.give(scope_id, ValueError(scope_id))
        await asyncio.wait({instance["future"] for instance in server.application_instances.values()})
        gate.set()
        await asyncio.Event().wait()

    with pytest.raises(LookupError, match="no report"):
        await within(Strict(obey, handle).arun())
    assert ["Exception inside application: b"] == [record.getMessage() for record in caplog.records]


async def test_the_failure_of_handle_is_the_context_of_that_of_a_report() -> None:
    """Neither of two failures is lost."""
    cause = KeyError("the cause")

    class Strict(Server):
        async def application_exception(self, exception: BaseException, application_details: Any) -> None:
            raise LookupError("no report")

    async def application(scope: Any, receive: Any, send: Any) -> None:
        try:
            await echo(scope, receive, send)
        finally:
            raise ValueError

    async def handle(server: Server) -> None:
        await begin(server, "a")
        raise cause

    with pytest.raises(LookupError, match="no report") as caught:
        await within(Strict(application, handle).arun())
    assert caught.value.__context__ is cause


async def test_a_report_that_is_cancelled_ends_the_server() -> None:
    """Otherwise it would continue without reports."""

    class Cancelled(Server):
        async def application_exception(self, exception: BaseException, application_details: Any) -> None:
            raise asyncio.CancelledError

    async def handle(server: Server) -> None:
        server.give("a", "fail")
        await asyncio.Event().wait()

    with pytest.raises(asyncio.CancelledError):
        await within(Cancelled(obey, handle).arun())


async def test_no_failure_is_silenced_by_being_cancelled_afterwards() -> None:
    """1. An application fails. 2. Before the loop calls any callback, the server cancels it, deleted or at its end."""
    told: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(str(context.get("exception"))))

    class Without(Server):
        async def application_checker(self) -> None:
            return

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        asyncio.get_running_loop().call_soon(ends[scope["id"]])
        raise ValueError(scope["id"])

    async def handle(server: Server) -> None:
        server.give("deleted")
        server.give("ended")
        await at_end.wait()

    server = Without(application, handle)
    at_end = asyncio.Event()
    ends = {"deleted": lambda: server.delete_application_instance("deleted"), "ended": at_end.set}
    await within(server.arun())
    gc.collect()
    assert ["deleted", "ended"] == sorted(told)


async def test_a_subclass_may_await_the_checker_and_do_more() -> None:
    """A subclass that continues after a failed report, or awaits an endless coroutine besides, lets the server end."""

    class GoingOn(Server):
        async def application_checker(self) -> None:
            while True:
                with contextlib.suppress(LookupError):
                    await super().application_checker()

        async def application_exception(self, exception: BaseException, application_details: Any) -> None:
            await super().application_exception(exception, application_details)
            raise LookupError

    class Accompanied(Server):
        async def application_checker(self) -> None:
            await asyncio.gather(super().application_checker(), asyncio.Event().wait())

    async def handle(server: Server) -> None:
        for scope_id in "ab":
            server.give(scope_id, "fail")
            reported.append(await within(server.failures.get()))

    for kind in (GoingOn, Accompanied):
        reported: list[Any] = []
        await within(kind(obey, handle).arun())
        assert 2 == len(reported)


async def test_a_subclass_may_look_for_ended_applications_itself() -> None:
    """Without the checker of this class, they stay among the instances until a message starts another one."""

    class Looking(Server):
        async def application_checker(self) -> None:
            await looked_at.wait()

    async def handle(server: Server) -> None:
        server.give("a", "fail")
        task = await server.ended("a")
        assert server.application_instances["a"]["future"] is task
        assert isinstance(task.exception(), ValueError)
        server.give("a", "another")
        assert ({"id": "a"}, "another") == await server.sent.get()
        looked_at.set()

    looked_at = asyncio.Event()
    await within(Looking(obey, handle).arun())


@pytest.mark.parametrize("awaitable", [False, True])
async def test_handle_may_be_any_function_that_returns_an_awaitable(awaitable: bool) -> None:
    """An exception that it raises instead is raised by the server, which can run again."""

    class Plain(Server):
        def handle(self) -> Any:
            if awaitable:
                return asyncio.gather(begin(self, "a"))
            raise LookupError

    server = Plain(echo)
    for _ in range(2):
        with contextlib.nullcontext() if awaitable else pytest.raises(LookupError):
            await within(server.arun())


async def test_a_message_for_an_application_cancelled_before_its_first_step_starts_another() -> None:
    """1. It is cancelled. 2. Its task has ended, but no callback was called yet. 3. The message comes."""
    server = Server(obey, never)
    async with running(server):
        server.give("a", "lost")
        task = server.application_instances["a"]["future"]
        task.cancel()
        asyncio.get_running_loop().call_soon(server.give, "a", "next")
        await within(asyncio.wait({task}))
        assert ({"id": "a"}, "next") == await within(server.sent.get())


async def test_a_subclass_may_do_without_the_checker_or_have_its_own() -> None:
    """The checker may return at once, or never."""

    class Without(Server):
        async def application_checker(self) -> None:
            return

    class Own(Server):
        async def application_checker(self) -> None:
            await asyncio.Event().wait()

    before = asyncio.all_tasks()
    for kind in (Without, Own):
        events: list[str] = []
        await within(kind(cleaning(events), lambda server: begin(server, "a")).arun())
        assert ["cleaned a"] == events
        assert before == asyncio.all_tasks()


@pytest.mark.skipif(not CPYTHON, reason="needs the task to be freed")
async def test_without_the_checker_asyncio_tells_of_failures() -> None:
    """Nothing has read the exception, so the loop's exception handler gets it when the task is freed."""
    told: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context["exception"]))
    server = Server(obey)
    server.give("a", ValueError("nobody asks"))
    await server.ended("a")
    assert ["a"] == list(server.application_instances)
    server.delete_application_instance("a")
    await asyncio.sleep(0)
    assert ["nobody asks"] == [str(error) for error in told]


async def test_an_ending_server_starts_no_application() -> None:
    errors: list[RuntimeError] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        try:
            await echo(scope, receive, send)
        finally:
            with pytest.raises(RuntimeError, match="cannot start an application for 'b'") as caught:
                server.give("b")
            errors.append(caught.value)

    server = Server(application, lambda server: begin(server, "a"))
    await within(server.arun())
    assert 1 == len(errors)
    assert not server.application_instances


async def test_a_server_can_run_again_but_not_twice_at_once() -> None:
    begun = asyncio.Event()

    async def handle(server: Server) -> None:
        await begin(server, "a")
        begun.set()
        await asyncio.Event().wait()

    server = Server(echo, handle)
    for _ in range(2):
        begun.clear()
        async with running(server):
            await within(begun.wait())
            with pytest.raises(RuntimeError, match="while the server is running"):
                await server.arun()


def test_a_server_can_run_again_in_another_loop() -> None:
    class Twice(StatelessServer):
        async def handle(self) -> None:
            done = asyncio.Event()
            self.done = done
            self.get_or_create_application_instance("a", {}).put_nowait("message")
            await asyncio.wait_for(done.wait(), LIMIT)

        async def application_send(self, scope: Any, message: Any) -> None:
            self.done.set()

    server = Twice(echo)
    server.run()
    server.run()


async def test_a_class_without_handle_or_application_send_says_what_is_missing() -> None:
    with pytest.raises(NotImplementedError, match=r"handle\(\) does nothing"):
        await within(StatelessServer(echo).arun())
    with pytest.raises(NotImplementedError, match=r"application_send\(\) does nothing"):
        await StatelessServer(echo).application_send({}, {})


async def test_run_refuses_to_block_a_loop() -> None:
    with pytest.raises(RuntimeError, match=r"await arun\(\)"):
        Server(echo, never).run()


async def test_run_also_works_on_a_thread_that_gets_no_signals() -> None:
    server = Server(echo, lambda server: begin(server, "a"))
    await within(asyncio.to_thread(server.run))


async def test_an_application_that_an_eager_task_factory_begins_finds_itself_registered() -> None:
    """It may call its server, and evict others, in its first step."""

    async def application(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["id"] in server.application_instances)
        if scope["id"] == "a":
            server.give("b")
        await echo(scope, receive, send)

    seen: list[bool] = []
    server = Server(application, never, max_applications=1)
    async with running(server):
        server.give("a")
        assert ["a", "b"] == [(await within(server.sent.get()))[0]["id"] for _ in range(2)]
        assert ["b"] == list(server.application_instances)
    assert [True, True] == seen


def test_a_server_leaves_no_reference_cycle() -> None:
    """Applications that return, fail, are evicted and are cancelled at the end; and a handle that fails."""

    async def handle(server: Server) -> None:
        server.give("a", "return")
        await server.ended("a")
        server.give("b", "fail")
        await within(server.failures.get())
        for scope_id in "cde":
            await begin(server, scope_id)
        raise LookupError

    async def main() -> None:
        try:
            await Server(obey, handle, max_applications=2).arun()
        except LookupError:
            pass

    class Strict(Server):
        async def application_exception(self, exception: BaseException, application_details: Any) -> None:
            raise LookupError

    async def failing_report() -> None:
        try:
            await Strict(obey, lambda server: begin_and_wait(server)).arun()
        except LookupError:
            pass

    async def begin_and_wait(server: Server) -> None:
        server.give("a", "fail")
        await asyncio.Event().wait()

    with asyncio.Runner() as runner:
        for end in (main, failing_report):
            runner.run(end())
            with no_garbage():
                runner.run(end())


# Signals.

SIGNALLED = """
from asgiref.server import StatelessServer
async def application(scope, receive, send):
    try:
        await send(await receive())
        await receive()
    finally:
        await asyncio.sleep(0)
        print("application cleaned up")
class Server(StatelessServer):
    async def handle(self):
        self.get_or_create_application_instance("a", {}).put_nowait("message")
        try:
            await asyncio.Event().wait()
        finally:
            print("handle ends")
            HANDLE_CLEANUP
    async def application_send(self, scope, message):
        os.kill(os.getpid(), signal.SIGNAL)
Server(application).run()
print("run returned")
"""


def signalled(signal_name: str, cleanup: str = "pass") -> str:
    return SIGNALLED.replace("SIGNAL)", signal_name + ")").replace("HANDLE_CLEANUP", cleanup)


@pytest.fixture
def posix() -> None:
    if sys.platform == "win32":
        pytest.skip("sends signals")


@pytest.mark.slow
@pytest.mark.usefixtures("posix")
@pytest.mark.parametrize("signal_name", ["SIGINT", "SIGTERM"])
def test_a_signal_ends_the_server_in_order(signal_name: str) -> None:
    assert ["handle ends", "application cleaned up", "run returned"] == output_of(signalled(signal_name))


@pytest.mark.usefixtures("posix")
def test_a_signal_in_handle_itself_ends_the_server() -> None:
    async def handle(server: Server) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        try:
            await asyncio.wait_for(asyncio.Event().wait(), LIMIT)
        finally:
            events.append("handle ended")

    events: list[str] = []
    Server(echo, handle).run()
    assert ["handle ended"] == events


def test_a_server_that_is_cancelled_by_something_else_says_so() -> None:
    async def handle(server: Server) -> None:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        Server(echo, handle).run()


@pytest.mark.slow
@pytest.mark.usefixtures("posix")
def test_a_second_sigterm_ends_the_process() -> None:
    process = run_python(
        signalled("SIGTERM", "sys.stdout.flush(); os.kill(os.getpid(), signal.SIGTERM); await asyncio.Event().wait()")
    )
    assert -signal.SIGTERM == process.returncode
    assert "handle ends\n" == process.stdout


@pytest.mark.slow
@pytest.mark.usefixtures("posix")
def test_a_second_interrupt_cuts_the_cleanup_of_handle_short() -> None:
    process = run_python(signalled("SIGINT", "os.kill(os.getpid(), signal.SIGINT); await asyncio.Event().wait()"))
    assert (0, "") == (process.returncode, process.stderr)
    assert ["handle ends", "application cleaned up", "run returned"] == process.stdout.splitlines()


@pytest.mark.slow
@pytest.mark.usefixtures("posix")
def test_handlers_of_others_stay() -> None:
    code = """
signal.signal(signal.SIGTERM, lambda *_: print("mine"))
from asgiref.server import StatelessServer
class Server(StatelessServer):
    async def handle(self):
        os.kill(os.getpid(), signal.SIGTERM)
Server(lambda: None).run()
os.kill(os.getpid(), signal.SIGTERM)
"""
    assert ["mine", "mine"] == output_of(code)


@pytest.mark.usefixtures("posix")
def test_the_default_handler_is_back_afterwards() -> None:
    assert threading.current_thread() is threading.main_thread()

    async def handle(server: Server) -> None:
        handlers.append(signal.getsignal(signal.SIGTERM))

    handlers: list[Any] = []
    Server(echo, handle).run()
    assert signal.SIG_DFL is not handlers[0]
    assert signal.SIG_DFL is signal.getsignal(signal.SIGTERM)


def test_exception_of_handle_that_cannot_be_assigned_to_is_raised_as_it_is() -> None:
    @dataclasses.dataclass(frozen=True)
    class Frozen(Exception):
        code: int = 5

    async def handle(server: Server) -> None:
        raise error

    error = Frozen()
    with pytest.raises(Frozen) as caught:
        Server(echo, handle).run()
    assert error is caught.value


@pytest.mark.slow
def test_sys_exit_in_an_application_or_in_handle_ends_the_program() -> None:
    """Everything is cleaned up on the way, and nothing else is logged."""
    code = """
from asgiref.server import StatelessServer
async def application(scope, receive, send):
    try:
        if await receive() == "exit":
            sys.exit(3)
        await receive()
    finally:
        print("cleaned up", scope)
class Server(StatelessServer):
    async def handle(self):
        self.get_or_create_application_instance("a", "a").put_nowait("stay")
        await asyncio.sleep(0)
        if "handle" in sys.argv[1:] or WHO == "handle":
            sys.exit(3)
        self.get_or_create_application_instance("b", "b").put_nowait("exit")
        await asyncio.Event().wait()
Server(application).run()
"""
    for who, expected in [("handle", ["cleaned up a"]), ("application", ["cleaned up a", "cleaned up b"])]:
        process = run_python(code.replace("WHO", repr(who)))
        assert (3, "") == (process.returncode, process.stderr)
        assert expected == sorted(process.stdout.splitlines())
