"""What ends a training by itself, and what does not: rows whose truth is known."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import pytest

from ddpm_lib.runs.verdict import Finding, Readings
from ddpm_lib.runs.verdict.findings import KINDS
from ddpm_lib.runs.verdict.stop_rules import STOPPERS, stop_finding

Row = dict[str, Any]


def validations(
    held_out: Callable[[float], float],
    train: Callable[[float], float] | None = None,
    *,
    n: int = 16,
    scatter: float = 0.002,
    error: float = 0.02,
    seed: int = 0,
) -> list[Row]:
    """Rows of n validations; curves are functions of the share that is done, in (0, 1]."""
    noise, rows = random.Random(seed), []
    for k in range(1, n + 1):
        fixed = (train or held_out)(k / n)
        value = held_out(k / n) * (1 + scatter * noise.gauss(0, 1))
        row = {"step": 100 * k, "loss": fixed, "learning_rate": 1e-3, "val_loss": value}
        row |= {"val_loss_error": error * value, "train_fixed_loss": fixed}
        row |= {"val_gap_adjusted": value - fixed, "val_gap_adjusted_error": error * value / 4}
        rows.append(row)
    return rows


def end(rows: list[Row], *kinds: str, patience: int = 3) -> tuple[int, Finding] | None:
    """Judge after each row, as training does; return where and why it ends."""
    for k in range(1, len(rows) + 1):
        found = stop_finding(Readings(rows[:k], {}, 1.0), kinds or STOPPERS, patience)
        if found is not None:
            return rows[k - 1]["step"], found
    return None


def falling(x: float) -> float:
    return 0.02 + 0.3 * math.exp(-3 * x)


def turning(x: float) -> float:
    """Falls to its minimum at a fourth of the run, then rises by half of it."""
    return 0.1 + 0.2 * max(0.0, 0.25 - x) + 0.07 * max(0.0, x - 0.25)


def learned_by_heart(x: float) -> float:
    """The training images' loss beside it: it goes on falling."""
    return 0.1 + 0.2 * (0.25 - x) if x < 0.25 else 0.1 - 0.05 * (x - 0.25)


def settled(x: float) -> float:
    return 0.04 + 0.3 * math.exp(-40 * x)


def test_the_kinds_are_those_of_verdicts() -> None:
    """One set of names for what a run is judged by."""
    assert set(STOPPERS) <= set(KINDS)


def test_over_fitting_ends_a_run_and_names_where_it_began() -> None:
    """The held-out loss turns at a fourth of the run; it ends within a third after that."""
    step, found = end(validations(turning, learned_by_heart), "overfitting")
    assert found.kind == "overfitting"
    assert 200 <= (found.since or 0) <= 600
    assert 700 <= step <= 1300


def test_patience_waits_that_much_longer() -> None:
    """Each validation of patience is one more that has to show it."""
    rows = validations(turning, learned_by_heart)
    ends = [end(rows, "overfitting", patience=patience)[0] for patience in (1, 2, 4)]
    assert ends == [ends[0], ends[0] + 100, ends[0] + 300]
    assert end(rows, "overfitting", patience=16) is None


def test_a_finding_that_goes_again_ends_nothing() -> None:
    """Patience counts validations in a row."""
    rows = validations(turning, learned_by_heart)
    step, _ = end(rows, "overfitting")
    for row in rows:
        if row["step"] >= step - 100:  # low validations in a row: it falls after all
            row.update(val_loss=0.05 - row["step"] * 1e-5, val_gap_adjusted=0.0)
    assert end(rows, "overfitting") is None


@pytest.mark.parametrize("kind", STOPPERS)
def test_only_what_was_asked_for_ends_a_run(kind: str) -> None:
    """A run that over-fits, copies or is flat goes on where another of them was asked for."""
    rows = {
        "overfitting": validations(turning, learned_by_heart),
        "copying": grids([0.5] * 8),
        "flat": validations(settled),
    }[kind]
    found = end(rows, kind)
    assert found is not None
    assert found[1].kind == kind
    assert end(rows, *(other for other in STOPPERS if other not in (kind, "flat"))) is None


def grids(shares: list[float], n: int = 16) -> list[Row]:
    """Rows of grids with some share of copies, among 500 controls without any."""
    from ddpm_lib.metrics.memorisation import fisher_p

    counts = [round(share * n) for share in shares]
    return [
        {
            "step": 100 * k,
            "sample_n": n,
            "sample_copies": count / n,
            "sample_copies_p": fisher_p(count, n, count, 500),
        }
        for k, count in enumerate(counts, 1)
    ]


def test_copies_end_a_run_when_three_grids_in_a_row_show_them() -> None:
    """Two of sixteen are enough, one is chance; a grid between without copies begins anew."""
    assert end(grids([0, 1 / 16, 1 / 16, 1 / 16, 1 / 16]), "copying") is None
    step, found = end(grids([0, 2 / 16, 0, 2 / 16, 3 / 16, 5 / 16, 1]), "copying")
    assert (step, found.kind, found.since) == (600, "copying", 400)


def test_flat_is_flat_for_sure() -> None:
    """A noisy curve that still falls by 3 % in a fifth of the run is called flat by the verdict at
    times, and never ends a run; one that has settled does.
    """
    noisy = [validations(falling, scatter=0.02, n=30, seed=seed) for seed in range(20)]
    assert [end(rows, "flat") for rows in noisy] == [None] * 20
    ends = [end(validations(settled, n=30, seed=seed), "flat") for seed in range(20)]
    assert all(found is not None for found in ends)


def test_nothing_learned_yet_is_not_flat() -> None:
    """On a plateau at the loss of the mean image, patience is right."""
    rows = validations(lambda x: 1.0)
    assert end(rows, "flat") is None
    low = [{**row, "val_loss": row["val_loss"] / 2, "loss": row["loss"] / 2} for row in rows]
    assert end(low, "flat") is not None


def test_a_decayed_rate_is_not_flat() -> None:
    """The loss stands because the rate has gone, as planned."""
    rows = validations(lambda x: 0.03 + 0.1 * max(0.0, 0.75 - x), n=40)
    for row in rows:
        row["learning_rate"] = 1e-3 * 0.5 * (1 + math.cos(math.pi * row["step"] / 4000))
    assert end(rows, "flat") is None


@pytest.mark.parametrize("kind", ["overfitting", "copying"])
def test_a_large_set_is_never_stopped_without_reason(kind: str) -> None:
    """No over-fitting, no copies: of 30 runs, judged after each of 40 validations, not one ends.

    The held-out loss has the scatter and the two errors that 512 images give; the gap's error is
    shared by all validations of a run, as the images are the same.
    """
    for seed in range(30):
        draw = random.Random(seed)
        offset = draw.gauss(0, 1)

        def train(x: float, offset: float = offset) -> float:
            return falling(x) * (1 - 0.005 * offset)

        rows = validations(falling, train, n=40, error=0.02, scatter=0.003, seed=seed)
        for row in rows[1::2]:  # one in a hundred training images looks like a copy by nature
            count = sum(draw.random() < 0.01 for _ in range(16))
            row |= {"sample_n": 16, "sample_copies": count / 16, "sample_copies_p": _p(count)}
        assert end(rows, kind) is None


def _p(count: int) -> float:
    """Fisher's p of so many of 16, where 5 of 500 training images look like copies."""
    from ddpm_lib.metrics.memorisation import fisher_p

    return fisher_p(count, 16, count + 5, 500)
