"""The diffusion process around a network: its parts, and the table of its methods.

The methods are functions of `process/`, bound in the class body.
"""

from __future__ import annotations

import dataclasses
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn

from ddpm_lib.core.binding import class_function
from ddpm_lib.core.keywords import answers_wrong_keywords
from ddpm_lib.core.options import registered_name, takes_plain
from ddpm_lib.core.registry import Registry
from ddpm_lib.guidance import Guidance
from ddpm_lib.images import check_unit_range
from ddpm_lib.nn.outside import outside_conditioners
from ddpm_lib.parametrization import PARAMETRIZATIONS, Parametrization
from ddpm_lib.process import (
    editing,
    encoding,
    likelihood,
    loss,
    presets,
    pretrained,
    restoring,
    sampling,
    sharing,
)
from ddpm_lib.process.bound import Chain
from ddpm_lib.process.checks import check_parts_fit, loss_weights
from ddpm_lib.process.clipping import CLIPS
from ddpm_lib.process.conditions import Cond, Conditioners
from ddpm_lib.process.consistency import for_consistency
from ddpm_lib.process.denoiser import Denoiser
from ddpm_lib.process.level_pairs import CONSISTENCY, pairs_of_loss
from ddpm_lib.process.network_calls import device_of
from ddpm_lib.process.noising import Noising
from ddpm_lib.process.parts import (
    channels_of,
    make_part,
    make_schedule,
    options_of,
    refuse_wrapped,
    spatial_size,
)
from ddpm_lib.process.sampling_default import SamplingDefault
from ddpm_lib.process.uncertainty import Uncertainty
from ddpm_lib.samplers import Prediction
from ddpm_lib.schedules import Schedule
from ddpm_lib.schedules.levels import Level
from ddpm_lib.time_sampling import TIME_SAMPLERS, TimeSampler
from ddpm_lib.variance import VARIANCES, Variance
from ddpm_lib.weighting import WEIGHTINGS, Weighting

if TYPE_CHECKING:
    from ddpm_lib.data.measurements.normalization import Normalization

LOSSES: Registry[str] = Registry(
    "loss", {name: name for name in ("simple", "hybrid", "vlb", CONSISTENCY)}
)


