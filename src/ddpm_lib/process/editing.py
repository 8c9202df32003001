"""Making images from images: editing and inpainting.

`GaussianDiffusion` binds `edit` and `inpaint` as its methods.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ddpm_lib.core.keywords import answers_wrong_keywords
from ddpm_lib.guidance import LogProb
from ddpm_lib.images import to_model_range, to_unit_range
from ddpm_lib.process.autoguidance import partner_of
from ddpm_lib.process.conditions import check_guided, check_parts
from ddpm_lib.process.denoiser import Denoiser
from ddpm_lib.process.inpainting import check_single_step, jump_schedule, repaint_loop, to_mask
from ddpm_lib.process.interface import Process
from ddpm_lib.process.plan import SamplingPlan, all_steps, level_of_fraction, repaint_steps
from ddpm_lib.process.sampling import conditions_for, run
from ddpm_lib.process.streams import ImageStreams, Noise, batches
from ddpm_lib.samplers import Sampler, sample_loop

Loop = Callable[..., Tensor]
"""A loop like `sample_loop`."""


@answers_wrong_keywords
def edit(
    self: Process,
    images: Tensor,
    fraction: float = 0.5,
    *,
    sampler: str | Sampler = "ddpm",
    sampler_options: Mapping[str, Any] | None = None,
    num_steps: int | None = None,
    spacing: str | Sequence[float] = "trailing",
    spacing_options: Mapping[str, Any] | None = None,
    eta: float | None = None,
    seed: int | None = 0,
    seeds: Sequence[int] | None = None,
    first_index: int = 0,
    cond: Mapping[str, Any] | None = None,
    guidance_scale: float | Mapping[str, float] = 1.0,
    guidance_interval: tuple[float, float] = (0.0, 1.0),
    guidance_rescale: float = 0.0,
    classifier: LogProb | None = None,
    classifier_scale: float = 1.0,
    guide_by: Any = None,
    guide_scale: float | None = None,
    batch_size: int | None = None,
    progress: bool | None = None,
    model: nn.Module | None = None,
) -> Tensor:
    """Redraw images from their noisy versions: image-to-image by SDEdit (Meng et al. 2022).

    Takes x_0 to level fraction·T with fresh noise and samples down from there. A small fraction
    keeps nearly all of the image, a large one its rough layout and colours. The noise of image i
    depends on (seed, first_index + i) alone and is never that of `sample`.

    Args:
        images: Images (b, c, *spatial), uint8 or float in [0, 1]; strokes and collages work as
            well.
        fraction: The level to start from as a part of T, in (0, 1]; Meng et al. use 0.3 … 0.6.
        sampler: As for `sample`, like all that is not described here.
        sampler_options: As for `sample`.
        num_steps: Steps of a full trajectory from T, 1 … T; those below the level are made.
        spacing: As for `sample`.
        spacing_options: As for `sample`.
        eta: As for `sample`.
        seed: Names the stream of random numbers; None: a fresh one.
        seeds: One seed per image instead.
        first_index: Number of the first image in its stream.
        cond: Conditions by name, what the result should be.
        guidance_scale: As for `sample`.
        guidance_interval: As for `sample`.
        guidance_rescale: As for `sample`.
        classifier: As for `sample`.
        classifier_scale: As for `sample`.
        guide_by: As for `sample`.
        guide_scale: As for `sample`.
        batch_size: How many images to draw at a time. Default: all.
        progress: As for `sample`.
        model: A network to use instead of `self.model`.

    Returns:
        Images (b, c, *spatial), float32 in [0, 1].
    """
    level = level_of_fraction(self.schedule, fraction)
    partner, partner_scale = partner_of(self, guide_by, guide_scale)
    plan = SamplingPlan.make(
        self.schedule,
        sampler=sampler,
        sampler_options=sampler_options,
        num_steps=num_steps,
        spacing=spacing,
        spacing_options=spacing_options,
        eta=eta,
        guidance_scale=guidance_scale,
        guidance_interval=guidance_interval,
        guidance_rescale=guidance_rescale,
        classifier=classifier,
        classifier_scale=classifier_scale,
        partner=partner,
        partner_scale=partner_scale,
        default_steps=all_steps,
    ).starting_at(level)

    def begin(x0: Tensor, noise: Noise, start: int, stop: int) -> tuple[Tensor, Loop]:
        return level.alpha * x0 + level.sigma * noise(), sample_loop

    return _redraw(
        self,
        self.denoiser.using(model),
        plan,
        images,
        begin,
        streams=ImageStreams.make("edit", seed, seeds, first_index),
        cond=cond,
        batch_size=batch_size,
        progress=progress,
    )


@answers_wrong_keywords
def inpaint(
    self: Process,
    images: Tensor,
    mask: Tensor,
    *,
    jump_length: int = 10,
    num_resamples: int = 10,
    sampler: str | Sampler = "ddpm",
    sampler_options: Mapping[str, Any] | None = None,
    num_steps: int | None = None,
    spacing: str | Sequence[float] = "trailing",
    spacing_options: Mapping[str, Any] | None = None,
    eta: float | None = None,
    seed: int | None = 0,
    seeds: Sequence[int] | None = None,
    first_index: int = 0,
    cond: Mapping[str, Any] | None = None,
    guidance_scale: float | Mapping[str, float] = 1.0,
    guidance_interval: tuple[float, float] = (0.0, 1.0),
    guidance_rescale: float = 0.0,
    classifier: LogProb | None = None,
    classifier_scale: float = 1.0,
    guide_by: Any = None,
    guide_scale: float | None = None,
    batch_size: int | None = None,
    progress: bool | None = None,
    model: nn.Module | None = None,
) -> Tensor:
    """Paint the masked part of images so that it fits the rest, by RePaint (Lugmayr et al. 2022).

    The process need not have been trained for it. About num_steps·num_resamples steps are taken:
    see `inpainting.py`. Known pixels are returned unchanged, bit for bit. The noise of image i
    depends on (seed, first_index + i) alone.

    Args:
        images: Images (b, c, *spatial), uint8 or float in [0, 1]; what is masked has no influence.
        mask: True or 1 where to paint, False or 0 where to keep: (*spatial), (c or 1, *spatial) or
            (b or 1, c or 1, *spatial). (Lugmayr et al. have it the other way round.)
        jump_length: How many steps to go back up at a time, ≥ 1.
        num_resamples: How often to walk down each stretch; 1 never goes back up.
        sampler: A single-step one: ddpm, ddim, dpmpp_2s, heun or euler. Multistep solvers are
            refused.
        sampler_options: As for `sample`, like all that is not described here.
        num_steps: Steps of one walk down, 1 … T. Default: 250, that of Lugmayr et al., or T if that
            is less.
        spacing: As for `sample`.
        spacing_options: As for `sample`.
        eta: As for `sample`.
        seed: Names the stream of random numbers; None: a fresh one.
        seeds: One seed per image instead.
        first_index: Number of the first image in its stream.
        cond: As for `sample`.
        guidance_scale: As for `sample`.
        guidance_interval: As for `sample`.
        guidance_rescale: As for `sample`.
        classifier: As for `sample`.
        classifier_scale: As for `sample`.
        guide_by: As for `sample`.
        guide_scale: As for `sample`.
        batch_size: How many images to draw at a time. Default: all.
        progress: As for `sample`.
        model: A network to use instead of `self.model`.

    Returns:
        Images (b, c, *spatial), float32 in [0, 1]; the known pixels of uint8 images are their value
        / 255.
    """
    partner, partner_scale = partner_of(self, guide_by, guide_scale)
    plan = SamplingPlan.make(
        self.schedule,
        sampler=sampler,
        sampler_options=sampler_options,
        num_steps=num_steps,
        spacing=spacing,
        spacing_options=spacing_options,
        eta=eta,
        guidance_scale=guidance_scale,
        guidance_interval=guidance_interval,
        guidance_rescale=guidance_rescale,
        classifier=classifier,
        classifier_scale=classifier_scale,
        partner=partner,
        partner_scale=partner_scale,
        default_steps=repaint_steps,
    )
    check_single_step(plan.sampler)
    self.check_images(images)
    denoiser = self.denoiser.using(model)
    painted = to_mask(mask, len(images), self.image_shape, denoiser.device)
    plan = plan.visiting(jump_schedule(plan.num_steps, jump_length, num_resamples))

    def begin(x0: Tensor, noise: Noise, start: int, stop: int) -> tuple[Tensor, Loop]:
        part = painted[start:stop] if len(painted) > 1 else painted
        return noise(), partial(repaint_loop, known=x0, mask=part)

    result = _redraw(
        self,
        denoiser,
        plan,
        images,
        begin,
        streams=ImageStreams.make("inpaint", seed, seeds, first_index),
        cond=cond,
        batch_size=batch_size,
        progress=progress,
    )
    known = images.to(result.device)
    known = known.float() / 255.0 if known.dtype == torch.uint8 else known.to(result.dtype)
    return torch.where(painted, result, known)


def _redraw(
    process: Process,
    denoiser: Denoiser,
    plan: SamplingPlan,
    images: Tensor,
    begin: Callable[[Tensor, Noise, int, int], tuple[Tensor, Loop]],
    *,
    streams: ImageStreams,
    cond: Mapping[str, Any] | None,
    batch_size: int | None,
    progress: bool | None,
) -> Tensor:
    """Draw images (n, c, *spatial) in [0, 1] batch by batch.

    Args:
        process: The process.
        denoiser: With the network to use.
        plan: The steps and the guidance.
        images: Images (n, c, *spatial), uint8 or float in [0, 1].
        begin: Of x_0, its noise and the numbers of the images, returns the first states and the
            loop.
        streams: The random numbers of the images.
        cond: As for `sample`.
        batch_size: As for `sample`.
        progress: As for `sample`.
    """
    process.check_images(images)
    streams.check_count(len(images))
    conditions = conditions_for(process, cond, len(images), streams)
    check_guided(process.conditioners, conditions, plan.guidance.scale)
    check_parts(process.conditioners, conditions, [name for name, _ in plan.guidance.parts])
    done = []
    for start, stop in batches(len(images), batch_size):
        x0 = to_model_range(images[start:stop].to(denoiser.device))
        rows = range(start, stop)
        noise = streams.noise(rows, process.image_shape, x0.dtype, denoiser.device)
        x, loop = begin(x0, noise, start, stop)
        here = {name: value[start:stop] for name, value in conditions.items()}
        part = plan.rows(start, stop)
        x = run(denoiser, part, x, noise, here, progress=progress, loop=loop)
        done.append(to_unit_range(x))
    return torch.cat(done)
