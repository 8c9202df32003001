"""A U-Net that is not told the noise level: convolutions, batch normalisation and max pooling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn

from ddpm_lib.core.binding import class_function
from ddpm_lib.core.keywords import answers_wrong_keywords
from ddpm_lib.core.options import takes_plain
from ddpm_lib.nn import _checks as checks
from ddpm_lib.nn.pretrained import from_pretrained, save_pretrained
from ddpm_lib.nn.registration import register_network


class _Conv(nn.Module):
    """3×3 convolution, batch normalisation, SiLU, dropout."""

    def __init__(self, width_in: int, width_out: int, dropout: float) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width_in, width_out, 3, padding=1)
        self.norm = nn.BatchNorm2d(width_out)
        self.rest = nn.Sequential(nn.SiLU(inplace=True), nn.Dropout(dropout))

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self.norm(self.conv(x)))


class _Res(nn.Module):
    """Two convolutions, added to the input or to a 1×1 convolution of it."""

    def __init__(self, width_in: int, width_out: int, dropout: float) -> None:
        super().__init__()
        self.block1 = _Conv(width_in, width_out, dropout)
        self.block2 = _Conv(width_out, width_out, dropout)
        self.res_conv = nn.Conv2d(width_in, width_out, 1) if width_in != width_out else None

    def forward(self, x: Tensor) -> Tensor:
        return self.block2(self.block1(x)) + (x if self.res_conv is None else self.res_conv(x))


class _Pair(nn.Module):
    """Two residual blocks, which each level and the middle have under these names."""

    def __init__(
        self, width_in: int, between: int, skip: int, width_out: int, dropout: float
    ) -> None:
        super().__init__()
        self.block1 = _Res(width_in, between, dropout)
        self.block2 = _Res(between + skip, width_out, dropout)


@register_network
class TimeBlindUnet(nn.Module):
    """Predict from a noisy image x (b, channels, h, w) alone a tensor (b, out_channels, h, w).

    The times it is called with are ignored: the network sees how noisy an image is (Sun et al.
    2025, "Is noise conditioning necessary for denoising generative models?"). Each level has two
    residual blocks, both with a skip connection to the way up; resolutions are halved by 3×3 max
    pooling and doubled by repetition. It is the network of AnarchistKnight/Simple_DDPM, with the
    names of its weights. Batch normalisation makes an image's loss in training depend on the rest
    of its micro-batch.

    Args:
        widths: Channels of the first convolution, then of each level on the way down; the
            resolution halves behind each level.
        channels: Channels of the input: 1 for grey, 3 for RGB images.
        out_channels: Channels of the output; None for as many as the input.
        dropout: Dropout probability behind each convolution, in [0, 1).

    Raises:
        ValueError: If an argument is out of range.

    >>> TimeBlindUnet(widths=(4, 8))(torch.randn(2, 3, 8, 8), torch.tensor([0, 999])).shape
    torch.Size([2, 3, 8, 8])
    """

    config: dict[str, Any]
    """All constructor arguments, JSON-able: `TimeBlindUnet(**model.config)` makes the same
    network.
    """

    dims = 2

    @takes_plain
    @answers_wrong_keywords
    def __init__(
        self,
        widths: tuple[int, ...] = (128, 256, 512, 1024),
        channels: int = 3,
        out_channels: int | None = None,
        *,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        checks.check_int("channels", channels)
        if out_channels is not None:
            checks.check_int("out_channels", out_channels)
        if isinstance(widths, int) or len(widths) < 2:
            raise ValueError(
                "widths must list at least two numbers of channels, such as (128, 256), got"
                f" {widths!r}."
            )
        for width in widths:
            checks.check_int("Every entry of widths", width)
        checks.check_probability("dropout", dropout, one_allowed=False)
        self.config = {
            "widths": list(widths),
            "channels": channels,
            "out_channels": out_channels,
            "dropout": dropout,
        }
        self.channels = channels
        self.out_channels = channels if out_channels is None else out_channels
        self.downsample_factor = 2 ** (len(widths) - 1)
        levels = list(pairwise(widths))
        self.head_block = nn.Conv2d(channels, widths[0], 5, padding=2)
        self.down_blocks = nn.ModuleList([_Pair(i, o, 0, o, dropout) for i, o in levels])
        self.mid_block = _Pair(widths[-1], widths[-1], 0, widths[-1], dropout)
        self.up_blocks = nn.ModuleList([_Pair(2 * o, o, o, i, dropout) for i, o in levels[::-1]])
        self.tail_block = nn.Conv2d(widths[0], self.out_channels, 1)

    def forward(
        self, x: Tensor, t: Tensor | None = None, cond: Mapping[str, Tensor | None] | None = None
    ) -> Tensor:
        """Run the network.

        Args:
            x: Images (b, channels, h, w); h and w divisible by `downsample_factor`.
            t: Ignored.
            cond: None or empty; the network has no conditions.

        Returns:
            Tensor of shape (b, out_channels, h, w).
        """
        if cond:
            raise ValueError(f"A TimeBlindUnet has no conditions but got {', '.join(cond)}.")
        if x.ndim != 4 or x.shape[1] != self.channels:
            raise ValueError(f"x must have shape (b, {self.channels}, h, w), got {tuple(x.shape)}.")
        checks.check_spatial(x.shape[2:], self.downsample_factor)
        h, skips = self.head_block(x), list[Tensor]()
        for module in self.down_blocks:
            level = cast(_Pair, module)
            first = level.block1(h)
            second = level.block2(first)
            skips += [first, second]
            h = nn.functional.max_pool2d(second, 3, stride=2, padding=1)
        h = self.mid_block.block2(self.mid_block.block1(h))
        for module in self.up_blocks:
            level = cast(_Pair, module)
            h = nn.functional.interpolate(h, scale_factor=2.0, mode="nearest")
            h = level.block1(torch.cat((h, skips.pop()), 1))
            h = level.block2(torch.cat((h, skips.pop()), 1))
        return self.tail_block(h)

    def check_size(self, image_size: int | Sequence[int]) -> None:
        """Raise ValueError when images of this size do not fit, naming the nearest sizes that do.

        Args:
            image_size: One size for both directions, or (height, width).
        """
        sizes = (image_size,) * 2 if isinstance(image_size, int) else tuple(image_size)
        if len(sizes) != 2:
            raise ValueError(f"image_size must have 2 entries, one per direction, got {sizes}.")
        checks.check_spatial(sizes, self.downsample_factor)

    save_pretrained = save_pretrained
    from_pretrained = class_function(from_pretrained)
