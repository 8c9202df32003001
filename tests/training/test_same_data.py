"""Whether a run goes on with the data it was trained on: contents count, and a refusal says what
has changed.
"""

import json
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_lib.data import open_dataset
from ddpm_lib.data.contents import INDEX, read_index
from ddpm_lib.evaluation import evaluate
from ddpm_lib.runs import checkpoint
from ddpm_lib.training import ConfigError
from training_helpers import tiny_trainer

N = 24
IMAGES = np.random.default_rng(0).integers(0, 256, (N, 8, 8, 3), dtype=np.uint8)


class Items(torch.utils.data.Dataset):
    def __init__(self, images, labels=None):
        self.images, self.labels = images, labels

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return self.images[i] if self.labels is None else (self.images[i], self.labels[i])


def folder_of(images, path):
    for k, image in enumerate(images):
        (path / "ab"[k % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path / "ab"[k % 2] / f"{k:02d}.bmp")
    return path


def paths_of(images, path):
    return sorted(folder_of(images, path).rglob("*.bmp"))


def npz_of(images, path):
    path.mkdir(exist_ok=True)
    np.savez(path / "a.npz", images)
    return path / "a.npz"


def hf_of(images, path):
    import datasets

    datasets.disable_progress_bars()
    return datasets.Dataset.from_dict({"image": list(map(Image.fromarray, images))}).cast_column(
        "image", datasets.Image()
    )


def parquet_of(images, path):
    path.mkdir(exist_ok=True)
    hf_of(images, path).to_parquet(path / "a.parquet")
    return path / "a.parquet"


KINDS = {
    "folder": folder_of,
    "paths": paths_of,
    "npz": npz_of,
    "array": lambda images, path: images,
    "list": lambda images, path: list(images),
    "torch": lambda images, path: Items(images),
    "pictures": lambda images, path: Items([Image.fromarray(image) for image in images]),
    "hf": hf_of,
    "parquet": parquet_of,
}


@pytest.mark.every(4)  # all options, and most kinds
@pytest.mark.parametrize("options", [{}, {"cache": "none"}, {"cache": "none", "verify": False}])
@pytest.mark.parametrize("kind", KINDS)
def test_contents_count(tmp_path, kind, options):
    make = KINDS[kind]

    def opened(images):
        return open_dataset(make(images, tmp_path / "data"), image_size=8, **options)

    before = opened(IMAGES)
    assert opened(IMAGES).fingerprint == before.fingerprint
    changed = IMAGES.copy()
    changed[7] = 255 - changed[7]
    assert opened(changed).fingerprint != before.fingerprint
    assert opened(IMAGES[::-1]).fingerprint != before.fingerprint
    said = any(
        "compares the names and sizes of all, the contents of 24" in note for note in before.notes
    )
    assert said == ("verify" in options and kind not in ("array", "npz"))


def test_remembered_checks_remember_contents(tmp_path):
    data, file = folder_of(IMAGES, tmp_path / "data"), tmp_path / "scan.json"
    first = open_dataset(data, image_size=8, cache="none", scan_file=file)
    again = open_dataset(data, image_size=8, cache="none", scan_file=file)
    assert any("checked before" in note for note in again.notes)
    assert again.fingerprint == first.fingerprint
    ram = open_dataset(data, image_size=8)
    assert ram.fingerprint == first.fingerprint, "the way of reading is no part of it"


CHANGES = {
    "contents": (
        lambda d: [
            f.write_bytes(f.read_bytes()[:-9] + b"replaced!") for f in sorted(d.glob("a/*"))[:4]
        ],
        "4 images with other contents: a/00.bmp, a/02.bmp, a/04.bmp, …",
    ),
    "added": (lambda d: shutil.copy(d / "a/00.bmp", d / "a/new.bmp"), "1 image added: a/new.bmp"),
    "lost": (
        lambda d: [(d / "b/01.bmp").unlink(), (d / "b/03.bmp").unlink()],
        "2 images lost: b/01.bmp, b/03.bmp",
    ),
    "moved": (
        lambda d: (d / "a/00.bmp").rename(d / "b/00.bmp"),
        "1 image added: b/00.bmp\n  data: 1 image lost: a/00.bmp",
    ),
    "swapped": (
        lambda d: [(d / x).rename(d / y) for x, y in (("a", "c"), ("b", "a"), ("c", "b"))],
        "24 images added: a/01.bmp, a/03.bmp, a/05.bmp, …",
    ),
    "class renamed": (lambda d: (d / "a").rename(d / "z"), "classes: a, b then, b, z now"),
}


@pytest.mark.every(2)
@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("val_every", [0, 100])
def test_a_resume_says_what_has_changed(tmp_path, name, val_every):
    if val_every and name != "added":
        pytest.skip("one is enough")
    change, words = CHANGES[name]
    data = folder_of(IMAGES, tmp_path / "data")
    options = {"val_every": val_every, "val_fraction": 0.1, "data": str(data)}
    tiny_trainer(tmp_path / "run", max_steps=1, **options).train()
    assert read_index(tmp_path / "run") is not None
    change(data)
    with pytest.raises(ConfigError) as caught:
        tiny_trainer(tmp_path / "run", max_steps=2, **options).train()
    assert words in str(caught.value)
    assert "fingerprint" not in str(caught.value)
    assert tiny_trainer(tmp_path / "run", max_steps=2, override=True, **options).train().step == 2
    assert tiny_trainer(tmp_path / "run", max_steps=3, **options).train().step == 3, "noted anew"


def test_files_of_equal_names_in_swapped_class_folders(tmp_path):
    for k, image in enumerate(IMAGES):
        (tmp_path / "data" / "ab"[k % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / "data" / "ab"[k % 2] / f"{k // 2:02d}.bmp")
    tiny_trainer(tmp_path / "run", max_steps=1, data=str(tmp_path / "data")).train()
    for x, y in (("a", "c"), ("b", "a"), ("c", "b")):
        (tmp_path / "data" / x).rename(tmp_path / "data" / y)
    with pytest.raises(ConfigError, match=r"24 images with other contents: a/00\.bmp"):
        tiny_trainer(tmp_path / "run", max_steps=2, data=str(tmp_path / "data")).train()


def test_labels_of_a_dataset(tmp_path):
    tiny_trainer(tmp_path, max_steps=1, data=Items(IMAGES, [0, 1, 2] * 8)).train()
    with pytest.raises(ConfigError, match=r"1 image of another class: 000000 \(0, now 2\)"):
        tiny_trainer(tmp_path, max_steps=2, data=Items(IMAGES, [2, 1, 2, *[0, 1, 2] * 7])).train()


def test_without_the_index_it_is_refused_all_the_same(tmp_path):
    tiny_trainer(tmp_path, max_steps=1, data=IMAGES).train()
    assert tiny_trainer(tmp_path, max_steps=2, data=IMAGES).train().step == 2
    for step, damage in enumerate((lambda f: f.unlink(), lambda f: os.truncate(f, 40)), 3):
        damage(tmp_path / INDEX)
        with pytest.raises(ConfigError, match="as many images, but others"):
            tiny_trainer(tmp_path, max_steps=step, data=255 - IMAGES).train()
        assert tiny_trainer(tmp_path, max_steps=step, data=IMAGES).train().step == step
        assert read_index(tmp_path) is not None, "written anew"


def as_of_the_first_version(run):
    """Rewrite the newest checkpoint as it was saved before contents were compared."""
    path = checkpoint.list_checkpoints(run / "checkpoints")[-1]
    state = json.loads((path / "state.json").read_text())
    for name in ("fingerprint_version", "whole", "held_fraction"):
        del state["data"][name]
    return path, state


@pytest.mark.parametrize("val_every", [0, 100])
def test_checkpoints_of_the_first_version(tmp_path, monkeypatch, capsys, val_every):
    data = folder_of(IMAGES, tmp_path / "data")
    options = {"val_every": val_every, "val_fraction": 0.1, "data": str(data)}
    trainer = tiny_trainer(tmp_path / "run", max_steps=1, **options)
    trainer.train()
    path, state = as_of_the_first_version(tmp_path / "run")
    state["data"]["fingerprint"] = trainer.dataset.earlier_fingerprint
    (tmp_path / "run" / INDEX).unlink()
    read = checkpoint.read_state
    monkeypatch.setattr(checkpoint, "read_state", lambda p: state if p == path else read(p))
    capsys.readouterr()
    assert tiny_trainer(tmp_path / "run", max_steps=2, **options).train().step == 2
    assert "whether their contents are the same was not compared" in capsys.readouterr().err
    (data / "a/00.bmp").unlink()
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="1 image lost"):
        tiny_trainer(tmp_path / "run", max_steps=3, **options).train()


def test_first_fingerprints_are_what_they_were(tmp_path):
    """Computed by the version that knew no others."""
    for k in range(4):
        Image.new("RGB", (2, 2), (k, k, k)).save(tmp_path / f"{k}.bmp")
    folder = open_dataset(tmp_path, image_size=2)
    array = open_dataset(np.arange(48, dtype=np.uint8).reshape(4, 2, 2, 3), image_size=2)
    tensors = torch.arange(48, dtype=torch.uint8).reshape(4, 3, 2, 2)
    items = open_dataset([(tensor, k % 2) for k, tensor in enumerate(tensors)], image_size=2)
    assert folder.earlier_fingerprint == "5ffd045d92bd63b4bfdac94a24db77d9"
    assert array.earlier_fingerprint == "4e4dd910afc096a9acc8c999b7ec632a"
    assert items.earlier_fingerprint == "0641bc267eae44a667447940b1233452"
    assert folder.split(0.3)[0].earlier_fingerprint == "cae21340c1b2434619d7e61cfbe3815f"
    assert items.split(1)[0].earlier_fingerprint == "3484b29501e030f802cd3b48b8454f19"


@pytest.mark.slow
def test_validation_turned_off_and_on_again(tmp_path, capsys):
    data = Items(IMAGES)
    on = {"val_every": 100, "val_fraction": 0.25}
    first = tiny_trainer(tmp_path, max_steps=1, data=data, **on)
    first.train()
    assert (len(first.dataset), len(first.held_out)) == (18, 6)
    for step, options in enumerate(({**on, "val_every": 0}, {**on, "val_fraction": 0.0}, on), 2):
        capsys.readouterr()
        trainer = tiny_trainer(tmp_path, max_steps=step, data=data, **options)
        assert trainer.train().step == step
        assert len(trainer.dataset) == 18
        assert ("6 images that this run held out so far stay out" in capsys.readouterr().err) == (
            options is not on
        )
    with pytest.raises(
        ConfigError, match=r"val_fraction 0.25 held out other images than val_fraction 0.5"
    ):
        tiny_trainer(tmp_path, max_steps=9, data=data, val_every=100, val_fraction=0.5).train()
    with pytest.raises(ConfigError, match="seed: 0 in the checkpoint, 3 now"):
        tiny_trainer(tmp_path, max_steps=9, data=data, seed=3, **on).train()


def test_validation_turned_on_later(tmp_path, capsys):
    data = folder_of(IMAGES, tmp_path / "data")
    tiny_trainer(tmp_path / "run", max_steps=1, data=str(data), val_every=0).train()
    later = tiny_trainer(
        tmp_path / "run", max_steps=2, data=str(data), val_every=1, val_fraction=0.25
    )
    assert later.train().step == 2
    assert len(later.dataset) == N
    assert later.held_out is None
    assert "This run trains on all its images" in capsys.readouterr().err


def test_an_evaluation_opens_what_the_run_held_out(tmp_path):
    data = folder_of(IMAGES, tmp_path / "data")
    options = {"data": str(data), "val_fraction": 0.25}
    tiny_trainer(tmp_path / "run", max_steps=1, val_every=10, **options).train()
    tiny_trainer(tmp_path / "run", max_steps=2, val_every=0, **options).train()
    scores = evaluate(tmp_path / "run", metrics="nll", num_levels=2, device="cpu", progress=False)
    assert scores.about["data"]["of"] == 6
    (data / "a/00.bmp").write_bytes((data / "a/02.bmp").read_bytes())
    with pytest.raises(ConfigError, match="is not the data that this run was trained on"):
        evaluate(tmp_path / "run", metrics="nll", num_levels=2, device="cpu", progress=False)


def depths_of(path, seed):
    """Pictures of 12 bits in 16, twice as wide as high."""
    path.mkdir()
    for k in range(12):
        values = np.random.default_rng([seed, k]).integers(0, 4096, (8, 16)).astype(np.uint16)
        Image.fromarray(values).save(path / f"{seed}{k:02d}.png")
    return str(path)


@pytest.mark.parametrize("fit", ["stretch", "pad"])
def test_further_images_are_read_as_an_open_set_was(tmp_path, fit):
    """Held-out images and additions that are named: a pixel means the same in all of them."""
    train, held, more = (depths_of(tmp_path / name, k) for k, name in enumerate("abc"))
    how = {"fit": fit, "value_range": (0, 4095), "background": (9, 80, 7)}
    opened = {path: open_dataset(path, image_size=8, **how) for path in (train, held, more)}
    options = {"val_data": held, "add_data": (more,), "val_every": 2, "num_workers": 0}
    trainer = tiny_trainer(tmp_path / "run", data=opened[train], **options)
    trainer.prepare()
    wanted = opened[held].batch(range(12))["image"]
    assert torch.equal(trainer.held_out.batch(range(12))["image"], wanted)
    assert wanted.float().mean() > 60  # of 0 … 65,535 all would be nearly black
    added = trainer.dataset.batch(range(12, 24))["image"]
    assert torch.equal(added, opened[more].batch(range(12))["image"])
    named = tiny_trainer(
        tmp_path / "named", data=train, **how | {"background": "#095007"}, **options
    )
    named.prepare()
    assert torch.equal(named.held_out.batch(range(12))["image"], wanted)


def test_measured_values_beside_an_open_set_are_measured_values(tmp_path):
    values = np.random.default_rng(0).normal(280, 10, (24, 3, 8, 8)).astype(np.float32)
    np.save(tmp_path / "held.npy", values[:12] + 1)
    opened = open_dataset(values, image_size=8, normalize="quantile")
    options = {"val_data": str(tmp_path / "held.npy"), "val_every": 2}
    trainer = tiny_trainer(tmp_path / "run", data=opened, **options)
    trainer.prepare()
    wanted = opened.normalization.forward(values[:12] + 1)
    assert (trainer.held_out.batch(range(12))["image"].numpy() == wanted).all()
