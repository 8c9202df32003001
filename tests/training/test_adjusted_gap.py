"""The gap without what the sets differ by: the linear denoiser in theory, the adjustment on sets of
one kind, and what a run logs.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ddpm_lib import GaussianDiffusion, Shapes, Trainer, Unet
from ddpm_lib.nn import MLP
from ddpm_lib.time_sampling import spread_levels
from ddpm_lib.training import Callback
from ddpm_lib.training.adjusted_gap import FEWEST_PAIRS, LinearDenoiser, adjusted_gap, mean_error
from ddpm_lib.training.callbacks.base import TrainingView
from ddpm_lib.training.callbacks.validation import Validation

SPACES = [(16,), (8, 12), (8, 8, 6)]


def process(size: tuple[int, ...] = (8, 8), channels: int = 3, **options: Any) -> GaussianDiffusion:
    return GaussianDiffusion(MLP(2), image_size=size, channels=channels, timesteps=50, **options)


def smooth(n: int, channels: int, size: tuple[int, ...], seed: int) -> Tensor:
    """Images of stationary Gaussian noise whose power falls with frequency, in [0, 1]."""
    x = torch.randn(n, channels, *size, generator=torch.Generator().manual_seed(seed))
    space = tuple(range(2, x.ndim))
    square = sum(
        torch.fft.fftfreq(s).view([-1 if k == i else 1 for k in range(len(size))]).square()
        for i, s in enumerate(size)
    )
    assert isinstance(square, Tensor)
    found: Tensor = torch.fft.ifftn(torch.fft.fftn(x, dim=space) / (1 + 30 * square), dim=space)
    return 0.5 + 0.1 * found.real


@pytest.mark.parametrize("size", SPACES, ids=str)
def test_error_of_the_linear_denoiser_is_wiener_s(size: tuple[int, ...]) -> None:
    """For Gaussian data of spectrum S it is the mean over frequencies of S·σ²/(α²S + σ²)."""
    images, diffusion = smooth(400, 2, size, 0), process(size, 2, weighting="flat")
    denoiser = LinearDenoiser.of(images)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    weight = diffusion.weighting(diffusion.schedule.snr[1:])
    for level in (3, 25, 48):
        alpha, sigma = (
            float(v[level]) for v in (diffusion.schedule.alpha, diffusion.schedule.sigma)
        )
        power = denoiser.power.double()
        wanted = (power * sigma**2 / (alpha**2 * power + sigma**2)).mean()
        t = torch.full((400,), level)
        found = denoiser.errors(diffusion, images, t, noise)
        assert float(found.mean() / weight[level - 1]) == pytest.approx(float(wanted), rel=0.03)


def test_parseval_holds_for_the_spectrum() -> None:
    images = smooth(40, 3, (8, 12), 2)
    denoiser = LinearDenoiser.of(images)
    x = images * 2 - 1 - denoiser.mean
    assert float(denoiser.power.mean()) == pytest.approx(float(x.square().mean()), rel=1e-4)


def losses(n: int, memory: float, g: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Held-out and training losses that the images' own difficulty moves, and the reference's
    differences; training ones are lower by `memory`.
    """
    hard = torch.randn(2, n, generator=g).mul(0.5).exp()
    level = (spread_levels(np.arange(n), 1000) / 1000.0).float()
    rest = 0.05 * torch.randn(2, n, generator=g)
    found = 0.1 * level * (hard + rest)
    return found[0], found[1] - memory, (2.0 * level * (hard[0] - hard[1]))


def test_what_sets_of_one_kind_differ_by_is_taken_out() -> None:
    """True gap 0: the adjusted one is five times nearer to it, with an error that says how far."""
    g = torch.Generator().manual_seed(3)
    raw, rest, ratio = [], [], []
    for _ in range(200):
        held_out, train, reference = losses(64, 0.0, g)
        found = adjusted_gap(held_out, train, reference, 1000)
        assert found is not None
        assert found.offset + found.gap == pytest.approx(float((held_out - train).mean()), rel=1e-4)
        raw.append(float((held_out - train).mean()))
        rest.append(found.gap)
        ratio.append(found.gap / found.error)
    assert np.std(rest) < np.std(raw) / 5
    assert 0.8 < np.std(ratio) < 1.25
    assert np.mean(np.abs(ratio) > 2) < 0.1


