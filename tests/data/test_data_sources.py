"""Arrays, tables, torch datasets and the hub."""

import io
import json
import socket
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_lib.data import BadImagesError, open_dataset
from ddpm_lib.data.missing_paths import look_for

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
LABELS = [0, 1, 2, 0, 1, 2]
NCHW = torch.from_numpy(IMAGES.transpose(0, 3, 1, 2).copy())


def png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def same(data, labels=LABELS) -> bool:
    batch = data.batch(range(len(data)))
    right = torch.equal(batch["image"], NCHW)
    return (
        right
        and (labels is None) == ("class_label" not in batch)
        and (not labels or batch["class_label"].tolist() == labels)
    )


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@pytest.mark.parametrize("names", [("arr_0", "arr_1"), ("images", "labels"), ("x", "y")])
def test_npz(tmp_path, names, layout):
    path = tmp_path / "a.npz"
    np.savez(path, **{names[0]: IMAGES if layout == "nhwc" else NCHW.numpy(), names[1]: LABELS})
    data = open_dataset(path, image_size=8)
    assert same(data)
    assert data.class_names == ("0", "1", "2")
    assert same(open_dataset(str(path), image_size=8, labels="none"), None)
    assert open_dataset(path, image_size=4, channels=1)[0]["image"].shape == (1, 4, 4)


def test_fingerprint_of_arrays_is_of_their_content():
    first = open_dataset(IMAGES, image_size=8)
    assert same(first, None)
    assert same(open_dataset(NCHW, image_size=8), None)
    changed = IMAGES.copy()
    changed[3, 0, 0, 0] ^= 1
    assert open_dataset(changed, image_size=8).fingerprint != first.fingerprint
    assert open_dataset(IMAGES.copy(), image_size=8).fingerprint == first.fingerprint


def test_npy_and_grey(tmp_path):
    np.save(tmp_path / "a.npy", IMAGES[..., 0])
    data = open_dataset(tmp_path / "a.npy", image_size=8, channels=1)
    assert torch.equal(data.batch(range(6))["image"], NCHW[:, :1])


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (IMAGES / 255.0, r"look like \[0, 1\]"),
        (IMAGES / 127.5 - 1, r"look like \[-1, 1\]"),
        (IMAGES.astype(np.int64), "values fit"),
        (IMAGES * np.float32("nan"), "NaN"),
        (IMAGES.astype(np.float32) * 100, "value_range"),
        (IMAGES[0, :, :, 0], "shape"),
        (IMAGES[:0], "shape"),
        (np.zeros((2, 8, 8, 5), np.uint8), "shape"),
        (np.array(["a"]), "uint8"),
    ],
)
def test_wrong_arrays_say_what_to_do(tmp_path, array, words):
    np.savez(tmp_path / "a.npz", array)
    for source in (array, tmp_path / "a.npz"):
        with pytest.raises(ValueError, match=words):
            open_dataset(source, image_size=8)


def test_npz_never_unpickles(tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path(tmp_path / "ran").touch, ())

    np.savez(tmp_path / "a.npz", arr_0=np.array([Evil()], dtype=object))
    with pytest.raises(ValueError, match="never loaded"):
        open_dataset(tmp_path / "a.npz", image_size=8)
    assert not (tmp_path / "ran").exists()


def test_damaged_npz(tmp_path):
    np.savez(tmp_path / "a.npz", IMAGES)
    data = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "a.npz").write_bytes(data[:200])
    with pytest.raises(ValueError, match="damaged"):
        open_dataset(tmp_path / "a.npz", image_size=8)
    np.savez(tmp_path / "b.npz", other=IMAGES)
    with pytest.raises(ValueError, match="There are: other"):
        open_dataset(tmp_path / "b.npz", image_size=8)
    np.savez(tmp_path / "c.npz", images=IMAGES, labels=[1, 2])
    assert any("2 labels" in note for note in open_dataset(tmp_path / "c.npz", image_size=8).notes)
    with pytest.raises(ValueError, match="2 labels"):
        open_dataset(tmp_path / "c.npz", image_size=8, label_column="labels")


class Items(torch.utils.data.Dataset):
    classes = ("ant", "bee", "cat")

    def __init__(self, make):
        self.make = make
        self.reads = 0

    def __len__(self):
        return 6

    def __getitem__(self, i):
        self.reads += 1
        return self.make(i)


@pytest.mark.every(2)
@pytest.mark.parametrize(
    "make",
    [
        lambda i: {"image": NCHW[i], "label": LABELS[i]},
        lambda i: {"pixel_values": IMAGES[i], "fine_label": torch.tensor(LABELS[i])},
        lambda i: (Image.fromarray(IMAGES[i]), LABELS[i]),
        lambda i: (NCHW[i], np.int64(LABELS[i])),
    ],
)
def test_torch_datasets(make):
    data = open_dataset(Items(make), image_size=8)
    assert same(data)
    assert data.class_names == Items.classes
    assert same(open_dataset(Items(make), image_size=8, labels="none", cache="none"), None)


