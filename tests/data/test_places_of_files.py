"""Files of the same names, sizes and times elsewhere, folders beside archives, lists of lists."""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_lib.data import open_dataset
from ddpm_lib.data.auditing import audit
from ddpm_lib.data.measurements.value_survey import are_values
from ddpm_lib.data.survey import survey

LONG_AGO = (1_000_000_000, 1_000_000_000)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DDPM_LIB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, shape, dtype=np.uint8)


def pictures(folder: Path, seed: int = 0, n: int = 4, ending: str = "bmp") -> Path:
    folder.mkdir()
    for k in range(n):
        Image.fromarray(noise(seed + k, 8, 8, 3)).save(folder / f"{k}.{ending}")
    return folder


def as_of_old(*paths: Path) -> None:
    for path in paths:
        for file in [path, *path.rglob("*")]:
            os.utime(file, LONG_AGO)


def packed(path: Path, folder: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, file.name)
    return path


def sources(root: Path, kind: str) -> tuple[list[Any], dict[str, Any]]:
    """Two sets that differ in where they lie and in what they hold, and options to open them."""
    one, two = pictures(root / "one", 1), pictures(root / "two", 100)
    made: list[Any] = [one, two]
    options: dict[str, Any] = {"image_size": 8}
    if kind == "archives":
        made = [packed(root / "one.zip", one), packed(root / "two.zip", two)]
    elif kind == "lists of paths":
        made = [[str(path) for path in sorted(each.iterdir())] for each in (one, two)]
    elif kind == "lists of images":
        options["files"] = ["0.bmp", "2.bmp"]
    elif kind != "folders":
        options |= {"normalize": "affine", "channels": 1}
        arrays = [noise(seed, 4, 8, 8) for seed in (1, 2)]
        made = [root / "one.npy", root / "two.npy"]
        for path, array in zip(made, arrays):
            np.save(path, array)
        if kind == "folders of values":
            made = [root / "values-one", root / "values-two"]
            for path, array in zip(made, arrays):
                path.mkdir()
                for k, each in enumerate(array):
                    np.save(path / f"{k}.npy", each)
    as_of_old(root)
    return made, options


@pytest.mark.parametrize(
    "kind",
    ["folders", "archives", "lists of paths", "lists of images", "arrays", "folders of values"],
)
def test_what_is_remembered_is_of_one_place(kind: str, tmp_path: Path) -> None:
    """The mapped images and the check of a set are not those of another set, whose files have the
    same names, sizes and times: unpacked archives and images of a fixed date do.
    """
    made, options = sources(tmp_path, kind)
    for data in made:
        found = open_dataset(data, cache="disk", **options)
        held = open_dataset(data, cache="ram", **options)
        every = range(len(found))
        assert torch.equal(found.batch(every)["image"], held.batch(every)["image"])
        assert found.fingerprint == held.fingerprint
    if kind in ("arrays", "folders of values"):
        return
    checked = [
        open_dataset(data, cache="none", scan_file="scan.json", **options).fingerprint
        for data in made
    ]
    assert checked[0] != checked[1]
    assert len([*(tmp_path / "cache" / "images").iterdir()]) == 2


def test_a_folder_by_another_way_is_the_same(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "one")
    (tmp_path / "link").symlink_to(folder)
    for data in (folder, "one", "one/", "link", tmp_path / "one" / ".." / "one"):
        open_dataset(data, image_size=8, cache="disk")
    assert len([*(tmp_path / "cache" / "images").iterdir()]) == 1


def test_a_zarr_store_that_is_written_to(tmp_path: Path) -> None:
    """Its chunks change, and the folder of the store does not."""
    zarr = pytest.importorskip("zarr")
    values = noise(0, 4, 8, 8)
    store = zarr.open_group("s.zarr", mode="w")
    array = store.create_array("images", shape=values.shape, chunks=(1, 8, 8), dtype="uint8")
    array[:] = values
    way: dict[str, Any] = {"image_size": 8, "channels": 1, "normalize": "affine"}
    before = open_dataset("s.zarr", cache="disk", **way)
    times = (tmp_path / "s.zarr").stat()
    array[:] = values[::-1]
    os.utime(tmp_path / "s.zarr", ns=(times.st_atime_ns, times.st_mtime_ns))
    after = open_dataset("s.zarr", cache="disk", **way)
    assert torch.equal(before.batch([0, 1])["image"], after.batch([3, 2])["image"])


