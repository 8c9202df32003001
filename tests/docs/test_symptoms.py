"""docs/symptoms.md and the verdict lead to each other."""

from __future__ import annotations

import re

import pytest

from ddpm_lib.runs.verdict import KINDS, Verdict, symptom_line
from ddpm_lib.runs.verdict.sentences import NAMES
from ddpm_lib.runs.verdict.symptoms import SYMPTOMS, slug
from locations import ROOT
from prepared_runs import PREPARED

PAGE = (ROOT / "docs" / "symptoms.md").read_text(encoding="utf-8")
NO_VERDICT = {
    "11. Grainy, or without detail, with a good loss",
    "12. Enlarged, cut, or with borders",
}
OTHERS = {"My samples look like …", "Which number says what"}
"""Headings that are no symptoms."""


def sections() -> dict[str, str]:
    parts = re.split(r"^## (.+)$", PAGE, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2]))


def verdicts_of(text: str) -> set[str]:
    """Return the names in a section's line of verdicts."""
    line = re.search(r"\*\*Verdict\*\*: (.*?)\.", text)
    assert line is not None
    return set(re.findall(r"\*([^*]+)\*", line[1]))


@pytest.mark.parametrize("kind", KINDS)
def test_each_verdict_has_its_section(kind: str) -> None:
    text = sections()[SYMPTOMS[kind]]
    assert NAMES[kind] in verdicts_of(text)
    assert symptom_line(Verdict(kind, None, ())).endswith(f"#{slug(SYMPTOMS[kind])}")


def test_each_section_has_its_verdict() -> None:
    found = set(sections()) - OTHERS
    assert found - NO_VERDICT == set(SYMPTOMS.values())
    for heading in found - NO_VERDICT:
        named = {NAMES[kind] for kind, own in SYMPTOMS.items() if own == heading}
        assert named == verdicts_of(sections()[heading]), heading
    for heading in NO_VERDICT:
        assert not verdicts_of(sections()[heading])


def test_pictures_lead_to_every_section() -> None:
    """Who has a grid alone begins at the table: each row a picture, and every section is there."""
    table = sections()["My samples look like …"]
    rows = [line for line in table.splitlines() if line.startswith("| ![")]
    assert all("figures/small-symptom-" in row for row in rows)
    reached = set(re.findall(r"\]\(#([\w-]+)\)", "\n".join(rows)))
    assert reached == {slug(name) for name in set(sections()) - OTHERS - {"Too early to say"}}


@pytest.mark.parametrize("name", PREPARED)
def test_a_prepared_run_has_its_row(name: str) -> None:
    """The picture of each of the ten stands in the row that leads to the section of its verdict;
    the run without classes looks like one that goes well, and stands in that row.
    """
    table = sections()["My samples look like …"].splitlines()
    picture = "good" if name == "classes_unused" else name
    row = next(line for line in table if f"small-symptom-{picture}.png" in line)
    for kind in PREPARED[name].kinds:
        assert f"(#{slug(SYMPTOMS[kind])})" in row
