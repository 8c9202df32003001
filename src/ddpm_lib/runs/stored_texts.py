"""The vectors of a run's texts, texts.safetensors in its directory: by them it goes on, draws and
is scored without the encoder.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ddpm_lib.core.files import write_aside
from ddpm_lib.core.tensor_files import load_tensors, save_tensors
from ddpm_lib.core.text import printable
from ddpm_lib.nn.condition_table import known_texts_of
from ddpm_lib.nn.text_vectors import TextVectors, from_tensors, to_tensors

FILE = "texts.safetensors"

logger = logging.getLogger("ddpm_lib")


def read_texts(run: Path) -> dict[str, TextVectors]:
    """Return the vectors of texts that a run keeps, by condition; none where it keeps none, and for
    a damaged file there is a warning.
    """
    from safetensors import SafetensorError

    path = run / FILE
    if not path.is_file():
        return {}
    try:
        return from_tensors(load_tensors(path), printable(path))
    except (OSError, ValueError, SafetensorError) as error:
        logger.warning(
            "%s cannot be read (%s). It is left out, so that texts need their encoder; where that"
            " is, the next training of the run writes it anew.",
            printable(path),
            printable(error)[:200],
        )
        return {}


def write_texts(run: Path, conditioners: Mapping[str, Any] | None) -> None:
    """Keep the vectors of texts that a network knows with its run; on one process.

    Raises:
        OSError: If the disk refuses; what was there stays.
    """
    known = known_texts_of(conditioners)
    if not known:
        return
    before, now = to_tensors(read_texts(run)), to_tensors(known)
    if before.keys() != now.keys() or not all(before[k].equal(now[k]) for k in now):
        write_aside(run / FILE, lambda aside: save_tensors(Path(aside), now))
