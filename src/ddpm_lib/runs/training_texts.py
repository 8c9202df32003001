"""The texts of a run's training, where the table that holds them is here; a run keeps only their
vectors.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ddpm_lib.nn.data_conditions import DataCondition, TextCondition
from ddpm_lib.nn.text_vectors import text_keys

_MOST = 200


def texts_of_training(
    state: Mapping[str, Any], conditions: Mapping[str, DataCondition]
) -> dict[str, list[str]]:
    """Return texts whose vectors a network knows, by condition, at most 200 of each, sorted; none
    of a condition whose table is not here, or lists no known text.

    Args:
        state: Of a checkpoint.
        conditions: Those of the network.
    """
    from ddpm_lib.data.condition_words import TABLE_FILES, read_all_words
    from ddpm_lib.data.metadata import read_table

    found: dict[str, list[str]] = {}
    try:
        asked = read_all_words(state.get("training", {}).get("condition") or ())
    except (TypeError, ValueError):
        return {}  # a run of a later version: whoever goes on with it is told
    for words in asked:
        one, path = conditions.get(words.name), Path(words.source or "").expanduser()
        known = one.known if isinstance(one, TextCondition) else None
        if known is None or one is None or path.suffix.lower() not in TABLE_FILES:
            continue
        try:
            cells = read_table(path).get(words.column or words.name, ()) if path.is_file() else ()
        except ValueError:
            continue  # a table that was damaged since
        texts = sorted({cell for cell in cells if isinstance(cell, str)})
        rows = known.rows_of(text_keys(texts, one.spec["encoder"]))
        there = [text for text, row in zip(texts, rows.tolist()) if row >= 0]
        if there:
            found[words.name] = there[:_MOST]
    return found