def test_torch_dataset_of_bare_tensors():
    assert same(open_dataset(Items(lambda i: NCHW[i]), image_size=8), None)
    assert same(
        open_dataset(torch.utils.data.TensorDataset(NCHW, torch.tensor(LABELS)), image_size=8)
    )


def test_known_targets_spare_a_pass():
    items = Items(lambda i: (NCHW[i], LABELS[i]))
    items.targets = LABELS
    data = open_dataset(items, image_size=8, cache="none", verify=False, num_workers=0)
    assert data.labels.tolist() == LABELS
    assert items.reads == 2 * 6 + 3, "each is looked at twice, and the first of each class"


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda i: (NCHW[i] / 255.0, 0), TypeError, "ToTensor"),
        (lambda i: "name.png", TypeError, "str"),
        (lambda i: {"imag": NCHW[i]}, ValueError, "image_column"),
        (lambda i: (NCHW[i], 3), ValueError, "row 000000 is out of range"),
        (lambda i: (NCHW[i], 0.5), ValueError, "whole numbers"),
    ],
)
def test_wrong_items(make, error, words):
    with pytest.raises(error, match=words):
        open_dataset(Items(make), image_size=8, require_labels=True)


def test_wrong_kinds_of_data():
    for data in (5, {"image": "a.png"}, iter([])):
        with pytest.raises(TypeError, match="data must be"):
            open_dataset(data, image_size=8)
    with pytest.raises(ValueError, match="does not fit"):
        open_dataset(IMAGES, image_size=8, labels="folder")


@pytest.fixture(scope="module")
def hf():
    import datasets

    datasets.disable_progress_bars()
    return datasets.Dataset.from_dict(
        {
            "img": [{"bytes": png(image), "path": None} for image in IMAGES],
            "label": LABELS,
            "note": ["x"] * 6,
        },
        features=datasets.Features(
            {
                "img": datasets.Image(),
                "label": datasets.ClassLabel(names=["ant", "bee", "cat"]),
                "note": datasets.Value("string"),
            }
        ),
    )


def test_hf_object(hf):
    data = open_dataset(hf, image_size=8)
    assert same(data)
    assert data.class_names == ("ant", "bee", "cat")
    chosen = open_dataset(hf.select([4, 1]), image_size=8, cache="none")
    assert chosen.labels.tolist() == [1, 1]
    assert torch.equal(chosen.batch([0, 1])["image"], NCHW[[4, 1]])
    assert same(open_dataset(hf.with_transform(lambda rows: {}), image_size=8))


def test_hf_columns(hf):
    data = open_dataset(hf.rename_columns({"img": "front"}), image_size=8)
    assert same(data), "the only Image column is taken"
    data = open_dataset(hf, image_size=8, image_column="img", label_column="note")
    assert data.class_names == ("x",)
    with pytest.raises(ValueError, match=r"'imgg'.*Did you mean 'img'.*img, label, note"):
        open_dataset(hf, image_size=8, image_column="imgg")
    with pytest.raises(ValueError, match="labell"):
        open_dataset(hf, image_size=8, label_column="labell")


def test_hf_saved_to_disk_and_splits(hf, tmp_path):
    import datasets

    hf.save_to_disk(tmp_path / "one")
    assert same(open_dataset(tmp_path / "one", image_size=8))
    both = datasets.DatasetDict({"train": hf, "test": hf.select([0])})
    both.save_to_disk(tmp_path / "two")
    for data in (both, tmp_path / "two"):
        assert same(open_dataset(data, image_size=8, split="train"))
        with pytest.raises(ValueError, match="train, test"):
            open_dataset(data, image_size=8)
        with pytest.raises(ValueError, match="Did you mean 'train'"):
            open_dataset(data, image_size=8, split="trian")
    with pytest.raises(TypeError, match="streaming"):
        open_dataset(hf.to_iterable_dataset(), image_size=8)


def test_parquet(hf, tmp_path):
    hf.select(range(4)).to_parquet(tmp_path / "train-00000-of-00002.parquet")
    hf.select(range(4, 6)).to_parquet(tmp_path / "train-00001-of-00002.parquet")
    for data in (tmp_path, f"{tmp_path}/train-*.parquet"):
        opened = open_dataset(data, image_size=8)
        assert same(opened)
        assert opened.class_names == ("ant", "bee", "cat")
    hf.to_parquet(tmp_path / "test.parquet")
    with pytest.raises(ValueError, match="several splits: test, train"):
        open_dataset(tmp_path, image_size=8)
    assert same(open_dataset(tmp_path, image_size=8, split="train"))
    assert same(open_dataset(tmp_path / "test.parquet", image_size=8, cache="none"))


