"""docs/method.md: each statement has a test that exists, each figure a script, each number its
file.
"""

from __future__ import annotations

import ast
import functools
import json
import re
from pathlib import Path

import pytest

from locations import ROOT

TESTS = ROOT / "tests"
PAGE = (ROOT / "docs" / "method.md").read_text("utf-8")
PAGES = sorted((ROOT / "docs").glob("*.md"))
RESULTS = ROOT / "benchmarks" / "results" / "memorisation_onset.json"


@functools.cache
def functions(file: Path) -> set[str]:
    """The names of a file's tests."""
    tree = ast.parse(file.read_text("utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def missing(text: str) -> list[str]:
    """The tests that a text names and that are not there."""
    named = re.findall(r"`(?:tests/)?([\w/]+\.py)::(\w+)`", text)
    files = [(TESTS / file, name) for file, name in named]
    return [
        f"{file.relative_to(TESTS)}::{name}"
        for file, name in files
        if not file.is_file() or name not in functions(file)
    ]


def test_a_test_that_is_not_there_is_noticed() -> None:
    here = "docs/test_method.py"
    assert missing(f"`{here}::test_a_test_that_is_not_there_is_noticed`") == []
    assert missing(f"`{here}::test_no` `no/test_no.py::test_no`") == [
        f"{here}::test_no",
        "no/test_no.py::test_no",
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_test_that_a_page_names_is_there(page: Path) -> None:
    text = page.read_text("utf-8")
    assert missing(text) == []
    files = re.findall(r"`(tests/[\w/]+\.py)`", text)
    invented = {  # by the page itself: tests/docs/test_first_change.py makes them
        name for name in files if f"```python\n# {name}\n" in text
    }
    assert [name for name in files if name not in invented and not (ROOT / name).is_file()] == []


def test_every_part_of_the_method_names_its_tests() -> None:
    parts = re.split(r"^## ", PAGE, flags=re.M)[1:]
    assert len(parts) == 8
    for part in parts[:-1]:  # the last says how to cite
        rows = re.findall(r"^\| (.+) \| (.+) \|$", part.split("| statement | test |")[1], re.M)
        assert len(rows) >= 4, part[:40]
        for statement, tests in rows:
            assert "::test_" in tests, statement


def test_every_figure_of_the_method_has_its_drawer() -> None:
    script = ast.parse((ROOT / "benchmarks" / "method.py").read_text("utf-8"))
    drawn = {node.name for node in script.body if isinstance(node, ast.FunctionDef)}
    shown = re.findall(r"figures/method-(\w+)\.png", PAGE)
    assert len(shown) == len(set(shown)) == 5
    assert set(shown) <= drawn
    stored = {path.stem for path in (ROOT / "docs" / "figures").glob("method-*.png")}
    assert stored == {f"method-{name}" for name in shown}


def test_the_measured_onsets_are_those_of_the_page() -> None:
    data = json.loads(RESULTS.read_text("utf-8"))
    rows = re.findall(r"^\| (\w+) \| (\d+) \| ([\d, ]+) \| ([\d, ]+) \|$", PAGE, re.M)
    for kind, images, steps, passes in rows:
        runs = [r for r in data["runs"] if (r["set"], r["images"]) == (kind, int(images))]
        onsets = [run["onset"] for run in runs]
        assert steps == ", ".join(f"{when:.0f}" for when in onsets)
        seen = [when * data["batch_size"] / int(images) for when in onsets]
        assert passes == ", ".join(f"{n:.0f}" for n in seen)
    assert len(rows) == len({(r["set"], r["images"]) for r in data["runs"]})
    for kind, (slope, low, high) in data["slopes"].items():
        assert f"{kind}: {slope:.2f} ({low:.2f} … {high:.2f})" in PAGE
