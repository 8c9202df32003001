"""Making images with a diffusion process from noise (from other images: `editing.py`).

`GaussianDiffusion` inherits these methods; they need its schedule, its network and its `denoise`, nothing of the loss.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from ddpm_lib.core import keys
from ddpm_lib.core.device_copy import to_device
from ddpm_lib.core.keywords import answers_wrong_keywords
from ddpm_lib.guidance import Guidance, LogProb
from ddpm_lib.images import to_unit_range
from ddpm_lib.process.conditions import Cond, Conditioners, fill_nulls, for_sampling
from ddpm_lib.process.self_conditioning import SelfConditioned, takes_itself
from ddpm_lib.process.streams import Noise, batches, count_images, image_generator, keep_frame, kept_frames
from ddpm_lib.samplers import DDPM, Predict, Prediction, Sampler, make_sampler, sample_loop
from ddpm_lib.schedules import Schedule
from ddpm_lib.schedules.levels import Level
from ddpm_lib.spacing import default_num_steps, sampling_levels


class Generation(nn.Module):
    """The half of `GaussianDiffusion` that makes images."""

    model: nn.Module
    schedule: Schedule
    channels: int
    image_size: tuple[int, ...]
    class_names: tuple[str, ...] | None

    @abstractmethod
    def denoise(
        self,
        x: Tensor,
        level: Level,
        cond: Cond | None = None,
        *,
        guidance: Guidance | None = None,
        model: nn.Module | None = None,
        clip: str | None = None,
    ) -> Prediction:
        """Predict the clean image and the noise in x = x_t."""

    @abstractmethod
    def check_images(self, images: Tensor) -> None:
        """Refuse images of another shape or range."""

    @property
    def timesteps(self) -> int:
        """T, the number of noise levels."""
        return self.schedule.timesteps

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of one image, (c, *spatial)."""
        return (self.channels, *self.image_size)

    @property
    def conditioners(self) -> Conditioners | None:
        """The conditioners of the network by name, None for a network that does not declare any."""
        return cast("Conditioners | None", getattr(self.model, "conditioners", None))

    @property
    def device(self) -> torch.device:
        """Where the network is (the CPU for one without parameters)."""
        return _device_of(self.model)

    @answers_wrong_keywords
    def sample(
        self,
        n: int | None = None,
        *,
        sampler: str | Sampler = "ddim",
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
        return_trajectory: bool | int = False,
        progress: bool | None = None,
        model: nn.Module | None = None,
        x_T: Tensor | None = None,
        device: torch.device | str | None = None,
    ) -> Any:
        """Draw images.

        Image i depends on (seed, first_index + i) alone, not on the batch it is drawn in. The network is in eval
        mode meanwhile.

        Args:
            n: Number of images. Default: the length of seeds or x_T, else of the conditions, else 1.
            sampler: ddim (deterministic, fast), ddpm (ancestral, all T steps), dpmpp_2m, dpmpp_2m_sde, dpmpp_3m,
                dpmpp_2s, unipc, deis, heun or euler; or an object.
            sampler_options: Options of that sampler, such as {"order": 3} for unipc.
            num_steps: Number of steps, 1 … T. Default: all T for ddpm, 50 (or T, if that is less) for the others.
            spacing: How the steps are spread: trailing, linspace, leading, quadratic, log_snr or karras; levels per
                section ("10,15,20"), "ddim25"; or the levels themselves.
            spacing_options: Options of that spacing, such as {"rho": 5.0} for karras.
            eta: Noise of samplers that have this option, 0 … 1; short for sampler_options={"eta": …}.
            seed: Names the stream of random numbers; None: a fresh one.
            seeds: One seed per image instead: image i is what sample(1, seed=seeds[i]) draws.
            first_index: Number of the first image in its stream, so that several calls or processes can share one.
            cond: Conditions by name: one entry for all images, or one per image. A condition left out is null
                if the network knows a null (drop_prob > 0), an error otherwise.
            guidance_scale: Strength of classifier-free guidance; 1 is none.
            guidance_interval: Guide where lo < t/T ≤ hi.
            guidance_rescale: Against over-exposure by guidance, 0 … 1.
            classifier: log p(y|x_t) of any differentiable kind, called as classifier(x_t, t) with x_t in [-1, 1] units
                and t as the network gets it, (b,); returns (b,). For logits: `ClassLogProb(classifier, label)`.
            classifier_scale: Strength of its guidance; 1 is Bayes' rule (Dhariwal & Nichol 2021).
            batch_size: How many images to draw at a time. Default: all. It needs n, or what says n.
            return_trajectory: Also return the states: True for all of them, k for about k evenly spread ones.
            progress: True: show progress; False: never; None: where it takes longer than a few seconds.
            model: A network to use instead of `self.model`.
            x_T: The states to start from, (n, c, *spatial), instead of random ones. float64 samples in float64.
            device: Where to sample. Default: where the network is.

        Returns:
            Images (n, c, *spatial), float32 in [0, 1]; with `return_trajectory` also (n, frames, c, *spatial), noise
            first.
        """
        network = self.model if model is None else model
        where = torch.device(device) if device is not None else _device_of(network)
        chosen, seed = make_sampler(sampler, sampler_options, eta=eta), keys.check_seed(seed)
        if num_steps is None:
            num_steps = default_num_steps(isinstance(chosen, DDPM), self.timesteps, spacing)
        levels = self._levels(sampling_levels(self.schedule, num_steps, spacing, spacing_options))
        interval = (guidance_interval[0], guidance_interval[1])
        guidance = Guidance(guidance_scale, interval, guidance_rescale, classifier, classifier_scale)
        n = count_images(n, seeds, x_T, self.image_shape, cond, batch_size)
        random = partial(image_generator, "cpu", seed, seeds, first_index, purpose="condition")
        conditions = for_sampling(self.conditioners, cond, n, random, self.class_names)
        kept = kept_frames(return_trajectory, len(levels))
        images, trajectories = [], []
        for start, stop in batches(n, batch_size):
            streams = [image_generator(where, seed, seeds, first_index, i) for i in range(start, stop)]
            x_start = None if x_T is None else x_T[start:stop].to(where)
            noise = Noise(self.image_shape, streams, torch.float32 if x_start is None else x_start.dtype)
            # Drawn also where x_T is given, so that the noise of the steps is never the noise it starts from.
            drawn = noise()
            here = {name: value[start:stop] for name, value in conditions.items()}
            frames: list[Tensor] = []
            x = self._run(
                chosen,
                drawn if x_start is None else x_start,
                levels,
                noise,
                here,
                network,
                guidance=guidance.rows(start, stop),
                on_state=partial(keep_frame, frames, kept) if kept else None,
                progress=progress,
            )
            images.append(to_unit_range(x))
            trajectories.extend([torch.stack(frames, 1)] if kept else [])
        return (torch.cat(images), torch.cat(trajectories)) if kept else torch.cat(images)

    def _levels(self, visited: Sequence[float]) -> list[Level]:
        return [self.schedule.level(t) for t in visited]

    def _level_at(self, fraction: float) -> int:
        if not 0.0 < fraction <= 1.0:
            raise ValueError(f"fraction must be in (0, 1], got {fraction}. 1 forgets the image but for a trace.")
        return max(1, round(fraction * self.timesteps))

    def _run(
        self,
        sampler: Sampler,
        x: Tensor,
        levels: Sequence[Level],
        noise: Callable[[], Tensor],
        cond: Cond,
        network: nn.Module,
        *,
        guidance: Guidance | None = None,
        clip: str | None = None,
        on_state: Callable[[int, Tensor], None] | None = None,
        progress: bool | None = None,
        loop: Callable[..., Tensor] = sample_loop,
    ) -> Tensor:
        """Run a loop like `sample_loop` on one batch with the network in eval mode."""
        here = {name: to_device(value, x.device) for name, value in cond.items()}
        complete = fill_nulls(self.conditioners, here, x)
        predict: Predict = partial(self.denoise, cond=complete, guidance=guidance, model=network, clip=clip)
        if takes_itself(self.conditioners):
            predict = SelfConditioned(partial(self.denoise, guidance=guidance, model=network, clip=clip), complete)
        with _evaluating(network):
            return loop(
                sampler,
                x,
                levels,
                predict,
                noise,
                level_at=self.schedule.level_at,
                on_state=on_state,
                progress=progress,
            )


def _device_of(module: nn.Module) -> torch.device:
    return next((p.device for p in module.parameters()), torch.device("cpu"))


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Put a network in eval mode and give every part of it its own mode back, whatever happens."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True
