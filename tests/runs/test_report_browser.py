"""The page of a run in a real browser, opened from a file, as after scp."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ddpm_lib.runs.report import write_comparison, write_report
from ddpm_lib.runs.report.page_frame import asset
from made_runs import make_run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine"),
]

Open = Callable[..., Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    with playwright.sync_playwright() as running:
        started = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def opened(browser: Any) -> Iterator[Open]:
    """Open a page; nothing may be said on the console, and nothing asked of a network."""
    complaints: list[str] = []
    contexts = []

    def open_page(path: Path, width: int = 1280, height: int = 900, **options: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "request",
            lambda request: (
                None
                if request.url.startswith(("file:", "data:"))
                else complaints.append(request.url)
            ),
        )
        page.goto(path.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


def legend(page: Any, chart: str) -> str:
    rows = page.locator(f'[data-chart="{chart}"] .u-legend .u-series')
    words = ([*row.locator("th, td").all_inner_texts()] for row in rows.all())
    return "; ".join(" ".join(one) for one in words)


def shown_step(page: Any) -> str:
    return str(page.locator(".grids figure.shown").get_attribute("data-step"))


def wait_until(page: Any, expression: str, seconds: float = 60.0) -> None:
    """Wait for something in a page; Playwright's own way is forbidden by the page's policy."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(Exception):  # it may be between two loads
            if page.evaluate(expression):
                return
        time.sleep(0.1)
    raise AssertionError(f"never true: {expression}")


@pytest.mark.parametrize("n", [0, 1, 100, 100_000])
def test_any_number_of_rows_opens(n: int, tmp_path: Path, opened: Open) -> None:
    path = write_report(make_run(tmp_path / "run", n, grids=3 if n else 0), picture=False)
    began = time.perf_counter()
    page = opened(path)
    wait_until(page, "document.readyState === 'complete'")
    took = time.perf_counter() - began
    print(f"{n:,} rows: {path.stat().st_size / 1000:,.0f} kB, open in {took:.2f} s")
    assert page.locator(".plot .u-over").count() == (0 if not n else 5 if n == 1 else 6)
    assert page.locator("#verdict .headline").inner_text()


def test_values_are_read_under_the_pointer(tmp_path: Path, opened: Open) -> None:
    page = opened(write_report(make_run(tmp_path / "run", 100)))
    area = page.locator('[data-chart="loss"] .u-over')
    area.scroll_into_view_if_needed()
    area.hover(position={"x": area.bounding_box()["width"] - 2, "y": 40})
    told = legend(page, "loss")
    assert re.search(r"step 100\b", told), told
    assert re.search(r"held-out images 0\.101 ± 0\.004", told), told
    assert re.search(r"step 100\b", legend(page, "gap")), "the marker is in all charts"


def test_zoom_by_pointer_and_back(tmp_path: Path, opened: Open) -> None:
    page = opened(write_report(make_run(tmp_path / "run", 100)))
    area = page.locator('[data-chart="loss"] .u-over')
    area.scroll_into_view_if_needed()
    box = area.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.75, box["y"] + 60, steps=5)
    page.mouse.up()
    page.mouse.move(box["x"] + 1, box["y"] + 50)
    first = int(re.search(r"step (\d+)", legend(page, "quarters"))[1])
    assert 48 <= first <= 53
    page.get_by_role("button", name="whole range").click()
    page.mouse.move(box["x"] + 1, box["y"] + 50)
    area.hover(position={"x": 1, "y": 50})
    assert re.search(r"step 1\b", legend(page, "quarters"))


