"""What other libraries save, in our terms: a file per format, recognised by its keys."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ddpm_lib.core.registry import Registry
from ddpm_lib.interop import (
    ddpm_torch,
    diffusers,
    edm,
    lucidrains,
    openai,
    openai_classifier,
    pytorch_ddpm,
    simple_ddpm,
)
from ddpm_lib.interop.imported import Imported, Opened, Reader
from ddpm_lib.interop.imported_checks import check_imported
from ddpm_lib.interop.openai_flags import TranslatedFlags, translate_flags, with_flags
from ddpm_lib.interop.reading import read_with

_ALL = (
    edm.READER,
    openai.READER,
    openai_classifier.READER,
    lucidrains.READER,
    pytorch_ddpm.READER,
    ddpm_torch.READER,
    simple_ddpm.READER,
    diffusers.READER,
)
READERS: Registry[Reader] = Registry("format", {reader.name: reader for reader in _ALL})
"""The formats of other libraries that can be read, by the name that `ddpm convert --from` takes."""


def read_foreign(
    path: str | Path, given: Mapping[str, Any] | None = None, format: str = "auto"
) -> Imported:
    """Read a checkpoint of another library; nothing in it is executed.

    Args:
        path: A file or a folder.
        given: What the file does not say, by our names of options (`interop.given.GivenOptions`):
            image_size, timesteps, heads, …
        format: One of `READERS`, or "auto" to recognise it by its keys and shapes.

    Returns:
        Its content in our terms.

    Raises:
        CheckpointError: If it cannot be opened, no reader or several recognise it, or weights are
            left over, missing, of other shapes or not finite.
        ConfigError: If something is missing that nobody can assume, or an option is given that this
            format does not take or that does not fit the network.
    """
    return check_imported(read_with(READERS, path, given, format))


def read_flagged(
    path: str | Path, flags: TranslatedFlags, given: Mapping[str, Any] | None = None
) -> Imported:
    """Read a U-Net of improved-diffusion or guided-diffusion with the flags of its scripts.

    Args:
        path: A file or a folder.
        flags: What `translate_flags` made of them.
        given: Options that win over the flags.

    Raises:
        CheckpointError: As for `read_foreign`.
        ConfigError: If the weights are of another network than the flags say.
    """
    said = {name: value for name, value in (given or {}).items() if value is not None}
    # Heads are said by their number or by their width: what is given replaces either.
    lost = {"head_dim"} if {"heads", "heads_up"} & said.keys() else set[str]()
    lost |= {"heads", "heads_up"} if "head_dim" in said else set()
    flagged = {name: value for name, value in flags.given.items() if name not in lost}
    found = read_with(READERS, path, {**flagged, **said}, openai.READER.name)
    return check_imported(with_flags(found, flags, said))


__all__ = [
    "READERS",
    "Imported",
    "Opened",
    "Reader",
    "read_flagged",
    "read_foreign",
    "translate_flags",
]
