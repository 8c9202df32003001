"""Which levels to train on: maps from uniform numbers, so that whoever owns the randomness draws
them.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ddpm_lib.core.registry import Registry
from ddpm_lib.schedules import Schedule
from ddpm_lib.schedules.interpolation import times_of


def _shifted_grid(u: Tensor) -> Tensor:
    """Return (u_0 + i/b) mod 1 for i = 0 … b−1: uniform one by one, evenly spread together."""
    return (u[:1].double() + torch.arange(len(u), dtype=torch.float64) / max(len(u), 1)) % 1.0


class TimeSampler:
    """Maps uniform numbers to levels t = 1 … T. This base class is the uniform distribution.

    A sampler that learns from the losses overrides `update`, `state_dict` and `load_state_dict`;
    the ones here have no state.
    """

    def __call__(self, u: Tensor, timesteps: int) -> tuple[Tensor, Tensor | None]:
        """Return levels and importance weights.

        Args:
            u: Uniform numbers in [0, 1), shape (b,), float64 on the CPU.
            timesteps: T.

        Returns:
            t in 1 … T, int64 on the CPU, shape (b,), or float64 where `continuous`; and weights
            1/(T·p(t)), shape (b,), or None where all are 1.
        """
        # A u just below 1 can round up in the product.
        return (u.double() * timesteps).long().clamp_(0, timesteps - 1) + 1, None

    learns: ClassVar[bool] = False
    """True if the sampler wants to be told the losses."""

    continuous: ClassVar[bool] = False
    """True if t is real, between the levels too."""

    def bind(self, schedule: Schedule) -> None:
        """Take note of the schedule whose levels are drawn; called once, before any other method.

        Raises:
            ValueError: If the sampler does not fit it.
        """

    def update(self, t: Tensor, losses: Tensor) -> None:
        """Take note of the losses (b,) that were seen at levels t (b,): importance-weighted, as
        training returns them.
        """

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint has to hold."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        if state:
            raise ValueError(
                f"{type(self).__name__} has no state, got {', '.join(state)}. Use the sampler that"
                " was saved."
            )


class Uniform(TimeSampler):
    """Every level is equally likely."""


class Stratified(TimeSampler):
    """One random shift of an even grid per batch: each batch covers all noise levels (Kingma et al.
    2021, app. I.1).

    Every single t is still uniform, at every position of the batch; only the variance of the
    batch's loss is smaller.
    """

    def __call__(self, u: Tensor, timesteps: int) -> tuple[Tensor, Tensor | None]:
        """Return floor(T·((u_0 + i/b) mod 1)) + 1 for i = 0 … b−1; only the first number is
        used.
        """
        return super().__call__(_shifted_grid(u), timesteps)


class LossAware(TimeSampler):
    """p(t) ∝ √E[L_t²] over the last losses at each level (Nichol & Dhariwal 2021, eq. 18); uniform
    until all levels have them.

    The importance weights 1/(T·p(t)) keep the loss unbiased; its noise, which is large for the
    bound, becomes small. Every rank must be told all losses in the same order, so that all draw
    from the same distribution.

    Args:
        history: How many losses are remembered for each level.
        uniform: Share of uniform draws, in (0, 1], so that no level is ever forgotten.
    """

    learns: ClassVar[bool] = True

    def __init__(self, *, history: int = 10, uniform: float = 0.001) -> None:
        if history < 1 or not 0 < uniform <= 1:
            raise ValueError(
                "The time sampler 'loss_aware' needs history ≥ 1 and uniform in (0, 1]; got"
                f" {history}, {uniform}."
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
                self._losses[row, self._counts[row] % self.history] = (
                    loss * timesteps * float(p[row])
                )
                self._counts[row] += 1
        self._probabilities = None

    def state_dict(self) -> dict[str, Any]:
        """Return the remembered losses and how many there were, JSON-able."""
        return {"losses": self._losses.tolist(), "counts": self._counts.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned; an empty dict forgets everything."""
        losses = torch.tensor(
            state.get("losses", torch.zeros_like(self._losses).tolist()), dtype=torch.float64
        )
        if losses.shape != self._losses.shape:
            raise ValueError(
                f"The saved losses have shape {tuple(losses.shape)}, this sampler"
                f" {tuple(self._losses.shape)}. Use the timesteps and the history that were saved."
            )
        self._losses = losses
        self._counts = torch.tensor(
            state.get("counts", torch.zeros_like(self._counts).tolist()), dtype=torch.int64
        )
        self._probabilities = None


