"""`audit`: look at a set of images before training on it."""

from __future__ import annotations

import math
import os
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from ddpm_lib.core.keywords import answers_wrong_keywords
from ddpm_lib.core.spelling import option
from ddpm_lib.data.auditing.audit_findings import DROPPED, KINDS, Audit, Finding
from ddpm_lib.data.auditing.audited_parts import Part
from ddpm_lib.data.auditing.copies import Search, find_copies
from ddpm_lib.data.auditing.facts_of_sets import ClassCount, Colours, CropLoss, Spread
from ddpm_lib.data.auditing.looking import SIDE, Measured, joined_parts, measure_all
from ddpm_lib.data.auditing.opening_parts import PartOptions, measuring_spec, open_parts
from ddpm_lib.data.auditing.picking import LEAST_SPREAD, Copies, all_copies, find_all
from ddpm_lib.data.auditing.rules import crop_losses, grey
from ddpm_lib.data.auditing.showing import held_out_pictures, pictures_of, to_show
from ddpm_lib.data.auditing.trial_copies import trial_rows
from ddpm_lib.data.auditing.value_findings import apart, without_looks
from ddpm_lib.data.auditing.value_pictures import Measuring, ValuePictures
from ddpm_lib.data.checking import ReadingOptions
from ddpm_lib.data.decode import FLAG_NOTES, UPSCALED
from ddpm_lib.data.decode_spec import MAX_PIXELS, Background, DecodeSpec, make_spec, size_pair
from ddpm_lib.data.file_lists import Files
from ddpm_lib.data.listed_source import ListedSource
from ddpm_lib.data.names import ChosenNames, Names
from ddpm_lib.data.opening_words import called
from ddpm_lib.data.source import BadImagesError, Source
from ddpm_lib.data.split import hold_out, joined

Log = Callable[[str], None]


