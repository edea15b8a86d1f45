# Django has no types.
# mypy: disable-error-code="import-not-found, import-untyped, misc, untyped-decorator"
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false
"""Async and sync tests, fixtures and views, which all use the database connection of the main thread."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_asyncio
from app.models import Note
from django.db import IntegrityError, transaction
from django.test import TestCase

from asgiref.sync import ThreadSensitiveContext, sync_to_async


@pytest.fixture
def note(db: None) -> Any:
    return Note.objects.create(text="of a fixture")


@pytest_asyncio.fixture
async def async_note(db: None) -> AsyncIterator[Any]:
    note = await Note.objects.acreate(text="of an async fixture")
    yield note
    assert await Note.objects.filter(pk=note.pk).aexists()


@pytest.fixture
def two_queries(db: None, django_assert_num_queries: Any) -> Iterator[None]:
    with django_assert_num_queries(2):
        yield


async def test_fixtures_of_both_kinds(note: Any, async_note: Any) -> None:
    assert [note, async_note] == [each async for each in Note.objects.order_by("pk")]


@pytest.mark.parametrize("time", ["first", "second"])
async def test_nothing_is_left_by_a_test(db: None, time: str) -> None:
    await Note.objects.acreate(text="the same")
    assert 1 == await Note.objects.acount()


def test_nothing_is_left_for_a_sync_test(db: None) -> None:
    assert 0 == Note.objects.count()


async def test_views(async_client: Any, note: Any) -> None:
    response = await async_client.post("/add/", {"text": "of a view"})
    assert {"added": "of a view"} == response.json()
    response = await async_client.get("/notes/")
    assert {"notes": ["of a fixture", "of a view"]} == response.json()


async def test_sync_client(client: Any, note: Any) -> None:
    response = await sync_to_async(client.get)("/notes/")
    assert {"notes": ["of a fixture"]} == response.json()


async def test_queries_that_are_gathered(db: None) -> None:
    await asyncio.gather(*[Note.objects.acreate(text=f"number {number}") for number in range(10)])
    counts = await asyncio.gather(*[Note.objects.acount() for _ in range(10)])
    assert [10] * 10 == counts


async def test_transaction_in_sync_code(note: Any) -> None:
    @sync_to_async
    def rolled_back() -> None:
        with pytest.raises(IntegrityError), transaction.atomic():
            Note.objects.create(text="rolled back")
            Note.objects.create(text=note.text)

    await rolled_back()
    assert 1 == await Note.objects.acount()


async def test_queries_counted_in_sync_code(note: Any, django_assert_num_queries: Any) -> None:
    @sync_to_async
    def count() -> None:
        with django_assert_num_queries(2):
            Note.objects.count()
            Note.objects.count()

    await count()


async def test_queries_counted_by_a_fixture(two_queries: None) -> None:
    await Note.objects.acount()
    await Note.objects.acount()


async def test_block_of_a_request(note: Any) -> None:
    async with ThreadSensitiveContext():
        assert 1 == await Note.objects.acount()


async def test_commits(transactional_db: None) -> None:
    committed: list[str] = []

    @sync_to_async
    def commit() -> None:
        with transaction.atomic():
            Note.objects.create(text="committed")
            transaction.on_commit(lambda: committed.append("committed"))

    await commit()
    assert ["committed"] == committed
    assert 1 == await Note.objects.acount()


async def test_commits_are_undone(transactional_db: None) -> None:
    assert 0 == await Note.objects.acount()


class NoteTests(TestCase):
    """With Django's own test class, which uses async_to_sync."""

    @classmethod
    def setUpTestData(cls) -> None:
        Note.objects.create(text="of the class")

    async def test(self) -> None:
        assert 1 == await Note.objects.acount()
