"""Networks of another library's convention are called, asked and described as they want."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from ddpm_lib import GaussianDiffusion, Trainer, load_run
from ddpm_lib.cli import main
from ddpm_lib.core.errors import CheckpointError
from ddpm_lib.nn import NETWORKS, Unet
from ddpm_lib.nn.outside import (
    LABEL_KEYWORDS,
    Calling,
    OutsideLabel,
    calling_of,
    diffusers_network,
)
from ddpm_lib.training.resume import describe_model

X = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 0])


class ByClass(nn.Module):
    """A network that adds the weight of a class; it notes how it was called."""

    in_channels, num_classes = 3, 3

    def __init__(self, rows: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.table = nn.Embedding(rows, 3)
        self.seen: list[Tensor | None] = []

    def answer(self, x: Tensor, label: Tensor | None) -> Tensor:
        self.seen.append(label)
        assert label is not None
        return self.conv(x) + self.table(label)[:, :, None, None]


def network_with(keyword: str) -> ByClass:
    """Return a network that takes labels under a keyword, as the libraries of its kind do."""
    signature = f"self, x, timesteps, {keyword}=None"
    body = f"return self.answer(x, {keyword})"
    space: dict[str, Any] = {}
    exec(f"def forward({signature}): {body}", space)
    return type("Named", (ByClass,), {"forward": space["forward"]})()


class Plain(nn.Module):
    """Called as network(sample, timestep, return_dict=True), like diffusers' UNet1DModel."""

    in_channels = 3

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, sample: Tensor, timestep: Tensor, return_dict: bool = True) -> Any:
        out = self.conv(sample)
        return SimpleNamespace(sample=out) if return_dict is True else (out,)


class Two(Plain):
    """Called with two arguments."""

    def forward(self, x: Tensor, noise_labels: Tensor) -> Any:  # type: ignore[override]
        return (self.conv(x),)


@pytest.mark.parametrize("keyword", LABEL_KEYWORDS)
def test_labels_reach_a_network_under_its_own_keyword(keyword: str) -> None:
    network = network_with(keyword)
    assert calling_of(network) == Calling("label", keyword)
    d = GaussianDiffusion(network, image_size=8, timesteps=10)
    d({"image": X, "class_label": LABELS}).backward()
    gradient = network.table.weight.grad
    assert gradient is not None
    assert gradient.abs().sum() > 0
    d.sample(2, num_steps=1, cond={"class_label": [2, 1]})
    assert [None if v is None else v.tolist() for v in network.seen] == [LABELS.tolist(), [2, 1]]
    with pytest.raises(ValueError, match="needs the condition 'class_label'"):
        d.sample(2, num_steps=1)
    with pytest.raises(ValueError, match=r"label 3; labels go from 0 to 2\.$"):
        d.sample(1, num_steps=1, cond={"class_label": 3})
    with pytest.raises(ValueError, match="guidance_scale strengthens"):
        d.sample(1, num_steps=1, cond={"class_label": 1}, guidance_scale=2.0)


def test_a_named_null_class_makes_guidance() -> None:
    network = network_with("y")
    network.table = nn.Embedding(4, 3)
    network.null_class = 3  # type: ignore[assignment]
    d = GaussianDiffusion(network, image_size=8, timesteps=10, clip="none")
    assert isinstance(d.conditioners, dict)
    label = d.conditioners["class_label"]
    assert isinstance(label, OutsideLabel)
    assert (label.drop_prob, label.num_classes) == (0.1, 3)
    x, level = torch.randn(2, 3, 8, 8), d.schedule.level(5)
    with_label = d.denoise(x, level, {"class_label": torch.tensor([1, 1])}).x0
    without = d.denoise(x, level, {"class_label": torch.tensor([3, 3])}).x0
    start = torch.randn(2, 3, 8, 8, dtype=torch.float32)
    options: dict[str, Any] = {"spacing": [5], "x_T": start, "return_trajectory": True}
    alone = d.sample(2, **options, cond={"class_label": 1})[0]
    guided = d.sample(2, **options, cond={"class_label": 1}, guidance_scale=3.0)[0]
    null = d.sample(2, **options)[0]
    assert torch.equal(null, d.sample(2, **options, cond={"class_label": -1})[0])
    assert not torch.equal(alone, guided)
    assert not torch.equal(alone, null)
    assert not torch.equal(with_label, without)
    # All labels hidden: what training then sees is the null class alone.
    network.seen.clear()
    d({"image": X, "class_label": LABELS}, drop=torch.ones(4, dtype=torch.bool))
    assert [None if v is None else v.tolist() for v in network.seen] == [[3] * 4]


