"""Sphinx: ``sphinx-build -W -n --keep-going -b html docs docs/_build/html``, and the same with ``-b doctest``."""

from typing import Any

from docutils import nodes

import asgiref

project = "asgiref"
author = "The asgiref authors (independent implementation)"
copyright = author  # noqa: A001
version = release = asgiref.__version__

extensions = ["sphinx.ext.autodoc", "sphinx.ext.doctest", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"asgiref {release}"
html_static_path = ["_static"]
html_css_files = ["pages.css"]

# Beside each parameter of the list, its type. Signatures stay short; overloads are for type checkers.
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
python_use_unqualified_type_names = True
autodoc_member_order = "bysource"
napoleon_numpy_docstring = False
napoleon_attr_annotations = False
# Sections of our own in docstrings.
napoleon_custom_sections = ["Thread and loop", "Closing", "Cancellation"]

nitpick_ignore_regex = [
    # A "Raises" section may begin with a sentence, or with an exception of asyncio, which has no page here.
    ("py:exc", r".* .*|asyncio\..*"),
    # Types of parameters name classes of the standard library and type variables, which have no page here.
    ("py:class", r".*"),
]

# Docstrings use the names of their own module without importing them.
doctest_global_setup = """
from asgiref.current_thread_executor import CurrentThreadExecutor
from asgiref.local import Local
from asgiref.sync import *
"""


def name_columns(app: Any, doctree: nodes.document, page: str) -> None:
    """Put the name of its column into each cell of wide tables; ``pages.css`` shows it on narrow screens."""
    for entry in doctree.findall(nodes.entry):
        if entry.astext() == "\N{EN DASH}":
            entry["classes"].append("none")
    for table in doctree.findall(nodes.table):
        heads = [[each.astext() for each in row] for head in table.findall(nodes.thead) for row in head]
        if not heads or len(heads[0]) < 3 or {"fields", "figures"} & set(table["classes"]):
            continue
        table["classes"].append("wide")
        for body in table.findall(nodes.tbody):
            for row in body:
                for name, entry in list(zip(heads[0], row, strict=False))[1:]:
                    if name and isinstance(entry.next_node(), nodes.paragraph):
                        entry[0].insert(0, nodes.inline("", name, classes=["column"]))


def setup(app: Any) -> None:
    app.connect("doctree-resolved", name_columns)
