"""Beside denoising-diffusion-pytorch itself, where it is installed (the extra `bench`)."""

from __future__ import annotations

import pytest
import torch

from ddpm_lib.interop import read_foreign
from ddpm_lib.interop.lucidrains_network import to_peer_names
from ddpm_lib.nn import LucidrainsUnet

peer = pytest.importorskip("denoising_diffusion_pytorch")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def network_with_classes(**options):
    from denoising_diffusion_pytorch.classifier_free_guidance import Unet

    return Unet(dim=8, dim_mults=(1, 2), num_classes=3, **options).eval()


@pytest.mark.parametrize("options", [{}, {"attn_heads": 2, "attn_dim_head": 8, "init_dim": 12}])
def test_the_network_with_classes(tmp_path, options):
    theirs = network_with_classes(**options)
    path = tmp_path / "classes.pt"
    torch.save(theirs.state_dict(), path)
    imported = read_foreign(path, {"image_size": 8, "heads": options.get("attn_heads", 4)})
    ours = LucidrainsUnet(**imported.network_config).eval()
    ours.load_state_dict(imported.weights)
    x, t, labels = torch.randn(3, 3, 8, 8), torch.tensor([0, 40, 999]), torch.tensor([2, 0, 1])
    with torch.no_grad():
        shown = ours(x, t, {"class_label": labels})
        torch.testing.assert_close(shown, theirs(x, t, labels, cond_drop_prob=0.0))
        torch.testing.assert_close(ours(x, t), theirs(x, t, labels, cond_drop_prob=1.0))
    back = to_peer_names(ours.state_dict())
    assert list(back) == [name for name, _ in theirs.named_parameters()]
    theirs.load_state_dict(back)


@pytest.mark.parametrize("objective", ["pred_noise", "pred_x0", "pred_v"])
@pytest.mark.parametrize("schedule", ["linear", "cosine", "sigmoid"])
def test_a_process_of_every_kind(tmp_path, objective, schedule):
    network = peer.Unet(dim=8, dim_mults=(1,), attn_dim_head=4)
    process = peer.GaussianDiffusion(
        network,
        image_size=8,
        timesteps=40,
        objective=objective,
        beta_schedule=schedule,
        min_snr_loss_weight=True,
        min_snr_gamma=3,
    )
    torch.save(process.state_dict(), tmp_path / "process.pt")
    found = read_foreign(tmp_path / "process.pt", {"image_size": 8}).process
    assert found["schedule"] == schedule
    assert found["parametrization"] == {"pred_noise": "eps"}.get(objective, objective[5:])
    assert (found["weighting"], found["weighting_options"]) == ("min_snr", {"gamma": 3.0})
