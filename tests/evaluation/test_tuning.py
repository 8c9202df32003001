"""`ddpm tune`: what it compares, keeps and takes back; killed and continued it finds the same."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ddpm_lib import Shapes, load_run
from ddpm_lib.cli import main
from ddpm_lib.core.errors import CheckpointError, ConfigError
from ddpm_lib.evaluation.tuning import Tuned, TuneOptions, tune
from ddpm_lib.evaluation.tuning.subject_of_tuning import Subject, find_subject
from ddpm_lib.evaluation.tuning.tune_options import calls_of, steps_for
from ddpm_lib.evaluation.tuning.tuner import Tuner
from ddpm_lib.evaluation.tuning.way_of_sampling import Way
from ddpm_lib.evaluation.tuning.yardstick import Measure, Yardstick, apart
from ddpm_lib.runs.stored_sampling import FILE, read_sampling
from launchers import torchrun
from training_helpers import tiny_diffusion, tiny_trainer

QUICK: dict[str, Any] = {
    "calls": 3, "samplers": ("ddim", "dpmpp_2m"), "num": 20, "starts": 4, "teacher_calls": 8,
    "iterations": 2, "device": "cpu", "progress": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tuning")
    data = Shapes(size=8, n=60)
    pixels = data.batch(np.arange(60))["image"].permute(0, 2, 3, 1).numpy()
    np.savez(folder / "data.npz", arr_0=pixels, arr_1=np.arange(60) % 3)
    run = folder / "mine"
    options = {"max_steps": 6, "save_every": 2, "ema_decay": (0.9, 0.5), "learning_rate": 0.01}
    diffusion = tiny_diffusion(num_classes=3)
    tiny_trainer(run, diffusion, str(folder / "data.npz"), **options).train()
    return run


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "mine"))


def alike(a: Tuned, b: Tuned) -> bool:
    return dataclasses.replace(a.default, created="") == dataclasses.replace(b.default, created="")


def test_what_is_found_is_kept_and_used(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    real = Tuner._report

    def better(self: Tuner, *given: Any) -> Any:
        return real(self, *given)[0], True

    monkeypatch.setattr(Tuner, "_report", better)
    found = tune(run, log=lines.append, **{**QUICK, "progress": True})
    assert found.saved == run / FILE
    kept = read_sampling(run)
    assert kept is not None
    assert (kept.step, kept.made_by) == (6, "ddpm tune")
    assert kept.calls is not None
    assert kept.calls <= 3
    evidence = found.evidence
    assert [row["calls"] for row in evidence["reported"][1:]] == [3, 6, 50]
    assert {"same_calls", "twice_calls"} <= set(evidence["gains"])
    assert evidence["compared"][0]["distance"] <= evidence["compared"][-1]["distance"]
    assert any("by 2" in one["way"] for one in evidence["compared"])  # an earlier step was tried
    assert any("guidance" in one["way"] for one in evidence["compared"])
    assert any("ema 0.5" in one["way"] for one in evidence["compared"])
    assert any("mixed to 0.1" in one["way"] for one in evidence["compared"])
    assert not (run / "tuning").exists()
    assert any(line.startswith("chosen: ") for line in lines)
    loaded = load_run(run)
    assert loaded.weights == kept.weights
    cond = {"class_label": torch.arange(2)}
    images = loaded.diffusion.sample(2, cond=cond)
    how = {"sampler": kept.sampler, "spacing": kept.spacing, "guidance_scale": kept.guidance_scale}
    how |= {"num_steps": kept.num_steps, "spacing_options": kept.spacing_options}
    if kept.guide_by is not None:
        how |= {"guide_by": kept.load_partner or loaded.diffusion.sampling_default.load_partner()}
        how |= {"guide_scale": kept.guide_scale}
    interval = kept.guidance_interval
    again = loaded.diffusion.sample(2, cond=cond, guidance_interval=interval, **how)
    assert torch.equal(images, again)
    table = found.table()
    assert "unipc in 3 (untuned)" in table
    assert "train images that nothing was chosen by" in table


@pytest.mark.slow
def test_a_tuning_that_was_killed_finds_the_same(
    run: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    twin = Path(shutil.copytree(trained, tmp_path / "twin" / "mine"))
    options = {**QUICK, "guidance": False}
    whole = tune(twin, **options)
    real, scored = Tuner._score, []

    def killed(self: Tuner, way: Way) -> dict[str, Any]:
        if len(scored) == 2:
            raise KeyboardInterrupt
        scored.append(way)
        return real(self, way)

    monkeypatch.setattr(Tuner, "_score", killed)
    with pytest.raises(KeyboardInterrupt):
        tune(run, **options)
    kept = list((run / "tuning").rglob("*.json"))
    assert len(kept) >= 4
    kept[0].write_text("{")  # cut off: done again
    monkeypatch.setattr(Tuner, "_score", real)
    assert alike(tune(run, **options), whole)
    assert not (run / "tuning").exists()


@pytest.mark.slow
def test_two_processes_find_what_one_does_and_say_it_once(run: Path, trained: Path) -> None:
    options = {**QUICK, "samplers": ("ddim",), "guidance": True}
    single = tune(trained, **options)
    done = torchrun(str(Path(__file__).parents[1] / "helpers" / "run_tuning.py"), str(run))
    assert done.stdout.count("way of sampling") == 1
    values = json.loads(done.stdout.splitlines()[-1])
    assert values["ranks"] == 2
    assert len(set(values["found"])) == 1  # all ranks agree, to the last digit
    assert values["saved"] == ([True, False] if values["better"][0] else [False, False])
    rows = single.evidence["reported"]
    for two, one in zip(values["reported"], rows, strict=True):
        assert (two["way"], two["calls"]) == (one["way"], one["calls"])
        assert two["distance"] == pytest.approx(one["distance"], rel=1e-3)
    assert not (run / "tuning").exists()


def test_nothing_worse_is_kept(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Tuner._report

    def worse(self: Tuner, *given: Any) -> Any:
        return real(self, *given)[0], False

    monkeypatch.setattr(Tuner, "_report", worse)
    found = tune(run, **{**QUICK, "guidance": False, "samplers": ("ddim",)})
    assert (found.saved, found.is_better) == (None, False)
    assert not (run / FILE).exists()


def test_the_library_s_own_way_is_among_those_that_are_compared(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that levels which were learned badly are not chosen for want of others."""
    monkeypatch.setattr(
        Tuner, "_score", lambda self, way: _scored((way.spacing, way.end) == ("mixed", None))
    )
    found = tune(run, **{**QUICK, "samplers": ("unipc",), "guidance": False})
    assert found.default.spacing == "mixed"
    assert found.evidence["gains"]["same_calls"]["value"] == 0.0
    assert found.saved is None


