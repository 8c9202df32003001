import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from ddpm_lib import Unet
from ddpm_lib.diffusion import GaussianDiffusion
from ddpm_lib.guidance import Guidance
from ddpm_lib.nn import Conditioner
from ddpm_lib.process.bound import Chain, discretised_log_likelihood, gaussian_kl
from ddpm_lib.schedules import Schedule
from ddpm_lib.schedules.levels import Level, tau
from ddpm_lib.variance import LearnedRange
from process_tools import GaussianNet, TinyNet


class WithVariance(nn.Module):
    """The exact denoiser of Gaussian data, and one number v per level."""

    channels = 1

    def __init__(self, net: GaussianNet, timesteps: int) -> None:
        super().__init__()
        self.net, self.v = net, nn.Parameter(torch.zeros(timesteps, dtype=torch.float64))

    def forward(self, x: Tensor, t: Tensor, cond: None = None) -> Tensor:
        v = self.v[t.long()].view(-1, *[1] * (x.ndim - 1)).expand(x.shape)
        return torch.cat([self.net(x, t), v.to(x.dtype)], 1)


def gaussian(
    s: float, schedule: Schedule, parametrization: str = "v", **options: object
) -> GaussianDiffusion:
    shape = (1, 4, 4)
    net = GaussianNet(
        torch.zeros(shape), torch.full(shape, s, dtype=torch.float64), schedule, parametrization
    )
    options = {"image_size": 4, "clip": "none", "variance": "learned_range", **options}
    return GaussianDiffusion(
        WithVariance(net, schedule.timesteps),
        schedule=schedule,
        parametrization=parametrization,
        **options,
    )


def best_v(s: float, schedule: Schedule) -> Tensor:
    """The v of eq. 15 for which the kernel has the exact variance of x_s given x_t: σ_s²τ + (α_s
    τ)²·Var(x_0 | x_t).
    """
    chain = Chain.of(schedule)
    alpha, sigma, pull, small, large = chain.table
    posterior = s**2 * sigma**2 / (alpha**2 * s**2 + sigma**2)
    exact = torch.where(chain.levels == 1, 0.0, small.exp()) + pull**2 * posterior
    return 2 * (exact.log() - small) / (large - small) - 1


def test_training_finds_the_variance() -> None:
    """Data ~ N(0, s²): the mean is exact, and the bound's best variance is that of the reverse
    kernel.
    """
    s, schedule = 0.25, Schedule.make("cosine", 6)
    d = gaussian(s, schedule, vlb_weight=1.0)
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(d.parameters(), lr=0.2)
    t = torch.arange(2, 7).repeat(100)
    for step in range(60):
        optimizer.param_groups[0]["lr"] = 0.2 * (1 - step / 60)
        x0 = (s * torch.randn(len(t), 1, 4, 4, generator=generator, dtype=torch.float64)).clamp(
            -1, 1
        )
        noise = torch.randn(x0.shape, generator=generator, dtype=torch.float64)
        optimizer.zero_grad()
        d((x0 + 1) / 2, t=t, noise=noise).backward()
        optimizer.step()
    # In terms of the variance itself.
    small, large = d.chain.table[3:]
    found, best = (
        (small + (v + 1) / 2 * (large - small)).exp()
        for v in (d.model.v.detach(), best_v(s, schedule))
    )
    torch.testing.assert_close(found[1:], best[1:], rtol=0.02, atol=0)