class GaussianDiffusion(nn.Module):
    """A Gaussian diffusion process and the network that reverses it.

    Images are uint8 or float in [0, 1] at every method with `images` in its signature, and [-1, 1]
    inside. The state dict holds the network only: everything else is rebuilt from `config`.

    Args:
        model: The network, called as model(x, t, cond) with x (b, c, *spatial), t (b,) float32
            counting from 0, and cond a dict of tensors or None; returns the shape of x, with twice
            the channels for a learned variance. Networks of other libraries are called as they want
            (docs/extending.md).
        image_size: Height and width of the images, or one number for both. One or three numbers for
            signals and volumes.
        channels: Image channels. Default: `model.channels`.
        timesteps: Number of noise levels T, at least 2.
        schedule: Noise schedule: linear, cosine, sigmoid, quad, scaled_linear, const, warmup10,
            warmup50, jsd, laplace, log_linear, karras, shifted_cosine (large images) or betas; or a
            `Schedule`.
        schedule_options: Options of the schedule, such as {"zero_terminal_snr": True}.
        parametrization: What the network predicts: eps (the noise), x0 (the image) or v (a mix that
            is well-posed at every level, hence the default), or edm (v for data of another spread
            than 1, Karras et al. 2022).
        parametrization_options: Options of the parametrization: {"sigma_data": 0.5} of edm,
            {"skip": 0.1} of x0 (a share of x_t at low noise, as students of `distill` have).
        weighting: Weight of the levels in the loss: simple, min_snr, flat, p2, snr_plus_one,
            soft_min_snr, vlb, sigmoid or edm. The default min_snr is Ho et al.'s L_simple at high
            noise and stops it from spending itself on nearly clean images, which speeds up training
            for every parametrization (Hang et al. 2023).
        weighting_options: Options of the weighting, such as {"gamma": 5.0}.
        variance: Variance of ancestral sampling: fixed_small, fixed_large, or learned_range, where
            the second half of the network's output channels says where between the two it lies
            (Nichol & Dhariwal 2021).
        loss: simple (the weighted squared error), vlb (the terms of the variational bound in
            bits/dim, times T), hybrid (simple + vlb_weight·vlb, where the vlb trains the
            variance only), or consistency (a trained network learns to draw in 1 to 4 steps, Geng
            et al. 2024; see `for_consistency`). Default: hybrid for a learned variance, else
            simple.
        loss_options: Options of loss="consistency", such as {"stages": 4, "q": 4.0}: how the pairs
            of levels that are compared close in.
        vlb_weight: λ of the hybrid loss; 0.001 in Nichol & Dhariwal 2021.
        time_sampler: How training draws levels: uniform, stratified, loss_aware (where the losses
            are large, unbiased; for loss="vlb"); or times between the levels: continuous,
            uniform_alpha_bar or log_normal_sigma (Karras et al. 2022).
        time_sampler_options: Options of the time sampler, such as {"P_mean": -1.2}.
        learn_uncertainty: Learn how large the weighted loss is at each noise level and divide by
            it, so that every level counts alike (Karras et al. 2024, §2.2). The training loss is
            then L·e^−u + u, which may be negative.
        offset_noise: Standard deviation of a further noise, constant over each channel; 0.1 is
            usual, 0 none.
        input_perturbation: Further noise of this relative size in the network's input, against
            errors that add up in sampling (Ning et al. 2023); 0.1 is theirs, 0 none.
        immiscible: Give each image of a batch the noise near it (Li et al. 2024).
        noise_draws: Give each image the nearest of this many draws of noise (Li et al. 2025); 1
            takes the noise as it comes. What the network learns of very noisy levels is then
            biased: see docs/training.md.
        clip: What sampling does to predicted images outside the range: static (clip), dynamic
            (threshold per image) or none.
        dynamic_threshold_ratio: Quantile of the pixel magnitudes that clip="dynamic" maps to the
            range, in (0, 1].

    Raises:
        ValueError: If an argument is out of range, parts do not fit together, or the network is
            wrapped (torch.compile, DDP).
        TypeError: If `model` is no module.

    Attributes:
        class_names: Names of the classes, where they are known (`load_run` and `Trainer` set them):
            conditions may then say {"class_label": "star"} instead of a number. No part of
            `config`.
        normalization: Of a process that learned measured values: `normalization.inverse(samples)`
            gives them in their units and type. `load_run`, `from_pretrained` and `Trainer` set it;
            None for pictures. No part of `config`.
        sampling_default: How `sample` draws where it is not told; `load_run` and `from_pretrained`
            set it where `ddpm tune` has chosen. No part of `config`; None asks the library.

    >>> diffusion = GaussianDiffusion(nn.Identity(), image_size=8, channels=3, timesteps=100)
    >>> diffusion.schedule
    Schedule.make('cosine', 100)
    """

    @takes_plain
    @answers_wrong_keywords
    def __init__(
        self,
        model: nn.Module,
        *,
        image_size: int | tuple[int, ...],
        channels: int | None = None,
        timesteps: int = 1000,
        schedule: str | Schedule = "cosine",
        schedule_options: dict[str, float] | None = None,
        parametrization: str | Parametrization = "v",
        parametrization_options: dict[str, float] | None = None,
        weighting: str | Weighting = "min_snr",
        weighting_options: dict[str, float] | None = None,
        variance: str | Variance = "fixed_small",
        loss: Literal["simple", "hybrid", "vlb", "consistency"] | None = None,
        loss_options: dict[str, float] | None = None,
        vlb_weight: float = 0.001,
        time_sampler: str | TimeSampler = "uniform",
        time_sampler_options: dict[str, float] | None = None,
        learn_uncertainty: bool = False,
        offset_noise: float = 0.0,
        input_perturbation: float = 0.0,
        immiscible: bool = False,
        noise_draws: int = 1,
        clip: Literal["static", "dynamic", "none"] = "static",
        dynamic_threshold_ratio: float = 0.995,
    ) -> None:
        super().__init__()
        if not isinstance(model, nn.Module):
            raise TypeError(
                "model must be a torch.nn.Module called as model(x, t, cond), got"
                f" {type(model).__name__}."
            )
        refuse_wrapped(model)
        self.model = model
        self._outside = outside_conditioners(model)
        self.channels = channels_of(model, channels)
        self.image_size = spatial_size(image_size)
        self.schedule = make_schedule(schedule, schedule_options, timesteps)
        self.parametrization: Parametrization = make_part(
            PARAMETRIZATIONS, parametrization, parametrization_options
        )
        self.weighting: Weighting = make_part(WEIGHTINGS, weighting, weighting_options)
        self.variance: Variance = make_part(VARIANCES, variance)
        self.time_sampler: TimeSampler = make_part(
            TIME_SAMPLERS, time_sampler, time_sampler_options
        )
        self.time_sampler.bind(self.schedule)
        if not 0.0 < dynamic_threshold_ratio <= 1.0:
            raise ValueError(
                f"dynamic_threshold_ratio must be in (0, 1], got {dynamic_threshold_ratio}. Use"
                " 0.995."
            )
        self.clip, self.dynamic_threshold_ratio = clip, dynamic_threshold_ratio
        CLIPS[clip]  # refuses an unknown name
        learned = self.variance.outputs > 1
        self.loss: str = LOSSES[("hybrid" if learned else "simple") if loss is None else loss]
        self.vlb_weight = vlb_weight
        self.pairs = pairs_of_loss(self.loss, loss_options)
        self.uncertainty = Uncertainty() if learn_uncertainty else None
        self.noising = Noising(offset_noise, input_perturbation, immiscible, noise_draws)
        self.class_names: tuple[str, ...] | None = None
        self.normalization: Normalization | None = None
        self.sampling_default: SamplingDefault | None = None
        self._range_checked = False
        check_parts_fit(self)
        self.loss_weights = loss_weights(self)

    @property
    def config(self) -> dict[str, Any]:
        """The arguments, JSON-able, from which GaussianDiffusion(model, **config) builds the same
        process.
        """
        return {
            "image_size": list(self.image_size),
            "channels": self.channels,
            "timesteps": self.timesteps,
            "schedule": self.schedule.name,
            "schedule_options": dict(self.schedule.options),
            "parametrization": registered_name(PARAMETRIZATIONS, self.parametrization),
            "parametrization_options": options_of(self.parametrization),
            "weighting": registered_name(WEIGHTINGS, self.weighting),
            "weighting_options": options_of(self.weighting),
            "variance": registered_name(VARIANCES, self.variance),
            "loss": self.loss,
            "loss_options": {} if self.pairs is None else dataclasses.asdict(self.pairs),
            "vlb_weight": self.vlb_weight,
            "time_sampler": registered_name(TIME_SAMPLERS, self.time_sampler),
            "time_sampler_options": options_of(self.time_sampler),
            "learn_uncertainty": self.uncertainty is not None,
            "offset_noise": self.noising.offset,
            "input_perturbation": self.noising.perturbation,
            "immiscible": self.noising.immiscible,
            "noise_draws": self.noising.draws,
            "clip": self.clip,
            "dynamic_threshold_ratio": self.dynamic_threshold_ratio,
        }

    def extra_repr(self) -> str:
        """Show the arguments in repr()."""
        return ", ".join(f"{k}={v!r}" for k, v in self.config.items() if k != "schedule_options")

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
        own = getattr(self.model, "conditioners", None)
        return cast("Conditioners | None", self._outside if own is None else own)

    @property
    def device(self) -> torch.device:
        """Where the network is (the CPU for one without parameters)."""
        return device_of(self.model)

    @property
    def denoiser(self) -> Denoiser:
        """The network with all that turns its output into a clean image."""
        return Denoiser(
            network=self.model,
            conditioners=self.conditioners,
            schedule=self.schedule,
            parametrization=self.parametrization,
            variance=self.variance,
            clip=self.clip,
            clip_ratio=self.dynamic_threshold_ratio,
            shape=self.image_shape,
            jumps=self.loss == CONSISTENCY,
        )

    @cached_property
    def chain(self) -> Chain:
        """The full reverse chain, whose terms the losses "hybrid" and "vlb" are made of."""
        return Chain.of(self.schedule)

    forward = loss.forward
    losses = loss.losses
    effective_weights = loss.effective_weights
    q_sample = loss.q_sample

    sample = sampling.sample

    edit = editing.edit
    inpaint = editing.inpaint
    restore = restoring.restore

    encode = encoding.encode
    decode = encoding.decode
    interpolate = encoding.interpolate

    bits_per_dim = likelihood.bits_per_dim
    flow_bits_per_dim = likelihood.flow_bits_per_dim

    for_consistency = for_consistency

    save_pretrained = pretrained.save_pretrained
    from_pretrained = class_function(pretrained.from_pretrained)
    preset = class_function(presets.preset)
    push_to_hub = sharing.push_to_hub

    def _repr_html_(self) -> str:
        from ddpm_lib.process.process_html import process_html

        return process_html(self)

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
        """Predict the clean image and the noise in x = x_t.

        Always in this order: network → guidance on its raw output → x̂_0 = c_skip·x_t + c_out·F →
        classifier → clip → ε̂ from the clipped x̂_0. Guidance keeps the conditional learned
        variance: extrapolated, it leaves its range.

        Args:
            x: Noisy images (b, c, *spatial) in [-1, 1] units, all at one level.
            level: That level. At level 0 the answer is known, (x, 0), and the network is not
                called.
            cond: Conditions by name, (b, …), on the device of x.
            guidance: By conditions, by a classifier, by a worse version.
            model: A network to use instead of `self.model`.
            clip: "static", "dynamic" or "none", instead of what the process was built with.
        """
        denoiser = self.denoiser.using(model).clipping(clip)
        return denoiser.predict(x, level, cond, guidance)

    def estimate(
        self,
        x: Tensor,
        alpha: Tensor,
        sigma: Tensor,
        t: Tensor,
        cond: Cond | None,
        *,
        model: nn.Module | None = None,
        clip: str | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Return x̂_0 and the raw variance (None for a fixed one) for noisy images each at its own
        level, unguided.

        Args:
            x: Noisy images (b, c, *spatial) in [-1, 1] units.
            alpha: α of their levels, (b, 1, …).
            sigma: σ of their levels, (b, 1, …).
            t: The levels, (b,) on the CPU.
            cond: Conditions by name, (b, …), on the device of x.
            model: As for `denoise`.
            clip: As for `denoise`.
        """
        denoiser = self.denoiser.using(model).clipping(clip)
        return denoiser.estimate(x, alpha, sigma, t, cond)

    def check_images(self, images: Tensor) -> None:
        """Refuse images of another shape, or outside the range.

        Raises:
            ValueError: If they are.
        """
        if images.ndim < 2 or tuple(images.shape[1:]) != self.image_shape or not len(images):
            raise ValueError(
                f"Images must have shape (b, {', '.join(map(str, self.image_shape))}) with b ≥ 1;"
                f" got {tuple(images.shape)}. Resize them, or change image_size and channels."
            )
        # Reading values back from a GPU makes every step wait, and a wrong range shows in the first
        # batch.
        if images.device.type == "cpu" or not self._range_checked:
            check_unit_range(images)
            self._range_checked = True
