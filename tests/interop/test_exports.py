"""Exported networks give the numbers of ours, in programs that import neither this library nor, but
for torch.export, torch.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ddpm_lib import GaussianDiffusion, Unet
from ddpm_lib.cli import main
from ddpm_lib.cli.export import ExportCommand
from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.new_folders import new_folder
from ddpm_lib.interop import export_onnx as onnx_module
from ddpm_lib.interop.export_onnx import export_onnx
from ddpm_lib.interop.export_torch import export_torch
from ddpm_lib.interop.exporters import EXPORTERS
from ddpm_lib.interop.exporting import inputs_of
from ddpm_lib.nn import MLP, Conditioner
from ddpm_lib.nn.lucidrains_unet import LucidrainsUnet
from ddpm_lib.nn.time_blind import TimeBlindUnet
from ddpm_lib.process.network_calls import call_network
from ddpm_lib.process.sampling_default import SamplingDefault
from ddpm_lib.runs.stored_sampling import write_sampling
from locations import ROOT
from training_helpers import tiny_trainer

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

SMALL: dict[str, Any] = {"dim": 8, "dim_mults": (1,), "blocks_per_level": 1}
EVERYTHING: dict[str, Any] = {
    "num_classes": 3,
    "out_channels": 6,
    "self_condition": True,
    "patch_size": 2,
    "gradient_checkpointing": True,
    "dropout": 0.5,
}
UNETS: dict[str, dict[str, Any]] = {
    "plain": {},
    "levels": {"dim_mults": (1, 2), "scale_skips": True},
    "class": {"num_classes": 3},
    "learned variance": {"out_channels": 6},
    "self": {"self_condition": True},
    "augment": {"augment_dim": 9},
    "low_res": {"low_res_factor": 2, "low_res_drop_prob": 0.1},
    "low_res of another size": {"low_res_factor": 3, "dim_mults": (1, 2)},
    "1-D": {"dims": 1, "dim_mults": (1, 2)},
    "3-D": {"dims": 3, "dim_mults": (1, 2)},
    "patches": {"patch_size": 2},
    "checkpointing": {"gradient_checkpointing": True},
    "pool": {"dim_mults": (1, 2), "resample": "pool", "time_conditioning": "add"},
    "resblock": {"dim_mults": (1, 2), "resample": "resblock", "mid_attention": "no_norm"},
    "asymmetric": {"dim_mults": (1, 2), "down_padding": "asymmetric", "time_order": "interleaved"},
}


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """A network whose output is not 0, as it is at initialisation."""
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.data = torch.randn(p.shape, generator=generator) * 0.2
    return model


def process(image_size: int = 8, model: dict[str, Any] | None = None, **options: Any) -> Any:
    network = Unet(**SMALL | (model or {}))
    if network.dims == 2:  # where the library's own kernel runs
        network = network.to(memory_format=torch.channels_last)
    size = (image_size,) * network.dims
    if network.out_channels == 6:
        options["variance"] = "learned_range"
    return GaussianDiffusion(randomised(network), image_size=size, timesteps=20, **options)


def batch(diffusion: GaussianDiffusion, n: int, scale: int = 1) -> dict[str, Tensor]:
    """Inputs of a network for n images, `scale` times as large in one direction."""
    size = list(diffusion.image_size)
    size[0] *= scale
    g = torch.Generator().manual_seed(n)
    x = torch.randn(n, diffusion.channels, *size, generator=g)
    found = {"x": x, "t": torch.arange(n).float() * 3}
    for name, conditioner in (diffusion.conditioners or {}).items():
        if name == "class_label":
            found[name] = torch.arange(n) % 4 - int(conditioner.optional)
        elif name == "low_res_noise":
            found[name] = torch.rand(n, generator=g) / 2
        else:
            found[name] = torch.randn(conditioner.null_for(x).shape, generator=g)
    return found


def expected(diffusion: GaussianDiffusion, given: dict[str, Tensor]) -> np.ndarray:
    x, t, *rest = given.values()
    with torch.no_grad():
        cond = dict(zip(list(given)[2:], rest)) or None
        return call_network(diffusion.model.eval(), x, t, cond).numpy()


def batches(diffusion: GaussianDiffusion) -> Iterator[dict[str, Tensor]]:
    for n in (1, 2, 5):
        yield batch(diffusion, n)
    if inputs_of(diffusion).unit is not None:
        yield batch(diffusion, 3, scale=2)


def check_onnx(diffusion: GaussianDiffusion, folder: Path) -> None:
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    for given in batches(diffusion):
        (got,) = session.run(["output"], {k: v.numpy() for k, v in given.items()})
        want = expected(diffusion, given)
        assert np.abs(want).max() > 0.05
        assert np.abs(got - want).max() < 1e-4


def check_torch(diffusion: GaussianDiffusion, folder: Path) -> None:
    network = torch.export.load(folder / "model.pt2").module()
    for given in batches(diffusion):
        x, t, *rest = given.values()
        got = network(x, t, dict(zip(list(given)[2:], rest)))
        assert np.abs(got.numpy() - expected(diffusion, given)).max() < 1e-5


@pytest.fixture(scope="module")
def everything() -> GaussianDiffusion:
    diffusion: GaussianDiffusion = process(model=EVERYTHING, clip="dynamic", parametrization="edm")
    diffusion.class_names = ("disc", "square", "star")
    return diffusion


@pytest.fixture(scope="module")
def onnx_folder(everything: GaussianDiffusion, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_onnx(everything, tmp_path_factory.mktemp("export") / "onnx", {"step": 7})


@pytest.fixture(scope="module")
def torch_folder(everything: GaussianDiffusion, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_torch(everything, tmp_path_factory.mktemp("export") / "torch")


def test_onnx_gives_our_numbers(everything: GaussianDiffusion, onnx_folder: Path) -> None:
    check_onnx(everything, onnx_folder)


def test_torch_export_gives_our_numbers(everything: GaussianDiffusion, torch_folder: Path) -> None:
    check_torch(everything, torch_folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", UNETS)
def test_every_network_is_exported(name: str, tmp_path: Path) -> None:
    diffusion = process(12, UNETS[name])
    assert inputs_of(diffusion).unit is not None
    check_torch(diffusion, export_torch(diffusion, tmp_path / "torch"))
    check_onnx(diffusion, export_onnx(diffusion, tmp_path / "onnx"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "network",
    [
        lambda: LucidrainsUnet(dim=8, dim_mults=(1, 2), num_classes=3, self_condition=True),
        lambda: LucidrainsUnet(dim=8, dim_mults=(1, 2), time_features="learned"),
        lambda: TimeBlindUnet(widths=(8, 16)),
    ],
    ids=["lucidrains", "lucidrains fourier", "time-blind"],
)
def test_every_other_network_is_exported(network: Any, tmp_path: Path) -> None:
    diffusion = GaussianDiffusion(randomised(network()), image_size=8, timesteps=20)
    check_torch(diffusion, export_torch(diffusion, tmp_path / "torch"))
    check_onnx(diffusion, export_onnx(diffusion, tmp_path / "onnx"))


@pytest.mark.slow
def test_a_network_of_diffusers_is_exported(tmp_path: Path) -> None:
    """Its classes have no null, and its batches are fewer than 64: it then takes another way."""
    network = pytest.importorskip("diffusers").UNet2DModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        num_class_embeds=4,
    )
    diffusion = GaussianDiffusion(randomised(network), image_size=8, channels=3, timesteps=20)
    check_torch(diffusion, export_torch(diffusion, tmp_path / "torch"))
    check_onnx(diffusion, export_onnx(diffusion, tmp_path / "onnx"))
    about = json.loads((tmp_path / "onnx" / "model.json").read_text())
    assert about["largest_batch"] == 63
    label = {"dtype": "int64", "shape": [], "null": None, "may_be_null": False, "guided": False}
    assert about["conditions"]["class_label"] == label


@pytest.mark.slow
def test_a_network_for_points_is_exported(tmp_path: Path) -> None:
    network = randomised(MLP(width=8, depth=1, num_classes=3, frequencies=2))
    diffusion = GaussianDiffusion(network, image_size=(1,), timesteps=20)
    assert inputs_of(diffusion).unit is None
    check_torch(diffusion, export_torch(diffusion, tmp_path / "torch"))
    check_onnx(diffusion, export_onnx(diffusion, tmp_path / "onnx"))


def test_the_process_is_left_as_it_was(everything: GaussianDiffusion, onnx_folder: Path) -> None:
    weights = [p for p in everything.model.parameters() if p.ndim == 4]
    assert all(p.requires_grad for p in everything.model.parameters())
    assert any(p.is_contiguous(memory_format=torch.channels_last) for p in weights)


def test_no_path_of_this_machine_is_in_the_files(onnx_folder: Path, torch_folder: Path) -> None:
    import zipfile

    here = str(ROOT).encode()
    assert here not in (onnx_folder / "model.onnx").read_bytes()
    with zipfile.ZipFile(torch_folder / "model.pt2") as archive:
        assert not [name for name in archive.namelist() if here in archive.read(name)]


def test_the_description_says_all_that_sampling_needs(
    everything: GaussianDiffusion, onnx_folder: Path
) -> None:
    about = json.loads((onnx_folder / "model.json").read_text())
    assert about["step"] == 7
    assert about["class_names"] == ["disc", "square", "star"]
    assert about["image_shape"] == [3, 8, 8]
    assert (about["clip"], about["variance"]) == ("dynamic", "learned_range")
    assert about["inputs"]["x"] == {
        "dtype": "float32",
        "shape": ["batch", 3, "2*height", "2*width"],
    }
    assert about["output"]["shape"] == ["batch", 6, "2*height", "2*width"]
    label = {"dtype": "int64", "shape": [], "null": -1, "may_be_null": True, "guided": True}
    assert about["conditions"]["class_label"] == label
    assert about["conditions"]["self_cond"]["shape"] == [3, 8, 8]
    for level in (1, 13, 20):
        alpha, sigma = about["alpha"][level], about["sigma"][level]
        assert (alpha, sigma) == everything.schedule.level(level)[1:]
        x, eps = torch.randn(2, 4, dtype=torch.float64)
        x_t = alpha * x + sigma * eps
        f = everything.parametrization.target(x, eps, *torch.tensor([alpha, sigma]).double())
        back = about["c_skip"][level] * x_t + about["c_out"][level] * f
        torch.testing.assert_close(back, x)
        seen = everything.parametrization.scale_input(x_t, alpha, sigma)
        torch.testing.assert_close(about["c_in"][level] * x_t, seen)
    rebuilt = GaussianDiffusion(Unet(**about["model"]["config"]), **about["diffusion"])
    assert rebuilt.config == everything.config


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = sys.modules["ddpm_lib"] = None  # importing them is an error
sys.path.insert(0, {examples!r})
import numpy as np
import sample_onnx
noise, label = np.load("noise.npy"), np.array([2, 0, 1])
for name, cond, scale in (("plain", None, 1.0), ("guided", {{"class_label": label}}, 2.5)):
    np.save(name + ".npy", sample_onnx.ddim({folder!r}, noise, 7, cond, scale))
sys.argv = ["sample_onnx.py", {folder!r}, "--num", "5", "--num-steps", "3", "--class-label", "star",
            "--guidance-scale", "2"]
sample_onnx.main()
"""


