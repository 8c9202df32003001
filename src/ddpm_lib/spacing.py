"""Which levels of a schedule a sampler visits."""

from __future__ import annotations

import bisect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from itertools import accumulate, pairwise
from typing import Any

from ddpm_lib.core.options import build
from ddpm_lib.core.registry import Registry
from ddpm_lib.schedules import Schedule

Ladder = Schedule | int
"""A schedule, or only its number of levels T, which suffices for all spacings that do not look at
the noise.
"""


_NEEDS_NOISE = "The spacing {!r} depends on the noise. Pass the schedule, not only its timesteps."


def leading(schedule: Ladder, num_steps: int, /) -> list[float]:
    """Levels 1, 1 + d, 1 + 2d, … with d = T//S, DDIM's original subsequence; the noisiest is below
    T unless S = T.
    """
    stride = _timesteps(schedule) // num_steps
    return [1 + k * stride for k in range(num_steps)]


def trailing(schedule: Ladder, num_steps: int, /) -> list[float]:
    """Levels T, T − T/S, T − 2T/S, … rounded (Lin et al. 2024, table 2)."""
    return [round(Fraction(_timesteps(schedule) * k, num_steps)) for k in range(1, num_steps + 1)]


def linspace(schedule: Ladder, num_steps: int, /) -> list[float]:
    """Levels evenly from 1 to T, rounded; one step goes from T."""
    timesteps = _timesteps(schedule)
    if num_steps == 1:
        return [timesteps]
    return [1 + round(Fraction((timesteps - 1) * k, num_steps - 1)) for k in range(num_steps)]


def quadratic(schedule: Ladder, num_steps: int, /) -> list[float]:
    """Levels T·(k/S)², denser near clean data (Song et al. 2021, §D.2).

    Rounded values that collide near 0 are moved up by one: published code visits such levels twice.
    """
    timesteps = _timesteps(schedule)
    return _distinct(
        [Fraction(timesteps * k * k, num_steps**2) for k in range(1, num_steps + 1)], timesteps
    )


def log_snr(
    schedule: Ladder,
    num_steps: int,
    /,
    *,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    fractional: bool = False,
) -> list[float]:
    """Levels of evenly spaced log-SNR, the natural steps of the DPM-Solvers (Lu et al. 2022a,
    §3.4).

    The noise σ̃ = σ/α falls by the same factor each step from `sigma_max` to `sigma_min`. Schedules
    that come close to pure noise spend many of these steps there: a `sigma_max` of 80 leaves them
    out.

    Args:
        schedule: The schedule.
        num_steps: Number of steps S.
        sigma_min: σ̃ of the last noisy level. Default: that of level 1.
        sigma_max: σ̃ of the first level; where it is below that of level T, one of the steps goes
            from T to it. Default: that of level T, or of T − 1 if T is pure noise.
        fractional: Visit fractional levels. Default: the nearest whole ones, all different, because
            networks are trained on those.
    """
    spread = _noise_range(schedule, "log_snr", sigma_min, sigma_max)

    def at(u: float) -> float:
        low, high = (math.log(v) for v in spread)
        return low + u * (high - low)

    return _by_noise(schedule, num_steps, spread, at, fractional)


def karras(
    schedule: Ladder,
    num_steps: int,
    /,
    *,
    rho: float = 7.0,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    fractional: bool = False,
) -> list[float]:
    """Levels where σ̃^(1/ρ), σ̃ = σ/α, is evenly spaced: short steps at low noise (Karras et al.
    2022, eq. 5).

    Args:
        schedule: The schedule.
        num_steps: Number of steps S.
        rho: ρ; 1 is uniform in σ̃, large values approach "log_snr".
        sigma_min: As for "log_snr".
        sigma_max: As for "log_snr".
        fractional: As for "log_snr".
    """
    if not rho > 0:
        raise ValueError(f"The spacing 'karras' needs rho > 0, got {rho}. Karras et al. use 7.")
    spread = _noise_range(schedule, "karras", sigma_min, sigma_max)

    def at(u: float) -> float:
        low, high = (v ** (1.0 / rho) for v in spread)
        return rho * math.log(low + u * (high - low))

    return _by_noise(schedule, num_steps, spread, at, fractional)


