"""README says what the benchmarks' files say, in few words, and its commands print what stands
there.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from locations import ROOT
from sysu_clone import clone

README = ROOT / "README.md"
CLASSES = ("airplane", "bicycle", "boat", "car", "motorbike")
STRIP = ROOT / "docs" / "figures" / "strip.png"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import a benchmark by name."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    for name in ("readme", "readme_runs", "readme_strip"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module


def prose(text: str) -> list[str]:
    """The words of a page without code, tables, comments, pictures and addresses."""
    text = re.sub(r"```.*?```|<!--.*?-->|!\[.*?\]\(.*?\)", "", text, flags=re.DOTALL)
    text = re.sub(r"\]\([^)]*\)", "]", text)
    lines = [line for line in text.splitlines() if not line.startswith("|")]
    return re.findall(r"[^\W_][\w'./-]*", "\n".join(lines))


def python_block() -> str:
    (block,) = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)
    return block


def run_python(block: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Image.Image:
    """Run README's Python in a folder and return the picture that it leaves."""
    monkeypatch.chdir(folder)
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        exec(compile(block, "README.md", "exec"), {"__name__": "readme"})
    (picture,) = folder.glob("*.png")
    return Image.open(picture)


def test_numbers_are_those_of_the_files(script: Any, capsys: pytest.CaptureFixture[str]) -> None:
    code = script("readme").main(["--check"])
    assert code == 0, f"run benchmarks/readme.py --write\n{capsys.readouterr().out}"


def test_a_changed_file_is_seen(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    readme = script("readme")
    for path in readme.RESULTS.glob("*.json"):
        found = json.loads(path.read_text())
        if path.stem == "strip":
            found["marks"][0]["steps"] += 1
        (tmp_path / path.name).write_text(json.dumps(found))
    monkeypatch.setattr(readme, "RESULTS", tmp_path)
    assert readme.main(["--check"]) == 1
    assert capsys.readouterr().out.count("\n+") == 2  # the heading of the difference, and a line


def test_every_file_is_quoted_and_every_block_known(script: Any) -> None:
    readme = script("readme")
    marked = re.findall(r"<!-- generated: (\w+) -->", README.read_text())
    assert sorted(marked) == sorted(readme.BLOCKS)
    named = (ROOT / "benchmarks" / "README.md").read_text()
    others = (
        "method",
        "recipes",
        "recipe_runs",
        "quality",
        "gallery",
        "equal_seconds",
        "equal_budget",
        "ten_sets",
        "stop_rule",
    )
    guides = [ROOT / "benchmarks" / f"{name}.py" for name in others]
    read = "".join(path.read_text() for path in [Path(readme.__file__), *guides])
    for path in readme.RESULTS.iterdir():
        assert f'"{path.stem}"' in read or f'"{path.name}"' in read
        assert path.stem in named


def test_length() -> None:
    assert 350 <= len(prose(README.read_text(encoding="utf-8"))) <= 500


def test_strip_is_small_and_shows_what_the_files_say(script: Any) -> None:
    assert STRIP.stat().st_size <= 400_000
    with Image.open(STRIP) as picture:
        panels = len(script("readme").results("strip")["marks"]) + 1
        assert picture.width > 2.4 * picture.height * panels / 3.2


@pytest.mark.slow
def test_strip_is_made_and_continued(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = clone(tmp_path / "dataset", classes=CLASSES, n=8)
    strip = script("readme_strip")
    monkeypatch.setattr(strip, "NETWORK", {"dim": 8, "dim_mults": (1, 2), "patch_size": 2})
    monkeypatch.setattr(strip, "TRAINING", {**strip.TRAINING, "batch_size": 4})
    monkeypatch.setattr(strip, "PER_CLASS", strip.SHOWN)
    out = {
        "--run": tmp_path / "run",
        "--strip": tmp_path / "s.png",
        "--output": tmp_path / "s.json",
    }
    words = ["--data", str(data), *(str(word) for pair in out.items() for word in pair)]
    for marks in (["0.001"], ["0.001", "0.01"]):
        assert strip.main([*words, "--minutes", *marks]) == 0
        found = json.loads((tmp_path / "s.json").read_text())["marks"]
        assert [f"{mark['minutes']:g}" for mark in found] == marks
        assert Image.open(tmp_path / "s.png").width == (len(marks) + 1) * (4 * 66 + 16) - 16
        assert found[-1]["cpu_seconds"] >= 60 * float(marks[-1])
    assert found[1]["steps"] > found[0]["steps"]


def test_python_is_short_and_ends_in_a_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = python_block()
    assert len(block.strip().replace("\n\n", "\n").splitlines()) <= 12
    changes = {"max_steps=500": "max_steps=2", "dim=32": "dim=8", "size=16)": "size=16, n=64)"}
    changes["sample(36, "] = "sample(36, num_steps=2, "
    for old, new in changes.items():
        assert old in block
        block = block.replace(old, new)
    assert run_python(block, tmp_path, monkeypatch).size == (440, 440)


@pytest.mark.slow
def test_python_draws_shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is printed: 36 pictures, a shape of one colour in the middle of a light ground."""
    import numpy as np

    picture = np.asarray(run_python(python_block(), tmp_path, monkeypatch).convert("RGB")) / 255
    places = [8 + 72 * k for k in range(6)]
    tiles = [picture[y : y + 64, x : x + 64] for y in places for x in places]
    ground = [np.median(np.concatenate([tile[:4], tile[-4:]]).mean(-1)) for tile in tiles]
    middle = [np.ptp(tile[8:-8, 8:-8].mean(-1)) for tile in tiles]
    assert np.mean(np.array(ground) > 0.8) > 0.9
    assert np.mean(np.array(middle) > 0.2) > 0.9


def shape(line: str) -> str:
    """A line without its numbers."""
    return re.sub(r"\d[\d,.e+-]*", "#", " ".join(line.split()))


def printed_blocks() -> list[tuple[str, list[str]]]:
    """A command, and the lines that stand below it as its output."""
    text = README.read_text(encoding="utf-8")
    names = {"train": "ddpm train", "evaluate": "ddpm evaluate runs/shapes"}
    found = re.findall(r"<!-- generated: (\w+) -->\n```text\n(.*?)\n```", text, re.DOTALL)
    return [(names[name], lines.splitlines()) for name, lines in found]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_commands_print_what_stands_there(tmp_path: Path) -> None:
    """The same kinds of lines in the same order; which numbers and findings they hold differs from
    machine to machine.
    """
    assert len(printed_blocks()) == 2
    for command, wanted in printed_blocks():
        words = [sys.executable, "-m", "ddpm_lib.cli", *shlex.split(command)[1:]]
        done = subprocess.run(
            words, cwd=tmp_path, capture_output=True, text=True, check=False, env=environment()
        )
        assert done.returncode == 0, done.stderr
        got = [shape(line).split(" ")[0] for line in (done.stdout + done.stderr).splitlines()]
        firsts = [shape(line).split(" ")[0] for line in wanted if line.strip() and line != "…"]
        missing = [word for word in firsts if word not in got]
        assert len(missing) <= len(firsts) // 10, missing


def environment() -> dict[str, str]:
    import os

    return {**os.environ, "COLUMNS": "100"}
