"""Which form does an ASGI application have, and how is the old one called like the new one?

Since ASGI 3, an application is one callable: ``await application(scope, receive, send)``.
Before, it was called twice: ``await application(scope)(receive, send)``. Nothing is called
here in order to find out; hints, kinds of objects and signatures decide.
"""

from __future__ import annotations

import functools
import inspect
import sys
import types
from collections.abc import Awaitable, Callable
from typing import Any

from .sync import iscoroutinefunction

__all__ = ["double_to_single_callable", "guarantee_single_callable", "is_double_callable"]

if sys.version_info >= (3, 14):
    from annotationlib import Format

    # Annotations may name what only type checkers import.
    _signature = functools.partial(inspect.signature, annotation_format=Format.FORWARDREF)
else:
    _signature = inspect.signature


def is_double_callable(application: Any) -> bool:
    """Tell whether *application* has the form of ASGI 2, which is called twice.

    The first of these that applies decides:

    1. a true attribute ``_asgi_single_callable`` (no) or ``_asgi_double_callable`` (yes) of
       the application, or of what a ``functools.partial`` was made from;
    2. whether it is a coroutine function, marked as one, a partial of one, or an instance
       whose ``__call__`` is one (no);
    3. its signature: whether it takes three positional arguments, and cannot do with one
       (no), or one and not three (yes). That of a class is the one of its constructor;
    4. what it was made from by ``functools.wraps``, asked the same questions;
    5. otherwise: yes. So a synchronous callable with ``*args`` needs the first hint where it
       stands for an application of ASGI 3.

    Args:
        application: Any callable. It is not called.

    Returns:
        Whether to call it as ``application(scope)(receive, send)``.

    >>> def old(scope):
    ...     async def instance(receive, send): ...
    ...     return instance
    >>> async def new(scope, receive, send): ...
    >>> is_double_callable(old), is_double_callable(new)
    (True, False)
    """
    function = application
    while True:
        if getattr(function, "_asgi_single_callable", False):
            return False
        if getattr(function, "_asgi_double_callable", False):
            return True
        if not isinstance(function, functools.partial):
            break
        function = function.func
    if _is_async(function):
        return False
    # Its own signature goes first: a wrapper may be there to change the form.
    one, three = _takes(application, follow_wrapped=False)
    if one == three:
        wrapped = getattr(application, "__wrapped__", None)
        if wrapped is not None and not isinstance(application, types.MethodType):
            return is_double_callable(wrapped)
        # Of a method, a partial, or an instance with such a __call__: here, inspect knows which arguments are bound.
        one, three = _takes(application, follow_wrapped=True)
    return one or not three


def _is_async(function: Any) -> bool:
    if iscoroutinefunction(function):
        return True
    # Found on the type, as a call finds it: functools.wraps copies the one of a class into what wraps the class.
    call: Any = next((vars(base)["__call__"] for base in type(function).__mro__ if "__call__" in vars(base)), None)
    if hasattr(call, "__get__"):
        call = call.__get__(function, type(function))
    return iscoroutinefunction(call)


def _takes(application: Any, *, follow_wrapped: bool) -> tuple[bool, bool]:
    """Tell whether *application* takes one positional argument, and whether it takes three."""
    try:
        signature = _signature(application, follow_wrapped=follow_wrapped)
    except (TypeError, ValueError):  # not callable, or made in C and silent
        return False, False
    return _accepts(signature, 1), _accepts(signature, 3)


def _accepts(signature: inspect.Signature, count: int) -> bool:
    try:
        signature.bind(*range(count))
    except TypeError:
        return False
    return True


def double_to_single_callable(application: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
    """Turn an application of ASGI 2 into one of ASGI 3.

    Equivalent to ``async def(scope, receive, send): return await application(scope)(receive, send)``.

    Args:
        application: A callable of the old form; whether it is one is not looked at.

    Thread and loop:
        Both calls are made in the task that awaits the new application.

    Returns:
        A coroutine function with the parameters ``scope``, ``receive`` and ``send``, which
        may be given by name. It has no other metadata of the old application, whose
        signature and hints are not its own.

    >>> import asyncio
    >>> class Old:
    ...     def __init__(self, scope):
    ...         self.scope = scope
    ...     async def __call__(self, receive, send):
    ...         await send({"type": self.scope["type"] + ".answer"})
    >>> async def send(message):
    ...     print(message)
    >>> asyncio.run(double_to_single_callable(Old)({"type": "chat"}, None, send))
    {'type': 'chat.answer'}
    """

    async def single_callable(scope: Any, receive: Any, send: Any) -> Any:
        __traceback_hide__ = True
        instance = application(scope)
        return await instance(receive, send)

    return single_callable


def guarantee_single_callable(application: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
    """Return *application* as one of ASGI 3, whichever form it has.

    Equivalent to ``double_to_single_callable(application)`` where
    ``is_double_callable(application)``, else to *application* itself.

    Args:
        application: A callable of either form.

    Returns:
        The same object, or a coroutine function around it.

    >>> async def new(scope, receive, send): ...
    >>> guarantee_single_callable(new) is new
    True
    """
    if is_double_callable(application):
        return double_to_single_callable(application)
    return application
