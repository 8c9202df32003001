"""How a run draws where its user does not say: sampling.json in the run directory; reading it loads
no torch.

The file keeps what it said before, so that a choice can be taken back.
"""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from ddpm_lib.core.errors import CheckpointError, ConfigError
from ddpm_lib.core.files import write_atomically
from ddpm_lib.core.text import printable
from ddpm_lib.process.sampling_default import SamplingDefault, parse_default
from ddpm_lib.runs.names import step_in

FILE = "sampling.json"
FORMAT = 1
KEPT = 8
"""Earlier defaults that are kept to go back to."""

_MOST = 2**22  # bytes of a sampling.json; one with eight earlier ones has some thousand

logger = logging.getLogger("ddpm_lib")


def read_sampling(run: Path) -> SamplingDefault | None:
    """Return the sampling default of a run, None where none was chosen.

    Raises:
        CheckpointError: If the file is damaged, or of a newer format.
    """
    values = _read(run)
    return None if values is None else parse_default(values, printable(run / FILE))


def sampling_or_none(run: Path) -> SamplingDefault | None:
    """Return the sampling default of a run; for a damaged file there is a warning, and None."""
    try:
        return read_sampling(run)
    except CheckpointError as error:
        logger.warning("%s It is left out; `ddpm tune RUN --undo` removes it.", error)
        return None


def partner_steps(run: Path) -> set[int]:
    """Return the steps that sampling defaults of a run guide by, those included that
    `undo_sampling` would go back to; none where the file cannot be read.
    """
    try:
        values = _read(run) or {}
    except CheckpointError:
        return set()
    found = (_partner_step(one) for one in (values, *_earlier(values)))
    return {step for step in found if step is not None}


def _partner_step(values: dict[str, Any]) -> int | None:
    how = values.get("sampling")
    name = how.get("guide_by") if isinstance(how, dict) else None
    if not isinstance(name, str):
        return None
    return int(name) if name.isascii() and name.isdigit() else step_in(name)


def write_sampling(run: Path, default: SamplingDefault) -> Path:
    """Make something the sampling default of a run; on one process.

    What was the default before is kept in the file for `undo_sampling`.

    Raises:
        OSError: If the disk refuses; what was there stays.
    """
    try:
        before = _read(run)
    except CheckpointError:
        before = None
    earlier = [] if before is None else [*_earlier(before), _alone(before)][-KEPT:]
    created = default.created or datetime.now().astimezone().isoformat(timespec="seconds")
    _write(run, replace(default, created=created).to_json(), earlier)
    return run / FILE


def undo_sampling(run: Path) -> tuple[SamplingDefault | None, SamplingDefault | None]:
    """Take the sampling default of a run back; on one process.

    Returns:
        What was taken back, None where its file was damaged; and what is the default now, None for
        the library's.

    Raises:
        ConfigError: If there is none.
        OSError: If the disk refuses.
    """
    path = run / FILE
    if not path.is_file():
        raise ConfigError(
            f"{printable(run)} has no sampling default of its own ({FILE}), so nothing can be taken"
            " back. `ddpm tune RUN` chooses one."
        )
    try:
        values: dict[str, Any] = _read(run) or {}
        gone: SamplingDefault | None = parse_default(values, printable(path))
    except CheckpointError:
        path.unlink()
        return None, None
    earlier = _earlier(values)
    while earlier:
        try:
            now = parse_default(earlier[-1], printable(path))
        except CheckpointError:
            earlier.pop()
            continue
        _write(run, earlier[-1], earlier[:-1])
        return gone, now
    path.unlink()
    return gone, None


def _read(run: Path) -> dict[str, Any] | None:
    path = run / FILE
    try:
        with path.open("rb") as file:
            raw = file.read(_MOST + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise CheckpointError(f"{printable(path)} cannot be read ({error.strerror}).") from error
    try:
        values = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{printable(path)} is damaged: it is no JSON.") from error
    if len(raw) > _MOST or not isinstance(values, dict):
        raise CheckpointError(f"{printable(path)} is damaged: it holds no sampling default.")
    version = values.get("format")
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise CheckpointError(f"{printable(path)} is damaged: it has no format.")
    if version > FORMAT:
        raise CheckpointError(
            f"{printable(path)} is of format {version}; this version reads {FORMAT}. Upgrade"
            " ddpm-lib to use it."
        )
    return values


def _earlier(values: dict[str, Any]) -> list[dict[str, Any]]:
    found = values.get("earlier")
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def _alone(values: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in values.items() if k not in ("format", "version", "earlier")}


def _write(run: Path, values: dict[str, Any], earlier: list[dict[str, Any]]) -> None:
    from ddpm_lib.core.hub.folder_config import library_version

    whole = {"format": FORMAT, "version": library_version(), **values, "earlier": earlier}
    write_atomically(run / FILE, json.dumps(whole, indent=1, allow_nan=False) + "\n")
