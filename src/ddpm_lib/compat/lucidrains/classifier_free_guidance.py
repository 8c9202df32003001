"""`Unet` and `GaussianDiffusion` of denoising_diffusion_pytorch.classifier_free_guidance: with
classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddpm_lib.compat.lucidrains.peer_networks import PeerNetwork, time_features
from ddpm_lib.compat.lucidrains.peer_parts import BETA_SCHEDULES, OBJECTIVES, make_process
from ddpm_lib.compat.lucidrains.peer_process import PeerProcess
from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.keywords import answers_wrong_keywords
from ddpm_lib.nn import LucidrainsUnet


class Unet(PeerNetwork):
    """The network with classes, made of our `LucidrainsUnet`.

    Args:
        dim: Base number of channels.
        num_classes: Number of classes.
        cond_drop_prob: Probability of hiding the class in training.
        init_dim: Width of the first level; None for dim.
        out_dim: Channels of the output; None for those of the images, twice as many with
            learned_variance.
        dim_mults: Width below each level as a multiple of dim.
        channels: Channels of the images.
        learned_variance: Whether the output also says the variance.
        learned_sinusoidal_cond: Whether the frequencies of the time are learned.
        random_fourier_features: Whether they are random and fixed.
        learned_sinusoidal_dim: How many sines and cosines those make.
        attn_dim_head: Features per head of the attention in the middle.
        attn_heads: Its heads.

    Raises:
        ValueError: If the arguments do not fit each other.
    """

    @answers_wrong_keywords
    def __init__(
        self,
        dim: int,
        num_classes: int,
        cond_drop_prob: float = 0.5,
        init_dim: int | None = None,
        out_dim: int | None = None,
        dim_mults: tuple[int, ...] = (1, 2, 4, 8),
        channels: int = 3,
        learned_variance: bool = False,
        learned_sinusoidal_cond: bool = False,
        random_fourier_features: bool = False,
        learned_sinusoidal_dim: int = 16,
        attn_dim_head: int = 32,
        attn_heads: int = 4,
    ) -> None:
        network = LucidrainsUnet(
            dim,
            tuple(dim_mults),
            channels,
            out_dim if out_dim is not None else channels * (2 if learned_variance else 1),
            init_dim=init_dim,
            attention_levels=(),
            mid_heads=attn_heads,
            mid_head_dim=attn_dim_head,
            memory_tokens=0,
            downsampling="conv",
            time_features=time_features(learned_sinusoidal_cond, random_fourier_features),
            fourier_dim=learned_sinusoidal_dim,
            num_classes=num_classes,
            class_drop_prob=cond_drop_prob,
        )
        super().__init__(network)
        self.cond_drop_prob = cond_drop_prob

    def forward(
        self,
        x: Tensor,
        time: Tensor,
        classes: Tensor,
        cond_drop_prob: float | None = None,
        cond_keep_mask: Tensor | None = None,
    ) -> Tensor:
        """Run the network.

        Args:
            x: Noisy images (b, channels, h, w) in [-1, 1] units.
            time: Times (b,), counted from 0.
            classes: Class numbers (b,).
            cond_drop_prob: Probability of hiding the class; None for that of the network.
            cond_keep_mask: Booleans (b,): whose class is shown, instead of a draw.
        """
        hidden = self.cond_drop_prob if cond_drop_prob is None else cond_drop_prob
        keep = cond_keep_mask
        if keep is None:
            keep = torch.rand(len(x), device=x.device) >= hidden
        shown = torch.where(keep.to(classes.device).bool(), classes, -1)
        return self.network(x, time, {"class_label": shown})

    def forward_with_cond_scale(
        self,
        x: Tensor,
        time: Tensor,
        classes: Tensor,
        cond_scale: float = 1.0,
        rescaled_phi: float = 0.0,
        remove_parallel_component: bool = True,
        keep_parallel_frac: float = 0.0,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Return the guided output, and for cond_scale ≠ 1 also that without a class.

        Args:
            x: As for `forward`.
            time: As for `forward`.
            classes: As for `forward`.
            cond_scale: Strength of the guidance; 1 is none.
            rescaled_phi: How far to pull the spread back to that of the conditional output.
            remove_parallel_component: Whether to guide at a right angle to the output alone.
            keep_parallel_frac: The share of the rest that is kept.
        """
        output = self.forward(x, time, classes, cond_drop_prob=0.0)
        if cond_scale == 1:
            return output
        null = self.forward(x, time, classes, cond_drop_prob=1.0)
        parallel = keep_parallel_frac if remove_parallel_component else 1.0
        return guided(output, null, cond_scale, rescaled_phi, parallel), null


