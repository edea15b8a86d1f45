"""Random programs over the bridge follow the rules; see ``model``."""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections.abc import Callable, Iterator

import pytest
from hypothesis import HealthCheck, Phase, given, reject, settings

from asgiref._bridge import lending
from asgiref.sync import thread_sensitive_loop_factory

from ..conftest import LOOP_FACTORIES
from ..helpers import LIMIT
from .model.checking import check
from .model.programs import Piece, programs, smaller, write_program
from .model.reference import Unfit, expected_of
from .model.running import Hung, MainThread

# The other loops, as a ThreadSensitiveEventLoop.
THREAD_SENSITIVE = {
    f"thread-sensitive-{name}": thread_sensitive_loop_factory(factory) for name, factory in LOOP_FACTORIES.items()
}
# For the deep run: a part of the names of the loops to use.
LOOPS = [name for name in [*LOOP_FACTORIES, *THREAD_SENSITIVE] if os.environ.get("ASGIREF_MODEL_LOOPS", "") in name]
EAGER_LOOPS = frozenset(name for name in LOOPS if name.endswith("eager"))
DEBUG_LOOPS = frozenset(name for name in LOOPS if name.endswith("debug"))

# For the deep run: its length in minutes, or the number of programs; and the first random seed.
MINUTES = float(os.environ.get("ASGIREF_MODEL_MINUTES", 0))
PROGRAMS = int(os.environ.get("ASGIREF_MODEL_PROGRAMS", 0))
DEEP = bool(MINUTES or PROGRAMS)
SEED = int(os.environ.get("ASGIREF_MODEL_SEED", time.time_ns() if DEEP else 1))


@contextlib.contextmanager
def programs_judged(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Piece], None]]:
    """Give a function that runs a program and raises if its behaviour violates the rules, or if it is ``Unfit``.

    If a program hangs, smaller ones are tried for a limited time, because each that also hangs takes a second. They are
    judged only by whether they hang: threads left by another program may make them fail.
    """
    # The executors are large enough, and on a busy machine a free thread may be late: no blocked thread should help.
    monkeypatch.setattr(lending, "FIRST_LOOK", 10 * LIMIT)
    main = MainThread({**LOOP_FACTORIES, **THREAD_SENSITIVE}, LIMIT / 2)
    hangs: dict[str, Hung] = {}
    give_up = 0.0

    def judge(program: Piece) -> None:
        nonlocal give_up
        expected = expected_of(program, EAGER_LOOPS, DEBUG_LOOPS, frozenset(THREAD_SENSITIVE))
        text = str(program)
        if text not in hangs:
            if hangs and time.monotonic() > give_up:
                raise Unfit("another one hangs")
            try:
                check(expected, main.run(program))
                return
            except Hung as error:
                give_up = give_up or time.monotonic() + LIMIT
                hangs[text] = error
            except AssertionError:
                if hangs:
                    raise Unfit("another one hangs") from None
                raise
        raise hangs[text].with_traceback(None)  # from one place, or Hypothesis takes it for different faults

    try:
        yield judge
    finally:
        main.close()


# An __exit__ after a cancelled __enter__ may fail if its loop has been closed: threading.excepthook reports that.
TOLD = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


@TOLD
@pytest.mark.slow
@pytest.mark.needs_internals
def test_programs_do_what_the_rules_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """In any nesting, threads, loops, values, results and exceptions follow the rules."""
    with programs_judged(monkeypatch) as judge:

        @settings(
            max_examples=600,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.generate, Phase.shrink],
            print_blob=True,
            report_multiple_bugs=False,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        )
        @given(programs(LOOPS))
        def judge_each(program: Piece) -> None:
            try:
                judge(program)
            except Unfit:
                reject()

        judge_each()


@TOLD
@pytest.mark.slow
def test_many_programs_do_what_the_rules_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same without Hypothesis, which needs more time to draw a program than the program takes; see tox -e deep."""
    choices = random.Random(SEED)
    count = PROGRAMS if DEEP else 2000
    begun = told = time.monotonic()
    done = functions = limited = 0
    with programs_judged(monkeypatch) as judge:
        while (not count or done < count) and (not MINUTES or time.monotonic() < begun + 60 * MINUTES):
            program = write_program(choices.randrange, LOOPS)
            if program.size < 4:  # half of them, and quickly
                continue
            try:
                judge(program)
            except Unfit:
                continue
            except (AssertionError, Hung) as error:
                smallest, why = smallest_failing(judge, program, error)
                pytest.fail(f"after {done} programs of seed {SEED}:\n{smallest}\n{why}")
            done, functions = done + 1, functions + program.size
            limited += program.max_threads is not None
            if time.monotonic() > told + 60:
                told = time.monotonic()
                print(f"{done} programs so far")
    seconds = time.monotonic() - begun
    print(
        f"{done} programs of {functions} functions without a fault, {limited} of them with a limit for threads, "
        f"in {seconds:.0f} s, seed {SEED}"
    )


def error_of(judge: Callable[[Piece], None], program: Piece) -> Exception | None:
    try:
        judge(program)
    except Unfit:
        pass
    except (AssertionError, Hung) as error:
        return error.with_traceback(None)
    return None


def smallest_failing(judge: Callable[[Piece], None], program: Piece, error: Exception) -> tuple[Piece, Exception]:
    """Leave out what the fault does not need; each attempt is made three times, because chance may be involved."""
    for candidate in smaller(program):
        for _ in range(3):
            found = error_of(judge, candidate)
            if found is not None:
                return smallest_failing(judge, candidate, found)
    return program, error