def _scored(good: bool) -> dict[str, Any]:
    influence = [0.1, -0.1]
    return {"distance": 1.0 - good, "influence": influence, "precision": None, "recall": None}


def test_the_command_says_what_it_did(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--calls", "2", "--samplers", "ddim", "--num", "20", "--starts", "4", "--device"]
    flags += ["cpu", "--teacher-calls", "6", "--iterations", "1", "--no-guidance"]
    code = main(["tune", str(run), *flags])
    said = capsys.readouterr()
    assert "unipc in 2 (untuned)" in said.out
    assert "learning the levels of 1 solvers for 2 calls" in said.err
    if code == 0:
        assert f"kept in {run / FILE}: ddim in 2 steps" in said.out
    else:
        assert "nothing was kept" in said.out
        (run / FILE).write_text(json.dumps({"format": 1}))
    assert main(["tune", str(run), "--undo"]) == 0
    assert "took back" in capsys.readouterr().out
    assert not (run / FILE).exists()
    assert main(["tune", str(run), "--undo"]) == 2
    assert "nothing can be taken back" in capsys.readouterr().err
    assert main(["tune", str(run), "--undo", "--calls", "4"]) == 2
    assert "--calls is for choosing" in capsys.readouterr().err
    assert main(["tune", str(run / "nowhere"), "--undo"]) == 2
    assert "does not exist" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"calls": 0}, "calls must be at least 1; got 0"),
        ({"calls": 101}, "calls must be at most 100"),
        ({"calls": "ten"}, "calls must be a whole number"),
        ({"calls": 60}, "teacher_calls must be at least twice calls"),
        ({"samplers": ("unipcc",)}, "Did you mean 'unipc'"),
        ({"samplers": ("ddpm",)}, "ddpm is no deterministic solver"),
        ({"samplers": ()}, "samplers must name at least one"),
        ({"num": 3}, "num must be at least 20"),
        ({"features": "random65"}, "Did you mean 'random64'"),
        ({"iterations": -1}, "iterations must be at least 0"),
        ({"stepz": 3}, "Unknown option of tune: 'stepz'"),
        ({"seed": -1}, "seed must be at least 0"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, ValueError), match=message):
        TuneOptions.of(options)


