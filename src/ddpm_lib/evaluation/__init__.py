"""Scores of a trained run or of a set of images: `ddpm evaluate` and, in Python, `evaluate`."""

from __future__ import annotations

from ddpm_lib.evaluation.bank import Bank, Need
from ddpm_lib.evaluation.callback import Evaluate
from ddpm_lib.evaluation.metrics import METRICS, Metric
from ddpm_lib.evaluation.options import EvaluationOptions
from ddpm_lib.evaluation.result import Evaluation
from ddpm_lib.evaluation.runner import evaluate, evaluate_checkpoints
from ddpm_lib.evaluation.sample_metrics import SampleMetric
from ddpm_lib.evaluation.task import Score, Task, mean_score

__all__ = [
    "METRICS",
    "Bank",
    "Evaluate",
    "Evaluation",
    "EvaluationOptions",
    "Metric",
    "Need",
    "SampleMetric",
    "Score",
    "Task",
    "evaluate",
    "evaluate_checkpoints",
    "mean_score",
]
