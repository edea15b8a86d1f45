"""The package as a whole: its public names, its imports, and the documents that list its files."""

from __future__ import annotations

import ast
import configparser
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest

import asgiref

from ..helpers import ROOT, output_of

PACKAGE = Path(asgiref.__file__).parent
MODULES = sorted(module.name.removeprefix("asgiref.") for module in pkgutil.walk_packages([str(PACKAGE)], "asgiref."))
WINGS = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))

# The modules of the package that each module may import. Imports run one way.
ALLOWED = {
    "local": {"_bridge.builds"},
    "current_thread_executor": {"_bridge.forks", "_bridge.jobs"},
    "_bridge": set[str](),
    "_bridge.builds": set[str](),
    "_bridge.forks": set[str](),
    "_bridge.greenlets": {"_bridge.forks", "_bridge.internals"},
    "_bridge.internals": set[str](),
    "_bridge.threads": set[str](),
    "_bridge.cancellation": {"_bridge.greenlets", "_bridge.internals", "_bridge.jobs"},
    "_bridge.carry": {"local"},
    "_bridge.kept": {"_bridge.carry"},
    "_bridge.register": {"_bridge.builds", "_bridge.forks"},
    "_bridge.jobs": {
        *(f"_bridge.{room}" for room in ("builds", "forks", "internals", "kept", "register")),
        "local",
    },
    "_bridge.patience": {"_bridge.internals", "_bridge.jobs"},
    "_bridge.wrapping": {"_bridge.internals"},
    "_bridge.routing": {"_bridge.internals", "current_thread_executor"},
    "_bridge.lending": {"_bridge.internals", "_bridge.jobs", "current_thread_executor"},
    "_bridge.workers": {
        *("_bridge.forks", "_bridge.greenlets", "_bridge.internals", "_bridge.jobs", "_bridge.threads"),
        *("_bridge.limit", "_bridge.waits"),  # only a type of the former
    },
    "_bridge.waits": set[str](),
    "_bridge.limit": {
        *("_bridge.forks", "_bridge.internals", "_bridge.jobs", "_bridge.waits", "_bridge.workers"),
        "current_thread_executor",
    },
    "_bridge.loops": {
        *("_bridge.forks", "_bridge.greenlets", "_bridge.internals", "_bridge.jobs", "_bridge.workers"),
        "current_thread_executor",
    },
    "_contexts": set[str](),
    "_contexts.decorating": {"sync"},
    "_contexts.middleware": {"_bridge.internals", "_bridge.jobs", "_bridge.limit", "sync"},
    "_diagnosis": set[str](),
    "_diagnosis.look": {"_bridge.forks", "_bridge.internals", "_bridge.limit", "_bridge.workers"},
    "_diagnosis.register_look": {f"_bridge.{room}" for room in ("forks", "internals", "jobs", "register", "workers")}
    | {"_diagnosis.look"},
    "_diagnosis.calls": {"_bridge.register", "_diagnosis.look", "_diagnosis.register_look"},
    "_diagnosis.statistics": {"_bridge.forks", "_bridge.jobs", "_bridge.limit", "_bridge.workers"},
    "_diagnosis.watch": {"_bridge.forks", "_bridge.threads", "_diagnosis.calls"},
    "_steps": set[str](),
    "_steps.blocks": set[str](),
    "_steps.decorating": {"_bridge.wrapping"},
    "_steps.threads": {
        *(f"_bridge.{room}" for room in ("builds", "cancellation", "carry", "forks", "internals", "jobs", "limit")),
        *("_bridge.register", "_bridge.routing", "_bridge.workers"),
        *("current_thread_executor", "local", "sync"),
    },
    "_steps.ahead": {"_bridge.forks", "_bridge.jobs", "_steps.threads"},
    "_steps.iteration": {"_steps.ahead", "_steps.decorating", "_steps.threads"},
    "_steps.managers": {"_steps.blocks", "_steps.decorating", "_steps.threads"},
    "_steps.tasks": {
        *(f"_bridge.{room}" for room in ("forks", "greenlets", "internals", "jobs", "lending", "loops", "patience")),
        *("_bridge.register", "_bridge.workers", "_steps.threads", "current_thread_executor", "local", "sync"),
    },
    "_steps.to_sync_iteration": {"_bridge.jobs", "_steps.decorating", "_steps.tasks", "_steps.threads"},
    "_steps.to_sync_managers": {"_steps.blocks", "_steps.decorating", "_steps.tasks", "sync"},
    "_wsgi": set[str](),
    "_wsgi.dropped": set[str](),
    "_wsgi.environ": {"_wsgi.dropped"},
    "_wsgi.connection": {
        *(f"_bridge.{room}" for room in ("cancellation", "internals", "patience", "workers")),
        "sync",
    },
    "_wsgi.response": {"_bridge.jobs", "_wsgi.connection", "_wsgi.dropped"},
    "_wsgi.spool": {"_bridge.workers", "_wsgi.connection", "_wsgi.environ", "sync"},
    "compatibility": {"sync"},
    "event_loop": {
        *(f"_bridge.{room}" for room in ("carry", "greenlets", "internals", "jobs", "lending", "workers")),
        *("current_thread_executor", "local", "sync"),
    },
    "server": {"_bridge.internals", "compatibility"},
    "testing": {"compatibility"},
    "timeout": set[str](),
    "typing": set[str](),
    "wsgi": {
        *(f"_wsgi.{room}" for room in ("connection", "environ", "response", "spool")),
        *("_bridge.cancellation", "_bridge.workers", "sync"),
    },
    "sync": {
        *("_bridge.cancellation", "_bridge.kept"),
        *("_bridge.carry", "_bridge.forks", "_bridge.greenlets", "_bridge.internals", "_bridge.jobs"),
        *("_bridge.lending", "_bridge.limit", "_bridge.loops", "_bridge.patience", "_bridge.register"),
        *("_bridge.routing", "_bridge.waits", "_bridge.workers", "_bridge.wrapping"),
        *("_diagnosis.calls", "_diagnosis.statistics", "_diagnosis.watch", "current_thread_executor", "local"),
        "event_loop",  # on first use of one of its names: that module imports this one
        *("_contexts.decorating", "_contexts.middleware"),
        *("_steps.iteration", "_steps.managers", "_steps.to_sync_iteration", "_steps.to_sync_managers"),
    },
}

