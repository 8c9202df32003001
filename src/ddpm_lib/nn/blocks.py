"""Residual blocks and changes of resolution, for sequences, images and volumes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddpm_lib.nn.attention import Attention
from ddpm_lib.nn.kernels import conv3x3, norm_act, norm_act_beside

Direction = Literal["up", "down"]
TimeConditioning = Literal["add", "scale_shift"]
Resample = Literal["conv", "pool", "resblock"]
DownPadding = Literal["symmetric", "asymmetric"]

_CONVS: dict[int, type[nn.Conv1d] | type[nn.Conv2d] | type[nn.Conv3d]] = {
    1: nn.Conv1d,
    2: nn.Conv2d,
    3: nn.Conv3d,
}
_POOLS = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


@dataclass(frozen=True)
class BlockSettings:
    """What all blocks of one network share.

    Args:
        dims: 1 for sequences, 2 for images, 3 for volumes.
        emb_dim: Length of the vector that conditions the blocks.
        groups: Number of groups of GroupNorm.
        norm_eps: Epsilon of GroupNorm.
        dropout: Dropout probability in front of the last convolution of a block.
        time_conditioning: How the vector enters a block.
    """

    dims: int
    emb_dim: int
    groups: int
    norm_eps: float
    dropout: float
    time_conditioning: TimeConditioning

    def conv(
        self, width_in: int, width_out: int, kernel: int = 3, stride: int = 1, padding: int = 1
    ) -> nn.Module:
        """Make a convolution of the right number of dimensions."""
        return _CONVS[self.dims](width_in, width_out, kernel, stride=stride, padding=padding)

    def norm(self, width: int) -> nn.GroupNorm:
        """Make a group normalisation."""
        return nn.GroupNorm(self.groups, width, eps=self.norm_eps)


def zeroed(module: nn.Module) -> nn.Module:
    """Set all parameters of a module to zero and return it."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def resize(x: Tensor, direction: Direction) -> Tensor:
    """Double every spatial size by repetition, or halve it by averaging."""
    if direction == "up":
        return F.interpolate(x, scale_factor=2.0, mode="nearest")
    return _POOLS[x.ndim - 2](x, 2)


class ResBlock(nn.Module):
    """Pre-activation residual block, conditioned on a vector (Ho et al. 2020, appendix B).

    "add": conv2(silu(norm(conv1(silu(norm(x))) + W·e))); "scale_shift": norm(·)·(1 + s) + b with
    (s, b) = W·e (Nichol & Dhariwal 2021, §3). With `direction`, both branches change resolution in
    front of the first convolution (Dhariwal & Nichol 2021, §3). The last convolution starts at
    zero.

    `masks_by_position` is False where dropout's masks are drawn by torch on a CPU too, as runs that
    began with an earlier version had them.

    Args:
        width_in: Channels of the input.
        width_out: Channels of the output.
        settings: What all blocks share.
        direction: None, "up" or "down".
    """

    masks_by_position = True

    def __init__(
        self,
        width_in: int,
        width_out: int,
        settings: BlockSettings,
        direction: Direction | None = None,
    ) -> None:
        super().__init__()
        self.direction = direction
        self.scale_shift = settings.time_conditioning == "scale_shift"
        self.norm1 = settings.norm(width_in)
        self.conv1 = settings.conv(width_in, width_out)
        self.time = nn.Linear(settings.emb_dim, 2 * width_out if self.scale_shift else width_out)
        self.norm2 = settings.norm(width_out)
        self.dropout = nn.Dropout(settings.dropout)
        self.conv2 = zeroed(settings.conv(width_out, width_out))
        self.skip = (
            settings.conv(width_in, width_out, 1, padding=0)
            if width_in != width_out
            else nn.Identity()
        )

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Map x (b, width_in, *spatial) and the activated vector emb (b, emb_dim) to (b, width_out,
        *spatial).
        """
        h, x = norm_act_beside(x, self.norm1)
        if self.direction is not None:
            h, x = resize(h, self.direction), resize(x, self.direction)
        h = conv3x3(h, self.conv1)
        e = self.time(emb)
        dropout = self.dropout.p if self.dropout.training and self.masks_by_position else 0.0
        if self.scale_shift:
            scale, shift = e.chunk(2, dim=1)
            h = norm_act(h, self.norm2, scale=scale, shift=shift, dropout=dropout)
        else:
            h = norm_act(h, self.norm2, add=e, dropout=dropout)
        h = h if self.masks_by_position else self.dropout(h)
        return self.skip(x) + conv3x3(h, self.conv2)


def dropout_masks(model: nn.Module) -> str:
    """Say where dropout's masks come from on a CPU: "position" of a hash of the position, or
    "torch".
    """
    blocks = [part for part in model.modules() if isinstance(part, ResBlock)]
    return "position" if all(block.masks_by_position for block in blocks) else "torch"


def use_dropout_masks(model: nn.Module, source: str) -> None:
    """Take dropout's masks from "position" or "torch", in all residual blocks of a network."""
    for part in model.modules():
        if isinstance(part, ResBlock):
            part.masks_by_position = source == "position"


