"""Augmentation that does not leak into samples: the network is told what was done to each image
(Karras et al. 2022, app. F.2).

Training sees flipped, scaled, turned, stretched and shifted images, each with numbers that say so;
sampling asks for images with all these numbers 0, to which nothing was done. Small sets need it: it
delays memorisation.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ddpm_lib.core.device_copy import to_device

AUGMENT_DIM = 9
"""Numbers that describe what was done to an image: two flips, scale, rotation (2), stretch (2),
shift (2).
"""
AUGMENT_DRAWS = 12
"""Uniform numbers that decide about one image."""
_SCALE_STD, _SHIFT_STD = 0.2, 0.125
"""Standard deviations of log₂ of the scale and the stretch, and of the shift as a part of the side,
as in the paper.
"""


def augment(images: Tensor, u: Tensor, probability: float) -> tuple[Tensor, Tensor]:
    """Transform images, each of the six transformations with the given probability, and say what
    was done.

    Resampled bicubically at reflected borders (the paper filters more carefully); images to which
    nothing was done stay exact.

    Args:
        images: (b, c, h, w), uint8 or float in [0, 1].
        u: Uniform numbers in [0, 1), float64 on the CPU, (b, AUGMENT_DRAWS).
        probability: Of each transformation; 0.12 … 0.15 in the paper. Flips come with half of it.

    Returns:
        Images, float in [0, 1], and labels (b, AUGMENT_DIM), float32, zero where nothing was done,
        on the device of the images.
    """
    labels = transformations(u, probability)
    unit = images.float() / 255.0 if images.dtype == torch.uint8 else images
    told = to_device(labels, images.device)
    for k, axis in ((0, -1), (1, -2)):
        unit = torch.where(told[:, k].bool().view(-1, 1, 1, 1), unit.flip(axis), unit)
    moved = labels[:, 2:].ne(0).any(1).nonzero().flatten()
    if len(moved):
        theta = _sampling_matrix(labels[moved].double(), unit.shape[-2], unit.shape[-1])
        rows = to_device(moved, unit.device)
        some = unit[rows]
        grid = F.affine_grid(
            to_device(theta.to(some.dtype), some.device), list(some.shape), align_corners=False
        )
        made = F.grid_sample(
            some, grid, mode="bicubic", padding_mode="reflection", align_corners=False
        )
        unit = unit.index_copy(0, rows, made.clamp(0.0, 1.0))
    return unit, told


def transformations(u: Tensor, probability: float) -> Tensor:
    """Decide what is done: labels float32 (b, AUGMENT_DIM) on the CPU from uniform numbers (b,
    AUGMENT_DRAWS).
    """
    normal = torch.special.ndtri(u.clamp(1e-9, 1 - 1e-9))
    angle, direction = (math.pi * (2.0 * u[:, k] - 1.0) for k in (5, 8))
    scale, stretch = _SCALE_STD * normal[:, 3], _SCALE_STD * normal[:, 7]
    zero = torch.zeros_like(angle)
    columns = [
        (0, 0.5, zero + 1.0),
        (1, 0.5, zero + 1.0),
        (2, 1.0, scale),
        (4, 1.0, angle.cos() - 1.0),
        (4, 1.0, angle.sin()),
        (6, 1.0, stretch * direction.cos()),
        (6, 1.0, stretch * direction.sin()),
        (9, 1.0, _SHIFT_STD * normal[:, 10]),
        (9, 1.0, _SHIFT_STD * normal[:, 11]),
    ]
    return torch.stack(
        [torch.where(u[:, k] < probability * part, v, zero) for k, part, v in columns], 1
    ).float()


def _sampling_matrix(labels: Tensor, height: int, width: int) -> Tensor:
    """Return for each row the matrix (2, 3) from places in the new image to places in the old one,
    in [-1, 1] units.
    """
    scale, cosine, sine = labels[:, 2], labels[:, 3] + 1.0, labels[:, 4]
    stretch, direction = labels[:, 5:7].norm(dim=1), torch.atan2(labels[:, 6], labels[:, 5])
    turn_back = _matrix(cosine, sine, -sine, cosine)
    axis = _matrix(direction.cos(), -direction.sin(), direction.sin(), direction.cos())
    zero = torch.zeros_like(scale)
    squeeze = (
        axis @ _matrix(torch.exp2(-stretch), zero, zero, torch.exp2(stretch)) @ axis.transpose(1, 2)
    )
    linear = torch.exp2(-scale)[:, None, None] * (turn_back @ squeeze)
    # Angles are those of pixels; an image that is not square has other units in x and y.
    aspect = torch.tensor([width, height], dtype=labels.dtype)
    linear = linear * (aspect / aspect[:, None])
    shift = 2.0 * labels[:, 7:9, None]
    return torch.cat([linear, -linear @ shift], 2)


def _matrix(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    return torch.stack([torch.stack([a, b], 1), torch.stack([c, d], 1)], 1)
