"""Every table that published implementations derive from their schedules, their grids of noise and
their timesteps.

Their t counts from 0 where ours counts from 1. All their tables follow from our (α, σ); where a
peer puts another number at its first step, the test says which.
"""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ddpm_lib.samplers import posterior_mean
from ddpm_lib.schedules import Schedule
from ddpm_lib.schedules.levels import Level, tau
from ddpm_lib.spacing import sampling_levels
from process_tools import load

FIXED = {"rescale": False}
NAMES = {
    "ho_tf": (
        {n: (n, {}) for n in ("quad", "const", "warmup10", "warmup50", "jsd")}
        | {"linear": ("linear", FIXED)}
    ),
    "tqch": (
        {n: (n, {}) for n in ("quad", "const", "warmup10", "warmup50", "jsd")}
        | {"linear": ("linear", FIXED)}
    ),
    "improved_diffusion": {"linear": ("linear", {}), "cosine": ("cosine", {})},
    "lucidrains": {
        "linear": ("linear", {}),
        "cosine_s0.008": ("cosine", {}),
        "sigmoid_-3_3_1": ("sigmoid", {}),
    },
}


def f64(values: object) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float64)


def tables(schedule: Schedule, first_log_variance: float | None = None) -> dict[str, Tensor]:
    """Return our values under the names of the peers, t = 1 … T.

    Args:
        schedule: The schedule.
        first_log_variance: The posterior's log-variance at their t = 0, where it is log 0; default:
            that of their t = 1.
    """
    alpha, sigma = schedule.alpha[1:], schedule.sigma[1:]
    before = schedule.alpha[:-1]
    levels = [schedule.level(t) for t in range(schedule.timesteps + 1)]
    pairs = list(zip(levels[1:], levels[:-1], strict=True))
    zero, one = f64(0.0), f64(1.0)
    small, large = (
        f64([k.sigma**2 * tau(t, s) for t, s in pairs for k in [(s, t)[i]]]) for i in (0, 1)
    )
    first = float(small[1]) if first_log_variance is None else math.exp(first_log_variance)
    clipped, used = torch.cat([f64([first]), small[1:]]).log(), torch.cat([small[1:2], large[1:]])
    return {
        "betas": schedule.betas,
        "alphas_cumprod": alpha**2,
        "alphas_cumprod_prev": before**2,
        "alphas_cumprod_next": torch.cat([alpha[1:] ** 2, f64([0.0])]),
        "sqrt_alphas_cumprod": alpha,
        "sqrt_one_minus_alphas_cumprod": sigma,
        "log_one_minus_alphas_cumprod": 2 * sigma.log(),
        "sqrt_recip_alphas_cumprod": 1 / alpha,
        "sqrt_recipm1_alphas_cumprod": sigma / alpha,
        "posterior_variance": small,
        "posterior_log_variance_clipped": clipped,
        # The mean is linear in (x_0, x_t): x_0 = 1 with x_t = 0, and the other way round.
        "posterior_mean_coef1": f64(
            [float(posterior_mean(one, -t.alpha * one / t.sigma, t, s)) for t, s in pairs]
        ),
        "posterior_mean_coef2": f64(
            [float(posterior_mean(zero, one / t.sigma, t, s)) for t, s in pairs]
        ),
        # "Large" is β_t, and at their t = 0 the small one of t = 1.
        "fixed_large_variance": used,
        "fixed_large_log_variance": used.log(),
    }


def compare(ours: Tensor, theirs: Tensor, key: str, rtol: float, atol: float) -> None:
    torch.testing.assert_close(
        ours, theirs.double(), rtol=rtol, atol=atol, msg=lambda m: f"{key}: {m}"
    )


