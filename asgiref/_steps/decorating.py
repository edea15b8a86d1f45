"""Decorated functions that return an iterable or a context manager."""

from __future__ import annotations

import functools
from types import MethodType
from typing import TYPE_CHECKING, Any

from .._bridge.wrapping import Wrapper, take_over

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Decorated", "name_of"]


class Decorated(Wrapper[Any, Any]):
    """A function that passes a call of *function*, not yet made, to *bridge* and returns the result.

    It has the name, docstring and signature of *function*, and works as a method.
    """

    def __init__(self, function: Callable[..., Any], bridge: Callable[[Callable[[], Any], str], Any]) -> None:
        self.__wrapped__ = function
        self._bridge = bridge
        take_over(self, function)

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        function = self.__wrapped__
        return self._bridge(functools.partial(function, *args, **kwargs), name_of(function))

    def __get__(self, parent: Any, objtype: Any = None) -> Any:
        """Bind to *parent* as a method; on the class, return the object itself."""
        return self if parent is None else MethodType(self, parent)


def name_of(subject: Any) -> str:
    return getattr(subject, "__qualname__", None) or type(subject).__qualname__
