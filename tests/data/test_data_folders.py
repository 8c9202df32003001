"""Folders of pictures: order, labels, names, layouts, messages, caches and fingerprints."""

import hashlib
import os
import pickle  # noqa: TID251
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_lib.data import BadImagesError, ImageDataset, open_dataset


def picture(path: Path | bytes, seed: int = 0, size: tuple[int, int] = (12, 10)) -> None:
    os.makedirs(os.path.dirname(os.fsencode(path)), exist_ok=True)
    array = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    with open(path, "wb") as file:
        Image.fromarray(array).save(file, "PNG")


@pytest.fixture
def classes(tmp_path) -> Path:
    for k in range(6):
        picture(tmp_path / "data" / ("cat", "dog", "ant")[k % 3] / f"{k}.png", k)
    return tmp_path / "data"


def test_labels_from_sub_folders_in_sorted_order(classes):
    data = open_dataset(classes, image_size=8)
    assert data.class_names == ("ant", "cat", "dog")
    assert list(data.names) == [
        "ant/2.png",
        "ant/5.png",
        "cat/0.png",
        "cat/3.png",
        "dog/1.png",
        "dog/4.png",
    ]
    assert data.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert data.num_classes == 3
    item = data[3]
    assert item["image"].shape == (3, 8, 8)
    assert item["image"].dtype == torch.uint8
    assert item["class_label"].dtype == torch.int64
    assert item["class_label"].shape == ()
    assert item["class_label"] == 1
    with pytest.raises(IndexError):
        data[6]


def test_no_labels_on_request(classes):
    data = open_dataset(classes, image_size=8, labels="none")
    assert data.class_names is None
    assert data.num_classes is None
    assert set(data[0]) == {"image"}


def test_prefix_labels(tmp_path):
    for k, name in enumerate(["dog_1.png", "cat_1.png", "cat_2_x.png"]):
        picture(tmp_path / "sub" / name, k)
    data = open_dataset(tmp_path, image_size=8, labels="prefix")
    assert data.class_names == ("cat", "dog")
    assert data.labels.tolist() == [0, 0, 1]
    picture(tmp_path / "plain.png")
    with pytest.raises(ValueError, match=r"plain\.png"):
        open_dataset(tmp_path, image_size=8, labels="prefix")


def test_labelled_and_loose_images_mixed(classes):
    picture(classes / "loose.png", 9)
    data = open_dataset(classes, image_size=8)
    assert data.class_names is None
    assert any("1 of 7 images lie outside" in note for note in data.notes)
    with pytest.raises(ValueError, match=r"loose\.png"):
        open_dataset(classes, image_size=8, labels="folder")


def test_one_class(tmp_path):
    picture(tmp_path / "only" / "a.png")
    picture(tmp_path / "only" / "b.png", 1)
    data = open_dataset(tmp_path, image_size=8)
    assert data.class_names is None
    assert any("one class only" in note for note in data.notes)
    assert open_dataset(tmp_path, image_size=8, labels="folder").class_names == ("only",)


def test_one_image(tmp_path):
    picture(tmp_path / "a.png")
    data = open_dataset(tmp_path, image_size=8)
    assert any("one image only" in note for note in data.notes)
    with pytest.raises(ValueError, match="cannot be split"):
        data.split(0.5)


def test_mixed_sizes_and_small_images_are_told(tmp_path):
    picture(tmp_path / "a.png", size=(40, 60))
    picture(tmp_path / "b.png", size=(5, 4))
    notes = "\n".join(open_dataset(tmp_path, image_size=8).notes)
    assert "4 … 60 pixels wide, 5 … 40 high" in notes
    assert "1 image smaller than the image size: enlarged" in notes


def test_missing_empty_and_foreign_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        open_dataset(tmp_path / "nothing" / "here", image_size=8)
    with pytest.raises(FileNotFoundError, match="holds no files"):
        open_dataset(tmp_path, image_size=8)
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "b.heic").write_text("x")
    with pytest.raises(FileNotFoundError, match=r"(?s)1 × \.txt.*Convert HEIC"):
        open_dataset(tmp_path, image_size=8)
    picture(tmp_path / "photos" / "a.png")
    with pytest.raises(FileNotFoundError, match=r"Did you mean .*photos"):
        open_dataset(str(tmp_path / "photo"), image_size=8)
    with pytest.raises(ValueError, match="one picture"):
        open_dataset(tmp_path / "photos" / "a.png", image_size=8)
    (tmp_path / "a.zip").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"a\.zip' is damaged or no \.zip archive"):
        open_dataset(tmp_path / "a.zip", image_size=8)
    assert any(".heic" in note for note in open_dataset(tmp_path, image_size=8).notes)


