"""Copies among pictures: which pairs show the same, however they were saved, cut, mirrored or
enlarged, and how far that can be told in this set.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ddpm_lib.core.keys import key
from ddpm_lib.data.auditing.alignment import Agreement, Halved, coarse, fine
from ddpm_lib.data.auditing.descriptors import VIEWS, Descriptor, close_pairs, placed
from ddpm_lib.data.auditing.looking import Measured, Probe

Log = Callable[[str], None]

_BLOCK = 1024
_FINE_BLOCK = 512
"""Pairs that are laid over each other at once, roughly and finely: what is a few megabytes each is
faster than what is many.
"""
_DECOYS = 2000
_COARSE = ((2, 0.4), (3, 0.7))
"""Steps of laying over each other at half the resolution, and the agreement asked for after."""
LEAST_DETAIL = 0.72
_LEAST_FINE_DETAIL = 0.8
"""The same where the finer versions were compared: few planes of SYSU-Shape in one pose reach that,
and copies that were turned and show black corners may have no more.
"""
_MOST_DETAIL = 0.995
_LEAST_WHOLE = 0.88
_LEAST_IN_WEAKEST = 0.6
"""Agreement of the lower quartile of cells, which copies reach that were enlarged from 16×16."""
_MOST_HUE = 0.06
_OF_ANOTHER_COLOUR = (0.82, 0.72)
"""What is asked of cells, and of their lower quartile, where colours differ by more or are gone."""
FALSE_ALARMS = 0.003
"""Share of decoys that may pass for copies, before more agreement is asked for."""
MOST_ALARMS = 0.01
"""The share above which, however much agreement is asked for, the images are too alike to tell."""


@dataclass(frozen=True)
class Pairs:
    """Pairs of pictures that show the same; arrays (m,), sorted.

    Attributes:
        first: The smaller row, int64.
        second: The larger row, int64.
        detail: How well their details agree, float32, 1 at most.
        how: What was done to the one to get the other, in words.
    """

    first: np.ndarray
    second: np.ndarray
    detail: np.ndarray
    how: list[str]


@dataclass(frozen=True)
class Search:
    """What the search for near-duplicates found, and how far it can be trusted in this set.

    Attributes:
        pairs: The pairs.
        needed: The agreement of details that was asked for.
        decoys: Number of decoys: pictures upside down, which are copies of nothing.
        alarms: How many of them passed for a copy of another picture.
        probes: Per kind of copies made for trial, how many were made and how many were found.
        alike: Whether the images are so alike that near-copies cannot be told from others; none are
            named then.
    """

    pairs: Pairs
    needed: float
    decoys: int
    alarms: int
    probes: dict[str, tuple[int, int]]
    alike: bool = False

    def within(self, kept: np.ndarray) -> Search:
        """Return the search with some of its pairs, bool (m,)."""
        pairs = self.pairs
        how = [words for words, stays in zip(pairs.how, kept.tolist()) if stays]
        chosen = Pairs(pairs.first[kept], pairs.second[kept], pairs.detail[kept], how)
        return replace(self, pairs=chosen)

    @property
    def alarm_rate(self) -> float:
        """The share of false alarms, estimated by the decoys."""
        return self.alarms / self.decoys if self.decoys else 0.0


def find_copies(
    measured: Measured,
    usable: np.ndarray,
    probes: list[Probe],
    seed: int = 0,
    log: Log | None = None,
) -> Search:
    """Find pairs of pictures that show the same.

    Pictures are described by a few numbers in which copies are close; close pairs are laid over
    each other and their details compared. Two further kinds of pictures go through the same search
    and say what it is worth: pictures upside down (decoys), and copies made for trial (probes).

    Args:
        measured: The pictures.
        usable: Which pictures show anything, bool (n,).
        probes: Copies made for trial.
        seed: Names the random numbers.
        log: Is given a line every few seconds.
    """
    generator = torch.Generator().manual_seed(key("audit", seed) >> 1)
    rows = np.flatnonzero(usable)
    probed = [probe for probe in probes if usable[probe.row]]
    if len(rows) < 2 and not probed:
        return Search(_no_pairs(), LEAST_DETAIL, 0, 0, {})
    count = min(_DECOYS, len(rows))
    drawn = np.sort(rows[torch.randperm(len(rows), generator=generator)[:count].numpy()])
    bordered = measured.bordered
    framed = rows[bordered[rows]]
    framed_decoys = np.flatnonzero(bordered[drawn])
    within = [k for k, probe in enumerate(probed) if probe.inner is not None]
    n = len(measured)
    upright = [probe.whole for probe in probed]
    inside = [found for found in (probed[k].inner for k in within) if found is not None]
    # Whole pictures come first, then what borders leave of some.
    pictures = torch.from_numpy(
        np.concatenate(
            [
                *(measured.small[rows], *(one.small[None] for one in upright)),
                measured.small[drawn][:, :, ::-1],
                *(measured.inner[framed], *(one.small[None] for one in inside)),
                measured.inner[drawn[framed_decoys]][:, :, ::-1],
            ]
        )
    )
    fine_ones = torch.from_numpy(
        np.concatenate(
            [
                *(measured.fine[rows], *(one.fine[None] for one in upright)),
                measured.fine[drawn][:, ::-1],
                *(measured.inner_fine[framed], *(one.fine[None] for one in inside)),
                measured.inner_fine[drawn[framed_decoys]][:, ::-1],
            ]
        )
    )
    first_decoy = n + len(probed)
    owner = np.concatenate(
        [
            *(rows, n + np.arange(len(probed)), first_decoy + np.arange(len(drawn))),
            *(framed, n + np.array(within, dtype=np.int64), first_decoy + framed_decoys),
        ]
    ).astype(np.int64)
    # What a probe or a decoy was made of, which is not found by a decoy.
    made_of = np.concatenate([np.arange(n), [probe.row for probe in probed], drawn]).astype(int)
    whole = len(rows) + len(probed) + len(drawn)
    numbers = _Numbers(torch.from_numpy(owner), torch.from_numpy(made_of), n, first_decoy, whole)
    found = _search(pictures, fine_ones, numbers, generator, log)
    return _judged(found, n, first_decoy, probed, len(drawn))


@dataclass(frozen=True)
class _Numbers:
    """Whose the compared pictures are.

    Attributes:
        owner: Of each compared picture, int64: the row of a real one, then probes, then decoys.
        made_of: Of each owner, the row that it is or was made of, int64.
        n: Number of real owners.
        decoys: Number of the first decoy.
        whole: How many of the compared pictures are whole; the others lie within a border.
    """

    owner: Tensor
    made_of: Tensor
    n: int
    decoys: int
    whole: int


@dataclass(frozen=True)
class _Found:
    """Pairs of owners with their agreement, the best of each pair."""

    one: np.ndarray
    other: np.ndarray
    detail: np.ndarray
    how: list[str]


def _search(
    pictures: Tensor,
    fine_ones: Tensor,
    numbers: _Numbers,
    generator: torch.Generator,
    log: Log | None,
) -> _Found:
    """Find and compare close pairs; only those of which one is a real picture."""
    owner, made_of, n = numbers.owner, numbers.made_of, numbers.n
    real = pictures[: numbers.whole][owner[: numbers.whole] < n]
    descriptor = Descriptor.learn(real, generator)
    described = descriptor(pictures)
    close = close_pairs(
        described, pictures, descriptor, numbers.whole, partial(_ticks, log=log, doing="comparing")
    )
    a, b = owner[close.seen], owner[close.like]
    # A decoy or a probe is compared with real pictures; a decoy not with what it was made of.
    wanted = (a != b) & ((a < n) | (b < n))
    wanted &= (torch.maximum(a, b) < numbers.decoys) | (made_of[a] != made_of[b])
    seen, like, view = close.seen[wanted], close.like[wanted], close.view[wanted]
    order = like.argsort(stable=True)  # a block has few of those that others are laid over
    seen, like, view = seen[order], like[order], view[order]
    halved = Halved.of(pictures)
    starts = torch.cat([placed(*view, 1) for view in VIEWS])
    kept: list[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]] = []
    tick = _ticks(-(-len(seen) // _BLOCK), log, "laying over each other")
    for i, j, v in zip(seen.split(_BLOCK), like.split(_BLOCK), view.split(_BLOCK)):
        theta, agree = starts[v], torch.ones(len(v))
        for steps, least in _COARSE:
            theta, agree = coarse(halved, i, j, theta, steps)
            i, j, v, theta, agree = (part[agree > least] for part in (i, j, v, theta, agree))
        kept.append((i, j, v, theta, agree))
        next(tick, None)
    if not kept:
        return _Found(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32), [])
    i, j, v, theta, agree = (torch.cat([part[k] for part in kept]) for k in range(5))
    best = _best(owner[i], owner[j], agree, len(made_of), 2)
    i, j, v, theta = i[best], j[best], v[best], theta[best]
    one, other, detail, how = [], [], [], []
    for rows in torch.arange(len(i)).split(_FINE_BLOCK):
        agreed = fine(pictures, fine_ones, i[rows], j[rows], theta[rows], LEAST_DETAIL)
        passed = _plausible(agreed)
        one.append(owner[i[rows]][passed])
        other.append(owner[j[rows]][passed])
        detail.append(torch.minimum(agreed.detail, agreed.cells)[passed])
        how += _words(agreed, v[rows], passed)
    a, b, strength = torch.cat(one), torch.cat(other), torch.cat(detail)
    best = _best(a, b, strength, len(made_of), 1)
    return _Found(
        torch.minimum(a, b)[best].numpy(),
        torch.maximum(a, b)[best].numpy(),
        strength[best].numpy(),
        [how[k] for k in best.tolist()],
    )


def _best(a: Tensor, b: Tensor, strength: Tensor, count: int, most: int) -> Tensor:
    """Return the places of the strongest entries of each unordered pair, `most` of each."""
    pair = torch.minimum(a, b) * count + torch.maximum(a, b)
    order = np.lexsort((-strength.numpy(), pair.numpy()))
    sorted_pair = pair.numpy()[order]
    first = np.r_[True, sorted_pair[1:] != sorted_pair[:-1]] if len(order) else np.zeros(0, bool)
    start = np.flatnonzero(first)
    rank = np.arange(len(order)) - np.repeat(start, np.diff(np.r_[start, len(order)]))
    return torch.from_numpy(np.sort(order[rank < most]))


def _plausible(agreed: Agreement) -> Tensor:
    """Whether what lies between two pictures is what people and programs do to copies."""
    return (
        (agreed.detail > LEAST_DETAIL)
        & (~agreed.finer | (agreed.detail > _LEAST_FINE_DETAIL))
        & (agreed.whole > _LEAST_WHOLE)
        & (agreed.gain > 0.3)
        & (agreed.gain < 3.5)
        & (agreed.scale > 0.45)
        & (agreed.scale < 2.2)
        & (agreed.stretch < 1.5)
        & (agreed.angle < 0.3)
        & (agreed.inside > 0.75)
        & (agreed.colour < 0.15)
        & (agreed.cells > LEAST_DETAIL)
        & (agreed.weakest > _LEAST_IN_WEAKEST)
        & ((agreed.hue < _MOST_HUE) | _clearly(agreed))
    )


def _clearly(agreed: Agreement) -> Tensor:
    """Whether pictures agree so well in all cells that their colours need not."""
    cells, weakest = _OF_ANOTHER_COLOUR
    return (agreed.cells > cells) & (agreed.weakest > weakest)


def _words(agreed: Agreement, view: Tensor, passed: Tensor) -> list[str]:
    """Say what was done to the one picture to get the other."""
    said = []
    for k in torch.nonzero(passed)[:, 0].tolist():
        words = ["mirrored"] if VIEWS[int(view[k])][1] else []
        scale = float(agreed.scale[k])
        if not 0.95 < scale < 1.05:
            words.append("cut or bordered")
        if float(agreed.angle[k]) > 0.025:
            words.append("turned")
        if not 0.88 < float(agreed.gain[k]) < 1.14:
            words.append("of other contrast")
        if float(agreed.colour[k]) > 0.03:
            words.append("of other colour")
        said.append(", ".join(words) or "saved again")
    return said


def _judged(found: _Found, n: int, decoy_from: int, probed: list[Probe], decoys: int) -> Search:
    """Ask for as much agreement as leaves few decoys, and count what the probes say."""
    is_decoy = found.other >= decoy_from
    strongest: dict[int, float] = {}
    for number, detail in zip(found.other[is_decoy].tolist(), found.detail[is_decoy].tolist()):
        strongest[number] = max(detail, strongest.get(number, 0.0))
    values = np.sort(np.array(list(strongest.values()), dtype=np.float64))[::-1]
    allowed = int(FALSE_ALARMS * decoys)
    needed = LEAST_DETAIL
    if len(values) > allowed:
        needed = min(_MOST_DETAIL, max(LEAST_DETAIL, float(values[allowed]) + 1e-4))
    alarms = int((values >= needed).sum())
    alike = alarms > MOST_ALARMS * decoys + 1
    strong = found.detail >= (2.0 if alike else needed)
    is_probe = (found.other >= n) & ~is_decoy & strong
    right = {
        number - n
        for row, number in zip(found.one[is_probe].tolist(), found.other[is_probe].tolist())
        if probed[number - n].row == row
    }
    probes: dict[str, tuple[int, int]] = {}
    for k, probe in enumerate(probed):
        made, seen = probes.get(probe.kind, (0, 0))
        probes[probe.kind] = made + 1, seen + (k in right)
    real = np.flatnonzero((found.other < n) & strong)
    real = real[np.lexsort((found.other[real], found.one[real]))]
    pairs = Pairs(
        found.one[real], found.other[real], found.detail[real], [found.how[k] for k in real]
    )
    return Search(pairs, needed, decoys, alarms, probes, alike)


def _no_pairs() -> Pairs:
    empty = np.zeros(0, dtype=np.int64)
    return Pairs(empty, empty, np.zeros(0, dtype=np.float32), [])


def _ticks(total: int, log: Log | None, doing: str) -> Iterator[None]:
    """Say every few seconds how far a work of so many equal parts is."""
    begun = time.monotonic()
    due = begun + 5.0
    for done in range(1, total + 1):
        yield
        now = time.monotonic()
        if log is not None and now >= due:
            left = (total - done) * (now - begun) / done
            log(f"{doing}: {100 * done / total:.0f} % done, {left:,.0f} s to go")
            due = now + 5.0


def joined_groups(n: int, pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Number what pairs join, directly or by way of others: int64 (n,)."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    a = np.concatenate([left for left, _ in pairs])
    b = np.concatenate([right for _, right in pairs])
    graph = coo_array((np.ones(len(a), dtype=np.int8), (a, b)), shape=(n, n))
    found: np.ndarray = connected_components(graph, directed=False)[1].astype(np.int64)
    return found
