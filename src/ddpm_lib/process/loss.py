"""The training loss of a diffusion process."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ddpm_lib.core.device_copy import to_device
from ddpm_lib.images import to_model_range
from ddpm_lib.parametrization import N, Parametrization
from ddpm_lib.process.bound import Chain
from ddpm_lib.process.conditions import Cond, Draws, drop, for_training, fresh_draws, hidden
from ddpm_lib.process.likelihood import Likelihood
from ddpm_lib.process.noising import Noising
from ddpm_lib.process.self_conditioning import SELF_CONDITION, takes_itself, training_estimate
from ddpm_lib.process.uncertainty import Uncertainty
from ddpm_lib.time_sampling import TimeSampler, drawn_levels
from ddpm_lib.weighting import Weighting


@dataclass
class Noisy:
    """Noisy images, each at its own level: x (b, c, *spatial), α and σ (b, 1, …), the network's time (b,)."""

    x: Tensor
    alpha: Tensor
    sigma: Tensor
    time: Tensor

    def __getitem__(self, rows: Tensor) -> Noisy:
        return Noisy(self.x[rows], self.alpha[rows], self.sigma[rows], self.time[rows])


class Objective(Likelihood):
    """The part of `GaussianDiffusion` that trains the network."""

    parametrization: Parametrization
    weighting: Weighting
    time_sampler: TimeSampler
    uncertainty: Uncertainty | None
    noising: Noising
    loss: str
    vlb_weight: float
    loss_weights: Tensor

    @abstractmethod
    def _clean(self, x: Tensor, output: Tensor, alpha: N, sigma: N, clip: str | None) -> Tensor:
        """Return x̂_0 = c_skip·x_t + c_out·F, clipped."""

    @abstractmethod
    def _split(self, output: Tensor) -> tuple[Tensor, Tensor | None]:
        """Split the network's output into F and its word on the variance."""

    @abstractmethod
    def _call(self, model: Callable[..., Tensor], x: Tensor, time: Tensor, cond: Cond | None) -> Tensor:
        """Call the network and check the shape of its output."""

    def forward(
        self,
        images: Tensor | np.ndarray | Mapping[str, Tensor] | Sequence[Tensor],
        cond: Mapping[str, Tensor] | None = None,
        *,
        t: Tensor | None = None,
        noise: Tensor | None = None,
        uniform: Draws | None = None,
        drop: Draws | Mapping[str, Draws] | None = None,
        reduction: Literal["mean", "none"] = "mean",
        model: nn.Module | None = None,
    ) -> Tensor:
        """Return the training loss E_t [w·c_out²·‖F(x_t, t) − target‖²], each image averaged over its values.

        That is loss="simple"; the others add or are T·(bits/dim of the step t → t − 1), whose mean over t is the bound.

        What is not given is drawn from torch's global generators. `uniform` and `drop` may be NumPy arrays: wrappers for
        several GPUs move tensors to the device, and reading them back would make every step wait.

        Args:
            images: Images (b, c, *spatial), uint8 or float in [0, 1]; or a batch {"image": …, "class_label": …} of
                which the fields that the network has conditioners for are used; or a pair (images, labels).
            cond: Conditions by name, (b, …).
            t: Levels in 1 … T, (b,), integers or real. Default: drawn by the time sampler.
            noise: ε, the shape of the images.
            uniform: Numbers in [0, 1), (b,) on the CPU, from which the time sampler makes t.
            drop: Numbers in [0, 1), (b,) on the CPU, or booleans, that decide whose condition is hidden; one tensor
                or one per condition. Default: drawn in training mode, nothing hidden in eval mode.
            reduction: "mean" for a scalar, "none" for one loss per image.
            model: A network to use instead of `self.model` (wrapped or compiled, say).

        Returns:
            The loss in float32 (float64 for float64 images), scalar or (b,).
        """
        if reduction not in ("mean", "none"):
            raise ValueError(f"reduction must be 'mean' or 'none', got {reduction!r}.")
        images, cond = self._unpack(images, cond)
        device = self.device if images.device.type == "cpu" else images.device
        self.check_images(images)
        x0 = to_model_range(images.to(device, non_blocking=True))
        t, importance = drawn_levels(self.time_sampler, t, uniform, len(x0), self.timesteps)
        alpha, sigma, weight, importance, time, log_snr = self._at(t, importance, x0)
        eps = _noise_like(x0, noise)
        eps, added = self.noising(x0, eps) if self.training else (eps, eps)
        noisy = Noisy(alpha * x0 + sigma * added, alpha, sigma, time)
        network = self.model if model is None else model
        conditions = self._conditions(for_training(self.conditioners, cond, x0), drop, noisy, network)
        output, raw = self._ask(network, noisy, conditions)
        losses = torch.zeros_like(time)
        if self.loss != "vlb":
            error = output - self.parametrization.target(x0, eps, alpha, sigma)
            losses = weight * error.square().flatten(1).mean(1)
        if self.uncertainty is not None:
            u = self.uncertainty(log_snr)
            losses = losses * torch.exp(-u) + u
        if self.loss != "simple":
            guess = self._clean(noisy.x, output, alpha, sigma, "none")
            # In the hybrid loss the bound teaches the variance and leaves the mean alone.
            guess, scale = (guess.detach(), self.vlb_weight) if self.loss == "hybrid" else (guess, 1.0)
            losses = losses + scale * self.timesteps * self.chain.terms(t, x0, guess, raw, self.variance)
        return (importance * losses).mean() if reduction == "mean" else importance * losses

    def effective_weights(self) -> Tensor:
        """Return the weights of ‖x_0 − x̂_0‖² at levels 1 … T, float64: those of the weighting, divided by e^u where u is learned.

        `plot_weightings(schedule.snr[1:], extra={"learned": diffusion.effective_weights()})` shows them beside the others.
        """
        weights = self.weighting(self.schedule.snr[1:])
        if self.uncertainty is None:
            return weights
        with torch.no_grad():
            u = self.uncertainty(self.schedule.log_snr[1:].to(self.uncertainty.weight))
        return weights * torch.exp(-u.double().cpu())

    def _at(self, t: Tensor, importance: Tensor | None, x0: Tensor) -> list[Tensor]:
        """Return α, σ (b, 1, …), the weight of F's error, the importance, the network's time and the log-SNR (b,) of a batch."""
        alpha, sigma = self.schedule.gather(t)
        if t.is_floating_point():
            snr, fall = self.schedule.snr_between(t)
            weight = self.weighting.between(snr, fall) * self.parametrization.c_out(alpha, sigma).square()
        else:
            weight = self.loss_weights[t]
        importance = torch.ones_like(alpha) if importance is None else importance
        log_snr = 2.0 * (alpha.log() - sigma.log())
        # One transfer for everything that depends on t; the arithmetic on the tables is float64.
        table = torch.stack([alpha, sigma, weight, importance, (t - 1).double(), log_snr]).to(x0.dtype)
        rows = list(to_device(table, x0.device))
        return [v.view(-1, *[1] * (x0.ndim - 1)) for v in rows[:2]] + rows[2:]

    def _ask(self, network: nn.Module, noisy: Noisy, cond: Cond | None) -> tuple[Tensor, Tensor | None]:
        """Return F and the raw variance for noisy images, unguided."""
        seen = self.parametrization.scale_input(noisy.x, noisy.alpha, noisy.sigma)
        return self._split(self._call(network, seen, noisy.time.float(), cond).to(noisy.x.dtype))

    def _conditions(
        self, cond: Cond | None, draws: Draws | Mapping[str, Draws] | None, noisy: Noisy, network: nn.Module
    ) -> Cond | None:
        """Hide some conditions of a training batch, and let the network see its own estimate where it is built for that."""
        conditioners = self.conditioners
        if not conditioners:
            return cond
        if draws is None and self.training:
            draws = fresh_draws(conditioners, len(noisy.x))
        if cond and draws is not None:
            cond = drop(conditioners, cond, draws)
        if not takes_itself(conditioners) or SELF_CONDITION in (cond or {}):
            return cond
        # After the others were hidden: the estimate would give them away.
        others = dict(cond or {})

        def guess(rows: Tensor) -> Tensor:
            some = noisy[rows]
            output, _ = self._ask(network, some, {name: value[rows] for name, value in others.items()})
            return self._clean(some.x, output, some.alpha, some.sigma, None)

        unseen = hidden(conditioners[SELF_CONDITION], SELF_CONDITION, draws, len(noisy.x))
        return {**others, SELF_CONDITION: training_estimate(noisy.x, ~unseen, guess)}

    @cached_property
    def chain(self) -> Chain:
        """The full reverse chain, whose terms the losses "hybrid" and "vlb" are made of."""
        return Chain.of(self.schedule)

    def q_sample(self, images: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Return x_t = α_t·x_0 + σ_t·ε in [-1, 1] units (Ho et al. 2020, eq. 4).

        Args:
            images: Images (b, c, *spatial), uint8 or float in [0, 1].
            t: Levels in 0 … T, (b,) integers.
            noise: ε, the shape of the images.
        """
        x0 = to_model_range(images)
        alpha, sigma = (
            to_device(v.to(x0.dtype), x0.device).view(-1, *[1] * (x0.ndim - 1)) for v in self.schedule.gather(t.cpu())
        )
        return alpha * x0 + sigma * noise

    def _unpack(
        self,
        images: Tensor | np.ndarray | Mapping[str, Tensor] | Sequence[Tensor],
        cond: Mapping[str, Tensor] | None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        given = {name: _tensor(value, f"The condition {name!r}") for name, value in (cond or {}).items()}
        if isinstance(images, (tuple, list)) and len(images) == 2:
            images = dict(zip(("image", "class_label"), images))  # what torchvision's datasets make batches of
        if not isinstance(images, Mapping):
            return _tensor(images, "A batch"), given
        if "image" not in images:
            raise ValueError(f"A batch needs the field 'image'; got {', '.join(map(repr, images)) or 'none'}.")
        named = {
            k: _tensor(v, f"The field {k!r} of a batch") for k, v in images.items() if k in (self.conditioners or {})
        }
        return _tensor(images["image"], "The field 'image' of a batch"), {**named, **given}


def _tensor(value: Any, what: str) -> Tensor:
    """Return a tensor, made of a NumPy array where it is one."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value)
    held = f" of {len(value)}" if hasattr(value, "__len__") else ""
    raise TypeError(
        f"{what} must be a tensor or an array; got {type(value).__name__}{held}. Images are one tensor "
        "(b, c, h, w), uint8 or float in [0, 1]; a batch may be {'image': …, 'class_label': …} or a pair "
        "(images, labels)."
    )


def _noise_like(x0: Tensor, noise: Tensor | None) -> Tensor:
    eps = torch.randn_like(x0) if noise is None else noise.to(x0)
    if eps.shape != x0.shape:
        raise ValueError(f"noise must have the shape of the images {tuple(x0.shape)}, got {tuple(eps.shape)}.")
    return eps
