"""What an audit says: findings, each with the pictures that it is about, and all of it together."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ddpm_lib.core.markup import card, facts, never_fails, note, table
from ddpm_lib.core.registry import unknown_name
from ddpm_lib.data.auditing.copies import Search
from ddpm_lib.data.auditing.facts_of_sets import (
    ClassCount,
    Colours,
    CropLoss,
    Spread,
    classes_said,
    crop_said,
    search_said,
    sizes_said,
    spread_said,
)
from ddpm_lib.data.auditing.value_columns import ValueColumns
from ddpm_lib.data.file_lists import write_list
from ddpm_lib.data.names import Names

DROPPED = ("unreadable", "constant", "exact", "near", "leaks")
"""What a list leaves out unless it is told otherwise."""
KINDS = (
    "unreadable",
    "exact",
    "near",
    "conflicts",
    "leaks",
    "constant",
    "blurry",
    "enlarged",
    "border",
    "grey",
    "small",
)
"""Findings about pictures, which a list can leave out."""
_DUPLICATES = "duplicates"
"""Stands for exact and near."""


@dataclass(frozen=True)
class Finding:
    """One kind of thing that was found.

    Attributes:
        kind: One of `KINDS`.
        title: Its name for people.
        rows: The pictures of the training part that it is about, ascending, int64.
        why: By row, what is the matter with that picture.
        said: What was found, in a sentence; empty where there is nothing.
        groups: Groups of rows that belong together, of copies.
    """

    kind: str
    title: str
    rows: np.ndarray
    why: Mapping[int, str]
    said: str
    groups: tuple[tuple[int, ...], ...] = ()

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, repr=False)
class Audit:
    """What an audit of a set found. Print it for a table; `save_list` writes a list to train on.

    Attributes:
        name: What the data is called.
        parts: Names of the parts and numbers of their images; the first is trained on.
        names: Names of the images of the part that is trained on.
        findings: By kind, see `KINDS`; also those that found nothing.
        classes: The classes, or empty.
        sizes: Width and height of the images, int (n, 2).
        widths: Their spread.
        heights: Their spread.
        ratios: Spread of width over height.
        crop: What a centre crop loses.
        colours: Values of the images.
        grey_files: Whether all images are grey.
        notes: What opening the data said, and what else is to be known.
        search: How the search for near-duplicates went.
        near: Numbers of groups of copies and near-copies, and of those that a list that was looked
            at keeps together, per image, int64 (n,).
        whole: Number of images, with those that such a list leaves out.
        seconds: How long it took.
        cpu_seconds: How long all processes of it computed.
        pictures: Small pictures for the page, uint8 (h, w, 3), by row.
        held_out_pictures: The same of held-out images, by a number that `leak_of` gives.
        leak_of: By row, the held-out images that it is a copy of: numbers and names.
        values: What measured values are like, in their units; None for pictures.
        command: How `ddpm train` opens the same data.
    """

    name: str
    parts: tuple[tuple[str, int], ...]
    names: Names
    findings: Mapping[str, Finding]
    classes: tuple[ClassCount, ...]
    sizes: np.ndarray
    widths: Spread
    heights: Spread
    ratios: Spread
    crop: CropLoss
    colours: Colours
    grey_files: bool
    notes: tuple[str, ...]
    search: Search
    near: np.ndarray
    whole: int
    seconds: float
    cpu_seconds: float
    command: str
    pictures: Mapping[int, np.ndarray] = field(default_factory=dict)
    held_out_pictures: Mapping[int, np.ndarray] = field(default_factory=dict)
    leak_of: Mapping[int, Sequence[tuple[int, str]]] = field(default_factory=dict)
    values: ValueColumns | None = None

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, kind: str) -> Finding:
        """Return the finding of a kind.

        Raises:
            KeyError: If there is no such kind, naming those there are.
        """
        if kind not in self.findings:
            raise KeyError(unknown_name("finding", kind, tuple(self.findings)))
        return self.findings[kind]

    def found(self) -> list[Finding]:
        """Return the findings that are about any image."""
        return [finding for finding in self.findings.values() if len(finding)]

    def names_of(self, kind: str) -> list[str]:
        """Return the names of the images that a finding is about."""
        return [self.names[row] for row in self[kind].rows.tolist()]

    def left_out(self, drop: Iterable[str] | None = None) -> dict[int, str]:
        """Return the rows that a list leaves out, with the reason.

        Args:
            drop: Kinds of findings; default: `DROPPED`. "duplicates" stands for exact and near.

        Raises:
            ValueError: If there is no such kind.
        """
        reasons: dict[int, str] = {}
        for kind in dropped_kinds(drop):
            finding = self.findings[kind]
            for row in finding.rows.tolist():
                reasons.setdefault(row, finding.why[row])
        return dict(sorted(reasons.items()))

    def save_list(self, path: str | os.PathLike[str], drop: Iterable[str] | None = None) -> int:
        """Write the list of the images to train on, for `files=` and `ddpm train --files`; the
        same audit makes the same list.

        Copies that are not left out get groups, so that a split keeps them on one side; groups of a
        list that was looked at stay.

        Args:
            path: The file.
            drop: What is left out, see `left_out`.

        Returns:
            How many images the list has.

        Raises:
            ValueError: If nothing would be left.
        """
        chosen = dropped_kinds(drop)
        out = self.left_out(chosen)
        rows = [row for row in range(len(self)) if row not in out]
        if not rows:
            raise ValueError("Nothing would be left of the set. Leave out fewer kinds of images.")
        members = np.bincount(self.near[rows], minlength=int(self.near.max(initial=0)) + 1)
        numbers = {int(g): k for k, g in enumerate(dict.fromkeys(self.near[rows].tolist()))}
        groups = [
            numbers[int(self.near[row])] if members[self.near[row]] > 1 else None for row in rows
        ]
        called = shlex.quote(os.path.basename(os.fspath(path)))
        write_list(
            path,
            (self.names.raw(row) for row in rows),
            groups,
            [
                f"images to train on: {len(rows):,} of {len(self):,}, left out:"
                f" {', '.join(chosen) or 'nothing'}",
                f"ddpm train {self.command} --files {called}",
            ],
            ((self.names.raw(row), why) for row, why in out.items()),
            total=self.whole,
        )
        return len(rows)

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as plain values for JSON, images by their names."""
        return {
            "data": self.name,
            "parts": [{"name": name, "images": count} for name, count in self.parts],
            "images": len(self),
            "findings": {
                kind: {
                    "images": len(finding),
                    "said": finding.said,
                    "names": [self.names[row] for row in finding.rows.tolist()],
                    "why": [finding.why[row] for row in finding.rows.tolist()],
                    "groups": [[self.names[row] for row in group] for group in finding.groups],
                }
                for kind, finding in self.findings.items()
            },
            "classes": [vars(one) for one in self.classes],
            "width": vars(self.widths),
            "height": vars(self.heights),
            "aspect_ratio": vars(self.ratios),
            "crop_loss": {"mean": self.crop.mean, "of_all_pixels": self.crop.total},
            "values": vars(self.colours) if self.values is None else self.values.to_dict(),
            "search": {
                "agreement_needed": self.search.needed,
                "false_alarm_rate": self.search.alarm_rate,
                "decoys": self.search.decoys,
                "trial_copies": {
                    kind: {"made": made, "found": seen}
                    for kind, (made, seen) in self.search.probes.items()
                },
            },
            "notes": list(self.notes),
            "seconds": round(self.seconds, 1),
            "cpu_seconds": round(self.cpu_seconds, 1),
        }

    def summary(self) -> list[tuple[str, str, str]]:
        """Return rows of a table: what was looked for, how many images, what was found."""
        return [
            (finding.title, f"{len(finding):,}" if len(finding) else "none", finding.said)
            for finding in self.findings.values()
        ]

    def properties(self) -> list[tuple[str, str]]:
        """Return what the set is like: names and values."""
        return [
            ("images", " + ".join(f"{count:,} ({name})" for name, count in self.parts)),
            ("size", sizes_said(self.widths, self.heights)),
            ("width / height", spread_said(self.ratios, "{:.2f}")),
            ("centre crop loses", crop_said(self.crop, self.names)),
            ("classes", classes_said(self.classes)),
            *(self._of_pictures() if self.values is None else self.values.properties()),
            ("search for copies", search_said(self.search)),
        ]

    def _of_pictures(self) -> list[tuple[str, str]]:
        found = self.colours
        return [
            ("values", f"{found.least} … {found.most} of 0 … 255"),
            ("mean", ", ".join(f"{value:.3f}" for value in found.mean)),
            (
                "σ of the data",
                f"{found.sigma:.3f} in [-1, 1] (root mean square {found.root:.3f})",
            ),
        ]

    def __str__(self) -> str:
        """Return what the set is like and what was found, in lines."""
        wide = max(len(name) for name, _ in self.properties())
        lines = [f"{self.name}: {len(self):,} images"]
        lines += [f"  {name:{wide}}  {value}" for name, value in self.properties() if value]
        lines.append("")
        for finding in self.found():
            some = f"{len(finding):,} image{'s' * (len(finding) != 1)}"
            lines.append(f"  {finding.title}: {some}; {finding.said}")
        if not self.found():
            lines.append("  Nothing was found that keeps an image from being trained on.")
        return "\n".join(lines)

    __repr__ = __str__

    @never_fails
    def _repr_html_(self) -> str:
        rows = [row for row in self.summary() if row[1] != "none"]
        return card(
            f"{self.name}: {len(self):,} images",
            facts(self.properties()),
            table(("found", "images", ""), rows) if rows else note("Nothing was found."),
        )


def dropped_kinds(drop: Iterable[str] | None) -> list[str]:
    """Return kinds of findings in the order of `KINDS`.

    Raises:
        ValueError: If one is unknown.
    """
    wanted: list[str] = []
    for kind in DROPPED if drop is None else ([drop] if isinstance(drop, str) else drop):
        if kind == _DUPLICATES:
            wanted += ["exact", "near"]
        elif kind in KINDS:
            wanted.append(kind)
        else:
            raise ValueError(unknown_name("kind to drop", kind, (*KINDS, _DUPLICATES)))
    return [kind for kind in KINDS if kind in wanted]
