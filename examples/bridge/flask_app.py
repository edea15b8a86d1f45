"""The synchronous half: a Flask app, whose view calls the asynchronous half."""

from __future__ import annotations

from flask import Flask

from asgiref.sync import async_to_sync, sync_to_async

from .steps import Step, note, request

__all__ = ["app"]

app = Flask(__name__)


@app.get("/flask")
def view() -> list[Step]:
    note("Flask view")
    async_to_sync(fetch)()
    note("Flask view, continues")
    steps: list[Step] = request.steps
    return steps


async def fetch() -> None:
    """An example of async-only code: it runs on the server's event loop while the view's thread waits."""
    note("  async function called by it")
    await sync_to_async(query)()
    note("  async function, continues")


def query() -> None:
    """An example of code that depends on its thread, like a database connection: it runs on the view's thread."""
    note("    sync function called by that")
