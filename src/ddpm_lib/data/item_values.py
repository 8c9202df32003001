"""Items of a torch Dataset: their parts, a hash of the pixels, what is wrong with them."""

from __future__ import annotations

import traceback
from typing import Any

import numpy as np
import torch
from PIL import Image

from ddpm_lib.data.arrays import as_array, convert_to_pixels
from ddpm_lib.data.source import content_hash
from ddpm_lib.data.values import proposal


def part(item: Any, which: Any) -> Any:
    """Return a part of an item by its key, number or field; the item itself for None."""
    if which is None:
        return item
    return (
        getattr(item, which) if isinstance(which, str) and hasattr(item, "_fields") else item[which]
    )


def content(pixels: Image.Image | np.ndarray) -> int:
    """Return a hash of an image as it came."""
    if isinstance(pixels, np.ndarray):
        return content_hash(pixels)
    return content_hash(f"{pixels.mode} {pixels.size} ".encode() + pixels.tobytes())


def what_happened(error: Exception) -> str:
    """Word an exception of the user's code: type, text and place."""
    text = " ".join(str(error).split())
    text = text if len(text) <= 160 else text[:159] + "…"
    frames = traceback.extract_tb(error.__traceback__)
    own = [
        frame for frame in frames if "ddpm_lib" not in frame.filename.replace("\\", "/").split("/")
    ]
    where = f" ({own[-1].filename.rsplit('/', 1)[-1]}, line {own[-1].lineno})" if own else ""
    return f"{type(error).__name__}: {text}{where}" if text else f"{type(error).__name__}{where}"


def not_uint8(data: Any, value: np.ndarray) -> str:
    """Say that the images of a Dataset have another type, and what to do about it."""
    if isinstance(data, torch.utils.data.TensorDataset):
        hint = convert_to_pixels(as_array(data.tensors[0]))
        way = "Convert the tensor before making the TensorDataset"
        if "[0, 1]" in hint:
            way = (
                "Pass ddpm_lib.data.tensor_dataset(*data.tensors), which takes floats in [0, 1] as"
                " they are"
            )
        return f"The images of this TensorDataset are {value.dtype}, not uint8. {hint} {way}."
    return (
        f"Items of {type(data).__name__} are {value.dtype}; images must be uint8 (0 … 255) or PIL "
        f"pictures. Leave ToTensor() and Normalize() out of its transform{proposal(value)}."
    )
