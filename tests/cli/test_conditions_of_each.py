"""A condition per picture: folders, tables, arrays, in every command that draws and in Python."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from command_line import ddpm, error_of
from ddpm_lib import GaussianDiffusion, Shapes, Unet, load_run
from ddpm_lib.core.errors import ConfigError
from ddpm_lib.images import save_image
from ddpm_lib.runs.told_conditions import read_told
from every_condition import COMMANDS, FAST, KINDS, train

NAMES = ("a", "b", "c")
CELLS = {
    "size": ("0.4", "0.7", "0.9"),
    "turn": ("10", "90", "300"),
    "spot": None,
    "colour": ("red", "blue", "green"),
    "marks": ("a", "b|c", "a|b|c"),
    "caption": ("a red ring", "a blue ring", "a green ring"),
}
"""By condition, what a table says of the three pictures."""
RNG = np.random.default_rng(3)
ARRAYS: dict[str, Any] = {
    "size": np.array([0.4, 0.7, 0.9]),
    "turn": np.array([10, 90, 300]),
    "spot": RNG.normal(size=(3, 3)),
    "colour": np.array([0, 2, 1]),
    "marks": np.array([[1, 0, 0], [0, 1, 1], [1, 1, 1]]),
    "mask": RNG.integers(0, 2, (3, 8, 8)).astype(np.uint8),
    "sketch": RNG.integers(0, 256, (3, 1, 8, 8)).astype(np.uint8),
    "caption": RNG.normal(size=(3, 6)),
}
SOURCES = {
    **{name: ["table", "array"] for name, cells in CELLS.items() if cells},
    "spot": ["array"],
    "mask": ["folder", "array"],
    "sketch": ["folder", "array"],
}
CASES = [(kind, source) for kind in KINDS for source in SOURCES[kind]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("each") / "run")


@pytest.fixture(scope="module")
def needy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("needy") / "run", drop=0.0, names=("size", "mask"))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pictures to redraw, and what belongs to each, in all forms; bad ones beside them."""
    place = tmp_path_factory.mktemp("files")
    for k, name in enumerate(NAMES):
        save_image(Shapes(size=8, n=3)[k]["image"], place / "pictures" / f"{name}.png")
        for kind in ("mask", "sketch"):
            (place / kind).mkdir(exist_ok=True)
            values = ARRAYS[kind][k]
            Image.fromarray(values.reshape(8, 8)).save(place / kind / f"{name}.png")
    for kind, array in ARRAYS.items():
        np.save(place / f"{kind}.npy", array)
    table(place / "meta.csv", {"file_name": [f"{name}.jpg" for name in NAMES], **cells()})
    Image.fromarray(np.tile(np.uint8([0, 255]), (8, 4))).save(place / "hole.png")
    bad(place)
    return place


def cells() -> dict[str, tuple[str, ...]]:
    return {name: words for name, words in CELLS.items() if words}


def bad(place: Path) -> None:
    for folder, names in {
        "two": ("a", "b"),
        "twice": (),
        "wide": (),
        "high": (),
        "empty": (),
    }.items():
        (place / folder).mkdir()
        for name in names:
            Image.new("L", (8, 8)).save(place / folder / f"{name}.png")
    for name in NAMES:
        Image.new("L", (8, 8)).save(place / "twice" / f"{name}.png")
        Image.new("L", (16, 8)).save(place / "wide" / f"{name}.png")
        Image.new("L", (8, 8), 9).save(place / "high" / f"{name}.png")
    Image.new("L", (8, 8)).save(place / "twice" / "b.bmp")
    np.save(place / "two.npy", np.zeros((2, 3)))
    np.save(place / "flat.npy", np.zeros((3, 3, 3)))
    np.save(place / "large.npy", np.zeros((3, 16, 16), np.uint8))
    np.save(place / "words.npy", np.array([["x", "y", "z"]] * 3))
    table(place / "lone.csv", {"file_name": ["a.png", "c.png"], "size": ["0.1", "0.2"]})
    names = [f"{name}.png" for name in NAMES]
    table(place / "odd.csv", {"file_name": names, "size": ["1", "big", "2"], "colour": ["rod"] * 3})
    table(place / "gaps.csv", {"file_name": names, "size": ["0.5", "", "0.2"]})
    table(place / "bare.csv", {"size": ["0.1", "0.2", "0.3"]})
    table(place / "none.csv", {"size": []})


