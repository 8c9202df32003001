"""The page of a run, made of files: what is in it, what cannot get into it, and its size."""

from __future__ import annotations

import base64
import errno
import hashlib
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddpm_lib.runs.records import RunRecords, read_records
from ddpm_lib.runs.report import PAGE, write_comparison, write_report, writing
from ddpm_lib.runs.report.charts import gap, run_charts
from ddpm_lib.runs.report.comparison_page import differing
from ddpm_lib.runs.report.energy import estimate_energy
from ddpm_lib.runs.report.marking_up import script_json, text
from ddpm_lib.runs.report.page_facts import score_rows
from ddpm_lib.runs.report.page_frame import UPLOT, asset
from ddpm_lib.runs.report.page_parts import scores_part
from ddpm_lib.runs.report.thinning import stretch_means, thin
from ddpm_lib.runs.run_status import RunStatus
from made_runs import evaluation_of, make_run, noise, rows_of

DIGESTS = {
    "uPlot.iife.min.js": "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f",
    "uPlot.min.css": "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04",
    "uPlot.LICENSE": "8f989229699b4fe2f1a0432d0e9edc338a8a911e250e2d1b01ecd770a5f5b1bd",
}
"""SHA-256 of what `npm pack uplot@1.6.32` holds in dist/, and of its LICENSE."""

HOSTILE = "</script><script>alert('x')</script><img src=x onerror=alert(1)>\"'&{{data}}<!--\u2028"


