"""What a run is made of, how that is saved, and whether a checkpoint belongs to it."""

from __future__ import annotations

import inspect
import platform
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.paths import another
from ddpm_lib.core.spelling import option
from ddpm_lib.core.text import printable, short
from ddpm_lib.runs import checkpoint as files
from ddpm_lib.runs.state import check_resumable
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
    from ddpm_lib.training.context import RunContext


def describe_model(trainer: RunContext) -> dict[str, Any]:
    """Return the class and the arguments of the network, for rebuilding and comparing."""
    model = trainer.diffusion.model
    return {"class": type(model).__name__, "config": getattr(model, "config", None)}


def describe_data(trainer: RunContext) -> dict[str, Any]:
    """Return what identifies the training data."""
    described = describe_dataset(trainer.dataset, trainer.source_name, trainer.held_fraction)
    if trainer.config.val_data is not None and trainer.held_out is not None:
        described["val_fingerprint"] = trainer.held_out.fingerprint
    return described


def describe_versions() -> dict[str, Any]:
    """Return what a bitwise repetition would need to match."""
    names = ("ddpm-lib", "torch", "accelerate", "ema-pytorch", "numpy")
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return {**found, "python": platform.python_version(), "threads": torch.get_num_threads()}


def describe_run(trainer: RunContext) -> str:
    """Say in one line what is trained, on what, how and where."""
    plan, config, held_out = trainer.plan, trainer.config, trainer.held_out
    precision = "float32" if trainer.precision == "no" else trainer.precision
    parameters = sum(p.numel() for p in trainer.diffusion.model.parameters())
    ranks = f"{trainer.processes} processes, {plan.per_process} each" if trainer.processes > 1 else "one process"
    kept = f", {len(held_out):,} held out" if held_out is not None else ""
    layout = " in channels_last" if trainer.channels_last else ""
    micro = f" in micro-batches of {plan.micro}" if plan.accumulation > 1 else ""
    return (
        f"Training {parameters / 1e6:.2f} M parameters on {len(trainer.dataset):,} images{kept}; batch {config.images_per_step} "
        f"({ranks}{micro}), {precision}{layout} on {trainer.device}; run directory {trainer.output_dir}."
    )


def run_state(trainer: RunContext) -> dict[str, Any]:
    """Collect everything but the tensors, JSON-able."""
    scaler = trainer.accelerator.scaler
    return {
        **trainer.progress.state_dict(),
        "seed": trainer.config.seed,
        "batch_size": trainer.config.images_per_step,
        "shards": trainer.randomness.shards,
        "model": describe_model(trainer),
        "diffusion": trainer.diffusion.config,
        "data": describe_data(trainer),
        "ema_decay": list(trainer.config.ema_decay),
        "training": portable_options(trainer),
        "callbacks": {name: state_of(callback, trainer) for name, callback in named(trainer.callbacks).items()},
        "guard": trainer.guard.state_dict(),
        "scaler": scaler.state_dict() if scaler is not None else None,
        "versions": describe_versions(),
    }


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


def find_checkpoint(trainer: RunContext) -> Path | None:
    """Return the checkpoint to go on from, None in a new run: the newest that is whole, or the one that `resume` names.

    Raises:
        ConfigError: If there is one and resume="never", or none of the step asked for.
        CheckpointError: If there are checkpoints but none is complete: starting again would overwrite what is left of them.
    """
    folder = trainer.output_dir / "checkpoints"
    there = files.list_checkpoints(folder)
    if there and trainer.config.resume == "never":
        raise ConfigError(
            f"{trainer.output_dir} holds {there[-1].name} already. "
            f"Choose {another(trainer.output_dir)}, or {option('resume', 'auto')} to continue it."
        )
    step = wanted_step(trainer.config.resume, trainer.output_dir)
    if there and step is None and files.is_of_newer_version(there[-1]):
        raise files.CheckpointError(
            f"{there[-1]} was written by a newer ddpm-lib, which this version cannot read. Upgrade ddpm-lib, or go back to an "
            "older checkpoint (--resume STEP), which sets the newer ones aside."
        )
    back = back_to(trainer, step) if step is not None else None
    if back is not None:
        return back
    broken: list[str] = []
    found = files.newest_complete(folder, broken.append, check=check_resumable)
    for line in broken:
        trainer.say(line)
    if there and found is None:
        raise files.CheckpointError(
            f"None of the {len(there)} checkpoints in {folder} is complete. To start anew, choose "
            f"{another(trainer.output_dir)}, or move them away. The newest: {broken[0].partition(': ')[2]}"
        )
    return found


def shards_of_run(trainer: RunContext, checkpoint: Path | None) -> int:
    """Return how many noise keys the global batch has: what the run began with, unless the batch size is another now."""
    config = trainer.config
    fresh = config.shards or trainer.processes * config.accumulation_steps
    if checkpoint is None:
        return fresh
    state = files.read_state(checkpoint)
    if state["batch_size"] != config.images_per_step:
        return fresh
    shards = int(state["shards"])
    if config.shards not in (None, shards):
        trainer.say(f"shards stays {shards}, which this run began with; {config.shards} was asked for.")
    return shards


def differences(saved: Any, now: Any, path: str = "") -> list[str]:
    """List where two JSON-like values differ, as `path: saved -> now`."""
    if isinstance(saved, dict) and isinstance(now, dict):
        keys = list(dict.fromkeys([*saved, *now]))
        return [line for k in keys for line in differences(saved.get(k), now.get(k), f"{path}.{k}" if path else str(k))]
    as_list = [list(v) if isinstance(v, tuple) else v for v in (saved, now)]
    return [] if as_list[0] == as_list[1] else [f"{path}: {short(saved)} in the checkpoint, {short(now)} now"]


