"""Published runs as presets: their networks, counted, and their processes."""

from __future__ import annotations

import pytest
import torch

from ddpm_lib import GaussianDiffusion, Unet
from ddpm_lib.cli import train
from ddpm_lib.core.errors import ConfigError
from ddpm_lib.nn import PRESETS
from ddpm_lib.process.presets import PROCESS_PRESETS

# Counted with the authors' code on the meta device: improved-diffusion at 1bc7bbb
# (script_util.create_model and sr_create_model with the flags of its README; "100M", "50M", "270M"
# and "280M" there) and ddpm-torch at b60eb8d (models.unet.UNet with its configs).
PUBLISHED = {
    "imagenet64-hybrid": 121_063_942,
    "imagenet64-vlb": 121_063_942,
    "imagenet64-conditional": 273_049_350,
    "cifar10-hybrid": 52_546_438,
    "cifar10-vlb": 52_546_438,
    "upsample-64-256": 279_792_390,
    "lsun-bedroom": 113_676_678,
    "celeba": 35_746_307,
    "celeba-hq": 113_673_219,
}
OWN = {"cifar10-edm": 56_528_899}  # not EDM's network of 55,733,891, but one with its options


def outline(**config) -> Unet:
    """A network without memory for its weights."""
    with torch.device("meta"):
        return Unet(**config)


def build(name: str) -> GaussianDiffusion:
    return GaussianDiffusion.preset(name, outline(**PRESETS[name]))


def test_every_process_has_a_network():
    assert set(PROCESS_PRESETS) == set(PUBLISHED) | set(OWN)
    assert set(PROCESS_PRESETS) < set(PRESETS)


@pytest.mark.parametrize("name", PROCESS_PRESETS)
def test_networks_have_the_published_sizes(name):
    model = build(name).model
    count = sum(p.numel() for p in model.parameters())
    null_row = model.time_embedding.linear2.out_features if model.config["num_classes"] else 0
    assert count - null_row == (PUBLISHED | OWN)[name]


@pytest.mark.parametrize("name", PROCESS_PRESETS)
def test_the_command_makes_the_same_run(name, monkeypatch):
    command = train.resolve(["path/to/images", "--preset", name])
    assert train.changes_of_preset(command) == []
    monkeypatch.setattr(train, "Unet", outline)
    diffusion, _ = train.build(train.settings_of(command))
    published = build(name)
    assert diffusion.config == published.config
    assert diffusion.model.out_channels == published.model.out_channels
    own, theirs = diffusion.model.config, published.model.config
    assert own | {"out_channels": None} == theirs | {"out_channels": None}


@pytest.mark.parametrize("name", PROCESS_PRESETS)
def test_small_networks_of_every_preset_train(name):
    torch.manual_seed(0)
    small = {"dim": 8, "blocks_per_level": 1, "dim_mults": (1, 2), "attention_levels": ()}
    few = {"num_classes": 3} if "num_classes" in PRESETS[name] else {}
    model = Unet.preset(name, **small, **few)
    diffusion = GaussianDiffusion.preset(name, model, image_size=8)
    cond = {"class_label": torch.tensor([0, 1, 2, 0])} if few else {}
    loss = diffusion(torch.rand(4, 3, 8, 8), cond)
    loss.backward()
    assert loss.isfinite()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_flags_win_over_the_preset_and_that_is_said():
    args = ["path/to/images", "--preset", "cifar10-hybrid", "--diffusion.timesteps", "1000"]
    command = train.resolve([*args, "--image-size", "16", "--model.dim", "64"])
    assert command.diffusion.timesteps == 1000
    assert command.diffusion.schedule == "cosine"
    said = "\n".join(train.changes_of_preset(command))
    assert "image_size is (16,), published (32,)" in said
    assert "model.dim is 64, published 128" in said
    assert "diffusion.timesteps is 1000, published 4000" in said
    assert said.count("\n") == 2


def test_hybrid_losses_weigh_the_bound_as_published():
    # rescale_learned_sigmas: 0.001 of the sum over all levels; else one level as it is, 1/T of it.
    assert PROCESS_PRESETS["cifar10-hybrid"]["vlb_weight"] == 0.001
    for name in ("imagenet64-conditional", "upsample-64-256", "lsun-bedroom"):
        run = PROCESS_PRESETS[name]
        assert run["vlb_weight"] * run["timesteps"] == pytest.approx(1)


def test_a_preset_without_a_process_is_refused():
    with pytest.raises(ConfigError, match="Unknown preset of a whole run 'tiny'"):
        GaussianDiffusion.preset("tiny")
