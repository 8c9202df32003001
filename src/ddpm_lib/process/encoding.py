"""Images to noise and back, and images between images.

`GaussianDiffusion` inherits these methods.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ddpm_lib.core import keys
from ddpm_lib.core.keywords import answers_wrong_keywords
from ddpm_lib.core.registry import Registry
from ddpm_lib.images import to_model_range, to_unit_range
from ddpm_lib.process.conditions import for_sampling
from ddpm_lib.process.sampling import Generation, _device_of
from ddpm_lib.process.streams import Noise, image_generator
from ddpm_lib.samplers import DDIM, Sampler, make_sampler
from ddpm_lib.spacing import SPACINGS, sampling_levels


class Encoding(Generation):
    """The part of `GaussianDiffusion` that encodes, decodes and interpolates."""

    @answers_wrong_keywords
    def decode(
        self,
        x_T: Tensor,
        num_steps: int | None = None,
        *,
        spacing: str | Sequence[float] = "trailing",
        cond: Mapping[str, Any] | None = None,
        batch_size: int | None = None,
        model: nn.Module | None = None,
        progress: bool | None = None,
        seed: int | None = 0,
        seeds: Sequence[int] | None = None,
        first_index: int = 0,
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
            seed: Names the noise on a small image (`low_res_noise`): the same as for `encode`.
            seeds: As for `sample`.
            first_index: As for `sample`.
        """
        images: Tensor = self.sample(
            len(x_T),
            sampler=DDIM(),
            num_steps=self.timesteps if num_steps is None and _named(spacing) else num_steps,
            spacing=spacing,
            cond=cond,
            batch_size=batch_size,
            model=model,
            progress=progress,
            seed=seed,
            seeds=seeds,
            first_index=first_index,
            x_T=x_T,
        )
        return images

    @answers_wrong_keywords
    def encode(
        self,
        images: Tensor,
        num_steps: int | None = None,
        *,
        spacing: str | Sequence[float] = "trailing",
        cond: Mapping[str, Any] | None = None,
        model: nn.Module | None = None,
        progress: bool | None = None,
        seed: int | None = 0,
        seeds: Sequence[int] | None = None,
        first_index: int = 0,
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
            progress: As for `sample`.
            seed: Names the noise on a small image (`low_res_noise`), the only one that is drawn.
            seeds: One seed per image instead.
            first_index: Number of the first image in its stream.

        Returns:
            x_T (b, c, *spatial), float32.
        """
        self.check_images(images)
        network = self.model if model is None else model
        x = to_model_range(images.to(_device_of(network)))
        seed = keys.check_seed(seed)
        # The same noise on conditions as `decode` puts on them.
        random = partial(image_generator, "cpu", seed, seeds, first_index, purpose="condition")
        conditions = for_sampling(self.conditioners, cond, len(x), random, self.class_names)
        levels = self._levels(sampling_levels(self.schedule, num_steps, spacing)[::-1])
        x = self._run(DDIM(), x, levels, _no_noise, conditions, network, clip="none", progress=progress)
        return x.clone()  # Outside inference mode a clone is an ordinary tensor again.

    @answers_wrong_keywords
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
        seed: int | None = 0,
        seeds: Sequence[int] | None = None,
        first_index: int = 0,
        cond: Mapping[str, Any] | None = None,
        model: nn.Module | None = None,
        progress: bool | None = None,
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
            seed: Names the noise; that of pair i depends on (seed, first_index + i). None: a fresh one.
            seeds: One seed per pair instead.
            first_index: Number of the first pair in its stream.
            cond: As for `sample`, one entry per pair.
            model: A network to use instead of `self.model`.
            progress: As for `sample`.

        Returns:
            Images (b, len(weights), c, *spatial), float32 in [0, 1].
        """
        self.check_images(a)
        self.check_images(b)
        if a.shape != b.shape:
            raise ValueError(f"Images are interpolated in pairs of one shape; got {tuple(a.shape)}, {tuple(b.shape)}.")
        network = self.model if model is None else model
        where, default_sampler = _device_of(network), _INTERPOLATIONS[method]
        seed = keys.check_seed(seed)
        if seeds is not None and len(seeds) != len(a):
            raise ValueError(f"There are {len(seeds)} seeds for {len(a)} pairs. Give one per pair.")
        visited = sampling_levels(self.schedule, num_steps, spacing)
        rows = [i for i in range(len(a)) for _ in weights]
        # Every stop between one pair has the same noise, so that the sequence changes smoothly.
        kind = torch.promote_types(*(to_model_range(images[:1]).dtype for images in (a, b)))
        streams = [image_generator(where, seed, seeds, first_index, i, "interpolate") for i in rows]
        noise = Noise(self.image_shape, streams, kind)
        w = torch.tensor(list(weights) * len(a), dtype=kind, device=where).view(-1, *[1] * (a.ndim - 1))
        if method == "noise":
            first = self._level_at(fraction)
            visited = [first, *(t for t in visited if t < first)]
            level = self.schedule.level(first)
            x_a, x_b = (to_model_range(images.to(where))[rows].to(kind) for images in (a, b))
            x = level.alpha * torch.lerp(x_a, x_b, w) + level.sigma * noise()
        else:
            x_a, x_b = (
                self.encode(
                    images, num_steps, spacing=spacing, cond=cond, model=model, progress=progress,
                    seed=seed, seeds=seeds, first_index=first_index,
                )[rows].to(kind)
                for images in (a, b)
            )  # fmt: skip
            x = _slerp(x_a, x_b, w)
        random = partial(image_generator, "cpu", seed, seeds, first_index, purpose="condition")
        conditions = for_sampling(self.conditioners, cond, len(a), random, self.class_names)
        here = {name: value[rows] for name, value in conditions.items()}
        chosen = make_sampler(sampler if sampler is not None else default_sampler)
        x = self._run(chosen, x, self._levels(visited), noise, here, network, progress=progress)
        return to_unit_range(x).unflatten(0, (len(a), len(weights)))


_INTERPOLATIONS: Registry[str] = Registry("interpolation method", {"noise": "ddpm", "ddim": "ddim"})
"""The sampler that each method uses unless told otherwise."""


def _named(spacing: str | Sequence[float]) -> bool:
    return isinstance(spacing, str) and spacing in SPACINGS


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
