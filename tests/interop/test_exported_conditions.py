"""Exported networks with conditions of the data answer as the network itself does."""

from __future__ import annotations

import json
import runpy
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ddpm_lib import GaussianDiffusion, Shapes, Trainer, Unet, load_run
from ddpm_lib.cli import main
from ddpm_lib.interop.export_onnx import export_onnx
from ddpm_lib.interop.export_torch import export_torch
from ddpm_lib.nn import register_text_encoder
from ddpm_lib.nn.condition_table import data_conditions

TABLE: dict[str, dict[str, Any]] = {
    "size": {"kind": "number"},
    "turn": {"kind": "angle"},
    "spot": {"kind": "vector", "size": 3},
    "colour": {"kind": "label", "names": ["red", "green", "blue"]},
    "marks": {"kind": "tags", "names": ["hat", "beard"]},
    "mask": {"kind": "mask", "classes": 3},
    "sketch": {"kind": "image", "channels": 1, "factor": 2},
    "caption": {"kind": "text", "size": 5, "encoder": "letters"},
}
EXAMPLES = Path(__file__).parents[2] / "examples"


def process(names: list[str], measured: bool = True) -> GaussianDiffusion:
    """A process whose network reads conditions, with every weight of weight."""
    torch.manual_seed(0)
    table = {name: TABLE[name] for name in names}
    net = Unet(dim=8, dim_mults=(1, 2), blocks_per_level=1, attention_levels=(), conditions=table)
    of = np.random.default_rng(0)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    for conditioner in data_conditions(net.conditioners).values():
        if measured and conditioner.fits:
            shape = (40,) if conditioner.axes == 0 else (40, conditioner.spec["size"])
            conditioner.fit(of.normal(3.0, 2.0, shape).astype(np.float32))
    return GaussianDiffusion(net, image_size=8, timesteps=20).eval()


