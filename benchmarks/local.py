"""``Local`` compared with ``threading.local``.

The loop repeats each statement ten times, so that its own cost hardly counts.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
import timeit
import weakref
from typing import Any

from asgiref.local import Local

from .cases import HERE, UPSTREAM, Function, case

THREADING = "threading.local"
LEAST = "the least in Python"
PLAIN, CRITICAL = "Local", "Local(thread_critical=True)"
PLACES = ("in a thread", "in a task")
STATEMENTS = {
    "get": "local.value",
    "set": "local.value = 1",
    "missing": "try: local.missing\nexcept AttributeError: pass",
}


NOTHING: dict[Any, Any] = {}
variable = contextvars.ContextVar("variable", default=NOTHING)


class Least:
    """The minimum: Python methods that only use one context variable; there can be only one such object."""

    def __getattribute__(self, name: str) -> Any:
        try:
            return variable.get()[name]
        except KeyError:
            pass
        raise AttributeError

    def __setattr__(self, name: str, value: Any) -> None:
        attributes = variable.get().copy()
        attributes[name] = value
        variable.set(attributes)


class LeastOfLoop:
    """The same, with separate values for each running loop."""

    def __getattribute__(self, name: str) -> Any:
        try:
            return variable.get()[weakref.ref(asyncio.get_running_loop()), name]
        except KeyError:
            pass
        raise AttributeError

    def __setattr__(self, name: str, value: Any) -> None:
        variable.set({**variable.get(), (weakref.ref(asyncio.get_running_loop()), name): value})


def name(kind: str, operation: str, place: str) -> str:
    return f"{kind}, {operation}, {place}"


def in_a_thread(kind: type[Any], options: dict[str, bool], statement: str) -> Function:
    def repeat(n: int) -> None:
        timeit.Timer("\n".join([statement] * 10), "local.value = 1", globals={"local": kind(**options)}).timeit(n)

    return repeat


def in_a_task(function: Function) -> Function:
    async def repeat(n: int) -> None:
        function(n)

    return repeat


for row, options in ((PLAIN, {}), (CRITICAL, {"thread_critical": True})):
    least = Least if row == PLAIN else LeastOfLoop
    for operation, statement in STATEMENTS.items():
        for kind, ways, kind_options in (
            (Local, (HERE, UPSTREAM), options),
            (threading.local, (THREADING,), {}),
            (least, (LEAST,), {}),
        ):
            function = in_a_thread(kind, kind_options, statement)
            for place, placed in zip(PLACES, (function, in_a_task(function)), strict=True):
                if kind is LeastOfLoop and placed is function:
                    continue
                placed.__module__ = __name__
                case(name(row, operation, place), *ways, batch=10)(placed)
