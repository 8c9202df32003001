"""Images from uint8 arrays: `.npz`, `.npy`, numpy, torch."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ddpm_lib.core.spelling import option
from ddpm_lib.data.columns import IMAGE_NAMES, LABEL_NAMES, choose_column
from ddpm_lib.data.decode import Decoded, fit_array
from ddpm_lib.data.decode_spec import DecodeSpec
from ddpm_lib.data.labels import make_labels
from ddpm_lib.data.names import NumberedNames
from ddpm_lib.data.numpy_files import check_npy, check_npz, name_arrays
from ddpm_lib.data.source import Examined, Source, content_hash
from ddpm_lib.data.values import MEASURED, NarrowValuesError, propose


def as_array(value: torch.Tensor) -> np.ndarray:
    """Return a tensor's values; of the floats that numpy lacks, such as bfloat16, as float32."""
    value = value.detach().cpu()
    if value.is_floating_point() and value.dtype not in (
        torch.float16,
        torch.float32,
        torch.float64,
    ):
        value = value.float()
    return value.numpy()


class ArraySource(Source):
    """Images in one uint8 array (n, h, w), (n, h, w, c) or (n, c, h, w); used as it is if its shape
    is right.

    Args:
        images: The array.
        labels: One per image, or None.
        spec: What is asked for.
        insist: Whether a missing label is an error.

    Raises:
        ValueError: If the array does not hold uint8 images, saying how to convert it.
    """

    def __init__(
        self, images: np.ndarray, labels: Any, spec: DecodeSpec, insist: bool = False
    ) -> None:
        self.notes = []
        if images.ndim == 3 and len(images) in (3, 4):
            self.notes.append(
                f"an array of shape {images.shape} is taken for {len(images)} grey images; one"
                " image (c, h, w) would be x[None]"
            )
        images = as_images(images, spec.value_range is not None)
        if images.shape[3] in (1, 3, 4) and images.shape[1:] != spec.shape:
            images = images.transpose(0, 3, 1, 2)
        self.images = images
        self.names = NumberedNames(len(images))
        ready = images.shape[1:] == spec.shape and images.dtype == np.uint8
        ready = ready and spec.transform is None
        self.ready = np.ascontiguousarray(images) if ready else None
        if labels is not None:
            if len(labels) == len(images):
                self.labels, self.class_names = make_labels(labels, None, insist, self.notes)
            elif insist:
                raise ValueError(f"There are {len(images):,} images but {len(labels):,} labels.")
            else:
                self.notes.append(
                    f"no labels: there are {len(images):,} images but {len(labels):,} labels"
                )

    def load(self, row: int, spec: DecodeSpec) -> Decoded:
        """Fit one image."""
        return fit_array(self.images[row], spec)

    def examine(self, row: int, spec: DecodeSpec) -> Examined:
        """Fit one image, and hash it as it was given."""
        return Examined(self.load(row, spec), content_hash(self.images[row]))

    def sizes(self) -> np.ndarray:
        """Return a hash of each image, int64 (n,)."""
        return np.array([content_hash(image) for image in self.images], dtype=np.int64)


def as_images(images: np.ndarray, ranged: bool) -> np.ndarray:
    """Check that an array holds images, and return it with four dimensions.

    Raises:
        NarrowValuesError: If it is uint8 and a range is given.
        ValueError: If its values or its shape are not those of images, saying what to do.
    """
    if images.dtype != np.uint8 and not (ranged and images.dtype.kind in "iuf"):
        raise ValueError(convert_hint(images))
    if images.dtype == np.uint8 and ranged:
        raise NarrowValuesError(
            f"The array is uint8 already: {option('value_range')} is for values of more than 8"
            " bits. Leave it"
            " out."
        )
    shape = images.shape
    if len(shape) == 3 and shape[2] in (1, 3, 4) and min(shape[:2]) > 4:
        raise ValueError(
            f"An array of shape {shape} is one image (h, w, c), not many. Give it a first"
            " dimension, and stack as many as there are: numpy.stack([...]) of shape (n,"
            f" {shape[0]}, {shape[1]}, {shape[2]})."
        )
    if len(shape) == 2:
        raise ValueError(
            f"An array of shape {shape} is one image or a table, not many images. Stack images to"
            " (n, h, w): numpy.stack([...])."
        )
    if len(shape) == 3:
        images = images[..., None]
    if (
        images.ndim != 4
        or not len(images)
        or not (images.shape[3] in (1, 3, 4) or images.shape[1] in (1, 3, 4))
    ):
        raise ValueError(
            "Arrays of images are (n, h, w), (n, h, w, c) or (n, c, h, w) with n ≥ 1 and c of 1, 3"
            f" or 4; got shape {shape}. Other numbers of channels are measured values:"
            ' normalize="affine" (--normalize affine); or ddpm_lib.data.tensor_dataset.'
        )
    return images


