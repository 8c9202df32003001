"""Runs made of values: what every command and the Trainer take of them."""

from __future__ import annotations

import functools
import json

import pytest
import torch

from ddpm_lib import GaussianDiffusion, Trainer, Unet
from ddpm_lib.cli import main
from ddpm_lib.core.errors import CheckpointError, ConfigError
from ddpm_lib.evaluation import evaluate
from ddpm_lib.runs.loading import load_run
from ddpm_lib.runs.new_run import write_new_run

SMALL = {"dim": 8, "dim_mults": [1, 2], "blocks_per_level": 1}
PROCESS = {"image_size": [8, 8], "timesteps": 20}


@functools.cache
def weights(seed: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return {k: v + 0.1 * torch.randn_like(v) for k, v in Unet(**SMALL).state_dict().items()}


def write(run, **changes):
    values = {
        "model": {"class": "Unet", "config": SMALL},
        "diffusion": PROCESS,
        "weights": weights(0),
        "averages": {0.9: weights(1), 0.99: weights(2)},
        "step": 7,
        "training": {"learning_rate": 1e-3, "ema_decay": (0.9, 0.99)},
        "origin": {"source": "theirs.pt", "format": "openai"},
        "notes": ["a note"],
    }
    return write_new_run(run, **values | changes)


def images(n: int = 12):
    pictures = torch.randint(0, 256, (n, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    return [{"image": x} for x in pictures.to(torch.uint8)]


def trainer(run, diffusion, max_steps=10, **options):
    given = {"batch_size": 4, "device": "cpu", "val_every": 0, "sample_every": 0, "progress": False}
    options = given | {"ema_decay": (0.9, 0.99)} | options
    return Trainer(diffusion, images(), output_dir=str(run), max_steps=max_steps, **options)


def test_all_weights_are_loaded(tmp_path):
    run = write(tmp_path / "run")
    for name, decay, seed in (("model", None, 0), ("ema", 0.9, 1), ("ema", 0.99, 2)):
        loaded = load_run(run, weights=name, ema_decay=decay)
        assert loaded.step == 7
        for key, tensor in loaded.diffusion.model.state_dict().items():
            assert torch.equal(tensor, weights(seed)[key])
    assert loaded.run_state.origin == {
        "source": "theirs.pt",
        "format": "openai",
        "notes": ["a note"],
    }


def test_training_goes_on_from_the_step_and_keeps_the_origin(tmp_path):
    names = dict(Unet(**SMALL).named_parameters())
    moments = {f"{n}|{m}": torch.rand_like(p) for n, p in names.items() for m in MOMENTS}
    moments |= {f"{n}|step": torch.tensor(7.0) for n in names}
    run = write(tmp_path / "run", optimizer=moments)
    going_on = trainer(run, load_run(run, weights="model").diffusion)
    going_on.prepare()
    assert going_on.step == 7
    for name, parameter in going_on.diffusion.model.named_parameters():
        for moment in MOMENTS:
            entry = going_on.optimizer.state[parameter][moment]
            torch.testing.assert_close(entry, moments[f"{name}|{moment}"], rtol=0, atol=0)
    assert going_on.train().step == 10
    state = load_run(run).run_state
    assert state.origin["source"] == "theirs.pt"
    assert state.trained_on.images == 12
    # From now on it is a run like any other: other images are refused.
    other = Trainer(
        load_run(run).diffusion, images(9), output_dir=str(run), max_steps=12, batch_size=4
    )
    with pytest.raises(ConfigError, match="trained on other data"):
        other.prepare()


MOMENTS = ("exp_avg", "exp_avg_sq")


def test_a_fresh_optimizer_where_none_was_given(tmp_path):
    run = write(tmp_path / "run", step=0)
    going_on = trainer(run, load_run(run, weights="model").diffusion, 2, batch_size="auto")
    going_on.prepare()
    assert not going_on.optimizer.state
    assert going_on.train().step == 2


def test_an_average_stands_in_for_missing_weights(tmp_path):
    run = write(tmp_path / "run", weights=None)
    own = load_run(run, weights="model").diffusion.model.state_dict()
    for key, tensor in own.items():
        torch.testing.assert_close(tensor, weights(1)[key], rtol=0, atol=0)
    with pytest.raises(CheckpointError, match="neither weights nor averages"):
        write(tmp_path / "other", weights=None, averages={})
    assert not (tmp_path / "other").exists()


def test_nothing_is_overwritten_and_nothing_half_written_stays(tmp_path):
    run = write(tmp_path / "run")
    before = sorted(path.name for path in run.rglob("*"))
    with pytest.raises(ConfigError, match="run-2"):
        write(run)
    assert sorted(path.name for path in run.rglob("*")) == before
    with pytest.raises(TypeError):
        write(tmp_path / "broken", training={"learning_rate": object()})
    assert not (tmp_path / "broken").exists()


def test_commands_take_it(tmp_path, capsys):
    run = write(tmp_path / "run")
    assert main(["status", str(run)]) == 0
    said = capsys.readouterr().out
    assert "made from theirs.pt; not trained here yet" in said
    assert f"ddpm train path/to/images --config {run}/config.yaml trains on" in said
    sample = ["sample", str(run), "--num", "1", "--num-steps", "2"]
    assert main([*sample, "--output-dir", str(tmp_path / "out")]) == 0
    with pytest.raises(ConfigError, match="are not known here"):
        evaluate(str(run), metrics="gap", num=2)
    state = run / "checkpoints" / "step-000000007" / "state.json"
    assert json.loads(state.read_text())["model"]["class"] == "Unet"


@pytest.mark.parametrize("name", ["model.pt", "weights.safetensors", "unet/model_index.json"])
def test_files_of_others_are_sent_to_ddpm_convert(tmp_path, name):
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("{}")
    path = tmp_path / name.split("/")[0]
    with pytest.raises(CheckpointError, match=rf"ddpm convert {path} runs/{path.stem}"):
        load_run(path)


def test_the_process_is_that_of_its_arguments(tmp_path):
    run = write(tmp_path / "run", diffusion=PROCESS | {"schedule": "linear"})
    expected = GaussianDiffusion(Unet(**SMALL), **PROCESS | {"schedule": "linear"})
    assert load_run(run).diffusion.config == expected.config
