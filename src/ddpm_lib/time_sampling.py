"""Which levels to train on: maps from uniform numbers, so that whoever owns the randomness draws them."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ddpm_lib.registry import Registry
from ddpm_lib.schedules import Schedule


class TimeSampler:
    """Maps uniform numbers to levels t = 1 … T. This base class is the uniform distribution.

    A sampler that learns from the losses overrides `update`, `state_dict` and `load_state_dict`; the ones here have
    no state.
    """

    def __call__(self, u: Tensor, timesteps: int) -> tuple[Tensor, Tensor | None]:
        """Return levels and importance weights.

        Args:
            u: Uniform numbers in [0, 1), shape (b,), float64 on the CPU.
            timesteps: T.

        Returns:
            t in 1 … T, int64 on the CPU, shape (b,); and weights 1/(T·p(t)), shape (b,), or None where all are 1.
        """
        # A u just below 1 can round up in the product.
        return (u.double() * timesteps).long().clamp_(0, timesteps - 1) + 1, None

    learns: ClassVar[bool] = False
    """True if the sampler wants to be told the losses."""

    def bind(self, schedule: Schedule) -> None:
        """Take note of the schedule whose levels are drawn; called once, before any other method.

        Raises:
            ValueError: If the sampler does not fit it.
        """

    def update(self, t: Tensor, losses: Tensor) -> None:
        """Take note of the losses (b,) that were seen at levels t (b,): importance-weighted, as training returns them."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint has to hold."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        if state:
            raise ValueError(
                f"{type(self).__name__} has no state, got {', '.join(state)}. Use the sampler that was saved."
            )


class Uniform(TimeSampler):
    """Every level is equally likely."""


class Stratified(TimeSampler):
    """One random shift of an even grid per batch: each batch covers all noise levels (Kingma et al. 2021, app. I.1).

    Every single t is still uniform, at every position of the batch; only the variance of the batch's loss is smaller.
    """

    def __call__(self, u: Tensor, timesteps: int) -> tuple[Tensor, Tensor | None]:
        """Return floor(T·((u_0 + i/b) mod 1)) + 1 for i = 0 … b−1; only the first number is used."""
        grid = torch.arange(len(u), dtype=torch.float64) / max(len(u), 1)
        return super().__call__((u[:1].double() + grid) % 1.0, timesteps)


