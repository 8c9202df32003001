"""How often a run validates, draws, saves and logs, and which early checkpoints it keeps."""

from __future__ import annotations

from typing import Any

import pytest

from ddpm_lib.runs.cadences import Cadences, early_steps, usual_cadences


@pytest.mark.parametrize("steps", [60, 100, 250, 600, 901, 2999, 3000, 5000, 75_000, 10**6])
def test_every_run_of_60_steps_or_more_has_six_validations(steps: int) -> None:
    """The verdict rests on a curve; in between, a validation takes at least ten steps."""
    usual = usual_cadences(steps)
    assert steps // usual["val_every"] >= 6
    assert usual["val_every"] >= 10
    assert steps // usual["log_every"] >= 30
    assert usual["sample_every"] == usual["save_every"] == 2 * usual["val_every"]


def test_long_runs_have_the_cadences_that_they_always_had() -> None:
    """3,000 steps and more."""
    for steps in (3000, 20_000, 75_000, 10**6):
        found = usual_cadences(steps)
        assert found == {
            "val_every": 500,
            "sample_every": 1000,
            "save_every": 1000,
            "log_every": 50,
        }


def test_a_run_that_stops_by_itself_validates_more() -> None:
    """Sixteen times; it draws as often where grids end it."""
    assert 4000 // usual_cadences(4000, ("overfitting",))["val_every"] >= 16
    assert usual_cadences(4000, ("overfitting",))["sample_every"] == 500
    assert usual_cadences(4000, ("copying",))["sample_every"] == 250


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"max_steps": 900}, (150, 300, 300, 25)),
        ({"max_steps": 900, "val_every": 7, "save_every": 11}, (7, 300, 11, 25)),
        ({"max_steps": 900, "val_every": 0, "sample_every": 0}, (0, 0, 300, 25)),
        ({"max_steps": 900, "val_every": "auto", "log_every": 1}, (150, 300, 300, 1)),
        ({"max_steps": 9000, "keep_every": 2500}, (500, 1000, 625, 50)),
        ({"max_steps": 9000, "keep_every": 9973}, (500, 1000, 9973, 50)),
        ({}, (500, 1000, 1000, 50)),
        ({"max_steps": "many", "val_every": None, "save_every": True}, (500, 1000, 1000, 50)),
    ],
)
def test_what_was_told_wins(options: dict[str, Any], expected: tuple[int, ...]) -> None:
    """Anything else, as in a damaged config.yaml, follows the length."""
    assert Cadences.of(options) == Cadences(*expected)


def test_early_steps_are_those_of_their_part() -> None:
    """Rounded up, so that none is step 0; three different ones or none."""
    assert early_steps(1600) == (100, 200, 400)
    for steps in range(16, 200):
        assert len(set(early_steps(steps))) == 3
    assert early_steps(15) == ()
