"""A U-Net that is told the noise level itself, as networks of score-based models are."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddpm_lib.nn.registration import register_network
from ddpm_lib.nn.unet import Unet


class LogFourierEmbedding(nn.Module):
    """Turn noise levels into vectors: sin and cos of 2π·w·log σ for random w, linear, SiLU, linear
    (Song et al. 2021, app. C.1).

    Args:
        dim: Number of frequencies w.
        emb_dim: Length of the vectors.
        scale: Standard deviation of the frequencies.
    """

    frequencies: Tensor

    def __init__(self, dim: int, emb_dim: int, scale: float = 16.0) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.randn(dim) * scale)
        self.linear1 = nn.Linear(2 * dim, emb_dim)
        self.linear2 = nn.Linear(emb_dim, emb_dim)

    def forward(self, sigma: Tensor) -> Tensor:
        """Embed noise levels (b,), all above 0, as (b, emb_dim)."""
        kind = self.linear1.weight.dtype
        precise = torch.float64 if kind == torch.float64 else torch.float32
        angles = (2 * math.pi) * sigma.to(precise).log()[:, None] * self.frequencies.to(precise)
        emb = torch.cat([angles.sin(), angles.cos()], 1).to(kind)
        return self.linear2(F.silu(self.linear1(emb)))


@register_network
class NoiseLevelUnet(Unet):
    """A `Unet` that is called with noise levels σ > 0 in the place of steps: it embeds log σ by
    Gaussian Fourier features and divides its output by σ (Song et al. 2021, app. C).

    A `GaussianDiffusion`, which counts steps from 0, refuses it: it is here for networks of other
    libraries, called as model(x, sigma).

    Args:
        center_input: Map inputs from [0, 1] to [-1, 1] first.
        **config: Arguments of `Unet`; those of its time embedding mean nothing here.
    """

    time_embedding_type = "fourier"

    def __init__(self, *, center_input: bool = False, **config: Any) -> None:
        super().__init__(**config)
        self.config["center_input"] = center_input
        self.center_input = center_input
        dim, length = self.config["dim"], self.config["time_dim"]
        embedding = LogFourierEmbedding(dim, 4 * dim if length is None else length)
        self.time_embedding = embedding  # type: ignore[assignment]

    def forward(self, x: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        """Run the network.

        Args:
            x: Input (b, channels, *spatial).
            t: Noise levels (b,), all above 0.
            cond: As for `Unet`.

        Returns:
            Tensor of shape (b, out_channels, *spatial).
        """
        output = super().forward(2 * x - 1 if self.center_input else x, t, cond)
        return output / t.to(output.dtype).view(-1, *[1] * (x.ndim - 1))
