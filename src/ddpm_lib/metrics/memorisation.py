"""Does a model copy its training images? Distances of samples to them, compared with those of held-out images."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ddpm_lib import keys
from ddpm_lib.metrics.neighbours import distances, nearest_distances

COPY_RATIO = 1.0 / 3.0


def copies(samples: Tensor, train: Tensor) -> Tensor:
    """Mark copies: samples whose nearest training image is at most a third as far as the second nearest.

    The rule of Yoon et al. 2023 (§3). It needs no threshold in the units of the features; an exact copy of a training image
    that occurs twice counts too, a slightly changed copy of such an image does not.

    Args:
        samples: Features (n, d).
        train: Features (m, d), m ≥ 2.

    Returns:
        float64 (n,) of 0 and 1.
    """
    two = nearest_distances(samples, train, 2)
    # |x|² + |y|² − 2xy of equal rows is 0 up to rounding.
    scale = (train.double() - train.double().mean(0)).norm(dim=1).mean()
    return ((two[:, 0] <= COPY_RATIO * two[:, 1]) | (two[:, 0] <= 1e-6 * scale)).double()


def copying_test(
    samples: Tensor, held_out: Tensor, train: Tensor, *, seed: int = 0, cells: int | None = None
) -> tuple[float, Tensor]:
    """Return C_T, the data-copying statistic of Meehan, Chaudhuri & Dasgupta 2020 (eq. 3), and each sample's influence.

    In each cell of a partition of the training set, the z-score of the Mann–Whitney test asks whether samples lie nearer to
    training images than held-out images do; cells are weighted by their share of held-out images. About 0 for a perfect
    model, below −3 where samples are significantly nearer (copying), above 3 where they are farther away (underfitting).

    Args:
        samples: Features (n, d).
        held_out: Features (h, d) of images that were not trained on.
        train: Features (m, d).
        seed: Names the starting points of k-means.
        cells: Number of cells; default: one per 200 training images, 1 … 10. Cells with fewer than 10 samples or 10
            held-out images are left out; if all are, the whole space is one cell.
    """
    count = min(10, max(1, len(train) // 200)) if cells is None else cells
    centres = k_means(train, count, seed)
    near_q, near_p = (nearest_distances(x, train, 1)[:, 0] for x in (samples, held_out))
    cell_q, cell_p = (distances(x, centres).argmin(1) for x in (samples, held_out))
    used = [c for c in range(count) if int((cell_q == c).sum()) >= 10 and int((cell_p == c).sum()) >= 10]
    if not used:
        cell_q, cell_p, used = torch.zeros_like(cell_q), torch.zeros_like(cell_p), [0]
    weight = {c: float((cell_p == c).sum()) for c in used}
    total = sum(weight.values())
    influence = torch.zeros(len(samples), dtype=torch.float64, device=samples.device)
    statistic = 0.0
    for c in used:
        rows = torch.nonzero(cell_q == c)[:, 0]
        z, parts = _mann_whitney(near_q[rows], near_p[cell_p == c])
        statistic += weight[c] / total * z
        influence[rows] = weight[c] / total * (parts - parts.mean()) * len(samples)
    return statistic, influence


def _mann_whitney(q: Tensor, p: Tensor) -> tuple[float, Tensor]:
    """Return the z-score of #{(q, p): d_q > d_p}, ties counted half, and what each q contributes to it."""
    sorted_p = p.sort().values
    below = torch.searchsorted(sorted_p, q, right=False)
    upto = torch.searchsorted(sorted_p, q, right=True)
    wins = (below + upto).double() / 2.0
    n, m = len(q), len(p)
    sigma = math.sqrt(n * m * (n + m + 1) / 12.0)
    return float((wins.sum() - n * m / 2.0) / sigma), wins / sigma


def k_means(x: Tensor, k: int, seed: int = 0, steps: int = 20) -> Tensor:
    """Return k centres float64 (k, d) by Lloyd's algorithm from k-means++ starting points."""
    points = x.double()
    draws = np.random.Generator(np.random.PCG64(keys.key(seed, "k_means", k)))
    chosen = [int(draws.integers(len(points)))]
    near = distances(points, points[chosen])[:, 0].square()
    while len(chosen) < k:
        share = near.cpu().numpy() / float(near.sum()) if float(near.sum()) > 0 else None
        chosen.append(int(draws.choice(len(points), p=share)))
        near = torch.minimum(near, distances(points, points[chosen[-1:]])[:, 0].square())
    centres = points[chosen].clone()
    for _ in range(steps):
        cell = distances(points, centres).argmin(1)
        sums = torch.zeros_like(centres).index_add_(0, cell, points)
        sizes = torch.bincount(cell, minlength=k)
        centres = torch.where(sizes[:, None] > 0, sums / sizes.clamp(min=1)[:, None], centres)
    return centres
