"""Blocks of `LucidrainsUnet`; tensors are named and shaped as denoising-diffusion-pytorch saves
them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddpm_lib.nn.attention import attend
from ddpm_lib.nn.embeddings import sinusoids

TimeFeatures = Literal["sinusoidal", "learned", "random"]
"""What is made of t: sinusoids of fixed frequencies, or of learned or randomly drawn ones with t
itself in front.
"""
Downsampling = Literal["unshuffle", "conv"]
"""How the resolution is halved: 2×2 pixels become channels, or a 4×4 convolution of stride 2."""
BlockNorm = Literal["rms", "group"]
"""Normalisation in the residual blocks: of each pixel's channels, or over eight groups."""


class RMSNorm(nn.Module):
    """x / ‖x‖₂ · √width · g over the channels of each position (Zhang & Sennrich 2019).

    Args:
        width: Number of channels.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.ones(1, width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x (b, width, h, w)."""
        return F.normalize(x, dim=1) * (self.g * math.sqrt(self.g.shape[1]))


class Sinusoids(nn.Module):
    """Sines, then cosines, of t at fixed frequencies; no weights.

    Args:
        dim: How many numbers, even.
        base: The lowest frequency is 1/base.
    """

    def __init__(self, dim: int, base: float) -> None:
        super().__init__()
        self.dim, self.base = dim, base

    def forward(self, t: Tensor) -> Tensor:
        """Return (b, dim) of t (b,)."""
        return sinusoids(t, self.dim, "sin_cos", 1, self.base)


