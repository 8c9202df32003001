"""`ddpm estimate`: what `ddpm train` with the same options would cost."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from ddpm_lib.cli import options, train
from ddpm_lib.cli.run_settings import RunConfig, layered
from ddpm_lib.core.text import printable

if TYPE_CHECKING:
    from ddpm_lib.diffusion import GaussianDiffusion
    from ddpm_lib.nn import Unet

DESCRIPTION = (
    "Say what a run costs before it starts: parameters, multiplications, memory, size of the"
    " checkpoints, images per second and hours. Takes the options of `ddpm train` and does a few of"
    " its steps on random images, on the device that it would use. The data are opened only where"
    " the network depends on their classes."
)


@dataclass(frozen=True, kw_only=True)
class EstimateCommand(RunConfig):
    """What the command takes besides the settings of a run."""

    config: str | None = None
    """YAML file of these options (groups are nested keys)."""
    probe_steps: int = 5
    """Steps to time, after 2 of warm-up; 0: none, and so no speed."""
    json: bool = False
    """Print one JSON object."""


def main(args: list[str]) -> int:
    """Run the command."""
    command = layered(args, EstimateCommand, "ddpm estimate", DESCRIPTION)
    settings = train.settings_of(command)
    speaks = os.environ.get("RANK", "0") == "0"
    if speaks:  # opening data and loading libraries takes a while
        print(f"ddpm estimate: {looking(settings)} …", file=sys.stderr, flush=True)
    from ddpm_lib.data.missing_paths import look_for
    from ddpm_lib.training.estimate import estimate

    note = look_for(settings.data)
    if note:
        print(note, file=sys.stderr)
    diffusion, data = train.build(settings)
    images = None if isinstance(data, str) else len(data)
    if speaks:
        print(at_once(diffusion, settings, command.probe_steps), file=sys.stderr, flush=True)
    result = estimate(diffusion, settings.training(), command.probe_steps, images)
    if result is not None:  # the main process speaks
        print(json.dumps(result.to_dict()) if command.json else result)
    return 0


def looking(settings: RunConfig) -> str:
    """Say what is done first."""
    if settings.condition:
        return f"opening {printable(settings.data)}, as the network depends on its conditions"
    if settings.class_conditional and options.to_plain(settings.model)["num_classes"] is None:
        return f"opening {printable(settings.data)}, as the network depends on its classes"
    return "building the network"


def at_once(diffusion: GaussianDiffusion, settings: RunConfig, probe_steps: int) -> str:
    """Say what is known before a step was done, so that nobody waits in front of an empty
    screen.
    """
    from ddpm_lib.training.by_length import number_of_averages
    from ddpm_lib.training.memory import activation_bytes, moments_bytes

    model = cast("Unet", diffusion.model)
    count = sum(p.numel() for p in model.parameters())
    averages = number_of_averages(settings) + len(settings.posthoc_ema)
    copies = 2 + averages + bool(settings.pull_to_start)  # weights, gradients, averages, …
    state = 4 * count * copies + moments_bytes(model, settings.optimizer)
    known = (
        f"{count / 1e6:,.2f} M parameters; weights, gradients, moments, averages"
        f" {state / 2**20:,.0f} MiB"
    )
    size = (
        1 if settings.batch_size == "auto" else settings.batch_size // settings.accumulation_steps
    )
    kept = activation_bytes(model, diffusion.image_size, size, "no")
    if kept is not None:
        images = "1 image" if size == 1 else f"{size} images"
        known += f"; activations {kept / 2**20:,.0f} MiB in float32 for {images} at a time"
    steps = "1 step" if probe_steps == 1 else f"{probe_steps} steps"
    doing = f"timing {steps} after a warm-up …" if probe_steps else "no steps are timed"
    return f"{known}\n{doing}"
