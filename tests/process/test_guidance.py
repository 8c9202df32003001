"""Guidance by a classifier: the exact posterior, the shift of the mean, and every sampler,
parametrization and batch.
"""

import math
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from ddpm_lib.diffusion import GaussianDiffusion
from ddpm_lib.guidance import ClassLogProb, Guidance
from ddpm_lib.nn import Unet
from ddpm_lib.parametrization import PARAMETRIZATIONS
from ddpm_lib.process.cascade import Stage, sample_cascade
from ddpm_lib.samplers import DDPM, OF_DENOISERS, make_sampler, posterior_mean
from ddpm_lib.schedules import Schedule
from ddpm_lib.schedules.levels import Level, tau
from ddpm_lib.spacing import sampling_levels
from process_tools import TinyNet, gaussian_diffusion
from sampler_tools import moments

MU, S, Y, R = 0.3, 0.5, -0.4, 0.6
"""Pixels N(MU, S²), and an observation Y of each with noise of standard deviation R."""
PRECISION = 1 / S**2 + 1 / R**2
MEAN, STD = (MU / S**2 + Y / R**2) / PRECISION, PRECISION**-0.5
"""The posterior of a pixel given Y."""
ZERO = {"rescale": False, "zero_terminal_snr": True}


class Observation:
    """log p(Y | x_t) for the pixels above: Y | x_t is Gaussian around E[x_0 | x_t]."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule, self.seen = schedule, []

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        self.seen.append(float(t[0]))
        level = self.schedule.level(float(t[0]) + 1)
        spread = level.alpha**2 * S**2 + level.sigma**2
        x0 = MU + level.alpha * S**2 / spread * (x - level.alpha * MU)
        variance = S**2 * level.sigma**2 / spread + R**2
        return (-0.5 * (Y - x0) ** 2 / variance).flatten(1).sum(1)


def pixel(
    schedule: Schedule, mu: float, s: float, parametrization: str, **options: object
) -> GaussianDiffusion:
    mu_, s_ = (torch.full((1, 1), v, dtype=torch.float64) for v in (mu, s))
    return gaussian_diffusion(mu_, s_, schedule, parametrization, **options)


@pytest.mark.parametrize("name", PARAMETRIZATIONS)
@pytest.mark.parametrize("t", [1, 2, 50, 99, 100])
def test_guided_by_the_exact_likelihood_the_prediction_is_that_of_the_posterior(
    name: str, t: int
) -> None:
    """Bayes' rule for scores, at every level: x̂_0 and ε̂ are those of the denoiser of N(MEAN,
    STD²).
    """
    schedule = Schedule.make("cosine", 100)
    prior, posterior = (pixel(schedule, m, s, name) for m, s in ((MU, S), (MEAN, STD)))
    # EDM's network sees a scaled x_t, which the exact one here does not know of.
    if name == "edm":
        prior, posterior = (unscaled(d) for d in (prior, posterior))
    x = torch.linspace(-2, 2, 9, dtype=torch.float64).view(9, 1, 1)
    level = schedule.level(t)
    ours = prior.denoise(x, level, guidance=Guidance(classifier=Observation(schedule)))
    truth = posterior.denoise(x, level)
    torch.testing.assert_close(ours.x0, truth.x0, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(ours.eps, truth.eps, rtol=1e-9, atol=1e-9)


def unscaled(d: GaussianDiffusion) -> GaussianDiffusion:
    """Give the exact network x_t instead of the scaled input."""
    real = d.model.forward

    def forward(x: Tensor, t: Tensor, cond: None = None) -> Tensor:
        level = d.schedule.level(float(t[0]) + 1)
        return real(
            x / d.parametrization.scale_input(torch.ones_like(x), level.alpha, level.sigma), t
        )

    d.model.forward = forward  # type: ignore[method-assign]
    return d


@pytest.mark.every(3)
@pytest.mark.parametrize("name", OF_DENOISERS)
def test_every_sampler_draws_from_the_posterior(name: str) -> None:
    schedule, steps = (
        Schedule.make("cosine", 1000),
        (1000 if name in ("ddpm", "ddim", "euler") else 200),
    )
    d = pixel(schedule, MU, S, "v")
    levels = [schedule.level(t) for t in sampling_levels(schedule, steps, "log_snr")]
    predict = partial(d.denoise, guidance=Guidance(classifier=Observation(schedule)))
    mean, std = moments(make_sampler(name), predict, levels, schedule.level_at, MEAN, STD)
    assert mean == pytest.approx(MEAN, abs=0.004)
    assert std == pytest.approx(STD, rel=0.02)
    assert abs(MEAN - MU) > 0.2
    assert STD < 0.8 * S


@pytest.mark.parametrize("name", ["v", "x0"])
def test_zero_terminal_snr(name: str) -> None:
    """Pure noise tells nothing, so the first step is unguided, and what that leaves behind vanishes
    with the step.
    """
    schedule = Schedule.make("linear", 1000, ZERO)
    d, fn = pixel(schedule, MU, S, name), Observation(schedule)
    guidance, x = Guidance(classifier=fn), torch.randn(4, 1, 1, dtype=torch.float64)
    top = schedule.level(1000)
    assert top.alpha == 0
    assert torch.equal(d.denoise(x, top, guidance=guidance).x0, d.denoise(x, top).x0)
    assert not fn.seen
    posterior = pixel(schedule, MEAN, STD, name)
    for steps, near in ((10, 2e-3), (100, 2e-4), (1000, 2e-5)):
        levels = [schedule.level(t) for t in sampling_levels(schedule, steps)]
        guided, truth = (
            moments(make_sampler("ddim"), predict, levels, mu=MEAN, s=STD)
            for predict in (partial(d.denoise, guidance=guidance), posterior.denoise)
        )
        assert guided == pytest.approx(truth, abs=near)


@pytest.mark.parametrize("name", ["eps", "x0", "v", "edm"])
def test_the_shift_of_the_ancestral_mean(name: str) -> None:
    """Algorithm 2 moves the mean by (α_s/α_t)·σ_t²·τ·scale·∇log p; algorithm 1, variance·∇log p, is
    that for short steps.
    """
    schedule = Schedule.make("linear", 1000)
    d = GaussianDiffusion(
        TinyNet(2),
        image_size=4,
        schedule=schedule,
        parametrization=name,
        clip="none",
        weighting="flat",
    )
    d = d.double()
    x, weight = (
        torch.randn(3, 2, 4, 4, dtype=torch.float64),
        torch.randn(2, 4, 4, dtype=torch.float64),
    )
    guidance = Guidance(
        classifier=lambda x, t: torch.sin(weight * x).flatten(1).sum(1), classifier_scale=1.7
    )
    gradient = 1.7 * weight * torch.cos(weight * x)
    for t, s in ((1000, 999), (600, 500), (2, 1), (1, 0), (900, 100)):
        high, low = schedule.level(t), schedule.level(s)
        with torch.no_grad():
            plain, guided = d.denoise(x, high), d.denoise(x, high, guidance=guidance)
        moved = posterior_mean(guided.x0, guided.eps, high, low) - posterior_mean(
            plain.x0, plain.eps, high, low
        )
        exact = low.alpha / high.alpha * high.sigma**2 * tau(high, low) * gradient
        torch.testing.assert_close(moved, exact, rtol=1e-7, atol=1e-9)
        if t - s == 1:
            beta = float(schedule.betas[t - 1])
            # Their factor is the variance β_t, ours β_t/√(1 − β_t).
            torch.testing.assert_close(moved, beta * gradient, rtol=0.6 * beta, atol=1e-9)
        torch.testing.assert_close(
            guided.eps, plain.eps - high.sigma * gradient, rtol=1e-6, atol=1e-7
        )


def test_clipping_comes_after_the_classifier() -> None:
    d = GaussianDiffusion(TinyNet(1), image_size=4, timesteps=20)
    pull = Guidance(classifier=lambda x, t: (100 * x).flatten(1).sum(1))
    with torch.no_grad():
        p = d.denoise(torch.zeros(1, 1, 4, 4), d.schedule.level(20), guidance=pull)
    assert torch.equal(p.x0, torch.ones(1, 1, 4, 4))
    assert float(p.eps.abs().max()) < 0.1


class Noisy(nn.Module):
    """A classifier with logits."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.linear = nn.Linear(48, classes)
        self.times: list[Tensor] = []

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.times.append(t)
        return self.linear(x.flatten(1)) + 0.001 * t[:, None]