# What each package may import from outside of itself, for all its modules.
ALLOWED_OF_WINGS = {
    "_bridge": {"current_thread_executor", "local"},
    "_contexts": {"_bridge", "sync"},
    "_diagnosis": {"_bridge"},
    "_steps": {"_bridge", "current_thread_executor", "local", "sync"},
    "_wsgi": {"_bridge", "sync"},
}


def source_of(module: str) -> Path:
    path = PACKAGE.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def imports_of(module: str) -> set[str]:
    """Return the modules of the package that *module* imports, including those for type checkers only."""
    found = set()
    path = source_of(module)
    package = ["asgiref", *path.relative_to(PACKAGE).parent.parts]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1] + (node.module.split(".") if node.module else [])
            names = [".".join([*base, alias.name])[len("asgiref.") :] for alias in node.names]
            of_module = ".".join(base)[len("asgiref.") :]
            found |= {name if name in MODULES else of_module for name in names}
    return found


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_one_way(module: str) -> None:
    assert imports_of(module) <= ALLOWED[module]


@pytest.mark.parametrize("wing", WINGS)
def test_wings_use_only_what_they_may(wing: str) -> None:
    used = set().union(*(imports_of(module) for module in MODULES if module.partition(".")[0] == wing))
    outside = {name for name in used if name.partition(".")[0] != wing}
    assert outside
    assert {name if name in ALLOWED_OF_WINGS[wing] else name.partition(".")[0] for name in outside} <= ALLOWED_OF_WINGS[
        wing
    ]


@pytest.mark.parametrize("wing", WINGS)
def test_wing_opens_with_its_rule_and_nothing_else(wing: str) -> None:
    [statement] = ast.parse((PACKAGE / wing / "__init__.py").read_text()).body
    assert isinstance(statement, ast.Expr)


@pytest.mark.parametrize("module", MODULES)
def test_public_names_exist_and_are_documented(module: str) -> None:
    loaded = importlib.import_module(f"asgiref.{module}")
    assert loaded.__doc__
    if module in WINGS:
        return
    assert sorted(loaded.__all__) == list(loaded.__all__)
    for name in loaded.__all__:
        value = getattr(loaded, name)
        if not module.startswith("_") and inspect.isfunction(value) and value.__module__ == loaded.__name__:
            assert value.__doc__, name


