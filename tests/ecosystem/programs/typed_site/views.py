"""Views with types that use the bridge as Django's documentation shows it."""

from collections.abc import Awaitable, Callable
from typing import reveal_type

from django.db import transaction
from django.http import HttpRequest, HttpResponse, HttpResponseBase, JsonResponse
from django.utils.decorators import sync_and_async_middleware

from asgiref.local import Local
from asgiref.sync import ThreadSensitiveContext, async_to_sync, iscoroutinefunction, sync_to_async

from .models import Note

local = Local()


def pinned(text: str, *, limit: int = 10) -> list[Note]:
    return list(Note.objects.filter(text__contains=text, pinned=True)[:limit])


@sync_to_async
def add(text: str) -> Note:
    with transaction.atomic():
        return Note.objects.create(text=text)


@sync_to_async(thread_sensitive=False)
def hashed(text: str) -> int:
    return hash(text)


@async_to_sync
async def texts() -> list[str]:
    return [note.text async for note in Note.objects.all()]


async def view(request: HttpRequest) -> HttpResponse:
    async with ThreadSensitiveContext():
        notes = await sync_to_async(pinned)("a", limit=3)
        note = await add("new")
    reveal_type(notes)
    reveal_type(note)
    reveal_type(await hashed("text"))
    reveal_type(sync_to_async(pinned))
    return JsonResponse({"notes": [note.text for note in notes]})


def sync_view(request: HttpRequest) -> HttpResponse:
    reveal_type(texts())
    return async_to_sync(view)(request)


class Store:
    @sync_to_async
    def save(self, note: Note) -> int:
        note.save()
        return note.pk

    @async_to_sync
    async def load(self, key: int) -> Note:
        return await Note.objects.aget(pk=key)


async def store(note: Note) -> None:
    reveal_type(await Store().save(note))


def load() -> None:
    reveal_type(Store().load(1))


@sync_and_async_middleware
def middleware(get_response: Callable[[HttpRequest], HttpResponseBase | Awaitable[HttpResponseBase]]) -> object:
    return iscoroutinefunction(get_response)
