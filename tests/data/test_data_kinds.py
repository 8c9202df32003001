"""Data of every kind is read, or the message names the way from it; sizes are checked before memory
is taken.
"""

import io
import os
import pathlib
import re
import socket
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddpm_lib.data import open_dataset
from ddpm_lib.data.kinds import SUFFIXES

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 8, 9, 3), dtype=np.uint8)

WAYS = {
    ".dcm": "pydicom.dcmread",
    ".dicom": "pydicom.dcmread",
    ".ima": "pydicom.dcmread",
    ".nii": "nibabel.load",
    ".nii.gz": "nibabel.load",
    ".nrrd": "SimpleITK.ReadImage",
    ".mha": "SimpleITK.ReadImage",
    ".mhd": "SimpleITK.ReadImage",
    ".h5": "h5py.File",
    ".hdf5": "h5py.File",
    ".hdf": "h5py.File",
    ".he5": "h5py.File",
    ".mat": "scipy.io.loadmat",
    ".mdb": "lmdb.open",
    ".lmdb": "lmdb.open",
    ".tfrecord": "TFRecordDataset",
    ".tfrecords": "TFRecordDataset",
    ".mp4": "ffmpeg -i",
    ".avi": "ffmpeg -i",
    ".mov": "ffmpeg -i",
    ".mkv": "ffmpeg -i",
    ".webm": "ffmpeg -i",
    ".m4v": "ffmpeg -i",
    ".heic": "pillow_heif",
    ".heif": "pillow_heif",
    ".avif": "pillow_heif",
    ".jp2": "PIL.Image.open",
    ".j2k": "PIL.Image.open",
    ".jpx": "PIL.Image.open",
    ".jxl": "djxl",
    ".svg": "rsvg-convert",
    ".raw": "rawpy",
    ".cr2": "rawpy",
    ".cr3": "rawpy",
    ".nef": "rawpy",
    ".arw": "rawpy",
    ".dng": "rawpy",
    ".psd": "PNG",
    ".exr": "OpenEXR",
    ".pdf": "PNG",
    ".eps": "PNG",
    ".ico": "PNG",
    ".tar": "Was it copied whole?",
    ".zip": "python -m zipfile -t",
    ".tgz": "tar -xf",
    ".tar.gz": "tar -xf",
    ".tar.bz2": "tar -xf",
    ".tar.xz": "tar -xf",
    ".7z": "7z x",
    ".rar": "7z x",
    ".gz": "Unpack",
    ".bz2": "Unpack",
    ".xz": "Unpack",
    ".zst": "Unpack",
    ".json": "metadata.jsonl",
    ".jsonl": "metadata.jsonl",
    ".csv": "metadata.csv",
    ".tsv": "metadata.csv",
    ".xlsx": ".csv",
    ".xls": ".csv",
    ".ods": ".csv",
    ".pkl": "numpy.savez",
    ".pickle": "numpy.savez",
    ".pt": "numpy.savez",
    ".pth": "numpy.savez",
    ".ckpt": "numpy.savez",
    ".arrow": "datasets.Dataset.from_file",
    ".feather": "datasets.Dataset.from_file",
    ".czi": "TIFF",
    ".lif": "TIFF",
    ".nd2": "TIFF",
    ".svs": "TIFF",
    ".ndpi": "TIFF",
    ".mrxs": "TIFF",
    ".oib": "TIFF",
    ".lsm": "TIFF",
    ".hdr": "imageio",
    ".fits": "astropy",
    ".fit": "astropy",
    ".fts": "astropy",
    ".zarr": "zarr.open",
    ".beton": "torch Dataset",
    ".safetensors": "safetensors.numpy.load_file",
    "data_batch_1": "pass cifar10",
    "test_batch": "pass cifar10",
    "batches.meta": "pass cifar10",
    "-ubyte": "pass mnist",
    "-ubyte.gz": "pass mnist",
}


def test_every_known_kind_is_in_the_table():
    assert set(WAYS) == set(SUFFIXES)


@pytest.mark.parametrize("suffix", WAYS)
@pytest.mark.parametrize("alone", [True, False])
def test_each_kind_names_its_way(tmp_path, suffix, alone):
    file = tmp_path / "my data" / f"scan{suffix}"
    file.parent.mkdir()
    file.write_bytes(b"")
    if alone and suffix in (".csv", ".tsv", ".jsonl"):
        return  # a table of pictures
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        open_dataset(file if alone else file.parent, image_size=8)
    text = str(caught.value)
    assert WAYS[suffix] in text
    assert "{" not in text
    if "--" in text:
        assert any(flag in text for flag in ("--value-range", "--data-root", "--normalize"))
    if "tar -xf" in text or "ffmpeg" in text:
        assert f"'{file}'" in text


