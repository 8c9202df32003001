"""The files that `ddpm sample` writes."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from torch import Tensor

from ddpm_lib import images as pictures
from ddpm_lib.cli import options
from ddpm_lib.cli.condition_flags import Told
from ddpm_lib.cli.low_res import SmallImages
from ddpm_lib.core.errors import ConfigError
from ddpm_lib.diffusion import GaussianDiffusion
from ddpm_lib.nn.condition_table import data_conditions

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


@dataclass(frozen=True)
class Beside:
    """What images were drawn for, one of each per image.

    Attributes:
        shown: Pictures to show before the images in the grid, (n, c, h, w); None for none.
        names: Ends of the names of their files.
        told: Where the conditions of each are from, a column per condition.
    """

    shown: Tensor | None
    names: Sequence[str]
    told: Mapping[str, Sequence[str]]

    @classmethod
    def of(
        cls,
        diffusion: GaussianDiffusion,
        small: SmallImages | None,
        told: Told,
        n: int,
        first_index: int,
    ) -> Beside:
        """Collect it.

        Args:
            diffusion: What drew.
            small: The pictures that were enlarged.
            told: What was said of conditions.
            n: Number of images.
            first_index: Number of the first.
        """
        values, entries = told.values, told.entries(n, first_index)
        shown = None if small is None else small.take(n, first_index)
        seen = values.pictures(diffusion.conditioners)
        if shown is None and seen is not None:
            known = data_conditions(diffusion.conditioners)[seen]
            channels = {1: 1, 2: 1, 4: 4}.get(diffusion.channels, 3)  # as in a preview
            shown = known.picture(values.many[seen][entries], channels)
        columns = {
            name: [words[k] for k in entries.tolist()] for name, words in values.told.items()
        }
        names = [""] * n
        if values.names is not None and columns:
            stems = [_part(name) for name in values.names]
            names = [f"-{stems[k]}" for k in entries.tolist()]
        if small is not None:
            names = [small.name_of(first_index + i) for i in range(n)]
        return cls(shown, names, columns)


def _part(name: str) -> str:
    """Return the name of an entry as a part of a file name."""
    stem = os.path.splitext(name.rpartition("/")[2])[0]
    return re.sub(r"[^\w.+-]+", "_", stem)[:60]


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
    beside: Beside,
    settings: Mapping[str, Any],
    normalization: Normalization | None = None,
) -> list[str]:
    """Write the images in the formats asked for and return the paths; the grid shows images beside
    the pictures that they were drawn for, and conditions.csv says where their conditions are from.
    """
    pixels = pictures.to_uint8(images)
    scale = command.scale or max(1, 128 // max(images.shape[-2:]))
    formats = ("grid", "png", "npz", "gif") if command.format == "all" else (command.format,)
    made: list[str] = []
    if "grid" in formats:
        tiles, columns = pictures.preview(pixels), command.columns
        if beside.shown is not None:
            like = beside.shown.ndim == tiles.ndim and beside.shown.shape[1] == tiles.shape[1]
            seen = tiles if like else pixels
            tiles, columns = pictures.comparison_tiles(beside.shown, seen, columns=columns)
        made.append(str(pictures.save_grid(tiles, folder / f"{prefix}grid.png", columns, scale)))
    if "png" in formats:
        for i, image in enumerate(pictures.preview(pixels)):
            number = _number(command, len(pixels), i)
            pictures.save_image(image, folder / f"{prefix}{number}{beside.names[i]}.png")
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
        made.append(_write_values(images, folder, prefix, command, beside, normalization))
    if beside.told:
        made.append(_write_told(folder, prefix, command, beside))
    (folder / f"{prefix}settings.yaml").write_text(options.dump(settings), encoding="utf-8")
    return made


def _write_values(
    images: Tensor,
    folder: Path,
    prefix: str,
    command: Wishes,
    beside: Beside,
    normalization: Normalization | None,
) -> str:
    """Write a file per image, in the type and units of the data."""
    from ddpm_lib.data.measurements.value_files import save_values

    bare = pictures.to_uint8(images).numpy()
    values = bare if normalization is None else normalization.inverse(images)
    ending = _ENDINGS[command.format]
    for i, one in enumerate(values):
        number = _number(command, len(values), i)
        save_values(one, folder / f"{prefix}{number}{beside.names[i]}{ending}", normalization)
    return f"{folder}/{prefix}*{ending}"


def _write_told(folder: Path, prefix: str, command: Wishes, beside: Beside) -> str:
    """Write a table with a line per image: its file, if it has one, number and conditions."""
    ending = {"png": ".png", "all": ".png"}.get(command.format, _ENDINGS.get(command.format))
    n = len(beside.names)
    columns: dict[str, Sequence[Any]] = {
        "index": [command.first_index + i for i in range(n)],
        **beside.told,
    }
    if ending is not None:
        files = [f"{prefix}{_number(command, n, i)}{beside.names[i]}{ending}" for i in range(n)]
        columns = {"file_name": files, **columns}
    return write_table(folder / f"{prefix}conditions.csv", columns)


def write_table(path: Path, columns: Mapping[str, Sequence[Any]]) -> str:
    """Write columns of one length as .csv, and return the path."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(columns)
        lines.writerows(zip(*columns.values(), strict=True))
    return str(path)


def _number(command: Wishes, count: int, i: int) -> str:
    digits = max(6, len(str(command.first_index + count)))
    return f"{command.first_index + i:0{digits}d}"
