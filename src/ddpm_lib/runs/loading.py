"""From a run directory or a checkpoint back to a `GaussianDiffusion` that samples."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.keywords import answers_wrong_keywords
from ddpm_lib.core.text import printable, short
from ddpm_lib.runs import checkpoint as files
from ddpm_lib.runs.standing import no_run, nothing_saved
from ddpm_lib.runs.state import best_step, check_loadable

if TYPE_CHECKING:
    from torch import nn

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


_FOREIGN = {
    "model_index.json": "a pipeline of diffusers",
    "random_states_0.pkl": "a state saved by accelerate",
    "pytorch_model.bin": "a model of transformers or diffusers",
    "diffusion_pytorch_model.safetensors": "a model of diffusers",
    ".metadata": "a distributed checkpoint of torch",
}


def refuse_foreign(path: Path) -> None:
    """Recognise what other libraries save, by names alone: nothing is read.

    Raises:
        CheckpointError: Saying what it is and what is needed instead.
    """
    what = next((words for name, words in _FOREIGN.items() if (path / name).exists()), None)
    if path.is_file():
        pickles = (".pt", ".pth", ".ckpt", ".bin", ".pkl")
        what = "a pickle, which can run code and is never loaded" if path.suffix in pickles else "a file"
    if what:
        raise files.CheckpointError(
            f"{path} is {what}. Give a run directory of ddpm_lib such as runs/shapes, or a checkpoint in it."
        )


def find_checkpoints(path: str | Path, which: str | int = "latest") -> list[Path]:
    """Find checkpoints of a run directory, or take the path itself if it is one.

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
        raise files.CheckpointError(no_run(path))
    if not path.is_dir() or not (path / files.MANIFEST).is_file():
        refuse_foreign(path)
    if (path / files.MANIFEST).is_file():
        if which != "latest":
            raise files.CheckpointError(
                f"{path} is one checkpoint; to choose with checkpoint={which!r}, give the run directory {path.parent.parent}."
            )
        files.verify(path)
        return [path]
    there = files.list_checkpoints(path / "checkpoints")
    if not there:
        raise files.CheckpointError(nothing_saved(path))
    names = ", ".join(p.name for p in there)
    if which == "latest":
        broken: list[str] = []
        newest = files.newest_complete(path / "checkpoints", broken.append)
        if newest is None:
            raise files.CheckpointError(f"{path} holds no complete checkpoint. " + " ".join(broken))
        for line in broken:
            logger.warning("%s Taking %s.", line, newest.name)
        return [newest]
    if which == "best":
        newest = find_checkpoints(path)[-1]
        step = best_step(files.read_state(newest))
        if step is None:
            raise files.CheckpointError(
                f"{path} was trained without keep_best, so no checkpoint is the best. There are: {names}."
            )
        which = str(step)
    wanted = files.checkpoint_name(int(which)) if which.isdigit() else which
    chosen = there if which == "all" else [p for p in there if p.name == wanted]
    if not chosen:
        raise files.CheckpointError(
            f"{path} has no checkpoint {short(which)}. There are: {names}; or 'latest', or 'all'."
        )
    for checkpoint in chosen:
        files.verify(checkpoint)
    return chosen


@answers_wrong_keywords
def load_run(
    path: str | Path, checkpoint: str | int = "latest", weights: str = "ema", ema_decay: float | None = None
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
        CheckpointError: If there is no complete checkpoint, or it is of a network that only Python code can build.
        ConfigError: If the weights asked for were not kept.
    """
    if weights not in ("ema", "model"):
        raise ConfigError(f"weights must be 'ema' or 'model'; got {weights!r}.")
    found = find_checkpoints(path, checkpoint)[-1]
    state = files.read_state(found)
    check_loadable(state, found)
    # An average that was synthesised is named by its length, not by a decay.
    state["ema_decay"] = [decay if isinstance(decay, str) else float(decay) for decay in state["ema_decay"]]
    tensors, label = _choose(found, state, weights, ema_decay)
    try:
        _check_size(found, state, tensors)
        model, diffusion = _build(found, state)
        names, step = state["data"]["class_names"], int(state["step"])
        diffusion.class_names = tuple(names) if names else None
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError, MemoryError, RuntimeError) as error:
        if isinstance(error, files.CheckpointError):
            raise
        raise files.CheckpointError(
            f"{found / 'state.json'} describes nothing that this version can build "
            f"({type(error).__name__}: {printable(error)[:300]})."
        ) from error
    broken = [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]
    if broken:
        raise files.CheckpointError(
            f"{found} holds NaN or infinite weights ({len(broken)} of {len(tensors)} tensors, the first is {broken[0]}). "
            "Choose an older checkpoint."
        )
    files.load_weights(model, tensors, str(found))
    if diffusion.uncertainty is not None and (found / "uncertainty.safetensors").is_file():
        files.load_weights(diffusion.uncertainty, files.read_tensors(found, "uncertainty"), str(found))
    diffusion.eval()
    return LoadedRun(diffusion, found, step, label, tuple(names) if names else None, state)


def _check_size(found: Path, state: dict[str, Any], tensors: dict[str, Any]) -> None:
    """Compare the network that state.json describes with the weights before memory is taken for it.

    Raises:
        CheckpointError: Listing the first differences.
    """
    import torch

    with torch.device("meta"):
        model = _network(found, state)
    files.check_weights({k: tuple(v.shape) for k, v in model.state_dict().items()}, tensors, str(found))


def _build(found: Path, state: dict[str, Any]) -> tuple[nn.Module, GaussianDiffusion]:
    """Build the network and the process that a checkpoint's state.json describes, by the names of registered classes."""
    from ddpm_lib.diffusion import GaussianDiffusion

    model = _network(found, state)
    return model, GaussianDiffusion(model, **state["diffusion"])


def _network(found: Path, state: dict[str, Any]) -> nn.Module:
    from ddpm_lib.nn import NETWORKS

    described = state["model"]
    if described["class"] not in NETWORKS or described["config"] is None:
        raise files.CheckpointError(
            f"{found} holds the weights of a {described['class']}, which only your own code can build. "
            "Build it, make a Trainer with the same output_dir, and call trainer.sample()."
        )
    network: nn.Module = NETWORKS[described["class"]](**described["config"])
    return network


def _choose(path: Path, state: dict[str, Any], weights: str, decay: float | None) -> tuple[dict[str, Any], str]:
    if weights == "model":
        return files.read_tensors(path, "model"), "model"
    kept = state["ema_decay"]
    if not kept:
        raise ConfigError(f"{path} was trained without an EMA. Ask for weights='model' (--weights model).")
    decay = kept[0] if decay is None else decay
    if decay not in kept:
        raise ConfigError(f"{path} keeps no EMA of decay {short(decay)}. It keeps: {', '.join(map(str, kept))}.")
    prefix = f"{decay}/"
    tensors = {k.removeprefix(prefix): v for k, v in files.read_tensors(path, "ema").items() if k.startswith(prefix)}
    return tensors, f"ema {decay}"
