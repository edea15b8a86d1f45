# Django has no types.
# mypy: disable-error-code="import-untyped"
# pyright: reportAttributeAccessIssue=false, reportGeneralTypeIssues=false
"""An async view and a sync view."""

from __future__ import annotations

from django.db import transaction
from django.http import HttpRequest, JsonResponse

from .models import Note


async def listed(request: HttpRequest) -> JsonResponse:
    return JsonResponse({"notes": [note.text async for note in Note.objects.order_by("pk")]})


def add(request: HttpRequest) -> JsonResponse:
    with transaction.atomic():
        note = Note.objects.create(text=request.POST["text"])
    return JsonResponse({"added": note.text})