def test_only_bad_images(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(BadImagesError, match="None is left"):
        open_dataset(tmp_path, image_size=8, on_bad_image="skip")


def test_splits_are_not_classes(tmp_path):
    picture(tmp_path / "train" / "a.png")
    picture(tmp_path / "test" / "b.png")
    with pytest.raises(ValueError, match="splits"):
        open_dataset(tmp_path, image_size=8)
    assert list(open_dataset(tmp_path, image_size=8, split="train").names) == ["a.png"]
    assert open_dataset(tmp_path, image_size=8, labels="folder").class_names == ("test", "train")
    with pytest.raises(ValueError, match="There are: test, train"):
        open_dataset(tmp_path, image_size=8, split="val")


def test_names_that_are_not_utf8_or_hostile(tmp_path):
    root = os.fsencode(tmp_path)
    for k, name in enumerate(
        [b"\xff\xfe.png", b"two\nlines.png", b"<img src=x>.png", b"UPPER.PNG"]
    ):
        picture(root + b"/" + name, k)
    data = open_dataset(tmp_path, image_size=8)
    assert len(data) == 4
    shown = list(data.names)
    assert "\\xff\\xfe.png" in shown
    assert "two\\nlines.png" in shown
    assert all(name.isprintable() and name.encode() for name in shown)


def test_folder_links_are_followed_but_never_in_a_circle(tmp_path):
    picture(tmp_path / "elsewhere" / "a.png")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "data")
    assert list(open_dataset(tmp_path / "data", image_size=8).names) == ["link/a.png"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable(tmp_path):
    picture(tmp_path / "a.png")
    (tmp_path / "a.png").chmod(0)
    with pytest.raises(BadImagesError, match="no permission"):
        open_dataset(tmp_path, image_size=8)


def test_ram_and_streaming_agree(classes):
    ram = open_dataset(classes, image_size=8, cache="ram")
    stream = open_dataset(classes, image_size=8, cache="none")
    assert ram.in_memory
    assert not stream.in_memory
    assert ram.fingerprint == stream.fingerprint
    order = [5, 0, 0, 3]
    for field, value in ram.batch(order).items():
        assert torch.equal(value, stream.batch(torch.tensor(order))[field])
    assert any("decoded once into RAM" in note for note in ram.notes)
    assert any('cache="none"' in note for note in stream.notes)


def test_auto_cache_obeys_its_limit(classes):
    limited = open_dataset(classes, image_size=8, cache_limit_mb=0.001)
    assert not limited.in_memory
    assert any("exceeds the cache limit" in note for note in limited.notes)
    assert open_dataset(classes, image_size=8, cache_limit_mb=1).in_memory
    with pytest.raises(ValueError, match="cache_limit_mb"):
        open_dataset(classes, image_size=8, cache_limit_mb=-1)


def test_check_is_remembered_until_a_file_changes(classes, tmp_path):
    scan = tmp_path / "run" / "scan.json"

    def opened(**options) -> ImageDataset:
        return open_dataset(classes, image_size=8, cache="none", scan_file=scan, **options)

    assert any("6 images checked" in note for note in opened().notes)
    assert any("checked before" in note for note in opened().notes)
    (classes / "cat" / "0.png").write_bytes(b"broken")
    with pytest.raises(BadImagesError, match=r"cat/0\.png"):
        opened()
    for _ in range(2):
        skipped = opened(on_bad_image="skip")
        assert len(skipped) == 5
        assert any("skipped 1 of 6" in note for note in skipped.notes)
    scan.write_text("rubbish")
    assert len(opened(on_bad_image="skip")) == 5
    unchecked = opened(verify=False)
    with pytest.raises(BadImagesError, match="It was not checked"):
        unchecked[2]


def test_fingerprint_changes_with_what_matters(classes):
    def print_of(**options) -> str:
        return open_dataset(classes, **{"image_size": 8, **options}).fingerprint

    before = print_of()
    assert before == print_of()
    variants = [
        {"image_size": 9},
        {"channels": 1},
        {"fit": "pad"},
        {"background": "black"},
        {"labels": "none"},
    ]
    prints = {print_of(**options) for options in variants}
    assert len(prints | {before}) == 6
    picture(classes / "cat" / "0.png", 99, size=(14, 10))
    changed = print_of()
    assert changed != before
    picture(classes / "cat" / "new.png", 100)
    assert print_of() not in (changed, before)


def test_parallel_decoding_gives_the_same(tmp_path):
    for k in range(300):
        picture(tmp_path / f"{k:03d}.png", k, size=(4, 4))
    (tmp_path / "123.png").write_bytes(b"bad")
    (tmp_path / "bad.png").write_bytes(b"")
    one, two = (
        open_dataset(tmp_path, image_size=4, num_workers=workers, on_bad_image="skip", cache="ram")
        for workers in (0, 2)
    )
    assert torch.equal(one.batch(range(299))["image"], two.batch(range(299))["image"])
    assert one.fingerprint == two.fingerprint
    assert list(one.names) == list(two.names)


def test_names_are_compact_and_the_dataset_pickles(classes):
    data = open_dataset(classes, image_size=8)
    copy = pickle.loads(pickle.dumps(data))
    assert torch.equal(copy.batch([1, 2])["image"], data.batch([1, 2])["image"])
    assert copy.names[-1] == data.names[5]
    assert data.names[1:3] == ["ant/5.png", "cat/0.png"]
    with pytest.raises(IndexError):
        data.names[6]


def test_subset(classes):
    data = open_dataset(classes, image_size=8)
    part = data.subset([4, 1])
    assert list(part.names) == ["dog/1.png", "ant/5.png"]
    assert part.labels.tolist() == [2, 0]
    assert part.class_names == data.class_names
    assert torch.equal(part[0]["image"], data[4]["image"])
    assert part.fingerprint != data.fingerprint
    assert part.fingerprint == data.subset(torch.tensor([4, 1])).fingerprint
    assert len(data.subset(np.array([True, False] * 3))) == 3


@pytest.mark.parametrize("held_out", [0.25, 30])
def test_split_is_stable_when_files_are_added(tmp_path, held_out):
    def flat(name: str, seed: int) -> None:
        picture(tmp_path / name, seed, (2, 2))

    for k in range(120):
        flat(f"{'ab'[k % 2]}/{k}.png", k)
    train, held = open_dataset(tmp_path, image_size=2).split(held_out, seed=1)
    assert len(train) + len(held) == 120
    assert not set(train.names) & set(held.names)
    assert 12 <= len(held) <= 48
    if held_out == 30:
        assert torch.bincount(held.labels).tolist() == [15, 15]
    for k in range(120, 130):
        flat(f"a/{k}.png", k)
    later = open_dataset(tmp_path, image_size=2)
    _, held_later = later.split(held_out, seed=1)
    old = {name for name in held_later.names if int(name[2:-4]) < 120}
    moved = old ^ set(held.names)
    assert len(moved) <= (0 if held_out == 0.25 else 4)
    assert set(later.split(held_out, seed=2)[1].names) != set(held_later.names)


def test_split_keeps_identical_images_together(tmp_path):
    for k in range(40):
        picture(tmp_path / f"{k}.png", k // 4, (3, 3))
    data = open_dataset(tmp_path, image_size=3)
    for seed in range(5):
        for held_out in (0.3, 12):
            sides = [
                {
                    hashlib.sha1(part[i]["image"].numpy().tobytes()).digest()
                    for i in range(len(part))
                }
                for part in data.split(held_out, seed)
            ]
            assert sides[0]
            assert sides[1]
            assert not sides[0] & sides[1]


@pytest.mark.parametrize("held_out", [0, 1.0, 6, -1, True])
def test_split_refuses_impossible_sizes(classes, held_out):
    with pytest.raises(ValueError, match="held_out"):
        open_dataset(classes, image_size=8).split(held_out)


def test_wrong_choices_name_the_nearest(classes):
    for option, value, nearest in [
        ("labels", "foldr", "folder"),
        ("cache", "rma", "ram"),
        ("on_bad_image", "skp", "skip"),
    ]:
        with pytest.raises(ValueError, match=f"Did you mean '{nearest}'"):
            open_dataset(classes, image_size=8, **{option: value})
    with pytest.raises(ValueError, match="num_workers"):
        open_dataset(classes, image_size=8, num_workers=-1)


def test_raw_sysu_clone_is_refused(tmp_path):
    for part in ("images", "contours"):
        picture(tmp_path / "car" / part / "a.png")
    with pytest.raises(ValueError, match="prepare_sysu"):
        open_dataset(tmp_path, image_size=8)


def test_dataset_of_ours_passes_through(classes):
    data = open_dataset(classes, image_size=8)
    assert open_dataset(data, image_size=8) is data
    assert open_dataset(data, image_size=8, labels="none").labels is None
    with pytest.raises(ValueError, match="asked for"):
        open_dataset(data, image_size=16)