def test_what_the_message_on_dicom_proposes_works(tmp_path, monkeypatch):
    for k in range(3):
        (tmp_path / f"IM{k}").write_bytes(bytes(128) + b"DICM" + bytes([k]))
    with pytest.raises(FileNotFoundError, match="DICOM") as caught:
        open_dataset(tmp_path, image_size=8)
    pixels = np.arange(3 * 64, dtype=np.int16).reshape(3, 8, 8) - 1000
    reader = types.SimpleNamespace(
        dcmread=lambda file: types.SimpleNamespace(
            pixel_array=pixels[int(file.name[-1])] + 1024, intercept=-1024
        ),
        pixels=types.SimpleNamespace(apply_rescale=lambda array, slices: array + slices.intercept),
    )
    code = re.search(r"(files = .*); and pass", str(caught.value)).group(1)
    monkeypatch.chdir(tmp_path)
    exec(code, {"pathlib": pathlib, "numpy": np, "pydicom": reader})
    with pytest.raises(ValueError, match=r"--value-range -1000 -809"):
        open_dataset("slices.npy", image_size=8)
    assert len(open_dataset("slices.npy", image_size=8, value_range=(-1000, -809))) == 3


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
@pytest.mark.parametrize("shape", ["(h, w)", "(h, w, c)", "(c, h, w)"])
def test_a_folder_of_arrays_is_read(tmp_path, suffix, shape):
    for k, image in enumerate(IMAGES):
        array = {
            "(h, w)": image[..., 0],
            "(h, w, c)": image,
            "(c, h, w)": image.transpose(2, 0, 1),
        }[shape]
        file = tmp_path / ("a" if k % 2 else "b") / f"{k}{suffix}"
        file.parent.mkdir(exist_ok=True)
        if suffix == ".npy":
            np.save(file, array)
        else:
            np.savez(file, array)
    data = open_dataset(tmp_path, image_size=(8, 9))
    assert data.class_names == ("a", "b")
    assert list(data.names) == [f"a/{k}{suffix}" for k in (1, 3, 5)] + [
        f"b/{k}{suffix}" for k in (0, 2, 4)
    ]
    expected = (
        IMAGES[1].transpose(2, 0, 1)
        if shape != "(h, w)"
        else np.repeat(IMAGES[1, None, :, :, 0], 3, 0)
    )
    assert (data[0]["image"].numpy() == expected).all()
    (tmp_path / "a" / f"9{suffix}").write_bytes(b"x")
    with pytest.raises(ValueError, match=rf"a/9{suffix}"):
        open_dataset(tmp_path, image_size=8)
    assert len(open_dataset(tmp_path, image_size=8, on_bad_image="skip")) == 6


def test_a_folder_of_arrays_with_a_range(tmp_path):
    for k in range(3):
        np.save(tmp_path / f"{k}.npy", np.full((8, 8), 100.0 * k, np.float32))
    assert [
        int(i["image"].max()) for i in open_dataset(tmp_path, image_size=8, value_range=(0, 200))
    ] == [0, 128, 255]
    with pytest.raises(ValueError, match="value_range"):
        open_dataset(tmp_path, image_size=8)


@pytest.mark.parametrize(
    ("arrays", "image", "label"),
    [
        (
            ("train_images", "train_labels", "val_images", "test_images", "test_labels"),
            "train_images",
            "train_labels",
        ),
        (("x_test", "y_test", "x_train", "y_train"), "x_train", "y_train"),
        (("faces", "ages"), "faces", "ages"),
        (("faces",), "faces", None),
    ],
)
def test_arrays_of_other_names_are_proposed(tmp_path, arrays, image, label):
    def values(name: str) -> np.ndarray:
        return (
            np.arange(6) if name[0] == "y" or name.endswith("labels") or name == "ages" else IMAGES
        )

    np.savez(tmp_path / "a.npz", **{name: values(name) for name in arrays})
    flags = f"--image-column {image}" + (f" --label-column {label}" if label else "")
    with pytest.raises(ValueError, match=rf"\({flags}\)"):
        open_dataset(tmp_path / "a.npz", image_size=8)
    data = open_dataset(tmp_path / "a.npz", image_size=8, image_column=image, label_column=label)
    assert data.num_classes == (6 if label else None)


