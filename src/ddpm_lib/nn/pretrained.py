"""Networks in pretrained folders: saving, loading, and the choice of the weights."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn

from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.hub import MAX_SHARD_SIZE
from ddpm_lib.core.keywords import answers_wrong_keywords
from ddpm_lib.core.validation import shown
from ddpm_lib.nn.networks import build_network, describe_for_others, registered_as

if TYPE_CHECKING:
    from ddpm_lib.core.hub.folder import PretrainedFolder

M = TypeVar("M", bound=nn.Module)

Averages = Mapping[str, "nn.Module | Mapping[str, Tensor]"]
"""Averaged weights by the names "ema" or "ema:0.999": networks of the same class, or their
tensors."""


@answers_wrong_keywords
def save_pretrained(
    model: nn.Module,
    folder: str | os.PathLike[str],
    *,
    averages: Averages | None = None,
    max_shard_size: int | str = MAX_SHARD_SIZE,
) -> Path:
    """Write the network into a folder, from which `from_pretrained` loads it.

    In a program of several processes, call it on one.

    Args:
        folder: Where; an older pretrained folder there is replaced, anything else refused.
        averages: Averaged weights, which loading then prefers: {"ema": network}, or several,
            {"ema:0.999": network, "ema:0.99": network}, the first of which is preferred.
        max_shard_size: Bytes of a file of weights, or a text such as "5GB"; what is larger is cut.

    Returns:
        The folder.

    Raises:
        ConfigError: If the class of the network is not registered, or something else lies there.
        OSError: If the disk refuses; what was there stays.
    """
    from ddpm_lib.core.hub.folder import FolderConfig, arranged, save_folder

    weights, groups = arranged(named_weights(model, averages))
    config = FolderConfig(model=describe_for_others(model), weights=weights)
    return save_folder(Path(folder), config, groups, max_shard_size)


def named_weights(
    model: nn.Module, averages: Averages | None = None
) -> dict[str, Mapping[str, Tensor]]:
    """Return the weights by name, those first that loading is to prefer.

    Args:
        model: The network.
        averages: As for `save_pretrained`.

    Raises:
        ConfigError: If a name is wrong.
        CheckpointError: If averages are of another network.
    """
    from ddpm_lib.nn.strict import check_weights

    named: dict[str, Mapping[str, Tensor]] = {}
    for name, average in (averages or {}).items():
        tensors = average.state_dict() if isinstance(average, nn.Module) else average
        if name == "model" or not isinstance(tensors, Mapping):
            raise ConfigError(
                "averages must map 'ema' or 'ema:0.999' to networks or their state dicts; got"
                f" {shown(name)}: {shown(average)}."
            )
        check_weights(model, tensors, f"averages[{name!r}]")
        named[name] = tensors
    return {**named, "model": model.state_dict()}


def load_network(folder: PretrainedFolder, weights: str | None = None) -> tuple[nn.Module, str]:
    """Build the network that a folder describes and load weights into it.

    Args:
        folder: The opened folder.
        weights: "model", "ema", "ema:0.999"; None for those that the folder gives first.

    Returns:
        The network in evaluation mode on the CPU, in the precision of the file; and what the
        weights are called.

    Raises:
        ConfigError: If there are no such weights.
        CheckpointError: If a file is damaged, or the network cannot be built or is another one.
    """
    from ddpm_lib.nn.strict import check_finite, check_weights, load_weights, take_precision

    label, stem = folder.config.choose(weights, folder.source)
    # The description is compared with the weights before memory is taken for it.
    with torch.device("meta"):
        outline = build_network(folder.config.model, folder.source)
    tensors = folder.tensors(stem)
    check_weights(outline, tensors, folder.source)
    check_finite(tensors, folder.source, "Choose other weights or another revision.")
    model = build_network(folder.config.model, folder.source)
    take_precision(model, tensors)
    load_weights(model, tensors, folder.source)
    return model.eval(), label


@answers_wrong_keywords
def from_pretrained(
    cls: type[M],
    source: str | os.PathLike[str],
    *,
    weights: str | None = None,
    device: str | torch.device | None = None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
) -> M:
    """Load a network from a folder or the hub, also out of the folder of a whole process.

    Args:
        source: A folder, or the name of a repository on the hub, "owner/name"; a folder of that
            name wins.
        weights: "model" (as trained), "ema" (averaged) or "ema:0.999"; default: the averaged ones
            where there are any.
        device: Where to put it: "auto", "cuda", "cuda:1", …; default: the CPU.
        revision: A branch, a tag or a commit of a repository; default: its default branch.
        cache_dir: Where downloads are kept; default: the hub's own cache, $HF_HUB_CACHE.
        token: To log in with; default: that of `hf auth login` or $HF_TOKEN; False for none.
        local_files_only: Take what the cache has and ask nobody, as with $HF_HUB_OFFLINE=1.

    Returns:
        The network, in evaluation mode.

    Raises:
        HubError: If the hub cannot be reached, or says no.
        CheckpointError: If there is none, it is damaged, of a newer format or of another class.
        ConfigError: If there are no such weights.
    """
    from ddpm_lib.core.device_choice import resolve_device
    from ddpm_lib.core.hub.client import HubOptions, open_pretrained

    options = HubOptions(
        revision=revision, cache_dir=cache_dir, token=token, local_files_only=local_files_only
    )
    opened = open_pretrained(source, options)
    model, _ = load_network(opened, weights)
    if not isinstance(model, cls):
        name = registered_as(type(model))
        raise ConfigError(
            f"{opened.source} holds a {name}, no {cls.__name__}."
            f" {type(model).__name__}.from_pretrained loads it."
        )
    return model if device is None else model.to(resolve_device(device))
