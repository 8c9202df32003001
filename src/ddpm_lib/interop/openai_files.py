"""The files that improved-diffusion and guided-diffusion write for one step, which belong together.

modelNNNNNN.pt and ema_RATE_NNNNNN.pt are state dicts, optNNNNNN.pt is AdamW's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ddpm_lib.core.errors import CheckpointError
from ddpm_lib.core.text import printable
from ddpm_lib.interop.imported import Opened, Weights
from ddpm_lib.interop.opening import open_foreign

IsNetwork = Callable[[Any], bool]
_NAME = re.compile(r"(?:.*/)?(?:model|opt|ema_([0-9.]+)_)([0-9]{6,})")


@dataclass(frozen=True, kw_only=True)
class Files:
    """What belongs to one step.

    Attributes:
        where: The file or folder, for messages.
        weights: The trained weights, None where there are averages alone.
        averages: By their decay.
        optimizer: AdamW's state dict, None where there is none.
        step: As the names say, None where they do not.
        notes: What was taken besides the file that was given.
    """

    where: str
    weights: Weights | None
    averages: dict[float | str, Weights] = field(default_factory=dict)
    optimizer: dict[str, Any] | None = None
    step: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def any_weights(self) -> Weights:
        """Weights to read shapes off: the trained ones, or an average."""
        return self.weights if self.weights is not None else next(iter(self.averages.values()))


def is_unet(value: Any) -> bool:
    """Say whether a value is a state dict of their U-Net."""
    return _has(value, "time_embed.0.weight", "input_blocks.0.0.weight", "out.2.weight") and _has(
        value, "output_blocks.0.0.in_layers.0.weight"
    )


def is_classifier(value: Any) -> bool:
    """Say whether a value is a state dict of their noisy classifier."""
    if not _has(value, "time_embed.0.weight", "input_blocks.0.0.weight", "out.0.weight"):
        return False
    return not any(str(name).startswith("output_blocks.") for name in value)


def is_optimizer(value: Any) -> bool:
    """Say whether a value is the state dict of an optimizer of torch."""
    return isinstance(value, Mapping) and value.keys() == {"state", "param_groups"}


def _has(value: Any, *names: str) -> bool:
    return isinstance(value, Mapping) and all(isinstance(value.get(n), Tensor) for n in names)


def parts_of(opened: Opened) -> dict[str, Any]:
    """Return the state dicts of a file or folder by their file names without endings."""
    if opened.path.is_dir():
        return opened.content
    return {opened.path.name.removesuffix(opened.path.suffix): opened.content}


def collect(opened: Opened, is_network: IsNetwork = is_unet) -> Files:
    """Gather the files of one step: those of a folder's newest, or of the one that was given.

    Args:
        opened: The file or folder.
        is_network: Says whether a value is a state dict of the kind of network that is wanted.

    Raises:
        CheckpointError: If a file beside it is damaged.
    """
    parts, notes = dict(parts_of(opened)), list[str]()
    if not opened.path.is_dir():
        name = next(iter(parts))
        for path in _siblings(opened.path):
            stem = path.name.removesuffix(path.suffix)
            parts[stem] = open_foreign(path).content
            notes.append(f"{path.name}, which lies beside {opened.path.name}, was taken too.")
        label = _NAME.fullmatch(name)
        if label is None:
            return Files(where=str(opened.path), weights=tensors_of(parts[name], str(opened.path)))
        steps = [int(label[2])]
    else:
        steps = sorted(
            {int(m[2]) for n, v in parts.items() if (m := _NAME.fullmatch(n)) and is_network(v)}
        )
        if not steps:
            return _unnamed(opened, parts, is_network)
        if len(steps) > 1:
            notes.append(f"Of {len(steps)} steps in the folder, the newest was taken: {steps[-1]}.")
    return _of_step(str(opened.path), parts, steps[-1], notes, is_network)


def _unnamed(opened: Opened, parts: dict[str, Any], is_network: IsNetwork) -> Files:
    """Take the one state dict of a folder whose file names say nothing."""
    networks = {name: value for name, value in parts.items() if is_network(value)}
    if len(networks) > 1:
        raise CheckpointError(
            f"{opened.path} holds {len(networks)} networks, {', '.join(sorted(networks))}, and"
            " their names say no step. Give one of the files."
        )
    (network,) = networks.values()
    found = [value for value in parts.values() if is_optimizer(value)]
    return Files(
        where=str(opened.path),
        weights=tensors_of(network, str(opened.path)),
        optimizer=found[0] if len(found) == 1 else None,
    )


def _of_step(
    where: str, parts: dict[str, Any], step: int, notes: list[str], is_network: IsNetwork
) -> Files:
    weights, averages, optimizer = None, dict[float | str, Weights](), None
    for name, value in parts.items():
        label = _NAME.fullmatch(name)
        if label is None or int(label[2]) != step:
            continue
        if is_optimizer(value):
            optimizer = dict(value)
        elif is_network(value) and label[1] is not None:
            averages[float(label[1])] = tensors_of(value, name)
        elif is_network(value):
            weights = tensors_of(value, name)
    return Files(
        where=where,
        weights=weights,
        averages=averages,
        optimizer=optimizer,
        step=step,
        notes=tuple(notes),
    )


def _siblings(path: Path) -> list[Path]:
    """Return the other files of the same step in a file's folder."""
    label = _NAME.fullmatch(path.name.removesuffix(path.suffix))
    if label is None:
        return []
    found = []
    for other in sorted(path.parent.glob(f"*{path.suffix}")):
        match = _NAME.fullmatch(other.name.removesuffix(other.suffix))
        if other != path and match is not None and match[2] == label[2]:
            found.append(other)
    return found


def tensors_of(state: Mapping[str, Any], where: str) -> Weights:
    """Return a state dict as float32 tensors by name.

    Raises:
        CheckpointError: If it holds anything else.
    """
    other = [name for name, value in state.items() if not isinstance(value, Tensor)]
    if other:
        listed = printable(", ".join(map(str, other[:5])))
        raise CheckpointError(f"{where}: {listed} are no tensors, so this is no state dict.")
    return {
        name: value.detach().float() if value.is_floating_point() else value.detach()
        for name, value in state.items()
    }