def test_sampling_without_torch_draws_our_images(
    everything: GaussianDiffusion, onnx_folder: Path, tmp_path: Path
) -> None:
    noise = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    np.save(tmp_path / "noise.npy", noise.numpy())
    code = WITHOUT_TORCH.format(examples=str(ROOT / "examples"), folder=str(onnx_folder))
    command = [sys.executable, "-c", code]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=120)
    ddim = {"sampler": "ddim", "num_steps": 7}
    plain = everything.sample(3, x_T=noise, **ddim)
    guided = everything.sample(
        3, x_T=noise, **ddim, cond={"class_label": [2, 0, 1]}, guidance_scale=2.5
    )
    assert float((plain - guided).abs().max()) > 0.01
    for name, want in (("plain", plain), ("guided", guided)):
        got = (np.load(tmp_path / f"{name}.npy").clip(-1, 1) + 1) / 2
        assert np.abs(got - want.numpy()).max() < 1e-4
    from PIL import Image

    with Image.open(tmp_path / "samples.png") as picture:
        assert (picture.size, picture.mode) == ((24, 16), "RGB")
        assert np.asarray(picture)[:, :16].std() > 1
        assert (np.asarray(picture)[8:, 16:] == 0).all()  # five of six tiles


WITHOUT_US = """
import sys
sys.modules["ddpm_lib"] = None  # importing it is an error
import numpy as np, torch
from safetensors.torch import load_file
network = torch.export.load({file!r}).module()
given = load_file("given.safetensors")
np.save("output.npy", network(given.pop("x"), given.pop("t"), given).numpy())
"""


