"""Opening files of other libraries; nothing in them is executed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

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
        CheckpointError: If there is nothing, or it holds more than tensors and plain values.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        return _open_folder(path)
    if not path.is_file():
        raise CheckpointError(lost(path))
    content = _read_file(path)
    return Opened(path, content if isinstance(content, dict) else {"": content})


def _open_folder(path: Path) -> Opened:
    configs: dict[str, dict[str, Any]] = {}
    content: dict[str, Any] = {}
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path).as_posix()
        if any(part.startswith(".") for part in file.relative_to(path).parts):
            continue
        if file.suffix == ".json":
            try:
                values = json.loads(file.read_text(encoding="utf-8"))
            except (ValueError, RecursionError) as error:
                raise CheckpointError(f"{file} is no JSON ({printable(error)}).") from error
            if isinstance(values, dict):
                configs[name] = values
        elif file.suffix in (".safetensors", ".bin", ".pt", ".pth"):
            content[name.removesuffix(file.suffix)] = _read_file(file)
    if not content and not configs:
        raise CheckpointError(f"{path} holds neither weights nor JSON files.")
    return Opened(path, content, configs)


def _read_file(path: Path) -> Any:
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
        return read_tensors(path)
    except ValueError as error:
        raise CheckpointError(printable(error)) from error
