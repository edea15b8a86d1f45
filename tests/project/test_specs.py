"""The pages of the specification agree with ``asgiref.typing``, and their examples run.

Each class of types has one table of keys, which is a ``list-table`` whose caption names the class, and one or more
examples, ``>>> name: Class = {...}``.
"""

from __future__ import annotations

import ast
import doctest
import json
import re
import types as kinds
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple
from xml.etree import ElementTree as ET

import pytest

from asgiref import typing as types

from ..helpers import ROOT

PAGES = sorted((ROOT / "docs" / "specs").glob("*.rst"))
DRAWINGS = sorted((ROOT / "docs" / "specs").glob("*.svg"))

CLASSES = {name: value for name, value in vars(types).items() if typing.is_typeddict(value)}
MESSAGES = {typing.get_args(hint)[0] for class_ in CLASSES.values() if (hint := class_.__annotations__.get("type"))}
# Classes for receiving: they require the keys that servers usually send; the specification requires fewer.
READ = {*typing.get_args(types.Scope), *typing.get_args(types.ASGIReceiveEvent), types.ASGIVersions}
# Keys for which the class, as upstream's, differs from what the specification allows a server to send.
TYPES_OF_SPECIFICATION = {
    ("HTTPScope", "raw_path"): bytes | None,
    ("WebSocketScope", "raw_path"): bytes | None,
    ("WebSocketScope", "query_string"): bytes | None,
    ("HTTPScope", "extensions"): dict[str, Any],
    ("WebSocketScope", "extensions"): dict[str, Any],
}
# Classes that are not named like one message.
EXTENSIONS = {"websocket.http.response"}

CAPTION = re.compile(r"\.\. list-table:: :class:`asgiref\.typing\.(\w+)`")
NO_VERSION = "\N{EN DASH}"
COLUMNS = ["key", "type", "needed", "version", "meaning"]


class Row(NamedTuple):
    key: str
    type: str
    needed: str
    version: str
    meaning: str


def plain(text: str) -> str:
    """Return *text* on one line, without markup."""
    return " ".join(text.replace("``", "").split())


def tables(page: str) -> list[tuple[str, list[Row]]]:
    """Return the tables of keys on *page*, each with the class that its caption names."""
    found = []
    for block in re.split(r"^(?=\.\. list-table::)", page, flags=re.MULTILINE)[1:]:
        caption = CAPTION.match(block)
        assert caption, block.splitlines()[0]
        body = re.match(r".*\n(?:(?: {3,}.*)?\n)*", block)
        assert body
        rows = [
            [plain(cell) for cell in re.split(r"^ {5}- ", row, flags=re.MULTILINE)]
            for row in re.split(r"^ {3}\* - ", body[0], flags=re.MULTILINE)[1:]
        ]
        assert rows
        assert COLUMNS == rows[0]
        found.append((caption[1], [Row(*row) for row in rows[1:]]))
    return found


TABLES = [table for page in PAGES for table in tables(page.read_text())]


def spelling(hint: Any) -> str:
    """Return *hint* as the tables write it."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return " | ".join(map(json.dumps, arguments))
    if origin in (typing.Union, kinds.UnionType):
        return " | ".join(map(spelling, arguments))
    if hint is type(None):
        return "None"
    if hint is types._HasFileno:
        return "object with fileno()"
    if origin is not None:
        return f"{origin.__name__}[{', '.join(map(spelling, arguments))}]"
    return str(hint.__name__)


def told(name: str, key: str) -> tuple[str, str]:
    """Return the meaning of a missing *key*, and its version, as the docstring of the class *name* gives them."""
    documentation = CLASSES[name].__doc__ or ""
    [source] = re.findall(r"Source: ASGI(.*)\.$", documentation, re.MULTILINE)
    text = re.search(rf"\* ``{key}`` \(((?:[^()]|\(\))*)\)", documentation)
    if text is None and name == "WebSocketScope" and key != "type":
        return told("HTTPScope", key)
    parts = plain(text[1] if text else "")
    version = re.search(r", ((?:since|during)) (?:\w+ )?(\d\.\d)$", parts)
    if version:
        parts = parts[: version.start()]
    default = re.search(r", (default.*)", parts)
    number = re.search(r"(\d\.\d)$", source)
    of_class = f"since {number[1]}" if number and name.endswith("Event") else ""
    return default[1] if default else "optional", f"{version[1]} {version[2]}" if version else of_class


def is_of(value: Any, hint: Any) -> bool:
    """Return whether *value* has the type *hint*; for the hints that ``asgiref.typing`` uses."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin is Literal:
        return value in arguments
    if origin in (typing.Union, kinds.UnionType):
        return any(is_of(value, argument) for argument in arguments)
    if typing.is_typeddict(hint):
        keys = typing.get_type_hints(hint)
        return (
            isinstance(value, dict)
            and hint.__required_keys__ <= value.keys() <= keys.keys()
            and all(is_of(item, keys[key]) for key, item in value.items())
        )
    if origin is tuple:
        return isinstance(value, tuple) and len(value) == len(arguments) and all(map(is_of, value, arguments))
    if origin is dict:
        return isinstance(value, dict) and all(all(map(is_of, item, arguments)) for item in value.items())
    if origin is Iterable:
        return not isinstance(value, str | bytes) and all(is_of(item, arguments[0]) for item in value)
    if hint is types._HasFileno:
        return hasattr(value, "fileno")
    return type(value) is hint


