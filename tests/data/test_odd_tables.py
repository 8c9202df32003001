"""Tables that people have: names in digits, several lines for one picture, texts of many lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_lib import GaussianDiffusion, Unet
from ddpm_lib.core.errors import ConfigError
from ddpm_lib.data import open_dataset
from ddpm_lib.data.metadata import read_table
from ddpm_lib.nn import register_text_encoder
from ddpm_lib.nn.condition_table import data_conditions
from ddpm_lib.runs.told_conditions import read_told
from ddpm_lib.runs.told_values import Frame, read_picture
from ddpm_lib.training.conditions_of_data import measure

N = 6


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for i in range(N):
        Image.new("RGB", (8, 8), (20 * i,) * 3).save(tmp_path / "images" / f"p{i}.png")
    return tmp_path


def read(folder: Path, cells: list[str], words: str = "", **options: Any) -> Any:
    lines = [f"p{i}.png,{cell}" for i, cell in enumerate(cells)]
    (folder / "meta.csv").write_text("\n".join(["file_name,v", *lines]) + "\n")
    table = folder / "meta.csv"
    data = open_dataset(
        folder / "images", image_size=8, conditions=f"v={table}:v{words}", **options
    )
    return data.conditions["v"]


def test_two_columns_of_one_name_are_one_or_an_error(folder: Path) -> None:
    table = folder / "meta.csv"
    words = f"v={table}:v"
    for last, same in (("{0}", True), ("9", False)):
        lines = [f"p{i}.png,{i},{last.format(i)}" for i in range(N)]
        table.write_text("\n".join(["file_name,v, v", *lines]))
        if same:
            data = open_dataset(folder / "images", image_size=8, conditions=words)
            assert data.conditions["v"].values.tolist() == list(range(N))
            continue
        with pytest.raises(ValueError, match=r"two columns 'v', which say different things"):
            open_dataset(folder / "images", image_size=8, conditions=words)


@pytest.mark.parametrize(
    ("cells", "names"),
    [
        ([str(1234560 + i) for i in range(N)], [str(1234560 + i) for i in range(N)]),
        (["007", "7", "070", "07", "7", "007"], ["007", "07", "7", "070"]),
        (["1e3", "1000", "inf", "1e3", "inf", "1000"], ["1000", "1e3", "inf"]),
        (["1.0", "1", "2.50", "2.5", "1", "1"], ["1", "2.5"]),
    ],
)
def test_labels_in_digits_stay_apart(folder: Path, cells: list[str], names: list[str]) -> None:
    """Numbers are the same however they are written, names are not."""
    found = read(folder, cells, ",kind=label")
    assert sorted(found.more["names"]) == sorted(names)
    assert len({(found.more["names"][k]) for k in found.values.tolist()}) == len(names)


def test_digits_with_underscores_are_words(folder: Path) -> None:
    found = read(folder, ["1_1", "1_2", "11", "1_1", "1_2", "11"])
    assert (found.kind, found.more["names"]) == ("label", ["11", "1_1", "1_2"])


def test_texts_stay_as_they_are_written(folder: Path) -> None:
    seen: list[str] = []

    def encode(texts: list[str]) -> list[list[float]]:
        seen.extend(texts)
        return [[float(len(text))] for text in texts]

    register_text_encoder("written", encode)
    read(folder, ["1.50", "007", "1e3", "a", "b", "c"], ",encoder=written")
    assert set(seen) == {"1.50", "007", "1e3", "a", "b", "c"}


@pytest.mark.parametrize("cells", [["--5"] * N, ["-" * 3 + "1"] * N])
def test_odd_digits_are_words(folder: Path, cells: list[str]) -> None:
    assert read(folder, cells).more["names"] == [cells[0]]


def test_numbers_beyond_all_floats_are_named(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"'v' is infinite for image p0\.png"):
        read(folder, ["9" * 400] * N)
    (folder / "meta.jsonl").write_text(
        "".join(json.dumps({"file_name": f"p{i}.png", "v": 10**400}) + "\n" for i in range(N))
    )
    with pytest.raises(ValueError, match=r"'v' is infinite for image p0\.png"):
        open_dataset(folder / "images", image_size=8, conditions=f"v={folder / 'meta.jsonl'}:v")


@pytest.mark.parametrize("where", ["column", "vectors", "array"])
def test_differences_that_float32_cannot_hold_are_named(folder: Path, where: str) -> None:
    """Seconds since 1970, of pictures taken within a few minutes; within weeks they are fine."""
    for apart, held in ((10.0, False), (86_400.0, True)):
        times = [1.7e9 + apart * i for i in range(N)]
        cells: list[object] = (
            [*times] if where == "column" else [[0.5 * i, t] for i, t in enumerate(times)]
        )
        source = folder / ("v.npy" if where == "array" else "meta.jsonl")
        if where == "array":
            np.save(source, np.array(cells))
        else:
            rows = [{"file_name": f"p{i}.png", "v": cell} for i, cell in enumerate(cells)]
            source.write_text("".join(json.dumps(row) + "\n" for row in rows))
        words = f"v={source}" + ("" if where == "array" else ":v")
        if held:
            open_dataset(folder / "images", image_size=8, conditions=words)
        else:
            said = r"'v' has values from 1700000000 to .* float32 cannot hold .*Subtract"
            with pytest.raises(ValueError, match=said):
                open_dataset(folder / "images", image_size=8, conditions=words)


def test_sentences_with_semicolons_are_no_tags(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for i in range(30):
        Image.new("RGB", (8, 8)).save(tmp_path / "images" / f"p{i}.png")
    captions = [f"a picture; of thing {i}" for i in range(30)]
    with pytest.raises(ValueError, match="these are no tags"):
        read(tmp_path, captions)
    assert len(read(tmp_path, captions, ",kind=tags").more["names"]) == 31


def test_tables_of_texts_with_line_ends(tmp_path: Path) -> None:
    """Line ends within a cell are its own; those that only Unicode knows end no line."""
    texts = ["two\nlines", "a\u2028b", "c\x0bd\x85e", "plain"]
    (tmp_path / "t.csv").write_text(
        "file_name,v\n" + "".join(f'{k},"{text}"\n' for k, text in enumerate(texts)),
        encoding="utf-8",
        newline="",
    )
    assert read_table(tmp_path / "t.csv") == {"file_name": [0, 1, 2, 3], "v": texts}
    (tmp_path / "t.jsonl").write_text(
        "".join(json.dumps({"v": text}, ensure_ascii=False) + "\r\n" for text in texts),
        encoding="utf-8",
        newline="",
    )
    assert read_table(tmp_path / "t.jsonl") == {"v": texts}


def test_two_values_of_one_picture(folder: Path) -> None:
    """Which of them is meant is not known, be it a condition or a label."""
    cells = [str(i % 2) for i in range(N)]
    lines = [f"p{i}.png,{cell}" for i, cell in enumerate(cells)]
    table = folder / "images" / "metadata.csv"

    def write(*more: str) -> None:
        table.write_text("\n".join(["file_name,label", *lines, *more]) + "\n")

    write("p1.png,1", "./p1.png,1")  # says the same twice
    data = open_dataset(folder / "images", image_size=8, conditions=f"v={table}:label")
    assert data.labels.tolist() == [int(cell) for cell in cells]
    write("./p1.png,0")
    for words in (f"v={table}:label", "v=:label"):
        with pytest.raises(ValueError, match=r"several lines for \./p1\.png, with different"):
            open_dataset(folder / "images", image_size=8, conditions=words)
    data = open_dataset(folder / "images", image_size=8)
    assert data.labels is None
    assert any("several lines for ./p1.png" in note for note in data.notes)
    with pytest.raises(ValueError, match=r"several lines for \./p1\.png"):
        open_dataset(folder / "images", image_size=8, label_column="label")


def process(data: Any) -> GaussianDiffusion:
    model = Unet(dim=8, dim_mults=(1,), blocks_per_level=1, attention_levels=(), conditions=data)
    return GaussianDiffusion(model, image_size=8, timesteps=10)


def test_words_of_drawing_are_names_first() -> None:
    """ "none" is a hat where there are hats called so, and 007 is not the seventh."""
    hats = {"kind": "label", "names": ["cap", "none"]}
    agents = {"kind": "label", "names": [f"{k:03d}" for k in range(1, 10)]}
    tags = {"kind": "tags", "names": ["none", "red"]}
    made = process({"hat": hats, "agent": agents, "tags": tags})
    told = read_told(made, {"hat": "none", "agent": "007", "tags": "none"}).fixed
    assert (told["hat"].tolist(), told["agent"].tolist()) == ([1], [6])
    assert told["tags"].tolist() == [[1.0, 0.0]]
    assert read_told(made, {"agent": "7"}).fixed["agent"].tolist() == [7]  # the number of a label
    assert "agent" not in read_told(made, {"agent": "none"}).fixed
    for word in ("07", "0007", "²"):
        with pytest.raises(ConfigError, match="agent"):
            read_told(made, {"agent": word})


def test_a_condition_that_only_held_out_images_have(folder: Path) -> None:
    (folder / "meta.csv").write_text("file_name,v\np0.png,1\n")
    words = f"v={folder / 'meta.csv'}:v,missing=null"
    data = open_dataset(folder / "images", image_size=8, conditions=words)
    made = process(data.condition_table)
    with pytest.raises(ConfigError, match="no value for any of the 5 images"):
        measure(made, data.subset(np.arange(1, N)))
    measure(made, data)


@pytest.mark.parametrize("fit", ["pad", "crop"])
def test_what_is_padded_is_unknown_in_masks(tmp_path: Path, fit: Any) -> None:
    """Of black and white masks too, where 255 is white."""
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    for k in range(3):
        mask = np.zeros((4, 8), dtype=np.uint8)
        mask[:, : 4 if k else 0] = 255
        Image.fromarray(mask).save(tmp_path / "masks" / f"{k}.png")
        Image.new("RGB", (8, 4)).save(tmp_path / "images" / f"{k}.png")
    words = f"m={tmp_path / 'masks'}"
    data = open_dataset(tmp_path / "images", image_size=8, fit=fit, conditions=words)
    found = data.batch([0, 1])["m"]
    conditioner = data_conditions(process(data.condition_table).conditioners)["m"]
    path, frame = tmp_path / "masks" / "1.png", Frame((8, 8), fit)
    told = read_picture(conditioner, path, frame, beside=(8, 4))
    assert torch.equal(told, found[1])
    if fit == "crop":
        assert set(found.unique().tolist()) == {0, 1}
        return
    assert (found[:, [0, 1, 6, 7]] == 255).all()
    assert found[0, 2:6].unique().tolist() == [0]
    assert found[1, 2:6].sum(1).tolist() == [4] * 4
