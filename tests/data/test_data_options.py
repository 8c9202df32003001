"""Options that do not fit the data are errors; labels in tables beside pictures are read."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_lib import load_run
from ddpm_lib.cli import main
from ddpm_lib.data import Shapes, open_dataset

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
WORDS = ["owl", "crow", "owl", "emu", "crow", "owl"]


def pictures(folder: Path, names: list[str] | None = None) -> Path:
    for k, name in enumerate(names or [f"{k}.png" for k in range(6)]):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(IMAGES[k % 6]).save(folder / name)
    return folder


class Pairs(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 6

    def __getitem__(self, i: int):
        return IMAGES[i], i % 2


def source(kind: str, folder: Path):
    if kind == "folder":
        return pictures(folder)
    if kind == "npz":
        np.savez(folder / "a.npz", images=IMAGES, labels=np.arange(6))
        return folder / "a.npz"
    if kind == "npy":
        np.save(folder / "a.npy", IMAGES)
        return folder / "a.npy"
    if kind == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        rows = [image.tolist() for image in IMAGES]
        pq.write_table(pa.table({"image": rows, "label": list(range(6))}), folder / "a.parquet")
        return folder / "a.parquet"
    if kind in ("hf", "saved"):
        from datasets import Dataset

        data = Dataset.from_dict(
            {"image": [image.tolist() for image in IMAGES], "label": list(range(6))}
        )
        if kind == "hf":
            return data
        data.save_to_disk(folder / "saved")
        return folder / "saved"
    if kind == "csv":
        pictures(folder)
        lines = [f"{k}.png,{word}" for k, word in enumerate(WORDS)]
        (folder / "labels.csv").write_text("\n".join(["file,label", *lines]))
        return folder / "labels.csv"
    return {"array": IMAGES, "torch": Pairs(), "shapes": "shapes", "open": Shapes(8)}[kind]


KINDS = (
    "folder",
    "npz",
    "npy",
    "parquet",
    "hf",
    "saved",
    "csv",
    "array",
    "torch",
    "shapes",
    "open",
)
WRONG = {
    "split": ("nonsense", ()),
    "image_column": ("nonsense", ()),
    "label_column": ("nonsense", ()),
    "labels": ("prefix", ()),
    "frames": ("all", ("folder", "csv")),
    "value_range": ((0, 99), ()),
}


@pytest.mark.every(3)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("option", WRONG)
def test_an_option_without_a_use_is_an_error(tmp_path, kind, option):
    value, fits = WRONG[option]
    data = source(kind, tmp_path)
    assert len(open_dataset(data, image_size=8)) >= 6
    if kind in fits:
        assert len(open_dataset(data, image_size=8, **{option: value})) == 6
    else:
        with pytest.raises(ValueError, match=rf"{option}|nonsense|column") as caught:
            open_dataset(data, image_size=8, **{option: value})
        assert len(str(caught.value)) < 1500


@pytest.mark.parametrize("kind", ["shapes", "open"])
@pytest.mark.parametrize(
    "option", [{"on_bad_image": "skip"}, {"background": "black"}, {"fit": "pad"}]
)
def test_images_that_are_made_take_no_options_of_pictures(kind, option, tmp_path):
    with pytest.raises(ValueError, match=f"{next(iter(option))}=.* does not fit"):
        open_dataset(source(kind, tmp_path), image_size=8, **option)


def lines(kind: str, column: str, files: list[str], labels: list) -> str:
    rows = list(zip(files, labels))
    if kind == "jsonl":
        return "\n".join(json.dumps({"file_name": f, column: v}) for f, v in rows)
    if kind == "json":
        return json.dumps({"labels": [[f, v] for f, v in rows]})
    mark = {"csv": ",", "tsv": "\t", "semicolon": ";"}[kind]
    return "\ufeff" + "\n".join([f"file_name{mark}{column}", *(f"{f}{mark}{v}" for f, v in rows)])


TABLES = {
    "metadata.jsonl": "jsonl",
    "metadata.csv": "csv",
    "dataset.json": "json",
    "labels.csv": "csv",
    "train.csv": "semicolon",
    "labels.tsv": "tsv",
}


@pytest.mark.parametrize("name", [*TABLES, "metadata.parquet"])
@pytest.mark.parametrize("layout", ["flat", "deep", "no extension"])
def test_labels_of_a_table_beside_the_pictures(tmp_path, name, layout):
    files = [f"part{k % 2}/{k}.png" if layout == "deep" else f"x{k}.png" for k in range(6)]
    pictures(tmp_path, files)
    written = [f.removesuffix(".png") for f in files] if layout == "no extension" else files
    if name == "metadata.parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table({"file_name": written, "label": WORDS}), tmp_path / name)
    else:
        (tmp_path / name).write_text(lines(TABLES[name], "label", written, WORDS))
    data = open_dataset(tmp_path, image_size=8)
    assert data.class_names == ("crow", "emu", "owl")
    by_file = dict(zip(files, WORDS))
    assert [data.class_names[k] for k in data.labels.tolist()] == [by_file[n] for n in data.names]
    assert any(name in note and "'label'" in note for note in data.notes)
    assert open_dataset(tmp_path, image_size=8, labels="none").labels is None


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_label_column_is_found_or_named(tmp_path, kind):
    pictures(tmp_path)
    files = [f"{k}.png" for k in range(6)]
    (tmp_path / f"metadata.{kind}").write_text(lines(kind, "species", files, WORDS))
    plain = open_dataset(tmp_path, image_size=8)
    assert plain.labels is None
    assert any("species" in note and "label_column" in note for note in plain.notes)
    assert open_dataset(tmp_path, image_size=8, label_column="species").num_classes == 3
    with pytest.raises(ValueError, match=r"no label column 'specie'. Did you mean 'species'"):
        open_dataset(tmp_path, image_size=8, label_column="specie")
    with pytest.raises(ValueError, match="contradict"):
        open_dataset(tmp_path, image_size=8, label_column="species", labels="none")


def test_what_a_table_lacks_or_has_too_much_is_named(tmp_path):
    pictures(tmp_path)
    files = [f"{k}.png" for k in range(5)]
    (tmp_path / "metadata.csv").write_text(lines("csv", "label", [*files, "gone.png"], WORDS))
    data = open_dataset(tmp_path, image_size=8)
    assert data.labels is None
    assert any(
        "1 of 6 pictures are not named in metadata.csv: 5.png" in note for note in data.notes
    )
    with pytest.raises(ValueError, match=r"not named in metadata.csv: 5.png"):
        open_dataset(tmp_path, image_size=8, label_column="label")
    (tmp_path / "5.png").unlink()
    data = open_dataset(tmp_path, image_size=8)
    assert data.num_classes == 3
    assert any("1 files that are not there: gone.png" in note for note in data.notes)


def test_other_tables_are_left_alone(tmp_path):
    pictures(tmp_path, ["a/0.png", "b/1.png"])
    (tmp_path / "notes.csv").write_text("date,weather\n1,rain\n2,sun,much\n")
    (tmp_path / "empty.csv").write_text("")
    assert open_dataset(tmp_path, image_size=8).class_names == ("a", "b")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("file,label\n9.png,owl", "No column"),
        ("file,label\n0.png,owl\n9.png,emu", "not below .*9.png"),
        ("file,label\n0.png,owl,x", "line 2 has 3"),
        ("", "No column"),
    ],
)
def test_tables_of_pictures_that_do_not_fit(tmp_path, text, words):
    pictures(tmp_path)
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(ValueError, match=words):
        open_dataset(tmp_path / "labels.csv", image_size=8)


@pytest.mark.every(2)
@pytest.mark.parametrize("option", ["image_column", "label_column"])
@pytest.mark.parametrize("kind", ["paths", "pairs of paths", "arrays and labels", "pictures"])
def test_lists_without_keys_take_no_columns(tmp_path, kind, option):
    files = [pictures(tmp_path) / f"{k}.png" for k in range(6)]
    data = {
        "paths": files,
        "pairs of paths": [(file, "a") for file in files],
        "arrays and labels": (IMAGES, [0, 1] * 3),
        "pictures": list(IMAGES),
    }[kind]
    assert len(open_dataset(data, image_size=8)) == 6
    with pytest.raises(ValueError, match=rf"{option}='nonsense' does not fit a list"):
        open_dataset(data, image_size=8, **{option: "nonsense"})


@pytest.mark.parametrize("kind", ["shapes", "open"])
def test_images_that_are_made_take_no_limit(kind, tmp_path):
    with pytest.raises(ValueError, match="max_pixels=99 does not fit"):
        open_dataset(source(kind, tmp_path), image_size=8, max_pixels=99)


def test_a_table_beside_the_folder_of_its_pictures(tmp_path):
    """The usual layout of competitions: train/, test/, and a table of the training pictures without
    extension.
    """
    pictures(tmp_path, [f"train/{k}.png" for k in range(4)] + ["test/x.png", "test/y.png"])
    (tmp_path / "labels.csv").write_text("id,breed\n0,pug\n1,lab\n2,pug\n3,lab\n")
    data = open_dataset(tmp_path / "labels.csv", image_size=8, label_column="breed")
    assert list(data.names) == [f"train/{k}.png" for k in range(4)]
    assert data.class_names == ("lab", "pug")
    with pytest.raises(ValueError, match=r"labels\.csv' does: pass it instead"):
        open_dataset(tmp_path / "train", image_size=8, label_column="breed")


def test_a_table_of_other_folders_is_not_proposed(tmp_path):
    pictures(tmp_path, ["a/0.png", "b/0.png"])
    (tmp_path / "t.csv").write_text("file,label\nb/0.png,x\n")
    with pytest.raises(ValueError, match="Leave it out"):
        open_dataset(tmp_path / "a", image_size=8, label_column="label")


def test_whole_paths_in_a_table(tmp_path):
    elsewhere = pictures(tmp_path / "pictures")
    (tmp_path / "lists").mkdir()
    table = tmp_path / "lists" / "train.csv"
    table.write_text(
        "".join(["path,label\n", *(f"{elsewhere}/{k}.png,{'ab'[k % 2]}\n" for k in range(6))])
    )
    data = open_dataset(table, image_size=8)
    assert data.class_names == ("a", "b")
    assert any("column 'label' of train.csv" in note for note in data.notes)
    (elsewhere / "3.png").unlink()
    with pytest.raises(ValueError, match=r"3\.png: missing"):
        open_dataset(table, image_size=8)
    assert len(open_dataset(table, image_size=8, on_bad_image="skip")) == 5
    with pytest.raises(ValueError, match="frames='all' does not fit"):
        open_dataset(table, image_size=8, frames="all")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("file_name,text\n0.png,a\n1.png,b\n", "no column of a usual name"),
        ("file_name,label\n0.png,a\n", "not named"),
    ],
)
def test_labels_that_are_needed_say_why_there_are_none(tmp_path, text, words):
    pictures(tmp_path)
    (tmp_path / "metadata.csv").write_text(text)
    assert open_dataset(tmp_path, image_size=8).labels is None
    with pytest.raises(ValueError, match=f"Class labels are needed.*{words}"):
        open_dataset(tmp_path, image_size=8, require_labels=True)


@pytest.mark.parametrize(
    "text", ["[1, 2]", '{"name": "brats", "numTraining": 3, "modality": {"0": "MRI"}}']
)
def test_descriptions_called_dataset_are_no_labels(tmp_path, text):
    pictures(tmp_path)
    (tmp_path / "dataset.json").write_text(text)
    assert len(open_dataset(tmp_path, image_size=8)) == 6


def test_a_table_says_which_pictures(tmp_path):
    pictures(tmp_path, [f"images/{k}.png" for k in range(6)])
    (tmp_path / "train.csv").write_text("id_code,diagnosis\n0,2\n3,0\n5,1")
    data = open_dataset(tmp_path / "train.csv", image_size=8, label_column="diagnosis")
    assert list(data.names) == ["images/0.png", "images/3.png", "images/5.png"]
    assert data.labels.tolist() == [2, 0, 1]


@pytest.fixture
def words(tmp_path, monkeypatch):
    """Pictures whose names say their class, beside a table that says another, and a split of a
    dataset.
    """
    monkeypatch.chdir(tmp_path)
    pictures(Path("named"), [f"{word}_{k}.png" for k, word in enumerate(WORDS)])
    pictures(Path("tables"))
    lines = [f"{k}.png,{k % 3},{word}" for k, word in enumerate(WORDS)]
    Path("tables/metadata.csv").write_text("\n".join(["file_name,size,kind", *lines]))
    for k in range(6):
        folder = Path("deep") / WORDS[k]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(IMAGES[k, ..., 0].astype(np.uint16) * 16).save(folder / f"{k}.png")


@pytest.mark.every(3)
@pytest.mark.parametrize(
    ("line", "classes"),
    [
        ("named --labels prefix", 3),
        ("tables --label-column size", 3),
        ("tables --label-column kind --background black --fit pad", 3),
        ("deep --value-range 0,4095 --channels 1", 3),
        (
            (
                "deep --value-range 0,4095 --channels 1 --frames all --on-bad-image skip"
                " --max-pixels 100000"
            ),
            3,
        ),
    ],
)
@pytest.mark.parametrize("command", ["train", "estimate"])
def test_options_of_the_data_hold_where_the_classes_are_counted_first(
    line, classes, command, words, capsys
):
    work = (
        "--max-steps 1 --batch-size 2 --output-dir run"
        if command == "train"
        else "--probe-steps 0 --batch-size 2"
    )
    network = (
        "--class-conditional --preset tiny --model.dim 8 --image-size 8 --sample-every 0"
        " --device cpu"
    )
    assert main(f"{command} {line} {network} {work}".split()) == 0, capsys.readouterr().err
    if command == "train":
        assert load_run("run").diffusion.conditioners["class_label"].num_classes == classes


def test_a_dataset_that_is_open_takes_the_options_it_was_opened_with_and_no_others(words):
    data = open_dataset("named", image_size=8, labels="prefix", background="black")
    again = open_dataset(data.subset([0, 1, 2]), image_size=8, labels="prefix", background="black")
    assert again.class_names == data.class_names
    with pytest.raises(
        ValueError, match="background='red' does not fit an ImageDataset that is open already"
    ):
        open_dataset(data, image_size=8, background="red")