def test_everything_by_keyboard(tmp_path: Path, opened: Open) -> None:
    page = opened(write_report(make_run(tmp_path / "run", 100)))
    page.locator('[data-chart="loss"]').focus()
    page.keyboard.press("End")
    reading = page.locator("#plot-reading")
    assert "Loss: step 100" in reading.inner_text().replace(":  ", " ").replace("step:", "step")
    page.keyboard.press("ArrowLeft")
    assert "99" in reading.inner_text()
    for key in ("+", "+", "Home"):
        page.keyboard.press(key)
    assert int(re.search(r"step:?\s*(\d+)", reading.inner_text())[1]) > 50
    page.keyboard.press("0")
    page.keyboard.press("Home")
    assert re.search(r"step:?\s*1;", reading.inner_text())
    name = page.locator('[data-chart="loss"] .u-legend th').nth(1)
    name.focus()
    page.keyboard.press("Enter")
    assert "u-off" in page.locator('[data-chart="loss"] .u-series').nth(1).get_attribute("class")
    page.locator("#grid").focus()
    page.keyboard.press("Home")
    assert shown_step(page) == "33"
    page.keyboard.press("ArrowRight")
    assert shown_step(page) == "66"
    assert page.locator("#grid").get_attribute("aria-valuetext") == "step 66"


def test_log_axes_and_smoothing_redraw(tmp_path: Path, opened: Open) -> None:
    page = opened(write_report(make_run(tmp_path / "run", 100)))
    area = page.locator('[data-chart="loss"] canvas')
    area.scroll_into_view_if_needed()
    seen = [area.screenshot()]
    for change in ("#log-y", "#log-x"):
        page.locator(change).click()
        seen.append(area.screenshot())
    page.locator("#smoothing").fill("0.9")
    seen.append(area.screenshot())
    assert len(set(seen)) == 4
    assert page.locator("#smoothing-value").inner_text() == "0.90"
    assert "(smoothed)" in legend(page, "loss")


def test_a_page_reloads_and_keeps_its_place(
    tmp_path: Path, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = (
        asset("page.js")
        .replace("EVERY = 10000", "EVERY = 700")
        .replace("touched < 4000", "touched < 100")
    )
    monkeypatch.setattr(
        "ddpm_lib.runs.report.page_frame.asset",
        lambda name, asset=asset: quick if name == "page.js" else asset(name),
    )
    run = make_run(tmp_path / "run", 50, status="running")
    page = opened(write_report(run, word="running", picture=False))
    assert page.get_by_label("reload while it trains").is_checked()
    page.locator("#grid").fill("1")
    page.locator("#smoothing").fill("0.5")
    page.locator("#run summary").click()
    page.evaluate("window.scrollTo(0, 700)")
    make_run(run, 80, status="running")
    write_report(run, word="running", picture=False)
    rows = "JSON.parse(document.getElementById('run-data').textContent).charts[0].curves[0].points"
    wait_until(page, f"{rows} === 80 && document.querySelector('.uplot') !== null")
    assert shown_step(page) == "32"
    assert page.locator("#smoothing").input_value() == "0.5"
    assert page.locator("#run details").get_attribute("open") is not None
    assert page.evaluate("window.scrollY") == 700
    make_run(run, 80, status="finished")
    write_report(run, word="finished", picture=False)
    wait_until(page, "document.getElementById('live') === null")


def test_hostile_names_run_nothing(tmp_path: Path, opened: Open) -> None:
    bad = "</script><script>console.log('ran')</script><img src=x onerror=console.log('ran')>"
    run = make_run(tmp_path / "run", 30, word=bad)
    page = opened(write_report(run))
    assert bad in page.locator("#data").inner_text()
    both = opened(write_comparison([run, run], tmp_path / "both.html"))
    assert bad in both.locator("#scores").inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_window(
    width: int, scheme: str, tmp_path: Path, opened: Open
) -> None:
    run = make_run(tmp_path / ("a-very-long-name-of-a-run" * 4), 100)
    for path in (write_report(run), write_comparison([run, run], tmp_path / "both.html")):
        page = opened(path, width=width, height=844, color_scheme=scheme)
        assert page.evaluate("document.documentElement.scrollWidth") == width
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        light = sum(map(int, re.findall(r"\d+", colour))) > 380
        assert light == (scheme == "light")


def test_numbers_are_inside_for_programs(tmp_path: Path, opened: Open) -> None:
    page = opened(write_report(make_run(tmp_path / "run", 20)))
    data = json.loads(page.locator("#run-data").evaluate("one => one.textContent"))
    assert data["options"]["data"] == "cats"
    assert data["evaluations"][0]["scores"][0]["value"] == 0.0063
