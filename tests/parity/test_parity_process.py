"""Numbers of published implementations. Their t counts from 0 where ours counts from 1: level = t +
1.

Compared in float64 with what the very code of the peers gives in float64. Where a peer does
something else, the test says what.
"""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ddpm_lib.diffusion import GaussianDiffusion
from ddpm_lib.parametrization import PARAMETRIZATIONS
from ddpm_lib.process.clipping import dynamic_threshold
from ddpm_lib.samplers import DDIM, DDPM, Sampler, posterior_mean, sample_loop
from ddpm_lib.schedules import Schedule
from ddpm_lib.schedules.levels import Level, tau
from ddpm_lib.spacing import sampling_levels
from process_tools import ToyNet, gaussian_diffusion, load, replay

FIXED = {"rescale": False}
SCHEDULES_OF = {
    "improved_diffusion": {"linear": ("linear", {}), "cosine": ("cosine", {})},
    "lucidrains": {
        "linear": ("linear", {}),
        "cosine_s0.008": ("cosine", {}),
        "cosine": ("cosine", {}),
    },
    "ho_tf": (
        {name: (name, {}) for name in ("quad", "const", "warmup10", "warmup50")}
        | {"linear": ("linear", FIXED)}
    ),
    "tqch": (
        {name: (name, {}) for name in ("quad", "const", "warmup10", "warmup50")}
        | {"linear": ("linear", FIXED)}
    ),
}


def close(ours: Tensor | float, theirs: Tensor, rtol: float = 1e-9, atol: float = 1e-11) -> None:
    ours = torch.as_tensor(ours, dtype=torch.float64)
    torch.testing.assert_close(ours, theirs.double().expand_as(ours), rtol=rtol, atol=atol)


@pytest.mark.parametrize("peer", ["improved_diffusion", "lucidrains", "ho_tf", "tqch"])
def test_schedules(shared: Path, peer: str) -> None:
    data, _ = load(shared, f"A_schedules/{peer}")
    seen = set()
    for key in data:
        name, length, what = key.split("/", 2)
        timesteps = int(length[1:])
        if name not in SCHEDULES_OF[peer] or what not in ("betas", "alphas_cumprod"):
            continue
        ours, options = SCHEDULES_OF[peer][name]
        if options != FIXED and ours == "linear" and timesteps < 20:
            assert (
                float(data[key].max()) > 1
            )  # Invalid at the peers, which crash or turn to NaN; ours is capped.
            continue
        seen.add(name)
        schedule = Schedule.make(ours, timesteps, options)
        # The peers' own cancellation in 1 − cos²/cos² is 1e-16/β.
        close(
            schedule.betas if what == "betas" else schedule.alpha[1:] ** 2,
            data[key],
            rtol=1e-9,
            atol=1e-14,
        )
    assert len(seen) >= 2


@pytest.mark.parametrize("peer", ["improved_diffusion", "ho_tf", "tqch"])
def test_derived_coefficients(shared: Path, peer: str) -> None:
    data, _ = load(shared, f"A_schedules/{peer}")
    for name, (ours, options) in SCHEDULES_OF[peer].items():
        for timesteps in (50, 100, 1000):
            if f"{name}/T{timesteps}/posterior_mean_coef1" not in data:
                continue
            schedule, prefix = Schedule.make(ours, timesteps, options), f"{name}/T{timesteps}"
            levels = [schedule.level(t) for t in range(timesteps + 1)]
            pairs = list(zip(levels[1:], levels[:-1], strict=True))
            zero, one = torch.zeros(()).double(), torch.ones(()).double()
            # The mean is linear in (x_0, x_t): x_0 = 1 with x_t = 0, and the other way round.
            on_x0 = [float(posterior_mean(one, -t.alpha * one / t.sigma, t, s)) for t, s in pairs]
            on_xt = [float(posterior_mean(zero, one / t.sigma, t, s)) for t, s in pairs]
            close(on_x0, data[f"{prefix}/posterior_mean_coef1"], rtol=1e-8, atol=1e-12)
            close(on_xt, data[f"{prefix}/posterior_mean_coef2"], rtol=1e-8, atol=1e-12)
            close(
                [s.sigma**2 * tau(t, s) for t, s in pairs],
                data[f"{prefix}/posterior_variance"],
                atol=1e-14,
            )
            close(schedule.sigma[1:], data[f"{prefix}/sqrt_one_minus_alphas_cumprod"], rtol=1e-9)
            large = data.get(f"{prefix}/fixed_large_variance")
            if large is not None:
                # At t = 0 the peer puts posterior_variance[1]; no noise is drawn there, so it is
                # never used.
                close([t.sigma**2 * tau(t, s) for t, s in pairs][1:], large[1:])


