"""Labels are made where they make classes; elsewhere there is a note, or an error if they were
asked for.
"""

import collections
import io

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_lib.data import open_dataset
from ddpm_lib.data.tensors import collect
from ddpm_lib.training import ConfigError
from ddpm_lib.training.sources import open_training_data
from training_helpers import tiny_diffusion, tiny_trainer

N = 24
IMAGES = np.random.default_rng(0).integers(0, 256, (N, 8, 8, 3), dtype=np.uint8)
Pair = collections.namedtuple("Pair", "image label")
BENT = [0, 0, 1, 1, 0, 0] * 4

BAD = {
    "masks": (
        [torch.zeros(1, 8, 8)] * N,
        "0 is an? (tensor|array) of shape|0.png is a tensor|0 is of type",
    ),
    "pictures": ([Image.new("L", (8, 8))] * N, "0(.png)? is an? "),
    "several": ([[0], [0, 1], [2]] * 8, "0*1(.png)? is .*of 2 values"),
    "measurements": ([0.5 * k for k in range(N)], r"(row|image) 0*1(.png)? is 0\.5, a measurement"),
    "negative measurements": (
        [-0.25 * k for k in range(N)],
        r"(row|image) 0*1(.png)? is -0\.25, a measurement",
    ),
    "negative numbers": ([-1000 + k for k in range(N)], "0*(.png)? is -1000"),
    "captions": (
        [f"a picture of thing {k}" for k in range(N)],
        "24 images have 24 different labels.*captions",
    ),
    "missing": ([None, 1] * 12, "12 of 24 images have no label, the first is (row|image) 0*"),
    "unknown": ([-1, 1] * 12, "12 of 24 images have no label, the first is (row|image) 0*"),
    "identifiers": ([100_000 + k for k in range(N)], "0*23(.png)? is 100023"),
}
GOOD = {
    "numbers": ([0, 1, 2] * 8, ("0", "1", "2"), [0, 1, 2] * 8),
    "words": (["b", "a", "c"] * 8, ("a", "b", "c"), [1, 0, 2] * 8),
    "whole floats": ([0.0, 1.0, 2.0] * 8, ("0", "1", "2"), [0, 1, 2] * 8),
    "truths": ([True, False] * 12, ("0", "1"), [1, 0] * 12),
}


class Items(torch.utils.data.Dataset):
    def __init__(self, make):
        self.make, self.reads = make, 0

    def __len__(self):
        return N

    def __getitem__(self, i):
        self.reads += 1
        return self.make(i)


def png(array) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def as_table(values):
    import pyarrow as pa

    plain = [v.tolist() if isinstance(v, torch.Tensor) else v for v in values]
    return pa.table({"image": [png(image) for image in IMAGES], "label": pa.array(plain)})


def as_parquet(values, folder):
    import pyarrow.parquet as pq

    pq.write_table(as_table(values), folder / "a.parquet")
    return folder / "a.parquet"


def as_hf(values, folder):
    import datasets

    return datasets.Dataset(as_table(values))


def as_frame(values, folder):
    import pandas

    return pandas.DataFrame({"image": list(IMAGES), "label": values})


def as_paths(values, folder):
    paths = []
    for k, image in enumerate(IMAGES):
        Image.fromarray(image).save(folder / f"{k:06d}.png")
        paths.append(folder / f"{k:06d}.png")
    return list(zip(paths, values))


def as_npz(values, folder):
    np.savez(folder / "a.npz", images=IMAGES, labels=np.array(values))
    return folder / "a.npz"


SOURCES = {
    "tuples": lambda values, folder: Items(lambda i: (IMAGES[i], values[i])),
    "dicts": lambda values, folder: Items(lambda i: {"image": IMAGES[i], "label": values[i]}),
    "named tuples": lambda values, folder: Items(lambda i: Pair(IMAGES[i], values[i])),
    "list": lambda values, folder: [(IMAGES[i], values[i]) for i in range(N)],
    "dict of arrays": lambda values, folder: {"image": IMAGES, "label": values},
    "pair": lambda values, folder: (IMAGES, values),
    "paths": as_paths,
    "table": as_frame,
    "arrow": lambda values, folder: as_table(values),
    "hf": as_hf,
    "parquet": as_parquet,
    "npz": as_npz,
}


def possible(source, kind) -> bool:
    """Arrow has no column of pictures here, and numpy no array of lists."""
    return not (
        (kind == "pictures" and source in ("arrow", "hf", "parquet", "npz"))
        or (kind in ("several", "missing") and source == "npz")
        or (kind in ("masks", "pictures") and source == "pair")
    )


