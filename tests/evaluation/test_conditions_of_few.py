"""Conditions that few images have a value of: they are judged by those, or left out."""

from __future__ import annotations

import functools
import math
from pathlib import Path

import pytest

from ddpm_lib import GaussianDiffusion, Shapes, Trainer, Unet
from ddpm_lib.core.errors import ConfigError
from ddpm_lib.data import open_dataset
from ddpm_lib.evaluation import adherence, evaluate
from ddpm_lib.images import save_image
from ddpm_lib.metrics.condition_readers import Reader

N = 24


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A reader learns for two steps."""
    monkeypatch.setattr(adherence, "Reader", functools.partial(Reader, steps=2))
    monkeypatch.setenv("DDPM_LIB_CACHE", str(tmp_path / "cache"))


def trained(folder: Path, of_held_out: int) -> Path:
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
        max_steps=1,
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
