"""Runs as tables, for the terminal and for the documentation."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from . import plots
from .cases import HERE
from .run import Result, Run
from .targets import TARGETS, Target
from .turns import Cost

FACTS = "machine"
JUDGED = "targets"
COSTS = "costs"


def digits(value: float) -> str:
    """Return *value* with three digits."""
    return f"{value:.0f}" if value >= 100 else f"{value:.{1 if value >= 10 else 2 if value >= 1 else 3}f}"


def figure(result: Result, cost: Cost) -> str:
    return digits(1e6 / cost.median if result.unit == "requests/s" else cost.median)


def show(run: Run, console: Console) -> None:
    console.print(*facts(run), sep="\n", highlight=False)
    for family, rows in run.families.items():
        table = Table("way", "", "CPU, us", "way / here", "quartiles", title=family, title_justify="left", box=None)
        for column in table.columns[1:]:
            column.justify = "right"
        for name, result in rows.items():
            table.add_row(f"[bold]{name}[/]", result.unit)
            for way, cost in result.costs.items():
                low, median, high = cost.times
                compared = () if way == HERE else (f"{median:.2f}", f"{low:.2f}-{high:.2f}")
                table.add_row(f"  {way}", figure(result, cost), digits(cost.cpu) if cost.cpu else "", *compared)
            for way, reason in result.failed.items():
                table.add_row(f"  {way}", "", "", f"[red]{reason}[/]")
        console.print(table)
    judged = Table("case", "against", "target", "measured", "met", title="targets", title_justify="left", box=None)
    for target, cost in judge(run):
        met = "yes" if target.met(cost) else "[red]no[/]"
        judged.add_row(target.row, target.way, target.aim(), target.measured(cost), met)
    if judged.rows:
        console.print(judged)


def facts(run: Run) -> Iterator[str]:
    return (f"{name}: {fact}" for name, fact in run.facts.items())


def judge(run: Run) -> Iterator[tuple[Target, Cost]]:
    costs = run.costs()
    for target in TARGETS:
        if (cost := costs.get(target.row, {}).get(target.way)) is not None:
            yield target, cost


def update(file: Path, runs: Sequence[Run]) -> None:
    """Replace what stands between the marks in *file*, which are comments, by what *runs* have found."""
    text = file.read_text()
    for mark, lines in ((FACTS, facts_rst(runs)), (JUDGED, targets_rst(runs)), (COSTS, costs_rst(runs, file.parent))):
        begin, end = f".. begin {mark}\n", f".. end {mark}\n"
        before, begun, rest = text.partition(begin)
        _, ended, after = rest.partition(end)
        if not begun or not ended:
            raise ValueError(f"{file} has no place for {mark}")
        text = "\n".join([before + begin, *lines, end + after])
    file.write_text(text)


def facts_rst(runs: Sequence[Run]) -> Iterator[str]:
    """Return a list of the facts, each once where all runs share it."""
    for name in dict.fromkeys(name for run in runs for name in run.facts):
        values = dict.fromkeys(run.facts[name] for run in runs if name in run.facts)
        yield f"* {name}: {'; '.join(values)}"
    yield ""


def targets_rst(runs: Sequence[Run]) -> Iterator[str]:
    judged = [dict(judge(run)) for run in runs]
    rows = []
    for target in TARGETS:
        cells = []
        for costs in judged:
            if (cost := costs.get(target)) is None:
                cells += ["", ""]
            else:
                cells += [target.measured(cost), "yes" if target.met(cost) else "**no**"]
        if any(cells):
            rows.append([target.row, target.way, target.aim(), *cells])
    yield from table_rst(["work", "against", "target", *both("Python", "met", runs)], rows)


def costs_rst(runs: Sequence[Run], directory: Path) -> Iterator[str]:
    """Return the lines of the tables, each below the plots of its family that are found below *directory*."""
    for family in dict.fromkeys(family for run in runs for family in run.families):
        found = [run.families.get(family, {}) for run in runs]
        rows = []
        for name in dict.fromkeys(name for each in found for name in each):
            results = [each.get(name, Result("")) for each in found]
            unit = next(result.unit for result in results if result.unit)
            label = f"{name}, {unit}"
            for way in dict.fromkeys(way for result in results for way in (*result.costs, *result.failed)):
                cells = [cell for result in results for cell in cells_rst(result, way)]
                # Options are code, or two dashes become a long one.
                rows.append([label, f"``{way}``" if "--" in way else way, *cells])
                label = ""
        yield from (family, "~" * len(family), "")
        for plot in plots.files(family, directory):
            yield from (".. container:: plot", "")
            yield from ("   .. raw:: html", f"      :file: {plot.relative_to(directory)}", "")
        yield from table_rst(["work", "way", *both("Python", "way / here", runs)], rows)


def cells_rst(result: Result, way: str) -> tuple[str, str]:
    if way in result.costs:
        cost = result.costs[way]
        return figure(result, cost), "" if way == HERE else f"{cost.times[1]:.2f}"
    return result.failed.get(way, ""), ""


def both(first: str, second: str, runs: Iterable[Run]) -> list[str]:
    return [title for run in runs for title in (f"{first} {run.facts['python'].split()[-1]}", second)]


def table_rst(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    output = io.StringIO()
    csv.writer(output, lineterminator="\n").writerows([header, *rows])
    yield from (".. csv-table::", "   :class: figures", "   :header-rows: 1", "   :widths: auto", "")
    yield from (f"   {line}" for line in output.getvalue().splitlines())
    yield ""
