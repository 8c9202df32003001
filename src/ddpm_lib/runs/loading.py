"""From a run directory or a checkpoint back to a `GaussianDiffusion` that samples."""

from __future__ import annotations

import dataclasses
import functools
import logging
import shlex
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddpm_lib.core.errors import CheckpointError, ConfigError
from ddpm_lib.core.keywords import answers_wrong_keywords
from ddpm_lib.core.text import printable, short
from ddpm_lib.nn.networks import NETWORKS, build_network
from ddpm_lib.nn.strict import check_finite, check_weights, load_weights
from ddpm_lib.runs import checkpoint as files
from ddpm_lib.runs.checkpoint import VerifiedCheckpoint, Verify
from ddpm_lib.runs.names import checkpoint_name
from ddpm_lib.runs.run_status import no_run, nothing_saved
from ddpm_lib.runs.state import STATE, RunState

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ddpm_lib.diffusion import GaussianDiffusion

logger = logging.getLogger("ddpm_lib")


@dataclass(frozen=True)
class LoadedRun:
    """A trained process.

    Attributes:
        diffusion: The process with the chosen weights loaded, in evaluation mode, on the CPU.
        checkpoint: The directory read.
        step: Its step.
        weights: Which weights were loaded: "model" or "ema <decay>".
        class_names: Names of the classes, where the data had labels.
        state: All of the checkpoint's state.json.
    """

    diffusion: GaussianDiffusion
    checkpoint: Path
    step: int
    weights: str
    class_names: tuple[str, ...] | None
    state: dict[str, Any]

    def __repr__(self) -> str:
        classes = f", {len(self.class_names)} classes" if self.class_names else ""
        return f"LoadedRun({self.checkpoint}, step {self.step:,}, weights {self.weights}{classes})"

    @cached_property
    def run_state(self) -> RunState:
        """The same state by attributes."""
        return RunState.from_json(self.state, self.checkpoint)

    @property
    def run(self) -> Path:
        """The run directory."""
        return self.checkpoint.parent.parent


_FOREIGN = {
    "model_index.json": "a pipeline of diffusers",
    "random_states_0.pkl": "a state saved by accelerate",
    "pytorch_model.bin": "a model of transformers or diffusers",
    "diffusion_pytorch_model.safetensors": "a model of diffusers",
    ".metadata": "a distributed checkpoint of torch",
}

_CONVERTED = (".pt", ".pth", ".ckpt", ".bin", ".safetensors", "model_index.json")
"""Endings of what importers may read."""


def refuse_foreign(path: Path) -> None:
    """Recognise what other libraries save, by names alone: nothing is read.

    Raises:
        CheckpointError: Saying what it is and what is needed instead.
    """
    found = next(
        ((name, words) for name, words in _FOREIGN.items() if (path / name).exists()), None
    )
    name, what = found or (path.name, None)
    if path.is_file():
        pickles = (".pt", ".pth", ".ckpt", ".bin", ".pkl")
        what = (
            "a pickle, which can run code and is never loaded"
            if path.suffix in pickles
            else "a file"
        )
    if what:
        advice = "Give a run directory of ddpm_lib such as runs/shapes, or a checkpoint in it."
        if name.endswith(_CONVERTED):
            words = shlex.join(
                ["ddpm", "convert", printable(path), f"runs/{path.stem or 'theirs'}"]
            )
            advice += f" To make a run of another library's checkpoint: {words}"
        raise CheckpointError(f"{path} is {what}. {advice}")


def find_checkpoints(path: str | Path, which: str | int = "latest") -> list[VerifiedCheckpoint]:
    """Find checkpoints of a run directory, or take the path itself if it is one.

    Each is hashed once.

    Args:
        path: A run directory or a checkpoint directory.
        which: "latest", "best" (by keep_best), "all", a step (1200) or a directory name
            ("step-000001200").

    Raises:
        CheckpointError: If there is none, naming what is there.
    """
    path = Path(path)
    if isinstance(which, bool) or not isinstance(which, (str, int)):
        raise ConfigError(f"checkpoint must be a step or a name ('latest'); got {short(which)}.")
    which = str(which)
    if not path.exists():
        raise CheckpointError(no_run(path))
    if not path.is_dir() or not (path / files.MANIFEST).is_file():
        refuse_foreign(path)
    if (path / files.MANIFEST).is_file():
        if which != "latest":
            raise CheckpointError(
                f"{path} is one checkpoint; to choose with checkpoint={which!r}, give the run"
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
                f"{path} was trained without keep_best, so no checkpoint is the best. There are:"
                f" {names}."
            )
        which = str(newest.state.best_step)
    wanted = checkpoint_name(int(which)) if which.isdigit() else which
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
    """Rebuild a trained process from its run directory.

    Args:
        path: A run directory or a checkpoint directory.
        checkpoint: "latest", "best" (by keep_best), a step, or a directory name.
        weights: "ema" or "model".
        ema_decay: Which average, where several were kept; default: the first.

    Returns:
        The process with the weights loaded, and what the checkpoint says of itself.

    Raises:
        CheckpointError: If there is no complete checkpoint, or it is of a network that only Python
            code can build.
        ConfigError: If the weights asked for were not kept.
    """
    if weights not in ("ema", "model"):
        raise ConfigError(f"weights must be 'ema' or 'model'; got {weights!r}.")
    return load_checkpoint(find_checkpoints(path, checkpoint)[-1], weights, ema_decay)


def load_checkpoint(
    checkpoint: VerifiedCheckpoint,
    weights: str = "ema",
    ema_decay: float | None = None,
) -> LoadedRun:
    """Rebuild a trained process from a checkpoint that was verified; see `load_run`."""
    if weights not in ("ema", "model"):
        raise ConfigError(f"weights must be 'ema' or 'model'; got {weights!r}.")
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
    values = {**checkpoint.state_values, "ema_decay": decays}
    return LoadedRun(diffusion, found, state.step, label, diffusion.class_names, values)


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
            f"{path} was trained without an EMA. Ask for weights='model' (--weights model)."
        )
    chosen = kept[0] if decay is None else decay
    if chosen not in kept:
        there = ", ".join(map(str, kept))
        raise ConfigError(f"{path} keeps no EMA of decay {short(chosen)}. It keeps: {there}.")
    prefix, averages = f"{chosen}/", checkpoint.read_tensors("ema")
    tensors = {k.removeprefix(prefix): v for k, v in averages.items() if k.startswith(prefix)}
    return tensors, f"ema {chosen}"