def completed(diffusion: GaussianDiffusion, saved: dict[str, Any]) -> dict[str, Any]:
    """Return the saved options of a process with the defaults of those that it was saved too early to know."""
    try:
        return type(diffusion)(diffusion.model, **saved).config
    except (TypeError, ValueError, ArithmeticError, MemoryError, RuntimeError):
        return saved


def completed_model(model: nn.Module, saved: dict[str, Any]) -> dict[str, Any]:
    """Return the saved description of a network with the defaults of the arguments that it was saved too early to know."""
    if saved.get("class") != type(model).__name__ or not isinstance(saved.get("config"), dict):
        return saved
    known = inspect.signature(type(model).__init__).parameters.values()
    defaults = {p.name: p.default for p in known if p.default is not inspect.Parameter.empty}
    return {**saved, "config": {**defaults, **saved["config"]}}


def check_same_run(trainer: RunContext, state: dict[str, Any], path: Path) -> None:
    """Refuse a checkpoint of another network or process; data, batch size and seed may change only on request.

    Raises:
        ConfigError: Listing what differs.
    """
    now = {"model": describe_model(trainer), "diffusion": trainer.diffusion.config}
    model = completed_model(trainer.diffusion.model, state["model"])
    saved = {"model": model, "diffusion": completed(trainer.diffusion, state["diffusion"])}
    # Recomputing activations changes the memory, not the network.
    hard = [line for line in differences(saved, now) if not line.startswith("model.config.gradient_checkpointing:")]
    if hard:
        raise ConfigError(
            f"{path} was trained with other settings:\n  "
            + "\n  ".join(hard)
            + "\nUse the settings of the checkpoint, or begin another run with "
            + f"{another(trainer.output_dir)}."
        )
    soft_now = {"batch_size": trainer.config.images_per_step, "seed": trainer.config.seed}
    described, held = state["data"], fraction_held_out(state)
    index = read_data_index(trainer.output_dir)
    soft = data_changes(trainer.dataset, trainer.held_fraction, described, held, index)
    validated, validates = described.get("val_fingerprint"), describe_data(trainer).get("val_fingerprint")
    if validated and validates and validated != validates:
        soft.append("val_data: other images than those that this run was validated on, so that its curve would break")
    unknown = contents_unknown(trainer.dataset, described) if not soft else None
    soft += differences({k: state.get(k) for k in soft_now}, soft_now)
    if soft and not trainer.config.override:
        raise ConfigError(
            f"{path} was trained on other data or with another order:\n  "
            + "\n  ".join(soft)
            + f"\nSet {option('override', True)} to go on all the same, or use "
            + f"{another(trainer.output_dir)}."
        )
    for line in soft:
        trainer.say(f"Continuing although {line}.")
    if unknown:
        trainer.say(unknown)


def restore(trainer: RunContext, path: Path) -> None:
    """Load a verified checkpoint into the trainer."""
    state = files.read_state(path)
    check_same_run(trainer, state, path)
    files.load_weights(trainer.diffusion.model, files.read_tensors(path, "model"), str(path))
    if trainer.diffusion.uncertainty is not None:
        files.load_weights(trainer.diffusion.uncertainty, files.read_tensors(path, "uncertainty"), str(path))
    files.load_optimizer_tensors(trainer.optimizer, trainer.diffusion, files.read_tensors(path, "optimizer"))
    trainer.progress.load_state_dict(state)
    lost = [d for d in state["ema_decay"] if d not in trainer.config.ema_decay]
    if lost:
        trainer.say(f"The EMA of decay {', '.join(map(str, lost))} is not kept any more: ema_decay does not name it.")
    if trainer.ema is not None:
        new = [d for d in trainer.config.ema_decay if d not in state["ema_decay"]]
        if new:
            trainer.say(
                f"The checkpoint has no EMA of decay {', '.join(map(str, new))}: it starts from the current weights."
            )
        averages = files.read_tensors(path, "ema") if state["ema_decay"] else {}
        broken = next((k for k, v in averages.items() if v.is_floating_point() and not bool(v.isfinite().all())), None)
        if broken is not None:
            trainer.say(
                f"The average {broken} in {path.name} holds NaN or infinite values and will not recover: samples need "
                "--weights model. To go back to an older checkpoint: --resume STEP."
            )
        trainer.ema.load_tensors(averages)
        trainer.ema.set_step(trainer.step)
    trainer.posthoc.restore(path, state)
    _restore_parts(trainer, state, path)
    threads, version = state["versions"].get("threads"), state["versions"].get("ddpm-lib")
    if version != (own := describe_versions()["ddpm-lib"]):
        trainer.say(f"Saved by ddpm-lib {printable(version)[:40]}, continuing with {own}.")
    if trainer.device.type == "cpu" and threads != torch.get_num_threads():
        trainer.say(
            f"Saved with {threads} CPU threads, continuing with {torch.get_num_threads()}: equal up to rounding, not bitwise."
        )


def _restore_parts(trainer: RunContext, state: dict[str, Any], path: Path) -> None:
    """Hand the small states over to their parts.

    Raises:
        CheckpointError: Naming the part that cannot use its state.
    """
    name = "scaler"
    try:
        if state.get("scaler") is not None and trainer.accelerator.scaler is not None:
            trainer.accelerator.scaler.load_state_dict(state["scaler"])
        name = "guard"
        trainer.guard.load_state_dict(state.get("guard") or {})
        for name, callback in named(trainer.callbacks).items():
            callback.load_state_dict(state["callbacks"].get(name, {}))
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise files.CheckpointError(
            f"{path / 'state.json'}: the state of {name} cannot be used ({type(error).__name__}: {printable(error)[:200]}). "
            f"Go back to an older checkpoint: --resume STEP."
        ) from error
