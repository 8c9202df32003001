"""Restoring images from measurements: the exact posterior of Gaussian data, and what users call."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from ddpm_lib.diffusion import GaussianDiffusion
from ddpm_lib.guidance import Guidance
from ddpm_lib.nn import Unet
from ddpm_lib.process.linear_maps import Linear
from ddpm_lib.process.measuring import (
    DDNM,
    DPS,
    METHODS,
    Measured,
    Method,
    MomentMatching,
    PiGDM,
    Problem,
    conjugate_gradients,
    make_method,
)
from ddpm_lib.process.operators import Blur, Mask
from ddpm_lib.process.plan import SamplingPlan
from ddpm_lib.process.restoring import ROUNDING, make_problem
from ddpm_lib.process.sampling import draw
from ddpm_lib.samplers import OF_DENOISERS, Predict, make_sampler, sample_loop
from ddpm_lib.schedules import Schedule
from ddpm_lib.schedules.levels import Level
from ddpm_lib.spacing import sampling_levels
from process_tools import TinyNet

CPU = torch.device("cpu")
SCHEDULE = Schedule.make("cosine", 1000)
D, R = 4, 0.3
GENERATOR = torch.Generator().manual_seed(0)
EYE = torch.eye(D, dtype=torch.float64)
HALF = torch.randn(D, D, generator=GENERATOR, dtype=torch.float64) * 0.4
SIGMA, MU = HALF @ HALF.T + 0.03 * EYE, torch.randn(D, generator=GENERATOR).double() * 0.3
A = torch.randn(2, D, generator=GENERATOR, dtype=torch.float64)
Y = torch.randn(2, generator=GENERATOR).double()
GAIN = SIGMA @ A.T @ torch.linalg.inv(A @ SIGMA @ A.T + R**2 * torch.eye(2).double())
MEAN, COV = MU + GAIN @ (Y - A @ MU), SIGMA - GAIN @ A @ SIGMA
"""Gaussian data N(MU, SIGMA), the measurement Y = A x + noise of deviation R, and the posterior."""


class Exact(nn.Module):
    """The exact denoiser of N(mu, sigma), predicting v."""

    channels = 1

    def __init__(self, mu: Tensor, sigma: Tensor) -> None:
        super().__init__()
        self.mu, self.sigma = mu, sigma

    def forward(self, x: Tensor, t: Tensor, cond: None = None) -> Tensor:
        level = SCHEDULE.level(float(t[0]) + 1)
        x0 = self.mu + (x - level.alpha * self.mu) @ pull(self.sigma, level).T
        return level.alpha * (x - level.alpha * x0) / level.sigma - level.sigma * x0


def pull(sigma: Tensor, level: Level) -> Tensor:
    """∂x̂_0/∂x_t = αΣ(α²Σ + σ²)⁻¹."""
    return level.alpha * sigma @ torch.linalg.inv(level.alpha**2 * sigma + level.sigma**2 * EYE)


def true_covariance(v: Tensor, level: Level) -> Tensor:
    return v @ (SIGMA - level.alpha * pull(SIGMA, level) @ SIGMA)


def gaussian(mu: Tensor, sigma: Tensor) -> GaussianDiffusion:
    return GaussianDiffusion(
        Exact(mu, sigma),
        image_size=(D,),
        channels=1,
        schedule=SCHEDULE,
        parametrization="v",
        clip="none",
        weighting="flat",
    )


PRIOR, POSTERIOR = gaussian(MU, SIGMA), gaussian(MEAN, COV)
LINEAR = Linear(lambda x: x @ A.T, lambda y: y @ A)


def guided(method: Method, rows: int) -> Guidance:
    problem = Problem(LINEAR, Y.expand(rows, 1, 2), R, (1, D))
    return Guidance(measured=Measured(problem, method))


EXACT = {
    "pigdm": PiGDM(covariance=true_covariance, iterations=2),
    "mmps": MomentMatching(iterations=2),
}


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("t", [1, 2, 100, 500, 900, 1000])
def test_the_true_covariance_predicts_as_the_posterior(name: str, t: int) -> None:
    """At every level x̂_0 and ε̂ are those of the denoiser of N(MEAN, COV); with 2 measurements
    conjugate gradients end after 2 steps.
    """
    x = torch.randn(5, 1, D, generator=torch.Generator().manual_seed(t)).double()
    level = SCHEDULE.level(t)
    with torch.inference_mode():
        ours = PRIOR.denoise(x, level, guidance=guided(EXACT[name], 5))
        truth = POSTERIOR.denoise(x, level)
        plain = PRIOR.denoise(x, level)
    torch.testing.assert_close(ours.x0, truth.x0, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(ours.eps, truth.eps, rtol=1e-6, atol=1e-7)
    assert not torch.allclose(plain.x0, truth.x0, atol=1e-3)


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpmpp_2m"])
def test_mean_and_covariance_of_samples(name: str, sampler: str) -> None:
    """The posterior's, in the limit of steps: errors fall as 1/steps or faster, and are those of
    the sampler alone, on a process of the posterior. From the exact linear map, without Monte
    Carlo.
    """
    method, errors = EXACT[name], []
    for steps in (15, 60):
        predict = partial(PRIOR.denoise, guidance=guided(method, 1 + D + D * steps))
        errors.append(moments_error(predict, sampler, steps))
        theirs = moments_error(POSTERIOR.denoise, sampler, steps)
        assert errors[-1] == pytest.approx(theirs, rel=1e-3, abs=1e-6)
    for few, many in zip(*errors):
        assert many < max(few / 2.5, 1e-12)  # the mean is exact for any number
        assert many < 0.25
    wrong = moments_error(partial(PRIOR.denoise, guidance=guided(DPS(), 1 + 5 * D)), "ddpm", 4)
    assert max(wrong) > 0.3


def moments_error(predict: Predict, sampler: str, steps: int) -> tuple[float, float]:
    """Return the relative errors of the mean and the covariance that a sampler makes.

    Row 0 has neither start nor noise, row 1 + k starts at the k-th unit vector; further rows have
    one unit of noise each.
    """
    levels = [SCHEDULE.level(t) for t in sampling_levels(SCHEDULE, steps, "log_snr")]
    rows = 1 + D + D * steps
    start = torch.zeros(rows, 1, D, dtype=torch.float64)
    start[1 : 1 + D, 0] = EYE
    drawn = 0

    def noise() -> Tensor:
        nonlocal drawn
        z = torch.zeros(rows, 1, D, dtype=torch.float64)
        begin = 1 + D + D * drawn
        z[begin : begin + D, 0] = EYE[: len(z) - begin]
        drawn += 1
        return z

    x = sample_loop(
        make_sampler(sampler), start, levels, predict, noise, level_at=SCHEDULE.level_at
    )[:, 0]
    response = x[1:] - x[0]
    top = levels[0]
    first = response[:D].T
    mean = x[0] + first @ (top.alpha * MEAN)
    law = top.alpha**2 * COV + top.sigma**2 * EYE
    cov = first @ law @ first.T + response[D:].T @ response[D:]
    return float((mean - MEAN).norm() / MEAN.norm()), float((cov - COV).norm() / COV.norm())


@pytest.mark.parametrize("method", [PiGDM(data_std=0.4), DDNM(data_std=0.4)])
def test_data_of_one_variance_need_no_covariance(method: Method) -> None:
    """ΠGDM's r_t² is then the truth, and DDNM the same without a derivative."""
    variance = 0.4**2
    gain = variance * A.T @ torch.linalg.inv(variance * A @ A.T + R**2 * torch.eye(2).double())
    mean, cov = MU + gain @ (Y - A @ MU), variance * EYE - variance * gain @ A
    prior, posterior = gaussian(MU, variance * EYE), gaussian(mean, cov)
    x = torch.randn(5, 1, D, generator=torch.Generator().manual_seed(1)).double()
    for t in (1, 300, 1000):
        level = SCHEDULE.level(t)
        ours = prior.denoise(x, level, guidance=guided(method, 5)).x0
        torch.testing.assert_close(ours, posterior.denoise(x, level).x0, rtol=1e-8, atol=1e-9)


