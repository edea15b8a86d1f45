"""One run of the benchmarks: the results, the machine and the versions."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import platform
import tempfile
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import cases, django_http, servers, turns, wsgi
from .cases import HERE, UPSTREAM, Row
from .servers import ServedRow
from .turns import Cost, Failed, Processes
from .wsgi import TransferRow

DISTRIBUTIONS = (
    "anyio", "a2wsgi", "uvicorn", "uvloop", "httptools", "hypercorn", "daphne", "granian", "waitress", "gunicorn",
    "flask", "django",
)  # fmt: skip


@dataclass
class Result:
    """The costs of the ways of a row, in *unit*, and reasons for those not measured."""

    unit: str
    costs: dict[str, Cost] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


@dataclass
class Run:
    """Results by family and row, with the machine and the versions."""

    facts: dict[str, str] = field(default_factory=lambda: environment())
    families: dict[str, dict[str, Result]] = field(default_factory=dict)

    def costs(self) -> dict[str, dict[str, Cost]]:
        return {name: result.costs for rows in self.families.values() for name, result in rows.items()}

    def failures(self) -> list[str]:
        """Return reasons for rows of this package that were not measured; other ways may fail or be missing."""
        return [
            f"{name}: {result.failed[HERE]}"
            for rows in self.families.values()
            for name, result in rows.items()
            if HERE in result.failed
        ]

    def save(self, file: Path) -> None:
        file.write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n")


def read(file: Path) -> Run:
    found = json.loads(file.read_text())
    return Run(found["facts"], {family: _results(rows) for family, rows in found["families"].items()})


def _results(rows: dict[str, Any]) -> dict[str, Result]:
    return {
        name: Result(row["unit"], {way: Cost(**cost) for way, cost in row["costs"].items()}, row["failed"])
        for name, row in rows.items()
    }


def environment() -> dict[str, str]:
    cpu = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n")
        cpu = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    versions = []
    for name in DISTRIBUTIONS:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            pass
    return {
        "cpu": f"{os.cpu_count()} of {cpu}",
        "system": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "with": ", ".join(versions),
    }


@dataclass
class Options:
    """The comparison and the duration."""

    upstream: str | None
    quick: bool
    # Whether to compare with upstream only.
    check: bool = False

    def ways(self) -> tuple[str, ...]:
        return (HERE,) if self.upstream is None else (HERE, UPSTREAM)


AnyRow = Row | ServedRow | TransferRow


def rows() -> list[AnyRow]:
    return [*cases.load().values(), *django_http.ROWS, *wsgi.ROWS, *wsgi.TRANSFERS]


def measure(chosen: Iterable[AnyRow], options: Options, advance: Callable[[str], None]) -> Run:
    run = Run()
    for way in options.ways():
        run.facts[way] = turns.version_of(way, options.upstream)
    with ExitStack() as stack:
        processes = stack.enter_context(turns.processes(options.upstream))
        plan = servers.Plan(
            rounds=2 if options.quick else 6,
            upstream=options.upstream,
            directory=Path(stack.enter_context(tempfile.TemporaryDirectory())),
            large=(64 if options.quick else 1024) * wsgi.MIB,
        )
        for row in chosen:
            advance(row.name)
            results = run.families.get(row.family)
            if results is None:
                processes.close()  # new processes for each family
                results = run.families[row.family] = {}
            if isinstance(row, Row):
                measured = _measure_in_turns(row, processes, options)
            elif isinstance(row, ServedRow):
                measured = servers.measure(row, plan)
            else:
                measured = wsgi.measure_transfer(row, plan)
            results[row.name] = Result(row.unit, *measured)
    return run


def _measure_in_turns(row: Row, processes: Processes, options: Options) -> tuple[dict[str, Cost], dict[str, str]]:
    ways = [way for way in row.ways if way in options.ways() or (way != UPSTREAM and not options.check)]
    failed = {
        way: f"{module} not installed"
        for way in ways
        if (module := cases.needs.get(way)) is not None and importlib.util.find_spec(module) is None
    }
    try:
        seconds = 0.25 if options.quick else 2.5
        return turns.measure(row, [way for way in ways if way not in failed], processes, seconds), failed
    except Failed as reason:
        processes.close()
        return {}, failed | {HERE: str(reason)}