def mixed(
    schedule: Ladder,
    num_steps: int,
    /,
    *,
    share: float | None = None,
    sigma_min: float | None = None,
    sigma_max: float = 80.0,
    fractional: bool = False,
) -> list[float]:
    """Levels between "log_snr" and "linspace": what lies between two neighbours is the same sum of
    `share` parts of log σ̃ and the rest of t, σ̃ = σ/α.

    Steps even in log-SNR are right for a solver with a perfect network, but leave few of them for
    the middle, where a trained network changes its mind. The fewer the steps S, the more the solver
    errs: hence the defaults, chosen on exact mixtures (docs/sampling.md).

    Args:
        schedule: The schedule.
        num_steps: Number of steps S.
        share: 0 … 1; 1 is even in log σ̃. Default: 1 up to 8 steps, falling to 0.75 from 20 on.
        sigma_min: σ̃ of the last noisy level, or that of level 1 if it is larger. Default: 6/S², at
            most 0.1 but 2.4/S² for less than 5 steps, at least 0.55/S.
        sigma_max: σ̃ above which log σ̃ does not count.
        fractional: As for "log_snr".
    """
    if isinstance(schedule, int):
        raise ValueError(_NEEDS_NOISE.format("mixed"))
    top, noise = schedule.timesteps, _log_noise(schedule)
    if share is None:
        share = min(1.0, max(0.75, 1.0 - (num_steps - 8) / 48))
    if sigma_min is None:
        usual = max(min(0.1, 6 / num_steps**2), 2.4 / num_steps**2, 0.55 / num_steps)
        sigma_min = min(usual, 0.1 * math.exp(min(noise[-1], 10.0)))
    if not (0.0 <= share <= 1.0 and 0.0 < sigma_min < sigma_max):
        raise ValueError(
            "The spacing 'mixed' needs 0 <= share <= 1 and 0 < sigma_min < sigma_max; got"
            f" share={share}, sigma_min={sigma_min}, sigma_max={sigma_max}."
        )
    if num_steps == 1:
        return [top]
    ends = math.log(sigma_min), math.log(sigma_max)
    inside = [min(max(value, ends[0]), ends[1]) for value in noise]
    spread = inside[-1] - inside[0]
    counts = share if spread > 0 else 0.0
    way = [
        counts * (value - inside[0]) / (spread or 1.0) + (1.0 - counts) * k / (top - 1)
        for k, value in enumerate(inside)
    ]
    begin = (1.0 - counts) * (_inverse(noise, ends[0]) - 1.0) / (top - 1)
    places = [begin + (1.0 - begin) * k / (num_steps - 1) for k in range(num_steps - 1)]
    exact = [_inverse(way, place) for place in places] + [float(top)]
    return exact if fractional else _distinct(exact, top)


def _log_noise(schedule: Schedule) -> list[float]:
    """Return log σ̃ of the levels 1 … T, infinite for pure noise."""
    return [-0.5 * schedule.level(t).log_snr for t in range(1, schedule.timesteps + 1)]


def _inverse(rising: Sequence[float], value: float) -> float:
    """Return the level, from 1 on, at which a rising function of whole levels has a value, linear
    in between.
    """
    above = bisect.bisect_right(rising, value)
    if above == 0:
        return 1.0
    if above == len(rising):
        return float(len(rising))
    low, high = rising[above - 1], rising[above]
    return above + (value - low) / (high - low)


SPACINGS: Registry[Callable[..., list[float]]] = Registry(
    "spacing",
    {
        "trailing": trailing,
        "linspace": linspace,
        "leading": leading,
        "quadratic": quadratic,
        "log_snr": log_snr,
        "karras": karras,
        "mixed": mixed,
    },
)
"""Functions of (schedule, number of steps) that return the noisy levels in increasing order;
options by keyword.
"""

