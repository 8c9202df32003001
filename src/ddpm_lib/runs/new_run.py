"""A run directory made of values instead of training: what other programs have trained goes on from
there.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ddpm_lib.core.errors import CheckpointError, ConfigError
from ddpm_lib.core.files import write_atomically
from ddpm_lib.core.paths import fresh
from ddpm_lib.runs.checkpoint import save_checkpoint
from ddpm_lib.runs.metrics_file import write_status
from ddpm_lib.runs.state import DataDescription, RunState
from ddpm_lib.runs.versions import describe_versions

Weights = Mapping[str, Tensor]


def write_new_run(
    folder: str | Path,
    *,
    model: Mapping[str, Any],
    diffusion: Mapping[str, Any],
    weights: Weights | None,
    averages: Mapping[float | str, Weights] | None = None,
    optimizer: Weights | None = None,
    step: int = 0,
    training: Mapping[str, Any] | None = None,
    class_names: Sequence[str] | None = None,
    origin: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
) -> Path:
    """Write a run directory with one checkpoint.

    `load_run` and the commands take it like any other, and training goes on from it, on whichever
    images.

    Args:
        folder: The directory, which must not exist.
        model: The network's class and its arguments, {"class": …, "config": …}.
        diffusion: The arguments of the process.
        weights: The trained weights; None takes the first average for them.
        averages: Averaged weights by their decay, or by a label.
        optimizer: Its state as `<parameter>|<entry>` by the network's names of parameters, with
            the entries step, exp_avg and exp_avg_sq; empty for a fresh one.
        step: Optimizer steps done.
        training: Options of training that are known, such as learning_rate.
        class_names: Names of the classes.
        origin: Where it came from, JSON-able, such as {"source": …, "format": …}; every later
            checkpoint of the run keeps it.
        notes: What the user was told about it; kept with the origin.

    Returns:
        The run directory.

    Raises:
        ConfigError: If the directory exists.
        CheckpointError: If there are neither weights nor averages.
        OSError: If the disk refuses; nothing half-written stays.
    """
    run, averages = Path(folder), dict(averages or {})
    if run.exists():
        raise ConfigError(
            f"{run} exists, and nothing is overwritten. Choose another name, such as {fresh(run)}."
        )
    if weights is None and not averages:
        raise CheckpointError("There are neither weights nor averages to make a run of.")
    trained = weights if weights is not None else next(iter(averages.values()))
    # The optimizer of a run is one of the process, of which the network is the part `model`.
    moments = {f"model.{name}": tensor for name, tensor in (optimizer or {}).items()}
    tensors = {"model": dict(trained), "optimizer": moments}
    if averages:
        tensors["ema"] = {
            f"{decay}/{name}": tensor
            for decay, average in averages.items()
            for name, tensor in average.items()
        }
    state = RunState(
        step=step,
        model=dict(model),
        diffusion=dict(diffusion),
        data=DataDescription.unknown(class_names).to_json(),
        ema_decay=list(averages),
        training=dict(training or {}),
        versions=describe_versions(),
        origin={**(origin or {}), "notes": list(notes)},
    )
    try:
        save_checkpoint(run / "checkpoints", step, tensors, _plain(state.to_json()))
        _write_config(run, state)
        what = str((origin or {}).get("source", "other weights"))
        reason = f"made from {what}; not trained here yet"
        write_status(run, status="stopped", step=step, max_steps=step, reason=reason)
    except BaseException:
        shutil.rmtree(run, ignore_errors=True)
        raise
    return run


def _write_config(run: Path, state: RunState) -> None:
    """Write config.yaml: what `ddpm train DATA --config` needs to train on, if it can build the
    network.
    """
    import yaml

    if state.model["class"] != "Unet":
        return
    process, model = dict(state.diffusion), dict(state.model["config"] or {})
    size, channels = process.pop("image_size"), process.pop("channels", model.get("channels", 3))
    for name in ("channels", "dims"):
        model.pop(name, None)
    values = {
        "image_size": list(size) if isinstance(size, (list, tuple)) else [size],
        "channels": channels,
        "class_conditional": model.get("num_classes") is not None,
        **state.training,
        "output_dir": str(run),
        "model": model,
        "diffusion": process,
    }
    text = yaml.safe_dump(_plain(values), sort_keys=False, allow_unicode=True)
    write_atomically(run / "config.yaml", text)


def _plain(value: Any) -> Any:
    """Return a value as JSON has it: lists for tuples."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, (list, tuple)) else value
