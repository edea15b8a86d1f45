"""Runs as plots, to be put into pages of HTML as they are: text stays text, and is of the colour of the page's."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter

from .cases import HERE, UPSTREAM
from .growth import CALLS, CONTEXTS, calls_name, contexts_name
from .run import Result, Run

FOREGROUND = "#010203"  # stands for the page's own; a colour that nothing else has
# Readable on white as on black.
COLOURS = "#3b82f6", "#ef4444", "#10a37f", "#d97706", "#a855f7", "#ec4899", "#808080"
MARKERS = "osD^vP*"
LONE_MARKERS = {HERE: "o", UPSTREAM: "X"}
RC: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "asgiref",
    "font.size": 10,
    "text.color": FOREGROUND,
    "axes.edgecolor": FOREGROUND,
    "axes.labelcolor": FOREGROUND,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "grid.color": FOREGROUND,
    "xtick.color": FOREGROUND,
    "ytick.color": FOREGROUND,
    "legend.frameon": False,
    "legend.labelcolor": FOREGROUND,
}


def draw(run: Run, directory: Path) -> None:
    """Draw a plot for each family of *run*."""
    directory.mkdir(parents=True, exist_ok=True)
    python = run.facts["python"]
    for family, rows in run.families.items():
        units = dict.fromkeys(result.unit for result in rows.values() if result.costs)
        for number, unit in enumerate(units):
            title = f"{family}, {python}"
            with figure(directory / f"{file_name(family)}{number or ''}.svg", title) as drawn:
                if family == "growth":
                    lines(drawn, rows)
                else:
                    dots(drawn, {name: result for name, result in rows.items() if result.unit == unit}, unit)


def files(family: str, directory: Path) -> list[Path]:
    """Return the plots of *family* that are found below *directory*."""
    return sorted(directory.glob(f"*/{file_name(family)}*.svg"))


def file_name(family: str) -> str:
    return family.lower().replace(" ", "_")


def style(ways: list[str]) -> dict[str, tuple[str, str]]:
    """Return a colour and a marker for each way, no two of which are the same."""
    shapes = ((colour, marker) for marker in cycle(MARKERS) for colour in COLOURS)
    return dict(zip(ways, shapes, strict=False))


def dots(drawn: Figure, rows: dict[str, Result], unit: str) -> None:
    """Draw a line for each row, and on it a dot for each way, at its cost."""
    rows = {name: result for name, result in rows.items() if result.costs}
    ways = list(dict.fromkeys(way for result in rows.values() for way in result.costs))
    drawn.set_size_inches(8, 0.9 + 0.3 * len(rows) + 0.2 * (len(ways) // 3 + 1))
    axes = drawn.add_subplot()
    for way, (colour, marker) in style(ways).items():
        places = [place for place, result in enumerate(rows.values()) if way in result.costs]
        values = [result.costs[way].median for result in rows.values() if way in result.costs]
        if unit == "requests/s":
            values = [1e6 / value for value in values]
        axes.plot(values, places, marker, color=colour, label=way, alpha=0.85, clip_on=False)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xscale("log")
    axes.set_xlabel({"us": "microseconds; less is better", "requests/s": "requests per second; more is better"}.get(
        unit, f"{unit}; less is better"
    ))  # fmt: skip
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    drawn.legend(loc="outside upper center", ncols=3)


def lines(drawn: Figure, rows: dict[str, Result]) -> None:
    """Draw what a call costs over how many there are."""
    drawn.set_size_inches(8, 3.8)
    kinds = (CALLS, calls_name, "calls at once"), (CONTEXTS, contexts_name, "ThreadSensitiveContexts at once")
    ways = list(dict.fromkeys(way for result in rows.values() for way in result.costs))
    for axes, (sizes, name, label) in zip(drawn.subplots(1, 2), kinds, strict=True):
        for way, (colour, marker) in style(ways).items():
            found = {size: rows[name(size)].costs for size in sizes if name(size) in rows}
            points = [(size, costs[way].median) for size, costs in found.items() if way in costs]
            if points:
                axes.plot(
                    *zip(*points, strict=True),
                    marker=marker,
                    color=colour,
                    label=way if axes.get_subplotspec().is_first_col() else None,
                )
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel(label)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(ScalarFormatter())
            axis.set_minor_formatter(NullFormatter())
    drawn.axes[0].set_ylabel("microseconds for each")
    drawn.legend(loc="outside upper center", ncols=4)


@contextmanager
def figure(file: Path, title: str) -> Iterator[Figure]:
    with mpl.rc_context(RC):
        drawn = Figure(layout="constrained")
        yield drawn
        drawn.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    file.write_text(for_a_page(file.read_text(), title))


def for_a_page(svg: str, title: str) -> str:
    """Return *svg* as part of a page: of its colour and no wider than it, and with no style that reaches beyond."""
    svg = svg[svg.index("<svg") :].replace(FOREGROUND, "currentColor")
    svg = re.sub(r'<style type="text/css">.*?</style>', "", svg, flags=re.DOTALL)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg [^>]*?)width="([\d.]+)pt" height="[\d.]+pt"', r'\1style="width: \2pt"', svg, count=1)
    attributes = f'role="img" aria-label="{title}" fill="currentColor" stroke-linejoin="round"'
    return svg.replace("<svg ", f"<svg {attributes} ", 1).replace('style="width:', 'style="max-width: 100%; width:', 1)
