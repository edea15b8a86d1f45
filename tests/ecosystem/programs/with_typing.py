"""mypy and pyright over a typed Django project, with django-stubs."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from driving import HERE, LIMIT, started

PROJECT = HERE / "typed_site"
# The expected types, in the order of their lines.
REVEALED = json.loads((PROJECT / "revealed.json").read_text())


@pytest.mark.parametrize("checker", ["mypy", "pyright"])
def test_project_has_no_errors(checker: str, tmp_path: Path) -> None:
    python = Path(sys.executable)
    command = {
        "mypy": f"mypy --config-file {PROJECT}/mypy.ini --cache-dir {tmp_path} {PROJECT}/views.py",
        "pyright": f"pyright --pythonpath {python} {PROJECT}/views.py",
    }[checker]
    with started(command, HERE) as program:
        status = program.process.wait(5 * LIMIT)
        log = program.log
    assert REVEALED[checker] == re.findall(r'(?:Revealed type is|Type of ".*" is) "(.*)"', log), log
    assert status == 0, log
