"""`--guide-by` in every command that draws: steps, averages, other runs; what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from command_line import ddpm, error_of, train
from ddpm_lib import load_run
from ddpm_lib.evaluation import evaluate
from ddpm_lib.images import save_image
from ddpm_lib.runs.guiding import load_partner
from ddpm_lib.training import ConfigError

FAST = ["--device", "cpu", "--no-progress", "--mixed-precision", "no", "--num-steps", "3"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with two averages and the checkpoints of steps 2 and 4."""
    out = tmp_path_factory.mktemp("guided") / "run"
    flags = ("--class-conditional", "--ema-decay", "0.5", "0.9", "--learning-rate", "0.01")
    assert train(out, *flags) == 0
    return out


def drawn(run: Path, out: Path, *flags: str) -> np.ndarray:
    assert ddpm("sample", run, "-n", 2, "--format", "npz", "--output-dir", out, *FAST, *flags) == 0
    return np.load(out / "samples.npz")["arr_0"]


@pytest.mark.every(2)
@pytest.mark.parametrize("which", ["2", "step-000000002", "model", "ema:0.9", "checkpoint", "run"])
def test_sample_moves_away_from_what_is_named(run: Path, tmp_path: Path, which: str) -> None:
    named = {"checkpoint": str(run / "checkpoints" / "step-000000002"), "run": str(run)}
    flags = ["--guide-by", named.get(which, which), "--guide-scale", "5"]
    weights = ["--weights", "model"] if which == "run" else []
    plain = drawn(run, tmp_path / "plain", *weights)
    guided = drawn(run, tmp_path / "guided", *flags, *weights)
    assert (plain != guided).any()
    assert "guide_scale: 5" in (tmp_path / "guided" / "settings.yaml").read_text()
    flags[-1] = "1"
    assert (plain == drawn(run, tmp_path / "one", *flags, *weights)).all()


def test_the_command_draws_what_python_draws(run: Path, tmp_path: Path) -> None:
    got = drawn(run, tmp_path / "out", "--guide-by", "2")
    main, partner = load_run(run), load_run(run, checkpoint=2)
    images = main.diffusion.sample(
        2, cond={"class_label": [0, 1]}, num_steps=3, guide_by=partner.diffusion
    )
    expected = (images * 255).round().permute(0, 2, 3, 1).numpy()
    assert np.abs(got - expected).max() <= 1


def test_edit_and_inpaint_take_it_too(run: Path, tmp_path: Path) -> None:
    picture, mask = tmp_path / "a.png", tmp_path / "mask.png"
    pixels = torch.randint(0, 255, (3, 8, 8), dtype=torch.uint8)
    save_image(pixels, picture)
    save_image(255 * (torch.arange(8) > 3).to(torch.uint8).expand(3, 8, 8), mask)
    for command in (["edit"], ["inpaint", "--mask", mask, "--num-resamples", 1]):
        found = []
        for name, flags in (("plain", ()), ("guided", ("--guide-by", "2", "--guide-scale", "5"))):
            out = tmp_path / f"{command[0]}-{name}"
            where = [command[0], run, picture, *command[1:], "--output-dir", out]
            assert ddpm(*where, *FAST, *flags) == 0
            found.append([path.read_bytes() for path in sorted(out.glob("*.png"))])
        assert found[0]
        assert found[0] != found[1]


@pytest.mark.slow
def test_evaluate_scores_guided_samples_and_says_so(run: Path) -> None:
    options = {"metrics": "pr", "features": "random64", "num": 12, "sample_steps": 3}
    options |= {"reference": "train", "references": False, "device": "cpu", "progress": False}
    plain, guided, one = (
        evaluate(run, **options, **more)
        for more in ({}, {"guide_by": "2", "guide_scale": 5.0}, {"guide_by": "2", "guide_scale": 1})
    )
    prints = [found.about["samples"]["fingerprint"] for found in (plain, guided, one)]
    assert len(set(prints)) == 3  # of what was asked, before anything is drawn
    assert guided.about["options"]["guide_by"] == "2"
    assert json.loads(json.dumps(guided.to_dict()))["options"]["guide_scale"] == 5.0
    assert plain.to_dict()["scores"] == one.to_dict()["scores"]


@pytest.mark.every(2)
@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--guide-scale", "2"], "--guide-scale 2.0 needs a worse version"),
        (["--guide-by", "3"], "no checkpoint '3'. There are: step-000000002, step-000000004"),
        (["--guide-by", "4"], "names step-000000004 (ema 0.5) itself"),
        (["--guide-by", "ema"], "itself"),
        (["--guide-by", "ema:0.7"], "keeps no EMA of decay 0.7. It keeps: 0.5, 0.9"),
        (["--guide-by", "ema:long"], "named by its decay, as in 'ema:0.999'"),
        (["--guide-by", "erlier"], "which does not exist here"),
        (["--guide-by", "no/such/run"], "no/such/run"),
    ],
)
@pytest.mark.parametrize("command", ["sample", "edit", "evaluate"])
def test_what_cannot_guide_is_refused_in_one_line(
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
    flags: list[str],
    said: str,
) -> None:
    more: list[object] = []
    if command == "edit":
        save_image(torch.zeros(3, 8, 8, dtype=torch.uint8), tmp_path / "a.png")
        more = [tmp_path / "a.png"]
    if command == "evaluate":
        more = ["--metrics", "pr", "--features", "random64", "--num", 4]
    line = error_of(capsys, command, run, *more, "--device", "cpu", "--no-progress", *flags)
    assert said in line, line


def test_another_process_is_refused_by_what_differs(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    assert train(other, "--diffusion.schedule", "linear") == 0
    line = error_of(capsys, "sample", run, "-n", 1, "--device", "cpu", "--guide-by", other)
    assert "of another process: schedule" in line


def test_weights_that_were_kept_nowhere_are_named(run: Path) -> None:
    loaded = load_run(run, weights="model")
    assert load_partner(loaded, "ema:0.9").weights == "ema 0.9"
    assert load_partner(loaded, "2").weights == "model"
    with pytest.raises(ConfigError, match="itself"):
        load_partner(loaded, "model")
