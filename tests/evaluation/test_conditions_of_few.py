"""Conditions that few images have a value of: they are judged by those, or left out."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ddpm_lib import GaussianDiffusion, Shapes, Trainer, Unet, load_run
from ddpm_lib.core.errors import ConfigError
from ddpm_lib.data import ImageDataset, open_dataset
from ddpm_lib.evaluation import EvaluationOptions, adherence, evaluate
from ddpm_lib.evaluation.network_conditions import identity_of
from ddpm_lib.evaluation.sample_set import sample_images
from ddpm_lib.evaluation.scores import Score, mean_score
from ddpm_lib.images import save_image
from ddpm_lib.metrics.condition_readers import Reader

N = 24


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A reader learns for two steps."""
    monkeypatch.setattr(adherence, "Reader", functools.partial(Reader, steps=2))
    monkeypatch.setenv("DDPM_LIB_CACHE", str(tmp_path / "cache"))


def trained(folder: Path, of_held_out: int, steps: int = 1) -> Path:
    """A run on images of which few have an age and a style: three that are trained on, and so many
    that are held out.
    """
    shapes = Shapes(size=8, n=N)
    for i in range(N):
        save_image(shapes[i]["image"], folder / "images" / f"{i:02d}.png")
    whole = open_dataset(folder / "images", image_size=8)
    parts = whole.split(math.floor(N * 0.2), 0)
    names = [part.names[i] for part, n in zip(parts, (3, of_held_out)) for i in range(n)]
    lines = [f"{name},{k},{'ab'[k % 2]}\n" for k, name in enumerate(names)]
    table = folder / "few.csv"
    table.write_text("file_name,age,style\n" + "".join(lines))
    words = tuple(f"{name}={table}:{name},missing=null" for name in ("age", "style"))
    data = open_dataset(folder / "images", image_size=8, conditions=words)
    model = Unet(dim=8, dim_mults=(1,), blocks_per_level=1, conditions=data.condition_table)
    diffusion = GaussianDiffusion(model, image_size=8, timesteps=8)
    Trainer(
        diffusion,
        folder / "images",
        condition=words,
        val_fraction=0.2,
        output_dir=folder / "run",
        max_steps=steps,
        learning_rate=0.01,
        ema_decay=(0.5,),
        batch_size=4,
        sample_every=0,
        progress=False,
        device="cpu",
    ).train()
    return folder / "run"


def judged(run: Path) -> dict[str, float]:
    found = evaluate(run, metrics=("adherence",), sample_steps=1, device="cpu", progress=False)
    return {score.name: score.value for score in found.scores}


def test_one_known_image_is_enough(tmp_path: Path) -> None:
    """And nothing is no number."""
    found = judged(trained(tmp_path, 1))
    assert {"adherence_age", "adherence_style"} <= {*found}
    assert all(math.isfinite(value) for value in found.values()), found


def test_no_known_image_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"of age, style the 4 images that are looked at"):
        judged(trained(tmp_path, 0))


def test_others_are_of_any_class_in_whatever_order_classes_come() -> None:
    """Half of two classes of equal size have the other one, and no image has its own value."""
    for labels in (torch.arange(200) // 100, torch.arange(200) % 2):
        met = adherence.of_other_images(labels, 0) != labels
        assert 0.35 < float(met.double().mean()) < 0.65
    numbers = torch.arange(100.0)
    others = adherence.of_other_images(numbers, 0)
    assert not (others == numbers).any()
    assert torch.equal(others.sort().values, numbers)
    assert not torch.equal(others, adherence.of_other_images(numbers, 1))
    assert adherence.of_other_images(torch.ones(1), 0).tolist() == [1.0]


def test_a_wish_that_all_share_is_not_called_disobeyed() -> None:
    """No error at all is no worse than that of the others, who were asked for the same."""
    score, chance = (mean_score(name, torch.zeros(20).double(), "") for name in ("a", "a/chance"))
    assert "not obeyed" in adherence._judged(score, chance, False).remark
    assert adherence._judged(score, chance, True).remark == (
        "all were asked for the same: says nothing"
    )


def test_the_same_images_with_other_conditions_draw_other_samples() -> None:
    """An evaluation that was interrupted does not go on with what was drawn for other wishes."""
    pictures = Shapes(size=8, n=12)
    near, far = (pictures.with_conditions({"age": np.arange(12.0) + start}) for start in (20, 90))
    assert near.fingerprint == far.fingerprint
    model = Unet(dim=8, dim_mults=(1,), blocks_per_level=1, conditions=near.condition_table)
    diffusion = GaussianDiffusion(model, image_size=8, timesteps=8)
    found = [
        sample_images(diffusion, EvaluationOptions(), 12, "", torch.device("cpu"), given=given)
        for given in (near, far, near)
    ]
    assert found[0].fingerprint != found[1].fingerprint
    assert found[0].fingerprint == found[2].fingerprint
    assert identity_of(near) != identity_of(far)
    assert identity_of(pictures) == pictures.fingerprint


def test_samples_are_drawn_as_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guided by a worse version and in low precision, as the samples of other metrics are."""
    run = trained(tmp_path, 4, steps=4)
    drawn: list[torch.Tensor] = []
    kept: list[ImageDataset] = []

    def scores(*given: Any) -> list[Score]:
        kept.append(given[4])
        drawn.append(given[5].float())
        return [Score("adherence_age", 1.0, None, "")]

    monkeypatch.setattr(adherence, "_scores", scores)
    usual: dict[str, Any] = {"metrics": "adherence", "sample_steps": 2, "device": "cpu"}
    ways: list[dict[str, Any]] = [
        {},
        {"guide_by": "model", "guide_scale": 9.0},
        {"mixed_precision": "bf16"},
    ]
    for way in ways:
        evaluate(run, **usual, **way, progress=False)
    plain, guided, low = drawn[::2]
    best, worse = load_run(run), load_run(run, weights="model")
    assert best.weights != worse.weights
    batch = kept[0].batch(range(len(kept[0])))
    how: dict[str, Any] = {"cond": {name: batch[name] for name in ("age", "style")}, "num_steps": 2}
    for found, more in ((plain, {}), (guided, {"guide_by": worse.diffusion, "guide_scale": 9.0})):
        wanted = best.diffusion.sample(len(found), **how, **more)
        assert ((wanted * 255).round() - found).abs().max() <= 1
    assert (plain - guided).abs().max() > 1
    assert 0 < (plain - low).abs().max() < 16
