"""The Fréchet distance between Gaussians, by symmetric eigenvalue problems, and what it would be
with infinitely many samples.

d² = |μ₁ − μ₂|² + tr(Σ₁ + Σ₂ − 2(Σ₁Σ₂)^½) (Dowson & Landau 1982; Heusel et al. 2017, eq. 6).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ddpm_lib.core import keys
from ddpm_lib.metrics.moments import Statistics, statistics_of


def _factor(matrix: Tensor) -> Tensor:
    """Return F with F Fᵀ = Σ: Cholesky's, at a tenth of the price, or from eigenvectors where Σ is
    singular.
    """
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if not failed:
        return factor
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp(min=0).sqrt()


def _roots(values: Tensor) -> Tensor:
    # Eigenvalues that are 0 but for rounding come out as ±1e-16·max; the root would blow the
    # positive ones up to 1e-8·√max each.
    floor = values[-1].clamp(min=0) * len(values) * torch.finfo(values.dtype).eps
    return torch.where(values > floor, values, 0.0).sqrt()


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """Return the squared Fréchet distance of two Gaussians.

    tr(Σ₁Σ₂)^½ is the sum of the roots of the eigenvalues of Fᵀ Σ₂ F with F Fᵀ = Σ₁, which is
    symmetric: singular covariances are exact too, nothing turns complex, and nothing is added to a
    diagonal.

    Raises:
        ValueError: If dimensions differ, or a number is not finite.
    """
    _check(a, b)
    factor = _factor(a.cov)
    middle = factor.T @ b.cov @ factor
    trace = _roots(torch.linalg.eigvalsh((middle + middle.T) / 2)).sum()
    return _distance(a, b, float(trace))


def _check(a: Statistics, b: Statistics) -> None:
    if a.mean.shape != b.mean.shape:
        raise ValueError(
            f"Statistics of {len(a.mean)} and {len(b.mean)} features cannot be compared. Use the"
            " same extractor for both."
        )
    if not all(bool(torch.isfinite(v).all()) for v in (a.mean, a.cov, b.mean, b.cov)):
        raise ValueError(
            "Statistics hold NaN or infinite values. Look at the images they come from."
        )


def _distance(a: Statistics, b: Statistics, trace: float) -> float:
    apart = a.mean - b.mean
    return float(apart @ apart + a.cov.trace() + b.cov.trace()) - 2.0 * trace


def frechet_of_features(
    features: Tensor, b: Statistics, a: Statistics | None = None
) -> tuple[float, Tensor]:
    """Return the squared Fréchet distance of features to a Gaussian, and the influence of every
    image on it.

    With fewer images than features, tr(Σ₁Σ₂)^½ is taken from the n × n matrix A Σ₂ Aᵀ, A = (x −
    x̄)/√(n−1), which has the same eigenvalues: exact, and much cheaper. The influence is the
    derivative of d² by the weight of an image, for which ∂ tr(Σ₁Σ₂)^½/∂w_i = ½ [(A Σ₂ Aᵀ)^½]_ii = ½
    A_i T A_iᵀ with the transport map T = F(Fᵀ Σ₁ F)^{−½} Fᵀ, F Fᵀ = Σ₂.

    Args:
        features: (n, d), n ≥ 2.
        b: The other side.
        a: The statistics of the features, where they are known already.

    Returns:
        The distance, and float64 (n,) of mean 0 whose resampled means are the spread of the
        distance to first order.
    """
    n, d = features.shape
    a = statistics_of(features) if a is None else a
    _check(a, b)
    if n <= d:
        rows = (features.double() - a.mean) / (n - 1) ** 0.5
        gram = rows @ b.cov @ rows.T
        values, vectors = torch.linalg.eigh((gram + gram.T) / 2)
        roots = _roots(values)
        shares = vectors.square() @ roots
    else:
        factor = _factor(b.cov)
        middle = factor.T @ a.cov @ factor
        values, vectors = torch.linalg.eigh((middle + middle.T) / 2)
        roots = _roots(values)
        inverse = torch.where(roots > 0, 1 / roots, 0.0).sqrt()
        half = (factor @ vectors) * inverse  # T = half @ half.T
        shares = torch.cat(
            [((x.double() - a.mean) @ half).square().sum(1) for x in features.split(4096)]
        ) / (n - 1)
    apart = a.mean - b.mean
    moved = torch.cat([_first_order(x.double() - a.mean, apart, n) for x in features.split(4096)])
    influence = n * (moved - shares)
    return _distance(a, b, float(roots.sum())), influence - influence.mean()


def _first_order(centred: Tensor, apart: Tensor, n: int) -> Tensor:
    return 2.0 * (centred @ apart) / n + centred.square().sum(1) / (n - 1)


def frechet_infinity(
    features: Tensor, b: Statistics, seed: int = 0, points: int = 10
) -> float | None:
    """Extrapolate the Fréchet distance to infinitely many samples, FID∞ (Chong & Forsyth 2020, §3).

    The distance of N samples is biased upwards by about c/N. A line through the distances of random
    subsets of N = n/2 … n, spread evenly in 1/N, is read off at 1/N = 0. Where N is below the
    number of features the bias is not yet of this form and the result only a rough guess, though a
    better one than the raw value.

    Args:
        features: (n, d).
        b: The reference, which stays as it is.
        seed: Names the subsets.
        points: Number of subsets.

    Returns:
        The intercept, or None for fewer than 20 samples.
    """
    n = len(features)
    if n < 20:
        return None
    sizes = np.unique(np.round(1.0 / np.linspace(1.0 / n, 2.0 / n, points)).astype(int))
    found = []
    for k, size in enumerate(sizes.tolist()):
        rows = torch.from_numpy(np.sort(keys.permutation(n, seed, "fid_infinity", k)[:size]))
        found.append(frechet_of_features(features[rows], b)[0])
    slope, intercept = np.polyfit(1.0 / sizes, np.array(found), 1)
    del slope
    return float(intercept)