def test_public_surface() -> None:
    from asgiref import compatibility, current_thread_executor, event_loop, local, server, sync, testing, timeout, wsgi

    assert ["double_to_single_callable", "guarantee_single_callable", "is_double_callable"] == compatibility.__all__
    assert ["ApplicationCommunicator"] == testing.__all__
    assert ["timeout"] == timeout.__all__
    assert ["CurrentThreadExecutor"] == current_thread_executor.__all__
    assert ["Local"] == local.__all__
    assert ["ThreadSensitiveEventLoop", "thread_sensitive_loop_factory"] == event_loop.__all__
    assert ["StatelessServer"] == server.__all__
    assert ["WsgiToAsgi", "WsgiToAsgiInstance"] == wsgi.__all__
    assert [
        "AsyncSingleThreadContext",
        "AsyncToSync",
        "BridgeCall",
        "BridgeStatistics",
        "SyncToAsync",
        "ThreadSensitiveContext",
        "ThreadSensitiveEventLoop",
        "ThreadSensitiveMiddleware",
        "async_to_sync",
        "async_to_sync_context_manager",
        "async_to_sync_iterator",
        "bridge_calls",
        "bridge_statistics",
        "check_cancelled",
        "iscoroutinefunction",
        "markcoroutinefunction",
        "print_bridge_calls",
        "release_thread",
        "sync_to_async",
        "sync_to_async_context_manager",
        "sync_to_async_iterator",
        "thread_sensitive_loop_factory",
    ] == sync.__all__


def test_version_satisfies_what_django_channels_and_daphne_ask_for() -> None:
    version = re.fullmatch(r"3\.(\d+)\.(\d+)", asgiref.__version__)
    assert version
    assert (int(version[1]), int(version[2])) >= (12, 1)


def test_package_is_typed() -> None:
    assert (PACKAGE / "py.typed").exists()


def test_import_starts_no_thread_and_needs_no_other_package() -> None:
    code = """
import asgiref
print(threading.active_count(), [name for name in sys.modules if name.startswith("site-packages")])
"""
    assert ["2 []"] == output_of(code) or ["1 []"] == output_of(code)


@pytest.mark.parametrize(
    "module",
    [
        *[
            "sync",
            "local",
            "current_thread_executor",
            "event_loop",
            "server",
            "testing",
            "compatibility",
            "timeout",
            "wsgi",
        ],
        "_steps.iteration",
        "_steps.managers",
        "_steps.to_sync_iteration",
        "_steps.to_sync_managers",
    ],
)
def test_examples_in_docstrings(module: str) -> None:
    import doctest

    result = doctest.testmod(importlib.import_module(f"asgiref.{module}"))
    assert 0 == result.failed
    assert result.attempted


def texts_of_tests(file: str) -> list[str]:
    return [path.read_text() for path in (ROOT / "tests").rglob(f"{file}.py")]


def test_links_of_the_readme_lead_to_files() -> None:
    links = re.findall(r"<([^<>]+)>`_", (ROOT / "README.rst").read_text())
    assert links
    assert [] == [link for link in links if ":" not in link and not (ROOT / link).is_file()]


def test_tests_that_the_security_page_names_exist() -> None:
    named = re.findall(r"``(test_\w+)\.(test_\w+)``", (ROOT / "docs" / "security.rst").read_text())
    missing = [
        f"{file}.{test}" for file, test in named if not any(f"def {test}(" in text for text in texts_of_tests(file))
    ]
    assert named
    assert [] == missing


def test_every_package_is_built() -> None:
    configuration = configparser.ConfigParser()
    configuration.read(ROOT / "setup.cfg")
    named = configuration["options"]["packages"].split()
    assert named == ["asgiref", *(f"asgiref.{wing}" for wing in WINGS)]


def test_imports_leave_the_interpreters_lock_as_it_is() -> None:
    """A free-threaded build switches the lock on for an extension module that asks for it."""
    modules = ", ".join(f"asgiref.{module}" for module in MODULES)
    code = f"""
is_on = getattr(sys, "_is_gil_enabled", lambda: True)
before = is_on()
import {modules}
print(before is is_on())
"""
    assert ["True"] == output_of(code)
