"""``ThreadSensitiveMiddleware``: a block for each connection, whose thread is released while a WebSocket waits."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from asgiref.sync import (
    SyncToAsync,
    ThreadSensitiveContext,
    ThreadSensitiveMiddleware,
    async_to_sync,
    bridge_statistics,
    sync_to_async,
    sync_to_async_context_manager,
    sync_to_async_iterator,
)

from ..helpers import LIMIT, code_of_guide, idle_workers, no_garbage, output_of

look = sync_to_async(threading.current_thread)


def enclosing() -> Any:
    return SyncToAsync.thread_sensitive_context.get(None)


def context_threads() -> int:
    return bridge_statistics().context_threads


async def never(*arguments: Any) -> Any:
    pytest.fail("nobody should call this")


class Connection:
    """One connection to *app* behind the middleware, which receives the items of ``messages``."""

    def __init__(self, app: Callable[..., Awaitable[Any]], kind: str = "websocket") -> None:
        self.messages: asyncio.Queue[Any] = asyncio.Queue()
        self.waits = asyncio.Event()
        self.sent: asyncio.Queue[Any] = asyncio.Queue()
        self.scope = {"type": kind}
        self.task = asyncio.ensure_future(ThreadSensitiveMiddleware(app)(self.scope, self.receive, self.sent.put))

    async def receive(self) -> Any:
        if self.messages.empty():
            self.waits.set()
        return await self.messages.get()

    async def until_it_waits(self) -> None:
        """Wait until the application waits for a message, and the thread is released if it will be."""
        await asyncio.wait_for(self.waits.wait(), LIMIT)
        self.waits.clear()

    async def say(self, message: Any) -> Any:
        """Send a message; return the answer when the application waits for the next message."""
        await self.until_it_waits()
        self.messages.put_nowait(message)
        answer = await asyncio.wait_for(self.sent.get(), LIMIT)
        await self.until_it_waits()
        self.waits.set()
        return answer

    async def end(self) -> None:
        self.messages.put_nowait(None)
        await asyncio.wait_for(self.task, LIMIT)


async def answers_with_thread(scope: Any, receive: Any, send: Any) -> None:
    while await receive() is not None:
        await send({await look(), await look()})


async def test_lifespan_is_left_alone() -> None:
    called: list[Any] = []

    async def app(*arguments: Any) -> None:
        called.append((arguments, enclosing()))

    scope = {"type": "lifespan"}
    await ThreadSensitiveMiddleware(app)(scope, never, look)
    assert [((scope, never, look), None)] == called


@pytest.mark.parametrize("kind", ["http", "websocket", "something else"])
async def test_each_connection_has_a_thread_of_its_own(kind: str) -> None:
    both = threading.Barrier(2)
    threads: set[threading.Thread] = set()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await sync_to_async(both.wait)(LIMIT)
        one, two = await look(), await look()
        assert one is two
        threads.add(one)

    middleware = ThreadSensitiveMiddleware(app)
    await asyncio.gather(*[middleware({"type": kind}, never, never) for _ in range(2)])
    assert 2 == len(threads)
    assert threads <= idle_workers()
    assert enclosing() is None


async def test_request_keeps_its_thread_while_it_waits() -> None:
    """Django's block for a request is the same: its connection belongs to one thread."""
    connection = Connection(answers_with_thread, "http")
    [thread] = await connection.say("a query")
    assert thread not in idle_workers()
    assert [thread] == list(await connection.say("another"))
    await connection.end()
    assert thread in idle_workers()


async def test_socket_has_no_thread_while_it_waits() -> None:
    before = context_threads()
    connections = [Connection(answers_with_thread) for _ in range(5)]
    for _ in range(2):
        for connection in connections:
            [thread] = await connection.say("a query")
            assert thread in idle_workers()
        assert before == context_threads()
    for connection in connections:
        await connection.end()


async def test_message_has_one_thread_while_it_is_handled() -> None:
    calls = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while await receive() is not None:
            one = await look()
            await calls.wait()
            await send(one not in idle_workers() and one is await look())

    connection = Connection(app)
    calls.set()
    assert await connection.say("a message")
    await connection.end()


async def test_other_tasks_of_a_waiting_socket_get_a_thread_for_each_call() -> None:
    """A consumer of Channels waits for messages of the client and of a group concurrently."""
    other: asyncio.Queue[Callable[[], Awaitable[Any]]] = asyncio.Queue()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async def answer_group() -> None:
            while True:
                await send(await (await other.get())())

        group = asyncio.create_task(answer_group())
        await receive()
        group.cancel()
        await asyncio.wait([group])

    connection = Connection(app)
    await connection.until_it_waits()
    before = context_threads()
    for _ in range(3):
        other.put_nowait(look)
        thread = await asyncio.wait_for(connection.sent.get(), LIMIT)
        assert thread in idle_workers()
        assert before == context_threads()
    await connection.end()


