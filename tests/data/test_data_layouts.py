"""Folders that are not one class per sub-folder are refused or said; ordinary class folders are
not.
"""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddpm_lib.data import open_dataset
from ddpm_lib.data.split_names import best_split, split_of


def fill(root: Path, *files: str) -> Path:
    for k, name in enumerate(files):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(k).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / name)
    return root


def in_folders(*folders: str, count: int = 2) -> list[str]:
    return [f"{folder}/{k}.png" for folder in folders for k in range(count)]


SPLITS = {
    "train": ("train", "test"),
    "Training": ("Training", "Testing"),
    "TRAIN": ("TRAIN", "VAL"),
    "training_set": ("training_set", "test_set"),
    "train2017": ("train2017", "val2017", "test2017"),
    "trainset": ("testset", "trainset"),
    "train-images": ("dev-images", "train-images"),
    "bounding_box_train": ("bounding_box_test", "bounding_box_train", "query"),
    "train_data": ("eval_data", "normalized_eval_data", "train_data"),
    "trainA": ("testA", "testB", "trainA", "trainB"),
    "train_1": ("extra", "test", "train_1"),
    "valid": ("test", "valid"),
    "seg_train": ("seg_pred", "seg_test", "seg_train"),
    "mnist-training": ("mnist-testing", "mnist-training"),
}


@pytest.mark.parametrize("best", SPLITS)
@pytest.mark.parametrize("deeper", ["", "/cats"])
def test_splits_are_refused_and_the_training_part_is_proposed(tmp_path, best, deeper):
    parts = SPLITS[best]
    fill(tmp_path, *in_folders(*(part + deeper for part in parts)))
    with pytest.raises(ValueError, match=rf"split='{best}' \(--split {best}\)"):
        open_dataset(tmp_path, image_size=8)
    assert len(open_dataset(tmp_path, image_size=8, split=best)) == 2
    assert open_dataset(tmp_path, image_size=8, labels="folder").class_names == tuple(sorted(parts))


def test_split_names_in_another_spelling(tmp_path):
    fill(tmp_path, *in_folders("Training", "Testing"))
    with pytest.raises(ValueError, match="Did you mean 'Training'"):
        open_dataset(tmp_path, image_size=8, split="train")


@pytest.mark.parametrize(
    "folders",
    [
        ("images/train", "images/val"),
        ("bottle/train", "bottle/test"),
        ("cats/train", "cats/test", "dogs/train", "dogs/test"),
    ],
)
def test_splits_one_folder_deeper(tmp_path, folders):
    fill(tmp_path, *in_folders(*folders))
    with pytest.raises(ValueError, match=rf"(?s)Splits lie deeper.*{folders[0]}"):
        open_dataset(tmp_path, image_size=8)
    assert len(open_dataset(tmp_path / folders[0], image_size=8)) == 2


@pytest.mark.parametrize(
    ("files", "way"),
    [
        (in_folders("images", "masks"), "images"),
        (in_folders("Images", "Labels"), "Images"),
        (in_folders("img", "gt"), "img"),
        (in_folders("imagesTr", "labelsTr"), "imagesTr"),
        (in_folders("VOC2012/JPEGImages", "VOC2012/SegmentationClass"), "VOC2012/JPEGImages"),
        (in_folders("image", "ground_truth"), "image"),
        (["0.png", "1.png", "masks/0.png", "masks/1.png"], "Move"),
        (["a.png", "a_mask.png", "b.png", "b_mask.png"], "Move"),
        (["x/a.png", "x/a_seg.png", "y/b.png", "y/b_seg.png"], "Move"),
        (["b (1).png", "b (1)_mask.png", "b (1)_mask_1.png"], "Move"),
        (["a.jpg", "a-label.png"], "Move"),
        (["a_sat.jpg", "a_mask.png"], "Move"),
        (["a.jpg", "mask_a.png"], "Move"),
        (["image_1.png", "gt_1.png", "1.png"], "Move"),
        (in_folders("train", "train_masks"), "train"),
        (in_folders("x/train_images", "x/train_masks"), "x/train_images"),
    ],
)
def test_masks_are_no_pictures(tmp_path, files, way):
    fill(tmp_path, *files)
    with pytest.raises(ValueError, match=rf"(?s)look like masks.*{way}"):
        open_dataset(tmp_path, image_size=8)
    everything = open_dataset(tmp_path, image_size=8, labels="none")
    assert len(everything) == len(files)
    assert any("masks" in note for note in everything.notes)
    if way != "Move":
        assert len(open_dataset(tmp_path / way, image_size=8)) == 2


