"""Which checkpoint a run goes on from, whether it belongs to the run, and how its parts take it."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ddpm_lib.core.errors import CheckpointError, ConfigError
from ddpm_lib.core.paths import another
from ddpm_lib.core.spelling import option
from ddpm_lib.core.text import printable
from ddpm_lib.nn.blocks import use_dropout_masks
from ddpm_lib.nn.networks import describe_network, registered_as
from ddpm_lib.nn.strict import load_weights
from ddpm_lib.runs import checkpoint as files
from ddpm_lib.runs.checkpoint import VerifiedCheckpoint
from ddpm_lib.runs.network_state import load_optimizer_tensors
from ddpm_lib.runs.started_from import StartedFrom
from ddpm_lib.runs.state import STATE, DataDescription, RunState
from ddpm_lib.runs.versions import describe_versions
from ddpm_lib.training.going_back import back_to, wanted_step
from ddpm_lib.training.growing import reminder
from ddpm_lib.training.learner import START
from ddpm_lib.training.optim import state_entries
from ddpm_lib.training.same_data import (
    contents_unknown,
    data_changes,
    fraction_held_out,
    held_out_changes,
    read_data_index,
)

if TYPE_CHECKING:
    from ddpm_lib.diffusion import GaussianDiffusion
    from ddpm_lib.training.callbacks.base import Callback
    from ddpm_lib.training.config import TrainingConfig
    from ddpm_lib.training.context import TrainingData
    from ddpm_lib.training.ema import WeightAverages
    from ddpm_lib.training.learner import Learner
    from ddpm_lib.training.nonfinite import NonFiniteGuard

_NO_OTHER_NETWORK = {"model.config.gradient_checkpointing"}
"""Settings that may change: recomputing activations changes the memory, not the network."""


def describe_model(model: nn.Module) -> dict[str, Any]:
    """Return the class and the arguments of a network, for rebuilding and comparing."""
    if registered_as(type(model)) is not None:
        return describe_network(model)
    config = getattr(model, "config", None)
    return {"class": type(model).__name__, "config": config if _is_plain(config) else None}


def _is_plain(config: Any) -> bool:
    """Say whether JSON can hold what a network of another library calls its config."""
    try:
        return isinstance(config, dict) and bool(json.dumps(config))
    except (TypeError, ValueError):
        return False


def named(callbacks: list[Callback]) -> dict[str, Callback]:
    """Return the callbacks by name; further ones of the same name are numbered."""
    result: dict[str, Callback] = {}
    for callback in callbacks:
        name, number = callback.name, 1
        while name in result:
            number += 1
            name = f"{callback.name}-{number}"
        result[name] = callback
    return result


def find_checkpoint(
    run: Path,
    resume: str,
    say: Callable[[str], None],
) -> VerifiedCheckpoint | None:
    """Return the checkpoint to go on from, None in a new run: the newest that is whole, or the one
    that `resume` names.

    Args:
        run: The run directory.
        resume: The option.
        say: Gets a line for each checkpoint passed over.

    Raises:
        ConfigError: If there is one and resume="never", or none of the step asked for.
        CheckpointError: If there are checkpoints but none is complete: starting again would
            overwrite what is left of them.
    """
    folder, verify = run / "checkpoints", cache(files.verify)
    there = files.list_checkpoints(folder)
    if there and resume == "never":
        raise ConfigError(
            f"{run} holds {there[-1].name} already. "
            f"Choose {another(run)}, or {option('resume', 'auto')} to continue it."
        )
    step = wanted_step(resume, run)
    if there and step is None and files.is_of_newer_version(there[-1]):
        raise CheckpointError(
            f"{there[-1]} was written by a newer ddpm-lib, which this version cannot read. Upgrade"
            " ddpm-lib, or go back to an older checkpoint (--resume STEP), which sets the newer"
            " ones aside."
        )
    back = back_to(run, step, verify, say) if step is not None else None
    if back is not None:
        return back
    found, broken = files.find_newest(folder, check=files.check_resumable, verify=verify)
    for error in broken:
        say(files.passed_over(error))
    if there and found is None:
        raise CheckpointError(
            f"None of the {len(there)} checkpoints in {folder} is complete. To start anew, choose "
            f"{another(run)}, or move them away. The newest: {files.without_stop(broken[0])}."
        )
    return found


def began_here(saved: RunState) -> bool:
    """Say whether a checkpoint is of a training of ours, which has an order to keep."""
    return saved.trained_on.is_known


def shards_of_run(
    config: TrainingConfig,
    processes: int,
    saved: RunState | None,
    say: Callable[[str], None],
) -> int:
    """Return how many noise keys the global batch has.

    That is what the run began with, unless the batch size is another now.

    Args:
        config: The options, with a number for batch_size.
        processes: Of this run now.
        saved: State of the checkpoint to go on from, None in a new run.
        say: Gets a line where another number was asked for.
    """
    if saved is None or not began_here(saved) or saved.batch_size != config.images_per_step:
        return config.shards or processes * config.accumulation_steps
    if config.shards not in (None, saved.shards):
        began = f"shards stays {saved.shards}, which this run began with"
        say(f"{began}; {config.shards} was asked for.")
    return saved.shards


def completed(diffusion: GaussianDiffusion, saved: dict[str, Any]) -> dict[str, Any]:
    """Return the saved options of a process with the defaults of those that it was saved too early
    to know.
    """
    try:
        return type(diffusion)(diffusion.model, **saved).config
    except (TypeError, ValueError, ArithmeticError, MemoryError, RuntimeError):
        return saved


def completed_model(model: nn.Module, saved: dict[str, Any]) -> dict[str, Any]:
    """Return the saved description of a network with the defaults of the arguments that it was
    saved too early to know.
    """
    if saved.get("class") != describe_model(model)["class"] or not isinstance(
        saved.get("config"), dict
    ):
        return saved
    known = inspect.signature(type(model).__init__).parameters.values()
    defaults = {p.name: p.default for p in known if p.default is not inspect.Parameter.empty}
    return {**saved, "config": {**defaults, **saved["config"]}}


def check_same_network(diffusion: GaussianDiffusion, state: RunState, path: Path) -> None:
    """Refuse a checkpoint of another network or process.

    Raises:
        ConfigError: Listing what differs.
    """
    saved = replace(
        state,
        model=completed_model(diffusion.model, state.model),
        diffusion=completed(diffusion, state.diffusion),
    )
    changes = saved.differences(model=describe_model(diffusion.model), diffusion=diffusion.config)
    lines = [change.worded() for change in changes if change.path not in _NO_OTHER_NETWORK]
    if lines:
        raise ConfigError(
            f"{path} was trained with other settings:\n  "
            + "\n  ".join(lines)
            + "\nUse the settings of the checkpoint, or begin another run with "
            + f"{another(path.parent.parent)}."
        )


def check_same_order(
    config: TrainingConfig,
    data: TrainingData,
    described: DataDescription,
    checkpoint: VerifiedCheckpoint,
    say: Callable[[str], None],
) -> None:
    """Refuse a checkpoint of other data, batch size or seed, unless that is overridden.

    Args:
        config: The options, with a number for batch_size.
        data: The images of the run.
        described: What identifies them.
        checkpoint: The checkpoint.
        say: Gets a line for each difference that is overridden.

    Raises:
        ConfigError: Listing what differs.
    """
    state, path = checkpoint.state, checkpoint.path
    if not began_here(state):
        return  # it was not trained here, so there is no order to keep
    trained_on, held = state.trained_on, fraction_held_out(state)
    index = read_data_index(checkpoint.run)
    lines = data_changes(data.dataset, data.held_fraction, trained_on, held, index)
    lines += reminder(trained_on, config.add_data) if lines else []
    lines += held_out_changes(data.dataset, described, trained_on)
    unknown = contents_unknown(data.dataset, trained_on) if not lines else None
    changes = state.differences(batch_size=config.images_per_step, seed=config.seed)
    lines += [change.worded() for change in changes]
    if lines and not config.override:
        raise ConfigError(
            f"{path} was trained on other data or with another order:\n  "
            + "\n  ".join(lines)
            + f"\nSet {option('override', True)} to go on all the same, or use "
            + f"{another(checkpoint.run)}."
        )
    for line in lines:
        say(f"Continuing although {line}.")
    if unknown:
        say(unknown)


def restore_learner(
    learner: Learner, checkpoint: VerifiedCheckpoint, say: Callable[[str], None]
) -> None:
    """Load weights, moments and averages; averages that the checkpoint lacks start from the
    weights.
    """
    path, read, diffusion = checkpoint.path, checkpoint.read_tensors, learner.diffusion
    load_weights(diffusion.model, read("model"), str(path))
    use_dropout_masks(diffusion.model, checkpoint.state.dropout_masks)
    if diffusion.uncertainty is not None:
        load_weights(diffusion.uncertainty, read("uncertainty"), str(path))
    other = load_optimizer_tensors(learner.optimizer, diffusion, read("optimizer"), state_entries)
    if other:
        say(
            f"The checkpoint was trained by another optimizer: the moments of {len(other)}"
            f" parameters begin afresh, the first {other[0]}."
        )
    _restore_averages(learner.ema, checkpoint, say)
    learner.posthoc.restore(checkpoint)
    _restore_pull(learner, checkpoint, say)


def _restore_averages(
    ema: WeightAverages | None, checkpoint: VerifiedCheckpoint, say: Callable[[str], None]
) -> None:
    kept = checkpoint.state.ema_decay
    wanted = [] if ema is None else list(ema.decays)
    lost = [d for d in kept if d not in wanted]
    if lost:
        say(
            f"The EMA of decay {', '.join(map(str, lost))} is not kept any more:"
            f" {option('ema_decay')} does not"
            " name it."
        )
    if ema is None:
        return
    new = [d for d in wanted if d not in kept]
    if new:
        names = ", ".join(map(str, new))
        say(f"The checkpoint has no EMA of decay {names}: it starts from the current weights.")
    averages = checkpoint.read_tensors("ema") if kept else {}
    floats = {name: tensor for name, tensor in averages.items() if tensor.is_floating_point()}
    broken = next((name for name, v in floats.items() if not bool(v.isfinite().all())), None)
    if broken is not None:
        say(
            f"The average {broken} in {checkpoint.path.name} holds NaN or infinite values and will "
            "not recover: samples need --weights model. To go back to an older checkpoint: "
            "--resume STEP."
        )
    ema.load_tensors(averages)
    ema.set_step(checkpoint.state.step)


def say_start(began: StartedFrom | None, asked: str | None, say: Callable[[str], None]) -> None:
    """Say that a run which goes on does not begin with other weights.

    Args:
        began: What it began with, None for random weights.
        asked: The option `init_from`.
        say: Gets a line where the two differ.
    """
    if asked is None or (began is not None and began.source in (asked, os.path.abspath(asked))):
        return
    first = "random weights" if began is None else str(began)
    say(f"This run began with {first} and goes on from there; {asked} is not read.")


def _restore_pull(
    learner: Learner, checkpoint: VerifiedCheckpoint, say: Callable[[str], None]
) -> None:
    """Load the weights of the first step, or take those of a run that others have trained.

    Raises:
        ConfigError: If the checkpoint lacks them.
    """
    kept = f"{START}.safetensors" in checkpoint.files
    if learner.pull is None:
        if kept:
            say(
                f"The weights are not pulled to the start any more: {option('pull_to_start')} is 0."
            )
        return
    if not began_here(checkpoint.state):
        learner.pull.begin()
    elif not kept:
        raise ConfigError(
            f"{checkpoint.path} holds no weights of its run's first step, as"
            f" {option('pull_to_start')} was 0."
            f" Set {option('pull_to_start', 0.0)}, or begin"
            f" {another(checkpoint.run)}."
        )
    else:
        learner.pull.load_tensors(checkpoint.read_tensors(START), str(checkpoint.path))


def say_versions(saved: dict[str, Any], device: torch.device, say: Callable[[str], None]) -> None:
    """Say what of the surroundings is not as it was.

    Args:
        saved: The versions that a checkpoint notes.
        device: Where the run trains now.
        say: Gets a line for each difference.
    """
    threads, version = saved.get("threads"), saved.get("ddpm-lib")
    own = describe_versions()
    if version != own["ddpm-lib"]:
        say(f"Saved by ddpm-lib {printable(version)[:40]}, continuing with {own['ddpm-lib']}.")
    if device.type == "cpu" and saved.get("arithmetic", 1) != own["arithmetic"]:
        say(
            "Saved by another version, which rounds otherwise on a CPU: equal up to rounding, not"
            " bitwise."
        )
    if device.type == "cpu" and threads != torch.get_num_threads():
        say(
            f"Saved with {threads} CPU threads, continuing with {torch.get_num_threads()}: equal up"
            " to rounding, not bitwise."
        )


def restore_small_states(
    state: RunState,
    path: Path,
    scaler: Any,
    guard: NonFiniteGuard,
    callbacks: list[Callback],
) -> None:
    """Hand the small states over to their parts.

    Args:
        state: Of the checkpoint.
        path: The checkpoint.
        scaler: The gradient scaler, None without one.
        guard: The guard against NaN.
        callbacks: All of the run.

    Raises:
        CheckpointError: Naming the part that cannot use its state.
    """
    name = "scaler"
    try:
        if state.scaler is not None and scaler is not None:
            scaler.load_state_dict(state.scaler)
        name = "guard"
        guard.load_state_dict(state.guard or {})
        for name, callback in named(callbacks).items():
            callback.load_state_dict(state.callbacks.get(name, {}))
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path / STATE}: the state of {name} cannot be used "
            f"({type(error).__name__}: {printable(error)[:200]}). "
            "Go back to an older checkpoint: --resume STEP."
        ) from error
