"""Networks whose answers are known, and readers of published numbers, for the tests of the
process.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from ddpm_lib.diffusion import GaussianDiffusion
from ddpm_lib.parametrization import PARAMETRIZATIONS
from ddpm_lib.schedules import Schedule

REQUIRED = {"betas": {"betas": [0.1 * k for k in range(1, 9)]}, "shifted_cosine": {"size": 128}}
"""Options without which a schedule of 8 steps cannot be built, by its name."""


class GaussianNet(nn.Module):
    """The exact denoiser of data ~ N(mu, diag(s²)), in the terms of a parametrization."""

    def __init__(self, mu: Tensor, s: Tensor, schedule: Schedule, parametrization: str) -> None:
        super().__init__()
        self.mu, self.s, self.schedule = mu.double(), s.double(), schedule
        self.target = PARAMETRIZATIONS[parametrization]().target

    def forward(self, x: Tensor, t: Tensor, cond: None = None) -> Tensor:
        shape = (-1, *[1] * (x.ndim - 1))
        # Some samplers visit fractional levels, one at a time.
        level = self.schedule.level(float(t[0]) + 1) if float(t[0]) % 1 else None
        found = (level.alpha, level.sigma) if level else self.schedule.gather(t.long() + 1)
        alpha, sigma = (
            torch.as_tensor(v, dtype=torch.float64).expand(len(t)).view(shape) for v in found
        )
        away = (x - alpha * self.mu) / (alpha**2 * self.s**2 + sigma**2)
        return self.target(self.mu + alpha * self.s**2 * away, sigma * away, alpha, sigma).to(
            x.dtype
        )


class ToyNet(nn.Module):
    """A·x + B + C·t/1000, the network of the published numbers; t counts from 0. With twice the
    rows it sees x twice.
    """

    def __init__(self, data: dict[str, Tensor], name: str = "toy1") -> None:
        super().__init__()
        self.a, self.b, self.c = (data[f"{name}/{k}"].double() for k in "ABC")

    def forward(self, x: Tensor, t: Tensor, cond: None = None) -> Tensor:
        x = x.repeat(1, len(self.a) // x.shape[1], *[1] * (x.ndim - 2))
        return self.a * x + self.b + self.c * (t.double().view(-1, *[1] * (x.ndim - 1)) / 1000)


class TinyNet(nn.Module):
    """A trainable network that treats every sample by itself, so that its output does not depend on
    the batch.
    """

    def __init__(self, channels: int = 3, hidden: int = 8, outputs: int = 1) -> None:
        super().__init__()
        self.channels = channels
        self.a = nn.Parameter(
            0.1 * torch.randn(channels, hidden, generator=torch.Generator().manual_seed(0))
        )
        self.b = nn.Parameter(
            0.1
            * torch.randn(hidden, outputs * channels, generator=torch.Generator().manual_seed(1))
        )
        self.time = nn.Parameter(torch.zeros(hidden))

    def forward(self, x: Tensor, t: Tensor, cond: dict[str, Tensor] | None = None) -> Tensor:
        rows = x.flatten(2).movedim(1, 2)[..., None]
        hidden = torch.tanh((rows * self.a).sum(2) + self.time * t.view(-1, 1, 1) / 1000)
        return (hidden[..., None] * self.b).sum(2).movedim(2, 1).reshape(len(x), -1, *x.shape[2:])


def gaussian_diffusion(
    mu: Tensor,
    s: Tensor,
    schedule: Schedule,
    parametrization: str = "eps",
    net_schedule: Schedule | None = None,
    **options: object,
) -> GaussianDiffusion:
    """Return the process around the exact denoiser of Gaussian data, without clipping unless told
    so.
    """
    net = GaussianNet(mu, s, net_schedule or schedule, parametrization)
    options = {"clip": "none", "weighting": "flat", **options}
    return GaussianDiffusion(
        net,
        image_size=tuple(mu.shape[1:]),
        channels=mu.shape[0],
        schedule=schedule,
        parametrization=parametrization,
        **options,
    )


def replay(noise: Tensor) -> Iterator[Tensor]:
    """Return a noise source that hands out recorded draws in order, in float64."""
    return iter(noise.double()).__next__


def load(shared: Path, name: str) -> tuple[dict[str, Tensor], dict]:
    """Read the tensors and the description of one set of published numbers."""
    from safetensors.torch import load_file

    path = shared / "fixtures" / name
    return load_file(path.with_suffix(path.suffix + ".safetensors")), json.loads(
        Path(f"{path}.json").read_text()
    )
