"""Runs that begin with trained weights: what is taken, kept in the run, resumed and refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ddpm_lib import GaussianDiffusion, Shapes, Unet
from ddpm_lib.data import open_dataset
from ddpm_lib.runs.checkpoint import list_checkpoints, read_state, read_tensors
from ddpm_lib.runs.started_from import StartedFrom
from ddpm_lib.training import CheckpointError, ConfigError, Trainer, load_run
from ddpm_lib.training.fine_tuning.freezing import parts_of
from ddpm_lib.training.fine_tuning.pull_to_start import PullToStart
from ddpm_lib.training.fine_tuning.starting_weights import weights_digest
from training_helpers import (
    StopAt,
    assert_same_tensors,
    curve,
    final_tensors,
    tiny_diffusion,
    tiny_trainer,
)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose average is far from its weights."""
    run = tmp_path_factory.mktemp("source") / "big"
    tiny_trainer(run, learning_rate=0.01, max_steps=12, save_every=6, ema_power=0.2).train()
    return run


def first_weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    trainer.prepare()
    return {k: v.clone() for k, v in trainer.diffusion.model.state_dict().items()}


def log_of(run: Path) -> str:
    return (run / "train.log").read_text()


@pytest.mark.parametrize("which", ["auto", "ema", "model"])
def test_a_run_begins_with_the_weights_of_another(source: Path, tmp_path: Path, which) -> None:
    trainer = tiny_trainer(
        tmp_path, tiny_diffusion(1), init_from=str(source), init_weights=which, seed=5
    )
    kind = "model" if which == "model" else "ema"
    expected = load_run(source, weights=kind).diffusion.model.state_dict()
    assert_same_tensors(first_weights(trainer), dict(expected))
    averaged = trainer.averaged_network().state_dict()
    assert_same_tensors(dict(averaged), dict(expected))
    assert (trainer.step, trainer.images_seen, len(trainer.optimizer.state)) == (0, 0, 0)


def test_the_average_begins_anew(source: Path, tmp_path: Path) -> None:
    """After one step it is the weights, however long the source was trained: nothing of the old
    average, and of its count, is left.
    """
    trainer = tiny_trainer(tmp_path, init_from=str(source), max_steps=1)
    trainer.train()
    averaged = dict(trainer.averaged_network().state_dict())
    assert_same_tensors(averaged, dict(trainer.diffusion.model.state_dict()))


def test_a_checkpoint_is_a_source_too(source: Path, tmp_path: Path) -> None:
    old = list_checkpoints(source / "checkpoints")[0]
    trainer = tiny_trainer(tmp_path, init_from=str(old))
    expected = load_run(source, checkpoint=6).diffusion.model.state_dict()
    assert_same_tensors(first_weights(trainer), dict(expected))
    assert trainer.started_from is not None
    assert trainer.started_from.step == 6


