"""Steps and sampling loops of published code, in float64: learned variances, variances of small
peers, denoisers in σ.

Their t counts from 0 where ours counts from 1. Where a peer does something else, the test says
what.
"""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ddpm_lib.diffusion import GaussianDiffusion
from ddpm_lib.samplers import DDIM, DDPM, Heun, posterior_mean, sample_loop
from ddpm_lib.schedules import Schedule
from ddpm_lib.schedules.levels import Level, tau
from process_tools import GaussianNet, ToyNet, gaussian_diffusion, load, replay

FIXED = {"rescale": False}
CLIPS = [("clip", "static"), ("noclip", "none")]


def close(ours: Tensor | float, theirs: Tensor, rtol: float = 1e-8, atol: float = 1e-10) -> None:
    ours = torch.as_tensor(ours, dtype=torch.float64)
    torch.testing.assert_close(ours, theirs.double().expand_as(ours), rtol=rtol, atol=atol)


def walk(
    sampler: object, d: GaussianDiffusion, x: Tensor, levels: list[Level], noise: Tensor
) -> tuple[Tensor, Tensor]:
    """Return all states and all x̂_0."""
    states, guesses = [], []

    def predict(x: Tensor, level: Level) -> object:
        p = d.denoise(x, level)
        guesses.append(p.x0)
        return p

    sample_loop(
        sampler, x.double(), levels, predict, replay(noise), on_state=lambda i, x: states.append(x)
    )  # type: ignore[arg-type]
    return torch.stack(states), torch.stack(guesses)


class WithVariance(GaussianNet):
    """The exact eps and A·x + B for the variance."""

    def __init__(self, data: dict[str, Tensor], schedule: Schedule) -> None:
        super().__init__(data["mu"], data["s"], schedule, "eps")
        self.a, self.b = data["var_A"].double(), data["var_B"].double()

    def forward(self, x: Tensor, t: Tensor, cond: None = None) -> Tensor:
        return torch.cat([super().forward(x, t), (self.a * x + self.b).to(x.dtype)], 1)


def learned(data: dict[str, Tensor], schedule: Schedule, clip: str) -> GaussianDiffusion:
    size, channels = tuple(data["x_T"].shape[2:]), data["x_T"].shape[1]
    options = {"parametrization": "eps", "variance": "learned_range", "clip": clip}
    return GaussianDiffusion(
        WithVariance(data, schedule),
        image_size=size,
        channels=channels,
        schedule=schedule,
        **options,
    )


IMPROVED = [
    "cosine_T10",
    "cosine_T1000_50",
    "linear_T1000_10-15-20",
    "linear_T1000_ddim25",
    "linear_T50",
]


@pytest.mark.parametrize("case", IMPROVED)
def test_sampling_with_a_learned_variance(shared: Path, case: str) -> None:
    """Both ends of the range are those of the kept steps; rescaling what the network is told of t
    changes nothing here.
    """
    data, meta = load(shared, f"C_samplers/improved_diffusion_{case}")
    schedule = Schedule.make(meta["config"]["schedule"], meta["config"]["T"])
    levels = [schedule.level(t) for t in [*(t + 1 for t in meta["values"]["timesteps"]), 0]]
    for key, clip in CLIPS:
        states, guesses = walk(
            DDPM(), learned(data, schedule, clip), data["x_T"], levels, data["noise"]
        )
        prefix = f"f64/ddpm/EPSILON/LEARNED_RANGE/{key}"
        close(states, data[f"{prefix}/traj"])
        last = data.get(f"{prefix}/pred_xstart_last5", data.get(f"{prefix}/pred_xstart"))
        close(guesses[-len(last) :], last, rtol=1e-7)
    d = gaussian_diffusion(data["mu"], data["s"], schedule, "eps", clip="static")
    states, _ = walk(DDPM(), d, data["x_T"], levels, data["noise"])
    close(states, data["f64/ddpm_rescaled_t/EPSILON/FIXED_SMALL/clip/traj"])


