"""Pairs of noise levels whose answers are compared: how they close in while a network is tuned for
consistency (Geng et al. 2024, arXiv 2406.14548, §3).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor

from ddpm_lib.core.device_copy import to_device
from ddpm_lib.core.registry import unknown_name
from ddpm_lib.parametrization import Parametrization
from ddpm_lib.schedules import Schedule
from ddpm_lib.schedules.interpolation import times_of

CONSISTENCY = "consistency"
"""The loss, and the sampler of networks that were trained with it."""


@dataclass(frozen=True)
class ConsistencyPairs:
    """Which r belongs to t, and how two answers are compared.

    Noise is measured as t̃ = σ/α, as Geng et al. do. In stage k = 0, 1, … of a training r̃ is
    t̃·(1 − n(t̃)/q^(k+1)), at least 0, with n(t̃) = 1 + κ·sigmoid(−b·t̃) (their §3.2): pairs close in
    from stage to stage, and are wider at low noise. An r below level 1, the cleanest that a network
    is told, counts as clean data, whose answer is the image itself.

    Args:
        stages: Number of stages, all of one length.
        q: Factor by which the distance of a pair shrinks from stage to stage, > 1.
        kappa: κ ≥ 0, how much wider pairs are at low noise.
        b: Noise at which that ends, b > 0.
        huber: c > 0 of the pseudo-Huber distance √(d² + c²) − c, where d² is the mean squared
            difference of two answers over the values of an image (Song & Dhariwal 2024, §3.3, where
            c = 0.00054·√(number of values) for the sum).

    Raises:
        ValueError: If one is out of range.
    """

    stages: int = 4
    q: float = 4.0
    kappa: float = 8.0
    b: float = 1.0
    huber: float = 0.00054

    def __post_init__(self) -> None:
        for name, fits, wanted in (
            ("stages", self.stages >= 1 and float(self.stages).is_integer(), "a whole number ≥ 1"),
            ("q", 1 < self.q < math.inf, "a number > 1"),
            ("kappa", 0 <= self.kappa < math.inf, "a number ≥ 0"),
            ("b", 0 < self.b < math.inf, "a number > 0"),
            ("huber", 0 < self.huber < math.inf, "a number > 0"),
        ):
            if not fits:
                usual = {f.name: f.default for f in fields(self)}[name]
                raise ValueError(
                    f"loss_options of loss='consistency': {name} must be {wanted}, got"
                    f" {getattr(self, name)}. {usual} is usual."
                )
        object.__setattr__(self, "stages", int(self.stages))
        if self.q ** (-self.stages) < 1e-9:
            raise ValueError(
                f"loss_options of loss='consistency': after {self.stages} stages of q={self.q:g}"
                " the two levels of a pair are the same in float32. Ask for fewer stages, or a"
                " smaller q."
            )

    @classmethod
    def of(cls, options: Mapping[str, float] | None) -> ConsistencyPairs:
        """Build it from `loss_options`.

        Raises:
            ValueError: For an unknown name or a value out of range.
        """
        known = [f.name for f in fields(cls)]
        for name in options or {}:
            if name not in known:
                raise ValueError(unknown_name("option of loss='consistency'", name, known))
        return cls(**(options or {}))  # type: ignore[arg-type]

    def stage(self, progress: float) -> int:
        """Return the stage, 0 … stages − 1, after a part of the training in [0, 1]."""
        return min(max(int(progress * self.stages), 0), self.stages - 1)

    def partner(self, noise: Tensor, stage: int) -> Tensor:
        """Return r̃ for t̃ = σ/α, float64, in a stage counted from 0."""
        shrink = self.q ** -(stage + 1.0) * (1.0 + self.kappa * torch.sigmoid(-self.b * noise))
        return noise * (1.0 - shrink).clamp(min=0.0)


def pairs_of_loss(loss: str, options: Mapping[str, float] | None) -> ConsistencyPairs | None:
    """Return the pairs of loss="consistency", None for the others.

    Raises:
        ValueError: For options of another loss, an unknown one, or a value out of range.
    """
    if loss == CONSISTENCY:
        return ConsistencyPairs.of(options)
    if options:
        raise ValueError(
            f"loss={loss!r} takes no loss_options; got {', '.join(options)}. Leave them out, or use"
            " loss='consistency'."
        )
    return None


class Pairs(NamedTuple):
    """The pairs of a batch: α and σ of both levels and whether r is clean data (b, 1, …), the times
    that the network is told and 1/(t̃ − r̃) (b,).
    """

    every_r_is_clean: bool
    alpha: Tensor
    sigma: Tensor
    alpha_r: Tensor
    sigma_r: Tensor
    clean: Tensor
    time: Tensor
    time_r: Tensor
    weight: Tensor


def pairs_of(
    schedule: Schedule,
    parametrization: Parametrization,
    pairs: ConsistencyPairs,
    t: Tensor,
    progress: float,
    like: Tensor,
) -> Pairs:
    """Look up both levels of each pair.

    The weight 1/(t̃ − r̃) is for networks whose answer is x_t and a correction that vanishes with the
    noise (v, edm). Where the network answers with the image itself (x0), the same weight would let
    the cleanest levels, at which it is never exact, rule its gradient; so it is multiplied by
    σ/|c_out|, by which the gradient of the output is that of a network that predicts v.

    Args:
        schedule: The noise levels.
        parametrization: How an output stands for the clean image.
        pairs: Says which r belongs to t.
        t: Levels in 1 … T, (b,) on the CPU.
        progress: The part of the training that is done, in [0, 1].
        like: Images (b, c, *spatial), whose device and precision the tables get.
    """
    alpha, sigma = schedule.gather(t)
    table = schedule.log_snr
    # Pure noise has no finite t̃; it is paired as the noisiest level that has one.
    most = float(table[torch.isfinite(table)].min())
    noise = (sigma / alpha).clamp(max=math.exp(-0.5 * most))
    partner = pairs.partner(noise, pairs.stage(progress))
    clean = partner < float(schedule.sigma[1] / schedule.alpha[1]) * (1.0 - 1e-9)
    partner = torch.where(clean, 0.0, partner)
    alpha_r = (1.0 + partner.square()).rsqrt()
    log_snr = -2.0 * torch.where(clean, noise, partner).log()
    time_r = torch.where(clean, 1.0, times_of(table, log_snr)) - 1.0
    rows = [alpha, sigma, alpha_r, partner * alpha_r, clean.double()]
    share = (sigma / parametrization.c_out(alpha, sigma).abs()).clamp(max=1.0)
    rows += [(t - 1).double(), time_r, share / (noise - partner)]
    # One transfer for everything that depends on t; the arithmetic on the tables is float64.
    found = list(to_device(torch.stack(rows).to(like.dtype), like.device))
    wide = (row.view(-1, *[1] * (like.ndim - 1)) for row in found[:5])
    return Pairs(bool(clean.all()), *wide, *found[5:])