@pytest.mark.every(2)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"pull_to_start": 0.3},
        {"freeze": ("0", "time_embedding"), "pull_to_start": 0.1},
        {"ema_decay": (), "posthoc_ema": (0.05,), "save_async": True},
    ],
    ids=["plain", "pulled", "frozen", "posthoc"],
)
def test_resumed_equals_uninterrupted_without_the_source(
    source: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    options |= {"val_every": 3, "val_fraction": 0.2, "init_from": str(tmp_path / "source")}
    shutil.copytree(source, tmp_path / "source")
    tiny_trainer(tmp_path / "a", tiny_diffusion(1), **options).train()
    tiny_trainer(tmp_path / "b", tiny_diffusion(1), callbacks=[StopAt(3)], **options).train()
    shutil.rmtree(tmp_path / "source")
    tiny_trainer(tmp_path / "b", tiny_diffusion(2), **options).train()
    assert_same_tensors(final_tensors(tmp_path / "a"), final_tensors(tmp_path / "b"))
    assert curve(tmp_path / "a") == curve(tmp_path / "b")
    newest = [list_checkpoints(tmp_path / name / "checkpoints")[-1] for name in "ab"]
    states = [read_state(checkpoint)["started_from"] for checkpoint in newest]
    assert states[0] is not None
    assert states[0] == states[1]
    assert "is not read" not in log_of(tmp_path / "b")


def test_what_a_run_notes_of_its_beginning(source: Path, tmp_path: Path) -> None:
    diffusion = tiny_diffusion(1, self_condition=True)
    tiny_trainer(tmp_path, diffusion, init_from=str(source), max_steps=1).train()
    newest = list_checkpoints(tmp_path / "checkpoints")[-1]
    noted = StartedFrom.from_json(read_state(newest)["started_from"])
    assert noted is not None
    weights = load_run(source).diffusion.model.state_dict()
    assert noted == StartedFrom(
        source=str(source),
        kind="run",
        step=12,
        weights="ema 0.5",
        sha256=weights_digest(weights),
        data="shapes",
        notes=("self_condition is new: its input channels begin at 0.",),
    )
    assert f"Beginning with {noted}." in log_of(tmp_path)
    assert "self_condition is new" in log_of(tmp_path)
    assert read_state(newest)["training"]["init_from"] == str(source)


def test_a_run_without_one_notes_nothing(source: Path) -> None:
    assert load_run(source).run_state.started_from is None


@pytest.mark.parametrize("spoilt", [3, {"source": 3}, {"source": "x", "kind": "run"}, []])
def test_a_spoilt_note_counts_as_none(spoilt: Any) -> None:
    assert StartedFrom.from_json(spoilt) is None


def test_another_source_is_not_read_by_a_run_that_goes_on(source: Path, tmp_path: Path) -> None:
    tiny_trainer(tmp_path, callbacks=[StopAt(3)]).train()
    tiny_trainer(tmp_path, init_from=str(source)).train()
    told = f"This run began with random weights and goes on from there; {source} is not read."
    assert told in log_of(tmp_path)


def test_weights_that_do_not_fit_are_refused_before_the_data_are_opened(
    source: Path, tmp_path: Path
) -> None:
    trainer = tiny_trainer(
        tmp_path / "run", tiny_diffusion(dim=16), data="no/such/data", init_from=str(source)
    )
    with pytest.raises(ConfigError, match=r"do not fit .*\n  dim: 8 in big, 16 here\n"):
        trainer.train()
    assert not (tmp_path / "run").exists()


def test_a_source_without_weights_is_an_error_of_one_line(tmp_path: Path) -> None:
    for place, says in (
        ("./nowhere/at-all", "does not exist"),
        (tmp_path, "holds neither weights"),
    ):
        trainer = tiny_trainer(tmp_path / "run", init_from=str(place))
        with pytest.raises(CheckpointError, match=says):
            trainer.train()


def test_weights_with_nan_are_refused(source: Path, tmp_path: Path) -> None:
    from ddpm_lib.runs.checkpoint import save_checkpoint

    newest = list_checkpoints(source / "checkpoints")[-1]
    groups = {k: read_tensors(newest, k) for k in ("model", "optimizer", "ema")}
    next(iter(groups["ema"].values())).fill_(float("nan"))
    save_checkpoint(tmp_path / "spoilt" / "checkpoints", 12, groups, read_state(newest))
    with pytest.raises(CheckpointError, match="NaN or infinite"):
        tiny_trainer(tmp_path / "run", init_from=str(tmp_path / "spoilt")).train()


def test_a_run_without_an_average_gives_its_weights_and_says_so(tmp_path: Path) -> None:
    tiny_trainer(tmp_path / "raw", ema_decay=(), max_steps=2).train()
    expected = dict(load_run(tmp_path / "raw", weights="model").diffusion.model.state_dict())
    trainer = tiny_trainer(tmp_path / "a", init_from=str(tmp_path / "raw"))
    assert_same_tensors(first_weights(trainer), expected)
    assert trainer.started_from is not None
    assert trainer.started_from.notes == ("It keeps no average, so its trained weights are taken.",)
    with pytest.raises(ConfigError, match="init_weights"):
        tiny_trainer(tmp_path / "b", init_from=str(tmp_path / "raw"), init_weights="ema").prepare()
    with pytest.raises(ConfigError, match="chooses among the weights of init_from"):
        tiny_trainer(tmp_path / "b", init_weights="ema")


def test_classes_of_the_data_are_known_by_name(tmp_path: Path) -> None:
    from ddpm_lib.images import save_image

    for name, kinds in (("old", ("ant", "bee")), ("new", ("bee", "cat"))):
        for kind in kinds:
            for i in range(4):
                image = Shapes(size=8, n=20)[i]["image"]
                save_image(image, tmp_path / name / kind / f"{i}.png")
    options = {"max_steps": 1, "learning_rate": 1e-30, "batch_size": 4}
    for name in ("old", "new"):
        start = {"init_from": str(tmp_path / "run-old")} if name == "new" else {}
        tiny_trainer(
            tmp_path / f"run-{name}",
            tiny_diffusion(num_classes=2),
            str(tmp_path / name),
            **options,
            **start,
        ).train()
    rows = [
        load_run(tmp_path / f"run-{name}").diffusion.model.conditioners.class_label.embedding.weight
        for name in ("old", "new")
    ]
    assert torch.equal(rows[1], rows[0][[1, 2, 2]])
    assert "classes by name: 1 of 2 are known; new: cat; left out: ant" in log_of(
        tmp_path / "run-new"
    )


@pytest.mark.parametrize(
    ("names", "prefixes"),
    [
        (("down.0",), ("down.0.",)),
        (("0",), ("down.0.", "up.1.")),
        (("1", "conv_in"), ("down.1.", "up.0.", "conv_in.")),
        (("conditioners.class_label", "middle.res1"), ("conditioners.class_label.", "middle.res1")),
        (("conv_out.bias",), ("conv_out.bias",)),
    ],
)
def test_frozen_parts_stay_and_take_no_moments(tmp_path: Path, names, prefixes) -> None:
    diffusion = tiny_diffusion(num_classes=6)
    before = {k: v.clone() for k, v in diffusion.model.named_parameters()}
    options = {"weight_decay": 0.5, "learning_rate": 0.05, "max_steps": 3, "warmup_steps": 0}
    trainer = tiny_trainer(tmp_path, diffusion, freeze=names, **options)
    trainer.train()
    frozen = {k for k in before if k.startswith(prefixes)}
    assert frozen
    for name, parameter in diffusion.model.named_parameters():
        stays = torch.equal(parameter, before[name])
        assert stays == (name in frozen), name
        assert parameter.requires_grad == (name not in frozen)
    newest = list_checkpoints(tmp_path / "checkpoints")[-1]
    assert " of them frozen, on 40 images" in log_of(tmp_path)
    moments = {k.split("|")[0].removeprefix("model.") for k in read_tensors(newest, "optimizer")}
    assert moments == before.keys() - frozen


def test_a_run_that_goes_on_may_free_parts_and_freeze_others(tmp_path: Path) -> None:
    first = tiny_diffusion()
    start = {k: v.clone() for k, v in first.model.named_parameters()}
    tiny_trainer(tmp_path, first, callbacks=[StopAt(3)], freeze=("0",)).train()
    middle = {k: v.clone() for k, v in first.model.named_parameters()}
    diffusion = tiny_diffusion(1)
    tiny_trainer(tmp_path, diffusion, freeze=("time_embedding",)).train()
    for name, parameter in diffusion.model.named_parameters():
        frozen_first = name.startswith(("down.0.", "up.1."))
        assert torch.equal(middle[name], start[name]) == frozen_first, name
        frozen_later = name.startswith("time_embedding.")
        assert torch.equal(parameter, middle[name]) == frozen_later, name


def test_gradients_of_frozen_parts_are_not_computed(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, freeze=("time_embedding",))
    trainer.prepare()
    batch = trainer.dataset.batch(range(6))
    losses, _ = trainer.forward_pass(trainer.diffusion, batch, range(6), 0, 0)
    losses.mean().backward()
    grads = {k: p.grad is not None for k, p in trainer.diffusion.model.named_parameters()}
    assert grads == {k: not k.startswith("time_embedding.") for k in grads}


def test_a_name_that_no_part_has_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as told:
        tiny_trainer(tmp_path, freeze=("time_embeding",))
    assert "Did you mean 'time_embedding'? There are: 0, 1, time_embedding, conv_in" in str(
        told.value
    )
    for name in ("2", "down.7", "down.0.layers.0.re"):
        with pytest.raises(ConfigError, match="no part of the network"):
            tiny_trainer(tmp_path, freeze=(name,))
    with pytest.raises(ConfigError, match="nothing would be trained"):
        tiny_trainer(tmp_path, freeze=tuple(parts_of(tiny_diffusion().model)))


def test_every_part_that_is_listed_can_be_frozen(tmp_path: Path) -> None:
    for part in parts_of(tiny_diffusion(num_classes=2).model):
        tiny_trainer(tmp_path, tiny_diffusion(num_classes=2, augment_dim=None), freeze=(part,))


class Constant(nn.Module):
    """Predicts one number, whatever it is shown."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.channels, self.value = 1, nn.Parameter(torch.tensor(value))

    def forward(self, x: torch.Tensor, t: torch.Tensor, cond: object = None) -> torch.Tensor:
        return self.value.expand_as(x)


@pytest.mark.parametrize("strength", [0.0, 0.5, 4.0])
def test_the_pull_has_its_minimum_where_the_closed_form_says(
    tmp_path: Path, strength: float
) -> None:
    """min (θ − c)² + λ/2·(θ − θ₀)² at θ = (2c + λθ₀)/(2 + λ), for images that are all c."""
    start, wanted = -0.5, 1.0
    diffusion = GaussianDiffusion(
        Constant(start), image_size=2, timesteps=10, parametrization="x0", weighting="flat"
    )
    images = [{"image": torch.full((1, 2, 2), 255, dtype=torch.uint8)}] * 4
    tiny_trainer(
        tmp_path,
        diffusion,
        images,
        pull_to_start=strength,
        max_steps=120,
        learning_rate=0.1,
        lr_schedule="cosine",
        batch_size=4,
        horizontal_flip=False,
        ema_decay=(),
        save_every=1000,
        log_every=100,
    ).train()
    expected = (2 * wanted + strength * start) / (2 + strength)
    assert diffusion.model.value.item() == pytest.approx(expected, abs=5e-3)


def test_the_pull_in_the_gradient_is_lambda_times_the_way(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    model.bias.requires_grad_(False)
    pull = PullToStart(model, 0.7)
    start = pull.tensors()["weight"].clone()
    assert not pull.penalty().detach()
    with torch.no_grad():
        model.weight += torch.randn(2, 3)
    pull.penalty().backward()
    way = model.weight.detach() - start
    torch.testing.assert_close(model.weight.grad, 0.7 * way)
    torch.testing.assert_close(pull.penalty(), 0.35 * way.square().sum())
    assert model.bias.grad is None
    assert list(pull.tensors()) == ["weight"]


def test_the_logged_loss_is_without_the_pull_and_micro_batches_pull_once(
    source: Path, tmp_path: Path
) -> None:
    """With ε of Adam huge, a step is proportional to the gradient: it is the same whatever the
    batch is cut into.
    """
    options = {"optimizer": "adam", "adam_eps": 1e6, "learning_rate": 1e6, "warmup_steps": 0}
    options |= {"max_grad_norm": None, "max_steps": 3, "log_every": 1, "init_from": str(source)}
    for name, more in (("one", {}), ("three", {"accumulation_steps": 3, "shards": 1})):
        diffusion = tiny_diffusion(dropout=0.0)
        tiny_trainer(tmp_path / name, diffusion, pull_to_start=0.2, **options, **more).train()
    tiny_trainer(tmp_path / "free", tiny_diffusion(dropout=0.0), **options).train()
    one, three = (final_tensors(tmp_path / name) for name in ("one", "three"))
    for key, tensor in one.items():
        torch.testing.assert_close(tensor, three[key], rtol=1e-4, atol=1e-5)
    losses = [curve(tmp_path / name)[0]["loss"] for name in ("one", "free")]
    assert losses[0] == losses[1]
    assert "start:conv_in.weight" in one


def test_a_pull_cannot_begin_in_the_middle_of_a_run_and_may_end(tmp_path: Path) -> None:
    tiny_trainer(tmp_path / "a", callbacks=[StopAt(3)]).train()
    with pytest.raises(ConfigError, match="no weights of its run's first step"):
        tiny_trainer(tmp_path / "a", pull_to_start=0.1).train()
    tiny_trainer(tmp_path / "b", callbacks=[StopAt(3)], pull_to_start=0.1).train()
    tiny_trainer(tmp_path / "b").train()
    assert "not pulled to the start any more" in log_of(tmp_path / "b")
    newest = list_checkpoints(tmp_path / "b" / "checkpoints")[-1]
    assert not (newest / "start.safetensors").exists()


def test_config_yaml_holds_the_options(source: Path, tmp_path: Path, monkeypatch) -> None:
    import yaml

    monkeypatch.chdir(source.parent)
    options = {"init_from": source.name, "freeze": ("0",), "pull_to_start": 0.1}
    tiny_trainer(tmp_path, max_steps=1, **options).train()
    said = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert said["init_from"] == str(source)
    assert (said["freeze"], said["pull_to_start"]) == (["0"], 0.1)
    state = json.loads((list_checkpoints(tmp_path / "checkpoints")[-1] / "state.json").read_text())
    assert state["started_from"]["source"] == str(source)


@pytest.mark.parametrize("which", ["auto", "ema", "model"])
def test_a_pretrained_folder_is_a_source(tmp_path: Path, which) -> None:
    saved, average = tiny_diffusion(3), tiny_diffusion(4)
    for diffusion in (saved, average):
        nn.init.normal_(diffusion.model.conv_out.weight)
    saved.save_pretrained(tmp_path / "folder", averages={"ema:0.99": average.model})
    folder = str(tmp_path / "folder")
    trainer = tiny_trainer(tmp_path / "run", init_from=folder, init_weights=which)
    expected = saved if which == "model" else average
    assert_same_tensors(first_weights(trainer), dict(expected.model.state_dict()))
    assert trainer.started_from is not None
    assert (trainer.started_from.kind, trainer.started_from.notes) == ("pretrained", ())
    assert trainer.started_from.weights == ("model" if which == "model" else "ema 0.99")


def test_a_pretrained_network_without_a_process_is_a_source(tmp_path: Path) -> None:
    saved = tiny_diffusion(3)
    saved.model.save_pretrained(tmp_path / "folder")
    trainer = tiny_trainer(tmp_path / "run", init_from=str(tmp_path / "folder"))
    assert_same_tensors(first_weights(trainer), dict(saved.model.state_dict()))
    assert trainer.started_from is not None
    assert "is taken to predict v" in trainer.started_from.notes[-1]


@pytest.mark.parametrize("which", ["auto", "model"])
def test_a_file_of_another_library_is_a_source(shared: Path, tmp_path: Path, which) -> None:
    from ddpm_lib.interop import read_foreign

    folder = shared / "fixtures" / "D_checkpoints" / "improved_diffusion"
    given = {"image_size": (8, 8)}
    found = read_foreign(folder, given)
    network = Unet(**found.network_config)
    diffusion = GaussianDiffusion(network, **found.process)
    options = {"init_from": str(folder), "init_weights": which, "max_steps": 2}
    trainer = tiny_trainer(tmp_path, diffusion, **options)
    expected = found.weights if which == "model" else next(iter(found.averages.values()))
    assert expected is not None
    assert_same_tensors(first_weights(trainer), dict(expected))
    assert trainer.started_from is not None
    assert trainer.started_from.step == found.step
    assert trainer.started_from.notes == found.notes
    assert trainer.train().status == "finished"


def test_status_and_compare_say_what_a_run_began_with(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from ddpm_lib import evaluate
    from ddpm_lib.cli import main

    trainer = tiny_trainer(tmp_path / "run", init_from=str(source), max_steps=1)
    trainer.train()
    told = f"{source} (step 12, weights ema 0.5, trained on shapes)"
    assert main(["status", str(tmp_path / "run")]) == 0
    assert f"  began with  {told}\n" in capsys.readouterr().out
    assert main(["status", "--json", str(tmp_path / "run")]) == 0
    said = json.loads(capsys.readouterr().out)["started_from"]
    assert trainer.started_from == StartedFrom.from_json(said)
    assert main(["status", "--json", str(source)]) == 0
    assert json.loads(capsys.readouterr().out)["started_from"] is None
    for run in (source, tmp_path / "run"):
        evaluate(run, Shapes(size=8, n=40), metrics="nll", num=2, num_levels=2).save()
    capsys.readouterr()
    assert main(["compare", str(source), str(tmp_path / "run")]) == 0
    out = capsys.readouterr().out
    assert f"Note: B began with {told}." in out
    assert "A began with" not in out


def test_a_repository_is_a_source_and_its_commit_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hub_server import hub_server

    saved = tiny_diffusion(3)
    saved.save_pretrained(tmp_path / "folder")
    with hub_server() as hub:
        hub.use(monkeypatch, tmp_path / "home")
        hub.add("tester/mine", tmp_path / "folder")
        trainer = tiny_trainer(tmp_path / "run", init_from="tester/mine", callbacks=[StopAt(3)])
        trainer.train()
        commit = hub.repo("tester/mine").resolve("main")
    begun = trainer.started_from
    assert begun is not None
    assert (begun.source, begun.revision) == ("tester/mine", commit)
    assert begun.sha256 == weights_digest(tiny_diffusion(3).model.state_dict())
    tiny_trainer(tmp_path / "run", init_from="tester/mine").train()  # the hub is gone
    assert "is not read" not in log_of(tmp_path / "run")


@pytest.mark.slow
def test_the_example_shows_what_trained_weights_are_worth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import importlib

    from ddpm_lib.images import save_image
    from locations import ROOT

    for i in range(24):
        save_image(Shapes(size=8, n=24)[i]["image"], tmp_path / f"{i % 3}" / f"{i}.png")
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    example = importlib.import_module("fine_tune")
    words = {"source": tmp_path / "0", "data": tmp_path / "1", "held_out": tmp_path / "2"}
    words |= {"image_size": 8, "source_steps": 2, "steps": 2, "val_every": 1, "seeds": 2, "dim": 8}
    words |= {"output_dir": tmp_path / "runs", "batch_size": 2, "images": 4}
    given = [str(w) for k, v in words.items() for w in (f"--{k.replace('_', '-')}", v)]
    assert example.main(given) == 0
    rows = capsys.readouterr().out.splitlines()
    assert [row.split()[0] for row in rows[-3:]] == ["images", "2", "4"]
    curves = json.loads((tmp_path / "runs" / "result.json").read_text())
    assert [len(curves[kind]) for kind in ("scratch", "source")] == [2, 2]


def test_memory_counts_the_first_weights_and_no_moments_of_frozen_parts() -> None:
    from ddpm_lib.training import TrainingConfig
    from ddpm_lib.training.fine_tuning.freezing import freeze
    from ddpm_lib.training.memory import state_bytes

    def taken(**options: Any) -> int:
        config = TrainingConfig(**options)
        diffusion = tiny_diffusion()
        freeze(diffusion.model, config.freeze)
        return state_bytes(diffusion, config, processes=1)

    model = tiny_diffusion().model
    every = sum(4 * p.numel() for p in model.parameters())
    frozen = sum(4 * p.numel() for p in model.time_embedding.parameters())
    assert taken(pull_to_start=0.1) - taken() == every
    assert taken() - taken(freeze=("time_embedding",)) == 3 * frozen
    both = taken(pull_to_start=0.1, freeze=("time_embedding",))
    assert both == taken() + every - 4 * frozen


def test_a_path_is_taken_as_a_source_too(source: Path, tmp_path: Path) -> None:
    assert tiny_trainer(tmp_path, init_from=source).config.init_from == str(source)


def test_a_network_of_ones_own_is_a_source_in_python(tmp_path: Path) -> None:
    """No registry knows its class: names and shapes of its weights decide."""

    def own(value: float) -> GaussianDiffusion:
        return GaussianDiffusion(Constant(value), image_size=2, timesteps=10)

    images = [{"image": torch.zeros(1, 2, 2, dtype=torch.uint8)}] * 4
    options = {"learning_rate": 1e-30, "max_steps": 1, "ema_decay": ()}
    tiny_trainer(tmp_path / "a", own(0.25), images, **options).train()
    trainer = tiny_trainer(tmp_path / "b", own(2.0), images, init_from=str(tmp_path / "a"))
    assert first_weights(trainer)["value"] == 0.25
    with pytest.raises(ConfigError, match="network: Constant in a, Unet here"):
        tiny_trainer(tmp_path / "c", init_from=str(tmp_path / "a")).prepare()


def test_weights_of_other_values_say_so(tmp_path: Path) -> None:
    """What 0 … 1 stands for is fitted to the new data: to the network a value means another."""

    def begin(name: str, values: Any, **options: Any) -> str:
        run, data = tmp_path / name, values
        if isinstance(values, np.ndarray):
            data = open_dataset(values, image_size=8, channels=1, normalize="affine")
        network = Unet(dim=8, dim_mults=(1,), groups=4, channels=1)
        diffusion = GaussianDiffusion(network, image_size=8, channels=1, timesteps=20)
        tiny_trainer(run, diffusion, data=data, max_steps=1, **options).train()
        return log_of(run)

    values = np.random.default_rng(0).uniform(-1000, 2000, (24, 8, 8, 1)).astype(np.float32)
    values[0, 0, :2, 0] = -1000, 2000
    pictures = Shapes(8, n=24, channels=1)
    assert "values:" not in begin("scans", values)
    begin("pictures", pictures)
    folder = tmp_path / "folder"
    load_run(tmp_path / "scans").diffusion.save_pretrained(folder)
    for source in (tmp_path / "scans", folder):
        name = source.name
        told = begin(f"{name}-near", values[:20], init_from=str(source))
        assert "values:" not in told
        told = begin(f"{name}-far", values / 5, init_from=str(source))
        assert "values: normalized (affine): 1 channel of float32, -1,000 … 2,000" in told
        assert f"become 0 … 1 in {name}; here normalized (affine)" in told
        assert f"data: measured values in {name}, pictures here" in begin(
            f"{name}-to-pictures", pictures, init_from=str(source)
        )
    told = begin("from-pictures", values, init_from=str(tmp_path / "pictures"))
    assert "data: pictures in pictures, measured values here" in told
