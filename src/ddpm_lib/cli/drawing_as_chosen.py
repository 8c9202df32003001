"""How `ddpm sample` draws: by its flags; where they do not say, by the run's sampling default."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ddpm_lib.cli import autoguide, options
from ddpm_lib.core.errors import ConfigError
from ddpm_lib.process.plan import resolve_num_steps, usual_sampler, usual_spacing
from ddpm_lib.process.sampling import can_guide, stored_partner
from ddpm_lib.process.sampling_default import Chosen, choose_sampling
from ddpm_lib.runs.loading import LoadedRun


def guidance_scales(scale: float | None, parts: Sequence[str]) -> float | dict[str, float] | None:
    """Return the strength of guidance by all conditions, or those of single ones by name.

    Raises:
        ConfigError: If both are given, or a strength is no number.
    """
    if not parts:
        return scale
    if scale is not None:
        raise ConfigError(
            "--guidance-scale guides by all conditions, --cond-guidance by single ones. Give one of"
            " them."
        )
    found = options.key_values(parts, "--cond-guidance")
    for name, value in found.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ConfigError(f"--cond-guidance {name} takes a number; got {value!r}.")
    return {name: float(value) for name, value in found.items()}


def chosen_by(
    loaded: LoadedRun, command: Any, cond: Mapping[str, Any], *, guide_by: Any = None
) -> Chosen:
    """Fill in what the flags of `ddpm sample` leave open.

    Args:
        loaded: What draws.
        command: The flags.
        cond: The conditions of the images.
        guide_by: What --guide-by loaded.
    """
    wishes = {
        "sampler": command.sampler,
        "sampler_options": options.key_values(command.sampler_options, "--sampler-options"),
        "num_steps": command.num_steps,
        "spacing": command.spacing,
        "spacing_options": options.key_values(command.spacing_options, "--spacing-options"),
        "eta": command.eta,
        "guidance_scale": guidance_scales(command.guidance_scale, command.cond_guidance),
        "guidance_interval": command.guidance_interval,
        "guidance_rescale": command.guidance_rescale,
        "guide_by": guide_by,
        "guide_scale": command.guide_scale,
    }
    able = can_guide(loaded.diffusion.conditioners, cond)
    default, jumps = loaded.diffusion.sampling_default, loaded.diffusion.denoiser.jumps
    return choose_sampling(default, wishes, can_guide=able, jumps=jumps)


def arguments_of(
    chosen: Chosen,
    loaded: LoadedRun,
    device: torch.device,
    precision: str,
    *,
    compiled: bool = False,
) -> dict[str, Any]:
    """Return arguments of `GaussianDiffusion.sample`, none of them left to a default; what the
    default guides by is loaded, and brought to the device.
    """
    how, timesteps = dict(chosen.arguments), loaded.diffusion.timesteps
    if chosen.partner_is_stored and chosen.default is not None:
        how["guide_by"] = stored_partner(loaded.diffusion, chosen.default)
        autoguide.place(how, device, precision, compiled=compiled)
    # A sampler that is named leaves no default.
    how["sampler"] = how["sampler"] or usual_sampler(how["eta"], how["sampler_options"])
    steps = resolve_num_steps(how["sampler"], how["num_steps"], timesteps, how["spacing"])
    return {**how, "num_steps": steps}


def as_plain(chosen: Chosen, timesteps: int) -> dict[str, Any]:
    """Return what was drawn with, for the file of settings: nothing in it is left to a default of
    today's.
    """
    how = chosen.arguments
    sampler = how["sampler"] or usual_sampler(how["eta"], how["sampler_options"])
    spacing = usual_spacing(sampler) if how["spacing"] is None else how["spacing"]
    plain = {
        "sampler": sampler,
        "num_steps": resolve_num_steps(sampler, how["num_steps"], timesteps, spacing),
        "spacing": spacing if isinstance(spacing, str) else [float(t) for t in spacing],
    }
    if chosen.default is None:
        return plain
    return plain | {"sampling_default": chosen.default.to_json() | {"evidence": {}}}
