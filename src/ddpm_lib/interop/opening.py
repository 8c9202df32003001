"""Opening files of other libraries; nothing in them is executed."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddpm_lib.core.errors import CheckpointError
from ddpm_lib.core.foreign import read_tensors
from ddpm_lib.core.lost_paths import lost
from ddpm_lib.core.tensor_files import load_tensors
from ddpm_lib.core.text import printable
from ddpm_lib.interop.imported import Opened


def open_foreign(path: str | Path) -> Opened:
    """Open a file (`.pt`, `.pth`, `.bin`, `.safetensors`, of any name) or a folder of them with
    JSON beside.

    Pickles are read with torch's `weights_only=True`: tensors and plain containers, no code.

    Raises:
        CheckpointError: If there is nothing, or it holds more than plain tensors and values.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        return _open_folder(path)
    if not path.is_file():
        raise CheckpointError(lost(path))
    content = _read_file(path)
    return Opened(path, content if isinstance(content, dict) else {"": content})


_CHECKPOINT = re.compile(r"checkpoint-\d+")
"""What training scripts of diffusers lay beside a finished pipeline."""


def _open_folder(path: Path) -> Opened:
    finished = (path / "model_index.json").is_file()
    configs: dict[str, dict[str, Any]] = {}
    content: dict[str, Any] = {}
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path).as_posix()
        parts = file.relative_to(path).parts
        if any(part.startswith(".") for part in parts) or not file.is_file():
            continue
        if finished and _CHECKPOINT.fullmatch(parts[0]):
            continue
        if file.suffix == ".json":
            try:
                values = json.loads(file.read_text(encoding="utf-8"))
            except (ValueError, RecursionError) as error:
                raise CheckpointError(f"{file} is no JSON ({printable(error)}).") from error
            if isinstance(values, dict):
                configs[name] = values
        elif file.suffix in (".safetensors", ".bin", ".pt", ".pth"):
            content[name.removesuffix(file.suffix)] = _read_file(file, True)
    if not content and not configs:
        raise CheckpointError(f"{path} holds neither weights nor JSON files.")
    return Opened(path, content, configs)


def _read_file(path: Path, one_of_many: bool = False) -> Any:
    content = _read_any(path, one_of_many)
    _refuse_odd_tensors(content, path)
    return content


def _refuse_odd_tensors(content: Any, path: Path) -> None:
    """Refuse tensors that no weights are: sparse, quantised, complex, or without values.

    Raises:
        CheckpointError: Naming the first.
    """
    pending, seen = [("", content)], set[int]()
    while pending:
        name, value = pending.pop()
        if isinstance(value, (Mapping, list, tuple)):
            if id(value) not in seen:  # a pickle may hold a list that holds itself
                entries = value.items() if isinstance(value, Mapping) else enumerate(value)
                pending += [(f"{name}.{key}" if name else str(key), v) for key, v in entries]
            seen.add(id(value))
        elif isinstance(value, Tensor) and (kind := _odd_kind(value)):
            raise CheckpointError(
                f"{path} holds {printable(name) or 'a tensor'} {kind}: only plain tensors of real"
                " numbers can be read. Save it as such with the program that wrote it."
            )


def _odd_kind(tensor: Tensor) -> str:
    """Say what a tensor is that is no plain one of real numbers; "" for a plain one."""
    if tensor.is_meta:
        return "without values"
    if tensor.is_nested or tensor.layout != torch.strided:
        return f"as {'nested' if tensor.is_nested else tensor.layout}"
    return f"as {tensor.dtype}" if tensor.is_quantized or tensor.is_complex() else ""


def _read_any(path: Path, mapped: bool) -> Any:
    from safetensors import SafetensorError

    with path.open("rb") as file:
        head = file.read(16)
    if path.suffix == ".safetensors" or head[8:9] == b"{":
        try:
            return load_tensors(path)
        except SafetensorError as error:
            raise CheckpointError(f"{path} is no safetensors file ({error}).") from error
    if not head:
        raise CheckpointError(f"{path} is empty.")
    try:
        return read_tensors(path, mapped=mapped)
    except ValueError as error:
        raise CheckpointError(printable(error)) from error