class FourierFeatures(nn.Module):
    """t itself, then sin and cos of 2π·w·t for frequencies w ~ N(0, 1) (Tancik et al. 2020).

    Args:
        dim: Number of sines and cosines together, even.
        learned: Whether the frequencies are trained.
    """

    def __init__(self, dim: int, learned: bool) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.randn(dim // 2), requires_grad=learned)

    def forward(self, t: Tensor) -> Tensor:
        """Return (b, dim + 1) of t (b,)."""
        t = t[:, None]
        angles = 2 * math.pi * t * self.weights.to(t.dtype)
        return torch.cat((t, angles.sin(), angles.cos()), dim=1)


class TimeMLP(nn.Sequential):
    """Features of t, linear, GELU, linear.

    Args:
        features: Module from t (b,) to (b, width).
        width: How many features.
        emb_dim: Length of the vectors.
    """

    def __init__(self, features: nn.Module, width: int, emb_dim: int) -> None:
        super().__init__(
            features, nn.Linear(width, emb_dim), nn.GELU(), nn.Linear(emb_dim, emb_dim)
        )

    def forward(self, t: Tensor) -> Tensor:
        """Embed t of shape (b,) as (b, emb_dim)."""
        features, first, act, last = self
        dtype = first.weight.dtype
        # bf16 cannot tell t = 999 from t = 1000, so only float64 networks leave float32 here.
        t = t.to(torch.float64 if dtype == torch.float64 else torch.float32)
        return last(act(first(features(t).to(dtype))))


class ConvNormAct(nn.Module):
    """3×3 convolution, normalisation, scale and shift where given, SiLU, dropout.

    Args:
        width: Channels that come in.
        out: Channels that go out.
        norm: See `BlockNorm`.
        dropout: Dropout probability.
    """

    def __init__(self, width: int, out: int, norm: BlockNorm, dropout: float = 0.0) -> None:
        super().__init__()
        self.proj = nn.Conv2d(width, out, 3, padding=1)
        self.norm = RMSNorm(out) if norm == "rms" else nn.GroupNorm(8, out)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, scale_shift: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Run it on x (b, width, h, w); scale and shift are (b, out, 1, 1)."""
        x = self.norm(self.proj(x))
        if scale_shift is not None:
            scale, shift = scale_shift
            x = x * (scale + 1) + shift
        return self.dropout(F.silu(x))


@dataclass(frozen=True)
class LucidrainsSettings:
    """What all blocks of one network share.

    Args:
        emb_dim: Length of the vector made from time and class.
        norm: Normalisation in the residual blocks.
        dropout: Dropout probability in the residual blocks.
        memory_tokens: Learned keys and values that attention sees besides the positions.
    """

    emb_dim: int
    norm: BlockNorm
    dropout: float
    memory_tokens: int

    def block(self, width: int, out: int) -> ResidualBlock:
        """Make a residual block."""
        return ResidualBlock(width, out, self)


class ResidualBlock(nn.Module):
    """Two convolutions and a way around them; the vector scales and shifts the first.

    Args:
        width: Channels that come in.
        out: Channels that go out.
        settings: What all blocks share.
    """

    def __init__(self, width: int, out: int, settings: LucidrainsSettings) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.SiLU(), nn.Linear(settings.emb_dim, 2 * out))
        self.block1 = ConvNormAct(width, out, settings.norm, settings.dropout)
        self.block2 = ConvNormAct(out, out, settings.norm)
        self.res_conv = nn.Conv2d(width, out, 1) if width != out else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Run the block on x (b, width, h, w) with the vector emb (b, emb_dim)."""
        scale, shift = self.mlp(emb)[:, :, None, None].chunk(2, dim=1)
        h = self.block1(x, (scale, shift))
        return self.block2(h) + self.res_conv(x)


class LinearAttention(nn.Module):
    """x + norm(W·V·softmax(K)ᵀ·softmax(Q)): linear in the number of positions (Shen et al. 2021).

    Queries are normalised over their features, keys over the positions and the memory.

    Args:
        width: Number of channels.
        heads: Number of heads.
        head_dim: Features per head; heads · head_dim need not be the width.
        memory_tokens: Learned keys and values besides the positions.
    """

    def __init__(self, width: int, heads: int, head_dim: int, memory_tokens: int) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, head_dim
        inner = heads * head_dim
        self.norm = RMSNorm(width)
        if memory_tokens:
            self.mem_kv = nn.Parameter(torch.randn(2, heads, head_dim, memory_tokens))
        self.to_qkv = nn.Conv2d(width, 3 * inner, 1, bias=False)
        self.to_out = nn.Sequential(nn.Conv2d(inner, width, 1), RMSNorm(width))
        self.memory_tokens = memory_tokens

    def forward(self, x: Tensor) -> Tensor:
        """Attend over the positions of x (b, width, h, w)."""
        b = x.shape[0]
        shape = 3, self.heads, self.head_dim
        q, k, v = self.to_qkv(self.norm(x)).flatten(2).unflatten(1, shape).unbind(1)
        if self.memory_tokens:
            k, v = (
                torch.cat((memory.to(k.dtype).expand(b, -1, -1, -1), own), dim=-1)
                for memory, own in zip(self.mem_kv, (k, v))
            )
        context = k.softmax(dim=-1) @ v.transpose(-1, -2)
        attended = context.transpose(-1, -2) @ (q.softmax(dim=-2) * self.head_dim**-0.5)
        return x + self.to_out(attended.flatten(1, 2).unflatten(-1, x.shape[2:]))


class MemoryAttention(nn.Module):
    """x + W·softmax(QKᵀ/√d)·V over the positions and a learned memory.

    Args:
        width: Number of channels.
        heads: Number of heads.
        head_dim: Features per head; heads · head_dim need not be the width.
        memory_tokens: Learned keys and values besides the positions.
    """

    def __init__(self, width: int, heads: int, head_dim: int, memory_tokens: int) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, head_dim
        inner = heads * head_dim
        self.norm = RMSNorm(width)
        if memory_tokens:
            self.mem_kv = nn.Parameter(torch.randn(2, heads, memory_tokens, head_dim))
        self.to_qkv = nn.Conv2d(width, 3 * inner, 1, bias=False)
        self.to_out = nn.Conv2d(inner, width, 1)
        self.memory_tokens = memory_tokens

    def forward(self, x: Tensor) -> Tensor:
        """Attend over the positions of x (b, width, h, w)."""
        b = x.shape[0]
        shape = 3, self.heads, self.head_dim
        qkv = self.to_qkv(self.norm(x)).flatten(2).unflatten(1, shape)
        q, k, v = qkv.transpose(-1, -2).unbind(1)
        if self.memory_tokens:
            k, v = (
                torch.cat((memory.to(k.dtype).expand(b, -1, -1, -1), own), dim=-2)
                for memory, own in zip(self.mem_kv, (k, v))
            )
        attended = attend(q, k, v).transpose(-1, -2)
        return x + self.to_out(attended.flatten(1, 2).unflatten(-1, x.shape[2:]))


class Unshuffle(nn.PixelUnshuffle):
    """2×2 pixels become channels, also of no images, which torch returns in their old shape."""

    def __init__(self) -> None:
        super().__init__(2)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (b, width, h, w) to (b, 4·width, h/2, w/2)."""
        b, width, height, across = x.shape
        if b == 0:
            return x.reshape(0, 4 * width, height // 2, across // 2)
        return super().forward(x)


class DownUnshuffle(nn.Sequential):
    """Halve the resolution: 2×2 pixels become channels, then a 1×1 convolution.

    Args:
        width: Channels that come in.
        out: Channels that go out.
    """

    def __init__(self, width: int, out: int) -> None:
        super().__init__(Unshuffle(), nn.Conv2d(4 * width, out, 1))


class Up(nn.Sequential):
    """Double the resolution: every pixel four times, then a 3×3 convolution.

    Args:
        width: Channels that come in.
        out: Channels that go out.
    """

    def __init__(self, width: int, out: int) -> None:
        super().__init__(
            nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(width, out, 3, padding=1)
        )
