"""Consistency tuning: a trained network learns to jump to the end of the trajectory that it is on.

Easy consistency tuning (Geng et al. 2024, arXiv 2406.14548): two levels t > r of one image and one
noise lie on one line, and the answer at t is pulled to the answer at r, which is closer to the
data. At r = 0, where the answer is known, this is denoising; as r comes closer to t, the answers
become the end of the trajectory of the probability flow (Song et al. 2023).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ddpm_lib.core.errors import ConfigError
from ddpm_lib.process.conditions import Cond
from ddpm_lib.process.denoiser import Denoiser
from ddpm_lib.process.interface import TrainableProcess
from ddpm_lib.process.level_pairs import CONSISTENCY, pairs_of
from ddpm_lib.process.self_conditioning import is_self_conditioned

P = TypeVar("P", bound=nn.Module)

P_MEAN, P_STD = -1.1, 2.0
"""Of ln(σ/α) in training (Geng et al. 2024, appendix on settings: CIFAR-10)."""

SKIP = 0.1
"""Noise at which x_t and the output of a network that predicts x0 count alike: about the error with
which such a network tells a clean image. Without a share of x_t nothing holds the answers at low
noise, and all of them drift away together.
"""


def student_config(
    config: Mapping[str, Any], loss_options: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """Return the arguments of the process that tunes another one for consistency.

    Schedule, prediction, variance, clipping and size stay; what belongs to the training of a
    denoiser goes. A prediction of x0 gets a share of x_t, so that it is exact without noise.

    Args:
        config: Of the process to tune, `GaussianDiffusion.config`.
        loss_options: As for `GaussianDiffusion`.
    """
    if config["parametrization"] == "x0":
        options = config.get("parametrization_options") or {}
        config = {**config, "parametrization_options": {"skip": options.get("skip") or SKIP}}
    return {
        **config,
        "loss": CONSISTENCY,
        "loss_options": dict(loss_options or {}),
        "time_sampler": "log_normal_sigma",
        "time_sampler_options": {"P_mean": P_MEAN, "P_std": P_STD},
        "learn_uncertainty": False,
        "input_perturbation": 0.0,
    }


def for_consistency(self: P, *, loss_options: Mapping[str, float] | None = None) -> P:
    """Return the process that tunes this network to draw in 1 to 4 steps: the same network and
    levels with loss="consistency". `ddpm_lib.distill` trains it and compares both.

    The network is shared, not copied: training changes it here too.

    Args:
        loss_options: As for `GaussianDiffusion`.

    Raises:
        ConfigError: If the network predicts eps, or is shown its own estimate.

    >>> from ddpm_lib import GaussianDiffusion, Unet
    >>> diffusion = GaussianDiffusion(Unet(dim=8, dim_mults=(1,)), image_size=8)
    >>> diffusion.for_consistency(loss_options={"stages": 2}).loss
    'consistency'
    """
    process: Any = self
    made = type(self)(process.model, **student_config(process.config, loss_options))
    made.class_names = process.class_names
    made.normalization = process.normalization
    return made


def consistency_losses(
    process: TrainableProcess,
    denoiser: Denoiser,
    x0: Tensor,
    eps: Tensor,
    t: Tensor,
    cond: Cond | None,
    progress: float,
) -> Tensor:
    """Return the distance of the answers at t and at r, divided by t̃ − r̃, (b,).

    The answer at r is the network's own, without gradient and with the same dropout masks (Geng et
    al. 2024, algorithm 1).

    Args:
        process: The process; its `pairs` say which r belongs to t.
        denoiser: The process's, with the network to train.
        x0: Clean images (b, c, *spatial) in [-1, 1].
        eps: Their noise, the same at both levels.
        t: Levels in 1 … T, (b,) on the CPU.
        cond: Conditions by name, (b, …), the same at both levels.
        progress: The part of the training that is done, in [0, 1].
    """
    pairs = process.pairs
    assert pairs is not None
    at = pairs_of(process.schedule, process.parametrization, pairs, t, progress, x0)
    target = x0
    if not at.every_r_is_clean:
        x_r = at.alpha_r * x0 + at.sigma_r * eps
        with torch.no_grad(), masks_kept(x0.device):
            guess = _jump(denoiser, x_r, at.alpha_r, at.sigma_r, at.time_r, cond)
        target = torch.where(at.clean > 0, x0, guess)
    x_t = at.alpha * x0 + at.sigma * eps
    guess = _jump(denoiser, x_t, at.alpha, at.sigma, at.time, cond)
    square = (guess - target).square().flatten(1).mean(1)
    return at.weight * ((square + pairs.huber**2).sqrt() - pairs.huber)


def _jump(
    denoiser: Denoiser, x: Tensor, alpha: Tensor, sigma: Tensor, time: Tensor, cond: Cond | None
) -> Tensor:
    output, _ = denoiser.raw(x, alpha, sigma, time.clamp(min=0.0).float(), cond)
    return denoiser.clean(x, output, alpha, sigma, clip="none")


@contextlib.contextmanager
def masks_kept(device: torch.device) -> Iterator[None]:
    """Put torch's global generators back afterwards, so that what follows draws the same dropout
    masks.
    """
    module: Any = None if device.type == "cpu" else torch.get_device_module(device.type)
    index = () if device.type == "mps" else (device,)
    before = torch.default_generator.get_state()
    there = None if module is None else module.get_rng_state(*index)
    try:
        yield
    finally:
        torch.default_generator.set_state(before)
        if module is not None:
            module.set_rng_state(there, *index)


def check_consistency(process: TrainableProcess) -> None:
    """Refuse what cannot be tuned for consistency.

    Raises:
        ConfigError: Saying why, and what can.
    """
    reason = obstacle(process)
    if reason:
        raise ConfigError(reason)


def obstacle(process: TrainableProcess) -> str:
    """Say why a process cannot be tuned for consistency; "" where it can."""
    if process.parametrization.needs_signal:
        noise = float(process.schedule.sigma[-1] / process.schedule.alpha[-1])
        return (
            "loss='consistency' cannot tune a network that predicts eps: its clean image is (x_t −"
            f" σ·ε̂)/α, and from pure noise, in one step, every error of ε̂ counts σ/α = {noise:.3g}"
            " times. The weights cannot be converted either, as a prediction of another kind is no"
            " linear function of them. Train a run that predicts v, x0 or edm"
            " (parametrization='v', --diffusion.parametrization v)."
        )
    if is_self_conditioned(process.conditioners):
        return (
            "loss='consistency' cannot tune a network that is shown its own estimate"
            " (self_condition): the two answers of a pair would be given different ones, and a"
            " single step has none. Train a run with self_condition=False"
            " (--no-model.self-condition)."
        )
    for name, on in (
        ("learn_uncertainty", process.uncertainty is not None),
        ("input_perturbation", process.noising.perturbation > 0),
    ):
        if on:
            why = {
                "learn_uncertainty": "its levels have their weights, 1/(t − r)",
                "input_perturbation": "both levels of a pair must lie on one line",
            }[name]
            off = {"learn_uncertainty": "False", "input_perturbation": "0"}[name]
            return f"loss='consistency' forbids {name}: {why}. Use {name}={off}."
    return ""
