"""Trajectories of published solvers with the exact denoiser of Gaussian data, in float64.

The peers give the noise σ̃ = σ/α of every step; ours run on levels of just that noise. Where a peer
does something else, the test says what.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ddpm_lib.samplers import (
    DDIM,
    DEIS,
    DPMSolver2M,
    DPMSolver2MSDE,
    DPMSolver2S,
    DPMSolver3M,
    Euler,
    Heun,
    Prediction,
    Sampler,
    UniPC,
    sample_loop,
)
from ddpm_lib.schedules import Schedule
from ddpm_lib.schedules.levels import Level
from ddpm_lib.variance import FixedSmall
from process_tools import gaussian_diffusion, load, replay

CLEAN = Level(0, 1.0, 0.0)


def close(ours: Tensor, theirs: Tensor, rtol: float = 1e-9, atol: float = 1e-9) -> None:
    torch.testing.assert_close(ours, theirs, rtol=rtol, atol=atol)


def between(log_snr: float) -> Level:
    return Level.of_log_snr(math.nan, log_snr)


def noisy(sigma: float) -> Level:
    """Return the level with σ/α = sigma."""
    return between(-2 * math.log(sigma)) if sigma else CLEAN


def exact(data: dict[str, Tensor]) -> Callable[[Tensor, Level], Prediction]:
    """Return the denoiser of N(mu, s²), evaluated at the noise itself."""
    mu, s = data["mu"].double(), data["s"].double()

    def predict(x: Tensor, level: Level) -> Prediction:
        away = (x - level.alpha * mu) / (level.alpha**2 * s**2 + level.sigma**2)
        return Prediction(mu + level.alpha * s**2 * away, level.sigma * away, FixedSmall())

    return predict


def states(
    sampler: Sampler,
    data: dict[str, Tensor],
    x: Tensor,
    sigmas: Sequence[float],
    noise: Callable[[], Tensor] | None = None,
) -> Tensor:
    """Return our states, as x_t."""
    seen: list[Tensor] = []
    draw = noise or replay(data["noise"])
    levels = [noisy(s) for s in sigmas]
    sample_loop(
        sampler,
        x,
        levels,
        exact(data),
        draw,
        level_at=between,
        on_state=lambda i, x: seen.append(x),
    )
    return torch.stack(seen)


FULL = {"lower_order_final": False}
DIFFUSERS: dict[str, Sampler] = {
    "dpmpp_1m": DDIM(),
    "dpmpp_2m": DPMSolver2M(),
    "dpmpp_2m_heun": DPMSolver2M(solver="heun"),
    "dpmpp_2m_karras": DPMSolver2M(),
    "dpmpp_2m_trailing": DPMSolver2M(),
    "dpmpp_2m_leading": DPMSolver2M(),
    "dpmpp_2m_v": DPMSolver2M(),
    "dpmpp_2m_x0": DPMSolver2M(),
    "dpmpp_2m_full_order_final": DPMSolver2M(),
    "dpmpp_2m_sigma_min": DPMSolver2M(),
    "dpmpp_2m_lu": DPMSolver2M(),
    "dpmpp_3m": DPMSolver3M(solver="midpoint", curvature=0.5),
    "sde_dpmpp_2m_midpoint": DPMSolver2MSDE(),
    "sde_dpmpp_2m_heun": DPMSolver2MSDE(solver="heun"),
    "unipc_bh1_1": UniPC(order=1, variant="bh1"),
    "unipc_bh2_1": UniPC(order=1, variant="bh2"),
    "unipc_bh1_2": UniPC(order=2, variant="bh1"),
    "unipc_bh2_2": UniPC(order=2, variant="bh2"),
    "unipc_bh1_3": UniPC(order=3, variant="bh1"),
    "unipc_bh2_3": UniPC(order=3, variant="bh2"),
    "unipc_bh2_2_nocorrector": UniPC(order=2, corrector=False),
    "unipc_bh2_2_karras": UniPC(order=2),
    "deis_2": DEIS(order=2),
    "deis_3": DEIS(order=3),
}
"""Left out, because not ours: DPM-Solver (not ++), and single steps over pairs of levels."""


@pytest.mark.parametrize("steps", [8, 16, 40])
@pytest.mark.parametrize("run", DIFFUSERS)
def test_diffusers_solvers(shared: Path, run: str, steps: int) -> None:
    data, meta = load(shared, f"C_samplers/diffusers_solvers_{steps}")
    sampler, sigmas, theirs = DIFFUSERS[run], meta["values"]["sigmas"][run], data[f"f64/{run}/traj"]
    if run == "dpmpp_3m" and steps >= 15:
        # It lowers the order at the end below 15 steps only.
        sampler = DPMSolver3M(solver="midpoint", curvature=0.5, lower_order_final=False)
    if run.startswith("deis") and steps >= 15:
        sampler = DEIS(order=int(run[-1]), lower_order_final=False)
    if sigmas[-1] == sigmas[-2] or abs(sigmas[-1] / sigmas[-2] - 1) < 1e-9:
        sigmas, theirs = (
            sigmas[:-1],
            theirs[:-1],
        )  # Its last step goes nowhere, which its formula divides by.
    ours = states(sampler, data, data["x_T"].double(), sigmas)
    if run == "dpmpp_2m_sigma_min" and steps < 15:
        ours, theirs = (
            ours[:-1],
            theirs[:-1],
        )  # It takes the last step with first order, also where that is not to σ = 0.
    close(ours, theirs)


def test_diffusers_first_order_sde(shared: Path) -> None:
    """Its SDE solver of first order is ancestral sampling, DDIM with η = 1."""
    for steps in (8, 16, 40):
        data, meta = load(shared, f"C_samplers/diffusers_solvers_{steps}")
        ours = states(
            DDIM(1.0), data, data["x_T"].double(), meta["values"]["sigmas"]["sde_dpmpp_1"]
        )
        close(ours, data["f64/sde_dpmpp_1/traj"])


VARIANCE_EXPLODING: dict[str, Sampler] = {
    "euler": Euler(),
    "euler_karras": Euler(),
    "euler_ancestral": DDIM(1.0),
    "heun": Heun(limit=math.inf),
    "heun_karras": Heun(limit=math.inf),
}


@pytest.mark.parametrize("steps", [8, 16, 40])
@pytest.mark.parametrize("run", VARIANCE_EXPLODING)
def test_diffusers_euler_and_heun(shared: Path, run: str, steps: int) -> None:
    """These keep x_t/α_t; Heun's states in between, of Euler's step, are skipped."""
    data, meta = load(shared, f"C_samplers/diffusers_solvers_{steps}")
    sigmas, theirs = meta["values"]["sigmas"][run], data[f"f64/{run}/traj"]
    if run.startswith("heun"):
        sigmas, theirs = [*sigmas[0:-1:2], 0.0], torch.cat([theirs[0:-1:2], theirs[-1:]])
    alpha = torch.tensor([noisy(s).alpha for s in sigmas], dtype=torch.float64).view(-1, 1, 1, 1, 1)
    ours = states(VARIANCE_EXPLODING[run], data, theirs[0] * alpha[0], sigmas)
    close(ours / alpha, theirs, rtol=1e-8)


def test_first_steps_from_pure_noise(shared: Path) -> None:
    """λ = −∞: the first step of every solver is DDIM's, whose numbers on zero terminal SNR are
    published.
    """
    data, meta = load(shared, "C_samplers/diffusers_zero_snr")
    schedule = Schedule.make("linear", 1000, {"rescale": False, "zero_terminal_snr": True})
    d = gaussian_diffusion(data["mu"], data["s"], schedule, "v")
    levels = [schedule.level(t + 1) for t in meta["values"]["timesteps"]]
    theirs = data["f64/ddim_v/traj"]
    for sampler in (DDIM(), Euler(), DPMSolver2M(), DPMSolver3M(), DPMSolver2S(), UniPC(order=3)):
        x = sample_loop(
            sampler, theirs[0], levels[:2], d.denoise, replay(theirs), level_at=schedule.level_at
        )
        close(x, theirs[1])
    # The first-order ones all the way.
    for sampler in (DDIM(), Euler(), UniPC(order=1, corrector=False)):
        x = sample_loop(
            sampler,
            theirs[0],
            [*levels, CLEAN],
            d.denoise,
            replay(theirs),
            level_at=schedule.level_at,
        )
        close(x, theirs[-1])


@pytest.mark.parametrize("steps", [5, 18])
@pytest.mark.parametrize("run", ["edm_heun", "edm_churn", "edm_churn_max"])
def test_edm(shared: Path, run: str, steps: int) -> None:
    data, meta = load(shared, f"C_samplers/edm_{steps}")
    churn = {k.lower(): v for k, v in meta["values"]["churn_params"][run].items()}
    options = {
        "s_tmin" if k == "s_min" else "s_tmax" if k == "s_max" else k: v for k, v in churn.items()
    }
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    low, high = meta["config"]["sigma_min"] ** (1 / 7), meta["config"]["sigma_max"] ** (1 / 7)
    sigmas = [*((high + ramp * (low - high)) ** 7).tolist(), 0.0]
    # It draws noise at every step and multiplies it by 0 where there is no churn.
    churned = [bool(options) and options["s_tmin"] <= s <= options["s_tmax"] for s in sigmas[:-1]]
    drawn = iter(data["noise"].double()[torch.tensor(churned)])
    seen: list[tuple[Tensor, float]] = []
    denoise = exact(data)

    def predict(x: Tensor, level: Level) -> Prediction:
        seen.append((x / level.alpha, level.sigma / level.alpha))
        return denoise(x, level)

    levels = [noisy(s) for s in sigmas]
    start = data["x_T"].double() * levels[0].sigma  # x_T·σ̃ in their units.
    x = sample_loop(
        Heun(limit=math.inf, **options), start, levels, predict, drawn.__next__, level_at=between
    )
    close(torch.tensor([s for _, s in seen], dtype=torch.float64), data[f"{run}/net_sigma"])
    close(torch.stack([x for x, _ in seen]), data[f"{run}/net_x"], rtol=1e-8)
    close(x, data[f"{run}/x"])


@pytest.mark.parametrize("steps", [5, 18])
@pytest.mark.parametrize("solver", ["euler", "heun"])
@pytest.mark.parametrize("grid", ["iddpm", "edm"])
def test_edm_ablation(shared: Path, grid: str, solver: str, steps: int) -> None:
    """Euler and Heun on two more grids. On those named vp and ve the peer integrates in a time
    other than the noise.
    """
    data, _ = load(shared, f"C_samplers/edm_{steps}")
    visited = data[f"ablation_{solver}_{grid}/net_sigma"].tolist()
    sigmas = visited if solver == "euler" else visited[:1] + visited[1::2]
    sampler = Euler() if solver == "euler" else Heun(limit=math.inf)
    start = data["x_T"].double() * noisy(sigmas[0]).sigma
    close(
        states(sampler, data, start, [*sigmas, 0.0])[-1],
        data[f"ablation_{solver}_{grid}/x"],
        rtol=1e-8,
    )


K_DIFFUSION: dict[str, Sampler] = {
    "euler": DDIM(),
    "heun": Heun(limit=math.inf),
    "euler_ancestral": DDIM(1.0),
    "euler_ancestral_eta0.5": DDIM(0.5),
    "dpmpp_2s_ancestral": DPMSolver2S(1.0),
    "dpmpp_2m": DPMSolver2M(),
    "dpmpp_2m_sde": DPMSolver2MSDE(),
    "dpmpp_2m_sde_heun": DPMSolver2MSDE(solver="heun"),
    "dpmpp_2m_sde_eta0": DPMSolver2MSDE(eta=0.0),
    "dpmpp_3m_sde": DPMSolver3M(eta=1.0, curvature=0.5, lower_order_final=False),
}
"""Left out: DPM-Solver-2, LMS and dpmpp_sde, which are not ours; heun_churn, whose settings are not
recorded.
"""


@pytest.mark.parametrize("steps", [6, 15])
@pytest.mark.parametrize("run", K_DIFFUSION)
def test_k_diffusion(shared: Path, run: str, steps: int) -> None:
    data, _ = load(shared, f"C_samplers/k_diffusion_{steps}")
    theirs, sigmas = data[f"f64/{run}/traj"], data["f64/sigmas"].tolist()
    alpha = torch.tensor([noisy(s).alpha for s in sigmas], dtype=torch.float64).view(-1, 1, 1, 1, 1)
    ours = states(K_DIFFUSION[run], data, theirs[0] * alpha[0], sigmas)
    close(ours / alpha, theirs, rtol=1e-8)


@pytest.mark.parametrize("run", ["dpmpp_2m", "heun"])
def test_k_diffusion_on_a_network_of_whole_steps(shared: Path, run: str) -> None:
    """σ̃ at linspace(999, 0): fractional levels of a schedule, with log-SNR linear in between, as
    at the peer.
    """
    data, _ = load(shared, "C_samplers/k_diffusion_discrete_eps")
    schedule = Schedule.make("linear", 1000)
    d = gaussian_diffusion(data["mu"], data["s"], schedule, "eps")
    levels = [schedule.level(1 + 999 * (11 - k) / 11) for k in range(12)]
    sigmas = [lv.sigma / lv.alpha for lv in levels]
    close(torch.tensor(sigmas, dtype=torch.float64), data["f64/sigmas"][:-1], rtol=1e-8)
    sampler = DPMSolver2M() if run == "dpmpp_2m" else Heun(limit=math.inf)
    start = data["x_T"].double() * levels[0].sigma
    x = sample_loop(
        sampler, start, [*levels, CLEAN], d.denoise, replay(data["x_T"]), level_at=schedule.level_at
    )
    # Networks get t in float32 here.
    close(x, data[f"f64/{run}/x"], rtol=1e-6, atol=1e-6)
