"""The options of a tuning: one validated list for `tune(...)` and the flags of `ddpm tune`."""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass
from typing import Any

from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.registry import unknown_name
from ddpm_lib.core.spelling import option
from ddpm_lib.core.validation import check_device_name, check_type
from ddpm_lib.metrics import FEATURES
from ddpm_lib.samplers import SAMPLERS

SOLVERS = ("dpmpp_2m", "unipc", "dpmpp_3m", "deis", "ddim", "heun")
"""Deterministic samplers that are tried unless others are named."""
CALLS_PER_STEP = {"heun": 2, "dpmpp_2s": 2}
"""Network calls of a step; the last one, to clean data, takes one."""
_RANDOM = ("ddpm", "dpmpp_2m_sde")

MOST_CALLS = 100


@dataclass(frozen=True, kw_only=True)
class TuneOptions:
    """Options of `tune`; every one is also a flag of `ddpm tune`.

    Raises:
        ConfigError: At construction, for a wrong type or an impossible value.
    """

    calls: int = 10
    """Network calls per image, those of guidance included."""
    samplers: tuple[str, ...] = SOLVERS
    """Deterministic samplers to try."""
    num: int = 500
    """Samples that each way of sampling is judged by."""
    starts: int = 64
    """Images whose end points the levels are learned from."""
    teacher_calls: int = 100
    """Network calls of the many steps whose end points the few are to reach."""
    iterations: int = 80
    """Steps of the optimizer that moves the levels; 0 compares fixed spacings only."""
    guidance: bool = True
    """Try guidance too: by classes where the network has some, and by worse versions of the run."""
    data: str = "train"
    """Images to compare with: train, held-out, a folder, file or dataset. One half chooses, the
    other reports.
    """
    condition: tuple[str, ...] = ()
    """Where the conditions of `data` are, NAME=SOURCE[:COLUMN], once per condition, where that is a
    folder, file or dataset; default: where those of the training images are.
    """
    features: str = "random64"
    """Features in which pictures are compared, as for ddpm evaluate: random64 (needs no weights),
    pixels, inception2048, …
    """
    feature_weights: str | None = None
    """File of Inception weights."""
    checkpoint: str = "latest"
    """latest, best (by keep_best), a step (1200) or a name (step-000001200)."""
    batch_size: int = 32
    """Images at a time, per process."""
    seed: int = 0
    """Names the noise, the halves and the order of learning."""
    device: str = "auto"
    """Where to compute: auto, cpu, cuda, mps, xpu, or cuda:1 for one GPU by its number."""
    progress: bool = True
    """Say what is being done."""

    def __post_init__(self) -> None:
        if isinstance(self.condition, str):
            object.__setattr__(self, "condition", (self.condition,))
        for name, hint in typing.get_type_hints(TuneOptions).items():
            object.__setattr__(self, name, check_type(name, getattr(self, name), hint))
        object.__setattr__(self, "device", check_device_name("device", self.device))
        least = {"num": 20, "starts": 4, "teacher_calls": 2, "iterations": 0, "batch_size": 1}
        for name, low in {**least, "seed": 0, "calls": 1}.items():
            value = getattr(self, name)
            if value < low:
                raise ConfigError(f"{option(name)} must be at least {low}; got {value}.")
        if self.calls > MOST_CALLS:
            raise ConfigError(
                f"{option('calls')} must be at most {MOST_CALLS}, as every solver is good with"
                f" more; got {self.calls}."
            )
        if self.teacher_calls < 2 * self.calls:
            raise ConfigError(
                f"{option('teacher_calls')} must be at least twice {option('calls')}, to know where"
                f" few steps should end; got {self.teacher_calls} and {self.calls}."
            )
        if not self.samplers:
            raise ConfigError(f"{option('samplers')} must name at least one; got none.")
        for name in self.samplers:
            self._check_sampler(name)
        FEATURES[self.features]

    def _check_sampler(self, name: str) -> None:
        if name not in SAMPLERS:
            raise ConfigError(unknown_name("sampler", name, SAMPLERS))
        if name in _RANDOM or name not in (*SOLVERS, "euler", "dpmpp_2s"):
            raise ConfigError(
                f"{option('samplers')}: {name} is no deterministic solver, and levels are learned"
                f" for those. Choose among {', '.join((*SOLVERS, 'euler', 'dpmpp_2s'))}."
            )

    @classmethod
    def of(cls, values: dict[str, Any]) -> TuneOptions:
        """Return the options of keywords.

        Raises:
            ConfigError: For unknown names and wrong values.
        """
        from ddpm_lib.core.validation import unknown_options

        unknown_options(values, [f.name for f in dataclasses.fields(cls)], "tune")
        step = values.get("checkpoint")
        if isinstance(step, int) and not isinstance(step, bool):
            values = {**values, "checkpoint": str(step)}
        return cls(**values)


def steps_for(sampler: str, calls: int) -> int:
    """Return how many steps of a sampler take at most so many network calls without guidance.

    >>> steps_for("heun", 9), steps_for("ddim", 9)
    (5, 9)
    """
    each = CALLS_PER_STEP.get(sampler, 1)
    return max(1, (calls - 1) // each + 1)


def calls_of(sampler: str, steps: int) -> int:
    """Return the network calls of so many steps without guidance.

    >>> calls_of("heun", 5), calls_of("ddim", 9)
    (9, 9)
    """
    return (steps - 1) * CALLS_PER_STEP.get(sampler, 1) + 1
