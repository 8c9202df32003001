"""Tensors in safetensors files: readable by the group, under any name, failing as any disk does."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ddpm_lib.core.files import utf8_name


def save_tensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: dict[str, str] | None = None,
) -> None:
    """Write tensors by name; they may lie on any device and share memory.

    Args:
        path: The file.
        tensors: By name.
        metadata: For the header; of several entries, safetensors writes a random order.

    Raises:
        OSError: If the disk refuses.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(_separate(tensors), path, metadata)
    except SafetensorError as error:  # what a full disk looks like from there
        raise OSError(str(error)) from error
    _follow_umask(path)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read all tensors of a file into CPU memory.

    Raises:
        SafetensorError: If it is no safetensors file.
        OSError: If it cannot be opened.
    """
    from safetensors.torch import load_file

    with utf8_name(path) as name:
        return load_file(name)


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Bring tensors to the CPU, none sharing memory: safetensors refuses tied weights."""
    seen: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        memory = plain.untyped_storage().data_ptr()
        result[name] = plain.clone() if memory in seen else plain
        seen.add(memory)
    return result


def _follow_umask(path: Path) -> None:
    # safetensors creates files of mode 0600; a group on a cluster shares its runs.
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(0o666 & ~umask)
