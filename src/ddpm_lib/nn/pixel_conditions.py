"""Conditions of the data that are pictures: masks and images, as further input channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from ddpm_lib.images import check_divisible, check_unit_range, to_model_range, to_uint8
from ddpm_lib.nn.conditioning import Stream
from ddpm_lib.nn.data_conditions import DataCondition

UNKNOWN = 255
"""What a mask holds where nothing is known, as in segmentation data; no class has this number."""
_COLOURS = (
    (0, 0, 0),
    (230, 25, 75),
    (60, 180, 75),
    (255, 225, 25),
    (0, 130, 200),
    (245, 130, 48),
    (145, 30, 180),
    (70, 240, 240),
    (240, 50, 230),
    (210, 245, 60),
    (250, 190, 212),
    (0, 128, 128),
)
_MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


class MaskCondition(DataCondition):
    """A class per pixel, one input channel each; 255 where nothing is known.

    Args:
        name: The field of the batch.
        spec: `classes`, how many; `names` of them, or None.
        emb_dim: Not used: masks are channels.
        dims: Spatial dimensions of the images.
    """

    kind = "mask"
    fields: ClassVar[Mapping[str, Any]] = {"classes": ..., "names": None}

    def __init__(self, name: str, spec: Mapping[str, Any], emb_dim: int, dims: int = 2) -> None:
        super().__init__(name, spec)
        self.dims, self.extra_channels = dims, spec["classes"]
        self.axes = dims

    def prepare(self, cond: dict[str, Tensor], stream: Stream | None = None) -> dict[str, Tensor]:
        """Take a single mask (*spatial) for a batch of one, and any whole numbers."""
        value = cond.get(self.name)
        if value is None or value.dtype == torch.uint8 or value.is_floating_point():
            return cond
        if value.device.type == "cpu" and value.numel() and not 0 <= value.min() <= UNKNOWN:
            raise self.refuse(f"holds {int(value.min())}; classes go from 0.")
        return {**cond, self.name: value.to(torch.uint8)}

    def channels_of(self, value: Tensor, x: Tensor) -> Tensor:
        """Return 1 in the channel of a pixel's class, 0 in the others: (b, classes, *spatial)."""
        if value.shape[1:] != x.shape[2:]:
            raise self.refuse(
                f"must have the size of the images, {_size(x.shape[2:])}; got"
                f" {_size(value.shape[1:])}."
            )
        each = torch.arange(self.extra_channels, device=value.device, dtype=value.dtype)
        return (value.unsqueeze(1) == each.view(1, -1, *[1] * self.dims)).to(x.dtype)

    def picture(self, value: Tensor, channels: int) -> Tensor:
        """Return masks as images to look at, uint8 (n, channels, h, w): a colour per class."""
        colours = torch.tensor(_COLOURS, dtype=torch.float32)
        classes = colours[torch.arange(UNKNOWN + 1) % len(colours)]
        classes[UNKNOWN] = 128.0
        if channels == 1:
            steps = torch.arange(self.extra_channels) * (255.0 / max(1, self.extra_channels - 1))
            classes[: self.extra_channels] = steps[:, None]
        found = classes[value.long().cpu()].movedim(-1, 1)[:, : min(channels, 3)]
        return with_channels(found.to(torch.uint8), channels)

    def null_like(self, value: Tensor) -> Tensor:
        """Return 255 everywhere."""
        return torch.full_like(value, UNKNOWN)

    def null_for(self, x: Tensor) -> Tensor:
        """Return 255 everywhere, in the size of x."""
        shape = (x.shape[0], *x.shape[2:])
        return torch.full(shape, UNKNOWN, dtype=torch.uint8, device=x.device)

    def validate(self, value: Tensor, batch: int) -> None:
        """Check dtype and shape, and on the CPU the classes."""
        super().validate(value, batch)
        if value.is_floating_point() or value.ndim != 1 + self.dims:
            raise self.refuse(
                f"must be whole numbers, a class per pixel, of shape ({batch}, *size); got"
                f" {value.dtype} of shape {tuple(value.shape)}."
            )
        if value.device.type == "cpu" and not torch.compiler.is_compiling():
            wrong = (value >= self.extra_channels) & (value != UNKNOWN)
            if bool(wrong.any()):
                raise self.refuse(
                    f"has the class {int(value[wrong][0])}; they go from 0 to"
                    f" {self.extra_channels - 1}, and {UNKNOWN} is unknown."
                )


