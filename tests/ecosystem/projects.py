"""Descriptions of the projects: packages to install, tests to run, and known failures and differences."""

from __future__ import annotations

import platform
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from packaging.specifiers import SpecifierSet

DESCRIPTIONS = Path(__file__).parent / "projects"


@dataclass(frozen=True)
class Project:
    """One file of ``projects/``; each field is a key there, except *key*, which is the file's name."""

    key: str
    name: str
    # The description of the tests, for the table.
    what: str
    # The released version, as a requirement. Its source distribution has the tests.
    sdist: str = ""
    # Or the file in ``programs/`` with the tests.
    program: str = ""
    # More requirements, for both environments.
    needs: tuple[str, ...] = ()
    # The installed distributions that the table names with their versions, besides the project.
    shows: tuple[str, ...] = ()
    # "pytest", "django-test" (a site's command) or "django" (Django's own script); its arguments; its directory.
    runner: str = "pytest"
    arguments: tuple[str, ...] = ()
    directory: str = "."
    # On their usual ports: "redis" is a server with a sentinel, "postgresql" a server whose superuser is "postgres".
    services: tuple[str, ...] = ()
    # Programs that must be installed.
    programs: tuple[str, ...] = ()
    # The supported versions of Python.
    python: str = ""
    # The timeout of one run of the tests, in seconds.
    limit: float = 600
    # Not run unless it is named.
    on_demand: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)
    # Tests that fail with either package, tests whose outcomes differ, and tests whose outcome varies from run to run
    # with either, so that they may also fail or differ: the reason, a sentence.
    fails: Mapping[str, str] = field(default_factory=dict)
    differs: Mapping[str, str] = field(default_factory=dict)
    varies: Mapping[str, str] = field(default_factory=dict)

    @property
    def requirements(self) -> tuple[str, ...]:
        return ((self.sdist,) if self.sdist else ()) + self.needs

    @property
    def refusal(self) -> str | None:
        """The reason why this interpreter cannot run it, if there is one."""
        version = platform.python_version()
        if SpecifierSet(self.python).contains(version, prereleases=True):
            return None
        return f"needs Python {self.python}"


def load(key: str) -> Project:
    """Return the project that ``projects/KEY.toml`` describes; missing keys are those of its base."""
    described = tomllib.loads((DESCRIPTIONS / f"{key}.toml").read_text())
    if base := described.pop("base", None):
        described = tomllib.loads((DESCRIPTIONS / f"{base}.toml").read_text()) | described
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in described.items()
    }
    return Project(key, **values)


def keys() -> list[str]:
    return sorted(path.stem for path in DESCRIPTIONS.glob("*.toml"))
