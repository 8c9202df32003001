"""`ddpm inpaint RUN IMAGES --mask MASK`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import tyro
from torch import Tensor

from ddpm_lib.cli import options
from ddpm_lib.cli.redraw import (
    Picture,
    RedrawCommand,
    Redrawing,
    check,
    read_pictures,
    redraw,
    stacked,
)
from ddpm_lib.diffusion import GaussianDiffusion
from ddpm_lib.process.inpainting import check_single_step
from ddpm_lib.samplers import SAMPLERS, make_sampler
from ddpm_lib.spacing import SPACINGS
from ddpm_lib.training import ConfigError

DESCRIPTION = (
    "Paint the masked part of pictures so that it fits the rest (RePaint). Takes about num-steps"
    " times num-resamples steps. Writes each result and a grid with a row per picture: the"
    " original, the masked, then the results. Nothing that exists is overwritten."
)


_MOST_GREY = 0.25
"""Share of a mask that may be neither black nor white."""
_SINGLE_STEP = [name for name, sampler in SAMPLERS.items() if not sampler.multistep]
"""What RePaint can walk with."""


@dataclass(frozen=True, kw_only=True)
class InpaintCommand(RedrawCommand):
    """Options of `ddpm inpaint`."""

    mask: str
    """A black and white picture, white where to paint; or a folder with one of the same name for
    each picture.
    """
    jump_length: int = 10
    """How many steps to go back up at a time."""
    num_resamples: int = 10
    """How often to walk down each stretch; 1 never goes back up."""
    sampler: Annotated[str, tyro.conf.arg(help=f"{', '.join(_SINGLE_STEP)}.")] = "ddpm"


def main(args: list[str]) -> int:
    """Run the command."""
    default = InpaintCommand(run=tyro.MISSING, images=tyro.MISSING, mask=tyro.MISSING)
    command: InpaintCommand = options.parse(
        InpaintCommand, args, default, "ddpm inpaint", DESCRIPTION
    )
    check(command)
    given = options.key_values(command.sampler_options, "--sampler-options")
    check_single_step(make_sampler(command.sampler, given, eta=command.eta))

    def prepare(diffusion: GaussianDiffusion) -> Redrawing:
        found = read_pictures(command.images, diffusion.image_size, diffusion.channels)
        images, mask = stacked(found), read_masks(command.mask, found)
        grey = torch.where(mask, torch.tensor(128, dtype=torch.uint8), images)

        def method(images: Tensor, **how: object) -> Tensor:
            if command.num_steps is None and command.spacing in SPACINGS:
                how["num_steps"] = None  # the method's own default
            draw = partial(
                diffusion.inpaint,
                jump_length=command.jump_length,
                num_resamples=command.num_resamples,
            )
            masks = mask.repeat_interleave(command.variants, 0)
            return draw(images, masks, **how)  # type: ignore[arg-type]

        return Redrawing(found, images, method, [images, grey])

    sys.stdout.write(redraw(command, "inpaint", prepare))
    return 0


def read_masks(path: str, found: list[Picture]) -> Tensor:
    """Return the masks of the pictures, (n, 1, h, w), True where to paint.

    Raises:
        ConfigError: If one is missing, or of another size than its picture, so that it is not clear
            where it lies.
    """
    size = tuple(found[0].pixels.shape[1:])
    masks = {mask.name: mask for mask in read_pictures(path, size, 1)}
    only = next(iter(masks.values())) if Path(path).expanduser().is_file() else None
    rows = []
    for picture in found:
        mask = only or masks.get(picture.name)
        if mask is None:
            raise ConfigError(
                f"{path} holds no mask named like the picture {picture.name}. There are:"
                f" {', '.join(masks)}."
            )
        if (mask.width, mask.height) not in ((picture.width, picture.height), size[::-1]):
            raise ConfigError(
                f"The mask of {picture.name} has {mask.width}×{mask.height} pixels, the picture "
                f"{picture.width}×{picture.height}. Make them agree."
            )
        _check_mask(mask)
        rows.append(mask.pixels >= 128)
    masks_of_all = torch.stack(rows)
    if not masks_of_all.any():
        raise ConfigError(
            f"{path} is black everywhere, so there is nothing to paint. White is where to paint."
        )
    return masks_of_all


def _check_mask(mask: Picture) -> None:
    # Soft edges and JPEG leave some greys; a photograph is mostly of them.
    grey = float(((mask.pixels > 64) & (mask.pixels < 192)).float().mean())
    if grey > _MOST_GREY:
        raise ConfigError(
            f"The mask {mask.name} is no black and white picture: {grey:.0%} of it are greys."
            " White is where to paint, black is kept; is it a photograph?"
        )
