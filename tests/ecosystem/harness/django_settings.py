"""The settings with which Django runs its own tests on SQLite, and the runner that reports."""

# ruff: noqa: F403

from test_sqlite import *

TEST_RUNNER = "django_report.ReportingRunner"
