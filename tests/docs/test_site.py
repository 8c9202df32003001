"""The documentation site: complete, true to the library, and built without a warning."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import ddpm_lib
from ddpm_lib import ablation, data, evaluation, interop, metrics, nn, samplers, training
from locations import ROOT

DOCS = ROOT / "docs"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
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


@pytest.mark.parametrize(
    ("command", "option"),
    [("train", "--keep-early"), ("sample", "--guide-by"), ("evaluate", "--save-stats")],
)
def test_commands_are_shown_with_all_their_options(command: str, option: str) -> None:
    told = site_pages.help_of(command)
    assert re.search(rf"^  {option}\b", told, re.M)
    assert "common options" not in told


def test_the_version_is_the_same_everywhere() -> None:
    cited = re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text("utf-8"), re.M)
    assert cited is not None
    assert cited[1] == ddpm_lib.__version__
    assert f"## {ddpm_lib.__version__}" in (ROOT / "CHANGELOG.md").read_text("utf-8")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built without network; any warning is an error."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    offline = os.environ | {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    done = subprocess.run(
        [*command, str(DOCS), str(folder)], env=offline, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_without_network(built: Path) -> None:
    pages = list(built.rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        loaded = re.findall(
            r'<(?:script|link|img)[^>]+(?:src|href)="(https?:[^"]+)"', page.read_text("utf-8")
        )
        assert loaded == [], f"{page.name} loads from the network"


@pytest.mark.slow
def test_links_of_generated_pages_lead_to_the_guides(built: Path) -> None:
    text = (built / "generated" / "samplers.html").read_text("utf-8")
    for page, words in (("sampling.html", "sampling.md"), ("names.html#samplers", "names.md")):
        assert re.search(rf'href="\.\./{page}"[^>]*>(<[^>]+>)*{words}<', text), page


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
@pytest.mark.parametrize("width", [1280, 390])
def test_in_a_browser_pages_fit_and_the_search_finds(built: Path, width: int) -> None:
    """Opened from a file; nothing is wider than the window, but tables and code that scroll."""
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": 844})
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        for name in ("index", "method", "recipes", "symptoms", "generated/samplers"):
            page.goto((built / f"{name}.html").as_uri())
            wide = "document.documentElement.scrollWidth - window.innerWidth"
            assert page.evaluate(wide) <= 0, name
        page.goto((built / "search.html").as_uri() + "?q=memorisation")
        page.wait_for_selector("#search-results li")
        assert "Evaluation" in page.locator("#search-results").inner_text()
        assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
        browser.close()
