"""Learned variances, terms of the variational bound and likelihoods of published implementations,
in float64.

Their t counts from 0 where ours counts from 1: level = t + 1. Where a peer does something else, the
test says what.
"""

import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ddpm_lib.diffusion import GaussianDiffusion
from ddpm_lib.process.bound import Chain, discretised_log_likelihood, gaussian_kl
from ddpm_lib.samplers import posterior_mean
from ddpm_lib.schedules import Schedule
from process_tools import ToyNet, load

CLIPS = [("clip", "static"), ("noclip", "none")]
MEANS = [("EPSILON", "eps"), ("START_X", "x0")]
FIXED = {"rescale": False}


def close(ours: Tensor, theirs: Tensor, rtol: float = 1e-8, atol: float = 1e-10) -> None:
    torch.testing.assert_close(
        torch.as_tensor(ours, dtype=torch.float64), theirs.double(), rtol=rtol, atol=atol
    )


def toy(
    data: dict, schedule: Schedule, parametrization: str, variance: str, **options: object
) -> GaussianDiffusion:
    net = ToyNet(data, "toy2" if variance == "learned_range" else "toy1")
    options = {
        "clip": "none",
        "weighting": "simple" if parametrization == "eps" else "flat",
        **options,
    }
    return GaussianDiffusion(
        net,
        image_size=(4, 2),
        channels=3,
        schedule=schedule,
        parametrization=parametrization,
        variance=variance,
        **options,
    )


