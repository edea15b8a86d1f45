"""The site as a WSGI application that calls asynchronous code before the server forks."""

import os

from django.core.wsgi import get_wsgi_application

from asgiref.sync import async_to_sync


async def _prepare() -> None:
    """Stands for reading the settings from a service."""


os.environ["DJANGO_SETTINGS_MODULE"] = "site_under_test.settings"
async_to_sync(_prepare)()
application = get_wsgi_application()
