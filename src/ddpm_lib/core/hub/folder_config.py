"""`config.json` of a pretrained folder: what it says, and the checks of what it says."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from ddpm_lib.core.errors import CheckpointError, ConfigError
from ddpm_lib.core.hub import MOST_LEVELS, PARTNER
from ddpm_lib.core.text import printable, short

CONFIG = "config.json"
LIBRARY = "ddpm_lib"
FORMAT = 1
MAIN = "model"
"""The stem of the file of the weights that are loaded unless others are asked for."""

_NAME = re.compile(rf"model|{PARTNER}|ema(:[\w.+ -]{{1,80}})?", re.ASCII)
_STEM = re.compile(r"model(\.[\w.+-]{1,100})?", re.ASCII)
_LARGEST = 50_000_000
"""Bytes of a JSON file that are read; an index of a million tensors is smaller."""


@functools.cache
def library_version() -> str:
    """Return the version of the installed library, "unknown" for a bare source tree."""
    try:
        return metadata.version("ddpm-lib")
    except metadata.PackageNotFoundError:
        return "unknown"


@dataclass(frozen=True, kw_only=True)
class FolderConfig:
    """What `config.json` of a pretrained folder says.

    Attributes:
        model: {"class": its registered name, "config": the arguments} of the network.
        diffusion: The arguments of the process besides the network; None for a bare network.
        class_names: Names of the classes, where they are known.
        weights: File stems by the name of the weights in them: "model" for those that were trained,
            "ema" for their average, "ema:0.999" for one of several, "partner" for the worse ones
            that guide. One stem is "model".
        sampling: How to sample unless told otherwise, `SamplingDefault.to_json`; None for the
            library's way.
        normalization: How measured values were brought to [0, 1]; None for pictures.
        texts: Of how many texts the folder has the vectors, by condition; None for none.
        version: Of the library that wrote it.
    """

    model: dict[str, Any]
    diffusion: dict[str, Any] | None = None
    class_names: tuple[str, ...] | None = None
    weights: dict[str, str] = field(default_factory=lambda: {"model": MAIN})
    sampling: dict[str, Any] | None = None
    normalization: dict[str, Any] | None = None
    texts: dict[str, int] | None = None
    version: str = field(default_factory=library_version)

    def to_json(self) -> dict[str, Any]:
        """Return the content of config.json."""
        return {
            "library_name": LIBRARY,
            "format": FORMAT,
            "version": self.version,
            "model": self.model,
            "diffusion": self.diffusion,
            "class_names": None if self.class_names is None else list(self.class_names),
            "weights": self.weights,
            **({} if self.sampling is None else {"sampling": self.sampling}),
            **({} if self.normalization is None else {"normalization": self.normalization}),
            **({} if self.texts is None else {"texts": self.texts}),
        }

    def choose(self, name: str | None, where: str) -> tuple[str, str]:
        """Find weights by name.

        Args:
            name: "model", "ema", "ema:0.999"; None for those of model.safetensors.
            where: The folder or the repository, for the message.

        Returns:
            What they are called, and their file stem.

        Raises:
            ConfigError: If there are none of that name; lists those that there are.
        """
        if name is None:
            return next((k, stem) for k, stem in self.weights.items() if stem == MAIN)
        if name in self.weights:
            return name, self.weights[name]
        same = next((k for k in self.weights if _decay(k) == _decay(name) is not None), None)
        if same is not None:
            return same, self.weights[same]
        there = ", ".join(map(repr, self.weights))
        raise ConfigError(f"{where} holds no weights {short(name, 80)}. It holds: {there}.")


def _decay(name: str) -> float | None:
    kind, colon, number = str(name).partition(":")
    try:
        return float(number) if kind == "ema" and colon else None
    except ValueError:
        return None


def check_weights_name(name: object) -> str:
    """Return the name of weights that a folder can hold.

    Raises:
        ConfigError: For any but "model", "ema" and "ema:…".
    """
    if isinstance(name, str) and _NAME.fullmatch(name):
        return name
    raise ConfigError(
        f"Weights are called 'model', 'ema' or 'ema:0.999' (an average by its decay); got"
        f" {short(name, 80)}."
    )


def stem_of(name: str) -> str:
    """Return the file stem of further weights.

    >>> stem_of("ema:0.999"), stem_of("model")
    ('model.ema-0.999', 'model.raw')
    """
    return f"{MAIN}.raw" if name == "model" else f"{MAIN}." + re.sub(r"[^\w.+]", "-", name)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: Naming the file and what is wrong with it.
    """
    try:
        size = path.stat().st_size
        if size > _LARGEST:
            raise CheckpointError(f"{printable(path)} is damaged: it has {size:,} bytes.")
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        why = f"{type(error).__name__}: {printable(error)[:200]}"
        raise CheckpointError(f"{printable(path)} cannot be read ({why}).") from error
    if not isinstance(values, dict):
        what = type(values).__name__
        raise CheckpointError(f"{printable(path)} is damaged: it holds a {what}, not an object.")
    return values


