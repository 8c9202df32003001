"""Guidance without a classifier (Ho & Salimans 2022) and by a worse network (Karras et al. 2024),
on the network's raw output, and with a classifier (Dhariwal & Nichol 2021).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from ddpm_lib.core.spelling import option
from ddpm_lib.schedules.levels import Level

LogProb = Callable[[Tensor, Tensor], Tensor]
"""log p(y | x_t), differentiable in x_t: called with x_t (b, c, *spatial) in [-1, 1] units and the
t that the network gets (b,), counted from 0; returns (b,).
"""


class Partner(Protocol):
    """A network that knows less than the one it guides, and the same process."""

    @property
    def network(self) -> nn.Module:
        """The network; it is put in eval mode while it guides."""

    def __call__(
        self, x: Tensor, level: Level, time: Tensor, cond: Mapping[str, Tensor] | None
    ) -> Tensor:
        """Return its output F for images x_t (b, c, *spatial) at one level, the same shape."""


class Measurement(Protocol):
    """Something measured of the images, and how likely it is."""

    @property
    def differentiates(self) -> bool:
        """Whether x̂_0 must be differentiable in x_t."""

    def rows(self, start: int, stop: int) -> Measurement:
        """Return the part that belongs to the images start … stop − 1."""

    def shift(self, x: Tensor, x0: Tensor, level: Level) -> Tensor:
        """Return what it adds to x̂_0, (σ²/α)·∇log p(y|x_t), for x_t, x̂_0 as a function of it, and
        their level.
        """


@dataclass(frozen=True, eq=False)
class ClassLogProb:
    """log p(y | x_t) of a classifier that returns logits.

    Args:
        classifier: Called as classifier(x_t, t); returns logits (b, classes). It should know noisy
            images.
        label: The class asked for: one for all images, or one per image, (n,).
    """

    classifier: Callable[[Tensor, Tensor], Tensor]
    label: int | Tensor

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """Return log p(label | x_t), shape (b,)."""
        log = torch.log_softmax(self.classifier(x, t), 1)
        label = torch.as_tensor(self.label, device=log.device).expand(len(log))
        return log.gather(1, label[:, None])[:, 0]

    def rows(self, start: int, stop: int) -> ClassLogProb:
        """Return the part that belongs to the images start … stop − 1."""
        one = not isinstance(self.label, Tensor) or self.label.ndim == 0
        return self if one else replace(self, label=self.label[start:stop])  # type: ignore[index]


@dataclass(frozen=True)
class Guidance:
    """F = F_null + scale·(F_cond − F_null) + (partner_scale − 1)·(F_cond − F_partner), and
    ε̂ − σ·classifier_scale·∇log p(y|x_t).

    x̂_0 and ε̂ are linear in F with the same x_t, so that guiding F guides them alike. Both halves
    run as one batch of twice the size; where guidance is off the network runs once, on the
    condition.

    A partner is an earlier or smaller version of the network (autoguidance, Karras et al. 2024):
    where both are wrong in the same direction, the worse one more so, moving away from it moves
    towards the data, without a loss of variety. Alone it gives their
    F_partner + partner_scale·(F_cond − F_partner); with classes both differences add up. It costs
    one more call of the partner at each level of the interval.

    With a classifier ε̂ becomes −σ times the score of p(x_t|y), which is right for every
    parametrization and sampler (Dhariwal & Nichol 2021, alg. 2; their alg. 1, the mean shifted by
    variance·∇log p, is its limit for short steps). In pure noise (α = 0) there is nothing to
    classify, and ∇log p = 0.

    Single conditions have scales of their own (`parts`): with F_i the output without condition i
    alone, each adds (scale_i − 1)·(F_cond − F_i), which for one condition is the same guidance. It
    costs one more call of the network per condition.

    Args:
        scale: 1 is no guidance, 0 ignores the condition.
        interval: Guide only at levels with lo < t/T ≤ hi (Kynkäänniemi et al. 2024).
        rescale: φ in [0, 1]: pull the standard deviation of the guided output back to that of the
            conditional one, against over-exposure (Lin et al. 2024, §3.4). 0.7 is their choice.
        classifier: log p(y|x_t); the interval holds for it as well.
        classifier_scale: Its strength: samples of p(x)·p(y|x)^scale, about; 0 ignores it.
        partner: The worse network to move away from; the interval and the rescaling hold for it as
            well.
        partner_scale: How far: 1 is not at all, 2 twice as far from it.
        measured: What was measured of the images (`GaussianDiffusion.restore`): its likelihood is
            differentiated through the network and all other guidance but the classifier's. It acts
            at every level.
        parts: Names of conditions, each with a scale of its own.

    Raises:
        ValueError: If a scale is not finite, the interval not 0 ≤ lo < hi ≤ 1, or rescale outside
            [0, 1].
    """

    scale: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)
    rescale: float = 0.0
    classifier: LogProb | None = None
    classifier_scale: float = 1.0
    partner: Partner | None = None
    partner_scale: float = 1.0
    measured: Measurement | None = None
    parts: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        for name, value in (
            ("guidance_scale", self.scale),
            ("classifier_scale", self.classifier_scale),
            ("partner_scale", self.partner_scale),
            *((f"guidance_scale of {name!r}", scale) for name, scale in self.parts),
        ):
            if not math.isfinite(value):
                shown = option(name) if " " not in name else name
                raise ValueError(f"{shown} must be a finite number; got {value}.")
        low, high = self.interval
        if not 0.0 <= low < high <= 1.0:
            raise ValueError(
                f"guidance_interval must be 0 ≤ lo < hi ≤ 1 (fractions of T), got {self.interval}."
            )
        if not 0.0 <= self.rescale <= 1.0:
            raise ValueError(
                f"guidance_rescale must be in [0, 1], got {self.rescale}. 0.7 is a common value."
            )

    def active(self, fraction: float) -> bool:
        """Say whether to guide by conditions at a level with t/T = fraction."""
        return self.scale != 1.0 and self._inside(fraction)

    def parts_at(self, fraction: float) -> tuple[str, ...]:
        """Return the conditions that guide on their own at a level with t/T = fraction."""
        if not self._inside(fraction):
            return ()
        return tuple(name for name, scale in self.parts if scale != 1.0)

    def partner_at(self, fraction: float) -> Partner | None:
        """Return the partner that guides at a level with t/T = fraction, None where none does."""
        return self.partner if self.partner_scale != 1.0 and self._inside(fraction) else None

    def changes_anything(self, fractions: Iterable[float]) -> bool:
        """Say whether conditions, a classifier or a partner guide at any of these t/T."""
        strong = (
            self.scale != 1.0
            or any(scale != 1.0 for _, scale in self.parts)
            or (self.classifier is not None and self.classifier_scale != 0)
            or (self.partner is not None and self.partner_scale != 1.0)
        )
        return strong and any(self._inside(fraction) for fraction in fractions)

    def _inside(self, fraction: float) -> bool:
        return self.interval[0] < fraction <= self.interval[1]

    def rows(self, start: int, stop: int) -> Guidance:
        """Return the guidance of the images start … stop − 1, where the classifier has one class
        per image, or something was measured of each.
        """
        own = getattr(self.classifier, "rows", None)
        part = self if own is None else replace(self, classifier=own(start, stop))
        measured = None if self.measured is None else self.measured.rows(start, stop)
        return part if measured is None else replace(part, measured=measured)

    def shift(self, x: Tensor, level: Level, time: Tensor, fraction: float) -> Tensor | float:
        """Return what the classifier adds to x̂_0, (σ²/α)·classifier_scale·∇log p(y|x_t), for
        images at one level.

        Args:
            x: x_t, (b, c, *spatial).
            level: Its level, noisy.
            time: What the classifier is told of it, (b,).
            fraction: t/T.

        Raises:
            ValueError: If the classifier does not return one number per image, or none that depends
                on x_t.
        """
        if (
            self.classifier is None
            or self.classifier_scale == 0
            or level.alpha == 0
            or not self._inside(fraction)
        ):
            return 0.0
        # Sampling runs in inference mode, whose tensors no gradient can pass.
        with torch.inference_mode(False), torch.enable_grad():
            free = x.detach().clone().requires_grad_()
            log = self.classifier(free, time.clone())
            if log.shape != x.shape[:1] or not log.requires_grad:
                raise ValueError(
                    f"A classifier must return log p(y|x_t), shape ({len(x)},), differentiable in"
                    " x_t; got"
                    f" {tuple(log.shape)}{'' if log.requires_grad else ' without a gradient'}. For"
                    " logits use ClassLogProb(classifier, label)."
                )
            (gradient,) = torch.autograd.grad(log.sum(), free)
        return (level.sigma**2 / level.alpha * self.classifier_scale) * gradient

    def combine(
        self,
        cond: Tensor,
        null: Tensor | None = None,
        partner: Tensor | None = None,
        without: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Combine outputs, all (b, c, *spatial).

        Args:
            cond: The network's with the condition.
            null: Without it; None where conditions do not guide.
            partner: The partner's; None where none guides.
            without: By condition that guides on its own, the network's without it alone.
        """
        guided = cond if null is None else null + self.scale * (cond - null)
        scales = dict(self.parts)
        for name, other in (without or {}).items():
            guided = guided + (scales[name] - 1.0) * (cond - other)
        if partner is not None:
            guided = guided + (self.partner_scale - 1.0) * (cond - partner)
        if not self.rescale:
            return guided
        dims = tuple(range(1, cond.ndim))
        wanted, spread = (v.std(dims, correction=0, keepdim=True) for v in (cond, guided))
        # A constant output, or one of a single value, has no spread to restore.
        ratio = torch.where(spread > 1e-12, wanted / spread, 1.0)
        return guided * (self.rescale * ratio + (1.0 - self.rescale))
