"""Checkpoint directories: written aside, flushed, renamed; verified when read; nothing in them
needs pickle.

    checkpoints/step-000001200/
        model.safetensors  ema.safetensors  optimizer.safetensors   tensors
        state.json      step, settings, small state
        manifest.json   format version; size and SHA-256 of every file

The manifest is written last, so a directory that lacks it, or whose files differ from it, is not a
checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from ddpm_lib.core.errors import CheckpointError
from ddpm_lib.core.files import flush
from ddpm_lib.core.tensor_files import load_tensors, save_tensors
from ddpm_lib.core.text import short
from ddpm_lib.runs.names import checkpoint_name, step_in, step_of
from ddpm_lib.runs.state import STATE, RunState, check_complete

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
_UNREADABLE = (
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    OverflowError,
    RecursionError,
)


@dataclass(frozen=True)
class SavedCheckpoint:
    """What a save made: where, how large, how long."""

    path: Path
    megabytes: float
    seconds: float


@dataclass(frozen=True)
class FileRecord:
    """What a manifest says of a file: its length in bytes, and its SHA-256 in hexadecimal."""

    size: int
    sha256: str


@dataclass(frozen=True)
class VerifiedCheckpoint:
    """A checkpoint whose files are as its manifest says; whoever has one need not hash it again.

    Made by `verify`.

    Attributes:
        path: The directory.
        files: The files that its manifest lists, by name.
    """

    path: Path
    files: dict[str, FileRecord]

    @property
    def run(self) -> Path:
        """The run directory."""
        return self.path.parent.parent

    @cached_property
    def state_values(self) -> dict[str, Any]:
        """The content of state.json, read once; CheckpointError if it is no JSON."""
        return read_state(self.path)

    @cached_property
    def state(self) -> RunState:
        """The state, with what sampling needs checked; CheckpointError naming what is wrong."""
        return RunState.from_json(self.state_values, self.path)

    def read_tensors(self, stem: str) -> dict[str, Tensor]:
        """Read one tensor file into CPU memory."""
        return read_tensors(self.path, stem)


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoint directories in a folder from oldest to newest by the step in their
    names, verified or not.
    """
    if not folder.is_dir():
        return []
    named = [path for path in folder.iterdir() if step_in(path.name) is not None]
    return sorted((path for path in named if path.is_dir()), key=step_of)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_checkpoint(
    folder: Path, step: int, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any]
) -> SavedCheckpoint:
    """Write one checkpoint; call it on one process only.

    Args:
        folder: The run's `checkpoints` directory.
        step: Names the checkpoint.
        tensors: Per file stem ("model", "ema", "optimizer") the tensors by name.
        state: JSON-able state.

    Raises:
        OSError: If the disk refuses; older checkpoints are untouched and nothing half-written
            stays.
    """
    began = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    remove_half_written(folder)
    temporary = folder / f".tmp-{checkpoint_name(step)}-{os.getpid()}"
    final = folder / checkpoint_name(step)
    try:
        temporary.mkdir()
        for stem, group in tensors.items():
            save_tensors(temporary / f"{stem}.safetensors", group)
        (temporary / STATE).write_text(json.dumps(state, indent=1), encoding="utf-8")
        files: dict[str, dict[str, Any]] = {}
        for path in sorted(temporary.iterdir()):
            flush(path)
            files[path.name] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        manifest = {"format": FORMAT_VERSION, "step": step, "files": files}
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        flush(temporary / MANIFEST)
        flush(temporary)
        if final.exists():
            _remove(final)
        os.rename(temporary, final)
        flush(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    size = sum(f["bytes"] for f in files.values()) / 2**20
    return SavedCheckpoint(final, size, time.monotonic() - began)


def remove_half_written(folder: Path) -> None:
    """Remove what saves and removals that were killed have left; to be called by the folder's only
    writer.
    """
    for leftover in folder.glob(".tmp-*"):
        if not leftover.is_symlink():
            shutil.rmtree(leftover, ignore_errors=True)


def _remove(path: Path) -> None:
    # Renamed first: a half-deleted directory must not look like a checkpoint.
    doomed = path.with_name(f".tmp-removed-{path.name}-{os.getpid()}")
    os.rename(path, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def prune(
    folder: Path,
    newest: int,
    keep_last: int,
    keep_every: int | None = None,
    keep: Collection[int] = (),
) -> list[Path]:
    """Remove all but the newest `keep_last` checkpoints, those of multiples of `keep_every` and
    `keep`; return what went.

    Checkpoints after step `newest`, which was just written, are damaged ones that the run passed
    over: they do not count.
    """
    gone = []
    for path in [p for p in list_checkpoints(folder) if step_of(p) <= newest][:-keep_last]:
        if (keep_every and step_of(path) % keep_every == 0) or step_of(path) in keep:
            continue
        _remove(path)
        gone.append(path)
    return gone


def verify(path: Path) -> VerifiedCheckpoint:
    """Check a checkpoint against its manifest.

    Raises:
        CheckpointError: Naming the file and what is wrong with it.
    """
    listed = _read_manifest(path)
    for name, record in listed.items():
        _check_file(path, name, record)
    return VerifiedCheckpoint(path, listed)


Verify = Callable[[Path], VerifiedCheckpoint]


def _read_manifest(path: Path) -> dict[str, FileRecord]:
    """Check what a checkpoint's manifest says of itself, and return the files that it lists.

    Raises:
        CheckpointError: Saying what is wrong with it.
    """
    if not (path / MANIFEST).is_file():
        raise CheckpointError(f"{path.name}: {MANIFEST} is missing, so it was never completed")
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        version, step, files = manifest["format"], manifest["step"], manifest["files"]
        listed = {k: FileRecord(int(f["bytes"]), str(f["sha256"])) for k, f in files.items()}
    except _UNREADABLE as error:
        why = f"{type(error).__name__}: {error}"
        raise CheckpointError(f"{path.name}: {MANIFEST} cannot be read ({why})") from error
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path.name}: format {short(version)}, this version reads {FORMAT_VERSION}; upgrade"
            " ddpm-lib to read it"
        )
    if step_in(path.name) not in (None, step):
        raise CheckpointError(
            f"{path.name}: {MANIFEST} says step {short(step)}, so it is damaged or the directory"
            " was renamed"
        )
    return listed


