"""Measure this package: against upstream's, against what others offer, and against the least that its work needs.

All ways to do the same work take turns of some milliseconds, each in its own process, on one
CPU. The output has medians, and medians of the ratios of adjacent turns. Nothing is
installed: ways whose packages are missing are omitted and reported.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path

if missing := [name for name in ("matplotlib", "rich") if importlib.util.find_spec(name) is None]:
    sys.exit(f"{', '.join(missing)} not installed; run: python -m pip install '.[benchmarks]'")

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from . import plots, report, run
from .cases import UPSTREAM, Row
from .run import AnyRow, Options, Run
from .targets import TARGETS, regressions


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--upstream", metavar="PYTHON", help="compare with the asgiref of this interpreter")
    parser.add_argument("--only", metavar="TEXT", default="", help="only rows or families whose name contains this")
    parser.add_argument("--quick", action="store_true", help="a tenth of the time for each row")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a row is much slower than it should be")
    parser.add_argument("--json", metavar="FILE", type=Path, help="save the results")
    parser.add_argument("--read", metavar="FILE", type=Path, nargs="+", help="read saved runs instead of measuring")
    parser.add_argument("--plots", metavar="DIR", type=Path, help="draw plots of the first run")
    parser.add_argument(
        "--rst", metavar="FILE", type=Path, nargs="+", help="write all runs' tables between the marks in these files"
    )
    arguments = parser.parse_args()
    if arguments.check and not arguments.upstream:
        parser.error("--check compares with upstream's package; add --upstream PYTHON, an interpreter that has it")
    return arguments


def choose(arguments: argparse.Namespace) -> list[AnyRow]:
    judged = {target.row for target in TARGETS if target.way == UPSTREAM}
    text = arguments.only.lower()
    return [
        row
        for row in run.rows()
        if text in f"{row.family}: {row.name}".lower()
        and (not arguments.check or (isinstance(row, Row) and row.name in judged))
    ]


def measure(chosen: list[AnyRow], options: Options) -> Run:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=len(chosen))

        def advance(name: str) -> None:
            progress.update(task, description=name, advance=1)

        return run.measure(chosen, options, advance)


def main() -> int:
    arguments = parse()
    console = Console() if sys.stdout.isatty() else Console(width=140)
    if arguments.read:
        runs = [run.read(file) for file in arguments.read]
    elif chosen := choose(arguments):
        runs = [measure(chosen, Options(arguments.upstream, arguments.quick, arguments.check))]
    else:
        sys.exit(f"no row has {arguments.only!r} in its name")
    if arguments.json:
        runs[0].save(arguments.json)
    if arguments.plots:
        plots.draw(runs[0], arguments.plots)
    if arguments.rst:
        report.update(arguments.rst, runs)
    slow = []
    for each in runs:
        report.show(each, console)
        slow += regressions(each.costs()) if arguments.check else []
        slow += each.failures()
    for line in slow:
        print(line, file=sys.stderr)
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())
