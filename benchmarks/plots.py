"""Runs as plots for HTML pages: text stays text, and has the colour of the page's text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, ScalarFormatter

from .cases import HERE, UPSTREAM
from .gains import gains
from .growth import CALLS, CONTEXTS, calls_name, contexts_name
from .run import Result, Run

# At most this many ways in one plot; the tables have all.
SERIES = 6
# Values that differ by less than this factor are on a linear axis from zero.
LINEAR = 5
# For families with more ways of equal rank: the ways to draw.
SHOWN = {
    "WSGI": (
        *(HERE, "a2wsgi", "uvicorn --interface wsgi"),
        *("waitress, 8 threads", "gunicorn, 8 threads", "pure ASGI, uvicorn"),
    )
}
FOREGROUND = "#010203"  # replaced by the page's own; nothing else has this colour
# Readable on white and on black.
COLOURS = "#3b82f6", "#ef4444", "#10a37f", "#d97706", "#a855f7", "#ec4899", "#808080"
MARKERS = "osD^vP*"
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
    """Draw a plot for each family of *run*, and one of the gains."""
    directory.mkdir(parents=True, exist_ok=True)
    python = run.facts["python"]
    times = {name: result.costs[UPSTREAM].times[1] for name, result in gains(run)}
    if times:
        with figure(directory / "gains.svg", f"times as fast as upstream, {python}") as drawn:
            bars(drawn, times)
    for family, rows in run.families.items():
        units = dict.fromkeys(result.unit for result in rows.values() if result.costs)
        for number, unit in enumerate(units):
            title = f"{family}, {python}"
            with figure(directory / f"{file_name(family)}{number or ''}.svg", title) as drawn:
                if family == "growth":
                    lines(drawn, rows)
                else:
                    of_unit = {name: result for name, result in rows.items() if result.unit == unit}
                    dots(drawn, family, of_unit, unit)


def files(family: str, directory: Path) -> list[Path]:
    """Return the plots of *family* below *directory*."""
    return sorted(directory.glob(f"*/{file_name(family)}*.svg"))


def file_name(family: str) -> str:
    return family.lower().replace(" ", "_")


def style(ways: list[str]) -> dict[str, tuple[str, str]]:
    """Return a colour and a marker for each way, all different."""
    return dict(zip(ways, zip(COLOURS, MARKERS, strict=True), strict=False))


def ways_to_draw(family: str, rows: dict[str, Result]) -> list[str]:
    """Return this package, upstream, and the ways of most rows, in their order: at most ``SERIES``."""
    found = [way for result in rows.values() for way in result.costs]
    ways = [way for way in dict.fromkeys(found) if way in SHOWN.get(family, found)]
    first = sorted(ways, key=lambda way: (way not in (HERE, UPSTREAM), -found.count(way)))[:SERIES]
    return [way for way in ways if way in first]


def bars(drawn: Figure, times: dict[str, float]) -> None:
    """Draw a bar for each row, from zero, as long as this package is faster than upstream."""
    drawn.set_size_inches(8, 0.8 + 0.3 * len(times))
    axes = drawn.add_subplot()
    places = range(len(times))
    found = axes.barh(places, list(times.values()), height=0.6, color=COLOURS[0])
    axes.bar_label(found, [f"{value:.1f}" for value in times.values()], padding=3, color=FOREGROUND)
    axes.axvline(1, color=FOREGROUND, linewidth=1)
    axes.set_yticks(places, list(times))
    axes.set_ylim(len(times) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.grid(visible=False, axis="y")
    axes.xaxis.set_major_locator(MaxNLocator(steps=[1, 2, 5, 10]))
    axes.set_xlabel("times as fast, or as little memory, as upstream (the line)")


def put_ticks(axis: Any) -> None:
    """Give a logarithmic axis ticks at 1, 2 and 5."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(ScalarFormatter())


def dots(drawn: Figure, family: str, rows: dict[str, Result], unit: str) -> None:
    """Draw a line for each row, and a dot on it for the cost of each way."""
    rows = {name: result for name, result in rows.items() if result.costs}
    ways = ways_to_draw(family, rows)
    drawn.set_size_inches(8, 0.9 + 0.3 * len(rows) + 0.2 * (len(ways) // 3 + 1))
    axes = drawn.add_subplot()
    found = []
    for way, (colour, marker) in style(ways).items():
        places = [place for place, result in enumerate(rows.values()) if way in result.costs]
        values = [result.costs[way].median for result in rows.values() if way in result.costs]
        if unit == "requests/s":
            values = [1e6 / value for value in values]
        axes.plot(values, places, marker, color=colour, label=way, alpha=0.85, clip_on=False)
        found += values
    axes.set_yticks(range(len(rows)), list(rows))
    axes.set_ylim(len(rows) - 0.5, -0.5)
    label = {"us": "microseconds; less is better", "requests/s": "requests per second; more is better"}.get(
        unit, f"{unit}; less is better"
    )
    if max(found) < LINEAR * min(found):
        axes.set_xlim(0, 1.05 * max(found))
        axes.xaxis.set_major_locator(MaxNLocator(steps=[1, 2, 5, 10]))
        axes.set_xlabel(label)
    else:
        axes.set_xscale("log")
        axes.set_xlabel(f"{label}; logarithmic")
        put_ticks(axes.xaxis)
    drawn.legend(loc="outside upper center", ncols=3)


def lines(drawn: Figure, rows: dict[str, Result]) -> None:
    """Draw the cost of a call over the number of concurrent calls."""
    drawn.set_size_inches(8, 3.8)
    kinds = (CALLS, calls_name, "concurrent calls"), (CONTEXTS, contexts_name, "concurrent ThreadSensitiveContexts")
    ways = ways_to_draw("growth", rows)
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
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_locator(NullLocator())
        put_ticks(axes.yaxis)
    drawn.axes[0].set_ylabel("microseconds for each; logarithmic")
    drawn.legend(loc="outside upper center", ncols=4)


@contextmanager
def figure(file: Path, title: str) -> Iterator[Figure]:
    with mpl.rc_context(RC):
        drawn = Figure(layout="constrained")
        yield drawn
        drawn.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    file.write_text(for_a_page(file.read_text(), title))


def for_a_page(svg: str, title: str) -> str:
    """Return *svg* for embedding: in the page's colour, no wider than the page, without a style sheet."""
    svg = svg[svg.index("<svg") :].replace(FOREGROUND, "currentColor")
    svg = re.sub(r'<style type="text/css">.*?</style>', "", svg, flags=re.DOTALL)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg [^>]*?)width="([\d.]+)pt" height="[\d.]+pt"', r'\1style="width: \2pt"', svg, count=1)
    attributes = f'role="img" aria-label="{title}" fill="currentColor" stroke-linejoin="round"'
    return svg.replace("<svg ", f"<svg {attributes} ", 1).replace('style="width:', 'style="max-width: 100%; width:', 1)
