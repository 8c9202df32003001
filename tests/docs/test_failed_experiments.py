"""docs/failed_experiments.md quotes: its figures are those of the pages it names, and its first
tables those of the file of measurements.
"""

from __future__ import annotations

import importlib.util
import json
import re
from types import ModuleType

import pytest

from locations import ROOT

PAGE = (ROOT / "docs" / "failed_experiments.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| ([^|]+) \| ([^|]+) \| ([^|]+) \| \[\w+\]\((\w+\.md)\) \|$", PAGE, re.M)
NUMBER = re.compile(r"(?<![\w.])−?\d+(?:\.\d+)?(?![\w.]*\d)")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0][:40])
def test_figures_are_those_of_the_page_that_is_named(row: tuple[str, str, str, str]) -> None:
    text = (ROOT / "docs" / row[3]).read_text(encoding="utf-8")
    known = set(NUMBER.findall(text))
    figures = NUMBER.findall(row[1])
    assert [one for one in figures if one not in known] == []


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "equal_seconds", ROOT / "benchmarks" / "equal_seconds.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tables_are_those_of_the_measurements() -> None:
    """What was not measured is said."""
    made = script()
    stored = made.RESULTS.is_file()
    measured = json.loads(made.RESULTS.read_text(encoding="utf-8")) if stored else {}
    assert len(ROWS) > 12
    for data in made.FIXED:
        assert (data in measured) != (f"{data}: not measured yet." in PAGE)
    for parts in measured.values():
        for rows in parts.values():
            for line in made.table(rows).splitlines():
                assert line in PAGE
