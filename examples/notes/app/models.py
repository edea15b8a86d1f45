# Django has no types.
# mypy: disable-error-code="import-untyped, misc"
"""What the site keeps."""

from __future__ import annotations

from django.db import models


class Note(models.Model):
    text = models.CharField(max_length=100, unique=True)

    def __str__(self) -> str:
        return str(self.text)
