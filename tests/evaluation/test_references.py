"""Rows that say what is good: held-out images, halves of the reference, blurred images and noise in
the place of the samples.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ddpm_lib import GaussianDiffusion, Shapes, Trainer, Unet, evaluate
from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.spread import evenly
from ddpm_lib.evaluation import METRICS, EvaluationOptions, Score, references
from ddpm_lib.evaluation.engine import Engine
from ddpm_lib.evaluation.evaluate_keywords import EvaluateKeywords
from ddpm_lib.evaluation.evaluation_result import score_lines
from ddpm_lib.evaluation.remarks import judge_scores

QUIET: dict[str, Any] = {"device": "cpu", "progress": False, "features": "random64"}
DISTANCES = ("fd", "kd")
SHARES = ("precision_k3", "recall_k3", "density_k5", "coverage_k5")


@pytest.fixture(autouse=True)
def caches(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DDPM_LIB_CACHE", str(tmp_path_factory.mktemp("cache")))


def images(n: int, seed: int = 0) -> Tensor:
    found: Tensor = Shapes(size=16, n=n, seed=seed).batch(np.arange(n))["image"]
    return found


def by_name(found: Any) -> dict[str, Score]:
    return {score.name: score for score in found.scores}


def test_every_score_of_samples_has_rows_in_order(tmp_path: Path) -> None:
    held = tmp_path / "held.npy"
    np.save(held, images(60, 2).permute(0, 2, 3, 1).numpy())
    asked = {"metrics": "fid,kid,pr,dc,memorisation", "held_out": held, **QUIET}
    result = evaluate(images(60, 1), images(120), **asked)
    found = by_name(result)
    for kind in DISTANCES:
        name = f"{kind}_random64_given_60"
        rows = [found[f"{name}/{word}"].value for word in ("held-out", "blurred", "noise")]
        assert rows == sorted(rows)
        assert found[name].value < rows[1]
    for kind in SHARES:
        name = f"{kind}_random64_given_60"
        assert found[f"{name}/held-out"].value > found[f"{name}/noise"].value
    assert found["copies_pixels_given_60/held-out"].value == 0.0
    for name, score in found.items():
        if name.endswith(("/held-out", "/blurred", "/noise")):
            assert "of 60 " in score.unit
            assert score.interval is not None or score.value in (0.0, 1.0)
    kept = result.to_dict()["references"]
    name = "kd_random64_given_60"
    assert kept[name]["noise"]["value"] == found[f"{name}/noise"].value
    assert kept[name]["noise"]["standard_error"] == found[f"{name}/noise"].standard_error
    json.dumps(kept)


def test_halves_of_the_reference_stand_in_for_held_out_images() -> None:
    found = by_name(evaluate(images(50, 1), images(120), metrics="kid,pr", **QUIET))
    half = found["kd_random64_given_50/half"]
    assert "of 50 images of one half of the reference" in half.unit
    assert abs(half.value) < 0.1 * found["kd_random64_given_50/noise"].value
    assert "kd_random64_given_50/held-out" not in found


def test_rows_whose_height_is_that_of_their_number_are_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Coverage of as good images grows with their number, and falls with that of the reference."""
    name = "coverage_k5_random64_given_50"
    sets = images(50, 1), images(120)
    found = by_name(evaluate(*sets, metrics="fid,dc", **QUIET))
    assert {f"{name}/blurred", f"{name}/noise"} <= set(found)
    assert f"{name}/half" not in found
    assert "density_k5_random64_given_50/half" in found
    assert "fd_random64_given_50/half" not in found  # 60 of 120 images make it larger
    monkeypatch.setattr(references, "MOST", 30)
    found = by_name(evaluate(*sets, metrics="fid,dc", **QUIET))
    assert not any(row.startswith(f"{name}/") for row in found)
    assert "density_k5_random64_given_50/noise" in found


def test_a_half_is_compared_with_the_whole_of_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(references, "ENOUGH", 1)
    whole = images(120)
    found = by_name(evaluate(images(20, 1), whole, metrics="fid", **QUIET))
    some = whole[::2][torch.from_numpy(evenly(20, 60))]
    alone = evaluate(some, whole[1::2], metrics="fid", references=False, **QUIET)
    half = found["fd_random64_given_20/half"].value
    assert half == pytest.approx(alone["fd_random64_given_20"], rel=1e-6)


def test_an_inception_score_of_few_images_says_how_high_it_can_be() -> None:
    """A split of two images tells two classes apart at most; one image, none."""
    for n, most in ((5, 1), (15, 2), (200, None)):
        found = evaluate(images(n), images(20), metrics="is", references=False, **QUIET)
        (score,) = found.scores
        assert score.unit == "exp(nat)" + (f"; highest possible {most}" if most else "")
        assert most is None or score.value <= most + 1e-9


