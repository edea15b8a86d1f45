"""Measure this package against upstream's, each in a process of its own, in turns of some milliseconds.

Both processes live together, pinned to one CPU: on two, a hop between threads costs two or
three times more from one moment to the next.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from .cases import CASES

TURN = 0.008  # seconds


class Process:
    """A process that runs cases on demand."""

    def __init__(self, python: str) -> None:
        self.version = subprocess.run(
            [python, "-P", "-c", "import importlib.metadata as m; print(m.version('asgiref'))"],
            check=True, capture_output=True, text=True,
        ).stdout.strip()  # fmt: skip
        script = Path(__file__).with_name("cases.py")
        self._process = subprocess.Popen([python, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self, case: str, count: int) -> tuple[float, float]:
        """Return the wall and CPU time, in seconds, of *count* operations."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps([case, count]), file=self._process.stdin, flush=True)
        wall, cpu = json.loads(self._process.stdout.readline())
        return wall, cpu

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def measure(case: str, ours: Process, theirs: Process, seconds: float) -> dict[str, Any]:
    """Let the two take turns at *case* for *seconds*; return medians in microseconds, and ratios."""
    counts = []
    for process in (ours, theirs):
        count = 1
        while process.run(case, count)[0] < TURN and count < 1_000_000:
            count *= 2
        counts.append(max(100, count) if "100 at once" in case else count)
    turns: list[list[tuple[float, float]]] = [[], []]
    end = time.monotonic() + seconds
    while time.monotonic() < end or len(turns[0]) < 5:
        for process, count, taken in zip((ours, theirs), counts, turns, strict=True):
            wall, cpu = process.run(case, count)
            taken.append((wall / count * 1e6, cpu / count * 1e6))
    ours_wall, theirs_wall = ([wall for wall, _ in taken] for taken in turns)
    low, ratio, high = statistics.quantiles([b / a for a, b in zip(ours_wall, theirs_wall, strict=True)], n=4)
    return {
        "case": case,
        "ours": statistics.median(ours_wall),
        "ours_cpu": statistics.median(cpu for _, cpu in turns[0]),
        "theirs": statistics.median(theirs_wall),
        "theirs_cpu": statistics.median(cpu for _, cpu in turns[1]),
        "ratio": ratio,
        "quartiles": [low, high],
        "turns": len(ours_wall),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--upstream", required=True, metavar="PYTHON", help="interpreter where upstream is installed")
    parser.add_argument("--only", metavar="TEXT", help="run only cases whose name contains this")
    parser.add_argument("--quick", action="store_true", help="half a second for each case in place of five")
    parser.add_argument("--json", action="store_true", help="print JSON in place of a table")
    arguments = parser.parse_args()
    ours, theirs = Process(sys.executable), Process(arguments.upstream)
    results = []
    if not arguments.json:
        print(f"ours {ours.version}, theirs {theirs.version}, Python {platform.python_version()}, one CPU")
        print(f"{'microseconds (CPU)':50} {'ours':>16} {'theirs':>16}  theirs/ours (quartiles)")
    for case in CASES:
        if arguments.only and arguments.only not in case:
            continue
        if sys.stderr.isatty():
            print(f"{case} ...", end="\r", file=sys.stderr, flush=True)
        result = measure(case, ours, theirs, 0.5 if arguments.quick else 5)
        results.append(result)
        if not arguments.json:
            print(
                f"{case:50} {result['ours']:8.2f} ({result['ours_cpu']:5.1f}) "
                f"{result['theirs']:8.2f} ({result['theirs_cpu']:5.1f}) {result['ratio']:8.2f}"
                f"  ({result['quartiles'][0]:.2f}-{result['quartiles'][1]:.2f})"
            )
    if arguments.json:
        print(json.dumps(results, indent=1))
    ours.close()
    theirs.close()


main()
