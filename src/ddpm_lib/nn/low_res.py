"""The conditions of super-resolution: a smaller image, and how much noise was put on it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ddpm_lib.images import check_divisible, check_unit_range, shrink, to_model_range, to_unit_range
from ddpm_lib.nn import _checks as checks
from ddpm_lib.nn.conditioning import Conditioner, Stream
from ddpm_lib.nn.embeddings import TimeEmbedding

_MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


class LowRes(Conditioner):
    """A smaller image, enlarged linearly to the size of x and given to the network as channels
    behind those of x.

    Saharia et al. 2021 (SR3); Nichol & Dhariwal 2021, whose super-resolution network this is
    without noise. With noise, the network sees √(1 − s²)·image + s·ε and is told s ∈ [0,
    max_noise], uniform in training (Ho et al. 2022, "conditioning augmentation"): it then forgives
    a small image that is not quite like those of the training, such as another network's. The noise
    is put on the small image; on the enlarged one, neighbours would average it away.

    Callers give uint8, or float in [0, 1]; `prepare` turns that into [-1, 1] and adds the noise.

    Args:
        channels: Channels of the images.
        factor: How many times smaller the image is, in every direction; at least 2.
        dims: Number of spatial dimensions, 1 … 3.
        max_noise: Largest s in training, in [0, 1]; 0 for no noise and no condition that says it.
        drop_prob: Probability of hiding the image in training; above 0, guidance contrasts it with
            its absence.
        name: The field of the batch; s is the field `<name>_noise`.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        channels: int,
        factor: int,
        dims: int = 2,
        max_noise: float = 0.0,
        drop_prob: float = 0.0,
        name: str = "low_res",
    ) -> None:
        super().__init__(name, drop_prob)
        checks.check_int(f"The factor of {name!r}", factor, minimum=2)
        checks.check_probability(f"The largest noise of {name!r}", max_noise, one_allowed=True)
        self.extra_channels, self.guided = channels, drop_prob > 0
        self.factor, self.dims, self.max_noise = factor, dims, float(max_noise)
        self.noise_name = f"{name}_noise"

    def derive(self, x0: Tensor) -> Tensor:
        """Return the clean images at 1/factor of their size (antialiased bicubic, see `shrink`), in
        [0, 1].
        """
        return to_unit_range(shrink(x0, self.factor))

    def prepare(self, cond: dict[str, Tensor], stream: Stream | None = None) -> dict[str, Tensor]:
        """Bring the image to [-1, 1] and put noise on it.

        The level is the one given; else, while training, uniform in [0, max_noise]; else 0.

        Raises:
            ValueError: If the image is not in [0, 1], or there is a level without an image.
            TypeError: If the image is neither uint8 nor floating point.
        """
        image, level = cond.get(self.name), cond.get(self.noise_name)
        if image is None:
            if level is not None:
                raise ValueError(
                    f"{self.noise_name!r} says how noisy {self.name!r} is, which is missing. Give"
                    " both."
                )
            return cond
        if (
            image.device.type == "cpu"
        ):  # Elsewhere, reading the range would make every step wait for the device.
            check_unit_range(image)
        image = to_model_range(image)
        if self.max_noise == 0:
            return {**cond, self.name: image}
        if level is None and self.training and stream is None:
            level = self.max_noise * torch.rand(len(image), device=image.device)
        if level is None:
            level = torch.zeros(len(image), device=image.device)
        else:
            image = self._noisy(image, level.to(image), stream)
        return {**cond, self.name: image, self.noise_name: level}

    @staticmethod
    def _noisy(image: Tensor, level: Tensor, stream: Stream | None) -> Tensor:
        if stream is None:
            noise = torch.randn_like(image)
        else:
            drawn = [
                torch.randn(image.shape[1:], generator=(g := stream(i)), device=g.device)
                for i in range(len(image))
            ]
            noise = torch.stack(drawn).to(image)
        sigma = level.view(-1, *[1] * (image.ndim - 1))
        return (1.0 - sigma.square()).clamp(min=0.0).sqrt() * image + sigma * noise

    def channels_of(self, value: Tensor, x: Tensor) -> Tensor:
        """Return the image enlarged to the size of x, (b, channels, *spatial)."""
        got, wanted = tuple(value.shape[2:]), tuple(s // self.factor for s in x.shape[2:])
        if got != wanted or any(s % self.factor for s in x.shape[2:]):
            raise ValueError(
                f"The condition {self.name!r} must be {'×'.join(map(str, wanted))}, 1/{self.factor}"
                f" of the image size {'×'.join(map(str, x.shape[2:]))}; got"
                f" {'×'.join(map(str, got))}. Resize it, or use a network that was built for"
                " another low_res_factor."
            )
        return F.interpolate(
            value.to(x.dtype), size=x.shape[2:], mode=_MODES[self.dims], align_corners=False
        )

    def null_like(self, value: Tensor) -> Tensor:
        """Return grey images."""
        return torch.zeros_like(value)

    def null_for(self, x: Tensor) -> Tensor:
        """Return grey images at 1/factor of the size of x."""
        return x.new_zeros(
            x.shape[0], self.extra_channels, *(s // self.factor for s in x.shape[2:])
        )

    def check_size(self, size: Sequence[int]) -> None:
        """Raise ValueError when images of this size have no smaller copy."""
        check_divisible(size, self.factor)

    def validate(self, value: Tensor, batch: int) -> None:
        """Check dtype and shape, but for the size: that depends on x."""
        super().validate(value, batch)
        if not value.is_floating_point():
            raise TypeError(
                f"The network takes {self.name!r} as float in [-1, 1], got {value.dtype}."
            )
        if value.ndim != 2 + self.dims or value.shape[1] != self.extra_channels:
            sizes = ", ".join("hwd"[: self.dims] if self.dims > 1 else "l")
            raise ValueError(
                f"The condition {self.name!r} must hold one small image per sample, shape ({batch},"
                f" {self.extra_channels}, {sizes}); got {tuple(value.shape)}."
            )


class LowResNoise(Conditioner):
    """The noise level s of a `LowRes` image, as a learned vector.

    Level 1 stands for a hidden image: nothing of it is left.

    Args:
        emb_dim: Length of the vectors.
        max_noise: Largest level in training, in (0, 1].
        drop_prob: That of the image.
        name: The field of the batch.
    """

    def __init__(
        self, emb_dim: int, max_noise: float, drop_prob: float = 0.0, name: str = "low_res_noise"
    ) -> None:
        super().__init__(name, drop_prob)
        self.max_noise, self.guided = max_noise, drop_prob > 0
        self.embedding = TimeEmbedding(64, emb_dim, scale=1000.0)

    @property
    def optional(self) -> bool:
        """A level that is not given is 0, or drawn in training."""
        return True

    def embed(self, value: Tensor) -> Tensor:
        """Embed levels (b,) as (b, emb_dim)."""
        embedded: Tensor = self.embedding(value)
        return embedded

    def null_like(self, value: Tensor) -> Tensor:
        """Return the level that says that the image is hidden."""
        return torch.full_like(value, 1.0 if self.drop_prob > 0 else 0.0)

    def null_for(self, x: Tensor) -> Tensor:
        """Return the same for every sample of x."""
        return self.null_like(x.new_empty(x.shape[0]))

    def validate(self, value: Tensor, batch: int) -> None:
        """Check dtype and shape, and on the CPU the range."""
        super().validate(value, batch)
        if value.ndim != 1 or not value.is_floating_point():
            raise ValueError(
                f"The condition {self.name!r} must be one float per sample, shape ({batch},); got"
                f" {value.dtype} of shape {tuple(value.shape)}."
            )
        if value.device.type == "cpu" and batch > 0 and not torch.compiler.is_compiling():
            known = (value >= 0) & (value <= self.max_noise + 1e-6)
            known |= (value == 1) & (self.drop_prob > 0)
            if not bool(known.all()):
                raise ValueError(
                    f"The condition {self.name!r} must lie in [0, {self.max_noise:g}], the levels"
                    f" this network was trained on; got {float(value[~known][0]):g}. Ask for less,"
                    " or train with a larger low_res_max_noise."
                )


def low_res_conditioners(
    channels: int, dims: int, emb_dim: int, factor: int, max_noise: float, drop_prob: float
) -> list[Conditioner]:
    """Return the conditions of a super-resolution network: the image and, with noise, its level.

    Args:
        channels: Channels of the images.
        dims: Number of spatial dimensions.
        emb_dim: Length of the vectors of conditions.
        factor: As for `LowRes`, like the others.
        max_noise: Largest noise level in training.
        drop_prob: Probability of hiding the image in training.
    """
    image = LowRes(channels, factor, dims, max_noise, drop_prob)
    return (
        [image, LowResNoise(emb_dim, image.max_noise, drop_prob, image.noise_name)]
        if max_noise
        else [image]
    )
