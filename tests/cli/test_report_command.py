"""`ddpm report`: where it writes, what it refuses, and the workbook."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from ddpm_lib.cli import main
from ddpm_lib.cli.evaluate import refresh_page
from ddpm_lib.runs.records import read_records
from ddpm_lib.runs.report.workbook import sheets_of
from made_runs import evaluation_of, make_run, rows_of


def test_one_run_gets_its_page_in_its_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(Path("runs/a"), 10)
    assert main(["report", "runs/a"]) == 0
    assert "wrote runs/a/report.html" in capsys.readouterr().out
    assert Path("runs/a/results.png").stat().st_size > 10_000
    assert main(["report", "runs/a", "--output", "elsewhere.html"]) == 0
    assert main(["report", "runs/a", "--output", "elsewhere.html"]) == 0, (
        "a page of ours is replaced"
    )
    assert Path("elsewhere.html").is_file()


def test_several_runs_get_one_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        make_run(Path("runs") / name, 10)
    assert main(["report", "runs/a", "runs/b"]) == 0
    assert "wrote compare.html" in capsys.readouterr().out
    assert not Path("runs/a/report.html").exists()
    assert main(["report", "--output", "two.html", "runs/a", "runs/b"]) == 0
    assert Path("two.html").is_file()


def test_what_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        make_run(Path("runs") / name, 5)
    Path("mine.html").write_text("<html>my own</html>", encoding="utf-8")
    Path("folder").mkdir()
    for words, told in (
        (["runs/aa"], "Did you mean runs/a?"),
        (["folder"], "folder is no run directory"),
        (["runs/a", "--output", "mine.html"], "exists and is no page of ours"),
        (["runs/a", "--output", "folder"], "--output folder/compare.html"),
        (["runs/a", "runs/b", "--xlsx", "both.xlsx"], "each run gets its results.xlsx"),
    ):
        assert main(["report", *words]) == 2
        error = capsys.readouterr().err
        assert told in error
        assert "Traceback" not in error
    assert Path("mine.html").read_text(encoding="utf-8") == "<html>my own</html>"


@pytest.mark.every(3)
@pytest.mark.parametrize(
    "words", [["runs/a", "--xlsx"], ["--xlsx", "runs/a"], ["--xlsx", "n.xlsx", "runs/a"]]
)
def test_a_workbook_holds_what_the_records_hold(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    monkeypatch.chdir(tmp_path)
    run = make_run(Path("runs/a"), 20, word="=1+1")
    assert main(["report", *words]) == 0
    path = Path("n.xlsx") if "n.xlsx" in words else run / "results.xlsx"
    book = openpyxl.load_workbook(path)
    assert book.sheetnames == ["steps", "validations", "evaluations", "options"]
    rows = rows_of(20)
    steps = list(book["steps"].values)
    assert steps[0][:4] == ("step", "epoch", "images", "seconds")
    assert [row[0] for row in steps[1:]] == list(range(1, 21))
    column = steps[0].index("loss")
    assert [row[column] for row in steps[1:]] == pytest.approx([row["loss"] for row in rows])
    validations = list(book["validations"].values)
    assert [row[0] for row in validations[1:]] == [10, 20]
    assert "loss" not in validations[0]
    assert validations[2][validations[0].index("val_loss")] == pytest.approx(rows[-1]["val_loss"])
    scores = list(book["evaluations"].values)
    wanted = evaluation_of()["scores"]
    assert [row[scores[0].index("value")] for row in scores[1:]] == [s["value"] for s in wanted]
    options = dict(list(book["options"].values)[1:])
    assert options["max_steps"] == "20"
    cell = next(row[1] for row in book["options"].rows if row[0].value == "data")
    assert (cell.value, cell.data_type) == ("=1+1", "s"), "a formula from outside stays a text"


def test_a_workbook_of_nothing_has_its_sheets(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    sheets = sheets_of(read_records(tmp_path / "run"))
    assert {name: rows for name, (_, rows) in sheets.items()} == {
        "steps": [], "validations": [], "evaluations": [], "options": [],
    }  # fmt: skip


def test_without_openpyxl_the_remedy_is_said_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run", 5)
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "openpyxl" else find(name)
    )
    assert main(["report", str(run), "--xlsx"]) == 2
    error = capsys.readouterr().err
    assert 'pip install "ddpm-lib[xlsx]"' in error
    assert "metrics.csv" in error
    assert not (run / "report.html").exists()


def test_an_evaluation_refreshes_a_page_that_exists(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 5)
    refresh_page(run)
    assert not (run / "report.html").exists()
    assert main(["report", str(run)]) == 0
    path = run / "evaluations" / "eval-0002.json"
    path.write_text((run / "evaluations" / "eval-0001.json").read_text().replace("cats", "new-one"))
    refresh_page(run)
    assert "new-one" in (run / "report.html").read_text(encoding="utf-8")
