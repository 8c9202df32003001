"""Decoded images in a mapped file: the same set as in RAM, decoded once for all."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ddpm_lib import Shapes
from ddpm_lib.data import disk_cache, open_dataset
from ddpm_lib.data.dataset import ImageDataset
from ddpm_lib.data.source import BadImagesError
from ddpm_lib.images import save_image
from training_helpers import assert_same_tensors, final_tensors, tiny_diffusion, tiny_trainer


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DDPM_LIB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "images"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve labelled pictures, two of which are equal."""
    shapes = Shapes(size=8, n=12)
    for k in range(12):
        image = shapes[k if k < 11 else 0]["image"]
        save_image(image, tmp_path / "pictures" / f"class{k % 2}" / f"{k:02d}.png")
    return tmp_path / "pictures"


def opened(folder: Path, kind: str = "disk", **options) -> ImageDataset:
    return open_dataset(folder, image_size=8, cache=kind, **options)


def pixels(data: ImageDataset) -> Tensor:
    return data.batch(range(len(data)))["image"]


def no_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_cache, "decode_all", lambda *a, **k: pytest.fail("decoded again"))


def test_it_is_the_set_that_ram_would_hold(folder: Path, cache: Path) -> None:
    mapped, held = opened(folder), opened(folder, "ram")
    assert torch.equal(pixels(mapped), pixels(held))
    assert (mapped.fingerprint, mapped.names[3]) == (held.fingerprint, held.names[3])
    assert mapped.in_memory, "no worker is needed"
    for a, b in zip(mapped.split(0.4), held.split(0.4)):
        assert [*a.names] == [*b.names]
    (file,) = cache.glob("*/images.npy")
    assert np.load(file, mmap_mode="r").shape == (12, 3, 8, 8)
    assert any(str(file) in note and "decoded once into" in note for note in mapped.notes)


def test_a_second_opening_decodes_nothing(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = opened(folder)
    no_decoding(monkeypatch)
    again = opened(folder)
    assert torch.equal(pixels(first), pixels(again))
    assert again.fingerprint == first.fingerprint
    assert any("decoded before, in" in note for note in again.notes)


def test_what_is_written_to_a_batch_stays_out_of_the_file(folder: Path, cache: Path) -> None:
    data = opened(folder)
    want = pixels(data).clone()
    data._store.images.fill_(7)  # memory of this process alone
    assert torch.equal(pixels(opened(folder)), want)


def test_other_files_and_settings_are_other_sets(folder: Path, cache: Path) -> None:
    before = pixels(opened(folder))
    picture = folder / "class0" / "00.png"
    save_image(255 - Shapes(size=8, n=1)[0]["image"], picture)
    os.utime(picture, (1, 1))
    assert not torch.equal(pixels(opened(folder)), before)
    opened(folder, fit="stretch")
    open_dataset(folder, image_size=4, cache="disk")
    assert len(list(cache.glob("*/images.npy"))) == 4


@pytest.mark.parametrize("name", ["images.npy", "about.npz"])
@pytest.mark.parametrize("harm", ["lost", "cut"])
def test_a_damaged_set_is_made_again(folder: Path, cache: Path, name: str, harm: str) -> None:
    want = pixels(opened(folder)).clone()
    (file,) = cache.glob(f"*/{name}")
    if harm == "lost":
        file.unlink()
    else:
        os.truncate(file, file.stat().st_size // 2)
    (file.parent / ".images.npy.123.tmp").write_text("left by a process that was killed")
    data = opened(folder)
    assert torch.equal(pixels(data), want)
    assert any("decoded once into" in note for note in data.notes)
    assert not list(cache.glob("*/.*.tmp"))


def test_bad_images_are_named_and_nothing_is_kept(folder: Path, cache: Path) -> None:
    (folder / "class0" / "00.png").write_bytes(b"no picture")
    with pytest.raises(BadImagesError, match=r"00\.png"):
        opened(folder)
    assert not list(cache.glob("*/*.np*"))
    for _ in range(2):
        data = opened(folder, on_bad_image="skip")
        assert len(data) == 11
        assert torch.equal(pixels(data), pixels(opened(folder, "ram", on_bad_image="skip")))


def test_what_cannot_say_that_it_changed_is_refused(folder: Path, cache: Path) -> None:
    def darker(image):
        return image.point(lambda v: v // 2)

    for data, options in (
        (torch.utils.data.TensorDataset(torch.rand(4, 3, 8, 8)), {"value_range": (0, 1)}),
        (folder, {"transform": darker}),
    ):
        with pytest.raises(ValueError, match=r"cache.*disk.*keeps decoded images of files"):
            open_dataset(data, image_size=8, cache="disk", **options)


def test_a_disk_that_is_too_small_is_said(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(folder)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ValueError, match=r"0\.0 GB free\. Set DDPM_LIB_CACHE to a larger disk"):
        opened(folder)


@pytest.mark.slow
def test_processes_that_begin_at_once_decode_once(folder: Path, cache: Path) -> None:
    code = (
        "import sys, time\n"
        "from ddpm_lib.data import disk_cache, open_dataset\n"
        "real = disk_cache.decode_all\n"
        "def slowly(*a, **k):\n"
        "    time.sleep(1)\n"
        "    return real(*a, **k)\n"
        "disk_cache.decode_all = slowly\n"
        "data = open_dataset(sys.argv[1], image_size=8, cache='disk', log=print)\n"
    )
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    said = [process.communicate(timeout=120)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0]
    assert sum("decoded once into" in text for text in said) == 1
    assert sum("decoded before, in" in text for text in said) == 1


def test_a_training_from_it_is_the_training_from_ram(folder: Path, cache: Path, tmp_path: Path):
    for kind in ("ram", "disk"):
        options = {"cache": kind, "val_fraction": 0.3, "batch_size": 2, "max_steps": 4}
        tiny_trainer(tmp_path / kind, tiny_diffusion(), str(folder), **options).train()
    assert_same_tensors(final_tensors(tmp_path / "ram"), final_tensors(tmp_path / "disk"))


def test_sets_that_do_not_fit_are_told_of_it(folder: Path, cache: Path) -> None:
    data = opened(folder, "auto", cache_limit_mb=0)
    assert not data.in_memory
    assert any("--cache disk" in note for note in data.notes)


def test_a_whole_set_of_somebody_elses_is_read_without_a_right_to_write(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    want = pixels(opened(folder))

    def refused(path: Path, flags: int, *_: object) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    no_decoding(monkeypatch)
    monkeypatch.setattr(disk_cache, "open_own", refused)
    assert torch.equal(pixels(opened(folder)), want)


@pytest.mark.parametrize("how", ["a file in its place", "no right", "a quota"])
def test_a_cache_that_cannot_be_written_to_is_an_error_that_says_what_to_do(
    how: str, folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = errno.EDQUOT if how == "a quota" else errno.EACCES

    def refused(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    if how == "a file in its place":
        cache.parent.parent.mkdir(exist_ok=True)
        cache.parent.write_text("")
    elif how == "no right":
        monkeypatch.setattr(disk_cache, "open_own", refused)
    else:
        monkeypatch.setattr(os, "posix_fallocate", refused, raising=False)
    with pytest.raises(ValueError, match=r'cannot be kept in .*DDPM_LIB_CACHE.*cache="none"'):
        opened(folder)
    assert not list(cache.rglob("*.npy"))
    assert len(opened(folder, "none")) == 12