@answers_wrong_keywords
def audit(
    data: Any = None,
    *,
    val_data: Any = None,
    image_size: int | Sequence[int] | None = None,
    split: str | None = None,
    files: Files | None = None,
    labels: Literal["auto", "folder", "prefix", "none"] = "auto",
    image_column: str | None = None,
    label_column: str | None = None,
    data_root: str | os.PathLike[str] | None = None,
    download: bool = False,
    background: Background = "white",
    max_pixels: int = MAX_PIXELS,
    value_range: Sequence[float] | None = None,
    frames: Literal["first", "all"] = "first",
    normalize: Literal["affine", "quantile"] | None = None,
    channels: int | None = None,
    slice_axis: int | None = None,
    few_images: int = 50,
    val_fraction: float = 0.05,
    seed: int = 0,
    num_workers: int | None = None,
    log: Log | None = None,
) -> Audit:
    """Look at a set of images before training on it; nothing is changed or deleted.

    It finds copies, exact ones and those that were saved again, mirrored, cut, scaled, made
    brighter, framed or turned a little; copies of held-out images among training images; files
    that cannot be used; images that are blurry, of one colour, enlarged or mostly border; grey ones
    among others in colour; what a centre crop loses; sizes, classes and values. The search for
    copies is tried on copies made of the set's own images, and on decoys, so that it says itself
    how far it can be trusted.

    Args:
        data: What `open_dataset` takes. Of data with several splits the training split is looked
            at, and the others are what is held out.
        val_data: Held-out images, likewise; default: the other splits, else those that training
            holds out by a hash of the name.
        image_size: The size to train at, or (height, width): for what a centre crop loses and which
            images are smaller; default: a square of no certain size.
        split: The split to look at; the others are then not looked at.
        files: A list of the images to look at, see `open_dataset`.
        labels: See `open_dataset`, as for all options down to `frames`.
        image_column: Column of the images.
        label_column: Column of the labels.
        data_root: Where the files of torchvision's sets lie.
        download: Whether to download them.
        background: Colour under transparent pixels.
        max_pixels: Larger images are refused.
        value_range: Black and white of images of more than 8 bits.
        frames: "first" or "all".
        normalize: Take the data for measured values, see `open_dataset`; default: where no picture
            can hold them, as HDF5, NIfTI, DICOM or floats. What pictures look like (blurry,
            enlarged, grey, border) is not asked of those, and slices of one volume are no copies of
            each other.
        channels: How many channels measured values have; default: as the first entry says.
        slice_axis: The axis along which volumes are cut; default: across the coarsest one.
        few_images: Classes with fewer images are named.
        val_fraction: What training holds out, where nothing else is held out.
        seed: Of that choice, and of the search.
        num_workers: Processes that read; default: as many as there are CPUs.
        log: Is given progress, line by line.

    Returns:
        An `Audit`: print it, or `save_list`.

    Raises:
        FileNotFoundError: If there is no such data.
        BadImagesError: If no image can be used.
        ValueError: If an option or the layout of the data is wrong.
    """
    if not 0 <= val_fraction < 1:
        raise ValueError(f"{option('val_fraction')} must lie in [0, 1); got {val_fraction}.")
    begun, computed = time.monotonic(), _cpu_seconds()
    frame = (1, 1) if image_size is None else size_pair(image_size)
    spec = measuring_spec(make_spec(SIDE, 3, "stretch", background, max_pixels, value_range))
    reading = {
        "image_column": image_column,
        "label_column": label_column,
        "frames": frames,
        "data_root": data_root,
        "download": download,
    }
    said = {"val_data": val_data, "labels": labels, **reading, "background": background}
    said |= {"max_pixels": max_pixels, "value_range": value_range}
    workers = ReadingOptions("skip", "none", 0, num_workers, True, None, log).workers
    asked = Measuring(normalize, channels, slice_axis)
    options = PartOptions(spec, labels, reading, split, files, num_workers == 0, asked)
    opened = open_parts(data, val_data, options)
    first = None if opened[0][0] == "training" else opened[0][0]
    parts = [
        _measured(name, source, spec, workers, log, not k)
        for k, (name, source) in enumerate(opened)
    ]
    train = parts[0]
    whole = joined_parts([part.measured for part in parts])
    shows = whole.good & (whole.spread > LEAST_SPREAD)
    search = find_copies(whole, shows, train.measured.probes, seed, log)
    search = search.within(apart(search.pairs, [part.source for part in parts]))
    held = np.arange(len(whole)) >= len(train.source)
    copies = all_copies(whole, search, held)
    chosen = _held_out(train, val_fraction, seed) if len(parts) == 1 else None
    findings = find_all(train.source, train.measured, whole, copies, chosen, _names(parts))
    if isinstance(train.source, ValuePictures):
        findings = without_looks(findings)
    findings["small"] = _smaller(train.measured, frame, image_size is not None)
    name = called(data).strip("'") if data is not None else "shapes"
    made = _told(name, parts, findings, copies, search, _crop(train.measured, frame), few_images)
    return replace(
        made,
        command=" ".join([_command(data, first, image_size, train.source), *_flags(said)]),
        seconds=time.monotonic() - begun,
        cpu_seconds=_cpu_seconds() - computed,
    )


def _told(
    name: str,
    parts: Sequence[Part],
    findings: Mapping[str, Finding],
    copies: Copies,
    search: Search,
    crop: CropLoss,
    few_images: int,
) -> Audit:
    """Put together what was found."""
    train = parts[0]
    measured, good = train.measured, train.measured.good
    shown = to_show(findings, crop, len(train.source))
    return Audit(
        name=name,
        parts=tuple((part.name, len(part.source)) for part in parts),
        names=train.source.names,
        findings={kind: findings[kind] for kind in KINDS},
        classes=_classes(train, findings),
        sizes=measured.sizes,
        widths=Spread.of(measured.sizes[good, 0]),
        heights=Spread.of(measured.sizes[good, 1]),
        ratios=Spread.of(_ratios(measured)),
        crop=crop,
        colours=_colours(measured),
        grey_files=bool(grey(measured)[good].all()),
        notes=(*train.source.notes, *_notes(train, few_images)),
        search=search,
        near=_together(copies.group[: len(train.source)], train.source.listed_groups),
        whole=_whole(train.source),
        seconds=0.0,
        cpu_seconds=0.0,
        command="",
        pictures=pictures_of(train, shown, 0),
        held_out_pictures=held_out_pictures(parts, findings["leaks"], copies),
        leak_of=copies.leaks(_names(parts)),
        values=train.source.columns(good) if isinstance(train.source, ValuePictures) else None,
    )


