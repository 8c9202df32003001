"""Noise levels between those of a table, for many real-valued t at once: the vectorised twin of
`Schedule.level`.

Between two levels the log-SNR is linear in t. At an end where it is infinite (clean data, pure
noise) the ratio that is 0 there, σ/α or α/σ, is linear instead.
"""

from __future__ import annotations

import torch
from torch import Tensor


def log_snr_between(table: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Return the log-SNR λ at real t, and how fast it falls, −dλ/dt.

    Args:
        table: λ_0 … λ_T, float64, decreasing; λ_0 = ∞, λ_T may be −∞.
        t: In (0, T], float64.
    """
    below = t.floor().long().clamp(max=len(table) - 2)
    part = t - below
    low, high = table[below], table[below + 1]
    linear = torch.isfinite(low) & torch.isfinite(high)
    # Each branch is computed everywhere; the others' infinities must not meet in a difference.
    fall = torch.where(linear, low - high, 0.0)
    value = torch.where(linear, low - part * fall, 0.0)
    clean, noisy = torch.isinf(low), torch.isinf(high)
    value = torch.where(clean, high - 2.0 * part.log(), value)
    value = torch.where(noisy, low + 2.0 * torch.log1p(-part), value)
    fall = torch.where(clean, 2.0 / part, fall)
    return value, torch.where(noisy, 2.0 / (1.0 - part), fall)


def times_of(table: Tensor, log_snr: Tensor) -> Tensor:
    """Return the real t at which the log-SNR is the given one: the inverse of `log_snr_between`.

    Args:
        table: As there.
        log_snr: λ in [λ_T, ∞), float64.
    """
    below = torch.searchsorted(-table, -log_snr, right=True).sub_(1).clamp_(0, len(table) - 2)
    low, high = table[below], table[below + 1]
    part = torch.where(
        torch.isfinite(low) & torch.isfinite(high), (low - log_snr) / (low - high), 0.0
    )
    part = torch.where(torch.isinf(low), torch.exp((high - log_snr) / 2.0), part)
    part = torch.where(torch.isinf(high), -torch.expm1((log_snr - low) / 2.0), part)
    return below + part.clamp(0.0, 1.0)