@pytest.mark.parametrize("case", IMPROVED)
def test_the_exact_flow(shared: Path, case: str) -> None:
    """Gaussian data at every visited level: what deterministic DDIM comes near to, and what it is
    recorded to miss.
    """
    data, meta = load(shared, f"C_samplers/improved_diffusion_{case}")
    schedule = Schedule.make(meta["config"]["schedule"], meta["config"]["T"])
    levels = [schedule.level(t) for t in [*(t + 1 for t in meta["values"]["timesteps"]), 0]]
    mu, s, top = data["mu"].double(), data["s"].double(), levels[0]
    spread = torch.sqrt(top.alpha**2 * s**2 + top.sigma**2)
    for level, theirs in zip(levels, data["exact_ode"], strict=True):
        at = torch.sqrt(level.alpha**2 * s**2 + level.sigma**2)
        close(level.alpha * mu + at / spread * (data["x_T"].double() - top.alpha * mu), theirs)
    d = gaussian_diffusion(data["mu"], data["s"], schedule, "eps")
    states, guesses = walk(DDIM(), d, data["x_T"], levels, data["noise"])
    last = data.get(
        "f64/ddim/eta0.0/noclip/pred_xstart_last5", data.get("f64/ddim/eta0.0/noclip/pred_xstart")
    )
    close(guesses[-len(last) :], last, rtol=1e-7)
    error = float((states[-1] - data["exact_ode"][-1]).abs().max())
    assert error == pytest.approx(meta["values"]["ode_error_ddim_eta0_noclip"], rel=1e-6)


@pytest.mark.parametrize("case", ["cosine_T10", "linear_T50"])
def test_lucidrains_learned_sampling(shared: Path, case: str) -> None:
    """It always clips; its lower end at t = 0, log 1e-20, is never used, because no noise is drawn
    there.
    """
    data, meta = load(shared, f"C_samplers/lucidrains_{case}")
    schedule = Schedule.make(meta["config"]["schedule"], meta["config"]["T"])
    levels = [schedule.level(t) for t in range(schedule.timesteps, -1, -1)]
    states, _ = walk(DDPM(), learned(data, schedule, "static"), data["x_T"], levels, data["noise"])
    close(states, data["f64/learned/traj"])


@pytest.mark.parametrize("case", ["linear_T1000", "squaredcos_cap_v2_T100"])
def test_diffusers_steps_with_other_variances(shared: Path, case: str) -> None:
    data, meta = load(shared, f"B_process/diffusers_{case}")
    linear = meta["config"]["schedule"] == "linear"
    schedule = Schedule.make("linear", 1000, FIXED) if linear else Schedule.make("cosine", 100)
    t, z, x_t = data["t"], data["z"].double(), data["f64/x_t"]

    def step(
        output: Tensor, name: str, variance: str, clip: str, **options: object
    ) -> tuple[Tensor, Tensor]:
        rows = []
        for x, f, draw, index in zip(x_t, output.double(), z, t.tolist(), strict=True):
            net = nn.Identity()
            net.forward = lambda x, t, cond, f=f: f[None]  # type: ignore[method-assign]
            options = {
                "parametrization": name,
                "variance": variance,
                "clip": clip,
                "weighting": "flat",
                **options,
            }
            d = GaussianDiffusion(net, image_size=(4, 2), channels=3, schedule=schedule, **options)
            now, below = schedule.level(index + 1), schedule.level(index)
            rows.append(
                (
                    d.denoise(x[None], now).x0[0],
                    DDPM().step(x[None], now, below, d.denoise, lambda z=draw: z[None], [])[0],
                )
            )
        return torch.stack([r[0] for r in rows]), torch.stack([r[1] for r in rows])

    for theirs, name in [("epsilon", "eps"), ("sample", "x0"), ("v_prediction", "v")]:
        for key, clip in CLIPS:
            small = step(data["model_output"], name, "fixed_small", clip)
            close(small[1], data[f"f64/ddpm/fixed_small_log/{theirs}/{key}/prev_sample"])
            between = step(data["model_output_learned"], name, "learned_range", clip)
            close(between[0], data[f"f64/ddpm/learned_range/{theirs}/{key}/pred_x0"])
            close(between[1], data[f"f64/ddpm/learned_range/{theirs}/{key}/prev_sample"])
    # Its DDIM with clipping keeps ε of the unclipped x̂_0, which no longer belongs to x_t.
    x0, _ = step(data["model_output"], "eps", "fixed_small", "static")
    close(x0, data["f64/ddim/epsilon/eta0.0/clip/pred_x0"])
    alpha, sigma = (v.view(-1, 1, 1, 1) for v in schedule.gather(t + 1))
    below_alpha, below_sigma = (v.view(-1, 1, 1, 1) for v in schedule.gather(t))
    kept = below_alpha * x0 + below_sigma * data["model_output"].double()
    close(kept, data["f64/ddim/epsilon/eta0.0/clip/prev_sample"])
    consistent = below_alpha * x0 + below_sigma * (x_t - alpha * x0) / sigma
    assert float((kept - consistent).abs().max()) > 0.1


