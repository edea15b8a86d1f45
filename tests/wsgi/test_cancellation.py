"""Cancelled requests, stopped loops, and threads that outlive their request."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from asgiref.sync import sync_to_async
from asgiref.wsgi import WsgiToAsgi, WsgiToAsgiInstance

from ..helpers import LIMIT, Thread, wait_for
from .helpers import (
    CHUNK,
    ZEROCOPY,
    Chunks,
    Client,
    Environ,
    Message,
    answers,
    cancelled,
    http,
    in_thread,
    on_loop,
    request,
    serve,
    serve_beside,
    streamed,
)


async def test_cancelled_while_the_application_reads() -> None:
    """The application gets the cancellation."""
    client, errors = Client(request(b"a", True)), []

    def chunks(body: Any) -> Iterator[bytes]:
        try:
            yield body.read()
        except BaseException as error:
            errors.append(type(error))
            raise

    bodies = []

    def application(environ: Environ, start_response: Any) -> Chunks:
        start_response("200 OK", [])
        bodies.append(Chunks(chunks(environ["wsgi.input"])))
        return bodies[0]

    task = asyncio.create_task(serve_beside(application, client))
    await on_loop(client.waiting)
    await cancelled(task)
    assert [asyncio.CancelledError] == errors
    assert 1 == bodies[0].closes
    assert [] == client.sent


@pytest.mark.parametrize("chunk", [b"a", CHUNK])
async def test_cancelled_while_the_response_streams(chunk: bytes) -> None:
    body, client = Chunks(itertools.repeat(chunk)), Client()
    streams = asyncio.Event()

    def note(message: Message) -> None:
        if len(client.sent) == 5:
            streams.set()

    client.on_send = note
    task = asyncio.create_task(serve_beside(answers(body), client))
    await on_loop(streams)
    await cancelled(task)
    assert not client.complete
    await in_thread(wait_for, body.closed)
    assert 1 == body.closes


async def test_cancelled_while_the_application_is_held_back(held_back: asyncio.Event) -> None:
    client, body = Client(), Chunks(itertools.repeat(CHUNK))
    client.may_send.clear()
    task = asyncio.create_task(serve_beside(answers(body), client))
    await on_loop(held_back)
    await cancelled(task)
    assert 1 == body.closes


async def test_cancelled_until_the_request_has_ended() -> None:
    """Scopes of anyio do so: each task of the request is cancelled once, and none outlives the request."""
    log: list[str] = []

    class SlowClient(Client):
        async def receive(self) -> Message:
            try:
                return await super().receive()
            except asyncio.CancelledError:
                log.append("cancelled")
                for _ in range(9):
                    await asyncio.sleep(0)
                log.append("cleaned up")
                raise

    streams = asyncio.Event()
    body, client = Chunks(itertools.repeat(b"a")), SlowClient()
    client.on_send = lambda message: streams.set() if client.waiting.is_set() else None
    task = asyncio.create_task(serve_beside(answers(body), client))
    await on_loop(streams)
    while not task.done():
        task.cancel("again")
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError, match="again"):
        await task
    assert ["cancelled", "cleaned up"] == log
    assert {asyncio.current_task()} == asyncio.all_tasks()
    await in_thread(wait_for, body.closed)


async def test_cancelled_while_the_application_computes() -> None:
    """The application continues in the background. Its response is not used, but closed."""
    computing, go_on = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()
    bodies = []

    def application(environ: Environ, start_response: Any) -> Chunks:
        bodies.append(Chunks(itertools.repeat(b"a")))
        start_response("200 OK", [])
        loop.call_soon_threadsafe(computing.set)
        wait_for(go_on)
        return bodies[0]

    client = Client()
    task = asyncio.create_task(serve_beside(application, client))
    await on_loop(computing)
    await cancelled(task)
    go_on.set()
    await in_thread(wait_for, bodies[0].closed)
    assert (1, []) == (bodies[0].closes, client.sent)
    assert bodies[0].taken <= 1


async def test_cancelled_before_the_application_has_a_thread() -> None:
    """The application is not called."""
    adapter_holds, go_on = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()
    calls = []

    def application(environ: Environ, start_response: Any) -> list[bytes]:
        calls.append(environ["PATH_INFO"])
        loop.call_soon_threadsafe(adapter_holds.set)
        wait_for(go_on)
        start_response("200 OK", [])
        return []

    adapter = WsgiToAsgi(application, threads=1)
    one, two = Client(), Client()
    first = asyncio.ensure_future(adapter(http(path="/one"), one.receive, one.send))
    await on_loop(adapter_holds)
    second = asyncio.ensure_future(adapter(http(path="/two"), two.receive, two.send))
    await on_loop(two.received)
    second.cancel()
    await asyncio.wait({second}, timeout=LIMIT)
    assert second.cancelled()
    go_on.set()
    await asyncio.wait_for(first, LIMIT)
    assert ["/one"] == calls


async def test_cancelled_before_the_first_message() -> None:
    client = Client()
    client.inputs.get_nowait()
    task = asyncio.create_task(serve_beside(answers(), client))
    await on_loop(client.waiting)
    await cancelled(task)


async def test_thread_of_the_application_that_outlives_the_request() -> None:
    """Such a thread can neither read nor write."""
    go_on = threading.Event()
    threads = []

    def work(body: Any, write: Any) -> list[str]:
        wait_for(go_on)
        errors = []
        for function, arguments in ((body.read, ()), (body.readline, ()), (write, (b"a",)), (write, (CHUNK * 10,))):
            with pytest.raises(OSError) as caught:
                function(*arguments)
            errors.append(str(caught.value))
        return errors

    def application(environ: Environ, start_response: Any) -> list[bytes]:
        write = start_response("200 OK", [])
        threads.append(Thread(work, environ["wsgi.input"], write))
        return [b"a"]

    client = await serve(application, Client(request(b"", True)))
    assert client.complete
    go_on.set()
    errors = await in_thread(threads[0].get)
    assert 2 == "".join(errors).count("can no longer be read")
    assert 2 == "".join(errors).count("disconnected before it had the whole response")


async def test_thread_that_reads_when_the_request_ends() -> None:
    """The read raises OSError, as later reads do."""
    client = Client(request(b"", True))
    threads = []
    loop = asyncio.get_running_loop()

    def application(environ: Environ, start_response: Any) -> list[bytes]:
        threads.append(Thread(environ["wsgi.input"].read))
        asyncio.run_coroutine_threadsafe(on_loop(client.waiting), loop).result(LIMIT)
        start_response("200 OK", [])
        return [b"a"]

    await serve(application, client)
    assert client.complete
    with pytest.raises(OSError):
        await in_thread(threads[0].get)


async def end_of(task: asyncio.Future[None]) -> None:
    await asyncio.wait_for(task, LIMIT)


def test_loop_that_stops_while_the_application_reads() -> None:
    client, ended, errors = Client(request(b"a", True)), threading.Event(), []

    def application(environ: Environ, start_response: Any) -> list[bytes]:
        try:
            environ["wsgi.input"].read()
        except BaseException as error:
            errors.append(error)
        ended.set()
        start_response("200 OK", [])
        return []

    loop = asyncio.new_event_loop()

    async def start() -> asyncio.Future[None]:
        task = asyncio.ensure_future(serve_beside(application, client))
        await on_loop(client.waiting)
        return task

    try:
        task = loop.run_until_complete(start())
        wait_for(ended)
        loop.run_until_complete(end_of(task))
    finally:
        loop.close()
    assert [True] == [isinstance(error, OSError) for error in errors], errors


def read(environ: Environ, start_response: Any) -> Any:
    return [environ["wsgi.input"].read()]


def write_much(environ: Environ, start_response: Any) -> Any:
    start_response("200 OK", [])(CHUNK * 10)
    return []


def send_file(environ: Environ, start_response: Any) -> Any:
    start_response("200 OK", [])
    return environ["wsgi.file_wrapper"](Path(__file__).open("rb"))


@pytest.mark.parametrize("work", [read, write_much, send_file])
def test_loop_that_stopped_before_the_application_needs_it(work: Any) -> None:
    """The application ends; when the loop runs again, the request has ended."""
    client, begun = Client(request(b"a", True)), asyncio.Event()
    go_on, ended, errors = threading.Event(), threading.Event(), []

    def application(environ: Environ, start_response: Any) -> Any:
        loop.call_soon_threadsafe(begun.set)
        wait_for(go_on)
        return work(environ, start_response)

    def run_wsgi_app(instance: WsgiToAsgiInstance, body: Any) -> None:
        try:
            WsgiToAsgiInstance.run_wsgi_app.func(instance, body)
        except OSError as error:
            errors.append(str(error))
            raise
        finally:
            ended.set()

    class Instance(WsgiToAsgiInstance):
        pass

    Instance.run_wsgi_app = sync_to_async(run_wsgi_app)  # type: ignore[method-assign]
    loop = asyncio.new_event_loop()

    async def start() -> asyncio.Future[None]:
        task = asyncio.ensure_future(
            Instance(application)(streamed(extensions={ZEROCOPY: {}}), client.receive, client.send)
        )
        await on_loop(begun)
        return task

    try:
        task = loop.run_until_complete(start())
        go_on.set()
        wait_for(ended)
        loop.run_until_complete(end_of(task))
    finally:
        loop.close()
    assert ["the event loop of the server has stopped; end the request"] == errors
