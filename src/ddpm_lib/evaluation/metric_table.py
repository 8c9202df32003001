"""The metrics by name: functions from a task to a list of scores."""

from __future__ import annotations

from collections.abc import Callable

from ddpm_lib.core.registry import Registry
from ddpm_lib.evaluation.adherence import adherence
from ddpm_lib.evaluation.gap import gap, loss_gap
from ddpm_lib.evaluation.model_metrics import flow_nll, nll
from ddpm_lib.evaluation.sample_metrics import SAMPLE_METRICS, SampleMetric
from ddpm_lib.evaluation.scores import Score
from ddpm_lib.evaluation.tasks import ModelTask

Metric = Callable[[ModelTask], list[Score]] | SampleMetric
METRICS: Registry[Metric] = Registry(
    "metric",
    {
        "nll": nll,
        "flow_nll": flow_nll,
        "gap": gap,
        "loss_gap": loss_gap,
        "adherence": adherence,
        **SAMPLE_METRICS,
    },
)
GAPS = ("gap", "loss_gap")
"""Metrics that compare a run's own two sets."""


def looks_at_images(name: str) -> bool:
    """Say whether a metric scores the model on the images that the option `data` names."""
    return name not in GAPS and not isinstance(METRICS[name], SampleMetric)
