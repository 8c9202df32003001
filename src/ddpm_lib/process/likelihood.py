"""How likely images are under a model: the variational bound, and the density along the probability
flow.

`GaussianDiffusion` binds `bits_per_dim` and `flow_bits_per_dim` as its methods. Both numbers are
bits per dimension of 8-bit images, lower is better, and neither uses the other: the bound scores
ancestral sampling, the flow scores deterministic sampling.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ddpm_lib.core import keys
from ddpm_lib.core.device_copy import to_device
from ddpm_lib.core.keywords import answers_wrong_keywords
from ddpm_lib.images import to_model_range
from ddpm_lib.process.bound import LN2, Chain
from ddpm_lib.process.conditions import Cond, fill_nulls, with_derived
from ddpm_lib.process.denoiser import Denoiser
from ddpm_lib.process.interface import Process
from ddpm_lib.process.network_calls import evaluating
from ddpm_lib.process.sampling import conditions_for
from ddpm_lib.process.streams import ImageStreams
from ddpm_lib.schedules.levels import Level
from ddpm_lib.spacing import sampling_levels

BIN = math.log2(2.0 / 255.0)
"""Logarithm of the distance of two 8-bit values in [-1, 1]."""


@dataclass(frozen=True, eq=False)
class BitsPerDim:
    """Bits per dimension of n images.

    Args:
        total: Shape (n,).
        prior: The part of the end of the chain, KL(q(x_T | x_0) ‖ N(0, 1)), shape (n,).
        terms: The parts of the steps, shape (n, k); an estimate of their sum may be made of a few
            of them only.
        levels: The levels t at which the steps start, (n, k). The last step, from the cleanest
            level to data, is the decoder.
    """

    total: Tensor
    prior: Tensor
    terms: Tensor
    levels: Tensor

    @property
    def decoder(self) -> Tensor:
        """The part of the last step, −log₂ p(x_0 | x_1) per dimension, shape (n,)."""
        return self.terms[:, 0]

    @property
    def mean(self) -> float:
        """The mean over the images."""
        return float(self.total.mean())

    @property
    def standard_error(self) -> float:
        """Standard error of the mean: from the choice of images, and the noise."""
        return (
            float(self.total.std() / math.sqrt(len(self.total)))
            if len(self.total) > 1
            else math.nan
        )


@answers_wrong_keywords
def bits_per_dim(
    self: Process,
    images: Tensor,
    *,
    num_levels: int | None = None,
    num_steps: int | None = None,
    spacing: str | Sequence[int] = "trailing",
    seed: int = 0,
    first_index: int = 0,
    cond: Mapping[str, Any] | None = None,
    batch_size: int = 64,
    clip: str | None = None,
    model: nn.Module | None = None,
) -> BitsPerDim:
    """Return the variational bound on −log₂ P(image) per dimension (Ho et al. 2020, eq. 5).

    The noise of image i at level t depends on (seed, first_index + i, t) alone, not on the batch or
    on the other levels.

    Args:
        images: Images (n, c, *spatial), uint8 or float in [0, 1], which are rounded to 8 bits.
        num_levels: Estimate the sum over the steps from that many of them per image, at least 2:
            the decoder, which is most of it, and one at random from each of as many equal parts of
            the rest. Without bias. Default: all.
        num_steps: Steps of the chain, 1 … T: the bound of sampling with so few. Default: T.
        spacing: Of these steps, as for `sample`.
        seed: Names the noise and the levels, also the noise on a small image (`low_res_noise`).
        first_index: Number of the first image, so that several calls or processes can share one set
            of images.
        cond: Conditions as for `sample`.
        batch_size: Network evaluations at a time.
        clip: What is done to x̂_0, instead of what the process was built with.
        model: A network to use instead of `self.model`.
    """
    self.check_images(images)
    denoiser = self.denoiser.using(model).clipping(clip)
    denoiser.check_means("the variational bound")
    visited = sampling_levels(self.schedule, num_steps, spacing)
    chain = Chain.of(self.schedule, visited[-2::-1])
    rows = torch.arange(len(images)) + first_index
    steps, scale = _chosen_steps(rows, len(chain), num_levels, seed)
    conditions = _scored_conditions(self, images, cond, seed, first_index)
    # Every pair of an image and a step is one row; rows are independent of each other.
    pairs = torch.cartesian_prod(torch.arange(len(images)), torch.arange(steps.shape[1]))
    parts = []
    device = denoiser.device
    with evaluating(denoiser.network), torch.inference_mode():
        for image, column in (part.T for part in pairs.split(batch_size)):
            k = steps[image, column]
            t = chain.levels[k - 1]
            x0 = _eight_bits(to_device(images[image], device))
            drawn = _noise(rows[image].tolist(), t.tolist(), self.image_shape, seed)
            noise = to_device(drawn.to(x0.dtype), device)
            here = {name: to_device(value[image], device) for name, value in conditions.items()}
            complete = fill_nulls(self.conditioners, here, x0)
            table = to_device(chain.table[:2, k - 1].to(x0.dtype), device)
            alpha, sigma = table.view(2, -1, *[1] * (x0.ndim - 1))
            guess, raw = denoiser.estimate(alpha * x0 + sigma * noise, alpha, sigma, t, complete)
            # Read at the end: the device need not wait.
            parts.append(chain.terms(k, x0, guess, raw, denoiser.variance))
        batches = images.split(batch_size)
        priors = [chain.prior(_eight_bits(to_device(part, device))) for part in batches]
    terms = torch.cat(parts).cpu().double().view(steps.shape)
    prior = torch.cat(priors).cpu().double()
    return BitsPerDim(prior + terms @ scale, prior, terms, chain.levels[steps - 1])


@answers_wrong_keywords
def flow_bits_per_dim(
    self: Process,
    images: Tensor,
    *,
    seed: int = 0,
    first_index: int = 0,
    cond: Mapping[str, Any] | None = None,
    batch_size: int = 64,
    tolerance: float = 1e-5,
    sigma_min: float = 1e-3,
    model: nn.Module | None = None,
) -> BitsPerDim:
    """Return −log₂ P(image) per dimension along the probability-flow ODE (Song et al. 2021, §4.3).

    With α = cos φ and σ = sin φ the flow is dx/dφ = v̂ = α·ε̂ − σ·x̂_0, and log p changes by its
    divergence, estimated as eᵀ(∂v̂/∂x)e with one random e of ±1 per image (Hutchinson). Images are
    dequantised with uniform noise, which makes it a bound on the discrete likelihood. Below level 1
    the network is asked for level 1. `total` alone depends on all dimensions; `terms` holds the
    density at σ_min and `prior` is the density at T.

    Args:
        images: Images (n, c, *spatial), uint8 or float in [0, 1], which are rounded to 8 bits.
        seed: Names the noise, also that on a small image (`low_res_noise`).
        first_index: Number of the first image.
        cond: Conditions as for `sample`.
        batch_size: Images that are integrated together; they share the solver's steps, and so agree
            with another batch size up to the tolerance.
        tolerance: Relative and absolute tolerance of the solver (Dormand & Prince 5(4)).
        sigma_min: Where the integration starts; below the 2.3e-3 of the dequantisation it costs
            nothing.
        model: A network to use instead of `self.model`.
    """
    self.check_images(images)
    denoiser = self.denoiser.using(model).clipping("none")
    denoiser.check_means("the probability flow")
    conditions = _scored_conditions(self, images, cond, seed, first_index)
    last = self.schedule.level(self.timesteps)
    if not 0.0 < sigma_min < last.sigma:
        raise ValueError(
            f"sigma_min must lie between 0 and {last.sigma:.4g}, the noise of level T; got"
            f" {sigma_min}. Use 1e-3."
        )
    totals, priors = [], []
    device = denoiser.device
    with evaluating(denoiser.network):
        for start in range(0, len(images), batch_size):
            stop = min(start + batch_size, len(images))
            x, probe = dequantise(images[start:stop], first_index + start, seed)
            here = {k: to_device(value[start:stop], device) for k, value in conditions.items()}
            dtype = torch.float64 if images.dtype == torch.float64 else torch.float32
            like = torch.empty(0, dtype=dtype, device=device)
            complete = fill_nulls(self.conditioners, here, x.to(like))
            flow = _Flow(denoiser, complete, probe.to(like))
            total, prior = _flow_bits(flow, x, sigma_min, last, tolerance)
            totals.append(total)
            priors.append(prior)
    total, prior = torch.cat(totals), torch.cat(priors)
    levels = torch.zeros(len(total), 1, dtype=torch.int64)
    return BitsPerDim(total, prior, (total - prior)[:, None], levels)


def _flow_bits(
    flow: _Flow,
    x: Tensor,
    sigma_min: float,
    last: Level,
    tolerance: float,
) -> tuple[Tensor, Tensor]:
    """Integrate the flow from σ_min to the last level; return the bits/dim and its prior, (n,).

    Args:
        flow: The right-hand side for these images.
        x: Dequantised images (n, c, *spatial), float64 on the CPU.
        sigma_min: As for `flow_bits_per_dim`.
        last: Level T.
        tolerance: As for `flow_bits_per_dim`.
    """
    from scipy.integrate import solve_ivp

    span = math.log(math.asin(sigma_min)), math.log(math.atan2(last.sigma, last.alpha))
    begin = (math.cos(math.asin(sigma_min)) * x).numpy().ravel()
    state = np.concatenate([begin, np.zeros(len(x))])
    # In log φ, because x̂_0 changes fastest where there is least noise.
    how = {"method": "RK45", "rtol": tolerance, "atol": tolerance}
    solution = solve_ivp(flow, span, state, t_eval=span[1:], **how)
    x_T, change = (torch.from_numpy(v) for v in np.split(solution.y[:, -1], [-len(x)]))
    size = x[0].numel()
    nats = 0.5 * (x_T.view(len(x), -1).square().mean(1) + math.log(2 * math.pi))
    prior = nats / LN2
    # The state starts at α·x, whose density is α^−size that of x.
    shrink = 0.5 * math.log1p(-(sigma_min**2))
    return prior - change / size / LN2 - shrink / LN2 - BIN, prior


def _scored_conditions(
    process: Process,
    images: Tensor,
    cond: Mapping[str, Any] | None,
    seed: int,
    first_index: int,
) -> Cond:
    """Return the conditions of images (n, …).

    What is drawn for image i depends on (seed, first_index + i).
    """
    streams = ImageStreams("score", seed, None, first_index)
    derived = with_derived(process.conditioners, cond, images)
    return conditions_for(process, derived, len(images), streams)


def dequantise(images: Tensor, first: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return images plus uniform noise of one 8-bit step, and probes of ±1.

    Args:
        images: Images (n, c, *spatial), uint8 or float in [0, 1].
        first: Number of the first one.
        seed: Names the noise.

    Returns:
        Both (n, c, *spatial), float64 on the CPU; the images in [-1, 1] units.
    """
    values = images.cpu().double()
    x = _eight_bits(values / 255.0 if images.dtype == torch.uint8 else values)
    streams = [keys.generator("cpu", first + i, seed, "flow") for i in range(len(x))]
    shape = x.shape[1:]
    uniform = torch.stack([torch.rand(shape, generator=g, dtype=torch.float64) for g in streams])
    probe = torch.stack([torch.randint(0, 2, shape, generator=g) for g in streams])
    return x + (uniform - 0.5) * (2.0 / 255.0), 2.0 * probe.double() - 1.0


