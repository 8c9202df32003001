"""Points in the plane: data whose distribution is known, learned in seconds, so that what sampling
gets wrong can be seen.

All toys live in the square [-1, 1]², the range in which things diffuse, with standard deviations of
0.3 … 0.5 per axis. A dataset holds them as every other: values in [0, 1], here of shape (n, 2, 1),
two channels at one position. The map between the two is v = (p + 1)/2, `points_to_values`, and back
p = 2v − 1, `values_to_points`.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ddpm_lib.core.keys import hashes, uniform
from ddpm_lib.core.registry import Registry
from ddpm_lib.data.dataset import ImageDataset, MemoryStore
from ddpm_lib.images import to_model_range, to_unit_range

_NODES = 512
"""Quadrature nodes along the curves of one toy: closer together than half the noise, where the rule
is exact to rounding.
"""
_CHUNK = 1 << 22


@dataclass(frozen=True, eq=False)
class Blobs:
    """Round Gaussians of one width, Σ_k w_k N(c_k, s²·1), with everything about them in closed
    form.

    Args:
        centres: c_k, float64 (k, 2).
        weights: w_k, float64 (k,), summing to 1.
        scale: s.
    """

    centres: Tensor
    weights: Tensor
    scale: float

    def log_density(self, points: Tensor, alpha: float = 1.0, sigma: float = 0.0) -> Tensor:
        """Return log p of α·x_0 + σ·ε at the points (n, 2): float64 (n,)."""
        return torch.cat(
            [torch.logsumexp(self._terms(part, alpha, sigma), 1) for part in self._parts(points)]
        )

    def posterior_mean(self, x_t: Tensor, alpha: float, sigma: float) -> Tensor:
        """Return E[x_0 | x_t], what a perfect network would predict, at x_t = α·x_0 + σ·ε (n, 2):
        float64 (n, 2).

        Given blob k the pair (x_0, x_t) is Gaussian, so that E = Σ_k r_k (c_k + α s²/(α² s² +
        σ²)·(x_t − α c_k)) with the responsibilities r_k of the blobs for x_t.
        """
        gain = alpha * self.scale**2 / (alpha**2 * self.scale**2 + sigma**2)
        means = []
        for part in self._parts(x_t):
            centre = torch.softmax(self._terms(part, alpha, sigma), 1) @ self.centres
            means.append(centre + gain * (part - alpha * centre))
        return torch.cat(means)

    def _parts(self, points: Tensor) -> tuple[Tensor, ...]:
        return points.double().split(max(1, _CHUNK // len(self.centres)))

    def _terms(self, points: Tensor, alpha: float, sigma: float) -> Tensor:
        variance = alpha**2 * self.scale**2 + sigma**2
        x, y = (points[:, i, None] - alpha * self.centres[:, i] for i in (0, 1))
        return (
            self.weights.log()
            - math.log(2 * math.pi * variance)
            - (x.square() + y.square()) / (2 * variance)
        )


class ToyDistribution(ABC):
    """A distribution of points in [-1, 1]².

    Attributes:
        classes: How many parts it has, where it has parts: the blobs, moons or squares.
    """

    classes: int | None

    @abstractmethod
    def draw(self, indices: np.ndarray, *parts: int | str) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the points with these indices, float64 (n, 2), and their parts, int64 (n,); named
        by `parts` (see `keys`).
        """

    @abstractmethod
    def log_density(self, points: Tensor) -> Tensor:
        """Return log p at points (n, 2) in [-1, 1] units, float64 (n,)."""


class Mixture(ToyDistribution):
    """Round Gaussians of equal weight."""

    def __init__(self, centres: Sequence[tuple[float, float]], scale: float) -> None:
        self.classes = len(centres)
        weights = torch.full((len(centres),), 1.0 / len(centres), dtype=torch.float64)
        self.blobs = Blobs(torch.tensor(centres, dtype=torch.float64), weights, scale)

    def draw(self, indices: np.ndarray, *parts: int | str) -> tuple[np.ndarray, np.ndarray | None]:
        """Return points and the numbers of their Gaussians."""
        labels = _choose(indices, len(self.blobs.centres), *parts)
        return (
            self.blobs.centres.numpy()[labels] + self.blobs.scale * _normal(indices, *parts),
            labels,
        )

    def log_density(self, points: Tensor) -> Tensor:
        """Return log p, in closed form."""
        return self.blobs.log_density(points)


