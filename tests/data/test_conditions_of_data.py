"""Conditions read from tables, arrays, folders and columns, each beside the right image."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_lib import Shapes
from ddpm_lib.data import open_dataset
from ddpm_lib.data.condition_images import OUTSIDE, fit_mask
from ddpm_lib.data.condition_words import portable_words, read_words
from ddpm_lib.data.decode_spec import make_spec
from ddpm_lib.nn import register_text_encoder

N = 12


def grey(i: int) -> int:
    return 20 * i + 5


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures of one grey each, by which their conditions are known; the table is shuffled."""
    images, masks, small = (tmp_path / name for name in ("images", "masks", "small"))
    for where in (images, masks, small):
        where.mkdir()
    rows = []
    for i in range(N):
        Image.new("RGB", (16, 16), (grey(i),) * 3).save(images / f"p{i:02d}.png")
        mask = np.zeros((16, 16), dtype=np.uint8)
        mask[:, : i + 1] = i % 3
        Image.fromarray(mask).save(masks / f"p{i:02d}.png")
        Image.new("L", (8, 8), grey(i)).save(small / f"p{i:02d}.jpg", quality=100)
        rows.append(
            [f"p{i:02d}.png", i / 2, ["red", "blue"][i % 2], "|".join(["a", "b", "c"][: i % 4])]
        )
    rows = [rows[i] for i in np.random.default_rng(0).permutation(N)]
    with open(tmp_path / "meta.csv", "w", newline="") as file:
        csv.writer(file).writerows([["file_name", "age", "style", "tags"], *rows])
    return tmp_path


def opened(folder: Path, *conditions: str, **options: Any) -> Any:
    data = folder / "images"
    return open_dataset(data, image_size=16, conditions=conditions, **{"num_workers": 0} | options)


