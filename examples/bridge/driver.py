"""Serve the two apps with uvicorn, send requests over one connection, and check the threads and event loops."""

from __future__ import annotations

from typing import TYPE_CHECKING

from asgiref.sync import async_to_sync
from examples.serving import client_of

from . import asgi_app, flask_app
from .steps import note, request

if TYPE_CHECKING:
    import httpx

    from .steps import Step

__all__ = ["main"]

PATHS = ["/flask", "/async", "/flask", "/async", "/flask", "/async"]


def main() -> None:
    with client_of(asgi_app.app, lifespan="off") as client:
        ask(client)
    without_a_server()
    print("All checks passed.")


def ask(client: httpx.Client) -> None:
    """Get the *PATHS* one after the other; check and print the steps in the responses."""
    connections, sync_threads, loops = set(), set(), set()
    for number, path in enumerate(PATHS):
        response = client.get(path)
        assert response.status_code == 200, f"{path} was answered with {response.status_code}"
        connections.add(response.extensions["network_stream"].get_extra_info("client_addr"))
        steps: list[Step] = response.json()
        if number < len(set(PATHS)):
            show(f"GET {path}", steps)
        threads_of_request = {step["thread"] for step in steps if not step["is_async"]}
        assert len(threads_of_request) == 1, f"sync code of one request ran on {threads_of_request}"
        sync_threads |= threads_of_request
        loops |= {(step["thread"], step["loop"]) for step in steps if step["is_async"]}
    assert len(connections) == 1, f"more than one connection: {connections}"
    assert len(loops) == 1, f"async code ran on {loops}"
    assert not sync_threads & {thread for thread, _ in loops}, "sync code blocked the event loop"
    print(f"Checked: {len(PATHS)} requests on one connection all succeeded;")
    print("  in each, all sync code ran on one thread, at any depth of nesting;")
    print("  all async code ran on the server's event loop, which no sync code blocked.")
    print()


def without_a_server() -> None:
    """Call the same async code from a plain thread: it runs on a new loop, and its sync code on this thread."""
    request.steps = []
    note("main program")
    async_to_sync(flask_app.fetch)()
    note("main program, continues")
    steps: list[Step] = request.steps
    show("Without a server", steps)
    assert {step["thread"] for step in steps if not step["is_async"]} == {steps[0]["thread"]}
    assert steps[0]["thread"] not in {step["thread"] for step in steps if step["is_async"]}
    print("Checked: the async function ran on a loop in another thread, its sync function on the main thread.")
    print()


def show(title: str, steps: list[Step]) -> None:
    print(title)
    for step in steps:
        print(f"  {step['piece']:<34} {step['thread']:<24} {step['loop']}")
    print()
