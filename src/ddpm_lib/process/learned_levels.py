"""Levels for few steps, learned: gradients through the solver, with the network as it is (Tong et
al. 2024, arXiv 2405.15506).

The levels of S steps from T are real t between the levels of training, where the log-SNR is linear;
the network is told that t, as in solvers that ask it in between. Whole t would leave a solver of
few steps no gradient, and near clean images rounding moves a level by as much as a step is long.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ddpm_lib.core import keys
from ddpm_lib.samplers import History, Predict, Sampler
from ddpm_lib.schedules import Schedule
from ddpm_lib.schedules.levels import Level
from ddpm_lib.spacing import sampling_levels

FIXED: Mapping[str, tuple[str, dict[str, float]]] = {
    "trailing": ("trailing", {}),
    "linspace": ("linspace", {}),
    "leading": ("leading", {}),
    "quadratic": ("quadratic", {}),
    "log_snr": ("log_snr", {}),
    "log_snr to σ̃ 80": ("log_snr", {"sigma_max": 80.0}),
    "log_snr to σ̃ 20": ("log_snr", {"sigma_max": 20.0}),
    "mixed": ("mixed", {}),
    "karras": ("karras", {}),
    "karras to σ̃ 80": ("karras", {"sigma_max": 80.0}),
    "karras to σ̃ 20": ("karras", {"sigma_max": 20.0}),
}
"""Spacings that learned levels begin with and are compared with, by what they are called."""

_FRACTIONAL = ("log_snr", "mixed", "karras")

FLOOR = 1e-4
"""Added to a distance under its root, so that an image that arrives exactly has a gradient."""


def fixed_levels(schedule: Schedule, num_steps: int) -> dict[str, tuple[float, ...]]:
    """Return the noisy levels of the fixed spacings that a schedule allows, by name, without those
    that come twice.
    """
    found: dict[str, tuple[float, ...]] = {}
    for name, (spacing, options) in FIXED.items():
        for fractional in (False, True) if spacing in _FRACTIONAL else (False,):
            more = {"fractional": True} if fractional else {}
            try:
                levels = sampling_levels(schedule, num_steps, spacing, {**options, **more})
            except ValueError:  # the schedule has no such noise
                continue
            called = f"{name}, between levels" if fractional else name
            if tuple(levels[:-1]) not in found.values():
                found[called] = tuple(levels[:-1])
    return found


def walk(
    sampler: Sampler,
    x: Tensor,
    levels: Sequence[Level],
    predict: Predict,
    level_at: Callable[[float], Level],
) -> Tensor:
    """Take x through the levels as `sample_loop` does, where gradients may pass.

    Args:
        sampler: A deterministic one.
        x: The state at the first level, (b, c, *spatial).
        levels: The levels, the last one clean.
        predict: Evaluates the network.
        level_at: Finds levels in between.
    """
    pairs = list(pairwise(levels))
    history = History(steps=len(pairs), level_at=level_at)
    for i, (t, s) in enumerate(pairs, start=1):
        history.remaining = len(pairs) - i
        x = sampler.step(x, t, s, predict, _no_noise, history)
    return x


def _no_noise() -> Tensor:
    raise ValueError(
        "Levels are learned for deterministic samplers, and this one draws noise. Leave its eta or"
        " churn at 0."
    )


def distances(x: Tensor, target: Tensor) -> Tensor:
    """Return the root mean square difference of each image, (b,)."""
    return ((x - target).flatten(1).square().mean(1) + FLOOR**2).sqrt()


class LevelCurve:
    """The levels of a schedule as a curve, u = 0 at the noisiest of finite log-SNR and 1 at level
    1, along which they can be moved; the log-SNR is linear in u.

    Args:
        schedule: The levels.
    """

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        table = schedule.log_snr[1:]
        self._table = table if math.isfinite(table[-1]) else table[:-1]
        if len(self._table) < 2:
            raise ValueError(
                "Levels are learned between those of a schedule, and this one has too few; got"
                f" timesteps={schedule.timesteps}."
            )
        self.low, self.high = float(self._table[-1]), float(self._table[0])

    def position(self, t: float) -> float:
        """Return u of a level, 0 for noisier ones than the curve has."""
        log_snr = self.schedule.level(max(t, 1.0)).log_snr
        return min(max((log_snr - self.low) / (self.high - self.low), 0.0), 1.0)

    def level_of(self, log_snr: Tensor) -> Level:
        """Return the level of a log-SNR, all its numbers tensors of float64."""
        table = self._table
        known = log_snr.detach().clamp(self.low, self.high)
        k = int(torch.searchsorted(-table, -known, right=True).clamp(1, len(table) - 1)) - 1
        t = 1 + k + (table[k] - log_snr) / (table[k] - table[k + 1])
        alpha, sigma = torch.sigmoid(log_snr).sqrt(), torch.sigmoid(-log_snr).sqrt()
        return Level(t, alpha, sigma)  # type: ignore[arg-type]

    def levels(self, logits: Tensor, first: float | None = None) -> list[Level]:
        """Return the first level, those at which the shares of the curve after it end but for the
        last, and 0.

        Args:
            logits: (S,), whose softmax are the shares.
            first: The first level; default: T.
        """
        ladder = self.schedule
        first = ladder.timesteps if first is None else first
        began = self.position(first)
        ends = began + (1.0 - began) * torch.softmax(logits, 0).cumsum(0)[:-1]
        between = [self.level_of(self.low + (self.high - self.low) * u) for u in ends]
        return [ladder.level(first), *between, ladder.level(0)]

    def logits(self, levels: Sequence[float]) -> Tensor:
        """Return the logits of noisy levels."""
        ends = [*(self.position(t) for t in levels), 1.0]
        shares = [max(b - a, 1e-3) for a, b in pairwise(ends)]
        return torch.tensor(shares, dtype=torch.float64).log()

    def at(self, log_snr: float) -> Level:
        """Find a level as `Schedule.level_at` does, for a tensor too."""
        if not isinstance(log_snr, Tensor):
            return self.schedule.level_at(log_snr)
        if not self.low <= float(log_snr.detach()) <= self.high:
            return self.schedule.level_at(float(log_snr.detach()))
        return self.level_of(log_snr)


@dataclass(frozen=True)
class LearnedLevels:
    """What `learn_levels` found.

    Attributes:
        levels: The noisy levels, decreasing; the `spacing` of `sample`.
        error: Mean distance of the end points to the targets with them.
        fixed: The same for fixed spacings, by what they are called.
        began_with: The fixed spacing from which they were moved.
    """

    levels: tuple[float, ...]
    error: float
    fixed: Mapping[str, float]
    began_with: str

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON-able values."""
        return {**vars(self), "levels": list(self.levels), "fixed": dict(self.fixed)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> LearnedLevels:
        """Return what `to_json` was made of."""
        return cls(**{**values, "levels": tuple(values["levels"])})


def learn_levels(
    sampler: Sampler,
    schedule: Schedule,
    predict: Callable[[range], Predict],
    starts: Tensor,
    targets: Tensor,
    num_steps: int,
    *,
    iterations: int = 100,
    learning_rate: float = 0.05,
    batch_size: int = 32,
    seed: int = 0,
    on_iteration: Callable[[int], None] | None = None,
) -> LearnedLevels:
    """Move the levels of a solver until its few steps end where many do.

    The best of the fixed spacings is where they begin, whose first level stays: T, but for
    "leading". Adam with a rate that falls to zero moves
    the shares of the log-SNR; of the levels met on the way those count that are best on all starts,
    so that the result is never worse there than the best fixed spacing.

    Args:
        sampler: A deterministic solver.
        schedule: The noise levels.
        predict: Returns what evaluates the network for some of the images, whose parameters want no
            gradient.
        starts: States at level T, (n, c, *spatial).
        targets: Where the probability flow takes them, likewise.
        num_steps: S, at least 1.
        iterations: Steps of the optimizer; 0 takes the best fixed spacing.
        learning_rate: Of the logits of the shares.
        batch_size: Images at a time, for all that is computed.
        seed: Names the order of the images.
        on_iteration: Called with the number of each iteration that is done.

    Raises:
        ValueError: If the solver draws noise, or the schedule has too few levels.
    """
    curve, n = LevelCurve(schedule), len(starts)

    def error(levels: Sequence[Level]) -> float:
        found = []
        with torch.no_grad():
            for start in range(0, n, batch_size):
                rows = range(start, min(n, start + batch_size))
                x = starts[rows.start : rows.stop]
                end = walk(sampler, x, levels, predict(rows), schedule.level_at)
                found.append(distances(end, targets[rows.start : rows.stop]).cpu().double())
        return float(torch.cat(found).mean())

    ladders = fixed_levels(schedule, num_steps)
    fixed = {
        name: error([schedule.level(t) for t in (*levels, 0)]) for name, levels in ladders.items()
    }
    began_with = min(fixed, key=lambda name: (fixed[name], name))
    best = (fixed[began_with], ladders[began_with])
    if num_steps == 1 or not iterations:
        return LearnedLevels(best[1], best[0], fixed, began_with)
    logits, first = curve.logits(ladders[began_with]).requires_grad_(), ladders[began_with][0]
    optimizer = torch.optim.Adam([logits], lr=learning_rate, betas=(0.9, 0.95))
    check_every = max(1, iterations // 10)
    for k in range(iterations):
        optimizer.param_groups[0]["lr"] = learning_rate * _rate(k / iterations)
        rows = _rows(seed, k, n, batch_size)
        with torch.enable_grad():
            end = walk(
                sampler,
                starts[rows.start : rows.stop],
                curve.levels(logits, first),
                predict(rows),
                curve.at,
            )
            loss = distances(end, targets[rows.start : rows.stop]).mean()
            (logits.grad,) = torch.autograd.grad(loss, [logits])
        if torch.isfinite(logits.grad).all():
            optimizer.step()
        if (k + 1) % check_every == 0 or k + 1 == iterations:
            levels = _plain(curve.levels(logits.detach(), first))
            best = min(best, (error([schedule.level(t) for t in (*levels, 0)]), levels))
        if on_iteration is not None:
            on_iteration(k + 1)
    return LearnedLevels(best[1], best[0], fixed, began_with)


def _rate(done: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * done))


def _rows(seed: int, iteration: int, n: int, batch_size: int) -> range:
    """Return the images of an iteration: all, or a part that follows from seed and iteration."""
    if n <= batch_size:
        return range(n)
    generator = torch.Generator().manual_seed(keys.key(seed, "learned levels", iteration) % 2**31)
    first = int(torch.randint(0, n, (1,), generator=generator))
    first = min(first, n - batch_size)
    return range(first, first + batch_size)


def _plain(levels: Sequence[Level]) -> tuple[float, ...]:
    return tuple(round(float(level.t), 6) for level in levels[:-1])
