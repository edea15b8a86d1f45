"""Rounds in which all ways of a row take turns, so that other load on the machine affects all of them."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .cases import HERE, UPSTREAM, Row

ROOT = Path(__file__).parent.parent
TURN = 0.008  # seconds
LEAST_ROUNDS = 5
# The checkout is last on the path: an interpreter with an installed asgiref uses that one.
START = f"import sys; sys.path.append({str(ROOT)!r}); from benchmarks.worker import main; main()"


class Failed(Exception):
    """A way could not be measured."""


def python_for(way: str, upstream: str | None) -> str:
    if way != UPSTREAM:
        return sys.executable
    assert upstream is not None
    return upstream


def environment_for(way: str) -> dict[str, str]:
    """Return the environment in which *way* imports its ``asgiref``."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if way != UPSTREAM:
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    return environment


def version_of(way: str, upstream: str | None) -> str:
    """Return the version of the ``asgiref`` that *way* imports; check that it is the right one."""
    code = "import asgiref; print(asgiref.__version__, asgiref.__file__)"
    command = [python_for(way, upstream), "-P", "-c", code]
    output = subprocess.run(command, env=environment_for(way), check=True, stdout=subprocess.PIPE, text=True).stdout
    version, _, file = output.rstrip().partition(" ")
    if Path(file).is_relative_to(ROOT / "asgiref") != (way != UPSTREAM):
        raise Failed(f"{way} would measure the package in {file}")
    return version


class Process:
    """A process that measures one way."""

    def __init__(self, way: str, upstream: str | None) -> None:
        self._way = way
        self._process = subprocess.Popen(
            [python_for(way, upstream), "-P", "-c", START],
            env=environment_for(way),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def measure(self, row: Row, count: int) -> tuple[float, float, float]:
        """Return the cost and the CPU time of an operation, in the row's unit, and the total time in seconds."""
        assert self._process.stdin is not None
        print(json.dumps([row.name, self._way, count]), file=self._process.stdin, flush=True)
        cost, wall, cpu = self._answer()
        each = 1e6 / count / row.batch
        return (wall * each if cost is None else cost), (cpu * each if cost is None else 0), wall

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise Failed(f"{self._way} ended with status {self._process.wait()}")
        return json.loads(line)

    def close(self) -> None:
        self._process.terminate()
        self._process.communicate()


class Processes(dict[str, Process]):
    """Processes by way, started on first access."""

    def __init__(self, upstream: str | None) -> None:
        super().__init__()
        self._upstream = upstream

    def __missing__(self, way: str) -> Process:
        self[way] = process = Process(way, self._upstream)
        return process

    def close(self) -> None:
        for process in self.values():
            process.close()
        self.clear()


@contextmanager
def processes(upstream: str | None) -> Iterator[Processes]:
    started = Processes(upstream)
    try:
        yield started
    finally:
        started.close()


@dataclass
class Cost:
    """The cost of an operation in one way: medians over the rounds, and ratios to this package in the same rounds."""

    median: float
    cpu: float
    times: list[float]  # the cost divided by this package's: first quartile, median, third quartile
    more: float  # this package's cost minus that of this way
    rounds: int


def costs(rounds: Mapping[str, Sequence[tuple[float, float]]]) -> dict[str, Cost]:
    here = [cost for cost, _ in rounds[HERE]]
    result = {}
    for way, taken in rounds.items():
        pairs = list(zip((cost for cost, _ in taken), here, strict=False))
        ratios = [theirs / ours for theirs, ours in pairs]
        result[way] = Cost(
            median=statistics.median(cost for cost, _ in taken),
            cpu=statistics.median(cpu for _, cpu in taken),
            times=statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3,
            more=statistics.median(ours - theirs for theirs, ours in pairs),
            rounds=len(taken),
        )
    return result


def measure(row: Row, ways: Sequence[str], running: Processes, seconds: float) -> dict[str, Cost]:
    """Let *ways* take turns for *seconds* each, or for the minimum number of rounds if that takes longer."""
    counts = {}
    for way in ways:
        counts[way] = 1
        # Twice: the first time may include an import, and any time may be disturbed by other load.
        while min(running[way].measure(row, counts[way])[2] for _ in range(2)) < TURN and counts[way] < 1_000_000:
            counts[way] *= 2
    rounds: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    end = time.monotonic() + seconds * len(ways)
    number = 0
    while time.monotonic() < end or number < LEAST_ROUNDS:
        for place in range(len(ways)):
            way = ways[(place + number) % len(ways)]  # rotated: no way is always first
            cost, cpu, _ = running[way].measure(row, counts[way])
            rounds[way].append((cost, cpu))
        number += 1
    return costs(rounds)
