"""Weights as the hub's tools write them: one safetensors file, or several and an index."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from ddpm_lib.core.errors import CheckpointError, ConfigError
from ddpm_lib.core.files import flush
from ddpm_lib.core.hub.folder_config import read_json
from ddpm_lib.core.tensor_files import load_tensors, save_tensors
from ddpm_lib.core.text import printable, short

Find = Callable[[str], "Path | None"]
"""From the name of a file in a folder to where it is; None if it is not there."""

_PLAIN = re.compile(r"[\w+-][\w.+-]*\.safetensors", re.ASCII)


def single(stem: str) -> str:
    """Return the name of the file of weights that need no shards."""
    return f"{stem}.safetensors"


def index_of(stem: str) -> str:
    """Return the name of the index of weights in shards."""
    return f"{stem}.safetensors.index.json"


def parse_size(size: int | str) -> int:
    """Return a size in bytes.

    >>> parse_size("5GB"), parse_size(1000)
    (5000000000, 1000)

    Raises:
        ConfigError: If it is none.
    """
    number = size
    if isinstance(size, str):
        found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]B)\s*", size, re.ASCII | re.IGNORECASE)
        powers = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
        number = int(float(found[1]) * powers[found[2].upper()]) if found else 0
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise ConfigError(
            f"max_shard_size must be a number of bytes, or a text such as '5GB' or '500MB'; got"
            f" {short(size, 60)}."
        )
    return number


def write_shards(
    folder: Path, stem: str, tensors: Mapping[str, Tensor], max_shard_size: int
) -> list[str]:
    """Write weights into a folder, flushed to the disk, and return the names of the files.

    Args:
        folder: It; the names must be free.
        stem: What the files' names begin with.
        tensors: The weights by name.
        max_shard_size: Bytes of a file; a tensor that is larger gets a file of its own.

    Raises:
        OSError: If the disk refuses.
    """
    from huggingface_hub import split_torch_state_dict_into_shards

    if not tensors:
        save_tensors(folder / single(stem), {}, {"format": "pt"})
        flush(folder / single(stem))
        return [single(stem)]
    plan = split_torch_state_dict_into_shards(
        dict(tensors), filename_pattern=stem + "{suffix}.safetensors", max_shard_size=max_shard_size
    )
    for name, keys in plan.filename_to_tensors.items():
        save_tensors(folder / name, {key: tensors[key] for key in keys}, {"format": "pt"})
        flush(folder / name)
    names = list(plan.filename_to_tensors)
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        path = folder / index_of(stem)
        path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        flush(path)
        names.append(path.name)
    return names


def read_shards(find: Find, stem: str, where: str) -> dict[str, Tensor]:
    """Read weights into CPU memory.

    Args:
        find: Finds a file of the folder.
        stem: What the files' names begin with.
        where: The folder, for messages.

    Raises:
        CheckpointError: If a file is missing, damaged, or not what the index says.
    """
    whole, index = find(single(stem)), find(index_of(stem))
    if whole is not None:
        return _read(whole)
    if index is None:
        raise CheckpointError(
            f"{where} has no {single(stem)}, so it is incomplete. Copy or save it again."
        )
    files = files_of(index)
    found = {name: find(name) for name in files}
    absent = [name for name, path in found.items() if path is None]
    if absent:
        raise CheckpointError(
            f"{where} lacks {absent[0]} ({len(absent)} of {len(files)} shards are missing), so it"
            " is incomplete. Copy or save it again."
        )
    tensors: dict[str, Tensor] = {}
    for name, keys in files.items():
        path = found[name]
        assert path is not None
        shard = _read(path)
        for said, key in (
            ("lacks", next(iter(sorted(keys - shard.keys())), None)),
            ("holds", next(iter(sorted(shard.keys() - keys)), None)),
        ):
            if key is not None:
                but = "that the index puts there" if said == "lacks" else "that the index does not"
                raise CheckpointError(
                    f"{printable(path)} is of other weights than {index.name}: it {said}"
                    f" {short(key, 200)}, {but}."
                )
        tensors |= shard
    return tensors


def _read(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError

    try:
        return load_tensors(path)
    except (SafetensorError, OSError, ValueError, KeyError, OverflowError) as error:
        why = printable(error)[:200]
        size = f"{path.stat().st_size:,} bytes; " if path.is_file() else ""
        raise CheckpointError(f"{printable(path)} is damaged ({size}{why}).") from error


def files_of(index: Path) -> dict[str, set[str]]:
    """Return the names of the weights by the file that an index puts them in."""
    placed = read_json(index).get("weight_map")
    if not isinstance(placed, dict) or not placed:
        raise CheckpointError(f"{printable(index)} is damaged: it has no weight_map.")
    files: dict[str, set[str]] = {}
    for key, name in placed.items():
        if not isinstance(name, str) or not _PLAIN.fullmatch(name):
            raise CheckpointError(
                f"{printable(index)} is refused: it names {short(name, 120)} for {short(key, 120)};"
                " only safetensors files beside the index are read."
            )
        files.setdefault(name, set()).add(key)
    return files
