"""Bits per dimension against closed forms: for Gaussian data the exact denoiser and the exact
density are known.
"""

import math

import pytest
import torch
from torch import Tensor

from ddpm_lib.diffusion import GaussianDiffusion
from ddpm_lib.process.bound import Chain
from ddpm_lib.process.likelihood import dequantise
from ddpm_lib.schedules import Schedule
from exact_denoiser import SHAPE, Exact, exact_bits, images
from process_tools import TinyNet


def exact_process(
    schedule: Schedule, parametrization: str = "v", num_steps: int | None = None, size: int = 4
) -> GaussianDiffusion:
    levels = (
        None
        if num_steps is None
        else [round(schedule.timesteps * (k + 1) / num_steps) for k in range(num_steps)]
    )
    options = {
        "image_size": size,
        "schedule": schedule,
        "parametrization": parametrization,
        "clip": "none",
    }
    return GaussianDiffusion(
        Exact(schedule, parametrization, Chain.of(schedule, levels)),
        variance="learned_range",
        weighting="flat",
        **options,
    )


@pytest.mark.parametrize(("parametrization", "num_steps"), [("eps", 4), ("v", 2), ("v", 8)])
def test_the_bound_is_tight_with_the_exact_kernel(parametrization: str, num_steps: int) -> None:
    """Then every step is the true posterior, and the bound is the entropy at any number of
    steps.
    """
    # 1.6 million values, each with a noise of 1 bit: a standard error below 1e-3.
    d, x = (
        exact_process(Schedule.make("linear", 24), parametrization, num_steps, size=128),
        images(100, 128),
    )
    bits = d.bits_per_dim(x, num_steps=num_steps, batch_size=100)
    assert bits.mean == pytest.approx(float(exact_bits(x).mean()), abs=1e-3)
    torch.testing.assert_close(bits.total, bits.prior + bits.terms.sum(1))
    assert (bits.prior >= 0).all()
    assert bits.levels[0].tolist() == [24 * (k + 1) / num_steps for k in range(num_steps)]


def test_fixed_variances_cost_more() -> None:
    schedule, x = Schedule.make("cosine", 20), images(64)
    options = {"image_size": SHAPE[1:], "schedule": schedule, "clip": "none"}
    for variance in ("fixed_small", "fixed_large"):
        d = GaussianDiffusion(Exact(schedule, "v"), variance=variance, **options)
        bits = d.bits_per_dim(x)
        assert bits.mean > float(exact_bits(x).mean()) + 3 * bits.standard_error
        assert (bits.terms[:, 1:] >= 0).all()  # KL; the decoder is a probability
        assert (bits.decoder >= 0).all()


@pytest.mark.parametrize("parametrization", ["eps", "x0", "v"])
def test_the_flow_has_the_density(parametrization: str) -> None:
    # From σ = 1e-3 on, so that nothing is left below level 1.
    alpha_bar = 1 / (1 + torch.logspace(-6, 6, 60, dtype=torch.float64))
    table = Schedule.from_betas(1 - alpha_bar / torch.cat([torch.ones(1), alpha_bar[:-1]]))
    options = {
        "image_size": SHAPE[1:],
        "schedule": table,
        "weighting": "flat",
        "parametrization": parametrization,
    }
    d = GaussianDiffusion(Exact(table, parametrization), **options)
    x = images(8)
    flow = d.flow_bits_per_dim(x, tolerance=1e-6)
    uniform, _ = dequantise(x, 0, 0)
    # The divergence of a multiple of the identity is exact with one probe.
    torch.testing.assert_close(flow.total, exact_bits((uniform + 1) / 2), rtol=0, atol=1e-3)


def test_zero_terminal_snr() -> None:
    table = Schedule.make("cosine", 50, {"zero_terminal_snr": True})
    options = {"image_size": SHAPE[1:], "schedule": table, "weighting": "flat"}
    d = GaussianDiffusion(Exact(table, "v"), **options)
    x = images(4)
    # The network of level 1 stands in for the levels below, whose σ goes up to 0.03.
    assert d.flow_bits_per_dim(x).mean == pytest.approx(float(exact_bits(x).mean()), abs=0.02)
    bits = d.bits_per_dim(x)
    assert torch.isfinite(bits.total).all()
    assert bits.prior.tolist() == [0, 0, 0, 0]