def test_the_last_row_as_null_class_is_no_class() -> None:
    assert OutsideLabel(5, 4, None).num_classes == 4
    assert OutsideLabel(5, 5, None).num_classes == 5
    assert OutsideLabel(5, None, None).drop_prob == 0
    with pytest.raises(ValueError, match=r"names none\. Give it null_class"):
        OutsideLabel(5, None, 0.1)


@pytest.mark.parametrize("kind", [Plain, Two])
def test_a_network_without_conditions_is_called_with_two_arguments(kind: type[Plain]) -> None:
    d = GaussianDiffusion(kind(), image_size=8, timesteps=10)
    d(X).backward()
    d({"image": X, "class_label": LABELS}).backward()
    assert d.sample(1, num_steps=2).shape == (1, 3, 8, 8)
    with pytest.raises(ValueError, match="takes no conditions; got 'class_label'"):
        d.sample(1, num_steps=2, cond={"class_label": 1})


def test_wrappers_are_looked_through() -> None:
    network = network_with("y")
    compiled = torch.compile(network, backend="eager")
    assert calling_of(compiled) == Calling("label", "y")
    spread = nn.parallel.DistributedDataParallel.__new__(nn.parallel.DistributedDataParallel)
    nn.Module.__init__(spread)  # alone: it would want a process group
    spread.module = network
    assert calling_of(spread) == Calling("label", "y")
    assert calling_of(copy.deepcopy(network)) == Calling("label", "y")
    assert calling_of(Unet(dim=8, dim_mults=(1,))) == Calling("conditions")
    assert calling_of(lambda x, t, cond: x) == Calling("conditions")


def test_a_config_that_json_cannot_hold_is_not_stored() -> None:
    network = Plain()
    network.config = {"act": torch.nn.SiLU()}  # type: ignore[assignment]
    assert describe_model(network) == {"class": "Plain", "config": None}
    network.config = SimpleNamespace(hidden=3)  # type: ignore[assignment]
    assert describe_model(network) == {"class": "Plain", "config": None}
    unet = Unet(dim=8, dim_mults=(1, 2))
    assert describe_model(unet) == {"class": "Unet", "config": unet.config}


# diffusers itself.

SMALL: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
}


def unet_2d(**options: Any) -> Any:
    """Return a small UNet2DModel."""
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    torch.manual_seed(0)
    return diffusers.UNet2DModel(**{**SMALL, **options})


def test_channels_are_read_from_the_config() -> None:
    d = GaussianDiffusion(unet_2d(in_channels=1, out_channels=1), image_size=8, timesteps=10)
    assert (d.channels, d.conditioners) == (1, {})
    d = GaussianDiffusion(
        unet_2d(out_channels=6), image_size=8, timesteps=10, variance="learned_range"
    )
    assert d(X).isfinite()
    with pytest.raises(ValueError, match="returns 6 channels"):
        GaussianDiffusion(unet_2d(out_channels=6), image_size=8)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"time_embedding_type": "fourier"}, "time_embedding_type='fourier'"),
        ({"time_embedding_type": "learned", "num_train_timesteps": 9}, "'learned'"),
        ({"class_embed_type": "timestep"}, "class_embed_type='timestep'"),
    ],
)
def test_what_a_process_cannot_ask_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        GaussianDiffusion(unet_2d(**options), image_size=8)


