"""Files of improved-diffusion and guided-diffusion: the published numbers, through the importer."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ddpm_lib import Trainer
from ddpm_lib.cli import main
from ddpm_lib.core.errors import CheckpointError, ConfigError
from ddpm_lib.interop import READERS, read_foreign
from ddpm_lib.interop.opening import open_foreign
from ddpm_lib.nn import NETWORKS, Unet
from ddpm_lib.runs.loading import load_run
from openai_checkpoints import openai_state, randomised, write_openai
from published_networks import PublishedNetwork

GIVEN = {
    "improved_diffusion_additive": {"heads": 1},
    "improved_diffusion_fractional_t_heads": {"heads": 2},
    "improved_diffusion_scale_shift_class_sigma": {"heads": 4, "heads_up": 2},
    "improved_diffusion_superres": {"heads": 2, "low_res_factor": 2},
    "guided_diffusion_pool_legacyattn": {"heads": 4},
    "guided_diffusion_updown_newattn": {"head_dim": 16, "attention_order": "new"},
}
"""What no shape shows; everything else is read off the file."""


def flags(given: dict[str, object]) -> list[str]:
    return [w for k, v in given.items() for w in (f"--{k.replace('_', '-')}", str(v))]


@pytest.fixture
def published(shared, tmp_path):
    """Write a network of the fixtures to a file as OpenAI's training loop does."""

    def write(name: str) -> tuple[PublishedNetwork, Path]:
        fixture = PublishedNetwork(shared / "fixtures" / "D_unets", name)
        path = tmp_path / "weights.pt"
        torch.save({k: v.float() for k, v in fixture.state.items()}, path)
        return fixture, path

    return write


def conditions(tensors) -> dict[str, torch.Tensor]:
    names = (("in/y", "class_label"), ("in/low_res", "low_res"))
    return {ours: tensors[theirs] for theirs, ours in names if theirs in tensors}


@pytest.mark.filterwarnings("ignore:With groups=32")
@pytest.mark.parametrize("name", GIVEN)
def test_every_published_network_gives_its_numbers(published, tmp_path, capsys, name):
    fixture, path = published(name)
    given = GIVEN[name] | {"image_size": fixture.tensors["in/x"].shape[-1]}
    found = read_foreign(path, given)
    assert found.format == "openai"
    assert found.process is not None
    learned = fixture.tensors["out_f32"].shape[1] == 2 * fixture.tensors["in/x"].shape[1]
    assert (found.process["variance"] == "learned_range") == learned
    model = NETWORKS[found.network](**found.network_config).eval()
    model.load_state_dict(found.weights, strict=True)
    inputs, cond = fixture.tensors, conditions(fixture.tensors)
    with torch.no_grad():
        out = model(inputs["in/x"], inputs["in/t"], cond)
        torch.testing.assert_close(out, inputs["out_f32"], rtol=1e-4, atol=2e-5)
        model.double()
        double = {k: v.double() if v.is_floating_point() else v for k, v in cond.items()}
        out = model(inputs["in/x"].double(), inputs["in/t"], double)
        torch.testing.assert_close(out, inputs["out_f64"], rtol=1e-9, atol=1e-10)

    assert main(["convert", str(path), str(tmp_path / "run"), *flags(given)]) == 0
    assert "recognised: openai" in capsys.readouterr().out
    loaded = load_run(tmp_path / "run", weights="model")
    with torch.no_grad():
        out = loaded.diffusion.model(inputs["in/x"], inputs["in/t"], cond)
    torch.testing.assert_close(out, inputs["out_f32"], rtol=1e-4, atol=2e-5)


@pytest.fixture
def folder(shared, tmp_path) -> Path:
    """The three files of a step, to be changed."""
    source = shared / "fixtures" / "D_checkpoints" / "improved_diffusion"
    path = tmp_path / "theirs"
    path.mkdir()
    for file in source.glob("*.pt"):
        shutil.copy(file, path)
    return path


CHECKPOINT = {"image_size": 8, "timesteps": 50, "heads": 2, "schedule": "linear"}


@pytest.mark.filterwarnings("ignore:With groups=32")
@pytest.mark.parametrize("given_path", ["model000004.pt", "ema_0.9_000004.pt", "."])
def test_the_files_of_a_step_belong_together(shared, folder, tmp_path, given_path):
    source = folder / given_path
    found = read_foreign(source, CHECKPOINT)
    assert (found.step, list(found.averages)) == (4, [0.9])
    assert {name.split("|")[1] for name in found.optimizer} == {"step", "exp_avg", "exp_avg_sq"}
    assert {name.split("|")[0] for name in found.optimizer} == set(found.weights)
    if given_path != ".":
        taken = [note for note in found.notes if "was taken too" in note]
        assert len(taken) == 2
    expected = load_file(
        shared / "fixtures" / "D_checkpoints" / "improved_diffusion" / "expected.safetensors"
    )
    run = tmp_path / "run"
    assert main(["convert", str(source), str(run), *flags(CHECKPOINT)]) == 0
    for weights, theirs in (("model", "model"), ("ema", "ema")):
        network = load_run(run, weights=weights).diffusion.model
        with torch.no_grad():
            # The stored inputs are what the network sees, and ours multiplies t by 1000/T itself.
            out = network(expected["in/x"], expected["in/t"] / (1000 / 50), {})
        torch.testing.assert_close(out, expected[f"{theirs}/out_f32"], rtol=1e-4, atol=2e-5)


