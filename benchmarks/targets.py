"""Targets. Each compares this package with another way of the same row, in the same rounds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from . import async_to_sync, contexts, django_http, imports, local, memory, steps, sync_to_async, to_sync_steps
from .cases import UPSTREAM
from .turns import Cost

# A ratio to upstream below this part of its target, or of 1 without a target, is a regression.
MARGIN = 0.6


@dataclass(frozen=True)
class Target:
    """One of: *times* as fast as *way*; *within* this many times its cost; at most *more* microseconds above it.

    *within* 1 is met if 1 is in the 95 % confidence interval of the median.
    """

    row: str
    way: str
    times: float | None = None
    within: float | None = None
    more: float | None = None

    def aim(self) -> str:
        if self.times is not None:
            return f"at least {self.times:g} times as fast"
        if self.within is not None:
            return "no more, within noise" if self.within == 1 else f"at most {self.within:g} times"
        return f"at most {self.more:g} us more"

    def measured(self, cost: Cost) -> str:
        if self.times is not None:
            return f"{cost.times[1]:.2f}"
        if self.within is not None:
            return f"{1 / cost.times[1]:.2f}"
        return f"{cost.more:.2f} us"

    def met(self, cost: Cost) -> bool:
        low, median, high = cost.times
        if self.times is not None:
            return median >= self.times
        if self.within is not None:
            noise = 1.57 * (high - low) / math.sqrt(cost.rounds) if self.within == 1 else 0
            return median + noise >= 1 / self.within
        assert self.more is not None
        return cost.more <= self.more


def local_targets() -> list[Target]:
    kinds = ((local.PLAIN, (2.5, 6, 1.5)), (local.CRITICAL, (3.5, 3, 2)))
    return [
        Target(local.name(kind, operation, place), local.THREADING, within=within)
        for kind, limits in kinds
        for operation, within in zip(local.STATEMENTS, limits, strict=True)
        for place in local.PLACES
    ]


TARGETS = [
    Target(sync_to_async.ONE, UPSTREAM, times=1.9),
    Target(sync_to_async.ONE, sync_to_async.HOP, within=1.2),
    Target(sync_to_async.MANY, UPSTREAM, times=4.3),
    Target(sync_to_async.MANY, sync_to_async.TO_THREAD, times=2.8),
    Target(sync_to_async.MANY, sync_to_async.HOP, within=1.5),
    Target(sync_to_async.INSENSITIVE_ONE, sync_to_async.TO_THREAD, within=1),
    Target(sync_to_async.INSENSITIVE_MANY, sync_to_async.TO_THREAD, within=1),
    Target(sync_to_async.MAIN_THREAD, UPSTREAM, times=1.8),
    Target(sync_to_async.DEEP, UPSTREAM, times=1.6),
    Target(sync_to_async.FAILING, UPSTREAM, times=1.9),
    Target(sync_to_async.VARIABLES, sync_to_async.NONE, more=4),
    Target(sync_to_async.ASK, sync_to_async.HOP, times=100),
    Target(sync_to_async.WRAP, UPSTREAM, times=3),
    Target(sync_to_async.WRAP_METHOD, UPSTREAM, times=3),
    Target(steps.ITEM, steps.NEXT, within=1.05),
    Target(steps.ITEM, steps.STARLETTE, times=2.5),
    Target(steps.AHEAD, steps.STARLETTE, times=50),
    Target(steps.AHEAD, sync_to_async.HOP, times=10),
    Target(steps.BLOCK, steps.TWO_CALLS, within=1.1),
    Target(contexts.ONE, UPSTREAM, times=8),
    Target(contexts.MANY, UPSTREAM, times=10),
    Target(async_to_sync.TOP, UPSTREAM, times=2.5),
    Target(async_to_sync.TOP, async_to_sync.RUN, within=1.5),
    Target(async_to_sync.BLOCK, UPSTREAM, times=4.2),
    Target(async_to_sync.BLOCK, async_to_sync.PORTAL, times=2.5),
    Target(async_to_sync.WRAP, UPSTREAM, times=1.3),
    Target(async_to_sync.WRAP_METHOD, UPSTREAM, times=1.3),
    Target(async_to_sync.NESTED, UPSTREAM, times=1.1),
    Target(async_to_sync.NESTED, async_to_sync.FROM_THREAD, times=1.3),
    Target(to_sync_steps.ONE, to_sync_steps.ANEXT, within=1.1),
    Target(to_sync_steps.AHEAD, to_sync_steps.NOT_AHEAD, times=8),
    Target(to_sync_steps.MANAGER, to_sync_steps.TWO_CALLS, within=1.1),
    *local_targets(),
    *[Target(django_http.asgi_name(view), UPSTREAM, times=2.2) for view in ("async", "sync", "SQLite")],
    Target(django_http.asgi_name("sync"), django_http.GTHREAD, times=0.75),
    Target(django_http.wsgi_name("async"), UPSTREAM, times=1.4),
    Target(memory.SENSITIVE, UPSTREAM, within=1),
    Target(memory.INSENSITIVE, UPSTREAM, within=1),
    Target(imports.IMPORT, UPSTREAM, within=1),
]


def regressions(results: Mapping[str, Mapping[str, Cost]]) -> list[str]:
    """Return a line for each row of *results* that is much slower than its target, or than upstream."""
    least = {target.row: target.times for target in TARGETS if target.way == UPSTREAM and target.times is not None}
    lines = []
    for row, costs in results.items():
        if UPSTREAM in costs:
            times, floor = costs[UPSTREAM].times[1], MARGIN * least.get(row, 1)
            if times < floor:
                lines.append(f"{row}: {times:.2f} times as fast as upstream's, and {floor:.2f} is the least")
    return lines
