"""A Flask app with a view that calls async code: ``uvicorn shop:app``."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from flask import Flask

from asgiref.sync import async_to_sync
from asgiref.wsgi import WsgiToAsgi

flask_app = Flask(__name__)
app = WsgiToAsgi(flask_app)

PRICES = {"apples": 3, "bread": 5}


async def price(item: str) -> int:
    await asyncio.sleep(0.1)  # instead of a request to another site
    return PRICES[item]


async def prices(items: list[str]) -> list[int]:
    """Ask for all prices at once."""
    return await asyncio.gather(*map(price, items))


@flask_app.get("/total")
def total() -> str:
    """A sync view that calls async code: it runs on the loop of the server."""
    return f"All together: {sum(async_to_sync(prices)(list(PRICES)))}\n"


@flask_app.get("/list")
def price_list() -> Iterator[str]:
    """Stream: each line is sent while the next one is made."""
    for item in PRICES:
        yield f"{item}: {async_to_sync(price)(item)}\n"
