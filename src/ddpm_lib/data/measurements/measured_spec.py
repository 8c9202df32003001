"""How measured values become arrays of one shape and type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from ddpm_lib.core.registry import unknown_name
from ddpm_lib.core.spelling import option
from ddpm_lib.data.decode import UPSCALED, Decoded, ImageError
from ddpm_lib.data.decode_spec import DecodeSpec
from ddpm_lib.data.fitting import enlargement, resize_to_frame

FITS = ("crop", "stretch", "patch")
WHOLE: Any = "whole"
"""A fit of the library's own: values as they are, of which a normalization is fitted to patches."""
_KEPT = {"float16": "float32", "int32": "float64", "uint32": "float64", "int64": "float64"}


@dataclass(frozen=True)
class MeasuredSpec(DecodeSpec):
    """How measured values become arrays of one shape.

    Args:
        stored: The type of the data, as numpy names it; entries of another one are refused.
    """

    stored: str = "float32"

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type in which values are kept: that of the data, where float32 or less would lose
        nothing a wider one.
        """
        return np.dtype(_KEPT.get(self.stored, self.stored))

    @property
    def draws(self) -> bool:
        """Whether each reading takes another part of an image."""
        return self.fit == "patch"


def make_measured_spec(
    image_size: int | Sequence[int], channels: int, fit: str, max_pixels: int, stored: str
) -> MeasuredSpec:
    """Check the options and build a `MeasuredSpec`.

    Raises:
        ValueError: If an option is out of range, naming it and the choices.
    """
    size = (image_size,) * 2 if isinstance(image_size, int) else tuple(image_size)
    if len(size) not in (2, 3) or any(isinstance(v, bool) or v < 1 for v in size):
        raise ValueError(
            f"{option('image_size')} must be a positive int, (height, width) or, for volumes, three"
            f" sizes; got {image_size!r}."
        )
    if isinstance(channels, bool) or not isinstance(channels, int) or channels < 1:
        raise ValueError(f"channels must be a whole number from 1; got {channels!r}.")
    if fit not in FITS:
        if fit == "pad":
            raise ValueError(
                f"{option('fit', 'pad')} fills a border with a colour, and measured values have"
                f" none. Use {option('fit', 'crop')}, {option('fit', 'stretch')} or"
                f" {option('fit', 'patch')}."
            )
        raise ValueError(unknown_name("fit", fit, FITS))
    frame: Any = size
    kind: Any = fit
    return MeasuredSpec(frame, channels, kind, max_pixels=max_pixels, stored=stored)


def stored_type(dtype: np.dtype[Any]) -> str:
    """Return the name of a type of measured values.

    Raises:
        ImageError: If it is none of numbers.
    """
    if dtype.kind not in "iuf" or dtype.name in ("uint64", "longdouble", "float128"):
        raise ImageError(
            f"its values are of type {dtype}; measured values are real numbers of up to 64 bits"
            " (complex ones can be saved as two channels)"
        )
    return dtype.newbyteorder("=").name


def fit_values(array: np.ndarray, spec: MeasuredSpec) -> Decoded:
    """Bring the values of one image to shape (c, *spatial) and to the size of the spec.

    Of the right size they are unchanged. Else images are resampled, channel by channel, as pictures
    are: by an antialiased bicubic filter, within the range that the image has; "patch" cuts out a
    part at a place that the global generator of torch draws.

    Raises:
        ImageError: If the number of channels, the type or the size does not fit, or values are not
            finite.
    """
    stored = stored_type(array.dtype)
    if stored != spec.stored:
        raise ImageError(f"its values are {stored}, those of the first image {spec.stored}")
    values = _channels_first(array, spec).astype(spec.dtype, copy=False)
    if not values.size:
        raise ImageError(f"it holds no values (shape {array.shape})")
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        count = int((~np.isfinite(values)).sum())
        raise ImageError(
            f"{count:,} of {values.size:,} values are NaN or infinite: fill them in, or leave it"
            " out"
        )
    size = values.shape[1:]
    if int(np.prod(size)) > spec.max_pixels:
        raise ImageError(
            f"{'×'.join(map(str, size))} values are more than {option('max_pixels')}"
            f" ({spec.max_pixels:,})"
        )
    flags = 0
    if spec.fit == WHOLE:
        return Decoded(np.ascontiguousarray(values), flags, size[-1], size[-2])
    if spec.fit == "patch":
        values = _patch(values, spec)
    elif size != spec.image_size:
        if len(size) != 2:
            raise ImageError(
                f"its size is {'×'.join(map(str, size))}, not"
                f" {'×'.join(map(str, spec.image_size))}, and volumes are not resampled: cut parts"
                f" out with {option('fit', 'patch')}, or resample them first"
            )
        flags = UPSCALED if enlargement((size[1], size[0]), spec) > 1 else 0
        values = np.stack([_resampled(band, spec) for band in values])
    return Decoded(np.ascontiguousarray(values), flags, size[-1], size[-2])


def placed(geometry: Mapping[str, Any], array: np.ndarray, spec: MeasuredSpec) -> dict[str, Any]:
    """Return where an image lies once it is fitted: resampled, its voxels have another size, and
    cut, its first one another place.

    Args:
        geometry: Where it lies as it is stored; `affine` maps the axes of the array to space.
        array: Its values, as they are stored.
        spec: How they are fitted.

    Raises:
        ImageError: If the array is no image of the spec.
    """
    size = _channels_first(array, spec).shape[1:]
    resampled = len(size) == 2 and spec.fit in ("crop", "stretch") and size != spec.image_size
    if not resampled or not geometry.get("affine"):
        return dict(geometry)
    larger = [have / want for have, want in zip(size, spec.image_size)]
    if spec.fit == "crop":
        larger = [min(larger)] * 2
    plane = [axis for axis in range(3) if axis != geometry.get("slice_axis")][:2]
    spacing, change = list(geometry.get("spacing") or ()), np.eye(4)
    for axis, factor, have, want in zip(plane, larger, size, spec.image_size):
        change[axis, axis] = factor
        change[axis, 3] = (have - 1) / 2 - factor * (want - 1) / 2  # the middle stays
        if axis < len(spacing):
            spacing[axis] *= factor
    affine = np.asarray(geometry["affine"], dtype=np.float64) @ change
    return {**geometry, "affine": affine.tolist(), "spacing": spacing}


def _channels_first(array: np.ndarray, spec: MeasuredSpec) -> np.ndarray:
    """Return (c, *spatial) of (*spatial), (*spatial, c) or (c, *spatial)."""
    dims = len(spec.image_size)
    if array.ndim == dims + 2 and array.shape[0] == 1:
        array = array[0]
    if array.ndim == dims:
        array = array[None]
    last = array.ndim == dims + 1 and array.shape[-1] == spec.channels
    first = array.ndim == dims + 1 and array.shape[0] == spec.channels
    if first and last and array.shape[:-1] == spec.image_size != array.shape[1:]:
        first = False
    if first:
        return array
    if last:
        return np.moveaxis(array, -1, 0)
    raise ImageError(_wrong_channels(array.shape, dims, spec.channels))


def _wrong_channels(shape: tuple[int, ...], dims: int, channels: int) -> str:
    if len(shape) == dims + 1:
        there = sorted({shape[0], shape[-1]})
        counts = " or ".join(map(str, there))
        ways = " or ".join(f"channels={n} (--channels {n})" for n in there if n <= 64)
        return (
            f"its shape {shape} has {counts} channels (first or last axis), not {channels}"
            f"{f': pass {ways}' if ways else ''}"
        )
    way = ""
    if len(shape) == dims + 2 or (dims == 2 and len(shape) in (3, 4)):
        way = f": {option('slice_axis')} takes slices of volumes"
    return (
        f"its shape {shape} is not that of an image of {dims} dimensions, with or without"
        f" channels{way}"
    )


def _patch(values: np.ndarray, spec: MeasuredSpec) -> np.ndarray:
    import torch

    sizes = list(zip(values.shape[1:], spec.image_size))
    if any(have < want for have, want in sizes):
        raise ImageError(
            f"its size {'×'.join(map(str, values.shape[1:]))} is smaller than the patches"
            f" ({'×'.join(map(str, spec.image_size))})"
        )
    starts = [int(torch.randint(have - want + 1, ())) for have, want in sizes]
    cuts = tuple(slice(a, a + want) for a, (_, want) in zip(starts, sizes))
    return values[(slice(None), *cuts)]


def _resampled(band: np.ndarray, spec: MeasuredSpec) -> np.ndarray:
    low, high = band.min(), band.max()
    # Pillow's floats have 24 bits: taken from the middle, so that an offset costs none of them.
    middle = float(low) / 2 + float(high) / 2
    picture = Image.fromarray((band.astype(np.float64) - middle).astype(np.float32))
    made = np.asarray(resize_to_frame(picture, spec)).astype(np.float64) + middle
    if band.dtype.kind in "iu":
        made = np.rint(made)
    return made.clip(low, high).astype(band.dtype)
