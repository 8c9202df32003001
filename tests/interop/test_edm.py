"""EDM's files: pickles are refused unopened, what their own program saves of them is read."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ddpm_lib import GaussianDiffusion
from ddpm_lib.cli import main
from ddpm_lib.core.errors import CheckpointError
from ddpm_lib.interop import read_foreign
from ddpm_lib.nn import EdmUnet
from ddpm_lib.runs.loading import load_run

# The output of NVlabs/edm at 008a4e5, training/networks.py: EDMPrecond(img_resolution=16,
# img_channels=3, label_dim=3, model_type="DhariwalUNet", model_channels=128, channel_mult=[1, 2],
# num_blocks=1, attn_resolutions=[8]).model in float64, with the weights of `state` below.
GOLDEN = (
    [0, 100, 500, 800, 1200, 1535],
    [
        0.9325810538121203,
        0.8736325924874455,
        -1.2941161076478138,
        0.8659224391414813,
        -0.9836470007034374,
        1.0618404110177837,
    ],
)


def block(name: str, wide: int, out: int, attention: bool) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes of a UNetBlock's parameters, in their order."""
    found = [("norm0.weight", (wide,)), ("norm0.bias", (wide,))]
    found += [("conv0.weight", (out, wide, 3, 3)), ("conv0.bias", (out,))]
    found += [("affine.weight", (2 * out, 512)), ("affine.bias", (2 * out,))]
    found += [("norm1.weight", (out,)), ("norm1.bias", (out,))]
    found += [("conv1.weight", (out, out, 3, 3)), ("conv1.bias", (out,))]
    found += [("skip.weight", (out, wide, 1, 1)), ("skip.bias", (out,))] if wide != out else []
    if attention:
        found += [("norm2.weight", (out,)), ("norm2.bias", (out,))]
        found += [("qkv.weight", (3 * out, out, 1, 1)), ("qkv.bias", (3 * out,))]
        found += [("proj.weight", (out, out, 1, 1)), ("proj.bias", (out,))]
    return [(f"{name}.{leaf}", shape) for leaf, shape in found]


def state() -> dict[str, torch.Tensor]:
    """The state dict of that network, with weights that are cosines."""
    shapes = [("map_layer0.weight", (512, 128)), ("map_layer0.bias", (512,))]
    shapes += [("map_layer1.weight", (512, 512)), ("map_layer1.bias", (512,))]
    shapes += [("map_label.weight", (512, 3))]
    shapes += [("enc.16x16_conv.weight", (128, 3, 3, 3)), ("enc.16x16_conv.bias", (128,))]
    shapes += block("enc.16x16_block0", 128, 128, False)
    shapes += block("enc.8x8_down", 128, 128, False)
    shapes += block("enc.8x8_block0", 128, 256, True)
    shapes += block("dec.8x8_in0", 256, 256, True) + block("dec.8x8_in1", 256, 256, False)
    shapes += block("dec.8x8_block0", 512, 256, True) + block("dec.8x8_block1", 384, 256, True)
    shapes += block("dec.16x16_up", 256, 256, False)
    shapes += block("dec.16x16_block0", 384, 128, False)
    shapes += block("dec.16x16_block1", 256, 128, False)
    shapes += [("out_norm.weight", (128,)), ("out_norm.bias", (128,))]
    shapes += [("out_conv.weight", (3, 128, 3, 3)), ("out_conv.bias", (3,))]
    result = {}
    for i, (name, shape) in enumerate(shapes):
        numbers = torch.arange(math.prod(shape), dtype=torch.float64)
        fan = max(1, math.prod(shape) // shape[0])
        value = torch.cos(0.7 * numbers * (1 + i % 7) + i) / math.sqrt(fan)
        is_scale = "norm" in name and name.endswith("weight")
        result[f"model.{name}"] = value.reshape(shape).float() + (1.0 if is_scale else 0.0)
    for name in ("enc.8x8_down.conv0", "enc.8x8_down.skip", "dec.16x16_up.conv0"):
        result[f"model.{name}.resample_filter"] = torch.full((1, 1, 2, 2), 0.25)
    return result


def save(folder: Path, tensors: dict[str, torch.Tensor], **about) -> Path:
    folder.mkdir()
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "model.safetensors")
    about = {"precond": "EDMPrecond", "sigma_data": 0.5} | about
    (folder / "config.json").write_text(json.dumps(about))
    return folder


