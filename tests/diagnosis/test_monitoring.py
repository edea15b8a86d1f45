"""The recipes of docs/guides/monitoring.rst, each in a separate process, with the real libraries."""

from __future__ import annotations

import dataclasses

import pytest

from asgiref.sync import BridgeStatistics

from ..helpers import code_of_guide, output_of

pytestmark = pytest.mark.slow

SHOW_PROMETHEUS = """
from prometheus_client import generate_latest
def show():
    lines = generate_latest().decode().splitlines()
    print(*sorted(line for line in lines if line.startswith("asgiref_")), sep="\\n")
"""

BEFORE_OPENTELEMETRY = """
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
reader = InMemoryMetricReader()
provider = MeterProvider([reader])
metrics.set_meter_provider(provider)
"""

SHOW_OPENTELEMETRY = """
def show():
    lines = []
    for resource in reader.get_metrics_data().resource_metrics:
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                for point in metric.data.data_points:
                    lines.append(" ".join([metric.name, *point.attributes.values(), f"{point.value:.1f}"]))
    print(*sorted(lines), sep="\\n")
    provider.shutdown()
"""

IN_A_BLOCK = """
ThreadSensitiveContext.max_threads = 5
async def main():
    async with ThreadSensitiveContext():
        await sync_to_async(int)()
        show()
asyncio.run(main())
"""

NAMES = [field.name for field in dataclasses.fields(BridgeStatistics)]
OTHERS = [name for name in NAMES if not name.endswith("_threads") or name == "max_threads"]
SERVED = [name.removesuffix("_threads") for name in NAMES if name not in OTHERS]
SUFFIXES = {"threads_started": "_total", "longest_wait": "_seconds"}


def value(name: str) -> str:
    """Return the number in the block: one worker, with this use."""
    return {"context": "1.0", "threads_started": "1.0", "max_threads": "5.0"}.get(name, "0.0")


def test_prometheus() -> None:
    pytest.importorskip("prometheus_client")
    expected = [
        *[f'asgiref_threads{{serves="{served}"}} {value(served)}' for served in SERVED],
        *[f"asgiref_{name}{SUFFIXES.get(name, '')} {value(name)}" for name in OTHERS],
    ]
    assert sorted(expected) == output_of(code_of_guide("monitoring", "import math") + SHOW_PROMETHEUS + IN_A_BLOCK)


def test_opentelemetry() -> None:
    pytest.importorskip("opentelemetry.sdk")
    expected = [
        *[f"asgiref.threads {served} {value(served)}" for served in SERVED],
        *[f"asgiref.{name} {value(name)}" for name in OTHERS],
    ]
    code = BEFORE_OPENTELEMETRY + code_of_guide("monitoring", "from opentelemetry") + SHOW_OPENTELEMETRY + IN_A_BLOCK
    assert sorted(expected) == output_of(code)
