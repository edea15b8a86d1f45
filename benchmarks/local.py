"""``Local``, against ``threading.local``.

Each statement stands ten times in the loop that repeats it, so that the loop itself counts for little.
"""

from __future__ import annotations

import threading
import timeit
from typing import Any

from asgiref.local import Local

from .cases import HERE, UPSTREAM, Function, case

THREADING = "threading.local"
PLAIN, CRITICAL = "Local", "Local(thread_critical=True)"
PLACES = ("in a thread", "in a task")
STATEMENTS = {
    "get": "local.value",
    "set": "local.value = 1",
    "missing": "try: local.missing\nexcept AttributeError: pass",
}


def name(kind: str, operation: str, place: str) -> str:
    return f"{kind}, {operation}, {place}"


def in_a_thread(kind: type[Any], options: dict[str, bool], statement: str) -> Function:
    timer = timeit.Timer("\n".join([statement] * 10), "local.value = 1", globals={"local": kind(**options)})

    def repeat(n: int) -> None:
        timer.timeit(n)

    return repeat


def in_a_task(function: Function) -> Function:
    async def repeat(n: int) -> None:
        function(n)

    return repeat


for row, options in ((PLAIN, {}), (CRITICAL, {"thread_critical": True})):
    for operation, statement in STATEMENTS.items():
        for kind, ways, kind_options in ((Local, (HERE, UPSTREAM), options), (threading.local, (THREADING,), {})):
            function = in_a_thread(kind, kind_options, statement)
            for place, placed in zip(PLACES, (function, in_a_task(function)), strict=True):
                placed.__module__ = __name__
                case(name(row, operation, place), *ways, batch=10)(placed)
