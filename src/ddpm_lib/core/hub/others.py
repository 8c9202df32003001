"""What else a folder or a file may be: recognised by names and marks, nothing of it is executed."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from ddpm_lib.core.errors import CheckpointError
from ddpm_lib.core.hub.folder_config import CONFIG, LIBRARY, read_json

_BY_NAME = {
    "model_index.json": "a pipeline of diffusers",
    "random_states_0.pkl": "a state saved by accelerate",
    "diffusion_pytorch_model.safetensors": "a model of diffusers",
    "diffusion_pytorch_model.bin": "a model of diffusers",
    "pytorch_model.bin": "a model of transformers or diffusers",
    ".metadata": "a distributed checkpoint of torch",
}
_BY_ENTRY = {
    "_diffusers_version": "a model of diffusers",
    "_class_name": "a model of diffusers",
    "transformers_version": "a model of transformers",
    "architectures": "a model of transformers or timm",
    "model_type": "a model of transformers",
}
_PICKLES = (".pt", ".pth", ".ckpt", ".bin", ".pkl")


def is_ours(folder: Path) -> bool:
    """Say whether a folder's config.json names this library."""
    try:
        return read_json(folder / CONFIG).get("library_name") == LIBRARY
    except CheckpointError:
        return False


def named_like(names: Collection[str]) -> str | None:
    """Say by the names of its files what a repository of another library is; None if nothing is
    recognised.
    """
    return next((words for name, words in _BY_NAME.items() if name in names), None)


def what_else(path: Path) -> str | None:
    """Say what a path is that another library made; None if nothing is recognised.

    >>> what_else(Path("no/such/path")) is None
    True
    """
    if path.is_file():
        pickled = path.suffix in _PICKLES
        return "a pickle, which can run code and is never loaded as it is" if pickled else "a file"
    named = next((words for name, words in _BY_NAME.items() if (path / name).exists()), None)
    if named is not None or not (path / CONFIG).is_file():
        return named
    try:
        config = read_json(path / CONFIG)
    except CheckpointError:
        return None
    return next((words for entry, words in _BY_ENTRY.items() if entry in config), None)
