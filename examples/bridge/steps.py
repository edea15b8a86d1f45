"""A record of threads: each step of the example records the thread and the event loop that ran it."""

from __future__ import annotations

import asyncio
import threading
from typing import TypedDict

from asgiref.local import Local

__all__ = ["Step", "note", "request"]

# The values of the current request, the same on both sides of the bridge. ``steps`` is the list
# of its steps.
request = Local()


class Step(TypedDict):
    piece: str
    is_async: bool
    thread: str
    loop: str


def note(piece: str) -> None:
    """Add a step to the current request: *piece*, on this thread."""
    try:
        loop = f"loop {id(asyncio.get_running_loop()) >> 4 & 0xFFFF:04x}"
    except RuntimeError:
        loop = ""
    # Workers have the same name; the native id identifies the thread.
    thread = f"{threading.current_thread().name} {threading.get_native_id()}"
    request.steps.append(Step(piece=piece, is_async=bool(loop), thread=thread, loop=loop or "no loop"))
