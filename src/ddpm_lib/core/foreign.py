"""Files of other tools that hold tensors in a pickle: read with the unpickler that builds nothing
but tensors and arrays.
"""

from __future__ import annotations

import importlib
import os
import pickletools
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch


def read_tensors(path: str | Path, *, mapped: bool = False) -> Any:
    """Return what `torch.save` wrote, if it is tensors, NumPy arrays and plain containers of them.

    Args:
        path: The file.
        mapped: Leave the values in the file until they are used, where its format allows it: of
            many files, few are then read whole.

    Raises:
        ValueError: If the file holds anything else, or is damaged.
    """
    allowed: list[Any] = [np.ndarray, np.dtype, np.dtypes.Float64DType, np.dtypes.Float32DType]
    # What a pickled NumPy array calls, which NumPy keeps in a private module.
    for module, name in (
        ("multiarray", "_reconstruct"),
        ("multiarray", "scalar"),
        ("numeric", "_frombuffer"),
    ):
        part = getattr(importlib.import_module(f"numpy._core.{module}"), name, None)
        allowed += [] if part is None else [part]
    _refuse_others(path)
    try:
        with torch.serialization.safe_globals(allowed):
            mmap = mapped and zipfile.is_zipfile(path)
            return torch.load(  # noqa: TID251
                path, map_location="cpu", weights_only=True, mmap=mmap
            )
    except (
        RuntimeError,
        ArithmeticError,
        AssertionError,
        EOFError,
        LookupError,
        AttributeError,
        TypeError,
        ValueError,
        struct.error,
        zipfile.BadZipFile,
    ) as error:
        why = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"{path} is damaged or no file of tensors: {why}") from None
    except Exception as error:
        if type(error).__name__ != "UnpicklingError":
            raise
        raise ValueError(
            f"{path} is damaged, or holds Python objects, which are never loaded (they can run"
            " code). It must hold tensors only."
        ) from None


_PICTURES = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"RIFF", b"BM")


def _refuse_others(path: str | os.PathLike[str]) -> None:
    """Refuse texts and pictures by their first bytes, before they are called damaged.

    Raises:
        ValueError: Saying what the file is.
    """
    with open(path, "rb") as file:
        head = file.read(512)
    if head.startswith(_PICTURES):
        raise ValueError(f"{os.fspath(path)} is a picture, no file of weights.")
    if head and not any(byte < 9 or 13 < byte < 32 for byte in head) and not _is_pickle(path):
        raise ValueError(f"{os.fspath(path)} is a text, no file of weights.")


def _is_pickle(path: str | os.PathLike[str]) -> bool:
    """Say whether a file reads as a pickle, whose oldest form is text; nothing in it is run."""
    with open(path, "rb") as file:
        try:
            for _ in pickletools.genops(file):
                pass
        except ValueError:
            return False
    return True
