"""Run directories are no data: their pictures are samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from command_line import error_of, train
from ddpm_lib import GaussianDiffusion, Trainer, Unet, open_dataset
from ddpm_lib.core.errors import ConfigError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures, with a run beside them and another one a level deeper."""
    root = tmp_path_factory.mktemp("photos")
    for i in range(6):
        Image.fromarray(np.full((8, 8, 3), 20 * i, np.uint8)).save(root / f"{i}.png")
    for run in ("mine", "old/theirs"):
        assert train(root / "runs" / run) == 0
    assert (root / "runs/mine/samples").is_dir()
    return root


def test_pictures_in_runs_are_left_out(folder: Path) -> None:
    data = open_dataset(str(folder), image_size=8)
    assert sorted(data.names) == [f"{i}.png" for i in range(6)]
    assert any("runs/mine" in note and "samples" in note for note in data.notes)


@pytest.mark.parametrize("where", ["runs", "runs/old"])
def test_a_folder_of_runs_holds_nothing(folder: Path, where: str) -> None:
    with pytest.raises(
        FileNotFoundError, match="no pictures to train on; left out run directories"
    ):
        open_dataset(str(folder / where), image_size=8)


def test_a_run_is_no_data(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = folder / "runs" / "mine"
    wanted = "is a run directory: the pictures in it are samples, not data"
    with pytest.raises(FileNotFoundError, match=wanted):
        open_dataset(str(run), image_size=8)
    diffusion = GaussianDiffusion(Unet(dim=8, dim_mults=(1,)), image_size=8)
    with pytest.raises(ConfigError, match=wanted):
        Trainer(diffusion, run, output_dir=str(run))
    elsewhere = str(folder.parent / "elsewhere")
    validated_on_it = Trainer(diffusion, str(folder), val_data=run, output_dir=elsewhere)
    with pytest.raises(FileNotFoundError, match=wanted):
        validated_on_it.train()
    for words in (
        ("train", run, "--image-size", 8),
        ("train", run, "--image-size", 8, "--dry-run"),
        ("estimate", run, "--image-size", 8),
        ("evaluate", run, "--data", run),
    ):
        assert wanted in error_of(capsys, *words)


def test_samples_can_be_read_where_they_are_asked_for(folder: Path) -> None:
    assert len(open_dataset(str(folder / "runs/mine/samples"), image_size=8)) >= 1
