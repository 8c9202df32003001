"""The process of a checkpoint of denoising-diffusion-pytorch, read off the tables in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ddpm_lib.core.errors import CheckpointError, ConfigError
from ddpm_lib.core.spelling import option
from ddpm_lib.interop.given import refuse_given
from ddpm_lib.nn import LucidrainsUnet
from ddpm_lib.schedules import Schedule

BUFFERS = frozenset(
    (
        "betas",
        "alphas_cumprod",
        "alphas_cumprod_prev",
        "sqrt_alphas_cumprod",
        "sqrt_one_minus_alphas_cumprod",
        "log_one_minus_alphas_cumprod",
        "sqrt_recip_alphas_cumprod",
        "sqrt_recipm1_alphas_cumprod",
        "posterior_variance",
        "posterior_log_variance_clipped",
        "posterior_mean_coef1",
        "posterior_mean_coef2",
        "loss_weight",
    )
)
"""The tables of its GaussianDiffusion; all follow from betas but the last."""

_OF_PROCESS = ("timesteps", "schedule", "schedule_options", "parametrization")
_SCHEDULES = ("linear", "cosine", "sigmoid")
_CLOSE = 2e-4
"""Relative: its sigmoid schedule evaluates two constants in float32, up to 6e-5 off in β."""


def process_config(
    model: LucidrainsUnet,
    buffers: Mapping[str, Tensor],
    given: Mapping[str, Any],
    notes: list[str],
    where: str,
) -> dict[str, Any] | None:
    """Return the arguments of our `GaussianDiffusion` but for the size of the images, None for a
    network that belongs to no process of ours.

    Args:
        model: The network; it may lie on the meta device.
        buffers: The tables, empty for a network alone.
        given: What the user says.
        notes: Gets what was assumed.
        where: The file, for messages.

    Raises:
        CheckpointError: If the tables are none of a diffusion process.
        ConfigError: If they contradict what is given.
    """
    alone = f"The network in {where} belongs to no process"
    if model.config["time_features"] != "sinusoidal" and not buffers:
        refuse_given(given, _OF_PROCESS, alone)
        notes.append(
            "Its network with learned or random frequencies of the time belongs to processes in"
            " continuous time, which are not translated: the network alone is read."
        )
        return None
    learned = model.out_channels == 2 * model.channels
    if model.out_channels != model.channels and not learned:
        refuse_given(given, _OF_PROCESS, alone)
        notes.append(
            f"A network with {model.channels} channels in and {model.out_channels} out belongs to"
            " no process: the network alone is read."
        )
        return None
    schedule = _schedule_of(model, buffers, given, notes, where)
    process = {
        "channels": model.channels,
        "timesteps": schedule.timesteps,
        "schedule": schedule.name,
        "schedule_options": dict(schedule.options),
        "variance": "learned_range" if learned else "fixed_small",
        "clip": "static",
    }
    if buffers:
        notes.append(
            "Offset noise, immiscible noise and auto_normalize=False would not show in the file:"
            " taken to be not used."
        )
    if learned:
        # Whatever its objective says, LearnedGaussianDiffusion trains and reads it as the noise.
        if given.get("parametrization", "eps") != "eps":
            why = f"A network with a learned variance, as that in {where}, predicts eps"
            refuse_given(given, ("parametrization",), why)
        timesteps = schedule.timesteps
        process |= {"parametrization": "eps", "weighting": "simple", "loss": "hybrid"}
        return process | {"vlb_weight": 0.001 / timesteps}
    return process | _objective(model, buffers, schedule, given, notes, where)


def _schedule_of(
    model: LucidrainsUnet,
    buffers: Mapping[str, Tensor],
    given: Mapping[str, Any],
    notes: list[str],
    where: str,
) -> Schedule:
    """Return the schedule of the tables; without tables the one given, or its default."""
    named, options = given.get("schedule"), given.get("schedule_options")
    if not buffers:
        default = "sigmoid" if model.config["num_classes"] is None else "cosine"
        if named is None or "timesteps" not in given:
            notes.append(
                "A network alone does not say its noise levels: taken to be"
                f" {given.get('timesteps', 1000)} of the schedule {named or default}, as by"
                f" default; {option('timesteps')} and {option('schedule')} otherwise."
            )
        return Schedule.make(named or default, int(given.get("timesteps", 1000)), options)
    betas = buffers["betas"]
    if not isinstance(betas, Tensor) or betas.ndim != 1 or len(betas) < 2:
        raise CheckpointError(f"{where}: its betas are no list of at least two numbers.")
    betas = betas.double()
    if not bool(((betas > 0) & (betas < 1)).all()):
        raise CheckpointError(f"{where}: its betas are not all between 0 and 1.")
    timesteps = len(betas)
    if given.get("timesteps", timesteps) != timesteps:
        raise ConfigError(
            f"{where} has {timesteps} noise levels; got timesteps={given['timesteps']}. Leave"
            f" {option('timesteps')} out."
        )
    if named is None:
        refuse_given(given, ("schedule_options",), f"{where} says its noise levels")
    for name in _SCHEDULES if named is None else (named,):
        schedule = Schedule.make(name, timesteps, options if name == named else None)
        if torch.allclose(_betas_of(schedule), betas, rtol=_CLOSE, atol=1e-9):
            return schedule
    if named is not None:
        raise ConfigError(
            f"The noise levels in {where} are not those of the schedule {named!r} with these"
            f" options. Leave {option('schedule')} out: they are then taken as they are."
        )
    notes.append(
        "Its noise levels are none of the named schedules with the usual options: the betas are"
        " taken as they are."
    )
    return Schedule.make("betas", timesteps, {"betas": tuple(betas.tolist())})


def _betas_of(schedule: Schedule) -> Tensor:
    """Return β_t = 1 − ᾱ_t/ᾱ_{t−1} for t = 1 … T."""
    log_alpha_bar = 2 * torch.log(schedule.alpha[1:])
    return -torch.expm1(torch.diff(log_alpha_bar, prepend=log_alpha_bar.new_zeros(1)))


def _objective(
    model: LucidrainsUnet,
    buffers: Mapping[str, Tensor],
    schedule: Schedule,
    given: Mapping[str, Any],
    notes: list[str],
    where: str,
) -> dict[str, Any]:
    """Return what the network predicts and the weights of the loss, which the table says."""
    asked = given.get("parametrization")
    weights = buffers.get("loss_weight")
    found = None
    if isinstance(weights, Tensor) and weights.shape == (schedule.timesteps,):
        found = objective_of(weights.double(), schedule)
    if found is None:
        default = "v" if model.config["num_classes"] is None else "eps"
        if asked is None:
            notes.append(
                f"The file does not say what the network predicts: taken to be {default}, the"
                f" default; {option('parametrization')} otherwise."
            )
        return {"parametrization": asked or default, "weighting": "simple"}
    parametrization, gamma = found
    if asked not in (None, parametrization):
        raise ConfigError(
            f"The weights of the loss in {where} are those of a network that predicts"
            f" {parametrization}, not {asked}. Leave {option('parametrization')} out."
        )
    if gamma is None:
        return {"parametrization": parametrization, "weighting": "simple"}
    options = {"weighting": "min_snr", "weighting_options": {"gamma": gamma}}
    return {"parametrization": parametrization, **options}


def objective_of(weights: Tensor, schedule: Schedule) -> tuple[str, float | None] | None:
    """Return what the network predicts, and γ of min-SNR-γ (None without), as the loss weighs it.

    Its table holds min(SNR, γ) times 1/SNR for eps, 1 for x0 and 1/(SNR + 1) for v.

    Args:
        weights: The table, (T,) in float64.
        schedule: The noise levels.
    """
    snr = (schedule.alpha[1:] / schedule.sigma[1:]).square()
    for name, factor in (("eps", snr), ("x0", torch.ones_like(snr)), ("v", snr + 1)):
        capped = weights * factor
        gamma = float(capped.max())
        if torch.allclose(capped, snr.clamp(max=gamma), rtol=1e-3, atol=0):
            return name, None if gamma > float(snr.max()) * (1 - 1e-3) else round(gamma, 4)
    return None
