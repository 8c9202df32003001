"""Self-attention over all positions of a feature map."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddpm_lib.nn.kernels import norm_act_beside

_FEW = 256
"""Positions up to which matrix products are the faster attention on a CPU in bf16: measured with 1
to 4 heads of 8 to 256.
"""


class Attention(nn.Module):
    """Residual multi-head self-attention, x + W·attend(norm(x)) (Vaswani et al. 2017, eq. 1).

    The projections are linear layers on (b, positions, channels), which in channels_last memory is
    a view of the feature map. The output projection starts at zero, so that a new block is the
    identity.

    Args:
        width: Number of channels.
        heads: Number of heads; must divide `width`.
        norm: The normalisation in front, or None.
    """

    def __init__(self, width: int, heads: int, norm: nn.GroupNorm | None) -> None:
        super().__init__()
        self.width, self.heads = width, heads
        self.norm = norm
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        nn.init.zeros_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Attend over the positions of x (b, width, *spatial)."""
        h, x = (x, x) if self.norm is None else norm_act_beside(x, self.norm, act=False)
        h = h.flatten(2).transpose(1, 2)
        q, k, v = (
            self.qkv(h)
            .unflatten(-1, (3, self.heads, self.width // self.heads))
            .permute(2, 0, 3, 1, 4)
            .unbind(0)
        )
        h = attend(q, k, v)
        h = self.proj(h.transpose(1, 2).flatten(2))
        return x + h.transpose(1, 2).reshape(x.shape)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Compute softmax(q·kᵀ/√d)·v for q, k and v (b, heads, positions, d); returns the same shape.

    For few positions in bf16 a CPU does it in two matrix products: two to five times as fast with
    the gradient as torch's fused attention there, which pays off where the matrix of positions is
    large.
    """
    n, d = q.shape[-2:]
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and n <= _FEW:
        weights = torch.matmul(q * d**-0.5, k.transpose(-1, -2)).softmax(-1)
        return torch.matmul(weights.to(v.dtype), v)
    return F.scaled_dot_product_attention(q, k, v)
