"""`distill`: a run tuned to draw in few steps, killed and continued; a worse one is said to be."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ddpm_lib import GaussianDiffusion, Shapes, Unet, distill, evaluate, load_run
from ddpm_lib.cli import main
from ddpm_lib.data import Toy, open_dataset
from ddpm_lib.evaluation.distillation_gate import (
    COPIES,
    DISTANCE,
    RECALL,
    Drawer,
    Gate,
    Measured,
    judge_student,
)
from ddpm_lib.evaluation.distilling import (
    RECORD,
    Distillation,
    DistillOptions,
    open_teacher,
    read_gate,
)
from ddpm_lib.nn import MLP
from ddpm_lib.runs.checkpoint import recorded_sha256
from ddpm_lib.training import ConfigError, TrainingConfig
from ddpm_lib.training.student_options import student_options
from training_helpers import (
    StopAt,
    assert_same_tensors,
    curve,
    final_tensors,
    tiny_diffusion,
    tiny_trainer,
)

QUIET = {"num_samples": 64, "teacher_steps": 4, "progress": False, "device": "cpu"}
TUNING = {"max_steps": 7, "save_every": 2, "log_every": 2, **QUIET}


def drawer(who: str, steps: int, speed: float, **scores: tuple[float, float]) -> Drawer:
    sampler = "ddim" if who == "teacher" else "consistency"
    measured = {name: Measured(*score, f"{name}_full") for name, score in scores.items()}
    return Drawer(who, sampler, steps, measured, speed)


TEACHER = drawer(
    *("teacher", 50, 2.0),
    **{"distance": (1.0, 0.1), "precision": (0.7, 0.03), "recall": (0.8, 0.02)},
    copies=(0.01, 0.01),
)


@pytest.mark.parametrize(
    ("scores", "word"),
    [
        ({"distance": (1.2, 0.1), "recall": (0.79, 0.02), "copies": (0.01, 0.01)}, "no worse"),
        ({"distance": (1.5, 0.1), "recall": (0.8, 0.02)}, "WORSE in distance"),
        ({"distance": (0.5, 0.1), "recall": (0.8, 0.02)}, "better in distance"),
        ({"distance": (0.5, 0.1), "recall": (0.7, 0.02)}, "WORSE in recall"),
        ({"distance": (1.0, 0.1), "copies": (0.2, 0.02)}, "WORSE in copies"),
        ({"distance": (0.5, 0.1), "precision": (0.3, 0.03)}, "WORSE in precision"),
        ({"distance": (1.5, 0.1), "recall": (0.1, 0.02)}, "WORSE in distance and recall"),
        ({"distance": (0.5, 0.1), "recall": (0.9, 0.02)}, "better in distance and recall"),
    ],
)
def test_a_score_is_worse_beyond_two_errors_on_its_wrong_side(
    scores: dict[str, tuple[float, float]], word: str
) -> None:
    judged = judge_student(TEACHER, drawer("student", 2, 50.0, **scores))
    assert judged.word == word
    assert judged.speed == 25.0


def test_the_fewest_steps_that_are_no_worse_are_chosen() -> None:
    def gate(*distances: float) -> Gate:
        students = [
            drawer("student", n, 100.0 / n, distance=(d, 0.1), recall=(0.8, 0.02))
            for n, d in zip((1, 2, 4), distances, strict=True)
        ]
        return Gate(TEACHER, tuple(students), 500, "cpu", ("a note",))

    good, bad = gate(3.0, 1.1, 0.9), gate(3.0, 2.0, 2.5)
    assert (good.chosen, good.is_passed) == (2, True)
    assert (bad.chosen, bad.is_passed) == (2, False)
    assert "With 2 steps the student is no worse" in good.conclusion()
    assert "25 times as fast" in good.conclusion()
    assert "WORSE than its teacher" in bad.conclusion()
    assert "a note" in good.lines()
    assert [line.split("  ")[-1] for line in bad.lines()[2:5]] == ["WORSE in distance"] * 3
    again = Gate.from_json(json.loads(json.dumps(good.to_json())))
    assert again == good


def test_blurred_images_are_not_chosen_for_their_distance() -> None:
    """One step of a short tuning, as measured: nearer than its teacher, and blurred."""
    students = (
        drawer("student", 1, 90.0, distance=(0.4, 0.1), precision=(0.3, 0.03), recall=(0.4, 0.02)),
        drawer("student", 4, 20.0, distance=(1.0, 0.1), precision=(0.6, 0.03), recall=(0.7, 0.02)),
    )
    gate = Gate(TEACHER, students, 256, "cpu")
    assert (gate.chosen, gate.is_passed) == (4, False)
    assert gate.verdicts[0].word == "WORSE in precision and recall"


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("distilling") / "teacher"
    model = {"num_classes": 6, "class_drop_prob": 0.2, "dim_mults": (1,)}
    data = Shapes(size=8, n=80)
    options = {"ema_decay": (0.9,), "save_every": 3, "val_every": 3, "val_fraction": 0.2}
    tiny_trainer(run, tiny_diffusion(**model), data, **options).train()
    return run


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def test_a_student_is_trained_compared_and_draws_as_was_chosen(
    teacher: Path, tmp_path: Path
) -> None:
    before, data = contents(teacher), Shapes(size=8, n=80)
    found = distill(teacher, data, steps=(2, 1), output_dir=str(tmp_path / "s"), **TUNING)
    assert contents(teacher) == before
    assert found.gate is not None
    assert [one.steps for one in found.gate.students] == [1, 2]
    assert set(found.gate.teacher.scores) == {DISTANCE, "precision", RECALL, COPIES}
    assert str(found).splitlines()[1].startswith("teacher (ddim)")
    assert read_gate(tmp_path / "s") == found.gate

    loaded = load_run(tmp_path / "s")
    started = loaded.run_state.started_from
    assert started is not None
    checkpoint = str(teacher / "checkpoints" / "step-000000006")
    assert (started["source"], started["weights"]) == (checkpoint, "ema 0.9")
    assert loaded.diffusion.config["loss"] == "consistency"
    process, steps = loaded.diffusion, found.gate.chosen
    named = process.sample(2, sampler="consistency", num_steps=steps, cond={"class_label": 1})
    assert torch.equal(process.sample(2, cond={"class_label": 1}), named)
    assert torch.equal(found.diffusion.sample(2, cond={"class_label": 1}), named)
    four = process.sample(2, sampler="consistency", num_steps=4, cond={"class_label": 1})
    assert torch.equal(process.sample(2, num_steps=4, cond={"class_label": 1}), four)

    folder = process.save_pretrained(tmp_path / "folder")
    travelled = GaussianDiffusion.from_pretrained(folder)
    assert torch.equal(travelled.sample(2, cond={"class_label": 1}), named)
    scored = evaluate(tmp_path / "s", data, metrics="kid", features="random64", num=8)
    assert (scored.about["samples"]["sampler"], scored.about["samples"]["steps"]) == (
        "consistency",
        steps,
    )


def test_the_average_is_what_is_tuned(teacher: Path, tmp_path: Path) -> None:
    """At rate 0 nothing moves: the student is the teacher's average."""
    out = str(tmp_path / "s")
    distill(teacher, Shapes(size=8, n=80), output_dir=out, learning_rate=1e-12, **TUNING)
    mine, its = load_run(out, weights="model").diffusion, load_run(teacher).diffusion
    for one, other in zip(mine.parameters(), its.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-8)


