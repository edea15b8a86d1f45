"""``WsgiToAsgi``: which thread runs a request, how many requests run concurrently, and their context variables."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from asgiref.sync import ThreadSensitiveContext, async_to_sync, sync_to_async
from asgiref.wsgi import WsgiToAsgi

from ..helpers import LIMIT
from .helpers import Client, Environ, Message, body_in, http, reads, run, serve

color = contextvars.ContextVar("color", default="none")


async def test_whole_request_is_on_one_thread() -> None:
    """The call, reads, the iteration and close() run on one thread, which is not that of the loop."""
    idents: list[int] = []

    def note() -> None:
        idents.append(threading.get_ident())

    class Body:
        def __init__(self, body: Any) -> None:
            self.lines = iter(body)

        def __iter__(self) -> Body:
            return self

        def __next__(self) -> bytes:
            note()
            line: bytes = next(self.lines)
            return line

        def close(self) -> None:
            note()

    def application(environ: Environ, start_response: Any) -> Body:
        note()
        start_response("200 OK", [])
        return Body(environ["wsgi.input"])

    client = await serve(application, Client(*body_in(b"a\n", b"b\n")))
    assert b"a\nb\n" == client.body
    assert 5 == len(idents)
    assert 1 == len(set(idents))
    assert threading.get_ident() not in idents


async def test_32_requests_at_once() -> None:
    barrier = threading.Barrier(32)

    def application(environ: Environ, start_response: Any) -> list[bytes]:
        barrier.wait(LIMIT)
        start_response("200 OK", [])
        return [b"together"]

    adapter = WsgiToAsgi(application)
    clients = [Client() for _ in range(32)]
    async with asyncio.timeout(LIMIT):
        await asyncio.gather(*[adapter(http(), client.receive, client.send) for client in clients])
    assert [b"together"] * 32 == [client.body for client in clients]


@pytest.mark.parametrize("limit", [1, 3])
async def test_as_many_requests_at_once_as_there_are_threads(limit: int) -> None:
    barrier, lock, running, peak = threading.Barrier(limit), threading.Lock(), 0, 0

    def application(environ: Environ, start_response: Any) -> Iterator[bytes]:
        nonlocal running, peak
        with lock:
            running += 1
            peak = max(peak, running)
        barrier.wait(LIMIT)
        start_response("200 OK", [])
        yield b"together"
        with lock:
            running -= 1

    adapter = WsgiToAsgi(application, threads=limit)
    clients = [Client() for _ in range(4 * limit)]
    async with asyncio.timeout(LIMIT):
        await asyncio.gather(*[adapter(http(), client.receive, client.send) for client in clients])
    assert all([client.complete for client in clients])
    assert limit == peak


async def test_executor_of_the_callers_own() -> None:
    """The executor runs the requests, and is not shut down."""
    with ThreadPoolExecutor(1) as executor:
        ident = executor.submit(threading.get_ident).result(LIMIT)
        seen: list[int] = []

        def application(environ: Environ, start_response: Any) -> list[bytes]:
            seen.append(threading.get_ident())
            start_response("200 OK", [])
            return [environ["wsgi.input"].read()]

        client = await serve(application, Client(*body_in(b"a", b"b")), executor=executor)
        assert b"ab" == client.body
        assert [ident] == seen
        assert ident == executor.submit(threading.get_ident).result(LIMIT)


async def test_inside_a_thread_sensitive_context() -> None:
    async with ThreadSensitiveContext():
        ident = await sync_to_async(threading.get_ident)()
        client = await serve(
            reads(lambda body: body.read() + b"%d" % threading.get_ident()), Client(*body_in(b"", b""))
        )
    assert b"%d" % ident == client.body


def test_below_async_to_sync() -> None:
    """The waiting thread runs the application, which can read and stream nevertheless."""

    def application(environ: Environ, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        yield b"%d" % threading.get_ident()
        yield environ["wsgi.input"].read()

    client = async_to_sync(serve)(application, Client(*body_in(b"a", b"b")))
    assert b"%dab" % threading.get_ident() == client.body


async def test_context_variables_come_and_go() -> None:
    """Variables of the server are visible, and changes come back; the same is true for receive and send."""
    seen = []

    class Looking(Client):
        async def receive(self) -> Message:
            seen.append(color.get())
            return await super().receive()

        async def send(self, message: Message) -> None:
            seen.append(color.get())
            await super().send(message)

    def application(environ: Environ, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        yield color.get().encode() + environ["wsgi.input"].read()
        color.set("blue")

    token = color.set("red")
    client = await serve(application, Looking(*body_in(b"a", b"b")))
    assert b"redab" == client.body
    assert "blue" == color.get()
    assert {"red", "blue"} >= set(seen)
    assert "red" == seen[0] == seen[1]
    color.reset(token)


async def test_async_to_sync_in_the_application_runs_on_the_loop_of_the_server() -> None:
    loops = []

    async def look() -> None:
        loops.append(asyncio.get_running_loop())

    def application(environ: Environ, start_response: Any) -> Iterator[bytes]:
        async_to_sync(look)()
        start_response("200 OK", [])
        yield b"a"
        async_to_sync(look)()

    await serve(application)
    assert [asyncio.get_running_loop()] * 2 == loops


async def test_application_that_sends_a_request_to_its_own_adapter() -> None:
    """One thread is enough for that."""

    def application(environ: Environ, start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        if environ["PATH_INFO"] == "/inner":
            return [b"inner"]
        inner = Client()
        async_to_sync(adapter)(http(path="/inner"), inner.receive, inner.send)
        return [b"outer, ", inner.body]

    adapter = WsgiToAsgi(application, threads=1)
    client = Client()
    await run(adapter, client)
    assert b"outer, inner" == client.body
