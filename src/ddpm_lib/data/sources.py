"""Find out what `data` is, and open the source for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ddpm_lib.data.dataset import Source
from ddpm_lib.data.decode import DecodeSpec
from ddpm_lib.data.folders import FolderSource


def find_source(
    data: Any,
    spec: DecodeSpec,
    labels: str,
    image_column: str | None,
    label_column: str | None,
    split: str | None,
    log: Callable[[str], None] | None,
) -> Source:
    """Open the source that `data` names or is; see `open_dataset`."""
    return FolderSource(Path(data).expanduser(), labels)
