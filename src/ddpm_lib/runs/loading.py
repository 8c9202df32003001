"""From a run directory or a checkpoint back to a `GaussianDiffusion` that samples."""

from __future__ import annotations

import dataclasses
import functools
import logging
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddpm_lib.core.errors import CheckpointError, ConfigError
from ddpm_lib.core.hub.others import what_else
from ddpm_lib.core.keywords import answers_wrong_keywords
from ddpm_lib.core.paths import at_home
from ddpm_lib.core.spelling import option
from ddpm_lib.core.text import printable, short
from ddpm_lib.nn.condition_table import learn_texts
from ddpm_lib.nn.networks import NETWORKS, build_network
from ddpm_lib.nn.strict import check_finite, check_weights, load_weights
from ddpm_lib.process.pretrained import load_process
from ddpm_lib.process.sampling_default import SamplingDefault
from ddpm_lib.runs import checkpoint as files
from ddpm_lib.runs.checkpoint import VerifiedCheckpoint, Verify
from ddpm_lib.runs.measured_runs import run_normalization
from ddpm_lib.runs.names import checkpoint_name
from ddpm_lib.runs.partners import RunPartner
from ddpm_lib.runs.pretrained_model import PretrainedModel, find_pretrained
from ddpm_lib.runs.run_conditions import conditions
from ddpm_lib.runs.run_html import loaded_run_html
from ddpm_lib.runs.run_status import no_run, nothing_saved
from ddpm_lib.runs.state import STATE, RunState
from ddpm_lib.runs.stored_sampling import sampling_or_none
from ddpm_lib.runs.stored_texts import read_texts

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ddpm_lib.diffusion import GaussianDiffusion

logger = logging.getLogger("ddpm_lib")


@dataclass(frozen=True)
class LoadedRun:
    """A trained process.

    Attributes:
        diffusion: The process with the chosen weights loaded, in evaluation mode, on the CPU.
        checkpoint: The directory read: a checkpoint, or a pretrained folder.
        step: Its step; 0 for a pretrained folder, which does not say.
        weights: Which weights were loaded: "model" or "ema <decay>".
        class_names: Names of the classes, where the data had labels.
        state: All of the checkpoint's state.json; empty for a pretrained folder.
        pretrained: The pretrained folder that it is from; None for a run.
    """

    diffusion: GaussianDiffusion
    checkpoint: Path
    step: int
    weights: str
    class_names: tuple[str, ...] | None
    state: dict[str, Any]
    pretrained: PretrainedModel | None = None

    def __repr__(self) -> str:
        classes = f", {len(self.class_names)} classes" if self.class_names else ""
        where = f"{self.checkpoint}, step {self.step:,}"
        if self.pretrained is not None:
            where = self.pretrained.name
        return f"LoadedRun({where}, weights {self.weights}{classes})"

    _repr_html_ = loaded_run_html
    conditions = conditions

    @cached_property
    def run_state(self) -> RunState:
        """The same state by attributes.

        Raises:
            ConfigError: For a pretrained folder, which has none.
        """
        if self.pretrained is not None:
            raise ConfigError(
                f"{self.pretrained.folder.source} is a pretrained folder, which does not say what"
                " it was trained on. Name images with data= (--data PATH)."
            )
        return RunState.from_json(self.state, self.checkpoint)

    @property
    def run(self) -> Path:
        """The run directory; of a pretrained folder, where what is made of it is written."""
        return self.checkpoint.parent.parent if self.pretrained is None else self.pretrained.run

    @property
    def name(self) -> str:
        """What a line calls it: the checkpoint's name, or the pretrained folder's."""
        return self.checkpoint.name if self.pretrained is None else self.pretrained.name

    @property
    def weights_sha256(self) -> str:
        """The SHA-256 of the file of the weights that were loaded."""
        if self.pretrained is not None:
            return self.pretrained.sha256(self.weights)
        stem = "model" if self.weights == "model" else "ema"
        return files.recorded_sha256(self.checkpoint, stem)


Found = VerifiedCheckpoint | PretrainedModel
"""What can be loaded to sample or to evaluate it."""


def refuse_foreign(path: Path) -> None:
    """Recognise what other libraries save, by names and marks; nothing is executed.

    Raises:
        CheckpointError: Saying what it is and what is needed instead.
    """
    what = what_else(path)
    if what is not None:
        raise CheckpointError(
            f"{printable(path)} is {what.words}. Give a run directory of ddpm_lib such as"
            f" runs/shapes, a checkpoint in it, or a pretrained folder.{what.advice(path)}"
        )