def test_dps_is_the_gradient_of_its_likelihood() -> None:
    level = SCHEDULE.level(400)
    x = torch.randn(3, 1, D, dtype=torch.float64)
    x0 = PRIOR.denoise(x, level).x0
    moved = PRIOR.denoise(x, level, guidance=guided(DPS(), 3)).x0 - x0
    residual = Y - x0[:, 0] @ A.T
    variance = residual.square().mean(1, keepdim=True).clamp(min=R**2)  # no less than its noise
    gradient = residual / variance @ A @ pull(SIGMA, level)
    torch.testing.assert_close(moved[:, 0], level.sigma**2 / level.alpha * gradient)


def test_conjugate_gradients() -> None:
    generator = torch.Generator().manual_seed(0)
    half = torch.randn(3, 6, 6, generator=generator, dtype=torch.float64)
    k = half @ half.mT + 0.1 * torch.eye(6).double()
    b = torch.randn(3, 6, generator=generator, dtype=torch.float64)
    b[1] = 0  # solved from the start
    for iterations in (6, 50):
        v = conjugate_gradients(lambda v: (k @ v[..., None])[..., 0], b, iterations)
        torch.testing.assert_close(v, torch.linalg.solve(k, b), rtol=1e-6, atol=1e-8)
    assert torch.equal(v[1], torch.zeros(6).double())
    # A singular system: the part of b within its range is solved, and nothing explodes.
    flat = conjugate_gradients(lambda v: v.sum(1, keepdim=True).expand_as(v), torch.ones(1, 4), 20)
    torch.testing.assert_close(flat, torch.full((1, 4), 0.25))


