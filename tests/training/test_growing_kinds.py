"""Runs that go on with more data of every kind: measured values, archives, objects of Python."""

from __future__ import annotations

import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_lib import Trainer, load_run, open_dataset
from ddpm_lib.training import ConfigError
from training_helpers import (
    StopAt,
    assert_same_tensors,
    curve,
    final_tensors,
    tiny_diffusion,
    tiny_trainer,
)


def values(n: int, seed: int, channels: int = 2) -> np.ndarray:
    """Measured values (n, c, 8, 8): temperatures in kelvin, say."""
    of = np.random.default_rng(seed)
    return (280 + 10 * of.standard_normal((n, channels, 8, 8))).astype(np.float32)


def npy(where: Path, n: int, seed: int) -> str:
    file = where / f"values-{seed}.npy"
    np.save(file, values(n, seed))
    return str(file)


def npy_folder(where: Path, n: int, seed: int) -> str:
    folder = where / f"folder-{seed}"
    folder.mkdir()
    for k, one in enumerate(values(n, seed)):
        np.save(folder / f"{k:03d}.npy", one)
    return str(folder)


def tiff16(where: Path, n: int, seed: int) -> str:
    folder = where / f"tiff-{seed}"
    folder.mkdir()
    of = np.random.default_rng(seed)
    for k in range(n):
        Image.fromarray(of.integers(900, 1100, (8, 8)).astype(np.uint16)).save(
            folder / f"{k:03d}.tif"
        )
    return str(folder)


def pictures(where: Path, n: int, seed: int) -> str:
    folder = where / f"pictures-{seed}"
    folder.mkdir()
    of = np.random.default_rng(seed)
    for k in range(n):
        Image.fromarray(of.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(
            folder / f"{k:03d}.png"
        )
    return str(folder)


def zipped(where: Path, n: int, seed: int) -> str:
    folder = Path(pictures(where, n, seed))
    with zipfile.ZipFile(where / f"pictures-{seed}.zip", "w") as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, file.name)
    return str(where / f"pictures-{seed}.zip")


def tarred(where: Path, n: int, seed: int) -> str:
    folder = Path(pictures(where, n, seed))
    with tarfile.open(where / f"pictures-{seed}.tar", "w") as archive:
        for file in sorted(folder.iterdir()):
            archive.add(file, file.name)
    return str(where / f"pictures-{seed}.tar")


def bands(where: Path, n: int, seed: int) -> str:
    tifffile = pytest.importorskip("tifffile", reason="TIFF of several bands needs tifffile")
    folder = where / f"bands-{seed}"
    folder.mkdir()
    for k, one in enumerate(values(n, seed)):
        tifffile.imwrite(folder / f"{k:03d}.tif", one, photometric="minisblack")
    return str(folder)


def hdf5(where: Path, n: int, seed: int) -> str:
    h5py = pytest.importorskip("h5py", reason="HDF5 needs h5py")
    with h5py.File(where / f"values-{seed}.h5", "w") as file:
        file["temperature"] = values(n, seed)
    return f"{where / f'values-{seed}.h5'}:temperature"


def nifti(where: Path, n: int, seed: int) -> str:
    """A folder of volumes of two slices."""
    nibabel = pytest.importorskip("nibabel", reason="NIfTI needs nibabel")
    folder = where / f"scans-{seed}"
    folder.mkdir()
    of = np.random.default_rng(seed)
    for k in range(n // 2):
        scan = of.integers(-900, 900, (8, 8, 2)).astype(np.int16)
        nibabel.save(nibabel.Nifti1Image(scan, np.eye(4)), folder / f"{k:03d}.nii")
    return str(folder)


class Pixels(torch.utils.data.Dataset[torch.Tensor]):
    """A Dataset of one's own."""

    def __init__(self, images: np.ndarray) -> None:
        self.images = torch.from_numpy(images).permute(0, 3, 1, 2)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.images[index]


def own_dataset(where: Path, n: int, seed: int) -> Any:
    return Pixels(array(where, n, seed))


def array(where: Path, n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 8, 8, 3), dtype=np.uint8)


def opened(where: Path, n: int, seed: int) -> Any:
    return open_dataset(array(where, n, seed), image_size=8)


def opened_values(where: Path, n: int, seed: int) -> Any:
    return open_dataset(values(n, seed), image_size=8, channels=2, normalize="affine")


KINDS: dict[str, tuple[Callable[[Path, int, int], Any], dict[str, Any]]] = {
    "an array of measured values": (npy, {"normalize": "affine"}),
    "measured values by ranks": (npy, {"normalize": "quantile"}),
    "a folder of measured values": (npy_folder, {"normalize": "affine", "cache": "none"}),
    "16-bit TIFF": (tiff16, {"normalize": "affine"}),
    "TIFF of several bands": (bands, {"normalize": "affine"}),
    "HDF5": (hdf5, {"normalize": "affine"}),
    "slices of NIfTI": (nifti, {"normalize": "affine", "slice_axis": 2}),
    "an archive": (zipped, {}),
    "an archive of tar, streamed": (tarred, {"cache": "none"}),
    "a Dataset of one's own": (own_dataset, {}),
    "an array in Python": (array, {}),
    "an open set": (opened, {}),
    "an open set of measured values": (opened_values, {}),
}