def find_checkpoints(path: str | Path, which: str | int = "latest") -> list[Found]:
    """Find checkpoints of a run directory, or take the path itself if it is one, or a pretrained
    folder.

    Each checkpoint is hashed once.

    Args:
        path: A run directory, a checkpoint directory, a pretrained folder, or the name of a
            repository on the hub, "owner/name"; what lies here wins.
        which: "latest", "best" (by keep_best), "all", a step (1200) or a directory name
            ("step-000001200").

    Raises:
        CheckpointError: If there is none, naming what is there.
        HubError: If the hub cannot be reached, or has none of that name.
    """
    if isinstance(which, bool) or not isinstance(which, (str, int)):
        raise ConfigError(f"checkpoint must be a step or a name ('latest'); got {short(which)}.")
    path = at_home(path) if isinstance(path, str) else path
    pretrained = find_pretrained(path, which)
    if pretrained is not None:
        return [pretrained]
    path, which = Path(path), str(which)
    if not path.exists():
        raise CheckpointError(no_run(path))
    if not path.is_dir() or not (path / files.MANIFEST).is_file():
        refuse_foreign(path)
    if (path / files.MANIFEST).is_file():
        if which != "latest":
            raise CheckpointError(
                f"{path} is one checkpoint; to choose with {option('checkpoint', which)}, give the"
                " run"
                f" directory {path.parent.parent}."
            )
        return [files.verify(path)]
    there = files.list_checkpoints(path / "checkpoints")
    if not there:
        raise CheckpointError(nothing_saved(path))
    verify = functools.cache(files.verify)
    if which == "latest":
        return [_newest(path, verify)]
    names = ", ".join(p.name for p in there)
    if which == "best":
        newest = _newest(path, verify)
        if newest.state.best_step is None:
            raise CheckpointError(
                f"{path} was trained without {option('keep_best')}, so no checkpoint is the best."
                " There are:"
                f" {names}."
            )
        which = str(newest.state.best_step)
    wanted = checkpoint_name(int(which)) if which.isdecimal() else which
    chosen = there if which == "all" else [p for p in there if p.name == wanted]
    if not chosen:
        there_are = f"There are: {names}; or 'latest', or 'all'."
        raise CheckpointError(f"{path} has no checkpoint {short(which)}. {there_are}")
    return [verify(checkpoint) for checkpoint in chosen]


def _newest(run: Path, verify: Verify) -> VerifiedCheckpoint:
    """Return a run's newest complete checkpoint, warning about those passed over.

    Raises:
        CheckpointError: If there is none.
    """
    newest, broken = files.find_newest(run / "checkpoints", verify=verify)
    told = [files.passed_over(error) for error in broken]
    if newest is None:
        raise CheckpointError(f"{run} holds no complete checkpoint. " + " ".join(told))
    for line in told:
        logger.warning("%s Taking %s.", line, newest.path.name)
    return newest


@answers_wrong_keywords
def load_run(
    path: str | Path,
    checkpoint: str | int = "latest",
    weights: str = "ema",
    ema_decay: float | None = None,
) -> LoadedRun:
    """Rebuild a trained process from its run directory, or from a pretrained folder.

    Args:
        path: A run directory, a checkpoint directory, a pretrained folder, or the name of a
            repository on the hub, "owner/name"; what lies here wins.
        checkpoint: "latest", "best" (by keep_best), a step, or a directory name.
        weights: "ema" or "model"; of a pretrained folder without averages, "ema" means what it has.
        ema_decay: Which average, where several were kept; default: the first.

    Returns:
        The process with the weights loaded, and what the checkpoint says of itself.

    Raises:
        CheckpointError: If there is no complete checkpoint, or it is of a network that only Python
            code can build.
        ConfigError: If the weights asked for were not kept, or are said twice.
        HubError: If the hub cannot be reached, or has none of that name.
    """
    return load_checkpoint(find_checkpoints(path, checkpoint)[-1], weights, ema_decay)


def load_checkpoint(
    checkpoint: Found,
    weights: str = "ema",
    ema_decay: float | None = None,
) -> LoadedRun:
    """Rebuild a trained process from what `find_checkpoints` found; see `load_run`."""
    if weights not in ("ema", "model"):
        raise ConfigError(f"weights must be 'ema' or 'model'; got {weights!r}.")
    if weights == "model" and ema_decay is not None:
        raise ConfigError(
            f"{option('ema_decay', ema_decay)} names an average, and {option('weights', 'model')}"
            " the raw weights. Leave one of them out."
        )
    if isinstance(checkpoint, PretrainedModel):
        return _load_pretrained(checkpoint, weights, ema_decay)
    default = sampling_or_none(checkpoint.run)
    if default is not None and weights == "ema" and ema_decay is None:
        checkpoint, ema_decay = chosen_average(checkpoint, default.weights)
    found = checkpoint.path
    # An average that was synthesised is named by its length, not by a decay.
    decays = [d if isinstance(d, str) else float(d) for d in checkpoint.state.ema_decay]
    state = dataclasses.replace(checkpoint.state, ema_decay=decays)
    tensors, label = choose_weights(checkpoint, decays, weights, ema_decay)
    try:
        _check_size(found, state, tensors)
        model, diffusion = _build(found, state)
        names = state.trained_on.class_names
        diffusion.class_names = tuple(names) if names else None
        diffusion.normalization = run_normalization(state, found)
    except (
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        ArithmeticError,
        MemoryError,
        RuntimeError,
    ) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"{found / STATE} describes nothing that this version can build "
            f"({type(error).__name__}: {printable(error)[:300]})."
        ) from error
    check_finite(tensors, str(found), "Choose an older checkpoint.")
    load_weights(model, tensors, str(found))
    if diffusion.uncertainty is not None and (found / "uncertainty.safetensors").is_file():
        uncertainty = checkpoint.read_tensors("uncertainty")
        load_weights(diffusion.uncertainty, uncertainty, str(found))
    diffusion.eval()
    learn_texts(diffusion.conditioners, read_texts(checkpoint.run))
    if default is not None:
        diffusion.sampling_default = _of_run(default, checkpoint, label)
    values = {**checkpoint.state_values, "ema_decay": decays}
    return LoadedRun(diffusion, found, state.step, label, diffusion.class_names, values)


