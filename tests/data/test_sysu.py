"""Preparing SYSU-Shape, on a small imitation and on the real thing where it is at hand."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddpm_lib.data import BadImagesError, open_dataset, prepare_sysu
from ddpm_lib.data.decode_spec import make_spec
from ddpm_lib.data.sysu import CLASSES, SysuSource, alike
from ddpm_lib.data.sysu_tiles import largest_outline, masked_tile, window_tile
from sysu_clone import COLOUR, annotate, clone


@pytest.fixture
def small(tmp_path) -> Path:
    return clone(tmp_path / "clone")


@pytest.mark.parametrize("mode", ["masked", "fit", "stretch"])
def test_layout(small, tmp_path, mode):
    lines = []
    out = tmp_path / "out"
    summary = prepare_sysu(small, out, size=16, mode=mode, val_fraction=0.2, log=lines.append)
    assert (summary.num_train, summary.num_eval) == (16, 4)
    assert summary.train == {"cup": 8, "hat": 8}
    assert sorted(p.name for p in out.iterdir()) == [
        "eval_data",
        "normalized_eval_data",
        "splits.json",
        "train_data",
    ]
    train = open_dataset(out / "train_data", image_size=16)
    assert train.class_names == ("cup", "hat")
    assert len(train) == 16
    flat = open_dataset(out / "normalized_eval_data", image_size=16, labels="prefix")
    assert len(flat) == 4
    assert not any("differ in size" in note for note in flat.notes)
    photos = open_dataset(out / "eval_data", image_size=16)
    assert {Path(n).stem for n in photos.names} == {Path(n).stem for n in flat.names}
    assert not {Path(n).stem for n in train.names} & {Path(n).stem for n in flat.names}
    saved = json.loads((out / "splits.json").read_text())
    assert saved["settings"]["mode"] == mode
    assert len(saved["train"]) == 16
    assert any("16 training and 4 held-out" in line for line in lines)


def test_masked_tiles_show_the_object_centred_on_white(small):
    source = SysuSource(small, "masked")
    for row in range(len(source)):
        pixels = source.load(row, make_spec(32)).pixels.astype(int)
        assert (pixels[:, 0, :] > 245).all()
        assert (pixels[:, :, 0] > 245).all()
        coloured = np.abs(pixels[:, 4:28, 8:24] - np.array(COLOUR)[:, None, None]).mean()
        assert coloured < 8, "nothing but the object inside its outline"
        ys, xs = np.nonzero(pixels.min(0) < 128)
        assert abs(ys.min() + ys.max() - 31) <= 1
        assert abs(xs.min() + xs.max() - 31) <= 1
        assert (ys.max() - ys.min() + 1) / (xs.max() - xs.min() + 1) == pytest.approx(
            41 / 31, rel=0.1
        )


def test_window_tiles_invent_no_border(small):
    source = SysuSource(small, "fit")
    for row in range(len(source)):
        pixels = source.load(row, make_spec(32)).pixels.astype(int)
        assert np.abs(pixels[:, 16, 16] - np.array(COLOUR)).max() < 10
    photo = Image.new("RGB", (100, 30), COLOUR)
    outline = np.array([[-20.0, -5], [130, -5], [130, 50], [-20, 50]])
    tile, scale = window_tile(photo, outline, make_spec(20))
    assert np.asarray(tile).min(axis=(0, 1)).tolist() == list(COLOUR)
    assert scale == pytest.approx(20 / 30)


def test_boxes_that_leave_the_photo_are_cut():
    photo = Image.new("RGB", (100, 60), COLOUR)
    outline = np.array([[60.0, 20], [140, 20], [140, 40], [60, 40]])
    tile = np.asarray(masked_tile(photo, outline, make_spec(32))[0]).astype(int)
    xs = np.nonzero(tile[:, :, 1].min(0) < 128)[0]
    assert abs(xs.min() + xs.max() - 31) <= 1, "centred on the part that can be seen"
    far = np.array([[200.0, 200], [220, 200], [220, 230]])
    assert masked_tile(photo, far, make_spec(8))[0].size == (8, 8)


def test_unsigned_boxes_and_the_largest_of_several(small):
    outline = largest_outline(small / "cup" / "annotations" / "photo_3.mat")
    assert outline.min(0).tolist() == [25, 20]
    assert outline.max(0).tolist() == [55, 60]
    annotate(small / "edge.mat", [(0, 0, 9, 9)])
    assert largest_outline(small / "edge.mat").min() == 0


def test_again_changes_nothing_and_other_settings_are_refused(small, tmp_path):
    out = tmp_path / "out"
    first = prepare_sysu(small, out, size=8, val_fraction=0.2)
    times = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    again = prepare_sysu(small, out, size=8, val_fraction=0.2)
    assert again == first
    assert times == {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    with pytest.raises(FileExistsError, match=r"size: .*8, 8.* there, .*16, 16.* now"):
        prepare_sysu(small, out, size=16, val_fraction=0.2)
    with pytest.raises(FileExistsError, match="mode"):
        prepare_sysu(small, out, size=8, val_fraction=0.2, mode="fit")
    next((out / "train_data").rglob("*.png")).unlink()
    with pytest.raises(FileExistsError, match="15 of 16"):
        prepare_sysu(small, out, size=8, val_fraction=0.2)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("x")
    with pytest.raises(FileExistsError, match="not made by this command"):
        prepare_sysu(small, tmp_path / "full", size=8)


def test_the_split_follows_the_seed_not_the_mode_or_size(small, tmp_path):
    def held(name: str, **options) -> list[str]:
        prepare_sysu(small, tmp_path / name, val_fraction=0.3, **options)
        return json.loads((tmp_path / name / "splits.json").read_text())["eval"]

    first = held("a", size=8)
    assert held("b", size=16, mode="fit") == first
    assert held("c", size=8, seed=1) != first


def test_duplicates_stay_on_one_side(small, tmp_path):
    shutil.copy(small / "cup" / "images" / "photo_0.jpg", small / "hat" / "images" / "photo_0.jpg")
    Image.open(small / "cup" / "images" / "photo_5.jpg").save(
        small / "cup" / "images" / "photo_6.jpg", quality=60
    )
    for seed in range(6):
        summary = prepare_sysu(
            small, tmp_path / f"{seed}", size=8, mode="stretch", val_fraction=0.4, seed=seed
        )
        saved = json.loads((tmp_path / f"{seed}" / "splits.json").read_text())
        assert summary.duplicates == [
            ["cup/photo_0.jpg", "hat/photo_0.jpg"],
            ["cup/photo_5.jpg", "cup/photo_6.jpg"],
        ]
        for group in summary.duplicates:
            assert len({name in saved["eval"] for name in group}) == 1


def test_alike_numbers_groups():
    thumbs = np.random.default_rng(0).integers(0, 256, (5, 16, 16))
    thumbs[3] = thumbs[1] // 2 + 9
    groups = alike(thumbs)
    assert groups[3] == groups[1]
    assert len(set(groups.tolist())) == 4


def test_what_is_missing_is_named(small, tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        prepare_sysu(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="does not look like SYSU"):
        prepare_sysu(small / "cup", tmp_path / "out")
    (small / "cup" / "annotations" / "photo_1.mat").unlink()
    (small / "hat" / "annotations" / "photo_2.mat").write_bytes(b"broken")
    with pytest.raises(BadImagesError) as caught:
        prepare_sysu(small, tmp_path / "out", size=8)
    assert [name for name, _ in caught.value.bad] == ["cup/photo_1.jpg", "hat/photo_2.jpg"]
    assert "photo_1.mat is missing" in caught.value.bad[0][1]
    assert "damaged" in caught.value.bad[1][1]
    assert not (tmp_path / "out").exists()
    assert prepare_sysu(small, tmp_path / "out", size=8, mode="stretch").num_train == 16
    half = clone(tmp_path / "half", ("airplane", "boat"), 2)
    with pytest.raises(FileNotFoundError, match=r"lacks .* bicycle, car, motorbike"):
        prepare_sysu(half, tmp_path / "out2")


def test_wrong_options(small, tmp_path):
    with pytest.raises(ValueError, match="Did you mean 'masked'"):
        prepare_sysu(small, tmp_path / "out", mode="mask")
    with pytest.raises(ValueError, match="val_fraction"):
        prepare_sysu(small, tmp_path / "out", val_fraction=1.0)


@pytest.mark.slow
def test_real_dataset(shared, tmp_path):
    root = shared / "data" / "sysu-shape-dataset"
    if not root.is_dir():
        pytest.skip("no SYSU-Shape")
    summary = prepare_sysu(root, tmp_path / "out", size=32, mode="stretch")
    assert (summary.num_train, summary.num_eval) == (1256, 285)
    assert tuple(summary.train) == CLASSES
    found = {frozenset(group) for group in summary.duplicates}
    assert frozenset({"car/voc2012_2009_000825.jpg", "motorbike/voc2012_2009_000825.jpg"}) in found
    assert frozenset({"boat/101_ketch_image_0035.jpg", "boat/101_ketch_image_0041.jpg"}) in found
    assert (
        frozenset(
            {"motorbike/101_Motorbikes_image_0193.jpg", "motorbike/101_Motorbikes_image_0196.jpg"}
        )
        in found
    )


def test_real_objects_fill_their_tiles(shared):
    root = shared / "data" / "sysu-shape-dataset"
    if not root.is_dir():
        pytest.skip("no SYSU-Shape")
    source, spec = SysuSource(root, "masked"), make_spec(64)
    for row in range(0, len(source), 60):
        pixels = source.load(row, spec).pixels
        drawn = pixels.min(0) < 250
        assert drawn.any(0).mean() > 0.85 or drawn.any(1).mean() > 0.85
        assert (pixels[:, [0, -1]] > 250).all()
        assert (pixels[:, :, [0, -1]] > 250).all()
