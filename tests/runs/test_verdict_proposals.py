"""Proposals of a verdict: every command is valid where the user stands, and its minutes follow from
the run's speed.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tyro

from command_line import TINY
from ddpm_lib import GaussianDiffusion, Shapes, Trainer, TrainingConfig, Unet, evaluate
from ddpm_lib.cli import main
from ddpm_lib.cli.evaluate import EvaluateCommand
from ddpm_lib.cli.options import parse
from ddpm_lib.cli.sample import SampleCommand
from ddpm_lib.cli.train import resolve
from ddpm_lib.cli.watch import WatchCommand
from ddpm_lib.runs.records import RunRecords, read_records
from ddpm_lib.runs.run_status import RunStatus
from ddpm_lib.runs.verdict import KINDS, Finding, Proposal, Verdict, next_steps


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> RunRecords:
    """A run of the command, with an empty space in its name."""
    run = tmp_path_factory.mktemp("of verdicts") / "my run"
    given = ["shapes", *TINY, "--lr-schedule", "wsd", "--no-report", "--output-dir", str(run)]
    assert main(["train", *given]) == 0
    return read_records(run)


def standing(records: RunRecords, word: str, step: int = 4) -> RunRecords:
    return dataclasses.replace(records, status=RunStatus(word, step, 4))


def proposals(records: RunRecords, kind: str, also: str = "classes_unused") -> tuple[Proposal, ...]:
    others = () if also == kind else (Finding(also),)
    return next_steps(records, Verdict(kind, 2, (), others))


def all_proposals(records: RunRecords) -> dict[str, Proposal]:
    """Every proposal that can come of a run, by its command."""
    stands = [("finished", 4), ("stopped", 2), ("killed", 2), ("failed", 2), ("running", 2)]
    return {
        one.command: one
        for word, step in stands
        for kind in KINDS
        for one in proposals(standing(records, word, step), kind)
    }


def test_every_command_is_valid(trained: RunRecords) -> None:
    found = all_proposals(trained)
    assert len(found) > 15
    kinds = {"sample": SampleCommand, "evaluate": EvaluateCommand, "watch": WatchCommand}
    for command in found:
        program, name, *arguments = shlex.split(command)
        assert program == "ddpm"
        if name == "train":
            assert resolve(arguments).data == "shapes", command
        else:
            usual = kinds[name](run=tyro.MISSING)
            parsed = parse(kinds[name], arguments, usual, f"ddpm {name}", "")
            assert Path(parsed.run) == trained.run, command


@pytest.mark.slow
def test_every_command_does_what_it_says(trained: RunRecords, tmp_path: Path) -> None:
    """Long trainings are cut to twenty steps; all else runs as it stands."""
    before = shutil.copytree(trained.run, tmp_path / "before")
    for command in all_proposals(trained):
        words = [sys.executable, "-m", "ddpm_lib", *shlex.split(command)[1:]]
        for name in ("--max-steps", "--num-steps"):
            if name in words and int(words[words.index(name) + 1]) > 20:
                words[words.index(name) + 1] = "20"
        done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, timeout=600)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        for other in trained.run.parent.glob(f"{trained.run.name}-*"):
            shutil.rmtree(other)
    shutil.rmtree(trained.run)
    shutil.copytree(before, trained.run)  # others look at it too


@pytest.mark.parametrize("kind", KINDS)
def test_there_is_always_something_to_do(trained: RunRecords, kind: str) -> None:
    for word in ("finished", "stopped", "running"):
        found = proposals(standing(trained, word), kind)
        assert found
        assert len({one.command for one in found}) == len(found)
        assert all(one.why and one.command.startswith("ddpm ") for one in found)
        assert not any(one.python for one in found)


def test_a_run_that_was_stopped_goes_on_first(trained: RunRecords) -> None:
    first = proposals(standing(trained, "stopped", 2), "learning")[0]
    assert first.command.endswith("--max-steps 4")
    assert "--max-steps 8" in proposals(standing(trained, "finished"), "learning")[0].command
    for kind in ("unstable", "overfitting", "wrong_range"):
        found = proposals(standing(trained, "stopped", 2), kind)
        assert not any(one.why == "go on to the end" for one in found)


def test_a_finished_run_is_extended_from_before_its_cool_down(trained: RunRecords) -> None:
    """From the checkpoint that was kept for it; where there is none, from its end."""
    finished = standing(trained, "finished")
    (first, *_), start = proposals(finished, "learning"), 3
    assert first.command.endswith(f"--resume {start} --max-steps 8")
    whole = dataclasses.replace(finished, config={**trained.config, "lr_schedule": "cosine"})
    (other, *_) = proposals(whole, "learning")
    assert other.command.endswith("config.yaml' --max-steps 8")
    assert first.minutes == pytest.approx(other.minutes * (8 - start) / (8 - 4))
    assert "--resume" not in proposals(standing(trained, "stopped", 2), "learning")[0].command


def test_a_run_that_stopped_at_the_full_rate_can_end_by_its_cool_down(trained: RunRecords) -> None:
    """The rate falls from where the run stands; one that was found to be level does so first."""
    long = {**trained.config, "max_steps": 100, "warmup_steps": 2, "cooldown_fraction": 0.2}

    def at(step: int, by: str = "", **changes: Any) -> list[str]:
        status = RunStatus("stopped", step, 100, stopped_by=by)
        records = dataclasses.replace(trained, config={**long, **changes}, status=status)
        return [one.command for one in proposals(records, "flat") if "--max-steps" in one.command]

    assert at(41)[0].endswith("config.yaml' --max-steps 100")
    assert at(41)[1].endswith("config.yaml' --max-steps 52")
    words = at(41, "flat")[0].split()
    assert words[words.index("--max-steps") + 1] == "52"
    assert words[words.index("--stop-when") + 1] == "none"
    assert not any("--max-steps 52" in one for one in at(41, "overfitting"))
    for other in (at(1), at(80), at(90), at(41, lr_schedule="cosine")):
        assert [one.split("--max-steps")[1].split()[0] for one in other] == ["100"]


def test_minutes_follow_from_the_speed_of_the_run(trained: RunRecords) -> None:
    rows = tuple({"step": k, "images": 8 * k, "images_per_second": 4.0} for k in (10, 20, 30))
    records = dataclasses.replace(trained, rows=rows, status=RunStatus("finished", 30, 30))
    longer = next_steps(records, Verdict("learning", None, ()))[0]
    assert longer.minutes == pytest.approx(30 * 8 / 4 / 60)
    unknown = dataclasses.replace(records, rows=())
    assert next_steps(unknown, Verdict("learning", None, ()))[0].minutes is None


def in_python(records: RunRecords, **changes: Any) -> RunRecords:
    """Return the records of a run that a Trainer of somebody's program trained."""
    data = {**records.about["data"], "named": False, "images": 100, "class_counts": [50, 50]}
    return dataclasses.replace(records, about={**records.about, "data": data}, **changes)


