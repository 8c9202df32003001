"""Pictures that are not a run's own, read as training reads them; or as other tools do, on
request.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ddpm_lib.core.digests import digest_of
from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.spelling import option
from ddpm_lib.core.spread import evenly
from ddpm_lib.data.suffixes import FIDELITY
from ddpm_lib.data.torchvision_sets import set_named
from ddpm_lib.evaluation.evaluation_options import READING
from ddpm_lib.evaluation.image_sets import ImageSet, clamp, dataset_images, jpeg_share, safe_word
from ddpm_lib.evaluation.overviews import drawn_samples
from ddpm_lib.evaluation.value_sets import open_value_set

if TYPE_CHECKING:
    from ddpm_lib.data import ImageDataset
    from ddpm_lib.data.dataset import Source
    from ddpm_lib.data.decode_spec import DecodeSpec
    from ddpm_lib.evaluation.evaluation_options import EvaluationOptions
    from ddpm_lib.evaluation.run_images import RunImages

_FORMATS = ("BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_NOT_APPLIED = "{}: value_range was not applied, as no image has more than 8 bits."
LEAVE_OUT = (
    'Repair or remove them, or leave them out with on_bad_image="skip" (--on-bad-image skip).'
)


def open_pictures(
    data: Any,
    name: str | None,
    options: EvaluationOptions,
    num: int | None = None,
    like: RunImages | None = None,
) -> ImageSet:
    """Open pictures that are not a run's own.

    Args:
        data: What `ddpm_lib.data.open_dataset` takes, a dataset of ours, or float images (n, c, h,
            w) in [0, 1].
        name: Its word in names of scores; default: from the path.
        options: Give image_size, split, reader, on_bad_image and those of `READING`.
        num: Number of images, spread evenly; default: all. More than there are is clamped, with a
            note.
        like: A run whose size, channels and data options count instead.

    Raises:
        ConfigError: If pictures differ in size and none is asked for, or nothing is a picture.
        BadImagesError: If pictures cannot be used, all of them named.
    """
    from ddpm_lib.data import ImageDataset, tensor_dataset

    where = str(data) if isinstance(data, (str, Path)) else "given"
    word = name if name is not None else safe_word(Path(where).stem)
    if isinstance(data, Tensor):
        data = data.detach().cpu()
    if options.normalize is not None and like is None and not isinstance(data, ImageDataset):
        data = open_value_set(data, word, options)
    elif like is not None and like.loaded.diffusion.normalization is not None:
        if isinstance(data, (str, Path)) and Path(data).is_dir():
            data = drawn_samples(Path(data), word)[0]
        if not isinstance(data, ImageDataset):
            data = like.pictures(data, options.split, options.on_bad_image)
    ranged = like.config.value_range if like is not None else options.value_range
    if isinstance(data, (np.ndarray, Tensor)) and "float" in str(data.dtype) and ranged is None:
        data = tensor_dataset(data)
    if options.reader != "training" and isinstance(data, (str, Path)) and Path(data).is_dir():
        return _as_fidelity(FidelityFiles(Path(data), options.on_bad_image or "error"), word, num)
    notes: list[str] = []
    if not isinstance(data, ImageDataset):
        data, notes = _opened(data, where, word, options, like)
    n, told = clamp(num, len(data), word)
    images = dataset_images(data, word, n if num is not None else None)
    return dataclasses.replace(images, notes=(*notes, *told))


def _opened(
    data: Any, where: str, word: str, options: EvaluationOptions, like: RunImages | None
) -> tuple[ImageDataset, list[str]]:
    """Open a set; of two sets without a run, a range may belong to the other one alone."""
    from ddpm_lib.data.values import NarrowValuesError

    try:
        return _open(data, where, word, options, like)
    except NarrowValuesError:
        if like is not None:
            raise
    opened, notes = _open(data, where, word, dataclasses.replace(options, value_range=None), None)
    return opened, [*notes, _NOT_APPLIED.format(word)]


def _open(
    data: Any, where: str, word: str, options: EvaluationOptions, like: RunImages | None
) -> tuple[ImageDataset, list[str]]:
    """Open as training does, at the run's size, the one asked for, or that at which all are
    stored.
    """
    from ddpm_lib.data import BadImagesError
    from ddpm_lib.data.archives.archive_files import archive_in
    from ddpm_lib.data.arrays import ArraySource
    from ddpm_lib.data.decode_spec import DecodeSpec
    from ddpm_lib.data.sources import find_source

    size: int | tuple[int, int] | None = options.image_size
    if isinstance(data, str) and data == "shapes":
        return _drawn(options, like), []
    notes: list[str] = []
    folder = isinstance(data, (str, Path)) and Path(data).is_dir()
    if folder:
        data, notes = drawn_samples(Path(data), word)
    elif isinstance(data, (str, Path)):
        folder = archive_in(Path(data).expanduser()) is not None
    path = str(data) if isinstance(data, Path) else data
    frames = (like.config.frames if like else options.frames or "first") if folder else "first"
    # Of two sets, a split belongs to the one that can have several.
    split = options.split if isinstance(path, str) and not path.endswith(".npy") else None
    files = _files(path, like.config if like else options)
    spec = DecodeSpec((1, 1), value_range=like.config.value_range if like else options.value_range)
    source = find_source(
        path,
        spec,
        # Folders that training would refuse as a mixture of splits are refused here too.
        "auto" if folder and (like is None or like.config.labels == "auto") else "none",
        image_column=like.image_column(path) if like else None,
        label_column=None,
        split=split,
        frames=frames,
        **files,
    )
    given = data if isinstance(source, ArraySource) else source  # arrays are fitted as a whole
    told: list[str] = []
    if like is None and size is None:
        size = _stored_size(
            source, where, spec
        )  # where there is none, opening the set says why of each image
    try:
        if like is not None:
            opened = like.pictures(given, options.split, options.on_bad_image)
        else:
            opened, told = _without_run(given, size or 1, options, word, {"split": split, **files})
    except BadImagesError as error:
        raise BadImagesError(error.bad, error.total, error.hint or LEAVE_OUT) from None
    if like is None and size is None:  # what could not be read a moment ago can be read now
        raise ConfigError(
            f"The images of {where} change while they are read. Evaluate them when they are"
            " written."
        )
    # Beside what the source says, one note tells where the images are kept; more tell of the images
    # themselves.
    if len(opened.notes) > len(source.notes) + 1 or source.notes:
        told.append(f"{word}: {'; '.join(opened.notes)}")
    return opened, [*notes, *told]


def _drawn(options: EvaluationOptions, like: RunImages | None) -> ImageDataset:
    """Draw the built-in shapes at the run's size, or at the one asked for."""
    from ddpm_lib.data import open_dataset

    if like is not None:
        return like.pictures("shapes", options.split, options.on_bad_image)
    if options.image_size is None:
        raise ConfigError(
            "The built-in shapes are drawn at any size. Say at which: image_size= (--image-size"
            " 32)."
        )
    return open_dataset("shapes", image_size=options.image_size)


