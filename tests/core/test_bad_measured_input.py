"""Bad measured values and conditions, through every entrance: a call in Python, a Trainer, a
command and a file of options. Each says what is wrong, what was got, and what to do.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch.utils.data import TensorDataset

from checkpoint_tools import rehash
from command_line import TINY, ddpm, error_of
from ddpm_lib import GaussianDiffusion, Unet, load_run
from ddpm_lib.core.errors import CheckpointError
from ddpm_lib.data import open_dataset
from ddpm_lib.evaluation import evaluate
from training_helpers import tiny_trainer

N = 12
RNG = np.random.default_rng(0)


def files(root: Path) -> None:
    """Twelve measured images, with a table and masks beside them."""
    for name in ("values", "masks"):
        (root / name).mkdir()
    rows = []
    for i in range(N):
        np.save(root / "values" / f"{i:02d}.npy", RNG.normal(280, 10, (2, 8, 8)).astype("f4"))
        Image.fromarray((np.arange(64).reshape(8, 8) % 3).astype(np.uint8)).save(
            root / "masks" / f"{i:02d}.png"
        )
        rows.append([f"{i:02d}.npy", i / 10])
    table(root, rows)


def table(root: Path, rows: list[list[Any]]) -> None:
    with open(root / "meta.csv", "w", newline="") as file:
        csv.writer(file).writerows([["file_name", "age"], *rows])


def missing_rows(root: Path) -> None:
    table(root, [[f"{i:02d}.npy", i] for i in range(N - 2)])


def nan_in_table(root: Path) -> None:
    table(root, [[f"{i:02d}.npy", "nan" if i == 3 else i] for i in range(N)])


def nan_in_array(root: Path) -> None:
    np.save(root / "code.npy", np.where(np.arange(2 * N).reshape(N, 2) == 9, np.nan, 1.0))


def short_array(root: Path) -> None:
    np.save(root / "code.npy", np.zeros((N - 1, 2)))


def large_mask(root: Path) -> None:
    Image.new("L", (16, 8)).save(root / "masks" / "05.png")


def double_mask(root: Path) -> None:
    Image.new("L", (16, 16)).save(root / "masks" / "05.png")


def lost_mask(root: Path) -> None:
    (root / "masks" / "05.png").unlink()


def nan_in_values(root: Path) -> None:
    np.save(root / "values" / "03.npy", np.full((2, 8, 8), np.nan, np.float32))


def other_type(root: Path) -> None:
    np.save(root / "values" / "03.npy", np.zeros((2, 8, 8), np.float64))


def other_channels(root: Path) -> None:
    np.save(root / "values" / "03.npy", np.zeros((3, 8, 8), np.float32))


def unchanged(root: Path) -> None:
    """Nothing: the words themselves are wrong."""


AGE, CODE, MASK = "age={root}/meta.csv:age", "code={root}/code.npy", "mask={root}/masks,classes=3"
CASES: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "wrong column": (unchanged, "age={root}/meta.csv:agee", r"Unknown column 'agee'.*'age'"),
    "no such table": (unchanged, "age={root}/lost.csv:age", r"there is .*lost\.csv"),
    "missing rows": (missing_rows, AGE, r"2 of 12 images, the first is image 10\.npy .no line"),
    "nan in a table": (nan_in_table, AGE, r"missing or NaN\) for 1 of 12 images.*03\.npy"),
    "nan in an array": (nan_in_array, CODE, r"1 of 12 images, the first is image 04\.npy"),
    "short array": (short_array, CODE, r"code\.npy has 11 entries for 12 images"),
    "mask of another size": (large_mask, MASK, r"05\.png: 16×8 pixels, its image has 8×8"),
    "mask of twice the size": (double_mask, MASK, r"05\.png: 16×16 pixels, its image has 8×8"),
    "mask that is lost": (lost_mask, MASK, r"has no picture for 1 of 12 images: 05\.(png|npy)"),
    "nan in values": (nan_in_values, AGE, r"03\.npy: 128 of 128 values are NaN or infinite"),
    "values of another type": (other_type, AGE, r"03\.npy: its values are float64.*float32"),
    "other channels": (other_channels, AGE, r"03\.npy: .*(channels|shape)"),
}


def in_python(root: Path, words: str) -> None:
    open_dataset(root / "values", image_size=8, channels=2, normalize="affine", conditions=(words,))


def by_trainer(root: Path, words: str) -> None:
    model = Unet(dim=8, dim_mults=(1,), blocks_per_level=1, channels=2)
    process = GaussianDiffusion(model, image_size=8, timesteps=20)
    where = str(root / "values")
    trainer = tiny_trainer(root / "run", process, where, normalize="affine", condition=(words,))
    trainer.train()


def command(root: Path, words: str) -> list[object]:
    said = ["--normalize", "affine", "--channels", 2, "--condition", words]
    return [root / "values", *said, *TINY, "--output-dir", root / "run"]


@pytest.mark.parametrize("entrance", ["python", "trainer", "command", "yaml"])
@pytest.mark.parametrize("case", CASES)
def test_every_entrance_names_what_is_wrong(
    case: str, entrance: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, written, message = CASES[case]
    files(tmp_path)
    words = written.format(root=tmp_path)
    if entrance == "yaml":  # written while all is well
        good = AGE.format(root=tmp_path)
        capsys.readouterr()
        assert ddpm("train", *command(tmp_path, good), "--print-config") == 0
        options = yaml.safe_load(capsys.readouterr().out)
        options["condition"] = [words]
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(options))
    spoil(tmp_path)
    if entrance in ("python", "trainer"):
        with pytest.raises((ValueError, OSError), match=f"(?s){message}"):
            (in_python if entrance == "python" else by_trainer)(tmp_path, words)
    else:
        given = command(tmp_path, words)
        said = error_of(
            capsys,
            "train",
            *(given if entrance == "command" else ["--config", tmp_path / "run.yaml"]),
        )
        with pytest.raises(ValueError, match=message):
            raise ValueError(said)
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("units")
    files(root)
    by_trainer(root, AGE.format(root=root))
    return root


def lose_units(run: Path) -> None:
    """Take the normalization out of every checkpoint, as an editor or a program would."""
    for checkpoint in (run / "checkpoints").iterdir():
        state = json.loads((checkpoint / "state.json").read_text())
        del state["data"]["normalization"]
        (checkpoint / "state.json").write_text(json.dumps(state))
        rehash(checkpoint)


ENTRANCES: dict[str, Callable[[Path, Path], object]] = {
    "load_run": lambda run, root: load_run(run),
    "evaluate": lambda run, root: evaluate(run, device="cpu", progress=False),
    "resume": lambda run, root: tiny_trainer(
        run,
        load_run(root / "run").diffusion,
        str(root / "values"),
        normalize="affine",
        condition=(AGE.format(root=root),),
        max_steps=9,
    ).train(),
}


@pytest.mark.parametrize("entrance", ENTRANCES)
def test_units_that_are_lost_are_missed(trained: Path, tmp_path: Path, entrance: str) -> None:
    shutil.copytree(trained / "run", tmp_path / "run")
    lose_units(tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"holds no normalization.*units"):
        ENTRANCES[entrance](tmp_path / "run", trained)


@pytest.mark.parametrize(
    "words",
    [
        ["sample", "{run}", "--num", "1"],
        ["evaluate", "{run}"],
        ["export", "{run}", "{run}-out", "--to", "safetensors"],
        ["push", "{run}", "a/b", "--dry-run", "{run}-push"],
    ],
    ids=lambda words: words[0],
)
def test_commands_miss_units_that_are_lost(
    trained: Path, tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained / "run", tmp_path / "run")
    lose_units(tmp_path / "run")
    said = error_of(capsys, *(word.format(run=tmp_path / "run") for word in words))
    assert "holds no normalization" in said
    assert "units" in said


@pytest.mark.parametrize("damage", ["kind", "levels"])
def test_a_folder_whose_units_are_damaged_is_none(
    trained: Path, tmp_path: Path, damage: str
) -> None:
    load_run(trained / "run").diffusion.save_pretrained(tmp_path / "folder")
    file = tmp_path / "folder" / "config.json"
    config = json.loads(file.read_text())
    config["normalization"][damage] = "cubic" if damage == "kind" else [[0.0, 0.0], [0.0, 1.0]]
    file.write_text(json.dumps(config))
    with pytest.raises((CheckpointError, ValueError), match=r"normalization is damaged"):
        GaussianDiffusion.from_pretrained(tmp_path / "folder")
    with pytest.raises((CheckpointError, ValueError), match=r"normalization is damaged"):
        evaluate(tmp_path / "folder", data=str(trained / "values"), metrics="values")


def test_masks_that_would_not_lie_on_their_images_are_refused(tmp_path: Path) -> None:
    """Parts are cut out of images, not of masks; of volumes a folder of pictures has no masks."""
    files(tmp_path)
    words = MASK.format(root=tmp_path)
    usual: dict[str, Any] = {"channels": 2, "normalize": "affine", "fit": "patch"}
    with pytest.raises(ValueError, match=r"'mask' \(mask\) would not lie on its image: fit=.patch"):
        open_dataset(tmp_path / "values", image_size=4, conditions=(words,), **usual)
    parts = open_dataset(tmp_path / "values", image_size=4, **usual)
    with pytest.raises(ValueError, match="would not lie on its image"):
        parts.with_conditions({"m": np.zeros((N, 4, 4), np.uint8)}, m={"kind": "mask"})
    volumes = RNG.normal(0, 1, (N, 1, 4, 4, 4)).astype("f4")
    np.save(tmp_path / "volumes.npy", volumes)
    solid: dict[str, Any] = {"image_size": (4, 4, 4), "channels": 1, "normalize": "affine"}
    with pytest.raises(ValueError, match=r"a folder of pictures, which have two dimensions"):
        open_dataset(tmp_path / "volumes.npy", conditions=(f"mask={tmp_path}/masks",), **solid)
    stack = open_dataset(tmp_path / "volumes.npy", **solid)
    with pytest.raises(ValueError, match=r"two dimensions; the data have 3.*slice_axis"):
        stack.with_conditions({"m": np.zeros((N, 4, 4), np.uint8)}, m={"kind": "mask"})


def float_sources(folder: Path) -> dict[str, Path]:
    """Write values that are no pixels in every form that both options take."""
    values = np.random.default_rng(0).normal(size=(12, 8, 8)).astype(np.float32) * 100
    np.save(folder / "array.npy", values)
    np.save(folder / "whole.npy", values.astype(np.int16))
    np.save(folder / "unit.npy", np.random.default_rng(1).random((12, 8, 8)))
    np.savez(folder / "images.npz", images=values)
    for kind in ("tiffs", "arrays"):
        (folder / kind).mkdir()
        for k, one in enumerate(values):
            if kind == "tiffs":
                Image.fromarray(one).save(folder / kind / f"{k:02d}.tif")
            else:
                np.save(folder / kind / f"{k:02d}.npy", one)
    names = ("array.npy", "whole.npy", "unit.npy", "images.npz", "tiffs", "arrays")
    return {name: folder / name for name in names}


@pytest.mark.parametrize(
    "form", ["array.npy", "whole.npy", "unit.npy", "images.npz", "tiffs", "arrays"]
)
def test_both_ways_of_reading_values_are_named_and_work(
    tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A range makes pixels of values, a normalization keeps them; the message knows both."""
    source = float_sources(tmp_path)[form]
    with pytest.raises(ValueError, match=r"--value-range .*--normalize affine") as caught:
        open_dataset(source, image_size=8, channels=1)
    assert 'normalize="affine"' in str(caught.value)
    said = error_of(capsys, "train", source, "--image-size", 8, "--channels", 1)
    assert "--value-range" in said
    assert "--normalize affine" in said
    assert open_dataset(source, image_size=8, channels=1, value_range=(-400, 400)).channels == 1
    measured = open_dataset(source, image_size=8, channels=1, normalize="affine")
    assert measured.normalization is not None


def test_where_no_normalization_serves_none_is_named(tmp_path: Path) -> None:
    np.save(tmp_path / "nan.npy", np.full((4, 8, 8), np.nan))
    with pytest.raises(ValueError, match="NaN") as caught:
        open_dataset(tmp_path / "nan.npy", image_size=8, channels=1)
    assert "normalize" not in str(caught.value)
    np.save(tmp_path / "bytes.npy", np.full((4, 8, 8), 200, np.int64))
    with pytest.raises(ValueError, match=r"save x\.astype") as caught:
        open_dataset(tmp_path / "bytes.npy", image_size=8, channels=1)
    assert "normalize" not in str(caught.value)
    with pytest.raises(TypeError, match="TensorDataset") as wrong:
        open_dataset(TensorDataset(torch.rand(4, 1, 8, 8)), image_size=8, channels=1)
    assert "normalize" not in str(wrong.value)


def test_other_numbers_of_channels_are_measured_values() -> None:
    with pytest.raises(ValueError, match=r"shape \(4, 8, 8, 7\).*--normalize affine"):
        open_dataset(np.zeros((4, 8, 8, 7), np.uint8), image_size=8)
