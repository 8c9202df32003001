"""Checks of the arguments of `Unet`: what, got, and the nearest values that fit."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, get_args

from ddpm_lib.core.registry import unknown_name

if TYPE_CHECKING:
    from ddpm_lib.nn.blocks import BlockSettings
from ddpm_lib.images import nearest_multiples


def all_divisors(n: int) -> list[int]:
    """Return all divisors of n ≥ 1 in increasing order.

    >>> all_divisors(12)
    [1, 2, 3, 4, 6, 12]
    """
    small = [d for d in range(1, math.isqrt(n) + 1) if n % d == 0]
    return sorted({*small, *(n // d for d in small)})


def around(value: float, choices: Sequence[int]) -> str:
    """Word the choices next to a value: the one below and the one above.

    >>> around(5, [1, 2, 4, 8])
    '4 or 8'
    """
    below = [c for c in choices if c < value][-1:]
    above = [c for c in choices if c > value][:1]
    return " or ".join(str(c) for c in below + above)


def check_int(name: str, value: Any, minimum: int = 1) -> None:
    """Raise when a value is not an integer of at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, got {value!r} ({type(value).__name__}).")
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value}.")


def check_choice(name: str, value: object, literal: Any) -> None:
    """Raise when a value is not one of a Literal's."""
    choices = get_args(literal)
    if value not in choices:
        raise ValueError(unknown_name(name, value, choices))


def check_probability(name: str, value: float, one_allowed: bool) -> None:
    """Raise when a value is not a probability."""
    if not 0.0 <= value <= 1.0 or (value == 1.0 and not one_allowed):
        raise ValueError(f"{name} must be in [0, 1{']' if one_allowed else ')'}, got {value}.")


def resolve_groups(groups: int | None, widths: Sequence[int]) -> int:
    """Return the number of GroupNorm groups for all widths.

    By default, the largest number up to 32 that divides every width and leaves two channels in a
    group: with one channel per group the normalisation would remove an additive time embedding
    again.
    """
    common = math.gcd(*widths)
    if groups is None:
        fitting = [d for d in all_divisors(common) if d <= 32 and 2 * d <= common]
        return fitting[-1] if fitting else 1
    check_int("groups", groups)
    if common % groups:
        raise ValueError(
            f"groups={groups} does not divide every width {sorted(set(widths))}. The nearest values"
            f" that fit: groups={around(groups, all_divisors(common))}; or choose dim as a multiple"
            f" of {groups}."
        )
    return groups


def _does_not_divide(name: str, value: int, width: int) -> str:
    fits = around(value, all_divisors(width))
    return (
        f"{name}={value} does not divide the width {width} of a level with attention. Nearest"
        f" values that fit: {fits}."
    )


def resolve_heads(width: int, heads: int, head_dim: int | None, name: str = "heads") -> int:
    """Return the number of attention heads at a width."""
    if head_dim is not None:
        if width % head_dim:
            fits = around(head_dim, all_divisors(width))
            raise ValueError(
                f"head_dim={head_dim} does not divide the width {width}. The nearest values that"
                f" fit: {fits}."
            )
        return width // head_dim
    if width % heads:
        raise ValueError(_does_not_divide(name, heads, width))
    return heads


def resolve_attention_levels(
    attention_levels: Sequence[int] | None, levels: int
) -> tuple[int, ...]:
    """Return the levels with attention; by default the two deepest ones, but never the first."""
    if attention_levels is None:
        return tuple(level for level in range(levels) if level > 0 and level >= levels - 2)
    wrong = [
        level for level in attention_levels if isinstance(level, bool) or level not in range(levels)
    ]
    if wrong:
        raise ValueError(
            f"attention_levels={tuple(attention_levels)} must be indices of levels; with {levels}"
            f" entries in dim_mults they go from 0 (full resolution) to {levels - 1}, so {wrong[0]}"
            " is out of range. The nearest value that fits:"
            f" {min(max(int(wrong[0]), 0), levels - 1)}."
        )
    return tuple(attention_levels)


def check_spatial(size: Sequence[int], factor: int) -> None:
    """Raise when a spatial size cannot be halved as often as the network does."""
    if any(s < 1 or s % factor for s in size):
        raise ValueError(
            f"The image size {'×'.join(map(str, size))} must be divisible by {factor} in every"
            " direction, which is how much smaller this network's deepest level is. The nearest"
            f" sizes that fit: {nearest_multiples(size, factor)}."
        )


def warn_if_time_is_lost(settings: BlockSettings, widths: Sequence[int]) -> None:
    """Warn when some blocks cannot see the time: published networks of this kind exist, so it is no
    error.
    """
    if settings.time_conditioning == "add" and settings.groups in widths:
        warnings.warn(
            f"With groups={settings.groups} a level of {settings.groups} channels normalises each"
            " channel alone, which removes the added time embedding. Use fewer groups or"
            " time_conditioning='scale_shift'.",
            stacklevel=3,
        )