def _model(v: Any) -> bool:
    return (
        isinstance(v, dict)
        and isinstance(v.get("class"), str)
        and isinstance(v.get("config"), dict)
    )


def _process(v: Any) -> bool:
    if not isinstance(v, dict):
        return v is None
    steps = v.get("timesteps", 1000)
    return isinstance(steps, int) and not isinstance(steps, bool) and 1 <= steps <= MOST_LEVELS


def _names(v: Any) -> bool:
    return v is None or (isinstance(v, list) and bool(v) and all(isinstance(n, str) for n in v))


def _weights(v: Any) -> bool:
    return (
        isinstance(v, dict)
        and MAIN in v.values()
        and all(_NAME.fullmatch(name) for name in v)
        and all(isinstance(stem, str) and _STEM.fullmatch(stem) for stem in v.values())
    )


_WANTED: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "model": ("a class with its arguments", _model),
    "diffusion": (f"arguments, with timesteps from 1 to {MOST_LEVELS:,}, or null", _process),
    "class_names": ("a list of names, or null", _names),
    "weights": ("names of weights with the stems of their files, 'model' among them", _weights),
}


def parse_config(values: Mapping[str, Any], where: str) -> FolderConfig:
    """Check the content of a config.json of this library.

    Args:
        values: Its content.
        where: The file, for the message.

    Raises:
        CheckpointError: If it is of a newer format, or an entry is missing or wrong.
    """
    version = values.get("format")
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise CheckpointError(
            f"{where} is damaged: format must be a whole number from 1; got {short(version, 60)}."
        )
    if version > FORMAT:
        written = values.get("version")
        by = f" (written by ddpm-lib {written[:20]})" if isinstance(written, str) else ""
        raise CheckpointError(
            f"{where} is of format {version}{by}; this version reads {FORMAT}. Upgrade ddpm-lib to"
            " read it."
        )
    for name, (what, fits) in _WANTED.items():
        if name not in values:
            raise CheckpointError(f"{where} is damaged: it has no entry {name!r}.")
        if not fits(values[name]):
            got = short(values[name], 100)
            raise CheckpointError(f"{where} is damaged: {name} must be {what}; got {got}.")
    names, sampling = values["class_names"], values.get("sampling")
    if not isinstance(sampling, (dict, type(None))):
        got = short(sampling, 100)
        raise CheckpointError(f"{where} is damaged: sampling must be an object; got {got}.")
    measured, texts = values.get("normalization"), values.get("texts")
    for name, value in (("normalization", measured), ("texts", texts)):
        if not isinstance(value, (dict, type(None))):
            got = short(value, 100)
            raise CheckpointError(f"{where} is damaged: {name} must be an object; got {got}.")
    return FolderConfig(
        model={"class": values["model"]["class"], "config": values["model"]["config"]},
        diffusion=values["diffusion"],
        class_names=None if names is None else tuple(names),
        weights=values["weights"],
        sampling=sampling,
        normalization=measured,
        texts=texts,
        version=str(values.get("version", "unknown")),
    )
