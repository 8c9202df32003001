"""Short descriptions of small pictures in which copies lie close together, and the search for close
ones.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

SIZE = 48
"""Numbers per description."""
_LEARNED_FROM = 3000
_VERSIONS = 6
_BLOCK = 2048
_MOST = ((2_000, 10, 0.2), (5_000, 8, 0.1), (20_000, 5, 0.0), (sys.maxsize, 4, 0.0))
"""How many of the closest are taken in sets of up to so many pictures, and how much less close
they may be: small sets teach a poorer description, and cost little.
"""
_LEAST = {True: 0.5, False: 0.53}
"""How close whole pictures are, and parts."""

Box = tuple[float, float, float, float]

WHOLE: Box = (0.0, 0.0, 1.0, 1.0)
_CUT, _OFF = 0.84, 0.05
CUTS: tuple[Box, ...] = tuple(
    (0.5 + x - _CUT / 2, 0.5 + y - _CUT / 2, 0.5 + x + _CUT / 2, 0.5 + y + _CUT / 2)
    for x in (-_OFF, _OFF)
    for y in (-_OFF, _OFF)
)
"""Parts of a picture, which are compared with whole pictures: crops of 0.72 to 0.95 of a side."""
VIEWS: tuple[tuple[Box, bool], ...] = tuple(
    (box, flip) for box in (WHOLE, *CUTS) for flip in (False, True)
)
"""How each picture is looked at: a part, and whether it is mirrored."""


def light(pictures: Tensor) -> Tensor:
    """Return the brightness (b, 1, h, w) of pictures (b, 3, h, w) in [0, 1]."""
    weights = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    return (pictures * weights).sum(1, keepdim=True)


def placed(box: Box, flip: bool, count: int) -> Tensor:
    """Return the maps (count, 2, 3) that take the frame [-1, 1]² to a box of a picture."""
    width, height = box[2] - box[0], box[3] - box[1]
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0] = -width if flip else width
    theta[:, 1, 1] = height
    theta[:, 0, 2], theta[:, 1, 2] = box[0] + box[2] - 1, box[1] + box[3] - 1
    return theta


def warped(pictures: Tensor, theta: Tensor) -> Tensor:
    """Sample pictures (b, c, h, w) where the maps say, by interpolation; edges are continued."""
    grid = F.affine_grid(theta, list(pictures.shape), align_corners=False)
    return F.grid_sample(pictures, grid, padding_mode="border", align_corners=False)


def _raw(pictures: Tensor) -> Tensor:
    """Return brightness at 16×16, without its mean and contrast, and a little of the colour."""
    bright = light(pictures)
    small = F.avg_pool2d(bright, 2).flatten(1)
    colour = F.avg_pool2d(pictures - bright, 8)[:, [0, 2]].flatten(1)
    small = small - small.mean(1, keepdim=True)
    contrast = small.norm(dim=1, keepdim=True).clamp_min(0.16)
    return torch.cat([small / contrast, 1.5 * colour / contrast], 1)


def _changed(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Return pictures a little cut, shifted, turned, brighter, noisier, some of them grey."""
    b = len(pictures)

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    side = 1 - 0.16 * draw(b, 1)
    corner = (1 - side) * draw(b, 2)
    angle = (2 * draw(b) - 1) * 0.09
    wide, high = (side[:, 0] * (1 + 0.06 * (draw(b) - 0.5)) for _ in range(2))
    theta = torch.zeros(b, 2, 3)
    theta[:, 0, 0], theta[:, 0, 1] = wide * angle.cos(), -high * angle.sin()
    theta[:, 1, 0], theta[:, 1, 1] = wide * angle.sin(), high * angle.cos()
    theta[:, :, 2] = corner * 2 + side - 1
    out = warped(pictures, theta) * (0.7 + 0.6 * draw(b, 1, 1, 1))
    out = (out + 0.03 * torch.randn(out.shape, generator=generator)).clamp(0, 1)
    grey = draw(b) < 0.3
    out[grey] = out[grey].mean(1, keepdim=True)
    return out


