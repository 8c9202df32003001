"""Distances between sets of points against their values for Gaussians."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ddpm_lib.metrics.distances import energy_distance, histogram_kl, sliced_wasserstein


def normal(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


MEASURES: dict[str, Callable[[Tensor, Tensor], float]] = {
    "energy": energy_distance,
    "sliced_wasserstein": lambda x, y: sliced_wasserstein(x, y, projections=32),
    "kl": lambda x, y: histogram_kl(x, y, bins=10, range=(-4, 4)),
}


def test_energy_distance_of_gaussians() -> None:
    """In the plane, widths a and b: E‖X − Y‖ = √(a² + b²)·√(π/2). The tolerance is five standard
    errors.
    """
    a, b = 1.0, 1.7
    wanted = 2 * math.hypot(a, b) * math.sqrt(math.pi / 2) - (a + b) * math.sqrt(math.pi)
    got = torch.tensor(
        [
            energy_distance(a * normal(400, 2, 2 * k), b * normal(300, 2, 2 * k + 1))
            for k in range(40)
        ]
    )
    assert abs(float(got.mean()) - wanted) < 5 * float(got.std()) / math.sqrt(len(got))
    assert float(got.std()) / math.sqrt(len(got)) < 0.1 * wanted


def test_energy_distance_of_shifted_gaussians_on_a_line() -> None:
    """E|N(m, 2)| = √2·√(2/π)·exp(−m²/4) + m·erf(m/2)."""
    m = 0.8
    between = 2 / math.sqrt(math.pi) * math.exp(-(m**2) / 4) + m * math.erf(m / 2)
    got = torch.tensor(
        [
            energy_distance(normal(400, 1, 2 * k)[:, 0], m + normal(400, 1, 2 * k + 1))
            for k in range(40)
        ]
    )
    assert abs(float(got.mean()) - 2 * (between - 2 / math.sqrt(math.pi))) < 5 * float(
        got.std()
    ) / math.sqrt(len(got))


def test_energy_distance_of_equal_distributions_is_zero_in_the_mean() -> None:
    """Also for few points, where leaving the pairs (x, x) in would add 2·E‖X − X'‖/n."""
    got = torch.tensor(
        [energy_distance(normal(5, 2, 2 * k), normal(8, 2, 2 * k + 1)) for k in range(2000)]
    )
    assert abs(float(got.mean())) < 4 * float(got.std()) / math.sqrt(len(got))
    assert float(got.min()) < 0


def test_energy_distance_by_hand() -> None:
    x, y = torch.tensor([[0.0, 0.0], [3.0, 4.0]]), torch.tensor([[0.0, 0.0], [0.0, 1.0]])
    between = (0 + 1 + 5 + math.hypot(3, 3)) / 4
    assert energy_distance(x, y) == pytest.approx(2 * between - 5 - 1, rel=1e-14)


def test_energy_distance_of_near_points_far_from_the_origin() -> None:
    """The inner products of such points would lose their distance."""
    x = 1e6 + 1e-3 * normal(50, 2, 0)
    y = 1e6 + 1e-3 * normal(50, 2, 1)
    assert energy_distance(x, y) == pytest.approx(energy_distance(x - 1e6, y - 1e6), rel=1e-4)


@pytest.mark.parametrize("d", [1, 2, 5])
def test_sliced_wasserstein_of_a_shift(d: int) -> None:
    """A shift by m moves each projection by θ·m, and the mean of (θ·m)² is ‖m‖²/d: exactly so for
    the same points.
    """
    x = normal(50, d, 0)
    m = torch.arange(1, d + 1, dtype=torch.float64)
    got = sliced_wasserstein(x, x + m, projections=4000)
    assert got == pytest.approx(float(m.norm()) / math.sqrt(d), rel=0.05)


def test_sliced_wasserstein_of_widths_and_unequal_sizes() -> None:
    """W_2 between N(0, 1) and N(0, b²) is b − 1; twice the same points are the same
    distribution.
    """
    x = normal(20_000, 2, 0)
    assert sliced_wasserstein(x, 1.5 * normal(20_000, 2, 1), 64) == pytest.approx(0.5, rel=0.03)
    assert sliced_wasserstein(x[:500], x[:500].repeat(2, 1), 8) == 0
    assert sliced_wasserstein(x[:7], x[:3], 8) > 0


def test_histogram_kl_of_shifted_gaussians() -> None:
    """KL(N(0, 1) ‖ N(m, 1)) = m²/2, from a density and from points; 1/2n per occupied bin is the
    bias.
    """
    m, x = 0.5, normal(200_000, 1, 0) + 0.5

    def log_density(points: Tensor) -> Tensor:
        return -points[:, 0].square() / 2 - math.log(2 * math.pi) / 2

    assert histogram_kl(x, log_density, bins=60, range=(-5, 5)) == pytest.approx(m**2 / 2, rel=0.03)
    assert histogram_kl(x, normal(200_000, 1, 1), bins=60, range=(-5, 5)) == pytest.approx(
        m**2 / 2, rel=0.03
    )


def test_histogram_kl_in_the_plane() -> None:
    def log_density(points: Tensor) -> Tensor:
        return -points.square().sum(1) / 2 - math.log(2 * math.pi)

    same = histogram_kl(normal(20_000, 2, 0), log_density, bins=10, range=(-4, 4))
    assert 0 < same < 2 * 100 / (2 * 20_000)
    wide = histogram_kl(1.3 * normal(200_000, 2, 0), log_density, bins=40, range=(-4, 4))
    assert wide == pytest.approx(2 * (math.log(1.3) + 0.5 / 1.69 - 0.5), rel=0.1)


def test_histogram_kl_sees_a_missing_half_and_points_outside() -> None:
    data = torch.cat([torch.full((500, 2), -0.5), torch.full((500, 2), 0.5)])
    wanted = 0.5 * math.log(0.5 / (0.5 / 508.5)) + 0.5 * math.log(0.5 / (500.5 / 508.5))
    assert histogram_kl(data[:500], data, bins=4) == pytest.approx(wanted, rel=1e-12)
    assert histogram_kl(
        torch.cat([data, torch.full((1000, 2), 7.0)]), data, bins=4
    ) == pytest.approx(math.log(2), rel=0.02)


@pytest.mark.parametrize("name", MEASURES)
def test_order_does_not_matter(name: str) -> None:
    x, y = normal(60, 2, 0), 0.5 * normal(40, 2, 1)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    value = MEASURES[name](x, y)
    assert value > 0
    assert MEASURES[name](x[order], y.flip(0)) == pytest.approx(value, rel=1e-12)


def test_wrong_input_is_named() -> None:
    x = normal(5, 2, 0)
    with pytest.raises(ValueError, match="at least 2"):
        energy_distance(x, x[:1])
    with pytest.raises(ValueError, match="one dimension"):
        sliced_wasserstein(x, normal(5, 3, 0))
    with pytest.raises(ValueError, match="1 to 3 dimensions"):
        histogram_kl(normal(5, 4, 0), normal(5, 4, 0))
    with pytest.raises(ValueError, match="NaN"):
        energy_distance(x, x / 0)
    with pytest.raises(ValueError, match="low < high"):
        histogram_kl(x, x, range=(1, 0))