def test_what_cannot_be_tuned_is_said(run: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        tune(tmp_path / "nowhere", **QUICK)
    with pytest.raises(ConfigError, match="checkpoint must be one"):
        tune(run, checkpoint="all", **QUICK)
    folder = load_run(run).diffusion.save_pretrained(tmp_path / "folder")
    with pytest.raises(ConfigError, match="is a pretrained folder; what is tuned is a run"):
        tune(folder, **QUICK)
    few = np.zeros((30, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "few.npz", arr_0=few, arr_1=np.arange(30) % 3)
    with pytest.raises(ConfigError, match=r"needs 40 for that; there are 30.*--data"):
        tune(run, data=str(tmp_path / "few.npz"), **QUICK)


def test_calls_count_what_guides() -> None:
    assert [steps_for("heun", calls) for calls in (1, 2, 3, 8, 9)] == [1, 1, 2, 4, 5]
    assert all(calls_of(name, steps_for(name, c)) <= c for name in ("heun", "ddim") for c in (3, 8))
    levels = (1000.0, 700.0, 300.0, 100.0)
    way = Way("ddim", levels, 4, "ema 0.9")
    assert way.calls(levels, 1000) == 4
    guided = dataclasses.replace(way, scale=2.0)
    assert guided.calls(levels, 1000) == 8
    inside = dataclasses.replace(guided, interval=(0.2, 0.8))
    assert inside.calls(levels, 1000) == 6
    both = dataclasses.replace(inside, partner="5000", partner_scale=1.5)
    assert both.calls(levels, 1000) == 8
    heun = dataclasses.replace(inside, sampler="heun")
    assert dataclasses.replace(way, sampler="heun").calls(levels, 1000) == 7
    assert heun.calls(levels, 1000) == 7 + 2 * 2  # at 700 and 300, each asked twice
    assert inside.words() == "ddim in 4, learned levels, ema 0.9, guidance 2 in 0.2…0.8"


def test_the_halves_share_no_image_and_a_set_is_at_0_of_itself() -> None:
    data, diffusion = Shapes(size=8, n=80), tiny_diffusion()
    stick = Yardstick(data, diffusion, "random64", torch.device("cpu"))
    first, second = (set(rows.tolist()) for rows in stick.rows)
    assert not first & second
    assert len(first | second) == 80
    own = stick.features(data.batch(stick.rows[0])["image"])
    measured = stick.measure(own, 0, neighbours=True)
    assert abs(measured.distance) < 1e-5
    assert (measured.precision, measured.recall) == (1.0, 1.0)
    assert stick.measure(own, 1).distance > 0
    with pytest.raises(ConfigError, match="NaN or infinite"):
        stick.features(torch.full((2, 3, 8, 8), torch.nan))


def test_a_difference_of_the_same_noise_has_a_small_error() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(400, generator=generator, dtype=torch.float64)
    other = torch.randn(400, generator=generator, dtype=torch.float64)
    a, b = Measure(2.0, noise), Measure(1.5, noise + 0.01 * other)
    value, error = apart(a, b)
    assert value == 0.5
    assert error == pytest.approx(0.01 / 20, rel=0.1)
    assert a.error == pytest.approx(1 / 20, rel=0.1)


def test_averages_and_partners_are_those_of_the_run(run: Path) -> None:
    subject = Subject(find_subject(run, "latest"), torch.device("cpu"))
    assert subject.averages == ["ema 0.9", "ema 0.5"]
    assert subject.partner_names() == ["2", "model"]
    subject.partner("2", "ema 0.5")  # as the run guides by it when it is sampled
    assert subject.known["ema 0.5 by 2"].weights == "ema 0.5"
    noise = subject.starts(3, 0)
    assert torch.equal(noise, subject.starts(5, 0)[:3])
    assert not torch.equal(noise, subject.starts(3, 1))