def test_lucidrains_sigmoid(shared: Path) -> None:
    data, _ = load(shared, "A_schedules/lucidrains")
    keys = [key for key in data if key.endswith("betas_f64exact")]
    assert keys
    for key in keys:
        # "exact": the peer evaluates two constants in float32, which moves β by up to 6e-5.
        timesteps = int(key.split("/")[-2][1:])
        close(Schedule.make("sigmoid", timesteps).betas, data[key], rtol=1e-9)


@pytest.mark.parametrize("objective", ["pred_noise", "pred_x0", "pred_v"])
def test_lucidrains_loss_weights(shared: Path, objective: str) -> None:
    data, _ = load(shared, "A_schedules/lucidrains")
    name = {"pred_noise": "eps", "pred_x0": "x0", "pred_v": "v"}[objective]
    for kind, weighting, options in [
        ("none", "simple", {}),
        ("minsnr5.0", "min_snr", {}),
        ("minsnr1.0", "min_snr", {"gamma": 1.0}),
    ]:
        keys = [k for k in data if k.endswith(f"loss_weight/{objective}/{kind}")]
        assert len(keys) >= 9
        for key in keys:
            schedule, timesteps = key.split("/")[0].split("_")[0], int(key.split("/")[1][1:])
            if schedule == "linear" and timesteps < 20:
                continue  # NaN at the peer
            diffusion = toy(
                data,
                Schedule.make(schedule, timesteps),
                name,
                weighting=weighting,
                weighting_options=options,
                net=False,
            )
            # Their buffer is float32, and SNR = ab/(1 − ab) of a float64 ab loses digits near t =
            # 0. The constants of its sigmoid schedule are float32 as well.
            close(
                diffusion.loss_weights[1:],
                data[key],
                rtol=1e-4 if schedule == "sigmoid" else 1e-6,
                atol=1e-12,
            )


def test_ho_jsd_and_pytorch_ddpm_as_given_betas(shared: Path) -> None:
    data, _ = load(shared, "A_schedules/ho_tf")
    jsd = Schedule.from_betas(data["jsd/T1000/betas"])
    assert float(jsd.alpha[-1]) == 0
    close(jsd.alpha[1:] ** 2, data["jsd/T1000/alphas_cumprod"])
    data, _ = load(shared, "A_schedules/pytorch_ddpm_family")
    key = next(k for k in data if k.startswith("w86763777") and k.endswith("T1000/betas"))
    # This peer makes its betas in float32, so they are given rather than named.
    close(Schedule.from_betas(data[key]).alpha[1:], data[key.replace("betas", "sqrt_alphas_bar")])


def test_diffusers_schedules(shared: Path) -> None:
    data, _ = load(shared, "A_schedules/diffusers")
    names = {
        "linear": ("linear", FIXED),
        "scaled_linear": ("quad", {}),
        "squaredcos_cap_v2": ("cosine", {}),
    }
    seen = 0
    for key, value in data.items():
        parts = key.split("/")
        if parts[0] not in names or parts[-1] != "alphas_cumprod" or "f64" not in parts:
            continue
        ours, options = names[parts[0]]
        schedule = Schedule.make(
            ours, int(parts[1][1:]), {**options, "zero_terminal_snr": "zsnr" in parts}
        )
        close(schedule.alpha[1:] ** 2, value, rtol=1e-9, atol=1e-13)
        seen += 1
    assert seen > 20


