"""Context variables, and the exception being handled, which a bridged call passes to another thread.

Both directions of the bridge run the function in a copy of the caller's context, and bring
back only its changes. So changes of another task in a shared context are kept.
"""

from __future__ import annotations

import contextvars
import operator
from typing import TYPE_CHECKING, Any

from .. import local

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

__all__ = ["ExceptionMarks", "changes_between", "changes_since"]

_MISSING: Any = object()


def changes_since(snapshot: contextvars.Context, context: contextvars.Context) -> contextvars.Context | None:
    """Return a context of only the variables that differ in *context*, a descendant of *snapshot*.

    Values are compared by identity, which calls no ``__eq__`` of users. The values of a
    ``Local`` are merged by name into the current values of the calling context. None means
    "no change".
    """
    # A context keeps all variables of its copy, so two contexts of equal size have the same
    # variables in the same order.
    if len(context) == len(snapshot) and all(map(operator.is_, context.values(), snapshot.values())):
        return None
    return changes_between(snapshot, context) or None


def changes_between(snapshot: contextvars.Context, context: contextvars.Context) -> contextvars.Context:
    """Return a context of only the variables that differ in *context*; the two may have any variables."""
    changes = contextvars.Context()
    for variable, value in context.items():
        before = snapshot.get(variable, _MISSING)
        if value is before or variable is local.LINEAGE:
            continue
        if variable.name == local.VARIABLE_NAME:
            value = _merged({} if before is _MISSING else before, value, variable.get())
        changes.run(variable.set, value)
    return changes


def _merged(before: Mapping[Any, Any], after: Mapping[Any, Any], now: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """Apply the changes from *before* to *after* to the attributes *now*."""
    attributes = {name: value for name, value in now.items() if name in after or name not in before}
    for name, value in after.items():
        if before.get(name, _MISSING) is not value:
            attributes[name] = value
    return {name: value for name, value in attributes.items() if not local.is_out_of_reach(name)}


# Used as Python itself does. A class of exceptions may refuse assignments (a frozen dataclass does), or
# have properties of these names.
_context: Any = vars(BaseException)["__context__"]
_traceback: Any = vars(BaseException)["__traceback__"]


class ExceptionMarks:
    """The traceback and context of an exception, to restore them after raising it again.

    ``sys.exc_info()`` shows an exception only inside an ``except`` block that caught it, so the
    other thread must raise the caller's exception again. That lengthens its traceback and
    replaces its ``__context__``.
    """

    __slots__ = ("_context", "_traceback")

    def __init__(self, exception: BaseException) -> None:
        self._context: BaseException | None = _context.__get__(exception)
        self._traceback: TracebackType | None = _traceback.__get__(exception)

    def put_back(self, exception: BaseException) -> None:
        _context.__set__(exception, self._context)
        _traceback.__set__(exception, self._traceback)
