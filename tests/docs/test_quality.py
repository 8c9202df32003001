"""docs/quality.md: its tables are those of the stored measurements."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from locations import ROOT


@pytest.fixture
def quality(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    yield importlib.import_module("quality")
    sys.modules.pop("common", None)


def test_the_tables_are_those_of_the_stored_measurements(quality: Any) -> None:
    found = json.loads(quality.RESULTS.read_text("utf-8"))
    text = quality.PAGE.read_text("utf-8")
    for mark, words in quality.parts(found).items():
        assert quality.printed(mark).findall(text) == [words]


def test_every_picture_shows_a_length_that_was_measured(quality: Any) -> None:
    found = json.loads(quality.RESULTS.read_text("utf-8"))
    for name in list(quality.SETS)[:4]:
        lengths = {
            run["minutes"]
            for run in found
            if (run["set"], run["seed"]) == (name, 0) and run["arm"] in quality.GROUND
        } & set(quality.MARKS)
        picture = Image.open(quality.FIGURES / f"quality-{name}.png")
        rows = 1 + 2 * len(lengths)
        assert picture.size == (16 * 32, rows * 32 + 4 * len(lengths))


def test_a_set_is_written_and_drawn(quality: Any, tmp_path: Path) -> None:
    from quality_sets import Sources, prepare, shapes

    shapes(20)(tmp_path / "sets" / "few", Sources())
    images = quality._pixels(tmp_path / "sets" / "few" / "train")
    assert images.shape == (20, 3, 32, 32)
    quality.picture(images.repeat(4, 1, 1, 1), tmp_path / "grids" / "few-default-1-0.png")
    quality.strip("few", [1.0], tmp_path, tmp_path / "strip.png")
    assert Image.open(tmp_path / "strip.png").size == (512, 3 * 32 + 4)
    assert prepare("cifar", tmp_path / "sets", Sources()) is None, "its images are not here"


def test_what_a_training_cost_is_learnt(quality: Any, tmp_path: Path) -> None:
    train = tmp_path / "sets" / "few" / "train"
    (tmp_path / "costs").mkdir()
    (tmp_path / "costs" / "default.json").write_text("[5.0, 0.1]")
    assert quality.cost("default", train, tmp_path) == (5.0, 0.1)
    quality.learn_cost("default", train, tmp_path, None, 100, 25.0)
    assert quality.cost("default", train, tmp_path) == (5.0, pytest.approx(0.15))


def test_ten_sets_count_where_the_plan_is_better(quality: Any) -> None:
    ten_sets = importlib.import_module("ten_sets")

    def run(name: str, arm: str, distance: float) -> dict[str, Any]:
        numbers = dict.fromkeys(ten_sets.SHOWN, distance) | {"recall": 1 / distance}
        return {"set": name, "arm": arm, "steps": 100} | numbers

    arms = ("plan", "former", "lucidrains")
    found = [
        run(name, arm, distance)
        for name, distances in {"sysu": (2.0, 3.0, 150.0), "emoji": (5.0, 4.0, 160.0)}.items()
        for arm, distance in zip(arms, distances, strict=True)
    ]
    found.append(run("mnist", "plan", 1.0))  # alone: it is compared with nothing
    lines = ten_sets.table(found).splitlines()
    assert "stage 3 of 64: plan, former, lucidrains |" in lines[0]
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| sysu", "| emoji", "| plan better"]
    assert lines[-1].endswith("| 1 of 2 | 1 of 2 | 1 of 2 | 1 of 2 | 1, 2 of 2 |")
    found += [run("sysu", "default", 1.0), run("emoji", "default", 9.0)]
    lines = ten_sets.table(found).splitlines()
    assert "stage 3 of 64: plan, former, default, lucidrains |" in lines[0]
    assert lines[-1].endswith("| 1, 1 of 2 | 1, 1 of 2 | 1, 1 of 2 | 1, 1 of 2 | 1, 1, 2 of 2 |")


def test_the_rule_s_checkpoint_is_compared_with_all(quality: Any) -> None:
    stop_rule = importlib.import_module("stop_rule")
    looks = [
        {"step": step, "frechet_256": distance, "recall": 0.5, "copies": copies}
        for step, distance, copies in ((600, 4.0, 0.0), (1200, 3.0, 0.01), (2400, 3.3, 0.2))
    ]
    stopped = {"step": 1800, "reason": "copying", "best": 1200}
    one = {"set": "emoji", "images": 1129, "steps": 2400, "stopped": stopped, "looks": looks}
    line = stop_rule.table([one]).splitlines()[-1]
    own = "1,200: 3.00 (1 % copies)"
    assert f"| 1,800 of 2,400 | {own} | 1.00 | {own} | 1.00 | {own} | {own} |" in line
    looks.append({"step": 1500, "frechet_256": 2.0, "recall": 0.5, "copies": 0.4})
    line = stop_rule.table([one]).splitlines()[-1]
    newest = "1,500: 2.00 (40 % copies)"
    assert f"| {own} | 1.00 | {newest} | 0.67 | {own} | {newest} |" in line
    stopped["copies_since"] = 1500
    line = stop_rule.table([one]).splitlines()[-1]
    assert f"| {own} | 1.00 | {own} | 1.00 | {own} | {newest} |" in line


def test_since_when_grids_ring_for_copies(quality: Any, tmp_path: Path) -> None:
    stop_rule = importlib.import_module("stop_rule")
    chances = {100: 0.001, 200: 1.0, 300: 0.002, 400: 1e-4, 500: 1.0}
    rows = [{"step": step, "sample_copies_p": p} for step, p in chances.items()]
    lines = [json.dumps(row) for row in (*rows, {"step": 450, "loss": 1.0})]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    assert stop_rule.copies_since(tmp_path, 400) == 300
    assert stop_rule.copies_since(tmp_path, 500) is None


def test_what_trains_until_the_rules_end_it(quality: Any) -> None:
    stop_rule = importlib.import_module("stop_rule")
    run = stop_rule.command("emoji", Path("images"), Path("run"), ["overfitting", "copying"])
    assert run[run.index("--stop-when") + 1] == "overfitting,copying"


def test_what_a_network_that_says_nothing_gets_wrong(quality: Any) -> None:
    import torch

    from ddpm_lib import GaussianDiffusion, Unet

    budget = importlib.import_module("equal_budget")
    network = Unet(dim=8, dim_mults=(1,), blocks_per_level=1)  # its last convolution begins at zero
    process = GaussianDiffusion(network, image_size=8, parametrization="v", clip="none")
    images = torch.rand(64, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    square = float((2.0 * images - 1.0).square().mean())
    found = budget.errors(process, images)
    assert list(found) == ["-6", "-4", "-2", "0", "2", "4", "6"]
    for log_snr, error in found.items():
        noise = 1.0 / (1.0 + 2.718281828 ** float(log_snr))  # sigma squared
        assert error == pytest.approx(noise**2 * square + noise * (1.0 - noise), rel=0.1)


def test_the_table_of_an_equal_budget_has_a_column_per_arm(quality: Any) -> None:
    budget = importlib.import_module("equal_budget")
    one = {
        **dict.fromkeys(("frechet_256", "frechet_512", "frechet_8x8"), 12.5),
        **dict.fromkeys(("precision", "recall", "copies"), 0.25),
        **{"arm": "default", "parameters": 1_200_000, "cpu_seconds": 7200.4, "steps": 30_000},
        **{"bits_per_dim": 4.0, "bits_per_dim_error": 0.125, "errors": {"0": 0.02}},
    }
    lines = budget.table([one, one | {"arm": "lucidrains-equal"}]).splitlines()
    assert lines[0] == "|  | default | lucidrains-equal |"
    assert "| bits/dim, bound | 4.000 ± 0.125 | 4.000 ± 0.125 |" in lines
    assert "| steps | 30,000 | 30,000 |" in lines
    assert "| recall | 0.25 | 0.25 |" in lines


def test_the_page_s_equal_budget_is_the_stored_one(quality: Any) -> None:
    budget = importlib.import_module("equal_budget")
    found = json.loads(budget.RESULTS.read_text("utf-8"))
    arms = [one["arm"] for one in found]
    assert arms == [arm for arm in budget.ARMS if arm in arms]
    assert {"cosine", "lucidrains-equal"} <= set(arms)
    (printed,) = budget.MADE.findall(budget.PAGE.read_text("utf-8"))
    assert printed.strip() == budget.table(found)
    least, most = sorted(one["cpu_seconds"] for one in found)
    assert most / least < 1.05  # the same time, as near as it could be met


@pytest.mark.parametrize("name", ["ten_sets", "stop_rule"])
def test_tables_of_pages_are_the_stored_ones(quality: Any, name: str) -> None:
    made = importlib.import_module(name)
    found = json.loads(made.RESULTS.read_text("utf-8"))
    for mark, words in made.blocks(found).items():
        assert quality.printed(mark).findall(made.PAGE.read_text("utf-8")) == [words]