@pytest.mark.parametrize("steps", ["10_leading", "10_trailing", "12_linspace", "20_leading"])
def test_what_diffusers_ddim_does_with_a_clipped_image(shared: Path, steps: str) -> None:
    """Replayed: x̂_0 clipped, ε̂ not, and always a step of T//S levels."""
    data, meta = load(shared, f"C_samplers/diffusers_ddim_ddpm_{steps}")
    schedule, stride = Schedule.make("linear", 1000, FIXED), 1000 // meta["config"]["steps"]
    d = gaussian_diffusion(data["mu"], data["s"], schedule, "eps")
    for run, timesteps in meta["values"]["timesteps"].items():
        if not (run.startswith("ddim/epsilon/eta0.0") and run.endswith("/clip")):
            continue
        x, states = data["x_T"].double(), [data["x_T"].double()]
        for t in timesteps:
            p, s = d.denoise(x, schedule.level(t + 1)), schedule.level(max(t - stride + 1, 0))
            x = s.alpha * p.x0.clamp(-1, 1) + s.sigma * p.eps
            states.append(x)
        close(torch.stack(states), data[f"f64/{run}/traj"], atol=1e-9)
        break
    else:
        raise AssertionError("no such run")
    # The inversion asks the network at t for a state that it takes to be at t − T//S.
    x, states = data["f64/ddim_inverse/noclip/traj"][0].double(), []
    for t in meta["values"]["timesteps"]["ddim_inverse/noclip"]:
        states.append(x)
        now, then = schedule.level(max(t - stride + 1, 0)), schedule.level(t + 1)
        eps = d.denoise(x, then).eps
        x = then.alpha * (x - now.sigma * eps) / now.alpha + then.sigma * eps
    close(torch.stack([*states, x]), data["f64/ddim_inverse/noclip/traj"], atol=1e-9)


def test_simple_ddpm_steps(shared: Path) -> None:
    """Ho et al., eq. 11, in float32 with the small variance; it takes no step from t = 0."""
    data, _ = load(shared, "B_process/simple_ddpm_step")
    schedule = Schedule.make("linear", 1000, FIXED)
    for x, eps, z, index, theirs in zip(
        data["x_t"], data["eps"], data["z"], data["t"].tolist(), data["x_prev"], strict=True
    ):
        now, below = schedule.level(index + 1), schedule.level(index)
        x0 = (x.double() - now.sigma * eps.double()) / now.alpha
        ours = (
            posterior_mean(x0, eps.double(), now, below)
            + below.sigma * math.sqrt(tau(now, below)) * z.double()
        )
        close(ours, theirs, rtol=2e-4, atol=2e-4)


