"""``Local``: attributes that follow the flow of calls, in threads and in tasks.

All of a ``Local``'s attributes stand in one immutable mapping, held by one
``ContextVar``. Writing replaces the mapping in the current context, so there is
nothing to lock, nothing to break at a fork, and whoever copies a context has a
snapshot that later writes do not reach. The reading and writing methods are flat
on purpose: they are the hottest path of the package.
"""

from __future__ import annotations

import asyncio
import contextvars
import sys
import threading
import weakref
from typing import TYPE_CHECKING, Any, NoReturn, final

from ._bridge import builds

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Local"]

# The name of every ContextVar made here: ``_bridge.carry`` knows by it which values are mappings to merge.
VARIABLE_NAME = "asgiref.local.Local"

# Python 3.14 and later can start each thread in a copy of its starter's context.
THREADS_INHERIT = bool(getattr(sys.flags, "thread_inherit_context", False))

_NO_ATTRIBUTES: dict[Any, Any] = {}


class _Storage:
    """Where a ``Local`` keeps its own; read through ``super()``, since its attributes are the user's."""

    __slots__ = ("__weakref__", "_in_thread", "_variable")
    _in_thread: threading.local
    _variable: contextvars.ContextVar[dict[Any, Any]]


_variable_of = _Storage.__dict__["_variable"].__get__


