"""From the arguments of `GaussianDiffusion` to its parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from ddpm_lib.core.options import build, option_names, registered_name
from ddpm_lib.core.registry import Registry
from ddpm_lib.nn.outside import said
from ddpm_lib.schedules import Schedule


def channels_of(model: nn.Module, channels: int | None) -> int:
    """Return the number of image channels, the network's where none is given."""
    found = channels if channels is not None else getattr(model, "channels", None)
    found = said(model, "in_channels") if found is None else found
    if not isinstance(found, int) or found < 1:
        raise ValueError(
            f"channels must be a positive integer; got {found!r}, and the network has no .channels"
            " or .in_channels. Pass it."
        )
    return found


def refuse_wrapped(model: nn.Module) -> None:
    """Refuse a network in a wrapper that renames its weights: what training stores would fit
    nothing else.

    Raises:
        ValueError: Saying what to do instead.
    """
    if "_orig_mod" in model._modules:
        raise ValueError(
            "The network comes from torch.compile(model), which renames its weights (_orig_mod.…),"
            " so that no other could load them. Compile it in place, model.compile(…) with the same"
            " options, or use Trainer(compile=True)."
        )
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        raise ValueError(
            f"The network is wrapped in {type(model).__name__}, which renames its weights"
            " (module.…). Pass the network itself: Trainer wraps it under torchrun, and your own"
            " loop can wrap the GaussianDiffusion."
        )


def spatial_size(image_size: int | Sequence[int]) -> tuple[int, ...]:
    """Return the size of the images, one number counting for both sides."""
    sizes = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if not 1 <= len(sizes) <= 3 or any(not isinstance(s, int) or s < 1 for s in sizes):
        raise ValueError(
            "image_size must be one positive integer, or a tuple of 1 to 3 of them; got"
            f" {image_size!r}."
        )
    return sizes


def make_schedule(
    schedule: str | Schedule, options: Mapping[str, Any] | None, timesteps: int
) -> Schedule:
    """Build a schedule from its name, or take a finished one."""
    if not isinstance(schedule, Schedule):
        return Schedule.make(schedule, timesteps, options)
    if options:
        raise ValueError(
            "schedule_options only go with the name of a schedule; build them into the Schedule."
        )
    if timesteps not in (1000, schedule.timesteps):
        raise ValueError(
            f"timesteps={timesteps} contradicts a Schedule of {schedule.timesteps}. Leave timesteps"
            " out."
        )
    return schedule


def make_part(registry: Registry[Any], value: Any, options: Mapping[str, Any] | None = None) -> Any:
    """Build a part from its name and options, or take it as it is if a checkpoint could name it."""
    if isinstance(value, str):
        return build(registry, value, options)
    if options:
        raise ValueError(
            f"Options only go with the name of a {registry.kind}; build them into the object."
        )
    registered_name(registry, value)
    return value


def options_of(part: object) -> dict[str, Any]:
    """Return the options a part was built with; it keeps them in attributes of the same names."""
    return {name: getattr(part, name) for name in option_names(type(part))}
