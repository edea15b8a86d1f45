"""Serve the two apps with uvicorn, ask them over one kept-alive connection, and check where each piece ran."""

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
    """Get the *PATHS* one after the other; check and print what the responses tell."""
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
    assert not sync_threads & {thread for thread, _ in loops}, "sync code held up the loop"
    print(f"Checked: {len(PATHS)} requests on one connection all succeeded;")
    print("  in each, sync code came back to one thread, however deep sync and async were nested;")
    print("  all async code ran on the server's one loop, which no sync code held up.")
    print()


def without_a_server() -> None:
    """Call the same async code from a plain thread: it gets a loop of its own, and its sync code comes back here."""
    request.steps = []
    note("main program")
    async_to_sync(flask_app.fetch)()
    note("main program, goes on")
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
