"""Consistency tuning: the pairs of levels, the loss, and on Gaussian data the consistency function
in closed form.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ddpm_lib import Schedule, Unet
from ddpm_lib.diffusion import GaussianDiffusion
from ddpm_lib.parametrization import EDM, PARAMETRIZATIONS, X0, V
from ddpm_lib.process.level_pairs import ConsistencyPairs, pairs_of
from ddpm_lib.samplers import Consistency
from process_tools import TinyNet

S, MU = 0.2, 0.1
SCHEDULE = Schedule.make("cosine", 1000)


class Power(nn.Module):
    """x̂_0 = m + (y − m)·(s²/(s² + t²))^p with y = x_t/α and t = σ/α, for data N(m, s²).

    p = 1 is the denoiser, the mean of x_0 given x_t. p = ½ is the consistency function: on the
    trajectory dy/dt = t·(y − m)/(s² + t²) of the probability flow, (y − m)/√(s² + t²) stays.
    """

    channels = 1

    def __init__(self, parametrization: str = "v", power: float = 1.0) -> None:
        super().__init__()
        self.power, self.mean = (nn.Parameter(torch.tensor(v)) for v in (power, MU))
        self.terms = PARAMETRIZATIONS[parametrization]()

    def forward(self, x: Tensor, t: Tensor, cond: None = None) -> Tensor:
        levels = [v.float().view(-1, *[1] * (x.ndim - 1)) for v in SCHEDULE.gather(t.double() + 1)]
        alpha, sigma = levels
        shrink = (S**2 / (S**2 + (sigma / alpha) ** 2)) ** self.power
        clean = self.mean + (x / alpha - self.mean) * shrink
        return (clean - self.terms.c_skip(alpha, sigma) * x) / self.terms.c_out(alpha, sigma)


def gaussian(n: int, seed: int) -> Tensor:
    """Draw images (n, 1, 2, 2) in [0, 1] whose values in [-1, 1] are N(μ, s²)."""
    generator = torch.Generator().manual_seed(seed)
    return (1 + MU + S * torch.randn(n, 1, 2, 2, generator=generator).clamp(-4, 4)) / 2


def student(network: nn.Module, parametrization: str = "v", **options: Any) -> GaussianDiffusion:
    teacher = GaussianDiffusion(
        network,
        image_size=2,
        channels=1,
        schedule=SCHEDULE,
        parametrization=parametrization,
        clip="none",
    )
    made = teacher.for_consistency(loss_options=options)
    if isinstance(network, Power):
        network.terms = made.parametrization  # so that its answer is the one above
    return made


@pytest.mark.parametrize("parametrization", ["v", "x0"])
def test_a_gaussian_denoiser_becomes_the_consistency_function(parametrization: str) -> None:
    """From p = 1 to p = ½, nearer in every stage."""
    torch.manual_seed(0)
    stages, steps = 3, 40
    process = student(Power(parametrization), parametrization, stages=stages, q=4.0).train()
    network = process.model
    optimizer = torch.optim.Adam(process.parameters())
    away = []
    for i in range(stages * steps):
        optimizer.param_groups[0]["lr"] = 0.06 * (1 - (i % steps) / steps)
        optimizer.zero_grad()
        process(gaussian(128, i), progress=i / (stages * steps)).backward()
        optimizer.step()
        if (i + 1) % steps == 0:
            away.append(abs(float(network.power.detach()) - 0.5))
    assert 0.01 < away[0] < 0.15
    assert away[1] < 0.5 * away[0]
    assert away[2] < 0.01
    assert float(network.mean.detach()) == pytest.approx(MU, abs=0.02)


def test_one_jump_of_the_consistency_function_draws_the_data() -> None:
    """p = ½ exactly: the samples are N(μ, s²) after one step, and after several."""
    process = student(Power(power=0.5))
    for steps in (1, 2, 4):
        values = 2 * process.sample(4000, sampler="consistency", num_steps=steps) - 1
        assert float(values.mean()) == pytest.approx(MU, abs=0.01)
        assert float(values.std()) == pytest.approx(S, rel=0.03)
    # The mean that a denoiser answers with has no spread.
    blurred = student(Power(power=1.0)).sample(500, sampler="consistency", num_steps=1)
    assert float(blurred.std()) < 0.001


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_a_stage_has_its_own_exact_end(stage: int) -> None:
    """With r fixed the answer at t is E[f(y_r) | y_t], for Gaussian data a product over the pairs
    t → r(t) → … → 0: c(t) = c(r)·(s² + r·t)/(s² + t²). There the gradient is 0, elsewhere not.
    """
    pairs = ConsistencyPairs(stages=3, q=4.0)
    cleanest = float(SCHEDULE.sigma[1] / SCHEDULE.alpha[1])

    def gain(noise: float) -> float:
        factor = 1.0
        while noise > 0.0:
            earlier = float(pairs.partner(torch.tensor(noise, dtype=torch.float64), stage))
            earlier = 0.0 if earlier < cleanest * (1 - 1e-9) else earlier
            factor *= (S**2 + earlier * noise) / (S**2 + noise**2)
            noise = earlier
        return factor

    class Chain(Power):
        scale = 0.0

        def forward(self, x: Tensor, t: Tensor, cond: None = None) -> Tensor:
            alpha, sigma = (float(v) for v in SCHEDULE.gather(t[:1].double() + 1))
            scale = self.scale if torch.is_grad_enabled() else 0.0  # at t alone
            shrink = gain(sigma / alpha) * (1 + self.mean - MU + scale)
            clean = MU + (x / alpha - MU) * shrink
            return (clean - self.terms.c_skip(alpha, sigma) * x) / self.terms.c_out(alpha, sigma)

    def slope(t: float, scale: float) -> tuple[float, float]:
        """Return the mean gradient by the gain, and its standard error over parts of the data."""
        network = Chain()
        network.scale = scale
        process, found = student(network, stages=3, q=4.0), []
        for part in range(8):
            images = gaussian(2000, 100 + part)
            generator = torch.Generator().manual_seed(part)
            noise = torch.randn(images.shape, generator=generator)
            levels = torch.full((len(images),), t, dtype=torch.float64)
            loss = process(images, t=levels, noise=noise, progress=stage / 3)
            found.append(float(torch.autograd.grad(loss, network.mean)[0]))
        values = torch.tensor(found)
        return float(values.mean()), float(values.std() / math.sqrt(len(values)))

    for t in (150.0, 850.0):
        value, error = slope(t, 0.0)
        assert abs(value) < 4 * error
        away, error = slope(t, 0.1)
        assert away > 5 * error


def test_pairs_close_in_and_end_at_clean_data() -> None:
    pairs = ConsistencyPairs(stages=4, q=2.0)
    noise = torch.tensor([0.01, 0.5, 5.0, 80.0], dtype=torch.float64)
    previous = torch.full_like(noise, -1.0)
    for stage in range(4):
        partner = pairs.partner(noise, stage)
        by_hand = [t * max(0.0, 1 - (1 + 8 / (1 + math.exp(t))) / 2 ** (stage + 1)) for t in noise]
        torch.testing.assert_close(partner, torch.tensor(by_hand, dtype=torch.float64))
        assert torch.all(partner >= previous)
        assert torch.all(partner < noise)
        previous = partner
    assert [pairs.stage(p) for p in (0.0, 0.24, 0.25, 0.99, 1.0, 2.0)] == [0, 0, 1, 3, 3, 3]


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_both_levels_of_a_pair_lie_on_the_schedule(name: str, zero: bool) -> None:
    schedule = Schedule.make(name, 200, {"zero_terminal_snr": zero})
    pairs, like = ConsistencyPairs(stages=6, q=2.0), torch.zeros(1, 1, 2, 2, dtype=torch.float64)
    between = torch.cat([torch.ones(1), 1 + 199 * torch.rand(300)]).double()
    for progress, t in ((0.0, torch.arange(1, 201)), (1.0, between)):
        found = pairs_of(schedule, V(), pairs, t, progress, like)
        for alpha, sigma in ((found.alpha, found.sigma), (found.alpha_r, found.sigma_r)):
            torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(alpha))
        known = found.clean.flatten() > 0
        assert torch.all(found.sigma_r.flatten()[known] == 0)
        assert bool(known.any())
        assert found.every_r_is_clean == bool(known.all())
        # The network is told the very level of r, between the levels of the schedule too.
        alpha_r, sigma_r = schedule.gather(found.time_r[~known] + 1)
        torch.testing.assert_close(found.alpha_r.flatten()[~known], alpha_r)
        torch.testing.assert_close(found.sigma_r.flatten()[~known], sigma_r)
        assert torch.all(torch.isfinite(found.weight))
        ratio, ratio_r = (
            (s / a).flatten()
            for a, s in ((found.alpha, found.sigma), (found.alpha_r, found.sigma_r))
        )
        # Next to pure noise the distance is that of the noisiest level that has one.
        known = ratio <= float((schedule.sigma / schedule.alpha)[-2])
        torch.testing.assert_close(found.weight[known], 1 / (ratio - ratio_r)[known])


def test_the_gradient_of_an_output_does_not_depend_on_what_it_predicts() -> None:
    """An x0 network is never exact at clean data: with 1/(t̃ − r̃) alone its cleanest levels would
    count by 1/σ more than those of a v network, and the noisy ones would be forgotten.
    """
    schedule = Schedule.make("cosine", 200, {})
    pairs, like = ConsistencyPairs(), torch.zeros(1, 1, 2, 2, dtype=torch.float64)
    t = torch.arange(1, 200)
    alpha, sigma = schedule.gather(t)
    gradients = []
    for terms in (V(), X0(), EDM()):
        found = pairs_of(schedule, terms, pairs, t, 1.0, like)
        gradients.append(found.weight * terms.c_out(alpha, sigma).abs())
    torch.testing.assert_close(gradients[1], gradients[0])
    low = sigma < 0.1  # where the answer of edm is x_t and a correction as small as the noise
    torch.testing.assert_close(gradients[2][low], gradients[0][low], rtol=0.05, atol=0.0)
    assert float(gradients[0].max() / gradients[0].min()) < 100  # 1/(t̃ − r̃) alone: 10,000


@pytest.mark.parametrize("skip", [0.0, 0.1, 1.0])
def test_a_prediction_of_x0_may_have_a_share_of_x_t(skip: float) -> None:
    """Two measurements of x_0, of errors σ/α and s, weighted by their inverse squares."""
    schedule = Schedule.make("cosine", 200, {})
    alpha, sigma = (v.view(-1, 1) for v in schedule.gather(torch.arange(1, 200)))
    x0, eps = torch.randn(2, 199, 5, dtype=torch.float64)
    x_t, terms = alpha * x0 + sigma * eps, X0(skip)
    answer = terms.c_skip(alpha, sigma) * x_t
    answer = answer + terms.c_out(alpha, sigma) * terms.target(x0, eps, alpha, sigma)
    torch.testing.assert_close(answer, x0)
    share = terms.c_skip(alpha, sigma) * alpha
    torch.testing.assert_close(share + terms.c_out(alpha, sigma), torch.ones_like(share))
    noise = sigma / alpha
    by_errors = noise.pow(-2) / (noise.pow(-2) + skip**-2) if skip else torch.zeros_like(noise)
    torch.testing.assert_close(share, by_errors)


def test_a_share_of_x_t_below_0_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'x0' needs skip ≥ 0, got -1.0\. 0 is usual"):
        X0(-1.0)


@pytest.mark.parametrize("parametrization", ["v", "x0", "edm"])
def test_a_student_answers_with_x_t_where_there_is_no_noise(parametrization: str) -> None:
    """Whatever its network says: else nothing holds its answers, and all drift away together."""
    made = student(Power(parametrization), parametrization)
    alpha, sigma = (float(v) for v in SCHEDULE.gather(torch.tensor([1])))
    terms = made.parametrization
    assert terms.c_skip(alpha, sigma) * alpha > 0.95
    assert abs(terms.c_out(alpha, sigma)) < 0.05


def test_the_loss_is_the_published_one() -> None:
    """By hand: one image, one noise, the answer at r without gradient, pseudo-Huber, 1/(t − r)."""
    torch.manual_seed(0)
    teacher = GaussianDiffusion(TinyNet(), image_size=4, schedule=SCHEDULE, clip="none")
    process = teacher.for_consistency(loss_options={"stages": 2, "q": 4.0, "huber": 0.01})
    images, noise, t = torch.rand(3, 3, 4, 4), torch.randn(3, 3, 4, 4), torch.tensor([900, 400, 7])
    losses = process(images, t=t, noise=noise, progress=0.6, reduction="none")
    x0 = 2 * images - 1
    for i, level in enumerate(t.tolist()):
        at = SCHEDULE.level(level)
        ratio = at.sigma / at.alpha
        earlier = ratio * (1 - (1 + 8 / (1 + math.exp(ratio))) / 16)
        answers = [process.denoise(at.alpha * x0[i : i + 1] + at.sigma * noise[i : i + 1], at)]
        below = SCHEDULE.level_at(-2 * math.log(earlier))
        if earlier >= float(SCHEDULE.sigma[1] / SCHEDULE.alpha[1]):
            x_r = below.alpha * x0[i : i + 1] + below.sigma * noise[i : i + 1]
            answers.append(process.denoise(x_r, below))
        one, two = (a.x0 for a in answers)
        square = float((one - two).square().mean().detach())
        by_hand = (math.sqrt(square + 1e-4) - 0.01) / (ratio - earlier)
        assert float(losses[i].detach()) == pytest.approx(by_hand, rel=1e-4)


def test_the_answer_at_r_has_no_gradient_and_the_same_masks() -> None:
    """Dropout at t and at r is one mask, and the generators end where one pass would leave them."""

    class Masked(TinyNet):
        def __init__(self) -> None:
            super().__init__()
            self.dropout, self.masks = nn.Dropout(0.5), []

        def forward(self, x: Tensor, t: Tensor, cond: Any = None) -> Tensor:
            self.masks.append((self.dropout(torch.ones(64)), torch.is_grad_enabled()))
            return super().forward(x, t, cond) * self.masks[-1][0].mean()

    process = GaussianDiffusion(Masked(), image_size=4, schedule=SCHEDULE).for_consistency().train()
    images = torch.rand(2, 3, 4, 4)
    torch.manual_seed(3)
    process(images, t=torch.tensor([500, 600]), noise=torch.zeros(2, 3, 4, 4))
    after = torch.rand(4)
    (first, with_gradient), (second, other) = process.model.masks
    assert torch.equal(first, second)
    assert 0 < float(first.count_nonzero()) < 64
    assert (with_gradient, other) == (False, True)
    torch.manual_seed(3)
    nn.functional.dropout(torch.ones(64), 0.5)
    assert torch.equal(after, torch.rand(4))


def test_both_answers_are_given_the_same_conditions() -> None:
    class Told(TinyNet):
        def __init__(self) -> None:
            super().__init__()
            unet = Unet(dim=8, dim_mults=(1,), num_classes=3, class_drop_prob=0.5)
            self.conditioners, self.seen = unet.conditioners, []

        def forward(self, x: Tensor, t: Tensor, cond: Any = None) -> Tensor:
            self.seen.append(cond["class_label"].tolist())
            return super().forward(x, t)

    process = GaussianDiffusion(Told(), image_size=4, schedule=SCHEDULE).for_consistency().train()
    batch = {"image": torch.rand(16, 3, 4, 4), "class_label": torch.arange(16) % 3}
    process(batch, t=torch.full((16,), 700))
    first, second = process.model.seen
    assert first == second
    assert {-1} < set(first)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parametrization": "eps"}, "predicts eps.*σ/α = .*parametrization='v'"),
        ({"learn_uncertainty": True}, "forbids learn_uncertainty"),
        ({"input_perturbation": 0.1}, "forbids input_perturbation"),
        ({"loss_options": {"stage": 3}}, "Did you mean 'stages'"),
        ({"loss_options": {"stages": 0}}, "stages must be a whole number ≥ 1, got 0"),
        ({"loss_options": {"stages": 2.5}}, "whole number"),
        ({"loss_options": {"q": 1.0}}, "q must be a number > 1"),
        ({"loss_options": {"kappa": -1}}, "kappa must be"),
        ({"loss_options": {"b": 0}}, "b must be"),
        ({"loss_options": {"huber": 0}}, "huber must be"),
        ({"loss_options": {"stages": 40, "q": 2}}, "the same in float32"),
        ({"loss": "simple", "loss_options": {"q": 2.0}}, "takes no loss_options"),
    ],
)
def test_what_cannot_be_tuned_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GaussianDiffusion(TinyNet(), **{"image_size": 4, "loss": "consistency", **options})


def test_a_network_that_sees_its_own_estimate_is_refused() -> None:
    model = Unet(dim=8, dim_mults=(1,), self_condition=True)
    with pytest.raises(ValueError, match="self_condition=False"):
        GaussianDiffusion(model, image_size=8).for_consistency()


def test_a_student_keeps_levels_and_prediction_and_comes_back_from_its_config() -> None:
    teacher = GaussianDiffusion(
        TinyNet(outputs=2),
        image_size=4,
        timesteps=50,
        schedule="linear",
        parametrization="x0",
        variance="learned_range",
        learn_uncertainty=True,
        input_perturbation=0.1,
        clip="dynamic",
    )
    teacher.class_names = ("a", "b")
    tuned = teacher.for_consistency(loss_options={"q": 8.0})
    kept = (
        "image_size",
        "channels",
        "timesteps",
        "schedule",
        "parametrization",
        "variance",
        "clip",
    )
    assert {k: tuned.config[k] for k in kept} == {k: teacher.config[k] for k in kept}
    assert tuned.class_names == ("a", "b")
    assert tuned.model is teacher.model
    again = GaussianDiffusion(TinyNet(outputs=2), **tuned.config)
    assert again.config == tuned.config
    assert again.pairs == ConsistencyPairs(q=8.0)
    assert torch.isfinite(tuned(torch.rand(2, 3, 4, 4)))


def test_samplers_belong_to_what_a_network_answers_with() -> None:
    teacher = GaussianDiffusion(TinyNet(), image_size=4, timesteps=20)
    tuned = teacher.for_consistency()
    with pytest.raises(ValueError, match=r"Consistency jumps .*ddpm_lib\.distill"):
        teacher.sample(1, sampler="consistency", num_steps=2)
    for draw in (
        lambda: tuned.sample(1, sampler="ddim", num_steps=2),
        lambda: tuned.sample(1, sampler="ddpm"),
        lambda: tuned.encode(torch.rand(1, 3, 4, 4)),
        lambda: tuned.edit(torch.rand(1, 3, 4, 4), sampler="heun"),
    ):
        with pytest.raises(ValueError, match="tuned for consistency"):
            draw()
    for score in (tuned.bits_per_dim, tuned.flow_bits_per_dim):
        with pytest.raises(ValueError, match="tuned for consistency"):
            score(torch.rand(1, 3, 4, 4))
    with pytest.raises(ValueError, match="another process"):
        tuned.sample(1, sampler=Consistency(), num_steps=1, guide_by=teacher)
    edited = tuned.edit(torch.rand(2, 3, 4, 4), 0.5, sampler=Consistency(), num_steps=4)
    assert torch.isfinite(edited).all()
