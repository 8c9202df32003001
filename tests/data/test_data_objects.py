"""Data as everyday objects: read where it can be, and what to pass where it cannot."""

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_lib.data import BadImagesError, ImageDataset, open_dataset
from ddpm_lib.evaluation import evaluate
from ddpm_lib.training import TrainingConfig
from ddpm_lib.training.sources import open_training_data
from training_helpers import tiny_diffusion, tiny_trainer

N = 12
IMAGES = np.random.default_rng(0).integers(0, 256, (N, 8, 8, 3), dtype=np.uint8)
TENSOR = torch.from_numpy(IMAGES.transpose(0, 3, 1, 2).copy())
LABELS = [0, 1, 2] * 4
WORDS = ["ant", "bee", "cat"] * 4


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    for k, image in enumerate(IMAGES):
        (folder / "ab"[k % 2]).mkdir(exist_ok=True)
        Image.fromarray(image).save(folder / "ab"[k % 2] / f"{k:02d}.png")
    return [folder / "ab"[k % 2] / f"{k:02d}.png" for k in range(N)]


def npz(files):
    path = files[0].parents[1] / "set.npz"
    if not path.exists():
        np.savez(path, images=IMAGES, labels=LABELS)
    return np.load(path)


def table(**columns):
    import pandas

    return pandas.DataFrame(columns)


def arrow(files):
    import pyarrow

    return pyarrow.table({"image": [file.read_bytes() for file in files], "label": LABELS})


OBJECTS = {
    "list of paths": (lambda f: f, False),
    "tuple of texts": (lambda f: tuple(map(str, f)), False),
    "pairs of path and label": (lambda f: list(zip(f, LABELS)), True),
    "dicts of paths": (
        lambda f: [{"file_name": str(p), "label": k} for p, k in zip(f, LABELS)],
        True,
    ),
    "table of paths": (lambda f: table(path=[str(p) for p in f], label=LABELS), True),
    "table of paths and words": (lambda f: table(filename=[str(p) for p in f], label=WORDS), True),
    "column of a table": (lambda f: table(path=f)["path"], False),
    "table of bytes": (lambda f: table(image=[p.read_bytes() for p in f], label=LABELS), True),
    "table of cells": (
        lambda f: table(image=[{"bytes": p.read_bytes()} for p in f], label=LABELS),
        True,
    ),
    "table of pictures": (lambda f: table(image=[Image.open(p) for p in f], label=LABELS), True),
    "arrow table": (arrow, True),
    "opened npz": (npz, True),
    "dict of arrays": (lambda f: {"x": IMAGES, "y": LABELS}, True),
    "dict of tensors": (lambda f: {"image": TENSOR, "label": torch.tensor(LABELS)}, True),
    "pair of arrays": (lambda f: (IMAGES, np.array(LABELS)), True),
    "pair of tensors": (lambda f: (TENSOR, torch.tensor(LABELS)), True),
    "list of arrays": (lambda f: list(IMAGES), False),
    "list of tensors": (lambda f: list(TENSOR), False),
    "list of pictures": (lambda f: [Image.open(p) for p in f], False),
    "pairs of picture and label": (lambda f: [(Image.open(p), k) for p, k in zip(f, LABELS)], True),
    "list of dicts": (lambda f: [{"image": a, "label": k} for a, k in zip(IMAGES, LABELS)], True),
    "tensor dataset": (
        lambda f: torch.utils.data.TensorDataset(TENSOR, torch.tensor(LABELS)),
        True,
    ),
    "part of a dataset": (
        lambda f: torch.utils.data.Subset(list(zip(IMAGES, LABELS)), range(N)),
        True,
    ),
    "two datasets": (
        lambda f: torch.utils.data.ConcatDataset(
            [list(zip(IMAGES[:5], LABELS[:5])), list(zip(IMAGES[5:], LABELS[5:]))]
        ),
        True,
    ),
}