def process(**options: object) -> GaussianDiffusion:
    return GaussianDiffusion(TinyNet(), image_size=4, timesteps=20, **options)


def test_logits_and_labels() -> None:
    classifier, x, t = Noisy(), torch.randn(5, 3, 4, 4), torch.full((5,), 7.0)
    labels = torch.tensor([0, 1, 2, 3, 0])
    log = ClassLogProb(classifier, labels)(x, t)
    expected = -nn.functional.cross_entropy(classifier(x, t), labels, reduction="none")
    torch.testing.assert_close(log, expected)
    torch.testing.assert_close(
        ClassLogProb(classifier, 2)(x, t), ClassLogProb(classifier, torch.tensor(2))(x, t)
    )
    torch.testing.assert_close(
        ClassLogProb(classifier, labels).rows(1, 3)(x[1:3], t[1:3]), log[1:3]
    )


@pytest.mark.parametrize("sampler", OF_DENOISERS)
def test_sampling_with_a_classifier(sampler: str) -> None:
    """Whatever the sampler and the batches, and without a trace in the gradients of any network."""
    torch.manual_seed(0)
    d, classifier = process(), Noisy()
    labels = torch.tensor([0, 1, 2, 3, 1])
    options = {
        "sampler": sampler,
        "num_steps": 5,
        "classifier": ClassLogProb(classifier, labels),
        "classifier_scale": 5.0,
    }
    guided = d.sample(5, **options)
    assert not torch.allclose(guided, d.sample(5, sampler=sampler, num_steps=5))
    torch.testing.assert_close(guided, d.sample(5, batch_size=2, **options))
    one = {**options, "classifier": ClassLogProb(classifier, 3)}
    torch.testing.assert_close(guided[3:4], d.sample(1, first_index=3, **one))
    assert all(p.grad is None for p in (*d.parameters(), *classifier.parameters()))
    assert not guided.requires_grad
    times = torch.stack([t[0] for t in classifier.times])
    assert float(times.max()) == 19  # counted from 0, as the network is told
    assert all(t.dtype == torch.float32 for t in classifier.times)


