"""The registry of what is measured.

A *row* is one operation, such as a call from a loop to a thread and back. Its *ways* are the
functions that do it: with this package, with upstream's, with what others offer, or with no
more than the operation needs, which is the limit. Each module of ``MODULES`` holds a family
of rows, and imports ``asgiref`` as a user does; which one that is depends on the interpreter.
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
    """One operation, and the ways to do it."""

    name: str
    family: str
    unit: str
    batch: int
    ways: dict[str, Function] = field(default_factory=dict)


ROWS: dict[str, Row] = {}
# Per way, the module that it needs besides the standard library.
needs: dict[str, str] = {}


def case(name: str, *ways: str, unit: str = "us", batch: int = 1, needing: str | None = None) -> Callable[[F], F]:
    """Register a function as *ways*, by default with this package and with upstream's, to do what *name* says.

    It is given a number, and does the operation that often; with *batch*, that many times as
    often. It is timed, unless it returns the cost of one operation itself, in *unit*. An
    asynchronous one runs on a loop that its process keeps, another one on the main thread.
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
    """Return all rows by name, family after family."""
    for module in MODULES.values():
        importlib.import_module(f"{__package__}.{module}")
    return {row.name: row for family in MODULES for row in ROWS.values() if row.family == family}
