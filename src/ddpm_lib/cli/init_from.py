"""`ddpm train --init-from`: network and process of trained weights as defaults of the command."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddpm_lib.core.errors import CheckpointError, ConfigError
from ddpm_lib.core.spelling import option
from ddpm_lib.nn import NETWORKS
from ddpm_lib.runs.checkpoint import list_checkpoints, read_state
from ddpm_lib.training.augmentation import AUGMENT_DIM
from ddpm_lib.training.fine_tuning.network_changes import Described
from ddpm_lib.training.fine_tuning.weight_sources import WhichWeights, find_starting_weights

if TYPE_CHECKING:
    from torch import nn

    from ddpm_lib.training.config import TrainingConfig
    from ddpm_lib.training.fine_tuning.starting_weights import StartingWeights


@dataclasses.dataclass(frozen=True)
class Start:
    """What a run begins with, or began with.

    Attributes:
        described: The network and process.
        weights: The weights to begin with; None for a run that goes on, whose own they are.
    """

    described: Described
    weights: StartingWeights | None


def find_start(
    source: str, which: WhichWeights, run: Path, image_size: tuple[int, ...] | None
) -> Start:
    """Find the weights that a run begins with; one that goes on says itself what it is.

    Args:
        source: The option `init_from`.
        which: The option `init_weights`.
        run: The run directory.
        image_size: Where it was given, for files that do not say theirs.

    Raises:
        CheckpointError: If there are no weights, or they cannot be read.
        ConfigError: If they are of a network that cannot be built here.
    """
    for checkpoint in reversed(list_checkpoints(run / "checkpoints")):
        try:
            state = read_state(checkpoint)
            model, process = state["model"], state["diffusion"]
            own = Described(network=model["class"], config=model["config"], process=process)
        except (CheckpointError, KeyError, TypeError):
            continue  # what is wrong with it is said where the run looks for what to go on from
        return Start(own, None)
    size = None if image_size is None else (image_size[0], image_size[-1])
    weights = find_starting_weights(source, which, size)
    described = weights.described
    if described.network not in NETWORKS or described.config is None:
        raise ConfigError(
            f"{source} holds the weights of a {described.network}, which only your own code can"
            " build. In Python: Trainer(diffusion, data, init_from=…)."
        )
    return Start(described, weights)


def defaults_of(start: Start, given: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
    """Return the options of a run that its start stands for.

    They are the image size, channels and groups `model` and `diffusion`. What follows from other
    options is left to them: the number of classes to the data, output channels and loss to the
    variance, the augmentation to the option of that name. A network that is no `Unet` has no group
    `model`.

    Args:
        start: What the run begins with.
        given: The options that were given, by their path: those of a part that is given anew are
            not taken over.
    """
    described = start.described
    process = dict(described.process or {})
    config = dict(described.config or {})
    channels = process.pop("channels", None) or config.get("channels", 3)
    values: dict[str, Any] = {"channels": channels}
    size = process.pop("image_size", None)
    if size is not None:
        values["image_size"] = [size] if isinstance(size, int) else list(size)
    values["class_conditional"] = config.get("num_classes") is not None
    for part in ("schedule", "parametrization", "weighting", "time_sampler"):
        if ("diffusion", part) in given:
            process.pop(f"{part}_options", None)
    learned = process.get("variance") == "learned_range"
    if process.get("loss") == ("hybrid" if learned else "simple"):
        process["loss"] = None
    values["diffusion"] = process
    if described.network != "Unet":
        return values
    for name in ("channels", "dims", "conditions"):
        config.pop(name, None)
    if config.get("out_channels") == (2 if learned else 1) * channels:
        config["out_channels"] = None
    if config.get("augment_dim") == AUGMENT_DIM:
        config["augment_dim"] = None
    if start.weights is not None:
        config["num_classes"] = None
    values["model"] = config
    return values


def refuse_other_network(start: Start, given: Mapping[tuple[str, ...], Any]) -> None:
    """Refuse options of `Unet` for weights of another network.

    Args:
        start: What the run begins with.
        given: The options that were given, by their path.

    Raises:
        ConfigError: Naming the network.
    """
    named = [path for path in given if path[0] in ("model", "preset")]
    if start.described.network != "Unet" and named:
        flag = "--" + ".".join(named[0]).replace("_", "-")
        raise ConfigError(
            f"{flag} is an option of Unet, but the weights are those of a"
            f" {start.described.network}, which is built as it was. Leave it out."
        )


def build_network(start: Start) -> nn.Module:
    """Build a network that is no `Unet` as it was."""
    network: nn.Module = NETWORKS[start.described.network](**(start.described.config or {}))
    return network


def check_options(config: TrainingConfig, run: Path) -> None:
    """Refuse options that hold on to random weights.

    Args:
        config: The options of training.
        run: The run directory.

    Raises:
        ConfigError: Naming the option.
    """
    for name in ("freeze", "pull_to_start"):
        holds = getattr(config, name) and config.init_from is None
        if holds and not list_checkpoints(run / "checkpoints"):
            raise ConfigError(
                f"{option(name)} holds on to the weights that training begins with, which are"
                f" random without {option('init_from')}. Name a run or another source of weights."
            )