def test_killed_and_continued_is_the_same_bit_for_bit(teacher: Path, tmp_path: Path) -> None:
    data = Shapes(size=8, n=80)
    whole = distill(teacher, data, output_dir=str(tmp_path / "whole"), **TUNING)
    for stop in (1, 4):  # in the first stage, and in the third
        cut = distill(
            teacher, data, output_dir=str(tmp_path / "cut"), callbacks=StopAt(stop), **TUNING
        )
        assert cut.gate is None
        assert "not compared yet" in str(cut)
    # Without options it goes on as it began.
    cut = distill(teacher, data, output_dir=str(tmp_path / "cut"), **QUIET)
    assert_same_tensors(final_tensors(tmp_path / "whole"), final_tensors(tmp_path / "cut"))
    assert curve(tmp_path / "whole") == curve(tmp_path / "cut")
    assert cut.gate is not None
    assert whole.gate is not None
    for one, other in zip(cut.gate.students, whole.gate.students, strict=True):
        assert one.scores == other.scores
    # Once more: nothing to do, and nothing is measured again.
    again = distill(teacher, data, output_dir=str(tmp_path / "cut"), **QUIET)
    assert again.gate == cut.gate


def test_data_that_are_no_pictures_are_compared_by_energy_distance(tmp_path: Path) -> None:
    torch.manual_seed(0)
    points = GaussianDiffusion(MLP(channels=2, width=16, depth=1), image_size=(1,), timesteps=20)
    data = Toy("moons", n=200)
    tiny_trainer(tmp_path / "t", points, data, horizontal_flip=False).train()
    with pytest.raises(ConfigError, match=r"object of Python .*distill\(run, data\)"):
        distill(tmp_path / "t", **TUNING)
    found = distill(tmp_path / "t", data, **TUNING)
    assert found.folder == tmp_path / "t-distilled"
    assert found.gate is not None
    assert set(found.gate.teacher.scores) == {DISTANCE}
    assert all(one.scores[DISTANCE].error > 0 for one in found.gate.students)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": (0, 1)}, "whole numbers from 1"),
        ({"steps": ()}, "whole numbers from 1"),
        ({"teacher_steps": 0}, "teacher_steps must be at least 1"),
        ({"num_samples": 3}, "num_samples must be at least 64"),
        ({"features": "random65"}, "Did you mean 'random64'"),
        ({"max_step": 3}, "did you mean 'max_steps'"),
        ({"stages": 0}, "stages must be"),
        ({"sample_sampler": "ddim", "sample_every": 2}, 'sample_sampler="consistency"'),
    ],
)
def test_wrong_options_are_refused(
    teacher: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    out = tmp_path / "s"
    with pytest.raises(ValueError, match=message):
        distill(teacher, Shapes(size=8, n=80), output_dir=str(out), **{**QUIET, **options})
    assert not out.exists()


def test_networks_that_cannot_be_tuned_are_refused(tmp_path: Path) -> None:
    data = Shapes(size=8, n=40)
    for name, process, message in (
        ("eps", {"parametrization": "eps"}, "predicts eps"),
        ("tuned", {"loss": "consistency"}, "was tuned to draw in few steps already"),
    ):
        made = GaussianDiffusion(tiny_diffusion().model, image_size=8, timesteps=20, **process)
        tiny_trainer(tmp_path / name, made, data, max_steps=1).train()
        with pytest.raises(ConfigError, match=message):
            distill(tmp_path / name, data, **QUIET)


def test_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    small = ["--model.dim", "8", "--model.dim-mults", "1", "--model.attention-levels", "0"]
    small += ["--model.blocks-per-level", "1", "--image-size", "8", "--max-steps", "4"]
    off = ["--val-every", "0", "--sample-every", "0", "--final-samples", "0", "--no-report"]
    assert main(["train", "shapes", "--output-dir", "runs/a", "--no-progress", *small, *off]) == 0
    words = ["distill", "runs/a", "--steps", "1,2", "--max-steps", "4", "--num-samples", "64"]
    words += ["--no-progress", "--stages", "2", "--teacher-steps", "4"]
    capsys.readouterr()
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "teacher (ddim)" in out
    assert "ddpm sample runs/a-distilled" in out
    record = json.loads((tmp_path / "runs/a-distilled" / RECORD).read_text())
    assert record["students"][0]["steps"] == 1
    # What it proposes works, and draws as was chosen.
    assert main(["sample", "runs/a-distilled", "--num", "4", "--no-progress"]) == 0
    assert "ddpm distill" in capsys.readouterr().out
    assert main(["status", "runs/a-distilled"]) == 0
    # The file of its settings goes on with it, as that of any run does.
    config = "runs/a-distilled/config.yaml"
    assert main(["train", "--config", config, "--max-steps", "5", "--no-progress"]) == 0
    assert load_run("runs/a-distilled").step == 5
    assert main(["sample", "runs/a-distilled", "--sampler", "ddim", "--num", "1"]) == 2
    assert "--sampler consistency" in capsys.readouterr().err
    assert main(["distill", "runs/a", "--init-from", "runs/a"]) == 2
    assert "--init-from has no place here" in capsys.readouterr().err
    assert main(["distill", "runs/b"]) == 2
    assert main(["distill", "runs/a-distilled"]) == 2
    assert "already" in capsys.readouterr().err


def test_it_is_compared_with_what_it_began_with(teacher: Path, tmp_path: Path) -> None:
    """Also when the teacher was trained further meanwhile; where that is gone, it says so."""
    mine, out = Path(shutil.copytree(teacher, tmp_path / "t")), tmp_path / "s"
    data = Shapes(size=8, n=80)
    began = recorded_sha256(mine / "checkpoints" / "step-000000006", "ema")
    tuning = {**TUNING, "max_steps": 3, "steps": (1,), "output_dir": str(out)}
    assert distill(mine, data, callbacks=StopAt(1), **tuning).gate is None
    model = {"num_classes": 6, "class_drop_prob": 0.2, "dim_mults": (1,)}
    more = {"ema_decay": (0.9,), "save_every": 3, "val_every": 3, "val_fraction": 0.2}
    tiny_trainer(mine, tiny_diffusion(**model), data, max_steps=8, **more).train()
    found = distill(mine, data, **tuning)
    compared = json.loads((out / RECORD).read_text())["compared"]
    assert compared["teacher_sha256"] == began
    assert found.gate is not None
    assert "not there any more" not in str(found)
    shutil.rmtree(mine / "checkpoints" / "step-000000006")
    gone = distill(mine, data, **tuning)
    assert "step 6, weights ema 0.9" in str(gone)
    assert "not there any more: it is compared with step-000000008 (ema 0.9)" in str(gone)


def test_a_student_takes_no_option_of_its_teacher_that_it_cannot_have(tmp_path: Path) -> None:
    """Whoever distils has named none of them, and could not leave them out."""
    held = {"val_data": "<list of 3, given in Python>", "val_condition": ("age=a.csv:age",)}
    for options in (
        {"max_steps": 2000, "keep_every": 1000},
        {"max_steps": 1000, "save_every": 400, "keep_every": 800},
        {"cuda_graph": True},
        {"stop_when": ("overfitting",), "patience": 5},
        held,
    ):
        teacher = TrainingConfig(**options)
        found = student_options(teacher.to_dict(), 1000, "runs/t")
        student = TrainingConfig.from_options(found)
        assert (student.keep_every, student.cuda_graph, student.stop_when) == (None, False, ())
        assert (student.val_data, student.val_condition) == (None, ())


def test_held_out_images_that_are_not_looked_at_need_no_conditions(
    teacher: Path, tmp_path: Path
) -> None:
    loaded = open_teacher(teacher)
    training = dict(loaded.state["training"])
    held = {"val_data": "shapes", "val_condition": ["age=a.csv:age"]}
    loaded.state["training"] = {**training, **held}
    work = Distillation(loaded, Shapes(size=8, n=80), DistillOptions())
    for given, kept in (
        ({"val_every": 0}, (None, ())),
        ({"val_data": "other"}, ("other", ())),
        ({}, ("shapes", ("age=a.csv:age",))),
    ):
        found = work.training_options({"output_dir": str(tmp_path / "s"), **given})
        config = TrainingConfig.from_options(found)
        assert (config.val_data, config.val_condition) == kept


def test_a_list_of_the_run_s_images_is_not_one_of_others(teacher: Path, tmp_path: Path) -> None:
    loaded = open_teacher(teacher)
    loaded.state["training"] = {**loaded.state["training"], "files": str(tmp_path / "list.txt")}
    loaded.state["data"] = {**loaded.state["data"], "source": str(tmp_path / "mine")}
    (tmp_path / "mine").mkdir()
    (tmp_path / "other").mkdir()
    for data, kept in ((tmp_path / "other", False), (tmp_path / "mine", True), (None, True)):
        work = Distillation(loaded, data, DistillOptions())
        found = work.training_options({"output_dir": str(tmp_path / "s")})
        assert (found.get("files") is not None) is kept


def test_a_student_on_other_values_keeps_its_teacher_s_units(tmp_path: Path) -> None:
    """Its weights mean something in that range alone."""

    def values(low: float, high: float) -> Any:
        drawn = np.random.default_rng(0).uniform(low, high, (80, 1, 8, 8)).astype(np.float32)
        return open_dataset(drawn, image_size=8, channels=1, normalize="affine")

    network = Unet(dim=8, dim_mults=(1,), channels=1, blocks_per_level=1, attention_levels=())
    process = GaussianDiffusion(network, image_size=8, timesteps=20)
    tiny_trainer(tmp_path / "t", process, values(0, 100), max_steps=2).train()
    units = load_run(tmp_path / "t").diffusion.normalization
    brief = {**TUNING, "max_steps": 2, "steps": (1,)}
    found = distill(tmp_path / "t", values(20, 60), **brief)
    assert units is not None
    kept = found.diffusion.normalization
    assert kept is not None
    assert kept.to_json() == units.to_json()
    again = distill(tmp_path / "t", values(20, 60), **{**brief, "max_steps": 3})  # goes on so
    kept = again.diffusion.normalization
    assert kept is not None
    assert kept.to_json() == units.to_json()


def test_a_gate_that_cannot_be_read_is_measured_again(tmp_path: Path) -> None:
    for text in ("", "[]", '{"teacher": 3}', '{"students": [], "teacher": {}}'):
        (tmp_path / RECORD).write_text(text)
        assert read_gate(tmp_path) is None
    student = dataclasses.replace(TEACHER, who="student", steps=2)
    gate = Gate(TEACHER, (student,), 64, "cpu")
    (tmp_path / RECORD).write_text(json.dumps({"compared": {"step": 3}, **gate.to_json()}))
    assert read_gate(tmp_path, {"step": 3}) == gate
    assert read_gate(tmp_path, {"step": 4}) is None
