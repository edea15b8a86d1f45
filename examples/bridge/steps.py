"""Who ran where: each piece of the example notes the thread and the event loop that it ran on."""

from __future__ import annotations

import asyncio
import threading
from typing import TypedDict

from asgiref.local import Local

__all__ = ["Step", "note", "request"]

# The values of the request that is being answered, the same on both sides of the bridge:
# ``steps`` is the list of its steps.
request = Local()


class Step(TypedDict):
    piece: str
    is_async: bool
    thread: str
    loop: str


def note(piece: str) -> None:
    """Add a step to the request's: *piece* runs here and now."""
    try:
        loop = f"loop {id(asyncio.get_running_loop()) >> 4 & 0xFFFF:04x}"
    except RuntimeError:
        loop = ""
    # Workers share one name, so the number that the system gave the thread tells them apart.
    thread = f"{threading.current_thread().name} {threading.get_native_id()}"
    request.steps.append(Step(piece=piece, is_async=bool(loop), thread=thread, loop=loop or "no loop"))
