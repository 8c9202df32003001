"""What an importer returns, and what it is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

Weights = dict[str, Tensor]

USUAL_OPTIONS = (
    "image_size",
    "timesteps",
    "schedule",
    "schedule_options",
    "parametrization",
    "variance",
    "loss",
    "dropout",
)
"""What most formats do not say in full, so that it may be given; see `Reader`."""


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What a checkpoint of another library holds, in our terms.

    Attributes:
        source: The file or folder.
        format: Name of the reader.
        network: The network's class, an entry of `ddpm_lib.nn.NETWORKS`.
        network_config: Its arguments.
        process: Arguments of `GaussianDiffusion` besides the network; None where the file holds a
            network alone that belongs to no process (a noisy classifier).
        weights: The trained weights by the names of our network; None where the file holds averages
            alone.
        averages: Averaged weights by their decay, or by a label where the decay is not known.
        optimizer: Adam's state as `<parameter>|<entry>`, by our network's names of parameters, with
            the entries step, exp_avg and exp_avg_sq; empty where there is none.
        step: Optimizer steps done; 0 where the file does not say.
        training: Options of `TrainingConfig` that the file says, such as learning_rate.
        class_names: Names of the classes, where the file has them.
        notes: What the file does not say and was assumed, and what cannot be carried over: one line
            each, for the user.
    """

    source: Path
    format: str
    network: str
    network_config: dict[str, Any]
    process: dict[str, Any] | None
    weights: Weights | None
    averages: dict[float | str, Weights] = field(default_factory=dict)
    optimizer: Weights = field(default_factory=dict)
    step: int = 0
    training: dict[str, Any] = field(default_factory=dict)
    class_names: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Opened:
    """A foreign file or folder, opened without executing anything of it.

    Attributes:
        path: It.
        content: What the file holds: nested dicts and lists of tensors, numbers and strings. For a
            folder, its tensors by file stem.
        configs: The JSON files of a folder by their paths in it, such as "unet/config.json"; empty
            for a file.
    """

    path: Path
    content: dict[str, Any]
    configs: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Reader:
    """An importer of one format.

    Attributes:
        name: As `ddpm convert --from` takes it.
        reads: What it reads, in a line.
        recognises: Says whether an opened file is of this format, by its keys and shapes alone.
        read: Translates it. `given` are values by our names of options (image_size, schedule,
            timesteps, heads, …) that win over what the reader would assume; an unknown one is a
            ConfigError, and so are left-over weights.
        options: The names that `given` may have.
    """

    name: str
    reads: str
    recognises: Callable[[Opened], bool]
    read: Callable[[Opened, Mapping[str, Any]], Imported]
    options: tuple[str, ...] = ()
