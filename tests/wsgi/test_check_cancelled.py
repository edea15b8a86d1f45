"""``check_cancelled`` in WSGI applications: clients that disconnect, and requests that are cancelled."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from asgiref._wsgi.connection import Connection
from asgiref.sync import async_to_sync, check_cancelled, sync_to_async

from ..helpers import LIMIT, wait_for
from .helpers import (
    DISCONNECT,
    Client,
    Environ,
    Log,
    answers,
    in_thread,
    request,
    serve,
    serve_beside,
)


def is_cancelled() -> bool:
    try:
        check_cancelled()
    except asyncio.CancelledError:
        return True
    return False


class Application:
    """Checks at its start, and again when the test lets it continue; records both results, and the check in close()."""

    def __init__(self) -> None:
        self.begun, self.go_on, self.closed = threading.Event(), threading.Event(), threading.Event()
        self.answers: list[bool] = []

    def __call__(self, environ: Environ, start_response: Any) -> Any:
        self.answers.append(is_cancelled())
        self.begun.set()
        wait_for(self.go_on)
        self.answers.append(is_cancelled())
        start_response("200 OK", [])
        return self

    def __iter__(self) -> Iterator[bytes]:
        return iter([b"a"])

    def close(self) -> None:
        self.answers.append(is_cancelled())
        self.closed.set()


async def test_client_that_has_left_before_the_first_question(log: Log) -> None:
    """The first check raises already, before the response has started; CancelledError ends the request quietly."""

    def application(environ: Environ, start_response: Any) -> Any:
        check_cancelled()
        raise AssertionError("it continued")

    client = await serve(application, Client(request(), DISCONNECT))
    assert ([], []) == (client.sent, log.records)


async def test_client_that_leaves_before_the_response_begins(log: Log) -> None:
    client, application = Client(), Application()
    served = asyncio.create_task(serve_beside(application, client))
    await in_thread(wait_for, application.begun)
    await asyncio.wait_for(client.waiting.wait(), LIMIT)
    client.received.clear()
    client.inputs.put_nowait(DISCONNECT)
    await asyncio.wait_for(client.received.wait(), LIMIT)
    application.go_on.set()
    await served
    assert [False, True, False] == application.answers
    assert ([], []) == (client.sent, log.records)


async def test_client_that_stays(log: Log) -> None:
    """The response is sent; the check has requested one message and no more."""
    client, application = Client(), Application()
    application.go_on.set()
    await serve(application, client)
    assert [False, False, False] == application.answers
    assert (b"a", True, []) == (client.body, client.complete, log.records)


async def test_application_that_does_not_ask_causes_no_receive() -> None:
    client = await serve(answers([b"a"]))
    assert 1 == client.receives


async def test_rest_of_the_body_can_be_read_after_a_question() -> None:
    """The message that arrived meanwhile is kept for the read."""

    def application(environ: Environ, start_response: Any) -> Any:
        answers = [is_cancelled(), is_cancelled()]
        body = environ["wsgi.input"].read()
        start_response("200 OK", [])
        return [body, str([*answers, is_cancelled()]).encode()]

    client = await serve(application, Client(request(b"a", True), request(b"b")))
    assert b"ab[False, False, False]" == client.body


async def test_client_that_left_in_the_midst_of_the_response(log: Log) -> None:
    left = threading.Event()

    def application(environ: Environ, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        yield b"a"
        wait_for(left)
        check_cancelled()
        raise AssertionError("it continued")

    def leave(message: Any) -> None:
        if message["type"] == "http.response.body":
            client.inputs.put_nowait(DISCONNECT)
            left.set()

    client = Client(on_send=leave)
    await serve(application, client)
    assert [] == log.records


async def test_cancelled_request() -> None:
    """As for any other call; no loop is asked, and the check in close() does not raise."""
    client, application = Client(), Application()
    task = asyncio.create_task(serve_beside(application, client))
    await in_thread(wait_for, application.begun)
    task.cancel()
    await asyncio.wait({task}, timeout=LIMIT)
    assert task.cancelled()
    application.go_on.set()
    await in_thread(wait_for, application.closed)
    assert [False, True, False] == application.answers


async def test_request_that_is_cancelled_in_the_midst_of_the_first_question(monkeypatch: pytest.MonkeyPatch) -> None:
    asking, answer = asyncio.Event(), []

    async def watch(connection: Connection) -> None:
        asking.set()
        await asyncio.sleep(LIMIT)

    def application(environ: Environ, start_response: Any) -> Any:
        answer.append(is_cancelled())
        start_response("200 OK", [])
        return []

    monkeypatch.setattr(Connection, "_watch", watch)
    task = asyncio.create_task(serve_beside(application, Client()))
    await asyncio.wait_for(asking.wait(), LIMIT)
    task.cancel()
    await asyncio.wait({task}, timeout=LIMIT)
    assert [True] == answer


def test_question_after_the_loop_of_the_server_has_stopped() -> None:
    """The client counts as gone, as for a read."""
    begun, stopped, answer = threading.Event(), threading.Event(), []
    done = threading.Event()

    def application(environ: Environ, start_response: Any) -> Any:
        begun.set()
        wait_for(stopped)
        answer.extend([is_cancelled(), is_cancelled()])
        done.set()
        return []

    async def main() -> None:
        task = asyncio.create_task(serve_beside(application, Client()))
        await in_thread(wait_for, begun)
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        asyncio.get_running_loop().stop()
        tasks.append(task)
        await asyncio.sleep(0)

    tasks: list[Any] = []
    loop = asyncio.new_event_loop()
    try:
        with pytest.raises(RuntimeError, match="stopped"):
            loop.run_until_complete(main())
        stopped.set()
        wait_for(done)
        assert [True, True] == answer
        tasks[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            loop.run_until_complete(tasks[0])
    finally:
        loop.close()


async def test_cancelled_error_of_the_application_while_the_client_is_there() -> None:
    """Without a cancellation, the exception is an error."""

    def application(environ: Environ, start_response: Any) -> Any:
        raise asyncio.CancelledError

    with pytest.raises(RuntimeError, match="its request was not cancelled"):
        await serve(application)


async def test_code_that_the_application_bridges_hears_of_its_own_cancellation_only() -> None:
    async def below() -> bool:
        return await sync_to_async(is_cancelled)()

    def application(environ: Environ, start_response: Any) -> Any:
        answer = [is_cancelled(), async_to_sync(below)(), is_cancelled()]
        answered.append(answer)
        raise asyncio.CancelledError

    answered: list[Any] = []
    await serve(application, Client(request(), DISCONNECT))
    assert [[True, False, True]] == answered
