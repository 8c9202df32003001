"""Datasets by their name on the 🤗 hub, quickly refused where the hub cannot be reached."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ddpm_lib.core.hub.failures import Errand, explain, offline_text, unreachable_text
from ddpm_lib.core.hub.reach import can_reach
from ddpm_lib.core.lost_paths import lost
from ddpm_lib.core.progress import foreign_bars_hidden


def load_by_name(
    name: str, path: Path, here: str | None = None, published: str | None = None
) -> Any:
    """Load a dataset by its hub name, or from the cache of `datasets` where the hub cannot be
    reached.

    Args:
        name: Its name.
        path: The path that the name may have meant.
        here: A path of nearly this name that exists.
        published: A published set of nearly this name.

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
        why = offline_text() if offline else unreachable_text()
        known = explain(error, Errand("load", name)) if reachable else None
        told = None if known is None else str(known)
        if told is None and reachable:
            text = " ".join(str(error).split())[:200]
            failed = f"{type(error).__name__}: {text}"
            told = f"A dataset of that name could not be loaded from the hub: {failed}."
        if here is not None or ("/" in name and path.parent.is_dir()):  # a path that was mistyped
            short = told or (
                "Nor is a dataset of that name in the cache, and the hub "
                + ("is not asked (HF_HUB_OFFLINE)." if offline else "cannot be reached from here.")
            )
            raise FileNotFoundError(f"{lost(name)} {short}") from (error if told else None)
        start = f"{name!r} is no local path ({path.absolute()} does not exist)"
        start = f"{start} (did you mean {published!r}?)" if published else start
        if told is not None:
            raise FileNotFoundError(f"{start}. {told} Check the path.") from error
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
