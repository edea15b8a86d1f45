"""Detection of ASGI 2 applications, and conversion to ASGI 3.

Since ASGI 3, an application is called once: ``await application(scope, receive, send)``.
Before, it was called twice: ``await application(scope)(receive, send)``. The detection does
not call the application; it looks at hints, kinds of objects and signatures.
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

    # Annotations may refer to names that only type checkers import.
    _signature = functools.partial(inspect.signature, annotation_format=Format.FORWARDREF)
else:
    _signature = inspect.signature


def is_double_callable(application: Any) -> bool:
    """Return whether *application* is an ASGI 2 application, which is called twice.

    The first of these rules that applies decides:

    1. A true attribute ``_asgi_single_callable`` (no) or ``_asgi_double_callable`` (yes), of
       the application or of the function in a ``functools.partial``.
    2. A coroutine function, a callable marked as one, a partial of one, or an instance whose
       ``__call__`` is one (no).
    3. The signature, for a class that of its constructor: it accepts three positional
       arguments and not one (no), or one and not three (yes).
    4. For a ``functools.wraps`` wrapper: the same rules for the wrapped callable.
    5. Otherwise: yes. A synchronous callable with ``*args`` that is an ASGI 3 application
       therefore needs the hint ``_asgi_single_callable``.

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
    # Its own signature first: a wrapper may convert the form.
    one, three = _takes(application, follow_wrapped=False)
    if one == three:
        wrapped = getattr(application, "__wrapped__", None)
        if wrapped is not None and not isinstance(application, types.MethodType):
            return is_double_callable(wrapped)
        # For methods, partials, and instances with such a __call__, inspect knows which arguments are bound.
        one, three = _takes(application, follow_wrapped=True)
    return one or not three


def _is_async(function: Any) -> bool:
    if iscoroutinefunction(function):
        return True
    # Looked up on the type, as a call does: functools.wraps copies the __call__ of a class into the wrapper's __dict__.
    call: Any = next((vars(base)["__call__"] for base in type(function).__mro__ if "__call__" in vars(base)), None)
    if hasattr(call, "__get__"):
        call = call.__get__(function, type(function))
    return iscoroutinefunction(call)


def _takes(application: Any, *, follow_wrapped: bool) -> tuple[bool, bool]:
    """Return whether *application* accepts one positional argument, and whether it accepts three."""
    try:
        signature = _signature(application, follow_wrapped=follow_wrapped)
    except (TypeError, ValueError):  # not callable, or a C function without a signature
        return False, False
    return _accepts(signature, 1), _accepts(signature, 3)


def _accepts(signature: inspect.Signature, count: int) -> bool:
    try:
        signature.bind(*range(count))
    except TypeError:
        return False
    return True


def double_to_single_callable(application: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
    """Convert an ASGI 2 application to ASGI 3.

    Equivalent to ``async def(scope, receive, send): return await application(scope)(receive, send)``.

    Args:
        application: An ASGI 2 application; this is not checked.

    Thread and loop:
        Both calls are made in the task that awaits the new application.

    Returns:
        A coroutine function with the parameters ``scope``, ``receive`` and ``send``, also
        accepted by name. No metadata is copied from the old application, because its
        signature and hints are wrong for the new one.

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
    """Return *application* as an ASGI 3 application; convert it if it is ASGI 2.

    Equivalent to ``double_to_single_callable(application)`` if
    ``is_double_callable(application)``, else to *application* itself.

    Args:
        application: An ASGI 2 or ASGI 3 application.

    Returns:
        The same object, or a coroutine function around it.

    >>> async def new(scope, receive, send): ...
    >>> guarantee_single_callable(new) is new
    True
    """
    if is_double_callable(application):
        return double_to_single_callable(application)
    return application