@dataclass(frozen=True)
class Descriptor:
    """A linear description of small pictures: directions in which pictures differ much, and the
    versions of one picture little (Fisher's linear discriminant, learned from the set itself).

    Attributes:
        mean: (d,).
        directions: (d, SIZE).
    """

    mean: Tensor
    directions: Tensor

    @classmethod
    def learn(cls, pictures: Tensor, generator: torch.Generator) -> Descriptor:
        """Learn from uint8 pictures (n, 3, h, w).

        Args:
            pictures: All of them; some are drawn.
            generator: Draws them and their versions.
        """
        count = min(len(pictures), _LEARNED_FROM)
        rows = torch.randperm(len(pictures), generator=generator)[:count]
        some = pictures[rows].float() / 255
        versions = torch.stack([_raw(_changed(some, generator)) for _ in range(_VERSIONS)])
        mean, own = versions.mean((0, 1)), versions.mean(0)
        inside = (versions - own).flatten(0, 1)
        within = inside.T @ inside / ((_VERSIONS - 1) * count)
        between = (own - mean).T @ (own - mean) / count
        noise = within.diagonal().mean().clamp_min(1e-6)
        within = within + 1e-3 * noise * torch.eye(len(within))
        root = torch.linalg.cholesky(within)
        half = torch.linalg.solve_triangular(root, between, upper=False)
        ratio = torch.linalg.solve_triangular(root, half.T, upper=False)
        values, vectors = torch.linalg.eigh((ratio + ratio.T) / 2)
        values, vectors = values[-SIZE:].clamp_min(1e-6), vectors[:, -SIZE:]
        directions = torch.linalg.solve_triangular(root.T, vectors, upper=True)
        return cls(mean, directions / (1 + values).sqrt())

    def __call__(self, pictures: Tensor, box: Box = WHOLE, flip: bool = False) -> Tensor:
        """Describe uint8 pictures (n, 3, h, w): (n, SIZE), of length 1."""
        parts = []
        for block in pictures.split(8192):
            some = block.float() / 255
            if box != WHOLE:
                some = warped(some, placed(box, flip, len(some)))
            elif flip:
                some = some.flip(3)
            parts.append(F.normalize((_raw(some) - self.mean) @ self.directions, dim=1))
        return torch.cat(parts)


@dataclass(frozen=True)
class Candidates:
    """Pairs of rows that may be copies.

    Attributes:
        seen: The row that was looked at in the view, int64 (m,).
        like: The row that it looks like, int64 (m,).
        view: Number of the view of `VIEWS`, int64 (m,).
    """

    seen: Tensor
    like: Tensor
    view: Tensor


def close_pairs(
    described: Tensor,
    pictures: Tensor,
    descriptor: Descriptor,
    whole: int,
    ticks: Callable[[int], Iterator[None]],
) -> Candidates:
    """Compare every picture, in every view, with every picture as it is.

    Args:
        described: Descriptions of the pictures, float32 (n, SIZE).
        pictures: uint8 (n, 3, h, w): whole ones, then what lies within borders, which is not cut
            further.
        descriptor: Describes the views.
        whole: How many are whole.
        ticks: Makes an iterator of so many ticks, advanced once per block.

    Returns:
        For each picture and view the closest ones, if they are close.
    """
    n = len(described)
    jobs = [(view, 0, whole) for view in range(len(VIEWS))]
    jobs += [(view, whole, n) for view in range(len(VIEWS)) if VIEWS[view][0] == WHOLE]
    tick = ticks(sum(-(-(end - begin) // _BLOCK) for _, begin, end in jobs))
    found: list[Candidates] = []
    for view, begin, end in jobs:
        box, flip = VIEWS[view]
        part = pictures[begin:end]
        asked = descriptor(part, box, flip) if flip or box != WHOLE else described[begin:end]
        # Whole pictures are compared both ways at once, mirrored or not.
        both = begin == 0 and box == WHOLE
        for start in range(begin, end, _BLOCK):
            stop = min(start + _BLOCK, end)
            first, last = start if both else 0, whole if begin == 0 else n
            close = asked[start - begin : stop - begin] @ described[first:last].T
            own = torch.arange(stop - start)
            close[own, own + start - first] = -1.0
            found.append(_closest(close, start, first, view))
            next(tick, None)
    return Candidates(
        *(torch.cat([getattr(one, name) for one in found]) for name in ("seen", "like", "view"))
    )


def _closest(close: Tensor, start: int, first: int, view: int) -> Candidates:
    """Return the closest ones of some rows; the numbers of rows and columns begin at `start` and
    `first`.
    """
    most, less = next(rest for size, *rest in _MOST if close.shape[1] <= size)
    least = _LEAST[VIEWS[view][0] == WHOLE] - less
    rows = torch.nonzero(close.amax(1) > least)[:, 0] if close.shape[1] else torch.arange(0)
    values, columns = close[rows].topk(min(int(most), close.shape[1]), 1)
    good = values > least
    left = (rows + start)[:, None].expand_as(columns)
    return Candidates(left[good], columns[good] + first, torch.full((int(good.sum()),), view))