class Resampler(nn.Module):
    """Halve or double the resolution by a convolution, without one, or by a residual block.

    Args:
        width: Number of channels.
        direction: "up" or "down".
        kind: "conv": stride-2 convolution down, repetition + convolution up; "pool": averaging and
            repetition alone; "resblock": a residual block that resamples.
        padding: Zeros around the stride-2 convolution: 1 on all sides, or 1 after the last position
            only.
        settings: What all blocks share.
    """

    def __init__(
        self,
        width: int,
        direction: Direction,
        kind: Resample,
        padding: DownPadding,
        settings: BlockSettings,
    ) -> None:
        super().__init__()
        self.direction = direction
        self.block = ResBlock(width, width, settings, direction) if kind == "resblock" else None
        self.conv: nn.Module | None = None
        self.pad_after = direction == "down" and padding == "asymmetric"
        if kind == "conv":
            stride = 2 if direction == "down" else 1
            self.conv = settings.conv(
                width, width, stride=stride, padding=0 if self.pad_after else 1
            )

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Resample x (b, width, *spatial)."""
        if self.block is not None:
            return self.block(x, emb)
        if self.conv is None:
            return resize(x, self.direction)
        if self.direction == "up":
            return conv3x3(resize(x, "up"), self.conv)
        if self.pad_after:
            x = F.pad(x, (0, 1) * (x.ndim - 2))
        return self.conv(x)


class Layer(nn.Module):
    """One residual block with or without attention behind it: the unit of gradient checkpointing.

    Args:
        width_in: Channels of the input.
        width_out: Channels of the output.
        heads: Number of attention heads; None for no attention.
        settings: What all blocks share.
    """

    def __init__(
        self, width_in: int, width_out: int, heads: int | None, settings: BlockSettings
    ) -> None:
        super().__init__()
        self.res = ResBlock(width_in, width_out, settings)
        self.attn = (
            Attention(width_out, heads, settings.norm(width_out)) if heads is not None else None
        )

    def forward(self, x: Tensor, emb: Tensor, skip: Tensor | None = None) -> Tensor:
        """Map x, with the channels of a skip connection behind its own, (b, width_in, *spatial) to
        (b, width_out, *spatial).
        """
        if skip is not None:
            x = torch.cat((x, skip), 1)
        x = self.res(x, emb)
        return x if self.attn is None else self.attn(x)


class Head(nn.Module):
    """The end of a network, conv(silu(norm(h))), as a part that can be compiled; the weights stay
    the network's, under its names.
    """

    def forward(self, h: Tensor, norm: nn.GroupNorm, conv: nn.Module) -> Tensor:
        """Map h (b, width, *spatial) to (b, channels of the output, *spatial)."""
        return conv(norm_act(h, norm))


class ResolutionLevel(nn.Module):
    """The layers of one resolution, and the change to the next resolution.

    Args:
        layers: Layers at this resolution.
        resample: The change of resolution behind them; None at the end of a path.
    """

    def __init__(self, layers: Iterable[Layer], resample: Resampler | None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.resample = resample


class Middle(nn.Module):
    """Residual block, attention, residual block at the lowest resolution.

    Args:
        width: Number of channels.
        heads: Number of attention heads; None for no attention.
        normed: Whether attention has a normalisation in front.
        settings: What all blocks share.
    """

    def __init__(
        self, width: int, heads: int | None, normed: bool, settings: BlockSettings
    ) -> None:
        super().__init__()
        self.res1 = ResBlock(width, width, settings)
        self.attn = (
            None
            if heads is None
            else Attention(width, heads, settings.norm(width) if normed else None)
        )
        self.res2 = ResBlock(width, width, settings)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Map x (b, width, *spatial) to the same shape."""
        x = self.res1(x, emb)
        if self.attn is not None:
            x = self.attn(x)
        return self.res2(x, emb)
