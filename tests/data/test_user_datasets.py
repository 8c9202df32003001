"""Datasets of the user's: files that are opened late, random transforms, errors and hanging items,
threads after a fork.
"""

import os
import random
import signal
import sqlite3
import subprocess
import sys
import tarfile
import time
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_lib.data import BadImagesError, make_loader, open_dataset, readers
from ddpm_lib.training.batches import BatchPlan, TrainingBatches

N, SIDE = 400, 8
TRUTH = np.random.default_rng(0).integers(0, 256, (N, SIDE, SIDE, 3), dtype=np.uint8)
BYTES = SIDE * SIDE * 3
_opened: dict[str, object] = {}


class Late(torch.utils.data.Dataset):
    """Opens its file when the first item is read, as is advised for the workers of a DataLoader."""

    def __init__(self, path):
        self.path, self.handle = path, None

    def __len__(self):
        return N

    def __getitem__(self, i):
        if self.handle is None:
            self.handle = self.open()
        raw = self.read(i)
        return (
            np.frombuffer(raw.ljust(BYTES, b"\0")[:BYTES], np.uint8).reshape(SIDE, SIDE, 3).copy()
        )


class File(Late):
    def open(self):
        return open(self.path / "pixels.raw", "rb")

    def read(self, i):
        self.handle.seek(i * BYTES)
        return self.handle.read(BYTES)


class Unbuffered(File):
    """As HDF5 and other libraries in C: a bare descriptor, whose place moves with every reading."""

    def open(self):
        return os.open(self.path / "pixels.raw", os.O_RDONLY)

    def read(self, i):
        os.lseek(self.handle, i * BYTES, os.SEEK_SET)
        return os.read(self.handle, BYTES)


class Global(File):
    """The handle lies outside the object, so that no copy of the object is free of it."""

    def open(self):
        return "global"

    def read(self, i):
        if "file" not in _opened:
            _opened["file"] = open(self.path / "pixels.raw", "rb", buffering=0)  # noqa: SIM115
        _opened["file"].seek(i * BYTES)
        return _opened["file"].read(BYTES)


class Zip(Late):
    def open(self):
        return zipfile.ZipFile(self.path / "pixels.zip")

    def read(self, i):
        return self.handle.read(f"{i}.raw")


class Tar(Late):
    def open(self):
        return tarfile.open(self.path / "pixels.tar")

    def read(self, i):
        return self.handle.extractfile(f"{i}.raw").read()


class Database(Late):
    def open(self):
        return sqlite3.connect(self.path / "pixels.db")

    def read(self, i):
        return self.handle.execute("SELECT pixels FROM images WHERE id = ?", (i,)).fetchone()[0]


class Mapped(Late):
    def open(self):
        return np.memmap(self.path / "pixels.raw", np.uint8, "r")

    def read(self, i):
        return self.handle[i * BYTES : (i + 1) * BYTES].tobytes()


KINDS = (File, Unbuffered, Global, Zip, Tar, Database, Mapped)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    path = tmp_path_factory.mktemp("stored")
    TRUTH.tofile(path / "pixels.raw")
    with (
        zipfile.ZipFile(path / "pixels.zip", "w") as archive,
        tarfile.open(path / "pixels.tar", "w") as tape,
        sqlite3.connect(path / "pixels.db") as base,
    ):
        base.execute("CREATE TABLE images (id INTEGER PRIMARY KEY, pixels BLOB)")
        for i, image in enumerate(TRUTH):
            (path / "one").write_bytes(image.tobytes())
            archive.writestr(f"{i}.raw", image.tobytes())
            tape.add(path / "one", f"{i}.raw")
            base.execute("INSERT INTO images VALUES (?, ?)", (i, image.tobytes()))
    return path


def right(batch, rows) -> bool:
    return np.array_equal(batch["image"].numpy(), TRUTH[rows].transpose(0, 3, 1, 2))


@pytest.mark.parametrize(
    "kind", [KINDS[0], *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS[1:])]
)
def test_files_opened_at_the_first_item_are_not_shared(stored, kind):
    _opened.clear()
    items = kind(stored)
    cached = open_dataset(items, image_size=SIDE, num_workers=2)
    assert right(cached.batch(np.arange(N)), np.arange(N))
    assert items.handle is None, "the object handed over is as it was"
    assert not _opened
    streamed = open_dataset(items, image_size=SIDE, num_workers=2, cache="none")
    train, held_out = streamed.split(40)
    order = [np.arange(k, k + 24) % len(train) for k in range(0, len(train), 24)]
    with make_loader(train, order, num_workers=2) as stream:
        for rows, batch in zip(order, stream):
            assert right(batch, train._rows[rows])
            assert right(held_out.batch(np.arange(12)), held_out._rows[:12]), (
                "this process reads too, meanwhile"
            )
    assert items.handle is None
    assert not _opened