@pytest.mark.parametrize("parametrization", ["eps", "x0", "v"])
def test_sampling_with_the_exact_variance_is_exact_at_any_step_count(parametrization: str) -> None:
    """x_t is N(0, α²s² + σ²) at all levels if each step has the exact variance, also where steps
    are left out.
    """
    s, schedule = 0.6, Schedule.make("linear", 50)
    d = gaussian(s, schedule, parametrization)
    levels = [schedule.level(t) for t in (50, 30, 7, 2)]
    variance = levels[0].alpha ** 2 * s**2 + levels[0].sigma ** 2
    for t, below in pairwise(levels):
        pair = LearnedRange()
        share = tau(t, below)
        post = s**2 * t.sigma**2 / (t.alpha**2 * s**2 + t.sigma**2)
        exact = below.sigma**2 * share + (below.alpha * share) ** 2 * post
        small, large = math.log(below.sigma**2 * share), math.log(t.sigma**2 * share)
        v = 2 * (math.log(exact) - small) / (large - small) - 1
        got = pair(t, below, torch.full((1,), v, dtype=torch.float64))
        assert float(got) == pytest.approx(exact, rel=1e-12)
        # The mean of the step is linear in x_t: its gain is found with the unit impulse.
        p = d.denoise(torch.ones(1, 1, 4, 4, dtype=torch.float64), t)
        gain = (below.alpha * p.x0 + below.sigma * math.sqrt(1 - share) * p.eps).flatten()[0].item()
        variance = gain**2 * variance + exact
        assert variance == pytest.approx(below.alpha**2 * s**2 + below.sigma**2, rel=1e-9)


def test_the_bounds_are_the_fixed_variances() -> None:
    schedule = Schedule.make("cosine", 20)
    t, s = schedule.level(15), schedule.level(4)
    raw = torch.tensor([-1.0, 1.0, 3.0], dtype=torch.float64)
    small, large, beyond = LearnedRange()(t, s, raw).tolist()
    assert small == pytest.approx(s.sigma**2 * tau(t, s))
    assert large == pytest.approx(t.sigma**2 * tau(t, s))
    assert beyond == pytest.approx(large**2 / small)  # Not clamped.
    assert LearnedRange()(t, schedule.level(0), raw).tolist() == [0, 0, 0]
    assert LearnedRange()(t, t, raw).tolist() == [0, 0, 0]


def test_probabilities_sum_to_one() -> None:
    x = (torch.arange(256, dtype=torch.float64) / 127.5 - 1)[:, None, None]
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        mean = torch.tensor([-3.0, -1.0, -0.4, 0.0, 0.0039, 0.999, 1.0, 1.7], dtype=dtype)[:, None]
        log_var = torch.tensor([-16.0, -12.0, -9.0, -4.0, 0.0, 3.0], dtype=dtype)
        total = discretised_log_likelihood(x.to(dtype), mean, log_var).double().exp().sum(0)
        torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=tolerance)


