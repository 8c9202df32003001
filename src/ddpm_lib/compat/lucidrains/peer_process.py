"""`GaussianDiffusion` with the arguments and methods of denoising-diffusion-pytorch."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from ddpm_lib.compat.lucidrains.peer_parts import (
    BETA_SCHEDULES,
    OBJECTIVES,
    ddim_levels,
    make_process,
    schedule_options,
    tables,
)
from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.keywords import answers_wrong_keywords
from ddpm_lib.diffusion import GaussianDiffusion as Process

_HINTS = {
    "p_sample": "process.sample(sampler='ddpm')",
    "p_mean_variance": "process.denoise(x, level)",
    "model_predictions": "process.denoise(x, level)",
    "q_posterior": "process.sample(sampler='ddpm')",
    "noise_assignment": "immiscible=True",
}
"""Methods without a counterpart, and what does their work."""


class PeerProcess(nn.Module):
    """Our process behind the names of the original: its tables as buffers, its methods.

    `process` is ours, for all that the original cannot do (other samplers, editing, likelihoods).

    Args:
        model: The network, of this package or one's own.
        process: Ours, around the same weights.
        sampling_timesteps: Steps of sampling; fewer than all are DDIM's.
        ddim_sampling_eta: Their noise.
        auto_normalize: Whether images are in [0, 1] outside; False: in [-1, 1] everywhere.
    """

    process: Process

    def __init__(
        self,
        model: nn.Module,
        process: Process,
        sampling_timesteps: int | None,
        ddim_sampling_eta: float,
        auto_normalize: bool,
    ) -> None:
        super().__init__()
        self.model = model
        # Beside the children: the network would else be saved twice.
        self.__dict__["process"] = process
        self.channels, self.num_timesteps = process.channels, process.timesteps
        self.image_size: Any = process.image_size
        self.sampling_timesteps = (
            process.timesteps if sampling_timesteps is None else sampling_timesteps
        )
        if not 1 <= self.sampling_timesteps <= process.timesteps:
            raise ValueError(
                f"sampling_timesteps must be in 1 … timesteps = {process.timesteps}, got"
                f" {sampling_timesteps}."
            )
        self.is_ddim_sampling = self.sampling_timesteps < process.timesteps
        self.ddim_sampling_eta, self.auto_normalize = ddim_sampling_eta, auto_normalize
        for name, table in tables(process).items():
            self.register_buffer(name, table.float())

    def __getattr__(self, name: str) -> Any:
        """Say what to use for methods that have no counterpart."""
        if name in _HINTS:
            raise AttributeError(
                f"{name} of denoising-diffusion-pytorch has no counterpart;"
                f" {_HINTS[name]} does its work."
            )
        return super().__getattr__(name)

    def train(self, mode: bool = True) -> Any:
        """Switch dropout and the noise variants of training on or off."""
        self.process.train(mode)
        return super().train(mode)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Refuse tables of another process: they are read off the arguments here."""
        errors: list[str] = args[-1]
        for name, close in (("betas", 2e-4), ("loss_weight", 1e-2)):
            there, here = state_dict.get(prefix + name), getattr(self, name)
            if not isinstance(there, Tensor) or there.shape != here.shape:
                continue  # which torch reports
            if not torch.allclose(there.to(here), here, rtol=close, atol=1e-6):
                why = {"betas": "beta_schedule", "loss_weight": "objective or min_snr_gamma"}[name]
                errors.append(f"{name} in the file are those of another {why}.")
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    @property
    def device(self) -> torch.device:
        """Where the tables are."""
        return self.betas.device

    def random_times(self, batch_size: int) -> Tensor:
        """Draw times 0 … T − 1, (batch_size,)."""
        return torch.randint(0, self.num_timesteps, (batch_size,), device=self.device)

    def normalize(self, images: Tensor) -> Tensor:
        """Map images from outside to [-1, 1]."""
        return images * 2 - 1 if self.auto_normalize else images

    def unnormalize(self, images: Tensor) -> Tensor:
        """Map images in [-1, 1] to what they are outside."""
        return (images + 1) * 0.5 if self.auto_normalize else images

    def _column(self, table: Tensor, t: Tensor, like: Tensor) -> Tensor:
        return table[t].view(-1, *[1] * (like.ndim - 1))

    def q_sample(self, x_start: Tensor, t: Tensor, noise: Tensor | None = None) -> Tensor:
        """Return x_t = √ᾱ_t·x_0 + √(1 − ᾱ_t)·ε.

        Args:
            x_start: x_0 (b, c, h, w) in [-1, 1].
            t: Times 0 … T − 1, (b,).
            noise: ε; drawn where it is not given.
        """
        noise = torch.randn_like(x_start) if noise is None else noise
        a = self._column(self.sqrt_alphas_cumprod, t, x_start)
        return a * x_start + self._column(self.sqrt_one_minus_alphas_cumprod, t, x_start) * noise

    def predict_start_from_noise(self, x_t: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Return x_0 of x_t and its noise."""
        a = self._column(self.sqrt_recip_alphas_cumprod, t, x_t)
        return a * x_t - self._column(self.sqrt_recipm1_alphas_cumprod, t, x_t) * noise

    def predict_noise_from_start(self, x_t: Tensor, t: Tensor, x0: Tensor) -> Tensor:
        """Return the noise of x_t and its x_0."""
        a = self._column(self.sqrt_recip_alphas_cumprod, t, x_t)
        return (a * x_t - x0) / self._column(self.sqrt_recipm1_alphas_cumprod, t, x_t)

    def predict_v(self, x_start: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Return v = √ᾱ_t·ε − √(1 − ᾱ_t)·x_0."""
        a = self._column(self.sqrt_alphas_cumprod, t, x_start)
        return a * noise - self._column(self.sqrt_one_minus_alphas_cumprod, t, x_start) * x_start

    def predict_start_from_v(self, x_t: Tensor, t: Tensor, v: Tensor) -> Tensor:
        """Return x_0 of x_t and v."""
        a = self._column(self.sqrt_alphas_cumprod, t, x_t)
        return a * x_t - self._column(self.sqrt_one_minus_alphas_cumprod, t, x_t) * v

    def _loss(
        self,
        x_start: Tensor,
        t: Tensor,
        cond: dict[str, Tensor] | None,
        noise: Tensor | None,
        reduction: str,
    ) -> Tensor:
        """Return the loss at images in [-1, 1] and times from 0."""
        if reduction not in ("mean", "none"):
            raise ValueError(f"loss_reduction must be 'mean' or 'none', got {reduction!r}.")
        how: Literal["mean", "none"] = "none" if reduction == "none" else "mean"
        images = (x_start + 1) * 0.5
        return self.process(images, cond, t=t.cpu() + 1, noise=noise, reduction=how)

    def sampling_options(self) -> dict[str, Any]:
        """Return the arguments of `process.sample` that walk the levels of the original."""
        if not self.is_ddim_sampling:
            return {"sampler": "ddpm"}
        levels = ddim_levels(self.num_timesteps, self.sampling_timesteps)
        return {"sampler": "ddim", "spacing": levels, "eta": float(self.ddim_sampling_eta)}

    def _draw(self, n: int, return_all_timesteps: bool, **options: Any) -> Tensor:
        """Draw images, seeded by torch's global generator as there."""
        seed = int(torch.randint(2**31 - 1, ()))
        options = {**self.sampling_options(), "seed": seed, **options}
        drawn = self.process.sample(n, return_trajectory=return_all_timesteps, **options)
        images = drawn[1] if return_all_timesteps else drawn
        return images if self.auto_normalize else images * 2 - 1

    def _interpolate(
        self,
        x1: Tensor,
        x2: Tensor,
        t: int | None,
        lam: float,
        cond: dict[str, Tensor] | None,
        model: nn.Module | None = None,
    ) -> Tensor:
        level = self.num_timesteps if t is None else int(t) + 1
        between = self.process.interpolate(
            (x1 + 1) * 0.5,
            (x2 + 1) * 0.5,
            (lam,),
            fraction=level / self.num_timesteps,
            seed=int(torch.randint(2**31 - 1, ())),
            cond=cond,
            model=model,
        )
        return between[:, 0] * 2 - 1


class GaussianDiffusion(PeerProcess):
    """The process of denoising-diffusion-pytorch 2.x, made of our `GaussianDiffusion`.

    Args:
        model: A `Unet`, or a network of one's own called as model(x, time, x_self_cond).
        image_size: Side of the images, or height and width.
        timesteps: Number of noise levels T.
        sampling_timesteps: Steps of sampling: all T make it ancestral, fewer DDIM.
        objective: "pred_noise", "pred_x0" or "pred_v".
        beta_schedule: "linear", "cosine" or "sigmoid".
        schedule_fn_kwargs: Its options: s of cosine; start, end and tau of sigmoid.
        ddim_sampling_eta: Noise of DDIM.
        auto_normalize: Whether images outside are in [0, 1]; False: in [-1, 1].
        offset_noise_strength: Standard deviation of a further noise, constant over each channel.
        min_snr_loss_weight: Whether to cap the weight of nearly clean images in the loss.
        min_snr_gamma: At this signal-to-noise ratio.
        immiscible: Give each image of a batch the noise near it.

    Raises:
        ValueError: If the arguments do not fit each other.
    """

    vb_loss_weight: float | None = None

    @answers_wrong_keywords
    def __init__(
        self,
        model: nn.Module,
        *,
        image_size: int | tuple[int, int],
        timesteps: int = 1000,
        sampling_timesteps: int | None = None,
        objective: str = "pred_v",
        beta_schedule: str = "sigmoid",
        schedule_fn_kwargs: dict[str, float] | None = None,
        ddim_sampling_eta: float = 0.0,
        auto_normalize: bool = True,
        offset_noise_strength: float = 0.0,
        min_snr_loss_weight: bool = False,
        min_snr_gamma: float = 5,
        immiscible: bool = False,
    ) -> None:
        process = make_process(
            model,
            image_size=image_size,
            timesteps=timesteps,
            schedule=BETA_SCHEDULES[beta_schedule],
            schedule_options=schedule_options(schedule_fn_kwargs),
            parametrization=OBJECTIVES[objective],
            gamma=min_snr_gamma if min_snr_loss_weight else None,
            offset_noise=offset_noise_strength,
            immiscible=immiscible,
            vb_loss_weight=self.vb_loss_weight,
        )
        super().__init__(model, process, sampling_timesteps, ddim_sampling_eta, auto_normalize)
        self.objective, self.immiscible = objective, immiscible
        self.offset_noise_strength = offset_noise_strength
        self.self_condition = bool(getattr(model, "self_condition", False))

    def p_losses(
        self,
        x_start: Tensor,
        t: Tensor,
        noise: Tensor | None = None,
        offset_noise_strength: float | None = None,
        loss_reduction: str = "mean",
    ) -> Tensor:
        """Return the loss of images at given times.

        Args:
            x_start: Images (b, c, h, w) in [-1, 1].
            t: Times 0 … T − 1, (b,).
            noise: ε; drawn where it is not given.
            offset_noise_strength: As the process was made; another one is an error.
            loss_reduction: "mean", or "none" for one loss per image.
        """
        if offset_noise_strength not in (None, self.offset_noise_strength):
            raise ValueError(
                f"The process was made with offset_noise_strength={self.offset_noise_strength};"
                f" {offset_noise_strength} for one loss alone has no counterpart. Give it to"
                " GaussianDiffusion."
            )
        return self._loss(x_start, t, None, noise, loss_reduction)

    def forward(
        self,
        img: Tensor,
        noise: Tensor | None = None,
        offset_noise_strength: float | None = None,
        *,
        times: Tensor | None = None,
        loss_reduction: str = "mean",
    ) -> Tensor:
        """Return the loss of training images, at random times where none are given.

        Args:
            img: Images (b, c, h, w) in [0, 1]; in [-1, 1] with auto_normalize=False.
            noise: As for `p_losses`.
            offset_noise_strength: As for `p_losses`.
            times: Times 0 … T − 1, (b,).
            loss_reduction: "mean", or "none" for one loss per image.
        """
        times = self.random_times(len(img)) if times is None else times
        return self.p_losses(
            self.normalize(img), times, noise, offset_noise_strength, loss_reduction
        )

    def sample(self, batch_size: int = 16, return_all_timesteps: bool = False) -> Tensor:
        """Draw images; torch.manual_seed names them.

        Args:
            batch_size: How many.
            return_all_timesteps: Return all states, (b, steps + 1, c, h, w), noise first.

        Returns:
            float32 (b, c, h, w) in [0, 1]; in [-1, 1] with auto_normalize=False.
        """
        return self._draw(batch_size, return_all_timesteps)

    def p_sample_loop(self, shape: tuple[int, ...], return_all_timesteps: bool = False) -> Tensor:
        """Draw shape[0] images by all T ancestral steps."""
        return self._draw(
            shape[0], return_all_timesteps, sampler="ddpm", spacing="trailing", eta=None
        )

    def ddim_sample(self, shape: tuple[int, ...], return_all_timesteps: bool = False) -> Tensor:
        """Draw shape[0] images by `sampling_timesteps` steps of DDIM."""
        levels = ddim_levels(self.num_timesteps, self.sampling_timesteps)
        eta = float(self.ddim_sampling_eta)
        return self._draw(shape[0], return_all_timesteps, sampler="ddim", spacing=levels, eta=eta)

    def interpolate(self, x1: Tensor, x2: Tensor, t: int | None = None, lam: float = 0.5) -> Tensor:
        """Return images between pairs: both are noised, mixed and denoised by ancestral steps.

        Both get the same noise, so that the mix has the right amount of it; the original draws two.

        Args:
            x1: Images (b, c, h, w) in [-1, 1], as there.
            x2: Like x1.
            t: The time to mix at, 0 … T − 1; None for the last.
            lam: Where to stop between them, in [0, 1].

        Returns:
            Images like x1, in [-1, 1].
        """
        return self._interpolate(x1, x2, t, lam, None)


class LearnedGaussianDiffusion(GaussianDiffusion):
    """The process with learned variances (Nichol & Dhariwal 2021), for Unet(learned_variance=True).

    The network predicts the noise, whatever `objective` says there; another one is refused here.

    Args:
        model: The network.
        vb_loss_weight: λ of the bound in the loss.
        **options: As for `GaussianDiffusion`: image_size, timesteps, sampling_timesteps,
            beta_schedule, schedule_fn_kwargs, ddim_sampling_eta, auto_normalize.

    Raises:
        ConfigError: For options that the original leaves without effect.
    """

    def __init__(self, model: nn.Module, vb_loss_weight: float = 0.001, **options: Any) -> None:
        given = {"objective": "pred_noise", **options}
        lost = {"offset_noise_strength": 0.0, "min_snr_loss_weight": False}
        for name, default in (("objective", "pred_noise"), *lost.items()):
            if given.get(name, default) != default:
                raise ConfigError(
                    f"With a learned variance {name}={given[name]!r} has no effect in"
                    " denoising-diffusion-pytorch, so it is refused here. Leave it out."
                )
        if getattr(model, "self_condition", False):
            raise ConfigError("A learned variance does not go with self_condition=True there.")
        self.vb_loss_weight = vb_loss_weight  # before the process is made, which reads it
        super().__init__(model, **given)
