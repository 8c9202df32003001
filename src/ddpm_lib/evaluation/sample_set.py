"""The samples that are judged: drawn from a run, or images that were drawn before."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ddpm_lib.core.digests import digest_of
from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.hub import PARTNER
from ddpm_lib.evaluation.evaluation_options import EvaluationOptions
from ddpm_lib.evaluation.image_sets import ImageSet, as_pictures, refuse_not_finite
from ddpm_lib.evaluation.network_conditions import (
    conditions_of,
    draws_of_data,
    identity_of,
    low_res_conditioner,
)
from ddpm_lib.evaluation.pictures import open_pictures
from ddpm_lib.evaluation.scored_images import whole_set
from ddpm_lib.evaluation.told_drawing import computing_in, drawing_network, named_partner
from ddpm_lib.process.autoguidance import partner_of
from ddpm_lib.process.conditions import guidable
from ddpm_lib.process.plan import resolve_num_steps, usual_sampler, usual_spacing
from ddpm_lib.process.sampling import stored_partner
from ddpm_lib.process.sampling_default import Chosen, SamplingDefault, choose_sampling
from ddpm_lib.runs.partners import RunPartner
from ddpm_lib.runs.placing import place_network
from ddpm_lib.runtime.devices import LOW_PRECISION
from ddpm_lib.training.sampling import default_condition

if TYPE_CHECKING:
    from ddpm_lib.data import ImageDataset
    from ddpm_lib.diffusion import GaussianDiffusion
    from ddpm_lib.evaluation.run_images import RunImages
    from ddpm_lib.runs.loading import LoadedRun

DEFAULT_SAMPLES = 10_000


def sample_images(
    diffusion: GaussianDiffusion,
    options: EvaluationOptions,
    n: int,
    about: Any,
    device: torch.device,
    network: nn.Module | None = None,
    given: ImageDataset | None = None,
    partner: LoadedRun | None = None,
    precision: str = "no",
    finite: Callable[[Tensor], Tensor] | None = None,
) -> ImageSet:
    """Draw samples: image i is a function of the seed and i, so batches and ranks do not matter.

    Args:
        diffusion: The process, on the device.
        options: Sampler, steps, guidance and seed.
        n: Number of samples.
        about: JSON-able: which weights these are.
        device: Where to sample.
        network: A network instead of the process's own.
        given: Images whose small versions a network that enlarges gets, with their labels; from the
            start again when all are used.
        partner: The worse version that guides, on the device.
        precision: In which the network computes, "no", "bf16" or "fp16".
        finite: Makes finite samples of those that are read; default: others are an error then.
    """
    cond = default_condition(diffusion, n)
    chosen = chosen_for(diffusion, options)
    how = dict(chosen.arguments)
    how["sampler"] = how["sampler"] or usual_sampler(how["eta"], how["sampler_options"])
    how["spacing"] = usual_spacing(how["sampler"]) if how["spacing"] is None else how["spacing"]
    how["num_steps"] = resolve_num_steps(
        how["sampler"], how["num_steps"], diffusion.timesteps, how["spacing"]
    )
    drawn = [
        how["sampler"],
        how["num_steps"],
        how["spacing"],
        how["eta"],
        options.seed,
        1.0 if how["guidance_scale"] is None else how["guidance_scale"],
    ]
    if chosen.default is not None:
        names = ("sampler_options", "spacing_options", "guidance_interval", "guidance_rescale")
        drawn += [how[name] for name in names]
    if partner is not None:
        drawn += [partner.weights_sha256, partner.weights, how["guide_scale"]]
        how["guide_by"] = partner.diffusion
    if precision in LOW_PRECISION:
        drawn.append(precision)

    def read(rows: range) -> Tensor:
        here = {k: v[rows.start : rows.stop] for k, v in cond.items()} if cond else None
        if given is not None:
            here = conditions_of(
                diffusion, given.batch(np.arange(rows.start, rows.stop) % len(given))
            )
        with computing_in(precision, device):
            images = diffusion.sample(
                len(rows),
                **how,
                seed=options.seed,
                first_index=rows.start,
                cond=here,
                device=device,
                model=network,
                progress=False,
            )
        images = refuse_not_finite(images, precision) if finite is None else finite(images)
        return as_pictures(images) if units is None else images.clamp(0.0, 1.0)

    units = diffusion.normalization
    about = [about, identity_of(given) if given is not None else None]
    shape = tuple(diffusion.image_size)
    if units is not None:
        drawn.append(units.to_json())
    digest = digest_of("samples", about, drawn)
    return ImageSet("samples", n, read, digest, shape=shape, normalization=units)


def chosen_for(diffusion: GaussianDiffusion, options: EvaluationOptions) -> Chosen:
    """Say how the samples of a process are drawn: by the options, and where they do not say, by
    its sampling default.
    """
    known = guidable(diffusion.conditioners)
    able = bool(known) if draws_of_data(diffusion) else "class_label" in known
    wishes = {
        "sampler": options.sampler,
        "num_steps": options.sample_steps,
        "spacing": options.spacing,
        "eta": options.eta,
        "guidance_scale": options.guidance_scale,
        "guide_by": options.guide_by,
        "guide_scale": options.guide_scale,
    }
    jumps = diffusion.denoiser.jumps
    return choose_sampling(diffusion.sampling_default, wishes, can_guide=able, jumps=jumps)


def open_samples(
    target: Any,
    options: EvaluationOptions,
    own: RunImages | None,
    dataset: Any,
    device: torch.device,
) -> tuple[ImageSet, list[str]]:
    """Return the samples of a run, drawn when they are read, or the pictures that are judged.

    Args:
        target: The pictures; of a run not looked at.
        options: Sampler, number and seed, or how pictures are read.
        own: The run's sets; None without a run.
        dataset: Images given as an object, which a network that enlarges gets small.
        device: Where to sample.

    Returns:
        The samples and notes on them.

    Raises:
        ConfigError: If the target is neither a run nor pictures.
    """
    if own is not None:
        return _samples_of_run(options, own, dataset, device)
    try:
        return open_pictures(target, "samples", options, options.num), []
    except FileNotFoundError as error:
        raise ConfigError(
            f"{target} is neither a run, as it holds no checkpoints, nor a set of pictures: {error}"
        ) from error


def _samples_of_run(
    options: EvaluationOptions, own: RunImages, dataset: Any, device: torch.device
) -> tuple[ImageSet, list[str]]:
    loaded, given, notes = own.loaded, None, []
    if draws_of_data(loaded.diffusion):
        if dataset is None and options.data == "held-out" and own.sets()[1] is None:
            given = own.get("train")
            notes = ["the samples take the conditions of training images: nothing was held out."]
            if low_res_conditioner(loaded.diffusion) is not None:
                notes = ["the samples enlarge small training images, as this run held nothing out."]
        else:
            given = whole_set(options, own, dataset)[1]
    n = options.num or (DEFAULT_SAMPLES if given is None else len(given))
    about = [str(loaded.checkpoint.resolve()), loaded.weights_sha256, loaded.weights]
    chosen = chosen_for(loaded.diffusion, options)
    partner = named_partner(loaded, options, device)
    if partner is None and chosen.partner_is_stored and chosen.default is not None:
        partner = _stored(loaded, chosen.default)
        place_network(partner.diffusion, device, "no", compiled=options.compile)
        partner_of(loaded.diffusion, partner.diffusion, chosen.arguments["guide_scale"])
    notes += [note for note in (chosen.line(),) if note]
    if chosen.default is not None and chosen.default.notice():
        notes.append(chosen.default.notice())
    network, precision = drawing_network(loaded.diffusion.model, options, device)
    samples = sample_images(
        loaded.diffusion,
        options,
        n,
        about,
        device,
        network=network,
        given=given,
        partner=partner,
        precision=precision,
    )
    return samples, notes


def _stored(loaded: LoadedRun, default: SamplingDefault) -> LoadedRun:
    """Load what the sampling default of a run or a folder guides by."""
    load = default.load_partner
    if isinstance(load, RunPartner):
        found: LoadedRun = load.loaded
        return found
    assert loaded.pretrained is not None
    process = stored_partner(loaded.diffusion, default)
    return dataclasses.replace(loaded, diffusion=process, weights=PARTNER)
