"""Each view, under its name."""

from django.urls import path

from . import views

VIEWS = [views.plain, views.coroutine, views.parts, views.parts_of_coroutine, views.upload]
VIEWS += [views.upload_to_coroutine, views.held, views.held_coroutine]
urlpatterns = [path(f"{view.__name__}/", view) for view in VIEWS]
