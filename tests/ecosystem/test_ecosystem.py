"""The runner of other projects' tests: reading, comparing and writing. Nothing is run here."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from . import environments, projects, results
from .outcomes import Run, compare, read
from .projects import Project

PROGRAMS = Path(__file__).parent / "programs"


def line(nodeid: str, outcome: str, kind: str = "TestReport", **more: object) -> str:
    return json.dumps({"$report_type": kind, "nodeid": nodeid, "outcome": outcome, **more})


END = json.dumps({"$report_type": "SessionFinish", "exitstatus": 0})


@pytest.mark.parametrize("key", projects.keys())
def test_description_says_what_is_run(key: str) -> None:
    project = projects.load(key)
    assert bool(project.sdist) != bool(project.program)
    assert "==" in (project.sdist or "==")
    assert not project.program or (PROGRAMS / project.program).is_file()
    assert all(
        reason.endswith(".")
        for reasons in (project.fails, project.differs, project.varies)
        for reason in reasons.values()
    )


def test_description_takes_from_its_base_what_it_leaves_out() -> None:
    django, older = projects.load("django"), projects.load("django-5.2")
    assert older.sdist.startswith("Django==5.2")
    assert django.arguments == older.arguments


def test_project_says_which_python_it_needs() -> None:
    assert Project("key", "name", "what", python=">=3.11").refusal is None
    assert Project("key", "name", "what", python=">=4").refusal == "needs Python >=4"


def test_pytest_collects_no_program() -> None:
    assert (
        not list(PROGRAMS.rglob("test_*.py")) + list(PROGRAMS.rglob("*_test.py")) + list(PROGRAMS.rglob("conftest.py"))
    )


def test_worst_phase_of_a_test_is_its_outcome(tmp_path: Path) -> None:
    log = tmp_path / "report"
    lines = [
        json.dumps({"pytest_version": "9", "$report_type": "SessionStart"}),
        line("", "passed", "CollectReport"),
        line("broken.py", "failed", "CollectReport", longrepr="no such module"),
        *(line("good", "passed", when=when) for when in ("setup", "call", "teardown")),
        *(line("leaves", outcome) for outcome in ("passed", "passed", "failed")),
        *(line("skips", outcome) for outcome in ("skipped", "passed")),
        *(line("known", outcome, wasxfail="") for outcome in ("passed", "skipped", "passed")),
        line("raises", "failed", longrepr={"reprcrash": {"message": "ValueError: no"}}),
        END,
    ]
    log.write_text("\n".join(lines))
    expected = {
        "broken.py": "failed",
        "good": "passed",
        "leaves": "failed",
        "skips": "skipped",
        "known": "xfailed",
        "raises": "failed",
    }
    run = read(log, 1.5)
    assert expected == run.outcomes
    assert run.texts == {"broken.py": "no such module", "leaves": "None", "raises": "ValueError: no"}
    assert run.finished
    assert run.describe() == "3 failed, 1 passed, 1 skipped, 1 xfailed"


def test_run_that_ended_early_has_not_finished(tmp_path: Path) -> None:
    assert read(tmp_path / "missing", 1) == Run(seconds=1)
    (tmp_path / "report").write_text(line("good", "passed"))
    assert not read(tmp_path / "report", 1).finished


def test_tests_are_compared_one_by_one() -> None:
    ours = {
        "same": "passed",
        "ours": "failed",
        "theirs": "passed",
        "wavers": "failed",
        "both": "failed",
        "new": "passed",
    }
    upstream = {"same": "passed", "ours": "passed", "theirs": "failed", "wavers": "passed", "both": "failed"}
    again = {"ours": "failed", "theirs": "passed", "wavers": "passed", "new": "passed"}
    again_upstream = {"ours": "passed", "theirs": "failed", "wavers": "passed"}
    comparison = compare([ours, again, again], [upstream, again_upstream, again_upstream])
    assert comparison.differing == {
        "new": ("passed", "missing"),
        "ours": ("failed", "passed"),
        "theirs": ("passed", "failed"),
    }
    assert comparison.unstable == {"wavers": (("failed", "passed", "passed"), ("passed",) * 3)}
    assert comparison.failing == ["both"]


def result_of(ours: dict[str, str], upstream: dict[str, str]) -> results.Result:
    runs = {"upstream": Run(upstream, finished=True), "ours": Run(ours, finished=True)}
    return results.Result.of(projects.load("django"), {"Django": "6.1.3"}, runs, compare([ours], [upstream]))


def test_known_failure_is_explained_and_an_unknown_one_is_not() -> None:
    [known] = projects.load("django").fails
    explained = result_of({known: "failed", "a": "passed"}, {known: "failed", "a": "passed"})
    assert explained.alike
    assert not explained.unexplained
    assert explained.verdict == "1 fail with both"
    unknown = result_of({"a": "failed", "b": "failed", "c": "passed"}, {"a": "failed", "b": "passed", "c": "passed"})
    assert unknown.unexplained == ["differs: b", "fails with both: a"]
    assert unknown.verdict == "1 differ, 1 fail with both"
    assert not unknown.alike


def test_result_without_tests_is_no_success() -> None:
    assert not result_of({}, {}).alike
    assert not result_of({"a": "failed"}, {"a": "failed"}).alike


def test_table_in_the_documentation_is_that_of_the_recorded_results() -> None:
    recorded = results.recorded()
    assert recorded
    assert results.render(recorded) == results.TABLE.read_text()
    assert [] == [name for result in recorded for name in result.unexplained]
    assert all(result.finished for result in recorded)


def test_readme_has_the_recorded_counts() -> None:
    """Of each project that it names with a version: the passed tests. The most are those of all labels."""
    [evidence] = re.findall(
        r"- Other projects' test suites .*?(?=\n- )", (environments.ROOT / "README.rst").read_text(), re.DOTALL
    )
    told = re.findall(r"([\w-]+) (\d[\d.]*)\s+\(([\d,]+)", " ".join(evidence.split()))
    assert len(told) > 3
    passed = [
        (result.project.name, version, f"{result.counts['ours']['passed']:,}")
        for result in results.recorded()
        for version in result.versions.values()
    ]
    assert [] == [one for one in told if one not in passed]
