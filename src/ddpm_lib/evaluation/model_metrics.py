"""Likelihoods of images under a model, in bits/dim."""

from __future__ import annotations

import torch
from torch import Tensor

from ddpm_lib.evaluation.scores import Score, mean_score
from ddpm_lib.evaluation.tasks import ModelTask


def nll(task: ModelTask) -> list[Score]:
    """Bits/dim by the variational bound: the whole, the prior, the steps between, and the decoder
    (Ho et al. 2020, eq. 5).
    """
    options, diffusion = task.options, task.model()

    def score(rows: range) -> Tensor:
        images, cond = task.batch(rows)
        bits = diffusion.bits_per_dim(
            images,
            num_levels=options.num_levels,
            num_steps=options.num_steps,
            seed=options.seed,
            first_index=rows.start,
            cond=cond,
            batch_size=options.batch_size,
        )
        return torch.stack(
            [bits.total, bits.prior, bits.total - bits.prior - bits.decoder, bits.decoder], 1
        )

    values = task.per_image("nll", 4, options.batch_size, score, resume=True)
    names = ("nll", "nll/prior", "nll/vlb", "nll/decoder")
    return [mean_score(name, column, "bits/dim") for name, column in zip(names, values.T)]


def flow_nll(task: ModelTask) -> list[Score]:
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
