"""`ddpm estimate`: what `ddpm train` with the same options would cost."""

from __future__ import annotations

import json
from dataclasses import dataclass

from ddpm_lib.cli import train

DESCRIPTION = (
    "Say what a run costs before it starts: parameters, multiplications, memory, size of the checkpoints, images per second and "
    "hours. Takes the options of `ddpm train` and does a few of its steps on random images, on the device that it would use. The "
    "data are opened only where the network depends on their classes."
)


@dataclass(frozen=True, kw_only=True)
class EstimateCommand(train.RunConfig):
    """What the command takes besides the settings of a run."""

    config: str | None = None
    """YAML file with any of these options (groups as nested keys)."""
    probe_steps: int = 5
    """Steps to time, after 2 of warm-up; 0: none, and so no speed."""
    json: bool = False
    """Print one JSON object."""


def main(args: list[str]) -> int:
    """Run the command."""
    from ddpm_lib.training.estimate import estimate

    command = train.layered(args, EstimateCommand, "ddpm estimate", DESCRIPTION)
    settings = train.settings_of(command)
    diffusion, data = train.build(settings)
    images = None if isinstance(data, str) else len(data)
    result = estimate(diffusion, settings.training(), command.probe_steps, images)
    if result is not None:  # the main process speaks
        print(json.dumps(result.to_dict()) if command.json else result)
    return 0
