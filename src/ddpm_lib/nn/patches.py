"""Space to depth and back: a network that works on patches of pixels instead of pixels."""

from __future__ import annotations

from torch import Tensor

_PATTERNS = {
    1: "b c (w p) -> b (c p) w",
    2: "b c (h p) (w q) -> b (c p q) h w",
    3: "b c (d r) (h p) (w q) -> b (c r p q) d h w",
}


def to_patches(x: Tensor, size: int) -> Tensor:
    """Move the pixels of each patch into channels: (b, c, *spatial) to (b, c·sizeⁿ,
    *spatial/size).
    """
    if size == 1:
        return x
    from einops import rearrange

    return rearrange(x, _PATTERNS[x.ndim - 2], **_sizes(x.ndim - 2, size))


def from_patches(x: Tensor, size: int) -> Tensor:
    """Undo `to_patches`."""
    if size == 1:
        return x
    from einops import rearrange

    left, right = _PATTERNS[x.ndim - 2].split(" -> ")
    return rearrange(x, f"{right} -> {left}", **_sizes(x.ndim - 2, size))


def _sizes(dims: int, size: int) -> dict[str, int]:
    return dict.fromkeys({1: "p", 2: "pq", 3: "rpq"}[dims], size)
