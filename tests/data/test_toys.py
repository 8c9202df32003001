"""Toys in the plane: their points, their densities, and what diffusion makes of them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from ddpm_lib import GaussianDiffusion
from ddpm_lib.core.plots import plot_points
from ddpm_lib.data import TOYS, Toy, points_to_values, toy_points, values_to_points
from ddpm_lib.data.toys import Curves, Mixture
from ddpm_lib.metrics.distances import energy_distance
from ddpm_lib.nn import MLP, NETWORKS
from training_helpers import tiny_trainer

SMOOTH = [name for name, toy in TOYS.items() if isinstance(toy, Mixture | Curves)]


def grid(cells: int, limit: float = 1.0) -> tuple[Tensor, float]:
    """Return the middles (cells², 2) of a grid on [-limit, limit]², and the area of a cell."""
    middles = limit * ((torch.arange(cells, dtype=torch.float64) + 0.5) * 2 / cells - 1)
    return torch.cartesian_prod(middles, middles), (2 * limit / cells) ** 2


@pytest.mark.parametrize("name", TOYS)
def test_points_depend_on_name_seed_and_index_alone(name: str) -> None:
    points = toy_points(name, 50, seed=3)
    assert points.shape == (50, 2)
    assert points.dtype == torch.float32
    assert torch.equal(points, toy_points(name, 80, seed=3)[:50])
    assert not torch.equal(points, toy_points(name, 50, seed=4))
    assert float(points.abs().max()) <= 1


@pytest.mark.parametrize("name", TOYS)
def test_size_in_the_square(name: str) -> None:
    """Centred, of about the same width, and clamping at the square touches nothing."""
    points = toy_points(name, 20_000)
    assert float(points.abs().max()) < 1
    assert 0.25 < float(points.std(0).min()) <= float(points.std(0).max()) < 0.55
    assert float(points.mean(0).abs().max()) < 0.15


@pytest.mark.parametrize("name", TOYS)
def test_dataset(name: str) -> None:
    data, points = Toy(name, n=400), toy_points(name, 400)
    batch = data.batch(range(400))
    assert batch["image"].shape == (400, 2, 1)
    assert 0 <= float(batch["image"].min()) <= float(batch["image"].max()) <= 1
    assert torch.allclose(values_to_points(batch["image"]), points, atol=1e-6)
    assert torch.equal(points_to_values(points), batch["image"])
    assert data.num_classes == TOYS[name].classes
    assert data.fingerprint != Toy(name, n=400, seed=1).fingerprint
    if data.labels is not None and isinstance(toy := TOYS[name], Mixture):
        nearest = torch.cdist(points.double(), toy.blobs.centres).argmin(1)
        assert torch.equal(nearest, data.labels)


@pytest.mark.parametrize("name", TOYS)
def test_density_integrates_to_one(name: str) -> None:
    """Midpoint rule with cells of half the noise (exact for Gaussians), or squares that share the
    board's edges.
    """
    points, area = grid(160)
    mass = float(TOYS[name].log_density(points).exp().sum()) * area
    assert mass == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("name", TOYS)
def test_density_is_that_of_the_points(name: str) -> None:
    """Counts of 20,000 points in 20×20 bins against the integrated density, by a χ² test on bins
    that expect five.
    """
    n, bins, cells = 20_000, 20, 160
    points, area = grid(cells)
    fine = (
        TOYS[name].log_density(points).exp().view(bins, cells // bins, bins, cells // bins) * area
    )
    expected = n * fine.sum((1, 3)).flatten().numpy()
    edges = np.linspace(-1, 1, bins + 1)
    counts = np.histogram2d(*toy_points(name, n, seed=5).numpy().T, bins=[edges, edges])[0].ravel()
    enough = expected >= 5
    got, wanted = (np.append(v[enough], v[~enough].sum()) for v in (counts, expected))
    got, wanted = (v[wanted > 0.5] for v in (got, wanted))
    assert stats.chisquare(got, wanted * got.sum() / wanted.sum()).pvalue > 1e-3


def test_density_by_hand() -> None:
    ring = TOYS["ring"]
    assert isinstance(ring, Mixture)
    peak = ring.log_density(ring.blobs.centres[:1])
    assert float(peak) == pytest.approx(-math.log(8 * 2 * math.pi * 0.04**2), abs=1e-9)
    board = TOYS["checkerboard"].log_density(torch.tensor([[-0.7, -0.7], [-0.3, -0.7], [0.9, 0.9]]))
    assert board.tolist() == pytest.approx([-math.log(1.28), -math.inf, -math.inf])


@pytest.mark.parametrize("name", SMOOTH)
def test_posterior_mean_is_tweedies(name: str) -> None:
    """E[x_0 | x_t] = (x_t + σ²·∇log p_t(x_t))/α (Robbins 1956; Efron 2011), with the gradient by
    autograd.
    """
    toy, alpha, sigma = TOYS[name], 0.8, 0.6
    x = torch.randn(
        50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    ).requires_grad_()
    (score,) = torch.autograd.grad(toy.blobs.log_density(x, alpha, sigma).sum(), x)
    wanted = (x + sigma**2 * score) / alpha
    assert torch.allclose(
        toy.blobs.posterior_mean(x.detach(), alpha, sigma), wanted.detach(), atol=1e-10
    )


class ExactNet(nn.Module):
    """The perfect network for a toy whose density is known."""

    def __init__(self, name: str, diffusion_options: dict) -> None:
        super().__init__()
        self.blobs = TOYS[name].blobs
        self.process = GaussianDiffusion(
            nn.Identity(), image_size=(1,), channels=2, **diffusion_options
        )

    def forward(self, x: Tensor, t: Tensor, cond: None = None) -> Tensor:
        # Solvers ask for fractional levels; all points of a batch are at one.
        level = self.process.schedule.level(float(t[0]) + 1)
        x0 = self.blobs.posterior_mean(x[..., 0], level.alpha, level.sigma)[..., None].to(x.dtype)
        eps = (x - level.alpha * x0) / level.sigma
        return self.process.parametrization.target(x0, eps, level.alpha, level.sigma)


@pytest.mark.parametrize(
    ("name", "sampler", "steps"),
    [
        ("ring", "ddpm", 120),
        ("ring", "ddim", 120),
        ("grid", "heun", 40),
        ("moons", "heun", 40),
        ("swiss_roll", "heun", 40),
    ],
)
def test_the_exact_network_samples_the_data(name: str, sampler: str, steps: int) -> None:
    """All that is left is the error of the steps: less than five standard deviations of a draw of
    data.
    """
    options = {"schedule": "cosine", "parametrization": "v", "clip": "none"}
    diffusion = GaussianDiffusion(ExactNet(name, options), image_size=(1,), channels=2, **options)
    n = 800
    samples = values_to_points(diffusion.sample(n, sampler=sampler, num_steps=steps))
    data = toy_points(name, n, seed=1)
    floor = torch.tensor([energy_distance(toy_points(name, n, seed=k), data) for k in range(2, 10)])
    assert energy_distance(samples, data) < float(floor.mean() + 5 * floor.std())


@pytest.mark.parametrize(("sampler", "steps"), [("heun", 20), ("dpmpp_2m", 30)])
def test_even_steps_in_log_snr_keep_the_blobs_wide(sampler: str, steps: int) -> None:
    """Steps that are even in t leave so much noise to the last one that blobs come out half as
    wide; these do not.
    """
    options = {"schedule": "cosine", "parametrization": "v", "clip": "none"}
    diffusion = GaussianDiffusion(ExactNet("ring", options), image_size=(1,), channels=2, **options)

    def width(spacing: str) -> float:
        values = diffusion.sample(1000, sampler=sampler, num_steps=steps, spacing=spacing)
        return (
            float(
                torch.cdist(values_to_points(values).double(), ring.centres)
                .min(1)[0]
                .square()
                .mean()
                / 2
            )
            ** 0.5
        )

    ring = TOYS["ring"].blobs
    assert width("log_snr") == pytest.approx(ring.scale, rel=0.06)
    assert width("trailing") < 0.8 * ring.scale


def small_mlp(**options: object) -> MLP:
    torch.manual_seed(0)
    return MLP(**{"width": 16, "depth": 2, **options})


def awaken(model: MLP) -> None:
    """Give the layers that start at zero something to say."""
    for layer in (model.linear_out, *(block.linear2 for block in model.blocks)):
        nn.init.normal_(layer.weight)


def test_mlp_is_built_from_its_config() -> None:
    model = small_mlp(num_classes=3, out_channels=4, frequencies=2)
    again = NETWORKS["MLP"](**model.config)
    awaken(model)
    again.load_state_dict(model.state_dict())
    x, t = torch.randn(5, 2, 1), torch.arange(5)
    cond = {"class_label": torch.tensor([0, 1, 2, -1, 0])}
    assert model(x, t, cond).shape == (5, 4, 1)
    assert torch.equal(model(x, t, cond), again(x, t, cond))
    assert not torch.equal(model(x, t, cond)[:3], model(x, t)[:3])
    assert torch.equal(model(x, t, cond)[3], model(x, t)[3])


def test_mlp_starts_at_zero_and_sees_the_time() -> None:
    model = small_mlp()
    x = torch.randn(3, 2, 1)
    assert model(x, torch.zeros(3)).abs().max() == 0
    awaken(model)
    assert not torch.allclose(model(x, torch.zeros(3)), model(x, torch.full((3,), 500.0)))


def test_mlp_names_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"\(b, 2, 1\), got \(5, 2, 4\)"):
        small_mlp()(torch.zeros(5, 2, 4), torch.zeros(5))
    with pytest.raises(ValueError, match="one time per sample"):
        small_mlp()(torch.zeros(5, 2, 1), torch.zeros(1))
    with pytest.raises(ValueError, match=r"points, image_size=\(1,\); got \(16,\)"):
        small_mlp().check_size((16,))
    with pytest.raises(ValueError, match="even"):
        MLP(width=15)
    with pytest.raises(ValueError, match="set num_classes"):
        small_mlp()(torch.zeros(1, 2, 1), torch.zeros(1), {"class_label": torch.zeros(1)})
    with pytest.raises(ValueError, match="Did you mean 'moons'"):
        toy_points("moon", 3)
    with pytest.raises(ValueError, match="n ≥ 1"):
        Toy("ring", n=0)


def test_mlp_trains_and_resumes(tmp_path: Path) -> None:
    """The same Trainer, with classes, a learned variance and guidance."""

    def process() -> GaussianDiffusion:
        model = small_mlp(num_classes=2, out_channels=4)
        return GaussianDiffusion(
            model, image_size=(1,), timesteps=20, variance="learned_range", clip="none"
        )

    options = {"horizontal_flip": False, "batch_size": 8, "val_every": 3, "val_fraction": 0.2}
    assert (
        tiny_trainer(tmp_path, process(), Toy("moons", n=60), **options).train().status
        == "finished"
    )
    again = tiny_trainer(tmp_path, process(), Toy("moons", n=60), max_steps=8, **options)
    assert again.train().step == 8
    assert again.sample(4, num_steps=3, guidance_scale=2.0).shape == (4, 2, 1)


def test_plot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    points = toy_points("moons", 30)
    figure = plot_points({"data": points, "samples": points}, torch.randn(5, 4, 2), title="moons")
    assert len(figure.axes) == 3
    figure.savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 1000
    with pytest.raises(ValueError, match=r"\(n, 2\)"):
        plot_points({"data": points[..., None]})
    with pytest.raises(ValueError, match="nothing to draw"):
        plot_points({})


@pytest.mark.slow
def test_learning_the_ring(tmp_path: Path) -> None:
    """An MLP learns all eight modes in equal shares; energy distance within a few times that of
    data to data.
    """
    torch.manual_seed(0)
    diffusion = GaussianDiffusion(MLP(), image_size=(1,), weighting="snr_plus_one", clip="none")
    trainer = tiny_trainer(
        tmp_path,
        diffusion,
        Toy("ring", n=8192),
        max_steps=1500,
        batch_size=256,
        learning_rate=2e-3,
        lr_schedule="cosine",
        warmup_steps=100,
        ema_decay=(0.99,),
        horizontal_flip=False,
        save_every=1500,
    )
    trainer.train()
    n, ring = 2000, TOYS["ring"]
    assert isinstance(ring, Mixture)
    samples = values_to_points(
        trainer.sample(n, sampler="dpmpp_2m", num_steps=30, spacing="log_snr")
    ).double()
    fresh = toy_points("ring", n, seed=1)
    floor = torch.tensor(
        [energy_distance(toy_points("ring", n, seed=k), fresh) for k in range(2, 10)]
    )
    assert energy_distance(samples, fresh) < 20 * float(floor.abs().mean())
    distance, mode = torch.cdist(samples, ring.blobs.centres).min(1)
    assert float((distance < 5 * ring.blobs.scale).double().mean()) > 0.95
    share = torch.bincount(mode, minlength=8) / n
    assert float(share.min()) > 0.09
    assert float(share.max()) < 0.16
