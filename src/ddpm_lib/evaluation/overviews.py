"""Folders that `ddpm sample`, `ddpm edit` and training write: which of their files are single
samples.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ddpm_lib.core.errors import ConfigError

SETTINGS = "settings.yaml"
"""What `ddpm sample`, `ddpm edit` and `ddpm inpaint` leave beside the pictures they write."""
_OVERVIEW = re.compile(r"(.*-)?(grid\.png|denoising\.gif)")
_TRAINING_GRID = re.compile(r"step-\d{9}\.png")


def is_overview(path: Path) -> bool:
    """Say whether a file shows many samples at once: a grid or an animation of ours."""
    folder = path.parent
    if _OVERVIEW.fullmatch(path.name):
        return (folder / SETTINGS).is_file()
    of_a_run = folder.name == "samples" and any(
        (folder.parent / name).exists() for name in ("checkpoints", "config.yaml", "status.json")
    )
    return of_a_run and _TRAINING_GRID.fullmatch(path.name) is not None


def drawn_samples(folder: Path, word: str) -> tuple[Any, list[str]]:
    """Choose the single samples in a folder of pictures.

    Args:
        folder: The folder.
        word: Its word in notes.

    Returns:
        What to open: the folder as it is, its source without overviews, or the samples.npz in it;
            and
        notes that say what was left out.

    Raises:
        ConfigError: If there are overviews only.
    """
    from ddpm_lib.data.folders import FolderSource
    from ddpm_lib.data.sizes import ChosenSource

    archives = sorted(folder.glob("*samples.npz")) if (folder / SETTINGS).is_file() else []
    if not any(is_overview(p) for p in folder.rglob("*.[pg][ni][gf]")) and not archives:
        return folder, []
    source: FolderSource | None = None
    try:
        source = FolderSource(folder, "none")
    except FileNotFoundError:
        if not archives:
            raise
    paths = [] if source is None else source.paths()
    shown = [path for path in paths if is_overview(path)]
    singles = [row for row, path in enumerate(paths) if not is_overview(path)]
    if singles and source is not None:
        if not shown:
            return folder, []
        names = ", ".join(dict.fromkeys(path.name for path in shown[:3])) + (
            "; …" if len(shown) > 3 else ""
        )
        return ChosenSource(source, singles), [
            f"{word}: {len(shown):,} overviews of many samples ({names}) were left out."
        ]
    if len(archives) == 1:
        return archives[0], []
    raise ConfigError(
        f"{folder} holds overviews of many samples"
        f" ({shown[0].name if shown else archives[0].name}), not single ones. Draw them as single"
        " pictures: ddpm sample RUN --format png --output-dir NEW_FOLDER"
    )