def _together(copies: np.ndarray, listed: np.ndarray | None) -> np.ndarray:
    """Return groups of copies, joined with those of the list that was looked at."""
    found = joined(copies, listed)
    return copies if found is None else found


def _whole(source: Source) -> int:
    """Return how many images there are, with those that a list leaves out."""
    if isinstance(source, ValuePictures):
        return len(source.source)
    return len(source.whole) if isinstance(source, ListedSource) else len(source)


def _measured(
    name: str, source: Source, spec: DecodeSpec, workers: int, log: Log | None, trials: bool
) -> Part:
    """Read a part.

    Raises:
        BadImagesError: If nothing of it can be used.
    """
    rows = trial_rows(len(source)) if trials else {}
    measured = measure_all(source, spec, workers, log, rows)
    if not measured.good.any():
        bad = [(source.names[row], why) for row, why in sorted(measured.bad.items())]
        raise BadImagesError(bad, len(source), "None is left: mend what is said above.")
    if source.gives_labels:
        source.take_labels(measured.labels)
    return Part(name, source, measured)


def _held_out(train: Part, fraction: float, seed: int) -> np.ndarray | None:
    """Return which images training holds out, by the names of those that can be used."""
    good = np.flatnonzero(train.measured.good)
    count = min(1000, max(1, math.floor(len(good) * fraction))) if fraction else 0
    if not count or len(good) < 10:
        return None
    names = ChosenNames(train.source.names, good)
    labels = None if train.source.labels is None else train.source.labels[good]
    twins = np.unique(train.measured.pixels[good], return_inverse=True)[1].reshape(-1)
    for groups in (getattr(train.source, "groups", None), train.source.listed_groups):
        together = joined(twins, None if groups is None else groups[good])
        twins = twins if together is None else together
    if len(np.unique(twins)) < 2:
        return None
    held = np.zeros(len(train.source), dtype=bool)
    held[good] = hold_out(names, labels, twins, count, seed)
    return held


def _names(parts: Sequence[Part]) -> list[tuple[str, Names]]:
    return [(part.name, part.source.names) for part in parts]


def _smaller(measured: Measured, frame: tuple[int, int], asked: bool) -> Finding:
    """Find images that the training size would enlarge."""
    small = np.zeros(len(measured), dtype=bool)
    if asked:
        small = (measured.sizes[:, 0] < frame[1]) | (measured.sizes[:, 1] < frame[0])
        small &= measured.good
    rows = np.flatnonzero(small)
    why = {
        int(row): "smaller than the training size ({}×{})".format(*measured.sizes[row])
        for row in rows
    }
    said = ""
    if len(rows):
        width, height = measured.sizes[measured.good].min(0).tolist()
        said = (
            f"{len(rows):,} would be enlarged to {frame[1]}×{frame[0]}; the smallest width is"
            f" {width}, the smallest height {height}"
        )
    return Finding("small", "smaller than the training size", rows, why, said)


def _crop(measured: Measured, frame: tuple[int, int]) -> CropLoss:
    lost = crop_losses(measured.sizes, frame)
    good = measured.good
    area = measured.sizes[good].astype(np.float64).prod(1)
    order = np.argsort(-lost, kind="stable")
    worst = tuple(int(row) for row in order[:12] if lost[row] > 0.05)
    total = float((lost[good] * area).sum() / max(1.0, area.sum()))
    return CropLoss(frame, lost, float(lost[good].mean()), total, worst)


def _ratios(measured: Measured) -> np.ndarray:
    sizes = measured.sizes[measured.good].astype(np.float64)
    return np.asarray(sizes[:, 0] / np.maximum(1, sizes[:, 1]))


