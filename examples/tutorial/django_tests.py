# Django has no types.
# mypy: disable-error-code="import-untyped, misc, no-any-return"
# pyright: reportGeneralTypeIssues=false
"""Tests of sync and async code that share the transaction of the test."""

from __future__ import annotations

from django.contrib.auth.models import Group
from django.db import transaction
from django.test import TestCase

from asgiref.sync import async_to_sync, sync_to_async


def found_group(name: str) -> int:
    """Create a group: a transaction belongs to one thread."""
    with transaction.atomic():
        Group.objects.create(name=name)
        return Group.objects.count()


class GroupTests(TestCase):
    async def test_async_code_calls_sync_code(self) -> None:
        assert 1 == await sync_to_async(found_group)("editors")
        assert 1 == await Group.objects.acount()

    def test_sync_code_calls_async_code(self) -> None:
        found_group("editors")

        async def count() -> int:
            return await Group.objects.acount()

        assert 1 == async_to_sync(count)()
