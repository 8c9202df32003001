"""Guidance by a worse version of the same process (Karras et al. 2024): an earlier checkpoint,
another average, a smaller network.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.spelling import option
from ddpm_lib.core.text import short
from ddpm_lib.nn.condition_table import data_conditions
from ddpm_lib.process.conditions import Conditioners, class_count, fill_nulls
from ddpm_lib.process.denoiser import Denoiser
from ddpm_lib.process.interface import Process
from ddpm_lib.schedules.levels import Level

if TYPE_CHECKING:
    from ddpm_lib.data.measurements.normalization import Normalization

GUIDE_SCALE = 2.0
"""Strength where none is asked for; Karras et al. 2024 find 1.4 to 2.4 (table 1)."""


@dataclass(frozen=True, eq=False)
class DenoiserPartner:
    """A denoiser as the partner of another one.

    Args:
        denoiser: What guides. It takes those of the conditions that it knows; others that it knows
            are null.
    """

    denoiser: Denoiser

    @property
    def network(self) -> nn.Module:
        """Its network."""
        return self.denoiser.network

    def __call__(
        self, x: Tensor, level: Level, time: Tensor, cond: Mapping[str, Tensor] | None
    ) -> Tensor:
        """Return F for images x_t (b, c, *spatial) at one level, the same shape."""
        known = self.denoiser.conditioners
        own = {k: v for k, v in (cond or {}).items() if known is None or k in known}
        complete = fill_nulls(known, own, x)
        return self.denoiser.raw(x, level.alpha, level.sigma, time, complete)[0]


def partner_of(
    process: Process, guide_by: Any, guide_scale: float | None
) -> tuple[DenoiserPartner | None, float]:
    """Return the partner and the strength that a caller of `sample` asked for.

    Args:
        process: What is guided.
        guide_by: A `GaussianDiffusion` of the same process, or a network for this one; None for
            none.
        guide_scale: Strength; None for `GUIDE_SCALE`.

    Raises:
        ConfigError: If the partner belongs to another process, or a strength has no partner.
        TypeError: If it is neither process nor network.
    """
    check_scale(guide_by, guide_scale)
    if guide_by is None:
        return None, 1.0
    mine = process.denoiser
    if isinstance(guide_by, nn.Module) and not hasattr(guide_by, "denoiser"):
        theirs = mine.using(guide_by)
    else:
        theirs = _denoiser_of(guide_by)
        other = getattr(guide_by, "diffusion", guide_by)
        names = process.class_names, getattr(other, "class_names", None)
        units = process.normalization, getattr(other, "normalization", None)
        _refuse(_differences(mine, theirs) + _other_names(*names) + _other_units(*units))
    _refuse(_unknown_conditions(mine.conditioners, theirs.conditioners))
    if mine.device != theirs.device:
        raise ConfigError(
            f"{option('guide_by')} is on {theirs.device}, what it is to guide on {mine.device}."
            f" Move it there: .to({str(mine.device)!r})."
        )
    return DenoiserPartner(theirs), GUIDE_SCALE if guide_scale is None else float(guide_scale)


def check_scale(guide_by: Any, guide_scale: float | None) -> None:
    """Refuse a strength without a partner, or one that is no number.

    Raises:
        ConfigError: Naming the option that is missing or wrong.
    """
    if guide_by is None and guide_scale is not None:
        raise ConfigError(
            f"{option('guide_scale', guide_scale)} needs a worse version to move away from: name an"
            f" earlier checkpoint, other weights or another run with {option('guide_by')}."
        )
    if guide_scale is not None and not math.isfinite(guide_scale):
        raise ConfigError(f"{option('guide_scale')} must be a finite number; got {guide_scale}.")


def _denoiser_of(guide_by: Any) -> Denoiser:
    denoiser = getattr(getattr(guide_by, "diffusion", guide_by), "denoiser", None)
    if not isinstance(denoiser, Denoiser):
        raise TypeError(
            f"{option('guide_by')} must be a GaussianDiffusion, such as"
            " load_run('runs/mine', checkpoint=5000).diffusion, or a network of this process; got"
            f" {short(guide_by)}."
        )
    return denoiser


def _refuse(differences: list[str]) -> None:
    if differences:
        raise ConfigError(
            f"{option('guide_by')} is of another process: {'; '.join(differences)}. Only the same"
            " process guides: an earlier checkpoint or another average of the run, or a run that"
            " differs in its network alone."
        )


def _differences(mine: Denoiser, theirs: Denoiser) -> list[str]:
    found = [
        f"{what} {other} instead of {own}"
        for what, own, other in (
            ("images of shape", mine.shape, theirs.shape),
            ("timesteps", mine.schedule.timesteps, theirs.schedule.timesteps),
            ("parametrization", mine.parametrization, theirs.parametrization),
        )
        if own != other
    ]
    if mine.jumps != theirs.jumps:
        answers = ["the mean of clean images", "the end of the trajectory"]
        found.append(f"answers with {answers[theirs.jumps]} instead of {answers[mine.jumps]}")
    if mine.schedule.timesteps == theirs.schedule.timesteps and not torch.equal(
        mine.schedule.alpha, theirs.schedule.alpha
    ):
        found.append(f"schedule {theirs.schedule} instead of {mine.schedule}")
    return found


def _other_names(mine: tuple[str, ...] | None, theirs: tuple[str, ...] | None) -> list[str]:
    if mine is None or theirs is None or mine == theirs:
        return []
    return [f"classes {', '.join(theirs[:6])} instead of {', '.join(mine[:6])}"]


def _other_units(mine: Normalization | None, theirs: Normalization | None) -> list[str]:
    """Say that values of images stand for other measured values."""
    if mine is None and theirs is None:
        return []
    if mine is not None and theirs is not None:
        from ddpm_lib.data.measurements.normalization import SAME_VALUES

        if mine.same_map(theirs, SAME_VALUES):
            return []
    own, other = ("pictures" if one is None else one.line() for one in (mine, theirs))
    return [f"{other} instead of {own}"]


def _unknown_conditions(mine: Conditioners | None, theirs: Conditioners | None) -> list[str]:
    """Say which conditions the partner needs and would not get, or would take for others."""
    if mine is None or theirs is None:
        return []
    found = [
        f"it needs the condition {name!r}"
        for name, conditioner in theirs.items()
        if name not in mine and not conditioner.optional
    ]
    found += _other_meanings(mine, theirs)
    counts = class_count(mine), class_count(theirs)
    if None not in counts and counts[0] != counts[1]:
        found.append(f"{counts[1]} classes instead of {counts[0]}")
    return found


def _other_meanings(mine: Conditioners, theirs: Conditioners) -> list[str]:
    """Say which conditions of the data would mean something else to the partner; how each scales
    the same numbers is its own affair.
    """
    known, other = data_conditions(mine), data_conditions(theirs)
    found = []
    for name in known.keys() & other.keys():
        a, b = known[name], other[name]
        own = {"drop_prob", *a.fits}
        told = [(a.spec.get(k), b.spec.get(k)) for k in {*a.spec, *b.spec} - own]
        if any(one != two for one, two in told if None not in (one, two)):
            found.append(f"the condition {name!r} is {b.words} instead of {a.words}")
    return sorted(found)