def table(path: Path, columns: Any) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values()))


def word_of(kind: str, source: str, files: Path) -> str:
    ends = {"table": f"meta.csv:{kind}", "folder": kind, "array": f"{kind}.npy"}
    return f"{files}/{ends[source]}"


def words_of(command: str, run: Path, files: Path) -> list[object]:
    """Words of a command that draws for three pictures."""
    how: dict[str, list[object]] = {
        "sample": ["--format", "png", "--sampler", "ddim"],
        "edit": [files / "pictures"],
        "inpaint": [files / "pictures", "--mask", files / "hole.png", "--num-resamples", 1],
        "restore": [files / "pictures", "--operator", "blur:1"],
    }
    return [command, run, *how[command], *FAST, "--class-label", "ring"]


def drawn(command: str, run: Path, files: Path, out: Path, *more: object) -> np.ndarray:
    assert ddpm(*words_of(command, run, files), *more, "--output-dir", out) == 0
    found = sorted((out if command == "sample" else out / "images").glob("*[0-9abc].png"))
    return np.stack([np.asarray(Image.open(path).convert("RGB")) for path in found]).astype(int)


def values_of(kind: str, source: str, k: int) -> Any:
    if source == "table":
        words = CELLS[kind]
        assert words is not None
        return float(words[k]) if kind in ("size", "turn") else words[k]
    value = torch.from_numpy(ARRAYS[kind][k : k + 1].copy())
    return value.float() if value.dtype == torch.float64 else value


@pytest.mark.parametrize(("kind", "source"), CASES)
def test_each_image_is_drawn_by_its_own_value(
    kind: str, source: str, run: Path, files: Path, tmp_path: Path
) -> None:
    """`ddpm sample` draws one image per entry, each what Python draws with that entry alone."""
    word = f"{kind}={word_of(kind, source, files)}"
    images = drawn("sample", run, files, tmp_path / "a", "--cond", word)
    assert len(images) == 3
    diffusion = load_run(run, weights="model").diffusion
    how: Any = {"sampler": "ddim", "num_steps": 2, "progress": False}
    for k in range(3):
        cond = {"class_label": "ring", kind: values_of(kind, source, k)}
        alone = diffusion.sample(1, cond=cond, first_index=k, **how)
        wanted = (alone * 255).round().permute(0, 2, 3, 1).numpy()
        assert np.abs(images[k] - wanted).max() <= 1
    others = drawn("sample", run, files, tmp_path / "b", "--num", 3)
    assert np.abs(images - others).max() > 1


@pytest.mark.parametrize("command", COMMANDS[1:])
@pytest.mark.parametrize(("kind", "source"), CASES)
def test_each_picture_is_redrawn_by_its_own_value(
    command: str, kind: str, source: str, run: Path, files: Path, tmp_path: Path
) -> None:
    """What is drawn for all pictures at once is what is drawn for the second alone, by its value:
    folders and tables are looked up by names.
    """
    word = word_of(kind, source, files)
    many = drawn(command, run, files, tmp_path / "a", "--cond", f"{kind}={word}", "--variants", 2)
    loaded = load_run(run, weights="model")
    names = None if source == "array" else ["a", "b", "c"]
    values = loaded.conditions(names, **{kind: word})[kind]
    assert len(values) == 3
    assert len(many) == 6
    plain = drawn(command, run, files, tmp_path / "b", "--variants", 2)
    assert all(
        np.abs(many[2 * k : 2 * k + 2] - plain[2 * k : 2 * k + 2]).max() > 0 for k in range(3)
    )
    if source == "array":
        return
    lone = tmp_path / "pictures"
    lone.mkdir()
    (lone / "a.png").write_bytes((files / "pictures" / "a.png").read_bytes())
    words = words_of(command, run, files)
    words[2] = lone
    more = ["--cond", f"{kind}={word}", "--variants", 2, "--output-dir", tmp_path / "c"]
    assert ddpm(*words, *more) == 0
    first = np.asarray(Image.open(tmp_path / "c" / "images" / "a-1.png").convert("RGB")).astype(int)
    assert np.abs(first - many[0]).max() <= 1