def guided(cond: Tensor, null: Tensor, scale: float, phi: float, parallel: float) -> Tensor:
    """Return cond + (scale − 1)·u, u what of the outputs' difference is not parallel to cond.

    Over-exposure comes from the parallel part (Sadat et al. 2024).

    Args:
        cond: Output with the class, (b, c, h, w).
        null: Output without.
        scale: Strength.
        phi: Share of the result whose spread is set to that of cond (Lin et al. 2024, §3.4).
        parallel: Share of the parallel part that is kept; 1 is the usual guidance.
    """
    difference = (cond - null).double()
    unit = F.normalize(cond.double().flatten(1), dim=1).view_as(cond)
    along = (difference * unit).flatten(1).sum(1).view(-1, *[1] * (cond.ndim - 1)) * unit
    update = (difference - along * (1 - parallel)).to(cond.dtype)
    result = cond + (scale - 1) * update
    if phi == 0:
        return result
    dims = tuple(range(1, cond.ndim))
    ratio = cond.std(dims, keepdim=True) / result.std(dims, keepdim=True)
    return result * (phi * ratio + 1 - phi)


class _Guided(nn.Module):
    """A network that is guided inside, for samplers that know nothing of it."""

    def __init__(self, network: nn.Module, scale: float, phi: float) -> None:
        super().__init__()
        self.network, self.scale, self.phi = network, scale, phi
        self.conditioners = network.conditioners

    def forward(self, x: Tensor, t: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        labels = cond["class_label"]
        output = self.network(x, t, cond)
        if self.scale == 1:
            return output
        null = self.network(x, t, {"class_label": torch.full_like(labels, -1)})
        return guided(output, null, self.scale, self.phi, 0.0)


class GaussianDiffusion(PeerProcess):
    """The process with classes, made of our `GaussianDiffusion`.

    Args:
        model: A `Unet` of this module.
        image_size: Side of the images.
        timesteps: Number of noise levels T.
        sampling_timesteps: Steps of sampling: all T make it ancestral, fewer DDIM.
        objective: "pred_noise", "pred_x0" or "pred_v".
        beta_schedule: "linear" or "cosine".
        ddim_sampling_eta: Noise of DDIM.
        offset_noise_strength: Standard deviation of a further noise, constant over each channel.
        min_snr_loss_weight: Whether to cap the weight of nearly clean images in the loss.
        min_snr_gamma: At this signal-to-noise ratio.
        use_cfg_plus_plus: Has no counterpart: True is refused.

    Raises:
        ValueError: If the arguments do not fit each other.
        ConfigError: For what has no counterpart.
    """

    @answers_wrong_keywords
    def __init__(
        self,
        model: Unet,
        *,
        image_size: int,
        timesteps: int = 1000,
        sampling_timesteps: int | None = None,
        objective: str = "pred_noise",
        beta_schedule: str = "cosine",
        ddim_sampling_eta: float = 1.0,
        offset_noise_strength: float = 0.0,
        min_snr_loss_weight: bool = False,
        min_snr_gamma: float = 5,
        use_cfg_plus_plus: bool = False,
    ) -> None:
        if use_cfg_plus_plus:
            raise ConfigError(
                "use_cfg_plus_plus=True (CFG++) has no counterpart here, where guidance is"
                " classifier-free guidance at a right angle to the output. Leave it out."
            )
        if not isinstance(model, Unet):
            raise TypeError(
                "model must be the Unet of this module, which knows classes; got"
                f" {type(model).__name__}."
            )
        process = make_process(
            model,
            image_size=image_size,
            timesteps=timesteps,
            schedule=BETA_SCHEDULES[beta_schedule],
            parametrization=OBJECTIVES[objective],
            gamma=min_snr_gamma if min_snr_loss_weight else None,
            offset_noise=offset_noise_strength,
        )
        super().__init__(model, process, sampling_timesteps, ddim_sampling_eta, True)
        self.image_size, self.objective = image_size, objective
        self.cond_drop_prob = model.cond_drop_prob
        self.offset_noise_strength = offset_noise_strength

    def p_losses(
        self,
        x_start: Tensor,
        t: Tensor,
        *,
        classes: Tensor,
        noise: Tensor | None = None,
        cond_keep_mask: Tensor | None = None,
        loss_reduction: str = "mean",
    ) -> Tensor:
        """Return the loss of images at given times.

        Args:
            x_start: Images (b, c, h, w) in [-1, 1].
            t: Times 0 … T − 1, (b,).
            classes: Class numbers (b,).
            noise: ε; drawn where it is not given.
            cond_keep_mask: Booleans (b,): whose class is shown. Default: drawn.
            loss_reduction: "mean", or "none" for one loss per image.
        """
        keep = cond_keep_mask
        if keep is None:
            keep = torch.rand(len(x_start)) >= self.cond_drop_prob
        shown = torch.where(keep.to(classes.device).bool(), classes, -1)
        return self._loss(x_start, t, {"class_label": shown}, noise, loss_reduction)

    def forward(
        self,
        img: Tensor,
        *,
        classes: Tensor,
        times: Tensor | None = None,
        noise: Tensor | None = None,
        cond_keep_mask: Tensor | None = None,
        loss_reduction: str = "mean",
    ) -> Tensor:
        """Return the loss of training images, at random times where none are given.

        Args:
            img: Images (b, c, h, w) in [0, 1].
            classes: As for `p_losses`.
            times: Times 0 … T − 1, (b,).
            noise: As for `p_losses`.
            cond_keep_mask: As for `p_losses`.
            loss_reduction: As for `p_losses`.
        """
        times = self.random_times(len(img)) if times is None else times
        rest: dict[str, Any] = {"noise": noise, "cond_keep_mask": cond_keep_mask}
        rest |= {"loss_reduction": loss_reduction, "classes": classes}
        return self.p_losses(self.normalize(img), times, **rest)

    def sample(self, classes: Tensor, cond_scale: float = 6.0, rescaled_phi: float = 0.7) -> Tensor:
        """Draw an image of each class given; torch.manual_seed names them.

        Args:
            classes: Class numbers (b,).
            cond_scale: Strength of the guidance; 1 is none.
            rescaled_phi: How far to pull the spread back to that of the conditional output.

        Returns:
            float32 (b, c, h, w) in [0, 1].
        """
        network = _Guided(self.process.model, cond_scale, rescaled_phi)
        labels = {"class_label": classes}
        return self._draw(len(classes), False, cond=labels, model=network)

    def interpolate(
        self, x1: Tensor, x2: Tensor, classes: Tensor, t: int | None = None, lam: float = 0.5
    ) -> Tensor:
        """Return images between pairs, guided as by default in `sample`.

        Args:
            x1: Images (b, c, h, w) in [-1, 1], as there.
            x2: Like x1.
            classes: Class numbers (b,).
            t: The time to mix at, 0 … T − 1; None for the last.
            lam: Where to stop between them, in [0, 1].
        """
        network = _Guided(self.process.model, 6.0, 0.7)
        return self._interpolate(x1, x2, t, lam, {"class_label": classes}, network)
