"""How far apart two sets of points are: measures that need no network and whose values are known
for Gaussians.

Made for few dimensions. Points are (n, d); further dimensions are flattened into d. All arithmetic
is float64 on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ddpm_lib.core import keys


def energy_distance(x: Tensor, y: Tensor, chunk: int = 1024) -> float:
    """Return an unbiased estimate of 2·E‖X − Y‖ − E‖X − X'‖ − E‖Y − Y'‖ (Székely & Rizzo 2013, eq.
    5).

    Zero exactly if the distributions are equal, positive otherwise. Pairs of a point with itself
    are left out (U-statistics), so that the mean over draws is right at every n, and the estimate
    is negative about half of the time when the distributions are equal.

    Args:
        x: Points (n, d), n ≥ 2.
        y: Points (m, d), m ≥ 2.
        chunk: Points of x to compare with y at a time.
    """
    a, b = _points(x, y, at_least=2)
    n, m = len(a), len(b)
    between = _sum_of_distances(a, b, chunk) / (n * m)
    within = _sum_of_distances(a, a, chunk) / (n * (n - 1)) + _sum_of_distances(b, b, chunk) / (
        m * (m - 1)
    )
    return 2.0 * between - within


def sliced_wasserstein(x: Tensor, y: Tensor, projections: int = 256, seed: int = 0) -> float:
    """Return √(mean over directions θ of W_2²(θ·x, θ·y)), the sliced 2-Wasserstein distance
    (Bonneel et al. 2015).

    On a line, W_2 compares sorted points. It is in the units of the points and biased upwards:
        compare it with the value
    for two sets of the same distribution.

    Args:
        x: Points (n, d).
        y: Points (m, d); for n ≠ m the quantiles of the smaller set are repeated.
        projections: Number of directions, uniform on the sphere.
        seed: Names the directions.
    """
    a, b = _points(x, y)
    if projections < 1:
        raise ValueError(f"projections must be at least 1, got {projections}. Use 256.")
    generator = keys.generator("cpu", 0, seed, "sliced_wasserstein")
    directions = torch.randn(a.shape[1], projections, dtype=torch.float64, generator=generator)
    directions /= directions.norm(dim=0)
    size = max(len(a), len(b))
    total = 0.0
    for part in directions.split(16, dim=1):  # bounds the memory for large sets
        sorted_a, sorted_b = (
            (points @ part).sort(0).values[_quantiles(len(points), size)] for points in (a, b)
        )
        total += float((sorted_a - sorted_b).square().mean(0).sum())
    return math.sqrt(total / projections)


def histogram_kl(
    x: Tensor,
    reference: Tensor | Callable[[Tensor], Tensor],
    bins: int = 40,
    range: tuple[float, float] = (-1.0, 1.0),
    subdivisions: int = 4,
) -> float:
    """Return KL(reference ‖ x) in nats between histograms on a grid, and one bin for all that is
    outside of it.

    Every bin of x counts half a point more than it holds, so that the result stays finite: a part
    of the reference that x never visits costs about its share times log(2n·share). Equal
    distributions give about (occupied bins − 1)/2n.

    Args:
        x: Points (n, d), d ≤ 3.
        reference: Points (m, d), or a log-density: a function from points (k, d) to (k,).
        bins: Bins per axis.
        range: Where the grid starts and ends on every axis.
        subdivisions: Each bin's probability is the mean density at the middles of so many cells per
            axis.
    """
    points, _ = _points(x, x)
    d = points.shape[1]
    if d > 3:
        raise ValueError(
            f"A histogram needs 1 to 3 dimensions; got {d}. Use energy_distance or"
            " sliced_wasserstein."
        )
    low, high = range
    if not low < high or bins < 1 or subdivisions < 1:
        raise ValueError(
            f"Give range=(low, high) with low < high, bins ≥ 1 and subdivisions ≥ 1; got {range},"
            f" {bins}, {subdivisions}."
        )
    if isinstance(reference, Tensor):
        other = _points(reference, x)[0]
        p = _histogram(other, bins, low, high) / len(other)
    else:
        p = _bin_masses(reference, d, bins, low, high, subdivisions)
    counts = _histogram(points, bins, low, high) + 0.5
    q = counts / counts.sum()
    seen = p > 0
    return float(np.sum(p[seen] * np.log(p[seen] / q[seen])))


def _points(x: Tensor, y: Tensor, at_least: int = 1) -> tuple[Tensor, Tensor]:
    a, b = (
        v.detach().cpu().double().flatten(1) if v.ndim > 1 else v.detach().cpu().double()[:, None]
        for v in (x, y)
    )
    if a.shape[1] != b.shape[1]:
        raise ValueError(
            f"Both sets must have points of one dimension; got {tuple(x.shape)} and"
            f" {tuple(y.shape)}."
        )
    if min(len(a), len(b)) < at_least:
        raise ValueError(f"Each set needs at least {at_least} points; got {len(a)} and {len(b)}.")
    if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
        raise ValueError("Points hold NaN or infinite values. Check what made them.")
    return a, b


def _sum_of_distances(a: Tensor, b: Tensor, chunk: int) -> float:
    # By differences: through ‖a‖² − 2a·b + ‖b‖² the distances of close points would be lost to
    # cancellation.
    return sum(
        float(torch.cdist(part, b, compute_mode="donot_use_mm_for_euclid_dist").sum())
        for part in a.split(chunk)
    )


def _quantiles(n: int, size: int) -> Tensor:
    """Return the rows of n sorted points that stand for `size` equally likely quantiles."""
    return (2 * torch.arange(size) + 1) * n // (2 * size)


def _histogram(points: Tensor, bins: int, low: float, high: float) -> np.ndarray:
    """Count points per bin, and in a last bin those outside."""
    d = points.shape[1]
    counts, _ = np.histogramdd(points.numpy(), bins=[np.linspace(low, high, bins + 1)] * d)
    return np.append(counts.ravel(), len(points) - counts.sum())


def _bin_masses(
    log_density: Callable[[Tensor], Tensor],
    d: int,
    bins: int,
    low: float,
    high: float,
    subdivisions: int,
) -> np.ndarray:
    """Integrate a density over the bins by the midpoint rule, and put what is missing to 1 in a
    last bin.
    """
    cells = bins * subdivisions
    width = (high - low) / cells
    middles = low + width * (torch.arange(cells, dtype=torch.float64) + 0.5)
    points = torch.cartesian_prod(*[middles] * d).view(-1, d)
    density = log_density(points).double().exp().numpy().reshape([bins, subdivisions] * d)
    masses = density.sum(axis=tuple(2 * i + 1 for i in range(d))) * width**d
    return np.append(masses.ravel(), max(0.0, 1.0 - masses.sum()))