def test_where_it_is_off() -> None:
    d, fn = process(), Noisy()
    plain = d.sample(2, num_steps=10)
    for off in ({"classifier_scale": 0.0}, {"guidance_interval": (0.99, 0.995)}):
        assert torch.equal(plain, d.sample(2, num_steps=10, classifier=ClassLogProb(fn, 1), **off))
    assert not fn.times
    even = {"num_steps": 10, "spacing": "trailing"}
    d.sample(2, **even, classifier=ClassLogProb(fn, 1), guidance_interval=(0.2, 0.5))
    assert [float(t[0]) + 1 for t in fn.times] == [10, 8, 6]
    # Editing and inpainting take it as well.
    images, options = (
        torch.rand(2, 3, 4, 4),
        {
            "num_steps": 4,
            "classifier": ClassLogProb(fn, torch.tensor([0, 1])),
        },
    )
    assert not torch.equal(d.edit(images, **options, batch_size=1), d.edit(images, num_steps=4))
    walk = {"mask": torch.ones(4, 4), "num_resamples": 1}
    assert not torch.equal(
        d.inpaint(images, **walk, **options), d.inpaint(images, **walk, num_steps=4)
    )


def test_refusals() -> None:
    d = process()
    with pytest.raises(ValueError, match=r"shape \(2,\), differentiable in x_t; got \(2, 4\)"):
        d.sample(2, num_steps=2, classifier=Noisy())
    with pytest.raises(ValueError, match="without a gradient"):
        d.sample(2, num_steps=2, classifier=lambda x, t: x.detach().flatten(1).sum(1))


