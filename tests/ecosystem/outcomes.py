"""Outcomes of a run, test by test, and the comparison of the runs with two packages."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

Outcomes = Mapping[str, str]

# A test has several reports, of its phases and its parts. The worst one counts.
_ORDER = ["passed", "xfailed", "skipped", "failed"]


@dataclass
class Run:
    """The report of one run of a project's tests."""

    outcomes: dict[str, str] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    finished: bool = False

    @property
    def counts(self) -> dict[str, int]:
        return dict(Counter(self.outcomes.values()))

    def describe(self) -> str:
        told = ", ".join(f"{count:,} {outcome}" for outcome, count in sorted(self.counts.items()))
        return (told or "no tests") + ("" if self.finished else ", did not finish")


def read(log: Path, seconds: float) -> Run:
    """Return the run that wrote *log*, with one JSON object in each line, as pytest-reportlog writes it."""
    run = Run(seconds=seconds)
    for line in log.read_text().splitlines() if log.exists() else ():
        report = json.loads(line)
        if "exitstatus" in report:
            run.finished = True
        if "outcome" not in report or (report["$report_type"] == "CollectReport" and report["outcome"] == "passed"):
            continue
        name, outcome = report["nodeid"], report["outcome"]
        if "wasxfail" in report:
            outcome = "xfailed" if outcome == "skipped" else outcome
        known = run.outcomes.get(name, "passed")
        run.outcomes[name] = max(known, outcome, key=_ORDER.index)
        if outcome == "failed":
            run.texts.setdefault(name, _text(report.get("longrepr")))
    return run


def _text(representation: object) -> str:
    if isinstance(representation, dict) and isinstance(crash := representation.get("reprcrash"), dict):
        return str(crash.get("message"))
    return str(representation)


@dataclass
class Comparison:
    """The outcomes of the same tests with this package and with upstream's, over all runs of each."""

    # Tests that always have the one outcome with this package and always the other with upstream's: both outcomes.
    differing: dict[str, tuple[str, str]] = field(default_factory=dict)
    # Tests whose outcome varies with one of the packages: their outcomes with this package, and with upstream's.
    unstable: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = field(default_factory=dict)
    # Tests that fail every time with both packages.
    failing: list[str] = field(default_factory=list)


def differing(ours: Outcomes, upstream: Outcomes) -> list[str]:
    """Return the tests that ended differently, or were run with one package only."""
    return sorted(name for name in ours.keys() | upstream.keys() if ours.get(name) != upstream.get(name))


def compare(ours: Sequence[Outcomes], upstream: Sequence[Outcomes]) -> Comparison:
    """Compare the first run of all tests with each package, and further runs of the tests that differed."""
    comparison = Comparison()
    different = differing(ours[0], upstream[0])
    for name in different:
        mine = tuple(run.get(name, "missing") for run in ours)
        theirs = tuple(run.get(name, "missing") for run in upstream)
        if len(set(mine)) == len(set(theirs)) == 1:
            comparison.differing[name] = mine[0], theirs[0]
        else:
            comparison.unstable[name] = mine, theirs
    alike = ours[0].keys() - set(different)
    comparison.failing = sorted(name for name in alike if ours[0][name] == "failed")
    return comparison