def test_the_bound_is_above_the_flow() -> None:
    table, x = Schedule.make("cosine", 50), images(64)
    d = GaussianDiffusion(Exact(table, "v"), image_size=SHAPE[1:], schedule=table, clip="none")
    bound, flow = d.bits_per_dim(x), d.flow_bits_per_dim(x)
    assert bound.mean > flow.mean - 2 * (bound.total - flow.total).std() / 8


def test_an_estimate_from_a_few_levels_is_unbiased() -> None:
    d, x = exact_process(Schedule.make("cosine", 40)), images(1).expand(600, *SHAPE)
    full, part = d.bits_per_dim(x[:60]), d.bits_per_dim(x, num_levels=4)
    assert part.terms.shape == (600, 4)
    assert (part.levels[:, 0] == 1).all()
    assert (part.levels.diff(dim=1) > 0).all()
    spread = math.hypot(part.standard_error, full.standard_error)
    assert abs(part.mean - full.mean) < 4 * spread
    assert part.standard_error < 0.2
    with pytest.raises(ValueError, match="num_levels must be at least 2"):
        d.bits_per_dim(x[:1], num_levels=1)


def test_numbers_do_not_depend_on_the_batch() -> None:
    d = GaussianDiffusion(TinyNet(), image_size=4, timesteps=12)
    x = torch.randint(0, 256, (5, 3, 4, 4), dtype=torch.uint8)
    whole = d.bits_per_dim(x, seed=3)
    assert whole.total.shape == (5,)
    for apart in (
        d.bits_per_dim(x, seed=3, batch_size=1),
        d.bits_per_dim(x / 255, seed=3, batch_size=7),
    ):
        torch.testing.assert_close(apart.total, whole.total, rtol=1e-5, atol=1e-6)
    second = d.bits_per_dim(x[2:4], seed=3, first_index=2)
    torch.testing.assert_close(second.terms, whole.terms[2:4], rtol=1e-5, atol=1e-6)
    few = d.bits_per_dim(x, seed=3, num_levels=3)
    for row, levels in enumerate(few.levels.long().tolist()):
        expected = whole.terms[row, [t - 1 for t in levels]]
        torch.testing.assert_close(few.terms[row], expected, rtol=1e-5, atol=1e-6)
    assert not torch.equal(d.bits_per_dim(x, seed=4).total, whole.total)
    torch.testing.assert_close(
        d.flow_bits_per_dim(x).total, d.flow_bits_per_dim(x / 255).total, rtol=1e-5, atol=1e-5
    )
    flow = d.flow_bits_per_dim(x, seed=3)
    torch.testing.assert_close(
        d.flow_bits_per_dim(x[2:], seed=3, first_index=2).total,
        flow.total[2:],
        rtol=1e-4,
        atol=1e-3,
    )


def test_conditions_and_modes() -> None:
    class Net(TinyNet):
        def forward(self, x: Tensor, t: Tensor, cond: dict[str, Tensor] | None = None) -> Tensor:
            assert cond is not None
            assert not self.training
            return super().forward(x, t) + cond["shift"].view(-1, 1, 1, 1)

    d = GaussianDiffusion(Net(), image_size=4, timesteps=6)
    d.train()
    x, shift = torch.rand(2, 3, 4, 4), torch.tensor([0.0, 0.3])
    both = d.bits_per_dim(x, cond={"shift": shift})
    assert d.model.training
    one = d.bits_per_dim(x[1:], cond={"shift": shift[1:]}, first_index=1)
    torch.testing.assert_close(one.total, both.total[1:])
    assert torch.isfinite(d.flow_bits_per_dim(x, cond={"shift": 0.3}).total).all()
    assert both.standard_error >= 0
    assert math.isnan(one.standard_error)