def test_diffusers_laplace(shared: Path) -> None:
    """It takes α for α̅, on t/T with 1e-6 inside the logarithm; its α̅² at the same log-SNR is
    ours.
    """
    data, _ = load(shared, "A_schedules/diffusers")
    theirs = data["laplace/T1000/plain/f64/alphas_cumprod"]
    u = torch.arange(1000, dtype=torch.float64) / 1000
    log_snr = -0.5 * torch.sign(0.5 - u) * torch.log(1 - 2 * (0.5 - u).abs() + 1e-6)
    close(
        theirs[:-1] * torch.sigmoid(log_snr[0]).sqrt(), torch.sigmoid(log_snr[1:]).sqrt(), rtol=1e-6
    )
    # Our grid leaves out both ends, where the distribution ends at infinity.
    close(Schedule.make("laplace", 999).alpha[1:] ** 2, torch.sigmoid(log_snr[1:]), rtol=1e-3)


def test_timesteps(shared: Path) -> None:
    values = json.loads((shared / "fixtures/A_schedules/timesteps.json").read_text())["values"]
    for case in values["diffusers"]:
        if isinstance(case["timesteps"], dict):
            continue  # Long lists are summarised.
        # DDIM and DDPM; the other schedulers visit one more point or sigmas. Offset 1 shifts
        # "leading" off level 1.
        if case["cls"] in ("DDIMScheduler", "DDPMScheduler") and not case["steps_offset"]:
            ours = [t - 1 for t in sampling_levels(case["T"], case["S"], case["spacing"])[:-1]]
            if case["spacing"] == "trailing":
                # np.arange(T, 0, −T/S) accumulates rounding before it rounds to integers.
                assert max(abs(a - b) for a, b in zip(ours, case["timesteps"], strict=True)) <= 1
            else:
                assert ours == case["timesteps"], case
    for case in values["lucidrains_ddim"]:
        ours = [t - 1 for t in sampling_levels(case["T"], case["S"], "trailing")]
        # float32 truncated: up to one lower than the rounding of Lin et al. 2024.
        assert all(0 <= a - b <= 1 for a, b in zip(ours, case["times"], strict=True))
    for case in values["improved_diffusion"]:
        spec = str(case["spec"])
        if spec.startswith("ddim") and case["T"] % int(spec[4:]) == 0:
            ours = sampling_levels(case["T"], int(spec[4:]), "leading")[:-1]
            assert [t - 1 for t in reversed(ours)] == case["steps"]
    for case in values["tqch"]:
        # Their quadratic stops at 0.8·T and may repeat steps; ours ends at T and does not. Linear
        # agrees where it divides.
        if case["schedule"] == "linear" and case["T"] % case["size"] == 0:
            ours = sampling_levels(case["T"], case["size"], "leading")[:-1]
            assert [t - 1 for t in reversed(ours)] == case["steps"]


def toy(
    data: dict, schedule: Schedule, parametrization: str, *, net: bool = True, **options: object
) -> GaussianDiffusion:
    model = ToyNet(data) if net else torch.nn.Identity()
    options = {"clip": "none", "weighting": "simple", **options}
    return GaussianDiffusion(
        model,
        image_size=(4, 2),
        channels=3,
        schedule=schedule,
        parametrization=parametrization,
        **options,
    )


def reverse(
    diffusion: GaussianDiffusion, x_t: Tensor, t: Tensor, clip: str
) -> tuple[Tensor, Tensor, list[float]]:
    """Return (x̂_0, mean, variance) of the step t → t − 1, each row at its own t, counted from
    0.
    """
    rows = []
    for row, index in zip(x_t.double(), t.tolist(), strict=True):
        now, prev = diffusion.schedule.level(index + 1), diffusion.schedule.level(index)
        p = diffusion.denoise(row[None], now, clip=clip)
        rows.append((p.x0[0], posterior_mean(p.x0, p.eps, now, prev)[0], p.variance(now, prev)))
    x0, mean, variance = zip(*rows, strict=True)
    return torch.stack(x0), torch.stack(mean), list(variance)


CLIPS = [("clip", "static"), ("noclip", "none")]


