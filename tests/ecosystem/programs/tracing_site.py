"""A Django site with one request that passes through synchronous and asynchronous code, in both directions."""

import asyncio

from django.conf import settings
from django.http import JsonResponse
from django.urls import path

from asgiref.sync import async_to_sync, sync_to_async

# A function that opens a span: it returns a context manager for a name. The test sets it.
span = None
current = None


def sync_leaf(name):
    with span(f"sync leaf {name}"):
        return current()


async def async_middle(name):
    with span(f"async middle {name}"):
        await asyncio.sleep(0)
        together = await asyncio.gather(*(sync_to_async(sync_leaf)(f"{name}{number}") for number in range(2)))
        return [current(), *together]


def sync_view(request):
    with span("sync view"):
        return JsonResponse({"seen": async_to_sync(async_middle)("a"), "after": current()})


async def async_view(request):
    with span("async view"):
        seen = await sync_to_async(async_to_sync(async_middle))("b")
        return JsonResponse({"seen": seen, "after": current()})


urlpatterns = [path("sync/", sync_view), path("async/", async_view)]


def configure():
    settings.configure(
        SECRET_KEY="of a test",
        ROOT_URLCONF="tracing_site",
        ALLOWED_HOSTS=["*"],
        MIDDLEWARE=["django.middleware.common.CommonMiddleware"],
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    )
    import django

    django.setup()
