"""The families of noise schedules: functions that return log α̅_t for t = 1 … T (α̅ = α²).

From log α̅ both α = exp(½·log α̅) and σ = √(−expm1(log α̅)) come without cancellation. A schedule
that is defined by a continuous log-SNR(t/T) only has to return −softplus(−log SNR) on the grid.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ddpm_lib.core.registry import Registry


def _accumulate(betas: Tensor, name: str) -> Tensor:
    """Return log α̅_t = Σ log(1 − β_i), after a check of the betas."""
    inner, last = betas[:-1], betas[-1]
    if not (torch.all(inner > 0) and torch.all(inner < 1) and 0 < last <= 1):
        raise ValueError(
            f"The schedule {name!r} needs betas strictly between 0 and 1 (the last may be 1); got"
            f" [{float(betas.min()):.3g}, {float(betas.max()):.3g}]. Change its options or"
            " timesteps."
        )
    return torch.log1p(-betas).cumsum(0)


def _check_ends(name: str, beta_start: float, beta_end: float) -> None:
    if not 0 < beta_start <= beta_end < 1:
        raise ValueError(
            f"The schedule {name!r} needs 0 < beta_start ≤ beta_end < 1; got {beta_start} and"
            f" {beta_end}. Ho et al. use 1e-4 and 0.02."
        )


def _check_max_beta(name: str, max_beta: float) -> None:
    if not 0 < max_beta <= 1:
        raise ValueError(
            f"The schedule {name!r} needs max_beta in (0, 1], got {max_beta}. The usual value is"
            " 0.999."
        )


def linear(
    timesteps: int,
    /,
    *,
    beta_start: float = 1e-4,
    beta_end: float = 0.02,
    rescale: bool = True,
    max_beta: float = 0.999,
) -> Tensor:
    """β linear from `beta_start` to `beta_end` (Ho et al. 2020, §4).

    `rescale` multiplies both ends by 1000/T, so that any T ends near the same α̅ (Nichol & Dhariwal
    2021, code). Below T = 20 that passes 1, where no published implementation works: `max_beta`
    caps it, as the cosine schedule is capped.
    """
    _check_ends("linear", beta_start, beta_end)
    _check_max_beta("linear", max_beta)
    scale = 1000.0 / timesteps if rescale else 1.0
    betas = torch.linspace(scale * beta_start, scale * beta_end, timesteps, dtype=torch.float64)
    return _accumulate(betas.clamp(max=max_beta), "linear")


def cosine(timesteps: int, /, *, s: float = 0.008, max_beta: float = 0.999) -> Tensor:
    """α̅(u) = cos²((u + s)/(1 + s)·π/2), u = t/T, β capped at `max_beta` (Nichol & Dhariwal 2021,
    eq. 17).

    β = (cos²a − cos²b)/cos²a = sin(a + b)·sin(b − a)/cos²a, which does not cancel. With
    `max_beta=1`, α_T = 0 exactly.
    """
    if s < 0:
        raise ValueError(
            f"The schedule 'cosine' needs s ≥ 0, got {s}. Nichol & Dhariwal use 0.008."
        )
    _check_max_beta("cosine", max_beta)
    angle = (
        (torch.arange(timesteps + 1, dtype=torch.float64) / timesteps + s) / (1 + s) * (math.pi / 2)
    )
    a, b = angle[:-1], angle[1:]
    betas = torch.sin(a + b) * torch.sin(b - a) / torch.cos(a).square()
    return _accumulate(betas.clamp(max=max_beta), "cosine")


def sigmoid(
    timesteps: int,
    /,
    *,
    start: float = -3.0,
    end: float = 3.0,
    tau: float = 1.0,
    max_beta: float = 0.999,
) -> Tensor:
    """α̅(u) = (S(end/τ) − S((u(end − start) + start)/τ)) / (S(end/τ) − S(start/τ)) (Jabri et al.
    2022, §3), S the sigmoid.
    """
    if not (start < end and tau > 0):
        raise ValueError(
            f"The schedule 'sigmoid' needs start < end and tau > 0; got {start}, {end}, {tau}."
        )
    _check_max_beta("sigmoid", max_beta)
    x = (torch.linspace(0, 1, timesteps + 1, dtype=torch.float64) * (end - start) + start) / tau
    # S(p) − S(q) = sinh((p − q)/2) / (2·cosh(p/2)·cosh(q/2)): β is a ratio of two such differences,
    # none of which cancels.
    a, b, e = x[:-1], x[1:], x[-1]
    betas = (
        torch.sinh((b - a) / 2) * torch.cosh(e / 2) / (torch.cosh(b / 2) * torch.sinh((e - a) / 2))
    )
    return _accumulate(betas.clamp(max=max_beta), "sigmoid")


def quad(timesteps: int, /, *, beta_start: float = 1e-4, beta_end: float = 0.02) -> Tensor:
    """√β linear from √beta_start to √beta_end (Ho et al. 2020, code; "scaled linear" elsewhere)."""
    _check_ends("quad", beta_start, beta_end)
    return _accumulate(
        torch.linspace(beta_start**0.5, beta_end**0.5, timesteps, dtype=torch.float64).square(),
        "quad",
    )


def scaled_linear(
    timesteps: int, /, *, beta_start: float = 0.00085, beta_end: float = 0.012
) -> Tensor:
    """√β linear like `quad`, with the ends of Stable Diffusion (Rombach et al. 2022, code)."""
    return quad(timesteps, beta_start=beta_start, beta_end=beta_end)


def const(timesteps: int, /, *, beta: float = 0.02) -> Tensor:
    """The same β at every step (Ho et al. 2020, code)."""
    return _accumulate(torch.full((timesteps,), beta, dtype=torch.float64), "const")


def _warmup(
    timesteps: int, name: str, beta_start: float, beta_end: float, fraction: float
) -> Tensor:
    _check_ends(name, beta_start, beta_end)
    betas = torch.full((timesteps,), beta_end, dtype=torch.float64)
    rising = int(timesteps * fraction)
    betas[:rising] = torch.linspace(beta_start, beta_end, rising, dtype=torch.float64)
    return _accumulate(betas, name)


def warmup10(timesteps: int, /, *, beta_start: float = 1e-4, beta_end: float = 0.02) -> Tensor:
    """β linear over the first 10 % of the steps, then constant (Ho et al. 2020, code)."""
    return _warmup(timesteps, "warmup10", beta_start, beta_end, 0.1)


def warmup50(timesteps: int, /, *, beta_start: float = 1e-4, beta_end: float = 0.02) -> Tensor:
    """β linear over the first 50 % of the steps, then constant (Ho et al. 2020, code)."""
    return _warmup(timesteps, "warmup50", beta_start, beta_end, 0.5)


def jsd(timesteps: int, /) -> Tensor:
    """β_t = 1/(T − t + 1), hence α̅_t = 1 − t/T: linear down to pure noise (Sohl-Dickstein et al.
    2015; Ho et al. 2020, code).
    """
    t = torch.arange(1, timesteps + 1, dtype=torch.float64)
    return torch.log1p(-t / timesteps)


def _of_log_snr(log_snr: Tensor) -> Tensor:
    """Return log α̅ = −log(1 + e^−λ)."""
    return -torch.nn.functional.softplus(-log_snr)


def laplace(timesteps: int, /, *, mu: float = 0.0, b: float = 0.5) -> Tensor:
    """Log SNR λ = μ − b·sgn(½ − u)·log(1 − 2|½ − u|), u = t/(T + 1): quantiles of a Laplace
    distribution (Hang et al. 2024).

    Most levels lie around λ = μ, which suits training. With the options of the paper the cleanest
    of 1,000 levels has σ/α = 0.21, where their samplers, in continuous time, go on: the process
    warns of it. b = 1.5 begins at 0.01.
    """
    if not b > 0:
        raise ValueError(f"The schedule 'laplace' needs b > 0, got {b}. Hang et al. use 0.5.")
    centre = torch.arange(1, timesteps + 1, dtype=torch.float64) / (timesteps + 1) - 0.5
    return _of_log_snr(mu + b * torch.sign(centre) * torch.log1p(-2 * centre.abs()))


def log_linear(
    timesteps: int, /, *, log_snr_max: float = 13.3, log_snr_min: float = -7.0
) -> Tensor:
    """Log SNR linear in t (Kingma et al. 2021, app. H, for their fixed ends)."""
    if not log_snr_min < log_snr_max:
        raise ValueError(
            f"The schedule 'log_linear' needs log_snr_min < log_snr_max; got {log_snr_min},"
            f" {log_snr_max}."
        )
    return _of_log_snr(torch.linspace(log_snr_max, log_snr_min, timesteps, dtype=torch.float64))


def karras(
    timesteps: int, /, *, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
) -> Tensor:
    """(σ/α)^{1/ρ} linear from σ_min to σ_max (Karras et al. 2022, eq. 5), for parametrization
    "edm".
    """
    if not (0 < sigma_min < sigma_max and rho > 0):
        raise ValueError(
            f"The schedule 'karras' needs 0 < sigma_min < sigma_max and rho > 0; got {sigma_min},"
            f" {sigma_max}, {rho}."
        )
    ends = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return -torch.log1p(torch.linspace(*ends, timesteps, dtype=torch.float64) ** (2 * rho))


def shifted_cosine(
    timesteps: int, /, *, size: float, reference: float = 64.0, reference_low: float = 0.0
) -> Tensor:
    """Log SNR of the cosine schedule plus 2·log(reference/size), for large images (Hoogeboom et al.
    2023, §3.1).

    An image of `size` then has the noise that one of `reference` has after averaging. With
    `reference_low` the shift goes from that of `reference_low` at clean images to that of
    `reference` at noise, linearly in t/T: interpolated (eq. 8).
    """
    if not (size > 0 and reference > 0 and reference_low >= 0):
        raise ValueError(
            "The schedule 'shifted_cosine' needs size, reference > 0 and reference_low ≥ 0; got"
            f" {size}, {reference}, {reference_low}. Give the side of the images, {{'size': 256}}."
        )
    log_alpha_bar = cosine(timesteps)
    log_snr = log_alpha_bar - torch.log(-torch.expm1(log_alpha_bar))
    u = torch.linspace(1 / timesteps, 1, timesteps, dtype=torch.float64)
    noisy, clean = 2 * math.log(reference / size), 2 * math.log((reference_low or reference) / size)
    return _of_log_snr(log_snr + u * noisy + (1 - u) * clean)


def given_betas(timesteps: int, /, *, betas: Sequence[float]) -> Tensor:
    """The betas themselves, one per timestep."""
    if len(betas) != timesteps:
        raise ValueError(
            f"The schedule 'betas' needs one beta per timestep ({timesteps}), got {len(betas)}."
        )
    return _accumulate(torch.tensor(list(betas), dtype=torch.float64), "betas")


SCHEDULES: Registry[Callable[..., Tensor]] = Registry(
    "schedule",
    {
        "linear": linear,
        "cosine": cosine,
        "sigmoid": sigmoid,
        "quad": quad,
        "const": const,
        "warmup10": warmup10,
        "warmup50": warmup50,
        "scaled_linear": scaled_linear,
        "jsd": jsd,
        "laplace": laplace,
        "log_linear": log_linear,
        "karras": karras,
        "shifted_cosine": shifted_cosine,
        "betas": given_betas,
    },
)