def chosen_average(
    checkpoint: VerifiedCheckpoint, weights: str | None
) -> tuple[VerifiedCheckpoint, Any]:
    """Find the average that a sampling default was chosen with.

    Args:
        checkpoint: The checkpoint that is loaded.
        weights: "ema 0.999", or "ema sigma_rel=0.1" for one that was synthesised; None for any.

    Returns:
        The checkpoint that holds it, and its name there; None for the first, where it is not to be
        had, as after further training.
    """
    _, _, average = (weights or "").partition(" ")
    for kept in checkpoint.state.ema_decay:
        if average and (str(kept) == average or _same_number(kept, average)):
            return checkpoint, kept if isinstance(kept, str) else float(kept)
    place = checkpoint.run / "ema" / f"{average.replace('=', '-')}-{checkpoint.path.name}"
    if "=" in average and checkpoint.path.parent.name == "checkpoints" and place.is_dir():
        return files.verify(place), None
    return checkpoint, None


def _same_number(kept: object, average: str) -> bool:
    try:
        return float(average) == kept
    except ValueError:
        return False


def _of_run(
    default: SamplingDefault, checkpoint: VerifiedCheckpoint, weights: str
) -> SamplingDefault:
    load, name = None, default.guide_by
    if name is not None:
        there = checkpoint.run.absolute(), checkpoint.path.absolute()  # it is loaded later
        load = RunPartner(*there, weights, name, find_checkpoints, load_checkpoint)
    return dataclasses.replace(default, load_partner=load, loaded_step=checkpoint.state.step)


def _load_pretrained(model: PretrainedModel, weights: str, decay: float | None) -> LoadedRun:
    from ddpm_lib.diffusion import GaussianDiffusion

    name = model.weights_name(weights, decay)
    diffusion, label = load_process(GaussianDiffusion, model.folder, name)
    return LoadedRun(diffusion, model.path, 0, label, diffusion.class_names, {}, model)


def _check_size(path: Path, state: RunState, tensors: dict[str, Tensor]) -> None:
    """Compare the network that state.json describes with the weights before memory is taken for it.

    Raises:
        CheckpointError: Listing the first differences.
    """
    import torch

    with torch.device("meta"):
        model = _network(path, state)
    check_weights(model, tensors, str(path))


def _build(path: Path, state: RunState) -> tuple[nn.Module, GaussianDiffusion]:
    """Build the network and the process that a checkpoint describes, by registered names."""
    from ddpm_lib.diffusion import GaussianDiffusion

    model = _network(path, state)
    return model, GaussianDiffusion(model, **state.diffusion)


def _network(path: Path, state: RunState) -> nn.Module:
    kind, config = state.model["class"], state.model["config"]
    if kind not in NETWORKS or config is None:
        raise CheckpointError(
            f"{path} holds the weights of a {printable(kind)}, which is not registered here. Import"
            " the module with its class first, with @register_network (from ddpm_lib) above it; or"
            " build it, make a Trainer with the same output_dir, and call trainer.sample()."
        )
    return build_network(state.model, str(path / STATE))


def choose_weights(
    checkpoint: VerifiedCheckpoint,
    kept: list[float | str],
    weights: str,
    decay: float | str | None,
) -> tuple[dict[str, Tensor], str]:
    """Read some weights of a checkpoint.

    Args:
        checkpoint: It.
        kept: The averages that it keeps.
        weights: "ema" or "model".
        decay: Which average; None for the first.

    Returns:
        The weights by name, and what they are called.

    Raises:
        ConfigError: If they were not kept.
    """
    path = checkpoint.path
    if weights == "model":
        return checkpoint.read_tensors("model"), "model"
    if not kept:
        raise ConfigError(
            f"{path} was trained without an EMA. Ask for {option('weights', 'model')}."
        )
    chosen = kept[0] if decay is None else decay
    if chosen not in kept:
        there = ", ".join(map(str, kept))
        raise ConfigError(f"{path} keeps no EMA of decay {short(chosen)}. It keeps: {there}.")
    prefix, averages = f"{chosen}/", checkpoint.read_tensors("ema")
    tensors = {k.removeprefix(prefix): v for k, v in averages.items() if k.startswith(prefix)}
    return tensors, f"ema {chosen}"
