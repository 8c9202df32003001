"""Sinusoidal embedding of the noise level, and the small network behind it."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TimeOrder = Literal["cos_sin", "sin_cos", "interleaved"]
"""Order of the sinusoids: all cosines first, all sines first, or sine and cosine by turns."""


def sinusoids(
    t: Tensor,
    dim: int,
    order: TimeOrder = "cos_sin",
    freq_shift: int = 0,
    base: float = 10_000.0,
) -> Tensor:
    """Embed times as sinusoids of geometrically spaced frequencies.

    ω_i = base^(−i/(dim/2 − shift)), i = 0 … dim/2 − 1 (Vaswani et al. 2017, §3.5; Ho et al. 2020
    use shift 1).

    Args:
        t: Times, floating point, shape (b,). The computation is done in its dtype.
        dim: Number of sinusoids, even.
        order: "cos_sin", "sin_cos" or "interleaved" (sin, cos, sin, cos, …).
        freq_shift: 0 or 1; 1 makes the last frequency exactly 1/base.
        base: What the frequencies fall to the inverse of.

    Returns:
        Tensor of shape (b, dim) in the dtype of `t`.

    >>> sinusoids(torch.zeros(1), 4).tolist()
    [[1.0, 1.0, 0.0, 0.0]]
    """
    half = dim // 2
    exponents = torch.arange(half, device=t.device, dtype=t.dtype) / (half - freq_shift)
    angles = t[:, None] * torch.exp(-math.log(base) * exponents)[None, :]
    sin, cos = angles.sin(), angles.cos()
    if order == "interleaved":
        return torch.stack((sin, cos), dim=-1).flatten(1)
    return torch.cat((cos, sin) if order == "cos_sin" else (sin, cos), dim=-1)


class TimeEmbedding(nn.Module):
    """Turn times into vectors: sinusoids, linear, SiLU, linear.

    Args:
        dim: Number of sinusoids.
        emb_dim: Length of the vectors.
        order: Order of the sinusoids.
        freq_shift: 0 or 1, see `sinusoids`.
        scale: Factor on t before the sinusoids.
    """

    def __init__(
        self,
        dim: int,
        emb_dim: int,
        order: TimeOrder = "cos_sin",
        freq_shift: int = 0,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.dim, self.order, self.freq_shift, self.scale = dim, order, freq_shift, scale
        self.linear1 = nn.Linear(dim, emb_dim)
        self.linear2 = nn.Linear(emb_dim, emb_dim)

    def forward(self, t: Tensor) -> Tensor:
        """Embed t of shape (b,) as (b, emb_dim)."""
        dtype = self.linear1.weight.dtype
        # bf16 cannot tell t = 999 from t = 1000, so only float64 networks leave float32 here.
        t = t.to(torch.float64 if dtype == torch.float64 else torch.float32)
        emb = sinusoids(t * self.scale, self.dim, self.order, self.freq_shift).to(dtype)
        return self.linear2(F.silu(self.linear1(emb)))
