"""Lists of images: which are used, in which groups, and what is said of wrong ones."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_lib import open_dataset
from ddpm_lib.data import ImageDataset
from ddpm_lib.data.file_lists import read_list, write_list
from ddpm_lib.data.split import joined
from training_helpers import tiny_trainer


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in "ab":
        (tmp_path / "pictures" / name).mkdir(parents=True)
    for k in range(24):
        image = rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(image).save(tmp_path / "pictures" / "ab"[k % 2] / f"{k:03d} x.png")
    return tmp_path / "pictures"


def opened(data: Any, files: Any, **options: Any) -> ImageDataset:
    return open_dataset(data, image_size=8, files=files, **options)


def test_a_list_chooses_images_whatever_its_order(pictures: Path, tmp_path: Path) -> None:
    keep = tmp_path / "keep.txt"
    keep.write_text("# of mine\n\nb/003 x.png\r\n./a/002 x.png\na/000 x.png\n")
    some = opened(pictures, keep)
    assert list(some.names) == ["a/000 x.png", "a/002 x.png", "b/003 x.png"]
    assert some.labels is not None
    assert some.labels.tolist() == [0, 0, 1]
    keep.write_text("a/000 x.png\na/002 x.png\nb/003 x.png\n")
    same = opened(pictures, str(keep))
    assert same.fingerprint == some.fingerprint
    assert opened(pictures, list(some.names)).fingerprint == some.fingerprint
    keep.write_text("a/000 x.png\na/002 x.png\n")
    assert opened(pictures, keep).fingerprint != some.fingerprint


def test_all_images_in_a_list_are_the_set_itself(pictures: Path) -> None:
    whole = open_dataset(pictures, image_size=8)
    assert opened(pictures, list(whole.names)).fingerprint == whole.fingerprint


@pytest.mark.parametrize("how", ["relative to here", "relative to the list", "absolute"])
def test_paths_of_other_beginnings(
    pictures: Path, tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "lists"
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    start = {
        "relative to here": "pictures/",
        "relative to the list": "../pictures/",
        "absolute": f"{pictures}/",
    }[how]
    (folder / "keep.txt").write_text(f"{start}a/000 x.png\n{start}b/001 x.png\n")
    assert list(opened(pictures, folder / "keep.txt").names) == ["a/000 x.png", "b/001 x.png"]


def test_what_is_left_out_is_never_read(pictures: Path) -> None:
    names = list(open_dataset(pictures, image_size=8).names)
    (pictures / "a" / "broken.png").write_bytes(b"no picture")
    assert len(opened(pictures, names)) == 24


class Items(torch.utils.data.Dataset[Any]):
    """A Dataset of somebody's."""

    def __init__(self, images: np.ndarray) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, k: int) -> dict[str, Any]:
        return {"image": self.images[k], "label": int(k) % 3}


@pytest.mark.parametrize("cache", ["auto", "none"])
@pytest.mark.parametrize("kind", ["pair", "dataset", "shapes"])
def test_numbers_of_rows_for_images_without_names(kind: str, cache: str) -> None:
    images = np.random.default_rng(0).integers(0, 255, (30, 8, 8, 3), dtype=np.uint8)
    data: Any = {"pair": (images, np.arange(30) % 3), "dataset": Items(images), "shapes": "shapes"}
    some = opened(data[kind], ["7", "000003", "5"], cache=cache)
    assert len(some) == 3
    if kind != "shapes":
        assert some.labels is not None
        assert some.labels.tolist() == [0, 2, 1]
        expected = images[[3, 5, 7]].transpose(0, 3, 1, 2)
        assert np.array_equal(some.batch(range(3))["image"].numpy(), expected)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a/000 x.png\na/000 x.png\n", "names a/000 x.png twice, in line 1 and in line 2"),
        ("a/000 x.png\na/nope.png\n", r"is named .* and not in .*: a/nope.png \(in line 2\)"),
        ("a/000 x.png\nb/002 x.png\n", "Did you mean 'a/002 x.png'"),
        ("x.png\ny.png\n", "None of the 2 images .* made of other data"),
        ("# nothing\n", "names no image"),
        ('"a/000 x.png\n', "begins with a quotation mark"),
    ],
)
def test_wrong_entries_are_named(pictures: Path, tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "keep.txt").write_text(text)
    with pytest.raises(ValueError, match=words):
        opened(pictures, tmp_path / "keep.txt")


