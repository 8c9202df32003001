"""A pretrained folder: `config.json` and weights, written whole or not at all, read strictly.

    config.json                        the network, the process, which weights there are
    model.safetensors                  the weights, of the network alone
    model.ema-0.999.safetensors        further weights of the same network
    uncertainty.safetensors            of a process that learned its uncertainty
    texts.safetensors                  vectors of the texts of its training

Large weights are cut into model-00001-of-00003.safetensors … and model.safetensors.index.json.
"""

from __future__ import annotations

import glob
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import Tensor

from ddpm_lib.core.errors import CheckpointError, ConfigError
from ddpm_lib.core.files import flush
from ddpm_lib.core.hub import MAX_SHARD_SIZE
from ddpm_lib.core.hub.folder_config import (
    CONFIG,
    LIBRARY,
    MAIN,
    FolderConfig,
    check_weights_name,
    parse_config,
    read_json,
    stem_of,
)
from ddpm_lib.core.hub.others import is_ours, what_else
from ddpm_lib.core.hub.shards import (
    files_of,
    index_of,
    parse_size,
    read_shards,
    single,
    write_shards,
)
from ddpm_lib.core.paths import at_home
from ddpm_lib.core.text import printable, short

UNCERTAINTY = "uncertainty"
"""The stem of the file of a learned uncertainty."""
TEXTS = "texts"
"""The stem of the file of vectors of texts."""

_SAVED = ".saved"
"""In the folder, while the files of a finished save take their places: those still to be moved."""
_LIST = ".files.json"
"""In `.saved`: the names of all files of that save, moved or not."""
_WEIGHTS = re.compile(r"(model|uncertainty|texts)[\w.+-]*\.safetensors(\.index\.json)?", re.ASCII)
_HARMLESS = re.compile(r"\..*|README\.md|LICENSE.*", re.IGNORECASE)
"""What may lie in a folder that is to become ours: a repository without a model."""


def arranged(
    weights: Mapping[str, Mapping[str, Tensor]],
) -> tuple[dict[str, str], dict[str, Mapping[str, Tensor]]]:
    """Decide which file holds which weights.

    Args:
        weights: By their names "model", "ema", "ema:0.999"; the first are those that are loaded
            unless others are asked for. A mapping that has two names is stored once.

    Returns:
        `FolderConfig.weights`, and the tensors by file stem.

    Raises:
        ConfigError: If there are none, or a name is wrong.
    """
    if not weights:
        raise ConfigError("A pretrained folder holds at least one set of weights; got none.")
    stems: dict[str, str] = {}
    groups: dict[str, Mapping[str, Tensor]] = {}
    for name, tensors in weights.items():
        stem = next((stem for stem, there in groups.items() if there is tensors), None)
        if stem is None:
            stem = stem_of(check_weights_name(name)) if groups else MAIN
            groups[stem] = tensors
        stems[check_weights_name(name)] = stem
    return stems, groups


