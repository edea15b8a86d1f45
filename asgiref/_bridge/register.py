"""The register of calls in flight, for free-threaded builds.

``bridge_calls`` finds calls by their frames. Reading frames of other threads may crash a
free-threaded build, so calls are registered there: for each thread, the running functions of the
bridge, and for the thread of a loop, the calls that its tasks await. On other builds, nothing of
this is called.

Only the thread itself changes its entries, unless a coroutine is closed on another thread.
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

# Whether calls register themselves; read at each call.
KEPT = builds.FREE_THREADED


# The functions that register themselves, by their full names: their roles.
NOTED: dict[str, Callable[..., Any]] = {}


def noted(function: F) -> F:
    """Let looks recognize *function*, which registers itself when it is called."""
    NOTED[f"{function.__module__}.{function.__qualname__}"] = function
    return function


class Place:
    """A running function of the bridge, and the variables of it that a look needs."""

    __slots__ = ("role", "variables")

    def __init__(self, role: str, variables: dict[str, Any]) -> None:
        self.role, self.variables = role, variables


class Awaited:
    """A ``sync_to_async`` call that a task awaits; weak references, so that it ends with its task."""

    __slots__ = ("call", "inner_calls", "wrapper")

    def __init__(self, call: Callable[[], Any], wrapper: Callable[[], Any], inner_calls: Callable[[], Any]) -> None:
        self.call, self.wrapper, self.inner_calls = call, wrapper, inner_calls


class _Thread:
    """The entries of one thread."""

    def __init__(self) -> None:
        self.generation = forks.generation
        # The outermost first.
        self.places: list[Place] = []
        # By the id of the call.
        self.awaited: dict[int, Awaited] = {}

    def ending(self) -> Callable[[], None]:
        """Return a function that removes the entry made next; it works after an interrupt at any moment."""
        return functools.partial(self.places.__delitem__, slice(len(self.places), None))

    def enter(self, role: str, /, **variables: Any) -> None:
        """Register that the function *role* of the bridge starts here."""
        self.places.append(Place(role, variables))

    def note_awaited(self, call: Any, wrapper: Any, inner_calls: Any) -> dict[int, Awaited]:
        """Register that a task on this thread awaits *call*; return the dict from which to remove it at the end."""
        self.awaited[id(call)] = Awaited(weakref.ref(call), weakref.ref(wrapper), weakref.ref(inner_calls))
        return self.awaited


# By ident; entries end with their thread.
threads: weakref.WeakValueDictionary[int, _Thread] = weakref.WeakValueDictionary()

_of_this_thread = threading.local()


def here() -> _Thread:
    """Return the entries of this thread."""
    own: _Thread | None = getattr(_of_this_thread, "own", None)
    if own is None or own.generation is not forks.generation:
        own = _of_this_thread.own = threads[threading.get_ident()] = _Thread()
    return own


@forks.after_fork_in_child
def _forget_threads() -> None:
    global threads
    threads = weakref.WeakValueDictionary()