def convert_hint(images: np.ndarray) -> str:
    """Say how to get uint8 from another dtype, judged by the range of the values, and what serves
    if they are measured.
    """
    hint = convert_to_pixels(images)
    finite = images.dtype.kind in "fiu" and images.size and bool(np.isfinite(images).all())
    whole = images.dtype.kind != "f" and finite and 0 <= images.min() <= images.max() <= 255
    return f"{hint} {MEASURED}." if finite and not whole else hint


def convert_to_pixels(images: np.ndarray) -> str:
    """Say how to get uint8 from another dtype, judged by the range of the values."""
    text = f"Arrays of images must be uint8 (0 … 255); got {images.dtype}."
    if images.dtype.kind not in "fiu" or not images.size:
        return text
    low, high = float(np.min(images)), float(np.max(images))
    if not np.isfinite(low + high):
        return f"{text} It also holds NaN or infinite values."
    if images.dtype.kind == "f" and low >= 0 and high <= 1:
        return (
            f"{text} The values look like [0, 1]: save (255 * x).round().astype(numpy.uint8); or"
            f" {propose(0, 1)}."
        )
    if images.dtype.kind == "f" and low >= -1 and high <= 1:
        return (
            f"{text} The values look like [-1, 1]: save (127.5 * (x +"
            f" 1)).round().astype(numpy.uint8); or {propose(-1, 1)}."
        )
    if low >= 0 and high <= 255:
        return f"{text} The values fit: save x.astype(numpy.uint8)."
    return f"{text} Values go from {low:,.6g} to {high:,.6g}: {propose(low, high)}."


def open_npz(
    path: Path,
    spec: DecodeSpec,
    labels: str,
    image_column: str | None,
    label_column: str | None,
    insist: bool = False,
) -> ArraySource:
    """Open `.npz` or `.npy`; never unpickles.

    Raises:
        ValueError: If the file is damaged, holds objects, or has no array of images.
    """
    try:
        with open(path, "rb") as file:
            plain = file.read(6) == b"\x93NUMPY"
        if plain:
            check_npy(path)
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return ArraySource(loaded, None, spec)
        with loaded as archive:
            image, label = choose_arrays(
                archive.files, path.name, labels, image_column, label_column
            )
            if image is None:
                raise ValueError(name_arrays(check_npz(path, ()), path.name))
            check_npz(path, [name for name in (image, label) if name is not None])
            return open_arrays(archive, path.name, spec, labels, image_column, label_column, insist)
    except (zipfile.BadZipFile, OSError, EOFError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ValueError(f"{path} is damaged or no numpy file: {error}") from None
    except ValueError as error:
        if "pickle" in str(error):
            raise ValueError(
                f"{path} holds Python objects, which are never loaded (they can run code). Save"
                " plain uint8 arrays."
            ) from None
        raise


def choose_arrays(
    there: Sequence[str],
    where: str,
    labels: str,
    image_column: str | None,
    label_column: str | None,
) -> tuple[str | None, str | None]:
    """Choose the array of the images (None: none has a usual name) and that of the labels, if
    any.
    """
    image = choose_column("image", image_column, IMAGE_NAMES, there, where)
    if image is None or labels == "none":
        return image, None
    usual = [name for name in LABEL_NAMES if name != image]
    return image, choose_column("label", label_column, usual, there, where)


def open_arrays(
    arrays: Mapping[str, Any],
    where: str,
    spec: DecodeSpec,
    labels: str,
    image_column: str | None,
    label_column: str | None,
    insist: bool = False,
) -> ArraySource:
    """Open arrays by their names: an `.npz`, or a dict.

    Raises:
        ValueError: If none is of images, or the one asked for is not there.
    """
    there = [str(name) for name in arrays]
    column, label = choose_arrays(there, where, labels, image_column, label_column)
    if column is None:
        raise ValueError(
            f"{where} has no array named arr_0, images or x. There are: {', '.join(there)}."
        )
    images, numbers = arrays[column], None if label is None else arrays[label]
    if isinstance(images, torch.Tensor):
        images = as_array(images)
    return ArraySource(np.asarray(images), numbers, spec, insist or label_column is not None)
