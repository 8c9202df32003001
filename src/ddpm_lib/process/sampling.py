"""Making images with a diffusion process from noise (from other images: `editing.py`).

`GaussianDiffusion` binds `sample` as its method.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ddpm_lib.core.device_copy import to_device
from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.keywords import answers_wrong_keywords
from ddpm_lib.core.spelling import option
from ddpm_lib.guidance import LogProb
from ddpm_lib.images import to_unit_range
from ddpm_lib.process.autoguidance import partner_of
from ddpm_lib.process.conditions import (
    Cond,
    Conditioners,
    Droppable,
    check_guided,
    check_parts,
    fill_nulls,
    for_sampling,
    guidable,
)
from ddpm_lib.process.denoiser import Denoiser
from ddpm_lib.process.interface import Process
from ddpm_lib.process.network_calls import evaluating
from ddpm_lib.process.plan import SamplingPlan
from ddpm_lib.process.sampling_default import SamplingDefault, choose_sampling
from ddpm_lib.process.self_conditioning import SelfConditioned, is_self_conditioned
from ddpm_lib.process.streams import ImageStreams, batches, count_images, keep_frame, kept_frames
from ddpm_lib.samplers import Predict, Sampler, sample_loop

logger = logging.getLogger("ddpm_lib")


@answers_wrong_keywords
def sample(
    self: Process,
    n: int | None = None,
    *,
    sampler: str | Sampler | None = None,
    sampler_options: Mapping[str, Any] | None = None,
    num_steps: int | None = None,
    spacing: str | Sequence[float] | None = None,
    spacing_options: Mapping[str, Any] | None = None,
    eta: float | None = None,
    seed: int | None = 0,
    seeds: Sequence[int] | None = None,
    first_index: int = 0,
    cond: Mapping[str, Any] | None = None,
    guidance_scale: float | Mapping[str, float] | None = None,
    guidance_interval: tuple[float, float] | None = None,
    guidance_rescale: float | None = None,
    classifier: LogProb | None = None,
    classifier_scale: float = 1.0,
    guide_by: Any = None,
    guide_scale: float | None = None,
    batch_size: int | None = None,
    return_trajectory: bool | int = False,
    progress: bool | None = None,
    model: nn.Module | None = None,
    x_T: Tensor | None = None,
    device: torch.device | str | None = None,
) -> Any:
    """Draw images.

    Image i depends on (seed, first_index + i) alone, not on the batch it is drawn in. The network
    is in eval mode meanwhile. Where a default is kept with the weights (`sampling_default`, made by
    `ddpm tune` for example), it says how to sample unless sampler, steps or spacing are named;
    whoever names guidance alone keeps its steps.

    Args:
        n: Number of images. Default: the length of seeds or x_T, else of the conditions, else 1.
        sampler: unipc (the default), ddim, ddpm (ancestral, all T steps), dpmpp_2m, dpmpp_2m_sde,
            dpmpp_3m, dpmpp_2s, deis, heun or euler; consistency, the only one and the default for a
            network that `ddpm distill` has tuned; or an object. With eta alone it is ddim.
        sampler_options: Options of that sampler. Default of "unipc": {"order": 3} from 10 steps on
            where nothing guides, else {"order": 2}.
        num_steps: Number of steps, 1 … T. Default: 20 for unipc, all T for ddpm, 2 for consistency,
            50 for the others; T, if that is less.
        spacing: How the steps are spread: mixed (the default of unipc), trailing (that of the
            others), linspace, leading, quadratic, log_snr or karras; levels per section
            ("10,15,20"), "ddim25"; or the levels themselves.
        spacing_options: Options of that spacing, such as {"rho": 5.0} for karras.
        eta: Noise of samplers that have this option, 0 … 1; short for sampler_options={"eta": …}.
        seed: Names the stream of random numbers; None: a fresh one.
        seeds: One seed per image instead: image i is what sample(1, seed=seeds[i]) draws.
        first_index: Number of the first image in its stream, so that several calls or processes can
            share one.
        cond: Conditions by name: one entry for all images, or one per image. A condition left out
            is null if the network knows a null (drop_prob > 0), an error otherwise.
        guidance_scale: Strength of classifier-free guidance by all conditions; 1, the default, is
            none. By name, {"age": 3.0}, each condition has its own.
        guidance_interval: Guide where lo < t/T ≤ hi; default: everywhere.
        guidance_rescale: Against over-exposure by guidance, 0 (the default) … 1.
        classifier: log p(y|x_t) of any differentiable kind, called as classifier(x_t, t) with x_t
            in [-1, 1] units and t as the network gets it, (b,); returns (b,). For logits:
            `ClassLogProb(classifier, label)`.
        classifier_scale: Strength of its guidance; 1 is Bayes' rule (Dhariwal & Nichol 2021).
        guide_by: A worse version of this process to move away from (autoguidance, Karras et al.
            2024): `load_run(run, checkpoint=5000).diffusion`, another average, a run with a smaller
            network; or a network alone.
        guide_scale: How far: 1 not at all, 2 (the default with guide_by) twice as far from it.
        batch_size: How many images to draw at a time. Default: all. It needs n, or what says n.
        return_trajectory: Also return the states: True for all of them, k for about k evenly spread
            ones.
        progress: True: show progress; False: never; None: where it takes longer than a few seconds.
        model: A network to use instead of `self.model`.
        x_T: The states to start from, (n, c, *spatial), instead of random ones. float64 samples in
            float64.
        device: Where to sample. Default: where the network is.

    Returns:
        Images (n, c, *spatial), float32 in [0, 1]; with `return_trajectory` also (n, frames, c,
        *spatial), noise first.
    """
    plan = planned(
        self,
        cond,
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
        guide_by=guide_by,
        guide_scale=guide_scale,
        classifier_scale=classifier_scale,
    )
    return draw(
        self,
        plan,
        n,
        seed=seed,
        seeds=seeds,
        first_index=first_index,
        cond=cond,
        batch_size=batch_size,
        return_trajectory=return_trajectory,
        progress=progress,
        model=model,
        x_T=x_T,
        device=device,
    )


def planned(
    process: Process,
    cond: Mapping[str, Any] | None,
    *,
    classifier_scale: float = 1.0,
    **wishes: Any,
) -> SamplingPlan:
    """Make the plan that a caller of `sample` means, by the default of the process where he does
    not say.

    Args:
        process: What draws.
        cond: The conditions of the images.
        classifier_scale: As for `sample`.
        **wishes: Arguments of `sample`, those of `STEPS` and `GUIDANCE`.
    """
    able = can_guide(process.conditioners, cond)
    jumps = process.denoiser.jumps
    chosen = choose_sampling(process.sampling_default, wishes, can_guide=able, jumps=jumps)
    how = dict(chosen.arguments)
    guide_by, guide_scale = how.pop("guide_by"), how.pop("guide_scale")
    if chosen.default is not None:
        tell_stale(process, chosen.default)
        if chosen.partner_is_stored:
            guide_by = stored_partner(process, chosen.default)
    partner, scale = partner_of(process, guide_by, guide_scale)
    return SamplingPlan.make(
        process.schedule,
        **how,
        classifier_scale=classifier_scale,
        partner=partner,
        partner_scale=scale,
    )


def can_guide(known: Conditioners | None, cond: Mapping[str, Any] | None) -> bool:
    """Say whether guidance could strengthen one of the conditions that a caller gave: none of those
    that are null for every image.
    """
    given = cond or {}
    return any(k in given and not _is_null((known or {})[k], given[k]) for k in guidable(known))


def _is_null(conditioner: Droppable, value: Any) -> bool:
    """Say whether a condition is null for every image, the class −1 or a number NaN; words and
    pictures say something.
    """
    try:
        given = torch.as_tensor(value).detach()
    except (TypeError, ValueError, RuntimeError):
        return False
    is_number = bool(conditioner.null_like(torch.zeros(1)).isnan())
    return bool((given.isnan() if is_number else given == -1).all())


def stored_partner(process: Process, default: SamplingDefault) -> Any:
    """Return the process that a default names as the partner, where `process` is.

    Raises:
        ConfigError: If nothing here can load it, as after `copy.deepcopy` into another program.
    """
    if default.load_partner is None:
        raise ConfigError(
            f"The sampling default of this process guides by {default.guide_by!r}, which only the"
            " run that it came from can load. Load the process with load_run or from_pretrained,"
            " pass guide_by=…, or set diffusion.sampling_default = None."
        )
    partner = default.load_partner()
    where = process.denoiser.device
    return partner.to(where) if partner.device != where else partner


def tell_stale(process: Process, default: SamplingDefault) -> None:
    """Say once per process that its weights were trained on since the default was chosen."""
    if default.is_stale and not getattr(process, "_told_stale", False):
        logger.warning("%s", default.notice())
        process._told_stale = True  # type: ignore[attr-defined]


def draw(
    process: Process,
    plan: SamplingPlan,
    n: int | None = None,
    *,
    seed: int | None = 0,
    seeds: Sequence[int] | None = None,
    first_index: int = 0,
    cond: Mapping[str, Any] | None = None,
    batch_size: int | None = None,
    return_trajectory: bool | int = False,
    progress: bool | None = None,
    model: nn.Module | None = None,
    x_T: Tensor | None = None,
    device: torch.device | str | None = None,
    purpose: str = "sample",
) -> Any:
    """Draw images as a plan says; `sample` describes the other arguments and what is returned.

    `purpose` names their streams of noise: see `image_generator`.
    """
    denoiser = process.denoiser.using(model)
    where = torch.device(device) if device is not None else denoiser.device
    streams = ImageStreams.make(purpose, seed, seeds, first_index)
    n = count_images(n, seeds, x_T, process.image_shape, cond, batch_size)
    conditions = conditions_for(process, cond, n, streams)
    check_guided(process.conditioners, conditions, plan.guidance.scale)
    check_parts(process.conditioners, conditions, [name for name, _ in plan.guidance.parts])
    kept = kept_frames(return_trajectory, len(plan.levels))
    images, trajectories = [], []
    for start, stop in batches(n, batch_size):
        x = None if x_T is None else x_T[start:stop].to(where)
        dtype = torch.float32 if x is None else x.dtype
        noise = streams.noise(range(start, stop), process.image_shape, dtype, where)
        # Drawn also where x_T is given, so that the noise of the steps is never that of the start.
        drawn = noise()
        frames: list[Tensor] = []
        x = run(
            denoiser,
            plan.rows(start, stop),
            drawn if x is None else x,
            noise,
            {name: value[start:stop] for name, value in conditions.items()},
            on_state=partial(keep_frame, frames, kept) if kept else None,
            progress=progress,
        )
        images.append(to_unit_range(x))
        trajectories.extend([torch.stack(frames, 1)] if kept else [])
    return (torch.cat(images), torch.cat(trajectories)) if kept else torch.cat(images)


def conditions_for(
    process: Process,
    cond: Mapping[str, Any] | None,
    n: int,
    streams: ImageStreams,
) -> Cond:
    """Return what a caller says about n images as tensors (n, …); see `for_sampling`."""
    return for_sampling(process.conditioners, cond, n, streams.condition, process.class_names)


def check_sampler_fits(denoiser: Denoiser, sampler: Sampler) -> None:
    """Refuse a sampler that takes x̂_0 for a mean where it is the end of a trajectory, and the other
    way round.

    Raises:
        ConfigError: Naming what fits.
    """
    name = type(sampler).__name__
    if not sampler.jumps:
        denoiser.check_means(name, f"{option('sampler', 'consistency')}, or ")
    elif not denoiser.jumps:
        raise ConfigError(
            f"The sampler {name} jumps to the end of the trajectory, and this network answers with"
            " the mean of clean images, which is blurred. Tune a copy of it first (ddpm distill"
            f" RUN; in Python: ddpm_lib.distill), or use {option('sampler', 'ddim')}."
        )


def run(
    denoiser: Denoiser,
    plan: SamplingPlan,
    x: Tensor,
    noise: Callable[[], Tensor],
    cond: Cond,
    *,
    on_state: Callable[[int, Tensor], None] | None = None,
    progress: bool | None = None,
    loop: Callable[..., Tensor] = sample_loop,
) -> Tensor:
    """Run a loop like `sample_loop` on one batch with the network in eval mode.

    Args:
        denoiser: Evaluates the network.
        plan: The steps and the guidance of these images.
        x: The state at the first level, (b, c, *spatial).
        noise: Draws noise like x.
        cond: Conditions by name, (b, …); missing ones are null.
        on_state: As for `sample_loop`.
        progress: As for `sample_loop`.
        loop: Called as `sample_loop` is.

    Returns:
        The state at the last level.

    Raises:
        ConfigError: If the sampler takes the network's answer for something else.
    """
    check_sampler_fits(denoiser, plan.sampler)
    here = {name: to_device(value, x.device) for name, value in cond.items()}
    complete = fill_nulls(denoiser.conditioners, here, x)
    predict: Predict = partial(denoiser.predict, cond=complete, guidance=plan.guidance)
    if is_self_conditioned(denoiser.conditioners):
        predict = SelfConditioned(partial(denoiser.predict, guidance=plan.guidance), complete)
    partner = plan.guidance.partner
    with contextlib.ExitStack() as stack:
        for network in (denoiser.network, *(() if partner is None else (partner.network,))):
            stack.enter_context(evaluating(network))
        return loop(
            plan.sampler,
            x,
            plan.levels,
            predict,
            noise,
            level_at=denoiser.schedule.level_at,
            on_state=on_state,
            progress=progress,
        )