@pytest.mark.parametrize("case", ["cosine_T10", "linear_T50", "linear_T1000"])
def test_improved_diffusion_process(shared: Path, case: str) -> None:
    data, meta = load(shared, f"B_process/improved_diffusion_{case}")
    schedule = Schedule.make(meta["config"]["schedule"], meta["config"]["T"])
    t, x0, noise = data["t"], data["x_start"].double(), data["noise"].double()
    for theirs, name, weighting in [("EPSILON", "eps", "simple"), ("START_X", "x0", "flat")]:
        for variance in ("FIXED_SMALL", "FIXED_LARGE"):
            d = toy(data, schedule, name, weighting=weighting, variance=variance.lower())
            close(d.q_sample((x0 + 1) / 2, t + 1, noise), data["f64/x_t"])
            close(
                d((x0 + 1) / 2, t=t + 1, noise=noise, reduction="none"),
                data[f"f64/loss/{theirs}/{variance}/MSE/loss"],
            )
            for key, clip in CLIPS:
                prefix = f"f64/p/{theirs}/{variance}/{key}"
                pred, mean, var = reverse(d, data["f64/x_t"], t, clip)
                close(pred, data[f"{prefix}/pred_xstart"])
                close(mean, data[f"{prefix}/mean"])
                # At t = 0 the peer puts the variance of t = 1 in "large", and never uses it.
                used = t > 0 if variance == "FIXED_LARGE" else t >= 0
                close(
                    torch.tensor(var, dtype=torch.float64)[used],
                    data[f"{prefix}/variance"].flatten()[used],
                )
    levels = [schedule.level(int(i) + 1) for i in t]
    eps = torch.stack(
        [(x - k.alpha * y) / k.sigma for x, y, k in zip(data["f64/x_t"], x0, levels, strict=True)]
    )
    close(eps, data["f64/eps_from_xstart"])


@pytest.mark.parametrize("case", ["cosine_T50", "linear_T100", "sigmoid_T1000"])
def test_lucidrains_process(shared: Path, case: str) -> None:
    data, meta = load(shared, f"B_process/lucidrains_{case}")
    schedule = Schedule.make(meta["config"]["schedule"], meta["config"]["T"])
    t, x0, noise = data["t"], data["x_start"].double(), data["noise"].double()
    for theirs, name in [("pred_noise", "eps"), ("pred_x0", "x0"), ("pred_v", "v")]:
        d = toy(data, schedule, name)
        images = (x0 + 1) / 2
        close(d.q_sample(images, t + 1, noise), data["f64/x_t"])
        close(d(images, t=t + 1, noise=noise, reduction="none"), data[f"f64/{theirs}/loss/plain"])
        close(d(images, t=t + 1, noise=noise), data[f"f64/{theirs}/loss/plain_mean"])
        offset = noise + 0.1 * data["offset_noise"].double()[..., None, None]
        close(
            d(images, t=t + 1, noise=offset, reduction="none"),
            data[f"f64/{theirs}/loss/offset_noise"],
        )
        clipped_snr = toy(data, schedule, name, weighting="min_snr")
        close(
            clipped_snr(images, t=t + 1, noise=noise, reduction="none"),
            data[f"f64/{theirs}/loss/minsnr5"],
        )
        for key, clip in CLIPS:
            pred, mean, var = reverse(d, data["f64/x_t"], t, clip)
            prefix = f"f64/{theirs}/{key}"
            close(pred, data[f"{prefix}/pred_x_start"])
            close(mean, data[f"{prefix}/p_mean"])
            close(var, data[f"{prefix}/p_variance"].flatten())


def test_conversions(shared: Path) -> None:
    data, _ = load(shared, "B_process/lucidrains_cosine_T50")
    schedule, noise, x0, x_t = (
        Schedule.make("cosine", 50),
        data["noise"].double(),
        data["x_start"].double(),
        data["f64/x_t"],
    )
    alpha, sigma = (v.view(-1, 1, 1, 1) for v in schedule.gather(data["t"] + 1))
    eps, v = PARAMETRIZATIONS["eps"](), PARAMETRIZATIONS["v"]()
    close(v.target(x0, noise, alpha, sigma), data["f64/v"])
    close(v.c_skip(alpha, sigma) * x_t + v.c_out(alpha, sigma) * noise, data["f64/x0_from_v"])
    close(eps.c_skip(alpha, sigma) * x_t + eps.c_out(alpha, sigma) * noise, data["f64/x0_from_eps"])


