"""Runs that go on with more images: noted, exact on resume, and refused without being asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ddpm_lib import Shapes, Trainer, load_run
from ddpm_lib.data import open_dataset
from ddpm_lib.data.joining import join
from ddpm_lib.evaluation.distilling import Distillation, DistillOptions
from ddpm_lib.evaluation.run_images import RunImages
from ddpm_lib.training import ConfigError
from training_helpers import (
    StopAt,
    assert_same_tensors,
    curve,
    final_tensors,
    tiny_diffusion,
    tiny_trainer,
)


def write(folder: Path, rows: range, seed: int = 0) -> Path:
    data = Shapes(size=8, n=max(rows) + 1, seed=seed)
    lines = ["file_name,size"]
    for i in rows:
        where = folder / data.class_names[int(data.labels[i])] / f"{i:03d}.png"
        where.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(data[i]["image"].permute(1, 2, 0).numpy()).save(where)
        lines.append(f"{where.relative_to(folder)},{data.column('size')[i]}")
    (folder / "metadata.csv").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    where = tmp_path_factory.mktemp("growing")
    return write(where / "base", range(40)), write(where / "more", range(20), seed=1)


def trainer(run: Path, base: Path, *more: Path, stop: int | None = None, **options: Any) -> Trainer:
    table = {"size": {"kind": "number"}}
    return tiny_trainer(
        run,
        tiny_diffusion(num_classes=6, conditions=table),
        str(base),
        add_data=tuple(map(str, more)),
        callbacks=[] if stop is None else [StopAt(stop)],
        num_workers=0,
        **{
            "label_column": None,
            "labels": "folder",
            "condition": ("size=:size",),
            "val_every": 2,
            "val_fraction": 0.2,
            "save_every": 1,
        }
        | options,
    )


@pytest.mark.every(2)
@pytest.mark.parametrize("cache", ["ram", "none"])
def test_a_grown_run_is_exact_on_resume(
    tmp_path: Path, folders: tuple[Path, Path], cache: str
) -> None:
    base, more = folders
    runs = tmp_path / "whole", tmp_path / "pieces"
    for run in runs:
        trainer(run, base, stop=3, cache=cache).train()
    whole = trainer(runs[0], base, more, cache=cache)
    whole.train()
    trainer(runs[1], base, more, stop=4, cache=cache).train()
    pieces = trainer(runs[1], base, more, cache=cache)
    pieces.train()
    assert whole.step == pieces.step == 6
    assert_same_tensors(final_tensors(runs[0]), final_tensors(runs[1]))
    assert curve(runs[0]) == curve(runs[1])


def test_growth_is_noted_and_what_is_held_out_stays(
    tmp_path: Path, folders: tuple[Path, Path]
) -> None:
    base, more = folders
    run = tmp_path / "run"
    before = trainer(run, base, stop=3)
    before.train()
    after = trainer(run, base, more)
    after.train()
    assert len(before.dataset) == 32
    assert len(after.dataset) == 52
    assert list(after.held_out.names) == list(before.held_out.names)
    assert list(after.dataset.names)[:32] == list(before.dataset.names)
    state = load_run(run).run_state.trained_on
    assert state.images == 52
    assert state.grown == [
        {"step": 3, "images_seen": 18, "images_before": 32, "images": 52, "added": [str(more)]}
    ]
    entry = load_run(run).diffusion.model.config["conditions"]["size"]
    first = before.dataset.conditions["size"].values
    assert entry["mean"] == pytest.approx(float(first.mean()), rel=1e-6)  # measured once
    assert "Growing at step 3: from 32 to 52" in (run / "train.log").read_text(encoding="utf-8")


def test_growing_twice(tmp_path: Path, folders: tuple[Path, Path]) -> None:
    base, more = folders
    third = write(tmp_path / "third", range(6), seed=2)
    run = tmp_path / "run"
    trainer(run, base, stop=2).train()
    trainer(run, base, more, stop=4).train()
    trainer(run, base, more, third).train()
    grown = load_run(run).run_state.trained_on.grown
    assert [(e["step"], e["images"], e["added"]) for e in grown] == [
        (2, 52, [str(more)]),
        (4, 58, [str(third)]),
    ]


def test_without_being_asked_other_data_are_refused(
    tmp_path: Path, folders: tuple[Path, Path]
) -> None:
    base, more = folders
    run = tmp_path / "run"
    trainer(run, base, stop=2).train()
    with pytest.raises(ConfigError, match=r"32 training images in the checkpoint, 16 now"):
        trainer(run, more).prepare()
    trainer(run, base, more, stop=3).train()
    with pytest.raises(ConfigError, match=r"it has grown by .*more, which add_data names again"):
        trainer(run, base).prepare()


def test_copies_of_held_out_images_are_left_out(tmp_path: Path, folders: tuple[Path, Path]) -> None:
    base, _ = folders
    again = write(tmp_path / "again", range(45))  # the base once more, and five others
    run = trainer(tmp_path / "run", base, again)
    run.prepare()
    assert len(run.dataset) == 32 + 45 - 8
    held = {p.tobytes() for p in run.held_out.batch(range(8))["image"].numpy()}
    assert not held & {p.tobytes() for p in run.dataset.batch(range(69))["image"].numpy()}


def test_additions_must_fit(tmp_path: Path, folders: tuple[Path, Path]) -> None:
    base, more = folders
    other = tmp_path / "other"
    for name in ("circle", "hexagon"):
        (other / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(other / name / "0.png")
    (other / "metadata.csv").write_text("file_name,size\ncircle/0.png,1\nhexagon/0.png,2")
    with pytest.raises(ConfigError, match=r"has the class hexagon, which the training images have"):
        trainer(tmp_path / "a", base, other).prepare()
    with pytest.raises(FileNotFoundError, match=r"nowhere"):
        trainer(tmp_path / "b", base, tmp_path / "nowhere").prepare()
    bare = tmp_path / "bare"
    for path in more.rglob("*.png"):
        (bare / path.parent.name).mkdir(parents=True, exist_ok=True)
        (bare / path.parent.name / path.name).write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match=r"no table that names its pictures"):
        trainer(tmp_path / "c", base, bare).prepare()


@pytest.mark.parametrize("cache", ["ram", "none"])
def test_joined_sets_are_their_parts(folders: tuple[Path, Path], cache: str) -> None:
    options = {"image_size": 8, "labels": "folder", "cache": cache, "num_workers": 0}
    parts = [
        open_dataset(folder, conditions="size=:size", **options).subset(np.arange(0, 12, 2))
        for folder in folders
    ]
    whole = join(parts)
    assert len(whole) == 12
    batch = whole.batch(range(12))
    for k, part in enumerate(parts):
        own = part.batch(range(6))
        for field in own:
            assert (batch[field][6 * k : 6 * k + 6] == own[field]).all(), field
    assert len(set(whole.names)) == 12
    assert whole.fingerprint != join(parts[::-1]).fingerprint


def test_classes_that_nobody_learns_need_not_be_known(
    tmp_path: Path, folders: tuple[Path, Path]
) -> None:
    base, more = folders
    flat = tmp_path / "flat"
    flat.mkdir()
    for k, path in enumerate(sorted(more.rglob("*.png"))):
        (flat / f"{k}.png").write_bytes(path.read_bytes())
    run = tmp_path / "run"
    options = {"num_workers": 0, "val_every": 2, "val_fraction": 0.2}
    tiny_trainer(run, data=str(base), callbacks=[StopAt(2)], **options).train()
    after = tiny_trainer(run, data=str(base), add_data=(str(flat),), **options)
    after.train()
    assert len(after.dataset) == 52
    assert len(load_run(run).run_state.trained_on.grown) == 1


def test_other_images_do_not_grow_by_what_was_added_to_the_run(
    tmp_path: Path, folders: tuple[Path, Path]
) -> None:
    """Neither where the run is scored on them, nor where a student learns from them."""
    base, more = folders
    third = write(tmp_path / "third", range(12), seed=2)
    ages = [tmp_path / f"{k}.npy" for k in range(2)]
    for file, n in zip(ages, (40, 20), strict=True):
        np.save(file, np.arange(float(n)))
    words = {"condition": (f"size={ages[0]}",), "add_condition": (f"size={ages[1]}",)}
    trainer(tmp_path / "run", base, more, stop=2, **words).train()
    run = load_run(tmp_path / "run")
    own = RunImages(run, words=("size=:size",))
    there = sorted(str(file.relative_to(third)) for file in third.rglob("*.png"))
    assert list(own.other(str(third), None, None).names) == there
    assert len(own.get("train")) == 52
    for data, added in ((None, [str(more)]), (str(third), [])):
        options = Distillation(run, data, DistillOptions()).training_options({})
        assert list(options.get("add_data", ())) == added
        assert len(options.get("add_condition", ())) == len(added)
