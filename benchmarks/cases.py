"""The registry of measured operations.

A *row* is one operation, such as a call from an event loop to a thread and back. Its *ways*
are the functions that do it: with this package, with upstream's, with other packages, or with
only the minimum that the operation needs, as the limit. Each module of ``MODULES`` has a family
of rows and imports ``asgiref`` as a user does; the interpreter determines which one.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

HERE = "here"
UPSTREAM = "upstream"

# By the name of the family.
MODULES = {
    "sync_to_async": "sync_to_async",
    "async_to_sync": "async_to_sync",
    "sync_to_async_iterator": "steps",
    "async_to_sync_iterator": "to_sync_steps",
    "ThreadSensitiveContext": "contexts",
    "Local": "local",
    "StatelessServer": "stateless",
    "growth": "growth",
    "memory": "memory",
    "import": "imports",
}

Function = Callable[[int], Any]
F = TypeVar("F", bound=Function)


@dataclass
class Row:
    """One operation and the ways to do it."""

    name: str
    family: str
    unit: str
    batch: int
    ways: dict[str, Function] = field(default_factory=dict)


ROWS: dict[str, Row] = {}
# For each way, the module that it needs in addition to the standard library.
needs: dict[str, str] = {}


def case(name: str, *ways: str, unit: str = "us", batch: int = 1, needing: str | None = None) -> Callable[[F], F]:
    """Register a function as *ways* of the row *name*, by default with this package and with upstream's.

    Its argument is how often to do the operation; with *batch*, it does it that many times as
    often. It is timed, unless it returns the cost of one operation itself, in *unit*. A
    coroutine function runs on an event loop of its process, other functions on the main thread.
    """

    def register(function: F) -> F:
        if name not in ROWS:
            module = function.__module__.rpartition(".")[2]
            ROWS[name] = Row(name, next(each for each in MODULES if MODULES[each] == module), unit, batch)
        for way in ways or (HERE, UPSTREAM):
            ROWS[name].ways[way] = function
            if needing is not None:
                needs[way] = needing
        return function

    return register


def load() -> dict[str, Row]:
    """Return all rows by name, ordered by family."""
    for module in MODULES.values():
        importlib.import_module(f"{__package__}.{module}")
    return {row.name: row for family in MODULES for row in ROWS.values() if row.family == family}
