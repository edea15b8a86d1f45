"""Tests like those of a user of pytest-django and pytest-asyncio."""

import asyncio
import urllib.request

import pytest
from django.core.exceptions import SynchronousOnlyOperation
from django.db import transaction
from django.db.models.signals import post_save

from asgiref.sync import async_to_sync, sync_to_async

from .models import Note


@pytest.mark.django_db
def test_sync_view(client):
    Note.objects.create(text="one")
    assert client.get("/sync/").content == b"(1, 1)"


@pytest.mark.django_db
def test_async_view(client):
    Note.objects.create(text="one")
    assert client.get("/async/").content == b"(1, 1)"


@pytest.mark.django_db(transaction=True)
async def test_async_client(async_client):
    await Note.objects.acreate(text="one")
    for view in ("sync", "async"):
        assert (await async_client.get(f"/{view}/")).content == b"(1, 1)"


@pytest.mark.django_db(transaction=True)
async def test_gather(async_client):
    await asyncio.gather(*(Note.objects.acreate(text=str(number)) for number in range(10)))
    responses = await asyncio.gather(*(async_client.get("/sync/") for _ in range(10)))
    assert [response.content for response in responses] == [b"(10, 10)"] * 10


@pytest.mark.django_db(transaction=True)
def test_live_server(live_server):
    Note.objects.create(text="one")
    for view in ("sync", "async"):
        with urllib.request.urlopen(f"{live_server.url}/{view}/", timeout=30) as response:
            assert response.read() == b"(1, 1)"


@pytest.mark.django_db
def test_each_test_has_an_empty_database():
    assert async_to_sync(Note.objects.acount)() == 0


@pytest.mark.django_db
def test_rollback():
    """The asynchronous code below is in the transaction of the synchronous code above."""
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        async_to_sync(Note.objects.acreate)(text="one")
        assert Note.objects.count() == 1
        1 / 0
    assert Note.objects.count() == 0


@pytest.mark.django_db
def test_signal():
    heard = []

    async def receiver(**kwargs):
        heard.append((kwargs["instance"].text, await Note.objects.acount()))

    post_save.connect(receiver, Note)
    try:
        Note.objects.create(text="one")
    finally:
        post_save.disconnect(receiver, Note)
    assert heard == [("one", 1)]


@pytest.mark.django_db(transaction=True)
async def test_orm_in_coroutine_is_refused():
    with pytest.raises(SynchronousOnlyOperation):
        Note.objects.count()
    assert await sync_to_async(Note.objects.count)() == 0


@pytest.mark.xfail(raises=RuntimeError, strict=True)
def test_database_is_blocked():
    async_to_sync(Note.objects.acount)()
