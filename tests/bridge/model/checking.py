"""Comparison of what happened with what must happen."""

from __future__ import annotations

import sys
from typing import Any

from .reference import ANY, Look, Trace

__all__ = ["check"]

# Where asyncio's tasks are written in Python, as on PyPy, ``sys.exc_info`` also shows exceptions that they handle.
SHOWS_HANDLED = sys.implementation.name == "cpython"


def check(expected: Trace, actual: Trace) -> None:
    """Raise ``AssertionError`` if *actual* differs from *expected*."""
    expected = {name: trace for name, trace in expected.items() if name in actual or not _may_be_missing(trace)}
    assert expected.keys() == actual.keys(), (
        f"only expected {expected.keys() - actual.keys()}, only got {actual.keys() - expected.keys()}"
    )
    threads: dict[str, Any] = {}
    loops: dict[str, Any] = {}
    looks = []
    for name in expected:
        kinds = [_without_looks(trace[name]) for trace in (expected, actual)]
        assert kinds[0] == kinds[1], f"in {name}, expected {kinds[0]}, got {kinds[1]}"
        for must, was in zip(expected[name], actual[name], strict=True):
            if isinstance(must, Look):
                looks.append((name, must, was))
                _same_thing(threads, must.thread, was.thread, f"{name} ran on another thread: {must}, {was}")
                _same_thing(loops, must.loop, was.loop, f"{name} ran on another loop: {must}, {was}")
                assert must.handled is ANY or must.handled == was.handled or not SHOWS_HANDLED, (
                    f"in {name}, {must}, {was}"
                )
                for variable, value in must.values.items():
                    assert value is ANY or value == was.values[variable], f"{variable} in {name}: {must}, {was}"
    for name, must, was in looks:
        for other in must.others:
            assert was.thread != threads.get(other), f"{name} ran on the thread of {other}: {must}"
    assert len(set(map(id, loops.values()))) == len(loops), f"two of these loops are one: {loops}"


def _may_be_missing(trace: list[Any]) -> bool:
    return isinstance(trace[0], Look) and trace[0].may_be_missing


def _without_looks(trace: list[Any]) -> list[Any]:
    return ["look" if isinstance(item, Look) else item for item in trace]


def _same_thing(known: dict[str, Any], name: str | None, thing: Any, message: str) -> None:
    if name is None or thing is None:
        assert name is thing, message
    elif known.setdefault(name, thing) is not thing and known[name] != thing:
        raise AssertionError(message)
