"""Folders of pictures in pairs, such as input/ and target/, which are no two classes."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

_TELLING = {
    "target": ("input", "source", "src", "condition", "cond", "noisy", "degraded"),
    "output": ("input",),
    "tgt": ("src", "source", "input"),
    "trg": ("src", "source"),
    "gt": (
        "lq",
        "lr",
        "low",
        "noisy",
        "blur",
        "blurry",
        "hazy",
        "rain",
        "rainy",
        "degraded",
        "input",
        "source",
    ),
    "hr": ("lr", "lq"),
    "hq": ("lq", "lr"),
    "highres": ("lowres",),
    "groundtruth": ("input", "degraded", "noisy"),
    "clean": ("noisy", "noise", "degraded", "rainy", "rain", "input"),
    "sharp": ("blur", "blurry", "blurred"),
    "clear": ("hazy", "haze"),
    "norain": ("rain", "rainy"),
    "shadowfree": ("shadow",),
}
"""What pairs are called, the one to learn first: as classes these names would say nothing."""
_DOUBTFUL = {"b": ("a",), "y": ("x",), "high": ("low",), "after": ("before",), "normal": ("low",)}
"""Names that classes have as well: counted files in both are no proof."""
_IDLE = frozenset(
    ("images", "image", "imgs", "img", "pictures", "photos", "data", "set", "folder", "dir")
)
_ALIKE = 0.8
_FEWEST = 2


def find_pairs(
    root: Path, names: Sequence[bytes], siblings: Mapping[str, Sequence[str]]
) -> tuple[str, bool] | None:
    """Find two folders side by side, of telling names, whose files have the same names.

    Args:
        root: The folder.
        names: Its pictures, relative.
        siblings: The names of the folders in each folder, "" for the root.

    Returns:
        What was found, in words, and whether it is certain; None where there is no such pair.
    """
    for above, inner in siblings.items():
        chosen = _telling(inner) if len(inner) == 2 else None
        if chosen is None:
            continue
        first, second, known = chosen
        a, b = (
            _stems(names, f"{above}/{name}" if above else name, known) for name in (first, second)
        )
        both = a & b
        if len(both) < max(_FEWEST, _ALIKE * max(len(a), len(b))):
            continue
        place = root / above
        text = (
            f"{str(place)!r} holds {first!r} and {second!r}, {len(both):,} files of the same names"
            " in both: those look like pairs, not classes. Open the one to learn, such as"
            f" {str(place / second)!r};"
        )
        return text, known or not all(stem.rpartition("/")[2].isdigit() for stem in both)
    return None


def _telling(names: Sequence[str]) -> tuple[str, str, bool] | None:
    """Return the two names in the order (given, to learn), and whether only pairs are called
    that.
    """
    words = [[word for word in re.split(r"[^a-z]+", name.lower()) if word] for name in names]
    common = set(words[0]) & set(words[1])
    plain = ["".join(word for word in own if word not in common | _IDLE) for own in words]
    for table, known in ((_TELLING, True), (_DOUBTFUL, False)):
        for k in (0, 1):
            learned, given = (_singular(plain[k], table), plain[1 - k])
            if learned is not None and (
                given in table[learned] or given.removesuffix("s") in table[learned]
            ):
                return names[1 - k], names[k], known
    return None


def _singular(word: str, table: Mapping[str, Sequence[str]]) -> str | None:
    return next((form for form in (word, word.removesuffix("s")) if form in table), None)


def _stems(names: Sequence[bytes], folder: str, bare: bool) -> set[str]:
    """Return the names below a folder without extension; if `bare` without factor (0001x4) and own
    word (0001_lr).
    """
    start = os.fsencode(folder + "/")
    own = re.escape(re.split(r"[^a-z]+", folder.rpartition("/")[2].lower())[-1])
    found = set()
    for name in names:
        if name.startswith(start):
            stem = os.fsdecode(os.path.splitext(name[len(start) :])[0]).lower()
            if bare:
                stem = re.sub(r"x[2348]$", "", stem)
                stem = re.sub(rf"[_\-. ]{own}$", "", stem) if own else stem
            found.add(stem)
    return found
