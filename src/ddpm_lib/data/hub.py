"""Datasets by their name on the 🤗 hub, quickly refused where the hub cannot be reached."""

from __future__ import annotations

import contextlib
import socket
import threading
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ddpm_lib.core.progress import foreign_bars_hidden

_PATIENCE = 1.5


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
            text = " ".join(str(error).split())[:200]
            raise FileNotFoundError(
                f"{start}; the dataset of that name could not be loaded from the hub:"
                f" {type(error).__name__}: {text}. Check the path."
            ) from error
        why = (
            "HF_HUB_OFFLINE is set"
            if offline
            else f"{constants.ENDPOINT} cannot be reached from here"
        )
        raise FileNotFoundError(
            f"{start}; no dataset of that name is in the cache ({why}). Check the path, or download"
            " the dataset where there is internet."
        ) from None


def can_reach(address: str) -> bool:
    """Whether a connection to the host of a web address, or to the proxy for it, is made within a
    moment.
    """
    parts = urllib.parse.urlsplit(address)
    proxies = urllib.request.getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if proxy and parts.hostname and not urllib.request.proxy_bypass(parts.hostname):
        parts = urllib.parse.urlsplit(proxy if "//" in proxy else f"http://{proxy}")
    host, port = parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)
    reached: list[bool] = []

    def connect() -> None:
        with contextlib.suppress(OSError):
            socket.create_connection((host or "", port), timeout=_PATIENCE).close()
            reached.append(True)

    thread = threading.Thread(
        target=connect, daemon=True
    )  # looking up a name has no time limit of its own
    thread.start()
    thread.join(_PATIENCE)
    return bool(reached)


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