class Parsed(HTMLParser):
    """The elements of a page, their attributes, and its text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, tuple[str, ...]]] = []
        self.values: list[tuple[str, str, str]] = []
        self.said: list[str] = []
        self.scripts: list[str] = []
        self._within = ""
        self.feed(path.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, tuple(name for name, _ in attrs)))
        self.values += [(tag, name, value or "") for name, value in attrs]
        self._within = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._within = ""

    def handle_data(self, data: str) -> None:
        if self._within == "script":
            self.scripts[-1] += data
        elif self._within != "style":
            self.said.append(data)

    @property
    def data(self) -> Any:
        return json.loads(self.scripts[0])


@pytest.mark.every(2)
@pytest.mark.parametrize("n", [0, 1, 100, 4_000])
def test_a_page_of_any_number_of_rows(n: int, tmp_path: Path) -> None:
    path = write_report(make_run(tmp_path / "run", n, grids=0 if not n else 3))
    page = Parsed(path)
    assert path.stat().st_size < writing.LARGEST_PAGE
    assert {c["name"] for c in page.data["charts"]} == (
        {"loss", "gap", "quarters", "grad_norm", "learning_rate", "images_per_second"}
        if n >= 10
        else {"loss", "quarters", "grad_norm", "learning_rate", "images_per_second"}
        if n
        else set()
    )
    for chart in page.data["charts"]:
        for one in chart["curves"]:
            assert one["points"] in (n, n // 10)
            assert len(one["x"]) == len(one["y"]) <= 1500
            assert one["x"][-1] == (n if one["points"] == n else n // 10 * 10)
    assert (tmp_path / "run" / "results.png").is_file() == bool(n)


def test_a_page_has_all_its_parts(tmp_path: Path) -> None:
    page = Parsed(write_report(make_run(tmp_path / "run"), picture=False))
    parts = [value for tag, name, value in page.values if (tag, name) == ("section", "id")]
    assert parts == [
        "verdict", "samples", "curves", "nearest", "scores", "data", "run", "words",
    ]  # fmt: skip
    links = [value for tag, name, value in page.values if (tag, name) == ("a", "href")]
    assert links == ["#main", "#verdict", *(f"#{part}" for part in parts)]
    said = " ".join(page.said)
    for words in (
        "ddpm train cats", "aaaa", "with uncommitted changes", "12.5 % of the pixels", "1,234,567",
        "0.0063 ± 0.0030", "looks like a copy", "Searched: 60 of 60 training images",
        "20 W, and 10 W for each",
    ):  # fmt: skip
        assert words in said, words


def test_texts_from_outside_stay_texts(tmp_path: Path) -> None:
    """Whatever a run holds, the elements of its page and their attributes are the same."""
    harmless, hostile = re.sub("[^/]", "x", HOSTILE), tmp_path / HOSTILE.replace("/", "∕")
    make_run(tmp_path / "plain", word=harmless)
    make_run(hostile, word=HOSTILE)
    plain, page = (
        Parsed(write_report(run, picture=False)) for run in (tmp_path / "plain", hostile)
    )
    assert page.tags == plain.tags
    assert len(page.scripts) == 3
    assert sum("alert('x')" in said for said in page.said) >= 8
    assert page.data["about"]["data"]["class_names"][0] == HOSTILE
    assert page.data["options"]["data"] == HOSTILE
    both = [tmp_path / "plain", hostile]
    compared = Parsed(write_comparison(both, tmp_path / "both.html"))
    twice = Parsed(write_comparison([both[0], both[0]], tmp_path / "twice.html"))
    assert {tag for tag, _ in compared.tags} == {tag for tag, _ in twice.tags}
    assert len(compared.scripts) == 3


def test_nothing_is_fetched_and_only_own_scripts_run(tmp_path: Path) -> None:
    page = Parsed(write_report(make_run(tmp_path / "run"), picture=False))
    for tag, name, value in page.values:
        assert not name.startswith("on"), (tag, name)
        if name in ("src", "href", "action", "data"):
            assert value.startswith(("data:", "#")), (tag, value[:80])
    policy = next(v for tag, name, v in page.values if name == "content" and "script-src" in v)
    for script in page.scripts[1:]:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")
    assert "http" not in policy
    for name in ("page.js", "page.css", "page.html"):
        assert not re.search(r"https?://|fetch\(|XMLHttp|@import|innerHTML|eval\(", asset(name))


@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8,
))  # fmt: skip
@settings(max_examples=30, deadline=None)
def test_json_in_a_script_element_comes_back(value: Any) -> None:
    def finite(one: Any) -> Any:
        if isinstance(one, float):
            return one if one - one == 0 else None
        if isinstance(one, dict):
            return {name: finite(inner) for name, inner in one.items()}
        return [finite(inner) for inner in one] if isinstance(one, list) else one

    raw = script_json({"value": value})
    assert json.loads(raw) == {"value": finite(value)}
    assert not set(raw) & set("<>&\u2028\u2029")


@given(st.text())
@settings(max_examples=30, deadline=None)
def test_text_has_no_markup(value: str) -> None:
    assert not set(text(value)) & set("<>\"'")
    assert not re.search(r"&(?!amp;|lt;|gt;|quot;|#x27;)", text(value))


@given(st.lists(st.floats(-1e6, 1e6), max_size=400), st.integers(4, 60))
@settings(max_examples=30, deadline=None)
def test_thinning_keeps_ends_and_extremes(values: list[float], most: int) -> None:
    kept = thin(values, most)
    assert kept == sorted(set(kept))
    assert len(kept) <= most
    if values:
        assert {0, len(values) - 1} <= set(kept)
        shown = [values[k] for k in kept]
        assert (min(shown), max(shown)) == (min(values), max(values))
        means = stretch_means(values, kept)
        ends = [0, *((a + b + 1) // 2 for a, b in pairwise(kept)), len(values)]
        total = sum(mean * (b - a) for mean, (a, b) in zip(means, pairwise(ends)))
        assert total == pytest.approx(sum(values), rel=1e-9, abs=1e-6)


def test_the_gap_is_counted_from_its_offset(tmp_path: Path) -> None:
    rows = rows_of(20)
    charts = {c.name: c for c in run_charts(read_records(make_run(tmp_path / "run", rows=rows)))}
    last = rows[-1]
    one = charts["gap"].curves[0]
    assert one.y[-1] == pytest.approx(last["val_gap"] - last["val_gap_start"])
    assert one.error[-1] == pytest.approx(2 * last["val_gap_error"])
    adjusted = [{**row, "val_gap_adjusted": 0.25, "val_gap_adjusted_error": 0.1} for row in rows]
    both = gap(adjusted)
    assert (both.y[-1], both.error[-1]) == (0.25, 0.2)


DAMAGE = {
    "empty": b"", "bytes": b"\xff\xfe\x00garbage\x80", "list": b"[1, [2]]", "number": b"3",
    "nested": b'{"rows": {"a": 1}, "tile": "x", "columns": [], "scores": 4, "step": "x"}',
    "deep": b"[" * 20_000,
    "rows": b'{"rows": [1, 2], "tile": [8, 8], "columns": 1e99, "scores": [[], {"name": []}]}',
}  # fmt: skip
FILES = (
    "config.yaml", "about.json", "metrics.jsonl", "status.json", "evaluations/eval-0001.json",
    "report/data.json", "report/data.png", "report/nearest.json", "report/nearest.png",
    "samples/step-000000033.png",
)  # fmt: skip


@pytest.mark.every(2)
@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_records_leave_a_page_of_the_others(damage: str, tmp_path: Path) -> None:
    for name in FILES:
        run = make_run(tmp_path / name.replace("/", "-"))
        (run / name).write_bytes(DAMAGE[damage])
        page = Parsed(write_report(run, picture=False))
        assert page.data["format"] == 1, name
    for path in run.rglob("*"):
        if path.is_file():
            path.write_bytes(DAMAGE[damage])
    assert Parsed(write_report(run)).data["charts"] == []


@pytest.mark.parametrize("value", ["x", None, True, [], {}, -1, 1e300, float("nan")])
def test_odd_values_in_rows_are_left_out(value: Any, tmp_path: Path) -> None:
    rows = [dict.fromkeys(row, value) | {"step": row["step"]} for row in rows_of(20)]
    page = Parsed(write_report(make_run(tmp_path / "run", rows=rows), picture=False))
    for chart in page.data["charts"]:
        assert value == -1, chart["name"]


@pytest.mark.parametrize("name", [PAGE, "results.png"])
def test_a_full_disk_leaves_what_was_there(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run", 20)
    write_report(run)
    before = (run / name).read_bytes()
    replace = os.replace

    def full(source: Any, target: Any) -> None:
        if Path(target).name == name:
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        write_report(run)
    assert (run / name).read_bytes() == before
    assert not list(run.glob(".*.tmp"))


def test_many_large_grids_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "LARGEST_PAGE", 400_000)
    run = make_run(tmp_path / "run", 5000, grids=0)
    for k in range(1, 61):
        noise(48, 48, k).save(run / "samples" / f"step-{k:09d}.png")
    path = write_report(run, picture=False)
    assert path.stat().st_size <= 400_000
    page = Parsed(path)
    steps = [int(v) for tag, name, v in page.values if (tag, name) == ("figure", "data-step")]
    assert steps[0] == 1
    assert steps[-1] == 60
    assert len(steps) < 60


def test_the_library_is_the_published_one() -> None:
    for name, digest in DIGESTS.items():
        raw = resources.files("ddpm_lib.runs.report").joinpath("assets", name).read_bytes()
        assert hashlib.sha256(raw).hexdigest() == digest, name
    assert f"(v{UPLOT})" in asset("uPlot.iife.min.js")[:80]
    assert asset("uPlot.LICENSE").startswith("The MIT License (MIT)")


@pytest.mark.slow
def test_wheel_and_sdist_hold_the_assets(tmp_path: Path) -> None:
    import tarfile
    import zipfile

    from locations import ROOT

    pytest.importorskip("hatchling")
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    wheel = zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist()
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as file:
        sdist = file.getnames()
    for name in ("page.html", "page.css", "page.js", *DIGESTS):
        assert f"ddpm_lib/runs/report/assets/{name}" in wheel
        assert any(path.endswith(f"src/ddpm_lib/runs/report/assets/{name}") for path in sdist)


def test_several_runs_side_by_side(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / "a" / "run", 40, learning_rate=1e-3),
        make_run(tmp_path / "b" / "run", 60, learning_rate=2e-3, status="running"),
    ]
    page = Parsed(write_comparison(runs, tmp_path / "both.html"))
    data = page.data
    assert [run["name"] for run in data["runs"]] == ["a/run", "b/run"]
    loss = next(chart for chart in data["charts"] if chart["name"] == "val_loss")
    assert [(c["label"], c["x"][-1]) for c in loss["curves"]] == [("a/run", 40), ("b/run", 60)]
    said = " ".join(page.said)
    assert "learning_rate" in said
    assert "0.002" in said
    assert "The same noise in all of them" in said
    assert "sample_sampler" not in said


def test_references_stand_below_their_scores() -> None:
    row = {"value": 0.5, "standard_error": 0.01, "interval": [0.4, 0.6], "unit": "of 20 images"}
    evaluation = evaluation_of("kid")
    evaluation["scores"].append({"name": "pr", "value": 1.0})
    evaluation["references"] = {"kid": {"noise": row, "held-out": row}, "pr": {"blurred": row}}
    names = [(values[0], values[1]) for values, _ in score_rows(evaluation)]
    assert names == [
        ("kid", "0.0063 ± 0.0030"), ("noise", "0.7"), ("held-out", "0.500 ± 0.010"),
        ("pr", "1"), ("blurred", "0.500 ± 0.010"),
    ]  # fmt: skip


def test_statistics_of_unknown_images_are_not_called_none(tmp_path: Path) -> None:
    said = {"file": "eval-0001.json", "reference": {"name": "adm", "n": None}, "scores": []}
    page = scores_part(RunRecords(tmp_path, RunStatus("finished"), evaluations=(said,)))
    assert "against statistics (adm)" in page
    said["reference"] = {"name": "train", "n": 1200}
    page = scores_part(RunRecords(tmp_path, RunStatus("finished"), evaluations=(said,)))
    assert "against 1,200 images (train)" in page


def test_only_options_that_differ_are_shown() -> None:
    options = [{"a": 1, "b": 2, "where": "x"}, {"a": 1, "b": 3, "c": 4, "where": "y"}]
    assert differing(options, ("where",)) == [["b", "2", "3"], ["c", "–", "4"]]


def test_energy_is_power_times_time() -> None:
    cpu = estimate_energy({"kind": "cpu", "threads": 2}, 1, 3600)
    assert cpu.kilowatt_hours == pytest.approx(0.040)
    gpu = estimate_energy({"kind": "cuda", "name": "NVIDIA A100-SXM4-80GB", "count": 4}, 1, 7200)
    assert gpu.kilowatt_hours == pytest.approx(2 * (4 * 400 + 100) / 1000)
    assert "400 W" in str(gpu)
    odd = estimate_energy({"kind": "cuda", "name": None, "count": "x", "threads": []}, 0, 3600)
    assert "not known" in str(odd)


def test_pages_load_no_torch(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 5)
    code = (
        "import sys; from ddpm_lib.cli import main; code = main(['report', sys.argv[1]]);"
        " sys.exit(code or 10 * ('torch' in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(run)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "report.html" in done.stdout