_SECTIONS = re.compile(r"ddim\d+|\d+(\s*,\s*\d+)*")


def sampling_levels(
    schedule: Ladder,
    num_steps: int | None = None,
    spacing: str | Sequence[float] = "trailing",
    spacing_options: Mapping[str, Any] | None = None,
) -> list[float]:
    """Return the levels that a sampler visits, strictly decreasing: `num_steps` noisy ones and then
    0.

    "trailing" is the default because it starts at level T, the only level whose x_T is what
    sampling draws: "leading" starts below, where the network still expects some signal (Lin et al.
    2024, §3.3).

    Args:
        schedule: The schedule, or its T where the spacing does not look at the noise.
        num_steps: Number of steps, 1 … T; None: all T, or as many as the spacing itself says.
        spacing: An entry of `SPACINGS`; or the noisy levels themselves in decreasing order, whole
            or fractional (a 0 at the end may be left out); or "10,15,20", that many levels in each
            of three equal sections of 1 … T, cleanest first, or "ddim25", 25 levels of one whole
            stride from 1 on (both: Nichol & Dhariwal 2021, code).
        spacing_options: Options of the named spacing, such as {"rho": 5.0}.

    Raises:
        ValueError: If there are more steps than levels, the spacing is unknown or the list is not
            as described.

    >>> sampling_levels(1000, 4)
    [1000, 750, 500, 250, 0]
    >>> sampling_levels(1000, spacing="1,2")
    [1000, 501, 1, 0]
    """
    timesteps = _timesteps(schedule)
    if spacing_options and (not isinstance(spacing, str) or _SECTIONS.fullmatch(spacing)):
        raise ValueError(
            f"spacing={spacing!r} takes no options; got {', '.join(spacing_options)}. Leave them"
            " out."
        )
    if not isinstance(spacing, str):
        return _checked_levels(timesteps, num_steps, list(spacing))
    if _SECTIONS.fullmatch(spacing):
        return _checked_levels(timesteps, num_steps, _sections(timesteps, spacing)[::-1])
    steps = timesteps if num_steps is None else num_steps
    if spacing in SPACINGS and not 1 <= steps <= timesteps:
        raise ValueError(
            f"num_steps must be in 1 … {timesteps} (the timesteps the model was trained on), got"
            f" {num_steps}."
        )
    return _checked_levels(
        timesteps, steps, build(SPACINGS, spacing, spacing_options, schedule, steps)[::-1]
    )


def is_named(spacing: str | Sequence[float]) -> bool:
    """Whether a spacing is an entry of `SPACINGS`, which needs to be told the number of steps."""
    return isinstance(spacing, str) and spacing in SPACINGS


FEW_STEPS = 50
"""Steps of a fast sampler where none are asked for."""


def default_num_steps(
    ancestral: bool, timesteps: int, spacing: str | Sequence[float] = "trailing"
) -> int | None:
    """Return the steps of sampling where none are asked for: all T for ancestral sampling, 50 for
    the others.

    Samplers of first order gain little from more than 50; ancestral sampling is made for all its
    levels (Ho et al. 2020). The usual sampler takes fewer: `process.plan.usual_steps`.

    Args:
        ancestral: Whether the sampler is "ddpm".
        timesteps: T.
        spacing: As for `sampling_levels`; one that says itself how many gives None.
    """
    if not is_named(spacing):
        return None
    return timesteps if ancestral else min(FEW_STEPS, timesteps)


