"""The weight w of ‖x_0 − x̂_0‖² as a function of the signal-to-noise ratio, once for every
parametrization.

The weight of the network's own error ‖F − target‖² follows as w·c_out²: w = SNR is L_simple for a
network that predicts ε (Ho et al. 2020, eq. 14), w = SNR + 1 weighs a network that predicts v
uniformly.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ddpm_lib.core.registry import Registry

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Weighting(ABC):
    """w(SNR); the fields of a subclass are its options."""

    @abstractmethod
    def __call__(self, snr: Tensor) -> Tensor:
        """Return w for the SNRs of levels 1 … T in their order, float64 in [0, ∞); most weights
        look at each SNR alone.
        """

    def between(self, snr: Tensor, fall: Tensor) -> Tensor:
        """Return w in continuous time for SNRs (b,) where −dSNR/d(t/T) = fall; weights that look at
        neighbours define it.
        """
        return self(snr)


def _require_positive(weighting: Weighting, **options: float) -> None:
    for name, value in options.items():
        if not value > 0:
            raise ValueError(
                f"The weighting {type(weighting).__name__} needs {name} > 0, got {value}."
            )


@dataclass(frozen=True)
class Simple(Weighting):
    """w = SNR: uniform in the error of ε, L_simple (Ho et al. 2020, eq. 14)."""

    def __call__(self, snr: Tensor) -> Tensor:
        """Return SNR."""
        return snr


@dataclass(frozen=True)
class MinSNR(Weighting):
    """w = min(SNR, γ): L_simple that stops favouring nearly clean images (Hang et al. 2023, eq. 6).

    Args:
        gamma: The SNR from which on the weight is constant, > 0.
    """

    gamma: float = 5.0

    def __post_init__(self) -> None:
        _require_positive(self, gamma=self.gamma)

    def __call__(self, snr: Tensor) -> Tensor:
        """Return min(SNR, γ)."""
        return snr.clamp(max=self.gamma)


@dataclass(frozen=True)
class Flat(Weighting):
    """w = 1: uniform in the error of x_0."""

    def __call__(self, snr: Tensor) -> Tensor:
        """Return 1."""
        return snr.new_ones(snr.shape)


@dataclass(frozen=True)
class P2(Weighting):
    """w = SNR/(k + SNR)^γ (Choi et al. 2022, eq. 8).

    Args:
        gamma: Exponent, ≥ 0; 0 is L_simple.
        k: Offset of the SNR, > 0.
    """

    gamma: float = 1.0
    k: float = 1.0

    def __post_init__(self) -> None:
        _require_positive(self, k=self.k)
        if self.gamma < 0:
            raise ValueError(f"The weighting P2 needs gamma ≥ 0, got {self.gamma}.")

    def __call__(self, snr: Tensor) -> Tensor:
        """Return SNR/(k + SNR)^γ."""
        return snr / (self.k + snr) ** self.gamma


@dataclass(frozen=True)
class SNRPlusOne(Weighting):
    """w = SNR + 1: uniform in the error of v (Salimans & Ho 2022, §4)."""

    def __call__(self, snr: Tensor) -> Tensor:
        """Return SNR + 1."""
        return snr + 1.0


@dataclass(frozen=True)
class SoftMinSNR(Weighting):
    """w = SNR·γ/(SNR + γ): min-SNR-γ without the kink (Crowson et al. 2024, §4).

    Args:
        gamma: What it tends to for clean images, > 0.
    """

    gamma: float = 5.0

    def __post_init__(self) -> None:
        _require_positive(self, gamma=self.gamma)

    def __call__(self, snr: Tensor) -> Tensor:
        """Return SNR·γ/(SNR + γ)."""
        return snr * self.gamma / (snr + self.gamma)


@dataclass(frozen=True)
class VLB(Weighting):
    """w = ½·T·(SNR_{t−1} − SNR_t)/ln 2: the variational bound in bits/dim with the variance
    fixed_small (Ho et al. 2020, eq. 12).

    At t = 1, where SNR_0 is infinite, the decoder counts as a Gaussian whose variance is that of
    the step 2 → 1.
    """

    def __call__(self, snr: Tensor) -> Tensor:
        """Return half the differences, in bits, times T."""
        first = (1.0 + snr[:1]) / (1.0 - snr[1:2] / snr[:1])  # 1/(σ_1²·τ)
        return torch.cat([first, snr[:-1] - snr[1:]]) * (0.5 * len(snr) / math.log(2.0))

    def between(self, snr: Tensor, fall: Tensor) -> Tensor:
        """Return −½·dSNR/d(t/T)/ln 2, the bound of infinitely many steps (Kingma et al. 2021, eq.
        15).
        """
        return fall * (0.5 / math.log(2.0))


@dataclass(frozen=True)
class Sigmoid(Weighting):
    """w = −dSNR/d(t/T)·S(b − log SNR): the bound, with what nobody sees taken out of it (Kingma &
    Gao 2023, §5; S the sigmoid).

    Args:
        b: The log-SNR from which on levels are too clean to matter.
    """

    b: float = 2.0

    def __call__(self, snr: Tensor) -> Tensor:
        """Return the differences of the SNR times S(b − log SNR)."""
        # SNR_0 is infinite; the first difference stands for the step 0 → 1 as well.
        falls = torch.cat([snr[:1] - snr[1:2], snr[:-1] - snr[1:]]) * len(snr)
        return self.between(snr, falls)

    def between(self, snr: Tensor, fall: Tensor) -> Tensor:
        """Return −dSNR/d(t/T)·S(b − log SNR)."""
        return fall / (1.0 + snr * math.exp(-self.b))


@dataclass(frozen=True)
class EDMWeight(Weighting):
    """w = SNR + 1/σ_d², which is (σ² + σ_d²)/(σσ_d)² for σ → σ/α: uniform in the error of edm's F
    (Karras et al. 2022, table 1).

    Args:
        sigma_data: σ_d of the parametrization "edm", > 0. With 1 it is snr_plus_one.
    """

    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        _require_positive(self, sigma_data=self.sigma_data)

    def __call__(self, snr: Tensor) -> Tensor:
        """Return SNR + 1/σ_d²."""
        return snr + self.sigma_data**-2


WEIGHTINGS: Registry[type[Weighting]] = Registry(
    "weighting",
    {
        "simple": Simple,
        "min_snr": MinSNR,
        "flat": Flat,
        "p2": P2,
        "snr_plus_one": SNRPlusOne,
        "soft_min_snr": SoftMinSNR,
        "vlb": VLB,
        "sigmoid": Sigmoid,
        "edm": EDMWeight,
    },
)


def plot_weightings(
    snr: Tensor,
    names: Sequence[str] | None = None,
    *,
    on: str = "eps",
    extra: Mapping[str, Tensor] | None = None,
) -> Figure:
    """Draw the weights of the squared error over log SNR, each scaled to a mean of 1 over the
    levels.

    Args:
        snr: SNR_1 … SNR_T of a schedule, `schedule.snr[1:]`.
        names: Entries of `WEIGHTINGS`. Default: all.
        on: Whose error is weighed: "eps" or "x0".
        extra: Further weights of the error of x_0 by their names, each like snr: what a run has
            learned, for example.

    Returns:
        A matplotlib figure.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If `on` is something else, or a weight has another shape than snr.
    """
    if on not in ("eps", "x0"):
        raise ValueError(f"on must be 'eps' or 'x0', got {on!r}.")
    curves = {name: WEIGHTINGS[name]()(snr) for name in (WEIGHTINGS if names is None else names)}
    curves.update(extra or {})
    for name, weights in curves.items():
        if weights.shape != snr.shape:
            raise ValueError(
                f"The weights {name!r} must have one entry per SNR ({len(snr)}), got"
                f" {tuple(weights.shape)}."
            )
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("Figures need matplotlib. Install it: pip install matplotlib") from None

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    seen = snr > 0
    for name, weights in curves.items():
        shown = weights[seen] / (snr[seen] if on == "eps" else 1.0)
        axes.plot(snr[seen].log().tolist(), (shown / shown.mean()).tolist(), label=name)
    axes.set(xlabel="log SNR", ylabel=f"weight of the error of {on}", yscale="log")
    axes.legend()
    return figure
