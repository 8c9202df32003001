"""Choosing how a run is sampled in few network calls: `ddpm tune` and, in Python, `tune`."""

from __future__ import annotations

from ddpm_lib.evaluation.tuning.tune_options import TuneOptions
from ddpm_lib.evaluation.tuning.tune_result import Tuned
from ddpm_lib.evaluation.tuning.tuner import tune

__all__ = ["TuneOptions", "Tuned", "tune"]
