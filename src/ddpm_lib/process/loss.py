"""The training loss of a diffusion process.

`GaussianDiffusion` binds `forward`, `losses`, `effective_weights` and `q_sample` as its methods.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, overload

import numpy as np
import torch
from torch import Tensor, nn

from ddpm_lib.core.device_copy import copies_by_itself, to_device
from ddpm_lib.images import to_model_range
from ddpm_lib.process.conditions import Cond, Conditioners, Draws, for_training, fresh_draws, hidden
from ddpm_lib.process.conditions import drop as drop_conditions
from ddpm_lib.process.consistency import consistency_losses
from ddpm_lib.process.denoiser import Denoiser
from ddpm_lib.process.interface import TrainableProcess
from ddpm_lib.process.level_pairs import CONSISTENCY
from ddpm_lib.process.self_conditioning import (
    SELF_CONDITION,
    is_self_conditioned,
    training_estimate,
)
from ddpm_lib.time_sampling import drawn_levels


@dataclass(frozen=True, eq=False)
class Losses:
    """The losses of a training batch, and what a log needs beside them.

    Attributes:
        per_image: The loss of each image, times its weight, (b,), on the device of the network.
        t: Their levels (b,) on the CPU, int64, or float64 where the time sampler is continuous.
        weight: Importance weights 1/(T·p(t)) of the levels, (b,), like `per_image`.
    """

    per_image: Tensor
    t: Tensor
    weight: Tensor


@dataclass
class Noisy:
    """Noisy images, each at its own level: x (b, c, *spatial), α and σ (b, 1, …), the network's
    time (b,).
    """

    x: Tensor
    alpha: Tensor
    sigma: Tensor
    time: Tensor

    def __getitem__(self, rows: Tensor) -> Noisy:
        return Noisy(self.x[rows], self.alpha[rows], self.sigma[rows], self.time[rows])

    def ask(self, denoiser: Denoiser, cond: Cond | None) -> tuple[Tensor, Tensor | None]:
        """Return F and the raw variance; see `Denoiser.raw`."""
        return denoiser.raw(self.x, self.alpha, self.sigma, self.time.float(), cond)


class Levels(NamedTuple):
    """What depends on the levels of a batch.

    α and σ are (b, 1, …); the weight of F's error, the importance, the network's time and the
    log-SNR are (b,).
    """

    alpha: Tensor
    sigma: Tensor
    weight: Tensor
    importance: Tensor
    time: Tensor
    log_snr: Tensor


@overload
def forward(
    self: TrainableProcess,
    images: Tensor | np.ndarray | Mapping[str, Tensor] | Sequence[Tensor],
    cond: Mapping[str, Tensor] | None = None,
    *,
    t: Tensor | None = None,
    noise: Tensor | None = None,
    uniform: Draws | None = None,
    drop: Draws | Mapping[str, Draws] | None = None,
    progress: float = 1.0,
    reduction: Literal["mean", "none"] = "mean",
    model: nn.Module | None = None,
) -> Tensor: ...


@overload
def forward(
    self: TrainableProcess,
    images: Tensor | np.ndarray | Mapping[str, Tensor] | Sequence[Tensor],
    cond: Mapping[str, Tensor] | None = None,
    *,
    t: Tensor | None = None,
    noise: Tensor | None = None,
    uniform: Draws | None = None,
    drop: Draws | Mapping[str, Draws] | None = None,
    progress: float = 1.0,
    reduction: Literal["losses"],
    model: nn.Module | None = None,
) -> Losses: ...


def forward(
    self: TrainableProcess,
    images: Tensor | np.ndarray | Mapping[str, Tensor] | Sequence[Tensor],
    cond: Mapping[str, Tensor] | None = None,
    *,
    t: Tensor | None = None,
    noise: Tensor | None = None,
    uniform: Draws | None = None,
    drop: Draws | Mapping[str, Draws] | None = None,
    progress: float = 1.0,
    reduction: Literal["mean", "none", "losses"] = "mean",
    model: nn.Module | None = None,
) -> Tensor | Losses:
    """Return the training loss E_t [w·c_out²·‖F(x_t, t) − target‖²], each image averaged over its
    values.

    That is loss="simple"; "hybrid" and "vlb" add or are T·(bits/dim of the step t → t − 1), whose
    mean over t is the bound; "consistency" compares the clean images predicted at two levels
    (`process/consistency.py`).

    What is not given is drawn from torch's global generators. `uniform` and `drop` may be NumPy
    arrays: wrappers for several GPUs move tensors to the device, and reading them back would make
    every step wait.

    Args:
        images: Images (b, c, *spatial), uint8 or float in [0, 1]; or a batch {"image": …,
            "class_label": …} of which the fields that the network has conditioners for are used; or
            a pair (images, labels).
        cond: Conditions by name, (b, …).
        t: Levels in 1 … T, (b,), integers or real. Default: drawn by the time sampler.
        noise: ε, the shape of the images.
        uniform: Numbers in [0, 1), (b,) on the CPU, from which the time sampler makes t.
        drop: Numbers in [0, 1), (b,) on the CPU, or booleans, that decide whose condition is
            hidden; one tensor or one per condition. Default: drawn in training mode, nothing hidden
            in eval mode.
        progress: The part of the training that is done, in [0, 1], for loss="consistency", whose
            pairs close in.
        reduction: "mean" for a scalar, "none" for one loss per image, "losses" for a `Losses`.
        model: A network to use instead of `self.model` (wrapped or compiled, say).

    Returns:
        The loss in float32 (float64 for float64 images), scalar or (b,).
    """
    if reduction not in ("mean", "none", "losses"):
        raise ValueError(f"reduction must be 'mean' or 'none', got {reduction!r}.")
    given = {"t": t, "noise": noise, "uniform": uniform, "drop": drop, "progress": progress}
    found = losses(self, images, cond, **given, model=model)  # type: ignore[arg-type]
    if reduction == "losses":
        return found
    return found.per_image.mean() if reduction == "mean" else found.per_image


def losses(
    self: TrainableProcess,
    images: Tensor | np.ndarray | Mapping[str, Tensor] | Sequence[Tensor],
    cond: Mapping[str, Tensor] | None = None,
    *,
    t: Tensor | None = None,
    noise: Tensor | None = None,
    uniform: Draws | None = None,
    drop: Draws | Mapping[str, Draws] | None = None,
    progress: float = 1.0,
    model: nn.Module | None = None,
) -> Losses:
    """Return the training losses of a batch with the levels they were taken at.

    `forward` describes the loss; it calls this function.

    Args:
        images: As for `forward`, like the others.
        cond: As for `forward`.
        t: As for `forward`.
        noise: As for `forward`.
        uniform: As for `forward`.
        drop: As for `forward`.
        progress: As for `forward`.
        model: As for `forward`.
    """
    images, cond = _unpack(images, cond, self.conditioners)
    device = self.device if images.device.type == "cpu" else images.device
    self.check_images(images)
    x0 = to_model_range(images.to(device, non_blocking=copies_by_itself(device)))
    t, importance = drawn_levels(self.time_sampler, t, uniform, len(x0), self.timesteps)
    table = level_table(self, t, importance).to(x0.dtype)
    at = levels_from(to_device(table, x0.device), x0.ndim)
    eps = _noise_like(x0, noise)
    eps, added = self.noising(x0, eps) if self.training else (eps, eps)
    noisy = Noisy(at.alpha * x0 + at.sigma * added, at.alpha, at.sigma, at.time)
    denoiser = self.denoiser.using(model)
    complete = for_training(self.conditioners, cond, x0)
    complete = _hide_conditions(denoiser, complete, drop, noisy, self.training)
    if self.loss == CONSISTENCY:
        distances = consistency_losses(self, denoiser, x0, added, t, complete, progress)
        return Losses(at.importance * distances, t, at.importance)
    output, raw = noisy.ask(denoiser, complete)
    total = torch.zeros_like(at.time)
    if self.loss != "vlb":
        total = squared_error(self, at, x0, eps, output)
    if self.uncertainty is not None:
        total = by_uncertainty(self.uncertainty, at, total)
    if self.loss != "simple":
        guess = denoiser.clean(noisy.x, output, at.alpha, at.sigma, clip="none")
        # In the hybrid loss the bound teaches the variance and leaves the mean alone.
        guess, scale = (guess.detach(), self.vlb_weight) if self.loss == "hybrid" else (guess, 1.0)
        bound = self.chain.terms(t, x0, guess, raw, self.variance)
        total = total + scale * self.timesteps * bound
    return Losses(at.importance * total, t, at.importance)


def effective_weights(self: TrainableProcess) -> Tensor:
    """Return the weights of ‖x_0 − x̂_0‖² at levels 1 … T, float64: those of the weighting, divided
    by e^u where u is learned.

    `plot_weightings(schedule.snr[1:], extra={"learned": diffusion.effective_weights()})` shows them
    beside the others.
    """
    weights = self.weighting(self.schedule.snr[1:])
    if self.uncertainty is None:
        return weights
    with torch.no_grad():
        u = self.uncertainty(self.schedule.log_snr[1:].to(self.uncertainty.weight))
    return weights * torch.exp(-u.double().cpu())


def q_sample(self: TrainableProcess, images: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """Return x_t = α_t·x_0 + σ_t·ε in [-1, 1] units (Ho et al. 2020, eq. 4).

    Args:
        images: Images (b, c, *spatial), uint8 or float in [0, 1].
        t: Levels in 0 … T, (b,) integers.
        noise: ε, the shape of the images.
    """
    x0 = to_model_range(images)
    alpha, sigma = (
        to_device(v.to(x0.dtype), x0.device).view(-1, *[1] * (x0.ndim - 1))
        for v in self.schedule.gather(t.cpu())
    )
    return alpha * x0 + sigma * noise


def level_table(process: TrainableProcess, t: Tensor, importance: Tensor | None) -> Tensor:
    """Look up all that depends on the levels t (b,): a row for each of `Levels`, float64 (6, b) on
    the CPU, so that one transfer is enough.
    """
    alpha, sigma = process.schedule.gather(t)
    if t.is_floating_point():
        snr, fall = process.schedule.snr_between(t)
        factor = process.parametrization.c_out(alpha, sigma).square()
        weight = process.weighting.between(snr, fall) * factor
    else:
        weight = process.loss_weights[t]
    importance = torch.ones_like(alpha) if importance is None else importance
    log_snr = 2.0 * (alpha.log() - sigma.log())
    return torch.stack([alpha, sigma, weight, importance, (t - 1).double(), log_snr])


def levels_from(table: Tensor, ndim: int) -> Levels:
    """Cut a table (6, b), on the device and in the precision of the images, of `ndim` dimensions,
    into its rows.
    """
    rows = list(table)
    alpha, sigma = (v.view(-1, *[1] * (ndim - 1)) for v in rows[:2])
    return Levels(alpha, sigma, *rows[2:])


def squared_error(
    process: TrainableProcess, at: Levels, x0: Tensor, eps: Tensor, output: Tensor
) -> Tensor:
    """Return w·c_out²·‖F − target‖² of each image, averaged over its values, (b,)."""
    error = output - process.parametrization.target(x0, eps, at.alpha, at.sigma)
    return at.weight * error.square().flatten(1).mean(1)


def by_uncertainty(uncertainty: nn.Module, at: Levels, total: Tensor) -> Tensor:
    """Return L·e^−u + u for losses (b,) and the u that is learned of their levels."""
    u = uncertainty(at.log_snr)
    return total * torch.exp(-u) + u


def _hide_conditions(
    denoiser: Denoiser,
    cond: Cond | None,
    draws: Draws | Mapping[str, Draws] | None,
    noisy: Noisy,
    training: bool,
) -> Cond | None:
    """Hide some conditions of a training batch; a self-conditioned network sees its estimate."""
    conditioners = denoiser.conditioners
    if not conditioners:
        return cond
    if draws is None and training:
        draws = fresh_draws(conditioners, len(noisy.x))
    if cond and draws is not None:
        cond = drop_conditions(conditioners, cond, draws)
    if not is_self_conditioned(conditioners) or SELF_CONDITION in (cond or {}):
        return cond
    # After the others were hidden: the estimate would give them away.
    others = dict(cond or {})

    def guess(rows: Tensor) -> Tensor:
        some = noisy[rows]
        output, _ = some.ask(denoiser, {name: value[rows] for name, value in others.items()})
        return denoiser.clean(some.x, output, some.alpha, some.sigma)

    unseen = hidden(conditioners[SELF_CONDITION], SELF_CONDITION, draws, len(noisy.x))
    return {**others, SELF_CONDITION: training_estimate(noisy.x, ~unseen, guess)}


def _unpack(
    images: Tensor | np.ndarray | Mapping[str, Tensor] | Sequence[Tensor],
    cond: Mapping[str, Tensor] | None,
    conditioners: Conditioners | None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the images of a batch and its conditions, of which those of the caller win."""
    told = {name: _tensor(value, f"The condition {name!r}") for name, value in (cond or {}).items()}
    if isinstance(images, (tuple, list)) and len(images) == 2:
        # What torchvision's datasets make batches of.
        images = dict(zip(("image", "class_label"), images))
    if not isinstance(images, Mapping):
        return _tensor(images, "A batch"), told
    if "image" not in images:
        fields = ", ".join(map(repr, images)) or "none"
        raise ValueError(f"A batch needs the field 'image'; got {fields}.")
    known = conditioners or {}
    named = {k: _tensor(v, f"The field {k!r} of a batch") for k, v in images.items() if k in known}
    return _tensor(images["image"], "The field 'image' of a batch"), {**named, **told}


def _tensor(value: Any, what: str) -> Tensor:
    """Return a tensor, made of a NumPy array where it is one."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value)
    held = f" of {len(value)}" if hasattr(value, "__len__") else ""
    raise TypeError(
        f"{what} must be a tensor or an array; got {type(value).__name__}{held}. Images are one"
        " tensor (b, c, h, w), uint8 or float in [0, 1]; a batch may be {'image': …,"
        " 'class_label': …} or a pair (images, labels)."
    )


def _noise_like(x0: Tensor, noise: Tensor | None) -> Tensor:
    eps = torch.randn_like(x0) if noise is None else noise.to(x0)
    if eps.shape != x0.shape:
        raise ValueError(
            f"noise must have the shape of the images {tuple(x0.shape)}, got {tuple(eps.shape)}."
        )
    return eps
