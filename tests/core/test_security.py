"""Hostile files and names: nothing in them is run, and nothing is written where it should not
be.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle  # noqa: TID251 - what an attacker sends
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from checkpoint_tools import newest, rehash
from ddpm_lib.cli import main
from ddpm_lib.data import BadImagesError, open_dataset
from ddpm_lib.runs.checkpoint import newest_complete, verify
from ddpm_lib.training import CheckpointError, load_run
from ddpm_lib.training.sources import data_name
from ddpm_lib.training.stopping import slurm_end_time
from training_helpers import tiny_diffusion, tiny_trainer

HTML = "<img src=x onerror=alert(1)>"


class Evil:
    """Unpickling it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = str(mark)

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (f"touch {self.mark}",))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("hostile") / "run"
    tiny_trainer(run, tiny_diffusion(dim=4, dim_mults=(1,)), max_steps=1).train()
    return run


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        "ema.safetensors",
        "optimizer.safetensors",
        "state.json",
        "manifest.json",
    ],
)
def test_a_pickle_in_every_file_of_a_checkpoint(run: Path, tmp_path: Path, name: str) -> None:
    """Neither loading nor resuming runs it, although the hashes fit."""
    (newest(run) / name).write_bytes(pickle.dumps(Evil(tmp_path / "ran")))
    if name != "manifest.json":
        rehash(newest(run))
    for weights in ("model", "ema"):
        if name.split(".")[0] not in ("optimizer", *({"model", "ema"} - {weights})):
            with pytest.raises(CheckpointError, match=name.split(".")[0]):
                load_run(run, weights=weights)
    with pytest.raises(
        CheckpointError, match=name.split(".")[0] if name != "manifest.json" else "None of the 1"
    ):
        tiny_trainer(run, tiny_diffusion(dim=4, dim_mults=(1,))).train()
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.pt", "a.pkl", "a.parquet", "a.zip"])
def test_a_pickle_as_data(tmp_path: Path, name: str) -> None:
    evil = np.array([Evil(tmp_path / "ran")], dtype=object)
    if name == "a.npy":
        np.save(tmp_path / name, evil, allow_pickle=True)
    elif name == "a.npz":
        np.savez(tmp_path / name, arr_0=evil)
    else:
        (tmp_path / name).write_bytes(pickle.dumps(evil))
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        open_dataset(tmp_path / name, image_size=8)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["../../outside", "/etc/hostname", "a/../../b", "..", ""])
def test_a_manifest_that_leads_out_of_its_directory(run: Path, name: str) -> None:
    file = newest(run) / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest["files"][name] = {"bytes": 0, "sha256": hashlib.sha256(b"").hexdigest()}
    file.write_text(json.dumps(manifest))
    (run.parent / "outside").touch()
    with pytest.raises(CheckpointError, match="is missing"):
        verify(newest(run))


def test_a_checkpoint_that_is_a_link_out_is_only_read(run: Path, tmp_path: Path) -> None:
    """Removing old checkpoints removes the link, not what it leads to."""
    precious = tmp_path / "precious"
    shutil.copytree(newest(run), precious)
    (run / "checkpoints" / "step-000000000").symlink_to(precious)
    tiny_trainer(
        run, tiny_diffusion(dim=4, dim_mults=(1,)), max_steps=4, save_every=1, keep_last=2
    ).train()
    assert (precious / "model.safetensors").is_file()
    assert newest_complete(run / "checkpoints", pytest.fail) is not None


@pytest.mark.parametrize("name", ["os.system", "ddpm_lib.cli.main", "__import__", "../Unet", HTML])
def test_a_state_that_names_other_classes(run: Path, name: str) -> None:
    file = newest(run) / "state.json"
    state = json.loads(file.read_text())
    state["model"]["class"] = name
    file.write_text(json.dumps(state))
    rehash(newest(run))
    with pytest.raises(CheckpointError, match="which is not registered here"):
        load_run(run)


