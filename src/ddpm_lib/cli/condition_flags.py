"""What `--cond` and `--sweep` say, as values of the network's conditions."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.lost_paths import lost
from ddpm_lib.core.registry import unknown_name
from ddpm_lib.core.text import short
from ddpm_lib.data.condition_images import read_mask
from ddpm_lib.data.decode import ImageError, decode
from ddpm_lib.data.decode_spec import make_spec
from ddpm_lib.data.source import reason
from ddpm_lib.diffusion import GaussianDiffusion
from ddpm_lib.nn.condition_table import data_conditions
from ddpm_lib.nn.data_conditions import DataCondition
from ddpm_lib.runs.loading import LoadedRun

SWEEP_ROWS = 4
"""Rows of a sweep, where nobody says how many images there are."""
SWEPT = 8
"""Values of a number that a sweep shows, where nobody says how many."""


@dataclass(frozen=True)
class Sweep:
    """A condition that goes through values from column to column.

    Attributes:
        name: Of the condition.
        values: One per column, (columns, …).
        words: One per column, for the user.
    """

    name: str
    values: Tensor
    words: tuple[str, ...]


def read_cond(
    diffusion: GaussianDiffusion, given: Sequence[str], fit: str = "crop"
) -> dict[str, Tensor]:
    """Return the conditions of `--cond NAME=VALUE`, a batch of one each.

    Args:
        diffusion: The process.
        given: The words.
        fit: How pictures are fitted, as the run fitted its images.

    Raises:
        ConfigError: For a condition that the network does not have, or a value that is none.
    """
    found: dict[str, Tensor] = {}
    for written in given:
        name, conditioner, value = _named(diffusion, written, "--cond")
        if name in found:
            raise ConfigError(f"--cond {name} is given twice. Give it once.")
        if value != "none":
            found[name] = _value(conditioner, value, diffusion, fit)
        elif not conditioner.optional:
            raise ConfigError(
                f"--cond {written}: the network knows no absence of {name!r}; it was trained with"
                " drop=0."
            )
    return found


def read_sweep(diffusion: GaussianDiffusion, written: str | None) -> Sweep | None:
    """Return the values of `--sweep NAME`, `NAME=LOW..HIGH` or `NAME=A,B,C`; None for no sweep.

    Raises:
        ConfigError: For a condition that cannot be swept, or values that are none.
    """
    if written is None:
        return None
    name, conditioner, value = _named(diffusion, written, "--sweep", bare=True)
    if conditioner.kind not in ("number", "angle", "label", "tags", "text"):
        raise ConfigError(
            f"--sweep goes through numbers, angles, labels, tags and texts; {name!r} is of the kind"
            f" {conditioner.kind}."
        )
    words = _swept(conditioner, value)
    each = [_value(conditioner, word, diffusion, "crop") for word in words]
    return Sweep(name, torch.cat(each), tuple(words))


def _named(
    diffusion: GaussianDiffusion, written: str, flag: str, bare: bool = False
) -> tuple[str, DataCondition, str]:
    name, equals, value = written.partition("=")
    known = data_conditions(diffusion.conditioners)
    if name == "class_label":
        raise ConfigError(
            f"{flag} is for conditions of the data; classes are named by --class-label."
        )
    if not known:
        raise ConfigError(
            f"{flag} {written} was given, but this network was trained without conditions of the"
            " data (--condition)."
        )
    if name not in known:
        raise ConfigError(unknown_name("condition", name, known))
    if not value and not (bare and not equals):
        raise ConfigError(
            f"{flag} is written NAME=VALUE, such as {_example(known)}; got {written!r}."
        )
    return name, known[name], value


def _example(known: Mapping[str, DataCondition]) -> str:
    name, first = next(iter(known.items()))
    words = {"label": first.spec.get("names", ["word"])[0] if first.kind == "label" else ""}
    usual = {"mask": "m.png", "image": "a.png", "vector": "v.npy", "text": "words", "tags": "a|b"}
    return f"{name}={words.get(first.kind) or usual.get(first.kind, '0.3')}"


def _swept(conditioner: DataCondition, value: str) -> list[str]:
    if value and ".." in value:
        low, _, high = value.partition("..")
        ends = [_number(conditioner, end) for end in (low, high)]
    elif value:
        return [word.strip() for word in value.split(",") if word.strip()]
    elif conditioner.kind in ("label", "tags"):
        return list(conditioner.spec["names"])
    elif conditioner.kind == "angle":
        period = conditioner.spec["period"]
        return [f"{period * k / SWEPT:g}" for k in range(SWEPT)]
    elif conditioner.kind == "number" and conditioner.fitted:
        ends = [conditioner.spec["low"], conditioner.spec["high"]]
    else:
        raise ConfigError(f"--sweep {conditioner.name} needs values: {conditioner.name}=A,B,C.")
    return [f"{v:.6g}" for v in np.linspace(ends[0], ends[1], SWEPT)]


def _number(conditioner: DataCondition, word: str) -> float:
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


def _value(conditioner: DataCondition, word: str, diffusion: GaussianDiffusion, fit: str) -> Tensor:
    """Return one value, a batch of one."""
    kind = conditioner.kind
    if kind in ("number", "angle"):
        return torch.tensor([_number(conditioner, word)])
    if kind in ("mask", "image"):
        return _picture(conditioner, word, diffusion, fit)
    if kind == "vector" or (kind == "text" and word.endswith(".npy")):
        return _vector(conditioner, word)
    if kind == "label" and word not in conditioner.spec["names"] and word.isdigit():
        return torch.tensor([int(word)])
    try:
        found: Tensor = conditioner.read(word)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return found


def _vector(conditioner: DataCondition, word: str) -> Tensor:
    if word.endswith(".npy"):
        path = Path(word).expanduser()
        if not path.is_file():
            raise ConfigError(f"--cond {conditioner.name}: {lost(word)}")
        try:
            found = torch.from_numpy(np.load(path, allow_pickle=False).astype(np.float32))
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"--cond {conditioner.name}: {word} cannot be read as an array:"
                f" {' '.join(str(error).split())[:200]}."
            ) from None
    else:
        found = torch.tensor([_number(conditioner, part) for part in word.split(",")])
    found = found.reshape(-1)
    if len(found) != conditioner.spec["size"] or not bool(found.isfinite().all()):
        raise ConfigError(
            f"--cond {conditioner.name} takes {conditioner.spec['size']} finite numbers, A,B,C or a"
            f" .npy file; got {len(found)}."
        )
    return found[None]


def _picture(
    conditioner: DataCondition, word: str, diffusion: GaussianDiffusion, fit: str
) -> Tensor:
    path, name = Path(word).expanduser(), conditioner.name
    if path.is_dir():
        raise ConfigError(
            f"--cond {name}: {word!r} is a folder. Name one picture, the {conditioner.kind} of"
            " all images."
        )
    if not path.is_file():
        raise ConfigError(f"--cond {name}: {lost(word)} Name a picture, the {conditioner.kind}.")
    height, width = diffusion.image_size[0], diffusion.image_size[-1]
    factor, channels = conditioner.spec.get("factor", 1), conditioner.spec.get("channels", 3)
    try:
        if conditioner.kind == "mask":
            mask = torch.from_numpy(read_mask(path, make_spec((height, width), fit=fit), None))
            if conditioner.spec["classes"] == 2 and set(mask.unique().tolist()) <= {0, 255}:
                mask = (mask > 0).to(torch.uint8)
            conditioner.validate(mask[None], 1)
            return mask[None]
        spec = make_spec((height // factor, width // factor), channels, fit)
        decoded = decode(str(path), spec)
    except (ImageError, OSError) as error:
        raise ConfigError(f"--cond {name}: {word}: {reason(error)}.") from None
    if abs(decoded.width * height - decoded.height * width) > max(decoded.width, decoded.height):
        raise ConfigError(
            f"--cond {name}: {word} has {decoded.width}×{decoded.height} pixels, the images have"
            f" the proportions of {width}×{height}. Crop it first."
        )
    return torch.from_numpy(np.array(decoded.pixels))[None]  # a picture may be read-only


@dataclass(frozen=True)
class Told:
    """What the flags say about the conditions of the data.

    Attributes:
        fixed: By name, a batch of one.
        sweep: What changes from column to column, None for nothing.
    """

    fixed: Mapping[str, Tensor]
    sweep: Sweep | None = None

    @classmethod
    def read(cls, loaded: LoadedRun, cond: Sequence[str], sweep: str | None) -> Told:
        """Read the flags.

        Raises:
            ConfigError: For what the network does not take.
        """
        diffusion = loaded.diffusion
        swept = read_sweep(diffusion, sweep)
        fixed = read_cond(diffusion, cond, str(loaded.state.get("training", {}).get("fit", "crop")))
        if swept is not None and swept.name in fixed:
            raise ConfigError(f"--cond and --sweep both name {swept.name!r}. Give it once.")
        return cls(fixed, swept)

    @property
    def columns(self) -> int | None:
        """Columns of the sweep."""
        return None if self.sweep is None else len(self.sweep.values)

    def conditions(self, n: int, first_index: int) -> dict[str, Tensor]:
        """Return the conditions of n images, counted from `first_index`."""
        cond = {name: value.expand(n, *value.shape[1:]) for name, value in self.fixed.items()}
        if self.sweep is not None:
            columns = (torch.arange(n) + first_index) % len(self.sweep.values)
            cond[self.sweep.name] = self.sweep.values[columns]
        return cond

    def seeds(self, n: int, first_index: int, seed: int) -> list[int] | None:
        """Return a seed per image of a sweep, the same in a row; None without a sweep."""
        if self.columns is None:
            return None
        return [seed + (first_index + i) // self.columns for i in range(n)]


def with_columns(command: Any, loaded: LoadedRun) -> Any:
    """Return the flags with as many columns of the grid as a sweep has, where nobody says how
    many.
    """
    if command.columns is not None or command.sweep is None:
        return command
    columns = Told.read(loaded, (), command.sweep).columns
    return dataclasses.replace(command, columns=columns)
