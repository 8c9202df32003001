"""The documentation site: complete, true to the library, and built without a warning."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ddpm_lib
from ddpm_lib import ablation, data, evaluation, interop, metrics, nn, samplers, training
from locations import ROOT

DOCS = ROOT / "docs"
sys.path.insert(0, str(DOCS))

import site_names  # noqa: E402
import site_pages  # noqa: E402


def test_every_page_is_in_the_table_of_contents() -> None:
    index = (DOCS / "index.md").read_text("utf-8")
    listed = set(re.findall(r"^([\w/]+)$", index, re.M))
    pages = {path.stem for path in DOCS.glob("*.md")} - {"index"}
    made = {f"generated/{room.file}" for room in site_names.PUBLIC_ROOMS}
    made |= {"generated/commands", "generated/switching"}
    assert pages | made <= listed, sorted((pages | made) - listed)


def test_the_reference_has_every_public_name_of_the_library() -> None:
    names = {name for room in site_names.PUBLIC_ROOMS for name in room.names}
    assert {f"ddpm_lib.{name}" for name in ddpm_lib.__all__} <= names
    rooms = {
        room.__name__: set(room.__all__)
        for room in (ablation, data, evaluation, interop, metrics, nn, samplers, training)
    }
    for name in names:
        module, _, attribute = name.rpartition(".")
        assert module == "ddpm_lib" or attribute in rooms[module], f"{name} is not public"


@pytest.mark.parametrize("peer", site_pages.PEERS, ids=lambda peer: peer["title"].split()[0])
def test_every_argument_of_another_library_has_its_answer(peer) -> None:
    words = " ".join(peer["arguments"].values()).split()
    assert len(words) > 20
    assert [word for word in words if site_pages.answer(word) is None] == []
    told = site_pages.options()
    for word in words:
        for name in re.findall(r"^`(\w+)`", site_pages.ANSWERS.get(word, "")):
            known = name in told or hasattr(ddpm_lib, name)
            assert known or name in ("class_conditional", "class_label", "num"), (word, name)


def test_the_version_is_the_same_everywhere() -> None:
    cited = re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text("utf-8"), re.M)
    assert cited is not None
    assert cited[1] == ddpm_lib.__version__
    assert f"## {ddpm_lib.__version__}" in (ROOT / "CHANGELOG.md").read_text("utf-8")


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_without_network(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    offline = os.environ | {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    done = subprocess.run(
        [*command, str(DOCS), str(tmp_path)], env=offline, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        loaded = re.findall(
            r'<(?:script|link|img)[^>]+(?:src|href)="(https?:[^"]+)"', page.read_text("utf-8")
        )
        assert loaded == [], f"{page.name} loads from the network"
