"""Whether the parts of a process fit each other, and the weights that follow from them; asked once,
at construction.
"""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor

from ddpm_lib.core.options import registered_name
from ddpm_lib.nn.outside import refuse_noise_levels, said
from ddpm_lib.process.consistency import check_consistency
from ddpm_lib.process.interface import TrainableProcess
from ddpm_lib.process.level_pairs import CONSISTENCY
from ddpm_lib.schedules import Schedule
from ddpm_lib.time_sampling import TIME_SAMPLERS
from ddpm_lib.weighting import WEIGHTINGS


def check_parts_fit(process: TrainableProcess) -> None:
    """Refuse what could never train or sample.

    Raises:
        ValueError: Saying which parts contradict each other, and what to use.
    """
    refuse_noise_levels(process.model)
    if process.parametrization.needs_signal and float(process.schedule.alpha[-1]) == 0:
        raise ValueError(
            "The schedule ends in pure noise (zero terminal SNR), where a predicted eps says"
            " nothing about the image. Use parametrization='v' or 'x0', or a schedule that keeps"
            " some signal."
        )
    outputs, wanted = (
        said(process.model, "out_channels"),
        process.channels * process.variance.outputs,
    )
    if isinstance(outputs, int) and outputs != wanted:
        raise ValueError(
            f"The network returns {outputs} channels, but images of {process.channels} channels and"
            f" this variance need {wanted}. Build the network with out_channels={wanted}."
        )
    _check_loss(process)
    if process.loss == CONSISTENCY:
        check_consistency(process)
    _warn_of_a_floor(process.schedule)


_COARSE = 0.11
"""σ/α of the cleanest level from which on samples visibly keep its noise."""
_FINE_TABLE = 100
"""Levels from which on a coarse cleanest level is not what was asked for."""


def _warn_of_a_floor(schedule: Schedule) -> None:
    cleanest = float(schedule.sigma[1] / schedule.alpha[1])
    if schedule.timesteps < _FINE_TABLE or cleanest <= _COARSE:
        return
    remedy = "Choose options, or a schedule, with a cleaner first level (cosine)."
    if schedule.name == "laplace":
        mu = float(schedule.options.get("mu", 0.0))
        b = (2 * math.log(100.0) - mu) / math.log((schedule.timesteps + 1) / 2)
        remedy = (
            f"schedule_options={{'b': {b:.2g}}} begins at 0.01; so do other schedules, such as"
            " cosine."
        )
    warnings.warn(
        f"The cleanest level of the schedule {schedule.name!r} has σ/α = {cleanest:.2g}: the last"
        " step of sampling goes from there to data, which leaves an error of that size (in [-1,"
        f" 1]) whatever the number of steps. {remedy}",
        UserWarning,
        stacklevel=4,
    )


def _check_loss(process: TrainableProcess) -> None:
    learned = process.variance.outputs > 1
    if learned and process.loss == "simple":
        raise ValueError(
            "loss='simple' would never train a learned variance. Use loss='hybrid' or 'vlb'."
        )
    if not learned and process.loss == "hybrid":
        raise ValueError(
            "In loss='hybrid' the bound trains the variance only, and a fixed one has nothing to"
            " train. Use variance='learned_range', or loss='simple' or 'vlb'."
        )
    if process.loss in ("hybrid", "vlb") and process.time_sampler.continuous:
        name = registered_name(TIME_SAMPLERS, process.time_sampler)
        raise ValueError(
            f"loss={process.loss!r} sums over the steps between levels, and the time sampler "
            f"{name!r} draws times between them. Use loss='simple' with weighting='vlb', which is "
            "the bound in continuous time, and a fixed variance; or time_sampler='uniform'."
        )
    if process.loss == "vlb" and process.uncertainty is not None:
        raise ValueError(
            "learn_uncertainty balances the noise levels, which loss='vlb' forbids: its levels have"
            " their weights. Use loss='simple' or 'hybrid'."
        )
    if not process.vlb_weight > 0:
        raise ValueError(
            f"vlb_weight must be > 0, got {process.vlb_weight}. Nichol & Dhariwal use 0.001."
        )


def loss_weights(process: TrainableProcess) -> Tensor:
    """Tabulate w(SNR_t)·c_out², the weight of the network's squared error; 0 at t = 0, which is
    never trained.
    """
    alpha, sigma = process.schedule.alpha[1:], process.schedule.sigma[1:]
    weights = (
        process.weighting(process.schedule.snr[1:])
        * process.parametrization.c_out(alpha, sigma).square()
    )
    if not torch.all(torch.isfinite(weights) & (weights >= 0)):
        raise ValueError(
            f"{process.weighting} with {process.parametrization} and {process.schedule} gives"
            " weights that are negative or not finite. Choose another weighting."
        )
    if weights[-1] == 0 and process.loss in ("simple", "hybrid"):
        name = registered_name(WEIGHTINGS, process.weighting)
        warnings.warn(
            f"The weighting {name!r} gives the noisiest level, where sampling starts, the weight 0"
            " on this schedule: it would never be trained. Use weighting='snr_plus_one' or"
            " 'flat'.",
            UserWarning,
            stacklevel=3,
        )
    return torch.cat([weights.new_zeros(1), weights])