def trainer(run: Path, kind: str, base: Any, more: Any, stop: int | None = None) -> Trainer:
    make, options = KINDS[kind]
    measured = "normalize" in options or make is opened_values
    channels = 1 if make in (tiff16, nifti) else 2 if measured else 3
    return tiny_trainer(
        run,
        tiny_diffusion(channels=channels),
        base,
        add_data=more,
        callbacks=[] if stop is None else [StopAt(stop)],
        **{"num_workers": 0, "val_every": 2, "val_fraction": 0.2, "save_every": 1} | options,
    )


@pytest.mark.every(2)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_data_grows_and_resumes_exactly(tmp_path: Path, kind: str) -> None:
    make, options = KINDS[kind]
    base, more, third = (make(tmp_path, n, seed) for seed, n in enumerate((20, 10, 6)))
    runs = tmp_path / "whole", tmp_path / "pieces"
    for run in runs:
        trainer(run, kind, base, (), stop=2).train()
    before = load_run(runs[0]).diffusion.normalization
    trainer(runs[0], kind, base, [more], stop=4).train()
    for stop in (3, 4):
        trainer(runs[1], kind, base, [more], stop=stop).train()
    for stop, run in ((None, runs[0]), (5, runs[1]), (None, runs[1])):
        last = trainer(run, kind, base, [more, third], stop=stop)
        last.train()
    assert last.step == 6
    assert len(last.held_out) + len(last.dataset) == 36
    assert_same_tensors(final_tensors(runs[0]), final_tensors(runs[1]))
    assert curve(runs[0]) == curve(runs[1])
    after = load_run(runs[0]).diffusion.normalization
    assert (after and after.to_json()) == (before and before.to_json())
    grown = load_run(runs[0]).run_state.trained_on.grown
    assert [(one["step"], len(one["added"])) for one in grown] == [(2, 1), (4, 1)]
    if "normalize" in options or make is opened_values:
        # What is added means the same as what was there: values come back in their units.
        assert before is not None
        raw = last.dataset.stored_values(range(len(last.dataset)))
        batch = last.dataset.batch(range(len(last.dataset)))["image"]
        shape = (1, -1, 1, 1)
        low, high = (np.reshape(ends, shape) for ends in (before.low, before.high))
        np.testing.assert_allclose(before.inverse(batch.numpy()), raw.clip(low, high), rtol=2e-2)
        log = (runs[0] / "train.log").read_text(encoding="utf-8")
        cut = bool(((raw < low) | (raw > high)).any())
        assert ("lie outside the range that the run began with" in log) == cut


def test_one_addition_needs_no_list(tmp_path: Path) -> None:
    base, more = pictures(tmp_path, 20, 0), pictures(tmp_path, 10, 1)
    for added in (more, Path(more), open_dataset(more, image_size=8)):
        run = trainer(tmp_path / "run", "an archive", base, added)
        run.prepare()
        assert len(run.dataset) + len(run.held_out) == 30


def test_what_does_not_fit_measured_values_is_refused(tmp_path: Path) -> None:
    base = npy(tmp_path, 20, 0)

    def refused(more: Any, message: str, of: Any = base) -> None:
        kind = "an array of measured values"
        with pytest.raises((ConfigError, ValueError), match=message):
            trainer(tmp_path / "run", kind, of, [more]).prepare()

    np.save(tmp_path / "other-type.npy", values(4, 3).astype(np.float64))
    refused(str(tmp_path / "other-type.npy"), r"add_data .*other-type\.npy: .*2 of float64")
    np.save(tmp_path / "three.npy", values(4, 3, channels=3))
    refused(str(tmp_path / "three.npy"), r"(?s)add_data .*three\.npy: .*has 3 or 8 channels")
    open_pictures = open_dataset(
        np.zeros((4, 8, 8, 1), np.uint8).repeat(3, 3), image_size=8, channels=3
    )
    refused(open_pictures, r"entries are \(3, 8, 8\)")
    in_celsius = open_dataset(values(4, 5), image_size=8, channels=2, normalize="affine")
    in_celsius.measured = {**in_celsius.measured, "unit": "°C"}
    refused(in_celsius, r"is in °C, and the training data in no unit\. Convert it")


def test_pictures_are_not_added_to_measured_values(tmp_path: Path) -> None:
    shape = (12, 3, 8, 8)
    measured = open_dataset(
        np.random.default_rng(0).standard_normal(shape).astype(np.float32),
        image_size=8,
        channels=3,
        normalize="affine",
    )
    plain = opened(tmp_path, 6, 1)
    options = {"num_workers": 0, "val_every": 0}
    for base, more, words in (
        (measured, plain, "holds pictures, and the training data measured values"),
        (plain, measured, "holds measured values, and the training data pictures"),
    ):
        with pytest.raises(ConfigError, match=words):
            tiny_trainer(tmp_path / "run", data=base, add_data=[more], **options).prepare()


def test_an_object_that_was_added_is_needed_again(tmp_path: Path) -> None:
    base, more = array(tmp_path, 20, 0), torch.from_numpy(array(tmp_path, 10, 1))
    kind, run = "an array in Python", tmp_path / "run"
    trainer(run, kind, base, (), stop=2).train()
    trainer(run, kind, base, [more.permute(0, 3, 1, 2)], stop=4).train()
    assert load_run(run).run_state.trained_on.grown[0]["added"] == [
        "<Tensor of 10, given in Python>"
    ]
    with pytest.raises(ConfigError, match=r"grown by <Tensor of 10, given in Python>"):
        trainer(run, kind, base, ()).prepare()
    with pytest.raises(ConfigError, match="was an object of Python, which a file cannot hold"):
        trainer(run, kind, base, ["<Tensor of 10, given in Python>"]).prepare()
