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
    note("Flask view, goes on")
    steps: list[Step] = request.steps
    return steps


async def fetch() -> None:
    """Stand for code that exists only as async: it runs on the server's loop, while the view's thread waits."""
    note("  async function called by it")
    await sync_to_async(query)()
    note("  async function, goes on")


def query() -> None:
    """Stand for code that depends on its thread, as a database connection does: it comes back to the view's."""
    note("    sync function called by that")