class _Flow:
    """The right-hand side dx/d(log φ), and with it the divergence, in NumPy's terms.

    Args:
        denoiser: Without clipping.
        cond: Conditions of the images.
        probe: Their probes, (n, c, *spatial), on the device and of the precision to compute in.
    """

    def __init__(self, denoiser: Denoiser, cond: Cond | None, probe: Tensor) -> None:
        self.denoiser, self.cond, self.probe = denoiser, cond, probe

    def __call__(self, log_phi: float, state: np.ndarray) -> np.ndarray:
        """Return the derivative of (x, ∫ div v̂) for a flat state."""
        n = len(self.probe)
        phi = math.exp(log_phi)
        level = self._level(phi)
        with torch.enable_grad():
            x = torch.from_numpy(state[:-n]).view(self.probe.shape).to(self.probe.dtype)
            x = x.to(self.probe.device).requires_grad_()
            p = self.denoiser.predict(x, level, self.cond)
            velocity = level.alpha * p.eps - level.sigma * p.x0
            (pulled,) = torch.autograd.grad((velocity * self.probe).sum(), x)
        # One transfer, and float64 on the CPU only: Apple's GPUs have none.
        change, products = torch.stack([velocity.detach(), pulled * self.probe]).cpu().double()
        divergence = products.flatten(1).sum(1)
        return phi * torch.cat([change.flatten(), divergence]).numpy()

    def _level(self, phi: float) -> Level:
        alpha, sigma = math.cos(phi), math.sin(phi)
        schedule = self.denoiser.schedule
        last = schedule.level(schedule.timesteps)
        if alpha <= last.alpha:  # the end, which rounding may pass
            return last
        return Level(schedule.level_at(2.0 * math.log(alpha / sigma)).t, alpha, sigma)