def test_without_workers_everything_is_read_here(stored):
    items, lines = File(stored), []
    streamed = open_dataset(items, image_size=SIDE, num_workers=0, cache="none")
    assert items.handle is not None
    with make_loader(
        streamed, [np.arange(9), np.arange(5)], num_workers=2, log=lines.append
    ) as stream:
        assert stream.num_workers == 0, "workers would share the open file"
        assert right(next(stream), np.arange(9))
    assert "there are none" in lines[0]


def test_opened_pictures_in_a_list_are_read_in_one_process(tmp_path):
    for k in range(300):
        Image.fromarray(TRUTH[k]).save(tmp_path / f"{k:03d}.bmp")
    pictures = [Image.open(path) for path in sorted(tmp_path.iterdir())]
    assert right(
        open_dataset(pictures, image_size=SIDE, num_workers=2).batch(np.arange(300)), np.arange(300)
    )


class Asks(torch.utils.data.Dataset):
    """Says of itself which worker reads it."""

    def __len__(self):
        return 64

    def __getitem__(self, i):
        info = torch.utils.data.get_worker_info()
        own = info is not None and isinstance(info.dataset, Asks)
        threads = torch.get_num_threads()
        return np.full((4, 4, 1), (info.num_workers * 10 + threads if own else 0), np.uint8)


@pytest.mark.slow
def test_readers_look_like_workers_of_a_loader():
    data = open_dataset(Asks(), image_size=4, channels=1, num_workers=2)
    assert set(data.batch(np.arange(64))["image"].unique().tolist()) == {21}
    streamed = open_dataset(Asks(), image_size=4, channels=1, num_workers=2, cache="none")
    with make_loader(streamed, [[1, 2], [3]], num_workers=2) as stream:
        assert {int(batch["image"].max()) for batch in stream} == {21}
    here = open_dataset(Asks(), image_size=4, channels=1, num_workers=0)
    assert int(here[0]["image"].max()) == 0, "as in a DataLoader without workers"


class Varying(torch.utils.data.Dataset):
    """A gradient, changed by `how` in every reading."""

    def __init__(self, how, n=24):
        self.how, self.n, self.count, self.own = how, n, 0, np.random.default_rng(0)

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        self.count += 1
        image = (
            np.add.outer(np.arange(8), np.arange(8)).astype(np.uint8)[..., None].repeat(3, -1) * 4
            + i % 100
        )
        return self.how(self, image.astype(np.uint8)), i % 3


def seeded(self, image):
    torch.manual_seed(3)
    return image + torch.randint(0, 50, (1,)).numpy().astype(np.uint8)