def _files(path: Any, told_of: Any) -> dict[str, Any]:
    """Return where the files of a set of torchvision lie; nothing for a folder that is compared
    with one.

    Args:
        path: What is opened.
        told_of: Options with data_root and download.
    """
    asked = told_of.data_root is not None or told_of.download
    if set_named(path, asked) is None:
        return {}
    return {"data_root": told_of.data_root, "download": told_of.download}


def _without_run(
    given: Any,
    size: int | tuple[int, int],
    options: EvaluationOptions,
    word: str,
    files: dict[str, Any],
) -> tuple[ImageDataset, list[str]]:
    """Open a set with the options for sets without a run; of two sets a range may belong to one
    alone.
    """
    from ddpm_lib.data import BadImagesError, open_dataset

    chosen = {
        name: getattr(options, name) for name in READING if getattr(options, name) is not None
    }
    chosen.pop("frames", None)  # the source of a folder was opened with them
    chosen |= {**files, "on_bad_image": options.on_bad_image or "error"}
    try:
        return open_dataset(given, image_size=size, labels="none", **chosen), []
    except BadImagesError as error:
        if chosen.pop("value_range", None) is None or len(error.bad) < error.total:
            raise
        try:
            opened = open_dataset(given, image_size=size, labels="none", **chosen)
        except BadImagesError:
            raise error from None
    return opened, [_NOT_APPLIED.format(word)]