def test_parquet_of_bytes_and_words(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    words = ["bee", "ant", "bee", "ant", "bee", "ant"]
    pq.write_table(
        pa.table({"image": [png(image) for image in IMAGES], "class": words}),
        tmp_path / "a.parquet",
    )
    data = open_dataset(tmp_path / "a.parquet", image_size=8)
    assert data.class_names == ("ant", "bee")
    assert same(data, [1, 0, 1, 0, 1, 0])
    pq.write_table(
        pa.table({"image": [png(IMAGES[0]), None, b"junk"], "label": [0, -1, 1]}),
        tmp_path / "b.parquet",
    )
    with pytest.raises(BadImagesError) as caught:
        open_dataset(tmp_path / "b.parquet", image_size=8)
    assert [name for name, _ in caught.value.bad] == ["000001", "000002"]
    skipped = open_dataset(tmp_path / "b.parquet", image_size=8, on_bad_image="skip")
    assert len(skipped) == 1
    assert any("1 of 3 images have no label" in note for note in skipped.notes)
    with pytest.raises(ValueError, match="no label"):
        open_dataset(tmp_path / "b.parquet", image_size=8, label_column="label")
    (tmp_path / "c.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ValueError, match="no readable parquet"):
        open_dataset(tmp_path / "c.parquet", image_size=8)


def test_pixels_in_a_table():
    import datasets

    features = datasets.Features(
        {"image": datasets.Array3D((8, 8, 3), "uint8"), "label": datasets.Value("int64")}
    )
    data = datasets.Dataset.from_dict({"image": IMAGES, "label": LABELS}, features=features)
    assert same(open_dataset(data, image_size=8))


@pytest.mark.parametrize("set_by_user", [False, True])
def test_hub_name_without_network(monkeypatch, tmp_path, set_by_user):
    import datasets
    from huggingface_hub import constants

    seen = []

    def load(name):
        seen.append((datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE))
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", set_by_user)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", set_by_user)
    with pytest.raises(
        FileNotFoundError, match=r"^'somebody/pictures' is no local path.*in the cache"
    ) as caught:
        open_dataset("somebody/pictures", image_size=8)
    assert "\n" not in str(caught.value)
    assert ("HF_HUB_OFFLINE is set" in str(caught.value)) == set_by_user
    assert seen == [(True, True)]
    assert (set_by_user, set_by_user) == (datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        open_dataset("./somebody/pictures", image_size=8)


def test_hub_name_with_network(monkeypatch, hf):
    import datasets
    from huggingface_hub import constants

    offline = []

    def load(name):
        offline.append(datasets.config.HF_HUB_OFFLINE)
        return datasets.DatasetDict({"train": hf})

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    for variable in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(variable, raising=False)
        monkeypatch.delenv(variable.upper(), raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", address)
        assert same(open_dataset("somebody/pictures", image_size=8))
        monkeypatch.setenv("http_proxy", address)  # only the proxy can be reached
        monkeypatch.setattr(constants, "ENDPOINT", "http://hub.invalid")
        assert same(open_dataset("somebody/pictures", image_size=8))
    assert offline == [False, False]


def test_hub_that_refuses_says_why(monkeypatch):
    import datasets

    from ddpm_lib.data import hub

    def load(name):
        raise PermissionError("gated dataset")

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(hub, "can_reach", lambda address: True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with pytest.raises(
        FileNotFoundError, match=r"no local path.*from the hub: PermissionError: gated dataset"
    ):
        open_dataset("somebody/pictures", image_size=8)


def test_importing_data_is_light():
    import subprocess

    code = (
        "import sys, json, ddpm_lib.data as d; d.Shapes(16, 4);print(json.dumps([m for m in"
        " ('datasets', 'matplotlib', 'scipy', 'accelerate', 'pyarrow') if m in sys.modules]))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert json.loads(result.stdout) == []


def test_cifar_layout(shared):
    folder = shared / "data" / "cifar10-jpeg"
    if not folder.is_dir():
        pytest.skip("no CIFAR-10")
    data = open_dataset(folder, image_size=32, split="test", cache="none", verify=False)
    assert len(data) == 10_000
    assert data.num_classes == 10
    assert data.batch(range(20))["image"].shape == (20, 3, 32, 32)


def test_looking_for_data_opens_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pics").mkdir()
    (tmp_path / "pics" / "a.png").write_bytes(b"no picture")
    (tmp_path / "gone").symlink_to("nowhere")
    assert [look_for(name) for name in ("shapes", "pics", "pics/*.png")] == [None] * 3
    assert "(did you mean 'pics'?); taken for a dataset of the hub" in str(look_for("pix"))
    for name, said in (
        ("./pix", "Did you mean 'pics'"),
        ("pix.npz", "does not exist"),
        ("gone", "is a link to"),
    ):
        with pytest.raises(FileNotFoundError, match=said):
            look_for(name)
