"""Mean, variance and spectrum of measured values, and of samples against the data they are of."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ddpm_lib import GaussianDiffusion
from ddpm_lib.data import open_dataset
from ddpm_lib.metrics.value_statistics import radial_spectrum, value_statistics
from ddpm_lib.schedules import Schedule

SIDE = 16
SCHEDULE = Schedule.make("cosine", 1000)
MEAN = np.array([281.0, -3.5])
UNIT = np.array([9.0, 0.02])


def test_a_wave_has_its_power_at_its_wave_number():
    """A·cos(2πkx/N) has the power A²/4 at each of the two frequencies ±k, and none elsewhere."""
    x = np.arange(32)
    wave = 3 * np.cos(2 * np.pi * 5 * x / 32)
    images = np.broadcast_to(wave, (1, 1, 32, 32))
    found = radial_spectrum(images)[0]
    distance = np.sqrt(sum(g**2 for g in np.meshgrid(*[np.fft.fftfreq(32) * 32] * 2)))
    in_ring = int((np.rint(distance) == 5).sum())
    assert found[4] == pytest.approx(2 * 3**2 / 4 / in_ring)
    assert np.delete(found, 4).max() < 1e-20


@pytest.mark.parametrize("shape", [(20, 20), (8, 8, 8), (64,)])
def test_white_noise_has_the_same_power_everywhere(shape):
    """σ²/N at each frequency: so that the sum over frequencies is the variance."""
    noise = 4 * np.random.default_rng(0).standard_normal((400, 2, *shape))
    found = radial_spectrum(noise) * np.prod(shape)
    assert found.shape == (2, min(shape) // 2)
    assert np.abs(found / 16 - 1).max() < 0.2
    statistics = value_statistics(noise + 7)
    assert np.allclose(statistics.mean, 7, atol=0.05)
    assert np.allclose(statistics.std, 4, rtol=0.02)


def powers() -> np.ndarray:
    """Power by frequency of a field of two channels, rough and smooth, of variance 1."""
    grids = np.meshgrid(*[np.fft.fftfreq(SIDE) * SIDE] * 2, indexing="ij")
    squares = sum(grid**2 for grid in grids)
    found = np.stack([(1 + squares) ** -1.0, (4 + squares) ** -1.5])
    found[:, 0, 0] = found[:, 0, 1]
    return found / found.sum((1, 2), keepdims=True)


def fields(n: int, seed: int) -> np.ndarray:
    """Draw Gaussian fields of that power, in two units."""
    white = np.random.default_rng(seed).standard_normal((n, 2, SIDE, SIDE))
    made = np.fft.ifft2(np.fft.fft2(white) * np.sqrt(powers()) * SIDE).real
    return (MEAN[:, None, None] + UNIT[:, None, None] * made).astype(np.float32)


class Exact(nn.Module):
    """Predicts v of Gaussian fields of some mean and power exactly, at every level."""

    channels = 2

    def __init__(self, mean: np.ndarray, power: np.ndarray) -> None:
        super().__init__()
        self.mean = torch.from_numpy(mean)[:, None, None]
        self.power = torch.from_numpy(power * SIDE**2)

    def forward(self, x: Tensor, t: Tensor, cond: None = None) -> Tensor:
        level = SCHEDULE.level(float(t[0]) + 1)
        away = torch.fft.fft2(x.double() - level.alpha * self.mean)
        pull = level.alpha * self.power / (level.alpha**2 * self.power + level.sigma**2)
        x0 = self.mean + torch.fft.ifft2(pull * away).real
        eps = (x - level.alpha * x0) / level.sigma
        return (level.alpha * eps - level.sigma * x0).to(x.dtype)


def test_samples_have_mean_variance_and_spectrum_of_the_data():
    """A perfect network for normalized Gaussian fields draws, through `inverse`, fields of the
    data's mean, variance and spectrum, in its units: nothing of them is lost on the way.
    """
    data = open_dataset(fields(1500, 0), image_size=SIDE, channels=2, normalize="affine")
    low, high = np.array(data.normalization.low), np.array(data.normalization.high)
    slope = 2 / (high - low)  # to [-1, 1]
    network = Exact(slope * (MEAN - low) - 1, powers() * (slope * UNIT)[:, None, None] ** 2)
    diffusion = GaussianDiffusion(
        network, image_size=SIDE, channels=2, schedule=SCHEDULE, parametrization="v"
    )
    drawn = diffusion.sample(600, num_steps=200, seed=0, batch_size=300)
    samples = data.normalization.inverse(drawn)
    assert samples.dtype == np.float32
    found, held = value_statistics(samples), value_statistics(fields(1500, 1))
    truth = powers()
    # The mean of an image varies by its power at frequency zero.
    error = UNIT * np.sqrt(truth[:, 0, 0] / 600)
    assert (np.abs(found.mean - MEAN) < 4 * error).all()
    assert np.allclose(found.std, held.std, rtol=0.03)
    assert np.abs(found.spectrum / held.spectrum - 1).max() < 0.1
    swapped = (found.spectrum / UNIT[:, None] ** 2)[::-1] * UNIT[:, None] ** 2
    assert np.abs(swapped / held.spectrum - 1).max() > 0.5  # the channels differ by more than that
