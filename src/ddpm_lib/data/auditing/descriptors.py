"""Short descriptions of small pictures in which copies lie close together, and the search for close
ones.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

SIZE = 48
"""Numbers per description."""
_LEARNED_FROM = 3000
_VERSIONS = 6
_BLOCK = 2048
_ROWS, _COLUMNS, _GROUP = 512, 2048, 32
"""Rows and columns that are compared at once, which fit the cache, and how many of the columns are
looked at together before the best ones are.
"""
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
    grid = grid_of(theta, *pictures.shape[2:])
    return F.grid_sample(pictures, grid, padding_mode="border", align_corners=False)


def grid_of(theta: Tensor, height: int, width: int) -> Tensor:
    """Return what `affine_grid` does without `align_corners`, in a fraction of its time: (b, h, w,
    2) for maps (b, 2, 3).
    """
    x = ((torch.arange(width) + 0.5) * (2 / width) - 1)[None, None, :, None]
    y = ((torch.arange(height) + 0.5) * (2 / height) - 1)[None, :, None, None]
    by_x, by_y, off = (theta[:, None, None, :, k] for k in range(3))
    return torch.addcmul(by_x * x + off, by_y, y)


def _planes(pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Return brightness (b, 1, h, w) and two differences of colours (b, 2, h, w)."""
    bright = light(pictures)
    return bright, pictures[:, [0, 2]] - bright


def _raw(pictures: Tensor) -> Tensor:
    """Return brightness at 16×16, without its mean and contrast, and a little of the colour."""
    bright, colours = _planes(pictures)
    return _joined(F.avg_pool2d(bright, 2), F.avg_pool2d(colours, 8))


def _joined(bright: Tensor, colours: Tensor) -> Tensor:
    small, colour = bright.flatten(1), colours.flatten(1)
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

    def __call__(self, pictures: Tensor) -> Tensor:
        """Describe uint8 pictures (n, 3, h, w): (n, SIZE), of length 1."""
        return torch.cat([next(self.views(block, VIEWS[:1])) for block in pictures.split(_BLOCK)])

    def views(self, pictures: Tensor, views: Iterable[tuple[Box, bool]]) -> Iterator[Tensor]:
        """Describe uint8 pictures (b, 3, h, w) in each of some views, each (b, SIZE)."""
        planes = _planes(pictures.float() / 255)
        for box, flip in views:
            parts = []
            for values, pooled in zip(planes, (2, 8)):
                high, wide = values.shape[2:]
                down = _seen(high, box[1], box[3], False, pooled)
                across = _seen(wide, box[0], box[2], flip, pooled)
                parts.append(down @ (values @ across.T))
            yield F.normalize((_joined(*parts) - self.mean) @ self.directions, dim=1)


def _seen(size: int, low: float, high: float, flip: bool, pooled: int) -> Tensor:
    """Return the matrix (size // pooled, size) that cuts a part out of a line of pixels by
    interpolation, enlarges it to the whole line, mirrors it, and takes means of `pooled` pixels.
    """
    at = (torch.arange(size) + 0.5) / size
    at = ((low + (high - low) * (1 - at if flip else at)) * size - 0.5).clamp(0, size - 1)
    taps = (1 - (at[:, None] - torch.arange(size)).abs()).clamp_min(0)
    return taps[: size // pooled * pooled].view(-1, pooled, size).mean(1)


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
    parts = [(VIEWS, 0, whole), ([view for view in VIEWS if view[0] == WHOLE], whole, n)]
    tick = ticks(sum(len(views) * -(-(end - begin) // _BLOCK) for views, begin, end in parts))
    found: list[Candidates] = []
    for views, begin, end in parts:
        for start in range(begin, end, _BLOCK):
            stop = min(start + _BLOCK, end)
            for view, asked in zip(views, descriptor.views(pictures[start:stop], views)):
                # Whole pictures are compared both ways at once, mirrored or not.
                both = begin == 0 and view[0] == WHOLE
                first, last = start if both else 0, whole if begin == 0 else n
                number = VIEWS.index(view)
                found.append(_closest(asked, described[first:last], start, first, number))
                next(tick, None)
    return Candidates(
        *(torch.cat([getattr(one, name) for one in found]) for name in ("seen", "like", "view"))
    )


def _closest(asked: Tensor, described: Tensor, start: int, first: int, view: int) -> Candidates:
    """Return the closest ones of some descriptions (r, SIZE) among others (m, SIZE); the numbers
    of the former begin at `start`, those of the latter at `first`.

    Not all similarities are kept: the highest of each group of columns says which groups to look
    into, and among the highest groups are the closest ones.
    """
    most, less = next(rest for size, *rest in _MOST if len(described) <= size)
    least = _LEAST[VIEWS[view][0] == WHOLE] - less
    table = F.pad(described, (0, 0, 0, -len(described) % _COLUMNS))  # like nothing
    across = _COLUMNS // _GROUP
    highest = torch.empty(len(asked), len(table) // _GROUP)
    for top in range(0, len(asked), _ROWS):
        rows = asked[top : top + _ROWS]
        for k in range(len(table) // _COLUMNS):
            close = rows @ table[k * _COLUMNS : (k + 1) * _COLUMNS].T
            close.diagonal(start + top - first - k * _COLUMNS).fill_(-1.0)  # a picture and itself
            best = close.view(len(rows), _GROUP, across).amax(1)
            highest[top : top + _ROWS, k * across : (k + 1) * across] = best
    values, groups = highest.topk(min(int(most), highest.shape[1]), 1)
    rows, places = torch.nonzero(values > least, as_tuple=True)
    chosen = groups[rows, places]
    columns = (chosen // across * _COLUMNS + chosen % across)[:, None]
    columns = columns + torch.arange(_GROUP) * across
    parts = zip(rows.split(_BLOCK), columns.split(_BLOCK))
    near = [(table[those] @ asked[these][:, :, None])[:, :, 0] for these, those in parts]
    each = torch.full((len(asked), values.shape[1], _GROUP), -1.0)
    where = torch.zeros_like(each, dtype=torch.int64)
    if near:
        each[rows, places] = torch.cat(near)
        where[rows, places] = columns
    own = torch.arange(start - first, start - first + len(asked))[:, None, None]
    each[where == own] = -1.0
    values, at = each.flatten(1).topk(min(int(most), each.shape[1] * _GROUP), 1)
    good = values > least
    left = (torch.arange(len(asked)) + start)[:, None].expand_as(at)
    like = where.flatten(1).gather(1, at)[good] + first
    return Candidates(left[good], like, torch.full((len(like),), view))