async def test_calls_at_the_same_time_while_it_waits_do_not_overlap() -> None:
    running: list[None] = []
    overlaps: list[int] = []

    def run() -> None:
        running.append(None)
        overlaps.append(len(running))
        running.pop()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        waits = asyncio.create_task(receive())
        await asyncio.sleep(0)
        await asyncio.gather(*[sync_to_async(run)() for _ in range(20)])
        await send("done")
        await waits

    connection = Connection(app)
    assert "done" == await asyncio.wait_for(connection.sent.get(), LIMIT)
    assert [1] * 20 == overlaps
    await connection.end()


async def test_call_at_the_moment_when_a_message_comes_keeps_its_thread() -> None:
    """The message is about to be handled, and gets the thread that the call has taken."""
    go_on = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async def call() -> threading.Thread:
            await go_on.wait()
            return await look()

        calls = asyncio.create_task(call())
        await receive()
        thread = await calls
        await send((thread not in idle_workers(), thread is await look()))

    connection = Connection(app)
    await connection.until_it_waits()
    go_on.set()  # 1. makes the call, which will release its thread in the next iteration
    connection.messages.put_nowait("a message")  # 2. ends receive() before that
    assert (True, True) == await asyncio.wait_for(connection.sent.get(), LIMIT)
    await connection.end()


async def test_iterator_that_is_open_keeps_the_thread() -> None:
    threads: list[threading.Thread] = []

    def rows() -> Any:
        for number in range(2):
            threads.append(threading.current_thread())
            yield number

    async def app(scope: Any, receive: Any, send: Any) -> None:
        waits = asyncio.create_task(receive())
        await asyncio.sleep(0)
        async for number in sync_to_async_iterator(rows()):  # starts while the application waits
            await send((number, threads[0] in idle_workers()))
        await send(threads[0] in idle_workers())
        await waits

    connection = Connection(app)
    answers = [await asyncio.wait_for(connection.sent.get(), LIMIT) for _ in range(3)]
    assert [(0, False), (1, False), True] == answers
    assert 1 == len(set(threads))
    await connection.end()


async def test_block_that_is_open_keeps_the_thread() -> None:
    """A transaction over several messages."""

    class Transaction:
        def __enter__(self) -> threading.Thread:
            return threading.current_thread()

        def __exit__(self, *exc_info: object) -> None: ...

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async with sync_to_async_context_manager(Transaction()) as thread:
            while await receive() is not None:
                await send(await look() is thread and thread not in idle_workers())
        await receive()
        await send(thread in idle_workers())

    connection = Connection(app)
    assert await connection.say("one")
    assert await connection.say("two")
    connection.messages.put_nowait(None)
    await connection.end()
    assert connection.sent.get_nowait()


async def test_synchronous_code_can_wait_for_messages() -> None:
    """The waiting code needs the thread, which is released when that code ends."""
    inside: list[threading.Thread] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        def consume() -> None:
            inside.append(threading.current_thread())
            while async_to_sync(receive)() is not None:
                async_to_sync(send)(threading.current_thread())

        await sync_to_async(consume)()

    connection = Connection(app)
    thread = await connection.say("one")
    assert [thread] == inside
    assert thread not in idle_workers()
    assert thread is await connection.say("two")
    await connection.end()
    assert thread in idle_workers()


@pytest.mark.parametrize("kind", ["http", "websocket"])
async def test_thread_is_back_after_an_error_and_a_cancellation(kind: str) -> None:
    threads: list[threading.Thread] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        threads.append(await look())
        if await receive() == "fail":
            raise KeyError

    failing, cancelled = Connection(app, kind), Connection(app, kind)
    failing.messages.put_nowait("fail")
    with pytest.raises(KeyError):
        await asyncio.wait_for(failing.task, LIMIT)
    await cancelled.until_it_waits()
    cancelled.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled.task
    assert set(threads) <= idle_workers()


async def test_inside_another_block_that_one_counts() -> None:
    before = context_threads()
    async with ThreadSensitiveContext():
        outside = await look()
        connection = Connection(answers_with_thread)
        [thread] = await connection.say("a query")
        assert outside is thread
        assert before == context_threads()  # released by the socket
        await connection.end()
    outer = ThreadSensitiveMiddleware(ThreadSensitiveMiddleware(answers_with_thread))
    messages = iter(["a query", None])
    sent: list[Any] = []

    async def receive() -> Any:
        return next(messages)

    async def send(message: Any) -> None:
        sent.append(message)

    await outer({"type": "websocket"}, receive, send)
    assert 1 == len(sent[0])


