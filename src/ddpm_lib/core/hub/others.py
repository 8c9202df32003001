"""What else a folder or a file may be: recognised by names and marks, nothing of it is executed."""

from __future__ import annotations

import shlex
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from ddpm_lib.core.errors import CheckpointError
from ddpm_lib.core.hub.folder_config import CONFIG, LIBRARY, read_json
from ddpm_lib.core.text import printable


@dataclass(frozen=True)
class Foreign:
    """What another library made.

    Attributes:
        words: What it is.
        converts: Whether `ddpm convert` may read it.
    """

    words: str
    converts: bool = False

    def advice(self, path: Path) -> str:
        """Return a sentence with the command that makes a run of it; "" if none does."""
        if not self.converts:
            return ""
        command = ["ddpm", "convert", printable(path), f"runs/{path.stem or 'theirs'}"]
        return f" To make a run of another library's checkpoint: {shlex.join(command)}"


DIFFUSERS = Foreign("a model of diffusers", True)
_TRANSFORMERS = Foreign("a model of transformers")
_BY_NAME = {
    "model_index.json": Foreign("a pipeline of diffusers", True),
    "random_states_0.pkl": Foreign("a state saved by accelerate"),
    "diffusion_pytorch_model.safetensors": DIFFUSERS,
    "diffusion_pytorch_model.bin": DIFFUSERS,
    "pytorch_model.bin": Foreign("a model of transformers or diffusers", True),
    ".metadata": Foreign("a distributed checkpoint of torch"),
}
_BY_ENTRY = {
    "_diffusers_version": DIFFUSERS,
    "_class_name": DIFFUSERS,
    "transformers_version": _TRANSFORMERS,
    "architectures": Foreign("a model of transformers or timm"),
    "model_type": _TRANSFORMERS,
}
_PICKLES = (".pt", ".pth", ".ckpt", ".bin", ".pkl")


def is_ours(folder: Path) -> bool:
    """Say whether a folder's config.json names this library."""
    try:
        return read_json(folder / CONFIG).get("library_name") == LIBRARY
    except CheckpointError:
        return False


def named_like(names: Collection[str]) -> Foreign | None:
    """Say by the names of its files what a repository of another library is; None if nothing is
    recognised.
    """
    return next((found for name, found in _BY_NAME.items() if name in names), None)


def what_else(path: Path) -> Foreign | None:
    """Say what a path is that another library made; None if nothing is recognised.

    >>> what_else(Path("no/such/path")) is None
    True
    """
    if path.is_file():
        if path.suffix in _PICKLES:
            words = "a pickle, which can run code and is never loaded"
            return Foreign(words, path.suffix != ".pkl")
        return Foreign("a file", path.suffix == ".safetensors")
    named = next((found for name, found in _BY_NAME.items() if (path / name).exists()), None)
    if named is not None or not (path / CONFIG).is_file():
        return named
    try:
        config = read_json(path / CONFIG)
    except CheckpointError:
        return None
    if config.get("library_name") == LIBRARY:
        return None
    return next((found for entry, found in _BY_ENTRY.items() if entry in config), None)
