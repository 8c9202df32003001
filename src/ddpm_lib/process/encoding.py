"""Images to noise and back, and images between images.

`GaussianDiffusion` binds `encode`, `decode` and `interpolate` as its methods.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ddpm_lib.core.keywords import answers_wrong_keywords
from ddpm_lib.core.registry import Registry
from ddpm_lib.images import to_model_range, to_unit_range
from ddpm_lib.process.interface import Process
from ddpm_lib.process.plan import SamplingPlan, all_steps, level_of_fraction
from ddpm_lib.process.sampling import conditions_for, draw, run
from ddpm_lib.process.streams import ImageStreams
from ddpm_lib.samplers import DDIM, Sampler


@answers_wrong_keywords
def decode(
    self: Process,
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
    """Return the images (n, c, *spatial) that deterministic DDIM makes of x_T: the inverse of
    `encode`.

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
    plan = SamplingPlan.make(
        self.schedule,
        sampler=DDIM(),
        num_steps=num_steps,
        spacing=spacing,
        default_steps=all_steps,
    )
    images: Tensor = draw(
        self,
        plan,
        len(x_T),
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
    self: Process,
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

    The probability-flow ODE backwards with Euler steps; at level 0 the noise is known, ε̂ = 0. The
    error of a round trip is of first order in 1/num_steps. Nothing is clipped: a clipped step
    cannot be undone.

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
    denoiser = self.denoiser.using(model)
    x = to_model_range(images.to(denoiser.device))
    # The same noise on conditions as `decode` puts on them.
    streams = ImageStreams.make("encode", seed, seeds, first_index)
    conditions = conditions_for(self, cond, len(x), streams)
    plan = SamplingPlan.make(
        self.schedule,
        sampler=DDIM(),
        num_steps=num_steps,
        spacing=spacing,
        default_steps=all_steps,
    ).upwards()
    x = run(denoiser.clipping("none"), plan, x, _no_noise, conditions, progress=progress)
    return x.clone()  # Outside inference mode a clone is an ordinary tensor again.


@answers_wrong_keywords
def interpolate(
    self: Process,
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

    method="noise" takes both to level fraction·T with the same noise, mixes them linearly and
    denoises (Ho et al. 2020, §4.4; with the same noise the mix has the right amount of it). The
    larger the fraction, the freer the result. method="ddim" encodes both to x_T, mixes along the
    great circle and decodes; deterministic, and the ends return the images.

    Args:
        a: Images (b, c, *spatial), uint8 or float in [0, 1], at weight 0.
        b: Images of the same shape, at weight 1.
        weights: Where to stop between them.
        method: "noise" or "ddim".
        fraction: The level to mix at, in (0, 1], as a part of T; for method="noise".
        num_steps: Steps of a full trajectory from T, 1 … T; the "noise" method makes those below
            its level.
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
        raise ValueError(
            f"Images are interpolated in pairs of one shape; got {tuple(a.shape)},"
            f" {tuple(b.shape)}."
        )
    denoiser = self.denoiser.using(model)
    usual = _INTERPOLATIONS[method]
    streams = ImageStreams.make("interpolate", seed, seeds, first_index)
    streams.check_count(len(a), "pairs", "pair")
    plan = SamplingPlan.make(
        self.schedule,
        sampler=usual if sampler is None else sampler,
        num_steps=num_steps,
        spacing=spacing,
        default_steps=all_steps,
    )
    rows = [i for i in range(len(a)) for _ in weights]
    # Every stop between one pair has the same noise, so that the sequence changes smoothly.
    dtype = torch.promote_types(*(to_model_range(images[:1]).dtype for images in (a, b)))
    noise = streams.noise(rows, self.image_shape, dtype, denoiser.device)
    w = torch.tensor(list(weights) * len(a), dtype=dtype, device=denoiser.device)
    w = w.view(-1, *[1] * (a.ndim - 1))
    if method == "noise":
        level = level_of_fraction(self.schedule, fraction)
        plan = plan.starting_at(level)
        x_a, x_b = (to_model_range(v.to(denoiser.device))[rows].to(dtype) for v in (a, b))
        x = level.alpha * torch.lerp(x_a, x_b, w) + level.sigma * noise()
    else:
        how = partial(
            encode,
            self,
            num_steps=num_steps,
            spacing=spacing,
            cond=cond,
            model=model,
            progress=progress,
            seed=streams.seed,
            seeds=seeds,
            first_index=first_index,
        )
        x_a, x_b = (how(images)[rows].to(dtype) for images in (a, b))
        x = _slerp(x_a, x_b, w)
    conditions = conditions_for(self, cond, len(a), streams)
    here = {name: value[rows] for name, value in conditions.items()}
    x = run(denoiser, plan, x, noise, here, progress=progress)
    return to_unit_range(x).unflatten(0, (len(a), len(weights)))


_INTERPOLATIONS: Registry[str] = Registry("interpolation method", {"noise": "ddpm", "ddim": "ddim"})
"""The sampler that each method uses unless told otherwise."""


def _no_noise() -> Tensor:
    raise AssertionError("A deterministic sampler draws no noise.")


def _slerp(a: Tensor, b: Tensor, w: Tensor) -> Tensor:
    """Interpolate along the great circle, which keeps the length that a Gaussian draw has (Shoemake
    1985); in float64 where the device has that.
    """
    wide = torch.float32 if a.device.type == "mps" else torch.float64
    flat_a, flat_b = a.flatten(1).to(wide), b.flatten(1).to(wide)
    cosine = nn.functional.cosine_similarity(flat_a, flat_b).clamp(-1.0, 1.0)
    angle, w = torch.arccos(cosine)[:, None], w.flatten(1).to(wide)
    flat = (torch.sin((1.0 - w) * angle) * flat_a + torch.sin(w * angle) * flat_b) / torch.sin(
        angle
    )
    # Parallel vectors span no circle.
    return (
        torch.where(torch.sin(angle) < 1e-6, torch.lerp(flat_a, flat_b, w), flat)
        .to(a.dtype)
        .view_as(a)
    )
