"""Published sets by their names, read by torchvision.datasets: mnist, cifar10, celeba and others.

The files lie where `data_root` says, as torchvision lays them out; they are downloaded only on
request, and torchvision checks their digests. Sets that it holds as one array are taken as that;
of the others each picture is read when it is asked for.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
import urllib.parse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_lib.core import file_locks
from ddpm_lib.core.caching import cache_folder
from ddpm_lib.core.hub.reach import can_reach
from ddpm_lib.core.progress import foreign_bars_hidden
from ddpm_lib.core.registry import Registry, unknown_name
from ddpm_lib.core.spelling import option
from ddpm_lib.data.arrays import ArraySource
from ddpm_lib.data.decode_spec import DecodeSpec
from ddpm_lib.data.items import TorchSource
from ddpm_lib.data.source import Source

PREFIX = "torchvision:"
"""In front of a name, it means the set even where a folder of that name lies."""

_UNREADABLE = (RuntimeError, OSError, ValueError, EOFError, AssertionError, IndexError)
"""What torchvision raises where files are missing, damaged or cut off."""
_DIGITS = tuple("0123456789")
_HALVES: dict[str, dict[str, Any]] = {"train": {"train": True}, "test": {"train": False}}


def _called(*splits: str) -> dict[str, dict[str, Any]]:
    return {split: {"split": split} for split in splits}


@dataclass(frozen=True, kw_only=True)
class PublishedSet:
    """A set of torchvision.datasets.

    Attributes:
        cls: Name of the class.
        host: Where its files are downloaded from.
        splits: The splits by name, with the arguments that choose them; the first is trained on.
        held_out: The split that training is validated on, where there is one.
        size: Side of the images that commands take, unless another is asked for.
        channels: Their channels, likewise.
        arrays: Attributes of the class that hold all images and all labels; None where pictures lie
            in files.
        more: Further arguments.
        class_names: Names of the classes, where the class has none of its own.
        first_label: Number of the first class in the files.
        transposed: Whether the files hold rows for columns.
    """

    cls: str
    host: str
    splits: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: _HALVES)
    held_out: str | None = "test"
    size: int = 64
    channels: int = 3
    arrays: tuple[str, str] | None = None
    more: Mapping[str, Any] = field(default_factory=dict)
    class_names: tuple[str, ...] | None = None
    first_label: int = 0
    transposed: bool = False

    @property
    def trained_on(self) -> str:
        """The split that is trained on."""
        return next(iter(self.splits))


def _grey(cls: str, host: str, **other: Any) -> PublishedSet:
    arrays = ("data", "targets")
    return PublishedSet(cls=cls, host=host, size=32, channels=1, arrays=arrays, **other)


def _letters(split: str, **other: Any) -> PublishedSet:
    host = "https://biometrics.nist.gov"
    return _grey("EMNIST", host, more={"split": split}, transposed=True, **other)


def _small(cls: str, arrays: tuple[str, str], host: str, **other: Any) -> PublishedSet:
    return PublishedSet(cls=cls, host=host, arrays=arrays, **{"size": 32, **other})


_AMAZON, _TORONTO = "https://ossci-datasets.s3.amazonaws.com", "https://www.cs.toronto.edu"
_OXFORD, _STANFORD = "https://www.robots.ox.ac.uk", "http://ai.stanford.edu"
SETS: Registry[PublishedSet] = Registry(
    "set of torchvision",
    {
        "mnist": _grey("MNIST", _AMAZON, class_names=_DIGITS),
        "fashion_mnist": _grey(
            "FashionMNIST", "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
        ),
        "kmnist": _grey("KMNIST", "http://codh.rois.ac.jp"),
        "emnist": _letters("balanced"),
        "emnist_byclass": _letters("byclass"),
        "emnist_bymerge": _letters("bymerge"),
        "emnist_letters": _letters("letters", first_label=1),
        "emnist_digits": _letters("digits"),
        "usps": PublishedSet(
            cls="USPS",
            host="https://www.csie.ntu.edu.tw",
            size=16,
            channels=1,
            arrays=("data", "targets"),
            class_names=_DIGITS,
        ),
        "cifar10": _small("CIFAR10", ("data", "targets"), _TORONTO),
        "cifar100": _small("CIFAR100", ("data", "targets"), _TORONTO),
        "svhn": _small(
            "SVHN",
            ("data", "labels"),
            "http://ufldl.stanford.edu",
            splits=_called("train", "test", "extra"),
            class_names=_DIGITS,
        ),
        "stl10": _small(
            "STL10",
            ("data", "labels"),
            _STANFORD,
            splits=_called("train", "test", "unlabeled", "train+unlabeled"),
            size=96,
        ),
        "celeba": PublishedSet(
            cls="CelebA",
            host="https://drive.google.com",
            splits=_called("train", "valid", "test", "all"),
            held_out="valid",
            more={"target_type": []},
        ),
        "flowers102": PublishedSet(
            cls="Flowers102",
            host=_OXFORD,
            splits=_called("train", "val", "test"),
            held_out="val",
        ),
        "oxford_pets": PublishedSet(
            cls="OxfordIIITPet", host=_OXFORD, splits=_called("trainval", "test")
        ),
        "food101": PublishedSet(
            cls="Food101", host="http://data.vision.ee.ethz.ch", splits=_called("train", "test")
        ),
        "dtd": PublishedSet(
            cls="DTD", host=_OXFORD, splits=_called("train", "val", "test"), held_out="val"
        ),
        "gtsrb": PublishedSet(
            cls="GTSRB",
            host="https://sid.erda.dk",
            splits=_called("train", "test"),
            size=32,
        ),
        "fgvc_aircraft": PublishedSet(
            cls="FGVCAircraft", host=_OXFORD, splits=_called("trainval", "train", "val", "test")
        ),
        "imagenette": PublishedSet(
            cls="Imagenette",
            host="https://s3.amazonaws.com",
            splits=_called("train", "val"),
            held_out="val",
        ),
        "eurosat": PublishedSet(
            cls="EuroSAT", host="https://huggingface.co", splits={"all": {}}, held_out=None
        ),
    },
)
"""The sets by the names that `data` may have."""


def default_root() -> Path:
    """Return the folder of the sets' files: $DDPM_LIB_DATA, else `datasets` in the library's
    cache.
    """
    own = os.environ.get("DDPM_LIB_DATA")
    return Path(own).expanduser() if own else cache_folder() / "datasets"


def set_named(data: Any, asked: bool = False) -> str | None:
    """Return the name of the set that `data` means, None where it means something else.

    What exists here under the name is that, unless "torchvision:" stands in front of it.

    Args:
        data: What `open_dataset` takes.
        asked: Whether an option says that a set is meant (data_root, download).

    Raises:
        ValueError: If "torchvision:" stands in front of no set's name; names the nearest.
    """
    if not isinstance(data, str) or "\0" in data:
        return None
    if data.startswith(PREFIX):
        name = _plain(data.removeprefix(PREFIX))
        if name not in SETS:
            raise ValueError(unknown_name(SETS.kind, name, SETS))
        return name
    name = _plain(data)
    return name if name in SETS and (asked or not os.path.lexists(data)) else None


def hidden_by_path(data: Any) -> str | None:
    """Return a line where a path here has the name of a set, None otherwise."""
    if not isinstance(data, str) or _plain(data) not in SETS or not os.path.lexists(data):
        return None
    return f'{data!r} is what lies here; torchvision\'s set is "{PREFIX}{_plain(data)}"'


def _plain(name: str) -> str:
    """Return the name as the table has it, which may be written CIFAR-10 or FashionMNIST."""
    bare = re.sub(r"[-_ ]", "", name.lower())
    return next((known for known in SETS if known.replace("_", "") == bare), name)


def validation_split(data: Any, split: str | None, asked: bool = False) -> str | None:
    """Return the split that training on a set is validated on; None for other data and splits."""
    name = set_named(data, asked)
    if name is None or split not in (None, SETS[name].trained_on):
        return None
    return SETS[name].held_out


def open_set(
    name: str,
    spec: DecodeSpec,
    *,
    split: str | None = None,
    data_root: str | os.PathLike[str] | None = None,
    download: bool = False,
    labels: str = "auto",
    insist: bool = False,
    here: bool = False,
) -> Source:
    """Open a set of torchvision.

    Args:
        name: One of `SETS`.
        spec: How to fit images.
        split: One of its splits; default: the first.
        data_root: Where its files lie; default: `default_root()`.
        download: Whether to download what is missing.
        labels: "auto" or "none".
        insist: Whether labels are needed.
        here: Whether to read pictures in this process.

    Raises:
        FileNotFoundError: If files are missing or damaged, or cannot be downloaded.
        ValueError: If there is no such split.
    """
    entry = SETS[name]
    split = entry.trained_on if split is None else split
    if split not in entry.splits:
        raise ValueError(unknown_name(f"split of {name}", split, entry.splits))
    root = default_root() if data_root is None else Path(data_root).expanduser()
    dataset = _made(name, entry, split, root, download)
    if entry.arrays is None:
        source: Source = TorchSource(dataset, labels, None, None, insist, here)
    else:
        source = _from_arrays(entry, dataset, spec, labels, insist)
    source.notes.insert(0, f"torchvision's {entry.cls}, split {split}, from {root}")
    return source


def _from_arrays(
    entry: PublishedSet, dataset: Any, spec: DecodeSpec, labels: str, insist: bool
) -> ArraySource:
    assert entry.arrays is not None
    images, targets = (np.asarray(getattr(dataset, name)) for name in entry.arrays)
    targets = targets.astype(np.int64) - entry.first_label
    images = images.swapaxes(1, 2) if entry.transposed else images
    source = ArraySource(images, None if labels == "none" else targets, spec, insist)
    names = entry.class_names or getattr(dataset, "classes", None)
    if source.labels is not None and names is not None:
        source.class_names = tuple(str(name) for name in names)[entry.first_label :]
    if entry.transposed:
        source.notes.append("the files hold rows for columns: turned upright")
    return source


def _made(name: str, entry: PublishedSet, split: str, root: Path, download: bool) -> Any:
    """Make torchvision's dataset, after a download where one is needed and asked for."""
    from torchvision import datasets

    make = getattr(datasets, entry.cls)
    arguments = {**entry.more, **entry.splits[split]}
    try:
        return make(str(root), **arguments)
    except _UNREADABLE as error:
        if not download:
            raise _missing(name, entry, root, error) from None
    if not can_reach(entry.host):
        host = urllib.parse.urlsplit(entry.host).hostname
        raise FileNotFoundError(
            f"{host}, which has the files of {name}, cannot be reached from here. Where there is"
            f" internet, such as on a login node, run: ddpm prepare {name} --data-root {root}"
            " --download"
        )
    root.mkdir(parents=True, exist_ok=True)
    try:
        with _alone(root / f".{name}.lock"), foreign_bars_hidden():
            return make(str(root), download=True, **arguments)
    except Exception as error:  # of as many kinds as there are ways of downloading
        raise FileNotFoundError(
            f"torchvision could not download {entry.cls} to {root}:"
            f" {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        ) from error


def _missing(name: str, entry: PublishedSet, root: Path, error: Exception) -> FileNotFoundError:
    what = "damaged or not all there" if root.is_dir() and any(root.iterdir()) else "not there"
    text = " ".join(str(error).split()).split(" You can use")[0][:120].rstrip(".")
    return FileNotFoundError(
        f"{name!r} is torchvision's {entry.cls}, whose files are {what} in {root} ({text})."
        f" {option('data_root')} says where they lie; {option('download', True)} downloads them."
    )


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Let the processes of a run in one after the other, where the file system has locks: the first
    one downloads, the others find it done.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
    taken = False
    try:
        while not taken:
            try:
                file_locks.take(handle)
                taken = True
            except BlockingIOError:
                time.sleep(0.5)
            except OSError:
                break
        yield
    finally:
        if taken:
            file_locks.let_go(handle)
        else:
            os.close(handle)


def count_images(name: str, split: str, root: Path, download: bool) -> int:
    """Return how many images a split has, its files checked as torchvision checks them."""
    return len(_made(name, SETS[name], split, root, download))
