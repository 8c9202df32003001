"""Kernel distance (KID) and inception score of features."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ddpm_lib.metrics.neighbours import TooFewImagesError

KID_SUBSETS = 100
KID_SUBSET_SIZE = 1000


def polynomial_kernel(x: Tensor, y: Tensor) -> Tensor:
    """Return k(x, y) = (x·y/d + 1)³ (Bińkowski et al. 2018, §4), float64 (n, m)."""
    return (x.double() @ y.double().T / x.shape[1] + 1.0) ** 3


def mmd2(x: Tensor, y: Tensor) -> float:
    """Return the unbiased estimate of MMD² with the polynomial kernel, from features (n, d) and (m,
    d), n, m ≥ 2.
    """
    n, m = len(x), len(y)
    xx, yy = polynomial_kernel(x, x), polynomial_kernel(y, y)
    within = (xx.sum() - xx.trace()) / (n * (n - 1)) + (yy.sum() - yy.trace()) / (m * (m - 1))
    return float(within - 2.0 * polynomial_kernel(x, y).mean())


def kernel_distance(
    samples: Tensor,
    reference: Tensor,
    subsets: int = KID_SUBSETS,
    size: int = KID_SUBSET_SIZE,
    seed: int = 2020,
) -> float:
    """Return KID: MMD² averaged over random subsets, with the subsets that torch-fidelity draws.

    Args:
        samples: (n, d).
        reference: (m, d).
        subsets: Number of subsets.
        size: Images per subset; at most n and m.
        seed: Of the legacy NumPy generator that torch-fidelity uses.

    Raises:
        ValueError: For fewer than 2 images on a side.
    """
    size = min(size, len(samples), len(reference))
    if size < 2:
        raise TooFewImagesError(
            f"KID needs at least 2 images on each side; got {len(samples)} and {len(reference)}."
        )
    draw = np.random.RandomState(seed)
    found = []
    for _ in range(subsets):
        x = samples[
            torch.from_numpy(draw.choice(len(samples), size, replace=False)).to(samples.device)
        ]
        y = reference[
            torch.from_numpy(draw.choice(len(reference), size, replace=False)).to(reference.device)
        ]
        found.append(mmd2(x, y))
    return float(np.mean(found))


def kernel_influence(samples: Tensor, reference: Tensor, limit: int = 5000) -> Tensor:
    """Return the influence of each sample on MMD²: 2·(mean_j k(x_i, x_j) − mean_j k(x_i, y_j)),
    float64 (n,).

    Means are taken over at most `limit` images spread over each set.
    """
    mine, other = _spread(samples, limit), _spread(reference, limit)
    parts = [
        polynomial_kernel(x, mine).mean(1) - polynomial_kernel(x, other).mean(1)
        for x in samples.split(1024)
    ]
    return 2.0 * torch.cat(parts)


def _spread(features: Tensor, limit: int) -> Tensor:
    n = min(limit, len(features))
    return features[torch.arange(n, device=features.device) * len(features) // n]


def inception_score(
    logits: Tensor, splits: int = 10, seed: int | None = 2020
) -> tuple[float, float]:
    """Return exp(mean KL(p(y|x) ‖ p(y))) over splits: mean and population standard deviation
    (Salimans et al. 2016).

    Args:
        logits: (n, classes); the published score uses those without the bias.
        splits: Number of splits, at most n.
        seed: Of torch-fidelity's shuffle; None: no shuffle.
    """
    n = len(logits)
    splits = min(splits, n)
    if seed is not None:
        logits = logits[torch.from_numpy(np.random.RandomState(seed).permutation(n))]
    scores = []
    for i in range(splits):
        part = logits[i * n // splits : (i + 1) * n // splits].double()
        scores.append(float(_kl(part).mean().exp()))
    return float(np.mean(scores)), float(np.std(scores))


def _kl(logits: Tensor) -> Tensor:
    p, log_p = logits.softmax(1), logits.log_softmax(1)
    return (p * (log_p - p.mean(0).log())).sum(1)


def inception_influence(logits: Tensor) -> Tensor:
    """Return the influence of each image on the inception score of the whole set, float64 (n,).

    With s_i = KL(p_i ‖ p̄), log IS = mean s_i, and a change of p̄ enters at second order only: L_i
    = IS·(s_i − mean s).
    """
    kl = _kl(logits.double())
    return kl.mean().exp() * (kl - kl.mean())
