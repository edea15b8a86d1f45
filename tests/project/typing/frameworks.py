"""``asgiref.typing`` and applications of frameworks with types of their own.

Starlette takes scopes and events as ``MutableMapping[str, Any]``. A ``TypedDict`` is not one, because any key of such a
mapping can be deleted. So neither kind of application is one of the other kind, and a conversion must be explicit.
``applications_refused`` explains the markers.
"""

# pyright: strict, reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

from typing import Any, cast

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.types import ASGIApp

from asgiref.compatibility import guarantee_single_callable
from asgiref.sync import ThreadSensitiveMiddleware
from asgiref.typing import ASGI3Application, ASGIReceiveCallable, ASGISendCallable, Scope


async def application(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None: ...


refused: ASGI3Application = Starlette()  # type: ignore[assignment]
refused_too: ASGIApp = application  # type: ignore[assignment]

stated: ASGI3Application = cast(ASGI3Application, Starlette())
stated_too: ASGIApp = cast(ASGIApp, application)

# A function that takes any application returns one that is both.
converted: ASGI3Application = guarantee_single_callable(Starlette())
converted_too: ASGIApp = guarantee_single_callable(application)


# Middleware for both.
async def middleware(scope: Any, receive: Any, send: Any) -> None:
    await stated(scope, receive, send)
    await stated_too(scope, receive, send)


here: ASGI3Application = middleware
there: ASGIApp = middleware

# And that of this package.
wrapped: ASGI3Application = ThreadSensitiveMiddleware(application)
wrapped_too: ASGIApp = ThreadSensitiveMiddleware(Starlette(middleware=[Middleware(ThreadSensitiveMiddleware)]))