def _check_file(path: Path, name: str, record: FileRecord) -> None:
    file = path / name
    if Path(name).name != name or "\0" in name or not file.is_file():
        raise CheckpointError(f"{path.name}: {name} is missing")
    size = file.stat().st_size
    if size != record.size:
        raise CheckpointError(f"{path.name}: {name} has {size} bytes instead of {record.size}")
    if _sha256(file) != record.sha256:
        reason = "its SHA-256 differs from the manifest"
        raise CheckpointError(f"{path.name}: {name} is damaged ({reason})")


def check_resumable(checkpoint: VerifiedCheckpoint) -> None:
    """Check that training can go on from a checkpoint whose files are as its manifest says.

    Raises:
        CheckpointError: Naming what is missing or wrong.
    """
    path, values = checkpoint.path, checkpoint.state_values
    check_complete(values, path)
    if values["step"] != step_of(path):
        says = f"{path / STATE} says step {values['step']}"
        raise CheckpointError(f"{says}, so it is of another checkpoint.")
    needed = ["model.safetensors", "optimizer.safetensors", STATE]
    needed += ["ema.safetensors"] if values["ema_decay"] else []
    for name in needed:
        if name not in checkpoint.files:
            missing = f"{path.name}: {MANIFEST} does not list {name}"
            raise CheckpointError(f"{missing}, without which nothing goes on")


def recorded_sha256(path: Path, stem: str) -> str:
    """Return the SHA-256 of a tensor file as the manifest says it."""
    return _read_manifest(path)[f"{stem}.safetensors"].sha256


def is_of_newer_version(path: Path) -> bool:
    """Say whether a checkpoint's manifest is of a format that only a newer version reads."""
    try:
        version = json.loads((path / MANIFEST).read_text(encoding="utf-8"))["format"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False
    return isinstance(version, int) and version > FORMAT_VERSION


def find_newest(
    folder: Path,
    accept: Callable[[int], bool] = lambda step: True,
    check: Callable[[VerifiedCheckpoint], object] = lambda checkpoint: None,
    verify: Verify = verify,
) -> tuple[VerifiedCheckpoint | None, list[CheckpointError | OSError]]:
    """Find the newest checkpoint that verifies.

    Args:
        folder: The run's `checkpoints` directory.
        accept: Says by the step which checkpoints to consider.
        check: Raises CheckpointError for one that verifies and is of no use all the same.
        verify: Verifies one; a function that remembers spares hashing it again.

    Returns:
        It, or None if there is none; and what is wrong with each newer one, newest first.
    """
    broken: list[CheckpointError | OSError] = []
    for path in reversed([p for p in list_checkpoints(folder) if accept(step_of(p))]):
        try:
            checkpoint = verify(path)
            check(checkpoint)
        except (CheckpointError, OSError) as error:
            broken.append(error)
            continue
        return checkpoint, broken
    return None, broken


def passed_over(error: CheckpointError | OSError) -> str:
    """Word that a checkpoint was passed over, for the reason that `find_newest` gives."""
    return f"Passed over a broken checkpoint: {without_stop(error)}."


def without_stop(error: Exception) -> str:
    """Return an error's message for a place within a sentence."""
    return str(error).rstrip(".")


def newest_complete(
    folder: Path, warn: Callable[[str], None], accept: Callable[[int], bool] = lambda step: True
) -> VerifiedCheckpoint | None:
    """Return the newest checkpoint that verifies, warning about each one passed over."""
    found, broken = find_newest(folder, accept)
    for error in broken:
        warn(passed_over(error))
    return found


def read_tensors(path: Path, stem: str) -> dict[str, Tensor]:
    """Read one tensor file of a checkpoint into CPU memory."""
    from safetensors import SafetensorError

    file = path / f"{stem}.safetensors"
    if not file.is_file():
        raise CheckpointError(f"{path} holds no {stem} tensors.")
    try:
        return load_tensors(file)
    except SafetensorError as error:
        raise CheckpointError(f"{file} is no safetensors file ({error}).") from error


def read_state(path: Path) -> dict[str, Any]:
    """Read a checkpoint's state.json."""
    try:
        return dict(json.loads((path / STATE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        why = f"{type(error).__name__}: {error}"
        raise CheckpointError(f"{path / STATE} cannot be read ({why}).") from error