def save_folder(
    folder: str | Path,
    config: FolderConfig,
    groups: Mapping[str, Mapping[str, Tensor]],
    max_shard_size: int | str = MAX_SHARD_SIZE,
) -> Path:
    """Write a pretrained folder, or replace one of ours; on one process only.

    Whatever moment the process is killed at, the folder then reads as what it was, or as what was
    to be saved. Other files in it, such as a README, stay.

    Args:
        folder: Where; made if it does not exist.
        config: What config.json is to say.
        groups: Tensors by file stem, as `arranged` returns them, "uncertainty" and "texts".
        max_shard_size: Bytes of a file of weights, or a text such as "5GB".

    Raises:
        ConfigError: If something else lies there.
        OSError: If the disk refuses; what was there stays.
    """
    folder, largest = Path(at_home(str(folder))), parse_size(max_shard_size)
    text = json.dumps(config.to_json(), indent=2) + "\n"
    refuse_unlike(folder)
    there = folder.is_dir()
    if there:
        _settle(folder)
        aside = folder / f".new.{os.getpid()}.tmp"
        _remove(*folder.glob(".new.*.tmp"))
    else:
        folder.parent.mkdir(parents=True, exist_ok=True)
        start = f".{folder.name[:50]}."
        aside = folder.parent / f"{start}{os.getpid()}.tmp"
        _remove(*folder.parent.glob(f"{glob.escape(start)}*.tmp"))
    try:
        aside.mkdir()
        names = [CONFIG]
        for stem, tensors in groups.items():
            names += write_shards(aside, stem, tensors, largest)
        _write(aside / CONFIG, text)
        if there:
            _write(aside / _LIST, json.dumps(names))
        flush(aside)
        os.rename(aside, folder / _SAVED if there else folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    flush(folder if there else folder.parent)
    _settle(folder)
    return folder


def refuse_unlike(folder: Path) -> None:
    """Refuse to write a pretrained folder over something else.

    Raises:
        ConfigError: Naming what lies there.
    """
    if not os.path.lexists(folder):
        return
    if not folder.is_dir():
        raise ConfigError(f"{printable(folder)} is no folder. Give a name that is free.")
    if is_ours(folder) or (folder / _SAVED).is_dir():
        return
    other = next(
        (p.name for p in sorted(folder.iterdir()) if not _HARMLESS.fullmatch(p.name)), None
    )
    if other is not None:
        what = what_else(folder)
        raise ConfigError(
            f"{printable(folder)} is {what.words if what else 'no pretrained folder'} and holds"
            f" {printable(other)}; nothing of it is replaced. Give a name that is free."
        )


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    flush(path)


def _remove(*paths: Path) -> None:
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)


def _settle(folder: Path) -> None:
    """Move the files of a finished save to their places, also of one that was killed meanwhile."""
    saved = folder / _SAVED
    if not saved.is_dir():
        return
    names = _pending(folder)
    if names is not None:
        for path in folder.iterdir():
            if _WEIGHTS.fullmatch(path.name) and path.name not in names:
                path.unlink()
        for name in sorted(names, key=lambda name: name == CONFIG):  # config.json comes last
            if (saved / name).is_file():
                os.replace(saved / name, folder / name)
        flush(folder)
    _remove(saved)