class LossAware(TimeSampler):
    """p(t) ∝ √E[L_t²] over the last losses at each level (Nichol & Dhariwal 2021, eq. 18); uniform until all levels have them.

    The importance weights 1/(T·p(t)) keep the loss unbiased; its noise, which is large for the bound, becomes small. Every
    rank must be told all losses in the same order, so that all draw from the same distribution.

    Args:
        history: How many losses are remembered for each level.
        uniform: Share of uniform draws, in (0, 1], so that no level is ever forgotten.
    """

    learns: ClassVar[bool] = True

    def __init__(self, *, history: int = 10, uniform: float = 0.001) -> None:
        if history < 1 or not 0 < uniform <= 1:
            raise ValueError(
                f"The time sampler 'loss_aware' needs history ≥ 1 and uniform in (0, 1]; got {history}, {uniform}."
            )
        self.history, self.uniform = int(history), uniform

    def bind(self, schedule: Schedule) -> None:
        """Make room for the losses of every level."""
        self._losses = torch.zeros(schedule.timesteps, self.history, dtype=torch.float64)
        self._counts = torch.zeros(schedule.timesteps, dtype=torch.int64)
        self._probabilities: Tensor | None = None

    @property
    def probabilities(self) -> Tensor:
        """p(1) … p(T), float64."""
        if self._probabilities is None:
            timesteps = len(self._counts)
            p = torch.full((timesteps,), 1.0 / timesteps, dtype=torch.float64)
            size = self._losses.square().mean(1).sqrt()
            if int(self._counts.min()) >= self.history and float(size.sum()) > 0:
                p = (1.0 - self.uniform) * size / size.sum() + self.uniform / timesteps
            self._probabilities = p
        return self._probabilities

    def __call__(self, u: Tensor, timesteps: int) -> tuple[Tensor, Tensor | None]:
        """Return the t at which the cumulative probability passes u, and 1/(T·p(t))."""
        p = self.probabilities
        t = torch.searchsorted(p.cumsum(0), u.double(), right=True).clamp_(max=timesteps - 1)
        return t + 1, 1.0 / (timesteps * p[t])

    def update(self, t: Tensor, losses: Tensor) -> None:
        """Remember losses, oldest first; a loss that is not finite says nothing and is left out."""
        p, timesteps = self.probabilities, len(self._counts)
        for level, loss in zip(t.tolist(), losses.tolist(), strict=True):
            if math.isfinite(loss):
                row = level - 1
                self._losses[row, self._counts[row] % self.history] = loss * timesteps * float(p[row])
                self._counts[row] += 1
        self._probabilities = None

    def state_dict(self) -> dict[str, Any]:
        """Return the remembered losses and how many there were, JSON-able."""
        return {"losses": self._losses.tolist(), "counts": self._counts.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned; an empty dict forgets everything."""
        losses = torch.tensor(state.get("losses", torch.zeros_like(self._losses).tolist()), dtype=torch.float64)
        if losses.shape != self._losses.shape:
            raise ValueError(
                f"The saved losses have shape {tuple(losses.shape)}, this sampler {tuple(self._losses.shape)}. "
                "Use the timesteps and the history that were saved."
            )
        self._losses = losses
        self._counts = torch.tensor(state.get("counts", torch.zeros_like(self._counts).tolist()), dtype=torch.int64)
        self._probabilities = None


class LogNormalSigma(TimeSampler):
    """ln(σ/α) ~ N(P_mean, P_std²), rounded to the nearest level in log-SNR (Karras et al. 2022, table 1).

    Without importance weights: which noise to train on is the point of it.

    Args:
        P_mean: Mean of ln(σ/α).
        P_std: Its standard deviation, > 0.
    """

    def __init__(self, *, P_mean: float = -1.2, P_std: float = 1.2) -> None:
        if not P_std > 0:
            raise ValueError(
                f"The time sampler 'log_normal_sigma' needs P_std > 0, got {P_std}. Karras et al. use 1.2."
            )
        self.P_mean, self.P_std = P_mean, P_std

    def bind(self, schedule: Schedule) -> None:
        """Tabulate where between two levels the rounding changes."""
        log_sigma = (schedule.sigma[1:] / schedule.alpha[1:]).log()
        between = (log_sigma[1:] + log_sigma[:-1]) / 2
        self._edges = torch.special.ndtr((between - self.P_mean) / self.P_std)

    def __call__(self, u: Tensor, timesteps: int) -> tuple[Tensor, Tensor | None]:
        """Return the level whose cell of the distribution u falls into."""
        return torch.searchsorted(self._edges, u.double(), right=True) + 1, None


TIME_SAMPLERS: Registry[type[TimeSampler]] = Registry(
    "time sampler",
    {"uniform": Uniform, "stratified": Stratified, "loss_aware": LossAware, "log_normal_sigma": LogNormalSigma},
)


def drawn_levels(
    sampler: TimeSampler, t: Tensor | None, uniform: Tensor | np.ndarray | None, n: int, timesteps: int
) -> tuple[Tensor, Tensor | None]:
    """Return n levels and their importance weights: those given, or drawn from uniform numbers, given or fresh.

    Raises:
        ValueError: If both are given, or do not fit.
    """
    if t is None:
        u = torch.rand(n, dtype=torch.float64) if uniform is None else torch.as_tensor(uniform).cpu()
        if u.shape != (n,):
            raise ValueError(f"uniform must hold {n} numbers, one per image; got shape {tuple(u.shape)}.")
        return sampler(u, timesteps)
    if uniform is not None:
        raise ValueError("Give t or uniform, not both.")
    t = t.cpu().long()
    if t.shape != (n,) or int(t.min()) < 1 or int(t.max()) > timesteps:
        raise ValueError(
            f"t must be {n} levels in 1 … {timesteps}; got shape {tuple(t.shape)} with values in "
            f"{int(t.min())} … {int(t.max())}. Level 0 is clean data."
        )
    return t, None