def test_both_kinds_of_guidance_together() -> None:
    """They add up: F is guided first, then x̂_0 moves by the classifier's share."""
    from ddpm_lib import Unet

    torch.manual_seed(0)
    net = Unet(dim=8, dim_mults=(1,), blocks_per_level=1, num_classes=3)
    for p in net.parameters():
        nn.init.normal_(p, std=0.1)
    d = GaussianDiffusion(net, image_size=8, timesteps=20, clip="none").eval()
    x, level, cond = (
        torch.randn(2, 3, 8, 8),
        d.schedule.level(9),
        {"class_label": torch.tensor([0, 2])},
    )

    def fn(x: Tensor, t: Tensor) -> Tensor:
        return -x.square().flatten(1).sum(1)

    with torch.no_grad():
        free, both = (
            d.denoise(x, level, cond, guidance=Guidance(2.0, classifier=c)).x0 for c in (None, fn)
        )
    torch.testing.assert_close(
        both, free - 2 * level.sigma**2 / level.alpha * x, rtol=1e-4, atol=1e-5
    )
    assert math.isfinite(float(both.sum()))


def test_ancestral_sampling_is_algorithm_1_in_the_limit() -> None:
    """The mean shifted by variance·∇log p at every step ends at the same posterior as the steps get
    short.
    """
    gaps = []
    for steps in (50, 400):
        schedule = Schedule.make("cosine", 1000)
        levels = [schedule.level(t) for t in sampling_levels(schedule, steps)]
        d, fn = pixel(schedule, MU, S, "v", variance="fixed_large"), Observation(schedule)

        def predict(x: Tensor, level: Level, d=d, fn=fn, levels=levels) -> object:
            # Their step: shift what makes the mean by variance·∇log p instead.
            below = levels[levels.index(level) + 1]
            p = d.denoise(x, level)
            shift = Guidance(classifier=fn).shift(
                x, level, torch.full((len(x),), level.t - 1.0), 1.0
            )
            factor = level.alpha / below.alpha if below.sigma else 0.0
            x0 = p.x0 + factor * shift
            return p._replace(x0=x0, eps=(x - level.alpha * x0) / level.sigma)

        theirs = moments(DDPM(), predict, levels, schedule.level_at)[0]
        gaps.append(abs(theirs - MEAN))
    assert gaps[1] < 0.3 * gaps[0]


GUIDED = {
    "sample": lambda d, cond: d.sample(2, cond=cond, guidance_scale=2.0, num_steps=2),
    "edit": lambda d, cond: d.edit(
        torch.rand(2, 1, 4, 4), cond=cond, guidance_scale=2.0, num_steps=2
    ),
    "inpaint": lambda d, cond: d.inpaint(
        torch.rand(2, 1, 4, 4),
        torch.ones(2, 1, 4, 4, dtype=torch.bool),
        cond=cond,
        guidance_scale=2.0,
        num_steps=2,
        num_resamples=1,
    ),
    "cascade": lambda d, cond: sample_cascade(
        [Stage(d, "ddim", num_steps=2, guidance_scale=2.0)], 2, cond=cond
    ),
}


@pytest.mark.parametrize("entry", GUIDED)
def test_guidance_towards_no_class_is_refused(entry: str) -> None:
    """Both halves would be the same: a strength without an effect."""
    torch.manual_seed(0)
    network = Unet(
        dim=8, dim_mults=(1,), blocks_per_level=1, channels=1, num_classes=3, class_drop_prob=0.2
    )
    d = GaussianDiffusion(network, image_size=4, timesteps=10)
    for none in (-1, [-1, -1], torch.tensor([-1, -1])):
        with pytest.raises(ValueError, match="every image: −1 is no class"):
            GUIDED[entry](d, {"class_label": none})
    drawn = GUIDED[entry](d, {"class_label": [-1, 2]})  # among others it says: this one without
    assert drawn.shape == (2, 1, 4, 4)


def test_no_class_among_classes_is_drawn_without_guidance() -> None:
    torch.manual_seed(0)
    network = Unet(
        dim=8, dim_mults=(1,), blocks_per_level=1, channels=1, num_classes=3, class_drop_prob=0.2
    )
    d = GaussianDiffusion(network, image_size=4, timesteps=10)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    guided = d.sample(2, cond={"class_label": [-1, 2]}, guidance_scale=3.0, num_steps=3)
    plain = d.sample(2, cond={"class_label": [-1, 2]}, num_steps=3)
    torch.testing.assert_close(guided[0], plain[0])
    assert not torch.allclose(guided[1], plain[1])
