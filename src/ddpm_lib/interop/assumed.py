"""What a file does not say: the published default of its library, and a line that says so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ddpm_lib.core.spelling import option

HO_PROCESS: dict[str, Any] = {
    "timesteps": 1000,
    "schedule": "linear",
    "parametrization": "eps",
    "variance": "fixed_large",
    "loss": "simple",
}
"""The process of Ho et al. 2020, which their followers have as default."""

_ALWAYS = {"weighting": "simple"}
"""L_simple (Ho et al. 2020, eq. 14)."""


def filled_in(
    given: Mapping[str, Any], defaults: Mapping[str, Any], library: str
) -> tuple[dict[str, Any], list[str]]:
    """Fill in the defaults of a library for what was not given.

    Args:
        given: What the file or the user says, by our names.
        defaults: The library's defaults; those that were not given are noted.
        library: Its name, for the notes.

    Returns:
        The values of all `defaults`, and one line for each that was assumed.
    """
    assumed = {name: value for name, value in defaults.items() if name not in given}
    notes = [
        f"{name} is not in the file: assumed {value!r}, the default of {library}"
        f" ({option(name, value)})"
        for name, value in assumed.items()
    ]
    return {name: given.get(name, value) for name, value in defaults.items()}, notes


def ho_process(
    given: Mapping[str, Any], library: str, defaults: Mapping[str, Any] | None = None
) -> tuple[dict[str, Any], list[str]]:
    """Return arguments of `GaussianDiffusion` for a library with the process of Ho et al. 2020.

    Its linear β run from 1e-4 to 0.02 whatever the number of levels, so they are not rescaled.

    Args:
        given: What the file or the user says; `image_size` must be among it.
        library: The library's name, for the notes.
        defaults: Where it differs from `HO_PROCESS`.

    Returns:
        The arguments, and one line for each value that was assumed.
    """
    process, notes = filled_in(given, {**HO_PROCESS, **(defaults or {})}, library)
    chosen = given.get("schedule_options")
    if chosen is None and process["schedule"] == "linear":
        chosen = {"beta_start": 1e-4, "beta_end": 0.02, "rescale": False}
        if "schedule" in given:
            notes.append(
                f"schedule_options are not in the file: assumed β from 0.0001 to 0.02, the default"
                f" of {library}"
            )
    options = {} if chosen is None else {"schedule_options": dict(chosen)}
    return {"image_size": list(given["image_size"]), **process, **options, **_ALWAYS}, notes
