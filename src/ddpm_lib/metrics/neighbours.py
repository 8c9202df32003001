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
    centre = _mean(y)
    many = _rows_at_a_time(y)
    step = max(1, _BLOCK // min(len(y), many))
    for start in range(0, len(x), step):
        some, nearest = x[start : start + step], None
        for first in range(0, len(y), many):
            d = distances(some, y[first : first + many], centre)
            if same:
                own = torch.arange(start, start + len(some), device=d.device) - first
                inside = (own >= 0) & (own < d.shape[1])
                d[inside.nonzero().flatten(), own[inside]] = torch.inf
            d = d if nearest is None else torch.cat([nearest, d], 1)
            nearest = d.topk(min(k, d.shape[1]), largest=False).values
        assert nearest is not None
        found.append(nearest)
    return torch.cat(found)


def _rows_at_a_time(y: Tensor) -> int:
    """Return how many features are turned to float64 at a time: 128 MiB of them."""
    return max(1, _BLOCK // max(1, y.shape[1]))


def _mean(y: Tensor) -> Tensor:
    total = torch.zeros(y.shape[1:], dtype=torch.float64, device=y.device)
    for some in y.split(_rows_at_a_time(y)):
        total += some.double().sum(0)
    return total / len(y)


GROUPS = 16
"""Groups of samples by which the errors of recall and coverage are taken."""


@dataclass(frozen=True)
class Manifolds:
    """Per image, what the four numbers average.

    Attributes:
        precision: For each sample, 1 if it lies in a ball around a reference image.
        recall: For each reference image, 1 if it lies in a ball around a sample.
        density: For each sample, the number of balls around reference images it lies in, by k.
        coverage: For each reference image, 1 if a sample lies in its ball.
        recall_error: Standard error of the mean recall by which samples were drawn.
        coverage_error: The same of coverage.
    """

    precision: Tensor
    recall: Tensor
    density: Tensor
    coverage: Tensor
    recall_error: float
    coverage_error: float


def manifolds(samples: Tensor, reference: Tensor, k: int = 3) -> Manifolds:
    """Compare two sets through balls that reach to the k-th nearest neighbour within the own set.

    Improved precision and recall (Kynkäänniemi et al. 2019, eqs. 1–2), density and coverage (Naeem
    et al. 2020, eqs. 1, 3).

    Recall and coverage are means over reference images of what all samples together reach. How much
    they depend on the samples says the jackknife over 16 groups of them (Efron & Stein 1981).

    Args:
        samples: Features (n, d), n > k.
        reference: Features (m, d), m > k.
        k: Neighbours.

    Raises:
        ValueError: If a set has k images or fewer.
    """
    real = nearest_distances(reference, reference, k, same=True)[:, -1]
    mine = nearest_distances(samples, samples, k, same=True)[:, -1]
    inside, groups = [], min(GROUPS, len(samples))
    recalled = torch.zeros(groups, len(reference), dtype=torch.bool, device=reference.device)
    covered = torch.zeros_like(recalled)
    many, centre = _rows_at_a_time(reference), _mean(reference)
    step = max(1, _BLOCK // min(len(reference), many))
    for start in range(0, len(samples), step):
        some, own = samples[start : start + step], mine[start : start + step, None]
        count = torch.zeros(len(some), dtype=torch.int64, device=samples.device)
        for first in range(0, len(reference), many):
            rows = slice(first, first + many)
            d = distances(some, reference[rows], centre)
            balls = d <= real[rows]
            count += balls.sum(1)
            reached = d <= own
            for group in range(groups):
                some_of = slice((group - start) % groups, None, groups)
                covered[group, rows] |= balls[some_of].any(0)
                recalled[group, rows] |= reached[some_of].any(0)
        inside.append(count)
    count = torch.cat(inside)
    return Manifolds(
        (count > 0).double(),
        recalled.any(0).double(),
        count.double() / k,
        covered.any(0).double(),
        _error_by_groups(recalled),
        _error_by_groups(covered),
    )


def _error_by_groups(hit: Tensor) -> float:
    """Return the jackknife's standard error of the share of columns that some row hits, by leaving
    out one row (groups, m) at a time.
    """
    groups, others = len(hit), hit.sum(0) - hit.long()
    shares = (others > 0).double().mean(1)
    return float(((groups - 1) / groups * (shares - shares.mean()).square().sum()).sqrt())
