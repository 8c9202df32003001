"""Every public name has an example that runs: in its docstring, or in a page of the guides.

Doctests run in tests/core/test_package.py, the pages' blocks in tests/docs/test_docs.py. Both are
read here as syntax trees, so that a name counts where code uses it, not where prose has the word.
"""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from test_docs import PAGES, blocks

from locations import ROOT

sys.path.insert(0, str(ROOT / "docs"))

import site_names

NAMES = [name for room in site_names.PUBLIC_ROOMS for name in room.names]


def used_in(code: str) -> set[str]:
    """The names that code imports, reads or calls."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.ImportFrom):
            found |= {alias.name for alias in node.names}
    return found


def documented(thing: Any) -> Iterator[str]:
    """The docstrings of an object and, of a class, of what it defines."""
    yield inspect.getdoc(thing) or ""
    if isinstance(thing, type):
        for inner in vars(thing).values():
            yield inspect.getdoc(inner) or "" if callable(inner) else ""


def own_example(name: str) -> bool:
    """Whether a doctest of its docstrings uses it."""
    module, _, attribute = name.rpartition(".")
    parse = doctest.DocTestParser().get_examples
    texts = documented(getattr(importlib.import_module(module), attribute))
    examples = [example.source for text in texts for example in parse(text)]
    return any(attribute in used_in(source) for source in examples)


@pytest.fixture(scope="module")
def in_pages() -> set[str]:
    return {
        name
        for page in PAGES
        for block in blocks(page)
        if block.runs
        for name in used_in(block.text)
    }


def test_prose_is_no_example() -> None:
    assert used_in("from a import b\nc.d(e) # f") == {"b", "c", "d", "e"}


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_has_an_example_that_runs(name: str, in_pages: set[str]) -> None:
    assert name.rpartition(".")[2] in in_pages or own_example(name), (
        f"{name} has no example: add a doctest to its docstring, or use it in a block of a page"
        " that runs"
    )
