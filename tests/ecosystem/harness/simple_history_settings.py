"""The settings with which django-simple-history runs its own tests on SQLite, which are in a function of its script."""

from runtests import get_default_settings

globals().update(get_default_settings())
