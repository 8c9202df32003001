"""From the arguments of denoising-diffusion-pytorch to our process, its tables and its levels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ddpm_lib.compat.lucidrains.peer_networks import ours_of
from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.registry import Registry
from ddpm_lib.diffusion import GaussianDiffusion as Process

OBJECTIVES = Registry("objective", {"pred_noise": "eps", "pred_x0": "x0", "pred_v": "v"})
"""What a network predicts, by the names of the original."""
BETA_SCHEDULES = Registry("beta_schedule", {name: name for name in ("linear", "cosine", "sigmoid")})


def make_process(
    model: nn.Module,
    *,
    image_size: int | tuple[int, int],
    timesteps: int,
    schedule: str,
    parametrization: str,
    gamma: float | None,
    offset_noise: float,
    schedule_options: dict[str, float] | None = None,
    immiscible: bool = False,
    vb_loss_weight: float | None = None,
) -> Process:
    """Return our process around a network.

    Args:
        model: A network that `ours_of` takes.
        image_size: Side of the images, or both.
        timesteps: Number of levels.
        schedule: Our name of the schedule.
        parametrization: Our name of what is predicted.
        gamma: γ of min-SNR-γ, None without.
        offset_noise: See our process.
        schedule_options: Options of the schedule.
        immiscible: See our process.
        vb_loss_weight: λ of the bound for a learned variance, None for a fixed one.
    """
    network = ours_of(model)
    learned: dict[str, Any] = {}
    out = getattr(network, "out_channels", None)
    channels = int(network.channels)  # type: ignore[arg-type]
    if vb_loss_weight is not None:
        learned = {"variance": "learned_range", "vlb_weight": vb_loss_weight / timesteps}
        channels_out = 2 * channels
    else:
        channels_out = channels
    if out not in (None, channels_out):
        raise ValueError(
            f"The network returns {out} channels; this process needs {channels_out}."
            " LearnedGaussianDiffusion takes twice the channels of the images."
        )
    if getattr(model, "random_or_learned_sinusoidal_cond", False):
        raise ValueError(
            "Learned or random frequencies of the time belong to processes in continuous time, and"
            " not to this one. Leave learned_sinusoidal_cond and random_fourier_features out."
        )
    weighting: dict[str, Any] = {"weighting": "simple"}
    if gamma is not None:
        weighting = {"weighting": "min_snr", "weighting_options": {"gamma": float(gamma)}}
    return Process(
        network,
        image_size=tuple(image_size) if isinstance(image_size, list) else image_size,
        timesteps=timesteps,
        schedule=schedule,
        schedule_options=schedule_options,
        parametrization=parametrization,
        offset_noise=offset_noise,
        immiscible=immiscible,
        **weighting,
        **learned,
    )


def schedule_options(given: dict[str, float] | None) -> dict[str, float]:
    """Return the options of a schedule; clamp_min is used by nothing there.

    Args:
        given: Its schedule_fn_kwargs.

    Raises:
        ConfigError: For an option without effect.
    """
    options = dict(given or {})
    if "clamp_min" in options:
        raise ConfigError(
            "schedule_fn_kwargs: clamp_min has no effect in denoising-diffusion-pytorch, so it is"
            " refused here. Leave it out."
        )
    return options


def ddim_levels(timesteps: int, steps: int) -> tuple[int, ...]:
    """Return the levels that DDIM visits there, noise first: a float32 linspace, cut to integers.

    >>> ddim_levels(50, 5)
    (50, 40, 30, 20, 10)
    """
    times = torch.linspace(-1, timesteps - 1, steps=steps + 1).int().tolist()
    return tuple(time + 1 for time in reversed(times[1:]))


def tables(process: Process) -> dict[str, Tensor]:
    """Return the tables that the original keeps as buffers, (T,) in float64.

    Args:
        process: Ours.
    """
    alpha, sigma = process.schedule.alpha, process.schedule.sigma
    bar, bar_prev = alpha[1:].square(), alpha[:-1].square()
    betas = -torch.expm1(2 * torch.log(alpha).diff())
    variance = betas * sigma[:-1].square() / sigma[1:].square()
    snr = (alpha[1:] / sigma[1:]).square()
    name, options = process.config["weighting"], process.config["weighting_options"]
    capped = snr.clamp(max=options["gamma"]) if name == "min_snr" else snr
    over = {"eps": snr, "x0": torch.ones_like(snr), "v": snr + 1}
    return {
        "betas": betas,
        "alphas_cumprod": bar,
        "alphas_cumprod_prev": bar_prev,
        "sqrt_alphas_cumprod": alpha[1:],
        "sqrt_one_minus_alphas_cumprod": sigma[1:],
        "log_one_minus_alphas_cumprod": 2 * torch.log(sigma[1:]),
        "sqrt_recip_alphas_cumprod": 1 / alpha[1:],
        "sqrt_recipm1_alphas_cumprod": sigma[1:] / alpha[1:],
        "posterior_variance": variance,
        "posterior_log_variance_clipped": torch.log(variance.clamp(min=1e-20)),
        "posterior_mean_coef1": betas * alpha[:-1] / sigma[1:].square(),
        "posterior_mean_coef2": sigma[:-1].square() * (1 - betas).sqrt() / sigma[1:].square(),
        "loss_weight": capped / over[process.config["parametrization"]],
    }
