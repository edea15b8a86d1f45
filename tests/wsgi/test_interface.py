"""Interfaces that callers, subclasses and wrappers rely on; connections that are not HTTP."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from asgiref.sync import iscoroutinefunction, sync_to_async
from asgiref.testing import ApplicationCommunicator
from asgiref.wsgi import THREADS, WsgiToAsgi, WsgiToAsgiInstance

from ..helpers import LIMIT
from .helpers import Client, Environ, answers, body_in, http, request, run, serve


@pytest.mark.parametrize(
    ("arguments", "options", "error", "text"),
    [
        ((None,), {}, TypeError, "callable, not None"),
        ((answers(),), {"threads": 1, "executor": object()}, TypeError, "pass one"),
        ((answers(),), {"threads": 0}, ValueError, "at least one thread, not 0"),
    ],
)
def test_arguments_that_make_no_sense(arguments: Any, options: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        WsgiToAsgi(*arguments, **options)


def test_positional_arguments_and_attributes() -> None:
    application = answers()
    adapter, instance = WsgiToAsgi(application, 5), WsgiToAsgiInstance(application, 5)
    assert (application, 5) == (adapter.wsgi_application, adapter.duplicate_header_limit)
    assert (application, 5) == (instance.wsgi_application, instance.duplicate_header_limit)
    assert (100, 100) == (
        WsgiToAsgi(application).duplicate_header_limit,
        WsgiToAsgiInstance(application).duplicate_header_limit,
    )
    assert THREADS >= 32


async def test_lifespan_completes() -> None:
    communicator = ApplicationCommunicator(WsgiToAsgi(answers()), {"type": "lifespan"})
    for step in ("startup", "shutdown"):
        assert await communicator.receive_nothing(0.001)
        await communicator.send_input({"type": f"lifespan.{step}"})
        assert {"type": f"lifespan.{step}.complete"} == await communicator.receive_output(LIMIT)
    await communicator.wait(LIMIT)


async def test_websocket_is_refused() -> None:
    communicator = ApplicationCommunicator(WsgiToAsgi(answers()), {"type": "websocket"})
    await communicator.send_input({"type": "websocket.connect"})
    assert {"type": "websocket.close"} == await communicator.receive_output(LIMIT)
    await communicator.wait(LIMIT)


async def test_unknown_kind_of_connection() -> None:
    with pytest.raises(ValueError, match="'carrier-pigeon'"):
        await serve(answers(), scope={"type": "carrier-pigeon"})


async def test_subclass_with_methods_of_its_own() -> None:
    """The adapter is subclassed, too, and makes instances with positional arguments."""
    called = []

    class Instance(WsgiToAsgiInstance):
        def build_environ(self, scope: Any, body: Any) -> Environ:
            return {**super().build_environ(scope, body), "added": b"environ, "}

        def start_response(self, status: str, response_headers: Any, exc_info: Any = None) -> Any:
            return super().start_response(status, [*response_headers, ("X-Added", "1")], exc_info)

        async def run_wsgi_app(self, body: Any) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
            called.append(body)
            await super().run_wsgi_app(body)

    class Adapter(WsgiToAsgi):
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            await Instance(self.wsgi_application, self.duplicate_header_limit)(scope, receive, send)

    def application(environ: Environ, start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [environ["added"], environ["wsgi.input"].read()]

    client = Client(request(b"body"))
    await run(Adapter(application), client)
    assert b"environ, body" == client.body
    assert (b"x-added", b"1") in client.headers
    assert 1 == len(called)


@pytest.mark.parametrize(
    "function",
    [WsgiToAsgiInstance.__dict__["run_wsgi_app"].func, WsgiToAsgiInstance.__dict__["run_wsgi_app"].__wrapped__],
    ids=["func", "wrapped"],
)
async def test_run_wsgi_app_wrapped_anew(function: Any) -> None:
    """For the default executor of the loop, for example."""
    names = []

    class Instance(WsgiToAsgiInstance):
        run_wsgi_app = sync_to_async(function, thread_sensitive=False)

    def application(environ: Environ, start_response: Any) -> Iterator[bytes]:
        names.append(threading.current_thread().name)
        start_response("200 OK", [])
        yield environ["wsgi.input"].read()

    with ThreadPoolExecutor(1, "default") as executor:
        asyncio.get_running_loop().set_default_executor(executor)
        client = Client(*body_in(b"a", b"b"))
        await run(Instance(application), client)
    assert b"ab" == client.body
    assert ["default_0"] == names


def test_run_wsgi_app_is_a_coroutine_function() -> None:
    instance = WsgiToAsgiInstance(answers())
    assert iscoroutinefunction(instance.run_wsgi_app)
    assert iscoroutinefunction(WsgiToAsgiInstance.run_wsgi_app)
    assert not iscoroutinefunction(WsgiToAsgiInstance.run_wsgi_app.func)
    assert instance.run_wsgi_app.__name__ == "run_wsgi_app"


async def test_instances_share_threads() -> None:
    """Instances without an adapter do not wait for each other."""
    barrier = threading.Barrier(2)

    def application(environ: Environ, start_response: Any) -> list[bytes]:
        barrier.wait(LIMIT)
        start_response("200 OK", [])
        return []

    clients = [Client(), Client()]
    async with asyncio.timeout(LIMIT):
        await asyncio.gather(
            *[WsgiToAsgiInstance(application)(http(), client.receive, client.send) for client in clients]
        )
    assert [200, 200] == [client.status for client in clients]
