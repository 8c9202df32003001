"""The alarm of copies on networks that have learned their training images by heart: while training
and in `ddpm evaluate`, with 30, 60 and 300 pictures; and its false alarms.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ddpm_lib import GaussianDiffusion, Shapes, Trainer, evaluate
from ddpm_lib.core.copy_alarm import COPY_ALARM
from ddpm_lib.metrics.sample_facts import TrainingLooks, sample_facts
from ddpm_lib.schedules import Schedule

SIZE = 16


def shapes(n: int, seed: int) -> Tensor:
    image: Tensor = Shapes(size=SIZE, n=n, seed=seed).batch(np.arange(n))["image"]
    return image


class Memory(nn.Module):
    """The exact minimiser of the training loss on a finite set: the mean of its images under their
    probability given x_t. What it draws are these images.
    """

    channels = 3

    def __init__(self, known: Tensor, schedule: Schedule) -> None:
        super().__init__()
        self.register_buffer("known", (known.float() / 127.5 - 1).flatten(1))
        self.schedule = schedule
        self.scale = nn.Parameter(torch.ones(()))  # something to train

    def forward(self, x: Tensor, t: Tensor, cond: None = None) -> Tensor:
        alpha, sigma = (v.float()[:, None] for v in self.schedule.gather(t.long() + 1))
        far = (x.float().flatten(1)[:, None] - alpha[:, :, None] * self.known).square().sum(2)
        weights = torch.softmax(-far / (2 * sigma.square()), 1)
        return self.scale * (weights @ self.known).view_as(x)


def run_of(folder: Path, pictures: int, known: Tensor | None) -> Path:
    """Train a step on so many pictures, with a network that knows them, or others."""
    data = shapes(pictures, 0)
    np.save(folder / "data.npy", data.permute(0, 2, 3, 1).numpy())
    process = GaussianDiffusion(
        nn.Identity(), image_size=SIZE, channels=3, timesteps=100, parametrization="x0"
    )
    network = Memory(data if known is None else known, process.schedule)
    diffusion = GaussianDiffusion(
        network, image_size=SIZE, channels=3, timesteps=100, parametrization="x0"
    )
    Trainer(
        diffusion,
        str(folder / "data.npy"),
        output_dir=str(folder / "run"),
        max_steps=1,
        batch_size=4,
        learning_rate=1e-9,
        sample_every=1,
        sample_count=16,
        sample_steps=20,
        progress=False,
        device="cpu",
        mixed_precision="no",
    ).train()
    return folder / "run"


def logged(run: Path) -> dict[str, float]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {name: value for row in rows for name, value in row.items()}


@pytest.mark.every(3)
@pytest.mark.parametrize("pictures", [30, 60, 300])
def test_rings_while_training_for_memorised_pictures_and_not_for_new_ones(
    pictures: int, tmp_path: Path
) -> None:
    for name, known, rings in (("own", None, True), ("others", shapes(1000, 9), False)):
        (tmp_path / name).mkdir()
        row = logged(run_of(tmp_path / name, pictures, known))
        assert (row["sample_copies_p"] <= COPY_ALARM) == rings, name
        assert (row["sample_copies"] > 0.5) == rings, name


@pytest.mark.every(3)
@pytest.mark.parametrize("pictures", [30, 60, 300])
def test_rings_in_an_evaluation(
    pictures: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DDPM_LIB_CACHE", str(tmp_path / "cache"))
    data, process = (
        shapes(pictures, 0),
        GaussianDiffusion(nn.Identity(), image_size=SIZE, channels=3),
    )
    for known, rings in ((data, True), (shapes(1000, 9), False)):
        diffusion = GaussianDiffusion(
            Memory(known, process.schedule), image_size=SIZE, parametrization="x0"
        )
        drawn = diffusion.sample(64, num_steps=20, sampler="ddim", seed=0, progress=False)
        found = evaluate(
            drawn,
            data,
            metrics="memorisation",
            features="random64",
            device="cpu",
            progress=False,
            references=False,
        )
        for score in found.scores:
            if score.name.startswith("copies_") and "/" not in score.name:
                assert score.remark.startswith("MEMORISES") == rings, score


@pytest.mark.slow
@pytest.mark.parametrize("pictures", [30, 60, 300])
def test_alarm_of_a_sample_grid_rings_always_and_falsely_in_fewer_than_five_of_a_hundred(
    pictures: int,
) -> None:
    """Sixteen samples of a grid: all of them copies, half of them, none."""
    draws, rings = 200, np.zeros(3)
    for draw in range(draws):
        data, fresh = shapes(pictures, 1000 + draw), shapes(16, 50_000 + draw)
        looks, g = TrainingLooks.of([data]), torch.Generator().manual_seed(draw)
        rows = torch.randint(pictures, (16,), generator=g)
        noise = torch.randint(-12, 13, (16, 3, SIZE, SIZE), generator=g)
        copied = (data[rows].int() + noise).clamp(0, 255).to(torch.uint8)
        for k, samples in enumerate((copied, torch.cat([copied[:8], fresh[:8]]), fresh)):
            rings[k] += sample_facts(samples, looks)["sample_copies_p"] <= COPY_ALARM
    every, half, none = rings / draws
    assert every == 1.0
    assert half > 0.9
    assert none < 0.05
