"""Laying one small picture over another, and how well they then agree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ddpm_lib.data.auditing.descriptors import grid_of, light, warped

_TURN = torch.tensor([0.25, 0.5, 0.25])
_FLOOR = 1.0 / 255
"""Details of less than a grey level are no evidence."""
_CELL = 8
_LEAST_IN_CELL = 4.0 / 255
"""Side of the cells whose details are compared one by one, and what they must have of them."""


def blurred(pictures: Tensor, times: int = 1) -> Tensor:
    """Blur pictures (b, 1, h, w) with a binomial filter."""
    kernel = (_TURN[:, None] * _TURN[None]).view(1, 1, 3, 3)
    for _ in range(times):
        pictures = F.conv2d(F.pad(pictures, (1, 1, 1, 1), mode="replicate"), kernel)
    return pictures


def _unit(values: Tensor) -> Tensor:
    values = values - values.mean(-1, keepdim=True)
    return values / values.norm(dim=-1, keepdim=True).clamp_min(1e-6)


class _Goal(NamedTuple):
    """What laying other pictures over some asks of these, which is the same for all others.

    Attributes:
        unit: The pictures without mean, of length 1, (b, p).
        down: How they change with each of six small maps, (b, 6, p).
        along: How much of that lies along the picture itself, (b, 6).
        solve: From slopes to maps, (b, 6, 6).
    """

    unit: Tensor
    down: Tensor
    along: Tensor
    solve: Tensor


def _goal(still: Tensor) -> _Goal:
    """Prepare grey pictures (b, 1, s, s)."""
    side = still.shape[-1]
    at = (torch.arange(side) + 0.5) / side * 2 - 1
    y, x = (part.reshape(-1) for part in torch.meshgrid(at, at, indexing="ij"))
    gx = F.pad((still[..., 2:] - still[..., :-2]) * (side / 4), (1, 1)).flatten(1)
    gy = F.pad((still[..., 2:, :] - still[..., :-2, :]) * (side / 4), (0, 0, 1, 1)).flatten(1)
    flat = still.flatten(1)
    contrast = (flat - flat.mean(1, keepdim=True)).norm(dim=1, keepdim=True).clamp_min(1e-3)
    gx, gy, unit = gx / contrast, gy / contrast, _unit(flat)
    down = flat.new_empty(len(flat), 6, flat.shape[1])
    for k, (slope, by) in enumerate(((gx, x), (gy, y), (gx, y), (gy, x), (gx, None), (gy, None))):
        down[:, k] = slope if by is None else slope * by
    # Of each row only what is left of it without its mean and the goal counts. Both are taken off
    # the products, which are few, instead of the rows: what is multiplied later has no mean.
    mean, along = down.mean(2), (down @ unit[:, :, None])[:, :, 0]
    curve = down @ down.transpose(1, 2) - along[:, :, None] * along[:, None, :]
    curve = curve - flat.shape[1] * mean[:, :, None] * mean[:, None, :]
    least = 1e-3 * curve.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-6)
    return _Goal(unit, down, along, torch.linalg.inv(curve + least[:, None, None] * torch.eye(6)))


def fit(moving: Tensor, still: Tensor, theta: Tensor, steps: int) -> Tensor:
    """Improve the maps that lay `moving` over `still`, whatever their brightness and contrast.

    Gauss-Newton on the correlation (the inverse compositional algorithm of Baker and Matthews,
    2004, on pictures of unit norm), over affine maps: turning a picture that is not square
    shears its square version.

    Args:
        moving: Grey pictures (b, 1, s, s).
        still: Grey pictures (b, 1, s, s).
        theta: The maps to start from, (b, 2, 3).
        steps: Number of steps.

    Returns:
        Maps (b, 2, 3).
    """
    return _laid(moving, _goal(still), theta, steps)


def _laid(moving: Tensor, goal: _Goal, theta: Tensor, steps: int) -> Tensor:
    """Improve maps (b, 2, 3) by a number of steps."""
    for _ in range(steps):
        now = _unit(warped(moving, theta).flatten(1))
        agree = (now * goal.unit).sum(1, keepdim=True).clamp_min(0.3)
        wrong = now / agree - goal.unit
        slope = goal.down @ wrong[:, :, None]
        slope = slope - (goal.along * (goal.unit * wrong).sum(1, keepdim=True))[:, :, None]
        theta = _undone(theta, (goal.solve @ slope)[:, :, 0].clamp(-0.15, 0.15))
    return theta


def _undone(theta: Tensor, move: Tensor) -> Tensor:
    """Return maps (b, 2, 3) after the inverse of small ones, which (b, 6) numbers describe."""
    wide, high, right, down = 1 + move[:, 0], 1 + move[:, 1], move[:, 2], move[:, 3]
    area = wide * high - right * down
    inverse = torch.stack([high, -right, -down, wide], 1).view(-1, 2, 2) / area[:, None, None]
    linear = theta[:, :, :2] @ inverse
    return torch.cat([linear, theta[:, :, 2:] - linear @ move[:, 4:, None]], 2)


@dataclass(frozen=True)
class Agreement:
    """How well pictures laid over each other agree; tensors (b,).

    Attributes:
        whole: Correlation of the brightness.
        detail: Correlation of its details, without what is smooth: pictures that are merely alike
            agree in what is smooth only.
        off: What remains of the brightness, root mean square in [0, 1], after the best gain.
        gain: Contrast of the one over that of the other.
        colour: Root mean square of the difference of the colours.
        scale: Geometric mean of the scales of width and height.
        stretch: The larger of the two scales over the smaller.
        angle: In radians.
        inside: Share of the one that lies within the other.
        finer: Whether details were compared at the higher resolution too.
        cells: Mean correlation of the details of single cells, of those that have some: outlines
            that are alike agree as a whole, but not in every part.
        weakest: The lower quartile of the same.
        hue: As `colour`, of what lies within both alone.
    """

    whole: Tensor
    detail: Tensor
    off: Tensor
    gain: Tensor
    colour: Tensor
    scale: Tensor
    stretch: Tensor
    angle: Tensor
    inside: Tensor
    finer: Tensor
    cells: Tensor
    weakest: Tensor
    hue: Tensor


@dataclass(frozen=True)
class Halved:
    """Pictures at half the resolution, for laying over each other roughly.

    Attributes:
        soft: Their brightness, blurred, float32 (n, 1, s/2, s/2).
        detail: The same without what a wider blur keeps.
    """

    soft: Tensor
    detail: Tensor

    @classmethod
    def of(cls, pictures: Tensor) -> Halved:
        """Prepare uint8 pictures (n, 3, s, s)."""
        parts = [
            blurred(F.avg_pool2d(light(block.float() / 255), 2)) for block in pictures.split(4096)
        ]
        return cls(torch.cat(parts), torch.cat([part - blurred(part, 4) for part in parts]))


def coarse(
    halved: Halved, moving: Tensor, still: Tensor, theta: Tensor, steps: int
) -> tuple[Tensor, Tensor]:
    """Lay pictures over each other at half the resolution: maps, and how well details agree.

    Args:
        halved: The pictures.
        moving: Rows of those that are moved, int64 (b,).
        still: Rows of the others, int64 (b,); what they ask is found once for each that recurs.
        theta: Maps to start from, (b, 2, 3).
        steps: Number of steps.
    """
    rows, own = still.unique(return_inverse=True)
    goal = _Goal(*(part[own] for part in _goal(halved.soft[rows])))
    theta = _laid(halved.soft[moving], goal, theta, steps)
    return theta, _correlated(warped(halved.detail[moving], theta), halved.detail[still])


def _finer(fine_ones: Tensor, moving: Tensor, still: Tensor, theta: Tensor) -> Tensor:
    """Return how well details agree at the higher resolution."""
    one, other = (fine_ones[rows][:, None].float() / 255 for rows in (moving, still))
    theta = fit(blurred(one), blurred(other), theta, 3)
    return _details(blurred(warped(one, theta)), blurred(other))


def _details(one: Tensor, other: Tensor) -> Tensor:
    """Correlation of what a wider blur takes away, with a floor where there is next to nothing."""
    return _correlated(one - blurred(one, 4), other - blurred(other, 4))


def _correlated(one: Tensor, other: Tensor) -> Tensor:
    a, b = (p.flatten(1) - p.flatten(1).mean(1, keepdim=True) for p in (one, other))
    floor = a.shape[1] * _FLOOR**2
    power = (a.square().sum(1) + floor).sqrt() * (b.square().sum(1) + floor).sqrt()
    return (a * b).sum(1) / power


def fine(
    pictures: Tensor,
    fine_ones: Tensor,
    moving: Tensor,
    still: Tensor,
    theta: Tensor,
    least: float,
) -> Agreement:
    """Lay pictures over each other at full resolution, and say how well they agree.

    Args:
        pictures: uint8 (n, 3, s, s).
        fine_ones: Their brightness at a higher resolution, uint8 (n, f, f); zeros where there is
            none. Details must agree there as well, where they agree at all.
        moving: Rows of those that are moved, int64 (b,).
        still: Rows of the others, int64 (b,).
        theta: Maps to start from, (b, 2, 3).
        least: Agreement below which the higher resolution is not looked at.
    """
    one, other = (pictures[rows].float() / 255 for rows in (moving, still))
    theta = fit(blurred(light(one)), blurred(light(other)), theta, 3)
    laid = warped(one, theta)
    a, b = light(laid), light(other)
    flat_a, flat_b = (p.flatten(1) - p.flatten(1).mean(1, keepdim=True) for p in (a, b))
    both = (flat_a * flat_b).sum(1)
    power_a, power_b = flat_a.square().sum(1), flat_b.square().sum(1)
    gain = both / power_a.clamp_min(1e-6)
    off = (flat_b - gain[:, None] * flat_a).square().mean(1).sqrt()
    whole = both / (power_a * power_b).sqrt().clamp_min(1e-6)
    wide, high = theta[:, :, 0].norm(dim=1), theta[:, :, 1].norm(dim=1)
    grid = grid_of(theta, *b.shape[2:])
    detail = _details(blurred(a), blurred(b))
    there = [fine_ones[rows].flatten(1).amax(1) > 0 for rows in (moving, still)]
    both_fine = there[0] & there[1] & (detail > least)
    if both_fine.any():
        close = _finer(fine_ones, moving[both_fine], still[both_fine], theta[both_fine])
        detail[both_fine] = torch.minimum(detail[both_fine], close)
    likely = detail > least
    cells, weakest, hue = (torch.zeros_like(detail) for _ in range(3))
    if likely.any():
        parts = _by_cells(one[likely], other[likely], theta[likely], gain[likely])
        cells[likely], weakest[likely], hue[likely] = parts
    return Agreement(
        whole,
        detail,
        off,
        gain,
        ((laid - a) * gain.view(-1, 1, 1, 1) - (other - b)).flatten(1).square().mean(1).sqrt(),
        (wide * high).sqrt(),
        torch.maximum(wide, high) / torch.minimum(wide, high).clamp_min(1e-3),
        torch.maximum(
            torch.atan2(theta[:, 1, 0], theta[:, 0, 0].abs()).abs(),
            torch.atan2(theta[:, 0, 1], theta[:, 1, 1].abs()).abs(),
        ),
        (grid.abs() < 1.02).all(-1).float().mean((1, 2)),
        both_fine,
        cells,
        weakest,
        hue,
    )


def _by_cells(
    one: Tensor, other: Tensor, theta: Tensor, gain: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return `cells`, `weakest` and `hue` of `Agreement`, for pictures (b, 3, s, s)."""
    theta = fit(light(one), light(other), theta, 2)
    laid = warped(one, theta)
    a, b = light(laid), light(other)
    grid = grid_of(theta, *b.shape[2:])
    inside = (grid.abs() < 1).all(-1)[:, None].float()
    soft_a, soft_b = blurred(a), blurred(b)
    fine_a, fine_b = soft_a - blurred(soft_a, 2), soft_b - blurred(soft_b, 2)

    def each(values: Tensor) -> Tensor:
        return F.avg_pool2d(values * inside, _CELL, _CELL // 2).flatten(1)

    power_a, power_b = each(fine_a.square()), each(fine_b.square())
    floor = (2 * _FLOOR) ** 2
    agree = each(fine_a * fine_b) / ((power_a + floor) * (power_b + floor)).sqrt()
    some = torch.maximum(power_a, power_b).sqrt() > _LEAST_IN_CELL
    none = ~some.any(1)
    mean = (agree * some).sum(1) / some.sum(1).clamp_min(1)
    low = torch.where(some, agree, torch.nan).nanquantile(0.25, dim=1)
    tints = (laid - a) * inside, (other - b) * inside
    differ = (tints[0] * gain.view(-1, 1, 1, 1) - tints[1]).square().mean((1, 2, 3)).sqrt()
    # Where no cell has details, they say nothing against it.
    return mean.masked_fill(none, 1.0), low.masked_fill(none, 1.0), differ