def test_units() -> None:
    """2y − A·1 is what was measured of x in [−1, 1], whether A averages or not."""
    x = torch.rand(2, 1, D)
    weights = A.float()
    for operator in (Linear(lambda x: x @ weights.T), Blur(0.7)):
        problem = make_problem(operator.apply(x), operator, 0.05, (1, D), CPU)
        torch.testing.assert_close(problem.residual(2 * x - 1), torch.zeros_like(problem.y))
        assert problem.noise_std == pytest.approx(0.1)
    bytes_ = torch.tensor([[[0, 51, 102, 255]]], dtype=torch.uint8)
    problem = make_problem(bytes_, "noise:0", None, (1, D), CPU)
    torch.testing.assert_close(problem.y, 2 * bytes_.float() / 255 - 1)
    assert problem.noise_std == 2 * ROUNDING
    assert make_problem(bytes_, "noise:0.2", None, (1, D), CPU).noise_std == pytest.approx(0.4)


def tiny(**options: object) -> GaussianDiffusion:
    return GaussianDiffusion(TinyNet(), image_size=4, timesteps=20, weighting="flat", **options)


@pytest.mark.parametrize("method", METHODS)
def test_an_image_depends_on_its_number_alone(method: str) -> None:
    d, y = tiny(), torch.rand(5, 3, 4, 4)
    options = {"num_steps": 4, "method": method, "eta": 0.5, "noise_std": 0.1}
    whole = d.restore(y, "blur:1", seed=3, **options)
    assert whole.shape == (5, 3, 4, 4)
    assert whole.dtype == torch.float32
    assert not whole.requires_grad
    assert all(p.grad is None for p in d.parameters())
    torch.testing.assert_close(whole, d.restore(y, "blur:1", seed=3, batch_size=2, **options))
    torch.testing.assert_close(
        whole[3:], d.restore(y[3:], "blur:1", seed=3, first_index=3, **options)
    )
    seeds = d.restore(y, "blur:1", seeds=[9, 8, 7, 6, 5], **options)
    torch.testing.assert_close(seeds[2:3], d.restore(y[2:3], "blur:1", seed=7, **options))
    assert not torch.allclose(whole, seeds)


@pytest.mark.parametrize("sampler", OF_DENOISERS)
def test_every_sampler(sampler: str) -> None:
    d, y = tiny(), torch.rand(2, 3, 2, 2)
    found = d.restore(y, "downsampling:2", sampler=sampler, num_steps=6)
    free = d.restore(y, "downsampling:2", sampler=sampler, num_steps=6, strength=0.0)
    assert torch.isfinite(found).all()
    assert not torch.allclose(found, free)


@pytest.mark.parametrize("method", METHODS)
def test_without_strength_it_is_plain_sampling(method: str) -> None:
    d, y = tiny(), torch.rand(2, 3, 4, 4)
    plan = SamplingPlan.make(d.schedule, sampler="ddim", spacing="trailing", num_steps=5)
    free = draw(d, plan, 2, seed=4, purpose="restore")
    assert torch.equal(
        free, d.restore(y, "blur:1", seed=4, num_steps=5, strength=0.0, method=method)
    )
    assert not torch.allclose(free, d.sample(2, seed=4, num_steps=5))  # noise of its own


def test_what_a_mask_hides_has_no_influence() -> None:
    d, y = tiny(), torch.rand(3, 3, 4, 4)
    hidden = torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(0)) < 0.5
    for method in METHODS:
        draw_ = partial(d.restore, num_steps=4, method=method, batch_size=2)
        clean = draw_(y, Mask(hidden))
        assert torch.equal(clean, draw_(torch.where(hidden, torch.nan, y), Mask(hidden)))
        assert not torch.allclose(clean, draw_(torch.where(hidden, y, 1 - y), Mask(hidden)))


def test_measurements_are_followed() -> None:
    """With little noise, what is restored measures as what was measured, of a process that knows
    nothing of it.
    """
    mu, sigma = torch.zeros(D).double(), 0.2 * EYE + 0.1
    d = gaussian(mu, sigma)
    y = torch.tensor([[[0.2, 0.7]], [[0.5, 0.4]]])
    pairs = Linear(lambda x: 0.5 * (x[..., ::2] + x[..., 1::2]))
    for method in ("pigdm", "mmps", "ddnm"):
        options = {"method_options": {"iterations": 2}, "num_steps": 20, "noise_std": 0.001}
        found = d.restore(y, pairs, method=method, **options)
        torch.testing.assert_close(pairs.apply(found), y, atol=0.02, rtol=0)


