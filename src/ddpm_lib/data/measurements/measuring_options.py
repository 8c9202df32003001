"""The options of measured values, checked before anything is opened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ddpm_lib.core.spelling import option
from ddpm_lib.data.measurements.normalization import Normalization, Unfitted

Normalize = str | Normalization | Unfitted


@dataclass(frozen=True)
class ValueOptions:
    """How measured values are to be opened.

    Attributes:
        image_size: Side, (height, width), or three sizes for volumes.
        channels: Of every image.
        fit: "crop", "stretch" or "patch".
        max_pixels: Larger images are refused.
        slice_axis: Cut volumes into slices along this axis; None: they are not cut.
        insist: Whether labels that are found must make classes.
    """

    image_size: int | Sequence[int]
    channels: int
    fit: str
    max_pixels: int
    slice_axis: int | None
    insist: bool = False


def kind_of(normalize: Normalize) -> str:
    """Return the kind of a normalization that may be fitted already."""
    return normalize if isinstance(normalize, str) else normalize.kind


def refuse_values(fit: str, slice_axis: int | None) -> None:
    """Refuse options of measured values for pictures.

    Raises:
        ValueError: Saying what they need.
    """
    way = f"{option('normalize', 'affine')} takes the data for measured values, not for pictures"
    if slice_axis is not None:
        raise ValueError(
            f"{option('slice_axis', slice_axis)} is for measured volumes: {way}. Add it, or leave"
            f" {option('slice_axis')} out."
        )
    if fit == "patch":
        raise ValueError(
            f"{option('fit', 'patch')} is for measured values: {way}. Of pictures, cut out parts"
            " with transform=torchvision.transforms.v2.RandomCrop(…) in Python."
        )