@pytest.mark.parametrize("kind", ["folder", "archive", "paths", "npy", "values", "arrays"])
def test_relative_paths_after_a_change_of_directory(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures(tmp_path / "one")
    packed(tmp_path / "one.zip", tmp_path / "one")
    np.save("one.npy", noise(0, 4, 8, 8))
    (tmp_path / "values").mkdir()
    for k in range(4):
        np.save(f"values/{k}.npy", noise(k, 8, 8, 3))
    data: Any = {"folder": "one", "archive": "one.zip", "npy": "one.npy"}.get(kind, "values")
    options: dict[str, Any] = {}
    if kind in ("npy", "values"):
        options = {"normalize": "affine", "channels": 1 if kind == "npy" else 3}
    if kind == "paths":
        data = [f"one/{k}.bmp" for k in range(4)]
    opened = open_dataset(data, image_size=8, cache="none", num_workers=0, **options)
    before = opened.batch(range(4))["image"]
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert torch.equal(opened.batch(range(4))["image"], before)


def test_an_empty_path_is_no_folder() -> None:
    with pytest.raises(ValueError, match="no path in this row"):
        open_dataset(["", ""], image_size=8)


def test_values_beside_an_archive(tmp_path: Path) -> None:
    """The files of a folder are the set, as with pictures; archives alone are one as well."""
    for name in ("values", "alone"):
        (tmp_path / name).mkdir()
    for k in range(5):
        np.save(f"values/{k}.npy", noise(k, 8, 8))
    packed(tmp_path / "alone" / "old.zip", tmp_path / "values")
    way: dict[str, Any] = {"image_size": 8, "channels": 1, "normalize": "affine"}
    alone = open_dataset("alone", **way)
    np.save("values/5.npy", noise(5, 8, 8))
    shutil.copy("alone/old.zip", "values/old.zip")
    both = open_dataset("values", **way)
    assert (len(alone), len(both)) == (5, 6)
    assert any("left out 1 archive beside the files" in note for note in both.notes)


@pytest.mark.parametrize("ending", ["jpg", "png"])
def test_photos_beside_other_files_are_photos(ending: str, tmp_path: Path) -> None:
    """A depth map or the mean of a set in a folder of photos makes no measured values of them."""
    folder = pictures(tmp_path / "photos", ending=ending)
    np.savez(folder / "-statistics.npz", mean=noise(0, 8, 8).astype(np.float32))
    Image.fromarray(noise(0, 8, 8).astype(np.uint16) * 200).save(folder / "00-depth.png")
    assert not are_values("photos")
    assert survey("photos").values is None
    (tmp_path / "depths").mkdir()
    for k in range(4):
        Image.fromarray(noise(k, 8, 8).astype(np.uint16) * 200).save(f"depths/{k}.png")
    assert are_values("depths")
    np.savez("depths/-statistics.npz", mean=np.zeros(3))
    assert are_values("depths"), "one file that is none does not decide"


def test_conditions_of_a_part_lie_where_those_of_the_whole_do(tmp_path: Path) -> None:
    """A table in the folder of the data, and names by its folder, for a list of images as well."""
    folder = pictures(tmp_path / "one")
    rows = "".join(f"one/{k}.bmp,{k}\n" for k in range(4))
    (folder / "facts.csv").write_text("file_name,age\n" + rows)
    for files in (None, ["1.bmp", "3.bmp"]):
        data = open_dataset(folder, image_size=8, files=files, conditions="age=facts.csv:age")
        wanted = [0, 1, 2, 3] if files is None else [1, 3]
        assert data.conditions["age"].values.tolist() == wanted


def list_of(path: str, names: list[str], groups: dict[int, str]) -> str:
    """Write a list of images, some of them in groups."""
    lines = [name + (f"\tgroup={groups[k]}" if k in groups else "") for k, name in enumerate(names)]
    Path(path).write_text("\n".join(lines) + "\n")
    return path


def test_groups_outlive_an_audit(tmp_path: Path) -> None:
    """A list of patients is audited, and its patients stay together in the list that it makes."""
    pictures(tmp_path / "one", n=24, ending="png")
    shutil.copy("one/0.png", "one/20.png")
    names = [f"{k}.png" for k in range(24)]
    listed = list_of("patients.txt", names, {k: f"p{k // 2}" for k in range(20)})
    found = audit("one", files=listed, num_workers=0)
    found.save_list("keep.txt", drop=["unreadable"])
    before = open_dataset("one", image_size=8, files=listed).groups
    data = open_dataset("one", image_size=8, files="keep.txt")
    assert before is not None
    assert data.groups is not None
    place = {data.names[k]: int(group) for k, group in enumerate(data.groups)}
    for k in range(0, 20, 2):
        assert place[f"{k}.png"] == place[f"{k + 1}.png"]
    assert place["20.png"] == place["0.png"], "a copy joins the group"
    assert len(set(place.values())) == len(set(before.tolist())) - 1


def test_slices_stay_together_whatever_a_list_says(tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    (tmp_path / "scans").mkdir()
    for k in range(4):
        volume = noise(k, 8, 8, 5).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), f"scans/{k}.nii.gz")
    way: dict[str, Any] = {"image_size": 8, "channels": 1, "normalize": "affine", "slice_axis": 2}
    whole = open_dataset("scans", **way)
    names = [whole.names[k] for k in range(20)]
    listed = list_of("slices.txt", names, {0: "copy", 19: "copy"})
    groups = open_dataset("scans", files=listed, **way).groups
    assert groups is not None
    volumes = groups.reshape(4, 5)
    assert (volumes == volumes[:, :1]).all()
    assert volumes[0, 0] == volumes[3, 0] != volumes[1, 0]


def test_a_list_of_rows_of_a_part_fits_the_whole() -> None:
    images = noise(0, 30, 16, 16, 3)
    found = audit(images, files=[str(k) for k in range(20)], num_workers=0)
    found.save_list("rows.txt")
    assert len(open_dataset(images, image_size=8, files="rows.txt")) == 20


def test_an_audit_says_how_the_same_data_are_opened(tmp_path: Path) -> None:
    pictures(tmp_path / "one two", n=3, ending="png")
    first, *more = (Image.fromarray(noise(k, 8, 8, 3)) for k in range(3))
    first.save("one two/a.gif", save_all=True, append_images=more)
    found = audit("one two", frames="all", labels="none", val_data="one two", num_workers=0)
    wanted = "'one two' --val-data 'one two' --labels none --frames all"
    assert found.command == wanted
    found.save_list("keep it.txt", drop=["unreadable"])
    assert f"# ddpm train {wanted} --files 'keep it.txt'" in Path("keep it.txt").read_text()
    assert audit("one two", num_workers=0).command == "'one two'"


def test_a_list_of_measured_values_is_planned_for(tmp_path: Path) -> None:
    (tmp_path / "values").mkdir()
    for k in range(8):
        np.save(f"values/{k}.npy", noise(k, 8, 8).astype(np.float32))
    assert survey("values", files=["1.npy", "4.npy", "5.npy"]).images == 3
