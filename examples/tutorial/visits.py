# Django has no types.
# mypy: disable-error-code="import-untyped, misc, no-any-return"
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false
"""A Django site in one file.

``python visits.py`` makes its table, ``uvicorn visits:application`` serves it.
"""

from __future__ import annotations

import asyncio
import threading

import django
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.db import connection, models, transaction
from django.http import HttpRequest, HttpResponse
from django.urls import path

from asgiref.sync import async_to_sync, sync_to_async

settings.configure(
    ALLOWED_HOSTS=["127.0.0.1"],
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": "visits.sqlite3",
        }
    },
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    ROOT_URLCONF=__name__,
)
django.setup()


class Visit(models.Model):
    name = models.CharField(max_length=50)
    objects = models.Manager()

    class Meta:
        app_label = "visits"


def record(name: str) -> int:
    """Note a visit and count the visits of that name, in one transaction."""
    with transaction.atomic():
        Visit.objects.create(name=name)
        return Visit.objects.filter(name=name).count()


async def visit(request: HttpRequest, name: str) -> HttpResponse:
    """An async view that calls sync code."""
    number = await sync_to_async(record)(name)
    return HttpResponse(f"Hello {name}, this is visit {number}.\n")


def report(request: HttpRequest) -> HttpResponse:
    """A sync view that calls async code."""
    branches, visits, thread = async_to_sync(ask_all)(["north", "south"])
    came_back = thread is threading.current_thread()
    return HttpResponse(
        f"{branches}\n"
        f"Here: {visits} visits, counted on the thread of the view: "
        f"{came_back}\n"
    )


async def ask_all(names: list[str]) -> tuple[str, int, threading.Thread]:
    """Ask all branches at once, then look into the database."""
    branches = await asyncio.gather(*map(ask, names))
    return ", ".join(branches), *await sync_to_async(count)()


def count() -> tuple[int, threading.Thread]:
    """Tell the number of visits, and the thread that this runs on."""
    return Visit.objects.count(), threading.current_thread()


async def ask(branch: str) -> str:
    await asyncio.sleep(0.1)  # instead of a request to another site
    return f"{branch.title()}: no visits"


urlpatterns = [path("visit/<name>", visit), path("report", report)]
application = get_asgi_application()

if __name__ == "__main__":
    with connection.schema_editor() as editor:
        editor.create_model(Visit)
