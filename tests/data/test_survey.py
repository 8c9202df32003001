"""A first look at a set of images: numbers, sizes, grey or not, whether pictures have a side."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_lib.data import ImageDataset, Shapes, open_dataset
from ddpm_lib.data.survey import survey
from ddpm_lib.data.survey_facts import Survey, mirrored_farther


def pictures(folder: Path, sizes: list[tuple[int, int]], grey: bool = False) -> Path:
    """Write one picture of each (width, height)."""
    draw = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for k, (width, height) in enumerate(sizes):
        pixels = draw.integers(0, 256, (height, width, 1 if grey else 3), dtype=np.uint8)
        Image.fromarray(pixels.repeat(3, 2) if grey else pixels).save(folder / f"{k:03d}.png")
    return folder


def test_it_tells_sizes_as_stored(tmp_path: Path) -> None:
    """The middle of the set, and what a crop loses of it: exact fractions."""
    seen = survey(pictures(tmp_path / "a", [(40, 20)] * 3 + [(60, 30), (80, 40)]))
    assert (seen.images, seen.looked_at, seen.fixed) == (5, 5, False)
    assert (seen.shape, seen.short_side) == ((20, 40), 20)
    assert seen.crop_loss() == pytest.approx(0.5)
    assert seen.crop_loss(2.0) == pytest.approx(0.0)


def test_grey_is_grey_however_it_is_stored(tmp_path: Path) -> None:
    """Three equal channels are one; one coloured picture makes colour."""
    grey = pictures(tmp_path / "grey", [(16, 16)] * 4, grey=True)
    assert survey(grey).grey
    Image.new("RGB", (16, 16), (200, 0, 0)).save(grey / "red.png")
    assert not survey(grey).grey


def test_classes_are_counted(tmp_path: Path) -> None:
    """From sub-folders, also of different sizes."""
    pictures(tmp_path / "set" / "cat", [(16, 16)] * 3)
    pictures(tmp_path / "set" / "dog", [(16, 16)] * 5)
    seen = survey(tmp_path / "set")
    assert (seen.class_names, seen.class_counts) == (("cat", "dog"), (3, 5))
    assert survey(tmp_path / "set", labels="none").class_counts is None


def test_an_open_dataset_has_its_size() -> None:
    """It cannot be opened at another one."""
    seen = survey(Shapes(size=8, n=20))
    assert (seen.fixed, seen.shape, seen.channels, seen.images) == (True, (8, 8), 3, 20)


def test_arrays_tell_their_size(tmp_path: Path) -> None:
    """Without files there are no headers to read."""
    images = np.random.default_rng(0).integers(0, 256, (6, 24, 48, 3), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=images)
    assert survey(tmp_path / "a.npz").shape == (24, 48)


def test_a_broken_picture_is_passed_over_and_nothing_but_broken_ones_are_named(
    tmp_path: Path,
) -> None:
    """Training names the one; here the others are enough."""
    folder = pictures(tmp_path / "a", [(16, 16)] * 3)
    (folder / "broken.png").write_bytes(b"no picture")
    assert survey(folder).looked_at == 3


def glyphs(n: int, turned: bool) -> torch.Tensor:
    """Pictures of an L, each a little displaced; every other one mirrored on request."""
    images = torch.zeros(n, 1, 16, 16)
    draw = np.random.default_rng(1)
    for k in range(n):
        x, y = draw.integers(1, 5, 2)
        images[k, 0, y : y + 10, x : x + 2] = 255
        images[k, 0, y + 8 : y + 10, x : x + 8] = 255
        if turned and k % 2:
            images[k] = images[k].flip(-1)
    return images + torch.from_numpy(draw.normal(0, 8, images.shape)).float()


def test_letters_have_a_side_and_what_is_turned_at_random_has_none() -> None:
    """Mirror images of letters are like no other letter of the set."""
    assert mirrored_farther(glyphs(100, turned=False)) > 0.9
    share = mirrored_farther(glyphs(400, turned=True))
    assert 0.4 < share < 0.6
    assert mirrored_farther(torch.zeros(2, 1, 8, 8)) is None
    assert mirrored_farther(torch.zeros(9, 1, 8, 8)) == 0.5  # mirror images of what has none


@pytest.mark.parametrize(
    ("farther", "looked_at", "expected"),
    [(0.5, 400, True), (0.5, 20, None), (0.95, 20, False), (0.58, 400, False), (None, 2, None)],
)
def test_a_side_is_told_where_it_is_known(
    farther: float | None, looked_at: int, expected: bool | None
) -> None:
    """Few pictures say nothing: then there are no flips."""
    sizes = np.array([[16, 16]])
    seen = Survey(looked_at, looked_at, sizes, False, False, 3, farther=farther)
    assert seen.symmetric is expected


def test_a_subset_is_looked_at_alone() -> None:
    """Its own rows, not those of the whole set."""
    images = np.zeros((40, 8, 8, 3), dtype=np.uint8)
    images[:20, ..., 0] = 255
    whole = open_dataset(images, image_size=8)
    assert isinstance(whole, ImageDataset)
    assert survey(whole.subset(range(20, 40))).grey
    assert not survey(whole).grey


def stored(root: Path, kind: str) -> tuple[str, dict[str, object]]:
    """Write 24 images of values, and say what a look is to find besides their number."""
    draw = np.random.default_rng(2)
    kelvin = (280 + 10 * draw.standard_normal((24, 2, 12, 10))).astype(np.float32)
    if kind == "hdf5":
        h5py = pytest.importorskip("h5py")
        with h5py.File(root / "a.h5", "w") as file:
            file["rain"] = np.exp(kelvin[:, 0].astype(np.float64) / 5)
        return f"{root}/a.h5:rain", {"channels": 1, "kind": "quantile", "stored": "float64"}
    if kind == "16 bits":
        for k, one in enumerate((100 * kelvin[:, 0]).astype(np.uint16)):
            Image.fromarray(one).save(root / f"{k:02d}.png")
        return str(root), {"channels": 1, "kind": "affine", "stored": "uint16"}
    if kind == "nifti":
        nibabel = pytest.importorskip("nibabel")
        for k in range(3):
            volume = kelvin[8 * k : 8 * k + 8, 0]
            image = nibabel.Nifti1Image(volume, np.diag([3.0, 1, 1, 1]))
            image.to_filename(root / f"{k}.nii.gz")
        found = {"channels": 1, "kind": "affine", "stored": "float32", "slice_axis": 0}
        return str(root), found
    for k, one in enumerate(kelvin):
        np.save(root / f"{k:02d}.npy", one)
    return str(root), {"channels": 2, "kind": "affine", "stored": "float32"}


@pytest.mark.parametrize("kind", ["npy", "16 bits", "hdf5", "nifti"])
def test_values_are_known_from_pictures(tmp_path: Path, kind: str) -> None:
    """By themselves: how many channels, which normalization, along which axis volumes are cut."""
    where, expected = stored(tmp_path, kind)
    seen = survey(where)
    assert seen.values is not None
    assert (seen.images, seen.shape, seen.values.asked) == (24, (12, 10), False)
    told = {"channels": seen.channels, "kind": seen.values.kind, "stored": seen.values.stored}
    if seen.values.slice_axis is not None:
        told["slice_axis"] = seen.values.slice_axis
        assert seen.independent == 3
        assert seen.symmetric is None
    assert told == expected
    assert survey(where, normalize="affine").values.asked  # type: ignore[union-attr]


def test_pictures_stay_pictures(tmp_path: Path) -> None:
    """8 bits, and 16 bits whose black and white are said."""
    assert survey(pictures(tmp_path / "a", [(16, 16)] * 3)).values is None
    (tmp_path / "b").mkdir()
    where, _ = stored(tmp_path / "b", "16 bits")
    assert survey(where, value_range=(0, 65_535)).values is None


def test_volumes_are_learned_whole_where_three_sizes_are_asked_for(tmp_path: Path) -> None:
    """Then nothing is cut; an array of volumes says so where one size is asked for."""
    where, _ = stored(tmp_path, "nifti")
    seen = survey(where, image_size=(8, 8, 8))
    assert seen.values is not None
    assert (seen.images, seen.values.slice_axis, seen.values.size) == (3, None, (8, 12, 10))
    volumes = np.zeros((5, 40, 40, 40), np.float32)
    with pytest.raises(ValueError, match=r"that of volumes: learn them whole"):
        survey(volumes, normalize="affine")


def test_conditions_are_seen(tmp_path: Path) -> None:
    """As a network takes them; a column that is not there is named."""
    folder = pictures(tmp_path / "a", [(16, 16)] * 4)
    lines = [f"{k:03d}.png,{k}.5" for k in range(4)]
    (folder / "metadata.csv").write_text("\n".join(["file_name,age", *lines]))
    assert survey(folder, conditions=("age=:age",)).conditions["age"]["kind"] == "number"
    with pytest.raises(ValueError, match="Did you mean 'age'"):
        survey(folder, conditions=("age=:agee",))
    data = Shapes(size=8, n=4).with_conditions({"size": [1.0, 2, 3, 4]})
    assert list(survey(data).conditions) == ["size"]
