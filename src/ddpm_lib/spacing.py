"""Which levels of a schedule a sampler visits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import pairwise

from ddpm_lib.registry import Registry


def leading(timesteps: int, num_steps: int) -> list[int]:
    """Levels 1, 1 + d, 1 + 2d, … with d = T//S, DDIM's original subsequence; the noisiest is below T unless S = T."""
    stride = timesteps // num_steps
    return [1 + k * stride for k in range(num_steps)]


def trailing(timesteps: int, num_steps: int) -> list[int]:
    """Levels T, T − T/S, T − 2T/S, … rounded (Lin et al. 2024, table 2)."""
    return [round(Fraction(timesteps * k, num_steps)) for k in range(1, num_steps + 1)]


def linspace(timesteps: int, num_steps: int) -> list[int]:
    """Levels evenly from 1 to T, rounded; one step goes from T."""
    if num_steps == 1:
        return [timesteps]
    return [1 + round(Fraction((timesteps - 1) * k, num_steps - 1)) for k in range(num_steps)]


def quadratic(timesteps: int, num_steps: int) -> list[int]:
    """Levels T·(k/S)², denser near clean data (Song et al. 2021, §D.2).

    Rounded values that collide near 0 are moved up by one: published code visits such levels twice.
    """
    levels: list[int] = []
    for k in range(1, num_steps + 1):
        wanted = round(Fraction(timesteps * k * k, num_steps * num_steps))
        levels.append(max(wanted, levels[-1] + 1 if levels else 1))
    return levels


SPACINGS: Registry[Callable[[int, int], list[int]]] = Registry(
    "spacing", {"trailing": trailing, "linspace": linspace, "leading": leading, "quadratic": quadratic}
)


def sampling_levels(
    timesteps: int, num_steps: int | None = None, spacing: str | Sequence[int] = "trailing"
) -> list[int]:
    """Return the levels that a sampler visits: strictly decreasing integers, `num_steps` noisy ones and then 0.

    "trailing" is the default because it starts at level T, the only level whose x_T is what sampling draws: "leading" starts
    below, where the network still expects some signal (Lin et al. 2024, §3.3).

    Args:
        timesteps: T of the schedule.
        num_steps: Number of steps, 1 … T; None: all T.
        spacing: An entry of `SPACINGS`, or the noisy levels themselves in decreasing order (a 0 at the end may be left out).

    Raises:
        ValueError: If there are more steps than levels, the spacing is unknown or the list is not as described.

    >>> sampling_levels(1000, 4)
    [1000, 750, 500, 250, 0]
    """
    if not isinstance(spacing, str):
        return _checked_levels(timesteps, num_steps, [int(t) for t in spacing])
    make = SPACINGS[spacing]
    steps = timesteps if num_steps is None else num_steps
    if not 1 <= steps <= timesteps:
        raise ValueError(
            f"num_steps must be in 1 … {timesteps} (the timesteps the model was trained on), got {num_steps}."
        )
    return [*reversed(make(timesteps, steps)), 0]


def _checked_levels(timesteps: int, num_steps: int | None, levels: list[int]) -> list[int]:
    if levels and levels[-1] != 0:
        levels = [*levels, 0]
    decreasing = all(a > b for a, b in pairwise(levels))
    if len(levels) < 2 or not decreasing or levels[0] > timesteps:
        raise ValueError(
            f"A list of levels must decrease strictly within {timesteps} … 0, with at least one above 0; got {levels}."
        )
    if num_steps is not None and num_steps != len(levels) - 1:
        raise ValueError(f"num_steps={num_steps} contradicts a list of {len(levels) - 1} levels. Leave num_steps out.")
    return levels
