"""From sentences to vectors, by an encoder that is handed in or named."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_lib.core.caching import cache_folder
from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.files import write_aside

Encoder = Callable[[list[str]], Any]
"""From n texts to n vectors: an array or a tensor (n, d)."""
_HANDED_IN: dict[str, Encoder] = {}


def register_text_encoder(name: str, encoder: Encoder) -> None:
    """Let conditions name a sentence encoder of your own.

    Runs keep the name: a program that draws from one registers the encoder again under it.

    Args:
        name: What `encoder=` calls it, and what runs note.
        encoder: From a list of n texts to an array or a tensor (n, d).

    Raises:
        ConfigError: If the name is no text, or the encoder cannot be called.
    """
    if not isinstance(name, str) or not name or not callable(encoder):
        raise ConfigError(
            "register_text_encoder takes a name and a function from a list of texts to vectors; got"
            f" {name!r} and {type(encoder).__name__}."
        )
    _HANDED_IN[name] = encoder


def encode_texts(texts: Sequence[str], encoder: str) -> np.ndarray:
    """Return the vectors of texts, float32 (n, d); those of a named encoder are kept in the
    library's cache.

    Args:
        texts: The texts.
        encoder: A name given to `register_text_encoder`, else a model of sentence-transformers by
            its name or folder.

    Raises:
        ConfigError: If there is no such encoder, or it returns something else.
    """
    if encoder in _HANDED_IN:
        return _checked(_HANDED_IN[encoder](list(texts)), len(texts), encoder)
    made_of = json.dumps([encoder, _stamp(encoder), *texts])
    key = hashlib.blake2b(made_of.encode(), digest_size=16).hexdigest()
    kept = cache_folder() / "texts" / f"{key}.npy"
    if kept.is_file():
        try:
            return _checked(np.load(kept, allow_pickle=False), len(texts), encoder)
        except (OSError, ValueError, ConfigError):
            kept.unlink(missing_ok=True)
    found = _checked(_named(encoder)(list(texts)), len(texts), encoder)
    if len(texts) > 1:
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_aside(kept, lambda aside: _save(aside, found), durable=False)
    return found


def _save(path: Any, array: np.ndarray) -> None:
    with open(path, "wb") as file:
        np.save(file, array)


def encoder_at(name: str) -> str:
    """Return the name of an encoder as runs note it: the absolute path of a folder that is here,
    any other name as it is.
    """
    if name in _HANDED_IN:
        return name
    folder = Path(name).expanduser()
    return str(folder.absolute()) if folder.is_dir() else name


def _stamp(name: str) -> list[tuple[str, int, int]]:
    """Return what tells the model in a folder from another one there; nothing for other names."""
    folder = Path(name).expanduser()
    if not folder.is_dir():
        return []
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return [
        (str(file.relative_to(folder)), file.stat().st_size, file.stat().st_mtime_ns)
        for file in files
    ]


def _named(name: str) -> Encoder:
    """Load a model of sentence-transformers, from a folder or by its name.

    Raises:
        ConfigError: If there is none, or it cannot be loaded.
    """
    handed = f" Handed in: {', '.join(_HANDED_IN)}." if _HANDED_IN else ""
    own = f"hand one in: register_text_encoder({name!r}, function) from ddpm_lib.nn"
    if name.startswith(("/", "./", "../", "~")) and not Path(name).expanduser().is_dir():
        raise ConfigError(
            f"There is no folder {name!r} with a text encoder.{handed} Put the model there, or"
            f" {own}."
        )
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise ConfigError(
            f"There is no text encoder {name!r}: sentence-transformers, whose models go by their"
            f" names, cannot be imported ({error}).{handed} pip install 'ddpm-lib[text]', or {own}."
        ) from None
    try:
        model = SentenceTransformer(str(Path(name).expanduser()) if _stamp(name) else name)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ConfigError(
            f"sentence-transformers cannot load {name!r}: {' '.join(str(error).split())[:200]}."
            " Without internet, name a folder: SentenceTransformer(NAME).save(FOLDER) where there"
            f" is some, then encoder=FOLDER; or {own}."
        ) from error
    encode: Encoder = model.encode
    return encode


def _checked(found: Any, n: int, encoder: str) -> np.ndarray:
    if hasattr(found, "detach"):
        found = found.detach().float().cpu().numpy()
    array = np.array(found, dtype=np.float32)
    if array.ndim != 2 or len(array) != n or not np.isfinite(array).all():
        raise ConfigError(
            f"The text encoder {encoder!r} must return {n} finite vectors, shape ({n}, d); got"
            f" shape {array.shape}."
        )
    return array


def split_tags(words: str) -> list[str]:
    """Return the tags in a text, which stand between "|" or ";".

    >>> split_tags("red| round")
    ['red', 'round']
    """
    return [word.strip() for word in words.replace(";", "|").split("|") if word.strip()]
