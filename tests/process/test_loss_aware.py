"""Levels drawn where the losses are large (Nichol & Dhariwal 2021, §3.3), and where EDM wants
them.
"""

from pathlib import Path

import pytest
import torch

from ddpm_lib import GaussianDiffusion, Unet
from ddpm_lib.schedules import Schedule
from ddpm_lib.time_sampling import LogNormalSigma, LossAware
from ddpm_lib.training.resume import completed
from process_tools import TinyNet, load
from training_helpers import StopAt, assert_same_tensors, curve, final_tensors, tiny_trainer


def bound(timesteps: int, **options: float) -> LossAware:
    sampler = LossAware(**options)
    sampler.bind(Schedule.make("cosine", timesteps))
    return sampler


def weighted(sampler: LossAware, t: torch.Tensor, losses: torch.Tensor) -> torch.Tensor:
    """The losses as training returns them, with their importance weights."""
    return losses.double() / (len(sampler.probabilities) * sampler.probabilities[t - 1])


def test_published_probabilities(shared: Path) -> None:
    data, meta = load(shared, "B_process/loss_second_moment_sampler")
    sampler, seen = bound(12), 0
    t, losses = data["timesteps"] + 1, data["losses"]
    for row, stop in enumerate(meta["values"]["after_n_updates"]):
        part = slice(seen, stop)
        sampler.update(t[part], weighted(sampler, t[part], losses[part]))
        seen = stop
        torch.testing.assert_close(sampler.probabilities, data["p"][row], rtol=1e-12, atol=0)
        levels, weights = sampler((data["p"][row].cumsum(0) - data["p"][row] / 2), 12)
        assert levels.tolist() == list(range(1, 13))
        torch.testing.assert_close(weights, data["importance_weights"][row], rtol=1e-12, atol=0)


def test_the_loss_stays_unbiased() -> None:
    sampler = bound(8, history=2, uniform=0.01)
    losses = torch.tensor([9.0, 1, 4, 2, 0.5, 3, 0.1, 7], dtype=torch.float64)
    levels = torch.arange(1, 9).repeat(2)
    sampler.update(levels, losses.repeat(2))
    grid = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    t, weights = sampler(grid, 8)
    assert weights is not None
    torch.testing.assert_close((weights * losses[t - 1]).mean(), losses.mean(), rtol=1e-4, atol=0)
    # And its spread is gone, but for the uniform share.
    assert float((weights * losses[t - 1]).std()) < 0.1 * float(losses.std())


def test_state_and_ranks() -> None:
    a, b = bound(4, history=2), bound(4, history=2)
    levels, losses = torch.tensor([1, 2, 3, 4, 1, 2, 3, 4, 4]), torch.arange(1.0, 10.0)
    a.update(levels, losses)
    b.load_state_dict(a.state_dict())
    assert torch.equal(a.probabilities, b.probabilities)
    # Gathered from two ranks in their order, or seen by one process: the same rows.
    c = bound(4, history=2)
    c.update(torch.cat([levels[:5], levels[5:]]), torch.cat([losses[:5], losses[5:]]))
    assert torch.equal(a.probabilities, c.probabilities)
    assert not torch.equal(a.probabilities, torch.full((4,), 0.25).double())
    a.update(levels[:1], torch.tensor([float("nan")]))
    assert torch.equal(a.probabilities, b.probabilities)
    a.load_state_dict({})
    assert torch.equal(a.probabilities, torch.full((4,), 0.25).double())
    with pytest.raises(ValueError, match="history that were saved"):
        bound(5).load_state_dict(b.state_dict())


def process() -> GaussianDiffusion:
    torch.manual_seed(0)
    options = {"time_sampler": "loss_aware", "time_sampler_options": {"history": 1}}
    return GaussianDiffusion(
        Unet(dim=8, dim_mults=(1,), blocks_per_level=1), image_size=8, timesteps=4, **options
    )


def test_resuming_is_exact(tmp_path: Path) -> None:
    whole = tiny_trainer(tmp_path / "whole", process(), max_steps=10)
    whole.train()
    assert float(whole.diffusion.time_sampler.probabilities.std()) > 0
    tiny_trainer(tmp_path / "cut", process(), max_steps=10, callbacks=[StopAt(6)]).train()
    again = tiny_trainer(tmp_path / "cut", process(), max_steps=10)
    again.train()
    assert_same_tensors(final_tensors(tmp_path / "whole"), final_tensors(tmp_path / "cut"))
    assert curve(tmp_path / "whole") == curve(tmp_path / "cut")
    assert again.diffusion.time_sampler.state_dict() == whole.diffusion.time_sampler.state_dict()


def test_a_checkpoint_may_be_older_than_an_option() -> None:
    now = GaussianDiffusion(TinyNet(), image_size=4, timesteps=20)
    saved = {
        k: v
        for k, v in now.config.items()
        if k not in ("loss", "vlb_weight", "time_sampler_options")
    }
    assert completed(now, saved) == now.config
    other = {**saved, "timesteps": 30}
    assert completed(now, other) == {**now.config, "timesteps": 30}
    assert completed(now, {"timestep": 30}) == {"timestep": 30}


def test_log_normal_sigma() -> None:
    d = GaussianDiffusion(
        TinyNet(),
        image_size=4,
        time_sampler="log_normal_sigma",
        time_sampler_options={"P_mean": -1.0, "P_std": 0.7},
    )
    u = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    t, weights = d.time_sampler(u, 1000)
    assert weights is None
    alpha, sigma = d.schedule.gather(t)
    torch.testing.assert_close(
        (sigma / alpha).log(), -1.0 + 0.7 * torch.special.ndtri(u), rtol=1e-6, atol=1e-6
    )
    assert d.config["time_sampler_options"] == {"P_mean": -1.0, "P_std": 0.7}
    with pytest.raises(ValueError, match="P_std > 0"):
        LogNormalSigma(P_std=0.0)
    with pytest.raises(ValueError, match="history ≥ 1"):
        LossAware(history=0)
