"""`ddpm evaluate`: the numbers are those of the process, of the right images, each once, whoever
computes them.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from command_line import ddpm
from ddpm_lib import Shapes, evaluate
from ddpm_lib.cli import main
from ddpm_lib.data import tensor_dataset
from ddpm_lib.evaluation import METRICS, Score, Task, mean_score
from ddpm_lib.training import ConfigError, load_run
from launchers import torchrun

QUIET = {"device": "cpu", "progress": False}
LOOSE = {"tolerance": 1e-2, **QUIET}
"""A few solver steps: these tests ask who computes what, not how exactly the flow is solved."""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty-one pictures as a file, so that a run can name and reopen its data."""
    path = tmp_path_factory.mktemp("evaluation") / "images.npy"
    np.save(path, Shapes(size=8, n=41).batch(np.arange(41))["image"].permute(0, 2, 3, 1).numpy())
    return path


@pytest.fixture(scope="module")
def run(images: Path) -> Path:
    """A finished run with seven images held out and the checkpoints of steps 2 and 4."""
    out = images.parent / "run"
    flags = (
        "--image-size 8 --max-steps 4 --batch-size 4 --model.dim 8 --model.dim-mults 1 2"
        " --model.blocks-per-level 1 --diffusion.timesteps 12 --diffusion.variance learned_range"
        " --save-every 2 --sample-every 0 --val-every 4 --val-fraction 0.18 --learning-rate 0.003"
        " --ema-decay 0.5 0.9 --device cpu --mixed-precision no --no-progress"
        f" --model.attention-levels 1 --lr-schedule cosine --output-dir {out}"
    )
    assert main(["train", str(images), *flags.split()]) == 0
    return out


def parts(run: Path) -> tuple[Tensor, Tensor]:
    """The run's images, cut independently: training and held-out."""
    from ddpm_lib import open_dataset

    train, held_out = open_dataset(str(run.parent / "images.npy"), image_size=8).split(7, 0)
    return (d.batch(np.arange(len(d)))["image"] for d in (train, held_out))


def error_of(capsys: pytest.CaptureFixture[str], *args: object) -> str:
    capsys.readouterr()
    assert ddpm("evaluate", *args, "--device", "cpu", "--no-progress") == 2
    out, err = capsys.readouterr()
    assert out == ""
    return " ".join(err.replace("│", " ").split())


def test_scores_are_those_of_the_process_on_what_the_run_held_out(run: Path) -> None:
    train, held_out = parts(run)
    found = evaluate(run, metrics="nll,flow_nll", flow_group=7, **LOOSE)
    diffusion = load_run(run).diffusion
    bits, flow = (
        diffusion.bits_per_dim(held_out),
        diffusion.flow_bits_per_dim(held_out, tolerance=1e-2),
    )
    assert found.about["data"]["images"] == len(held_out) == 7
    assert found["nll"] == pytest.approx(bits.mean, rel=1e-6)
    assert found["nll/prior"] == pytest.approx(float(bits.prior.mean()), rel=1e-6)
    assert found["nll/decoder"] == pytest.approx(float(bits.decoder.mean()), rel=1e-6)
    assert found["nll/vlb"] == pytest.approx(float(bits.terms[:, 1:].sum(1).mean()), rel=1e-6)
    assert found["flow_nll"] == pytest.approx(flow.mean, rel=1e-6)
    errors = {s.name: s.standard_error for s in found.scores}
    assert errors["nll"] == pytest.approx(bits.standard_error, rel=1e-5)
    paired = bits.total - flow.total
    assert errors["nll - flow_nll"] == pytest.approx(float(paired.std() / math.sqrt(7)), rel=1e-5)
    both = evaluate(run, metrics="nll", data="train", num_levels=3, **QUIET)
    assert both.about["data"]["images"] == len(train) == 34
    assert both["nll"] == pytest.approx(diffusion.bits_per_dim(train, num_levels=3).mean, rel=1e-6)