@pytest.mark.parametrize("timesteps", [10, 50, 100, 1000, 4000])
@pytest.mark.parametrize("peer", ["ho_tf", "tqch", "improved_diffusion"])
def test_derived_tables(shared: Path, peer: str, timesteps: int) -> None:
    data, _ = load(shared, f"A_schedules/{peer}")
    seen = 0
    for name, (ours, options) in NAMES[peer].items():
        there = {
            k.rsplit("/", 1)[1]: v for k, v in data.items() if k.startswith(f"{name}/T{timesteps}/")
        }
        if not there or (ours == "linear" and options != FIXED and timesteps < 20):
            continue  # β > 1 at the peers.
        mine = tables(Schedule.make(ours, timesteps, options))
        for what, theirs in there.items():
            value = mine[what]
            if what == "fixed_large_variance" and peer == "tqch":
                # Here it is β_0 and its own logarithm is not.
                value = torch.cat([mine["betas"][:1], value[1:]])
            # Their 1 − ᾱ loses the digits of a small ᾱ or a small 1 − ᾱ.
            compare(value, theirs, f"{name} {what}", 1e-7 if "recip" in what else 2e-9, 1e-12)
            seen += 1
    assert seen >= (14 if timesteps < 4000 else 2) or (peer == "tqch" and timesteps == 4000)


@pytest.mark.parametrize("timesteps", [10, 50, 100, 1000])
@pytest.mark.parametrize("name", NAMES["lucidrains"])
def test_lucidrains_buffers(shared: Path, name: str, timesteps: int) -> None:
    """float32 buffers; its log-variance at t = 0 is log 1e-20."""
    data, _ = load(shared, "A_schedules/lucidrains")
    there = {
        k.split("/buffer_")[1]: v
        for k, v in data.items()
        if k.startswith(f"{name}/T{timesteps}/buffer_")
    }
    if not there:
        assert (name, timesteps) == ("linear", 10)  # NaN at the peer.
        return
    mine = tables(Schedule.make(NAMES["lucidrains"][name][0], timesteps), math.log(1e-20))
    assert len(there) >= 11
    for what, theirs in there.items():
        # The constants of its sigmoid are float32 themselves.
        compare(mine[what], theirs, what, 1e-4 if name.startswith("sigmoid") else 2e-6, 1e-9)


@pytest.mark.parametrize("timesteps", [10, 50, 100, 1000])
def test_pytorch_ddpm_buffers(shared: Path, timesteps: int) -> None:
    """One peer makes its betas in float32 and goes on in float64, the other stays in float32."""
    data, _ = load(shared, "A_schedules/pytorch_ddpm_family")
    renamed = {
        "betas": "betas",
        "sqrt_alphas_bar": "sqrt_alphas_cumprod",
        "sqrt_one_minus_alphas_bar": "sqrt_one_minus_alphas_cumprod",
        "sqrt_recip_alphas_bar": "sqrt_recip_alphas_cumprod",
        "sqrt_recipm1_alphas_bar": "sqrt_recipm1_alphas_cumprod",
        "posterior_var": "posterior_variance",
        "posterior_log_var_clipped": "posterior_log_variance_clipped",
        "posterior_mean_coef1": "posterior_mean_coef1",
        "posterior_mean_coef2": "posterior_mean_coef2",
    }
    for peer, rtol, atol in (("w86763777", 2e-9, 1e-12), ("deepspark", 2e-3, 1e-6)):
        there = {
            k.rsplit("/", 1)[1]: v
            for k, v in data.items()
            if k.startswith(f"{peer}/b0.0001-0.02/T{timesteps}/")
        }
        mine = tables(Schedule.from_betas(there["betas"]))
        assert set(there) == set(renamed)
        for what, theirs in there.items():
            compare(mine[renamed[what]], theirs, what, rtol, atol)


def test_simple_ddpm_buffers(shared: Path) -> None:
    """float32 throughout, T = 1000; its log-variance at t = 0 is log 1e-20."""
    data, _ = load(shared, "A_schedules/pytorch_ddpm_family")
    there = {k.rsplit("/", 1)[1]: v for k, v in data.items() if k.startswith("simple/")}
    mine = tables(Schedule.from_betas(there["betas"]), math.log(1e-20))
    renamed = {
        "alpha_bars": mine["alphas_cumprod"],
        "alpha_bars_prev": mine["alphas_cumprod_prev"],
        "alphas": 1 - mine["betas"],
        "betas": mine["betas"],
        "log_one_minus_alpha_bars": mine["log_one_minus_alphas_cumprod"],
        "posterior_log_variance_clipped": mine["posterior_log_variance_clipped"],
        "posterior_mean_coefficients_1": mine["posterior_mean_coef1"],
        "posterior_mean_coefficients_2": mine["posterior_mean_coef2"],
        "posterior_variance": mine["posterior_variance"],
        "sqrt_alpha_bars": mine["sqrt_alphas_cumprod"],
        "sqrt_alphas": (1 - mine["betas"]).sqrt(),
        "sqrt_betas": mine["betas"].sqrt(),
        "sqrt_one_minus_alpha_bars": mine["sqrt_one_minus_alphas_cumprod"],
        "sqrt_reciprocal_alpha_bars": mine["sqrt_recip_alphas_cumprod"],
        "sqrt_reciprocal_minus_one_alpha_bars": mine["sqrt_recipm1_alphas_cumprod"],
    }
    assert set(there) == set(renamed)
    for what, theirs in there.items():
        compare(renamed[what], theirs, what, 2e-3, 1e-6)


