"""The metadata of wrappers: name, signature and framework marks of the wrapped callable.

The result is like that of ``functools.update_wrapper``, with one difference: no attribute of
the callable replaces an attribute of the wrapper or of its class, so none changes how the
wrapper works. Frameworks make wrappers for each request, so most metadata is not copied:
class attributes read it from the callable on access.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from types import FunctionType, GenericAlias, MethodType
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar

from .internals import COROUTINE_MARKS

__all__ = ["OfWrapped", "Wrapper", "take_over"]

P = ParamSpec("P")
R = TypeVar("R")

_MISSING: Any = object()
_CO_COROUTINE = inspect.CO_COROUTINE

# These marks say that the function returns an awaitable, which may be false for its wrapper.
# With ``__func__``, inspect.markcoroutinefunction(wrapper) would mark the user's function.
_NEVER_COPIED = {*COROUTINE_MARKS, "__func__"}


class OfWrapped:
    """An attribute that instances read from their ``__wrapped__``, unless they have their own.

    Args:
        name: The name of the attribute.
        of_class: The value for the class itself; without it, the class has no such attribute.
    """

    def __init__(self, name: str, of_class: Any = _MISSING) -> None:
        self._name, self._of_class = name, of_class

    def __get__(self, wrapper: Any, owner: Any = None) -> Any:
        if wrapper is not None:
            return getattr(wrapper.__wrapped__, self._name)
        if self._of_class is _MISSING:
            raise AttributeError(f"type object {owner.__name__!r} has no attribute {self._name!r}")
        return self._of_class


class _AnnotationsOfWrapped(dict[str, Any]):
    """``OfWrapped("__annotations__")``; a dict, because ``inspect`` and ``typing`` read that of the class."""

    def __get__(self, wrapper: Any, owner: Any = None) -> Any:
        return self if wrapper is None else wrapper.__wrapped__.__annotations__


class _TypeParamsOfWrapped(tuple[Any, ...]):
    """``OfWrapped("__type_params__")``; a tuple, because ``typing`` reads that of the class."""

    def __get__(self, wrapper: Any, owner: Any = None) -> Any:
        return self if wrapper is None else wrapper.__wrapped__.__type_params__


if TYPE_CHECKING:

    class _OfCallable(Generic[P, R]): ...

else:

    class _OfCallable:
        """A replacement for ``Generic`` at run time, at a fifth of its cost in the import of the package."""

        __class_getitem__ = classmethod(GenericAlias)


class Wrapper(_OfCallable[P, R]):
    """An object with the metadata of its ``__wrapped__``."""

    if TYPE_CHECKING:
        __name__: str
        __qualname__: str
        __self__: Any
    else:
        __name__ = OfWrapped("__name__")
        __self__ = OfWrapped("__self__")
        __type_params__ = _TypeParamsOfWrapped()
        if sys.version_info >= (3, 14):
            __annotate__ = OfWrapped("__annotate__", None)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # Python gives each class these two attributes, which would hide those of the callable. (From
        # Python 3.14 on, it computes the second one on demand.)
        documentation = vars(cls).get("__doc__")
        if not hasattr(documentation, "__get__"):
            cls.__doc__ = OfWrapped("__doc__", documentation)  # type: ignore[assignment]
        annotations = vars(cls).get("__annotations__", {} if sys.version_info < (3, 14) else None)
        if type(annotations) is dict:
            cls.__annotations__ = _AnnotationsOfWrapped(annotations)


def take_over(wrapper: Any, wrapped: Any) -> bool | None:
    """Copy the marks of *wrapped* to *wrapper*, and its ``__module__`` and ``__qualname__``.

    These two must be strings on a class, so a class attribute cannot read them from *wrapped*.

    Args:
        wrapper: A ``Wrapper`` whose constructor has set all its attributes.
        wrapped: The callable.

    Returns:
        Whether *wrapped* is a coroutine function, or None if this needs a closer look.
    """
    function: Any = wrapped.__func__ if type(wrapped) is MethodType else wrapped
    if type(function) is FunctionType:
        wrapper.__module__ = function.__module__
        wrapper.__qualname__ = function.__qualname__
        is_async = function.__code__.co_flags & _CO_COROUTINE != 0
        marks = function.__dict__
        if not marks:
            return is_async
        _copy_marks(wrapper, marks)
        return is_async if is_async or marks.keys().isdisjoint(COROUTINE_MARKS) else None
    for name in "__module__", "__qualname__":
        value = getattr(wrapped, name, _MISSING)
        if value is not _MISSING:
            setattr(wrapper, name, value)
    _copy_marks(wrapper, getattr(wrapped, "__dict__", {}))
    return None


def _copy_marks(wrapper: Any, marks: Mapping[str, Any]) -> None:
    own, classes = wrapper.__dict__, type(wrapper).__mro__
    for name, mark in dict(marks).items():
        if name in own or name in _NEVER_COPIED:
            continue
        for each in classes:
            if name in each.__dict__:
                break
        else:
            own[name] = mark