@pytest.mark.parametrize("part", ["model", "diffusion"])
def test_a_state_with_strange_arguments(run: Path, part: str) -> None:
    file = newest(run) / "state.json"
    state = json.loads(file.read_text())
    (state["model"]["config"] if part == "model" else state["diffusion"])["__class__"] = "x"
    file.write_text(json.dumps(state))
    rehash(newest(run))
    with pytest.raises(
        CheckpointError,
        match=r"state\.json describes nothing that this version can build \(TypeError",
    ):
        load_run(run)


def test_hostile_names_of_files_and_classes(tmp_path: Path) -> None:
    """They are data: shown escaped, never part of a path that is written to."""
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    for name in (HTML, "$(touch ran)", "a\nb", "..%2f"):
        (tmp_path / "images" / name).mkdir(parents=True)
        Image.fromarray(pixels).save(tmp_path / "images" / name / f"{HTML}.png")
    before = sorted(p for p in tmp_path.rglob("*"))
    data = open_dataset(tmp_path / "images", image_size=8)
    assert "a\\nb" in (data.class_names or ())
    options = [
        "--image-size",
        "8",
        "--max-steps",
        "1",
        "--batch-size",
        "2",
        "--model.dim",
        "8",
        "--model.dim-mults",
        "1",
        "2",
    ]
    options += [
        "--sample-every",
        "0",
        "--val-every",
        "0",
        "--device",
        "cpu",
        "--no-progress",
        "--class-conditional",
    ]
    options += ["--model.attention-levels", "1", "--model.blocks-per-level", "1"]
    assert (
        main(["train", str(tmp_path / "images"), *options, "--output-dir", str(tmp_path / "run")])
        == 0
    )
    drawn = [
        "-n",
        "1",
        "--num-steps",
        "1",
        "--device",
        "cpu",
        "--no-progress",
        "--class-label",
        "$(touch ran)",
    ]
    assert (
        main(["sample", str(tmp_path / "run"), *drawn, "--output-dir", str(tmp_path / "drawn")])
        == 0
    )
    made = {p for p in tmp_path.rglob("*") if tmp_path / "run" not in p.parents} - set(before)
    assert {p.relative_to(tmp_path).parts[0] for p in made} == {"run", "drawn"}
    assert not any(ch in p.name for p in made for ch in "<>$\n")


@pytest.mark.parametrize(
    ("given", "name"),
    [(f"x/{HTML}", "img-src-x-onerror-alert-1"), ("../..//;rm -rf x", "rm--rf-x"), ("..", None)],
)
def test_run_directories_have_plain_names(given: str, name: str | None) -> None:
    made = data_name(given)
    assert name is None or made == name
    assert made
    assert not set(made) - set("abcdefghijklmnopqrstuvwxyz0123456789._-")
    assert made[0] != "."


def test_job_numbers_are_numbers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What goes to squeue is checked, and goes there without a shell."""
    monkeypatch.setenv("SLURM_JOB_ID", f"1; touch {tmp_path}/ran")
    assert slurm_end_time() is None
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "data",
    [
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%touch ran) (w) file\n",
        b"8BPS\0\1" + b"\0" * 20,
    ],
)
def test_decoders_that_run_programs_are_not_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(BadImagesError):
        open_dataset(tmp_path, image_size=8)
    assert not (tmp_path / "ran").exists()


def test_limits_of_pillow_stay_as_they_are(tmp_path: Path) -> None:
    before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    open_dataset(tmp_path, image_size=8)
    assert before == (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)
    assert before[0] is not None
    assert not before[1]


def test_archives_are_never_unpacked(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("../escaped.png", b"x")
    with pytest.raises(BadImagesError, match=r"escaped\.png: a text file, not a picture"):
        open_dataset(tmp_path / "a.zip", image_size=8)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.zip"]
    assert not (tmp_path.parent / "escaped.png").exists()
