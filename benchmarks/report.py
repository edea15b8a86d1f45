"""Runs as tables, for the terminal and for the documentation."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from . import plots
from .cases import HERE, UPSTREAM
from .gains import gains
from .run import Result, Run
from .targets import TARGETS, Target
from .turns import Cost

GAINS = "gains"
FACTS = "machine"
PLOTS = "plots"
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


def update(files: Sequence[Path], runs: Sequence[Run]) -> None:
    """Replace the lines between the marks in *files*, which are comments, by the results of *runs*."""
    parts = {
        GAINS: [*plots_rst("gains", files[0].parent), *gains_rst(runs)],
        FACTS: [*facts_rst(runs)],
        PLOTS: [*families_rst(runs, files[0].parent)],
        JUDGED: [*targets_rst(runs)],
        COSTS: [*costs_rst(runs)],
    }
    for file in files:
        text = file.read_text()
        for mark, lines in parts.copy().items():
            begin, end = f".. begin {mark}\n", f".. end {mark}\n"
            before, begun, rest = text.partition(begin)
            _, ended, after = rest.partition(end)
            if begun and ended:
                text = "\n".join([before + begin, *lines, end + after])
                del parts[mark]
        file.write_text(text)
    if parts:
        raise ValueError(f"{', '.join(map(str, files))}: no place for {', '.join(parts)}")


def gains_rst(runs: Sequence[Run]) -> Iterator[str]:
    header, rows = ["work"], dict[str, list[str]]()
    for run in runs:
        header += [f"here, {run.facts['python'].split()[-1]}", "upstream", "times"]
        for name, result in gains(run):
            here, upstream = result.costs[HERE], result.costs[UPSTREAM]
            cells = [figure(result, here), figure(result, upstream), f"{upstream.times[1]:.1f}"]
            rows.setdefault(f"{name}, {result.unit}", []).extend(cells)
    yield from table_rst(header, [[name, *cells] for name, cells in rows.items() if len(cells) == len(header) - 1])


def facts_rst(runs: Sequence[Run]) -> Iterator[str]:
    """Return a list of the facts, each once if all runs share it."""
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


def plots_rst(family: str, directory: Path) -> Iterator[str]:
    for plot in plots.files(family, directory):
        yield from (".. container:: plot", "")
        yield from ("   .. raw:: html", f"      :file: {plot.relative_to(directory)}", "")


def families_rst(runs: Sequence[Run], directory: Path) -> Iterator[str]:
    """Return the lines of the plots of all families that have some below *directory*."""
    for family in dict.fromkeys(family for run in runs for family in run.families):
        if plots.files(family, directory):
            yield from (family, "~" * len(family), "")
            yield from plots_rst(family, directory)


def costs_rst(runs: Sequence[Run]) -> Iterator[str]:
    """Return the lines of the tables, one for each family."""
    for family in dict.fromkeys(family for run in runs for family in run.families):
        found = [run.families.get(family, {}) for run in runs]
        rows = []
        for name in dict.fromkeys(name for each in found for name in each):
            results = [each.get(name, Result("")) for each in found]
            unit = next(result.unit for result in results if result.unit)
            label = f"{name}, {unit}"
            for way in dict.fromkeys(way for result in results for way in (*result.costs, *result.failed)):
                cells = [cell for result in results for cell in cells_rst(result, way)]
                # As code, because Sphinx turns two dashes into a long one.
                rows.append([label, f"``{way}``" if "--" in way else way, *cells])
                label = ""
        yield from (family, "-" * len(family), "")
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