@pytest.mark.parametrize("case", ["0_T1000", "1_T50"])
def test_pytorch_ddpm_process(shared: Path, case: str) -> None:
    data, meta = load(shared, f"B_process/pytorch_ddpm_{case}")
    config = meta["config"]
    # Its betas are a float32 linspace natively, a float64 one in the float64 run.
    schedule = Schedule.make("linear", config["T"], FIXED)
    d = toy(data, schedule, "eps")
    t, x0, noise = data["t"], data["x_0"].double(), data["noise"].double()
    ours, prefix = d((x0 + 1) / 2, t=t + 1, noise=noise, reduction="none"), "w86763777/f64"
    close(d.q_sample((x0 + 1) / 2, t + 1, noise), data[f"{prefix}/x_t"])
    close(ours, data[f"{prefix}/loss"].flatten(1).mean(1))
    # Its x̂_0 is clipped after the mean was formed, which has no effect on the mean: as without
    # clipping.
    close(
        reverse(d, data[f"{prefix}/x_t"], t, "none")[1],
        data[f"{prefix}/fixedsmall/mean"],
        atol=1e-10,
    )


@pytest.mark.parametrize("case", ["linear_T50", "quad_T100", "jsd_T10"])
def test_tqch_process(shared: Path, case: str) -> None:
    data, meta = load(shared, f"B_process/tqch_{case}")
    name, timesteps = meta["config"]["schedule"], meta["config"]["T"]
    jsd = name == "jsd"
    schedule = (
        Schedule.from_betas([1 / (timesteps - t) for t in range(timesteps)])
        if jsd
        else Schedule.make(name, timesteps, FIXED if name == "linear" else {})
    )
    t, x0, noise = (
        data["t"],
        data["x_0" if "x_0" in data else "x_start"].double(),
        data["noise"].double(),
    )
    # jsd ends in pure noise, where eps is refused here and inf at the peer.
    for theirs, ours, weighting in [("x_0", "x0", "flat")] + (
        [] if jsd else [("eps", "eps", "simple")]
    ):
        for variance in ("fixed-small", "fixed-large"):
            d = toy(data, schedule, ours, weighting=weighting, variance=variance.replace("-", "_"))
            close(
                d((x0 + 1) / 2, t=t + 1, noise=noise, reduction="none"),
                data[f"f64/{theirs}/{variance}/loss_mse"],
            )
            x_t = d.q_sample((x0 + 1) / 2, t + 1, noise)
            for key, clip in CLIPS:
                prefix = f"f64/{theirs}/{variance}/{key}"
                pred, mean, var = reverse(d, x_t, t, clip)
                close(pred, data[f"{prefix}/pred_x_0"])
                close(mean, data[f"{prefix}/mean"])
                close(var, data[f"{prefix}/variance"].flatten())


@pytest.mark.parametrize("case", ["linear_T1000", "squaredcos_cap_v2_T100"])
def test_diffusers_process(shared: Path, case: str) -> None:
    data, meta = load(shared, f"B_process/diffusers_{case}")
    linear = meta["config"]["schedule"] == "linear"
    schedule = Schedule.make("linear", 1000, FIXED) if linear else Schedule.make("cosine", 100)
    t, z, output, x_t = (
        data["t"],
        data["z"].double(),
        data["model_output"].double(),
        data["f64/x_t"],
    )
    for theirs, name in [("epsilon", "eps"), ("sample", "x0"), ("v_prediction", "v")]:
        for variance in ("fixed_small", "fixed_large"):
            for key, clip in CLIPS:
                ours = steps(schedule, DDPM(), name, variance, clip, t, x_t, output, z)
                close(ours[0], data[f"f64/ddpm/{variance}/{theirs}/{key}/pred_x0"])
                close(ours[1], data[f"f64/ddpm/{variance}/{theirs}/{key}/prev_sample"])
        for eta in (0.0, 0.7):
            # With clipping the peer keeps the ε of the unclipped x̂_0, which no longer belongs to
            # x_t: not compared.
            ours = steps(schedule, DDIM(eta), name, "fixed_small", "none", t, x_t, output, z)
            close(ours[0], data[f"f64/ddim/{theirs}/eta{eta}/noclip/pred_x0"])
            close(ours[1], data[f"f64/ddim/{theirs}/eta{eta}/noclip/prev_sample"], atol=1e-9)
    alpha, sigma = (v.view(-1, 1, 1, 1) for v in schedule.gather(t + 1))
    x0 = (x_t - sigma * output) / alpha
    limits = meta["config"]["thresholding"]
    close(
        dynamic_threshold(x0, limits["ratio"], limits["sample_max_value"]),
        data["f64/ddpm/thresholding/pred_x0"],
    )
    velocity = PARAMETRIZATIONS["v"]().target(
        data["x_start"].double(), data["noise"].double(), alpha, sigma
    )
    close(velocity, data["f64/velocity"])


