"""What samples show beside training images: each fact on images made to show it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ddpm_lib import Shapes
from ddpm_lib.core.copy_alarm import COPY_ALARM
from ddpm_lib.metrics.sample_facts import (
    TrainingLooks,
    averaged,
    laplacian,
    mean_distance,
    sample_facts,
)

SIZES = [(1, (40,)), (3, (12, 10)), (2, (6, 7, 8))]


def shapes(n: int, seed: int) -> Tensor:
    image: Tensor = Shapes(size=16, n=n, seed=seed).batch(list(range(n)))["image"]
    return image


@pytest.fixture(scope="module")
def looks() -> TrainingLooks:
    return TrainingLooks.of(shapes(120, 0).split(50))


def test_new_images_look_like_data(looks: TrainingLooks) -> None:
    found = sample_facts(shapes(60, 1), looks)
    assert found["sample_n"] == 60
    assert found["sample_spread"] == pytest.approx(1.0, abs=0.1)
    assert found["sample_grain"] == pytest.approx(1.0, abs=0.3)
    assert found["sample_copies_p"] > COPY_ALARM


def test_copies_are_seen(looks: TrainingLooks) -> None:
    found = sample_facts(shapes(120, 0)[:16], looks)
    assert found["sample_copies"] == 1.0
    assert found["sample_copies_p"] <= COPY_ALARM


def test_noise_blur_collapse_and_a_cast_are_seen(looks: TrainingLooks) -> None:
    noise = torch.rand(16, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    fresh = shapes(16, 2).float() / 255
    blurred = F.avg_pool2d(fresh, 5, 1, 2, count_include_pad=False)
    assert sample_facts(noise, looks)["sample_grain"] > 3
    assert sample_facts(blurred, looks)["sample_grain"] < 0.3
    assert sample_facts(fresh[:1].expand(16, -1, -1, -1), looks)["sample_spread"] < 1e-6
    red = fresh.clone()
    red[:, 0] = 1.0
    found = sample_facts(red, looks)
    assert (found["sample_mean_0"], found["sample_std_0"]) == (1.0, 0.0)
    assert found["sample_mean_1"] == pytest.approx(float(fresh[:, 1].mean()), abs=1e-4)


@pytest.mark.parametrize(("channels", "size"), SIZES, ids=str)
def test_any_channels_and_dimensions(channels: int, size: tuple[int, ...]) -> None:
    g = torch.Generator().manual_seed(0)
    looks = TrainingLooks.of([torch.rand(30, channels, *size, generator=g)])
    found = sample_facts(torch.rand(9, channels, *size, generator=g), looks)
    assert found["sample_spread"] == pytest.approx(1.0, abs=0.15)
    assert found["sample_grain"] == pytest.approx(1.0, abs=0.15)
    assert f"sample_mean_{channels - 1}" in found
    assert f"sample_mean_{channels}" not in found


def test_what_makes_no_sense_is_left_out() -> None:
    few = TrainingLooks.of([torch.rand(2, 1, 2, 2)])
    found = sample_facts(torch.rand(1, 1, 2, 2), few)
    assert set(found) == {"sample_n", "sample_mean_0", "sample_std_0"}
    looks = TrainingLooks.of([shapes(20, 0)])
    enlarged = sample_facts(shapes(20, 0), looks, generated=False)
    assert not {"sample_copies", "sample_copies_p", "sample_spread"} & set(enlarged)
    flat = TrainingLooks.of([torch.full((5, 1, 4, 4), 0.5)])
    assert not {"sample_grain", "sample_spread"} & set(sample_facts(torch.rand(4, 1, 4, 4), flat))


@pytest.mark.parametrize(("channels", "size"), SIZES, ids=str)
def test_laplacian_of_a_square_is_twice_the_dimensions(
    channels: int, size: tuple[int, ...]
) -> None:
    axes = torch.meshgrid(*(torch.arange(s, dtype=torch.float64) for s in size), indexing="ij")
    square = torch.stack(axes).square().sum(0).expand(1, channels, *size)
    found = laplacian(square)
    assert found is not None
    assert found.shape == (1, channels, *(s - 2 for s in size))
    assert torch.allclose(found, torch.full_like(found, 2.0 * len(size)))


@pytest.mark.parametrize(("channels", "size"), SIZES, ids=str)
def test_averaging_keeps_the_mean(channels: int, size: tuple[int, ...]) -> None:
    x = torch.rand(3, channels, *size)
    found = averaged(x, 5)
    assert found.shape[2:] == tuple(min(5, s) for s in size)
    even = torch.rand(3, channels, *[10] * len(size))
    assert torch.allclose(averaged(even, 5).flatten(1).mean(1), even.flatten(1).mean(1))


def test_mean_distance_is_that_of_all_pairs() -> None:
    x = torch.rand(7, 3)
    assert mean_distance(x) == pytest.approx(float(torch.pdist(x.double()).mean()), rel=1e-6)
