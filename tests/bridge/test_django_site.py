"""A Django site under uvicorn: tokens of its sync middleware, and views that check for a cancellation."""

from __future__ import annotations

import pytest

from ..helpers import output_of

pytest.importorskip("django")
pytest.importorskip("uvicorn")

SITE = """
import contextlib, contextvars, http.client, socket
import django, uvicorn
from django.conf import settings
settings.configure(
    ALLOWED_HOSTS=["*"],
    LOGGING_CONFIG=None,
    MIDDLEWARE=[f"{__name__}.Outer", f"{__name__}.Inner"],
    ROOT_URLCONF=__name__,
    SECRET_KEY="x",
)
django.setup()
from django.core.asgi import get_asgi_application
from django.http import HttpResponse
from django.urls import path
from django.utils.deprecation import MiddlewareMixin

tenant = contextvars.ContextVar("tenant")
language = contextvars.ContextVar("language", default="en")
seen, ended, failures = [], threading.Event(), []

class Sets(MiddlewareMixin):
    def process_request(self, request):
        request.META[self.__class__] = self.variable.set(request.GET[self.name] + self.ending)
    def process_response(self, request, response):
        try:
            self.variable.reset(request.META[self.__class__])
        except ValueError as error:
            failures.append(str(error))
        seen.append((tenant.get("none"), language.get()))
        return response

class Outer(Sets):
    variable, name, ending = tenant, "tenant", ""

class Inner(Sets):
    variable, name, ending = tenant, "tenant", "/inner"
    def process_request(self, request):
        super().process_request(request)
        request.META["language"] = language.set("nl")
    def process_response(self, request, response):
        language.reset(request.META["language"])
        return super().process_response(request, response)

def sync_view(request):
    return HttpResponse(f"{tenant.get()} {language.get()}")

async def async_view(request):
    return HttpResponse(f"{tenant.get()} {language.get()}")

def long_view(request):
    begun.set()
    try:
        while True:
            check_cancelled()
            time.sleep(0.001)
    finally:
        ended.set()

begun = threading.Event()
urlpatterns = [path("sync", sync_view), path("async", async_view), path("long", long_view)]
listening = socket.create_server(("127.0.0.1", 0))
server = uvicorn.Server(uvicorn.Config(get_asgi_application(), lifespan="off", log_level="warning", loop="asyncio"))
thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
thread.start()
client = http.client.HTTPConnection(*listening.getsockname(), timeout=20)

def get(path):
    client.request("GET", path)
    return client.getresponse().read().decode()

try:
    CODE
finally:
    client.close()
    server.should_exit = True
    thread.join(20)
print(failures)
"""


def output_of_site(code: str) -> list[str]:
    return output_of(SITE.replace("CODE", code.strip().replace("\n", "\n    ")))


@pytest.mark.slow
def test_sync_middleware_resets_what_it_has_set() -> None:
    """Two middleware, one inside the other, with one call in each direction; the requests share a connection."""
    assert [
        "acme/inner nl",
        "acme/inner nl",
        "other/inner nl",
        "[('acme', 'en'), ('none', 'en'), ('acme', 'en'), ('none', 'en'), ('other', 'en'), ('none', 'en')]",
        "[]",
    ] == output_of_site("""
for path in ("/sync?tenant=acme", "/async?tenant=acme", "/sync?tenant=other"):
    print(get(path))
print(seen)
""")


@pytest.mark.slow
def test_view_stops_when_its_client_disconnects() -> None:
    assert ["True", "[]"] == output_of_site("""
client.request("GET", "/long?tenant=acme")
begun.wait(20)
client.close()
print(ended.wait(20))
""")