@pytest.mark.every(4)
@pytest.mark.parametrize("name", OBJECTS)
def test_everyday_objects(files, name):
    make, labelled = OBJECTS[name]
    data = open_dataset(make(files), image_size=8)
    assert torch.equal(data.batch(range(N))["image"], TENSOR)
    assert (data.labels.tolist() if data.labels is not None else None) == (
        LABELS if labelled else None
    )
    streamed = open_dataset(make(files), image_size=8, cache="none", labels="none")
    assert torch.equal(streamed.batch([5, 3])["image"], TENSOR[[5, 3]])
    assert streamed.labels is None
    assert open_dataset(make(files), image_size=8).fingerprint == data.fingerprint


def test_as_data_and_as_held_out_data(files):
    config = TrainingConfig(val_fraction=0.0)
    for data in (files, list(zip(files, LABELS)), table(path=files, label=LABELS), list(IMAGES)):
        train, _ = open_training_data(data, config, tiny_diffusion(), lambda line: None)
        assert torch.equal(train.batch(range(N))["image"], TENSOR)


REFUSED = {
    "loader": (torch.utils.data.DataLoader(list(TENSOR)), "got DataLoader.*loader.dataset"),
    "generator": ((image for image in IMAGES), r"got generator.*list\(data\)"),
    "iterator": (iter(IMAGES), r"list\(data\)"),
    "map": (map(np.asarray, IMAGES), r"got map.*list\(data\)"),
    "set": ({"a.png", "b.png"}, r"sorted\(data\)"),
    "number": (5, "data must be a path.*got int"),
    "mapping of paths": ({"a.png": 1}, "data must be a path.*got dict"),
    "bytes": (b"abc", "got bytes"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_names_a_way(name):
    data, words = REFUSED[name]
    with pytest.raises(TypeError, match=words):
        open_dataset(data, image_size=8)
    with pytest.raises(TypeError, match=words):
        open_training_data(data, TrainingConfig(), tiny_diffusion(), lambda line: None)


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        yield from IMAGES


class StreamWithLength(Stream):
    def __len__(self):
        return N


@pytest.mark.parametrize("kind", [Stream, StreamWithLength])
def test_streams_are_refused_with_or_without_a_length(kind):
    with pytest.raises(
        TypeError, match=r"IterableDataset.*__getitem__ and __len__, or list\(dataset\)"
    ):
        open_dataset(kind(), image_size=8)
    assert torch.equal(open_dataset(list(kind()), image_size=8).batch(range(N))["image"], TENSOR), (
        "the remedy works"
    )


def test_bad_paths_are_named(files, tmp_path):
    mixed = [*files[:3], tmp_path / "none.png", None, tmp_path]
    with pytest.raises(BadImagesError) as caught:
        open_dataset(mixed, image_size=8)
    assert [reason for _, reason in caught.value.bad] == [
        "missing",
        "no path in this row",
        "a folder, not a file",
    ]
    assert len(open_dataset(mixed, image_size=8, on_bad_image="skip")) == 3
    with pytest.raises(ValueError, match=r"no column named path, file or image\. There are: a"):
        open_dataset(table(a=[1]), image_size=8)
    for empty in ([], (), table(path=[])):
        with pytest.raises(ValueError, match="empty"):
            open_dataset(empty, image_size=8)


@pytest.mark.parametrize("low", [0, -1])
def test_remedy_for_floats_in_a_tensor_dataset(low):
    from ddpm_lib.data import tensor_dataset

    values = TENSOR / 255.0 * (1 - low) + low
    data = torch.utils.data.TensorDataset(values, torch.tensor(LABELS))
    with pytest.raises(TypeError, match="TensorDataset are float32") as caught:
        open_dataset(data, image_size=8)
    if low == 0:
        assert "ddpm_lib.data.tensor_dataset(*data.tensors)" in str(caught.value)
        assert isinstance(tensor_dataset(*data.tensors), ImageDataset)
    else:
        assert "[-1, 1]" in str(caught.value)


def test_objects_to_evaluate_on(tmp_path):
    run = tiny_trainer(tmp_path / "run", max_steps=1)
    run.train()
    options = {"metrics": "nll", "num": 4, "num_levels": 2, "device": "cpu", "progress": False}
    given = evaluate(tmp_path / "run", list(IMAGES), **options)
    opened = evaluate(tmp_path / "run", open_dataset(list(IMAGES), image_size=8), **options)
    assert given["nll"] == opened["nll"]