Curve = Callable[[np.ndarray], np.ndarray]
"""From u in [0, 1] to the plane, (n,) to (n, 2)."""


class Curves(ToyDistribution):
    """Curves of equal weight, u uniform in [0, 1] along each, blurred by Gaussian noise of width
    `scale`.

    The density is the integral of Gaussians along the curves. Gauss–Legendre quadrature makes it a
    sum: a fine mixture.
    """

    def __init__(self, curves: Sequence[Curve], scale: float) -> None:
        self.curves, self.scale = tuple(curves), scale
        self.classes = len(curves) if len(curves) > 1 else None

    @cached_property
    def blobs(self) -> Blobs:
        """The distribution as a mixture, exact to rounding."""
        nodes, weights = np.polynomial.legendre.leggauss(_NODES // len(self.curves))
        centres = np.concatenate([curve((nodes + 1) / 2) for curve in self.curves])
        shares = np.tile(weights / 2 / len(self.curves), len(self.curves))
        return Blobs(torch.from_numpy(centres), torch.from_numpy(shares), self.scale)

    def draw(self, indices: np.ndarray, *parts: int | str) -> tuple[np.ndarray, np.ndarray | None]:
        """Return points and the numbers of their curves, where there are several."""
        labels = _choose(indices, len(self.curves), *parts)
        u = uniform(indices, *parts, "along").numpy()
        on_curve = np.empty((len(indices), 2))
        for k, curve in enumerate(self.curves):
            on_curve[labels == k] = curve(u[labels == k])
        return on_curve + self.scale * _normal(indices, *parts), labels if self.classes else None

    def log_density(self, points: Tensor) -> Tensor:
        """Return log p, by quadrature along the curves."""
        return self.blobs.log_density(points)


class Checkerboard(ToyDistribution):
    """Uniform on every second of 4×4 squares, which has sharp edges everywhere.

    Args:
        side: The board is [-side, side]².
    """

    classes = 8

    def __init__(self, side: float) -> None:
        self.side = side

    def draw(self, indices: np.ndarray, *parts: int | str) -> tuple[np.ndarray, np.ndarray | None]:
        """Return points and the numbers of their squares."""
        labels = _choose(indices, self.classes, *parts)
        row = labels // 2
        corner = np.stack([2 * (labels % 2) + row % 2, row], 1)
        inside = np.stack([uniform(indices, *parts, axis).numpy() for axis in "xy"], 1)
        return (corner + inside) * self.side / 2 - self.side, labels

    def log_density(self, points: Tensor) -> Tensor:
        """Return log p: −log(2·side²) on the dark squares, −∞ elsewhere."""
        square = torch.floor((points.double() + self.side) / (self.side / 2))
        dark = ((square >= 0) & (square < 4)).all(1) & (square.sum(1) % 2 == 0)
        inside = torch.full((len(points),), -math.log(2 * self.side**2), dtype=torch.float64)
        return torch.where(dark, inside, -math.inf)


def _choose(indices: np.ndarray, n: int, *parts: int | str) -> np.ndarray:
    return (hashes(indices, *parts, "part") % np.uint64(n)).astype(np.int64)


def _normal(indices: np.ndarray, *parts: int | str) -> np.ndarray:
    """Draw pairs of standard Gaussian numbers (n, 2) by Box and Muller's method."""
    radius = np.sqrt(-2.0 * np.log1p(-uniform(indices, *parts, "radius").numpy()))
    angle = 2.0 * np.pi * uniform(indices, *parts, "angle").numpy()
    return radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)


