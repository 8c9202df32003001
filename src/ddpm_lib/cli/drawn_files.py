"""The files that `ddpm sample` writes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from torch import Tensor

from ddpm_lib import images as pictures
from ddpm_lib.cli import options
from ddpm_lib.cli.low_res import SmallImages
from ddpm_lib.core.errors import ConfigError

if TYPE_CHECKING:
    from ddpm_lib.data.measurements.normalization import Normalization

_ENDINGS = {"npy": ".npy", "tiff": ".tif", "nifti": ".nii.gz"}


class Wishes(Protocol):
    """What is asked of the files: options of the command."""

    @property
    def format(self) -> str:
        """Which files."""

    @property
    def columns(self) -> int | None:
        """Images per row of the grid."""

    @property
    def scale(self) -> int | None:
        """By how much the grid is enlarged."""

    @property
    def first_index(self) -> int:
        """Number of the first image."""


def check_format(kind: str, normalization: Normalization | None) -> None:
    """Refuse a format that cannot hold samples of a run, before they are drawn.

    Raises:
        ConfigError: Saying what to ask for instead.
    """
    if kind not in _ENDINGS:
        return
    from ddpm_lib.data.measurements.value_files import why_not

    problem = why_not(kind, normalization)
    if problem is not None:
        raise ConfigError(f"--format {kind} {problem}")


def write(
    images: Tensor,
    frames: list[Tensor],
    folder: Path,
    prefix: str,
    command: Wishes,
    small: SmallImages | None,
    settings: Mapping[str, Any],
    normalization: Normalization | None = None,
) -> list[str]:
    """Write the images in the formats asked for and return the paths; the grid shows enlarged
    images beside the small ones.
    """
    pixels = pictures.to_uint8(images)
    scale = command.scale or max(1, 128 // max(images.shape[-2:]))
    formats = ("grid", "png", "npz", "gif") if command.format == "all" else (command.format,)
    made: list[str] = []
    if "grid" in formats:
        tiles, columns = pictures.preview(pixels), command.columns
        if small is not None:
            taken = small.take(len(pixels), command.first_index)
            tiles, columns = pictures.comparison_tiles(taken, pixels, columns=columns)
        made.append(str(pictures.save_grid(tiles, folder / f"{prefix}grid.png", columns, scale)))
    if "png" in formats:
        for i, image in enumerate(pictures.preview(pixels)):
            name = small.name_of(command.first_index + i) if small is not None else ""
            number = _number(command, len(pixels), i)
            pictures.save_image(image, folder / f"{prefix}{number}{name}.png")
        made.append(f"{folder}/{prefix}*.png")
    if "npz" in formats:
        path = folder / f"{prefix}samples.npz"
        values = pixels.numpy() if normalization is None else normalization.inverse(images)
        np.savez(path, arr_0=np.moveaxis(values, 1, -1))
        made.append(str(path))
    if "gif" in formats:
        path = folder / f"{prefix}denoising.gif"
        made.append(str(pictures.save_gif(frames, path, scale=max(1, scale // 2))))
    if command.format in _ENDINGS:
        made.append(_write_values(images, folder, prefix, command, normalization))
    (folder / f"{prefix}settings.yaml").write_text(options.dump(settings), encoding="utf-8")
    return made


def _write_values(
    images: Tensor,
    folder: Path,
    prefix: str,
    command: Wishes,
    normalization: Normalization | None,
) -> str:
    """Write a file per image, in the type and units of the data."""
    from ddpm_lib.data.measurements.value_files import save_values

    bare = pictures.to_uint8(images).numpy()
    values = bare if normalization is None else normalization.inverse(images)
    ending = _ENDINGS[command.format]
    for i, one in enumerate(values):
        number = _number(command, len(values), i)
        save_values(one, folder / f"{prefix}{number}{ending}", normalization)
    return f"{folder}/{prefix}*{ending}"


def _number(command: Wishes, count: int, i: int) -> str:
    digits = max(6, len(str(command.first_index + count)))
    return f"{command.first_index + i:0{digits}d}"