def test_they_can_be_left_out_and_change_no_score() -> None:
    asked = {"metrics": "fid,kid,pr", **QUIET}
    sets = images(40, 1), images(60)
    whole, alone = (evaluate(*sets, references=on, **asked) for on in (True, False))
    assert alone.about["references"] == {}
    assert not any("/noise" in score.name for score in alone.scores)
    names = [score.name for score in alone.scores]
    assert [whole[name] for name in names] == [alone[name] for name in names]


def test_their_features_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    features = Engine.features

    def counted(self: Engine, images: Any, wanted: Any) -> Any:
        made.append(images.name)
        return features(self, images, wanted)

    monkeypatch.setattr(Engine, "features", counted)
    for seed in (1, 2):
        evaluate(images(40, seed), images(60), metrics="kid", **QUIET)
    assert made == ["samples", "given", "blurred", "noise", "samples"]


def test_blurred_samples_are_said_to_be_no_better() -> None:
    reference = images(60)
    blurred = torch.nn.functional.avg_pool2d(images(60, 1).float(), 9, 1, 4)
    found = by_name(evaluate(blurred.to(torch.uint8), reference, metrics="kid", **QUIET))
    assert found["kd_random64_given_60"].remark == "no better than blurred images"


@pytest.mark.parametrize(
    ("error", "remark"),
    [
        (0.004, ""),
        (0.0005, "no better than blurred images"),
        (None, "no better than blurred images"),
    ],
)
def test_what_may_be_as_good_as_data_is_not_called_bad(error: float | None, remark: str) -> None:
    """Of few samples a distance may be that of real images and of blurred ones at once."""
    name = "kd_random64_train_64"
    rows = {"held-out": 0.0003, "blurred": 0.0026, "noise": 0.75}
    beside = {w: Score(f"{name}/{w}", value, None, "MMD²") for w, value in rows.items()}
    score = Score(name, 0.0039, error, "MMD²")
    found = by_name(judge_scores([score], None, [], None, {name: beside}))
    assert found[name].remark == remark


@pytest.mark.parametrize("name", ["nll", "flow_nll", "nll_train_60", "nll_heldout_60"])
def test_no_bits_above_eight_without_a_note(name: str) -> None:
    judged = judge_scores([Score(name, 375.0, 1.0, "bits/dim")], None, [], None)
    assert "worse than uniform noise (8 bits/dim)" in judged.scores[0].remark
    fine = judge_scores([Score(name, 3.0, 0.1, "bits/dim")], None, [], None)
    assert fine.scores[0].remark == ""


def test_no_number_without_unit_error_and_reference(tmp_path: Path) -> None:
    """Over all metrics that need no weights: each whole score has a unit, an error or an interval,
    and something to compare it with: rows below it, or a limit in its unit.
    """
    torch.manual_seed(0)
    network = Unet(dim=8, dim_mults=(1,), blocks_per_level=1, mid_attention="none")
    options = {"max_steps": 1, "val_every": 1, "sample_every": 0, "progress": False}
    Trainer(
        GaussianDiffusion(network, image_size=8, timesteps=20),
        Shapes(size=8, n=500),
        batch_size=4,
        device="cpu",
        output_dir=str(tmp_path),
        **options,
    ).train()
    found = evaluate(
        tmp_path,
        Shapes(size=8, n=500),
        metrics=",".join(name for name in METRICS if name not in ("is", "sfid", "adherence")),
        num=40,
        num_levels=2,
        sample_steps=1,
        tolerance=0.5,
        **QUIET,
    ).scores
    whole = [score for score in found if "/" not in score.name]
    assert {score.name.split("_")[0] for score in whole} >= {
        "fd",
        "kd",
        "precision",
        "copies",
        "nll",
    }
    for score in found:
        assert score.unit, score.name
    for score in whole:
        rows = [row.name for row in found if row.name.startswith(score.name + "/")]
        told = score.standard_error is not None or score.interval is not None or score.remark
        assert told or f"{score.name}/p" in rows, score.name
        zero = "gap" in score.name or " - " in score.name or score.unit.startswith("z-score")
        twin = score.name.startswith(("loss_train", "nll_train", "nll_heldout"))  # by each other
        assert rows or zero or twin, score.name
    assert len(score_lines(found)) == len(found) + 1


def test_keywords_that_type_checkers_see_are_the_options() -> None:
    fields = [field.name for field in dataclasses.fields(EvaluationOptions)]
    assert list(EvaluateKeywords.__annotations__) == fields


def test_names_may_come_as_a_list_or_separated_by_commas() -> None:
    for metrics, features in ((["kid", "pr"], ("random64",)), ("kid,pr", "random64")):
        options = EvaluationOptions(metrics=metrics, features=features)
        assert options.metric_names == ["kid", "pr"]
        assert options.feature_names == ["random64"]
    with pytest.raises(ConfigError, match="metrics must be"):
        EvaluationOptions(metrics=["kid", 3])