def test_patterns_of_files(tmp_path):
    for name in ("a/0.png", "a/1.jpg", "b/2.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(IMAGES[0]).save(tmp_path / name)
    (tmp_path / "a" / "x.txt").write_text("x")
    assert list(open_dataset(str(tmp_path / "a" / "*.png"), image_size=8).names) == ["0.png"]
    assert open_dataset(str(tmp_path / "*" / "*.png"), image_size=8).class_names == ("a", "b")
    assert list(open_dataset(str(tmp_path / "**" / "*.*"), image_size=8).names) == [
        "a/0.png",
        "a/1.jpg",
        "b/2.png",
    ]
    with pytest.raises(ValueError, match="matches 1 files, but no pictures"):
        open_dataset(str(tmp_path / "a" / "*.txt"), image_size=8)
    with pytest.raises(ValueError, match="split"):
        open_dataset(str(tmp_path / "a" / "*.png"), image_size=8, split="train")


def test_pictures_in_an_archive_of_a_table(tmp_path):
    from datasets import Dataset, Features, Value

    from ddpm_lib.data.decode import ImageError
    from ddpm_lib.data.decode_spec import make_spec
    from ddpm_lib.data.tables import TableSource

    with zipfile.ZipFile(tmp_path / "p.zip", "w") as archive:
        buffer = io.BytesIO()
        Image.fromarray(IMAGES[0]).save(buffer, "PNG")
        archive.writestr("0.png", buffer.getvalue())
    paths = [f"zip://{name}::{tmp_path / 'p.zip'}" for name in ("0.png", "1.png")] + [
        "https://example.org/a.png"
    ]
    table = Dataset.from_dict({"image": paths}, features=Features({"image": Value("string")}))
    source, spec = TableSource(table.data.column("image")), make_spec((8, 9))
    assert (source.load(0, spec).pixels == IMAGES[0].transpose(2, 0, 1)).all()
    with pytest.raises(ImageError, match="cannot be read"):
        source.load(1, spec)
    with pytest.raises(ImageError, match="download it first"):
        source.load(2, spec)


def huge_header(file, shape: tuple[int, ...]) -> None:
    np.lib.format.write_array_header_1_0(
        file, {"descr": "|u1", "fortran_order": False, "shape": shape}
    )


def test_sizes_are_checked_before_memory_is_taken(tmp_path, monkeypatch):
    from ddpm_lib.data import numpy_files

    with open(tmp_path / "a.npy", "wb") as file:
        huge_header(file, (10**9, 1000, 1000, 3))
    with pytest.raises(ValueError, match="damaged: its header says 3e"):
        open_dataset(tmp_path / "a.npy", image_size=8)
    with (
        zipfile.ZipFile(tmp_path / "a.npz", "w") as archive,
        archive.open("images.npy", "w") as file,
    ):
        huge_header(file, (10**9, 1000, 1000, 3))
    with pytest.raises(ValueError, match="damaged: the header of 'images' says"):
        open_dataset(tmp_path / "a.npz", image_size=8)

    monkeypatch.setattr(numpy_files, "available_memory", lambda: 1000)
    np.save(tmp_path / "b.npy", IMAGES)
    np.savez_compressed(tmp_path / "b.npz", images=np.zeros((60, 8, 8, 3), np.uint8), other=IMAGES)
    for name in ("b.npy", "b.npz"):
        with pytest.raises(
            ValueError, match=r"holds .* GB when unpacked; .*mmap_mode='r'"
        ) as caught:
            open_dataset(tmp_path / name, image_size=8)
        assert "\n" not in str(caught.value)
    mapped = np.load(tmp_path / "b.npy", mmap_mode="r")
    assert len(open_dataset(mapped, image_size=8, cache="none")) == 6


def test_data_of_many_files_is_known_by_the_whole(tmp_path):
    (tmp_path / "train-00000-of-00010").write_bytes(b"x" * 200)
    with pytest.raises(FileNotFoundError, match="TFRecordDataset"):
        open_dataset(tmp_path, image_size=8)
    (tmp_path / "train-00000-of-00010").unlink()
    (tmp_path / "a.zarr" / "images").mkdir(parents=True)
    (tmp_path / "a.zarr" / "images" / "0.0.0").write_bytes(b"x" * 200)
    with pytest.raises(FileNotFoundError, match=r"zarr\.open\('.*a\.zarr'\)"):
        open_dataset(tmp_path, image_size=8)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((9, 8, 8), np.uint8), "volume.*concatenate"),
        (np.zeros((9, 8, 8, 3), np.uint8), "9 images.*concatenate"),
        (np.array([{}, 1], dtype=object), "Python objects"),
        (np.zeros((8, 8), np.uint16) + 4000, "--value-range 0 4095"),
    ],
)
def test_what_a_file_of_a_folder_of_arrays_cannot_be(tmp_path, array, words):
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    with pytest.raises(ValueError, match=words):
        open_dataset(tmp_path, image_size=8)


@pytest.mark.parametrize("made", ["pipe", "socket", "link"])
def test_what_is_there_is_not_asked_of_the_hub(tmp_path, monkeypatch, made):
    monkeypatch.chdir(tmp_path)
    if made == "pipe":
        os.mkfifo("data")
    elif made == "socket":
        with socket.socket(socket.AF_UNIX) as end:
            end.bind("data")
    else:
        os.symlink("gone", "data")
    with pytest.raises(
        FileNotFoundError,
        match="'gone', which does not exist" if made == "link" else "no file and no folder",
    ):
        open_dataset("data", image_size=8)


@pytest.mark.parametrize(
    "address",
    ["http://host/a.zip", "s3://bucket/a", "file:///nowhere/at/all", "zip://a.png::b.zip"],
)
def test_addresses_are_no_paths(address):
    with pytest.raises(FileNotFoundError, match="is an address"):
        open_dataset(address, image_size=8)


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/null"])
def test_devices_are_no_data(path):
    if not Path(path).exists():
        pytest.skip("no such device here")
    with pytest.raises((ValueError, FileNotFoundError), match="no file and no folder"):
        open_dataset(path, image_size=8)