@pytest.mark.every(3)
@pytest.mark.parametrize("source", SOURCES)
def test_what_makes_no_classes(tmp_path, source):
    for kind in BAD:
        if not possible(source, kind):
            continue
        values, words = BAD[kind]
        data = SOURCES[source](values, tmp_path)
        opened = open_dataset(data, image_size=8, num_workers=0)
        assert opened.labels is None, (kind, opened.labels)
        assert len(opened) == N
        note = next(note for note in opened.notes if note.startswith("no labels"))
        assert 'labels="none", --labels none' in note
        assert not any(
            "labels" in note
            for note in open_dataset(data, image_size=8, labels="none", num_workers=0).notes
        )
        with pytest.raises(ValueError, match=f"(?is){words}.*label_column"):
            open_dataset(data, image_size=8, require_labels=True, num_workers=0)


@pytest.mark.parametrize("source", SOURCES)
def test_what_makes_classes(tmp_path, source):
    for kind, (values, names, numbers) in GOOD.items():
        if source == "pair" and kind == "words":
            continue
        opened = open_dataset(SOURCES[source](values, tmp_path), image_size=8, num_workers=0)
        assert opened.class_names == names, kind
        assert opened.labels.tolist() == numbers
        assert np.array_equal(opened.batch(range(N))["image"].numpy(), IMAGES.transpose(0, 3, 1, 2))


def test_a_column_that_was_named_must_make_classes():
    with pytest.raises(ValueError, match=r"row 000001 is 0\.5, a measurement"):
        open_dataset(
            SOURCES["dicts"](BAD["measurements"][0], None), image_size=8, label_column="label"
        )
    many = open_dataset(
        SOURCES["dicts"]([f"c{k % 15}" for k in range(N)], None), image_size=8, require_labels=True
    )
    assert many.num_classes == 15, (
        "few images of a class are no reason to refuse what was asked for"
    )


def test_labels_cost_no_pass_of_their_own():
    reads = []
    for labels in ("auto", "none"):
        items = Items(lambda i: (IMAGES[i], i % 2))
        open_dataset(items, image_size=8, num_workers=0, labels=labels)
        reads.append(items.reads)
    assert reads[0] == reads[1]


@pytest.mark.parametrize("options", [{}, {"cache": "none"}, {"cache": "none", "verify": False}])
def test_targets_that_a_transform_changes_are_not_believed(options):
    items = Items(lambda i: (IMAGES[i], BENT[i]))
    items.targets, items.classes = [0, 0, 1, 1, 2, 2] * 4, ["cat", "lion", "dog"]
    assert open_dataset(items, image_size=8, require_labels=True, **options).labels.tolist() == BENT
    items.targets = BENT
    items.target_transform = lambda target: target
    assert open_dataset(items, image_size=8, require_labels=True, **options).labels.tolist() == BENT


def test_only_one_item_of_a_rare_class_differs_from_the_targets():
    values = [0] * (N - 1) + [1]
    items = Items(lambda i: (IMAGES[i], values[i] * 2))
    items.targets, items.classes = values, ["a", "b", "c"]
    found = open_dataset(items, image_size=8, require_labels=True, cache="none", verify=False)
    assert found.labels.tolist() == [0] * (N - 1) + [2]


def test_training_insists_where_the_network_has_classes(tmp_path):
    masks = SOURCES["tuples"](BAD["masks"][0], None)
    run = tiny_trainer(tmp_path, data=masks, max_steps=1)
    assert run.train().step == 1
    config, lines = run.config, []
    assert open_training_data(masks, config, run.diffusion, lines.append)[0].labels is None
    assert any("no labels" in line for line in lines)
    classes = tiny_diffusion(num_classes=3)
    with pytest.raises(ValueError, match="row 000000 is a tensor of shape"):
        open_training_data(masks, config, classes, lines.append)
    bare = Items(lambda i: IMAGES[i])
    with pytest.raises(ConfigError, match="the data has no labels"):
        open_training_data(bare, config, classes, lines.append)


def test_sequences_and_volumes_too():
    made = collect([(torch.zeros(1, 5), torch.zeros(3)), (torch.ones(1, 5), torch.zeros(3))])
    assert made.labels is None
    assert any("no labels" in note for note in made.notes)
    with pytest.raises(ValueError, match="row 0 is a tensor"):
        collect([(torch.zeros(1, 5), torch.zeros(3))] * 2, require_labels=True)
    with pytest.raises(ValueError, match=r"Item 1 of list cannot be used: .*type"):
        collect([torch.zeros(1, 5), "zzz"])


def test_labels_of_the_command(tmp_path, capsys):
    from ddpm_lib.cli import main

    np.savez(tmp_path / "a.npz", images=IMAGES, target=np.linspace(0, 3, N))
    options = [str(tmp_path / "a.npz"), "--image-size", "8", "--preset", "tiny", "--dry-run"]
    assert main(["train", *options]) == 0
    assert "24 images of 3×8×8\n" in capsys.readouterr().out
    assert main(["train", *options, "--class-conditional"]) == 2
    assert "row 1 is 0.130435, a measurement" in capsys.readouterr().err
