"""The five changes of docs/first_change.md, applied to a copy of the library, pass their tests."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from locations import ROOT

PAGE = ROOT / "docs" / "first_change.md"


def _blocks(kind: str) -> list[tuple[str, str]]:
    """Return the path and the content of each block of a kind."""
    found = re.findall(rf"^```{kind}\n# (\S+)\n(.*?)^```$", PAGE.read_text("utf-8"), re.M | re.S)
    return [(path, content) for path, content in found]


def _apply(file: Path, change: str) -> None:
    """Add and remove lines: a line that stays, or goes, says where."""
    text, at = file.read_text("utf-8"), 0
    for line in change.splitlines():
        mark, line = line[0], line[1:] + "\n"
        if mark == "+":
            text, at = text[:at] + line + text[at:], at + len(line)
            continue
        assert text.count(line, at) >= 1, f"{file.name} has no line {line!r} any more"
        start = text.index(line, at)
        if mark == "-":
            text, at = text[:start] + text[start + len(line) :], start
        else:
            at = start + len(line)
    file.write_text(text, "utf-8")


@pytest.mark.slow
def test_the_changes_of_the_page_pass_their_tests(tmp_path: Path) -> None:
    shutil.copytree(
        ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info")
    )
    files, changes = _blocks("python"), _blocks("diff")
    assert (len(files), len(changes)) == (10, 4), "the page was read in part"
    tests = []
    for name, content in files:
        path = tmp_path / name
        assert not path.exists(), f"{name} exists already"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, "utf-8")
        tests += [name] if name.startswith("tests/") else []
    for name, change in changes:
        _apply(tmp_path / name, change)
    paths = os.pathsep.join([str(tmp_path / "src"), str(ROOT / "tests" / "helpers")])
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "0", *tests]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert f"{len(tests)} passed" in done.stdout
