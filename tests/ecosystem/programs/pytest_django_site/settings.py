"""Settings, with a database in memory."""

SECRET_KEY = "of a test"
ALLOWED_HOSTS = ["*"]
INSTALLED_APPS = ["pytest_django_site", "django.contrib.staticfiles"]
STATIC_URL = "static/"
ROOT_URLCONF = "pytest_django_site.urls"
DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
