# Django has no types.
# mypy: disable-error-code="import-untyped"
"""The paths of the site."""

from app import views  # type: ignore[import-not-found]  # from this directory
from django.urls import path

urlpatterns = [path("notes/", views.listed), path("add/", views.add)]