@pytest.mark.parametrize("lacks", ["checkpoints", "data", "network", "everything"])
def test_nothing_is_proposed_that_cannot_work(
    trained: RunRecords, lacks: str, tmp_path: Path
) -> None:
    own = {"class": "Mine", "module": "mine"}
    changes: dict[str, Any] = {
        "checkpoints": {"run": tmp_path},
        "data": {"about": {"data": {"images": 100, "named": False}}},
        "network": {
            "config": {**trained.config, "model": {}},
            "about": {**trained.about, "network": own},
        },
        "everything": {"run": tmp_path, "about": {}, "config": {}},
    }
    records = dataclasses.replace(trained, **changes[lacks])
    for kind in KINDS:
        found = proposals(standing(records, "finished"), kind)
        names = {one.command.split()[1] for one in found if not one.python}
        if lacks in ("checkpoints", "everything"):
            assert not {"sample", "evaluate"} & names
        if lacks == "network":  # which commands cannot build
            assert not names
            assert not any("Unet" in one.command for one in found)
        if lacks != "checkpoints":
            assert "train" not in names


@pytest.mark.parametrize("kind", KINDS)
def test_runs_made_in_python_get_as_many_proposals(trained: RunRecords, kind: str) -> None:
    for word, step in (("finished", 4), ("stopped", 2)):
        by_command = proposals(standing(trained, word, step), kind)
        here = proposals(standing(in_python(trained), word, step), kind)
        assert [one.why for one in here] == [one.why for one in by_command]
        assert [one.minutes for one in here] == [one.minutes for one in by_command]


