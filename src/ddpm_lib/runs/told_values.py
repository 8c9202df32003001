"""What a user says of one condition, in a word or a file, as a value of the network's condition."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.lost_paths import lost
from ddpm_lib.core.spelling import in_flags
from ddpm_lib.core.text import short
from ddpm_lib.data.condition_images import read_mask
from ddpm_lib.data.condition_values import black_and_white
from ddpm_lib.data.decode import FORMATS, ImageError, decode
from ddpm_lib.data.decode_spec import make_spec
from ddpm_lib.data.source import reason
from ddpm_lib.nn.data_conditions import DataCondition
from ddpm_lib.nn.pixel_conditions import UNKNOWN

if TYPE_CHECKING:
    from ddpm_lib.diffusion import GaussianDiffusion

Size = tuple[int, int]
"""Width and height."""


@dataclass(frozen=True)
class Frame:
    """What pictures that are conditions are laid on.

    Attributes:
        image_size: Height and width of the network's images.
        fit: How pictures of another size are fitted.
    """

    image_size: tuple[int, int]
    fit: str = "crop"

    @classmethod
    def of(cls, diffusion: GaussianDiffusion, fit: str = "crop") -> Frame:
        """Return that of a process."""
        return cls((diffusion.image_size[0], diffusion.image_size[-1]), fit)


def given_to(name: str) -> str:
    """Begin a sentence on a condition where the reader of the message stands."""
    return f"--cond {name}" if in_flags() else f"The condition {name!r}"


def read_number(conditioner: DataCondition, word: str) -> float:
    """Read a finite number.

    Raises:
        ConfigError: If it is none.
    """
    try:
        found = float(word)
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise ConfigError(
            f"The condition {conditioner.name!r} ({conditioner.kind}) takes a number; got"
            f" {short(word, 60)}."
        )
    return found


def is_number_of_name(word: str) -> bool:
    """Whether a word is the number of a label; "007" is a name, and if not one of these, none."""
    return word.isdecimal() and str(int(word)) == word


def read_value(conditioner: DataCondition, word: str, frame: Frame) -> Tensor:
    """Return one value, a batch of one.

    Args:
        conditioner: The condition.
        word: A number, a word, words, A,B,C, or the path of a picture or a .npy file.
        frame: What pictures are laid on.

    Raises:
        ConfigError: If it is no value of the condition.
    """
    kind = conditioner.kind
    if kind in ("number", "angle"):
        return torch.tensor([read_number(conditioner, word)])
    if kind in ("mask", "image"):
        path = Path(word).expanduser()
        if not path.is_file():
            name = f"{given_to(conditioner.name)}:"
            raise ConfigError(f"{name} {lost(word)} Name a picture, the {kind}, or a folder.")
        return read_picture(conditioner, path, frame)[None]
    if kind == "vector" or (kind == "text" and word.endswith(".npy")):
        return _vector(conditioner, word)
    if kind == "label" and word not in conditioner.spec["names"] and is_number_of_name(word):
        return torch.tensor([int(word)])
    try:
        found: Tensor = conditioner.read(word)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return found


def load_array(conditioner: DataCondition, word: str) -> np.ndarray:
    """Open a .npy file.

    Raises:
        ConfigError: If it is not there, or no array.
    """
    path, said = Path(word).expanduser(), given_to(conditioner.name)
    if not path.is_file():
        raise ConfigError(f"{said}: {lost(word)}")
    try:
        found: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ConfigError(
            f"{said}: {word} cannot be read as an array: {' '.join(str(error).split())[:200]}."
        ) from None
    return found


def _vector(conditioner: DataCondition, word: str) -> Tensor:
    if word.endswith(".npy"):
        array = load_array(conditioner, word)
        if array.dtype.kind not in "fiub":
            raise ConfigError(
                f"{given_to(conditioner.name)}: {word} holds {array.dtype}, no numbers."
            )
        found = torch.from_numpy(np.array(array).astype(np.float32))
    else:
        found = torch.tensor([read_number(conditioner, part) for part in word.split(",")])
    found = found.reshape(-1)
    if len(found) != conditioner.spec["size"] or not bool(found.isfinite().all()):
        raise ConfigError(
            f"{given_to(conditioner.name)} takes {conditioner.spec['size']} finite numbers, A,B,C"
            f" or a .npy file; got {len(found)}."
        )
    return found[None]


def read_picture(
    conditioner: DataCondition, path: Path, frame: Frame, beside: Size | None = None
) -> Tensor:
    """Read a mask (h, w) or an image (c, h, w), uint8, in the size that the network takes.

    Args:
        conditioner: The condition, of the kind mask or image.
        path: The file.
        frame: What it is laid on.
        beside: The size of the picture that it belongs to, which it may have the proportions of
            as well.

    Raises:
        ConfigError: If it cannot be read, or has other proportions.
    """
    height, width = frame.image_size
    factor, channels = conditioner.spec.get("factor", 1), conditioner.spec.get("channels", 3)
    said = f"{given_to(conditioner.name)}: {path}"
    try:
        if conditioner.kind == "mask":
            own = _own_size(path, beside)
            values = read_mask(path, make_spec((height, width), fit=frame.fit), own)
            values = black_and_white(values, conditioner.spec["classes"])
            mask = torch.from_numpy(np.where(values < 0, UNKNOWN, values).astype(np.uint8))
            conditioner.validate(mask[None], 1)
            return mask
        spec = make_spec((height // factor, width // factor), channels, frame.fit)
        decoded = decode(str(path), spec)
    except (ImageError, OSError) as error:
        raise ConfigError(f"{said}: {reason(error)}.") from None
    except ValueError as error:
        raise ConfigError(f"{said}: {error}") from None
    if not any(_alike((decoded.width, decoded.height), one) for one in ((width, height), beside)):
        raise ConfigError(
            f"{said} has {decoded.width}×{decoded.height} pixels, the images have"
            f" the proportions of {width}×{height}. Crop it first."
        )
    return torch.from_numpy(np.array(decoded.pixels))  # a picture may be read-only


def _own_size(path: Path, beside: Size | None) -> Size | None:
    """Return the size of a picture where its proportions are those of another, else None."""
    try:
        with Image.open(path, formats=FORMATS) as picture:
            size = picture.size
    except (OSError, ValueError):
        return None  # what is wrong with it is said where it is read
    return size if _alike(size, beside) else None


def _alike(size: Size, other: Size | None) -> bool:
    """Whether a size has the proportions of another, up to a pixel."""
    return other is not None and abs(size[0] * other[1] - size[1] * other[0]) <= max(*size, *other)
