"""Dicts of tensors as torch saves them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from ddpm_lib.core.errors import CheckpointError
from ddpm_lib.core.text import printable


def is_weights(value: Any) -> bool:
    """Whether a value is a dict of tensors by name, and not empty."""
    return (
        isinstance(value, dict)
        and bool(value)
        and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())
    )


def without_prefix(weights: Mapping[str, Tensor], prefix: str = "module.") -> dict[str, Tensor]:
    """Return the weights without what a wrapper puts in front of all names: DataParallel and DDP,
    "module.".
    """
    if not all(name.startswith(prefix) for name in weights):
        return dict(weights)
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items()}


def refuse_keys(content: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    """Refuse entries of a checkpoint that its format does not have.

    Raises:
        CheckpointError: Listing them.
    """
    known = list(known)
    extra = [printable(str(name)) for name in content if name not in known]
    if extra:
        raise CheckpointError(
            f"{where} has entries that this format does not have: {', '.join(extra[:8])}. It has"
            f" {', '.join(known)}."
        )
