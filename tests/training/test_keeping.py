"""Checkpoints that a run keeps unasked, and cadences that follow its length."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from ddpm_lib.core.errors import ConfigError
from ddpm_lib.process.sampling_default import SamplingDefault
from ddpm_lib.runs.checkpoint import list_checkpoints
from ddpm_lib.runs.loading import load_run
from ddpm_lib.runs.names import step_of
from ddpm_lib.runs.stored_sampling import partner_steps, write_sampling
from ddpm_lib.training.config import TrainingConfig
from ddpm_lib.training.keeping import as_begun, best_metric, early, kept_for_good
from training_helpers import assert_same_tensors, final_tensors, tiny_trainer

AUTO = {
    "val_every": "auto",
    "save_every": "auto",
    "log_every": "auto",
    "keep_last": 2,
    "val_max_images": 2,
    "report": False,
}


def steps_on_disk(run: Path) -> list[int]:
    return [step_of(path) for path in list_checkpoints(run / "checkpoints")]


def test_a_small_set_keeps_early_checkpoints_and_the_best(tmp_path: Path) -> None:
    """At 1/16, 1/8 and 1/4, the best of the validations from 1/16 on, and the newest two."""
    run = tmp_path / "run"
    tiny_trainer(run, max_steps=32, **AUTO | {"val_every": 4}).train()
    best = load_run(run, checkpoint="best").step
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = {row["step"]: row["val_loss"] for row in rows if "val_loss" in row}
    assert list(losses) == [4, 8, 12, 16, 20, 24, 28, 32]
    assert best == min(losses, key=lambda step: losses[step])
    found = steps_on_disk(run)
    assert set(found) >= {2, 4, 8, best, 32}
    assert len(found) <= 4 + 2


def test_a_longer_run_keeps_what_it_had(tmp_path: Path) -> None:
    """The early checkpoints of 16 steps are still there after 48."""
    run = tmp_path / "run"
    tiny_trainer(run, max_steps=16, **AUTO).train()
    tiny_trainer(run, max_steps=48, **AUTO).train()
    assert set(steps_on_disk(run)) >= {1, 2, 4, 48}
    assert set(steps_on_disk(run)) & {3, 6, 12} == set()  # those were behind it


def test_what_a_sampling_default_guides_by_is_kept(tmp_path: Path) -> None:
    """That of the default and of the one before it, which may be gone back to; no others."""
    run = tmp_path / "run"
    options = {**AUTO, "keep_early": "no", "keep_best": None, "save_every": 2, "val_every": 0}
    tiny_trainer(run, max_steps=4, **options).train()
    for name in ("step-000000002", "4", "model"):
        default = SamplingDefault(
            made_by="t", sampler="ddim", guide_by=name, guide_scale=1.5, step=4
        )
        write_sampling(run, default)
    assert partner_steps(run) == {2, 4}
    tiny_trainer(run, max_steps=12, **options).train()
    assert steps_on_disk(run) == [2, 4, 10, 12]
    (run / "sampling.json").write_text("{")
    assert partner_steps(run) == set()


def test_none_are_kept_where_that_is_said(tmp_path: Path) -> None:
    """The newest alone."""
    run = tmp_path / "run"
    options = {**AUTO, "keep_early": "no", "keep_best": None, "save_every": 8, "val_every": 4}
    tiny_trainer(run, max_steps=24, **options).train()
    assert steps_on_disk(run) == [16, 24]


def test_a_large_set_keeps_nothing_unasked() -> None:
    """From 10,000 training images on; what was asked for is kept at any size."""
    config = TrainingConfig(max_steps=1600)
    assert early(config, 9_999) == (100, 200, 400)
    assert best_metric(config, 9_999, True) == "val_loss"
    assert kept_for_good(config, 9_999, True) == 4 + 1, "and the one before the cool-down"
    assert kept_for_good(config, 10_000, True) == 1
    assert kept_for_good(replace(config, lr_schedule="cosine"), 10_000, True) == 0
    assert kept_for_good(replace(config, cooldown_fraction=0.75), 9_999, True) == 4, "they meet"
    assert best_metric(config, 9_999, False) is None
    assert best_metric(TrainingConfig(val_every=0), 9_999, True) is None
    asked = TrainingConfig(max_steps=1600, keep_early="yes", keep_best="loss")
    assert early(asked, 10**6) == (100, 200, 400)
    assert best_metric(asked, 10**6, False) == "loss"


def test_an_older_run_goes_on_as_it_was() -> None:
    """What a checkpoint says stays; what it was too early to know is what it was then."""
    config = TrainingConfig(max_steps=900, log_every=5)
    old = {"val_every": 500, "sample_every": 0, "save_every": 1000, "keep_best": None}
    found = as_begun(config, old)
    assert (found.val_every, found.sample_every, found.save_every) == (500, 0, 1000)
    assert (found.log_every, found.keep_best, found.keep_early) == (5, None, "no")
    auto = as_begun(config, config.to_dict())
    assert auto == config
    assert auto.cadences.val_every == 150


@pytest.mark.slow
def test_a_run_in_pieces_keeps_the_same(tmp_path: Path) -> None:
    """Interrupted anywhere: the same checkpoints stay, with the same weights."""
    options = {**AUTO, "val_every": 5}
    tiny_trainer(tmp_path / "whole", max_steps=32, **options).train()
    for steps in (3, 10, None):
        tiny_trainer(tmp_path / "pieces", max_steps=32, **options).train(steps)
    assert {2, 4, 8} <= set(steps_on_disk(tmp_path / "pieces"))
    best = [load_run(tmp_path / name, checkpoint="best").step for name in ("whole", "pieces")]
    assert best[0] == best[1]
    assert_same_tensors(final_tensors(tmp_path / "whole"), final_tensors(tmp_path / "pieces"))


def test_the_options_stay_auto_in_the_files(tmp_path: Path) -> None:
    """So that a run which is made longer gets the cadences of a longer run; status.json, which is
    for people, has the number.
    """
    run = tmp_path / "run"
    tiny_trainer(run, max_steps=60, **AUTO).train(1)
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["val_every"] == config["save_every"] == "auto"
    assert json.loads((run / "status.json").read_text())["save_every"] == 20


@pytest.mark.parametrize("name", ["val_every", "save_every", "sample_every", "log_every"])
def test_a_wrong_cadence_is_refused(name: str) -> None:
    """A word that is none, a number that is none."""
    with pytest.raises(ConfigError, match=f"{name} must be a whole number or 'auto'"):
        TrainingConfig(**{name: "often"})
    with pytest.raises(ConfigError, match=f"{name} must be at least"):
        TrainingConfig(**{name: -1})


def looks_copied(monkeypatch: pytest.MonkeyPatch, begin: int) -> None:
    """Let grids ring for copies from a step on."""
    from ddpm_lib.training.callbacks.samples import SampleGrid

    def facts(self: SampleGrid, trainer: object, samples: object) -> dict[str, float]:
        step = trainer.step  # type: ignore[attr-defined]
        p = 1e-6 if step >= begin else 1.0
        return {"sample_n": 4.0, "sample_copies": 1.0 - p, "sample_copies_p": p}

    monkeypatch.setattr(SampleGrid, "_facts", facts)


COPYING = {**AUTO, "save_every": 2, "keep_early": "no", "keep_best": None, "sample_every": 4}


@pytest.mark.parametrize("pieces", [(None,), (7, 14, None)])
def test_the_newest_before_copies_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pieces: tuple[int | None, ...]
) -> None:
    """Of a run that copying ends, also where it was interrupted; the verdict draws from it."""
    looks_copied(monkeypatch, 12)
    run, options = tmp_path / "run", {**COPYING, "stop_when": ("copying",)}
    for steps in pieces:
        result = tiny_trainer(run, max_steps=40, sample_count=4, **options).train(steps)
    assert result.stopped_by == "copying"
    assert steps_on_disk(run)[0] == 8
    assert len(steps_on_disk(run)) <= 1 + 2


def test_without_that_rule_nothing_is_kept_before_copies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks_copied(monkeypatch, 12)
    run = tmp_path / "run"
    tiny_trainer(run, max_steps=24, sample_count=4, **COPYING).train()
    assert len(steps_on_disk(run)) == 2
    config = TrainingConfig(max_steps=1600)
    asked = replace(config, stop_when=("copying",))
    assert kept_for_good(asked, 10**6, True) == kept_for_good(config, 10**6, True) + 1
