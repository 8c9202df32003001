"""docs/gallery.md: each picture has its block, its maker and its facts, and is small."""

from __future__ import annotations

import json
import re
import shlex
import sys

import pytest
from PIL import Image

from ddpm_lib.cli import COMMANDS
from locations import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import gallery

PAGE = (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")
FACTS = json.loads(gallery.FACTS.read_text(encoding="utf-8"))
TEXTS = dict(
    zip(
        re.findall(r"figures/gallery-(\w+)\.png", PAGE),
        re.split(r"!\[[^\]]*\]\(figures/gallery-\w+\.png\)", PAGE)[1:],
    )
)


def test_every_picture_has_a_maker_and_a_block() -> None:
    stored = {path.stem.removeprefix("gallery-") for path in gallery.FIGURES.glob("gallery-*.png")}
    assert stored == set(gallery.PICTURES) == set(TEXTS) == set(FACTS)
    assert all(gallery.sections().values())


@pytest.mark.parametrize("name", gallery.PICTURES)
def test_a_section_can_be_run_and_says_what_it_took(name: str) -> None:
    for language, text in gallery.sections()[name]:
        if language == "python":
            compile(text, name, "exec")
            continue
        for line in text.splitlines():
            program, command, *_ = shlex.split(line)
            assert program == "ddpm"
            assert command in COMMANDS
    seconds = FACTS[name]["cpu_seconds"]
    assert seconds <= (720 if name == "student" else 180)
    assert f"*{seconds:,.0f} CPU seconds.*" in TEXTS[name]


def test_pictures_are_small() -> None:
    files = list(gallery.FIGURES.glob("gallery-*.png"))
    assert sum(path.stat().st_size for path in files) < 2_000_000
    assert all(Image.open(path).width <= gallery.WIDE for path in files)


def test_runs_that_a_section_trains_are_found() -> None:
    assert gallery.made_runs(gallery.sections()["classes"]) == ["runs/shapes"]
    assert gallery.made_runs(gallery.sections()["student"]) == ["runs/student"]
    assert gallery.made_runs(gallery.sections()["editing"]) == []
