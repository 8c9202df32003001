"""A small residual network for points: data without space, such as the toys in the plane or rows of
a table.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddpm_lib.core.binding import class_function
from ddpm_lib.core.options import takes_plain
from ddpm_lib.core.registry import unknown_name
from ddpm_lib.nn import _checks as checks
from ddpm_lib.nn.blocks import zeroed
from ddpm_lib.nn.conditioning import ClassLabel, Conditioner
from ddpm_lib.nn.embeddings import TimeEmbedding
from ddpm_lib.nn.pretrained import from_pretrained, save_pretrained
from ddpm_lib.nn.registration import register_network


class MLPBlock(nn.Module):
    """LayerNorm, scaled and shifted by the condition; linear, SiLU, dropout, linear; added to the
    input.

    Args:
        width: Length of the vectors.
        emb_dim: Length of the condition.
        dropout: Dropout probability.
    """

    def __init__(self, width: int, emb_dim: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.condition = nn.Linear(emb_dim, 2 * width)
        self.linear1 = nn.Linear(width, width)
        self.linear2 = zeroed(nn.Linear(width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        """Run the block on h (b, width) with the activated condition (b, emb_dim)."""
        scale, shift = self.condition(emb).chunk(2, dim=1)
        inner = self.norm(h) * (1 + scale) + shift
        return h + self.linear2(self.dropout(F.silu(self.linear1(inner))))


@register_network
class MLP(nn.Module):
    """A residual multi-layer perceptron for points (b, channels, 1): sequences of length one.

    Args:
        channels: Coordinates of a point.
        width: Length of the hidden vectors; even.
        depth: Number of residual blocks.
        out_channels: Coordinates of the output; default: `channels`. A learned variance needs twice
            as many.
        frequencies: Also show the network sin and cos of 2^k·π/2 times each coordinate, k = 0 …
            frequencies − 1, which fine structure is easier to learn from; 0: the coordinates only.
        dropout: Dropout probability in the blocks.
        time_dim: Length of the embedding; default: half of `width`.
        num_classes: Number of classes for a condition "class_label"; None for none.
        class_drop_prob: Probability of hiding the class label in training, for classifier-free
            guidance.

    Raises:
        ValueError: If an argument is out of range.

    >>> MLP(channels=2, width=32)(torch.randn(5, 2, 1), torch.arange(5)).shape
    torch.Size([5, 2, 1])
    """

    config: dict[str, Any]
    """All constructor arguments, JSON-able: `MLP(**model.config)` makes the same network."""

    dims = 1

    @takes_plain
    def __init__(
        self,
        channels: int = 2,
        width: int = 128,
        depth: int = 3,
        out_channels: int | None = None,
        *,
        frequencies: int = 6,
        dropout: float = 0.0,
        time_dim: int | None = None,
        num_classes: int | None = None,
        class_drop_prob: float = 0.1,
    ) -> None:
        self_config = {
            name: value for name, value in locals().items() if name not in ("self", "__class__")
        }
        super().__init__()
        self.config = self_config
        for name, minimum in (("channels", 1), ("width", 4), ("depth", 1), ("frequencies", 0)):
            checks.check_int(name, self_config[name], minimum)
        for name in ("out_channels", "time_dim", "num_classes"):
            if self_config[name] is not None:
                checks.check_int(name, self_config[name])
        if width % 2:
            raise ValueError(
                f"width must be even (sine and cosine), got {width}. Use width={width + 1}."
            )
        checks.check_probability("dropout", dropout, one_allowed=False)
        checks.check_probability("class_drop_prob", class_drop_prob, one_allowed=True)
        self.channels, self.frequencies = channels, frequencies
        self.out_channels = channels if out_channels is None else out_channels
        emb_dim = width // 2 if time_dim is None else time_dim
        self.time_embedding = TimeEmbedding(width, emb_dim)
        self.conditioners = nn.ModuleDict({c.name: c for c in self.build_conditioners(emb_dim)})
        self.linear_in = nn.Linear(channels * (1 + 2 * frequencies), width)
        self.blocks = nn.ModuleList([MLPBlock(width, emb_dim, dropout) for _ in range(depth)])
        self.norm_out = nn.LayerNorm(width)
        self.linear_out = zeroed(nn.Linear(width, self.out_channels))

    def build_conditioners(self, emb_dim: int) -> list[Conditioner]:
        """Return the conditioners; override this to condition on something else (embeddings only).

        Args:
            emb_dim: Length of the vectors that `Conditioner.embed` must return.
        """
        num_classes = self.config["num_classes"]
        return (
            []
            if num_classes is None
            else [ClassLabel(num_classes, emb_dim, self.config["class_drop_prob"])]
        )

    def forward(
        self, x: Tensor, t: Tensor, cond: Mapping[str, Tensor | None] | None = None
    ) -> Tensor:
        """Run the network.

        Args:
            x: Points (b, channels, 1).
            t: Times (b,), integer or floating point.
            cond: Conditions by name; one that is missing or None counts as its null.

        Returns:
            Tensor of shape (b, out_channels, 1).
        """
        if x.ndim != 3 or tuple(x.shape[1:]) != (self.channels, 1):
            raise ValueError(f"x must have shape (b, {self.channels}, 1), got {tuple(x.shape)}.")
        if t.ndim != 1 or t.shape[0] != x.shape[0]:
            raise ValueError(
                f"t must have one time per sample, shape ({x.shape[0]},), got {tuple(t.shape)}."
            )
        emb = self._condition(x, t, cond or {})
        h = self.linear_in(self._features(x.flatten(1)))
        for block in self.blocks:
            h = block(h, emb)
        return self.linear_out(F.silu(self.norm_out(h)))[..., None]

    def check_size(self, image_size: int | Sequence[int]) -> None:
        """Raise ValueError for data that are not points.

        Args:
            image_size: Must be (1,).
        """
        if image_size != 1 and tuple(
            image_size if isinstance(image_size, Sequence) else [image_size]
        ) != (1,):
            raise ValueError(
                f"An MLP takes points, image_size=(1,); got {image_size}. Use a Unet for data with"
                " space."
            )

    save_pretrained = save_pretrained
    from_pretrained = class_function(from_pretrained)

    def _features(self, x: Tensor) -> Tensor:
        if not self.frequencies:
            return x
        waves = [2.0**k * math.pi / 2 * x for k in range(self.frequencies)]
        return torch.cat([x, *(wave.sin() for wave in waves), *(wave.cos() for wave in waves)], 1)

    def _condition(self, x: Tensor, t: Tensor, cond: Mapping[str, Tensor | None]) -> Tensor:
        """Return the activated conditioning vector (b, emb_dim)."""
        for name in cond:
            if name not in self.conditioners:
                if not self.conditioners:
                    raise ValueError(
                        f"This MLP has no conditions but got {name!r}; for labels set num_classes."
                    )
                raise ValueError(unknown_name("condition", name, self.conditioners))
        emb = self.time_embedding(t)
        for name, module in self.conditioners.items():
            conditioner, value = cast(Conditioner, module), cond.get(name)
            if value is None:
                value = conditioner.null_for(x)
            else:
                conditioner.validate(value, x.shape[0])
            embedded = conditioner.embed(value)
            if embedded is not None:
                emb = emb + embedded
        return F.silu(emb)
