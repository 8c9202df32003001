"""The sheets that training leaves in RUN/report: what the network sees, and what is nearest to its
samples.

A sheet is a picture of equal tiles and a JSON file beside it that says what they are.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddpm_lib.runs.report.embedding import open_picture
from ddpm_lib.runs.run_status import number

if TYPE_CHECKING:
    from PIL import Image

FOLDER = "report"
PADDING = 2
"""Pixels between tiles and around them."""
MOST_ROWS = 64
_MOST = 2**20  # bytes of a sheet's JSON


@dataclass(frozen=True)
class Sheet:
    """A sheet that lies on the disk, whole.

    Attributes:
        picture: RGB.
        about: What its JSON file says.
        rows: One object per row of tiles.
        columns: Tiles in a row.
        tile: Height and width of a tile in pixels.
    """

    picture: Image.Image
    about: dict[str, Any]
    rows: tuple[dict[str, Any], ...]
    columns: int
    tile: tuple[int, int]

    def cut(self, row: int, first: int, count: int = 1) -> Image.Image:
        """Return so many neighbouring tiles of a row as one picture."""
        height, width = self.tile
        left, top = PADDING + first * (width + PADDING), PADDING + row * (height + PADDING)
        right = left + count * (width + PADDING) - PADDING
        return self.picture.crop((left, top, right, top + height))


def read_sheet(run: Path, name: str) -> Sheet | None:
    """Return a sheet of a run, None where there is none, or picture and JSON do not fit.

    Args:
        run: The run directory.
        name: "data" or "nearest".
    """
    folder = run / FOLDER
    try:
        with (folder / f"{name}.json").open("rb") as file:
            about = json.loads(file.read(_MOST).decode("utf-8"))
        picture = open_picture(folder / f"{name}.png")
    except (OSError, ValueError, RecursionError, SyntaxError):
        return None
    if not isinstance(about, dict):
        return None
    rows, tile, columns = about.get("rows"), about.get("tile"), number(about.get("columns"))
    if not isinstance(rows, list) or not isinstance(tile, list) or len(tile) != 2 or not columns:
        return None
    height, width = (int(number(side) or 0) for side in tile)
    fits = (
        height > 0
        and width > 0
        and picture.width == int(columns) * (width + PADDING) + PADDING
        and picture.height == len(rows) * (height + PADDING) + PADDING
        and all(isinstance(row, dict) for row in rows)
    )
    if not fits:
        return None
    return Sheet(picture, about, tuple(rows[:MOST_ROWS]), int(columns), (height, width))
