"""What ways of sampling are measured by: the distance of samples to one half of the reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ddpm_lib.core import keys
from ddpm_lib.core.errors import ConfigError
from ddpm_lib.evaluation.defaults import is_pictures
from ddpm_lib.evaluation.image_sets import as_pictures, refuse_not_finite
from ddpm_lib.metrics import FEATURES
from ddpm_lib.metrics.bootstrap import bootstrap_interval
from ddpm_lib.metrics.distances import energy_distance
from ddpm_lib.metrics.extractors import make_extractor, to_rgb
from ddpm_lib.metrics.frechet import frechet_of_features
from ddpm_lib.metrics.moments import Statistics, statistics_of
from ddpm_lib.metrics.neighbours import manifolds

if TYPE_CHECKING:
    from ddpm_lib.data import ImageDataset
    from ddpm_lib.diffusion import GaussianDiffusion

MOST = 10_000
"""Images of a half of the reference at most; of what is no picture, a fifth of that."""
FEWEST = 20
COMPARED = 2000
"""Images of each side whose neighbours are looked for."""


@dataclass(frozen=True)
class Measure:
    """What samples score against a half of the reference.

    Attributes:
        distance: Fréchet distance of features of pictures, energy distance of other data.
        influence: What each sample contributes to it, float64 (n,) of mean 0.
        precision: Share of samples among the data; None for what is no picture.
        recall: Share of the data among the samples; likewise.
    """

    distance: float
    influence: Tensor
    precision: float | None = None
    recall: float | None = None

    @property
    def error(self) -> float:
        """Standard error by the choice of samples."""
        return float(self.influence.std(correction=1) / len(self.influence) ** 0.5)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON-able values, with a 95 % interval."""
        interval = bootstrap_interval(self.distance, self.influence)
        return {
            "distance": self.distance,
            "error": self.error,
            "interval": None if interval is None else list(interval),
            "precision": self.precision,
            "recall": self.recall,
        }


def apart(a: Measure, b: Measure) -> tuple[float, float]:
    """Return by how much the distance of a is larger than that of b, and the standard error of
    that, where both were drawn from the same noise.
    """
    n = min(len(a.influence), len(b.influence))
    spread = (a.influence[:n] - b.influence[:n]).std(correction=1) / n**0.5
    return a.distance - b.distance, float(spread)


class Yardstick:
    """Measures samples against two halves of a set of images.

    Args:
        data: The images; a permutation that follows from the seed parts them.
        diffusion: What draws, which decides whether they are pictures.
        features: Name of the features of pictures.
        device: Where features are computed.
        weights: File of Inception weights.
        seed: Names the halves.

    Raises:
        ConfigError: If there are too few images.
        MissingWeightsError: If the weights of the features cannot be had.
    """

    def __init__(
        self,
        data: ImageDataset,
        diffusion: GaussianDiffusion,
        features: str,
        device: torch.device,
        weights: str | None = None,
        seed: int = 0,
    ) -> None:
        if len(data) < 2 * FEWEST:
            raise ConfigError(
                f"Tuning chooses by one half of the images and reports on the other, and needs"
                f" {2 * FEWEST} for that; there are {len(data)}. Name more with data (--data)."
            )
        self.pictures = is_pictures(diffusion)
        self.device = device
        self.name = features if self.pictures else "values"
        kind, layer = FEATURES[features]
        self._layer = layer
        self._extract = make_extractor(kind, [layer], device, weights) if self.pictures else None
        order = keys.permutation(len(data), seed, "tuning halves")
        most = MOST if self.pictures else MOST // 5
        half = len(data) // 2
        self.rows = np.sort(order[:half][:most]), np.sort(order[half:][:most])
        self._halves = [self._features_of(data, rows) for rows in self.rows]
        self._statistics: list[Statistics] = [statistics_of(f) for f in self._halves]
        self.data = data

    def _features_of(self, data: ImageDataset, rows: np.ndarray) -> Tensor:
        parts = np.array_split(rows, max(1, len(rows) // 256))
        return torch.cat([self.features(data.batch(part)["image"]) for part in parts])

    def features(self, images: Tensor) -> Tensor:
        """Return features (n, d) of images, uint8 or float in [0, 1].

        Raises:
            ConfigError: If they are not finite.
        """
        refuse_not_finite(images)
        if self._extract is None:
            values = images.float() / 255.0 if images.dtype == torch.uint8 else images.float()
            return values.flatten(1).double().cpu()
        pixels = to_rgb(as_pictures(images)).to(self.device)
        return self._extract(pixels)[self._layer].cpu()

    def measure(self, features: Tensor, half: int, *, neighbours: bool = False) -> Measure:
        """Measure samples against a half.

        Args:
            features: Of the samples, (n, d).
            half: 0, by which is chosen, or 1, on which is reported.
            neighbours: Whether to look for precision and recall.
        """
        if self._extract is None:
            distance, influence = _energy(features, self._halves[half])
        else:
            distance, influence = frechet_of_features(features, self._statistics[half])
        found = Measure(distance, influence)
        if neighbours and self.pictures:
            shape = manifolds(features[:COMPARED], self._halves[half][:COMPARED])
            return Measure(
                distance, influence, float(shape.precision.mean()), float(shape.recall.mean())
            )
        return found


def _energy(x: Tensor, y: Tensor) -> tuple[float, Tensor]:
    """Return the energy distance and its influence, 2·(E‖x_i − Y‖ − E‖x_i − X′‖) less its mean."""
    among = torch.cat([torch.cdist(part, y).mean(1) for part in x.split(512)])
    within = torch.cat([torch.cdist(part, x).sum(1) for part in x.split(512)]) / (len(x) - 1)
    influence = 2.0 * (among - within)
    return energy_distance(x, y), influence - influence.mean()