class Continuous(TimeSampler):
    """Real t, uniform in [1, T): continuous time (Kingma et al. 2021, §4) over the noise that the
    levels span.

    With the schedule "log_linear" the log-SNR is uniform; with "cosine" it is the cosine one in
    continuous time. Each batch is spread evenly over the range (Kingma et al. 2021, app. I.1),
    unless told otherwise.

    Args:
        stratified: One random shift of an even grid per batch, instead of independent t.
    """

    continuous: ClassVar[bool] = True

    def __init__(self, *, stratified: bool = True) -> None:
        self.stratified = bool(stratified)

    def __call__(self, u: Tensor, timesteps: int) -> tuple[Tensor, Tensor | None]:
        """Return 1 + (T − 1)·u."""
        return 1.0 + (timesteps - 1) * (_shifted_grid(u) if self.stratified else u.double()), None


class _OfNoise(TimeSampler):
    """Draws the noise itself and finds the real t in [1, T] that has it; noise beyond the ends
    counts as the ends.
    """

    continuous: ClassVar[bool] = True

    def bind(self, schedule: Schedule) -> None:
        """Keep the table that t is looked up in."""
        self._log_snr = schedule.log_snr

    def _times(self, log_snr: Tensor) -> Tensor:
        ends = float(self._log_snr[-1]), float(self._log_snr[1])
        return times_of(self._log_snr, log_snr.clamp(*ends)).clamp_(1.0, len(self._log_snr) - 1.0)


class UniformAlphaBar(_OfNoise):
    """α̅ = α² uniform between those of the levels T and 1, which are nearly 0 and 1: every share of
    signal is as likely.

    Which noise to train on is the point of it, so there are no importance weights.
    """

    def __call__(self, u: Tensor, timesteps: int) -> tuple[Tensor, Tensor | None]:
        """Return the t of α̅_1 + u·(α̅_T − α̅_1)."""
        first, last = torch.sigmoid(self._log_snr[1]), torch.sigmoid(self._log_snr[-1])
        return self._times(torch.logit(torch.lerp(first, last, u.double()))), None


class LogNormalSigma(_OfNoise):
    """ln(σ/α) ~ N(P_mean, P_std²) (Karras et al. 2022, table 1), between the levels too.

    Without importance weights: which noise to train on is the point of it.

    Args:
        P_mean: Mean of ln(σ/α).
        P_std: Its standard deviation, > 0.
    """

    def __init__(self, *, P_mean: float = -1.2, P_std: float = 1.2) -> None:
        if not P_std > 0:
            raise ValueError(
                f"The time sampler 'log_normal_sigma' needs P_std > 0, got {P_std}. Karras et al."
                " use 1.2."
            )
        self.P_mean, self.P_std = P_mean, P_std

    def __call__(self, u: Tensor, timesteps: int) -> tuple[Tensor, Tensor | None]:
        """Return the t of the quantile u."""
        return (
            self._times(-2.0 * (self.P_mean + self.P_std * torch.special.ndtri(u.double()))),
            None,
        )


TIME_SAMPLERS: Registry[type[TimeSampler]] = Registry(
    "time sampler",
    {
        "uniform": Uniform,
        "stratified": Stratified,
        "loss_aware": LossAware,
        "continuous": Continuous,
        "uniform_alpha_bar": UniformAlphaBar,
        "log_normal_sigma": LogNormalSigma,
    },
)


def drawn_levels(
    sampler: TimeSampler,
    t: Tensor | None,
    uniform: Tensor | np.ndarray | None,
    n: int,
    timesteps: int,
) -> tuple[Tensor, Tensor | None]:
    """Return n levels and their importance weights: those given, or drawn from uniform numbers,
    given or fresh.

    Raises:
        ValueError: If both are given, or do not fit.
    """
    if t is None:
        u = (
            torch.rand(n, dtype=torch.float64)
            if uniform is None
            else torch.as_tensor(uniform).cpu()
        )
        if u.shape != (n,):
            raise ValueError(
                f"uniform must hold {n} numbers, one per image; got shape {tuple(u.shape)}."
            )
        return sampler(u, timesteps)
    if uniform is not None:
        raise ValueError("Give t or uniform, not both.")
    t = t.cpu().double() if t.is_floating_point() else t.cpu().long()
    if t.shape != (n,) or float(t.min()) < 1 or float(t.max()) > timesteps:
        raise ValueError(
            f"t must be {n} levels in 1 … {timesteps}; got shape {tuple(t.shape)} with values in "
            f"{t.min().item():g} … {t.max().item():g}. Level 0 is clean data."
        )
    return t, None


def spread_levels(rows: np.ndarray, timesteps: int) -> Tensor:
    """Return a level in 1 … T for each row: a golden-ratio sequence, even however many rows there
    are.
    """
    spread = torch.from_numpy((rows * 0.6180339887498949 + 0.5) % 1.0)
    return (spread * timesteps).long().clamp_(0, timesteps - 1) + 1
