"""What a few samples say beside training images: copies, colours, variety, grain."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ddpm_lib.images import to_uint8
from ddpm_lib.metrics.memorisation import controls, copy_test
from ddpm_lib.metrics.neighbours import distances

COPY_SIDE = 16
"""Images are averaged to at most so many pixels in every direction before copies are looked for."""
SPREAD_SIDE = 8
"""The same for the variety of samples."""
CONTROLS = 500
"""Training images that show how often images look like copies by nature."""


@dataclass(frozen=True)
class TrainingLooks:
    """Training images as samples are compared with them, prepared once.

    Attributes:
        pixels: The images averaged to at most 16 pixels in every direction, float32 (m, d).
        controls: Which of 500 of them look like copies of others, float64 (k,) of 0 and 1; empty
            where there are fewer than three images.
        spread: Mean distance of two of the images averaged to 8 pixels; 0 where there is one.
        grain: Mean squared Laplacian; None where a side has fewer than three pixels.
    """

    pixels: Tensor
    controls: Tensor
    spread: float
    grain: float | None

    @classmethod
    def of(cls, batches: Iterable[Tensor]) -> TrainingLooks:
        """Look at training images; 2,000 spread over the set are enough.

        Args:
            batches: Images (b, c, *spatial), uint8 or float in [0, 1], in parts.
        """
        pixels, small, grain, values = [], [], 0.0, 0
        for images in batches:
            x = _unit(images)
            pixels.append(averaged(x, COPY_SIDE).flatten(1))
            small.append(averaged(x, SPREAD_SIDE).flatten(1))
            rough = laplacian(x)
            if rough is not None:
                grain, values = grain + float(rough.square().sum()), values + rough.numel()
        looks = torch.cat(pixels)
        found = controls(looks, most=CONTROLS) if len(looks) >= 3 else torch.zeros(0)
        return cls(
            looks, found, mean_distance(torch.cat(small)), grain / values if values else None
        )


def sample_facts(samples: Tensor, train: TrainingLooks, generated: bool = True) -> dict[str, float]:
    """Return what samples have in common with training images, and what not.

    Args:
        samples: Images (n, c, *spatial) in [0, 1], or uint8.
        train: The training images.
        generated: False for samples that were made of images, as by super-resolution: they look
            like those, so that copies and variety say nothing.

    Returns:
        By name: `sample_n`; `sample_mean_0`, `sample_std_0`, … by channel, of pixels in [0, 1];
        `sample_grain`, the mean squared Laplacian over that of training images (1 like data, far
        above noise, below blurred); `sample_spread`, the mean distance of two samples over that of
        two training images, both averaged to 8 pixels a side (1 like data, 0 all alike);
        `sample_copies`, the share that are copies of training images (`copies`), and
        `sample_copies_p`, Fisher's p-value of their number (`copy_test`). What makes no sense for
        so few or such images is left out.
    """
    x = _unit(samples)
    found: dict[str, float] = {"sample_n": len(x)}
    for k in range(x.shape[1]):
        channel = x[:, k].double()
        found[f"sample_mean_{k}"] = float(channel.mean())
        found[f"sample_std_{k}"] = float(channel.std(correction=0))
    rough = laplacian(x)
    if rough is not None and train.grain:
        found["sample_grain"] = float(rough.square().mean()) / train.grain
    if not generated:
        return _finite(found)
    if len(x) > 1 and train.spread:
        own = mean_distance(averaged(x, SPREAD_SIDE).flatten(1))
        found["sample_spread"] = own / train.spread
    if len(train.controls):
        looks = averaged(x, COPY_SIDE).flatten(1)
        test = copy_test(looks, train.pixels, control=train.controls)
        found["sample_copies"] = float(test.copies.mean())
        found["sample_copies_p"] = test.p_value
    return _finite(found)


def _finite(found: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in found.items() if math.isfinite(value)}


def _unit(images: Tensor) -> Tensor:
    """Return float32 in [0, 1] on the CPU, rounded to 8 bits as in files."""
    return to_uint8(images.detach().cpu()).float() / 255.0


def averaged(x: Tensor, side: int) -> Tensor:
    """Average images (n, c, *spatial) to at most `side` pixels in every direction."""
    for axis in range(2, x.ndim):
        if x.shape[axis] > side:
            rows = x.movedim(axis, -1)
            x = F.adaptive_avg_pool1d(rows.flatten(0, -2), side).view(*rows.shape[:-1], side)
            x = x.movedim(-1, axis)
    return x


def laplacian(x: Tensor) -> Tensor | None:
    """Return Σ (x_{i+1} − 2x_i + x_{i−1}) over the directions at the inner pixels of images (n, c,
    *spatial); None where a side has fewer than three.
    """
    if min(x.shape[2:]) < 3:
        return None
    parts = []
    for axis in range(2, x.ndim):
        curved = x.diff(n=2, dim=axis)
        for other in range(2, x.ndim):
            if other != axis:
                curved = curved.narrow(other, 1, x.shape[other] - 2)
        parts.append(curved)
    return torch.stack(parts).sum(0)


def mean_distance(x: Tensor) -> float:
    """Return the mean distance of two different rows of (n, d); 0 where there is one."""
    n = len(x)
    if n < 2:
        return 0.0
    centre = x.double().mean(0)
    total = sum(float(distances(part, x, centre).sum()) for part in x.split(512))
    return total / (n * (n - 1))
