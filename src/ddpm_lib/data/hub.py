"""Datasets by their name on the 🤗 hub, quickly refused where the hub cannot be reached."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ddpm_lib.core.hub.failures import Errand, explain, offline_text, unreachable_text
from ddpm_lib.core.hub.reach import can_reach
from ddpm_lib.core.progress import foreign_bars_hidden


def load_by_name(name: str, path: Path, like: str | None = None) -> Any:
    """Load a dataset by its hub name, or from the cache of `datasets` where the hub cannot be
    reached.

    Args:
        name: Its name.
        path: The path that the name may have meant.
        like: A path of nearly this name that exists.

    Raises:
        FileNotFoundError: If there is none, saying first that the name is no path.
    """
    from datasets import load_dataset
    from huggingface_hub import constants

    offline = bool(constants.HF_HUB_OFFLINE)
    reachable = not offline and can_reach(constants.ENDPOINT)
    try:
        with (
            foreign_bars_hidden(),
            contextlib.nullcontext() if offline or reachable else _offline(),
        ):
            return load_dataset(name)
    except Exception as error:
        start = f"{name!r} is no local path ({path.absolute()} does not exist)"
        start = f"{start} (did you mean {like!r}?)" if like else start
        if reachable:
            told = explain(error, Errand("load", name))
            if told is not None:
                raise FileNotFoundError(f"{start}. {told}") from error
            text = " ".join(str(error).split())[:200]
            raise FileNotFoundError(
                f"{start}; the dataset of that name could not be loaded from the hub:"
                f" {type(error).__name__}: {text}. Check the path."
            ) from error
        why = offline_text() if offline else unreachable_text()
        raise FileNotFoundError(
            f"{start}; no dataset of that name is in the cache. {why} Check the path, or download"
            " the dataset where there is internet."
        ) from None


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """Have the libraries of the hub look only in their cache, for the time of one call."""
    import datasets
    from huggingface_hub import constants

    before = datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE = before