def _pending(folder: Path) -> set[str] | None:
    """Return the names of the files of a save that is not yet in its place; None if there is
    none.
    """
    saved = folder / _SAVED
    if not (saved / CONFIG).is_file():
        return None
    try:
        names = json.loads((saved / _LIST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None  # it has come to its place since
    return {name for name in names if name == CONFIG or _WEIGHTS.fullmatch(name)}


@dataclass(frozen=True)
class PretrainedFolder:
    """A pretrained folder whose config.json was checked; made by `open_folder`.

    Attributes:
        path: The folder.
        config: What its config.json says.
        source: How messages call it: the folder, or the repository that it was downloaded from.
        stamp: Of config.json, which tells a folder that is being replaced.
        fetch: Brings the files of a stem, where they are still to be downloaded.
    """

    path: Path
    config: FolderConfig
    source: str
    stamp: tuple[int, int]
    fetch: Callable[[str], None] | None = None

    @property
    def downloaded(self) -> bool:
        """Whether it is a copy of a repository on the hub, in the cache."""
        return self.fetch is not None

    def find(self, name: str) -> Path | None:
        """Return where a file of the folder is, None if it has none of that name."""
        if self._pending is None:
            path = self.path / name
            return path if path.is_file() else None
        if name not in self._pending:
            return None
        path = self.path / _SAVED / name
        return path if path.is_file() else self.path / name

    @cached_property
    def _pending(self) -> set[str] | None:
        return _pending(self.path)

    def weights(self, name: str | None = None) -> tuple[str, dict[str, Tensor]]:
        """Read weights into CPU memory.

        Args:
            name: "model", "ema", "ema:0.999"; None for those of model.safetensors.

        Returns:
            What they are called, and the tensors by name.

        Raises:
            ConfigError: If the folder has none of that name.
            CheckpointError: If a file is missing or damaged.
        """
        label, stem = self.config.choose(name, self.source)
        return label, self.tensors(stem)

    def tensors(self, stem: str) -> dict[str, Tensor]:
        """Read the tensors of a file stem into CPU memory.

        Raises:
            CheckpointError: If a file is missing or damaged.
            HubError: If it is to be downloaded, and cannot be.
        """
        if self.fetch is not None:
            self.fetch(stem)
        try:
            tensors = read_shards(self.find, stem, self.source)
        except CheckpointError:
            self._refuse_replaced()
            raise
        self._refuse_replaced()
        return tensors

    def _refuse_replaced(self) -> None:
        path = self.path / _SAVED / CONFIG
        if _stamp(path if path.is_file() else self.path / CONFIG) != self.stamp:
            raise CheckpointError(f"{self.source} was replaced while it was read. Load it again.")

    def files(self, stem: str) -> list[Path]:
        """Return the files that the tensors of a stem are in, in their order."""
        whole, index = self.find(single(stem)), self.find(index_of(stem))
        if whole is not None or index is None:
            return [whole] if whole is not None else []
        return [path for name in files_of(index) if (path := self.find(name)) is not None]


def open_folder(folder: str | Path, source: str | None = None) -> PretrainedFolder:
    """Open a pretrained folder; reads its config.json only.

    Args:
        folder: It.
        source: How messages call it; default: by its path.

    Raises:
        CheckpointError: If it is none, or config.json is damaged or of a newer format; says what
            it is instead, and what reads that.
    """
    folder = Path(folder)
    where = printable(folder) if source is None else source
    if not folder.is_dir():
        what = what_else(folder)
        if what is None:
            raise CheckpointError(f"{where} does not exist.")
        raise CheckpointError(f"{where} is {what.words}, no folder.{what.advice(folder)}")
    pending = (folder / _SAVED / CONFIG).is_file()
    file = folder / _SAVED / CONFIG if pending else folder / CONFIG
    if not file.is_file():
        raise CheckpointError(_no_config(folder, where))
    stamp, values = _stamp(file), read_json(file)
    if values.get("library_name") != LIBRARY:
        what = what_else(folder)
        if what is not None:
            raise CheckpointError(f"{where} is {what.words}.{what.advice(folder)}")
        raise CheckpointError(
            f"{where} is no pretrained folder of ddpm_lib: its {CONFIG} has library_name"
            f" {short(values.get('library_name'), 60)}."
        )
    return PretrainedFolder(folder, parse_config(values, f"{where}: {CONFIG}"), where, stamp)


def _stamp(file: Path) -> tuple[int, int]:
    """Return what a file that is written anew has of its own."""
    try:
        status = file.stat()
    except FileNotFoundError:
        return 0, 0
    return status.st_ino, status.st_mtime_ns


def _no_config(folder: Path, where: str) -> str:
    what = what_else(folder)
    if what is not None:
        return f"{where} is {what.words}.{what.advice(folder)}"
    weights = sorted(p.name for p in folder.iterdir() if _WEIGHTS.fullmatch(p.name))
    if weights:
        return (
            f"{where} holds {weights[0]} but no {CONFIG}, so it is incomplete. Copy or save it"
            " again."
        )
    if (folder / "checkpoints").is_dir() or (folder / "manifest.json").is_file():
        return (
            f"{where} is a run directory or a checkpoint, no pretrained folder:"
            f" ddpm_lib.load_run({short(where)}).diffusion loads it."
        )
    return f"{where} is no pretrained folder: it has no {CONFIG}."


def is_pretrained(folder: str | Path) -> bool:
    """Say whether a folder is a pretrained one of this library, in whatever state."""
    folder = Path(folder)
    return folder.is_dir() and (is_ours(folder) or (folder / _SAVED / CONFIG).is_file())
