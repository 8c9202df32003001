"""The training loop, its options, callbacks and checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ddpm_lib.core.errors import (
    CheckpointError,
    ConfigError,
    DivergedError,
    LostProcessError,
    OutOfMemoryError,
)
from ddpm_lib.core.lazy_names import lazy_names
from ddpm_lib.runtime.devices import process_state
from ddpm_lib.training.callbacks.base import Callback
from ddpm_lib.training.config import TrainingConfig
from ddpm_lib.training.results import TrainingResult
from ddpm_lib.training.trainer import Trainer

if TYPE_CHECKING:
    from ddpm_lib.runs.loading import LoadedRun, load_run
    from ddpm_lib.runs.synthesis import SynthesisedEma, synthesise_ema

_HOME = {
    "LoadedRun": "ddpm_lib.runs.loading",
    "load_run": "ddpm_lib.runs.loading",
    "SynthesisedEma": "ddpm_lib.runs.synthesis",
    "synthesise_ema": "ddpm_lib.runs.synthesis",
}

__getattr__, __dir__ = lazy_names(__name__, _HOME)

__all__ = [
    "Callback",
    "CheckpointError",
    "ConfigError",
    "DivergedError",
    "LoadedRun",
    "LostProcessError",
    "OutOfMemoryError",
    "SynthesisedEma",
    "Trainer",
    "TrainingConfig",
    "TrainingResult",
    "load_run",
    "process_state",
    "synthesise_ema",
]
