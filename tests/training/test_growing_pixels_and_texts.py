"""Runs whose conditions are masks, images and texts go on with more of them, also after a kill."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import run_growing
from ddpm_lib import load_run
from ddpm_lib.runs.checkpoint import list_checkpoints
from ddpm_lib.runs.stored_texts import read_texts
from run_growing import N, growing, write_sets
from training_helpers import assert_same_tensors, curve, final_tensors

KINDS = ("mask", "image", "text")


def values_of(data: Any) -> np.ndarray:
    found: np.ndarray = data.conditions["extra"].get(np.arange(len(data))).numpy()
    return found.reshape(len(data), -1)


@pytest.mark.parametrize("kind", KINDS)
def test_masks_images_and_texts_grow_and_resume_exactly(tmp_path: Path, kind: str) -> None:
    """Twice grown; cut off after each step and continued, the run is the same, bit for bit, and
    each image has its own value.
    """
    own = write_sets(tmp_path, kind)
    for run, stops in (
        ("whole", ((0, 2), (1, 4), (2, 6))),
        ("pieces", ((0, 1), (0, 2), (1, 3), (1, 4), (2, 5), (2, 6))),
    ):
        for added, stop in stops:
            last = growing(tmp_path, tmp_path / run, kind, added, stop)
            last.train()
            assert last.step == stop
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    assert_same_tensors(final_tensors(whole), final_tensors(pieces))
    assert curve(whole) == curve(pieces)
    assert len(load_run(pieces).run_state.trained_on.grown) == 2
    assert len(last.dataset) + len(last.held_out) == sum(N)
    found = values_of(last.dataset)
    added = np.concatenate([each.reshape(len(each), -1) for each in own[1:]])
    np.testing.assert_array_equal(found[-sum(N[1:]) :], added)
    first = {tuple(row) for row in own[0].reshape(N[0], -1)}
    held = {tuple(row) for row in values_of(last.held_out)}
    assert held | {tuple(row) for row in found[: -sum(N[1:])]} == first
    if kind == "text":
        known = read_texts(pieces)["extra"]
        assert len(known) == len({row.tobytes() for each in own for row in each})


@pytest.mark.every(3)
@pytest.mark.parametrize("kind", KINDS)
def test_a_kill_right_after_growth_is_recorded(tmp_path: Path, kind: str) -> None:
    """The first checkpoint that says so is there, and the process is gone: the same command goes
    on, as if nothing had happened.
    """
    write_sets(tmp_path, kind)
    begun, whole = tmp_path / "killed", tmp_path / "whole"
    for run in (begun, whole):
        growing(tmp_path, run, kind, 0, 2).train()
    growing(tmp_path, whole, kind, 1, 6).train()
    command = [sys.executable, run_growing.__file__, str(begun), kind, "1", "6"]
    paths = [*sys.path, os.environ.get("PYTHONPATH", "")]
    there = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    # Step 3 is saved, with the growth noted; step 4 is done, and never saved.
    killed = subprocess.run([*command, "4"], env=there, capture_output=True, check=False)
    assert killed.returncode == -9, killed.stderr.decode()[-2000:]
    assert [path.name[-1] for path in list_checkpoints(begun / "checkpoints")] == list("123")
    grown = load_run(begun).run_state.trained_on.grown
    assert len(grown) == 1
    subprocess.run(command, env=there, capture_output=True, check=True)
    assert load_run(begun).step == 6
    assert load_run(begun).run_state.trained_on.grown == grown, "it has grown once"
    assert_same_tensors(final_tensors(begun), final_tensors(whole))
    assert curve(begun) == curve(whole)