def steps(
    schedule: Schedule, sampler: Sampler, name: str, variance: str, clip: str, t, x_t, output, z
) -> tuple[Tensor, Tensor]:
    """Take the step t → t − 1 for each row at its own t from recorded network outputs."""
    x0s, results = [], []
    for x, f, draw, index in zip(x_t, output, z, t.tolist(), strict=True):
        net = torch.nn.Identity()
        net.forward = lambda x, t, cond, f=f: f[None]  # type: ignore[method-assign]
        d = GaussianDiffusion(
            net,
            image_size=(4, 2),
            channels=3,
            schedule=schedule,
            parametrization=name,
            variance=variance,
            clip=clip,
            weighting="flat",
        )
        now, prev = schedule.level(index + 1), schedule.level(index)
        x0s.append(d.denoise(x[None], now).x0[0])
        results.append(
            sampler.step(x[None], now, prev, d.denoise, lambda draw=draw: draw[None], [])[0]
        )
    return torch.stack(x0s), torch.stack(results)


def trajectory(
    sampler: Sampler, d: GaussianDiffusion, x: Tensor, timesteps: list[int], noise: Tensor
) -> Tensor:
    """Return the states of our loop on the peer's timesteps (from 0) with the peer's noise, in
    float64.
    """
    return visited(
        sampler, d, x, [*(d.schedule.level(t + 1) for t in timesteps), d.schedule.level(0)], noise
    )


def visited(
    sampler: Sampler, d: GaussianDiffusion, x: Tensor, levels: list[Level], noise: Tensor
) -> Tensor:
    """Return the states of our loop on given levels, which may go up."""
    states: list[Tensor] = []
    sample_loop(
        sampler,
        x.double(),
        levels,
        d.denoise,
        replay(noise),
        on_state=lambda i, x: states.append(x),
    )
    return torch.stack(states)


IMPROVED = [
    "cosine_T10",
    "cosine_T1000_50",
    "linear_T1000_10-15-20",
    "linear_T1000_ddim25",
    "linear_T50",
]


@pytest.mark.parametrize("case", IMPROVED)
def test_improved_diffusion_sampling(shared: Path, case: str) -> None:
    data, meta = load(shared, f"C_samplers/improved_diffusion_{case}")
    schedule, timesteps = (
        Schedule.make(meta["config"]["schedule"], meta["config"]["T"]),
        meta["values"]["timesteps"],
    )
    seen = 0
    for key, theirs in data.items():
        parts = key.split("/")
        if (
            parts[0] != "f64"
            or parts[-1] != "traj"
            or "LEARNED" in key
            or parts[1] not in ("ddpm", "ddim")
        ):
            continue
        clip = dict(CLIPS)[parts[-2]]
        if parts[1] == "ddim":
            sampler, name, variance = DDIM(float(parts[2][3:])), "eps", "fixed_small"
        else:
            sampler, name, variance = (
                DDPM(),
                {"EPSILON": "eps", "START_X": "x0"}[parts[2]],
                parts[3].lower(),
            )
        d = gaussian_diffusion(data["mu"], data["s"], schedule, name, variance=variance, clip=clip)
        close(
            trajectory(sampler, d, data["x_T"], timesteps, data["noise"]),
            theirs,
            rtol=1e-8,
            atol=1e-10,
        )
        seen += 1
    assert seen >= 8


