"""pytest-django on a small site: the thread, connection and transaction of the tests and the views."""

from __future__ import annotations

import re
from pathlib import Path

from driving import HERE, LIMIT, started

EXPECTED = {
    "test_sync_view": "PASSED",
    "test_async_view": "PASSED",
    "test_async_client": "PASSED",
    "test_gather": "PASSED",
    "test_live_server": "PASSED",
    "test_each_test_has_an_empty_database": "PASSED",
    "test_rollback": "PASSED",
    "test_signal": "PASSED",
    "test_orm_in_coroutine_is_refused": "PASSED",
    "test_database_is_blocked": "XFAIL",
}


def test_outcomes(tmp_path: Path) -> None:
    site = HERE / "pytest_django_site"
    command = f"pytest -v -p no:cacheprovider -c {site}/site.ini {site}/notes_tests.py"
    with started(command, tmp_path) as program:
        status = program.process.wait(LIMIT)
        told = dict(re.findall(r"::(\w+) (PASSED|FAILED|ERROR|XFAIL|SKIPPED)", program.log))
        assert told == EXPECTED, program.log
        assert status == 0
