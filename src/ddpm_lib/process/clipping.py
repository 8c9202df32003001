"""What is done to x̂_0 outside [-1, 1] while sampling."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from ddpm_lib.core.registry import Registry


def dynamic_threshold(x0: Tensor, ratio: float = 0.995, maximum: float = math.inf) -> Tensor:
    """Clip each sample to its own quantile of |x̂_0| and scale it back to [-1, 1] (Saharia et al.
    2022, §2.3).

    Args:
        x0: Predicted images (b, c, *spatial).
        ratio: The quantile, in (0, 1].
        maximum: Upper bound of the threshold; 1 makes it static clipping.

    Returns:
        clamp(x̂_0, -s, s)/s with s = max(1, quantile), the same shape.
    """
    values = x0.abs().flatten(1)
    position = ratio * (values.shape[1] - 1)
    below = math.floor(position)
    # torch.quantile refuses more than 2^24 values; the quantile needs the few largest only.
    top = values.topk(values.shape[1] - below).values
    low, high = top[:, -1], top[:, max(top.shape[1] - 2, 0)]
    s = low.lerp(high, position - below).clamp(1.0, maximum).view(-1, *[1] * (x0.ndim - 1))
    return x0.clamp(-s, s) / s


def _static(x0: Tensor, ratio: float) -> Tensor:
    return x0.clamp(-1.0, 1.0)


def _none(x0: Tensor, ratio: float) -> Tensor:
    return x0


CLIPS: Registry[Callable[[Tensor, float], Tensor]] = Registry(
    "clip", {"static": _static, "dynamic": dynamic_threshold, "none": _none}
)
