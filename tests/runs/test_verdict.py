"""Verdicts: from rows whose truth is known to kinds, words and proposals."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from ddpm_lib.runs.records import RunRecords
from ddpm_lib.runs.run_status import RunStatus
from ddpm_lib.runs.verdict import (
    GOES_WELL,
    KINDS,
    Evidence,
    Finding,
    Readings,
    Verdict,
    judge,
    judge_readings,
    row_note,
    words,
)
from ddpm_lib.runs.verdict.curve_rules import LEAST_FALL
from ddpm_lib.runs.verdict.judging import EXPLAINS, RULES
from ddpm_lib.runs.verdict.proposals import CURES
from ddpm_lib.runs.verdict.sentences import NAMES, TEMPLATES, sentence

Row = dict[str, Any]

FINE = {
    "mean": [0.5, 0.6, 0.4],
    "std": [0.2, 0.2, 0.2],
    "mean_spread": [0.08, 0.08, 0.08],
    "levels": 250,
    "black": 0.01,
    "white": 0.02,
    "class_names": ["a", "b"],
    "classes_used": True,
}
"""Data of about.json that are as they should be."""


def rows(
    loss: Callable[[float], float],
    *,
    held_out: Callable[[float], float] | None = None,
    rate: Callable[[float], float] = lambda x: 1e-3,
    scatter: float = 0.001,
    n: int = 40,
    seed: int = 0,
    **more: Callable[[float], float],
) -> list[Row]:
    """Rows of a run of 100·n steps; curves are functions of the share that is done, in (0, 1]."""
    noise = random.Random(seed)
    found = []
    for k in range(1, n + 1):
        x = k / n
        row: Row = {
            "step": 100 * k,
            "images": 3200 * k,
            "loss": loss(x) * (1 + 5 * scatter * noise.gauss(0, 1)),
            "grad_norm": 0.1,
            "learning_rate": rate(x),
            "images_per_second": 100.0,
        }
        if k % 2 == 0:
            value = (held_out or loss)(x) * (1 + scatter * noise.gauss(0, 1))
            train = loss(x)
            row |= {"val_loss": value, "val_loss_error": 0.002, "train_fixed_loss": train}
            row |= {"val_gap": value - train, "val_gap_error": 0.0005, "val_loss_model": value}
        if k % 8 == 0:
            row |= {"sample_n": 16, "sample_copies": 0.0, "sample_copies_p": 1.0}
            row |= {"sample_spread": 0.9, "sample_grain": 0.9}
            row |= {f"sample_mean_{c}": m for c, m in enumerate(FINE["mean"])}
        found.append(row | {name: curve(x) for name, curve in more.items() if name in row})
    return found


def of_one_held_out_image(found: list[Row]) -> list[Row]:
    """Of one image no error is known."""
    return [{k: v for k, v in row.items() if not k.startswith("val_gap")} for row in found]


def verdict(found: list[Row], trivial: float = 0.5, word: str = "finished", **data: Any) -> Verdict:
    return judge_readings(Readings(found, {**FINE, **data}, trivial, word))


def falling(x: float) -> float:
    return 0.02 + 0.3 * math.exp(-3 * x)


def settled(x: float) -> float:
    return 0.04 + 0.3 * math.exp(-40 * x)


def cosine(x: float) -> float:
    return 1e-3 * 0.5 * (1 + math.cos(math.pi * x))


def wsd(x: float) -> float:
    return 1e-3 * (1 - math.sqrt(max(0.0, x - 0.8) / 0.2))


def decayed(x: float) -> float:
    """Falls while the rate is high, and no more when it has gone."""
    return 0.03 + 0.1 * max(0.0, 0.75 - x)


def late(x: float) -> float:
    """0 to the middle of a run, then 1."""
    return float(x > 0.5)


SHORT = (
    *(0.1285, 0.0713, 0.0556, 0.0517, 0.0468, 0.0466, 0.0443, 0.0438, 0.0420, 0.0420),
    *(0.0408, 0.0408, 0.0395, 0.0407, 0.0387, 0.0391, 0.0395, 0.0396, 0.0398, 0.0395),
)
"""Held-out losses of 60 emoji in ten minutes, whose samples are blobs still."""


def short(x: float) -> float:
    return SHORT[max(0, math.ceil(20 * x - 1e-9) - 1)]


COOLED = (0.05790, 0.05160, 0.04875, 0.04752, 0.04722, 0.04716, 0.04712, 0.04707)
"""Held-out losses of SYSU-Shape in five minutes, the last two in the cool-down: three times as many
steps end 8 % lower.
"""


def sparse(losses: Sequence[float]) -> list[Row]:
    """Rows of a run with wsd, which validated so seldom."""
    found = rows(lambda x: 0.04, rate=wsd, scatter=0.0)
    every = len(found) // len(losses)
    found = [{k: v for k, v in row.items() if not k.startswith("val_")} for row in found]
    for row, value in zip(found[every - 1 :: every], losses):
        row |= {"val_loss": value, "val_loss_error": 0.0035}
    return found


CASES: dict[str, tuple[str, list[Row], dict[str, Any]]] = {
    "falls": ("learning", rows(falling), {}),
    "falls at a decayed rate": ("learning", rows(falling, rate=cosine), {}),
    "flat": ("flat", rows(settled), {}),
    "flat, and was before the rate decayed": ("flat", rows(settled, rate=cosine), {}),
    "flat since the rate has decayed": ("flat_rate", rows(decayed, rate=cosine), {}),
    "flat since the rate has decayed, of a short run": (
        "flat_rate",
        rows(short, rate=cosine, scatter=0.0),
        {},
    ),
    "flat before the rate decayed, of a short run": (
        "flat",
        rows(lambda x: short(min(1.0, 3 * x)), rate=cosine, scatter=0.0),
        {},
    ),
    "falls, also as the rate is cooled down": ("learning", rows(falling, rate=wsd), {}),
    "falls as the rate is cooled down alone": (
        "flat",
        rows(lambda x: 0.04 * (1 - max(0.0, x - 0.8) / 2), rate=wsd),
        {},
    ),
    "no more as the rate is cooled down": (
        "flat_rate",
        rows(lambda x: 0.03 + 0.03 * max(0.0, 0.8 - x), rate=wsd),
        {},
    ),
    "no more as the rate is cooled down, of a short run": ("flat_rate", sparse(COOLED), {}),
    "flat before the rate is cooled down, and after": ("flat", rows(settled, rate=wsd), {}),
    "held-out loss rises": (
        "overfitting",
        rows(falling, held_out=lambda x: max(falling(x), 0.08 + 0.05 * (x - 0.5))),
        {},
    ),
    "gap opens while the held-out loss is flat": (
        "overfitting",
        rows(lambda x: 0.08 - 0.03 * x, held_out=lambda x: 0.08),
        {},
    ),
    "not below the mean image": ("noise", rows(lambda x: 0.6 - 0.05 * x), {}),
    "copies": ("copying", rows(falling, sample_copies_p=lambda x: 1e-6), {}),
    "copies since the middle": (
        "copying",
        rows(settled, sample_copies_p=lambda x: 1e-6 if x > 0.5 else 1.0),
        {},
    ),
    "held-out and training loss are several times apart, of one image": (
        "overfitting",
        of_one_held_out_image(rows(falling, held_out=lambda x: 0.3 - 0.1 * x)),
        {},
    ),
    "one held-out image is harder than the others, and stays so": (
        "learning",
        of_one_held_out_image(rows(falling, held_out=lambda x: 3 * falling(x))),
        {},
    ),
    "many samples are copies, and the losses apart, of one image": (
        "copying",
        of_one_held_out_image(
            rows(
                falling,
                held_out=lambda x: 0.3 - 0.1 * x,
                sample_copies=lambda x: 0.4,
                sample_copies_p=lambda x: 0.2,
            )
        ),
        {},
    ),
    "most of few samples are copies, twice": (
        "copying",
        rows(
            settled,
            sample_copies_p=lambda x: 0.01 if x > 0.7 else 1.0,
            sample_copies=lambda x: 0.6 if x > 0.7 else 0.0,
        ),
        {},
    ),
    "some of few samples are copies": (
        "flat",
        rows(settled, sample_copies_p=lambda x: 0.01, sample_copies=lambda x: 0.3),
        {},
    ),
    "one grid of copies long ago": (
        "learning",
        rows(falling, sample_copies_p=lambda x: 1e-6 if x < 0.3 else 1.0),
        {},
    ),
    "loss explodes": ("unstable", rows(lambda x: falling(x) + late(x) * 9), {}),
    "loss jumps again and again": (
        "unstable",
        rows(lambda x: falling(x) * (9 if round(40 * x) % 9 == 0 else 1), scatter=0.0),
        {},
    ),
    "weights jump about and learn nothing": (
        "unstable",
        rows(lambda x: 0.9, val_loss_model=lambda x: 0.9 + 0.2 * (round(20 * x) % 3)),
        {},
    ),
    "one channel off": ("colour_cast", rows(falling, sample_mean_2=lambda x: 0.6), {}),
    "one channel a little off": ("learning", rows(falling, sample_mean_2=lambda x: 0.44), {}),
    "one grid off": (
        "learning",
        rows(falling, sample_mean_2=lambda x: 0.6 if x > 0.9 else 0.4),
        {},
    ),
    "average stays behind": (
        "dead_average",
        rows(falling, held_out=lambda x: 0.3 - 0.01 * x, val_loss_model=falling),
        {},
    ),
    "average a little behind": (
        "learning",
        rows(falling, held_out=lambda x: falling(x - 0.1), val_loss_model=falling),
        {},
    ),
    "samples alike at the end": ("collapsed", rows(settled, sample_spread=lambda x: 0.1), {}),
    "samples alike while it learns": ("learning", rows(falling, sample_spread=lambda x: 0.1), {}),
    "classes forgotten": ("classes_unused", rows(falling), {"classes_used": False}),
    "one class": ("learning", rows(falling), {"classes_used": False, "class_names": ["a"]}),
    "no classes": ("learning", rows(falling), {"classes_used": False, "class_names": None}),
    "masks of 0 and 1": (
        "wrong_range",
        rows(falling),
        {"mean": [0.001] * 3, "std": [0.0017] * 3, "levels": 2, "black": 0.7, "white": 0.0},
    ),
    "-1, 0 and 1 as bytes": (
        "wrong_range",
        rows(falling),
        {"mean": [0.3] * 3, "std": [0.45] * 3, "levels": 3, "black": 0.4, "white": 0.3},
    ),
    "black and white": (
        "learning",
        rows(falling),
        {"mean": FINE["mean"], "std": [0.45] * 3, "levels": 2, "black": 0.6, "white": 0.4},
    ),
    "a fall that noise may make": ("too_little", rows(falling, scatter=0.1, seed=3), {}),
    "two rows": ("too_little", rows(falling, n=2), {}),
    "nothing": ("too_little", [], {}),
}


@pytest.mark.parametrize("name", CASES)
def test_the_kind_follows_from_the_rows(name: str) -> None:
    kind, found, data = CASES[name]
    assert verdict(found, **data).kind == kind


@pytest.mark.parametrize("name", CASES)
def test_every_verdict_has_words_with_numbers(name: str) -> None:
    _, found, data = CASES[name]
    told = verdict(found, **data)
    lines = words(told)
    assert lines[0].startswith(NAMES[told.kind])
    assert len(lines) >= 1 + len(told.evidence)
    assert told.evidence
    for line in lines:
        assert not line[0].islower() or line is lines[0]
        assert line.endswith(".")
        assert "nan" not in line.split()
        assert "None" not in line


def test_since_is_the_first_step_of_it() -> None:
    told = verdict(CASES["copies since the middle"][1])
    assert told.since == 2400  # the first grid after the middle
    told = verdict(CASES["held-out loss rises"][1])
    assert told.since is not None
    assert 1900 <= told.since <= 2600
    told = verdict(CASES["average stays behind"][1])
    assert told.since == 200
    told = verdict(CASES["loss explodes"][1])
    assert told.since is not None
    assert 1500 <= told.since <= 2100


def test_a_fault_hides_what_it_brings_along_and_nothing_else() -> None:
    found = rows(settled, sample_copies_p=lambda x: 1e-9, sample_mean_0=lambda x: 0.9)
    told = verdict(found, classes_used=False)
    assert told.kind == "copying"
    assert [one.kind for one in told.also] == ["colour_cast", "classes_unused"]
    assert told.has("colour_cast")
    assert not told.has("flat")


def test_a_run_that_ended_in_nan_is_unstable() -> None:
    r = Readings(rows(falling, n=4), FINE, 0.5, "failed", "DivergedError: The loss is not finite")
    assert judge_readings(r).kind == "unstable"
    r = Readings(rows(falling, n=4), FINE, 0.5, "failed", "OSError: DivergedError")
    assert judge_readings(r).kind == "learning"


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("scatter", [0.0, 1e-4, 1e-2])
def test_noise_of_the_curve_is_no_over_fitting_and_no_learning(seed: int, scatter: float) -> None:
    told = verdict(rows(settled, scatter=scatter, seed=seed))
    assert told.kind == "flat"


def test_a_flat_noisy_curve_is_seldom_called_anything_else() -> None:
    """The interval of the slope has 95 %, a fall must be of 1 %, and a rise stand out."""
    wrong = sum(
        verdict(rows(lambda x: 0.1, scatter=0.02, seed=seed)).kind != "flat" for seed in range(200)
    )
    assert wrong <= 6


def without_validations(found: list[Row]) -> list[Row]:
    return [
        {k: v for k, v in row.items() if k != "train_fixed_loss" and k[:3] != "val"}
        for row in found
    ]


@pytest.mark.parametrize("rate", [lambda x: 1e-3, cosine])
def test_a_training_loss_that_surely_rises_without_validations_is_not_flat(rate: Any) -> None:
    def turning(x: float) -> float:
        return 0.04 + 0.3 * math.exp(-12 * x) + 0.05 * max(0.0, x - 0.7)

    found = without_validations(rows(turning, rate=rate, scatter=0.001))
    told = verdict(found)
    assert told.kind == "unstable"
    assert not told.has("flat")
    assert not told.has("flat_rate")
    text = words(told)
    assert told.since == 3200
    assert text[0].startswith("unstable since step 3,200: training jumps, rises")
    assert any("Since step 3,200 the training loss rose by " in line for line in text)
    # The same curve of images that were held out is another matter.
    assert verdict(rows(turning, rate=rate)).kind == "overfitting"


def test_a_rise_that_may_be_chance_is_neither_flat_nor_unstable() -> None:
    flat = [
        verdict(without_validations(rows(lambda x: 0.04, scatter=0.01, seed=k))) for k in range(200)
    ]
    assert sum(told.has("unstable") for told in flat) <= 2
    for told in flat:
        rose = [e for e in told.evidence if e.name == "fall" and e.value <= -LEAST_FALL]
        assert told.kind != "flat" or not any(e.value < -1.96 * e.error for e in rose)


@pytest.mark.parametrize("lost", ["val", "sample", "data", "rate", "trivial"])
@pytest.mark.parametrize("name", ["falls", "flat", "copies", "classes forgotten"])
def test_what_is_missing_is_said_and_nothing_is_made_up(name: str, lost: str) -> None:
    _, found, data = CASES[name]
    gone = {"val": ("val_", "train_fixed"), "sample": ("sample_",), "rate": ("learning_rate",)}
    kept = [
        {k: v for k, v in row.items() if not k.startswith(gone.get(lost, ("\0",)))} for row in found
    ]
    facts = {} if lost == "data" else {**FINE, **data}
    r = Readings(kept, facts, None if lost in ("data", "trivial") else 0.5, "finished")
    told = judge_readings(r)
    named = {"val": "validation", "sample": "samples", "data": "data"}
    assert told.unknown == ((named[lost],) if lost in named else ())
    assert words(told)[-1].startswith("Not known is") == bool(told.unknown)
    if lost == "val" and name in ("falls", "flat"):
        assert told.evidence[0].text == "loss"


@pytest.mark.parametrize("value", [None, math.nan, math.inf, "0.1", True, [0.1]])
def test_values_that_are_no_numbers_are_passed_over(value: Any) -> None:
    found = rows(falling)
    spoilt = [
        {**row, **{k: value for k in row if k != "step" and i % 3 == 0}}
        for i, row in enumerate(found)
    ]
    assert verdict(spoilt).kind == verdict(found).kind == "learning"


def test_long_runs_are_judged_by_all_of_their_rows() -> None:
    """Slopes of all pairs of 20,000 points would take hours."""
    assert verdict(rows(falling, n=20_000)).kind == "learning"


def test_tables_agree_with_each_other() -> None:
    assert set(NAMES) == set(KINDS)
    assert set(KINDS) > GOES_WELL
    assert set(CURES) | {"wrong_range"} == set(KINDS)
    assert {*EXPLAINS, *itertools.chain(*EXPLAINS.values())} <= set(KINDS)
    assert len(RULES) == len(set(RULES))
    for cause, effects in EXPLAINS.items():
        assert not any(cause in EXPLAINS.get(effect, ()) for effect in effects), "a circle"
    for name in TEMPLATES:
        assert sentence(Evidence(name, 0.1, 0.01, 2.0, 3, "val_loss")).endswith(".")


def test_a_verdict_is_frozen_and_hashable_values() -> None:
    told = Verdict("flat", 3, (Evidence("fall", 0.1),), (Finding("classes_unused"),))
    assert hash(told) == hash(dataclasses.replace(told))


def test_records_without_anything_are_too_little() -> None:
    told = judge(RunRecords(Path("runs/none"), RunStatus("none")))
    assert (told.kind, told.unknown) == ("too_little", ("validation", "samples", "data"))


@pytest.mark.parametrize(
    ("values", "note"),
    [
        ([], ""),
        ([0.5], ""),
        ([0.5, 0.4], "best"),
        ([0.5, 0.4, 0.3, 0.2], "best, falling (−86 % in 300 steps)"),
        ([0.5, 0.4, 0.41, 0.40, 0.41, 0.4, 0.41], "flat"),
        ([0.2, 0.3, 0.4, 0.5], "rising (+86 % in 300 steps)"),
        ([0.4, 0.3999, 0.3998, 0.3997], "best, flat"),
    ],
)
def test_notes_of_rows(values: list[float], note: str) -> None:
    found = [{"step": 100 * (k + 1), "val_loss": value} for k, value in enumerate(values)]
    assert row_note(found) == note


def test_copies_that_an_evaluation_alone_finds_are_not_said_to_be_found_too() -> None:
    scores = [{"name": "copies_pixels_train_64/p", "value": 1e-6}]
    r = Readings(rows(falling), FINE, 0.5, "finished", evaluations=[{"scores": scores}])
    told = judge_readings(r)
    assert told.kind == "copying"
    assert words(told)[1] == ("The last evaluation finds copies: by chance with probability 1e-06.")


def test_a_note_is_about_the_newest_row() -> None:
    found = [{"step": k, "val_loss": 1 / k} for k in range(1, 9)]
    assert row_note(found).startswith("best, falling")
    assert row_note([*found, {"step": 9, "loss": 3.0}]) == ""
    assert row_note([{**found[0], "sample_copies_p": 1e-4}]) == "copying"


def test_judging_loads_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from ddpm_lib.runs.records import read_records;"
        "from ddpm_lib.runs.verdict import *;"
        f"records = read_records(Path({str(tmp_path)!r})); told = judge(records);"
        "words(told), next_steps(records, told), plain(told);"
        "assert not {'torch', 'numpy', 'scipy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
