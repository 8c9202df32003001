"""Whole processes in pretrained folders: a network, and what makes images of it."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from ddpm_lib.core.errors import CheckpointError
from ddpm_lib.core.hub import MAX_SHARD_SIZE, PARTNER
from ddpm_lib.core.keywords import answers_wrong_keywords
from ddpm_lib.core.text import printable
from ddpm_lib.nn.condition_table import known_texts_of, learn_texts
from ddpm_lib.nn.networks import describe_for_others
from ddpm_lib.nn.pretrained import Averages, load_network, named_weights
from ddpm_lib.nn.text_vectors import from_tensors, to_tensors
from ddpm_lib.process.interface import TrainableProcess
from ddpm_lib.process.sampling_default import SamplingDefault, parse_default

if TYPE_CHECKING:
    from ddpm_lib.core.hub.folder import PretrainedFolder

P = TypeVar("P", bound=nn.Module)


@answers_wrong_keywords
def save_pretrained(
    self: TrainableProcess,
    folder: str | os.PathLike[str],
    *,
    averages: Averages | None = None,
    max_shard_size: int | str = MAX_SHARD_SIZE,
) -> Path:
    """Write the process and its network into a folder, from which `from_pretrained` loads them.

    In a program of several processes, call it on one.

    Args:
        folder: Where; an older pretrained folder there is replaced, anything else refused.
        averages: Averaged weights of the network, which loading then prefers: {"ema": network}, or
            several, {"ema:0.999": network, "ema:0.99": network}, the first of which is preferred.
            Of an averaged copy of the whole process, the network is taken.
        max_shard_size: Bytes of a file of weights, or a text such as "5GB"; what is larger is cut.

    Returns:
        The folder.

    Raises:
        ConfigError: If the class of the network is not registered, or something else lies there.
        OSError: If the disk refuses; what was there stays.
    """
    from ddpm_lib.core.hub.folder import UNCERTAINTY, FolderConfig, arranged, save_folder
    from ddpm_lib.process.sampling import stored_partner

    networks = {
        name: average.model if isinstance(average, type(self)) else average
        for name, average in (averages or {}).items()
    }
    named, default = named_weights(self.model, networks), self.sampling_default
    if default is not None and default.guide_by is not None:
        named[PARTNER] = stored_partner(self, default).model.state_dict()
    weights, groups = arranged(named)
    if self.uncertainty is not None:
        groups[UNCERTAINTY] = self.uncertainty.state_dict()
    texts = texts_of_folder(self, groups)
    config = FolderConfig(
        model=describe_for_others(self.model),
        diffusion=self.config,
        class_names=self.class_names,
        weights=weights,
        sampling=None if default is None else portable(default).to_json(),
        normalization=None if self.normalization is None else self.normalization.to_json(),
        texts=texts,
    )
    return save_folder(Path(folder), config, groups, max_shard_size)


def texts_of_folder(process: Any, groups: dict[str, Any]) -> dict[str, int] | None:
    """Add the vectors of texts that a process knows to the tensors of a pretrained folder; return
    what its config.json says of them.
    """
    from ddpm_lib.core.hub.folder import TEXTS

    known = known_texts_of(process.conditioners)
    if not known:
        return None
    groups[TEXTS] = to_tensors(known)
    return {name: len(one) for name, one in known.items()}


def portable(default: SamplingDefault) -> SamplingDefault:
    """Return a sampling default as a pretrained folder keeps it, which holds the weights of what
    guides under one name.
    """
    return default if default.guide_by is None else replace(default, guide_by=PARTNER)


@dataclass(frozen=True)
class FolderPartner:
    """Loads what guides the process of a pretrained folder, once.

    Args:
        cls: The class of the process.
        folder: The opened folder.
    """

    cls: type[Any]
    folder: PretrainedFolder

    @cached_property
    def process(self) -> Any:
        """The process with the weights that guide, in evaluation mode."""
        return load_process(self.cls, self.folder, PARTNER)[0]

    def __call__(self) -> Any:
        """Return the process."""
        return self.process


def load_process(
    cls: type[P], folder: PretrainedFolder, weights: str | None = None
) -> tuple[P, str]:
    """Build the process that a folder describes, with its network.

    Args:
        cls: The class of the process.
        folder: The opened folder.
        weights: "model", "ema", "ema:0.999"; None for those that the folder gives first.

    Returns:
        The process in evaluation mode on the CPU, and what the weights are called.

    Raises:
        ConfigError: If there are no such weights.
        CheckpointError: If a file is damaged, or does not fit the others.
    """
    from ddpm_lib.core.hub.folder import TEXTS, UNCERTAINTY
    from ddpm_lib.nn.strict import check_finite, load_weights, take_precision

    config, source = folder.config, folder.source
    if config.diffusion is None:
        name = config.model["class"]
        raise CheckpointError(
            f"{source} holds a network without a process: load it with {name}.from_pretrained, and"
            f" build GaussianDiffusion(network, image_size=…) as it was trained."
        )
    model, label = load_network(folder, weights)
    try:
        process: Any = cls(model, **config.diffusion)
    except (TypeError, ValueError, ArithmeticError, MemoryError, RuntimeError) as error:
        raise CheckpointError(
            f"{source} describes a process that this version cannot build"
            f" ({type(error).__name__}: {printable(error)[:300]})."
        ) from error
    if process.uncertainty is not None:
        tensors = folder.tensors(UNCERTAINTY)
        check_finite(tensors, f"{source}: the uncertainty", "Choose another revision.")
        take_precision(process.uncertainty, tensors)
        load_weights(process.uncertainty, tensors, f"{source}: the uncertainty")
    process.class_names = config.class_names
    if config.texts:
        try:
            known = from_tensors(folder.tensors(TEXTS), source)
        except ValueError as error:
            raise CheckpointError(str(error)) from None
        learn_texts(process.conditioners, known)
    if config.normalization is not None:
        from ddpm_lib.data.measurements.normalization import Normalization

        try:
            process.normalization = Normalization.from_json(
                config.normalization, f"{source}: config.json"
            )
        except ValueError as error:
            raise CheckpointError(str(error)) from None
    if config.sampling is not None and label != PARTNER:
        default = parse_default(config.sampling, f"{source}: config.json, sampling")
        if default.guide_by is not None:
            later = replace(folder, path=folder.path.absolute())
            default = replace(default, load_partner=FolderPartner(cls, later))
        process.sampling_default = default
    return process.eval(), label


@answers_wrong_keywords
def from_pretrained(
    cls: type[P],
    source: str | os.PathLike[str],
    *,
    weights: str | None = None,
    device: str | torch.device | None = None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
) -> P:
    """Load a process with its network from a folder or the hub.

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
        The process, in evaluation mode.

    Raises:
        HubError: If the hub cannot be reached, or says no.
        CheckpointError: If there is none, or it is damaged or of a newer format.
        ConfigError: If there are no such weights.
    """
    from ddpm_lib.core.device_choice import resolve_device
    from ddpm_lib.core.hub.client import HubOptions, open_pretrained

    options = HubOptions(
        revision=revision, cache_dir=cache_dir, token=token, local_files_only=local_files_only
    )
    process, _ = load_process(cls, open_pretrained(source, options), weights)
    return process if device is None else process.to(resolve_device(device))