def test_the_decoder_is_the_gaussian() -> None:
    """The approximated Φ is within 2e-4 of the true one, and narrow bins see its derivative."""
    x, mean, sd = torch.tensor([0.1]).double(), torch.tensor([0.13]).double(), 0.05
    ours = discretised_log_likelihood(x, mean, torch.tensor(2 * math.log(sd)).double())
    density = torch.distributions.Normal(mean, sd).log_prob(x) + math.log(2 / 255)
    torch.testing.assert_close(ours, density, rtol=0, atol=2e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_far_values_have_finite_losses_and_gradients(dtype: torch.dtype) -> None:
    x = torch.tensor([-1.0, 1.0, 0.0, 1 / 255], dtype=dtype)
    mean = torch.tensor([2.0, -2.0, 1.0, 1 / 255], dtype=dtype, requires_grad=True)
    log_var = torch.tensor([-12.0, -12.0, -14.0, 5.0], dtype=dtype, requires_grad=True)
    value = discretised_log_likelihood(x, mean, log_var)
    value.sum().backward()
    for tensor in (value, mean.grad, log_var.grad):
        assert tensor is not None
        assert torch.isfinite(tensor).all()
    assert (value < 0).all()


def test_kl() -> None:
    difference = torch.linspace(-1, 1, 9)[:, None]
    log_var = torch.linspace(-12, 2, 15)
    assert (gaussian_kl(difference, log_var, log_var.flip(0)) >= 0).all()
    assert float(gaussian_kl(torch.zeros(1), torch.tensor(-5.0), torch.tensor(-5.0))) == 0
    a, b = torch.distributions.Normal(0.3, 0.5), torch.distributions.Normal(-0.2, 0.9)
    ours = gaussian_kl(
        torch.tensor(0.5), torch.tensor(2 * math.log(0.5)), torch.tensor(2 * math.log(0.9))
    )
    torch.testing.assert_close(ours, torch.distributions.kl_divergence(a, b))


def test_hybrid_trains_the_mean_by_the_simple_loss_alone() -> None:
    images, draws = (
        torch.rand(6, 3, 4, 4),
        {
            "t": torch.tensor([1, 2, 5, 9, 19, 20]),
            "noise": torch.randn(6, 3, 4, 4),
        },
    )

    def gradient(**options: object) -> Tensor:
        d = GaussianDiffusion(
            TinyNet(outputs=2), image_size=4, timesteps=20, variance="learned_range", **options
        )
        d(images, **draws).backward()
        return d.model.b.grad

    hybrid, strong, vlb = gradient(), gradient(vlb_weight=1.0), gradient(loss="vlb")
    torch.testing.assert_close(hybrid[:, :3], strong[:, :3])
    torch.testing.assert_close(strong[:, 3:], 1000 * hybrid[:, 3:])
    torch.testing.assert_close(strong[:, 3:], vlb[:, 3:])
    assert not torch.allclose(vlb[:, :3], strong[:, :3])


def test_guidance_leaves_the_variance_alone() -> None:
    class Net(TinyNet):
        def __init__(self) -> None:
            super().__init__(1, outputs=2)
            self.conditioners = {"class_label": _Null()}

        def forward(self, x: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
            return super().forward(x, t) + cond["class_label"].view(-1, 1, 1, 1)

    d = GaussianDiffusion(Net(), image_size=4, timesteps=10, variance="learned_range", clip="none")
    x, cond, level = (
        torch.randn(2, 1, 4, 4),
        {"class_label": torch.tensor([0.5, 1.0])},
        d.schedule.level(6),
    )
    plain, guided = d.denoise(x, level, cond), d.denoise(x, level, cond, guidance=Guidance(4.0))
    below = d.schedule.level(3)
    torch.testing.assert_close(guided.variance(level, below), plain.variance(level, below))
    assert not torch.allclose(guided.x0, plain.x0)
    assert d.sample(2, num_steps=3, cond=cond, guidance_scale=2.0).shape == (2, 1, 4, 4)


class _Null(Conditioner):
    def __init__(self) -> None:
        super().__init__("class_label", 0.1)

    def null_like(self, value: Tensor) -> Tensor:
        return torch.zeros_like(value)

    def null_for(self, x: Tensor) -> Tensor:
        return torch.zeros(len(x))

    def validate(self, value: Tensor, batch: int) -> None: ...


def test_with_the_unet() -> None:
    with pytest.raises(ValueError, match="out_channels=6"):
        GaussianDiffusion(Unet(dim=8, dim_mults=(1, 2)), image_size=8, variance="learned_range")
    d = GaussianDiffusion(
        Unet(dim=8, dim_mults=(1, 2), out_channels=6),
        image_size=8,
        timesteps=20,
        variance="learned_range",
    )
    assert d.config["loss"] == "hybrid"
    loss = d(torch.rand(3, 3, 8, 8))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(d.sample(1, num_steps=4)).all()


def test_the_command_line_doubles_the_output_channels() -> None:
    from ddpm_lib.cli.train import build, resolve, settings_of

    command = resolve(["shapes", "--preset", "tiny", "--diffusion.variance", "learned_range"])
    diffusion, _ = build(settings_of(command))
    assert diffusion.model.out_channels == 6
    assert diffusion.config["loss"] == "hybrid"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variance": "learned_range", "loss": "simple"}, "never train a learned variance"),
        ({"loss": "hybrid"}, "a fixed one has nothing to train"),
        ({"loss": "kl"}, "Unknown loss 'kl'"),
        ({"vlb_weight": 0.0}, "vlb_weight must be > 0"),
    ],
)
def test_refusals(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GaussianDiffusion(TinyNet(), image_size=4, timesteps=10, **options)


def test_a_chain_of_one_step() -> None:
    chain = Chain.of(Schedule.make("cosine", 10), [4])
    level: Level = Schedule.make("cosine", 10).level(4)
    assert len(chain) == 1
    assert chain.table[3, 0].item() == pytest.approx(2 * math.log(level.sigma))
