"""What follows the length of a run: rate, warm-up, averages; the average chosen at its end."""

from __future__ import annotations

import json
import logging
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from ddpm_lib import Shapes, TrainingConfig, load_run
from ddpm_lib.runs.checkpoint import list_checkpoints
from ddpm_lib.runs.end_screen import average_lines
from ddpm_lib.runs.names import AVERAGE_LOSS
from ddpm_lib.runs.records import read_records
from ddpm_lib.training.by_length import OPEN, decays_of, rate_of, settled
from ddpm_lib.training.optim import learning_rate
from training_helpers import StopAt, assert_same_tensors, curve, final_tensors, tiny_trainer

LONG: dict[str, Any] = {
    "max_steps": 60,
    "warmup_steps": "auto",
    "val_every": 20,
    "val_max_images": 8,
    "val_data": None,
    "val_fraction": 0.3,
}


def state(run: Path) -> dict[str, Any]:
    newest = list_checkpoints(run / "checkpoints")[-1]
    found: dict[str, Any] = json.loads((newest / "state.json").read_text())
    return found


def test_shorter_runs_learn_faster_and_remember_less() -> None:
    lengths = [20, 100, 900, 10_000, 75_000, 800_000]
    rates = [rate_of(n) for n in lengths]
    assert rates == sorted(rates, reverse=True)
    assert rate_of(75_000) == 2e-4
    assert max(rates) <= 2e-3
    for n in lengths[2:]:  # each average covers its part of the run, to two figures
        covered = sorted(1 / (1 - d) / n for d in decays_of(n))
        assert covered == pytest.approx([1 / 100, 1 / 30, 1 / 10], rel=0.06)
        assert 1 / (1 - decays_of(n)[0]) == pytest.approx(n / 30, rel=0.06)
    assert all(0 <= d < 1 for n in range(1, 60) for d in decays_of(n))


def test_the_rate_rises_then_falls_to_zero() -> None:
    config = TrainingConfig(max_steps=1000)
    rates = [learning_rate(step, config) for step in range(1001)]
    assert max(rates) == rates[49] == rate_of(1000)
    assert all(a < b for a, b in pairwise(rates[:50]))
    assert set(rates[50:800]) == {rate_of(1000)}, "the full rate for four fifths"
    assert all(a > b for a, b in pairwise(rates[800:]))
    assert rates[-1] == pytest.approx(0, abs=1e-12)


def test_what_is_named_wins_and_the_rest_is_settled_once() -> None:
    named = {"learning_rate": 3e-4, "lr_schedule": "linear", "warmup_steps": 7}
    for name, value in (*named.items(), ("ema_decay", (0.9,))):
        found = settled(TrainingConfig(max_steps=900, **{name: value}))
        assert getattr(found, name) == value
        assert not [other for other in OPEN if getattr(found, other) == "auto"]
        assert settled(found) is found
    assert settled(TrainingConfig(ema_decay=())).ema_decay == ()


def test_trained_weights_get_a_low_constant_rate() -> None:
    found = settled(TrainingConfig(max_steps=900, init_from="runs/other"))
    assert (found.learning_rate, found.lr_schedule) == (2e-4, "constant")


def test_a_run_that_goes_on_keeps_what_it_began_with(tmp_path: Path) -> None:
    """Also one that was trained when the defaults were others, and with a larger max_steps."""
    old = {"learning_rate": 2e-4, "lr_schedule": "constant", "warmup_steps": 500}
    old_averages = {"ema_decay": (0.9999,)}
    tiny_trainer(tmp_path / "a", max_steps=6, **old | old_averages).train()
    tiny_trainer(tmp_path / "b", max_steps=3, **old | old_averages).train()
    heard: list[str] = []
    again = tiny_trainer(tmp_path / "b", max_steps=6, warmup_steps="auto", lr_schedule="auto")
    again.run_log.say = heard.append  # type: ignore[method-assign]
    again.train()
    assert {name: getattr(again.config, name) for name in old} == old
    assert again.config.ema_decay == (0.9999,)
    assert_same_tensors(final_tensors(tmp_path / "a"), final_tensors(tmp_path / "b"))
    assert not [line for line in heard if line.startswith("Chosen")]


def test_what_was_chosen_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="ddpm_lib"):
        tiny_trainer(
            tmp_path / "run", warmup_steps="auto", lr_schedule="auto", max_steps=60
        ).prepare()
    line = next(text for text in caplog.messages if text.startswith("Chosen"))
    assert "for 60 steps: learning rate 0.002 after 3 steps, falling in the last 20 %" in line
    assert "averages over 2, 6 steps" in line


def test_the_best_average_on_held_out_images_is_used(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path / "run", data=Shapes(size=8, n=60), **LONG)
    trainer.train()
    row = curve(tmp_path / "run")[-1]
    losses = {
        float(name.removeprefix(AVERAGE_LOSS)): value
        for name, value in row.items()
        if name.startswith(AVERAGE_LOSS)
    }
    assert set(losses) == set(decays_of(60))
    best = min(losses, key=lambda decay: losses[decay])
    kept = state(tmp_path / "run")
    assert kept["ema_decay"][0] == trainer.config.ema_decay[0] == best
    assert set(kept["ema_decay"]) == set(decays_of(60))
    assert row["val_loss"] == pytest.approx(losses[best], rel=1e-6)
    loaded = load_run(tmp_path / "run")
    assert loaded.weights == f"ema {best}"
    own = dict(loaded.diffusion.model.named_parameters())
    for name, weight in trainer.averaged_network().named_parameters():
        torch.testing.assert_close(own[name], weight)
    (line,) = average_lines(read_records(tmp_path / "run"))
    assert f"(ema {best})" in line
    assert "lowest of 2" in line


@pytest.mark.slow
def test_an_average_that_is_named_first_stays_first(tmp_path: Path) -> None:
    """The named ones are 0.99, which has hardly left the random weights, and 0.5."""
    options = {**LONG, "ema_decay": (0.99, 0.5), "ema_power": 5.0}
    tiny_trainer(tmp_path / "run", **options).train()
    assert state(tmp_path / "run")["ema_decay"] == [0.99, 0.5]
    assert not [name for name in curve(tmp_path / "run")[-1] if name.startswith(AVERAGE_LOSS)]
    assert average_lines(read_records(tmp_path / "run")) == []


@pytest.mark.slow
def test_the_choice_of_a_resumed_run_is_that_of_the_uninterrupted_one(tmp_path: Path) -> None:
    tiny_trainer(tmp_path / "whole", **LONG).train()
    tiny_trainer(tmp_path / "parts", callbacks=[StopAt(31)], **LONG).train()
    tiny_trainer(tmp_path / "parts", **LONG).train()
    whole, parts = state(tmp_path / "whole"), state(tmp_path / "parts")
    assert whole["ema_decay"] == parts["ema_decay"]
    assert_same_tensors(final_tensors(tmp_path / "whole"), final_tensors(tmp_path / "parts"))
    assert curve(tmp_path / "whole") == curve(tmp_path / "parts")
