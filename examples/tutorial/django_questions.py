# Django has no types.
# mypy: disable-error-code="import-untyped, misc, no-any-return, type-arg"
# mypy: disable-error-code="no-untyped-def"
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false
# pyright: reportGeneralTypeIssues=false
"""Common questions about Django and async code, with answers as tests."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress

from django.contrib.auth.models import Group
from django.core.exceptions import SynchronousOnlyOperation
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.test import TestCase, override_settings
from django.urls import path

from asgiref.sync import sync_to_async, sync_to_async_iterator


def slow_count(seen: list[str]) -> int:
    seen.append("begins")
    number = Group.objects.count()
    seen.append("ends")
    return number


async def gathered(request: HttpRequest) -> HttpResponse:
    """Queries in asyncio.gather: one after the other, on one thread."""
    seen: list[str] = []
    await asyncio.gather(*(sync_to_async(slow_count)(seen) for _ in range(3)))
    return HttpResponse(", ".join(seen))


async def evaluated(request: HttpRequest) -> HttpResponse:
    """A lazy queryset: evaluated with ``async for``, or on the thread."""
    groups = Group.objects.order_by("name")  # no query yet
    with suppress(SynchronousOnlyOperation):
        list(groups)  # refused: the query would block the event loop
    names = [group.name async for group in groups]
    assert names == [group.name for group in await sync_to_async(list)(groups)]
    return HttpResponse(", ".join(names))


@sync_to_async_iterator
def lines():
    for group in Group.objects.order_by("name").iterator():
        yield f"{group.name}\n"


async def exported(request: HttpRequest) -> StreamingHttpResponse:
    """A generator that queries: its steps run on the request's thread."""
    return StreamingHttpResponse(lines())


def thread_middleware(
    get_response: Callable[[HttpRequest], HttpResponse],
) -> Callable[[HttpRequest], HttpResponse]:
    """Synchronous middleware: runs on the thread of the request."""

    def middleware(request: HttpRequest) -> HttpResponse:
        request.thread = threading.get_ident()
        return get_response(request)

    return middleware


async def same_thread(request: HttpRequest) -> HttpResponse:
    return HttpResponse(
        str(request.thread == await sync_to_async(threading.get_ident)())
    )


urlpatterns = [
    path("gathered", gathered),
    path("evaluated", evaluated),
    path("exported", exported),
    path("same-thread", same_thread),
]


@override_settings(
    ROOT_URLCONF=__name__, MIDDLEWARE=[f"{__name__}.thread_middleware"]
)
class QuestionTests(TestCase):
    @classmethod
    def setUpTestData(cls) -> None:
        Group.objects.bulk_create(
            [Group(name="editors"), Group(name="authors")]
        )

    async def test_queries_in_gather(self) -> None:
        response = await self.async_client.get("/gathered")
        assert response.content.decode() == ", ".join(["begins", "ends"] * 3)

    async def test_lazy_querysets(self) -> None:
        assert (
            await self.async_client.get("/evaluated")
        ).content == b"authors, editors"

    async def test_generators(self) -> None:
        response = await self.async_client.get("/exported")
        assert [b"authors\n", b"editors\n"] == [
            piece async for piece in response.streaming_content
        ]

    async def test_thread_of_middleware(self) -> None:
        assert (await self.async_client.get("/same-thread")).content == b"True"
