"""Results: a file for each project, the tables that the documentation includes, and the table of a run."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from .environments import ROOT, UPSTREAM, commit
from .outcomes import Comparison, Run
from .projects import Project, load

RESULTS = ROOT / "docs" / "ecosystem"
TABLE = RESULTS / "table.txt"

_SHOWN = ["passed", "failed", "skipped", "xfailed"]
_UNKNOWN = "No reason is known."


@dataclass(frozen=True)
class Result:
    """The results of a project, and the reasons in its description."""

    key: str
    date: str
    machine: str
    # Of this package: the last one that changed it.
    commit: str
    versions: dict[str, str]
    seconds: dict[str, float]
    counts: dict[str, dict[str, int]]
    finished: bool
    failing: list[str]
    differing: dict[str, tuple[str, str]]
    unstable: dict[str, tuple[tuple[str, ...], tuple[str, ...]]]

    @classmethod
    def of(cls, project: Project, versions: dict[str, str], runs: Mapping[str, Run], comparison: Comparison) -> Result:
        return cls(
            key=project.key,
            date=time.strftime("%Y-%m-%d"),
            machine=f"{os.cpu_count()} CPUs, {platform.system()} on {platform.machine()}, "
            f"{platform.python_implementation()} {platform.python_version()}",
            commit=commit(),
            versions=versions,
            seconds={package: round(run.seconds, 1) for package, run in runs.items()},
            counts={package: dict(sorted(run.counts.items())) for package, run in runs.items()},
            finished=all(run.finished and "passed" in run.counts for run in runs.values()),
            failing=comparison.failing,
            differing=comparison.differing,
            unstable=comparison.unstable,
        )

    @property
    def project(self) -> Project:
        return load(self.key)

    @property
    def unexplained(self) -> list[str]:
        """Tests that differ, or fail, without a reason in the description."""
        differs, fails = self._reasons
        found = [f"differs: {name}" for name in self.differing if name not in differs]
        return found + [f"fails with both: {name}" for name in self.failing if name not in fails]

    @property
    def _reasons(self) -> tuple[Mapping[str, str], Mapping[str, str]]:
        """Return the reasons of tests that differ, and of tests that fail."""
        return {**self.project.varies, **self.project.differs}, {**self.project.varies, **self.project.fails}

    @property
    def alike(self) -> bool:
        """Whether the project has the same results with both packages, except for those described."""
        return self.finished and not self.differing.keys() - self._reasons[0].keys()

    @property
    def verdict(self) -> str:
        if not self.finished:
            return "did not finish"
        parts = []
        if self.differing:
            parts.append(f"{len(self.differing)} differ")
        if self.failing:
            parts.append(f"{len(self.failing)} fail with both")
        if self.unstable:
            parts.append(f"{len(self.unstable)} unstable")
        return ", ".join(parts) or "no difference"

    def notes(self) -> list[str]:
        """One sentence for each reason, with its tests."""
        differs, fails = self._reasons
        lines = []
        for what, names, reasons in (("Differs", self.differing, differs), ("Fails with both", self.failing, fails)):
            for reason in dict.fromkeys(reasons.get(name, _UNKNOWN) for name in names):
                concerned = [name for name in names if reasons.get(name, _UNKNOWN) == reason]
                lines.append(f"{what}: {_listed(concerned)}. {reason}")
        for name, (mine, theirs) in self.unstable.items():
            reason = self.project.varies.get(name, "")
            told = f"Upstream: {', '.join(theirs)}. This package: {', '.join(mine)}. {reason}"
            lines.append(f"Unstable: ``{name}``. {told}".rstrip())
        return lines

    def record(self) -> None:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{self.key}.json").write_text(json.dumps(asdict(self), indent=1) + "\n")


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(f"``{name}``" for name in names[:4])
    return shown + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{counts[outcome]:,} {outcome}" for outcome in _SHOWN if outcome in counts) or "none"


def recorded() -> list[Result]:
    return [Result(**json.loads(path.read_text())) for path in sorted(RESULTS.glob("*.json"))]


def _names(result: Result) -> str:
    """The project with its version, and the versions of other important packages."""
    versions = [f"{name} {version}" for name, version in result.versions.items()]
    if result.project.program:
        return f"**{result.project.name}**: {', '.join(versions)}"
    own, *others = versions
    return f"**{result.project.name} {own.split()[-1]}**" + (f", with {', '.join(others)}" if others else "")


def _table(widths: str, *rows: Sequence[str]) -> list[str]:
    lines = [".. list-table::", "   :header-rows: 1", f"   :widths: {widths}", ""]
    for row in rows:
        lines += [f"   {'* -' if place == 0 else '  -'} {cell}" for place, cell in enumerate(row)]
    return [*lines, ""]


def render(results: Sequence[Result]) -> str:
    """Return the tables for the documentation."""
    tests = sum(sum(result.counts["ours"].values()) for result in results)
    programs = sum(bool(result.project.program) for result in results)
    differing = [pair for result in results for pair in result.differing.values()]
    only_ours = sum(ours == "passed" for ours, _ in differing)
    only_upstream = sum(upstream == "passed" for _, upstream in differing)
    summary = f"{tests:,} tests, of {len(results) - programs} test suites and {programs} programs. "
    summary += f"{only_ours} of them pass only with this package, {only_upstream} only with upstream, "
    summary += "for the reasons below."
    lines = [".. This file is written by ``python -m tests.ecosystem --record``.", "", summary, ""]
    for heading, of_ours in (("Test suites of the projects", False), ("Programs written for this comparison", True)):
        chosen = [result for result in results if bool(result.project.program) == of_ours]
        if not chosen:
            continue
        rows = [
            (
                _names(result),
                result.project.what,
                *(_counted(result.counts[package]) for package in ("upstream", "ours")),
                result.verdict,
            )
            for result in chosen
        ]
        lines += [heading, "~" * len(heading), ""]
        lines += _table("26 29 15 15 15", ("project", "what was run", "upstream", "this package", "comparison"), *rows)
        for result in chosen:
            if notes := result.notes():
                lines += [f"{result.project.name}, {result.project.what}:", "", *(f"* {note}" for note in notes), ""]
    heading = "Date, machine and duration"
    rows = [
        (
            f"``tox -e ecosystem -- {result.key}``",
            result.date,
            f"``{result.commit}``" if result.commit else "not known",
            *(f"{result.seconds[package]:.0f} s" for package in ("upstream", "ours")),
            result.machine,
        )
        for result in results
    ]
    lines += [heading, "~" * len(heading), ""]
    lines += _table("32 13 12 10 12 21", ("command", "date", "commit", "upstream", "this package", "machine"), *rows)
    return "\n".join(lines)


def write_table() -> None:
    TABLE.write_text(render(recorded()))


def show(results: Sequence[Result], left_out: Mapping[str, str]) -> None:
    """Print the table of a run, and below it the unexplained results."""
    # Only the runner needs it; the documentation's table is checked without.
    from rich.console import Console
    from rich.table import Table

    table = Table("project", "versions", f"upstream's {UPSTREAM}", "ours", "seconds", "outcome")
    for result in results:
        versions = ", ".join(f"{name} {version}" for name, version in result.versions.items())
        counts = [_counted(result.counts[package]) for package in ("upstream", "ours")]
        seconds = ", ".join(f"{result.seconds[package]:.0f}" for package in ("upstream", "ours"))
        table.add_row(result.key, versions, *counts, seconds, result.verdict)
    for key, reason in left_out.items():
        table.add_row(key, "", "", "", "", f"skipped: {reason}")
    Console(width=140).print(table)
    for result in results:
        for note in result.notes():
            print(f"{result.key}: {note}")
        for name in result.unexplained:
            print(f"{result.key}: NOT EXPLAINED: {name}")