def _colours(measured: Measured) -> Colours:
    good = measured.good
    mean = measured.mean[good].astype(np.float64)
    square = measured.square[good].astype(np.float64).mean(0)
    middle = mean.mean(0)
    variance = np.maximum(0, square - middle**2)
    # In [-1, 1] a value v of [0, 1] is 2 v - 1.
    root = float(np.sqrt((4 * square - 4 * middle + 1).mean()))
    return Colours(
        int(measured.low[good].min()),
        int(measured.high[good].max()),
        tuple(middle.tolist()),
        tuple(np.sqrt(variance).tolist()),
        float(2 * np.sqrt(variance.mean())),
        root,
    )


def _classes(train: Part, findings: Mapping[str, Finding]) -> tuple[ClassCount, ...]:
    labels, names = train.source.labels, train.source.class_names
    if labels is None:
        return ()
    out = {row for kind in DROPPED for row in findings[kind].rows.tolist()}
    good = train.measured.good
    stays = good.copy()
    stays[list(out)] = False
    count = max(int(labels.max()) + 1, len(names or ()))
    before, after = (np.bincount(labels[kept], minlength=count) for kept in (good, stays))
    called_so = names or tuple(str(k) for k in range(count))
    return tuple(ClassCount(name, int(a), int(b)) for name, a, b in zip(called_so, before, after))


def _notes(train: Part, few_images: int) -> list[str]:
    """Say what decoding did to images, and which classes are small."""
    measured, notes = train.measured, []
    for bit, words in FLAG_NOTES.items():
        count = int((measured.flags[measured.good] & bit > 0).sum())
        if count and bit != UPSCALED:
            notes.append(f"{count:,} image{'s' if count > 1 else ''} {words}")
    labels, names = train.source.labels, train.source.class_names
    if labels is not None:
        counts = np.bincount(labels[measured.good], minlength=len(names or ()))
        few = [k for k, n in enumerate(counts.tolist()) if n < few_images]
        if few:
            said = ", ".join(f"{names[k] if names else k} ({counts[k]})" for k in few[:8])
            notes.append(
                f"{len(few):,} of {len(counts):,} classes have fewer than {few_images} images:"
                f" {said}{', …' if len(few) > 8 else ''}"
            )
        if len(counts) > 1 and counts.min() and counts.max() > 10 * counts.min():
            notes.append(
                f"classes are uneven: the largest has {counts.max() / counts.min():,.0f} times as"
                " many images as the smallest"
            )
    pictures = not isinstance(train.source, ValuePictures)
    if pictures and measured.high[measured.good].max() < 64:
        notes.append("all images are nearly black: were they made of values of another range?")
    return notes


def _command(data: Any, split: str | None, image_size: Any, source: Source) -> str:
    """Return how `ddpm train` is told of the same data."""
    where = shlex.quote(os.fspath(data)) if isinstance(data, (str, os.PathLike)) else "DATA"
    words = [where, *(["--split", shlex.quote(split)] if split else [])]
    if isinstance(source, ValuePictures):
        words += ["--normalize", source.kind, "--channels", str(source.spec.channels)]
        if source.slice_axis is not None:
            words += ["--slice-axis", str(source.slice_axis)]
    if image_size is not None:
        sides = image_size if isinstance(image_size, Sequence) else [image_size]
        words += ["--image-size", *map(str, sides)]
    return " ".join(words)


def _flags(said: Mapping[str, Any]) -> list[str]:
    """Return the flags by which `ddpm train` reads data as they were read, where one needs any."""
    usual = {"labels": "auto", "frames": "first", "background": "white", "max_pixels": MAX_PIXELS}
    found: list[str] = []
    for name, value in said.items():
        if value is None or value is False or value == usual.get(name):
            continue
        many = isinstance(value, Sequence) and not isinstance(value, str)
        if many or isinstance(value, str | os.PathLike | int | float):
            words = [] if value is True else map(_word, value if many else [value])
            found += [f"--{name.replace('_', '-')}", *words]
    return found


def _word(value: Any) -> str:
    if isinstance(value, str | os.PathLike):
        return shlex.quote(os.fspath(value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _cpu_seconds() -> float:
    """Return what this process and its ended children have computed so far."""
    return sum(os.times()[:4])
