"""Runs whose truth is known, trained, and what the verdict says of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from ddpm_lib.runs.records import read_records
from ddpm_lib.runs.verdict import judge, words
from prepared_runs import PREPARED, train

SEED = 1


@pytest.mark.slow
@pytest.mark.parametrize("name", PREPARED)
def test_the_verdict_of_a_prepared_run_is_right(name: str, tmp_path: Path) -> None:
    train(name, tmp_path / "run", SEED)
    told = judge(read_records(tmp_path / "run"))
    assert told.kind in PREPARED[name].kinds, words(told)
