"""The metrics by name: functions from a `Task` to a list of scores."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ddpm_lib.core.registry import Registry
from ddpm_lib.evaluation.gap import gap, loss_gap
from ddpm_lib.evaluation.sample_metrics import SAMPLE_METRICS, SampleMetric
from ddpm_lib.evaluation.task import Score, Task, mean_score


def nll(task: Task) -> list[Score]:
    """Bits/dim by the variational bound: the whole, the prior, the steps between, and the decoder (Ho et al. 2020, eq. 5)."""
    options, diffusion = task.options, task.model()

    def score(rows: range) -> Tensor:
        images, cond = task.batch(rows)
        bits = diffusion.bits_per_dim(
            images, num_levels=options.num_levels, num_steps=options.num_steps, seed=options.seed, first_index=rows.start,
            cond=cond, batch_size=options.batch_size,
        )  # fmt: skip
        return torch.stack([bits.total, bits.prior, bits.total - bits.prior - bits.decoder, bits.decoder], 1)

    values = task.per_image("nll", 4, options.batch_size, score, resume=True)
    names = ("nll", "nll/prior", "nll/vlb", "nll/decoder")
    return [mean_score(name, column, "bits/dim") for name, column in zip(names, values.T)]


def flow_nll(task: Task) -> list[Score]:
    """Bits/dim by the density along the probability flow (Song et al. 2021, §4.3)."""
    options, diffusion = task.options, task.model()

    def score(rows: range) -> Tensor:
        images, cond = task.batch(rows)
        bits = diffusion.flow_bits_per_dim(
            images,
            seed=options.seed,
            first_index=rows.start,
            cond=cond,
            batch_size=len(rows),
            tolerance=options.tolerance,
        )
        return bits.total[:, None]

    values = task.per_image("flow_nll", 1, options.flow_group, score, resume=True)
    return [mean_score("flow_nll", values[:, 0], "bits/dim")]


Metric = Callable[[Task], list[Score]]
METRICS: Registry[Metric] = Registry(
    "metric", {"nll": nll, "flow_nll": flow_nll, "gap": gap, "loss_gap": loss_gap, **SAMPLE_METRICS}
)
GAPS = ("gap", "loss_gap")
"""Metrics that compare a run's own two sets."""


def looks_at_images(name: str) -> bool:
    """Say whether a metric scores the model on the images that the option `data` names."""
    return name not in GAPS and not isinstance(METRICS[name], SampleMetric)
