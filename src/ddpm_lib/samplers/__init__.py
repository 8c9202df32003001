"""Samplers: one file each, one line of the table each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ddpm_lib.core.options import build, option_names
from ddpm_lib.core.registry import Registry
from ddpm_lib.samplers.base import (
    History,
    LevelAt,
    Noise,
    Past,
    Predict,
    Prediction,
    Sampler,
    sample_loop,
)
from ddpm_lib.samplers.consistency_steps import Consistency
from ddpm_lib.samplers.ddim import DDIM
from ddpm_lib.samplers.ddpm import DDPM, posterior_mean
from ddpm_lib.samplers.deis import DEIS
from ddpm_lib.samplers.dpm_solver import DPMSolver2M, DPMSolver2MSDE, DPMSolver2S, DPMSolver3M
from ddpm_lib.samplers.heun import Euler, Heun
from ddpm_lib.samplers.unipc import UniPC

SAMPLERS: Registry[type[Sampler]] = Registry(
    "sampler",
    {
        "ddpm": DDPM,
        "ddim": DDIM,
        "dpmpp_2m": DPMSolver2M,
        "dpmpp_2m_sde": DPMSolver2MSDE,
        "dpmpp_3m": DPMSolver3M,
        "dpmpp_2s": DPMSolver2S,
        "unipc": UniPC,
        "deis": DEIS,
        "heun": Heun,
        "euler": Euler,
        "consistency": Consistency,
    },
)

OF_DENOISERS = tuple(name for name, cls in SAMPLERS.items() if not cls.jumps)
"""Those for networks that answer with the mean of clean images; "consistency" is for others."""


def make_sampler(
    sampler: str | Sampler,
    sampler_options: Mapping[str, Any] | None = None,
    *,
    eta: float | None = None,
) -> Sampler:
    """Return a sampler from its name and options, or the sampler itself.

    Args:
        sampler: An entry of `SAMPLERS`, or a finished sampler.
        sampler_options: The options of that entry: the arguments of its class.
        eta: The one option that several of them have, for short.

    Raises:
        ValueError: If the name is unknown, or the sampler has no such option.
    """
    given = dict(sampler_options or {}) | ({} if eta is None else {"eta": eta})
    if isinstance(sampler, Sampler):
        if given:
            raise ValueError(
                f"{', '.join(given)} cannot be added to a finished sampler. Write it into the"
                " sampler:"
                f" {type(sampler).__name__}({', '.join(f'{k}={v!r}' for k, v in given.items())})."
            )
        return sampler
    for name in given:
        able = [other for other, cls in SAMPLERS.items() if name in option_names(cls)]
        if able and sampler in SAMPLERS and sampler not in able:
            raise ValueError(
                f"The sampler {sampler!r} has no option {name!r}. Leave it out, or use"
                f" {' or '.join(map(repr, able))}."
            )
    made: Sampler = build(SAMPLERS, sampler, given)
    return made


__all__ = [
    "DDIM",
    "DDPM",
    "DEIS",
    "OF_DENOISERS",
    "SAMPLERS",
    "Consistency",
    "DPMSolver2M",
    "DPMSolver2MSDE",
    "DPMSolver2S",
    "DPMSolver3M",
    "Euler",
    "Heun",
    "History",
    "LevelAt",
    "Noise",
    "Past",
    "Predict",
    "Prediction",
    "Sampler",
    "UniPC",
    "make_sampler",
    "posterior_mean",
    "sample_loop",
]
