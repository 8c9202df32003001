"""The diffusion process around a network: its parts, the loss and one denoising step (sampling: `generation.py`)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ddpm_lib.clipping import CLIPS
from ddpm_lib.conditions import Cond, Draws, drop, for_training, nulls, to_device
from ddpm_lib.guidance import Guidance
from ddpm_lib.images import check_unit_range, to_model_range
from ddpm_lib.levels import Level
from ddpm_lib.likelihood import Likelihood
from ddpm_lib.losses import Chain
from ddpm_lib.options import registered_name
from ddpm_lib.parametrization import PARAMETRIZATIONS, N, Parametrization
from ddpm_lib.parts import channels_of, make_part, make_schedule, options_of, spatial_size
from ddpm_lib.registry import Registry
from ddpm_lib.samplers import Prediction
from ddpm_lib.schedules import Schedule
from ddpm_lib.time_sampling import TIME_SAMPLERS, TimeSampler, drawn_levels
from ddpm_lib.variance import VARIANCES, Variance
from ddpm_lib.weighting import WEIGHTINGS, Weighting

LOSSES: Registry[str] = Registry("loss", {name: name for name in ("simple", "hybrid", "vlb")})


class GaussianDiffusion(Likelihood):
    """A Gaussian diffusion process and the network that reverses it.

    Images are uint8 or float in [0, 1] at every method with `images` in its signature, and [-1, 1] inside. The state
    dict holds the network only: everything else is rebuilt from `config`.

    Args:
        model: The network, called as model(x, t, cond) with x (b, c, *spatial), t (b,) float32 counting from 0, and
            cond a dict of tensors or None; returns the shape of x, with twice the channels for a learned variance.
        image_size: Height and width of the images, or one number for both. One or three numbers for signals and
            volumes.
        channels: Image channels. Default: `model.channels`.
        timesteps: Number of noise levels T, at least 2.
        schedule: Noise schedule: linear, cosine, sigmoid, quad, scaled_linear, const, warmup10, warmup50, jsd, laplace,
            log_linear, karras, shifted_cosine (large images) or betas; or a `Schedule`.
        schedule_options: Options of the schedule, such as {"zero_terminal_snr": True}.
        parametrization: What the network predicts: eps (the noise), x0 (the image) or v (a mix that is well-posed at
            every level, hence the default), or edm (v for data of another spread than 1, Karras et al. 2022).
        parametrization_options: Options of the parametrization, such as {"sigma_data": 0.5}.
        weighting: Weight of the levels in the loss: simple, min_snr, flat, p2, snr_plus_one, soft_min_snr, vlb,
            sigmoid or edm. The default min_snr is Ho et al.'s L_simple at high noise and stops it from spending
            itself on nearly clean images, which speeds up training for every parametrization (Hang et al. 2023).
        weighting_options: Options of the weighting, such as {"gamma": 5.0}.
        variance: Variance of ancestral sampling: fixed_small, fixed_large, or learned_range, where the second half of
            the network's output channels says where between the two it lies (Nichol & Dhariwal 2021).
        loss: simple (the weighted squared error), vlb (the terms of the variational bound in bits/dim, times T), or
            hybrid (simple + vlb_weight·vlb, where the vlb trains the variance only). Default: hybrid for a learned
            variance, else simple.
        vlb_weight: λ of the hybrid loss; 0.001 in Nichol & Dhariwal 2021.
        time_sampler: How training draws levels: uniform, stratified, loss_aware (where the losses are large, unbiased;
            for loss="vlb") or log_normal_sigma (Karras et al. 2022).
        time_sampler_options: Options of the time sampler, such as {"P_mean": -1.2}.
        clip: What sampling does to predicted images outside the range: static (clip), dynamic (threshold per image)
            or none.
        dynamic_threshold_ratio: Quantile of the pixel magnitudes that clip="dynamic" maps to the range, in (0, 1].

    Raises:
        ValueError: If an argument is out of range, or parts do not fit together.
        TypeError: If `model` is no module.

    >>> diffusion = GaussianDiffusion(nn.Identity(), image_size=8, channels=3, timesteps=100)
    >>> diffusion.schedule
    Schedule.make('cosine', 100)
    """

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
        loss: Literal["simple", "hybrid", "vlb"] | None = None,
        vlb_weight: float = 0.001,
        time_sampler: str | TimeSampler = "uniform",
        time_sampler_options: dict[str, float] | None = None,
        clip: Literal["static", "dynamic", "none"] = "static",
        dynamic_threshold_ratio: float = 0.995,
    ) -> None:
        super().__init__()
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module called as model(x, t, cond), got {type(model).__name__}.")
        self.model = model
        self.channels = channels_of(model, channels)
        self.image_size = spatial_size(image_size)
        self.schedule = make_schedule(schedule, schedule_options, timesteps)
        self.parametrization: Parametrization = make_part(PARAMETRIZATIONS, parametrization, parametrization_options)
        self.weighting: Weighting = make_part(WEIGHTINGS, weighting, weighting_options)
        self.variance: Variance = make_part(VARIANCES, variance)
        self.time_sampler: TimeSampler = make_part(TIME_SAMPLERS, time_sampler, time_sampler_options)
        self.time_sampler.bind(self.schedule)
        if not 0.0 < dynamic_threshold_ratio <= 1.0:
            raise ValueError(f"dynamic_threshold_ratio must be in (0, 1], got {dynamic_threshold_ratio}. Use 0.995.")
        self.clip, self.dynamic_threshold_ratio = clip, dynamic_threshold_ratio
        self._clip = CLIPS[clip]
        learned = self.variance.outputs > 1
        self.loss: str = LOSSES[("hybrid" if learned else "simple") if loss is None else loss]
        self.vlb_weight = vlb_weight
        self._range_checked = False
        self._check_fit()
        self.loss_weights = self._loss_weights()

    def _check_fit(self) -> None:
        if self.parametrization.needs_signal and float(self.schedule.alpha[-1]) == 0:
            raise ValueError(
                "The schedule ends in pure noise (zero terminal SNR), where a predicted eps says nothing about the "
                "image. Use parametrization='v' or 'x0', or a schedule that keeps some signal."
            )
        outputs, wanted = getattr(self.model, "out_channels", None), self.channels * self.variance.outputs
        if isinstance(outputs, int) and outputs != wanted:
            raise ValueError(
                f"The network returns {outputs} channels, but images of {self.channels} channels and this variance "
                f"need {wanted}. Build the network with out_channels={wanted}."
            )
        learned = self.variance.outputs > 1
        if learned and self.loss == "simple":
            raise ValueError("loss='simple' would never train a learned variance. Use loss='hybrid' or 'vlb'.")
        if not learned and self.loss == "hybrid":
            raise ValueError(
                "In loss='hybrid' the bound trains the variance only, and a fixed one has nothing to train. Use "
                "variance='learned_range', or loss='simple' or 'vlb'."
            )
        if not self.vlb_weight > 0:
            raise ValueError(f"vlb_weight must be > 0, got {self.vlb_weight}. Nichol & Dhariwal use 0.001.")

    def _loss_weights(self) -> Tensor:
        """Tabulate w(SNR_t)·c_out², the weight of the network's squared error; 0 at t = 0, which is never trained."""
        alpha, sigma = self.schedule.alpha[1:], self.schedule.sigma[1:]
        weights = self.weighting(self.schedule.snr[1:]) * self.parametrization.c_out(alpha, sigma).square()
        if not torch.all(torch.isfinite(weights) & (weights >= 0)):
            raise ValueError(
                f"{self.weighting} with {self.parametrization} and {self.schedule} gives weights that are negative or "
                "not finite. Choose another weighting."
            )
        if weights[-1] == 0:
            warnings.warn(
                f"The weighting {self.config['weighting']!r} gives the noisiest level, where sampling starts, the "
                "weight 0 on this schedule: it would never be trained. Use weighting='snr_plus_one' or 'flat'.",
                UserWarning,
                stacklevel=4,
            )
        return torch.cat([weights.new_zeros(1), weights])

    @property
    def config(self) -> dict[str, Any]:
        """The arguments, JSON-able, from which GaussianDiffusion(model, **config) builds the same process."""
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
            "vlb_weight": self.vlb_weight,
            "time_sampler": registered_name(TIME_SAMPLERS, self.time_sampler),
            "time_sampler_options": options_of(self.time_sampler),
            "clip": self.clip,
            "dynamic_threshold_ratio": self.dynamic_threshold_ratio,
        }

    def extra_repr(self) -> str:
        """Show the arguments in repr()."""
        return ", ".join(f"{k}={v!r}" for k, v in self.config.items() if k != "schedule_options")

    def forward(
        self,
        images: Tensor | Mapping[str, Tensor],
        cond: Mapping[str, Tensor] | None = None,
        *,
        t: Tensor | None = None,
        noise: Tensor | None = None,
        uniform: Draws | None = None,
        drop: Draws | Mapping[str, Draws] | None = None,
        reduction: Literal["mean", "none"] = "mean",
        model: nn.Module | None = None,
    ) -> Tensor:
        """Return the training loss E_t [w·c_out²·‖F(x_t, t) − target‖²], each image averaged over its values.

        That is loss="simple"; the others add or are T·(bits/dim of the step t → t − 1), whose mean over t is the bound.

        What is not given is drawn from torch's global generators. `uniform` and `drop` may be NumPy arrays: wrappers for
        several GPUs move tensors to the device, and reading them back would make every step wait.

        Args:
            images: Images (b, c, *spatial), uint8 or float in [0, 1]; or a batch {"image": …, "class_label": …} of
                which the fields that the network has conditioners for are used.
            cond: Conditions by name, (b, …).
            t: Levels in 1 … T, (b,) integers. Default: drawn by the time sampler.
            noise: ε, the shape of the images.
            uniform: Numbers in [0, 1), (b,) on the CPU, from which the time sampler makes t.
            drop: Numbers in [0, 1), (b,) on the CPU, or booleans, that decide whose condition is hidden; one tensor
                or one per condition. Default: drawn in training mode, nothing hidden in eval mode.
            reduction: "mean" for a scalar, "none" for one loss per image.
            model: A network to use instead of `self.model` (wrapped or compiled, say).

        Returns:
            The loss in float32 (float64 for float64 images), scalar or (b,).
        """
        if reduction not in ("mean", "none"):
            raise ValueError(f"reduction must be 'mean' or 'none', got {reduction!r}.")
        images, cond = self._unpack(images, cond)
        device = self.device if images.device.type == "cpu" else images.device
        self.check_images(images)
        x0 = to_model_range(images.to(device, non_blocking=True))
        conditions = self._drop(for_training(self.conditioners, cond, x0), drop, len(x0))
        t, importance = drawn_levels(self.time_sampler, t, uniform, len(x0), self.timesteps)
        importance = torch.ones(len(x0), dtype=torch.float64) if importance is None else importance
        # One transfer for everything that depends on t; the arithmetic on the tables is float64.
        table = torch.stack([*self.schedule.gather(t), self.loss_weights[t], importance, (t - 1).double()]).to(x0.dtype)
        alpha, sigma, weight, importance, time = to_device(table, device)
        alpha, sigma = (v.view(-1, *[1] * (x0.ndim - 1)) for v in (alpha, sigma))
        eps = _noise_like(x0, noise)
        x_t = alpha * x0 + sigma * eps
        seen = self.parametrization.scale_input(x_t, alpha, sigma)
        output, raw = self._split(self._call(model or self.model, seen, time.float(), conditions).to(x0.dtype))
        losses = torch.zeros_like(time)
        if self.loss != "vlb":
            error = output - self.parametrization.target(x0, eps, alpha, sigma)
            losses = weight * error.square().flatten(1).mean(1)
        if self.loss != "simple":
            guess = self._clean(x_t, output, alpha, sigma, "none")
            # In the hybrid loss the bound teaches the variance and leaves the mean alone.
            guess, scale = (guess.detach(), self.vlb_weight) if self.loss == "hybrid" else (guess, 1.0)
            losses = losses + scale * self.timesteps * self.chain.terms(t, x0, guess, raw, self.variance)
        return (importance * losses).mean() if reduction == "mean" else importance * losses

    def q_sample(self, images: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Return x_t = α_t·x_0 + σ_t·ε in [-1, 1] units (Ho et al. 2020, eq. 4).

        Args:
            images: Images (b, c, *spatial), uint8 or float in [0, 1].
            t: Levels in 0 … T, (b,) integers.
            noise: ε, the shape of the images.
        """
        x0 = to_model_range(images)
        alpha, sigma = (
            to_device(v.to(x0.dtype), x0.device).view(-1, *[1] * (x0.ndim - 1)) for v in self.schedule.gather(t.cpu())
        )
        return alpha * x0 + sigma * noise

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

        Always in this order: network → guidance on its raw output → x̂_0 = c_skip·x_t + c_out·F → classifier → clip →
        ε̂ from the clipped x̂_0. Guidance keeps the conditional learned variance: extrapolated, it leaves its range.

        Args:
            x: Noisy images (b, c, *spatial) in [-1, 1] units, all at one level.
            level: That level. At level 0 the answer is known, (x, 0), and the network is not called.
            cond: Conditions by name, (b, …), on the device of x.
            guidance: Classifier-free guidance, and a classifier's.
            model: A network to use instead of `self.model`.
            clip: "static", "dynamic" or "none", instead of what the process was built with.
        """
        if level.sigma == 0:
            return Prediction(x, torch.zeros_like(x), partial(self.variance, raw=torch.zeros_like(x)))
        network = model or self.model
        seen = self.parametrization.scale_input(x, level.alpha, level.sigma)
        # Below level 1 a network knows nothing cleaner.
        time = torch.full((len(x),), max(level.t - 1.0, 0.0), device=x.device, dtype=torch.float32)
        if guidance is not None and guidance.active(level.t / self.timesteps):
            other = nulls(self.conditioners, cond)
            both = {name: torch.cat([value, other[name]]) for name, value in (cond or {}).items()}
            pair = self._call(network, torch.cat([seen, seen]), torch.cat([time, time]), both)
            (output, raw), (null, _) = map(self._split, pair.to(x.dtype).chunk(2))
            output = guidance.combine(output, null)
        else:
            output, raw = self._split(self._call(network, seen, time, cond).to(x.dtype))
        add = guidance.shift(x, level, time, level.t / self.timesteps) if guidance is not None else 0.0
        x0 = self._clean(x, output, level.alpha, level.sigma, clip, add)
        return Prediction(x0, (x - level.alpha * x0) / level.sigma, partial(self.variance, raw=raw))

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
        """Return x̂_0 and the raw variance (None for a fixed one) for noisy images each at its own level, unguided.

        Args:
            x: Noisy images (b, c, *spatial) in [-1, 1] units.
            alpha: α of their levels, (b, 1, …).
            sigma: σ of their levels, (b, 1, …).
            t: The levels, (b,) on the CPU.
            cond: Conditions by name, (b, …), on the device of x.
            model: As for `denoise`.
            clip: As for `denoise`.
        """
        time = to_device((t - 1.0).clamp(min=0.0).float(), x.device)
        seen = self.parametrization.scale_input(x, alpha, sigma)
        output, raw = self._split(self._call(model or self.model, seen, time, cond).to(x.dtype))
        return self._clean(x, output, alpha, sigma, clip), raw

    def _clean(self, x: Tensor, out: Tensor, alpha: N, sigma: N, clip: str | None, add: Tensor | float = 0) -> Tensor:
        """Return x̂_0 = c_skip·x_t + c_out·F + add, clipped."""
        p = self.parametrization
        x0 = p.c_skip(alpha, sigma) * x + p.c_out(alpha, sigma) * out + add
        return (self._clip if clip is None else CLIPS[clip])(x0, self.dynamic_threshold_ratio)

    @cached_property
    def chain(self) -> Chain:
        """The full reverse chain, whose terms the losses "hybrid" and "vlb" are made of."""
        return Chain.of(self.schedule)

    def _split(self, output: Tensor) -> tuple[Tensor, Tensor | None]:
        """Split the network's output into F and its word on the variance."""
        if self.variance.outputs == 1:
            return output, None
        return output[:, : self.channels], output[:, self.channels :]

    def _unpack(
        self, images: Tensor | Mapping[str, Tensor], cond: Mapping[str, Tensor] | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        given = dict(cond or {})
        if isinstance(images, Tensor):
            return images, given
        if "image" not in images:
            raise ValueError(f"A batch needs the field 'image'; got {', '.join(map(repr, images)) or 'none'}.")
        named = {k: v for k, v in images.items() if k in (self.conditioners or {})}
        return images["image"], {**named, **given}

    def check_images(self, images: Tensor) -> None:
        """Refuse images of another shape, or outside the range.

        Raises:
            ValueError: If they are.
        """
        if images.ndim < 2 or tuple(images.shape[1:]) != self.image_shape or not len(images):
            raise ValueError(
                f"Images must have shape (b, {', '.join(map(str, self.image_shape))}) with b ≥ 1; got "
                f"{tuple(images.shape)}. Resize them, or change image_size and channels."
            )
        # Reading values back from a GPU makes every step wait, and a wrong range shows in the first batch.
        if images.device.type == "cpu" or not self._range_checked:
            check_unit_range(images)
            self._range_checked = True

    def _drop(self, cond: Cond | None, draws: Draws | Mapping[str, Draws] | None, n: int) -> Cond | None:
        conditioners = self.conditioners
        if cond is None or conditioners is None:
            return cond
        if draws is None:
            if not (self.training and any(c.drop_prob > 0 for c in conditioners.values())):
                return cond
            draws = torch.rand(n, dtype=torch.float64)
        return drop(conditioners, cond, draws)

    def _call(self, model: Callable[..., Tensor], x: Tensor, time: Tensor, cond: Cond | None) -> Tensor:
        output = model(x, time, cond)
        expected = (x.shape[0], self.channels * self.variance.outputs, *x.shape[2:])
        # A wrong shape may broadcast against the target and train on nonsense.
        if tuple(output.shape) != expected:
            raise ValueError(f"The network returned shape {tuple(output.shape)}, expected {expected}.")
        return output


def _noise_like(x0: Tensor, noise: Tensor | None) -> Tensor:
    eps = torch.randn_like(x0) if noise is None else noise.to(x0)
    if eps.shape != x0.shape:
        raise ValueError(f"noise must have the shape of the images {tuple(x0.shape)}, got {tuple(eps.shape)}.")
    return eps
