"""`ddpm restore RUN IMAGES --operator OPERATOR`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import torch
import tyro
from torch import Tensor

from ddpm_lib.cli import options
from ddpm_lib.cli.inpaint import read_masks
from ddpm_lib.cli.redraw import (
    DrawCommand,
    Picture,
    Redrawing,
    check,
    read_pictures,
    redraw,
    refuse_namesakes,
    stacked,
)
from ddpm_lib.cli.values import UsageError
from ddpm_lib.core import keys
from ddpm_lib.core.errors import ConfigError
from ddpm_lib.data.decode import COMPOSITED, GREY_TO_COLOUR
from ddpm_lib.diffusion import GaussianDiffusion
from ddpm_lib.images import to_uint8
from ddpm_lib.process.linear_maps import Operator, Shape
from ddpm_lib.process.measuring import METHODS, make_method
from ddpm_lib.process.operators import Product, make_operator, split_parts
from ddpm_lib.process.restoring import resolve_noise
from ddpm_lib.samplers import SAMPLERS

DESCRIPTION = (
    "Restore pictures that were blurred, made smaller, partly lost, noisy or grey: draw images with"
    " a run's model that, measured by the same operator, give the picture. Writes each result and a"
    " grid with a row per picture: what was measured, the results, and with --simulate the truth."
    " Nothing that exists is overwritten."
)


@dataclass(frozen=True, kw_only=True)
class RestoreCommand(DrawCommand):
    """Options of `ddpm restore`."""

    images: tyro.conf.Positional[tuple[str, ...]]
    """Pictures, or folders of pictures, as the operator leaves them: of the model's size, smaller
    for downsampling. With --simulate whole ones of any size.
    """
    operator: str
    """What was done to them: blur:2 (standard deviation in the model's pixels), downsampling:4,
    mask:hole.png (white where nothing is known), noise:0.1, grey; several in order, as
    blur:1+downsampling:4+noise:0.05.
    """
    noise_std: float | None = None
    """Standard deviation of the noise in them, on a scale from black 0 to white 1; default: what
    the operator says, else that of rounding to 8 bits.
    """
    simulate: bool = False
    """The pictures are whole: apply the operator and its noise to them first, and show them beside
    the results.
    """
    method: Annotated[str, tyro.conf.arg(help=f"How to follow them: {', '.join(METHODS)}.")] = (
        "pigdm"
    )
    method_options: tuple[str, ...] = ()
    """Options of the method, as data_std=0.5 for pigdm."""
    strength: float = 1.0
    """Factor of the pictures' pull; 1 is Bayes' rule, 0 leaves them out."""
    sampler: Annotated[str, tyro.conf.arg(help=f"Sampler: {', '.join(SAMPLERS)}.")] = "ddim"


def main(args: list[str]) -> int:
    """Run the command."""
    masks = [word for word in args if word.partition("=")[0] == "--mask"]
    if masks:
        raise UsageError(
            "A mask is a part of the operator here: --operator mask:FILE, white where nothing is"
            " known. To paint into a picture as `ddpm inpaint` does, use that."
        )
    default = RestoreCommand(run=tyro.MISSING, images=tyro.MISSING, operator=tyro.MISSING)
    command: RestoreCommand = options.parse(
        RestoreCommand, args, default, "ddpm restore", DESCRIPTION
    )
    check(command)
    given = options.key_values(command.method_options, "--method-options")
    method = make_method(command.method, given)
    plain = placeholder(command.operator)
    std = resolve_noise(plain, command.noise_std)

    def prepare(diffusion: GaussianDiffusion) -> Redrawing:
        shape = diffusion.image_shape
        found = _pictures(command, shape if command.simulate else plain.out_shape(shape))
        many = [picture for picture in found for _ in range(command.variants)]
        operator = operator_at(command.operator, shape, many)
        images = stacked(found)
        y = images.float() / 255.0
        if command.simulate:
            one = operator_at(command.operator, shape, found)
            noisy = bool(plain.noise_std) or command.noise_std is not None
            y = _measured(y, one, std if noisy else None, command.seed)

        def draw(measurement: Tensor, **how: object) -> Tensor:
            restore: Callable[..., Tensor] = partial(
                diffusion.restore,
                operator=operator,
                noise_std=command.noise_std,
                method=method,
                strength=command.strength,
            )
            return restore(measurement, **how)

        def remark(results: Tensor) -> str:
            truth = images.float() / 255.0 if command.simulate else None
            return _remark(results, y, operator, std, truth)

        return Redrawing(
            found, y, draw, [_shown(y, shape)], [images] if command.simulate else [], remark
        )

    sys.stdout.write(redraw(command, "restore", prepare))
    return 0


def placeholder(text: str) -> Operator:
    """Return the operator that a text names, with a mask that hides nothing in the place of masks.

    Raises:
        ValueError: If a name is unknown or a value out of range.
    """
    return make_operator(text, lambda path: torch.zeros(1, 1))


def operator_at(text: str, shape: Shape, found: Sequence[Picture]) -> Operator:
    """Return the operator that a text names, with the masks of pictures.

    Args:
        text: As for --operator.
        shape: Of the model's images.
        found: The pictures, after which masks in a folder are named.

    Raises:
        ConfigError: If a mask does not fit.
    """
    parts: list[Operator] = []
    for word in split_parts(text):
        here = shape
        read = partial(_masks_at, shape=here, found=found)
        parts.append(make_operator(word, read))
        shape = here if word.startswith("mask") else parts[-1].out_shape(here)
    return parts[0] if len(parts) == 1 else Product(tuple(parts))


def _masks_at(path: str, shape: Shape, found: Sequence[Picture]) -> Tensor:
    if found[0].pixels.shape[1:] == shape[1:]:
        return read_masks(path, list(found))
    # Behind another operator a mask has the size of what it hides, whatever the pictures have.
    height, width = shape[1:]
    blank = torch.zeros(1, height, width, dtype=torch.uint8)
    return read_masks(path, [Picture(p.name, blank, width, height) for p in found])


def _pictures(command: RestoreCommand, shape: Shape) -> list[Picture]:
    """Read the pictures as images of a shape; those that were measured must have it already.

    Raises:
        ConfigError: If one does not, or cannot be what the operator made.
    """
    found = [p for path in command.images for p in read_pictures(path, shape[1:], shape[0])]
    refuse_namesakes(found, ", ".join(command.images))
    for picture in () if command.simulate else found:
        size = (picture.height, picture.width)
        if size != shape[1:]:
            raise ConfigError(
                f"{picture.name} has {size[1]}×{size[0]} pixels, and of this run's images"
                f" {command.operator} makes pictures of {shape[2]}×{shape[1]}. Resizing would"
                " change what was done to them: cut or resize pictures before they are measured, or"
                " give whole pictures with --simulate."
            )
        if picture.flags & COMPOSITED:
            raise ConfigError(
                f"{picture.name} is transparent in places. Say what is unknown with"
                " --operator mask:FILE, white there, and save the picture without transparency."
            )
        if picture.flags & GREY_TO_COLOUR and shape[0] == 3:
            raise ConfigError(
                f"{picture.name} is grey, and this run draws in colour. To colour it, add the"
                f" operator: --operator {command.operator}+grey."
            )
    return found


def _measured(images: Tensor, operator: Operator, std: float | None, seed: int) -> Tensor:
    """Return what an operator makes of images (n, c, h, w) in [0, 1]: with noise, or rounded to 8
    bits for None.
    """
    shape = tuple(images.shape[1:])
    y = operator.prepared(len(images), shape, images.device).apply(images)
    if std is None:
        return to_uint8(y).float() / 255.0
    noise = [
        torch.randn(row.shape, generator=keys.generator("cpu", i, seed, "measurement"))
        for i, row in enumerate(y)
    ]
    return y + std * torch.stack(noise)


def _shown(y: Tensor, shape: Shape) -> Tensor:
    """Return measurements as pictures of the size and channels of images, enlarged by whole
    pixels.
    """
    shown = to_uint8(y)
    for axis in (2, 3):
        shown = shown.repeat_interleave(shape[axis - 1] // shown.shape[axis], axis)
    return shown.expand(-1, shape[0], -1, -1)


def _remark(
    results: Tensor, y: Tensor, operator: Operator, std: float, truth: Tensor | None
) -> str:
    """Say how far the results, measured again, are from what was measured, and from the truth."""
    each = len(results) // len(y)
    shape = tuple(results.shape[1:])
    again = operator.prepared(len(results), shape, results.device)
    away = again.apply(results) - y.repeat_interleave(each, 0)
    known = again.known()
    where = torch.ones_like(away) if known is None else known.expand_as(away).float()
    misfit = float((away.square() * where).sum() / where.sum()) ** 0.5
    text = f"measured again, they differ from the pictures by {misfit:.4f} (noise: {std:.4f})\n"
    if truth is None:
        return text
    told = f"PSNR to the truth {psnr(results, truth.repeat_interleave(each, 0)):.2f} dB"
    if y.shape == truth.shape:
        told += f"; of the pictures as measured {psnr(y, truth):.2f} dB"
    return f"{text}{told}\n"


def psnr(images: Tensor, truth: Tensor) -> float:
    """Return the peak signal-to-noise ratio of images in [0, 1] in decibels, the mean over
    images.
    """
    error = (images.clamp(0.0, 1.0) - truth).square().flatten(1).mean(1)
    return float((-10.0 * error.clamp(min=1e-10).log10()).mean())
