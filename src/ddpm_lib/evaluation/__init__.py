"""Scores of a trained run on images: `ddpm evaluate` and, in Python, `evaluate`."""

from __future__ import annotations

from ddpm_lib.evaluation.metrics import METRICS, Metric
from ddpm_lib.evaluation.options import EvaluationOptions
from ddpm_lib.evaluation.runner import Evaluation, evaluate
from ddpm_lib.evaluation.task import Score, Task, mean_score

__all__ = ["METRICS", "Evaluation", "EvaluationOptions", "Metric", "Score", "Task", "evaluate", "mean_score"]
