"""The options of an evaluation: one validated list for `evaluate(...)` and the flags of `ddpm evaluate`."""

from __future__ import annotations

import typing
from dataclasses import dataclass
from typing import Literal

from ddpm_lib.evaluation.metrics import METRICS
from ddpm_lib.training.config import ConfigError, check_type


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """Options of `evaluate`; every one is also a flag of `ddpm evaluate`.

    Raises:
        ConfigError: At construction, for a wrong type, an impossible value or an unknown metric.
    """

    metrics: str = "nll"
    """Names separated by commas: nll (bits/dim by the variational bound), flow_nll (bits/dim by the probability flow)."""
    data: str = "held-out"
    """held-out: what the run held out; train: what it was trained on; else a folder, file or dataset."""
    split: str | None = None
    """Split of `data`, where it is a dataset that has several."""
    num: int | None = None
    """Number of images, spread evenly over the data; default: all."""
    checkpoint: str = "latest"
    """latest, a step (1200) or a name (step-000001200)."""
    weights: Literal["ema", "model"] = "ema"
    """The averaged weights, or the raw ones."""
    ema_decay: float | None = None
    """Which average, where several were kept; default: the first."""
    num_levels: int | None = None
    """nll: estimate the sum over the steps, without bias, from so many of them per image; default: all, which takes long."""
    num_steps: int | None = None
    """nll: steps of the chain, for the bound of sampling with so few; default: all T."""
    tolerance: float = 1e-5
    """flow_nll: relative and absolute tolerance of the solver."""
    flow_group: int = 16
    """flow_nll: images integrated together. They share the solver's steps, so another group agrees up to the tolerance only."""
    batch_size: int = 64
    """nll: images and network evaluations at a time, per process; no effect on the numbers."""
    seed: int = 0
    """Names the noise: that of image i is a function of seed and i."""
    device: Literal["auto", "cpu", "cuda", "mps", "xpu"] = "auto"
    """Where to evaluate. The network runs in float32."""
    progress: bool = True
    """Show a progress bar."""

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(EvaluationOptions)
        for name, hint in hints.items():
            object.__setattr__(self, name, check_type(name, getattr(self, name), hint))
        for name in self.metric_names:
            METRICS[name]
        at_least = {"num": 1, "num_levels": 2, "num_steps": 1, "flow_group": 1, "batch_size": 1, "seed": 0}
        for name, least in at_least.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{name} must be at least {least}; got {value}.")
        if not 0 < self.tolerance < 1:
            raise ConfigError(
                f"tolerance must lie between 0 and 1; got {self.tolerance}. Use 1e-5, or 1e-3 for a quick look."
            )

    @property
    def metric_names(self) -> list[str]:
        """The names in `metrics`, each once, in the order given."""
        return list(dict.fromkeys(name.strip() for name in self.metrics.split(",")))