def test_with_all_else_that_guides() -> None:
    """Classes and their guidance, a classifier, an earlier self, self-conditioning, a learned
    variance.
    """
    torch.manual_seed(0)
    model = Unet(
        dim=8,
        dim_mults=(1,),
        blocks_per_level=1,
        num_classes=3,
        self_condition=True,
        out_channels=6,
    )
    d = GaussianDiffusion(model, image_size=8, timesteps=20, variance="learned_range")
    for parameter in d.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    y = torch.rand(2, 3, 8, 8)
    options = {"cond": {"class_label": torch.tensor([0, 2])}, "num_steps": 3, "sampler": "ddpm"}
    options["noise_std"] = 0.1
    plain = d.restore(y, "blur:1", **options)
    further = [
        {"guidance_scale": 2.0},
        {"classifier": lambda x, t: 5 * x.flatten(1).sum(1)},
        {"guide_by": tiny_like(model), "guide_scale": 2.0},
        {"method": "mmps"},
        {"method": "ddnm"},
    ]
    for more in further:
        found = d.restore(y, "blur:1", **options, **more)
        assert torch.isfinite(found).all()
        assert not torch.allclose(found, plain)
        torch.testing.assert_close(
            found[1:],
            d.restore(
                y[1:],
                "blur:1",
                first_index=1,
                **{**options, "cond": {"class_label": torch.tensor([2])}},
                **more,
            ),
            atol=1e-4,
            rtol=0,
        )


def tiny_like(model: Unet) -> nn.Module:
    from copy import deepcopy

    other = deepcopy(model)
    for parameter in other.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return other


def test_pure_noise_is_not_differentiated() -> None:
    d = tiny(schedule="linear", schedule_options={"zero_terminal_snr": True})
    assert torch.isfinite(d.restore(torch.rand(1, 3, 4, 4), "blur:1", num_steps=5)).all()


def test_signals_and_volumes() -> None:
    for size in ((8,), (4, 4, 2)):
        d = GaussianDiffusion(TinyNet(2), image_size=size, timesteps=20, weighting="flat")
        small = tuple(s // 2 for s in size)
        found = d.restore(torch.rand(2, 2, *small), "downsampling:2", num_steps=3)
        assert found.shape == (2, 2, *size)


def test_refusals() -> None:
    d, y = tiny(), torch.rand(2, 3, 4, 4)
    for wrong, kind, message in [
        (
            {"measurement": y[..., :2]},
            ValueError,
            r"measurements \(n, 3, 4, 4\).*got \(2, 3, 4, 2\)",
        ),
        ({"measurement": y[0]}, ValueError, "measurements"),
        ({"measurement": y[:0]}, ValueError, "n ≥ 1"),
        ({"measurement": y * 255}, ValueError, "for 0 … 255 pass uint8"),
        ({"measurement": y * 2 - 1}, ValueError, r"pass \(y \+ 1\) / 2"),
        ({"measurement": torch.full_like(y, math.nan)}, ValueError, "NaN"),
        ({"measurement": y.long()}, TypeError, "uint8 or float"),
        ({"measurement": y.numpy()}, TypeError, "got ndarray"),
        ({"operator": "downsampling:3"}, ValueError, "divisible by 3"),
        ({"operator": "blr:3"}, ValueError, "Did you mean 'blur'"),
        ({"operator": "noise:0.1", "noise_std": 0.2}, ValueError, "Say it once"),
        ({"noise_std": -0.1}, ValueError, "at least 0"),
        ({"strength": -1.0}, ValueError, "strength must be at least 0"),
        ({"strength": math.nan}, ValueError, "strength must be at least 0"),
        ({"method": "pgdm"}, ValueError, "Did you mean 'pigdm'"),
        ({"method_options": {"data_sd": 1}}, ValueError, "Did you mean 'data_std'"),
        ({"method_options": {"data_std": 0}}, ValueError, "data_std must be above 0"),
        ({"method_options": {"iterations": 0}}, ValueError, "iterations must be"),
        ({"method": DPS(), "method_options": {"a": 1}}, ValueError, "an object has its own"),
        ({"method": 3}, TypeError, "method is a name"),
        ({"seeds": [1]}, ValueError, "1"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1"),
    ]:
        with pytest.raises(kind, match=message):
            d.restore(**{"measurement": y, "operator": "blur:1", "num_steps": 2, **wrong})
    with pytest.raises(TypeError, match="Did you mean 'noise_std'"):
        d.restore(y, "blur:1", noise_sd=0.1)
    assert make_method("mmps", {"iterations": 7}) == MomentMatching(7)
    # Noise takes measurements out of [0, 1], and units of another operator are the caller's.
    d.restore(y + 0.9, "blur:1", noise_std=0.3, num_steps=2)
    d.restore(9 * y, Linear(lambda x: 9 * x), num_steps=2)