def test_wrong_lists_are_named(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "keep.txt").write_text("a/000 x.png\n")
    with pytest.raises(FileNotFoundError, match=r"Did you mean '.*keep.txt'"):
        opened(pictures, tmp_path / "kep.txt")
    with pytest.raises(ValueError, match="is a folder"):
        opened(pictures, pictures)
    with pytest.raises(ValueError, match="is a picture"):
        opened(pictures, pictures / "a" / "000 x.png")
    for wrong in (5, [1], b"x"):
        with pytest.raises(TypeError, match="must be the path of a text file"):
            opened(pictures, wrong)
    with pytest.raises(ValueError, match="does not fit an ImageDataset"):
        opened(open_dataset(pictures, image_size=8), ["a/000 x.png"])


def test_a_list_of_numbers_fits_sets_of_its_size_alone(tmp_path: Path) -> None:
    write_list(tmp_path / "keep.txt", [b"000001", b"000002"], [None, None], total=30)
    images = np.zeros((31, 8, 8, 3), dtype=np.uint8)
    with pytest.raises(ValueError, match="was made of 30 images"):
        opened(images, tmp_path / "keep.txt")
    assert len(opened(images[:30], tmp_path / "keep.txt")) == 2


def test_strange_names_come_back(tmp_path: Path) -> None:
    names = [b"#a", b" b ", b"c\td", b"\xff.png", b'"q"', b"n\nm", "ä ö.png".encode(), b"x#y"]
    groups = [None, 1, 1, None, 2, None, 2, None]
    path = tmp_path / "keep.txt"
    write_list(path, names, groups, ["by\nme"], [(b"z\n", "it is\nconstant")], 9)
    found = read_list(path)
    assert [entry.name for entry in found.entries] == names
    assert [entry.group and int(entry.group) for entry in found.entries] == groups
    assert found.total == 9
    before = path.read_bytes()
    write_list(path, names, groups, ["by\nme"], [(b"z\n", "it is\nconstant")], 9)
    assert path.read_bytes() == before


def test_groups_stay_on_one_side_of_every_split(pictures: Path, tmp_path: Path) -> None:
    names = list(open_dataset(pictures, image_size=8).names)
    lines = [f"{name}\tgroup={k // 4}" for k, name in enumerate(names)]
    (tmp_path / "keep.txt").write_text("\n".join(lines))
    whole = opened(pictures, tmp_path / "keep.txt")
    assert whole.groups is not None
    sides = set()
    for seed in range(8):
        for held in (0.3, 6):
            train, out = whole.split(held, seed)
            assert train.groups is not None
            assert out.groups is not None
            assert not set(train.groups.tolist()) & set(out.groups.tolist())
            sides.add(frozenset(out.groups.tolist()))
    assert len(sides) > 2


def test_groups_are_joined_by_way_of_others() -> None:
    a, b = np.array([0, 0, 1, 2, 3]), np.array([5, 6, 6, 7, 8])
    found = joined(a, b)
    assert found is not None
    assert found[0] == found[1] == found[2]
    assert len({int(found[0]), int(found[3]), int(found[4])}) == 3
    assert joined(a, None) is a


def test_training_takes_a_list_and_keeps_to_it(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = sorted(str(p.relative_to(pictures)) for p in pictures.rglob("*.png"))
    (tmp_path / "keep.txt").write_text("\n".join(names[:20]))
    monkeypatch.chdir(tmp_path)
    options = {"data": str(pictures), "max_steps": 1, "files": "keep.txt"}
    trainer = tiny_trainer(tmp_path / "run", **options)
    trainer.train()
    assert len(trainer.dataset) + (len(trainer.held_out) if trainer.held_out else 0) == 20
    assert str(tmp_path / "keep.txt") in (tmp_path / "run" / "config.yaml").read_text()
    (tmp_path / "keep.txt").write_text("\n".join(names[:19]))
    with pytest.raises(ValueError, match="lost"):
        tiny_trainer(tmp_path / "run", **{**options, "max_steps": 2}).train()
    os.remove("keep.txt")
    with pytest.raises(FileNotFoundError, match=r"keep\.txt"):
        tiny_trainer(tmp_path / "other", **options).train()
