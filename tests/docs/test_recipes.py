"""docs/recipes.md: its table is that of the stored plans, and the stored plans are those of the
rules.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from ddpm_lib import Shapes
from locations import ROOT


@pytest.fixture
def recipes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    yield importlib.import_module("recipes")
    sys.modules.pop("common", None)


def test_the_table_is_that_of_the_stored_plans(recipes: Any) -> None:
    found = json.loads(recipes.RESULTS.read_text("utf-8"))
    (printed,) = recipes.MADE.findall(recipes.PAGE.read_text("utf-8"))
    assert printed == recipes.table(found)
    asked = {(one["images"], one["size"], one["hours"]) for one in found["plans"]}
    assert len(asked) == len(found["plans"]) == 20


def test_the_stored_plans_are_those_of_the_rules(recipes: Any) -> None:
    """But for the steps and what follows from them, which depend on the machine."""
    found = json.loads(recipes.RESULTS.read_text("utf-8"))["plans"]
    stored = next(one for one in found if (one["images"], one["size"]) == (60, 32))
    now = recipes.planned(Shapes(size=32, n=60), stored["hours"], "cpu")
    for name in ("batch_size", "patch_size", "predicts", "classes", "copies_from", "parameters"):
        assert now[name] == stored[name], name
    assert now.keys() == stored.keys()


def test_what_was_trained_is_what_the_page_says(recipes: Any) -> None:
    """And the pages of the runs that it links are there, and name no place of a machine."""
    runs = importlib.import_module("recipe_runs")
    found = json.loads(runs.RESULTS.read_text("utf-8"))
    (printed,) = runs.MADE.findall(runs.PAGE.read_text("utf-8"))
    assert printed == runs.table(found)
    linked = [runs.label_of(one) for one in found if runs.label_of(one) in runs.KEPT]
    assert linked
    for name in linked:
        page = (runs.PAGES / f"recipe-{name}.html").read_text(encoding="utf-8")
        assert "images/32/emoji" in page
        assert re.search(r"/(?:home|root|Users|tmp|mnt|srv|work)/", page) is None
