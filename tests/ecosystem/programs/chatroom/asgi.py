"""The application: Django serves HTTP, and the consumers serve WebSockets."""

import json
import os
from pathlib import Path

from django.core.asgi import get_asgi_application

os.environ["DJANGO_SETTINGS_MODULE"] = "chatroom.settings"
django_application = get_asgi_application()

from channels.db import database_sync_to_async  # noqa: E402
from channels.generic.websocket import AsyncWebsocketConsumer, WebsocketConsumer  # noqa: E402
from channels.layers import get_channel_layer  # noqa: E402
from channels.routing import ProtocolTypeRouter, URLRouter  # noqa: E402
from django.db import connection  # noqa: E402
from django.http import HttpResponse  # noqa: E402
from django.urls import path  # noqa: E402

from asgiref.sync import async_to_sync  # noqa: E402

ROOM = "room"


def query():
    with connection.cursor() as cursor:
        cursor.execute("SELECT 6 * 7")
        return cursor.fetchone()[0]


class AsyncChat(AsyncWebsocketConsumer):
    async def connect(self):
        await self.channel_layer.group_add(ROOM, self.channel_name)
        await self.accept()
        await self.send("welcome")

    async def receive(self, text_data):
        assert await database_sync_to_async(query)() == 42
        await self.channel_layer.group_send(ROOM, {"type": "chat.message", "text": text_data})

    async def chat_message(self, event):
        await self.send(event["text"])

    async def disconnect(self, code):
        await self.channel_layer.group_discard(ROOM, self.channel_name)


class SyncChat(WebsocketConsumer):
    groups = [ROOM]

    def connect(self):
        self.accept()
        self.send("welcome")

    def receive(self, text_data):
        assert query() == 42
        async_to_sync(self.channel_layer.group_send)(ROOM, {"type": "chat.message", "text": text_data})

    def chat_message(self, event):
        self.send(event["text"])


def page(request):
    return HttpResponse((Path(__file__).parent / "page.html").read_bytes())


def announce(request):
    """Send a message to the room, from a synchronous view."""
    message = {"type": "chat.message", "text": json.loads(request.body)}
    async_to_sync(get_channel_layer().group_send)(ROOM, message)
    return HttpResponse("said")


async def announce_from_coroutine(request):
    await get_channel_layer().group_send(ROOM, {"type": "chat.message", "text": json.loads(request.body)})
    return HttpResponse("said")


announce.csrf_exempt = announce_from_coroutine.csrf_exempt = True
urlpatterns = [
    path("", page),
    path("announce/", announce),
    path("announce-from-coroutine/", announce_from_coroutine),
]
websockets = URLRouter([path("chat/async/", AsyncChat.as_asgi()), path("chat/sync/", SyncChat.as_asgi())])
application = ProtocolTypeRouter({"http": django_application, "websocket": websockets})
