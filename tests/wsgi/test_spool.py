"""Request bodies that are collected before the application is called: their length, their file, and their limits."""

from __future__ import annotations

import asyncio
import errno
import io
import os
import tempfile
import threading
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from typing import IO, Any

import pytest

from asgiref._wsgi import spool
from asgiref._wsgi.connection import EMPTY_MESSAGES
from asgiref._wsgi.spool import MEMORY_LIMIT, SPOOL_LIMIT, Spool
from asgiref.wsgi import WsgiToAsgi, WsgiToAsgiInstance

from ..helpers import LIMIT, Thread, wait_for
from .helpers import (
    CHUNK,
    DISCONNECT,
    Chunks,
    Client,
    Environ,
    Log,
    Message,
    answers,
    body_in,
    cancelled,
    http,
    in_thread,
    on_loop,
    reads,
    refused,
    request,
    serve,
    serve_beside,
    streamed,
)

# Of several messages, and larger than the part that stays in memory.
LARGE = [CHUNK] * (MEMORY_LIMIT // len(CHUNK) + 1)


class Disk(io.BytesIO):
    """A temporary file that records the calls of its methods."""

    def __init__(self) -> None:
        super().__init__()
        self.writers: list[int] = []
        self.closes = 0
        self.is_closed = threading.Event()
        # Set when the first write has started; the event that this write waits for.
        self.begun, self.go_on = threading.Event(), threading.Event()
        self.go_on.set()
        self.error: OSError | None = None

    def write(self, data: Any, /) -> int:
        self.writers.append(threading.get_ident())
        self.begun.set()
        wait_for(self.go_on)
        if self.error is not None:
            raise self.error
        return super().write(data)

    def close(self) -> None:
        if not self.closed:
            self.closes += 1
        super().close()
        self.is_closed.set()


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    """Return the only temporary file that can be opened; at the end, it must have been closed once."""
    disk = Disk()
    opened: list[Disk] = []

    def open_file() -> Disk:
        assert [] == opened
        opened.append(disk)
        return disk

    monkeypatch.setattr(tempfile, "TemporaryFile", open_file)
    yield disk
    if opened:
        wait_for(disk.is_closed)
    assert len(opened) == disk.closes


def told(environ: Environ, start_response: Any) -> list[bytes]:
    """Return the length of the body by the environ, by seeking to its end, and by its bytes, and then the body."""
    body = environ["wsgi.input"]
    sizes = environ.get("CONTENT_LENGTH"), body.seek(0, os.SEEK_END), body.seek(0)
    start_response("200 OK", [("X-Sizes", str(sizes))])
    return [body.read()]


def sizes_in(client: Client) -> Any:
    return dict(client.headers)[b"x-sizes"].decode()


# The collected body:


@pytest.mark.parametrize(
    "parts",
    [
        (b"a",),
        (b"a", b"bc"),
        (b"a", b"", b"bc", b""),
        (bytes(MEMORY_LIMIT - 1), b"a"),
        (bytes(MEMORY_LIMIT), b"a"),
        (bytes(MEMORY_LIMIT + 1), b""),
        (b"a", bytes(3 * MEMORY_LIMIT), b"b"),
        (*LARGE, *LARGE, b"end"),
    ],
    ids=lambda parts: f"{len(parts)}, {sum(map(len, parts))} bytes",
)
async def test_collected_body_has_its_length_and_can_be_sought(parts: tuple[bytes, ...]) -> None:
    size = sum(map(len, parts))
    client = await serve(told, Client(*body_in(*parts)), http())
    assert repr((str(size), size, 0)) == sizes_in(client)
    assert b"".join(parts) == client.body


@pytest.mark.parametrize("messages", [body_in(b""), body_in(b"", b""), [{"type": "http.request"}]])
@pytest.mark.parametrize("spool_body", [..., None, 10])
async def test_empty_body_has_no_length(messages: list[Message], spool_body: Any) -> None:
    def application(environ: Environ, start_response: Any) -> list[bytes]:
        assert "CONTENT_LENGTH" not in environ
        start_response("200 OK", [])
        return [environ["wsgi.input"].read() + b"empty"]

    assert b"empty" == (await serve(application, Client(*messages), http(), spool_body=spool_body)).body


@pytest.mark.parametrize("spool_body", [..., None, 10])
async def test_body_in_one_message_has_its_length(spool_body: Any) -> None:
    client = await serve(told, Client(request(b"abc")), http(), spool_body=spool_body)
    assert ("('3', 3, 0)", b"abc") == (sizes_in(client), client.body)


@pytest.mark.parametrize(("size", "in_file"), [(MEMORY_LIMIT, False), (MEMORY_LIMIT + 1, True)])
async def test_large_body_is_in_a_file(size: int, in_file: bool) -> None:
    """The file is closed, and so deleted, afterwards."""
    bodies = []

    def application(environ: Environ, start_response: Any) -> list[bytes]:
        bodies.append(environ["wsgi.input"])
        start_response("200 OK", [])
        return []

    await serve(application, Client(*body_in(bytes(size - 1), b"a")), http())
    [body] = bodies
    assert in_file == (type(body) is not io.BytesIO)
    if in_file:
        await in_thread(eventually, lambda: body.closed)


def eventually(fact: Callable[[], bool]) -> None:
    """Wait until *fact* is true; another thread makes it true without notification."""
    waiting = threading.Event()
    for _ in range(int(LIMIT * 1000)):
        if fact():
            return
        waiting.wait(0.001)
    raise AssertionError


async def test_application_is_called_when_the_body_is_whole() -> None:
    """Nothing else is received before."""
    client = Client(*body_in(b"a", b"b", b"c"), DISCONNECT)
    receives: list[int] = []

    def application(environ: Environ, start_response: Any) -> list[bytes]:
        receives.append(client.receives)
        start_response("200 OK", [])
        return []

    await serve(application, client, http())
    assert [3] == receives


async def test_body_that_tells_its_length_streams() -> None:
    """The application is called with its first part."""
    client = await serve(answers([b"early"]), Client(request(b"a", True)), streamed())
    assert (b"early", 1) == (client.body, client.receives)


@pytest.mark.parametrize("scope", [http(), streamed()], ids=["without a length", "with one"])
async def test_spool_body_of_none_streams(scope: Any) -> None:
    client = await serve(answers([b"early"]), Client(request(b"a", True)), scope, spool_body=None)
    assert (b"early", 1) == (client.body, client.receives)


async def test_spool_body_also_collects_a_body_that_tells_its_length() -> None:
    """For applications that seek, for example with the ``zipfile`` module."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("name", b"content")
    data = file.getvalue()

    def application(environ: Environ, start_response: Any) -> list[bytes]:
        with zipfile.ZipFile(environ["wsgi.input"]) as archive:
            content = archive.read("name")
        start_response("200 OK", [])
        return [content]

    scope = streamed(headers=[(b"content-length", b"%d" % len(data))])
    client = await serve(application, Client(*body_in(data[:20], data[20:])), scope, spool_body=1000)
    assert b"content" == client.body


async def test_collected_body_as_the_response(disk: Disk) -> None:
    """The file is open until the response has been made of it."""

    def application(environ: Environ, start_response: Any) -> Any:
        start_response("200 OK", [])
        return environ["wsgi.file_wrapper"](environ["wsgi.input"])

    client = await serve(application, Client(*body_in(*LARGE)), http())
    assert b"".join(LARGE) == client.body


async def test_instance_without_an_adapter_collects() -> None:
    client = Client(*body_in(b"a", b"b"))
    await WsgiToAsgiInstance(told)(http(), client.receive, client.send)
    assert ("('2', 2, 0)", b"ab") == (sizes_in(client), client.body)


def test_spool_body_is_a_number_or_none() -> None:
    """False is a likely guess for switching it off, and would be a limit of 0."""
    with pytest.raises(TypeError, match="None to stream, not False"):
        WsgiToAsgi(answers(), spool_body=False)
    with pytest.raises(ValueError, match="None streams them"):
        WsgiToAsgi(answers(), spool_body=-1)


# Limits:


def test_limit_by_default() -> None:
    assert 1024**3 == SPOOL_LIMIT


@pytest.mark.parametrize(
    ("options", "limit"),
    [
        ({}, 10),
        ({"max_body_size": 8}, 8),
        ({"max_body_size": 12}, 10),
        ({"spool_body": 12}, 12),
        ({"spool_body": 12, "max_body_size": 8}, 8),
    ],
    ids=str,
)
async def test_body_larger_than_the_limit(options: Any, limit: int, monkeypatch: pytest.MonkeyPatch, log: Log) -> None:
    """The body is answered with 413, without the application, as soon as the limit is exceeded."""
    monkeypatch.setattr("asgiref.wsgi.SPOOL_LIMIT", 10)
    client = await serve(reads(), Client(*body_in(*[b"a"] * limit)), http(), **options)
    assert (200, b"a" * limit) == (client.status, client.body)
    client = Client(*[request(b"a", True)] * 20)
    await serve(answers(Chunks([AssertionError("called")])), client, http(), **options)
    refused(client, 413)
    assert limit + 1 == client.receives
    assert (limit,) == log.only.args


async def test_length_larger_than_spool_body(log: Log) -> None:
    """None of its body is received."""
    scope = streamed(headers=[(b"content-length", b"11")])
    client = await serve(answers(Chunks([AssertionError("called")])), Client(), scope, spool_body=10)
    refused(client, 413)
    assert 0 == client.receives
    assert (10,) == log.only.args


async def test_first_message_larger_than_spool_body() -> None:
    client = await serve(answers(), Client(request(b"a" * 11)), http(), spool_body=10)
    refused(client, 413)


async def test_file_of_a_body_that_turns_out_to_be_too_large(disk: Disk) -> None:
    limit = MEMORY_LIMIT + 2 * len(CHUNK)
    client = await serve(reads(), Client(*[request(CHUNK, True)] * 20), http(), max_body_size=limit)
    refused(client, 413)


@pytest.mark.parametrize("lengths", [[b"1", b"2"], [b"many"]])
async def test_length_that_is_no_number_is_refused_without_waiting_for_the_body(lengths: list[bytes]) -> None:
    for spool_body in (..., 1000):
        scope = streamed(headers=[(b"content-length", length) for length in lengths])
        client = await serve(answers(), Client(request(b"a", True)), scope, spool_body=spool_body)
        refused(client, 400)
        assert 1 == client.receives


async def test_endless_empty_messages_are_refused(log: Log) -> None:
    client = Client(*[request(b"", True)] * 200)
    await serve(answers(), client, http())
    refused(client, 400)
    assert client.receives <= EMPTY_MESSAGES + 1
    assert "were empty" in log.only.getMessage()


async def test_some_empty_messages_do_no_harm_to_a_collected_body() -> None:
    parts = [b"a", *[b""] * EMPTY_MESSAGES, b"b", *[b""] * EMPTY_MESSAGES]
    assert b"ab" == (await serve(reads(), Client(*body_in(*parts)), http())).body


async def test_receive_that_never_waits_leaves_time_for_others() -> None:
    turns = [0]

    async def count() -> None:
        while True:
            turns[0] += 1
            await asyncio.sleep(0)

    class Eager(Client):
        async def receive(self) -> Message:
            self.receives += 1
            return request(b"a", self.receives < 100)

    client = Eager()
    counting = asyncio.create_task(count())
    await serve_beside(reads(), client, http())
    counting.cancel()
    assert 100 == len(client.body)
    assert turns[0] >= 99


# Threads:


async def test_slow_client_holds_no_thread(disk: Disk) -> None:
    """Neither a thread of the application nor one for files, at any size of the body."""
    adapter = WsgiToAsgi(told, threads=1)
    slow = Client(*[request(part, True) for part in LARGE])
    task = asyncio.create_task(call(adapter, slow))
    await on_loop(slow.waiting)
    assert spool._pool._limit == len(spool._pool._free)
    assert disk.writers
    quick = Client(request(b"quick"))
    await call(adapter, quick)
    assert b"quick" == quick.body
    assert not task.done()
    slow.inputs.put_nowait(request(b"end"))
    await asyncio.wait_for(task, LIMIT)
    assert b"".join(LARGE) + b"end" == slow.body


async def call(adapter: Any, client: Client) -> None:
    async with asyncio.timeout(LIMIT):
        await adapter(http(), client.receive, client.send)


async def test_file_is_written_while_all_threads_of_the_adapter_are_busy(disk: Disk) -> None:
    go_on, busy = threading.Event(), asyncio.Event()
    loop, application_threads = asyncio.get_running_loop(), []

    def application(environ: Environ, start_response: Any) -> list[bytes]:
        application_threads.append(threading.get_ident())
        loop.call_soon_threadsafe(busy.set)
        wait_for(go_on)
        return told(environ, start_response)

    adapter = WsgiToAsgi(application, threads=1)
    first, second = Client(request(b"first")), Client(*body_in(*LARGE))
    tasks = [asyncio.create_task(call(adapter, first))]
    await on_loop(busy)
    tasks.append(asyncio.create_task(call(adapter, second)))
    await in_thread(wait_for, disk.begun)
    go_on.set()
    await asyncio.wait_for(asyncio.gather(*tasks), LIMIT)
    assert b"".join(LARGE) == second.body
    assert not {threading.get_ident(), application_threads[0]} & set(disk.writers)


async def test_loop_goes_on_while_the_file_is_written(disk: Disk) -> None:
    disk.go_on.clear()
    client = Client(*body_in(*LARGE))
    task = asyncio.create_task(serve_beside(reads(), client, http()))
    await in_thread(wait_for, disk.begun)
    receives = client.receives
    await asyncio.sleep(0)
    assert receives == client.receives <= len(LARGE)  # no more is received than can be written
    disk.go_on.set()
    await task
    assert b"".join(LARGE) == client.body


# The end of the file:


async def test_client_that_leaves_while_its_body_is_collected(disk: Disk, log: Log) -> None:
    client = Client(*[request(part, True) for part in LARGE], DISCONNECT)
    await serve(answers(Chunks([AssertionError("called")])), client, http())
    assert ([], []) == (client.sent, log.records)


async def test_receive_that_raises_while_a_body_is_collected(disk: Disk) -> None:
    client = Client(*[request(part, True) for part in LARGE], LookupError("receive"))
    with pytest.raises(LookupError, match="receive"):
        await serve(answers(), client, http())


async def test_disk_that_is_full(disk: Disk, log: Log) -> None:
    """The server gets the error; the OSError is not mistaken for a disconnect."""
    disk.error = OSError(errno.ENOSPC, "No space left on device")
    client = Client(*body_in(*LARGE))
    with pytest.raises(OSError, match="No space left"):
        await serve(answers(), client, http())
    assert [] == client.sent


async def test_file_whose_close_fails(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a full disk, writing the rest of a buffer can fail then, too."""
    close = disk.close

    def close_and_fail() -> None:
        close()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(disk, "close", close_and_fail)
    client = await serve(reads(), Client(*body_in(*LARGE)), http())
    assert b"".join(LARGE) == client.body


async def test_cancelled_while_the_client_is_slow(disk: Disk) -> None:
    client = Client(*[request(part, True) for part in LARGE])
    task = asyncio.create_task(serve_beside(answers(), client, http()))
    await on_loop(client.waiting)
    await cancelled(task)
    assert [] == client.sent


async def test_cancelled_while_the_file_is_written(disk: Disk) -> None:
    """1. A thread writes. 2. The request is cancelled, and ends. 3. The thread has written, and closes the file."""
    disk.go_on.clear()
    task = asyncio.create_task(serve_beside(answers(), Client(*body_in(*LARGE, *LARGE)), http()))
    await in_thread(wait_for, disk.begun)
    await cancelled(task)
    assert 0 == disk.closes
    disk.go_on.set()


async def test_cancelled_while_the_application_has_the_file(disk: Disk) -> None:
    """The application continues in the background, and can read. The file is closed when it has ended."""
    computing, go_on, ended = asyncio.Event(), threading.Event(), threading.Event()
    loop, seen = asyncio.get_running_loop(), []

    class Body(Chunks):
        def close(self) -> None:
            super().close()
            seen.append(disk.closes)
            ended.set()

    def application(environ: Environ, start_response: Any) -> Any:
        loop.call_soon_threadsafe(computing.set)
        wait_for(go_on)
        seen.append(len(environ["wsgi.input"].read()))
        start_response("200 OK", [])
        return Body([])

    task = asyncio.create_task(serve_beside(application, Client(*body_in(*LARGE)), http()))
    await on_loop(computing)
    await cancelled(task)
    go_on.set()
    await in_thread(wait_for, ended)
    assert [len(CHUNK) * len(LARGE), 0] == seen


async def test_cancelled_before_the_application_has_a_thread_for_its_file(disk: Disk) -> None:
    queued = asyncio.Event()

    class BusyExecutor(Executor):
        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
            queued.set()
            return Future()

    client = Client(*body_in(*LARGE))
    task = asyncio.create_task(serve_beside(answers(), client, http(), executor=BusyExecutor()))
    await on_loop(queued)
    await cancelled(task)


def test_file_that_is_put_back_before_the_request_ends(disk: Disk) -> None:
    """1. A thread puts the file back. 2. The request ends, and takes it. 3. The thread looks, and finds no file."""

    class Free(list[IO[bytes]]):
        def append(self, file: IO[bytes], /) -> None:
            super().append(file)
            body.discard()

    body = Spool(None)
    body._free = Free()
    body._write(io.BytesIO(b"a"), True)
    wait_for(disk.is_closed)


def test_file_that_is_put_back_after_the_request_has_ended(disk: Disk) -> None:
    """1. A thread uses the file. 2. The request ends, and finds no file. 3. The thread puts it back, and closes it."""
    body = Spool(None)
    disk.go_on.clear()
    writing = Thread(body._write, io.BytesIO(b"a"), True)
    wait_for(disk.begun)
    body.discard()
    assert 0 == disk.closes
    disk.go_on.set()
    writing.get()
    assert 1 == disk.closes


def test_request_that_is_over_before_the_application_takes_the_file(disk: Disk) -> None:
    """The response would go nowhere."""
    body = Spool(None)
    body._write(io.BytesIO(b"a"), True)
    body.discard()
    wait_for(disk.is_closed)
    body.hold()
    body.let_go()


def test_file_is_closed_where_no_thread_can_be_started(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> None:
        raise RuntimeError("can't start new thread")

    body = Spool(None)
    body._write(io.BytesIO(b"a"), True)
    monkeypatch.setattr(spool._pool, "submit", fail)
    body.discard()
    assert 1 == disk.closes


# Measured:


@pytest.mark.slow
def test_large_body_costs_its_size_on_disk_and_a_few_mebibytes_of_memory() -> None:
    count, sizes = 1024, []

    class Upload(Client):
        async def receive(self) -> Message:
            self.receives += 1
            return request(bytes(64 * 1024), self.receives < count)

    def application(environ: Environ, start_response: Any) -> list[bytes]:
        body = environ["wsgi.input"]
        sizes.append(os.fstat(body.fileno()).st_size)
        sizes.append(sum(map(len, iter(lambda: body.read(64 * 1024), b""))))
        start_response("200 OK", [])
        return []

    async def main() -> None:
        await serve(application, Upload(), http())

    asyncio.run(main())
    sizes.clear()
    tracemalloc.start()
    try:
        asyncio.run(main())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [count * 64 * 1024] * 2 == sizes
    assert peak < 5 * MEMORY_LIMIT
