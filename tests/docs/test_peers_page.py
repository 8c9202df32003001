"""docs/peers.md names all published numbers, and only tests that there are."""

import re
from pathlib import Path

from locations import ROOT

PAGE = ROOT / "docs" / "peers.md"


def test_every_test_that_is_named_exists() -> None:
    defined = {
        name
        for path in (ROOT / "tests").glob("*/test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(), re.M)
    }
    named = set(re.findall(r"`(test_\w+)`", PAGE.read_text(encoding="utf-8")))
    assert len(named) > 50
    assert named - defined == set()


def test_all_published_numbers_are_listed(shared: Path) -> None:
    text = PAGE.read_text(encoding="utf-8")
    there = {f"{p.parent.name}/{p.stem}" for p in (shared / "fixtures").glob("[ABC]_*/*.json")}
    assert len(there) > 50
    assert {name for name in there if f"`{name}`" not in text} == set()
