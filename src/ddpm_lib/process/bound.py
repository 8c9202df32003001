"""The variational bound: its terms along a chain of levels, and the two likelihoods they are made
of.

Every step t → s of a reverse chain costs KL(q(x_s | x_t, x_0) ‖ p(x_s | x_t)), the last one −log
p(x_0 | x_1) of a decoder over 256 bins (Ho et al. 2020, eq. 5 and 13). The means of q and p differ
by α_s τ·(x_0 − x̂_0), so that nothing but x̂_0 is needed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ddpm_lib.core.device_copy import to_device
from ddpm_lib.schedules import Schedule
from ddpm_lib.schedules.levels import Level, tau
from ddpm_lib.variance import Variance, log_bounds

LN2 = math.log(2.0)
HALF_BIN = 1.0 / 255.0
"""Half the distance of two 8-bit values in [-1, 1]."""


_C, _K, _TAIL = math.sqrt(8.0 / math.pi), 0.044715, 6.5


def _logit(u: Tensor) -> Tensor:
    """Return log Φ(u)/Φ(−u) as all published bits/dim approximate it, √(8/π)·(u + 0.044715·u³).

    Beyond |u| = 6.5, where published code has reached its floor, it goes on with the curvature 1 of
    a Gaussian: the cube would make the loss of an untrained network explode.
    """
    size = u.abs()
    inner, over = size.clamp(max=_TAIL), (size - _TAIL).clamp(min=0.0)
    slope = _C * (1.0 + 3.0 * _K * _TAIL**2)
    return torch.sign(u) * (_C * (inner + _K * inner**3) + slope * over + 0.5 * over.square())


def gaussian_kl(difference: Tensor, log_var_q: Tensor, log_var_p: Tensor | float) -> Tensor:
    """Return KL(N(m_q, v_q) ‖ N(m_p, v_p)) in nats, elementwise, for difference = m_q − m_p."""
    z = log_var_p - log_var_q
    # expm1(−z) + z ≥ 0 does not cancel where the variances agree.
    return 0.5 * (
        torch.expm1(-z) + z + difference.square() * torch.exp(-torch.as_tensor(log_var_p))
    )


def discretised_log_likelihood(x: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """Return log P(x) in nats of a Gaussian integrated over the bin of x (Ho et al. 2020, eq. 13).

    The 256 bins are centred at the 8-bit values in [-1, 1]; the outer two reach to ±∞, so that they
    sum to one. Φ is S(g(u)), S the sigmoid, see `_logit`. That makes the logarithm of a difference
    exact without the floor that published code has: S(a) − S(b) = S(a)·S(−b)·(1 − e^{b−a}).

    Args:
        x: Images in [-1, 1].
        mean: Means, like x.
        log_var: Log-variances that broadcast against x.
    """
    inverse = torch.exp(-0.5 * log_var)
    centre, half = (x - mean) * inverse, HALF_BIN * inverse
    upper, lower = _logit(centre + half), _logit(centre - half)
    # The difference of two cubics, where it could cancel.
    gap = 2.0 * _C * half * (1.0 + _K * (3.0 * centre.square() + half.square()))
    gap = torch.where(centre.abs() + half < _TAIL, gap, upper - lower)
    first, last = x < -1.0 + HALF_BIN, x > 1.0 - HALF_BIN
    zero = torch.zeros_like(upper)
    inside = torch.log(-torch.expm1(-gap))
    return (
        torch.where(last, zero, logsigmoid(upper))
        + torch.where(first, zero, logsigmoid(-lower))
        + torch.where(first | last, zero, inside)
    )


@dataclass(frozen=True, eq=False)
class Chain:
    """A reverse chain through some levels of a schedule: step k = 1 … K goes from levels[k] to
    levels[k − 1], levels[0] = 0.

    Args:
        levels: The levels in ascending order, without 0, float64: they may be fractional.
        table: Rows α_t, σ_t, α_s·τ, log σ_s²τ, log σ_t²τ of the steps 1 … K, float64 (5, K). Step 1
            has the lower bound of step 2.
    """

    levels: Tensor
    table: Tensor

    @classmethod
    def of(cls, schedule: Schedule, levels: Sequence[float] | None = None) -> Chain:
        """Tabulate a chain; `levels` ascend without 0, all levels of the schedule by default."""
        visited: list[float] = (
            list(range(1, schedule.timesteps + 1)) if levels is None else list(levels)
        )
        steps = [schedule.level(t) for t in [0, *visited]]
        rows = []
        for k in range(1, len(steps)):
            s, t = steps[k - 1], steps[k]
            # One step alone has none before it: σ_t² is all that is known there.
            small, large = log_bounds(
                t, s, steps[k + 1] if k + 1 < len(steps) else Level(0, 0.0, 1.0)
            )
            rows.append((t.alpha, t.sigma, s.alpha * tau(t, s), small, large))
        return cls(
            torch.tensor(visited, dtype=torch.float64),
            torch.tensor(rows, dtype=torch.float64).T.contiguous(),
        )

    def __len__(self) -> int:
        return len(self.levels)

    def terms(
        self, k: Tensor, x0: Tensor, guess: Tensor, raw: Tensor | None, variance: Variance
    ) -> Tensor:
        """Return the term of step k in bits/dim for each image, shape (b,).

        Args:
            k: Steps 1 … K, int64 on the CPU, shape (b,).
            x0: Images in [-1, 1], (b, c, *spatial).
            guess: x̂_0.
            raw: What the network says about the variance.
            variance: Of the reverse kernel.
        """
        shape = (-1, *[1] * (x0.ndim - 1))
        pull, small, large = to_device(self.table[2:, k - 1].to(x0.dtype), x0.device).view(
            3, *shape
        )
        nats = (
            gaussian_kl(pull * (x0 - guess), small, variance.log(small, large, raw))
            .flatten(1)
            .mean(1)
        )
        ends = (k == 1).nonzero().flatten()
        if len(ends):
            rows = to_device(ends, x0.device)
            own = None if raw is None else raw[rows]
            log_var = variance.decoder_log(small[rows], large[rows], own)
            decoder = -discretised_log_likelihood(x0[rows], guess[rows], log_var).flatten(1).mean(1)
            nats = nats.index_copy(0, rows, decoder)
        return nats / LN2

    def prior(self, x0: Tensor) -> Tensor:
        """Return KL(q(x_T | x_0) ‖ N(0, 1)) in bits/dim for each image, T the noisiest level of the
        chain.
        """
        alpha, sigma = self.table[0, -1].item(), self.table[1, -1].item()
        spread = -(alpha**2) - 2.0 * math.log(sigma)  # σ² − 1 − log σ²
        return 0.5 * (alpha**2 * x0.square().flatten(1).mean(1) + spread) / LN2