RANDOM = {
    "python": lambda self, image: image[:, ::-1].copy() if random.random() < 0.5 else image,
    "numpy": lambda self, image: image + np.uint8(np.random.randint(50)),  # noqa: NPY002
    "torch": (
        lambda self, image: torch.from_numpy(image) + torch.randint(0, 50, (1,), dtype=torch.uint8)
    ),
    "rarely": lambda self, image: image[::-1].copy() if random.random() < 0.02 else image,
    "own generator": lambda self, image: image + np.uint8(self.own.integers(200)),
    "time": lambda self, image: image + np.uint8(time.monotonic_ns() // 1000 % 200),
    "counter": lambda self, image: image + np.uint8(self.count % 7),
}
STEADY = {
    "plain": lambda self, image: image,
    "seeds itself": seeded,
    "centre": lambda self, image: Image.fromarray(image).resize((6, 6)),
}


@pytest.mark.every(3)
@pytest.mark.parametrize(
    ("name", "workers"),
    [*((name, 0) for name in RANDOM), ("python", 2), ("counter", 2), ("own generator", 2)],
)
def test_random_items_are_noticed_and_streamed(name, workers):
    before = (
        random.getstate(),
        np.random.get_state()[1].tolist(),  # noqa: NPY002
        torch.get_rng_state().tolist(),
    )
    data = open_dataset(Varying(RANDOM[name]), image_size=8, num_workers=workers)
    note = next(note for note in data.notes if "random transforms?" in note)
    assert 'cache="ram" (--cache ram) keeps one version' in note
    assert not data.in_memory
    if name not in ("rarely", "python"):
        assert len({data[0]["image"].numpy().tobytes() for _ in range(10)}) > 3
    again = open_dataset(Varying(RANDOM[name]), image_size=8, num_workers=workers)
    assert again.fingerprint == data.fingerprint, "what differs each time is not compared"
    assert open_dataset(Varying(RANDOM[name], 25), image_size=8).fingerprint != data.fingerprint
    after = (
        random.getstate(),
        np.random.get_state()[1].tolist(),  # noqa: NPY002
        torch.get_rng_state().tolist(),
    )
    assert after == before, "the user's generators are left alone"


@pytest.mark.parametrize("name", STEADY)
def test_items_that_stay_the_same_are_cached(name):
    data = open_dataset(Varying(STEADY[name]), image_size=8)
    assert data.in_memory
    assert not any("reading" in note for note in data.notes)


def test_one_version_of_random_items_where_that_is_asked_for():
    data = open_dataset(Varying(RANDOM["torch"]), image_size=8, cache="ram")
    assert data.in_memory
    assert any("one version of each is kept in RAM" in note for note in data.notes)
    again = open_dataset(Varying(RANDOM["torch"]), image_size=8, cache="ram", num_workers=2)
    assert torch.equal(again.batch(range(24))["image"], data.batch(range(24))["image"]), (
        "the same one at every start"
    )


def test_a_change_that_only_shows_late_is_noticed():
    def late(self, image):
        return image + np.uint8(5) if self.count > 200 else image

    data = open_dataset(Varying(late, 240), image_size=8, num_workers=1)
    assert not data.in_memory


@pytest.mark.every(3)
@pytest.mark.parametrize("name", ["python", "numpy", "torch"])
def test_random_batches_of_a_resumed_run_are_those_of_one_that_was_not_cut(name):
    data = open_dataset(Varying(RANDOM[name]), image_size=8, num_workers=2).steady()

    def batches(first_slot, count, workers, seed=0):
        made = TrainingBatches(data, BatchPlan(12, 1, 0, 2), seed, first_slot, workers)
        found = [next(made)["image"] for _ in range(count)]
        made.close()
        return torch.stack(found)

    whole = batches(0, 12, 2)
    assert torch.equal(whole, batches(0, 12, 0)), "for any number of workers"
    assert torch.equal(whole[6:], batches(36, 6, 1)), "from the middle of an epoch"
    assert not torch.equal(whole, batches(0, 12, 2, seed=1))
    order = TrainingBatches(data, BatchPlan(12, 1, 0, 2), 0, 0, 0)._order
    first, second = np.argsort(order.indices(0, 24)), np.argsort(order.indices(24, 48))
    images = whole.flatten(0, 1)
    assert not torch.equal(images[:24][first], images[24:48][second]), (
        "another epoch, another version"
    )
    assert torch.equal(data.batch([3])["image"], data.batch([3])["image"]), (
        "validation sees the same each time"
    )


class Failing(torch.utils.data.Dataset):
    def __init__(self, fail, rows=(7,), n=30):
        self.fail, self.rows, self.n = fail, rows, n

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        return self.fail(i) if i in self.rows else (np.full((8, 8, 3), i % 200, np.uint8), i % 2)


def raising(error):
    def fail(i):
        raise error

    return fail


class Unsendable(Exception):
    def __init__(self, a, b):
        super().__init__("two arguments")


FAILURES = [
    (
        raising(ValueError("cannot parse this record")),
        r"ValueError: cannot parse this record \(test_user_datasets.py, line",
    ),
    (raising(KeyError("key")), "KeyError: 'key'"),
    (raising(RuntimeError("x" * 500)), "RuntimeError: x{159}…"),
    (raising(Unsendable(1, 2)), "Unsendable: two arguments"),
    (raising(TypeError("no such type")), "TypeError: no such type"),
    (raising(FileNotFoundError(2, "No such file", "a.dcm")), "missing"),
    (raising(StopIteration()), "StopIteration"),
    (lambda i: None, "no image in this row"),
    (lambda i: (None, 1), "no image in this row"),
    (lambda i: (), "IndexError"),
    (lambda i: ("a.png", 1), "got str"),
    (lambda i: (np.zeros((8, 8, 3)), 1), "float64"),
    (lambda i: (np.zeros((8, 8, 7, 2), np.uint8), 1), "shape"),
]
SENT = [FAILURES[k] for k in (0, 3, 6, 7)]
"""What comes through the pipe of a reader in a way of its own."""


@pytest.mark.every(3)
@pytest.mark.parametrize(
    ("fail", "words", "workers"),
    [*((*case, 0) for case in FAILURES), *((*case, 2) for case in SENT)],
)
def test_whatever_an_item_raises_is_a_bad_image(fail, words, workers):
    items = Failing(fail)
    with pytest.raises(BadImagesError, match=rf"(?s)1 of 30.*000007: .*{words}.*on_bad_image"):
        open_dataset(items, image_size=8, num_workers=workers)
    for cache in ("ram", "none"):
        data = open_dataset(
            items, image_size=8, num_workers=workers, cache=cache, on_bad_image="skip"
        )
        assert len(data) == 29
        assert data.labels.tolist() == [i % 2 for i in range(30) if i != 7]
        assert any("skipped 1 of 30 images: 000007" in note for note in data.notes)


@pytest.mark.parametrize("on_bad_image", ["error", "skip"])
def test_a_dataset_that_cannot_be_read_at_all_is_said_to_be_at_fault(on_bad_image):
    items = Failing(raising(NameError("name 'cv3' is not defined")), range(3000), 3000)
    with pytest.raises(
        BadImagesError, match=r"(?s)12 of 12.*cv3.*an error in its code.*Call its \[0\]"
    ):
        open_dataset(items, image_size=8, on_bad_image=on_bad_image)


@pytest.mark.every(2)
@pytest.mark.parametrize("row", [0, 270])
@pytest.mark.parametrize(
    ("end", "words"),
    [
        (lambda i: os._exit(3), "exit code 3"),
        (lambda i: os.kill(os.getpid(), signal.SIGKILL), "for memory"),
    ],
)
def test_a_reader_that_dies_names_the_row(end, words, row):
    with pytest.raises(RuntimeError) as caught:
        open_dataset(Failing(end, (row,), 300), image_size=8, num_workers=2)
    assert words in str(caught.value)
    assert f"row {row:06d} of Failing" in str(caught.value)


@pytest.mark.parametrize("cache", ["ram", "none"])
def test_a_reader_that_dies_is_noticed_though_its_pipe_stays_open(cache, tmp_path):
    def leave_a_child(i):
        child = os.fork()
        if child == 0:  # has the pipe of its parent
            time.sleep(60)
            os._exit(0)
        (tmp_path / "child").write_text(str(child))
        os._exit(3)

    with pytest.raises(RuntimeError, match="exit code 3"):
        open_dataset(Failing(leave_a_child, (7,), 30), image_size=8, num_workers=2, cache=cache)
    os.kill(int((tmp_path / "child").read_text()), signal.SIGKILL)  # was still there


def slow(i):
    time.sleep(0.8)
    return np.zeros((8, 8, 3), np.uint8), 0


def test_an_item_that_takes_very_long_is_named(monkeypatch):
    monkeypatch.setattr(readers, "PATIENCE", 0.2)
    lines = []
    data = open_dataset(Failing(slow), image_size=8, num_workers=1, cache="none", log=lines.append)
    assert len([line for line in lines if "row 000007 of Failing has been read for" in line]) >= 1
    lines.clear()
    with make_loader(data, [[6, 7, 8]], num_workers=1, log=lines.append) as stream:
        assert next(stream)["image"].shape[0] == 3
    assert any("row 000007 of Failing" in line for line in lines)


THREADED = """
import os, sys, time
import numpy as np, torch
from ddpm_lib.data import open_dataset

class Slices(torch.utils.data.Dataset):
    def __len__(self):
        return 300
    def __getitem__(self, i):
        if sys.argv[1] == "hang":
            print(os.getpid(), flush=True)
            time.sleep(600)
        x = torch.from_numpy(np.random.default_rng(i).normal(size=(1, 256, 256)).astype("f4"))
        return ((x - x.min()) / (x.max() - x.min()) * 255).to(torch.uint8)

if __name__ == "__main__":
    torch.set_num_threads(2)
    torch.rand(1000, 1000).exp().sum()  # starts the pool of threads
    print(open_dataset(Slices(), image_size=16, channels=1, num_workers=2))
"""


def test_torch_operations_in_items_do_not_hang_after_a_fork(tmp_path):
    (tmp_path / "threaded.py").write_text(THREADED)
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    command = [sys.executable, str(tmp_path / "threaded.py"), "run"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert "300 images" in done.stdout, done.stderr


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_readers_end_with_a_parent_that_is_killed(tmp_path):
    (tmp_path / "threaded.py").write_text(THREADED)
    command = [sys.executable, str(tmp_path / "threaded.py"), "hang"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        try:
            reader = int(parent.stdout.readline())
            os.kill(reader, signal.SIGTERM)  # which readers ignore: the trainer decides
        finally:
            parent.kill()
    for _ in range(600):
        if not os.path.exists(f"/proc/{reader}"):
            break
        time.sleep(0.05)
    assert not os.path.exists(f"/proc/{reader}")
