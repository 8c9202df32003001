"""A classifier of noisy images, for classifier guidance (Dhariwal & Nichol 2021, section 4)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddpm_lib.core.binding import class_function
from ddpm_lib.core.keywords import answers_wrong_keywords
from ddpm_lib.core.options import takes_plain
from ddpm_lib.nn import _checks as checks
from ddpm_lib.nn.attention import attend
from ddpm_lib.nn.blocks import (
    BlockSettings,
    Layer,
    Middle,
    Resample,
    Resampler,
    ResolutionLevel,
    TimeConditioning,
    zeroed,
)
from ddpm_lib.nn.embeddings import TimeEmbedding
from ddpm_lib.nn.kernels import norm_act
from ddpm_lib.nn.pretrained import from_pretrained, save_pretrained
from ddpm_lib.nn.registration import register_network

Pooling = Literal["attention", "adaptive", "spatial", "spatial_v2"]
_HIDDEN = 2048
"""Width of the hidden layer behind spatial pooling, as published."""


class AttentionPool(nn.Module):
    """The answer of one query, the mean of all positions, to all positions (Radford et al. 2021).

    Args:
        width: Number of channels.
        heads: Number of attention heads.
        positions: Positions of the feature map; each has a learned embedding, and so has the mean.
        num_classes: Length of the result.
    """

    def __init__(self, width: int, heads: int, positions: int, num_classes: int) -> None:
        super().__init__()
        self.heads = heads
        self.position = nn.Parameter(torch.randn(width, positions + 1) / math.sqrt(width))
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (b, width, *spatial) to (b, num_classes)."""
        h = x.flatten(2)
        h = torch.cat([h.mean(-1, keepdim=True), h], -1) + self.position
        b, width, n = h.shape
        parts = self.qkv(h.transpose(1, 2)).view(b, n, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(attend(q[:, :, :1], k, v).flatten(1))


@register_network
class NoisyClassifier(nn.Module):
    """Predict from a noisy image x (b, channels, *spatial) and times t (b,) the logits of its class
    (b, num_classes).

    The way down of a `Unet` with pooling behind it, as guided-diffusion's EncoderUNetModel. It
    guides sampling through `ClassLogProb(classifier, label)`.

    Args:
        num_classes: Number of classes.
        image_size: Side of the images, which attention pooling depends on.
        dim: Base number of channels, even; level i has dim * dim_mults[i].
        dim_mults: Width of each level as a multiple of dim.
        channels: Channels of the images.
        blocks_per_level: Residual blocks per level.
        attention_levels: Levels with self-attention; None for the two deepest.
        heads: Attention heads.
        head_dim: Channels per attention head; replaces heads when given.
        pool: From a feature map to logits: "attention", "adaptive" (the mean of all positions), or
            "spatial" and "spatial_v2" (the means of all blocks, and a hidden layer).
        dropout: Dropout probability in the residual blocks, in [0, 1).
        time_conditioning: How time enters a block: "scale_shift" the normalisation, or "add".
        resample: Change of resolution: "conv", "pool", or "resblock".
        groups: Groups of GroupNorm; None for the largest number up to 32 that leaves two channels
            in a group.
        norm_eps: Epsilon of GroupNorm.
        time_scale: Factor on t before the time embedding.

    Raises:
        ValueError: If the arguments do not fit each other.

    >>> model = NoisyClassifier(num_classes=10, image_size=16, dim=8, dim_mults=(1, 2))
    >>> model(torch.randn(2, 3, 16, 16), torch.tensor([0, 999])).shape
    torch.Size([2, 10])
    """

    config: dict[str, Any]
    """All constructor arguments, JSON-able."""

    @takes_plain
    @answers_wrong_keywords
    def __init__(
        self,
        num_classes: int,
        image_size: int = 64,
        dim: int = 128,
        dim_mults: tuple[int, ...] = (1, 2, 3, 4),
        channels: int = 3,
        *,
        blocks_per_level: int = 2,
        attention_levels: tuple[int, ...] | None = None,
        heads: int = 4,
        head_dim: int | None = None,
        pool: Pooling = "attention",
        dropout: float = 0.0,
        time_conditioning: TimeConditioning = "scale_shift",
        resample: Resample = "resblock",
        groups: int | None = None,
        norm_eps: float = 1e-5,
        time_scale: float = 1.0,
    ) -> None:
        config = {
            name: value for name, value in locals().items() if name not in ("self", "__class__")
        }
        super().__init__()
        for name in ("num_classes", "image_size", "dim", "channels", "blocks_per_level", "heads"):
            checks.check_int(name, config[name])
        checks.check_choice("pool", pool, Pooling)
        checks.check_choice("resample", resample, Resample)
        checks.check_choice("time_conditioning", time_conditioning, TimeConditioning)
        checks.check_probability("dropout", dropout, one_allowed=False)
        self.config = {k: list(v) if isinstance(v, tuple | list) else v for k, v in config.items()}
        self.channels, self.pooling = channels, pool
        self.downsample_factor = 2 ** (len(dim_mults) - 1)
        checks.check_spatial((image_size,), self.downsample_factor)
        widths = [dim * mult for mult in dim_mults]
        settings = BlockSettings(
            dims=2,
            emb_dim=4 * dim,
            groups=checks.resolve_groups(groups, [dim, *widths]),
            norm_eps=norm_eps,
            dropout=dropout,
            time_conditioning=time_conditioning,
        )
        self.time_embedding = TimeEmbedding(dim, settings.emb_dim, scale=time_scale)
        self.conv_in = settings.conv(channels, dim)
        self._build_path(dim, widths, settings)
        self._build_head(widths, settings)

    def _build_path(self, dim: int, widths: Sequence[int], settings: BlockSettings) -> None:
        """Make the way down and the middle."""
        config = self.config
        attention = checks.resolve_attention_levels(config["attention_levels"], len(widths))
        width, self.down = dim, nn.ModuleList()
        for level, level_width in enumerate(widths):
            heads = self._heads(level_width) if level in attention else None
            pairs = pairwise([width] + [level_width] * config["blocks_per_level"])
            layers = [Layer(i, o, heads, settings) for i, o in pairs]
            down = Resampler(level_width, "down", config["resample"], "symmetric", settings)
            self.down.append(ResolutionLevel(layers, down if level < len(widths) - 1 else None))
            width = level_width
        self.middle = Middle(width, self._heads(width), True, settings)

    def _heads(self, width: int) -> int:
        return checks.resolve_heads(width, self.config["heads"], self.config["head_dim"])

    def _build_head(self, widths: Sequence[int], settings: BlockSettings) -> None:
        """Make what turns features into logits."""
        classes, last = self.config["num_classes"], widths[-1]
        if self.pooling in ("attention", "adaptive"):
            self.norm_out = settings.norm(last)
        if self.pooling == "attention":
            side = self.config["image_size"] // self.downsample_factor
            self.pool = AttentionPool(last, self._heads(last), side**2, classes)
        elif self.pooling == "adaptive":
            self.linear_out = zeroed(nn.Linear(last, classes))
        else:
            blocks = self.config["blocks_per_level"]
            features = self.config["dim"] + sum(width * (blocks + 1) for width in widths)
            self.hidden = nn.Linear(features, _HIDDEN)
            if self.pooling == "spatial_v2":
                self.norm_hidden = nn.GroupNorm(32, _HIDDEN, eps=settings.norm_eps)
            self.linear_out = nn.Linear(_HIDDEN, classes)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Return logits (b, num_classes) for noisy images.

        Args:
            x: Noisy images (b, channels, height, width) in [-1, 1] units.
            t: Times (b,), counted from 0.
        """
        if x.ndim != 4 or x.shape[1] != self.channels:
            raise ValueError(
                f"x must have shape (b, {self.channels}, height, width), got {tuple(x.shape)}."
            )
        checks.check_spatial(x.shape[2:], self.downsample_factor)
        emb = F.silu(self.time_embedding(t))
        h = self.conv_in(x)
        means = [h.mean((2, 3))]
        for part in self.down:
            level = cast(ResolutionLevel, part)
            for layer in level.layers:
                h = layer(h, emb)
                means.append(h.mean((2, 3)))
            if level.resample is not None:
                h = level.resample(h, emb)
                means.append(h.mean((2, 3)))
        h = self.middle(h, emb)
        if self.pooling == "attention":
            return self.pool(norm_act(h, self.norm_out))
        if self.pooling == "adaptive":
            return self.linear_out(norm_act(h, self.norm_out).mean((2, 3)))
        hidden = self.hidden(torch.cat([*means, h.mean((2, 3))], 1))
        act = F.relu(hidden) if self.pooling == "spatial" else F.silu(self.norm_hidden(hidden))
        return self.linear_out(act)

    save_pretrained = save_pretrained
    from_pretrained = class_function(from_pretrained)
