"""Trained weights to begin a run with, and how a network takes them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ddpm_lib.core.errors import ConfigError
from ddpm_lib.nn.strict import check_finite, check_weights
from ddpm_lib.runs.started_from import StartedFrom
from ddpm_lib.training.fine_tuning.network_changes import Described, compare, refusal
from ddpm_lib.training.fine_tuning.weight_mapping import Weights, map_weights
from ddpm_lib.training.resume import describe_model

if TYPE_CHECKING:
    from ddpm_lib.data.measurements.normalization import Normalization
    from ddpm_lib.diffusion import GaussianDiffusion
    from ddpm_lib.runtime.processes import Processes


@dataclass(frozen=True, kw_only=True)
class StartingWeights:
    """Trained weights, what they were trained in, and where they come from.

    Attributes:
        described: The network and the process that they were trained in.
        class_names: Names of the classes, None where there are none.
        origin: Where they lie, without a digest.
        read: Reads the weights; not called before it is clear that they fit.
        notes: What the source does not say and was assumed, a line each.
        normalization: Of the measured values that they know; None for pictures.
    """

    described: Described
    class_names: tuple[str, ...] | None
    origin: StartedFrom
    read: Callable[[], Weights]
    notes: tuple[str, ...] = ()
    normalization: Normalization | None = None

    @property
    def name(self) -> str:
        """A short name for messages."""
        return Path(self.origin.source).name or self.origin.source

    def check(self, diffusion: GaussianDiffusion) -> tuple[str, ...]:
        """Compare with a network and process; no weights are read.

        Returns:
            What is another and needs no mapping, a line each.

        Raises:
            ConfigError: Listing what differs that no mapping has a meaning for.
        """
        changes = compare(self.described, described(diffusion), self.name)
        if changes.refused:
            raise ConfigError(refusal(changes, self.origin.source))
        return tuple(changes.notes)

    def load_into(
        self, diffusion: GaussianDiffusion, class_names: tuple[str, ...] | None
    ) -> StartedFrom:
        """Give the network these weights, mapped where it is another.

        Args:
            diffusion: The process with its network, which `check` accepts.
            class_names: Of the data that it is to learn.

        Returns:
            What a run notes of it.

        Raises:
            CheckpointError: If the weights are not those of the network that they are said to be.
        """
        notes, model = [*self.notes, *self.check(diffusion)], diffusion.model
        notes += units_changed(self.normalization, diffusion.normalization, self.name)
        weights = self.read()
        check_finite(weights, self.origin.source, "Take other weights.")
        own = model.state_dict()
        names = (self.class_names, class_names)
        there, here = self.described, described(diffusion)
        mapped = map_weights(weights, own, there, here, names, notes.append)
        check_weights(model, mapped, self.origin.source)
        model.load_state_dict(mapped)
        return replace(self.origin, sha256=weights_digest(weights), notes=tuple(notes))


def units_changed(
    there: Normalization | None, here: Normalization | None, name: str
) -> tuple[str, ...]:
    """Say in a line where values mean another to a network than before.

    Args:
        there: Of the weights; None for pictures.
        here: Of the run that begins with them.
        name: Of the weights.
    """
    if there is None and here is None:
        return ()
    if there is None or here is None:
        kinds = (
            ("pictures", "measured values") if there is None else ("measured values", "pictures")
        )
        return (f"data: {kinds[0]} in {name}, {kinds[1]} here, with the same weights.",)
    from ddpm_lib.data.measurements.normalization import SAME_VALUES

    if there.same_map(here, SAME_VALUES):
        return ()
    return (
        f"values: {there.line()} in {name}; here {here.line()}. In Python,"
        " open_dataset(…, normalize=load_run(…).diffusion.normalization) keeps theirs.",
    )


def described(diffusion: GaussianDiffusion) -> Described:
    """Return what a process and its network are made of."""
    known = describe_model(diffusion.model)
    return Described(network=known["class"], config=known["config"], process=diffusion.config)


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """Return a SHA-256 of weights by names, types, shapes and values, in the order of names."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def on_every_rank(find: Callable[[], StartingWeights], ranks: Processes) -> StartingWeights:
    """Find the same weights on every rank, the main process first, which may have to fetch them.

    Raises:
        ConfigError: On every rank, where one finds others, or none.
    """
    found: list[StartingWeights] = []
    ranks.on_main(lambda: found.append(find()))
    failure = ""
    if not found:
        try:
            found.append(find())
        except (OSError, RuntimeError, ValueError) as error:
            failure = f"{type(error).__name__}: {error}"
    own = failure or str(found[0].origin)
    everyone = ranks.all_objects(own)
    other = next((k for k, words in enumerate(everyone) if words != everyone[0]), None)
    if other is not None:
        raise ConfigError(
            f"Process 0 begins with {everyone[0]}, process {other} with {everyone[other]}. All need"
            " to read the same weights."
        )
    return found[0]
