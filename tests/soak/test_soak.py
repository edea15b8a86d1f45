"""The soak run in its short form, and its judgement: which leaks it finds, and what it treats as noise."""

from __future__ import annotations

import mmap
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import asgiref

from ..helpers import LIMIT
from . import run as soak
from .run import BOUNDS, CPYTHON, Family, Sample, Steps, growth, observe, verdict

only_cpython = pytest.mark.skipif(not CPYTHON, reason="others free objects when they please")

# Calls and points of a run here.
COUNT, POINTS = 1000, 8


def grown(samples: list[Sample]) -> list[str]:
    return [name for name, (value, bound) in verdict(samples).items() if value > bound]


def family(call: Callable[[], object]) -> Family:
    def run(steps: Steps) -> None:
        for n in steps:
            for _ in range(n):
                call()

    return Family("planted", "calls", run)


def watch(call: Callable[[], object]) -> list[str]:
    """Return what grows while *call* is called."""
    return grown(observe(family(call), COUNT, POINTS))


def curve(**values: list[Any]) -> list[Sample]:
    """Return samples in which nothing changes except *values*."""
    length = len(next(iter(values.values())))
    still: dict[str, Any] = {"calls": 0, "rate": 1.0, "memory": 20.0, "threads": 2, "descriptors": 5}
    still |= {"objects": 100, "blocks": 1000, "garbage": 0.0}
    return [Sample(**(still | {name: each[i] for name, each in values.items()})) for i in range(length)]


@pytest.mark.slow
@pytest.mark.skipif(sys.gettrace() is not None, reason="coverage's tracer keeps an object for each thread there was")
def test_nothing_grows_in_a_short_run() -> None:
    """Each family makes about a thousand calls, and leaves nothing."""
    process = subprocess.run(
        [sys.executable, "-P", soak.__file__, "--together", "--scale", "0", "--points", str(POINTS)],
        env={**os.environ, "PYTHONPATH": str(Path(asgiref.__file__).parent.parent)},
        capture_output=True,
        text=True,
        timeout=4 * LIMIT,
        check=False,
    )
    assert (process.returncode, process.stderr) == (0, ""), process.stderr + process.stdout
    assert len(soak.FAMILIES) == process.stdout.splitlines().count("steady")


# Planted leaks.


def test_call_that_leaves_nothing_is_steady() -> None:
    assert [] == watch(lambda: [object()])


@only_cpython
def test_object_left_by_each_call_is_found() -> None:
    kept: list[list[object]] = []
    assert ["objects", "blocks"] == watch(lambda: kept.append([]))


@only_cpython
def test_string_left_by_each_call_is_found() -> None:
    """Although the cycle collector does not know strings."""
    kept: list[str] = []
    assert ["blocks"] == watch(lambda: kept.append(f"call {len(kept)}"))


@only_cpython
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="this system tells only the most there ever was")
def test_memory_left_by_each_call_is_found() -> None:
    """Although it is not a block of Python's allocator, but of the system's."""
    # Not from an allocator, which may have kept memory from earlier tests.
    with mmap.mmap(-1, 2 * COUNT * 20_000) as untouched:
        assert ["memory"] == watch(lambda: untouched.write(b"x" * 20_000))


@only_cpython
def test_reference_cycle_of_each_call_is_found() -> None:
    """Although the collector frees it in the end."""

    def call() -> None:
        cycle: list[object] = []
        cycle.append(cycle)

    assert ["garbage"] == watch(call)


@pytest.fixture
def park() -> Iterator[Callable[[], None]]:
    """A function that starts a thread at every fiftieth call, which stays until the test ends."""
    threads: list[threading.Thread] = []
    end = threading.Event()
    calls = iter(range(COUNT))

    def call() -> None:
        if next(calls) % 50 == 0:
            threads.append(threading.Thread(target=end.wait, args=(LIMIT,), daemon=True))
            threads[-1].start()

    yield call
    end.set()
    for thread in threads:
        thread.join(LIMIT)


