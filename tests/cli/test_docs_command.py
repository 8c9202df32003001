"""`ddpm docs`: every page, and every place that messages name."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

import ddpm_lib
from command_line import ddpm
from ddpm_lib.cli import docs
from ddpm_lib.core.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
NAMED = sorted(
    {
        found
        for file in (ROOT / "src").rglob("*.py")
        for found in re.findall(r"docs/[a-z_]+\.md(?:#[\w-]+)?", file.read_text(encoding="utf-8"))
    }
)
"""What help, messages and docstrings name."""


def test_pages_are_listed_with_their_titles(capsys: pytest.CaptureFixture[str]) -> None:
    assert ddpm("docs") == 0
    told = capsys.readouterr().out
    for page in (ROOT / "docs").glob("*.md"):
        assert re.search(rf"^  {page.stem} +\S", told, re.MULTILINE), page.stem


@pytest.mark.parametrize("written", ["symptoms", "symptoms.md", "docs/symptoms.md"])
def test_a_page_is_printed(written: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert ddpm("docs", written) == 0
    whole = (ROOT / "docs" / "symptoms.md").read_text(encoding="utf-8")
    assert capsys.readouterr().out == whole.rstrip("\n") + "\n"


def test_a_section_ends_before_the_next_of_its_rank(capsys: pytest.CaptureFixture[str]) -> None:
    assert ddpm("docs", "docs/symptoms.md#1-only-noise") == 0
    told = capsys.readouterr().out
    assert told.startswith("## 1. Only noise\n")
    assert "\n## 2." not in told


def test_headings_within_code_are_none() -> None:
    text = "# A\n```bash\n# no heading\n```\n## B\n### C\nx\n## D\n"
    assert docs.section(text, "a", "p") == text.rstrip("\n")
    assert docs.section(text, "b", "p") == "## B\n### C\nx"
    with pytest.raises(ConfigError, match="Unknown section of p 'no-heading'"):
        docs.section(text, "no-heading", "p")


@pytest.mark.parametrize("written", NAMED)
def test_what_messages_name_is_there(written: str) -> None:
    file, anchor = docs.find(written)
    text = file.read_text(encoding="utf-8")
    assert not anchor or docs.section(text, anchor, file.stem)


def test_messages_name_pages() -> None:
    """So that the test above has something to test."""
    assert len(NAMED) > 10
    assert any("#" in written for written in NAMED)


@pytest.mark.parametrize("written", ["symptom", "../README.md", "docs/", "a b"])
def test_a_page_that_is_not_there(written: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert ddpm("docs", written) == 2
    assert "Unknown page" in capsys.readouterr().err


def test_where_the_file_lies(capsys: pytest.CaptureFixture[str]) -> None:
    assert ddpm("docs", "training#resuming", "--path") == 0
    assert Path(capsys.readouterr().out.strip()) == ROOT / "docs" / "training.md"


def test_an_installed_library_has_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The wheel puts docs/ into the package."""
    monkeypatch.setattr(ddpm_lib, "__file__", str(tmp_path / "lib" / "ddpm_lib" / "__init__.py"))
    with pytest.raises(ConfigError, match="Install it again"):
        docs.folder()
    guides = tmp_path / "lib" / "ddpm_lib" / "guides"
    guides.mkdir(parents=True)
    (guides / "index.md").write_text("# All of it\n")
    assert docs.pages() == {"index": "All of it"}
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert wheel["tool"]["hatch"]["build"]["targets"]["wheel"]["sources"] == {
        "src/ddpm_lib": "ddpm_lib",
        "docs": f"ddpm_lib/{guides.name}",
    }
