"""Each way of this package and each limit in the benchmarks runs, and all of them are described."""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import sys
from collections.abc import Mapping

import pytest

from ..helpers import LIMIT, ROOT

sys.path.append(str(ROOT))  # if the suite tests the installed package, the tree is not on the path

from benchmarks import cases
from benchmarks.cases import HERE, UPSTREAM, Row

# These measure by filling the memory, or by starting interpreters.
SLOW_FAMILIES = {"growth", "memory", "import"}

ROWS: Mapping[str, Row] = cases.load()
WAYS = [
    pytest.param(row, way, id=f"{row.name}: {way}")
    for row in ROWS.values()
    for way in row.ways
    if way != UPSTREAM and row.family not in SLOW_FAMILIES
]


@pytest.mark.parametrize(("row", "way"), WAYS)
def test_each_way_runs(row: Row, way: str) -> None:
    module = cases.needs.get(way)
    if module is not None and importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed")
    function = row.ways[way]
    if inspect.iscoroutinefunction(function):
        asyncio.run(asyncio.wait_for(function(1), LIMIT))
    else:
        function(1)


def test_each_row_measures_this_package() -> None:
    assert [] == [name for name, row in ROWS.items() if HERE not in row.ways]