async def test_connection_leaves_nothing_behind() -> None:
    async def connect() -> None:
        connection = Connection(answers_with_thread)
        await connection.say("a query")
        await connection.end()

    await connect()
    with no_garbage():
        await connect()
    gc.collect()
    assert not [key for key in SyncToAsync.context_to_thread_executor if type(key) is ThreadSensitiveContext]


SERVER = """
import contextlib, json, socket
import uvicorn
from websockets.asyncio.client import connect

async def until(condition):
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)

async def served(application, use):
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(application, lifespan="auto", log_level="error", ws="websockets-sansio")
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve([listener]))
    await until(lambda: server.started)
    url = "ws://127.0.0.1:%d/" % listener.getsockname()[1]
    try:
        async with contextlib.AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(connect(url, proxy=None)) for _ in range(30)]
            await use(clients)
        await until(lambda: bridge_statistics().context_threads == 0)
    finally:
        server.should_exit = True
        await task

meet = threading.Barrier(30)
def query():
    meet.wait(20)  # so 30 threads are needed at the same time
    return threading.get_ident()

async def ask_all(clients):
    await asyncio.gather(*[client.send("a query") for client in clients])
    answers = await asyncio.gather(*[client.recv() for client in clients])
    await until(lambda: bridge_statistics().context_threads == 0)  # 30 sockets are open
    return len(set(answers))
"""

CHANNELS = """
from django.conf import settings
settings.configure(
    INSTALLED_APPS=[],
    CHANNEL_LAYERS={"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}},
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
)
import django
django.setup()
from channels.db import database_sync_to_async
from channels.generic.websocket import AsyncWebsocketConsumer, WebsocketConsumer
from channels.layers import get_channel_layer

class Consumer(AsyncWebsocketConsumer):
    async def connect(self):
        await self.channel_layer.group_add("all", self.channel_name)
        await self.accept()
    async def receive(self, text_data=None, bytes_data=None):
        await self.send(text_data=str(await database_sync_to_async(query)()))
    async def news(self, event):
        await self.send(text_data=str(await database_sync_to_async(query)()))
    async def disconnect(self, code):
        await self.channel_layer.group_discard("all", self.channel_name)

class SyncConsumer(WebsocketConsumer):
    groups = ["all"]
    def receive(self, text_data=None, bytes_data=None):
        self.send(text_data=str(query()))
    def news(self, event):
        self.send(text_data=str(query()))

async def use(clients):
    print(await ask_all(clients))
    await get_channel_layer().group_send("all", {"type": "news"})
    answers = await asyncio.gather(*[client.recv() for client in clients])
    print(len(set(answers)))
    await until(lambda: bridge_statistics().context_threads == 0)
    print(await ask_all(clients))

from django.urls import path
import types
def application(consumer):
    sys.modules["chat"] = types.ModuleType("chat")
    sys.modules["chat.routing"] = types.ModuleType("chat.routing")
    sys.modules["chat.routing"].websocket_urlpatterns = [path("", consumer.as_asgi())]
    asgi = {}
    exec(GUIDE, asgi)
    return asgi["application"]

asyncio.run(served(application(Consumer), use))
asyncio.run(served(application(SyncConsumer), use))
"""

STARLETTE = """
from starlette.routing import WebSocketRoute
started = []

@contextlib.asynccontextmanager
async def lifespan(app):
    started.append(SyncToAsync.thread_sensitive_context.get(None))
    yield

async def endpoint(websocket):
    await websocket.accept()
    async for text in websocket.iter_text():
        await websocket.send_text(str(await sync_to_async(query)()))

async def use(clients):
    for _ in range(3):
        print(await ask_all(clients))

routes = [WebSocketRoute("/", endpoint)]
exec(GUIDE)
app.router.lifespan_context = lifespan
asyncio.run(served(app, use))
print(started)
"""


@pytest.mark.slow
def test_consumers_of_channels_on_a_real_server() -> None:
    """30 open sockets use 30 threads while all of them query, and none while they wait."""
    for package in ("channels", "uvicorn", "websockets"):
        pytest.importorskip(package)
    guide = code_of_guide("channels", "from channels")
    assert ["30"] * 6 == output_of(f"GUIDE = {guide!r}" + SERVER + CHANNELS)


@pytest.mark.slow
def test_starlette_on_a_real_server() -> None:
    for package in ("starlette", "uvicorn", "websockets"):
        pytest.importorskip(package)
    guide = code_of_guide("channels", "from starlette")
    assert [*["30"] * 3, "[None]"] == output_of(f"GUIDE = {guide!r}" + SERVER + STARLETTE)