@pytest.mark.parametrize("timesteps", [10, 50, 100, 1000, 4000])
def test_diffusers_tables(shared: Path, timesteps: int) -> None:
    """Its "sigmoid" is another schedule than that of Jabri et al., so it is given by its betas; so
    is its laplace.
    """
    data, _ = load(shared, "A_schedules/diffusers")
    names = {
        "linear": ("linear", FIXED),
        "scaled_linear": ("quad", {}),
        "squaredcos_cap_v2": ("cosine", {}),
    }
    seen = 0
    for name in (*names, "sigmoid", "laplace"):
        for kind in ("plain", "zsnr"):
            prefix = f"{name}/T{timesteps}/{kind}/f64"
            if f"{prefix}/betas" not in data:
                continue
            plain = data[f"{name}/T{timesteps}/plain/f64/betas"]
            ours, options = names.get(name, ("betas", {"betas": plain.tolist()}))
            schedule = Schedule.make(
                ours, timesteps, {**options, "zero_terminal_snr": kind == "zsnr"}
            )
            compare(schedule.alpha[1:] ** 2, data[f"{prefix}/alphas_cumprod"], prefix, 1e-9, 1e-13)
            compare(schedule.betas, data[f"{prefix}/betas"], prefix, 1e-8, 1e-12)
            seen += 1
    assert seen >= (8 if timesteps < 4000 else 1)


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_diffusers_rescaling_of_other_betas(shared: Path, name: str) -> None:
    data, _ = load(shared, "A_schedules/diffusers")
    found = [
        k.rsplit("/", 1)[0]
        for k in data
        if k.startswith(f"rescale/{name}/") and k.endswith("betas_in")
    ]
    assert found
    for prefix in found:
        given = data[f"{prefix}/betas_in"].double()
        if float(given.max()) >= 1:
            continue  # improved-diffusion's linear schedule below T = 20
        schedule = Schedule.make(
            "betas", len(given), {"betas": given.tolist(), "zero_terminal_snr": True}
        )
        compare(schedule.betas, data[f"{prefix}/betas_out"], prefix, 1e-8, 1e-10)


def test_edms_table_for_discrete_models_is_the_cosine_schedule(shared: Path) -> None:
    """Its u_j (Karras et al. 2022, table 1, iDDPM) count down from the noisiest level; C_1 = 0.001
    is the cap of β at 0.999.
    """
    data, _ = load(shared, "A_schedules/sigmas")
    schedule = Schedule.make("cosine", 1000)
    noise = (schedule.sigma / schedule.alpha).flip(0)
    compare(
        noise, data["edm/iddpm_u"], "iddpm_u", 1e-3, 1e-7
    )  # Its table is float32 and cancels where there is little noise.
    nearest = (
        (data["edm/query_sigma"].double()[:, None] - data["edm/iddpm_u"].double()).abs().argmin(1)
    )
    assert torch.equal(nearest, data["edm/iddpm_index"].long().flatten())
    compare(noise[nearest], data["edm/iddpm_round_sigma"].flatten(), "round_sigma", 1e-3, 1e-7)
    # What its network is told is the level counted from 0, ours as well: M − 1 − j.
    assert torch.equal(999 - nearest, data["edm/iddpm_c_noise"].long().flatten())


