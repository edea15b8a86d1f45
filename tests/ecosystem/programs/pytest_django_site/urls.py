"""Two views that count notes, one synchronous and one asynchronous."""

from django.http import HttpResponse
from django.urls import path

from asgiref.sync import async_to_sync, sync_to_async

from .models import Note


async def counted():
    return await Note.objects.acount(), await sync_to_async(Note.objects.count)()


def sync_view(request):
    return HttpResponse(f"{async_to_sync(counted)()}")


async def async_view(request):
    return HttpResponse(f"{await counted()}")


urlpatterns = [path("sync/", sync_view), path("async/", async_view)]
