"""What a run is made of, how that is saved, and whether a checkpoint belongs to it."""

from __future__ import annotations

import inspect
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
from ddpm_lib.runs import checkpoint as files
from ddpm_lib.runs.checkpoint import VerifiedCheckpoint
from ddpm_lib.runs.network_state import load_optimizer_tensors, load_weights
from ddpm_lib.runs.state import STATE, DataDescription, RunState
from ddpm_lib.runs.versions import describe_versions
from ddpm_lib.training.callbacks.base import state_of
from ddpm_lib.training.going_back import back_to, wanted_step
from ddpm_lib.training.run_config import portable_options
from ddpm_lib.training.same_data import (
    contents_unknown,
    data_changes,
    describe_dataset,
    fraction_held_out,
    read_data_index,
)

if TYPE_CHECKING:
    from ddpm_lib.diffusion import GaussianDiffusion
    from ddpm_lib.training.callbacks.base import Callback
    from ddpm_lib.training.config import TrainingConfig
    from ddpm_lib.training.context import RunContext

_NO_OTHER_NETWORK = {"model.config.gradient_checkpointing"}
"""Settings that may change: recomputing activations changes the memory, not the network."""


def describe_model(model: nn.Module) -> dict[str, Any]:
    """Return the class and the arguments of a network, for rebuilding and comparing."""
    return {"class": type(model).__name__, "config": getattr(model, "config", None)}


def describe_data(run: RunContext) -> DataDescription:
    """Return what identifies the training data."""
    validation = run.held_out if run.config.val_data is not None else None
    return describe_dataset(run.dataset, run.source_name, run.held_fraction, validation)


def describe_run(run: RunContext) -> str:
    """Say in one line what is trained, on what, how and where."""
    plan, config, held_out = run.plan, run.config, run.held_out
    precision = "float32" if run.precision == "no" else run.precision
    parameters = sum(p.numel() for p in run.diffusion.model.parameters())
    ranks = (
        f"{run.processes} processes, {plan.per_process} each"
        if run.processes > 1
        else "one process"
    )
    kept = f", {len(held_out):,} held out" if held_out is not None else ""
    layout = " in channels_last" if run.channels_last else ""
    micro = f" in micro-batches of {plan.micro}" if plan.accumulation > 1 else ""
    return (
        f"Training {parameters / 1e6:.2f} M parameters on {len(run.dataset):,} images{kept}; batch"
        f" {config.images_per_step} ({ranks}{micro}), {precision}{layout} on {run.device}; run"
        f" directory {run.output_dir}."
    )


def run_state(run: RunContext) -> RunState:
    """Collect everything but the tensors; on every rank, as callbacks may need all of them."""
    scaler = run.accelerator.scaler
    return RunState(
        **run.progress.state_dict(),
        seed=run.config.seed,
        batch_size=run.config.images_per_step,
        shards=run.randomness.shards,
        model=describe_model(run.diffusion.model),
        diffusion=run.diffusion.config,
        data=describe_data(run).to_json(),
        ema_decay=list(run.config.ema_decay),
        training=portable_options(run.config),
        callbacks={name: state_of(c, run) for name, c in named(run.callbacks).items()},
        guard=run.guard.state_dict(),
        scaler=scaler.state_dict() if scaler is not None else None,
        versions=describe_versions(),
    )


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
    if saved is None or saved.batch_size != config.images_per_step:
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
    if saved.get("class") != type(model).__name__ or not isinstance(saved.get("config"), dict):
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


