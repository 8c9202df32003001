"""From measurements and pairs of copies to findings: which images, why, and which of several copies
stays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ddpm_lib.data.auditing.audit_findings import Finding
from ddpm_lib.data.auditing.copies import Search, joined_groups
from ddpm_lib.data.auditing.looking import Measured
from ddpm_lib.data.auditing.rules import (
    border_share,
    constant,
    grey,
    mostly_border,
    quality,
    soft,
)
from ddpm_lib.data.names import Names
from ddpm_lib.data.source import Source

LEAST_SPREAD = 3.0
"""Standard deviation of the brightness, of 255, below which nothing is compared."""
_A_PROPERTY = 0.5
"""A share of the set above which something is what the set is like, and not what is wrong."""


@dataclass(frozen=True)
class Copies:
    """Copies among all parts.

    Attributes:
        exact: Numbers of groups of identical pixels, int64 (n,).
        group: Numbers of groups of those and of near-copies, int64 (n,).
        how: By pair (smaller row, larger row), what was done to the one to get the other.
        held: Which images are held out, bool (n,).
        leaked: By row of a training image, held-out images that it is a copy of.
    """

    exact: np.ndarray
    group: np.ndarray
    how: dict[tuple[int, int], str]
    held: np.ndarray
    leaked: dict[int, list[int]]

    def leaks(self, parts: Sequence[tuple[str, Names]]) -> dict[int, list[tuple[int, str]]]:
        """Return the same with names: of the held-out image and of its part."""
        return {
            row: [(other, named(other, parts)) for other in others]
            for row, others in self.leaked.items()
        }


def named(row: int, parts: Sequence[tuple[str, Names]]) -> str:
    """Return the name of an image of any part, the part's name in front but for the first."""
    for k, (part, names) in enumerate(parts):
        if row < len(names):
            return f"{part}: {names[row]}" if k else names[row]
        row -= len(names)
    raise IndexError(row)


def all_copies(whole: Measured, search: Search, held: np.ndarray) -> Copies:
    """Join exact copies and near-copies of all parts."""
    n = len(whole)
    exact = np.arange(n)
    good = np.flatnonzero(whole.good & ~constant(whole))
    _, first, inverse = np.unique(whole.pixels[good], return_index=True, return_inverse=True)
    exact[good] = good[first[inverse.reshape(-1)]]
    pairs = search.pairs
    group = joined_groups(n, [(np.arange(n), exact), (pairs.first, pairs.second)])
    how = {(int(a), int(b)): words for a, b, words in zip(pairs.first, pairs.second, pairs.how)}
    leaked: dict[int, list[int]] = {}
    for members in _members(group):
        out = [row for row in members if held[row]]
        for row in members if out else ():
            if not held[row]:
                leaked[row] = out
    return Copies(exact, group, how, held, leaked)


def _members(group: np.ndarray, rows: np.ndarray | None = None) -> list[list[int]]:
    """Return the groups of two or more, in the order of their first rows."""
    rows = np.arange(len(group)) if rows is None else rows
    order = rows[np.argsort(group[rows], kind="stable")]
    if not len(order):
        return []
    cuts = np.flatnonzero(np.diff(group[order])) + 1
    found = [part.tolist() for part in np.split(order, cuts) if len(part) > 1]
    return sorted(found)


def find_all(
    source: Source,
    measured: Measured,
    whole: Measured,
    copies: Copies,
    chosen: np.ndarray | None,
    parts: Sequence[tuple[str, Names]],
) -> dict[str, Finding]:
    """Return the findings about the part that is trained on.

    Args:
        source: Its images.
        measured: What was measured of them.
        whole: What was measured of all parts.
        copies: Copies among all parts.
        chosen: Where nothing is held out, what training will hold out, bool (n,).
        parts: Names of all parts and their images.
    """
    n = len(source)
    names = source.names
    good = np.flatnonzero(measured.good)
    rank = quality(measured)
    found = [_unreadable(measured)]
    identical = _duplicates(
        "exact", copies.exact[:n], good, rank, names, lambda row, kept: "the same pixels as"
    )
    found.append(identical)
    still = np.setdiff1d(good, identical.rows)
    found.append(
        _duplicates("near", copies.group[:n], still, rank, names, lambda r, k: _how(copies, r, k))
    )
    found.append(_conflicts(source, copies, good))
    found.append(_leaks(copies, chosen, n, parts))
    flat = constant(measured)
    found.append(
        _simple("constant", "of one colour", flat, lambda row: "of one colour", "nothing to learn")
    )
    blurry, enlarged = soft(measured)
    found.append(
        _simple(
            "blurry",
            "blurry",
            blurry & measured.good,
            lambda row: "blurry",
            "no fine detail, blurred or enlarged three times or more",
        )
    )
    found.append(
        _simple(
            "enlarged",
            "enlarged",
            enlarged,
            lambda row: (
                f"each pixel {measured.repeated[row]} times in both directions"
                if measured.repeated[row] > 1
                else "enlarged, about twice"
            ),
            "stored larger than what they show",
        )
    )
    share = border_share(measured)
    found.append(
        _simple(
            "border",
            "mostly border",
            mostly_border(measured),
            lambda row: f"{share[row]:.0%} of it is a border of one colour",
            "less than half of the area shows anything",
        )
    )
    found.append(_grey(measured))
    return {finding.kind: finding for finding in found}


