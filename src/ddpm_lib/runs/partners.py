"""Finding the worse version that guides a run: an earlier step, another average, another run.

How checkpoints are found and loaded is passed in, so that loading can use this too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from ddpm_lib.core.errors import CheckpointError, ConfigError
from ddpm_lib.core.spelling import option
from ddpm_lib.core.text import printable, short
from ddpm_lib.runs.checkpoint import VerifiedCheckpoint
from ddpm_lib.runs.pretrained_model import PretrainedModel

Find = Callable[..., Any]
"""`find_checkpoints`."""
Load = Callable[..., Any]
"""`load_checkpoint`."""


class Guided(Protocol):
    """What names the version that is to guide it; a `LoadedRun` is one."""

    @property
    def run(self) -> Path:
        """The run directory."""

    @property
    def checkpoint(self) -> Path:
        """The checkpoint, or the pretrained folder."""

    @property
    def weights(self) -> str:
        """Which weights: "model" or "ema <decay>"."""

    @property
    def name(self) -> str:
        """What a line calls it."""

    @property
    def pretrained(self) -> PretrainedModel | None:
        """The pretrained folder that it is from; None for a run."""


@dataclass(frozen=True)
class RunPartner:
    """Loads what the sampling default of a run guides by, once.

    Args:
        run: The run directory.
        checkpoint: The checkpoint that is guided.
        weights: Its weights.
        guide_by: What guides, as for `find_partner`.
        find: `find_checkpoints`.
        load: `load_checkpoint`.
        pretrained: None, as it is a run.
    """

    run: Path
    checkpoint: Path
    weights: str
    guide_by: str
    find: Find
    load: Load
    pretrained: PretrainedModel | None = None

    @property
    def name(self) -> str:
        """The checkpoint's name."""
        return self.checkpoint.name

    @cached_property
    def loaded(self) -> Any:
        """What guides.

        Raises:
            CheckpointError: If it is no longer there.
        """
        try:
            return find_partner(self, self.guide_by, self.find, self.load)
        except (CheckpointError, ConfigError) as error:
            raise CheckpointError(
                f"The sampling default of {printable(self.run)} guides by {self.guide_by}, which"
                f" cannot be loaded: {error} Choose anew with `ddpm tune`, take the default back"
                " with `ddpm tune RUN --undo`, or name another sampler or guidance."
            ) from error

    def __call__(self) -> Any:
        """Return the process."""
        return self.loaded.diffusion


def find_partner(loaded: Guided, guide_by: str, find: Find, load: Load) -> Any:
    """Load the version that is to guide a run; `sample(guide_by=…)` checks that it can.

    Args:
        loaded: What is to be guided.
        guide_by: A step of the same run ("5000" or a name); "model" or "ema:0.999", other weights
            of the same checkpoint; or a run directory, checkpoint or pretrained folder.
        find: `find_checkpoints`.
        load: `load_checkpoint`.

    Returns:
        The `LoadedRun`.

    Raises:
        CheckpointError: If there is no such checkpoint.
        ConfigError: If the weights were not kept, or would guide themselves.
    """
    if guide_by == "model" or guide_by == "ema" or guide_by.startswith("ema:"):
        partner = _other_weights(loaded, guide_by, find, load)
    elif guide_by.isdecimal() or guide_by.startswith("step-"):
        found = find(_run_of(loaded, guide_by), guide_by)[-1]
        partner = _same_kind(found, loaded, load)
    elif Path(guide_by).exists() or "/" in guide_by:
        partner = _first_kind(find(guide_by)[-1], load)
    else:
        raise CheckpointError(
            f"{option('guide_by')} must be a step of the run ('5000'), other weights of the"
            " checkpoint ('model', 'ema:0.999'), or a run directory; got"
            f" {short(guide_by)}, which does not exist here."
        )
    same = partner.checkpoint.resolve() == loaded.checkpoint.resolve()
    if same and partner.weights == loaded.weights:
        raise ConfigError(
            f"{option('guide_by', guide_by)} names {loaded.name} ({loaded.weights}) itself, which"
            " would guide nothing. Name an earlier checkpoint, or other weights."
        )
    return partner


def _run_of(loaded: Guided, guide_by: str) -> Path:
    if loaded.pretrained is not None:
        raise ConfigError(
            f"{option('guide_by', guide_by)} is a step, and {loaded.name} is a pretrained folder,"
            " which has none. Name another folder or run."
        )
    return loaded.run


def _other_weights(loaded: Guided, wanted: str, find: Find, load: Load) -> Any:
    kind, _, decay = wanted.partition(":")
    try:
        number = float(decay) if decay else None
    except ValueError:
        raise ConfigError(
            f"{option('guide_by', wanted)}: the average is named by its decay, as in 'ema:0.999'."
        ) from None
    place = loaded.checkpoint if loaded.pretrained is None else loaded.pretrained.folder.path
    found = find(place)[-1]
    alone = isinstance(found, VerifiedCheckpoint) and "model.safetensors" not in found.files
    if alone and (loaded.run / "checkpoints").is_dir():
        # An average was synthesised: the others are in the checkpoint of its step.
        found = find(loaded.run, found.state.step)[-1]
    return load(found, kind, number)


def _same_kind(found: Any, loaded: Guided, load: Load) -> Any:
    """Load the weights that are named as those of the guided run are."""
    if loaded.weights == "model":
        return load(found, "model")
    length = loaded.weights.removeprefix("ema ")
    try:
        return load(found, "ema", float(length))
    except ValueError:  # named by its relative length: a synthesised average
        return load(found, "ema")


def _first_kind(found: Any, load: Load) -> Any:
    """Load the averaged weights, or the trained ones where no average was kept."""
    plain = isinstance(found, VerifiedCheckpoint) and not found.state.ema_decay
    return load(found, "model" if plain else "ema")
