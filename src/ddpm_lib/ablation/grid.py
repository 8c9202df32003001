"""The grid: which settings are varied, which are fixed, and what each cell is called.

A setting has a dotted name: `model.…` an argument of the network, `diffusion.…` of
`GaussianDiffusion`, `sample.…` of `Trainer.sample`; without a dot it is an option of training.
"""

from __future__ import annotations

import hashlib
import inspect
import itertools
import json
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.registry import unknown_name
from ddpm_lib.core.validation import check_type
from ddpm_lib.diffusion import GaussianDiffusion
from ddpm_lib.training.config import TrainingConfig

GROUPS = ("model", "diffusion", "sample", "training")
_OWNED = {"output_dir", "max_steps", "seed", "resume", "override", "progress", "device"}
"""Options of training that an ablation sets itself."""
_NOT_SAMPLING = {
    "self",
    "n",
    "seed",
    "seeds",
    "model",
    "return_trajectory",
    "x_T",
    "device",
    "progress",
    "first_index",
    "cond",
    "batch_size",
}
"""Arguments of sampling that an ablation sets itself."""


@dataclass(frozen=True)
class Cell:
    """One combination of the varied settings.

    Attributes:
        varied: The varied settings of this cell by dotted name.
        settings: All settings that are not defaults of the library, by group: model, diffusion,
            sample, training.
    """

    varied: dict[str, Any]
    settings: dict[str, dict[str, Any]]

    @property
    def name(self) -> str:
        """The cell's settings in words, without those of sampling: cells of one name share their
        trained runs.
        """
        words = [
            f"{_short(k)}={_word(v)}" for k, v in self.varied.items() if not k.startswith("sample.")
        ]
        return "+".join(words) or "all"


@dataclass(frozen=True)
class Grid:
    """The product of the varied settings.

    Args:
        vary: Values by dotted name.
        fixed: Settings of all cells by dotted name, over the defaults.
        defaults: Settings that suit the data, by group.
        network: The class of the network, whose arguments `model.…` are.

    Raises:
        ConfigError: For unknown names, wrong types, nothing to vary, or a setting that is varied
            and fixed.
    """

    vary: Mapping[str, Sequence[Any]]
    fixed: Mapping[str, Any]
    defaults: Mapping[str, Mapping[str, Any]]
    network: type

    def __post_init__(self) -> None:
        if not self.vary:
            raise ConfigError(
                "There is nothing to vary. Give --vary diffusion.schedule=linear,cosine, for"
                " example."
            )
        for name, values in self.vary.items():
            if name in self.fixed:
                raise ConfigError(f"{name} is both varied and set. Choose one.")
            if not values or len({_word(v) for v in values}) < len(values):
                raise ConfigError(f"{name} needs one or more different values; got {list(values)}.")
            for value in values:
                self._checked(name, value)
        for name, value in self.fixed.items():
            self._checked(name, value)

    def cells(self) -> list[Cell]:
        """Return all combinations, the last name varying fastest."""
        return [
            self._cell(dict(zip(self.vary, chosen)))
            for chosen in itertools.product(*self.vary.values())
        ]

    def _cell(self, varied: dict[str, Any]) -> Cell:
        settings = {group: dict(self.defaults.get(group, {})) for group in GROUPS}
        for name, value in {**self.fixed, **varied}.items():
            group, key = _split(name)
            settings[group][key] = self._checked(name, value)
        return Cell(varied, settings)

    def _checked(self, name: str, value: Any) -> Any:
        group, key = _split(name)
        known = self._known(group)
        if key not in known:
            prefix = "" if group == "training" else f"{group}."
            raise ConfigError(unknown_name("setting", name, [prefix + k for k in known]))
        return check_type(name, value, known[key])

    def _known(self, group: str) -> dict[str, Any]:
        if group == "training":
            hints = typing.get_type_hints(TrainingConfig)
            return {f.name: hints[f.name] for f in fields(TrainingConfig) if f.name not in _OWNED}
        if group == "sample":
            hints = typing.get_type_hints(GaussianDiffusion.sample)
            names = [
                k
                for k in inspect.signature(GaussianDiffusion.sample).parameters
                if k not in _NOT_SAMPLING
            ]
            return {"weights": str, **{k: hints[k] for k in names}}
        target: Any = self.network if group == "model" else GaussianDiffusion
        left_out = {"self", "model", "image_size", "channels", "dims"}
        hints = typing.get_type_hints(target.__init__)
        return {
            k: hints[k] for k in inspect.signature(target.__init__).parameters if k not in left_out
        }


def _split(name: str) -> tuple[str, str]:
    group, dot, key = name.partition(".")
    if not dot:
        return "training", name
    if group not in GROUPS[:3]:
        raise ConfigError(
            unknown_name("group of settings", group, GROUPS[:3])
            + " Options of training have no group."
        )
    return group, key


def _short(name: str) -> str:
    return name.rpartition(".")[2]


def _word(value: Any) -> str:
    """Word a value so that it can stand in a file name."""
    if isinstance(value, (list, tuple)):
        return "-".join(map(_word, value)) or "none"
    if isinstance(value, Mapping):
        return "-".join(f"{k}.{_word(v)}" for k, v in value.items()) or "none"
    word = str(value)
    safe = "".join(c if c.isalnum() or c in "._-" else "_" for c in word)
    return safe if safe == word else f"{safe}-{digest(word)[:4]}"


def digest(value: Any) -> str:
    """Return twelve hex digits that name a JSON-like value."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()