def predict(
    d: GaussianDiffusion, x_t: Tensor, levels: list[int], clip: str
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return (x̂_0, mean of the step to the level below, raw variance), each row at its own
    level.
    """
    rows = []
    for row, t in zip(x_t.double(), levels, strict=True):
        now, below = d.schedule.level(t), d.schedule.level(t - 1)
        p = d.denoise(row[None], now, clip=clip)
        raw = p.variance.keywords["raw"]
        rows.append((p.x0, posterior_mean(p.x0, p.eps, now, below), raw))
    x0, mean, raw = zip(*rows, strict=True)
    return torch.cat(x0), torch.cat(mean), None if raw[0] is None else torch.cat(raw)


def above_floor(ours: Tensor, theirs: Tensor, floor: float) -> None:
    """Compare probabilities: the peers clamp at a floor, and lose digits in 1 − Φ and Φ − Φ."""
    close(ours.exp(), theirs.exp(), rtol=1e-8, atol=2 * floor)


def terms(d: GaussianDiffusion, t: Tensor, x0: Tensor, guess: Tensor, raw: Tensor | None) -> Tensor:
    """Return the terms of the bound with the decoder's probabilities clamped at 1e-12 as the peers
    have it.
    """
    bits = d.chain.terms(t, x0, guess, raw, d.variance)
    small, large = d.chain.table[3:, 0].tolist()
    log_var = torch.as_tensor(d.variance.decoder_log(small, large, raw), dtype=torch.float64)
    floored = discretised_log_likelihood(x0, guess, log_var).clamp(min=math.log(1e-12))
    return torch.where(t == 1, -floored.flatten(1).mean(1) / math.log(2), bits)


def close_terms(ours: Tensor, theirs: Tensor, t: Tensor) -> None:
    close(ours[t > 1], theirs[t > 1], rtol=1e-6)
    # The peers' 1 − Φ has four digits left where it comes near their floor.
    close(ours[t == 1], theirs[t == 1], rtol=5e-5)


def test_discretised_likelihood(shared: Path) -> None:
    data, _ = load(shared, "B_process/likelihoods")
    x, mean, log_scale = (data[k].double() for k in ("x", "means", "log_scales"))
    ours = discretised_log_likelihood(x, mean, 2 * log_scale)
    assert torch.isfinite(ours).all()
    above_floor(ours, data["f64/improved"], 1e-12)
    above_floor(
        ours, data["f64/lucidrains"], 1e-13
    )  # Its floor is 1e-15; below e^-30 our tail is another.
    above_floor(ours, data["f64/tqch"], 1e-12)
    # Away from the floors the logarithms agree as well.
    clear = data["f64/lucidrains"] > math.log(1e-6)
    close(ours[clear], data["f64/lucidrains"][clear])
    single = discretised_log_likelihood(x.float(), mean.float(), 2 * log_scale.float())
    torch.testing.assert_close(single.double(), ours, rtol=2e-5, atol=2e-5)


def test_gaussian_kl(shared: Path) -> None:
    data, _ = load(shared, "B_process/likelihoods")
    mean1, var1, mean2, var2 = (
        data[f"kl/{k}"].double() for k in ("mean1", "logvar1", "mean2", "logvar2")
    )
    ours = gaussian_kl(mean1 - mean2, var1, var2)
    close(ours, data["f64/kl_improved"])
    close(ours, data["f64/kl_tqch"])


@pytest.mark.parametrize("case", ["cosine_T10", "linear_T50", "linear_T1000"])
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned_range"])
def test_improved_diffusion(shared: Path, case: str, variance: str) -> None:
    data, meta = load(shared, f"B_process/improved_diffusion_{case}")
    schedule = Schedule.make(meta["config"]["schedule"], meta["config"]["T"])
    t, x0, noise = data["t"] + 1, data["x_start"].double(), data["noise"].double()
    chain = Chain.of(schedule)
    close(chain.prior(x0), data["f64/prior_bpd"], atol=1e-14)
    for theirs, name in MEANS:
        d = toy(data, schedule, name, variance, loss="vlb")
        for key, clip in CLIPS:
            prefix = f"f64/p/{theirs}/{variance.upper()}/{key}"
            guess, mean, raw = predict(d, data["f64/x_t"], t.tolist(), clip)
            close(guess, data[f"{prefix}/pred_xstart"])
            close(mean, data[f"{prefix}/mean"])
            if raw is not None:
                small, large = chain.table[3:, t - 1].view(2, -1, 1, 1, 1)
                close(d.variance.log(small, large, raw), data[f"{prefix}/log_variance"])
            close_terms(terms(d, t, x0, guess, raw), data[f"{prefix}/vb_bits"], t)
        # The decoder's floor, which is part of their loss, was seen above.
        images, draws, inner = (x0 + 1) / 2, {"t": t, "noise": noise, "reduction": "none"}, t > 1
        prefix = f"f64/loss/{theirs}/{variance.upper()}"
        close(d(images, **draws)[inner], data[f"{prefix}/RESCALED_KL/loss"][inner], rtol=1e-6)
        if variance == "learned_range":
            # Its T/1000 is our T·vlb_weight with λ = 0.001; "MSE" adds the term once.
            hybrid = toy(data, schedule, name, variance)
            close(
                hybrid(images, **draws)[inner],
                data[f"{prefix}/RESCALED_MSE/loss"][inner],
                rtol=1e-6,
            )
            plain = toy(data, schedule, name, variance, vlb_weight=1 / schedule.timesteps)
            close(plain(images, **draws)[inner], data[f"{prefix}/MSE/loss"][inner], rtol=1e-6)


@pytest.mark.parametrize("case", ["cosine_T50", "linear_T100", "sigmoid_T1000"])
def test_lucidrains_learned_variance(shared: Path, case: str) -> None:
    """It always reads eps; at t = 0 its lower end is log 1e-20 where ours is that of the next
    level; λ counts each term once.
    """
    data, meta = load(shared, f"B_process/lucidrains_{case}")
    schedule = Schedule.make(meta["config"]["schedule"], meta["config"]["T"])
    t, x0, noise = data["t"] + 1, data["x_start"].double(), data["noise"].double()
    d = toy(data, schedule, "eps", "learned_range", vlb_weight=0.001 / schedule.timesteps)
    inner = t > 1
    small, large = d.chain.table[3:, t - 1].view(2, -1, 1, 1, 1)
    for key, clip in CLIPS:
        guess, mean, raw = predict(d, data["f64/x_t"], t.tolist(), clip)
        close(guess, data[f"f64/learned/{key}/pred_x_start"])
        close(mean, data[f"f64/learned/{key}/p_mean"])
        close(
            d.variance.log(small, large, raw)[inner],
            data[f"f64/learned/{key}/p_log_variance"][inner],
        )
        floor = math.log(1e-20)
        close(
            d.variance.log(floor, large, raw)[~inner],
            data[f"f64/learned/{key}/p_log_variance"][~inner],
        )
    ours = d((x0 + 1) / 2, t=t, noise=noise, reduction="none")
    close(ours[inner], data["f64/learned/loss/noclip"][inner], rtol=1e-6)


@pytest.mark.parametrize("case", ["linear_T50", "quad_T100", "jsd_T10"])
def test_tqch_terms(shared: Path, case: str) -> None:
    data, meta = load(shared, f"B_process/tqch_{case}")
    name, timesteps = meta["config"]["schedule"], meta["config"]["T"]
    if name == "jsd":
        schedule = Schedule.from_betas([1 / (timesteps - t) for t in range(timesteps)])
    else:
        schedule = Schedule.make(name, timesteps, FIXED if name == "linear" else {})
    t, x0, noise = data["t"] + 1, data["x_start"].double(), data["noise"].double()
    for theirs, ours in [("x_0", "x0")] + ([] if name == "jsd" else [("eps", "eps")]):
        for variance in ("fixed-small", "fixed-large"):
            d = toy(data, schedule, ours, variance.replace("-", "_"), loss="vlb")
            x_t = d.q_sample((x0 + 1) / 2, t, noise)
            for key, clip in CLIPS:
                guess, _, raw = predict(d, x_t, t.tolist(), clip)
                theirs_bits = data[f"f64/{theirs}/{variance}/{key}/vb_bits"]
                close_terms(terms(d, t, x0, guess, raw), theirs_bits, t)
            loss = d((x0 + 1) / 2, t=t, noise=noise, reduction="none")
            inner = t > 1
            close(
                loss[inner] / timesteps, data[f"f64/{theirs}/{variance}/loss_kl"][inner], rtol=1e-6
            )


@pytest.mark.parametrize("case", ["cosine_T10", "linear_T50"])
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned_range"])
def test_whole_bound(shared: Path, case: str, variance: str) -> None:
    """The full chain, and one that visits every fifth level; noise[k] belongs to the k-th step from
    the top.
    """
    data, meta = load(shared, f"B_process/bpd_{case}")
    schedule = Schedule.make(meta["config"]["schedule"], meta["config"]["T"])
    x0 = data["x_start"].double()
    for kind, levels in [
        ("full", None),
        ("respaced", [t + 1 for t in meta["values"]["respaced"]["steps"]]),
    ]:
        chain = Chain.of(schedule, levels)
        for theirs, name in MEANS:
            d = toy(data, schedule, name, variance)
            for key, clip in CLIPS if kind == "full" else CLIPS[:1]:
                prefix = f"f64/{kind}/{theirs}/{variance.upper()}/{key}"
                close(chain.prior(x0), data[f"{prefix}/prior_bpd"], atol=1e-14)
                for i in range(
                    len(chain) - 1
                ):  # The decoder of the last column is at its floor, and seen above.
                    k = torch.full((len(x0),), len(chain) - i)
                    alpha, sigma = (v.view(-1, 1, 1, 1) for v in chain.table[:2, k - 1])
                    x_t = alpha * x0 + sigma * data["noise"][i].double()
                    guess, raw = d.estimate(x_t, alpha, sigma, chain.levels[k - 1], None, clip=clip)
                    close(
                        chain.terms(k, x0, guess, raw, d.variance),
                        data[f"{prefix}/vb"][:, i],
                        rtol=1e-6,
                    )
                    close(
                        (guess - x0).square().flatten(1).mean(1), data[f"{prefix}/xstart_mse"][:, i]
                    )


def test_edm_preconditioning(shared: Path) -> None:
    """Theirs is x = y + σn with σ = σ_ours/α_ours; here the same images at the levels of one
    schedule with just these σ.
    """
    data, meta = load(shared, "B_process/edm_precond_loss")
    config, y, noise = meta["config"], data["y"].double(), data["noise"].double()
    normal = data["rnd_normal"].double()
    drawn = (normal * config["P_std"] + config["P_mean"]).exp().flatten()
    order = drawn.argsort()
    alpha_bar = 1 / (1 + drawn[order] ** 2)
    schedule = Schedule.from_betas(1 - alpha_bar / torch.cat([torch.ones(1), alpha_bar[:-1]]))
    t = torch.empty_like(order).scatter_(0, order, torch.arange(len(order))) + 1

    class Net(torch.nn.Module):
        def forward(self, x: Tensor, time: Tensor, cond: None = None) -> Tensor:
            c_noise = ((schedule.sigma / schedule.alpha)[time.long() + 1].log() / 4).view(
                -1, 1, 1, 1
            )
            return data["A"].double() * x + data["B"].double() + data["C"].double() * c_noise

    options = {"sigma_data": config["sigma_data"]}
    d = GaussianDiffusion(
        Net(),
        image_size=(4, 2),
        channels=3,
        schedule=schedule,
        parametrization="edm",
        parametrization_options=options,
        weighting="edm",
        weighting_options=options,
        clip="none",
    )
    # Images go in as [0, 1]; theirs are not bounded, so the parts of the loss are called.
    alpha, sigma = (v.view(-1, 1, 1, 1) for v in schedule.gather(t))
    x_t = alpha * (y + drawn.view(-1, 1, 1, 1) * noise)
    guess, _ = d.estimate(x_t, alpha, sigma, t, None, clip="none")
    weight = d.weighting(schedule.snr[1:])[t - 1].view(-1, 1, 1, 1)
    close(weight * (guess - y).square(), data["f64/edm/loss"], rtol=1e-6)


def test_sigma_parameterisation(shared: Path) -> None:
    data, _ = load(shared, "B_process/sigma_parameterisation")
    schedule = Schedule.make("linear", 1000)
    close(schedule.alpha[1:] ** 2, data["alphas_cumprod"])
    close(schedule.snr[1:] ** -0.5, data["f64/sigmas"])
    between = [schedule.level(float(t) + 1) for t in data["query_t"]]
    close(
        torch.tensor([k.sigma / k.alpha for k in between], dtype=torch.float64),
        data["f64/sigma_of_t"],
    )
    # Below its first level the peer's t stays 0, where ours goes on to clean data; above the last
    # both stop.
    inside = (data["query_sigma"] >= data["f64/sigmas"][0]) & (
        data["query_sigma"] <= data["f64/sigmas"][-1]
    )
    levels = [schedule.level_at(-2 * math.log(float(s))) for s in data["query_sigma"]]
    close(
        torch.tensor([k.t - 1 for k in levels], dtype=torch.float64)[inside],
        data["f64/t_of_sigma"][inside],
        rtol=1e-6,
    )


@pytest.mark.parametrize("case", ["cosine_T10", "linear_T50"])
def test_totals_of_the_bound(shared: Path, case: str) -> None:
    """Their total is the sum of the terms and the prior, and their second error that of ε̂ = (x_t −
    α·x̂_0)/σ.
    """
    data, meta = load(shared, f"B_process/bpd_{case}")
    schedule = Schedule.make(meta["config"]["schedule"], meta["config"]["T"])
    chain = Chain.of(schedule)
    ratio = (chain.table[0] / chain.table[1]).flip(-1) ** 2  # SNR, noisiest first
    seen = 0
    for key in [k for k in data if k.endswith("total_bpd") and "f64" in k]:
        prefix = key.removesuffix("/total_bpd")
        close(data[f"{prefix}/vb"].sum(1) + data[f"{prefix}/prior_bpd"], data[key])
        if "/full/" in key:
            close(data[f"{prefix}/xstart_mse"] * ratio, data[f"{prefix}/mse"], rtol=1e-6, atol=1e-9)
        seen += 1
    assert seen >= 12


def test_kl_of_equal_gaussians_is_zero() -> None:
    zero = torch.zeros(3, dtype=torch.float64)
    assert torch.equal(gaussian_kl(zero, zero, zero), zero)
    # And it grows with any difference.
    for a, b in pairwise([0.0, 0.1, 0.5, 2.0]):
        assert float(gaussian_kl(zero + a, zero, zero)[0]) < float(
            gaussian_kl(zero + b, zero, zero)[0]
        )