@pytest.fixture
def saved(tmp_path) -> Path:
    return save(tmp_path / "theirs", state())


def test_the_network_gives_their_numbers(saved):
    found = read_foreign(saved)
    assert (found.format, found.process["image_size"]) == ("edm", [16, 16])
    model = EdmUnet(**found.network_config).eval()
    model.load_state_dict(found.averages["ema"], strict=True)
    x = torch.cos(torch.arange(2 * 3 * 16 * 16, dtype=torch.float64)).reshape(2, 3, 16, 16)
    noise = torch.tensor([0.5, 5.0], dtype=torch.float64).log() / 4
    with torch.no_grad():
        out = model.double().unet(x, noise, {"class_label": torch.tensor([0, 2])})
    places, values = GOLDEN
    assert out.flatten()[places].tolist() == pytest.approx(values, rel=1e-9, abs=1e-10)


@pytest.mark.parametrize("timesteps", [10, 1000])
def test_the_network_is_told_the_noise_of_its_level(timesteps):
    model = EdmUnet({"dim": 8, "dim_mults": (1,)}, timesteps=timesteps)
    diffusion = GaussianDiffusion(
        model, image_size=8, timesteps=timesteps, schedule="karras", parametrization="edm"
    )
    for t in (1, 2.5, 7, timesteps):
        level = diffusion.schedule.level(t)
        told = model.sigma(torch.tensor([t - 1], dtype=torch.float64)).item()
        tolerance = 1e-9 if float(t).is_integer() else 0.3  # between levels the schedule is smooth
        assert told == pytest.approx(level.sigma / level.alpha, rel=tolerance)


def test_a_run_is_made_of_it_that_samples(saved, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["convert", str(saved), str(run), "--timesteps", "20"]) == 0
    assert "recognised: edm" in capsys.readouterr().out
    loaded = load_run(run)
    assert loaded.weights == "ema ema"
    images = loaded.diffusion.sample(1, sampler="heun", num_steps=2, cond={"class_label": 1})
    assert images.shape == (1, 3, 16, 16)
    assert images.isfinite().all()


def test_published_pickles_are_refused_unopened(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    file = Path("edm-imagenet-64x64-cond-adm.pkl")
    file.write_bytes(
        b"\x80\x04\x8c\x18torch_utils.persistence\x8c\x1b_reconstruct_persistent_obj\x93"
        b"cposix\nsystem\n(S'touch executed'\ntR."
    )
    assert main(["convert", str(file), "run"]) == 2
    said = capsys.readouterr().err
    assert "carries program code" in said
    assert "docs/interop.md#edm-and-edm2" in said
    assert said.strip().count("\n") == 0
    assert not Path("executed").exists()


def changed(**changes):
    def change(tensors):
        return {**tensors, **{k.replace("__", "."): v for k, v in changes.items()}}

    return change


def without(*names):
    return lambda tensors: {k: v for k, v in tensors.items() if k not in names}


EDM2 = {"unet.emb_noise.weight": torch.zeros(2), "unet.enc.64x64_conv.weight": torch.zeros(2)}


@pytest.mark.every(3)
@pytest.mark.parametrize(
    ("change", "about", "words"),
    [
        (
            lambda _: {"unet.emb_noise.weight": torch.zeros(2), "unet.enc.a": torch.zeros(2)},
            {},
            "EDM2",
        ),
        (without("model.out_norm.weight"), {}, r"SongUNet"),
        (changed(model__enc__8x8_aux_down=torch.zeros(1)), {}, r"NCSN\+\+"),
        (changed(model__map_augment__weight=torch.zeros(1)), {}, r"told augmentations"),
        (lambda s: s, {"precond": "VPPrecond"}, r"preconditioning VPPrecond"),
        (without("model.dec.8x8_in1.conv0.bias"), {}, r"missing: dec\.8x8_in1\.conv0\.bias"),
        (changed(model__extra=torch.zeros(1)), {}, r"left over: extra"),
        (without("model.out_conv.weight"), {}, r"incomplete"),
        (
            changed(model__enc__8x8_down__skip__resample_filter=torch.ones(1, 1, 2, 2)),
            {},
            r"no average of 2×2",
        ),
    ],
)
def test_what_no_network_here_can_hold_is_refused_by_name(tmp_path, change, about, words):
    folder = save(tmp_path / "theirs", change(state()), **about)
    with pytest.raises(CheckpointError, match=words):
        read_foreign(folder)