class ImageCondition(DataCondition):
    """An image beside the image, such as a sketch, as further input channels; grey where there is
    none.

    Callers give uint8, or float in [0, 1].

    Args:
        name: The field of the batch.
        spec: `channels`; `factor`, how many times smaller it is in every direction (enlarged
            linearly to the size of the images).
        emb_dim: Not used: images are channels.
        dims: Spatial dimensions of the images.
    """

    kind = "image"
    fields: ClassVar[Mapping[str, Any]] = {"channels": ..., "factor": 1}

    def __init__(self, name: str, spec: Mapping[str, Any], emb_dim: int, dims: int = 2) -> None:
        super().__init__(name, spec)
        self.dims, self.factor, self.extra_channels = dims, spec["factor"], spec["channels"]
        self.axes = 1 + dims

    def prepare(self, cond: dict[str, Tensor], stream: Stream | None = None) -> dict[str, Tensor]:
        """Bring the image to [-1, 1].

        Raises:
            ValueError: If it is not in [0, 1].
            TypeError: If it is neither uint8 nor floating point.
        """
        image = cond.get(self.name)
        if image is None:
            return cond
        if image.device.type == "cpu":
            check_unit_range(image)
        return {**cond, self.name: to_model_range(image)}

    def channels_of(self, value: Tensor, x: Tensor) -> Tensor:
        """Return the image in the size of x, (b, channels, *spatial)."""
        wanted = tuple(s // self.factor for s in x.shape[2:])
        if tuple(value.shape[2:]) != wanted:
            part = "" if self.factor == 1 else f", 1/{self.factor} of that of the images"
            raise self.refuse(
                f"must have the size {_size(wanted)}{part}; got {_size(value.shape[2:])}."
            )
        value = value.to(x.dtype)
        if self.factor == 1:
            return value
        return F.interpolate(value, size=x.shape[2:], mode=_MODES[self.dims], align_corners=False)

    def picture(self, value: Tensor, channels: int) -> Tensor:
        """Return images to look at beside those of so many channels, uint8 (n, channels, h, w)."""
        return with_channels(to_uint8(value).cpu(), channels)

    def check_size(self, size: Sequence[int]) -> None:
        """Raise ValueError when images of this size have no smaller copy."""
        check_divisible(size, self.factor)

    def null_like(self, value: Tensor) -> Tensor:
        """Return grey images."""
        return torch.zeros_like(value)

    def null_for(self, x: Tensor) -> Tensor:
        """Return grey images for x."""
        size = (s // self.factor for s in x.shape[2:])
        return x.new_zeros(x.shape[0], self.extra_channels, *size)

    def validate(self, value: Tensor, batch: int) -> None:
        """Check dtype and shape, but for the size: that depends on x."""
        super().validate(value, batch)
        if value.ndim != 2 + self.dims or value.shape[1] != self.extra_channels:
            raise self.refuse(
                f"must hold one image of {self.extra_channels} channels per sample, shape ({batch},"
                f" {self.extra_channels}, *size); got {tuple(value.shape)}."
            )


def with_channels(images: Tensor, channels: int) -> Tensor:
    """Return uint8 images (n, c, h, w) with so many channels: grey for colour, the mean for grey, a
    full fourth.
    """
    n, have, *size = images.shape
    if have == channels:
        return images
    if channels == 1:
        return images[:, :3].float().mean(1, keepdim=True).to(torch.uint8)
    colours = images[:, :1].expand(n, 3, *size) if have < 3 else images[:, :3]
    full = torch.full((n, 1, *size), 255, dtype=torch.uint8)
    return torch.cat((colours, full), 1) if channels == 4 else colours


def _size(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))