def test_over_fitting_stays() -> None:
    g = torch.Generator().manual_seed(4)
    for _ in range(20):
        found = adjusted_gap(*losses(64, 0.01, g), 1000)
        assert found is not None
        assert abs(found.gap - 0.01) < 4 * found.error < 0.01


def test_no_adjustment_where_it_could_not_be_told() -> None:
    few = torch.rand(FEWEST_PAIRS - 1)
    assert adjusted_gap(few, few, few, 50) is None
    many = torch.rand(20)
    assert adjusted_gap(many, many[:10], many, 50) is None
    assert adjusted_gap(many, many.clone().fill_(math.nan), many, 50) is None
    same = adjusted_gap(many, many / 2, torch.zeros(20), 50)  # the reference tells nothing apart
    assert same is not None
    assert (same.offset, same.gap) == (0.0, pytest.approx(float((many / 2).mean())))
    assert same.error == pytest.approx(mean_error(many / 2, 50))


def rows_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def train(run: Path, steps: int, **options: Any) -> Trainer:
    torch.manual_seed(0)
    network = Unet(dim=8, dim_mults=(1,), blocks_per_level=1)
    usual: dict[str, Any] = {
        "output_dir": str(run),
        "batch_size": 4,
        "max_steps": steps,
        "val_fraction": 0.4,
        "val_every": 2,
        "log_every": 2,
        "save_every": 2,
        "sample_every": 0,
        "progress": False,
        "device": "cpu",
        "warmup_steps": 0,
        "lr_schedule": "constant",
        "ema_decay": 0.9,
    }
    diffusion = GaussianDiffusion(network, image_size=8, timesteps=20)
    trainer = Trainer(diffusion, Shapes(size=8, n=40), **{**usual, **options})
    trainer.train()
    return trainer


class OwnLoss(Callback):
    """Measures the loss of the trained weights on all held-out images."""

    def on_step_end(self, trainer: TrainingView) -> None:
        assert trainer.held_out is not None
        validation, n = Validation(512, trainer.config.seed), len(trainer.held_out)
        losses = validation.losses(trainer, trainer.held_out, n, trainer.diffusion.model)
        self.loss = float(losses.mean())


def test_run_logs_the_offset_and_the_trained_weights_loss_and_resumes_equally(
    tmp_path: Path,
) -> None:
    whole = train(tmp_path / "whole", 6, callbacks=OwnLoss())
    names = ("val_gap_start", "val_gap_adjusted", "val_gap_adjusted_error", "val_loss_model")
    rows = [row for row in rows_of(tmp_path / "whole") if "val_loss" in row]
    assert [row["step"] for row in rows] == [2, 4, 6]
    for row in rows:
        assert row["val_gap"] == pytest.approx(row["val_gap_start"] + row["val_gap_adjusted"])
    train(tmp_path / "cut", 4)
    train(tmp_path / "cut", 6)
    again = [row for row in rows_of(tmp_path / "cut") if "val_loss" in row]
    assert [[row[n] for n in names] for row in again] == [[row[n] for n in names] for row in rows]

    (checked,) = (c for c in whole.callbacks if isinstance(c, OwnLoss))
    assert checked.loss == pytest.approx(rows[-1]["val_loss_model"], rel=1e-6)
    assert rows[-1]["val_loss_model"] != rows[-1]["val_loss"]


def test_without_an_average_there_is_one_loss(tmp_path: Path) -> None:
    train(tmp_path, 2, ema_decay=())
    (row,) = (row for row in rows_of(tmp_path) if "val_loss" in row)
    assert "val_loss_model" not in row
    assert "val_gap_adjusted" in row
