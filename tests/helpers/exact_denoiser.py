"""Gaussian data of one mean and deviation, with the exact denoiser and the exact density."""

import math

import torch
from torch import Tensor, nn

from ddpm_lib.parametrization import PARAMETRIZATIONS
from ddpm_lib.process.bound import Chain
from ddpm_lib.schedules import Schedule

S, MU = 0.2, 0.1
SHAPE = (1, 4, 4)


class Exact(nn.Module):
    """The exact denoiser of N(μ, s²) at every level, also between the levels, and the exact
    variance of a step.
    """

    channels = 1

    def __init__(
        self, schedule: Schedule, parametrization: str, chain: Chain | None = None
    ) -> None:
        super().__init__()
        self.schedule, self.chain = schedule, chain
        self.target = PARAMETRIZATIONS[parametrization]().target

    def forward(self, x: Tensor, t: Tensor, cond: None = None) -> Tensor:
        shape = (-1, *[1] * (x.ndim - 1))
        levels = [self.schedule.level(float(v)) for v in t.double() + 1]
        alpha, sigma = torch.tensor([level[1:] for level in levels], dtype=torch.float64).T.view(
            2, *shape
        )
        away = (x - alpha * MU) / (alpha**2 * S**2 + sigma**2)
        output = self.target(MU + alpha * S**2 * away, sigma * away, alpha, sigma).to(x.dtype)
        return (
            output
            if self.chain is None
            else torch.cat([output, self.v(t).view(shape).expand(x.shape)], 1)
        )

    def v(self, t: Tensor) -> Tensor:
        assert self.chain is not None
        k = torch.searchsorted(self.chain.levels, t.double() + 1)
        alpha, sigma, pull, small, large = self.chain.table[:, k]
        kernel = torch.where(k == 0, 0.0, small.exp()) + pull**2 * S**2 * sigma**2 / (
            alpha**2 * S**2 + sigma**2
        )
        return 2 * (kernel.log() - small) / (large - small) - 1


def images(n: int, size: int = 4) -> Tensor:
    x = MU + S * torch.randn(
        n, 1, size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    return ((x.clamp(-1, 1) + 1) * 127.5).round() / 255


def exact_bits(x: Tensor) -> Tensor:
    """The density of the data times the width of a bin; a bin is 0.04 standard deviations wide."""
    density = torch.distributions.Normal(MU, S).log_prob(2 * x - 1)
    return -(density.flatten(1).mean(1) / math.log(2) + math.log2(2 / 255))
