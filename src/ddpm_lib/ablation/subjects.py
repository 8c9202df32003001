"""What is learned in an ablation: points of a toy by an MLP, or images by a U-Net; with defaults,
data and measures.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any, ClassVar

import numpy as np
from torch import Tensor, nn

from ddpm_lib.ablation.yardsticks import denoising_errors, random_features
from ddpm_lib.core.errors import ConfigError
from ddpm_lib.data import ImageDataset, Shapes, Toy, open_dataset, toy_points, values_to_points
from ddpm_lib.data.measurements.value_survey import are_values
from ddpm_lib.data.toys import TOYS, Blobs
from ddpm_lib.diffusion import GaussianDiffusion
from ddpm_lib.metrics.distances import energy_distance, histogram_kl, sliced_wasserstein
from ddpm_lib.nn import MLP, PRESETS, Unet

FLOORS = 5
"""Further draws of data that are measured against data."""

Measure = Callable[[Tensor, Tensor], float]


class Subject(ABC):
    """What is learned.

    Attributes:
        network: Class of the network.
        defaults: Settings that suit the data, by group.
        size: Spatial size of an entry.
        channels: Channels of an entry.
        train: What cells are trained on.
        others: Sets of data, as what `points` returns, the first of which samples are measured
            against.
        measures: Distances between samples and data by name.
        notes: What differs from what was asked for, in clear lines.
    """

    network: type[nn.Module]
    defaults: ClassVar[dict[str, dict[str, Any]]]
    size: tuple[int, ...]
    channels: int
    train: ImageDataset
    notes: Sequence[str] = ()

    @property
    @abstractmethod
    def others(self) -> list[Tensor]:
        """Sets of data that were not trained on."""

    @property
    @abstractmethod
    def measures(self) -> dict[str, Measure]:
        """Distances between two sets, by name."""

    @abstractmethod
    def points(self, samples: Tensor) -> Tensor:
        """Turn samples, in [0, 1], into what is measured."""

    @abstractmethod
    def denoising(self, diffusion: GaussianDiffusion, network: nn.Module) -> dict[str, float]:
        """Return the measures of denoising by name."""

    def build(self, model: dict[str, Any], diffusion: dict[str, Any]) -> GaussianDiffusion:
        """Build the process of a cell.

        Raises:
            ValueError: If the settings do not fit together.
        """
        outputs = (
            2 * self.channels if diffusion.get("variance") == "learned_range" else self.channels
        )
        network = self.network(**{"channels": self.channels, "out_channels": outputs, **model})
        return GaussianDiffusion(network, image_size=self.size, channels=self.channels, **diffusion)

    def floor(self) -> dict[str, list[float]]:
        """Measure data against data."""
        first, *rest = self.others
        return {
            name: [measure(other, first) for other in rest]
            for name, measure in self.measures.items()
        }


class ToySubject(Subject):
    """Points in the plane.

    Args:
        name: Of the toy.
        num_samples: Points to sample and to compare.
    """

    network = MLP
    defaults: ClassVar[dict[str, dict[str, Any]]] = {
        "model": {"width": 64, "depth": 3},
        "diffusion": {"clip": "none"},
        "sample": {"sampler": "dpmpp_2m", "num_steps": 30, "spacing": "log_snr"},
        "training": {
            "batch_size": 256,
            "learning_rate": 2e-3,
            "lr_schedule": "cosine",
            "warmup_steps": 50,
            "ema_decay": (0.995,),
        },
    }
    size, channels = (1,), 2

    def __init__(self, name: str, num_samples: int) -> None:
        self.train: ImageDataset = Toy(name, n=16_384)
        self.name, self.num_samples, self.distribution = name, num_samples, TOYS[name]

    @cached_property
    def others(self) -> list[Tensor]:
        """Further draws."""
        return [toy_points(self.name, self.num_samples, seed=1 + k) for k in range(1 + FLOORS)]

    @property
    def measures(self) -> dict[str, Measure]:
        """Energy distance, sliced W2, and KL(data ‖ samples) of histograms."""
        density = self.distribution.log_density
        return {
            "energy distance": energy_distance,
            "sliced W2": sliced_wasserstein,
            "histogram KL": lambda samples, _: histogram_kl(samples, density),
        }

    def points(self, samples: Tensor) -> Tensor:
        """Return points (n, 2) in [-1, 1]."""
        return values_to_points(samples.cpu())

    def denoising(self, diffusion: GaussianDiffusion, network: nn.Module) -> dict[str, float]:
        """Return the mean distance to the perfect answer where that is known, else to the data."""
        blobs: Blobs | None = getattr(self.distribution, "blobs", None)
        best = None if blobs is None else partial(_best, blobs)
        held_out = Toy(self.name, n=2048, seed=1).batch(np.arange(2048))["image"]
        return _summary(denoising_errors(diffusion, held_out, network, best=best))


def _best(blobs: Blobs, x_t: Tensor, alpha: float, sigma: float) -> Tensor:
    return blobs.posterior_mean(x_t[..., 0], alpha, sigma)[..., None]


def _summary(errors: dict[float, float]) -> dict[str, float]:
    """Return the mean over the levels, and the errors at three of them."""
    shown = {f"at log-SNR {k:g}": errors[k] for k in (-4.0, 0.0, 4.0)}
    return {"denoising error": float(np.mean(list(errors.values()))), **shown}


class ImageSubject(Subject):
    """Images: the built-in shapes, or any source.

    Args:
        data: "shapes", or what `open_dataset` takes.
        size: Side of the images.
        channels: 1, 3 or 4.
        num_samples: Images to sample and to compare.
        data_root: Where the files of torchvision's sets lie.
        download: Whether to download them.
    """

    network = Unet
    defaults: ClassVar[dict[str, dict[str, Any]]] = {
        "model": {
            **PRESETS["tiny"],
            "patch_size": 2,
            "dim_mults": (1, 2),
            "attention_levels": (1,),
        },
        "diffusion": {},
        "sample": {"sampler": "dpmpp_2m", "num_steps": 30, "spacing": "log_snr"},
        "training": {
            "batch_size": 32,
            "learning_rate": 2e-3,
            "lr_schedule": "cosine",
            "warmup_steps": 50,
            "ema_decay": (0.995,),
        },
    }

    def __init__(
        self,
        data: str,
        size: int,
        channels: int,
        num_samples: int,
        data_root: str | None = None,
        download: bool = False,
    ) -> None:
        self.size, self.channels = (size, size), channels
        if data == "shapes":
            self.train: ImageDataset = Shapes(size, channels=channels)
            sets: list[ImageDataset] = [
                Shapes(size, n=num_samples, channels=channels, seed=1 + k)
                for k in range(1 + FLOORS)
            ]
        else:
            try:
                whole = open_dataset(
                    data, image_size=size, channels=channels, data_root=data_root, download=download
                )
            except (OSError, ValueError) as error:
                if not are_values(data):
                    raise
                raise ConfigError(
                    f"{data} holds measured values, and an ablation compares networks on pictures."
                    " Train with ddpm train --normalize affine and put the runs side by side with"
                    " ddpm compare, or give pictures of 8 bits."
                ) from error
            if len(whole) < 8:
                raise ConfigError(
                    f"{data} has {len(whole):,} images; an ablation needs 8 or more, half of them"
                    " to compare with."
                )
            kept = min(num_samples, len(whole) // 4)
            if kept < num_samples:
                self.notes = (
                    (
                        f"{kept:,} instead of {num_samples:,} samples: {data} has {len(whole):,}"
                        " images, of which half at most are held out to compare with"
                    ),
                )
            self.train, rest = whole.split(2 * kept)
            sets = [rest.subset(np.arange(len(rest))[k::2]) for k in range(2)]
        self._sets = sets

    @cached_property
    def others(self) -> list[Tensor]:
        """Images that were not trained on, float in [0, 1]."""
        return [s.batch(np.arange(len(s)))["image"].float() / 255.0 for s in self._sets]

    @property
    def measures(self) -> dict[str, Measure]:
        """Energy distances between pixels, and between random features."""
        return {
            "energy, pixels": lambda a, b: energy_distance(a.flatten(1), b.flatten(1)),
            "energy, features": lambda a, b: energy_distance(
                random_features(a), random_features(b)
            ),
        }

    def points(self, samples: Tensor) -> Tensor:
        """Return the images, rounded to 8 bits as data are."""
        return (samples.cpu() * 255.0).round() / 255.0

    def denoising(self, diffusion: GaussianDiffusion, network: nn.Module) -> dict[str, float]:
        """Return the mean error on held-out images, and that at three levels."""
        held_out = self._sets[0].batch(np.arange(len(self._sets[0])))
        names = diffusion.conditioners or {}
        cond = {k: v for k, v in held_out.items() if k in names}
        return _summary(
            denoising_errors(diffusion, held_out["image"], network, cond=cond, batch_size=128)
        )


def make_subject(
    data: str,
    image_size: int,
    channels: int,
    num_samples: int,
    data_root: str | None = None,
    download: bool = False,
) -> Subject:
    """Build what `data` names: "toy:ring", …, "shapes", or a source of images.

    Raises:
        ConfigError: If there is nothing to compare with, or an option does not fit the data.
    """
    if num_samples < 2:
        raise ConfigError(f"num_samples must be at least 2; got {num_samples}.")
    if data.startswith("toy:"):
        return ToySubject(data.removeprefix("toy:"), num_samples)
    return ImageSubject(data, image_size, channels, num_samples, data_root, download)