@final
class Local(_Storage):
    """A drop-in for ``threading.local`` that also works between tasks and across the bridge.

    Each asynchronous task has values of its own, starting from those of the task that
    made it; each plain thread starts empty. ``sync_to_async`` and ``async_to_sync`` take
    the values to the other side and bring changes back, as does ``asyncio.to_thread`` on
    the way in. What one task or thread sets is never seen by an unrelated one.

    Args:
        thread_critical: For values that must not leave their thread, such as a database
            connection. Synchronous code then has one set of values for each thread, and
            the bridge does not carry them over; asynchronous code has values for each
            task that stay with its event loop.

    Where Python starts each thread in a copy of its starter's context
    (``sys.flags.thread_inherit_context``, the default of free-threaded builds since 3.14),
    a thread's start cannot be told from ``asyncio.to_thread``. Keeping plain threads apart
    comes first: there, ``asyncio.to_thread`` starts without values; ``sync_to_async``
    carries them as always.

    Raises:
        AttributeError: on reading or deleting what is not set here, and on setting a name
            that the type itself has (``__class__``, say), which could not be read back.
        TypeError: on subclassing.

    >>> current = Local()
    >>> current.language = "nl"
    >>> current.language
    'nl'
    >>> hasattr(current, "time_zone")
    False
    """

    __slots__ = ()

    def __new__(cls, thread_critical: bool = False) -> Local:
        if thread_critical:
            cls = _ThreadCriticalLocal
        elif THREADS_INHERIT:
            cls = _LineageLocal
        self = object.__new__(cls)
        object.__setattr__(self, "_variable", contextvars.ContextVar(VARIABLE_NAME, default=_NO_ATTRIBUTES))
        return self

    def __init__(self, thread_critical: bool = False) -> None:
        pass

    def __init_subclass__(cls) -> None:
        if cls.__module__ != __name__:
            raise TypeError("Local cannot be subclassed; keep one as an attribute of your own class instead")

    # __getattribute__, not __getattr__: looking in the mapping first spares the failing
    # look-up on the type, which costs four times as much on Python 3.11.
    def __getattribute__(self, name: str) -> Any:
        attributes = super()._variable.get()
        if name in attributes:
            return attributes[name]
        if name in _RESERVED:
            return object.__getattribute__(self, name)
        raise _no_attribute(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _RESERVED:
            _refuse(name)
        variable = super()._variable
        attributes = variable.get().copy()
        attributes[name] = value
        variable.set(attributes)

    def __delattr__(self, name: str) -> None:
        variable = super()._variable
        attributes = variable.get().copy()
        if name not in attributes:
            raise _no_attribute(self, name)
        del attributes[name]
        variable.set(attributes)

    def __reduce__(self) -> NoReturn:  # which copy, deepcopy and pickle all come to
        raise TypeError(
            "a Local cannot be copied or pickled: a copy would know nothing of the values, which are kept for each "
            "context; share the Local itself"
        )


# Users may call an attribute as they like, but for what every object has. "final" adds a name of its own to Local.
_RESERVED = frozenset(dir(_Storage)) - set(_Storage.__slots__) | {"__weakref__"}


def _no_attribute(storage: Local, name: str) -> AttributeError:
    error = AttributeError(f"'Local' object has no attribute '{name}'")
    error.name, error.obj = name, storage  # as arguments, they would cost a third more
    return error


def _refuse(name: str) -> NoReturn:
    raise AttributeError(f"'Local' object attribute '{name}' is read-only: every object has it; choose another name")


# ``_bridge.internals.running_loop`` would do, if others did not put a module of their own in the place
# of ``asyncio`` here, in order to say which loop runs.
class _ThreadCriticalLocal(Local):  # type: ignore[misc]  # not final in this file
    """``Local(thread_critical=True)``.

    Without a running loop, the values are those of a ``threading.local``. With one, they
    are in the context as for any ``Local``, under keys that name the loop as well: what a
    task sets crosses other threads unseen and is back when the flow returns to its loop.
    """

    __slots__ = ()

    def __init__(self, thread_critical: bool = True) -> None:
        object.__setattr__(self, "_in_thread", threading.local())

    def __getattribute__(self, name: str) -> Any:
        try:
            loop = asyncio._get_running_loop()
        except AttributeError:
            loop = _running_loop()
        attributes: Mapping[Any, Any]
        key: Any
        if loop is None:
            attributes, key = super(Local, self)._in_thread.__dict__, name
        else:
            attributes, key = super(Local, self)._variable.get(), (weakref.ref(loop), name)
        if key in attributes:
            return attributes[key]
        if name in _RESERVED:
            return object.__getattribute__(self, name)
        raise _no_attribute(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _RESERVED:
            _refuse(name)
        try:
            loop = asyncio._get_running_loop()
        except AttributeError:
            loop = _running_loop()
        if loop is None:
            super(Local, self)._in_thread.__dict__[name] = value
        else:
            variable = super(Local, self)._variable
            variable.set({**variable.get(), (weakref.ref(loop), name): value})

    def __delattr__(self, name: str) -> None:
        try:
            loop = asyncio._get_running_loop()
        except AttributeError:
            loop = _running_loop()
        variable = super(Local, self)._variable
        attributes: dict[Any, Any]
        key: Any
        if loop is None:
            attributes, key = super(Local, self)._in_thread.__dict__, name
        else:
            attributes, key = variable.get().copy(), (weakref.ref(loop), name)
        if key not in attributes:
            raise _no_attribute(self, name)
        del attributes[key]
        if loop is not None:
            variable.set(attributes)


def _running_loop() -> Any:
    """Ask what others have put in the place of ``asyncio`` here, and what has no more than the public function."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def peek(storage: Any, name: str) -> Any:
    """Return ``getattr(storage, name, None)``, in a third of the time where a plain ``Local`` lacks the name."""
    if type(storage) is Local:
        return _variable_of(storage).get().get(name)
    return getattr(storage, name, None)


def is_out_of_reach(key: Any) -> bool:
    """Tell whether *key*, of a mapping in a context, is of a task's value whose event loop has ended."""
    if type(key) is not tuple:
        return False
    loop = key[0]()
    return loop is None or loop.is_closed()


# A lineage is the flow of calls that may share values where threads inherit contexts. Its
# token is noted in the context, next to the mark of the thread on which the context is
# used. A plain thread finds the mark of its starter there, and so knows that the values
# are not meant for it; the bridge replaces the mark when it takes a context to a thread.
_thread_mark = threading.local()
LINEAGE: contextvars.ContextVar[tuple[object, object] | None] = contextvars.ContextVar(
    "asgiref.local.lineage", default=None
)


def mark_of_thread() -> object:
    try:
        return _thread_mark.mark
    except AttributeError:
        _thread_mark.mark = mark = object()
        return mark


def replace_mark(mark: object) -> object:
    """Let this thread stand in for the one that *mark* is of; return the mark that it had."""
    outer = mark_of_thread()
    _thread_mark.mark = mark
    return outer


def _lineage_here() -> object:
    """Return the token of the lineage that this context continues on this thread, or start one."""
    entry = LINEAGE.get()
    mark = mark_of_thread()
    if entry is None or entry[0] is not mark:
        entry = mark, object()
        LINEAGE.set(entry)
    return entry[1]


class _LineageLocal(Local):  # type: ignore[misc]  # not final in this file
    """A ``Local`` where threads inherit contexts: the mapping's key ``None`` holds its lineage."""

    __slots__ = ("_none_unless_set",)
    _none_unless_set: str | None

    def __init__(self, thread_critical: bool = False) -> None:
        object.__setattr__(self, "_none_unless_set", None)

    def __getattribute__(self, name: str) -> Any:
        attributes = super()._variable.get()
        if name in attributes and attributes[None] is _lineage_here():
            return attributes[name]
        if name in _RESERVED:
            return object.__getattribute__(self, name)
        if name == object.__getattribute__(self, "_none_unless_set"):
            return None
        raise _no_attribute(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _RESERVED:
            _refuse(name)
        variable = super()._variable
        attributes = variable.get()
        lineage = _lineage_here()
        if attributes and attributes[None] is lineage:
            variable.set({**attributes, name: value})
        else:
            variable.set({None: lineage, name: value})

    def __delattr__(self, name: str) -> None:
        variable = super()._variable
        attributes = variable.get().copy()
        if name not in attributes or attributes[None] is not _lineage_here():
            raise _no_attribute(self, name)
        del attributes[name]
        variable.set(attributes)


def none_unless_set(name: str) -> Local:
    """Return a ``Local`` whose attribute *name* is None as long as nobody has set it."""
    storage = Local()
    if THREADS_INHERIT:
        object.__setattr__(storage, "_none_unless_set", name)
    else:  # at no cost for reading
        attributes: dict[Any, Any] = {name: None}
        object.__setattr__(storage, "_variable", contextvars.ContextVar(VARIABLE_NAME, default=attributes))
    return storage


def prepare_hand_over() -> None:
    """Give the current context a lineage, so that a copy of it can continue that on another thread."""
    _lineage_here()


def arrive(context: contextvars.Context) -> None:
    """Let *context*, which came over the bridge, continue its lineage on this thread."""
    entry = context.get(LINEAGE)
    if entry is not None:
        context.run(LINEAGE.set, (mark_of_thread(), entry[1]))


# Reading without the interpreter's lock. ``super()`` counts a reference to the MRO of the class, one object for all
# threads, so that two of them read at little more than the rate of one. What follows counts none that threads share,
# since types and their descriptors are not counted. Where there is the lock, ``super()`` takes two thirds of the time.
if builds.FREE_THREADED:  # pragma: no cover: coverage is measured on builds with the lock
    _own: Any = object.__getattribute__

    def _read(self: Local, name: str) -> Any:
        attributes = _own(self, "_variable").get()
        if name in attributes:
            return attributes[name]
        if name in _RESERVED:
            return object.__getattribute__(self, name)
        raise _no_attribute(self, name)

    def _read_thread_critical(self: Local, name: str) -> Any:
        try:
            loop = asyncio._get_running_loop()
        except AttributeError:
            loop = _running_loop()
        key: Any
        if loop is None:
            attributes, key = _own(self, "_in_thread").__dict__, name
        else:
            attributes, key = _own(self, "_variable").get(), (weakref.ref(loop), name)
        if key in attributes:
            return attributes[key]
        if name in _RESERVED:
            return object.__getattribute__(self, name)
        raise _no_attribute(self, name)

    def _read_lineage(self: Local, name: str) -> Any:
        attributes = _own(self, "_variable").get()
        if name in attributes and attributes[None] is _lineage_here():
            return attributes[name]
        if name in _RESERVED:
            return object.__getattribute__(self, name)
        if name == _own(self, "_none_unless_set"):
            return None
        raise _no_attribute(self, name)

    Local.__getattribute__ = _read  # type: ignore[method-assign]
    _ThreadCriticalLocal.__getattribute__ = _read_thread_critical  # type: ignore[method-assign]
    _LineageLocal.__getattribute__ = _read_lineage  # type: ignore[method-assign]
