"""The compatible classes beside those of denoising-diffusion-pytorch, where it is installed."""

from __future__ import annotations

import inspect

import pytest
import torch

from ddpm_lib.compat import lucidrains as ours
from ddpm_lib.compat.lucidrains import classifier_free_guidance as our_classes

peer = pytest.importorskip("denoising_diffusion_pytorch")
peer_classes = pytest.importorskip("denoising_diffusion_pytorch.classifier_free_guidance")

TINY = {"dim": 8, "dim_mults": (1, 2)}


def networks(**options):
    torch.manual_seed(0)
    theirs = peer.Unet(**TINY, **options)
    mine = ours.Unet(**TINY, **options)
    mine.load_state_dict(theirs.state_dict())
    return mine, theirs


def processes(network: dict | None = None, **options):
    mine, theirs = networks(**network or {})
    options = {"image_size": 8, "timesteps": 20} | options
    return ours.GaussianDiffusion(mine, **options), peer.GaussianDiffusion(theirs, **options)


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        (ours.Unet, peer.Unet),
        (ours.GaussianDiffusion, peer.GaussianDiffusion),
        (ours.Trainer, peer.Trainer),
        (our_classes.Unet, peer_classes.Unet),
        (our_classes.GaussianDiffusion, peer_classes.GaussianDiffusion),
        (ours.GaussianDiffusion.sample, peer.GaussianDiffusion.sample),
        (ours.GaussianDiffusion.p_losses, peer.GaussianDiffusion.p_losses),
        (ours.GaussianDiffusion.interpolate, peer.GaussianDiffusion.interpolate),
        (our_classes.GaussianDiffusion.sample, peer_classes.GaussianDiffusion.sample),
    ],
    ids=lambda value: value.__qualname__,
)
def test_arguments_and_defaults_are_the_same(mine, theirs):
    def arguments(thing):
        found = inspect.signature(thing).parameters.values()
        # An empty dict as a default is None here.
        return {p.name: None if p.default == {} else p.default for p in found}

    assert arguments(mine) == arguments(theirs)


def test_every_class_is_there_or_says_why_not():
    classes = [name for name, value in vars(peer).items() if inspect.isclass(value)]
    assert {"Unet", "XMWrapper"} < set(classes)
    for name in set(classes) - set(ours.__all__):
        with pytest.raises(ImportError, match="no counterpart"):
            getattr(ours, name)


@pytest.mark.parametrize("self_condition", [False, True])
def test_state_dicts_move_both_ways(self_condition):
    mine, theirs = processes({"self_condition": self_condition})
    there, here = theirs.state_dict(), mine.state_dict()
    assert list(here) == list(there)
    for name, tensor in there.items():
        torch.testing.assert_close(here[name], tensor, rtol=1e-4, atol=1e-6, msg=name)
    theirs.load_state_dict(here)
    mine.load_state_dict(there)
    x, t, shown = torch.randn(2, 3, 8, 8), torch.tensor([3, 19]), torch.randn(2, 3, 8, 8)
    args = (x, t, shown) if self_condition else (x, t)
    torch.testing.assert_close(mine.model(*args), theirs.model(*args), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("objective", ["pred_noise", "pred_x0", "pred_v"])
@pytest.mark.parametrize("schedule", ["linear", "cosine", "sigmoid"])
def test_losses(objective, schedule):
    mine, theirs = processes(
        objective=objective, beta_schedule=schedule, min_snr_loss_weight=True, timesteps=40
    )
    images, noise, times = (
        torch.rand(4, 3, 8, 8),
        torch.randn(4, 3, 8, 8),
        torch.tensor([0, 9, 22, 39]),
    )
    found, wanted = (
        made(images, noise=noise.clone(), times=times, loss_reduction="none")
        for made in (mine, theirs)
    )
    torch.testing.assert_close(found, wanted, rtol=2e-3, atol=1e-5)


@pytest.mark.every(2)
@pytest.mark.parametrize("objective", ["pred_noise", "pred_x0", "pred_v"])
@pytest.mark.parametrize("self_condition", [False, True])
def test_sampling_from_the_same_noise(monkeypatch, objective, self_condition):
    mine, theirs = processes(
        {"self_condition": self_condition}, objective=objective, sampling_timesteps=7
    )
    start = torch.randn(2, 3, 8, 8)
    monkeypatch.setattr(torch, "randn", lambda *_, **__: start.clone())
    wanted = theirs.sample(batch_size=2)
    monkeypatch.undo()
    found = mine.process.sample(x_T=start, **mine.sampling_options())
    torch.testing.assert_close(found, wanted.clone(), rtol=1e-3, atol=1e-4)


def with_classes(**options):
    torch.manual_seed(0)
    theirs = peer_classes.Unet(**TINY, num_classes=3)
    mine = our_classes.Unet(**TINY, num_classes=3)
    mine.load_state_dict(theirs.state_dict())
    options = {"image_size": 8, "timesteps": 20, "objective": "pred_v"} | options
    return (
        our_classes.GaussianDiffusion(mine, **options),
        peer_classes.GaussianDiffusion(theirs, **options),
    )


def test_the_network_and_the_loss_with_classes():
    mine, theirs = with_classes()
    theirs.load_state_dict(mine.state_dict())
    assert set(mine.state_dict()) == set(theirs.state_dict())
    x, labels, keep = (
        torch.rand(3, 3, 8, 8),
        torch.tensor([2, 0, 1]),
        torch.tensor([True, False, True]),
    )
    times, noise = torch.tensor([1, 8, 19]), torch.randn(3, 3, 8, 8)
    found, wanted = (
        made(x, classes=labels, times=times, noise=noise.clone(), cond_keep_mask=keep)
        for made in (mine, theirs)
    )
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scale", [1.5, 6.0])
def test_guided_sampling_from_the_same_noise(monkeypatch, scale):
    mine, theirs = with_classes(sampling_timesteps=5, ddim_sampling_eta=0.0)
    start, labels = torch.randn(2, 3, 8, 8), torch.tensor([2, 0])
    monkeypatch.setattr(torch, "randn", lambda *_, **__: start.clone())
    wanted = theirs.sample(classes=labels, cond_scale=scale)
    monkeypatch.undo()
    network = our_classes._Guided(mine.process.model, scale, 0.7)
    options = mine.sampling_options() | {"cond": {"class_label": labels}, "model": network}
    found = mine.process.sample(x_T=start, **options)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)


def test_the_original_goes_on_from_a_milestone(tmp_path):
    mine, theirs = processes(sampling_timesteps=2)
    options = {"train_num_steps": 2, "save_and_sample_every": 2, "train_batch_size": 4}
    options |= {"num_samples": 4, "calculate_fid": False, "results_folder": tmp_path / "results"}
    images = (torch.rand(8, 3, 8, 8) * 255).byte()
    ours.Trainer(mine, images, **options).train()
    content = torch.load(tmp_path / "results" / "model-1.pt", weights_only=True)  # noqa: TID251
    theirs.load_state_dict(content["model"])
    adam = torch.optim.Adam(theirs.parameters(), lr=1e-4, betas=(0.9, 0.99))
    adam.load_state_dict(content["opt"])
    shapes = [v["exp_avg"].shape for v in adam.state_dict()["state"].values()]
    assert shapes == [p.shape for p in theirs.parameters()]
    from ema_pytorch import EMA

    ema = EMA(theirs, beta=0.995, update_every=10)
    ema.load_state_dict(content["ema"])
    assert int(ema.step) == content["step"] == 2