def values(names: list[str], n: int, size: int) -> dict[str, Tensor]:
    """Values of n images of a size, as a network gets them; the last image has none."""
    of = torch.Generator().manual_seed(n)
    found = {
        "size": torch.rand(n, generator=of) * 5,
        "turn": torch.rand(n, generator=of) * 360,
        "spot": torch.randn(n, 3, generator=of) * 2 + 3,
        "colour": torch.randint(3, (n,), generator=of),
        "marks": torch.randint(2, (n, 2), generator=of).float(),
        "mask": torch.randint(3, (n, size, size), generator=of, dtype=torch.uint8),
        "sketch": torch.rand(n, 1, size // 2, size // 2, generator=of) * 2 - 1,
        "caption": torch.randn(n, 5, generator=of) * 2 + 3,
    }
    for name in ("size", "turn", "spot", "marks", "caption"):
        found[name][-1] = float("nan")
    found["colour"][-1], found["mask"][-1] = -1, 255
    return {name: found[name] for name in names}


def check(diffusion: GaussianDiffusion, folder: Path, names: list[str]) -> None:
    network = torch.export.load(folder / "model.pt2").module()
    for n, size in ((2, 8), (1, 8), (5, 8), (3, 16)):
        x, t = torch.randn(n, 3, size, size), torch.arange(n).float() * 4
        cond = values(names, n, size)
        with torch.no_grad():
            wanted, got = diffusion.model(x, t, cond), network(x, t, cond)
        assert wanted.abs().max() > 0.05
        assert (got - wanted).abs().max() < 1e-5
        told = cond | {names[0]: cond[names[0]].flip(0)}
        if n == 5:
            assert (network(x, t, told) - got).abs().max() > 1e-4, "the value is no constant"


@pytest.mark.every(3)
@pytest.mark.parametrize(
    ("name", "when"),
    [
        *((name, "measured") for name in (*TABLE, "all")),
        *((name, when) for name in ("spot", "all") for when in ("untrained", "used before")),
    ],
)
def test_the_program_answers_as_the_module(tmp_path: Path, name: str, when: str) -> None:
    """For any number and size of images, with values and without; measured on data or not, and
    whether or not the module was called before it was traced.
    """
    names = list(TABLE) if name == "all" else [name]
    diffusion = process(names, measured=when != "untrained")
    if when == "used before":
        diffusion.sample(1, num_steps=1, progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        export_torch(diffusion, tmp_path / "out")
    check(diffusion, tmp_path / "out", names)
    about = json.loads((tmp_path / "out" / "model.json").read_text(), parse_constant=refused)
    spatial = {"mask": ["8*height", "8*width"], "sketch": [1, "height", "width"]}
    for one in names:
        shape = about["inputs"][one]["shape"]
        assert shape[0] == "batch"
        if one in spatial:
            assert [type(part) for part in shape[1:]] == [type(part) for part in spatial[one]]


def refused(word: str) -> None:
    raise AssertionError(f"{word} is no JSON")


def test_the_original_is_left_as_it_was(tmp_path: Path) -> None:
    """What a trace makes of the module's own constants does not stay in it."""
    diffusion = process(["spot", "caption"])
    export_torch(diffusion, tmp_path / "one")
    before = diffusion.sample(2, cond={"spot": [1.0, 2.0, 3.0]}, num_steps=2, progress=False)
    export_torch(diffusion, tmp_path / "two")
    after = diffusion.sample(2, cond={"spot": [1.0, 2.0, 3.0]}, num_steps=2, progress=False)
    assert torch.equal(before, after)
    assert all(type(v) is Tensor for v in diffusion.conditioners["spot"]._scale.values())


def test_onnx_draws_by_all_conditions_without_torch(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="needs ddpm-lib[export]")
    pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    names = list(TABLE)
    diffusion = process(names)
    export_onnx(diffusion, tmp_path / "out")
    ddim = runpy.run_path(str(EXAMPLES / "sample_onnx.py"))["ddim"]
    noise = torch.randn(3, 3, 8, 8)
    cond = values(names, 3, 8)
    given = {name: value.numpy() for name, value in cond.items()}
    for chosen in ({}, {"spot": given["spot"], "caption": given["caption"]}, given):
        told = {k: cond[k] for k in chosen}
        if "sketch" in told:
            told["sketch"] = (told["sketch"] + 1) / 2  # callers of sample give [0, 1]
        wanted = diffusion.sample(
            3, x_T=noise, sampler="ddim", num_steps=5, cond=told, spacing="trailing", progress=False
        )
        got = ddim(str(tmp_path / "out"), noise.numpy(), 5, chosen, 1.0)
        assert np.abs((np.asarray(got) + 1) / 2 - wanted.numpy()).max() < 1e-3


def test_a_trained_run_by_the_command(tmp_path: Path) -> None:
    """Vectors and texts, measured in the training."""
    register_text_encoder("letters", lambda texts: [[t.count(c) for c in "abder"] for t in texts])
    shapes = Shapes(size=8, n=24)
    captions = [f"a {colour} ring" for colour in shapes.column("colour")]
    spots = np.random.default_rng(0).normal(3, 2, (24, 3))
    data = shapes.with_conditions(
        {"spot": spots, "caption": captions}, caption={"encoder": "letters"}
    )
    net = Unet(dim=8, dim_mults=(1, 2), blocks_per_level=1, conditions=data.condition_table)
    diffusion = GaussianDiffusion(net, image_size=8, timesteps=20)
    options: dict[str, Any] = {"max_steps": 4, "batch_size": 8, "sample_every": 0, "val_every": 0}
    trainer = Trainer(
        diffusion,
        data,
        output_dir=tmp_path / "run",
        learning_rate=0.01,
        device="cpu",
        mixed_precision="no",
        progress=False,
        **options,
    )
    trainer.train()
    out = tmp_path / "out"
    assert main(["export", str(tmp_path / "run"), str(out), "--to", "torch-export"]) == 0
    loaded = load_run(tmp_path / "run").diffusion
    network = torch.export.load(out / "model.pt2").module()
    cond = {
        "spot": torch.from_numpy(spots[:4]).float(),
        "caption": loaded.conditioners["caption"].read(captions[:4]),
    }
    x, t = torch.randn(4, 3, 8, 8), torch.tensor([0.0, 3.0, 9.0, 19.0])
    with torch.no_grad():
        wanted, got = loaded.model(x, t, cond), network(x, t, cond)
    assert (got - wanted).abs().max() < 1e-5
