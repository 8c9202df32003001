"""Layouts of folders that are not one class per sub-folder: splits, masks, two domains,
thumbnails.
"""

from __future__ import annotations

import os
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from ddpm_lib.data.pairs import find_pairs
from ddpm_lib.data.split_names import best_split, split_of

_DOMAINS = re.compile(r"(train|test|val)_?[ab]", re.IGNORECASE)
_PREPARED = frozenset(("train_data", "eval_data", "normalized_eval_data"))
_PICTURES = frozenset(
    (
        "images",
        "image",
        "imgs",
        "img",
        "jpegimages",
        "photos",
        "pictures",
        "rgb",
        "inputs",
        "input",
        "imagestr",
        "leftimg8bit",
        "original",
        "originals",
        "raw",
    )
)
_MASKS = frozenset(
    (
        "masks",
        "mask",
        "labels",
        "label",
        "annotations",
        "annotation",
        "annots",
        "gt",
        "gts",
        "groundtruth",
        "labelstr",
        "seg",
        "segs",
        "segmentation",
        "segmentations",
        "segmentationclass",
        "segmentationobject",
        "gtfine",
        "trimaps",
    )
)
_MASK_FILE = re.compile(
    r"(.+?)[_\-. ](masks?|seg|segmentation|labels?|gt|groundtruth|ground_truth|matte)(_?\d+)?"
)
_MASK_FIRST = re.compile(r"(?:masks?|seg|segmentation|gt|groundtruth)[_\-. ](.+)")
_PICTURE_FILE = re.compile(r"(.+?)[_\-. ](?:sat|image|img|rgb|photo|original|orig|leftImg8bit)")
_THUMBS = frozenset(["thumbs", "thumbnails", "thumbnail", "thumb", "_thumbs", "previews"])
_ASKED = (
    'labels="folder" (--labels folder) takes them for classes, labels="none" for pictures'
    " without any"
)


def judge(root: Path, names: Sequence[bytes], refuse: bool) -> list[str]:
    """Look for splits, masks and other layouts that are no classes.

    Args:
        root: The folder.
        names: Its pictures, relative.
        refuse: Whether to raise where it is clear; else it is said.

    Returns:
        Notes.

    Raises:
        ValueError: If a layout is found that must not be trained on as a whole, saying how.
    """
    folders = Counter(os.fsdecode(os.path.dirname(name)) for name in names)
    tops = sorted({folder.split("/")[0] for folder in folders} - {""})
    _refuse_sysu(root, tops)
    found = (
        _splits(root, tops, folders)
        or _masks_beside(root, folders)
        or _masks_of(root, names)
        or _mask_files(names)
    )
    pairs = find_pairs(root, names, _siblings(folders)) if found is None else None
    found = pairs[0] if pairs is not None and pairs[1] else found
    if found is not None and refuse:
        raise ValueError(f"{found} {_ASKED}.")
    notes = [] if found is None else [found.rstrip(";")]
    notes += (
        [pairs[0].replace("look like", "may be").rstrip(";")]
        if pairs is not None and not pairs[1]
        else []
    )
    alone = [name for name in tops if split_of(name)] if found is None and len(tops) > 1 else []
    notes += [
        f"the sub-folder {name!r} is taken for a class like the others, not for a split"
        for name in alone
    ]
    masks = (
        [name for name in tops if name.lower() in _MASKS - {"mask", "label"}]
        if found is None
        else []
    )
    if masks and len(tops) > 1:
        notes.append(
            f"the sub-folder {masks[0]!r} is taken for a class like the others: does it hold masks?"
        )
    return notes


def _refuse_sysu(root: Path, tops: Sequence[str]) -> None:
    if any(
        (root / name / "contours").is_dir() and (root / name / "images").is_dir() for name in tops
    ):
        raise ValueError(
            f"{str(root)!r} is the raw SYSU-Shape dataset: its contours/ are edge maps, not photos."
            f" Prepare it first: `ddpm prepare sysu {shlex.quote(str(root))} sysu-64 --size 64` (in"
            " Python ddpm_lib.data.prepare_sysu), and train on the folder sysu-64/train_data that"
            " it writes."
        )


