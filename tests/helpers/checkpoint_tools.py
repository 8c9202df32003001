"""Checkpoints of a run that tests look into and change."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from ddpm_lib.runs.checkpoint import list_checkpoints


def newest(run: Path) -> Path:
    return list_checkpoints(run / "checkpoints")[-1]


def rehash(folder: Path) -> None:
    """What an attacker does too: make the manifest fit."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for name in manifest["files"]:
        data = (folder / name).read_bytes()
        manifest["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))
