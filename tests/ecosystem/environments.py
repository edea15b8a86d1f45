"""Pairs of virtual environments with the same wheels, which differ only in asgiref. Packages come through pip."""

from __future__ import annotations

import filecmp
import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from .projects import Project

ROOT = Path(__file__).resolve().parents[2]
UPSTREAM = "3.13.0"
PACKAGES = ("upstream", "ours")
# Writes the report that the runner reads.
REPORTING = "pytest-reportlog>=0.4"

_PROBE = "import asgiref, json; print(json.dumps([asgiref.__version__, asgiref.__file__]))"
_VERSIONS = (
    "import importlib.metadata as m, json, sys; print(json.dumps({name: m.version(name) for name in sys.argv[1:]}))"
)


def call(*command: str | Path, cwd: Path | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} exited {done.returncode}:\n{done.stdout}")
    return done.stdout


def commit() -> str:
    """Return the last commit that changed this package, with a + if files differ from it; nothing without git."""
    git = ("git", "-C", str(ROOT))
    options = ("--", str(ROOT / "asgiref"))
    try:
        last = subprocess.run([*git, "log", "-1", "--format=%h", *options], capture_output=True, text=True, check=True)
        changes = subprocess.run([*git, "status", "--porcelain", *options], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return last.stdout.strip() + ("+" if changes.stdout else "")


def pip(*arguments: str | Path) -> None:
    call(sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments)


class Workshop:
    """A directory with a wheel of this tree, and with all downloads and environments so far."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory / str(sys.implementation.cache_tag)
        self._directory.mkdir(parents=True, exist_ok=True)
        self._wheel: Path | None = None

    @property
    def wheel(self) -> Path:
        """The wheel of this tree, which is built once."""
        if self._wheel is None:
            target = self._directory / "ours"
            shutil.rmtree(target, ignore_errors=True)
            with tempfile.TemporaryDirectory(dir=self._directory) as scratch:
                # A copy is built, because setuptools leaves files in the tree that it builds.
                copy = Path(scratch) / "checkout"
                leave = shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__", "docs", "tests")
                shutil.copytree(ROOT, copy, ignore=leave)
                pip("wheel", "--no-deps", "-w", target, copy)
            (self._wheel,) = target.glob("*.whl")
        return self._wheel

    def python(self, project: Project, package: str) -> Path:
        """Return the interpreter of an environment with *project* and *package*; create the environment if needed."""
        recipe = json.dumps([*project.requirements, REPORTING, UPSTREAM])
        place = self._directory / hashlib.sha256(recipe.encode()).hexdigest()[:12]
        wheels, home = place / "wheels", place / package
        if not (place / "wheels.made").exists():
            pip("wheel", "-w", wheels, f"asgiref=={UPSTREAM}", REPORTING, *project.requirements)
            (place / "wheels.made").touch()
        python = home / "bin" / "python"
        if not (place / f"{package}.made").exists():
            call(sys.executable, "-m", "venv", "--clear", "--without-pip", home)
            pip("--python", python, "install", "--no-index", "--no-deps", *sorted(wheels.glob("*.whl")))
            (place / f"{package}.made").touch()
        if package == "ours":
            pip("--python", python, "install", "--no-index", "--no-deps", "--force-reinstall", self.wheel)
        self._check(python, package)
        return python

    def _check(self, python: Path, package: str) -> None:
        version, file = json.loads(call(python, "-P", "-c", _PROBE, cwd=self._directory))
        installed, source = Path(file).parent, ROOT / "asgiref"
        if not installed.is_relative_to(python.parents[1]) or (version == UPSTREAM) != (package == "upstream"):
            sys.exit(f"{python} imports asgiref {version} from {installed}, which is not {package}")
        if package == "ours":
            names = sorted(str(path.relative_to(source)) for path in source.rglob("*.py"))
            found = sorted(str(path.relative_to(installed)) for path in installed.rglob("*.py"))
            if names != found or filecmp.cmpfiles(source, installed, names, shallow=False)[0] != names:
                sys.exit(f"{installed} is not the package of {ROOT}")

    def versions(self, python: Path, project: Project) -> dict[str, str]:
        """Return the installed versions of the distributions that the table names."""
        names = [project.sdist.partition("==")[0]] if project.sdist else []
        versions: dict[str, str] = json.loads(call(python, "-c", _VERSIONS, *names, *project.shows))
        return versions

    def unpack(self, project: Project, scratch: Path) -> Path:
        """Return a new directory with the tests: tests write into their tree."""
        if project.program:
            source = Path(__file__).parent / "programs"
            return Path(shutil.copytree(source, scratch / "programs", ignore=shutil.ignore_patterns("__pycache__")))
        cache = self._directory / "sdists" / project.sdist
        if not any(cache.glob("*.tar.gz")):
            pip("download", "--no-deps", "--no-binary", ":all:", "--dest", cache, project.sdist)
        (archive,) = cache.glob("*.tar.gz")
        with tarfile.open(archive) as opened:
            opened.extractall(scratch / "sdist", filter="data")
        (directory,) = (scratch / "sdist").iterdir()
        return directory / project.directory
