"""What the functions of this room need of a process; `GaussianDiffusion` is one, and binds them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from ddpm_lib.parametrization import Parametrization
from ddpm_lib.process.bound import Chain
from ddpm_lib.process.conditions import Conditioners
from ddpm_lib.process.denoiser import Denoiser
from ddpm_lib.process.level_pairs import ConsistencyPairs
from ddpm_lib.process.noising import Noising
from ddpm_lib.process.sampling_default import SamplingDefault
from ddpm_lib.process.uncertainty import Uncertainty
from ddpm_lib.schedules import Schedule
from ddpm_lib.time_sampling import TimeSampler
from ddpm_lib.variance import Variance
from ddpm_lib.weighting import Weighting

if TYPE_CHECKING:
    from ddpm_lib.data.measurements.normalization import Normalization


class Process(Protocol):
    """A process that draws and scores images."""

    class_names: tuple[str, ...] | None
    normalization: Normalization | None
    sampling_default: SamplingDefault | None
    schedule: Schedule

    @property
    def denoiser(self) -> Denoiser:
        """The network with all that turns its output into a clean image."""

    @property
    def conditioners(self) -> Conditioners | None:
        """The conditioners of the network by name, None for one that does not declare any."""

    @property
    def timesteps(self) -> int:
        """T, the number of noise levels."""

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of one image, (c, *spatial)."""

    def check_images(self, images: Tensor) -> None:
        """Raise ValueError for images of another shape or range."""


class TrainableProcess(Process, Protocol):
    """A process that has a training loss, and what that is made of."""

    model: nn.Module
    training: bool
    channels: int
    parametrization: Parametrization
    weighting: Weighting
    variance: Variance
    time_sampler: TimeSampler
    uncertainty: Uncertainty | None
    noising: Noising
    loss: str
    vlb_weight: float
    pairs: ConsistencyPairs | None
    loss_weights: Tensor

    @property
    def config(self) -> dict[str, Any]:
        """The arguments besides the network, JSON-able."""

    @property
    def device(self) -> torch.device:
        """Where the network is."""

    @property
    def chain(self) -> Chain:
        """The full reverse chain, whose terms the losses "hybrid" and "vlb" are made of."""
