"""Settings; ``SITE_DIRECTORY`` has the database, and ``REDIS_URL`` is the server of the channel layer."""

import os
from pathlib import Path

SECRET_KEY = "of a test"
ALLOWED_HOSTS = ["*"]
INSTALLED_APPS = ["channels", "chatroom"]
ROOT_URLCONF = "chatroom.asgi"
DATABASES = {
    "default": {"ENGINE": "django.db.backends.sqlite3", "NAME": Path(os.environ["SITE_DIRECTORY"]) / "database"}
}
CHANNEL_LAYERS = {
    "default": {
        "BACKEND": "channels_redis.core.RedisChannelLayer",
        "CONFIG": {"hosts": [os.environ["REDIS_URL"]], "capacity": 1000},
    }
}