@pytest.mark.slow
def test_torch_export_runs_without_this_library(
    everything: GaussianDiffusion, torch_folder: Path, tmp_path: Path
) -> None:
    given = batch(everything, 4)
    save_file(given, tmp_path / "given.safetensors")
    code = WITHOUT_US.format(file=str(torch_folder / "model.pt2"))
    command = [sys.executable, "-c", code]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=120)
    got = np.load(tmp_path / "output.npy")
    np.testing.assert_allclose(got, expected(everything, given), atol=1e-5)


class Opinionated(nn.Module):
    """A network whose way depends on its values, which no trace can hold."""

    def forward(self, x: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        return x if float(x.sum()) > 0 else -x


class NoNull(Conditioner):
    def embed(self, value: Tensor) -> Tensor:
        return value


@pytest.mark.parametrize("export", [export_torch, export_onnx])
def test_what_cannot_be_traced_is_refused_by_name(export: Any, tmp_path: Path) -> None:
    diffusion = GaussianDiffusion(Opinionated(), image_size=4, channels=1, timesteps=20)
    with pytest.raises(ConfigError, match="model=Opinionated cannot be exported") as caught:
        export(diffusion, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_condition_without_a_null_is_refused_by_name(tmp_path: Path) -> None:
    class Conditional(Unet):
        def build_conditioners(self, emb_dim: int) -> list[Conditioner]:
            return [NoNull("mood")]

    diffusion = GaussianDiffusion(Conditional(**SMALL), image_size=8, timesteps=20)
    with pytest.raises(ConfigError, match="condition 'mood' cannot be exported"):
        export_torch(diffusion, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_image_of_one_patch_has_a_fixed_size() -> None:
    assert inputs_of(process(2, {"dim_mults": (1, 2)})).unit is None
    assert inputs_of(process(4, {"dim_mults": (1, 2)})).unit == 2


def test_missing_packages_are_one_line_with_the_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(onnx_module, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"onnx and onnxscript.*pip install 'ddpm-lib\[export\]'"):
        export_onnx(process(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    def write(name: str, error: Exception | None = None) -> None:
        with new_folder(tmp_path / name) as aside:
            (aside / "whole").write_text("…")
            assert not (tmp_path / name).exists()
            if error is not None:
                raise error

    with pytest.raises(OSError, match="full"):
        write("a/out", OSError("the disk is full"))
    assert list((tmp_path / "a").iterdir()) == []
    write("a/out")
    assert [p.name for p in (tmp_path / "a").rglob("*")] == ["out", "whole"]
    (tmp_path / "file").touch()
    os.symlink(tmp_path / "a", tmp_path / "link")
    for name, what in (("a/out", "holds whole"), ("file", "is no folder"), ("link", "is a link")):
        with pytest.raises(ConfigError, match=f"{what}, and nothing is overwritten"):
            write(name)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    diffusion = GaussianDiffusion(randomised(Unet(**SMALL)), image_size=8, timesteps=20)
    tiny_trainer(folder, diffusion, max_steps=2, ema_decay=(0.5,)).train()
    return folder


def test_every_format_is_a_choice_of_the_command() -> None:
    hints = typing.get_type_hints(ExportCommand)
    assert set(typing.get_args(hints["to"])) == set(EXPORTERS)


def test_arrays_load_without_torch(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from ddpm_lib.runs.loading import load_run

    out = tmp_path / "out"
    assert main(["export", str(run), str(out), "--to", "npz-weights", "--weights", "model"]) == 0
    told = capsys.readouterr().out
    assert f"step-000000002 (model) -> {out}" in told
    assert "model.npz" in told
    code = "import sys; sys.modules['torch'] = None; import numpy as np; np.load('model.npz')['x']"
    done = subprocess.run([sys.executable, "-c", code], cwd=out, capture_output=True, text=True)
    assert "KeyError" in done.stderr  # no array is called x; opening it went well
    raw = load_run(run, weights="model").diffusion.model.state_dict()
    with np.load(out / "model.npz") as arrays:
        assert set(arrays) == set(raw)
        assert all(np.array_equal(arrays[name], raw[name].numpy()) for name in raw)
    about = json.loads((out / "model.json").read_text())
    assert (about["step"], about["weights"], "inputs" in about) == (2, "model", False)


@pytest.mark.parametrize(("weights", "name"), [("ema", "ema"), ("model", "model")])
def test_safetensors_are_a_pretrained_folder(
    run: Path, tmp_path: Path, weights: str, name: str
) -> None:
    from ddpm_lib.runs.loading import load_run

    out = tmp_path / "out"
    assert main(["export", str(run), str(out), "--to", "safetensors", "--weights", weights]) == 0
    back = GaussianDiffusion.from_pretrained(out, weights=name)
    loaded = load_run(run, weights=weights).diffusion
    assert back.config == loaded.config
    assert all(torch.equal(a, b) for a, b in zip(back.parameters(), loaded.parameters()))


@pytest.mark.parametrize("to", ["safetensors", "npz-weights", "diffusers"])
def test_a_way_of_sampling_that_stays_behind_is_said(
    to: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tuned = SamplingDefault(made_by="ddpm tune", sampler="ddim", num_steps=3, step=2)
    mine = Path(shutil.copytree(run, tmp_path / "mine"))
    write_sampling(mine, tuned)
    assert main(["export", str(mine), str(tmp_path / "out"), "--to", to]) == 0
    told = capsys.readouterr().out
    line = "sampled by what ddpm tune at step 2 chose (ddim in 3 steps), which this format does not"
    assert (line in told) is (to != "safetensors")
    assert EXPORTERS[to].keeps_sampling is (to == "safetensors")


@pytest.mark.parametrize("to", EXPORTERS)
def test_nothing_is_overwritten(
    to: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    assert main(["export", str(run), str(tmp_path / "out"), "--to", to]) == 2
    assert "holds mine, and nothing is overwritten" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="nothing is overwritten"):
        EXPORTERS[to].export(process(), tmp_path / "out", None)
    assert [p.name for p in tmp_path.rglob("*")] == ["out", "mine"]


def test_all_checkpoints_are_too_many(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", str(run), str(tmp_path / "out"), "--to", "onnx", "--checkpoint", "all"]
    assert main(words) == 2
    assert "--checkpoint all is several" in capsys.readouterr().err