def _checked_levels(timesteps: int, num_steps: int | None, levels: list[float]) -> list[float]:
    levels = [int(t) if float(t).is_integer() else float(t) for t in levels]
    if levels and levels[-1] != 0:
        levels = [*levels, 0]
    decreasing = all(a > b for a, b in pairwise(levels))
    if len(levels) < 2 or not decreasing or levels[0] > timesteps or levels[-1] != 0:
        raise ValueError(
            f"A list of levels must decrease strictly within {timesteps} … 0, with at least one"
            f" above 0; got {levels}."
        )
    if num_steps is not None and num_steps != len(levels) - 1:
        raise ValueError(
            f"num_steps={num_steps} contradicts a list of {len(levels) - 1} levels. Leave num_steps"
            " out."
        )
    return levels


def _sections(timesteps: int, spacing: str) -> list[float]:
    """Return the increasing levels of "10,15,20" or "ddim25"."""
    if spacing.startswith("ddim"):
        wanted = int(spacing[4:])
        for stride in range(1, timesteps + 1):
            if len(range(0, timesteps, stride)) == wanted:
                return [1 + t for t in range(0, timesteps, stride)]
        raise ValueError(
            f"No whole stride makes {wanted} steps of {timesteps} levels. Use spacing='trailing'"
            " instead."
        )
    counts = [int(part) for part in spacing.split(",")]
    size, longer = divmod(timesteps, len(counts))
    levels: list[float] = []
    first = 1
    for i, count in enumerate(counts):
        length = size + (i < longer)
        if not 1 <= count <= length:
            raise ValueError(
                f"spacing={spacing!r} wants {count} of the {length} levels of a section. Use fewer."
            )
        # Both ends of a section belong to it; one level alone is its first.
        step = (length - 1) / (count - 1) if count > 1 else 0.0
        # Summed, not multiplied: ties are then rounded as in the code that published models were
        # sampled with.
        levels += [first + round(position) for position in accumulate([0.0] + [step] * (count - 1))]
        first += length
    return levels


def _timesteps(schedule: Ladder) -> int:
    return schedule if isinstance(schedule, int) else schedule.timesteps


def _noise_range(
    schedule: Ladder, name: str, sigma_min: float | None, sigma_max: float | None
) -> tuple[float, float]:
    """Return the lowest and the highest σ̃ of a grid."""
    if isinstance(schedule, int):
        raise ValueError(_NEEDS_NOISE.format(name))
    ratio = (schedule.sigma / schedule.alpha)[1:]
    last = ratio[-2] if ratio[-1].isinf() else ratio[-1]
    low = float(ratio[0]) if sigma_min is None else sigma_min
    high = max(low, float(last)) if sigma_max is None else sigma_max
    if (
        not float(ratio[0]) * (1 - 1e-9) <= low <= high <= float(ratio[-1]) * (1 + 1e-9)
        or high == math.inf
    ):
        raise ValueError(
            "sigma_min ≤ sigma_max must lie within the noise σ/α of the schedule,"
            f" {float(ratio[0]):.4g} … {float(last):.4g}; got {low} and {high}."
        )
    return low, high


def _by_noise(
    schedule: Ladder,
    num_steps: int,
    spread: tuple[float, float],
    at: Callable[[float], float],
    fractional: bool,
) -> list[float]:
    """Return the levels with log σ̃ = at(u), u evenly from 0 to 1; the last is T, an extra one if
    it is noisier.
    """
    assert isinstance(schedule, Schedule)
    top = schedule.timesteps
    above = -0.5 * schedule.level(top).log_snr - math.log(spread[1]) > 1e-9
    count = num_steps - above
    exact = [
        schedule.level_at(-2.0 * at(k / (count - 1) if count > 1 else 1.0)).t for k in range(count)
    ]
    if above:
        exact.append(top)
    elif exact:
        exact[-1] = top
    return exact if fractional else _distinct(exact, top)


def _distinct(wanted: Sequence[float | Fraction], timesteps: int) -> list[float]:
    """Round increasing levels to whole ones in 1 … T, all different."""
    levels: list[int] = []
    for t in wanted:
        levels.append(max(round(t), levels[-1] + 1 if levels else 1))
    for k in range(len(levels)):
        levels[-1 - k] = min(levels[-1 - k], timesteps - k)
    return list(levels)
