"""Making images from images: editing and inpainting.

`GaussianDiffusion` inherits these methods.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ddpm_lib.core import keys
from ddpm_lib.core.keywords import answers_wrong_keywords
from ddpm_lib.guidance import Guidance, LogProb
from ddpm_lib.images import to_model_range, to_unit_range
from ddpm_lib.process.conditions import for_sampling
from ddpm_lib.process.encoding import Encoding
from ddpm_lib.process.inpainting import check_single_step, jump_schedule, repaint_loop, to_mask
from ddpm_lib.process.sampling import _device_of
from ddpm_lib.process.streams import Noise, batches, image_generator
from ddpm_lib.samplers import Sampler, make_sampler, sample_loop
from ddpm_lib.schedules.levels import Level
from ddpm_lib.spacing import SPACINGS, sampling_levels


@dataclass(frozen=True)
class _Draw:
    """What `edit` and `inpaint` share: how images are redrawn."""

    purpose: str
    sampler: Sampler
    seed: int
    seeds: Sequence[int] | None
    first_index: int
    cond: Mapping[str, Any] | None
    guidance: Guidance
    batch_size: int | None
    progress: bool | None
    network: nn.Module


class Editing(Encoding):
    """The part of `GaussianDiffusion` that redraws images."""

    @answers_wrong_keywords
    def edit(
        self,
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
        guidance_scale: float = 1.0,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        guidance_rescale: float = 0.0,
        classifier: LogProb | None = None,
        classifier_scale: float = 1.0,
        batch_size: int | None = None,
        progress: bool | None = None,
        model: nn.Module | None = None,
    ) -> Tensor:
        """Redraw images from their noisy versions: image-to-image by SDEdit (Meng et al. 2022).

        Takes x_0 to level fraction·T with fresh noise and samples down from there. A small fraction keeps nearly all of
        the image, a large one its rough layout and colours. The noise of image i depends on (seed, first_index + i)
        alone and is never that of `sample`.

        Args:
            images: Images (b, c, *spatial), uint8 or float in [0, 1]; strokes and collages work as well.
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
            batch_size: How many images to draw at a time. Default: all.
            progress: As for `sample`.
            model: A network to use instead of `self.model`.

        Returns:
            Images (b, c, *spatial), float32 in [0, 1].
        """
        first = self._level_at(fraction)
        visited = sampling_levels(self.schedule, num_steps, spacing, spacing_options)
        levels = self._levels([first, *(t for t in visited if t < first)])
        interval = (guidance_interval[0], guidance_interval[1])
        how = _Draw(
            purpose="edit",
            sampler=make_sampler(sampler, sampler_options, eta=eta),
            seed=keys.check_seed(seed),
            seeds=seeds,
            first_index=first_index,
            cond=cond,
            guidance=Guidance(guidance_scale, interval, guidance_rescale, classifier, classifier_scale),
            batch_size=batch_size,
            progress=progress,
            network=self.model if model is None else model,
        )

        def begin(x0: Tensor, noise: Noise, start: int, stop: int) -> tuple[Tensor, Callable[..., Tensor]]:
            return levels[0].alpha * x0 + levels[0].sigma * noise(), sample_loop

        return self._redraw(images, levels, how, begin)

    @answers_wrong_keywords
    def inpaint(
        self,
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
        guidance_scale: float = 1.0,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        guidance_rescale: float = 0.0,
        classifier: LogProb | None = None,
        classifier_scale: float = 1.0,
        batch_size: int | None = None,
        progress: bool | None = None,
        model: nn.Module | None = None,
    ) -> Tensor:
        """Paint the masked part of images so that it fits the rest, by RePaint (Lugmayr et al. 2022).

        The process need not have been trained for it. About num_steps·num_resamples steps are taken: see
        `inpainting.py`. Known pixels are returned unchanged, bit for bit. The noise of image i depends on
        (seed, first_index + i) alone.

        Args:
            images: Images (b, c, *spatial), uint8 or float in [0, 1]; what is masked has no influence.
            mask: True or 1 where to paint, False or 0 where to keep: (*spatial), (c or 1, *spatial) or (b or 1, c or 1,
                *spatial). (Lugmayr et al. have it the other way round.)
            jump_length: How many steps to go back up at a time, ≥ 1.
            num_resamples: How often to walk down each stretch; 1 never goes back up.
            sampler: A single-step one: ddpm, ddim, dpmpp_2s, heun or euler. Multistep solvers are refused.
            sampler_options: As for `sample`, like all that is not described here.
            num_steps: Steps of one walk down, 1 … T. Default: 250, that of Lugmayr et al., or T if that is less.
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
            batch_size: How many images to draw at a time. Default: all.
            progress: As for `sample`.
            model: A network to use instead of `self.model`.

        Returns:
            Images (b, c, *spatial), float32 in [0, 1]; the known pixels of uint8 images are their value / 255.
        """
        chosen = make_sampler(sampler, sampler_options, eta=eta)
        check_single_step(chosen)
        self.check_images(images)
        network = self.model if model is None else model
        painted = to_mask(mask, len(images), self.image_shape, _device_of(network))
        own = num_steps is None and isinstance(spacing, str) and spacing in SPACINGS
        ladder = sampling_levels(
            self.schedule, min(250, self.timesteps) if own else num_steps, spacing, spacing_options
        )[::-1]
        levels = self._levels([ladder[k] for k in jump_schedule(len(ladder) - 1, jump_length, num_resamples)])
        interval = (guidance_interval[0], guidance_interval[1])
        how = _Draw(
            purpose="inpaint",
            sampler=chosen,
            seed=keys.check_seed(seed),
            seeds=seeds,
            first_index=first_index,
            cond=cond,
            guidance=Guidance(guidance_scale, interval, guidance_rescale, classifier, classifier_scale),
            batch_size=batch_size,
            progress=progress,
            network=network,
        )

        def begin(x0: Tensor, noise: Noise, start: int, stop: int) -> tuple[Tensor, Callable[..., Tensor]]:
            part = painted[start:stop] if len(painted) > 1 else painted
            return noise(), partial(repaint_loop, known=x0, mask=part)

        result = self._redraw(images, levels, how, begin)
        given = images.to(result.device)
        given = given.float() / 255.0 if given.dtype == torch.uint8 else given.to(result.dtype)
        return torch.where(painted, result, given)

    def _redraw(
        self,
        images: Tensor,
        levels: Sequence[Level],
        how: _Draw,
        begin: Callable[[Tensor, Noise, int, int], tuple[Tensor, Callable[..., Tensor]]],
    ) -> Tensor:
        """Draw images (n, c, *spatial) in [0, 1] batch by batch; `begin` returns the first states and the loop."""
        self.check_images(images)
        n, where = len(images), _device_of(how.network)
        if how.seeds is not None and len(how.seeds) != n:
            raise ValueError(f"There are {len(how.seeds)} seeds for {n} images. Give one per image.")
        random = partial(image_generator, "cpu", how.seed, how.seeds, how.first_index, purpose="condition")
        conditions = for_sampling(self.conditioners, how.cond, n, random, self.class_names)
        done = []
        for start, stop in batches(n, how.batch_size):
            x0 = to_model_range(images[start:stop].to(where))
            streams = [
                image_generator(where, how.seed, how.seeds, how.first_index, i, how.purpose) for i in range(start, stop)
            ]
            noise = Noise(self.image_shape, streams, x0.dtype)
            x, loop = begin(x0, noise, start, stop)
            here = {name: value[start:stop] for name, value in conditions.items()}
            guidance = how.guidance.rows(start, stop)
            x = self._run(
                how.sampler, x, levels, noise, here, how.network, guidance=guidance, progress=how.progress, loop=loop
            )
            done.append(to_unit_range(x))
        return torch.cat(done)
