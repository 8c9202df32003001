"""Making images with a diffusion process: sampling, encoding, interpolation.

`GaussianDiffusion` inherits these methods; they need its schedule, its network and its `denoise`, nothing of the loss.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from ddpm_lib import keys
from ddpm_lib.conditions import Cond, Conditioners, fill_nulls, for_sampling, to_device
from ddpm_lib.drawing import Noise, count_images, image_generator, keep_frame, kept_frames
from ddpm_lib.guidance import Guidance
from ddpm_lib.images import to_model_range, to_unit_range
from ddpm_lib.levels import Level
from ddpm_lib.registry import Registry
from ddpm_lib.samplers import DDIM, Predict, Prediction, Sampler, make_sampler, sample_loop
from ddpm_lib.schedules import Schedule
from ddpm_lib.self_conditioning import SelfConditioned, takes_itself
from ddpm_lib.spacing import sampling_levels


class Generation(nn.Module):
    """The half of `GaussianDiffusion` that makes images."""

    model: nn.Module
    schedule: Schedule
    channels: int
    image_size: tuple[int, ...]

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

    def sample(
        self,
        n: int | None = None,
        *,
        sampler: str | Sampler = "ddpm",
        sampler_options: Mapping[str, Any] | None = None,
        num_steps: int | None = None,
        spacing: str | Sequence[float] = "trailing",
        spacing_options: Mapping[str, Any] | None = None,
        eta: float | None = None,
        seed: int = 0,
        seeds: Sequence[int] | None = None,
        first_index: int = 0,
        cond: Mapping[str, Any] | None = None,
        guidance_scale: float = 1.0,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        guidance_rescale: float = 0.0,
        batch_size: int | None = None,
        return_trajectory: bool | int = False,
        progress: bool = False,
        model: nn.Module | None = None,
        x_T: Tensor | None = None,
        device: torch.device | str | None = None,
    ) -> Any:
        """Draw images.

        Image i depends on (seed, first_index + i) alone, not on the batch it is drawn in. The network is in eval
        mode meanwhile.

        Args:
            n: Number of images. Default: the length of seeds or x_T, else 1.
            sampler: ddpm, ddim, dpmpp_2m, dpmpp_2m_sde, dpmpp_3m, dpmpp_2s, unipc, heun or euler; or a sampler object.
            sampler_options: Options of that sampler, such as {"order": 3} for unipc.
            num_steps: Number of steps, 1 … T. Default: T.
            spacing: How the steps are spread: trailing, linspace, leading, quadratic, log_snr or karras; levels per
                section ("10,15,20"), "ddim25"; or the levels themselves.
            spacing_options: Options of that spacing, such as {"rho": 5.0} for karras.
            eta: Noise of samplers that have this option, 0 … 1; short for sampler_options={"eta": …}.
            seed: Names the stream of random numbers.
            seeds: One seed per image instead: image i is what sample(1, seed=seeds[i]) draws.
            first_index: Number of the first image in its stream, so that several calls or processes can share one.
            cond: Conditions by name: one number for all images, or one entry per image. A condition left out is null
                if the network knows a null (drop_prob > 0), an error otherwise.
            guidance_scale: Strength of classifier-free guidance; 1 is none.
            guidance_interval: Guide where lo < t/T ≤ hi.
            guidance_rescale: Against over-exposure by guidance, 0 … 1.
            batch_size: How many images to draw at a time. Default: all.
            return_trajectory: Also return the states: True for all of them, k for about k evenly spread ones.
            progress: Show a progress bar.
            model: A network to use instead of `self.model`.
            x_T: The states to start from, (n, c, *spatial), instead of random ones. float64 samples in float64.
            device: Where to sample. Default: where the network is.

        Returns:
            Images (n, c, *spatial), float32 in [0, 1]; with `return_trajectory` also (n, frames, c, *spatial), noise
            first.
        """
        network = model or self.model
        where = torch.device(device) if device is not None else _device_of(network)
        chosen = make_sampler(sampler, sampler_options, eta=eta)
        levels = self._levels(sampling_levels(self.schedule, num_steps, spacing, spacing_options))
        guidance = Guidance(guidance_scale, (guidance_interval[0], guidance_interval[1]), guidance_rescale)
        n = count_images(n, seeds, x_T, self.image_shape)
        conditions = for_sampling(self.conditioners, cond, n)
        kept = kept_frames(return_trajectory, len(levels))
        size = n if batch_size is None else batch_size
        if size < 1:
            raise ValueError(f"batch_size must be at least 1, got {size}. Leave it out to draw all images at once.")
        images, trajectories = [], []
        for start in range(0, n, size):
            stop = min(start + size, n)
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
                guidance=guidance,
                on_state=partial(keep_frame, frames, kept) if kept else None,
                progress=progress,
            )
            images.append(to_unit_range(x))
            trajectories.extend([torch.stack(frames, 1)] if kept else [])
        return (torch.cat(images), torch.cat(trajectories)) if kept else torch.cat(images)

    def decode(
        self,
        x_T: Tensor,
        num_steps: int | None = None,
        *,
        spacing: str | Sequence[float] = "trailing",
        cond: Mapping[str, Any] | None = None,
        batch_size: int | None = None,
        model: nn.Module | None = None,
        progress: bool = False,
    ) -> Tensor:
        """Return the images (n, c, *spatial) that deterministic DDIM makes of x_T: the inverse of `encode`.

        Args:
            x_T: Of `encode`, (n, c, *spatial).
            num_steps: As for `sample`, like the other arguments.
            spacing: As for `sample`.
            cond: As for `sample`.
            batch_size: As for `sample`.
            model: As for `sample`.
            progress: As for `sample`.
        """
        images: Tensor = self.sample(
            sampler=DDIM(),
            num_steps=num_steps,
            spacing=spacing,
            cond=cond,
            batch_size=batch_size,
            model=model,
            progress=progress,
            x_T=x_T,
        )
        return images

    def encode(
        self,
        images: Tensor,
        num_steps: int | None = None,
        *,
        spacing: str | Sequence[float] = "trailing",
        cond: Mapping[str, Any] | None = None,
        model: nn.Module | None = None,
        progress: bool = False,
    ) -> Tensor:
        """Return the x_T from which deterministic DDIM makes the images (Song et al. 2021, §4.3).

        The probability-flow ODE backwards with Euler steps; at level 0 the noise is known, ε̂ = 0. The error of a
        round trip is of first order in 1/num_steps. Nothing is clipped: a clipped step cannot be undone.

        Args:
            images: Images (b, c, *spatial), uint8 or float in [0, 1].
            num_steps: Number of steps, 1 … T. Default: T.
            spacing: As for `sample`.
            cond: Conditions the images were made under, as for `sample`.
            model: A network to use instead of `self.model`.
            progress: Show a progress bar.

        Returns:
            x_T (b, c, *spatial), float32.
        """
        self.check_images(images)
        network = model or self.model
        x = to_model_range(images.to(_device_of(network)))
        conditions = for_sampling(self.conditioners, cond, len(x))
        levels = self._levels(sampling_levels(self.schedule, num_steps, spacing)[::-1])
        x = self._run(DDIM(), x, levels, _no_noise, conditions, network, clip="none", progress=progress)
        return x.clone()  # Outside inference mode a clone is an ordinary tensor again.

    def interpolate(
        self,
        a: Tensor,
        b: Tensor,
        weights: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0),
        *,
        method: Literal["noise", "ddim"] = "noise",
        fraction: float = 0.5,
        num_steps: int | None = None,
        sampler: str | Sampler | None = None,
        spacing: str | Sequence[float] = "trailing",
        seed: int = 0,
        cond: Mapping[str, Any] | None = None,
        model: nn.Module | None = None,
    ) -> Tensor:
        """Return images between pairs of images.

        method="noise" takes both to level fraction·T with the same noise, mixes them linearly and denoises (Ho et
        al. 2020, §4.4; with the same noise the mix has the right amount of it). The larger the fraction, the freer
        the result. method="ddim" encodes both to x_T, mixes along the great circle and decodes; deterministic, and
        the ends return the images.

        Args:
            a: Images (b, c, *spatial), uint8 or float in [0, 1], at weight 0.
            b: Images of the same shape, at weight 1.
            weights: Where to stop between them.
            method: "noise" or "ddim".
            fraction: The level to mix at, in (0, 1], as a part of T; for method="noise".
            num_steps: Steps of a full trajectory from T, 1 … T; the "noise" method makes those below its level.
            sampler: Default: "ddpm" for "noise", "ddim" for "ddim".
            spacing: As for `sample`.
            seed: Names the noise; pair i has its own.
            cond: As for `sample`, one entry per pair.
            model: A network to use instead of `self.model`.

        Returns:
            Images (b, len(weights), c, *spatial), float32 in [0, 1].
        """
        self.check_images(a)
        self.check_images(b)
        if a.shape != b.shape:
            raise ValueError(f"Images are interpolated in pairs of one shape; got {tuple(a.shape)}, {tuple(b.shape)}.")
        network = model or self.model
        where, default_sampler = _device_of(network), _INTERPOLATIONS[method]
        visited = sampling_levels(self.schedule, num_steps, spacing)
        rows = [i for i in range(len(a)) for _ in weights]
        # Every stop between one pair has the same noise, so that the sequence changes smoothly.
        noise = Noise(self.image_shape, [keys.generator(where, i, seed, "interpolate") for i in rows], torch.float32)
        w = torch.tensor(list(weights) * len(a), dtype=torch.float32, device=where).view(-1, *[1] * (a.ndim - 1))
        if method == "noise":
            first = self._level_at(fraction)
            visited = [first, *(t for t in visited if t < first)]
            level = self.schedule.level(first)
            x_a, x_b = (to_model_range(images.to(where))[rows] for images in (a, b))
            x = level.alpha * torch.lerp(x_a, x_b, w) + level.sigma * noise()
        else:
            x_a, x_b = (
                self.encode(images, num_steps, spacing=spacing, cond=cond, model=model)[rows] for images in (a, b)
            )
            x = _slerp(x_a, x_b, w)
        conditions = for_sampling(self.conditioners, cond, len(a))
        here = {name: value[rows] for name, value in conditions.items()}
        chosen = make_sampler(sampler if sampler is not None else default_sampler)
        x = self._run(chosen, x, self._levels(visited), noise, here, network)
        return to_unit_range(x).unflatten(0, (len(a), len(weights)))

    def _levels(self, visited: Sequence[float]) -> list[Level]:
        return [self.schedule.level(t) for t in visited]

    def _level_at(self, fraction: float) -> int:
        if not 0.0 < fraction <= 1.0:
            raise ValueError(f"fraction must be in (0, 1], got {fraction}. 1 forgets both images but for a trace.")
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
        progress: bool = False,
    ) -> Tensor:
        """Run the sampling loop on one batch with the network in eval mode."""
        here = {name: to_device(value, x.device) for name, value in cond.items()}
        complete = fill_nulls(self.conditioners, here, x)
        predict: Predict = partial(self.denoise, cond=complete, guidance=guidance, model=network, clip=clip)
        if takes_itself(self.conditioners):
            predict = SelfConditioned(partial(self.denoise, guidance=guidance, model=network, clip=clip), complete)
        with _evaluating(network):
            return sample_loop(
                sampler,
                x,
                levels,
                predict,
                noise,
                level_at=self.schedule.level_at,
                on_state=on_state,
                progress=progress,
            )


_INTERPOLATIONS: Registry[str] = Registry("interpolation method", {"noise": "ddpm", "ddim": "ddim"})
"""The sampler that each method uses unless told otherwise."""


def _no_noise() -> Tensor:
    raise AssertionError("A deterministic sampler draws no noise.")


def _slerp(a: Tensor, b: Tensor, w: Tensor) -> Tensor:
    """Interpolate along the great circle, which keeps the length that a Gaussian draw has (Shoemake 1985)."""
    flat_a, flat_b = a.flatten(1).double(), b.flatten(1).double()
    cosine = nn.functional.cosine_similarity(flat_a, flat_b).clamp(-1.0, 1.0)
    angle, w = torch.arccos(cosine)[:, None], w.flatten(1).double()
    flat = (torch.sin((1.0 - w) * angle) * flat_a + torch.sin(w * angle) * flat_b) / torch.sin(angle)
    # Parallel vectors span no circle.
    return torch.where(torch.sin(angle) < 1e-6, torch.lerp(flat_a, flat_b, w), flat).to(a.dtype).view_as(a)


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