def examples(page: Path) -> list[tuple[str, str]]:
    """Return the name and the class of each typed example on *page*."""
    found = []
    for example in doctest.DocTestParser().get_examples(page.read_text()):
        for node in ast.walk(ast.parse(example.source)):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                found.append((node.target.id, ast.unparse(node.annotation)))
    return found


def test_each_class_has_one_table() -> None:
    assert sorted(CLASSES) == sorted(name for name, _ in TABLES)


@pytest.mark.parametrize(("name", "rows"), TABLES, ids=[name for name, _ in TABLES])
def test_table_agrees_with_the_class(name: str, rows: list[Row]) -> None:
    """The keys and types are those of the specification; so are the defaults and versions in the docstring."""
    class_ = CLASSES[name]
    assert sorted(class_.__annotations__) == sorted(row.key for row in rows)
    hints = {key: TYPES_OF_SPECIFICATION.get((name, key), hint) for key, hint in typing.get_type_hints(class_).items()}
    assert {key: spelling(hint) for key, hint in hints.items()} == {row.key: row.type for row in rows}
    required = {row.key for row in rows if row.needed == "required"}
    assert class_.__required_keys__ >= required if class_ in READ else class_.__required_keys__ == required
    for row in rows:
        needed, version = told(name, row.key)
        if row.key not in required:
            assert needed == row.needed
        assert row.version in ({version} if version else {NO_VERSION, "since 1.0", "since 2.0"})
        assert row.meaning


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_examples_run_and_have_the_types_that_they_state(page: Path) -> None:
    test = doctest.DocTestParser().get_doctest(page.read_text(), {}, page.stem, str(page), 0)
    [setup] = re.findall(r"^\.\. testsetup::\n\n((?: {3}.*\n)+)", page.read_text(), re.MULTILINE) or [""]
    exec(re.sub("^ {3}", "", setup, flags=re.MULTILINE), test.globs)
    result = doctest.DocTestRunner().run(test, clear_globs=False)
    assert 0 == result.failed
    assert result.attempted
    names = [name for name, _ in examples(page)]
    assert sorted(set(names)) == sorted(names), "an example that is replaced is not looked at"
    for name, class_ in examples(page):
        assert is_of(test.globs[name], CLASSES[class_]), name


def test_each_class_has_an_example() -> None:
    assert set(CLASSES) == {class_ for page in PAGES for _, class_ in examples(page)}


@pytest.mark.parametrize("file", [*PAGES, *DRAWINGS], ids=lambda file: file.name)
def test_messages_that_are_named_exist(file: Path) -> None:
    """Also those in tables, examples and drawings."""
    named = re.findall(r"""(?:``|"|>)((?:http|websocket|lifespan)\.[a-z_.]+)(?:``|"|<)""", file.read_text())
    assert [] == [name for name in named if name not in MESSAGES | EXTENSIONS]


@pytest.mark.parametrize("drawing", DRAWINGS, ids=lambda drawing: drawing.stem)
def test_drawing_goes_with_any_theme_and_is_told_in_words(drawing: Path) -> None:
    """The drawing is inlined in the page, so it has the page's colours, and unique ids."""
    elements = list(ET.parse(drawing).iter())
    colours = {element.get(name) for element in elements for name in ("fill", "stroke")}
    assert colours <= {"currentColor", "none", None}
    assert [] == [element.tag for element in elements if element.get("style") or element.tag.endswith("}style")]
    described = elements[0].get("aria-labelledby", "").split()
    ids = [identifier for element in elements if (identifier := element.get("id"))]
    assert set(described) < set(ids)
    assert all(identifier.startswith(f"{drawing.stem}-") for identifier in ids)
    assert any(f"   :file: {drawing.name}\n" in page.read_text() for page in PAGES)
