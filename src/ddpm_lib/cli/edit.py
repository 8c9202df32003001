"""`ddpm edit RUN IMAGES`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import tyro
from torch import Tensor

from ddpm_lib.cli import options
from ddpm_lib.cli.redraw import Picture, RedrawCommand, check, redraw
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

    def prepare(
        diffusion: GaussianDiffusion, found: list[Picture]
    ) -> tuple[Callable[..., Tensor], list[Tensor]]:
        return partial(diffusion.edit, fraction=command.fraction), []

    sys.stdout.write(redraw(command, "edit", prepare))
    return 0
