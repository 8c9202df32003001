"""Group normalisation, scale, shift and SiLU of channels_last maps in Triton; needs Triton to be
imported.

A map (b, c, h, w) in channels_last is b·h·w rows of c numbers. Programs take tiles of 64 rows and
64 channels, so that every read and write is of whole cache lines, whatever the size of the groups.
Sums are float32 and have a fixed order: first per tile, then over the tiles. A tile's sum of
squares is taken around its own mean (Chan et al. 1979), which keeps the digits that a large mean
would cost.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS, CHANNELS = 64, 64


# fmt: off
@triton.jit
def _tile_moments(
    x_at, add_at, mean_at, square_at, rows, c, HAS_ADD: tl.constexpr, R: tl.constexpr,
    C: tl.constexpr,
):
    """Per channel of a tile: the mean, and the sum of squares around it."""
    image, part, parts = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    row = part * R + tl.arange(0, R)
    channel = tl.program_id(2) * C + tl.arange(0, C)
    inside = (row < rows)[:, None] & (channel < c)[None, :]
    at = image * rows * c + row[:, None] * c + channel[None, :]
    x = tl.load(x_at + at, mask=inside, other=0.0).to(tl.float32)
    if HAS_ADD:
        x += tl.load(add_at + image * c + channel, mask=channel < c, other=0.0)[None, :]
    x = tl.where(inside, x, 0.0)
    count = tl.minimum(R, rows - part * R).to(tl.float32)
    mean = tl.sum(x, axis=0) / count
    off = tl.where(inside, x - mean[None, :], 0.0)
    to = (image * parts + part) * c + channel
    tl.store(mean_at + to, mean, mask=channel < c)
    tl.store(square_at + to, tl.sum(off * off, axis=0), mask=channel < c)


@triton.jit
def _group_moments(
    mean_at, square_at, out_at, rows, c, size, parts, eps, R: tl.constexpr, S: tl.constexpr,
    P: tl.constexpr,
):
    """Per image and group: the mean, and one over the standard deviation."""
    image, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    channel = tl.arange(0, S)
    total = tl.zeros([S], tl.float32)
    for first in range(0, parts, P):
        part = first + tl.arange(0, P)
        inside = (part < parts)[:, None] & (channel < size)[None, :]
        at = (image * parts + part[:, None]) * c + group * size + channel[None, :]
        count = tl.minimum(R, rows - part * R).to(tl.float32)
        mean = tl.load(mean_at + at, mask=inside, other=0.0)
        total += tl.sum(tl.where(inside, mean * count[:, None], 0.0), axis=0)
    middle = tl.sum(total, axis=0) / (rows * size)
    squares = tl.zeros([S], tl.float32)
    for first in range(0, parts, P):
        part = first + tl.arange(0, P)
        inside = (part < parts)[:, None] & (channel < size)[None, :]
        at = (image * parts + part[:, None]) * c + group * size + channel[None, :]
        count = tl.minimum(R, rows - part * R).to(tl.float32)
        mean = tl.load(mean_at + at, mask=inside, other=0.0)
        square = tl.load(square_at + at, mask=inside, other=0.0)
        off = mean - middle
        squares += tl.sum(tl.where(inside, square + off * off * count[:, None], 0.0), axis=0)
    variance = tl.sum(squares, axis=0) / (rows * size)
    to = image * tl.num_programs(1) + group
    tl.store(out_at + 2 * to, middle)
    tl.store(out_at + 2 * to + 1, 1.0 / tl.sqrt(variance + eps))


@triton.jit
def _apply(
    x_at, add_at, stats_at, gamma_at, beta_at, y_at, rows, c, size, stride, HAS_ADD: tl.constexpr,
    ACT: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
):
    """Normalise, scale, shift, activate."""
    image = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1) * R + tl.arange(0, R)
    channel = tl.program_id(2) * C + tl.arange(0, C)
    there = channel < c
    inside = (row < rows)[:, None] & there[None, :]
    at = image * rows * c + row[:, None] * c + channel[None, :]
    x = tl.load(x_at + at, mask=inside, other=0.0).to(tl.float32)
    if HAS_ADD:
        x += tl.load(add_at + image * c + channel, mask=there, other=0.0)[None, :]
    group = image * (c // size) + channel // size
    mean = tl.load(stats_at + 2 * group, mask=there, other=0.0)
    rstd = tl.load(stats_at + 2 * group + 1, mask=there, other=0.0)
    gamma = tl.load(gamma_at + image * stride + channel, mask=there, other=0.0)
    beta = tl.load(beta_at + image * stride + channel, mask=there, other=0.0)
    z = (x - mean[None, :]) * (rstd * gamma)[None, :] + beta[None, :]
    if ACT:
        z = z * tl.sigmoid(z)
    tl.store(y_at + at, z.to(y_at.dtype.element_ty), mask=inside)


@triton.jit
def _normalised_and_slope(
    grad_at, x_at, add_at, stats_at, gamma_at, beta_at, image, row, channel, rows, c, size,
    stride, HAS_ADD: tl.constexpr, ACT: tl.constexpr,
):
    """Return (h, dz) of a tile: the normalised map, and the gradient in front of SiLU."""
    there = channel < c
    inside = (row < rows)[:, None] & there[None, :]
    at = image * rows * c + row[:, None] * c + channel[None, :]
    x = tl.load(x_at + at, mask=inside, other=0.0).to(tl.float32)
    dz = tl.load(grad_at + at, mask=inside, other=0.0).to(tl.float32)
    if HAS_ADD:
        x += tl.load(add_at + image * c + channel, mask=there, other=0.0)[None, :]
    group = image * (c // size) + channel // size
    mean = tl.load(stats_at + 2 * group, mask=there, other=0.0)
    rstd = tl.load(stats_at + 2 * group + 1, mask=there, other=0.0)
    h = tl.where(inside, (x - mean[None, :]) * rstd[None, :], 0.0)
    if ACT:
        gamma = tl.load(gamma_at + image * stride + channel, mask=there, other=0.0)
        beta = tl.load(beta_at + image * stride + channel, mask=there, other=0.0)
        z = h * gamma[None, :] + beta[None, :]
        s = tl.sigmoid(z)
        dz *= s * (1.0 + z * (1.0 - s))
    return h, dz


@triton.jit
def _tile_sums(
    grad_at, x_at, add_at, stats_at, gamma_at, beta_at, sums_at, rows, c, size, stride,
    HAS_ADD: tl.constexpr, ACT: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
):
    """Per channel of a tile: Σ dz, Σ dz·h, Σ h."""
    image, part, parts = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    row = part * R + tl.arange(0, R)
    channel = tl.program_id(2) * C + tl.arange(0, C)
    h, dz = _normalised_and_slope(
        grad_at, x_at, add_at, stats_at, gamma_at, beta_at, image, row, channel, rows, c, size,
        stride, HAS_ADD, ACT,
    )
    to = 3 * (image * parts + part) * c + channel
    tl.store(sums_at + to, tl.sum(dz, axis=0), mask=channel < c)
    tl.store(sums_at + to + c, tl.sum(dz * h, axis=0), mask=channel < c)
    if HAS_ADD:
        tl.store(sums_at + to + 2 * c, tl.sum(h, axis=0), mask=channel < c)


@triton.jit
def _group_sums(
    sums_at, stats_at, gamma_at, channels_at, groups_at, rows, c, size, stride, parts,
    HAS_ADD: tl.constexpr, S: tl.constexpr, P: tl.constexpr,
):
    """Add the tiles up: per channel the gradients of gamma, beta and add, per group the two means
    that the gradient of x needs.
    """
    image, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    channel = tl.arange(0, S)
    there = channel < size
    own = group * size + channel
    d_beta, d_gamma = tl.zeros([S], tl.float32), tl.zeros([S], tl.float32)
    h = tl.zeros([S], tl.float32)
    for first in range(0, parts, P):
        part = first + tl.arange(0, P)
        inside = (part < parts)[:, None] & there[None, :]
        at = 3 * (image * parts + part[:, None]) * c + own[None, :]
        d_beta += tl.sum(tl.load(sums_at + at, mask=inside, other=0.0), axis=0)
        d_gamma += tl.sum(tl.load(sums_at + at + c, mask=inside, other=0.0), axis=0)
        if HAS_ADD:
            h += tl.sum(tl.load(sums_at + at + 2 * c, mask=inside, other=0.0), axis=0)
    gamma = tl.load(gamma_at + image * stride + own, mask=there, other=0.0)
    a = tl.sum(gamma * d_beta, axis=0) / (rows * size)
    b = tl.sum(gamma * d_gamma, axis=0) / (rows * size)
    to = image * tl.num_programs(1) + group
    tl.store(groups_at + 2 * to, a)
    tl.store(groups_at + 2 * to + 1, b)
    at = 3 * image * c + own
    tl.store(channels_at + at, d_gamma, mask=there)
    tl.store(channels_at + at + c, d_beta, mask=there)
    if HAS_ADD:
        rstd = tl.load(stats_at + 2 * to + 1)
        tl.store(channels_at + at + 2 * c, rstd * (gamma * d_beta - rows * a - b * h), mask=there)


@triton.jit
def _apply_backward(
    grad_at, past_at, x_at, add_at, stats_at, groups_at, gamma_at, beta_at, dx_at, rows, c, size,
    stride, HAS_ADD: tl.constexpr, HAS_PAST: tl.constexpr, ACT: tl.constexpr, R: tl.constexpr,
    C: tl.constexpr,
):
    """The gradient of x: rstd·(γ·dz − a − h·b), plus what came past."""
    image = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1) * R + tl.arange(0, R)
    channel = tl.program_id(2) * C + tl.arange(0, C)
    there = channel < c
    inside = (row < rows)[:, None] & there[None, :]
    at = image * rows * c + row[:, None] * c + channel[None, :]
    h, dz = _normalised_and_slope(
        grad_at, x_at, add_at, stats_at, gamma_at, beta_at, image, row, channel, rows, c, size,
        stride, HAS_ADD, ACT,
    )
    group = image * (c // size) + channel // size
    rstd = tl.load(stats_at + 2 * group + 1, mask=there, other=0.0)
    a = tl.load(groups_at + 2 * group, mask=there, other=0.0)
    b = tl.load(groups_at + 2 * group + 1, mask=there, other=0.0)
    gamma = tl.load(gamma_at + image * stride + channel, mask=there, other=0.0)
    dx = rstd[None, :] * (gamma[None, :] * dz - a[None, :] - h * b[None, :])
    if HAS_PAST:
        dx += tl.load(past_at + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(dx_at + at, dx.to(dx_at.dtype.element_ty), mask=inside)
# fmt: on


def _shape(x: Tensor, groups: int) -> tuple[int, int, int, int, int]:
    """Return images, rows, channels, channels of a group and tiles of an image."""
    b, c, h, w = x.shape
    return b, h * w, c, c // groups, triton.cdiv(h * w, ROWS)


def _blocks(size: int, parts: int) -> dict[str, int]:
    """Return the block sizes of the kernels that add tiles up."""
    channels = triton.next_power_of_2(size)
    return {"S": channels, "P": min(triton.next_power_of_2(parts), max(1, 4096 // channels))}


def forward(
    x: Tensor, add: Tensor | None, gamma: Tensor, beta: Tensor, groups: int, eps: float, act: bool
) -> tuple[Tensor, Tensor]:
    """Compute silu(norm(x + add)·γ + β).

    Args:
        x: Map (b, c, h, w), float32, bf16 or fp16, dense in channels_last.
        add: float32 (b, c), contiguous; None for none.
        gamma: float32 (c,) or (b, c), contiguous; like `beta`.
        beta: As gamma.
        groups: Number of groups.
        eps: Epsilon.
        act: Whether SiLU follows.

    Returns:
        The result like x, and float32 (b, groups, 2): mean and one over the standard deviation.
    """
    b, rows, c, size, parts = _shape(x, groups)
    tiles = (b, parts, triton.cdiv(c, CHANNELS))
    stride = c if gamma.ndim == 2 else 0
    wide: dict[str, Any] = {"dtype": torch.float32, "device": x.device}
    moments = torch.empty(2, b, parts, c, **wide)
    stats = torch.empty(b, groups, 2, **wide)
    y = torch.empty_like(x, memory_format=torch.channels_last)
    has_add = {"HAS_ADD": add is not None}
    added = x if add is None else add  # something to point at
    block = {"R": ROWS, "C": CHANNELS}
    _tile_moments[tiles](x, added, moments[0], moments[1], rows, c, **has_add, **block)
    _group_moments[(b, groups)](
        moments[0], moments[1], stats, rows, c, size, parts, eps, R=ROWS, **_blocks(size, parts)
    )
    _apply[tiles](
        x, added, stats, gamma, beta, y, rows, c, size, stride, **has_add, ACT=act, **block
    )
    return y, stats


def backward(
    grad: Tensor,
    past: Tensor | None,
    x: Tensor,
    add: Tensor | None,
    gamma: Tensor,
    beta: Tensor,
    stats: Tensor,
    act: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute the gradients of `forward`.

    Args:
        grad: Of the result, like x.
        past: What is added to the gradient of x, like x; None for nothing.
        x: As for `forward`.
        add: As for `forward`.
        gamma: As for `forward`.
        beta: As for `forward`.
        stats: What `forward` returned.
        act: As for `forward`.

    Returns:
        The gradients of x, like x, and per image and channel, float32 (b, c), of gamma, beta and
        add (without meaning where there is no add).
    """
    groups = stats.shape[1]
    b, rows, c, size, parts = _shape(x, groups)
    tiles = (b, parts, triton.cdiv(c, CHANNELS))
    stride = c if gamma.ndim == 2 else 0
    wide: dict[str, Any] = {"dtype": torch.float32, "device": x.device}
    sums = torch.empty(b, parts, 3, c, **wide)
    channels, means = torch.empty(b, 3, c, **wide), torch.empty(b, groups, 2, **wide)
    dx = torch.empty_like(x, memory_format=torch.channels_last)
    has_add = {"HAS_ADD": add is not None}
    added = x if add is None else add
    block = {"ACT": act, "R": ROWS, "C": CHANNELS}
    inputs = (x, added, stats)
    _tile_sums[tiles](grad, *inputs, gamma, beta, sums, rows, c, size, stride, **has_add, **block)
    _group_sums[(b, groups)](
        sums,
        stats,
        gamma,
        channels,
        means,
        rows,
        c,
        size,
        stride,
        parts,
        **has_add,
        **_blocks(size, parts),
    )
    _apply_backward[tiles](
        grad,
        x if past is None else past,
        *inputs,
        means,
        gamma,
        beta,
        dx,
        rows,
        c,
        size,
        stride,
        **has_add,
        HAS_PAST=past is not None,
        **block,
    )
    d_gamma, d_beta, d_add = channels.unbind(1)
    return dx, d_gamma, d_beta, d_add
