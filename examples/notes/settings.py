"""The settings of the site. ``NOTES_DATABASE`` is the database: ``memory``, a file, or the directory of a socket."""

import os
from pathlib import Path

_place = os.environ.get("NOTES_DATABASE", "memory")

SECRET_KEY = "of an example"
ROOT_URLCONF = "urls"
ALLOWED_HOSTS = ["*"]
INSTALLED_APPS = ["app"]
DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
USE_TZ = True

DATABASES: dict[str, dict[str, object]]
if Path(_place).is_dir():
    DATABASES = {
        "default": {"ENGINE": "django.db.backends.postgresql", "NAME": "postgres", "USER": "postgres", "HOST": _place}
    }
elif _place == "memory":
    DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
else:
    DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": _place, "TEST": {"NAME": _place}}}
