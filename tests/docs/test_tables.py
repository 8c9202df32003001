"""Tables of names that are printed are those of the library: nothing is missing, nothing too much.

`test_every_choice_is_named` sees to it that each name stands somewhere; here the tables that a
reader takes for complete are compared with the registries, there and back, and the same names with
the choices that `--help` shows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from ddpm_lib import parametrization, schedules, spacing, time_sampling, variance, weighting
from ddpm_lib.cli import _READER_LEFT, COMMANDS, main
from ddpm_lib.core.errors import LostProcessError
from ddpm_lib.evaluation import METRICS
from ddpm_lib.nn import PRESETS
from ddpm_lib.process import clipping
from ddpm_lib.process.measuring import METHODS
from ddpm_lib.process.operators import OPERATORS
from ddpm_lib.process.presets import PROCESS_PRESETS
from ddpm_lib.samplers import SAMPLERS
from ddpm_lib.training import TrainingResult
from locations import ROOT

DOCS = ROOT / "docs"
TICKED = re.compile(r"`([\w.-]+)`")


def page(name: str) -> str:
    return (DOCS / f"{name}.md").read_text(encoding="utf-8")


def rows(text: str, head: str) -> list[list[str]]:
    """Return the cells of all tables whose heading begins with a cell, row by row."""
    found = []
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        first, _, *body = [re.split(r"(?<!\\)\|", line)[1:-1] for line in table.splitlines()]
        if first[0].strip() == head:
            found += [[cell.strip() for cell in row] for row in body]
    assert found, head
    return found


def first_cells(name: str, head: str) -> set[str]:
    """Return the names in the first column of a page's tables."""
    return {word for row in rows(page(name), head) for word in TICKED.findall(row[0])}


def cell(name: str, head: str, option: str) -> set[str]:
    """Return the names that a page gives for an option in a table, but for what explains them."""
    (row,) = (row for row in rows(page(name), head) if row[0] == f"`{option}`")
    return set(TICKED.findall(row[1]))


def sentence(name: str, begins: str, ends: str) -> set[str]:
    """Return the names in a passage of a page."""
    text = page(name)
    start = text.index(begins) + len(begins)
    return set(TICKED.findall(text[start : text.index(ends, start)]))


TABLES: dict[str, tuple[Callable[[], set[str]], Iterable[str]]] = {
    "samplers": (lambda: first_cells("sampling", "sampler"), SAMPLERS),
    "spacings": (
        lambda: sentence("sampling", "`spacing` says which", "or a decreasing list") - {"unipc"},
        spacing.SPACINGS,
    ),
    "schedules": (lambda: cell("training", "option", "schedule"), schedules.SCHEDULES),
    "parametrizations": (
        lambda: cell("training", "option", "parametrization"),
        parametrization.PARAMETRIZATIONS,
    ),
    "weightings": (lambda: cell("training", "option", "weighting"), weighting.WEIGHTINGS),
    "variances": (lambda: cell("training", "option", "variance"), variance.VARIANCES),
    "time samplers": (
        lambda: cell("training", "option", "time_sampler"),
        time_sampling.TIME_SAMPLERS,
    ),
    "clips": (lambda: cell("training", "option", "clip"), clipping.CLIPS),
    "metrics": (lambda: first_cells("evaluation", "`--metrics`"), METRICS),
    "presets": (lambda: first_cells("unet", "preset"), {*PRESETS, *PROCESS_PRESETS}),
    "operators": (lambda: first_cells("sampling", "operator"), OPERATORS),
    "methods": (lambda: first_cells("sampling", "`method`"), METHODS),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_has_the_names_of_the_library(name: str) -> None:
    printed, known = TABLES[name]
    assert printed() == set(known)


def words_of_source(pattern: str) -> set[str]:
    files = (ROOT / "src" / "ddpm_lib").rglob("*.py")
    return {word for file in files for word in re.findall(pattern, file.read_text("utf-8"))}


def test_the_librarys_own_variables_are_in_the_table() -> None:
    printed = first_cells("environment", "variable")
    own = words_of_source(r"\bDDPM_LIB_[A-Z0-9_]*[A-Z0-9]\b")
    assert {word for word in printed if word.startswith("DDPM_LIB_")} == own
    others = printed - own
    assert others
    read = words_of_source(r'"([A-Z][A-Z0-9_]+)"') | words_of_source(r"\$([A-Z][A-Z0-9_]+)")
    assert others <= read


def test_exit_codes_are_in_the_table() -> None:
    table = rows(page("environment"), "code")
    printed = {int(row[0]) for row in table}
    ended = [
        TrainingResult(status, 1, "", Path("x"), None, signal, complete)
        for status, signal, complete in (
            ("finished", None, True),
            ("stopped", "SIGINT", False),
            ("stopped", "SIGTERM", False),
        )
    ]
    wrong = main(["sample", "no-such-run"])
    known = {one.exit_code for one in ended} | {LostProcessError.exit_code, _READER_LEFT, wrong}
    assert printed == known | {1}
    training = {int(row[2]) for row in rows(page("training"), "what happens")}
    assert training < printed


def test_every_command_is_explained_in_a_guide() -> None:
    """Beside its page of options, which the site makes: where it is shown how it is called."""
    text = "\n".join(file.read_text("utf-8") for file in (*DOCS.glob("*.md"), ROOT / "README.md"))
    assert [
        name for name in COMMANDS if not re.search(rf"(?:^|`|&& )ddpm {name}\b", text, re.M)
    ] == []


def test_help_names_each_command_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = re.findall(r"^  (\w+) +\S", capsys.readouterr().out, re.MULTILINE)
    assert sorted(word for word in shown if word in COMMANDS) == sorted(COMMANDS)


CHOICES = {
    "samplers": ("sample", r"--sampler SAMPLER\s+Sampler: (.*?)[;.]"),
    "spacings": ("sample", r"--spacing TEXT\s+Levels visited: (.*?)[;.]"),
}


@pytest.mark.parametrize("name", CHOICES)
def test_help_shows_the_same_choices(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    command, pattern = CHOICES[name]
    with pytest.raises(SystemExit) as stop:
        main([command, "--help-all"])
    assert not stop.value.code
    shown = re.search(pattern, " ".join(capsys.readouterr().out.split()))
    assert shown is not None
    words = set(re.findall(r"\w+", shown[1])) - {"or", "default", "of"}
    assert words >= set(TABLES[name][1])
