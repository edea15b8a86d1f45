"""Settings."""

SECRET_KEY = "of a test"
INSTALLED_APPS = ["typed_site"]
DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