def numbers(data: Any) -> list[int]:
    """Which pictures these are, read off their grey."""
    return [(int(v) - 5) // 20 for v in data.batch(range(len(data)))["image"][:, 0, 0, 0]]


def test_each_image_has_its_own_line(folder: Path) -> None:
    meta = folder / "meta.csv"
    tags = f"tags={meta}:tags,kind=tags,missing=null"
    data = opened(folder, f"age={meta}:age", f"style={meta}", tags)
    train, held_out = data.split(4)
    for part in (data, train, held_out, data.subset([5, 1])):
        batch, which = part.batch(range(len(part))), numbers(part)
        assert batch["age"].tolist() == [i / 2 for i in which]
        names = part.condition_table["style"]["names"]
        assert [names[k] for k in batch["style"]] == [["red", "blue"][i % 2] for i in which]
        known = [i for i in range(len(which)) if which[i] % 4]  # an empty cell says nothing
        assert [batch["tags"][k].sum().item() for k in known] == [which[k] % 4 for k in known]
        assert all(batch["tags"][k].isnan().all() for k in set(range(len(which))) - set(known))
    assert train[0]["age"].shape == ()
    assert any("condition age: number (0 … 5.5)" in note for note in data.notes)


def test_imagefolder_tables_are_columns_of_the_data(folder: Path) -> None:
    lines = [
        {"file_name": f"p{i:02d}.png", "age": i, "code": [i, -i], "tags": ["x"] * (i % 2)}
        for i in reversed(range(N))
    ]
    text = "\n".join(map(json.dumps, lines))
    (folder / "images" / "metadata.jsonl").write_text(text)
    data = opened(folder, "age=:age", "code=code", "tags=:tags")
    batch = data.batch(range(N))
    assert batch["age"].tolist() == list(range(N))
    assert batch["code"].tolist() == [[i, -i] for i in range(N)]
    assert batch["tags"].tolist() == [[i % 2] for i in range(N)]
    relative = opened(folder, "age=metadata.jsonl:age")  # found beside the pictures
    assert relative.batch([3])["age"].tolist() == [3.0]


def test_columns_of_parquet_and_hf(folder: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    cells = [{"path": str(folder / "images" / f"p{i:02d}.png"), "bytes": None} for i in range(N)]
    columns = {"image": cells, "age": [float(i) for i in range(N)]}
    features = datasets.Features({"image": datasets.Image(), "age": datasets.Value("float32")})
    made = datasets.Dataset.from_dict(columns, features=features).select([4, 2, 7])
    data = open_dataset(made, image_size=16, conditions="age=:age", num_workers=0)
    assert data.batch([0, 1, 2])["age"].tolist() == [4.0, 2.0, 7.0]
    made.to_parquet(str(tmp_path / "some.parquet"))
    data = open_dataset(
        tmp_path / "some.parquet", image_size=16, conditions=["age=:age"], num_workers=0
    )
    assert data.batch([0, 1, 2])["age"].tolist() == [4.0, 2.0, 7.0]
    with pytest.raises(ValueError, match=r"Did you mean 'age'"):
        open_dataset(made, image_size=16, conditions="age=:agee", num_workers=0)


def test_arrays_follow_the_order_of_the_names(folder: Path) -> None:
    np.save(folder / "age.npy", np.arange(N) * 2.0)
    np.save(folder / "code.npy", np.arange(2 * N).reshape(N, 2).astype(np.float64))
    (folder / "keep.txt").write_text("p03.png\np07.png\n")
    conditions = (f"age={folder / 'age.npy'}", f"code={folder / 'code.npy'},drop=0.3")
    data = opened(folder, *conditions)
    assert data.batch([3, 7])["age"].tolist() == [6.0, 14.0]
    assert data.batch([7])["code"].tolist() == [[14.0, 15.0]]
    assert data.condition_table["code"] == {"kind": "vector", "drop_prob": 0.3, "size": 2}


@pytest.mark.parametrize("cache", ["ram", "none"])
def test_masks_and_images_lie_on_their_images(folder: Path, cache: str) -> None:
    data = opened(
        folder,
        f"mask={folder / 'masks'}",
        f"low={folder / 'small'},factor=2,channels=1",
        cache=cache,
    )
    assert data.condition_table["mask"] == {
        "kind": "mask",
        "drop_prob": 0.1,
        "classes": 3,
        "names": None,
    }
    assert data.condition_table["low"] == {
        "kind": "image",
        "drop_prob": 0.1,
        "channels": 1,
        "factor": 2,
    }
    part = data.subset([7, 2])
    batch = part.batch([0, 1])
    assert batch["mask"].dtype == torch.uint8
    assert batch["mask"].sum((1, 2)).tolist() == [16 * 8 * (7 % 3), 16 * 3 * (2 % 3)]
    assert batch["low"].shape == (2, 1, 8, 8)
    assert batch["low"][:, 0, 0, 0].tolist() == [grey(7), grey(2)]


def test_a_mask_is_fitted_like_its_image() -> None:
    """The border between two halves falls on the same pixel, whatever the fit."""
    for fit in ("crop", "pad", "stretch"):
        spec = make_spec((16, 12), 1, fit)
        halves = np.zeros((40, 50), dtype=np.uint8)
        halves[:, 25:] = 1
        picture = Image.fromarray(halves * 255)
        from ddpm_lib.data.fitting import resize_to_frame

        image = np.asarray(resize_to_frame(picture, spec))
        mask = fit_mask(halves, spec)
        assert mask.shape == (16, 12)
        inside = mask != OUTSIDE
        assert ((image > 127) == mask)[inside].mean() > 0.99
    assert (fit_mask(halves, make_spec((16, 12), 1, "pad")) == OUTSIDE).any()


def test_black_and_white_masks_have_two_classes(folder: Path) -> None:
    for path in (folder / "masks").iterdir():
        mask = np.zeros((16, 16), dtype=np.uint8)
        mask[4:8] = 255
        Image.fromarray(mask).save(path)
    data = opened(folder, f"mask={folder / 'masks'}")
    assert data.condition_table["mask"]["classes"] == 2
    assert data.batch([0])["mask"].sum() == 4 * 16


def test_texts_by_an_encoder_that_is_handed_in(folder: Path) -> None:
    register_text_encoder("lengths", lambda texts: [[len(text), text.count("e")] for text in texts])
    data = opened(folder, f"caption={folder / 'meta.csv'}:style,encoder=lengths")
    assert data.batch([0, 1])["caption"].tolist() == [[3.0, 1.0], [4.0, 1.0]]
    entry = data.condition_table["caption"]
    assert entry == {"kind": "text", "drop_prob": 0.1, "size": 2, "encoder": "lengths"}


def test_values_handed_over_in_python() -> None:
    data = Shapes(size=8, n=4).with_conditions(
        {
            "age": [1, 2, 3, 4.5],
            "style": ["a", "b", "a", "c"],
            "turn": np.array([0.0, 90.0, 180.0, 270.0]),
            "mask": torch.zeros(4, 8, 8, dtype=torch.long),
        },
        turn={"kind": "angle", "drop": 0.0},
        mask={"classes": 5},
    )
    assert {name: entry["kind"] for name, entry in data.condition_table.items()} == {
        "age": "number",
        "style": "label",
        "turn": "angle",
        "mask": "mask",
    }
    assert data.condition_table["mask"]["classes"] == 5
    assert data[3]["age"] == 4.5
    assert "age" not in Shapes(size=8, n=4)[0]
    with pytest.raises(ValueError, match=r"'age' has 3 entries for 4 images"):
        data.with_conditions({"age": [1, 2, 3]})
    with pytest.raises(ValueError, match=r"Did you mean 'kind'"):
        data.with_conditions({"age": [1, 2, 3, 4]}, age={"kin": "number"})


def test_the_built_in_shapes_know_their_facts() -> None:
    """Size, colour and mask of drawn shapes agree with their pixels."""
    asked = ["size=:size", "mask=:mask", "colour=:colour"]
    data = open_dataset("shapes", image_size=32, conditions=asked).subset(range(64))
    batch, names = data.batch(range(64)), data.class_names
    corner = batch["image"][:, :, :1, :1].int()
    drawn = (batch["image"].int() - corner).abs().sum(1) > 150
    mask = batch["mask"] > 0
    union = (drawn | mask).sum((1, 2))
    assert ((drawn & mask).sum((1, 2)) / union).mean() > 0.85  # the pixels of edges are mixed
    assert (batch["mask"].amax((1, 2)) == batch["class_label"] + 1).all()
    squares = batch["class_label"] == names.index("square")
    side = (0.84 * batch["size"][squares] * 32) ** 2
    assert torch.allclose(mask.sum((1, 2))[squares].float(), side, rtol=0.12)
    plain = open_dataset("shapes", image_size=32).subset(range(64))
    assert torch.equal(plain.batch(range(64))["image"], batch["image"])


def test_turned_shapes_are_turned_by_their_angle() -> None:
    """Turning a drawn triangle back by its angle gives an upright one."""
    data = Shapes(size=48, n=200, turned=True)
    labels = data.labels
    assert labels is not None
    triangles = np.flatnonzero(labels.numpy() == 2)
    masks, angles = data.column("mask"), np.radians(data.column("angle"))
    for row in triangles[:10]:
        y, x = np.nonzero(masks[row])
        x, y = x - x.mean(), y - y.mean()
        turned = x * np.cos(angles[row]) + y * np.sin(angles[row])
        up = y * np.cos(angles[row]) - x * np.sin(angles[row])
        below = (up > 0).mean()  # the centre of mass of an upright triangle lies low
        assert abs(turned.mean()) < 0.5
        assert np.abs(turned[up > 3]).max() > np.abs(turned[up < -6]).max() + 2, below


def test_words() -> None:
    words = read_words("age=meta.csv:years,drop=0.2,kind=number")
    assert (words.source, words.column, words.options) == (
        "meta.csv",
        "years",
        {"drop": 0.2, "kind": "number"},
    )
    assert read_words("age=:years").own_column == "years"
    assert read_words("age=years").own_column == "years"
    assert read_words("v=v.npy").source == "v.npy"
    assert portable_words("age=:years") == "age=:years"


def test_a_path_is_kept_so_that_it_means_the_same_elsewhere(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    assert portable_words("age=meta.csv:age,drop=0") == f"age={folder}/meta.csv:age,drop=0"
    assert portable_words("mask=masks") == f"mask={folder}/masks"


def write(folder: Path, rows: list[list[Any]]) -> str:
    with open(folder / "t.csv", "w", newline="") as file:
        csv.writer(file).writerows([["file_name", "age"], *rows])
    return f"age={folder / 't.csv'}:age"


def names(n: int = N) -> list[str]:
    return [f"p{i:02d}.png" for i in range(n)]


def test_bad_tables_are_named(folder: Path) -> None:
    meta = folder / "meta.csv"
    with pytest.raises(ValueError, match=r"meta\.csv: Unknown column 'agee'.*Did you mean 'age'"):
        opened(folder, f"age={meta}:agee")
    with pytest.raises(FileNotFoundError, match=r"'age': there is .*nope.csv"):
        opened(folder, "age=nope.csv:age")
    with pytest.raises(ValueError, match=r"2 of 12 images, the first is image p10.png .no line"):
        opened(folder, write(folder, [[name, 1] for name in names(10)]))
    for gap in ("", "nan", "NaN"):
        rows = [[name, gap if name == "p03.png" else i] for i, name in enumerate(names())]
        with pytest.raises(ValueError, match=r"missing or NaN\) for 1 of 12 images.*p03\.png"):
            opened(folder, write(folder, rows))
        known = opened(folder, write(folder, rows) + ",missing=null").batch(range(N))["age"]
        assert known.isnan().tolist() == [i == 3 for i in range(N)]
        with pytest.raises(ValueError, match=r"drop must be above 0"):
            opened(folder, write(folder, rows) + ",missing=null,drop=0")
    infinite = write(folder, [[n, "inf" if n == "p02.png" else 1.5] for n in names()])
    with pytest.raises(ValueError, match=r"is infinite for image p02.png"):
        opened(folder, infinite)
    wordy = write(folder, [[n, "old" if n == "p01.png" else 2] for n in names()])
    with pytest.raises(ValueError, match=r"must be numbers; that of image p01.png is 'old'"):
        opened(folder, f"{wordy},kind=number")


def test_bad_texts_say_what_is_missing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # no waiting for it
    rows = [[name, f"a picture, number {i}"] for i, name in enumerate(names())]
    many = [f"text {i}" for i in range(30)]
    with pytest.raises(ValueError, match=r"30 different texts for 30 images.*encoder=NAME"):
        Shapes(size=8, n=30).with_conditions({"caption": many})
    with pytest.raises(ValueError, match=r"needs a sentence encoder"):
        opened(folder, write(folder, rows) + ",kind=text")
    with pytest.raises(ValueError, match=r"There is no text encoder 'nobody'|load 'nobody'"):
        opened(folder, write(folder, rows) + ",encoder=nobody")


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("age", "is written NAME=SOURCE"),
        ("age=", "is written NAME=SOURCE"),
        ("image=meta.csv:age", "cannot be called so"),
        ("age=meta.csv:", "names no column after the colon"),
        ("age=meta.csv:age,drp=0.2", "Did you mean 'drop'"),
        ("age=meta.csv:age,drop=much", "drop of the condition 'age' must be a number"),
        ("age=meta.csv:age,kind=nummer", "Did you mean 'number'"),
        ("age=meta.csv:age,missing=zero", "Choices: error, null"),
    ],
)
def test_bad_words_are_named(written: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_words(written)


def test_bad_arrays_are_named(folder: Path) -> None:
    np.save(folder / "short.npy", np.zeros(5))
    with pytest.raises(ValueError, match=r"short.npy has 5 entries for 12 images"):
        opened(folder, f"age={folder / 'short.npy'}")
    values = np.zeros((N, 3))
    values[4, 1] = np.nan
    np.save(folder / "nan.npy", values)
    with pytest.raises(ValueError, match=r"1 of 12 images, the first is image p04.png"):
        opened(folder, f"code={folder / 'nan.npy'}")
    (folder / "text.npy").write_text("no array")
    with pytest.raises(ValueError, match=r"cannot be read as an array"):
        opened(folder, f"age={folder / 'text.npy'}")
    with pytest.raises(ValueError, match=r"an array has no columns"):
        opened(folder, f"age={folder / 'short.npy'}:age")


def test_bad_masks_are_named(folder: Path) -> None:
    masks = folder / "masks"
    good = Image.open(masks / "p02.png").copy()
    good.resize((8, 16)).save(masks / "p02.png")
    good.convert("RGB").save(masks / "p05.png")
    with pytest.raises(ValueError) as error:
        opened(folder, f"mask={masks},kind=mask")
    assert "p02.png: 8×16 pixels, its image has 16×16" in str(error.value)
    assert "p05.png: in colour (RGB)" in str(error.value)
    good.save(masks / "p02.png")
    (masks / "p05.png").unlink()
    with pytest.raises(ValueError, match=r"has no picture for 1 of 12 images: p05.png"):
        opened(folder, f"mask={masks}")
    good.save(masks / "p05.png")
    with pytest.raises(ValueError, match=r"has the class 2; classes=2 allows 0 to 1"):
        opened(folder, f"mask={masks},classes=2")


def test_bad_pairs_are_named(folder: Path) -> None:
    Image.new("L", (8, 6)).save(folder / "small" / "p03.jpg")
    with pytest.raises(ValueError, match=r"p03.jpg: 8×6 pixels, its image has 16×16"):
        opened(folder, f"low={folder / 'small'}")
    Image.new("L", (8, 8)).save(folder / "small" / "p03.jpg")
    with pytest.raises(ValueError, match=r"factor of the condition 'low' must divide"):
        opened(folder, f"low={folder / 'small'},factor=3")


def test_data_without_columns_say_so(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"has no table that names its pictures"):
        opened(folder, "age=:age")
    array = np.zeros((4, 8, 8, 3), dtype=np.uint8)
    with pytest.raises(ValueError, match=r"with_conditions"):
        open_dataset(array, image_size=8, conditions="age=:age")
    with pytest.raises(ValueError, match=r"Unknown fact of the built-in shapes 'hue'"):
        open_dataset("shapes", image_size=8, conditions="hue=:hue")


@pytest.mark.parametrize("kind", ["label", "tags"])
def test_a_number_has_one_name_however_and_wherever_it_is_written(kind: str) -> None:
    """All of its digits: 1000000 is not 1e+06, and two long numbers are two."""
    long = ["12345678901234567", "12345678901234568"]
    written = ["1000000", "1.0", "0.50", "1", "007", "1e5", *long]
    names = ["1000000", "1", "0.5", "1", "007", "1e5", *long]
    data = Shapes(size=8, n=len(names)).with_conditions({"a": written}, a={"kind": kind})
    known = data.condition_table["a"]["names"]
    values = data.conditions["a"].values
    rows = values.argmax(1) if kind == "tags" else values
    assert [known[k] for k in rows] == names
    numbers = [1000000, 1.0, 0.5, 1]
    same = Shapes(size=8, n=4).with_conditions({"a": numbers}, a={"kind": kind})
    assert set(same.condition_table["a"]["names"]) == set(names[:4])


def test_a_tag_has_one_name_alone_and_beside_others() -> None:
    cells = ["1.0|1000000", "1", "1000000", ["1.0", None], [1.0, 1000000.0]]
    data = Shapes(size=8, n=5).with_conditions({"a": cells}, a={"kind": "tags"})
    assert data.condition_table["a"]["names"] == ["1", "1000000"]
    assert data.conditions["a"].values.tolist() == [[1, 1], [1, 0], [0, 1], [1, 0], [1, 1]]


@pytest.mark.parametrize("source", ["folder", "array"])
def test_white_is_unknown_where_more_classes_are_said(folder: Path, source: str) -> None:
    masks = np.zeros((N, 16, 16), dtype=np.uint8)
    masks[:, 4:8] = 255
    np.save(folder / "masks.npy", masks)
    for mask, path in zip(masks, sorted((folder / "masks").iterdir())):
        Image.fromarray(mask).save(path)
    place = folder / ("masks" if source == "folder" else "masks.npy")
    for classes, seen in ((5, [0, 255]), (2, [0, 1])):
        data = opened(folder, f"mask={place},classes={classes}")
        assert data.batch(range(N))["mask"].unique().tolist() == seen
    masks[:] = 255
    for mask, path in zip(masks, sorted((folder / "masks").iterdir())):
        Image.fromarray(mask).save(path)
    np.save(folder / "masks.npy", masks)
    data = opened(folder, f"mask={place},classes=2")
    assert data.batch(range(N))["mask"].unique().tolist() == [1]


def test_columns_of_the_shapes_go_with_a_list_and_without_labels() -> None:
    def sizes(**options: Any) -> np.ndarray:
        data = open_dataset("shapes", image_size=8, conditions="size=:size", **options)
        return np.asarray(data.conditions["size"].values)

    every = sizes()
    assert sizes(labels="none").tolist() == every.tolist()
    assert sizes(files=["000007", "000002"]).tolist() == every[[2, 7]].tolist()
    assert sizes(files=["000007", "000002"], labels="none").tolist() == every[[2, 7]].tolist()


@pytest.mark.parametrize(
    ("word", "kind", "theirs"),
    [
        ("age={0}/meta.csv:age,classes=3", "number", "mask"),
        ("age={0}/meta.csv:age,kind=number,period=90", "number", "angle"),
        ("style={0}/meta.csv:style,kind=label,encoder=letters", "label", "text"),
        ("mask={0}/masks,factor=2", "mask", "image"),
        ("mask={0}/masks,channels=1", "mask", "image"),
        ("low={0}/small,kind=image,factor=2,classes=3", "image", "mask"),
        ("low={0}/low.npy,period=3", "image", "angle"),
        ("code={0}/code.npy,channels=3", "vector", "image"),
    ],
)
def test_words_of_another_kind_are_refused(folder: Path, word: str, kind: str, theirs: str) -> None:
    np.save(folder / "low.npy", np.zeros((N, 3, 16, 16), dtype=np.uint8))
    np.save(folder / "code.npy", np.random.default_rng(0).random((N, 3)))
    with pytest.raises(ValueError, match=f"is for conditions of kind {theirs}, .* of kind {kind}"):
        opened(folder, word.format(folder))


def test_channels_of_an_array_are_those_that_it_has(folder: Path) -> None:
    np.save(folder / "low.npy", np.zeros((N, 3, 16, 16), dtype=np.uint8))
    with pytest.raises(ValueError, match=r"images of 3 channels .*, and channels=1 was said"):
        opened(folder, f"low={folder / 'low.npy'},channels=1")
    entry = opened(folder, f"low={folder / 'low.npy'},channels=3").condition_table["low"]
    assert entry["channels"] == 3
