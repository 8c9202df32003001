"""Pieces of work that are kept when they are done, so that a tuning that was killed goes on."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ddpm_lib.core.digests import digest_of
from ddpm_lib.core.files import write_atomically
from ddpm_lib.runtime.processes import Processes

FOLDER = "tuning"
"""In the run directory, while a tuning is under way."""


class Units:
    """What is known already, by name; every rank asks for the same in the same order.

    Args:
        run: The run directory.
        about: All that the pieces follow from, JSON-able; another tuning has others.
        ranks: The processes.
    """

    def __init__(self, run: Path, about: Any, ranks: Processes) -> None:
        self.ranks = ranks
        self.folder = run / FOLDER / digest_of("tuning", about)[:16]
        self.done = 0

    def get(self, name: str, about: Any, compute: Callable[[], Any]) -> Any:
        """Return a piece, JSON-able; compute it where it is not known.

        Args:
            name: Begins the name of its file.
            about: What tells it from others of the name, JSON-able.
            compute: Returns it; called on every rank, of which the main one's result counts.
        """
        path = self.folder / f"{name}-{digest_of(name, about)[:16]}.json"
        known = self.ranks.from_main(self._read(path) if self.ranks.is_main else None)
        if known is not None:
            return known["value"]
        value = self.ranks.from_main(compute())
        if self.ranks.is_main:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps({"value": value}))
        self.done += 1
        return value

    def _read(self, path: Path) -> dict[str, Any] | None:
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) and "value" in found else None

    def clear(self) -> None:
        """Remove them, when nobody needs them any more."""
        if not self.ranks.is_main or not self.folder.is_dir():
            return
        for path in self.folder.glob("*.json"):
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # others keep theirs there
            self.folder.rmdir()
            self.folder.parent.rmdir()
