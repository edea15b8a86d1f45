# Django has no types.
# mypy: disable-error-code="import-untyped, misc, no-any-return"
# pyright: reportArgumentType=false
"""A view that waits for a lock. ``uvicorn stuck:application`` serves it."""

from __future__ import annotations

import signal
import threading

from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import HttpRequest, HttpResponse
from django.urls import path

from asgiref.sync import print_bridge_calls, sync_to_async

settings.configure(ALLOWED_HOSTS=["127.0.0.1"], ROOT_URLCONF=__name__)
signal.signal(signal.SIGUSR2, lambda *_: print_bridge_calls())

stock = threading.Lock()


def reserve(item: str) -> str:
    with stock:
        return f"{item} is reserved\n"


async def buy(request: HttpRequest, item: str) -> HttpResponse:
    return HttpResponse(await sync_to_async(reserve)(item))


urlpatterns = [path("buy/<item>", buy)]
application = get_asgi_application()
stock.acquire()  # stands for a thread that never releases the lock