def test_images_take_entries_in_turn_and_say_which(run: Path, files: Path, tmp_path: Path) -> None:
    """Folders and tables go together by names; the files and a table say what is whose."""
    told = ["--cond", f"mask={files / 'mask'}", "--cond", f"size={files / 'meta.csv'}"]
    told += ["--cond", f"spot={files / 'spot.npy'}"]
    images = drawn("sample", run, files, tmp_path / "a", *told, "--num", 4, "--first-index", 1)
    there = sorted(path.name for path in (tmp_path / "a").glob("*.png"))
    assert there == [f"00000{k}-{name}.png" for k, name in zip((1, 2, 3, 4), "bcab")]
    with open(tmp_path / "a" / "conditions.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["file_name"] for line in lines] == there
    assert [line["size"] for line in lines] == ["0.7", "0.9", "0.4", "0.7"]
    assert lines[0]["mask"] == str(files / "mask" / "b.png")
    assert lines[2]["spot"] == f"{files / 'spot.npy'}[0]"
    again = drawn("sample", run, files, tmp_path / "b", *told)
    assert np.array_equal(images[:2], again[1:])
    # What is written can be said again.
    told[3] = f"size={tmp_path / 'b' / 'conditions.csv'}"
    told[1] = f"mask={files / 'mask.npy'}"
    assert np.array_equal(drawn("sample", run, files, tmp_path / "c", *told), again)


def test_grids_show_the_masks(run: Path, files: Path, tmp_path: Path) -> None:
    told = ["--cond", f"mask={files / 'mask'}"]
    words = ["sample", run, *FAST, "--sampler", "ddim", "--scale", 1, "--columns", 3, *told]
    assert ddpm(*words, "--output-dir", tmp_path / "a") == 0
    grid = np.asarray(Image.open(tmp_path / "a" / "grid.png").convert("RGB"))
    assert grid.shape[1] > 6 * 8
    colours = {tuple(pixel) for pixel in grid[:10, :10].reshape(-1, 3).tolist()}
    assert {(0, 0, 0), (230, 25, 75)} <= colours  # the two classes of a mask
    drawn("edit", run, files, tmp_path / "b", *told)
    with_masks = Image.open(tmp_path / "b" / "grid.png").width
    drawn("edit", run, files, tmp_path / "c", "--cond", f"mask={files / 'mask' / 'a.png'}")
    assert with_masks > Image.open(tmp_path / "c" / "grid.png").width


def test_a_sweep_takes_an_entry_per_row(run: Path, files: Path, tmp_path: Path) -> None:
    told = ["--cond", f"mask={files / 'mask'}", "--sweep", "size=0.4,0.9"]
    swept = drawn("sample", run, files, tmp_path / "a", *told)
    assert len(swept) == 6
    one = ["--cond", f"mask={files / 'mask' / 'b.png'}", "--cond", "size=0.9", "--seed", 1]
    alone = drawn("sample", run, files, tmp_path / "b", *one, "--num", 1)
    assert np.array_equal(swept[3], alone[0])  # row 1, column 1


def test_pictures_of_other_proportions_take_masks_of_theirs(run: Path, tmp_path: Path) -> None:
    """A mask in the size of its picture is cut as the picture is."""
    (tmp_path / "in").mkdir()
    (tmp_path / "masks").mkdir()
    picture = Shapes(size=8, n=1)[0]["image"].permute(1, 2, 0).numpy()
    wide = np.pad(picture, ((0, 0), (4, 4), (0, 0)))
    Image.fromarray(wide).save(tmp_path / "in" / "a.png")
    mask = ARRAYS["mask"][0]
    Image.fromarray(np.pad(mask, ((0, 0), (4, 4)), constant_values=1)).save(
        tmp_path / "masks" / "a.png"
    )
    Image.fromarray(mask).save(tmp_path / "a.png")
    words = ["edit", run, tmp_path / "in", *FAST]
    for place, word in (("x", tmp_path / "masks"), ("y", tmp_path / "a.png")):
        assert ddpm(*words, "--cond", f"mask={word}", "--output-dir", tmp_path / place) == 0
    one, two = (tmp_path / place / "images" / "a.png" for place in "xy")
    assert np.array_equal(np.asarray(Image.open(one)), np.asarray(Image.open(two)))


BOTH = COMMANDS
REDRAWN = COMMANDS[1:]
BAD = [
    (BOTH, "mask={files}/empty", "--cond mask:"),
    (BOTH, "mask={files}/wide", "16×8 pixels, the images have the proportions of 8×8"),
    (BOTH, "mask={files}/high", "has the class 9; they go from 0 to 1"),
    (BOTH, "mask={files}/large.npy", "holds pictures of 16×16, and the network takes 8×8"),
    (BOTH, "mask={files}/size.npy", "one mask per image is an array of shape (n, h, w)"),
    (BOTH, "mask={files}/spot.npy", "must hold whole numbers from 0 to 255"),
    (BOTH, "mask={files}/meta.csv:size", "a table holds no masks"),
    (BOTH, "sketch={files}/wide", "16×8 pixels, the images have the proportions of 8×8"),
    (BOTH, "sketch={files}/spot.npy", "one image per image is an array of shape (n, c, h, w)"),
    (BOTH, "sketch={files}/mask.npy", "must hold one image of 1 channels per sample"),
    (BOTH, "size={files}/meta.csv:sise", "Did you mean 'size'"),
    (BOTH, "size={files}/nowhere.csv:size", "nowhere.csv' does not exist"),
    (BOTH, "size={files}/nowhere.npy", "nowhere.npy' does not exist"),
    (BOTH, "size={files}/odd.csv", "must be numbers; that of entry 2 of"),
    (BOTH, "size={files}/none.csv", "has a heading and no lines"),
    (BOTH, "size={files}/spot.npy", "one number per image is an array of shape (n,)"),
    (BOTH, "turn={files}/odd.csv:size", "must be numbers; that of entry 2 of"),
    (BOTH, "spot={files}/flat.npy", "one vector per image is an array of shape (n, d)"),
    (BOTH, "spot={files}/words.npy", "no numbers"),
    (BOTH, "spot={files}/caption.npy", "must have shape (3, 3), a row per sample; got (3, 6)"),
    (BOTH, "colour={files}/odd.csv", "has rod, which the network does not know"),
    (BOTH, "marks={files}/odd.csv:colour", "has rod, which the network does not know"),
    (BOTH, "caption={files}/nowhere.csv:text", "nowhere.csv' does not exist"),
    (REDRAWN, "mask={files}/two", "has no entry named like a picture for 1 of 3: c"),
    (REDRAWN, "mask={files}/twice", "and which of them belongs to b is not known"),
    (REDRAWN, "size={files}/lone.csv", "has no entry named like a picture for 1 of 3: b"),
    (REDRAWN, "size={files}/bare.csv", "no column of"),
    (REDRAWN, "spot={files}/two.npy", "has 2 entries for 3 pictures"),
]


@pytest.mark.parametrize(
    ("command", "word", "message"), [(c, w, m) for cs, w, m in BAD for c in cs]
)
def test_bad_sources_are_named(
    command: str,
    word: str,
    message: str,
    run: Path,
    files: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    word = word.format(files=files)
    words = [*words_of(command, run, files), "--cond", word, "--output-dir", tmp_path / "out"]
    assert message in error_of(capsys, *words)
    assert not (tmp_path / "out").exists()
    name, _, value = word.partition("=")
    names = None if command == "sample" else list(NAMES)
    with pytest.raises(ConfigError) as caught:
        load_run(run).conditions(names, **{name: value})
    assert message.removeprefix("--cond mask:") in str(caught.value)
    assert "--cond" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("mask={files}/mask", "size={files}/lone.csv"), "named like a picture of {files}/mask"),
        (("mask={files}/mask", "spot={files}/two.npy"), "has 2 entries for 3 entries of"),
        (("size={files}/meta.csv", "spot={files}/two.npy"), "has 2 entries for 3 entries of"),
        (("mask={files}/mask", "size={files}/bare.csv"), "names the images, such as a.png"),
    ],
)
def test_sources_that_do_not_go_together(
    words: tuple[str, str],
    message: str,
    run: Path,
    files: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    told = [part for word in words for part in ("--cond", word.format(files=files))]
    said = error_of(capsys, *words_of("sample", run, files), *told)
    assert message.format(files=files) in said


def test_empty_cells_are_no_value_where_the_network_knows_that(
    run: Path, needy: Path, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    word = f"size={files / 'gaps.csv'}"
    images = drawn("sample", run, files, tmp_path / "a", "--cond", word)
    without = drawn("sample", run, files, tmp_path / "b", "--num", 3)
    assert np.array_equal(images[1], without[1])
    assert not np.array_equal(images[0], without[0])
    told = ["--cond", word, "--cond", f"mask={files / 'mask'}"]
    said = error_of(capsys, *words_of("sample", needy, files), *told)
    assert "gaps.csv:size has no value, and the network knows no absence of it" in said


def test_python_reads_what_the_command_reads(run: Path, files: Path) -> None:
    loaded = load_run(run, weights="model")
    cond = loaded.conditions(
        mask=files / "mask", size=f"{files}/meta.csv:size", colour="red", spot=torch.zeros(3)
    )
    assert cond["mask"].tolist() == torch.from_numpy(ARRAYS["mask"]).tolist()
    assert cond["size"].tolist() == pytest.approx([0.4, 0.7, 0.9])
    assert cond["colour"].shape == (1,)
    assert cond["spot"].shape == (1, 3)
    images = loaded.diffusion.sample(3, cond=cond, num_steps=2, progress=False)
    assert images.shape == (3, 3, 8, 8)
    by_name = loaded.conditions(["c.jpg", "a.jpg"], mask=files / "mask", size=f"{files}/meta.csv")
    assert by_name["size"].tolist() == pytest.approx([0.9, 0.4])
    assert by_name["mask"][0].tolist() == ARRAYS["mask"][2].tolist()
    with pytest.raises(ConfigError, match="Did you mean 'size'"):
        loaded.conditions(sise=1)


@pytest.mark.parametrize("classes", [2, 5])
def test_white_means_the_same_in_files_and_in_arrays(classes: int, tmp_path: Path) -> None:
    """One mask at a time: what the others hold says nothing of it."""
    table = {"mask": {"kind": "mask", "classes": classes}}
    diffusion = GaussianDiffusion(Unet(dim=8, dim_mults=(1,), conditions=table), image_size=8)
    masks = np.zeros((3, 8, 8), dtype=np.uint8)
    masks[0, :4], masks[1], masks[2, :2] = 255, 255, 1
    (tmp_path / "masks").mkdir()
    for k, mask in enumerate(masks):
        Image.fromarray(mask).save(tmp_path / "masks" / f"{k}.png")
    np.save(tmp_path / "masks.npy", masks)
    np.save(tmp_path / "one.npy", masks[1])
    wanted = np.minimum(masks, 1) if classes == 2 else masks
    for name in ("masks", "masks.npy"):
        many = read_told(diffusion, {"mask": tmp_path / name}).values().many["mask"]
        assert many.tolist() == wanted.tolist()
    for name in ("one.npy", "masks/1.png"):
        fixed = read_told(diffusion, {"mask": tmp_path / name}).fixed["mask"]
        assert fixed.tolist() == wanted[1:2].tolist()


@pytest.mark.parametrize("source", ["table", "array"])
def test_numbers_of_labels_and_the_number_of_none(source: str, tmp_path: Path) -> None:
    """−1 is no label, not the last one."""
    table = {"hair": {"kind": "label", "names": ["dark", "fair", "red"]}}
    diffusion = GaussianDiffusion(Unet(dim=8, dim_mults=(1,), conditions=table), image_size=8)

    def read(*numbers: int) -> list[int]:
        np.save(tmp_path / "hair.npy", np.array(numbers))
        (tmp_path / "hair.csv").write_text("\n".join(["hair", *map(str, numbers)]))
        name = "hair.csv" if source == "table" else "hair.npy"
        told = read_told(diffusion, {"hair": tmp_path / name}).values()
        return list(told.many["hair"].tolist())

    assert read(2, -1, 0) == [2, -1, 0]
    for wrong in (-2, 3):
        with pytest.raises(ConfigError, match=f"has {wrong}, which the network does not know"):
            read(1, wrong)