@pytest.mark.filterwarnings("ignore:With groups=32")
def test_training_goes_on_from_the_moments_and_lowers_the_loss(folder, tmp_path):
    run = tmp_path / "run"
    assert main(["convert", str(folder), str(run), *flags(CHECKPOINT)]) == 0
    loaded = load_run(run, weights="model")
    images = (torch.rand(32, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 60).byte()
    options = {"output_dir": str(run), "batch_size": 16, "device": "cpu", "sample_every": 0}
    options |= {"optimizer": "adamw", "val_every": 0, "learning_rate": 2e-3, "progress": False}
    trainer = Trainer(
        loaded.diffusion, [{"image": x} for x in images], max_steps=34, ema_decay=(0.9,), **options
    )
    trainer.prepare()
    theirs = open_foreign(folder / "opt000004.pt").content["state"]
    state = {n: trainer.optimizer.state[p] for n, p in trainer.diffusion.model.named_parameters()}
    assert {float(s["step"]) for s in state.values()} == {4.0}
    moments = sum(s["exp_avg"].double().square().sum() for s in state.values())
    expected = sum(s["exp_avg"].double().square().sum() for s in theirs.values())
    torch.testing.assert_close(moments, expected)
    before = mean_loss(trainer.diffusion, images)
    result = trainer.train()
    assert (result.step, trainer.step) == (34, 34)
    assert mean_loss(trainer.diffusion, images) < 0.9 * before
    again = load_run(run).run_state
    assert again.origin is not None
    assert again.origin["format"] == "openai"


def mean_loss(diffusion, images) -> float:
    torch.manual_seed(0)
    with torch.no_grad():
        return sum(float(diffusion(images)) for _ in range(8)) / 8


SMALL = {"dim": 32, "dim_mults": (1, 2), "attention_levels": (1,), "heads": 4}


@pytest.mark.filterwarnings("ignore:With groups=32")
@pytest.mark.parametrize("order", ["improved-diffusion", "guided-diffusion"])
@pytest.mark.parametrize(
    "config",
    [
        {"resample": "resblock", "num_classes": 3, "out_channels": 6},
        {"resample": "pool", "time_conditioning": "add", "blocks_per_level": 2},
        {"low_res_factor": 4, "low_res_max_noise": 0.0, "channels": 1, "dim_mults": (1, 2, 3)},
    ],
)
def test_reading_undoes_writing(tmp_path, order, config):
    torch.manual_seed(0)
    model = randomised(**SMALL | {"class_drop_prob": 0.0} | config)
    torch.save(openai_state(model, order=order), tmp_path / "model.pt")
    given = {"image_size": 16, "heads": 4}
    given["attention_order"] = "new" if order == "guided-diffusion" else "legacy"
    found = read_foreign(tmp_path / "model.pt", given)
    read = Unet(**found.network_config)
    assert read.config == model.config | {"out_channels": read.config["out_channels"]}
    assert (read.out_channels, read.channels) == (model.out_channels, model.channels)
    own = model.state_dict()
    for name, tensor in found.weights.items():
        rows = slice(None, -1) if name.startswith("conditioners.class_label") else slice(None)
        torch.testing.assert_close(tensor[rows], own[name][rows], rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:With groups=32")
@pytest.mark.parametrize("layout", ["improved", "guided"])
def test_moments_of_half_precision_training_are_taken_apart(tmp_path, layout):
    model = write_openai(tmp_path / "model000003.pt", **SMALL)
    state = openai_state(model)
    numbered = {k: torch.full(v.shape, float(i)) for i, (k, v) in enumerate(state.items())}
    groups = [list(state)]
    if layout == "guided":
        groups = [[k for k in state if state[k].ndim <= 1], [k for k in state if state[k].ndim > 1]]
    flat = [torch.cat([numbered[k].flatten() for k in group]) for group in groups]
    flat = [v if i == 0 else v[None] for i, v in enumerate(flat)]
    moments = {i: {"step": 3, "exp_avg": v, "exp_avg_sq": 2 * v} for i, v in enumerate(flat)}
    settings = {"lr": 1e-4, "weight_decay": 0.0, "betas": (0.9, 0.999), "eps": 1e-8}
    optimizer = {"state": moments, "param_groups": [settings | {"params": list(moments)}]}
    torch.save(optimizer, tmp_path / "opt000003.pt")
    found = read_foreign(tmp_path / "model000003.pt", {"image_size": 16, "heads": 4})
    same = read_foreign(tmp_path / "model000003.pt", {"image_size": 16, "heads": 4}).weights
    assert len(found.optimizer) == 3 * len(same)
    values = {k.split("|")[0]: v for k, v in found.optimizer.items() if k.endswith("exp_avg_sq")}
    constants = {name: set(v.flatten().tolist()) for name, v in values.items()}
    assert all(len(numbers) == 1 for numbers in constants.values())
    assert {n for numbers in constants.values() for n in numbers} == {
        2.0 * i for i in range(len(state))
    }
    assert found.training["learning_rate"] == pytest.approx(1e-4)


def change(name: str):
    def decorate(function):
        MUTATIONS[name] = function
        return function

    return decorate


MUTATIONS: dict[str, object] = {}


@change("a key missing")
def _(state, path):
    del state["middle_block.0.in_layers.0.weight"]
    torch.save(state, path)
    return r"missing: middle_block\.0\.in_layers\.0\.weight"


@change("a level missing")
def _(state, path):
    torch.save({k: v for k, v in state.items() if not k.startswith("output_blocks.3.")}, path)
    return r"blocks down"


@change("an extra key")
def _(state, path):
    torch.save(state | {"middle_block.3.weight": torch.zeros(2)}, path)
    return r"left over: middle_block\.3\.weight"


@change("a wrong shape")
def _(state, path):
    torch.save(state | {"middle_block.0.in_layers.2.weight": torch.zeros(2, 2)}, path)
    return r"middle\.res1\.conv1\.weight: shape \(2, 2\) in the file"


@change("a first weight of one axis")
def _(state, path):
    torch.save(state | {"out.2.weight": torch.zeros(())}, path)
    return r"out\.2\.weight .* shape \(\)"


@change("a text among the weights")
def _(state, path):
    torch.save(state | {"note": "mine"}, path)
    return r"note are no tensors"


@change("another network")
def _(state, path):
    torch.save({"conv1.weight": torch.zeros(3, 3)}, path)
    return r"none of the formats .* openai"


@change("random junk")
def _(state, path):
    path.write_bytes(bytes(range(256)) * 20)
    return r"is damaged"


@change("a pickle that would execute code")
def _(state, path):
    path.write_bytes(b"cposix\nsystem\n(S'touch executed'\ntR.")
    return r"holds Python objects, which are never loaded"


@change("an empty file")
def _(state, path):
    path.write_bytes(b"")
    return r"is empty"


@change("a truncated zip")
def _(state, path):
    torch.save(state, path)
    path.write_bytes(path.read_bytes()[:-2000])
    return r"is damaged"


@pytest.mark.filterwarnings("ignore:With groups=32")
@pytest.mark.parametrize("name", MUTATIONS)
def test_what_does_not_fit_is_refused_in_one_line(tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    path = Path("model000001.pt")
    words = MUTATIONS[name](openai_state(randomised(**SMALL)), path)
    with pytest.raises(CheckpointError, match=words):
        read_foreign(path, {"image_size": 16, "heads": 4})
    code = main(["convert", str(path), "run", "--image-size", "16", "--heads", "4"])
    said = capsys.readouterr().err.strip()
    assert (code, said.count("\n")) == (2, 0)
    assert re.search(words, said)
    assert not Path("run").exists()
    assert not Path("executed").exists()


@pytest.mark.filterwarnings("ignore:With groups=32")
def test_what_nobody_can_know_must_be_given(tmp_path, capsys):
    write_openai(tmp_path / "m.pt", **SMALL)
    with pytest.raises(ConfigError, match="Give image_size=64"):
        read_foreign(tmp_path / "m.pt")
    assert main(["convert", str(tmp_path / "m.pt"), str(tmp_path / "run")]) == 2
    assert "--image-size 64" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="of the format openai: 'imagesize' \\(did you mean"):
        read_foreign(tmp_path / "m.pt", {"imagesize": 16})
    with pytest.raises(ConfigError, match=r"'opnai'\. Did you mean 'openai'"):
        read_foreign(tmp_path / "m.pt", {"image_size": 16}, format="opnai")


@pytest.mark.filterwarnings("ignore:With groups=32")
def test_nothing_is_overwritten(tmp_path, capsys):
    write_openai(tmp_path / "m.pt", **SMALL)
    (tmp_path / "run").mkdir()
    args = ["convert", str(tmp_path / "m.pt"), str(tmp_path / "run"), "--image-size", "16"]
    assert main(args) == 2
    assert "run-2" in capsys.readouterr().err


def test_the_help_names_every_format(capsys):
    with pytest.raises(SystemExit):
        main(["convert", "--help-all"])
    said = " ".join(capsys.readouterr().out.split())
    assert all(re.search(rf"\b{re.escape(name)}[,.]? ?", said) for name in READERS)


def test_every_option_of_a_reader_is_a_flag():
    from ddpm_lib.interop.given import option_names

    for reader in READERS.values():
        assert set(reader.options) <= set(option_names())


def test_heads_are_noted_where_they_are_assumed(tmp_path):
    torch.manual_seed(0)
    torch.save(openai_state(randomised(**SMALL, resample="resblock")), tmp_path / "m.pt")
    found = read_foreign(tmp_path / "m.pt", {"image_size": 16})
    assert any("heads" in note for note in found.notes)
    assert json.dumps(found.network_config)