def _chosen_steps(rows: Tensor, steps: int, count: int | None, seed: int) -> tuple[Tensor, Tensor]:
    """Return the steps to evaluate for each image, (n, k) from step 1 on, and factors (k,) that
    make the sum unbiased.
    """
    if count is None or count >= steps:
        return torch.arange(1, steps + 1).expand(len(rows), -1), torch.ones(
            steps, dtype=torch.float64
        )
    if count < 2:
        raise ValueError(
            f"num_levels must be at least 2, the decoder and one other; got {count}. Leave it out"
            " for all."
        )
    draws = torch.stack([keys.uniform(rows, seed, "bound levels", j) for j in range(count - 1)], 1)
    parts = (torch.arange(count - 1) + draws) / (count - 1)
    others = 2 + (parts * (steps - 1)).long().clamp(max=steps - 2)
    scale = torch.full((count,), (steps - 1) / (count - 1), dtype=torch.float64)
    scale[0] = 1.0
    return torch.cat([torch.ones(len(rows), 1, dtype=torch.int64), others], 1), scale


def _noise(rows: list[int], levels: list[float], shape: tuple[int, ...], seed: int) -> Tensor:
    """Draw ε (b, *shape) on the CPU, the same numbers on every device."""
    streams = [
        keys.generator("cpu", row, seed, "bound", str(t))
        for row, t in zip(rows, levels, strict=True)
    ]
    return torch.stack([torch.randn(shape, generator=g) for g in streams])


def _eight_bits(images: Tensor) -> Tensor:
    """Map uint8 or float in [0, 1] to [-1, 1], on 8-bit values."""
    return to_model_range(
        images if images.dtype == torch.uint8 else (images * 255.0).round() / 255.0
    )
