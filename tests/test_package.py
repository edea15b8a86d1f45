"""The package as such: what it offers, what depends on what."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest

import asgiref

from .helpers import ROOT, output_of

PACKAGE = Path(asgiref.__file__).parent
MODULES = sorted(module.name for module in pkgutil.iter_modules([str(PACKAGE)]))

# Which modules of the package may each of them import? Arrows run one way.
ALLOWED = {
    "_forks": set[str](),
    "local": set[str](),
    "_carry": {"local"},
    "_jobs": {"_forks", "local"},
    "current_thread_executor": {"_forks", "_jobs"},
    "_routing": {"current_thread_executor"},
    "_lending": {"_jobs", "current_thread_executor"},
    "_workers": {"_forks", "_jobs"},
    "_look": {"_forks", "_workers"},
    "_stuck": {"_look"},
    "_watch": {"_forks", "_stuck"},
    "_loops": {"_forks", "_jobs", "_workers", "current_thread_executor"},
    "_wsgi_environ": set[str](),
    "_wsgi_connection": {"_workers", "sync"},
    "_wsgi_response": {"_jobs", "_wsgi_connection"},
    "compatibility": {"sync"},
    "server": {"compatibility"},
    "testing": {"compatibility"},
    "timeout": set[str](),
    "typing": set[str](),
    "wsgi": {"_workers", "_wsgi_connection", "_wsgi_environ", "_wsgi_response", "sync"},
    "sync": {
        *("_carry", "_forks", "_jobs", "_lending", "_loops", "_routing", "_stuck", "_watch", "_workers"),
        *("current_thread_executor", "local"),
    },
}


def imports_of(module: str) -> set[str]:
    """Return the modules of the package that *module* imports, also those for type checkers alone."""
    found = set()
    for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            found |= {node.module} if node.module else {alias.name for alias in node.names}
    return {name for name in found if name}


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_one_way(module: str) -> None:
    assert imports_of(module) <= ALLOWED[module]


@pytest.mark.parametrize("module", MODULES)
def test_public_names_exist_and_are_documented(module: str) -> None:
    loaded = importlib.import_module(f"asgiref.{module}")
    assert loaded.__doc__
    assert sorted(loaded.__all__) == list(loaded.__all__)
    for name in loaded.__all__:
        value = getattr(loaded, name)
        if not module.startswith("_") and inspect.isfunction(value) and value.__module__ == loaded.__name__:
            assert value.__doc__, name


def test_public_surface() -> None:
    from asgiref import compatibility, current_thread_executor, local, server, sync, testing, timeout, wsgi

    assert ["double_to_single_callable", "guarantee_single_callable", "is_double_callable"] == compatibility.__all__
    assert ["ApplicationCommunicator"] == testing.__all__
    assert ["timeout"] == timeout.__all__
    assert ["CurrentThreadExecutor"] == current_thread_executor.__all__
    assert ["Local"] == local.__all__
    assert ["StatelessServer"] == server.__all__
    assert ["WsgiToAsgi", "WsgiToAsgiInstance"] == wsgi.__all__
    assert [
        "AsyncSingleThreadContext",
        "AsyncToSync",
        "BridgeCall",
        "SyncToAsync",
        "ThreadSensitiveContext",
        "async_to_sync",
        "bridge_calls",
        "iscoroutinefunction",
        "markcoroutinefunction",
        "print_bridge_calls",
        "sync_to_async",
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
    "module", ["sync", "local", "current_thread_executor", "server", "testing", "compatibility", "timeout", "wsgi"]
)
def test_examples_in_docstrings(module: str) -> None:
    import doctest

    result = doctest.testmod(importlib.import_module(f"asgiref.{module}"))
    assert 0 == result.failed
    assert result.attempted


def test_examples_in_the_readme() -> None:
    import doctest

    result = doctest.testfile(str(ROOT / "README.rst"), module_relative=False)
    assert 0 == result.failed
    assert result.attempted


def test_tests_that_the_security_page_names_exist() -> None:
    named = re.findall(r"``(test_\w+)\.(test_\w+)``", (ROOT / "docs" / "security.rst").read_text())
    missing = [
        f"{file}.{test}" for file, test in named if f"def {test}(" not in (ROOT / "tests" / f"{file}.py").read_text()
    ]
    assert named
    assert [] == missing
