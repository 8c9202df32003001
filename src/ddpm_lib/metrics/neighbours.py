"""What nearest neighbours in feature space say: precision, recall, density, coverage."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_BLOCK = 1 << 24
"""Distances held at a time."""


class TooFewImagesError(ValueError):
    """A number that needs more images than there are."""


def distances(x: Tensor, y: Tensor, centre: Tensor | None = None) -> Tensor:
    """Return Euclidean distances float64 (n, m) of features (n, d) and (m, d), moved by `centre`
    against cancellation.
    """
    x, y = x.double(), y.double()
    if centre is not None:
        x, y = x - centre, y - centre
    square = x.square().sum(1)[:, None] + y.square().sum(1)[None] - 2.0 * (x @ y.T)
    return square.clamp_(min=0).sqrt_()


def nearest_distances(x: Tensor, y: Tensor, k: int, same: bool = False) -> Tensor:
    """Return the distances of each x to its k nearest y, float64 (n, k), ascending; with `same`, x
    is y and itself excluded.

    Raises:
        ValueError: If there are not k neighbours.
    """
    if len(y) - same < k:
        raise TooFewImagesError(
            f"{k} nearest neighbours need {k + same} images; got {len(y)}. Use more images."
        )
    found = []
    centre = y.double().mean(0)
    step = max(1, _BLOCK // len(y))
    for start in range(0, len(x), step):
        d = distances(x[start : start + step], y, centre)
        if same:
            rows = torch.arange(len(d), device=d.device)
            d[rows, rows + start] = torch.inf
        found.append(d.topk(k, largest=False).values)
    return torch.cat(found)


@dataclass(frozen=True)
class Manifolds:
    """Per image, what the four numbers average.

    Attributes:
        precision: For each sample, 1 if it lies in a ball around a reference image.
        recall: For each reference image, 1 if it lies in a ball around a sample.
        density: For each sample, the number of balls around reference images it lies in, by k.
        coverage: For each reference image, 1 if a sample lies in its ball.
    """

    precision: Tensor
    recall: Tensor
    density: Tensor
    coverage: Tensor


def manifolds(samples: Tensor, reference: Tensor, k: int = 3) -> Manifolds:
    """Compare two sets through balls that reach to the k-th nearest neighbour within the own set.

    Improved precision and recall (Kynkäänniemi et al. 2019, eqs. 1–2), density and coverage (Naeem
    et al. 2020, eqs. 1, 3).

    Args:
        samples: Features (n, d), n > k.
        reference: Features (m, d), m > k.
        k: Neighbours.

    Raises:
        ValueError: If a set has k images or fewer.
    """
    real = nearest_distances(reference, reference, k, same=True)[:, -1]
    mine = nearest_distances(samples, samples, k, same=True)[:, -1]
    inside, recalled = [], torch.zeros(len(reference), dtype=torch.bool, device=reference.device)
    covered = torch.zeros_like(recalled)
    step = max(1, _BLOCK // len(reference))
    centre = reference.double().mean(0)
    for start in range(0, len(samples), step):
        d = distances(samples[start : start + step], reference, centre)
        balls = d <= real
        inside.append(balls.sum(1))
        covered |= balls.any(0)
        recalled |= (d <= mine[start : start + step, None]).any(0)
    count = torch.cat(inside)
    return Manifolds((count > 0).double(), recalled.double(), count.double() / k, covered.double())