def test_weights_checkpoints_and_chains_are_those_asked_for(run: Path) -> None:
    _, held_out = parts(run)
    for options in ({"weights": "model"}, {"ema_decay": 0.9}, {"checkpoint": "2"}):
        found = evaluate(run, metrics="nll", num_steps=3, seed=5, **options, **QUIET)
        diffusion = load_run(run, **options).diffusion
        assert found["nll"] == pytest.approx(
            diffusion.bits_per_dim(held_out, num_steps=3, seed=5).mean, rel=1e-6
        )


def test_samples_are_drawn_in_lower_precision_and_likelihoods_are_not(run: Path) -> None:
    options = {"metrics": "nll,kid", "features": "random64", "num_levels": 3, "num": 4, **QUIET}
    options |= {"sample_steps": 2, "data": "train"}
    full = evaluate(run, **options)
    low = evaluate(run, mixed_precision="bf16", **options)
    assert low["nll"] == full["nll"]
    kid = next(score.name for score in full.scores if "nll" not in score.name)
    assert low[kid] != full[kid]
    assert low[kid] == pytest.approx(full[kid], rel=0.2)
    fingerprints = {found.about["samples"]["fingerprint"] for found in (full, low)}
    assert len(fingerprints) == 2, "features that are kept are not mixed up"
    with pytest.raises(ConfigError, match="does not train on cpu"):
        evaluate(run, mixed_precision="fp16", **options)


@pytest.mark.slow
def test_numbers_depend_neither_on_the_processes_nor_on_the_batch_size(
    run: Path, tmp_path: Path
) -> None:
    """Seven images over two processes, in batches of two and groups of three: nothing divides
    anything.
    """
    options = {"metrics": "nll,flow_nll", "flow_group": 3, "num_levels": 4, **LOOSE}
    one = {s.name: s for s in evaluate(run, batch_size=64, **options).scores}
    flags = (
        "--metrics nll,flow_nll --flow-group 3 --num-levels 4 --tolerance 1e-2 --device cpu"
        " --no-progress"
    )
    torchrun("-m", "ddpm_lib.cli", "evaluate", str(run), *flags.split(), "--batch-size", "2")
    (path,) = (run / "evaluations").glob("*.json")
    written = json.loads(path.read_text())
    assert written["processes"] == 2
    assert [s["name"] for s in written["scores"]] == list(one)
    for two in written["scores"]:
        assert two["value"] == pytest.approx(one[two["name"]].value, rel=1e-6, abs=1e-6)
        assert two["standard_error"] == pytest.approx(
            one[two["name"]].standard_error, rel=1e-5, abs=1e-6
        )
    third = evaluate(run, batch_size=1, metrics="nll", num_levels=4, **QUIET)
    assert third["nll"] == pytest.approx(one["nll"].value, rel=1e-6)