def python_proposals(records: RunRecords) -> list[str]:
    return [one.command for one in all_proposals(records).values() if one.python]


def test_calls_in_python_name_arguments_that_exist(trained: RunRecords) -> None:
    known = {
        "Trainer": {field.name for field in dataclasses.fields(TrainingConfig)},
        "GaussianDiffusion": set(inspect.signature(GaussianDiffusion).parameters),
        "Unet": set(inspect.signature(Unet).parameters),
    }
    seen: dict[str, set[str]] = {name: set() for name in known}
    found = python_proposals(in_python(trained))
    assert len(found) > 10
    for command in found:
        for node in ast.walk(ast.parse(command)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                name = node.func.id
                if name != "evaluate":
                    assert any(isinstance(a, ast.Constant) and a.value is ... for a in node.args)
                    seen[name] |= {str(word.arg) for word in node.keywords}
    for name, words in seen.items():
        assert words
        assert words <= known[name]


@pytest.mark.slow
def test_calls_in_python_do_what_they_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the program that trained the run: `...` is replaced by what it gave."""
    images = Shapes(size=8, n=40)
    usual = {"max_steps": 4, "batch_size": 8, "progress": False, "device": "cpu", "val_every": 0}
    usual |= {"sample_every": 0, "output_dir": str(tmp_path / "run")}
    network = {"dim": 8, "dim_mults": (1,), "groups": 4}

    def unet(_: object, **more: Any) -> Unet:
        return Unet(**{**network, **more})

    def diffusion(*given: Any, **more: Any) -> GaussianDiffusion:
        inner = next((one for one in given if one is not ...), unet(...))
        return GaussianDiffusion(inner, image_size=8, **{"timesteps": 20, **more})

    def trainer(*given: Any, **more: Any) -> Trainer:
        inner = next((one for one in given if one is not ...), diffusion(...))
        steps = min(8, more.pop("max_steps", 4))
        return Trainer(inner, images, **{**usual, **more, "max_steps": steps})

    trainer(...).train()
    records = read_records(tmp_path / "run")
    assert records.about["network"] == {"class": "Unet", "module": "ddpm_lib.nn.unet"}
    words = {"Unet": unet, "GaussianDiffusion": diffusion, "Trainer": trainer, "data": images}
    words["evaluate"] = lambda run, data: evaluate(
        run, data, num=10, metrics=["pr"], features="random64", device="cpu"
    )
    for command in python_proposals(records):
        assert eval(command, dict(words)) is not None, command
        for other in tmp_path.glob("run-*"):  # proposals of different verdicts
            shutil.rmtree(other)


def test_a_free_name_is_proposed(trained: RunRecords) -> None:
    first = proposals(standing(trained, "finished"), "unstable")[0]
    assert shlex.quote(f"{trained.run}-2") in first.command


def test_proposals_for_new_runs_share_no_directory(trained: RunRecords) -> None:
    """Whoever runs two of them gets two runs, not a refusal."""
    others = tuple(Finding(kind) for kind in ("copying", "colour_cast", "classes_unused"))
    found = next_steps(trained, Verdict("overfitting", 2, (), others))
    words = [shlex.split(one.command) for one in found if "--output-dir" in one.command]
    made = [line[line.index("--output-dir") + 1] for line in words]
    assert len(made) >= 3
    assert len(set(made)) == len(made)