def _splits(root: Path, tops: Sequence[str], folders: Counter[str]) -> str | None:
    kinds = {name: split_of(bare) for name, bare in zip(tops, _without_common_words(tops))}
    domains = [name for name in tops if _DOMAINS.fullmatch(name)]
    if len(domains) > 1 and len(domains) == len(tops):
        first = best_split(domains)
        return (
            f"The sub-folders of {str(root)!r} look like two domains and splits, not classes:"
            f" {', '.join(tops)}. Open one of them ({str(root / first)!r}), or pass split={first!r}"
            f" (--split {first});"
        )
    all_splits = bool(tops) and all(
        kind or name.lower() in _PREPARED for name, kind in kinds.items()
    )
    if all_splits or {"train", "other"} <= set(kinds.values()):
        bare = dict(zip(_without_common_words(tops), tops))
        first = bare[
            best_split([name for name, whole in bare.items() if kinds[whole]] or list(bare))
        ]
        return (
            f"The sub-folders of {str(root)!r} look like splits, not classes: {', '.join(tops)}."
            f" Open one of them ({str(root / first)!r}), or pass split={first!r} (--split {first});"
        )
    for above, inner in sorted(_siblings(folders).items()):
        parts = [split_of(bare) for bare in _without_common_words(inner)] if above else []
        if {"train", "other"} <= set(parts):
            shown = [f"{above}/{name}" for name, part in zip(inner, parts) if part]
            first = f"{above}/{inner[parts.index('train')]}"
            return (
                f"Splits lie deeper in {str(root)!r}: {', '.join(shown[:6])}. Open one of them,"
                f" such as {str(root / first)!r};"
            )
    return None


def _siblings(folders: Iterable[str]) -> dict[str, list[str]]:
    """Return the names of the folders in each folder, "" for the root, of those that pictures lie
    in or below.
    """
    there = {
        "/".join(folder.split("/")[:k])
        for folder in folders
        if folder
        for k in range(1, folder.count("/") + 2)
    }
    found: dict[str, list[str]] = {}
    for folder in sorted(there):
        above, _, name = folder.rpartition("/")
        found.setdefault(above, []).append(name)
    return found


def _without_common_words(names: Sequence[str]) -> list[str]:
    """Leave out the words that several names begin with: seg_train and seg_test are train and
    test.
    """
    words = [re.split(r"[_\-. ]+", name) for name in names]
    while (
        len(words) > 1
        and all(len(w) > 1 for w in words)
        and len({w[0].lower() for w in words}) == 1
    ):
        words = [w[1:] for w in words]
    return ["_".join(w) for w in words]


def _masks_beside(root: Path, folders: Counter[str]) -> str | None:
    """Find a folder of masks beside one of pictures, at any depth."""
    for above, names in _siblings(folders).items():
        plain = {name: re.sub(r"[_\- ]", "", name.lower()) for name in names}
        masks = [name for name in names if plain[name] in _MASKS]
        pictures = [name for name in names if plain[name] in _PICTURES]
        loose = folders.get(above, 0) if len(names) == len(masks) and above == "" else 0
        if masks and (pictures or loose):
            way = (
                f"Pass {str(root / above / pictures[0])!r}"
                if pictures
                else "Move them to another place"
            )
            return (
                f"{str(root / above)!r} holds {masks[0]!r} beside"
                f" {'the pictures' if not pictures else repr(pictures[0])}: those look like masks,"
                f" not pictures. {way};"
            )
    return None


