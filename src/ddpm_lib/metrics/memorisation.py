"""Does a model copy its training images? Distances of samples to them, compared with those of
held-out images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ddpm_lib.core import keys
from ddpm_lib.core.copy_alarm import COPY_ALARM
from ddpm_lib.metrics.neighbours import distances, nearest_distances

COPY_RATIO = 1.0 / 3.0
CONTROLS = 2000
"""Training images, spread over the set, that show how often images look like copies by nature."""
EXACT = 50
"""Ranks of fewer images than this on one side are tested exactly."""


def copies(samples: Tensor, train: Tensor) -> Tensor:
    """Mark copies: samples whose nearest training image is at most a third as far as the second
    nearest.

    The rule of Yoon et al. 2023 (§3). It needs no threshold in the units of the features; an exact
    copy of a training image that occurs twice counts too, a slightly changed copy of such an image
    does not.

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


@dataclass(frozen=True)
class CopyTest:
    """How many samples are copies of training images, against how many images that cannot be copies
    look like ones.

    Attributes:
        copies: float64 (n,) of 0 and 1, by sample.
        controls: The same for images that are no copies: training images, each against the others,
            and held-out images.
        p_value: Fisher's one-sided exact test that samples are copies more often than controls are.
        lowest: The smallest p-value that sets of these sizes can have, where every sample is a
            copy.
    """

    copies: Tensor
    controls: Tensor
    p_value: float
    lowest: float

    @property
    def rings(self) -> bool:
        """Whether copies are more than chance: at most one false alarm in `1 / COPY_ALARM`."""
        return self.p_value <= COPY_ALARM

    @property
    def can_ring(self) -> bool:
        """Whether there are enough images for that."""
        return self.lowest <= COPY_ALARM


def copy_test(
    samples: Tensor,
    train: Tensor,
    held_out: Tensor | None = None,
    control: Tensor | None = None,
) -> CopyTest:
    """Test whether more samples are copies (`copies`) than chance explains; it works with few
    images.

    Some data has images that look like copies of others: series of one scene, few degrees of
    freedom. How often that happens is seen on each training image against all others, and on
    held-out images, and compared with the samples by Fisher's exact test. Blurred samples are near
    to everything, but to no image three times nearer than to the next: unlike C_T, this test does
    not take them for copies.

    Args:
        samples: Features (n, d).
        train: Features (m, d), m ≥ 3.
        held_out: Features (h, d) of images that were not trained on, where there are some.
        control: What `controls(train)` returned, to test other samples without its price.
    """
    mine = copies(samples, train)
    others = controls(train) if control is None else control
    if held_out is not None and len(held_out):
        others = torch.cat([others, copies(held_out, train)])
    n, c, k = len(mine), len(others), int(mine.sum())
    total = k + int(others.sum())
    return CopyTest(mine, others, fisher_p(k, n, total, c), fisher_p(n, n, n, c))


def fisher_p(k: int, n: int, total: int, c: int) -> float:
    """Return Fisher's one-sided p-value: how often n of n + c images, of which `total` are marked,
    hold k marked ones or more by chance.

    >>> round(fisher_p(3, 3, 3, 3), 3), fisher_p(0, 3, 2, 3)
    (0.05, 1.0)
    """
    if k == 0:
        return 1.0

    def log_ways(of: int, some: int) -> float:
        return math.lgamma(of + 1) - math.lgamma(some + 1) - math.lgamma(of - some + 1)

    found = range(max(k, total - c), min(n, total) + 1)
    ways = [log_ways(n, i) + log_ways(c, total - i) for i in found]
    return min(1.0, math.fsum(math.exp(way - log_ways(n + c, total)) for way in ways))


def controls(train: Tensor, most: int = CONTROLS) -> Tensor:
    """Mark which training images look like copies of another one.

    Args:
        train: Features (m, d), m ≥ 3.
        most: How many of them are looked at, spread over the set.

    Returns:
        float64 (c,) of 0 and 1, c ≤ most.
    """
    c = min(len(train), most)
    rows = torch.arange(c, device=train.device) * len(train) // c
    two = nearest_distances(train[rows], train, 3)[:, 1:]  # the nearest is the image itself
    scale = (train.double() - train.double().mean(0)).norm(dim=1).mean()
    return ((two[:, 0] <= COPY_RATIO * two[:, 1]) | (two[:, 0] <= 1e-6 * scale)).double()


