"""`ddpm edit RUN IMAGES`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial

import tyro

from ddpm_lib.cli import options
from ddpm_lib.cli.redraw import (
    RedrawCommand,
    Redrawing,
    check,
    read_pictures,
    redraw,
    stacked,
)
from ddpm_lib.diffusion import GaussianDiffusion

DESCRIPTION = (
    "Redraw pictures with a run's model: add noise up to a level and sample down from there"
    " (SDEdit). Writes each result and a grid with a row per picture: the original, then the"
    " results. Nothing that exists is overwritten."
)


@dataclass(frozen=True, kw_only=True)
class EditCommand(RedrawCommand):
    """Options of `ddpm edit`."""

    fraction: float = 0.5
    """The level to start from as a part of T, above 0 up to 1: small keeps the picture, large its
    rough layout.
    """


def main(args: list[str]) -> int:
    """Run the command."""
    default = EditCommand(run=tyro.MISSING, images=tyro.MISSING)
    command: EditCommand = options.parse(EditCommand, args, default, "ddpm edit", DESCRIPTION)
    check(command)

    def prepare(diffusion: GaussianDiffusion) -> Redrawing:
        found = read_pictures(command.images, diffusion.image_size, diffusion.channels)
        images = stacked(found)
        method = partial(diffusion.edit, fraction=command.fraction)
        return Redrawing(found, images, method, [images])

    sys.stdout.write(redraw(command, "edit", prepare))
    return 0
