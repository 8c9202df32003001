"""The denoiser: a network, and all that turns its output into a clean image."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from ddpm_lib.core.device_copy import to_device
from ddpm_lib.core.errors import ConfigError
from ddpm_lib.guidance import Guidance, Measurement
from ddpm_lib.parametrization import N, Parametrization
from ddpm_lib.process.clipping import CLIPS
from ddpm_lib.process.conditions import Cond, Conditioners, nulls
from ddpm_lib.process.network_calls import call_network, device_of
from ddpm_lib.samplers import Prediction
from ddpm_lib.schedules import Schedule
from ddpm_lib.schedules.levels import Level
from ddpm_lib.variance import Variance


@dataclass(frozen=True, eq=False)
class Denoiser:
    """A network and what its output means; the only place that calls a network.

    It has no parameters of its own: `GaussianDiffusion.denoiser` makes one whenever it is asked.

    Args:
        network: Called as network(x, t, cond); see `GaussianDiffusion`.
        conditioners: Of the process's own network: a wrapped one may not show them.
        schedule: The noise levels.
        parametrization: What the network predicts.
        variance: Of the reverse kernel; it says how many output channels the network has.
        clip: What is done to x̂_0 outside the range, an entry of `CLIPS`.
        clip_ratio: Quantile for clip="dynamic".
        shape: Of one image, (c, *spatial).
        jumps: Whether x̂_0 is the end of the trajectory that x_t is on, as loss="consistency" trains
            it to be, and not the mean of the clean images that x_t can come from.
    """

    network: nn.Module
    conditioners: Conditioners | None
    schedule: Schedule
    parametrization: Parametrization
    variance: Variance
    clip: str
    clip_ratio: float
    shape: tuple[int, ...]
    jumps: bool = False

    @property
    def device(self) -> torch.device:
        """Where the network is (the CPU for one without parameters)."""
        return device_of(self.network)

    def using(self, network: nn.Module | None) -> Denoiser:
        """Return the same with another network (wrapped or averaged, say); itself for None."""
        return self if network is None else replace(self, network=network)

    def clipping(self, clip: str | None) -> Denoiser:
        """Return the same with another clip, an entry of `CLIPS`; itself for None."""
        return self if clip is None else replace(self, clip=clip)

    def check_means(self, what: str, instead: str = "") -> None:
        """Refuse what takes x̂_0 for the mean of clean images where it is the end of a trajectory.

        Args:
            what: It, as the subject of a sentence.
            instead: What could be used, with a comma and "or" behind it.

        Raises:
            ConfigError: If this network jumps.
        """
        if self.jumps:
            raise ConfigError(
                "This network was tuned for consistency: it answers with the end of the trajectory,"
                f" and {what} takes that for the mean of clean images. Use {instead}the run that it"
                " was tuned from."
            )

    def predict(
        self, x: Tensor, level: Level, cond: Cond | None = None, guidance: Guidance | None = None
    ) -> Prediction:
        """Predict the clean image and the noise in images that are all at one level.

        `GaussianDiffusion.denoise` describes the order of the steps.

        Args:
            x: Noisy images (b, c, *spatial) in [-1, 1] units.
            level: Their level. At level 0 the answer is (x, 0), and the network is not called.
            cond: Conditions by name, (b, …), on the device of x.
            guidance: By conditions, by a classifier, by a partner.
        """
        if level.sigma == 0:
            zero = torch.zeros_like(x)
            return Prediction(x, zero, partial(self.variance, raw=torch.zeros_like(x)))
        # Below level 1 a network knows nothing cleaner.
        elapsed = max(level.t - 1.0, 0.0)
        if isinstance(elapsed, Tensor):  # a level that something is learned through
            time = elapsed.to(x.device, torch.float32).expand(len(x))
        else:
            time = torch.full((len(x),), elapsed, device=x.device, dtype=torch.float32)
        guidance = guidance or Guidance()
        if guidance.measured is None:
            x0, raw = self._unclipped(x, level, time, cond, guidance)
        else:
            x0, raw = self._measured(x, level, time, cond, guidance, guidance.measured)
        x0 = CLIPS[self.clip](x0, self.clip_ratio)
        eps = (x - level.alpha * x0) / level.sigma
        return Prediction(x0, eps, partial(self.variance, raw=raw))

    def estimate(
        self, x: Tensor, alpha: Tensor, sigma: Tensor, t: Tensor, cond: Cond | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return x̂_0 and the raw variance for images each at its own level, unguided.

        Args:
            x: Noisy images (b, c, *spatial) in [-1, 1] units.
            alpha: α of their levels, (b, 1, …).
            sigma: σ of their levels, (b, 1, …).
            t: The levels, (b,) on the CPU.
            cond: Conditions by name, (b, …), on the device of x.
        """
        time = to_device((t - 1.0).clamp(min=0.0).float(), x.device)
        output, raw = self.raw(x, alpha, sigma, time, cond)
        return self.clean(x, output, alpha, sigma), raw

    def raw(
        self,
        x: Tensor,
        alpha: N,
        sigma: N,
        time: Tensor,
        cond: Cond | None,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the network's output F and raw variance (None for a fixed one), unguided.

        Args:
            x: Noisy images (b, c, *spatial) in [-1, 1] units, each at its own level.
            alpha: α of their levels, (b, 1, …), or one number for all.
            sigma: σ of their levels, likewise.
            time: What the network is told of the level, (b,) float32 counting from 0.
            cond: Conditions by name, (b, …), on the device of x.

        Raises:
            ValueError: If the network returns another shape.
        """
        seen = self.parametrization.scale_input(x, alpha, sigma)
        return self._split(self._call(seen, time, cond).to(x.dtype))

    def clean(
        self,
        x: Tensor,
        output: Tensor,
        alpha: N,
        sigma: N,
        *,
        clip: str | None = None,
        shift: Tensor | float = 0,
    ) -> Tensor:
        """Return x̂_0 = c_skip·x_t + c_out·F + shift, clipped like the denoiser or as told."""
        p = self.parametrization
        x0 = p.c_skip(alpha, sigma) * x + p.c_out(alpha, sigma) * output + shift
        return CLIPS[self.clip if clip is None else clip](x0, self.clip_ratio)

    def _unclipped(
        self, x: Tensor, level: Level, time: Tensor, cond: Cond | None, guidance: Guidance
    ) -> tuple[Tensor, Tensor | None]:
        """Return the guided x̂_0 before it is clipped, and the raw variance."""
        output, raw = self._guided(x, level, time, cond, guidance)
        shift = guidance.shift(x, level, time, level.t / self.schedule.timesteps)
        return self.clean(x, output, level.alpha, level.sigma, clip="none", shift=shift), raw

    def _measured(
        self,
        x: Tensor,
        level: Level,
        time: Tensor,
        cond: Cond | None,
        guidance: Guidance,
        measured: Measurement,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the same, moved towards what was measured."""
        # Sampling runs in inference mode, whose tensors no gradient can pass.
        wanted = measured.differentiates
        with torch.inference_mode(False), torch.set_grad_enabled(wanted):
            free = x.detach().clone().requires_grad_(wanted)
            outer = {k: v.clone() for k, v in cond.items()} if cond is not None else None
            x0, raw = self._unclipped(free, level, time.clone(), outer, guidance)
            moved = x0.detach() + measured.shift(free, x0, level)
        return moved, None if raw is None else raw.detach()

    def _guided(
        self, x: Tensor, level: Level, time: Tensor, cond: Cond | None, guidance: Guidance
    ) -> tuple[Tensor, Tensor | None]:
        """Return the guided F, and the raw variance of the condition."""
        fraction = level.t / self.schedule.timesteps
        null: Tensor | None = None
        if guidance.active(fraction):
            output, null, raw = self._both(x, level, time, cond)
        else:
            output, raw = self.raw(x, level.alpha, level.sigma, time, cond)
        partner, without = guidance.partner_at(fraction), dict[str, Tensor]()
        for name in guidance.parts_at(fraction):
            less = {**(cond or {}), **nulls(self.conditioners, {name: (cond or {})[name]})}
            without[name], _ = self.raw(x, level.alpha, level.sigma, time, less)
        if null is None and partner is None and not without:
            return output, raw
        other = None if partner is None else partner(x, level, time, cond)
        return guidance.combine(output, null, other, without), raw

    def _both(
        self, x: Tensor, level: Level, time: Tensor, cond: Cond | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return F with and without the condition, and the raw variance with it, in one call."""
        seen = self.parametrization.scale_input(x, level.alpha, level.sigma)
        null = nulls(self.conditioners, cond)
        both = {name: torch.cat([value, null[name]]) for name, value in (cond or {}).items()}
        pair = self._call(torch.cat([seen, seen]), torch.cat([time, time]), both)
        (output, raw), (other, _) = map(self._split, pair.to(x.dtype).chunk(2))
        return output, other, raw

    def _call(self, x: Tensor, time: Tensor, cond: Cond | None) -> Tensor:
        output = call_network(self.network, x, time, cond)
        got = tuple(output.shape)
        expected = (x.shape[0], self.shape[0] * self.variance.outputs, *x.shape[2:])
        # A wrong shape may broadcast against the target and train on nonsense.
        if got != expected:
            raise ValueError(f"The network returned shape {got}, expected {expected}.")
        return output

    def _split(self, output: Tensor) -> tuple[Tensor, Tensor | None]:
        """Split the network's output into F and the raw variance."""
        if self.variance.outputs == 1:
            return output, None
        return output[:, : self.shape[0]], output[:, self.shape[0] :]
