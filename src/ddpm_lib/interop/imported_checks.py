"""Whether what was read of a foreign file is a network of ours, and a process that can be built."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.spelling import option
from ddpm_lib.core.text import printable
from ddpm_lib.interop.imported import Imported, Weights
from ddpm_lib.interop.renaming import refuse
from ddpm_lib.nn import NETWORKS
from ddpm_lib.nn.strict import check_finite


def check_imported(found: Imported) -> Imported:
    """Return what was read, with its weights in float32, as runs keep them.

    Args:
        found: What a reader returned.

    Raises:
        CheckpointError: If weights are no real numbers, or not finite.
        ConfigError: If no process can be made of it: a schedule that does not exist, a variance
            that the network does not say, a size of images that it cannot halve as often.
    """
    found = with_usable_weights(found)
    if found.process is not None:
        _check_process(_network(found), found.process, str(found.source))
    return found


def with_usable_weights(found: Imported) -> Imported:
    """Return what was read, with its weights in float32.

    Args:
        found: What a reader returned.

    Raises:
        CheckpointError: If weights are no real numbers, or not finite.
    """
    where, wanted = str(found.source), _network(found).state_dict()
    # Of folders, values lie in the files still, which their owner may write anew.
    copied = found.source.is_dir()

    def own(tensor: Tensor) -> Tensor:
        return tensor.to(torch.float32 if tensor.is_floating_point() else tensor.dtype, copy=copied)

    def usable(weights: Weights) -> Weights:
        _refuse_other_kinds(weights, wanted, where)
        wide = {name: own(tensor) for name, tensor in weights.items()}
        check_finite(wide, where, "It cannot be read.")
        return wide

    return dataclasses.replace(
        found,
        weights=None if found.weights is None else usable(found.weights),
        averages={decay: usable(average) for decay, average in found.averages.items()},
        optimizer={name: own(tensor) for name, tensor in found.optimizer.items()},
    )


def _network(found: Imported) -> Any:
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")  # whoever builds it in earnest hears them
        return NETWORKS[found.network](**found.network_config)


def _refuse_other_kinds(weights: Weights, wanted: Mapping[str, Tensor], where: str) -> None:
    """Refuse whole numbers for weights, such as quantised ones without their scales."""
    refuse(
        [
            f"{name}: {tensor.dtype} in the file, {wanted[name].dtype} in the network"
            for name, tensor in weights.items()
            if name in wanted and tensor.is_floating_point() != wanted[name].is_floating_point()
        ],
        where,
    )


def _check_process(network: Any, process: Mapping[str, Any], where: str) -> None:
    from ddpm_lib.diffusion import GaussianDiffusion

    if process.get("variance") == "learned_range" and network.out_channels == network.channels:
        raise ConfigError(
            f"The network in {where} says no variances, so {option('variance', 'learned_range')}"
            " does not fit. Leave it out."
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            built = GaussianDiffusion(network, **process)
        network.check_size(built.image_size)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"No process can be made of {where}: {printable(error)}") from error
