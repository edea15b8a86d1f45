"""Settings; ``SITE_DIRECTORY`` has the database and the marks of requests."""

import os
from pathlib import Path

DIRECTORY = Path(os.environ["SITE_DIRECTORY"])
SECRET_KEY = "of a test"
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "site_under_test.urls"
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": DIRECTORY / "database"}}
MIDDLEWARE = ["site_under_test.views.remember_name"]
DATA_UPLOAD_MAX_MEMORY_SIZE = None