def _swiss_roll(u: np.ndarray) -> np.ndarray:
    turn = 1.5 * np.pi * (1.0 + 2.0 * u)
    return turn[:, None] * np.stack([np.cos(turn), np.sin(turn)], 1) * (0.84 / (4.5 * np.pi))


def _upper_moon(u: np.ndarray) -> np.ndarray:
    return 0.55 * np.stack([np.cos(np.pi * u) - 0.5, np.sin(np.pi * u) - 0.25], 1)


def _lower_moon(u: np.ndarray) -> np.ndarray:
    return -_upper_moon(u)


TOYS: Registry[ToyDistribution] = Registry(
    "toy",
    {
        "ring": Mixture(
            [(0.7 * math.cos(k * math.pi / 4), 0.7 * math.sin(k * math.pi / 4)) for k in range(8)],
            scale=0.04,
        ),
        "grid": Mixture(
            [(0.35 * i, 0.35 * j) for j in range(-2, 3) for i in range(-2, 3)], scale=0.03
        ),
        "moons": Curves([_upper_moon, _lower_moon], scale=0.03),
        "swiss_roll": Curves([_swiss_roll], scale=0.025),
        "checkerboard": Checkerboard(side=0.8),
    },
)


def toy_points(name: str, n: int, seed: int = 0) -> Tensor:
    """Draw points of a toy: float32 (n, 2) in [-1, 1]. Point i depends on `name`, `seed` and i
    alone.

    Args:
        name: An entry of `TOYS`.
        n: Number of points.
        seed: Another seed, another set.

    >>> three, five = toy_points("ring", 3), toy_points("ring", 5)
    >>> three.shape, bool((three == five[:3]).all())
    (torch.Size([3, 2]), True)
    """
    return _draw(name, n, seed)[0]


def points_to_values(points: Tensor) -> Tensor:
    """Map points (n, 2) in [-1, 1] to what datasets hold and networks are trained on: (n, 2, 1) in
    [0, 1], clamped.
    """
    return to_unit_range(points[..., None])


def values_to_points(values: Tensor) -> Tensor:
    """Map samples (n, 2, 1) in [0, 1] to points (n, 2) in [-1, 1]: the inverse of
    `points_to_values`.
    """
    return to_model_range(values)[..., 0]


def _draw(name: str, n: int, seed: int) -> tuple[Tensor, np.ndarray | None]:
    toy = TOYS[name]
    if n < 1:
        raise ValueError(f"A toy needs n ≥ 1 points; got {n}.")
    points, labels = toy.draw(np.arange(n), seed, "toys", name)
    # Noise leaves the square once in millions of draws; there, values in [0, 1] could not follow.
    return torch.from_numpy(points).float().clamp_(-1.0, 1.0), labels


class Toy(ImageDataset):
    """Points of a toy as a dataset of values (2, 1) in [0, 1], held in RAM, labelled by their part
    where there are parts.

    Train with GaussianDiffusion(MLP(), image_size=(1,), clip="none"), and turn samples into points
    with `values_to_points`.

    Args:
        name: "ring" (8 Gaussians), "grid" (25 Gaussians), "moons", "swiss_roll" or "checkerboard".
        n: Number of points.
        seed: Another seed, another set. Point i depends on `name`, `seed` and i alone.

    Raises:
        ValueError: If the name is unknown or n < 1.

    >>> data = Toy("moons", n=4)
    >>> data[0]["image"].shape, len(data), data.num_classes
    (torch.Size([2, 1]), 4, 2)
    """

    def __init__(self, name: str = "ring", n: int = 8192, seed: int = 0) -> None:
        points, labels = _draw(name, n, seed)
        self.name, self.distribution = name, TOYS[name]
        named = repr(("toy", 1, name, n, seed)).encode()
        super().__init__(
            MemoryStore(points_to_values(points)),
            labels=labels,
            class_names=(
                None if labels is None else [str(k) for k in range(self.distribution.classes or 0)]
            ),
            fingerprint=hashlib.blake2b(named, digest_size=16).hexdigest(),
            notes=[f"{n:,} points of {name}"],
        )
