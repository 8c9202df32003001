"""Pretrained folders where a run is taken: load_run, sampling, evaluation, further training."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_lib import GaussianDiffusion, Trainer, Unet, evaluate, load_run
from ddpm_lib.cli import main
from ddpm_lib.core.errors import CheckpointError, ConfigError
from ddpm_lib.images import save_grid
from ddpm_lib.runs.loading import find_checkpoints


def make() -> GaussianDiffusion:
    model = Unet(dim=8, dim_mults=(1,), blocks_per_level=1)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return GaussianDiffusion(model, image_size=8, timesteps=10).eval()


@pytest.fixture
def saved(tmp_path, monkeypatch) -> GaussianDiffusion:
    """A process, in the folder `mine` of the present directory, with averages."""
    monkeypatch.chdir(tmp_path)
    diffusion = make()
    diffusion.save_pretrained("mine", averages={"ema:0.9": make().model, "ema:0.5": make().model})
    return diffusion


def weights(loaded) -> torch.Tensor:
    return torch.cat([p.flatten() for p in loaded.model.parameters()])


def test_load_run_takes_a_folder(saved):
    for options, name in (
        ({}, "ema:0.9"),
        ({"ema_decay": 0.5}, "ema:0.5"),
        ({"weights": "model"}, "model"),
    ):
        loaded = load_run("mine", **options)
        wanted = GaussianDiffusion.from_pretrained("mine", weights=name)
        assert torch.equal(weights(loaded.diffusion), weights(wanted))
        assert (loaded.weights, loaded.run, loaded.name) == (name, Path("mine"), "mine")
    assert repr(loaded) == "LoadedRun(mine, weights model)"
    raw = Path("mine/model.raw.safetensors").read_bytes()
    assert loaded.weights_sha256 == hashlib.sha256(raw).hexdigest()
    assert loaded.step == 0
    with pytest.raises(ConfigError, match="mine is a pretrained folder, which does not say what"):
        _ = loaded.run_state
    with pytest.raises(ConfigError, match=r"holds no weights 'ema:0.7'. It holds: 'ema:0.9'"):
        load_run("mine", ema_decay=0.7)
    with pytest.raises(ConfigError, match="holds no checkpoints to choose from; got checkpoint=3"):
        load_run("mine", 3)
    assert len(find_checkpoints("mine", "all")) == 1
    saved.model.save_pretrained("bare")
    with pytest.raises(CheckpointError, match="bare holds a network without a process"):
        load_run("bare")
    Path("mine/model.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(CheckpointError, match=r"mine/model\.safetensors is damaged"):
        load_run("mine")


def test_what_has_no_averages_is_sampled_as_it_is(saved):
    saved.save_pretrained("mine", max_shard_size="10KB")
    loaded = load_run("mine")
    assert loaded.weights == "model"
    assert len(loaded.weights_sha256) == 64
    saved.save_pretrained("mine", averages={"ema": make().model})
    assert load_run("mine").weights == "ema"


def test_the_commands_take_a_folder(saved, capsys):
    common = ["mine", "--device", "cpu"]
    assert main(["sample", *common, "--num", "4", "--num-steps", "2", "--format", "npz"]) == 0
    assert "mine (ema:0.9): 4 images -> mine/samples/draw-0001/" in capsys.readouterr().out
    drawn = np.load("mine/samples/draw-0001/samples.npz")["arr_0"]
    wanted = load_run("mine").diffusion.sample(4, num_steps=2, seed=0)
    wanted = (wanted.movedim(1, -1) * 255).round().byte().numpy()
    assert np.abs(drawn.astype(int) - wanted).max() <= 1

    Path("pictures").mkdir()
    for i in range(21):
        values = np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(values).save(f"pictures/{i}.png")
    few = ["--num", "21", "--sample-steps", "2", "--num-levels", "2"]
    scores = ["--metrics", "nll,kid", "--features", "random64", "--data", "pictures"]
    assert main(["evaluate", *common, *few, *scores]) == 0
    out = capsys.readouterr().out
    assert "mine (ema:0.9)" in out
    assert "wrote mine/evaluations/eval-0001.json" in out
    assert main(["evaluate", *common, "--metrics", "nll"]) == 2
    assert "which does not say what it was trained on" in capsys.readouterr().err
    assert main(["compare", "mine"]) == 0
    assert "mine" in capsys.readouterr().out
    save_grid(torch.rand(1, 3, 8, 8), Path("picture.png"), 1, 1)
    edit = ["edit", "mine", "picture.png", "--device", "cpu", "--num-steps", "2"]
    assert main(edit) == 0, capsys.readouterr().err


def test_evaluate_takes_a_folder_in_python(saved):
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    found = evaluate("mine", images, metrics="nll", num_levels=2, device="cpu", progress=False)
    assert found["nll"] > 0
    assert found.about["run"] == "mine"
    assert "step" not in found.about


def test_training_begins_with_a_folder(saved):
    data = torch.randint(0, 256, (8, 3, 8, 8), dtype=torch.uint8).numpy()
    options = {"batch_size": 4, "max_steps": 1, "learning_rate": 1e-9, "val_every": 0}
    trainer = Trainer(
        make(), data, output_dir="run", device="cpu", init_from="mine", progress=False, **options
    )
    trainer.train()
    begun = GaussianDiffusion.from_pretrained("mine", weights="ema:0.9")
    torch.testing.assert_close(weights(trainer.diffusion).cpu(), weights(begun), atol=1e-6, rtol=0)


def test_other_libraries_folders_are_named_by_what_reads_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("theirs").mkdir()
    Path("theirs/config.json").write_text('{"_class_name": "UNet2DModel"}')
    for load in (load_run, GaussianDiffusion.from_pretrained, Unet.from_pretrained):
        with pytest.raises(CheckpointError, match=r"is a model of diffusers.* ddpm convert "):
            load("theirs")
