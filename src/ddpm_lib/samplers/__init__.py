"""Samplers: one file each, one line of the table each."""

from __future__ import annotations

from ddpm_lib.options import build, option_names
from ddpm_lib.registry import Registry
from ddpm_lib.samplers.base import History, Noise, Predict, Prediction, Sampler, sample_loop
from ddpm_lib.samplers.ddim import DDIM
from ddpm_lib.samplers.ddpm import DDPM, posterior_mean

SAMPLERS: Registry[type[Sampler]] = Registry("sampler", {"ddpm": DDPM, "ddim": DDIM})


def make_sampler(sampler: str | Sampler, **options: float | None) -> Sampler:
    """Return a sampler from its name and options; an option that is None is left to its default.

    Raises:
        ValueError: If the name is unknown, or the sampler has no such option.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if isinstance(sampler, Sampler):
        if given:
            raise ValueError(
                f"{', '.join(given)} cannot be added to a finished sampler. Write it into the sampler: "
                f"{type(sampler).__name__}({', '.join(f'{k}={v}' for k, v in given.items())})."
            )
        return sampler
    for name in given:
        if name not in option_names(SAMPLERS[sampler]):
            able = [other for other, cls in SAMPLERS.items() if name in option_names(cls)]
            raise ValueError(
                f"The sampler {sampler!r} has no option {name!r}. Leave it out, or use {' or '.join(map(repr, able))}."
            )
    made: Sampler = build(SAMPLERS, sampler, given)
    return made


__all__ = [
    "DDIM",
    "DDPM",
    "SAMPLERS",
    "History",
    "Noise",
    "Predict",
    "Prediction",
    "Sampler",
    "make_sampler",
    "posterior_mean",
    "sample_loop",
]