@pytest.mark.parametrize(
    "case", ["cosine_T10", "linear_T50", "linear_T1000_ddim50", "sigmoid_T1000_ddim10"]
)
def test_lucidrains_sampling(shared: Path, case: str) -> None:
    data, meta = load(shared, f"C_samplers/lucidrains_{case}")
    schedule = Schedule.make(meta["config"]["schedule"], meta["config"]["T"])
    timesteps = meta["values"].get("times", list(range(schedule.timesteps - 1, -2, -1)))[:-1]
    for theirs, name in [("pred_noise", "eps"), ("pred_x0", "x0"), ("pred_v", "v")]:
        d = gaussian_diffusion(data["mu"], data["s"], schedule, name, clip="static")
        for key in [k for k in data if k.startswith("f64/dd") and k.endswith(f"{theirs}/traj")]:
            sampler = DDPM() if "/ddpm/" in key else DDIM(float(key.split("/")[2][3:]))
            close(
                trajectory(sampler, d, data["x_T"], timesteps, data["noise"]),
                data[key],
                rtol=1e-8,
                atol=1e-10,
            )


def test_lucidrains_interpolation(shared: Path) -> None:
    """It takes both images to t, each with its own noise, and mixes; then it starts one step lower:
    off by one, repeated here.
    """
    data, meta = load(shared, "C_samplers/lucidrains_cosine_T10")
    t, lam = meta["values"]["interpolate"]["t"], meta["values"]["interpolate"]["lam"]
    d = gaussian_diffusion(data["mu"], data["s"], Schedule.make("cosine", 10), "eps", clip="static")
    level, noise = d.schedule.level(t + 1), data["noise"].double()
    a, b = (
        level.alpha * data[f"interp_x{i + 1}"].double() + level.sigma * noise[i] for i in range(2)
    )
    ours = trajectory(DDPM(), d, (1 - lam) * a + lam * b, list(range(t - 1, -1, -1)), noise[2:])[-1]
    name = next(key for key in data if key.startswith("f64/interpolate"))
    close(ours, data[name], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    "case",
    ["linear_T50", "linear_T1000_linear10", "linear_T1000_quadratic12", "quad_T100_quadratic50"],
)
def test_tqch_sampling(shared: Path, case: str) -> None:
    data, meta = load(shared, f"C_samplers/tqch_{case}")
    config = meta["config"]
    schedule = Schedule.make(
        config["schedule"], config["T"], FIXED if config["schedule"] == "linear" else {}
    )
    timesteps = meta.get("values", {}).get("timesteps", list(range(config["T"] - 1, -1, -1)))
    for key, theirs in data.items():
        if not (key.startswith("f64/") and key.endswith("traj")):
            continue
        _, kind, *rest = key.split("/")
        variance = rest[-2].replace("-", "_")
        if kind == "ddim" and variance == "fixed_small":
            sampler, name = DDIM(float(rest[0][3:])), "eps"
        else:  # Its DDIM with eta = 1 and the large variance is ancestral sampling.
            sampler, name = DDPM(), {"eps": "eps", "x_0": "x0", "ddim": "eps"}[kind]
        d = gaussian_diffusion(
            data["mu"], data["s"], schedule, name, variance=variance, clip="static"
        )
        # With eta = 0 the peer still adds noise of standard deviation 1e-10 per step.
        close(
            trajectory(sampler, d, data["x_T"], timesteps, data["noise"]),
            theirs,
            rtol=1e-8,
            atol=5e-9,
        )