def _stored_size(source: Source, where: str, spec: DecodeSpec) -> tuple[int, int] | None:
    """Return (height, width) of all images, None if none of them can be read.

    Raises:
        ConfigError: If they differ.
    """
    from ddpm_lib.data.sizes import different_sizes

    sizes = different_sizes(source, spec)
    if len(sizes) > 1:
        a, b = sizes
        raise ConfigError(
            f"The pictures in {where} differ in size: {a.name} is {a.width}×{a.height}, {b.name} "
            f"{b.width}×{b.height}. Say at which size to evaluate with image_size= (--image-size "
            f"{min(a.width, a.height, b.width, b.height)}), which crops and resizes them."
        )
    return (sizes[0].height, sizes[0].width) if sizes else None


class FidelityFiles:
    """Picture files of one size in one folder, read as torch-fidelity and pytorch-fid read them.

    That is: sorted by name, not in sub-folders, converted to RGB by PIL (grey is repeated, alpha is
    dropped), neither turned by EXIF nor resized. Unlike there, hidden files are left out, and all
    files that cannot be read are named at once.

    Args:
        folder: The folder.
        on_bad_image: "error", or "skip" to leave out what cannot be read.

    Raises:
        ConfigError: If there are none, or they differ in size.
        BadImagesError: If files cannot be read, all of them named.
    """

    def __init__(self, folder: Path, on_bad_image: str = "error") -> None:
        from ddpm_lib.data import BadImagesError

        inside = (p for p in folder.iterdir() if not p.name.startswith("."))
        there = sorted(p for p in inside if p.suffix.lower() in FIDELITY and p.is_file())
        if not there:
            raise ConfigError(
                f"{folder} itself holds no pictures ({', '.join(sorted(FIDELITY))}), and"
                f" {option('reader', 'torch-fidelity')} does not look into sub-folders. Name the"
                " folder they"
                " lie in."
            )
        sizes: dict[tuple[int, int], Path] = {}
        bad: list[tuple[str, str]] = []
        self.files: list[Path] = []
        for path in there:
            try:
                height, width, _ = self._pixels(path).shape
            except Exception as error:  # a decoder may raise anything
                bad.append((path.name, " ".join(str(error).split())[:200] or type(error).__name__))
                continue
            sizes.setdefault((width, height), path)
            self.files.append(path)
        if bad and (on_bad_image == "error" or not self.files):
            raise BadImagesError(bad, len(there), LEAVE_OUT)
        if len(sizes) > 1:
            (a, first), (b, second) = list(sizes.items())[:2]
            raise ConfigError(
                f"The pictures in {folder} differ in size: {first.name} is {a[0]}×{a[1]},"
                f" {second.name} {b[0]}×{b[1]}, and {option('reader', 'torch-fidelity')} does not"
                " resize. Leave"
                " it out, and say at which size to evaluate with image_size= (--image-size 64)."
            )
        ((width, height),) = sizes
        self.shape = height, width
        self.left_out, self.there = len(bad), len(there)
        info = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in self.files]
        self.fingerprint = digest_of("files", info)

    def read(self, rows: Sequence[int]) -> Tensor:
        """Return uint8 (n, 3, h, w)."""
        found = np.stack([self._pixels(self.files[row]) for row in rows])
        return torch.from_numpy(found).permute(0, 3, 1, 2)

    def _pixels(self, path: Path) -> np.ndarray:
        from PIL import Image

        with Image.open(path, formats=_FORMATS) as picture:
            return np.array(picture.convert("RGB"))


def _as_fidelity(files: FidelityFiles, word: str, num: int | None) -> ImageSet:
    n, notes = clamp(num, len(files.files), word)
    rows = evenly(n, len(files.files))
    if files.left_out:
        notes.append(
            f"{word}: {files.left_out:,} of {files.there:,} pictures cannot be used and were left"
            " out."
        )
    return ImageSet(
        word,
        n,
        lambda r: files.read(rows[r.start : r.stop].tolist()),
        digest_of(files.fingerprint, n),
        cached=True,
        notes=tuple(notes),
        reader="torch-fidelity",
        shape=files.shape,
        jpeg=jpeg_share([path.name for path in files.files]),
    )