ORDINARY = [
    ("cat", "dog"),
    ("train", "car", "bus", "plane"),
    ("test", *"abcdefghij"),
    ("mask", "no_mask"),
    ("with_mask", "without_mask"),
    ("raw", "cooked"),
    ("trains", "trams"),
    ("training_shoes", "boots"),
    ("valley", "hill"),
    ("thumbs", "fingers"),
    ("1", "2", "10"),
    ("labels", "bottles"),
    ("face_a", "face_b"),
    ("toy_train", "toy_car", "toy_test_tube"),
]


@pytest.mark.parametrize("folders", ORDINARY, ids=lambda folders: folders[0])
def test_ordinary_class_folders_go_on_working(tmp_path, folders):
    fill(tmp_path, *in_folders(*folders))
    data = open_dataset(tmp_path, image_size=8)
    assert data.class_names == tuple(sorted(folders))
    assert len(data) == 2 * len(folders)
    said = [note for note in data.notes if "is taken for a class" in note]
    assert len(said) == (folders[0] in ("train", "test", "labels"))


def test_splits_beside_other_folders(tmp_path):
    """An industrial set: a folder of truths beside the splits, which alone would be a class."""
    fill(
        tmp_path,
        *in_folders("bottle/train/good", "bottle/test/broken", "bottle/ground_truth/broken"),
    )
    with pytest.raises(ValueError, match=r"Splits lie deeper.*bottle/train'"):
        open_dataset(tmp_path, image_size=8)


def test_folders_of_masks_with_other_names_are_classes(tmp_path):
    """A name alone is too little: its files must be those of the folder beside it."""
    fill(tmp_path, "face/a.png", "face/b.png", "face_masks/c.png", "face_masks/d.png")
    assert open_dataset(tmp_path, image_size=8).class_names == ("face", "face_masks")


def test_what_is_said_of_masks_is_a_sentence(tmp_path):
    fill(tmp_path, *in_folders("images", "masks"))
    assert not any(
        note.endswith(";") for note in open_dataset(tmp_path, image_size=8, labels="none").notes
    )


def test_ordinary_file_names_go_on_working(tmp_path):
    fill(tmp_path, "cat_001.png", "gas_mask.png", "record_label.png", "dog_001.png")
    assert len(open_dataset(tmp_path, image_size=8)) == 4


@pytest.mark.parametrize(
    "folder",
    ["@eaDir/0.png", "__MACOSX", ".AppleDouble", "lost+found", ".ipynb_checkpoints", ".thumbnails"],
)
def test_what_systems_make_is_left_out_and_said(tmp_path, folder):
    fill(tmp_path, "x/0.png", "y/0.png", f"x/{folder}/0.png")
    data = open_dataset(tmp_path, image_size=8)
    assert list(data.names) == ["x/0.png", "y/0.png"]
    assert any("left out folders" in note and folder.split("/")[0] in note for note in data.notes)


@pytest.mark.parametrize(
    "thumb", ["x/thumbs/0.png", "x/Thumbnails/tn_0.jpg", "x/thumb/0_thumb.png"]
)
def test_thumbnails_of_pictures_are_left_out_and_said(tmp_path, thumb):
    fill(tmp_path, "x/0.png", "y/1.png", thumb)
    data = open_dataset(tmp_path, image_size=8)
    assert list(data.names) == ["x/0.png", "y/1.png"]
    assert any("1 thumbnails" in note for note in data.notes)


def test_names_of_splits():
    train = [
        "train",
        "Train",
        "TRAINING",
        "train_set",
        "trainset",
        "train2014",
        "training-data",
        "train_images",
    ]
    other = [
        "test",
        "Testing",
        "val",
        "valid",
        "validation_set",
        "dev",
        "eval",
        "query",
        "gallery",
        "testdata",
    ]
    neither = ["trains", "cat", "valley", "contest", "training_shoes", "set", "device", "", "10"]
    assert {split_of(name) for name in train} == {"train"}
    assert {split_of(name) for name in other} == {"other"}
    assert {split_of(name) for name in neither} == {None}
    assert best_split(["test", "validation", "train"]) == "train"
    assert best_split(["test", "validation"]) == "validation"
    assert best_split(["test", "unlabeled"]) == "unlabeled"


