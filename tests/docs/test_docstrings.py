"""Docstrings as a reader meets them: paragraphs in one piece, and commands that run as printed."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from ddpm_lib.cli import COMMANDS
from locations import ROOT

FOLDERS = ("src", "examples", "benchmarks", "tests")
SCRIPTS = sorted([*(ROOT / "examples").glob("*.py"), *(ROOT / "benchmarks").glob("*.py")])
LIST = re.compile(r"\s*([-*•|]|\d+[.)]|>>>)\s?")
LAUNCHERS = ("python", "torchrun", "accelerate", "ddpm", "pip")


def docstrings(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield ast.get_docstring(node) or ""


def ragged(text: str) -> list[str]:
    """Lines of a paragraph of prose that begin farther in than the line before, which was full."""
    found = []
    for paragraph in re.split(r"\n\s*\n", text):
        lines = paragraph.split("\n")
        if any(LIST.match(line) for line in lines) or lines[0].startswith(" "):
            continue
        found += [
            line
            for before, line in pairwise(lines)
            if len(before) > 60 and not before.endswith(":") and line[:1] == " " != before[:1]
        ]
    return found


def commands(path: Path) -> list[list[str]]:
    """The command lines of a script's docstring, word by word."""
    text = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").replace(
        "\\\n", " "
    )
    block = [line for line in text.splitlines() if line.startswith("    ")]
    return [shlex.split(line) for line in block]


def test_ragged_paragraphs_are_found():
    line = "This line of a paragraph is about as long as a line of prose may be in this project"
    assert ragged(f"Title.\n\n{line}\n    and goes on.\nHere too.") == ["    and goes on."]
    assert not ragged(f"Title.\n\n{line}\nand goes on:\n\n    python a.py --data b\n\n* one\n  two")


@pytest.mark.parametrize("folder", FOLDERS)
def test_paragraphs_are_in_one_piece(folder):
    found = {
        str(path.relative_to(ROOT)): lines
        for path in sorted((ROOT / folder).rglob("*.py"))
        if (lines := [line for text in docstrings(path) for line in ragged(text)])
    }
    assert not found


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_commands_in_docstrings_run_a_script_with_options_it_has(script):
    body = script.read_text(encoding="utf-8").split('"""', 2)[2]
    if script.parent.name == "benchmarks":  # which share some
        helpers = [path for path in SCRIPTS if path.parent == script.parent and path != script]
        body += "".join(
            path.read_text(encoding="utf-8") for path in helpers if path.stem in body.split()
        )
    known = set(re.findall(r"--[a-z][a-z0-9-]*", body))
    known |= {
        f"--{name.replace('_', '-')}" for name in re.findall(r"^    (\w+): ", body, re.MULTILINE)
    }
    for words in commands(script):
        assert words[0] in LAUNCHERS, words
        if words[0] == "pip" or (words[0] == "ddpm" and words[1] in COMMANDS):
            continue
        files = [i for i, word in enumerate(words) if word.endswith(".py")]
        assert [Path(words[i]).name for i in files] == [script.name], words
        options = {word for word in words[files[0] :] if word.startswith("--")}
        if script.name != "sample_sysu.py":  # which hands its words to `ddpm sample`
            assert options <= known, words
