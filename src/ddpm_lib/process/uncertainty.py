"""How hard each noise level is, learned beside the network, so that every level counts alike
(Karras et al. 2024, §2.2).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

_LIMIT = 30.0
"""Log-SNRs beyond it count as it: pure noise has −∞."""


class Uncertainty(nn.Module):
    """u(λ), the logarithm of the loss to be expected at log-SNR λ; training minimises L·e^−u + u.

    At the minimum u = ln E[L], so that all levels weigh as much: Kendall et al. 2018 with the noise
    levels as tasks. It is linear in random Fourier features of ½·λ/4 = ¼·ln(α/σ), and starts at 0.
    Only training needs it.

    Args:
        features: Number of Fourier features.
    """

    constant_buffers = ("frequencies", "phases")
    """What is the same on every rank for good, so that nobody has to send it around."""

    frequencies: Tensor
    phases: Tensor

    def __init__(self, features: int = 128) -> None:
        super().__init__()
        # Drawn apart from the global generator: adding the module must not change the weights of
        # the network that is built next.
        generator = torch.Generator().manual_seed(0)
        self.register_buffer(
            "frequencies",
            2 * math.pi * torch.randn(features, generator=generator),
            persistent=False,
        )
        self.register_buffer(
            "phases", 2 * math.pi * torch.rand(features, generator=generator), persistent=False
        )
        self.weight = nn.Parameter(torch.zeros(features))

    def forward(self, log_snr: Tensor) -> Tensor:
        """Return u (b,) at log-SNRs (b,)."""
        place = log_snr.to(self.weight).clamp(-_LIMIT, _LIMIT)[:, None] / 8.0
        waves = math.sqrt(2.0) * torch.cos(place * self.frequencies + self.phases)
        return waves @ self.weight / math.sqrt(len(self.weight))