def test_written_options_repeat_the_numbers(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = evaluate(run, metrics="nll", num=5, num_levels=4, seed=3, checkpoint="2", **QUIET)
    flags = (
        "--metrics nll --num 5 --num-levels 4 --seed 3 --checkpoint 2 --device cpu --no-progress"
    )
    assert main(["evaluate", str(run), *flags.split()]) == 0
    told = capsys.readouterr().out
    path = Path(told.strip().splitlines()[-1].removeprefix("wrote "))
    assert path.parent == run / "evaluations"
    written = json.loads(path.read_text())
    again = evaluate(written["run"], **written["options"])
    assert again["nll"] == first["nll"] == written["scores"][0]["value"]
    assert written["weights_sha256"] == again.about["weights_sha256"]
    assert f"{first['nll']:.5f}" in told
    assert "5 of 7 images (held-out)" in told
    before = sorted((run / "evaluations").iterdir())
    again.save()
    assert len(set((run / "evaluations").iterdir()) - set(before)) == 1


def test_other_images(run: Path, images: Path, tmp_path: Path) -> None:
    every = Shapes(size=8, n=41)
    asked = {"metrics": "nll", **QUIET}
    by_path, by_object = evaluate(run, data=str(images), **asked), evaluate(run, every, **asked)
    assert by_path["nll"] == by_object["nll"]
    assert by_path.about["data"]["images"] == 41
    with pytest.raises(
        ConfigError, match=r"entries of shape \(3, 8, 8\); the dataset has \(3, 9, 8\)"
    ):
        evaluate(run, tensor_dataset(torch.zeros(2, 3, 9, 8)), **asked)


def test_another_metric_joins_the_same_command(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def brightness(task: Task) -> list[Score]:
        values = task.per_image(
            "brightness", 1, 2, lambda rows: task.batch(rows)[0].double().mean((1, 2, 3))[:, None]
        )
        return [mean_score("brightness", values[:, 0], "grey")]

    _, held_out = parts(run)
    before = dict(METRICS._entries)
    try:
        METRICS.add("brightness", brightness)
        found = evaluate(run, metrics="brightness, nll", num_levels=2, **QUIET)
    finally:
        METRICS._entries = before
    assert [s.name for s in found.scores][:2] == ["brightness", "nll"]
    assert found["brightness"] == pytest.approx(float(held_out.double().mean()))


def test_classes_are_conditions(tmp_path: Path) -> None:
    flags = (
        "--image-size 8 --max-steps 2 --batch-size 4 --model.dim 8 --model.dim-mults 1 2"
        " --model.blocks-per-level 1 --model.attention-levels 1 --diffusion.timesteps 6"
        " --sample-every 0 --val-every 2 --device cpu --mixed-precision no --no-progress"
        f" --learning-rate 0.01 --ema-decay 0.1 --class-conditional --output-dir {tmp_path}"
    )
    assert main(["train", "shapes", *flags.split()]) == 0
    found = evaluate(tmp_path, metrics="nll", num=4, **QUIET)
    held_out = Shapes(size=8).split(409, 0)[1]
    batch = held_out.batch(np.arange(4) * 409 // 4)
    diffusion = load_run(tmp_path).diffusion
    with_labels = diffusion.bits_per_dim(batch["image"], cond={"class_label": batch["class_label"]})
    assert found["nll"] == pytest.approx(with_labels.mean, rel=1e-6)
    assert found["nll"] != pytest.approx(diffusion.bits_per_dim(batch["image"]).mean, rel=1e-6)
    bare = tensor_dataset(batch["image"])
    with pytest.raises(ConfigError, match=r"classes circle, square.*the data has none"):
        evaluate(tmp_path, bare, metrics="nll", **QUIET)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--metrics nl", "Unknown metric 'nl'. Did you mean 'nll'? Choices: nll, flow_nll"),
        ("--num 0", "num must be at least 1; got 0"),
        ("--num-levels 1", "num_levels must be at least 2; got 1"),
        ("--num-steps 13", "13"),
        ("--tolerance 0", "tolerance must lie between 0 and 1; got 0.0"),
        ("--checkpoint 3", "has no checkpoint '3'"),
        ("--ema-decay 0.7", "keeps no EMA of decay 0.7. It keeps: 0.5, 0.9"),
        ("--data nowhere/at/all", "nowhere/at/all"),
        ("--split test", "split goes with a dataset of yours"),
    ],
)
def test_wrong_input(
    run: Path, capsys: pytest.CaptureFixture[str], flags: str, message: str
) -> None:
    assert message in error_of(capsys, run, *flags.split())


def test_data_that_is_gone_has_changed_or_was_never_held_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from training_helpers import tiny_trainer

    path = tmp_path / "images.npy"
    pictures = Shapes(size=8, n=24).batch(np.arange(24))["image"].permute(0, 2, 3, 1).numpy()
    np.save(path, pictures)
    run = tmp_path / "run"
    tiny_trainer(run, data=str(path), max_steps=1).train()
    assert "held nothing out" in error_of(capsys, run, "--metrics", "nll")
    np.save(path, pictures[:20])
    assert "20 training images now, 24 then" in error_of(
        capsys, run, "--metrics", "nll", "--data", "train"
    )
    path.unlink()
    assert "cannot be opened from here" in error_of(
        capsys, run, "--metrics", "nll", "--data", "train"
    )
    with pytest.raises(ConfigError, match=r"'metric' \(did you mean 'metrics'\?\)"):
        evaluate(run, metric="nll")