@pytest.mark.parametrize("names", [("test", "train"), ("test", "validation"), ("test", "training")])
def test_splits_of_tables_propose_the_training_part(tmp_path, names):
    from datasets import Dataset, DatasetDict

    best = next(name for name in reversed(names))
    image = np.zeros((8, 8, 3), np.uint8).tolist()
    data = DatasetDict({name: Dataset.from_dict({"image": [image, image]}) for name in names})
    for name in names:
        data[name].to_parquet(tmp_path / "plain_text" / f"{name}-00000-of-00001.parquet")
    for source in (data, tmp_path / "plain_text", tmp_path):
        with pytest.raises(ValueError, match=rf"split='{best}' \(--split {best}\)"):
            open_dataset(source, image_size=8)
        assert len(open_dataset(source, image_size=8, split=best)) == 2


def test_the_raw_shapes_of_sysu_name_their_command(tmp_path):
    fill(tmp_path, "car/images/a.png", "car/contours/a.png")
    with pytest.raises(ValueError, match=r"ddpm prepare sysu .* sysu-64 --size 64"):
        open_dataset(tmp_path, image_size=8)


PAIRS = {
    "target": ("input", "target"),
    "Targets": ("Inputs", "Targets"),
    "target_images": ("source_images", "target_images"),
    "GT": ("LQ", "GT"),
    "DIV2K_train_HR": ("DIV2K_train_LR", "DIV2K_train_HR"),
    "clean": ("noisy", "clean"),
    "sharp": ("blur", "sharp"),
    "B": ("A", "B"),
    "y": ("x", "y"),
    "high": ("low", "high"),
}


@pytest.mark.parametrize("learned", PAIRS)
@pytest.mark.parametrize("above", ["", "mine/"])
def test_pairs_are_no_classes(tmp_path, learned, above):
    given, learned = PAIRS[learned]
    files = [f"{above}{folder}/photo_{k}.png" for folder in (given, learned) for k in range(3)]
    fill(tmp_path, *files)
    words = (
        rf"holds '{given}' and '{learned}', 3 files .* look like pairs, not classes\. Open"
        rf" .*{learned}'; labels="
    )
    with pytest.raises(ValueError, match=words):
        open_dataset(tmp_path, image_size=8)
    assert len(open_dataset(tmp_path / above / learned, image_size=8)) == 3, "the remedy works"
    if not above:
        assert open_dataset(tmp_path, image_size=8, labels="folder").class_names == tuple(
            sorted((given, learned))
        )
    notes = open_dataset(tmp_path, image_size=8, labels="none").notes
    assert any("look like pairs" in note for note in notes)


def test_pairs_by_factor_and_by_word(tmp_path):
    fill(
        tmp_path,
        *(
            f"{folder}/{k:04d}{tail}.png"
            for folder, tail in (("lr", "x4"), ("hr", ""))
            for k in range(3)
        ),
    )
    with pytest.raises(ValueError, match="look like pairs"):
        open_dataset(tmp_path, image_size=8)
    fill(
        tmp_path / "words",
        *(f"{name}/a{k}_{name}.png" for name in ("input", "target") for k in range(3)),
    )
    with pytest.raises(ValueError, match="look like pairs"):
        open_dataset(tmp_path / "words", image_size=8)


@pytest.mark.parametrize(
    "files",
    [
        in_folders("cats", "dogs", count=4),
        in_folders("real", "fake", count=4),
        in_folders("summer", "winter", count=4),
        [f"{name}/{name}{k}.png" for name in ("low", "high") for k in range(4)],
        [f"input/a{k}.png" for k in range(4)] + [f"target/b{k}.png" for k in range(4)],
        [f"a/p{k}.png" for k in range(4)] + [f"b/p{k}.png" for k in range(3, 9)],
        [f"{name}/p{k}.png" for name in "abc" for k in range(4)],
        [f"{name}/hand{k}_{name}.png" for name in "ab" for k in range(4)],
        [f"{name}/hand{k}.png" for name in ("left", "right") for k in range(4)],
        [f"{name}/p{k}.png" for name in ("low", "high", "middle") for k in range(4)],
    ],
    ids=range(10),
)
def test_two_real_classes_are_no_pairs(tmp_path, files):
    opened = open_dataset(fill(tmp_path, *files), image_size=8)
    assert opened.class_names == tuple(sorted({name.split("/")[0] for name in files}))
    assert not any("pairs" in note for note in opened.notes)


@pytest.mark.parametrize("names", [("a", "b"), ("low", "high")])
def test_counted_files_in_doubtful_folders_are_classes_and_said(tmp_path, names):
    opened = open_dataset(fill(tmp_path, *in_folders(*names, count=4)), image_size=8)
    assert opened.class_names == tuple(sorted(names))
    assert any("may be pairs, not classes" in note for note in opened.notes)