def _unreadable(measured: Measured) -> Finding:
    rows = np.array(sorted(measured.bad), dtype=np.int64)
    said = "training stops at them, or skips them with on_bad_image" if len(rows) else ""
    return Finding("unreadable", "cannot be read", rows, dict(measured.bad), said)


def _duplicates(
    kind: str,
    group: np.ndarray,
    rows: np.ndarray,
    rank: np.ndarray,
    names: Names,
    words: Callable[[int, int], str],
) -> Finding:
    """Find copies; of each group the best one stays, the first of equal ones."""
    groups, why = [], {}
    for members in _members(group, rows):
        kept = max(members, key=lambda row: (rank[row], -row))
        groups.append((kept, *(row for row in members if row != kept)))
        for row in groups[-1][1:]:
            why[row] = f"{words(row, kept)} {names[kept]}"
    title = "exact copies" if kind == "exact" else "near-copies"
    said = (
        f"{len(groups):,} image{'s' * (len(groups) != 1)} lie{'s' * (len(groups) == 1)} in the set"
        " more than once"
        if groups
        else ""
    )
    return Finding(kind, title, np.array(sorted(why), dtype=np.int64), why, said, tuple(groups))


def _how(copies: Copies, row: int, kept: int) -> str:
    words = copies.how.get((min(row, kept), max(row, kept)))
    return f"a copy ({words}) of" if words else "a copy of a copy of"


def _conflicts(source: Source, copies: Copies, good: np.ndarray) -> Finding:
    """Find copies in several classes."""
    groups: list[tuple[int, ...]] = []
    why: dict[int, str] = {}
    labels, classes = source.labels, source.class_names
    for members in _members(copies.group[: len(source)], good) if labels is not None else ():
        kinds = sorted({int(labels[row]) for row in members})  # type: ignore[index]
        if len(kinds) < 2:
            continue
        said = ", ".join(classes[k] if classes else str(k) for k in kinds)
        groups.append(tuple(members))
        why |= dict.fromkeys(members, f"the same image is in the classes {said}")
    text = f"{len(groups):,} images are in several classes" if groups else ""
    rows = np.array(sorted(why), dtype=np.int64)
    return Finding("conflicts", "copies in several classes", rows, why, text, tuple(groups))


def _leaks(
    copies: Copies, chosen: np.ndarray | None, n: int, parts: Sequence[tuple[str, Names]]
) -> Finding:
    """Find training images that are copies of held-out ones."""
    if chosen is not None:
        return _own_leaks(copies, chosen, n, parts)
    why = {
        row: f"a copy of a held-out image: {named(others[0], parts)}"
        for row, others in sorted(copies.leaked.items())
    }
    held = {other for others in copies.leaked.values() for other in others}
    total = sum(len(names) for _, names in parts[1:])
    text = (
        f"{len(held):,} of {total:,} held-out images have a copy among the training images"
        if why
        else ""
    )
    rows = np.array(sorted(why), dtype=np.int64)
    return Finding("leaks", "copies of held-out images", rows, why, text)


def _own_leaks(
    copies: Copies, chosen: np.ndarray, n: int, parts: Sequence[tuple[str, Names]]
) -> Finding:
    """Find copies on both sides of the split that training makes by names."""
    why: dict[int, str] = {}
    groups: list[tuple[int, ...]] = []
    names = parts[0][1]
    for members in _members(copies.group[:n]):
        out = [row for row in members if chosen[row]]
        rest = [row for row in members if not chosen[row]]
        if out and rest:
            groups.append((*out[:1], *rest))
            why |= dict.fromkeys(rest, f"a copy of {names[out[0]]}, which training holds out")
    text = (
        f"{len(groups):,} of {int(chosen.sum()):,} images that training holds out by name have a"
        " copy among the others; a list keeps them on one side"
        if why
        else ""
    )
    rows = np.array(sorted(why), dtype=np.int64)
    return Finding("leaks", "copies of held-out images", rows, why, text, tuple(groups))


def _simple(
    kind: str, title: str, found: np.ndarray, why: Callable[[int], str], said: str
) -> Finding:
    rows = np.flatnonzero(found)
    if len(rows) > _A_PROPERTY * len(found):
        said = f"{said}: this is what the set is like"
    return Finding(
        kind, title, rows, {int(row): why(int(row)) for row in rows}, said if len(rows) else ""
    )


def _grey(measured: Measured) -> Finding:
    """Find grey images in a set of coloured ones, or the other way round."""
    found, good = grey(measured), measured.good
    share = found[good].mean() if good.any() else 0.0
    if share > _A_PROPERTY:
        other = good & ~found if share < 1 else np.zeros_like(found)
        return _simple("grey", "in colour among grey", other, lambda row: "in colour", "in colour")
    return _simple("grey", "grey among colour", found, lambda row: "grey", "without colour")