def test_simple_ddpm_loop(shared: Path) -> None:
    """Its network A·x + B is told no t, and its loop ends at t = 1: one step short of an image."""
    data, meta = load(shared, "C_samplers/simple_ddpm")
    schedule, steps = Schedule.make("linear", 1000, FIXED), meta["config"]["num_steps"]
    net = nn.Identity()
    net.forward = lambda x, t, cond: data["A"].double() * x + data["B"].double()  # type: ignore[method-assign]
    shape = data["x_T"].shape
    d = GaussianDiffusion(
        net,
        image_size=tuple(shape[2:]),
        channels=shape[1],
        schedule=schedule,
        parametrization="eps",
        clip="none",
    )
    levels = [schedule.level(t + 1) for t in range(steps - 1, -1, -1)]
    states, _ = walk(DDPM(), d, data["x_T"], levels, data["noise"])
    close(states, data["traj"], rtol=1e-4, atol=1e-4)
    assert levels[-1].t == 1


@pytest.mark.parametrize("case", ["0_T10", "1_T50"])
def test_deepspark_sampling(shared: Path, case: str) -> None:
    """pytorch-ddpm with its tables in float32; promoted to float64 it is the same, the finished
    image clipped alone.
    """
    data, meta = load(shared, f"C_samplers/pytorch_ddpm_{case}")
    config = meta["config"]
    net_schedule = Schedule.from_betas(
        torch.linspace(config["beta_1"], config["beta_T"], config["T"]).double()
    )
    schedule = Schedule.make("linear", config["T"], FIXED)
    for variance in ("fixed_small", "fixed_large"):
        d = gaussian_diffusion(
            data["mu"], data["s"], schedule, "eps", net_schedule, variance=variance
        )
        levels = [schedule.level(t) for t in range(config["T"], -1, -1)]
        states = walk(DDPM(), d, data["x_T"], levels, data["noise"])[0].clone()
        states[-1].clamp_(-1, 1)
        close(states, data[f"deepspark/f64/{variance.replace('_', '')}/traj"], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("case", ["0_T1000", "1_T50"])
def test_pytorch_ddpm_variances(shared: Path, case: str) -> None:
    """Log-variances of both kinds, t = 0 included, where both are the small one of t = 1."""
    data, meta = load(shared, f"B_process/pytorch_ddpm_{case}")
    schedule = Schedule.make("linear", meta["config"]["T"], FIXED)
    large, small = [], []
    for index in data["t"].tolist():
        now, below = schedule.level(index + 1), schedule.level(index)
        if index == 0:
            now, below = schedule.level(2), schedule.level(1)
        small.append(math.log(below.sigma**2 * tau(now, below)))
        large.append(math.log((now.sigma if index else below.sigma) ** 2 * tau(now, below)))
    for peer, atol in (("w86763777", 1e-9), ("deepspark", 1e-4)):
        for kind, ours in (("fixedlarge", large), ("fixedsmall", small)):
            theirs = data[f"{peer}/f64/{kind}/log_var"].flatten(1)[:, 0]
            close(torch.tensor(ours, dtype=torch.float64), theirs, atol=atol)
        close(data["w86763777/f64/x_t"], data[f"{peer}/f64/x_t"], rtol=1e-5, atol=1e-5)
        close(data["w86763777/f64/loss"], data[f"{peer}/f64/loss"], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("case", ["linear_T50", "quad_T100", "jsd_T10"])
def test_tqch_posterior_and_its_mean_prediction(shared: Path, case: str) -> None:
    """Its third kind of network predicts the posterior mean: x̂_0 from it is the posterior's
    equation solved.
    """
    data, meta = load(shared, f"B_process/tqch_{case}")
    name, timesteps = meta["config"]["schedule"], meta["config"]["T"]
    schedule = Schedule.make(name, timesteps, FIXED if name == "linear" else {})
    x0, x_t = data["x_start"].double(), data["f64/x_t"]
    for i, index in enumerate(data["t"].tolist()):
        now, below = schedule.level(index + 1), schedule.level(index)
        eps = (x_t[i] - now.alpha * x0[i]) / now.sigma
        close(posterior_mean(x0[i], eps, now, below), data["f64/posterior_mean"][i], atol=1e-9)
        close(
            below.sigma**2 * tau(now, below),
            data["f64/posterior_variance"][i].flatten()[0],
            atol=1e-14,
        )
        if index == 0 or now.alpha == 0:
            # The mean of the last step is x̂_0; from pure noise the equation has no solution in
            # floats.
            continue
        mean = data["f64/mean/fixed-small/noclip/mean"][i]
        weight = below.sigma * math.sqrt(1 - tau(now, below)) / now.sigma  # of x_t
        guess = (mean - weight * x_t[i]) / (below.alpha - weight * now.alpha)
        close(guess, data["f64/mean/fixed-small/noclip/pred_x_0"][i], rtol=1e-6, atol=1e-7)


def test_denoisers_in_sigma(shared: Path) -> None:
    """k-diffusion's wrappers D(x̃, σ̃) for eps and v are our x̂_0 at the level with σ/α = σ̃ and x
    = α·x̃.
    """
    data, _ = load(shared, "B_process/sigma_parameterisation")
    schedule, seen = Schedule.make("linear", 1000), 0
    table = data["f64/sigmas"]
    for parametrization, key in (("eps", "f64/denoised_eps"), ("v", "f64/denoised_v")):
        options = {
            "schedule": schedule,
            "parametrization": parametrization,
            "clip": "none",
            "weighting": "flat",
        }
        d = GaussianDiffusion(
            ToyNet(data, "toy"), image_size=tuple(data["x"].shape[2:]), channels=3, **options
        )
        for x, sigma, theirs in zip(
            data["x"].double(), data["query_sigma"].double().flatten(), data[key], strict=False
        ):
            if not table[0] <= sigma <= table[-1]:
                continue
            level = schedule.level_at(-2 * math.log(float(sigma)))
            # Networks get t in float32 here.
            close(d.denoise(level.alpha * x[None], level).x0[0], theirs, rtol=1e-5, atol=1e-5)
            seen += 1
    assert seen >= 6
    for steps in (10, 25):
        grid = [schedule.level(1 + 999 * (1 - k / (steps - 1))) for k in range(steps)]
        ours = torch.tensor([k.sigma / k.alpha for k in grid] + [0.0], dtype=torch.float64)
        close(ours, data[f"f64/get_sigmas_{steps}"], rtol=1e-7)


@pytest.mark.parametrize("steps", [6, 15])
def test_churn_and_exact_ends_of_k_diffusion(shared: Path, steps: int) -> None:
    """Its Heun errs from the exact flow by as much as ours; the flow of Gaussian data has a closed
    form.
    """
    data, meta = load(shared, f"C_samplers/k_diffusion_{steps}")
    sigmas, mu, s = data["f64/sigmas"].tolist(), data["mu"].double(), data["s"].double()
    start = data["x_T"].double() * sigmas[0]
    close(mu + s / torch.sqrt(s**2 + sigmas[0] ** 2) * (start - mu), data["exact"])

    def between(log_snr: float) -> Level:
        return Level.of_log_snr(math.nan, log_snr)

    levels = [between(-2 * math.log(v)) for v in sigmas[:-1]] + [Level(0, 1.0, 0.0)]
    schedule = Schedule.make("linear", 1000)
    exact = gaussian_diffusion(mu, s, schedule)

    def predict(x: Tensor, level: Level) -> object:
        away = (x - level.alpha * mu) / (level.alpha**2 * s**2 + level.sigma**2)
        return exact.denoise(x, schedule.level(1))._replace(
            x0=mu + level.alpha * s**2 * away, eps=level.sigma * away
        )

    x = sample_loop(
        Heun(limit=math.inf),
        start * levels[0].alpha,
        levels,
        predict,
        replay(data["noise"]),
        level_at=between,
    )  # type: ignore[arg-type]
    assert float((x - data["exact"]).abs().max()) == pytest.approx(
        meta["values"]["ode_error"]["heun"], rel=1e-6
    )
