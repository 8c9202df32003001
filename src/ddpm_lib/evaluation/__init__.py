"""Scores of a trained run or of a set of images: `ddpm evaluate` and, in Python, `evaluate`."""

from __future__ import annotations

from ddpm_lib.evaluation.distilling import Distilled, distill
from ddpm_lib.evaluation.evaluation_options import EvaluationOptions
from ddpm_lib.evaluation.evaluation_result import Evaluation
from ddpm_lib.evaluation.evaluator import evaluate, evaluate_checkpoints
from ddpm_lib.evaluation.feature_store import Bank, Need
from ddpm_lib.evaluation.final_score import FinalScore
from ddpm_lib.evaluation.metric_table import METRICS, Metric
from ddpm_lib.evaluation.sample_metrics import SampleMetric
from ddpm_lib.evaluation.scores import Score, mean_score
from ddpm_lib.evaluation.tasks import ModelTask, SampleTask, Task
from ddpm_lib.evaluation.training_callback import Evaluate

__all__ = [
    "METRICS",
    "Bank",
    "Distilled",
    "Evaluate",
    "Evaluation",
    "EvaluationOptions",
    "FinalScore",
    "Metric",
    "ModelTask",
    "Need",
    "SampleMetric",
    "SampleTask",
    "Score",
    "Task",
    "distill",
    "evaluate",
    "evaluate_checkpoints",
    "mean_score",
]
