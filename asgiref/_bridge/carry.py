"""What goes along with a hand-off between threads: context variables and the exception being handled.

Both directions of the bridge run the callee in a copy of the caller's context and
bring back afterwards what the callee changed: only that, so that what another task
changed meanwhile in a context that both share stays as it is.
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

    Variables compare by identity: a user's ``__eq__`` is none of our business. The values
    of a ``Local`` are merged, name by name, into those that the calling context has by
    now. None stands for "no change".
    """
    # A context never loses a variable that it was copied with, so two of equal size have
    # the same variables in the same order.
    if len(context) == len(snapshot) and all(map(operator.is_, context.values(), snapshot.values())):
        return None
    return changes_between(snapshot, context) or None


def changes_between(snapshot: contextvars.Context, context: contextvars.Context) -> contextvars.Context:
    """Return a context of only the variables that differ in *context*, whatever variables the two have."""
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
    """Apply to the attributes *now* what makes *after* of *before*."""
    attributes = {name: value for name, value in now.items() if name in after or name not in before}
    for name, value in after.items():
        if before.get(name, _MISSING) is not value:
            attributes[name] = value
    return {name: value for name, value in attributes.items() if not local.is_out_of_reach(name)}


# As Python itself reads and writes them. A class of exceptions may refuse assignments (a frozen
# dataclass does), or have properties of these names.
_context: Any = vars(BaseException)["__context__"]
_traceback: Any = vars(BaseException)["__traceback__"]


class ExceptionMarks:
    """What raising an exception again would change about it, to be put back.

    ``sys.exc_info()`` shows an exception only inside an ``except`` block that caught it, so
    the other side of a hand-off has to raise the caller's exception once more. That would
    lengthen its traceback and replace its ``__context__``.
    """

    __slots__ = ("_context", "_traceback")

    def __init__(self, exception: BaseException) -> None:
        self._context: BaseException | None = _context.__get__(exception)
        self._traceback: TracebackType | None = _traceback.__get__(exception)

    def put_back(self, exception: BaseException) -> None:
        _context.__set__(exception, self._context)
        _traceback.__set__(exception, self._traceback)