@pytest.mark.filterwarnings("error::FutureWarning")
def test_a_run_of_a_diffusers_network_is_trained_resumed_and_opened(tmp_path: Path) -> None:
    network = unet_2d(num_class_embeds=4)
    network.register_to_config(null_class=3)
    data = [{"image": (x * 255).byte(), "class_label": int(k)} for x, k in zip(X, LABELS)]
    options: dict[str, Any] = {
        "batch_size": 2,
        "output_dir": tmp_path / "run",
        "ema_decay": 0.5,
        "sample_every": 0,
        "mixed_precision": "no",
    }
    process: dict[str, Any] = {"image_size": 8, "timesteps": 10}
    trainer = Trainer(GaussianDiffusion(network, **process), data, max_steps=2, **options)
    trainer.train()
    drawn = trainer.sample(2, num_steps=2, cond={"class_label": 1}, guidance_scale=2.0)
    loaded = load_run(tmp_path / "run")
    assert type(loaded.diffusion.model) is type(network)
    again = loaded.diffusion.sample(2, num_steps=2, cond={"class_label": 1}, guidance_scale=2.0)
    torch.testing.assert_close(again, drawn)
    described = loaded.state["model"]
    assert described["class"] == "diffusers.UNet2DModel"
    assert not [name for name in described["config"] if name.startswith("_")]
    assert described == describe_model(loaded.diffusion.model)
    out = tmp_path / "drawn"
    words = ["sample", str(tmp_path / "run"), "--num", "2", "--class-label", "1"]
    assert main([*words, "--num-steps", "2", "--output-dir", str(out), "--device", "cpu"]) == 0
    assert list(out.glob("*.png"))
    for i, name in enumerate("012"):
        (tmp_path / "pictures" / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), 60 * i, np.uint8)).save(
            tmp_path / "pictures" / name / f"{i}.png"
        )
    words = ["evaluate", str(tmp_path / "run"), "--data", str(tmp_path / "pictures")]
    assert main([*words, "--metrics", "nll", "--device", "cpu"]) == 0
    fresh = unet_2d(num_class_embeds=4)
    fresh.register_to_config(null_class=3)
    more = Trainer(GaussianDiffusion(fresh, **process), data, max_steps=3, **options)
    more.train()
    assert more.step == 3


def test_a_run_of_sequences(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    torch.manual_seed(0)
    network = diffusers.UNet1DModel(
        sample_size=64,
        block_out_channels=(32, 32),
        down_block_types=("DownBlock1DNoSkip", "AttnDownBlock1D"),
        up_block_types=("AttnUpBlock1D", "UpBlock1DNoSkip"),
        extra_in_channels=64,
    )
    d = GaussianDiffusion(network, image_size=(64,), timesteps=10)
    assert (d.channels, d.conditioners) == (2, {})
    data = [{"image": torch.rand(2, 64)} for _ in range(4)]
    options: dict[str, Any] = {"batch_size": 2, "sample_every": 0, "mixed_precision": "no"}
    trainer = Trainer(d, data, max_steps=1, output_dir=tmp_path / "run", **options)
    trainer.train()
    loaded = load_run(tmp_path / "run")
    again = loaded.diffusion.sample(2, num_steps=2)
    torch.testing.assert_close(again, trainer.sample(2, num_steps=2))


def test_a_checkpoint_names_a_class_and_never_code(tmp_path: Path) -> None:
    assert {name for name in NETWORKS if "." in name} == {
        "diffusers.UNet2DModel",
        "diffusers.UNet1DModel",
    }
    network = unet_2d()
    built = NETWORKS["diffusers.UNet2DModel"](**json.loads(json.dumps(dict(network.config))))
    assert built.state_dict().keys() == network.state_dict().keys()


def test_without_diffusers_the_remedy_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(CheckpointError, match=r"UNet2DModel of diffusers.*pip install diffusers"):
        diffusers_network("UNet2DModel", sample_size=8)