def check_same_order(run: RunContext, state: RunState, path: Path) -> None:
    """Refuse a checkpoint of other data, batch size or seed, unless that is overridden.

    Raises:
        ConfigError: Listing what differs.
    """
    config, described, held = run.config, state.trained_on, fraction_held_out(state)
    index = read_data_index(run.output_dir)
    lines = data_changes(run.dataset, run.held_fraction, described, held, index)
    validated, validates = described.val_fingerprint, describe_data(run).val_fingerprint
    if validated and validates and validated != validates:
        other = "val_data: other images than those that this run was validated on"
        lines.append(f"{other}, so that its curve would break")
    unknown = contents_unknown(run.dataset, described) if not lines else None
    changes = state.differences(batch_size=config.images_per_step, seed=config.seed)
    lines += [change.worded() for change in changes]
    if lines and not config.override:
        raise ConfigError(
            f"{path} was trained on other data or with another order:\n  "
            + "\n  ".join(lines)
            + f"\nSet {option('override', True)} to go on all the same, or use "
            + f"{another(run.output_dir)}."
        )
    for line in lines:
        run.say(f"Continuing although {line}.")
    if unknown:
        run.say(unknown)


def restore(run: RunContext, checkpoint: VerifiedCheckpoint) -> None:
    """Load a verified checkpoint into the run."""
    state, path = checkpoint.state, checkpoint.path
    check_same_network(run.diffusion, state, path)
    check_same_order(run, state, path)
    diffusion, read = run.diffusion, checkpoint.read_tensors
    load_weights(diffusion.model, read("model"), str(path))
    if diffusion.uncertainty is not None:
        load_weights(diffusion.uncertainty, read("uncertainty"), str(path))
    load_optimizer_tensors(run.optimizer, diffusion, read("optimizer"))
    run.progress.load_state_dict(state.to_json())
    _restore_averages(run, checkpoint)
    run.posthoc.restore(checkpoint)
    _restore_parts(run, state, path)
    _say_versions(run, state.versions)


def _restore_averages(run: RunContext, checkpoint: VerifiedCheckpoint) -> None:
    """Load the averages that are still kept; new ones start from the weights."""
    kept, wanted = checkpoint.state.ema_decay, run.config.ema_decay
    lost = [d for d in kept if d not in wanted]
    if lost:
        run.say(
            f"The EMA of decay {', '.join(map(str, lost))} is not kept any more: ema_decay does not"
            " name it."
        )
    if run.ema is None:
        return
    new = [d for d in wanted if d not in kept]
    if new:
        names = ", ".join(map(str, new))
        lacking = f"The checkpoint has no EMA of decay {names}"
        run.say(f"{lacking}: it starts from the current weights.")
    averages = checkpoint.read_tensors("ema") if kept else {}
    floats = {name: tensor for name, tensor in averages.items() if tensor.is_floating_point()}
    broken = next((name for name, v in floats.items() if not bool(v.isfinite().all())), None)
    if broken is not None:
        run.say(
            f"The average {broken} in {checkpoint.path.name} holds NaN or infinite values and will "
            "not recover: samples need --weights model. To go back to an older checkpoint: "
            "--resume STEP."
        )
    run.ema.load_tensors(averages)
    run.ema.set_step(run.step)


def _say_versions(run: RunContext, saved: dict[str, Any]) -> None:
    """Say what of the surroundings is not as it was."""
    threads, version = saved.get("threads"), saved.get("ddpm-lib")
    if version != (own := describe_versions()["ddpm-lib"]):
        run.say(f"Saved by ddpm-lib {printable(version)[:40]}, continuing with {own}.")
    if run.device.type == "cpu" and threads != torch.get_num_threads():
        run.say(
            f"Saved with {threads} CPU threads, continuing with {torch.get_num_threads()}: equal up"
            " to rounding, not bitwise."
        )


def _restore_parts(run: RunContext, state: RunState, path: Path) -> None:
    """Hand the small states over to their parts.

    Raises:
        CheckpointError: Naming the part that cannot use its state.
    """
    name = "scaler"
    try:
        if state.scaler is not None and run.accelerator.scaler is not None:
            run.accelerator.scaler.load_state_dict(state.scaler)
        name = "guard"
        run.guard.load_state_dict(state.guard or {})
        for name, callback in named(run.callbacks).items():
            callback.load_state_dict(state.callbacks.get(name, {}))
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path / STATE}: the state of {name} cannot be used "
            f"({type(error).__name__}: {printable(error)[:200]}). "
            "Go back to an older checkpoint: --resume STEP."
        ) from error