def _masks_of(root: Path, names: Sequence[bytes]) -> str | None:
    """Find a folder such as train_masks beside train, whose files have the names of those beside
    it.
    """
    stems: dict[str, set[str]] = {}
    for raw in names:
        folder, _, file = os.fsdecode(os.path.splitext(raw)[0]).rpartition("/")
        stems.setdefault(folder, set()).add(_key(file)[1])
    for folder in sorted(stems):
        above, _, name = folder.rpartition("/")
        words = re.split(r"[_\-. ]+", name.lower())
        rest = [word for word in words if word not in _MASKS - {"mask", "label"}]
        if not rest or len(rest) == len(words):
            continue
        for other in sorted(stems):
            their = re.split(r"[_\-. ]+", other.rpartition("/")[2].lower())
            alike = other.rpartition("/")[0] == above and rest in (
                their,
                [w for w in their if w not in _PICTURES],
            )
            if alike and len(stems[folder] & stems[other]) >= 0.5 * len(stems[folder]):
                return (
                    f"{str(root / above)!r} holds {name!r} beside {other.rpartition('/')[2]!r}:"
                    f" those look like masks, not pictures. Pass {str(root / other)!r};"
                )
    return None


def _key(base: str) -> tuple[str, str]:
    """Say of a file's name without extension what it is, "mask", "picture" or "", and which picture
    it belongs to.
    """
    found = _MASK_FILE.fullmatch(base)
    if found:
        return "mask", found.group(1).lower()
    found = _MASK_FIRST.fullmatch(base)
    if found:
        return "mask", found.group(1).lower()
    found = _PICTURE_FILE.fullmatch(base)
    return ("picture", found.group(1).lower()) if found else ("", base.lower())


def _mask_files(names: Sequence[bytes]) -> str | None:
    """Find files like x_mask.png beside x.png or x_image.png, if they are a good part of all."""
    stems = {os.fsdecode(os.path.splitext(name)[0]) for name in names}
    there, marked = set(), []
    for stem in sorted(stems):
        folder, _, base = stem.rpartition("/")
        what, key = _key(base)
        if what == "mask":
            marked.append((stem, folder, key))
        else:
            there |= {(folder, key), (folder, base.lower())}
    masks = [stem for stem, folder, key in marked if (folder, key) in there]
    if len(masks) < 0.2 * len(names) or not masks:
        return None
    return (
        f"{len(masks):,} of {len(names):,} files look like masks of others: {', '.join(masks[:3])}."
        " Move them to another place;"
    )


def are_thumbnails(names: Sequence[bytes]) -> list[bool]:
    """Say of each picture whether it is a small copy of another one, in a folder called thumbs or
    the like.
    """

    def small(name: bytes) -> bool:
        return any(
            part in _THUMBS for part in os.fsdecode(os.path.dirname(name)).lower().split("/")
        )

    def stem(name: bytes) -> str:
        base = os.path.splitext(os.fsdecode(os.path.basename(name)))[0].lower()
        return re.sub(r"^(tn|thumb|thumbnail)_|[_\-.](tn|thumb|thumbnail|small)$", "", base)

    if not any(map(small, names)):
        return [False] * len(names)
    folders: dict[bytes, set[str]] = {}
    for name in names:
        if not small(name):
            folders.setdefault(os.path.dirname(name), set()).add(stem(name))
    marks = []
    for name in names:
        above = os.path.dirname(os.path.dirname(name))
        beside = [
            these
            for folder, these in folders.items()
            if folder == above or os.path.dirname(folder) == above
        ]
        same_name = os.fsdecode(os.path.basename(name)).lower()
        in_parent = stem(name) in folders.get(above, set())
        tagged = stem(name) != os.path.splitext(same_name)[0] and any(
            stem(name) in these for these in beside
        )
        in_images = any(
            stem(name) in these and os.fsdecode(os.path.basename(folder)).lower() in _PICTURES
            for folder, these in folders.items()
            if os.path.dirname(folder) == above
        )
        marks.append(small(name) and (in_parent or tagged or in_images))
    return marks
