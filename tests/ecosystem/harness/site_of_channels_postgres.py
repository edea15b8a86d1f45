"""A pytest plugin with the settings that the tests of channels-postgres take for granted; it makes the tables."""

import django
from django.conf import settings
from django.core.management import call_command

DATABASE = {"ENGINE": "django.db.backends.postgresql", "HOST": "127.0.0.1", "USER": "postgres", "NAME": "postgres"}
settings.configure(
    INSTALLED_APPS=["channels", "channels_postgres"], DATABASES={"default": DATABASE, "channels_postgres": DATABASE}
)


def pytest_configure():
    django.setup()
    call_command("migrate", verbosity=0)
