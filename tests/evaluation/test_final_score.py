"""The score at the end of a training: what it measures, when it is left out, and that it leaves the
training as it is.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from ddpm_lib import GaussianDiffusion, Shapes, Trainer, Unet, evaluate
from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.tensor_files import load_tensors
from ddpm_lib.evaluation import FinalScore, final_score
from ddpm_lib.evaluation.comparison import compare
from ddpm_lib.evaluation.final_score import MOST_SECONDS, SHARE
from ddpm_lib.training import Callback
from ddpm_lib.training.callbacks.base import TrainingView


@pytest.fixture(autouse=True)
def caches(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("DDPM_LIB_CACHE", str(folder))
    return folder


@pytest.fixture
def rich(monkeypatch: pytest.MonkeyPatch) -> None:
    """All the time in the world."""
    monkeypatch.setattr(final_score, "affordable", lambda most, *_: (most, math.inf))


def train(
    run: Path, *callbacks: Callback, n: int = 60, network: Any = None, **options: Any
) -> Trainer:
    torch.manual_seed(0)
    network = network or Unet(dim=8, dim_mults=(1,), blocks_per_level=1, mid_attention="none")
    usual: dict[str, Any] = {
        "output_dir": str(run),
        "batch_size": 4,
        "max_steps": 2,
        "val_every": 1,
        "sample_every": 0,
        "sample_steps": 2,
        "save_every": 1,
        "progress": False,
        "device": "cpu",
    }
    diffusion = GaussianDiffusion(network, image_size=8, timesteps=20)
    data = Shapes(size=8, n=n)
    trainer = Trainer(diffusion, data, callbacks=callbacks, **{**usual, **options})
    trainer.train()
    return trainer


def evaluations(run: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(run.glob("evaluations/eval-*.json"))]


@pytest.mark.usefixtures("rich")
def test_it_is_an_evaluation_of_the_last_step(tmp_path: Path, caches: Path) -> None:
    final = FinalScore(24)
    train(tmp_path / "run", final)
    (found,) = evaluations(tmp_path / "run")
    assert final.result is not None
    assert found["scores"] == json.loads(json.dumps(final.result.to_dict()["scores"]))
    names = [score["name"] for score in found["scores"]]
    assert {"kd_random64_train_24", "precision_k3_random64_train_24", "copies_pixels_train_24"} <= {
        *names
    }
    assert set(found["references"]["kd_random64_train_24"]) == {"half", "blurred", "noise"}
    known = evaluate(
        tmp_path / "run",
        Shapes(size=8, n=60),
        metrics="kid",
        features="random64",
        num=4,
        device="cpu",
        progress=False,
    ).about
    for name in ("run", "checkpoint", "step", "weights", "weights_sha256"):
        assert found[name] == known[name], name
    assert "kd_random64_train" in compare([tmp_path / "run"])
    assert sorted(p.name for p in (tmp_path / "run" / "evaluations").iterdir()) == [
        "eval-0001.json"
    ]


@pytest.mark.usefixtures("rich")
def test_its_samples_are_those_of_the_seed_whatever_the_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []
    drawn: list[Tensor] = []
    draw = final_score.draw_samples

    def watched(run: Any, planned: Any, began: float, sample: Any, ranks: Any) -> Tensor | None:
        found = draw(run, planned, began, sample, ranks)
        assert found is not None
        seen.append(found)
        drawn.append(sample(22, num_steps=2, seed=0, progress=False))
        return found

    monkeypatch.setattr(final_score, "draw_samples", watched)
    network = Unet(dim=8, dim_mults=(1,), blocks_per_level=1, mid_attention="none", num_classes=6)
    train(tmp_path, FinalScore(22), network=network)
    assert torch.allclose(seen[0], drawn[0].cpu(), atol=1e-5)


@pytest.mark.usefixtures("rich")
def test_it_leaves_the_training_as_it_is(tmp_path: Path) -> None:
    for name, callbacks in (("with", [FinalScore(20)]), ("without", [])):
        train(tmp_path / name, *callbacks)
        train(tmp_path / name, *callbacks, max_steps=4)
    a, b = (tmp_path / name for name in ("with", "without"))
    for file in ("model", "ema", "optimizer"):
        one, other = (
            load_tensors(run / "checkpoints" / "step-000000004" / f"{file}.safetensors")
            for run in (a, b)
        )
        assert all(torch.equal(one[name], other[name]) for name in other)
    kept = ("loss", "val_loss", "val_gap", "grad_norm")
    rows = [
        [[row.get(k) for k in kept] for row in map(json.loads, (run / "metrics.jsonl").open())]
        for run in (a, b)
    ]
    assert rows[0] == rows[1]
    assert len(evaluations(a)) == 2  # of the steps at which a training ended


class Stop(Callback):
    def on_step_end(self, trainer: TrainingView) -> None:
        if trainer.step == 1:
            trainer.stop("asked")


@pytest.mark.usefixtures("rich")
@pytest.mark.parametrize("case", ["stopped", "enlarges", "few images", "no pictures", "finished"])
def test_it_is_left_out_where_it_makes_no_sense(case: str, tmp_path: Path) -> None:
    final = FinalScore(20)
    if case == "stopped":
        train(tmp_path, Stop(), final)
    elif case == "enlarges":
        low_res = Unet(
            dim=8, dim_mults=(1,), blocks_per_level=1, mid_attention="none", low_res_factor=2
        )
        train(tmp_path, final, network=low_res)
    elif case == "few images":
        train(tmp_path, final, n=15)
    elif case == "no pictures":
        network = Unet(
            dim=8, dim_mults=(1,), channels=1, blocks_per_level=1, mid_attention="none", dims=1
        )
        diffusion = GaussianDiffusion(network, image_size=(8,), channels=1, timesteps=20)
        data = torch.rand(40, 1, 8)
        Trainer(
            diffusion,
            data,
            callbacks=final,
            output_dir=str(tmp_path),
            max_steps=1,
            batch_size=4,
            sample_every=0,
            progress=False,
            device="cpu",
        ).train()
    else:
        train(tmp_path)
        train(tmp_path, final)  # nothing to do any more
    if case == "no pictures":
        assert {s.name.split("_")[0] for s in final.result.scores} == {"value", "copies", "copying"}
    elif case != "finished":
        assert final.result is None
        assert evaluations(tmp_path) == []


@pytest.mark.usefixtures("rich")
def test_samples_that_are_no_numbers_are_said_and_not_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(final_score, "draw_samples", lambda *_: torch.full((20, 3, 8, 8), math.nan))
    train(tmp_path, final := FinalScore(20))
    assert final.result is None
    assert "there is no final score" in (tmp_path / "train.log").read_text(encoding="utf-8")


def affordable(
    taken: float, images: int, hours: float | None = None, whole: float = 0.0
) -> tuple[int, float]:
    """The number of 64 samples that there is time for, and the seconds."""
    config = {"max_hours": hours, "sample_steps": 30, "sample_guidance_scale": 2.0}
    run = SimpleNamespace(config=SimpleNamespace(**config), sample_steps=30)
    return final_score.affordable(64, run, taken, images, max(taken, whole))  # type: ignore[arg-type]


def test_time_is_bounded() -> None:
    """A sample costs 30 steps of two forward passes: 20 training images."""
    assert affordable(120.0, 28_800) == (64, pytest.approx(SHARE * 120))
    assert affordable(120.0, 8_000) == (20, pytest.approx(SHARE * 120))
    assert affordable(120.0, 4_000)[0] == 10  # too few: none is drawn
    assert affordable(36_000.0, 10**6)[1] == pytest.approx(MOST_SECONDS)
    n, _ = affordable(36_000.0, 9_000)  # 4 s an image: 80 s a sample
    assert n == 0
    assert affordable(10.0, 1_000, whole=1000.0)[1] == pytest.approx(50.0)  # gone on with
    assert affordable(3590.0, 10**6, hours=1.0)[0] == 0  # the limit is near
    assert affordable(1800.0, 10**6, hours=1.0)[0] == 64
    assert affordable(10.0, 0)[0] == 0


def test_parts_end_when_the_time_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(final_score, "affordable", lambda most, *_: (most, -1.0))
    final = FinalScore(100)
    train(tmp_path, final)
    assert final.result is not None
    assert final.result.about["samples"]["n"] == 25  # a quarter
    train(tmp_path, final := FinalScore(40), max_steps=3)
    assert final.result is None  # ten are too few


def test_too_few_samples_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least 20 samples; got 19"):
        FinalScore(19)


def test_samples_are_told_apart_by_what_they_show(tmp_path: Path) -> None:
    """The features of a score that was cut off belong to its samples, not to the step."""
    process = SimpleNamespace(normalization=None, image_size=(8, 8))
    run: Any = SimpleNamespace(
        diffusion=process, folder=tmp_path, step=3, data=Shapes(size=8, n=20), held_out=None
    )
    a, b = torch.zeros(20, 3, 8, 8), torch.ones(20, 3, 8, 8)
    marks = [final_score._sets(run, x)["samples"].fingerprint for x in (a, b, a)]
    assert marks[0] == marks[2] != marks[1]
