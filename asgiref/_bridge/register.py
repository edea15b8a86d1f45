"""The calls in flight, noted down where frames of other threads must not be read.

``bridge_calls`` finds calls by their frames. On a free-threaded build that may crash, so the calls
note there what it would look for: each thread the functions of the bridge that it runs, and each
thread of a loop the calls that its tasks await. Elsewhere, nothing of this is called.

Only the thread itself changes what is noted of it, but for a coroutine that is closed elsewhere.
"""

from __future__ import annotations

import functools
import threading
import weakref
from typing import TYPE_CHECKING, Any

from . import builds, forks

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    F = TypeVar("F", bound=Callable[..., Any])

__all__ = ["KEPT", "NOTED", "Place", "here", "noted", "threads"]

# Whether calls note themselves; read at each call.
KEPT = builds.FREE_THREADED


# The functions that note themselves, by their full names: their roles.
NOTED: dict[str, Callable[..., Any]] = {}


def noted(function: F) -> F:
    """Have looks recognize *function*, which enters the register when it is called."""
    NOTED[f"{function.__module__}.{function.__qualname__}"] = function
    return function


class Place:
    """A function of the bridge that a thread runs, and those of its variables that a look asks for."""

    __slots__ = ("role", "variables")

    def __init__(self, role: str, variables: dict[str, Any]) -> None:
        self.role, self.variables = role, variables


class Awaited:
    """A ``sync_to_async`` call that a task awaits, by reference: the task may be what keeps all of it."""

    __slots__ = ("call", "inner_calls", "wrapper")

    def __init__(self, call: Callable[[], Any], wrapper: Callable[[], Any], inner_calls: Callable[[], Any]) -> None:
        self.call, self.wrapper, self.inner_calls = call, wrapper, inner_calls


class _Thread:
    """What is noted of one thread."""

    def __init__(self) -> None:
        self.generation = forks.generation
        # The outermost first.
        self.places: list[Place] = []
        # By the id of the call.
        self.awaited: dict[int, Awaited] = {}

    def ending(self) -> Callable[[], None]:
        """Return what a function, about to note itself, calls when it ends, interrupted at any moment or not."""
        return functools.partial(self.places.__delitem__, slice(len(self.places), None))

    def enter(self, role: str, /, **variables: Any) -> None:
        """Note that the function *role* of the bridge begins here."""
        self.places.append(Place(role, variables))

    def note_awaited(self, call: Any, wrapper: Any, inner_calls: Any) -> dict[int, Awaited]:
        """Note that a task of a loop of this thread awaits *call*; return from what to take it when that ends."""
        self.awaited[id(call)] = Awaited(weakref.ref(call), weakref.ref(wrapper), weakref.ref(inner_calls))
        return self.awaited


# By ident; entries end with their thread.
threads: weakref.WeakValueDictionary[int, _Thread] = weakref.WeakValueDictionary()

_of_this_thread = threading.local()


def here() -> _Thread:
    """Return what is noted of this thread."""
    own: _Thread | None = getattr(_of_this_thread, "own", None)
    if own is None or own.generation is not forks.generation:
        own = _of_this_thread.own = threads[threading.get_ident()] = _Thread()
    return own


@forks.after_fork_in_child
def _forget_threads() -> None:
    global threads
    threads = weakref.WeakValueDictionary()