@dataclass(frozen=True)
class CopyingTest:
    """The data-copying statistic of Meehan et al. 2020 and what it is worth.

    Attributes:
        statistic: C_T, a weighted mean of z-scores.
        influence: Of each sample on it, float64 (n,).
        p_value: One-sided: how probable so low a statistic is where samples are as held-out images
            are.
        lowest: The smallest p-value that so many samples and held-out images can have.
        least: The lowest value that C_T can have.
    """

    statistic: float
    influence: Tensor
    p_value: float
    lowest: float
    least: float

    @property
    def can_ring(self) -> bool:
        """Whether copying could be told from chance at all."""
        return self.lowest <= COPY_ALARM


def copying_test(
    samples: Tensor, held_out: Tensor, train: Tensor, *, seed: int = 0, cells: int | None = None
) -> tuple[float, Tensor]:
    """Return C_T (see `measure_copying`) and each sample's influence."""
    found = measure_copying(samples, held_out, train, seed=seed, cells=cells)
    return found.statistic, found.influence


def measure_copying(
    samples: Tensor, held_out: Tensor, train: Tensor, *, seed: int = 0, cells: int | None = None
) -> CopyingTest:
    """Compute C_T, the data-copying statistic of Meehan, Chaudhuri & Dasgupta 2020 (eq. 3), and its
    p-value.

    C_T is the mean over cells of the space, weighted by held-out images, of z-scores of a
    Mann–Whitney test between the distances of samples and of held-out images to their nearest
    training image. About 0: samples are as far from training images as new images are. Below −3:
    they are copies. Above 3: they are farther away (underfitting).

    A z-score of ranks is bounded: with 3 held-out images C_T never reaches −3, whatever is copied.
    The p-value is right at any size: it is that of the exact distribution of the ranks in every
    cell, of the normal one only in cells where both sets have more than 50 images; a tie between a
    sample and a held-out image counts against copying, so that it is never too small.

    Args:
        samples: Features (n, d).
        held_out: Features (h, d) of images that were not trained on.
        train: Features (m, d).
        seed: Names the starting points of k-means.
        cells: Number of cells; default: one per 200 training images, 1 … 10. Cells with fewer than
            10 samples or 10 held-out images are left out; if all are, the whole space is one cell.
    """
    count = min(10, max(1, len(train) // 200)) if cells is None else cells
    centres = k_means(train, count, seed)
    near_q, near_p = (nearest_distances(x, train, 1)[:, 0] for x in (samples, held_out))
    cell_q, cell_p = (distances(x, centres).argmin(1) for x in (samples, held_out))
    used = [
        c for c in range(count) if int((cell_q == c).sum()) >= 10 and int((cell_p == c).sum()) >= 10
    ]
    if not used:
        cell_q, cell_p, used = torch.zeros_like(cell_q), torch.zeros_like(cell_p), [0]
    weight = {c: float((cell_p == c).sum()) for c in used}
    total = sum(weight.values())
    influence = torch.zeros(len(samples), dtype=torch.float64, device=samples.device)
    statistic = least = 0.0
    for c in used:
        rows = torch.nonzero(cell_q == c)[:, 0]
        z, parts = _mann_whitney(near_q[rows], near_p[cell_p == c])
        share = weight[c] / total
        statistic += share * z
        least += share * _least_z(len(rows), int(weight[c]))
        influence[rows] = share * (parts - parts.mean()) * len(samples)
    pairs = [(near_q[cell_q == c], near_p[cell_p == c], weight[c] / total) for c in used]
    p_value, lowest = rank_p_value(*pairs[0][:2]) if len(pairs) == 1 else cells_p_value(pairs)
    return CopyingTest(statistic, influence, p_value, lowest, least)


def _normal_cdf(z: float) -> float:
    return 0.5 * math.erfc(-z / math.sqrt(2.0))


def _least_z(n: int, m: int) -> float:
    return -n * m / 2.0 / _spread(n, m)


def rank_p_value(q: Tensor, p: Tensor) -> tuple[float, float]:
    """Test by ranks whether q tends to be smaller than p (Mann & Whitney 1947), one-sided.

    Args:
        q: Numbers (n,).
        p: Numbers (m,).

    Returns:
        The p-value, and the smallest one that n and m numbers can have. Exact where n or m is at
        most `EXACT`, with ties between q and p counted as if q were larger; else normal, with the
        correction for continuity.
    """
    n, m = len(q), len(p)
    at_most = torch.searchsorted(p.sort().values, q, right=True)  # #{p ≤ q}: ties against smaller q
    wins = int(at_most.sum())
    if min(n, m) <= EXACT:
        below = rank_distribution(n, m).cumsum()
        return min(1.0, float(below[wins])), float(below[0])
    sigma = _spread(n, m)
    found, lowest = (_normal_cdf((u + 0.5 - n * m / 2.0) / sigma) for u in (wins, 0))
    return found, lowest


BINS = 2**17
"""Of the grid on which the ranks of several cells are added up."""


def cells_p_value(cells: Sequence[tuple[Tensor, Tensor, float]]) -> tuple[float, float]:
    """Test by a weighted sum of z-scores over cells whether q tends to be smaller than p,
    one-sided.

    The distribution of Σ w·z is the convolution of those of the single cells, on a grid to which
    values are rounded down: the p-value is never too small, and too large by less than a hundredth
    of a standard deviation would make it.

    Args:
        cells: Per cell the numbers q and p, and the weight w of its z-score.

    Returns:
        The p-value, and the smallest one that numbers so many can have. Ranks are as in
        `rank_p_value`.
    """
    from scipy.signal import fftconvolve

    sizes = [(len(q), len(p)) for q, p, _ in cells]
    factors = [w / _spread(n, m) for (n, m), (_, _, w) in zip(sizes, cells)]
    step = sum(a * n * m for a, (n, m) in zip(factors, sizes)) / BINS
    found, lowest, seen = np.ones(1), 1.0, 0.0
    for (q, p, _), a, (n, m) in zip(cells, factors, sizes):
        wins = int(torch.searchsorted(p.sort().values, q, right=True).sum())
        seen += a * wins
        likely, none = _binned(n, m, a / step)
        lowest *= none
        found = fftconvolve(found, likely).clip(min=0.0)
    p_value = float(found[: int(seen / step + 1e-9) + 1].sum())
    return min(1.0, max(lowest, p_value)), lowest


def _binned(n: int, m: int, scale: float) -> tuple[np.ndarray, float]:
    """Return the probability of each whole part of scale·U, and that of U = 0; exact where n or m
    is at most `EXACT`, else normal.
    """
    if min(n, m) <= EXACT:
        exact = rank_distribution(n, m)
        bins = np.floor(np.arange(n * m + 1) * scale).astype(np.int64)
        return np.bincount(bins, exact), float(exact[0])
    from scipy.special import ndtr

    ends = np.arange(1.0, math.floor(n * m * scale) + 2.0) / scale
    last = np.minimum(np.ceil(ends) - 1.0, n * m)  # the largest U of each bin
    below = ndtr((np.append(last, 0.0) + 0.5 - n * m / 2.0) / _spread(n, m))
    return np.diff(below[:-1], prepend=0.0), float(below[-1])


def _spread(n: int, m: int) -> float:
    """Return the standard deviation of U."""
    return math.sqrt(n * m * (n + m + 1) / 12.0)


def rank_distribution(n: int, m: int) -> np.ndarray:
    """Return the probability of each value 0 … n·m of Mann & Whitney's U where both sets are of one
    kind, float64.

    The counts are the coefficients of the Gaussian binomial ∏_i (1 − x^{n+i})/(1 − x^i), i = 1 … m;
    each factor is taken by one subtraction and one running sum, of probabilities rather than
    counts.
    """
    large, small = max(n, m), min(n, m)
    found = np.zeros(large * small + 1)
    found[0] = 1.0
    for i in range(1, small + 1):
        found[large + i :] -= found[: -(large + i)].copy()
        padded = np.zeros(-(-len(found) // i) * i)
        padded[: len(found)] = found
        found = padded.reshape(-1, i).cumsum(0).reshape(-1)[: len(found)]
        found *= i / (large + i)
        found[large * i + 1 :] = 0.0  # exact zeros, which rounding would leave as dust
    return found.clip(min=0.0)


def _mann_whitney(q: Tensor, p: Tensor) -> tuple[float, Tensor]:
    """Return the z-score of #{(q, p): d_q > d_p}, ties counted half, and what each q contributes to
    it.
    """
    sorted_p = p.sort().values
    below = torch.searchsorted(sorted_p, q, right=False)
    upto = torch.searchsorted(sorted_p, q, right=True)
    wins = (below + upto).double() / 2.0
    n, m = len(q), len(p)
    sigma = _spread(n, m)
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
