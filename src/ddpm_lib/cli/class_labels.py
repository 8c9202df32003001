"""What the flags say about classes, as conditions of the network."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ddpm_lib.process.conditions import class_count
from ddpm_lib.runs.loading import LoadedRun
from ddpm_lib.training import ConfigError


def condition(
    loaded: LoadedRun, command: Any, num: int, columns: int | None = None
) -> dict[str, Tensor]:
    """Return the labels of the images for a class-conditional network.

    Args:
        loaded: The run.
        command: The flags.
        num: How many images.
        columns: Columns of a sweep, in which one thing changes alone: its rows take the classes in
            turn; None: the images do.

    Raises:
        ConfigError: For a class that does not exist, or a class asked of an unconditional network
            (in a cascade, the other one may know it).
    """
    conditioners = loaded.diffusion.conditioners or {}
    classes = class_count(conditioners)
    if classes is None and command.base is not None:
        return {}
    label = label_of(loaded, command.class_label)
    if classes is None:
        return {}
    if label is None and command.low_res is not None:
        if conditioners["class_label"].optional:
            return {}  # of what class the pictures are, only the user knows
        raise ConfigError(
            "This network must be told the class of the pictures. Name it with --class-label."
        )
    if label is None:
        turn = (torch.arange(num) + command.first_index) // (columns or 1)
        return {"class_label": turn % classes}
    return {"class_label": torch.full((num,), label)}


def label_of(loaded: LoadedRun, text: str | None) -> int | None:
    """Return the number of a class given by name or number, None for none.

    Raises:
        ConfigError: For a class that does not exist, or a class asked of an unconditional network.
    """
    if text is None:
        return None
    classes = class_count(loaded.diffusion.conditioners)
    if classes is None:
        raise ConfigError("--class-label was given, but this network was trained without classes.")
    names = list(loaded.class_names or [str(i) for i in range(classes)])
    if text in names:
        return names.index(text)
    if text.isdecimal() and int(text) < classes:
        return int(text)
    from ddpm_lib.core.registry import unknown_name

    if text == "-1":
        raise ConfigError(f"-1 is no class, and nothing to ask for. Choices: {', '.join(names)}.")
    raise ConfigError(unknown_name("class", text, names))
