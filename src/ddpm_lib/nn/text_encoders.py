"""From sentences to vectors, by an encoder that is handed in or named."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.spelling import in_flags
from ddpm_lib.core.text import short
from ddpm_lib.nn.text_cache import cached_vectors, keep_vectors
from ddpm_lib.nn.text_vectors import TextVectors, all_known, text_keys

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


def encode_texts(
    texts: Sequence[str], encoder: str, known: TextVectors | None = None
) -> np.ndarray:
    """Return the vectors of texts, float32 (n, d).

    What was encoded before is not encoded again: what a run knows, and for a named encoder what
    the library's cache has. Other texts are given to the encoder, each once.

    Args:
        texts: The texts.
        encoder: A name given to `register_text_encoder`, else a model of sentence-transformers by
            its name or folder. Where the folder is not here, what was registered under the folder's
            own name counts.
        known: Vectors that count before all others, as a run keeps them.

    Raises:
        ConfigError: If there is no such encoder for a text that is not known, or it returns
            something else.
    """
    keys = text_keys(texts, encoder)
    there = [one for one in (known, *all_known()) if one is not None]
    found: dict[int, np.ndarray] = {}
    _look_up(found, there, keys)
    handed = _handed_in(encoder)
    stamp = [] if handed is not None else _stamp(encoder)
    if len(found) < len(texts) and handed is None:
        _look_up(found, [cached_vectors(texts, encoder, stamp)], keys)
    first = {keys[row].tobytes(): row for row in reversed(range(len(texts))) if row not in found}
    lacking = sorted(first.values())
    if lacking:
        new = [texts[row] for row in lacking]
        try:
            encode = handed or _named(encoder)
        except ConfigError as error:
            raise ConfigError(f"{_unknown(new, there, encoder)}{error}") from error
        made = _checked(encode(new), len(new), encoder)
        if handed is None:
            keep_vectors(keys[lacking], made, encoder, stamp)
        _look_up(found, [TextVectors(keys[lacking], made)], keys)
    rows = [found[row] for row in range(len(texts))]
    sizes = {len(row) for row in rows}
    if len(sizes) > 1:
        raise ConfigError(
            f"The text encoder {encoder!r} returns vectors of {len(found[lacking[0]])} numbers, and"
            f" those known of it have {min(sizes - {len(found[lacking[0]])})}: it is another one"
            " now. Register or name the one that was trained with."
        )
    return np.stack(rows) if rows else np.zeros((0, 0), dtype=np.float32)


def _look_up(found: dict[int, np.ndarray], there: Sequence[TextVectors], keys: np.ndarray) -> None:
    """Add the vectors of those rows that are known and not found yet."""
    for one in there:
        for row, place in enumerate(one.rows_of(keys)):
            if place >= 0 and row not in found:
                found[row] = one.vectors[place]


def _unknown(new: Sequence[str], there: Sequence[TextVectors], encoder: str) -> str:
    """Say before an error that a text is none of those that can do without their encoder."""
    count = sum(len(one) for one in there)
    if not count:
        return ""
    more = f" and {len(new) - 1:,} more" if len(new) > 1 else ""
    return (
        f"{short(new[0], 60)}{more}: none of the {count:,} texts that this run knows the vectors"
        f" of, so that the text encoder {encoder!r} is needed. "
    )


def encoder_at(name: str) -> str:
    """Return the name of an encoder as runs note it: the absolute path of a folder that is here,
    any other name as it is.
    """
    if name in _HANDED_IN:
        return name
    folder = Path(name).expanduser()
    return str(folder.absolute()) if folder.is_dir() else name


def portable_encoder(name: str) -> str:
    """Return the name of an encoder as folders for others note it: of one in a folder, its place on
    this machine concerns nobody else, and its own name says which is needed.

    >>> portable_encoder("/home/me/minilm"), portable_encoder("all-MiniLM-L6-v2")
    ('./minilm', 'all-MiniLM-L6-v2')
    """
    if name in _HANDED_IN and not Path(name).is_absolute():
        return name
    return f"./{Path(name).name}" if _is_place(name) else name


def same_encoder(a: Any, b: Any) -> bool:
    """Whether two names mean one encoder, where one is that of a folder without its place."""
    if a == b or not isinstance(a, str) or not isinstance(b, str):
        return bool(a == b)
    return Path(a).name == Path(b).name and any(name == f"./{Path(name).name}" for name in (a, b))


def _is_place(name: str) -> bool:
    """Whether a name is written as the path of a folder."""
    return name.startswith(("/", "./", "../", "~")) or Path(name).is_absolute()


def _handed_in(name: str) -> Encoder | None:
    """Return what was handed in under a name, or in the place of a folder that is not here."""
    if name in _HANDED_IN:
        return _HANDED_IN[name]
    if not _is_place(name) or Path(name).expanduser().is_dir():
        return None
    called = Path(name).name
    return next((one for own, one in _HANDED_IN.items() if Path(own).name == called), None)


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
    called = Path(name).name if _is_place(name) else name
    own = f"hand one in: register_text_encoder({called!r}, function) from ddpm_lib.nn"
    own = f"in Python {own}" if in_flags() else own
    if _is_place(name) and not Path(name).expanduser().is_dir():
        there = "there"
        if name == f"./{called}":
            there = f"here, a folder {called!r} in {str(Path.cwd())!r}"
        raise ConfigError(
            f"There is no folder {name!r} with a text encoder.{handed} Put the model that was"
            f" trained with {there}, or {own}."
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