def test_thread_left_by_every_fiftieth_call_is_found(park: Callable[[], None]) -> None:
    assert "threads" in watch(park)


@pytest.mark.skipif(soak._descriptors() is None, reason="this system does not tell its descriptors")
def test_descriptor_left_by_every_fiftieth_call_is_found() -> None:
    kept: list[int] = []
    calls = iter(range(COUNT))

    def call() -> None:
        if next(calls) % 50 == 0:
            kept.append(os.open(os.devnull, os.O_RDONLY))

    try:
        assert "descriptors" in watch(call)
    finally:
        for descriptor in kept:
            os.close(descriptor)


def test_family_that_grows_fails_the_run(
    park: Callable[[], None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(soak, "FAMILIES", [family(park)])
    assert 1 == soak.main(["--together", "--scale", "0", "--points", "8"])
    assert "GROWS: threads" in capsys.readouterr().out


# The judgement.


def test_growth_is_that_of_most_points() -> None:
    """One point in four may lie anywhere."""
    assert 9 == growth([float(i) for i in range(10)])
    assert 0 == growth([5.0] * 10)
    assert 0 == growth([5.0, 5.0, 900.0, 5.0, 5.0, 5.0, -900.0, 5.0, 5.0, 5.0])
    assert -9 == growth([float(-i) for i in range(10)])


def test_growth_in_the_first_half_is_no_leak() -> None:
    assert [] == grown(curve(memory=[10.0 * min(i, 9) for i in range(20)], threads=[min(i, 9) for i in range(20)]))


def test_noise_and_a_single_jump_are_no_leak() -> None:
    rng = random.Random(1)
    noisy = curve(
        memory=[20 + rng.random() for _ in range(20)],
        objects=[100 + rng.randrange(100) for _ in range(20)],
        blocks=[1000 + rng.randrange(200) for _ in range(20)],
        threads=[2 + rng.randrange(2) for _ in range(20)],
        descriptors=[5 + (i > 17) * 10 for i in range(20)],
    )
    assert [] == grown(noisy)


@pytest.mark.parametrize("name", ["threads", "descriptors"])
def test_slow_but_steady_growth_is_found(name: str) -> None:
    """The value grows by one at every second point."""
    assert [name] == grown(curve(**{name: [i // 2 for i in range(20)]}))


@only_cpython
def test_stairs_are_found() -> None:
    """Memory is allocated in pieces."""
    assert ["memory"] == grown(curve(memory=[20.0 + i // 3 for i in range(20)]))


def test_what_the_system_does_not_tell_is_not_judged() -> None:
    judged = verdict(curve(memory=[None] * 20, descriptors=[None] * 20))
    assert "memory" not in judged
    assert "descriptors" not in judged
    assert judged["threads"] == (0, BOUNDS["threads"])


def test_only_threads_and_descriptors_are_judged_where_others_are_not_exact() -> None:
    expected = set(BOUNDS) if CPYTHON else {"threads", "descriptors"}
    assert expected == set(verdict(curve(memory=[20.0] * 20)))


# Its parts.


def test_steps_make_as_many_calls_as_they_say() -> None:
    """There are as many samples as points; a remainder of calls is left out."""
    made = 0

    def run(steps: Steps) -> None:
        nonlocal made
        for n in steps:
            made += n

    samples = observe(Family("counting", "calls", run), 1003, 10)
    assert 1000 == made
    assert list(range(100, 1001, 100)) == [sample.calls for sample in samples]


def test_family_whose_calls_do_not_do_what_they_should_fails() -> None:
    with pytest.raises(AssertionError, match="2 calls did what 3 should have done"):
        soak.check(2, 3)


def test_name_that_no_family_has_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        soak.main(["--only", "no such family"])
    assert "ThreadSensitiveContext" in capsys.readouterr().err