@pytest.mark.parametrize("case", ["0_T10", "1_T50"])
def test_pytorch_ddpm_sampling(shared: Path, case: str) -> None:
    data, meta = load(shared, f"C_samplers/pytorch_ddpm_{case}")
    config = meta["config"]
    # The recorded network has the peer's native betas, a float32 linspace; its process in float64 a
    # float64 one.
    net_schedule = Schedule.from_betas(
        torch.linspace(config["beta_1"], config["beta_T"], config["T"]).double()
    )
    schedule = Schedule.make("linear", config["T"], FIXED)
    for variance in ("fixed_small", "fixed_large"):
        d = gaussian_diffusion(
            data["mu"], data["s"], schedule, "eps", net_schedule, variance=variance
        )
        ours = trajectory(
            DDPM(), d, data["x_T"], list(range(config["T"] - 1, -1, -1)), data["noise"]
        ).clone()
        ours[-1].clamp_(-1, 1)  # The peer clips the finished image only.
        close(ours, data[f"w86763777/f64/{variance.replace('_', '')}/traj"], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("case", ["10_leading", "10_trailing", "12_linspace", "20_leading"])
def test_diffusers_sampling(shared: Path, case: str) -> None:
    data, meta = load(shared, f"C_samplers/diffusers_ddim_ddpm_{case}")
    schedule, stride = Schedule.make("linear", 1000, FIXED), 1000 // meta["config"]["steps"]
    prediction = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
    seen = 0
    for key, timesteps in meta["values"]["timesteps"].items():
        kind, *rest = key.split("/")
        # "clip" of DDIM keeps ε of the unclipped x̂_0. The inversion evaluates the network at t on
        # a state of t − T//S.
        if kind == "ddim_inverse" or (kind == "ddim" and rest[-1] == "clip"):
            continue
        clip = "static" if rest[-1].startswith("clip") else "none"
        variance = rest[1] if kind == "ddpm" else "fixed_small"
        d = gaussian_diffusion(
            data["mu"], data["s"], schedule, prediction[rest[0]], clip=clip, variance=variance
        )
        theirs, draw = data[f"f64/{key}/traj"], replay(data["noise"])
        if kind == "ddpm":
            ours = trajectory(DDPM(), d, data["x_T"], timesteps, data["noise"])
            if variance == "fixed_large" and timesteps[-1] > 0:
                # It leaves the noise out at t = 0 only, and so adds noise to the finished image
                # here.
                ours, theirs = ours[:-1], theirs[:-1]
        else:
            # Its DDIM steps to t − T//S even where the next step it visits is another level, so
            # step by step.
            clean = schedule.level(1 if rest[-1] == "no_alpha_one" else 0)
            states = [data["x_T"].double()]
            for t in timesteps:
                s = schedule.level(t - stride + 1) if t >= stride else clean
                states.append(
                    DDIM(float(rest[1][3:])).step(
                        states[-1], schedule.level(t + 1), s, d.denoise, draw, []
                    )
                )
            ours = torch.stack(states)
        close(ours, theirs, rtol=1e-8, atol=1e-9)
        seen += 1
    assert seen >= 15


def test_diffusers_zero_terminal_snr(shared: Path) -> None:
    data, _ = load(shared, "C_samplers/diffusers_zero_snr")
    schedule = Schedule.make("linear", 1000, {**FIXED, "zero_terminal_snr": True})
    d = gaussian_diffusion(data["mu"], data["s"], schedule, "v")
    timesteps = [t - 1 for t in sampling_levels(1000, 10, "trailing")[:-1]]
    close(
        trajectory(DDIM(), d, data["x_T"], timesteps, torch.zeros(1)),
        data["f64/ddim_v/traj"],
        rtol=1e-8,
        atol=1e-9,
    )


@pytest.mark.parametrize("case", ["cosine_T40", "linear_T1000_ddim50"])
def test_improved_diffusion_encoding(shared: Path, case: str) -> None:
    """It takes x_0 for the state at the first kept level, where `encode` starts at level 0;
    replayed here, and its last step to α = 0 left out.
    """
    data, meta = load(shared, f"C_samplers/ddim_reverse_{case}")
    schedule, timesteps = (
        Schedule.make(meta["config"]["schedule"], meta["config"]["T"]),
        meta["values"]["timesteps_ascending"],
    )
    for key, clip in CLIPS:
        d = gaussian_diffusion(data["mu"], data["s"], schedule, "eps", clip=clip)
        states = visited(
            DDIM(), d, data["x_0"], [schedule.level(t + 1) for t in timesteps], torch.zeros(0)
        )
        close(states, data[f"f64/{key}/encode"][:-1], rtol=1e-8, atol=1e-10)
        down = trajectory(DDIM(), d, states[-1], timesteps[::-1], torch.zeros(0))
        close(down[-1], data[f"f64/{key}/decode"][-1], rtol=1e-8, atol=1e-9)


def test_error_of_ddim_against_the_exact_flow(shared: Path) -> None:
    """The peer's distance from the exact probability flow of Gaussian data is ours."""
    data, meta = load(shared, "C_samplers/improved_diffusion_linear_T50")
    d = gaussian_diffusion(data["mu"], data["s"], Schedule.make("linear", 50), "eps")
    ours = trajectory(DDIM(), d, data["x_T"], meta["values"]["timesteps"], data["noise"])[-1]
    error = float((ours - data["exact_ode"][-1]).abs().max())
    assert error == pytest.approx(meta["values"]["ode_error_ddim_eta0_noclip"], rel=1e-6)