@pytest.mark.parametrize("case", [0, 1])
def test_edms_time_of_the_variance_preserving_process(shared: Path, case: int) -> None:
    """Its VP is σ̃² = exp(½β_d·t² + β_min·t) − 1: the continuous limit of the linear schedule with
    betas 1e-4 … 0.02.
    """
    data, _ = load(shared, "A_schedules/sigmas")
    beta_d, beta_min = 19.9, 0.1
    t, sigma = (
        data["edm/vp_t_of_sigma"].double().flatten(),
        data["edm/query_sigma"].double().flatten(),
    )
    compare((torch.exp(0.5 * beta_d * t**2 + beta_min * t) - 1).sqrt(), sigma, "vp", 1e-4, 1e-6)
    compare(999 * t, data["edm/vp_c_noise"].flatten(), "c_noise", 1e-5, 1e-5)
    discrete = Schedule.make("linear", 1000)
    inside = (sigma > 0.05) & (sigma < 100)
    ours = f64([discrete.level_at(-2 * math.log(float(s))).t / 1000 for s in sigma])
    compare(ours[inside], t[inside], "level", 0.02, 2e-3)
    grid = data[f"k_diffusion/vp{case}/f64"].double()
    assert bool((grid[:-1] > grid[1:]).all())


def timesteps(shared: Path) -> dict:
    return json.loads((shared / "fixtures/A_schedules/timesteps.json").read_text())["values"]


def test_sections_of_improved_diffusion(shared: Path) -> None:
    """All its section strings, and those it refuses."""
    values = timesteps(shared)
    for case in values["improved_diffusion"]:
        ours = sampling_levels(case["T"], spacing=str(case["spec"]))[:-1]
        assert [t - 1 for t in reversed(ours)] == case["steps"], case["spec"]
    assert len(values["improved_diffusion"]) >= 11
    for case in values["improved_diffusion_errors"]:
        with pytest.raises(ValueError, match=r"stride|section"):
            sampling_levels(case["T"], spacing=str(case["spec"]))


def test_subsequences_of_tqch(shared: Path) -> None:
    """Its linear one holds more steps than asked for where T does not divide; its quadratic one
    ends at 0.8·T, with repeats.
    """
    repeated = 0
    for case in timesteps(shared)["tqch"]:
        steps, size, top = case["steps"], case["size"], case["T"]
        if case["schedule"] == "linear":
            assert steps == list(range(0, top, top // size))
            assert (len(steps) == size) == (top % size == 0)
            continue
        assert steps == [
            round((0.8 * top) ** 0.5 * k / (size - 1) * (0.8 * top) ** 0.5 * k / (size - 1))
            for k in range(size)
        ]
        repeated += len(set(steps)) < len(steps)
        ours = sampling_levels(top, size, "quadratic")
        assert ours[0] == top
        assert len(set(ours)) == size + 1
    assert repeated >= 1


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_timesteps_of_all_diffusers_schedulers(shared: Path, spacing: str) -> None:
    """DDIM and DDPM take ours. The multistep ones spread S + 1 points and drop the last; Euler and
    Heun keep fractions.
    """
    seen = 0
    for case in timesteps(shared)["diffusers"]:
        if case["spacing"] != spacing:
            continue
        ours = [t - 1 for t in sampling_levels(case["T"], case["S"], spacing)[:-1]]
        theirs, offset = case["timesteps"], case["steps_offset"]
        if isinstance(theirs, dict):  # a long list by its ends
            ours, theirs = ours[:5] + ours[-5:], theirs["first5"] + theirs["last5"]
        if case["cls"] in ("DDIMScheduler", "DDPMScheduler"):
            moved = [t + offset for t in ours]
            assert max(abs(a - b) for a, b in zip(moved, theirs, strict=True)) <= (
                spacing == "trailing"
            ), case
            seen += 1
    assert seen >= 8


def test_a_level_knows_its_log_snr_as_the_peers_do(shared: Path) -> None:
    """λ = log(α/σ) of the solvers is half our log-SNR; their σ̃ is σ/α."""
    data, _ = load(shared, "A_schedules/improved_diffusion")
    ab = data["cosine/T1000/alphas_cumprod"].double()
    schedule = Schedule.make("cosine", 1000)
    ours = f64([schedule.level(t).log_snr for t in range(1, 1001)])
    compare(ours[50:], (ab / (1 - ab)).log()[50:], "log_snr", 1e-9, 1e-9)
    assert Level(0, 1.0, 0.0).log_snr == math.inf
