# Django has no types.
# mypy: disable-error-code="import-untyped, misc"
"""The model of the site."""

from __future__ import annotations

from django.db import models


class Note(models.Model):
    text = models.CharField(max_length=100, unique=True)

    def __str__(self) -> str:
        return str(self.text)
