"""Runs with conditions that go on with more images: each gets its own values, or is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ddpm_lib import Trainer, load_run, open_dataset
from ddpm_lib.training import ConfigError
from training_helpers import (
    StopAt,
    assert_same_tensors,
    curve,
    final_tensors,
    tiny_diffusion,
    tiny_trainer,
)

COLOURS = ("blue", "green", "red")


def pictures(folder: Path, n: int, seed: int, first: int = 0) -> Path:
    """Write pictures `NNN.png` and a table of what comes with each."""
    of = np.random.default_rng(seed)
    folder.mkdir()
    lines = ["file_name,age,turn,colour,tags"]
    for k in range(n):
        name = f"{first + k:03d}.png"
        pixels = of.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
        tags = "hat|beard" if k % 2 else "hat"
        lines.append(f"{name},{of.integers(9, 90)},{of.integers(360)},{COLOURS[k % 3]},{tags}")
    (folder / "metadata.csv").write_text("\n".join(lines))
    return folder


OWN = ("age=:age", "turn=:turn,kind=angle", "colour=:colour", "tags=:tags")
TABLE = {
    "age": {"kind": "number"},
    "turn": {"kind": "angle"},
    "colour": {"kind": "label", "names": list(COLOURS)},
    "tags": {"kind": "tags", "names": ["beard", "hat"]},
}


WAYS = ("own columns", "a table", "arrays", "measured values", "open sets")


def trainer(
    run: Path, base: Any, more: Any = (), table: Any = None, stop: int = 6, **options: Any
) -> Trainer:
    table = {"age": {"kind": "number"}} if table is None else table
    channels = options.pop("channels", 3)
    settings = {"num_workers": 0, "val_every": 2, "val_fraction": 0.2, "save_every": 1} | options
    return tiny_trainer(
        run,
        tiny_diffusion(conditions=table, channels=channels),
        base,
        add_data=more,
        callbacks=[StopAt(stop)],
        **settings,
    )


def values_of(run: Trainer, name: str = "age") -> np.ndarray:
    found: np.ndarray = run.dataset.conditions[name].values
    return found


@pytest.mark.every(2)
@pytest.mark.parametrize("way", WAYS)
def test_conditions_of_additions_grow_and_resume_exactly(tmp_path: Path, way: str) -> None:
    """Twice grown; cut off in the middle of a pass and continued, the run is the same, bit for
    bit, and each image has its own value.
    """
    options: dict[str, Any] = {}
    seeds, sizes = (0, 1, 2), (20, 10, 6)
    folders = [
        pictures(tmp_path / f"set{k}", n, k, first=100 * k)
        for k, n in zip(seeds, sizes, strict=True)
    ]
    ages = [np.arange(n, dtype=np.float32) + 100 * k for k, n in enumerate(sizes)]
    for k, own in enumerate(ages):
        np.save(tmp_path / f"age{k}.npy", own)
    sources: list[Any] = list(map(str, folders))
    conditions: tuple[str, ...] = (f"age={tmp_path / 'age0.npy'}",)
    words: tuple[str, ...] = tuple(f"age={tmp_path / f'age{k}.npy'}" for k in (1, 2))
    if way == "own columns":
        conditions, words = OWN, ()
        options["table"] = TABLE
    elif way == "a table":
        lines = ["file_name,age"]
        for k, folder in enumerate(folders):
            names = sorted(file.name for file in folder.glob("*.png"))
            lines += [f"{name},{age:g}" for name, age in zip(names, ages[k], strict=True)]
        (tmp_path / "all.csv").write_text("\n".join(lines))
        conditions, words = (f"age={tmp_path / 'all.csv'}:age",), ()
    elif way == "measured values":
        options |= {"normalize": "affine", "channels": 2}
        for k, n in enumerate(sizes):
            of = np.random.default_rng(k)
            sources[k] = str(tmp_path / f"values{k}.npy")
            np.save(sources[k], of.standard_normal((n, 2, 8, 8)).astype(np.float32))
    elif way == "open sets":
        opened = [open_dataset(folder, image_size=8) for folder in folders]
        pairs = zip(opened, ages, strict=True)
        sources, conditions, words = [d.with_conditions({"age": a}) for d, a in pairs], (), ()

    def at(run: Path, n: int, stop: int) -> Trainer:
        made = trainer(
            run,
            sources[0],
            sources[1 : 1 + n],
            stop=stop,
            condition=conditions,
            add_condition=words[:n],
            **options,
        )
        made.train()
        return made

    runs = tmp_path / "whole", tmp_path / "pieces"
    for run, stops in ((runs[0], ((0, 2), (1, 4), (2, 6))), (runs[1], ((0, 2), (1, 3), (1, 4)))):
        for n, stop in stops:
            last = at(run, n, stop)
    for stop in (5, 6):
        last = at(runs[1], 2, stop)
    assert len(last.dataset) + len(last.held_out) == sum(sizes)
    assert_same_tensors(final_tensors(runs[0]), final_tensors(runs[1]))
    assert curve(runs[0]) == curve(runs[1])
    assert len(load_run(runs[0]).run_state.trained_on.grown) == 2
    if way != "own columns":
        np.testing.assert_array_equal(values_of(last)[-16:], np.concatenate(ages[1:]))


def test_values_of_other_images_are_not_taken(tmp_path: Path) -> None:
    """Arrays belong to the first images, and a table may not mean two images by one name."""
    base, more = pictures(tmp_path / "base", 20, 0), pictures(tmp_path / "more", 20, 1)
    run = tmp_path / "run"
    np.save(tmp_path / "age.npy", np.arange(20.0))
    with pytest.raises(ConfigError, match=r"more: the condition 'age' is read from .*age\.npy"):
        trainer(run, str(base), [str(more)], condition=(f"age={tmp_path / 'age.npy'}",)).prepare()
    table = f"age={base / 'metadata.csv'}:age"
    with pytest.raises(ConfigError, match=r"\.png is the name of an image of the training data"):
        trainer(run, str(base), [str(more)], condition=(table,)).prepare()
    # What the messages propose.
    own = trainer(
        run,
        str(base),
        [str(more)],
        condition=(table,),
        add_condition=(f"age={more / 'metadata.csv'}:age",),
    )
    own.prepare()
    has_them = open_dataset(more, image_size=8, conditions="age=:age")
    opened = trainer(tmp_path / "other", str(base), [has_them], condition=(table,))
    opened.prepare()
    np.testing.assert_array_equal(values_of(own), values_of(opened))
    assert not np.array_equal(values_of(own)[-20:], values_of(own)[:20])


def test_what_was_said_of_a_condition_holds_for_additions(tmp_path: Path) -> None:
    base, more = pictures(tmp_path / "base", 20, 0), pictures(tmp_path / "more", 10, 1)
    for k, n in enumerate((20, 10)):
        np.save(tmp_path / f"turn{k}.npy", np.linspace(0, 300, n))
    run = trainer(
        tmp_path / "run",
        str(base),
        [str(more)],
        {"turn": {"kind": "angle"}},
        condition=(f"turn={tmp_path / 'turn0.npy'},kind=angle",),
        add_condition=(f"turn={tmp_path / 'turn1.npy'}",),
    )
    run.prepare()
    np.testing.assert_array_equal(values_of(run, "turn")[-10:], np.float32(np.linspace(0, 300, 10)))


def test_what_does_not_fit_is_refused_by_name(tmp_path: Path) -> None:
    base, more = pictures(tmp_path / "base", 20, 0), pictures(tmp_path / "more", 10, 1)
    table = (more / "metadata.csv").read_text()

    def refused(message: str, **options: Any) -> None:
        options = {"condition": OWN, "table": TABLE} | options
        with pytest.raises(ConfigError, match=message):
            trainer(tmp_path / "run", str(base), [str(more)], **options).prepare()

    for before, after, message in (
        (",blue,", ",violet,", "violet"),
        ("hat|beard", "hat|scarf", "scarf"),
        (",age,", ",years,", "age"),
    ):
        (more / "metadata.csv").write_text(table.replace(before, after, 1))
        refused(rf"add_data .*more: (?s:.*){message}")
    (more / "metadata.csv").write_text(table)
    refused(r"name in add_condition.*'size'", add_condition=("size=:size",))
    refused(r"names 2 sources of the condition 'age', and", add_condition=("age=:age", "age=:age"))
    (more / "metadata.csv").unlink()
    refused(r"add_data .*more: (?s:.*)table")
