"""Cascades: a process makes small images, further ones enlarge them (Ho et al. 2022; Saharia et al.
2021, section 4.6).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ddpm_lib.core import keys
from ddpm_lib.nn import LowRes
from ddpm_lib.process.conditions import check_names, find_conditioner
from ddpm_lib.process.interface import Process
from ddpm_lib.process.plan import SamplingPlan, usual_sampler
from ddpm_lib.process.sampling import draw, planned
from ddpm_lib.samplers import Sampler, make_sampler


@dataclass(frozen=True)
class Stage:
    """One process of a cascade and how it samples.

    Attributes:
        diffusion: The process.
        sampler: As for `GaussianDiffusion.sample`, like the next four: None asks the default of the
            process, then the library.
        num_steps: Number of steps, 1 … T.
        spacing: How the steps are spread.
        eta: Noise of samplers that have this option.
        guidance_scale: Strength of classifier-free guidance; 1 is none.
        low_res_noise: Level of the noise put on the images of the stage before, at most the
            network's low_res_max_noise. It hides where they differ from real ones; None for none.
    """

    diffusion: Process
    sampler: str | Sampler | None = None
    num_steps: int | None = None
    spacing: str | Sequence[float] | None = None
    eta: float | None = None
    guidance_scale: float | None = None
    low_res_noise: float | None = None

    def __post_init__(self) -> None:
        make_sampler(self.sampler or usual_sampler(self.eta), eta=self.eta)
        if self.low_res_noise is None:
            return
        low_res = self.low_res
        known = 0.0 if low_res is None else low_res.max_noise
        if not 0.0 <= self.low_res_noise <= known:
            raise ValueError(
                f"low_res_noise must lie in [0, {known:g}], the levels this network was trained on;"
                f" got {self.low_res_noise:g}. Ask for less, or train with a larger"
                " low_res_max_noise."
            )

    @property
    def low_res(self) -> LowRes | None:
        """The network's condition on a smaller image, None if it has none."""
        return find_conditioner(self.diffusion.conditioners, LowRes)

    @property
    def plan(self) -> SamplingPlan:
        """Its sampler, levels and guidance for images without conditions."""
        return self.plan_for({})

    def plan_for(self, cond: Mapping[str, Any]) -> SamplingPlan:
        """Return its sampler, levels and guidance for images with these conditions."""
        return planned(
            self.diffusion,
            cond,
            sampler=self.sampler,
            num_steps=self.num_steps,
            spacing=self.spacing,
            eta=self.eta,
            guidance_scale=self.guidance_scale,
        )

    @property
    def size(self) -> tuple[int, ...]:
        """(channels, *spatial) of the images it makes."""
        return self.diffusion.image_shape

    @property
    def small_size(self) -> tuple[int, ...] | None:
        """(channels, *spatial) of the images it enlarges, None if it makes images of noise
        alone.
        """
        found = self.low_res
        return (
            None if found is None else (self.size[0], *(s // found.factor for s in self.size[1:]))
        )


class Cascade:
    """Processes in a row, each enlarging the images of the one before.

    Args:
        stages: The processes, smallest images first; a `Stage` where one samples in another way
            than by default.

    Raises:
        ValueError: If a stage does not take the images that the one before it makes.

    Example:
        >>> enlarge = Stage(sr, "ddim", 50, low_res_noise=0.1)                  # doctest: +SKIP
        >>> Cascade([Stage(base, "ddim", 50), enlarge]).sample(16)              # doctest: +SKIP
    """

    def __init__(self, stages: Sequence[Process | Stage]) -> None:
        self.stages = [stage if isinstance(stage, Stage) else Stage(stage) for stage in stages]
        if not self.stages:
            raise ValueError("A cascade needs at least one process; got none.")
        for number, (small, large) in enumerate(zip(self.stages, self.stages[1:]), 2):
            takes, gets = large.small_size, small.size
            if takes is None:
                raise ValueError(
                    f"Stage {number} of the cascade does not enlarge images: its network was built"
                    " without low_res_factor. Train one with low_res_factor, whose small images"
                    f" are {_words(gets)}."
                )
            measured = [one.diffusion.normalization is not None for one in (small, large)]
            if measured[0] != measured[1]:
                raise ValueError(
                    f"Stage {number - measured[0]} of the cascade learned measured values, and"
                    f" stage {number - measured[1]} pictures, which have no units. Train both alike"
                    " (normalize)."
                )
            if takes != gets:
                raise ValueError(
                    f"Stage {number} of the cascade enlarges images of {_words(takes)} to"
                    f" {_words(large.size)}, but stage {number - 1} makes images of {_words(gets)}."
                    " Train one of them for the other's size."
                )

    @property
    def channels(self) -> int:
        """Channels of the images."""
        return self.stages[-1].size[0]

    @property
    def image_size(self) -> tuple[int, ...]:
        """Size of the images that the last stage makes."""
        return self.stages[-1].size[1:]

    def sample(
        self,
        n: int | None = None,
        *,
        cond: Mapping[str, Any] | None = None,
        seed: int | None = 0,
        first_index: int = 0,
        batch_size: int | None = None,
        progress: bool | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Draw images (n, c, *spatial), float32 in [0, 1]; `sample_stages` describes the
        arguments.
        """
        return self.sample_stages(
            n,
            cond=cond,
            seed=seed,
            first_index=first_index,
            batch_size=batch_size,
            progress=progress,
            device=device,
        )[-1]

    def sample_stages(
        self,
        n: int | None = None,
        *,
        cond: Mapping[str, Any] | None = None,
        seed: int | None = 0,
        first_index: int = 0,
        batch_size: int | None = None,
        progress: bool | None = None,
        device: torch.device | str | None = None,
    ) -> list[Tensor]:
        """Draw the images of all stages; image i depends on (seed, first_index + i) alone.

        The first stage draws what `diffusion.sample(n, seed=seed)` draws; the others have streams
        of their own.

        Args:
            n: Number of images. Default: the length of the conditions, else 1.
            cond: Conditions by name; each stage gets those that it knows.
            seed: Names the stream of random numbers; None: a fresh one.
            first_index: Number of the first image in its stream.
            batch_size: How many images to draw at a time. Default: all.
            progress: As for `GaussianDiffusion.sample`, for each stage.
            device: Where to sample. Default: where the networks are.

        Returns:
            One tensor (n, c, *spatial) per stage, float32 in [0, 1].
        """
        given, seed = dict(cond or {}), keys.check_seed(seed)
        self._check_names(given)
        results: list[Tensor] = []
        for number, stage in enumerate(self.stages):
            known = stage.diffusion.conditioners
            here = {name: value for name, value in given.items() if known is None or name in known}
            low_res = stage.low_res
            if low_res is not None and results:
                before = self.stages[number - 1].diffusion
                here[low_res.name] = in_units_of(stage.diffusion, before, results[-1])
            if low_res is not None and stage.low_res_noise is not None:
                here.setdefault(low_res.noise_name, stage.low_res_noise)
            images: Tensor = draw(
                stage.diffusion,
                stage.plan_for(here),
                n,
                seed=stage_seed(seed, number),
                first_index=first_index,
                cond=here,
                batch_size=batch_size,
                progress=progress,
                device=device,
            )
            n = len(images)
            results.append(images)
        return results

    def _check_names(self, cond: Mapping[str, Any]) -> None:
        known = [stage.diffusion.conditioners for stage in self.stages]
        later = {c.name for stage in self.stages[1:] if (c := stage.low_res) is not None}
        if later & set(cond) and self.stages[0].low_res is None:
            raise ValueError(
                "The small images come from the first stage of a cascade; got 'low_res'. Leave it"
                " out."
            )
        if not any(conditioners is None for conditioners in known):
            check_names(
                {name: c for conditioners in known for name, c in (conditioners or {}).items()},
                cond,
            )


def in_units_of(process: Process, source: Process, images: Tensor) -> Tensor:
    """Return images (n, c, *spatial) in [0, 1] that one process drew as another reads them: small
    measured values have another range than large ones, and [0, 1] stands for another in each.
    """
    mine, theirs = process.normalization, source.normalization
    if mine is None or theirs is None or mine.to_json() == theirs.to_json():
        return images
    values = theirs.inverse(images)
    return torch.from_numpy(mine.forward(values)).to(images)


def stage_seed(seed: int, number: int) -> int:
    """Return the seed of stage `number` of a cascade: that of the cascade for the first stage, 0,
    others for the further ones.
    """
    return keys.key(seed, "cascade", number) if number else seed


def sample_cascade(
    stages: Sequence[Process | Stage],
    n: int | None = None,
    *,
    cond: Mapping[str, Any] | None = None,
    seed: int | None = 0,
    first_index: int = 0,
    batch_size: int | None = None,
    progress: bool | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Draw images with a cascade: `Cascade(stages).sample(n, …)`, which describes the arguments."""
    return Cascade(stages).sample(
        n,
        cond=cond,
        seed=seed,
        first_index=first_index,
        batch_size=batch_size,
        progress=progress,
        device=device,
    )


def _words(size: tuple[int, ...]) -> str:
    return f"{size[0]} channel{'s' if size[0] > 1 else ''} of {'×'.join(map(str, size[1:]))}"
