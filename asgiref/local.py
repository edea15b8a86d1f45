"""``Local``: attributes with a value for each task and thread.

All attributes of a ``Local`` are in one immutable mapping in one ``ContextVar``. Writing
replaces the mapping in the current context. So no lock is needed, a fork breaks nothing,
and a copied context is a snapshot that later writes do not change. The methods for reading
and writing call no helpers, because they are the most frequent operation of the package.
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

# The name of every ContextVar made here; ``_bridge.carry`` merges the mappings in variables of this name.
VARIABLE_NAME = "asgiref.local.Local"

# Python 3.14 and later can start each thread in a copy of its starter's context.
THREADS_INHERIT = bool(getattr(sys.flags, "thread_inherit_context", False))

_NO_ATTRIBUTES: dict[Any, Any] = {}


class _Storage:
    """The internal attributes of a ``Local``; read through ``super()``, because its own attributes are the user's."""

    __slots__ = ("__weakref__", "_in_thread", "_variable")
    _in_thread: threading.local
    _variable: contextvars.ContextVar[dict[Any, Any]]


_variable_of = _Storage.__dict__["_variable"].__get__


@final
class Local(_Storage):
    """A replacement for ``threading.local`` that also works between tasks and across the bridge.

    Each asynchronous task has its own values and starts with a copy of its parent's. Each
    plain thread starts without values. ``sync_to_async`` and ``async_to_sync`` pass the
    values to the other side and bring changes back. ``asyncio.to_thread`` only passes them
    in. Unrelated tasks and threads never see each other's values.

    Args:
        thread_critical: For values that must stay in their thread, such as a database
            connection. Synchronous code has one set of values for each thread, and the
            bridge does not pass them on. Asynchronous code has values for each task, which
            stay with its event loop.

    If Python starts each thread in a copy of its starter's context
    (``sys.flags.thread_inherit_context``, the default of free-threaded builds since 3.14),
    plain threads and ``asyncio.to_thread`` look the same. Both then start without values;
    ``sync_to_async`` still passes them on.

    Raises:
        AttributeError: if a missing attribute is read or deleted, or if the name is one that
            every object has, such as ``__class__``, and is set.
        TypeError: if it is subclassed, copied or pickled.

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

    # __getattribute__, not __getattr__: a failing look-up on the type comes before __getattr__
    # and costs four times as much on Python 3.11.
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

    def __reduce__(self) -> NoReturn:  # called by copy, deepcopy and pickle
        raise TypeError(
            "a Local cannot be copied or pickled, because its values are stored in contexts; share the Local itself, "
            "or copy the values"
        )


# Users may choose any other name for an attribute. Not dir(Local), to which "final" adds a name.
_RESERVED = frozenset(dir(_Storage)) - set(_Storage.__slots__) | {"__weakref__"}


def _no_attribute(storage: Local, name: str) -> AttributeError:
    error = AttributeError(f"'Local' object has no attribute '{name}'")
    error.name, error.obj = name, storage  # a third faster than as arguments
    return error


def _refuse(name: str) -> NoReturn:
    raise AttributeError(f"'Local' object attribute '{name}' is read-only: every object has it; choose another name")


# Not ``_bridge.internals.running_loop``: other packages replace ``asyncio`` in this module to define which
# event loop is running.
class _ThreadCriticalLocal(Local):  # type: ignore[misc]  # not final in this file
    """``Local(thread_critical=True)``.

    Without a running event loop, the values are in a ``threading.local``. With one, they are
    in the context, under keys that include the loop. So they are invisible in other threads,
    and visible again when the flow of calls returns to its loop.
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
    """Ask a replacement of ``asyncio`` in this module that has only the public function."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def peek(storage: Any, name: str) -> Any:
    """Return ``getattr(storage, name, None)``; for a plain ``Local`` without the name, in a third of the time."""
    if type(storage) is Local:
        return _variable_of(storage).get().get(name)
    return getattr(storage, name, None)


def set_in_both(storage: Local, name: str, value: Any, before: contextvars.Context, after: contextvars.Context) -> None:
    """Set an attribute in two contexts; if both had the same mapping of attributes, they have the same one again.

    The mappings are compared by identity to tell whether something has changed from *before* to *after*.
    """
    variable = _variable_of(storage)
    is_same = before.get(variable) is after.get(variable)
    before.run(setattr, storage, name, value)
    if is_same:
        after.run(variable.set, before[variable])
    else:
        after.run(setattr, storage, name, value)


def is_out_of_reach(key: Any) -> bool:
    """Return whether *key* of a mapping belongs to a task whose event loop has ended."""
    if type(key) is not tuple:
        return False
    loop = key[0]()
    return loop is None or loop.is_closed()


# Used if threads inherit contexts. A lineage is a flow of calls that may share values. The
# context holds its token and the mark of the thread that uses the context. A plain thread
# finds the mark of its starter there, so the values are not for it. The bridge replaces the
# mark when it passes a context to a thread.
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
    """Give this thread the mark of another one, for which it acts; return the previous mark."""
    outer = mark_of_thread()
    _thread_mark.mark = mark
    return outer


def _lineage_here() -> object:
    """Return the token of this context's lineage on this thread; start a new lineage if there is none."""
    entry = LINEAGE.get()
    mark = mark_of_thread()
    if entry is None or entry[0] is not mark:
        entry = mark, object()
        LINEAGE.set(entry)
    return entry[1]


class _LineageLocal(Local):  # type: ignore[misc]  # not final in this file
    """A ``Local`` for threads that inherit contexts: the mapping has the lineage under the key ``None``."""

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
    """Return a ``Local`` whose attribute *name* is None until it is set."""
    storage = Local()
    if THREADS_INHERIT:
        object.__setattr__(storage, "_none_unless_set", name)
    else:  # at no cost for reading
        attributes: dict[Any, Any] = {name: None}
        object.__setattr__(storage, "_variable", contextvars.ContextVar(VARIABLE_NAME, default=attributes))
    return storage


def prepare_hand_over() -> None:
    """Give the current context a lineage, which a copy of it can continue on another thread."""
    _lineage_here()


def arrive(context: contextvars.Context) -> None:
    """Let *context*, which the bridge has passed to this thread, continue its lineage here."""
    entry = context.get(LINEAGE)
    if entry is not None:
        context.run(LINEAGE.set, (mark_of_thread(), entry[1]))


# Reading on free-threaded builds. ``super()`` counts references to the MRO of the class, which all threads share, so
# two threads together would read hardly faster than one. The functions below count no shared reference: types and
# their descriptors are not counted. With the interpreter's lock, ``super()`` is faster: two thirds of the time.
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
